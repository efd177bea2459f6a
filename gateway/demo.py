"""A small house of simulated sensors that connect as real MQTT clients: what `ctxt demo` shows.

Each device is a client of its own, with password, presence and will. Most stay connected; the cellar's battery sensor sleeps
between two reports, and the garage's loses its connection now and then.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import aiomqtt
import orjson

from gateway.client.aio import Mqtt, mqtt
from gateway.client.properties import user_property
from gateway.settings import Settings
from gateway.ulid import ulid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.client.target import Target

HOME = "home.local"
GUEST = "you"
GUEST_PASSWORD = "demo"  # noqa: S105 - printed on the screen, for a broker on loopback that ends with the demo
TABLE = "table"
"""The client that fills the table on the screen."""

STALE_AFTER = 10.0
"""Seconds after which the sleeping sensor's object is stale."""

ANSWER = 10.0

Values = dict[str, dict[str, Any]]
"""The readings of a Context object: quantity → value and unit."""


def settings(folder: Path, port: int) -> Settings:
    """The demo's settings: on loopback, where anybody may read; everyone reports below the own name."""
    observers = ["*", "anonymous"]
    chosen: dict[str, Any] = {
        "id": "demo",
        "state_dir": str(folder),
        "broker": {"url": f"embedded://127.0.0.1:{port}", "anonymous": True},
        "namespace": [
            {
                "match": f"ctxt://{HOME}/cellar/**",
                "report": ["cellar"],
                "observe": observers,
                "value_view": True,
                "stale_after": STALE_AFTER,
            },
            {"match": f"ctxt://{HOME}/{{client}}/**", "report": ["*"], "observe": observers, "value_view": True},
        ],
        "timing": {"offline_grace": "2s"},
        "log": {"level": "error"},
    }
    return Settings(**chosen)


# ---- what is measured ---------------------------------------------------------------------------------------------------


class Quantity:
    """A value that wanders around its middle, slowly and with a little noise, in steps of the sensor's resolution."""

    def __init__(self, dice: random.Random, middle: float, swing: float, *, unit: str, digits: int = 1) -> None:
        self._dice = dice
        self._middle = middle
        self._swing = swing
        self._digits = digits
        self._phase = dice.uniform(0, math.tau)
        self._drift = 0.0
        self.unit = unit

    def at(self, seconds: float) -> float:
        """The reading after so many seconds; the day passes in five minutes here."""
        self._drift = 0.9 * self._drift + self._dice.gauss(0, self._swing / 12)
        value = self._middle + self._swing * math.sin(seconds / 300 * math.tau + self._phase) + self._drift
        return round(value, self._digits) if self._digits else float(round(value))

    def reading(self, seconds: float) -> dict[str, Any]:
        """As a Context object holds it."""
        value = self.at(seconds)
        return {"value": int(value) if value.is_integer() and not self._digits else value, "unit": self.unit}


@dataclass(frozen=True, slots=True)
class Sensor:
    """One object that a device reports: its path below the device's name, seconds between reports, and what it says."""

    path: str
    pace: float
    measure: Callable[[float], Values]


@dataclass(frozen=True, slots=True)
class Device:
    """One client. `awake`: seconds that it stays connected (0: for good); `away`: seconds until it comes back.

    `breaks` says that it goes without a DISCONNECT, as when its radio fails.
    """

    name: str
    sensors: tuple[Sensor, ...]
    awake: float = 0.0
    away: float = 0.0
    breaks: bool = False

    def topic(self, sensor: Sensor) -> str:
        """Where this device reports one of its objects."""
        return f"report/{self.name}/ctxt/{HOME}/{self.name}/{sensor.path}"


def house(seed: int = 7) -> list[Device]:
    """The devices, each with what it measures. The same seed gives the same house."""
    dice = random.Random(seed)  # noqa: S311 - noise, no secret

    def climate(temperature: float, humidity: float, swing: float = 0.8) -> Callable[[float], Values]:
        warmth = Quantity(dice, temperature, swing, unit="Cel")
        moisture = Quantity(dice, humidity, 3, unit="%RH", digits=0)
        return lambda seconds: {"temperature": warmth.reading(seconds), "humidity": moisture.reading(seconds)}

    def one(name: str, quantity: Quantity) -> Callable[[float], Values]:
        return lambda seconds: {name: quantity.reading(seconds)}

    sun = Quantity(dice, 9000, 4000, unit="lx", digits=0)
    outside = climate(11.5, 78, 3)

    def weather(seconds: float) -> Values:
        return {**outside(seconds), "illuminance": sun.reading(seconds)}

    heating = Quantity(dice, 1960, 30, unit="W", digits=0)

    def kettle(seconds: float) -> Values:
        boils = seconds % 40 < 12
        return {
            "power": heating.reading(seconds) if boils else {"value": 0, "unit": "W"},
            "on": {"value": boils},
        }

    def door(_seconds: float) -> Values:
        return {"open": {"value": dice.random() < 0.3}}

    def motion(_seconds: float) -> Values:
        return {"occupied": {"value": dice.random() < 0.4}}

    return [
        Device(
            "living-room",
            (
                Sensor("climate", 3.0, climate(21.6, 46)),
                Sensor("light", 2.0, one("illuminance", Quantity(dice, 240, 60, unit="lx", digits=0))),
            ),
        ),
        Device("kitchen", (Sensor("climate", 2.5, climate(22.8, 52)),)),
        Device("kettle", (Sensor("plug", 1.5, kettle),)),
        Device("hall", (Sensor("motion", 5.0, motion),)),
        Device("front-door", (Sensor("contact", 7.0, door),)),
        Device("outdoor", (Sensor("weather", 4.0, weather),)),
        Device(
            "cellar",
            (Sensor("moisture", 60.0, one("humidity", Quantity(dice, 64, 4, unit="%RH"))),),
            awake=1.0,
            away=22.0,
        ),
        Device("garage", (Sensor("climate", 3.5, climate(14.2, 60)),), awake=18.0, away=9.0, breaks=True),
    ]


def clients() -> Iterator[str]:
    """The names of all devices."""
    return (device.name for device in house())


# ---- how it is told -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Life:
    """One device as a client, coming and going. `refused` counts reports that the gateway did not take."""

    device: Device
    target: Target
    began: float = field(default_factory=time.monotonic)
    reports: int = 0
    refused: int = 0

    async def live(self) -> None:
        """Connect, report, go, come back; until cancelled."""
        device = self.device
        pause = 0.5
        while True:
            presence = f"presence/{device.name}"
            client = mqtt(
                self.target, timeout=ANSWER, keepalive=15, will=aiomqtt.Will(presence, b"offline", qos=1, retain=True)
            )
            try:
                async with client:
                    pause = 0.5
                    await client.publish(presence, b"online", qos=1, retain=True)
                    await self._report(client)
                    if device.breaks:
                        client.lose()
                        async for _ in client.messages:
                            pass  # until the loss is noticed
            except aiomqtt.MqttError:
                # The broken one arrives here on purpose; any other tries again, like a real device.
                if not device.breaks:
                    pause = min(2 * pause, 10.0)
            await asyncio.sleep(device.away or pause)

    async def _report(self, client: Mqtt) -> None:
        """Report each object at its own pace, for as long as the device is awake."""
        due = dict.fromkeys(self.device.sensors, 0.0)
        with suppress(TimeoutError):
            async with asyncio.timeout(self.device.awake or None):
                while True:
                    sensor = min(due, key=due.__getitem__)
                    now = time.monotonic()
                    if due[sensor] > now:
                        await asyncio.sleep(due[sensor] - now)
                    await self._tell(client, sensor)
                    due[sensor] = time.monotonic() + sensor.pace

    async def _tell(self, client: Mqtt, sensor: Sensor) -> None:
        payload = orjson.dumps({"values": sensor.measure(time.monotonic() - self.began)})
        await client.publish(
            self.device.topic(sensor), payload, qos=1, properties=user_property(("id", ulid(time.time())))
        )
        self.reports += 1
        if not client.verdict.accepted:
            self.refused += 1


def lives(target: Target, passwords: dict[str, str]) -> list[Life]:
    """The devices of the house as clients of the gateway at `target`."""
    return [Life(device, replace(target, name=device.name, password=passwords[device.name])) for device in house()]


def lines(port: int) -> list[tuple[str, list[str]]]:
    """What to try in another terminal, in groups: (what happens, commands). Nothing is wider than 80 columns."""
    pub = f"mosquitto_pub -p {port} -V 5 -q 1 -u {GUEST} -P {GUEST_PASSWORD} \\\n  -t report/{GUEST}/ctxt/{HOME}"
    value = '-m \'{"values":{"t":{"value":21}}}\''
    return [
        (
            "In another terminal, anybody on this machine may read:",
            [
                f"mosquitto_sub -p {port} -v -t 'snapshot/#'",
                f"mosquitto_sub -p {port} -v -t 'delta/ctxt/{HOME}/kitchen/#'",
            ],
        ),
        (
            f"{GUEST!r} may report below the own name, and not on the hall's sensor (refused):",
            [f"{pub}/{GUEST}/desk {value}", f"{pub}/hall/motion {value}"],
        ),
        (
            "The same with ctxt:",
            [
                f"export CTXT_CONNECT=mqtt://{GUEST}:{GUEST_PASSWORD}@127.0.0.1:{port}",
                f"ctxt ls; ctxt observe 'ctxt://{HOME}/**'",
            ],
        ),
    ]
