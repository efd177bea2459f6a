"""Readings as Context data: built, merged and read; SenML packs (RFC 8428) to them and back. Pure: time comes in.

Context data is what the shipped schema `Context` takes, `{"values": {"temperature": {"value": 21.5, "unit": "Cel", "time": "…Z"}}}`:

    quantity("temperature", 21.5, "Cel", time=datetime.now(UTC))              # one reading
    quantities(quantity("power", 412.7), quantity("limit", 2300), unit="W")   # several
    reading(data, "power").unit                                               # "W"
    from_senml(payload, now=datetime.now(UTC))["urn:dev:ow:10e2073a01080063"] # a device's

A value is a number, a text, a truth value, or a list (also a tuple) of them. A unit is a SenML code (RFC 8428, section 12.1; the
secondary units of RFC 8798 stay what they are) or a UCUM code, such as `Cel`, `%RH`, `lx`, `W`; none is converted or looked up.
A time is a datetime with its time zone, seconds since 1970, or an RFC 3339 text; it is written in UTC with milliseconds. What
is built here satisfies the schema; what cannot is refused with a QuantityError. No argument is changed or kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.errors import CtxtError
from gateway.messages import PayloadError, parse_json, rfc3339

if TYPE_CHECKING:
    from collections.abc import Sequence

Scalar = bool | int | float | str
Value = Scalar | list[Scalar]
Time = datetime | float | str
"""A datetime with its time zone, seconds since 1970, or an RFC 3339 text; of the years 1970 to 2999."""

MAX_QUANTITIES = 256
MAX_NAME = 128
MAX_UNIT = 32
MAX_TYPE = 64
MAX_ID = 256
MAX_TEXT = 4_096
MAX_ITEMS = 256
"""What the schema takes: readings, elements of a list, else characters."""

MAX_RECORDS = 10_000
MAX_PACK_BYTES = 1 << 22
MAX_RECORD_NAME = 1_024
"""What a SenML pack and the whole name in a record, in characters, may have."""

SUM = "sum"
DATA = "data"
"""Types of readings that came from a SenML sum (`s`) and data value (`vd`)."""

_MAX_PACK_DEPTH = 64
_MAX_SHOWN = 60
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_END_SECONDS = int((datetime(3000, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds())
_MIN_INT, _MAX_INT = -(1 << 63), (1 << 64) - 1
_is_time = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
).fullmatch
_MEMBERS = frozenset({"value", "unit", "type", "time", "startTime", "endTime", "expires"})
_TIMES = ("time", "startTime", "endTime", "expires")


class QuantityError(CtxtError, ValueError):
    """Something that cannot be a reading. `place` is the quantity, the argument or `record 3` ("" where the reason names it)."""

    def __init__(self, place: str, reason: str) -> None:
        place = _shown(place)
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" if self.place else self.reason


def _shown(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…"


def _kind(value: object) -> str:
    """What a value is called in an error."""
    if value is None:
        return "null"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


_KINDS: dict[type, str] = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


# ---- parts of a reading ----------------------------------------------------------------------------------------------


def _text(place: str, what: str, text: object, longest: int, *, shortest: int = 1) -> str:
    """A text of the schema, as exactly str."""
    if not isinstance(text, str):
        raise QuantityError(place, f"{what} is {_kind(text)}: give a text")
    if len(text) < shortest:
        raise QuantityError(place, f"{what} is empty: leave it out or give a text")
    if len(text) > longest:
        raise QuantityError(place, f"{what} has {len(text):,} characters, at most {longest:,} are taken: shorten it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise QuantityError(place, f"{what} has half a surrogate pair, which is no UTF-8: decode it anew") from None
    return str(text)


def _name(name: object, place: str = "") -> str:
    if isinstance(name, str) and not name:
        raise QuantityError(place, f"the name of a quantity is empty: give one of 1 to {MAX_NAME} characters")
    return _text(place, "the name of a quantity", name, MAX_NAME)


def _scalar(place: str, value: object) -> Scalar:
    """The value as exactly bool, int, float or str."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        value = int(value)
        if not _MIN_INT <= value <= _MAX_INT:
            raise QuantityError(place, "a whole number of more than 64 bits does not pass JSON: give it as a float")
        return value
    if isinstance(value, float):
        value = float(value)
        if not isfinite(value):
            raise QuantityError(place, f"{value} is no number in JSON: leave the reading out until there is one")
        return value
    if isinstance(value, str):
        return _text(place, "the value", value, MAX_TEXT, shortest=0)
    if isinstance(value, dict):
        raise QuantityError(place, "the value is an object: give each part a name of its own, or give a list")
    raise QuantityError(place, f"the value is {_kind(value)}: give a number, a text, a truth value or a list of them")


def _value(place: str, value: object) -> Value:
    if not isinstance(value, list | tuple):
        return _scalar(place, value)
    if len(value) > MAX_ITEMS:
        raise QuantityError(place, f"the value has {len(value):,} elements, at most {MAX_ITEMS} are taken: split it")
    for item in value:
        if isinstance(item, list | tuple):
            raise QuantityError(place, "the value has a list in a list: give one flat list")
    return [_scalar(place, item) for item in value]


def _moment(place: str, what: str, time: object) -> datetime:
    """A time that can be written, in UTC."""
    if isinstance(time, datetime):
        if time.utcoffset() is None:
            raise QuantityError(place, f"{what} is a datetime without a time zone: make it with datetime.now(UTC)")
        since = time - _EPOCH
    elif isinstance(time, str):
        since = _since(place, what, time)
    elif isinstance(time, int | float) and not isinstance(time, bool):
        # Also false where it is no number; those who give milliseconds are a thousand times too late.
        if not 0 <= time < _END_SECONDS:
            raise QuantityError(
                place, f"{what} is not in the years 1970 to 2999: give seconds since 1970, not milliseconds"
            )
        since = timedelta(seconds=time)
    else:
        raise QuantityError(
            place,
            f"{what} is {_kind(time)}: give a datetime with its time zone, seconds since 1970 or an RFC 3339 text",
        )
    if not 0 <= round(since / _MILLISECOND) < _END_SECONDS * 1000:
        raise QuantityError(place, f"{what} is not in the years 1970 to 2999: correct the clock")
    return _EPOCH + since


def _since(place: str, what: str, text: str) -> timedelta:
    if len(text) <= 64 and _is_time(text):
        try:
            return datetime.fromisoformat(text.upper()) - _EPOCH
        except ValueError:
            pass  # there is no such day
    raise QuantityError(
        place, f"{what} {_shown(text)!r} is no RFC 3339 time: write one like 2026-01-31T09:30:00Z, with its offset"
    )


def _milliseconds(moment: datetime) -> int:
    return round((moment - _EPOCH) / _MILLISECOND)


# ---- readings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading as it is meant: `unit` is its own or the object's, times are in UTC. What is not told is None."""

    value: Value
    unit: str | None = None
    time: datetime | None = None
    type: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    expires: datetime | None = None


def _checked(
    place: str,
    value: object,
    unit: object,
    *,
    time: object = None,
    type: object = None,
    start: object = None,
    end: object = None,
    expires: object = None,
) -> Reading:
    """A reading that the schema takes, of parts that nobody has looked at."""
    made = Reading(
        _value(place, value),
        None if unit is None else _text(place, "the unit", unit, MAX_UNIT),
        None if time is None else _moment(place, "the time", time),
        None if type is None else _text(place, "the type", type, MAX_TYPE),
        None if start is None else _moment(place, "the start", start),
        None if end is None else _moment(place, "the end", end),
        None if expires is None else _moment(place, "the expiry", expires),
    )
    if made.start is not None and made.end is not None and made.end < made.start:
        raise QuantityError(place, "the span ends before it starts: exchange start and end")
    return made


def _written(made: Reading) -> dict[str, Any]:
    """The reading as the schema spells it."""
    entry: dict[str, Any] = {"value": made.value}
    if made.unit is not None:
        entry["unit"] = made.unit
    if made.type is not None:
        entry["type"] = made.type
    for member, moment in zip(_TIMES, (made.time, made.start, made.end, made.expires), strict=True):
        if moment is not None:
            entry[member] = rfc3339(_milliseconds(moment))
    return entry


def quantity(
    name: str,
    value: Scalar | Sequence[Scalar],
    unit: str | None = None,
    *,
    time: Time | None = None,
    type: str | None = None,
    start: Time | None = None,
    end: Time | None = None,
    expires: Time | None = None,
) -> dict[str, Any]:
    """Context data with one reading: `{"values": {name: {"value": …, "unit": …, "time": …}}}`.

    `type` says what kind of value it is (`average`, `setpoint`, `forecast`), `start` and `end` the span it stands for, `expires`
    from when on it is not to be relied on. Without `time` it is the moment the report arrives. Raises QuantityError: a name not of
    1 to 128 characters, a unit not of 1 to 32, a type not of 1 to 64, a text of more than 4,096, a list of more than 256 elements;
    NaN and infinity, whole numbers beyond 64 bits, null, objects and lists in lists; a datetime without a time zone, a text that is
    no RFC 3339 time, a time outside the years 1970 to 2999, a span that ends before it starts.
    """
    name = _name(name)
    return {
        "values": {
            name: _written(_checked(name, value, unit, time=time, type=type, start=start, end=end, expires=expires))
        }
    }


def quantities(
    *parts: dict[str, Any],
    unit: str | None = None,
    id: str | None = None,
) -> dict[str, Any]:
    """Context data with the readings of all `parts`, themselves Context data; times are written anew.

    `unit` holds for every reading that names none, `id` is the source's own name for what it describes. The `unit` of a part goes to
    its readings; its `id` is kept where none is given here. Raises QuantityError: a quantity or an id of its own in two parts, more than
    256 readings, a unit or id that the schema does not take, a part that is no Context data.
    """
    values: dict[str, Any] = {}
    told: str | None = None
    for part in parts:
        own, readings = _opened(part, exact=True)
        for name, raw in readings.items():
            if name in values:
                raise QuantityError(name, "two parts have this quantity: give one of them another name")
            values[name] = _written(_read(name, raw, own))
        if "id" in part:
            theirs = _text("", "the id", part["id"], MAX_ID)
            if told not in (None, theirs) and id is None:
                raise QuantityError(
                    "", f"the parts have the ids {_shown(str(told))!r} and {_shown(theirs)!r}: give the one to keep"
                )
            told = theirs
    if len(values) > MAX_QUANTITIES:
        raise QuantityError(
            "", f"there are {len(values):,} readings, at most {MAX_QUANTITIES} are taken: make several objects"
        )
    data: dict[str, Any] = {}
    if id is not None or told is not None:
        data["id"] = told if id is None else _text("", "the id", id, MAX_ID)
    if unit is not None:
        data["unit"] = _text("", "the unit", unit, MAX_UNIT)
    data["values"] = values
    return data


def reading(data: dict[str, Any], name: str) -> Reading | None:
    """The reading of a quantity, with the object's `unit` where it names none; None where Context data has none of this name.

    Members that the schema does not know are passed over. Raises QuantityError where `data` or the reading is no Context data.
    """
    own, values = _opened(data)
    return _read(name, values[name], own) if name in values else None


def _opened(data: Any, *, exact: bool = False) -> tuple[object, dict[str, Any]]:
    """The unit of Context data, and its readings as they stand there; with `exact` the data has nothing that the schema does not know."""
    values = data.get("values") if isinstance(data, dict) else None
    if not isinstance(values, dict):
        raise QuantityError("", 'this is no Context data: give an object like {"values": {"power": {"value": 412.7}}}')
    if exact:
        for name, raw in values.items():
            _name(name)
            if isinstance(raw, dict) and not raw.keys() <= _MEMBERS:
                raise QuantityError(name, _unknown(raw.keys() - _MEMBERS))
        if not data.keys() <= {"id", "unit", "values"}:
            raise QuantityError("", "the data has " + _unknown(data.keys() - {"id", "unit", "values"}))
    return data.get("unit"), values


def _unknown(members: set[str]) -> str:
    return f"`{_shown(min(map(str, members)))}` is not known in Context data: leave it out"


def _read(name: str, raw: Any, unit: object) -> Reading:
    if not isinstance(raw, dict) or "value" not in raw:
        raise QuantityError(name, 'this is no reading: give an object like {"value": 21.5, "unit": "Cel"}')
    return _checked(
        name,
        raw["value"],
        raw.get("unit", unit),
        time=raw.get("time"),
        type=raw.get("type"),
        start=raw.get("startTime"),
        end=raw.get("endTime"),
        expires=raw.get("expires"),
    )


# ---- SenML -----------------------------------------------------------------------------------------------------------

_ABSOLUTE = 1 << 28
"""Seconds: what is less is counted from now (RFC 8428, section 4.5.3)."""

_DEFAULT_VERSION = 10
_VERSION_WITH_SECONDARY_UNITS = 26
"""RFC 9100."""

_SUM_NAME = "-sum"
_SUM_UNIT = ".s"
_TEXTS = ("bn", "bu", "n", "u", "vs", "vd")
_NUMBERS = ("bt", "bv", "bs", "bver", "v", "s", "t", "ut")
_VALUES = ("v", "vs", "vb", "vd")
_REGULAR = frozenset({"n", "u", "v", "vs", "vb", "vd", "s", "t", "ut"})
_is_senml_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9:./_-]*").fullmatch
_is_plain = re.compile(r"[A-Za-z0-9._-]+").fullmatch
_is_base64url = re.compile(r"(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-]{2,3})?").fullmatch


class _Bases:
    """The base fields that hold for the next record (RFC 8428, section 4.1)."""

    __slots__ = ("name", "sum", "time", "unit", "value", "version")

    def __init__(self) -> None:
        self.name = ""
        self.time: float = 0
        self.unit: str | None = None
        self.value: float | None = None
        self.sum: float | None = None
        self.version = _DEFAULT_VERSION

    def take(self, record: dict[str, Any]) -> None:
        self.name = record.get("bn", self.name)
        self.time = record.get("bt", self.time)
        self.unit = record.get("bu", self.unit)
        self.value = record.get("bv", self.value)
        self.sum = record.get("bs", self.sum)


def from_senml(pack: list[Any] | bytes | bytearray | str, *, now: Time) -> dict[str, dict[str, Any]]:
    """Context data by device of a SenML pack (RFC 8428), a list of records or its JSON; `now` is when it arrived.

    A record's name (`bn` and `n`) is split at its last `:` or `/`: before it is the device, the key of the answer ("" where there is
    none), after it the quantity. `urn:dev:ow:10e2073a01080063:temp` is the quantity `temp` of `urn:dev:ow:10e2073a01080063`.

    - Of several records of one name the latest remains, and of several of one time the last, whatever their units are.
    - Each reading has a time: `bt` and `t`, which are counted from `now` where they are less than 2^28 s (section 4.5.3).
    - `ut`, the seconds until the next record, becomes `expires`. `u` or `bu` is the unit of any value, as it stands there.
    - `vd` stays the base64url text that it is, with the type `data`.
    - A sum (`s` and `bs`) is a reading of its own: `power` in `W` has the sum `power-sum` in `W.s`, with the type `sum`.
    - Without a value of its own a record has `bv`. A record of base fields alone is no reading.
    - Unknown fields are passed over (section 4.4). The version is up to 10, or 26, which has the secondary units (RFC 9100).

    Raises QuantityError, with the place `record 3` (the first is 1) where it is in one: a pack that is no JSON array, empty, of more
    than 10,000 records or 4 MiB; a field of the wrong type, an unknown one that ends in `_`, another version or two; a name with
    characters other than those of section 4.5.1 or without a quantity after the separator; no value or two; numbers that are not
    finite; a `vd` that is not base64url without padding; a negative `ut`; what `quantity` refuses; a device with more than 256 readings.
    """
    arrived = _moment("now", "the time", now)
    records = _records(pack)
    bases = _Bases()
    latest: dict[str, dict[str, _Found]] = {}
    for number, record in enumerate(records, 1):
        place = f"record {number}"
        _check_fields(place, record)
        if "bver" in record:
            _check_version(place, record["bver"], bases, first=number == 1)
        bases.take(record)
        if record.keys().isdisjoint(_REGULAR):
            continue
        device, name = _split(place, bases.name, record.get("n", ""))
        held = latest.setdefault(device, {})
        time = _time(place, bases.time + record.get("t", 0), arrived)
        for found in _resolved(place, record, bases, name, time):
            if found.name not in held or time >= held[found.name].time:
                held[found.name] = found
        if len(held) > MAX_QUANTITIES:
            raise QuantityError(
                place,
                f"{_shown(device)!r} has more than {MAX_QUANTITIES} readings, which one object cannot hold: name several devices",
            )
    return {
        device: {"values": {name: _written(found.reading) for name, found in held.items()}}
        for device, held in latest.items()
    }


def _records(pack: object) -> list[Any]:
    if isinstance(pack, str):
        pack = pack.encode(errors="surrogatepass")  # which the parser then refuses
    if isinstance(pack, bytes | bytearray):
        try:
            pack = parse_json(bytes(pack), max_bytes=MAX_PACK_BYTES, max_depth=_MAX_PACK_DEPTH)
        except PayloadError as error:
            if not pack:
                raise QuantityError("", "the pack is empty: send a JSON array of SenML records") from None
            raise QuantityError("the pack", error.text) from error
    if not isinstance(pack, list):
        raise QuantityError("", f"the pack is {_kind(pack)}: give a list of SenML records")
    if not pack:
        raise QuantityError("", "the pack has no records: give one at least")
    if len(pack) > MAX_RECORDS:
        raise QuantityError("", f"the pack has {len(pack):,} records, at most {MAX_RECORDS:,} are taken: send several")
    return pack


def _check_fields(place: str, record: Any) -> None:
    """That the record is an object whose known fields have their types, and that no unknown one must be understood."""
    if not isinstance(record, dict):
        raise QuantityError(place, f"it is {_kind(record)}: give an object")
    for label in record:
        if not isinstance(label, str) or label.endswith("_"):
            raise QuantityError(place, f"the field {_shown(str(label))!r} must be understood and is not: leave it out")
    for label in _TEXTS:
        if label in record and not isinstance(record[label], str):
            raise QuantityError(place, f"its `{label}` is {_kind(record[label])}: give a text")
    for label in _NUMBERS:
        if label in record:
            _check_number(place, label, record[label])
    if "vb" in record and not isinstance(record["vb"], bool):
        raise QuantityError(place, f"its `vb` is {_kind(record['vb'])}: give true or false")
    if len(record.keys() & set(_VALUES)) > 1:
        raise QuantityError(place, "it has two values: give one of `v`, `vs`, `vb` and `vd`")


def _check_number(place: str, label: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise QuantityError(place, f"its `{label}` is {_kind(value)}: give a number")
    if not isfinite(value) if isinstance(value, float) else not _MIN_INT <= value <= _MAX_INT:
        raise QuantityError(place, f"its `{label}` is no finite number of 64 bits: give one")


def _check_version(place: str, version: float, bases: _Bases, *, first: bool) -> None:
    if version != int(version) or version < 1:
        raise QuantityError(place, "its `bver` is no positive whole number: leave it out for version 10")
    if version > _DEFAULT_VERSION and version != _VERSION_WITH_SECONDARY_UNITS:
        raise QuantityError(place, f"SenML of version {version} is not understood: send version {_DEFAULT_VERSION}")
    if not first and version != bases.version:
        raise QuantityError(
            place, f"its version is {version} and that of the records before it {bases.version}: send two packs"
        )
    bases.version = int(version)


def _split(place: str, base: str, own: str) -> tuple[str, str]:
    """Device and quantity of a record's whole name."""
    if len(base) + len(own) > MAX_RECORD_NAME:
        raise QuantityError(place, f"its name has more than {MAX_RECORD_NAME:,} characters: shorten it")
    name = base + own
    if not name:
        raise QuantityError(place, "it has no name: give `n` or, before it, `bn`")
    if not _is_senml_name(name):
        raise QuantityError(
            place,
            f"the name {_shown(name)!r} is no SenML name: begin with a letter or digit, and use only these and - : . / _",
        )
    at = max(name.rfind(":"), name.rfind("/"))
    device, found = name[: max(at, 0)], name[at + 1 :]
    if not found:
        raise QuantityError(place, f"the name {_shown(name)!r} ends before the quantity: give it in `n`")
    return device, found


class _Found(NamedTuple):
    """A reading of a record, and the quantity that it is of."""

    name: str
    time: datetime
    reading: Reading


def _resolved(place: str, record: dict[str, Any], bases: _Bases, name: str, time: datetime) -> list[_Found]:
    """The readings of one record: its value, its sum, or both (RFC 8428, section 4.6)."""
    unit = record.get("u", bases.unit)
    expires = None
    if "ut" in record:
        if not 0 <= record["ut"] < _END_SECONDS:
            raise QuantityError(place, "its `ut` is no time until the next record: give the seconds, 0 or more")
        expires = time + timedelta(seconds=record["ut"])
    _name(name, place)
    label = next((each for each in _VALUES if each in record), None)
    value: object = None if label is None else record[label]
    kind = DATA if label == "vd" else None
    if label == "v" and bases.value is not None:
        value = record["v"] + bases.value
    elif label is None:
        value = bases.value
    elif label == "vd" and not _is_base64url(record["vd"]):
        raise QuantityError(place, "its `vd` is no base64url: encode it with - and _, and without padding")
    found = []
    if value is not None:
        found.append(_Found(name, time, _checked(place, value, unit, time=time, type=kind, expires=expires)))
    total = record.get("s")
    # A base sum alone is the sum of numbers, and of records that have nothing else.
    if bases.sum is not None and (total is not None or label in (None, "v")):
        total = bases.sum + (0 if total is None else total)
    if total is not None:
        _name(name + _SUM_NAME, place)
        if unit is not None:
            unit = _text(place, "the unit", unit, MAX_UNIT) + _SUM_UNIT
        found.append(_Found(name + _SUM_NAME, time, _checked(place, total, unit, time=time, type=SUM, expires=expires)))
    if not found:
        raise QuantityError(place, "it has no value: give `v`, `vs`, `vb`, `vd` or `s`")
    return found


def _time(place: str, seconds: float, arrived: datetime) -> datetime:
    """When a record's value was true."""
    if seconds >= _ABSOLUTE:
        return _moment(place, "the time", seconds)
    if seconds <= -_END_SECONDS:
        raise QuantityError(
            place, "the time is not in the years 1970 to 2999: give seconds before now, not milliseconds"
        )
    return _moment(place, "the time", arrived + timedelta(seconds=seconds))


def to_senml(data: dict[str, Any], *, base_name: str = "", lossy: bool = False) -> list[dict[str, Any]]:
    """A SenML pack (RFC 8428) of Context data: JSON values for a list of records; empty where there is no reading.

    `base_name` is the name of the device with the `:` or `/` that ends it, and stands once, as `bn`; so does the earliest time, as `bt`.
    Readings without a time come first, the others in the order of time. The object's unit goes to each record, its `id` nowhere.
    `from_senml` reads the same values, units and times (to the millisecond) back; what had no time then has that of arrival.

    SenML cannot hold all, and a loss is refused (QuantityError) or with `lossy` left out:
    - the reading, where the value is a list, the name has characters other than ASCII letters, digits and - . _ (without `base_name` it
      begins with a letter or digit), or the time is before 1978-07-04T21:24:16Z, which SenML takes for a time from now;
    - `type`, but that of sums and data values as `from_senml` makes them; `startTime`, `endTime`; `expires` where it is before
      `time` or there is none; members that Context does not know.

    Raises QuantityError also where `data` is no Context data and where `base_name` is no name or ends in no separator.
    """
    if base_name and not (
        len(base_name) <= MAX_RECORD_NAME - MAX_NAME and _is_senml_name(base_name) and base_name[-1] in ":/"
    ):
        raise QuantityError(
            "base_name",
            f"{_shown(base_name)!r} is no device's name and a separator: write one like urn:dev:ow:10e2073a:",
        )
    own, values = _opened(data)
    untimed: list[dict[str, Any]] = []
    timed: list[tuple[int, dict[str, Any]]] = []
    for name, raw in values.items():
        made = _read(_name(name), raw, own)
        record, lost = _record(name, made)
        unheld = _unheld(name, made, base_name)
        if not lost and not raw.keys() <= _MEMBERS:
            lost = f"SenML has no `{_shown(min(map(str, raw.keys() - _MEMBERS)))}`"
        if (unheld or lost) and not lossy:
            raise QuantityError(name, f"{unheld or lost}: take it out, or have it left out with lossy=True")
        if unheld:
            continue
        if made.time is None:
            untimed.append(record)
        else:
            timed.append((_milliseconds(made.time), record))
    # A base time holds for all that follows, so what has no time stands before it.
    timed.sort(key=lambda pair: pair[0])
    base = timed[0][0] if timed else 0
    for at, record in timed:
        if at != base:
            record["t"] = _seconds(at - base)
    if timed:
        timed[0] = (base, {"bt": _seconds(base), **timed[0][1]})
    pack = [*untimed, *(record for _, record in timed)]
    if pack and base_name:
        pack[0] = {"bn": base_name, **pack[0]}
    return pack


def _seconds(milliseconds: int) -> int | float:
    return milliseconds / 1000 if milliseconds % 1000 else milliseconds // 1000


def _unheld(name: str, made: Reading, base_name: str) -> str:
    """Why SenML cannot hold a reading at all, or ""."""
    if isinstance(made.value, list):
        return "SenML has no lists"
    if not _is_plain(name) or not (base_name or _is_senml_name(name)):
        return "this is no name in SenML"
    if made.time is not None and _milliseconds(made.time) < _ABSOLUTE * 1000:
        return "SenML has no times before 1978-07-04T21:24:16Z"
    return ""


def _record(name: str, made: Reading) -> tuple[dict[str, Any], str]:
    """The record of a reading without its time, and what is lost in it, or ""."""
    lost = ""
    unit, value = made.unit, made.value
    record: dict[str, Any] = {"n": name}
    if _is_sum(name, made):
        record["n"] = name.removesuffix(_SUM_NAME)
        unit = None if unit is None else unit.removesuffix(_SUM_UNIT)
        label = "s"
    elif isinstance(value, str) and made.type == DATA and _is_base64url(value):
        label = "vd"
    else:
        label = "vb" if isinstance(value, bool) else "vs" if isinstance(value, str) else "v"
        if made.type is not None:
            lost = "SenML has no `type`"
    if unit is not None:
        record["u"] = unit
    record[label] = value
    if made.start is not None or made.end is not None:
        lost = "SenML has no `startTime` and `endTime`"
    if made.expires is not None:
        if made.time is None:
            lost = "SenML has no `expires` without a `time`"
        elif made.expires < made.time:
            lost = "SenML has no `expires` before `time`"
        else:
            record["ut"] = _seconds(_milliseconds(made.expires) - _milliseconds(made.time))
    return record, lost


def _is_sum(name: str, made: Reading) -> bool:
    """Whether `from_senml` could have made it of a sum."""
    return (
        made.type == SUM
        and isinstance(made.value, int | float)
        and not isinstance(made.value, bool)
        and len(name) > len(_SUM_NAME)
        and name.endswith(_SUM_NAME)
        and (made.unit is None or (len(made.unit) > len(_SUM_UNIT) and made.unit.endswith(_SUM_UNIT)))
    )
