"""Our codec beside those of others: what they read alike ours reads alike, and what they write it reads as it was meant.

`mqtt5` reads both directions of MQTT 5; paho-mqtt and gmqtt read what a client receives, in both dialects. None of the
three is right about everything: `STRICTER` names what ours refuses and others take.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mqtt5
import paho.mqtt.client as paho_client
from gmqtt.client import Message as GmqttMessage
from gmqtt.mqtt import package as gmqtt_package
from gmqtt.mqtt.handler import MqttPackageHandler
from gmqtt.mqtt.property import Property as GmqttProperty
from gmqtt.mqtt.utils import ConnectionState, IdGenerator
from gmqtt.subscription import Subscription as GmqttSubscription
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from paho.mqtt import _packet as paho_packet
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.exception import MQTTException
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties
from paho.mqtt.reasoncodes import ReasonCode as PahoReason
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.wire.codec import Decoder, encode
from gateway.wire.errors import MalformedPacket
from gateway.wire.fields import variable
from gateway.wire.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)
from tests.wire.strategies import connects, from_client, from_server, reader

if TYPE_CHECKING:
    from collections.abc import Callable

Meaning = dict[str, Any]
"""What a packet says: its fields by our names, and "properties" without those that say what is so anyway."""

ANYWAY: dict[Property, Any] = {
    Property.PAYLOAD_FORMAT_INDICATOR: 0,
    Property.SESSION_EXPIRY_INTERVAL: 0,
    Property.WILL_DELAY_INTERVAL: 0,
    Property.REQUEST_PROBLEM_INFORMATION: 1,
    Property.REQUEST_RESPONSE_INFORMATION: 0,
    Property.RECEIVE_MAXIMUM: 65_535,
    Property.TOPIC_ALIAS_MAXIMUM: 0,
    Property.MAXIMUM_QOS: 2,
    Property.RETAIN_AVAILABLE: 1,
    Property.WILDCARD_SUBSCRIPTION_AVAILABLE: 1,
    Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE: 1,
    Property.SHARED_SUBSCRIPTION_AVAILABLE: 1,
}

STRICTER = {
    "packet identifier 0": "MQTT-2.2.1-3",
    "reserved flags of packet type": "MQTT-2.1.3-1",
    "a string holds U+0000": "MQTT-1.5.4-2",
    "the packet ends too early": "2.2.2.1: properties run beyond their length",
    "the properties end in the middle of one": "2.2.2.1",
    "the properties are longer than the packet": "2.2.2.1",
    "a field is longer than what holds it": "2.2.2.1",
    "bytes are left over at the end of the packet": "2.1.4",
    "an UNSUBSCRIBE without a filter": "MQTT-3.10.3-2",
    "a SUBSCRIBE without a filter": "MQTT-3.8.3-2",
    "no reasons, or unknown ones": "3.9.3, 3.11.3: one for each filter",
    "is no reason of an AUTH from this side": "table 3-11: only a server says success, only a client asks anew",
    "is no reason of a DISCONNECT from this side": "table 3-10: only a server says that it has moved",
    "is neither 0 nor 1": "3.3.2.3.2 and others",
    "an AUTH without a method": "3.15.2.2.2",
    "the topic has wildcards": "MQTT-3.3.2-2",
    "the will's topic": "MQTT-3.1.3-11",
    "the response topic": "MQTT-3.3.2-14",
    "DUP with QoS 0": "MQTT-3.3.1-2",
    "QoS 3": "MQTT-3.3.1-4",
}
"""What ours refuses though others take it, by a part of its sentence: where the standard says so."""


class Refused(Exception):  # noqa: N818  # as MalformedPacket
    """A codec does not take these bytes."""


def said(properties: dict[Property, Any] | None) -> dict[Property, Any]:
    """Properties without what holds anyway, as plain values."""
    return {
        name: value
        for name, value in (properties or {}).items()
        if value is not None and value != [] and value != ANYWAY.get(name)
    }


# ---- ours --------------------------------------------------------------------------------------------------------------


def ours(data: bytes, level: int, *, server: bool) -> Packet:
    """Exactly one packet."""
    if server and data[0] >> 4 == 1:
        decoder = Decoder(server=True)
    else:
        decoder = reader(level, server=server, alias_maximum=65_535)
    try:
        packets = decoder.feed(data)
    except MalformedPacket as error:
        raise Refused(error.detail) from None
    if len(packets) != 1 or decoder.buffered:
        raise Refused("not one whole packet")
    return packets[0]


def meaning(packet: Packet) -> Meaning:
    """One of ours."""
    found: Meaning = {"kind": type(packet).__name__}
    for name in type(packet).__slots__:
        if name in ("origin", "level"):
            continue
        value = getattr(packet, name)
        if name == "properties":
            value = said(value)
        elif name == "will" and value is not None:
            value = (value.topic, value.payload, value.qos, value.retain, said(value.properties))
        elif name == "subscriptions":
            value = [
                (one.topic_filter, one.qos, one.no_local, one.retain_as_published, one.retain_handling) for one in value
            ]
        found[name] = value
    return found


# ---- mqtt5 -------------------------------------------------------------------------------------------------------------

MQTT5_PROPERTIES = {
    "payload_format_indicator": Property.PAYLOAD_FORMAT_INDICATOR,
    "message_expiry_interval": Property.MESSAGE_EXPIRY_INTERVAL,
    "content_type": Property.CONTENT_TYPE,
    "response_topic": Property.RESPONSE_TOPIC,
    "correlation_data": Property.CORRELATION_DATA,
    "subscription_ids": Property.SUBSCRIPTION_IDENTIFIER,
    "subscription_id": Property.SUBSCRIPTION_IDENTIFIER,
    "session_expiry_interval": Property.SESSION_EXPIRY_INTERVAL,
    "assigned_client_id": Property.ASSIGNED_CLIENT_IDENTIFIER,
    "server_keep_alive": Property.SERVER_KEEP_ALIVE,
    "authentication_method": Property.AUTHENTICATION_METHOD,
    "authentication_data": Property.AUTHENTICATION_DATA,
    "request_problem_info": Property.REQUEST_PROBLEM_INFORMATION,
    "will_delay_interval": Property.WILL_DELAY_INTERVAL,
    "request_response_info": Property.REQUEST_RESPONSE_INFORMATION,
    "response_info": Property.RESPONSE_INFORMATION,
    "server_reference": Property.SERVER_REFERENCE,
    "reason_str": Property.REASON_STRING,
    "receive_max": Property.RECEIVE_MAXIMUM,
    "topic_alias_max": Property.TOPIC_ALIAS_MAXIMUM,
    "max_qos": Property.MAXIMUM_QOS,
    "retain_available": Property.RETAIN_AVAILABLE,
    "user_properties": Property.USER_PROPERTY,
    "max_packet_size": Property.MAXIMUM_PACKET_SIZE,
    "wildcard_subscription_available": Property.WILDCARD_SUBSCRIPTION_AVAILABLE,
    "subscription_id_available": Property.SUBSCRIPTION_IDENTIFIER_AVAILABLE,
    "shared_subscription_available": Property.SHARED_SUBSCRIPTION_AVAILABLE,
}
MQTT5_FIELDS = {
    "packet_id": "packet_id",
    "topic": "topic",
    "payload": "payload",
    "qos": "qos",
    "retain": "retain",
    "duplicate": "dup",
    "session_present": "session_present",
    "reason_code": "reason",
    "reason_codes": "reasons",
    "client_id": "client_id",
    "username": "username",
    "password": "password",
    "clean_start": "clean_start",
    "keep_alive": "keep_alive",
    "patterns": "topic_filters",
}


def mqtt5_properties(packet: Any) -> dict[Property, Any]:
    return said(
        {name: getattr(packet, attribute) for attribute, name in MQTT5_PROPERTIES.items() if hasattr(packet, attribute)}
    )


def read_mqtt5(data: bytes, level: int) -> Meaning:
    if level != 5:
        raise Refused("MQTT 5 only")
    try:
        packet, size = mqtt5.read(memoryview(data))
    except (ValueError, IndexError) as error:
        raise Refused(str(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Refused("panic") from None
    if size != len(data):
        raise Refused("bytes are left over")
    found: Meaning = {"kind": type(packet).__name__.removesuffix("Packet").capitalize()}
    found.update(
        (name, getattr(packet, attribute)) for attribute, name in MQTT5_FIELDS.items() if hasattr(packet, attribute)
    )
    if found["kind"] == "Publish":
        found["packet_id"] = found["packet_id"] or 0
    if isinstance(packet, mqtt5.SubscribePacket):
        found["subscriptions"] = [
            (one.pattern, one.max_qos, one.no_local, one.retain_as_published, one.retain_handling)
            for one in packet.topic_filters
        ]
    if isinstance(packet, mqtt5.ConnectPacket):
        will = packet.will
        found["will"] = will and (will.topic, will.payload or b"", will.qos, will.retain, mqtt5_properties(will))
    found["properties"] = mqtt5_properties(packet)
    return found


# ---- paho --------------------------------------------------------------------------------------------------------------


def paho_properties(properties: Any) -> dict[Property, Any]:
    found: dict[Property, Any] = {}
    if properties is not None:
        for name, identifier in properties.names.items():
            attribute = name.replace(" ", "")
            if hasattr(properties, attribute):
                found[Property(identifier)] = getattr(properties, attribute)
    found.pop(Property.TOPIC_ALIAS, None)
    return said(found)


PAHO_READERS: dict[int, Callable[..., Any]] = {
    2: paho_packet.decode_connack,
    3: paho_packet.decode_publish,
    4: paho_packet.decode_puback,
    5: paho_packet.decode_pubrec,
    6: paho_packet.decode_pubrel,
    7: paho_packet.decode_pubcomp,
    9: paho_packet.decode_suback,
    11: paho_packet.decode_unsuback,
    14: paho_packet.decode_disconnect,
}


def read_paho(data: bytes, level: int) -> Meaning:
    kind = data[0] >> 4
    if kind not in PAHO_READERS or (kind == 14 and level == 4):
        raise Refused("not read by paho")
    try:
        found = PAHO_READERS[kind](data[0], body(data), MQTTProtocolVersion(level))
        if kind == 3:
            return {
                "kind": "Publish",
                "topic": found.topic.decode(),
                "payload": bytes(found.payload),
                "qos": found.qos,
                "retain": found.retain,
                "dup": found.dup,
                "packet_id": found.mid,
                "properties": paho_properties(found.properties),
            }
    except (MQTTException, ValueError) as error:
        raise Refused(str(error)) from None
    properties = {"properties": paho_properties(found.properties)}
    if kind == 2:
        return {
            "kind": "Connack",
            "session_present": bool(found.flags & 1),
            "reason": found.reason.value,
            **properties,
        }
    if kind == 14:
        return {"kind": "Disconnect", "reason": found.reason.value if found.reason else 0, **properties}
    if kind in (9, 11):
        reasons = [reason.value for reason in found.reason_codes]
        return {"kind": "Suback" if kind == 9 else "Unsuback", "packet_id": found.mid, "reasons": reasons, **properties}
    name = {4: "Puback", 5: "Pubrec", 6: "Pubrel", 7: "Pubcomp"}[kind]
    return {"kind": name, "packet_id": found.mid, "reason": found.reason.value, **properties}


def body(data: bytes) -> bytes:
    """A packet without its fixed header, whose length must be right."""
    at, length, shift = 1, 0, 0
    while True:
        if at >= len(data) or shift > 21:
            raise Refused("no length")
        byte = data[at]
        at += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if len(data) - at != length:
        raise Refused("another length")
    return data[at:]


# ---- gmqtt -------------------------------------------------------------------------------------------------------------


def gmqtt_properties(found: dict[str, Any]) -> dict[Property, Any]:
    properties: dict[Property, Any] = {}
    for name, values in found.items():
        if not isinstance(values, list):
            continue
        known = Property(GmqttProperty.factory(name=name).id)
        many = known in (Property.USER_PROPERTY, Property.SUBSCRIPTION_IDENTIFIER)
        if len(values) > 1 and not many:
            raise Refused("a property stands twice")
        properties[known] = values if many else values[0]
    properties.pop(Property.TOPIC_ALIAS, None)
    return said(properties)


def gmqtt_handler(level: int) -> Any:
    async def nothing(*_: Any, **__: Any) -> None:
        """Not called."""

    return MqttPackageHandler(
        connack_event=asyncio.Event(),
        connection_lost_event=asyncio.Event(),
        connection_state=ConnectionState(protocol_version=level),
        reconnect_callback=nothing,
        disconnect_callback=nothing,
        resend_qos_callback=nothing,
        clear_qos_callback=lambda: None,
        connect_properties={},
        subscriptions_getter=list,
        remove_message_callback=lambda _: None,
        store_message_callback=lambda *_: None,
        send_command_with_mid_callback=lambda *_, **__: None,
    )


def read_gmqtt(data: bytes, level: int) -> Meaning:
    kind = data[0] >> 4
    packet = body(data)
    if kind not in (2, 3, 9, 11) or (kind == 2 and packet[:2] != b"\0\0"):
        raise Refused("not read by gmqtt")
    heard: list[Meaning] = []
    handler = gmqtt_handler(level)

    def message(topic: str | bytes, payload: bytes, qos: int, properties: dict[str, Any]) -> None:
        if not isinstance(topic, str):
            raise Refused("a topic that is not UTF-8")
        heard.append(
            {
                "kind": "Publish",
                "topic": topic,
                "payload": bytes(payload),
                "qos": qos,
                "retain": bool(properties["retain"]),
                "dup": bool(properties["dup"]),
                "properties": gmqtt_properties(properties),
            }
        )

    def connack(session: int, result: int, properties: dict[str, Any]) -> None:
        fields = {"session_present": bool(session), "reason": result, "properties": gmqtt_properties(properties)}
        heard.append({"kind": "Connack", **fields})

    def suback(mid: int, reasons: tuple[int, ...], properties: dict[str, Any]) -> None:
        fields = {"packet_id": mid, "reasons": list(reasons), "properties": gmqtt_properties(properties)}
        heard.append({"kind": "Suback", **fields})

    handler.on_message = message
    handler.on_connect = connack
    handler.on_subscribe = suback
    handler.on_unsubscribe = lambda mid, reasons: heard.append(
        {"kind": "Unsuback", "packet_id": mid, "reasons": list(reasons)}
    )
    try:
        handler._handle_packet(data[0], packet)
    except Refused:
        raise
    except Exception as error:  # it has no error of its own
        raise Refused(repr(error)) from None
    if not heard:
        raise Refused("skipped")
    return heard[0]


READERS: dict[str, Callable[[bytes, int], Meaning]] = {"mqtt5": read_mqtt5, "paho": read_paho, "gmqtt": read_gmqtt}


# ---- comparing ---------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run has seen; `compared` counts (codec, direction) where both sides took a packet."""

    cases: int = 0
    compared: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    findings: dict[str, str] = field(default_factory=dict)

    def found(self, what: str, data: bytes, more: object = "") -> None:
        self.findings.setdefault(what, f"{data.hex()} {more}")


def alike(one: Meaning, other: Meaning) -> list[str]:
    """The names under which two meanings differ, of those that both have."""
    return [name for name in one if name in other and one[name] != other[name]]


def compare(data: bytes, level: int, *, server: bool, report: Report) -> None:
    """One packet, as it is written or changed, through every codec that reads this direction."""
    report.cases += 1
    theirs: dict[str, Meaning] = {}
    for name, read in READERS.items():
        if server and name != "mqtt5":
            continue
        try:
            theirs[name] = read(data, level)
        except Refused:
            continue
    side = "server" if server else "client"
    try:
        mine = meaning(ours(data, level, server=server))
    except Refused as refusal:
        detail = str(refusal)
        known = next((part for part in STRICTER if part in detail), None)
        two = len(theirs) >= 2 and any(
            not alike(one, other) for a, one in theirs.items() for b, other in theirs.items() if a < b
        )
        if two or "mqtt5" in theirs:
            report.refused[known or detail] += 1
            if known is None:
                report.found(f"{side} {level}: refused ({detail}), taken by {' and '.join(theirs)}", data, theirs)
        return
    for name, other in theirs.items():
        report.compared[f"{name} {side} {level}"] += 1
        differing = alike(mine, other)
        if differing:
            what = f"{name} reads {mine['kind']} otherwise: {', '.join(differing)}"
            report.found(f"{side} {level}: {what}", data, [(mine[key], other[key]) for key in differing])
    if not theirs and level == 5:
        report.found(f"{side} {level}: only ours takes {mine['kind']}", data, mine)


# ---- what others write -------------------------------------------------------------------------------------------------

MQTT5_KINDS: dict[type[Any], str] = {
    Auth: "Auth",
    Connack: "ConnAck",
    Connect: "Connect",
    Disconnect: "Disconnect",
    Pingreq: "PingReq",
    Pingresp: "PingResp",
    Puback: "PubAck",
    Pubcomp: "PubComp",
    Publish: "Publish",
    Pubrec: "PubRec",
    Pubrel: "PubRel",
    Suback: "SubAck",
    Subscribe: "Subscribe",
    Unsuback: "UnsubAck",
    Unsubscribe: "Unsubscribe",
}


def mqtt5_options(made: type[Any], properties: Properties | None) -> dict[str, Any]:
    """Properties as mqtt5's arguments."""
    found: dict[str, Any] = {}
    for attribute, name in MQTT5_PROPERTIES.items():
        if hasattr(made, attribute) and properties and name in properties:
            found[attribute] = properties[name]
    if "max_qos" in found:
        found["max_qos"] = mqtt5.QoS(found["max_qos"])
    for flag in MQTT5_FLAGS & set(found):
        found[flag] = bool(found[flag])
    return found


MQTT5_FLAGS = {
    "request_problem_info",
    "request_response_info",
    "retain_available",
    "wildcard_subscription_available",
    "subscription_id_available",
    "shared_subscription_available",
}


def write_mqtt5(packet: Packet, level: int) -> bytes:
    if level != 5:
        raise Refused("MQTT 5 only")
    try:
        data: bytes = as_mqtt5(packet).write()
    except ValueError as error:
        raise Refused(str(error)) from None
    return data


def as_mqtt5(packet: Packet) -> Any:
    """One of ours as one of mqtt5's."""
    kind = MQTT5_KINDS[type(packet)]
    made = getattr(mqtt5, f"{kind}Packet")
    fields: dict[str, Any] = {
        attribute: getattr(packet, name)
        for attribute, name in MQTT5_FIELDS.items()
        if hasattr(made, attribute) and hasattr(packet, name)
    }
    fields.update(mqtt5_options(made, getattr(packet, "properties", None)))
    if isinstance(packet, Publish):
        fields.update(qos=mqtt5.QoS(packet.qos), packet_id=packet.packet_id or None)
    if "reason_code" in fields:
        fields["reason_code"] = getattr(mqtt5, f"{kind}ReasonCode")(fields["reason_code"])
    if "reason_codes" in fields:
        codes = getattr(mqtt5, f"{kind}ReasonCode")
        fields["reason_codes"] = [codes(reason) for reason in fields["reason_codes"]]
    if isinstance(packet, Subscribe):
        fields["topic_filters"] = [
            mqtt5.TopicFilter(
                one.topic_filter,
                max_qos=mqtt5.QoS(one.qos),
                no_local=one.no_local,
                retain_as_published=one.retain_as_published,
                retain_handling=mqtt5.RetainHandling(one.retain_handling),
            )
            for one in packet.subscriptions
        ]
    if isinstance(packet, Connect) and packet.will is not None:
        will = packet.will
        options = mqtt5_options(mqtt5.Will, will.properties)
        fields["will"] = mqtt5.Will(
            will.topic, payload=will.payload, qos=mqtt5.QoS(will.qos), retain=will.retain, **options
        )
    return made(**fields)


class PahoClient(paho_client.Client):
    """Writes into one end of a pair of sockets."""

    def _create_socket(self) -> socket.socket:
        here, self.there = socket.socketpair()
        return here


def paho_options(kind: int, properties: Properties | None, level: int) -> Any:
    """Properties as paho's."""
    if level == 4:
        return None
    made = PahoProperties(kind)  # type: ignore[no-untyped-call]
    names = {identifier: name.replace(" ", "") for name, identifier in made.names.items()}
    for name, value in (properties or {}).items():
        setattr(made, names[name], value)
    return made


def write_paho(packet: Packet, level: int) -> bytes:
    if not isinstance(packet, (Connect, Publish, Subscribe, Unsubscribe, Disconnect)):
        raise Refused("not written by paho")
    first = packet if isinstance(packet, Connect) else Connect("c", level)
    if first.username is None and first.password is not None:
        raise Refused("a password needs a name here")
    if not first.client_id and not first.clean_start and level == 4:
        raise Refused("a session needs a name here")
    client = PahoClient(
        CallbackAPIVersion.VERSION2,
        client_id=first.client_id,
        clean_session=first.clean_start if level == 4 else None,
        protocol=MQTTProtocolVersion(level),
    )
    try:
        if first.username is not None:
            client.username_pw_set(first.username, first.password)  # type: ignore[arg-type]  # it takes bytes
        will = first.will
        if will is not None:
            options = paho_options(PacketTypes.WILLMESSAGE, will.properties, level)
            client.will_set(will.topic, will.payload, will.qos, will.retain, options)
        start: dict[str, Any] = {}
        if level == 5:
            start = {
                "clean_start": first.clean_start,
                "properties": paho_options(PacketTypes.CONNECT, first.properties, 5),
            }
        client.connect("broker", keepalive=first.keep_alive, **start)
        if packet is not first:
            client.there.recv(65_536)
        if isinstance(packet, Publish):
            options = paho_options(PacketTypes.PUBLISH, packet.properties, level)
            client.publish(packet.topic, packet.payload, packet.qos, packet.retain, options)
        elif isinstance(packet, Subscribe):
            options = paho_options(PacketTypes.SUBSCRIBE, packet.properties, level)
            wanted: Any = [(one.topic_filter, one.qos) for one in packet.subscriptions]
            if level == 5:
                wanted = [
                    (
                        one.topic_filter,
                        SubscribeOptions(one.qos, one.no_local, one.retain_as_published, one.retain_handling),
                    )
                    for one in packet.subscriptions
                ]
            client.subscribe(wanted, properties=options)
        elif isinstance(packet, Unsubscribe):
            client.unsubscribe(packet.topic_filters, paho_options(PacketTypes.UNSUBSCRIBE, packet.properties, level))
        elif isinstance(packet, Disconnect):
            if level == 4 or not (packet.reason or packet.properties):
                client.disconnect()
            else:
                reason = PahoReason(PacketTypes.DISCONNECT, identifier=packet.reason)
                client.disconnect(reason, paho_options(PacketTypes.DISCONNECT, packet.properties, level))
        return client.there.recv(65_536)
    except (ValueError, MQTTException) as error:
        raise Refused(str(error)) from None
    finally:
        for end in (client.socket(), getattr(client, "there", None)):
            if end is not None:
                end.close()


def gmqtt_options(properties: Properties | None) -> dict[str, Any]:
    """Properties as gmqtt's."""
    found: dict[str, Any] = {}
    for name, value in (properties or {}).items():
        known = GmqttProperty.factory(id_=int(name))
        if known is None:
            raise Refused("gmqtt has no authentication data")
        found[known.name] = value
    return found


@dataclass
class GmqttSide:
    """What gmqtt's writers ask of a connection."""

    proto_ver: int
    id_generator: IdGenerator
    proto_name: bytes = b"MQTT"


def write_gmqtt(packet: Packet, level: int) -> bytes:
    side = GmqttSide(level, IdGenerator())
    options = gmqtt_options(getattr(packet, "properties", None))
    if isinstance(packet, Connect):
        if packet.username is None and packet.password is not None:
            raise Refused("a password needs a name here")
        will = packet.will
        return bytes(
            gmqtt_package.LoginPackageFactor.build_package(
                packet.client_id.encode(),
                None if packet.username is None else packet.username.encode(),
                packet.password,
                packet.clean_start,
                packet.keep_alive,
                side,
                None
                if will is None
                else GmqttMessage(will.topic, will.payload, will.qos, will.retain, **gmqtt_options(will.properties)),
                **options,
            )
        )
    if isinstance(packet, Publish):
        message = GmqttMessage(packet.topic, packet.payload, packet.qos, packet.retain, **options)
        return bytes(gmqtt_package.PublishPacket.build_package(message, side)[1])
    if isinstance(packet, Subscribe):
        wanted = [
            GmqttSubscription(
                one.topic_filter.encode(), one.qos, one.no_local, one.retain_as_published, one.retain_handling
            )
            for one in packet.subscriptions
        ]
        return bytes(gmqtt_package.SubscribePacket.build_package(wanted, side, **options)[1])
    if isinstance(packet, Unsubscribe):
        topics = [one.encode() for one in packet.topic_filters]
        return bytes(gmqtt_package.UnsubscribePacket.build_package(topics, side, **options)[1])
    raise Refused("not written by gmqtt")


WRITERS: dict[str, Callable[[Packet, int], bytes]] = {"mqtt5": write_mqtt5, "paho": write_paho, "gmqtt": write_gmqtt}


def hear(packet: Packet, level: int, *, server: bool, report: Report) -> None:
    """One packet as every codec writes it: ours must read what was meant."""
    report.cases += 1
    meant = meaning(packet)
    for name, write in WRITERS.items():
        if name != "mqtt5" and not server:
            continue
        try:
            data = write(packet, level)
        except Refused:
            continue
        try:
            mine = meaning(ours(data, level, server=server))
        except Refused as refusal:
            report.found(f"{name} writes {meant['kind']} {level}, refused ({refusal})", data, packet)
            continue
        if name != "mqtt5":
            # Packet identifiers are its own, and nothing is sent twice.
            mine.update((key, meant[key]) for key in ("packet_id", "dup") if key in meant)
        report.compared[f"{name} writes {level}"] += 1
        differing = alike(meant, mine)
        if differing:
            what = f"{name} writes {meant['kind']} {level}, read otherwise: {', '.join(differing)}"
            report.found(what, data, [(meant[key], mine[key]) for key in differing])


# ---- cases -------------------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn) -> tuple[Packet, bytes, int, bool]:
    """A packet, its bytes after some changes that leave its length right, the dialect, and whether a server is to read it."""
    level = draw(st.sampled_from([4, 5]))
    server = draw(st.booleans())
    packet = draw(st.one_of(connects(level), from_client(level)) if server else from_server(level))
    written = encode(packet, level)
    first, rest = written[0], bytearray(body(written))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(rest)))
        match draw(st.integers(0, 3)):
            case 0:
                rest[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                rest[at:at] = draw(st.binary(max_size=4))
            case 2:
                del rest[at : at + draw(st.integers(1, 4))]
            case _:
                first ^= 1 << draw(st.integers(0, 3))
    return packet, bytes((first,)) + variable(len(rest)) + bytes(rest), level, server


def run(count: int, seed: int = 0) -> Report:
    """Both comparisons, `count` times; mqtt5 panics at what is not UTF-8, and nobody need see how."""
    report = Report()

    @seeded(seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def compare_all(case: tuple[Packet, bytes, int, bool]) -> None:
        packet, data, level, server = case
        compare(data, level, server=server, report=report)
        hear(packet, level, server=server, report=report)

    logging.disable(logging.CRITICAL)
    errors = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        compare_all()
    finally:
        sys.unraisablehook = hook
        os.dup2(errors, 2)
        os.close(errors)
        os.close(nowhere)
        logging.disable(logging.NOTSET)
    return report
