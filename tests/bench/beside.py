"""The gateway beside a broker outside: mosquitto alone, a null relay on the same link, the gateway; side by side in one run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from gateway.errors import CtxtError
from tests.bench.load import LoadError, Member, Observer, Publisher, Stream, Together, connect
from tests.bench.measure import (
    MOSQUITTO,
    Target,
    gateway_target,
    head,
    mosquitto_target,
    one_round,
    percentile,
    quiet_memory,
    reports,
    snapshot_round,
    surroundings,
    typical,
)
from tests.bench.rivals import converted, node_red, thingsboard
from tests.bench.steps import steps
from tests.running import (
    OWN_NAMESPACE,
    ROOT,
    UNLIMITED,
    find,
    gateway,
    mosquitto,
    mosquitto_version,
    usage,
    wait_for_port,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from tests.bench.load import Round
    from tests.bench.steps import Steps

BARE, RELAY, GATEWAY, OLD = "mosquitto", "relay", "gateway", "gateway_3_1_1"
RATE = 1_000
"""Updates a second at which latency is measured."""

Result = dict[str, Any]


@contextmanager
def relay(url: str) -> Iterator[int]:
    """A null relay as a process: its id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.relay", url], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise CtxtError("the relay does not start")
        yield process.pid
    finally:
        process.kill()
        process.wait()


@contextmanager
def places(qos: int, durability: str) -> Iterator[dict[str, tuple[Target, int]]]:
    """Each contestant with a mosquitto of its own, all running: what to load, and the broker's process id."""
    with ExitStack() as stack:
        found: dict[str, tuple[Target, int]] = {}
        for name in (BARE, RELAY, GATEWAY, OLD):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctxt-bench-")))
            broker = stack.enter_context(mosquitto(folder, MOSQUITTO))
            url = f"mqtt://127.0.0.1:{broker.port}"
            if name == BARE:
                target = mosquitto_target(broker.port, broker.pid, qos)
            elif name == RELAY:
                pid = stack.enter_context(relay(url))
                target = Target(broker.port, pid, "delta/#", head(qos, rb'\{"values"'))
            else:
                link = f'[link]\nopen = true\nprotocol = "{"3.1.1" if name == OLD else "5"}"\n'
                rest = f"{OWN_NAMESPACE}qos = {qos}\n{UNLIMITED}{link}"
                top = f'durability = "{durability}"'
                running = stack.enter_context(gateway(folder, top=top, rest=rest, outside=url))
                target = gateway_target(broker.port, running.pid, qos)._replace(user=None, watcher=None, password=None)
            found[name] = (target, broker.pid)
        yield found


class Paced(Publisher):
    """Sends one message at each tick, however the others fare, and notes when each arrives."""

    def __init__(self, stream: Stream, observer: Observer) -> None:
        super().__init__(stream, observer, 1 << 30)
        self.arrivals: list[float] = []
        self._left_at: list[float] = []
        self._received = observer.received

    async def paced(self, rate: int, seconds: float) -> list[float]:
        """Seconds that each message took, in order. Raises LoadError."""
        assert self.transport is not None
        assert isinstance(self.observer, Observer)
        self._received = self.observer.received
        begin = perf_counter()
        base = self.stream.position
        for i in range(int(rate * seconds)):
            wait = begin + i / rate - perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            self._left_at.append(perf_counter())
            self.transport.write(self.stream.take(base + i, 1))
        self.stream.position = base + len(self._left_at)
        deadline = perf_counter() + 10
        while len(self.arrivals) < len(self._left_at):
            if perf_counter() > deadline:
                raise LoadError(f"{len(self._left_at):,} messages were sent, {len(self.arrivals):,} have arrived")
            await asyncio.sleep(0.01)
        return sorted(arrived - left for left, arrived in zip(self._left_at, self.arrivals, strict=True))

    def arrived(self, data: bytes) -> None:
        """Acknowledgements: of no interest here."""

    def go_on(self) -> None:
        """Hot: something has arrived."""
        assert self.observer is not None
        now = perf_counter()
        new = self.observer.received - self._received - len(self.arrivals)
        self.arrivals.extend([now] * new)


def latency(target: Target, stream: Stream, seconds: float) -> list[float]:
    """How long each of RATE messages a second takes, sorted. Raises LoadError."""

    async def run() -> list[float]:
        observer = Observer(target.head, stream.qos)
        await connect(observer, target.port, "observer", None, None)
        await observer.subscribe(target.topic_filter)
        publisher = Paced(stream, observer)
        await connect(publisher, target.port, "publisher", None, None)
        observer.publisher = publisher
        try:
            with quiet_memory():
                return await publisher.paced(RATE, seconds)
        finally:
            observer.publisher = None
            publisher.close()
            observer.close()

    return uvloop.run(run())


def watched(target: Target, stream: Stream, *, observers: int, window: int, seconds: float) -> tuple[float, float]:
    """Reports a second that many observers all see, and the gateway's CPU seconds for each. Raises LoadError."""

    async def run() -> tuple[float, float]:
        together = Together(observers)
        members = [Member(target.head, stream.qos, together) for _ in range(observers)]
        publisher = Publisher(stream, together, window)
        try:
            for i, member in enumerate(members):
                await connect(member, target.port, f"o{i}", None, None)
                await member.subscribe(target.topic_filter)
            await connect(publisher, target.port, "publisher", None, None)
            together.publisher = publisher
            await publisher.run(count=2 * window)
            for member in members:
                member.chunks.clear()
            with quiet_memory():
                cpu = usage(target.pid).cpu
                sent, took = await publisher.run(seconds=seconds)
                cpu = usage(target.pid).cpu - cpu
            return sent / took, cpu / sent
        finally:
            together.publisher = None
            for wire in (publisher, *members):
                wire.close()

    return uvloop.run(run())


def throughput(arguments: Namespace, step: Steps, qos: int, found: Result) -> None:
    """100 objects, one observer, pipelined; CPU; snapshots beside; latency at 1,000 a second."""
    seconds, window = arguments.seconds, arguments.window
    with places(qos, arguments.durability) as every:
        stream = Stream(reports(100), qos)
        rounds: dict[str, list[Round]] = {name: [] for name in every}
        broker_cpu: dict[str, list[float]] = {name: [] for name in every}
        versions: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in every}
        for turn in range(arguments.rounds):
            for name, (target, broker) in every.items():
                step(f"QoS {qos}, round {turn + 1}: {name}")
                known = versions[name] if name in (GATEWAY, OLD) else None
                before = usage(broker).cpu
                one = one_round(target, stream, seconds=seconds, window=window, versions=known)
                broker_cpu[name].append((usage(broker).cpu - before) / one.messages)
                rounds[name].append(one)
                step.done()
        bare = typical([one.rate for one in rounds[BARE]])
        for name, several in rounds.items():
            rate = typical([one.rate for one in several])
            head_ = f"qos{qos}_{name}"
            found[f"{head_}_per_second"] = rate
            if name != BARE:
                found[f"ratio_{head_}_to_mosquitto"] = rate / bare
                found[f"{head_}_cpu_us"] = typical([one.broker_cpu for one in several]) * 1e6
            found[f"{head_}_mosquitto_cpu_us"] = typical(broker_cpu[name]) * 1e6
            found[f"{head_}_generator_cpu_us"] = typical([one.own_cpu for one in several]) * 1e6
        found[f"ratio_qos{qos}_gateway_to_relay"] = (
            found[f"qos{qos}_gateway_per_second"] / found[f"qos{qos}_relay_per_second"]
        )
        target = every[GATEWAY][0]
        step(f"QoS {qos}: with an observer of snapshots")
        both = snapshot_round(target, stream, seconds=seconds, window=window, versions=versions[GATEWAY])
        found[f"qos{qos}_deltas_beside_snapshots_per_second"] = both.deltas
        found[f"qos{qos}_snapshots_per_second"] = both.snapshots
        step.done()
        for name in (BARE, RELAY, GATEWAY):
            step(f"QoS {qos}, {RATE} a second: {name}")
            times = latency(every[name][0], stream, max(seconds, 3.0))
            for share in (0.5, 0.99, 0.999):
                found[f"qos{qos}_{name}_p{share * 100:g}_ms"] = percentile(times, share) * 1e3
            step.done()
        for key in ("_p50_ms", "_p99_ms"):
            found[f"qos{qos}_added{key}"] = found[f"qos{qos}_gateway{key}"] - found[f"qos{qos}_mosquitto{key}"]
        found[f"qos{qos}_gateway_rss_bytes"] = usage(target.pid).resident
        found[f"qos{qos}_gateway_rss_peak_bytes"] = usage(target.pid).peak


def growth(arguments: Namespace, step: Steps, found: Result) -> None:
    """How cost grows with objects, observers and the payload's size, at QoS 0."""
    seconds, window = arguments.seconds, arguments.window
    with places(0, arguments.durability) as every:
        target = every[GATEWAY][0]
        few = 0.0
        for count in (100, 1, 10_000):
            step(f"{count:,} objects")
            stream = Stream(reports(count, 64 if count < 10_000 else 8), 0)
            rates = [
                one_round(target, stream, seconds=seconds, window=window, first=count).rate
                for _ in range(arguments.rounds)
            ]
            rate = typical(rates)
            few = few or rate
            found[f"objects_{count}_per_second"] = rate
            if count != 100:
                found[f"ratio_objects_{count}_to_100"] = rate / few
            step.done()
        stream = Stream(reports(100, salt=3), 0)
        for observers in (10, 100):
            step(f"{observers} observers")
            rate, cpu = watched(target, stream, observers=observers, window=window, seconds=seconds)
            found[f"observers_{observers}_per_second"] = rate
            found[f"observers_{observers}_cpu_us"] = cpu * 1e6
            step.done()
        for size in (500, 4_000):
            step(f"{size:,} bytes")
            text = b'{"values":{"temperature":{"value":"%.7f' + b"x" * (size - 60) + b'"}}}'
            stream = Stream([(topic, text % (i + 0.5)) for i, (topic, _) in enumerate(reports(100, 2, salt=4))], 0)
            one = one_round(target, stream, seconds=seconds, window=window)
            found[f"payload_{size}_per_second"] = one.rate
            found[f"payload_{size}_cpu_us"] = one.broker_cpu * 1e6
            step.done()


def others(arguments: Namespace, step: Steps, found: Result) -> None:
    """Rivals, where they are asked for: each with a mosquitto of its own."""
    if arguments.with_node_red:
        for qos in (0, 1):
            step(f"QoS {qos}: Node-RED")
            with (
                tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name,
                mosquitto(Path(name), MOSQUITTO) as other,
                node_red(other.port, qos) as pid,
            ):
                target = Target(other.port, pid, "delta/#", head(qos, rb'\{"epoch"'))
                stream = Stream(reports(100), qos)
                several = [
                    one_round(target, stream, seconds=arguments.seconds, window=arguments.window)
                    for _ in range(arguments.rounds)
                ]
            rate = typical([one.rate for one in several])
            found[f"qos{qos}_node_red_per_second"] = rate
            found[f"qos{qos}_node_red_cpu_us"] = typical([one.broker_cpu for one in several]) * 1e6
            found[f"ratio_qos{qos}_gateway_to_node_red"] = found[f"qos{qos}_gateway_per_second"] / rate
            step.done()
    if arguments.with_thingsboard:
        step("thingsboard-gateway")
        with (
            tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name,
            mosquitto(Path(name), MOSQUITTO) as other,
            thingsboard(other.port),
        ):
            rate = converted(other.port, 3 * arguments.seconds, 2_000)
        found["thingsboard_readings_per_second"] = rate
        found["ratio_qos1_gateway_to_thingsboard"] = found["qos1_gateway_per_second"] / rate
        step.done()


def away(arguments: Namespace) -> Result:
    """The broker outside is killed, stays away, and comes back: how long until reports flow as before, and whether anything is missing.

    The observer is a new one each time, so what it checks against the versions seen before is what the gateway holds.
    """
    seconds, window, qos = arguments.seconds, arguments.window, 1
    stream = Stream(reports(100), qos)
    versions: dict[str, tuple[int, int]] = {}
    with ExitStack() as stack, steps(4) as step:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctxt-bench-")))
        kept = f"{MOSQUITTO}\npersistence true\npersistence_location {folder}/\nautosave_interval 5\n"
        first = stack.enter_context(mosquitto(folder, kept.replace("persistence false", "")))
        link = "[link]\nopen = true\n"
        rest = f"{OWN_NAMESPACE}{UNLIMITED}{link}"
        running = stack.enter_context(gateway(folder, rest=rest, outside=f"mqtt://127.0.0.1:{first.port}"))
        target = gateway_target(first.port, running.pid, qos)._replace(user=None, watcher=None, password=None)
        step("before")
        before = one_round(target, stream, seconds=seconds, window=window, versions=versions)
        step.done()
        step(f"away for {arguments.away:g} s")
        resident = usage(running.pid).resident
        first.process.kill()
        first.process.wait()
        sleep(arguments.away)
        step.done()
        step("back")
        back = perf_counter()
        again = subprocess.Popen(
            [find("mosquitto", "mosquitto"), "-c", str(folder / "mosquitto.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for_port(first.port, again, 10)
            while (returned := answered(target)) is None:
                sleep(0.02)
            recovered = perf_counter() - back
            step.done()
            step("after")
            after = one_round(target, stream, seconds=seconds, window=window, versions=None)
            missing = behind(target, versions)
            step.done()
        finally:
            again.kill()
            again.wait()
        if missing:
            raise CtxtError(f"{missing} snapshots are older than what was seen before")
        return {
            **surroundings(),
            "mosquitto": mosquitto_version(),
            "away_seconds": arguments.away,
            "first_answer_seconds": recovered,
            "first_answer_took_ms": returned * 1e3,
            "ratio_after_to_before": after.rate / before.rate,
            "before_per_second": before.rate,
            "after_per_second": after.rate,
            "objects_seen_before": len(versions),
            "rss_before_bytes": resident,
            "rss_after_bytes": usage(running.pid).resident,
        }


def answered(target: Target) -> float | None:
    """Seconds from one report to its delta, or None when none comes within half a second."""

    async def run() -> float | None:
        observer = Observer(target.head, 1)
        publisher = Publisher(Stream(reports(100, 2, salt=int(perf_counter() * 10) % 60 + 5), 1), observer, 1)
        try:
            await connect(observer, target.port, "probe-observer", None, None)
            await observer.subscribe(target.topic_filter)
            await connect(publisher, target.port, "probe", None, None)
            observer.publisher = publisher
            async with asyncio.timeout(0.5):
                _, took = await publisher.run(count=1)
        except (CtxtError, OSError, TimeoutError):
            return None
        else:
            return took
        finally:
            observer.publisher = None
            for wire in (observer, publisher):
                wire.close()

    return uvloop.run(run())


def behind(target: Target, versions: dict[str, tuple[int, int]]) -> int:
    """How many objects' retained snapshots are older than their deltas that were seen. Raises LoadError."""

    async def run() -> int:
        observer = Observer(head(0, rb'\{"url"'), 0)
        await connect(observer, target.port, "late", None, None)
        await observer.subscribe("snapshot/#")
        async with asyncio.timeout(10):
            while observer.received < len(versions):  # noqa: ASYNC110  # bytes are counted, nothing is set
                await asyncio.sleep(0.01)
        observer.close()
        held = {topic: orjson.loads(payload) for topic, payload in observer.frames()}
        return sum(
            (
                held[topic.replace("delta/", "snapshot/", 1)]["epoch"],
                held[topic.replace("delta/", "snapshot/", 1)]["version"],
            )
            < seen
            for topic, seen in versions.items()
        )

    return uvloop.run(run())


def endure(arguments: Namespace) -> Result:
    """Full load for minutes: does the gateway's memory grow?"""
    resident: list[int] = []
    rates: list[float] = []
    with places(1, arguments.durability) as every, steps(arguments.minutes * 6) as step:
        target = every[GATEWAY][0]
        stream = Stream(reports(1_000), 1)
        one_round(target, stream, seconds=5, window=arguments.window)
        for i in range(arguments.minutes * 6):
            step(f"{i * 10} s")
            rates.append(one_round(target, stream, seconds=9.5, window=arguments.window).rate)
            resident.append(usage(target.pid).resident)
            step.done()
    half = len(resident) // 2
    return {
        **surroundings(),
        "minutes": arguments.minutes,
        "reports": round(sum(rates) * 9.5),
        "per_second": typical(rates),
        "rss_after_10_s_bytes": resident[0],
        "rss_at_half_bytes": resident[half],
        "rss_at_the_end_bytes": resident[-1],
        "rss_added_in_the_second_half_bytes": resident[-1] - resident[half],
    }


def broker(arguments: Namespace) -> Result:
    """The gateway beside a mosquitto, and what it costs there."""
    found: Result = {
        **surroundings(),
        "mosquitto": mosquitto_version(),
        "durability": arguments.durability,
        "rounds": arguments.rounds,
        "seconds_per_round": arguments.seconds,
        "window": arguments.window,
    }
    rivals = 2 * arguments.with_node_red + arguments.with_thingsboard
    with steps(2 * (4 * arguments.rounds + 4) + 7 + rivals) as step:
        for qos in (0, 1):
            throughput(arguments, step, qos, found)
        growth(arguments, step, found)
        others(arguments, step, found)
    found["ratio_gateway_qos1_to_qos0"] = found["qos1_gateway_per_second"] / found["qos0_gateway_per_second"]
    return found
