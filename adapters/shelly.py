"""Shelly, second generation and later: `events/rpc`, `status/{component}`, `online`, and RPC with its replies.

Source: the Shelly API documentation, pages General/Notifications, General/RPCProtocol, HowTo/MQTTSetup and those of the components. A
device's id is its topic prefix, which is its own name with the MAC address in it unless somebody has set another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from pydantic import Field, field_validator

from gateway.adapter import (
    About,
    Alive,
    Answer,
    Event,
    Options,
    Order,
    Reading,
    Readings,
    Send,
    Spec,
    Unable,
    Unreadable,
    at,
    flat,
    read_object,
    read_text,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLE = """\
[[adapter]]
type = "shelly"
clients = ["shelly"]

[adapter.options]
prefixes = ["shelly/+"]
"""

METHODS = {
    "set": "states of one component, as `on=true`, `brightness=40`, `position=50`, `switch:1.on=false`; answered with the device's reply",
    "get": "ask for everything, or for one component, as `component=switch:0`; answered with the device's reply",
    "rpc": "any method of the device, as `method=Switch.Toggle`, `params={\"id\":0}`; answered with the device's reply",
}  # fmt: skip

PLAIN = frozenset(
    {"switch", "light", "cover", "rgb", "rgbw", "cct", "pm1", "temperature", "humidity", "illuminance", "devicepower", "smoke", "flood", "em", "emdata"}
)  # fmt: skip
"""Components whose number 0 lends its quantities no name: `switch:0.output` is `on`, `switch:1.output` is `switch:1.on`."""

SYSTEM = frozenset(
    {
        "sys", "wifi", "eth", "ble", "cloud", "mqtt", "ws", "script", "schedule", "ui", "knx", "matter", "modbus", "bthome", "webhook", "plugs_ui",
        "ht_ui", "plugsui", "kvs", "serial", "ts",
    }
)  # fmt: skip
"""Members of a status that are no quantities."""

QUANTITIES = {
    "output": ("on", None),
    "apower": ("power", "W"),
    "act_power": ("power", "W"),
    "total_act_power": ("power", "W"),
    "aprt_power": ("apparent_power", "VA"),
    "total_aprt_power": ("apparent_power", "VA"),
    "voltage": ("voltage", "V"),
    "current": ("current", "A"),
    "total_current": ("current", "A"),
    "n_current": ("current_n", "A"),
    "pf": ("power_factor", None),
    "freq": ("frequency", "Hz"),
    "aenergy.total": ("energy", "Wh"),
    "total_act_energy": ("energy", "Wh"),
    "total_act": ("energy", "Wh"),
    "ret_aenergy.total": ("energy_returned", "Wh"),
    "total_act_ret_energy": ("energy_returned", "Wh"),
    "total_act_ret": ("energy_returned", "Wh"),
    "temperature.tC": ("device_temperature", "°C"),
    "tC": ("temperature", "°C"),
    "rh": ("humidity", "%"),
    "lux": ("illuminance", "lx"),
    "battery.percent": ("battery", "%"),
    "battery.V": ("battery_voltage", "V"),
    "external.present": ("external_power", None),
    "current_pos": ("position", "%"),
    "target_pos": ("target_position", "%"),
    "current_C": ("temperature", "°C"),
    "target_C": ("setpoint", "°C"),
    "counts.total": ("count", None),
    "percent": ("percent", "%"),
}
"""Members of a component's status: our name, and the unit of the documentation."""

PHASES = {
    "current": ("current", "A"),
    "voltage": ("voltage", "V"),
    "act_power": ("power", "W"),
    "aprt_power": ("apparent_power", "VA"),
    "pf": ("power_factor", None),
    "freq": ("frequency", "Hz"),
    "total_act_energy": ("energy", "Wh"),
    "total_act_ret_energy": ("energy_returned", "Wh"),
}
"""The same of one phase: `a_act_power` is `power_a`."""

for _letter in "abc":
    QUANTITIES |= {f"{_letter}_{key}": (f"{name}_{_letter}", unit) for key, (name, unit) in PHASES.items()}

NOT_QUANTITIES = frozenset(
    {"id", "source", "temperature.tF", "tF", "aenergy.by_minute", "aenergy.minute_ts", "ret_aenergy.by_minute", "ret_aenergy.minute_ts"}
    | {"counts.by_minute", "counts.minute_ts", "timer_started_at", "timer_duration", "move_started_at", "move_timeout", "last_updated_ts", "pos_control", "packet_id"}
    | {"transition.target.output", "transition.target.brightness", "transition.started_at", "transition.duration", "current_F", "target_F"}
)  # fmt: skip

NOT_ACTIONS = frozenset(
    {"config_changed", "ota_begin", "ota_progress", "ota_success", "ota_error", "scheduled_restart", "sleep", "component_added", "component_removed"}
)  # fmt: skip
"""Events that nobody has done."""

SETS = {
    "switch": "Switch", "light": "Light", "rgb": "RGB", "rgbw": "RGBW", "cct": "CCT", "cover": "Cover", "number": "Number", "boolean": "Boolean",
    "text": "Text", "enum": "Enum", "thermostat": "Thermostat",
}  # fmt: skip
"""Components that can be set: their methods begin so."""

CODES = {-103: 400, -104: 504, -105: 404, -108: 429, -109: 409, -114: 503, 404: 404, 400: 400, 401: 403}
"""What a device's error means in HTTP; others are 502."""

MOST_NAMES = 256
"""Components, and events, of one device."""

MOST_ASKED = 1_000
"""Questions whose answers are states too."""


class ShellyOptions(Options):
    """What differs from one site to the next."""

    prefixes: tuple[str, ...] = Field(
        default=("+",),
        min_length=1,
        max_length=500,
        description="The devices' topic prefixes, with + for any level. With a + in front, a device's MQTT user has to be called like its prefix.",
    )
    reply_topic: str = Field(
        default="ctxt-gateway-shelly",
        min_length=1,
        max_length=200,
        description="The topic whose `/rpc` the devices answer on.",
    )

    @field_validator("prefixes")
    @classmethod
    def _prefixes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            levels = each.split("/")
            if "" in levels or any("#" in level or ("+" in level and level != "+") for level in levels):
                raise ValueError(f"{each!r} must be a topic, with + for whole levels, as in shelly/+")
            if len(levels) > 3 or each.startswith("$"):
                raise ValueError(f"{each!r} has more than three levels, or begins with $")
        return value

    @field_validator("reply_topic")
    @classmethod
    def _reply_topic(cls, value: str) -> str:
        if set("+#") & set(value) or "" in value.split("/") or value.startswith("$"):
            raise ValueError("must be a topic without wildcards, as in ctxt-gateway-shelly")
        return value


class Device:
    """What has been heard of one device."""

    __slots__ = ("components", "events", "prefix", "sleeps")

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.components: dict[str, None] = {}
        self.events: dict[str, Reading] = {}
        self.sleeps = False
        """It is away most of the time, on a battery: being offline says nothing."""


class Shelly:
    """Devices of the second generation and later."""

    def __init__(self, options: ShellyOptions, most: int) -> None:
        self._most = most
        self._devices: dict[str, Device] = {}
        self._reply = options.reply_topic
        self._asked: dict[str, str] = {}
        filters = [f"{each}/{what}" for each in options.prefixes for what in ("events/rpc", "online", "status/+")]
        self.filters: tuple[str, ...] = (*filters, f"{self._reply}/rpc")
        self.commands: tuple[str, ...] = tuple(f"{each}/rpc" for each in options.prefixes)

    # ---- in ------------------------------------------------------------------------------------------------------------

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """See Adapter."""
        if topic.endswith("/events/rpc"):
            return self._notified(topic[:-11], read_object(payload), retained=retained, now=now)
        if topic == f"{self._reply}/rpc":
            return self._replied(read_object(payload))
        if topic.endswith("/online"):
            return self._online(topic[:-7], read_text(payload, 16) if payload else "")
        prefix, _, component = topic.rpartition("/status/")
        if not prefix or not component:
            return ()
        return self._status(prefix, {component: read_object(payload)}, None)

    def _meet(self, prefix: str) -> Device:
        """A device; one more than `most` is forgotten again, and refused by the gateway."""
        found = self._devices.get(prefix)
        if found is None:
            found = Device(prefix)
            if len(self._devices) < self._most:
                self._devices[prefix] = found
        return found

    def _online(self, prefix: str, text: str) -> Iterable[Event]:
        if not text:
            return ()
        if text not in ("true", "false"):
            raise Unreadable(f"online is true or false, not {text!r}")
        if not prefix:
            return ()
        device = self._meet(prefix)
        if text == "false" and device.sleeps:
            return ()
        return (Alive(prefix, text == "true"),)

    def _notified(self, prefix: str, message: dict[str, Any], *, retained: bool, now: float) -> Iterable[Event]:
        params = message.get("params")
        method = message.get("method")
        if type(params) is not dict or type(method) is not str:
            raise Unreadable("it is no notification: `method` and `params` are missing")
        if not prefix:
            return ()
        time = at(params.get("ts"))
        if method == "NotifyStatus":
            return self._status(prefix, params, time)
        if method == "NotifyFullStatus":
            return self._status(prefix, params, time, whole=True)
        if method == "NotifyEvent":
            return self._event(prefix, params.get("events"), retained=retained, now=now)
        return ()

    def _status(self, prefix: str, status: dict[str, Any], time: str | None, *, whole: bool = False) -> Iterable[Event]:
        """Hot: what components say. What is not in a notification is as it was; what is not in a full one is not there."""
        device = self._meet(prefix)
        values: dict[str, Reading] = dict(device.events) if whole else {}
        facts: dict[str, Any] = {}
        for component, state in status.items():
            if type(state) is not dict:
                continue
            kind, _, number = component.partition(":")
            if kind in SYSTEM:
                self._system(device, kind, state, facts)
                continue
            if component not in device.components:
                if len(device.components) >= MOST_NAMES or len(component) > 64:
                    continue
                device.components[component] = None
            head = "" if number == "0" and kind in PLAIN else component + "."
            if kind == "devicepower":
                self._battery(device, state, facts)
            for key, value in state.items():
                if type(value) is dict:
                    for path, one in flat(key, value, 2):
                        self._take(values, head, kind, path, one, time)
                    for inner, one in value.items():
                        if one is None:
                            self._take(values, head, kind, f"{key}.{inner}", None, time)
                elif type(value) is list:
                    if key in ("rgb", "errors", "flags"):
                        for path, one in flat(key, value, 1):
                            self._take(values, head, kind, path, one, time)
                elif type(value) is not str or len(value) <= 4_096:
                    self._take(values, head, kind, key, value, time)
        events: list[Event] = []
        if values or whole:
            events.append(Readings(prefix, values, cached=True, whole=whole))
        if facts:
            facts.setdefault("connectivity", {}).setdefault("type", "wifi")
            facts["manufacturer"] = "Shelly"
            events.append(About(prefix, None, facts))
        return events

    @staticmethod
    def _take(values: dict[str, Reading], head: str, kind: str, key: str, value: Any, time: str | None) -> None:
        found = QUANTITIES.get(key)
        if found is None:
            if key in NOT_QUANTITIES:
                return
            name = key
            if key == "state" and kind == "input":
                name = "on"
            elif key == "alarm" and kind in ("smoke", "flood"):
                name = kind
            found = (name, None)
        values[(head + found[0])[:128]] = Reading(value, found[1], time)

    @staticmethod
    def _battery(device: Device, state: dict[str, Any], facts: dict[str, Any]) -> None:
        external, battery = state.get("external"), state.get("battery")
        device.sleeps = not (type(external) is dict and external.get("present") is True)
        if type(battery) is dict:
            level, volts = battery.get("percent"), battery.get("V")
            if type(level) in (int, float) and 0 <= level <= 100:  # type: ignore[operator]
                facts.setdefault("battery", {})["level"] = level
            if type(volts) in (int, float) and volts >= 0:  # type: ignore[operator]
                facts.setdefault("battery", {})["voltage"] = volts

    @staticmethod
    def _system(device: Device, kind: str, state: dict[str, Any], facts: dict[str, Any]) -> None:
        """What a status says of the device itself."""
        told: dict[str, Any] = {}
        if kind == "wifi":
            address, network, signal = state.get("sta_ip"), state.get("ssid"), state.get("rssi")
            if type(address) is str and 0 < len(address) <= 256:
                told["address"] = address
            if type(network) is str and 0 < len(network) <= 128:
                told["network"] = network
            if type(signal) in (int, float) and -200 <= signal < 0:  # type: ignore[operator]
                told["rssi"] = signal
        elif kind == "eth":
            address = state.get("ip")
            if type(address) is str and 0 < len(address) <= 256:
                told.update(type="ethernet", address=address)
        elif kind == "sys":
            if type(state.get("wakeup_period")) is int and state["wakeup_period"] > 0:
                device.sleeps = True
            updates = state.get("available_updates")
            stable = updates.get("stable") if type(updates) is dict else None
            version = stable.get("version") if type(stable) is dict else None
            if type(version) is str and 0 < len(version) <= 128:
                facts["firmware"] = {"available": version}
        if told:
            facts.setdefault("connectivity", {}).update(told)

    def _event(self, prefix: str, events: Any, *, retained: bool, now: float) -> Iterable[Event]:
        if type(events) is not list:
            raise Unreadable("`events` is no list")
        device = self._meet(prefix)
        values: dict[str, Reading] = {}
        for entry in events[:64]:
            if type(entry) is not dict or retained:
                continue
            component, event = entry.get("component"), entry.get("event")
            if (
                type(component) is not str
                or type(event) is not str
                or not 0 < len(event) <= 128
                or event in NOT_ACTIONS
            ):
                continue
            name = f"{component[:64]}.action"
            reading = Reading(event, None, at(entry.get("ts")) or at(now))
            values[name] = reading
            if name in device.events or len(device.events) < MOST_NAMES:
                device.events[name] = reading
        return (Readings(prefix, values),) if values else ()

    def _replied(self, message: dict[str, Any]) -> Iterable[Event]:
        token, error = message.get("id"), message.get("error")
        if type(token) is not str:
            raise Unreadable("it is no reply: `id` is missing")
        asked = self._asked.pop(token, None)
        if type(error) is dict:
            code = error.get("code")
            text = str(error.get("message", ""))[:500]
            return (
                Answer(
                    token, CODES.get(code, 502) if type(code) is int else 502, None, text or "the device has refused it"
                ),
            )
        result = message.get("result")
        answer = Answer(token, 200, result)
        if asked is not None and type(result) is dict:
            prefix, _, component = asked.partition("\n")
            status = {component: result} if component else result
            return (*self._status(prefix, status, None, whole=not component), answer)
        return (answer,)

    # ---- actions -------------------------------------------------------------------------------------------------------

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - replies have ids, not times
        """See Adapter."""
        known = self._devices.get(device)
        if known is None:
            raise Unable(404, f"{device!r} has not been heard of since the start: wait until it reports")
        if method == "rpc":
            name, inner = params.get("method"), params.get("params", {})
            if type(name) is not str or not 0 < len(name) <= 128 or type(inner) is not dict:
                raise Unable(
                    400,
                    '`method` is a method of the device, such as Switch.Toggle, `params` an object, such as {"id":0}',
                )
            return self._call(known, name, inner, token)
        if method == "get":
            component = params.get("component", "")
            if type(component) is not str or len(component) > 64:
                raise Unable(400, "`component` is a component of the device, such as switch:0")
            kind, _, number = component.partition(":")
            if component and kind not in SETS and component not in known.components:
                raise Unable(
                    404, f"there is no component {component!r}: there are {', '.join(known.components) or 'none yet'}"
                )
            if len(self._asked) >= MOST_ASKED:
                del self._asked[next(iter(self._asked))]
            self._asked[token] = f"{device}\n{component}"
            if not component:
                return self._call(known, "Shelly.GetStatus", {}, token)
            inner = {"id": int(number)} if number.isdecimal() else {}
            return self._call(known, f"{SETS.get(kind, kind.capitalize())}.GetStatus", inner, token)
        if method != "set":
            raise Unable(404, f"there is no method {method[:64]!r}: there are {', '.join(METHODS)}")
        return self._set(known, params, token)

    def _set(self, known: Device, params: Mapping[str, Any], token: str) -> Order:
        """One call, of one component: a device has no other way to do several things or none."""
        if not params:
            raise Unable(400, "name what is to be set, as on=true")
        wanted: dict[str, dict[str, Any]] = {}
        for name, value in params.items():
            component, dot, quantity = name.rpartition(".")
            if not dot:
                component = self._component(known, name)
            wanted.setdefault(component, {})[quantity] = value
        if len(wanted) > 1:
            raise Unable(
                400,
                f"these are states of several components ({', '.join(sorted(wanted))[:200]}): set one after the other",
            )
        ((component, states),) = wanted.items()
        kind, _, number = component.partition(":")
        if kind not in SETS or not number.isdecimal():
            raise Unable(400, f"{component[:64]!r} cannot be set: a {', a '.join(SETS)} can; or use `rpc`")
        inner: dict[str, Any] = {"id": int(number)}
        if kind == "cover":
            if "position" in states:
                return self._call(known, "Cover.GoToPosition", {**inner, "pos": states["position"]}, token)
            move = str(states.get("state", "")).lower()
            if move not in ("open", "close", "stop"):
                raise Unable(400, "a cover takes `position`, or `state` = open, close or stop")
            return self._call(known, f"Cover.{move.capitalize()}", inner, token)
        if kind == "thermostat":
            return self._call(
                known, "Thermostat.SetConfig", {**inner, "config": {"target_C": states.get("setpoint")}}, token
            )
        return self._call(known, f"{SETS[kind]}.Set", {**inner, **states}, token)

    @staticmethod
    def _component(known: Device, quantity: str) -> str:
        """The component that a quantity without one is of."""
        for component in known.components:
            kind, _, number = component.partition(":")
            if number == "0" and (
                (quantity in ("position", "state") and kind == "cover")
                or (quantity not in ("position", "state") and kind in ("switch", "light", "rgb", "rgbw", "cct"))
            ):
                return component
        return "cover:0" if quantity in ("position", "state") else "light:0" if quantity == "brightness" else "switch:0"

    def _call(self, known: Device, method: str, params: Any, token: str) -> Order:
        try:
            payload = orjson.dumps({"id": token, "src": self._reply, "method": method, "params": params})
        except TypeError as error:
            raise Unable(400, f"the parameters cannot be said in JSON: {error}") from error
        return Order((Send(f"{known.prefix}/rpc", payload),), answered=True)


SPEC = Spec(
    "shelly",
    "Shelly devices of the second generation and later",
    ShellyOptions,
    Shelly,
    METHODS,
    EXAMPLE,
    "https://shelly-api-docs.shelly.cloud/gen2/General/Notifications",
    signs=("*/events/rpc",),
)
