"""What is kept of a session when the process ends, as plain values between broker and store. Pure.

Times are Unix seconds. A session without expiry is never kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

Wanted = tuple[str, int, bool, bool, int]
"""A subscription: filter as the client wrote it, QoS, no-local, retain-as-published, identifier (0 = none)."""


class KeptSession(NamedTuple):
    """The facts of one session; `left` is when its last connection ended, 0 = it was connected."""

    number: int
    client: str
    client_id: str
    level: int
    expiry: float
    left: float
    next_id: int
    subscriptions: list[Wanted]


class KeptMessage(NamedTuple):
    """One outgoing message of QoS > 0 that is not acknowledged; numbers grow in the order of sending.

    `packet_id` 0: not sent yet. `packet`: the PUBLISH in the session's level, its own packet identifier not meant; empty: it was
    received, and PUBREL is owed.
    `expires` 0 = never. `share` is the filter of the shared subscription that it came through, or empty.
    """

    number: int
    session: int
    packet_id: int
    packet: bytes
    expires: float
    share: str


class Restored(NamedTuple):
    """One session as it was: `received` maps the QoS 2 packet ids that PUBREL is awaited for to hashes of their messages."""

    session: KeptSession
    received: dict[int, int]
    messages: list[KeptMessage]


@dataclass(slots=True)
class Changes:
    """What one transaction stores about sessions. `gone` goes first, with everything of those sessions."""

    gone: list[int] = field(default_factory=list)
    sessions: list[KeptSession] = field(default_factory=list)
    received: list[tuple[int, dict[int, int]]] = field(default_factory=list)
    messages: list[KeptMessage] = field(default_factory=list)
    sent: list[tuple[int, int]] = field(default_factory=list)
    """(packet id, message number) of messages that have gone out since they were stored."""
    done: list[int] = field(default_factory=list)
    """Numbers of messages that are acknowledged, or dropped."""

    def __bool__(self) -> bool:
        return bool(self.gone or self.sessions or self.received or self.messages or self.sent or self.done)
