"""`python -m tests.soak.convergence --observers 50 --rate 2000 --seconds 60`: do all Observers hold what the gateway holds, whatever happens?

Reporters report through a mosquitto to a gateway; Observers listen through a wire that drops connections, delays and repeats messages.
mosquitto is restarted twice (it keeps nothing) and the gateway is killed twice. At the end every Observer has to equal the gateway, and none
may ever have gone backwards or held a state that the object never had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.client import Changed, ClientError, Created, Deleted, Missed, connect
from gateway.errors import CtxtError
from gateway.wire.codec import Decoder, encode_publish
from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import Publish
from tests.clients.conftest import PACKAGES, laid_out
from tests.links.world import ALLOW_ALL, OPEN
from tests.running import HOST, Gateway, find, free_port, gateway, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

PREFIX = "ctxt://conv.local/"
SETTINGS = f"""
[[namespace]]
match = "{PREFIX}**"
schema = "Context"
report = ["*"]
observe = ["*"]

[limits]
requests_per_second = 100000
request_burst = 1000000
reports_per_second = 1000000
report_burst = 1000000
creations_per_minute = 100000
{OPEN}
"""
PATIENCE = 60.0
"""Seconds for what is still on its way, once the last report has been applied."""

WRITERS = 4
KNOWN = 1_000_000_007


class ConvergenceError(CtxtError):
    """Something was not as it has to be."""


def says(number: int) -> dict[str, Any]:
    """A state, both halves of which are from one report: whoever holds a mixture of two is found out."""
    return {"values": {"count": {"value": number}, "check": {"value": number * 48_271 % KNOWN}}}


# ---- what an Observer may not see ----------------------------------------------------------------------------------------


@dataclass
class Witness:
    """Looks at everything that one Observer is told."""

    held: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    events: int = 0

    def see(self, event: Any) -> None:
        """One more event."""
        self.events += 1
        if isinstance(event, Missed):
            return
        if isinstance(event, Deleted):
            self.say(f"{event.url} was deleted, which nobody did")
            return
        if not isinstance(event, Created | Changed):
            return
        copy = event.copy
        values = copy.data["values"]
        count = values["count"]["value"]
        if values["check"]["value"] != count * 48_271 % KNOWN:
            self.say(f"{copy.url} at {copy.position} is a mixture: {copy.data}")
        before = self.held.get(copy.url)
        now = (copy.epoch, copy.version, count)
        if before is not None and (now[:2] < before[:2] or now[2] < before[2]):
            self.say(f"{copy.url} went from {before} back to {now}")
        self.held[copy.url] = now

    def say(self, text: str) -> None:
        if len(self.wrong) < 20:
            self.wrong.append(text)


async def _observe(port: int, names: list[str], pipe: Connection) -> None:
    loop = asyncio.get_running_loop()
    goal: asyncio.Future[dict[str, list[int]]] = loop.create_future()
    loop.add_reader(pipe.fileno(), lambda: goal.set_result(pipe.recv()))
    goal.add_done_callback(lambda _goal: loop.remove_reader(pipe.fileno()))
    witnesses = {name: Witness() for name in names}
    found: dict[str, Any] = {}

    async def one(name: str) -> None:
        witness = witnesses[name]
        async with connect(f"mqtt://{name}:x@{HOST}:{port}", presence=False, wait=True, timeout=20) as client:
            while True:
                watched = client.observe_all(PREFIX, timeout=20)
                try:
                    await watched.__aenter__()
                    break
                except ClientError:
                    await asyncio.sleep(0.5)
            watched.on_change(witness.see, replay=True)
            positions = await goal
            end = time.monotonic() + PATIENCE
            state: dict[str, Any] = {}
            while time.monotonic() < end:
                state = {copy.url: [copy.epoch, copy.version, copy.data] for copy in watched}
                if watched.in_sync and {url: each[:2] for url, each in state.items()} == positions:
                    break
                await asyncio.sleep(0.1)
            found[name] = {"state": state, "in_sync": watched.in_sync, "wrong": witness.wrong, "events": witness.events}

    await asyncio.gather(*(one(name) for name in names))
    pipe.send(found)


def observe(port: int, names: list[str], pipe: Connection) -> None:
    """Observers in a process of their own."""
    asyncio.run(_observe(port, names, pipe))


async def _report(port: int, objects: int, rate: float, pipe: Connection) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
    said = stored = 0
    tasks: set[asyncio.Task[Any]] = set()

    async def one(reporter: Any, number: int) -> None:
        nonlocal stored
        with suppress(ClientError):
            done = await reporter.update(says(number))
            stored += done

    clients = [connect(f"mqtt://writer{n}:x@{HOST}:{port}", presence=False, wait=True) for n in range(WRITERS)]
    for client in clients:
        await client.__aenter__()
    reporters = [clients[n % WRITERS].reporter(f"{PREFIX}floor/{n % 10}/room/{n}") for n in range(objects)]
    begun = time.monotonic()
    while not stop.is_set():
        due = int((time.monotonic() - begun) * rate)
        while said < due and len(tasks) < 2_000:
            task = asyncio.create_task(one(reporters[said % objects], said))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            said += 1
        await asyncio.sleep(0.005)
    seconds = time.monotonic() - begun
    if tasks:
        await asyncio.wait(tasks, timeout=60)
    for _ in range(600):
        if not any(client.held for client in clients):
            break
        await asyncio.sleep(0.1)
    held = sum(client.held for client in clients)
    last = {reporter.url: reporter.data for reporter in reporters}
    for client in clients:
        await client.close()
    asyncio.get_running_loop().remove_reader(pipe.fileno())
    pipe.recv()
    pipe.send({"said": said, "stored": stored, "seconds": seconds, "held": held, "last": last})


def report(port: int, objects: int, rate: float, pipe: Connection) -> None:
    """Reporters in a process of their own."""
    asyncio.run(_report(port, objects, rate, pipe))


# ---- the wire ------------------------------------------------------------------------------------------------------------


class Wire:
    """A port whose connections lead to a broker; it delays what comes back, says some of it twice, and drops connections."""

    def __init__(self, target: int, seed: int) -> None:
        self.target = target
        self.dice = random.Random(seed)
        self.repeated = self.dropped = self.delayed = 0
        self.rough = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            out_reader, out_writer = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, out_writer)
        self._writers.add(writer)
        for work in (self._up(reader, out_writer, pair), self._down(out_reader, writer, pair)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _up(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: Any) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        self._end(pair)

    async def _down(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: Any) -> None:
        """Frames of their own are kept, so that one can be said again later, as a message of QoS 0."""
        decoder = Decoder(server=False, level=5, max_packet=268_435_455)
        old: list[bytes] = []
        with suppress(OSError, MalformedPacket):
            while data := await source.read(65_536):
                if self.rough and self.dice.random() < 0.02:
                    self.delayed += 1
                    await asyncio.sleep(self.dice.random() * (2.0 if self.dice.random() < 0.05 else 0.1))
                sink.write(data)
                old.extend(
                    encode_publish(packet.topic.encode(), packet.payload, 5, retain=packet.retain)
                    for packet in decoder.feed(data)
                    if isinstance(packet, Publish) and self.dice.random() < 0.02
                )
                del old[:-100]
                if self.rough and old and not decoder.buffered and self.dice.random() < 0.2:
                    self.repeated += 1
                    sink.write(self.dice.choice(old))
                await sink.drain()
        self._end(pair)

    def _end(self, pair: Any) -> None:
        for writer in pair:
            writer.transport.abort()
        self._writers.discard(pair[0])

    def drop_some(self, share: float) -> None:
        """Break some connections."""
        for writer in list(self._writers):
            if self.dice.random() < share:
                self.dropped += 1
                writer.transport.abort()

    async def close(self) -> None:
        """End everything."""
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


# ---- the scene -----------------------------------------------------------------------------------------------------------


class Mosquitto:
    """A mosquitto that comes and goes on one port, and keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._file = folder / "mosquitto.conf"
        self._file.write_text(f"user root\nlistener {self.port} {HOST}\npersistence false\n{ALLOW_ALL}")
        self._log = folder / "mosquitto.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [find("mosquitto", "mosquitto"), "-c", str(self._file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for_port(self.port, self.process, 10)

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Scene:
    """How much of everything."""

    observers: int = 50
    objects: int = 200
    rate: float = 2_000.0
    seconds: float = 60.0
    restarts: int = 2
    kills: int = 2
    node: int = 0
    processes: int = 2
    seed: int = 1


def play(scene: Scene, folder: Path, note: Callable[[str], None]) -> dict[str, Any]:
    """The whole scene; its figures. Raises ConvergenceError with all that was wrong."""
    broker = Mosquitto(folder)
    broker.start()
    try:
        with gateway(folder, rest=SETTINGS, outside=f"mqtt://{HOST}:{broker.port}") as running:
            return asyncio.run(_play(scene, broker, running, note))
    finally:
        broker.stop()


async def _play(scene: Scene, broker: Mosquitto, running: Gateway, note: Callable[[str], None]) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    wire = Wire(broker.port, scene.seed)
    await wire.start()
    pipes: list[Connection] = []
    processes: list[Any] = []

    def begin(work: Callable[..., None], *arguments: Any) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(*arguments, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)

    nodes = None
    try:
        begin(report, broker.port, scene.objects, scene.rate)
        names = [f"observer{n}" for n in range(scene.observers)]
        for n in range(scene.processes):
            begin(observe, wire.port, names[n :: scene.processes])
        if scene.node:
            app = running.folder / "node"
            app.mkdir()
            nodes = await asyncio.create_subprocess_exec(
                find("node", "nodejs"),
                str(laid_out(app) / "convergence.mjs"),
                str(wire.port),
                str(scene.node),
                PREFIX,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 26,
            )
        await _disturb(scene, broker, running, wire, note)
        wire.rough = False
        loop = asyncio.get_running_loop()
        pipes[0].send("stop")
        written = await loop.run_in_executor(None, _received, pipes[0])
        note("the last report has been sent")
        truth = await _truth(broker.port)
        known = time.monotonic()
        positions = {url: each[:2] for url, each in truth.items()}
        for pipe in pipes[1:]:
            pipe.send(positions)
        found: dict[str, Any] = {}
        for pipe in pipes[1:]:
            found |= await loop.run_in_executor(None, _received, pipe)
        if nodes is not None:
            assert nodes.stdin is not None
            assert nodes.stdout is not None
            nodes.stdin.write(orjson.dumps(positions) + b"\n")
            await nodes.stdin.drain()
            found |= json.loads(await asyncio.wait_for(nodes.stdout.readline(), 120))
            nodes.stdin.close()
            await nodes.wait()
        settled = time.monotonic() - known
        return _judge(scene, written, truth, found, wire, settled)
    finally:
        if nodes is not None and nodes.returncode is None:
            nodes.kill()
        await wire.close()
        for process in processes:
            process.join(5)
            process.kill()


def _received(pipe: Connection) -> Any:
    if not pipe.poll(180):
        raise ConvergenceError("a process has not answered for three minutes")
    return pipe.recv()


async def _disturb(scene: Scene, broker: Mosquitto, running: Gateway, wire: Wire, note: Callable[[str], None]) -> None:
    """The time in between: everything goes wrong, each at its moment."""
    loop = asyncio.get_running_loop()
    begun = time.monotonic()
    moments = [
        *((scene.seconds * (0.2 + 0.6 * n / max(1, scene.restarts)), "broker") for n in range(scene.restarts)),
        *((scene.seconds * (0.35 + 0.6 * n / max(1, scene.kills)), "gateway") for n in range(scene.kills)),
    ]
    moments.sort()
    while (now := time.monotonic() - begun) < scene.seconds:
        while moments and moments[0][0] <= now:
            _, what = moments.pop(0)
            note(f"{what} goes at {now:.0f} s")
            if what == "broker":
                broker.stop()
                await asyncio.sleep(0.5)
                await loop.run_in_executor(None, broker.start)
            else:
                running.kill()
                await asyncio.sleep(0.5)
                await loop.run_in_executor(None, running.start)
        wire.drop_some(0.02)
        await asyncio.sleep(0.5)


async def _truth(port: int) -> dict[str, Any]:
    """What the gateway holds, by its own word, once all that was sent has been applied."""
    async with connect(f"mqtt://judge:x@{HOST}:{port}", presence=False, timeout=60) as client:
        before: Any = None
        for _ in range(120):
            listed = await client.discover(PREFIX)
            state = sorted((each["url"], each["epoch"], each["version"]) for each in listed)
            if state == before:
                break
            before = state
            await asyncio.sleep(1.0)
        pages = await client._run(client._core.pages("read", {"prefix": PREFIX}, "snapshots"))
    return {each["url"]: [each["epoch"], each["version"], each["data"]] for each in pages}


def _judge(
    scene: Scene, written: dict[str, Any], truth: dict[str, Any], found: dict[str, Any], wire: Wire, settled: float
) -> dict[str, Any]:
    wrong = [f"{name}: {text}" for name, each in found.items() for text in each["wrong"]]
    for name, each in found.items():
        state = each["state"]
        if state != truth:
            urls = [url for url in truth.keys() | state.keys() if state.get(url) != truth.get(url)]
            first = urls[0]
            wrong.append(
                f"{name} differs in {len(urls)} objects (in sync: {each['in_sync']}): {first} is {state.get(first)}, not {truth.get(first)}"
            )
    if len(found) != scene.observers + scene.node:
        wrong.append(f"{len(found)} observers have answered")
    if written["held"]:
        wrong.append(f"{written['held']} objects are still held by their Reporters")
    for url, data in written["last"].items():
        there = truth.get(url, [0, 0, {}])[2].get("values", {}).get("count", {}).get("value")
        if there != data["values"]["count"]["value"]:
            wrong.append(f"{url} was {data['values']['count']['value']} at last, and the gateway holds {there}")
    if wrong:
        raise ConvergenceError("\n".join(wrong[:50]))
    events = [each["events"] for each in found.values()]
    return {
        "observers": len(found),
        "objects": len(truth),
        "reports": written["said"],
        "reports_per_second": written["said"] / written["seconds"],
        "acknowledged_at_once": written["stored"],
        "versions": sum(each[1] for each in truth.values()),
        "events": sum(events),
        "connections_dropped": wire.dropped,
        "delays": wire.delayed,
        "messages_repeated": wire.repeated,
        "seconds_from_the_last_change_until_all_were_equal": settled,
    }


def main() -> int:
    """Returns 1 when an Observer is not what it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.convergence", description=__doc__)
    defaults = Scene()
    for name in ("observers", "objects", "restarts", "kills", "node", "processes", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    for name in ("rate", "seconds"):
        parser.add_argument(f"--{name}", type=float, default=getattr(defaults, name))
    scene = Scene(**vars(parser.parse_args()))
    if scene.node and not (PACKAGES / ".installed").exists():
        parser.error("the packages of Node.js are missing: `pytest tests/clients/test_mqttjs.py` installs them")
    with tempfile.TemporaryDirectory(prefix="ctxt-convergence-") as folder:
        try:
            result = play(scene, Path(folder), lambda text: print(text, file=sys.stderr, flush=True))
        except CtxtError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
