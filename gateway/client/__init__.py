"""Reporter and Observer for applications, on asyncio; `gateway.client.blocking` is the same for scripts and threads."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.address import AddressError
    from gateway.client.client import Client, Events, connect
    from gateway.client.errors import ClientError, NoAnswerError, NotConnectedError, RefusedError, UsageError
    from gateway.client.inbox import (
        Action,
        Connected,
        Delegation,
        Disconnected,
        Invitation,
        Missed,
        Rejection,
        Revoked,
        SubscriptionRequest,
    )
    from gateway.client.observer import Copies, Observer
    from gateway.client.outbox import Outbox
    from gateway.client.replica import Changed, Copy, Created, Delegated, Deleted, GatewayChanged, StatusChanged
    from gateway.client.reporter import Reporter
    from gateway.patch import PatchError

__all__ = [
    "Action",
    "AddressError",
    "Changed",
    "Client",
    "ClientError",
    "Connected",
    "Copies",
    "Copy",
    "Created",
    "Delegated",
    "Delegation",
    "Deleted",
    "Disconnected",
    "Events",
    "GatewayChanged",
    "Invitation",
    "Missed",
    "NoAnswerError",
    "NotConnectedError",
    "Observer",
    "Outbox",
    "PatchError",
    "RefusedError",
    "Rejection",
    "Reporter",
    "Revoked",
    "StatusChanged",
    "SubscriptionRequest",
    "UsageError",
    "connect",
]

_HOMES = {
    "Action": "gateway.client.inbox",
    "AddressError": "gateway.address",
    "Changed": "gateway.client.replica",
    "Client": "gateway.client.client",
    "ClientError": "gateway.client.errors",
    "Connected": "gateway.client.inbox",
    "Copies": "gateway.client.observer",
    "Copy": "gateway.client.replica",
    "Created": "gateway.client.replica",
    "Delegated": "gateway.client.replica",
    "Delegation": "gateway.client.inbox",
    "Deleted": "gateway.client.replica",
    "Disconnected": "gateway.client.inbox",
    "Events": "gateway.client.client",
    "GatewayChanged": "gateway.client.replica",
    "Invitation": "gateway.client.inbox",
    "Missed": "gateway.client.inbox",
    "NoAnswerError": "gateway.client.errors",
    "NotConnectedError": "gateway.client.errors",
    "Observer": "gateway.client.observer",
    "Outbox": "gateway.client.outbox",
    "PatchError": "gateway.patch",
    "RefusedError": "gateway.client.errors",
    "Rejection": "gateway.client.inbox",
    "Reporter": "gateway.client.reporter",
    "Revoked": "gateway.client.inbox",
    "StatusChanged": "gateway.client.replica",
    "SubscriptionRequest": "gateway.client.inbox",
    "UsageError": "gateway.client.errors",
    "connect": "gateway.client.client",
}


def __getattr__(name: str) -> Any:
    """Loaded when it is wanted: who needs the Observer rule alone does not pay for MQTT (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return __all__
