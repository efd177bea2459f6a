from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from argon2 import PasswordHasher, extract_parameters

from gateway import credentials
from gateway.credentials import (
    MAX_PASSWORD_BYTES,
    MEMORY_KIB,
    Client,
    ClientExistsError,
    ClientNameError,
    Credentials,
    CredentialsError,
    CredentialsUnavailableError,
    Foreign,
    PasswordError,
    UnknownClientError,
    generate_password,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SECRET = "correct horse"
RIGHT = SECRET.encode()


class CountingHasher(PasswordHasher):
    """The real hasher, and how often it has worked."""

    checks = 0

    def verify(self, hash: str | bytes, password: str | bytes) -> bool:  # type: ignore[override]  # noqa: A002 - argon2-cffi's name
        type(self).checks += 1
        return super().verify(hash, password)


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountingHasher, "checks", 0)
    monkeypatch.setattr(credentials, "PasswordHasher", CountingHasher)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "clients.db"


@pytest.fixture
def clients(path: Path) -> Iterator[Credentials]:
    with closing(Credentials(path)) as opened:
        yield opened


def stored_hash(path: Path, name: str) -> str:
    with closing(sqlite3.connect(path)) as db:
        found: str = db.execute("SELECT hash FROM client WHERE name = ?", (name,)).fetchone()[0]
    return found


def put_hash(path: Path, name: str, hashed: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE client SET hash = ? WHERE name = ?", (hashed, name))
        db.commit()


# Administration


def test_a_client_logs_in_with_its_password_only(clients: Credentials) -> None:
    clients.add("room-sensor", SECRET)
    assert clients.verify("room-sensor", RIGHT)
    for wrong in (b"", b"correct hors", b"correct horse ", b"Correct horse", RIGHT + b"\0", b"\xff\xfe"):
        assert not clients.verify("room-sensor", wrong)
    assert not clients.verify("Room-sensor", RIGHT)


def test_a_password_may_hold_any_unicode(clients: Credentials) -> None:
    for i, password in enumerate(("Grüße 🌡", "\0", "x" * MAX_PASSWORD_BYTES)):
        clients.add(f"c{i}", password)
        assert clients.verify(f"c{i}", password.encode())


@pytest.mark.parametrize(
    "name", ["", "a b", "a/b", "a+", "#", "$x", "ü", "a.b", "a\n", "x" * 65, "gateway", "anonymous"]
)
def test_a_name_that_breaks_topics_or_is_reserved_is_refused(clients: Credentials, name: str) -> None:
    with pytest.raises(ClientNameError) as caught:
        clients.add(name, SECRET)
    assert caught.value.name == name
    assert clients.names() == []


def test_a_name_has_up_to_64_characters(clients: Credentials) -> None:
    clients.add("a-Z_9" + "x" * 59, SECRET)
    assert len(clients.names()[0].name) == 64


def test_a_name_that_is_taken_is_refused_and_keeps_its_password(clients: Credentials) -> None:
    clients.add("a", SECRET)
    with pytest.raises(ClientExistsError, match="passwd a"):
        clients.add("a", "other")
    assert clients.verify("a", RIGHT)


@pytest.mark.parametrize("password", ["", "x" * (MAX_PASSWORD_BYTES + 1), "ü" * 513, "secret\ud800"])
def test_a_password_that_cannot_be_is_refused_and_never_repeated(clients: Credentials, password: str) -> None:
    clients.add("a", SECRET)
    for name, attempt in (("b", clients.add), ("a", clients.set_password)):
        with pytest.raises(PasswordError) as caught:
            attempt(name, password)
        assert not password or password not in str(caught.value) + repr(caught.value.__dict__)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert [client.name for client in clients.names()] == ["a"]


def test_a_password_beyond_the_limit_is_wrong_without_being_hashed(clients: Credentials) -> None:
    clients.add("a", SECRET)
    assert not clients.verify("a", b"x" * (MAX_PASSWORD_BYTES + 1))
    assert not clients.verify("a", b"")
    assert CountingHasher.checks == 0


def test_a_new_password_replaces_the_old_one(clients: Credentials) -> None:
    clients.add("a", SECRET)
    assert clients.verify("a", RIGHT)
    clients.set_password("a", "new")
    assert not clients.verify("a", RIGHT)
    assert clients.verify("a", b"new")


def test_the_same_password_again_has_another_hash(clients: Credentials, path: Path) -> None:
    clients.add("a", SECRET)
    clients.add("b", SECRET)
    assert stored_hash(path, "a") != stored_hash(path, "b")


def test_a_disabled_client_cannot_log_in_until_it_is_enabled(clients: Credentials) -> None:
    clients.add("a", SECRET)
    assert clients.verify("a", RIGHT)
    clients.disable("a")
    assert not clients.verify("a", RIGHT)
    assert not clients.recall("a", RIGHT)
    clients.set_password("a", "new")
    assert not clients.verify("a", b"new")
    clients.enable("a")
    assert clients.verify("a", b"new")


def test_a_removed_client_cannot_log_in(clients: Credentials) -> None:
    clients.add("a", SECRET)
    assert clients.verify("a", RIGHT)
    clients.remove("a")
    assert not clients.verify("a", RIGHT)
    assert clients.names() == []


def test_what_nobody_has_cannot_be_changed(clients: Credentials) -> None:
    for attempt in (clients.remove, clients.disable, clients.enable, lambda name: clients.set_password(name, "x")):
        with pytest.raises(UnknownClientError, match="client ls"):
            attempt("nobody")


def test_clients_are_listed_by_name_with_their_times(path: Path) -> None:
    now = [1000.0]
    with closing(Credentials(path, clock=lambda: now[0])) as clients:
        clients.add("b", SECRET)
        clients.add("a", SECRET)
        now[0] = 2000.5
        clients.disable("b")
        assert clients.names() == [Client("a", False, 1_000_000, 1_000_000), Client("b", True, 1_000_000, 2_000_500)]
        now[0] = 3000.0
        clients.set_password("a", "new")
        clients.enable("b")
        assert clients.names() == [Client("a", False, 1_000_000, 3_000_000), Client("b", False, 1_000_000, 3_000_000)]


def test_clients_are_there_after_a_restart(path: Path) -> None:
    with closing(Credentials(path)) as clients:
        clients.add("a", SECRET)
    with closing(Credentials(path)) as clients:
        assert clients.verify("a", RIGHT)


# Hashing


def test_hashes_are_argon2id_with_memory_that_a_small_machine_has(clients: Credentials, path: Path) -> None:
    clients.add("a", SECRET)
    parameters = extract_parameters(stored_hash(path, "a"))
    assert parameters.type.name == "ID"
    assert (parameters.time_cost, parameters.memory_cost, parameters.parallelism) == (2, 19 * 1024, 1)


@pytest.mark.parametrize("name", ["a", "disabled", "unknown", "no/name", "gateway", ""])
def test_a_refusal_costs_one_hash_whatever_the_reason(clients: Credentials, name: str) -> None:
    clients.add("a", SECRET)
    clients.add("disabled", SECRET)
    clients.disable("disabled")
    assert not clients.verify(name, b"wrong")
    assert CountingHasher.checks == 1


def test_the_hash_for_unknown_names_has_the_parameters_of_all_others() -> None:
    made = [credentials._unknown_hash() for _ in range(2)]
    assert made[0] != made[1]
    real = extract_parameters(PasswordHasher(2, MEMORY_KIB, 1).hash(b"x"))
    assert [extract_parameters(item) for item in made] == [real, real]


def test_a_hash_with_old_parameters_is_renewed_by_a_log_in(clients: Credentials, path: Path) -> None:
    clients.add("a", SECRET)
    listed = clients.names()
    old = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(RIGHT)
    put_hash(path, "a", old)
    assert not clients.verify("a", b"wrong")
    assert stored_hash(path, "a") == old
    assert clients.verify("a", RIGHT)
    assert extract_parameters(stored_hash(path, "a")).memory_cost == MEMORY_KIB
    assert clients.recall("a", RIGHT)
    assert clients.verify("a", RIGHT)
    assert clients.names() == listed


def test_a_stored_hash_that_is_none_admits_nobody(clients: Credentials, path: Path) -> None:
    clients.add("a", SECRET)
    for broken in ("", "x", SECRET, "$argon2id$v=19$m=19456,t=2,p=1$$"):
        put_hash(path, "a", broken)
        assert not clients.verify("a", RIGHT)
        assert not clients.verify("a", broken.encode())


# Reconnecting


def test_a_repeated_log_in_is_remembered_and_not_hashed_again(clients: Credentials) -> None:
    clients.add("a", SECRET)
    assert not clients.recall("a", RIGHT)
    assert clients.verify("a", RIGHT)
    assert clients.verify("a", RIGHT)
    assert clients.recall("a", RIGHT)
    assert CountingHasher.checks == 1
    assert not clients.recall("a", b"wrong")
    assert not clients.recall("b", RIGHT)


def test_a_wrong_password_is_never_remembered(clients: Credentials) -> None:
    clients.add("a", SECRET)
    for _ in range(3):
        assert not clients.verify("a", b"wrong")
    assert CountingHasher.checks == 3


def test_what_is_remembered_is_void_when_another_process_has_changed_the_client(
    clients: Credentials, path: Path
) -> None:
    changes: dict[str, Callable[[Credentials], None]] = {
        "a": lambda other: other.set_password("a", "new"),
        "b": lambda other: other.disable("b"),
        "c": lambda other: other.remove("c"),
    }
    for name, change in changes.items():
        clients.add(name, SECRET)
        assert clients.verify(name, RIGHT)
        with closing(Credentials(path)) as other:
            change(other)
        assert not clients.recall(name, RIGHT)
        assert not clients.verify(name, RIGHT)


def test_a_removed_client_that_is_added_again_needs_its_new_password(clients: Credentials) -> None:
    clients.add("a", SECRET)
    assert clients.verify("a", RIGHT)
    clients.remove("a")
    clients.add("a", "new")
    assert not clients.verify("a", RIGHT)


def test_what_is_remembered_is_bounded_and_holds_no_password(
    clients: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "REMEMBERED", 2)
    for name in ("a", "b", "c"):
        clients.add(name, SECRET)
        assert clients.verify(name, RIGHT)
    assert len(clients._remembered) == 2
    assert [bool(clients.recall(name, RIGHT)) for name in ("a", "b", "c")] == [False, True, True]
    assert not any(RIGHT in token for token in clients._remembered)
    assert SECRET not in repr(clients)


# The file


def test_the_file_and_those_beside_it_are_for_their_owner_only(clients: Credentials, path: Path) -> None:
    clients.add("a", SECRET)
    beside = sorted(file.name for file in path.parent.iterdir())
    assert beside == ["clients.db", "clients.db-shm", "clients.db-wal"]
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_others_rights_on_the_file_are_taken_away(path: Path) -> None:
    with closing(Credentials(path)):
        pass
    path.chmod(0o644)
    with closing(Credentials(path)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_root_makes_the_file_for_the_owner_of_the_folder(tmp_path: Path) -> None:
    home = tmp_path / "state"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, 12345, 12345)
    with closing(Credentials(home / "clients.db")) as clients:
        clients.add("a", SECRET)
        assert {file.stat().st_uid for file in home.iterdir()} == {home.stat().st_uid}


def test_a_file_that_cannot_be_used_is_reported_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_bytes(b"no database at all" * 100)
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere.db")
    for place in (tmp_path / "absent" / "clients.db", tmp_path, tmp_path / "garbage.db", tmp_path / "link.db"):
        with pytest.raises(CredentialsUnavailableError) as caught:
            Credentials(place)
        assert caught.value.path == place
        assert isinstance(caught.value, CredentialsError)
    assert not (tmp_path / "elsewhere.db").exists()


def test_a_file_of_a_newer_version_is_left_alone(path: Path) -> None:
    with closing(Credentials(path)) as clients:
        clients.add("a", SECRET)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {credentials.SCHEMA_VERSION + 1}")
    with pytest.raises(CredentialsUnavailableError, match="newer version"):
        Credentials(path)


def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path) -> None:
    with closing(Credentials(path)) as clients:
        clients.add("a", SECRET)
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE entry; PRAGMA user_version = 1")
    with closing(Credentials(path, foreign=Foreign("loud", bytes.hex))) as clients:
        assert clients.verify("a", RIGHT)
        assert clients.entries("loud") == {}
        clients.set_password("a", "new")
        assert clients.entries("loud") == {"a": b"new".hex()}


def test_a_broker_that_keeps_passwords_itself_gets_them_in_its_own_format(path: Path) -> None:
    with closing(Credentials(path, foreign=Foreign("loud", bytes.hex))) as clients:
        for name in ("a", "b", "c"):
            clients.add(name, SECRET)
        clients.disable("b")
        clients.remove("c")
        assert clients.entries("loud") == {"a": RIGHT.hex()}
        clients.enable("b")
        assert clients.entries("loud") == {"a": RIGHT.hex(), "b": RIGHT.hex()}
        clients.add("c", "another")
        assert clients.entries("loud")["c"] == b"another".hex()
        assert clients.entries("quiet") == {}
    # Set where nothing is known of that broker: what it was given before is of the old password, and must not be good for anything.
    with closing(Credentials(path)) as clients:
        clients.set_password("a", "new")
        assert set(clients.entries("loud")) == {"b", "c"}
    with closing(Credentials(path, foreign=Foreign("quiet", lambda password: "q" + password.hex()))) as clients:
        clients.set_password("b", "new")
        assert clients.entries("quiet") == {"b": "q" + b"new".hex()}
        assert set(clients.entries("loud")) == {"c"}


def test_a_change_by_another_process_is_noticed_once(clients: Credentials, path: Path) -> None:
    assert not clients.changed()
    script = "import sys; from gateway.credentials import Credentials as C; from pathlib import Path; C(Path(sys.argv[1])).add('a', 'pw')"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, timeout=60)
    assert clients.changed()
    assert not clients.changed()
    assert clients.verify("a", b"pw")
    assert not clients.changed()


def test_a_change_of_ones_own_is_noticed_too(clients: Credentials) -> None:
    clients.add("a", SECRET)
    assert clients.changed()
    with pytest.raises(UnknownClientError):
        clients.remove("b")
    assert not clients.changed()


def test_log_ins_and_polls_go_on_while_another_process_holds_the_write_lock(clients: Credentials, path: Path) -> None:
    clients.add("a", SECRET)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert clients.verify("a", RIGHT)
        assert [client.name for client in clients.names()] == ["a"]
        clients.changed()
        waiting = threading.Thread(target=clients.add, args=("b", SECRET))
        waiting.start()
        assert clients.recall("a", RIGHT)
        other.execute("ROLLBACK")
        waiting.join(30)
    assert [client.name for client in clients.names()] == ["a", "b"]


def test_many_threads_log_in_while_clients_come_and_go(clients: Credentials) -> None:
    clients.add("stays", SECRET)

    def log_in(i: int) -> bool:
        return bool(clients.verify("stays", RIGHT if i % 2 else b"wrong"))

    def come_and_go(i: int) -> bool:
        clients.add(f"c{i}", SECRET)
        clients.remove(f"c{i}")
        return clients.changed() in (True, False)

    with ThreadPoolExecutor(8) as pool:
        logged_in = list(pool.map(log_in, range(20)))
        assert all(pool.map(come_and_go, range(10)))
    assert logged_in == [bool(i % 2) for i in range(20)]
    assert [client.name for client in clients.names()] == ["stays"]


# Passwords that are made


def test_made_passwords_are_long_differ_and_have_no_characters_to_mistake() -> None:
    made = [generate_password() for _ in range(500)]
    assert len(set(made)) == 500
    assert all(re.fullmatch(r"[A-HJ-NP-Za-km-z2-9]{20}", password) for password in made)
    assert len(set("".join(made))) == 57
