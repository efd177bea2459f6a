"""One TCP connection: bytes to packets to their meaning, and one write per turn."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from gateway.broker.house import Peer
from gateway.broker.session import DENIED, LONGEST_DOOR, MOST_DOORS, OWNED, ROUTED
from gateway.wire.codec import Decoder, encode
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
    Subscribe,
    Unsubscribe,
)

if TYPE_CHECKING:
    from gateway.broker.house import Login
    from gateway.broker.server import Broker
    from gateway.broker.session import Session
    from gateway.wire.packets import Packet

HOUSE, ADMISSION, WINDOW, BACKLOG, QUESTIONS, SLICES = 1, 2, 4, 8, 16, 32
"""Why a connection is not read from: the house is busy; its CONNECT is being judged; too much of it is unacknowledged;
it does not read its own answers; too many of its SUBSCRIBEs wait; what one read has brought is not all taken yet."""

SLICE = 32_768
"""Bytes of one connection that are taken in one turn, so that a flood of tiny packets does not hold up the others."""

MOST_EARLY = 1_048_576
"""Bytes that may come although reading is paused: little more than one read."""

MOST_UNREAD_ANSWERS = 1_024
MOST_QUESTIONS = 8

LINGER = 1.0
"""Seconds that a client has to read why it was disconnected, before the socket is closed under it."""

PINGRESP = encode(Pingresp(), 4)


class Connection(asyncio.Protocol):
    """`session` is None until the client is admitted; after `ended` nothing that arrives is looked at."""

    __slots__ = (
        "_decoder",
        "_early",
        "_held",
        "_listener",
        "_questions",
        "broker",
        "choked",
        "closing_at",
        "doomed",
        "ended",
        "entered",
        "heard",
        "heard_at",
        "keep_alive",
        "login",
        "out",
        "peer",
        "pending",
        "session",
        "since",
        "task",
        "transport",
    )

    def __init__(self, broker: Broker, listener: str, entered: str | None = None) -> None:
        """`entered`: the address that the socket has been counted for already."""
        limits = broker.limits
        self.broker = broker
        self._listener = listener
        self.entered = entered
        self._decoder = Decoder(server=True, max_packet=limits.max_packet, alias_maximum=limits.topic_aliases)
        self._early = b""
        self._held = 0
        self._questions = 0
        self.transport: asyncio.Transport = None  # type: ignore[assignment] # set before anything else happens
        self.peer = Peer("", 0, loopback=False, listener=listener)
        self.session: Session | None = None
        self.login: Login | None = None
        self.task: asyncio.Task[None] | None = None
        self.out: list[bytes] = []
        self.pending = 0
        self.choked = False
        self.ended = False
        self.doomed = False
        self.heard = False
        self.heard_at = broker.clock()
        self.since = 0.0
        self.keep_alive = limits.connect_timeout
        self.closing_at = 0.0

    # ---- the socket ----------------------------------------------------------------------------------------------------

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport: asyncio.Transport = made  # type: ignore[assignment] # uvloop's is none by type, only by what it can do
        self.transport = transport
        broker = self.broker
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.peer = _peer(transport, self._listener)
        if not broker.connected(self):
            transport.abort()
            self.ended = True
            return
        transport.set_write_buffer_limits(high=broker.limits.write_bytes)
        if broker.paused:
            self.hold(HOUSE)

    def data_received(self, data: bytes) -> None:
        """Hot: whatever one read of the socket has brought."""
        if self.ended:
            return
        self.heard = True
        if self._held & (ADMISSION | SLICES):
            self._wait(data)
            return
        if len(data) > SLICE:
            self._early = data[SLICE:]
            data = data[:SLICE]
            self.hold(SLICES)
            self.broker.loop.call_soon(self._next_slice)
        self.broker.counters.bytes_in += len(data)
        try:
            packets = self._decoder.feed(data)
        except MalformedPacket as error:
            self._take(error.packets)
            if not self.ended:
                self._refuse_bytes(error)
            return
        self._take(packets)

    def _wait(self, data: bytes) -> None:
        """More has come although reading is paused: little, or the transport does not keep its word."""
        if len(self._early) + len(data) > MOST_EARLY:
            self.end(Reason.QUOTA_EXCEEDED)
            return
        self._early += data

    def _next_slice(self) -> None:
        self._held &= ~SLICES
        if self._held & ADMISSION:
            return  # what is left waits for the password check
        early, self._early = self._early, b""
        self.data_received(early)
        self._read_on()

    def _read_on(self) -> None:
        """Read again if nothing speaks against it."""
        if not self._held and not self.ended and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client does not take what it is sent: from here on messages queue."""
        self.choked = True
        if self.session is not None:
            self.session.refresh()

    def resume_writing(self) -> None:
        self.choked = False
        self.release(BACKLOG)
        if self.session is not None and not self.ended:
            if self.out:
                self.flush()
            self.session.pump()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # how it ended changes nothing
        if self.task is not None:
            self.task.cancel()
        if not self.ended and self.session is not None:
            self.broker.counters.lost += 1
        self.ended = True
        self.out.clear()
        self.broker.detach(self, clean=False)
        self.broker.disconnected(self)

    # ---- in ------------------------------------------------------------------------------------------------------------

    def _take(self, packets: list[Packet]) -> None:
        """Hot: the meaning of packets, in order. Owned publishes go to the broker's batch for this turn."""
        session = self.session
        if session is None:
            for packet in packets:
                self._handle(packet)
                if self.ended:
                    return
            return
        broker = self.broker
        house = broker.house
        if session.doors_rights != house.generation:
            session.doors.clear()
            session.doors_rights = house.generation
        doors = session.doors
        incoming = session.incoming
        most = broker.limits.receive_maximum
        batch = broker.batch
        received, received_bytes = broker.counters.received, broker.counters.payload_in
        for packet in packets:
            kind = type(packet)
            if kind is Publish:
                door = doors.get(packet.topic)  # type: ignore[union-attr] # here and below: `kind` says which it is
                if door is None:
                    door = self._door(session, packet.topic)  # type: ignore[union-attr]
                qos = packet.qos  # type: ignore[union-attr]
                received[qos] += 1
                received_bytes[qos] += len(packet.payload)  # type: ignore[union-attr]
                if door != OWNED or qos == 2 or len(incoming) >= most:
                    self._publish(session, packet, door)  # type: ignore[arg-type]
                    if self.ended:
                        break
                    continue
                packet.origin = session  # type: ignore[union-attr]
                if qos:
                    incoming[packet.packet_id] = packet  # type: ignore[assignment,union-attr]
                batch.append(packet)  # type: ignore[arg-type]
            elif kind is Puback:
                session.puback(packet.packet_id)  # type: ignore[union-attr]
            else:
                self._handle(packet)
                if self.ended:
                    break
                if session.doors_rights != house.generation:
                    doors.clear()
                    session.doors_rights = house.generation
        if batch:
            broker.schedule()
        if session.queue or session.feeds:
            session.pump()
        if self.choked and len(self.out) > MOST_UNREAD_ANSWERS:
            self.hold(BACKLOG)

    def _door(self, session: Session, topic: str) -> int:
        """What a topic means to this client, remembered while rights are as they are. Refusals are not remembered."""
        house = self.broker.house
        if not house.may_publish(session.client, topic):
            return DENIED
        door = OWNED if house.owns(topic) else ROUTED
        if len(topic) <= LONGEST_DOOR:
            if len(session.doors) >= MOST_DOORS:
                session.doors.clear()
            session.doors[topic] = door
        return door

    def _publish(self, session: Session, publish: Publish, door: int) -> None:
        """A PUBLISH that is not simply handed to the house: QoS 2, denied, for subscribers, or one too many."""
        broker = self.broker
        packet_id = publish.packet_id
        publish.origin = session
        if publish.qos:
            if publish.qos == 2:
                pending = session.incoming.get(packet_id)
                if isinstance(pending, Publish) and pending.qos == 2:
                    return
                if packet_id in session.received and not session.reused(publish):
                    self.put(session.answer(publish, Reason.SUCCESS, None))
                    return
            most = broker.limits.receive_maximum
            if session.level < 5:
                # 3.1.1 clients are told no maximum: they are not read from until the house has caught up.
                if len(session.incoming) >= most:
                    self.hold(WINDOW)
                    broker.throttled.add(self)
            elif len(session.incoming) + len(session.received) >= most:
                self.end(Reason.RECEIVE_MAXIMUM_EXCEEDED)
                return
        if door == OWNED:
            if publish.qos:
                session.incoming[packet_id] = publish
            broker.batch.append(publish)
            return
        reason, text = Reason.SUCCESS, None
        if door == DENIED:
            broker.counters.denied_publish += 1
            if broker.strangers.open and publish.topic:
                broker.strangers.note(session.client, publish, refused=True)
            reason = Reason.NOT_AUTHORIZED
            text = f"client {session.client} may not publish to {publish.topic[:200]}"
        elif not broker.take(publish):
            reason = Reason.QUOTA_EXCEEDED
            text = "no room for another retained message: clear some, or publish without RETAIN"
        if not publish.qos:
            return
        journal = broker.journal
        if journal is not None and not reason and (journal.dirty or (publish.qos == 2 and session.record is not None)):
            # Whoever is told that it is taken can rely on it: the sessions that wait for it are stored first.
            session.incoming[packet_id] = publish
            if publish.qos == 2:
                journal.received(session, publish)
            journal.hold(publish)
            broker.schedule()
            return
        answer = session.answer(publish, reason, text)
        if session.incoming:
            session.incoming[packet_id] = answer
            session.deferred += 1
        else:
            self.put(answer)

    def _handle(self, packet: Packet) -> None:
        """Everything but PUBLISH and PUBACK."""
        if isinstance(packet, Connect):
            if self.session is not None or self.task is not None:
                self.end(Reason.PROTOCOL_ERROR)
                return
            self.hold(ADMISSION)
            self.task = self.broker.loop.create_task(self.broker.admit(self, packet))
            self.task.add_done_callback(_judged)
            return
        session = self.session
        if session is None:
            self.end(Reason.PROTOCOL_ERROR)
        elif isinstance(packet, Pingreq):
            self.put(PINGRESP)
        elif isinstance(packet, Pubrel):
            known = packet.packet_id in session.received
            if known:
                session.released(packet.packet_id)
            reason = Reason.SUCCESS if known else Reason.PACKET_IDENTIFIER_NOT_FOUND
            self.put(encode(Pubcomp(packet.packet_id, reason), session.level))
        elif isinstance(packet, Pubrec):
            session.pubrec(packet.packet_id, packet.reason)
        elif isinstance(packet, Pubcomp):
            session.pubcomp(packet.packet_id)
        elif isinstance(packet, (Subscribe, Unsubscribe)):
            self._ask(packet)
        elif isinstance(packet, Disconnect):
            self._leave(session, packet)
        else:
            self.end(Reason.PROTOCOL_ERROR)

    def _ask(self, packet: Subscribe | Unsubscribe) -> None:
        """SUBSCRIBE and UNSUBSCRIBE wait until what is applied is stored, so that retained messages are never ahead of it."""
        self._questions += 1
        if self._questions > MOST_QUESTIONS:
            self.hold(QUESTIONS)

        def then() -> None:
            self._questions -= 1
            self.release(QUESTIONS)
            if self.session is None or self.ended:
                return
            if isinstance(packet, Subscribe):
                self.broker.subscribe(self, self.session, packet)
            else:
                self.broker.unsubscribe(self, self.session, packet)

        self.broker.house.settled(then)

    def _leave(self, session: Session, packet: Disconnect) -> None:
        """DISCONNECT by the client [MQTT-3.14.4-1..3]."""
        expiry = packet.properties.get(Property.SESSION_EXPIRY_INTERVAL) if packet.properties else None
        if expiry is not None:
            if expiry and not session.expiry:
                self.end(Reason.PROTOCOL_ERROR)
                return
            session.expiry = float(min(expiry, self.broker.limits.session_expiry))
        self.broker.counters.left += 1
        self.ended = True
        self.broker.detach(self, clean=packet.reason == Reason.SUCCESS)
        self._close()

    # ---- out -----------------------------------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        """Send a packet with this turn's others."""
        if self.ended:
            return
        if not self.out:
            self.broker.wake(self)
        self.out.append(data)
        self.pending += len(data)

    def flush(self) -> None:
        """Hot: write what has been collected. While the client reads nothing it stays collected; what may collect is bounded."""
        out = self.out
        if self.choked or not out:
            return
        self.broker.counters.bytes_out += self.pending
        self.pending = 0
        data = b"".join(out)
        out.clear()
        self.transport.write(data)

    # ---- the end -------------------------------------------------------------------------------------------------------

    def admitted(self, keep_alive: float) -> None:
        """The client is known: read on, with what has come behind its CONNECT. `keep_alive` in seconds, 0 = none."""
        self.task = None
        self.since = self.broker.clock()
        self.keep_alive = keep_alive
        self.heard = True
        self._held &= ~ADMISSION
        early, self._early = self._early, b""
        self.data_received(early)
        self._read_on()

    def reject(self, reason: int, level: int, text: str | None = None) -> None:
        """CONNACK with a refusal, and close [MQTT-3.2.2-7]."""
        if self.ended:
            return
        self.broker.counters.connects_refused[reason] += 1
        properties: Any = {Property.REASON_STRING: text} if text and level >= 5 else None
        self.put(encode(Connack(reason=reason, properties=properties), level))
        self.ended = True
        self._linger()

    def _refuse_bytes(self, error: MalformedPacket) -> None:
        """Bytes that are no MQTT, or none that is allowed: say so where the protocol has words for it, and close."""
        self.broker.counters.malformed += 1
        if self.session is None and error.reason == Reason.UNSUPPORTED_PROTOCOL_VERSION:
            self.reject(error.reason, 4)
        elif self.session is None and self._decoder.level >= 5:
            self.reject(error.reason, 5, error.detail)
        else:
            self.end(error.reason, error.detail)

    def end(self, reason: int, text: str | None = None, *, replaced: bool = False) -> None:
        """Disconnect the client, telling an MQTT 5 one why. Its will fires. `replaced`: it comes back at once."""
        if self.ended:
            return
        session = self.session
        counters = self.broker.counters
        (counters.connects_refused if session is None else counters.disconnects)[reason] += 1
        if session is not None and session.level >= 5:
            properties: Any = {Property.REASON_STRING: text} if text else None
            packet = encode(Disconnect(reason, properties), 5)
            if len(packet) > session.max_packet:
                packet = encode(Disconnect(reason), 5)
            self.put(packet)
        self.ended = True
        self.broker.detach(self, clean=False, replaced=replaced)
        if session is None:
            self._close()
        else:
            self._linger()

    def doom(self, reason: int) -> None:
        """`end`, but after the callback that is running now: the house may be in the middle of sending."""
        if not self.doomed:
            self.doomed = True
            if self.session is not None:
                self.session.refresh()
                self.broker.hand_over(self.session)
            self.broker.loop.call_soon(self.end, reason)

    def _linger(self) -> None:
        """Half-close, and give the client a moment to read: closing with unread bytes would destroy the packet on its way."""
        if self.choked or self.transport.is_closing() or not self.transport.can_write_eof():
            self._close()
            return
        self.flush()
        try:
            self.transport.write_eof()
        except OSError:  # the client was quicker: its end of the connection has been torn down
            self._close()
            return
        if self._held:
            self._held = 0
            self.transport.resume_reading()
        self.closing_at = self.broker.clock() + LINGER

    def _close(self) -> None:
        """Close once the network has taken what is written; at once where the client does not read."""
        if self.task is not None and self.task is not asyncio.current_task(self.broker.loop):
            self.task.cancel()
        if self.choked:
            self.out.clear()
            self.transport.abort()
            return
        self.flush()
        self.closing_at = self.broker.clock() + LINGER
        self.transport.close()

    def withhold(self) -> bool:
        """Give the network what is written already, or cut the connection where it does not take it; whether it was cut."""
        self.flush()
        if self.ended or not (self.out or self.transport.get_write_buffer_size()):
            return False
        self.ended = True
        self.broker.counters.disconnects[Reason.ADMINISTRATIVE_ACTION] += 1
        self.broker.detach(self, clean=False)
        self.out.clear()
        self.transport.abort()
        return True

    # ---- back-pressure -------------------------------------------------------------------------------------------------

    def hold(self, why: int) -> None:
        """Stop reading for one more reason."""
        if not self._held and not self.ended and not self.transport.is_closing():
            self.transport.pause_reading()
        self._held |= why

    def release(self, why: int) -> None:
        """Read again when this was the last reason."""
        if not self._held & why:
            return
        self._held &= ~why
        if not self._held:
            self.heard = True
            self._read_on()

    @property
    def begun(self) -> bool:
        """Whether `connection_made` has been called: `connection_lost` will be, then."""
        return self.transport is not None

    @property
    def patient(self) -> bool:
        """Whether silence is no fault of the client: we do not read from it."""
        return bool(self._held & ~BACKLOG)


def _judged(task: asyncio.Task[None]) -> None:
    """What goes wrong while a CONNECT is judged is told to the loop at once."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        raise error


def _peer(transport: asyncio.Transport, listener: str) -> Peer:
    """The other end's address; a Unix socket or one that has gone already is ("", 0). Who is on a Unix socket is here."""
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        sock = transport.get_extra_info("socket")
        here = sock is not None and sock.family == socket.AF_UNIX
        return Peer("", 0, loopback=here, listener=listener)
    host, port = str(name[0]), int(name[1])
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Peer(host, port, loopback=False, listener=listener)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return Peer(host, port, loopback=(mapped or address).is_loopback, listener=listener, tls_name=_tls_name(transport))


def _tls_name(transport: asyncio.Transport) -> str | None:
    """The common name in a verified client certificate; none where it has several, which no two programs read alike."""
    certificate = transport.get_extra_info("peercert")
    subject = certificate.get("subject", ()) if certificate else ()
    found = [str(value) for part in subject for name, value in part if name == "commonName"]
    return found[0] if len(found) == 1 else None
