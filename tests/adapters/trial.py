"""One adapter on an engine of its own, fed with captured messages: what every adapter's tests are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway import dialects
from gateway.adapting import Served, reporter_of
from gateway.catalogue import Catalogue
from gateway.data import folder
from gateway.objects import Objects
from gateway.rehearsal import Rehearsal
from gateway.rights import Clients, Rights, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.objects import DataObject

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


class Trial(Rehearsal):
    """An adapter with its options (TOML's values), on an engine of its own."""

    def __init__(self, adapter: str, options: Mapping[str, Any] | None = None, **served: Any) -> None:
        spec = dialects.find(adapter)
        most = served.pop("most", 1_000)
        self.adapter = spec.make(spec.options.model_validate(dict(options or {})), most)
        reporter = reporter_of(adapter)
        everyone, own = Clients(True, frozenset()), Clients(False, frozenset({reporter}))
        where = namespace(
            BASE + "/**", schema=CATALOGUE.get("Context").url, report=own, observe=everyone, execute=everyone
        )
        one = Served(spec, self.adapter, adapter, BASE, most=most, **served)
        super().__init__([one], Rights([where], [], Objects()), CATALOGUE, NOW)

    def say(  # type: ignore[override]
        self, topic: str, payload: bytes | str | dict[str, Any] | list[Any], *, retain: bool = False, now: float = NOW
    ) -> str:
        """A device publishes. Its topic must be one that the adapter listens to."""
        if isinstance(payload, str):
            payload = payload.encode()
        elif not isinstance(payload, bytes):
            payload = orjson.dumps(payload)
        result = super().say(topic, payload, retained=retain, now=now)
        assert result is not None, f"nobody listens to {topic}"
        return result

    def replay(self, messages: tuple[Message, ...], now: float = NOW) -> None:
        """Several messages; those on topics that nobody listens to pass by."""
        for message in messages:
            if self.adapting.find(message.topic) == 0:
                self.say(message.topic, message.payload, retain=message.retain, now=now)

    def execute(self, device: str, verb: str, /, now: float = NOW, **params: Any) -> None:  # type: ignore[override]
        """Ana asks a device to act; what is sent is in `sends`, the answer (now or later) in `answers`."""
        super().execute("ana", f"{BASE}/{device}", verb, params, now)

    @property
    def objects(self) -> dict[str, Any]:  # type: ignore[override]
        """The data of every object, by what follows `{base}/`."""
        return {self._path(obj): orjson.loads(obj.render()) for obj in super().objects}

    @property
    def status(self) -> dict[str, str]:
        """The status of every object."""
        return {self._path(obj): obj.status for obj in super().objects}

    @property
    def names(self) -> dict[str, str]:
        """The name of every object."""
        return {self._path(obj): obj.name for obj in super().objects}

    @staticmethod
    def _path(obj: DataObject) -> str:
        return obj.url.removeprefix(BASE + "/")

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of the messages."""
        return self.adapting.counts(0)


__all__ = ["BASE", "NOW", "Capture", "Message", "Trial", "captures"]
