"""Clients of every kind that come, do a little, and go."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING

from gateway.wire.packets import Will
from tests.soak.client import Client, SoakError, serve

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from tests.soak.client import Place, Process

NAMES = ("guest0", "guest1", "guest2", "guest3")
STRANGER = "stranger"
"""Who sends wrong passwords: nobody else is made to wait for that."""

POOL = 5
"""Client ids of sessions that are taken up again, and taken over, for each name."""

EXPIRY = 2
"""Seconds that a session under a client id of its own is kept."""

FILTERS = (
    "snapshot/#",
    "delta/ctxt/home.local/+/#",
    "delta/#",
    "value/+/home.local/#",
    "dialect/#",
    "$share/guests/dialect/#",
)


class Guests:
    """`count` connects, or until it is told to stop; at most `at_once` are open, `rate` a second begin (0 = as many as can)."""

    def __init__(self, place: Place, count: int, at_once: int, rate: float, seed: int) -> None:
        self._place = place
        self._count = count
        self._rate = rate
        self._dice = random.Random(seed)
        self._room = asyncio.Semaphore(at_once)

    async def run(self, process: Process) -> None:
        """All of them; at last the kept sessions are ended."""
        began = asyncio.get_running_loop().time()
        number = 0
        async with asyncio.TaskGroup() as group:
            while (not self._count or number < self._count) and not process.stopping.is_set():
                await self._room.acquire()
                group.create_task(self._one(process, number))
                number += 1
                if self._rate:
                    await process.rest(began + number / self._rate - asyncio.get_running_loop().time())
        for name in NAMES:
            for place in range(POOL):
                last = Client(name, f"pool-{place}")
                await last.open(self._place)
                await last.leave()

    async def _one(self, process: Process, number: int) -> None:
        try:
            await self._visit(process, number)
        except SoakError as error:
            process.problem(f"guest {number}: {error}")
        except OSError as error:
            process.problem(f"guest {number}: {error!r}")
        finally:
            process.counts["connects"] += 1
            self._room.release()

    async def _visit(self, process: Process, number: int) -> None:
        dice = self._dice.random
        kind = dice()
        if kind < 0.02:
            await self._mute(process)
            return
        name = self._dice.choice(NAMES)
        level = 4 if dice() < 0.3 else 5
        web = dice() < 0.2
        if kind < 0.07:
            stranger = Client(STRANGER, f"s{number}", level=level, web=web, password="wrong")
            if not await stranger.open(self._place):
                raise SoakError("a wrong password was let in")
            process.counts["wrong passwords"] += 1
            await stranger.leave(cut=True)
            return
        pooled = kind < 0.25
        kept = pooled or (level == 5 and dice() < 0.3)
        will = None
        if dice() < 0.2:
            topic = f"dialect/wills/{number % 50}" if dice() < 0.8 else f"report/{STRANGER}/ctxt/home.local/x"
            will = Will(topic, b"gone", self._dice.randrange(3))
        client = Client(
            name,
            f"pool-{self._dice.randrange(POOL)}" if pooled else f"g{number}",
            level=level,
            web=web,
            clean=not kept,
            expiry=(60 if pooled else EXPIRY) if kept else 0,
            will=will,
        )
        try:
            reason = await client.open(self._place)
            if reason:
                raise SoakError(f"{name} was refused: {reason:#x}")
            if dice() < 0.5:
                await client.subscribe(
                    *self._dice.sample(FILTERS, self._dice.randint(1, 3)), qos=self._dice.randrange(3)
                )
            if dice() < 0.6:
                payload = b'{"values":{"n":{"value":%d}}}' % number
                client.publish(f"report/{name}/ctxt/home.local/{name}/o{number % 20}", payload, self._dice.randrange(3))
                client.publish(f"dialect/from/{name}", payload, self._dice.randrange(3))
            await asyncio.sleep(dice() * 0.05)
        except SoakError:
            if not (pooled and client.closed.done()):
                raise  # somebody else has taken its session
            process.counts["taken over"] += 1
        if kind > 0.9 and not client.closed.done():
            client.send(b"\x32\x7f\x00\x05half a packet")
            await client.leave(cut=True)
            return
        await client.leave(cut=dice() < 0.3)

    async def _mute(self, process: Process) -> None:
        """No CONNECT, or something that is none."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._place.tcp)
        if self._dice.random() < 0.5:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.sleep(self._dice.random() * 0.05)
        writer.transport.abort()
        process.counts["never connected"] += 1


async def _main(process: Process, place: Place, count: int, at_once: int, rate: float, seed: int) -> None:
    await Guests(place, count, at_once, rate, seed).run(process)


def main(pipe: Connection, place: Place, count: int, at_once: int, rate: float, seed: int) -> None:
    """The process of the guests."""
    serve(pipe, partial(_main, place=place, count=count, at_once=at_once, rate=rate, seed=seed))
