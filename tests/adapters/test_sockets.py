"""Adapters over real sockets: devices publish with mosquitto_pub, beside the broker inside and beside mosquitto."""

from __future__ import annotations

import json
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.acl.brokers_mosquitto import beside_mosquitto
from tests.inside import PASSWORD, inside
from tests.running import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SETTINGS = """
[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
observe = ["*"]
[[adapter]]
type = "tasmota"
clients = ["plug"]
observe = ["*"]
execute = ["ana"]
[adapter.options]
time_zone = "Europe/Lisbon"
"""
NAMES = ("plug", "ana", "eve")
SENSOR = {"Time": "2026-07-15T17:37:10", "ENERGY": {"Total": 6.294, "Power": 2635}}


@pytest.fixture(params=["inside", "mosquitto"])
def port(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[int]:
    """Where clients connect."""
    if request.param == "inside":
        with inside(tmp_path, SETTINGS, *NAMES) as gateway:
            yield gateway.port
    else:
        need("mosquitto", "mosquitto")
        with beside_mosquitto(tmp_path, SETTINGS, *NAMES) as (_, broker):
            yield broker.port


def publish(port: int, client: str, topic: str, payload: Any, *options: str) -> str:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    program = need("mosquitto_pub", "mosquitto-clients")
    command = [program, "-V", "5", "-p", str(port), "-u", client, "-P", PASSWORD, "-q", "1", "-t", topic, "-m", text]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=20, check=False).stderr


def snapshot(port: int, device: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The object's retained snapshot, as soon as it is as wanted."""
    program = need("mosquitto_sub", "mosquitto-clients")
    topic = f"snapshot/ctxt/home.local/tasmota/{device}"
    command = [program, "-p", str(port), "-u", "ana", "-P", PASSWORD, "-t", topic, "-C", "1", "-W", "2"]
    deadline = time.monotonic() + 20
    found: dict[str, Any] = {}
    while time.monotonic() < deadline:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
        found = json.loads(said) if said else {}
        if found and wanted(found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{device}: {found}")


def test_a_device_becomes_an_object_that_nobody_else_can_report(port: int) -> None:
    publish(port, "plug", "tele/boiler/LWT", "Online", "-r")
    publish(port, "plug", "tele/boiler/SENSOR", SENSOR)
    found = snapshot(port, "boiler", lambda one: "power" in one["data"]["values"])
    assert found["reporter"] == "adapter:tasmota"
    assert found["data"]["values"]["power"] == {"value": 2635, "unit": "W", "time": "2026-07-15T16:37:10.000Z"}
    version = found["version"]
    publish(port, "eve", "tele/boiler/SENSOR", {**SENSOR, "ENERGY": {"Power": 1}})
    publish(port, "eve", "report/eve/ctxt/home.local/tasmota/boiler", {"values": {"power": {"value": 1}}})
    publish(port, "plug", "tele/boiler/SENSOR", "no JSON")
    publish(port, "plug", "tele/boiler/SENSOR", SENSOR)
    publish(port, "plug", "tele/boiler/LWT", "Offline", "-r")
    found = snapshot(port, "boiler", lambda one: one["status"] == "disconnected")
    assert found["version"] == version + 1
    assert found["data"]["values"]["power"]["value"] == 2635


def test_an_action_reaches_the_device_and_its_answer_comes_back(port: int) -> None:
    publish(port, "plug", "tele/boiler/LWT", "Online", "-r")
    snapshot(port, "boiler", lambda one: one["status"] == "live")
    program = need("mosquitto_sub", "mosquitto-clients")
    device = subprocess.Popen(
        [
            program,
            "-p",
            str(port),
            "-u",
            "plug",
            "-P",
            "plug",
            "-t",
            "cmnd/boiler/+",
            "-C",
            "1",
            "-W",
            "20",
            "-v",
            "-d",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    inbox = subprocess.Popen(
        [program, "-p", str(port), "-u", "ana", "-P", PASSWORD, "-t", "inbox/ana", "-C", "1", "-W", "20", "-d"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for each in (device, inbox):
        assert each.stdout is not None
        while "SUBACK" not in each.stdout.readline():
            pass
    body = {"resource": "ctxt://home.local/tasmota/boiler", "method": "set", "params": {"on": True}}
    publish(port, "ana", "request/ana", {"id": "1", "type": "execute", "body": body})
    assert "cmnd/boiler/Power ON" in device.communicate(timeout=20)[0]
    publish(port, "plug", "stat/boiler/RESULT", {"POWER": "ON"})
    said = inbox.communicate(timeout=20)[0]
    answer = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert (answer["code"], answer["body"]) == (200, {"values": {"on": True}})
