"""Who is connected, and to what it has subscribed: plain values for people and programs that look at the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.broker.server import Broker
    from gateway.broker.session import Session

PROTOCOLS = {4: "3.1.1", 5: "5"}


def clients(broker: Broker, client: str | None = None) -> Iterator[dict[str, Any]]:
    """Every session (of one client), when it is away too, as it is when it is reached. Times in seconds."""
    for session in list(broker.sessions.values()):
        if not session.dead and client in (None, session.client):
            yield _client(broker, session)


def _client(broker: Broker, session: Session) -> dict[str, Any]:
    connection = session.connection
    found: dict[str, Any] = {
        "client": session.client,
        "client_id": session.client_id,
        "connected": connection is not None,
        "protocol": PROTOCOLS[session.level],
        "subscriptions": len(session.subscriptions),
        "inflight": len(session.inflight),
        "queued": len(session.queue or ()),
        "queued_bytes": session.queued,
        "session_expiry": session.expiry,
    }
    if connection is not None:
        peer = connection.peer
        found |= {
            "address": peer.address,
            "port": peer.port,
            "listener": peer.listener,
            "certificate": peer.tls_name,
            "for": round(broker.clock() - connection.since, 3),
            "keep_alive": connection.keep_alive / 1.5,
        }
    return found


def subscriptions(broker: Broker, client: str | None = None) -> Iterator[dict[str, Any]]:
    """Every subscription, or those of one client."""
    for session in list(broker.sessions.values()):
        if session.dead or client not in (None, session.client):
            continue
        for entry in list(session.subscriptions.values()):
            yield {
                "client": session.client,
                "client_id": session.client_id,
                "filter": entry.topic_filter,
                "qos": entry.qos,
                "no_local": entry.no_local,
                "retain_as_published": entry.retain_as_published,
                "identifier": entry.identifier or None,
            }
