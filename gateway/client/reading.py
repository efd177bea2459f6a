"""What paho-mqtt is helped with: sockets that it leaves behind, and the way from a socket to a message.

Three system calls and a property table for each message are its wall there.

paho-mqtt keeps connection, keep-alive and everything that is sent; what is read goes through the gateway's own decoder, many packets
a call. Messages go straight to whoever wants them, their acknowledgements out in one piece; any other packet goes to paho-mqtt.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from paho.mqtt.enums import MQTTErrorCode

from gateway.wire.codec import Decoder, encode, encode_puback
from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import Publish

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE = 64 * 1024
LARGEST = 268_435_455
"""Bytes of a packet, by MQTT 5 section 1.5.5; what the broker may send is for its own limits."""


def close_failed_handshakes(client: Any) -> None:
    """Let a paho-mqtt client that is not connected yet close the socket whose TLS handshake fails; it only forgets it."""
    wrap = getattr(client, "_ssl_wrap_socket", None)
    if wrap is None:
        return

    def shake_hands(plain: socket.socket) -> ssl.SSLSocket:
        context: ssl.SSLContext = client._ssl_context
        secure = context.wrap_socket(plain, server_hostname=client.host, do_handshake_on_connect=False)
        try:
            secure.settimeout(client.connect_timeout)
            secure.do_handshake()
        except BaseException:
            secure.close()
            raise
        return secure

    client._ssl_wrap_socket = shake_hands


def send_at_once(sock: Any) -> None:
    """No waiting for the answer to one small packet before the next one is sent: 40 ms each, where both sides wait (RFC 896)."""
    beneath = getattr(sock, "_socket", sock)
    with suppress(OSError):
        beneath.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


_NEEDED = ("_packet_read", "_packet_handle", "_packet_queue", "_sock_recv", "_in_packet", "_last_bytes_received")


def read_fast(client: Any, received: Callable[[str, bytes], None], *, old: bool) -> bool:
    """Let a paho-mqtt client that is not connected yet read that way; False (and nothing done) where it is built otherwise.

    `received(topic, payload)` gets every message of QoS 0 and 1; it must not raise. `old` is MQTT 3.1.1.
    """
    if not all(hasattr(client, name) for name in _NEEDED):
        return False
    level = 4 if old else 5
    decoder = Decoder(server=False, level=level, max_packet=LARGEST)

    def read() -> MQTTErrorCode:
        try:
            data = client._sock_recv(PIECE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return MQTTErrorCode.MQTT_ERR_AGAIN
        except OSError:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        if not data:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        client._last_bytes_received = time.monotonic()
        try:
            packets = decoder.feed(data)
        except MalformedPacket as error:
            take(error.packets)
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return take(packets)

    def take(packets: list[Any]) -> MQTTErrorCode:
        acknowledgements = []
        result = MQTTErrorCode.MQTT_ERR_SUCCESS
        for packet in packets:
            if type(packet) is Publish and packet.qos < 2:
                received(packet.topic, packet.payload)
                if packet.qos:
                    acknowledgements.append(encode_puback(packet.packet_id))
            else:
                result = hand_over(encode(packet, level))
                if result > 0:
                    break
        if acknowledgements:
            client._packet_queue(0x40, b"".join(acknowledgements), 0, 0)
        return result

    def hand_over(frame: bytes) -> MQTTErrorCode:
        """Let paho-mqtt handle a packet as if it had read it."""
        start = 1
        while frame[start] & 0x80:
            start += 1
        body = bytearray(frame[start + 1 :])
        client._in_packet = {
            "command": frame[0],
            "have_remaining": 1,
            "remaining_count": [],
            "remaining_mult": 1,
            "remaining_length": len(body),
            "packet": body,
            "to_process": 0,
            "pos": 0,
        }
        found: MQTTErrorCode = client._packet_handle()
        return found

    client._packet_read = read
    return True
