"""MQTT over WebSockets (RFC 6455; MQTT 5 section 6): to asyncio a protocol, to its `Connection` a transport like any other.

`wsproto` reads and writes the frames; what it is given, and how much of it in one turn, is bounded here.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from gateway.broker.connection import MOST_EARLY, Connection

if TYPE_CHECKING:
    from gateway.broker.listeners import Listener
    from gateway.broker.server import Broker

SUBPROTOCOL = "mqtt"
"""[MQTT-6.0.0-3], [MQTT-6.0.0-4]."""

HEAD_BYTES = 8_192
"""The longest request for a WebSocket, its headers included."""

FRAMES = 256
"""Frames of one connection that are taken in one turn, so that a flood of tiny ones does not hold up the others."""

_HEAD_END = re.compile(rb"\r?\n\r?\n")


class WebSocket(asyncio.Protocol, asyncio.Transport):
    """One WebSocket, from its HTTP request to its end. MQTT packets and frames need not begin and end together [MQTT-6.0.0-2]."""

    __slots__ = (
        "_broker",
        "_closed",
        "_closing",
        "_connection",
        "_early",
        "_entered",
        "_frames",
        "_head",
        "_held",
        "_listener",
        "_more",
        "_timer",
        "_transport",
    )

    def __init__(self, broker: Broker, listener: Listener, entered: str | None = None) -> None:
        """`entered`: the address that the socket has been counted for already."""
        super().__init__()
        self._broker = broker
        self._listener = listener
        self._entered = entered
        self._frames = WSConnection(ConnectionType.SERVER)
        self._head = b""
        self._early = 0
        self._connection: Connection | None = None
        self._transport: asyncio.Transport = None  # type: ignore[assignment] # set before anything else happens
        self._timer: asyncio.TimerHandle | None = None
        self._held = False
        self._more = False
        self._closing = False
        self._closed = False

    @property
    def begun(self) -> bool:
        """Whether `connection_made` has been called: `connection_lost` will be, then."""
        return self._transport is not None

    # ---- the socket's protocol -----------------------------------------------------------------------------------------

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        """A socket, after its TLS handshake where there is one."""
        transport: asyncio.Transport = made  # type: ignore[assignment] # uvloop's is none by type
        self._transport = transport
        broker = self._broker
        if self._entered is None:
            self._entered = broker.enter_by(transport)
            if self._entered is None:
                self._closed = True
                transport.abort()
                return
        broker.guests.add(self)
        self._timer = broker.loop.call_later(broker.limits.connect_timeout, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Hot: whatever one read of the socket has brought."""
        if self._closed:
            return
        if self._connection is None:
            self._begin(data)
            return
        if self._held or self._more:
            # It was told to wait: what comes all the same is little, or the transport does not keep its word.
            self._early += len(data)
            if self._early > MOST_EARLY:
                self.abort()
                return
            self._more = True
            self._frames.receive_data(data)
            return
        self._frames.receive_data(data)
        self._take(self._connection)

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        if self._connection is not None:
            self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket has closed, whoever did it."""
        if self._connection is None and not self._closed:
            self._broker.counters.websocket_failures += 1
        self._closed = True
        self._over()
        if self._connection is not None:
            self._connection.connection_lost(exc)
        elif self._entered is not None:
            self._broker.leave(self._entered)
        self._entered = None

    def _over(self) -> None:
        """The handshake has ended, one way or the other."""
        self._broker.guests.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- the handshake -------------------------------------------------------------------------------------------------

    def _begin(self, data: bytes) -> None:
        """Collect the request; once it is whole answer it, and go on with what has come behind it."""
        self._head += data
        end = _HEAD_END.search(self._head)
        if (end.end() if end else len(self._head)) > HEAD_BYTES:
            self._reject(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the request has more than {HEAD_BYTES:,} bytes")
            return
        if end is None:
            return
        head, rest = self._head[: end.end()], self._head[end.end() :]
        self._head = b""
        try:
            self._frames.receive_data(head)
            request = next(iter(self._frames.events()), None)
        except (ProtocolError, UnicodeError) as error:
            hint = getattr(error, "event_hint", None)
            status = HTTPStatus(getattr(hint, "status_code", HTTPStatus.BAD_REQUEST))
            self._reject(status, "this is no request for a WebSocket of version 13: point an MQTT client here")
            return
        if not isinstance(request, Request):
            self._reject(HTTPStatus.BAD_REQUEST, "this is no request for a WebSocket: point an MQTT client here")
            return
        refusal = self._refusal(request)
        if refusal is not None:
            self._reject(*refusal)
            return
        self._transport.write(self._frames.send(AcceptConnection(subprotocol=SUBPROTOCOL)))
        self._over()
        self._connection = Connection(self._broker, self._listener.name, self._entered)
        self._connection.connection_made(self)
        if rest:
            self.data_received(rest)

    def _refusal(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """Why a good request is refused."""
        if request.target.partition("?")[0] != self._listener.path:
            return HTTPStatus.NOT_FOUND, f"MQTT is spoken at {self._listener.path}"
        if SUBPROTOCOL not in request.subprotocols:
            return HTTPStatus.BAD_REQUEST, "offer the subprotocol mqtt (Sec-WebSocket-Protocol)"
        origins = [value for name, value in request.extra_headers if name == b"origin"]
        if origins and not (len(origins) == 1 and self._may(origins[0].decode("latin-1"), request.host)):
            return HTTPStatus.FORBIDDEN, "pages of this origin may not connect: name it in the listener's origins"
        return None

    def _may(self, origin: str, host: str) -> bool:
        """Whether a web page may connect: one that is named, or one from the very host that it connects to.

        Whoever owns a name can point it here and serve the page under it (DNS rebinding): where no password is asked for, a
        host name proves nothing.
        """
        allowed = self._listener.origins
        if "*" in allowed or origin in allowed:
            return True
        scheme, _, authority = origin.partition("://")
        if scheme not in ("http", "https"):
            return False
        name = _host_of(authority)
        return bool(name) and name == _host_of(host) and not (self._listener.trusting and _is_rebindable(name))

    def _reject(self, status: HTTPStatus, sentence: str) -> None:
        """Say why in HTTP, and close."""
        self._broker.counters.websocket_failures += 1
        body = f"{sentence}\n".encode()
        version = "Sec-WebSocket-Version: 13\r\n" if status == HTTPStatus.UPGRADE_REQUIRED else ""
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n{version}"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._closed = True
        self._transport.write(head.encode() + body)
        self._transport.close()

    # ---- frames --------------------------------------------------------------------------------------------------------

    def _take(self, connection: Connection) -> None:
        """Hot: what the frames carry goes to the connection in one piece; too many frames wait for the next turn."""
        self._more = False
        self._early = 0
        pieces: list[bytes | bytearray] = []
        ping: Ping | None = None
        left = FRAMES
        end: CloseConnection | None = None
        for event in self._frames.events():
            if isinstance(event, BytesMessage):
                pieces.append(event.data)
            elif isinstance(event, Ping):
                ping = event
            elif isinstance(event, TextMessage):
                end = CloseConnection(CloseReason.UNSUPPORTED_DATA, "MQTT needs binary frames")  # [MQTT-6.0.0-1]
                break
            elif isinstance(event, CloseConnection):
                end = event
                break
            left -= 1
            if not left:
                self._more = True
                break
        if pieces:
            connection.data_received(b"".join(pieces))
        if end is not None:
            self._ended(end)
            return
        if ping is not None and not connection.choked and not self._closing:
            # Of several only the last needs an answer (RFC 6455 section 5.5.3).
            self._transport.write(self._frames.send(ping.response()))
        if self._more and not self._held:
            self._transport.pause_reading()
            self._broker.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._closed or self._held or self._connection is None:
            return
        if self._more:
            self._take(self._connection)
        if not self.waiting and not self._transport.is_closing():
            self._transport.resume_reading()

    @property
    def waiting(self) -> bool:
        """Whether there is more than may be taken now."""
        return self._more or self._held

    def _ended(self, event: CloseConnection) -> None:
        """The client has closed, or sent what it may not: answer where it is not an answer itself, and close the socket."""
        self._closed = True
        if not self._closing and not self._transport.is_closing():
            self._transport.write(self._frames.send(CloseConnection(event.code, event.reason)))
        self._transport.close()

    # ---- the connection's transport ------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        """One frame."""
        if not self._closing and not self._closed:
            self._transport.write(self._frames.send(BytesMessage(data)))

    def close(self) -> None:
        """Say so; the socket closes when the client has answered, or when the broker no longer waits for that."""
        if self._closing or self._closed:
            return
        self._closing = True
        self._transport.write(self._frames.send(CloseConnection(CloseReason.NORMAL_CLOSURE)))

    def can_write_eof(self) -> bool:
        """A close frame is one."""
        return True

    def write_eof(self) -> None:
        """Nothing more will come from us."""
        self.close()

    def abort(self) -> None:
        """Close the socket at once."""
        self._closed = True
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether the end has begun."""
        return self._closing or self._closed or self._transport.is_closing()

    def pause_reading(self) -> None:
        """Give the connection nothing more."""
        self._held = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on, first with what has come already."""
        self._held = False
        if self._more:
            self._broker.loop.call_soon(self._go_on)
        elif not self._transport.is_closing():
            self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """The socket's."""
        self._transport.set_write_buffer_limits(high=high, low=low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The socket's."""
        return self._transport.get_extra_info(name, default)


def _host_of(authority: str) -> str:
    """The host of HOST[:PORT], in lower case."""
    if authority.startswith("["):
        return authority.partition("]")[0].lower() + "]"
    return authority.partition(":")[0].lower()


def _is_rebindable(host: str) -> bool:
    """Whether a name server says what a host is."""
    if host == "localhost":
        return False
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return True
    return False
