"""What an adapter is: one device dialect, topics and payloads in, events out, actions back. Pure.

A file of its own implements one: a `SPEC`, a settings model, and a class with `decode` and `execute`. It does no I/O, reads no
clock (`now` comes in), keeps a bounded state, and says the same to the same messages. `gateway/adapting.py` runs it: it turns events into
Data Objects, whose Reporter the adapter is. docs/adapters/ has a worked example.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict

from gateway.errors import CtxtError
from gateway.messages import PayloadError, parse_json, rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_BYTES = 16 * 1024 * 1024
"""Bytes of a device's message; the broker's own limit (`broker.packet_bytes`) is mostly lower."""

MAX_DEPTH = 32
"""Levels of a device's JSON."""

MAX_ID = 128
"""Characters of a device's id."""

END = 32_503_680_000.0
"""Unix seconds of the year 3000: later times are none."""

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]


class Unreadable(CtxtError):  # noqa: N818 - what a message is, said where it is refused
    """A message that the dialect does not have: it is counted, told in the log now and then, and changes nothing."""


class Unable(CtxtError):  # noqa: N818 - what an adapter is, said to whoever asked
    """An action that the dialect or the device does not have. `code` follows HTTP; the sentence says what there is."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Options(BaseModel):
    """The base of an adapter's own settings, `[adapter.options]`: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Reading(NamedTuple):
    """One quantity as the device tells it; None takes it away.

    `unit` as the dialect spells it (`°C`, `hPa`, `kWh`): `gateway/units.py` makes a code of it, and converts. `time`: RFC 3339, the source's own.
    """

    value: Value | None
    unit: str | None = None
    time: str | None = None


class Readings(NamedTuple):
    """What a device says that is. The id is one to three segments, joined by `/`, in any characters: it becomes part of the URL.

    `cached`: the message repeats what was true before; only what is different from what is held counts, and `time` with it.
    `whole`: quantities that are not in it are not there any more. `live`: it proves that the device is alive.
    `past`: from a store of the device, sent late; it is kept apart from what is now.
    """

    device: str
    values: Mapping[str, Reading]
    cached: bool = False
    whole: bool = False
    live: bool = True
    past: bool = False


class About(NamedTuple):
    """What a device is: its name for people, and a merge patch for its Device object (schema Device; `id` is put in where it is missing)."""

    device: str
    name: str | None = None
    facts: Mapping[str, Any] = {}


class Alive(NamedTuple):
    """Whether a device can be reached; None: unknown, only time will tell (`stale_after`)."""

    device: str
    alive: bool | None


class Gone(NamedTuple):
    """A device was removed: its objects are deleted."""

    device: str


class Roster(NamedTuple):
    """All devices that there are whose ids begin with `within`: others of them that the gateway holds are deleted."""

    devices: frozenset[str]
    within: str = ""


class Send(NamedTuple):
    """A message to devices."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False


class Answer(NamedTuple):
    """A device has answered an action: `token` is the one that `execute` got."""

    token: str
    code: int
    body: Any = None
    description: str | None = None


class Listen(NamedTuple):
    """From now on these filters too, and no others beside `filters`: for dialects that say in messages where to look."""

    filters: frozenset[str]


Event = Readings | About | Alive | Gone | Roster | Send | Answer | Listen


class Order(NamedTuple):
    """What an action sends, and what proves that it was done.

    `confirms`: names of quantities; the device's next live readings of any of them are the answer. `answered`: an `Answer` with the token will
    come. Neither: the dialect does not confirm, and whoever asked is told 202.
    """

    sends: tuple[Send, ...]
    confirms: frozenset[str] = frozenset()
    answered: bool = False


class Adapter(Protocol):
    """One dialect with its settings. `filters`: what it listens to; `commands`: filters of what it may send to. MQTT filters, all."""

    filters: tuple[str, ...]
    commands: tuple[str, ...]

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """What a message on one of `filters` says; nothing for topics that say nothing. Raises Unreadable.

        `retained`: the broker has kept it; it may be old, and is never an event. Nothing may have changed in the adapter when it raises.
        """

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:
        """What an action of a device's object sends. Raises Unable, also for a device that is not known."""


@dataclass(frozen=True, slots=True)
class Spec:
    """How an adapter is found: `name` is the `type` in the settings. `make(options, most)` builds it, for `most` devices at most.

    `methods`: what `execute` takes, each with a line of help. `example`: an example of its settings, TOML. `signs`: topics, with * and ?
    for any characters, by which the dialect is known where it is set up otherwise than by default. `largest`: bytes of the largest
    message that its devices may send, where that may be more than `broker.packet_bytes` takes by default.
    """

    name: str
    summary: str
    options: type[BaseModel]
    make: Callable[[Any, int], Adapter]
    methods: Mapping[str, str]
    example: str
    home: str
    signs: tuple[str, ...] = ()
    largest: int = 0


# ---- for adapters ----------------------------------------------------------------------------------------------------


def read_json(payload: bytes) -> Any:
    """The JSON value of a device's message. Raises Unreadable."""
    try:
        return parse_json(payload, max_bytes=MAX_BYTES, max_depth=MAX_DEPTH)
    except PayloadError as error:
        if not payload:
            raise Unreadable("the payload is empty") from None
        raise Unreadable(error.text) from None


def read_object(payload: bytes) -> dict[str, Any]:
    """The JSON object of a device's message. Raises Unreadable."""
    value = read_json(payload)
    if type(value) is not dict:
        raise Unreadable(f"the payload is {_KINDS.get(type(value), 'no object')}, not an object")
    return value


def read_text(payload: bytes, most: int = 4_096) -> str:
    """The text of a device's message. Raises Unreadable."""
    if len(payload) > most:
        raise Unreadable(f"the payload has {len(payload):,} bytes, at most {most:,} are taken")
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Unreadable("the payload is not UTF-8") from None


def scalar(value: object) -> Scalar | None:
    """A value that can be held as it is, else None."""
    kind = type(value)
    if kind is float:
        return value if isfinite(value) else None  # type: ignore[arg-type, return-value]
    if kind is int or kind is bool or (kind is str and len(value) <= 4_096):  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    return None


def flat(name: str, value: Any, depth: int = 4) -> Iterable[tuple[str, Value]]:
    """The values in a JSON value, each with its name: members of objects are joined by `.`, lists of scalars stay lists. Nulls are left out."""
    if type(value) is dict:
        if depth:
            for key, below in value.items():
                yield from flat(f"{name}.{key}" if name else key, below, depth - 1)
    elif type(value) is list:
        items = [scalar(item) for item in value[:256]]
        if items and None not in items:
            yield name, items  # type: ignore[misc]
        elif depth:
            for number, below in enumerate(value[:256]):
                yield from flat(f"{name}.{number}", below, depth - 1)
    else:
        found = scalar(value)
        if found is not None:
            yield name, found


def number(text: str) -> int | float | None:
    """The number that a text is, or None: whole where it is written so, never NaN or infinite."""
    if len(text) > 64:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def at(seconds: object) -> str | None:
    """RFC 3339 of Unix seconds, or None where they are no time between 1970 and 2999."""
    if type(seconds) not in (int, float) or not 0 <= seconds < END:  # type: ignore[operator]
        return None
    return rfc3339(int(seconds * 1000))  # type: ignore[operator]


def moment(text: object, zone: tzinfo = UTC) -> str | None:
    """RFC 3339 in UTC of an ISO 8601 time, in `zone` where it names none; None where it is no time."""
    if type(text) is not str or not 8 <= len(text) <= 40:
        return None
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            found = found.replace(tzinfo=zone)
        seconds = found.timestamp()
    except (ValueError, OverflowError):
        return None
    return rfc3339(round(seconds * 1000)) if 0 <= seconds < END else None


def zone_of(name: str) -> tzinfo:
    """The time zone of a name such as Europe/Lisbon. Raises ValueError."""
    try:
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError("is no time zone: write one such as Europe/Lisbon, or UTC") from error


_KINDS: dict[type, str] = {
    list: "a list",
    str: "a text",
    bool: "a truth value",
    int: "a number",
    float: "a number",
    type(None): "null",
}
