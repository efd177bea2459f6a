"""A report that arrives twice is applied once: rings of what came in lately, per session. Pure.

A sender may send a QoS 1 or 2 PUBLISH again, with DUP set and the same packet id, when it never saw the acknowledgement
(MQTT 5 section 4.4). At most a receive maximum of them can be outstanding, so a ring of that length knows them all.
"""

from __future__ import annotations

from array import array
from zlib import crc32


def mark_of(topic: str, payload: bytes) -> int:
    """What tells one message from another that has the same packet id."""
    return crc32(payload, crc32(topic.encode()))


class Ring:
    """The last messages of one session: packet id, hash of topic and payload, the reason code they were answered with."""

    __slots__ = ("_count", "_fresh", "_ids", "_marks", "_reasons", "length", "used")

    def __init__(self, length: int) -> None:
        self.length = length
        self._ids = array("H")
        self._marks = array("I")
        self._reasons = array("B")
        self._count = 0
        self._fresh: list[int] = []
        self.used = 0.0
        """Unix seconds of the last entry."""

    def remember(self, packet_id: int, mark: int, reason: int) -> None:
        """Note what a message was answered with; the oldest is forgotten when the ring is full."""
        self._fresh += (packet_id, mark, reason)
        self._keep(packet_id, mark, reason)

    def _keep(self, packet_id: int, mark: int, reason: int) -> None:
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

    def find(self, packet_id: int, mark: int) -> int | None:
        """The reason code of the newest message with this packet id, if it is the same message; else None."""
        at = self._count % self.length
        # Searched without a step of Python for each entry: anybody can set DUP on anything.
        for part in (slice(0, at), slice(at, None)):
            ids = self._ids[part]
            ids.reverse()
            if packet_id in ids:
                found = part.start + len(ids) - 1 - ids.index(packet_id)
                return self._reasons[found] if self._marks[found] == mark else None
        return None

    def void(self) -> None:
        """Nothing remembered holds any more: the same packet ids begin anew."""
        if any(self._ids):
            for _ in range(self.length):
                self.remember(0, 0, 0)

    def fresh(self) -> tuple[int, list[int]]:
        """What was remembered since this was last asked: how many entries came before, and (id, mark, reason) one after another."""
        fresh, self._fresh = self._fresh, []
        return self._count - len(fresh) // 3, fresh

    def replay(self, before: int, entries: list[int]) -> None:
        """Take in what `fresh` gave, in order; what is known already is passed over."""
        known = max(0, self._count - before) * 3
        for at in range(known, len(entries), 3):
            self._keep(*entries[at : at + 3])

    def dump(self) -> bytes:
        """The whole ring, for `restored`."""
        return self._count.to_bytes(8) + self._ids.tobytes() + self._marks.tobytes() + self._reasons.tobytes()

    @classmethod
    def restored(cls, length: int, text: bytes) -> Ring:
        """A ring from its dump. One that does not fit (its length was changed in the settings) begins anew."""
        ring = cls(length)
        entries, rest = divmod(len(text) - 8, 7)
        count = int.from_bytes(text[:8])
        if rest or entries < 0 or entries != min(count, length):
            return ring
        ring._count = count
        ring._ids.frombytes(text[8 : 8 + 2 * entries])
        ring._marks.frombytes(text[8 + 2 * entries : 8 + 6 * entries])
        ring._reasons.frombytes(text[8 + 6 * entries :])
        return ring
