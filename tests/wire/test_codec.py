"""Packets and bytes: what is read is what was written, and what is written is what the standard prints."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.codec import Decoder, encode, encode_properties, encode_puback, encode_publish, publish_parts
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
from tests.wire.strategies import connects, from_client, from_server, reader

# ---- there and back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [4, 5])
@settings(deadline=None)
@given(data=st.data())
def test_a_connect_is_read_as_it_was_written(level: int, data: st.DataObject) -> None:
    packet = data.draw(connects(level))
    decoder = Decoder(server=True)
    assert decoder.feed(encode(packet, level)) == [packet]
    assert decoder.level == level


@pytest.mark.parametrize("server", [True, False])
@pytest.mark.parametrize("level", [4, 5])
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_every_packet_is_read_as_it_was_written(level: int, server: bool, data: st.DataObject) -> None:
    side = from_client(level) if server else from_server(level)
    packets = data.draw(st.lists(side, min_size=1, max_size=5))
    whole = b"".join(encode(packet, level) for packet in packets)
    assert reader(level, server=server).feed(whole) == packets
    cut = data.draw(st.integers(0, len(whole)))
    decoder = reader(level, server=server)
    assert decoder.feed(bytearray(whole[:cut])) + decoder.feed(memoryview(whole)[cut:]) == packets
    assert decoder.buffered == 0


# ---- the standard's own figures ----------------------------------------------------------------------------------------------

_USER = Connect(
    "",
    4,
    clean_start=True,
    keep_alive=10,
    username="u",
    password=b"p",
    will=Will("w", b"x", 1),
)


@pytest.mark.parametrize(
    ("level", "server", "packet", "data", "source"),
    [
        (
            4,
            True,
            _USER,
            "10 18  00 04 4d 51 54 54 04 ce 00 0a  00 00  00 01 77  00 01 78  00 01 75  00 01 70",
            "3.1.1 section 3.1.2: the example of a variable header",
        ),
        (
            5,
            True,
            Connect("", 5, True, 10, "u", b"p", Will("w", b"x", 1), {Property.SESSION_EXPIRY_INTERVAL: 10}),
            "10 1f  00 04 4d 51 54 54 05 ce 00 0a  05 11 00 00 00 0a  00 00  00 00 01 77  00 01 78  00 01 75  00 01 70",
            "5 section 3.1.2.12: the example of a variable header",
        ),
        (
            5,
            True,
            Connect("A\U0002a6d4", 5, True, 0),
            "10 12  00 04 4d 51 54 54 05 02 00 00  00  00 05 41 f0 aa 9b 94",
            "5 section 1.5.4: the example of a string",
        ),
        (4, False, Connack(True), "20 02 01 00", "3.1.1 section 3.2"),
        (4, False, Connack(False, Reason.NOT_AUTHORIZED), "20 02 00 05", "3.1.1 section 3.2.2.3"),
        (5, False, Connack(False, Reason.NOT_AUTHORIZED), "20 03 00 87 00", "5 section 3.2.2"),
        (
            4,
            True,
            Publish("a/b", b"", 1, packet_id=10),
            "32 07  00 03 61 2f 62  00 0a",
            "3.1.1 section 3.3.2: the example",
        ),
        (
            5,
            True,
            Publish("a/b", b"", 1, packet_id=10),
            "32 08  00 03 61 2f 62  00 0a  00",
            "5 section 3.3.2: the example",
        ),
        (4, True, Puback(10), "40 02 00 0a", "3.1.1 section 3.4"),
        (4, True, Pubrec(10), "50 02 00 0a", "3.1.1 section 3.5"),
        (4, True, Pubrel(10), "62 02 00 0a", "3.1.1 section 3.6"),
        (4, True, Pubcomp(10), "70 02 00 0a", "3.1.1 section 3.7"),
        (5, True, Puback(10, 0x10), "40 03 00 0a 10", "5 section 3.4.2.1: no property length below 4 bytes"),
        (
            5,
            True,
            Puback(10, 0x87, {Property.REASON_STRING: "no"}),
            "40 09 00 0a 87  05 1f 00 02 6e 6f",
            "5 section 3.4.2.2.2",
        ),
        (
            4,
            True,
            Subscribe(10, [Subscription("a/b", 1), Subscription("c/d", 2)]),
            "82 0e  00 0a  00 03 61 2f 62 01  00 03 63 2f 64 02",
            "3.1.1 section 3.8.3: the example",
        ),
        (
            5,
            True,
            Subscribe(10, [Subscription("a/b", 1), Subscription("c/d", 2, True, True, 2)]),
            "82 0f  00 0a  00  00 03 61 2f 62 01  00 03 63 2f 64 2e",
            "5 section 3.8.3: the example, with options",
        ),
        (4, False, Suback(10, [0, 2, 0x80]), "90 05  00 0a  00 02 80", "3.1.1 section 3.9.3: the example"),
        (5, False, Suback(10, [0, 2, 0x80]), "90 06  00 0a  00  00 02 80", "5 section 3.9.3"),
        (
            4,
            True,
            Unsubscribe(10, ["a/b", "c/d"]),
            "a2 0c  00 0a  00 03 61 2f 62  00 03 63 2f 64",
            "3.1.1 section 3.10.3: the example",
        ),
        (4, False, Unsuback(10), "b0 02 00 0a", "3.1.1 section 3.11"),
        (5, False, Unsuback(10, [0, 0x11]), "b0 05 00 0a 00  00 11", "5 section 3.11"),
        (4, True, Pingreq(), "c0 00", "3.1.1 section 3.12"),
        (4, False, Pingresp(), "d0 00", "3.1.1 section 3.13"),
        (4, True, Disconnect(), "e0 00", "3.1.1 section 3.14"),
        (5, True, Disconnect(), "e0 00", "5 section 3.14.2.1: no reason is a normal end"),
        (5, True, Disconnect(4), "e0 01 04", "5 section 3.14.2.1"),
        (
            5,
            True,
            Auth(0x19, {Property.AUTHENTICATION_METHOD: "m"}),
            "f0 06 19  04 15 00 01 6d",
            "5 section 3.15.2",
        ),
    ],
)
def test_the_standards_figures_are_written_and_read(
    level: int, server: bool, packet: Packet, data: str, source: str
) -> None:
    wanted = bytes.fromhex(data)
    assert encode(packet, level) == wanted, source
    decoder = Decoder(server=True) if isinstance(packet, Connect) else reader(level, server=server)
    assert decoder.feed(wanted) == [packet], source


@pytest.mark.parametrize(
    ("length", "data"),
    [
        (127, "7f"),
        (128, "80 01"),
        (16_383, "ff 7f"),
        (16_384, "80 80 01"),
        (2_097_151, "ff ff 7f"),
        (2_097_152, "80 80 80 01"),
    ],
)
def test_the_remaining_length_takes_as_few_bytes_as_it_can(length: int, data: str) -> None:
    packet = Publish("a", b"x" * (length - 3))
    wanted = bytes.fromhex(data)
    whole = encode(packet, 4)
    assert whole[1 : 1 + len(wanted)] == wanted
    assert len(whole) == 1 + len(wanted) + length
    assert reader(4, max_packet=1 << 22).feed(whole) == [packet]


def test_a_byte_order_mark_is_a_character_like_others() -> None:
    # [MQTT-1.5.4-3]
    assert reader(4).feed(b"\x30\x06\0\x04\xef\xbb\xbfa") == [Publish("\ufeffa", b"")]


def test_an_ack_may_spell_out_that_it_has_no_properties() -> None:
    assert reader(5).feed(bytes.fromhex("40 04 00 0a 00 00")) == [Puback(10)]
    assert reader(5).feed(bytes.fromhex("e0 02 00 00")) == [Disconnect()]


def test_the_parts_of_a_publish_are_the_publish() -> None:
    held = {Property.CONTENT_TYPE: "x"}
    for level in (4, 5):
        for qos in (0, 1, 2):
            for size in (0, 100, 117, 118, 119, 120, 121, 16_370, 16_376, 16_380, 20_000):
                for properties in (None, held) if level == 5 else (None,):
                    extra = encode_properties(properties)
                    head, tail = publish_parts(b"a/b", b"x" * size, level, qos, True, extra)
                    whole = head + (b"\0\7" if qos else b"") + tail
                    number = 7 if qos else 0
                    assert whole == encode_publish(
                        b"a/b", b"x" * size, level, qos=qos, retain=True, packet_id=number, properties=extra
                    )
                    packet = Publish("a/b", b"x" * size, qos, True, False, number, properties)
                    assert reader(level).feed(whole) == [packet]
                    assert encode(packet, level) == whole


def test_a_plain_puback_is_the_same_in_both_dialects() -> None:
    assert encode_puback(258) == b"\x40\x02\x01\x02" == encode(Puback(258), 5) == encode(Puback(258), 4)


def test_what_mqtt_3_1_1_has_no_words_for_is_left_out() -> None:
    note: dict[Property, Any] = {Property.REASON_STRING: "no"}
    assert encode(Puback(1, Reason.NOT_AUTHORIZED, note), 4) == b"\x40\x02\0\1"
    assert encode(Suback(1, [1, Reason.QUOTA_EXCEEDED], note), 4) == b"\x90\x04\0\1\1\x80"
    assert encode(Unsuback(1, [0x11], note), 4) == b"\xb0\x02\0\1"
    assert encode(Disconnect(4, note), 4) == b"\xe0\0"
    assert encode(Subscribe(1, [Subscription("a", 1, True, True, 2)]), 4) == b"\x82\x06\0\1\0\1a\1"
    for reason, code in ((0x84, 1), (0x85, 2), (0x88, 3), (0x89, 3), (0x86, 4), (0x87, 5), (0x8A, 5)):
        assert encode(Connack(False, reason, note), 4) == bytes((0x20, 2, 0, code))


@pytest.mark.parametrize(
    ("level", "packet"),
    [
        (5, Publish("a", b"", 3, packet_id=1)),
        (5, Publish("a", b"", 1)),
        (5, Publish("a", b"", 1, packet_id=65_536)),
        (5, Publish("a", b"", 0, packet_id=1)),
        (5, Publish("a" * 65_536, b"")),
        (4, Publish("é" * 40_000, b"")),
        (5, Publish("a/+", b"")),
        (5, Publish("", b"")),
        (4, Publish("", b"", properties={Property.TOPIC_ALIAS: 1})),
        (5, Publish("a\ud800", b"")),
        (5, Publish("a", b"", properties={Property.RECEIVE_MAXIMUM: 1})),
        (5, Publish("a", b"", properties={Property.TOPIC_ALIAS: 0})),
        (5, Publish("a", b"", properties={Property.SUBSCRIPTION_IDENTIFIER: [1, 0]})),
        (5, Publish("a", b"", properties={Property.SUBSCRIPTION_IDENTIFIER: [268_435_456]})),
        (5, Publish("a", b"", properties={Property.PAYLOAD_FORMAT_INDICATOR: 2})),
        (5, Publish("a", b"", properties={Property.MESSAGE_EXPIRY_INTERVAL: 1 << 32})),
        (5, Publish("a", b"", properties={Property.MESSAGE_EXPIRY_INTERVAL: -1})),
        (5, Publish("a", b"", properties={Property.CORRELATION_DATA: b"x" * 65_536})),
        (5, Publish("a", b"", properties={Property.USER_PROPERTY: [("k", "a\0")]})),
        (5, Puback(0)),
        (4, Pubrel(70_000)),
        (5, Puback(1, 256)),
        (5, Subscribe(0, [Subscription("a")])),
        (5, Subscribe(1, [])),
        (5, Subscribe(1, [Subscription("a", 3)])),
        (5, Subscribe(1, [Subscription("a", retain_handling=3)])),
        (5, Subscribe(1, [Subscription("a\0")])),
        (5, Unsubscribe(1, [])),
        (5, Unsubscribe(1, ["a" * 65_536])),
        (5, Suback(1, [])),
        (5, Unsuback(1, [])),
        (5, Connack(True, Reason.NOT_AUTHORIZED)),
        (5, Connack(properties={Property.RECEIVE_MAXIMUM: 0})),
        (4, Auth(0x18)),
        (4, Connect("c", 5)),
        (3, Connect("c", 3)),
        (4, Connect("c", 4, password=b"p")),
        (5, Connect("c", 5, keep_alive=65_536)),
        (5, Connect("c\0", 5)),
        (5, Connect("c", 5, will=Will("a", b"", 3))),
        (5, Connect("c", 5, will=Will("a/#", b""))),
        (5, Connect("c", 5, will=Will("a", b"x" * 65_536))),
        (5, Connect("c", 5, will=Will("a", b"", properties={Property.TOPIC_ALIAS: 1}))),
    ],
)
def test_what_cannot_be_written_is_a_value_error(level: int, packet: Packet) -> None:
    with pytest.raises(ValueError, match=r".{10}"):
        encode(packet, level)


def test_a_packet_beyond_the_largest_length_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="268,435,455"):
        publish_parts(b"a", bytes(268_435_456), 4)
