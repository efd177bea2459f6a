"""mqtt.js, the client of web pages and of Node.js: MQTT 3.1.1 and 5, over TCP and over WebSockets."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from tests.clients.mqttjs import JsClient, leash
from tests.inside import inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OBJECT = "ctxt/home.local/sensor/room"
REPORT = "report/sensor/" + OBJECT
SETTINGS = '[[listener]]\nurl = "ws://127.0.0.1:0"\n[timing]\noffline_grace = "100ms"\n'

pytestmark = [
    pytest.mark.timeout(300),  # the first test installs the packages
    pytest.mark.parametrize("version", [4, 5]),
    pytest.mark.parametrize("transport", ["mqtt", "ws"]),
]


def reading(value: int) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value}}}


class House:
    """A gateway, and clients of mqtt.js that all speak to it in one way."""

    def __init__(self, stack: contextlib.ExitStack, node: str, folder: Path, transport: str, version: int) -> None:
        self.version = version
        gateway = stack.enter_context(inside(folder, SETTINGS))
        self._process = stack.enter_context(leash(node))
        urls: list[str] = gateway.call(lambda service: service.urls)
        (self._url,) = (url for url in urls if url.startswith(transport + "://"))

    def client(self, name: str, **options: Any) -> JsClient:
        return JsClient(self._process, self._url, name, version=self.version, **options)


@pytest.fixture
def house(node: str, tmp_path: Path, transport: str, version: int) -> Iterator[House]:
    with contextlib.ExitStack() as stack:
        yield House(stack, node, tmp_path, transport, version)


def test_reports_become_snapshots_and_deltas_and_a_late_joiner_gets_the_last_snapshot(house: House) -> None:
    sensor, dash = house.client("sensor"), house.client("dash")
    assert dash.subscribe("snapshot/#", "delta/#", qos=2) == [2, 2]
    for qos in (0, 1, 2):
        assert sensor.publish(REPORT, reading(20 + qos), qos=qos) == (0, "")
    deltas = dash.wait(lambda: (found := dash.messages("delta/" + OBJECT))[2:] and found)
    assert [delta["version"] for delta in deltas] == [1, 2, 3]
    assert [deltas[0]["value"], deltas[1]["merge"], deltas[2]["merge"]] == [reading(20), reading(21), reading(22)]
    dash.wait(lambda: any(snapshot["version"] == 3 for snapshot in dash.messages("snapshot/" + OBJECT)))
    assert {event["qos"] for event in dash.of("message")} == {1}
    late = house.client("dash")
    late.subscribe("snapshot/#")
    late.wait(lambda: late.of("message"))
    (event,) = late.of("message")
    assert (event["topic"], event["qos"], event["retain"]) == ("snapshot/" + OBJECT, 1, True)
    assert late.messages("snapshot/" + OBJECT)[0]["data"] == reading(22)


def test_a_report_on_anothers_object_is_refused_by_reason_code_and_in_the_inbox(house: House) -> None:
    sensor, mallory = house.client("sensor"), house.client("mallory")
    sensor.publish(REPORT, reading(20))
    mallory.subscribe("inbox/mallory")
    for qos in (1, 2):
        reason, text = mallory.publish("report/mallory/" + OBJECT, reading(99), qos=qos)
        assert (reason, "'sensor'" in text) == ((0x87, True) if house.version == 5 else (0, False))
    assert mallory.publish(REPORT, reading(99))[0] == (0x87 if house.version == 5 else 0)
    first, *_ = mallory.wait(lambda: mallory.messages("inbox/mallory"))
    assert (first["type"], first["code"], first["resource"]) == ("rejection", 403, "ctxt://home.local/sensor/room")
    assert mallory.subscribe("inbox/sensor") == [0x87 if house.version == 5 else 0x80]
    mallory.subscribe("snapshot/#")
    (snapshot,) = mallory.wait(lambda: mallory.messages("snapshot/" + OBJECT))
    assert (snapshot["version"], snapshot["data"]) == (1, reading(20))


def test_a_wrong_password_is_refused(house: House) -> None:
    (error,) = house.client("sensor", password="wrong").of("error")
    assert error["code"] == (0x86 if house.version == 5 else 4)


def test_the_will_and_presence_decide_whether_an_object_is_live(house: House) -> None:
    dash = house.client("dash")
    dash.subscribe("delta/#")
    sensor = house.client("sensor", will={"topic": "presence/sensor", "payload": "offline", "qos": 1})
    sensor.publish(REPORT, reading(20))
    sensor.cut()
    dash.wait(lambda: [d.get("status") for d in dash.messages("delta/" + OBJECT)][1:] == ["disconnected"])
    sensor.back()
    sensor.publish("presence/sensor", "online")
    dash.wait(lambda: [d.get("status") for d in dash.messages("delta/" + OBJECT)][1:] == ["disconnected", "live"])
    # Who leaves politely sleeps: nothing of its objects has changed.
    sensor.end()
    other = house.client("sensor")
    other.publish(REPORT, reading(21))
    last = dash.wait(lambda: (found := dash.messages("delta/" + OBJECT))[3:] and found)[-1]
    assert (last["merge"], "status" in last) == (reading(21), False)


def test_a_kept_session_gets_what_came_while_it_was_away(house: House) -> None:
    kept = {"clean": False, "clientId": "panel", "properties": {"sessionExpiryInterval": 600}}
    if house.version == 4:
        del kept["properties"]
    sensor, dash = house.client("sensor"), house.client("dash", **kept)
    assert dash.of("connect")[0]["present"] is False
    dash.subscribe("delta/#", "inbox/dash")
    sensor.publish(REPORT, reading(0))
    dash.wait(lambda: dash.messages("delta/" + OBJECT))
    dash.cut()
    for value in range(1, 20):
        sensor.publish(REPORT, reading(value), qos=1 + value % 2)
    assert dash.back() is True
    deltas = dash.wait(lambda: (found := dash.messages("delta/" + OBJECT))[19:] and found)
    assert [delta["version"] for delta in deltas] == list(range(1, 21))
