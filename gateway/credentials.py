"""The clients that may connect, and the hashes of their passwords: a small SQLite file of its own.

`ctxt client add` writes it while the gateway runs; the gateway notices (`changed`). Hashes are argon2id (RFC 9106) with the least
memory that the OWASP password storage cheat sheet recommends, so that a machine with 512 MB can log its clients in.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_PASSWORD_BYTES = 1024
GATEWAY_NAME = "gateway"
RESERVED_NAMES: Final = frozenset({GATEWAY_NAME, "anonymous"})
SCHEMA_VERSION: Final = 2

TIME_COST = 2
MEMORY_KIB = 19 * 1024
PARALLELISM = 1
HASHES_AT_ONCE = 2
"""Each hash takes 19 MiB while it runs: a flood of log-ins must not take the memory of a small machine."""

REMEMBERED = 10_000
BUSY_TIMEOUT = 5.0

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# No 0 O, 1 l I: passwords are typed from a screen into devices.
_ALPHABET = "abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"

_SCHEMAS = (
    """
CREATE TABLE client (
    name     TEXT PRIMARY KEY,
    hash     TEXT NOT NULL,
    disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    created  INTEGER NOT NULL,
    changed  INTEGER NOT NULL
) STRICT, WITHOUT ROWID
""",
    """
CREATE TABLE entry (
    name   TEXT NOT NULL,
    format TEXT NOT NULL,
    hash   TEXT NOT NULL,
    PRIMARY KEY (name, format)
) STRICT, WITHOUT ROWID
""",
)
# The second table: the same passwords as brokers outside keep them.


class CredentialsError(CtxtError):
    """Root of what can be wrong with clients and their passwords. No password is ever part of it."""


class ClientNameError(CredentialsError):
    """A name that no client can have."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name[:80]!r} cannot be a client's name: {reason}")
        self.name = name
        self.reason = reason


class PasswordError(CredentialsError):
    """A password that cannot be set."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"the password of client {name!r} cannot be set: {reason}")
        self.name = name
        self.reason = reason


class ClientExistsError(CredentialsError):
    """The name is taken."""

    def __init__(self, name: str) -> None:
        super().__init__(f"client {name!r} is there already: `ctxt client passwd {name}` gives it another password")
        self.name = name


class UnknownClientError(CredentialsError):
    """There is no client of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no client {name[:80]!r}: `ctxt client ls` lists them")
        self.name = name


class CredentialsUnavailableError(CredentialsError):
    """The file cannot be read or written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"the clients' file {path} cannot be used ({reason}): check the folder's owner, rights and free space"
        )
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Client:
    """An authenticated principal. Times are Unix milliseconds; `changed` is of the password or `disabled`."""

    name: str
    disabled: bool
    created: int
    changed: int


def check_name(name: str) -> None:
    """Raises ClientNameError for a name that breaks topics (1 to 64 of A-Z a-z 0-9 _ -) or is reserved."""
    if not _NAME.fullmatch(name):
        raise ClientNameError(name, "use 1 to 64 of A-Z a-z 0-9 _ -")
    if name in RESERVED_NAMES:
        raise ClientNameError(name, "it is reserved; choose another")


def valid_client(name: str) -> bool:
    """Whether somebody can speak under this name: a client, or those without a name."""
    return _NAME.fullmatch(name) is not None and name != GATEWAY_NAME


def generate_password() -> str:
    """20 random characters, letters and digits that are not mistaken for each other: 116 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(20))


class Foreign(NamedTuple):
    """How a broker outside keeps passwords."""

    format: str
    hashed: Callable[[bytes], str]
    """A password's entry in the broker's own file."""


class Credentials:
    """The clients' file. Every method may be called from any thread; `verify` takes long and belongs in a worker thread.

    Raises CredentialsUnavailableError where the file cannot be used. The file and its folder's entries beside it are for their owner only.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, foreign: Foreign | None = None) -> None:
        """`foreign`: the broker that keeps passwords itself, whose format is filled in wherever one is set."""
        self._path = path
        self._foreign = foreign
        self._clock = clock
        self._hasher = PasswordHasher(time_cost=TIME_COST, memory_cost=MEMORY_KIB, parallelism=PARALLELISM)
        self._nobody = _unknown_hash()
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()
        self._hashing = threading.BoundedSemaphore(HASHES_AT_ONCE)
        with self._translated():
            _make_private(path)
            with self._writing():
                pass
            # Reads and writes have connections of their own: a writer that waits for another process delays no reader, and
            # data_version tells the reader of every write.
            self._reader = self._connect()
        try:
            with self._translated():
                self._reader.execute("PRAGMA query_only = 1")
                self._version = self._data_version()
        except CredentialsUnavailableError:
            self._reader.close()
            raise

    def __repr__(self) -> str:
        return f"Credentials({str(self._path)!r})"

    def close(self) -> None:
        """Let go of the file. Nothing may be called after it."""
        with self._lock:
            self._reader.close()
            self._remembered.clear()

    # Administration

    def add(self, name: str, password: str) -> None:
        """Raises ClientNameError, PasswordError, ClientExistsError."""
        check_name(name)
        hashed, entry = self._hash(name, password)
        now = self._now()
        with self._translated(), self._writing() as db:
            made = db.execute(
                "INSERT INTO client (name, hash, created, changed) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO NOTHING",
                (name, hashed, now, now),
            )
            if not made.rowcount:
                raise ClientExistsError(name)
            self._enter(db, name, entry)

    def set_password(self, name: str, password: str) -> None:
        """Raises PasswordError, UnknownClientError. A disabled client stays disabled."""
        hashed, entry = self._hash(name, password)
        with self._changing(name, "UPDATE client SET hash = ?, changed = ? WHERE name = ?", hashed, self._now()) as db:
            self._enter(db, name, entry)

    def remove(self, name: str) -> None:
        """Raises UnknownClientError."""
        with self._changing(name, "DELETE FROM client WHERE name = ?") as db:
            self._enter(db, name, None)

    def disable(self, name: str) -> None:
        """The client can no longer log in; its password is kept. Raises UnknownClientError."""
        with self._changing(name, "UPDATE client SET disabled = 1, changed = ? WHERE name = ?", self._now()):
            pass

    def enable(self, name: str) -> None:
        """Undo `disable`. Raises UnknownClientError."""
        with self._changing(name, "UPDATE client SET disabled = 0, changed = ? WHERE name = ?", self._now()):
            pass

    def names(self) -> list[Client]:
        """Every client, by name."""
        with self._translated(), self._lock:
            rows = self._reader.execute("SELECT name, disabled, created, changed FROM client ORDER BY name").fetchall()
        return [Client(name, bool(disabled), created, changed) for name, disabled, created, changed in rows]

    def entries(self, form: str) -> dict[str, str]:
        """The passwords in a broker's own format, by client, of those that may connect.

        Who is missing here got its password before the gateway was told of that broker: it has to be set again.
        """
        with self._translated(), self._lock:
            return dict(
                self._reader.execute(
                    "SELECT name, entry.hash FROM entry JOIN client USING (name) WHERE format = ? AND NOT disabled",
                    (form,),
                )
            )

    def changed(self) -> bool:
        """Whether anybody, here or in another process, has written since the last call. Costs microseconds."""
        with self._translated(), self._lock:
            version = self._data_version()
            differs = version != self._version
            self._version = version
        return differs

    # Logging in

    def admitted(self, name: str) -> bool | None:
        """Whether a client may connect once it is known who it is; None: there is none of that name."""
        row = self._row(name)
        return None if row is None else not row[1]

    def recall(self, name: str, password: bytes) -> bytes | None:
        """What `verify` has answered to this before and still would. Costs microseconds; None says nothing."""
        row = self._row(name)
        known = row is not None and not row[1] and self._recalls(self._token(name, row[0], password))
        return self._proof(row[0]) if known and row is not None else None

    def verify(self, name: str, password: bytes) -> bytes | None:
        """A proof that an enabled client of this name has this password, or None. An unknown name takes as long as a wrong password."""
        if not 1 <= len(password) <= MAX_PASSWORD_BYTES:
            return None
        row = self._row(name)
        if row is None or row[1]:
            self._matches(self._nobody if row is None else row[0], password)
            return None
        hashed = row[0]
        token = self._token(name, hashed, password)
        if self._recalls(token):
            return self._proof(hashed)
        if not self._matches(hashed, password):
            return None
        if self._hasher.check_needs_rehash(hashed):
            hashed = self._renew(name, hashed, password)
        else:
            self._remember(token)
        return self._proof(hashed)

    def proof(self, name: str) -> bytes | None:
        """What `verify` answers to the right password now; None where nobody can log in with one. Costs microseconds."""
        row = self._row(name)
        return None if row is None or row[1] else self._proof(row[0])

    def proofs(self) -> dict[str, bytes | None]:
        """The same of every client; None for those that are disabled."""
        with self._translated(), self._lock:
            rows = self._reader.execute("SELECT name, hash, disabled FROM client").fetchall()
        return {name: None if disabled else self._proof(hashed) for name, hashed, disabled in rows}

    def _proof(self, hashed: str) -> bytes:
        """Another one for another password, even where that has the same characters."""
        return blake2b(hashed.encode(), key=self._key, digest_size=16).digest()

    def _row(self, name: str) -> tuple[str, int] | None:
        if not _NAME.fullmatch(name):
            return None
        with self._translated(), self._lock:
            row: tuple[str, int] | None = self._reader.execute(
                "SELECT hash, disabled FROM client WHERE name = ?", (name,)
            ).fetchone()
        return row

    def _matches(self, hashed: str, password: bytes) -> bool:
        with self._hashing:
            try:
                return self._hasher.verify(hashed, password)
            except (VerificationError, InvalidHashError):
                return False

    def _renew(self, name: str, hashed: str, password: bytes) -> str:
        """Hash again with today's parameters; the hash in use then. The log-in is good all the same where this fails."""
        with self._hashing:
            renewed = self._hasher.hash(password)
        try:
            with self._writing() as db:
                db.execute("UPDATE client SET hash = ? WHERE name = ? AND hash = ?", (renewed, name, hashed))
        except (sqlite3.Error, OSError):
            return hashed
        self._remember(self._token(name, renewed, password))
        return renewed

    def _token(self, name: str, hashed: str, password: bytes) -> bytes:
        # Neither a name nor a hash contains NUL, so no two different triples are the same bytes.
        return blake2b(
            b"%b\0%b\0%b" % (name.encode(), hashed.encode(), password), key=self._key, digest_size=32
        ).digest()

    def _recalls(self, token: bytes) -> bool:
        with self._lock:
            if token in self._remembered:
                self._remembered.move_to_end(token)
                return True
        return False

    def _remember(self, token: bytes) -> None:
        with self._lock:
            self._remembered[token] = None
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)

    # The file

    def _hash(self, name: str, password: str) -> tuple[str, str | None]:
        """Our hash, and the broker's own."""
        try:
            encoded = password.encode()
        except UnicodeEncodeError:
            raise PasswordError(name, "it is not valid Unicode") from None
        if not 1 <= len(encoded) <= MAX_PASSWORD_BYTES:
            raise PasswordError(name, f"it must have 1 to {MAX_PASSWORD_BYTES:,} bytes")
        with self._hashing:
            try:
                entry = self._foreign and self._foreign.hashed(encoded)
            except ValueError as error:
                raise PasswordError(name, str(error)) from None
            return self._hasher.hash(encoded), entry

    def _enter(self, db: sqlite3.Connection, name: str, entry: str | None) -> None:
        # What other brokers were given is of an older password.
        db.execute("DELETE FROM entry WHERE name = ?", (name,))
        if self._foreign is not None and entry is not None:
            db.execute("INSERT INTO entry (name, format, hash) VALUES (?, ?, ?)", (name, self._foreign.format, entry))

    @contextmanager
    def _changing(self, name: str, statement: str, *values: object) -> Iterator[sqlite3.Connection]:
        """Change a client's row and what belongs to it. Raises UnknownClientError."""
        with self._translated(), self._writing() as db:
            if not db.execute(statement, (*values, name)).rowcount:
                raise UnknownClientError(name)
            yield db

    def _now(self) -> int:
        return int(self._clock() * 1000)

    def _data_version(self) -> int:
        version: int = self._reader.execute("PRAGMA data_version").fetchone()[0]
        return version

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction on a connection of its own, which brings the file up to the present schema first."""
        with closing(self._connect()) as db:
            if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("BEGIN IMMEDIATE")
            try:
                found = db.execute("PRAGMA user_version").fetchone()[0]
                if found > SCHEMA_VERSION:
                    raise CredentialsUnavailableError(
                        self._path, f"it was written by a newer version, schema {found}; install that version again"
                    )
                for schema in _SCHEMAS[found:]:
                    db.execute(schema)
                if found < SCHEMA_VERSION:
                    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                yield db
                db.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back after some errors, a full disk among them.
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CredentialsUnavailableError(self._path, str(error)) from error


def _make_private(path: Path) -> None:
    """Create the file for its owner only, or take others' rights away. SQLite gives its side files the same rights."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        state = os.fstat(file)
        if state.st_mode & 0o077:
            os.fchmod(file, 0o600)
        # root adds clients for a gateway that runs as the owner of the folder, and has to be able to open the file.
        if os.geteuid() == 0 and state.st_size == 0:
            home = path.parent.stat()
            os.fchown(file, home.st_uid, home.st_gid)
    finally:
        os.close(file)


def _unknown_hash() -> str:
    """A hash that costs what any other costs and that no known password has."""
    salt, digest = (base64.b64encode(secrets.token_bytes(n)).rstrip(b"=").decode() for n in (16, 32))
    return f"$argon2id$v=19$m={MEMORY_KIB},t={TIME_COST},p={PARALLELISM}${salt}${digest}"
