"""MQTT over WebSockets: the statements of MQTT 5 section 6, the handshake's bounds, and clients that people use."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiomqtt
import paho.mqtt.client
import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from gateway.broker.listeners import Listener, TlsFiles
from gateway.broker.websocket import HEAD_BYTES
from gateway.wire.codec import Decoder, encode
from gateway.wire.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Reason,
    Suback,
    Subscribe,
    Subscription,
)
from tests.broker.certificates import Authority
from tests.broker.world import OPEN, PATIENCE, RawClient, run, running, until

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

    from gateway.broker.listeners import Opened
    from gateway.broker.server import Broker
    from tests.broker.world import TableHouse

PAHO: Any = paho.mqtt.client
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


class Web:
    """A WebSocket made of bytes, and an MQTT decoder on what it brings."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.frames = WSConnection(ConnectionType.CLIENT)
        self.decoder = Decoder(server=False, level=5, max_packet=10_000_000)
        self.events: list[Any] = []
        self.packets: list[Any] = []
        self.messages = 0

    @classmethod
    async def open(cls, opened: Opened, tls: ssl.SSLContext | None = None, **request: Any) -> Web:
        """A WebSocket that the broker has accepted."""
        web = cls(*await asyncio.open_connection(*opened.address, ssl=tls))
        OPEN.append(RawClient(web.reader, web.writer, 5))
        request = {"host": "broker", "target": "/mqtt", "subprotocols": ["mqtt"], **request}
        web.writer.write(web.frames.send(Request(**request)))
        accepted = await web.event()
        assert isinstance(accepted, AcceptConnection), accepted
        assert (accepted.subprotocol, accepted.extensions) == ("mqtt", [])
        return web

    async def event(self) -> Any:
        while not self.events:
            data = await asyncio.wait_for(self.reader.read(65_536), PATIENCE)
            if not data:
                raise EOFError
            self.frames.receive_data(data)
            self.events.extend(self.frames.events())
        return self.events.pop(0)

    async def packet(self) -> Any:
        while not self.packets:
            event = await self.event()
            assert isinstance(event, BytesMessage), event
            self.messages += event.message_finished
            self.packets.extend(self.decoder.feed(bytes(event.data)))
        return self.packets.pop(0)

    def send(self, *events: Any) -> None:
        self.writer.write(b"".join(self.frames.send(event) for event in events))

    def put(self, *packets: Any) -> None:
        """MQTT packets, all in one frame."""
        self.send(
            BytesMessage(b"".join(packet if isinstance(packet, bytes) else encode(packet, 5) for packet in packets))
        )

    async def connect(self, name: str = "alice") -> Web:
        self.put(Connect(f"{name}-web", username=name, password=name[:1].encode()))
        assert (await self.packet()).reason == 0
        return self

    async def end(self) -> CloseConnection | None:
        """The close frame before the end of the socket, if there was one."""
        found: CloseConnection | None = None
        try:
            while True:
                event = await self.event()
                if isinstance(event, CloseConnection):
                    found = event
        except (EOFError, ConnectionError):
            return found
        finally:
            self.writer.close()


@asynccontextmanager
async def web(**options: Any) -> AsyncIterator[tuple[TableHouse, Broker, Opened, int]]:
    """A broker with a WebSocket listener beside its plain one."""
    listener = {name: options.pop(name) for name in ("origins", "trusting", "tls", "path") if name in options}
    async with running(**options) as (house, broker, port):
        scheme: Any = "wss" if listener.get("tls") else "ws"
        yield (
            house,
            broker,
            await broker.open(Listener("web", scheme, "127.0.0.1", **{"path": "/mqtt", **listener})),
            port,
        )


async def http(opened: Opened, request: bytes) -> bytes:
    """What the broker answers to any bytes, until it closes."""
    reader, writer = await asyncio.open_connection(*opened.address)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    return answer


def asking(target: str = "/mqtt", *more: str, protocol: str | None = "mqtt", version: str = "13") -> bytes:
    lines = [f"GET {target} HTTP/1.1", "Host: broker:9001", "Upgrade: websocket", "Connection: Upgrade", *more]
    lines += [f"Sec-WebSocket-Version: {version}", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    lines += [f"Sec-WebSocket-Protocol: {protocol}"] if protocol else []
    return "\r\n".join([*lines, "", ""]).encode()


# ---- clients that people use -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("secure", [False, True])
def test_paho_publishes_and_subscribes_over_websockets(tmp_path: Path, version: int, secure: bool) -> None:
    authority = Authority(tmp_path)
    files = TlsFiles(*authority.issue("here")) if secure else None

    async def go() -> None:
        async with web(tls=files) as (_, _, opened, _):

            def talk() -> list[bytes]:
                heard: list[bytes] = []
                done = threading.Event()

                def note(_client: Any, _data: Any, message: Any) -> None:
                    heard.append(message.payload)
                    if len(heard) == 3:
                        done.set()

                def publish(*_: Any) -> None:
                    for number in range(3):
                        client.publish("open/x", b"%d" % number * 70_000, number)

                client = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, protocol=version, transport="websockets")
                client.username_pw_set("alice", "a")
                if secure:
                    client.tls_set(str(authority.ca))
                client.on_connect = lambda *_: client.subscribe("open/#", 2)
                client.on_subscribe = publish
                client.on_message = note
                client.connect("127.0.0.1", opened.address[1])
                client.loop_start()
                done.wait(10)
                client.disconnect()
                client.loop_stop()
                return heard

            assert await asyncio.to_thread(talk) == [b"%d" % number * 70_000 for number in range(3)]

    run(go)


def test_aiomqtt_over_websockets_hears_a_plain_client() -> None:
    async def go() -> None:
        async with web(path="/deep/er") as (_, _, opened, port):
            plain = await RawClient.connect(port, "bob")
            async with aiomqtt.Client(
                *opened.address, username="alice", password="a", transport="websockets", websocket_path="/deep/er"
            ) as client:
                await client.subscribe("open/#", 1)
                plain.send(Publish("open/x", b"hello"))
                async for message in client.messages:
                    assert message.payload == b"hello"
                    break

    run(go, "asyncio")  # paho's sockets are watched by the loop, and uvloop has no add_reader for them in this version


# ---- frames ------------------------------------------------------------------------------------------------------------


@LOOPS
def test_packets_may_span_frames_and_frames_hold_many_packets(loop: str) -> None:
    """[MQTT-6.0.0-2]."""

    async def go() -> None:
        async with web() as (house, _, opened, _):
            client = await (await Web.open(opened)).connect()
            packets = [Publish("report/alice/x", b"%d" % number, 1, packet_id=number) for number in range(1, 101)]
            client.put(*packets)
            assert [(await client.packet()).packet_id for _ in packets] == list(range(1, 101))
            assert client.messages <= 3, "answers are batched: a frame a turn, not a frame a packet"
            data = encode(Publish("report/alice/x", b"split", 1, packet_id=200), 5)
            for index in range(len(data)):
                client.send(BytesMessage(data[index : index + 1]))
            assert await client.packet() == Puback(200)
            for index in range(len(data)):  # and one message in fragments
                client.send(BytesMessage(data[index : index + 1], message_finished=index == len(data) - 1))
                if index % 3 == 0:
                    client.send(Ping(b"between"))
            pongs = 0
            while not isinstance(event := await client.event(), BytesMessage):
                assert isinstance(event, Pong)
                assert event.payload == b"between"
                pongs += 1
            assert pongs
            assert client.decoder.feed(bytes(event.data)) == [Puback(200)]
            assert [publish.payload for publish in house.got[100:]] == [b"split", b"split"]

    run(go, loop)


@LOOPS
def test_a_flood_of_tiny_frames_is_taken_in_turns(loop: str) -> None:
    async def go() -> None:
        async with web() as (house, _, opened, port):
            other = await RawClient.connect(port, "bob")
            client = await (await Web.open(opened)).connect()
            data = b"".join(encode(Publish("report/alice/x", b"%d" % number), 5) for number in range(2_000))
            flood = b"".join(client.frames.send(BytesMessage(data[i : i + 1])) for i in range(len(data)))
            client.writer.write(flood)
            await until(lambda: house.got)
            other.send(Pingreq())
            await other.expect(Pingresp)
            assert len(house.got) < 2_000, "the other client was answered in between"
            await until(lambda: len(house.got) == 2_000)
            assert [publish.payload for publish in house.got] == [b"%d" % number for number in range(2_000)]

    run(go, loop)


def test_a_text_frame_ends_the_connection_and_fires_the_will() -> None:
    """[MQTT-6.0.0-1]."""

    async def go() -> None:
        async with web() as (house, _, opened, _):
            client = await (await Web.open(opened)).connect()
            client.send(BytesMessage(encode(Publish("report/alice/x", b"before"), 5)), TextMessage("hello"))
            end = await client.end()
            assert end is not None
            assert end.code == 1003
            await until(lambda: ("offline", "alice", False, True) in house.events)
            assert [publish.payload for publish in house.got] == [b"before"]

    run(go)


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x82\x03abc",  # not masked
        b"\xc2\x81\0\0\0\0a",  # a reserved bit, as if it were compressed
        b"\x83\x80\0\0\0\0",  # a reserved opcode
        b"\x80\x81\0\0\0\0a",  # a continuation of nothing
        b"\x09\x80\0\0\0\0",  # a fragmented ping
        b"\x89\xfe\x00\x7e\0\0\0\0",  # a ping of 126 bytes
        b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",  # longer than a length can be
    ],
)
def test_frames_that_may_not_be_end_the_connection(wrong: bytes) -> None:
    async def go() -> None:
        async with web() as (house, broker, opened, _):
            client = await (await Web.open(opened)).connect()
            client.writer.write(wrong)
            end = await client.end()
            assert end is not None
            assert end.code in (1002, 1009)
            await until(lambda: ("offline", "alice", False, True) in house.events and not broker.counters.connections)

    run(go)


def test_the_closing_handshake_goes_both_ways() -> None:
    async def go() -> None:
        async with web() as (house, broker, opened, _):
            client = await (await Web.open(opened)).connect()
            client.send(CloseConnection(1000, "bye"))
            end = await client.end()
            assert end is not None
            assert (end.code, end.reason) == (1000, "bye")
            await until(lambda: ("offline", "alice", False, True) in house.events)

            client = await (await Web.open(opened)).connect()
            client.put(Disconnect())
            event = await client.event()
            assert isinstance(event, CloseConnection)
            assert event.code == 1000
            client.send(event.response())
            assert await client.end() is None
            assert house.events[-1] == ("offline", "alice", True, True)
            await until(lambda: not broker.counters.connections)

            silent = await (await Web.open(opened)).connect()
            broker.disconnect("alice", Reason.ADMINISTRATIVE_ACTION)
            assert (await silent.packet()).reason == Reason.ADMINISTRATIVE_ACTION
            assert await silent.end() is not None, "who does not answer the close frame is not waited for"
            await until(lambda: not broker.counters.connections)

    run(go)


def test_a_client_that_does_not_read_is_bounded_as_on_any_socket() -> None:
    async def go() -> None:
        async with web(queue_bytes=200_000, write_bytes=20_000) as (_, broker, opened, port):
            client = await (await Web.open(opened)).connect()
            client.put(Subscribe(1, [Subscription("open/#", 0)]))
            assert isinstance(await client.packet(), Suback)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined] # a Transport
            plain = await RawClient.connect(port, "bob")
            for _ in range(300):
                plain.send(Publish("open/x", b"z" * 50_000))
                await plain.writer.drain()
            plain.send(Pingreq())
            await plain.expect(Pingresp)
            await until(lambda: broker.counters.dropped_qos0)
            client.send(*(Ping(b"x") for _ in range(1_000)))  # which are not answered either: answers would pile up
            client.writer.transport.abort()
            await until(lambda: broker.counters.connections == 1)

    run(go)


def test_keep_alive_holds_whatever_frames_come() -> None:
    async def go() -> None:
        async with web() as (_, broker, opened, _):
            client = await Web.open(opened)
            client.put(Connect("c", username="alice", password=b"a", keep_alive=1))
            assert (await client.packet()).reason == 0

            async def pings() -> None:
                while True:
                    client.send(Ping(b""))
                    await asyncio.sleep(0.1)

            pinging = asyncio.get_running_loop().create_task(pings())
            await until(lambda: broker.counters.disconnects[Reason.KEEP_ALIVE_TIMEOUT] == 1, "frames are not packets")
            pinging.cancel()
            client.writer.close()

    run(go)


# ---- the handshake -----------------------------------------------------------------------------------------------------


@LOOPS
def test_what_comes_behind_the_request_is_not_lost(loop: str) -> None:
    async def go() -> None:
        async with web() as (_, _, opened, _):
            reader, writer = await asyncio.open_connection(*opened.address)
            frames = WSConnection(ConnectionType.CLIENT)
            request = frames.send(Request(host="broker", target="/mqtt?x=1", subprotocols=["mqttv3.1", "mqtt"]))
            early = WSConnection(ConnectionType.CLIENT)
            early.send(Request(host="b", target="/"))
            masked = b"\x82\x80" + b"\0\0\0\0"  # an empty frame
            packet = encode(Connect("c", username="alice", password=b"a"), 5)
            masked += bytes([0x82, 0x80 | len(packet)]) + b"\0\0\0\0" + packet
            for byte in request[:-1]:
                writer.write(bytes([byte]))
                if byte == 10:
                    await writer.drain()
            writer.write(request[-1:] + masked)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert b"sec-websocket-protocol: mqtt\r\n" in answer.lower()
            assert b"extensions" not in answer.lower()
            frame = await asyncio.wait_for(reader.readexactly(2), PATIENCE)
            assert frame[0] == 0x82
            data = await asyncio.wait_for(reader.readexactly(frame[1]), PATIENCE)
            (connack,) = Decoder(server=False, level=5).feed(data)
            assert isinstance(connack, Connack)
            writer.close()

    run(go, loop)


def test_compression_is_not_offered() -> None:
    async def go() -> None:
        async with web() as (_, _, opened, _):
            await (await Web.open(opened, extensions=[PerMessageDeflate()])).connect()

    run(go)


@pytest.mark.parametrize(
    ("request_bytes", "status", "said"),
    [
        (asking("/"), 404, "/mqtt"),
        (asking("/mqtt/"), 404, "/mqtt"),
        (asking(protocol=None), 400, "subprotocol mqtt"),
        (asking(protocol="MQTT, chat"), 400, "subprotocol mqtt"),
        (asking(version="8"), 426, "version 13"),
        (b"GET /mqtt HTTP/1.1\r\nHost: broker\r\n\r\n", 400, "WebSocket"),
        (b"POST /mqtt HTTP/1.1\r\nHost: broker\r\nContent-Length: 0\r\n\r\n", 400, "WebSocket"),
        (b"\x10\x16\x00\x04MQTT\r\n\r\n", 400, "WebSocket"),
        (asking().replace(b"broker:9001", b"\xff\xfe"), 400, "WebSocket"),
        (asking().replace(b": mqtt", b": mqtt\xff"), 400, "WebSocket"),
        (asking("/mqtt", "Origin: https://evil.example"), 403, "origin"),
        (asking("/mqtt", "Origin: null"), 403, "origin"),
        (asking("/mqtt", "Origin: http://broker", "Origin: http://evil.example"), 403, "origin"),
        (asking("/mqtt", "X: " + "x" * HEAD_BYTES), 431, "8,192"),
        (b"x" * (HEAD_BYTES + 1), 431, "8,192"),
    ],
)
def test_what_is_no_request_for_mqtt_is_told_so(request_bytes: bytes, status: int, said: str) -> None:
    async def go() -> None:
        async with web() as (_, broker, opened, _):
            answer = (await http(opened, request_bytes)).decode()
            assert answer.startswith(f"HTTP/1.1 {status} "), answer
            head, _, body = answer.partition("\r\n\r\n")
            assert said in body
            assert f"Content-Length: {len(body.encode())}" in head
            await until(lambda: not broker.counters.connections)

    run(go)


@pytest.mark.parametrize(
    ("origin", "host", "origins", "trusting", "allowed"),
    [
        (None, "broker:9001", (), True, True),
        ("http://broker", "broker:9001", (), False, True),
        ("https://BROKER:8443", "broker:9001", (), False, True),
        ("http://[::1]:80", "[::1]:9001", (), True, True),
        ("http://127.0.0.1:8080", "127.0.0.1:9001", (), True, True),
        ("http://localhost", "localhost:9001", (), True, True),
        ("http://evil.example", "evil.example:9001", (), True, False),  # a name that was pointed at this machine
        ("http://evil.example", "evil.example:9001", (), False, True),  # where a password protects all the same
        ("http://evil.example", "broker", (), False, False),
        ("http://broker.evil.example", "broker", (), False, False),
        ("file://broker", "broker", (), False, False),
        ("https://panel.home.local", "broker", ("https://panel.home.local",), False, True),
        ("http://panel.home.local", "broker", ("https://panel.home.local",), False, False),
        ("https://panel.home.local", "broker", ("*",), True, True),
    ],
)
def test_pages_may_connect_from_the_same_host_or_where_they_are_named(
    origin: str | None, host: str, origins: tuple[str, ...], trusting: bool, allowed: bool
) -> None:
    async def go() -> None:
        async with web(origins=origins, trusting=trusting) as (_, _, opened, _):
            more = (f"Origin: {origin}",) if origin else ()
            reader, writer = await asyncio.open_connection(*opened.address)
            writer.write(asking("/mqtt", *more).replace(b"broker:9001", host.encode()))
            line = await asyncio.wait_for(reader.readline(), PATIENCE)
            assert (b" 101 " in line) is allowed, line
            writer.close()

    run(go)


def test_who_says_nothing_is_not_waited_for_and_counts() -> None:
    async def go() -> None:
        async with web(connect_timeout=0.3, connections_per_address=3) as (_, broker, opened, _):
            sockets = [await asyncio.open_connection(*opened.address) for _ in range(3)]
            await until(lambda: broker.counters.connections == 3)
            assert await http(opened, b"") == b""
            assert broker.counters.refused_per_address == 1
            for reader, writer in sockets:
                assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
                writer.close()
            await until(lambda: not broker.counters.connections)
            late = await Web.open(opened)  # a WebSocket without CONNECT is not kept either
            await late.end()
            await until(lambda: not broker.counters.connections)

    run(go)


def test_stopping_tells_clients_and_drops_who_is_not_one_yet() -> None:
    async def go() -> None:
        async with web() as (_, broker, opened, _):
            client = await (await Web.open(opened)).connect()
            reader, writer = await asyncio.open_connection(*opened.address)
            await until(lambda: broker.counters.connections == 2)
            stopping = asyncio.get_running_loop().create_task(broker.stop())
            assert (await client.packet()).reason == Reason.SERVER_SHUTTING_DOWN
            event = await client.event()
            assert isinstance(event, CloseConnection)
            client.send(event.response())
            assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
            await asyncio.wait_for(stopping, 2)
            writer.close()
            client.writer.close()

    run(go)
