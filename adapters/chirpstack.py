"""ChirpStack, v4: uplinks, joins, status, locations, acknowledgements, and downlinks, over its MQTT integration with JSON.

Source: ChirpStack's documentation, pages Integrations/MQTT and Integrations/Events, and its integration.proto. A device's id is its DevEUI in
lower case. Zeros, empty texts and false are left out of all messages, as proto3 does in JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

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
    moment,
    read_object,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

EXAMPLE = """\
[[adapter]]
type = "chirpstack"
clients = ["chirpstack"]
stale_after = "3h"

[adapter.options]
applications = ["17c82e96-be03-4f38-aef3-f83d48582d97"]
"""

METHODS = {"send": SEND}

MOST_ASKED = 1_000
"""Downlinks whose answers are waited for."""


class ChirpstackOptions(Options):
    """Which applications."""

    applications: tuple[str, ...] = Field(
        default=("+",), min_length=1, max_length=1_000, description="Ids of applications, as in topics; + for any."
    )

    @field_validator("applications")
    @classmethod
    def _applications(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each != "+" and (not each or set("/+#") & set(each)):
                raise ValueError(f"{each!r} is no application's id, as in a topic, and not + for any")
        return value


class _Device:
    """What has been heard of one device: where it takes downlinks, and its last message of each kind."""

    __slots__ = ("base", "last")

    def __init__(self, base: str) -> None:
        self.base = base
        self.last: dict[str, str] = {}


class Chirpstack:
    """Devices behind ChirpStack."""

    def __init__(self, options: ChirpstackOptions, most: int) -> None:
        self._most = most
        self._devices: dict[str, _Device] = {}
        self._asked: dict[str, tuple[str, str]] = {}
        self.filters: tuple[str, ...] = tuple(f"application/{each}/device/+/event/+" for each in options.applications)
        self.commands: tuple[str, ...] = tuple(
            f"application/{each}/device/+/command/down" for each in options.applications
        )

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:  # noqa: ARG002 - every message has an id and a time
        """See Adapter."""
        levels = topic.split("/")
        device = levels[3].lower()
        what = levels[5]
        if what not in ("up", "join", "status", "ack", "txack", "location"):
            return ()
        if payload[:1] != b"{":
            raise Unreadable(
                "it is no JSON: set json=true in [integration.mqtt] of chirpstack.toml, Protobuf is not read"
            )
        message = read_object(payload)
        info = message.get("deviceInfo")
        if type(info) is not dict:
            raise Unreadable("it is no event of ChirpStack v4: `deviceInfo` is missing")
        if not device:
            return ()
        known = self._devices.get(device)
        if known is None:
            known = _Device("/".join(levels[:4]))
            if len(self._devices) < self._most:
                self._devices[device] = known
        if what in ("ack", "txack"):
            return self._answered(what, message)
        one = message.get("deduplicationId")
        if type(one) is str and one:
            if known.last.get(what) == one[:64]:
                return ()
            known.last[what] = one[:64]
        time = moment(message.get("time"))
        name = text(info.get("deviceName"), 256)
        if what == "up":
            return self._up(device, name, info, message, time)
        if what == "status":
            return self._status(device, name, message, time)
        if what == "location":
            spot = place(message.get("location"))
            if spot is None:
                return ()
            return (Readings(device, where(spot, time), live=False), About(device, name, {"location": spot}))
        return (About(device, name, _facts(info, message)), Alive(device, True))

    @staticmethod
    def _up(
        device: str, name: str | None, info: dict[str, Any], message: dict[str, Any], time: str | None
    ) -> Iterable[Event]:
        payload = message.get("object")
        values = decoded(payload, time) if type(payload) is dict else {}
        return (Readings(device, values), About(device, name, _facts(info, message)))

    @staticmethod
    def _status(device: str, name: str | None, message: dict[str, Any], time: str | None) -> Iterable[Event]:
        """DevStatusAns: margin and charge; a zero is left out."""
        values: dict[str, Reading] = {}
        facts: dict[str, Any] = {}
        margin, level = message.get("margin", 0), message.get("batteryLevel", 0.0)
        if type(margin) is int and -64 <= margin <= 63:
            values["link_margin"] = Reading(margin, "dB", time)
        unknown = message.get("externalPowerSource") is True or message.get("batteryLevelUnavailable") is True
        if not unknown and type(level) in (int, float) and 0 <= level <= 100:
            level = round(level, 2)
            values["battery"] = Reading(level, "%", time)
            facts["battery"] = {"level": level}
            if time is not None:
                facts["battery"]["time"] = time
        events: list[Event] = [Readings(device, values)]
        if facts or name is not None:
            events.append(About(device, name, facts))
        return events

    def _answered(self, what: str, message: dict[str, Any]) -> Iterable[Event]:
        item = message.get("queueItemId")
        found = self._asked.get(item) if type(item) is str else None
        if found is None or (what == "txack" and found[1] != "sent"):
            return ()
        assert type(item) is str
        del self._asked[item]
        if what == "ack" and message.get("acknowledged") is not True:
            return (Answer(found[0], 504, None, "the device has not acknowledged it"),)
        return (Answer(found[0], 200, {"event": "sent" if what == "txack" else "ack"}),)

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - downlinks have ids, not times
        """See Adapter."""
        if method not in METHODS:
            raise Unable(404, f"there is no method {method[:64]!r}: there is {', '.join(METHODS)}")
        known = self._devices.get(device)
        if known is None:
            raise Unable(404, f"{device!r} has not been heard of since the start: wait for an uplink")
        wanted = downlink(params)
        item = str(uuid5(NAMESPACE_URL, f"ctxt:{token}"))
        body: dict[str, Any] = {"id": item, "devEui": device, "confirmed": wanted.confirmed, "fPort": wanted.port}
        if wanted.body is not None:
            body["object"] = wanted.body
        else:
            body["data"] = wanted.data
        try:
            payload = orjson.dumps(body)
        except TypeError as error:
            raise Unable(400, f"`object` cannot be said in JSON: {error}") from error
        if wanted.until == "queued":
            # ChirpStack does not say that it has queued it.
            return Order((Send(f"{known.base}/command/down", payload),))
        if len(self._asked) >= MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[item] = (token, wanted.until)
        return Order((Send(f"{known.base}/command/down", payload),), answered=True)


def _facts(info: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """What an event says of the device itself."""
    reached: dict[str, Any] = {"type": "lorawan"}
    heard = message.get("rxInfo")
    # A reception of 0 dBm is left out like any zero, and is none.
    best = max(
        (each for each in heard[:64] if type(each) is dict and type(each.get("rssi")) in (int, float)),
        key=lambda each: each["rssi"],
        default=None,
    ) if type(heard) is list else None  # fmt: skip
    if best is not None:
        quality, via = best.get("snr", 0), text(best.get("gatewayId"), 256)
        if -200 <= best["rssi"] <= 100:
            reached["rssi"] = best["rssi"]
        if type(quality) in (int, float) and -200 <= quality <= 200:
            reached["snr"] = quality
        if via is not None:
            reached["via"] = via
    address = text(message.get("devAddr"), 256)
    if address is not None:
        reached["address"] = address
    facts: dict[str, Any] = {"connectivity": reached}
    model = text(info.get("deviceProfileName"), 256)
    if model is not None:
        facts["model"] = model
    return facts


SPEC = Spec(
    "chirpstack",
    "LoRaWAN devices behind ChirpStack v4",
    ChirpstackOptions,
    Chirpstack,
    METHODS,
    EXAMPLE,
    "https://www.chirpstack.io/docs/chirpstack/integrations/events.html",
    signs=("*/device/*/event/up", "*/device/*/event/join"),
)
