"""The mixed load: reporters, observers of every kind, requests, objects that come and go, slow readers, idle connections."""

from __future__ import annotations

import asyncio
import contextlib
import random
from functools import partial
from typing import TYPE_CHECKING

from gateway.objects import url_of
from gateway.wire.packets import Property
from tests.bench.load import LoadError, check_versions
from tests.crash import CrashError, Log, Watcher
from tests.crash import Reporter as JudgedReporter
from tests.soak.client import PATIENCE, Client, SoakError, serve, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection
    from pathlib import Path

    from gateway.wire.packets import Publish
    from tests.soak.client import Place, Process

REPORTERS = ("rep0", "rep1", "rep2", "rep3")
JUDGED, JUDGE = "anna", "vera"
"""A reporter and its observer whose logs tests/history.py judges."""

NAMES = (*REPORTERS, JUDGED, JUDGE, "watch", "pass", "slow", "source", "share", "asker", "maker", "idle")

OBJECTS = 25
"""Objects of one reporter."""

BURST = 10
WINDOW = 40
"""Reports in one write; unacknowledged reports of one reporter."""

LAG = 500
"""Deltas that the observer of all of them may be behind until nobody reports: what is measured is the gateway, not its clients' queues."""

IDLE = 50
"""Connections that do nothing but ping."""

DIALECT = 200
"""Topics with retained messages."""

MADE = 200
"""Object names that come and go in turn: each again long after its tombstone has gone."""

FILTERS = (
    "snapshot/#",
    "delta/ctxt/home.local/+/#",
    "delta/ctxt/+/rep1/#",
    "value/#",
    "$SYS/#",
    "gateway/+",
    "dialect/+/#",
)
TOO_BIG = b'{"values":{"n":{"value":"' + b"x" * 70_000 + b'"}}}'


def value_of(number: int) -> bytes:
    """A merge patch."""
    return b'{"values":{"n":{"value":%d}}}' % number


class Reporter:
    """Reports at all QoS, as merge and as JSON Patch, some that must be refused; in the end its objects have what it sent last."""

    def __init__(self, process: Process, name: str, level: int, *, web: bool) -> None:
        self._process = process
        self._client = Client(name, f"{name}-device", level=level, web=web)
        self._client.settled = self._settled
        self._name = name
        self._number = 0
        self._last: dict[str, int] = {}
        self._wrong: set[int] = set()
        self._room = asyncio.Event()

    def _settled(self, packet_id: int, reason: int) -> None:
        self._process.counts["acknowledged"] += 1
        wrong = packet_id in self._wrong
        self._wrong.discard(packet_id)
        if self._client.level == 5 and wrong != (reason >= 0x80):
            self._process.problem(f"{self._name}: a {'wrong' if wrong else 'good'} report was answered {reason:#x}")
        self._room.set()

    async def work(self, place: Place) -> None:
        """Report until told to stop, at the pace of the process; then look at what is there."""
        process, client = self._process, self._client
        await asyncio.wait_for(process.ready.wait(), PATIENCE)
        await client.open(place)
        await client.subscribe(f"inbox/{self._name}", qos=1)
        for number in range(OBJECTS):
            self._good(number, 1)
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not process.stopping.is_set():
            if client.closed.done():
                raise SoakError(f"{self._name} was disconnected")
            if len(client.pending) > WINDOW or process.counts["changes"] - process.counts["deltas"] > LAG:
                self._room.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._room.wait(), 0.02)
                continue
            for _ in range(BURST):
                self._report()
            due = max(due, loop.time() - 1)
            if process.pace:
                due += BURST * len(REPORTERS) / process.pace
                await asyncio.sleep(max(0.0, due - loop.time()))
            else:
                await asyncio.sleep(0)
        await self._settle()
        await client.leave()

    def _report(self) -> None:
        number = self._number
        self._process.counts["reports"] += 1
        if number % 50 == 7:
            self._bad(number)
            return
        self._good(number % OBJECTS, (0, 1, 1, 1, 0, 1, 1, 0, 1, 2)[number % 10])

    def _topic(self, at: int) -> str:
        return f"report/{self._name}/ctxt/home.local/{self._name}/o{at}"

    def _good(self, at: int, qos: int) -> None:
        number = self._number
        self._number += 1
        self._process.counts["changes"] += 1
        topic = self._topic(at)
        if number % 3 and topic in self._last:
            payload = b'[{"op":"replace","path":"/values/n/value","value":%d}]' % number
        else:
            payload = value_of(number)
        self._last[topic] = number
        self._client.publish(topic, payload, qos)

    def _bad(self, number: int) -> None:
        self._number += 1
        kind = number // 50 % 20
        topic, payload = self._topic(0), b'{"values":7}'
        if kind < 10:
            other = REPORTERS[REPORTERS.index(self._name) - 1]
            topic, payload = f"report/{self._name}/ctxt/home.local/{other}/o0", value_of(number)
        elif kind == 10:
            payload = TOO_BIG
        self._wrong.add(self._client.publish(topic, payload, 1))

    async def _settle(self) -> None:
        await until(f"all of {self._name}'s reports are acknowledged", lambda: not self._client.pending)
        found = {}
        body: dict[str, object] = {"prefix": f"ctxt://home.local/{self._name}"}
        while True:
            answer = await self._client.request("read", body)
            for snapshot in answer["body"]["snapshots"]:
                found[f"report/{self._name}/{snapshot['url'].replace('://', '/', 1)}"] = snapshot["data"]["values"][
                    "n"
                ]["value"]
            if "next" not in answer["body"]:
                break
            body["after"] = answer["body"]["next"]
        for topic, number in self._last.items():
            if found.get(topic) != number:
                self._process.problem(f"lost: {number} was sent last to {topic}, there is {found.get(topic)}")


class Others:
    """Everybody but the reporters. Each method is one actor that ends soon after it is told to."""

    def __init__(self, process: Process, place: Place, seed: int) -> None:
        self._process = process
        self._place = place
        self._dice = random.Random(seed)

    async def watch(self) -> None:
        """Follows the reporters' deltas: their versions must run on."""
        known: dict[str, tuple[int, int]] = {}

        def heard(publish: Publish) -> None:
            self._process.counts["deltas"] += 1
            try:
                check_versions([(publish.topic, publish.payload)], known)
            except LoadError as error:
                self._process.problem(f"gap: {error}")

        client = Client("watch", "watch-1")
        client.heard = heard
        await client.open(self._place)
        await client.subscribe(*(f"delta/ctxt/home.local/{name}/#" for name in REPORTERS), qos=1)
        self._process.ready.set()
        while await self._process.rest(1):
            if client.closed.done():
                raise SoakError("the observer of all deltas was disconnected")
        counts = self._process.counts
        await until("every change has been seen", lambda: counts["changes"] == counts["deltas"])
        await client.leave()

    async def pass_by(self, number: int) -> None:
        """Observers that come and go, some with sessions that are kept."""
        going = True
        while going:
            expiry = self._dice.choice((0, 0, 2))
            web = self._dice.random() < 0.3
            level = self._dice.choice((4, 5))
            client = Client(
                "pass",
                f"pass-{number}",
                level=level,
                web=web,
                expiry=expiry,
                clean=self._dice.random() < 0.7 or level == 4,
            )
            await client.open(self._place)
            wanted = self._dice.sample(FILTERS, 2)
            try:
                await client.subscribe(*wanted, qos=self._dice.randrange(3))
                going = await self._process.rest(self._dice.uniform(0.3, 4))
                if self._dice.random() < 0.5:
                    await client.unsubscribe(wanted[0])
            except SoakError:
                if not client.closed.done():
                    raise
            self._process.counts["observers"] += 1
            # Who is slower at QoS 2 than the reporters are has a full queue at last.
            self._process.counts["observers sent away"] += client.closed.done()
            await client.leave(cut=self._dice.random() < 0.5)

    async def slow(self, number: int) -> None:
        """Readers that stop reading (QoS 0: messages are dropped), or never acknowledge (QoS 1: they are sent away)."""
        going = True
        while going:
            qos = self._dice.randrange(2)
            client = Client("slow", f"slow-{number}", silent=True)
            await client.open(self._place, buffer=4_096)
            await client.subscribe("delta/#", qos=qos)
            client.transport.pause_reading()
            going = await self._process.rest(self._dice.uniform(2, 6))
            if not client.transport.is_closing():
                client.transport.resume_reading()
            going = going and await self._process.rest(1)
            await client.leave(cut=self._dice.random() < 0.5)
            self._process.counts["slow readers"] += 1

    async def source(self) -> None:
        """Retained messages on topics that a rule opens, some that expire; in the end none is left."""
        client = Client("source", "source-1")
        await client.open(self._place)
        while await self._process.rest(0.02):
            topic = f"dialect/t/{self._dice.randrange(DIALECT)}"
            expires = {Property.MESSAGE_EXPIRY_INTERVAL: 2} if self._dice.random() < 0.2 else None
            payload = b"" if self._dice.random() < 0.2 else b"x" * self._dice.randrange(1, 500)
            client.publish(topic, payload, self._dice.randrange(3), retain=True, properties=expires)
            self._process.counts["retained"] += 1
        for number in range(DIALECT):
            client.publish(f"dialect/t/{number}", b"", 1, retain=True)
        await until("all retained messages are cleared", lambda: not client.pending)
        await client.leave()

    async def share(self, number: int) -> None:
        """Members of a shared subscription."""
        going = True
        while going:
            client = Client("share", f"share-{number}", expiry=2, clean=self._dice.random() < 0.5)
            await client.open(self._place)
            await client.subscribe("$share/group/dialect/#", qos=self._dice.randrange(3))
            going = await self._process.rest(self._dice.uniform(0.5, 3))
            await client.leave(cut=self._dice.random() < 0.5)

    async def ask(self) -> None:
        """Requests."""
        client = Client("asker", "asker-1")
        await client.open(self._place)
        await client.subscribe("inbox/asker", qos=1)
        while await self._process.rest(0.1):
            name = self._dice.choice(REPORTERS)
            if self._dice.random() < 0.5:
                answer = await client.request("read", {"prefix": f"ctxt://home.local/{name}"})
            else:
                answer = await client.request("discover", {"reporter": name})
            if answer["code"] != 200:
                self._process.problem(f"a request was answered {answer}")
            self._process.counts["requests"] += 1
        await client.leave()

    async def make(self) -> None:
        """Objects that are created, and deleted."""
        client = Client("maker", "maker-1")
        await client.open(self._place)
        await client.subscribe("inbox/maker", qos=1)
        number = 0
        while await self._process.rest(0.1):
            about = f"ctxt/home.local/maker/m{number % MADE}"
            number += 1
            client.publish(f"report/maker/{about}", value_of(number), 1)
            answer = await client.request("delete", {"resource": url_of(about)})
            if answer["code"] != 200:
                self._process.problem(f"{about} was not deleted: {answer}")
            self._process.counts["made and deleted"] += 1
        await client.leave()

    async def idle(self) -> None:
        """Connections that do nothing."""
        clients = [
            Client("idle", f"idle-{number}", level=4 + number % 2, web=number % 5 == 0) for number in range(IDLE)
        ]
        for client in clients:
            await client.open(self._place)
        while await self._process.rest(20):
            for client in clients:
                client.send(b"\xc0\x00")
                if client.closed.done():
                    raise SoakError("an idle client was disconnected")
        for client in clients:
            await client.leave()

    async def judged(self, folder: Path) -> None:
        """A reporter and an observer by the rule, at leisure; their logs are judged when all is over."""
        names = (folder / "anna.log", folder / "vera.log", folder / "final.log")
        with contextlib.ExitStack() as stack:
            anna_log, vera_log, final = (Log(stack.enter_context(path.open("wb"))) for path in names)
            reporter = JudgedReporter(JUDGED, self._place.tcp, anna_log, self._dice.randrange(1 << 30), pause=5.0)
            under = f"ctxt/home.local/{JUDGED}"
            watcher = Watcher(JUDGE, self._place.tcp, vera_log, self._dice.randrange(1 << 30), under=under)
            for each in (watcher, reporter):
                each.start()
            tasks = [asyncio.ensure_future(reporter.work()), asyncio.ensure_future(watcher.heal())]
            try:
                while await self._process.rest(1):
                    reporter.check()
                    watcher.check()
                reporter.full = True
                await until("anna's reports are acknowledged", lambda: reporter.idle)
                await asyncio.sleep(3)  # longer than a snapshot may take
                if not await watcher.compare():
                    self._process.problem("vera's copy is not complete")
                listed = [each["url"] for page in await watcher.everything() for each in page["objects"]]
                for snapshot in await watcher.read(listed):
                    head = {key: snapshot[key] for key in ("epoch", "version", "data", "status")}
                    final("final", object=snapshot["url"].replace("://", "/", 1), **head)
            except CrashError as error:
                raise SoakError(str(error)) from error
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            await reporter.stop()
            await watcher.stop()


async def clear(place: Place, names: tuple[str, ...]) -> None:
    """Delete every object of these clients, and their sessions that are kept. Raises SoakError."""
    for name in names:
        client = Client(name, f"{name}-device")
        await client.open(place)
        await client.subscribe(f"inbox/{name}", qos=1)
        while listed := (await client.request("discover", {"mine": True}))["body"]["objects"]:
            for each in listed:
                await client.request("delete", {"resource": each["url"]})
        await client.leave()


async def _main(process: Process, place: Place, folder: Path, seed: int) -> None:
    others = Others(process, place, seed)
    reporters = [Reporter(process, name, 4 if at == 3 else 5, web=at == 2) for at, name in enumerate(REPORTERS)]
    actors: list[Awaitable[None]] = [each.work(place) for each in reporters]
    actors += [others.watch(), others.source(), others.ask(), others.make(), others.idle(), others.judged(folder)]
    several: tuple[tuple[Callable[[int], Awaitable[None]], int], ...] = (
        (others.pass_by, 4),
        (others.slow, 2),
        (others.share, 3),
    )
    actors += [act(number) for act, count in several for number in range(count)]

    async def one(actor: Awaitable[None]) -> None:
        try:
            await actor
        except (SoakError, OSError, TimeoutError) as error:
            process.problem(f"gave up: {error}")

    await asyncio.gather(*map(one, actors))


def main(pipe: Connection, place: Place, folder: Path, seed: int) -> None:
    """The process of the load."""
    serve(pipe, partial(_main, place=place, folder=folder, seed=seed))
