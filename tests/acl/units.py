"""The shipped systemd units that carry the gateway's files to a broker: looked at by systemd, and done as systemd does it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.running import need

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def faults(folder: Path, unit: Path) -> str:
    """What systemd says about a path unit and the service that it starts."""
    program = need("systemd-analyze", "systemd")
    for each in (unit, unit.with_suffix(".service")):
        (folder / each.name).write_text(each.read_text())
    # The broker's own unit need not be on this machine.
    found = subprocess.run(
        [program, "verify", "--man=no", str(folder / unit.name)], capture_output=True, text=True, check=False
    )
    return found.stderr if unit.stem in found.stderr else ""


@contextmanager
def carried(unit: Path, pid: int, changes: Mapping[str, str]) -> Iterator[None]:
    """Run the units' commands whenever the watched file is another, and send the broker SIGHUP; `changes`: of their texts."""
    path, service = unit.read_text(), unit.with_suffix(".service").read_text()
    for old, new in changes.items():
        path, service = path.replace(old, new), service.replace(old, new)
    watched = Path(re.findall(r"PathChanged=(.*)", path)[0])
    shell = re.findall(r"-ec '(.*?)'", service, re.DOTALL)[0].replace("$$", "$").replace("\\\n", "")
    copy = re.sub(r"-g \w+ ", "", shell)
    over = threading.Event()

    def act() -> None:
        before = 0
        while not over.wait(0.02):
            with suppress(FileNotFoundError):
                if (now := watched.stat().st_mtime_ns) != before:
                    subprocess.run(["/bin/sh", "-ec", copy], check=True)
                    os.kill(pid, signal.SIGHUP)
                    before = now

    systemd = threading.Thread(target=act)
    systemd.start()
    try:
        yield
    finally:
        over.set()
        systemd.join()
