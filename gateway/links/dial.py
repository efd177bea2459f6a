"""Ways to a broker outside: TCP, TLS, WebSockets, Unix sockets. To MQTT all of them are one transport."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from wsproto import WSConnection
from wsproto.connection import ConnectionType
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.utilities import ProtocolError

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from pathlib import Path

_OTHER_NAME = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""

SUBPROTOCOL = "mqtt"
"""[MQTT-6.0.0-3]"""


class DialError(CtxtError):
    """There is no way to the broker now. The sentence says where, why, and what to look at."""


@dataclass(frozen=True, slots=True)
class Tls:
    """What TLS needs, as PEM files, looked at for every connection. `ca` None: the authorities that the system trusts."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """A context for the next connection. Raises DialError naming the file that cannot be used."""
        used = f"authority {self.ca}"
        locked = False

        def password() -> bytes:
            """Without one of ours OpenSSL would ask for it on the terminal, and wait."""
            nonlocal locked
            locked = True
            return b""

        try:
            context = ssl.create_default_context(cafile=self.ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                used = f"certificate {self.certificate}" + (f" with key {self.key}" if self.key is not None else "")
                context.load_cert_chain(self.certificate, self.key, password=password)
        except (OSError, ssl.SSLError) as error:
            reason = "the key is encrypted, store it without a password" if locked else _plainly(error)
            raise DialError(f"{used} cannot be used for TLS: {reason}") from error
        return context

    def check(self, now: float) -> None:
        """Raises DialError naming a file that the next connection could not be made with; `now` in Unix seconds."""
        from gateway.certificates import period  # noqa: PLC0415 - only where there is TLS

        self.context()
        for role, file in (("certificate", self.certificate), ("authority", self.ca)):
            if file is None:
                continue
            try:
                found = period(file.read_bytes(), authorities=file is self.ca)
            except OSError as error:
                raise DialError(f"{role} {file} cannot be used for TLS: {_plainly(error)}") from error
            fault = found.fault(now) if found is not None else None
            if fault is not None:
                raise DialError(f"the {role} {file} of the link {fault}")


@dataclass(frozen=True, slots=True)
class Way:
    """Where a broker is. `path` is that of a WebSocket URL, or of a Unix socket."""

    scheme: Literal["mqtt", "mqtts", "ws", "wss", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""
    tls: Tls | None = None

    @property
    def nameless(self) -> Way:
        """The same way for somebody who shows no certificate."""
        return self if self.tls is None else replace(self, tls=replace(self.tls, certificate=None, key=None))

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


async def dial(way: Way, protocol: asyncio.Protocol, timeout: float) -> None:  # noqa: ASYNC109  # the sentence names it
    """Connect `protocol`: its `connection_made` has been called when this returns. Raises DialError. `timeout` in seconds."""
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[None] = loop.create_future()
    outer = _WebSocket(protocol, way, opened) if way.scheme in ("ws", "wss") else protocol
    context = (way.tls or Tls()).context() if way.scheme in ("mqtts", "wss") else None
    name = None if context is None else (way.tls.server_name if way.tls is not None else None) or way.host
    try:
        async with asyncio.timeout(timeout):
            if way.scheme == "unix":
                await loop.create_unix_connection(lambda: outer, way.path)
            else:
                await loop.create_connection(lambda: outer, way.host, way.port, ssl=context, server_hostname=name)
            if isinstance(outer, _WebSocket):
                await opened
    except TimeoutError as error:
        if isinstance(outer, _WebSocket):
            outer.abort()
        raise DialError(f"{way} does not answer within {timeout:g} s") from error
    except ssl.SSLCertVerificationError as error:
        hint = "set link.ca to its authority's file"
        if error.verify_code in _OTHER_NAME:
            hint = "set link.server_name to the name in it"
        raise DialError(f"the certificate of {way} is not trusted ({error.verify_message}): {hint}") from error
    except OSError as error:
        raise DialError(f"cannot connect to {way}: {_plainly(error)}") from error


def _plainly(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).replace("_", " ").lower()
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()


class _WebSocket(asyncio.Protocol, asyncio.Transport):
    """A WebSocket (RFC 6455) to a broker: to the socket a protocol, to MQTT a transport. Frames and packets are independent."""

    def __init__(self, inner: asyncio.Protocol, way: Way, opened: asyncio.Future[None]) -> None:
        super().__init__()
        self._inner = inner
        self._way = way
        self._opened = opened
        self._frames = WSConnection(ConnectionType.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._begun = False
        self._closing = False

    # ---- the socket's protocol -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is none by type
        host = f"[{self._way.host}]" if ":" in self._way.host else self._way.host
        request = Request(host=f"{host}:{self._way.port}", target=self._way.path or "/mqtt", subprotocols=[SUBPROTOCOL])
        self._write(self._frames.send(request))

    def data_received(self, data: bytes) -> None:
        try:
            self._frames.receive_data(data)
            self._take()
        except ProtocolError as error:
            self._fail(f"{self._way} does not speak WebSockets: {error}")

    def _take(self) -> None:
        parts: list[bytes] = []
        for event in self._frames.events():
            if isinstance(event, BytesMessage):
                parts.append(bytes(event.data))
            elif isinstance(event, AcceptConnection):
                if event.subprotocol != SUBPROTOCOL:
                    self._fail(f"{self._way} does not offer the WebSocket subprotocol {SUBPROTOCOL}")
                    return
                self._begun = True
                if not self._opened.done():
                    self._opened.set_result(None)
                self._inner.connection_made(self)
            elif isinstance(event, RejectConnection):
                self._fail(f"{self._way} refuses the WebSocket with HTTP status {event.status_code}: check the path")
                return
            elif isinstance(event, Ping):
                self._write(self._frames.send(event.response()))
            elif isinstance(event, TextMessage):
                self._fail(f"{self._way} sends text frames, MQTT has binary ones only")
                return
            elif isinstance(event, CloseConnection):
                self.close()
        if parts and self._begun:
            self._inner.data_received(b"".join(parts))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(DialError(f"{self._way} closes the connection before the WebSocket is open"))
        elif self._begun:
            self._begun = False
            self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def _fail(self, sentence: str) -> None:
        if not self._opened.done():
            self._opened.set_exception(DialError(sentence))
        self.abort()

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    # ---- MQTT's transport ----------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._write(self._frames.send(BytesMessage(bytes(data))))

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        with suppress(ProtocolError):
            self._write(self._frames.send(CloseConnection(1000)))
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._transport is not None:
            self._transport.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._transport is None else self._transport.get_extra_info(name, default)
