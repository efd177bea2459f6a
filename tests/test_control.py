"""`ctxt broker`: the running gateway is looked at, and a client is sent away, by who may use the state folder."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway import control
from tests.inside import Inside, clients, inside

ROOT = Path(__file__).resolve().parent.parent


def ctxt(gateway: Inside, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway.cli", "broker", *arguments, "--config", str(gateway.path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("CTXT_")},
    )


def answer(gateway: Inside, *arguments: str) -> Any:
    done = ctxt(gateway, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_clients_and_subscriptions_are_listed(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "dash", "sensor", client_id="c1") as (dash, _):
        dash.subscribe("snapshot/#", "inbox/dash", qos=1)
        found = answer(gateway, "clients")
        assert [(one["client"], one["client_id"], one["connected"], one["protocol"]) for one in found] == [
            ("dash", "c1", True, "5"),
            ("sensor", "c1", True, "5"),
        ]
        first = found[0]
        assert (first["address"], first["listener"], first["subscriptions"]) == ("127.0.0.1", "broker.url", 2)
        assert first["for"] >= 0
        assert first["keep_alive"] == 30
        subscriptions = answer(gateway, "subscriptions")
        assert [(one["client"], one["filter"], one["qos"]) for one in subscriptions] == [
            ("dash", "inbox/dash", 1),
            ("dash", "snapshot/#", 1),
        ]
        assert answer(gateway, "subscriptions", "sensor") == []
        table = ctxt(gateway, "clients").stdout.splitlines()
        assert table[0].split() == [
            "CLIENT",
            "CLIENT",
            "ID",
            "FROM",
            "LISTENER",
            "MQTT",
            "FOR",
            "SUBSCRIPTIONS",
            "QUEUED",
        ]
        assert table[1].split()[:2] == ["dash", "c1"]
        assert "snapshot/#" in ctxt(gateway, "subscriptions").stdout


def test_who_is_away_with_a_kept_session_is_listed_as_away(tmp_path: Path) -> None:
    import paho.mqtt.client as paho

    from tests.inside import PASSWORD

    with inside(tmp_path) as gateway:
        client: Any = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="kept", clean_session=False)  # type: ignore[attr-defined]
        client.username_pw_set("dash", PASSWORD)
        client.connect("127.0.0.1", gateway.port)
        client.loop_start()
        while not client.is_connected():
            pass
        client.disconnect()
        client.loop_stop()
        found: list[dict[str, Any]] = []
        for _ in range(100):
            found = answer(gateway, "clients")
            if not found[0]["connected"]:
                break
        assert [(one["client_id"], one["connected"], one["protocol"]) for one in found] == [("kept", False, "3.1.1")]
        assert "away" in ctxt(gateway, "clients").stdout
        assert ctxt(gateway, "kick", "dash").returncode == 3


def test_a_kicked_client_is_told_and_may_come_back(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "dash") as (dash,):
        gone: list[int] = []
        dash.paho.on_disconnect = lambda _c, _u, _f, reason, _p: gone.append(reason.value)
        with clients(gateway.port, "dash", client_id="other"):
            done = ctxt(gateway, "kick", "dash", "--client-id", "other")
            assert done.returncode == 0
            assert "1 connection of client dash closed" in done.stderr
            assert not gone
        (kicked,) = [one for one in answer(gateway, "kick", "dash") if one["client_id"] != "other"]
        assert kicked["client"] == "dash"
        dash.wait(lambda: gone, 10)
        assert gone[0] == 0x98
        dash.wait(dash.paho.is_connected, 10)
        done = ctxt(gateway, "kick", "mallory")
        assert done.returncode == 3
        assert "'mallory' is not connected" in done.stderr


def test_without_a_gateway_the_command_says_so(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:
        path = gateway.state / control.FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    done = ctxt(gateway, "clients")
    assert done.returncode == 5
    assert "no gateway runs with the state folder" in done.stderr
    # One that was killed leaves its socket behind.
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert ctxt(gateway, "clients").returncode == 5
    with inside(tmp_path) as again:
        assert answer(again, "clients") == []


def test_a_long_state_folder_is_no_hindrance(tmp_path: Path) -> None:
    with inside(tmp_path / ("x" * 120)) as gateway:
        assert len(str(gateway.state)) > 107
        assert control.ask(gateway.state, {"do": "clients"}) == []
    assert not (gateway.state / control.FILE).exists()


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{\n",
        b"[]\n",
        b"{}\n",
        b'{"do":"kick"}\n',
        b'{"do":"kick","client":7}\n',
        b'{"do":"clients","client_id":[]}\n',
        b'{"do":"' + b"x" * control.LINE_BYTES + b'"}\n',
        b"\xff\n",
    ],
)
def test_what_is_no_request_is_answered_with_a_sentence(tmp_path: Path, line: bytes) -> None:
    with inside(tmp_path) as gateway, socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(10)
        asking.connect(str(gateway.state / control.FILE))
        asking.sendall(line)
        with asking.makefile("rb") as lines:
            assert json.loads(lines.readline())["error"].startswith(("a request ", "client and "))
            assert lines.readline() == b""


def test_only_so_many_ask_at_once_and_stopping_waits_for_none(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:
        silent = []
        for _ in range(control.AT_ONCE):
            silent.append(socket.socket(socket.AF_UNIX))
            silent[-1].connect(str(gateway.state / control.FILE))
        with socket.socket(socket.AF_UNIX) as one_more:
            one_more.settimeout(10)
            one_more.connect(str(gateway.state / control.FILE))
            assert one_more.recv(1) == b""
        silent.pop().close()
        for _ in range(100):
            try:
                assert control.ask(gateway.state, {"do": "clients"}) == []
            except control.ControlError:
                continue  # its end has not been noticed yet
            break
        else:
            raise AssertionError("a place was never free again")
    for each in silent:
        each.close()
