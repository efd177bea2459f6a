"""Where to connect and as whom: `mqtt://room-sensor:secret@localhost`. Pure but for the certificates' files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from gateway.client.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

ANONYMOUS = "anonymous"
PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
FORM = "mqtt://[name[:password]@]host[:port][/topic-prefix] (or mqtts://, ws://, wss://)"


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect and as whom. `name` is None for a connection without a name.

    `scheme` is `mqtt`, `mqtts`, `ws` or `wss`; the path of a URL is the gateway's topic prefix, for `ws` and `wss` the WebSocket's.
    """

    host: str
    port: int
    name: str | None = None
    password: str | None = None
    prefix: str = ""
    scheme: str = "mqtt"
    path: str = "/mqtt"

    @classmethod
    def parse(cls, url: str, environ: Mapping[str, str], *, password: str | None = None, prefix: str = "") -> Target:
        """From `mqtt://[name[:password]@]host[:port][/prefix]`; a missing password comes from CTXT_PASSWORD.

        Raises UsageError, whose sentence never quotes the password.
        """
        scheme, separator, _ = url.partition("://")
        if not separator or scheme not in PORTS:
            raise UsageError(f"this is no broker to connect to: write {FORM}")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or port == 0 or parts.query or parts.fragment:
            raise UsageError(f"the URL of the broker has no valid host and port: write {FORM}")
        name = unquote(parts.username) if parts.username else None
        if parts.password is not None:
            password = unquote(parts.password)
        if password is None:
            password = environ.get("CTXT_PASSWORD")
        web = scheme in ("ws", "wss")
        return cls(
            host,
            port or PORTS[scheme],
            name,
            password if name is not None else None,
            prefix.strip("/") if web else (parts.path.strip("/") or prefix.strip("/")),
            scheme,
            (parts.path or "/mqtt") if web else "/mqtt",
        )

    @property
    def encrypted(self) -> bool:
        """Whether it is TLS."""
        return self.scheme in ("mqtts", "wss")

    @property
    def client(self) -> str:
        """The client's name as the gateway knows it."""
        return self.name or ANONYMOUS

    @property
    def where(self) -> str:
        """Host and port, for sentences."""
        return f"{self.host} port {self.port}"

    def topic(self, rest: str) -> str:
        """A topic of the gateway's, with the prefix."""
        return f"{self.prefix}/{rest}" if self.prefix else rest

    def without_prefix(self, topic: str) -> str:
        """A topic without the prefix."""
        return topic[len(self.prefix) + 1 :] if self.prefix else topic


def tls_context(
    ca: str | PathLike[str] | None = None,
    certificate: str | PathLike[str] | None = None,
    key: str | PathLike[str] | None = None,
) -> ssl.SSLContext:
    """TLS that checks the broker's certificate and name, against the system's authorities or those of the PEM file `ca`.

    `certificate` and `key` are PEM files of the client's own. Raises UsageError for a file that cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the authority's certificate {ca} cannot be read: {error}") from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"the client's certificate {certificate} cannot be read: {error}") from error
    return context
