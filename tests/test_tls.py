"""`ctxt tls` as people and scripts use it; what it makes is tried with a real gateway, openssl and mosquitto's clients."""

from __future__ import annotations

import json
import stat
import subprocess
import tomllib
from typing import TYPE_CHECKING

import pytest

from gateway.commands.outcome import Exit
from tests.running import HOST, OWN_NAMESPACE, free_port, gateway, need
from tests.test_cli import ctxt, one_sentence

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"CTXT_STATE_DIR": str(tmp_path / "state")}


def test_the_printed_listener_is_one_that_the_gateway_opens(tmp_path: Path) -> None:
    port = free_port()
    folder = tmp_path / "tls"
    made = ctxt("tls", "init", "localhost", HOST, "--folder", str(folder))
    assert made.returncode == 0, made.stderr
    assert [each["url"] for each in tomllib.loads(made.stdout)["listener"]] == ["mqtts://[::]:8883"]
    client = ctxt("tls", "issue", "room-sensor", "--folder", str(folder))
    certificate, key = client.stdout.splitlines()
    rest = OWN_NAMESPACE + "\n" + made.stdout.replace("[::]:8883", f"{HOST}:{port}")
    with gateway(tmp_path, rest=rest) as running:
        env = {"CTXT_STATE_DIR": str(running.state_dir)}
        assert ctxt("client", "add", "room-sensor", env=env).returncode == 0
        publish = [need("mosquitto_pub", "mosquitto-clients"), "-h", "localhost", "-p", str(port)]
        publish += ["-V", "5", "-q", "1", "-t", "report/room-sensor/ctxt/home.local/room-sensor/room"]
        publish += ["-m", '{"values": {"temperature": {"value": 21.5}}}', "--cafile", str(folder / "ca.pem")]
        subprocess.run([*publish, "--cert", certificate, "--key", key], check=True, timeout=20)
        said = ctxt(
            "get", "ctxt://home.local/room-sensor/room", "--data", "--connect", f"mqtt://room-sensor@{HOST}:{running.port}",
            env={**env, "CTXT_PASSWORD": ctxt("client", "passwd", "room-sensor", env=env).stdout.strip()},
        )  # fmt: skip
        assert json.loads(said.stdout)["values"]["temperature"]["value"] == 21.5
        # Whoever comes without, comes as nobody.
        assert subprocess.run(publish, check=False, timeout=20, capture_output=True).returncode != 0


def test_what_is_there_is_listed(home: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "state/tls"
    assert ctxt("tls", "init", "gateway.home.local", "192.168.1.10", env=home).returncode == 0
    issued = ctxt("tls", "issue", "room-sensor", "--days", "10", env=home)
    assert issued.stdout.splitlines() == [str(folder / f"client/room-sensor.{end}") for end in ("pem", "key")]
    assert "not known yet" in issued.stderr
    assert ctxt("tls", "issue", "b", "--server", "--address", "::1", "--address", "b.local", env=home).returncode == 0
    (folder / "client/room-sensor.key").unlink()
    listed = json.loads(ctxt("tls", "ls", "--json", env=home).stdout)
    assert [(each["kind"], each["addresses"], each["key"] is None, each["fault"]) for each in listed] == [
        ("authority", [], False, None),
        ("server", ["::1", "b.local"], False, None),
        ("server", ["gateway.home.local", "192.168.1.10"], False, None),
        ("client", [], True, None),
    ]
    lines = ctxt("tls", "ls", env=home).stdout.splitlines()
    assert lines[0].split() == ["NAME", "FOR", "ADDRESSES", "GOOD", "UNTIL", "LEFT", "KEY"]
    assert lines[4].split()[0] == "room-sensor"
    assert lines[4].split()[-3:] == ["10", "days", "elsewhere"]
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    (folder / "client/odd.pem").write_text("nothing")
    spoilt = ctxt("tls", "ls", "--json", env=home)
    assert spoilt.returncode == Exit.INVALID
    assert "odd.pem is no certificate" in one_sentence(spoilt)
    assert len(json.loads(spoilt.stdout)) == 4


def test_a_renewed_certificate_has_the_same_key(home: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "state/tls"
    ctxt("tls", "init", "a.local", env=home)

    def state() -> tuple[str, bytes]:
        (found,) = [
            each for each in json.loads(ctxt("tls", "ls", "--json", env=home).stdout) if each["kind"] == "server"
        ]
        return found["serial"], (folder / "server/gateway.key").read_bytes()

    first = state()
    renewed = ctxt("tls", "renew", "gateway", env=home)
    assert renewed.returncode == 0
    assert "ctxt reload" in renewed.stderr
    second = state()
    assert second[0] != first[0]
    assert second[1] == first[1]
    assert ctxt("tls", "renew", "gateway", "--new-key", "--days", "30", env=home).returncode == 0
    assert state()[1] != first[1]
    subprocess.run(
        [need("openssl", "openssl"), "verify", "-x509_strict", "-CAfile", folder / "ca.pem", folder / "server/gateway.pem"],
        check=True, capture_output=True,
    )  # fmt: skip


def test_mistakes_have_exit_codes_and_change_nothing(home: dict[str, str], tmp_path: Path) -> None:
    def code(*arguments: str) -> int:
        result = ctxt("tls", *arguments, env=home)
        if result.returncode != Exit.USAGE:
            one_sentence(result)
        return result.returncode

    assert code("ls") == Exit.NOT_FOUND
    assert code("issue", "x") == Exit.NOT_FOUND
    assert code("init", "not a name") == Exit.INVALID
    assert not (tmp_path / "state/tls").exists()
    assert ctxt("tls", "init", "a.local", env=home).returncode == 0
    before = (tmp_path / "state/tls/ca.key").read_bytes()
    assert code("init", "a.local") == Exit.INVALID
    assert (tmp_path / "state/tls/ca.key").read_bytes() == before
    assert code("renew", "nobody") == Exit.NOT_FOUND
    for name in ("a/b", "../x", "gateway", ""):
        assert code("issue", name) == Exit.INVALID
    assert code("issue", "s", "--server") == Exit.INVALID
    assert code("issue", "s", "--address", "a.local") == Exit.USAGE
    assert code("issue", "s", "--days", "0") == Exit.USAGE
    assert code("init", "a.local", "--folder", "/dev/null/x") == Exit.IO
    assert ctxt("tls", "init", "a.local", "--force", env=home).returncode == 0
    assert (tmp_path / "state/tls/ca.key").read_bytes() != before


def test_settings_with_certificates_that_end_are_warned_of(home: dict[str, str], tmp_path: Path) -> None:
    made = ctxt("tls", "init", "a.local", "--days", "9", env=home)
    settings = tmp_path / "gateway.toml"
    settings.write_text(made.stdout)

    def warnings() -> list[str]:
        checked = ctxt("config", "check", "--json", "--config", str(settings), env=home)
        assert checked.returncode == 0
        return [each for each in json.loads(checked.stdout)["warnings"] if "certificate" in each]

    (said,) = warnings()
    assert f"{tmp_path}/state/tls/server/gateway.pem ends on " in said
    assert ctxt("tls", "renew", "gateway", "--days", "90", env=home).returncode == 0
    assert warnings() == []
    (tmp_path / "state/tls/server/gateway.key").unlink()
    (said,) = warnings()
    assert "cannot be" in said
