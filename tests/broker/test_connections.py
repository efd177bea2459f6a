"""Admission, take-over, keep-alive, ends and bad bytes, over real sockets."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from gateway.broker.house import Limits
from gateway.broker.listeners import Listener, TlsFiles
from gateway.broker.server import Broker
from gateway.wire.codec import encode
from gateway.wire.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Property,
    Puback,
    Publish,
    Reason,
    Subscribe,
    Subscription,
    Will,
)
from tests.broker.certificates import Authority
from tests.broker.world import PROTOCOL_ERROR, RawClient, TableHouse, close_all, run, running, until

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.broker.house import Peer
    from gateway.broker.session import Session

CONNECT_5 = encode(Connect("x", username="alice", password=b"a"), 5)


def test_a_client_is_admitted_in_both_dialects_and_told_the_limits() -> None:
    async def go() -> None:
        async with running(receive_maximum=7, max_packet=5_000, topic_aliases=3) as (house, broker, port):
            five = await RawClient.connect(port, "alice")
            assert five.connack.reason == 0
            properties = five.connack.properties
            assert properties is not None
            assert properties[Property.RECEIVE_MAXIMUM] == 7
            assert properties[Property.MAXIMUM_PACKET_SIZE] == 5_000
            assert properties[Property.TOPIC_ALIAS_MAXIMUM] == 3
            assert properties[Property.SHARED_SUBSCRIPTION_AVAILABLE] == 1
            assert Property.ASSIGNED_CLIENT_IDENTIFIER not in properties
            three = await RawClient.connect(port, "bob", 4)
            assert three.connack == Connack()
            assert broker.clients() == {"alice", "bob"}
            assert [event[:2] for event in house.events] == [("online", "alice"), ("online", "bob")]
            assert house.peers[0].address == "127.0.0.1"
            assert house.peers[0].loopback

    run(go)


@pytest.mark.parametrize("level", [4, 5])
def test_a_wrong_password_is_refused_with_the_dialects_own_code(level: int) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            client = await RawClient.connect(port, "alice", level, password=b"wrong")
            assert client.connack.reason == Reason.BAD_USER_NAME_OR_PASSWORD
            assert await client.ended() is None
            assert broker.counters.connects_refused == {Reason.BAD_USER_NAME_OR_PASSWORD: 1}
            assert not broker.sessions
            assert not house.events

    run(go)


def test_without_a_name_the_house_decides() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            refused = await RawClient.connect(port, None, client_id="c")
            assert refused.connack.reason == Reason.BAD_USER_NAME_OR_PASSWORD
            house.anonymous = True
            admitted = await RawClient.connect(port, None, client_id="c")
            assert admitted.connack.reason == 0
            assert broker.clients() == {"anonymous"}

    run(go)


def test_an_empty_client_id_is_assigned_but_in_3_1_1_only_to_clean_sessions() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            five = await RawClient.connect(port, "alice", client_id="")
            assigned = (five.connack.properties or {})[Property.ASSIGNED_CLIENT_IDENTIFIER]
            assert ("alice", assigned) in broker.sessions
            clean = await RawClient.connect(port, "alice", 4, client_id="")
            assert clean.connack.reason == 0
            kept = await RawClient.connect(port, "alice", 4, client_id="", clean_start=False)
            assert kept.connack.reason == Reason.CLIENT_IDENTIFIER_NOT_VALID

    run(go)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"client_id": "x" * 600}, Reason.CLIENT_IDENTIFIER_NOT_VALID),
        ({"properties": {Property.AUTHENTICATION_METHOD: "SCRAM"}}, Reason.BAD_AUTHENTICATION_METHOD),
    ],
)
def test_what_is_not_offered_is_refused_by_name(fields: dict[str, Any], reason: Reason) -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            client = await RawClient.connect(port, "alice", **fields)
            assert client.connack.reason == reason
            assert not house.peers, "nobody is authenticated for nothing"

    run(go)


def test_packets_behind_the_connect_wait_for_the_password_check() -> None:
    async def go() -> None:
        house = TableHouse()
        house.gate = asyncio.Event()
        async with running(house) as (_, _, port):
            client = await RawClient.open(port)
            client.send(CONNECT_5, Publish("report/alice/x", b"1", 1, packet_id=1), Pingreq())
            await asyncio.sleep(0.05)
            client.send(Publish("report/alice/x", b"2", 1, packet_id=2))
            await asyncio.sleep(0.05)
            assert not house.got
            house.gate.set()
            await client.expect(Connack)
            assert {type(await client.next()) for _ in range(3)} == {Pingresp, Puback}
            assert [publish.payload for publish in house.got] == [b"1", b"2"]

    run(go)


def test_a_flood_behind_the_connect_is_bounded() -> None:
    async def go() -> None:
        house = TableHouse()
        house.gate = asyncio.Event()
        async with running(house, max_packet=10_000) as (_, broker, port):
            client = await RawClient.open(port)
            client.send(CONNECT_5)
            client.send(b"\xc0\x00" * 1_000_000)
            await asyncio.sleep(0.2)
            assert broker.counters.bytes_in < 1_000_000
            client.drop()
            house.gate.set()
            await until(lambda: not broker.counters.connections)
            assert not broker.sessions

    run(go)


def test_a_wrong_password_with_a_victims_client_id_changes_nothing() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            victim = await RawClient.connect(
                port, "alice", client_id="panel", properties={Property.SESSION_EXPIRY_INTERVAL: 60}
            )
            await victim.subscribe("open/#")
            for clean in (True, False):
                thief = await RawClient.connect(port, "alice", client_id="panel", password=b"?", clean_start=clean)
                assert thief.connack.reason == Reason.BAD_USER_NAME_OR_PASSWORD
            broker.publish("open/door", b"still here", qos=0)
            assert (await victim.expect(Publish)).payload == b"still here"

    run(go)


def test_a_name_cannot_be_swapped_while_a_password_is_checked() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            mallory = await RawClient.connect(port, "mallory", client_id="same", clean_start=False)
            house.gate = asyncio.Event()
            second = await RawClient.open(port)
            second.send(Connect("same", clean_start=False, username="alice", password=b"wrong"))
            await asyncio.sleep(0.05)
            mallory.send(Publish("report/alice/x", b"forged", 1, packet_id=9))
            assert (await mallory.expect(Puback)).reason == Reason.NOT_AUTHORIZED
            house.gate.set()
            assert (await second.expect(Connack)).reason == Reason.BAD_USER_NAME_OR_PASSWORD
            mallory.send(Publish("report/mallory/x", b"own", 1, packet_id=10))
            assert (await mallory.expect(Puback)).reason == 0
            assert [publish.topic for publish in house.got] == ["report/mallory/x"]
            assert broker.clients() == {"mallory"}

    run(go)


@pytest.mark.parametrize("level", [4, 5])
def test_the_same_client_takes_its_own_session_over(level: int) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            first = await RawClient.connect(port, "alice", level)
            second = await RawClient.connect(port, "alice", level)
            assert await first.ended() == (Reason.SESSION_TAKEN_OVER if level == 5 else None)
            second.send(Pingreq())
            await second.expect(Pingresp)
            assert broker.counters.takeovers == 1
            assert house.events == [
                ("online", "alice", False, False),
                ("offline", "alice", False, False),
                ("online", "alice", False, False),
            ]

    run(go)


def test_another_users_client_id_is_another_session() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            alice = await RawClient.connect(port, "alice", client_id="panel")
            bob = await RawClient.connect(port, "bob", client_id="panel")
            alice.send(Pingreq())
            bob.send(Pingreq())
            await alice.expect(Pingresp)
            await bob.expect(Pingresp)
            assert set(broker.sessions) == {("alice", "panel"), ("bob", "panel")}

    run(go)


def test_a_silent_client_is_disconnected_after_one_and_a_half_keep_alives() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            silent = await RawClient.connect(port, "alice", keep_alive=1, will=Will("presence/alice", b"offline"))
            older = await RawClient.connect(port, "mallory", 4, keep_alive=1)
            busy = await RawClient.connect(port, "bob", 4, keep_alive=1)
            loop = asyncio.get_running_loop()
            start = loop.time()
            ending = asyncio.create_task(silent.ended())
            while not ending.done():
                busy.send(Pingreq())
                await busy.expect(Pingresp)
                await asyncio.sleep(0.1)
            assert await ending == Reason.KEEP_ALIVE_TIMEOUT
            assert await older.ended() is None
            assert loop.time() - start >= 1.5
            assert broker.clients() == {"bob"}
            await until(lambda: [(p.topic, p.payload) for p in house.got] == [("presence/alice", b"offline")])

    run(go)


def test_keep_alive_is_judged_by_the_clock_that_is_given() -> None:
    async def go() -> None:
        house = TableHouse()
        now = 1_000.0
        broker = house.broker = Broker(house, Limits(max_keep_alive=100), clock=lambda: now)
        _, port = await broker.listen("127.0.0.1", 0)
        longer = await RawClient.connect(port, "alice", keep_alive=60_000)
        assert (longer.connack.properties or {})[Property.SERVER_KEEP_ALIVE] == 100
        never = await RawClient.connect(port, "bob", 4, keep_alive=0)
        broker.look(now)
        now += 149
        broker.look(now)
        assert broker.clients() == {"alice", "bob"}
        now += 2
        broker.look(now)
        assert broker.clients() == {"bob"}
        assert await longer.ended() == Reason.KEEP_ALIVE_TIMEOUT
        never.send(Pingreq())
        await never.expect(Pingresp)
        await close_all()
        await broker.stop()

    run(go)


def test_a_connection_that_says_nothing_is_closed_in_time() -> None:
    async def go() -> None:
        async with running(connect_timeout=0.3) as (_, broker, port):
            idle = [await RawClient.open(port) for _ in range(20)]
            dribble = await RawClient.open(port)
            ending = asyncio.create_task(dribble.ended())
            for byte in CONNECT_5[:-1]:
                if ending.done():
                    break
                dribble.send(bytes((byte,)))
                await asyncio.sleep(0.05)
            assert await ending is None
            for client in idle:
                assert await client.ended() is None
            await until(lambda: not broker.counters.connections)

    run(go)


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "publish first": encode(Publish("report/alice/x", b"1"), 4),
    "pingreq first": b"\xc0\x00",
    "connack from a client": b"\x20\x02\x00\x00",
    "unending length": b"\x10\xff\xff\xff\xff\xff",
    "reserved type 0": b"\x00\x00",
    "huge connect": b"\x10\xff\xff\xff\x7f",
    "wrong protocol name": b"\x10\x0e\x00\x04MQTX\x04\x02\x00\x3c\x00\x02id",
    "connect that ends early": b"\x10\x04\x00\x04MQ",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_instead_of_a_connect_closes_the_connection(name: str) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            client = await RawClient.open(port, 4)
            client.send(GARBAGE[name])
            await client.ended()
            assert broker.counters.malformed == 1
            assert not house.peers
            other = await RawClient.connect(port, "alice")
            assert other.connack.reason == 0

    run(go)


@pytest.mark.parametrize("level", [3, 6])
def test_another_protocol_level_is_refused_in_3_1_1s_words(level: int) -> None:
    async def go() -> None:
        async with running() as (_, _, port):
            client = await RawClient.open(port, 4)
            client.send(b"\x10\x0e\x00\x04MQTT" + bytes((level,)) + b"\x02\x00\x3c\x00\x02id")
            assert (await client.expect(Connack)).reason == Reason.UNSUPPORTED_PROTOCOL_VERSION
            assert await client.ended() is None

    run(go)


BAD = {
    "second connect": (CONNECT_5, PROTOCOL_ERROR),
    "reserved type": (b"\x00\x00", None),
    "suback from a client": (b"\x90\x04\x00\x01\x00\x00", None),
    "qos 3": (b"\x36\x07\x00\x01t\x00\x01\x00x", None),
    "wildcard in a topic": (b"\x30\x06\x00\x03a/+\x00", None),
    "empty topic without alias": (b"\x30\x03\x00\x00\x00", None),
    "bad utf-8 in a topic": (b"\x30\x05\x00\x02\xc3\x28\x00", None),
    "surrogate in a topic": (b"\x30\x06\x00\x03\xed\xa0\x80\x00", None),
    "nul in a topic": (b"\x30\x05\x00\x02a\x00\x00", None),
    "topic longer than the packet": (b"\x30\x04\x00\x50ab", None),
    "packet id 0": (b"\x32\x06\x00\x01t\x00\x00\x00", None),
    "too large a packet": (b"\x30\xff\xff\xff\x7f", Reason.PACKET_TOO_LARGE),
    "unending length": (b"\x30\xff\xff\xff\xff\xff", None),
    "unknown property": (b"\x30\x06\x00\x01t\x02\x7f\x00", None),
    "topic alias too large": (b"\x30\x07\x00\x01t\x03\x23\xff\xff", Reason.TOPIC_ALIAS_INVALID),
    "topic alias never set": (b"\x30\x06\x00\x00\x03\x23\x00\x01", PROTOCOL_ERROR),
    "subscribe without a filter": (b"\x82\x03\x00\x01\x00", None),
    "auth": (encode(Auth(0x18), 5), PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_bytes_end_the_connection_with_a_reason_and_nobody_elses(name: str) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            data, expected = BAD[name]
            good = await RawClient.connect(port, "bob")
            bad = await RawClient.connect(port, "alice")
            bad.send(Publish("report/alice/before", b"1"), data, Publish("report/alice/after", b"2"))
            reason = await bad.ended()
            assert reason is not None
            assert reason >= 0x80
            if expected is not None:
                assert reason == expected
            await until(lambda: house.got, "what came before the bad bytes counts")
            assert [publish.topic for publish in house.got] == ["report/alice/before"]
            good.send(Pingreq())
            await good.expect(Pingresp)
            assert ("offline", "alice", False, True) in house.events
            assert broker.counters.malformed <= 1

    run(go)


def test_bad_bytes_from_a_3_1_1_client_just_close_the_connection() -> None:
    async def go() -> None:
        async with running() as (_, _, port):
            client = await RawClient.connect(port, "alice", 4)
            client.send(b"\x36\x05\x00\x01t\x00\x01")
            assert await client.ended() is None

    run(go)


def test_a_packet_cut_off_by_the_end_of_the_connection_is_not_taken() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            client = await RawClient.connect(port, "alice", 4)
            client.send(
                encode(Publish("report/alice/x", b"whole"), 4), encode(Publish("report/alice/x", b"half"), 4)[:-2]
            )
            await until(lambda: house.got)
            client.close()
            await until(lambda: not broker.counters.connections)
            assert [publish.payload for publish in house.got] == [b"whole"]

    run(go)


def test_a_packet_announced_as_too_large_costs_no_memory() -> None:
    async def go() -> None:
        async with running(max_packet=1_000) as (_, broker, port):
            client = await RawClient.connect(port, "alice")
            client.send(b"\x30\x80\x80\x80\x01")
            assert await client.ended() == Reason.PACKET_TOO_LARGE
            assert broker.counters.bytes_in < 1_000

    run(go)


def test_too_many_connections_are_refused_and_counted() -> None:
    async def go() -> None:
        async with running(connections=3, connections_per_client=2) as (_, broker, port):
            first = await RawClient.connect(port, "alice", client_id="1")
            await RawClient.connect(port, "alice", client_id="2")
            third = await RawClient.connect(port, "alice", client_id="3")
            assert third.connack.reason == Reason.QUOTA_EXCEEDED
            await third.ended()
            third.close()
            await until(lambda: broker.counters.connections == 2)
            again = await RawClient.connect(port, "alice", client_id="1")
            assert again.connack.reason == 0, "a take-over is not one more"
            await first.ended()
            first.close()
            await until(lambda: broker.counters.connections == 2)
            await RawClient.connect(port, "bob")
            over = await RawClient.open(port)
            assert await over.ended() is None
            assert broker.counters.connections == 3

    run(go)


def test_the_house_can_disconnect_a_client_and_stop_reading() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            one = await RawClient.connect(port, "alice", client_id="1")
            two = await RawClient.connect(port, "alice", 4, client_id="2")
            bob = await RawClient.connect(port, "bob")
            assert broker.disconnect("alice", Reason.NOT_AUTHORIZED) == 2
            assert await one.ended() == Reason.NOT_AUTHORIZED
            assert await two.ended() is None
            assert house.events[-1] == ("offline", "alice", False, True)
            broker.pause()
            bob.send(Publish("report/bob/x", b"1"))
            late = await RawClient.open(port)
            late.send(CONNECT_5)
            assert await bob.silent()
            assert not house.got
            broker.resume()
            await until(lambda: house.got)
            await late.expect(Connack)

    run(go)


def test_stopping_says_good_bye_without_wills() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            five = await RawClient.connect(port, "alice", will=Will("presence/alice", b"offline"))
            three = await RawClient.connect(port, "bob", 4)
            stopping = asyncio.create_task(broker.stop())
            assert await five.ended() == Reason.SERVER_SHUTTING_DOWN
            assert await three.ended() is None
            five.close()
            three.close()
            await stopping
            with pytest.raises(ConnectionRefusedError):
                await RawClient.open(port)
        assert not house.got
        assert {event[0] for event in house.events} == {"online"}

    run(go)


def test_clean_and_unclean_ends_are_told_apart() -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            one = await RawClient.connect(port, "alice", client_id="1")
            two = await RawClient.connect(port, "alice", client_id="2")
            one.send(Disconnect())
            await one.ended()
            two.drop()
            await until(lambda: len(house.events) == 4)
            assert house.events[2:] == [("offline", "alice", True, False), ("offline", "alice", False, True)]

    run(go)


def test_a_will_fires_on_every_end_but_a_clean_one() -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            will = Will("presence/alice", b"offline", 1)
            for ending in (Disconnect(), Disconnect(Reason.DISCONNECT_WITH_WILL), b"\x00\x00", None):
                house.got.clear()
                client = await RawClient.connect(port, "alice", will=will)
                if ending is None:
                    client.drop()
                else:
                    client.send(ending)
                    await client.ended()
                clean = isinstance(ending, Disconnect) and ending.reason == 0
                if clean:
                    await asyncio.sleep(0.05)
                    assert not house.got
                else:
                    await until(lambda: len(house.got) == 1, f"will after {ending!r}")
                    assert house.got[0].payload == b"offline"
                    assert house.got[0].origin.client == "alice"

    run(go)


def test_a_will_is_judged_when_it_fires() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            watcher = await RawClient.connect(port, "bob")
            house.read["bob"].append("report/#")
            await watcher.subscribe("open/#")
            foreign = await RawClient.connect(port, "mallory", client_id="f", will=Will("report/alice/x", b"forged"))
            foreign.drop()
            allowed = await RawClient.connect(port, "alice", will=Will("open/x", b"gone", 0, retain=True))
            allowed.drop()
            will = await watcher.expect(Publish)
            assert (will.topic, will.payload) == ("open/x", b"gone")
            late = await RawClient.connect(port, "alice", will=Will("open/y", b"too late"))
            house.revoke("alice")
            late.drop()
            assert await watcher.silent()
            assert broker.counters.wills_denied == 2
            assert not house.got
            joiner = await RawClient.connect(port, "bob", client_id="2")
            await joiner.subscribe("open/#")
            assert (await joiner.expect(Publish)).payload == b"gone"

    run(go)


def test_a_subscribe_in_3_1_1_with_a_bad_filter_fails_alone() -> None:
    async def go() -> None:
        async with running() as (_, _, port):
            client = await RawClient.connect(port, "alice", 4)
            assert await client.subscribe("open/a#", "open/ok", "$share/g", "secret/x") == [0x80, 0, 0x80, 0x80]
            client.send(Subscribe(5, [Subscription("open/+/x", 2)]))
            await client.next()

    run(go)


def test_a_client_that_the_house_turns_away_when_it_comes_online_leaves_nothing_behind() -> None:
    class Strict(TableHouse):
        def online(self, session: Session) -> None:
            super().online(session)
            self.broker.disconnect(session.client, Reason.ADMINISTRATIVE_ACTION)

    async def go() -> None:
        async with running(Strict()) as (house, broker, port):
            client = await RawClient.connect(port, "alice")
            assert await client.ended() == Reason.ADMINISTRATIVE_ACTION
            assert not broker.sessions
            assert not broker.clients()
            assert [event[0] for event in house.events] == ["online", "offline"]

    run(go)


def test_tls_clients_are_known_by_the_name_in_their_certificate(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    here, alice = authority.issue("here"), authority.issue("alice")

    async def go() -> None:
        client = ssl.create_default_context(cafile=authority.ca)
        client.load_cert_chain(*alice)
        async with running() as (house, broker, _):
            files = TlsFiles(*here, ca=authority.ca, require=True)
            opened = await broker.open(Listener("tls", "mqtts", "127.0.0.1", tls=files))
            reader, writer = await asyncio.open_connection("127.0.0.1", opened.address[1], ssl=client)
            raw = RawClient(reader, writer, 5)
            raw.send(Connect("t", username="alice", password=b"a"))
            await raw.expect(Connack)
            raw.send(Publish("report/alice/x", b"x" * 200_000, 1, packet_id=1))
            assert await raw.expect(Puback) == Puback(1)
            assert (house.peers[0].tls_name, house.peers[0].listener) == ("alice", "tls")
            raw.send(b"\x00\x00")
            assert await raw.ended() is not None
            writer.close()

    run(go)


def test_a_house_that_fails_while_it_judges_leaves_no_connection_hanging() -> None:
    class Broken(TableHouse):
        async def authenticate(self, username: str | None, password: bytes | None, peer: Peer) -> str | None:
            raise RuntimeError("the password file is gone")

    async def go() -> None:
        accidents: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: accidents.append(context["exception"]))
        async with running(Broken()) as (_, broker, port):
            client = await RawClient.open(port)
            client.send(CONNECT_5)
            assert await client.ended() is None
            await until(lambda: not broker.counters.connections)
            await until(lambda: accidents, "and it is not hushed up")
            assert str(accidents[0]) == "the password file is gone"

    run(go)
