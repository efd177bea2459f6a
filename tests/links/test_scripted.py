"""A link against a broker that the test plays itself, packet by packet: what no well-behaved broker does."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from gateway.links import remote
from gateway.links.link import TakenOverError
from gateway.wire.codec import encode
from gateway.wire.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Reason,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from tests.broker.world import run
from tests.links.world import PATIENCE, Peer, Scripted, kinds, scripted, soon, until

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses are there for many gateways and slow brokers: here is one of each, and it is quick."""
    monkeypatch.setattr(remote, "SETTLE", 0.02)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(remote, "FLUSH", 0.1)


def report(number: int, *, qos: int = 1, dup: bool = False, packet_id: int | None = None, **rest: Any) -> Publish:
    return Publish(
        "report/a/ctxt/home.local/a/t",
        b"%d" % number,
        qos,
        dup=dup,
        packet_id=(packet_id or number % 65_535 + 1) if qos else 0,
        **rest,
    )


# What a broker may not send


GARBAGE: dict[str, tuple[bytes | Packet, int, str]] = {
    "no MQTT": (b"HTTP/1.1 400 Bad Request\r\n\r\n", Reason.MALFORMED_PACKET, "not MQTT"),
    "a reserved type": (b"\0\0", Reason.MALFORMED_PACKET, "packet type 0"),
    "QoS 3": (b"\x36\5\0\1a\0\1", Reason.MALFORMED_PACKET, "QoS 3"),
    "broken UTF-8": (b"\x30\4\0\1\xff\0", Reason.MALFORMED_PACKET, "not MQTT"),
    "a packet of clients": (Pingreq(), Reason.PROTOCOL_ERROR, "does not come from this side"),
    "too much": (b"\x30\xff\xff\xff\x7f", Reason.PACKET_TOO_LARGE, "are taken"),
    "a second CONNACK": (Connack(), Reason.PROTOCOL_ERROR, "CONNACK"),
    "an AUTH": (Auth(0x18, {Property.AUTHENTICATION_METHOD: "x"}), Reason.PROTOCOL_ERROR, "AUTH"),
    "a PUBREC": (Pubrec(9), Reason.PROTOCOL_ERROR, "PUBREC"),
    "a SUBACK": (Suback(9, [0]), Reason.PROTOCOL_ERROR, "SUBACK"),
    "an unknown alias": (b"\x30\7\0\0\3\x23\0\7x", Reason.PROTOCOL_ERROR, "topic alias 7"),
    "an alias too high": (b"\x30\x08\0\1a\3\x23\1\0x", Reason.TOPIC_ALIAS_INVALID, "topic alias 256"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_a_broker_that_breaks_the_rules_is_told_and_left_and_joined_anew(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    sends, reason, words = GARBAGE[what]

    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            peer.send(sends)
            rest = await soon(peer.ended())
            assert [packet.reason for packet in rest if isinstance(packet, Disconnect)] == [reason]
            assert any(words in record.getMessage() for record in caplog.records), caplog.text
            peer = await world.joined()
            peer.send(report(7))
            assert (await peer.next(Puback)).packet_id == 8
            assert world.notes.failure is None

    run(main)


def test_what_was_good_before_the_garbage_is_taken_in() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            peer.writer.write(_bytes(peer, report(1), report(2)) + b"\0\0")
            assert kinds(await soon(peer.ended()))["Puback"] == 2
            assert [publish.payload for publish in world.notes.got] == [b"1", b"2"]

    run(main)


def _bytes(peer: Peer, *packets: Packet) -> bytes:
    return b"".join(encode(packet, peer.level) for packet in packets)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda subscribe: Unsuback(subscribe.packet_id, [0]), id="an UNSUBACK"),
        pytest.param(lambda subscribe: Suback(subscribe.packet_id, [0, 0, 0, 0, 0, 0, 0]), id="too many reasons"),
        pytest.param(lambda subscribe: Puback(subscribe.packet_id), id="a PUBACK, and then nothing"),
    ],
)
def test_a_wrong_answer_to_a_subscription_ends_the_connection_only(
    answer: Callable[[Subscribe], Packet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "JOIN", 0.1)

    async def main() -> None:
        async with scripted() as world:
            peer = await world.peer()
            peer.answering = False
            await peer.connect()
            peer.send(answer(await peer.next(Subscribe)))
            await soon(peer.ended())
            await world.joined()

    run(main)


def test_a_broker_that_speaks_before_it_has_answered_is_left() -> None:
    async def main() -> None:
        async with scripted(protocol="5") as world:
            peer = await world.peer()
            await peer.next(Connect)
            peer.send(report(1))
            await soon(peer.ended())
            assert world.notes.got == []
            await world.joined()

    run(main)


def test_a_broker_that_closes_at_once_is_tried_again_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds > 0.005:
            slept.append(seconds)
        await sleep(0)

    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 4.0)
    monkeypatch.setattr(asyncio, "sleep", noted)

    async def main() -> None:
        async with scripted() as world:
            for _ in range(10):
                (await world.peer()).drop()
            assert world.starting is not None
            assert not world.starting.done()

    run(main)
    for pause, most in zip(slept, [0.2, 0.4, 0.8, 1.6, 3.2, 4.0, 4.0, 4.0, 4.0], strict=False):
        assert most / 2 <= pause <= most
    assert len(slept) >= 9


def test_a_broker_that_never_answers_is_left_after_the_time_set(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with scripted(connect_timeout=0.1) as world:
            peer = await world.peer()
            await peer.next(Connect)
            await soon(peer.ended())
            await world.joined()

    run(main)
    assert "does not answer a CONNECT within 0.1 s" in caplog.text


def test_bytes_in_any_portions_are_the_same_packets() -> None:
    async def main() -> None:
        async with scripted(protocol="5") as world:
            peer = await world.peer()
            await peer.next(Connect)
            for byte in _bytes(peer, Connack()):
                peer.writer.write(bytes((byte,)))
                await asyncio.sleep(0.002)
            while True:
                subscribe = await peer.next(Subscribe)
                if subscribe.subscriptions[0].topic_filter == "report/#":
                    break
            await until(lambda: world.link.ready, "ready")
            for byte in _bytes(peer, report(1)):
                peer.writer.write(bytes((byte,)))
                await asyncio.sleep(0.001)
            await peer.next(Puback)
            assert [publish.payload for publish in world.notes.got] == [b"1"]

    run(main)


# What the broker announces


def test_no_more_is_sent_unacknowledged_than_the_broker_takes_and_the_rest_follows_in_order() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined(Connack(properties={Property.RECEIVE_MAXIMUM: 3}))
            await _quiet(world)
            peer.answering = False
            await _fence(peer)
            route = world.link.route("delta/x", retain=False)
            for number in range(20):
                world.link.send(route, b"%d" % number, 1)
            got: list[Publish] = []
            while len(got) < 20:
                batch = [await peer.next(Publish) for _ in range(min(3, 20 - len(got)))]
                # What else was on its way would be here before the answer to this.
                peer.send(report(len(got)))
                assert isinstance(await peer.read(), Puback)
                got += batch
                peer.send(*(Puback(publish.packet_id) for publish in batch))
            assert [int(publish.payload) for publish in got] == list(range(20))

    run(main)


def test_the_broker_is_told_how_much_it_may_send_and_served_when_it_sends_more() -> None:
    async def main() -> None:
        async with scripted(receive_maximum=3) as world:
            peer = await world.joined()
            assert peer.hello.properties is not None
            assert peer.hello.properties[Property.RECEIVE_MAXIMUM] == 3
            world.notes.holding = True
            peer.send(*(report(number) for number in range(10)))
            await until(lambda: len(world.notes.got) == 10, "all are taken in")
            world.notes.acknowledge_all(world.notes.got)
            assert [(await peer.next(Puback)).packet_id for _ in range(10)] == list(range(1, 11))

    run(main)


def test_what_is_larger_than_the_broker_takes_is_not_sent_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined(Connack(properties={Property.MAXIMUM_PACKET_SIZE: 1_000}))
            for qos in (0, 1):
                world.link.send(world.link.route("delta/x", retain=False), b"x" * 1_000, qos)
            world.link.send(world.link.route("delta/x", retain=False), b"small", 1)
            got = await peer.publish("delta/x")
            assert got.payload == b"small"
            assert world.link.counters.dropped_too_large == 2

    run(main)
    assert "the broker takes packets of at most 1000 bytes" in caplog.text


def test_topic_aliases_are_set_as_many_as_the_broker_takes_and_stand_for_their_topics() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined(Connack(properties={Property.TOPIC_ALIAS_MAXIMUM: 2}))
            peer.decoder.alias_maximum = 2
            long = "delta/ctxt/home.local/a/rather/long/topic/{}"
            for _ in range(5):
                # Sent once and never again: not worth an alias.
                world.link.publish("inbox/a-client-with-a-rather-long-name", b"once", qos=1)
            routes = [world.link.route(long.format(number), retain=False) for number in range(4)]
            before = len(world.notes.got)
            for _ in range(3):
                for number, route in enumerate(routes):
                    world.link.send(route, b"%d" % number, 1)
            got: list[Publish] = []
            while len(got) < 12:
                publish = await peer.next(Publish)
                if publish.topic.startswith("delta/"):
                    got.append(publish)
            assert [publish.topic for publish in got] == [long.format(number) for number in range(4)] * 3
            assert [publish.payload for publish in got] == [b"0", b"1", b"2", b"3"] * 3
            assert [route.alias_of is not None for route in routes] == [True, True, False, False]
            assert len(world.notes.got) == before
            peer.drop()
            # A new connection knows none of them.
            peer = await world.joined(Connack(properties={Property.TOPIC_ALIAS_MAXIMUM: 2}))
            world.link.send(routes[0], b"again", 1)
            publish = await peer.publish(long.format(0))
            assert publish.payload == b"again"

    run(main)


def test_topic_aliases_that_the_broker_sets_are_understood() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            first = report(1, properties={Property.TOPIC_ALIAS: 64})
            again = report(2, properties={Property.TOPIC_ALIAS: 64})
            again.topic = ""
            peer.send(first, again)
            await until(lambda: len(world.notes.got) == 2, "both are taken in")
            assert world.notes.got[1].topic == first.topic

    run(main)


def test_the_brokers_keep_alive_holds_and_silence_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PING_WAIT", 0.5)

    async def main() -> None:
        async with scripted(keep_alive=30) as world:
            peer = await world.joined(Connack(properties={Property.SERVER_KEEP_ALIVE: 1}))
            await peer.next(Pingreq)
            peer.answering = False
            await soon(peer.ended())
            assert (await world.joined()).hello.keep_alive == 30

    run(main)


def test_who_does_not_read_for_long_still_shows_a_sign_of_life() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined(Connack(properties={Property.SERVER_KEEP_ALIVE: 1}))
            peer.answering = False
            world.link.pause()
            for _ in range(2):
                await peer.next(Pingreq)
            assert world.link.ready
            world.link.resume()
            assert world.link.counters.connections == 1

    run(main)


@pytest.mark.parametrize("most", [0, 1])
def test_a_broker_with_a_lower_maximum_qos_gets_no_more(most: int) -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined(Connack(properties={Property.MAXIMUM_QOS: most}))
            world.link.send(world.link.route("delta/x", retain=False), b"x", 1)
            publish = await peer.publish("delta/x")
            assert publish.qos == most

    run(main)


@pytest.mark.parametrize(
    ("announced", "words"),
    [
        (Property.RETAIN_AVAILABLE, "keeps no retained messages"),
        (Property.WILDCARD_SUBSCRIPTION_AVAILABLE, "wildcards"),
    ],
)
def test_a_broker_that_lacks_what_the_gateway_needs_is_refused_at_the_start(announced: Property, words: str) -> None:
    async def main() -> None:
        async with scripted() as world:
            await (await world.peer()).connect(Connack(properties={announced: 0}))
            assert words in await world.start_error()

    run(main)


# The version


@pytest.mark.parametrize("refusal", [b"\x20\2\0\1", Connack(reason=Reason.UNSUPPORTED_PROTOCOL_VERSION)])
def test_a_broker_that_refuses_mqtt_5_gets_3_1_1(refusal: bytes | Connack) -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.peer()
            assert (await peer.next(Connect)).level == 5
            peer.send(refusal)
            await soon(peer.ended())
            peer = await world.joined()
            assert peer.level == 4
            peer.send(report(1), report(2, qos=2))
            await peer.next(Puback)
            assert (await peer.next(Pubrec)).packet_id == 3
            peer.send(Pubrel(3))
            await peer.next(Pubcomp)

    run(main)


def test_a_broker_that_just_closes_gets_3_1_1_and_then_5_again() -> None:
    async def main() -> None:
        async with scripted() as world:
            levels = []
            for _ in range(3):
                peer = await world.peer()
                levels.append((await peer.next(Connect)).level)
                peer.drop()
            assert levels == [5, 4, 5]
            peer = await world.joined()
            assert peer.level == 4
            peer.drop()
            assert (await world.joined()).level == 4

    run(main)


@pytest.mark.parametrize(("protocol", "level"), [("5", 5), ("3.1.1", 4)])
def test_a_version_that_is_set_is_kept(protocol: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with scripted(protocol=protocol) as world:
            for _ in range(2):
                peer = await world.peer()
                assert (await peer.next(Connect)).level == level
                peer.send(Connack(reason=Reason.UNSUPPORTED_PROTOCOL_VERSION))
                await soon(peer.ended())

    run(main)
    assert "unsupported protocol version; set link.protocol" in caplog.text


# Refusals


@pytest.mark.parametrize("reason", sorted(remote.REFUSED_FOR_GOOD))
def test_what_trying_again_does_not_change_ends_the_start_and_later_is_tried_again(reason: Reason) -> None:
    async def main() -> None:
        async with scripted(username="gw", password_file=None) as world:
            await (await world.peer()).connect(Connack(reason=reason))
            sentence = await world.start_error()
            assert reason.name.replace("_", " ").lower() in sentence
            named = reason in (Reason.BAD_USER_NAME_OR_PASSWORD, Reason.NOT_AUTHORIZED)
            assert ("it came as 'gw': check link.username and link.password_file" in sentence) == named
        async with scripted() as world:
            (await world.joined()).drop()
            await (await world.peer()).connect(Connack(reason=reason))
            await world.joined()
            assert world.notes.failure is None

    run(main)


@pytest.mark.parametrize("reason", [Reason.SERVER_BUSY, Reason.SERVER_UNAVAILABLE, Reason.QUOTA_EXCEEDED])
def test_what_may_change_is_tried_again_from_the_first_time(reason: Reason) -> None:
    async def main() -> None:
        async with scripted() as world:
            await (await world.peer()).connect(Connack(reason=reason))
            await world.joined()

    run(main)


@pytest.mark.parametrize("topic", ["snapshot/#", "report/#"])
def test_a_refused_subscription_ends_the_start_with_the_filter(topic: str) -> None:
    async def main() -> None:
        async with scripted(username="gw") as world:
            peer = await world.peer()
            peer.answering = False
            await peer.connect()
            while True:
                packet = await peer.next(object)
                filters = [one.topic_filter for one in packet.subscriptions] if isinstance(packet, Subscribe) else []
                if isinstance(packet, Subscribe) and topic in filters:
                    reasons = [Reason.NOT_AUTHORIZED if each == topic else 0 for each in filters]
                    peer.send(Suback(packet.packet_id, list(map(int, reasons))))
                    break
                peer.answer(packet)  # type: ignore[arg-type]  # `next` gives packets
            sentence = await world.start_error()
            assert f"does not let the gateway read {topic} (not authorized): let 'gw' read it" in sentence

    run(main)


def test_a_refused_message_to_itself_ends_the_start_at_once() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.peer()
            peer.answering = False
            await peer.connect()
            while True:
                packet = await peer.next(object)
                if isinstance(packet, Publish):
                    peer.send(Puback(packet.packet_id, Reason.NOT_AUTHORIZED))
                    break
                peer.answer(packet)  # type: ignore[arg-type]  # `next` gives packets
            assert "on replica/g/mark: let 'gw' write to it and read it" in await world.start_error()

    run(main)


def test_a_message_to_itself_that_never_comes_back_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "JOIN", 0.1)

    async def main() -> None:
        async with scripted() as world:
            peer = await world.peer()
            peer.answering = False
            await peer.connect()
            for _ in range(3):
                packet = await peer.next(object)
                if not isinstance(packet, Publish):
                    peer.answer(packet)  # type: ignore[arg-type]  # `next` gives packets
            assert "on replica/g/mark: let 'gw' write to it and read it" in await world.start_error()

    run(main)


def test_a_message_that_the_broker_refuses_is_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            peer.answering = False
            world.link.send(world.link.route("delta/x", retain=False), b"x", 1)
            publish = await peer.publish("delta/x")
            peer.send(Puback(publish.packet_id, Reason.NOT_AUTHORIZED, {Property.REASON_STRING: "no"}))
            await until(lambda: world.link.counters.refused == 1, "the refusal is counted")

    run(main)
    assert "the broker refuses a message on delta/x (reason 0x87, no): let 'gw' write to it" in caplog.text


# Sent again


async def _inflight(world: Scripted, peer: Peer, count: int) -> list[Publish]:
    """Messages that the broker has got and not acknowledged."""
    await _quiet(world)
    peer.answering = False
    await _fence(peer)
    route = world.link.route("delta/ctxt/home.local/some/object/of/ours", retain=False)
    for number in range(count):
        world.link.send(route, b"%d" % number, 1)
    return [await peer.next(Publish) for _ in range(count)]


async def _quiet(world: Scripted) -> None:
    """Wait until all that the link sends after joining is acknowledged."""
    await until(lambda: not world.link._inflight, "everything is acknowledged")


async def _fence(peer: Peer) -> None:
    """Read everything that was sent before now."""
    peer.send(report(60_000))
    while (await peer.next(Puback)).packet_id != 60_001:
        pass


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_knows_the_session_gets_the_same_again(protocol: str) -> None:
    async def main() -> None:
        async with scripted(protocol=protocol) as world:
            peer = await world.joined()
            await _quiet(world)
            sent = await _inflight(world, peer, 5)
            peer.send(Puback(sent[0].packet_id), Puback(sent[2].packet_id))
            await until(lambda: len(world.link._inflight) == 3, "two are acknowledged")
            peer.drop()
            peer = await world.peer()
            await peer.connect(Connack(session_present=True))
            again = [await peer.next(Publish) for _ in range(3)]
            assert [publish.payload for publish in again] == [b"1", b"3", b"4"]
            assert [publish.packet_id for publish in again] == [sent[i].packet_id for i in (1, 3, 4)]
            assert all(publish.dup and publish.topic == sent[0].topic for publish in again)

    run(main)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_broker_that_has_forgotten_the_session_gets_new_messages_in_order(protocol: str) -> None:
    async def main() -> None:
        async with scripted(protocol=protocol) as world:
            peer = await world.joined()
            assert world.notes.lost_sessions == 1
            await _quiet(world)
            sent = await _inflight(world, peer, 5)
            peer.drop()
            peer = await world.peer()
            await peer.connect(Connack(session_present=False))
            again = [await peer.publish(sent[0].topic) for _ in range(5)]
            assert world.notes.lost_sessions == 2
            assert [publish.payload for publish in again] == [publish.payload for publish in sent]
            assert not any(publish.dup for publish in again)

    run(main)


def test_what_was_read_and_not_acknowledged_is_acknowledged_on_the_connection_that_brings_it_again() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            world.notes.holding = True
            peer.send(report(1))
            await until(lambda: len(world.notes.got) == 1, "it is taken in")
            peer.drop()
            peer = await world.joined(Connack(session_present=True))
            world.notes.acknowledge_all(world.notes.got)
            world.notes.holding = False
            peer.send(report(2))
            # The first PUBACK is that of this connection's report: the old one is not answered here.
            assert (await peer.next(Puback)).packet_id == 3
            peer.send(report(1, dup=True))
            assert (await peer.next(Puback)).packet_id == 2
            assert world.notes.got[-1].dup

    run(main)


def test_a_pubrel_of_an_earlier_connection_is_answered() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined(Connack(session_present=True))
            peer.send(Pubrel(5), Pubrel(6), Pubrel(7))
            assert [(await peer.next(Pubcomp)).packet_id for _ in range(3)] == [5, 6, 7]

    run(main)


# What the broker keeps


def announced(epoch: int, counter: int = 0, status: str = "online") -> bytes:
    return json.dumps({"status": status, "epoch": epoch, "counter": counter}).encode()


async def _joined_with(world: Scripted, kept: bytes, connack: Connack | None = None) -> Peer:
    """Join, with this retained on the gateway's own topic."""
    peer = await world.peer()
    await peer.connect(connack)
    while True:
        subscribe = await peer.next(Subscribe)
        filters = [one.topic_filter for one in subscribe.subscriptions]
        if "gateway/g" in filters:
            peer.send(Publish("gateway/g", kept, retain=True))
        if "report/#" in filters:
            await until(lambda: world.link.ready, "ready")
            return peer


def test_who_shows_a_lower_word_than_was_confirmed_has_lost_something() -> None:
    async def main() -> None:
        async with scripted() as world:
            notes = world.notes
            peer = await world.joined()
            notes.counter = 5
            peer.send(Publish("gateway/g", announced(notes.epoch, 5)))
            await until(lambda: world.link._confirmed == 5, "the word is heard")
            peer.drop()
            for kept, lost in [
                (announced(notes.epoch, 5), False),
                (announced(notes.epoch, 4), True),
                (announced(notes.epoch - 256, 9), True),
                (b"", True),
                (b'{"epoch":1e999}', True),
                (b'["epoch"]', True),
                (announced(notes.epoch, 5), False),
            ]:
                peer = await _joined_with(world, kept)
                assert notes.joins[-1] == (lost, []), kept
                peer.drop()
                await until(lambda: not world.link.ready, "the cut is noticed")

    run(main)


def test_a_will_of_a_connection_since_the_last_word_loses_nothing() -> None:
    async def main() -> None:
        async with scripted() as world:
            notes = world.notes
            peer = await world.joined()
            assert peer.hello.will is not None
            will = peer.hello.will.payload
            notes.counter = 5
            peer.send(Publish("gateway/g", announced(notes.epoch, 5)))
            await until(lambda: world.link._confirmed == 5, "the word is heard")
            notes.counter = 9
            peer.drop()
            # The will says 0, and is what the broker shows now.
            peer = await _joined_with(world, will)
            assert notes.joins[-1] == (False, [])
            peer.drop()
            # A will of long ago is not.
            await _joined_with(world, will)
            assert notes.joins[-1] == (True, [])

    run(main)


def test_a_will_that_comes_late_is_answered_by_the_truth() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            await _quiet(world)
            await _fence(peer)
            peer.send(Publish("gateway/g", announced(world.notes.epoch, 0, "offline")))
            publish = await peer.next(Publish)
            assert (publish.topic, publish.retain) == ("gateway/g", True)
            assert json.loads(publish.payload)["status"] == "online"
            peer.send(Publish("gateway/g", publish.payload))
            peer.send(report(1))
            await peer.next(Puback)
            assert not peer.unread

    run(main)


def test_a_gateway_of_the_same_id_that_came_later_wins_and_its_word_stays() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            peer.send(Publish("gateway/g", announced(world.notes.epoch + 1)))
            rest = await soon(peer.ended())
            # With a good-bye, so that the will is not published.
            assert [packet.reason for packet in rest if isinstance(packet, Disconnect)] == [0]
            assert isinstance(world.notes.failure, TakenOverError)
            assert "another gateway with the same id" in str(world.notes.failure)

    run(main)


def test_two_take_overs_in_a_row_are_one_too_many() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            peer.send(Disconnect(Reason.SESSION_TAKEN_OVER))
            peer = await world.joined()
            assert not world.notes.failure
            peer.send(Disconnect(Reason.SESSION_TAKEN_OVER))
            await until(lambda: world.notes.failure is not None, "the link gives up")
            assert isinstance(world.notes.failure, TakenOverError)
            assert "as 'gw' and has taken this gateway's place twice" in str(world.notes.failure)

    run(main)


def test_what_others_publish_all_the_time_does_not_hold_up_the_start() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.peer()
            await peer.connect()

            async def chatter() -> None:
                while True:
                    peer.send(Publish("snapshot/ctxt/elsewhere.org/x", b'{"epoch":1}'))
                    await asyncio.sleep(0.005)

            task = asyncio.create_task(chatter())
            while (await peer.next(Subscribe)).subscriptions[0].topic_filter != "report/#":
                pass
            await until(lambda: world.link.ready, "ready")
            task.cancel()

    run(main)


def test_retained_messages_are_waited_for_also_behind_the_mark() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.peer()
            await peer.connect()
            while (await peer.next(Publish)).topic != "replica/g/mark":
                pass
            for number in range(20):
                await asyncio.sleep(0.005)
                peer.send(Publish(f"snapshot/ctxt/home.local/a/{number}", b'{"epoch":%d}' % number, retain=True))
            unsubscribe = await peer.next(Unsubscribe)
            assert set(unsubscribe.topic_filters) == {"snapshot/#", "value/#", "gateway/+"}
            await until(lambda: world.link.ready, "ready")
            ((lost, strays),) = world.notes.joins
            assert lost
            assert len(strays) == 20
            assert world.notes.seen == 19

    run(main)


# Retained reports


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_retained_report_is_not_taken_in_and_its_copy_is_cleared(protocol: str) -> None:
    async def main() -> None:
        async with scripted(protocol=protocol) as world:
            peer = await world.joined()
            kept = report(1, qos=0)
            kept.retain = True
            peer.send(kept, report(2))
            publish = await peer.publish(kept.topic)
            assert (publish.payload, publish.retain) == (b"", True)
            # It comes back, in 3.1.1 as if it had never been retained; what follows counts.
            peer.send(Publish(kept.topic, b"", retain=protocol == "5"), report(3))
            await until(lambda: len(world.notes.got) == 2, "the others are taken in")
            assert [publish.payload for publish in world.notes.got] == [b"2", b"3"]
            assert world.link.counters.retained_reports == 1

    run(main)


def test_retained_presence_counts() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            peer.send(Publish("presence/a", b"online", retain=True), Publish("presence/b", b"", retain=True))
            await until(lambda: world.notes.got, "it is taken in")
            assert [(publish.topic, publish.payload) for publish in world.notes.got] == [("presence/a", b"online")]

    run(main)


# Characters with a meaning of their own


def test_escaped_characters_are_plain_inside_and_escaped_outside() -> None:
    async def main() -> None:
        async with scripted(escape=". ") as world:
            peer = await world.joined()
            world.link.publish("inbox/a/b.c", b"x", qos=1)
            while (publish := await peer.next(Publish)).topic == "gateway/g":
                pass
            assert publish.topic == "inbox/a/b%2Ec"
            peer.send(
                Publish("report/a/ctxt/home%2Elocal/a/t", b"1"),
                # Percent-encoded in the URL itself: it stays so.
                Publish("report/a/ctxt/home%2Elocal/a/one%20two", b"2"),
                Publish("report/a/ctxt/home.local/a/t", b"3"),
            )
            await until(lambda: len(world.notes.got) == 3, "they are taken in")
            assert [publish.topic for publish in world.notes.got] == [
                "report/a/ctxt/home.local/a/t",
                "report/a/ctxt/home.local/a/one%20two",
                "report/a/ctxt/home.local/a/t",
            ]

    run(main)


# Stopping


def test_stopping_waits_for_the_last_acknowledgements_and_says_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FLUSH", PATIENCE)

    async def main() -> None:
        async with scripted() as world:
            peer = await world.joined()
            await _quiet(world)
            sent = await _inflight(world, peer, 3)
            stopping = asyncio.create_task(world.link.stop())
            await until(lambda: world.link._stopping, "it stops")
            peer.send(report(1))
            peer.send(*(Puback(publish.packet_id) for publish in sent))
            rest = await soon(peer.ended())
            await soon(stopping)
            # The report that came meanwhile is the next run's.
            assert kinds(rest) == {"Disconnect": 1}
            assert b"1" not in [publish.payload for publish in world.notes.got]

    run(main)


def test_stopping_while_the_broker_is_silent_ends() -> None:
    async def main() -> None:
        async with scripted() as world:
            peer = await world.peer()
            await peer.next(Connect)
            await soon(world.link.stop())

    run(main)
