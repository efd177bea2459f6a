"""Log-ins that end: another password, a client removed or disabled - whom it concerns, at once, and nobody else."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client
import pytest
from argon2 import PasswordHasher

from gateway.broker.house import Peer
from gateway.credentials import Credentials
from tests import running
from tests.broker.certificates import Authority
from tests.broker.world import run
from tests.inside import inside
from tests.test_backoff import Clock
from tests.test_backoff import local as password_link
from tests.test_listeners import Caller, tls
from tests.test_tokens import SECRET

if TYPE_CHECKING:
    from collections.abc import Iterator

PAHO: Any = paho.mqtt.client


class Guest:
    """A paho client of MQTT 5 that stays until it is sent away."""

    def __init__(self, port: int, name: str, password: str) -> None:
        self.name = name
        self.reason: int | None = None
        self.why = ""
        self.gone = threading.Event()
        self._in = threading.Event()
        self._heard = threading.Event()
        self.paho = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, protocol=5, reconnect_on_failure=False)
        self.paho.username_pw_set(name, password)
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        self.paho.on_subscribe = lambda *_: self._heard.set()
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        assert self._in.wait(10)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.reason = reason.value
        self._in.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        self.reason = reason.value
        self.why = getattr(properties, "ReasonString", "")
        self.gone.set()
        self._heard.set()

    def there(self) -> bool:
        """Whether the broker still answers; whatever it has sent before has come by then."""
        self._heard.clear()
        if self.gone.is_set():
            return False
        self.paho.subscribe(f"inbox/{self.name}", 1)
        assert self._heard.wait(10)
        return not self.gone.is_set()

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()
        self.paho._reset_sockets(sockpair_only=True)


@contextmanager
def guests(port: int, *logins: tuple[str, str]) -> Iterator[list[Guest]]:
    made: list[Guest] = []
    try:
        for name, password in logins:
            made.append(Guest(port, name, password))  # those made before one fails are closed
        yield made
    finally:
        for guest in made:
            guest.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[running.Gateway]:
    (tmp_path / "tokens.key").write_bytes(SECRET)
    (tmp_path / "tokens.key").chmod(0o600)
    with running.gateway(
        tmp_path, clients={"oven": "first one", "fridge": "cold"}, rest='[tokens]\nkey_file = "tokens.key"\n'
    ) as gateway:
        yield gateway


def test_another_password_ends_what_came_in_by_the_old_one_when_the_command_returns(house: running.Gateway) -> None:
    token = house.command("client", "token", "oven").stdout.strip()
    with guests(house.port, ("oven", "first one"), ("oven", "first one"), ("oven", token), ("fridge", "cold")) as found:
        old, same, bearer, other = found
        assert [guest.reason for guest in found] == [0, 0, 0, 0]
        assert house.command("client", "passwd", "oven", "--password-stdin", text="second one\n").returncode == 0
        for guest in (old, same):
            assert not guest.there()
            assert guest.reason == 0x87
            assert "password was changed" in guest.why
        assert bearer.there()
        assert other.there()
        with guests(house.port, ("oven", "second one")) as (new,):
            # The same characters again are another password: who knew them has to show it.
            assert house.command("client", "passwd", "oven", "--password-stdin", text="second one\n").returncode == 0
            assert not new.there()
        assert house.command("client", "disable", "fridge").returncode == 0
        assert not other.there()
        assert bearer.there()
        assert house.command("client", "rm", "oven").returncode == 0
        assert not bearer.there()


def test_nobody_is_disconnected_by_what_does_not_concern_them(house: running.Gateway) -> None:
    with guests(house.port, ("oven", "first one"), ("fridge", "cold")) as (oven, fridge):
        for arguments in (("add", "new"), ("passwd", "new"), ("disable", "new"), ("enable", "new"), ("rm", "new")):
            assert house.command("client", *arguments).returncode == 0
        assert house.command("client", "enable", "oven").returncode == 0
        assert oven.there()
        assert fridge.there()


def test_the_file_written_by_somebody_else_is_seen(house: running.Gateway) -> None:
    with (
        guests(house.port, ("oven", "first one")) as (oven,),
        closing(Credentials(house.state_dir / "clients.db")) as credentials,
    ):
        credentials.set_password("oven", "second one")
        assert oven.gone.wait(10)
        assert oven.reason == 0x87


def test_commands_work_where_no_gateway_runs(tmp_path: Path) -> None:
    with running.gateway(tmp_path, start=False) as gateway:
        for arguments in (("add", "new"), ("passwd", "new"), ("disable", "new"), ("enable", "new"), ("rm", "new")):
            done = gateway.command("client", *arguments)
            assert (done.returncode, "gateway" in done.stderr) == (0, False), done.stderr


def test_a_certificate_outlives_the_password(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "tls")
    here, sensor = authority.issue("here"), authority.issue("sensor")
    with inside(tmp_path, tls(here, authority.ca, "use_certificate_name = true")) as gateway:
        by_certificate = Caller(gateway, 1, None, tls=(authority, sensor))
        by_password = Caller(gateway, 1, "sensor", tls=(authority, None))
        assert (by_certificate.reason, by_password.reason) == (0, 0)
        with closing(Credentials(gateway.state / "clients.db")) as credentials:
            credentials.set_password("sensor", "another")
        gateway.admin("look")
        assert by_password.was_sent_away() == 0x87
        assert by_certificate.ended is None
        assert by_certificate.client == "sensor"
        by_certificate.close()
        by_password.close()


def test_a_password_that_changes_while_it_is_looked_at_is_the_old_one(tmp_path: Path) -> None:
    """The look that ends old log-ins has not seen a connection that is only now let in."""

    async def go() -> None:
        link, credentials = password_link(tmp_path, Clock())
        verify = credentials.verify

        def slow(name: str, password: bytes) -> bytes | None:
            proof = verify(name, password)
            credentials.set_password(name, "another")
            return proof

        credentials.verify = slow  # type: ignore[method-assign]
        peer = Peer("192.0.2.1", 1, loopback=False, listener="here")
        assert await link.authenticate("alice", b"correct horse", peer) is None
        await link.stop()
        credentials.close()

    run(go)


def test_a_hash_that_is_renewed_is_the_same_password(tmp_path: Path) -> None:
    with closing(Credentials(tmp_path / "clients.db")) as credentials:
        credentials.add("oven", "correct horse")
        proof = credentials.verify("oven", b"correct horse")
        assert proof == credentials.proof("oven") == credentials.recall("oven", b"correct horse")
        weaker = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("correct horse")
        with closing(sqlite3.connect(tmp_path / "clients.db")) as db, db:
            db.execute("UPDATE client SET hash = ?", (weaker,))
        renewed = credentials.verify("oven", b"correct horse")
        assert renewed == credentials.proof("oven") != proof
        assert credentials.proofs() == {"oven": renewed}
        credentials.disable("oven")
        assert credentials.proofs() == {"oven": None}
        assert credentials.proof("oven") is None
        assert credentials.proof("nobody") is None


def test_a_token_is_made_looked_at_and_taken(house: running.Gateway) -> None:
    made = house.command("client", "token", "oven", "--groups", "kitchen, attic", "--expires", "1h")
    token = made.stdout.strip()
    assert made.returncode == 0
    assert made.stdout.count("\n") == 1
    assert "there is no group 'kitchen' in [groups]" in made.stderr
    assert token not in made.stderr
    with guests(house.port, ("oven", token)) as (guest,):
        assert guest.reason == 0
    looked = house.command("client", "token", "--check", "--json", text=token + "\n")
    assert looked.returncode == 0
    found = json.loads(looked.stdout)
    assert (found["good"], found["reason"]) == (True, None)
    assert (found["claims"]["sub"], found["claims"]["groups"]) == ("oven", ["attic", "kitchen"])
    assert found["claims"]["exp"] - found["claims"]["iat"] == 3600
    shown = house.command("client", "token", "--check", text=token)
    assert "attic, kitchen" in shown.stdout
    assert "takes this token" in shown.stderr
    head, claims, signature = token.split(".")
    for part in (token, signature):
        assert part not in looked.stdout + looked.stderr + shown.stdout + shown.stderr
    forged = house.command("client", "token", "--check", "--json", text=f"{head}.{claims}.{signature[::-1]}")
    assert forged.returncode == 6
    assert json.loads(forged.stdout)["good"] is False
    assert "signature is not good" in forged.stderr
    assert house.command("client", "token", "--check", text="no token").returncode == 6


def test_tokens_that_are_refused_are_told_when_they_are_made(house: running.Gateway) -> None:
    assert "is not known" in house.command("client", "token", "stranger").stderr
    house.command("client", "disable", "fridge")
    token = house.command("client", "token", "fridge")
    assert "is disabled" in token.stderr
    looked = house.command("client", "token", "--check", text=token.stdout)
    assert (looked.returncode, "fridge is disabled" in looked.stderr) == (6, True)
    for wrong, code in (
        (("gateway",), 6),
        (("oven", "--groups", "a b"), 6),
        (("oven", "--expires", "10000d"), 6),
        (("oven", "--expires", "0"), 2),
        (("oven", "--expires", "soon"), 2),
        ((), 2),
    ):
        done = house.command("client", "token", *wrong)
        assert (done.returncode, done.stdout) == (code, ""), wrong


def test_no_tokens_are_made_without_a_key(tmp_path: Path) -> None:
    with running.gateway(tmp_path, start=False) as gateway:
        done = gateway.command("client", "token", "oven")
        assert done.returncode == 78
        assert "key_file" in done.stderr


def _command_lines() -> str:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                found.append((entry / "cmdline").read_bytes().decode(errors="replace"))
    return "\n".join(found)


def test_secrets_are_in_no_log_no_error_and_no_list_of_processes(tmp_path: Path) -> None:
    """Everything that logs a client in, or fails to, with the log as talkative as it can be."""
    (tmp_path / "tokens.key").write_bytes(SECRET)
    (tmp_path / "tokens.key").chmod(0o600)
    rest = '[tokens]\nkey_file = "tokens.key"\n[log]\nlevel = "debug"\n'
    secrets = {"first one 4711", "second one 4712", "wrong one 4713"}
    said: list[str] = []
    lines: list[str] = []
    with running.gateway(tmp_path, rest=rest) as gateway:
        starting = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "client", "add", "oven", "--password-stdin", "--config", gateway.config],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=running.ROOT, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while "client\0add\0oven" not in (seen := _command_lines()):
            assert time.monotonic() < deadline, "the list of processes has been seen"
        lines.append(seen)
        said += starting.communicate("first one 4711\n", timeout=30)
        assert starting.returncode == 0
        generated = gateway.command("client", "add", "fridge").stdout.strip()
        token = gateway.command("client", "token", "oven").stdout.strip()
        forged = token[:-8] + "AAAAAAAA"
        secrets |= {generated, token, token.split(".")[2], forged, SECRET.decode()}
        for name, password in (
            ("oven", "first one 4711"),
            ("oven", "wrong one 4713"),
            ("oven", token),
            ("oven", forged),
            ("fridge", generated),
            ("nobody", "wrong one 4713"),
            # Who takes the one field for the other.
            ("wrong one 4713", "oven"),
            (token, token),
        ):
            with guests(gateway.port, (name, password)):
                lines.append(_command_lines())
        for arguments, text in (
            (("client", "passwd", "oven", "--password-stdin"), "second one 4712\n"),
            (("client", "passwd", "nobody", "--password-stdin"), "second one 4712\n"),
            (("client", "add", "oven", "--password-stdin"), "second one 4712\n"),
            (("client", "token", "--check"), forged),
            (("client", "ls"), ""),
            (("config", "show"), ""),
            (("broker", "clients", "--json"), ""),
        ):
            done = gateway.command(*arguments, text=text)
            said += (done.stdout, done.stderr)
        gateway.stop()
        log = gateway.errors()
        said.append(log)
        assert "DEBUG gateway.links: a client from 127.0.0.1 is refused" in log
    for secret in secrets:
        assert not [text for text in said if secret in text]
        assert not any(secret in text for text in lines)


def test_passwords_are_not_taken_from_the_command_line(tmp_path: Path) -> None:
    with running.gateway(tmp_path, start=False, clients={"oven": "first one"}) as gateway:
        for arguments in (
            ("add", "new", "secret"),
            ("passwd", "oven", "secret"),
            ("add", "new", "--password", "secret"),
        ):
            assert gateway.command("client", *arguments).returncode == 2
