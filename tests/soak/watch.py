"""Looks at a running gateway from outside: /proc, its control socket, its state folder, its log."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway import control
from tests.running import usage
from tests.soak.verdict import Sample

if TYPE_CHECKING:
    from tests.running import Gateway

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)
_THREADS = re.compile(r"^Threads:\s+(\d+)", re.MULTILINE)


def counted(state_dir: Path) -> dict[str, Any]:
    """What `ctxt broker counters` lists: name -> value, or label -> value. Raises ControlError."""
    items = control.ask(state_dir, {"do": "counters"})
    return {item["name"]: item["samples"] if "label" in item else item["value"] for item in items}


def folder_bytes(folder: Path) -> int:
    """Bytes of a folder's files; those that vanish meanwhile do not count."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def look(target: Gateway, began: float) -> Sample:
    """One sample; `began` by the monotonic clock. Raises ControlError, OSError."""
    process = Path(f"/proc/{target.pid}")
    used = usage(target.pid)
    numbers = counted(target.state_dir)
    pss = _PSS.search((process / "smaps_rollup").read_text())
    threads = _THREADS.search((process / "status").read_text())
    assert pss is not None
    assert threads is not None
    return Sample(
        at=time.monotonic() - began,
        resident=used.resident,
        proportional=int(pss[1]) * 1_024,
        descriptors=sum(1 for _ in (process / "fd").iterdir()),
        connections=numbers["ctxt_broker_connections"],
        threads=int(threads[1]),
        cpu=used.cpu,
        connected=numbers["ctxt_broker_sessions"]["connected"],
        away=numbers["ctxt_broker_sessions"]["away"],
        subscriptions=numbers["ctxt_broker_subscriptions"],
        retained=numbers["ctxt_broker_retained_messages"],
        inflight=numbers["ctxt_broker_inflight_messages"],
        queued=numbers["ctxt_broker_queued_messages"],
        queued_bytes=numbers["ctxt_broker_queued_bytes"],
        objects=numbers["ctxt_objects"],
        tombstones=numbers["ctxt_tombstones"],
        rings=numbers["ctxt_redelivery_rings"],
        state_bytes=folder_bytes(target.state_dir),
    )


def complaints(log: str) -> list[str]:
    """What a log of JSON lines has of level ERROR or worse, and every line that is no such line: a traceback, most likely."""
    found = []
    for line in log.splitlines():
        try:
            level = orjson.loads(line)["level"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            found.append(f"log: {line}")
            continue
        if level.lower() in ("error", "critical"):
            found.append(f"log: {line}")
    return found
