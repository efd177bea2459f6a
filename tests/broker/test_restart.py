"""Sessions that survive the end of the process, `kill -9` included: a real gateway, real sockets, a real store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.broker.house import Limits
from gateway.broker.server import Broker
from gateway.sessions import KeptMessage, KeptSession, Restored
from gateway.wire.codec import encode
from gateway.wire.packets import (
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
)
from tests.broker.world import RawClient, TableHouse, close_all, run, until
from tests.running import OWN_NAMESPACE, Gateway, gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from gateway.wire.packets import Properties

PASSWORD = "secret"
RULES = '[[topic]]\nfilter = "open/#"\nwrite = ["*"]\nread = ["*"]\n'
CLIENTS = dict.fromkeys(("alice", "bob"), PASSWORD)

BOTH = pytest.mark.parametrize("level", [4, 5])
ENDINGS = pytest.mark.parametrize("ending", ["kill", "stop"])


@contextlib.contextmanager
def opened(folder: Path, rest: str = OWN_NAMESPACE + RULES, **more: Any) -> Iterator[Gateway]:
    with gateway(folder, rest=rest, clients=CLIENTS, **more) as made:
        yield made


def again(target: Gateway, ending: str) -> None:
    """End the process, and start it on the same folder and port."""
    target.kill() if ending == "kill" else target.stop()
    target.start()


async def connect(target: Gateway, name: str, level: int = 5, **more: int) -> RawClient:
    properties: Properties = {Property.SESSION_EXPIRY_INTERVAL: 1_000, **{Property[key]: more[key] for key in more}}
    return await RawClient.connect(
        target.port,
        name,
        level,
        password=PASSWORD.encode(),
        clean_start=False,
        properties=properties if level == 5 else None,
    )


def rows(target: Gateway, table: str) -> int:
    with contextlib.closing(sqlite3.connect(target.state_dir / "state.db", timeout=10)) as db:
        found: int = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return found


def play(main: Any) -> None:
    async def go() -> None:
        try:
            await main()
        finally:
            await close_all()

    run(go)


@BOTH
@ENDINGS
def test_a_session_comes_back_with_its_subscriptions_and_everything_that_was_acknowledged_to_its_senders(
    tmp_path: Path, level: int, ending: str
) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            bob = await connect(target, "bob", level)
            assert await bob.subscribe("open/#", qos=1) == [1]
            alice = await connect(target, "alice")
            alice.send(Publish("open/x", b"0", 1, packet_id=1))
            sent = await bob.expect(Publish)
            bob.send(Disconnect())
            await bob.ended()
            await alice.expect(Puback)
            properties: Properties = {Property.CONTENT_TYPE: "text/plain"}
            for i in range(1, 30):
                alice.send(Publish("open/x", b"%d" % i, 1, packet_id=i + 1, properties=properties))
            for _ in range(1, 30):
                assert (await alice.expect(Puback)).reason == 0
            again(target, ending)
            bob = await connect(target, "bob", level)
            assert bob.connack.session_present
            got = await bob.collect(30)
            assert [int(publish.payload) for publish in got] == list(range(30))
            assert (got[0].dup, got[0].packet_id) == (True, sent.packet_id)
            assert not any(publish.dup for publish in got[1:])
            assert all(publish.properties == (properties if level == 5 else None) for publish in got[1:])
            for publish in got:
                bob.send(Puback(publish.packet_id))
            alice = await connect(target, "alice")
            alice.send(Publish("open/y", b"live", 1, packet_id=1))
            assert (await bob.expect(Publish)).payload == b"live"
            await until(lambda: rows(target, "messages") == 1, "what is acknowledged leaves the store")
            again(target, ending)
            bob = await connect(target, "bob", level)
            assert (await bob.expect(Publish)).payload == b"live"
            assert await bob.silent()

    play(go)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_was_acknowledged_before_a_kill_in_the_midst_of_work_arrives_in_order(
    tmp_path: Path, durability: str
) -> None:
    async def go() -> None:
        with opened(tmp_path, top=f'durability = "{durability}"') as target:
            bob = await connect(target, "bob", RECEIVE_MAXIMUM=20)
            await bob.subscribe("open/#", qos=1)
            heard: list[int] = []

            async def listen(client: RawClient) -> None:
                with contextlib.suppress(EOFError, ConnectionError):
                    while True:
                        publish = await client.expect(Publish)
                        heard.append(int(publish.payload))
                        if not client.writer.is_closing():  # what came before the kill is read to its end
                            client.send(Puback(publish.packet_id))

            acknowledged = 0
            number = 0
            for _ in range(3):
                listening = asyncio.create_task(listen(bob))
                alice = await connect(target, "alice")
                goal = acknowledged + 300
                base = number
                while acknowledged < goal:
                    while number - acknowledged < 50:
                        alice.send(Publish("open/x", b"%d" % number, 1, packet_id=number - base + 1))
                        number += 1
                    answer = await alice.expect(Puback)
                    acknowledged = max(acknowledged, base + answer.packet_id)
                target.kill()
                await asyncio.gather(listening)
                target.start()
                number = acknowledged
                bob = await connect(target, "bob", RECEIVE_MAXIMUM=20)
                assert bob.connack.session_present
            listening = asyncio.create_task(listen(bob))
            await until(lambda: set(heard) >= set(range(acknowledged)), "all that was acknowledged")
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            first = list(dict.fromkeys(heard))
            assert first == sorted(first), "each for the first time in order"

    play(go)


@ENDINGS
def test_deltas_of_the_old_run_are_not_replayed_and_snapshots_of_the_new_one_are_sent_instead(
    tmp_path: Path, ending: str
) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            bob = await connect(target, "bob")
            await bob.subscribe("snapshot/ctxt/#", "delta/ctxt/#", "inbox/bob", qos=1)
            bob.drop()
            alice = await connect(target, "alice")
            report = "report/alice/ctxt/home.local/alice/room"
            for i in range(3):
                alice.send(Publish(report, b'{"values":{"t":{"value":%d}}}' % i, 1, packet_id=i + 1))
                assert (await alice.expect(Puback)).reason == 0
            before = target.epoch
            again(target, ending)
            bob = await connect(target, "bob")
            assert bob.connack.session_present
            got = await bob.expect(Publish)
            assert (got.topic, got.retain) == ("snapshot/ctxt/home.local/alice/room", True)
            seen = json.loads(got.payload)
            assert (seen["epoch"], seen["version"], seen["data"]["values"]["t"]["value"]) == (target.epoch, 3, 2)
            assert target.epoch > before
            assert await bob.silent()
            bob.drop()
            bob = await connect(target, "bob")
            again_sent = await bob.expect(Publish)
            assert (again_sent.payload, again_sent.dup) == (got.payload, True)
            assert await bob.silent(), "once a run"

    play(go)


@ENDINGS
def test_a_refusal_in_the_inbox_waits_for_its_client(tmp_path: Path, ending: str) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            bob = await connect(target, "bob")
            await bob.subscribe("inbox/bob", qos=1)
            bob.send(Publish("report/bob/ctxt/home.local/alice/room", b"{}", 1, packet_id=1))
            while not isinstance(await bob.next(), Puback):
                pass
            bob.drop()
            await until(lambda: rows(target, "messages") == 1, "stored with the next tick")
            again(target, ending)
            bob = await connect(target, "bob")
            assert json.loads((await bob.expect(Publish)).payload)["code"] == 404

    play(go)


@ENDINGS
def test_a_qos_2_message_that_was_acknowledged_is_known_until_its_pubrel(tmp_path: Path, ending: str) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            bob = await connect(target, "bob")
            await bob.subscribe("open/#", qos=1)
            alice = await connect(target, "alice")
            alice.send(Publish("open/x", b"once", 2, packet_id=7))
            assert await alice.expect(Pubrec) == Pubrec(7)
            bob.send(Puback((await bob.expect(Publish)).packet_id))
            await until(lambda: not rows(target, "messages"))
            again(target, ending)
            alice = await connect(target, "alice")
            bob = await connect(target, "bob")
            alice.send(Publish("open/x", b"once", 2, dup=True, packet_id=7))
            assert await alice.expect(Pubrec) == Pubrec(7)
            alice.send(Pubrel(7))
            assert await alice.expect(Pubcomp) == Pubcomp(7)
            assert await bob.silent()
            alice.send(Publish("open/x", b"another", 2, packet_id=7))
            assert await alice.expect(Pubrec) == Pubrec(7)
            assert (await bob.expect(Publish)).payload == b"another"

    play(go)


@pytest.mark.parametrize("dup", [False, True])
def test_a_packet_identifier_used_anew_just_before_a_kill_is_a_new_message(tmp_path: Path, dup: bool) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            bob = await connect(target, "bob")
            await bob.subscribe("open/#", qos=1)
            alice = await connect(target, "alice")
            alice.send(Publish("open/x", b"first", 2, packet_id=7))
            await alice.expect(Pubrec)
            bob.send(Puback((await bob.expect(Publish)).packet_id))
            alice.send(Pubrel(7))
            await alice.expect(Pubcomp)
            target.kill()  # the release is stored within a tick: most often not yet
            target.start()
            alice = await connect(target, "alice")
            bob = await connect(target, "bob")
            alice.send(Publish("open/x", b"second", 2, dup=dup, packet_id=7))
            assert await alice.expect(Pubrec) == Pubrec(7)
            payloads = [(await bob.expect(Publish)).payload]
            if payloads == [b"first"]:  # its acknowledgement was not stored yet either: at least once
                payloads = [(await bob.expect(Publish)).payload]
            assert payloads == [b"second"]

    play(go)


def test_a_qos_2_delivery_goes_on_where_it_was(tmp_path: Path) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            bob = await connect(target, "bob")
            await bob.subscribe("open/#", qos=2)
            alice = await connect(target, "alice")
            for i in (1, 2):
                alice.send(Publish("open/x", b"%d" % i, 2, packet_id=i))
                await alice.expect(Pubrec)
            one, two = await bob.collect(2)
            bob.send(Pubrec(one.packet_id))
            assert await bob.expect(Pubrel) == Pubrel(one.packet_id)
            again(target, "stop")
            bob = await connect(target, "bob")
            packets = [await bob.next(), await bob.next()]
            assert Pubrel(one.packet_id) in packets
            assert Publish("open/x", b"2", 2, dup=True, packet_id=two.packet_id) in packets
            bob.send(Pubcomp(one.packet_id), Pubrec(two.packet_id))
            assert await bob.expect(Pubrel) == Pubrel(two.packet_id)
            bob.send(Pubcomp(two.packet_id))
            await until(lambda: not rows(target, "messages"))

    play(go)


def test_sessions_that_end_with_their_connection_leave_nothing_in_the_store(tmp_path: Path) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            clean = await RawClient.connect(target.port, "bob", password=PASSWORD.encode())
            await clean.subscribe("open/#", qos=1)
            alice = await connect(target, "alice")
            for i in range(1, 10):
                alice.send(Publish("open/x", b"x", 1, packet_id=i))
                await alice.expect(Puback)
            await clean.collect(9)
            await until(lambda: rows(target, "sessions") == 1)
            assert rows(target, "messages") == 0
            alice.send(Disconnect(0, {Property.SESSION_EXPIRY_INTERVAL: 0}))
            await until(lambda: rows(target, "sessions") == 0)
            again(target, "kill")
            assert not (await connect(target, "bob")).connack.session_present

    play(go)


def test_rights_are_asked_again_when_a_stored_message_is_delivered(tmp_path: Path) -> None:
    async def go() -> None:
        with opened(tmp_path) as target:
            bob = await connect(target, "bob")
            await bob.subscribe("open/#", qos=1)
            bob.drop()
            alice = await connect(target, "alice")
            alice.send(Publish("open/x", b"not any more", 1, packet_id=1))
            await alice.expect(Puback)
            target.kill()
            target.config.write_text(target.config.read_text().replace('read = ["*"]', 'read = ["alice"]'))
            target.start()
            bob = await connect(target, "bob")
            assert bob.connack.session_present
            assert await bob.silent()
            await until(lambda: not rows(target, "messages"))

    play(go)


# ---- the broker alone: time is an argument ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def restored(*kept: Restored, wall: float, **limits: Any) -> AsyncIterator[tuple[TableHouse, Broker, int]]:
    house = TableHouse()
    broker = house.broker = Broker(house, Limits(**limits), keep_sessions=True)
    broker.restore(kept, wall)
    _, port = await broker.listen("127.0.0.1", 0)
    try:
        yield house, broker, port
    finally:
        await close_all()
        await broker.stop()


def session(number: int = 1, *, left: float = 0.0, client_id: str = "bob-1", **more: Any) -> KeptSession:
    wanted = more.pop("subscriptions", [("open/#", 1, False, False, 0)])
    return KeptSession(number, "bob", client_id, 5, 100.0, left, 40_000, wanted)


def message(number: int, payload: bytes, *, packet_id: int = 0, expires: float = 0.0, of: int = 1) -> KeptMessage:
    return KeptMessage(number, of, packet_id, encode(Publish("open/x", payload, 1, packet_id=1), 5), expires, "")


LASTING: Properties = {Property.SESSION_EXPIRY_INTERVAL: 100}


@pytest.mark.parametrize(("left", "there"), [(0.0, True), (901.0, True), (900.0, False), (100.0, False)])
def test_a_session_whose_time_ran_out_while_nobody_ran_is_gone(left: float, there: bool) -> None:
    async def go() -> None:
        async with restored(Restored(session(left=left), {}, []), wall=1_000.0) as (_, broker, port):
            assert broker.journal is not None
            changes = broker.journal.take()
            assert changes.gone == ([] if there else [1])
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=LASTING)
            assert bob.connack.session_present is there

    run(go)


def test_what_expired_while_nobody_ran_is_dropped_and_the_rest_has_the_time_that_is_left() -> None:
    async def go() -> None:
        messages = [
            message(1, b"late", expires=999.0),
            message(2, b"in time", expires=1_030.0),
            message(3, b"for ever"),
        ]
        async with restored(Restored(session(), {}, messages), wall=1_000.0) as (_, broker, port):
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=LASTING)
            one, two = await bob.collect(2)
            assert (one.payload, two.payload) == (b"in time", b"for ever")
            assert broker.counters.expired == 1
            assert broker.journal is not None
            assert 1 in broker.journal.take(sweep=True).done

    run(go)


def test_new_packet_identifiers_stay_away_from_those_of_the_earlier_run() -> None:
    async def go() -> None:
        async with restored(Restored(session(), {}, [message(1, b"1", packet_id=5)]), wall=0.0) as (_, broker, port):
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=LASTING)
            assert (await bob.expect(Publish)).packet_id == 5
            broker.publish("open/x", b"2", qos=1)
            assert (await bob.expect(Publish)).packet_id == 40_000 + 32_768 - 65_535

    run(go)


def test_what_is_restored_keeps_within_the_bounds_that_hold_now() -> None:
    async def go() -> None:
        kept = Restored(session(), {}, [message(number, b"%d" % number) for number in range(1, 51)])
        other = Restored(session(2, client_id="other", left=1.0), {}, [])
        async with restored(kept, other, wall=50.0, queue_messages=10, sessions=1) as (_, broker, port):
            assert broker.journal is not None
            changes = broker.journal.take()
            assert changes.gone == [2]
            assert sorted(changes.done) == list(range(11, 51))
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=LASTING)
            assert [int(publish.payload) for publish in await bob.collect(10)] == list(range(1, 11))

    run(go)


def test_a_damaged_message_is_left_out_and_the_others_are_not() -> None:
    async def go() -> None:
        messages = [message(1, b"1")._replace(packet=b"\x32\x03\x00"), message(2, b"2")]
        async with restored(Restored(session(), {}, messages), wall=0.0) as (_, broker, port):
            assert broker.journal is not None
            assert broker.journal.take().done == [1]
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=LASTING)
            assert (await bob.expect(Publish)).payload == b"2"

    run(go)


def test_a_restored_member_of_a_share_gives_what_it_was_never_sent_to_whoever_is_there() -> None:
    async def go() -> None:
        name = "$share/g/open/#"
        kept = session(subscriptions=[(name, 1, False, False, 3)])
        messages = [message(i, b"%d" % i)._replace(share=name) for i in (1, 2)]
        async with restored(Restored(kept, {}, messages), wall=time.time()) as (_, broker, port):
            other = await RawClient.connect(port, "bob", client_id="other", properties=LASTING)
            other.send(Subscribe(1, [Subscription(name, 1)], {Property.SUBSCRIPTION_IDENTIFIER: 9}))
            await other.expect(Suback)
            got = await other.collect(2)
            assert [publish.payload for publish in got] == [b"1", b"2"]
            assert got[0].properties == {Property.SUBSCRIPTION_IDENTIFIER: [9]}
            assert broker.journal is not None
            changes = broker.journal.take(sweep=True)
            assert sorted(changes.done) == [1, 2]
            assert [kept.packet_id for kept in changes.messages] == [publish.packet_id for publish in got]

    run(go)
