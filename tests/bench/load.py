"""A load generator that costs much less than what it measures: MQTT 3.1.1, bytes made beforehand, frames found in bulk.

While the clock runs the observer only keeps what arrives and finds message heads with one regular expression; everything is
parsed and checked, frame by frame, after the clock has stopped.
"""

from __future__ import annotations

import asyncio
import re
import struct
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import orjson

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Sequence

QUIET = 10.0
"""Seconds without a message after which a run is given up."""


class LoadError(CtxtError):
    """What was measured did not behave: a refused connection, lost messages, wrong order."""


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("!H", len(data)) + data


def frame(kind: int, body: bytes) -> bytes:
    """One MQTT packet: first byte, remaining length (MQTT 3.1.1 section 2.2.3), body."""
    head = bytearray((kind,))
    rest = len(body)
    while True:
        rest, low = divmod(rest, 128)
        head.append(low | 0x80 if rest else low)
        if not rest:
            return bytes(head) + body


def connect_packet(client_id: str, user: str | None, password: str | None) -> bytes:
    """CONNECT of MQTT 3.1.1 with a clean session and no keep-alive."""
    flags = 0x02 | (0x80 if user is not None else 0) | (0x40 if password is not None else 0)
    body = _text("MQTT") + bytes((4, flags, 0, 0)) + _text(client_id)
    for part in (user, password):
        if part is not None:
            body += _text(part)
    return frame(0x10, body)


def subscribe_packet(topic_filter: str, qos: int) -> bytes:
    """SUBSCRIBE to one filter with packet id 1."""
    return frame(0x82, b"\0\1" + _text(topic_filter) + bytes((qos,)))


class Stream:
    """PUBLISH packets to be sent round and round, in one block of bytes. Packet ids are 1 to 65,000 in turn."""

    def __init__(self, messages: Sequence[tuple[str, bytes]], qos: int, *, retain: bool = False) -> None:
        self.qos = qos
        self.length = len(messages)
        self.position = 0
        """Where the next publisher goes on: two reports after each other on one object never say the same."""
        parts = []
        offsets = [0]
        at = 0
        for i, (topic, payload) in enumerate(messages):
            packet_id = struct.pack("!H", i % 65_000 + 1) if qos else b""
            packet = frame(0x30 | qos << 1 | retain, _text(topic) + packet_id + payload)
            parts.append(packet)
            at += len(packet)
            offsets.append(at)
        self._block = b"".join(parts)
        self._offsets = offsets

    def take(self, start: int, count: int) -> bytes:
        """The bytes of messages start … start + count - 1, counted from 0 over all rounds; count <= length."""
        first = start % self.length
        last = first + count
        if last <= self.length:
            return self._block[self._offsets[first] : self._offsets[last]]
        return self._block[self._offsets[first] :] + self._block[: self._offsets[last - self.length]]


class Wire(asyncio.Protocol):
    """What both ends share: a connection that has been let in."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.error: CtxtError | None = None
        self._greeting: asyncio.Future[bytes] | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = LoadError(f"the broker has closed the connection: {exc or 'without a reason'}")
        if self._greeting is not None and not self._greeting.done():
            self._greeting.set_exception(self.error)
        self.stopped()

    def data_received(self, data: bytes) -> None:
        """Until the answer to the last packet of the handshake is whole, keep; then hand over to `arrived`."""
        if self._greeting is None:
            self.arrived(data)
            return
        self._early += data
        if len(self._early) >= 2 and len(self._early) >= 2 + self._early[1]:
            answer, rest = self._early[: 2 + self._early[1]], self._early[2 + self._early[1] :]
            greeting, self._greeting, self._early = self._greeting, None, b""
            greeting.set_result(answer)
            if rest:
                self.arrived(rest)

    async def ask(self, packet: bytes) -> bytes:
        """Send a packet of the handshake and wait for its answer."""
        self._greeting = asyncio.get_running_loop().create_future()
        assert self.transport is not None
        self.transport.write(packet)
        return await asyncio.wait_for(self._greeting, QUIET)

    async def log_in(self, client_id: str, user: str | None, password: str | None) -> None:
        """CONNECT. Raises LoadError."""
        answer = await self.ask(connect_packet(client_id, user, password))
        if answer[0] != 0x20 or answer[3] != 0:
            raise LoadError(f"the connection of {client_id!r} was refused: {answer.hex()}")

    def arrived(self, data: bytes) -> None:
        """Bytes after the handshake."""
        raise NotImplementedError

    def stopped(self) -> None:
        """The connection has gone."""

    def close(self) -> None:
        """DISCONNECT and close."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"\xe0\0")
            self.transport.close()


class Observer(Wire):
    """Keeps every byte; counts messages by their heads, acknowledges QoS 1, tells the publisher how many have come."""

    def __init__(self, head: bytes, qos: int) -> None:
        """`head` is a regular expression for the end of a topic and the beginning of its payload, with the packet id between."""
        super().__init__()
        self.qos = qos
        self._head = re.compile(head, re.DOTALL)
        self._rest = b""
        self.received = 0
        self.chunks: list[bytes] = []
        self.publisher: Publisher | None = None

    async def subscribe(self, topic_filter: str) -> None:
        """SUBSCRIBE. Raises LoadError."""
        answer = await self.ask(subscribe_packet(topic_filter, self.qos))
        if answer[0] != 0x90 or answer[-1] > 2:
            raise LoadError(f"the subscription to {topic_filter!r} was refused: {answer.hex()}")

    def arrived(self, data: bytes) -> None:
        """Hot."""
        self.chunks.append(data)
        if self._rest:
            data = self._rest + data
        if self.qos:
            end = 0
            ids = []
            for found in self._head.finditer(data):
                ids.append(found[1])
            if ids:
                end = found.end()
                assert self.transport is not None
                self.transport.write(b"\x40\2" + b"\x40\2".join(ids))
                self.received += len(ids)
        else:
            heads = self._head.findall(data)
            self.received += len(heads)
            end = data.rfind(heads[-1]) + len(heads[-1]) if heads else 0
        # A head may lie across two chunks; it is shorter than this.
        self._rest = data[max(end, len(data) - 200) :]
        if self.publisher is not None:
            self.publisher.go_on()

    def stopped(self) -> None:
        if self.publisher is not None:
            self.publisher.stopped()

    def frames(self) -> list[tuple[str, bytes]]:
        """Everything that has come, whole frames only: (topic, payload). Raises LoadError for anything but PUBLISH."""
        data = b"".join(self.chunks)
        self.chunks = [data]
        found = []
        at = 0
        while at + 2 <= len(data):
            length = data[at + 1]
            body = at + 2
            if length & 0x80:
                if body + 1 > len(data):
                    break
                length = (length & 0x7F) | data[body] << 7
                body += 1
                if length & 1 << 14:
                    length = (length & 0x3FFF) | data[body] << 14
                    body += 1
            if body + length > len(data):
                break
            if data[at] >> 4 != 3:
                raise LoadError(f"the observer got a packet of type {data[at] >> 4}")
            end = body + 2 + (data[body] << 8 | data[body + 1])
            topic = data[body + 2 : end].decode()
            found.append((topic, data[end + (2 if data[at] & 0x06 else 0) : body + length]))
            at = body + length
        return found


class Together:
    """Many observers of the same messages: to the publisher, one that has what all of them have on average."""

    def __init__(self, size: int) -> None:
        self.error: CtxtError | None = None
        self.publisher: Publisher | None = None
        self.received = 0
        self._size = size
        self._total = 0

    def add(self, count: int) -> None:
        """Hot: one of them has got so many."""
        self._total += count
        received = self._total // self._size
        if received != self.received:
            self.received = received
            if self.publisher is not None:
                self.publisher.go_on()


class Member(Observer):
    """One of many."""

    def __init__(self, head: bytes, qos: int, together: Together) -> None:
        super().__init__(head, qos)
        self._together = together

    def arrived(self, data: bytes) -> None:
        """Hot."""
        before = self.received
        super().arrived(data)
        self._together.add(self.received - before)

    def stopped(self) -> None:
        self._together.error = self.error
        if self._together.publisher is not None:
            self._together.publisher.stopped()


class Publisher(Wire):
    """Sends a stream, keeping at most `window` messages on their way: not received yet, or (QoS 1) not acknowledged."""

    def __init__(self, stream: Stream, observer: Observer | Together | None, window: int) -> None:
        super().__init__()
        self.stream = stream
        self.observer = observer
        self.window = window
        self.sent = 0
        self.acknowledged = 0
        self._base = stream.position
        self._rest = b""
        self._until = 0
        self._deadline = 0.0
        self._done: asyncio.Future[None] | None = None
        self._since = 0.0
        self.times: list[float] | None = None

    async def run(self, *, seconds: float = 0.0, count: int = 0, timed: bool = False) -> tuple[int, float]:
        """Send for so many seconds, or so many messages, until all have arrived: (messages, seconds).

        `timed` keeps in `times` how long each took from its write to its arrival (for a window of 1). Raises LoadError when
        nothing moves for ten seconds.
        """
        loop = asyncio.get_running_loop()
        self._done = loop.create_future()
        began = perf_counter()
        start = self.sent
        self._deadline = began + seconds if seconds else 0.0
        self._until = start + count if count else 1 << 62
        self.times = [] if timed else None
        self._write()
        progress = -1
        try:
            while not self._done.done():
                await asyncio.wait((self._done,), timeout=QUIET)
                if not self._done.done() and progress == (progress := self._arrived()):
                    raise LoadError(f"nothing has arrived for {QUIET:g} s: {self.sent} sent, {self._arrived()} arrived")
            self._done.result()
        finally:
            self._done = None
        self.stream.position = self._base + self.sent
        return self.sent - start, perf_counter() - began

    def _arrived(self) -> int:
        if self.observer is None:
            return self.acknowledged if self.stream.qos else self.sent
        if self.stream.qos and self.acknowledged < self.observer.received:
            return self.acknowledged
        return self.observer.received

    def go_on(self) -> None:
        """Hot: something has arrived or been acknowledged."""
        arrived = self._arrived()
        if self._done is None or self._done.done():
            return
        if self.times is not None:
            if arrived < self.sent:
                return
            self.times.append(perf_counter() - self._since)
        if arrived >= self.sent and (self.sent >= self._until or (self._deadline and perf_counter() >= self._deadline)):
            self._done.set_result(None)
            return
        # Refill when half of the window has come back: one write carries many.
        if (self.sent - arrived) * 2 <= self.window:
            self._write()

    def _write(self) -> None:
        """Hot."""
        if self._deadline and perf_counter() >= self._deadline:
            return
        room = self.window - (self.sent - self._arrived())
        room = min(room, self._until - self.sent)
        stream = self.stream
        write = self.transport.write  # type: ignore[union-attr]
        self._since = perf_counter()
        while room > 0:
            count = min(room, stream.length)
            write(stream.take(self._base + self.sent, count))
            self.sent += count
            room -= count

    def arrived(self, data: bytes) -> None:
        """Hot: acknowledgements, all of four bytes."""
        if self._rest:
            data = self._rest + data
        whole = len(data) >> 2
        self._rest = data[whole << 2 :]
        if not whole:
            return
        self.acknowledged += whole
        last = data[(whole << 2) - 4 : whole << 2]
        packet_id = (self._base + self.acknowledged - 1) % self.stream.length % 65_000 + 1
        if last != b"\x40\2" + packet_id.to_bytes(2):
            self.error = LoadError(f"expected the acknowledgement of {packet_id}, got {last.hex()}")
            self.stopped()
            return
        self.go_on()

    def stopped(self) -> None:
        if self._done is not None and not self._done.done():
            observed = self.observer.error if self.observer is not None else None
            self._done.set_exception(self.error or observed or LoadError("a connection was closed"))


_W = TypeVar("_W", bound=Wire)


async def connect(wire: _W, port: int, client_id: str, user: str | None, password: str | None) -> _W:
    """Connect over TCP on this machine and log in. Raises LoadError, OSError."""
    await asyncio.get_running_loop().create_connection(lambda: wire, "127.0.0.1", port)
    await wire.log_in(client_id, user, password)
    return wire


class Round(NamedTuple):
    """What one round brought: messages and seconds; per message the load generator's own CPU and the broker's.

    `cold` is the rate of the messages before it, the first ones on these connections.
    """

    messages: int
    seconds: float
    own_cpu: float
    broker_cpu: float
    times: list[float]
    cold: float

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.seconds


def check_versions(frames: Sequence[tuple[str, bytes]], known: dict[str, tuple[int, int]]) -> int:
    """Every delta's version follows the one before it on its topic, in one epoch: how many there were. Raises LoadError.

    `known` is what was seen before, topic -> (epoch, version), and is brought up to date.
    """
    for topic, payload in frames:
        delta = orjson.loads(payload)
        epoch, version = delta["epoch"], delta["version"]
        before = known.get(topic)
        if before is not None and (epoch, version) != (before[0], before[1] + 1):
            raise LoadError(f"{topic}: after {before} came {(epoch, version)}")
        known[topic] = (epoch, version)
    return len(frames)
