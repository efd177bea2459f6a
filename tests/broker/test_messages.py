"""Publishing, delivery, retained messages and sessions, over real sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gateway.broker.connection import BACKLOG
from gateway.wire.packets import (
    Connack,
    Connect,
    Disconnect,
    Pingreq,
    Pingresp,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Reason,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
)
from tests.broker.world import QUIET, RawClient, TableHouse, run, running, until

if TYPE_CHECKING:
    from gateway.broker.subscriptions import Route
    from gateway.wire.packets import Properties

BOTH = pytest.mark.parametrize("level", [4, 5])


def wanted(route: Route) -> bool:
    return route.wanted


# ---- in ----------------------------------------------------------------------------------------------------------------


@BOTH
def test_owned_publishes_reach_the_house_in_order_and_are_acknowledged_in_order(level: int) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            client = await RawClient.connect(port, "alice", level)
            client.send(*(Publish("report/alice/x", b"%d" % i, i % 3, packet_id=i if i % 3 else 0) for i in range(300)))
            answers: list[object] = [await client.next() for _ in range(200)]
            assert answers == [Puback(i) if i % 3 == 1 else Pubrec(i) for i in range(300) if i % 3]
            assert [int(publish.payload) for publish in house.got] == list(range(300))
            assert house.got[0].origin.key == ("alice", "alice-1")
            assert house.batches < 30, "one read, one batch"
            assert broker.counters.publishes_in == 300

    run(go)


def test_many_sockets_that_are_readable_at_once_make_one_batch() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            clients = [await RawClient.connect(port, "alice", client_id=str(i)) for i in range(20)]
            broker.pause()
            for client in clients:
                client.send(Publish("report/alice/x", b"x", 1, packet_id=1))
            await asyncio.sleep(0.05)
            broker.resume()
            for client in clients:
                await client.expect(Puback)
            assert len(house.got) == 20
            assert house.batches <= 2

    run(go)


def test_an_acknowledgement_comes_when_the_house_gives_it_with_reason_and_text() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            house.holding = True
            five = await RawClient.connect(port, "alice", client_id="5")
            three = await RawClient.connect(port, "alice", 4, client_id="3")
            quiet = await RawClient.connect(
                port, "alice", client_id="q", properties={Property.REQUEST_PROBLEM_INFORMATION: 0}
            )
            for client in (five, three, quiet):
                client.send(
                    Publish("report/alice/x", b"x", 1, packet_id=1), Publish("report/alice/x", b"y", 2, packet_id=2)
                )
            await until(lambda: len(house.got) == 6)
            assert await five.silent()
            for publish in house.got:
                broker.acknowledge(publish, Reason.PAYLOAD_FORMAT_INVALID, "422 /val\ud800ues:\0 no")
                broker.acknowledge(publish)
            text: Properties = {Property.REASON_STRING: "422 /val?ues:? no"}
            assert await five.expect(Puback) == Puback(1, Reason.PAYLOAD_FORMAT_INVALID, text)
            assert await five.expect(Pubrec) == Pubrec(2, Reason.PAYLOAD_FORMAT_INVALID, text)
            assert await three.expect(Puback) == Puback(1)
            assert await three.expect(Pubrec) == Pubrec(2)
            assert await quiet.expect(Puback) == Puback(1, Reason.PAYLOAD_FORMAT_INVALID)
            for client in (five, three):
                assert await client.silent(), "each is answered once"

    run(go)


def test_an_acknowledgement_for_a_connection_that_has_gone_is_not_sent_to_its_successor() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            house.holding = True
            expiry: Properties = {Property.SESSION_EXPIRY_INTERVAL: 60}
            first = await RawClient.connect(port, "alice", properties=expiry)
            first.send(Publish("report/alice/x", b"old", 1, packet_id=1))
            await until(lambda: house.got)
            second = await RawClient.connect(port, "alice", clean_start=False, properties=expiry)
            assert second.connack.session_present
            second.send(Publish("report/alice/x", b"new", 1, packet_id=1))
            await until(lambda: len(house.got) == 2)
            broker.acknowledge(house.got[0])
            assert await second.silent()
            broker.acknowledge(house.got[1])
            assert await second.expect(Puback) == Puback(1)

    run(go)


@BOTH
def test_a_denied_publish_is_dropped_and_only_mqtt_5_can_be_told(level: int) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            spy = await RawClient.connect(port, "bob", level)
            house.read["bob"] = ["#"]
            await spy.subscribe("report/#", "open/#", "secret/#")
            mallory = await RawClient.connect(port, "mallory", level)
            for topic in ("report/alice/x", "secret/y", "$SYS/x", "snapshot/x"):
                mallory.send(
                    Publish(topic, b"0"), Publish(topic, b"1", 1, packet_id=1), Publish(topic, b"2", 2, packet_id=2)
                )
                puback = await mallory.expect(Puback)
                pubrec = await mallory.expect(Pubrec)
                assert {puback.reason, pubrec.reason} == {Reason.NOT_AUTHORIZED if level == 5 else 0}
                if level == 5:
                    assert topic in (puback.properties or {})[Property.REASON_STRING]
                else:
                    mallory.send(Pubrel(2))
                    await mallory.expect(Pubcomp)
            assert not house.got
            assert await spy.silent()
            assert broker.counters.denied_publish == 12

    run(go)


def test_a_right_that_is_taken_away_is_gone_for_the_next_packet() -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            alice = await RawClient.connect(port, "alice")
            alice.send(Publish("report/alice/x", b"1", 1, packet_id=1))
            assert (await alice.expect(Puback)).reason == 0
            house.write["alice"] = []
            house.generation += 1
            alice.send(Publish("report/alice/x", b"2", 1, packet_id=2))
            assert (await alice.expect(Puback)).reason == Reason.NOT_AUTHORIZED
            assert len(house.got) == 1

    run(go)


def test_answers_decided_early_wait_for_those_before_them() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            house.holding = True
            client = await RawClient.connect(port, "alice")
            client.send(
                Publish("report/alice/x", b"1", 1, packet_id=1),
                Publish("secret/x", b"2", 1, packet_id=2),
                Publish("open/x", b"3", 2, packet_id=3),
                Publish("report/alice/x", b"4", 1, packet_id=4),
                Publish("open/x", b"5", 1, packet_id=5),
            )
            await until(lambda: len(house.got) == 2)
            assert await client.silent()
            broker.acknowledge(house.got[0])
            answers = [await client.next() for _ in range(3)]
            assert [answer.packet_id for answer in answers] == [1, 2, 3]  # type: ignore[union-attr]
            assert await client.silent()
            broker.acknowledge(house.got[1])
            assert await client.expect(Puback) == Puback(4)
            assert await client.expect(Puback) == Puback(5)

    run(go)


@BOTH
def test_a_qos_2_report_reaches_the_house_once_however_often_it_comes(level: int) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            house.holding = True
            kept: dict[str, Any] = {"clean_start": False}
            if level == 5:
                kept["properties"] = {Property.SESSION_EXPIRY_INTERVAL: 60}
            client = await RawClient.connect(port, "alice", level, **kept)
            once = Publish("report/alice/x", b"1", 2, packet_id=5)
            again = Publish("report/alice/x", b"1", 2, packet_id=5, dup=True)
            client.send(once, again)
            await until(lambda: house.got)
            client.drop()
            await until(lambda: not broker.clients())
            client = await RawClient.connect(port, "alice", level, **kept)
            client.send(again)
            assert await client.silent(), "still with the house"
            broker.acknowledge(house.got[0])
            assert await client.expect(Pubrec) == Pubrec(5)
            client.send(again)
            assert await client.expect(Pubrec) == Pubrec(5)
            client.send(Pubrel(5))
            assert await client.expect(Pubcomp) == Pubcomp(5)
            assert len(house.got) == 1
            client.send(Pubrel(5))
            assert (await client.expect(Pubcomp)).reason == (Reason.PACKET_IDENTIFIER_NOT_FOUND if level == 5 else 0)
            client.send(once)
            await until(lambda: len(house.got) == 2, "the identifier is free again")

    run(go)


def test_more_than_the_receive_maximum_ends_an_mqtt_5_connection() -> None:
    async def go() -> None:
        async with running(receive_maximum=10) as (house, _, port):
            house.holding = True
            client = await RawClient.connect(port, "alice")
            client.send(*(Publish("report/alice/x", b"", 1, packet_id=i) for i in range(1, 12)))
            assert await client.ended() == Reason.RECEIVE_MAXIMUM_EXCEEDED
            second = await RawClient.connect(port, "bob")
            second.send(*(Publish("open/x", b"", 2, packet_id=i) for i in range(1, 12)))
            assert await second.ended() == Reason.RECEIVE_MAXIMUM_EXCEEDED

    run(go)


def test_a_3_1_1_client_is_read_from_again_when_the_house_has_caught_up() -> None:
    async def go() -> None:
        async with running(receive_maximum=10) as (house, broker, port):
            house.holding = True
            client = await RawClient.connect(port, "alice", 4)
            for i in range(1, 31):
                client.send(Publish("report/alice/x", b"%d" % i, 1, packet_id=i))
                await asyncio.sleep(0.002)
            assert len(house.got) < 20
            done = 0
            while done < 30:
                await until(lambda: len(house.got) > done)  # noqa: B023 - read at once
                for publish in house.got[done:]:
                    broker.acknowledge(publish)
                    done += 1
            for i in range(1, 31):
                assert await client.expect(Puback) == Puback(i)

    run(go)


def test_a_retained_report_reaches_the_house_as_retained_and_is_not_kept_here() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            client = await RawClient.connect(port, "alice")
            client.send(Publish("report/alice/x", b"1", 1, retain=True, packet_id=1))
            await client.expect(Puback)
            assert house.got[0].retain
            assert len(broker.retained) == 0

    run(go)


def test_a_flood_of_tiny_packets_holds_nobody_up() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            flood = await RawClient.connect(port, "mallory")
            other = await RawClient.connect(port, "alice")
            flood.send(b"\xc0\x00" * 200_000)
            await until(lambda: broker.counters.bytes_in > 10_000)
            other.send(Pingreq())
            await other.expect(Pingresp)
            assert broker.counters.bytes_in < 400_000
            count = 0
            while count < 400_000:
                count += len(await flood.reader.read(65_536))
            assert count == 400_000, "and every one is answered"

    run(go)


def test_packets_are_taken_in_order_however_many_come_at_once() -> None:
    async def go() -> None:
        async with running(receive_maximum=60_000) as (house, _, port):
            client = await RawClient.open(port)
            connect = Connect("c", username="alice", password=b"a")
            client.send(connect, *(Publish("report/alice/x", b"%d" % i, 1, packet_id=i) for i in range(1, 20_001)))
            await client.expect(Connack)
            for i in range(1, 20_001):
                assert await client.expect(Puback) == Puback(i)
            assert [int(publish.payload) for publish in house.got] == list(range(1, 20_001))

    run(go)


# ---- out ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", [0, 1, 2])
@pytest.mark.parametrize("subscribed", [0, 1, 2])
@BOTH
def test_delivery_is_at_the_lower_of_both_qos(level: int, published: int, subscribed: int) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            reader = await RawClient.connect(port, "bob", level)
            assert await reader.subscribe("open/#", qos=subscribed) == [subscribed]
            writer = await RawClient.connect(port, "alice", level)
            writer.send(Publish("open/x", b"1", published, packet_id=7 if published else 0))
            got = await reader.expect(Publish)
            qos = min(published, subscribed)
            assert (got.topic, got.payload, got.qos, got.retain, got.dup) == ("open/x", b"1", qos, False, False)
            session = broker.sessions["bob", "bob-1"]
            if qos == 1:
                reader.send(Puback(got.packet_id))
            elif qos == 2:
                reader.send(Pubrec(got.packet_id))
                assert await reader.expect(Pubrel) == Pubrel(got.packet_id)
                reader.send(Pubcomp(got.packet_id))
            if published == 1:
                await writer.expect(Puback)
            elif published == 2:
                await writer.expect(Pubrec)
                writer.send(Pubrel(7))
                await writer.expect(Pubcomp)
            await until(lambda: not session.inflight)
            assert session.held == 0

    run(go)


@BOTH
def test_routes_deliver_what_the_house_sends(level: int) -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            route = broker.route("delta/ctxt/home/x")
            assert not wanted(route)
            one = await RawClient.connect(port, "alice", level, client_id="1")
            two = await RawClient.connect(port, "alice", level, client_id="2")
            await one.subscribe("delta/ctxt/home/x", qos=1)
            await two.subscribe("delta/#", qos=0)
            assert wanted(route)
            for i in range(5):
                broker.send(route, b"%d" % i, 1)
            for client, qos in ((one, 1), (two, 0)):
                got = await client.collect(5)
                assert [publish.payload for publish in got] == [b"0", b"1", b"2", b"3", b"4"]
                assert {publish.qos for publish in got} == {qos}
            asked = house.asked
            broker.send(route, b"again", 1)
            assert house.asked == asked, "an answer is remembered while nothing has changed"
            one.send(Unsubscribe(3, ["delta/ctxt/home/x"]))
            while not isinstance(await one.next(), Unsuback):
                pass
            two.drop()
            await until(lambda: not wanted(route))

    run(go)


def test_every_delivery_asks_again_once_rights_have_changed() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            route = broker.route("delta/x")
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("delta/#", "open/#", qos=1)
            broker.send(route, b"seen", 1)
            assert (await bob.expect(Publish)).payload == b"seen"
            house.revoke("bob")
            broker.send(route, b"not seen", 1)
            broker.publish("open/x", b"not seen", qos=1)
            assert not route.wanted
            assert await bob.silent()

    run(go)


def test_what_waits_is_judged_again_before_it_goes() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            route = broker.route("delta/x")
            expiry: Properties = {Property.SESSION_EXPIRY_INTERVAL: 60, Property.RECEIVE_MAXIMUM: 1}
            bob = await RawClient.connect(port, "bob", properties=expiry)
            await bob.subscribe("delta/#", qos=1)
            for i in range(4):
                broker.send(route, b"%d" % i, 1)
            first = await bob.expect(Publish)
            house.read["bob"] = ["open/#"]
            house.generation += 1
            bob.send(Puback(first.packet_id))
            assert await bob.silent()
            assert broker.counters.denied_receive == 3
            house.read["bob"] = ["delta/#"]
            house.generation += 1
            bob.send(Disconnect())
            await bob.ended()
            broker.send(route, b"while away", 1)
            house.revoke("bob")
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=expiry)
            assert bob.connack.session_present
            assert await bob.silent()

    run(go)


def test_overlapping_subscriptions_deliver_once_with_the_highest_qos_and_all_identifiers() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            for identifier, topic_filter, qos in ((1, "open/#", 0), (2, "open/+", 2), (300, "open/x", 1)):
                bob.send(
                    Subscribe(9, [Subscription(topic_filter, qos)], {Property.SUBSCRIPTION_IDENTIFIER: identifier})
                )
                await bob.expect(Suback)
            broker.publish("open/x", b"1", qos=2)
            got = await bob.expect(Publish)
            assert got.qos == 2
            assert sorted((got.properties or {})[Property.SUBSCRIPTION_IDENTIFIER]) == [1, 2, 300]
            assert await bob.silent()

    run(go)


def test_no_local_and_retain_as_published_are_kept() -> None:
    async def go() -> None:
        async with running() as (_, _, port):
            alice = await RawClient.connect(port, "alice")
            bob = await RawClient.connect(port, "bob")
            await alice.subscribe("open/#", no_local=True)
            await bob.subscribe("open/#", retain_as_published=True)
            alice.send(Publish("open/x", b"1", retain=True))
            assert (await bob.expect(Publish)).retain
            bob.send(Publish("open/x", b"2", retain=True))
            got = await alice.expect(Publish)
            assert (got.payload, got.retain) == (b"2", False)
            assert (await bob.expect(Publish)).payload == b"2"

    run(go)


def test_properties_are_passed_on_to_mqtt_5_and_left_out_for_3_1_1() -> None:
    async def go() -> None:
        async with running() as (_, _, port):
            five = await RawClient.connect(port, "bob", client_id="5")
            three = await RawClient.connect(port, "bob", 4, client_id="3")
            await five.subscribe("open/#")
            await three.subscribe("open/#")
            alice = await RawClient.connect(port, "alice")
            properties: Properties = {
                Property.CONTENT_TYPE: "text/plain",
                Property.CORRELATION_DATA: b"\0\1",
                Property.USER_PROPERTY: [("a", "1"), ("a", "2")],
                Property.MESSAGE_EXPIRY_INTERVAL: 60,
            }
            alice.send(Publish("open/x", b"1", properties={**properties, Property.TOPIC_ALIAS: 1}))
            alice.send(Publish("", b"2", properties={Property.TOPIC_ALIAS: 1}))
            got = await five.expect(Publish)
            assert got.properties == properties
            assert await five.expect(Publish) == Publish("open/x", b"2")
            assert await three.expect(Publish) == Publish("open/x", b"1")

    run(go)


def test_a_message_larger_than_the_client_takes_is_left_out_and_counted() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob", properties={Property.MAXIMUM_PACKET_SIZE: 200})
            await bob.subscribe("open/#", qos=1)
            broker.publish("open/x", b"x" * 300, qos=1)
            broker.publish("open/x", b"small", qos=1)
            assert (await bob.expect(Publish)).payload == b"small"
            assert broker.counters.dropped_too_large == 1

    run(go)


def test_the_receive_maximum_of_a_client_is_never_exceeded() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob", properties={Property.RECEIVE_MAXIMUM: 3})
            await bob.subscribe("open/#", qos=2)
            for i in range(20):
                broker.publish("open/x", b"%d" % i, qos=1 + i % 2)
            got = await bob.collect(3)
            assert await bob.silent()
            for i in range(20):
                publish = got[i]
                assert int(publish.payload) == i
                if publish.qos == 1:
                    bob.send(Puback(publish.packet_id))
                else:
                    bob.send(Pubrec(publish.packet_id))
                    while not isinstance(packet := await bob.next(), Pubrel):
                        assert isinstance(packet, Publish)
                        got.append(packet)
                    bob.send(Pubcomp(publish.packet_id))
                if len(got) == i + 1 and i < 19:
                    got += await bob.collect(1)
            assert len({publish.packet_id for publish in got}) == 20

    run(go)


def test_packet_identifiers_wrap_around_and_skip_those_in_use() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#", qos=1)
            broker.publish("open/x", b"stuck", qos=1)
            assert (await bob.expect(Publish)).packet_id == 1
            broker.sessions["bob", "bob-1"].next_id = 65_535
            broker.publish("open/x", b"a", qos=1)
            broker.publish("open/x", b"b", qos=1)
            assert [publish.packet_id for publish in await bob.collect(2)] == [65_535, 2]

    run(go)


# ---- retained ----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_late_joiner_gets_the_houses_retained_messages_after_its_suback(level: int) -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            house.kept = {f"snapshot/o/{i}": b"%d" % i for i in range(1_000)}
            bob = await RawClient.connect(port, "bob", level)
            assert await bob.subscribe("snapshot/#", qos=1) == [1]
            for i in range(1_000):
                got = (await bob.collect(1))[0]
                assert (got.topic, got.payload, got.qos, got.retain) == (f"snapshot/o/{i}", b"%d" % i, 1, True)
                bob.send(Puback(got.packet_id))
            assert await bob.silent()

    run(go)


def test_retained_messages_go_only_to_who_asked_and_may_have_them() -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            house.kept = {"snapshot/secret": b"secret", "snapshot/known": b"known", "snapshot/other/x": b"x"}
            house.read["mallory"] = ["snapshot/known", "snapshot/other/x"]
            spy = await RawClient.connect(port, "mallory", client_id="spy")
            mallory = await RawClient.connect(port, "mallory")
            assert await mallory.subscribe("snapshot/+", "forbidden/#") == [0, Reason.NOT_AUTHORIZED]
            assert (await mallory.expect(Publish)).payload == b"known"
            assert await mallory.silent()
            assert await spy.silent()

    run(go)


def test_topics_opened_by_rules_have_retained_messages_too() -> None:
    async def go() -> None:
        async with running(retained_messages=2, retained_bytes=2_000) as (_, broker, port):
            alice = await RawClient.connect(port, "alice")
            bob = await RawClient.connect(port, "bob")

            async def put(topic: str, payload: bytes) -> int:
                alice.send(Publish(topic, payload, 1, retain=True, packet_id=1))
                return (await alice.expect(Puback)).reason

            assert await put("open/a", b"1") == 0
            assert await put("open/a", b"2") == 0
            assert await put("open/b", b"3") == 0
            assert await put("open/c", b"4") == Reason.QUOTA_EXCEEDED
            assert await put("open/a", b"x" * 3_000) == Reason.QUOTA_EXCEEDED
            await bob.subscribe("open/#", qos=1)
            assert [(p.topic, p.payload, p.retain) for p in await bob.collect(2)] == [
                ("open/a", b"2", True),
                ("open/b", b"3", True),
            ]
            assert await put("open/a", b"") == 0
            cleared = await bob.expect(Publish)
            assert (cleared.topic, cleared.payload, cleared.retain) == ("open/a", b"", False)
            assert len(broker.retained) == 1
            assert await put("open/b", b"") == 0
            assert broker.retained.bytes == 0

    run(go)


def test_retain_handling_says_when_retained_messages_are_sent() -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            house.kept = {"snapshot/x": b"1"}
            bob = await RawClient.connect(port, "bob")
            for handling, expected in ((2, False), (1, False), (0, True), (1, False)):
                await bob.subscribe("snapshot/#", retain_handling=handling)
                if expected:
                    assert (await bob.expect(Publish)).retain
                assert await bob.silent(0.05), handling

    run(go)


def test_expired_messages_are_not_sent_and_others_say_what_time_is_left() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            now = [1_000.0]
            broker.clock = lambda: now[0]
            alice = await RawClient.connect(port, "alice")
            kept: Properties = {Property.SESSION_EXPIRY_INTERVAL: 600}
            bob = await RawClient.connect(port, "bob", properties=kept)
            await bob.subscribe("open/#", qos=1)
            bob.drop()
            await until(lambda: broker.clients() == {"alice"})
            for seconds in (10, 100):
                expiry: Properties = {Property.MESSAGE_EXPIRY_INTERVAL: seconds}
                topic = f"open/{seconds}"
                alice.send(Publish(topic, b"x", 1, retain=True, packet_id=1, properties=expiry))
                await alice.expect(Puback)
            now[0] += 40
            bob = await RawClient.connect(port, "bob", properties=kept, clean_start=False)
            got = await bob.expect(Publish)
            assert (got.topic, got.properties) == ("open/100", {Property.MESSAGE_EXPIRY_INTERVAL: 60})
            assert await bob.silent()
            assert broker.counters.expired == 1
            await alice.subscribe("open/#")
            got = await alice.expect(Publish)
            assert (got.topic, got.properties) == ("open/100", {Property.MESSAGE_EXPIRY_INTERVAL: 60})
            assert await alice.silent()
            broker.sweep(now[0])
            assert len(broker.retained) == 1

    run(go)


def test_a_subscription_waits_until_what_is_applied_is_stored() -> None:
    async def go() -> None:
        async with running() as (house, broker, port):
            house.kept = {"snapshot/x": b"uncommitted"}
            bob = await RawClient.connect(port, "bob")
            house.busy = True
            bob.send(Subscribe(1, [Subscription("snapshot/#")]), Unsubscribe(2, ["delta/x"]), Pingreq())
            await bob.expect(Pingresp)
            assert await bob.silent()
            assert not house.rendered
            house.kept = {"snapshot/x": b"committed"}
            house.settle()
            assert await bob.expect(Suback) == Suback(1, [0])
            assert {type(await bob.next()) for _ in range(2)} == {Unsuback, Publish}
            bob.send(*(Subscribe(i, [Subscription("snapshot/#")]) for i in range(1, 101)))
            for i in range(1, 101):
                while not isinstance(packet := await bob.next(), Suback):
                    pass
                assert packet.packet_id == i
            house.busy = True
            bob.send(*(Subscribe(i, [Subscription("snapshot/#")]) for i in range(1, 1_001)))
            bob.drop()
            await until(lambda: len(house.waiting) > 1)
            house.settle()
            await until(lambda: not broker.clients())

    run(go)


def test_a_hundred_thousand_retained_messages_stall_nobody_and_are_not_rendered_ahead() -> None:
    async def go() -> None:
        async with running() as (house, _, port):
            house.kept = {f"snapshot/o/{i}": b"x" * 100 for i in range(100_000)}
            slow = await RawClient.connect(port, "bob", buffer=4_096)
            slow.send(Subscribe(1, [Subscription("snapshot/#", 0)]))
            other = await RawClient.connect(port, "alice")
            for _ in range(20):
                other.send(Pingreq())
                await other.expect(Pingresp)
            await asyncio.sleep(0.2)
            assert 100 < house.rendered < 50_000, "no more than its socket takes"
            window = await RawClient.connect(port, "bob", client_id="w", properties={Property.RECEIVE_MAXIMUM: 5})
            before = house.rendered
            await window.subscribe("snapshot/#", qos=1)
            await window.collect(5)
            assert await window.silent()
            assert house.rendered <= before + 5, "no more than its window takes"

    run(go)


# ---- sessions ----------------------------------------------------------------------------------------------------------


@BOTH
def test_a_session_outlives_its_connection_when_asked_to(level: int) -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            fields: dict[str, Any] = {"clean_start": False}
            if level == 5:
                fields["properties"] = {Property.SESSION_EXPIRY_INTERVAL: 100}
            bob = await RawClient.connect(port, "bob", level, **fields)
            assert not bob.connack.session_present
            await bob.subscribe("open/#", qos=1)
            broker.publish("open/x", b"unacknowledged", qos=1)
            first = await bob.expect(Publish)
            bob.drop()
            await until(lambda: not broker.clients())
            broker.publish("open/x", b"away", qos=1)
            broker.publish("open/x", b"away, and lost at QoS 0", qos=0)
            bob = await RawClient.connect(port, "bob", level, **fields)
            assert bob.connack.session_present
            again, queued = await bob.collect(2)
            assert (again.payload, again.dup, again.packet_id) == (b"unacknowledged", True, first.packet_id)
            assert (queued.payload, queued.dup, queued.retain) == (b"away", False, False)
            broker.publish("open/x", b"live", qos=1)
            assert (await bob.expect(Publish)).payload == b"live"
            fresh = await RawClient.connect(port, "bob", level, clean_start=True)
            assert not fresh.connack.session_present
            broker.publish("open/x", b"nobody", qos=1)
            assert await fresh.silent()

    run(go)


def test_a_session_whose_time_is_over_is_not_taken_up_before_a_sweep_has_seen_it() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            now = [1_000.0]
            broker.clock = lambda: now[0]
            kept: Properties = {Property.SESSION_EXPIRY_INTERVAL: 50}
            for gone, present in ((49, True), (51, False)):
                bob = await RawClient.connect(port, "bob", properties=kept, clean_start=False)
                bob.drop()
                await until(lambda: not broker.clients())
                now[0] += gone
                bob = await RawClient.connect(port, "bob", properties=kept, clean_start=False)
                assert bob.connack.session_present is present
                bob.drop()
                await until(lambda: not broker.clients())

    run(go)


def test_a_session_ends_when_its_time_is_over() -> None:
    async def go() -> None:
        async with running(session_expiry=50) as (_, broker, port):
            bob = await RawClient.connect(port, "bob", properties={Property.SESSION_EXPIRY_INTERVAL: 4_000_000_000})
            assert (bob.connack.properties or {})[Property.SESSION_EXPIRY_INTERVAL] == 50
            await bob.subscribe("open/#", qos=1)
            bob.drop()
            await until(lambda: not broker.clients())
            broker.publish("open/x", b"1", qos=1)
            assert broker.queued
            broker.sweep(broker.clock() + 49)
            assert broker.sessions
            broker.sweep(broker.clock() + 51)
            assert not broker.sessions
            assert not broker.queued
            assert not broker.route("open/x").wanted

    run(go)


def test_a_disconnect_can_end_the_session_but_not_make_one_last() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            lasting: Properties = {Property.SESSION_EXPIRY_INTERVAL: 100}
            bob = await RawClient.connect(port, "bob", properties=lasting)
            bob.send(Disconnect(0, {Property.SESSION_EXPIRY_INTERVAL: 0}))
            await bob.ended()
            assert not broker.sessions
            bob = await RawClient.connect(port, "bob")
            bob.send(Disconnect(0, lasting))
            assert await bob.ended() == Reason.PROTOCOL_ERROR

    run(go)


def test_sessions_of_absent_clients_are_bounded_and_a_client_pays_for_its_own() -> None:
    async def go() -> None:
        async with running(sessions=6, connections_per_client=3) as (_, broker, port):
            lasting: Properties = {Property.SESSION_EXPIRY_INTERVAL: 100}
            for name, count in (("alice", 2), ("mallory", 10), ("bob", 3)):
                for i in range(count):
                    client = await RawClient.connect(port, name, client_id=f"{name}{i}", properties=lasting)
                    client.send(Disconnect())
                    await client.ended()
            assert sorted(session.client_id for session in broker.sessions.values()) == [
                "bob0",
                "bob1",
                "bob2",
                "mallory7",
                "mallory8",
                "mallory9",
            ]

    run(go)


def test_a_client_that_comes_back_with_the_other_dialect_begins_anew() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            three = await RawClient.connect(port, "bob", 4, clean_start=False)
            await three.subscribe("open/#", qos=1)
            three.drop()
            await until(lambda: not broker.clients())
            five = await RawClient.connect(port, "bob", 5, clean_start=False)
            assert not five.connack.session_present
            broker.publish("open/x", b"1", qos=1)
            assert await five.silent(QUIET)

    run(go)


# ---- bounds ------------------------------------------------------------------------------------------------------------


def test_subscriptions_are_bounded_and_each_refusal_has_its_reason() -> None:
    async def go() -> None:
        async with running(subscriptions=3, filter_bytes=50) as (_, _, port):
            bob = await RawClient.connect(port, "bob")
            assert await bob.subscribe("open/a", "open/a#", "open/#/b", "$share/g/", "", "open/" + "x" * 50) == [
                0,
                Reason.TOPIC_FILTER_INVALID,
                Reason.TOPIC_FILTER_INVALID,
                Reason.TOPIC_FILTER_INVALID,
                Reason.TOPIC_FILTER_INVALID,
                Reason.TOPIC_FILTER_INVALID,
            ]
            assert await bob.subscribe("open/a", "open/b", "open/c", "open/d") == [0, 0, 0, Reason.QUOTA_EXCEEDED]
            bob.send(Unsubscribe(4, ["open/c", "open/never"]))
            assert (await bob.expect(Unsuback)).reasons == [0, Reason.NO_SUBSCRIPTION_EXISTED]
            assert await bob.subscribe("open/d") == [0]

    run(go)


def test_a_reader_that_never_reads_costs_its_own_bound_only() -> None:
    async def go() -> None:
        async with running(queue_bytes=300_000, queue_messages=500, write_bytes=50_000) as (_, broker, port):
            stuck = await RawClient.connect(port, "bob", client_id="stuck", buffer=4_096)
            await stuck.subscribe("open/#", qos=0)
            good = await RawClient.connect(port, "bob", client_id="good")
            await good.subscribe("open/#", qos=0)
            stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]
            alice = await RawClient.connect(port, "alice")
            for i in range(400):
                alice.send(*(Publish("open/x", b"%06d" % (i * 10 + j) + b"x" * 5_000) for j in range(10)))
                got = await good.collect(10)
                assert [int(p.payload[:6]) for p in got] == list(range(i * 10, i * 10 + 10))
            session = broker.sessions["bob", "stuck"]
            assert session.connection is not None
            assert session.connection.choked
            assert broker.counters.dropped_qos0 > 1_000
            assert session.queued <= 300_000
            assert broker.queued == session.queued
            assert session.connection.transport.get_write_buffer_size() < 250_000
            stuck.drop()
            await until(lambda: not broker.queued)

    run(go)


def test_a_reader_that_acknowledges_nothing_is_disconnected_when_its_queue_is_full() -> None:
    async def go() -> None:
        async with running(queue_messages=100) as (house, broker, port):
            bob = await RawClient.connect(port, "bob", 5)
            other = await RawClient.connect(port, "mallory", 4)
            await bob.subscribe("open/#", qos=1)
            await other.subscribe("open/#", qos=1)
            broker.sessions["bob", "bob-1"].window = 10
            broker.publish("open/x", b"0", qos=0)
            for i in range(150):
                broker.publish("open/x", b"%d" % i, qos=1)
            assert await bob.ended() == Reason.QUOTA_EXCEEDED
            assert len(await other.collect(100)) == 100
            assert broker.clients() == {"mallory"}
            assert house.events[-1] == ("offline", "bob", False, True)

    run(go)


def test_qos_0_gives_way_to_qos_1_in_a_full_queue() -> None:
    async def go() -> None:
        async with running(queue_messages=10) as (_, broker, port):
            bob = await RawClient.connect(port, "bob", properties={Property.RECEIVE_MAXIMUM: 1})
            await bob.subscribe("open/#", qos=1)
            broker.publish("open/x", b"sent", qos=1)
            broker.publish("open/x", b"first to wait", qos=1)
            for i in range(20):
                broker.publish("open/x", b"zero %d" % i, qos=0)
            for i in range(8):
                broker.publish("open/x", b"one %d" % i, qos=1)
            assert broker.counters.dropped_qos0 == 20
            payloads = []
            for _ in range(10):
                publish = (await bob.collect(1))[0]
                payloads.append(publish.payload)
                bob.send(Puback(publish.packet_id))
            assert payloads == [b"sent", b"first to wait", *(b"one %d" % i for i in range(8))]
            assert broker.clients() == {"bob"}

    run(go)


def test_who_never_reads_its_acknowledgements_is_not_read_from() -> None:
    async def go() -> None:
        async with running(write_bytes=20_000) as (_, broker, port):
            flood = await RawClient.connect(port, "alice", buffer=4_096)
            flood.writer.transport.pause_reading()  # type: ignore[attr-defined]
            connection = broker.sessions["alice", "alice-1"].connection
            assert connection is not None
            sent = 0
            while connection._held != BACKLOG:
                assert sent < 50_000_000
                if flood.writer.transport.get_write_buffer_size() < 1_000_000:
                    flood.send(b"\xc0\x00" * 50_000)
                    sent += 100_000
                await asyncio.sleep(0.001)
            flood.send(b"\xc0\x00" * 50_000)
            seen = broker.counters.bytes_in
            await asyncio.sleep(0.1)
            assert broker.counters.bytes_in == seen
            assert len(connection.out) < 200_000
            flood.drop()

    run(go)


def test_an_offline_queue_is_bounded() -> None:
    async def go() -> None:
        async with running(queue_messages=10) as (_, broker, port):
            lasting: Properties = {Property.SESSION_EXPIRY_INTERVAL: 100}
            bob = await RawClient.connect(port, "bob", properties=lasting)
            await bob.subscribe("open/#", qos=1)
            bob.drop()
            await until(lambda: not broker.clients())
            for i in range(30):
                broker.publish("open/x", b"%d" % i, qos=1)
            bob = await RawClient.connect(port, "bob", clean_start=False, properties=lasting)
            assert [int(publish.payload) for publish in await bob.collect(10)] == list(range(10))
            assert broker.counters.dropped_queue == 20
            assert not broker.queued

    run(go)


def test_subscribing_during_a_broadcast_loses_nobody_anything() -> None:
    async def go() -> None:
        async with running() as (_, broker, port):
            readers = [await RawClient.connect(port, "bob", client_id=f"r{i}") for i in range(2)]
            for reader in readers:
                await reader.subscribe("open/#", qos=1)
            alice = await RawClient.connect(port, "alice")

            async def churn() -> None:
                for i in range(200):
                    client = await RawClient.connect(port, "mallory", client_id=f"c{i}")
                    await client.subscribe("open/+", f"open/{i}", qos=1)
                    client.drop()

            churning = asyncio.create_task(churn())
            for i in range(1, 501):
                alice.send(Publish("open/x", b"%d" % i, 1, packet_id=i))
                if i % 10 == 0:
                    await asyncio.sleep(0)
            for reader in readers:
                for i in range(1, 501):
                    publish = (await reader.collect(1))[0]
                    assert int(publish.payload) == i
                    reader.send(Puback(publish.packet_id))
            await churning
            for _ in range(500):
                assert (await alice.expect(Puback)).reason == 0
            await until(lambda: not any(client == "mallory" for client, _ in broker.sessions))

    run(go)


def test_ten_thousand_filters_of_others_are_not_looked_at() -> None:
    async def go() -> None:
        async with running(subscriptions=20_000) as (house, broker, port):
            house.read["mallory"] = ["#"]
            foreign = await RawClient.connect(port, "mallory")
            for start in range(0, 10_000, 1_000):
                await foreign.subscribe(*(f"foreign/{i}/+/x" for i in range(start, start + 1_000)))
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("open/#")
            assert len(broker.subscriptions.match("open/x")) == 1
            assert broker.publish("open/x", b"1", qos=0) == 1
            assert (await bob.expect(Publish)).payload == b"1"
            foreign.drop()
            await until(lambda: broker.clients() == {"bob"})
            assert set(broker.subscriptions._tree.children) == {"open"}, "empty branches are cut"

    run(go)


def test_two_thousand_idle_connections_are_held() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4_200
    if soft < wanted:
        if hard < wanted:
            pytest.skip(f"needs {wanted} open files: ulimit -n {wanted}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    async def go() -> None:
        house = TableHouse()
        async with running(house, connections_per_client=3_000) as (_, broker, port):
            idle = [await RawClient.connect(port, "bob", 4 + i % 2, client_id=str(i)) for i in range(2_000)]
            assert broker.counters.connections == 2_000
            alice = await RawClient.connect(port, "alice")
            await alice.subscribe("open/#")
            alice.send(Publish("open/x", b"1", 1, packet_id=1))
            assert {type(await alice.next()) for _ in range(2)} == {Puback, Publish}
            for client in idle[::100]:
                client.send(Pingreq())
                await client.expect(Pingresp)

    run(go)
