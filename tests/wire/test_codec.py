"""Bytes and packets: what is read is what was written, what is malformed is refused by its statement, and nothing else happens."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.codec import Decoder, encode, encode_properties, encode_puback, encode_publish, publish_parts
from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
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
    Will,
)

CONNECT = {level: encode(Connect("c", level), level) for level in (4, 5)}


def reader(level: int, *, server: bool = True, **rest: Any) -> Decoder:
    """A decoder behind its CONNECT."""
    decoder = Decoder(server=server, level=0 if server else level, **rest)
    if server:
        decoder.feed(CONNECT[level])
    return decoder


def refusal(decoder: Decoder, data: bytes) -> int:
    with pytest.raises(MalformedPacket) as caught:
        decoder.feed(data)
    assert str(caught.value)
    return caught.value.reason


# ---- there and back --------------------------------------------------------------------------------------------------------

_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
_topic = st.text(st.sampled_from("ab/é$ "), min_size=1, max_size=12)
_ids = st.integers(1, 65_535)
_pairs = st.lists(st.tuples(_text, _text), min_size=1, max_size=3)
_bytes = st.binary(max_size=20)
_flag = st.integers(0, 1)


def properties(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    made = st.fixed_dictionaries({}, optional={Property[name]: value for name, value in values.items()})
    return made.map(lambda found: found or None)


_publish_properties = properties(
    PAYLOAD_FORMAT_INDICATOR=_flag,
    MESSAGE_EXPIRY_INTERVAL=st.integers(0, 2**32 - 1),
    CONTENT_TYPE=_text,
    RESPONSE_TOPIC=_topic,
    CORRELATION_DATA=_bytes,
    USER_PROPERTY=_pairs,
)
_connect_properties = properties(
    SESSION_EXPIRY_INTERVAL=st.integers(0, 2**32 - 1),
    RECEIVE_MAXIMUM=_ids,
    MAXIMUM_PACKET_SIZE=st.integers(1, 2**32 - 1),
    TOPIC_ALIAS_MAXIMUM=st.integers(0, 65_535),
    REQUEST_PROBLEM_INFORMATION=_flag,
    REQUEST_RESPONSE_INFORMATION=_flag,
    USER_PROPERTY=_pairs,
)
_reason_properties = properties(REASON_STRING=_text, USER_PROPERTY=_pairs)


@st.composite
def connects(draw: st.DrawFn) -> Packet:
    level = draw(st.sampled_from([4, 5]))
    username = draw(st.none() | _text)
    password = draw(st.none() | _bytes) if username is not None or level == 5 else None
    will = None
    if draw(st.booleans()):
        will = Will(
            draw(_topic),
            draw(_bytes),
            draw(st.integers(0, 2)),
            draw(st.booleans()),
            draw(properties(WILL_DELAY_INTERVAL=st.integers(0, 99), CONTENT_TYPE=_text)) if level == 5 else None,
        )
    return Connect(
        draw(_text),
        level,
        draw(st.booleans()),
        draw(st.integers(0, 65_535)),
        username,
        password,
        will,
        draw(_connect_properties) if level == 5 else None,
    )


@st.composite
def publishes(draw: st.DrawFn, level: int) -> Packet:
    qos = draw(st.integers(0, 2))
    return Publish(
        draw(_topic),
        draw(st.binary(max_size=300)),
        qos,
        draw(st.booleans()),
        draw(st.booleans()) if qos else False,
        draw(_ids) if qos else 0,
        draw(_publish_properties) if level == 5 else None,
    )


@st.composite
def subscriptions(draw: st.DrawFn, level: int) -> Subscription:
    if level == 4:
        return Subscription(draw(_topic), draw(st.integers(0, 2)))
    return Subscription(
        draw(_topic), draw(st.integers(0, 2)), draw(st.booleans()), draw(st.booleans()), draw(st.integers(0, 2))
    )


def from_client(level: int) -> st.SearchStrategy[Packet]:
    five = level == 5
    acks: list[st.SearchStrategy[Packet]] = [
        st.builds(
            kind, _ids, st.sampled_from(reasons) if five else st.just(0), _reason_properties if five else st.none()
        )
        for kind, reasons in (
            (Puback, [0, 0x10, 0x87, 0x99]),
            (Pubrec, [0, 0x97]),
            (Pubrel, [0, 0x92]),
            (Pubcomp, [0, 0x92]),
        )
    ]
    subscribe = properties(SUBSCRIPTION_IDENTIFIER=st.integers(1, 268_435_455), USER_PROPERTY=_pairs)
    unsubscribe = properties(USER_PROPERTY=_pairs)
    kinds: list[st.SearchStrategy[Packet]] = [
        publishes(level),
        *acks,
        st.builds(
            Subscribe, _ids, st.lists(subscriptions(level), min_size=1, max_size=3), subscribe if five else st.none()
        ),
        st.builds(Unsubscribe, _ids, st.lists(_topic, min_size=1, max_size=3), unsubscribe if five else st.none()),
        st.builds(Pingreq),
        st.builds(
            Disconnect, st.sampled_from([0, 4, 0x81]) if five else st.just(0), _reason_properties if five else st.none()
        ),
    ]
    if five:
        kinds.append(st.builds(Auth, st.sampled_from([0x18, 0x19]), properties(AUTHENTICATION_METHOD=_text)))
    return st.one_of(kinds)


def from_server(level: int) -> st.SearchStrategy[Packet]:
    five = level == 5
    suback = [0, 1, 2, 0x87] if five else [0, 1, 2, 0x80]
    kinds: list[st.SearchStrategy[Packet]] = [
        publishes(level),
        st.builds(
            Connack,
            st.booleans(),
            st.sampled_from([0, Reason.NOT_AUTHORIZED, Reason.BAD_USER_NAME_OR_PASSWORD]),
            properties(RECEIVE_MAXIMUM=_ids, ASSIGNED_CLIENT_IDENTIFIER=_text, MAXIMUM_QOS=_flag)
            if five
            else st.none(),
        ),
        st.builds(
            Suback, _ids, st.lists(st.sampled_from(suback), min_size=1), _reason_properties if five else st.none()
        ),
        st.builds(
            Unsuback,
            _ids,
            st.lists(st.sampled_from([0, 0x11]), min_size=1) if five else st.just([]),
            _reason_properties if five else st.none(),
        ),
        st.builds(Pingresp),
    ]
    if five:
        kinds.append(st.builds(Disconnect, st.sampled_from([0, 0x8B, 0x8E]), _reason_properties))
    return st.one_of(kinds)


@settings(deadline=None)
@given(connects())
def test_a_connect_is_read_as_it_was_written(packet: Connect) -> None:
    assert Decoder(server=True).feed(encode(packet, packet.level)) == [packet]


@pytest.mark.parametrize("level", [4, 5])
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_every_packet_is_read_as_it_was_written(level: int, data: st.DataObject) -> None:
    server = data.draw(st.booleans())
    packets = data.draw(st.lists(from_client(level) if server else from_server(level), min_size=1, max_size=5))
    whole = b"".join(encode(packet, level) for packet in packets)
    assert reader(level, server=server).feed(whole) == packets
    cut = data.draw(st.integers(0, len(whole)))
    decoder = reader(level, server=server)
    assert decoder.feed(whole[:cut]) + decoder.feed(whole[cut:]) == packets
    assert decoder.buffered == 0


def test_bytes_that_come_one_by_one_make_the_same_packets() -> None:
    packets: list[Packet] = [
        Publish("a/b", b"x" * 300, 1, packet_id=7, properties={Property.USER_PROPERTY: [("k", "v")]}),
        Puback(3, Reason.NOT_AUTHORIZED, {Property.REASON_STRING: "no"}),
        Puback(4),
        Pingreq(),
    ]
    decoder = reader(5)
    found: list[Packet] = []
    for byte in b"".join(encode(packet, 5) for packet in packets):
        found += decoder.feed(bytes((byte,)))
    assert found == packets


def test_the_specifications_own_figures() -> None:
    # Figures 3-6 and 3-9 of MQTT 3.1.1, section 1.5.5 of MQTT 5.
    assert encode(Publish("a/b", b"", 1, packet_id=10), 4) == b"\x32\x07\x00\x03a/b\x00\x0a"
    subscribe = Subscribe(10, [Subscription("a/b", 1), Subscription("c/d", 2)])
    assert encode(subscribe, 4) == b"\x82\x0e\x00\x0a\x00\x03a/b\x01\x00\x03c/d\x02"
    for length, data in (
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (16_383, b"\xff\x7f"),
        (16_384, b"\x80\x80\x01"),
        (2_097_151, b"\xff\xff\x7f"),
        (2_097_152, b"\x80\x80\x80\x01"),
    ):
        assert encode(Publish("a", b"x" * (length - 3)), 4)[1 : 1 + len(data)] == data
        decoder = reader(4, max_packet=1 << 28)
        (packet,) = decoder.feed(encode(Publish("a", b"x" * (length - 3)), 4))
        assert isinstance(packet, Publish)
        assert len(packet.payload) == length - 3


def test_the_parts_of_a_publish_are_the_publish() -> None:
    properties = encode_properties({Property.CONTENT_TYPE: "x"})
    for level in (4, 5):
        for qos in (0, 1, 2):
            for payload in (b"", b"x" * 100, b"x" * 20_000):
                extra = properties if level == 5 else b""
                head, tail = publish_parts(b"a/b", payload, level, qos, True, extra)
                whole = head + (b"\0\x07" if qos else b"") + tail
                assert whole == encode_publish(
                    b"a/b", payload, level, qos=qos, retain=True, packet_id=7 if qos else 0, properties=extra
                )
                (packet,) = reader(level).feed(whole)
                assert isinstance(packet, Publish)
                assert (packet.payload, packet.qos, packet.retain) == (payload, qos, True)
    assert encode_puback(258) == b"\x40\x02\x01\x02" == encode(Puback(258), 5)


def test_what_cannot_be_written_is_a_value_error() -> None:
    for packet in (
        Publish("a", b"", 3, packet_id=1),
        Publish("a", b"", 1),
        Publish("a" * 65_536, b""),
        Unsubscribe(1, ["a" * 65_536]),
    ):
        with pytest.raises(ValueError, match=r"\d"):
            encode(packet, 5)


# ---- what is malformed -------------------------------------------------------------------------------------------------------


def connect_bytes(flags: int = 2, *, name: bytes = b"MQTT", level: int = 4, rest: bytes = b"\0\0") -> bytes:
    body = len(name).to_bytes(2) + name + bytes((level, flags)) + b"\0\x3c" + rest
    return b"\x10" + bytes((len(body),)) + body


@pytest.mark.parametrize(
    ("data", "reason", "statement"),
    [
        (b"\x30\x03\0\x01a", 0x82, "MQTT-3.1.0-1: the first packet is CONNECT"),
        (b"GET / HTTP/1.1\r\n\r\n", 0x82, "MQTT-3.1.0-1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 0x82, "a TLS hello"),
        (b"\x10\xff\xff\xff\xff\x01", 0x81, "MQTT-1.5.5: four bytes of length"),
        (b"\x10\x80\x00", 0x81, "MQTT-1.5.5-1: as few bytes as possible"),
        (b"\x11\x02\0\0", 0x82, "MQTT-2.1.3-1: reserved flags of CONNECT"),
        (connect_bytes(name=b"MQIsdp", level=3), 0x84, "MQTT-3.1.2-1"),
        (connect_bytes(level=6), 0x84, "MQTT-3.1.2-2"),
        (connect_bytes(3), 0x81, "MQTT-3.1.2-3: reserved connect flag"),
        (connect_bytes(0x1A), 0x81, "MQTT-3.1.2-11: will QoS without will"),
        (connect_bytes(0x22), 0x81, "MQTT-3.1.2-13: will retain without will"),
        (connect_bytes(0x1E, rest=b"\0\0\0\x01a\0\0"), 0x81, "MQTT-3.1.2-12: will QoS 3"),
        (connect_bytes(0x42, rest=b"\0\0\0\0"), 0x81, "MQTT-3.1.2-22 (3.1.1): password without user name"),
        (connect_bytes(0x82), 0x81, "MQTT-3.1.3-1: the user name is missing"),
        (connect_bytes(rest=b"\0\0x"), 0x81, "bytes left over"),
        (connect_bytes(rest=b"\0\x02\xff\xfe"), 0x81, "MQTT-1.5.4-1: not UTF-8"),
        (connect_bytes(rest=b"\0\x03\xed\xa0\x80"), 0x81, "MQTT-1.5.4-1: a surrogate"),
        (connect_bytes(rest=b"\0\x01\0"), 0x81, "MQTT-1.5.4-2: U+0000"),
        (connect_bytes(0x06, rest=b"\0\0\0\x03a/+\0\0"), 0x90, "MQTT-3.3.2-2: a will's topic with wildcards"),
        (connect_bytes(level=5, rest=b"\x05\x11\0\0\0\x01\0\0"), None, "well formed"),
        (connect_bytes(level=5, rest=b"\x0a\x11\0\0\0\x01\x11\0\0\0\x01\0\0"), 0x82, "MQTT-3.1.2-23: a property twice"),
        (connect_bytes(level=5, rest=b"\x03\x21\0\0\0\0"), 0x82, "MQTT-3.1.2-27: receive maximum 0"),
        (connect_bytes(level=5, rest=b"\x05\x27\0\0\0\0\0\0"), 0x82, "MQTT-3.1.2-24: maximum packet size 0"),
        (connect_bytes(level=5, rest=b"\x02\x17\x02\0\0"), 0x82, "3.1.2.11.7: neither 0 nor 1"),
        (connect_bytes(level=5, rest=b"\x03\x23\0\x01\0\0"), 0x82, "2.2.2.2: a topic alias in a CONNECT"),
        (connect_bytes(level=5, rest=b"\x02\x7f\0\0\0"), 0x81, "2.2.2.2: an unknown property"),
        (connect_bytes(level=5, rest=b"\x7f\0\0"), 0x81, "properties longer than the packet"),
        (connect_bytes(level=5, rest=b"\x03\x16\0\0\0\0"), 0x82, "3.1.2.11.10: data without a method"),
    ],
)
def test_a_connect_that_breaks_a_statement_is_refused(data: bytes, reason: int | None, statement: str) -> None:
    decoder = Decoder(server=True)
    if reason is None:
        assert decoder.feed(data), statement
    else:
        assert refusal(decoder, data) == reason, statement


@pytest.mark.parametrize(
    ("level", "data", "reason", "statement"),
    [
        (5, b"\x00\x00", 0x81, "2.1.2: type 0"),
        (4, b"\xf0\x00", 0x82, "2.2.1 (3.1.1): type 15"),
        (5, b"\x20\x02\0\0", 0x82, "a client sends no CONNACK"),
        (5, b"\x90\x03\0\x01\0", 0x82, "a client sends no SUBACK"),
        (5, b"\xd0\x00", 0x82, "a client sends no PINGRESP"),
        (5, CONNECT[5], 0x82, "MQTT-3.1.0-2: a second CONNECT"),
        (4, b"\x36\x05\0\x01a\0\x01", 0x81, "MQTT-3.3.1-4: QoS 3"),
        (4, b"\x38\x03\0\x01a", 0x81, "MQTT-3.3.1-2: DUP with QoS 0"),
        (4, b"\x30\x02\0\0", 0x81, "MQTT-4.7.3-1: an empty topic"),
        (4, b"\x30\x05\0\x03a/+", 0x90, "MQTT-3.3.2-2: a wildcard"),
        (4, b"\x30\x04\0\x02a#", 0x90, "MQTT-3.3.2-2: a wildcard"),
        (4, b"\x30\x03\0\x01\xff", 0x81, "MQTT-1.5.4-1"),
        (4, b"\x30\x03\0\x09a", 0x81, "a topic longer than the packet"),
        (4, b"\x30\x01\0", 0x81, "a topic's length cut off"),
        (4, b"\x32\x05\0\x01a\0\0", 0x82, "MQTT-2.2.1-3: packet id 0"),
        (4, b"\x32\x03\0\x01a", 0x81, "the packet id is missing"),
        (5, b"\x30\x03\0\x01a", 0x81, "the properties are missing"),
        (5, b"\x30\x06\0\x01a\x02\x0b\x01", 0x82, "MQTT-3.3.4-6: a client's subscription identifier"),
        (5, b"\x30\x07\0\x01a\x03\x23\0\0", 0x94, "MQTT-3.3.2-8: alias 0"),
        (5, b"\x30\x07\0\x01a\x03\x23\0\x0b", 0x94, "MQTT-3.3.2-9: alias beyond the maximum"),
        (5, b"\x30\x06\0\0\x03\x23\0\x01", 0x82, "3.3.2.3.4: an alias that stands for nothing"),
        (5, b"\x30\x03\0\0\0", 0x82, "MQTT-4.7.3-1: no topic and no alias"),
        (5, b"\x30\x08\0\x01a\x04\x08\0\x01#", 0x82, "MQTT-3.3.2-14: a response topic with wildcards"),
        (5, b"\x30\x06\0\x01a\x02\x01\x02", 0x82, "3.3.2.3.2: payload format 2"),
        (5, b"\x41\x02\0\x01", 0x81, "MQTT-2.1.3-1: flags of PUBACK"),
        (5, b"\x40\x02\0\0", 0x82, "MQTT-2.2.1-3"),
        (5, b"\x40\x03\0\x01\x01", 0x82, "3.4.2.1: an unknown reason"),
        (4, b"\x40\x03\0\x01\0", 0x81, "3.4 (3.1.1): bytes left over"),
        (5, b"\x60\x02\0\x01", 0x81, "MQTT-3.6.1-1: flags of PUBREL"),
        (5, b"\x80\x06\0\x01\0\0\x01a\0", 0x81, "MQTT-3.8.1-1: flags of SUBSCRIBE"),
        (4, b"\x82\x02\0\x01", 0x82, "MQTT-3.8.3-2: no filter"),
        (4, b"\x82\x06\0\x01\0\x01a\x03", 0x81, "MQTT-3.8.3-4 (3.1.1): QoS 3"),
        (4, b"\x82\x06\0\x01\0\x01a\x04", 0x81, "3.8.3 (3.1.1): reserved bits"),
        (5, b"\x82\x07\0\x01\0\0\x01a\xc0", 0x81, "MQTT-3.8.3-5: reserved bits"),
        (5, b"\x82\x07\0\x01\0\0\x01a\x30", 0x82, "3.8.3.1: retain handling 3"),
        (5, b"\x82\x10\0\x01\0\0\x0a$share/g/a\x04", 0x82, "MQTT-3.8.3-4: no-local on a shared subscription"),
        (5, b"\x82\x09\0\x01\x02\x0b\0\0\x01a\0", 0x82, "3.8.2.1.2: subscription identifier 0"),
        (5, b"\xa2\x03\0\x01\0", 0x82, "MQTT-3.10.3-2: no filter"),
        (5, b"\xc0\x01\0", 0x81, "3.12: a body"),
        (4, b"\xe0\x01\0", 0x81, "3.14 (3.1.1): a body"),
        (5, b"\xe0\x01\x8e", 0x82, "3.14.2.1: a server's reason"),
        (5, b"\xf0\x01\x01", 0x82, "3.15.2.1: an unknown reason"),
        (5, b"\x30\xff\xff\xff\x7f", 0x95, "larger than the maximum: said before the body arrives"),
    ],
)
def test_a_packet_that_breaks_a_statement_is_refused(level: int, data: bytes, reason: int, statement: str) -> None:
    assert refusal(reader(level, alias_maximum=10), data) == reason, statement


def test_good_packets_before_a_bad_one_are_not_lost_and_nothing_is_read_after_it() -> None:
    decoder = reader(4)
    with pytest.raises(MalformedPacket) as caught:
        decoder.feed(encode(Pingreq(), 4) + b"\x36\x05\0\x01a\0\x01" + encode(Pingreq(), 4))
    assert caught.value.packets == [Pingreq()]
    with pytest.raises(MalformedPacket):
        decoder.feed(encode(Pingreq(), 4))


def test_nothing_behind_a_connect_is_read_before_it_is_asked_for() -> None:
    decoder = Decoder(server=True)
    assert len(decoder.feed(CONNECT[5] + encode(Pingreq(), 5))) == 1
    assert decoder.buffered == 2
    assert decoder.feed(b"") == [Pingreq()]


def test_while_paused_everything_is_held_back() -> None:
    decoder = reader(5)
    decoder.pause()
    assert decoder.feed(encode(Pingreq(), 5)) == []
    assert decoder.feed(encode(Pingreq(), 5)) == []
    assert decoder.buffered == 4
    decoder.resume()
    assert decoder.feed(b"") == [Pingreq(), Pingreq()]


def test_a_topic_alias_stands_for_its_topic_until_it_is_given_another() -> None:
    decoder = reader(5, alias_maximum=10)
    alias = {Property.TOPIC_ALIAS: 1}
    first, again, other, last = decoder.feed(
        b"".join(
            encode(Publish(topic, b"", properties=dict(alias)), 5) if topic else b"\x30\x06\0\0\x03\x23\0\x01"
            for topic in ("a/b", "", "c", "")
        )
    )
    assert [packet.topic for packet in (first, again, other, last) if isinstance(packet, Publish)] == [
        "a/b",
        "a/b",
        "c",
        "c",
    ]
    assert all(packet.properties is None for packet in (first, again, other, last) if isinstance(packet, Publish))


def test_what_a_decoder_remembers_is_bounded() -> None:
    decoder = reader(4, max_packet=100_000)
    for i in range(10_000):
        decoder.feed(encode(Publish(f"t/{i}", b""), 4))
    for i in range(100):
        decoder.feed(encode(Publish(f"{i}" + "x" * 60_000, b""), 4))
    assert len(decoder._topics) <= 4_096
    assert sum(len(name) for name in decoder._topics) < 100_000


def test_a_large_packet_in_small_pieces_is_collected_not_copied() -> None:
    decoder = reader(4, max_packet=1 << 20)
    data = encode(Publish("a", b"x" * 500_000), 4)
    before = decoder._buffer
    for start in range(0, len(data) - 10, 10):
        assert decoder.feed(data[start : start + 10]) == []
        assert decoder._buffer is before
    rest = len(data) - 10 - (len(data) - 10) % 10 + (10 if (len(data) - 10) % 10 else 0)
    (packet,) = decoder.feed(data[rest:])
    assert isinstance(packet, Publish)
    assert len(packet.payload) == 500_000


def seeds(level: int) -> list[bytes]:
    found = [
        encode(Connect("c", level, username="u", password=b"p", will=Will("w", b"x", 1, properties=None)), level),
        encode(Publish("a/b", b'{"x":1}', 1, packet_id=3), level),
        encode(Subscribe(2, [Subscription("a/#", 1), Subscription("+", 2)]), level),
        encode(Unsubscribe(2, ["a", "b"]), level),
        encode(Puback(1), level),
        encode(Pubrel(1), level),
        encode(Pingreq(), level),
        encode(Disconnect(), level),
    ]
    if level == 5:
        every: dict[Property, Any] = {
            Property.MESSAGE_EXPIRY_INTERVAL: 5,
            Property.CONTENT_TYPE: "t",
            Property.RESPONSE_TOPIC: "r",
            Property.CORRELATION_DATA: b"c",
            Property.USER_PROPERTY: [("a", "b"), ("a", "c")],
            Property.TOPIC_ALIAS: 2,
        }
        found.append(encode(Publish("a/b", b"x", 2, True, True, 9, every), 5))
        found.append(encode(Puback(1, 0x87, {Property.REASON_STRING: "no"}), 5))
        found.append(encode(Disconnect(4, {Property.SESSION_EXPIRY_INTERVAL: 5}), 5))
    return found


@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("server", [True, False])
def test_twenty_thousand_mutated_packets_end_in_packets_or_in_our_own_error(level: int, server: bool) -> None:
    dice = random.Random(level * 2 + server)
    known = seeds(level)
    refused = 0
    for _ in range(20_000):
        data = bytearray(dice.choice(known))
        for _ in range(dice.randint(1, 4)):
            what = dice.random()
            at = dice.randrange(len(data)) if data else 0
            if what < 0.7 and data:
                data[at] = dice.randrange(256)
            elif what < 0.85 and data:
                del data[at : at + dice.randint(1, 4)]
            else:
                data[at:at] = dice.randbytes(dice.randint(1, 4))
        decoder = reader(level, server=server, alias_maximum=4) if dice.random() < 0.8 else Decoder(server=True)
        try:
            for packet in decoder.feed(bytes(data)):
                if isinstance(packet, Publish):
                    assert packet.topic
                    assert not set("+#\0") & set(packet.topic)
        except MalformedPacket as error:
            refused += 1
            assert 0x80 <= error.reason <= 0xA2  # noqa: PT017  # whether there is an error is the question
    assert 1_000 < refused < 20_000


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([0, 4, 5]))
def test_any_bytes_end_in_packets_or_in_our_own_error(data: bytes, level: int) -> None:
    decoder = reader(level) if level else Decoder(server=True)
    try:
        decoder.feed(data)
    except MalformedPacket:
        with pytest.raises(MalformedPacket):
            decoder.feed(b"")
