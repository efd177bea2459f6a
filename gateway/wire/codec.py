"""MQTT packets and bytes, both ways and both dialects: strict, bounded, no I/O.

Sources: MQTT 5 (OASIS, 2019) and MQTT 3.1.1 (2014); section numbers below are those of MQTT 5. Every malformed byte ends in
`MalformedPacket`. PUBLISH has a fast path: it is what a gateway does all day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from gateway.topics import valid_name
from gateway.wire.errors import MalformedPacket
from gateway.wire.fields import (
    AUTH,
    CONNACK,
    CONNECT,
    DISCONNECT,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    SUBSCRIBE,
    UNSUBACK,
    UNSUBSCRIBE,
    WILL,
    Reader,
    bad,
    binary,
    encode_properties,
    number,
    packet_id,
    properties_of,
    string,
    text,
    variable,
)
from gateway.wire.packets import (
    Auth,
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
    from collections.abc import Callable

    from gateway.wire.packets import Packet, Properties

__all__ = ["Decoder", "encode", "encode_properties", "encode_puback", "encode_publish", "publish_parts"]

TOPICS = 2_048
TOPIC_BYTES = 131_072
"""Topic names that a decoder keeps as strings, and their bytes together; when either is full the table begins anew."""

_ALIAS, _IDENTIFIER, _RESPONSE_TOPIC = Property.TOPIC_ALIAS, Property.SUBSCRIPTION_IDENTIFIER, Property.RESPONSE_TOPIC
"""Named once: in Python 3.11 a member of an enumeration costs more to name than to look up."""

_CONNACK_31: dict[int, int] = {
    Reason.SUCCESS: 0,
    Reason.UNSUPPORTED_PROTOCOL_VERSION: 1,
    Reason.CLIENT_IDENTIFIER_NOT_VALID: 2,
    Reason.SERVER_UNAVAILABLE: 3,
    Reason.SERVER_BUSY: 3,
    Reason.SERVER_SHUTTING_DOWN: 3,
    Reason.QUOTA_EXCEEDED: 3,
    Reason.CONNECTION_RATE_EXCEEDED: 3,
    Reason.BAD_USER_NAME_OR_PASSWORD: 4,
}
_REASON_31: dict[int, Reason] = {
    0: Reason.SUCCESS,
    1: Reason.UNSUPPORTED_PROTOCOL_VERSION,
    2: Reason.CLIENT_IDENTIFIER_NOT_VALID,
    3: Reason.SERVER_UNAVAILABLE,
    4: Reason.BAD_USER_NAME_OR_PASSWORD,
    5: Reason.NOT_AUTHORIZED,
}

_ACK_REASONS: dict[int, frozenset[int]] = {
    PUBACK: frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}),
    PUBREC: frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99}),
    PUBREL: frozenset({0x00, 0x92}),
    PUBCOMP: frozenset({0x00, 0x92}),
}
_SUBACK_REASONS = frozenset({0, 1, 2, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2})
_SUBACK_REASONS_31 = frozenset({0, 1, 2, 0x80})
_UNSUBACK_REASONS = frozenset({0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91})
_CLIENT_DISCONNECTS = frozenset({0, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99})
_SERVER_DISCONNECTS = (_CLIENT_DISCONNECTS - {0x04}) | frozenset(
    {0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2}
)
_CONNACK_REASONS = frozenset({0, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F})
_CLIENT_AUTHS = frozenset({0x18, 0x19})
_SERVER_AUTHS = frozenset({0x00, 0x18})

_BOTH_WAYS = frozenset({PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP})
_FROM_CLIENT = _BOTH_WAYS | {CONNECT, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT, AUTH}
_FROM_SERVER = _BOTH_WAYS | {CONNACK, SUBACK, UNSUBACK, PINGRESP, DISCONNECT, AUTH}
_FLAGS = {PUBREL: 2, SUBSCRIBE: 2, UNSUBSCRIBE: 2}
_ACKS: dict[int, type[Puback | Pubrec | Pubrel | Pubcomp]] = {
    PUBACK: Puback,
    PUBREC: Pubrec,
    PUBREL: Pubrel,
    PUBCOMP: Pubcomp,
}


# ---- reading -----------------------------------------------------------------------------------------------------------


class Decoder:
    """Bytes of one connection into packets.

    `server` reads what clients send (the first packet must be CONNECT, and says the level); else `level` is given, 4 or 5.
    `topics` is how many topic names are kept as strings, with TOPIC_BYTES for each TOPICS of them.
    After an error it refuses everything.
    """

    __slots__ = (
        "_aliases",
        "_allowed",
        "_buffer",
        "_dead",
        "_most_bytes",
        "_most_topics",
        "_need",
        "_paused",
        "_server",
        "_topic_bytes",
        "_topics",
        "alias_maximum",
        "level",
        "max_packet",
    )

    def __init__(
        self, *, server: bool, level: int = 0, max_packet: int = 262_144, alias_maximum: int = 0, topics: int = TOPICS
    ) -> None:
        if level not in ((0, 4, 5) if server else (4, 5)):
            raise ValueError(f"level {level}: give 4 (MQTT 3.1.1) or 5")
        self.level = level
        self.max_packet = max_packet
        self.alias_maximum = alias_maximum
        self._server = server
        self._allowed = _FROM_CLIENT if server else _FROM_SERVER
        self._buffer = bytearray()
        self._need = 2
        self._aliases: dict[int, str] = {}
        self._topics: dict[bytes, str] = {}
        self._topic_bytes = 0
        self._most_topics = topics
        self._most_bytes = topics * TOPIC_BYTES // TOPICS
        self._paused = False
        self._dead: tuple[str, int] | None = None

    @property
    def buffered(self) -> int:
        """Bytes held back: the beginning of a packet, or what came while paused."""
        return len(self._buffer)

    def pause(self) -> None:
        """Hold back what comes until `resume`. How much that may be is for whoever feeds to bound."""
        self._paused = True

    def resume(self) -> None:
        """Go on: `feed(b"")` gives what was held back."""
        self._paused = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Packet]:
        """All whole packets that are there now. Stops behind a CONNECT: feed again, with b"" if nothing new came.

        Raises MalformedPacket with the good packets before the bad one in `packets`.
        """
        if self._dead is not None:
            raise MalformedPacket(*self._dead)
        buffer = self._buffer
        if buffer:
            buffer += data
            if self._paused or len(buffer) < self._need:
                return []
            data = bytes(buffer)
            buffer.clear()
        elif self._paused:
            buffer += data
            return []
        elif type(data) is not bytes:
            data = bytes(data)
        packets: list[Packet] = []
        try:
            at = self._decode(data, packets)
        except MalformedPacket as error:
            self._dead = (error.detail, error.reason)
            error.packets = packets
            raise
        if at < len(data):
            buffer += data[at:] if at else data
        return packets

    def _decode(self, data: bytes, packets: list[Packet]) -> int:
        """Hot: decode packets from the start of `data`; returns where the rest begins, and sets how much it needs."""
        at = 0
        size = len(data)
        topics = self._topics
        level = self.level
        five = level == 5
        maximum = self.max_packet
        while size - at >= 2:
            first = data[at]
            if not level and first >> 4 != CONNECT:
                bad("the first packet is not a CONNECT", Reason.PROTOCOL_ERROR)
            length = data[at + 1]
            body = at + 2
            if length >= 0x80:
                length &= 0x7F
                shift = 7
                while True:
                    if shift > 21:
                        bad("the remaining length has more than four bytes")
                    if body == size:
                        self._check_first(first)
                        self._need = size - at + 1
                        return at
                    byte = data[body]
                    body += 1
                    length |= (byte & 0x7F) << shift
                    if byte < 0x80:
                        if not byte:
                            bad("the remaining length is longer than it need be")
                        break
                    shift += 7
            end = body + length
            if end - at > maximum:
                bad(f"a packet of {end - at:,} bytes; at most {maximum:,} are taken", Reason.PACKET_TOO_LARGE)
            if end > size:
                self._check_first(first)
                self._need = end - at
                return at
            if first >> 4 == PUBLISH:
                start = body + 2
                if start > end:
                    bad("the packet ends before its topic")
                stop = start + (data[body] << 8 | data[body + 1])
                if stop > end:
                    bad("the topic is longer than the packet")
                name = data[start:stop]
                topic = topics.get(name)
                if topic is None:
                    topic = self._topic(name)
                qos = first >> 1 & 3
                identifier = 0
                if qos:
                    if qos == 3:
                        bad("QoS 3")
                    if stop + 2 > end:
                        bad("the packet ends before its packet identifier")
                    identifier = data[stop] << 8 | data[stop + 1]
                    if not identifier:
                        bad("packet identifier 0", Reason.PROTOCOL_ERROR)
                    stop += 2
                elif first & 8:
                    bad("DUP with QoS 0")
                properties = None
                if five:
                    if stop == end:
                        bad("the packet ends before its properties")
                    if data[stop]:
                        reader = Reader(data, stop, end)
                        properties = reader.properties(PUBLISH)
                        stop = reader.at
                    else:
                        stop += 1
                    if properties:
                        topic = self._settle(topic, properties)
                        properties = properties or None
                    elif not topic:
                        bad("an empty topic without a topic alias", Reason.PROTOCOL_ERROR)
                elif not topic:
                    bad("an empty topic")
                packets.append(
                    Publish(topic, data[stop:end], qos, first & 1 == 1, first & 8 == 8, identifier, properties)
                )
            elif first == 0x40 and length == 2:
                identifier = data[body] << 8 | data[body + 1]
                if not identifier:
                    bad("packet identifier 0", Reason.PROTOCOL_ERROR)
                packets.append(Puback(identifier))
            else:
                packet = self._other(first, Reader(data, body, end))
                packets.append(packet)
                if type(packet) is Connect:
                    self._need = 2
                    return end
            at = end
        self._need = 2
        return at

    def _check_first(self, first: int) -> None:
        """What the first byte alone shows: packet type, direction, reserved flags [MQTT-2.1.3-1]."""
        kind = first >> 4
        if not kind:
            bad("packet type 0 is reserved")
        if kind not in self._allowed:
            bad(f"packet type {kind} does not come from this side", Reason.PROTOCOL_ERROR)
        if kind == PUBLISH:
            if first & 6 == 6:
                bad("QoS 3")
            if first & 14 == 8:
                bad("DUP with QoS 0")
        elif first & 15 != _FLAGS.get(kind, 0):
            bad(f"reserved flags of packet type {kind}")
        if kind == CONNECT and self.level:
            bad("a second CONNECT", Reason.PROTOCOL_ERROR)
        if self.level == 4 and (kind == AUTH or (kind == DISCONNECT and not self._server)):
            bad(f"packet type {kind} does not come from this side in MQTT 3.1.1", Reason.PROTOCOL_ERROR)

    def _topic(self, name: bytes) -> str:
        """A topic name that is not in the table: checked, and kept where there is room [MQTT-3.3.2-1, MQTT-3.3.2-2]."""
        topic = text(name)
        if not name:
            return topic
        if not valid_name(topic):
            bad("the topic has wildcards or too many levels", Reason.TOPIC_NAME_INVALID)
        size = len(name)
        if size <= self._most_bytes >> 4:
            if len(self._topics) >= self._most_topics or self._topic_bytes + size > self._most_bytes:
                self._topics.clear()
                self._topic_bytes = 0
            self._topics[name] = topic
            self._topic_bytes += size
        return topic

    def _settle(self, topic: str, properties: Properties) -> str:
        """The full topic of a PUBLISH with properties. Takes the topic alias out of them (section 3.3.2.3.4)."""
        if self._server and _IDENTIFIER in properties:
            bad("a client's PUBLISH with a subscription identifier", Reason.PROTOCOL_ERROR)
        if _RESPONSE_TOPIC in properties:
            _check_response_topic(properties)
        alias = properties.pop(_ALIAS, None)
        if alias is None:
            if not topic:
                bad("an empty topic without a topic alias", Reason.PROTOCOL_ERROR)
            return topic
        if alias > self.alias_maximum:
            bad(f"topic alias {alias}; at most {self.alias_maximum} are taken", Reason.TOPIC_ALIAS_INVALID)
        if topic:
            self._aliases[alias] = topic
            return topic
        known = self._aliases.get(alias)
        if known is None:
            bad(f"topic alias {alias} stands for nothing yet", Reason.PROTOCOL_ERROR)
        return known

    def _other(self, first: int, reader: Reader) -> Packet:
        """Everything but PUBLISH and a plain PUBACK."""
        self._check_first(first)
        packet = self._readers[first >> 4](self, reader)
        reader.finish()
        return packet

    def _connect(self, reader: Reader) -> Connect:
        """Section 3.1."""
        name = reader.binary()
        level = reader.byte()
        if name != b"MQTT" or level not in (4, 5):
            bad("neither MQTT 3.1.1 nor MQTT 5", Reason.UNSUPPORTED_PROTOCOL_VERSION)
        self.level = level
        five = level == 5
        flags = reader.byte()
        if flags & 1:
            bad("the reserved connect flag is set")
        has_will = bool(flags & 0x04)
        will_qos = flags >> 3 & 3
        if will_qos == 3:
            bad("a will with QoS 3")
        if not has_will and flags & 0x38:
            bad("will flags without a will")
        if not five and flags & 0xC0 == 0x40:
            bad("a password without a user name")
        keep_alive = reader.two()
        properties = reader.properties(CONNECT) if five else None
        if (
            properties
            and Property.AUTHENTICATION_DATA in properties
            and Property.AUTHENTICATION_METHOD not in properties
        ):
            bad("authentication data without a method", Reason.PROTOCOL_ERROR)
        client_id = reader.string()
        will = None
        if has_will:
            will_properties = reader.properties(WILL) if five else None
            topic = reader.string()
            payload = reader.binary()
            if not valid_name(topic):
                bad("the will's topic is empty, or has wildcards or too many levels", Reason.TOPIC_NAME_INVALID)
            if will_properties and _RESPONSE_TOPIC in will_properties:
                _check_response_topic(will_properties)
            will = Will(topic, payload, will_qos, bool(flags & 0x20), will_properties)
        username = reader.string() if flags & 0x80 else None
        password = reader.binary() if flags & 0x40 else None
        return Connect(client_id, level, bool(flags & 2), keep_alive, username, password, will, properties)

    def _connack(self, reader: Reader) -> Connack:
        """Section 3.2."""
        flags = reader.byte()
        if flags > 1:
            bad("reserved acknowledge flags")
        code = reader.byte()
        if flags and code:
            bad("a refusal with a session present", Reason.PROTOCOL_ERROR)
        if self.level == 5:
            if code not in _CONNACK_REASONS:
                bad(f"0x{code:02X} is no reason of a CONNACK", Reason.PROTOCOL_ERROR)
            return Connack(bool(flags), code, reader.properties(CONNACK))
        if code not in _REASON_31:
            bad(f"return code {code} is reserved")
        return Connack(bool(flags), _REASON_31[code])

    def _ack(self, reader: Reader, kind: int) -> Packet:
        """PUBACK, PUBREC, PUBREL, PUBCOMP: sections 3.4 to 3.7."""
        identifier = reader.packet_id()
        reason = 0
        properties = None
        if self.level == 5 and reader.at < reader.end:
            reason = reader.byte()
            if reason not in _ACK_REASONS[kind]:
                bad(f"0x{reason:02X} is no reason of packet type {kind}", Reason.PROTOCOL_ERROR)
            if reader.at < reader.end:
                properties = reader.properties(kind)
        return _ACKS[kind](identifier, reason, properties)

    def _subscribe(self, reader: Reader) -> Subscribe:
        """Section 3.8. The form of the filters is not judged here: a wrong one has its own answer in the SUBACK."""
        identifier = reader.packet_id()
        five = self.level == 5
        properties = reader.properties(SUBSCRIBE) if five else None
        subscriptions = []
        while reader.at < reader.end:
            topic_filter = reader.string()
            options = reader.byte()
            if options & (0xC0 if five else 0xFC):
                bad("reserved subscription options")
            qos = options & 3
            if qos == 3:
                bad("a subscription with QoS 3", Reason.PROTOCOL_ERROR if five else Reason.MALFORMED_PACKET)
            handling = options >> 4 & 3
            if handling == 3:
                bad("retain handling 3", Reason.PROTOCOL_ERROR)
            no_local = bool(options & 4)
            if no_local and topic_filter.startswith("$share/"):
                bad("no-local on a shared subscription", Reason.PROTOCOL_ERROR)
            subscriptions.append(Subscription(topic_filter, qos, no_local, bool(options & 8), handling))
        if not subscriptions:
            bad("a SUBSCRIBE without a filter", Reason.PROTOCOL_ERROR)
        return Subscribe(identifier, subscriptions, properties)

    def _suback(self, reader: Reader) -> Suback:
        """Section 3.9."""
        identifier = reader.packet_id()
        five = self.level == 5
        properties = reader.properties(SUBACK) if five else None
        reasons = list(reader.take(reader.end - reader.at))
        allowed = _SUBACK_REASONS if five else _SUBACK_REASONS_31
        if not reasons or not allowed.issuperset(reasons):
            bad("no reasons, or unknown ones, in a SUBACK", Reason.PROTOCOL_ERROR)
        return Suback(identifier, reasons, properties)

    def _unsubscribe(self, reader: Reader) -> Unsubscribe:
        """Section 3.10."""
        identifier = reader.packet_id()
        properties = reader.properties(UNSUBSCRIBE) if self.level == 5 else None
        filters = []
        while reader.at < reader.end:
            filters.append(reader.string())
        if not filters:
            bad("an UNSUBSCRIBE without a filter", Reason.PROTOCOL_ERROR)
        return Unsubscribe(identifier, filters, properties)

    def _unsuback(self, reader: Reader) -> Unsuback:
        """Section 3.11."""
        identifier = reader.packet_id()
        if self.level == 4:
            return Unsuback(identifier)
        properties = reader.properties(UNSUBACK)
        reasons = list(reader.take(reader.end - reader.at))
        if not reasons or not _UNSUBACK_REASONS.issuperset(reasons):
            bad("no reasons, or unknown ones, in an UNSUBACK", Reason.PROTOCOL_ERROR)
        return Unsuback(identifier, reasons, properties)

    def _disconnect(self, reader: Reader) -> Disconnect:
        """Section 3.14."""
        if self.level == 4 or reader.at == reader.end:
            return Disconnect()
        reason = reader.byte()
        if reason not in (_CLIENT_DISCONNECTS if self._server else _SERVER_DISCONNECTS):
            bad(f"0x{reason:02X} is no reason of a DISCONNECT from this side", Reason.PROTOCOL_ERROR)
        properties = reader.properties(DISCONNECT) if reader.at < reader.end else None
        if properties and not self._server and Property.SESSION_EXPIRY_INTERVAL in properties:
            bad("a server's DISCONNECT with a session expiry interval", Reason.PROTOCOL_ERROR)
        return Disconnect(reason, properties)

    def _auth(self, reader: Reader) -> Auth:
        """Section 3.15. Without a body it says success."""
        reason = 0
        properties = None
        if reader.at < reader.end:
            reason = reader.byte()
            properties = reader.properties(AUTH) if reader.at < reader.end else None
            if not properties or Property.AUTHENTICATION_METHOD not in properties:
                bad("an AUTH without a method", Reason.PROTOCOL_ERROR)
        if reason not in (_CLIENT_AUTHS if self._server else _SERVER_AUTHS):
            bad(f"0x{reason:02X} is no reason of an AUTH from this side", Reason.PROTOCOL_ERROR)
        return Auth(reason, properties)

    _readers: ClassVar[dict[int, Callable[[Decoder, Reader], Packet]]] = {
        CONNECT: _connect,
        CONNACK: _connack,
        PUBACK: lambda self, reader: self._ack(reader, PUBACK),
        PUBREC: lambda self, reader: self._ack(reader, PUBREC),
        PUBREL: lambda self, reader: self._ack(reader, PUBREL),
        PUBCOMP: lambda self, reader: self._ack(reader, PUBCOMP),
        SUBSCRIBE: _subscribe,
        SUBACK: _suback,
        UNSUBSCRIBE: _unsubscribe,
        UNSUBACK: _unsuback,
        PINGREQ: lambda _self, _reader: Pingreq(),
        PINGRESP: lambda _self, _reader: Pingresp(),
        DISCONNECT: _disconnect,
        AUTH: _auth,
    }


def _check_response_topic(properties: Properties) -> None:
    """A response topic is a topic name [MQTT-3.3.2-14]."""
    if not valid_name(properties[_RESPONSE_TOPIC]):
        bad("the response topic is empty, or has wildcards or too many levels", Reason.PROTOCOL_ERROR)


# ---- writing -----------------------------------------------------------------------------------------------------------


def publish_parts(
    topic: bytes, payload: bytes, level: int, qos: int = 0, retain: bool = False, properties: bytes = b""
) -> tuple[bytes, bytes]:
    """A PUBLISH in two parts: at QoS > 0 the packet is head + packet identifier (two bytes) + tail, else head + tail.

    One encoding serves every subscriber of the same level and QoS. `properties` are encoded, without their length.
    Hot, so the caller vouches for topic and QoS; ValueError for what is too long.
    """
    if level == 5:
        tail = variable(len(properties)) + properties + payload if properties else b"\0" + payload
    else:
        tail = payload
    size = len(topic)
    length = size + len(tail) + (4 if qos else 2)
    return _publish_head(0x30 | qos << 1 | retain, length, size) + topic, tail


def _publish_head(first: int, length: int, size: int) -> bytes:
    """The fixed header of a PUBLISH and the length of its topic."""
    if length < 0x80:
        return (first << 24 | length << 16 | size).to_bytes(4)
    if length < 0x4000:
        return (first << 32 | (length & 0x7F | 0x80) << 24 | length >> 7 << 16 | size).to_bytes(5)
    if size > 65_535:
        raise ValueError(f"a topic of {size:,} bytes: MQTT has at most 65,535")
    return bytes((first,)) + variable(length) + size.to_bytes(2)


def encode_publish(
    topic: bytes,
    payload: bytes,
    level: int,
    *,
    qos: int = 0,
    retain: bool = False,
    dup: bool = False,
    packet_id: int = 0,
    properties: bytes = b"",
) -> bytes:
    """One PUBLISH; topic in UTF-8, properties encoded without their length. DUP is left out at QoS 0 [MQTT-3.3.1-2].

    Hot, so the caller vouches for topic, QoS and packet identifier; ValueError for what is too long. `encode` checks all.
    """
    size = len(topic)
    length = size + len(payload) + 2
    first = 0x30 | qos << 1 | retain
    if level != 5:
        middle = b""
    elif properties:
        middle = variable(len(properties)) + properties
    else:
        middle = b"\0"
    length += len(middle)
    if not qos:
        return b"".join((_publish_head(first, length, size), topic, middle, payload))
    if dup:
        first |= 8
    return b"".join((_publish_head(first, length + 2, size), topic, packet_id.to_bytes(2), middle, payload))


def encode_puback(packet_id: int) -> bytes:
    """A PUBACK that says success, in both dialects."""
    return b"\x40\2" + packet_id.to_bytes(2)


def _frame(kind: int, *parts: bytes) -> bytes:
    """A packet of its type, with the flags that the type prescribes, and its body [MQTT-2.1.3-1]."""
    body = b"".join(parts)
    return bytes((kind << 4 | _FLAGS.get(kind, 0),)) + variable(len(body)) + body


def _encode_publish(packet: Publish, level: int) -> bytes:
    if packet.qos not in (0, 1, 2):
        raise ValueError(f"a PUBLISH with QoS {packet.qos}: write 0, 1 or 2")
    if packet.qos:
        packet_id(packet.packet_id)
    elif packet.packet_id:
        raise ValueError(f"a PUBLISH with QoS 0 and packet identifier {packet.packet_id}: write 0")
    properties = packet.properties if level == 5 else None
    if not valid_name(packet.topic) and (packet.topic or not properties or Property.TOPIC_ALIAS not in properties):
        raise ValueError(f"a PUBLISH to {packet.topic[:100]!r} of {len(packet.topic)} characters: not a topic name")
    if properties:
        properties_of(PUBLISH, properties)
    return encode_publish(
        packet.topic.encode(),
        packet.payload,
        level,
        qos=packet.qos,
        retain=packet.retain,
        dup=packet.dup,
        packet_id=packet.packet_id,
        properties=encode_properties(properties),
    )


def _encode_ack(kind: int, packet: Puback | Pubrec | Pubrel | Pubcomp, level: int) -> bytes:
    head = packet_id(packet.packet_id)
    if level != 5 or not (packet.reason or packet.properties):
        return _frame(kind, head)
    return _frame(kind, head, *_reason_and_properties(kind, packet.reason, packet.properties))


def _reason_and_properties(kind: int, reason: int, properties: Properties | None) -> tuple[bytes, bytes]:
    """The end of a packet that may leave its properties out altogether."""
    return number(reason, 1), properties_of(kind, properties) if properties else b""


def _encode_connect(packet: Connect, level: int) -> bytes:
    if packet.level != level or level not in (4, 5):
        raise ValueError(f"a CONNECT of level {packet.level} to be written as level {level}: write both as 4 or as 5")
    five = level == 5
    if packet.password is not None and packet.username is None and not five:
        raise ValueError("a CONNECT of level 4 with a password and no user name: give both")
    flags = 2 if packet.clean_start else 0
    parts = [string(packet.client_id)]
    if packet.will is not None:
        will = packet.will
        if will.qos not in (0, 1, 2):
            raise ValueError(f"a will with QoS {will.qos}: write 0, 1 or 2")
        if not valid_name(will.topic):
            raise ValueError(f"a will for {will.topic[:100]!r}: not a topic name")
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
        if five:
            parts.append(properties_of(WILL, will.properties))
        parts += [string(will.topic), binary(will.payload)]
    if packet.username is not None:
        flags |= 0x80
        parts.append(string(packet.username))
    if packet.password is not None:
        flags |= 0x40
        parts.append(binary(packet.password))
    head = b"\0\4MQTT" + bytes((level, flags)) + number(packet.keep_alive, 2)
    return _frame(CONNECT, head, properties_of(CONNECT, packet.properties) if five else b"", *parts)


def _encode_subscription(one: Subscription, level: int) -> bytes:
    if one.qos not in (0, 1, 2) or one.retain_handling not in (0, 1, 2):
        raise ValueError(
            f"a subscription with QoS {one.qos} and retain handling {one.retain_handling}: write 0, 1 or 2"
        )
    options = one.qos
    if level == 5:
        options |= one.no_local << 2 | one.retain_as_published << 3 | one.retain_handling << 4
    return string(one.topic_filter) + bytes((options,))


def encode(packet: Packet, level: int) -> bytes:
    """Any packet as bytes of dialect `level` (4 or 5). What 3.1.1 has no words for is left out there.

    Raises ValueError for what cannot be written: a field too long, U+0000, QoS 3, packet identifier 0, nothing to subscribe to.
    """
    five = level == 5
    if isinstance(packet, Publish):
        return _encode_publish(packet, level)
    if isinstance(packet, Puback):
        return _encode_ack(PUBACK, packet, level)
    if isinstance(packet, Pubrec):
        return _encode_ack(PUBREC, packet, level)
    if isinstance(packet, Pubrel):
        return _encode_ack(PUBREL, packet, level)
    if isinstance(packet, Pubcomp):
        return _encode_ack(PUBCOMP, packet, level)
    if isinstance(packet, Connect):
        return _encode_connect(packet, level)
    if isinstance(packet, Connack):
        if packet.session_present and packet.reason:
            raise ValueError(f"a CONNACK that refuses (0x{packet.reason:02X}) with a session present: it has none")
        if not five:
            return _frame(CONNACK, bytes((packet.session_present, _CONNACK_31.get(packet.reason, 5))))
        code = number(packet.reason, 1)
        return _frame(CONNACK, bytes((packet.session_present,)), code, properties_of(CONNACK, packet.properties))
    if isinstance(packet, Pingreq):
        return b"\xc0\0"
    if isinstance(packet, Pingresp):
        return b"\xd0\0"
    if isinstance(packet, Disconnect):
        if not five or not (packet.reason or packet.properties):
            return b"\xe0\0"
        return _frame(DISCONNECT, *_reason_and_properties(DISCONNECT, packet.reason, packet.properties))
    if isinstance(packet, Auth):
        if not five:
            raise ValueError("an AUTH of level 4: only MQTT 5 has it")
        if not packet.reason and not packet.properties:
            return b"\xf0\0"
        return _frame(AUTH, *_reason_and_properties(AUTH, packet.reason, packet.properties))
    head = packet_id(packet.packet_id)
    if isinstance(packet, Unsuback) and not five:
        return _frame(UNSUBACK, head)
    items: list[bytes]
    if isinstance(packet, Subscribe):
        kind = SUBSCRIBE
        items = [_encode_subscription(one, level) for one in packet.subscriptions]
    elif isinstance(packet, Unsubscribe):
        kind = UNSUBSCRIBE
        items = [string(one) for one in packet.topic_filters]
    elif isinstance(packet, Suback):
        kind = SUBACK
        items = [number(reason if five else min(0x80, reason), 1) for reason in packet.reasons]
    else:
        kind = UNSUBACK
        items = [number(reason, 1) for reason in packet.reasons]
    if not items:
        raise ValueError(f"a packet of type {kind} with nothing in it: it needs at least one entry")
    return _frame(kind, head, properties_of(kind, packet.properties) if five else b"", *items)
