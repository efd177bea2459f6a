"""A disk that is full or cannot be written: the gateway says so in a sentence, ends with 74, and has shown nothing that it does not hold."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gateway.objects import DataObject
from gateway.store import Batch, Store, StoreError
from tests.inside import PASSWORD, Client
from tests.running import UNLIMITED, Gateway, ProgramError, gateway
from tests.world import CATALOGUE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CANNOT_WRITE = 74
FOLDER_RULES = (
    '[[namespace]]\nmatch = "ctxt://home.local/{client}/**"\nschema = "Context"\nreport = ["*"]\nobserve = ["*"]\n'
)


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[None]:
    """A tmpfs of so many bytes at `folder`; skips where this user may not mount one."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def _read_only(folder: Path) -> Iterator[Callable[[], None]]:
    """Gives what makes the folder unwritable: its mode, or for root, whom no mode stops, its mount."""
    if os.geteuid() == 0:
        with _small_disk(folder, "4m"):
            yield lambda: _remount(folder, "ro")
        return
    try:
        yield lambda: folder.chmod(0o500)
    finally:
        folder.chmod(0o700)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def _fill(place: Path) -> None:
    """Leave no byte on the disk that `place` is on."""
    with place.open("wb", buffering=0) as file:
        block = b"\0" * 65_536
        while block:
            try:
                if file.write(block) < len(block):
                    block = block[: len(block) // 2]
            except OSError:
                block = block[: len(block) // 2]


def _ended(process: subprocess.Popen[bytes]) -> int:
    return process.wait(30)


def _report_until_it_ends(running: Gateway, sensor: Client, observer: Client) -> tuple[int, list[dict[str, Any]]]:
    """Report until the gateway ends: the value acknowledged last, and the deltas heard."""
    acknowledged = -1
    for value in range(100_000):
        payload = {"values": {"text": {"value": f"{value:06}" + "x" * 4_000}}}
        info = sensor.paho.publish("report/sensor/ctxt/home.local/sensor/room", json.dumps(payload), qos=1)
        deadline = time.monotonic() + 20
        while info.mid not in sensor.reasons and running.running and time.monotonic() < deadline:
            time.sleep(0.001)
        if info.mid not in sensor.reasons:
            break
        assert sensor.reasons[info.mid][0] == 0
        acknowledged = value
    time.sleep(0.3)
    return acknowledged, observer.messages()


def _value(document: dict[str, Any]) -> int:
    return int(document["values"]["text"]["value"][:6])


def _versions_and_values(deltas: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(delta["version"], _value(delta.get("value") or delta["merge"])) for delta in deltas]


def _held(running: Gateway) -> dict[str, Any]:
    reader = Client(running.port, "dash")
    try:
        answer = reader.request("read", {"resource": "ctxt://home.local/sensor/room"})
    finally:
        reader.close()
    body: dict[str, Any] = answer["body"]
    return body


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_disk_that_fills_up_ends_the_gateway_with_a_sentence_and_shows_nothing_it_does_not_hold(
    tmp_path: Path, durability: str
) -> None:
    with (
        _small_disk(tmp_path / "state", "1m"),
        gateway(
            tmp_path,
            top=f'durability = "{durability}"',
            rest=FOLDER_RULES + UNLIMITED,
            clients={"sensor": PASSWORD, "dash": PASSWORD},
        ) as running,
    ):
        sensor, dash = Client(running.port, "sensor"), Client(running.port, "dash")
        try:
            dash.subscribe("delta/#")
            acknowledged, deltas = _report_until_it_ends(running, sensor, dash)
        finally:
            sensor.close()
            dash.close()
        assert running.process is not None
        assert _ended(running.process) == CANNOT_WRITE
        assert "the disk is full: free some space, then start again" in running.errors()
        assert "Traceback" not in running.errors()
        assert acknowledged > 10
        shown = _versions_and_values(deltas)
        # Space again: what was acknowledged is there, and nothing that was shown is missing.
        _remount(tmp_path / "state", "size=16m")
        running.start()
        held = _held(running)
        assert _value(held["data"]) == acknowledged
        assert (held["version"], acknowledged) == shown[-1]


def test_a_disk_that_is_full_at_the_start_ends_it_with_a_sentence(tmp_path: Path) -> None:
    with (
        _small_disk(tmp_path / "state", "1m"),
        gateway(tmp_path, clients={"sensor": PASSWORD}, start=False) as running,
    ):
        _fill(tmp_path / "state" / "filling")
        with pytest.raises(ProgramError, match=f"ended with {CANNOT_WRITE}") as told:
            running.start()
        assert "Traceback" not in str(told.value)
        assert "full" in str(told.value) or "No space left" in str(told.value)


def test_a_read_only_state_folder_ends_it_with_a_sentence(tmp_path: Path) -> None:
    with (
        _read_only(tmp_path / "state") as forbid,
        gateway(tmp_path, clients={"sensor": PASSWORD, "dash": PASSWORD}) as running,
    ):
        running.stop()
        forbid()
        with pytest.raises(ProgramError, match=f"ended with {CANNOT_WRITE}") as told:
            running.start()
        assert "Traceback" not in str(told.value)
        assert f"cannot use the state folder {running.state_dir}" in str(told.value)
        assert "give another state_dir" in str(told.value)


def test_a_store_that_is_full_keeps_what_was_committed_and_says_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.load(CATALOGUE, 64)
    obj = DataObject(
        topic="ctxt/h/a",
        schema=CATALOGUE.get("Context"),
        reporter="r",
        name="a",
        version=1,
        created=0,
        modified=0,
        text=b"{}",
        row=1,
    )
    store.commit(Batch(touched={obj: None}))
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + 20}")

    def fill() -> None:
        while obj.version < 1_000:
            obj.version += 1
            obj.text = b'{"x":"' + b"x" * 2_000 + b'%d"}' % obj.version
            store.commit(Batch(touched={obj: None}))

    with pytest.raises(StoreError, match="the disk is full: free some space, then start again"):
        fill()
    assert obj.version > 3
    store._db.close()
    store._lock.close()
    again = Store(tmp_path)
    (kept,) = again.load(CATALOGUE, 64).objects
    assert kept.version == obj.version - 1
    again.close()
