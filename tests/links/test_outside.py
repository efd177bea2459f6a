"""A gateway beside a real mosquitto: what that keeps, forgets, and refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gateway.links import remote
from tests.inside import PASSWORD, Client, Inside, clients, inside
from tests.links.world import (
    ALLOW_ALL,
    OPEN,
    Proxy,
    deltas,
    eventually,
    joined_again,
    link_of,
    proxy,
    snapshots,
    wait_for,
    writable,
)
from tests.running import HOST, OWN_NAMESPACE, UNLIMITED, Gateway, gateway, mosquitto, need, usage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.running import Mosquitto

PERSISTENT = ALLOW_ALL + "persistence true\nautosave_interval 0\npersistence_location {}/\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    need("mosquitto", "mosquitto")
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(remote, "SETTLE", 0.05)


@contextmanager
def joined(folder: Path, port: int, link: str = "") -> Iterator[Inside]:
    """A gateway that has joined the broker on a port."""
    with inside(folder / "gateway", UNLIMITED + OPEN + link, url=f"mqtt://{HOST}:{port}") as running:
        yield running


@contextmanager
def beside(folder: Path, config: str = ALLOW_ALL, link: str = "") -> Iterator[tuple[Mosquitto, Proxy, Inside]]:
    """A broker, a gateway that has joined it, and the wire between the two."""
    with mosquitto(folder, config) as broker, proxy(broker.port) as wire, joined(folder, wire.port, link) as running:
        yield broker, wire, running


def value(number: Any) -> dict[str, Any]:
    return {"values": {"t": {"value": number}}}


def topic_of(path: str) -> str:
    return f"ctxt/home.local/sensor/{path}"


def retain(port: int, messages: dict[str, bytes]) -> None:
    """Leave messages with the broker."""
    with clients(port, "sensor") as (sensor,):
        for topic, payload in messages.items():
            sensor.publish(topic, payload, retain=True)


def snapshot(path: str, epoch: int) -> bytes:
    return json.dumps({"url": f"ctxt://home.local/{path}", "epoch": epoch, "version": 7, "data": value(7)}).encode()


def cut(running: Inside, wire: Proxy) -> None:
    """Cut the wire, and wait until the gateway has joined again."""
    before = link_of(running).counters.connections
    wire.cut()
    joined_again(running, before)


# What the broker keeps


def test_strays_of_our_namespaces_are_cleared_and_what_is_others_stays(tmp_path: Path) -> None:
    ours = ["snapshot/ctxt/home.local/sensor/gone", "value/ctxt/home.local/sensor/gone"]
    others = ["snapshot/ctxt/elsewhere.org/x", "snapshot/what/is/this", "other/topic"]
    with mosquitto(tmp_path, ALLOW_ALL) as broker:
        with joined(tmp_path, broker.port), clients(broker.port, "sensor") as (sensor,):
            sensor.report("sensor/held", value(1))
            sensor.subscribe("snapshot/#")
            sensor.wait(lambda: snapshots(sensor).get(topic_of("held")))
        retain(broker.port, {topic: snapshot("x", 5) for topic in ours + others})
        with clients(broker.port, "dash") as (dash,):
            dash.subscribe("#")
            dash.wait(lambda: len(dash.heard) >= 6)
            with joined(tmp_path, broker.port):
                dash.wait(lambda: {topic for topic, payload, _, _ in dash.heard if not payload} >= set(ours))
        with clients(broker.port, "dash") as (late,):
            late.subscribe("#")
            late.wait(lambda: {topic for topic, *_ in late.heard} >= {*others, f"snapshot/{topic_of('held')}"})
            assert not {topic for topic, *_ in late.heard} & set(ours)


def test_the_epoch_goes_above_what_the_broker_still_shows(tmp_path: Path) -> None:
    seen = (int(time.time()) + 1_000_000) * 256
    with mosquitto(tmp_path, ALLOW_ALL) as broker:
        retain(broker.port, {"snapshot/ctxt/elsewhere.org/x": snapshot("x", seen)})
        with joined(tmp_path, broker.port) as running, clients(broker.port, "sensor") as (sensor,):
            assert running.call(lambda service: service.epoch) > seen
            sensor.subscribe("snapshot/#")
            sensor.report("sensor/t", value(1))
            assert sensor.wait(lambda: snapshots(sensor).get(topic_of("t")))["epoch"] > seen


def test_an_absurd_epoch_is_not_followed_even_where_it_seems_to_be_our_own(tmp_path: Path) -> None:
    absurd = 2**52
    with mosquitto(tmp_path, ALLOW_ALL) as broker, proxy(broker.port) as wire:
        retain(broker.port, {"gateway/gateway1": b'{"status":"online","epoch":%d,"counter":1}' % absurd})
        with joined(tmp_path, wire.port) as running, clients(broker.port, "sensor") as (sensor,):
            assert running.call(lambda service: service.epoch) < absurd
            cut(running, wire)
            sensor.subscribe("snapshot/#")
            sensor.report("sensor/t", value(1))
            sensor.wait(lambda: snapshots(sensor).get(topic_of("t")))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_retained_report_is_not_applied_and_its_copy_is_cleared(tmp_path: Path, protocol: str) -> None:
    topic = f"report/sensor/{topic_of('t')}"
    with mosquitto(tmp_path, ALLOW_ALL) as broker:
        retain(broker.port, {topic: json.dumps(value(1)).encode()})
        with clients(broker.port, "dash", "sensor") as (dash, sensor):
            dash.subscribe("report/#", "snapshot/#")
            dash.wait(lambda: dash.heard)
            with joined(tmp_path, broker.port, f'protocol = "{protocol}"') as running:
                dash.wait(lambda: [each for each in dash.heard if each[:2] == (topic, b"")])
                wait_for(running, lambda _: not link_of(running)._clearing, "the clearing comes back")
                sensor.report("sensor/t", value(2))
                assert dash.wait(lambda: snapshots(dash).get(topic_of("t")))["version"] == 1
                assert link_of(running).counters.retained_reports == 1
        with clients(broker.port, "dash") as (late,):
            late.subscribe("report/#", "snapshot/#")
            late.wait(lambda: snapshots(late))
            assert topic not in {each[0] for each in late.heard}


def held_objects(sensor: Client, count: int = 20) -> set[str]:
    """Objects, and their topics, once the broker keeps the snapshots of all of them."""
    sensor.subscribe("snapshot/#")
    for number in range(count):
        sensor.report(f"sensor/o{number}", value(number))
    topics = {topic_of(f"o{number}") for number in range(count)}
    sensor.wait(lambda: snapshots(sensor).keys() >= topics)
    return topics


def test_a_broker_that_comes_back_blank_gets_every_snapshot_again(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path, ALLOW_ALL))
        wire = stack.enter_context(proxy(broker.port))
        running = stack.enter_context(joined(tmp_path, wire.port))
        with clients(broker.port, "sensor") as (sensor,):
            topics = held_objects(sensor)
        blank = stack.enter_context(mosquitto(tmp_path, ALLOW_ALL))
        wire.target = blank.port
        cut(running, wire)
        with clients(blank.port, "dash") as (dash,):
            dash.subscribe("snapshot/#", "gateway/#")
            dash.wait(lambda: snapshots(dash).keys() >= topics)
            dash.wait(lambda: [each for each in dash.heard if each[0] == "gateway/gateway1" and b"online" in each[1]])


def test_a_broker_that_comes_back_as_it_was_earlier_gets_every_snapshot_again(tmp_path: Path) -> None:
    state = tmp_path / "persistent"
    state.mkdir()
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path, PERSISTENT.format(state)))
        wire = stack.enter_context(proxy(broker.port))
        running = stack.enter_context(joined(tmp_path, wire.port))
        with clients(broker.port, "sensor") as (sensor,):
            topics = held_objects(sensor)
            wait_for(running, lambda service: link_of(running)._confirmed == service.counter, "the word is heard")
            os.kill(broker.pid, signal.SIGUSR1)
            eventually((state / "mosquitto.db").exists, "it is saved")
            for number in range(20):
                sensor.report(f"sensor/o{number}", value(100 + number))
            wait_for(running, lambda service: link_of(running)._confirmed == service.counter, "the word is heard")
            sensor.wait(lambda: all(snapshots(sensor)[topic]["version"] == 2 for topic in topics))
        broker.process.kill()
        broker.process.wait()
        earlier = stack.enter_context(mosquitto(tmp_path, PERSISTENT.format(state)))
        with clients(earlier.port, "dash") as (dash,):
            dash.subscribe("snapshot/#")
            dash.wait(lambda: snapshots(dash).keys() >= topics)
            assert {each["version"] for each in snapshots(dash).values()} == {1}
            wire.target = earlier.port
            cut(running, wire)
            dash.wait(lambda: all(snapshots(dash)[topic]["version"] == 2 for topic in topics))


def test_a_mere_lost_connection_publishes_nothing_again(tmp_path: Path) -> None:
    with beside(tmp_path) as (broker, wire, running), clients(broker.port, "sensor", "dash") as (sensor, dash):
        topics = held_objects(sensor)
        wait_for(running, lambda service: link_of(running)._confirmed == service.counter, "the word is heard")
        dash.subscribe("snapshot/#", "delta/#", "fence")
        dash.wait(lambda: snapshots(dash).keys() >= topics)
        before = len(dash.heard)
        for _ in range(3):
            cut(running, wire)
        sensor.report("sensor/fence", value(1))
        dash.wait(lambda: snapshots(dash).get(topic_of("fence")))
        assert {each[0].partition("/")[2] for each in dash.heard[before:]} == {topic_of("fence")}


def test_publishing_again_goes_on_where_a_cut_has_ended_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.AGAIN", 5)
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path, ALLOW_ALL))
        wire = stack.enter_context(proxy(broker.port))
        running = stack.enter_context(joined(tmp_path, wire.port))
        with clients(broker.port, "sensor") as (sensor,):
            topics = held_objects(sensor, 60)
        blank = stack.enter_context(mosquitto(tmp_path, ALLOW_ALL))
        wire.target = blank.port
        cut(running, wire)
        with clients(blank.port, "dash") as (dash,):
            dash.subscribe("snapshot/#")
            dash.wait(lambda: len(snapshots(dash)) >= 10)
            cut(running, wire)
            assert len(snapshots(dash)) < 60
            dash.wait(lambda: snapshots(dash).keys() >= topics)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_more_reports_than_the_broker_sends_at_once_wait_for_a_gateway_that_was_away(
    tmp_path: Path, protocol: str
) -> None:
    link = f'protocol = "{protocol}"'
    with mosquitto(tmp_path, ALLOW_ALL) as broker:
        with joined(tmp_path, broker.port, link):
            pass
        with clients(broker.port, "sensor", "dash") as (sensor, dash):
            dash.subscribe("delta/#")
            for number in range(1_500):
                sensor.paho.publish(f"report/sensor/{topic_of('t')}", json.dumps(value(number)).encode(), qos=1)
            sensor.report("sensor/fence", value(0))
            with joined(tmp_path, broker.port, link):
                found = dash.wait(lambda: len(heard := deltas(dash, topic_of("t"))) >= 1_500 and heard)
                values = [delta.get("merge", delta.get("value"))["values"]["t"]["value"] for delta in found]
                assert values == list(range(1_500))


def test_more_than_a_gateway_takes_is_refused_in_3_1_1_and_ends_nothing(tmp_path: Path) -> None:
    # Nothing in 3.1.1 tells the broker how much is too much, and what is not acknowledged would come again for ever.
    with (
        beside(tmp_path, link='protocol = "3.1.1"') as (broker, _, running),
        clients(broker.port, "sensor") as (sensor,),
    ):
        sensor.subscribe("inbox/sensor", "snapshot/#")
        sensor.report("sensor/t", b" " * 1_000_000)
        told = sensor.wait(lambda: [each for each in sensor.messages() if each.get("type") == "rejection"])
        assert told[0]["code"] == 413
        sensor.report("sensor/t", value(1))
        sensor.wait(lambda: snapshots(sensor))
        assert link_of(running).counters.connections == 1


# A wire that takes nothing


def test_a_stalled_wire_costs_no_acknowledged_report_no_order_and_little_memory(tmp_path: Path) -> None:
    with mosquitto(tmp_path, ALLOW_ALL) as broker, proxy(broker.port) as wire:
        link = "\n[link]\nopen = true\n"
        with (
            gateway(tmp_path, rest=OWN_NAMESPACE + UNLIMITED + link, outside=f"mqtt://{HOST}:{wire.port}") as running,
            clients(broker.port, "sensor", "dash", "dash") as (sensor, dash, witness),
        ):
            dash.subscribe("snapshot/#")
            sensor.report("sensor/t", value(-1))
            dash.wait(lambda: snapshots(dash))
            before = usage(running.pid).resident
            wire.stall()
            padding = "x" * 200
            for number in range(50_000):
                payload = json.dumps({"values": {"t": {"value": number}, "p": {"value": padding}}}).encode()
                info = sensor.paho.publish(f"report/sensor/{topic_of('t')}", payload, qos=1)
                if number % 1_000 == 999:
                    sensor.wait(lambda mid=info.mid: mid in sensor.reasons, 30)  # type: ignore[misc]  # bound now
            witness.subscribe("delta/#")
            wire.flow()
            last = dash.wait(
                lambda: (
                    (now := snapshots(dash)[topic_of("t")]) and now["data"]["values"]["t"]["value"] == 49_999 and now
                ),
                60,
            )
            assert last["version"] == 50_001
            values = [delta["merge"]["values"]["t"]["value"] for delta in deltas(witness, topic_of("t"))]
            assert values
            assert values == sorted(values)
            assert usage(running.pid).peak < before + 64 * 2**20


# Refusals, as whoever starts it sees them

PASSWORDS = "allow_anonymous false\npassword_file {}\n"


def password_file(folder: Path, password: str = PASSWORD) -> Path:
    """Passwords of a mosquitto for `gw`, `sensor` and `dash`."""
    program = need("mosquitto_passwd", "mosquitto")
    file = folder / f"passwords-{password[:3]}"
    file.touch(mode=0o600)
    for name in ("gw", "sensor", "dash"):
        subprocess.run([program, "-b", str(file), name, password], check=True, capture_output=True)
    return file


def named(folder: Path, password: str = PASSWORD) -> str:
    """How the gateway says who it is."""
    file = writable(folder / "link.password", password + "\n")
    return f'\n[link]\nusername = "gw"\npassword_file = "{file}"\n'


def ends(running: Gateway, timeout: float = 30.0) -> int:
    assert running.process is not None
    return running.process.wait(timeout)


def test_a_broker_that_is_away_is_waited_for_and_sigterm_ends_the_waiting(tmp_path: Path) -> None:
    with proxy(1) as nowhere:
        url = f"mqtt://{HOST}:{nowhere.port}"
        with gateway(tmp_path, outside=url, rest=OWN_NAMESPACE + OPEN, start=False) as running:
            running.launch()
            eventually(lambda: nowhere.connections >= 2, "it tries again")
            assert running.running
            assert running.stop(5) == 0
            running.launch()
            eventually(lambda: nowhere.connections >= 4, "it tries again")
            with mosquitto(tmp_path, ALLOW_ALL) as broker:
                nowhere.target = broker.port
                running.wait()
                assert running.stop() == 0


def test_a_wrong_password_ends_the_start_and_later_is_waited_out(tmp_path: Path) -> None:
    with (
        mosquitto(tmp_path, PASSWORDS.format(password_file(tmp_path))) as broker,
        mosquitto(tmp_path, PASSWORDS.format(password_file(tmp_path, "other"))) as stranger,
        proxy(stranger.port) as wire,
        gateway(
            tmp_path, outside=f"mqtt://{HOST}:{wire.port}", rest=OWN_NAMESPACE + named(tmp_path), start=False
        ) as running,
    ):
        running.launch()
        assert ends(running) == 74
        assert "it came as 'gw': check link.username and link.password_file" in running.errors()
        assert "Traceback" not in running.errors()
        wire.target = broker.port
        running.start()
        before = running.errors().count("check link.username")
        wire.target = stranger.port
        wire.cut()
        eventually(lambda: running.errors().count("check link.username") > before + 1, "it is refused and tries again")
        wire.target = broker.port
        with clients(broker.port, "sensor", "dash") as (sensor, dash):
            dash.subscribe("snapshot/#")
            sensor.report("sensor/t", value(1))
            dash.wait(lambda: snapshots(dash))
        assert running.stop() == 0


def test_an_open_broker_is_refused_unless_the_settings_allow_it(tmp_path: Path) -> None:
    with (
        mosquitto(tmp_path, ALLOW_ALL) as broker,
        gateway(tmp_path, outside=f"mqtt://{HOST}:{broker.port}", start=False) as running,
    ):
        running.launch()
        assert ends(running) == 74
        assert "lets clients without a name write what only the gateway may write" in running.errors()
        assert "link.open = true" in running.errors()
    with mosquitto(tmp_path, PASSWORDS.format(password_file(tmp_path))) as broker:
        url = f"mqtt://{HOST}:{broker.port}"
        with gateway(tmp_path, outside=url, rest=OWN_NAMESPACE + named(tmp_path)) as running:
            assert running.stop() == 0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_keeps_the_gateway_from_its_topics_is_named_with_the_topic(
    tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # mosquitto grants every subscription and then delivers nothing: only the message to itself shows it.
    monkeypatch.setattr(remote, "JOIN", 1.0)
    rules = writable(tmp_path / "acl", "user gw\ntopic readwrite gateway/#\ntopic write report/#\n")
    config = PASSWORDS.format(password_file(tmp_path)) + f"acl_file {rules}\n"
    link = named(tmp_path) + f'protocol = "{protocol}"\n'
    with mosquitto(tmp_path, config) as broker:
        wanted = inside(tmp_path / "gateway", link, url=f"mqtt://{HOST}:{broker.port}")
        with pytest.raises(remote.RefusedError, match="on replica/gateway1/mark: let 'gw' write to it and read it"):
            wanted.__enter__()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_of_two_gateways_with_one_identity_one_goes_on(tmp_path: Path, protocol: str) -> None:
    rest = OWN_NAMESPACE + OPEN + f'protocol = "{protocol}"\n'
    with mosquitto(tmp_path, ALLOW_ALL) as broker, ExitStack() as stack:
        url = f"mqtt://{HOST}:{broker.port}"
        both = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            both.append(stack.enter_context(gateway(tmp_path / name, outside=url, rest=rest, start=False)))
        both[0].start()
        both[1].launch()
        eventually(lambda: not (both[0].running and both[1].running), "one of them ends")
        assert both[0].running != both[1].running
        loser, winner = sorted(both, key=lambda each: each.running)
        assert ends(loser) == 7
        assert re.search("give each gateway its own id and number", loser.errors())
        winner.wait()
        with clients(broker.port, "sensor", "dash") as (sensor, dash):
            dash.subscribe("snapshot/#", "gateway/#")
            sensor.report("sensor/t", value(1))
            dash.wait(lambda: snapshots(dash))
            dash.wait(lambda: b'"online"' in [each[1] for each in dash.heard if each[0] == "gateway/gateway1"][-1])
        assert winner.stop() == 0
