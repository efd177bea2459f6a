"""What rights cost: the broker inside with and without them, and with many closed objects of which the observer was granted some."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import control
from gateway.errors import CtxtError
from tests.bench.load import Round, Stream
from tests.bench.measure import (
    PAYLOAD_BYTES,
    REPORTER,
    WATCHER,
    bench_gateway,
    create,
    gateway_target,
    one_round,
    reports,
    surroundings,
    typical,
)
from tests.bench.steps import steps

if TYPE_CHECKING:
    import argparse

    from tests.running import Gateway


def rights(arguments: argparse.Namespace) -> dict[str, Any]:
    """Deltas per second with rights, without, and of granted objects among many closed ones; medians of alternating rounds."""
    qos, window = arguments.qos, arguments.window
    around = surroundings()
    # Each gateway has a stream of its own: where one leaves off says nothing about the other.
    few, fewer = (Stream(reports(100), qos) for _ in range(2))
    granted, ungranted = (Stream(reports(arguments.grants, 8, salt=1), qos) for _ in range(2))
    found: dict[str, list[Round]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name,
        steps(4 * arguments.rounds + 2) as step,
        bench_gateway(_folder(name, "judged"), arguments.durability) as judged,
        bench_gateway(_folder(name, "unjudged"), arguments.durability, module="tests.bench.unjudged") as unjudged,
        bench_gateway(_folder(name, "closed"), arguments.durability) as closed,
        bench_gateway(_folder(name, "open"), arguments.durability, module="tests.bench.unjudged") as wide,
    ):
        step(f"create {arguments.count:,} objects, twice, and close the one half")
        for running in (closed, wide):
            create(gateway_target(running.port, running.pid, qos), arguments.count, window)
        reload_seconds = _close(closed)
        step.done()
        step(f"grant {arguments.grants:,} of them")
        grant_seconds = _grant(closed, arguments.grants)
        step.done()
        # As many objects on both sides, so that what they cost by themselves is not laid to the rights.
        for turn in range(arguments.rounds):
            for label, running, stream in (
                ("judged", judged, few),
                ("unjudged", unjudged, fewer),
                ("closed", closed, granted),
                ("open", wide, ungranted),
            ):
                step(f"round {turn + 1}: {label}")
                target = gateway_target(running.port, running.pid, qos)
                found.setdefault(label, []).append(
                    one_round(target, stream, seconds=arguments.seconds, window=window, first=stream.length // 8)
                )
                step.done()

    def rate(label: str) -> float:
        return typical([each.rate for each in found[label]])

    def cpu(label: str) -> float:
        return typical([each.broker_cpu for each in found[label]]) * 1e6

    return {
        "ratio_rights_on_to_off": rate("judged") / rate("unjudged"),
        "ratio_granted_of_closed_to_off": rate("closed") / rate("open"),
        "deltas_per_second": rate("judged"),
        "deltas_per_second_without_rights": rate("unjudged"),
        "deltas_per_second_granted": rate("closed"),
        "deltas_per_second_granted_without_rights": rate("open"),
        "cpu_us_per_report": cpu("judged"),
        "cpu_us_per_report_without_rights": cpu("unjudged"),
        "cpu_us_per_report_granted": cpu("closed"),
        "cpu_us_per_report_granted_without_rights": cpu("open"),
        "reload_seconds": reload_seconds,
        "grant_seconds_each": grant_seconds / arguments.grants,
        "objects": arguments.count,
        "grants": arguments.grants,
        "qos": qos,
        "window": window,
        "rounds": arguments.rounds,
        "seconds_per_round": arguments.seconds,
        "payload_bytes": PAYLOAD_BYTES,
        **around,
    }


def _folder(name: str, below: str) -> Path:
    made = Path(name, below)
    made.mkdir()
    return made


def _close(running: Gateway) -> float:
    """Nobody is listed any more; seconds that the reload took."""
    running.config.write_text(running.config.read_text().replace('observe = ["*"]', "observe = []"))
    started = time.monotonic()
    done = running.command("reload")
    if done.returncode:
        raise CtxtError(f"the settings were not taken over: {done.stderr}")
    return time.monotonic() - started


def _grant(running: Gateway, count: int) -> float:
    started = time.monotonic()
    for i in range(count):
        url = f"ctxt://home.local/{REPORTER}/o{i}/temperature"
        control.ask(running.state_dir, {"do": "grant", "client": WATCHER, "url": url})
    return time.monotonic() - started
