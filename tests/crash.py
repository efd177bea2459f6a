"""`python -m tests.crash --kills 50`: SIGKILL to the gateway at random moments while clients report and observe; then the logs are judged.

Reporters send QoS 1 reports that append to an array or set a key of their own, and send again what was not acknowledged.
Observers follow the Observer rule across all the kills. What everybody saw goes into logs in the format of tests/history.py.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import mmap
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import orjson
import uvloop
from rich.console import Console
from rich.progress import Progress

from gateway.client.replica import Replica
from gateway.errors import CtxtError
from gateway.objects import topic_of, url_of
from gateway.wire.codec import Decoder, encode
from gateway.wire.packets import (
    Connack,
    Connect,
    Pingreq,
    Property,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Subscription,
)
from tests.history import Verdict, check, payload_hash, read, state_hash
from tests.running import HOST, OWN_NAMESPACE, UNLIMITED, Gateway, gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from gateway.wire.packets import Packet, Properties

PASSWORD = "crash-password"
WINDOW = 20
"""Unacknowledged reports of one reporter."""

PER_OBJECT = 200
"""Reports on one object before a new one takes its place: schemas bound arrays and members."""

AT_ONCE = 4
"""Objects that one reporter reports on at a time."""

PAUSE = 0.01
"""Seconds between two bursts of one reporter, on average, where it is not told otherwise."""

SETTLE = 60.0
"""Seconds that everything may take to come to rest at the end."""


class CrashError(CtxtError):
    """The run itself did not work: nothing can be said about the gateway."""


class Log:
    """One actor's JSON lines."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __call__(self, event: str, **rest: Any) -> None:
        self._file.write(orjson.dumps({"event": event, **rest, "at": time.time()}) + b"\n")


class Talker:
    """An MQTT client that connects again whenever its connection is lost, until it is told to stop."""

    def __init__(
        self, name: str, port: int, *, level: int = 5, client_id: str | None = None, clean: bool = False
    ) -> None:
        self.name = name
        self.port = port
        self.level = level
        self.client_id = client_id or f"{name}-device"
        self.clean = clean
        self.connections = 0
        self.writer: asyncio.StreamWriter | None = None
        self.stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Close for good. Raises what went wrong in between."""
        self.stopping = True
        if self.writer is not None:
            self.writer.write(b"\xe0\0")
            self.writer.close()
        if self._task is not None:
            await asyncio.wait_for(self._task, 10)

    def check(self) -> None:
        """Raise what has ended the client, if it has ended."""
        if self._task is not None and self._task.done() and not self.stopping:
            self._task.result()
            raise CrashError(f"{self.name} has stopped")

    def send(self, packet: Packet) -> None:
        """Write, where there is a connection."""
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(encode(packet, self.level))

    def _properties(self) -> Properties | None:
        return {Property.SESSION_EXPIRY_INTERVAL: 3600, Property.RECEIVE_MAXIMUM: 1000} if self.level == 5 else None

    async def _run(self) -> None:
        while not self.stopping:
            try:
                reader, writer = await asyncio.open_connection(HOST, self.port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            try:
                await self._talk(reader, writer)
            except OSError:
                pass
            finally:
                self.writer = None
                self.lost()
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder(server=False, level=self.level)
        hello = Connect(
            self.client_id,
            level=self.level,
            clean_start=self.clean,
            keep_alive=300,
            username=self.name,
            password=PASSWORD.encode(),
            properties=self._properties(),
        )
        writer.write(encode(hello, self.level))
        admitted = False
        while data := await reader.read(1 << 16):
            for packet in decoder.feed(data):
                if isinstance(packet, Connack):
                    if packet.reason:
                        raise CrashError(f"{self.name} was refused: {packet.reason:#x}")
                    admitted = True
                    self.connections += 1
                    self.writer = writer
                    self.connected()
                else:
                    assert admitted
                    self.arrived(packet)

    def connected(self) -> None:
        """After CONNACK."""
        raise NotImplementedError

    def arrived(self, packet: Packet) -> None:
        """Any other packet."""
        raise NotImplementedError

    def lost(self) -> None:
        """The connection has gone."""


class Report:
    """One report until it is acknowledged."""

    __slots__ = ("line", "number", "payload", "topic")

    def __init__(self, number: int, topic: str, payload: bytes, line: dict[str, Any]) -> None:
        self.number = number
        self.topic = topic
        self.payload = payload
        self.line = line


class Reporter(Talker):
    """Sends reports in bursts; what was not acknowledged goes again, in order, with DUP and its packet id.

    With `ids` each connection is a new session, and what goes again carries the MQTT 5 user property `id` of the first time instead.
    """

    def __init__(
        self, name: str, port: int, log: Log, seed: int, *, level: int = 5, ids: bool = False, pause: float = PAUSE
    ) -> None:
        """`pause`: seconds between two bursts, on average."""
        super().__init__(name, port, level=level, clean=ids)
        self._log = log
        self._pause = pause
        self._random = random.Random(seed)
        self._ids = ids
        self._waiting: dict[int, Report] = {}
        self._packet_id = 0
        self._number = 0
        self._objects: list[tuple[str, int]] = []
        self._made = 0
        self._beginning: list[Report] = []
        self.full = False
        self.burst = asyncio.Event()
        """Set whenever reports have just gone out."""
        self.acknowledged = 0
        self.refused = 0
        self.again = 0

    @property
    def idle(self) -> bool:
        """Whether everything that was sent has been acknowledged."""
        return not self._waiting

    def connected(self) -> None:
        reports = list(self._waiting.items())
        if self._ids:
            self._waiting = {}
            for _, report in reports:
                self._out(self._next_id(), report, dup=False)
        else:
            for packet_id, report in reports:
                self._out(packet_id, report, dup=True)
        self.again += len(reports)

    def _next_id(self) -> int:
        while True:
            self._packet_id = self._packet_id % 65_535 + 1
            if self._packet_id not in self._waiting:
                return self._packet_id

    def _out(self, packet_id: int, report: Report, *, dup: bool) -> None:
        self._waiting[packet_id] = report
        properties: Properties | None = None
        if self._ids:
            properties = {Property.USER_PROPERTY: [("id", f"{self.name}-{report.number}")]}
        self._log("sent", reporter=self.name, id=report.number, connection=self.connections, **report.line)
        self.send(Publish(report.topic, report.payload, 1, False, dup, packet_id, properties))

    def arrived(self, packet: Packet) -> None:
        if isinstance(packet, Puback):
            report = self._waiting.pop(packet.packet_id)
            self._log("acknowledged", reporter=self.name, id=report.number, reason=int(packet.reason))
            self.acknowledged += 1
            self.refused += packet.reason >= 0x80

    async def work(self) -> None:
        """Report until cancelled."""
        while True:
            if self.writer is not None and not self.full:
                for _ in range(min(self._random.randint(1, WINDOW), WINDOW - len(self._waiting))):
                    self._out(self._next_id(), self._next(), dup=False)
                self.burst.set()
            await asyncio.sleep(self._random.expovariate(1 / self._pause))

    def _next(self) -> Report:
        self._number += 1
        number = self._number
        if len(self._objects) < AT_ONCE:
            self._made += 1
            about = f"ctxt/home.local/{self.name}/o{self._made}"
            self._objects.append((about, 1))
            change: Any = {"values": {"log": {"value": []}, f"k{number}": {"value": number}}}
            line: dict[str, Any] = {"set": [f"/values/k{number}/value", number]}
        else:
            at = self._random.randrange(AT_ONCE)
            about, count = self._objects[at]
            if count + 1 < PER_OBJECT:
                self._objects[at] = (about, count + 1)
            else:
                del self._objects[at]
            if self._random.random() < 0.7:
                change = [{"op": "add", "path": "/values/log/value/-", "value": number}]
                line = {"append": ["/values/log/value", number]}
            else:
                change = {"values": {f"k{number}": {"value": number}}}
                line = {"set": [f"/values/k{number}/value", number]}
        return Report(number, f"report/{self.name}/{about}", orjson.dumps(change), {"object": about, **line})


class Watcher(Talker):
    """An Observer by the rule, across all connections; everything that comes and everything it holds is written down.

    It looks at everything, or only at what is below `under`, the topic of an object.
    """

    def __init__(
        self, name: str, port: int, log: Log, seed: int, *, qos: int = 1, clean: bool = False, under: str = ""
    ) -> None:
        super().__init__(name, port, clean=clean)
        self._log = log
        self._under = under
        self._qos = qos
        self._packet_id = 0
        self._requests = 0
        self._answers: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self.replica = Replica(jitter=random.Random(seed).random)
        self.heard = time.monotonic()
        self.subscribed = asyncio.Event()

    def _subscribe(self, *filters: str) -> None:
        self._packet_id = self._packet_id % 65_535 + 1
        self.send(Subscribe(self._packet_id, [Subscription(each, self._qos) for each in filters]))

    def connected(self) -> None:
        below = f"{self._under}/#" if self._under else "#"
        self._subscribe(f"snapshot/{below}", f"delta/{below}", "gateway/+", f"inbox/{self.name}")

    def lost(self) -> None:
        self.subscribed.clear()
        for answer in self._answers.values():
            answer.cancel()
        self._answers.clear()

    def arrived(self, packet: Packet) -> None:
        if isinstance(packet, Suback):
            if any(reason >= 0x80 for reason in packet.reasons):
                raise CrashError(f"{self.name} may not subscribe: {packet.reasons}")
            self.subscribed.set()
        elif isinstance(packet, Publish):
            if packet.qos:
                self.send(Puback(packet.packet_id))
            self.heard = time.monotonic()
            verb, _, about = packet.topic.partition("/")
            if verb == "inbox":
                value = orjson.loads(packet.payload)
                answer = self._answers.pop(value["id"], None)
                if answer is not None and not answer.done():
                    answer.set_result(value)
                return
            if verb in ("snapshot", "delta"):
                self._received(verb, about, packet.payload)
            self.replica.feed(packet.topic, packet.payload, time.monotonic())
            if verb in ("snapshot", "delta"):
                self._holds(about)

    def _received(self, verb: str, about: str, payload: bytes) -> None:
        value = orjson.loads(payload)
        digest: str | None = None
        if verb == "delta":
            digest = payload_hash(payload)
        elif "deleted" in value:
            verb = "tombstone"
        else:
            digest = state_hash(value["data"], value["status"])
        self._log(
            "received",
            observer=self.name,
            connection=self.connections,
            kind=verb,
            object=about,
            epoch=value["epoch"],
            version=value["version"],
            hash=digest,
        )

    def _holds(self, about: str) -> None:
        copy = self.replica.get(about)
        if copy is not None:
            self._log(
                "holds",
                observer=self.name,
                connection=self.connections,
                object=about,
                epoch=copy.epoch,
                version=copy.version,
                hash=state_hash(copy.data, copy.status),
            )

    async def ask(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request and the body of its answer. Raises CrashError for any code but 200; is cancelled with the connection."""
        self._requests += 1
        key = f"r{self._requests}"
        answer = self._answers[key] = asyncio.get_running_loop().create_future()
        self.send(Publish(f"request/{self.name}", orjson.dumps({"id": key, "type": kind, "body": body})))
        value = await asyncio.wait_for(answer, 30)
        if value["code"] != 200:
            raise CrashError(f"{kind} was answered with {value}")
        found: dict[str, Any] = value["body"]
        return found

    async def everything(self) -> list[dict[str, Any]]:
        """A whole `discover` of what this observer may see, page by page."""
        pages: list[dict[str, Any]] = []
        body: dict[str, Any] = {"prefix": url_of(self._under)} if self._under else {}
        while True:
            pages.append(await self.ask("discover", body))
            if "next" not in pages[-1]:
                return pages
            body["after"] = pages[-1]["next"]

    async def read(self, urls: list[str]) -> list[dict[str, Any]]:
        """The snapshots of so many objects."""
        found: list[dict[str, Any]] = []
        for at in range(0, len(urls), 100):
            body: dict[str, Any] = {"resources": urls[at : at + 100]}
            while True:
                page = await self.ask("read", body)
                found += page["snapshots"]
                if "next" not in page:
                    break
                body["after"] = page["next"]
        return found

    async def heal(self) -> None:
        """Do what the Observer rule asks for, until cancelled."""
        while True:
            await asyncio.sleep(0.1)
            if self.writer is None:
                continue
            now = time.monotonic()
            topics = self.replica.want_resubscribe(now)
            for at in range(0, len(topics), 50):
                self._subscribe(*(f"snapshot/{topic}" for topic in topics[at : at + 50]))
            urls = self.replica.want_read(now)
            if urls:
                with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                    await self._take(urls)
            self.send(Pingreq())

    async def _take(self, urls: list[str]) -> None:
        for snapshot in await self.read(urls):
            about = topic_of(snapshot["url"])
            self._received("snapshot", about, orjson.dumps(snapshot))
            self.replica.take(snapshot, time.monotonic())
            self._holds(about)

    async def compare(self) -> bool:
        """Compare with `discover` as after each connect; True when the copies are complete."""
        asked = time.monotonic()
        result = self.replica.compare(await self.everything(), asked)
        if result.read:
            await self._take(result.read)
        return result.complete


class Crowd:
    """All clients of a run and their logs."""

    def __init__(self, folder: Path, port: int, seed: int) -> None:
        self._files: list[IO[bytes]] = []
        self.logs: list[Path] = []
        self._folder = folder

        def log(name: str) -> Log:
            path = folder / f"{name}.log"
            self.logs.append(path)
            self._files.append(path.open("wb"))
            return Log(self._files[-1])

        self.reporters = [
            Reporter("anna", port, log("anna"), seed + 1),
            Reporter("bert", port, log("bert"), seed + 2, level=4),
            Reporter("carl", port, log("carl"), seed + 3, ids=True),
        ]
        self.watchers = [
            Watcher("vera", port, log("vera"), seed + 4),
            Watcher("walt", port, log("walt"), seed + 5, qos=0, clean=True),
        ]
        self.final = log("final")

    @property
    def talkers(self) -> list[Talker]:
        """Everybody."""
        return [*self.reporters, *self.watchers]

    def close(self) -> None:
        """Close the logs."""
        for file in self._files:
            file.close()


NAMES = ("anna", "bert", "carl", "vera", "walt")


class Result:
    """What a run has brought."""

    def __init__(self, verdict: Verdict, crowd: Crowd, epochs: list[int], kills: int) -> None:
        self.verdict = verdict
        self.acknowledged = sum(each.acknowledged for each in crowd.reporters)
        self.refused = sum(each.refused for each in crowd.reporters)
        self.again = sum(each.again for each in crowd.reporters)
        self.connections = sum(each.connections for each in crowd.talkers)
        self.epochs = epochs
        self.kills = kills
        self.logs = crowd.logs


async def _until(what: str, happened: Callable[[], bool], crowd: Crowd, seconds: float = SETTLE) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        for each in crowd.talkers:
            each.check()
        if time.monotonic() > deadline:
            raise CrashError(f"after {seconds:g} s still waiting until {what}")
        await asyncio.sleep(0.02)


def wait_for_commit(state_dir: Path, more: float) -> None:
    """Spin until the next transaction is committed, and `more` seconds; at most 50 ms. Nothing else runs meanwhile.

    Between a commit and what it lets out lie microseconds, and a blind kill hardly ever meets them. What is watched is the
    header of the WAL index, which SQLite writes last: iChange to mxFrame, bytes 8 to 20 (sqlite.org/walformat.html).
    """
    with (
        contextlib.suppress(OSError, ValueError),
        (state_dir / "state.db-shm").open("rb") as file,
        mmap.mmap(file.fileno(), 64, access=mmap.ACCESS_READ) as header,
    ):
        before = header[8:20]
        end = time.perf_counter() + 0.05
        while header[8:20] == before and time.perf_counter() < end:
            pass
        end = time.perf_counter() + more
        while time.perf_counter() < end:
            pass


async def _kill(target: Gateway, dice: random.Random, crowd: Crowd) -> int:
    """One kill at a random moment: mostly in the midst of work, now and then while it starts. Returns the epoch after it."""
    if dice.random() < 0.8:
        await _until("everybody is back", lambda: all(each.writer is not None for each in crowd.talkers), crowd)
    await asyncio.sleep(dice.uniform(0.05, 1.2))
    for each in crowd.talkers:
        each.check()
    if dice.random() < 0.8:
        reporter = dice.choice(crowd.reporters)
        reporter.burst.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reporter.burst.wait(), 2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if dice.random() < 0.2:
            time.sleep(dice.uniform(0, 0.003))  # noqa: ASYNC251 - finer than the loop's timers
        else:
            wait_for_commit(target.state_dir, dice.choice((0.0, 0.0, dice.uniform(0, 0.0005))))
    target.kill()
    if dice.random() < 0.2:
        target.launch()
        await asyncio.sleep(dice.uniform(0.0, 0.6))
        target.kill()
    target.launch()
    await asyncio.to_thread(target.wait)
    return target.epoch


async def run(
    target: Gateway, folder: Path, kills: int, seed: int, told: Callable[[int], None] = lambda _: None
) -> Result:
    """Kill a running gateway so many times, come to rest, and judge. Raises CrashError when the run itself does not work."""
    dice = random.Random(seed)
    crowd = Crowd(folder, target.port, seed)
    epochs = [target.epoch]
    try:
        for each in crowd.talkers:
            each.start()
        await _until("everybody is connected", lambda: all(each.connections for each in crowd.talkers), crowd)
        tasks = [asyncio.ensure_future(each.work()) for each in crowd.reporters]
        tasks += [asyncio.ensure_future(each.heal()) for each in crowd.watchers]
        try:
            for number in range(kills):
                epochs.append(await _kill(target, dice, crowd))
                told(number + 1)
            await asyncio.sleep(0.5)
            for reporter in crowd.reporters:
                reporter.full = True
            await _until("all reports are acknowledged", lambda: all(each.idle for each in crowd.reporters), crowd)
            await _until("the observers are quiet", lambda: all(_quiet(each) for each in crowd.watchers), crowd)
            for watcher in crowd.watchers:
                if not await watcher.compare() and not await watcher.compare():
                    raise CrashError(f"{watcher.name}'s copy is not complete")
            last = crowd.watchers[0]
            listed = [each["url"] for page in await last.everything() for each in page["objects"]]
            for snapshot in await last.read(listed):
                head = {key: snapshot[key] for key in ("epoch", "version", "data", "status")}
                crowd.final("final", object=topic_of(snapshot["url"]), **head)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for each in crowd.talkers:
            await each.stop()
    finally:
        crowd.close()
    verdict = check(line for path in crowd.logs for line in read(path))
    return Result(verdict, crowd, epochs, kills)


def _quiet(watcher: Watcher) -> bool:
    """Nothing new for longer than a snapshot may take, and no gap."""
    return watcher.writer is not None and not watcher.replica.gaps and time.monotonic() - watcher.heard > 2.5


@contextlib.contextmanager
def crash_gateway(folder: Path, durability: str = "process") -> Iterator[Gateway]:
    """A running gateway with the clients of a run."""
    top = f'durability = "{durability}"'
    with gateway(folder, top=top, rest=OWN_NAMESPACE + UNLIMITED, clients=dict.fromkeys(NAMES, PASSWORD)) as running:
        yield running


def go(work: Awaitable[Result]) -> Result:
    """Run on uvloop."""

    async def main() -> Result:
        return await work

    return uvloop.run(main())


def main() -> int:
    """0 when nothing was found, 1 for findings, 2 when the run itself did not work."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--durability", choices=("process", "power"), default="process")
    parser.add_argument(
        "--keep", type=Path, help="a new folder for the logs and the gateway's own; else they are thrown away"
    )
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctxt-crash-")))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty")
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        task = progress.add_task(f"killing, seed {given.seed}", total=given.kills)
        target = stack.enter_context(crash_gateway(folder, given.durability))
        try:
            result = go(
                run(target, folder, given.kills, given.seed, lambda done: progress.update(task, completed=done))
            )
        except CtxtError as error:
            sys.stderr.write(f"error: {error}\n{target.errors()}\n")
            return 2
        code = target.stop()
    for finding in result.verdict.findings[:100]:
        sys.stdout.write(f"{finding}\n")
    counted = ", ".join(f"{count:,} {name}" for name, count in sorted(result.verdict.counts.items()))
    sys.stdout.write(
        f"{len(result.verdict.findings):,} findings after {result.kills} kills (seed {given.seed}, {given.durability}): "
        f"{counted}; {result.acknowledged:,} acknowledgements, {result.refused:,} of them refusals, "
        f"{result.connections:,} connections; the gateway then stopped with {code}\n"
    )
    return 1 if result.verdict.findings or result.refused or code else 0


if __name__ == "__main__":
    sys.exit(main())
