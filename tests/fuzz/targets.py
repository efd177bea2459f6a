"""What the coverage-guided fuzzer calls with bytes: decoders, and connections without a socket. Anything raised is a finding.

The first byte says which target, the second how the rest is cut into pieces, the rest is what a hostile peer sends.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from gateway.broker.connection import MOST_EARLY, Connection
from gateway.broker.house import Limits
from gateway.broker.listeners import Listener
from gateway.broker.server import Broker
from gateway.broker.websocket import HEAD_BYTES, WebSocket
from gateway.wire.codec import TOPIC_BYTES, TOPICS, Decoder, encode, publish_parts
from gateway.wire.errors import MalformedPacket
from gateway.wire.fields import encode_properties, variable
from gateway.wire.packets import Connect, Packet, Publish
from tests.broker.world import TableHouse

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PACKET = 2_048
ALIASES = 4
SERVER, SERVER_4, SERVER_5, CLIENT_4, CLIENT_5, HANDSHAKE, FRAMES, SOCKET_4, SOCKET_5 = range(9)
ONE_PACKET = 16
"""Added to a target that reads MQTT: the rest is one packet without its length, which is put in."""

CONNECT = {level: encode(Connect("c", level, username="alice", password=b"a"), level) for level in (4, 5)}
UPGRADE = (
    b"GET /mqtt HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
)
LISTENER = Listener("ws", "ws", "127.0.0.1", 0, path="/mqtt")


def run(data: bytes) -> None:
    """One case."""
    if len(data) < 3:
        return
    target, cut, stream = data[0] & 15, data[1], data[2:]
    if data[0] & ONE_PACKET and target != HANDSHAKE:
        stream = stream[:1] + variable(len(stream) - 1) + stream[1:]
    if target <= CLIENT_5:
        decode(target, cut, stream)
    elif target <= SOCKET_5:
        connect(target, cut, stream)


def pieces(stream: bytes, cut: int) -> Iterator[bytes]:
    """The whole where `cut` is 0, else pieces of changing sizes."""
    dice = random.Random(cut)
    at = 0
    while at < len(stream):
        size = dice.randint(1, 40) if cut else len(stream)
        yield stream[at : at + size]
        at += size


# ---- decoders ----------------------------------------------------------------------------------------------------------


def decoder(target: int) -> Decoder:
    """As a connection has it: before its CONNECT, behind one, or on the client's side."""
    if target in (CLIENT_4, CLIENT_5):
        return Decoder(server=False, level=target - CLIENT_4 + 4, max_packet=MAX_PACKET, alias_maximum=ALIASES)
    made = Decoder(server=True, max_packet=MAX_PACKET, alias_maximum=ALIASES)
    if target != SERVER:
        made.feed(CONNECT[target - SERVER_4 + 4])
    return made


def read(made: Decoder, parts: Iterator[bytes]) -> tuple[list[Packet], MalformedPacket | None]:
    """All packets, and the error that ended them; what the decoder holds is bounded all the time."""
    packets: list[Packet] = []
    try:
        for part in parts:
            found = made.feed(part)
            while found:
                packets += found
                found = made.feed(b"")
            assert made.buffered < MAX_PACKET, "more is held back than the largest packet has"
            assert len(made._aliases) <= ALIASES
            assert len(made._topics) <= TOPICS
            assert made._topic_bytes == sum(map(len, made._topics)) <= TOPIC_BYTES
    except MalformedPacket as error:
        packets += error.packets
        return packets, error
    return packets, None


def decode(target: int, cut: int, stream: bytes) -> None:
    """Pieces and the whole say the same; what was read can be written, and read again."""
    made = decoder(target)
    packets, error = read(made, pieces(stream, cut))
    again, other = read(decoder(target), pieces(stream, 0))
    assert again == packets, "pieces make other packets than the whole"
    assert (error is None) == (other is None), "pieces and the whole do not fail alike"
    if error is not None:
        try:
            made.feed(b"\xc0\0")
        except MalformedPacket:
            pass
        else:
            raise AssertionError("a decoder goes on after an error")
    server = target < CLIENT_4
    for packet in packets:
        level = packet.level if isinstance(packet, Connect) else made.level
        written = encode(packet, level)
        second = Decoder(server=server, level=0 if isinstance(packet, Connect) else level)
        assert second.feed(written) == [packet], "what was read and written is read otherwise"
        if isinstance(packet, Publish) and not packet.dup:
            properties = encode_properties(packet.properties)
            head, tail = publish_parts(
                packet.topic.encode(), packet.payload, level, packet.qos, packet.retain, properties
            )
            middle = packet.packet_id.to_bytes(2) if packet.qos else b""
            assert head + middle + tail == written, "the two ways to write a PUBLISH differ"


# ---- connections -------------------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport that keeps what it is given, and closes when the loop goes round."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.written = bytearray()
        self.closing = False
        self.reading = True
        protocol.connection_made(self)

    def write(self, data: Any) -> None:
        self.written += data

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """The other side stays open."""

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever full here."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else default


LOOP = asyncio.new_event_loop()
"""Goes round only when told to."""


def turn() -> None:
    LOOP.call_soon(LOOP.stop)
    LOOP.run_forever()


def connect(target: int, cut: int, stream: bytes) -> None:
    """A connection to a broker, from its first byte to its end: nothing is raised, nothing stays."""
    accidents: list[dict[str, Any]] = []
    LOOP.set_exception_handler(lambda _, context: accidents.append(context))
    house = TableHouse()
    house.anonymous = True
    house.kept = {"snapshot/a": b"x"}
    limits = Limits(max_packet=MAX_PACKET, topic_aliases=ALIASES, receive_maximum=3, subscriptions=4, queue_messages=5)
    broker = house.broker = Broker(house, limits, keep_sessions=bool(cut & 1))
    broker.loop = LOOP
    web = target in (HANDSHAKE, FRAMES)
    socket = WebSocket(broker, LISTENER) if web else Connection(broker, "tcp")
    wire = Wire(LOOP, socket)
    if target == FRAMES:
        socket.data_received(UPGRADE)
    elif target != HANDSHAKE:
        socket.data_received(CONNECT[target - SOCKET_4 + 4])
        turn()
    for piece in pieces(stream, cut):
        if wire.closing:
            break
        socket.data_received(piece)
        turn()
        check_bounds(socket)
        if isinstance(socket, WebSocket) and socket._closed:
            break
    turn()
    wire.close()
    for _ in range(4):
        turn()
    if accidents:
        raise accidents[0].get("exception") or RuntimeError(accidents[0]["message"])
    assert not broker._sockets, "a socket that has closed is still counted"
    assert not broker._addresses
    assert not broker.guests
    assert not broker._connections
    assert not broker._clients
    broker.sweep(float("inf"))
    assert not broker.sessions, "a session outlives its end"
    assert not broker.queued


def check_bounds(socket: Connection | WebSocket) -> None:
    """A connection holds little more than one read, whatever lengths were announced to it."""
    connection = socket if isinstance(socket, Connection) else socket._connection
    if isinstance(socket, WebSocket):
        assert len(socket._head) <= HEAD_BYTES or socket._closed, "a request that is too long is kept"
    if connection is not None and not connection.ended:
        assert connection._decoder.buffered < MAX_PACKET
        assert len(connection._early) <= MOST_EARLY
