"""Tasmota: `tele/…/SENSOR`, `STATE`, `LWT`, `INFO1` to `INFO3`, `stat/…/RESULT` and `POWER`, commands by `cmnd/…`.

Source: Tasmota's documentation, pages MQTT, Commands, and the devices' own. Every message is a JSON object but LWT and `stat/…/POWER`.
Times are local, without a zone, unless `TimeStd` was set otherwise: the setting `time_zone` says which.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

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
    Send,
    Spec,
    Unable,
    Unreadable,
    flat,
    moment,
    read_object,
    read_text,
    zone_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLE = """\
[[adapter]]
type = "tasmota"
clients = ["tasmota"]

[adapter.options]
time_zone = "Europe/Lisbon"
"""

METHODS = {
    "set": "states by name, as `on=true`, `on2=false`, `dimmer=40`, `shutter1=50`; answered when the device tells them",
    "get": "ask for the states that are named (`on=null`), or, without any, for all; answered when the device tells them",
    "command": 'any Tasmota command, as `command=Backlog`, `payload="Delay 10; Power off"`; answered 202',
}

QUANTITIES = {
    "Temperature": ("temperature", None),
    "Humidity": ("humidity", "%"),
    "DewPoint": ("dewpoint", None),
    "Pressure": ("pressure", None),
    "SeaPressure": ("sea_pressure", None),
    "Illuminance": ("illuminance", "lx"),
    "CarbonDioxide": ("co2", "ppm"),
    "Power": ("power", "W"),
    "ApparentPower": ("apparent_power", "VA"),
    "ReactivePower": ("reactive_power", "var"),
    "Factor": ("power_factor", None),
    "Voltage": ("voltage", "V"),
    "Current": ("current", "A"),
    "Frequency": ("frequency", "Hz"),
    "Total": ("energy_total", "kWh"),
    "Today": ("energy_today", "kWh"),
    "Yesterday": ("energy_yesterday", "kWh"),
    "Period": ("energy_period", "Wh"),
    "ExportTotal": ("export_total", "kWh"),
    "PM2.5": ("pm25", "ug/m3"),
    "PM10": ("pm10", "ug/m3"),
    "Distance": ("distance", "cm"),
    "Weight": ("weight", "kg"),
}
"""What sensors call a quantity: our name, and the unit that Tasmota's documentation gives; of temperatures and pressures the message says it."""

TEMPERATURES = frozenset({"Temperature", "DewPoint"})
PRESSURES = frozenset({"Pressure", "SeaPressure"})
NOT_QUANTITIES = frozenset({"Time", "TempUnit", "PressureUnit", "SpeedUnit", "Id", "Model", "TotalStartTime"})
"""Members of SENSOR that say something of the others."""

STATES = re.compile(r"POWER\d*|Dimmer\d*|Color|HSBColor|CT|White|Channel\d*|Fade|Speed|Scheme|FanSpeed|Shutter\d+")
"""Members of STATE and RESULT that are states of the device, rather than answers to commands."""

SETTABLE = re.compile(r"(on|dimmer|shutter)(\d{0,2})|color|hsbcolor|ct|white|fade|speed|scheme|fanspeed")
"""The states that can be set; `on` is what Tasmota calls POWER: its sensors have a Power too, in watts."""

COMMAND = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class TasmotaOptions(Options):
    """What differs from one Tasmota site to the next."""

    full_topic: str = Field(
        default="%prefix%/%topic%/",
        max_length=200,
        description="The FullTopic of the devices; it has %prefix% and %topic%.",
    )
    time_zone: str = Field(default="UTC", description="The zone of the devices' clocks, such as Europe/Lisbon.")

    @field_validator("full_topic")
    @classmethod
    def _full_topic(cls, value: str) -> str:
        levels = value.rstrip("/").split("/")
        if levels.count("%prefix%") != 1 or levels.count("%topic%") != 1 or set("+#") & set(value) or "" in levels:
            raise ValueError("must have %prefix% and %topic%, each a level of its own, as in %prefix%/%topic%/")
        return "/".join(levels)

    @field_validator("time_zone")
    @classmethod
    def _time_zone(cls, value: str) -> str:
        zone_of(value)
        return value


class Tasmota:
    """Devices that run Tasmota. A device's id is its topic."""

    def __init__(self, options: TasmotaOptions, most: int) -> None:
        self._levels = options.full_topic.split("/")
        self._prefix_at, self._topic_at = self._levels.index("%prefix%"), self._levels.index("%topic%")
        self._zone = zone_of(options.time_zone)
        self._most = most
        self._known: dict[str, None] = {}
        self.filters: tuple[str, ...] = (self._topic("tele", "+", "#"), self._topic("stat", "+", "#"))
        self.commands: tuple[str, ...] = (self._topic("cmnd", "+", "#"),)

    def _topic(self, verb: str, device: str, rest: str) -> str:
        named = {"%prefix%": verb, "%topic%": device}
        return "/".join([*(named.get(level, level) for level in self._levels), rest])

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:  # noqa: ARG002 - old readings are told apart by their time
        """See Adapter."""
        levels = topic.split("/")
        at = len(self._levels)
        if len(levels) != at + 1:
            return ()
        device, what = levels[self._topic_at], levels[at]
        verb = levels[self._prefix_at]
        if what == "LWT":
            return self._will(device, payload)
        if verb == "tele":
            if what == "SENSOR":
                return self._sensor(device, read_object(payload))
            if what == "STATE":
                return self._state(device, read_object(payload))
            if what in ("INFO1", "INFO2", "INFO3"):
                return self._info(device, read_object(payload), what)
        elif what == "RESULT":
            return self._result(device, read_object(payload))
        elif what.startswith("POWER") and STATES.fullmatch(what):
            return self._readings(device, self._states({what: read_text(payload, 64)}, None), cached=True)
        elif what == "STATUS10":
            found = read_object(payload).get("StatusSNS")
            return self._sensor(device, found) if type(found) is dict else ()
        return ()

    def _meet(self, device: str) -> None:
        """Remember a device, the last ones first out: whom commands may be sent to."""
        if device not in self._known and len(self._known) < self._most:
            self._known[device] = None

    def _will(self, device: str, payload: bytes) -> Iterable[Event]:
        text = read_text(payload, 64)
        if text not in ("Online", "Offline"):
            raise Unreadable(f"LWT is Online or Offline, not {text[:40]!r}")
        self._meet(device)
        return (Alive(device, text == "Online"),)

    def _readings(self, device: str, values: dict[str, Reading], *, cached: bool = False) -> Iterable[Event]:
        if not values:
            return ()
        self._meet(device)
        return (Readings(device, values, cached),)

    def _sensor(self, device: str, message: dict[str, Any]) -> Iterable[Event]:
        """Each sensor is a member: `BME280`, `ENERGY`, `DS18B20-1`; a quantity that several have carries the sensor's name."""
        time = moment(message.get("Time"), self._zone)
        temperature, pressure = message.get("TempUnit"), message.get("PressureUnit")
        temperature = temperature if temperature in ("C", "F") else "C"
        pressure = pressure if type(pressure) is str and len(pressure) < 16 else "hPa"
        found: list[tuple[str, str, str | None, Any]] = []
        for sensor, value in message.items():
            if sensor in NOT_QUANTITIES:
                continue
            if type(value) is not dict:
                found.extend(("", name.lower(), None, one) for name, one in flat(sensor, value))
                continue
            for key, one in value.items():
                if key in NOT_QUANTITIES:
                    continue
                name, unit = QUANTITIES.get(key, (None, None))
                if key in TEMPERATURES:
                    unit = temperature
                elif key in PRESSURES:
                    unit = pressure
                for path, single in flat(name or _snake(key), one):
                    found.append((sensor, path, unit, single))
        many: dict[str, set[str]] = {}
        for sensor, name, _, _ in found:
            many.setdefault(name, set()).add(sensor)
        values: dict[str, Reading] = {}
        for sensor, name, unit, value in found:
            full = f"{_snake(sensor)}.{name}" if sensor and len(many[name]) > 1 else name
            values[full[:128]] = Reading(value, unit, time)
        return self._readings(device, values)

    def _state(self, device: str, message: dict[str, Any]) -> Iterable[Event]:
        time = moment(message.get("Time"), self._zone)
        values = self._states(message, time)
        connectivity: dict[str, Any] = {"type": "wifi"}
        wifi = message.get("Wifi")
        events: list[Event] = []
        if type(wifi) is dict:
            signal, network, access = wifi.get("Signal"), wifi.get("SSId"), wifi.get("BSSId")
            if type(signal) in (int, float) and -200 <= signal <= 100:  # type: ignore[operator]
                connectivity["rssi"] = signal
            if type(network) is str and 0 < len(network) <= 128:
                connectivity["network"] = network
            if type(access) is str and 0 < len(access) <= 256:
                connectivity["via"] = access
            events.append(About(device, None, {"connectivity": connectivity}))
        vcc = message.get("Vcc")
        if type(vcc) in (int, float):
            values["supply_voltage"] = Reading(vcc, "V", time)
        self._meet(device)
        return (*events, Readings(device, values, cached=True))

    @staticmethod
    def _states(message: dict[str, Any], time: str | None) -> dict[str, Reading]:
        values: dict[str, Reading] = {}
        for key, value in message.items():
            if STATES.fullmatch(key):
                if key.startswith("POWER"):
                    if value in ("ON", "OFF"):
                        values["on" + key[5:]] = Reading(value == "ON", None, time)
                    continue
                values.update((name.lower(), Reading(one, None, time)) for name, one in flat(key, value))
        return values

    def _result(self, device: str, message: dict[str, Any]) -> Iterable[Event]:
        """The answer to a command, or a state that somebody has changed by hand."""
        return self._readings(device, self._states(message, None), cached=True)

    def _info(self, device: str, message: dict[str, Any], what: str) -> Iterable[Event]:
        inner = message.get("Info" + what[-1], message)
        if type(inner) is not dict:
            raise Unreadable(f"Info{what[-1]} is no object")
        facts: dict[str, Any] = {}
        module, version, address = inner.get("Module"), inner.get("Version"), inner.get("IPAddress")
        if type(module) is str and 0 < len(module) <= 256:
            facts["model"] = module
        if type(version) is str and 0 < len(version) <= 128:
            facts["firmware"] = {"version": version}
        if type(address) is str and 0 < len(address) <= 256:
            facts["connectivity"] = {"type": "wifi", "address": address}
        name = inner.get("Hostname")
        if not facts:
            return ()
        self._meet(device)
        return (About(device, name if type(name) is str and 0 < len(name) <= 256 else None, facts),)

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - Tasmota has no request ids
        """See Adapter."""
        if device not in self._known:
            raise Unable(404, f"{device!r} has not been heard of since the start: wait until it reports")
        if method == "command":
            name, payload = params.get("command"), params.get("payload", "")
            if type(name) is not str or COMMAND.fullmatch(name) is None:
                raise Unable(400, "`command` is the name of a Tasmota command, such as Backlog")
            return Order((Send(self._topic("cmnd", device, name), _text(payload)),))
        if method not in METHODS:
            raise Unable(404, f"there is no method {method[:64]!r}: there are {', '.join(METHODS)}")
        if method == "get" and not params:
            return Order(
                (Send(self._topic("cmnd", device, "State"), b""),),
                confirms=frozenset({"on", "on1", "dimmer", "supply_voltage"}),
            )
        if not params:
            raise Unable(400, "name what is to be set, as on=true")
        sends, told = [], set()
        for name, value in params.items():
            found = SETTABLE.fullmatch(name)
            if found is None:
                raise Unable(
                    400, f"{name[:64]!r} is no state: on, on2, dimmer, shutter1, color, ct, fanspeed; or use `command`"
                )
            kind, index = found[1], found[2] or ""
            command, state = name, name
            if kind == "on":
                command = "Power" + index
            elif kind == "shutter":
                command, state = "ShutterPosition" + index, name + ".position"
            sends.append(Send(self._topic("cmnd", device, command), b"" if method == "get" else _text(value)))
            told.add(state)
        return Order(tuple(sends), confirms=frozenset(told))


def _text(value: Any) -> bytes:
    """A command's payload."""
    if type(value) is bool:
        return b"ON" if value else b"OFF"
    if type(value) is str:
        if len(value) > 4_096:
            raise Unable(413, "the payload has more than 4,096 characters")
        return value.encode()
    return orjson.dumps(value)


def _snake(name: str) -> str:
    """`DS18B20-1` stays what people read on the part; `CarbonMonoxide` becomes `carbon_monoxide`."""
    if any(letter.isdigit() for letter in name) or name.isupper():
        return name.lower()
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


SPEC = Spec(
    "tasmota",
    "devices that run Tasmota",
    TasmotaOptions,
    Tasmota,
    METHODS,
    EXAMPLE,
    "https://tasmota.github.io/docs/MQTT/",
)
