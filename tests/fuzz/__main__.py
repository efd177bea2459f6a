"""`python -m tests.fuzz wire|differential|broker`: look for what no test has thought of. Exit code 1 = something was found."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

ROUND = 500
"""Cases between two beginnings: hypothesis remembers all that it has tried."""


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--findings", type=Path, default=Path(".fuzz"), help="folder for what is found")
    parts = parser.add_subparsers(dest="part", required=True)
    wire = parts.add_parser("wire", help="coverage-guided: codec, WebSockets and connections, without sockets")
    wire.add_argument("--seconds", type=int, default=600)
    wire.add_argument("--corpus", type=Path, help="folder that keeps cases which reached something new")
    wire.add_argument("--replay", type=Path, help="run one saved case again, and show what it does")
    differential = parts.add_parser("differential", help="our codec beside mqtt5, paho-mqtt and gmqtt")
    differential.add_argument("--cases", type=int, default=30_000)
    differential.add_argument("--seed", type=int, default=0)
    broker = parts.add_parser("broker", help="five clients on a live broker beside a model")
    broker.add_argument("--cases", type=int, default=5_000)
    broker.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args()
    began = time.monotonic()
    found = {"wire": run_wire, "differential": run_differential, "broker": run_broker}[chosen.part](chosen)
    print(f"{time.monotonic() - began:.0f} s, {found} finding(s)" + (f", in {chosen.findings}" if found else ""))
    return 1 if found else 0


def run_wire(chosen: argparse.Namespace) -> int:
    """How many were found."""
    from tests.fuzz import wire

    if chosen.replay is not None:
        report = wire.replay(chosen.replay)
        print(report.log)
    else:
        report = wire.fuzz(chosen.seconds, chosen.findings, chosen.corpus)
        print(f"{report.cases:,} cases, {report.edges:,} edges of code reached")
        if report.findings or not report.cases:
            print(report.log[-8_000:])
    return len(report.findings) or int(not report.cases)


def run_differential(chosen: argparse.Namespace) -> int:
    """How many were found."""
    from tests.fuzz import differential

    report = differential.run(chosen.cases, chosen.seed)
    print(f"{report.cases:,} packets compared, read and written")
    for what, count in sorted(report.compared.items()):
        print(f"{count:8,}  {what}")
    for what, count in report.refused.most_common():
        print(f"{count:8,}  refused by ours alone: {what}")
    for what, data in report.findings.items():
        print(f"found: {what}\n       {data}")
    if report.findings:
        save(
            chosen.findings / "differential.txt",
            "".join(f"{what}\n  {data}\n" for what, data in report.findings.items()),
        )
    return len(report.findings)


def run_broker(chosen: argparse.Namespace) -> int:
    """1 if there was one: it is made small before the run ends."""
    from tests.fuzz import broker

    left = chosen.cases
    try:
        while left > 0:
            broker.run(min(left, ROUND), steps=chosen.steps)
            left -= ROUND
            print(dict(broker.TALLY), flush=True)
    except Exception:
        story = traceback.format_exc()
        print(story)
        save(chosen.findings / "broker.txt", story)
        return 1
    return 0


def save(path: Path, text: str) -> None:
    """Keep what was found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
