"""A decoder between its packets: pieces of any size, pauses, topic aliases, and what it holds at most."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.codec import TOPIC_BYTES, TOPICS, Decoder, encode, encode_puback
from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import (
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
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
from tests.wire.strategies import CONNECT, from_client, reader

_SAID = {Property.REASON_STRING: "no"}
FROM_CLIENT: dict[int, list[Packet]] = {
    level: [
        Publish(
            "a/b", b"x" * 150, 1, packet_id=7, properties={Property.USER_PROPERTY: [("k", "v")]} if level == 5 else None
        ),
        Publish("a/é", b"", 0, True),
        Puback(3, Reason.NOT_AUTHORIZED, _SAID) if level == 5 else Puback(3),
        Puback(4),
        Pubrec(5),
        Subscribe(2, [Subscription("a/#", 1), Subscription("+", 2)]),
        Unsubscribe(2, ["a", "b"]),
        Pingreq(),
        Disconnect(),
    ]
    for level in (4, 5)
}
FROM_SERVER: dict[int, list[Packet]] = {
    level: [
        Connack(True, 0, {Property.RECEIVE_MAXIMUM: 10} if level == 5 else None),
        Publish("a/b", b"x" * 150, 2, packet_id=7),
        Suback(2, [0, 1], _SAID if level == 5 else None),
        Unsuback(2, [0] if level == 5 else []),
        Pingresp(),
    ]
    for level in (4, 5)
}


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("level", [4, 5])
def test_a_cut_at_any_point_makes_the_same_packets(level: int, server: bool) -> None:
    packets = (FROM_CLIENT if server else FROM_SERVER)[level]
    whole = b"".join(encode(packet, level) for packet in packets)
    for cut in range(len(whole) + 1):
        decoder = reader(level, server=server)
        assert decoder.feed(whole[:cut]) + decoder.feed(whole[cut:]) == packets, cut
        assert decoder.buffered == 0


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("level", [4, 5])
def test_bytes_that_come_one_by_one_make_the_same_packets(level: int, server: bool) -> None:
    packets = (FROM_CLIENT if server else FROM_SERVER)[level]
    decoder = reader(level, server=server)
    found: list[Packet] = []
    for byte in b"".join(encode(packet, level) for packet in packets):
        found += decoder.feed(bytes((byte,)))
    assert found == packets


@settings(deadline=None)
@given(st.data(), st.sampled_from([4, 5]))
def test_pieces_of_any_size_make_the_same_packets_from_the_connect_on(data: st.DataObject, level: int) -> None:
    packets = data.draw(st.lists(from_client(level), max_size=4))
    whole = CONNECT[level] + b"".join(encode(packet, level) for packet in packets)
    decoder = Decoder(server=True)
    found: list[Packet] = []
    at = 0
    while at < len(whole):
        size = data.draw(st.integers(1, 40))
        found += decoder.feed(whole[at : at + size])
        at += size
    found += decoder.feed(b"")
    assert found == [Connect("c", level), *packets]
    assert decoder.buffered == 0


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("size", [1_000, 1_400, 4_096])
def test_a_long_packet_may_begin_behind_others_in_one_read_and_end_in_another(
    size: int, level: int, server: bool
) -> None:
    packets: list[Packet] = [Publish("a/b", bytes((n,)) * (n * 37 % 900), n % 2, packet_id=n % 2) for n in range(100)]
    whole = b"".join(encode(packet, level) for packet in packets)
    decoder = reader(level, server=server)
    found: list[Packet] = []
    for at in range(0, len(whole), size):
        found += decoder.feed(whole[at : at + size])
    assert found == packets
    assert decoder.buffered == 0


def test_nothing_behind_a_connect_is_read_before_it_is_asked_for() -> None:
    decoder = Decoder(server=True)
    assert decoder.feed(CONNECT[5] + encode(Pingreq(), 5) + b"\0\0") == [Connect("c", 5)]
    assert decoder.buffered == 4
    with pytest.raises(MalformedPacket) as caught:
        decoder.feed(b"")
    assert caught.value.packets == [Pingreq()]


def test_while_paused_everything_is_held_back() -> None:
    decoder = reader(5)
    decoder.pause()
    assert decoder.feed(encode(Pingreq(), 5)) == []
    assert decoder.feed(encode(Pingreq(), 5)[:1]) == []
    assert decoder.buffered == 3
    decoder.resume()
    assert decoder.feed(b"") == [Pingreq()]
    assert decoder.buffered == 1
    assert decoder.feed(b"\0") == [Pingreq()]


def test_acknowledgements_in_bulk_are_all_read() -> None:
    whole = b"".join(encode_puback(number) for number in range(1, 65_536))
    assert reader(4).feed(whole) == [Puback(number) for number in range(1, 65_536)]


# ---- topic aliases -----------------------------------------------------------------------------------------------------------


def aliased(topic: str, alias: int, **rest: str) -> bytes:
    properties = {Property.TOPIC_ALIAS: alias, **{Property[name]: value for name, value in rest.items()}}
    return encode(Publish(topic, b"", properties=properties), 5)


def test_a_topic_alias_stands_for_its_topic_until_it_is_given_another() -> None:
    decoder = reader(5, alias_maximum=10)
    packets = decoder.feed(
        b"".join(aliased(*one) for one in (("a/b", 1), ("", 1), ("d", 10), ("c", 1), ("", 1), ("", 10)))
    )
    assert packets == [Publish(topic, b"") for topic in ("a/b", "a/b", "d", "c", "c", "d")]


def test_an_alias_is_taken_out_of_the_properties_and_the_others_stay() -> None:
    decoder = reader(5, alias_maximum=1)
    (packet,) = decoder.feed(aliased("a", 1, CONTENT_TYPE="x"))
    assert packet == Publish("a", b"", properties={Property.CONTENT_TYPE: "x"})


def test_a_decoder_takes_no_alias_unless_told_how_many() -> None:
    with pytest.raises(MalformedPacket) as caught:
        reader(5).feed(aliased("a", 1))
    assert caught.value.reason == Reason.TOPIC_ALIAS_INVALID


# ---- bounds ------------------------------------------------------------------------------------------------------------------


def test_a_packet_may_be_as_large_as_the_maximum_and_no_larger() -> None:
    exact = encode(Publish("a", b"x" * 95), 4)
    assert len(exact) == 100
    assert len(reader(4, max_packet=100).feed(exact)) == 1
    for data in (exact, exact[:2]):
        with pytest.raises(MalformedPacket) as caught:
            reader(4, max_packet=99).feed(data)
        assert caught.value.reason == Reason.PACKET_TOO_LARGE


def test_a_topic_is_one_string_however_often_it_comes() -> None:
    decoder = reader(4)
    data = encode(Publish("a/b", b""), 4)
    one, other = [packet.topic for _ in range(2) for packet in decoder.feed(data) if isinstance(packet, Publish)]
    assert one is other


def test_what_a_decoder_remembers_is_bounded() -> None:
    decoder = reader(4, max_packet=100_000)
    most = 0
    for i in range(2 * TOPICS + 10):
        decoder.feed(encode(Publish(f"t/{i}", b""), 4))
        most = max(most, len(decoder._topics))
    assert most == TOPICS
    for size in (1_000, 5_000, 60_000):
        for i in range(300):
            decoder.feed(encode(Publish(f"{i}" + "x" * size, b""), 4))
            assert sum(len(name) for name in decoder._topics) == decoder._topic_bytes <= TOPIC_BYTES


class Counting(Decoder):
    """Counts the bytes that are looked at."""

    seen = 0

    def _decode(self, data: bytes, packets: list[Packet]) -> int:
        self.seen += len(data)
        return super()._decode(data, packets)


def test_a_large_packet_byte_by_byte_is_collected_in_one_place_and_looked_at_once() -> None:
    decoder = Counting(server=False, level=4, max_packet=1 << 20)
    packet = Publish("a", b"x" * 300_000)
    data = encode(packet, 4)
    place = decoder._buffer
    found: list[Packet] = []
    for i in range(len(data)):
        found += decoder.feed(data[i : i + 1])
        assert decoder._buffer is place
    assert found == [packet]
    assert decoder.buffered == 0
    assert decoder.seen < len(data) + 20


def test_a_decoder_of_what_a_server_sends_must_be_told_the_level() -> None:
    for server, level in ((False, 0), (False, 3), (True, 3)):
        with pytest.raises(ValueError, match="level"):
            Decoder(server=server, level=level)
