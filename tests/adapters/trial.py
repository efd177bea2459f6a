"""One adapter on an engine of its own, fed with captured messages: what every adapter's tests are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway import dialects
from gateway.adapting import Adapting, Served, reporter_of
from gateway.catalogue import Catalogue
from gateway.data import folder
from gateway.effects import Effects
from gateway.engine import Engine, Limits
from gateway.objects import Objects
from gateway.pending import Asked
from gateway.rights import Clients, Rights, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.adapter import Send

CAPTURES = Path(__file__).resolve().parents[1] / "captures"
NOW = 1_800_000_000.0
"""2027-01-15T08:00:00Z: when every captured message arrives."""

BASE = "ctxt://home.local/test"
CATALOGUE = Catalogue.load(folder("schemas"))


@dataclass(frozen=True, slots=True)
class Message:
    """What a device published."""

    topic: str
    payload: bytes
    retain: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """One device: who made it, what it said, and what objects that makes (by what follows `{base}/`, their whole `data`)."""

    path: Path
    device: str
    firmware: str
    source: str
    id: str
    messages: tuple[Message, ...]
    objects: Mapping[str, Any]
    status: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def payload_of(raw: Mapping[str, Any]) -> bytes:
    """A captured payload: `hex`, a text as it is, or JSON."""
    if "hex" in raw:
        return bytes.fromhex(raw["hex"])
    payload = raw["payload"]
    return payload.encode() if isinstance(payload, str) else orjson.dumps(payload)


def captures(adapter: str) -> Iterator[Capture]:
    """The captures of an adapter, in order."""
    for path in sorted((CAPTURES / adapter).glob("*.json")):
        raw = json.loads(path.read_text())
        messages = tuple(
            Message(each["topic"], payload_of(each), each.get("retain", False)) for each in raw.pop("messages")
        )
        yield Capture(path, messages=messages, **raw)


class Trial:
    """An adapter with its options (TOML's values), on an engine of its own."""

    def __init__(self, adapter: str, options: Mapping[str, Any] | None = None, **served: Any) -> None:
        spec = dialects.find(adapter)
        most = served.pop("most", 1_000)
        self.adapter = spec.make(spec.options.model_validate(dict(options or {})), most)
        reporter = reporter_of(adapter)
        everyone, nobody = Clients(True, frozenset()), Clients(False, frozenset())
        own = Clients(False, frozenset({reporter}))
        where = namespace(
            BASE + "/**", schema=CATALOGUE.get("Context").url, report=own, observe=everyone, execute=everyone
        )
        assert nobody.names == frozenset()
        objects = Objects()
        self.engine = Engine(
            CATALOGUE,
            Rights([where], [], objects),
            objects,
            Limits(),
            epoch=1,
            now=NOW,
            mint=lambda _now: "ticket",
            adapters=frozenset({reporter}),
        )
        self.engine.rights.objects = objects
        self.adapting = Adapting(self.engine, [Served(spec, self.adapter, adapter, BASE, most=most, **served)])
        self.sends: list[Send] = []
        self.notes: list[str] = []
        self.answers: list[dict[str, Any]] = []
        self.deltas: list[dict[str, Any]] = []

    def say(
        self, topic: str, payload: bytes | str | dict[str, Any] | list[Any], *, retain: bool = False, now: float = NOW
    ) -> Effects:
        """A device publishes. Its topic must be one that the adapter listens to."""
        if isinstance(payload, str):
            payload = payload.encode()
        elif not isinstance(payload, bytes):
            payload = orjson.dumps(payload)
        number = self.adapting.find(topic)
        assert number == 0, f"nobody listens to {topic}"
        effects = Effects()
        self.adapting.take(effects, number, topic, payload, now, retained=retain)
        return self._done(effects)

    def replay(self, messages: tuple[Message, ...], now: float = NOW) -> None:
        """Several messages; those on topics that nobody listens to pass by."""
        for message in messages:
            if self.adapting.find(message.topic) == 0:
                self.say(message.topic, message.payload, retain=message.retain, now=now)

    def tick(self, now: float) -> Effects:
        """Time has passed."""
        effects = Effects()
        self.adapting.tick(effects, now)
        return self._done(effects)

    def execute(self, device: str, method: str, now: float = NOW, **params: Any) -> Effects:
        """Somebody asks a device to act; what is sent is in `sends`, the answer (now or later) in `answers`."""
        effects = Effects()
        body = {"resource": f"{BASE}/{device}", "method": method, "params": params}
        request = orjson.dumps({"id": "1", "type": "execute", "body": body})
        self.engine.requests.take(effects, "ana", request, now, "inbox/ana", None)
        return self._done(effects)

    def _done(self, effects: Effects) -> Effects:
        self.engine.seal(effects)
        self.sends += effects.sends
        self.notes += effects.notes
        self.deltas += [orjson.loads(delta) for _, delta in effects.deltas]
        self.answers += [orjson.loads(reply.payload) for reply in effects.replies]
        return effects

    @property
    def objects(self) -> dict[str, Any]:
        """The data of every object, by what follows `{base}/`."""
        head = BASE + "/"
        return {
            obj.url.removeprefix(head): orjson.loads(obj.render()) for obj in self.engine.objects if not obj.deleted
        }

    @property
    def status(self) -> dict[str, str]:
        """The status of every object."""
        return {obj.url.removeprefix(BASE + "/"): obj.status for obj in self.engine.objects if not obj.deleted}

    @property
    def names(self) -> dict[str, str]:
        """The name of every object."""
        return {obj.url.removeprefix(BASE + "/"): obj.name for obj in self.engine.objects if not obj.deleted}

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of the messages."""
        return self.adapting.counts(0)


__all__ = ["BASE", "NOW", "Asked", "Capture", "Message", "Trial", "captures"]
