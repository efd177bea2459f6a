"""Zigbee2MQTT: devices from `bridge/devices`, states on `{base}/{friendly name}`, availability, groups, `set` and `get`.

Source: Zigbee2MQTT's documentation, pages MQTT topics and messages, Exposes, Device-Availability. A device's id is its IEEE address, whatever
it is called: `friendly_name`, which may have `/` in it, is found in `bridge/devices`. States that come before that list wait for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from pydantic import Field, field_validator

from gateway.adapter import (
    About,
    Alive,
    Event,
    Options,
    Order,
    Reading,
    Readings,
    Roster,
    Scalar,
    Send,
    Spec,
    Unable,
    Unreadable,
    at,
    flat,
    moment,
    read_json,
    read_object,
    read_text,
    scalar,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

EXAMPLE = """\
[[adapter]]
type = "zigbee2mqtt"
clients = ["zigbee2mqtt"]
min_change = { temperature = 0.1, humidity = 1 }
"""

METHODS = {
    "set": 'states by name, as `on=true`, `brightness=120`, `color={"hex":"#ff8000"}`; answered when the device tells them',
    "get": "ask the device for the states that are named (`on=null`), or, without any, for all that can be asked for",
}

ADDRESS = re.compile(r"0x[0-9a-f]{16}")
"""An IEEE address as Zigbee2MQTT writes it."""

PUBLISHED, SETTABLE, GETTABLE = 1, 2, 4
"""Bits of `access` in an expose."""

SWITCHES = frozenset({"light", "switch", "fan", "siren"})
"""Kinds of devices whose `state` is ON or OFF: it is called `on` here, as with other dialects."""

NOT_QUANTITIES = frozenset({"linkquality", "last_seen", "update", "update_available", "device", "elapsed", "click"})
"""Members of a state that say something of the device or of the message."""

EVENTS = frozenset({"action"})
"""Members that are told once and are not there otherwise."""

GROUP = "group/"

MOST_PROPERTIES = 256
"""Quantities of one device."""

MOST_WAITING = 4 << 20
"""Bytes of states that wait for the list of devices."""


class Zigbee2mqttOptions(Options):
    """What differs from one Zigbee2MQTT to the next."""

    base_topic: str = Field(
        default="zigbee2mqtt",
        min_length=1,
        max_length=200,
        description="`mqtt.base_topic` of Zigbee2MQTT's settings; each instance has one, and an adapter, of its own.",
    )
    groups: bool = Field(default=True, description="Whether groups become objects too, group/ID.")

    @field_validator("base_topic")
    @classmethod
    def _base_topic(cls, value: str) -> str:
        if set("+#") & set(value) or "" in value.split("/") or value.startswith("$"):
            raise ValueError("must be a topic without wildcards and without / at its ends, as in zigbee2mqtt")
        return value


class Property(NamedTuple):
    """One quantity out of `exposes`. `on`, `off`: the texts that mean true and false, where there are such."""

    name: str
    unit: str | None = None
    on: str | None = None
    off: str | None = None
    access: int = PUBLISHED


class Known:
    """A device or a group of the list."""

    __slots__ = ("available", "battery", "by_name", "id", "name", "properties", "said")

    def __init__(self, identity: str, name: str) -> None:
        self.id = identity
        self.name = name
        self.properties: dict[str, Property] = {}
        """By what Zigbee2MQTT calls them."""
        self.by_name: dict[str, str] = {}
        """What Zigbee2MQTT calls what we call so."""
        self.battery = False
        self.available = False
        """Whether Zigbee2MQTT tells its availability: then nothing else does."""
        self.said: tuple[str, dict[str, Any]] | None = None


class Zigbee2mqtt:
    """The devices and groups of one Zigbee2MQTT."""

    def __init__(self, options: Zigbee2mqttOptions, most: int) -> None:
        base = options.base_topic
        self._head = base + "/"
        self._groups = options.groups
        self._most = most
        self._devices: dict[str, Known] = {}
        self._grouped: dict[str, Known] = {}
        self._by_name: dict[str, Known] = {}
        self._listed = False
        self._waiting: dict[str, tuple[bytes, bool, float]] = {}
        self._waits = 0
        self.filters: tuple[str, ...] = (f"{base}/#",)
        self.commands: tuple[str, ...] = (f"{base}/#",)

    # ---- in ------------------------------------------------------------------------------------------------------------

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """See Adapter."""
        rest = topic[len(self._head) :]
        known = self._by_name.get(rest)
        if known is not None:
            return self._state(known, read_object(payload), retained=retained, now=now) if payload else ()
        if rest.startswith("bridge/"):
            return self._bridge(rest[7:], payload, retained=retained)
        head, _, last = rest.rpartition("/")
        if last == "availability":
            return self._availability(rest, head, payload, retained=retained, now=now)
        if last in ("set", "get") or "/set/" in rest or "/get/" in rest:
            return ()
        known = self._by_name.get(head)
        if known is not None:
            # `output: attribute` of Zigbee2MQTT: a topic for each.
            return self._state(known, {last[:128]: _plain(payload)}, retained=retained, now=now) if payload else ()
        return self._wait(rest, payload, retained=retained, now=now)

    def _wait(self, rest: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """What cannot be told yet whose it is."""
        if self._listed or not payload:
            return ()
        if rest.rpartition("/")[2] != "availability":
            read_object(payload)
        size = len(rest) + len(payload)
        if rest in self._waiting:
            self._waits -= len(rest) + len(self._waiting.pop(rest)[0])
        if len(self._waiting) < 2 * self._most and self._waits + size <= MOST_WAITING:
            self._waiting[rest] = (payload, retained, now)
            self._waits += size
        return ()

    def _waited(self) -> Iterator[Event]:
        """What has waited for the list."""
        waiting, self._waiting, self._waits = self._waiting, {}, 0
        for rest, (payload, retained, now) in waiting.items():
            yield from self.decode(self._head + rest, payload, retained=retained, now=now)

    def _state(self, known: Known, message: dict[str, Any], *, retained: bool, now: float) -> Iterable[Event]:
        """Hot: everything that Zigbee2MQTT holds of a device, with what has changed."""
        time = None
        seen = message.get("last_seen")
        if seen is not None:
            time = at(seen / 1000) if type(seen) in (int, float) else moment(seen)
        properties = known.properties
        values: dict[str, Reading] = {}
        events: dict[str, Reading] = {}
        for key, value in message.items():
            found = properties.get(key)
            if found is not None and type(value) is not dict:
                if type(value) is str:
                    if key in EVENTS or not value:
                        if value and not retained:
                            events[key] = Reading(value[:4_096], None, at(now))
                        continue
                    if value == found.on:
                        value = True
                    elif value == found.off:
                        value = False
                if value is None:
                    if key not in EVENTS:
                        values[found.name] = Reading(None)
                    continue
                held = scalar(value)
                if held is not None:
                    values[found.name] = Reading(held, found.unit, time)
                    continue
            if key in NOT_QUANTITIES or key in EVENTS:
                if key in EVENTS and type(value) is str and value and not retained:
                    events[key] = Reading(value[:4_096], None, at(now))
                continue
            for name, one in flat(key, value):
                below = properties.get(name)
                values[name[:128]] = Reading(one, None if below is None else below.unit, time)
        out: list[Event] = []
        if values or not events:
            out.append(Readings(known.id, values, cached=True, live=not known.available))
        if events:
            out.append(Readings(known.id, events, live=not known.available))
        facts = self._facts(known, message, time)
        if facts:
            out.append(About(known.id, None, facts))
        return out

    @staticmethod
    def _facts(known: Known, message: dict[str, Any], time: str | None) -> dict[str, Any]:
        """What a state says of the device itself."""
        facts: dict[str, Any] = {}
        quality = message.get("linkquality")
        if type(quality) is int and 0 <= quality <= 255:
            facts["connectivity"] = {"lqi": quality}
            if time is not None:
                facts["connectivity"]["lastSeen"] = time
        if known.battery:
            level, volts = message.get("battery"), message.get("voltage")
            battery: dict[str, Any] = {}
            if type(level) in (int, float) and 0 <= level <= 100:  # type: ignore[operator]
                battery["level"] = level
            if type(volts) in (int, float) and volts > 0:  # type: ignore[operator]
                battery["voltage"] = volts / 1000 if volts > 100 else volts  # type: ignore[operator]
            if type(message.get("battery_low")) is bool:
                battery["low"] = message["battery_low"]
            if battery:
                facts["battery"] = battery
        update = message.get("update")
        if type(update) is dict:
            versions = {"version": update.get("installed_version"), "available": update.get("latest_version")}
            firmware = {key: str(value) for key, value in versions.items() if type(value) is int and value >= 0}
            if firmware:
                facts["firmware"] = firmware
        return facts

    def _availability(self, rest: str, name: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        alive = _online(payload)
        known = self._by_name.get(name)
        if known is None:
            return self._wait(rest, payload, retained=retained, now=now)
        if alive is None:
            return ()
        known.available = True
        return (Alive(known.id, alive),)

    # ---- the bridge ----------------------------------------------------------------------------------------------------

    def _bridge(self, rest: str, payload: bytes, *, retained: bool) -> Iterable[Event]:
        if rest == "devices":
            listed = read_json(payload)
            if type(listed) is not list:
                raise Unreadable("bridge/devices is no list")
            return self._list(listed)
        if rest == "groups":
            listed = read_json(payload)
            if type(listed) is not list:
                raise Unreadable("bridge/groups is no list")
            return self._list_groups(listed) if self._groups else ()
        if rest == "state":
            alive = _online(payload)
            # Where Zigbee2MQTT tells the availability of each, it does so again when it is back.
            return [
                Alive(known.id, alive)
                for known in (*self._devices.values(), *self._grouped.values())
                if alive is False or (alive and not known.available)
            ]
        if rest == "event" and not retained:
            event = read_object(payload)
            data = event.get("data")
            address = data.get("ieee_address") if type(data) is dict else None
            if event.get("type") == "device_announce" and type(address) is str and address in self._devices:
                return (Alive(address, True),)
        return ()

    def _list(self, listed: list[Any]) -> Iterable[Event]:
        """All devices that there are, with their names now: the only place where both are said."""
        devices: dict[str, Known] = {}
        out: list[Event] = []
        for entry in listed:
            if type(entry) is not dict or entry.get("type") == "Coordinator":
                continue
            address, name = entry.get("ieee_address"), entry.get("friendly_name")
            if type(address) is not str or type(name) is not str or not 0 < len(name) <= 256:
                continue
            address = address.lower()
            if ADDRESS.fullmatch(address) is None or len(devices) >= self._most:
                continue
            known = devices[address] = Known(address, name)
            definition = entry.get("definition")
            definition = definition if type(definition) is dict else {}
            self._expose(known, definition.get("exposes"))
            known.battery = entry.get("power_source") == "Battery"
            facts = _described(entry, definition)
            before = self._devices.get(address)
            known.said = (name, facts)
            if before is not None:
                known.available = before.available
            if before is None or before.said != known.said:
                out.append(About(address, name, facts))
        self._devices = devices
        self._name()
        self._listed = True
        out.append(Roster(frozenset(devices), "0x"))
        out.extend(self._waited())
        return out

    def _list_groups(self, listed: list[Any]) -> Iterable[Event]:
        groups: dict[str, Known] = {}
        out: list[Event] = []
        for entry in listed:
            if type(entry) is not dict:
                continue
            number, name = entry.get("id"), entry.get("friendly_name")
            if type(number) is not int or type(name) is not str or not 0 < len(name) <= 256 or not 0 <= number < 65_536:
                continue
            if len(groups) + len(self._devices) >= self._most:
                break
            known = Known(f"{GROUP}{number}", name)
            known.properties["state"] = Property("on", None, "ON", "OFF", PUBLISHED | SETTABLE | GETTABLE)
            known.by_name["on"] = "state"
            known.said = (name, {})
            before = self._grouped.get(known.id)
            if before is not None:
                known.available = before.available
            if before is None or before.said != known.said:
                out.append(About(known.id, name, {"connectivity": {"type": "zigbee"}}))
            groups[known.id] = known
        self._grouped = groups
        self._name()
        out.append(Roster(frozenset(groups), GROUP))
        return out

    def _name(self) -> None:
        # A device goes before a group of the same name; Zigbee2MQTT allows no such pair.
        self._by_name = {known.name: known for known in (*self._grouped.values(), *self._devices.values())}

    def _expose(self, known: Known, exposes: Any, path: str = "", depth: int = 4) -> None:
        """The quantities of a device. Source: Zigbee2MQTT's documentation, page Exposes."""
        if type(exposes) is not list or not depth:
            return
        for entry in exposes[:MOST_PROPERTIES]:
            if type(entry) is not dict or len(known.properties) >= MOST_PROPERTIES:
                continue
            name, kind, inner = entry.get("property"), entry.get("type"), entry.get("features")
            if type(name) is not str or not 0 < len(name) <= 64:
                # A light, a switch, a cover: what it consists of is below it.
                self._features(known, inner, kind, path, depth)
                continue
            if name in NOT_QUANTITIES:
                continue
            full = f"{path}.{name}" if path else name
            unit, access = entry.get("unit"), entry.get("access")
            on, off = entry.get("value_on"), entry.get("value_off")
            texts = type(on) is str and type(off) is str
            known.properties[full] = Property(
                full,
                unit if type(unit) is str and 0 < len(unit) <= 32 else None,
                on if texts else None,
                off if texts else None,
                access if type(access) is int else PUBLISHED,
            )
            self._expose(known, inner, full, depth - 1)

    def _features(self, known: Known, features: Any, kind: Any, path: str, depth: int) -> None:
        before = set(known.properties)
        self._expose(known, features, path, depth - 1)
        for full in known.properties.keys() - before:
            found = known.properties[full]
            if type(kind) is str and kind in SWITCHES and full.startswith("state") and found.on is not None:
                known.properties[full] = found._replace(name="on" + full[5:])
            elif kind == "lock" and full.startswith("state") and found.on is not None:
                known.properties[full] = found._replace(name="locked" + full[5:])
            known.by_name[known.properties[full].name] = full

    # ---- actions -------------------------------------------------------------------------------------------------------

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - the device's state is the answer
        """See Adapter."""
        known = self._devices.get(device) or self._grouped.get(device)
        if known is None:
            raise Unable(404, f"{device!r} is not in Zigbee2MQTT's list of devices")
        if method not in METHODS:
            raise Unable(404, f"there is no method {method[:64]!r}: there are {', '.join(METHODS)}")
        if method == "get" and not params:
            params = {found.name: None for found in known.properties.values() if found.access & GETTABLE}
            if not params:
                raise Unable(400, "nothing of this device can be asked for: it reports by itself")
        if not params:
            raise Unable(400, "name what is to be set, as on=true")
        body: dict[str, Any] = {}
        confirms: set[str] = set()
        for name, value in params.items():
            spelled = known.by_name.get(name, name)
            found = known.properties.get(spelled)
            if found is not None:
                bit, done = (GETTABLE, "asked for") if method == "get" else (SETTABLE, "set")
                if not found.access & bit:
                    can = sorted(one.name for one in known.properties.values() if one.access & bit)
                    raise Unable(400, f"{name!r} cannot be {done}: {', '.join(can) or 'nothing'} can")
                if found.access & PUBLISHED:
                    confirms.update(
                        one.name for full, one in known.properties.items() if (full + ".").startswith(spelled + ".")
                    )
                if type(value) is bool and found.on is not None:
                    value = found.on if value else found.off
            head, _, last = spelled.partition(".")
            value = "" if method == "get" else value
            if last:
                inner = body.setdefault(head, {})
                if type(inner) is dict:
                    inner[last] = value
            else:
                body[head] = value
        try:
            payload = orjson.dumps(body)
        except TypeError as error:
            raise Unable(400, f"the parameters cannot be said in JSON: {error}") from error
        return Order((Send(f"{self._head}{known.name}/{method}", payload),), confirms=frozenset(confirms))


def _described(entry: dict[str, Any], definition: dict[str, Any]) -> dict[str, Any]:
    """The facts of a device in the list."""
    facts: dict[str, Any] = {"connectivity": {"type": "zigbee"}}
    short = entry.get("network_address")
    if type(short) is int and 0 <= short < 65_536:
        facts["connectivity"]["address"] = f"0x{short:04x}"
    vendor = definition.get("vendor") or entry.get("manufacturer")
    model = definition.get("model") or entry.get("model_id")
    for key, value in (("manufacturer", vendor), ("model", model)):
        if type(value) is str and 0 < len(value.strip()) <= 256:
            facts[key] = value.strip()
    version = entry.get("software_build_id")
    if type(version) is str and 0 < len(version) <= 128:
        facts["firmware"] = {"version": version}
    return facts


def _online(payload: bytes) -> bool | None:
    """`online`, `offline`, or both in JSON; None where it is cleared. Raises Unreadable."""
    if not payload:
        return None
    text = read_text(payload, 256)
    if text.startswith("{"):
        state = read_object(payload).get("state")
        text = state if type(state) is str else ""
    if text not in ("online", "offline"):
        raise Unreadable(f"it is online or offline, not {text[:40]!r}")
    return text == "online"


def _plain(payload: bytes) -> Scalar | Any:
    """The value of one attribute: JSON, or a text."""
    try:
        return read_json(payload)
    except Unreadable:
        return read_text(payload)


SPEC = Spec(
    "zigbee2mqtt",
    "Zigbee devices and groups behind Zigbee2MQTT",
    Zigbee2mqttOptions,
    Zigbee2mqtt,
    METHODS,
    EXAMPLE,
    "https://www.zigbee2mqtt.io/guide/usage/mqtt_topics_and_messages.html",
    signs=("*/bridge/devices", "*/bridge/state", "*/bridge/info"),
    largest=8 << 20,
)
