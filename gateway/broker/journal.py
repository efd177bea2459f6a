"""What of the sessions is to be stored: collected while the broker works, taken as one set of changes per commit.

Only sessions that outlive their connection are kept, and of their messages only those that nothing else brings back after a
restart (`House.survives`): the rest of the broker pays nothing for it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from zlib import crc32

from gateway.sessions import Changes, KeptMessage, KeptSession

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.broker.session import Message, Session
    from gateway.wire.packets import Publish

FORWARD = 32_768
"""How far a restored session's packet identifiers jump: those last used may not be stored, and the client may hold them."""


class Record:
    """A session's place in the store. `rows`: message, or packet identifier that PUBREL is owed for -> (number, packet id)."""

    __slots__ = ("behind", "fresh", "left", "marks", "number", "restored", "rows", "whole")

    def __init__(self, number: int) -> None:
        self.number = number
        self.rows: dict[Message | int, tuple[int, int]] = {}
        self.fresh: list[Message] = []
        self.whole = False
        self.left = 0.0
        self.marks: dict[int, int] = {}
        self.restored: set[int] = set()
        self.behind = False
        """Whether the house's own retained messages are to be sent when the client is back: its queue did not have them."""


class Journal:
    """`dirty`: there is something to store; `urgent`: acknowledgements wait for it."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._wall = wall
        self._facts: dict[Session, None] = {}
        self._received: dict[Session, None] = {}
        self._messages: dict[Session, None] = {}
        self._connected: set[Session] = set()
        self._gone: list[int] = []
        self._waiting: list[Publish] = []
        self._taken: list[Publish] = []
        self.next_session = 1
        self.next_message = 1
        self.sessions = 0
        self.dirty = False
        self.urgent = False

    # ---- sessions ------------------------------------------------------------------------------------------------------

    def begin(self, session: Session) -> None:
        """A session will outlive its connection."""
        session.record = Record(self.next_session)
        self.next_session += 1
        self.sessions += 1

    def connected(self, session: Session) -> None:
        """It has a connection again: messages come and go without a word to the journal, which looks for itself."""
        record = session.record
        if record is not None:
            record.left = 0.0
            self._connected.add(session)
            self.facts(session)

    def left(self, session: Session) -> None:
        """Its connection has ended."""
        record = session.record
        if record is not None:
            record.left = self._wall()
            self._connected.discard(session)
            self.facts(session)
            self.touch(session)

    def end(self, session: Session) -> None:
        """It has ended, or will not outlive its connection after all."""
        record = session.record
        if record is None:
            return
        session.record = None
        self.sessions -= 1
        self._gone.append(record.number)
        self._facts.pop(session, None)
        self._received.pop(session, None)
        self._messages.pop(session, None)
        self._connected.discard(session)
        self.dirty = True

    def facts(self, session: Session) -> None:
        """Its subscriptions, its expiry or its connection have changed."""
        if session.record is not None:
            self._facts[session] = None
            self.dirty = True

    # ---- messages ------------------------------------------------------------------------------------------------------

    def add(self, session: Session, message: Message) -> None:
        """A lasting message has just been given to a session."""
        record = session.record
        if record is None:
            return
        if session.connection is None and not record.whole:
            if not session.queue or session.queue[-1] is not message:
                return  # there was no room
            record.fresh.append(message)
        self._messages[session] = None
        self.dirty = True

    def touch(self, session: Session) -> None:
        """A session's messages have changed in the middle."""
        record = session.record
        if record is not None:
            record.whole = True
            self._messages[session] = None
            self.dirty = True

    def received(self, session: Session, publish: Publish | None = None) -> None:
        """A QoS 2 packet identifier has been taken, or released (None)."""
        record = session.record
        if record is not None:
            if publish is not None:
                record.marks[publish.packet_id] = mark(publish)
            self._received[session] = None
            self.dirty = True

    def hold(self, publish: Publish) -> None:
        """Acknowledge a PUBLISH only when everything so far is stored."""
        self._waiting.append(publish)
        self.dirty = True
        self.urgent = True

    # ---- the commit ----------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Whether there may be something to store, acknowledgements that clients have sent included."""
        if not self.dirty:
            self.dirty = any(session.record is not None and session.record.rows for session in self._connected)
        return self.dirty

    def take(self, *, sweep: bool = False) -> Changes:
        """Everything since the last time. `stored` follows, or the process ends.

        `sweep`: look through all sessions that are connected for what their clients have acknowledged, too.
        """
        changes = Changes(gone=self._gone)
        self._gone = []
        for session in self._facts:
            changes.sessions.append(self._kept(session))
        self._facts.clear()
        for session in self._received:
            record = session.record
            if record is not None:
                changes.received.append((record.number, dict(record.marks)))
        self._received.clear()
        if sweep:
            for session in self._connected:
                if session.record is not None and session.record.rows:
                    self._messages[session] = None
        for session in self._messages:
            self._difference(session, changes)
        self._messages.clear()
        self._taken += self._waiting
        self._waiting.clear()
        self.dirty = False
        self.urgent = False
        return changes

    def stored(self) -> list[Publish]:
        """The changes that were taken are stored: who can be acknowledged now."""
        taken, self._taken = self._taken, []
        return taken

    def _kept(self, session: Session) -> KeptSession:
        record = session.record
        assert record is not None
        return KeptSession(
            record.number,
            session.client,
            session.client_id,
            session.level,
            session.expiry,
            record.left,
            session.next_id,
            [
                (wanted, entry.qos, entry.no_local, entry.retain_as_published, entry.identifier)
                for wanted, entry in session.subscriptions.items()
            ],
        )

    def _difference(self, session: Session, changes: Changes) -> None:
        """What has changed among a session's messages: for an absent one only what was added at the end."""
        record = session.record
        if record is None:
            return
        rows = record.rows
        if session.connection is None and not record.whole:
            for added in record.fresh:
                self._insert(record, added, added, 0, changes)
            record.fresh.clear()
            return
        record.whole = False
        record.fresh.clear()
        there: set[Message | int] = set()
        for packet_id, message in session.inflight.items():
            if message is None:
                there.add(packet_id)
                if packet_id not in rows:
                    self._insert(record, packet_id, None, packet_id, changes)
            elif message.lasting:
                there.add(message)
                row = rows.get(message)
                if row is None:
                    self._insert(record, message, message, packet_id, changes)
                elif row[1] != packet_id:
                    rows[message] = (row[0], packet_id)
                    changes.sent.append((packet_id, row[0]))
        for message in session.queue or ():
            if message.lasting:
                there.add(message)
                if message not in rows:
                    self._insert(record, message, message, 0, changes)
        for key in rows.keys() - there:
            changes.done.append(rows.pop(key)[0])

    def _insert(
        self, record: Record, key: Message | int, message: Message | None, packet_id: int, changes: Changes
    ) -> None:
        number = self.next_message
        self.next_message += 1
        record.rows[key] = (number, packet_id)
        if message is None:
            changes.messages.append(KeptMessage(number, record.number, packet_id, b"", 0.0, ""))
            return
        expires = message.expires - self._clock() + self._wall() if message.expires else 0.0
        share = "" if message.share is None else message.share.name
        packet = message.head + b"\0\1" + message.tail
        changes.messages.append(KeptMessage(number, record.number, packet_id, packet, expires, share))


def mark(publish: Publish) -> int:
    """What tells one message from another that has the same packet identifier."""
    return crc32(publish.payload, crc32(publish.topic.encode()))
