"""Will delay: at the earlier of delay and session end, unless the session is back before. Over real sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.wire.packets import Disconnect, Property, Publish, Reason, Will
from tests.broker.world import RawClient, TableHouse, run, running, until

if TYPE_CHECKING:
    from gateway.broker.server import Broker
    from gateway.wire.packets import Properties


def will(delay: int | None = 30, *, topic: str = "open/alice", **more: object) -> Will:
    properties: Properties = {} if delay is None else {Property.WILL_DELAY_INTERVAL: delay}
    return Will(topic, b"gone", 1, properties={**properties, **{Property[name]: more[name] for name in more}})


def lasting(seconds: int) -> Properties:
    return {Property.SESSION_EXPIRY_INTERVAL: seconds}


async def lost(broker: Broker, port: int, left: Will, expiry: int) -> None:
    """Alice connects, leaves a will, and her connection breaks."""
    alice = await RawClient.connect(port, "alice", will=left, properties=lasting(expiry))
    alice.drop()
    await until(lambda: "alice" not in broker.clients())


@pytest.mark.parametrize(("delay", "expiry", "due"), [(30, 100, 30), (100, 30, 30), (30, 30, 30)])
def test_a_will_waits_for_its_delay_or_the_end_of_the_session_whichever_is_first(
    delay: int, expiry: int, due: int
) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            await lost(broker, port, will(delay), expiry)
            broker.look(broker.clock() + due - 2)
            assert broker.counters.wills == 0
            assert await bob.silent()
            broker.look(broker.clock() + due + 1)
            assert (await bob.expect(Publish)).payload == b"gone"
            broker.look(broker.clock() + 1_000)
            broker.sweep(broker.clock() + 1_000)
            assert broker.counters.wills == 1

    run(go)


@pytest.mark.parametrize(("delay", "expiry"), [(None, 100), (0, 100), (30, 0)])
def test_without_a_delay_or_a_session_a_will_does_not_wait(delay: int | None, expiry: int) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            await lost(broker, port, will(delay), expiry)
            assert (await bob.expect(Publish)).payload == b"gone"

    run(go)


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_session_that_is_resumed_in_time_keeps_its_will_to_itself(taken_over: bool) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            if taken_over:
                await RawClient.connect(port, "alice", will=will(), properties=lasting(100))
            else:
                await lost(broker, port, will(), 100)
            alice = await RawClient.connect(port, "alice", clean_start=False, properties=lasting(100))
            assert alice.connack.session_present
            broker.look(broker.clock() + 1_000)
            assert await bob.silent()
            assert broker.counters.wills == 0

    run(go)


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_clean_start_ends_the_session_and_so_lets_the_will_go(taken_over: bool) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            if taken_over:
                await RawClient.connect(port, "alice", will=will(), properties=lasting(100))
            else:
                await lost(broker, port, will(), 100)
            await RawClient.connect(port, "alice", clean_start=True)
            assert (await bob.expect(Publish)).payload == b"gone"
            broker.look(broker.clock() + 1_000)
            assert broker.counters.wills == 1

    run(go)


def test_a_will_that_waits_is_judged_when_it_goes() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            await lost(broker, port, will(), 100)
            house.write["alice"] = []
            house.generation += 1
            broker.look(broker.clock() + 31)
            assert await bob.silent()
            assert broker.counters.wills_denied == 1

    run(go)


def test_a_wills_expiry_begins_when_it_goes_and_its_delay_is_not_passed_on() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            await lost(broker, port, will(30, MESSAGE_EXPIRY_INTERVAL=10, CONTENT_TYPE="text/plain"), 100)
            broker.look(broker.clock() + 31)
            got = await bob.expect(Publish)
            assert got.properties == {Property.MESSAGE_EXPIRY_INTERVAL: 10, Property.CONTENT_TYPE: "text/plain"}

    run(go)


def test_a_disconnect_with_will_waits_too_and_a_plain_one_leaves_none() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            for reason, wills in ((Reason.SUCCESS, 0), (Reason.DISCONNECT_WITH_WILL, 1)):
                alice = await RawClient.connect(port, "alice", will=will(), properties=lasting(100))
                alice.send(Disconnect(reason))
                await alice.ended()
                assert broker.counters.wills == 0
                broker.look(broker.clock() + 31)
                assert broker.counters.wills == wills

    run(go)


def test_a_will_on_a_topic_of_the_house_reaches_the_house() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            await lost(broker, port, will(topic="presence/alice"), 100)
            broker.look(broker.clock() + 31)
            await until(lambda: [publish.topic for publish in house.got] == ["presence/alice"])

    run(go)


def test_a_session_that_must_make_room_lets_its_will_go() -> None:
    async def go() -> None:
        async with running(sessions=2) as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            await lost(broker, port, will(), 100)
            await RawClient.connect(port, "mallory")
            assert (await bob.expect(Publish)).payload == b"gone"

    run(go)


def test_stopping_fires_no_will_that_waits() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            await lost(broker, port, will(topic="presence/alice"), 100)
            await broker.stop()
            broker.look(broker.clock() + 1_000)
            broker.sweep(broker.clock() + 1_000)
            assert broker.counters.wills == 0
            assert not house.got

    run(go)
