"""The examples of the documentation, run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.client import blocking
from gateway.client.quantities import quantity
from tests.client.test_clients import until
from tests.inside import PASSWORD, inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.inside import Inside

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
SETTINGS = """
[[namespace]]
match = "comm://home.local/{client}/**"
schema = "Communication"
report = ["*"]

[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
observe = ["*"]
execute = ["*"]
"""


class Example:
    """An example that runs; `lines` is what it has printed."""

    def __init__(self, gateway: Inside, folder: Path, client: str, *arguments: str, **more: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / arguments[0]), *arguments[1:]],
            cwd=folder,
            env={
                **os.environ,
                "CTXT_CONNECT": f"mqtt://{client}@127.0.0.1:{gateway.port}",
                "CTXT_PASSWORD": PASSWORD,
                "PYTHONPATH": str(ROOT),
                **more,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(pipe,)) for pipe in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: object) -> None:
        for line in pipe:  # type: ignore[attr-defined]
            self.lines.append(line.rstrip("\n"))

    def says(self, text: str) -> None:
        until(lambda: any(text in line for line in self.lines), 20)

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """End its input, and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inside]:
    names = ("room-sensor", "thermostat", "heater", "bridge", "ana", "rui")
    with inside(tmp_path_factory.mktemp("examples"), SETTINGS, *names) as made:
        yield made


@contextmanager
def running(gateway: Inside, folder: Path, client: str, *arguments: str, **more: str) -> Iterator[Example]:
    example = Example(gateway, folder, client, *arguments, **more)
    try:
        yield example
    finally:
        example.close()


def connected(gateway: Inside, name: str) -> blocking.Client:
    return blocking.connect(f"mqtt://{name}@127.0.0.1:{gateway.port}", password=PASSWORD)


def test_a_sensor_on_a_raspberry_pi(gateway: Inside, tmp_path: Path) -> None:
    thermal = tmp_path / "temp"
    thermal.write_text("48312\n")
    with (
        running(gateway, tmp_path, "room-sensor", "sensor.py", THERMAL=str(thermal), EVERY="0.05") as sensor,
        connected(gateway, "rui") as rui,
    ):
        sensor.says("48.312 Cel stored")
        with rui.observe("ctxt://home.local/room-sensor/processor") as seen:
            assert seen.data["values"]["temperature"]["value"] == 48.312
            thermal.write_text("50000\n")
            seen.wait_for(lambda data: data["values"]["temperature"]["value"] == 50.0, 10)


def test_a_thermostat_and_its_heater(gateway: Inside, tmp_path: Path) -> None:
    room_url, heater_url = "ctxt://home.local/room-sensor/temperature", "ctxt://home.local/heater/valve"
    with connected(gateway, "room-sensor") as client, running(gateway, tmp_path, "heater", "heater.py"):
        room = client.create(room_url, data=quantity("temperature", 18.5, "Cel"))
        with client.observe(heater_url, absent_ok=True) as valve:
            until(lambda: valve.copy is not None)
            with running(gateway, tmp_path, "thermostat", "thermostat.py", room_url, heater_url) as thermostat:
                thermostat.says("18.5 Cel: the heater is on")
                assert valve.wait_for(lambda data: data["values"]["open"]["value"] is True, 10)
                room.update(quantity("temperature", 20, "Cel"))
                room.update(quantity("temperature", 21.5, "Cel"))
                thermostat.says("21.5 Cel: the heater is off")
                assert valve.wait_for(lambda data: data["values"]["open"]["value"] is False, 10)
                assert len(thermostat.lines) == 2


def test_a_chat(gateway: Inside, tmp_path: Path) -> None:
    url = "comm://home.local/ana/lunch"
    with running(gateway, tmp_path, "ana", "chat.py", url, "--invite", "rui") as ana:
        ana.type("hello")
        with connected(gateway, "ana") as client, client.observe(url, absent_ok=True) as chat:
            until(lambda: [copy.data["content"] for copy in chat.children("messages")] == ["hello"])
        with running(gateway, tmp_path, "rui", "chat.py", url) as rui:
            rui.says("ana: hello")
            rui.type("hi Ana")
            ana.says("rui: hi Ana")
            ana.type("soup?")
            rui.says("ana: soup?")
            assert rui.end() == 0
        assert ana.end() == 0


def test_a_bridge_from_a_csv_file(gateway: Inside, tmp_path: Path) -> None:
    (tmp_path / "readings.csv").write_text(
        "time,room,quantity,value,unit\n"
        "2026-01-01T10:00:00Z,kitchen,temperature,21.5,Cel\n"
        "2026-01-01T10:00:00Z,kitchen,humidity,40,%RH\n"
        "2026-01-01T10:05:00Z,kitchen,temperature,nan,Cel\n"
        "2026-01-01T09:55:00Z,kitchen,temperature,19,Cel\n"
        "2026-01-01T10:05:00Z,attic,temperature,12,Cel\n"
    )
    with running(gateway, tmp_path, "bridge", "csv_bridge.py", "readings.csv") as bridge:
        assert bridge.end() == 1
        bridge.says("4 readings stored, 1 refused")
        bridge.says("'value': 'nan'")
    with connected(gateway, "rui") as rui:
        kitchen = rui.read("ctxt://home.local/bridge/kitchen")["data"]["values"]
        assert kitchen["temperature"] == {"value": 21.5, "unit": "Cel", "time": "2026-01-01T10:00:00.000Z"}
        assert kitchen["humidity"]["value"] == 40
