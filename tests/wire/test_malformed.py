"""Malformed bytes: each is refused by the statement of the standard that it breaks, and never by another exception."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.wire.codec import Decoder, encode
from gateway.wire.errors import MalformedPacket
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
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from tests.wire.strategies import CONNECT, reader


def refusal(decoder: Decoder, data: bytes) -> int:
    with pytest.raises(MalformedPacket) as caught:
        decoder.feed(data)
    assert caught.value.detail
    assert f"0x{caught.value.reason:02X}" in str(caught.value)
    return caught.value.reason


def connect_bytes(flags: int = 2, *, name: bytes = b"MQTT", level: int = 4, rest: bytes = b"\0\0") -> bytes:
    body = len(name).to_bytes(2) + name + bytes((level, flags)) + b"\0\x3c" + rest
    return b"\x10" + bytes((len(body),)) + body


@pytest.mark.parametrize(
    ("data", "reason", "statement"),
    [
        (b"\x30\x03\0\x01a", 0x82, "MQTT-3.1.0-1: the first packet is CONNECT"),
        (b"\x30\x83", 0x82, "MQTT-3.1.0-1: said before the packet is whole"),
        (b"GET / HTTP/1.1\r\n\r\n", 0x82, "MQTT-3.1.0-1"),
        (b"\xe0\x00", 0x82, "MQTT-3.1.0-1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 0x81, "MQTT-2.1.3-1: a TLS hello"),
        (b"\x10\xff\xff\xff\xff\x01", 0x81, "1.5.5: four bytes of length"),
        (b"\x10\xff\xff\xff\xff", 0x81, "1.5.5: said before the fifth"),
        (b"\x10\x80\x00", 0x81, "MQTT-1.5.5-1: as few bytes as possible"),
        (b"\x11\x02\0\0", 0x81, "MQTT-2.1.3-1: reserved flags of CONNECT"),
        (b"\x11\x7f", 0x81, "MQTT-2.1.3-1: said before the body arrives"),
        (b"\x10\xff\xff\xff\x7f", 0x95, "larger than the maximum: said before the body arrives"),
        (b"\x10\x00", 0x81, "3.1.2: no protocol name"),
        (b"\x10\x02\x00\x04", 0x81, "3.1.2.1: half a protocol name"),
        (connect_bytes(name=b"MQIsdp", level=3), 0x84, "MQTT-3.1.2-1"),
        (connect_bytes(name=b"mqtt"), 0x84, "MQTT-3.1.2-1"),
        (connect_bytes(name=b""), 0x84, "MQTT-3.1.2-1"),
        (connect_bytes(level=3), 0x84, "MQTT-3.1.2-2"),
        (connect_bytes(level=6), 0x84, "MQTT-3.1.2-2"),
        (connect_bytes(level=0x84), 0x84, "MQTT-3.1.2-2: a bridge's private bit"),
        (connect_bytes(3), 0x81, "MQTT-3.1.2-3: the reserved connect flag"),
        (connect_bytes(3, level=5, rest=b"\0\0\0"), 0x81, "MQTT-3.1.2-3"),
        (connect_bytes(0x0A), 0x81, "MQTT-3.1.2-11: will QoS without will"),
        (connect_bytes(0x22), 0x81, "MQTT-3.1.2-13: will retain without will"),
        (connect_bytes(0x1A), 0x81, "MQTT-3.1.2-12: will QoS 3 without will"),
        (connect_bytes(0x1E, rest=b"\0\0\0\x01a\0\0"), 0x81, "MQTT-3.1.2-12: will QoS 3"),
        (connect_bytes(0x42, rest=b"\0\0\0\0"), 0x81, "MQTT-3.1.2-22 (3.1.1): password without user name"),
        (connect_bytes(0x82), 0x81, "MQTT-3.1.3-1: the user name is missing"),
        (connect_bytes(0xC2, rest=b"\0\0\0\0"), 0x81, "MQTT-3.1.3-1: the password is missing"),
        (connect_bytes(0x06), 0x81, "MQTT-3.1.3-1: the will is missing"),
        (connect_bytes(0x06, rest=b"\0\0\0\x01a"), 0x81, "MQTT-3.1.3-1: the will's payload is missing"),
        (connect_bytes(rest=b""), 0x81, "MQTT-3.1.3-3: the client identifier is missing"),
        (connect_bytes(rest=b"\0\0x"), 0x81, "3.1.3: bytes left over"),
        (connect_bytes(rest=b"\0\x02\xff\xfe"), 0x81, "MQTT-1.5.4-1, MQTT-3.1.3-4: not UTF-8"),
        (connect_bytes(rest=b"\0\x02\xc0\x80"), 0x81, "MQTT-1.5.4-1: an overlong U+0000"),
        (connect_bytes(rest=b"\0\x03\xed\xa0\x80"), 0x81, "MQTT-1.5.4-1: a surrogate"),
        (connect_bytes(rest=b"\0\x06\xed\xa0\x80\xed\xb0\x80"), 0x81, "MQTT-1.5.4-1: a pair of surrogates"),
        (connect_bytes(rest=b"\0\x04\xf4\x90\x80\x80"), 0x81, "MQTT-1.5.4-1: beyond U+10FFFF"),
        (connect_bytes(rest=b"\0\x01\0"), 0x81, "MQTT-1.5.4-2: U+0000"),
        (connect_bytes(0x82, rest=b"\0\0\0\x01\xff"), 0x81, "MQTT-3.1.3-12: the user name is not UTF-8"),
        (connect_bytes(0x06, rest=b"\0\0\0\x01\xff\0\0"), 0x81, "MQTT-3.1.3-11: the will's topic is not UTF-8"),
        (connect_bytes(0x06, rest=b"\0\0\0\x03a/+\0\0"), 0x90, "MQTT-3.3.2-2: a will's topic with wildcards"),
        (connect_bytes(0x06, rest=b"\0\0\0\0\0\0"), 0x90, "MQTT-4.7.3-1: a will's topic is empty"),
        (connect_bytes(level=5, rest=b""), 0x81, "3.1.2.11: the properties are missing"),
        (connect_bytes(level=5, rest=b"\x0a\x11\0\0\0\x01\x11\0\0\0\x01\0\0"), 0x82, "3.1.2.11.2: a property twice"),
        (connect_bytes(level=5, rest=b"\x03\x21\0\0\0\0"), 0x82, "3.1.2.11.3: receive maximum 0"),
        (connect_bytes(level=5, rest=b"\x05\x27\0\0\0\0\0\0"), 0x82, "3.1.2.11.4: maximum packet size 0"),
        (connect_bytes(level=5, rest=b"\x02\x19\x02\0\0"), 0x82, "3.1.2.11.6: neither 0 nor 1"),
        (connect_bytes(level=5, rest=b"\x02\x17\x02\0\0"), 0x82, "3.1.2.11.7: neither 0 nor 1"),
        (connect_bytes(level=5, rest=b"\x03\x16\0\0\0\0"), 0x82, "3.1.2.11.10: data without a method"),
        (connect_bytes(level=5, rest=b"\x03\x23\0\x01\0\0"), 0x81, "2.2.2.2: a topic alias in a CONNECT"),
        (connect_bytes(level=5, rest=b"\x05\x18\0\0\0\x01\0\0"), 0x81, "2.2.2.2: a will's property outside the will"),
        (connect_bytes(level=5, rest=b"\x02\x7f\0\0\0"), 0x81, "2.2.2.2: an unknown property"),
        (connect_bytes(level=5, rest=b"\x03\x97\0\1\0\0"), 0x81, "MQTT-1.5.5-1: an identifier longer than need be"),
        (connect_bytes(level=5, rest=b"\x7f\0\0"), 0x81, "2.2.2.1: properties longer than the packet"),
        (connect_bytes(level=5, rest=b"\x80\x00\0\0"), 0x81, "MQTT-1.5.5-1: the properties' length"),
        (connect_bytes(level=5, rest=b"\x80\x80\x80\x80\x01\0\0"), 0x81, "1.5.5: five bytes of properties' length"),
        (connect_bytes(level=5, rest=b"\x02\x21\0\0\0"), 0x81, "2.2.2.1: a property across the properties' end"),
        (connect_bytes(level=5, rest=b"\x01\x11\0\0\0\1\0\0"), 0x81, "2.2.2.1: a property across the properties' end"),
        (connect_bytes(level=5, rest=b"\x03\x15\0\1m\0\0"), 0x81, "2.2.2.1: a string across the properties' end"),
        (connect_bytes(level=5, rest=b"\x04\x26\0\1a\0\0\0\0"), 0x81, "2.2.2.1: a pair without its value"),
        (connect_bytes(level=5, rest=b"\x04\x15\0\1\xff\0\0"), 0x81, "MQTT-1.5.4-1: a property that is not UTF-8"),
        (connect_bytes(level=5, rest=b"\x04\x15\0\1\0\0\0"), 0x81, "MQTT-1.5.4-2: a property with U+0000"),
        (connect_bytes(6, level=5, rest=b"\0\0\0\x03\x23\0\x01\0\x01a\0\0"), 0x81, "2.2.2.2: a will's topic alias"),
        (connect_bytes(6, level=5, rest=b"\0\0\0\x04\x08\0\x01#\0\x01a\0\0"), 0x82, "MQTT-3.3.2-14 of a will"),
        (connect_bytes(6, level=5, rest=b"\0\0\0\x02\x01\x02\0\x01a\0\0"), 0x82, "3.1.3.2.3: payload format 2"),
    ],
)
def test_a_connect_that_breaks_a_statement_is_refused(data: bytes, reason: int, statement: str) -> None:
    assert refusal(Decoder(server=True), data) == reason, statement


@pytest.mark.parametrize(
    "data",
    [
        connect_bytes(level=5, rest=b"\x05\x11\0\0\0\x01\0\0"),
        connect_bytes(0x42, level=5, rest=b"\0\0\0\0\0"),
        connect_bytes(0),
        connect_bytes(0x2E, rest=b"\0\0\0\x01a\0\0"),
    ],
)
def test_a_connect_that_is_only_unusual_is_read(data: bytes) -> None:
    assert len(Decoder(server=True).feed(data)) == 1


@pytest.mark.parametrize(
    ("level", "data", "reason", "statement"),
    [
        (5, b"\x00\x00", 0x81, "2.1.2: type 0"),
        (5, b"\x00\x09", 0x81, "2.1.2: type 0, said before the body arrives"),
        (4, b"\xf0\x00", 0x82, "2.2.1 (3.1.1): type 15"),
        (5, b"\x20\x02\0\0", 0x82, "3.2: a client sends no CONNACK"),
        (5, b"\x90\x03\0\x01\0", 0x82, "3.9: a client sends no SUBACK"),
        (5, b"\xb0\x04\0\x01\0\0", 0x82, "3.11: a client sends no UNSUBACK"),
        (5, b"\xd0\x00", 0x82, "3.13: a client sends no PINGRESP"),
        (5, CONNECT[5], 0x82, "MQTT-3.1.0-2: a second CONNECT"),
        (5, CONNECT[5][:3], 0x82, "MQTT-3.1.0-2: said before it is whole"),
        (4, CONNECT[5], 0x82, "MQTT-3.1.0-2"),
        (5, b"\x30\x80\x80\x80\x80\x01", 0x81, "1.5.5: four bytes of length"),
        (5, b"\x30\xff\xff\xff\x7f", 0x95, "larger than the maximum: said before the body arrives"),
        (4, b"\x36\x05\0\x01a\0\x01", 0x81, "MQTT-3.3.1-4: QoS 3"),
        (4, b"\x36\x05", 0x81, "MQTT-3.3.1-4: said before the body arrives"),
        (4, b"\x38\x03\0\x01a", 0x81, "MQTT-3.3.1-2: DUP with QoS 0"),
        (4, b"\x38\x03", 0x81, "MQTT-3.3.1-2: said before the body arrives"),
        (4, b"\x30\x02\0\0", 0x81, "MQTT-4.7.3-1: an empty topic"),
        (4, b"\x30\x05\0\x03a/+", 0x90, "MQTT-3.3.2-2: a wildcard"),
        (4, b"\x30\x04\0\x02a#", 0x90, "MQTT-3.3.2-2: a wildcard"),
        (4, b"\x30\x03\0\x01\xff", 0x81, "MQTT-3.3.2-1: a topic that is not UTF-8"),
        (4, b"\x30\x05\0\x03\xed\xb0\x80", 0x81, "MQTT-1.5.4-1: a surrogate"),
        (4, b"\x30\x03\0\x01\0", 0x81, "MQTT-1.5.4-2: U+0000"),
        (4, b"\x30\x03\0\x09a", 0x81, "MQTT-3.3.2-1: a topic longer than the packet"),
        (4, b"\x30\x00", 0x81, "MQTT-3.3.2-1: no topic"),
        (4, b"\x30\x01\0", 0x81, "MQTT-3.3.2-1: a topic's length cut off"),
        (4, b"\x32\x05\0\x01a\0\0", 0x82, "MQTT-2.3.1-1 (3.1.1): packet identifier 0"),
        (4, b"\x32\x03\0\x01a", 0x81, "3.3.2.2: the packet identifier is missing"),
        (4, b"\x34\x04\0\x01a\0", 0x81, "3.3.2.2: half a packet identifier"),
        (5, b"\x30\x03\0\x01a", 0x81, "3.3.2.3: the properties are missing"),
        (5, b"\x32\x05\0\x01a\0\x01", 0x81, "3.3.2.3: the properties are missing"),
        (5, b"\x30\x04\0\x01a\x01", 0x81, "3.3.2.3.1: properties longer than the packet"),
        (5, b"\x30\x06\0\x01a\x02\x0b\x01", 0x82, "MQTT-3.3.4-6: a client's subscription identifier"),
        (5, b"\x30\x07\0\x01a\x03\x23\0\0", 0x94, "MQTT-3.3.2-8: alias 0"),
        (5, b"\x30\x07\0\x01a\x03\x23\0\x0b", 0x94, "MQTT-3.3.2-9: alias beyond the maximum"),
        (5, b"\x30\x0a\0\x01a\x06\x23\0\x01\x23\0\x02", 0x82, "3.3.2.3.4: two aliases"),
        (5, b"\x30\x06\0\0\x03\x23\0\x01", 0x82, "3.3.2.3.4: an alias that stands for nothing"),
        (5, b"\x30\x03\0\0\0", 0x82, "3.3.2.1: no topic and no alias"),
        (5, b"\x30\x05\0\0\x02\x01\x01", 0x82, "3.3.2.1: no topic and no alias, other properties"),
        (5, b"\x30\x08\0\x01a\x04\x08\0\x01#", 0x82, "MQTT-3.3.2-14: a response topic with wildcards"),
        (5, b"\x30\x07\0\x01a\x03\x08\0\0", 0x82, "MQTT-4.7.3-1: an empty response topic"),
        (5, b"\x30\x06\0\x01a\x02\x01\x02", 0x82, "3.3.2.3.2: payload format 2"),
        (5, b"\x41\x02\0\x01", 0x81, "MQTT-2.1.3-1: flags of PUBACK"),
        (5, b"\x40\x02\0\0", 0x82, "2.2.1: packet identifier 0"),
        (5, b"\x40\x03\0\0\0", 0x82, "2.2.1: packet identifier 0"),
        (5, b"\x40\x01\0", 0x81, "3.4.2: half a packet identifier"),
        (5, b"\x40\x03\0\x01\x01", 0x82, "MQTT-3.4.2-1: an unknown reason"),
        (5, b"\x50\x03\0\x01\x92", 0x82, "MQTT-3.5.2-1: a reason of PUBREL"),
        (5, b"\x62\x03\0\x01\x10", 0x82, "MQTT-3.6.2-1: a reason of PUBACK"),
        (5, b"\x70\x03\0\x01\x87", 0x82, "MQTT-3.7.2-1: a reason of PUBACK"),
        (5, b"\x40\x05\0\x01\0\0\0", 0x81, "3.4.2.2: bytes left over"),
        (5, b"\x40\x0c\0\x01\0\x08\x1f\0\x01a\x1f\0\x01a", 0x82, "3.4.2.2.2: two reason strings"),
        (4, b"\x40\x03\0\x01\0", 0x81, "3.4 (3.1.1): bytes left over"),
        (4, b"\x62\x00", 0x81, "3.6 (3.1.1): no packet identifier"),
        (5, b"\x60\x02\0\x01", 0x81, "MQTT-3.6.1-1: flags of PUBREL"),
        (5, b"\x80\x07\0\x01\0\0\x01a\0", 0x81, "MQTT-3.8.1-1: flags of SUBSCRIBE"),
        (4, b"\x82\x06\0\0\0\x01a\0", 0x82, "MQTT-2.3.1-1 (3.1.1): packet identifier 0"),
        (5, b"\x82\x07\0\0\0\0\x01a\0", 0x82, "MQTT-2.2.1-3: packet identifier 0"),
        (5, b"\xa2\x06\0\0\0\0\x01a", 0x82, "MQTT-2.2.1-3: packet identifier 0"),
        (5, b"\x32\x06\0\x01a\0\0\0", 0x82, "MQTT-2.2.1-3: packet identifier 0"),
        (4, b"\x82\x02\0\x01", 0x82, "MQTT-3.8.3-3 (3.1.1): no filter"),
        (5, b"\x82\x03\0\x01\0", 0x82, "MQTT-3.8.3-2: no filter"),
        (4, b"\x82\x05\0\x01\0\x01a", 0x81, "3.8.3: a filter without options"),
        (4, b"\x82\x06\0\x01\0\x01\xff\0", 0x81, "MQTT-3.8.3-1: a filter that is not UTF-8"),
        (4, b"\x82\x06\0\x01\0\x01\0\0", 0x81, "MQTT-1.5.4-2: a filter with U+0000"),
        (4, b"\x82\x06\0\x01\0\x01a\x03", 0x81, "MQTT-3.8.3-4 (3.1.1): QoS 3"),
        (4, b"\x82\x06\0\x01\0\x01a\x04", 0x81, "MQTT-3.8.3-4 (3.1.1): reserved bits"),
        (5, b"\x82\x07\0\x01\0\0\x01a\x03", 0x82, "3.8.3.1: QoS 3"),
        (5, b"\x82\x07\0\x01\0\0\x01a\x40", 0x81, "MQTT-3.8.3-5: reserved bits"),
        (5, b"\x82\x07\0\x01\0\0\x01a\x80", 0x81, "MQTT-3.8.3-5: reserved bits"),
        (5, b"\x82\x07\0\x01\0\0\x01a\x30", 0x82, "3.8.3.1: retain handling 3"),
        (5, b"\x82\x10\0\x01\0\0\x0a$share/g/a\x04", 0x82, "MQTT-3.8.3-4: no-local on a shared subscription"),
        (5, b"\x82\x09\0\x01\x02\x0b\0\0\x01a\0", 0x82, "3.8.2.1.2: subscription identifier 0"),
        (5, b"\x82\x0b\0\x01\x04\x0b\x01\x0b\x01\0\x01a\0", 0x82, "3.8.2.1.2: two subscription identifiers"),
        (5, b"\x82\x0c\0\x01\x05\x0b\xff\xff\xff\xff\0\x01a\0", 0x81, "1.5.5: five bytes of identifier"),
        (5, b"\x82\x0a\0\x01\x03\x0b\x81\0\0\x01a\0", 0x81, "MQTT-1.5.5-1: an identifier longer than need be"),
        (5, b"\x82\x09\0\x01\x02\x0b\x81\0\x01a\0", 0x81, "2.2.2.1: an identifier across the properties' end"),
        (5, b"\xa0\x06\0\x01\0\0\x01a", 0x81, "MQTT-3.10.1-1: flags of UNSUBSCRIBE"),
        (4, b"\xa2\x02\0\x01", 0x82, "MQTT-3.10.3-2: no filter"),
        (5, b"\xa2\x03\0\x01\0", 0x82, "MQTT-3.10.3-2: no filter"),
        (5, b"\xa2\x06\0\x01\0\0\x01\xff", 0x81, "MQTT-3.10.3-1: a filter that is not UTF-8"),
        (5, b"\xa2\x05\0\x01\0\0\x01", 0x81, "3.10.3: a filter cut off"),
        (5, b"\xc0\x01\0", 0x81, "3.12: a body"),
        (5, b"\xc1\x00", 0x81, "MQTT-2.1.3-1: flags of PINGREQ"),
        (5, b"\xe1\x00", 0x81, "MQTT-3.14.1-1: flags of DISCONNECT"),
        (4, b"\xe0\x01\0", 0x81, "3.14 (3.1.1): a body"),
        (5, b"\xe0\x01\x8e", 0x82, "MQTT-3.14.2-1: a server's reason"),
        (5, b"\xe0\x0c\0\x0a\x11\0\0\0\1\x11\0\0\0\1", 0x82, "3.14.2.2.2: two expiry intervals"),
        (5, b"\xf1\x00", 0x81, "MQTT-3.15.1-1: flags of AUTH"),
        (5, b"\xf0\x06\x01\x04\x15\0\x01m", 0x82, "MQTT-3.15.2-1: an unknown reason"),
        (5, b"\xf0\x06\x00\x04\x15\0\x01m", 0x82, "MQTT-3.15.2-1: a server's reason"),
        (5, b"\xf0\x00", 0x82, "MQTT-3.15.2-1: no body says success, which a server says"),
        (5, b"\xf0\x02\x18\x00", 0x82, "3.15.2.2.2: no method"),
        (5, b"\xf0\x01\x18", 0x82, "3.15.2.2.2: no method"),
    ],
)
def test_a_clients_packet_that_breaks_a_statement_is_refused(
    level: int, data: bytes, reason: int, statement: str
) -> None:
    assert refusal(reader(level, alias_maximum=10), data) == reason, statement


@pytest.mark.parametrize(
    ("level", "data", "reason", "statement"),
    [
        (5, CONNECT[5], 0x82, "3.1: a server sends no CONNECT"),
        (5, b"\x82\x07\0\x01\0\0\x01a\0", 0x82, "3.8: a server sends no SUBSCRIBE"),
        (5, b"\xa2\x06\0\x01\0\0\x01a", 0x82, "3.10: a server sends no UNSUBSCRIBE"),
        (5, b"\xc0\x00", 0x82, "3.12: a server sends no PINGREQ"),
        (4, b"\xe0\x00", 0x82, "3.14 (3.1.1): a server sends no DISCONNECT"),
        (5, b"\x20\x03\x02\0\0", 0x81, "3.2.2.1: reserved acknowledge flags"),
        (5, b"\x20\x03\x01\x87\0", 0x82, "MQTT-3.2.2-6: a refusal with a session present"),
        (4, b"\x20\x02\x01\x05", 0x82, "MQTT-3.2.2-4 (3.1.1): a refusal with a session present"),
        (4, b"\x20\x02\0\x06", 0x81, "3.2.2.3 (3.1.1): a reserved return code"),
        (4, b"\x20\x03\0\0\0", 0x81, "3.2 (3.1.1): bytes left over"),
        (5, b"\x20\x02\0\0", 0x81, "3.2.2.3: the properties are missing"),
        (5, b"\x20\x03\0\x8e\0", 0x82, "MQTT-3.2.2-8: a reason of DISCONNECT"),
        (5, b"\x20\x06\0\0\x03\x21\0\0", 0x82, "3.2.2.3.3: receive maximum 0"),
        (5, b"\x20\x05\0\0\x02\x24\x02", 0x82, "3.2.2.3.4: maximum QoS 2 is left out"),
        (5, b"\x20\x05\0\0\x02\x25\x02", 0x82, "3.2.2.3.5: neither 0 nor 1"),
        (5, b"\x20\x08\0\0\x05\x27\0\0\0\0", 0x82, "3.2.2.3.6: maximum packet size 0"),
        (5, b"\x20\x05\0\0\x02\x28\x02", 0x82, "3.2.2.3.11: neither 0 nor 1"),
        (5, b"\x30\x06\0\x01a\x02\x0b\0", 0x82, "3.3.2.3.8: subscription identifier 0"),
        (5, b"\x30\x07\0\x01a\x03\x23\0\x0b", 0x94, "MQTT-3.3.2-11: alias beyond the maximum"),
        (5, b"\x90\x03\0\x01\0", 0x82, "3.9.3: no reason"),
        (5, b"\x90\x04\0\x01\0\x03", 0x82, "MQTT-3.9.3-2: an unknown reason"),
        (4, b"\x90\x03\0\x01\x87", 0x82, "MQTT-3.9.3-2 (3.1.1): an unknown return code"),
        (4, b"\x90\x03\0\0\0", 0x82, "2.2.1: packet identifier 0"),
        (5, b"\xb0\x03\0\x01\0", 0x82, "3.11.3: no reason"),
        (5, b"\xb0\x04\0\x01\0\x01", 0x82, "MQTT-3.11.3-2: a reason of SUBACK"),
        (4, b"\xb0\x03\0\x01\0", 0x81, "3.11 (3.1.1): bytes left over"),
        (5, b"\xd0\x01\0", 0x81, "3.13: a body"),
        (5, b"\xe0\x01\x04", 0x82, "MQTT-3.14.2-1: a client's reason"),
        (5, b"\xe0\x07\0\x05\x11\0\0\0\1", 0x82, "MQTT-3.14.2-2: a server's session expiry interval"),
        (5, b"\xf0\x06\x19\x04\x15\0\x01m", 0x82, "MQTT-3.15.2-1: a client's reason"),
    ],
)
def test_a_servers_packet_that_breaks_a_statement_is_refused(
    level: int, data: bytes, reason: int, statement: str
) -> None:
    assert refusal(reader(level, server=False, alias_maximum=10), data) == reason, statement


FORMS = {
    0x01: b"\x01",
    0x02: b"\0\0\0\1",
    0x03: b"\0\1a",
    0x08: b"\0\1a",
    0x09: b"\0\1a",
    0x0B: b"\1",
    0x11: b"\0\0\0\1",
    0x12: b"\0\1a",
    0x13: b"\0\1",
    0x15: b"\0\1a",
    0x16: b"\0\1a",
    0x17: b"\1",
    0x18: b"\0\0\0\1",
    0x19: b"\1",
    0x1A: b"\0\1a",
    0x1C: b"\0\1a",
    0x1F: b"\0\1a",
    0x21: b"\0\1",
    0x22: b"\0\1",
    0x23: b"\0\1",
    0x24: b"\1",
    0x25: b"\1",
    0x26: b"\0\1a\0\1b",
    0x27: b"\0\0\0\1",
    0x28: b"\1",
    0x29: b"\1",
    0x2A: b"\1",
}
"""A value for every identifier of table 2-4."""

HOLDS = {
    "CONNECT": (0x11, 0x15, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27),
    "WILL": (0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26),
    "CONNACK": (
        *(0x11, 0x12, 0x13, 0x15, 0x16, 0x1A, 0x1C, 0x1F),
        *(0x21, 0x22, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2A),
    ),
    "PUBLISH": (0x01, 0x02, 0x03, 0x08, 0x09, 0x0B, 0x23, 0x26),
    "PUBACK": (0x1F, 0x26),
    "PUBREC": (0x1F, 0x26),
    "PUBREL": (0x1F, 0x26),
    "PUBCOMP": (0x1F, 0x26),
    "SUBSCRIBE": (0x0B, 0x26),
    "SUBACK": (0x1F, 0x26),
    "UNSUBSCRIBE": (0x26,),
    "UNSUBACK": (0x1F, 0x26),
    "DISCONNECT": (0x1C, 0x1F, 0x26),
}
"""Table 2-4 by packet: the properties that it may have alone, as its receiver sees them (DISCONNECT and PUBLISH: from a server)."""

AROUND: dict[str, tuple[bool, int, bytes, bytes]] = {
    "CONNECT": (True, 0x10, b"\0\4MQTT\5\2\0\0", b"\0\0"),
    "WILL": (True, 0x10, b"\0\4MQTT\5\6\0\0\0\0\0", b"\0\1a\0\0"),
    "CONNACK": (False, 0x20, b"\0\0", b""),
    "PUBLISH": (False, 0x30, b"\0\1a", b""),
    "PUBACK": (False, 0x40, b"\0\1\0", b""),
    "PUBREC": (False, 0x50, b"\0\1\0", b""),
    "PUBREL": (False, 0x62, b"\0\1\0", b""),
    "PUBCOMP": (False, 0x70, b"\0\1\0", b""),
    "SUBSCRIBE": (True, 0x82, b"\0\1", b"\0\1a\0"),
    "SUBACK": (False, 0x90, b"\0\1", b"\0"),
    "UNSUBSCRIBE": (True, 0xA2, b"\0\1", b"\0\1a"),
    "UNSUBACK": (False, 0xB0, b"\0\1", b"\0"),
    "DISCONNECT": (False, 0xE0, b"\0", b""),
}
"""Whether a server reads it, the first byte, and what stands before and after the properties."""


@pytest.mark.parametrize("packet", AROUND)
def test_a_packet_takes_its_own_properties_once_and_no_others(packet: str) -> None:
    server, first, before, after = AROUND[packet]
    for identifier in range(0x80):
        if packet == "CONNECT" and identifier == 0x16:
            continue  # needs 0x15 beside it
        for count in (1, 2):
            held = (bytes((identifier,)) + FORMS.get(identifier, b"\0\0\0\0")) * count
            body = before + bytes((len(held),)) + held + after
            data = bytes((first, len(body))) + body
            decoder = Decoder(server=True) if first == 0x10 else reader(5, server=server, alias_maximum=1)
            repeats = identifier == 0x26 or (identifier == 0x0B and packet == "PUBLISH")
            if identifier in HOLDS[packet] and (count == 1 or repeats):
                assert len(decoder.feed(data)) == 1, (packet, identifier)
            elif identifier in HOLDS[packet] or (packet == "DISCONNECT" and identifier == 0x11):
                assert refusal(decoder, data) == 0x82, (packet, identifier)
            else:
                assert refusal(decoder, data) == 0x81, (packet, identifier)


def test_good_packets_before_a_bad_one_are_not_lost_and_nothing_is_read_after_it() -> None:
    decoder = reader(4)
    with pytest.raises(MalformedPacket) as caught:
        decoder.feed(encode(Pingreq(), 4) + b"\x36\x05\0\x01a\0\x01" + encode(Pingreq(), 4))
    assert caught.value.packets == [Pingreq()]
    with pytest.raises(MalformedPacket) as again:
        decoder.feed(encode(Pingreq(), 4))
    assert again.value.packets == []
    assert (again.value.detail, again.value.reason) == (caught.value.detail, caught.value.reason)


# ---- anything at all ---------------------------------------------------------------------------------------------------------

_EVERY: dict[Property, Any] = {
    Property.MESSAGE_EXPIRY_INTERVAL: 5,
    Property.CONTENT_TYPE: "t",
    Property.RESPONSE_TOPIC: "r",
    Property.CORRELATION_DATA: b"c",
    Property.USER_PROPERTY: [("a", "b"), ("a", "c")],
    Property.TOPIC_ALIAS: 2,
}


def seeds(level: int, *, server: bool) -> list[bytes]:
    five = level == 5
    note: Any = {Property.REASON_STRING: "no", Property.USER_PROPERTY: [("a", "b")]} if five else None
    method: Any = {Property.AUTHENTICATION_METHOD: "m", Property.AUTHENTICATION_DATA: b"d"}
    packets: list[Any] = [
        Publish("a/b", b'{"x":1}', 1, packet_id=3),
        Publish("a/b", b"x", 2, True, True, 9, dict(_EVERY) if five else None),
        Puback(1),
        Puback(1, 0x87 if five else 0, note),
        Pubrec(1),
        Pubrel(1),
    ]
    if server:
        will = Will("w", b"x", 1, properties={Property.WILL_DELAY_INTERVAL: 3} if five else None)
        packets += [
            Connect("c", level, username="u", password=b"p", will=will),
            Subscribe(2, [Subscription("a/#", 1), Subscription("+", 2)]),
            Unsubscribe(2, ["a", "b"]),
            Pingreq(),
            Disconnect(),
        ]
        if five:
            packets += [Disconnect(4, {Property.SESSION_EXPIRY_INTERVAL: 5}), Auth(0x18, method)]
            packets.append(Connect("c", 5, properties={Property.RECEIVE_MAXIMUM: 9, **method}))
    else:
        packets += [
            Connack(True, 0, {Property.RECEIVE_MAXIMUM: 9, Property.MAXIMUM_QOS: 1} if five else None),
            Suback(2, [0, 1, 0x80], note),
            Unsuback(2, [0, 0x11], note),
            Pingresp(),
        ]
        if five:
            packets += [Disconnect(0x8B, note), Auth(0x18, method)]
            packets.append(Publish("a", b"", properties={Property.SUBSCRIPTION_IDENTIFIER: [1, 300]}))
    return [encode(packet, level) for packet in packets]


@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("server", [True, False])
def test_twenty_thousand_mutated_packets_end_in_packets_or_in_our_own_error(level: int, server: bool) -> None:
    dice = random.Random(level * 2 + server)
    known = seeds(level, server=server)
    refused = read = 0
    for _ in range(20_000):
        data = bytearray(dice.choice(known))
        fresh = data[0] == 0x10
        for _ in range(dice.randint(1, 4)):
            what = dice.random()
            at = dice.randrange(len(data)) if data else 0
            if what < 0.7 and data:
                data[at] = dice.randrange(256)
            elif what < 0.85 and data:
                del data[at : at + dice.randint(1, 4)]
            else:
                data[at:at] = dice.randbytes(dice.randint(1, 4))
        if dice.random() < 0.5 and len(data) > 1 and data[1] < 0x80:
            data[1] = min(0x7F, len(data) - 2)  # let the damage reach the body
        decoder = Decoder(server=True) if fresh else reader(level, server=server, alias_maximum=4)
        try:
            packets = decoder.feed(bytes(data))
        except MalformedPacket as error:
            refused += 1
            assert 0x80 <= error.reason <= 0xA2  # noqa: PT017  # whether there is an error is the question
            packets = error.packets
        for packet in packets:
            # What was taken is sound: it can be written, and reads the same again.
            read += 1
            again = Decoder(server=True) if isinstance(packet, Connect) else reader(decoder.level, server=server)
            assert again.feed(encode(packet, decoder.level)) == [packet]
    assert 4_000 < refused < 19_000
    assert read > 1_000


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=64), st.sampled_from([0, 4, 5]), st.booleans())
def test_any_bytes_end_in_packets_or_in_our_own_error(data: bytes, level: int, server: bool) -> None:
    decoder = reader(level, server=server) if level else Decoder(server=True)
    try:
        decoder.feed(data)
    except MalformedPacket:
        with pytest.raises(MalformedPacket):
            decoder.feed(b"")
