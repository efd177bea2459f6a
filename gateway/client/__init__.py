"""Reporter and Observer for applications, on asyncio; `gateway.client.blocking` is the same for scripts and threads."""

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
