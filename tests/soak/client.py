"""One MQTT connection of a run, over TCP or a WebSocket, that acknowledges what it gets; and the process that it lives in."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import orjson
import uvloop
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request

from gateway.errors import CtxtError
from gateway.wire.codec import Decoder, encode
from gateway.wire.packets import (
    Connack,
    Connect,
    Disconnect,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
)
from tests.crash import PASSWORD
from tests.running import HOST

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

    from gateway.wire.packets import Packet, Properties, Will

PATIENCE = 30.0
"""Seconds that the gateway may take to answer."""


class SoakError(CtxtError):
    """A client did not get what it should have."""


class Place(NamedTuple):
    """Where the gateway listens: its ports."""

    tcp: int
    web: int


class Client(asyncio.Protocol):
    """`heard` gets every PUBLISH, `settled` the packet id and reason of every answer to one of ours."""

    def __init__(
        self,
        name: str,
        client_id: str,
        *,
        level: int = 5,
        web: bool = False,
        clean: bool = True,
        expiry: int = 0,
        will: Will | None = None,
        password: str = PASSWORD,
        silent: bool = False,
    ) -> None:
        """`silent`: nothing is acknowledged."""
        self.name = name
        self.level = level
        self.transport: asyncio.Transport = None  # type: ignore[assignment] # set by `open`
        self.pending: set[int] = set()
        self.heard: Callable[[Publish], None] = lambda _: None
        self.settled: Callable[[int, int], None] = lambda _id, _reason: None
        properties: Properties | None = {Property.SESSION_EXPIRY_INTERVAL: expiry} if level == 5 and expiry else None
        self._hello = Connect(client_id, level, clean, 60, name, password.encode(), will, properties)
        self._decoder = Decoder(server=False, level=level, max_packet=1 << 24)
        self._frames = WSConnection(ConnectionType.CLIENT) if web else None
        self._silent = silent
        self._packet_id = 0
        self._waiting: dict[object, asyncio.Future[Any]] = {}
        self._requests = 0
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, place: Place, *, buffer: int = 0) -> int:
        """Connect: the reason of the CONNACK. `buffer`: bytes of the socket's own. Raises SoakError, OSError."""
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        answer = self._expect("connack")
        try:
            await loop.sock_connect(sock, (HOST, place.tcp if self._frames is None else place.web))
        except OSError:
            sock.close()
            raise
        await loop.create_connection(lambda: self, sock=sock)
        return int((await self._answer("connack", answer)).reason)

    def _expect(self, key: object) -> asyncio.Future[Any]:
        if self.closed.done():
            raise SoakError(f"{self.name}'s connection was closed")
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        return future

    async def _answer(self, key: object, future: asyncio.Future[Any]) -> Any:
        try:
            return await asyncio.wait_for(future, PATIENCE)
        except TimeoutError:
            raise SoakError(f"{self.name} waits in vain for {key}") from None
        finally:
            self._waiting.pop(key, None)

    # ---- the socket ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._frames is None:
            self.send(self._hello)
        else:
            self.transport.write(self._frames.send(Request(host=HOST, target="/mqtt", subprotocols=["mqtt"])))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(SoakError(f"{self.name}'s connection was closed"))

    def data_received(self, data: bytes) -> None:
        if self._frames is None:
            self._take(data)
            return
        self._frames.receive_data(data)
        for event in self._frames.events():
            if isinstance(event, AcceptConnection):
                self.send(self._hello)
            elif isinstance(event, BytesMessage):
                self._take(bytes(event.data))
            elif isinstance(event, Ping):
                self.transport.write(self._frames.send(event.response()))
            elif isinstance(event, CloseConnection):
                self.transport.close()

    def _take(self, data: bytes) -> None:
        for packet in self._decoder.feed(data):
            if isinstance(packet, Publish):
                if not self._silent and packet.qos:
                    self.send(Puback(packet.packet_id) if packet.qos == 1 else Pubrec(packet.packet_id))
                self._heard(packet)
            elif isinstance(packet, Puback | Pubcomp):
                self._settle(packet.packet_id, packet.reason)
            elif isinstance(packet, Pubrec):
                if packet.reason >= 0x80:
                    self._settle(packet.packet_id, packet.reason)
                else:
                    self.send(Pubrel(packet.packet_id))
            elif isinstance(packet, Pubrel):
                self.send(Pubcomp(packet.packet_id))
            elif isinstance(packet, Connack):
                self._arrived("connack", packet)
            elif isinstance(packet, Suback | Unsuback):
                self._arrived(packet.packet_id, packet)

    def _arrived(self, key: object, value: object) -> None:
        future = self._waiting.get(key)
        if future is not None and not future.done():
            future.set_result(value)

    def _heard(self, publish: Publish) -> None:
        if publish.topic.startswith("inbox/"):
            value = orjson.loads(publish.payload)
            self._arrived(value.get("id"), value)
        else:
            self.heard(publish)

    def _settle(self, packet_id: int, reason: int) -> None:
        self.pending.discard(packet_id)
        self.settled(packet_id, int(reason))

    # ---- out -----------------------------------------------------------------------------------------------------------

    def send(self, *packets: Packet | bytes) -> None:
        """Packets, or bytes that are none, all in one write."""
        if self.transport.is_closing():
            return
        data = b"".join(each if isinstance(each, bytes) else encode(each, self.level) for each in packets)
        if self._frames is not None:
            if self._frames.state is not ConnectionState.OPEN:
                return
            data = self._frames.send(BytesMessage(data))
        self.transport.write(data)

    def next_id(self) -> int:
        """A packet id that is free."""
        while True:
            self._packet_id = self._packet_id % 65_535 + 1
            if self._packet_id not in self.pending:
                return self._packet_id

    def publish(
        self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False, properties: Properties | None = None
    ) -> int:
        """The packet id, 0 at QoS 0."""
        packet_id = self.next_id() if qos else 0
        if qos:
            self.pending.add(packet_id)
        self.send(Publish(topic, payload, qos, retain, packet_id=packet_id, properties=properties))
        return packet_id

    async def subscribe(self, *filters: str, qos: int = 0) -> None:
        """Raises SoakError where one is refused."""
        packet_id = self.next_id()
        answer = self._expect(packet_id)
        self.send(Subscribe(packet_id, [Subscription(each, qos) for each in filters]))
        reasons = (await self._answer(packet_id, answer)).reasons
        if any(reason >= 0x80 for reason in reasons):
            raise SoakError(f"{self.name} may not subscribe to {filters}: {reasons}")

    async def unsubscribe(self, *filters: str) -> None:
        """Wait for the UNSUBACK."""
        packet_id = self.next_id()
        answer = self._expect(packet_id)
        self.send(Unsubscribe(packet_id, list(filters)))
        await self._answer(packet_id, answer)

    async def request(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """An answer; the inbox must have been subscribed to."""
        self._requests += 1
        key = f"q{self._requests}"
        answer = self._expect(key)
        self.publish(f"request/{self.name}", orjson.dumps({"id": key, "type": kind, "body": body}))
        found: dict[str, Any] = await self._answer(key, answer)
        return found

    async def leave(self, *, cut: bool = False) -> None:
        """Close, with a DISCONNECT or without, and wait until it is closed."""
        if cut:
            self.transport.abort()
        else:
            self.send(Disconnect())
            self.transport.close()
        await self.closed


async def until(what: str, happened: Callable[[], object]) -> None:
    """Wait until it has happened. Raises SoakError."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while not happened():
        if asyncio.get_running_loop().time() > end:
            raise SoakError(f"waited {PATIENCE:g} s in vain until {what}")
        await asyncio.sleep(0.05)


class Process:
    """A process's side of its pipe: what it counts and what went wrong goes out every second, its orders come in."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.ready = asyncio.Event()
        """Set when the observer of all changes listens."""
        self.stopping = asyncio.Event()
        self.pace = 0.0
        """Reports a second; 0 = as fast as they are acknowledged."""

    def _ordered(self) -> None:
        try:
            order = self._pipe.recv()
        except EOFError:
            order = "stop"
        if order == "stop":
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self.stopping.set()
        else:
            self.pace = order

    def problem(self, text: str) -> None:
        """Something is wrong with the gateway; a hundred of them are enough."""
        if len(self.problems) < 100:
            self.problems.append(text)

    async def rest(self, seconds: float) -> bool:
        """Sleep, at most until told to stop: whether to go on."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return True
        return False

    async def tell(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(1)
            self._pipe.send(("counts", dict(self.counts)))

    async def run(self, main: Callable[[Process], Awaitable[None]]) -> None:
        """Do it, tell of it, and say at last what was wrong."""
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._ordered)
        telling = asyncio.ensure_future(self.tell())
        try:
            await main(self)
        except (CtxtError, OSError) as error:
            self.problem(f"gave up: {error}")
        finally:
            telling.cancel()
            self._pipe.send(("counts", dict(self.counts)))
            self._pipe.send(("done", self.problems))


def serve(pipe: Connection, main: Callable[[Process], Awaitable[None]]) -> None:
    """The life of a process."""

    async def live() -> None:
        await Process(pipe).run(main)

    uvloop.run(live())
