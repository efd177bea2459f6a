"""What the network servers of LoRaWAN have in common: names of what decoders decode, where a device is, downlinks. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.adapter import Reading, Unable, flat, scalar

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_NAMES = 256
"""Quantities of one message."""

DECODED = {
    "temperature": ("temperature", "°C"),
    "temp": ("temperature", "°C"),
    "tempc_sht": ("temperature", "°C"),
    "tempc1": ("temperature", "°C"),
    "tempc_ds": ("probe_temperature", "°C"),
    "externaltemperature": ("probe_temperature", "°C"),
    "humidity": ("humidity", "%"),
    "hum": ("humidity", "%"),
    "hum_sht": ("humidity", "%"),
    "co2": ("co2", "ppm"),
    "light": ("illuminance", "lx"),
    "illuminance": ("illuminance", "lx"),
    "illumination": ("illuminance", "lx"),
    "pressure": ("pressure", "hPa"),
    "barometric_pressure": ("pressure", "hPa"),
    "batv": ("battery_voltage", "V"),
    "bat_v": ("battery_voltage", "V"),
    "battery_voltage": ("battery_voltage", "V"),
    "vdd": ("battery_voltage", "mV"),
    "battery": ("battery", None),
    "tvoc": ("tvoc", "ppb"),
    "pm2_5": ("pm25", "ug/m3"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon"),
    "altitude": ("altitude", "m"),
}
"""What makers' decoders call a quantity, in lower case: our name, and the unit that their documentation gives. Others keep their name."""


def decoded(payload: Mapping[str, Any], time: str | None) -> dict[str, Reading]:
    """The quantities of a decoded payload; numbers that are texts stay texts."""
    values: dict[str, Reading] = {}
    for key, value in payload.items():
        found = DECODED.get(key.lower())
        if found is not None:
            one = scalar(value)
            if found[0] == "battery" and type(one) is float and one < 5 and not one.is_integer():
                # Charges are whole numbers, voltages of one cell are not.
                found = DECODED["battery_voltage"]
            if one is not None:
                values[found[0]] = Reading(one, found[1], time)
                continue
            if value is None:
                continue
        for name, single in flat(key, value):
            values[name[:128]] = Reading(single, None, time)
        if len(values) >= MOST_NAMES:
            break
    return values


def place(location: object) -> dict[str, Any] | None:
    """Where a device is, as the schema Device says it; None where nobody knows. A zero is left out on its way."""
    if type(location) is not dict:
        return None
    latitude, longitude = location.get("latitude", 0.0), location.get("longitude", 0.0)
    if type(latitude) not in (int, float) or type(longitude) not in (int, float):
        return None
    if not (-90 <= latitude <= 90 and -180 <= longitude <= 180) or (latitude == 0 and longitude == 0):
        return None
    found = {"latitude": latitude, "longitude": longitude}
    altitude, accuracy = location.get("altitude"), location.get("accuracy")
    if type(altitude) in (int, float) and -12_000 <= altitude <= 100_000_000:  # type: ignore[operator]
        found["altitude"] = altitude
    if type(accuracy) in (int, float) and accuracy > 0:  # type: ignore[operator]
        found["accuracy"] = accuracy
    return found


def where(location: Mapping[str, Any], time: str | None) -> dict[str, Reading]:
    """The same as readings, for maps."""
    units = {"latitude": "lat", "longitude": "lon", "altitude": "m"}
    return {name: Reading(location[name], unit, time) for name, unit in units.items() if name in location}


def text(value: object, most: int) -> str | None:
    """A text that is not empty and not too long, else None."""
    return value if type(value) is str and 0 < len(value) <= most else None


class Downlink(NamedTuple):
    """What `send` sends: bytes, or what the network server's encoder makes bytes of."""

    port: int
    confirmed: bool
    until: str
    data: str | None
    body: dict[str, Any] | None


UNTIL = ("queued", "sent", "ack")
"""When an action is answered."""

SEND = (
    "a downlink: `hex=01ff` or `base64=Af8=`, or `object={…}` for the encoder; `port` (1), `confirmed` (false), `until` = queued, sent or ack: when it"
    " is answered"
)


def downlink(params: Mapping[str, Any]) -> Downlink:
    """The parameters of `send`. Raises Unable."""
    port, confirmed, until = params.get("port", 1), params.get("confirmed", False), params.get("until", "queued")
    if type(port) is not int or not 1 <= port <= 223:
        raise Unable(400, "`port` is a number from 1 to 223")
    if type(confirmed) is not bool:
        raise Unable(400, "`confirmed` is true or false")
    if until not in UNTIL:
        raise Unable(400, f"`until` is one of {', '.join(UNTIL)}")
    if until == "ack" and not confirmed:
        raise Unable(400, "only a downlink that is `confirmed` is acknowledged: set that too")
    forms = [name for name in ("hex", "base64", "object") if name in params]
    if len(forms) != 1:
        raise Unable(400, "give what is to be sent, as `hex`, `base64` or `object`, one of them")
    value = params[forms[0]]
    if forms[0] == "object":
        if type(value) is not dict:
            raise Unable(400, "`object` is an object, for the encoder of the network server")
        return Downlink(port, confirmed, until, None, value)
    try:
        if type(value) is not str:
            raise ValueError("it is no text")
        data = bytes.fromhex(value) if forms[0] == "hex" else base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error) as error:
        raise Unable(400, f"`{forms[0]}` cannot be read: {error}") from error
    if len(data) > 242:
        raise Unable(413, f"a downlink has at most 242 bytes, and this one {len(data)}")
    return Downlink(port, confirmed, until, base64.b64encode(data).decode(), None)
