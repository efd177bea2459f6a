"""A report that arrives twice is applied once: rings of what came in lately, per session. Pure.

A sender may send a QoS 1 or 2 PUBLISH again, with DUP set and the same packet id, when it never saw the acknowledgement
(MQTT 5 section 4.4). At most a receive maximum of them can be outstanding, so a ring of that length knows them all.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 64
"""Entries that are stored as one row: a small batch rewrites one short row, a large one as few as possible."""

Mark = tuple[int, int]


def mark_of(topic: str, payload: bytes) -> int:
    """What tells one message from another that has the same packet id."""
    return crc32(payload, crc32(topic.encode()))


class Ring:
    """The last messages of one session: packet id, hash of topic and payload, the reason code they were answered with."""

    __slots__ = ("_count", "_dirty", "_ids", "_marks", "_reasons", "length", "used")

    def __init__(self, length: int) -> None:
        self.length = -(-length // CHUNK) * CHUNK
        self._ids = array("H")
        self._marks = array("I")
        self._reasons = array("B")
        self._count = 0
        self._dirty: set[int] = set()
        self.used = 0.0
        """Unix seconds of the last entry."""

    def remember(self, packet_id: int, mark: int, reason: int) -> None:
        """Note what a message was answered with; the oldest is forgotten when the ring is full."""
        at = self._count % self.length
        self._count += 1
        if at == len(self._ids):
            self._ids.append(packet_id)
            self._marks.append(mark)
            self._reasons.append(reason)
        else:
            self._ids[at] = packet_id
            self._marks[at] = mark
            self._reasons[at] = reason
        self._dirty.add(at // CHUNK)

    def find(self, packet_id: int, mark: int) -> int | None:
        """The reason code of the newest message with this packet id, if it is the same message; else None."""
        ids = self._ids
        for count in range(self._count - 1, self._count - 1 - len(ids), -1):
            at = count % self.length
            if ids[at] == packet_id:
                return self._reasons[at] if self._marks[at] == mark else None
        return None

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """The chunks that have changed since this was last asked, as (number, bytes) rows to store."""
        count = self._count.to_bytes(8)
        for chunk in self._dirty:
            part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
            yield (
                chunk,
                count + self._ids[part].tobytes() + self._marks[part].tobytes() + self._reasons[part].tobytes(),
            )
        self._dirty.clear()

    @classmethod
    def restored(cls, length: int, chunks: dict[int, bytes]) -> Ring:
        """A ring from its stored chunks. One that does not fit (its length was changed in the settings) begins anew."""
        ring = cls(length)
        for number in range(len(chunks)):
            text = chunks.get(number, b"")
            entries, rest = divmod(len(text) - 8, 7)
            if rest or entries < 1 or entries > CHUNK or (number + 1) * CHUNK > ring.length:
                return cls(length)
            ring._count = max(ring._count, int.from_bytes(text[:8]))
            ring._ids.frombytes(text[8 : 8 + 2 * entries])
            ring._marks.frombytes(text[8 + 2 * entries : 8 + 6 * entries])
            ring._reasons.frombytes(text[8 + 6 * entries :])
        held = len(ring._ids)
        return ring if held == min(ring._count, ring.length) else cls(length)
