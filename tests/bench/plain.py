"""The broker inside as a plain MQTT broker, beside mosquitto: the same bytes, the same generator, rounds in turn."""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import uvloop

from gateway.errors import CtxtError
from tests.bench.load import LoadError, Member, Observer, Publisher, Stream, Together, connect
from tests.bench.measure import (
    MOSQUITTO,
    PASSWORD,
    REPORTER,
    WATCHER,
    Target,
    head,
    measured,
    one_round,
    percentile,
    quiet_memory,
    reports,
    surroundings,
    typical,
)
from tests.bench.steps import steps
from tests.running import gateway, mosquitto, usage

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from tests.bench.load import Round
    from tests.bench.steps import Steps

R = TypeVar("R")
Result = dict[str, Any]

OPEN = """
[[topic]]
filter = "bench/#"
write = ["*"]
read = ["*"]

[[topic]]
filter = "foreign/#"
write = ["*"]
read = ["*"]
"""

LIMITS = """
retained_messages = 1_000_000
retained_bytes = "2GiB"
queue_bytes = "256MiB"
connections_per_client = 5000
"""

WINDOWS = (1, 5, 50, 200)
THEIRS, OURS = "mosquitto", "gateway"

TOPIC, HEADS = "bench/ctxt/home.local", rb'\{"values"'


class Others(Protocol):
    """Clients that are merely there, so many of them, or with so many filters."""

    def __call__(self, target: Target, count: int, /) -> AbstractAsyncContextManager[None]:
        """Connected inside, gone outside."""


class Rate(NamedTuple):
    """What one round brought: deliveries per second; CPU seconds of the broker and of the generator per delivery."""

    rate: float
    broker_cpu: float
    own_cpu: float


def messages(objects: int, passes: int = 64, *, salt: int = 0) -> list[tuple[str, bytes]]:
    """The reports of the other benchmarks, on topics that a rule opens: nothing but the broker has to do with them."""
    found = reports(objects, passes, salt=salt)
    return [(TOPIC + topic.removeprefix(f"report/{REPORTER}/ctxt/home.local"), payload) for topic, payload in found]


@contextmanager
def brokers(qos: int) -> Iterator[dict[str, Target]]:
    """Both brokers, running. Raises CtxtError when ours does not end as it should."""
    with tempfile.TemporaryDirectory(prefix="ctxt-bench-") as name:
        theirs, ours = Path(name, THEIRS), Path(name, OURS)
        theirs.mkdir()
        ours.mkdir()
        clients = {REPORTER: PASSWORD, WATCHER: PASSWORD}
        with (
            mosquitto(theirs, MOSQUITTO) as other,
            gateway(ours, broker=LIMITS, rest=OPEN, clients=clients) as running,
        ):
            yield {
                THEIRS: Target(other.port, other.pid, "bench/#", head(qos, HEADS)),
                OURS: Target(running.port, running.pid, "bench/#", head(qos, HEADS), REPORTER, WATCHER, PASSWORD),
            }
            code = running.stop(60)
            if code:
                raise CtxtError(f"the gateway ended with {code}:\n{running.errors()}")


async def watcher(target: Target, name: str, qos: int, together: Together | None = None) -> Observer:
    """One connected observer, of a group or alone."""
    made = Observer(target.head, qos) if together is None else Member(target.head, qos, together)
    return await connect(made, target.port, name, target.watcher, target.password)


def fan_out(target: Target, stream: Stream, *, observers: int, window: int, seconds: float) -> Rate:
    """One publisher, many observers of everything; a message has arrived when all have it. Raises LoadError."""

    async def run() -> Rate:
        together = Together(observers)
        members = [await watcher(target, f"o{i}", stream.qos, together) for i in range(observers)]
        publisher = Publisher(stream, together, window)
        try:
            for member in members:
                await member.subscribe(target.topic_filter)
            await connect(publisher, target.port, "publisher", target.user, target.password)
            together.publisher = publisher
            await publisher.run(count=2 * window)
            before = [member.received for member in members]
            with quiet_memory():
                cpu, own = usage(target.pid).cpu, time.process_time()
                sent, took = await publisher.run(seconds=seconds)
                cpu, own = usage(target.pid).cpu - cpu, time.process_time() - own
            if any(member.received - old != sent for member, old in zip(members, before, strict=True)):
                raise LoadError(f"{sent:,} messages were sent; not every one of {observers} observers has them all")
            expected = [payload for _, payload in members[0].frames()]
            if any([payload for _, payload in member.frames()] != expected for member in members[1:]):
                raise LoadError("not every observer has the same messages in the same order")
            arrived = sent * observers
            return Rate(arrived / took, cpu / arrived, own / arrived)
        finally:
            together.publisher = None
            for wire in (publisher, *members):
                wire.close()

    return uvloop.run(run())


def many_pairs(target: Target, qos: int, *, pairs: int, window: int, seconds: float) -> Rate:
    """So many publishers, each with an observer of its own. Raises LoadError."""

    async def run() -> Rate:
        publishers = []
        observers = []
        try:
            for i in range(pairs):
                stream = Stream([(f"bench/{i}{topic[5:]}", payload) for topic, payload in messages(1, 16)], qos)
                observer = await watcher(target, f"o{i}", qos)
                observers.append(observer)
                await observer.subscribe(f"bench/{i}/#")
                publisher = Publisher(stream, observer, window)
                publishers.append(publisher)
                await connect(publisher, target.port, f"p{i}", target.user, target.password)
                observer.publisher = publisher
            await asyncio.gather(*(publisher.run(seconds=0.3) for publisher in publishers))
            with quiet_memory():
                cpu, own = usage(target.pid).cpu, time.process_time()
                began = time.perf_counter()
                done = await asyncio.gather(*(publisher.run(seconds=seconds) for publisher in publishers))
                took = time.perf_counter() - began
                cpu, own = usage(target.pid).cpu - cpu, time.process_time() - own
            sent = sum(count for count, _ in done)
            return Rate(sent / took, cpu / sent, own / sent)
        finally:
            for observer in observers:
                observer.publisher = None
            for wire in (*publishers, *observers):
                wire.close()

    return uvloop.run(run())


@asynccontextmanager
async def crowd(target: Target, count: int) -> AsyncIterator[None]:
    """Clients that are connected, hear one topic of their own, and do nothing."""
    idle = []
    try:
        for i in range(count):
            one = await watcher(target, f"idle{i}", 0)
            idle.append(one)
            await one.subscribe(f"foreign/idle/{i}")
        yield
    finally:
        for one in idle:
            one.close()


@asynccontextmanager
async def foreign(target: Target, count: int) -> AsyncIterator[None]:
    """Clients with so many filters altogether that no message of the benchmark matches: exact ones and such with wildcards."""
    made = []
    try:
        for i in range(count):
            if i % 500 == 0:
                made.append(await watcher(target, f"foreign{i}", 0))
            topic_filter = (
                f"{TOPIC}/{REPORTER}/o{i % 100}/humidity/{i}",
                f"bench/+/+/{REPORTER}/elsewhere{i}/temperature",
                f"{TOPIC}/{REPORTER}/room{i}/#",
                f"foreign/{i}/+/temperature",
            )[i % 4]
            await made[-1].subscribe(topic_filter)
        yield
    finally:
        for one in made:
            one.close()


class Beside(NamedTuple):
    """What others cost who are merely there: rate with them ÷ rate without, resident bytes of each, CPU share at rest."""

    ratio: float
    each_bytes: float
    cpu: float


def beside(
    target: Target, stream: Stream, others: Others, count: int, *, seconds: float, rounds: int, rest: float
) -> Beside:
    """1 → 1, pipelined, without others and with them, in turn."""

    async def run() -> Beside:
        rates: dict[bool, list[float]] = {False: [], True: []}
        weights, rests = [], []
        for _ in range(rounds):
            rates[False].append((await measured(target, stream, seconds=seconds, window=WINDOWS[-1])).rate)
            before = usage(target.pid).resident
            async with others(target, count):
                await asyncio.sleep(0.5)
                weights.append((usage(target.pid).resident - before) / count)
                cpu = usage(target.pid).cpu
                await asyncio.sleep(rest)
                rests.append((usage(target.pid).cpu - cpu) / rest)
                rates[True].append((await measured(target, stream, seconds=seconds, window=WINDOWS[-1])).rate)
            await asyncio.sleep(0.5)
        # The first time the memory is new; afterwards it is what the first ones have left.
        return Beside(typical(rates[True]) / typical(rates[False]), weights[0], typical(rests))

    return uvloop.run(run())


class Retaining(NamedTuple):
    """Seconds until all retained messages were taken, and until one new subscriber had them all; what they weigh."""

    store_seconds: float
    deliver_seconds: float
    each_bytes: float


def retain(target: Target, count: int, size: int) -> Retaining:
    """Publish so many retained messages of so many bytes at QoS 1, then subscribe to all of them. Raises LoadError."""

    async def run() -> Retaining:
        text = b'{"values":"%s"}' % (b"x" * (size - len(b'{"values":""}')))
        stream = Stream([(f"{TOPIC}/{REPORTER}/o{i}/temperature", text) for i in range(count)], 1, retain=True)
        before = usage(target.pid).resident
        publisher = Publisher(stream, None, WINDOWS[-1])
        await connect(publisher, target.port, "publisher", target.user, target.password)
        _, stored = await publisher.run(count=count)
        publisher.close()
        weight = (usage(target.pid).resident - before) / count
        late = await watcher(target._replace(head=head(0, HEADS)), "late", 0)
        began = time.perf_counter()
        await late.subscribe(target.topic_filter)
        while late.received < count:
            if time.perf_counter() - began > 60:
                raise LoadError(f"{late.received:,} of {count:,} retained messages have arrived after a minute")
            await asyncio.sleep(0.002)
        took = time.perf_counter() - began
        late.close()
        if len({topic for topic, _ in late.frames()}) != count:
            raise LoadError("the retained messages are not what was published")
        return Retaining(stored, took, weight)

    return uvloop.run(run())


def compare(found: Result, name: str, values: dict[str, list[float]], unit: str, scale: float = 1.0) -> None:
    """Put the ratio of the medians and both medians into the result."""
    ours, theirs = typical(values[OURS]), typical(values[THEIRS])
    if theirs:
        found[f"ratio_{name}"] = ours / theirs
    found[f"{name}_{unit}"] = ours * scale
    found[f"mosquitto_{name}_{unit}"] = theirs * scale


def alternate(
    step: Steps, text: str, rounds: int, targets: dict[str, Target], run: Callable[[Target], R]
) -> dict[str, list[R]]:
    """Rounds against both brokers in turn."""
    results: dict[str, list[R]] = {who: [] for who in targets}
    for turn in range(rounds):
        for who, target in targets.items():
            step(f"{text}, round {turn + 1}: {who}")
            results[who].append(run(target))
            step.done()
    return results


def one_to_one(arguments: Namespace, step: Steps, qos: int, targets: dict[str, Target], found: Result) -> None:
    """One publisher, one observer, at several windows."""
    stream = Stream(messages(100), qos)
    for window in WINDOWS:

        def run(target: Target, window: int = window) -> Round:
            return one_round(target, stream, seconds=arguments.seconds, window=window)

        results = alternate(step, f"QoS {qos}, window {window}", arguments.rounds, targets, run)
        name = f"qos{qos}_window{window}"
        compare(found, name, {who: [one.rate for one in all_] for who, all_ in results.items()}, "per_second")
        compare(
            found, f"{name}_cpu", {who: [one.broker_cpu for one in all_] for who, all_ in results.items()}, "us", 1e6
        )
        if window == 1:
            middle = {who: [percentile(one.times, 0.5) for one in all_] for who, all_ in results.items()}
            compare(found, f"qos{qos}_p50", middle, "ms", 1e3)


def many_to_many(arguments: Namespace, step: Steps, qos: int, targets: dict[str, Target], found: Result) -> None:
    """One publisher and many observers; many pairs."""
    stream = Stream(messages(100), qos)
    seconds, observers, pairs = arguments.seconds, arguments.observers, arguments.pairs
    runs: dict[str, Callable[[Target], Rate]] = {
        f"1_to_{observers}": lambda target: fan_out(target, stream, observers=observers, window=5, seconds=seconds),
        f"{pairs}_to_{pairs}": lambda target: many_pairs(target, qos, pairs=pairs, window=5, seconds=seconds),
    }
    for label, run in runs.items():
        results = alternate(step, f"QoS {qos}, {label.replace('_', ' ')}", arguments.rounds, targets, run)
        name = f"qos{qos}_{label}"
        compare(found, name, {who: [one.rate for one in all_] for who, all_ in results.items()}, "per_second")
        compare(
            found, f"{name}_cpu", {who: [one.broker_cpu for one in all_] for who, all_ in results.items()}, "us", 1e6
        )
        found[f"{name}_generator_cpu_us"] = typical([one.own_cpu for one in results[OURS]]) * 1e6


def bystanders(arguments: Namespace, step: Steps, targets: dict[str, Target], found: Result) -> None:
    """What idle connections and filters that do not match cost."""
    stream = Stream(messages(100), 0)
    every: tuple[tuple[str, int, Others], ...] = (
        ("idle", arguments.idle, crowd),
        ("foreign", arguments.foreign, foreign),
    )
    for name, count, others in every:
        for who, target in targets.items():
            step(f"{count:,} {name}: {who}")
            one = beside(target, stream, others, count, seconds=arguments.seconds, rounds=arguments.rounds, rest=2.0)
            whose = "" if who == OURS else "mosquitto_"
            found[f"{whose}ratio_with_{count}_{name}"] = one.ratio
            found[f"{whose}each_{name}_bytes"] = one.each_bytes
            found[f"{whose}cpu_beside_{name}_percent"] = one.cpu * 100
            step.done()


def plain(arguments: Namespace) -> Result:
    """The broker inside as a plain one, on topics that a rule opens, beside mosquitto."""
    found: Result = {**surroundings(), "rounds": arguments.rounds, "seconds_per_round": arguments.seconds}
    with steps(4 * arguments.rounds * (len(WINDOWS) + 2) + 6) as step:
        for qos in (0, 1):
            with brokers(qos) as targets:
                one_to_one(arguments, step, qos, targets, found)
                many_to_many(arguments, step, qos, targets, found)
        with brokers(0) as targets:
            bystanders(arguments, step, targets, found)
        with brokers(1) as targets:
            kept = alternate(
                step,
                f"{arguments.retained:,} retained",
                1,
                targets,
                lambda target: retain(target, arguments.retained, 500),
            )
            for part in Retaining._fields:
                name, _, unit = part.rpartition("_")
                values = {who: [float(getattr(one, part)) for one in all_] for who, all_ in kept.items()}
                compare(found, f"retained_{name}", values, unit)
    return found
