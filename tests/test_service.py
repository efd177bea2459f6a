"""The whole way over real sockets: a report in, a snapshot and a delta out, refusals told, nothing lost over a restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import aiomqtt
import pytest

from gateway.objects import DataObject
from gateway.store import StoreError
from tests.inside import PASSWORD, Client, Inside, clients, inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.service import Service
    from gateway.store import Batch

TEMPERATURE = {"values": {"temperature": {"value": 21.5}}}
TOPIC = "ctxt/home.local/sensor/room"


def warmer(value: Any) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value}}}


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [0, 1, 2])
def test_a_report_becomes_a_snapshot_and_deltas(tmp_path: Path, version: int, qos: int) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor", "dash", version=version) as (sensor, dash):
        assert dash.subscribe("snapshot/#", "delta/#", qos=qos) == [qos, qos]
        for value in (20, 21, 22):
            sensor.report("sensor/room", warmer(value), qos=qos)
        dash.wait(lambda: sum(topic == "delta/" + TOPIC for topic, *_ in dash.heard) == 3)
        deltas = [json.loads(payload) for topic, payload, *_ in dash.heard if topic == "delta/" + TOPIC]
        assert [delta["version"] for delta in deltas] == [1, 2, 3]
        assert deltas[0]["value"] == warmer(20)
        assert deltas[2]["merge"] == warmer(22)
        dash.wait(lambda: any(m.get("version") == 3 and "data" in m for m in dash.messages()))
        assert {heard_qos for topic, _, heard_qos, _ in dash.heard if topic.startswith("delta/")} == {min(qos, 1)}
        with clients(gateway.port, "dash", version=version) as (late,):
            late.subscribe("snapshot/#", qos=qos)
            late.wait(lambda: late.heard)
            topic, payload, _, retained = late.heard[0]
            assert (topic, retained) == ("snapshot/" + TOPIC, True)
            assert json.loads(payload)["data"] == warmer(22)


def test_a_refusal_is_told_in_the_acknowledgement_and_in_the_inbox(tmp_path: Path) -> None:
    settings = '[[namespace]]\nmatch = "ctxt://home.local/**"\nreport = ["*"]\nobserve = ["*"]\n'
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor", "mallory") as (sensor, mallory):
        mallory.subscribe("inbox/mallory")
        assert sensor.report("room", TEMPERATURE) == (0, "")
        reason, text = mallory.report("room", warmer(99))
        assert reason == 0x87
        assert "'sensor'" in text
        mallory.wait(mallory.messages)
        (message,) = mallory.messages()
        assert (message["type"], message["code"], message["resource"]) == ("rejection", 403, "ctxt://home.local/room")
        reason, text = sensor.report("room", {"values": {"temperature": {"unit": 7}}})
        assert reason == 0x99
        assert "/values/temperature/unit" in text
        assert mallory.request("read", {"resource": "ctxt://home.local/room"})["body"]["data"] == TEMPERATURE


BAD = {
    "empty": (b"", 0x99),
    "not JSON": (b"21.5 degrees", 0x99),
    "a number": (b"21.5", 0x99),
    "NaN": (b'{"values":{"t":{"value":NaN}}}', 0x99),
    "Infinity": (b'{"values":{"t":{"value":-Infinity}}}', 0x99),
    "invalid UTF-8": (b'{"values":{"t":{"value":"\xff"}}}', 0x99),
    "a lone surrogate": (b'{"values":{"t":{"value":"\\udc00"}}}', 0x99),
    "trailing bytes": (b"{} {}", 0x99),
    "depth 1,000": (b'{"a":' * 1000 + b"1" + b"}" * 1000, 0x97),
    "depth 30,000": (b"[" * 30_000 + b"]" * 30_000, 0x97),
    "64 KiB and a byte": (b'{"values":{"t":{"value":"' + b"x" * (65_536 - 28) + b'"}}}', 0x97),
    "a failing test": (b'[{"op":"test","path":"/values/temperature/value","value":true}]', 0x83),
    "an unknown operation": (b'[{"op":"fly"}]', 0x83),
    "a broken schema": (b'{"values":{"temperature":{"value":{"a":{}}}}}', 0x99),
}


def test_bad_reports_change_nothing_and_good_ones_go_on(tmp_path: Path) -> None:
    with (
        inside(tmp_path, "[limits]\nrejection_burst = 1000\n") as gateway,
        clients(gateway.port, "sensor") as (sensor,),
    ):
        sensor.report("sensor/room", TEMPERATURE)
        for name, (payload, reason) in BAD.items():
            assert len(payload) != 65_536, name
            assert sensor.report("sensor/room", payload)[0] == reason, name
        assert sensor.report("sensor/room", b'{"values":{"temperature":{"value":1,"value":2}}}') == (0, "")
        snapshot = sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]
        assert (snapshot["version"], snapshot["data"]) == (2, warmer(2))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("ctxt/Home.local/sensor/room", 0x99),
        ("ctxt/home.local/sensor/a b", 0x99),
        ("ctxt/home.local/sensor//x", 0x99),
        ("ctxt/home.local/sensor/%7e", 0x99),
        ("ctxt/home.local/sensor/%2e%2e/x", 0x99),
        ("ctxt/home.local/sensor/children/x", 0x99),
        ("nowhere/home.local/sensor/room", 0x87),
        ("ctxt", 0x99),
    ],
)
def test_other_spellings_are_refused_and_make_no_second_object(tmp_path: Path, path: str, reason: int) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        assert sensor.publish("report/sensor/" + path, TEMPERATURE)[0] == reason
        assert sensor.request("discover", {})["body"]["total"] == 0


def test_nobody_speaks_in_anothers_name(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor", "mallory") as (sensor, mallory):
        sensor.report("sensor/room", TEMPERATURE)
        for topic in (
            "report/sensor/" + TOPIC,
            "request/sensor",
            "presence/sensor",
            "snapshot/" + TOPIC,
            "delta/" + TOPIC,
            "value/" + TOPIC,
            "inbox/sensor",
            "gateway/gateway1",
            "replica/gateway1/x",
            "open/sea",
        ):
            assert mallory.publish(topic, warmer(99))[0] == 0x87, topic
        for topic_filter in ("inbox/sensor", "report/#", "request/#", "presence/#", "open/sea"):
            assert mallory.subscribe(topic_filter)[0] >= 0x80, topic_filter
        assert sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]["data"] == TEMPERATURE


def test_a_closed_namespace_is_read_by_its_reporter_only(tmp_path: Path) -> None:
    settings = '[[namespace]]\nmatch = "ctxt://home.local/{client}/**"\nreport = ["*"]\nobserve = ["dash"]\n'
    with (
        inside(tmp_path, settings) as gateway,
        clients(gateway.port, "sensor", "dash", "mallory") as (sensor, dash, mallory),
    ):
        for client in (sensor, dash, mallory):
            client.subscribe("#")
        sensor.report("sensor/room", TEMPERATURE)
        dash.wait(lambda: any(topic == "delta/" + TOPIC for topic, *_ in dash.heard))
        sensor.wait(lambda: any(topic == "delta/" + TOPIC for topic, *_ in sensor.heard))
        mallory.subscribe("snapshot/#")
        time.sleep(0.3)
        assert not [topic for topic, *_ in mallory.heard if TOPIC in topic]
        answer = mallory.request("read", {"resource": "ctxt://home.local/sensor/room"})
        missing = mallory.request("read", {"resource": "ctxt://home.local/sensor/other"}, "2")
        assert answer["code"] == missing["code"] == 403
        assert mallory.request("discover", {}, "3")["body"]["total"] == 0


def test_a_retained_report_is_refused(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        reason, text = sensor.report("sensor/room", TEMPERATURE, retain=True)
        assert reason == 0x99
        assert "RETAIN" in text
        assert sensor.request("discover", {})["body"]["total"] == 0


def test_an_id_property_de_duplicates_across_sessions_and_restarts(tmp_path: Path) -> None:
    patch = [{"op": "add", "path": "/values/log", "value": {"value": [1]}}]
    more = [{"op": "add", "path": "/values/log/value/-", "value": 2}]
    with inside(tmp_path) as gateway:
        with clients(gateway.port, "sensor") as (sensor,):
            sensor.report("sensor/room", {"values": {}})
            sensor.report("sensor/room", patch)
            assert sensor.report("sensor/room", more, user=[("id", "one")]) == (0, "")
        with clients(gateway.port, "sensor") as (sensor,):
            assert sensor.report("sensor/room", more, user=[("id", "one")]) == (0, "")
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        assert sensor.report("sensor/room", more, user=[("id", "one")]) == (0, "")
        data = sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]["data"]
        assert data["values"]["log"]["value"] == [1, 2]


def test_a_restart_gives_everything_back_with_a_larger_epoch(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        for value in range(5):
            sensor.report("sensor/room", warmer(value))
        sensor.report("sensor/gone", TEMPERATURE)
        sensor.request("delete", {"resource": "ctxt://home.local/sensor/gone"})
        before = sensor.request("read", {"resource": "ctxt://home.local/sensor/room"}, "2")["body"]
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        after = sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]
        assert after["epoch"] > before["epoch"]
        assert {**after, "epoch": 0} == {**before, "epoch": 0}
        assert sensor.report("sensor/gone", TEMPERATURE)[0] == 0x83
        sensor.subscribe("snapshot/#")
        sensor.wait(lambda: any(m.get("deleted") and m["version"] == 2 for m in sensor.messages()))


def test_a_wiped_and_a_restored_state_folder_never_go_back(tmp_path: Path) -> None:
    epochs = []
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.report("sensor/room", TEMPERATURE)
        epochs.append(sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]["epoch"])
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.report("sensor/room", warmer(2))
        epochs.append(sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]["epoch"])
    shutil.rmtree(tmp_path / "state")
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.report("sensor/room", warmer(3))
        epochs.append(sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]["epoch"])
    shutil.rmtree(tmp_path / "state")
    shutil.copytree(tmp_path / "copy", tmp_path / "state")
    time.sleep(1)
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        snapshot = sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]
        assert snapshot["data"] == TEMPERATURE
        epochs.append(snapshot["epoch"])
    assert epochs == sorted(set(epochs))


def test_presence_and_a_lost_connection_make_disconnected_and_life_makes_live(tmp_path: Path) -> None:
    with (
        inside(tmp_path, '[timing]\noffline_grace = "300ms"\n') as gateway,
        clients(gateway.port, "dash") as (dash,),
        clients(gateway.port, "sensor") as (sensor,),
    ):
        sensor.report("sensor/room", TEMPERATURE)
        dash.subscribe("delta/#")
        time.sleep(0.4)
        sensor.drop()
        dash.wait(lambda: any(m.get("status") == "disconnected" for m in dash.messages()))
        with clients(gateway.port, "sensor") as (sensor,):
            dash.wait(lambda: any(m.get("status") == "live" for m in dash.messages()))
            sensor.publish("presence/sensor", b"offline")
            dash.wait(lambda: sum(m.get("status") == "disconnected" for m in dash.messages()) == 2)
            sensor.publish("presence/sensor", b"online")
            dash.wait(lambda: sum(m.get("status") == "live" for m in dash.messages()) == 2)
            before = len(dash.heard)
        time.sleep(0.6)
        assert len(dash.heard) == before


def test_an_object_becomes_stale_by_its_namespace(tmp_path: Path) -> None:
    settings = '[[namespace]]\nmatch = "ctxt://home.local/{client}/**"\nreport = ["*"]\nobserve = ["*"]\nstale_after = "500ms"\n'
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        dash.subscribe("delta/#")
        sensor.report("sensor/room", TEMPERATURE)
        dash.wait(lambda: any(m.get("status") == "stale" for m in dash.messages()))
        sensor.report("sensor/room", TEMPERATURE)
        dash.wait(lambda: any(m.get("status") == "live" and "created" not in m for m in dash.messages()))


def test_the_value_view_is_retained_and_flat(tmp_path: Path) -> None:
    settings = (
        '[[namespace]]\nmatch = "ctxt://home.local/{client}/**"\nreport = ["*"]\nobserve = ["*"]\nvalue_view = true\n'
    )
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        sensor.report("sensor/room", TEMPERATURE)
        dash.subscribe("value/#")
        dash.wait(lambda: dash.heard)
        assert json.loads(dash.heard[0][1])["values.temperature.value"] == 21.5


def test_the_gateway_announces_itself_to_everyone(tmp_path: Path) -> None:
    with inside(tmp_path, "[broker]\nanonymous = true\n") as gateway:
        nobody = Client(gateway.port, None)
        nobody.subscribe("gateway/+")
        nobody.wait(lambda: nobody.heard)
        announcement = json.loads(nobody.heard[0][1])
        assert announcement["status"] == "online"
        assert announcement["patterns"] == ["ctxt://home.local/{client}/**"]
        assert nobody.subscribe("inbox/anonymous")[0] >= 0x80
        nobody.close()


def test_topic_rules_open_other_topics(tmp_path: Path) -> None:
    settings = '[[topic]]\nfilter = "lamp/{client}/#"\nwrite = ["*"]\nread = ["dash"]\n'
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        assert dash.subscribe("lamp/#") == [1]
        assert sensor.publish("lamp/sensor/set", b"on")[0] in (0, 0x10)
        assert sensor.publish("lamp/dash/set", b"on")[0] == 0x87
        assert dash.publish("lamp/dash/set", b"on", retain=True)[0] == 0
        dash.wait(lambda: dash.heard)
        assert [topic for topic, *_ in dash.heard] == ["lamp/dash/set"]


def test_a_rule_opens_topics_that_begin_with_a_dollar_sign_to_filters_that_do(tmp_path: Path) -> None:
    settings = '[[topic]]\nfilter = "$aws/#"\nwrite = ["*"]\nread = ["dash"]\n'
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor", "dash", "dash") as (sensor, dash, wide):
        assert dash.subscribe("$aws/#") == [1]
        wide.subscribe("#", "+/things/#")
        assert sensor.publish("$aws/things/1", b"on", retain=True)[0] == 0
        assert sensor.publish("$other/things/1", b"on")[0] == 0x87
        assert sensor.publish("$SYS/broker/version", b"on")[0] == 0x87
        sensor.report("sensor/room", TEMPERATURE)
        dash.wait(lambda: dash.heard)
        wide.wait(lambda: any(topic == "snapshot/" + TOPIC for topic, *_ in wide.heard))
        assert [topic for topic, *_ in dash.heard] == ["$aws/things/1"]
        assert not any(topic.startswith("$") for topic, *_ in wide.heard)
        with clients(gateway.port, "dash") as (late,):
            late.subscribe("$aws/+/1")
            late.wait(lambda: [heard for heard in late.heard if heard[3]])


def test_a_prefix_goes_before_every_topic(tmp_path: Path) -> None:
    with (
        inside(tmp_path, 'topic_prefix = "site/one"\n') as gateway,
        clients(gateway.port, "sensor", "dash") as (sensor, dash),
    ):
        dash.subscribe("site/one/delta/#", "site/one/snapshot/#")
        assert sensor.report("sensor/room", TEMPERATURE)[0] == 0x87
        assert sensor.publish("site/one/report/sensor/" + TOPIC, TEMPERATURE)[0] == 0
        dash.wait(lambda: len(dash.heard) == 2)
        assert {topic for topic, *_ in dash.heard} == {"site/one/delta/" + TOPIC, "site/one/snapshot/" + TOPIC}


def test_ten_thousand_bad_reports_in_a_burst_delay_nobody_else(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "mallory", "sensor") as (mallory, sensor):
        mallory.subscribe("inbox/mallory")
        for _ in range(10_000):
            mallory.paho.publish("report/mallory/ctxt/home.local/mallory/x", b"bad", qos=0)
        for value in range(20):
            assert sensor.report("sensor/room", warmer(value)) == (0, "")
        deadline = time.monotonic() + 30
        while (
            gateway.call(lambda service: service.engine.counters.refused[400]) < 10_000 and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        assert gateway.call(lambda service: service.engine.counters.refused[400]) == 10_000
        assert len(mallory.messages()) < 200


def test_power_durability_commits_in_a_thread_and_keeps_the_order(tmp_path: Path) -> None:
    with (
        inside(tmp_path, 'durability = "power"\n') as gateway,
        clients(gateway.port, "sensor", "dash") as (sensor, dash),
    ):
        dash.subscribe("delta/#")
        for value in range(100):
            sensor.paho.publish("report/sensor/" + TOPIC, json.dumps(warmer(value)), qos=1)
        dash.wait(lambda: len(dash.heard) == 100)
        assert [m["version"] for m in dash.messages()] == list(range(1, 101))


def test_a_commit_that_fails_stops_the_gateway_and_shows_nothing(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        dash.subscribe("delta/#")
        sensor.report("sensor/room", TEMPERATURE)
        dash.wait(lambda: dash.heard)
        gateway.call(lambda service: service._store._db.execute("PRAGMA query_only = ON"))
        sensor.paho.publish("report/sensor/" + TOPIC, json.dumps(warmer(2)), qos=1)
        deadline = time.monotonic() + 10
        while (
            not gateway.call(lambda service: service.failed is not None and service.failed.done())
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        error = gateway.call(lambda service: service.failed and service.failed.exception())
        assert isinstance(error, StoreError)
        assert "cannot write" in str(error)
        time.sleep(0.3)
        assert len(dash.heard) == 1


def test_aiomqtt_reports_and_observes(tmp_path: Path) -> None:
    async def run(port: int) -> list[dict[str, Any]]:
        async with (
            aiomqtt.Client("127.0.0.1", port, username="dash", password=PASSWORD) as dash,
            aiomqtt.Client("127.0.0.1", port, username="sensor", password=PASSWORD) as sensor,
        ):
            await dash.subscribe("delta/#", qos=2)
            for qos in (0, 1, 2):
                await sensor.publish("report/sensor/" + TOPIC, json.dumps(warmer(qos)), qos=qos)
            heard = []
            async with asyncio.timeout(10):
                async for message in dash.messages:
                    assert isinstance(message.payload, bytes)
                    heard.append(json.loads(message.payload))
                    if len(heard) == 3:
                        return heard
        return []

    with inside(tmp_path) as gateway:
        assert [delta["version"] for delta in asyncio.run(run(gateway.port))] == [1, 2, 3]


@pytest.mark.skipif(
    not shutil.which("mosquitto_pub"), reason="mosquitto_pub is not there: apt install mosquitto-clients"
)
def test_mosquitto_pub_and_sub_report_and_observe(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:
        port = str(gateway.port)
        sub = subprocess.Popen(
            [
                "mosquitto_sub",
                "-p",
                port,
                "-u",
                "dash",
                "-P",
                PASSWORD,
                "-q",
                "1",
                "-C",
                "2",
                "-W",
                "10",
                "-t",
                "snapshot/#",
                "-t",
                "delta/#",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        time.sleep(0.5)
        for qos in "012":
            subprocess.run(
                [
                    "mosquitto_pub",
                    "-p",
                    port,
                    "-u",
                    "sensor",
                    "-P",
                    PASSWORD,
                    "-q",
                    qos,
                    "-t",
                    "report/sensor/" + TOPIC,
                    "-m",
                    json.dumps(TEMPERATURE),
                ],
                check=True,
            )
        out, _ = sub.communicate(timeout=15)
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["version"] for line in lines] == [1, 1]


def test_a_removed_client_is_disconnected(tmp_path: Path) -> None:
    from gateway.credentials import Credentials

    with inside(tmp_path) as gateway, clients(gateway.port, "mallory") as (mallory,):
        gone: list[int] = []
        mallory.paho.on_disconnect = lambda *arguments: gone.append(1)
        known = Credentials(gateway.state / "clients.db")
        known.remove("mallory")
        known.close()
        deadline = time.monotonic() + 10
        while not gone and time.monotonic() < deadline:
            time.sleep(0.05)
        assert gone


def test_a_port_that_is_taken_is_told_clearly(tmp_path: Path) -> None:
    from gateway.links.link import LinkError
    from gateway.service import build
    from gateway.settings import load

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        async def run() -> None:
            service = build(
                load(None, {"CTXT_STATE_DIR": str(tmp_path / "s"), "CTXT_BROKER__URL": f"embedded://127.0.0.1:{port}"})
            )
            try:
                await service.start()
            finally:
                await service.stop()

        with pytest.raises(LinkError, match=f"port {port}"):
            asyncio.run(run())


# ---- what attacks have found ---------------------------------------------------------------------------------------------


def _slow(gateway: Inside, seconds: float) -> None:
    """Make the disk slow: each commit takes so long, in the thread."""

    def make(service: Service) -> None:
        commit = service._store.commit

        def slowly(batch: Batch) -> None:
            time.sleep(seconds)
            commit(batch)

        service._store.commit = slowly  # type: ignore[method-assign]

    gateway.call(make)


@contextlib.contextmanager
def _flood(sensor: Client) -> Iterator[None]:
    """Reports without a pause, each with another value."""
    done = threading.Event()

    def flood() -> None:
        value = 0
        while not done.is_set():
            value += 1
            sensor.paho.publish("report/sensor/" + TOPIC, json.dumps(warmer(value)), qos=0)
            time.sleep(0.002)

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_long_topics_are_not_kept(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "mallory") as (mallory,):
        for i in range(20):
            assert mallory.publish(f"report/mallory/{i}/" + "x" * 60_000, b"{}")[0] >= 0x80
        assert gateway.call(lambda service: sum(map(len, service._doors))) < 10_000


def test_what_was_refused_for_its_rate_may_come_again_under_its_id(tmp_path: Path) -> None:
    settings = "[limits]\nreports_per_second = 1\nreport_burst = 2\n"
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor") as (sensor,):
        assert sensor.report("sensor/room", warmer(1))[0] == 0
        for attempt in range(5):
            reason, _ = sensor.report("sensor/room", warmer(2 + attempt), user=[("id", f"id{attempt}")])
            if reason == 0x97:
                break
        else:
            raise AssertionError("nothing was refused for its rate")
        time.sleep(1.2)
        assert sensor.report("sensor/room", warmer(9), user=[("id", f"id{attempt}")]) == (0, "")
        assert sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})["body"]["data"] == warmer(9)


def test_a_request_with_an_id_property_is_answered_each_time(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "dash") as (dash,):
        dash.subscribe("inbox/dash")
        for number in (1, 2):
            dash.publish("request/dash", {"id": "a", "type": "discover"}, user=[("id", "same")])
            dash.wait(lambda number=number: len(dash.messages()) == number)  # type: ignore[misc]


def test_the_rejection_of_a_retained_report_names_the_url(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.subscribe("inbox/sensor")
        sensor.report("sensor/room", TEMPERATURE, retain=True)
        sensor.wait(sensor.messages)
        assert sensor.messages()[0]["resource"] == "ctxt://home.local/sensor/room"


def test_the_redelivery_rings_of_one_client_are_bounded_also_over_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.service.RINGS", 4, raising=False)

    def rings(gateway: Inside) -> int:
        return int(gateway.call(lambda service: sum(client == "sensor" for client, _ in service._rings)))

    with inside(tmp_path) as gateway:
        with clients(gateway.port, "dash") as (dash,):
            dash.report("dash/x", TEMPERATURE)
        for value in range(10):
            with clients(gateway.port, "sensor") as (sensor,):
                assert sensor.report("sensor/room", warmer(value))[0] == 0
        assert rings(gateway) == 4
        assert gateway.call(lambda service: any(client == "dash" for client, _ in service._rings))
    with inside(tmp_path) as gateway:
        assert rings(gateway) == 4
        with clients(gateway.port, "sensor") as (sensor,):
            assert sensor.report("sensor/room", warmer(99))[0] == 0
        assert rings(gateway) == 4


def test_snapshots_go_out_under_load_on_a_slow_disk(tmp_path: Path) -> None:
    with (
        inside(tmp_path, 'durability = "power"\n') as gateway,
        clients(gateway.port, "sensor", "dash") as (sensor, dash),
    ):
        _slow(gateway, 0.05)
        sensor.report("sensor/room", TEMPERATURE)
        dash.subscribe("snapshot/#")
        with _flood(sensor):
            dash.wait(lambda: len(dash.heard) > 5)


def test_time_passes_under_load_on_a_slow_disk(tmp_path: Path) -> None:
    settings = (
        'durability = "power"\n[[namespace]]\nmatch = "ctxt://home.local/{client}/**"\n'
        'report = ["*"]\nobserve = ["*"]\nstale_after = "500ms"\n'
    )
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        _slow(gateway, 0.05)
        sensor.report("sensor/other", TEMPERATURE)
        dash.subscribe("delta/ctxt/home.local/sensor/other")
        with _flood(sensor):
            dash.wait(lambda: any(m.get("status") == "stale" for m in dash.messages()))


def test_it_stops_under_load_on_a_slow_disk(tmp_path: Path) -> None:
    gateway = Inside(tmp_path, 'durability = "power"\n', ("sensor",))
    try:
        with clients(gateway.port, "sensor") as (sensor,):
            _slow(gateway, 0.05)
            with _flood(sensor):
                time.sleep(0.5)
                gateway.stop()
    finally:
        if gateway._thread.is_alive():
            gateway.stop()
    assert gateway.problem is None


def test_an_error_of_our_own_stops_the_gateway_before_anything_is_shown(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        sensor.report("sensor/room", TEMPERATURE)
        dash.subscribe("delta/#")

        def sabotage(service: Service) -> None:
            report = service.engine.report

            def broken(*given: Any) -> None:
                report(*given)
                raise KeyError("a mistake of ours")

            service.engine.report = broken  # type: ignore[method-assign, assignment]

        gateway.call(sabotage)
        sensor.paho.publish("report/sensor/" + TOPIC, json.dumps(warmer(2)), qos=1)
        error = _failure(gateway)
        assert isinstance(error, KeyError)
        time.sleep(0.2)
        assert not dash.heard


def test_an_error_of_our_own_in_the_commits_thread_stops_the_gateway(tmp_path: Path) -> None:
    with inside(tmp_path, 'durability = "power"\n') as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.report("sensor/room", TEMPERATURE)

        def sabotage(service: Service) -> None:
            def broken(batch: Batch) -> None:
                raise TypeError("a mistake of ours")

            service._store.commit = broken  # type: ignore[method-assign]

        gateway.call(sabotage)
        sensor.paho.publish("report/sensor/" + TOPIC, json.dumps(warmer(2)), qos=1)
        assert isinstance(_failure(gateway), TypeError)


def _failure(gateway: Inside) -> BaseException | None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if gateway.call(lambda service: service.failed is not None and service.failed.done()):
            break
        time.sleep(0.02)
    found: BaseException | None = gateway.call(
        lambda service: service.failed.exception() if service.failed is not None and service.failed.done() else None
    )
    return found


def test_a_report_taken_in_before_the_loss_is_no_life_after_it(tmp_path: Path) -> None:
    with (
        inside(tmp_path, 'durability = "power"\n[timing]\noffline_grace = "300ms"\n') as gateway,
        clients(gateway.port, "dash") as (dash,),
        clients(gateway.port, "sensor") as (sensor,),
    ):
        sensor.report("sensor/room", TEMPERATURE)
        dash.subscribe("delta/#")
        _slow(gateway, 0.3)
        for value in (1, 2, 3):
            sensor.paho.publish("report/sensor/" + TOPIC, json.dumps(warmer(value)), qos=0)
            time.sleep(0.05)
        sensor.drop()
        dash.wait(lambda: any(m.get("status") == "disconnected" for m in dash.messages()))
        merges = [m["version"] for m in dash.messages() if "merge" in m]
        status = [m["version"] for m in dash.messages() if m.get("status") == "disconnected"]
        assert max(merges) < min(status)


def test_long_searches_take_turns_one_slice_at_a_time(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:
        looked: list[int] = []

        def search(number: int) -> Iterator[None]:
            for _ in range(3):
                looked.append(number)
                yield None

        def start(service: Service) -> int:
            service._work.extend(search(number) for number in range(3))
            service._step()
            return len(looked)

        assert gateway.call(start) == 1
        deadline = time.monotonic() + 10
        while len(looked) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert looked == [0, 1, 2] * 3


def test_a_subscription_that_matches_little_does_not_search_everything_at_once(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:

        def steps(service: Service) -> int:
            facts = {"schema": None, "reporter": "r", "name": "x", "version": 1, "created": 0, "modified": 0}
            for i in range(1_000):
                service.engine.objects.add(DataObject(topic=f"ctxt/home.local/r/{i}", text=b"{}", **facts))  # type: ignore[arg-type]
            found = list(service.retained("snapshot/+/+/+/none"))
            assert not any(payload for _, payload, _ in found)
            return len(found)

        assert gateway.call(steps) >= 20


def test_the_redelivery_ring_of_a_silent_session_is_forgotten_here_and_in_the_store(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:
        with clients(gateway.port, "sensor") as (sensor,):
            sensor.report("sensor/room", warmer(1))
        with clients(gateway.port, "dash") as (dash,):
            dash.report("dash/room", warmer(1))
            other, key = sorted(gateway.call(lambda service: list(service._rings)))  # dash, sensor

            def forget(service: Service) -> None:
                service._rings[key].used -= 400 * 86_400
                service._forget_silent(service._clock())

            gateway.call(forget)
            assert gateway.call(lambda service: list(service._rings)) == [other]
            dash.report("dash/room", warmer(2))
    with inside(tmp_path) as gateway:
        assert gateway.call(lambda service: list(service._rings)) == [other]
