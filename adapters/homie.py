"""The Homie convention: version 5 (`$description`) and 4, 3 (an attribute a topic), values, `$target`, `set`.

Source: the convention, versions 5.0, 4.0.0 and 3.0.1. A device's id is its own. What is said of a property may come before or behind its value, in any
order: values wait until it is known what they are, as the texts that they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field, field_validator

from gateway.adapter import (
    About,
    Alive,
    Event,
    Gone,
    Options,
    Order,
    Reading,
    Readings,
    Send,
    Spec,
    Unable,
    Unreadable,
    Value,
    at,
    flat,
    moment,
    number,
    read_json,
    read_object,
    read_text,
    scalar,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLE = """\
[[adapter]]
type = "homie"
clients = ["homie"]
"""

METHODS = {
    "set": "settable properties by name, as `lights.power=true`; answered when the device tells its value, or `$target`"
}

STATES = frozenset({"init", "ready", "disconnected", "sleeping", "lost", "alert"})
AWAY = frozenset({"disconnected", "lost"})

DATATYPES = frozenset(
    {"integer", "float", "boolean", "string", "enum", "color", "datetime", "duration", "json", "percent"}
)

MOST_PROPERTIES = 512
"""Properties of one device."""

MOST_TEXT = 2_048
"""Characters of a value whose datatype is not known yet."""


class HomieOptions(Options):
    """Where devices are."""

    domain: str = Field(
        default="homie", min_length=1, max_length=200, description="The root topic of all devices, of every version."
    )

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        if set("+#") & set(value) or "" in value.split("/") or value.startswith("$"):
            raise ValueError("must be a topic without wildcards and without / at its ends, as in homie")
        return value


class Property:
    """What is known of a property."""

    __slots__ = ("datatype", "format", "raw", "retained", "settable", "unit")

    def __init__(self) -> None:
        self.datatype = ""
        self.unit: str | None = None
        self.format = ""
        self.settable = False
        self.retained = True
        self.raw: str | None = None
        """A value that waits for its datatype."""


class Device:
    """What is known of a device. `modern` is version 5."""

    __slots__ = ("children", "described", "facts", "modern", "properties", "root", "said", "state")

    def __init__(self, *, modern: bool) -> None:
        self.modern = modern
        self.state = ""
        self.root: str | None = None
        self.children: tuple[str, ...] = ()
        self.described = False
        self.properties: dict[str, Property] = {}
        self.facts: dict[str, str] = {}
        self.said: dict[str, str] = {}


class Homie:
    """Devices below one root."""

    def __init__(self, options: HomieOptions, most: int) -> None:
        self._root = options.domain.split("/")
        self._domain = options.domain
        self._most = most
        self._devices: dict[str, Device] = {}
        self.filters: tuple[str, ...] = (f"{options.domain}/#",)
        self.commands: tuple[str, ...] = (f"{options.domain}/#",)

    # ---- in ------------------------------------------------------------------------------------------------------------

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """See Adapter."""
        levels = topic.split("/")[len(self._root) :]
        modern = len(levels) > 1 and levels[0] == "5"
        if modern:
            levels = levels[1:]
        if len(levels) < 2 or not levels[0] or levels[0].startswith("$"):
            return ()
        device, rest = levels[0], levels[1:]
        key = ("5/" if modern else "") + device
        if rest[0].startswith("$"):
            return self._of_device(key, device, rest, payload, modern=modern)
        if rest[-1] == "set" or len(rest) < 2:
            return ()
        name = f"{rest[0]}.{rest[1]}"
        if len(rest) == 2:
            if rest[1].startswith("$"):
                return ()
            return self._value(self._meet(key, modern=modern), device, name, payload, retained=retained, now=now)
        if rest[2].startswith("$") and len(rest) == 3:
            return self._of_property(self._meet(key, modern=modern), device, name, rest[2], payload, now=now)
        return ()

    def _meet(self, key: str, *, modern: bool) -> Device:
        found = self._devices.get(key)
        if found is None:
            found = Device(modern=modern)
            if len(self._devices) < self._most:
                self._devices[key] = found
        return found

    def _of_device(self, key: str, device: str, rest: list[str], payload: bytes, *, modern: bool) -> Iterable[Event]:
        """An attribute of the device itself."""
        what = "/".join(rest)
        if what == "$state":
            return self._state(key, device, payload, modern=modern)
        if what == "$description":
            if not payload:
                return ()
            return self._describe(self._meet(key, modern=modern), device, read_object(payload))
        if modern:
            return ()
        if what == "$homie":
            if not payload:
                # A device that is taken away: its attributes are cleared one by one.
                return (Gone(device),) if self._devices.pop(key, None) is not None else ()
            self._meet(key, modern=False)
            read_text(payload, 64)
            return ()
        fact = {
            "$name": "name",
            "$fw/name": "firmware",
            "$fw/version": "version",
            "$localip": "address",
            "$implementation": "model",
            "$mac": "mac",
        }.get(what)
        if fact is None or not payload:
            return ()
        text = read_text(payload, 256)
        known = self._meet(key, modern=False)
        if not text or known.facts.get(fact) == text:
            return ()
        known.facts[fact] = text
        return (_about(device, known),)

    def _state(self, key: str, device: str, payload: bytes, *, modern: bool) -> Iterable[Event]:
        if not payload:
            return (Gone(device),) if self._devices.pop(key, None) is not None else ()
        text = read_text(payload, 32)
        if text not in STATES:
            raise Unreadable(f"$state is one of {', '.join(sorted(STATES))}, not {text!r}")
        known = self._meet(key, modern=modern)
        known.state = text
        above = self._devices.get(f"5/{known.root}") if known.root is not None else None
        reached = text not in AWAY and (above is None or above.state not in AWAY)
        events: list[Event] = [Alive(device, reached)]
        if modern and known.root is None:
            # Whoever has lost the root has lost its children; each says itself when it is back, and the root for those that have said nothing.
            for other, one in self._devices.items():
                if one.root == device and other != key:
                    events.append(Alive(other.removeprefix("5/"), text not in AWAY and one.state not in AWAY))
        return events

    def _describe(self, known: Device, device: str, document: dict[str, Any]) -> Iterable[Event]:
        """Version 5: all that there is, in one."""
        properties: dict[str, Property] = {}
        nodes = document.get("nodes")
        for node, entry in list(nodes.items())[:MOST_PROPERTIES] if type(nodes) is dict else ():
            inner = entry.get("properties") if type(entry) is dict else None
            for name, said in list(inner.items())[:MOST_PROPERTIES] if type(inner) is dict else ():
                if type(said) is not dict or len(properties) >= MOST_PROPERTIES:
                    continue
                full = f"{node}.{name}"[:120]
                one = Property()
                datatype, unit, form = said.get("datatype"), said.get("unit"), said.get("format")
                one.datatype = datatype if type(datatype) is str and datatype in DATATYPES else "string"
                one.unit = unit if type(unit) is str and 0 < len(unit) <= 32 else None
                one.format = form[:4_096] if type(form) is str else ""
                one.settable = said.get("settable") is True
                one.retained = said.get("retained") is not False
                properties[full] = one
        waiting = {
            name: one.raw for name, one in known.properties.items() if one.raw is not None and name in properties
        }
        gone = {
            name: Reading(None) for name, one in known.properties.items() if name not in properties and one.datatype
        }
        known.properties = properties
        known.described = True
        root, name = document.get("root"), document.get("name")
        known.root = root if type(root) is str and root != device and 0 < len(root) <= 128 else None
        events: list[Event] = []
        if type(name) is str and 0 < len(name) <= 256:
            known.facts["name"] = name
        events.append(_about(device, known))
        values: dict[str, Reading] = dict(gone)
        for full, raw in waiting.items():
            value = _parsed(properties[full], raw)
            if value is not None:
                values[full] = Reading(value, properties[full].unit)
        if values:
            events.append(Readings(device, values, cached=True, live=False))
        if known.root is not None:
            above = self._devices.get(f"5/{known.root}")
            if above is not None and above.state in AWAY:
                events.append(Alive(device, False))
        return events

    def _property(self, known: Device, name: str) -> Property:
        found = known.properties.get(name)
        if found is None:
            found = Property()
            if len(known.properties) < MOST_PROPERTIES and len(name) <= 120:
                known.properties[name] = found
        return found

    def _of_property(
        self, known: Device, device: str, name: str, what: str, payload: bytes, *, now: float
    ) -> Iterable[Event]:
        """`$target`, and what versions 3 and 4 say of a property."""
        text = read_text(payload, MOST_TEXT)
        found = self._property(known, name)
        if what == "$target":
            if not text:
                return (Readings(device, {f"{name}.target": Reading(None)}, cached=True, live=False),)
            return self._reading(found, device, f"{name}.target", text, cached=True, now=now)
        if known.modern or not text:
            return ()
        if what == "$datatype":
            found.datatype = text if text in DATATYPES else "string"
        elif what == "$unit":
            found.unit = text[:32]
        elif what == "$format":
            found.format = text
        elif what == "$settable":
            found.settable = text == "true"
        elif what == "$retained":
            found.retained = text != "false"
        else:
            return ()
        raw = found.raw
        if raw is None or what not in ("$datatype", "$unit"):
            return ()
        value = _parsed(found, raw)
        return () if value is None else (Readings(device, {name: Reading(value, found.unit)}, cached=True, live=False),)

    def _value(
        self, known: Device, device: str, name: str, payload: bytes, *, retained: bool, now: float
    ) -> Iterable[Event]:
        """Hot: a property's value."""
        found = self._property(known, name)
        if not payload:
            found.raw = None
            return (Readings(device, {name: Reading(None)}, live=not retained),)
        text = "" if payload == b"\0" else read_text(payload, 65_536)
        if not found.datatype or not known.modern:
            # Its unit may come later.
            found.raw = text[:MOST_TEXT]
        if not found.datatype:
            if known.modern or retained or known.state != "ready":
                return ()
            return (Readings(device, {name: Reading(text[:MOST_TEXT], None)}, cached=True),)
        if not found.retained and retained:
            return ()
        return self._reading(found, device, name, text, cached=found.retained, now=now)

    @staticmethod
    def _reading(found: Property, device: str, name: str, text: str, *, cached: bool, now: float) -> Iterable[Event]:
        value = _parsed(found, text)
        if value is None:
            raise Unreadable(f"{name} is {text[:40]!r}, which is no {found.datatype}")
        if found.datatype == "json" and type(value) is dict:
            return (Readings(device, {one: Reading(below) for one, below in flat(name, value)}, cached=cached),)
        return (Readings(device, {name: Reading(value, found.unit, None if cached else at(now))}, cached=cached),)

    # ---- actions -------------------------------------------------------------------------------------------------------

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - the value is the answer
        """See Adapter."""
        if method not in METHODS:
            raise Unable(404, f"there is no method {method[:64]!r}: there is {', '.join(METHODS)}")
        known = self._devices.get(f"5/{device}") or self._devices.get(device)
        if known is None:
            raise Unable(404, f"{device!r} has not been heard of since the start: wait until it announces itself")
        if not params:
            raise Unable(400, "name what is to be set, as lights.power=true")
        head = f"{self._domain}/5/{device}" if known.modern else f"{self._domain}/{device}"
        sends, confirms = [], set()
        for name, value in params.items():
            found = known.properties.get(name)
            if found is None or not found.settable:
                can = [each for each, one in known.properties.items() if one.settable]
                raise Unable(400, f"{name[:80]!r} cannot be set: {', '.join(can[:20]) or 'nothing'} can")
            text = _said(name, found, value)
            sends.append(Send(f"{head}/{name.replace('.', '/', 1)}/set", text.encode() or b"\0", 1))
            confirms |= {name, f"{name}.target"}
        return Order(tuple(sends), confirms=frozenset(confirms))


def _about(device: str, known: Device) -> About:
    facts: dict[str, Any] = {}
    said = known.facts
    if "address" in said:
        facts["connectivity"] = {"address": said["address"]}
    model = said.get("model") or said.get("firmware")
    if model is not None:
        facts["model"] = model
    if "version" in said:
        facts["firmware"] = {"version": said["version"][:128]}
    return About(device, said.get("name"), facts)


def _range(form: str) -> tuple[float | None, float | None]:
    """The bounds of a number's format, `0:100` or `0:100:5`; None is none."""
    low, _, rest = form.partition(":")
    high = rest.partition(":")[0]
    return number(low) if low else None, number(high) if high else None


def _parsed(found: Property, text: str) -> Any:
    """A value as its datatype has it; None where it is not of it."""
    datatype = found.datatype
    if datatype in ("integer", "float", "percent"):
        value = number(text)
        return value if value is not None and (datatype != "integer" or type(value) is int) else None
    if datatype == "boolean":
        return {"true": True, "false": False}.get(text)
    if datatype == "enum":
        options = found.format.split(",")
        return text if not found.format or text in options else None
    if datatype == "datetime":
        return text if moment(text) is not None else None
    if datatype == "color":
        parts = text.split(",")
        return text if len(parts) in (3, 4) and all(number(part) is not None for part in parts[-2:]) else None
    if datatype == "json":
        try:
            document = read_json(text.encode())
        except Unreadable:
            return None
        if type(document) is dict:
            return document
        if type(document) is list:
            items: list[Any] = [scalar(item) for item in document[:256]]
            return items if items and None not in items else text[:4_096]
        return scalar(document)
    held: Value | None = scalar(text[:4_096])
    return held


def _said(name: str, found: Property, value: Any) -> str:
    """A value as the convention writes it. Raises Unable for what the property does not take."""
    datatype = found.datatype
    if datatype in ("integer", "float", "percent"):
        if type(value) not in (int, float) or (datatype == "integer" and type(value) is not int):
            raise Unable(400, f"{name} takes {'a whole number' if datatype == 'integer' else 'a number'}")
        low, high = _range(found.format)
        if (low is not None and value < low) or (high is not None and value > high):
            raise Unable(400, f"{name} takes numbers of {found.format}")
        return orjson.dumps(value).decode()
    if datatype == "boolean":
        if type(value) is not bool:
            raise Unable(400, f"{name} takes true or false")
        return "true" if value else "false"
    if datatype == "json" and type(value) is not str:
        try:
            return orjson.dumps(value).decode()
        except TypeError as error:
            raise Unable(400, f"{name} cannot be said in JSON: {error}") from error
    if type(value) is not str or len(value) > 4_096:
        raise Unable(400, f"{name} takes a text")
    if (
        datatype in ("enum", "color", "datetime")
        and found.format
        and datatype == "enum"
        and value not in found.format.split(",")
    ):
        raise Unable(400, f"{name} takes one of {found.format[:200]}")
    if datatype in ("color", "datetime") and _parsed(found, value) is None:
        raise Unable(400, f"{name} takes a {datatype}{f' ({found.format})' if found.format else ''}")
    return value


SPEC = Spec(
    "homie",
    "devices that follow the Homie convention, 3 to 5",
    HomieOptions,
    Homie,
    METHODS,
    EXAMPLE,
    "https://homieiot.github.io/specification/",
    signs=("*/$homie", "*/5/*/$state", "*/$description"),
)
