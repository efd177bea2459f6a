"""Adapters on an engine of their own, without a broker and without a store: what would become of devices' messages. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from gateway.adapting import Adapting
from gateway.effects import Effects
from gateway.engine import Engine, Limits
from gateway.objects import Objects

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.adapter import Send
    from gateway.adapting import Served
    from gateway.catalogue import Catalogue
    from gateway.objects import DataObject
    from gateway.rights import Rights


class Rehearsal:
    """What comes in is said by `say`; what it led to is kept: `objects`, `sends`, `notes`, `answers`, `deltas`. Times are Unix seconds."""

    def __init__(self, served: Sequence[Served], rights: Rights, catalogue: Catalogue, now: float) -> None:
        """`rights`: as the service makes them for these adapters; they are this rehearsal's from now on."""
        rights.objects = Objects()
        self.engine = Engine(
            catalogue,
            rights,
            rights.objects,
            Limits(),
            epoch=1,
            now=now,
            mint=lambda _now: "ticket",
            adapters=frozenset(each.reporter for each in served),
        )
        self.adapting = Adapting(self.engine, served)
        self.sends: list[Send] = []
        self.notes: list[str] = []
        self.answers: list[dict[str, Any]] = []
        self.deltas: list[dict[str, Any]] = []

    def say(self, topic: str, payload: bytes, *, retained: bool, now: float) -> str | None:
        """A message comes: what became of it, one of `adapting.RESULTS`; None where no adapter listens to its topic."""
        number = self.adapting.find(topic)
        if number < 0:
            return None
        before = dict(self.adapting.counts(number))
        effects = Effects()
        self.adapting.take(effects, number, topic, payload, now, retained=retained)
        self.keep(effects)
        after = self.adapting.counts(number)
        # What is counted last says most: a message that was read may have led to an object that was refused.
        return [result for result in after if after[result] > before[result]][-1]

    def tick(self, now: float) -> None:
        """Time has passed: what was held back and is due goes out."""
        effects = Effects()
        self.adapting.tick(effects, now)
        self.keep(effects)

    def execute(self, client: str, url: str, method: str, params: Mapping[str, Any], now: float) -> None:
        """A client asks a device to act."""
        body = {"resource": url, "method": method, "params": params}
        effects = Effects()
        request = orjson.dumps({"id": "1", "type": "execute", "body": body})
        self.engine.requests.take(effects, client, request, now, f"inbox/{client}", None)
        self.keep(effects)

    def keep(self, effects: Effects) -> None:
        """What the service would do with these effects."""
        self.engine.seal(effects)
        self.sends += effects.sends
        self.notes += effects.notes
        self.deltas += [orjson.loads(delta) for _, delta in effects.deltas]
        self.answers += [orjson.loads(reply.payload) for reply in effects.replies]

    @property
    def objects(self) -> Iterator[DataObject]:
        """The objects that there are, in the order in which they were made."""
        return (obj for obj in self.engine.objects if not obj.deleted)
