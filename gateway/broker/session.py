"""One client's state under one client id: what it wants, what it has been sent, what it has sent. No sockets, no clock.

A session outlives its connection as long as its expiry says. Its key is (client, client id): nobody takes over another's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from gateway.broker.journal import mark
from gateway.broker.subscriptions import NEVER, identifier_properties
from gateway.wire.codec import encode, encode_properties, encode_puback, publish_parts
from gateway.wire.packets import Property, Puback, Publish, Pubrec, Pubrel, Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.broker.connection import Connection
    from gateway.broker.journal import Record
    from gateway.broker.server import Broker
    from gateway.broker.subscriptions import Entry, Share
    from gateway.wire.packets import Properties, Will

UNLIMITED = 1 << 32

WRITE_AT = 65_536
"""Bytes collected for one connection within a turn that are written at once, so that a slow reader is noticed early."""

DENIED, OWNED, ROUTED = range(3)
"""What a topic means to a session: it may not publish there; the house takes it; subscribers take it."""

MOST_DOORS = 4_096
LONGEST_DOOR = 1_200
"""Bounds of what a session remembers about topics it publishes to: topics, characters of each."""

Found = tuple[str, bytes, int, "Properties | None", float]
"""A retained message: topic, payload, QoS, properties, when it expires (0 = never)."""


class Again(NamedTuple):
    """What a message that expires is made of, so that it can be written with the time that is left [MQTT-3.3.2-6]."""

    name: bytes
    payload: bytes
    level: int
    retain: bool
    identifiers: bytes
    properties: Properties


class Message:
    """An encoded PUBLISH on its way out, shared by all who get the same bytes.

    At QoS 0 `head` is the whole packet; else head, packet identifier, tail. `rights` is the generation of the house under
    which its receivers were allowed to have it. Level and QoS are those of the receivers.
    """

    __slots__ = ("again", "expires", "head", "qos", "rights", "size", "tail", "topic")

    def __init__(self, head: bytes, tail: bytes, qos: int, topic: str, rights: int) -> None:
        if qos:
            self.head = head
            self.tail = tail
            self.size = len(head) + len(tail) + 2
        else:
            self.head = head + tail
            self.tail = b""
            self.size = len(self.head)
        self.qos = qos
        self.topic = topic
        self.rights = rights
        self.expires = 0.0
        self.again: Again | None = None

    share: ClassVar[Any] = None
    """The shared subscription that this is one member's part of; see `Tracked`."""

    lasting: ClassVar[bool] = False
    """Whether it survives a restart in the sessions that do; see `Tracked`."""


class Tracked(Message):
    """A message of which more must be known than what goes out: most are none of these, and cost nothing for it."""

    __slots__ = ("lasting", "share")

    share: Share | None  # type: ignore[misc] # these hide the plain message's
    lasting: bool  # type: ignore[misc]

    def __init__(
        self, head: bytes, tail: bytes, qos: int, topic: str, rights: int, share: Share | None, lasting: bool = False
    ) -> None:
        super().__init__(head, tail, qos, topic, rights)
        self.share = share
        self.lasting = lasting and qos > 0


class Feed:
    """The retained messages that one new subscription is still to be sent, found as they are sent."""

    __slots__ = ("entry", "items")

    def __init__(self, entry: Entry, items: Iterator[Found | None]) -> None:
        self.entry = entry
        self.items = items


class Session:
    """See the module. `open` says that nothing stands between a message and the socket but the in-flight window."""

    __slots__ = (
        "broker",
        "client",
        "client_id",
        "connection",
        "dead",
        "deferred",
        "doors",
        "doors_rights",
        "expiry",
        "feeding",
        "feeds",
        "held",
        "incoming",
        "inflight",
        "key",
        "level",
        "max_packet",
        "next_id",
        "open",
        "out",
        "problem_information",
        "queue",
        "queue_bytes",
        "queued",
        "queued_qos0",
        "received",
        "record",
        "seed",
        "shares",
        "subscriptions",
        "will",
        "window",
    )

    def __init__(self, broker: Broker, client: str, client_id: str, level: int) -> None:
        self.broker = broker
        self.client = client
        self.client_id = client_id
        self.key = (client, client_id)
        self.seed = b""
        self.level = level
        self.connection: Connection | None = None
        self.dead = False
        self.record: Record | None = None  # where it outlives its connection, and is stored
        self.expiry = 0.0
        self.will: Will | None = None
        self.subscriptions: dict[str, Entry] = {}
        self.shares: dict[str, Share] | None = None
        self.problem_information = True
        # Out.
        self.out: list[bytes] = []
        self.open = False
        self.window = broker.limits.inflight
        self.max_packet = UNLIMITED
        self.inflight: dict[int, Message | None] = {}  # None: PUBREC has come, PUBREL has gone
        self.held = 0
        self.next_id = 1
        self.queue: deque[Message] | None = None
        self.queue_bytes = broker.limits.queue_bytes
        self.queued = 0
        self.queued_qos0 = 0
        self.feeds: dict[str, Feed] | None = None
        self.feeding = False
        # In.
        self.incoming: dict[int, Publish | bytes] = {}  # not yet acknowledged; bytes: an answer that waits for its turn
        self.deferred = 0
        self.received: set[int] = set()  # QoS 2: PUBREC has gone, PUBREL is awaited
        self.doors: dict[str, int] = {}
        self.doors_rights = NEVER

    # ---- out -----------------------------------------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """Hot: send a message whose right to be here has just been checked, or let it wait."""
        size = message.size
        connection = self.connection
        if not self.open or size > self.max_packet or connection is None:
            self._aside(message)
            return
        out = self.out
        if message.qos:
            inflight = self.inflight
            if len(inflight) >= self.window or self.held >= self.queue_bytes:
                self._aside(message)
                return
            packet_id = self.next_id
            while packet_id in inflight:
                packet_id = packet_id % 65_535 + 1
            self.next_id = packet_id % 65_535 + 1
            inflight[packet_id] = message
            self.held += size
            if not out:
                self.broker.wake(connection)
            out += (message.head, packet_id.to_bytes(2, "big"), message.tail)
        else:
            if not out:
                self.broker.wake(connection)
            out.append(message.head)
        connection.pending += size
        if connection.pending > WRITE_AT:
            connection.flush()

    def _aside(self, message: Message) -> None:
        """Queue a message that cannot go now, within the bounds: QoS 0 gives way first, then the connection."""
        counters = self.broker.counters
        if message.size > self.max_packet:
            counters.dropped_too_large += 1
            return
        connection = self.connection
        if connection is None and (self.dead or not message.qos):
            return
        if connection is not None and connection.doomed:
            if message.share is None or not self.broker.pass_on(self, message):
                counters.dropped_queue += 1
            return
        if self._full(message.size):
            if not message.qos:
                counters.dropped_qos0 += 1
                return
            self._drop_qos0()
            if self._full(message.size):
                if connection is not None:
                    connection.doom(Reason.QUOTA_EXCEEDED)
                if message.share is None or not self.broker.pass_on(self, message):
                    counters.dropped_queue += 1
                return
        if self.queue is None:
            self.queue = deque()
        self.queue.append(message)
        counters.queued += 1
        self.queued += message.size
        self.broker.queued += message.size
        self.queued_qos0 += not message.qos
        self.open = False

    def _full(self, size: int) -> bool:
        limits = self.broker.limits
        return (
            (self.queue is not None and len(self.queue) >= limits.queue_messages)
            or self.queued + size > limits.queue_bytes
            # Whoever has little waiting is not made to pay for those who have much.
            or (self.broker.queued + size > limits.queued_bytes and self.queued > limits.queue_bytes // 64)
        )

    def _drop_qos0(self) -> None:
        if self.queue is None or not self.queued_qos0:
            return
        kept = deque(message for message in self.queue if message.qos)
        freed = self.queued - sum(message.size for message in kept)
        self.broker.counters.dropped_qos0 += self.queued_qos0
        self.queue = kept
        self.queued -= freed
        self.broker.queued -= freed
        self.queued_qos0 = 0

    def pump(self) -> None:
        """Send what waits, as far as client and socket take it, then go on with retained messages."""
        connection = self.connection
        if connection is None:
            return
        queue = self.queue
        self.open = True  # nothing is ahead of what goes out now
        while queue and not connection.choked:
            message = queue[0]
            if message.qos and not self._window_open():
                break
            queue.popleft()
            self.queued -= message.size
            self.broker.queued -= message.size
            self.queued_qos0 -= not message.qos
            current = self._current(message)
            if current is not None:
                self.deliver(current)
        self.refresh()
        if self.feeds and self._roomy():
            self.broker.feed(self)

    def _window_open(self) -> bool:
        return len(self.inflight) < self.window and self.held < self.queue_bytes

    def _roomy(self) -> bool:
        return self.open and self._window_open()

    def refresh(self) -> None:
        """Find out anew whether messages may go straight to the socket."""
        connection = self.connection
        if self.queue is not None and not self.queue:
            self.queue = None
        self.open = connection is not None and not connection.choked and not connection.doomed and self.queue is None

    def _current(self, message: Message) -> Message | None:
        """A message that has waited, as it may go out now: rights and time are looked at again."""
        broker = self.broker
        generation = broker.house.generation
        if message.rights != generation and not broker.house.may_receive(self.client, message.topic):
            broker.counters.denied_receive += 1
            return None
        left = message.expires - broker.clock() if message.expires else 1.0
        if left <= 0:
            broker.counters.expired += 1
            return None
        if message.again is not None:
            name, payload, level, retain, identifiers, properties = message.again
            properties = {**properties, Property.MESSAGE_EXPIRY_INTERVAL: max(1, int(left))}
            head, tail = publish_parts(
                name, payload, level, message.qos, retain, identifiers + encode_properties(properties)
            )
            written = (
                Message(head, tail, message.qos, message.topic, generation)
                if type(message) is Message
                else Tracked(head, tail, message.qos, message.topic, generation, message.share, message.lasting)
            )
            written.expires = message.expires
            written.again = message.again
            if self.record is not None and message in self.record.rows:
                self.record.rows[written] = self.record.rows.pop(message)
            message = written
        if message.size > self.max_packet:
            broker.counters.dropped_too_large += 1
            return None
        return message

    def resend(self) -> None:
        """After CONNACK with session present: what was not acknowledged goes again, first and in order [MQTT-4.4.0-1]."""
        connection = self.connection
        assert connection is not None
        sending = 0
        for packet_id, message in list(self.inflight.items()):
            if message is None:
                connection.put(encode(Pubrel(packet_id), self.level))
                sending += 1
                continue
            current = self._current(message)
            if current is None or (message.qos == 1 and sending >= self.window):
                del self.inflight[packet_id]
                self.held -= message.size
                if current is not None:
                    self._requeue(message)
                continue
            sending += 1
            if current is not message:
                self.inflight[packet_id] = current
                self.held += current.size - message.size
            connection.put(
                bytes((current.head[0] | 0x08,)) + current.head[1:] + packet_id.to_bytes(2, "big") + current.tail
            )
        self.pump()

    def _requeue(self, message: Message) -> None:
        """A message sent before to a client that takes fewer at a time now."""
        if self.queue is None:
            self.queue = deque()
        at = sum(1 for other in self.queue if other.rights == NEVER)
        message.rights = NEVER
        self.queue.insert(at, message)
        self.queued += message.size
        self.broker.queued += message.size

    def puback(self, packet_id: int) -> None:
        """Hot: the client has a QoS 1 message."""
        message = self.inflight.get(packet_id)
        if message is not None and message.qos == 1:
            del self.inflight[packet_id]
            self.held -= message.size

    def pubrec(self, packet_id: int, reason: int) -> None:
        """The client has a QoS 2 message, or does not want it [MQTT-4.3.3-4]."""
        connection = self.connection
        assert connection is not None
        message = self.inflight.get(packet_id)
        if packet_id not in self.inflight or (message is not None and message.qos != 2):
            connection.put(encode(Pubrel(packet_id, Reason.PACKET_IDENTIFIER_NOT_FOUND), self.level))
            return
        if message is not None:
            self.held -= message.size
        if reason >= 0x80:
            del self.inflight[packet_id]
            return
        self.inflight[packet_id] = None
        connection.put(encode(Pubrel(packet_id), self.level))

    def pubcomp(self, packet_id: int) -> None:
        """A QoS 2 delivery is complete."""
        if self.inflight.get(packet_id, self) is None:
            del self.inflight[packet_id]

    # ---- retained messages ---------------------------------------------------------------------------------------------

    def start_feed(self, entry: Entry, items: Iterator[Found | None]) -> None:
        """Send the retained messages of a subscription when there is room; a second SUBSCRIBE to the same filter begins anew."""
        if self.feeds is None:
            self.feeds = {}
        self.feeds[entry.topic_filter] = Feed(entry, items)

    def stop_feed(self, topic_filter: str) -> None:
        """The subscription has gone."""
        if self.feeds is not None:
            self.feeds.pop(topic_filter, None)

    def feed(self, most: int) -> int:
        """Look at up to `most` retained messages and send those that this client may have; how many were looked at."""
        looked = 0
        broker = self.broker
        house = broker.house
        while looked < most and self.feeds and self._roomy():
            topic_filter, feed = next(iter(self.feeds.items()))
            entry = feed.entry
            try:
                found = next(feed.items)
            except StopIteration:
                del self.feeds[topic_filter]
                continue
            looked += 1
            if found is None:
                continue
            topic, payload, qos, properties, expires = found
            if not payload or not house.may_receive(self.client, topic):
                continue
            identifiers = identifier_properties([entry.identifier] if entry.identifier else [])
            qos = min(qos, entry.qos)
            broker.counters.sent[qos] += 1
            broker.counters.payload_out[qos] += len(payload)
            message = make(
                topic, topic.encode(), payload, self.level, qos, True, identifiers, properties, expires, broker
            )
            self.deliver(message)
        return looked

    @property
    def hungry(self) -> bool:
        """Whether retained messages could go out now."""
        return bool(self.feeds) and self._roomy()

    # ---- in ------------------------------------------------------------------------------------------------------------

    def answer(self, publish: Publish, reason: int, text: str | None) -> bytes:
        """PUBACK or PUBREC for a publish that is decided. 3.1.1 knows no reason: what is refused is acknowledged and dropped."""
        packet_id = publish.packet_id
        if self.level < 5:
            reason = Reason.SUCCESS
        if publish.qos == 1:
            if not reason:
                return encode_puback(packet_id)
            return self._with_text(Puback(packet_id, reason), text)
        if reason < 0x80:
            self.received.add(packet_id)
            if self.record is not None and self.broker.journal is not None and packet_id not in self.record.marks:
                self.broker.journal.received(self, publish)
            return encode(Pubrec(packet_id, reason), self.level)
        return self._with_text(Pubrec(packet_id, reason), text)

    def reused(self, publish: Publish) -> bool:
        """Whether a packet identifier that an earlier run of the broker knew is a new message's: its PUBREL was not stored."""
        record = self.record
        packet_id = publish.packet_id
        if record is None or packet_id not in record.restored:
            return False
        if publish.dup and record.marks.get(packet_id) == mark(publish):
            return False
        self.released(packet_id)
        return True

    def released(self, packet_id: int) -> None:
        """PUBREL has come."""
        self.received.discard(packet_id)
        record = self.record
        if record is not None:
            record.marks.pop(packet_id, None)
            record.restored.discard(packet_id)
            if self.broker.journal is not None:
                self.broker.journal.received(self)

    def _with_text(self, packet: Puback | Pubrec, text: str | None) -> bytes:
        """A reason string only for who has not declined it, and only where it fits [MQTT-3.1.2-29, MQTT-3.4.2-2]."""
        if text and self.problem_information:
            # MQTT strings have neither U+0000 nor lone surrogates, which a quoted payload may have [MQTT-1.5.4-1..2].
            text = text[:1_000].replace("\0", "?").encode(errors="replace").decode()
            packet.properties = {Property.REASON_STRING: text}
            data = encode(packet, self.level)
            if len(data) <= self.max_packet:
                return data
            packet.properties = None
        return encode(packet, self.level)

    def flush_deferred(self) -> None:
        """Send the answers that were decided early, as far as it is their turn [MQTT-4.6.0-2, MQTT-4.6.0-3]."""
        connection = self.connection
        while self.deferred and self.incoming:
            packet_id, first = next(iter(self.incoming.items()))
            if not isinstance(first, bytes):
                return
            del self.incoming[packet_id]
            self.deferred -= 1
            if connection is not None:
                connection.put(first)
        if not self.incoming:
            self.deferred = 0


def make(
    topic: str,
    name: bytes,
    payload: bytes,
    level: int,
    qos: int,
    retain: bool,
    identifiers: bytes,
    properties: Properties | None,
    expires: float,
    broker: Broker,
    share: Share | None = None,
    lasting: bool = False,
) -> Message:
    """A message with whatever properties its publisher gave it. `name` is the encoded topic; `expires` 0 = never."""
    again = None
    encoded = identifiers
    if level >= 5 and expires:
        properties = properties or {}
        again = Again(name, payload, level, retain, identifiers, properties)
        properties = {**properties, Property.MESSAGE_EXPIRY_INTERVAL: max(0, round(expires - broker.clock()))}
    if level >= 5 and properties:
        encoded = identifiers + encode_properties(properties)
    head, tail = publish_parts(name, payload, level, qos, retain, encoded)
    generation = broker.house.generation
    message = (
        Message(head, tail, qos, topic, generation)
        if share is None and not lasting
        else Tracked(head, tail, qos, topic, generation, share, lasting)
    )
    message.expires = expires
    message.again = again
    return message
