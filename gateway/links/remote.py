"""The link to a broker outside: one MQTT client, both protocol versions, on the gateway's own wire code.

What one read of the socket brings is one batch: one pass of the engine, one commit, one write. The gateway sends at QoS 0 and 1;
what was sent at QoS 1 and not acknowledged goes out again on the next connection, in order (MQTT 5 section 4.4).
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import orjson

from gateway.counts import counter, counters, gauge
from gateway.links.dial import DialError, dial
from gateway.links.link import LinkError, TakenOverError
from gateway.topics import Escape, matches
from gateway.wire.codec import Decoder, encode, encode_properties, encode_puback, encode_publish
from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Reason,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from gateway.broker.journal import Journal
    from gateway.counts import Family
    from gateway.links.dial import Way
    from gateway.links.link import Receiver
    from gateway.wire.packets import Packet, Properties

OWNED = ("report", "request", "presence")
"""The verbs that the gateway listens to."""

DEVICES = 1
"""The identifier of subscriptions for adapters: what the gateway itself listens to has none."""

MOST_INFLIGHT = 4_096
"""Messages sent at QoS 1 and not acknowledged, at most, whatever the broker allows."""

QUEUE_MESSAGES = 4_096
QUEUE_BYTES = 4 << 20
"""What waits for the broker before no more reports are taken in. A batch may go beyond it once."""

WAITING = 20_000
WAITING_BYTES = 16 << 20
"""Messages for single clients and retained ones that wait while the broker is away; what goes beyond is dropped and counted."""

RING = 8_192
"""Reports that the broker may send again because it has not seen their acknowledgement, at most."""

HELD_BYTES = 8 << 20
"""Reports read and not yet taken in. Beyond it QoS 0 is dropped and counted; of QoS 1 the broker sends no more than it may."""

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 4.0
"""Seconds between two attempts to connect, doubled each time, less a random part."""

STEADY = 10.0
"""Seconds after which a connection has been a good one: the pauses begin anew."""

JOIN = 30.0
"""Seconds without a sign from the broker after which joining is given up."""

SETTLE = 0.25
"""Seconds of silence after which a broker has sent all its retained messages, its mark being back."""

PING_WAIT = 10.0
"""Seconds that a broker has to answer a PINGREQ."""

UNHEARD_MILLISECONDS = 30_000
"""How long bytes may be on their way before the kernel gives the connection up."""

CONTEST = 10.0
"""Two take-overs within so many seconds: somebody else uses this gateway's identity."""

BUSY = 24_000
"""Packets a second from which on reads are gathered: a broker writes each message by itself, and a batch costs less than its parts."""

GATHER = 0.001
"""Seconds between two reads then."""

SAMPLE = 0.01
"""Seconds over which packets are counted for it."""

ALIASES = 64
"""Topic aliases that the broker may set."""

TOPICS = 65_536
"""Topics whose names are kept as strings: this connection brings the reports of all clients."""

LONG_TOPIC = 32
"""Bytes of a topic that is worth a topic alias."""

FLUSH = 2.0
"""Seconds that the broker has to acknowledge the last messages when the gateway stops."""

GOODBYE = 0.5
"""Seconds that a connection has to close."""

REFUSED_FOR_GOOD = frozenset(
    {
        Reason.CLIENT_IDENTIFIER_NOT_VALID,
        Reason.BAD_USER_NAME_OR_PASSWORD,
        Reason.NOT_AUTHORIZED,
        Reason.BANNED,
        Reason.BAD_AUTHENTICATION_METHOD,
    }
)
"""Reasons of a CONNACK that trying again does not change."""

LARGEST_PACKET = 268_435_460
"""The largest packet that MQTT has, with its fixed header."""


_T = TypeVar("_T")
_A = TypeVar("_A", Suback, Unsuback)
_log = logging.getLogger("gateway.link")


class RefusedError(LinkError):
    """The broker refuses the gateway, and will again."""


@dataclass(frozen=True, slots=True)
class Remote:
    """The broker outside and how to speak with it. Times in seconds. `escape`: characters that topics may not have there."""

    way: Way
    client_id: str
    username: str | None = None
    password_file: Path | None = None
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    keep_alive: int = 30
    session_expiry: int = 3600
    connect_timeout: float = 10.0
    max_packet: int = 262_144
    receive_maximum: int = 1_000
    escape: str = ""
    open: bool = False
    patience: float = 0.0
    """How long a refusal at the start may come from a broker that is just being told whom to admit."""


class Route:
    """A topic as the broker gets it, made ready."""

    __slots__ = ("alias", "alias_of", "often", "properties", "retain", "topic")

    wanted = True

    def __init__(self, topic: bytes, retain: bool, properties: bytes = b"", *, often: bool = False) -> None:
        """`often`: it is kept and sent to again, and so worth a topic alias."""
        self.topic = topic
        self.retain = retain
        self.properties = properties
        self.often = often
        self.alias = b""
        self.alias_of: Wire | None = None


@dataclass(slots=True)
class Counters:
    """What has happened since the start."""

    connections: int = 0
    received: int = 0
    sent: int = 0
    resent: int = 0
    refused: int = 0
    retained_reports: int = 0
    dropped_away: int = 0
    dropped_qos0: int = 0
    dropped_too_large: int = 0


class Wire(asyncio.Protocol):
    """One connection to the broker: bytes in, packets to the link; bytes out, once a turn."""

    def __init__(self, link: RemoteLink, level: int, max_packet: int, loop: asyncio.AbstractEventLoop) -> None:
        self.link = link
        self.level = level
        self.decoder = Decoder(server=False, level=level, max_packet=max_packet, alias_maximum=ALIASES, topics=TOPICS)
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.out: list[bytes] = []
        self.lost: asyncio.Future[str] = loop.create_future()
        self.greeting: asyncio.Future[Connack] = loop.create_future()
        self.reason: int | None = None
        self.choked = False
        self.held = False
        self.echoing = False
        self.heard_at = self.sent_at = loop.time()
        self.pinged_at = 0.0
        # What the broker has announced.
        self.window = MOST_INFLIGHT
        self.max_packet = 0
        self.max_qos = 1
        self.keep_alive = 0.0
        self.aliases = 0
        self.aliases_used = 0
        self.identifiers = False
        self._waking = False
        self._busy = False
        self._gathering = False
        self._packets = 0
        self._sampled = self.heard_at

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is none by type
        self.link.wires.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                # Bytes that nobody acknowledges end the connection, also while nothing is read.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNHEARD_MILLISECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self.link.wires.discard(self)
        text = f"the connection broke: {exc}" if exc is not None else "the broker closed the connection"
        self.end(text)

    def data_received(self, data: bytes) -> None:
        """Hot: one read is one batch."""
        self.heard_at = self.loop.time()
        self.pinged_at = 0.0
        if not self.greeting.done() and self.level == 5 and data[:2] == b"\x20\2" and b"\0" < data[3:4] < b"\6":
            # A broker that does not know MQTT 5 says so in the words of 3.1.1 (MQTT 5 section 3.1.2.2).
            self.greeting.set_result(Connack(reason=Reason.UNSUPPORTED_PROTOCOL_VERSION))
            return
        wrong = None
        try:
            packets = self.decoder.feed(data)
        except MalformedPacket as error:
            packets, wrong = error.packets, error
        if packets and not self.greeting.done() and type(packets[0]) is not Connack:
            self.refuse(Reason.PROTOCOL_ERROR, f"the broker answered CONNECT with a {_kind(packets[0])}")
            return
        self._waking = True
        try:
            self.link.take(self, packets)
        finally:
            self._waking = False
        if wrong is not None:
            self.refuse(wrong.reason, f"the broker sent what is not MQTT: {wrong.detail}")
            return
        self.flush()
        self._packets += len(packets)
        passed = self.heard_at - self._sampled
        if passed >= SAMPLE:
            self._busy = self._packets > BUSY * passed
            self._packets = 0
            self._sampled = self.heard_at
        if self._busy:
            self._gathering = True
            self.reading()
            self.loop.call_later(GATHER, self._gathered)

    def _gathered(self) -> None:
        """Read once, at one go, what has come meanwhile."""
        self._gathering = False
        self.reading()

    def pause_writing(self) -> None:
        """The broker does not take what it is sent: it gets no more to send, until it does."""
        self.choked = True
        self.reading()

    def resume_writing(self) -> None:
        self.choked = False
        self.reading()
        self.link.drained()

    def reading(self) -> None:
        """Read, or leave the bytes to the kernel, and so to the broker."""
        wait = self.choked or self.held or self._gathering
        if self.transport is not None and not self.transport.is_closing():
            if wait:
                self.transport.pause_reading()
            else:
                self.transport.resume_reading()

    def wake(self) -> None:
        """Something is to be written: at the end of this turn."""
        if not self._waking:
            self._waking = True
            self.loop.call_soon(self._woken)

    def _woken(self) -> None:
        self._waking = False
        self.flush()

    def flush(self) -> None:
        """Everything in one write."""
        if self.out and self.transport is not None and not self.transport.is_closing():
            data = b"".join(self.out)
            self.out.clear()
            self.sent_at = self.loop.time()
            self.transport.write(data)

    def send(self, packet: Packet) -> None:
        """Any packet, in its turn."""
        self.out.append(encode(packet, self.level))
        self.wake()

    def refuse(self, reason: int, sentence: str) -> None:
        """Say what was wrong and close (MQTT 5 section 4.13)."""
        if self.level == 5 and self.greeting.done():
            self.out.append(encode(Disconnect(reason), 5))
        self.flush()
        self.end(sentence)

    def end(self, sentence: str) -> None:
        """Close; the first reason is the one that is told."""
        if not self.greeting.done():
            self.greeting.set_exception(DialError(sentence))
            self.greeting.exception()  # whoever waits is told; nobody need wait
        if not self.lost.done():
            self.lost.set_result(sentence)
        if self.transport is not None and not self.transport.is_closing():
            if self.choked:
                # What it does not take now must not reach it later, behind what the next connection says.
                self.abort()
            else:
                self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()


class Stranger(asyncio.Protocol):
    """Somebody without a name, who says one thing."""

    def __init__(self, level: int, says: bytes, loop: asyncio.AbstractEventLoop) -> None:
        self._level = level
        self._says = says
        self._transport: asyncio.Transport | None = None
        self._said = False
        self.answered: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's is none by type
        self._transport = made
        made.write(encode(Connect(f"ctxt-{secrets.token_hex(8)}", level=self._level, keep_alive=60), self._level))

    def data_received(self, data: bytes) -> None:
        if not self._said and data[0] == 0x20 and len(data) > 3 and not data[3] and self._transport is not None:
            self._said = True
            self._transport.write(self._says)
        elif not self.answered.done():
            self.answered.set_result(None)

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class RemoteLink:
    """Joins the service to a broker outside. Connects, and connects again, until it is stopped."""

    journal: Journal | None = None

    def __init__(self, remote: Remote, *, gateway_id: str, prefix: str = "") -> None:
        self._remote = remote
        head = f"{prefix}/" if prefix else ""
        self._head = head
        self._own_topic = f"{head}gateway/{gateway_id}"
        self._mark_topic = f"{head}replica/{gateway_id}/mark"
        self._echo_head = f"{head}replica/{gateway_id}/acl/"
        self._owned = tuple(f"{head}{verb}/" for verb in OWNED)
        self._commands = (f"{head}report/", f"{head}request/")
        self._escape = Escape(remote.escape, head)
        self._level = 4 if remote.protocol == "3.1.1" else 5
        self._receiver: Receiver | None = None
        self._wire: Wire | None = None
        self.wires: set[Wire] = set()
        self._ready = False
        self._task: asyncio.Task[None] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._started: asyncio.Future[None] | None = None
        self._begun = False
        self._stopping = False
        self._filters: frozenset[str] = frozenset()
        self._relistening: set[asyncio.Task[None]] = set()
        # Out.
        self._inflight: dict[int, tuple[Route, bytes]] = {}
        self._next_id = 1
        self._queue: deque[tuple[Route, bytes, int]] = deque()
        self._queued = 0
        self._asked: dict[int, tuple[type[Suback | Unsuback], asyncio.Future[Any]]] = {}
        # In.
        self._held: list[Publish] = []
        self._held_bytes = 0
        self._clearing: set[str] = set()
        self._mark: tuple[bytes, asyncio.Future[None]] | None = None
        self._echoes: tuple[bytes, list[str], asyncio.Event] | None = None
        self._strays: list[str] = []
        self._others = 0
        self._seen = 0
        self._warned: set[str] = set()
        # What the broker keeps of ours.
        self._epoch = 0
        self._confirmed = 0
        self._wills: set[int] = set()
        self._kept = (0, 0, False)
        self._taken_over: deque[float] = deque(maxlen=2)
        self.counters = Counters()
        self.address = (remote.way.host, remote.way.port)
        self.urls = [str(remote.way)]
        self.session_key = ("gateway", remote.client_id)

    # ---- the service's Link --------------------------------------------------------------------------------------------

    async def start(self, receiver: Receiver) -> None:
        """Connect and join, however long it takes. Raises LinkError when the broker refuses the gateway for good."""
        self._receiver = receiver
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._task = loop.create_task(self._live())
        self._task.add_done_callback(self._ended)
        try:
            await self._started
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    def reread(self) -> Callable[[], None]:
        """Whether the next connection can be made with the files of TLS as they are; they are read for each. Raises LinkError."""
        tls = self._remote.way.tls
        try:
            if tls is not None:
                tls.check(time.time())
        except DialError as error:
            raise LinkError(str(error)) from error
        return lambda: None

    async def stop(self) -> None:
        """Wait a little for the last acknowledgements, say good-bye, close."""
        self._stopping = True
        wire = self._wire
        if wire is not None and self._ready and not wire.lost.done():
            # What comes now is the next run's; acknowledgements are still ours.
            wire.held = False
            wire.reading()
            deadline = wire.loop.time() + FLUSH
            while (self._inflight or self._queue) and not wire.lost.done() and wire.loop.time() < deadline:  # noqa: ASYNC110  # once in a life
                await asyncio.sleep(0.01)
            wire.send(Disconnect())
            wire.flush()
            wire.end("the gateway stops")
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # TLS says good-bye too, and the loop may not close before.
        deadline = time.monotonic() + GOODBYE
        while self.wires and time.monotonic() < deadline:  # noqa: ASYNC110  # once in a life
            await asyncio.sleep(0.005)
        for wire in list(self.wires):
            wire.abort()
        await asyncio.sleep(0)

    @property
    def ready(self) -> bool:
        """Whether the broker is there and knows all that it needs to."""
        return self._ready

    @property
    def room(self) -> bool:
        """Whether more may be sent than reports ask for."""
        wire = self._wire
        return self._ready and wire is not None and not wire.choked and len(self._queue) < QUEUE_MESSAGES // 4

    def families(self) -> Iterator[Family]:
        """What passes between the gateway and the broker outside."""
        found = self.counters
        yield gauge("ctxt_link_up", "Whether the broker outside is there: 1 or 0.", int(self._ready))
        yield counter("ctxt_link_connections_total", "Connections to the broker outside.", found.connections)
        yield counter("ctxt_link_received_total", "Reports, requests and presence received.", found.received)
        yield counter("ctxt_link_sent_total", "Messages sent.", found.sent)
        yield counter("ctxt_link_resent_total", "Messages sent again after a reconnect.", found.resent)
        yield counter("ctxt_link_refused_total", "Messages that the broker refused.", found.refused)
        yield counter(
            "ctxt_link_retained_reports_total", "Retained reports and requests, not applied.", found.retained_reports
        )
        dropped = {"away": found.dropped_away, "qos0": found.dropped_qos0, "too_large": found.dropped_too_large}
        yield counters(
            "ctxt_link_dropped_total",
            "Messages dropped: to a broker that was away, QoS 0 from one that sent too many, too large for it.",
            "why",
            dropped,
        )
        yield gauge("ctxt_link_inflight", "Messages sent and not acknowledged.", len(self._inflight))
        yield gauge("ctxt_link_queued", "Messages that wait for the broker.", len(self._queue))

    async def echo(self, names: Sequence[str], seconds: float) -> list[str]:
        """Publish on `replica/{id}/acl/{name}`, one after the other: the names that come back until the last one has.

        What the broker lets the gateway write at this moment: brokers that read rules from files show with it which they go by.
        One at a time. Raises LinkError where the broker is away, or the last one has not come back within `seconds`.
        """
        wire = self._wire
        if wire is None or not self._ready:
            raise LinkError(f"{self._remote.way} is away")
        token, news = secrets.token_hex(8).encode(), asyncio.Event()
        heard: list[str] = []
        self._echoes = token, heard, news
        try:
            if not wire.echoing:
                await self._subscribe(wire, [f"{self._echo_head}+"], qos=0)
                wire.echoing = True
            for name in names:
                self._write(wire, Route(self._escaped(self._echo_head + name), False), token, 0)
            async with asyncio.timeout(seconds):
                while names[-1] not in heard:
                    await news.wait()
                    news.clear()
        except DialError as error:
            raise LinkError(str(error)) from error
        except TimeoutError:
            raise LinkError(
                f"{self._remote.way} does not pass on the gateway's own message on {self._echo_head}{names[-1]}"
            ) from None
        finally:
            self._echoes = None
        return heard

    def saved(self) -> None:
        """Nothing of this link's is in the store."""

    def wants(self, _head: str) -> bool:
        """A broker outside keeps what is retained: it gets all."""
        return True

    def route(self, topic: str, *, retain: bool) -> Route:
        """Prepare a topic (with its prefix)."""
        return Route(self._escaped(topic), retain, often=not retain)

    def send(self, route: Route, payload: bytes, qos: int) -> None:
        """Hot: publish on a prepared topic. While the broker is away it is dropped: the snapshot that follows says it all."""
        if not self._ready:
            self.counters.dropped_away += 1
            return
        self._send(route, payload, qos)

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, properties: Properties | None = None
    ) -> None:
        """Publish once on any topic. While the broker is away, QoS 1 waits for it, bounded."""
        route = Route(self._escaped(topic), retain, encode_properties(properties) if properties else b"")
        if self._ready:
            self._send(route, payload, qos)
        elif qos and len(self._queue) < WAITING and self._queued < WAITING_BYTES:
            self._enqueue(route, payload, qos)
        else:
            self.counters.dropped_away += 1

    def acknowledge(self, publish: Publish, _reason: int = 0, _text: str | None = None, /) -> None:
        """Hot: what was received is stored, or refused: either way the broker need not send it again."""
        wire: Wire = publish.origin
        if wire is not self._wire or not publish.qos:
            return
        if publish.qos == 1:
            wire.out.append(encode_puback(publish.packet_id))
        else:
            wire.out.append(encode(Pubrec(publish.packet_id), wire.level))
        wire.wake()

    def session(self, _publish: Publish) -> tuple[str, str]:
        """There is one session: the gateway's own."""
        return self.session_key

    def pause(self) -> None:
        """Stop reading."""
        if self._wire is not None:
            self._wire.held = True
            self._wire.reading()

    def resume(self) -> None:
        """Read again."""
        if self._wire is not None:
            self._wire.held = False
            self._wire.reading()
            self._hand_over()

    # ---- out -----------------------------------------------------------------------------------------------------------

    def _send(self, route: Route, payload: bytes, qos: int) -> None:
        wire = self._wire
        if self._queue or (qos and len(self._inflight) >= wire.window):  # type: ignore[union-attr]  # ready: there is one
            self._enqueue(route, payload, qos)
        else:
            self._write(wire, route, payload, qos)  # type: ignore[arg-type]

    def _enqueue(self, route: Route, payload: bytes, qos: int) -> None:
        self._queue.append((route, payload, qos))
        self._queued += len(payload)

    def _write(self, wire: Wire, route: Route, payload: bytes, qos: int) -> None:
        """Hot."""
        topic, properties = route.topic, route.properties
        if wire.max_packet and len(topic) + len(payload) + len(properties) + 16 > wire.max_packet:
            self._too_large(route, payload, wire.max_packet)
            return
        if wire.aliases and len(topic) >= LONG_TOPIC:
            if route.alias_of is wire:
                topic, properties = b"", route.alias + properties
            elif wire.aliases_used < wire.aliases and route.often:
                wire.aliases_used += 1
                route.alias = b"\x23" + wire.aliases_used.to_bytes(2)
                route.alias_of = wire
                properties = route.alias + properties
        packet_id = 0
        if qos and wire.max_qos:
            qos = 1
            packet_id = self._free_id()
            self._inflight[packet_id] = (route, payload)
        else:
            qos = 0
        self.counters.sent += 1
        wire.out.append(
            encode_publish(
                topic,
                payload,
                wire.level,
                qos=qos,
                retain=route.retain,
                packet_id=packet_id,
                properties=properties,
            )
        )
        wire.wake()

    def _free_id(self) -> int:
        packet_id = self._next_id
        while packet_id in self._inflight or packet_id in self._asked:
            packet_id = packet_id % 65_535 + 1
        self._next_id = packet_id % 65_535 + 1
        return packet_id

    def _too_large(self, route: Route, payload: bytes, most: int) -> None:
        self.counters.dropped_too_large += 1
        if self.counters.dropped_too_large < 10:
            _log.error(
                "the broker takes packets of at most %d bytes: %d bytes for %s are not sent; raise its limit",
                most,
                len(payload),
                route.topic.decode(),
            )

    def _pump(self) -> None:
        """Send what waits, as far as the broker takes it."""
        wire = self._wire
        queue = self._queue
        if wire is None or not self._ready:
            return
        while queue and not wire.choked:
            route, payload, qos = queue[0]
            if qos and len(self._inflight) >= wire.window:
                break
            queue.popleft()
            self._queued -= len(payload)
            self._write(wire, route, payload, qos)

    def drained(self) -> None:
        """The socket takes more."""
        self._pump()
        self._hand_over()

    def _escaped(self, topic: str) -> bytes:
        return self._escape.escaped(topic).encode()

    # ---- in ------------------------------------------------------------------------------------------------------------

    def take(self, wire: Wire, packets: list[Packet]) -> None:
        """Hot: what one read has brought."""
        if wire is not self._wire:
            return
        batch: list[Publish] = []
        owned = self._owned
        for packet in packets:
            if type(packet) is Publish:
                packet.origin = wire
                if self._escape:
                    packet.topic = self._escape.plain(packet.topic)
                plain = not packet.retain and not packet.properties and not self._clearing
                if (plain and packet.topic.startswith(owned)) or self._passes(packet):
                    batch.append(packet)
                else:
                    self.acknowledge(packet)
            elif type(packet) is Puback:
                entry = self._inflight.pop(packet.packet_id, None)
                if packet.reason >= 0x80 and entry is not None:
                    self._refused(entry[0], packet)
            else:
                self._other(wire, packet)
        # A broker that sends more at a time than it may is not refused for it: mosquitto 2.0 does so when a wire has stalled,
        # and on the next connection again.
        self.counters.received += len(batch)
        if self._queue:
            self._pump()
        if self._stopping:
            return
        if batch:
            if self._ready and not self._held and self._roomy():
                self._receiver.receive(batch)  # type: ignore[union-attr]  # there is one since start
                return
            self._hold(batch)
        if self._held:
            self._hand_over()

    def _roomy(self) -> bool:
        return len(self._queue) < QUEUE_MESSAGES and self._queued < QUEUE_BYTES

    def _hold(self, batch: list[Publish]) -> None:
        """Reports wait until the broker has taken what the earlier ones brought."""
        for publish in batch:
            if not publish.qos and self._held_bytes > HELD_BYTES:
                self.counters.dropped_qos0 += 1
                continue
            self._held.append(publish)
            self._held_bytes += len(publish.payload) + len(publish.topic)

    def _hand_over(self) -> None:
        """Take in what was held, a batch at a time."""
        while self._held and self._ready and self._roomy() and not self._wire.held:  # type: ignore[union-attr]
            batch, self._held = self._held[:1_000], self._held[1_000:]
            self._held_bytes -= sum(len(publish.payload) + len(publish.topic) for publish in batch)
            self._receiver.receive(batch)  # type: ignore[union-attr]

    def _passes(self, publish: Publish) -> bool:
        """Whether a message is for the service. What is retained of reports is not, and its copy is cleared."""
        topic = publish.topic
        if topic.startswith(self._owned):
            if publish.properties and publish.properties.get(Property.SUBSCRIPTION_IDENTIFIER) == [DEVICES]:
                # An adapter's filter begins with `+`: the message comes a second time.
                return False
            if not topic.startswith(self._commands):
                return bool(publish.payload) or not publish.retain
            if publish.retain and publish.payload:
                self.counters.retained_reports += 1
                if len(self._clearing) < 1_000:
                    self._clearing.add(topic)
                self.publish(topic, b"", qos=1, retain=True)
                return False
            if not publish.payload and (publish.retain or topic in self._clearing):
                # Our own clearing comes back to us, in 3.1.1 without RETAIN.
                self._clearing.discard(topic)
                return False
            return True
        if self._filters and any(matches(each, topic) for each in self._filters):
            return True
        self._notice(publish)
        return False

    def listen(self, filters: frozenset[str]) -> None:
        """Subscribe to what adapters want to hear, with each connection."""
        fresh, gone = filters - self._filters, self._filters - filters
        self._filters = filters
        wire = self._wire
        if self._ready and wire is not None and (fresh or gone):
            task = asyncio.get_running_loop().create_task(self._relisten(wire, fresh, gone))
            self._relistening.add(task)
            task.add_done_callback(self._relistening.discard)

    async def _relisten(self, wire: Wire, fresh: frozenset[str], gone: frozenset[str]) -> None:
        """What has changed, on a connection that is there. What cannot be said now is said with the next one."""
        try:
            if fresh:
                await self._subscribe(wire, sorted(fresh), qos=1, devices=True)
            if gone:
                unsubscribe = Unsubscribe(self._free_id(), [self._escape.escaped(each) for each in sorted(gone)])
                await self._ask(wire, unsubscribe, Unsuback)
        except LinkError as error:
            _log.error("%s: devices there are not heard", error)
        except DialError:
            pass

    def _notice(self, publish: Publish) -> None:
        """What the broker keeps of gateways and objects, and the mark that says that this was all."""
        topic, payload = publish.topic, publish.payload
        if topic == self._mark_topic:
            if self._mark is not None and payload == self._mark[0] and not self._mark[1].done():
                self._mark[1].set_result(None)
            return
        if topic.startswith(self._echo_head):
            if self._echoes is not None and payload == self._echoes[0]:
                self._echoes[1].append(topic.removeprefix(self._echo_head))
                self._echoes[2].set()
            return
        self._others += publish.retain
        if not payload:
            return
        epoch, counter, offline = _announced(payload)
        if topic == self._own_topic:
            if not epoch:
                return
            self._kept = (epoch, counter, offline)
            if self._begun and epoch > self._epoch and epoch != self._seen:
                self._give_up(
                    f"another gateway with the same id serves on {self._remote.way} (epoch {epoch}, ours is {self._epoch}): "
                    "give each gateway its own id and number"
                )
            elif epoch == self._epoch and not offline:
                self._confirmed = max(self._confirmed, counter)
            elif self._ready and not self._stopping:
                # The will of an earlier connection, or of an earlier run, came late.
                assert self._receiver is not None
                self.publish(self._own_topic, self._receiver.announcement("online"), qos=1, retain=True)
        if not self._begun:
            self._seen = max(self._seen, epoch)
            if topic.startswith((f"{self._head}snapshot/", f"{self._head}value/")):
                self._strays.append(topic)

    def _refused(self, route: Route, packet: Puback) -> None:
        if route.topic == self._escaped(self._mark_topic) and self._mark is not None and not self._mark[1].done():
            self._mark[1].set_exception(RefusedError(self._deaf()))
            return
        self.counters.refused += 1
        if self.counters.refused < 10:
            text = (packet.properties or {}).get(Property.REASON_STRING, "")
            _log.error(
                "the broker refuses a message on %s (reason 0x%02X%s): let %r write to it",
                route.topic.decode(),
                packet.reason,
                f", {text}" if text else "",
                self._remote.username or self._remote.client_id,
            )

    def _other(self, wire: Wire, packet: Packet) -> None:
        """Everything that is not the daily bread."""
        if isinstance(packet, Pubrel):
            wire.send(Pubcomp(packet.packet_id))
        elif isinstance(packet, Connack):
            if wire.greeting.done():
                wire.refuse(Reason.PROTOCOL_ERROR, "the broker sent a second CONNACK")
            else:
                wire.greeting.set_result(packet)
        elif isinstance(packet, Suback | Unsuback):
            kind, waiting = self._asked.pop(packet.packet_id, (None, None))
            if waiting is None or type(packet) is not kind:
                wire.refuse(Reason.PROTOCOL_ERROR, f"the broker sent a {_kind(packet)} that nobody asked for")
            elif not waiting.done():
                waiting.set_result(packet)
        elif isinstance(packet, Disconnect):
            wire.reason = packet.reason
            text = (packet.properties or {}).get(Property.REASON_STRING, "")
            wire.end(f"the broker ended the connection: {_words(packet.reason)}{f' ({text})' if text else ''}")
        elif not isinstance(packet, Pingresp):
            wire.refuse(Reason.PROTOCOL_ERROR, f"the broker sent a {_kind(packet)} that nobody asked for")

    # ---- life ----------------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Connect, join, stay, begin anew. Ends by being cancelled, or with the error that makes going on useless."""
        pause = FIRST_PAUSE
        patient = time.monotonic() + self._remote.patience
        while True:
            began = time.monotonic()
            try:
                wire = await self._connect()
                sentence = await wire.lost
            except RefusedError as error:
                waiting = self._started is not None and not self._started.done()
                if waiting and time.monotonic() >= patient:
                    raise
                sentence = str(error)
            except DialError as error:
                sentence = str(error)
            self._left()
            if self._begun and time.monotonic() - began >= STEADY:
                pause = FIRST_PAUSE
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311  # so that many do not come at once
            _log.warning("%s; trying again in %.1f s", sentence, wait)
            await asyncio.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)

    def _left(self) -> None:
        """The connection is gone. What was read is taken in all the same: the broker may have lost it; if it has not, DUP tells."""
        wire, self._wire = self._wire, None
        self._ready = False
        held, self._held, self._held_bytes = self._held, [], 0
        if held and self._begun and self._receiver is not None:
            self._receiver.receive(held)
        self._asked.clear()
        if self._beat is not None:
            self._beat.cancel()
        if wire is not None and wire.reason == Reason.SESSION_TAKEN_OVER:
            now = time.monotonic()
            self._taken_over.append(now)
            if len(self._taken_over) == 2 and now - self._taken_over[0] <= CONTEST:
                raise TakenOverError(
                    f"somebody else connects to {self._remote.way} as {self._remote.client_id!r} and has taken this "
                    "gateway's place twice: give each gateway its own id and number"
                )

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            return
        if not isinstance(error, LinkError):
            _log.critical("an error of the link's own", exc_info=error)
        if self._started is not None and not self._started.done():
            self._started.set_exception(error)
        elif self._receiver is not None:
            self._receiver.link_failed(error)

    def _give_up(self, sentence: str) -> None:
        """Stop for good, from within a read."""
        wire, self._wire = self._wire, None
        self._ready = False
        if self._task is not None:
            self._task.cancel()
        if wire is not None:
            # With a good-bye: the will would overwrite what the other one says of itself.
            wire.send(Disconnect())
            wire.flush()
            wire.end(sentence)
        error = TakenOverError(sentence)
        if self._started is not None and not self._started.done():
            self._started.set_exception(error)
        elif self._receiver is not None:
            self._receiver.link_failed(error)

    async def _connect(self) -> Wire:
        """One attempt, until the gateway has joined. Raises DialError, RefusedError."""
        remote = self._remote
        receiver = self._receiver
        assert receiver is not None
        # In 3.1.1 nothing tells the broker how much is too much, and what is not acknowledged comes again for ever: all is
        # taken, and the engine refuses what is too large.
        most = remote.max_packet if self._level == 5 else LARGEST_PACKET
        wire = Wire(self, self._level, most, asyncio.get_running_loop())
        await dial(remote.way, wire, remote.connect_timeout)
        self._wire = wire
        try:
            will = receiver.announcement("offline")
            counter = receiver.counter
            wire.send(self._hello(wire.level, will))
            wire.flush()
            try:
                connack = await asyncio.wait_for(asyncio.shield(wire.greeting), remote.connect_timeout)
            except TimeoutError as error:
                raise DialError(
                    f"{remote.way} does not answer a CONNECT within {remote.connect_timeout:g} s"
                ) from error
            except DialError:
                if remote.protocol == "auto" and not self.counters.connections:
                    # Some say nothing to MQTT 5 and close: the next attempt is in 3.1.1, the one after it in 5 again.
                    self._level = 4 if wire.level == 5 else 5
                raise
            self._check(wire, connack)
            self._beat = wire.loop.call_later(1.0, self._tick, wire)
            await self._join(wire, connack.session_present, counter)
        except BaseException:
            self._ready = False
            wire.end("the gateway gave up this connection")
            raise
        return wire

    def _hello(self, level: int, will: bytes) -> Connect:
        remote = self._remote
        properties: Properties | None = None
        if level == 5:
            properties = {
                Property.SESSION_EXPIRY_INTERVAL: remote.session_expiry,
                Property.RECEIVE_MAXIMUM: remote.receive_maximum,
                Property.MAXIMUM_PACKET_SIZE: remote.max_packet,
                Property.TOPIC_ALIAS_MAXIMUM: ALIASES,
            }
        return Connect(
            remote.client_id,
            level=level,
            clean_start=False,
            keep_alive=remote.keep_alive,
            username=remote.username,
            password=self._password(),
            will=Will(self._escape.escaped(self._own_topic), will, 1, True),
            properties=properties,
        )

    def _password(self) -> bytes | None:
        """Read anew each time. Raises RefusedError."""
        file = self._remote.password_file
        if file is None:
            return None
        try:
            return file.read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
        except OSError as error:
            raise RefusedError(
                f"{file}, the password for {self._remote.way}, cannot be read: {error.strerror}"
            ) from error

    def _check(self, wire: Wire, connack: Connack) -> None:
        """What the broker says to a CONNECT, and what it can do. Raises DialError, RefusedError."""
        remote = self._remote
        reason = connack.reason
        said: Properties = connack.properties or {}
        if reason:
            if reason == Reason.UNSUPPORTED_PROTOCOL_VERSION and wire.level == 5 and remote.protocol == "auto":
                self._level = 4
                raise DialError(f"{remote.way} does not speak MQTT 5: 3.1.1 it is")
            text = said.get(Property.REASON_STRING, "")
            sentence = f"{remote.way} refuses the gateway: {_words(reason)}{f' ({text})' if text else ''}"
            if reason in (Reason.BAD_USER_NAME_OR_PASSWORD, Reason.NOT_AUTHORIZED):
                came = "without a name" if remote.username is None else f"as {remote.username!r}"
                sentence += f"; it came {came}: check link.username and link.password_file"
            elif reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
                sentence += "; set link.protocol"
            raise RefusedError(sentence) if reason in REFUSED_FOR_GOOD else DialError(sentence)
        if not said.get(Property.RETAIN_AVAILABLE, 1):
            raise RefusedError(f"{remote.way} keeps no retained messages, and the gateway needs them: allow them there")
        if not said.get(Property.WILDCARD_SUBSCRIPTION_AVAILABLE, 1):
            raise RefusedError(f"{remote.way} allows no wildcards in subscriptions, and the gateway needs them")
        wire.window = min(MOST_INFLIGHT, said.get(Property.RECEIVE_MAXIMUM, 65_535))
        wire.max_packet = said.get(Property.MAXIMUM_PACKET_SIZE, 0)
        wire.max_qos = said.get(Property.MAXIMUM_QOS, 2)
        wire.aliases = said.get(Property.TOPIC_ALIAS_MAXIMUM, 0)
        wire.identifiers = wire.level == 5 and bool(said.get(Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE, 1))
        wire.keep_alive = said.get(Property.SERVER_KEEP_ALIVE, remote.keep_alive)
        self.counters.connections += 1
        self._warn(said)

    def _warn(self, said: Properties) -> None:
        """Say, once, what the broker's limits will lose."""
        remote = self._remote
        found = []
        expiry = said.get(Property.SESSION_EXPIRY_INTERVAL, remote.session_expiry)
        if expiry < remote.session_expiry:
            found.append(f"keeps reports for an absent gateway for {expiry:,} s only, not {remote.session_expiry:,} s")
        if not said.get(Property.MAXIMUM_QOS, 2):
            found.append("takes QoS 0 only: what is lost on the way is not sent again")
        packet = said.get(Property.MAXIMUM_PACKET_SIZE, remote.max_packet)
        if packet < remote.max_packet:
            found.append(
                f"takes packets of at most {packet:,} bytes: larger snapshots and deltas cannot be published; "
                "raise its limit, or lower limits.data_bytes"
            )
        for sentence in found:
            if sentence not in self._warned:
                self._warned.add(sentence)
                _log.warning("%s %s", remote.way, sentence)

    async def _join(self, wire: Wire, session_present: bool, will: int) -> None:
        """Read what the broker keeps, send again what it has not acknowledged, then take reports in. Raises DialError, RefusedError.

        `will`: the counter in this connection's will.
        """
        receiver = self._receiver
        assert receiver is not None
        first = not self._begun
        self._resend(wire, session_present)
        if not session_present:
            receiver.session_lost(self.session_key)
        self._wills.add(will)
        self._kept = (0, 0, False)
        self._strays.clear()
        retained = [f"{self._head}{verb}/#" for verb in ("snapshot", "value")] + [f"{self._head}gateway/+"]
        # At QoS 0: what comes at QoS 1 waits behind the reports of the session, and those wait for the gateway to have joined.
        await self._subscribe(wire, [self._mark_topic], qos=0)
        await self._subscribe(wire, [self._own_topic, *(retained if first else ())], qos=0)
        await self._all_there(wire)
        if first:
            if not self._remote.open and await self._anybody_may(wire):
                raise RefusedError(
                    f"{self._remote.way} lets clients without a name write what only the gateway may write: close it "
                    "(config/mosquitto shows how), or set link.open = true where nothing needs to be believed"
                )
            unsubscribe = Unsubscribe(self._free_id(), [self._escape.escaped(topic) for topic in retained])
            await self._ask(wire, unsubscribe, Unsuback)
            self._epoch = receiver.begin(self._seen, self._kept[0])
            self._begun = True
        epoch, counter, offline = self._kept
        # Since the last word of ours the will of any connection since then may have been published.
        kept = epoch == self._epoch and (counter >= self._confirmed or (offline and counter in self._wills))
        lost = first or not kept
        self._wills = {will}
        self._ready = True
        receiver.joined(lost=lost, strays=list(self._strays) if first else [])
        self._strays.clear()
        self._pump()
        await self._subscribe(wire, [f"{verb}#" for verb in self._owned], qos=2, as_published=wire.level == 5)
        if self._filters:
            await self._subscribe(wire, sorted(self._filters), qos=1, devices=True)
        self._hand_over()
        _log.info(
            "joined %s with MQTT %s%s%s",
            self._remote.way,
            "5" if wire.level == 5 else "3.1.1",
            "" if session_present else ", a new session",
            ", publishing every snapshot" if lost else "",
        )
        if self._started is not None and not self._started.done():
            self._started.set_result(None)

    def _resend(self, wire: Wire, session_present: bool) -> None:
        """[MQTT-4.4.0-1]: with the same identifiers where the broker knows the session, else as new messages."""
        self.counters.resent += len(self._inflight)
        if session_present and len(self._inflight) <= wire.window:
            for packet_id, (route, payload) in self._inflight.items():
                wire.out.append(
                    encode_publish(
                        route.topic,
                        payload,
                        wire.level,
                        qos=1,
                        retain=route.retain,
                        dup=True,
                        packet_id=packet_id,
                        properties=route.properties,
                    )
                )
            wire.wake()
            return
        self._queue.extendleft((route, payload, 1) for route, payload in reversed(self._inflight.values()))
        self._queued += sum(len(payload) for _, payload in self._inflight.values())
        self._inflight.clear()

    async def _subscribe(
        self, wire: Wire, filters: Iterable[str], *, qos: int, as_published: bool = False, devices: bool = False
    ) -> None:
        """`as_published`: RETAIN tells what the sender has set, else whether the broker had kept the message.

        `devices`: for adapters; with 5.0 each message says that it comes from such a subscription (section 3.8.2.1.2).
        """
        subscriptions = [
            Subscription(self._escape.escaped(topic), qos, retain_as_published=as_published) for topic in filters
        ]
        properties: Properties | None = None
        if devices and wire.identifiers:
            properties = {Property.SUBSCRIPTION_IDENTIFIER: DEVICES}
        answer = await self._ask(wire, Subscribe(self._free_id(), subscriptions, properties), Suback)
        if len(answer.reasons) != len(subscriptions):
            raise DialError(f"{self._remote.way} answers {len(subscriptions)} subscriptions with {len(answer.reasons)}")
        for one, reason in zip(subscriptions, answer.reasons, strict=True):
            if reason >= 0x80:
                raise RefusedError(
                    f"{self._remote.way} does not let the gateway read {one.topic_filter} ({_words(reason)}): "
                    f"let {self._name} read it"
                )

    async def _ask(self, wire: Wire, packet: Subscribe | Unsubscribe, kind: type[_A]) -> _A:
        """Send and wait for the answer. Raises DialError."""
        waiting: asyncio.Future[Any] = wire.loop.create_future()
        self._asked[packet.packet_id] = (kind, waiting)
        wire.send(packet)
        answer: _A = await self._patiently(wire, waiting)
        return answer

    async def _patiently(self, wire: Wire, waiting: asyncio.Future[_T]) -> _T:
        """Wait as long as the broker gives signs of life. Raises DialError."""
        while not waiting.done():
            heard = self._others
            await asyncio.wait((waiting, wire.lost), timeout=JOIN, return_when=asyncio.FIRST_COMPLETED)
            if wire.lost.done():
                raise DialError(wire.lost.result())
            if not waiting.done() and heard == self._others:
                raise DialError(f"{self._remote.way} lets the gateway in and then does not answer")
        return waiting.result()

    async def _all_there(self, wire: Wire) -> None:
        """Wait until the broker has sent what it retains: a message to ourselves comes behind it. Raises DialError."""
        token = secrets.token_hex(8).encode()
        waiting: asyncio.Future[None] = wire.loop.create_future()
        self._mark = (token, waiting)
        # At QoS 1 the broker can say why it refuses it; but what was sent before may have taken all the room there is.
        qos = 1 if len(self._inflight) < wire.window else 0
        self._write(wire, Route(self._escaped(self._mark_topic), False), token, qos)
        try:
            await self._patiently(wire, waiting)
        except DialError as error:
            if wire.lost.done():
                raise
            raise RefusedError(self._deaf()) from error
        while True:
            heard = self._others
            await asyncio.sleep(SETTLE)
            if heard == self._others:
                return

    def _deaf(self) -> str:
        return (
            f"{self._remote.way} does not pass on the gateway's own message on {self._mark_topic}: let {self._name} write to"
            " it and read it"
        )

    @property
    def _name(self) -> str:
        """Under which name the broker knows the gateway, as far as the gateway does."""
        return repr(self._remote.username or self._remote.client_id)

    async def _anybody_may(self, wire: Wire) -> bool:
        """Whether a client without a name can write as the gateway: judged by what is delivered, not by what is acknowledged."""
        token = secrets.token_hex(8).encode()
        delivered: asyncio.Future[None] = wire.loop.create_future()
        self._mark = (token, delivered)
        mark = encode_publish(self._escaped(self._mark_topic), token, wire.level, qos=1, packet_id=1)
        stranger = Stranger(wire.level, mark, wire.loop)
        try:
            await dial(self._remote.way.nameless, stranger, self._remote.connect_timeout)
            await asyncio.wait((stranger.answered, wire.lost), timeout=JOIN, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait((delivered,), timeout=SETTLE)
        except DialError:
            return False
        finally:
            stranger.close()
        return delivered.done()

    def _tick(self, wire: Wire) -> None:
        """Keep the connection alive, and notice when it is not (MQTT 5 section 3.1.2.10)."""
        if wire is not self._wire or wire.lost.done():
            return
        self._beat = wire.loop.call_later(1.0, self._tick, wire)
        now = wire.loop.time()
        deaf = wire.held or wire.choked
        if deaf:
            # Nothing is read now: silence tells nothing, and an answer may have to wait.
            wire.pinged_at = 0.0
        elif wire.pinged_at and now - wire.pinged_at > min(PING_WAIT, wire.keep_alive):
            wire.end(f"{self._remote.way} has been silent for {now - wire.heard_at:.0f} s")
            return
        quiet = wire.sent_at if deaf else min(wire.sent_at, wire.heard_at)
        if wire.keep_alive and not wire.pinged_at and now - quiet >= wire.keep_alive * 0.75 and not wire.choked:
            if not deaf:
                wire.pinged_at = now
            wire.send(Pingreq())


def _announced(payload: bytes) -> tuple[int, int, bool]:
    """Epoch, counter and whether it says offline, of whatever somebody has published; zeros where it says nothing of the kind."""
    try:
        found = orjson.loads(payload)
    except ValueError:
        return 0, 0, False
    if not isinstance(found, dict):
        return 0, 0, False
    epoch, counter = found.get("epoch"), found.get("counter")
    return (
        epoch if isinstance(epoch, int) else 0,
        counter if isinstance(counter, int) else 0,
        found.get("status") == "offline",
    )


def _kind(packet: Packet) -> str:
    return type(packet).__name__.upper()


def _words(reason: int) -> str:
    """A reason code as words."""
    try:
        return Reason(reason).name.replace("_", " ").lower()
    except ValueError:
        return f"reason 0x{reason:02X}"
