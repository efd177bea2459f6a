"""What the administrator does to a running gateway, over its socket and with real clients connected."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.administration import AdministrationError
from gateway.reload import CHANGEABLE, ReloadError, fixed
from gateway.rights import ACTIONS
from gateway.settings import Settings, SettingsError
from tests.inside import Client, Inside, clients, inside
from tests.running import ROOT, Gateway

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CLOSED = """
[[namespace]]
match = "ctxt://home.local/closed/**"
schema = "Context"
report = ["sensor"]
observe = []

[[namespace]]
match = "ctxt://home.local/**"
schema = "Context"
report = ["sensor"]
observe = ["*"]
"""
SAFE = "ctxt://home.local/closed/safe"
TOPIC = "ctxt/home.local/closed/safe"


def reading(value: Any) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value}}}


def ctxt(gateway: Inside, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments, "--config", str(gateway.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("CTXT_")},
    )


def deltas(client: Client, topic: str = TOPIC) -> list[int]:
    return [json.loads(payload)["version"] for at, payload, _, _ in client.heard if at == f"delta/{topic}"]


def test_a_grant_opens_one_object_to_one_client_until_it_is_taken_back(tmp_path: Path) -> None:
    with (
        inside(tmp_path, CLOSED) as gateway,
        clients(gateway.port, "sensor", "dash", "mallory") as (sensor, dash, other),
    ):
        sensor.report("closed/safe", reading(1))
        for client in (dash, other):
            client.subscribe("snapshot/#", "delta/#")
        granted = ctxt(gateway, "acl", "grant", "dash", SAFE, "--json")
        assert json.loads(granted.stdout) == {"url": SAFE, "client": "dash", "reporter": "sensor", "expires": None}
        # Shown at once to a subscription that was there before.
        dash.wait(lambda: any(topic == f"snapshot/{TOPIC}" for topic, *_ in dash.heard))
        sensor.report("closed/safe", reading(2))
        dash.wait(lambda: deltas(dash) == [2])
        assert [one["client"] for one in json.loads(ctxt(gateway, "acl", "grants", "--json").stdout)] == ["dash"]
        assert "dash" in ctxt(gateway, "acl", "grants").stdout
        revoked = ctxt(gateway, "acl", "revoke", "dash", SAFE)
        assert (revoked.returncode, revoked.stdout) == (0, "")
        assert "nothing more" in revoked.stderr
        sensor.report("closed/safe", reading(3))
        sensor.report("open", reading(3))
        dash.wait(lambda: deltas(dash, "ctxt/home.local/open"))
        assert deltas(dash) == [2]
        assert not [topic for topic, *_ in other.heard if TOPIC in topic]
        assert ctxt(gateway, "acl", "revoke", "dash", SAFE).returncode == 3
        assert ctxt(gateway, "acl", "grant", "dash", "ctxt://home.local/none").returncode == 3
        assert ctxt(gateway, "acl", "grant", "no/name", SAFE).returncode == 6
        assert ctxt(gateway, "acl", "grant", "dash", SAFE, "--expires", "tomorrow").returncode == 2
        assert ctxt(gateway, "acl", "grant", "dash", SAFE, "--expires", "2001-01-01T00:00:00Z").returncode == 6


def test_a_grant_survives_a_restart_and_ends_when_it_says(tmp_path: Path) -> None:
    with inside(tmp_path, CLOSED) as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.report("closed/safe", reading(1))
        gateway.admin("grant", client="dash", url=SAFE, until=time.time() + 4.0)
        gateway.admin("grant", client="mallory", url=SAFE)
        sensor.report("closed/safe", reading(2))
    with inside(tmp_path, CLOSED) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        assert [one["client"] for one in gateway.admin("grants")] == ["dash", "mallory"]
        dash.subscribe("delta/#")
        sensor.report("closed/safe", reading(3))
        dash.wait(lambda: deltas(dash) == [3])
        deadline = time.monotonic() + 10
        while len(gateway.admin("grants", url=SAFE)) == 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sensor.report("closed/safe", reading(4))
        sensor.report("open", reading(4))
        dash.wait(lambda: deltas(dash, "ctxt/home.local/open"))
        assert deltas(dash) == [3]
    with inside(tmp_path, CLOSED) as gateway:
        assert [one["client"] for one in gateway.admin("grants")] == ["mallory"]


def test_another_reporter_takes_an_object_over_in_one_step(tmp_path: Path) -> None:
    with inside(tmp_path, CLOSED) as gateway, clients(gateway.port, "sensor", "mallory", "dash") as (old, new, dash):
        old.report("open", reading(1))
        dash.subscribe("delta/#")
        done = ctxt(gateway, "acl", "assign", "ctxt://home.local/open", "mallory", "--json")
        assert json.loads(done.stdout) == {
            "url": "ctxt://home.local/open",
            "reporter": "mallory",
            "former": "sensor",
            "version": 2,
        }
        assert old.report("open", reading(2))[0] == 0x87
        assert new.report("open", reading(3))[0] == 0
        dash.wait(lambda: deltas(dash, "ctxt/home.local/open") == [2, 3])
        assert dash.messages()[0]["reporter"] == "mallory"
    with inside(tmp_path, CLOSED) as gateway:
        obj = gateway.call(lambda service: service.engine.objects.get("ctxt/home.local/open"))
        assert (obj.reporter, obj.version) == ("mallory", 3)


def test_reasons_are_given_for_every_answer(tmp_path: Path) -> None:
    with inside(tmp_path, CLOSED) as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.report("closed/safe", reading(1))
        no = ctxt(gateway, "acl", "explain", "dash", "receive", f"snapshot/{TOPIC}")
        assert no.returncode == 4
        assert no.stderr == ""
        assert "closed/**" in no.stdout
        assert "observe" in no.stdout
        yes = ctxt(gateway, "acl", "explain", "sensor", "receive", f"snapshot/{TOPIC}", "--json")
        assert json.loads(yes.stdout) == {
            "client": "sensor",
            "action": "receive",
            "topic": f"snapshot/{TOPIC}",
            "may": True,
            "why": f"it is the Reporter of {SAFE}",
        }
        with pytest.raises(AdministrationError, match="takes a client"):
            gateway.admin("explain", client="dash", action="eat", topic="x")
        assert ACTIONS == ("publish", "subscribe", "receive")


def test_what_the_network_has_not_taken_yet_does_not_reach_a_revoked_client(tmp_path: Path) -> None:
    """A client that does not read: what is written for it is cut off with its connection, and its session is judged anew."""
    import socket

    with inside(tmp_path, CLOSED) as gateway, clients(gateway.port, "sensor") as (sensor,):
        sensor.report("closed/safe", reading(1))
        gateway.admin("grant", client="dash", url=SAFE)

        def packet(kind: int, body: bytes) -> bytes:
            return bytes([kind, len(body)]) + body

        def long(number: int) -> dict[str, Any]:
            return {"values": {f"v{i}": {"value": f"{number}-" + "x" * 3_000} for i in range(10)}}

        def text(value: bytes) -> bytes:
            return len(value).to_bytes(2, "big") + value

        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", gateway.port))
        raw.sendall(
            packet(0x10, b"\x00\x04MQTT\x04\xc2\x00\x3c" + text(b"slow") + text(b"dash") + text(b"correct horse"))
        )
        assert raw.recv(4) == b"\x20\x02\x00\x00"
        raw.sendall(packet(0x82, b"\x00\x01" + text(f"delta/{TOPIC}".encode()) + b"\x00"))
        assert raw.recv(5)[:1] == b"\x90"
        for number in range(300):
            assert sensor.report("closed/safe", long(number))[0] == 0
        gateway.admin("revoke", client="dash", url=SAFE)
        assert sensor.report("closed/safe", reading("afterwards"))[0] == 0
        raw.settimeout(10)
        heard = b""
        try:
            while chunk := raw.recv(1 << 20):
                heard += chunk
        except ConnectionResetError:
            pass
        raw.close()
        assert b"afterwards" not in heard
        assert len(heard) < 300 * 30_000, "all of it had been taken by the network: the test shows nothing"
        assert gateway.connected() == {"sensor"}


# ---- settings read again -------------------------------------------------------------------------------------------------


def rewrite(gateway: Inside, act: Callable[[str], str]) -> None:
    gateway.path.write_text(act(gateway.path.read_text()))


def test_rights_are_read_again_and_felt_by_live_connections_and_nobody_is_disconnected(tmp_path: Path) -> None:
    with (
        inside(tmp_path, CLOSED) as gateway,
        clients(gateway.port, "sensor", "dash", "mallory") as (sensor, dash, other),
    ):
        sensor.report("closed/safe", reading(1))
        sensor.report("open", reading(1))
        for client in (dash, other):
            client.subscribe("snapshot/#", "delta/#")
        rewrite(
            gateway, lambda text: text.replace("observe = []", 'observe = ["dash"]').replace('["*"]', '["mallory"]')
        )
        done = ctxt(gateway, "reload", "--json")
        assert json.loads(done.stdout) == ["namespace"]
        # What has been opened is shown at once.
        dash.wait(lambda: any(topic == f"snapshot/{TOPIC}" for topic, *_ in dash.heard))
        before = len(dash.heard)
        sensor.report("closed/safe", reading(2))
        sensor.report("open", reading(2))
        dash.wait(lambda: deltas(dash) == [2])
        other.wait(lambda: deltas(other, "ctxt/home.local/open"))
        assert not [topic for topic, *_ in dash.heard[before:] if topic.endswith("/open")]
        assert deltas(other) == []
        assert gateway.connected() == {"sensor", "dash", "mallory"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace('"Context"', '"Contxt"'), "did you mean 'Context'"),
        (lambda text: text.replace("observe", "observes"), "unknown key"),
        (lambda text: "number = 7\n" + text, "number cannot change while the gateway runs"),
        (lambda text: text + "[broker]\nqueue_messages = 7\n", "broker.queue_messages cannot change"),
        (lambda text: text + "[", "gateway.toml"),
    ],
)
def test_what_cannot_be_taken_over_is_refused_whole(tmp_path: Path, change: Callable[[str], str], said: str) -> None:
    with inside(tmp_path, CLOSED) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        sensor.report("closed/safe", reading(1))
        rewrite(gateway, lambda text: change(text.replace("observe = []", 'observe = ["dash"]')))
        with pytest.raises((ReloadError, SettingsError), match=said):
            gateway.admin("reload")
        assert not gateway.call(lambda service: service.rights.may_observe("dash", TOPIC))
        dash.subscribe("snapshot/#")
        sensor.report("open", reading(1))
        dash.wait(lambda: dash.heard)
        assert not [topic for topic, *_ in dash.heard if TOPIC in topic]


def test_a_schema_that_objects_have_cannot_go(tmp_path: Path) -> None:
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "Lamp.json").write_text(
        json.dumps(
            {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "$id": "hyperty-catalogue://catalogue.example.org/.well-known/dataschema/Lamp",
                "x-scheme": "lamp",
                "type": "object",
            }
        )
    )
    settings = f'schemas = ["{folder}"]\n[[namespace]]\nmatch = "lamp://**"\nschema = "Lamp"\nreport = ["sensor"]\n'
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "sensor") as (sensor,):
        assert sensor.publish("report/sensor/lamp/hall/one", {"on": True})[0] == 0
        (folder / "Lamp.json").rename(folder / "Lamp.away")
        rewrite(gateway, lambda text: text.replace("lamp://**", "ctxt://**").replace('"Lamp"', '"Context"'))
        with pytest.raises(ReloadError, match="lamp://hall/one has it"):
            gateway.admin("reload")
        (folder / "Lamp.away").rename(folder / "Lamp.json")
        assert gateway.admin("reload") == [{"changed": "namespace"}]
        # Its namespace is gone, and its Reporter is its Reporter.
        assert sensor.publish("report/sensor/lamp/hall/one", {"on": False})[0] == 0


def test_public_objects_are_closed_and_opened_with_their_namespace(tmp_path: Path) -> None:
    space = '[[namespace]]\nmatch = "ctxt://home.local/{client}/**"\nreport = ["*"]\npublic = true\n'
    with inside(tmp_path, space) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        url = "ctxt://home.local/sensor/x"
        sensor.request("create", {"resource": url, "value": {"values": {}}, "public": True})
        assert dash.subscribe("snapshot/ctxt/home.local/sensor/x", "delta/ctxt/home.local/sensor/x") == [1, 1]
        dash.wait(lambda: dash.heard)
        rewrite(gateway, lambda text: text.replace("public = true", "public = false"))
        gateway.admin("reload")
        assert dash.request("read", {"resource": url}, "closed")["code"] == 403
        before = len(dash.heard)
        sensor.report("sensor/x", reading(1))
        time.sleep(0.4)
        assert len(dash.heard) == before
        rewrite(gateway, lambda text: text.replace("public = false", "public = true"))
        gateway.admin("reload")
        dash.wait(lambda: [topic for topic, *_ in dash.heard[before:] if topic.startswith("snapshot/")])


def test_limits_and_staleness_hold_from_the_reload_on(tmp_path: Path) -> None:
    with inside(tmp_path, CLOSED) as gateway, clients(gateway.port, "sensor", "dash") as (sensor, dash):
        dash.subscribe("delta/#")
        sensor.report("open", reading(1))
        rewrite(
            gateway,
            lambda text: text.replace('["*"]\n', '["*"]\nstale_after = "500ms"\n') + "[limits]\npayload_bytes = 256\n",
        )
        assert {one["changed"] for one in gateway.admin("reload")} == {"namespace", "limits"}
        dash.wait(lambda: any(message.get("status") == "stale" for message in dash.messages()))
        assert sensor.report("open", {"id": "x" * 300})[0] == 0x97


def test_every_setting_is_either_changeable_or_refused() -> None:
    ours = Settings.model_construct()
    assert {name.partition(".")[0] for name in CHANGEABLE} <= set(Settings.model_fields)
    assert list(fixed(ours, ours)) == []


@pytest.mark.parametrize("watched", [False, True], ids=["signal", "watched"])
def test_a_process_reads_its_settings_again_at_sighup_or_when_a_watched_file_has_changed(
    tmp_path: Path, watched: bool
) -> None:
    gateway = Gateway(tmp_path, top="watch = true" if watched else "", rest=CLOSED)
    gateway.start()
    try:

        def edit(act: Callable[[str], str], said: str) -> None:
            # Another file in its place, as editors do.
            new = tmp_path / "new.toml"
            new.write_text(act(gateway.config.read_text()))
            new.rename(gateway.config)
            if not watched:
                assert gateway.process is not None
                gateway.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 20
            while said not in gateway.errors():
                assert time.monotonic() < deadline, gateway.errors()
                time.sleep(0.02)

        edit(lambda text: "nonsense = 1\n" + text, "nonsense")
        edit(
            lambda text: text.replace("nonsense = 1\n", "").replace("observe = []", 'observe = ["dash"]'),
            "settings and schemas read again: namespace",
        )
        assert gateway.running
    finally:
        assert gateway.stop() == 0
