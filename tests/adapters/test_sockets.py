"""Adapters over real sockets, with Tasmota as the dialect: whose objects they are, who may write where, how actions come back."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from tests.adapters.sockets import BASE, DEVICE, adapter, beside, house
from tests.inside import PASSWORD
from tests.running import need

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SETTINGS = adapter("tasmota", 'time_zone = "Europe/Lisbon"')
SENSOR = {"Time": "2026-07-15T17:37:10", "ENERGY": {"Total": 6.294, "Power": 2635}}


def shell(port: int, topic: str, payload: object, *options: str) -> None:
    """What a device's message is from a terminal."""
    program = need("mosquitto_pub", "mosquitto-clients")
    text = payload if isinstance(payload, str) else json.dumps(payload)
    command = [program, "-p", str(port), "-u", DEVICE, "-P", PASSWORD, "-q", "1", "-t", topic, "-m", text, *options]
    subprocess.run(command, timeout=20, check=True)


@beside
def test_a_device_becomes_an_object_that_nobody_else_can_report(
    tmp_path: Path, broker: str, caplog: pytest.LogCaptureFixture
) -> None:
    with house(tmp_path, broker, SETTINGS, "eve") as home:
        shell(home.port, "tele/boiler/LWT", "Online", "-r")
        shell(home.port, "tele/boiler/SENSOR", SENSOR)
        assert home.value("boiler", "power", 2635) == {"value": 2635, "unit": "W", "time": "2026-07-15T16:37:10.000Z"}
        found = home.object("boiler")
        assert found["reporter"] == "adapter:tasmota"
        eve = home.client("eve")
        assert eve.publish("tele/boiler/SENSOR", {**SENSOR, "ENERGY": {"Power": 1}})[0] == 0x87
        eve.publish(f"report/eve/{BASE.replace('://', '/')}/boiler", {"values": {"power": {"value": 1}}})
        shell(home.port, "tele/boiler/SENSOR", "no JSON")
        shell(home.port, "tele/boiler/SENSOR", SENSOR)
        shell(home.port, "tele/boiler/LWT", "Offline", "-r")
        after = home.object("boiler", lambda one: one["status"] == "disconnected")
        assert after["version"] == found["version"] + 1
        assert after["data"] == found["data"]
    assert any("tele/boiler/SENSOR" in line and "JSON" in line for line in caplog.messages), caplog.messages


@beside
def test_an_action_reaches_the_device_and_its_answer_comes_back(tmp_path: Path, broker: str) -> None:
    with house(tmp_path, broker, SETTINGS, "eve") as home:
        plug = home.client()
        plug.subscribe("cmnd/boiler/+")
        eve = home.client("eve")
        assert eve.publish("cmnd/boiler/Power", b"OFF")[0] == 0x87
        plug.publish("tele/boiler/LWT", b"Online", retain=True)
        home.object("boiler", lambda one: one["status"] == "live")
        asked = home.execute("boiler", "set", on=True)
        assert plug.wait(lambda: plug.heard) == [("cmnd/boiler/Power", b"ON", 0, False)]
        plug.publish("stat/boiler/RESULT", {"POWER": "ON"})
        said = home.answer(asked)
        assert (said["code"], said["body"]) == (200, {"values": {"on": True}})
        assert home.answer(home.execute("nobody", "set", on=True))["code"] == 404
