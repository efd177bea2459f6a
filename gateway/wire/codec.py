"""MQTT packets and bytes, both ways and both dialects: strict, bounded, no I/O.

Sources: MQTT 5 (OASIS, 2019) and MQTT 3.1.1 (2014); section numbers below are those of MQTT 5. Every malformed byte ends in
`MalformedPacket`. PUBLISH has a fast path: it is what a gateway does all day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from gateway.topics import MAX_TOPIC_BYTES, valid_name
from gateway.wire.errors import MalformedPacket
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

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = 8, 9, 10, 11, 12, 13, 14, 15

TOPICS = 4_096
LONGEST_TOPIC = 1_200
"""Topic names that a decoder keeps as strings, and of how many bytes at most; when full the table begins anew."""

_BYTE, _TWO, _FOUR, _VARIABLE, _BINARY, _STRING, _PAIR = range(7)

_WILL = 0
"""The properties of a will stand in a CONNECT, but are a set of their own (section 3.1.3.2)."""

_TYPES: dict[int, tuple[int, frozenset[int]]] = {
    Property.PAYLOAD_FORMAT_INDICATOR: (_BYTE, frozenset({PUBLISH, _WILL})),
    Property.MESSAGE_EXPIRY_INTERVAL: (_FOUR, frozenset({PUBLISH, _WILL})),
    Property.CONTENT_TYPE: (_STRING, frozenset({PUBLISH, _WILL})),
    Property.RESPONSE_TOPIC: (_STRING, frozenset({PUBLISH, _WILL})),
    Property.CORRELATION_DATA: (_BINARY, frozenset({PUBLISH, _WILL})),
    Property.SUBSCRIPTION_IDENTIFIER: (_VARIABLE, frozenset({PUBLISH, SUBSCRIBE})),
    Property.SESSION_EXPIRY_INTERVAL: (_FOUR, frozenset({CONNECT, CONNACK, DISCONNECT})),
    Property.ASSIGNED_CLIENT_IDENTIFIER: (_STRING, frozenset({CONNACK})),
    Property.SERVER_KEEP_ALIVE: (_TWO, frozenset({CONNACK})),
    Property.AUTHENTICATION_METHOD: (_STRING, frozenset({CONNECT, CONNACK, AUTH})),
    Property.AUTHENTICATION_DATA: (_BINARY, frozenset({CONNECT, CONNACK, AUTH})),
    Property.REQUEST_PROBLEM_INFORMATION: (_BYTE, frozenset({CONNECT})),
    Property.WILL_DELAY_INTERVAL: (_FOUR, frozenset({_WILL})),
    Property.REQUEST_RESPONSE_INFORMATION: (_BYTE, frozenset({CONNECT})),
    Property.RESPONSE_INFORMATION: (_STRING, frozenset({CONNACK})),
    Property.SERVER_REFERENCE: (_STRING, frozenset({CONNACK, DISCONNECT})),
    Property.REASON_STRING: (
        _STRING,
        frozenset({CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH}),
    ),
    Property.RECEIVE_MAXIMUM: (_TWO, frozenset({CONNECT, CONNACK})),
    Property.TOPIC_ALIAS_MAXIMUM: (_TWO, frozenset({CONNECT, CONNACK})),
    Property.TOPIC_ALIAS: (_TWO, frozenset({PUBLISH})),
    Property.MAXIMUM_QOS: (_BYTE, frozenset({CONNACK})),
    Property.RETAIN_AVAILABLE: (_BYTE, frozenset({CONNACK})),
    Property.USER_PROPERTY: (
        _PAIR,
        frozenset(
            {
                CONNECT,
                CONNACK,
                PUBLISH,
                _WILL,
                PUBACK,
                PUBREC,
                PUBREL,
                PUBCOMP,
                SUBSCRIBE,
                SUBACK,
                UNSUBSCRIBE,
                UNSUBACK,
            }
            | {DISCONNECT, AUTH}
        ),
    ),
    Property.MAXIMUM_PACKET_SIZE: (_FOUR, frozenset({CONNECT, CONNACK})),
    Property.WILDCARD_SUBSCRIPTION_AVAILABLE: (_BYTE, frozenset({CONNACK})),
    Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: (_BYTE, frozenset({CONNACK})),
    Property.SHARED_SUBSCRIPTION_AVAILABLE: (_BYTE, frozenset({CONNACK})),
}

_NOT_ZERO = frozenset(
    {
        Property.RECEIVE_MAXIMUM,
        Property.MAXIMUM_PACKET_SIZE,
        Property.SUBSCRIPTION_IDENTIFIER,
        Property.TOPIC_ALIAS,
    }
)

_NAMES: dict[int, Property] = {int(name): name for name in Property}

_CONNACK_31 = {
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
_REASON_31 = {
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
_UNSUBACK_REASONS = frozenset({0, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91})
_CLIENT_DISCONNECTS = frozenset({0, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99})
_SERVER_DISCONNECTS = (_CLIENT_DISCONNECTS - {0x04}) | frozenset(
    {0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2}
)
_CONNACKS = frozenset({0, *range(0x80, 0x8B), 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F})

_FROM_CLIENT = frozenset(
    {CONNECT, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT, AUTH}
)
_FROM_SERVER = frozenset(
    {CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, PINGRESP, DISCONNECT, AUTH}
)
_FLAGS = {PUBREL: 2, SUBSCRIBE: 2, UNSUBSCRIBE: 2}
_ACKS: dict[int, Callable[[int, int, Properties | None], Packet]] = {
    PUBACK: Puback,
    PUBREC: Pubrec,
    PUBREL: Pubrel,
    PUBCOMP: Pubcomp,
}


def _bad(detail: str, reason: int = Reason.MALFORMED_PACKET) -> NoReturn:
    raise MalformedPacket(detail, reason)


class _Reader:
    """The body of one packet, read front to back; reading beyond its end is malformed."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.end = len(data)

    def take(self, count: int) -> bytes:
        at = self.at
        end = at + count
        if end > self.end:
            _bad("the packet ends too early")
        self.at = end
        return self.data[at:end]

    def byte(self) -> int:
        return self.take(1)[0]

    def two(self) -> int:
        return int.from_bytes(self.take(2))

    def four(self) -> int:
        return int.from_bytes(self.take(4))

    def variable(self) -> int:
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if not byte and shift:
                    _bad("a variable byte integer is longer than it need be")
                return value
        _bad("a variable byte integer has more than four bytes")

    def binary(self) -> bytes:
        return self.take(self.two())

    def string(self) -> str:
        return _text(self.binary())

    def packet_id(self) -> int:
        value = self.two()
        if not value:
            _bad("packet identifier 0", Reason.PROTOCOL_ERROR)
        return value

    def finish(self) -> None:
        if self.at != self.end:
            _bad("bytes are left over at the end of the packet")

    def properties(self, packet: int) -> Properties | None:
        """Section 2.2.2: each once (but user properties, and subscription identifiers of a PUBLISH), each allowed here."""
        length = self.variable()
        if not length:
            return None
        stop = self.at + length
        if stop > self.end:
            _bad("the properties are longer than the packet")
        whole, self.end = self.end, stop
        found: Properties = {}
        while self.at < stop:
            identifier = self.variable()
            kind = _TYPES.get(identifier)
            if kind is None:
                _bad(f"unknown property 0x{identifier:02X}")
            form, allowed = kind
            if packet not in allowed:
                _bad(f"property 0x{identifier:02X} does not belong here", Reason.PROTOCOL_ERROR)
            name = _NAMES[identifier]
            value = _read(self, form)
            if form == _BYTE and value > 1:
                _bad(f"property 0x{identifier:02X} is neither 0 nor 1", Reason.PROTOCOL_ERROR)
            if value == 0 and name in _NOT_ZERO:
                reason = Reason.TOPIC_ALIAS_INVALID if name == Property.TOPIC_ALIAS else Reason.PROTOCOL_ERROR
                _bad(f"property 0x{identifier:02X} must not be 0", reason)
            if name == Property.USER_PROPERTY or (name == Property.SUBSCRIPTION_IDENTIFIER and packet == PUBLISH):
                found.setdefault(name, []).append(value)
            elif name in found:
                _bad(f"property 0x{identifier:02X} stands twice", Reason.PROTOCOL_ERROR)
            else:
                found[name] = value
        if self.at != stop:
            _bad("the properties end in the middle of one")
        self.end = whole
        return found


def _read(reader: _Reader, form: int) -> Any:
    if form == _BYTE:
        return reader.byte()
    if form == _TWO:
        return reader.two()
    if form == _FOUR:
        return reader.four()
    if form == _VARIABLE:
        return reader.variable()
    if form == _BINARY:
        return reader.binary()
    if form == _STRING:
        return reader.string()
    return reader.string(), reader.string()


def _text(data: bytes) -> str:
    """UTF-8 without surrogates and U+0000 [MQTT-1.5.4-1..2]."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        _bad("a string is not UTF-8")
    if "\0" in text:
        _bad("a string holds U+0000")
    return text


class Decoder:
    """Bytes of one connection into packets.

    `server` reads what clients send (the first packet must be CONNECT, and says the level); else `level` is given. After an
    error it refuses everything.
    """

    __slots__ = (
        "_aliases",
        "_allowed",
        "_buffer",
        "_dead",
        "_need",
        "_paused",
        "_server",
        "_topics",
        "alias_maximum",
        "level",
        "max_packet",
    )

    def __init__(self, *, server: bool, level: int = 0, max_packet: int = 262_144, alias_maximum: int = 0) -> None:
        self.level = level
        self.max_packet = max_packet
        self.alias_maximum = alias_maximum
        self._server = server
        self._allowed = _FROM_CLIENT if server else _FROM_SERVER
        self._buffer = bytearray()
        self._need = 2
        self._aliases: dict[int, str] = {}
        self._topics: dict[bytes, str] = {}
        self._paused = False
        self._dead: MalformedPacket | None = None

    @property
    def buffered(self) -> int:
        """Bytes held back: the beginning of a packet, or what came while paused."""
        return len(self._buffer)

    def pause(self) -> None:
        """Hold back what comes until `resume`."""
        self._paused = True

    def resume(self) -> None:
        """Go on: `feed(b"")` gives what was held back."""
        self._paused = False

    def feed(self, data: bytes) -> list[Packet]:
        """All whole packets that are there now. Stops behind a CONNECT: feed again, with b"" if nothing new came.

        Raises MalformedPacket with the good packets before the bad one in `packets`.
        """
        if self._dead is not None:
            raise MalformedPacket(self._dead.detail, self._dead.reason)
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
            self._dead = error
            error.packets = packets
            raise
        if at < len(data):
            buffer += data[at:]
        return packets

    def _decode(self, data: bytes, packets: list[Packet]) -> int:
        """Hot: decode packets from the start of `data`; returns where the rest begins."""
        at = 0
        size = len(data)
        topics = self._topics
        five = self.level == 5
        maximum = self.max_packet
        while size - at >= 2:
            first = data[at]
            length = data[at + 1]
            body = at + 2
            if length >= 0x80:
                length &= 0x7F
                shift = 7
                while True:
                    if body >= size:
                        if body - at >= 5:
                            _bad("the remaining length has more than four bytes")
                        self._need = size - at + 1
                        return at
                    byte = data[body]
                    body += 1
                    length |= (byte & 0x7F) << shift
                    if byte < 0x80:
                        if not byte:
                            _bad("the remaining length is longer than it need be")
                        break
                    shift += 7
                    if shift > 21:
                        _bad("the remaining length has more than four bytes")
            end = body + length
            if end - at > maximum:
                _bad(f"a packet of {end - at:,} bytes; at most {maximum:,} are taken", Reason.PACKET_TOO_LARGE)
            if not self.level and first != 0x10:
                _bad("the first packet is not a CONNECT", Reason.PROTOCOL_ERROR)
            if end > size:
                self._check_first(first)
                self._need = end - at
                return at
            kind = first >> 4
            if kind == 3:
                qos = (first >> 1) & 3
                start = body + 2
                stop = start + ((data[body] << 8) | data[body + 1] if length >= 2 else 0)
                if length < 2 or stop > end:
                    _bad("the topic is longer than the packet")
                name = data[start:stop]
                topic = topics.get(name)
                if topic is None:
                    topic = self._topic(name)
                packet_id = 0
                if qos:
                    if qos == 3:
                        _bad("QoS 3")
                    if stop + 2 > end:
                        _bad("the packet ends before its packet identifier")
                    packet_id = (data[stop] << 8) | data[stop + 1]
                    if not packet_id:
                        _bad("packet identifier 0", Reason.PROTOCOL_ERROR)
                    stop += 2
                elif first & 8:
                    _bad("DUP with QoS 0")
                properties = None
                if five:
                    if stop >= end:
                        _bad("the packet ends before its properties")
                    if data[stop]:
                        reader = _Reader(data[stop:end])
                        properties = reader.properties(PUBLISH)
                        stop += reader.at
                    else:
                        stop += 1
                    if properties is not None or not topic:
                        topic, properties = self._alias(topic, properties)
                elif not topic:
                    _bad("an empty topic")
                packets.append(
                    Publish(topic, data[stop:end], qos, first & 1 == 1, first & 8 == 8, packet_id, properties)
                )
            elif first == 0x40 and length == 2:
                packet_id = (data[body] << 8) | data[body + 1]
                if not packet_id:
                    _bad("packet identifier 0", Reason.PROTOCOL_ERROR)
                packets.append(Puback(packet_id))
            else:
                packet = self._other(first, data[body:end])
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
        if kind not in self._allowed:
            if not kind:
                _bad("packet type 0 is reserved")
            _bad(f"packet type {kind} does not come from this side", Reason.PROTOCOL_ERROR)
        if kind == PUBLISH:
            if first & 6 == 6:
                _bad("QoS 3")
        elif first & 15 != _FLAGS.get(kind, 0):
            _bad(f"reserved flags of packet type {kind}")
        if kind == AUTH and self.level == 4:
            _bad("AUTH is not part of MQTT 3.1.1", Reason.PROTOCOL_ERROR)

    def _topic(self, name: bytes) -> str:
        if len(name) > MAX_TOPIC_BYTES:  # pragma: no cover - two bytes of length cannot say more
            _bad("the topic is too long")
        topic = _text(name)
        if name and not valid_name(topic):
            _bad("the topic has wildcards or too many levels", Reason.TOPIC_NAME_INVALID)
        if len(name) <= LONGEST_TOPIC:
            topics = self._topics
            if len(topics) >= TOPICS:
                topics.clear()
            topics[name] = topic
        return topic

    def _alias(self, topic: str, properties: Properties | None) -> tuple[str, Properties | None]:
        """Section 3.3.2.3.4: a topic alias stands for a topic that was sent with it before on this connection."""
        if properties is None:
            _bad("an empty topic without a topic alias", Reason.PROTOCOL_ERROR)
        if self._server and Property.SUBSCRIPTION_IDENTIFIER in properties:
            _bad("a client's PUBLISH with a subscription identifier", Reason.PROTOCOL_ERROR)
        wanted = properties.get(Property.RESPONSE_TOPIC)
        if wanted is not None and not valid_name(wanted):
            _bad("the response topic has wildcards", Reason.PROTOCOL_ERROR)
        alias = properties.pop(Property.TOPIC_ALIAS, None)
        if alias is None:
            if not topic:
                _bad("an empty topic without a topic alias", Reason.PROTOCOL_ERROR)
            return topic, properties
        if alias > self.alias_maximum:
            _bad(f"topic alias {alias}; at most {self.alias_maximum} are taken", Reason.TOPIC_ALIAS_INVALID)
        if topic:
            self._aliases[alias] = topic
        else:
            topic = self._aliases.get(alias, "")
            if not topic:
                _bad(f"topic alias {alias} stands for nothing yet", Reason.PROTOCOL_ERROR)
        return topic, properties or None

    def _other(self, first: int, body: bytes) -> Packet:
        """Everything but PUBLISH and a plain PUBACK."""
        self._check_first(first)
        kind = first >> 4
        reader = _Reader(body)
        packet = self._readers[kind](self, reader)
        reader.finish()
        return packet

    def _connect(self, reader: _Reader) -> Connect:
        """Section 3.1."""
        if self.level:
            _bad("a second CONNECT", Reason.PROTOCOL_ERROR)
        name = reader.binary()
        level = reader.byte()
        if name != b"MQTT" or level not in (4, 5):
            _bad("neither MQTT 3.1.1 nor MQTT 5", Reason.UNSUPPORTED_PROTOCOL_VERSION)
        self.level = level
        flags = reader.byte()
        if flags & 1:
            _bad("the reserved connect flag is set")
        has_will = bool(flags & 0x04)
        will_qos = (flags >> 3) & 3
        if will_qos == 3 or (not has_will and flags & 0x38):
            _bad("the will flags contradict each other")
        if level == 4 and flags & 0x40 and not flags & 0x80:
            _bad("a password without a user name")
        keep_alive = reader.two()
        properties = reader.properties(CONNECT) if level == 5 else None
        if (
            properties
            and Property.AUTHENTICATION_DATA in properties
            and Property.AUTHENTICATION_METHOD not in properties
        ):
            _bad("authentication data without a method", Reason.PROTOCOL_ERROR)
        client_id = reader.string()
        will = None
        if has_will:
            will_properties = reader.properties(_WILL) if level == 5 else None
            topic = reader.string()
            payload = reader.binary()
            if not valid_name(topic):
                _bad("the will's topic is empty or has wildcards", Reason.TOPIC_NAME_INVALID)
            wanted = (will_properties or {}).get(Property.RESPONSE_TOPIC)
            if wanted is not None and not valid_name(wanted):
                _bad("the will's response topic has wildcards", Reason.PROTOCOL_ERROR)
            will = Will(topic, payload, will_qos, bool(flags & 0x20), will_properties)
        username = reader.string() if flags & 0x80 else None
        password = reader.binary() if flags & 0x40 else None
        return Connect(client_id, level, bool(flags & 2), keep_alive, username, password, will, properties)

    def _connack(self, reader: _Reader) -> Connack:
        flags = reader.byte()
        if flags > 1:
            _bad("reserved acknowledge flags")
        code = reader.byte()
        if self.level == 5:
            if code not in _CONNACKS:
                _bad(f"0x{code:02X} is no reason of a CONNACK", Reason.PROTOCOL_ERROR)
            return Connack(bool(flags), code, reader.properties(CONNACK))
        if code not in _REASON_31:
            _bad(f"return code {code} is reserved")
        return Connack(bool(flags), _REASON_31[code])

    def _ack(self, reader: _Reader, kind: int) -> Packet:
        """PUBACK, PUBREC, PUBREL, PUBCOMP: sections 3.4 to 3.7."""
        packet_id = reader.packet_id()
        reason = 0
        properties = None
        if self.level == 5 and reader.at < reader.end:
            reason = reader.byte()
            if reason not in _ACK_REASONS[kind]:
                _bad(f"0x{reason:02X} is no reason of packet type {kind}", Reason.PROTOCOL_ERROR)
            if reader.at < reader.end:
                properties = reader.properties(kind)
        return _ACKS[kind](packet_id, reason, properties)

    def _subscribe(self, reader: _Reader) -> Subscribe:
        """Section 3.8."""
        packet_id = reader.packet_id()
        five = self.level == 5
        properties = reader.properties(SUBSCRIBE) if five else None
        subscriptions = []
        while reader.at < reader.end:
            topic_filter = reader.string()
            options = reader.byte()
            qos = options & 3
            if qos == 3:
                _bad("QoS 3", Reason.PROTOCOL_ERROR if five else Reason.MALFORMED_PACKET)
            handling = (options >> 4) & 3
            if options & (0xC0 if five else 0xFC):
                _bad("reserved subscription options")
            if handling == 3:
                _bad("retain handling 3", Reason.PROTOCOL_ERROR)
            no_local = bool(options & 4)
            if no_local and topic_filter.startswith("$share/"):
                _bad("no-local on a shared subscription", Reason.PROTOCOL_ERROR)
            subscriptions.append(Subscription(topic_filter, qos, no_local, bool(options & 8), handling))
        if not subscriptions:
            _bad("a SUBSCRIBE without a filter", Reason.PROTOCOL_ERROR)
        return Subscribe(packet_id, subscriptions, properties)

    def _suback(self, reader: _Reader) -> Suback:
        packet_id = reader.packet_id()
        properties = reader.properties(SUBACK) if self.level == 5 else None
        reasons = list(reader.take(reader.end - reader.at))
        allowed = _SUBACK_REASONS if self.level == 5 else frozenset({0, 1, 2, 0x80})
        if not reasons or not allowed.issuperset(reasons):
            _bad("unknown reasons in a SUBACK", Reason.PROTOCOL_ERROR)
        return Suback(packet_id, reasons, properties)

    def _unsubscribe(self, reader: _Reader) -> Unsubscribe:
        """Section 3.10."""
        packet_id = reader.packet_id()
        properties = reader.properties(UNSUBSCRIBE) if self.level == 5 else None
        filters = []
        while reader.at < reader.end:
            filters.append(reader.string())
        if not filters:
            _bad("an UNSUBSCRIBE without a filter", Reason.PROTOCOL_ERROR)
        return Unsubscribe(packet_id, filters, properties)

    def _unsuback(self, reader: _Reader) -> Unsuback:
        packet_id = reader.packet_id()
        if self.level == 4:
            return Unsuback(packet_id)
        properties = reader.properties(UNSUBACK)
        reasons = list(reader.take(reader.end - reader.at))
        if not reasons or not _UNSUBACK_REASONS.issuperset(reasons):
            _bad("unknown reasons in an UNSUBACK", Reason.PROTOCOL_ERROR)
        return Unsuback(packet_id, reasons, properties)

    def _disconnect(self, reader: _Reader) -> Disconnect:
        """Section 3.14."""
        if reader.at == reader.end:
            return Disconnect()
        if self.level == 4:
            _bad("a DISCONNECT of MQTT 3.1.1 has no body")
        reason = reader.byte()
        if reason not in (_CLIENT_DISCONNECTS if self._server else _SERVER_DISCONNECTS):
            _bad(f"0x{reason:02X} is no reason of a DISCONNECT", Reason.PROTOCOL_ERROR)
        properties = reader.properties(DISCONNECT) if reader.at < reader.end else None
        return Disconnect(reason, properties)

    def _auth(self, reader: _Reader) -> Auth:
        """Section 3.15."""
        if reader.at == reader.end:
            return Auth()
        reason = reader.byte()
        if reason not in (0x00, 0x18, 0x19):
            _bad(f"0x{reason:02X} is no reason of an AUTH", Reason.PROTOCOL_ERROR)
        return Auth(reason, reader.properties(AUTH) if reader.at < reader.end else None)

    _readers: dict[int, Callable[[Decoder, _Reader], Packet]] = {  # noqa: RUF012  # never changed
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


# ---- writing -----------------------------------------------------------------------------------------------------------


def _length(value: int) -> bytes:
    """A variable byte integer, section 1.5.5."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if value < 0x1000_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))
    raise ValueError(f"a length of {value:,} bytes: MQTT has at most 268,435,455")


def _binary(data: bytes) -> bytes:
    if len(data) > 65_535:
        raise ValueError(f"a field of {len(data):,} bytes: MQTT has at most 65,535")
    return len(data).to_bytes(2) + data


def _string(text: str) -> bytes:
    return _binary(text.encode())


def encode_properties(properties: Properties | None) -> bytes:
    """Properties as bytes, without the length before them."""
    if not properties:
        return b""
    parts: list[bytes] = []
    for name, value in properties.items():
        form, _ = _TYPES[name]
        head = bytes((name,))
        if name == Property.USER_PROPERTY:
            parts.extend(head + _string(key) + _string(text) for key, text in value)
        elif name == Property.SUBSCRIPTION_IDENTIFIER:
            parts.extend(head + _length(each) for each in (value if isinstance(value, list) else [value]))
        elif form == _BYTE:
            parts.append(head + bytes((value,)))
        elif form == _TWO:
            parts.append(head + value.to_bytes(2))
        elif form == _FOUR:
            parts.append(head + value.to_bytes(4))
        elif form == _BINARY:
            parts.append(head + _binary(value))
        else:
            parts.append(head + _string(value))
    return b"".join(parts)


def _properties(properties: Properties | None) -> bytes:
    data = encode_properties(properties)
    return _length(len(data)) + data


def publish_parts(
    topic: bytes, payload: bytes, level: int, qos: int = 0, retain: bool = False, properties: bytes = b""
) -> tuple[bytes, bytes]:
    """A PUBLISH in two parts: at QoS > 0 the packet is head + packet identifier (two bytes) + tail, else head + tail.

    One encoding serves every subscriber of the same level and QoS. `properties` are encoded, without their length.
    """
    if level == 5:
        tail = _length(len(properties)) + properties + payload if properties else b"\0" + payload
    else:
        tail = payload
    size = len(topic)
    length = 2 + size + (2 if qos else 0) + len(tail)
    first = 0x30 | qos << 1 | retain
    if length < 0x80:
        return bytes((first, length, size >> 8, size & 0xFF)) + topic, tail
    if length < 0x4000:
        return bytes((first, length & 0x7F | 0x80, length >> 7, size >> 8, size & 0xFF)) + topic, tail
    return bytes((first,)) + _length(length) + _binary(topic), tail


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
    """One PUBLISH; topic in UTF-8, properties encoded without their length."""
    head, tail = publish_parts(topic, payload, level, qos, retain, properties)
    if not qos:
        return head + tail
    if dup:
        head = bytes((head[0] | 8,)) + head[1:]
    return b"%b%b%b" % (head, packet_id.to_bytes(2), tail)


def encode_puback(packet_id: int) -> bytes:
    """A PUBACK that says success, in both dialects."""
    return b"\x40\x02" + packet_id.to_bytes(2)


def _ack(first: int, packet: Puback | Pubrec | Pubrel | Pubcomp, level: int) -> bytes:
    head = packet.packet_id.to_bytes(2)
    if level == 5 and (packet.reason or packet.properties):
        body = head + bytes((packet.reason,)) + (_properties(packet.properties) if packet.properties else b"")
    else:
        body = head
    return bytes((first,)) + _length(len(body)) + body


def _frame(first: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return bytes((first,)) + _length(len(body)) + body


def _encode_connect(packet: Connect) -> bytes:
    five = packet.level == 5
    flags = 2 if packet.clean_start else 0
    parts = [_string(packet.client_id)]
    if packet.will is not None:
        will = packet.will
        flags |= 0x04 | will.qos << 3 | (0x20 if will.retain else 0)
        if five:
            parts.append(_properties(will.properties))
        parts += [_string(will.topic), _binary(will.payload)]
    if packet.username is not None:
        flags |= 0x80
        parts.append(_string(packet.username))
    if packet.password is not None:
        flags |= 0x40
        parts.append(_binary(packet.password))
    head = b"\x00\x04MQTT" + bytes((packet.level, flags)) + packet.keep_alive.to_bytes(2)
    return _frame(0x10, head, _properties(packet.properties) if five else b"", *parts)


def encode(packet: Packet, level: int) -> bytes:
    """Any packet as bytes. Raises ValueError for what cannot be written (a field too long, QoS 3)."""
    five = level == 5
    if isinstance(packet, Publish):
        if packet.qos not in (0, 1, 2) or (packet.qos and not 0 < packet.packet_id < 65_536):
            raise ValueError(f"a PUBLISH with QoS {packet.qos} and packet identifier {packet.packet_id}")
        return encode_publish(
            packet.topic.encode(),
            packet.payload,
            level,
            qos=packet.qos,
            retain=packet.retain,
            dup=packet.dup,
            packet_id=packet.packet_id,
            properties=encode_properties(packet.properties) if five else b"",
        )
    if isinstance(packet, Puback):
        return _ack(0x40, packet, level)
    if isinstance(packet, Pubrec):
        return _ack(0x50, packet, level)
    if isinstance(packet, Pubrel):
        return _ack(0x62, packet, level)
    if isinstance(packet, Pubcomp):
        return _ack(0x70, packet, level)
    if isinstance(packet, Connect):
        return _encode_connect(packet)
    if isinstance(packet, Connack):
        code = packet.reason if five else _CONNACK_31.get(packet.reason, 5)  # type: ignore[call-overload]
        return _frame(0x20, bytes((packet.session_present, code)), _properties(packet.properties) if five else b"")
    if isinstance(packet, Subscribe):
        subscriptions = [
            _string(one.topic_filter)
            + bytes(
                (
                    one.qos
                    | (one.no_local << 2 | one.retain_as_published << 3 | one.retain_handling << 4 if five else 0),
                )
            )
            for one in packet.subscriptions
        ]
        return _frame(
            0x82, packet.packet_id.to_bytes(2), _properties(packet.properties) if five else b"", *subscriptions
        )
    if isinstance(packet, Suback):
        reasons = packet.reasons if five else [min(128, reason) for reason in packet.reasons]
        return _frame(
            0x90, packet.packet_id.to_bytes(2), _properties(packet.properties) if five else b"", bytes(reasons)
        )
    if isinstance(packet, Unsubscribe):
        filters = [_string(one) for one in packet.topic_filters]
        return _frame(0xA2, packet.packet_id.to_bytes(2), _properties(packet.properties) if five else b"", *filters)
    if isinstance(packet, Unsuback):
        if not five:
            return _frame(0xB0, packet.packet_id.to_bytes(2))
        return _frame(0xB0, packet.packet_id.to_bytes(2), _properties(packet.properties), bytes(packet.reasons))
    if isinstance(packet, Pingreq):
        return b"\xc0\x00"
    if isinstance(packet, Pingresp):
        return b"\xd0\x00"
    first = 0xE0 if isinstance(packet, Disconnect) else 0xF0
    if not five or (not packet.reason and not packet.properties):
        return bytes((first, 0))
    return _frame(first, bytes((packet.reason,)), _properties(packet.properties) if packet.properties else b"")
