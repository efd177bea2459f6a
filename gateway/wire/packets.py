"""The MQTT control packets as values, one class for both dialects (3.1.1 = level 4, 5 = level 5).

Properties (MQTT 5 section 2.2.2.2) are a dict from `Property` to its value, or None where there are none: always None in 3.1.1.
`Property.USER_PROPERTY` holds a list of (name, value) pairs in order; `Property.SUBSCRIPTION_IDENTIFIER` a list of int in a
PUBLISH and an int in a SUBSCRIBE; two-byte, four-byte and variable integers are int, flags are int 0 or 1, binary data is
bytes, strings are str.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

Properties = dict["Property", Any]


class Property(IntEnum):
    """Identifiers of MQTT 5 section 2.2.2.2."""

    PAYLOAD_FORMAT_INDICATOR = 0x01
    MESSAGE_EXPIRY_INTERVAL = 0x02
    CONTENT_TYPE = 0x03
    RESPONSE_TOPIC = 0x08
    CORRELATION_DATA = 0x09
    SUBSCRIPTION_IDENTIFIER = 0x0B
    SESSION_EXPIRY_INTERVAL = 0x11
    ASSIGNED_CLIENT_IDENTIFIER = 0x12
    SERVER_KEEP_ALIVE = 0x13
    AUTHENTICATION_METHOD = 0x15
    AUTHENTICATION_DATA = 0x16
    REQUEST_PROBLEM_INFORMATION = 0x17
    WILL_DELAY_INTERVAL = 0x18
    REQUEST_RESPONSE_INFORMATION = 0x19
    RESPONSE_INFORMATION = 0x1A
    SERVER_REFERENCE = 0x1C
    REASON_STRING = 0x1F
    RECEIVE_MAXIMUM = 0x21
    TOPIC_ALIAS_MAXIMUM = 0x22
    TOPIC_ALIAS = 0x23
    MAXIMUM_QOS = 0x24
    RETAIN_AVAILABLE = 0x25
    USER_PROPERTY = 0x26
    MAXIMUM_PACKET_SIZE = 0x27
    WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
    SUBSCRIPTION_IDENTIFIER_AVAILABLE = 0x29
    SHARED_SUBSCRIPTION_AVAILABLE = 0x2A


class Reason(IntEnum):
    """Reason codes of MQTT 5 section 2.4. Where one number has several names, the packet says which is meant."""

    SUCCESS = 0x00
    GRANTED_QOS_1 = 0x01
    GRANTED_QOS_2 = 0x02
    DISCONNECT_WITH_WILL = 0x04
    NO_MATCHING_SUBSCRIBERS = 0x10
    NO_SUBSCRIPTION_EXISTED = 0x11
    UNSPECIFIED_ERROR = 0x80
    MALFORMED_PACKET = 0x81
    PROTOCOL_ERROR = 0x82
    IMPLEMENTATION_SPECIFIC_ERROR = 0x83
    UNSUPPORTED_PROTOCOL_VERSION = 0x84
    CLIENT_IDENTIFIER_NOT_VALID = 0x85
    BAD_USER_NAME_OR_PASSWORD = 0x86
    NOT_AUTHORIZED = 0x87
    SERVER_UNAVAILABLE = 0x88
    SERVER_BUSY = 0x89
    BANNED = 0x8A
    SERVER_SHUTTING_DOWN = 0x8B
    BAD_AUTHENTICATION_METHOD = 0x8C
    KEEP_ALIVE_TIMEOUT = 0x8D
    SESSION_TAKEN_OVER = 0x8E
    TOPIC_FILTER_INVALID = 0x8F
    TOPIC_NAME_INVALID = 0x90
    PACKET_IDENTIFIER_IN_USE = 0x91
    PACKET_IDENTIFIER_NOT_FOUND = 0x92
    RECEIVE_MAXIMUM_EXCEEDED = 0x93
    TOPIC_ALIAS_INVALID = 0x94
    PACKET_TOO_LARGE = 0x95
    MESSAGE_RATE_TOO_HIGH = 0x96
    QUOTA_EXCEEDED = 0x97
    ADMINISTRATIVE_ACTION = 0x98
    PAYLOAD_FORMAT_INVALID = 0x99
    RETAIN_NOT_SUPPORTED = 0x9A
    QOS_NOT_SUPPORTED = 0x9B
    USE_ANOTHER_SERVER = 0x9C
    SERVER_MOVED = 0x9D
    SHARED_SUBSCRIPTIONS_NOT_SUPPORTED = 0x9E
    CONNECTION_RATE_EXCEEDED = 0x9F
    MAXIMUM_CONNECT_TIME = 0xA0
    SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED = 0xA1
    WILDCARD_SUBSCRIPTIONS_NOT_SUPPORTED = 0xA2


@dataclass(slots=True)
class Will:
    """The will of a CONNECT (MQTT 5 section 3.1.3)."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: Properties | None = None


@dataclass(slots=True)
class Connect:
    """CONNECT, MQTT 5 section 3.1. `level` is 4 or 5; `keep_alive` in seconds, 0 = none."""

    client_id: str
    level: int = 5
    clean_start: bool = True
    keep_alive: int = 60
    username: str | None = None
    password: bytes | None = None
    will: Will | None = None
    properties: Properties | None = None


@dataclass(slots=True)
class Connack:
    """CONNACK, section 3.2. `reason` is a MQTT 5 reason code; in 3.1.1 it is written as the nearest return code 0 to 5."""

    session_present: bool = False
    reason: int = Reason.SUCCESS
    properties: Properties | None = None


class Publish:
    """PUBLISH, section 3.3. Not a dataclass: this is the hot path.

    `packet_id` is 0 at QoS 0. `origin` belongs to whoever received the packet (its connection or session); the wire leaves it None.
    """

    __slots__ = ("dup", "origin", "packet_id", "payload", "properties", "qos", "retain", "topic")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int = 0,
        retain: bool = False,
        dup: bool = False,
        packet_id: int = 0,
        properties: Properties | None = None,
        origin: Any = None,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.retain = retain
        self.dup = dup
        self.packet_id = packet_id
        self.properties = properties
        self.origin = origin

    def __eq__(self, other: object) -> bool:
        """Equal on the wire: `origin` is not compared."""
        if not isinstance(other, Publish):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__ if name != "origin")

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Publish(topic={self.topic!r}, payload={self.payload[:64]!r}, qos={self.qos}, retain={self.retain}, "
            f"dup={self.dup}, packet_id={self.packet_id}, properties={self.properties!r})"
        )


@dataclass(slots=True)
class Puback:
    """PUBACK, section 3.4. In 3.1.1 `reason` is not sent."""

    packet_id: int
    reason: int = Reason.SUCCESS
    properties: Properties | None = None


@dataclass(slots=True)
class Pubrec:
    """PUBREC, section 3.5."""

    packet_id: int
    reason: int = Reason.SUCCESS
    properties: Properties | None = None


@dataclass(slots=True)
class Pubrel:
    """PUBREL, section 3.6."""

    packet_id: int
    reason: int = Reason.SUCCESS
    properties: Properties | None = None


@dataclass(slots=True)
class Pubcomp:
    """PUBCOMP, section 3.7."""

    packet_id: int
    reason: int = Reason.SUCCESS
    properties: Properties | None = None


@dataclass(slots=True)
class Subscription:
    """One topic filter of a SUBSCRIBE with its options, section 3.8.3.1. In 3.1.1 only `qos` exists."""

    topic_filter: str
    qos: int = 0
    no_local: bool = False
    retain_as_published: bool = False
    retain_handling: int = 0


@dataclass(slots=True)
class Subscribe:
    """SUBSCRIBE, section 3.8: at least one subscription."""

    packet_id: int
    subscriptions: list[Subscription]
    properties: Properties | None = None


@dataclass(slots=True)
class Suback:
    """SUBACK, section 3.9: one reason per subscription, in order. In 3.1.1 every failure is written as 0x80."""

    packet_id: int
    reasons: list[int]
    properties: Properties | None = None


@dataclass(slots=True)
class Unsubscribe:
    """UNSUBSCRIBE, section 3.10: at least one filter."""

    packet_id: int
    topic_filters: list[str]
    properties: Properties | None = None


@dataclass(slots=True)
class Unsuback:
    """UNSUBACK, section 3.11. In 3.1.1 `reasons` is not sent and read as empty."""

    packet_id: int
    reasons: list[int] = field(default_factory=list)
    properties: Properties | None = None


@dataclass(slots=True)
class Pingreq:
    """PINGREQ, section 3.12."""


@dataclass(slots=True)
class Pingresp:
    """PINGRESP, section 3.13."""


@dataclass(slots=True)
class Disconnect:
    """DISCONNECT, section 3.14. In 3.1.1 only a client sends it, without a reason."""

    reason: int = Reason.SUCCESS
    properties: Properties | None = None


@dataclass(slots=True)
class Auth:
    """AUTH, section 3.15; MQTT 5 only."""

    reason: int = Reason.SUCCESS
    properties: Properties | None = None


Packet = (
    Connect
    | Connack
    | Publish
    | Puback
    | Pubrec
    | Pubrel
    | Pubcomp
    | Subscribe
    | Suback
    | Unsubscribe
    | Unsuback
    | Pingreq
    | Pingresp
    | Disconnect
    | Auth
)
