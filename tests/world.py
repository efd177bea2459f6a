"""A small world for the tests of the pure rooms: a catalogue, namespaces, an engine, and time that stands still."""

from __future__ import annotations

import json
from typing import Any

import orjson

from gateway.catalogue import Catalogue
from gateway.effects import Effects, Refused
from gateway.engine import Engine, Limits
from gateway.objects import DataObject, Objects
from gateway.rights import Clients, Namespace, Rights, TopicRule, namespace
from gateway.ulid import ulid

CATALOGUE = Catalogue.load()
EVERYONE = Clients(True, frozenset())
NOBODY = Clients(False, frozenset())
NOW = 1_790_000_000.0
EPOCH = 1_790_000_000 * 256 + 1


def only(*names: str) -> Clients:
    return Clients(False, frozenset(names))


def own(**rest: Any) -> Namespace:
    """Everyone reports below their own name, everyone observes."""
    rest = {"schema": "Context", "report": EVERYONE, "observe": EVERYONE, **rest}
    return namespace("ctxt://home.local/{client}/**", **rest)


class World:
    def __init__(
        self,
        *namespaces: Namespace,
        rules: tuple[TopicRule, ...] = (),
        held: list[DataObject] | None = None,
        floors: dict[str, int] | None = None,
        now: float = NOW,
        epoch: int = EPOCH,
        **limits: Any,
    ) -> None:
        self.objects = Objects(held or [])
        self.rights = Rights(namespaces or (own(),), rules, self.objects)
        self.now = now
        self.engine = Engine(
            CATALOGUE,
            self.rights,
            self.objects,
            Limits(**limits),
            epoch=epoch,
            now=now,
            mint=ulid,
            floors=floors,
            next_row=1 + max((obj.row for obj in self.objects), default=0),
        )
        self.effects = Effects()

    def report(self, client: str, path: str, payload: Any) -> Refused | None:
        """One report in a batch of its own; `path` is an object topic, or what follows ctxt/home.local/."""
        self.effects = Effects()
        topic = path if path.startswith(("ctxt/", "comm/", "x/")) else "ctxt/home.local/" + path
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        refused = self.engine.report(self.effects, client, topic, data, self.now)
        self.engine.seal(self.effects)
        return refused

    def must(self, client: str, path: str, payload: Any) -> list[dict[str, Any]]:
        """A report that is accepted; returns its deltas."""
        refused = self.report(client, path, payload)
        assert refused is None, refused
        return self.deltas()

    def code(self, client: str, path: str, payload: Any) -> int:
        refused = self.report(client, path, payload)
        return 200 if refused is None else refused.code

    def request(self, client: str, kind: str, body: dict[str, Any], **rest: Any) -> dict[str, Any]:
        """A request in a batch of its own; returns the answer."""
        self.effects = Effects()
        payload = json.dumps({"id": "r1", "type": kind, "body": body, **rest}).encode()
        self.engine.requests.take(self.effects, client, payload, self.now)
        self.engine.seal(self.effects)
        replies = [*self.effects.replies, *self.effects.settled]
        for work in self.effects.work:
            replies.extend(step for step in work if step is not None)
        assert len(replies) == 1
        answer: dict[str, Any] = orjson.loads(replies[0].payload)
        assert replies[0].client == client
        assert answer["id"] == "r1"
        return answer

    def ask(self, client: str, kind: str, body: dict[str, Any], request: str = "r1") -> dict[str, list[dict[str, Any]]]:
        """A request in a batch of its own; of each client what it finds in its inbox."""
        self.effects = Effects()
        payload = json.dumps({"id": request, "type": kind, "body": body}).encode()
        self.engine.requests.take(self.effects, client, payload, self.now)
        self.engine.seal(self.effects)
        return self.inboxes()

    def inboxes(self) -> dict[str, list[dict[str, Any]]]:
        """What the last batch put into each client's inbox."""
        found: dict[str, list[dict[str, Any]]] = {}
        for reply in [*self.effects.replies, *self.effects.settled]:
            found.setdefault(reply.client, []).append(orjson.loads(reply.payload))
        return found

    def tick(self, seconds: float = 0.0) -> list[dict[str, Any]]:
        """Let time pass, then look at the clock once; returns the deltas."""
        self.now += seconds
        self.effects = Effects()
        self.engine.tick(self.effects, self.now)
        self.engine.seal(self.effects)
        return self.deltas()

    def presence(self, client: str, *, online: bool) -> list[dict[str, Any]]:
        self.effects = Effects()
        self.engine.presence(self.effects, client, online, self.now)
        return self.deltas()

    def deltas(self) -> list[dict[str, Any]]:
        return [orjson.loads(delta) for _, delta in self.effects.deltas]

    def inbox(self) -> list[dict[str, Any]]:
        return [orjson.loads(reply.payload) for reply in self.effects.replies]

    def obj(self, path: str) -> DataObject:
        found = self.objects.get(path if path.startswith(("ctxt/", "comm/")) else "ctxt/home.local/" + path)
        assert found is not None
        return found

    def data(self, path: str) -> dict[str, Any]:
        return self.obj(path).document()
