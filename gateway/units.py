"""Units as devices spell them, made into codes: SenML (RFC 8428 section 12.1, secondary units RFC 8798), else UCUM. Pure.

What has a usual unit is converted to it, by its name: a `temperature` is in `Cel`, a `pressure` in `hPa`, a `voltage` in `V`, from whatever
device it comes. Other quantities keep their unit under its code.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class _Unit(NamedTuple):
    """A spelling: its code, its dimension, and how to come to the dimension's base: value * factor + offset."""

    code: str
    dimension: str = ""
    factor: float = 1.0
    offset: float = 0.0


_TEMPERATURE = {
    _Unit("Cel", "temperature"): "Cel °C C degC celsius ℃ °c",
    _Unit("[degF]", "temperature", 5 / 9, -160 / 9): "[degF] °F F degF fahrenheit ℉ °f",
    _Unit("K", "temperature", 1.0, -273.15): "K kelvin",
}
_PRESSURE = {
    _Unit("Pa", "pressure", 0.01): "Pa",
    _Unit("hPa", "pressure"): "hPa mbar millibar",
    _Unit("kPa", "pressure", 10.0): "kPa",
    _Unit("bar", "pressure", 1000.0): "bar",
    _Unit("mm[Hg]", "pressure", 1.33322387415): "mm[Hg] mmHg torr",
    _Unit("[in_i'Hg]", "pressure", 33.8638866667): "[in_i'Hg] inHg",
    _Unit("[psi]", "pressure", 68.9475729318): "[psi] psi",
}
_POWER = {
    _Unit("W", "power"): "W watt",
    _Unit("kW", "power", 1000.0): "kW",
    _Unit("MW", "power", 1_000_000.0): "MW",
    _Unit("mW", "power", 0.001): "mW",
}
_ENERGY = {
    _Unit("Wh", "energy", 0.001): "Wh W·h",
    _Unit("kWh", "energy"): "kWh kW·h KWh",
    _Unit("MWh", "energy", 1000.0): "MWh",
    _Unit("J", "energy", 1 / 3_600_000): "J",
    _Unit("kJ", "energy", 1 / 3_600): "kJ",
    _Unit("MJ", "energy", 1 / 3.6): "MJ",
}
_ELECTRIC = {
    _Unit("V", "voltage"): "V volt",
    _Unit("mV", "voltage", 0.001): "mV",
    _Unit("kV", "voltage", 1000.0): "kV",
    _Unit("A", "current"): "A ampere",
    _Unit("mA", "current", 0.001): "mA",
    _Unit("VA", "apparent"): "VA",
    _Unit("kVA", "apparent", 1000.0): "kVA",
    _Unit("var", "reactive"): "var VAR VAr",
    _Unit("kvar", "reactive", 1000.0): "kvar kVAR",
    _Unit("varh"): "varh VARh VArh",
    _Unit("kvarh"): "kvarh kVARh",
    _Unit("VAh"): "VAh",
    _Unit("kVAh"): "kVAh",
    _Unit("Ah"): "Ah",
    _Unit("mAh"): "mAh",
    _Unit("Ohm"): "Ohm Ω",
    _Unit("C"): "coulomb",
    _Unit("F"): "farad",
    _Unit("S/m"): "S/m",
    _Unit("uS/cm"): "µS/cm μS/cm uS/cm",
    _Unit("mS/cm"): "mS/cm",
}
_MEASURES = {
    _Unit("Hz", "frequency"): "Hz",
    _Unit("kHz", "frequency", 1000.0): "kHz",
    _Unit("MHz", "frequency", 1_000_000.0): "MHz",
    _Unit("GHz", "frequency", 1_000_000_000.0): "GHz",
    _Unit("m", "length"): "m meter metre",
    _Unit("km", "length", 1000.0): "km",
    _Unit("cm", "length", 0.01): "cm",
    _Unit("mm", "length", 0.001): "mm",
    _Unit("[ft_i]", "length", 0.3048): "[ft_i] ft",
    _Unit("[in_i]", "length", 0.0254): "[in_i] in inch",
    _Unit("[mi_i]", "length", 1609.344): "[mi_i] mi",
    _Unit("m/s", "speed"): "m/s",
    _Unit("km/h", "speed", 1 / 3.6): "km/h kmh kph",
    _Unit("[mi_i]/h", "speed", 0.44704): "[mi_i]/h mph",
    _Unit("[kn_i]", "speed", 1852 / 3600): "[kn_i] kn",
    _Unit("m/s2"): "m/s2 m/s²",
    _Unit("rad/s"): "rad/s",
    _Unit("1/min"): "1/min rpm RPM r/min",
    _Unit("kg", "mass"): "kg",
    _Unit("g", "mass", 0.001): "g",
    _Unit("[lb_av]", "mass", 0.45359237): "[lb_av] lb lbs",
    _Unit("m3", "volume"): "m3 m³ ㎥",
    _Unit("l", "volume", 0.001): "l L liter litre",
    _Unit("ml", "volume", 0.000001): "ml mL",
    _Unit("[cft_i]", "volume", 0.028316846592): "[cft_i] ft³ CCF",
    _Unit("[gal_us]", "volume", 0.003785411784): "[gal_us] gal",
    _Unit("m2"): "m2 m²",
    _Unit("m3/h"): "m3/h m³/h",
    _Unit("l/min"): "l/min L/min",
    _Unit("l/h"): "l/h L/h",
    _Unit("m3/s"): "m3/s m³/s",
    _Unit("mm/h"): "mm/h",
    _Unit("N"): "N",
    _Unit("Pa/s"): "Pa/s",
}
_TIME = {
    _Unit("s"): "s sec seconds second",
    _Unit("ms"): "ms msec milliseconds",
    _Unit("us"): "µs μs us",
    _Unit("min"): "min minutes minute",
    _Unit("h"): "h hours hour hrs",
    _Unit("d"): "d days day",
}
_AIR_AND_LIGHT = {
    _Unit("ppm", "ratio"): "ppm",
    _Unit("ppb", "ratio", 0.001): "ppb",
    _Unit("ug/m3", "density"): "ug/m3 µg/m³ μg/m³ ug/m³ µg/m3 μg/m3",
    _Unit("mg/m3", "density", 1000.0): "mg/m3 mg/m³",
    _Unit("mg/l"): "mg/l mg/L",
    _Unit("lx"): "lx lux LUX",
    _Unit("lm"): "lm",
    _Unit("cd"): "cd",
    _Unit("W/m2"): "W/m2 W/m²",
    _Unit("uW/cm2"): "uW/cm2 µW/cm²",
    _Unit("mired"): "mired mireds",
    _Unit("Bq/m3"): "Bq/m3 Bq/m³",
    _Unit("uSv/h"): "uSv/h µSv/h μSv/h",
}
_OTHER = {
    _Unit("%"): "% percent",
    _Unit("%RH"): "%RH %rh",
    _Unit("/"): "/",
    _Unit("dB"): "dB",
    _Unit("dBm"): "dBm",
    _Unit("deg"): "deg °",
    _Unit("rad"): "rad",
    _Unit("lat"): "lat",
    _Unit("lon"): "lon",
    _Unit("pH"): "pH",
    _Unit("count"): "count counts pulses",
    _Unit("bit/s"): "bit/s bps",
    _Unit("B"): "B byte bytes",
    _Unit("KiB"): "KiB",
    _Unit("kB"): "kB KB",
    _Unit("MB"): "MB",
    _Unit("GB"): "GB",
}

SPELLINGS: dict[str, _Unit] = {
    spelling: unit
    for group in (_TEMPERATURE, _PRESSURE, _POWER, _ENERGY, _ELECTRIC, _MEASURES, _TIME, _AIR_AND_LIGHT, _OTHER)
    for unit, spellings in group.items()
    for spelling in spellings.split(" ")
}
"""What devices write, and what it is."""

USUAL = {
    "temperature": "Cel",
    "dewpoint": "Cel",
    "setpoint": "Cel",
    "humidity": "%RH",
    "pressure": "hPa",
    "illuminance": "lx",
    "power": "W",
    "energy": "kWh",
    "voltage": "V",
    "current": "A",
    "frequency": "Hz",
    "battery": "%",
    "co2": "ppm",
    "pm1": "ug/m3",
    "pm25": "ug/m3",
    "pm4": "ug/m3",
    "pm10": "ug/m3",
    "distance": "m",
    "rssi": "dBm",
    "snr": "dB",
}
"""The unit that a quantity of this name has everywhere; also where the name is its first or last word: `device_temperature`, `power_l1`."""

IMPLIED = frozenset({"humidity", "illuminance", "battery", "rssi", "snr"})
"""Of these the unit is meant where none is said; of a humidity `%` means `%RH`."""


class Rule(NamedTuple):
    """What becomes of the values of one quantity: value * factor + offset, in `unit`."""

    unit: str | None
    factor: float = 1.0
    offset: float = 0.0


def usual(name: str) -> str | None:
    """The word of USUAL that a quantity's name is, ends in, or begins with; of `switch:1.power` that is the part behind the dot."""
    name = name.rpartition(".")[2]
    if name in USUAL:
        return name
    last, first = name.rpartition("_")[2], name.partition("_")[0]
    return last if last in USUAL else first if first in USUAL else None


@lru_cache(maxsize=4_096)
def rule(name: str, spelled: str | None, *, fahrenheit: bool = False) -> Rule:
    """How values of a quantity are brought into their unit. `fahrenheit`: temperatures in °F stay what they are.

    A unit that is not known is kept as it is spelled; one of the wrong kind for its quantity keeps its own code.
    """
    word = usual(name)
    if not spelled:
        return Rule(USUAL[word] if word is not None and word in IMPLIED and name.rpartition(".")[2] == word else None)
    found = SPELLINGS.get(spelled.strip())
    if found is None:
        return Rule(spelled.strip()[:32] or None)
    if found.code == "[degF]":
        return Rule(found.code) if fahrenheit else Rule("Cel", found.factor, found.offset)
    if word is None:
        return Rule(found.code)
    if word == "humidity" and found.code == "%":
        return Rule("%RH")
    target = SPELLINGS[USUAL[word]]
    if target is found or not found.dimension or target.dimension != found.dimension:
        return Rule(found.code)
    return Rule(target.code, found.factor / target.factor, (found.offset - target.offset) / target.factor)


def convert(value: float, by: Rule) -> float:
    """A value in its rule's unit, to ten digits: a conversion makes no digits that were not there."""
    if by.factor == 1.0 and not by.offset:
        return value
    return float(f"{value * by.factor + by.offset:.10g}")
