"""What stands between a gateway and a broker outside in these tests: a proxy that cuts and stalls, and a broker that says what it is told to."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.wire.codec import Decoder, encode
from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import (
    Connack,
    Connect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Reason,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.wire.packets import Packet, Properties

HOST = "127.0.0.1"
P = TypeVar("P")

MOSQUITTO = """
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages 0
max_queued_messages 0
"""

OPEN = "[link]\nopen = true\n"


def until(found: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return value


class Proxy:
    """Passes bytes on to a port, until it is told to cut, to refuse or to stall."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._flowing = threading.Event()
        self._flowing.set()
        self.refusing = False
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                if self.refusing:
                    raise OSError
                far = socket.create_connection((HOST, self._target))
            except OSError:
                near.close()
                continue
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._pairs.append((near, far))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                self._flowing.wait()
                other.sendall(data)
        for each in (one, other):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def cut(self) -> None:
        """Every connection breaks."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for each in pair:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Nothing passes any more, and nobody is told."""
        self._flowing.clear()

    def flow(self) -> None:
        """It does again."""
        self._flowing.set()

    def close(self) -> None:
        self._flowing.set()
        self._server.close()
        self.cut()


@contextlib.contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()


class Peer:
    """One connection of the gateway, as the fake broker sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder(server=True, alias_maximum=10)
        self._waiting: list[Packet] = []
        self.level = 5
        self.heard: list[Packet] = []
        self.over = False

    def read(self, seconds: float = 10.0) -> Packet | None:
        """The next packet; None when the connection has ended."""
        self._sock.settimeout(seconds)
        while not self._waiting:
            try:
                data = self._sock.recv(65_536)
            except ConnectionError:
                data = b""
            if not data:
                self.over = True
                return None
            try:
                self._waiting += self._decoder.feed(data)
                self._waiting += self._decoder.feed(b"")
            except MalformedPacket as error:
                raise AssertionError(f"the gateway sent what is not MQTT: {error}") from error
        packet = self._waiting.pop(0)
        self.heard.append(packet)
        return packet

    def send(self, *packets: Packet | bytes) -> None:
        data = b"".join(each if isinstance(each, bytes) else encode(each, self.level) for each in packets)
        self._sock.sendall(data)

    def expect(self, kind: type[P]) -> P:
        """The next packet of a kind."""
        while True:
            packet = self.read()
            assert packet is not None, f"the connection ended before a {kind.__name__} came; heard {self.heard}"
            if isinstance(packet, kind):
                return packet

    def greet(self, properties: Properties | None = None, *, present: bool = False) -> Connect:
        """Let the gateway in."""
        connect = self.expect(Connect)
        self.level = connect.level
        self.send(Connack(present, Reason.SUCCESS, properties if self.level == 5 else None))
        return connect

    def serve(self, stop: Callable[[Packet], bool]) -> Packet:
        """Behave as a broker without memory, until a packet comes that is waited for. What is published is acknowledged, marks come back."""
        while True:
            packet = self.read()
            assert packet is not None, f"the connection ended; heard {self.heard[-5:]}"
            if stop(packet):
                return packet
            if isinstance(packet, Subscribe):
                self.send(Suback(packet.packet_id, [one.qos for one in packet.subscriptions]))
            elif isinstance(packet, Unsubscribe):
                self.send(Unsuback(packet.packet_id, [0 for _ in packet.topic_filters] if self.level == 5 else []))
            elif isinstance(packet, Pingreq):
                self.send(Pingresp())
            elif isinstance(packet, Publish):
                if packet.qos:
                    self.send(Puback(packet.packet_id))
                if packet.topic.endswith("/mark"):
                    self.send(Publish(packet.topic, packet.payload))

    def join(self, properties: Properties | None = None, *, present: bool = False) -> Connect:
        """Let the gateway in and answer until it has asked for reports."""
        connect = self.greet(properties, present=present)
        asked = self.serve(
            lambda packet: (
                isinstance(packet, Subscribe)
                and any(one.topic_filter.endswith("report/#") for one in packet.subscriptions)
            )
        )
        assert isinstance(asked, Subscribe)
        self.send(Suback(asked.packet_id, [one.qos for one in asked.subscriptions]))
        return connect

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class FakeBroker:
    """A port; who comes in is handed to the test."""

    def __init__(self) -> None:
        self._server = socket.create_server((HOST, 0))
        self.port: int = self._server.getsockname()[1]
        self.url = f"mqtt://{HOST}:{self.port}"
        self._peers: list[Peer] = []

    def accept(self, seconds: float = 15.0) -> Peer:
        """The next connection."""
        self._server.settimeout(seconds)
        sock, _ = self._server.accept()
        peer = Peer(sock)
        self._peers.append(peer)
        return peer

    def close(self) -> None:
        self._server.close()
        for peer in self._peers:
            peer.close()


@contextlib.contextmanager
def fake() -> Iterator[FakeBroker]:
    made = FakeBroker()
    try:
        yield made
    finally:
        made.close()
