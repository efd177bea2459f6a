"""The demo: the house as a real process, its printed lines as real commands, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway import demo
from gateway.catalogue import Catalogue
from gateway.commands.outcome import Exit
from gateway.settings import warnings
from tests.running import HOST, free_port, need

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "gateway.cli", "demo", *arguments]


def environ(folder: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CTXT_")}
    return {**clean, "TMPDIR": str(folder), "NO_COLOR": "1", "HOME": str(folder)}


class Shown:
    """A running demo whose output goes into a file."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, file: Path) -> None:
        self.process = process
        self.port = port
        self.file = file

    def wait_for(self, pattern: str, seconds: float = 60.0) -> re.Match[str]:
        """Until the output matches."""
        deadline = time.monotonic() + seconds
        while True:
            text = self.file.read_text()
            found = re.search(pattern, text, re.MULTILINE)
            if found is not None:
                return found
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{text}"
            assert self.process.poll() is None, text
            time.sleep(0.05)


@contextmanager
def shown(folder: Path) -> Iterator[Shown]:
    port = free_port()
    file = folder / "out"
    with file.open("wb") as out:
        process = subprocess.Popen(
            command("--port", str(port)),
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environ(folder),
        )
    try:
        yield Shown(process, port, file)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name != "out"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    with shown(tmp_path_factory.mktemp("demo")) as one:
        one.wait_for(r"kitchen/climate  (?:created  )?temperature [\d.]+ Cel, humidity \d+ %RH$")
        yield one


def test_every_device_reports_what_its_schema_allows() -> None:
    schema = Catalogue.load().get("Context")
    for device in demo.house():
        for sensor in device.sensors:
            for second in range(0, 600, 7):
                data = {"values": sensor.measure(float(second))}
                assert schema.is_valid(data), (device.name, schema.problems(data))


def test_the_house_is_the_same_for_the_same_seed_and_moves() -> None:
    def told(seed: int) -> list[Any]:
        return [
            sensor.measure(float(second))
            for second in range(50)
            for device in demo.house(seed)
            for sensor in device.sensors[:1]
        ]

    one = demo.house(3)[0].sensors[0].measure
    two = demo.house(3)[0].sensors[0].measure
    assert [one(float(second)) for second in range(50)] == [two(float(second)) for second in range(50)]
    assert len({json.dumps(values) for values in told(1)}) > 100


def test_the_demos_settings_are_sound(tmp_path: Path) -> None:
    settings = demo.settings(tmp_path, 1883)
    assert settings.broker.listener is not None
    assert settings.broker.listener.loopback
    assert [each for each in warnings(settings) if not each.startswith("broker.anonymous")] == []


def test_no_line_to_try_is_wider_than_a_terminal() -> None:
    for effect, commands in demo.lines(65_535):
        for line in [f"# {effect}", *"\n".join(commands).splitlines()]:
            assert len(line) <= 80, line


def test_the_lines_to_try_are_printed_as_they_are(running: Shown) -> None:
    text = running.file.read_text()
    for _, commands in demo.lines(running.port):
        for line in commands:
            assert line in text


def tried(running: Shown, line: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a printed mosquitto line as a shell would."""
    words = shlex.split(line.replace("\\\n", " "))
    program = need(words[0], "mosquitto-clients")
    return subprocess.run(
        [program, *words[1:], *more], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )


def test_anybody_may_read_snapshots_and_deltas(running: Shown) -> None:
    snapshots, deltas = demo.lines(running.port)[0][1]
    seen = tried(running, snapshots, "-C", "3", "-W", "30")
    assert seen.returncode == 0
    for line in seen.stdout.splitlines():
        topic, _, payload = line.partition(" ")
        assert json.loads(payload)["url"] == topic.removeprefix("snapshot/").replace("/", "://", 1)
    changes = tried(running, deltas, "-C", "1", "-W", "60")
    assert changes.returncode == 0
    assert {"epoch", "version", "modified"} <= set(json.loads(changes.stdout.partition(" ")[2]))


def test_the_guest_reports_below_its_own_name_and_is_refused_elsewhere(running: Shown) -> None:
    accepted, refused = demo.lines(running.port)[1][1]
    assert tried(running, accepted).stderr == ""
    running.wait_for(r"you/desk  created  t 21$")
    result = tried(running, refused)
    assert "Not authorized" in result.stderr
    assert "its Reporter is 'hall'" in result.stderr + result.stdout
    assert "hall/motion  t 21" not in running.file.read_text()


def test_ctxt_lists_and_observes_the_house(running: Shown) -> None:
    export, both = demo.lines(running.port)[2][1]
    name, _, value = export.removeprefix("export ").partition("=")
    environment = {**environ(running.file.parent), name: value, "PYTHONPATH": str(ROOT)}
    for line in both.split("; "):
        words = shlex.split(line)
        assert words[0] == "ctxt"
        more = ["--once"] if words[1] == "observe" else []
        result = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *words[1:], *more],
            capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=environment,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert all(f"ctxt://home.local/{each}/" in result.stdout for each in demo.clients())


@pytest.mark.slow
def test_the_battery_sensor_goes_stale_and_wakes_and_the_lost_one_comes_back(running: Shown) -> None:
    running.wait_for(r"cellar/moisture  live → stale$")
    running.wait_for(r"garage/climate  live → disconnected$")
    running.wait_for(r"garage/climate  disconnected → live$")
    running.wait_for(r"cellar/moisture  stale → live$")


def test_a_port_that_is_taken_is_refused_with_what_to_do(running: Shown, tmp_path: Path) -> None:
    result = subprocess.run(
        command("--port", str(running.port)), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env=environ(tmp_path),
    )  # fmt: skip
    assert result.returncode == Exit.IO
    assert result.stderr.count("\n") == 1
    assert "--port" in result.stderr
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_nothing_is_left_behind(tmp_path: Path, number: signal.Signals) -> None:
    with shown(tmp_path) as one:
        one.wait_for("created")
        assert left_behind(tmp_path)
        one.process.send_signal(number)
        assert one.process.wait(30) == 0
        assert left_behind(tmp_path) == []
        text = one.file.read_text()
        assert "Traceback" not in text
        assert "exception" not in text
        assert "removed" in text


def test_it_ends_by_itself_after_its_duration(tmp_path: Path) -> None:
    result = subprocess.run(
        command("--port", "0", "--duration", "3"), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env=environ(tmp_path),
    )  # fmt: skip
    assert result.returncode == 0
    assert HOST in result.stdout
    assert "Traceback" not in result.stderr
    assert left_behind(tmp_path) == []
