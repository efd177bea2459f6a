"""What survives: objects, tombstones, floors, redelivery rings, the broker's sessions and the epoch, in one SQLite file (WAL).

One transaction per batch, and mostly one row: what a batch changed goes to the end of a journal, which costs one statement and
one or two pages however many objects there are. Now and then the journal is folded into the tables, in slices, off the event
loop (see service.py); a start folds what a kill has left.

`durability = "process"`: a commit is in the operating system's hands, so it survives `kill -9`; what
is younger than the last checkpoint may be lost in a power cut. `"power"`: every commit is flushed to the disk. Checkpoints flush
in both, and are made in a thread of their own (see service.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from itertools import islice
from sys import intern
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from gateway.errors import CtxtError
from gateway.objects import ASK, DataObject, compact
from gateway.pending import Item
from gateway.redelivery import Ring
from gateway.sessions import KeptMessage, KeptSession, Restored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from gateway.catalogue import Catalogue
    from gateway.sessions import Changes

FILE = "state.db"
LOCK = "lock"

SCHEMA_VERSION = 3

PAGE_BYTES = 1_024
"""A commit writes whole pages, and most objects are small: a quarter of the usual size writes a third as much."""

_TABLES = """
CREATE TABLE objects (
    id INTEGER PRIMARY KEY,
    topic TEXT NOT NULL UNIQUE,
    head BLOB NOT NULL,
    version INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    status TEXT NOT NULL,
    data BLOB
);
CREATE TABLE floors (authority TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE rings (
    client TEXT NOT NULL, session TEXT NOT NULL, entries BLOB NOT NULL, used INTEGER NOT NULL,
    PRIMARY KEY (client, session)
) WITHOUT ROWID;
CREATE TABLE journal (number INTEGER PRIMARY KEY, entry BLOB NOT NULL);
CREATE TABLE ids (number INTEGER PRIMARY KEY, client TEXT NOT NULL, id TEXT NOT NULL, code INTEGER NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
"""

_SESSIONS = """
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY,
    client TEXT NOT NULL,
    client_id TEXT NOT NULL,
    level INTEGER NOT NULL,
    expiry REAL NOT NULL,
    left REAL NOT NULL,
    next_id INTEGER NOT NULL,
    subscriptions BLOB NOT NULL
);
CREATE TABLE received (session INTEGER PRIMARY KEY, ids BLOB NOT NULL);
CREATE TABLE messages (
    number INTEGER PRIMARY KEY,
    session INTEGER NOT NULL,
    packet_id INTEGER NOT NULL,
    packet BLOB NOT NULL,
    expires REAL NOT NULL,
    share TEXT NOT NULL
);
CREATE INDEX messages_of ON messages (session);
"""

_PENDING = "CREATE TABLE pending (id TEXT PRIMARY KEY, entry BLOB NOT NULL) WITHOUT ROWID;"

MIGRATIONS: dict[int, str] = {1: _SESSIONS, 2: _PENDING}
"""From a schema version to the next: the statements that lead there."""

RING_TTL = 7 * 86_400
"""Seconds after which the ring of a session that has sent nothing is dropped."""

FOLD = 2_000
"""Objects that one slice of a fold writes: some milliseconds."""

SessionKey = tuple[str, str]


class StoreError(CtxtError):
    """The state folder cannot be used. The sentence says which file, why, and what to do."""


class Batch(NamedTuple):
    """What one transaction stores."""

    touched: Mapping[DataObject, None] = MappingProxyType({})
    heads: AbstractSet[DataObject] = frozenset()
    """Of `touched` those of which more than data, version and status has changed."""
    purged: Sequence[DataObject] = ()
    floors: Mapping[str, int] = MappingProxyType({})
    ids: Sequence[tuple[str, str, int]] = ()
    rings: Mapping[SessionKey, Ring] = MappingProxyType({})
    dropped: Sequence[SessionKey] = ()
    """Sessions whose rings are forgotten."""
    sessions: Changes | None = None
    """What the broker's sessions have to store."""
    pending: Mapping[Item, bool] = MappingProxyType({})
    """What waits for a client's decision (True), or does no longer."""


class Loaded(NamedTuple):
    """What a start finds: objects and tombstones, the first free row, floors by `scheme/authority`, (client, id, code), rings, what waits."""

    objects: list[DataObject]
    next_row: int
    floors: dict[str, int]
    ids: list[tuple[str, str, int]]
    rings: dict[SessionKey, Ring]
    pending: list[Item]


class _Fold(NamedTuple):
    """A fold under way: the journal up to a number, and what of it is still to be written."""

    upto: int
    objects: dict[DataObject, None]
    rings: dict[SessionKey, Ring]
    ids: list[tuple[str, str, int]]


class Store:
    """The open state folder; one process at a time (a lock file sees to it).

    Raises StoreError when the folder cannot be made, locked, read or written, or holds the state of a newer version.
    """

    def __init__(self, folder: Path, *, durability: Literal["process", "power"] = "process") -> None:
        self.folder = folder
        self.path = folder / FILE
        self.durability = durability
        self._lock = _lock(folder)
        try:
            self._db = self._connect()
            self._migrate()
        except sqlite3.Error as error:
            self._lock.close()
            raise self._wrong("open", error) from error
        except StoreError:
            self._lock.close()
            raise
        self._stored: set[int] = set()
        self._unfolded: dict[DataObject, None] = {}
        self._unfolded_rings: dict[SessionKey, Ring] = {}
        self._unfolded_ids: list[tuple[str, str, int]] = []
        self._folding: _Fold | None = None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=10, isolation_level=None, check_same_thread=False, cached_statements=64)
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if self.durability == 'power' else 'NORMAL'}")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA cache_size = -8192")
        db.execute("PRAGMA temp_store = MEMORY")
        return db

    def _migrate(self) -> None:
        db = self._db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer version (format {version}, this one reads {SCHEMA_VERSION}): "
                "install that version, or give another state_dir"
            )
        if version == 0:
            statements = _TABLES + _SESSIONS + _PENDING
            version = SCHEMA_VERSION - 1
        else:
            statements = "".join(MIGRATIONS[step] for step in range(version, SCHEMA_VERSION))
        if version < SCHEMA_VERSION:
            db.executescript(f"BEGIN IMMEDIATE;{statements}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        # A folder that cannot be written is found now, not with the first report.
        db.execute("INSERT OR REPLACE INTO meta VALUES ('opened', ?)", (int(time.time()),))

    def _wrong(self, what: str, error: sqlite3.Error) -> StoreError:
        text = str(error)
        hint = "see the file's rights and the disk"
        if "full" in text:
            hint = "the disk is full: free some space, then start again"
        elif "readonly" in text or "unable to open" in text:
            hint = f"the folder must be writable for user {os.geteuid()}"
        elif "malformed" in text or "not a database" in text:
            hint = "the file is damaged: move it away to start empty, or put a copy back"
        return StoreError(f"cannot {what} {self.path}: {text}; {hint}")

    # ---- start ---------------------------------------------------------------------------------------------------------

    def last_epoch(self) -> int:
        """The epoch claimed last; 0 in an empty folder."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        return row[0] if row is not None else 0

    def claim_epoch(self, number: int, *, seen: int = 0) -> int:
        """A new epoch for this run, stored with a full flush before it is returned.

        Larger than any before it: than the stored one, than `seen` on the broker and than the clock (Unix seconds x 256); its
        low byte is the gateway's number, so two gateways never share one. Waits where that is needed (at most two seconds): an
        empty folder may be a wiped one, so it gets a second that no other run began in; and an epoch that runs ahead of the
        clock, after many starts in a row, is not let ahead, or a wiped folder would go back.
        """
        db = self._db
        before = self.last_epoch()
        if not before:
            time.sleep(1 - time.time() % 1)
        epoch: int = (max(before, seen, int(time.time()) * 256) & ~0xFF) | number
        if epoch <= max(before, seen):
            epoch += 256
        ahead = epoch // 256 - time.time()
        if 0 < ahead <= 2:
            time.sleep(ahead)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if self.durability != "power":
                db.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            raise self._wrong("write the epoch to", error) from error
        return epoch

    def load(self, catalogue: Catalogue, ring_length: int) -> Loaded:
        """Everything that is stored. An object whose schema has left the catalogue has `schema` None until it is back.

        Rings of sessions that have long been silent are dropped. Raises StoreError.
        """
        try:
            return self._load(catalogue, ring_length)
        except sqlite3.Error as error:
            raise self._wrong("read", error) from error

    def _load(self, catalogue: Catalogue, ring_length: int) -> Loaded:
        db = self._db
        by_row: dict[int, DataObject] = {}
        rows = db.execute("SELECT id, topic, head, version, modified, status, data FROM objects")
        for row, topic, head, version, modified, status, data in rows:
            facts = orjson.loads(head)
            by_row[row] = DataObject(
                topic=topic,
                schema=catalogue.find(facts["schema"]),
                reporter=facts["reporter"],
                name=facts["name"],
                version=version,
                created=facts["created"],
                modified=modified,
                status=intern(status),
                text=data if data is not None else b"",
                deleted=data is None,
                row=row,
                description=facts.get("description"),
                tags=facts.get("tags"),
                resources=facts.get("resources"),
                grants=facts.get("grants"),
                policy=facts.get("policy", ASK),
            )
        db.execute("DELETE FROM rings WHERE used < ?", (int(time.time()) - RING_TTL,))
        rings = {
            (client, session): Ring.restored(ring_length, entries)
            for client, session, entries in db.execute("SELECT client, session, entries FROM rings")
        }
        ids = list(db.execute("SELECT client, id, code FROM ids ORDER BY number"))
        highest = max(by_row, default=0)
        for (text,) in db.execute("SELECT entry FROM journal ORDER BY number"):
            entry = orjson.loads(text)
            self._replay(entry, by_row, rings, ids, ring_length)
            # Also the row of what has been purged since: until it is folded, the journal speaks of nothing else.
            highest = max(highest, max((row for row, *_ in entry[0]), default=0))
        self._stored = set(by_row)
        floors = dict(db.execute("SELECT authority, version FROM floors"))
        pending = [Item.restored(orjson.loads(text)) for (text,) in db.execute("SELECT entry FROM pending ORDER BY id")]
        return Loaded(list(by_row.values()), highest + 1, floors, ids, rings, pending)

    def _replay(
        self,
        entry: tuple[list[Any], list[Any], list[Any]],
        by_row: dict[int, DataObject],
        rings: dict[SessionKey, Ring],
        ids: list[tuple[str, str, int]],
        ring_length: int,
    ) -> None:
        """Take in one batch of the journal; what a fold has brought into the tables already is passed over."""
        for row, version, modified, status, data in entry[0]:
            obj = by_row.get(row)
            if obj is not None and version > obj.version:
                obj.version, obj.modified, obj.status = version, modified, intern(status)
                obj.text = compact(data)
                obj.size = len(obj.text)
                self._unfolded[obj] = None
        for client, session, before, entries in entry[1]:
            key = (client, session)
            ring = rings.get(key)
            if ring is None:
                ring = rings[key] = Ring(ring_length)
            ring.replay(before, entries)
            self._unfolded_rings[key] = ring
        for client, key, code in entry[2]:
            ids.append((client, key, code))
            self._unfolded_ids.append((client, key, code))

    def sessions(self) -> Iterator[Restored]:
        """The broker's sessions that were to outlive their connections, each with its messages in order."""
        db = self._db
        received = dict(db.execute("SELECT session, ids FROM received"))
        facts = (
            "SELECT number, client, client_id, level, expiry, left, next_id, subscriptions FROM sessions ORDER BY left"
        )
        for row in db.execute(facts).fetchall():
            kept = KeptSession._make((*row[:-1], [tuple(wanted) for wanted in orjson.loads(row[-1])]))
            rows = db.execute(
                "SELECT number, session, packet_id, packet, expires, share FROM messages WHERE session = ? ORDER BY number",
                (kept.number,),
            )
            ids = {int(name): mark for name, mark in orjson.loads(received.get(kept.number, b"{}")).items()}
            yield Restored(kept, ids, [KeptMessage(*found) for found in rows])

    # ---- running -------------------------------------------------------------------------------------------------------

    def commit(self, batch: Batch) -> None:
        """Store a batch in one transaction. Raises StoreError, and then nothing of it is stored. Hot."""
        db = self._db
        stored = self._stored
        changed = []
        whole = []
        heads = batch.heads
        for obj in batch.touched:
            if obj.row in stored and not obj.deleted and obj not in heads:
                changed.append((obj.row, obj.version, obj.modified, obj.status, orjson.Fragment(obj.text or b"{}")))
            else:
                whole.append(obj)
        rings = [(*key, *ring.fresh()) for key, ring in batch.rings.items()]
        entry = orjson.dumps((changed, rings, batch.ids)) if changed or rings or batch.ids else None
        try:
            if (
                not whole
                and not batch.purged
                and not batch.floors
                and not batch.dropped
                and batch.sessions is None
                and not batch.pending
            ):
                db.execute("INSERT INTO journal (entry) VALUES (?)", (entry,))
            else:
                db.execute("BEGIN IMMEDIATE")
                self._write(batch, whole)
                if entry is not None:
                    db.execute("INSERT INTO journal (entry) VALUES (?)", (entry,))
                db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            raise self._wrong("write", error) from error
        self._unfolded.update(batch.touched)
        # A session that is dropped may be back in the same batch.
        for key in batch.dropped:
            self._unfolded_rings.pop(key, None)
            if self._folding is not None:
                self._folding.rings.pop(key, None)
        self._unfolded_rings.update(batch.rings)
        self._unfolded_ids += batch.ids

    def _write(self, batch: Batch, whole: list[DataObject]) -> None:
        """What does not go through the journal: objects that come and go."""
        db = self._db
        stored = self._stored
        for obj in whole:
            db.execute(
                "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    obj.row,
                    obj.topic,
                    _head(obj),
                    obj.version,
                    obj.modified,
                    obj.status,
                    None if obj.deleted else obj.text,
                ),
            )
            stored.add(obj.row)
        for obj in batch.purged:
            db.execute("DELETE FROM objects WHERE id = ?", (obj.row,))
            stored.discard(obj.row)
        for floor in batch.floors.items():
            db.execute("INSERT OR REPLACE INTO floors VALUES (?, ?)", floor)
        db.executemany("DELETE FROM rings WHERE client = ? AND session = ?", batch.dropped)
        for item, waits in batch.pending.items():
            if waits:
                db.execute("INSERT OR REPLACE INTO pending VALUES (?, ?)", (item.id, orjson.dumps(item.stored())))
            else:
                db.execute("DELETE FROM pending WHERE id = ?", (item.id,))
        if batch.sessions is not None:
            self._write_sessions(batch.sessions)

    def fold(self, keep_ids: int = 100_000) -> bool:
        """One slice of bringing the journal into the tables, while nobody commits; whether there is more to do.

        Blocks on the disk: call it in a thread. A kill between two slices costs nothing: what is folded already is passed over.
        Raises StoreError.
        """
        db = self._db
        fold = self._folding
        if fold is None:
            (upto,) = db.execute("SELECT max(number) FROM journal").fetchone()
            if upto is None:
                return False
            fold = self._folding = _Fold(upto, self._unfolded, self._unfolded_rings, self._unfolded_ids)
            self._unfolded, self._unfolded_rings, self._unfolded_ids = {}, {}, []
        part = list(islice(fold.objects, FOLD))
        last = len(part) == len(fold.objects)
        try:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "UPDATE objects SET version = ?, modified = ?, status = ?, data = ? WHERE id = ?",
                [(obj.version, obj.modified, obj.status, obj.text, obj.row) for obj in part if not obj.deleted],
            )
            if last:
                now = int(time.time())
                db.executemany(
                    "INSERT OR REPLACE INTO rings VALUES (?, ?, ?, ?)",
                    [(*key, ring.dump(), now) for key, ring in fold.rings.items()],
                )
                db.executemany("INSERT INTO ids (client, id, code) VALUES (?, ?, ?)", fold.ids)
                db.execute("DELETE FROM ids WHERE number <= (SELECT max(number) FROM ids) - ?", (keep_ids,))
                db.execute("DELETE FROM journal WHERE number <= ?", (fold.upto,))
            db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            raise self._wrong("write", error) from error
        for obj in part:
            del fold.objects[obj]
        if last:
            self._folding = None
        return not last

    def _write_sessions(self, changes: Changes) -> None:
        db = self._db
        for number in changes.gone:
            db.execute("DELETE FROM sessions WHERE number = ?", (number,))
            db.execute("DELETE FROM received WHERE session = ?", (number,))
            db.execute("DELETE FROM messages WHERE session = ?", (number,))
        db.executemany(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(*kept[:-1], orjson.dumps(kept.subscriptions)) for kept in changes.sessions],
        )
        for number, ids in changes.received:
            if ids:
                text = orjson.dumps(ids, option=orjson.OPT_NON_STR_KEYS)
                db.execute("INSERT OR REPLACE INTO received VALUES (?, ?)", (number, text))
            else:
                db.execute("DELETE FROM received WHERE session = ?", (number,))
        db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)", changes.messages)
        db.executemany("UPDATE messages SET packet_id = ? WHERE number = ?", changes.sent)
        db.executemany("DELETE FROM messages WHERE number = ?", [(number,) for number in changes.done])

    def wal_bytes(self) -> int:
        """How much is waiting for a checkpoint."""
        try:
            return self.path.with_name(FILE + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def checkpoint(self) -> None:
        """Bring what is in the log into the file, beside whoever commits. Blocks on the disk: call it in a thread.

        Raises StoreError.
        """
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error as error:
            raise self._wrong("checkpoint", error) from error

    def rewind(self) -> None:
        """Checkpoint the rest and begin the log anew, while nobody commits. Blocks on the disk: call it in a thread.

        The first commit into a log that begins anew flushes its header: made here, so that no report waits for it on the
        event loop. Raises StoreError.
        """
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('checkpoint', ?)", (int(time.time()),))
        except sqlite3.Error as error:
            raise self._wrong("checkpoint", error) from error

    def close(self) -> None:
        """Checkpoint, close and let the next process in. Raises StoreError when the last checkpoint fails; closed all the same."""
        try:
            while self.fold():
                pass
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise self._wrong("checkpoint", error) from error
        finally:
            self._db.close()
            self._lock.close()


def _head(obj: DataObject) -> bytes:
    """The facts of an object that seldom change."""
    facts: dict[str, object] = {
        "schema": obj.schema.url if obj.schema is not None else None,
        "reporter": obj.reporter,
        "name": obj.name,
        "created": obj.created,
    }
    for key in ("description", "tags", "resources", "grants"):
        value = getattr(obj, key)
        if value is not None:
            facts[key] = value
    if obj.policy != ASK:
        facts["policy"] = obj.policy
    return orjson.dumps(facts)


def _lock(folder: Path) -> IO[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise StoreError(
            f"cannot use the state folder {folder}: {error.strerror}; give another state_dir, or see the folder's rights and the disk"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StoreError(
            f"the state folder {folder} is in use by another gateway: stop it, or give this one another state_dir"
        ) from error
    return lock
