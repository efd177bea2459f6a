"""Each of the broker's counters counts what it says, over real sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.broker.counters import families
from gateway.broker.listeners import Listener, TlsFiles
from gateway.wire.packets import (
    Disconnect,
    Pingreq,
    Property,
    Puback,
    Publish,
    Pubrec,
    Reason,
    Will,
)
from tests.broker.certificates import Authority
from tests.broker.world import RawClient, TableHouse, run, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.broker.server import Broker
    from gateway.wire.packets import Properties

KEPT: Properties = {Property.SESSION_EXPIRY_INTERVAL: 100}


def read(broker: Broker, name: str) -> dict[str, float]:
    """The samples of one family; those that are 0 left out."""
    (found,) = [family for family in families(broker) if family.name == f"ctxt_broker_{name}"]
    return {label: value for label, value in found.samples.items() if value}


def test_messages_and_bytes_are_counted_by_qos() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            house.kept["open/kept"] = b"1234567"
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/x", "open/y", qos=2)
            alice = await RawClient.connect(port, "alice")
            alice.send(
                Publish("open/x", b"a"),
                Publish("report/alice/x", b"12"),
                Publish("open/x", b"bc", 1, packet_id=1),
                Publish("open/y", b"def", 2, packet_id=2),
                Publish("delta/mine", b"ghij", 1, packet_id=3),
            )
            assert len(await bob.collect(3)) == 3
            for kind in (Puback, Pubrec, Puback):
                await alice.expect(kind)
            assert read(broker, "publishes_received_total") == {"0": 2, "1": 2, "2": 1}
            assert read(broker, "payload_bytes_received_total") == {"0": 3, "1": 6, "2": 3}
            assert read(broker, "publishes_sent_total") == {"0": 1, "1": 1, "2": 1}
            assert read(broker, "payload_bytes_sent_total") == {"0": 1, "1": 2, "2": 3}
            assert read(broker, "denied_total") == {"publish": 1}
            broker.send(broker.route("open/x"), b"four", 1)
            await bob.collect(1)
            await bob.subscribe("open/kept", qos=1)
            await bob.collect(1)
            assert read(broker, "publishes_sent_total") == {"0": 1, "1": 3, "2": 1}
            assert read(broker, "payload_bytes_sent_total") == {"0": 1, "1": 13, "2": 3}
            assert read(broker, "subscriptions") == {"": 3}
            assert read(broker, "inflight_messages") == {"": 4}
            received = read(broker, "bytes_received_total")[""]
            alice.send(Pingreq())
            await alice.next()
            assert read(broker, "bytes_received_total") == {"": received + 2}
            assert read(broker, "bytes_sent_total")[""] > 100

    run(go)


def test_what_waits_and_what_is_dropped_is_counted() -> None:
    async def go() -> None:
        async with running(queue_messages=4) as (house, broker, port):
            house.read["mallory"] = ["open/#"]
            narrow: Properties = {**KEPT, Property.RECEIVE_MAXIMUM: 1, Property.MAXIMUM_PACKET_SIZE: 100}
            bob = await RawClient.connect(port, "bob", properties=narrow)
            await bob.subscribe("open/#", qos=1)
            for qos, payload in ((1, b"sent"), (1, b"waits"), (0, b"gives way"), (1, b"x" * 100)):
                broker.publish("open/x", payload, qos=qos)
            broker.publish("open/x", b"expires", qos=1, properties={Property.MESSAGE_EXPIRY_INTERVAL: 0})
            broker.publish("open/secret", b"no longer", qos=1)
            assert read(broker, "queued_messages") == {"": 4}
            assert read(broker, "queued_total") == {"": 4}
            assert read(broker, "queued_bytes") == {"": broker.queued}
            assert read(broker, "dropped_total") == {"too_large": 1}
            broker.publish("open/x", b"takes its place", qos=1)
            assert read(broker, "dropped_total") == {"too_large": 1, "qos0": 1}
            broker.publish("open/x", b"one too many", qos=1)
            broker.publish("open/x", b"while it is sent away", qos=1)
            assert read(broker, "dropped_total") == {"too_large": 1, "qos0": 1, "queue": 2}
            assert await bob.ended() == Reason.QUOTA_EXCEEDED
            assert read(broker, "disconnects_total") == {"0x97": 1}
            house.read["bob"] = ["open/x"]
            house.generation += 1
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=KEPT)
            assert [publish.payload for publish in await bob.collect(3)] == [b"sent", b"waits", b"takes its place"]
            assert read(broker, "dropped_total") == {"too_large": 1, "qos0": 1, "queue": 2, "expired": 1}
            assert read(broker, "denied_total") == {"receive": 1}
            assert not read(broker, "queued_bytes")

    run(go)


def test_retained_messages_and_those_without_room_are_counted() -> None:
    async def go() -> None:
        async with running(retained_messages=2) as (_, broker, port):
            alice = await RawClient.connect(port, "alice")
            for number in range(3):
                alice.send(Publish(f"open/{number}", b"1", 1, True, packet_id=1))
                await alice.expect(Puback)
            assert read(broker, "retained_messages") == {"": 2}
            assert read(broker, "retained_bytes") == {"": broker.retained.bytes}
            assert read(broker, "retained_refused_total") == {"": 1}

    run(go)


def test_how_clients_come_and_go_is_counted() -> None:
    async def go() -> None:
        async with running(connect_timeout=0.2, sessions=2) as (_, broker, port):
            await RawClient.connect(port, "alice", password=b"wrong")
            await RawClient.connect(port, "alice", 4, client_id="", clean_start=False)
            silent = await RawClient.open(port)
            garbled = await RawClient.open(port)
            garbled.send(b"\xff\xff")
            await garbled.ended()
            broker.look(broker.clock() + 1)
            await silent.ended()
            assert read(broker, "connects_refused_total") == {"0x82": 1, "0x85": 1, "0x86": 1, "0x8d": 1}
            assert read(broker, "malformed_total") == {"": 1}
            assert not read(broker, "connects_total")
            alice = await RawClient.connect(port, "alice", properties=KEPT)
            again = await RawClient.connect(port, "alice", properties=KEPT)
            assert await alice.ended() == Reason.SESSION_TAKEN_OVER
            assert read(broker, "takeovers_total") == {"": 1}
            again.send(Disconnect())
            await again.ended()
            bob = await RawClient.connect(port, "bob", properties=KEPT)
            bob.drop()
            await until(lambda: read(broker, "departures_total") == {"disconnect": 1, "lost": 1})
            assert read(broker, "sessions") == {"away": 2}
            mallory = await RawClient.connect(port, "mallory")
            assert read(broker, "sessions_ended_total") == {"displaced": 1}
            assert read(broker, "sessions") == {"connected": 1, "away": 1}
            broker.sweep(broker.clock() + 101)
            assert read(broker, "sessions_ended_total") == {"displaced": 1, "expired": 1}
            await mallory.subscribe("open/x", "secret/#")
            assert read(broker, "denied_total") == {"subscribe": 1}
            mallory.send(b"\xf0\x00")
            await mallory.ended()
            assert read(broker, "disconnects_total") == {"0x82": 1, "0x8e": 1}
            assert read(broker, "connects_total") == {"": 4}
            await until(lambda: not read(broker, "connections"))

    run(go)


def test_sockets_beyond_the_bounds_are_counted_by_bound() -> None:
    async def go() -> None:
        async with running(connections=3, connections_per_address=2) as (_, broker, port):
            for _ in range(2):
                await RawClient.connect(port, "alice", client_id="")
            assert await (await RawClient.open(port)).ended() is None
            assert read(broker, "sockets_refused_total") == {"address": 1}
            assert broker.enter("elsewhere")
            assert await (await RawClient.open(port)).ended() is None
            assert read(broker, "sockets_refused_total") == {"address": 1, "connections": 1}
            broker.leave("elsewhere")
            assert read(broker, "connections") == {"": 2}

    run(go)


def test_wills_published_and_denied_are_counted() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            for topic in ("open/will", "secret/will"):
                client = await RawClient.connect(port, "alice", will=Will(topic, b"gone"))
                client.drop()
            await until(lambda: read(broker, "departures_total") == {"lost": 2})
            assert read(broker, "wills_total") == {"": 1}
            assert read(broker, "denied_total") == {"will": 1}

    run(go)


def test_failed_handshakes_are_counted_by_kind(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.issue("127.0.0.1")

    async def go() -> None:
        async with running(connect_timeout=0.3) as (_, broker, _):
            tls = TlsFiles(pair.certificate, pair.key)
            secure = await broker.open(Listener("secure", "mqtts", "127.0.0.1", tls=tls))
            web = await broker.open(Listener("web", "ws", "127.0.0.1", path="/mqtt"))
            for opened, text in ((secure, b"no TLS at all\n"), (web, b"GET / HTTP/1.1\r\n\r\n"), (web, b"GET")):
                reader, writer = await asyncio.open_connection(*opened.address)
                writer.write(text)
                await reader.read()
                writer.close()
            assert read(broker, "handshakes_failed_total") == {"tls": 1, "websocket": 2}

    run(go)
