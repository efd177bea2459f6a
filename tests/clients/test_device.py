"""A small device, bytes on a socket: MQTT 3.1.1, clean session, short keep-alive, a will, QoS 0 and 1, and nothing else."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from tests.inside import PASSWORD, Inside, clients, inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.inside import Client

OBJECT = "ctxt/home.local/plug/power"
REPORT = "report/plug/" + OBJECT
SETTINGS = '[timing]\noffline_grace = "100ms"\n'

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 0x20, 0x30, 0x40, 0x90, 0xD0


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("!H", len(data)) + data


def reading(value: float) -> bytes:
    return b'{"values":{"power":{"value":%g}}}' % value


class Device:
    """It reads only when it waits for something, and keeps the messages that it meets on the way."""

    def __init__(self, port: int, *, keep_alive: int = 60) -> None:
        self.inbox: list[dict[str, Any]] = []
        self._socket = socket.create_connection(("127.0.0.1", port), 10)
        self._unread = b""
        # User name, password, a will at QoS 1, clean session.
        body = text("MQTT") + bytes((4, 0b11001110)) + struct.pack("!H", keep_alive) + text("plug-1")
        self._send(0x10, body + text("presence/plug") + text("offline") + text("plug") + text(PASSWORD))
        # No session is ever there.
        assert self.next(CONNACK) == b"\0\0"

    def _send(self, head: int, body: bytes) -> None:
        length, size = b"", len(body)
        while True:
            size, low = divmod(size, 128)
            length += bytes((low | (0x80 if size else 0),))
            if not size:
                break
        self._socket.sendall(bytes((head,)) + length + body)

    def _take(self, count: int) -> bytes:
        while len(self._unread) < count:
            data = self._socket.recv(4096)
            if not data:
                raise EOFError
            self._unread += data
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def next(self, kind: int) -> bytes:
        """Read up to the next packet of a kind: its body."""
        while True:
            head = self._take(1)[0]
            size = shift = 0
            while True:
                (digit,) = self._take(1)
                size |= (digit & 0x7F) << shift
                shift += 7
                if digit < 0x80:
                    break
            body = self._take(size)
            if head & 0xF0 == PUBLISH:
                assert body.startswith(text("inbox/plug"))
                self.inbox.append(json.loads(body[12 + 2 * bool(head & 6) :]))
            if head & 0xF0 == kind:
                return body

    def report(self, payload: bytes, *, topic: str = REPORT, packet_id: int = 0, again: bool = False) -> None:
        """Report at QoS 1, or at QoS 0 without a packet identifier; the acknowledgement is left unread."""
        head = PUBLISH | (2 if packet_id else 0) | (8 if again else 0)
        self._send(head, text(topic) + (struct.pack("!H", packet_id) if packet_id else b"") + payload)

    def listen(self) -> None:
        """Subscribe to the inbox at QoS 0."""
        self._send(0x82, b"\0\1" + text("inbox/plug") + b"\0")
        assert self.next(SUBACK) == b"\0\1\0"

    def ping(self) -> None:
        self._send(0xC0, b"")
        assert self.next(PINGRESP) == b""

    def cut(self) -> None:
        """Gone in the midst of things: a reset, no DISCONNECT."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def ended(self) -> bool:
        """Whether the other side closes the connection."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Inside]:
    with inside(tmp_path, SETTINGS, "plug", "lamp", "dash") as made:
        yield made


@pytest.fixture
def dash(gateway: Inside) -> Iterator[Client]:
    with clients(gateway.port, "dash") as (made,):
        made.subscribe("delta/#")
        yield made


@contextlib.contextmanager
def device(port: int, **rest: Any) -> Iterator[Device]:
    made = Device(port, **rest)
    try:
        yield made
    finally:
        made.cut()


def lost(dash: Client, times: int = 1) -> None:
    """Wait until an Observer has been told so often that it is gone."""
    dash.wait(lambda: sum(m.get("status") == "disconnected" for m in dash.messages()) == times)


def test_it_reports_and_comes_back_after_each_cut(gateway: Inside, dash: Client) -> None:
    for value in range(3):
        with device(gateway.port) as plug:
            plug.report(reading(value))
            plug.report(reading(value + 0.5), packet_id=7)
            assert plug.next(PUBACK) == b"\0\7"
            plug.ping()
        lost(dash, value + 1)
    deltas = dash.messages()
    versions = [delta["version"] for delta in deltas]
    assert versions == list(range(1, len(deltas) + 1))
    values = [delta.get("value") or delta.get("merge") for delta in deltas]
    assert [change for change in values if change] == [json.loads(reading(v)) for v in (0, 0.5, 1, 1.5, 2, 2.5)]
    assert [delta["status"] for delta in deltas[1:] if "status" in delta] == ["disconnected", "live"] * 2 + [
        "disconnected"
    ]


def test_what_it_sends_again_after_a_cut_is_applied_once(gateway: Inside, dash: Client) -> None:
    step = b'[{"op":"test","path":"/values/power/value","value":1},{"op":"replace","path":"/values/power/value","value":2}]'
    with device(gateway.port) as plug:
        plug.report(reading(1))
        plug.report(step, packet_id=9)
        dash.wait(lambda: len(dash.heard) == 2)
    with device(gateway.port) as plug:
        plug.listen()
        plug.report(step, packet_id=9, again=True)
        assert plug.next(PUBACK) == b"\0\x09"
        # Applied twice, its test would have failed and been told before this.
        plug.report(b"no JSON", packet_id=10)
        plug.next(PUBLISH)
        assert plug.inbox[0]["code"] == 400


def test_it_is_told_of_refused_reports_in_its_inbox_only(gateway: Inside, dash: Client) -> None:
    with clients(gateway.port, "lamp") as (lamp,):
        lamp.report("lamp/power", json.loads(reading(1)))
    with device(gateway.port) as plug:
        # The acknowledgement says as much as any other, whoever owns the object and whatever is in the report.
        plug.report(reading(2), topic="report/plug/ctxt/home.local/lamp/power", packet_id=1)
        assert plug.next(PUBACK) == b"\0\1"
        plug.report(b'{"values":{"power":{"value":2,"unit":7}}}', packet_id=2)
        assert plug.next(PUBACK) == b"\0\2"
        # Nor does it learn later what it has missed: an inbox keeps nothing for who has no session.
        plug.listen()
        plug.report(b'{"values":{"power":{"value":3,"unit":8}}}')
        plug.next(PUBLISH)
        (rejection,) = plug.inbox
        assert (rejection["type"], rejection["code"]) == ("rejection", 422)
        assert rejection["resource"] == "ctxt://home.local/plug/power"
        assert rejection["place"] == "/values/power/unit"
        assert "8" in rejection["description"]
        plug.report(reading(3), packet_id=3)
        assert plug.next(PUBACK) == b"\0\3"
    lost(dash)
    assert [m["value"] for m in dash.messages() if "value" in m] == [json.loads(reading(v)) for v in (1, 3)]


def test_its_keep_alive_is_held(gateway: Inside, dash: Client) -> None:
    with device(gateway.port, keep_alive=1) as plug:
        plug.report(reading(1), packet_id=1)
        assert plug.next(PUBACK) == b"\0\1"
        assert plug.ended()
        lost(dash)


def test_a_device_that_comes_back_before_its_loss_is_noticed_takes_over(gateway: Inside, dash: Client) -> None:
    with device(gateway.port) as lost, device(gateway.port) as plug:
        assert lost.ended()
        plug.listen()
        plug.report(reading(1), packet_id=1)
        assert plug.next(PUBACK) == b"\0\1"
        plug.report(reading(2), packet_id=2)
        dash.wait(lambda: [m for m in dash.messages() if m.get("merge") == json.loads(reading(2))])
        assert plug.inbox == []
