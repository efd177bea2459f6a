"""The pieces that MQTT packets are made of, both ways: integers, strings, binary data, and the properties of MQTT 5.

Sources: MQTT 5 section 1.5 (data representation) and 2.2.2 (properties).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import Property, Reason

if TYPE_CHECKING:
    from gateway.wire.packets import Properties

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP = 1, 2, 3, 4, 5, 6, 7
SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = 8, 9, 10, 11, 12, 13, 14, 15
WILL = 0
"""The properties of a will stand in a CONNECT, but are a set of their own (section 3.1.3.2)."""

LONGEST = 268_435_455
"""The largest variable byte integer, hence the largest remaining length."""

_BYTE, _TWO, _FOUR, _VARIABLE, _BINARY, _STRING, _PAIR = 1, 2, 4, 5, 6, 7, 8
"""Forms of a property's value. The first three are their own length in bytes."""

_MESSAGE = frozenset({PUBLISH, WILL})
_ANY_REASON = frozenset({CONNACK, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, DISCONNECT, AUTH})

_PROPERTIES: dict[Property, tuple[int, frozenset[int]]] = {
    Property.PAYLOAD_FORMAT_INDICATOR: (_BYTE, _MESSAGE),
    Property.MESSAGE_EXPIRY_INTERVAL: (_FOUR, _MESSAGE),
    Property.CONTENT_TYPE: (_STRING, _MESSAGE),
    Property.RESPONSE_TOPIC: (_STRING, _MESSAGE),
    Property.CORRELATION_DATA: (_BINARY, _MESSAGE),
    Property.SUBSCRIPTION_IDENTIFIER: (_VARIABLE, frozenset({PUBLISH, SUBSCRIBE})),
    Property.SESSION_EXPIRY_INTERVAL: (_FOUR, frozenset({CONNECT, CONNACK, DISCONNECT})),
    Property.ASSIGNED_CLIENT_IDENTIFIER: (_STRING, frozenset({CONNACK})),
    Property.SERVER_KEEP_ALIVE: (_TWO, frozenset({CONNACK})),
    Property.AUTHENTICATION_METHOD: (_STRING, frozenset({CONNECT, CONNACK, AUTH})),
    Property.AUTHENTICATION_DATA: (_BINARY, frozenset({CONNECT, CONNACK, AUTH})),
    Property.REQUEST_PROBLEM_INFORMATION: (_BYTE, frozenset({CONNECT})),
    Property.WILL_DELAY_INTERVAL: (_FOUR, frozenset({WILL})),
    Property.REQUEST_RESPONSE_INFORMATION: (_BYTE, frozenset({CONNECT})),
    Property.RESPONSE_INFORMATION: (_STRING, frozenset({CONNACK})),
    Property.SERVER_REFERENCE: (_STRING, frozenset({CONNACK, DISCONNECT})),
    Property.REASON_STRING: (_STRING, _ANY_REASON),
    Property.RECEIVE_MAXIMUM: (_TWO, frozenset({CONNECT, CONNACK})),
    Property.TOPIC_ALIAS_MAXIMUM: (_TWO, frozenset({CONNECT, CONNACK})),
    Property.TOPIC_ALIAS: (_TWO, frozenset({PUBLISH})),
    Property.MAXIMUM_QOS: (_BYTE, frozenset({CONNACK})),
    Property.RETAIN_AVAILABLE: (_BYTE, frozenset({CONNACK})),
    Property.USER_PROPERTY: (_PAIR, _ANY_REASON | _MESSAGE | {CONNECT, SUBSCRIBE, UNSUBSCRIBE}),
    Property.MAXIMUM_PACKET_SIZE: (_FOUR, frozenset({CONNECT, CONNACK})),
    Property.WILDCARD_SUBSCRIPTION_AVAILABLE: (_BYTE, frozenset({CONNACK})),
    Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: (_BYTE, frozenset({CONNACK})),
    Property.SHARED_SUBSCRIPTION_AVAILABLE: (_BYTE, frozenset({CONNACK})),
}
"""Table 2-4: the form of each property's value, and the packets it may stand in."""

_ALLOWED: list[dict[int, tuple[Property, int]]] = [
    {int(name): (name, form) for name, (form, packets) in _PROPERTIES.items() if packet in packets}
    for packet in range(16)
]
_NOT_ZERO = frozenset(
    {Property.RECEIVE_MAXIMUM, Property.MAXIMUM_PACKET_SIZE, Property.SUBSCRIPTION_IDENTIFIER, Property.TOPIC_ALIAS}
)


def bad(detail: str, reason: int = Reason.MALFORMED_PACKET) -> NoReturn:
    raise MalformedPacket(detail, reason)


# ---- reading -----------------------------------------------------------------------------------------------------------


def text(data: bytes) -> str:
    """UTF-8 without surrogates and U+0000 [MQTT-1.5.4-1, MQTT-1.5.4-2]."""
    try:
        found = data.decode()
    except UnicodeDecodeError:
        bad("a string is not UTF-8")
    if "\0" in found:
        bad("a string holds U+0000")
    return found


def _field(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Where the string or binary data at `at` begins and ends, its length of two bytes before it."""
    start = at + 2
    if start > end:
        bad("the packet ends too early")
    stop = start + (data[at] << 8 | data[at + 1])
    if stop > end:
        bad("a field is longer than what holds it")
    return start, stop


class Reader:
    """`data[at:end]` read front to back; reading beyond `end` is malformed."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data = data
        self.at = at
        self.end = end

    def take(self, count: int) -> bytes:
        at = self.at
        end = at + count
        if end > self.end:
            bad("the packet ends too early")
        self.at = end
        return self.data[at:end]

    def byte(self) -> int:
        at = self.at
        if at >= self.end:
            bad("the packet ends too early")
        self.at = at + 1
        return self.data[at]

    def two(self) -> int:
        return int.from_bytes(self.take(2))

    def variable(self) -> int:
        """A variable byte integer of at most four bytes, in as few bytes as possible [MQTT-1.5.5-1]."""
        if self.at < self.end and self.data[self.at] < 0x80:  # most are this short
            self.at += 1
            return self.data[self.at - 1]
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if not byte and shift:
                    bad("a variable byte integer is longer than it need be")
                return value
        bad("a variable byte integer has more than four bytes")

    def binary(self) -> bytes:
        start, self.at = _field(self.data, self.at, self.end)
        return self.data[start : self.at]

    def string(self) -> str:
        return text(self.binary())

    def packet_id(self) -> int:
        value = self.two()
        if not value:
            bad("packet identifier 0", Reason.PROTOCOL_ERROR)
        return value

    def finish(self) -> None:
        if self.at != self.end:
            bad("bytes are left over at the end of the packet")

    def properties(self, packet: int) -> Properties | None:
        """Section 2.2.2: each once (but user properties, and subscription identifiers of a PUBLISH), each allowed here."""
        length = self.variable()
        if not length:
            return None
        at = self.at
        stop = at + length
        if stop > self.end:
            bad("the properties are longer than the packet")
        data = self.data
        allowed = _ALLOWED[packet]
        found: Properties = {}
        while at < stop:
            identifier = data[at]
            entry = allowed.get(identifier)
            if entry is None:
                known = identifier in _KNOWN
                bad(f"property 0x{identifier:02X} " + ("does not belong in this packet" if known else "is unknown"))
            name, form = entry
            at += 1
            if form == _PAIR:
                start, at = _field(data, at, stop)
                key = text(data[start:at])
                start, at = _field(data, at, stop)
                pair = (key, text(data[start:at]))
                if name in found:
                    found[name].append(pair)
                else:
                    found[name] = [pair]
                continue
            value: Any
            if form >= _BINARY:
                start, at = _field(data, at, stop)
                value = data[start:at]
                if form == _STRING:
                    value = text(value)
            elif form == _VARIABLE:
                inner = Reader(data, at, stop)
                value = inner.variable()
                at = inner.at
            else:
                start = at
                at += form
                if at > stop:
                    bad("the properties end in the middle of one")
                value = int.from_bytes(data[start:at])
                if form == _BYTE and value > 1:
                    bad(f"property 0x{identifier:02X} is neither 0 nor 1", Reason.PROTOCOL_ERROR)
            if value == 0 and name in _NOT_ZERO:
                alias = name is Property.TOPIC_ALIAS
                bad(
                    f"property 0x{identifier:02X} must not be 0",
                    Reason.TOPIC_ALIAS_INVALID if alias else Reason.PROTOCOL_ERROR,
                )
            if form == _VARIABLE and packet == PUBLISH:
                found.setdefault(name, []).append(value)
            elif name in found:
                bad(f"property 0x{identifier:02X} stands twice", Reason.PROTOCOL_ERROR)
            else:
                found[name] = value
        self.at = stop
        return found


_KNOWN = frozenset(int(name) for name in Property)


# ---- writing -----------------------------------------------------------------------------------------------------------


def variable(value: int) -> bytes:
    """A variable byte integer, section 1.5.5."""
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 0x20_0000:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if value <= LONGEST:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21))
    raise ValueError(f"{value:,} does not fit a variable byte integer: MQTT has at most {LONGEST:,}")


def number(value: int, size: int) -> bytes:
    """An integer of `size` bytes."""
    if not 0 <= value < 1 << 8 * size:
        raise ValueError(f"{value} does not fit {size} bytes: write 0 to {(1 << 8 * size) - 1}")
    return value.to_bytes(size)


def packet_id(value: int) -> bytes:
    if not 0 < value < 65_536:
        raise ValueError(f"packet identifier {value}: write 1 to 65535")
    return value.to_bytes(2)


def binary(data: bytes) -> bytes:
    if len(data) > 65_535:
        raise ValueError(f"a field of {len(data):,} bytes: MQTT has at most 65,535")
    return len(data).to_bytes(2) + data


def string(value: str) -> bytes:
    if "\0" in value:
        raise ValueError(f"a string with U+0000 at {value.index(chr(0))}: MQTT has none")
    return binary(value.encode())


def encode_properties(properties: Properties | None) -> bytes:
    """Properties as bytes, without the length before them. Raises ValueError for values that cannot be written."""
    if not properties:
        return b""
    parts: list[bytes] = []
    for name, value in properties.items():
        form, _ = _PROPERTIES[name]
        head = bytes((name,))
        if form == _PAIR:
            parts.extend(head + string(key) + string(one) for key, one in value)
            continue
        if name in _NOT_ZERO and (value == 0 or (isinstance(value, list) and 0 in value)):
            raise ValueError(f"property 0x{name:02X} must not be 0")
        if form == _VARIABLE:
            parts.extend(head + variable(one) for one in (value if isinstance(value, list) else [value]))
        elif form == _BINARY:
            parts.append(head + binary(value))
        elif form == _STRING:
            parts.append(head + string(value))
        else:
            if form == _BYTE and value not in (0, 1):
                raise ValueError(f"property 0x{name:02X} is {value}: write 0 or 1")
            parts.append(head + number(value, form))
    return b"".join(parts)


def properties_of(packet: int, properties: Properties | None) -> bytes:
    """Properties as bytes, with the length before them. Raises ValueError for one that does not belong in `packet`."""
    if not properties:
        return b"\0"
    for name in properties:
        if name not in _ALLOWED[packet]:
            raise ValueError(f"property 0x{name:02X} does not belong in packet type {packet}")
    data = encode_properties(properties)
    return variable(len(data)) + data
