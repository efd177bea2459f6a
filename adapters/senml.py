"""SenML (RFC 8428) in JSON and CBOR: packs on any topic, base fields resolved, relative times, sums.

A record's name is the device and the quantity in one, `urn:dev:mac:0024befffe804ff1:temperature`. Which is which: where the topic names the device,
it does; else the base name is the device; else what stands before the last `:` or `/`.
"""

from __future__ import annotations

import base64
import re
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import Field, field_validator, model_validator

from gateway.adapter import (
    Event,
    Options,
    Order,
    Reading,
    Readings,
    Scalar,
    Send,
    Spec,
    Unable,
    Unreadable,
    at,
    read_json,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLE = """\
[[adapter]]
type = "senml"
clients = ["meters"]

[adapter.options]
topics = ["meters/{device}/senml"]
command_topic = "meters/{device}/set"
"""

METHODS = {
    "set": "quantities by name, as `valve=true`, `setpoint=21.5`: a pack on `command_topic`; answered when the device tells them"
}

LABELS = {
    -1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs", 0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}  # fmt: skip
"""What CBOR has for the names of fields (RFC 8428, section 6)."""

NUMBERS = {label: number for number, label in LABELS.items()}

ABSOLUTE = float(1 << 28)
"""Times below it count from now (section 4.5.3)."""

VERSION = 10
"""The version of SenML that this is."""

NAME = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9\-:./_]{0,255}")
"""A resolved name (section 4.5.1). LwM2M's begin with a /."""

DEVICE = re.compile(r"urn:dev:[a-z]+:[^:/_]+")
"""What names a device whatever comes behind it (RFC 9039)."""

MOST_RECORDS = 10_000
MOST_CBOR = 1 << 16
"""Bytes of a pack in CBOR: tags may make more of it."""

SECONDS = {"W": "J", "A": "C", "kW": "kJ"}
"""Units of sums: of a unit times a second. Others are written so, `Cel.s`."""

PLACE = "{device}"


class SenmlOptions(Options):
    """Where packs are, and where they are sent."""

    topics: tuple[str, ...] = Field(
        default=("senml/{device}",),
        min_length=1,
        max_length=500,
        description="Topics of packs: {device} for the level that is the device's id, + and # for any others.",
    )
    encoding: Literal["any", "json", "cbor"] = Field(
        default="any", description="What packs are in; any: JSON begins with [, all else is CBOR."
    )
    command_topic: str = Field(
        default="",
        max_length=300,
        description="Where `set` sends a pack, with {device} in it. Left out: nothing can be set.",
    )
    command_encoding: Literal["json", "cbor"] = Field(default="json", description="What that pack is in.")

    @field_validator("topics")
    @classmethod
    def _topics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            levels = each.split("/")
            wild = [level for level in levels[:-1] if level == "#"]
            odd = [
                level for level in levels if level not in (PLACE, "+", "#") and (set("+#{}") & set(level) or not level)
            ]
            if wild or odd or levels.count(PLACE) > 1 or levels[0] in ("#", PLACE) or each.startswith("$"):
                raise ValueError(
                    f"{each!r} must be a topic with {{device}} for a level, as in meters/{{device}}/senml; + and # as in MQTT"
                )
        return value

    @field_validator("command_topic")
    @classmethod
    def _command_topic(cls, value: str) -> str:
        if value and (value.split("/").count(PLACE) != 1 or set("+#") & set(value) or value.startswith((PLACE, "$"))):
            raise ValueError("must have {device} for a level, as in meters/{device}/set")
        return value

    @model_validator(mode="after")
    def _cbor(self) -> SenmlOptions:
        if "cbor" in (self.encoding, self.command_encoding) and _cbor() is None:
            raise ValueError(f"cbor: {NEEDED}")
        return self


NEEDED = "packs in CBOR need a library: pip install 'ctxt-gateway[senml]'"


def _cbor() -> Any | None:
    """The library for CBOR, where it is installed."""
    try:
        import cbor2  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return cbor2


class Senml:
    """Devices that send packs."""

    def __init__(self, options: SenmlOptions, most: int) -> None:
        self._most = most
        self._encoding = options.encoding
        self._patterns = [each.split("/") for each in options.topics]
        self._devices: dict[str, None] = {}
        self._command = options.command_topic
        self._binary = options.command_encoding == "cbor"
        self.filters: tuple[str, ...] = tuple(dict.fromkeys(each.replace(PLACE, "+") for each in options.topics))
        self.commands: tuple[str, ...] = (self._command.replace(PLACE, "+"),) if self._command else ()

    # ---- in ------------------------------------------------------------------------------------------------------------

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:  # noqa: ARG002 - records have times
        """See Adapter."""
        binary = self._encoding == "cbor" or (self._encoding == "any" and payload[:1] not in b"[ \r\n\t{")
        pack = self._unpacked(payload) if binary and payload else read_json(payload)
        if type(pack) is not list:
            raise Unreadable("it is no pack: a list of records")
        if len(pack) > MOST_RECORDS:
            raise Unreadable(f"the pack has {len(pack):,} records, at most {MOST_RECORDS:,} are taken")
        named = self._named(topic.split("/"))
        newest: dict[str, dict[str, tuple[float, Reading]]] = {}
        past: list[tuple[str, str, Reading]] = []
        for device, quantity, seconds, reading in self._resolved(pack, named, now):
            values = newest.setdefault(device, {})
            held = values.get(quantity)
            if held is not None and seconds < held[0]:
                past.append((device, quantity, reading))
                continue
            if held is not None:
                past.append((device, quantity, held[1]))
            values[quantity] = (seconds, reading)
        events: list[Event] = [
            Readings(device, {quantity: reading}, past=True) for device, quantity, reading in past[:1_000]
        ]
        for device, values in newest.items():
            if device not in self._devices and len(self._devices) < self._most:
                self._devices[device] = None
            events.append(Readings(device, {quantity: reading for quantity, (_, reading) in values.items()}))
        return events

    def _named(self, levels: list[str]) -> str | None:
        """The device that a topic names."""
        for pattern in self._patterns:
            if len(pattern) == len(levels) or (pattern[-1] == "#" and len(levels) >= len(pattern) - 1):
                for wanted, level in zip(pattern, levels, strict=False):
                    if wanted not in (level, "+", "#", PLACE):
                        break
                else:
                    at = pattern.index(PLACE) if PLACE in pattern else -1
                    return levels[at] or None if 0 <= at < len(levels) else None
        return None

    @staticmethod
    def _unpacked(payload: bytes) -> Any:
        library = _cbor()
        if library is None:
            raise Unreadable(NEEDED)
        if len(payload) > MOST_CBOR:
            raise Unreadable(f"the pack has {len(payload):,} bytes, at most {MOST_CBOR:,} of CBOR are taken")
        try:
            pack = library.loads(payload, max_depth=4)
        except Exception as error:  # noqa: BLE001 - whatever a library says to anybody's bytes
            raise Unreadable(f"the payload is neither JSON nor CBOR: {str(error)[:100]}") from None
        if type(pack) is not list:
            raise Unreadable("it is no pack: a list of records")
        found = []
        for number, record in enumerate(pack):
            if type(record) is not dict:
                raise Unreadable(f"record {number + 1} is no map")
            found.append({(LABELS.get(key) if type(key) is int else key): value for key, value in record.items()})
        return found

    def _resolved(self, pack: list[Any], named: str | None, now: float) -> Iterable[tuple[str, str, float, Reading]]:
        """Section 4.6: device, quantity, Unix seconds, reading. Raises Unreadable."""
        name, unit = "", None
        base_time = base_value = base_sum = 0.0
        found: list[tuple[str, str, float, Reading]] = []
        for position, record in enumerate(pack):
            where = f"record {position + 1}"
            if type(record) is not dict:
                raise Unreadable(f"{where} is no object")
            for key in record:
                if type(key) is str and key.endswith("_") and key not in NUMBERS:
                    raise Unreadable(f"{where} has {key[:40]!r}, which has to be understood and is not")
            get = record.get
            version = get("bver", VERSION)
            if type(version) is not int or version > VERSION:
                raise Unreadable(f"{where} is of version {str(version)[:20]}: {VERSION} is the newest that there is")
            if "bn" in record:
                name = _text(get("bn"), where, "bn")
            if "bu" in record:
                unit = _text(get("bu"), where, "bu")
            base_time = _number(get("bt", base_time), where, "bt")
            base_value = _number(get("bv", base_value), where, "bv")
            base_sum = _number(get("bs", base_sum), where, "bs")
            own = _text(get("n", ""), where, "n")
            full = name + own
            value = _value(record, base_value, where)
            total = None
            if "s" in record:
                total = _number(get("s"), where, "s") + base_sum
            elif "bs" in record and value is None:
                total = base_sum
            if value is None and total is None:
                continue
            if NAME.fullmatch(full) is None:
                raise Unreadable(
                    f"{where} has the name {full[:60]!r}: letters, digits and - : . / _ make one, and it begins with one of the first two"
                )
            seconds = base_time + _number(get("t", 0.0), where, "t")
            told = seconds != 0
            if seconds < ABSOLUTE:
                seconds += now
            time = at(seconds) if told else None
            if told and time is None:
                raise Unreadable(f"{where} has a time that is none, {seconds:g}")
            spelled = _text(get("u"), where, "u") if "u" in record else unit
            device, quantity = _split(full, name, own, named)
            if value is not None:
                found.append((device, quantity, seconds, Reading(value, spelled or None, time)))
            if total is not None:
                summed = SECONDS.get(spelled, f"{spelled}.s") if spelled else None
                found.append((device, f"{quantity}.sum", seconds, Reading(total, summed, time)))
        return found

    # ---- actions -------------------------------------------------------------------------------------------------------

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - a pack has no ids
        """See Adapter."""
        if method not in METHODS:
            raise Unable(404, f"there is no method {method[:64]!r}: there is {', '.join(METHODS)}")
        if not self._command:
            raise Unable(400, "nothing can be set: the adapter's option `command_topic` says where packs are sent")
        if device not in self._devices:
            raise Unable(404, f"{device!r} has not been heard of since the start: wait until it reports")
        if not params or set("/+#") & set(device):
            raise Unable(400, "name what is to be set, as valve=true")
        records: list[dict[str, Scalar]] = []
        for name, value in params.items():
            if NAME.fullmatch(name) is None:
                raise Unable(400, f"{name[:60]!r} is no name of SenML")
            label = {bool: "vb", int: "v", float: "v", str: "vs"}.get(type(value))
            if label is None:
                raise Unable(400, f"{name}: give a number, a text, true or false")
            records.append({"n": name, label: value})
        if self._binary:
            library = _cbor()
            assert library is not None  # the options have made sure
            payload = library.dumps([{NUMBERS[key]: value for key, value in record.items()} for record in records])
        else:
            payload = orjson.dumps(records)
        return Order((Send(self._command.replace(PLACE, device), payload),), confirms=frozenset(params))


def _split(full: str, base: str, own: str, named: str | None) -> tuple[str, str]:
    """Device and quantity."""
    if named is not None:
        quantity = own if base and own and not base.startswith("/") else full
        if quantity.startswith(named) and len(quantity) > len(named):
            quantity = quantity[len(named) :]
        elif quantity == full and ":" in quantity:
            quantity = quantity.rpartition(":")[2] or quantity
        return named, _quantity(quantity)
    device = base.strip(":/")
    if device and own:
        return _device(device), _quantity(own)
    whole = DEVICE.match(full)
    if whole is not None:
        return whole[0], _quantity(full[whole.end() :].lstrip("_"))
    at = max(full.rfind(":"), full.rfind("/"))
    if at > 0:
        return _device(full[:at]), _quantity(full[at + 1 :])
    return _device(full), "value"


def _device(name: str) -> str:
    return name.strip(":/") or "unnamed"


def _quantity(name: str) -> str:
    """`3303/0/5700` is `3303.0.5700`."""
    return name.strip(":/").replace("/", ".")[:120] or "value"


def _value(record: dict[str, Any], base: float, where: str) -> Scalar | None:
    """The record's value, with the base value where it is a number. Raises Unreadable."""
    for label, kind in (("vs", str), ("vb", bool)):
        if label in record:
            value = record[label]
            if type(value) is not kind:
                raise Unreadable(f"{where}: {label} is not {'a text' if kind is str else 'true or false'}")
            return value[:4_096] if isinstance(value, str) else bool(value)
    if "v" in record:
        value = record["v"]
        number = _number(value, where, "v")
        if not base:
            return value if type(value) is int else number
        return _number(number + base, where, "v")
    if "vd" in record:
        data = record["vd"]
        if type(data) is bytes:
            return base64.urlsafe_b64encode(data).decode().rstrip("=")[:4_096]
        if type(data) is not str:
            raise Unreadable(f"{where}: vd is no text")
        return data[:4_096]
    if "bv" in record and "s" not in record and "n" in record:
        return base
    return None


def _number(value: Any, where: str, label: str) -> float:
    """A finite number. Raises Unreadable."""
    if type(value) is Decimal or type(value) is int:
        try:
            value = float(value)
        except (OverflowError, ValueError):
            value = None
    if type(value) is not float or not isfinite(value):
        raise Unreadable(f"{where}: {label} is no number")
    return value


def _text(value: Any, where: str, label: str) -> str:
    """A text of bounded length. Raises Unreadable."""
    if type(value) is not str or len(value) > 256:
        raise Unreadable(f"{where}: {label} is no text, or has more than 256 characters")
    return value


SPEC = Spec(
    "senml",
    "packs of SenML (RFC 8428) in JSON or CBOR, on any topic",
    SenmlOptions,
    Senml,
    METHODS,
    EXAMPLE,
    "https://www.rfc-editor.org/rfc/rfc8428",
)
