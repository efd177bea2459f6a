from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from gateway.catalogue import Catalogue
from gateway.objects import DataObject
from gateway.redelivery import Ring
from gateway.sessions import Changes, KeptMessage, KeptSession, Restored
from gateway.store import FILE, Batch, Loaded, Store, StoreError
from tests.world import CATALOGUE

if TYPE_CHECKING:
    from pathlib import Path


def thing(topic: str = "ctxt/h/a", row: int = 1, **rest: Any) -> DataObject:
    facts = {
        "topic": topic,
        "schema": CATALOGUE.get("Context"),
        "reporter": "r",
        "name": "a",
        "version": 3,
        "created": 5,
        "modified": 7,
        "text": b'{"values":{}}',
        "row": row,
        **rest,
    }
    return DataObject(**facts)


def facts(obj: DataObject) -> dict[str, Any]:
    left_out = {"delta_route", "snapshot_route", "value_route", "size", "charged", "schema", "namespace", "data"}
    return {name: getattr(obj, name) for name in DataObject.__slots__ if name not in left_out}


def touched(*objects: DataObject) -> Batch:
    return Batch(touched=dict.fromkeys(objects))


def reopened(folder: Path, catalogue: Catalogue = CATALOGUE) -> tuple[Store, Loaded]:
    store = Store(folder)
    return store, store.load(catalogue, 64)


def copied(folder: Path, to: Path) -> Path:
    """The folder as a kill would leave it."""
    shutil.copytree(folder, to)
    return to


def test_a_restart_gives_back_exactly_what_was_committed(tmp_path: Path) -> None:
    store, _ = reopened(tmp_path / "one")
    one = thing(description="d", tags=["t"], resources=["r"])
    two = thing("ctxt/h/b", 2)
    gone = thing("ctxt/h/c", 3, deleted=True, text=b"")
    store.commit(Batch(touched=dict.fromkeys([one, two, gone]), floors={"ctxt/h": 9}, ids=[("r", "id1", 200)]))
    one.version, one.modified, one.status, one.text = 4, 8, "stale", b'{"values":{"t":{"value":1}}}'
    store.commit(touched(one))
    killed = copied(tmp_path / "one", tmp_path / "killed")
    store.close()
    for folder in (killed, tmp_path / "one"):
        store, loaded = reopened(folder)
        assert [facts(obj) for obj in loaded.objects] == [facts(one), facts(two), facts(gone)]
        assert all(obj.schema is CATALOGUE.get("Context") for obj in loaded.objects)
        assert loaded.floors == {"ctxt/h": 9}
        assert loaded.ids == [("r", "id1", 200)]
        assert loaded.next_row == 4
        store.commit(Batch(purged=[loaded.objects[2]]))
        store.close()
        store, loaded = reopened(folder)
        assert len(loaded.objects) == 2
        store.close()


def test_a_kill_between_two_slices_of_a_fold_costs_nothing(tmp_path: Path) -> None:
    store, _ = reopened(tmp_path / "one")
    things = [thing(f"ctxt/h/{i}", i + 1) for i in range(5_000)]
    store.commit(touched(*things))
    ring = Ring(64)
    for obj in things:
        obj.version = 10
        obj.text = b'{"n":10}'
    ring.remember(1, 2, 3)
    store.commit(Batch(touched=dict.fromkeys(things), rings={("r", "c"): ring}, ids=[("r", "one", 200)]))
    assert store.fold()
    for obj in things[::2]:
        obj.version = 11
        obj.text = b'{"n":11}'
    ring.remember(4, 5, 6)
    store.commit(Batch(touched=dict.fromkeys(things[::2]), rings={("r", "c"): ring}, ids=[("r", "two", 409)]))
    assert store.fold()
    killed = copied(tmp_path / "one", tmp_path / "killed")
    while store.fold():
        pass
    folded = copied(tmp_path / "one", tmp_path / "folded")
    store.close()
    for folder in (killed, folded, tmp_path / "one"):
        store, loaded = reopened(folder)
        assert [(obj.version, obj.text) for obj in loaded.objects] == [(obj.version, obj.text) for obj in things]
        assert loaded.rings["r", "c"].dump() == ring.dump()
        assert loaded.ids == [("r", "one", 200), ("r", "two", 409)]
        store.close()


def test_only_the_last_ids_are_kept(tmp_path: Path) -> None:
    store, _ = reopened(tmp_path)
    for i in range(20):
        store.commit(Batch(ids=[("r", str(i), 200)]))
    while store.fold(keep_ids=5):
        pass
    store.close()
    store, loaded = reopened(tmp_path)
    assert [key for _, key, _ in loaded.ids] == ["15", "16", "17", "18", "19"]
    store.close()


def test_rings_come_back_and_those_of_silent_sessions_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = reopened(tmp_path)
    ring = Ring(64)
    ring.remember(1, 2, 3)
    store.commit(Batch(rings={("r", "c"): ring}))
    store.close()
    store, loaded = reopened(tmp_path)
    assert loaded.rings["r", "c"].find(1, 2) == 3
    store.close()
    later = time.time() + 8 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    store, loaded = reopened(tmp_path)
    assert loaded.rings == {}
    store.close()


def test_an_epoch_is_larger_than_every_one_before_and_ends_in_the_gateways_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    clock = 1_000_000.0
    slept: list[float] = []
    monkeypatch.setattr(time, "time", lambda: clock)
    monkeypatch.setattr(time, "sleep", slept.append)
    first = store.claim_epoch(7)
    second = store.claim_epoch(7)
    clock = 500_000.0
    third = store.claim_epoch(9)
    fourth = store.claim_epoch(7, seen=2_000_000 * 256 + 200)
    fifth = store.claim_epoch(7)
    epochs = [first, second, third, fourth, fifth]
    assert epochs == sorted(set(epochs))
    assert [epoch & 0xFF for epoch in epochs] == [7, 7, 9, 7, 7]
    assert fourth > 2_000_000 * 256 + 200
    assert slept == [1.0, 1.0]  # the first in an empty folder, the second within the same second
    store.close()
    wiped = Store(tmp_path / "wiped")
    clock = 3_000_000.0
    assert wiped.claim_epoch(7) > fifth
    wiped.close()


def test_two_gateways_do_not_share_a_state_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="in use by another gateway"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(StoreError, match="newer version"):
        Store(tmp_path)


def test_a_damaged_file_and_a_folder_that_is_a_file_are_told_clearly(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(StoreError, match="damaged"):
        Store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot use the state folder"):
        Store(tmp_path / "file")


def test_a_schema_that_has_left_the_catalogue_does_not_lose_the_object(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.commit(touched(thing()))
    store.close()
    (tmp_path / "none").mkdir()
    store, loaded = reopened(tmp_path, Catalogue.load(tmp_path / "none"))
    (obj,) = loaded.objects
    assert obj.schema is None
    assert obj.text == b'{"values":{}}'
    store.close()


_WRITER = """
import sys
from pathlib import Path
from gateway.store import Store
from tests.test_store import thing, touched
store = Store(Path(sys.argv[1]))
obj = thing()
for version in range(4, 100_000):
    obj.version = version
    obj.text = b'{"version":%d}' % version
    store.commit(touched(obj))
    print(version, flush=True)
"""


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert process.stdout is not None
    for _ in range(200):
        last = int(process.stdout.readline())
    process.kill()
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    last = int(rest[-1]) if rest else last
    store, loaded = reopened(tmp_path)
    (obj,) = loaded.objects
    assert obj.version in (last, last + 1)
    assert obj.text == b'{"version":%d}' % obj.version
    store.close()


def test_checkpoints_run_beside_commits(tmp_path: Path) -> None:
    store = Store(tmp_path)
    obj = thing()
    for _ in range(50):
        obj.version += 1
        store.commit(touched(obj))
    assert store.wal_bytes() > 0
    store.checkpoint()
    obj.version += 1
    store.commit(touched(obj))
    store.rewind()
    assert store.wal_bytes() < 20_000
    store.close()
    store, loaded = reopened(tmp_path)
    (again,) = loaded.objects
    assert again.version == obj.version
    store.close()


def test_a_row_that_the_journal_still_speaks_of_is_not_given_to_another_object(tmp_path: Path) -> None:
    store, _ = reopened(tmp_path / "one")
    obj = thing(row=1)
    store.commit(touched(obj))
    obj.version = 57
    store.commit(touched(obj))
    obj.deleted, obj.version, obj.text = True, 58, b""
    store.commit(touched(obj))
    store.commit(Batch(purged=[obj], floors={"ctxt/h": 58}))
    killed = copied(tmp_path / "one", tmp_path / "killed")
    store.close()
    store, loaded = reopened(killed)
    other = thing("ctxt/other/b", loaded.next_row, version=1, text=b'{"mine":1}')
    store.commit(touched(other))
    again = copied(killed, tmp_path / "again")
    store.close()
    store, loaded = reopened(again)
    (kept,) = loaded.objects
    store.close()
    assert (kept.topic, kept.version, kept.text) == ("ctxt/other/b", 1, b'{"mine":1}')


def test_a_dropped_ring_is_gone_also_from_what_is_still_to_be_folded(tmp_path: Path) -> None:
    store, _ = reopened(tmp_path / "one")
    rings = {("r", str(i)): Ring(64) for i in range(3)}
    for ring in rings.values():
        ring.remember(1, 2, 0)
    store.commit(Batch(rings=rings))
    store.commit(Batch(dropped=[("r", "0")]))
    while store.fold():
        pass
    rings["r", "1"].remember(3, 4, 0)
    store.commit(Batch(rings={("r", "1"): rings["r", "1"]}, dropped=[("r", "2")]))
    store.close()
    store, loaded = reopened(tmp_path / "one")
    assert set(loaded.rings) == {("r", "1")}
    store.close()


def test_a_folder_of_format_1_is_taken_over_with_what_it_holds(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.executescript(
            """
            CREATE TABLE objects (
                id INTEGER PRIMARY KEY, topic TEXT NOT NULL UNIQUE, head BLOB NOT NULL, version INTEGER NOT NULL,
                modified INTEGER NOT NULL, status TEXT NOT NULL, data BLOB
            );
            CREATE TABLE floors (authority TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
            CREATE TABLE rings (
                client TEXT NOT NULL, session TEXT NOT NULL, entries BLOB NOT NULL,
                used INTEGER NOT NULL, PRIMARY KEY (client, session)
            ) WITHOUT ROWID;
            CREATE TABLE ids (number INTEGER PRIMARY KEY, client TEXT NOT NULL, id TEXT NOT NULL, code INTEGER NOT NULL);
            CREATE TABLE journal (number INTEGER PRIMARY KEY, entry BLOB NOT NULL);
            CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
            INSERT INTO floors VALUES ('ctxt/home.local', 7);
            INSERT INTO ids VALUES (1, 'r', 'id1', 200);
            INSERT INTO meta VALUES ('epoch', 257);
            INSERT INTO objects VALUES (
                3, 'ctxt/home.local/r/x', CAST('{"schema":null,"reporter":"r","name":"x","created":5}' AS BLOB),
                4, 6, 'live', CAST('{"values":{}}' AS BLOB)
            );
            PRAGMA user_version = 1;
            """
        )
    store, loaded = reopened(tmp_path)
    assert loaded.floors == {"ctxt/home.local": 7}
    assert loaded.ids == [("r", "id1", 200)]
    (obj,) = loaded.objects
    assert (obj.topic, obj.version, obj.text) == ("ctxt/home.local/r/x", 4, b'{"values":{}}')
    assert not list(store.sessions())
    kept = KeptSession(1, "bob", "panel", 5, 60.0, 0.0, 9, [("open/#", 1, False, True, 3)])
    store.commit(Batch(sessions=Changes(sessions=[kept])))
    store.close()
    store = Store(tmp_path)
    assert list(store.sessions()) == [Restored(kept, {}, [])]
    store.close()


def test_sessions_come_back_as_they_were_stored_and_go_with_everything_of_theirs(tmp_path: Path) -> None:
    one = KeptSession(1, "bob", "panel", 5, 60.0, 0.0, 9, [("$share/g/open/#", 2, False, False, 0)])
    two = KeptSession(2, "bob", "p\u00e4nel", 4, 60.0, 5.0, 1, [])
    first = KeptMessage(1, 1, 0, b"0123", 0.0, "")
    second = KeptMessage(2, 1, 77, b"", 0.0, "")
    third = KeptMessage(3, 2, 0, b"45", 12.5, "$share/g/open/#")
    store = Store(tmp_path)
    store.commit(
        Batch(
            sessions=Changes(
                sessions=[one, two], received=[(1, {5: 4_000_000_000}), (2, {})], messages=[first, second, third]
            )
        )
    )
    store.commit(Batch(sessions=Changes(sent=[(8, 1)], done=[2], received=[(2, {1: 2})])))
    store.close()
    store = Store(tmp_path)
    assert list(store.sessions()) == [
        Restored(one, {5: 4_000_000_000}, [first._replace(packet_id=8)]),
        Restored(two, {1: 2}, [third]),
    ]
    store.commit(Batch(sessions=Changes(gone=[1, 2], sessions=[two._replace(number=3)], received=[(3, {})])))
    assert list(store.sessions()) == [Restored(two._replace(number=3), {}, [])]
    for table in ("received", "messages"):
        assert store._db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    store.close()
