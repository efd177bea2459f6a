"""Where clients come in: several listeners at once, TLS with certificates that change, Unix sockets, bounds per address."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import threading
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import paho.mqtt.client
import pytest

from gateway.broker.listeners import Listener, ListenError, TlsFiles, address_group
from gateway.wire.packets import Connack, Connect, Puback, Publish, Reason
from tests.broker.certificates import Authority
from tests.broker.world import OPEN, RawClient, run, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.broker.listeners import Opened

PAHO: Any = paho.mqtt.client

LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])

needs_mosquitto = pytest.mark.skipif(
    shutil.which("mosquitto_pub") is None, reason="mosquitto_pub is missing: apt install mosquitto-clients"
)


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 on its loopback")


async def mosquitto_pub(*arguments: str) -> tuple[int, str]:
    """The exit code, and what it wrote to standard error."""
    process = await asyncio.create_subprocess_exec(
        "mosquitto_pub", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def over(opened: Opened, tls: ssl.SSLContext | None = None, **options: Any) -> RawClient:
    """A raw client on whatever kind of socket the listener has."""
    if opened.listener.scheme == "unix":
        reader, writer = await asyncio.open_unix_connection(opened.listener.path)
    else:
        host, port = opened.address
        reader, writer = await asyncio.open_connection(options.pop("host", host), port, ssl=tls, **options)
    client = RawClient(reader, writer, 5)
    OPEN.append(client)
    return client


async def admitted(client: RawClient, name: str = "alice") -> int:
    client.send(Connect(f"{name}-{id(client)}", username=name, password=name[:1].encode()))
    return (await client.expect(Connack)).reason


def trusting(authority: Authority, pair: Any = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.ca)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


# ---- several at once ---------------------------------------------------------------------------------------------------


@LOOPS
def test_clients_of_every_kind_of_listener_hear_each_other(tmp_path: Path, loop: str) -> None:
    authority = Authority(tmp_path)
    here = authority.issue("here")

    async def go() -> None:
        async with running() as (house, broker, port):
            secure = await broker.open(Listener("secure", "mqtts", "127.0.0.1", tls=TlsFiles(*here)))
            unix = await broker.open(Listener("unix", "unix", path=str(tmp_path / "s")))
            plain = await RawClient.connect(port, "bob")
            await plain.subscribe("open/#", qos=1)
            for number, client in enumerate((await over(secure, trusting(authority)), await over(unix))):
                assert await admitted(client) == 0
                client.send(Publish(f"open/{number}", b"x", 1, packet_id=1))
                assert await client.expect(Puback) == Puback(1)
                assert (await plain.expect(Publish)).topic == f"open/{number}"
                plain.send(Puback(1 + number))
            assert [peer.listener for peer in house.peers] == ["tcp", "secure", "unix"]
            assert secure.url == f"mqtts://127.0.0.1:{secure.address[1]}"

    run(go, loop)


@needs_ipv6
def test_every_address_is_both_families(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    here = authority.issue("here")

    async def go() -> None:
        async with running() as (house, broker, _):
            for listener in (Listener("all", "mqtt", "::"), Listener("tls", "mqtts", "::", tls=TlsFiles(*here))):
                opened = await broker.open(listener)
                tls = trusting(authority) if listener.tls else None
                for host in ("127.0.0.1", "::1"):
                    assert await admitted(await over(opened, tls, host=host)) == 0
                    assert house.peers[-1].loopback
                assert opened.url == f"{listener.scheme}://[::]:{opened.address[1]}"
            only = await broker.open(Listener("six", "mqtt", "::1"))
            assert await admitted(await over(only)) == 0
            with pytest.raises(ConnectionRefusedError):
                await over(only, host="127.0.0.1")

    run(go)


# ---- TLS ---------------------------------------------------------------------------------------------------------------


@needs_mosquitto
def test_mosquitto_pub_over_tls_is_told_when_the_authority_is_another(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    here = authority.issue("here")

    async def go() -> None:
        async with running() as (house, broker, _):
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=TlsFiles(*here)))
            line: tuple[str, ...] = (
                "-h",
                "127.0.0.1",
                "-p",
                str(opened.address[1]),
                "-u",
                "alice",
                "-P",
                "a",
                "-q",
                "1",
                "-m",
                "{}",
            )
            line = (*line, "-t", "report/alice/x")
            assert await mosquitto_pub(*line, "--cafile", str(authority.ca)) == (0, "")
            assert house.got[0].topic == "report/alice/x"
            code, errors = await mosquitto_pub(*line, "--cafile", str(other.ca))
            assert code
            assert "certificate verify failed" in errors or "TLS" in errors
            assert len(house.got) == 1

    run(go)


@needs_mosquitto
def test_mosquitto_pub_has_the_name_in_its_certificate(tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "ours"), Authority(tmp_path / "other")
    here, alice, forged = authority.issue("here"), authority.issue("alice"), other.issue("alice")

    async def go() -> None:
        async with running() as (house, broker, _):
            files = TlsFiles(*here, ca=authority.ca, require=True)
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=files))
            line: tuple[str, ...] = (
                "-h",
                "127.0.0.1",
                "-p",
                str(opened.address[1]),
                "-u",
                "alice",
                "-P",
                "a",
                "-q",
                "1",
                "-m",
                "{}",
            )
            line = (*line, "-t", "report/alice/x", "--cafile", str(authority.ca))
            certified = ("--cert", str(alice.certificate), "--key", str(alice.key))
            assert await mosquitto_pub(*line, *certified) == (0, "")
            assert house.peers[-1].tls_name == "alice"
            for refused in ((), ("--cert", str(forged.certificate), "--key", str(forged.key))):
                code, _ = await mosquitto_pub(*line, *refused)
                assert code
            assert len(house.peers) == 1
            await until(lambda: broker.counters.tls_failures == 2 and not broker.counters.connections)

    run(go)


def test_paho_publishes_and_subscribes_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    here = authority.issue("here")

    async def go() -> None:
        async with running() as (_, broker, _):
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=TlsFiles(*here)))

            def talk() -> list[bytes]:
                heard: list[bytes] = []
                done = threading.Event()
                client = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, protocol=5)
                client.username_pw_set("alice", "a")
                client.tls_set(str(authority.ca))
                client.on_connect = lambda *_: client.subscribe("open/#", 1)
                client.on_subscribe = lambda *_: client.publish("open/x", b"y" * 100_000, 1)

                def note(_client: Any, _data: Any, message: Any) -> None:
                    heard.append(message.payload)
                    done.set()

                client.on_message = note
                client.connect("127.0.0.1", opened.address[1])
                client.loop_start()
                done.wait(10)
                client.disconnect()
                client.loop_stop()
                return heard

            assert await asyncio.to_thread(talk) == [b"y" * 100_000]

    run(go)


@pytest.mark.parametrize(("minimum", "offered"), [("1.2", "TLSv1_1"), ("1.3", "TLSv1_2")])
def test_an_older_tls_is_refused(tmp_path: Path, minimum: Any, offered: str) -> None:
    authority = Authority(tmp_path)
    here = authority.issue("here")

    async def go() -> None:
        async with running() as (_, broker, _):
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=TlsFiles(*here, minimum=minimum)))
            old = trusting(authority)
            old.set_ciphers("ALL:@SECLEVEL=0")
            # Setting one that is no longer recommended warns, and that is what the test is about.
            with pytest.warns(DeprecationWarning, match="TLS") if offered == "TLSv1_1" else nullcontext():
                old.minimum_version = old.maximum_version = ssl.TLSVersion[offered]
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await over(opened, old)
            assert await admitted(await over(opened, trusting(authority))) == 0

    run(go)


@LOOPS
def test_a_new_certificate_is_taken_and_old_connections_stay(
    tmp_path: Path, loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = Authority(tmp_path / "1", "first"), Authority(tmp_path / "2", "second")
    old, new = first.issue("here", file="old"), second.issue("here", file="new")
    files = TlsFiles(tmp_path / "cert.pem", tmp_path / "key.pem")
    assert files.key is not None
    key = files.key

    def put(pair: Any) -> None:
        for source, target in zip(pair, (files.certificate, key), strict=True):
            shutil.copy(source, target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)

    put(old)

    async def go() -> None:
        async with running() as (_, broker, _):
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=files))
            before = await over(opened, trusting(first))
            assert await admitted(before) == 0
            caplog.set_level(logging.INFO, "gateway.listeners")

            shutil.copy(new.certificate, files.certificate)  # the key does not fit
            await until(lambda: len(caplog.records) == 1, "the warning")
            assert caplog.records[0].levelname == "WARNING"
            assert str(files.certificate) in caplog.messages[0]
            assert "the certificate loaded before stays in use" in caplog.messages[0]
            assert await admitted(await over(opened, trusting(first))) == 0

            put(new)
            await until(lambda: len(caplog.records) == 2, "the new certificate")
            assert await admitted(await over(opened, trusting(second))) == 0
            with pytest.raises(ssl.SSLError):
                await over(opened, trusting(first))
            before.send(Publish("report/alice/x", b"{}", 1, packet_id=9))
            assert await before.expect(Puback) == Puback(9)

    run(go, loop)


def test_files_that_cannot_be_used_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    here, other = authority.issue("here"), authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for files, said in (
        (TlsFiles(tmp_path / "gone.pem", here.key), "cannot be read (No such file"),
        (TlsFiles(here.certificate, other.key), "the key is not that of the certificate"),
        (TlsFiles(empty, here.key), str(empty)),
        (TlsFiles(*here, ca=empty), f"authority {empty}"),
    ):
        with pytest.raises(ListenError) as caught:
            files.context()
        assert said in str(caught.value)


def test_sockets_that_begin_no_handshake_count_and_are_closed_in_time(tmp_path: Path) -> None:
    here = Authority(tmp_path).issue("here")

    async def go() -> None:
        async with running(connect_timeout=0.3, connections_per_address=3) as (_, broker, _):
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=TlsFiles(*here)))
            idle = [await asyncio.open_connection(*opened.address) for _ in range(3)]
            await until(lambda: broker.counters.connections == 3)
            refused, writer = await asyncio.open_connection(*opened.address)
            assert await refused.read() == b""
            writer.close()
            assert broker.counters.refused_per_address == 1
            for reader, writer in idle:
                assert await asyncio.wait_for(reader.read(), 5) == b""
                writer.close()
            await until(lambda: not broker.counters.connections)
            assert broker.counters.tls_failures == 3

    run(go)


def test_stopping_does_not_wait_for_handshakes(tmp_path: Path) -> None:
    here = Authority(tmp_path).issue("here")

    async def go() -> None:
        async with running() as (_, broker, _):
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=TlsFiles(*here)))
            reader, writer = await asyncio.open_connection(*opened.address)
            await until(lambda: broker.counters.connections == 1)
            await asyncio.wait_for(broker.stop(), 2)
            assert broker.counters.connections == 0
            assert await reader.read() == b""
            writer.close()

    run(go)


# ---- bounds per address ------------------------------------------------------------------------------------------------


def test_one_address_cannot_take_all_connections(tmp_path: Path) -> None:
    async def go() -> None:
        async with running(connections_per_address=2) as (_, broker, port):
            unix = await broker.open(Listener("unix", "unix", path=str(tmp_path / "s")))
            first, _ = await RawClient.connect(port, "alice"), await RawClient.connect(port, "bob")
            third = await RawClient.open(port)
            assert await third.ended() is None
            assert broker.counters.refused_per_address == 1
            assert await admitted(await over(unix), "mallory") == 0
            first.drop()
            await until(lambda: broker.counters.connections == 2)
            assert (await RawClient.connect(port, "alice")).connack.reason == Reason.SUCCESS

    run(go)


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
    ],
)
def test_an_ipv6_network_counts_as_one_address(host: str, group: str) -> None:
    assert address_group(host) == group
