"""How many deltas a second an Observer takes in, beside what its MQTT library alone takes in; and what many copies weigh.

A feeder in a process of its own plays the packets that a broker sends (retained snapshots, then deltas at QoS 1), as fast as they
are taken. The same bytes go to aiomqtt's and paho-mqtt's bare receive loops, and to the Observers on top of them.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import select
import socket
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiomqtt
import orjson
import paho.mqtt.client as paho
from aiomqtt.client import ProtocolVersion
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.client import blocking, connect
from gateway.wire.codec import Decoder, encode, encode_publish
from gateway.wire.packets import Connack, Connect, Pingreq, Pingresp, Puback, Publish, Suback, Subscribe
from tests.bench.measure import surroundings, typical
from tests.bench.steps import steps

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

PREFIX = "ctxt/bench.local/"
SCHEMA = "hyperty-catalogue://catalogue.ctxt-gateway.org/.well-known/dataschema/Context"
MODIFIED = "2026-01-01T00:00:00.000Z"
SENT_AT_ONCE = 200


def topic_of(number: int) -> str:
    """The topic of one object."""
    return f"{PREFIX}floor/{number // 100}/room/{number}"


def _snapshot(topic: str) -> bytes:
    return orjson.dumps(
        {
            "url": topic.replace("/", "://", 1),
            "schema": SCHEMA,
            "reporter": "sensor",
            "name": topic.rsplit("/", 1)[1],
            "epoch": 1,
            "version": 1,
            "created": MODIFIED,
            "modified": MODIFIED,
            "status": "live",
            "data": {
                "values": {"temperature": {"value": 20.0, "unit": "Cel"}, "humidity": {"value": 40, "unit": "%RH"}}
            },
        }
    )


def _deltas(objects: int, count: int) -> list[bytes]:
    """The packets, encoded: one object after the other, each version after the other."""
    found = []
    for number in range(count):
        payload = orjson.dumps(
            {
                "epoch": 1,
                "version": 2 + number // objects,
                "modified": MODIFIED,
                "merge": {"values": {"temperature": {"value": 21 + number // objects % 997 / 100}}},
            }
        )
        topic = f"delta/{topic_of(number % objects)}".encode()
        found.append(encode_publish(topic, payload, 5, qos=1, packet_id=number % 65_535 + 1))
    return found


def feed(objects: int, count: int, pipe: Connection) -> None:
    """A broker for one client: snapshots on SUBSCRIBE, then deltas when the pipe says so."""
    packets = _deltas(objects, count)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send(server.getsockname()[1])
        sock, _ = server.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _serve(sock, objects, packets, pipe)


def _serve(sock: socket.socket, objects: int, packets: list[bytes], pipe: Connection) -> None:
    decoder = Decoder(server=True)
    sock.settimeout(60)
    given = False
    going = 0
    begun = False
    acknowledged = 0
    while True:
        if not begun and pipe.poll():
            pipe.recv()
            begun = True
        # A broker's receive maximum bounds what is on its way.
        while begun and going < len(packets) and going - acknowledged < 10 * SENT_AT_ONCE:
            sock.sendall(b"".join(packets[going : going + SENT_AT_ONCE]))
            going += SENT_AT_ONCE
        if not select.select([sock], [], [], 0.01)[0]:
            continue
        data = sock.recv(1 << 16)
        if not data:
            return
        found = decoder.feed(data)
        while found:
            for packet in found:
                if isinstance(packet, Connect):
                    sock.sendall(encode(Connack(), 5))
                elif isinstance(packet, Subscribe):
                    sock.sendall(encode(Suback(packet.packet_id, [1] * len(packet.subscriptions)), 5))
                    if not given and any(each.topic_filter.startswith("snapshot/") for each in packet.subscriptions):
                        given = True
                        sock.sendall(
                            b"".join(
                                encode_publish(b"snapshot/" + topic.encode(), _snapshot(topic), 5, retain=True)
                                for topic in map(topic_of, range(objects))
                            )
                        )
                elif isinstance(packet, Puback):
                    acknowledged += 1
                elif isinstance(packet, Pingreq):
                    sock.sendall(encode(Pingresp(), 5))
                elif isinstance(packet, Publish) and packet.qos:
                    sock.sendall(encode(Puback(packet.packet_id), 5))
            found = decoder.feed(b"")


@contextmanager
def feeder(objects: int, count: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A feeder's port, and what lets the deltas flow."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=feed, args=(objects, count, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv(), lambda: ours.send("go")
    finally:
        process.join(0.2)
        process.kill()
        process.join()


FILTERS = [f"delta/{PREFIX}#", f"snapshot/{PREFIX}#"]


async def _bare_aiomqtt(port: int, go: Callable[[], None], objects: int, count: int) -> float:
    async with aiomqtt.Client("127.0.0.1", port, protocol=ProtocolVersion.V5) as client:
        await client.subscribe([(each, SubscribeOptions(qos=1)) for each in FILTERS])
        messages = aiter(client.messages)
        for _ in range(objects):
            await anext(messages)
        go()
        await anext(messages)
        begun = time.perf_counter()
        for _ in range(count - 1):
            await anext(messages)
        return time.perf_counter() - begun


async def _observer(port: int, go: Callable[[], None], objects: int, count: int) -> float:
    last = 1 + count // objects
    async with connect(f"mqtt://127.0.0.1:{port}") as client:
        if objects == 1:
            watched: Any = client.observe(topic_of(0).replace("/", "://", 1))
        else:
            watched = client.observe_all("ctxt://bench.local/")
        async with watched:
            first = asyncio.get_running_loop().create_future()
            done = asyncio.get_running_loop().create_future()
            seen = 0

            def sink(event: Any) -> None:
                nonlocal seen
                seen += 1
                if seen == 1:
                    first.set_result(time.perf_counter())
                if seen == count:
                    done.set_result(time.perf_counter())

            watched.on_change(sink)
            go()
            begun = await first
            ended = await done
            copies = [watched.copy] if objects == 1 else list(watched)
            assert len(copies) == objects
            assert all(copy.version == last for copy in copies)
            return float(ended - begun)


def _bare_paho(port: int, go: Callable[[], None], objects: int, count: int) -> float:
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    seen = 0
    times: list[float] = []

    def heard(_client: Any, _userdata: Any, _message: Any) -> None:
        nonlocal seen
        seen += 1
        if seen in (objects + 1, objects + count):
            times.append(time.perf_counter())
        if seen == objects:
            go()

    client.on_message = heard
    client.on_connect = lambda client, *_: client.subscribe([(each, SubscribeOptions(qos=1)) for each in FILTERS])
    client.connect("127.0.0.1", port)
    while len(times) < 2:
        client.loop(1.0)
    client.disconnect()
    return times[1] - times[0]


def _blocking(port: int, go: Callable[[], None], objects: int, count: int) -> float:
    times: list[float] = []
    seen = 0
    with blocking.connect(f"mqtt://127.0.0.1:{port}") as client:
        if objects == 1:
            watched: Any = client.observe(topic_of(0).replace("/", "://", 1))
        else:
            watched = client.observe_all("ctxt://bench.local/")
        with watched:

            def sink(_event: Any) -> None:
                nonlocal seen
                seen += 1
                if seen in (1, count):
                    times.append(time.perf_counter())

            # On the client's own thread: what its callbacks' thread does is the application's.
            client._connection.do(lambda: watched._observed.sinks.append(sink))
            go()
            while len(times) < 2:
                time.sleep(0.01)
    return times[1] - times[0]


RUNS: dict[str, Callable[..., float]] = {
    "aiomqtt": lambda *rest: asyncio.run(_bare_aiomqtt(*rest)),
    "observer": lambda *rest: asyncio.run(_observer(*rest)),
    "paho": _bare_paho,
    "blocking observer": _blocking,
}


def observer(arguments: Namespace) -> dict[str, Any]:
    """An Observer's deltas a second, beside the bare receive loops of aiomqtt and paho-mqtt; medians of alternating rounds."""
    count = arguments.deltas
    result: dict[str, Any] = {}
    with steps(2 * len(RUNS) * arguments.rounds + 1) as step:
        for objects in (1, arguments.objects):
            rates: dict[str, list[float]] = {name: [] for name in RUNS}
            for turn in range(arguments.rounds):
                for name, run in RUNS.items():
                    step(f"{name}, {objects} objects, round {turn + 1}")
                    with feeder(objects, count) as (port, go):
                        rates[name].append((count - 1) / run(port, go, objects, count))
            label = "one_object" if objects == 1 else "subtree"
            for name, found in rates.items():
                result[f"{label}_{name.replace(' ', '_')}_deltas_per_second"] = typical(found)
            for name, bare in (("observer", "aiomqtt"), ("blocking observer", "paho")):
                ratios = [a / b for a, b in zip(rates[name], rates[bare], strict=True)]
                result[f"{label}_{name.replace(' ', '_')}_against_bare_{bare}"] = typical(ratios)
        step("memory")
        # In a process of its own: nothing that was freed before is used again.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            result["bytes_per_copy_bytes"] = pool.submit(weigh, arguments.copies).result()
    return {**result, "objects": arguments.objects, "copies": arguments.copies, **surroundings()}


def weigh(copies: int) -> float:
    """Bytes that a copy takes in an Observer's process, its JSON of about 330 bytes included."""

    async def work() -> float:
        with feeder(copies, 1) as (port, _):
            async with connect(f"mqtt://127.0.0.1:{port}") as client:
                gc.collect()
                before = _resident()
                async with client.observe_all("ctxt://bench.local/") as watched:
                    await watched.wait_for(lambda held: len(held) == copies, 60)
                    gc.collect()
                    return (_resident() - before) / copies

    return asyncio.run(work())


def _resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError
