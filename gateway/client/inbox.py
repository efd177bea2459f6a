"""What arrives in a client's inbox beside answers: refusals, what others ask, what is to be done. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Rejection:
    """A report was refused, and nobody was waiting for its acknowledgement, or the broker's said nothing of it.

    `suppressed` counts refusals that went untold since the last one.
    """

    resource: str
    code: int
    description: str
    place: str | None = None
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class SubscriptionRequest:
    """`client` asks to observe `resource`: `accept` or `reject` it. `created` and `expires` are RFC 3339."""

    id: str
    resource: str
    client: str
    created: str
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class Invitation:
    """`client` has granted `resource`: it can be observed. `accept` answers its snapshot, `reject` gives the grant back."""

    id: str
    resource: str
    client: str
    created: str
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class Delegation:
    """`client` offers to hand over `resource`: who accepts is its Reporter."""

    id: str
    resource: str
    client: str
    created: str
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """`client` asks the Reporter of `resource` to do `method`: answer with `respond`. `params` is any JSON value, or None."""

    id: str
    resource: str
    client: str
    method: str
    params: Any = None
    idempotent: bool = False
    created: str = ""
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class Revoked:
    """`client` has taken the grant of `resource` back."""

    resource: str
    client: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection is there (again). `again` is False for the first time."""

    again: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection was lost, or could not be made; the next try is in `retry_in` seconds."""

    error: Exception
    retry_in: float


@dataclass(frozen=True, slots=True)
class Missed:
    """Whoever reads is too slow: so many events were dropped, oldest first. Copies are in sync all the same."""

    count: int


Pending = SubscriptionRequest | Invitation | Delegation
"""What waits to be decided."""

_PENDING: dict[str, type[SubscriptionRequest | Invitation | Delegation]] = {
    "subscription": SubscriptionRequest,
    "invitation": Invitation,
    "delegation": Delegation,
}


def parse(message: Mapping[str, Any]) -> Pending | Action | Rejection | Revoked | None:
    """An inbox message as what it is; None for a response or a type that is not known.

    Raises KeyError or TypeError for one that is not as docs/protocol.md says.
    """
    kind = message["type"]
    made = _PENDING.get(kind)
    if made is not None:
        return made(message["id"], message["resource"], message["from"], message["created"], message.get("expires"))
    if kind == "action":
        return Action(
            message["id"],
            message["resource"],
            message["from"],
            message["method"],
            message.get("params"),
            message.get("idempotent", False),
            message.get("created", ""),
            message.get("expires"),
        )
    if kind == "rejection":
        return Rejection(
            message["resource"],
            message["code"],
            message["description"],
            message.get("place"),
            message.get("suppressed", 0),
        )
    if kind == "revoked":
        return Revoked(message["resource"], message["from"])
    return None


def loads(payload: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else."""
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
