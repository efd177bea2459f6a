"""What holds whatever the broker is: the one inside, or one outside, in both versions of MQTT. Clients are paho."""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from gateway.links import remote
from tests.inside import Client, Inside, inside
from tests.links.world import ALLOW_ALL, OPEN, Proxy, deltas, eventually, joined_again, link_of, proxy, snapshots
from tests.running import HOST, UNLIMITED, mosquitto, need

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

NAMES = ("sensor", "dash", "mallory")

QUICK = '[timing]\noffline_grace = "100ms"\n'

FIRST_OF_ALL = '{"values":{"t":{"value":[]}}}'


@dataclass
class World:
    """A running gateway, and where its clients find it."""

    gateway: Inside
    port: int
    wire: Proxy
    """Between gateway and broker; inside, between a client and the broker."""
    outside: bool
    numbers: Iterator[int] = field(default_factory=itertools.count)
    clients: list[Client] = field(default_factory=list)

    def client(self, name: str, *, wired: bool = False, **rest: Any) -> Client:
        """A client; `wired`: what `wire` does to the way of a report is done to it."""
        port = self.wire.port if wired and not self.outside else self.port
        client = Client(port, name, **rest)
        client.paho.reconnect_delay_set(1, 1)
        self.clients.append(client)
        return client

    def observer(self) -> Client:
        client = self.client("dash")
        client.subscribe("snapshot/#", "delta/#")
        return client

    def fresh(self) -> str:
        """An object nobody has reported on."""
        return f"sensor/o{next(self.numbers)}"

    def cut(self) -> None:
        """Cut the wire, and wait until it has been mended."""
        before = self.wire.connections
        joins = link_of(self.gateway).counters.connections if self.outside else 0
        self.wire.cut()
        if self.outside:
            joined_again(self.gateway, joins)
        else:
            eventually(lambda: self.wire.connections > before, "the client comes back")

    def close_clients(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()


@pytest.fixture(scope="module", params=["inside", "outside with MQTT 5", "outside with 3.1.1"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("conformance")
    kind: str = request.param
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "FIRST_PAUSE", 0.02)
        patch.setattr(remote, "LONGEST_PAUSE", 0.05)
        patch.setattr(remote, "SETTLE", 0.05)
        if kind == "inside":
            gateway = stack.enter_context(inside(folder, QUICK + UNLIMITED, *NAMES))
            wire = stack.enter_context(proxy(gateway.port))
            yield World(gateway, gateway.port, wire, outside=False)
        else:
            need("mosquitto", "mosquitto")
            broker = stack.enter_context(mosquitto(folder, ALLOW_ALL))
            wire = stack.enter_context(proxy(broker.port))
            settings = QUICK + UNLIMITED + OPEN + f'protocol = "{kind.rpartition(" ")[2].removeprefix("MQTT ")}"\n'
            gateway = stack.enter_context(inside(folder, settings, *NAMES, url=f"mqtt://{HOST}:{wire.port}"))
            yield World(gateway, broker.port, wire, outside=True)


@pytest.fixture
def world(running: World) -> Iterator[World]:
    yield running
    running.close_clients()


def value(number: Any) -> dict[str, Any]:
    return {"values": {"t": {"value": number}}}


def topic_of(path: str) -> str:
    return f"ctxt/home.local/{path}"


def refusals(client: Client) -> list[tuple[int, str]]:
    """What a client was told in its inbox that it may not do: (code, URL)."""
    found = [json.loads(payload) for topic, payload, _, _ in client.heard if topic.startswith("inbox/")]
    return [(each["code"], each["resource"]) for each in found if each["type"] == "rejection"]


def test_a_report_is_served_as_snapshot_and_delta(world: World) -> None:
    observer, sensor, path = world.observer(), world.client("sensor"), world.fresh()
    sensor.report(path, value(21.5))
    snapshot = observer.wait(lambda: snapshots(observer).get(topic_of(path)))
    assert snapshot["data"] == value(21.5)
    assert snapshot["reporter"] == "sensor"
    (delta,) = observer.wait(lambda: deltas(observer, topic_of(path)))
    assert (delta["epoch"], delta["version"]) == (snapshot["epoch"], snapshot["version"])


def test_requests_are_answered(world: World) -> None:
    sensor, path = world.client("sensor"), world.fresh()
    sensor.report(path, value(1))
    answer = sensor.request("read", {"resource": f"ctxt://home.local/{path}"})
    assert answer["body"]["data"] == value(1)
    assert sensor.request("delete", {"resource": f"ctxt://home.local/{path}"}, "2")["code"] == 200
    assert sensor.request("read", {"resource": f"ctxt://home.local/{path}"}, "3")["code"] == 410


def test_a_refused_report_is_told_in_the_inbox_and_changes_nothing(world: World) -> None:
    observer, sensor, mallory, path = world.observer(), world.client("sensor"), world.client("mallory"), world.fresh()
    for client in (sensor, mallory):
        client.subscribe(f"inbox/{client.name}")
    sensor.report(path, value(1))
    mallory.report(path, value(2))
    sensor.report(path, {"values": {"t": {"value": {"no": "object"}}}})
    sensor.report(path, b'{"values":')
    sensor.report(path, value(3))
    url = f"ctxt://home.local/{path}"
    assert mallory.wait(lambda: refusals(mallory)) == [(403, url)]
    assert sensor.wait(lambda: len(refusals(sensor)) == 2 and refusals(sensor)) == [(422, url), (400, url)]
    first, second = observer.wait(lambda: len(found := deltas(observer, topic_of(path))) == 2 and found)
    assert second["version"] == first["version"] + 1
    assert second["merge"] == value(3)


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_pipelined_reports_keep_their_order_and_their_deltas_have_no_gap(world: World, qos: int) -> None:
    observer, sensor, path = world.observer(), world.client("sensor"), world.fresh()
    before = len(observer.heard)
    for number in range(2_000):
        payload = json.dumps(value(number)).encode()
        sensor.paho.publish(f"report/sensor/{topic_of(path)}", payload, qos=qos)
    observer.wait(lambda: len(observer.heard) - before >= 2_000, 30)
    found = observer.wait(lambda: len(heard := deltas(observer, topic_of(path))) >= 2_000 and heard)
    first = found[0]["version"]
    assert [delta["version"] for delta in found] == list(range(first, first + 2_000))
    assert {delta["epoch"] for delta in found} == {found[0]["epoch"]}
    values = [delta.get("merge", delta.get("value"))["values"]["t"]["value"] for delta in found]
    assert values == list(range(2_000))
    last = observer.wait(
        lambda: (now := snapshots(observer).get(topic_of(path))) and now["version"] == first + 1_999 and now
    )
    assert last["data"] == value(1_999)


def test_whoever_comes_late_gets_the_retained_snapshot(world: World) -> None:
    sensor, early, path = world.client("sensor"), world.observer(), world.fresh()
    for number in range(3):
        sensor.report(path, value(number))
    early.wait(lambda: (now := snapshots(early).get(topic_of(path))) and now["data"] == value(2))
    late = world.observer()
    assert late.wait(lambda: snapshots(late).get(topic_of(path)))["data"] == value(2)
    assert deltas(late, topic_of(path)) == []


def test_a_client_that_is_lost_shows_in_the_status_of_its_objects(world: World) -> None:
    observer, path = world.observer(), world.fresh()
    sensor = world.client("sensor", will=("presence/sensor", "offline", 1, True))
    sensor.publish("presence/sensor", b"online", retain=True)
    sensor.report(path, value(1))
    observer.wait(lambda: deltas(observer, topic_of(path)))
    sensor.drop()
    observer.wait(lambda: [each for each in deltas(observer, topic_of(path)) if each.get("status") == "disconnected"])
    back = world.client("sensor")
    back.publish("presence/sensor", b"online", retain=True)
    back.report(path, value(1))
    observer.wait(lambda: deltas(observer, topic_of(path))[-1].get("status") == "live")


def test_a_report_of_64_kib_is_taken_and_one_byte_more_is_refused(world: World) -> None:
    observer, sensor, path = world.observer(), world.client("sensor"), world.fresh()
    sensor.subscribe("inbox/sensor")
    data = {"values": {f"v{number}": {"value": "x" * 4_000} for number in range(16)}}
    text = json.dumps(data).encode()
    sensor.report(path, text + b" " * (65_536 - len(text)))
    assert observer.wait(lambda: snapshots(observer).get(topic_of(path)))["data"] == data
    sensor.report(path, text + b" " * (65_537 - len(text)))
    assert sensor.wait(lambda: refusals(sensor)) == [(413, f"ctxt://home.local/{path}")]


def test_every_append_is_applied_once_however_often_the_connection_is_cut(world: World) -> None:
    sensor = world.client("sensor", wired=True, client_id="appending")
    observer, path = world.observer(), world.fresh()
    sensor.report(path, FIRST_OF_ALL.encode())
    for number in range(150):
        patch = json.dumps([{"op": "add", "path": "/values/t/value/-", "value": number}]).encode()
        sensor.paho.publish(f"report/sensor/{topic_of(path)}", patch, qos=1)
        if number % (15 if world.outside else 50) == 7:
            world.cut()
    held = observer.wait(
        lambda: (
            (now := snapshots(observer).get(topic_of(path)))
            and len(now["data"]["values"]["t"]["value"]) >= 150
            and now["data"]["values"]["t"]["value"]
        ),
        30,
    )
    # A paho client that reconnects sends what is new before what it sends again.
    assert (held if world.outside else sorted(held)) == list(range(150))


def test_twenty_cuts_in_a_row_lose_nothing_that_is_shown(world: World) -> None:
    sensor, paths = world.client("sensor"), [world.fresh() for _ in range(50)]
    for path in paths:
        sensor.report(path, value(1))
    wired = world.client("sensor", wired=True, client_id="wired")
    # A paho client waits for a second before it comes back.
    for _ in range(20 if world.outside else 1):
        world.cut()
    wired.report(paths[0], value(2))
    late = world.observer()
    late.wait(lambda: snapshots(late).get(topic_of(paths[0]), {}).get("data") == value(2))
    late.wait(lambda: snapshots(late).keys() >= {topic_of(path) for path in paths})
    assert all(snapshots(late)[topic_of(path)]["data"] == value(1) for path in paths[1:])


def test_a_second_connection_under_the_same_client_id_takes_over(world: World) -> None:
    observer, path = world.observer(), world.fresh()
    first = world.client("sensor", client_id="one", version=4)
    first.report(path, value(1))
    first.paho.loop_stop()
    second = world.client("sensor", client_id="one", version=4)
    second.report(path, value(2))
    observer.wait(lambda: (now := snapshots(observer).get(topic_of(path))) and now["data"] == value(2))
    sock = cast("socket.socket", first.paho.socket())
    sock.settimeout(10)
    # Whatever was said before: the end has come.
    while sock.recv(1_000):
        pass
