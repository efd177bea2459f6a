"""`$SYS/broker/…`: the few values that dashboards read, as they are when they are asked for. No I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.broker.server import Broker

HEAD = "$SYS/broker/"
"""Before each of the topics; no filter that begins with a wildcard matches them [MQTT-4.7.2-1]."""


def values(broker: Broker, uptime: float) -> dict[str, bytes]:
    """Topic -> text, in a fixed order. `uptime` in seconds. Messages are PUBLISH packets; counts begin with the broker."""
    counters = broker.counters
    numbers = {
        "clients/connected": broker.connected_sessions,
        "clients/total": len(broker.sessions),
        "messages/received": counters.publishes_in,
        "messages/sent": counters.publishes_out,
        "bytes/received": counters.bytes_in,
        "bytes/sent": counters.bytes_out,
        "retained messages/count": len(broker.retained),
        "subscriptions/count": sum(len(session.subscriptions) for session in broker.sessions.values()),
    }
    found = {
        f"{HEAD}version": broker.version.encode(),
        f"{HEAD}uptime": b"%d seconds" % uptime,
    }
    found.update((HEAD + name, b"%d" % number) for name, number in numbers.items())
    return found
