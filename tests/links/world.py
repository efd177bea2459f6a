"""What the links' tests share: a wire that can be cut, a broker of bytes, a service that only takes notes, and Observers."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.links.dial import Way
from gateway.links.link import LinkError
from gateway.links.remote import Remote, RemoteLink
from gateway.wire.codec import Decoder, encode
from gateway.wire.packets import (
    Connack,
    Connect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path

    from gateway.service import Service
    from tests.inside import Client, Inside

P = TypeVar("P")

PATIENCE = 10.0
"""Seconds after which something that should have come counts as missing."""

OPEN = "\n[link]\nopen = true\n"
"""For a mosquitto that admits everybody."""

ALLOW_ALL = "allow_anonymous true\nmax_queued_messages 0\nset_tcp_nodelay true\n"


# ---- a wire that can be cut ----------------------------------------------------------------------------------------------


class Proxy:
    """A TCP port whose connections lead to `target`; on a thread of its own."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.connections = 0
        """How many have come so far; where nobody listens at `target` they are closed at once."""
        self._pairs: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._flowing: asyncio.Event = self._call(self._event())
        self._server: asyncio.Server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def _call(self, what: Coroutine[Any, Any, P]) -> P:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(PATIENCE)

    @staticmethod
    async def _event() -> asyncio.Event:
        event = asyncio.Event()
        event.set()
        return event

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            out_reader, out_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            self.connections += 1
            writer.transport.abort()
            return
        pair = {writer, out_writer}
        self._pairs |= pair
        self.connections += 1
        for source, sink in ((reader, out_writer), (out_reader, writer)):
            task = self._loop.create_task(self._pass(source, sink, pair))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, pair: set[Any]) -> None:
        with suppress(OSError):
            while True:
                await self._flowing.wait()
                data = await source.read(65_536)
                if not data:
                    break
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
        for writer in pair:
            writer.transport.abort()
        self._pairs -= pair

    def cut(self) -> None:
        """End every connection, without a word."""

        async def act() -> None:
            for writer in self._pairs:
                writer.transport.abort()

        self._call(act())

    def stall(self) -> None:
        """Nothing passes any more, either way; the connections stay."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        """Let it pass again."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def close(self) -> None:
        async def act() -> None:
            self._server.close()
            self._flowing.set()
            for writer in self._pairs:
                writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._call(act())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """A wire to a port, gone at the end."""
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()


# ---- a gateway beside a broker -------------------------------------------------------------------------------------------


def link_of(gateway: Inside) -> RemoteLink:
    assert gateway.service is not None
    link = gateway.service._link
    assert isinstance(link, RemoteLink)
    return link


def wait_for(gateway: Inside, condition: Callable[[Service], object], what: str) -> None:
    """Wait for something that the gateway does in its own time."""
    assert gateway.service is not None
    service = gateway.service

    async def wait() -> bool:
        for _ in range(int(PATIENCE / 0.005)):
            if condition(service):
                return True
            await asyncio.sleep(0.005)
        return False

    assert asyncio.run_coroutine_threadsafe(wait(), gateway._loop).result(PATIENCE + 5), f"did not happen: {what}"


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for something that nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.005)


def joined_again(gateway: Inside, before: int) -> None:
    """Wait until the gateway has joined once more than `before` times, and is ready."""
    link = link_of(gateway)
    wait_for(gateway, lambda _: link.counters.connections > before and link.ready, "the gateway joins again")


def snapshots(client: Client, since: int = 0) -> dict[str, dict[str, Any]]:
    """The latest snapshot of each object that a client has heard, by object; None once it was cleared."""
    found: dict[str, Any] = {}
    for topic, payload, _, _ in client.heard[since:]:
        if topic.startswith("snapshot/"):
            found[topic.removeprefix("snapshot/")] = json.loads(payload) if payload else None
    return found


def deltas(client: Client, path: str, since: int = 0) -> list[dict[str, Any]]:
    """What a client has heard on one object's delta topic."""
    return [json.loads(payload) for topic, payload, _, _ in client.heard[since:] if topic == f"delta/{path}"]


# ---- a broker of bytes ---------------------------------------------------------------------------------------------------


class Peer:
    """One connection of a gateway to the scripted broker; what it needs an answer to, it gets, unless `answering` is False."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.decoder = Decoder(server=True, max_packet=10_000_000, alias_maximum=100)
        self.hello: Connect = None  # type: ignore[assignment]  # set by `connect`
        self.answering = True
        self._packets: asyncio.Queue[Packet | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._read(reader))

    @property
    def level(self) -> int:
        return self.decoder.level

    @property
    def unread(self) -> int:
        """Packets that have come and that nobody has asked for yet."""
        return self._packets.qsize()

    def send(self, *packets: Packet | bytes) -> None:
        self.writer.write(b"".join(p if isinstance(p, bytes) else encode(p, self.level) for p in packets))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                # The decoder stops behind a CONNECT.
                for packet in self.decoder.feed(data) + self.decoder.feed(b""):
                    if self.answering:
                        self.answer(packet)
                    self._packets.put_nowait(packet)
        self._packets.put_nowait(None)

    async def read(self) -> Packet:
        """The next packet. Raises EOFError when the gateway has closed."""
        packet = await asyncio.wait_for(self._packets.get(), PATIENCE)
        if packet is None:
            raise EOFError
        return packet

    async def next(self, kind: type[P]) -> P:
        """The next packet of a kind; what comes before it is skipped."""
        while not isinstance(packet := await self.read(), kind):
            pass
        return packet

    async def publish(self, topic: str) -> Publish:
        """The next message on a topic; what comes before it is skipped."""
        while (packet := await self.next(Publish)).topic != topic:
            pass
        return packet

    def answer(self, packet: Packet) -> None:
        """What a good broker answers; the gateway's message to itself comes back."""
        if isinstance(packet, Subscribe):
            self.send(Suback(packet.packet_id, [one.qos for one in packet.subscriptions]))
        elif isinstance(packet, Unsubscribe):
            self.send(Unsuback(packet.packet_id, [0 for _ in packet.topic_filters]))
        elif isinstance(packet, Pingreq):
            self.send(Pingresp())
        elif isinstance(packet, Publish):
            if packet.qos == 1:
                self.send(Puback(packet.packet_id))
            if packet.topic.startswith("replica/"):
                self.send(Publish(packet.topic, packet.payload))

    async def connect(self, connack: Connack | None = None) -> Connect:
        """Take the CONNECT and let the gateway in, or not."""
        self.hello = await self.next(Connect)
        self.send(connack or Connack())
        return self.hello

    async def join(self, connack: Connack | None = None) -> Connect:
        """Be a good broker until the gateway listens to reports."""
        hello = await self.connect(connack)
        while True:
            subscribe = await self.next(Subscribe)
            if subscribe.subscriptions[0].topic_filter == "report/#":
                return hello

    async def ended(self) -> list[Packet]:
        """Everything until the gateway closes the connection."""
        rest: list[Packet] = []
        with suppress(EOFError):
            while True:
                rest.append(await self.read())
        return rest

    def drop(self) -> None:
        self.writer.transport.abort()
        self._task.cancel()


class Notes:
    """A service that only takes notes: everything is taken in and acknowledged, or held back where `holding`."""

    def __init__(self) -> None:
        self.counter = 0
        self.epoch = 1_000
        self.got: list[Publish] = []
        self.holding = False
        self.joins: list[tuple[bool, list[str]]] = []
        self.lost_sessions = 0
        self.seen = 0
        self.failure: BaseException | None = None
        self.link: RemoteLink = None  # type: ignore[assignment]  # set by `linked`

    def receive(self, batch: list[Publish]) -> None:
        self.got += batch
        if not self.holding:
            self.acknowledge_all(batch)

    def acknowledge_all(self, batch: list[Publish]) -> None:
        for publish in batch:
            self.link.acknowledge(publish)

    def announcement(self, status: str) -> bytes:
        return json.dumps({"status": status, "epoch": self.epoch, "counter": self.counter}).encode()

    def begin(self, seen: int, _own: int) -> int:
        self.seen = seen
        self.epoch = max(self.epoch, seen + 1)
        return self.epoch

    def joined(self, *, lost: bool, strays: list[str]) -> None:
        self.joins.append((lost, strays))
        self.link.publish("gateway/g", self.announcement("online"), qos=1, retain=True)

    def session_lost(self, key: tuple[str, str]) -> None:
        self.lost_sessions += 1

    def link_failed(self, error: BaseException) -> None:
        self.failure = error


class Scripted:
    """A port where a test itself is the broker, and a link that connects to it."""

    def __init__(self, notes: Notes, link: RemoteLink, peers: asyncio.Queue[Peer]) -> None:
        self.notes = notes
        self.link = link
        self.accepted = 0
        self.starting: asyncio.Task[None] | None = None
        self._peers = peers
        self._all: list[Peer] = []

    async def peer(self) -> Peer:
        """The gateway's next connection."""
        found = await asyncio.wait_for(self._peers.get(), PATIENCE)
        self._all.append(found)
        return found

    async def joined(self, connack: Connack | None = None) -> Peer:
        """The gateway's next connection, once the gateway has joined on it."""
        peer = await self.peer()
        await peer.join(connack)
        await until(lambda: self.link.ready, "the link is ready")
        return peer

    async def start_error(self) -> str:
        """Why `start` has failed, for good."""
        assert self.starting is not None
        try:
            await asyncio.wait_for(asyncio.shield(self.starting), PATIENCE)
        except LinkError as error:
            return str(error)
        raise AssertionError("the link has started")

    def close(self) -> None:
        for peer in self._all:
            peer.drop()
        while not self._peers.empty():
            self._peers.get_nowait().drop()


@asynccontextmanager
async def scripted(**remote: Any) -> AsyncIterator[Scripted]:
    """A link to a broker that the test plays itself. `remote`: fields of `Remote`."""
    peers: asyncio.Queue[Peer] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.accepted += 1
        peers.put_nowait(Peer(reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    notes = Notes()
    remote.setdefault("open", True)
    link = notes.link = RemoteLink(Remote(Way("mqtt", "127.0.0.1", port), "gw", **remote), gateway_id="g")
    world = Scripted(notes, link, peers)
    world.starting = asyncio.create_task(link.start(notes))  # type: ignore[arg-type]  # what a link asks of a service
    try:
        yield world
    finally:
        server.close()
        world.close()
        await link.stop()
        world.starting.cancel()
        await asyncio.gather(world.starting, return_exceptions=True)


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that the link does in its own time."""
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"did not happen: {what}")


def kinds(packets: list[Packet]) -> Counter[str]:
    return Counter(type(packet).__name__ for packet in packets)


async def soon(what: Awaitable[P]) -> P:
    """Wait for it, but not for ever."""
    return await asyncio.wait_for(what, PATIENCE)


def writable(path: Path, text: str) -> Path:
    """A file with this text."""
    path.write_text(text)
    return path
