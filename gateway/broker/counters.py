"""What the broker counts, in plain numbers, and the same as families for whoever watches. No I/O, no clock."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gateway.counts import by_reason, counter, counters, gauge, gauges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.broker.server import Broker
    from gateway.counts import Family

QOS = ("0", "1", "2")


class Counters:
    """What has happened since the start; `connections` is how many there are now.

    Lists are by QoS, `Counter`s by reason code. Bytes are whole packets of every kind, payload bytes those of PUBLISH packets.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "connections",
        "connects",
        "connects_refused",
        "denied_publish",
        "denied_receive",
        "denied_subscribe",
        "disconnects",
        "dropped_qos0",
        "dropped_queue",
        "dropped_too_large",
        "expired",
        "left",
        "lost",
        "malformed",
        "payload_in",
        "payload_out",
        "queued",
        "received",
        "refused_connections",
        "refused_per_address",
        "refused_retained",
        "sent",
        "sessions_displaced",
        "sessions_expired",
        "takeovers",
        "tls_failures",
        "websocket_failures",
        "wills",
        "wills_denied",
    )

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.connections = 0
        self.connects = 0
        self.connects_refused: Counter[int] = Counter()
        self.denied_publish = 0
        self.denied_receive = 0
        self.denied_subscribe = 0
        self.disconnects: Counter[int] = Counter()
        self.dropped_qos0 = 0
        self.dropped_queue = 0
        self.dropped_too_large = 0
        self.expired = 0
        self.left = 0
        self.lost = 0
        self.malformed = 0
        self.payload_in = [0, 0, 0]
        self.payload_out = [0, 0, 0]
        self.queued = 0
        self.received = [0, 0, 0]
        self.refused_connections = 0
        self.refused_per_address = 0
        self.refused_retained = 0
        self.sent = [0, 0, 0]
        self.sessions_displaced = 0
        self.sessions_expired = 0
        self.takeovers = 0
        self.tls_failures = 0
        self.websocket_failures = 0
        self.wills = 0
        self.wills_denied = 0

    @property
    def publishes_in(self) -> int:
        """PUBLISH packets from clients."""
        return sum(self.received)

    @property
    def publishes_out(self) -> int:
        """Messages for subscribers."""
        return sum(self.sent)


def families(broker: Broker) -> Iterator[Family]:
    """All that the broker counts, and what it holds now, in a fixed order."""
    found = broker.counters
    sessions = broker.sessions.values()
    yield gauge("ctxt_broker_connections", "Sockets open now, handshakes included.", found.connections)
    states = {"connected": broker.connected_sessions, "away": len(sessions) - broker.connected_sessions}
    yield gauges(
        "ctxt_broker_sessions", "Sessions now: of connected clients, and kept for absent ones.", "state", states
    )
    yield gauge(
        "ctxt_broker_subscriptions",
        "Subscriptions of all sessions now.",
        sum(len(one.subscriptions) for one in sessions),
    )
    yield gauge(
        "ctxt_broker_inflight_messages",
        "Messages sent to clients and not acknowledged yet.",
        sum(len(one.inflight) for one in sessions),
    )
    yield gauge(
        "ctxt_broker_queued_messages",
        "Messages waiting for sessions now.",
        sum(len(one.queue or ()) for one in sessions),
    )
    yield gauge("ctxt_broker_queued_bytes", "Bytes of the messages waiting for sessions now.", broker.queued)
    yield gauge(
        "ctxt_broker_retained_messages", "Retained messages now on topics that rules open.", len(broker.retained)
    )
    yield gauge("ctxt_broker_retained_bytes", "Bytes of these, with what they take beside.", broker.retained.bytes)
    yield counter("ctxt_broker_bytes_received_total", "Bytes of MQTT packets from clients.", found.bytes_in)
    yield counter("ctxt_broker_bytes_sent_total", "Bytes of MQTT packets to clients.", found.bytes_out)
    for name, text, values in (
        ("publishes_received", "PUBLISH packets from clients, denied ones included.", found.received),
        ("payload_bytes_received", "Payload bytes of these.", found.payload_in),
        ("publishes_sent", "Messages for subscribers: sent, waiting, or dropped later.", found.sent),
        ("payload_bytes_sent", "Payload bytes of these.", found.payload_out),
    ):
        yield counters(f"ctxt_broker_{name}_total", text, "qos", dict(zip(QOS, values, strict=True)))
    yield counter("ctxt_broker_connects_total", "Clients let in.", found.connects)
    yield counters(
        "ctxt_broker_connects_refused_total",
        "Connections not let in, by reason code: the CONNECT was refused (0x9f: too many wrong passwords), or none that could be read came in time.",
        "reason",
        by_reason(found.connects_refused),
    )
    yield counters(
        "ctxt_broker_sockets_refused_total",
        "Sockets closed at once because there were too many: of all, or from one address.",
        "bound",
        {"connections": found.refused_connections, "address": found.refused_per_address},
    )
    yield gauges(
        "ctxt_certificate_expiry_seconds",
        "Until when the certificate of a listener is good, in Unix seconds.",
        "listener",
        broker.certificate_ends(),
    )
    yield counters(
        "ctxt_broker_handshakes_failed_total",
        "Handshakes that came to nothing.",
        "kind",
        {"tls": found.tls_failures, "websocket": found.websocket_failures},
    )
    yield counter(
        "ctxt_broker_takeovers_total", "Sessions that a new connection took from an old one.", found.takeovers
    )
    yield counters(
        "ctxt_broker_disconnects_total",
        "Clients disconnected by the broker, by reason code.",
        "reason",
        by_reason(found.disconnects),
    )
    yield counters(
        "ctxt_broker_departures_total",
        "Clients that went by themselves: with a DISCONNECT, or without.",
        "how",
        {"disconnect": found.left, "lost": found.lost},
    )
    yield counters(
        "ctxt_broker_sessions_ended_total",
        "Kept sessions that ended: their time was over, or others needed the room.",
        "why",
        {"expired": found.sessions_expired, "displaced": found.sessions_displaced},
    )
    yield counter(
        "ctxt_broker_malformed_total", "Connections that sent what is no MQTT, or none allowed.", found.malformed
    )
    yield counters(
        "ctxt_broker_denied_total",
        "What rights did not allow: PUBLISHes, filters of SUBSCRIBEs (also refused for other reasons), messages that waited, wills.",
        "what",
        {
            "publish": found.denied_publish,
            "subscribe": found.denied_subscribe,
            "receive": found.denied_receive,
            "will": found.wills_denied,
        },
    )
    yield counter("ctxt_broker_queued_total", "Messages that had to wait for their client.", found.queued)
    yield counters(
        "ctxt_broker_dropped_total",
        "Messages not delivered: QoS 0 for a slow reader, a full queue, larger than the client takes, expired.",
        "why",
        {
            "qos0": found.dropped_qos0,
            "queue": found.dropped_queue,
            "too_large": found.dropped_too_large,
            "expired": found.expired,
        },
    )
    yield counter(
        "ctxt_broker_retained_refused_total", "Retained messages that there was no room for.", found.refused_retained
    )
    yield counter("ctxt_broker_wills_total", "Wills published.", found.wills)
