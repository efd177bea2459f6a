"""What is measured, and how: rounds against a mosquitto and against a gateway, with the same bytes from the same generator."""

from __future__ import annotations

import gc
import os
import platform
from contextlib import asynccontextmanager, contextmanager
from statistics import median
from time import process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop

from tests.bench.load import LoadError, Observer, Publisher, Round, Stream, check_versions, connect
from tests.running import OWN_NAMESPACE, UNLIMITED, Gateway, gateway, usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

REPORTER, PASSWORD, WATCHER = "bench", "bench-password", "watch"
PAYLOAD_BYTES = 60
WARM_UP = 0.5
PASSES = 64

MOSQUITTO = """
allow_anonymous true
set_tcp_nodelay true
max_inflight_messages 0
max_queued_messages 0
"""


def surroundings() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
    }


class Target(NamedTuple):
    """What is measured: where it listens, its process, and what an observer of it subscribes to and looks for."""

    port: int
    pid: int
    topic_filter: str
    head: bytes
    user: str | None = None
    watcher: str | None = None
    password: str | None = None


def reports(objects: int, passes: int = PASSES, *, salt: int = 0) -> list[tuple[str, bytes]]:
    """Reports of 60 bytes over all objects in turn; no two on one object are the same, nor are those of another salt (< 70)."""
    made = []
    for turn in range(passes):
        payload = b'{"values":{"temperature":{"value":%.7f,"unit":"Cel"}}}' % (21 + salt + (turn + 0.5) / 997)
        assert len(payload) == PAYLOAD_BYTES
        made += [(f"report/{REPORTER}/ctxt/home.local/{REPORTER}/o{i}/temperature", payload) for i in range(objects)]
    return made


def head(qos: int, payload: bytes) -> bytes:
    """What a message of one object begins with, its packet id (QoS 1) in the middle, as a regular expression."""
    return rb"/o\d+/temperature" + (rb"(..)" if qos else b"") + payload


def mosquitto_target(port: int, pid: int, qos: int) -> Target:
    """A bare mosquitto passes on the reports themselves."""
    return Target(port, pid, "report/#", head(qos, rb'\{"values"'))


def gateway_target(port: int, pid: int, qos: int) -> Target:
    """A gateway sends deltas for reports."""
    return Target(port, pid, "delta/#", head(qos, rb'\{"epoch"'), REPORTER, WATCHER, PASSWORD)


@contextmanager
def quiet_memory() -> Iterator[None]:
    """No garbage collection of the generator's own while the clock runs."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class Pair(NamedTuple):
    """A publisher and the observer of what it sends, connected."""

    publisher: Publisher
    observer: Observer


@asynccontextmanager
async def pair(target: Target, stream: Stream, window: int) -> AsyncIterator[Pair]:
    """Connect both ends; close them at the end."""
    observer = Observer(target.head, stream.qos)
    publisher = Publisher(stream, observer, window)
    try:
        await connect(observer, target.port, "observer", target.watcher, target.password)
        await observer.subscribe(target.topic_filter)
        await connect(publisher, target.port, "publisher", target.user, target.password)
        observer.publisher = publisher
        yield Pair(publisher, observer)
    finally:
        observer.publisher = None
        publisher.close()
        observer.close()


async def warm(pair: Pair, count: int) -> float:
    """Send so many messages, or for WARM_UP seconds: the rate. Raises LoadError."""
    messages, took = await pair.publisher.run(seconds=0.0 if count else WARM_UP, count=count)
    return messages / took


async def timed(pair: Pair, pid: int, seconds: float, *, one_at_a_time: bool, cold: float) -> Round:
    """One measured span on a pair that is warm. Raises LoadError."""
    pair.observer.chunks.clear()
    before = pair.observer.received
    with quiet_memory():
        cpu, own = usage(pid).cpu, process_time()
        messages, took = await pair.publisher.run(seconds=seconds, timed=one_at_a_time)
        cpu, own = usage(pid).cpu - cpu, process_time() - own
    frames = pair.observer.frames()
    if len(frames) != messages or pair.observer.received - before != messages:
        raise LoadError(f"{messages:,} messages were sent, {len(frames):,} arrived")
    return Round(messages, took, own / messages, cpu / messages, sorted(pair.publisher.times or ()), cold)


async def measured(
    target: Target,
    stream: Stream,
    *,
    seconds: float,
    window: int,
    versions: dict[str, tuple[int, int]] | None = None,
    first: int = 0,
) -> Round:
    """Connect, send `first` messages to warm up, measure, check: a window of 1 is one at a time. Raises LoadError."""
    async with pair(target, stream, window) as both:
        cold = await warm(both, first)
        if versions is not None:
            check_versions(both.observer.frames(), versions)
        result = await timed(both, target.pid, seconds, one_at_a_time=window == 1, cold=cold)
        if versions is not None:
            check_versions(both.observer.frames(), versions)
        return result


def one_round(
    target: Target,
    stream: Stream,
    *,
    seconds: float,
    window: int,
    versions: dict[str, tuple[int, int]] | None = None,
    first: int = 0,
) -> Round:
    """`measured` in a loop of its own."""
    return uvloop.run(measured(target, stream, seconds=seconds, window=window, versions=versions, first=first))


class Snapshots(NamedTuple):
    """Deltas and snapshots per second that one observer each got in the same span."""

    deltas: float
    snapshots: float


def snapshot_round(
    target: Target, stream: Stream, *, seconds: float, window: int, versions: dict[str, tuple[int, int]]
) -> Snapshots:
    """As `one_round`, with a second observer that follows the snapshots. Raises LoadError."""

    async def run() -> Snapshots:
        second = Observer(head(stream.qos, rb'\{"url"'), stream.qos)
        await connect(second, target.port, "snapshots", target.watcher, target.password)
        await second.subscribe("snapshot/#")
        try:
            async with pair(target, stream, window) as both:
                cold = await warm(both, 0)
                check_versions(both.observer.frames(), versions)
                before = second.received
                result = await timed(both, target.pid, seconds, one_at_a_time=False, cold=cold)
                check_versions(both.observer.frames(), versions)
                if second.error is not None:
                    raise second.error
                return Snapshots(result.rate, (second.received - before) / result.seconds)
        finally:
            second.close()

    return uvloop.run(run())


def create(target: Target, objects: int, window: int) -> float:
    """Create so many objects with one report each (QoS 1, each acknowledged and seen): seconds. Raises LoadError."""

    async def run() -> float:
        stream = Stream(reports(objects, 1), 1)
        async with pair(target._replace(head=head(1, rb'\{"epoch"')), stream, window) as both:
            _, took = await both.publisher.run(count=objects)
            seen: dict[str, tuple[int, int]] = {}
            check_versions(both.observer.frames(), seen)
            if len(seen) != objects:
                raise LoadError(f"{objects:,} objects were reported, {len(seen):,} seen")
            return took

    return uvloop.run(run())


@contextmanager
def bench_gateway(folder: Path, durability: str, module: str = Gateway.module) -> Iterator[Gateway]:
    """A running gateway with nothing switched off but the limits per client, and the two clients of a round."""
    clients = {REPORTER: PASSWORD, WATCHER: PASSWORD}
    top = f'durability = "{durability}"'
    with gateway(folder, top=top, rest=OWN_NAMESPACE + UNLIMITED, clients=clients, module=module) as running:
        yield running


def percentile(sorted_times: Sequence[float], share: float) -> float:
    """The value below which so large a share lies."""
    return sorted_times[min(len(sorted_times) - 1, int(len(sorted_times) * share))]


def typical(values: Sequence[float]) -> float:
    """The median."""
    return median(values)
