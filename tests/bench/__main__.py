"""`python -m tests.bench embedded|objects|rights|decisions|plain|broker|away|endure|observer`: how fast the gateway is, beside a bare mosquitto in the same run.

Results go to standard output, progress to standard error.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import CtxtError
from tests.bench.beside import away, broker, endure
from tests.bench.decisions import decisions
from tests.bench.load import Round, Stream
from tests.bench.measure import (
    MOSQUITTO,
    PAYLOAD_BYTES,
    bench_gateway,
    create,
    gateway_target,
    mosquitto_target,
    one_round,
    percentile,
    reports,
    snapshot_round,
    surroundings,
    typical,
)
from tests.bench.observer import observer
from tests.bench.plain import plain
from tests.bench.rights import rights
from tests.bench.steps import steps
from tests.running import mosquitto, mosquitto_version, usage

if TYPE_CHECKING:
    from collections.abc import Callable


def embedded(arguments: argparse.Namespace) -> dict[str, Any]:
    """Reports in, deltas out, beside mosquitto; medians of alternating rounds."""
    qos, seconds, window = arguments.qos, arguments.seconds, arguments.window
    around = surroundings()
    stream = Stream(reports(arguments.objects), qos)
    versions: dict[str, tuple[int, int]] = {}
    found: dict[str, list[Round]] = {}
    with tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name, steps(4 * arguments.rounds + 1) as step:
        bare, own = Path(name, "mosquitto"), Path(name, "gateway")
        bare.mkdir()
        own.mkdir()
        with mosquitto(bare, MOSQUITTO) as other, bench_gateway(own, arguments.durability) as running:
            theirs = mosquitto_target(other.port, other.pid, qos)
            ours = gateway_target(running.port, running.pid, qos)
            for turn in range(arguments.rounds):
                for label, width in (("pipelined", window), ("one at a time", 1)):
                    for who, target, known in (("mosquitto", theirs, None), ("gateway", ours, versions)):
                        step(f"round {turn + 1}: {who}, {label}")
                        result = one_round(target, stream, seconds=seconds, window=width, versions=known)
                        found.setdefault(f"{who} {label}", []).append(result)
                        step.done()
            step("gateway, with snapshots")
            beside = snapshot_round(ours, stream, seconds=seconds, window=window, versions=versions)
            step.done()
            memory = usage(running.pid)
            code = running.stop()
            if code:
                raise CtxtError(f"the gateway ended with {code}:\n{running.errors()}")

    def rate(key: str) -> float:
        return typical([each.rate for each in found[key]])

    def latency(key: str, share: float) -> float:
        return typical([percentile(each.times, share) for each in found[key]]) * 1e3

    def broker_cpu(key: str) -> float:
        return typical([each.broker_cpu for each in found[key]]) * 1e6

    def own_cpu(key: str) -> float:
        return typical([each.own_cpu for each in found[key]]) * 1e6

    pipelined, single = "pipelined", "one at a time"
    return {
        "ratio_pipelined": rate(f"gateway {pipelined}") / rate(f"mosquitto {pipelined}"),
        "ratio_p50_one_at_a_time": latency(f"gateway {single}", 0.5) / latency(f"mosquitto {single}", 0.5),
        "ratio_p99_one_at_a_time": latency(f"gateway {single}", 0.99) / latency(f"mosquitto {single}", 0.99),
        "deltas_per_second": rate(f"gateway {pipelined}"),
        "mosquitto_messages_per_second": rate(f"mosquitto {pipelined}"),
        "cpu_us_per_report": broker_cpu(f"gateway {pipelined}"),
        "mosquitto_cpu_us_per_message": broker_cpu(f"mosquitto {pipelined}"),
        "p50_ms": latency(f"gateway {single}", 0.5),
        "p99_ms": latency(f"gateway {single}", 0.99),
        "mosquitto_p50_ms": latency(f"mosquitto {single}", 0.5),
        "mosquitto_p99_ms": latency(f"mosquitto {single}", 0.99),
        "one_at_a_time_per_second": rate(f"gateway {single}"),
        "mosquitto_one_at_a_time_per_second": rate(f"mosquitto {single}"),
        "snapshots_per_second": beside.snapshots,
        "deltas_per_second_beside_snapshots": beside.deltas,
        "generator_cpu_us_per_report": own_cpu(f"gateway {pipelined}"),
        "generator_cpu_us_per_mosquitto_message": own_cpu(f"mosquitto {pipelined}"),
        "rates_of_rounds": [round(each.rate) for each in found[f"gateway {pipelined}"]],
        "mosquitto_rates_of_rounds": [round(each.rate) for each in found[f"mosquitto {pipelined}"]],
        "rss_bytes": memory.resident,
        "rss_peak_bytes": memory.peak,
        "objects": arguments.objects,
        "qos": qos,
        "window": window,
        "rounds": arguments.rounds,
        "seconds_per_round": seconds,
        "payload_bytes": PAYLOAD_BYTES,
        "durability": arguments.durability,
        "mosquitto": mosquitto_version(),
        **around,
    }


def objects(arguments: argparse.Namespace) -> dict[str, Any]:
    """Many stored objects: what a start costs, what they weigh, and whether they slow reports down.

    A round begins with one report on each object: the first touch after clients have connected is measured by itself.
    """
    count, few, qos = arguments.count, 100, arguments.qos
    around = surroundings()
    with (
        tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name,
        steps(2 * arguments.rounds + 4) as step,
        bench_gateway(Path(name), arguments.durability) as running,
    ):

        def target() -> Any:
            return gateway_target(running.port, running.pid, qos)

        step(f"create {count:,} objects")
        took = create(target(), count, arguments.window)
        grown = usage(running.pid)
        step.done()
        step("stop and start again")
        stopping = time.monotonic()
        running.stop(120)
        stopping = time.monotonic() - stopping
        running.start(timeout=300)
        started = usage(running.pid)
        if running.objects != count:
            raise CtxtError(f"{count:,} objects were created, {running.objects:,} are there after the start")
        step.done()
        step("kill -9 and start again")
        first = running.start_seconds
        running.kill()
        running.start(timeout=300)
        again = running.start_seconds
        step.done()
        spread: list[Round] = []
        narrow: list[Round] = []
        many, some = Stream(reports(count, 2, salt=1), qos), Stream(reports(few, salt=2), qos)
        for turn in range(arguments.rounds):
            for label, stream, into in ((f"{count:,}", many, spread), (f"{few}", some, narrow)):
                step(f"round {turn + 1}: spread over {label} objects")
                every = count if into is spread else few
                into.append(
                    one_round(target(), stream, seconds=arguments.seconds, window=arguments.window, first=every)
                )
                step.done()
        worked = usage(running.pid)
        time.sleep(3)
        step("at rest")
        rest = usage(running.pid).cpu
        time.sleep(arguments.rest)
        rest = (usage(running.pid).cpu - rest) / arguments.rest
        step.done()
        running.stop(120)
    wide, thin = typical([each.rate for each in spread]), typical([each.rate for each in narrow])
    return {
        "ratio_of_rates": wide / thin,
        "ratio_of_first_touch": typical([each.cold for each in spread]) / thin,
        "start_seconds": first,
        "start_seconds_after_kill": again,
        "rss_after_start_bytes": started.resident,
        "rss_after_creating_bytes": grown.resident,
        "rss_after_reports_bytes": worked.resident,
        "rss_peak_bytes": worked.peak,
        "cpu_at_rest_percent": rest * 100,
        "deltas_per_second_spread": wide,
        "deltas_per_second_few": thin,
        "deltas_per_second_first_touch": typical([each.cold for each in spread]),
        "cpu_us_per_report_spread": typical([each.broker_cpu for each in spread]) * 1e6,
        "cpu_us_per_report_few": typical([each.broker_cpu for each in narrow]) * 1e6,
        "rates_of_rounds_spread": [round(each.rate) for each in spread],
        "rates_of_rounds_few": [round(each.rate) for each in narrow],
        "creations_per_second": count / took,
        "stop_seconds": stopping,
        "objects": count,
        "few": few,
        "qos": qos,
        "window": arguments.window,
        "rounds": arguments.rounds,
        "seconds_per_round": arguments.seconds,
        "payload_bytes": PAYLOAD_BYTES,
        "durability": arguments.durability,
        **around,
    }


def written(key: str, value: Any) -> str:
    """A figure for people: its unit from its key."""
    if isinstance(value, list):
        return ", ".join(written("", each) for each in value)
    if key.endswith("_bytes") and value >= 2**10:
        return f"{value / 2**20:,.1f} MiB" if value >= 2**20 else f"{value / 2**10:,.1f} KiB"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Ratios first, then the figures."""
    if as_json:
        sys.stdout.write(orjson.dumps(result).decode() + "\n")
        return
    for key, value in result.items():
        sys.stdout.write(f"{key.replace('_', ' '):<40} {written(key, value)}\n")


def main() -> int:
    """Returns 1 when something did not behave while it was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runs: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "embedded": embedded,
        "objects": objects,
        "rights": rights,
        "decisions": decisions,
        "plain": plain,
        "broker": broker,
        "away": away,
        "endure": endure,
        "observer": observer,
    }
    for name, run in runs.items():
        command = commands.add_parser(name, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--seconds", type=float, default=3.0, help="length of one measured round")
        command.add_argument("--rounds", type=int, default=3, help="rounds of each kind; medians are printed")
        command.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    for name in ("embedded", "objects", "rights"):
        command = commands.choices[name]
        command.add_argument("--qos", type=int, choices=(0, 1), default=1, help="of reports and of deltas")
        command.add_argument("--window", type=int, default=200, help="messages on their way when pipelined")
        command.add_argument("--durability", choices=("process", "power"), default="process")
    for name in ("broker", "away", "endure"):
        command = commands.choices[name]
        command.add_argument("--window", type=int, default=200, help="messages on their way when pipelined")
        command.add_argument("--durability", choices=("process", "power"), default="process")
    commands.choices["away"].add_argument("--away", type=float, default=60.0, help="seconds without a broker")
    commands.choices["endure"].add_argument("--minutes", type=int, default=10)
    command = commands.choices["broker"]
    command.add_argument("--with-node-red", action="store_true", help="a Node-RED flow too, installed from npm for it")
    command.add_argument("--with-thingsboard", action="store_true", help="thingsboard-gateway too, installed for it")
    commands.choices["embedded"].add_argument("--objects", type=int, default=100)
    commands.choices["objects"].add_argument("--count", type=int, default=100_000)
    commands.choices["objects"].add_argument("--rest", type=float, default=10.0, help="seconds of rest to measure")
    commands.choices["rights"].add_argument("--count", type=int, default=100_000, help="closed objects")
    commands.choices["rights"].add_argument("--grants", type=int, default=1_000, help="of them granted to the observer")
    commands.choices["decisions"].add_argument("--objects", type=int, default=1_000)
    commands.choices["decisions"].add_argument("--connections", type=int, default=16, help="of the broker's pool")
    command = commands.choices["observer"]
    command.add_argument("--deltas", type=int, default=40_000, help="in one round")
    command.add_argument("--objects", type=int, default=200, help="of the subtree")
    command.add_argument("--copies", type=int, default=10_000, help="whose memory is measured")
    command = commands.choices["plain"]
    command.add_argument("--observers", type=int, default=500, help="of one publisher")
    command.add_argument("--pairs", type=int, default=250, help="publishers, each with an observer of its own")
    command.add_argument("--idle", type=int, default=1_000, help="connections that do nothing")
    command.add_argument("--foreign", type=int, default=10_000, help="filters that do not match")
    command.add_argument("--retained", type=int, default=100_000, help="retained messages of 500 bytes")
    arguments = parser.parse_args()
    try:
        with closing(sys.stdout):
            show(arguments.run(arguments), as_json=arguments.json)
    except CtxtError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
