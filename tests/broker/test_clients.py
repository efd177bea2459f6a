"""The clients that people use, against the broker: mosquitto's programs, paho-mqtt, aiomqtt."""

from __future__ import annotations

import asyncio
import shutil
import threading
from typing import TYPE_CHECKING, Any

import aiomqtt
import paho.mqtt.client
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.wire.packets import Reason
from tests.broker.world import TableHouse, run, running, until

if TYPE_CHECKING:
    from gateway.broker.server import Broker

PAHO: Any = paho.mqtt.client  # typed differently by the package and by its stubs
PAHO_PROPERTIES: Any = Properties

VERSIONS = pytest.mark.parametrize("version", ["311", "5"])
QOS = pytest.mark.parametrize("qos", [0, 1, 2])

needs_mosquitto = pytest.mark.skipif(
    shutil.which("mosquitto_pub") is None, reason="mosquitto_pub is missing: apt install mosquitto-clients"
)


async def mosquitto(program: str, port: int, name: str, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        f"mosquitto_{program}",
        *("-h", "127.0.0.1", "-p", str(port), "-u", name, "-P", name[:1], *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def subscribed(broker: Broker, client: str) -> None:
    await until(lambda: any(s.client == client and s.subscriptions for s in broker.sessions.values()), "SUBSCRIBE")


@needs_mosquitto
@VERSIONS
@QOS
def test_mosquittos_programs_publish_and_subscribe(version: str, qos: int) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            reader = await mosquitto(
                "sub", port, "bob", "-V", version, "-q", str(qos), "-C", "3", "-W", "10", "-v", "-t", "open/#"
            )
            await subscribed(broker, "bob")
            for text in ("one", "two", "three"):
                writer = await mosquitto(
                    "pub", port, "alice", "-V", version, "-q", str(qos), "-t", f"open/{text}", "-m", text
                )
                _, errors = await writer.communicate()
                assert (writer.returncode, errors) == (0, b"")
            out, _ = await reader.communicate()
            assert out.decode().splitlines() == ["open/one one", "open/two two", "open/three three"]
            report = await mosquitto(
                "pub", port, "alice", "-V", version, "-q", str(qos), "-t", "report/alice/x", "-m", "{}"
            )
            await report.communicate()
            await until(lambda: [(p.topic, p.qos) for p in house.got] == [("report/alice/x", qos)])

    run(go)


@needs_mosquitto
def test_mosquitto_pub_is_told_why_it_may_not() -> None:
    async def go() -> None:
        async with running() as (_, _, port):
            writer = await mosquitto("pub", port, "mallory", "-V", "5", "-q", "1", "-t", "report/alice/x", "-m", "1")
            _, errors = await writer.communicate()
            assert b"Not authorized" in errors
            wrong = await mosquitto("pub", port, "alice", "-P", "wrong", "-V", "5", "-t", "open/x", "-m", "1")
            _, errors = await wrong.communicate()
            assert wrong.returncode
            assert b"Not authorized" in errors or b"Bad" in errors or b"not authorised" in errors

    run(go)


@needs_mosquitto
@VERSIONS
def test_mosquitto_sub_gets_ten_thousand_retained_messages(version: str) -> None:
    async def go() -> None:
        house = TableHouse()
        house.kept = {f"snapshot/o/{i}": b"%d" % i for i in range(10_000)}
        async with running(house) as (_, _, port):
            reader = await mosquitto(
                "sub",
                port,
                "bob",
                "-V",
                version,
                "-q",
                "1",
                "-C",
                "10000",
                "-W",
                "30",
                "-F",
                "%t %r %p",
                "-t",
                "snapshot/#",
            )
            out, _ = await reader.communicate()
            assert out.decode().splitlines() == [f"snapshot/o/{i} 1 {i}" for i in range(10_000)]

    run(go)


@VERSIONS
@QOS
def test_paho_publishes_subscribes_and_leaves_a_will(version: str, qos: int) -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            payloads = await asyncio.to_thread(paho_round, port, version, qos)
            assert payloads == [b"%d" % i for i in range(50)]
            await until(lambda: any(p.topic == "presence/bob" for p in house.got), "the will")

    run(go)


def paho_round(port: int, version: str, qos: int) -> list[bytes]:
    protocol = PAHO.MQTTv5 if version == "5" else PAHO.MQTTv311
    client = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, client_id="p", protocol=protocol)
    client.username_pw_set("bob", "b")
    client.will_set("presence/bob", "offline", qos=qos)
    got: list[bytes] = []
    ready, done = threading.Event(), threading.Event()

    def on_message(_client: Any, _data: Any, message: Any) -> None:
        got.append(message.payload)
        if len(got) == 50:
            done.set()

    client.on_message = on_message
    client.on_subscribe = lambda *_: ready.set()
    client.on_connect = lambda client, *_: client.subscribe("open/#", qos=qos)
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert ready.wait(5)
    for i in range(50):
        client.publish("open/x", b"%d" % i, qos=qos)
    assert done.wait(5)
    # Gone without a DISCONNECT, as when a device loses its power.
    sock = client.socket()
    assert sock is not None
    client.loop_stop()
    sock.close()
    return got


def test_paho_gets_the_reason_of_a_refusal() -> None:
    def publish(port: int) -> list[tuple[int, str]]:
        client = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, client_id="p", protocol=PAHO.MQTTv5)
        client.username_pw_set("alice", "a")
        answers: list[tuple[int, str]] = []
        done = threading.Event()

        def on_publish(_client: Any, _data: Any, _mid: int, reason: Any, properties: Any) -> None:
            answers.append((reason.value, getattr(properties, "ReasonString", "")))
            done.set()

        client.on_publish = on_publish
        client.connect("127.0.0.1", port)
        client.loop_start()
        properties = PAHO_PROPERTIES(PacketTypes.PUBLISH)
        properties.UserProperty = [("id", "1")]
        client.publish("report/alice/x", b"bad", qos=1, properties=properties)
        assert done.wait(5)
        client.disconnect()
        client.loop_stop()
        return answers

    async def go() -> None:
        house = TableHouse()
        house.answers["report/alice/x"] = (Reason.PAYLOAD_FORMAT_INVALID, "400 not JSON")
        async with running(house) as (_, _, port):
            assert await asyncio.to_thread(publish, port) == [(0x99, "400 not JSON")]

    run(go)


@VERSIONS
@QOS
def test_aiomqtt_publishes_and_subscribes(version: str, qos: int) -> None:
    async def go() -> None:
        protocol = aiomqtt.ProtocolVersion.V5 if version == "5" else aiomqtt.ProtocolVersion.V311
        async with (
            running() as (house, _, port),
            aiomqtt.Client("127.0.0.1", port, username="alice", password="a", protocol=protocol) as client,
        ):
            await client.subscribe("open/#", qos=qos)
            for i in range(20):
                await client.publish("open/x", b"%d" % i, qos=qos)
            got = []
            async for message in client.messages:
                got.append(int(str(message.payload, "ascii")))
                if len(got) == 20:
                    break
            assert got == list(range(20))
            await client.publish("report/alice/x", b"{}", qos=qos)
            await until(lambda: house.got)

    run(go, "asyncio")  # aiomqtt needs add_reader on paho's socket


@VERSIONS
def test_aiomqtt_is_refused_with_a_wrong_password(version: str) -> None:
    async def go() -> None:
        protocol = aiomqtt.ProtocolVersion.V5 if version == "5" else aiomqtt.ProtocolVersion.V311
        async with running() as (_, _, port):
            with pytest.raises(aiomqtt.MqttError):
                async with aiomqtt.Client("127.0.0.1", port, username="alice", password="x", protocol=protocol):
                    pass

    run(go, "asyncio")
