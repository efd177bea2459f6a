"""The Things Stack, v3: uplinks, joins, solved locations, and downlinks, over MQTT.

Source: The Things Stack's documentation, pages Data Formats and MQTT Server. A device's id is its DevEUI in lower case; where there is none, its
id in the application. Zeros, empty texts and false are left out of all messages, as proto3 does in JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import Field, field_validator

from adapters._lorawan import SEND, decoded, downlink, place, text, where
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
    flat,
    moment,
    read_object,
    scalar,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLE = """\
[[adapter]]
type = "ttn"
clients = ["ttn-bridge"]
stale_after = "3h"

[adapter.options]
applications = ["greenhouse@ttn"]
"""

METHODS = {"send": SEND}

NORMALIZED = {
    "air.temperature": ("temperature", "°C"),
    "air.relativeHumidity": ("humidity", "%"),
    "air.pressure": ("pressure", "hPa"),
    "air.co2": ("co2", "ppm"),
    "air.lightIntensity": ("illuminance", "lx"),
    "air.location": ("air_location", None),
    "battery": ("battery_voltage", "V"),
    "wind.speed": ("wind_speed", "m/s"),
    "wind.direction": ("wind_direction", "deg"),
    "rain.intensity": ("rain_intensity", "mm/h"),
    "rain.cumulative": ("rain", "mm"),
    "soil.temperature": ("soil_temperature", "°C"),
    "soil.moisture": ("soil_moisture", "%"),
    "soil.depth": ("soil_depth", "cm"),
    "soil.ec": ("soil_ec", "dS/m"),
    "soil.pH": ("soil_ph", "pH"),
    "soil.n": ("soil_n", "ppm"),
    "soil.p": ("soil_p", "ppm"),
    "soil.k": ("soil_k", "ppm"),
    "water.temperature": ("water_temperature", "°C"),
    "water.leak": ("leak", None),
    "metering.water.total": ("water", "l"),
    "action.motion.detected": ("motion", None),
    "action.motion.count": ("motion_count", None),
    "action.contactState": ("contact", None),
    "position.latitude": ("latitude", "lat"),
    "position.longitude": ("longitude", "lon"),
}
"""Source: the schema of normalized payloads, lib/payload.json of the Device Repository for LoRaWAN."""

AGAIN = 300.0
"""Seconds within which a frame of the same session and number is the same frame."""

MOST_ASKED = 1_000
"""Downlinks whose answers are waited for."""

HEAD = "ctxt:"
"""What our correlation ids begin with."""


class TtnOptions(Options):
    """Which applications, and which of two payloads."""

    applications: tuple[str, ...] = Field(
        default=("+",),
        min_length=1,
        max_length=1_000,
        description="Applications as they are in topics, such as greenhouse@ttn; + for any.",
    )
    prefer: Literal["normalized", "decoded"] = Field(
        default="normalized",
        description="Whether the normalized payload, whose units are known, goes over what the decoder itself calls a quantity.",
    )

    @field_validator("applications")
    @classmethod
    def _applications(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each != "+" and (not each or set("/+#") & set(each)):
                raise ValueError(f"{each!r} is no application as in a topic: write greenhouse@ttn, or + for any")
        return value


class _Device:
    """What has been heard of one device: where it takes downlinks, and its last frame."""

    __slots__ = ("base", "frame", "heard")

    def __init__(self, base: str) -> None:
        self.base = base
        self.frame: tuple[str, int] | None = None
        self.heard = 0.0


class Ttn:
    """Devices behind The Things Stack."""

    def __init__(self, options: TtnOptions, most: int) -> None:
        self._most = most
        self._normalized = options.prefer == "normalized"
        self._devices: dict[str, _Device] = {}
        self._asked: dict[str, str] = {}
        self.filters: tuple[str, ...] = tuple(f"v3/{each}/devices/+/#" for each in options.applications)
        self.commands: tuple[str, ...] = tuple(
            f"v3/{each}/devices/+/down/{verb}" for each in options.applications for verb in ("push", "replace")
        )

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """See Adapter."""
        levels = topic.split("/", 4)
        if len(levels) != 5 or not levels[3]:
            return ()
        what = levels[4]
        if what == "up":
            return self._up(levels, read_object(payload), retained=retained, now=now)
        if what == "join":
            return self._join(levels, read_object(payload))
        if what == "location/solved":
            return self._solved(levels, read_object(payload))
        if what in ("down/queued", "down/sent", "down/ack", "down/nack", "down/failed"):
            return self._down(what[5:], read_object(payload))
        return ()

    def _meet(self, levels: list[str], message: dict[str, Any]) -> tuple[str, _Device, dict[str, Any]]:
        """Whose message it is. Raises Unreadable."""
        ids = message.get("end_device_ids")
        if type(ids) is not dict:
            raise Unreadable("it is no message of The Things Stack v3: `end_device_ids` is missing")
        eui = ids.get("dev_eui")
        device = eui.lower() if type(eui) is str and 0 < len(eui) <= 32 else levels[3]
        found = self._devices.get(device)
        if found is None:
            found = _Device("/".join(levels[:4]))
            if len(self._devices) < self._most:
                self._devices[device] = found
        return device, found, ids

    def _up(self, levels: list[str], message: dict[str, Any], *, retained: bool, now: float) -> Iterable[Event]:
        uplink = message.get("uplink_message")
        if type(uplink) is not dict:
            raise Unreadable("it is no uplink: `uplink_message` is missing")
        device, known, ids = self._meet(levels, message)
        number, session = uplink.get("f_cnt", 0), uplink.get("session_key_id")
        if type(number) is int and type(session) is str:
            frame = (session[:64], number)
            if known.frame == frame and now - known.heard < AGAIN:
                return ()
            if not retained:
                known.frame, known.heard = frame, now
        settings = uplink.get("settings")
        time = moment(settings.get("time")) if type(settings) is dict else None
        time = time or moment(uplink.get("received_at")) or moment(message.get("received_at"))
        values = self._values(uplink, time)
        facts = self._facts(uplink, ids)
        spot = _spot(uplink.get("locations"))
        if spot is not None:
            facts["location"] = spot
        return (Readings(device, values), About(device, text(ids.get("device_id"), 256), facts))

    def _values(self, uplink: dict[str, Any], time: str | None) -> dict[str, Reading]:
        normalized = uplink.get("normalized_payload")
        if type(normalized) is dict:
            normalized = [normalized]
        payload = uplink.get("decoded_payload")
        values = decoded(payload, time) if type(payload) is dict else {}
        if type(normalized) is list and (self._normalized or not values):
            for measured in normalized[:64]:
                if type(measured) is not dict:
                    continue
                when = moment(measured.get("time")) or time
                for path, value in flat("", {key: one for key, one in measured.items() if key != "time"}):
                    name, unit = NORMALIZED.get(path, (path.replace(".", "_")[:128], None))
                    values[name] = Reading(value, unit, when)
        return values

    @staticmethod
    def _facts(uplink: dict[str, Any], ids: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        reached: dict[str, Any] = {"type": "lorawan"}
        heard = uplink.get("rx_metadata")
        best = max(
            (each for each in heard[:64] if type(each) is dict and type(each.get("rssi")) in (int, float)),
            key=lambda each: each["rssi"],
            default=None,
        ) if type(heard) is list else None  # fmt: skip
        if best is not None:
            if -200 <= best["rssi"] <= 100:
                reached["rssi"] = best["rssi"]
            quality = best.get("snr", 0)
            if type(quality) in (int, float) and -200 <= quality <= 200:
                reached["snr"] = quality
            gateway = best.get("gateway_ids")
            via = text(gateway.get("gateway_id"), 256) if type(gateway) is dict else None
            if via is not None:
                reached["via"] = via
        address = text(ids.get("dev_addr"), 256)
        if address is not None:
            reached["address"] = address
        facts["connectivity"] = reached
        version = uplink.get("version_ids")
        if type(version) is dict:
            for key, member, most in (
                ("manufacturer", "brand_id", 256),
                ("model", "model_id", 256),
                ("hardware", "hardware_version", 128),
            ):
                found = text(version.get(member), most)
                if found is not None and not found.startswith("_unknown"):
                    facts[key] = found
            firmware = text(version.get("firmware_version"), 128)
            if firmware is not None:
                facts["firmware"] = {"version": firmware}
        battery = uplink.get("last_battery_percentage")
        level = scalar(battery.get("value", 0)) if type(battery) is dict else None
        if type(level) in (int, float) and 0 <= level <= 100:  # type: ignore[operator]
            facts["battery"] = {"level": level}
        return facts

    def _join(self, levels: list[str], message: dict[str, Any]) -> Iterable[Event]:
        device, known, ids = self._meet(levels, message)
        # A new session counts its frames from the beginning.
        known.frame = None
        reached = {"type": "lorawan"}
        address = text(ids.get("dev_addr"), 256)
        if address is not None:
            reached["address"] = address
        return (About(device, text(ids.get("device_id"), 256), {"connectivity": reached}), Alive(device, True))

    def _solved(self, levels: list[str], message: dict[str, Any]) -> Iterable[Event]:
        device, _, _ = self._meet(levels, message)
        solved = message.get("location_solved")
        spot = place(solved.get("location")) if type(solved) is dict else None
        if spot is None:
            return ()
        time = moment(message.get("received_at"))
        return (Readings(device, where(spot, time), live=False), About(device, None, {"location": spot}))

    def _down(self, event: str, message: dict[str, Any]) -> Iterable[Event]:
        """What has become of a downlink, one of ours or somebody else's."""
        inner = message.get(f"downlink_{event}")
        ids = inner.get("correlation_ids") if type(inner) is dict else None
        ids = ids if type(ids) is list else message.get("correlation_ids")
        for each in ids[:64] if type(ids) is list else ():
            token = each[len(HEAD) :] if type(each) is str and each.startswith(HEAD) else ""
            until = self._asked.get(token)
            if until is None:
                continue
            if event in ("nack", "failed"):
                del self._asked[token]
                error = inner.get("error") if type(inner) is dict else None
                why = text(error.get("message_format"), 300) if type(error) is dict else None
                return (Answer(token, 502, None, f"the network server says {event}{f': {why}' if why else ''}"),)
            if event in (until, "ack"):
                del self._asked[token]
                return (Answer(token, 202 if event == "queued" else 200, {"event": event}),)
        return ()

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - downlinks have ids, not times
        """See Adapter."""
        known = self._devices.get(device)
        if method not in METHODS:
            raise Unable(404, f"there is no method {method[:64]!r}: there is {', '.join(METHODS)}")
        if known is None:
            raise Unable(404, f"{device!r} has not been heard of since the start: wait for an uplink")
        wanted = downlink(params)
        entry: dict[str, Any] = {"f_port": wanted.port, "confirmed": wanted.confirmed, "priority": "NORMAL"}
        entry["correlation_ids"] = [HEAD + token]
        if wanted.body is not None:
            entry["decoded_payload"] = wanted.body
        else:
            entry["frm_payload"] = wanted.data
        if len(self._asked) >= MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        try:
            payload = orjson.dumps({"downlinks": [entry]})
        except TypeError as error:
            raise Unable(400, f"`object` cannot be said in JSON: {error}") from error
        self._asked[token] = wanted.until
        return Order((Send(f"{known.base}/down/push", payload),), answered=True)


def _spot(locations: Any) -> dict[str, Any] | None:
    """Where the device is: as its sensor says, else as it was registered."""
    if type(locations) is not dict:
        return None
    for source in ("frm-payload", "frm_payload", "user"):
        found = place(locations.get(source))
        if found is not None:
            return found
    return next((found for each in list(locations.values())[:8] if (found := place(each)) is not None), None)


SPEC = Spec(
    "ttn",
    "LoRaWAN devices behind The Things Stack v3",
    TtnOptions,
    Ttn,
    METHODS,
    EXAMPLE,
    "https://www.thethingsindustries.com/docs/integrations/other-integrations/mqtt/",
    signs=("v3/*/devices/*",),
)
