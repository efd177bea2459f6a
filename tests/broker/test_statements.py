"""The specification's normative statements, byte by byte, over real sockets: what goes in, what must come out.

`[MQTT-x.y.z-n]` numbers are those of MQTT 5; those that begin with 3.1.1: are of MQTT 3.1.1. Statements about behaviour in time
(sessions, wills, redelivery, flow control, shared subscriptions) are tested where that behaviour is: see `ELSEWHERE`.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.wire.codec import encode
from gateway.wire.packets import Connect, Disconnect
from tests.broker.world import PATIENCE, RawClient, TableHouse, run, running

NOTHING = b""

PINGREQ = b"\xc0\x00"
PINGRESP = b"\xd0\x00"


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return len(data).to_bytes(2) + data


def packet(first: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    assert len(body) < 128
    return bytes((first, len(body))) + body


def connect(
    *rest: bytes, level: int = 5, flags: int = 0xC2, name: str = "MQTT", properties: bytes = b"\0", first: int = 0x10
) -> bytes:
    """A CONNECT of alice; `rest` replaces what follows the properties."""
    payload = rest or (text("c"), text("alice"), text("a"))
    head = text(name) + bytes((level, flags)) + b"\0\x3c"
    return packet(first, head, properties if level == 5 else b"", *payload)


def publish(
    topic: str | bytes, payload: bytes = b"p", first: int = 0x30, packet_id: int = 0, properties: bytes = b"\0"
) -> bytes:
    """MQTT 5; `properties` with their length."""
    return packet(first, text(topic), packet_id.to_bytes(2) if first & 6 else b"", properties, payload)


def subscribe(
    *wanted: tuple[str | bytes, int], packet_id: int = 10, first: int = 0x82, properties: bytes = b"\0"
) -> bytes:
    return packet(first, packet_id.to_bytes(2), properties, *(text(one) + bytes((options,)) for one, options in wanted))


def ends(reason: int) -> bytes:
    """A DISCONNECT of MQTT 5 with this reason; a reason string may follow."""
    return bytes((0xE0, reason))


class Case(NamedTuple):
    """`gives`: the bytes that must come, and nothing else; then the end of the connection where `closed`.

    Where `gives` is a DISCONNECT or a refusing CONNACK of MQTT 5, its length and reason string are not compared.
    """

    statement: str
    what: str
    sends: bytes
    gives: bytes
    closed: bool = True
    level: int = 5
    fresh: bool = False
    """Without a CONNECT before it."""


def refused(statement: str, what: str, sends: bytes, reason: int = 0x81) -> Case:
    return Case(statement, what, sends, ends(reason))


def shut(statement: str, what: str, sends: bytes) -> Case:
    """MQTT 3.1.1 has no words: the connection is closed."""
    return Case(statement, what, sends, NOTHING, level=4)


def kept(statement: str, what: str, sends: bytes, gives: bytes, level: int = 5) -> Case:
    return Case(statement, what, sends, gives, closed=False, level=level)


def fresh(statement: str, what: str, sends: bytes, gives: bytes, level: int = 5) -> Case:
    return Case(statement, what, sends, gives, level=level, fresh=True)


def connack(reason: int) -> bytes:
    """A refusal of MQTT 5: session present is 0 [MQTT-3.2.2-6]."""
    return bytes((0x20, 0x00, reason))


OK = b"\x90\x04\x00\x0a\x00\x00"
"""SUBACK 10: QoS 0 is granted."""

CASES = [
    # 1.5 Data representation
    refused("1.5.4-1", "a surrogate in a filter", subscribe((b"open/\xed\xa0\x80", 0))),
    refused("1.5.4-1", "an overlong form in a topic", publish(b"open/\xc0\xaf")),
    refused("1.5.4-2", "U+0000 in a topic", publish(b"open/\0")),
    kept("1.5.4-3", "U+FEFF is a character", subscribe((b"open/\xef\xbb\xbf", 0)) + publish(b"open/\xef\xbb\xbf"), OK + publish(b"open/\xef\xbb\xbf")),
    refused("1.5.5-1", "a length in more bytes than it needs", b"\xc0\x80\x00"),
    refused("1.5.5-1", "a length of five bytes", b"\x30\xff\xff\xff\xff\x01"),
    refused("1.5.7-1", "a user property whose name is not UTF-8", publish("open/x", properties=b"\x07\x26" + text(b"\xff") + text("v"))),
    # 2.1 Fixed header
    refused("2.1.3-1", "PUBREL with flags 0", packet(0x60, b"\0\x01")),
    refused("2.1.3-1", "PINGREQ with a flag", b"\xc1\x00"),
    refused("2.1.3-1", "PUBACK with a flag", packet(0x42, b"\0\x01")),
    shut("3.1.1:2.2.2-2", "SUBSCRIBE with flags 0 in 3.1.1", packet(0x80, b"\0\x0a", text("open/x") + b"\0")),
    # 2.2 Packet identifiers and properties
    refused("2.2.1-3", "SUBSCRIBE with identifier 0", subscribe(("open/x", 0), packet_id=0), 0x82),
    refused("2.2.1-4", "PUBLISH of QoS 1 with identifier 0", publish("open/x", first=0x32), 0x82),
    kept("2.2.1-5", "PUBACK has the identifier of its PUBLISH", publish("open/x", first=0x32, packet_id=0x1234), b"\x40\x02\x12\x34"),
    kept("2.2.1-5", "so has PUBREC, and PUBCOMP that of its PUBREL", publish("open/x", first=0x34, packet_id=0x1234) + packet(0x62, b"\x12\x34"), b"\x50\x02\x12\x34\x70\x02\x12\x34"),
    kept("2.2.1-6", "SUBACK and UNSUBACK have theirs", subscribe(("open/x", 0), packet_id=0xABCD) + packet(0xA2, b"\xdc\xba\0", text("open/x")), b"\x90\x04\xab\xcd\0\0" + b"\xb0\x04\xdc\xba\0\0"),
    refused("2.2.2-1", "a PUBLISH without a property length", packet(0x30, text("open/x"))),
    refused("2.2.2.2", "a property that no packet has", publish("open/x", properties=b"\x02\x7f\0")),
    refused("2.2.2.2", "a property of another packet", publish("open/x", properties=b"\x03\x21\0\x05")),
    refused("2.2.2.2", "a property twice", publish("open/x", properties=b"\x04\x01\0\x01\0"), 0x82),
    refused("2.2.2.2", "properties that end in the middle of one", publish("open/x", properties=b"\x02\x02\0")),
    # 3.1 CONNECT
    fresh("3.1.0-1", "PINGREQ before CONNECT", PINGREQ, NOTHING),
    refused("3.1.0-2", "a second CONNECT", connect(), 0x82),
    fresh("3.1.2-1", "another protocol's name", connect(name="MQTX"), b"\x20\x02\x00\x01"),
    fresh("3.1.2-2", "level 6", connect(level=6), b"\x20\x02\x00\x01"),
    fresh("3.1.1:3.1.2-2", "level 3 is told the return code of 3.1.1", connect(level=3, name="MQIsdp"), b"\x20\x02\x00\x01"),
    fresh("3.1.2-3", "the reserved flag", connect(flags=0xC3), connack(0x81)),
    fresh("3.1.1:3.1.2-3", "the reserved flag in 3.1.1", connect(flags=0xC3, level=4), NOTHING, 4),
    fresh("3.1.2-11", "a will's QoS without a will", connect(flags=0xCA), connack(0x81)),
    fresh("3.1.2-12", "a will of QoS 3", connect(text("c"), b"\0", text("open/w"), text("w"), text("alice"), text("a"), flags=0xDE), connack(0x81)),
    fresh("3.1.2-13", "a will's RETAIN without a will", connect(flags=0xE2), connack(0x81)),
    fresh("3.1.1:3.1.2-22", "a password without a user name in 3.1.1", connect(text("c"), text("a"), flags=0x42, level=4), NOTHING, 4),
    fresh("3.1.2.11.3", "a receive maximum of 0", connect(properties=b"\x03\x21\0\0"), connack(0x82)),
    fresh("3.1.2.11.4", "a maximum packet size of 0", connect(properties=b"\x05\x27\0\0\0\0"), connack(0x82)),
    fresh("3.1.2.11.7", "request problem information 2", connect(properties=b"\x02\x17\x02"), connack(0x82)),
    fresh("3.1.2.11.10", "authentication data without a method", connect(properties=b"\x04\x16\0\x01x"), connack(0x82)),
    fresh("3.1.3-4", "a client identifier that is not UTF-8", connect(text(b"\xff"), text("alice"), text("a")), connack(0x81)),
    fresh("3.1.1:3.1.3-8", "no client identifier with clean session 0", connect(text(""), text("alice"), text("a"), flags=0xC0, level=4), b"\x20\x02\x00\x02", 4),
    fresh("3.1.3-11", "a will topic that is not UTF-8", connect(text("c"), b"\0", text(b"\xff"), text("w"), text("alice"), text("a"), flags=0xC6), connack(0x81)),
    fresh("3.1.3-12", "a user name that is not UTF-8", connect(text("c"), text(b"\xff"), text("a")), connack(0x81)),
    fresh("3.1.4-1", "bytes behind the payload", connect(text("c"), text("alice"), text("a"), b"x"), connack(0x81)),
    fresh("3.1.4-1", "flags in the first byte", connect(first=0x11), NOTHING),
    fresh("3.1.4-6", "nothing behind a refused CONNECT is processed", connect(text("c"), text("alice"), text("wrong")) + PINGREQ, connack(0x86)),
    fresh("3.1.1:3.2.2-5", "a wrong password in 3.1.1", connect(text("c"), text("alice"), text("wrong"), level=4), b"\x20\x02\x00\x04", 4),
    # 3.3 PUBLISH
    refused("3.3.1-2", "DUP with QoS 0", publish("open/x", first=0x38)),
    refused("3.3.1-4", "QoS 3", publish("open/x", first=0x36, packet_id=1)),
    shut("3.1.1:3.3.1-4", "QoS 3 in 3.1.1", packet(0x36, text("open/x"), b"\0\x01")),
    refused("3.3.2-1", "a topic longer than its packet", packet(0x30, b"\0\x09open")),
    refused("3.3.2-2", "a wildcard in a topic", publish("open/+"), 0x90),
    refused("3.3.2-2", "the other wildcard", publish("open/#"), 0x90),
    refused("3.3.2-8", "topic alias 0", publish("open/x", properties=b"\x03\x23\0\0"), 0x94),
    refused("3.3.2-9", "a topic alias above the maximum", publish("open/x", properties=b"\x03\x23\0\x21"), 0x94),
    refused("3.3.2-12", "a topic alias that stands for nothing", publish("", properties=b"\x03\x23\0\x01"), 0x82),
    kept("3.3.2-12", "an alias stands for its topic until it stands for another",
         subscribe(("open/+", 0)) + publish("open/x", b"1", properties=b"\x03\x23\0\x20") + publish("", b"2", properties=b"\x03\x23\0\x20")
         + publish("open/y", b"3", properties=b"\x03\x23\0\x20") + publish("", b"4", properties=b"\x03\x23\0\x20"),
         OK + publish("open/x", b"1") + publish("open/x", b"2") + publish("open/y", b"3") + publish("open/y", b"4")),
    refused("3.3.2-14", "a wildcard in the response topic", publish("open/x", properties=b"\x06\x08" + text("a/#")), 0x82),
    kept("3.3.2-15", "the response topic, the correlation data and the content type are passed on as they are",
         subscribe(("open/x", 0)) + publish("open/x", properties=b"\x0d\x08" + text("r") + b"\x09" + text(b"\0\xff") + b"\x03" + text("t")),
         OK + publish("open/x", properties=b"\x0d\x08" + text("r") + b"\x09" + text(b"\0\xff") + b"\x03" + text("t"))),
    kept("3.3.2-17", "user properties are passed on", subscribe(("open/x", 0)) + publish("open/x", properties=b"\x07\x26" + text("k") + text("v")), OK + publish("open/x", properties=b"\x07\x26" + text("k") + text("v"))),
    kept("3.3.2-18", "and keep their order, the same name twice too",
         subscribe(("open/x", 0)) + publish("open/x", properties=b"\x15" + b"".join(b"\x26" + text(k) + text(v) for k, v in ("b1", "a2", "b3"))),
         OK + publish("open/x", properties=b"\x15" + b"".join(b"\x26" + text(k) + text(v) for k, v in ("b1", "a2", "b3")))),
    kept("3.3.2-4", "the payload format indicator is passed on", subscribe(("open/x", 0)) + publish("open/x", properties=b"\x02\x01\x01"), OK + publish("open/x", properties=b"\x02\x01\x01")),
    refused("3.3.2.3.2", "a payload format indicator of 2", publish("open/x", properties=b"\x02\x01\x02"), 0x82),
    refused("3.3.4-6", "a client's PUBLISH with a subscription identifier", publish("open/x", properties=b"\x02\x0b\x01"), 0x82),
    kept("3.3.1-8", "a PUBLISH without RETAIN changes nothing that is kept",
         publish("open/x", b"kept", first=0x31) + publish("open/x", b"passing") + subscribe(("open/x", 0)), OK + publish("open/x", b"kept", first=0x31)),
    kept("3.3.1-6", "an empty retained payload clears, and is not kept itself",
         publish("open/x", b"kept", first=0x31) + publish("open/x", b"", first=0x31) + subscribe(("open/x", 0)) + PINGREQ, OK + PINGRESP),
    kept("3.3.1-11", "retain handling 2 sends nothing that is kept", publish("open/x", first=0x31) + subscribe(("open/x", 0x20)) + PINGREQ, OK + PINGRESP),
    kept("3.3.1-10", "retain handling 1 sends it to a new subscription only",
         publish("open/x", first=0x31) + subscribe(("open/x", 0x10)), OK + publish("open/x", first=0x31)),
    kept("3.3.1-12", "RETAIN is 0 for a live message", subscribe(("open/x", 0x20)) + publish("open/x", first=0x31), OK + publish("open/x")),
    kept("3.3.1-13", "but as published where the subscription asks for that", subscribe(("open/x", 0x28)) + publish("open/x", first=0x31), OK + publish("open/x", first=0x31)),
    kept("3.3.4-3", "the identifier of the subscription comes with each message", subscribe(("open/x", 0), properties=b"\x02\x0b\x07") + publish("open/x"), OK + publish("open/x", properties=b"\x02\x0b\x07")),
    # 3.4 to 3.7 acknowledgements
    refused("3.4.2-1", "a PUBACK with a reason that it cannot have", packet(0x40, b"\0\x01\x01"), 0x82),
    refused("3.5.2-1", "a PUBREC with a reason that it cannot have", packet(0x50, b"\0\x01\x8e"), 0x82),
    refused("3.6.1-1", "PUBREL with flags 3", packet(0x63, b"\0\x01")),
    refused("3.6.2-1", "a PUBREL with a reason that it cannot have", packet(0x62, b"\0\x01\x80"), 0x82),
    kept("3.6.2-1", "a PUBREL that nothing waits for", packet(0x62, b"\0\x09"), b"\x70\x03\0\x09\x92"),
    kept("3.1.1:4.3.3-2", "in 3.1.1 it is answered all the same", packet(0x62, b"\0\x09"), b"\x70\x02\0\x09", 4),
    kept("4.3.3-4", "a PUBREC that nothing waits for", packet(0x50, b"\0\x09"), b"\x62\x03\0\x09\x92"),
    # 3.8 to 3.11 SUBSCRIBE and UNSUBSCRIBE
    refused("3.8.1-1", "SUBSCRIBE with flags 0", subscribe(("open/x", 0), first=0x80)),
    refused("3.8.3-1", "a filter that is not UTF-8", subscribe((b"open/\xff", 0))),
    refused("3.8.3-2", "SUBSCRIBE without a filter", subscribe(), 0x82),
    shut("3.1.1:3.8.3-3", "SUBSCRIBE without a filter in 3.1.1", packet(0x82, b"\0\x0a")),
    refused("3.8.3-4", "no-local on a shared subscription", subscribe(("$share/g/open/x", 4)), 0x82),
    refused("3.8.3-5", "reserved bits of the options", subscribe(("open/x", 0x40))),
    shut("3.1.1:3.8.3-4", "options of MQTT 5 in 3.1.1", packet(0x82, b"\0\x0a", text("open/x") + b"\x04")),
    refused("3.8.3.1", "QoS 3 in the options", subscribe(("open/x", 3)), 0x82),
    refused("3.8.3.1", "retain handling 3", subscribe(("open/x", 0x30)), 0x82),
    refused("3.8.2.1.2", "subscription identifier 0", subscribe(("open/x", 0), properties=b"\x02\x0b\0"), 0x82),
    kept("3.8.4-1", "SUBSCRIBE is answered", subscribe(("open/x", 2)), b"\x90\x04\0\x0a\0\x02"),
    kept("3.8.4-6", "several filters in one are answered in one, each with its own reason", subscribe(("open/x", 1), ("secret", 1), ("a+", 0)), b"\x90\x06\0\x0a\0\x01\x87\x8f"),
    kept("3.1.1:3.9.3-2", "in 3.1.1 a refusal is 0x80", packet(0x82, b"\0\x0a", text("open/x") + b"\x01", text("secret") + b"\x01"), b"\x90\x04\0\x0a\x01\x80", 4),
    kept("3.8.4-3", "the same filter again replaces the options", subscribe(("open/x", 0x28)) + subscribe(("open/x", 0x20)) + publish("open/x", first=0x31), OK + OK + publish("open/x")),
    refused("3.10.1-1", "UNSUBSCRIBE with flags 0", packet(0xA0, b"\0\x0b\0", text("open/x"))),
    refused("3.10.3-1", "an UNSUBSCRIBE filter that is not UTF-8", packet(0xA2, b"\0\x0b\0", text(b"\xff"))),
    refused("3.10.3-2", "UNSUBSCRIBE without a filter", packet(0xA2, b"\0\x0b\0"), 0x82),
    kept("3.10.4-1", "filters are compared letter by letter", subscribe(("open/+", 0)) + packet(0xA2, b"\0\x0b\0", text("open/x")) + publish("open/x"), OK + b"\xb0\x04\0\x0b\0\x11" + publish("open/x")),
    kept("3.10.4-2", "no new message follows", subscribe(("open/x", 0)) + packet(0xA2, b"\0\x0b\0", text("open/x")) + publish("open/x") + PINGREQ, OK + b"\xb0\x04\0\x0b\0\0" + PINGRESP),
    kept("3.10.4-5", "UNSUBACK comes although nothing was deleted", packet(0xA2, b"\0\x0b\0", text("open/x"), text("open/y")), b"\xb0\x05\0\x0b\0\x11\x11"),
    kept("3.1.1:3.10.4-5", "in 3.1.1 too, without reasons", packet(0xA2, b"\0\x0b", text("open/x")), b"\xb0\x02\0\x0b", 4),
    # 3.12 to 3.15
    kept("3.12.4-1", "PINGREQ is answered", PINGREQ * 3, PINGRESP * 3),
    kept("3.1.1:3.12.4-1", "in 3.1.1 too", PINGREQ, PINGRESP, 4),
    refused("2.1.4", "PINGREQ with a body", b"\xc0\x01\x00"),
    refused("3.14.1-1", "DISCONNECT with a flag", b"\xe1\x00"),
    refused("3.14.2-1", "DISCONNECT with a reason of the server's", b"\xe0\x01\x8b", 0x82),
    Case("3.14.4-2", "after DISCONNECT the connection is closed, and nothing behind it is processed", b"\xe0\x00" + PINGREQ, NOTHING),
    Case("3.1.1:3.14.4-1", "in 3.1.1 too", b"\xe0\x00" + PINGREQ, NOTHING, level=4),
    refused("3.14.2.2.2", "a session expiry after a CONNECT without one", b"\xe0\x07\x00\x05\x11\0\0\0\x0a", 0x82),
    refused("3.15.1-1", "AUTH with a flag", b"\xf1\x00"),
    refused("4.12.0-6", "AUTH without a method in CONNECT", b"\xf0\x00", 0x82),
    shut("3.1.1:2.2.1", "AUTH in 3.1.1", b"\xf0\x00"),
    refused("2.1.2", "packet type 0", b"\x00\x00"),
    refused("2.1.2", "CONNACK from a client", b"\x20\x03\0\0\0", 0x82),
    refused("2.1.2", "PINGRESP from a client", b"\xd0\x00", 0x82),
    # 4 Operational behaviour
    kept("4.3.3-10", "a QoS 2 PUBLISH that comes again before its PUBREL is delivered once",
         subscribe(("open/x", 0)) + publish("open/x", first=0x34, packet_id=5) + publish("open/x", first=0x3C, packet_id=5),
         OK + publish("open/x") + b"\x50\x02\0\x05\x50\x02\0\x05"),
    kept("4.3.3-12", "after its PUBREL the identifier is a new message's",
         subscribe(("open/x", 0)) + publish("open/x", first=0x34, packet_id=5) + packet(0x62, b"\0\x05") + publish("open/x", first=0x34, packet_id=5),
         OK + publish("open/x") + b"\x50\x02\0\x05\x70\x02\0\x05" + publish("open/x") + b"\x50\x02\0\x05"),
    kept("4.6.0-2", "PUBACKs come in the order of their PUBLISHes",
         publish("open/x", first=0x32, packet_id=3) + publish("report/alice/x", first=0x32, packet_id=2) + publish("open/x", first=0x32, packet_id=1),
         b"\x40\x02\0\x03\x40\x02\0\x02\x40\x02\0\x01"),
    kept("4.6.0-3", "PUBRECs too",
         publish("open/x", first=0x34, packet_id=3) + publish("report/alice/x", first=0x34, packet_id=2) + publish("open/x", first=0x34, packet_id=1),
         b"\x50\x02\0\x03\x50\x02\0\x02\x50\x02\0\x01"),
    kept("4.7.1-1", "# that is not last", subscribe(("open/#/x", 0), ("open/x#", 0)), b"\x90\x05\0\x0a\0\x8f\x8f"),
    kept("4.7.1-2", "+ that is not alone", subscribe(("open/x+", 0), ("+open", 0)), b"\x90\x05\0\x0a\0\x8f\x8f"),
    kept("4.7.1.2", "# matches its parent too", subscribe(("open/#", 0)) + publish("open/x/y") + publish("open/x"), OK + publish("open/x/y") + publish("open/x")),
    kept("4.7.3-1", "an empty filter", subscribe(("", 0)), b"\x90\x04\0\x0a\0\x8f"),
    refused("4.7.3-1", "an empty topic without an alias", publish(""), 0x82),
    shut("3.1.1:4.7.3-1", "an empty topic in 3.1.1", packet(0x30, text(""), b"p")),
    kept("4.7.3-4", "no two spellings are one: neither case nor Unicode forms are folded",
         subscribe(("open/\u00e9", 0)) + publish("open/e\u0301") + publish("open/\u00c9") + publish("open/\u00e9"), OK + publish("open/\u00e9")),
    kept("4.8.2-1", "a share name must be there", subscribe(("$share//open/x", 0)), b"\x90\x04\0\x0a\0\x8f"),
    kept("4.8.2-2", "without wildcards, and followed by a filter", subscribe(("$share/g+/open/x", 0), ("$share/g#/open/x", 0), ("$share/g", 0), ("$share/g/", 0)), b"\x90\x07\0\x0a\0\x8f\x8f\x8f\x8f"),
    kept("4.8.2-3", "a shared subscription grants its own QoS", subscribe(("$share/g/open/x", 0)) + publish("open/x", first=0x32, packet_id=1), OK + publish("open/x") + b"\x40\x02\0\x01"),
    refused("4.13.1-1", "a malformed packet closes the connection, the good one before it counts", publish("open/x", first=0x36, packet_id=1)),
]  # fmt: skip

ELSEWHERE = {
    "test_wills.py": ["3.1.3-9"],
    "test_connections.py": ["3.1.2-8", "3.1.2-21", "3.1.2-22", "3.1.4-3", "3.2.2-7", "3.14.4-3"],
    "test_messages.py": ["3.1.2-24", "3.3.4-9", "4.4.0-1", "4.5.0-1", "3.3.2-5", "3.3.2-6"],
    "test_shares.py": ["4.8.2-4", "4.8.2-5", "4.8.2-6"],
    "test_statistics.py": ["4.7.2-1"],
    "test_restart.py": ["4.1.0-1"],
}
"""Statements about behaviour in time, by the module that tests them."""


def name(case: Case) -> str:
    return f"{case.statement} {case.what}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_the_statement_holds_byte_by_byte(case: Case) -> None:
    async def go() -> None:
        house = TableHouse()
        house.read["alice"] = ["open/#"]
        async with running(house) as (_, _, port):
            if case.fresh:
                client = await RawClient.open(port, case.level)
            else:
                client = await RawClient.connect(port, "alice", case.level)
            client.send(case.sends)
            got = await received(client, case)
            if case.gives[:1] == b"\xe0" and case.closed:
                assert (got[:1], got[2:3]) == (b"\xe0", case.gives[1:2]), got.hex(" ")
            elif case.closed and case.level == 5 and len(case.gives) == 3:
                assert (got[:1], got[2:4]) == (b"\x20", case.gives[1:]), got.hex(" ")
            else:
                assert got == case.gives, got.hex(" ")
            if not case.closed:
                client.send(PINGREQ)
                assert await client.reader.readexactly(2) == PINGRESP, "the connection goes on, and nothing else comes"

    run(go)


async def received(client: RawClient, case: Case) -> bytes:
    """All bytes until the end, or as many as are awaited."""
    if case.closed:
        return await asyncio.wait_for(client.reader.read(-1), PATIENCE)
    try:
        return await asyncio.wait_for(client.reader.readexactly(len(case.gives)), PATIENCE)
    except asyncio.IncompleteReadError as error:
        return error.partial


def test_each_case_has_its_own_name_and_a_statement() -> None:
    names = [name(case) for case in CASES]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(3\.1\.1:)?\d+(\.\d+){1,4}(-\d+)?", case.statement) for case in CASES)
    folder = Path(__file__).parent
    assert all((folder / module).exists() for module in ELSEWHERE)


def test_the_bytes_that_are_written_here_by_hand_are_those_of_the_codec() -> None:
    assert connect() == encode(Connect("c", username="alice", password=b"a", keep_alive=60), 5)
    assert ends(0x81)[:1] == encode(Disconnect(0x81), 5)[:1]
