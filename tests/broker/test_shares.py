"""Shared subscriptions: one member a topic, order kept, nobody else's group, nothing lost with a member. Over real sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.wire.packets import (
    Disconnect,
    Property,
    Puback,
    Publish,
    Pubrec,
    Reason,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
)
from tests.broker.world import PROTOCOL_ERROR, QUIET, RawClient, TableHouse, run, running, until

if TYPE_CHECKING:
    from gateway.broker.server import Broker
    from gateway.wire.packets import Properties

TOPICS = [f"open/{i}" for i in range(60)]

BOTH = pytest.mark.parametrize("level", [4, 5])


def lasting(**more: int) -> Properties:
    return {Property.SESSION_EXPIRY_INTERVAL: 100, **{Property[name]: more[name] for name in more}}


async def member(
    port: int, number: int, *filters: str, name: str = "bob", qos: int = 1, level: int = 5, **more: int
) -> RawClient:
    client = await RawClient.connect(
        port, name, level, client_id=f"m{number}", clean_start=False, properties=lasting(**more) if level == 5 else None
    )
    if filters:
        assert await client.subscribe(*filters, qos=qos) == [qos] * len(filters)
    return client


def owner(broker: Broker, topic: str) -> str:
    """The client id of the member that gets a topic's messages now."""
    route = broker.route(topic)
    assert route.wanted
    ((session,),) = [group.members for group in route.groups]
    return session.client_id


def topic_of(broker: Broker, number: int) -> str:
    """A topic whose messages go to this member."""
    return next(topic for topic in TOPICS if owner(broker, topic) == f"m{number}")


@BOTH
def test_each_message_goes_to_one_member_and_each_topic_always_to_the_same_in_order(level: int) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            members = [await member(port, i, "$share/g/open/#", qos=0, level=level) for i in range(3)]
            alice = await RawClient.connect(port, "alice")
            for n in range(20):
                alice.send(*(Publish(topic, b"%d" % n) for topic in TOPICS))
            shares = [sum(owner(broker, topic) == f"m{i}" for topic in TOPICS) for i in range(3)]
            assert sum(shares) == len(TOPICS)
            assert min(shares) > 5, "work is spread"
            heard: dict[str, tuple[int, list[int]]] = {}
            for i, client in enumerate(members):
                for publish in await client.collect(20 * shares[i]):
                    number, order = heard.setdefault(publish.topic, (i, []))
                    assert number == i, "one topic, one member"
                    order.append(int(publish.payload))
                assert await client.silent()
            assert all(order == list(range(20)) for _, order in heard.values())

    run(go)


def test_when_a_member_comes_or_goes_only_its_own_topics_move() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            for i in range(4):
                await member(port, i, "$share/g/open/#")
            before = {topic: owner(broker, topic) for topic in TOPICS}
            new = await member(port, 9, "$share/g/open/#")
            moved = {topic for topic in TOPICS if owner(broker, topic) != before[topic]}
            assert 0 < len(moved) < len(TOPICS) / 2
            assert {owner(broker, topic) for topic in moved} == {"m9"}
            new.drop()
            await until(lambda: broker.counters.connections == 4)
            assert {topic: owner(broker, topic) for topic in TOPICS} == before

    run(go)


def test_groups_are_each_users_own_and_each_filters_own() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await member(port, 1, "$share/g/open/#", qos=0)
            mallory = await member(port, 2, "$share/g/open/#", name="mallory", qos=0)
            other = await member(port, 3, "$share/g/open/+", "$share/h/open/x", qos=0)
            assert broker.publish("open/x", b"1", qos=0) == 4
            assert (await bob.expect(Publish)).payload == b"1"
            assert (await mallory.expect(Publish)).payload == b"1"
            assert len(await other.collect(2)) == 2
            for client in (bob, mallory, other):
                assert await client.silent()

    run(go)


def test_a_share_is_granted_as_its_filter_and_delivered_only_what_may_be_received() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            wanted = ["$share/g/secret/#", "$share/g/open/#/x", "$share/g", "$share//open/x", "$share/a+/open/x"]
            assert await bob.subscribe(*wanted) == [Reason.NOT_AUTHORIZED] + [Reason.TOPIC_FILTER_INVALID] * 4
            assert await bob.subscribe("$share/g/#") == [0]
            broker.publish("secret/x", b"not for bob", qos=0)
            broker.publish("open/x", b"for bob", qos=0)
            assert (await bob.expect(Publish)).payload == b"for bob"
            house.revoke("bob")
            broker.publish("open/x", b"no longer", qos=0)
            assert await bob.silent()

    run(go)


def test_no_local_on_a_share_is_a_protocol_error() -> None:
    async def go() -> None:
        async with running() as (_, _, port):
            bob = await RawClient.connect(port, "bob")
            bob.send(Subscribe(1, [Subscription("$share/g/open/#", 0, no_local=True)]))
            assert await bob.ended() == PROTOCOL_ERROR

    run(go)


def test_a_new_member_gets_no_retained_messages_and_its_identifier_comes_with_each() -> None:
    async def go() -> None:
        house = TableHouse()
        house.kept["snapshot/x"] = b"kept"
        async with running(house) as (_, broker, port):
            alice = await RawClient.connect(port, "alice")
            alice.send(Publish("open/x", b"kept", 1, retain=True, packet_id=1))
            await alice.expect(Puback)
            bob = await RawClient.connect(port, "bob")
            wanted = [Subscription("$share/g/#", 1), Subscription("$share/g/open/x", 1, retain_handling=0)]
            bob.send(Subscribe(1, wanted, {Property.SUBSCRIPTION_IDENTIFIER: 7}))
            assert (await bob.expect(Suback)).reasons == [1, 1]
            assert await bob.silent()
            broker.publish("open/y", b"live", qos=0)
            assert (await bob.expect(Publish)).properties == {Property.SUBSCRIPTION_IDENTIFIER: [7]}

    run(go)


def test_a_plain_subscription_beside_a_share_gets_its_own_copy() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await member(port, 1, "$share/g/open/#", "open/x", qos=0)
            assert broker.publish("open/x", b"1", qos=0) == 2
            assert len(await bob.collect(2)) == 2
            bob.send(Unsubscribe(3, ["$share/g/open/#", "$share/g/open/#"]))
            assert (await bob.expect(Unsuback)).reasons == [0, Reason.NO_SUBSCRIPTION_EXISTED]
            assert broker.publish("open/x", b"2", qos=0) == 1
            assert (await bob.expect(Publish)).payload == b"2"
            assert not broker.subscriptions._shares

    run(go)


def test_what_was_sent_to_a_member_waits_for_it_and_the_rest_goes_to_another_at_once() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            first = await member(port, 1, "$share/g/open/#", RECEIVE_MAXIMUM=2)
            second = await member(port, 2, "$share/g/open/#", RECEIVE_MAXIMUM=50)
            topic = topic_of(broker, 1)
            for i in range(6):
                broker.publish(topic, b"%d" % i, qos=1)
            sent = await first.collect(2)
            first.drop()
            got = await second.collect(4)
            assert [int(publish.payload) for publish in got] == [2, 3, 4, 5]
            broker.publish(topic, b"6", qos=1)
            assert (await second.expect(Publish)).payload == b"6"
            assert await second.silent()
            first = await member(port, 1)
            again = await first.collect(2)
            assert [(p.payload, p.dup, p.packet_id) for p in again] == [(p.payload, True, p.packet_id) for p in sent]
            assert not broker.queued

    run(go)


def test_what_waits_for_a_member_that_unsubscribes_goes_to_another_at_once() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            first = await member(port, 1, "$share/g/open/#", RECEIVE_MAXIMUM=2)
            second = await member(port, 2, "$share/g/open/#", RECEIVE_MAXIMUM=50)
            topic = topic_of(broker, 1)
            for i in range(6):
                broker.publish(topic, b"%d" % i, qos=1)
            sent = await first.collect(2)
            first.send(Unsubscribe(8, ["$share/g/open/#"]))
            assert (await first.expect(Unsuback)).reasons == [Reason.SUCCESS]
            got = await second.collect(4)
            assert [int(publish.payload) for publish in got] == [2, 3, 4, 5]
            first.send(*(Puback(publish.packet_id) for publish in sent))
            assert await first.silent()
            assert not broker.queued

    run(go)


@BOTH
def test_what_is_unacknowledged_at_qos_1_goes_to_another_member_when_the_session_ends_and_at_qos_2_to_nobody(
    level: int,
) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            first = await member(port, 1, "$share/g/open/#", qos=2)
            second = await member(port, 2, "$share/g/open/#", qos=2, level=level)
            topic = topic_of(broker, 1)
            properties: Properties = {Property.MESSAGE_EXPIRY_INTERVAL: 1_000, Property.CONTENT_TYPE: "text/plain"}
            broker.publish(topic, b"one", qos=1, properties=properties)
            broker.publish(topic, b"two", qos=2)
            await first.collect(2)
            first.send(Disconnect(0, {Property.SESSION_EXPIRY_INTERVAL: 0}))
            got = await second.expect(Publish)
            assert (got.payload, got.qos, got.dup) == (b"one", 1, False)
            if level == 5:
                assert got.properties == properties
            assert await second.silent()

    run(go)


def test_messages_that_wait_because_no_member_is_there_go_to_whoever_comes_first() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            for i in (1, 2):
                client = await member(port, i, "$share/g/open/#")
                client.drop()
            await until(lambda: not broker.clients())
            for topic in TOPICS:
                for n in range(3):
                    broker.publish(topic, b"%d" % n, qos=1)
            waiting = {session.client_id: len(session.queue or ()) for session in broker.sessions.values()}
            assert sum(waiting.values()) == 3 * len(TOPICS)
            assert min(waiting.values()) > 0
            second = await member(port, 2)
            heard: dict[str, list[int]] = {}
            for publish in await second.collect(3 * len(TOPICS)):
                heard.setdefault(publish.topic, []).append(int(publish.payload))
                second.send(Puback(publish.packet_id))
            assert all(order == [0, 1, 2] for order in heard.values())
            assert not broker.queued
            first = await member(port, 1)
            assert await first.silent()

    run(go)


def test_a_member_that_takes_too_little_is_disconnected_and_its_messages_go_to_the_others() -> None:
    async def go() -> None:
        async with running(queue_messages=20) as (_, broker, port):
            stuck = await member(port, 1, "$share/g/open/#", RECEIVE_MAXIMUM=1)
            good = await member(port, 2, "$share/g/open/#", RECEIVE_MAXIMUM=1_000)
            topic = topic_of(broker, 1)
            for i in range(40):
                broker.publish(topic, b"%d" % i, qos=1)
            assert await stuck.ended() == Reason.QUOTA_EXCEEDED
            got = await good.collect(39)
            assert [int(publish.payload) for publish in got] == list(range(1, 40))
            assert broker.counters.dropped_queue == 0
            assert not broker.queued

    run(go)


def test_a_refused_message_is_not_given_to_another_member() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            first = await member(port, 1, "$share/g/open/#", qos=2)
            second = await member(port, 2, "$share/g/open/#", qos=2)
            topic = topic_of(broker, 1)
            broker.publish(topic, b"one", qos=1)
            broker.publish(topic, b"two", qos=2)
            one, two = await first.collect(2)
            first.send(Puback(one.packet_id, 0x80), Pubrec(two.packet_id, 0x80))
            await until(lambda: not broker.sessions["bob", "m1"].inflight)
            first.send(Disconnect(0, {Property.SESSION_EXPIRY_INTERVAL: 0}))
            assert await second.silent()

    run(go)


def test_rights_are_asked_again_when_a_message_changes_hands() -> None:
    async def go() -> None:
        house = TableHouse()
        async with running(house) as (_, broker, port):
            first = await member(port, 1, "$share/g/open/#", RECEIVE_MAXIMUM=1)
            second = await member(port, 2, "$share/g/open/#")
            topic = topic_of(broker, 1)
            for i in range(4):
                broker.publish(topic, b"%d" % i, qos=1)
            await first.collect(1)
            house.revoke("bob")
            first.drop()
            await until(lambda: broker.counters.denied_receive == 3)
            assert await second.silent(QUIET)

    run(go)


def test_an_exact_share_follows_its_members_although_routes_are_remembered() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            clients = [await member(port, i, "$share/g/open/x", qos=0) for i in (1, 2)]
            route = broker.route("open/x")
            generation = broker.subscriptions.generation
            for _ in range(2):
                at = int(owner(broker, "open/x")[1:]) - 1
                broker.send(route, b"1", 0)
                assert (await clients[at].expect(Publish)).payload == b"1"
                clients[at].drop()
                await until(lambda: broker.counters.connections == 1)
                broker.send(route, b"2", 0)
                assert (await clients[1 - at].expect(Publish)).payload == b"2"
                clients[at] = await member(port, at + 1)
            assert broker.subscriptions.generation == generation, "other topics' routes stay as they are"

    run(go)
