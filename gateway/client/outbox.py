"""Reports that wait for the connection, all of them and in order, in a bounded SQLite file that outlives the process."""

from __future__ import annotations

import sqlite3
from collections import deque
from typing import TYPE_CHECKING

from gateway.client.errors import ClientError, NotConnectedError, RefusedError, UsageError
from gateway.client.inbox import Rejection

if TYPE_CHECKING:
    from os import PathLike

    from gateway.client.core import Core

MAX_REPORTS = 100_000
MAX_BYTES = 64 * 1024 * 1024

WINDOW = 20
"""Reports that are read at once from the file when they are sent."""

PAUSE = 1.0
"""Seconds to wait when the gateway has no room or no time."""


class Outbox:
    """A queue of reports on disk. Where it is full the oldest make room, and are counted in `dropped`."""

    def __init__(
        self, path: str | PathLike[str], *, max_reports: int = MAX_REPORTS, max_bytes: int = MAX_BYTES
    ) -> None:
        """Raises UsageError for a file that cannot be used."""
        if max_reports < 1 or max_bytes < 1:
            raise UsageError("a queue has room for one report at least")
        self.path = path
        self.max_reports = max_reports
        self.max_bytes = max_bytes
        self.dropped = 0
        """Reports that had to make room for newer ones."""
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS report (seq INTEGER PRIMARY KEY AUTOINCREMENT, "
                "number TEXT NOT NULL, topic TEXT NOT NULL, payload BLOB NOT NULL)"
            )
            row = self._db.execute("SELECT count(*), coalesce(sum(length(payload)), 0) FROM report").fetchone()
        except sqlite3.Error as error:
            raise UsageError(f"the queue {path} cannot be used: {error}") from error
        self._count: int = row[0]
        self._bytes: int = row[1]

    def __len__(self) -> int:
        return self._count

    def put(self, number: str, topic: str, payload: bytes) -> None:
        """Add a report at the end. Raises UsageError for one that is larger than the whole queue, or a disk that takes nothing."""
        if len(payload) > self.max_bytes:
            raise UsageError(f"a report of {len(payload):,} bytes does not fit into a queue of {self.max_bytes:,}")
        try:
            self._db.execute("INSERT INTO report (number, topic, payload) VALUES (?, ?, ?)", (number, topic, payload))
        except sqlite3.Error as error:
            raise UsageError(f"the queue {self.path} takes nothing more: {error}") from error
        self._count += 1
        self._bytes += len(payload)
        while self._count > self.max_reports or self._bytes > self.max_bytes:
            row = self._db.execute("SELECT seq, length(payload) FROM report ORDER BY seq LIMIT 1").fetchone()
            self._remove(*row)
            self.dropped += 1

    def _remove(self, seq: int, size: int) -> None:
        if self._db.execute("DELETE FROM report WHERE seq = ?", (seq,)).rowcount:
            self._count -= 1
            self._bytes -= size

    async def flush(self, core: Core) -> None:
        """Send everything, in order; one that is refused is told as a Rejection and given up. Raises NotConnectedError."""
        while self._count:
            rows = deque(
                self._db.execute(
                    "SELECT seq, number, topic, payload FROM report ORDER BY seq LIMIT ?", (WINDOW,)
                ).fetchall()
            )
            while rows:
                seq, number, topic, payload = rows[0]
                try:
                    await core.report(topic, payload, number)
                except NotConnectedError:
                    raise
                except RefusedError as error:
                    if error.code in (429, 504, 507):
                        await core.sleep(PAUSE)
                        continue
                    core.dropped += 1
                    core.emit(Rejection(error.resource, error.code, error.description, error.place))
                except ClientError:
                    # Nobody has taken it: it stays where it is.
                    await core.sleep(PAUSE)
                    if not core.connected:
                        raise
                    continue
                self._remove(seq, len(payload))
                rows.popleft()

    def close(self) -> None:
        """Close the file; what is in it stays."""
        self._db.close()
