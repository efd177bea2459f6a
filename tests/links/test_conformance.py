"""One suite for both links: the broker inside, and mosquitto outside with MQTT 5 and 3.1.1. Whoever observes sees no difference."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.inside import Client, Inside, inside
from tests.links.world import MOSQUITTO, OPEN
from tests.running import mosquitto, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("sensor", "dash", "mallory")
TOPIC = "ctxt/home.local/sensor/room"
SETTINGS = """
[timing]
offline_grace = "100ms"
[limits]
reports_per_second = 1_000_000
report_burst = 1_000_000
[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
observe = ["*"]
"""


class Site:
    """A gateway and where its clients connect. With a broker outside that asks for no names, clients only say theirs in topics."""

    def __init__(self, stack: contextlib.ExitStack, gateway: Inside, port: int, *, named: bool) -> None:
        self._stack = stack
        self.gateway = gateway
        self.port = port
        self._named = named

    def client(self, name: str, **rest: Any) -> Client:
        client = Client(self.port, name if self._named else None, **rest)
        client.name = name
        self._stack.callback(client.close)
        return client


@pytest.fixture(params=["local", "5", "3.1.1"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        if request.param == "local":
            gateway = stack.enter_context(inside(tmp_path, SETTINGS, *NAMES))
            yield Site(stack, gateway, gateway.port, named=True)
            return
        need("mosquitto", "mosquitto")
        broker = stack.enter_context(mosquitto(tmp_path, MOSQUITTO))
        settings = f'{SETTINGS}{OPEN}protocol = "{request.param}"\n'
        gateway = stack.enter_context(inside(tmp_path, settings, *NAMES, url=f"mqtt://127.0.0.1:{broker.port}"))
        yield Site(stack, gateway, broker.port, named=False)


def warm(value: Any) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value}}}


def snapshots(client: Client) -> list[dict[str, Any]]:
    return [json.loads(p) for topic, p, *_ in client.heard if topic == f"snapshot/{TOPIC}" and p]


def deltas(client: Client) -> list[dict[str, Any]]:
    return [json.loads(p) for topic, p, *_ in client.heard if topic == f"delta/{TOPIC}"]


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("version", [4, 5])
def test_a_report_becomes_deltas_and_a_retained_snapshot(site: Site, qos: int, version: int) -> None:
    sensor, dash = site.client("sensor", version=version), site.client("dash", version=version)
    dash.subscribe("snapshot/#", "delta/#", qos=qos)
    for value in (20, 21, 22):
        sensor.report("sensor/room", warm(value), qos=qos)
    dash.wait(lambda: len(deltas(dash)) == 3)
    assert [delta["version"] for delta in deltas(dash)] == [1, 2, 3]
    dash.wait(lambda: any(snapshot["version"] == 3 for snapshot in snapshots(dash)))
    late = site.client("mallory", version=version)
    late.subscribe("snapshot/#", qos=qos)
    late.wait(lambda: snapshots(late))
    assert snapshots(late)[0]["data"] == warm(22)
    assert all(retained for *_, retained in late.heard)


def test_another_one_is_refused_and_told_and_nothing_changes(site: Site) -> None:
    sensor, mallory, dash = (site.client(name) for name in ("sensor", "mallory", "dash"))
    dash.subscribe("delta/#", "snapshot/#")
    mallory.subscribe("inbox/mallory", "inbox/mallory/#")
    sensor.report("sensor/room", warm(20))
    for payload in (warm(1), b"{", {"values": 7}):
        mallory.report("sensor/room", payload)
        told = mallory.wait(lambda: [m for m in mallory.messages() if m["type"] == "rejection"])
        mallory.heard.clear()
        assert told[0]["resource"] == "ctxt://home.local/sensor/room"
    sensor.subscribe("inbox/sensor")
    sensor.report("sensor/room", {"values": 7})
    told = sensor.wait(sensor.messages)
    assert (told[0]["code"], told[0]["place"]) == (422, "/values")
    sensor.report("sensor/room", warm(21))
    dash.wait(lambda: len(deltas(dash)) == 2)
    assert [delta["version"] for delta in deltas(dash)] == [1, 2]


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_two_thousand_reports_in_a_row_keep_their_order(site: Site, qos: int) -> None:
    sensor, dash = site.client("sensor"), site.client("dash")
    dash.subscribe("delta/#", qos=qos)
    for i in range(2_000):
        # No more on their way than a session may have.
        if i % 500 == 499:
            dash.wait(lambda i=i: len(deltas(dash)) >= i - 400, 20)  # type: ignore[misc]
        sensor.paho.publish(f"report/sensor/{TOPIC}", json.dumps(warm(i)), qos=qos)
    dash.wait(lambda: len(deltas(dash)) == 2_000, 20)
    found = deltas(dash)
    assert [delta["version"] for delta in found] == list(range(1, 2_001))
    assert [delta["merge"]["values"]["temperature"]["value"] for delta in found[1:]] == list(range(1, 2_000))


def test_an_object_of_the_largest_size_passes_and_a_larger_one_does_not(site: Site) -> None:
    sensor, dash = site.client("sensor"), site.client("dash")
    dash.subscribe("snapshot/#")
    sensor.subscribe("inbox/sensor")
    big = {"values": {f"v{i}": {"value": "x" * 1_000} for i in range(62)}}
    assert 60_000 < len(json.dumps(big)) <= 65_536
    sensor.report("sensor/room", big)
    dash.wait(lambda: snapshots(dash))
    assert snapshots(dash)[-1]["data"] == big
    sensor.report("sensor/room", {"values": {f"w{i}": {"value": "x" * 1_000} for i in range(66)}})
    told = sensor.wait(sensor.messages)
    assert told[0]["code"] == 413
    sensor.report("sensor/room", {"values": {"v0": {"value": 1}}})
    dash.wait(lambda: any(one["version"] == 2 for one in snapshots(dash)))


def test_presence_and_a_will_are_heard(site: Site) -> None:
    sensor = site.client("sensor", will=("presence/sensor", b"offline", 1, False))
    dash = site.client("dash")
    dash.subscribe("delta/#")
    sensor.publish("presence/sensor", b"online")
    sensor.report("sensor/room", warm(20))
    dash.wait(lambda: deltas(dash))
    sensor.drop()
    dash.wait(lambda: any(delta.get("status") == "disconnected" for delta in deltas(dash)))
    back = site.client("sensor")
    back.publish("presence/sensor", b"online")
    dash.wait(lambda: deltas(dash)[-1].get("status") == "live")


def test_requests_are_answered(site: Site) -> None:
    sensor, dash = site.client("sensor"), site.client("dash")
    sensor.report("sensor/room", warm(20))
    dash.subscribe("snapshot/#")
    dash.wait(lambda: snapshots(dash))
    answer = dash.request("read", {"resource": "ctxt://home.local/sensor/room"})
    assert (answer["code"], answer["body"]["data"]) == (200, warm(20))
    assert sensor.request("delete", {"resource": "ctxt://home.local/sensor/room"})["code"] == 200
    dash.wait(lambda: snapshots(dash)[-1].get("deleted"))


def test_the_gateway_announces_itself_and_says_good_bye(site: Site) -> None:
    dash = site.client("dash")
    dash.subscribe("gateway/+")
    dash.wait(lambda: any(m["status"] == "online" for m in dash.messages()))
    site.gateway.stop()
    dash.wait(lambda: any(m["status"] == "offline" for m in dash.messages()) or not dash.paho.is_connected())
