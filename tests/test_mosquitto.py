"""mosquitto with the shipped configuration beside a gateway: what it lets pass, judged by what is delivered; and the warnings."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from gateway.data import folder
from gateway.links.mosquitto import warnings
from tests.inside import PASSWORD, Client
from tests.running import Gateway, free_port, gateway, need, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("gateway", "sensor", "mallory", "dashboard")
OBJECT = "ctxt/home.local/sensor/room"


def shipped(tmp_path: Path, port: int, web: int) -> Path:
    """The shipped files, with other ports and other folders."""
    (tmp_path / "ctxt").mkdir()
    for name, place in (("ctxt.conf", "ctxt.conf"), ("ctxt.acl", "ctxt/acl")):
        text = (folder("config") / "mosquitto" / name).read_text()
        for old, new in (("1883", str(port)), ("9001", str(web)), ("/etc/mosquitto", str(tmp_path))):
            text = text.replace(old, new)
        (tmp_path / place).write_text(text)
    own = f"persistence true\npersistence_location {tmp_path}/\n"
    path = tmp_path / "mosquitto.conf"
    path.write_text(own + (tmp_path / "ctxt.conf").read_text())
    return path


@contextmanager
def site(tmp_path: Path) -> Iterator[tuple[int, Gateway]]:
    """Mosquitto as shipped, and a gateway that has joined it: mosquitto's port, and the gateway."""
    program, passwords = need("mosquitto", "mosquitto"), need("mosquitto_passwd", "mosquitto")
    port = free_port()
    path = shipped(tmp_path, port, free_port())
    file = tmp_path / "ctxt/passwd"
    file.touch()
    for name in NAMES:
        subprocess.run([passwords, "-b", str(file), name, PASSWORD], check=True, capture_output=True)
    (tmp_path / "link.password").write_text(PASSWORD + "\n")
    if os.geteuid() == 0:
        path.write_text("user root\n" + path.read_text())
    with (tmp_path / "mosquitto.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", str(path)], stdout=log, stderr=log)
    link = f"""
[[namespace]]
match = "ctxt://home.local/{{client}}/**"
report = ["*"]
observe = ["*"]
[link]
username = "gateway"
password_file = "{tmp_path}/link.password"
broker_config = "{path}"
"""
    try:
        wait_for_port(port, process, 10)
        with gateway(tmp_path, rest=link, outside=f"mqtt://127.0.0.1:{port}") as running:
            yield port, running
            assert running.stop() == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    made: list[Client] = []
    yield made
    for client in made:
        client.close()


def value(payload: bytes) -> object:
    return json.loads(payload)["data"]["values"]["t"]["value"]


def test_a_site_with_the_shipped_configuration(tmp_path: Path, clients: list[Client]) -> None:
    with site(tmp_path) as (port, running):
        sensor, mallory, dashboard = (Client(port, name) for name in NAMES[1:])
        clients += [sensor, mallory, dashboard]
        dashboard.subscribe("snapshot/#", "delta/#", "gateway/+", "report/#", "inbox/#", "request/#")
        sensor.subscribe("inbox/sensor", "inbox/sensor/#")
        sensor.publish(f"report/sensor/{OBJECT}", b'{"values":{"t":{"value":1}}}')
        dashboard.wait(lambda: any(topic == f"snapshot/{OBJECT}" for topic, *_ in dashboard.heard))

        # In another's name, and where only the gateway writes: mosquitto passes on nothing of it.
        forged = b'{"values":{"t":{"value":666}}}'
        for topic in (
            f"report/sensor/{OBJECT}",
            f"report/gateway/{OBJECT}",
            f"snapshot/{OBJECT}",
            f"delta/{OBJECT}",
            f"value/{OBJECT}",
            "inbox/sensor",
            "presence/sensor",
            "gateway/gateway1",
            "replica/gateway1/mark",
        ):
            mallory.publish(topic, forged, qos=1)
            mallory.publish(topic, forged, qos=1, retain=True)
        # In the own name on another's object: the gateway refuses it, and tells only the one who did it.
        mallory.subscribe("inbox/mallory/#", "inbox/sensor/#")
        mallory.publish(f"report/mallory/{OBJECT}", forged)
        mallory.wait(lambda: any(topic.startswith("inbox/mallory") for topic, *_ in mallory.heard))
        sensor.publish(f"report/sensor/{OBJECT}", b'{"values":{"t":{"value":2}}}')
        dashboard.wait(
            lambda: any(topic == f"snapshot/{OBJECT}" and value(payload) == 2 for topic, payload, *_ in dashboard.heard)
        )
        assert not any(b"666" in payload for client in clients for _, payload, *_ in client.heard)
        assert {topic.split("/")[0] for topic, *_ in dashboard.heard} == {"snapshot", "delta", "gateway"}
        sensor.subscribe("inbox/sensor/#")
        assert not [topic for topic, *_ in sensor.heard if topic.startswith("inbox/sensor")]
        assert not running.errors().count(" ERROR ")


def test_another_with_the_same_client_id_takes_nobodys_place(tmp_path: Path, clients: list[Client]) -> None:
    with site(tmp_path) as (port, _):
        sensor = Client(port, "sensor", client_id="sensor")
        lost: list[object] = []
        sensor.paho.on_disconnect = lambda *args: lost.append(args)
        clients += [sensor, Client(port, "mallory", client_id="sensor")]
        sensor.publish(f"report/sensor/{OBJECT}", b'{"values":{"t":{"value":1}}}')
        assert sensor.paho.is_connected()
        assert not lost


def test_clients_without_a_name_or_password_stay_outside(tmp_path: Path) -> None:
    with site(tmp_path) as (port, _):
        for name, password in ((None, None), ("sensor", "wrong")):
            reasons: list[int] = []
            client = paho.Client(CallbackAPIVersion.VERSION2)
            client.username_pw_set(name, password)
            client.on_connect = lambda *args, reasons=reasons: reasons.append(args[3].value)
            client.connect("127.0.0.1", port)
            while not reasons:
                client.loop(0.1)
            assert reasons[0] >= 0x80


def test_what_is_shipped_is_not_warned_of(tmp_path: Path) -> None:
    assert warnings(shipped(tmp_path, 18830, 19001), 18830) == []


def test_what_would_lose_data_is_warned_of_with_its_place(tmp_path: Path) -> None:
    more = tmp_path / "conf.d"
    more.mkdir()
    (more / "b.conf").write_text("# a comment\nallow_anonymous true\nautosave_interval 0\n")
    (more / "a.conf").write_text("listener 9001 127.0.0.1\nprotocol websockets\nlistener 1883\n")
    path = tmp_path / "mosquitto.conf"
    path.write_text("persistence true\nmax_queued_messages many\ninclude_dir conf.d\n")
    found = "\n".join(warnings(path, 1883))
    for text in (
        "max_queued_messages is 1,000",
        "autosave_interval is 0 s",
        "set_tcp_nodelay is not true",
        "check_retain_source is not true",
        f"{more}/a.conf:1: a listener without use_username_as_clientid",
        f"{more}/a.conf:3: a listener without use_username_as_clientid",
        f"{more}/b.conf:2: allow_anonymous is true",
        f"{more}/a.conf:1: a WebSocket listener without socket_domain",
    ):
        assert text in found
    assert "persistence is not true" not in found
    assert warnings(path, 1884) == [], "another broker listens there"
    assert warnings(tmp_path / "missing.conf", 1883) == []


def test_the_gateway_says_at_its_start_what_mosquitto_would_lose(tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    with site(tmp_path) as (port, running):
        running.stop()
        (tmp_path / "mosquitto.conf").write_text(f"listener {port}\n")
        running.start()
        assert f"WARNING gateway: {tmp_path}/mosquitto.conf: persistence is not true" in running.errors()
