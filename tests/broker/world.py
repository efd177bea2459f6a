"""What the broker's tests share: a house with rights in dicts, a broker on a free port, and a client made of bytes."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from gateway.broker.house import Limits
from gateway.broker.server import Broker
from gateway.topics import matches, overlaps
from gateway.wire.codec import Decoder, encode
from gateway.wire.packets import Connack, Connect, Packet, Publish, Reason, Suback, Subscribe, Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from gateway.broker.house import Peer
    from gateway.broker.session import Session
    from gateway.sessions import Changes, KeptMessage, KeptSession

P = TypeVar("P")

PATIENCE = 5.0
"""Seconds after which something that should have come counts as missing."""

QUIET = 0.15
"""Seconds in which nothing may come where nothing should."""


class TableHouse:
    """A house whose rights are two tables, client -> filters. It owns `report/…` and `presence/…`, and keeps `kept` retained."""

    def __init__(self) -> None:
        self.generation = 1
        self.passwords: dict[str, bytes] = {"alice": b"a", "bob": b"b", "mallory": b"m"}
        self.anonymous = False
        self.write: dict[str, list[str]] = {
            name: [f"report/{name}/#", f"presence/{name}", "open/#"] for name in ("alice", "bob", "mallory")
        }
        self.read: dict[str, list[str]] = {
            name: ["open/#", "delta/#", "snapshot/#"] for name in ("alice", "bob", "mallory")
        }
        self.kept: dict[str, bytes] = {}
        self.got: list[Publish] = []
        self.batches = 0
        self.answers: dict[str, tuple[int, str]] = {}
        self.holding = False
        self.busy = False
        self.waiting: list[Callable[[], None]] = []
        self.gate: asyncio.Event | None = None
        self.events: list[tuple[str, str, bool, bool]] = []
        self.peers: list[Peer] = []
        self.rendered = 0
        self.sessions: dict[int, KeptSession] = {}
        self.messages: dict[int, KeptMessage] = {}
        self.asked = 0
        self.broker: Broker = None  # type: ignore[assignment] # set by `running`

    async def authenticate(self, username: str | None, password: bytes | None, peer: Peer) -> str | None:
        self.peers.append(peer)
        if self.gate is not None:
            await self.gate.wait()
        if username is None:
            return "anonymous" if self.anonymous else None
        return username if password is not None and self.passwords.get(username) == password else None

    def may_publish(self, client: str, topic: str) -> bool:
        return any(matches(rule, topic) for rule in self.write.get(client, ()))

    def may_subscribe(self, client: str, topic_filter: str) -> bool:
        return any(overlaps(rule, topic_filter) for rule in self.read.get(client, ()))

    def may_receive(self, client: str, topic: str) -> bool:
        self.asked += 1
        return any(matches(rule, topic) for rule in self.read.get(client, ()))

    def owns(self, topic: str) -> bool:
        return topic.startswith(("report/", "presence/"))

    def receive(self, batch: list[Publish]) -> None:
        self.batches += 1
        self.got.extend(batch)
        if not self.holding:
            for publish in batch:
                self.broker.acknowledge(publish, *self.answers.get(publish.topic, (0, None)))

    def retained(self, topic_filter: str) -> Iterator[tuple[str, bytes, int]]:
        for topic, payload in list(self.kept.items()):
            if matches(topic_filter, topic):
                self.rendered += 1
                yield topic, payload, 1

    def overhear(self, publish: Publish) -> bool:
        """No adapter listens."""
        return False

    def survives(self, topic: str) -> bool:
        return not topic.startswith(("snapshot/", "delta/"))

    def save(self) -> None:
        journal = self.broker.journal
        assert journal is not None
        self.stored(journal.take())
        self.broker.saved()

    def stored(self, changes: Changes) -> None:
        """What the journal gave, as a store would have it: each row inserted once, and there when it is changed."""
        for number in changes.gone:
            self.sessions.pop(number, None)
            self.messages = {key: row for key, row in self.messages.items() if row.session != number}
        self.sessions.update((kept.number, kept) for kept in changes.sessions)
        for message in changes.messages:
            assert message.number not in self.messages
            assert message.session in self.sessions
            self.messages[message.number] = message
        for packet_id, number in changes.sent:
            self.messages[number] = self.messages[number]._replace(packet_id=packet_id)
        for number in changes.done:
            del self.messages[number]

    def settled(self, then: Callable[[], None]) -> None:
        if self.busy:
            self.waiting.append(then)
        else:
            then()

    def settle(self) -> None:
        self.busy = False
        while self.waiting and not self.busy:
            self.waiting.pop(0)()

    def online(self, session: Session) -> None:
        self.events.append(("online", session.client, False, False))

    def offline(self, session: Session, *, clean: bool, last: bool) -> None:
        self.events.append(("offline", session.client, clean, last))

    def revoke(self, client: str) -> None:
        self.read[client] = []
        self.write[client] = []
        self.generation += 1


@asynccontextmanager
async def running(
    house: TableHouse | None = None, *, keep_sessions: bool = False, **limits: Any
) -> AsyncIterator[tuple[TableHouse, Broker, int]]:
    """A broker on a free port of 127.0.0.1; in the end every raw client is closed."""
    house = house or TableHouse()
    broker = house.broker = Broker(house, Limits(**limits), version="test 1", keep_sessions=keep_sessions)
    _, port = await broker.listen("127.0.0.1", 0)
    try:
        yield house, broker, port
    finally:
        await close_all()
        await broker.stop()


class RawClient:
    """A socket, the codec, and nothing that follows the rules by itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, level: int) -> None:
        self.reader = reader
        self.writer = writer
        self.level = level
        self.decoder = Decoder(server=False, level=level, max_packet=10_000_000)
        self.packets: list[Packet] = []
        self.connack = Connack()

    @classmethod
    async def open(cls, port: int, level: int = 5, *, buffer: int | None = None) -> RawClient:
        sock = socket.socket()
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**16 if buffer is None else buffer)
        client = cls(reader, writer, level)
        OPEN.append(client)
        return client

    @classmethod
    async def connect(
        cls, port: int, name: str | None, level: int = 5, *, buffer: int | None = None, **fields: Any
    ) -> RawClient:
        """Connect as one of the house's clients; the CONNACK is in `connack`."""
        client = await cls.open(port, level, buffer=buffer)
        fields.setdefault("client_id", f"{name}-1")
        password = fields.pop("password", name[:1].encode() if name else None)
        client.send(Connect(level=level, username=name, password=password, **fields))
        client.connack = await client.expect(Connack)
        return client

    def send(self, *packets: Packet | bytes) -> None:
        self.writer.write(b"".join(p if isinstance(p, bytes) else encode(p, self.level) for p in packets))

    async def next(self) -> Packet:
        """The next packet. Raises EOFError when the broker has closed."""
        while not self.packets:
            data = await asyncio.wait_for(self.reader.read(65_536), PATIENCE)
            if not data:
                raise EOFError
            self.packets.extend(self.decoder.feed(data))
        return self.packets.pop(0)

    async def expect(self, kind: type[P]) -> P:
        packet = await self.next()
        assert isinstance(packet, kind), packet
        return packet

    async def collect(self, count: int) -> list[Publish]:
        """`count` PUBLISH packets; others between them are skipped."""
        found: list[Publish] = []
        while len(found) < count:
            packet = await self.next()
            if isinstance(packet, Publish):
                found.append(packet)
        return found

    async def subscribe(self, *filters: str, qos: int = 0, **options: Any) -> list[int]:
        self.send(Subscribe(77, [Subscription(one, qos, **options) for one in filters]))
        return [int(reason) for reason in (await self.expect(Suback)).reasons]

    async def silent(self, seconds: float = QUIET) -> bool:
        """Whether nothing comes for a while."""
        if self.packets:
            return False
        try:
            return not await asyncio.wait_for(self.reader.read(1), seconds)
        except TimeoutError:
            return True

    async def ended(self) -> int | None:
        """Wait for the end: the reason of the DISCONNECT before it, or None."""
        reason: int | None = None
        try:
            while True:
                packet = await self.next()
                reason = getattr(packet, "reason", reason)
        except (EOFError, ConnectionError):
            return None if reason is None else int(reason)

    def drop(self) -> None:
        """Go without a word."""
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


def run(main: Callable[[], Coroutine[Any, Any, None]], loop: str = "uvloop") -> None:
    """Run a test on the event loop of production, or on asyncio's own where there is no other."""
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


OPEN: list[RawClient] = []


async def close_all() -> None:
    """Close every raw client that was opened."""
    clients, OPEN[:] = OPEN[:], []
    for client in clients:
        client.writer.transport.abort()
        with suppress(ConnectionError):
            await client.writer.wait_closed()


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for something that the broker does in its own time."""
    for _ in range(int(PATIENCE / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"did not happen: {what}")


MALFORMED = int(Reason.MALFORMED_PACKET)
PROTOCOL_ERROR = int(Reason.PROTOCOL_ERROR)
