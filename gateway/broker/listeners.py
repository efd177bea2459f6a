"""Where clients come in: sockets of every kind, each with its own rules, and the TLS handshakes before MQTT begins."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import ssl
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gateway.broker.connection import LINGER, Connection
from gateway.broker.websocket import WebSocket
from gateway.errors import CtxtError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from gateway.broker.server import Broker
    from gateway.certificates import Period

BACKLOG = 1_024
"""Connections that the kernel keeps until they are accepted."""

ACCEPTED_AT_ONCE = 64
"""Connections accepted before everything else has its turn again."""

WARN = 14 * 86_400.0
"""Seconds before the end of a certificate from which on the log warns of it."""

DAY = 86_400.0
_log = logging.getLogger("gateway.listeners")


class ListenError(CtxtError):
    """A listener cannot be opened. The sentence says which one, why, and what to do."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """What TLS needs, as PEM files. `key` None: it is in the certificate's file; `ca` None: no client certificates."""

    certificate: Path
    key: Path | None = None
    ca: Path | None = None
    require: bool = False
    minimum: Literal["1.2", "1.3"] = "1.2"

    def context(self) -> ssl.SSLContext:
        """A context for new connections. Raises ListenError naming the file that cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if self.minimum == "1.3" else ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
        context.set_alpn_protocols(["mqtt", "http/1.1"])
        file = self.certificate
        locked = False

        def password() -> bytes:
            """Without one of ours OpenSSL would ask for it on the terminal, and wait."""
            nonlocal locked
            locked = True
            return b""

        try:
            context.load_cert_chain(self.certificate, self.key, password=password)
            if self.ca is not None:
                file = self.ca
                context.load_verify_locations(self.ca)
                context.verify_mode = ssl.CERT_REQUIRED if self.require else ssl.CERT_OPTIONAL
        except ssl.SSLError as error:
            reason = "the key is encrypted: store it without a password" if locked else _reason(error)
            raise ListenError(f"{self._names(file)} cannot be used for TLS ({reason})") from error
        except OSError as error:
            raise ListenError(f"{self._names(file)} cannot be read ({error.strerror or error})") from error
        return context

    def _names(self, file: Path) -> str:
        if file == self.certificate and self.key is not None:
            return f"certificate {file} with key {self.key}"
        return f"{self.role(file)} {file}"

    def role(self, file: Path) -> str:
        """What one of the files is."""
        return "certificate" if file == self.certificate else "authority"

    def periods(self) -> dict[Path, Period]:
        """Of certificate and authority from when until when they are good, where that can be read. Raises ListenError."""
        from gateway.certificates import period  # noqa: PLC0415 - only where there is TLS

        found = {}
        for file in (self.certificate, self.ca):
            if file is not None:
                try:
                    read = period(file.read_bytes(), authorities=file is self.ca)
                except OSError as error:
                    raise ListenError(f"{self._names(file)} cannot be read ({error.strerror or error})") from error
                if read is not None:
                    found[file] = read
        return found

    def stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes when one of the files does."""
        return tuple(_stamp(file) for file in (self.certificate, self.key, self.ca) if file is not None)


def _reason(error: ssl.SSLError) -> str:
    known = {
        "KEY_VALUES_MISMATCH": "the key is not that of the certificate",
        "NO_CERTIFICATE_OR_CRL_FOUND": "there is no certificate in it",
    }
    return known.get(error.reason or "", error.reason or "it is no PEM file of the right kind")


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Certificates:
    """The TLS context of one listener, made anew when its files change. Established connections keep theirs."""

    def __init__(self, files: TlsFiles, wall: Callable[[], float] = time.time) -> None:
        """Raises ListenError."""
        self._files = files
        self._wall = wall
        self._used = self._tried = self._seen = files.stamps()
        self._warned = 0.0
        self.context = files.context()
        self._periods = files.periods()
        self._warn()

    @property
    def expires(self) -> float | None:
        """Until when the certificate is good, Unix seconds; None where that cannot be read."""
        found = self._periods.get(self._files.certificate)
        return None if found is None else found.ends

    def look(self) -> None:
        """Take new files when they have stopped changing since the last look. Broken ones are told in the log, once."""
        stamps = self._files.stamps()
        settled = stamps == self._seen
        self._seen = stamps
        if stamps != self._tried and settled:
            self._tried = stamps
            try:
                self._made()()
            except ListenError as error:
                _log.warning("%s; the certificate loaded before stays in use: put the files right", error)
        self._warn()

    def reread(self) -> Callable[[], None]:
        """Read the files now, where they are not those in use; what is returned takes them over. Raises ListenError."""
        return _nothing if self._files.stamps() == self._used else self._made()

    def _made(self) -> Callable[[], None]:
        stamps = self._files.stamps()
        context, periods = self._files.context(), self._files.periods()
        for file, period in periods.items():
            fault = period.fault(self._wall())
            if fault is not None:
                raise ListenError(f"the {self._files.role(file)} {file} {fault}")

        def take() -> None:
            self.context, self._periods = context, periods
            self._used = self._tried = self._seen = stamps
            self._warned = 0.0
            _log.info("certificate %s: loaded anew, new connections get it", self._files.certificate)

        return take

    def _warn(self) -> None:
        """Once a day, in the last days."""
        now = self._wall()
        if now - self._warned < DAY:
            return
        for text in ending(self._files, self._periods, now):
            self._warned = now
            _log.warning("%s", text)


def ending(files: TlsFiles, periods: dict[Path, Period], now: float) -> list[str]:
    """What should be renewed: sentences about what is over, not good yet, or ends within WARN seconds."""
    found = []
    for file, period in periods.items():
        fault = period.fault(now)
        if fault is None and period.ends - now < WARN:
            from gateway.certificates import date  # noqa: PLC0415 - as above

            fault = f"ends on {date(period.ends)}, in {int((period.ends - now) // DAY)} d: renew it"
        elif fault is not None and now >= period.ends:
            fault += ": whoever checks it refuses; renew it"
        if fault is not None:
            found.append(f"the {files.role(file)} {file} {fault}")
    return found


def _nothing() -> None:
    """There is nothing to take over."""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where the broker listens and what holds there. `name` tells it from all others, in logs and in `Peer.listener`.

    `path` is that of a Unix socket or of WebSocket URLs. `port` 0 takes a free one.
    """

    name: str
    scheme: Literal["mqtt", "mqtts", "ws", "wss", "unix"] = "mqtt"
    host: str | None = ""
    port: int = 0
    path: str = ""
    tls: TlsFiles | None = None
    origins: tuple[str, ...] = ()
    trusting: bool = False
    """Clients without a name are admitted here: a web page may not ride on that under a name that its owner points here."""
    mode: int = 0o660


class Opened:
    """A listener that accepts connections. Sockets of TLS count from their first moment, and have `connect_timeout` until it is up."""

    def __init__(self, broker: Broker, listener: Listener, certificates: Certificates | None) -> None:
        self.listener = listener
        self.certificates = certificates
        self.address: tuple[str, int] = ("", 0)
        self._broker = broker
        self._server: asyncio.Server | None = None
        self._listening: socket.socket | None = None
        self._handshakes: set[asyncio.Task[None]] = set()
        self._file: tuple[int, int] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        listener = self.listener
        if listener.scheme == "unix":
            return f"unix://{listener.path}"
        host, port = self.address
        return f"{listener.scheme}://{f'[{host}]' if ':' in host else host}:{port}{listener.path}"

    async def open(self) -> None:
        """Raises OSError, ListenError."""
        listener, loop = self.listener, self._broker.loop
        if listener.scheme == "unix":
            bound, self._file = _bind_unix(listener.path, listener.mode)
            self._server = await loop.create_unix_server(self._protocol, sock=bound, backlog=BACKLOG)
            return
        if self.certificates is None and listener.host != "::":
            self._server = await loop.create_server(self._protocol, listener.host, listener.port, backlog=BACKLOG)
            name = self._server.sockets[0].getsockname()
        else:
            bound = await _bind(loop, listener.host or "", listener.port)
            name = bound.getsockname()
            if self.certificates is None:
                self._server = await loop.create_server(self._protocol, sock=bound, backlog=BACKLOG)
            else:
                bound.listen(BACKLOG)
                self._listening = bound
                loop.add_reader(bound, self._accept, bound)
        self.address = (str(name[0]), int(name[1]))

    def _protocol(self, entered: str | None = None) -> Connection | WebSocket:
        """What a socket is given; `entered` is the address that it has been counted for already."""
        if self.listener.scheme in ("ws", "wss"):
            return WebSocket(self._broker, self.listener, entered)
        return Connection(self._broker, self.listener.name, entered)

    # ---- TLS -----------------------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        """Take the sockets that wait, count them, and begin their handshakes: the loop's own servers count them only afterwards."""
        broker = self._broker
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                accepted, name = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No more file descriptors, most likely: trying at once would be for nothing.
                _log.warning("cannot accept connections on %s (%s); trying again", self.url, error.strerror or error)
                broker.loop.remove_reader(listening)
                broker.loop.call_later(1.0, self._accept_again, listening)
                return
            address = address_group(str(name[0]))
            if not broker.enter(address):
                accepted.close()
                continue
            accepted.setblocking(False)
            task = broker.loop.create_task(self._shake_hands(accepted, address))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _accept_again(self, listening: socket.socket) -> None:
        if self._listening is listening:
            self._broker.loop.add_reader(listening, self._accept, listening)

    async def _shake_hands(self, accepted: socket.socket, address: str) -> None:
        assert self.certificates is not None
        broker = self._broker
        protocol = self._protocol(address)
        try:
            await broker.loop.connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=self.certificates.context,
                ssl_handshake_timeout=broker.limits.connect_timeout,
                ssl_shutdown_timeout=LINGER,
            )
        except OSError:  # the client speaks no TLS, no version of ours, has no certificate, or has gone
            broker.counters.tls_failures += 1
        finally:
            if not protocol.begun:  # it has not been told of a connection, so it will not be told of its end
                accepted.close()
                broker.leave(address)

    # ---- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Accept no more; a Unix socket's file goes if it is still ours."""
        if self._server is not None:
            self._server.close()
        if self._listening is not None:
            self._broker.loop.remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for task in self._handshakes:
            task.cancel()
        if self._file is not None:
            path = Path(self.listener.path)
            try:
                found = path.stat()
                if (found.st_dev, found.st_ino) == self._file:
                    path.unlink()
            except OSError:
                pass  # somebody was quicker
            self._file = None

    async def wait_closed(self) -> None:
        """Until it is closed."""
        if self._server is not None:
            await self._server.wait_closed()


async def open_listener(broker: Broker, listener: Listener) -> Opened:
    """Raises ListenError for files that cannot be used, OSError for an address."""
    opened = Opened(broker, listener, None if listener.tls is None else Certificates(listener.tls, broker.wall))
    await opened.open()
    return opened


async def _bind(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """A bound TCP socket. `::` is every address of the machine, of both families: what who writes [::] means."""
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        bound.bind(address)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def _bind_unix(path: str, mode: int) -> tuple[socket.socket, tuple[int, int]]:
    """A socket, and which file it is (device, inode). Its mode holds from the first moment that anybody could connect.

    A file that nobody listens on any more is replaced. Raises OSError, ListenError.
    """
    try:
        there = Path(path).lstat()
    except FileNotFoundError:
        pass
    else:
        if not stat.S_ISSOCK(there.st_mode):
            raise ListenError(
                f"cannot listen on {path}: there is a file that is no socket; remove it, or set another path"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                Path(path).unlink()
            except BlockingIOError:  # so many wait that there is no room for another one: somebody listens
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(path)
        # Nobody can connect before `listen`, which comes after this.
        Path(path).chmod(mode)
        bound.setblocking(False)
        found = Path(path).stat()
    except OSError:
        bound.close()
        raise
    return bound, (found.st_dev, found.st_ino)


def address_group(host: str) -> str:
    """Addresses that one subscriber of a network provider has for itself count as one."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(address) >> 64 << 64)) + "/64"
