"""The link to a broker outside: what it finds there, what it loses and gets back, and brokers that do not behave."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.links.link import LinkError
from gateway.links.remote import RemoteLink
from gateway.wire.packets import Connack, Connect, Disconnect, Pingreq, Property, Puback, Publish, Reason, Subscribe
from tests.broker.certificates import Authority
from tests.inside import Client, Inside, inside
from tests.links.world import MOSQUITTO, OPEN, Peer, fake, proxy, until
from tests.running import Gateway, ProgramError, find, gateway, mosquitto, need, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.service import Service
    from tests.running import Mosquitto

TOPIC = "ctxt/home.local/sensor/room"
NAMESPACE = '[[namespace]]\nmatch = "ctxt://home.local/{client}/**"\nreport = ["*"]\nobserve = ["*"]\n'
FAST = "[limits]\nreports_per_second = 1_000_000\nreport_burst = 1_000_000\n"
SETTINGS = NAMESPACE + FAST + OPEN


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    need("mosquitto", "mosquitto")
    with mosquitto(tmp_path, MOSQUITTO) as made:
        yield made


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    made: list[Client] = []
    yield made
    for client in made:
        client.close()


def url(port: int) -> str:
    return f"mqtt://127.0.0.1:{port}"


def named(port: int, name: str, clients: list[Client], **rest: Any) -> Client:
    """A client of a broker that asks for no names."""
    client = Client(port, None, **rest)
    client.name = name
    clients.append(client)
    return client


def warm(value: Any) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value}}}


def snapshots(client: Client) -> dict[str, dict[str, Any]]:
    """The last snapshot of each object."""
    return {topic[9:]: json.loads(p) for topic, p, *_ in client.heard if topic.startswith("snapshot/") and p}


def remote(running: Inside, ask: Callable[[RemoteLink], Any]) -> Any:
    """Ask the link, on its own loop."""

    def asked(service: Service) -> Any:
        assert isinstance(service._link, RemoteLink)
        return ask(service._link)

    return running.call(asked)


def joined(running: Inside, times: int) -> None:
    """Wait until the gateway has joined so often."""
    until(lambda: remote(running, lambda link: link.counters.connections >= times and link.ready))


def again(folder: Path) -> subprocess.Popen[bytes]:
    """The mosquitto of a folder, started anew on the same port."""
    config = folder / "mosquitto.conf"
    port = int(config.read_text().split("listener ")[1].split()[0])
    process = subprocess.Popen(
        [find("mosquitto", "mosquitto"), "-c", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_port(port, process, 10)
    return process


# ---- what it finds -----------------------------------------------------------------------------------------------------


def test_what_no_object_stands_for_is_cleared_where_the_last_run_was_ours(
    tmp_path: Path, broker: Mosquitto, clients: list[Client]
) -> None:
    dash = named(broker.port, "dash", clients)
    ours, theirs = "snapshot/ctxt/home.local/sensor/gone", "snapshot/ctxt/elsewhere.local/x"
    for topic in (ours, theirs, "value/ctxt/home.local/sensor/gone"):
        dash.publish(topic, b'{"epoch":5,"version":1}', retain=True)
    with inside(tmp_path, SETTINGS, url=url(broker.port)):
        pass  # a first run: whose these are it does not know
    assert set(retained(broker.port, "snapshot/#", clients)) == {ours, theirs}
    with inside(tmp_path, SETTINGS, url=url(broker.port)):
        until(lambda: set(retained(broker.port, "snapshot/#", clients)) == {theirs})
        until(lambda: not retained(broker.port, "value/#", clients))


def retained(port: int, topic_filter: str, clients: list[Client]) -> dict[str, bytes]:
    client = named(port, "late", clients)
    client.subscribe(topic_filter, "own/mark")
    client.publish("own/mark", b"x")
    client.wait(lambda: any(topic == "own/mark" for topic, *_ in client.heard))
    return {topic: payload for topic, payload, _, kept in client.heard if kept}


@pytest.mark.parametrize("topic", ["gateway/gateway1", "gateway/other", "snapshot/ctxt/home.local/sensor/room"])
def test_the_epoch_goes_above_whatever_is_retained(
    tmp_path: Path, broker: Mosquitto, clients: list[Client], topic: str
) -> None:
    high = (int(time.time()) + 5_000) * 256 + 7
    named(broker.port, "x", clients).publish(topic, {"epoch": high, "status": "online"}, retain=True)
    with inside(tmp_path, SETTINGS, url=url(broker.port)) as running:
        assert running.call(lambda service: service.epoch) > high
        assert running.call(lambda service: service.engine.epoch) > high


def test_an_absurd_epoch_is_not_followed(tmp_path: Path, broker: Mosquitto, clients: list[Client]) -> None:
    named(broker.port, "x", clients).publish("gateway/x", b'{"epoch":4611686018427387904}', retain=True)
    with inside(tmp_path, SETTINGS, url=url(broker.port)) as running:
        assert running.call(lambda service: service.epoch) < (time.time() + 60) * 256


@pytest.mark.parametrize("version", [4, 5])
def test_a_retained_report_is_not_applied_and_its_copy_goes(
    tmp_path: Path, broker: Mosquitto, clients: list[Client], version: int
) -> None:
    sensor = named(broker.port, "sensor", clients, version=version)
    sensor.report("sensor/room", warm(1), retain=True)
    with inside(tmp_path, SETTINGS, url=url(broker.port)):
        until(lambda: not retained(broker.port, "report/#", clients))
        sensor.subscribe("snapshot/#", "inbox/sensor")
        sensor.report("sensor/hall", warm(2))
        sensor.wait(lambda: snapshots(sensor))
        assert set(snapshots(sensor)) == {"ctxt/home.local/sensor/hall"}
        assert not [m for m in sensor.messages() if m.get("type") == "rejection"], "its own clearing is no report"


def test_a_name_that_no_client_can_have_is_nobody(tmp_path: Path, broker: Mosquitto, clients: list[Client]) -> None:
    settings = SETTINGS.replace("{client}/**", "**")
    with inside(tmp_path, settings, url=url(broker.port)) as running:
        client = named(broker.port, "x", clients)
        client.subscribe("snapshot/#", "inbox/#")
        for name in ("gateway", "a b", "", "ä", "x" * 65, "$SYS"):
            client.publish(f"report/{name}/ctxt/home.local/room", warm(1))
        client.publish("report", b"x")
        client.report("room", warm(2))
        client.wait(lambda: snapshots(client))
        assert [one["reporter"] for one in snapshots(client).values()] == ["x"]
        assert running.call(lambda service: service.counters.nobody) == 6


# ---- what it loses and gets back ---------------------------------------------------------------------------------------


def test_a_broker_that_comes_back_empty_gets_everything_again(
    tmp_path: Path, broker: Mosquitto, clients: list[Client]
) -> None:
    with inside(tmp_path, SETTINGS, url=url(broker.port)) as running:
        sensor = named(broker.port, "sensor", clients)
        sensor.subscribe("snapshot/#")
        for i in range(30):
            sensor.report(f"sensor/o{i}", warm(i))
        sensor.wait(lambda: len(snapshots(sensor)) == 30)
        broker.process.kill()
        broker.process.wait()
        until(lambda: not running.call(lambda service: service._link.ready))
        process = again(tmp_path)
        try:
            late = named(broker.port, "late", clients)
            late.subscribe("snapshot/#")
            late.wait(lambda: len(snapshots(late)) == 30, 20)
            assert snapshots(late)["ctxt/home.local/sensor/o7"]["data"] == warm(7)
            named(broker.port, "sensor", clients).report("sensor/o7", warm(70))
            late.wait(lambda: snapshots(late)["ctxt/home.local/sensor/o7"]["version"] == 2)
        finally:
            process.kill()
            process.wait()


def test_a_broker_that_went_back_gets_everything_again(tmp_path: Path, clients: list[Client]) -> None:
    need("mosquitto", "mosquitto")
    folder = tmp_path / "kept"
    folder.mkdir(mode=0o777)
    config = MOSQUITTO + f"persistence_location {folder}/\nautosave_interval 0\n"
    with mosquitto(tmp_path, config) as broker:
        file = tmp_path / "mosquitto.conf"
        file.write_text(file.read_text().replace("persistence false", "persistence true"))
        broker.process.kill()
        broker.process.wait()
        process = again(tmp_path)
        with inside(tmp_path, SETTINGS + "[timing]\nannounce_interval = 0.1\n", url=url(broker.port)) as running:
            sensor = named(broker.port, "sensor", clients)
            sensor.subscribe("snapshot/#", "gateway/+")
            sensor.report("sensor/room", warm(1))
            sensor.wait(lambda: snapshots(sensor) and any(m.get("counter") == 1 for m in sensor.messages()))
            process.send_signal(signal.SIGUSR1)  # mosquitto saves
            until((folder / "mosquitto.db").exists)
            sensor.report("sensor/room", warm(2))
            sensor.wait(lambda: snapshots(sensor)[TOPIC]["version"] == 2)
            sensor.wait(lambda: any(m.get("counter") == 2 for m in sensor.messages()))
            process.kill()
            process.wait()
            until(lambda: not running.call(lambda service: service._link.ready))
            process = again(tmp_path)
            try:
                late = named(broker.port, "late", clients)
                late.subscribe("snapshot/#")
                late.wait(lambda: TOPIC in snapshots(late) and snapshots(late)[TOPIC]["data"] == warm(2), 20)
            finally:
                process.kill()
                process.wait()


def test_a_mere_cut_publishes_nothing_again(tmp_path: Path, broker: Mosquitto, clients: list[Client]) -> None:
    with proxy(broker.port) as way, inside(tmp_path, SETTINGS, url=url(way.port)) as running:
        sensor = named(broker.port, "sensor", clients)
        sensor.subscribe("snapshot/#")
        for i in range(30):
            sensor.report(f"sensor/o{i}", warm(i))
        sensor.wait(lambda: len(snapshots(sensor)) == 30)
        until(lambda: not remote(running, lambda link: link._inflight))
        before = len(sensor.heard)
        way.cut()
        joined(running, 2)
        sensor.report("sensor/last", warm(0))
        sensor.wait(lambda: "ctxt/home.local/sensor/last" in snapshots(sensor))
        assert len(sensor.heard) == before + 1


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_every_report_is_applied_exactly_once_however_often_the_connection_breaks(
    tmp_path: Path, broker: Mosquitto, clients: list[Client], protocol: str
) -> None:
    settings = f'{SETTINGS}protocol = "{protocol}"\n'
    with proxy(broker.port) as way, inside(tmp_path, settings, url=url(way.port)) as running:
        sensor = named(broker.port, "sensor", clients)
        sensor.subscribe("snapshot/#")
        sensor.report("sensor/room", {"values": {"list": {"value": []}}})
        sensor.wait(lambda: snapshots(sensor))
        count = 0
        for cut in range(6):
            for _ in range(40):
                sensor.paho.publish(
                    f"report/sensor/{TOPIC}",
                    json.dumps([{"op": "add", "path": "/values/list/value/-", "value": count}]),
                    qos=1,
                )
                count += 1
            way.cut()
            joined(running, cut + 2)
        sensor.wait(lambda: len(snapshots(sensor)[TOPIC]["data"]["values"]["list"]["value"]) >= count, 20)
        assert snapshots(sensor)[TOPIC]["data"]["values"]["list"]["value"] == list(range(count))


def test_while_the_broker_does_not_take_anything_reports_wait_and_memory_does_not_grow(
    tmp_path: Path, broker: Mosquitto, clients: list[Client]
) -> None:
    with proxy(broker.port) as way, inside(tmp_path, SETTINGS, url=url(way.port)) as running:
        sensor, dash = named(broker.port, "sensor", clients), named(broker.port, "dash", clients)
        dash.subscribe("delta/#")
        sensor.report("sensor/room", warm(0))
        dash.wait(lambda: dash.heard)
        way.stall()
        for i in range(1, 20_001):
            sensor.paho.publish(f"report/sensor/{TOPIC}", json.dumps(warm(i)), qos=1)
        assert remote(running, lambda link: len(link._held)) <= 1_000
        assert remote(running, lambda link: len(link._queue)) <= 10_000
        way.flow()
        dash.wait(lambda: len(dash.heard) == 20_001, 60)
        values = [m["merge"]["values"]["temperature"]["value"] for m in dash.messages(1)]
        assert values == list(range(1, 20_001))


def test_a_broker_that_is_not_there_yet_is_waited_for(tmp_path: Path, clients: list[Client]) -> None:
    need("mosquitto", "mosquitto")
    with mosquitto(tmp_path, MOSQUITTO) as broker:
        broker.process.kill()
        broker.process.wait()
        with gateway(tmp_path, rest=SETTINGS, outside=url(broker.port), start=False) as running:
            running.launch()
            until(lambda: "Connection refused; trying again" in running.errors())
            process = again(tmp_path)
            try:
                running.wait()
                assert running.stop() == 0
            finally:
                process.kill()
                process.wait()


def test_who_waits_for_a_broker_can_be_stopped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with gateway(tmp_path, rest=SETTINGS, outside=url(port), start=False) as running:
        running.launch()
        until(lambda: "trying again" in running.errors())
        assert running.stop(10) == 0


# ---- who may come in ---------------------------------------------------------------------------------------------------


def test_a_broker_that_lets_anybody_speak_is_refused_unless_told_otherwise(tmp_path: Path, broker: Mosquitto) -> None:
    with pytest.raises(LinkError, match="clients without a name write what only the gateway may write"):
        Inside(tmp_path, NAMESPACE, (), url(broker.port))


def test_a_wrong_password_ends_the_start_with_what_to_do(tmp_path: Path) -> None:
    passwords = need("mosquitto_passwd", "mosquitto")
    file = tmp_path / "passwords"
    file.touch()
    subprocess.run([passwords, "-b", str(file), "gateway", "right"], check=True, capture_output=True)
    (tmp_path / "secret").write_text("wrong\n")
    link = f'[link]\nusername = "gateway"\npassword_file = "{tmp_path}/secret"\n'
    with mosquitto(tmp_path, f"allow_anonymous false\npassword_file {file}\n") as broker:
        made = Gateway(tmp_path, rest=NAMESPACE + link, outside=url(broker.port))
        with pytest.raises(ProgramError, match=r"ended with 74") as error:
            made.start()
        text = str(error.value)
        assert "refuses the gateway" in text
        assert "it came as 'gateway': check link.username and link.password_file" in text
        assert "wrong" not in text
        (tmp_path / "secret").write_text("right\nsecond line\n")
        made.start()
        try:
            assert made.stop() == 0
        finally:
            if made.running:
                made.kill()


def test_what_the_broker_does_not_pass_on_to_the_gateway_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("mosquitto", "mosquitto")
    monkeypatch.setattr("gateway.links.remote.JOIN", 3.0)
    (tmp_path / "acl").write_text("topic readwrite snapshot/#\n")
    with (
        mosquitto(tmp_path, f"allow_anonymous true\nacl_file {tmp_path}/acl\n") as broker,
        pytest.raises(LinkError, match="does not pass on the gateway's own message on replica/gateway1/mark"),
    ):
        Inside(tmp_path, SETTINGS, (), url(broker.port))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_of_two_gateways_with_one_id_the_later_one_goes_on(tmp_path: Path, broker: Mosquitto, protocol: str) -> None:
    settings = f'{SETTINGS}protocol = "{protocol}"\n'
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    with (
        gateway(folders[0], rest=settings, outside=url(broker.port)) as first,
        gateway(folders[1], rest=settings, outside=url(broker.port)) as second,
    ):
        until(lambda: not first.running)
        assert first.process is not None
        assert first.process.returncode == 7
        assert "another gateway with the same id serves on" in first.errors()
        assert second.running
        assert second.stop() == 0


def test_whoever_takes_its_place_twice_makes_it_stop(tmp_path: Path) -> None:
    with fake() as broker, gateway(tmp_path, rest=SETTINGS, outside=broker.url, start=False) as running:
        running.launch()
        for _ in range(2):
            peer = broker.accept()
            peer.join()
            peer.send(Disconnect(Reason.SESSION_TAKEN_OVER))
        assert running.process is not None
        assert running.process.wait(10) == 7
        assert "has taken this gateway's place twice" in running.errors()


# ---- a broker's limits -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def with_fake(tmp_path: Path, settings: str = SETTINGS, properties: Any = None) -> Iterator[tuple[Any, Peer, Gateway]]:
    """A gateway that has joined a broker of the test's."""
    with fake() as broker, gateway(tmp_path, rest=settings, outside=broker.url, start=False) as running:
        running.launch()
        peer = broker.accept()
        peer.join(properties)
        running.wait()
        yield broker, peer, running


def test_what_is_announced_is_kept_to(tmp_path: Path) -> None:
    properties = {
        Property.RECEIVE_MAXIMUM: 3,
        Property.TOPIC_ALIAS_MAXIMUM: 2,
        Property.MAXIMUM_PACKET_SIZE: 2_000,
        Property.SERVER_KEEP_ALIVE: 1,
    }
    with with_fake(tmp_path, properties=properties) as (_, peer, running):
        report = json.dumps(warm(1)).encode()
        for i in range(8):
            peer.send(Publish(f"report/sensor/{TOPIC}{i}", report, 1, packet_id=i + 1))
        # Not one more than three without an answer, and all of them with it.
        unanswered: list[int] = []
        topics: set[str] = set()
        while len([topic for topic in topics if topic.startswith("delta/")]) < 8:
            packet = peer.read()
            assert packet is not None
            if isinstance(packet, Publish) and packet.qos:
                topics.add(packet.topic)
                unanswered.append(packet.packet_id)
                assert len(unanswered) <= 3
                if len(unanswered) == 3:
                    with contextlib.suppress(TimeoutError):
                        while (more := peer.read(0.2)) is not None:
                            assert not isinstance(more, Publish)
                    peer.send(*(Puback(each) for each in unanswered))
                    unanswered.clear()
        # What does not fit is left out, said, and nothing else suffers. Its keep-alive of one second is kept.
        peer.send(*(Puback(each) for each in unanswered))
        peer.send(Publish(f"report/sensor/{TOPIC}0", json.dumps(warm("x" * 3_000)).encode(), 1, packet_id=100))
        peer.serve(lambda packet: isinstance(packet, Pingreq))
        until(lambda: "the broker takes packets of at most 2000 bytes" in running.errors())


def test_the_receive_maximum_of_the_gateway_is_enforced(tmp_path: Path) -> None:
    settings = SETTINGS
    with (
        fake() as broker,
        gateway(tmp_path, broker="receive_maximum = 5", rest=settings, outside=broker.url, start=False) as g,
    ):
        g.launch()
        peer = broker.accept()
        connect = peer.join()
        assert connect.properties is not None
        assert connect.properties[Property.RECEIVE_MAXIMUM] == 5
        g.wait()
        peer.send(
            *(Publish(f"report/sensor/{TOPIC}", json.dumps(warm(i)).encode(), 2, packet_id=i) for i in range(1, 9))
        )
        assert peer.expect(Disconnect).reason == Reason.RECEIVE_MAXIMUM_EXCEEDED
        assert broker.accept().expect(Connect).clean_start is False


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\xf7\xff\xff\xff\xff\xff", None),
        (b"\x00\x00", Reason.MALFORMED_PACKET),
        (b"\x20\x03\x00\x00\x00", Reason.PROTOCOL_ERROR),
        (b"\x10\x02\x00\x00", Reason.PROTOCOL_ERROR),
        (b"\x30\x05\x00\x03a\xff\xfe", Reason.MALFORMED_PACKET),
        (b"\x30\x80\x80\x80\x02", Reason.PACKET_TOO_LARGE),
        (b"\x32\x05\x00\x01a\x00\x00", Reason.PROTOCOL_ERROR),
    ],
    ids=["length", "type 0", "second CONNACK", "CONNECT", "UTF-8", "oversize", "packet id 0"],
)
def test_garbage_ends_the_connection_with_the_reason_and_the_gateway_comes_back(
    tmp_path: Path, sent: bytes, reason: int | None
) -> None:
    with with_fake(tmp_path) as (broker, peer, running):
        peer.send(sent)
        said = peer.expect(Disconnect)
        assert reason is None or said.reason == reason
        back = broker.accept()
        back.join()
        back.send(Publish(f"report/sensor/{TOPIC}", json.dumps(warm(1)).encode(), 1, packet_id=9))
        assert back.expect(Puback).packet_id == 9
        assert running.running
        assert "Traceback" not in running.errors()


def test_a_broker_that_closes_at_once_is_not_asked_in_a_loop(tmp_path: Path) -> None:
    with fake() as broker, gateway(tmp_path, rest=SETTINGS, outside=broker.url, start=False) as running:
        running.launch()
        levels = []
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            with contextlib.suppress(TimeoutError):
                peer = broker.accept(0.5)
                levels.append(peer.expect(Connect).level)
                peer.close()
        assert 3 <= len(levels) <= 8
        assert levels[:4:2] == [5, 5]
        assert levels[1] == 4, "one that says nothing to MQTT 5 may know 3.1.1"


def test_a_broker_that_knows_only_3_1_1_gets_it(tmp_path: Path) -> None:
    with fake() as broker, gateway(tmp_path, rest=SETTINGS, outside=broker.url, start=False) as running:
        running.launch()
        peer = broker.accept()
        assert peer.expect(Connect).level == 5
        peer.send(b"\x20\x02")
        time.sleep(0.05)  # in two pieces
        peer.send(b"\x00\x01")
        peer.close()
        peer = broker.accept()
        assert peer.join().level == 4
        running.wait()
        peer.send(
            b"\x32"
            + bytes((len(TOPIC) + 16 + 4 + 2,))
            + b"\0"
            + bytes((len(TOPIC) + 14,))
            + f"report/sensor/{TOPIC}".encode()
            + b"\0\1"
            + b"[]12"
        )
        assert peer.expect(Puback).packet_id == 1


def test_limits_that_lose_something_are_warned_of_once(tmp_path: Path) -> None:
    properties = {
        Property.SESSION_EXPIRY_INTERVAL: 60,
        Property.MAXIMUM_QOS: 0,
        Property.MAXIMUM_PACKET_SIZE: 5_000,
    }
    with with_fake(tmp_path, properties=properties) as (broker, peer, running):
        peer.close()
        back = broker.accept()
        back.join(properties)
        back.send(Publish(f"report/sensor/{TOPIC}", json.dumps(warm(1)).encode(), 1, packet_id=1))
        back.expect(Puback)
        text = running.errors()
        for sentence in (
            "keeps reports for an absent gateway for 60 s only, not 3,600 s",
            "takes QoS 0 only",
            "takes packets of at most 5,000 bytes",
        ):
            assert text.count(sentence) == 1
        assert all(packet.qos == 0 for each in (peer, back) for packet in each.heard if isinstance(packet, Publish))


@pytest.mark.parametrize("present", [True, False])
def test_what_was_not_acknowledged_is_sent_again(tmp_path: Path, present: bool) -> None:
    with with_fake(tmp_path) as (broker, peer, _):
        peer.send(Publish(f"report/sensor/{TOPIC}", json.dumps(warm(1)).encode(), 1, packet_id=1))
        first = peer.expect(Publish)
        while not first.topic.startswith("delta/"):
            first = peer.expect(Publish)
        peer.close()
        back = broker.accept()
        back.greet(present=present)
        found = back.serve(lambda packet: isinstance(packet, Publish) and packet.topic.startswith("delta/"))
        assert isinstance(found, Publish)
        assert found.payload == first.payload
        assert found.dup is present
        if present:
            assert found.packet_id == first.packet_id


def test_a_message_that_comes_backis_acknowledged_and_not_applied_again(tmp_path: Path) -> None:
    append = json.dumps([{"op": "add", "path": "/values/a/value/-", "value": 1}]).encode()
    with with_fake(tmp_path) as (broker, peer, _):
        start = json.dumps({"values": {"a": {"value": []}}}).encode()
        peer.send(Publish(f"report/sensor/{TOPIC}", start, 1, packet_id=1))
        peer.send(Publish(f"report/sensor/{TOPIC}", append, 1, packet_id=2))
        while peer.expect(Puback).packet_id != 2:
            pass
        peer.close()
        back = broker.accept()
        back.join(present=True)
        back.send(Publish(f"report/sensor/{TOPIC}", append, 1, dup=True, packet_id=2))
        assert back.expect(Puback).packet_id == 2
        back.send(Publish(f"report/sensor/{TOPIC}", append, 1, packet_id=3))
        assert back.expect(Puback).packet_id == 3
        deltas = [
            p
            for p in (*peer.heard, *back.heard)
            if isinstance(p, Publish) and p.topic == f"delta/{TOPIC}" and not p.dup
        ]
        while not [p for p in deltas if json.loads(p.payload)["version"] == 3]:
            deltas += [back.expect(Publish)]
            deltas = [p for p in deltas if p.topic == f"delta/{TOPIC}"]
        assert max(json.loads(p.payload)["version"] for p in deltas) == 3


@pytest.mark.parametrize(
    ("connack", "text"),
    [
        (Connack(False, Reason.NOT_AUTHORIZED), "refuses the gateway: not authorized"),
        (Connack(False, Reason.SUCCESS, {Property.RETAIN_AVAILABLE: 0}), "keeps no retained messages"),
        (Connack(False, Reason.SUCCESS, {Property.WILDCARD_SUBSCRIPTION_AVAILABLE: 0}), "no wildcards"),
    ],
)
def test_a_broker_of_no_use_ends_the_start(tmp_path: Path, connack: Connack, text: str) -> None:
    with fake() as broker, gateway(tmp_path, rest=SETTINGS, outside=broker.url, start=False) as running:
        running.launch()
        peer = broker.accept()
        peer.expect(Connect)
        peer.send(connack)
        assert running.process is not None
        assert running.process.wait(10) == 74
        assert text in running.errors()


# ---- other ways --------------------------------------------------------------------------------------------------------


def served(running: Gateway, port: int, clients: list[Client]) -> None:
    sensor = named(port, "sensor", clients)
    sensor.subscribe("snapshot/#")
    sensor.report("sensor/room", warm(1))
    sensor.wait(lambda: snapshots(sensor))
    assert running.stop() == 0


@pytest.mark.parametrize("way", ["wss", "mqtts", "ws", "unix"])
def test_tls_websockets_and_unix_sockets(tmp_path: Path, clients: list[Client], way: str) -> None:
    """The broker outside is our own one, in another gateway: it has every kind of listener."""
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
    authority = Authority(tmp_path)
    server, client = authority.issue("localhost"), authority.issue("gateway")
    path = tmp_path / "s.sock"
    place = f"unix://{path}" if way == "unix" else f"{way}://127.0.0.1:0" + ("/x" if way in ("ws", "wss") else "")
    tls = f'certificate = "{server.certificate}"\nkey = "{server.key}"\nca = "{authority.ca}"\nrequire_certificate = true\n'
    names = ("report", "request", "presence", "inbox", "snapshot", "delta", "value", "gateway", "replica")
    rules = "".join(
        f'[[topic]]\nfilter = "site/{name}/#"\nwrite = ["anonymous", "*"]\nread = ["anonymous", "*"]\n'
        for name in names
    )
    listener = f'[[listener]]\nurl = "{place}"\nanonymous = true\n' + (tls if way in ("mqtts", "wss") else "")
    with gateway(other, broker="anonymous = true", rest=f"{listener}{rules}") as broker:
        port = (
            int(Path(broker.folder / "gateway.out").read_text().rsplit(":", 1)[1].split("/")[0]) if way != "unix" else 0
        )
        target = place.replace("127.0.0.1:0", f"127.0.0.1:{port}")
        link = OPEN
        if way in ("mqtts", "wss"):
            link += f'ca = "{authority.ca}"\nserver_name = "localhost"\ncertificate = "{client.certificate}"\nkey = "{client.key}"\n'
        with gateway(own, top='topic_prefix = "site"', rest=NAMESPACE + link, outside=target) as running:
            sensor = named(broker.port, "sensor", clients)
            sensor.subscribe("site/snapshot/#")
            sensor.publish(f"site/report/sensor/{TOPIC}", warm(1))
            sensor.wait(lambda: sensor.heard)
            assert running.stop() == 0
        if way == "mqtts":
            for i, (wrong, text) in enumerate(
                (
                    (link.replace('server_name = "localhost"\n', 'server_name = "elsewhere"\n'), "is not trusted"),
                    (link.replace(f'ca = "{authority.ca}"\n', ""), "is not trusted"),
                    (link.replace(str(authority.ca), str(tmp_path / "none.pem")), "cannot be used for TLS"),
                )
            ):
                (tmp_path / str(i)).mkdir()
                with gateway(tmp_path / str(i), rest=NAMESPACE + wrong, outside=target, start=False) as running:
                    running.launch()
                    until(lambda text=text: text in running.errors())  # type: ignore[misc]
                    assert running.stop() == 0


def test_characters_with_a_meaning_of_their_own_are_escaped(
    tmp_path: Path, broker: Mosquitto, clients: list[Client]
) -> None:
    settings = SETTINGS + 'topic_escape = "."\n'
    with inside(tmp_path, settings, url=url(broker.port)) as running:
        client = named(broker.port, "sensor", clients)
        client.subscribe("#")
        client.publish("report/sensor/ctxt/home%2Elocal/sensor/a%2Eb", warm(1))
        client.wait(lambda: any(topic == "snapshot/ctxt/home%2Elocal/sensor/a%2Eb" for topic, *_ in client.heard))
        assert running.call(lambda service: "ctxt/home.local/sensor/a.b" in service.engine.objects)
        assert not [topic for topic, *_ in client.heard if "." in topic]


def test_files_are_read_by_nobody_else(tmp_path: Path) -> None:
    """A password that cannot be read is said with its file, not guessed."""
    link = f'[link]\nopen = true\nusername = "gateway"\npassword_file = "{tmp_path}/none"\n'
    with fake() as broker:
        made = Gateway(tmp_path, rest=NAMESPACE + link, outside=broker.url)
        with pytest.raises(ProgramError, match=f"{tmp_path}/none, the password for"):
            made.start()


def test_a_request_of_asked_topics_is_made_once(tmp_path: Path) -> None:
    with with_fake(tmp_path) as (_, peer, _running):
        asked = [
            one.topic_filter for packet in peer.heard if isinstance(packet, Subscribe) for one in packet.subscriptions
        ]
        assert len(asked) == len(set(asked))
        assert {"report/#", "request/#", "presence/#"} <= set(asked)
