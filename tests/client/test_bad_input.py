"""What can be wrong around a client: each error names the thing and the remedy, and comes within the time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from gateway.client import NoAnswerError, NotConnectedError, Outbox, RefusedError, UsageError, connect
from gateway.wire.codec import encode, encode_publish
from gateway.wire.packets import Connack, Suback
from tests.broker.certificates import Authority
from tests.client.test_clients import fresh, reading, until
from tests.inside import PASSWORD, inside
from tests.links.world import ALLOW_ALL
from tests.running import free_port, mosquitto, need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.client.conftest import Place
    from tests.client.edges import Edge

HOST = "127.0.0.1"


@contextmanager
def server(act: Callable[[socket.socket], None]) -> Iterator[int]:
    """Something else that listens: what it does with each connection."""
    with socket.create_server((HOST, 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listening.accept()
                except OSError:
                    return
                with sock, suppress(OSError):
                    act(sock)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(20)


def fails(edge: Edge, url: str, match: str, error: type[Exception] = NotConnectedError, **options: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(error, match=match), edge.connect(url, **options):
        pass
    assert time.monotonic() - begun < options.get("timeout", 10) + 5


def test_nobody_listens(edge: Edge) -> None:
    port = free_port()
    fails(
        edge,
        f"mqtt://ana:x@{HOST}:{port}",
        rf"cannot connect to {HOST} port {port} \(connection refused\): is the gateway",
    )
    fails(edge, "mqtt://ana:x@no-such-host.invalid", "cannot connect to no-such-host.invalid port 1883")


def test_a_wrong_password_and_no_name(edge: Edge, place: Place) -> None:
    port = place.port
    fails(
        edge,
        f"mqtt://ana:wrong@{HOST}:{port}",
        rf"port {port} does not admit 'ana' with this password: `ctxt client ls`",
    )
    fails(edge, f"mqtt://{HOST}:{port}", "admits nobody without a name: connect to mqtt://NAME:PASSWORD@")


@pytest.mark.parametrize(
    "act",
    [
        lambda sock: None,
        lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        lambda sock: sock.sendall(bytes(range(256))),
        lambda sock: sock.sendall(encode(Connack(), 5)[:-1]),
        lambda sock: time.sleep(2.5),
    ],
    ids=["closes", "http", "noise", "half a CONNACK", "silence"],
)
def test_what_listens_is_no_broker(edge: Edge, act: Callable[[socket.socket], None]) -> None:
    with server(act) as port:
        fails(edge, f"mqtt://ana:x@{HOST}:{port}", f"port {port} does not answer as an MQTT broker", timeout=2)


def test_a_broker_that_turns_to_nonsense_is_left_and_tried_again(edge: Edge) -> None:
    calls: list[int] = []

    def act(sock: socket.socket) -> None:
        calls.append(1)
        sock.recv(4096)
        sock.sendall(encode(Connack(), 5))
        sock.recv(4096)
        sock.sendall(encode(Suback(1, [1, 1]), 5))
        for topic, payload in (
            ("gateway/x", b"{"),
            ("gateway/x", b"[]"),
            ("gateway/x", b'{"status":"online","epoch":-1,"patterns":[1]}'),
            ("snapshot/ctxt/a/b", b"[" * 5000),
            ("delta/ctxt/a/b", b'{"epoch":"x"}'),
            ("delta", b"\xff"),
            ("inbox/ana", b"1"),
            ("inbox/ana", b'{"type":"action"}'),
            ("inbox/ana", b'{"type":"response","id":[]}'),
        ):
            sock.sendall(encode_publish(topic.encode(), payload, 5))
        sock.sendall(b"\xf0\xff\xff\xff\xff\xff")
        sock.settimeout(5)
        while sock.recv(4096):
            pass

    with server(act) as port, edge.connect(f"mqtt://ana:x@{HOST}:{port}", wait=True, presence=False, timeout=2) as ana:
        until(lambda: len(calls) >= 2)
        with pytest.raises((NoAnswerError, NotConnectedError)):
            ana.read("ctxt://home.local/ana/room")


def test_a_broker_without_a_gateway(edge: Edge, tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    with mosquitto(tmp_path, ALLOW_ALL) as broker, edge.connect(f"mqtt://ana:x@{HOST}:{broker.port}", timeout=1) as ana:
        with pytest.raises(
            NoAnswerError, match=r"no gateway .* takes `read`: none has announced itself on this broker"
        ):
            ana.read("ctxt://home.local/ana/room")
        with pytest.raises(NoAnswerError, match=r"no gateway .* takes the report"):
            ana.reporter("ctxt://home.local/ana/room").update(reading(1))
        with pytest.raises(NoAnswerError), ana.observe("ctxt://home.local/ana/room"):
            pass


def test_tls_that_does_not_fit(edge: Edge, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "tls"), Authority(tmp_path / "other")
    here = authority.issue("localhost")
    settings = (
        f'[[listener]]\nurl = "mqtts://127.0.0.1:0"\ncertificate = "{here.certificate}"\nkey = "{here.key}"\n'
        '[[listener]]\nurl = "ws://127.0.0.1:0/mqtt"\n'
    )
    with inside(tmp_path / "gateway", settings, "ana") as gateway:
        plain, secure, web = (int(url.rpartition(":")[2].partition("/")[0]) for url in gateway.call(lambda s: s.urls))
        who = "ana:" + PASSWORD.replace(" ", "%20")
        ca, wrong = str(authority.ca), str(other.ca)
        fails(edge, f"mqtts://{who}@{HOST}:{secure}", "certificate that does not hold: .*Give ca=")
        fails(edge, f"mqtts://{who}@{HOST}:{secure}", "certificate that does not hold: .*Give ca=", ca=wrong)
        fails(edge, f"mqtts://{who}@{HOST}:{plain}", "does not speak TLS as asked for", ca=ca, timeout=1)
        fails(edge, f"mqtt://{who}@{HOST}:{secure}", "does not answer as an MQTT broker", timeout=1)
        fails(edge, f"mqtts://{who}@{HOST}:{secure}", "cannot be read", error=UsageError, ca=str(tmp_path / "none"))
        for url, options in (
            (f"mqtts://{who}@localhost:{secure}", {"ca": ca}),
            (f"ws://{who}@{HOST}:{web}/mqtt", {}),
        ):
            with edge.connect(url, **options) as ana:
                room = ana.create(fresh("ana"), data=reading(1))
                with ana.observe(room.url) as seen:
                    for value in range(200):
                        room.update(reading(value))
                    seen.wait_for(lambda data: data == reading(199), 10)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("localhost", "this is no broker to connect to: write mqtt://"),
        ("http://localhost", "this is no broker to connect to"),
        ("mqtt://", "no valid host and port"),
        ("mqtt://host:99999", "no valid host and port"),
        ("mqtt://host:0", "no valid host and port"),
        ("mqtt://ana@host", "there is no password for 'ana': give password="),
    ],
)
def test_a_url_that_is_none(edge: Edge, url: str, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CTXT_PASSWORD", raising=False)
    with pytest.raises(UsageError, match=match) as caught:
        edge.connect(url)
    assert "secret" not in str(caught.value)


def test_arguments_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="write mqtts:// or wss://"):
        connect("mqtt://ana:x@host", ca="ca.pem")
    with pytest.raises(UsageError, match=r"protocol is '5' or '3\.1\.1', not '4'"):
        connect("mqtt://ana:x@host", protocol="4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="timeout"):
        connect("mqtt://ana:x@host", timeout=0)
    with pytest.raises(UsageError, match="no name reports nothing"):
        connect("mqtt://host", queue=tmp_path / "queue.db")
    (tmp_path / "text").write_text("no database at all, but long enough for one")
    with pytest.raises(UsageError, match=r"the queue .*text cannot be used: file is not a database"):
        Outbox(tmp_path / "text")
    with pytest.raises(UsageError, match="room for one report"):
        Outbox(tmp_path / "queue.db", max_reports=0)


def test_what_cannot_be_said_is_not_sent(edge: Edge, place: Place) -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"a": deep}
    with edge.connect(place.url("ana")) as ana:
        room = ana.create(fresh("ana"), data=reading(1))
        for value, match in (
            (float("nan"), "/values/temperature/value is not a number that JSON has"),
            (float("inf"), "is not a number"),
            ({1, 2}, "this is not JSON"),
            (deep, "this is not JSON"),
            (1 << 70, "this is not JSON"),
        ):
            with pytest.raises(UsageError, match=match):
                room.update(reading(value))
        with pytest.raises(RefusedError, match=r"413 10,000,\d+ bytes are more than .* takes in a packet"):
            room.update(reading("x" * 10_000_000))
        with pytest.raises(RefusedError, match="413"):
            ana.create(fresh("ana"), data=reading("x" * 10_000_000))
        with pytest.raises(RefusedError, match="404 the object does not exist, and 'ana' may not create it"):
            ana.reporter("ctxt://home.local/rui/room").update(reading(1))
        with pytest.raises(RefusedError, match="422"):
            ana.create(fresh("ana"), data={"values": 1})
        with pytest.raises(RefusedError, match="404"):
            ana.create(fresh("ana"), schema="Nothing")
        assert room.data == place.stored(room.url) == reading(1)
        assert ana.connected


def test_a_queue_takes_what_has_room(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "queue.db", max_reports=3, max_bytes=100)
    for number in range(5):
        box.put(str(number), "ctxt/a/b", orjson.dumps({"n": number}))
    assert (len(box), box.dropped) == (3, 2)
    with pytest.raises(UsageError, match="does not fit into a queue of 100"):
        box.put("6", "ctxt/a/b", b"x" * 101)
    box.put("7", "ctxt/a/b", b"x" * 95)
    assert (len(box), box.dropped) == (1, 5)
    box.close()
    again = Outbox(tmp_path / "queue.db")
    assert len(again) == 1
    again.close()
