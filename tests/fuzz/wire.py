"""The coverage-guided fuzzer: libFuzzer (atheris) in a process of its own, and the seeds that it begins with.

Run as a program it is that process: `python -m tests.fuzz.wire [libFuzzer's options] CORPUS...`.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gateway.wire.codec import encode
from tests.fuzz import targets
from tests.wire.strategies import connects, from_client, from_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.wire.packets import Packet

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 512
"""MiB that the whole process may take: whoever believes a length field breaks it."""

LONGEST = 8_192 + 512
"""Bytes of a case: a request for a WebSocket may have a little less."""


@dataclass(frozen=True)
class Report:
    """What a run has seen: `edges` are libFuzzer's, of the gateway's own code and of what reads frames and HTTP."""

    cases: int
    edges: int
    findings: list[Path]
    log: str


def seeds() -> Iterator[bytes]:
    """Every packet of the strategies, for each target that reads it; good requests and frames for WebSockets."""
    by_target: list[tuple[int, int, st.SearchStrategy[Packet]]] = [
        (targets.SERVER, 4, connects(4)),
        (targets.SERVER, 5, connects(5)),
        (targets.SERVER_4, 4, from_client(4)),
        (targets.SERVER_5, 5, from_client(5)),
        (targets.CLIENT_4, 4, from_server(4)),
        (targets.CLIENT_5, 5, from_server(5)),
        (targets.SOCKET_4, 4, from_client(4)),
        (targets.SOCKET_5, 5, from_client(5)),
    ]
    for target, level, packets in by_target:
        for wire in drawn(packets, level):
            yield bytes((target, 0)) + wire
            yield bytes((target, 1)) + wire
            body = 2
            while wire[body - 1] >= 0x80:
                body += 1
            yield bytes((target | targets.ONE_PACKET, 0, wire[0])) + wire[body:]
    yield bytes((targets.HANDSHAKE, 0)) + targets.UPGRADE
    yield bytes((targets.HANDSHAKE, 1)) + targets.UPGRADE + frame(2, targets.CONNECT[5])
    for opcode in (0, 1, 2, 8, 9, 10):
        yield bytes((targets.FRAMES, 0)) + frame(opcode, b"")
        yield bytes((targets.FRAMES, 1)) + frame(2, targets.CONNECT[4]) + frame(opcode, b"\xc0\0")
    yield bytes((targets.FRAMES, 0)) + b"\x82\xff" + b"\x7f" + b"\xff" * 7 + bytes(4)


def drawn(packets: st.SearchStrategy[Packet], level: int) -> list[bytes]:
    """Some packets, the same each time."""
    found: list[bytes] = []

    @seed(1)
    @settings(max_examples=60, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(packets)
    def collect(packet: Packet) -> None:
        found.append(encode(packet, level))

    collect()
    return found


def frame(opcode: int, payload: bytes) -> bytes:
    """A short whole frame, masked with zeros (RFC 6455 section 5.2)."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


def fuzz(seconds: int, findings: Path, corpus: Path | None = None) -> Report:
    """Run for a while, or to the first finding, which is written to the folder `findings`; `corpus` keeps what was interesting."""
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    with ExitStack() as stack:
        grown = corpus or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        grown.mkdir(parents=True, exist_ok=True)
        planted = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for number, data in enumerate(seeds()):
            (planted / f"{number:04}").write_bytes(data)
        log = start(
            f"-max_total_time={seconds}",
            f"-artifact_prefix={findings.resolve()}/",
            # A new process begins with the highest memory that its parent ever had, and libFuzzer takes that for its own.
            f"-rss_limit_mb={MEMORY + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}",
            f"-max_len={LONGEST}",
            "-timeout=20",
            "-print_final_stats=1",
            str(grown.resolve()),
            str(planted),
        )
    cases = re.findall(r"stat::number_of_executed_units: *(\d+)", log) or re.findall(r"^#(\d+)", log, re.MULTILINE)
    edges = re.findall(r"\bcov: (\d+)", log)
    return Report(
        int(cases[-1]) if cases else 0,
        int(edges[-1]) if edges else 0,
        sorted(set(findings.iterdir()) - before),
        log,
    )


def replay(case: Path) -> Report:
    """One case again."""
    log = start(str(case.resolve()))
    return Report(1, 0, [case] if "Uncaught Python exception" in log else [], log)


def start(*arguments: str) -> str:
    """The fuzzer's process, to its end: what it has printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.wire", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=False,
    )
    return done.stdout.decode(errors="replace")


def main() -> None:
    """The fuzzer's process: what is to be measured is imported anew, instrumented."""
    import atheris

    for name in [name for name in sys.modules if name.partition(".")[0] in ("gateway", "wsproto", "h11", "tests")]:
        if name != "__main__":
            del sys.modules[name]
    with atheris.instrument_imports(include=["gateway", "wsproto", "h11"], enable_loader_override=False):
        from tests.fuzz import targets as instrumented
    atheris.Setup(sys.argv, instrumented.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
