"""Settings: their types, defaults, units and help; read from the environment, one TOML file and the defaults, in this order.

Each field is declared once. Validation, `config/gateway.toml`, `docs/settings.md`, `ctxt config show` and the names of the
environment variables derive from that declaration.
"""

from __future__ import annotations

import os
import re
import textwrap
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self, TypeVar, cast, get_args, get_origin
from urllib.parse import urlsplit

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.address import Address, AddressError, Pattern, valid_client
from gateway.errors import CtxtError
from gateway.rights import ANONYMOUS, RESERVED, VERBS
from gateway.topics import overlaps, valid_filter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

_T = TypeVar("_T")

PREFIX = "CTXT_"
RESERVED_VARIABLES = frozenset({"CTXT_CONFIG", "CTXT_CONNECT", "CTXT_PASSWORD"})
"""Environment names that belong to the command line client and say nothing about the gateway."""

MAX_FILE_BYTES = 1 << 20
EXAMPLE_STATE_DIR = "~/.local/state/ctxt-gateway"
KIB = 1024
MIB = 1024 * KIB

NOWHERE = "none"
"""`[broker] url` where only the `[[listener]]`s are opened."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?) ?(ms|s|m|h|d)?", re.ASCII)
_SIZE = re.compile(r"(\d{1,15}) ?(B|KiB|MiB|GiB)?", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": 1024 * MIB}
_USERINFO = re.compile(r"://[^/@\s]*@")
_TOML_PLACE = re.compile(r" ?\((?:at line (\d+), column (\d+)|at end of document)\)$")


class Problem(NamedTuple):
    """One thing that is wrong. `place` is `namespace[2].stale_after`, an environment name, or `file:line:column`."""

    place: str
    reason: str
    suggestion: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" + (f"; did you mean {self.suggestion}?" if self.suggestion else "")


class SettingsError(CtxtError):
    """The settings cannot be used; `problems` lists everything that is wrong with them, `path` is the file that was read."""

    def __init__(self, problems: Sequence[Problem], path: Path | None) -> None:
        super().__init__(problems, path)
        self.problems = tuple(problems)
        self.path = path

    def __str__(self) -> str:
        n = len(self.problems)
        return (
            f"{self.path or 'the settings'} cannot be used, {n} problem{'s' if n != 1 else ''}:\n"
            + "\n".join(f"  {problem}" for problem in self.problems)
            + "\nPut this right; `ctxt config check` looks again."
        )


# Values ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a field as a duration (held as seconds) or a size (held as bytes)."""

    name: Literal["duration", "size"]


def duration(value: object) -> float:
    """Seconds from a number of seconds or a text such as "5s", "100ms", "10m", "24h". Raises ValueError."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a duration: a number of seconds, or a text such as "100ms", "5s", "10m", "24h"')
    number, unit = found.groups()
    # Division keeps "100ms" the same number as 0.1.
    return float(number) / 1000 if unit == "ms" else float(number) * _SECONDS[unit or "s"]


def size(value: object) -> int:
    """Bytes from a number of bytes or a text such as "64KiB", "8MiB". Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('must be a size: a number of bytes, or a text such as "512B", "64KiB", "8MiB", "1GiB"')
    number, unit = found.groups()
    return int(number) * _BYTES[unit or "B"]


def _duration_or_none(value: object) -> float | None:
    return None if value is None else duration(value)


def _quality(value: object) -> object:
    # A Literal takes True for 1.
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be 0 or 1")  # noqa: TRY004 - pydantic collects ValueError only
    return value


def _client_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a client name: use 1 to 64 of A-Z a-z 0-9 _ -")
    if value == "gateway":
        raise ValueError("'gateway' is the gateway's own name, no client can have it")
    return value


def _group_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value[:80]!r} is not a group name: use 1 to 64 of A-Z a-z 0-9 _ -")
    return value


def _entry(value: str) -> str:
    if value == "*":
        return value
    if value.startswith("@"):
        _group_name(value[1:])
        return value
    try:
        return _client_name(value)
    except ValueError as error:
        raise ValueError(f'{error}, "@NAME" for a group, or "*" for every authenticated client') from None


def _gateway_id(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 _ -: it is a level of the topic gateway/ID")
    return value


def _prefix(value: str) -> str:
    if not value:
        return value
    if len(value) > 128:
        raise ValueError("must have at most 128 characters")
    if value[0] == "/" or value[-1] == "/":
        raise ValueError("must neither begin nor end with /")
    if "//" in value:
        raise ValueError("must not have an empty level (//)")
    if "+" in value or "#" in value:
        raise ValueError("must not contain the wildcards + and #")
    if value[0] == "$":
        raise ValueError("must not begin with $: such topics are the broker's own")
    if not value.isprintable():
        raise ValueError("must have printable characters only")
    return value


def _url_pattern(value: str) -> str:
    if len(value) > 1024:
        raise ValueError("must have at most 1,024 characters")
    try:
        Pattern.parse(value)
    except AddressError as error:
        raise ValueError(str(error)) from None
    return value


def _topic_filter(value: str) -> str:
    if not valid_filter(value.replace("{client}", "x")) or not value.isprintable() or len(value) > 1024:
        raise ValueError("is not an MQTT topic filter: + and # stand alone in their level, # comes last")
    if "{" in value.replace("{client}", "") or "}" in value.replace("{client}", ""):
        raise ValueError("has braces of another kind than {client}")
    if value.partition("/")[0] in RESERVED:
        raise ValueError(f"must not begin with {', '.join(RESERVED)}: such topics are the broker's own")
    return value


def _adapter_type(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,63}", value):
        raise ValueError("must be the type of an adapter, in lower case, such as tasmota: `ctxt adapter ls` lists them")
    return value


def _adapter_name(value: str) -> str:
    if value and not valid_client(value):
        raise ValueError("must have 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return value


def _adapter_base(value: str) -> str:
    if not value:
        return value
    try:
        found = Address.parse(value)
    except AddressError as error:
        raise ValueError(str(error)) from error
    if found.is_child or found.scheme != "ctxt":
        raise ValueError("must be an object URL of ctxt:// outside any `children`, such as ctxt://home.local/tasmota")
    return found.url


def _schema_name(value: str) -> str:
    if not value or len(value) > 1024 or not value.isprintable():
        raise ValueError('must be the name of a schema, such as "Context", or its catalogue URL')
    return value


def _path(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("must not contain NUL")
    return value


def _path_or_none(value: object) -> object:
    return None if value is None else _path(value)


def _expanded_or_none(path: Path | None) -> Path | None:
    return None if path is None else _expanded(path)


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder for {path.parts[0]!r}: write the whole path") from None


class Listener(NamedTuple):
    """Where the broker inside listens."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def listener(url: str) -> Listener:
    """Host and port of an `embedded://HOST[:PORT]` URL (default port 1883). Raises ValueError with the reason, without secrets."""
    scheme, separator, rest = url.partition("://")
    if not separator or not rest or not url.isprintable() or " " in url:
        raise ValueError('is not a URL: write "embedded://127.0.0.1:1883"')
    if scheme != "embedded":
        raise ValueError(
            f"has the unknown scheme {scheme[:20]!r}: use embedded (the broker inside), or mqtt, mqtts, ws, wss or unix"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("has no valid host and port: the port is a number from 0 to 65535") from None
    if "@" in rest:
        raise ValueError("takes no user name and password: clients get theirs with `ctxt client add NAME`")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError('takes only a host and a port: write "embedded://127.0.0.1:1883"')
    if not host:
        raise ValueError("has no host: 127.0.0.1 admits this machine only, 0.0.0.0 the whole network")
    if not re.fullmatch(r"[a-z0-9.-]{1,253}", host):
        try:
            ip_address(host)
        except ValueError:
            raise ValueError(
                "has no valid host: write a name, an IPv4 address, or an IPv6 address in brackets"
            ) from None
    return Listener(host, 1883 if port is None else port)


def _broker_url(value: str) -> str:
    if _outside(value):
        where = place(value)
        if where.scheme != "unix" and (where.port == 0 or where.host in ("0.0.0.0", "::")):  # noqa: S104  # nothing binds here
            raise ValueError("has no host and port to connect to: name the broker's")
    elif value != NOWHERE:
        listener(value)
    return value


def _outside(url: str) -> bool:
    """Whether a `[broker] url` is that of a broker outside."""
    return url.partition("://")[0] in get_args(Scheme)


Scheme = Literal["mqtt", "mqtts", "ws", "wss", "unix"]


class Place(NamedTuple):
    """Where a `[[listener]]` listens. `path` is the path of a WebSocket URL, or that of a Unix socket."""

    scheme: Scheme
    host: str
    port: int
    path: str

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.scheme == "unix" or Listener(self.host, self.port).loopback

    @property
    def encrypted(self) -> bool:
        """Whether it speaks TLS."""
        return self.scheme in ("mqtts", "wss")


_SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux (unix(7)), without the final NUL."""


def place(url: str) -> Place:
    """What the URL of a `[[listener]]` says. Raises ValueError with the reason, without secrets."""
    scheme, separator, rest = url.partition("://")
    if not separator or not rest or not url.isprintable() or " " in url:
        raise ValueError(
            'is not a URL: write "mqtts://[::]:8883", "ws://127.0.0.1:9001/mqtt" or "unix:///run/ctxt/mqtt.sock"'
        )
    if scheme == "unix":
        if not rest.startswith("/") or rest.endswith("/") or len(rest.encode()) > _SOCKET_PATH_BYTES:
            raise ValueError(
                f'has no usable path: write "unix:///run/ctxt/mqtt.sock", absolute and at most {_SOCKET_PATH_BYTES} bytes'
            )
        return Place("unix", "", 0, rest)
    if scheme not in get_args(Scheme):
        raise ValueError(f"has the unknown scheme {scheme[:20]!r}: use mqtt, mqtts, ws, wss or unix")
    web = scheme in ("ws", "wss")
    authority, slash, path = rest.partition("/")
    if "?" in rest or "#" in rest or (path and not web):
        raise ValueError(f"takes only a host and a port{' and a path' if web else ''}")
    if web and not re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]{0,255}", path):
        raise ValueError("has a path with characters that a URL cannot have, or one of more than 255")
    try:
        host, port = listener(f"embedded://{authority}")
        given = urlsplit(f"x://{authority}").port is not None
    except ValueError as error:
        raise ValueError(str(error).replace("embedded://127.0.0.1:1883", f"{scheme}://127.0.0.1:1883")) from None
    if not given:
        if web:
            raise ValueError('needs a port: write "ws://127.0.0.1:9001/mqtt"')
        port = 8883 if scheme == "mqtts" else 1883
    return Place(cast("Scheme", scheme), host, port, (f"/{path}" if slash else "/mqtt") if web else "")


def _listener_url(value: str) -> str:
    place(value)
    return value


def _origin(value: str) -> str:
    if value != "*" and not re.fullmatch(r"https?://(?:[a-z0-9.-]{1,253}|\[[0-9a-f:.]{2,45}\])(?::\d{1,5})?", value):
        raise ValueError('must be an origin as browsers send it, "https://panel.home.local:8443" in lower case, or "*"')
    return value


def _mode(value: str) -> str:
    if not re.fullmatch(r"0[0-7]{3}", value):
        raise ValueError('must be four octal digits, such as "0660"')
    return value


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """`$STATE_DIRECTORY` (systemd), else `$XDG_STATE_HOME/ctxt-gateway`, else `~/.local/state/ctxt-gateway`.

    Raises RuntimeError where there is no home folder.
    """
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    base = environ.get("XDG_STATE_HOME", "")
    # A relative path in XDG_STATE_HOME is to be ignored (XDG Base Directory Specification).
    if base.startswith("/"):
        return Path(base, "ctxt-gateway")
    home = environ.get("HOME", "")
    return (Path(home) if home.startswith("/") else Path.home()) / ".local/state/ctxt-gateway"


Seconds = Annotated[float, BeforeValidator(duration), Unit("duration")]
SecondsOrNone = Annotated[float | None, BeforeValidator(_duration_or_none), Unit("duration")]
Bytes = Annotated[int, BeforeValidator(size), Unit("size")]
ClientName = Annotated[str, AfterValidator(_client_name)]
GroupName = Annotated[str, AfterValidator(_group_name)]
Entries = tuple[Annotated[str, AfterValidator(_entry)], ...]
Folder = Annotated[Path, BeforeValidator(_path), AfterValidator(_expanded)]
FileOrNone = Annotated[Path | None, BeforeValidator(_path_or_none), AfterValidator(_expanded_or_none)]


# Models ---------------------------------------------------------------------------------------------------------------


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BrokerSettings(_Table):
    """The broker inside: where it listens and what it allows one connection, one client and all of them."""

    url: Annotated[str, AfterValidator(_broker_url)] = Field(
        default="embedded://127.0.0.1:1883",
        description="Where the broker inside listens: embedded://HOST:PORT. 127.0.0.1 admits this machine only, 0.0.0.0 the"
        " whole network; port 0 takes a free one. `none`: only where the [[listener]]s say,"
        " which is the default where there are some. Or the broker outside that the gateway joins (see [link]):"
        " mqtt://HOST:PORT, mqtts://HOST:PORT, ws://HOST:PORT/PATH, wss://HOST:PORT/PATH or unix:///PATH.",
    )
    anonymous: StrictBool = Field(
        default=False,
        description="Whether clients may connect without a name and password. All of them are the client `anonymous`, which"
        ' "*" does not include. Only where the broker listens on loopback.',
    )
    connect_timeout: Seconds = Field(
        default=10.0,
        ge=0.1,
        le=300,
        description="A connection that has not identified itself within this time is closed.",
    )
    keep_alive_max: Seconds = Field(
        default=3600.0,
        ge=1,
        le=65535,
        description="The longest keep-alive; an MQTT 5 client that asks for more is told to keep this one.",
    )
    packet_bytes: Bytes = Field(
        default=256 * KIB,
        ge=1 * KIB,
        le=256 * MIB,
        description="The largest MQTT packet taken, its topic and properties included. Left out, it is more where an adapter needs that.",
    )
    inflight: StrictInt = Field(
        default=100,
        ge=1,
        le=65535,
        description="Unacknowledged messages sent to a client that does not say how many it takes.",
    )
    receive_maximum: StrictInt = Field(
        default=1000,
        ge=1,
        le=65535,
        description="Unacknowledged QoS 1 and 2 messages that one client may have sent at a time.",
    )
    queue_messages: StrictInt = Field(
        default=10_000, ge=1, le=10_000_000, description="Messages waiting for one session that is slow or away."
    )
    queue_bytes: Bytes = Field(
        default=8 * MIB, ge=64 * KIB, le=4096 * MIB, description="Bytes waiting for one session that is slow or away."
    )
    subscriptions: StrictInt = Field(default=1000, ge=1, le=1_000_000, description="Subscriptions of one session.")
    connections: StrictInt = Field(
        default=10_000, ge=1, le=1_000_000, description="Connections at a time, all clients together."
    )
    connections_per_client: StrictInt = Field(
        default=1000, ge=1, le=1_000_000, description="Connections of one client at a time."
    )
    connections_per_address: StrictInt = Field(
        default=5000,
        ge=1,
        le=1_000_000,
        description="Connections from one address at a time; an IPv6 network of 64 bits is one address. All that come through"
        " a proxy come from the proxy's.",
    )
    wrong_passwords: StrictInt = Field(
        default=10,
        ge=1,
        le=1_000_000,
        description="Wrong passwords a minute that one address may send for one client. Then it is refused unheard for a"
        " while that grows; likewise after four times as many from one address, or for one client.",
    )
    wrong_password_pause: Seconds = Field(
        default=60.0, ge=1, le=3600, description="The longest of these pauses; the first one takes a second."
    )
    topic_aliases: StrictInt = Field(
        default=32, ge=0, le=65535, description="Topic aliases one MQTT 5 connection may set."
    )
    retained_messages: StrictInt = Field(
        default=10_000,
        ge=0,
        le=10_000_000,
        description="Retained messages kept on topics that [[topic]] rules open. Snapshots are not counted here.",
    )
    retained_bytes: Bytes = Field(
        default=64 * MIB,
        ge=0,
        le=4096 * MIB,
        description="Bytes of the retained messages on topics that [[topic]] rules open.",
    )
    sys_interval: Seconds = Field(
        default=10.0,
        ge=0,
        le=86400,
        description="How often $SYS/broker/# is renewed for those who subscribe to it; 0: never, a new subscriber is told once.",
    )
    sys_read: Entries = Field(
        default=("*",),
        description='Who may read $SYS/broker/#: client names, "@NAME" for a group, "*" for every authenticated client;'
        ' clients without a name only where "anonymous" is listed.',
    )

    @property
    def listener(self) -> Listener | None:
        """Where the broker inside listens by `url`; None: only where the [[listener]]s say."""
        return None if self.url == NOWHERE or _outside(self.url) else listener(self.url)

    @property
    def outside(self) -> Place | None:
        """The broker outside that the gateway joins; None: the broker is inside."""
        return place(self.url) if _outside(self.url) else None


def _escape(value: str) -> str:
    wrong = [
        each for each in value if not each.isascii() or not each.isprintable() or each in "%/+#$" or each.isalnum()
    ]
    if wrong or len(set(value)) != len(value):
        raise ValueError("takes ASCII characters that are neither letters nor digits nor one of %/+#$, each once")
    return value


def _web_place(value: str) -> tuple[str, int]:
    parts = urlsplit(value)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError("takes http://HOST:PORT")
    return parts.hostname, parts.port if parts.port is not None else 80


def _web_url(value: str) -> str:
    if value:
        _web_place(value)
    return value


def _management_url(value: str) -> str:
    parts = urlsplit(value)
    if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username):
        raise ValueError("takes http://HOST:PORT or https://HOST:PORT, and a path")
    return value


def _plugin_name(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", value):
        raise ValueError("takes the name of a plugin: up to 32 of a-z 0-9 _ -, a letter first")
    return value


class LinkSettings(_Table):
    """How the gateway joins a broker outside, where `[broker] url` names one."""

    username: str = Field(
        default="", max_length=1024, description="The name under which the gateway connects; empty: none."
    )
    password_file: FileOrNone = Field(
        default=None,
        description="File whose first line is the password. Read for every connection, so that it can be changed.",
        examples=["/etc/ctxt-gateway/link.password"],
    )
    client_id: str = Field(
        default="", max_length=256, description="The MQTT client id; empty: ctxt-gateway- and the gateway's id."
    )
    protocol: Literal["auto", "5", "3.1.1"] = Field(
        default="auto", description="The version of MQTT; `auto`: 5, and 3.1.1 where the broker does not know it."
    )
    keep_alive: Seconds = Field(
        default=30.0, ge=5, le=65535, description="A connection without a sign of life for longer is given up."
    )
    session_expiry: Seconds = Field(
        default=3600.0,
        ge=0,
        le=86400 * 30,
        description="How long the broker is to keep reports for a gateway that is away (MQTT 5; with 3.1.1 it decides itself).",
    )
    ca: FileOrNone = Field(
        default=None,
        description="PEM file with the authorities that the broker's certificate may come from. Left out: those that the"
        " system trusts.",
        examples=["/etc/ctxt-gateway/tls/ca.pem"],
    )
    certificate: FileOrNone = Field(
        default=None,
        description="PEM file with the gateway's own certificate, where the broker asks for one. Files are read for every"
        " connection.",
        examples=["/etc/ctxt-gateway/tls/gateway.pem"],
    )
    key: FileOrNone = Field(
        default=None,
        description="PEM file with the certificate's private key. Left out: it is in the certificate's file.",
        examples=["/etc/ctxt-gateway/tls/gateway.key"],
    )
    server_name: str = Field(
        default="",
        max_length=253,
        description="The name in the broker's certificate, where it is not the host in the URL.",
    )
    topic_escape: Annotated[str, AfterValidator(_escape)] = Field(
        default="",
        description="Characters that this broker gives a meaning of its own, percent-encoded in topics there: `. ` (dot and"
        " space) for RabbitMQ, `. *>` for NATS.",
    )
    broker_config: FileOrNone = Field(
        default=None,
        description="Settings of a mosquitto on this machine: what it would lose is logged as a warning at each start. Left out:"
        " /etc/mosquitto/mosquitto.conf.",
        examples=["/etc/mosquitto/mosquitto.conf"],
    )
    open: StrictBool = Field(
        default=False,
        description="Whether to serve although the broker lets clients without a name write what only the gateway may"
        " write: then nothing in it can be believed.",
    )


class AclSettings(_Table):
    """How a broker outside is made to enforce who may write and read; the broker inside needs nothing here."""

    plugin: Annotated[str, AfterValidator(_plugin_name)] = Field(
        default="none",
        description="The ACL plugin for the broker in [broker] url: `mosquitto` writes its ACL and password files, `http`"
        " answers EMQX, RabbitMQ, VerneMQ and mosquitto-go-auth, `nats` writes its users; or one that is installed beside"
        " the gateway. `none`: the broker's rules are kept by hand.",
    )


class WebSettings(_Table):
    """HTTP in the gateway's own process; needs the extra `web`: pip install 'ctxt-gateway[web]'."""

    listen: Annotated[str, AfterValidator(_web_url)] = Field(
        default="",
        description="http://HOST:PORT; empty: no web listener.",
        examples=["http://127.0.0.1:8080"],
    )

    @property
    def place(self) -> tuple[str, int] | None:
        """Host and port, where it listens."""
        return _web_place(self.listen) if self.listen else None


class AuthoritySettings(_Table):
    """How brokers ask over HTTP who may do what (`acl.plugin = "http"`), and how they are told to drop somebody."""

    secret_file: FileOrNone = Field(
        default=None,
        description="File whose first line the broker has to know, at least 16 characters: `Authorization: Bearer …`, or as the"
        " first part of the path below /acl/. Left out: only this machine may ask.",
        examples=["/etc/ctxt-gateway/authority.secret"],
    )
    client_ids: Literal["named", "first"] = Field(
        default="named",
        description="Whose an MQTT client id is, and what the broker keeps for it. `named`: it must be the client's name, or begin"
        " with it and one of `.` `:` `/` `@`, such as room-sensor:2, or be one that the broker makes up; `first`: that of whoever has"
        " used it first since the gateway's start.",
    )
    certificates: StrictBool = Field(
        default=False,
        description="Whether a client that the broker knows by its certificate needs no password; its common name is its name.",
    )
    kick: Literal["none", "rabbitmq", "emqx", "vernemq"] = Field(
        default="none",
        description="By which broker's management API those are disconnected who have lost a right; `none` is right for"
        " mosquitto-go-auth only, which asks at each delivery.",
    )
    management: Annotated[str, AfterValidator(_management_url)] = Field(
        default="",
        description="Its address: http://HOST:15672 (RabbitMQ), http://HOST:18083/api/v5 (EMQX), http://HOST:8888/api/v1 (VerneMQ).",
        examples=["http://127.0.0.1:15672"],
    )
    management_user: str = Field(
        default="",
        max_length=1024,
        description="Its user, or its API key; VerneMQ has none.",
        examples=["gateway-kick"],
    )
    management_password_file: FileOrNone = Field(
        default=None,
        description="File whose first line is its password, the API key's secret, or VerneMQ's API key.",
        examples=["/etc/ctxt-gateway/management.password"],
    )
    timeout: Seconds = Field(default=10.0, ge=1, le=120, description="How long it may take to answer.")


class MosquittoSettings(_Table):
    """Where the ACL plugin `mosquitto` writes its files, and how mosquitto is told to read them again."""

    folder: FileOrNone = Field(
        default=None,
        description="Folder of the files `acl` and `passwd`. Left out: `mosquitto` in state_dir, from where"
        " `ctxt acl install mosquitto` has systemd copy them.",
        examples=["/etc/mosquitto/ctxt"],
    )
    pid_file: FileOrNone = Field(
        default=None,
        description="mosquitto's own `pid_file`: it is sent SIGHUP, where the gateway runs as the same user.",
        examples=["/run/mosquitto/mosquitto.pid"],
    )
    reload_command: tuple[str, ...] = Field(
        default=(),
        description="Program and arguments that have mosquitto read its files again, where the gateway may not send the signal"
        ' itself: ["sudo", "-n", "systemctl", "reload", "mosquitto"].',
    )
    timeout: Seconds = Field(
        default=10.0,
        ge=1,
        le=600,
        description="How long mosquitto may take to go by new rules before that is an error. It is tried again in any case.",
    )


class TokenSettings(_Table):
    """Bearer tokens (JWT) that clients may send instead of a password. Off as long as neither file is named."""

    jwks: FileOrNone = Field(
        default=None,
        description="File with the issuer's public keys, a JWK set: RSA, P-256, P-384, P-521 or Ed25519. Read again when it"
        " changes.",
        examples=["/etc/ctxt-gateway/jwks.json"],
    )
    key_file: FileOrNone = Field(
        default=None,
        description="File with a key shared with whoever makes the tokens, at least 32 bytes: HS256, with 48 bytes HS384 too,"
        " with 64 HS512. `ctxt client token` makes tokens with it. Instead of jwks.",
        examples=["/etc/ctxt-gateway/tokens.key"],
    )
    issuer: str = Field(
        default="",
        max_length=1024,
        description="What a token's `iss` has to be; empty: anything, which only key_file allows.",
    )
    audience: str = Field(
        default="",
        max_length=1024,
        description="What a token's `aud` has to be or contain; empty, which only key_file allows: tokens for somebody in"
        " particular are refused.",
    )
    client_claim: str = Field(
        default="sub", min_length=1, max_length=256, description="Member of the token with the client's name."
    )
    groups_claim: str = Field(
        default="groups",
        min_length=1,
        max_length=256,
        description="Member of the token with a list of groups: until it expires the client belongs to those that [groups] names.",
    )
    clients: Literal["known", "any"] = Field(
        default="known",
        description="Which clients a token may name: `known` those of `ctxt client add`, `any` whatever the issuer has signed. A"
        " disabled client is refused either way.",
    )
    leeway: Seconds = Field(
        default=5.0, ge=0, le=60, description="How far the issuer's clock and this one's may differ."
    )
    lifetime_max: Seconds = Field(
        default=366 * 86400.0,
        ge=60,
        le=3660 * 86400,
        description="A token that is good for longer than this from now on is refused.",
    )

    @property
    def on(self) -> bool:
        """Whether tokens are taken."""
        return self.jwks is not None or self.key_file is not None


class NatsSettings(_Table):
    """Where the ACL plugin `nats` writes nats-server's users, and how nats-server is told to read them again."""

    users_file: FileOrNone = Field(
        default=None,
        description="The file that nats-server's settings include. Left out: `nats/users.conf` in state_dir.",
        examples=["/etc/nats/users.conf"],
    )
    pid_file: FileOrNone = Field(
        default=None,
        description="nats-server's own `pid_file`: it is sent SIGHUP, where the gateway runs as the same user.",
        examples=["/run/nats/nats-server.pid"],
    )
    reload_command: tuple[str, ...] = Field(
        default=(),
        description="Program and arguments that have nats-server read its files again, where the gateway may not send the"
        ' signal itself: ["sudo", "-n", "systemctl", "reload", "nats-server"].',
    )
    timeout: Seconds = Field(
        default=10.0,
        ge=1,
        le=600,
        description="How long nats-server may take to go by new users before that is an error. It is tried again in any case.",
    )


class ListenerSettings(_Table):
    """One more place where clients connect to the broker inside, with rules of its own."""

    url: Annotated[str, AfterValidator(_listener_url)] = Field(
        description="mqtt://HOST:PORT, mqtts://HOST:PORT (TLS), ws://HOST:PORT/PATH, wss://HOST:PORT/PATH (WebSockets; the path"
        " is /mqtt where there is none) or unix:///PATH. [::] is every address of this machine, IPv4 too.",
        examples=["mqtts://[::]:8883"],
    )
    anonymous: StrictBool = Field(
        default=False,
        description="Whether clients may connect here without a name and password, as the client `anonymous`. On loopback and"
        " Unix sockets only.",
    )
    certificate: FileOrNone = Field(
        default=None,
        description="PEM file with the certificate and its chain, for mqtts and wss. Looked at every second: a new one holds"
        " for new connections.",
    )
    key: FileOrNone = Field(
        default=None,
        description="PEM file with the certificate's private key. Left out: it is in the certificate's file.",
    )
    ca: FileOrNone = Field(
        default=None, description="PEM file with the authorities that client certificates must come from."
    )
    require_certificate: StrictBool = Field(
        default=False, description="Whether a client without a certificate is refused before it says anything."
    )
    use_certificate_name: StrictBool = Field(
        default=False,
        description="Whether the common name (CN) in a client's certificate is its name, and its password is not asked for.",
    )
    certificate_clients: Literal["known", "any"] = Field(
        default="known",
        description="Which names a certificate may carry then: `known` those of `ctxt client add`, `any` whatever the authority"
        " has signed. A disabled client is refused either way.",
    )
    tls_minimum: Literal["1.2", "1.3"] = Field(default="1.2", description="The oldest version of TLS that is spoken.")
    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        default=(),
        description='Web pages that may open a WebSocket here, by origin ("https://panel.home.local"), or "*". Pages from the'
        " host that they connect to always may, and so may programs, which send no origin.",
    )
    mode: Annotated[str, AfterValidator(_mode)] = Field(
        default="0660", description="File mode of a Unix socket: who may write to it may connect."
    )

    @property
    def place(self) -> Place:
        """Where it listens."""
        return place(self.url)


class NamespaceSettings(_Table):
    """What holds for the object URLs that a pattern matches. The first namespace that matches a URL decides."""

    match: Annotated[str, AfterValidator(_url_pattern)] = Field(
        description="Pattern of object URLs: literal segments, `*` one segment, `**` the rest, `{client}` the name of the"
        " client that asks. With `{client}` everyone creates objects below the own name only.",
        examples=["ctxt://home.local/kitchen/**"],
    )
    schema_name: Annotated[str, AfterValidator(_schema_name)] = Field(
        default="Context",
        alias="schema",
        description="Schema of objects that a first report creates: a name or a catalogue URL.",
    )
    report: Entries = Field(
        default=(),
        description='Who may create objects here by reporting: client names, "@NAME" for a group, "*" for every'
        " authenticated client. An object keeps its Reporter whatever this says later.",
    )
    observe: Entries = Field(default=(), description="Who may observe every object here, written as for `report`.")
    execute: Entries = Field(default=(), description="Who may ask the Reporters to act, written as for `report`.")
    value_view: StrictBool = Field(
        default=False, description="Whether a flat copy of the values is published on value/OBJECT, for dashboards."
    )
    stale_after: SecondsOrNone = Field(
        default=None,
        ge=0.1,
        le=366 * 86400,
        description="An object without a report for this long becomes `stale`. Left out: never.",
        examples=["10m"],
    )
    public: StrictBool = Field(
        default=False, description="Whether a Reporter may open an object of its own to every authenticated client."
    )
    ask: Entries = Field(
        default=("*",),
        description="Who may ask a Reporter to observe an object that is not open to them, written as for `report`; to others it does not exist.",
    )
    moderate: StrictBool = Field(
        default=True, description="Whether the Reporter of an object may delete the children that others have added."
    )
    qos: Annotated[Literal[0, 1], BeforeValidator(_quality)] = Field(
        default=1, description="QoS of snapshots and deltas: 1, or 0 where only the latest matters."
    )


class TopicSettings(_Table):
    """Opens topics that are not the gateway's own, for example a device's dialect. What no rule opens stays closed."""

    topic_filter: Annotated[str, AfterValidator(_topic_filter)] = Field(
        alias="filter",
        description="MQTT topic filter, whole: `topic_prefix` is not put before it; `{client}` is the name of the client that asks. It must not"
        " overlap the gateway's own topics ("
        + ", ".join(f"{verb}/" for verb in sorted(VERBS))
        + ") or begin with "
        + ", ".join(RESERVED)
        + "; other topics that begin with $ are matched only by filters that do.",
        examples=["homeassistant/#"],
    )
    write: Entries = Field(
        default=(),
        description='Who may publish: client names, "@NAME" for a group, "*" for every authenticated client.',
    )
    read: Entries = Field(default=(), description="Who may subscribe, written as for `write`.")


class AdapterSettings(_Table):
    """Devices that speak a dialect of their own: an adapter makes Data Objects of what they say, and is their only Reporter."""

    kind: Annotated[str, AfterValidator(_adapter_type)] = Field(
        alias="type",
        description="The dialect: `ctxt adapter ls` lists them.",
        examples=["tasmota"],
    )
    name: Annotated[str, AfterValidator(_adapter_name)] = Field(
        default="",
        description="Name of this adapter, another for each: its objects' Reporter is adapter:NAME. Left out: its type.",
    )
    base: Annotated[str, AfterValidator(_adapter_base)] = Field(
        default="",
        description="Object URL below which its objects are; no client can report there. Left out: ctxt://home.local/NAME.",
    )
    clients: Entries = Field(
        default=(),
        description='The devices: who may publish what the adapter reads, and subscribe to what it sends. Client names, "@NAME" for a group,'
        ' "*" for every authenticated client.',
    )
    observe: Entries = Field(default=(), description="Who may observe its objects, written as for `clients`.")
    execute: Entries = Field(default=(), description="Who may ask its devices to act, written as for `clients`.")
    value_view: StrictBool = Field(
        default=False, description="Whether a flat copy of the values is published on value/OBJECT, for dashboards."
    )
    stale_after: SecondsOrNone = Field(
        default=None,
        ge=0.1,
        le=366 * 86400,
        description="A device that says nothing for this long becomes `stale`. Left out: never.",
        examples=["2h"],
    )
    accept: tuple[str, ...] = Field(
        default=("*",),
        description="Ids of devices that become objects, with * and ? for any characters. An empty list: none; devices that nobody has named"
        " are left out and counted.",
    )
    max_devices: StrictInt = Field(default=5_000, ge=1, le=100_000, description="Devices at most; more are counted.")
    fahrenheit: Literal["convert", "keep"] = Field(
        default="convert", description="Whether temperatures in degrees Fahrenheit become degrees Celsius."
    )
    min_interval: Mapping[str, Seconds] = Field(
        default_factory=dict,
        examples=[{"illuminance": 30}],
        description="Least time between two changes of a quantity, QUANTITY = DURATION; what comes sooner waits, and the last value is never lost.",
    )
    min_change: Mapping[str, float] = Field(
        default_factory=dict,
        examples=[{"temperature": 0.2}],
        description="Least change of a quantity that goes out at once, QUANTITY = NUMBER in its unit; a smaller one waits for `max_interval`.",
    )
    max_interval: Seconds = Field(
        default=300.0, ge=0.1, le=86400, description="After this time a change below `min_change` goes out too."
    )
    options: Mapping[str, Any] = Field(
        default_factory=dict,
        description="What the dialect itself needs to know: `ctxt adapter show TYPE`, docs/adapters/.",
    )

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or self.kind

    @property
    def place(self) -> str:
        """The object URL below which its objects are."""
        return self.base or f"ctxt://home.local/{self.called}"


class LimitSettings(_Table):
    """What a client may send and own. What goes beyond is refused and counted."""

    payload_bytes: Bytes = Field(
        default=64 * KIB, ge=64, le=64 * MIB, description="The largest payload of a report or a request."
    )
    depth: StrictInt = Field(
        default=32, ge=2, le=200, description="How deep the JSON of a payload or an object may be nested."
    )
    patch_operations: StrictInt = Field(default=1000, ge=1, le=100_000, description="Operations in one JSON Patch.")
    data_bytes: Bytes = Field(
        default=64 * KIB, ge=64, le=64 * MIB, description="The size of one object's data, as JSON."
    )
    objects: StrictInt = Field(default=1_000_000, ge=1, le=100_000_000, description="Objects in this gateway.")
    objects_per_client: StrictInt = Field(default=10_000, ge=1, le=100_000_000, description="Objects of one Reporter.")
    bytes_per_client: Bytes = Field(
        default=64 * MIB, ge=1 * KIB, le=1024 * 1024 * MIB, description="Bytes of all the objects of one Reporter."
    )
    children_per_collection: StrictInt = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Children in one collection of an object, counted for each Reporter.",
    )
    children_when_full: Literal["refuse", "oldest"] = Field(
        default="refuse",
        description="What happens to one child more: it is refused, or the oldest one of the same Reporter is deleted.",
    )
    grants_per_object: StrictInt = Field(
        default=1_000,
        ge=0,
        le=100_000,
        description="Clients that may be granted one object, beside those whom its namespace lists.",
    )
    creations_per_minute: StrictInt = Field(
        default=600, ge=1, le=10_000_000, description="Objects that one client may create a minute."
    )
    reports_per_second: StrictInt = Field(
        default=5000, ge=1, le=10_000_000, description="Reports of one client a second, in the long run."
    )
    report_burst: StrictInt = Field(default=20_000, ge=1, le=100_000_000, description="Reports of one client at once.")
    requests_per_second: StrictInt = Field(
        default=50, ge=1, le=1_000_000, description="Requests of one client a second, in the long run."
    )
    request_burst: StrictInt = Field(default=200, ge=1, le=10_000_000, description="Requests of one client at once.")
    rejections_per_second: StrictInt = Field(
        default=5,
        ge=1,
        le=1_000_000,
        description="Messages a second about refused reports that one client gets; the rest is counted.",
    )
    rejection_burst: StrictInt = Field(
        default=20, ge=1, le=1_000_000, description="Messages about refused reports at once."
    )
    pending_per_sender: StrictInt = Field(
        default=10,
        ge=1,
        le=100_000,
        description="Subscriptions, invitations and delegations of one client in one inbox.",
    )
    pending_per_receiver: StrictInt = Field(
        default=100, ge=1, le=100_000, description="Subscriptions, invitations and delegations in one inbox."
    )
    pending_sent: StrictInt = Field(default=1000, ge=1, le=1_000_000, description="Those of one client in all inboxes.")
    actions_per_sender: StrictInt = Field(
        default=100, ge=1, le=100_000, description="Actions of one client whose answers are awaited."
    )
    actions_per_receiver: StrictInt = Field(
        default=1000, ge=1, le=1_000_000, description="Actions that one Reporter has not answered yet."
    )
    deduplication_ids: StrictInt = Field(
        default=256,
        ge=0,
        le=65536,
        description="Report ids remembered for each client, so that a repeated report is applied once.",
    )


class TimingSettings(_Table):
    """When things that are not asked for happen."""

    snapshot_interval: Seconds = Field(
        default=0.1,
        ge=0,
        le=60,
        description="A changed object's snapshot follows its deltas within this time; load stretches it.",
    )
    snapshot_max: Seconds = Field(
        default=2.0, ge=0, le=600, description="How far load may stretch `snapshot_interval`."
    )
    offline_grace: Seconds = Field(
        default=5.0,
        ge=0,
        le=86400,
        description="How long a lost client may be away until its objects are `disconnected`.",
    )
    tombstone_ttl: Seconds = Field(
        default=86400.0,
        ge=1,
        le=3660 * 86400,
        description="How long a deleted object's URL stays closed and its deletion visible.",
    )
    pending_ttl: Seconds = Field(
        default=86400.0,
        ge=1,
        le=366 * 86400,
        description="How long a subscription, an invitation or a delegation waits for a decision.",
    )
    action_timeout: Seconds = Field(
        default=10.0, ge=0.1, le=300, description="How long an `execute` waits for its answer unless it says otherwise."
    )
    status_pace: StrictInt = Field(
        default=500,
        ge=1,
        le=1_000_000,
        description="Status deltas per 100 ms when many objects change their status at once.",
    )
    announce_interval: Seconds = Field(
        default=1.0, ge=0.1, le=60, description="How often the retained gateway/ID is renewed at most."
    )


class LogSettings(_Table):
    """The log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe level that is logged."
    )
    format: Literal["text", "json"] = Field(default="text", description="Lines for people, or one JSON object a line.")


def _default_namespaces() -> tuple[NamespaceSettings, ...]:
    return (NamespaceSettings(match="ctxt://home.local/{client}/**", schema="Context", report=("*",), observe=("*",)),)


class Settings(BaseSettings):
    """Everything that can be set, checked and frozen. `load` reads it; calling the class gives the defaults."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX, env_nested_delimiter="__")

    id: Annotated[str, AfterValidator(_gateway_id)] = Field(
        default="gateway1",
        description="Name of this gateway in gateway/ID; no other gateway on the same topics may have it.",
    )
    number: StrictInt = Field(
        default=1,
        ge=0,
        le=255,
        description="Number of this gateway, different from that of every other; low byte of its epochs.",
    )
    state_dir: Folder = Field(
        default_factory=lambda: default_state_dir(os.environ),
        description="Folder of the database and the clients' password hashes. Left out: $STATE_DIRECTORY (systemd sets it),"
        f" else $XDG_STATE_HOME/ctxt-gateway, else {EXAMPLE_STATE_DIR}.",
        examples=[EXAMPLE_STATE_DIR],
    )
    topic_prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="",
        description='Topic levels in front of all the gateway\'s topics, for example "site1"; empty for none.',
    )
    durability: Literal["process", "power"] = Field(
        default="process",
        description="What an acknowledged report survives: `process` the end of the process at any moment (a power cut may lose"
        " the last seconds, and the epoch shows it), `power` a power cut too, at the price of a full disk sync for each batch.",
    )
    schemas: tuple[Folder, ...] = Field(
        default=(), description="Folders with JSON Schemas of your own, one a file, beside the shipped ones."
    )
    watch: StrictBool = Field(
        default=False,
        description="Whether to read this file again when it has changed; else only at SIGHUP and `ctxt reload`.",
    )
    broker: BrokerSettings = Field(default_factory=BrokerSettings)
    link: LinkSettings = Field(default_factory=LinkSettings)
    acl: AclSettings = Field(default_factory=AclSettings)
    mosquitto: MosquittoSettings = Field(default_factory=MosquittoSettings)
    tokens: TokenSettings = Field(default_factory=TokenSettings)
    nats: NatsSettings = Field(default_factory=NatsSettings)
    web: WebSettings = Field(default_factory=WebSettings)
    authority: AuthoritySettings = Field(default_factory=AuthoritySettings)
    listener: tuple[ListenerSettings, ...] = Field(default=())
    groups: Annotated[Mapping[GroupName, tuple[ClientName, ...]], AfterValidator(MappingProxyType)] = Field(
        default_factory=lambda: MappingProxyType({}),
        description='Groups of clients, NAME = [CLIENT, …]; lists of clients name them as "@NAME".',
    )
    namespace: tuple[NamespaceSettings, ...] = Field(default_factory=_default_namespaces)
    topic: tuple[TopicSettings, ...] = Field(default=())
    adapter: tuple[AdapterSettings, ...] = Field(default=())
    limits: LimitSettings = Field(default_factory=LimitSettings)
    timing: TimingSettings = Field(default_factory=TimingSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings' signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed in: `load` reads file and environment itself, to report the problems of both at once by place."""
        return (init_settings,)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, raw: Any) -> Any:
        """Where there are listeners, the one that `[broker] url` stands for is there only if it is asked for."""
        if isinstance(raw, dict) and raw.get("listener"):
            broker = raw.get("broker", {})
            if isinstance(broker, dict) and "url" not in broker:
                return {**raw, "broker": {**broker, "url": NOWHERE}}
        return raw

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = list(_conflicts(_plain(self)))
        if problems:
            raise PydanticCustomError("conflict", "\n".join(map(str, problems)))
        return self


# Reading --------------------------------------------------------------------------------------------------------------


def nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key that `key` was most likely meant to be, or None. Case does not matter."""
    by_fold: dict[str, str] = {}
    for name in known:
        by_fold.setdefault(name.casefold(), name)
    found = get_close_matches(key[:200].casefold(), by_fold, n=1, cutoff=0.6)
    return by_fold[found[0]] if found else None


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of `environ` over those of the file (None: no file) over the defaults.

    Relative paths in the file count from the file's own folder. Raises SettingsError with every problem of both sources.
    """
    problems: list[Problem] = []
    raw = {} if path is None else _read_file(path, problems)
    origins = _merge_environment(raw, environ, problems)
    if "state_dir" not in raw:
        try:
            raw["state_dir"] = str(default_state_dir(environ))
        except RuntimeError:
            problems.append(Problem("state_dir", "there is no home folder to put it in: set CTXT_STATE_DIR"))
            raw["state_dir"] = "/"
    # A key that is no identifier could reach pydantic-settings' own keyword arguments.
    for key in [key for key in raw if key not in _keys(Settings)]:
        del raw[key]
        problems.append(_unknown((key,), Settings))
    settings = None
    try:
        settings = Settings(**raw)
    except ValidationError as error:
        conflicts = list(_conflicts(raw))
        problems += (
            _problem(detail, origins)
            for detail in error.errors(include_url=False)
            if detail["type"] != "conflict" or not conflicts
        )
        problems += conflicts
    if problems or settings is None:
        raise SettingsError(problems, path)
    return settings


def _read_file(path: Path, problems: list[Problem]) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}"))
        return {}
    if len(content) > MAX_FILE_BYTES:
        problems.append(Problem(str(path), f"is larger than {MAX_FILE_BYTES:,} bytes: this is no settings file"))
        return {}
    try:
        text = content.decode()
        raw = tomllib.loads(text)
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - (before.rfind(b"\n") + 1) + 1
        problems.append(Problem(f"{path}:{line}:{column}", "is not UTF-8: save the file as UTF-8"))
        return {}
    except tomllib.TOMLDecodeError as error:
        problems.append(_syntax(path, str(error), content.decode()))
        return {}
    except RecursionError:
        problems.append(Problem(str(path), "is nested too deep: this is no settings file"))
        return {}
    folder = path.absolute().parent
    if isinstance(raw.get("state_dir"), str):
        raw["state_dir"] = _anchored(raw["state_dir"], folder)
    if isinstance(raw.get("schemas"), list):
        raw["schemas"] = [_anchored(item, folder) if isinstance(item, str) else item for item in raw["schemas"]]
    files: list[tuple[Any, tuple[str, ...]]] = [(raw.get("tokens"), ("jwks", "key_file"))]
    files += ((table, ("certificate", "key", "ca")) for _, table in _raw_tables(raw, "listener"))
    for table, keys in files:
        for key in keys:
            if isinstance(table, dict) and isinstance(table.get(key), str):
                table[key] = _anchored(table[key], folder)
    return raw


def _syntax(path: Path, message: str, text: str) -> Problem:
    found = _TOML_PLACE.search(message)
    if found and found[1]:
        line, column = found[1], found[2]
    else:
        lines = text.split("\n")
        line, column = str(len(lines)), str(len(lines[-1]) + 1)
    reason = message[: found.start()] if found else message
    return Problem(f"{path}:{line}:{column}", f"is not TOML: {reason}")


def _anchored(text: str, folder: Path) -> str:
    return text if not text or text.startswith("~") else str(folder / text)


def _merge_environment(
    raw: dict[str, Any], environ: Mapping[str, str], problems: list[Problem]
) -> dict[tuple[str, ...], str]:
    """Put what the environment sets over `raw`; what came from which variable."""
    variables = _variables()
    origins: dict[tuple[str, ...], str] = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in RESERVED_VARIABLES:
            continue
        group = name.removeprefix("CTXT_GROUPS__")
        if group not in (name, ""):
            place: tuple[str, ...] = ("groups", group)
            kind: Any = list
        elif name in variables:
            place, kind = variables[name]
        else:
            known = [*variables, *RESERVED_VARIABLES]
            problems.append(Problem(name, "is no setting and no variable of `ctxt`", nearest(name, known)))
            continue
        try:
            value = _from_text(kind, environ[name])
        except orjson.JSONDecodeError:
            form = '{"NAME": ["CLIENT"]}' if place == ("groups",) else '["…"]' if len(place) > 1 else "[…]"
            problems.append(Problem(name, f"is not JSON: write {form}"))
            continue
        table = raw
        for key in place[:-1]:
            # A section that is no table in the file is reported by the validation, with its place.
            below = table.setdefault(key, {})
            if not isinstance(below, dict):
                break
            table = below
        else:
            table[place[-1]] = value
            origins[place] = name
    return origins


def _from_text(kind: Any, text: str) -> Any:
    """What TOML would have given. What cannot be converted stays a text, and the validation says what it should be."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if kind is int or (get_origin(kind) is Literal and isinstance(get_args(kind)[0], int)):
        return int(text) if re.fullmatch(r"-?\d[\d_]{0,18}", text, re.ASCII) and text[-1] != "_" else text
    if kind is list or get_origin(kind) in (tuple, Mapping):
        return orjson.loads(text)
    return text


@cache
def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _table_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a `[table]`."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _tables_of(info: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is an array of `[[tables]]`."""
    if get_origin(info.annotation) is tuple:
        kind = get_args(info.annotation)[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


@cache
def _variables() -> dict[str, tuple[tuple[str, ...], Any]]:
    """Of each environment name its place and its kind."""
    found: dict[str, tuple[tuple[str, ...], Any]] = {}
    for key, info in _keys(Settings).items():
        table = _table_of(info)
        if table is None:
            found[_variable(key)] = ((key,), info.annotation)
        else:
            for below, member in _keys(table).items():
                found[_variable(key, below)] = ((key, below), member.annotation)
    return found


def _variable(*place: str) -> str:
    return PREFIX + "__".join(place).upper()


# Problems -------------------------------------------------------------------------------------------------------------


def _field_at(loc: Sequence[int | str]) -> tuple[type[BaseModel], FieldInfo | None]:
    """The field that a place is in or at, and the model that it belongs to."""
    model: type[BaseModel] = Settings
    info: FieldInfo | None = None
    for step in loc:
        if isinstance(step, int):
            continue
        info = _keys(model).get(step)
        if info is None:
            break
        below = _table_of(info) or _tables_of(info)
        if below is None:
            break
        model = below
    return model, info


def _dotted(loc: Iterable[int | str]) -> str:
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        elif step != "[key]":
            text += ("." if text else "") + (step if _NAME.fullmatch(step) else orjson.dumps(step[:80]).decode())
    return text


def _unknown(loc: tuple[int | str, ...], model: type[BaseModel]) -> Problem:
    key = str(loc[-1])
    elsewhere = [
        _variable_place(place) for place, _ in _variables().values() if place[-1] == key and place != tuple(loc)
    ]
    return Problem(_dotted(loc), "unknown key", elsewhere[0] if elsewhere else nearest(key, _keys(model)))


def _variable_place(place: tuple[str, ...]) -> str:
    if len(place) == 1:
        return f"{place[0]} at the top of the file, before the first [section]"
    return f"{place[1]} in [{place[0]}]"


def _problem(detail: ErrorDetails, origins: Mapping[tuple[str, ...], str]) -> Problem:
    loc = detail["loc"]
    model, info = _field_at(loc)
    if detail["type"] == "extra_forbidden":
        return _unknown(loc, model)
    place = _dotted(loc)
    for end in range(len(loc), 0, -1):
        variable = origins.get(tuple(str(step) for step in loc[:end]))
        if variable is not None:
            rest = _dotted(loc[end:])
            place = variable + (("" if rest.startswith("[") else ".") + rest if rest else "")
            break
    return Problem(place, _reason(detail, info), _meant(detail))


def _reason(detail: ErrorDetails, info: FieldInfo | None) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    unit = _unit(info) if info is not None else None
    if kind == "value_error":
        return _masked(str(context["error"]))
    if kind == "greater_than_equal":
        return f"must be at least {_human(context['ge'], unit)}"
    if kind == "less_than_equal":
        return f"must be at most {_human(context['le'], unit)}"
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        return f"must be {context['expected']}"
    return {
        "bool_type": "must be true or false",
        "int_type": "must be a whole number",
        "finite_number": "must be a finite number",
        "string_type": "must be a text in quotes",
        "path_type": "must be a path in quotes",
        "tuple_type": "must be a list: [ … ]",
        "dict_type": "must be a table",
        "model_type": "must be a table",
        "model_attributes_type": "must be a table",
    }.get(kind, _masked(detail["msg"]))


def _meant(detail: ErrorDetails) -> str | None:
    given = detail.get("input")
    if detail["type"] == "literal_error" and isinstance(given, str):
        return nearest(given, re.findall(r"'([^']+)'", detail.get("ctx", {}).get("expected", "")))
    return None


def _masked(text: str) -> str:
    return _USERINFO.sub("://****@", text)


def _conflicts(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What single values cannot show. Takes unchecked settings too, and leaves to the models what they find."""
    groups = raw.get("groups", {})
    if isinstance(groups, dict):
        lists = [("namespace", key) for key in ("report", "observe", "execute")]
        lists += [("topic", key) for key in ("write", "read")]
        lists += [("adapter", key) for key in ("clients", "observe", "execute")]
        for section, key in lists:
            for i, table in _raw_tables(raw, section):
                entries = table.get(key)
                for j, entry in enumerate(entries if isinstance(entries, list) else ()):
                    if isinstance(entry, str) and entry.startswith("@") and entry[1:] not in groups:
                        near = nearest(entry[1:], groups)
                        yield Problem(
                            f"{section}[{i}].{key}[{j}]",
                            f"there is no group {entry[1:][:80]!r} in [groups]",
                            f'"@{near}"' if near else None,
                        )
        broker = raw.get("broker", {})
        entries = broker.get("sys_read") if isinstance(broker, dict) else None
        for j, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, str) and entry.startswith("@") and entry[1:] not in groups:
                near = nearest(entry[1:], groups)
                yield Problem(
                    f"broker.sys_read[{j}]",
                    f"there is no group {entry[1:][:80]!r} in [groups]",
                    f'"@{near}"' if near else None,
                )
    prefix = raw.get("topic_prefix", "")
    head = f"{prefix}/" if isinstance(prefix, str) and prefix else ""
    for i, table in _raw_tables(raw, "topic"):
        wanted = table.get("filter")
        if not isinstance(wanted, str) or not valid_filter(wanted.replace("{client}", "x")):
            continue
        verbs = [verb for verb in sorted(VERBS) if _reaches(wanted, f"{head}{verb}/#")]
        if verbs:
            yield Problem(
                f"topic[{i}].filter",
                f"overlaps the gateway's own topics {', '.join(f'{head}{verb}/' for verb in verbs)}:"
                " [[namespace]] says who reports and observes, [[topic]] opens other topics",
            )
    broker = raw.get("broker", {})
    if isinstance(broker, dict) and broker.get("anonymous") is True:
        where = _attempt(listener, broker.get("url", "embedded://127.0.0.1"))
        if where is not None and not where.loopback:
            yield Problem(
                "broker.anonymous",
                f"clients without a name are admitted on loopback only, and the broker listens on {where.host}:"
                ' set anonymous = false, or url = "embedded://127.0.0.1:1883"',
            )
    if isinstance(broker, dict) and broker.get("url") == NOWHERE and not raw.get("listener"):
        yield Problem(
            "broker.url", "is none and there is no [[listener]], so nobody can connect: add one, or leave it out"
        )
    yield from _listener_conflicts(raw)
    yield from _link_conflicts(raw)
    yield from _token_conflicts(raw)
    timing = raw.get("timing", {})
    if isinstance(timing, dict):
        defaults = TimingSettings()
        least = _attempt(duration, timing.get("snapshot_interval", defaults.snapshot_interval))
        most = _attempt(duration, timing.get("snapshot_max", defaults.snapshot_max))
        if least is not None and most is not None and most < least:
            yield Problem("timing.snapshot_max", f"must be at least timing.snapshot_interval ({duration_text(least)})")


def _link_conflicts(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What goes with a broker outside, and what does not."""
    broker, link = raw.get("broker", {}), raw.get("link", {})
    if not isinstance(broker, dict) or not isinstance(link, dict):
        return
    url = broker.get("url", "embedded://127.0.0.1:1883")
    if not isinstance(url, str) or not _outside(url):
        return
    if raw.get("listener"):
        yield Problem("listener", "broker.url is a broker outside, and clients connect there: remove the [[listener]]s")
    if broker.get("anonymous") is True:
        yield Problem("broker.anonymous", "whom a broker outside admits is said in its own settings: remove it")
    if link.get("password_file") is not None and not link.get("username"):
        yield Problem("link.password_file", "has no effect without link.username: set both")
    if link.get("key") is not None and link.get("certificate") is None:
        yield Problem("link.key", "belongs to link.certificate: set both")
    where = _attempt(place, url)
    if where is not None and not where.encrypted:
        for key in ("ca", "certificate", "key", "server_name"):
            if link.get(key) not in (None, ""):
                yield Problem(f"link.{key}", f"{where.scheme}:// speaks no TLS: remove it, or use mqtts:// or wss://")


def _token_conflicts(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What `[tokens]` cannot be."""
    tokens, broker = raw.get("tokens", {}), raw.get("broker", {})
    if not isinstance(tokens, dict):
        return
    if tokens.get("jwks") is not None and tokens.get("key_file") is not None:
        yield Problem(
            "tokens.key_file", "there is tokens.jwks too: tokens are checked with the one or the other, remove one"
        )
    if tokens.get("jwks") is not None:
        # Who issues tokens for many would else let in whoever holds one of them (RFC 8725 section 3.9).
        for key in ("issuer", "audience"):
            if not tokens.get(key):
                yield Problem(
                    f"tokens.{key}", "is missing: with public keys, the issuer's tokens for others are to be refused"
                )
    elif tokens.get("key_file") is None and any(
        value != getattr(TokenSettings(), key, value)
        for key, value in tokens.items()
        if key not in ("leeway", "lifetime_max")
    ):
        yield Problem("tokens", "has no effect without jwks or key_file: name one of them")
    url = broker.get("url", "") if isinstance(broker, dict) else ""
    acl = raw.get("acl", {})
    plugin = acl.get("plugin", "none") if isinstance(acl, dict) else "none"
    if (
        (tokens.get("jwks") or tokens.get("key_file"))
        and isinstance(url, str)
        and _outside(url)
        and plugin in ("none", "mosquitto", "nats")
    ):
        yield Problem(
            "tokens",
            "clients log in to a broker outside, and that does not ask the gateway about tokens: remove the section, or see"
            ' acl.plugin = "http"',
        )


def _listener_conflicts(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """What the parts of one listener, and listeners together, cannot be."""
    seen: set[Place] = set()
    for i, table in _raw_tables(raw, "listener"):
        at = f"listener[{i}]"
        where = _attempt(place, table.get("url"))
        if where is None:
            continue
        if where in seen and (where.port or where.scheme == "unix"):
            yield Problem(f"{at}.url", "is there already: give each [[listener]] an address of its own")
        seen.add(where)
        if table.get("anonymous") is True and not where.local:
            yield Problem(
                f"{at}.anonymous",
                f"clients without a name are admitted on loopback and Unix sockets only, and this listens on {where.host}:"
                " set anonymous = false, or let it listen on 127.0.0.1",
            )
        if where.encrypted and table.get("certificate") is None:
            yield Problem(f"{at}.certificate", f"is missing: {where.scheme}:// needs a certificate")
        for key in ("certificate", "key", "ca"):
            if not where.encrypted and table.get(key) is not None:
                yield Problem(f"{at}.{key}", f"{where.scheme}:// speaks no TLS: remove it, or use mqtts:// or wss://")
        for key in ("require_certificate", "use_certificate_name"):
            if table.get(key) is True and table.get("ca") is None:
                yield Problem(f"{at}.{key}", "client certificates are checked against ca: set it too")
        if table.get("certificate_clients") == "any" and table.get("use_certificate_name") is not True:
            yield Problem(f"{at}.certificate_clients", "has no effect without use_certificate_name = true: set both")
        if table.get("origins") and where.scheme not in ("ws", "wss"):
            yield Problem(f"{at}.origins", f"web pages do not speak {where.scheme}://: remove it")
        if table.get("mode", "0660") != "0660" and where.scheme != "unix":
            yield Problem(f"{at}.mode", "is for unix:// only: remove it")


def _reaches(wanted: str, own: str) -> bool:
    """Whether a rule's filter overlaps `own` for some client. A client may have any name, a verb's too."""
    levels = wanted.split("/")
    for i, (level, target) in enumerate(zip(levels, own.split("/"), strict=False)):
        if "{client}" in level:
            form = _NAME.pattern.join(map(re.escape, level.split("{client}")))
            if target == "#" or re.fullmatch(form, target):
                levels[i] = "+"
    return overlaps("/".join(levels), own)


def _raw_tables(raw: Mapping[str, Any], section: str) -> Iterator[tuple[int, dict[str, Any]]]:
    tables = raw.get(section, ())
    for i, table in enumerate(tables if isinstance(tables, list) else ()):
        if isinstance(table, dict):
            yield i, table


def _attempt(read: Callable[[Any], _T], value: object) -> _T | None:
    try:
        return read(value)
    except (ValueError, AttributeError):
        return None


def warnings(settings: Settings) -> list[str]:
    """What is allowed and most likely not meant; each a sentence that says where, what and what to do."""
    found: list[str] = []
    if not settings.namespace:
        found.append("namespace: there is none, so nobody can create an object: add a [[namespace]]")
    patterns = [_anyone(namespace.match) for namespace in settings.namespace]
    for i, namespace in enumerate(settings.namespace):
        place = f"namespace[{i}]"
        if "*" in namespace.report and "{client}" not in namespace.match:
            found.append(
                f'{place}.report: "*" without {{client}} in match lets every client take any URL in {namespace.match}'
                " before its rightful Reporter does: put {client} into match, or name the Reporters"
            )
        earlier = next((j for j in range(i) if patterns[j].covers(patterns[i])), None)
        if earlier is not None:
            found.append(
                f"{place}.match: {namespace.match} is never reached, because namespace[{earlier}]"
                f" ({settings.namespace[earlier].match}) matches all of it first: move it up"
            )
    named = list(_named(settings))
    used = {entry[1:] for _, entry in named if entry.startswith("@")}
    found += (
        f'groups.{group}: is used nowhere: name it as "@{group}" in a list of clients, or remove it'
        for group in settings.groups
        if group not in used
    )
    broker = settings.broker
    # On a Unix socket its mode says who.
    open_to_all = [f"listener[{i}].anonymous" for i, each in enumerate(settings.listener) if each.anonymous]
    if broker.anonymous and broker.listener is not None:
        open_to_all.insert(0, "broker.anonymous")
    found += (f"{where}: every program on this machine can connect without a password" for where in open_to_all)
    if not open_to_all:
        found += (
            f'{place}: names "{ANONYMOUS}", but broker.anonymous is off: nobody can connect under this name'
            for place, entry in named
            if entry == ANONYMOUS
        )
    outside = broker.outside
    if outside is not None and not outside.local and not outside.encrypted:
        found.append(
            f"broker.url: what goes to {outside.host} and comes from there, the gateway's password too, crosses the network"
            " unencrypted: use mqtts:// or wss://"
        )
    if outside is not None and settings.acl.plugin == AclSettings().plugin:
        found += (
            f"namespace[{i}].observe: who may read is up to the broker's own access rules, and those of config/mosquitto let"
            " every client read every object: name an ACL plugin in acl.plugin"
            for i, namespace in enumerate(settings.namespace)
            if tuple(namespace.observe) != ("*",)
        )
    if outside is None and settings.link != LinkSettings():
        found.append("link: has no effect with the broker inside: set broker.url to a broker outside, or remove it")
    if outside is None and settings.acl != AclSettings():
        found.append("acl: has no effect with the broker inside, which asks for itself: remove it")
    for plugin, table, given, default in (
        ("mosquitto", "mosquitto", settings.mosquitto, MosquittoSettings()),
        ("http", "authority", settings.authority, AuthoritySettings()),
        ("nats", "nats", settings.nats, NatsSettings()),
    ):
        if settings.acl.plugin != plugin and given != default:
            found.append(f'{table}: is for the ACL plugin {plugin}: set acl.plugin = "{plugin}", or remove it')
    reachable = [(f"listener[{i}].url", each.place) for i, each in enumerate(settings.listener)]
    if broker.listener is not None:
        reachable.insert(0, ("broker.url", Place("mqtt", *broker.listener, "")))
    found += (
        f"{at}: {where.host} can be reached from the network, and passwords and data cross it unencrypted:"
        " admit trusted networks only"
        for at, where in reachable
        if not where.local and not where.encrypted
    )
    # A topic of the gateway's has a verb, the client's name and an object URL of up to 1,024 bytes.
    if settings.limits.payload_bytes + 1280 > broker.packet_bytes:
        found.append(
            "limits.payload_bytes: broker.packet_bytes refuses packets before this limit is reached:"
            " leave 1,280 bytes for the topic"
        )
    if broker.queue_bytes < broker.packet_bytes:
        found.append(
            "broker.queue_bytes: is smaller than broker.packet_bytes, so the largest packets can never be delivered"
        )
    return found


def _anyone(match: str) -> Pattern:
    """All the objects that a pattern matches, whichever client is its `{client}`: what decides to which namespace a URL belongs."""
    return Pattern.parse(match.replace("{client}", "*"))


def _named(settings: Settings) -> Iterator[tuple[str, str]]:
    """Each entry of each list of clients, with its place."""
    for j, entry in enumerate(settings.broker.sys_read):
        yield f"broker.sys_read[{j}]", entry
    for i, namespace in enumerate(settings.namespace):
        for key in ("report", "observe", "execute"):
            for j, entry in enumerate(getattr(namespace, key)):
                yield f"namespace[{i}].{key}[{j}]", entry
    for i, rule in enumerate(settings.topic):
        for key in ("write", "read"):
            for j, entry in enumerate(getattr(rule, key)):
                yield f"topic[{i}].{key}[{j}]", entry


# Writing --------------------------------------------------------------------------------------------------------------


def duration_text(seconds: float) -> str:
    """The shortest exact text that `duration` reads back: 0.1 is "100ms", 86400 is "24h"."""
    for unit in ("h", "m", "s"):
        whole, rest = divmod(seconds, _SECONDS[unit])
        if not rest and (whole or unit == "s"):
            return f"{whole:.0f}{unit}"
    milliseconds = round(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds / 1000 == seconds else f"{seconds!r}s"


def size_text(number: int) -> str:
    """The shortest exact text that `size` reads back: 65536 is "64KiB"."""
    for unit in ("GiB", "MiB", "KiB"):
        whole, rest = divmod(number, _BYTES[unit])
        if whole and not rest:
            return f"{whole}{unit}"
    return f"{number}B"


def _unit(info: FieldInfo) -> str | None:
    return next((item.name for item in info.metadata if isinstance(item, Unit)), None)


def _human(value: Any, unit: str | None) -> str:
    if unit == "duration":
        return duration_text(value)
    if unit == "size":
        return size_text(value)
    return f"{value:,}"


def _toml(value: Any, unit: str | None = None) -> str:
    """A TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if unit is not None:
        return f'"{_human(value, unit)}"'
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Mapping):
        inner = ", ".join(
            f"{key if _NAME.fullmatch(key) else _toml(key)} = {_toml(item)}" for key, item in value.items()
        )
        return f"{{ {inner} }}" if inner else "{}"
    # TOML escapes strings as JSON does, and DEL too.
    return orjson.dumps(_masked(str(value))).decode().replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    """JSON's types only: durations are seconds, sizes bytes."""
    if isinstance(value, BaseModel):
        return {info.alias or name: _plain(getattr(value, name)) for name, info in type(value).model_fields.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    return _masked(value) if isinstance(value, str) else value


def show(settings: Settings, json: bool) -> str:
    """The settings in effect, secrets masked: as TOML that `load` reads back, or as JSON (durations in seconds, sizes in bytes)."""
    if json:
        return orjson.dumps(_plain(settings), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
    top: list[str] = []
    sections: list[str] = []
    for key, info in _keys(Settings).items():
        value = getattr(settings, key)
        if _table_of(info):
            sections += ["", f"[{key}]", *_members(value)]
        elif _tables_of(info):
            for table in value:
                sections += ["", f"[[{key}]]", *_members(table)]
            if not value:
                top.append(f"{key} = []")
        elif isinstance(value, MappingProxyType):
            sections += ["", f"[{key}]", *(f"{name} = {_toml(clients)}" for name, clients in value.items())]
        else:
            top.append(f"{key} = {_toml(value)}")
    return "\n".join([*top, *sections]) + "\n"


def _members(table: BaseModel) -> Iterator[str]:
    for name, info in type(table).model_fields.items():
        value = getattr(table, name)
        if value is not None:
            yield f"{info.alias or name} = {_toml(value, _unit(info))}"


_HEAD = """\
# Settings of the ctxt gateway. Every line that begins with `#` and a name shows a default: remove the `#` and change it.
# `ctxt config check` finds mistakes, `ctxt config show` prints what is in effect, docs/settings.md explains more.
#
# Durations are seconds or texts such as "100ms", "5s", "10m", "24h"; sizes are bytes or texts such as "64KiB", "8MiB".
# Relative paths count from the folder of this file. The environment goes before this file: CTXT_BROKER__URL is `url`
# in [broker]."""

_EXAMPLE_GROUPS: dict[str, tuple[str, ...]] = {"kitchen": ("oven", "fridge")}


@cache
def _examples() -> dict[str, BaseModel]:
    """What `render_default` shows of each array of tables besides the default."""
    return {
        "namespace": NamespaceSettings(
            match="ctxt://home.local/kitchen/**",
            report=("@kitchen",),
            observe=("*",),
            value_view=True,
            stale_after=600.0,
        ),
        "topic": TopicSettings(filter="homeassistant/#", write=("homeassistant",), read=("homeassistant",)),
        "adapter": AdapterSettings(
            type="tasmota",
            min_interval={"illuminance": 30.0},
            min_change={"temperature": 0.2},
            options={"time_zone": "Europe/Lisbon"},
            clients=("tasmota",),
            observe=("*",),
            execute=("@kitchen",),
            value_view=True,
            stale_after=7200.0,
        ),
        "listener": ListenerSettings(
            url="mqtts://[::]:8883",
            certificate=Path("/etc/ctxt-gateway/tls/certificate.pem"),
            key=Path("/etc/ctxt-gateway/tls/key.pem"),
            ca=Path("/etc/ctxt-gateway/tls/ca.pem"),
        ),
    }


def render_default() -> str:
    """The commented `gateway.toml` with every setting and its default."""
    lines = [_HEAD]
    for key, info in _keys(Settings).items():
        table, tables = _table_of(info), _tables_of(info)
        if table:
            lines += ["", "", *_comment(table.__doc__), f"[{key}]"]
            lines += _commented(table, None)
        elif tables:
            # The first that matches decides: the narrower example has to come before the default.
            lines += [
                "",
                "",
                *_comment(f"{tables.__doc__} An example:"),
                f"#[[{key}]]",
                *_commented(tables, _examples()[key]),
            ]
            for default in info.get_default(call_default_factory=True):
                lines += ["", *_comment("Everyone below the own name:"), f"[[{key}]]"]
                lines += (
                    f"{below.alias or name} = {_toml(getattr(default, name), _unit(below))}"
                    for name, below in tables.model_fields.items()
                    if name in default.model_fields_set
                )
        elif key == "groups":
            lines += ["", "", *_comment(info.description), f"[{key}]"]
            lines += (f"#{name} = {_toml(clients)}" for name, clients in _EXAMPLE_GROUPS.items())
        else:
            lines += ["", *_comment(info.description), f"#{key} = {_toml(_default(info))}"]
    return "\n".join(lines) + "\n"


def _commented(model: type[BaseModel], values: BaseModel | None) -> Iterator[str]:
    for name, info in model.model_fields.items():
        value = _default(info) if values is None else getattr(values, name)
        yield ""
        yield from _comment(info.description)
        yield f"#{info.alias or name} = {_toml(value, _unit(info) if not isinstance(value, str) else None)}"


def _comment(text: str | None) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text or "", 110, break_on_hyphens=False, break_long_words=False)]


def _default(info: FieldInfo) -> Any:
    """The default, or the example where there is none that is the same everywhere."""
    if info.examples:
        return info.examples[0]
    return info.get_default(call_default_factory=True)


_REFERENCE = """\
# Settings

`gateway.toml` holds the settings; `config/gateway.toml` is that file with every setting at its default and a comment.
The environment goes before the file, the file before the defaults. A name that no setting has is refused, wherever it
stands, with the nearest known one; `ctxt config check` lists every problem at once and warns about what is allowed but
most likely not meant, and `ctxt config show` prints what is in effect.

- In the environment a setting is `CTXT_` and its name in upper case, with `__` between section and name: `CTXT_LOG__LEVEL`.
  Lists and tables are JSON: `CTXT_SCHEMAS='["/etc/ctxt-gateway/schemas"]'`. One group is `CTXT_GROUPS__kitchen='["oven"]'`.
  `CTXT_CONFIG`, `CTXT_CONNECT` and `CTXT_PASSWORD` belong to the command line and are no settings.
- Durations are seconds (`5`, `0.1`) or texts: `"100ms"`, `"5s"`, `"10m"`, `"24h"`, `"7d"`. Sizes are bytes (`65536`) or texts:
  `"512B"`, `"64KiB"`, `"8MiB"`, `"1GiB"`.
- Relative paths in the file count from the file's own folder, those in the environment from the working folder.
- Lists of clients have names, `"@NAME"` for a group and `"*"` for every authenticated client.

This page is made from the settings' declarations in `gateway/settings.py`."""


def reference() -> str:
    """The reference page `docs/settings.md`: every setting with type, default, bounds, environment name and help."""
    lines = [_REFERENCE, "", "## At the top of the file", "", *_HEADER]
    rest: list[str] = []
    for key, info in _keys(Settings).items():
        table, tables = _table_of(info), _tables_of(info)
        if table:
            rest += ["", f"## `[{key}]`", "", table.__doc__ or "", "", *_HEADER]
            rest += (_row(below, member, _variable(key, below)) for below, member in _keys(table).items())
        elif tables:
            note = f"In the environment the whole list is `{_variable(key)}`, as JSON."
            rest += ["", f"## `[[{key}]]`", "", f"{tables.__doc__} {note}", "", *_HEADER]
            rest += (_row(below, member, None) for below, member in _keys(tables).items())
            defaults = info.get_default(call_default_factory=True)
            rest += ["", "Without any, these are in effect:" if defaults else "There are none by default."]
            for default in defaults:
                rest += ["", "```toml", f"[[{key}]]", *_members(default), "```"]
        elif key == "groups":
            rest += ["", f"## `[{key}]`", "", info.description or "", "", "```toml", f"[{key}]"]
            rest += [*(f"{name} = {_toml(clients)}" for name, clients in _EXAMPLE_GROUPS.items()), "```"]
        else:
            lines.append(_row(key, info, _variable(key)))
    return "\n".join([*lines, *rest]) + "\n"


_HEADER = ("| setting | type | default | help |", "|---|---|---|---|")


def _row(key: str, info: FieldInfo, variable: str | None) -> str:
    unit = _unit(info)
    if info.is_required():
        default = "(required)"
    elif info.default_factory is not None:
        default = "`{}`" if info.default_factory is dict else f"`{info.examples[0]}`" if info.examples else ""
    else:
        default = "(none)" if info.default is None else f"`{_toml(info.default, unit)}`"
    bounds = {name: getattr(item, name) for item in info.metadata for name in ("ge", "le") if hasattr(item, name)}
    kind = _kind(info, unit)
    if "ge" in bounds and "le" in bounds:
        kind += f", {_human(bounds['ge'], unit)} to {_human(bounds['le'], unit)}"
    cells = (f"`{key}`" + (f"<br>`{variable}`" if variable else ""), kind, default, info.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(info: FieldInfo, unit: str | None) -> str:
    kind = info.annotation
    if unit is not None:
        return unit
    if get_origin(kind) is Literal:
        return " or ".join(f"`{_toml(choice)}`" for choice in get_args(kind))
    if kind == Path | None:
        return "file"
    if get_origin(kind) is Mapping:
        return "table"
    if get_origin(kind) is tuple:
        if info.description is not None and info.description.startswith("Ids"):
            return "list of patterns"
        if "_origin" in str(get_args(kind)[0]):
            return "list of origins"
        return (
            "list of folders"
            if get_args(kind)[0] is not str and "Path" in str(get_args(kind)[0])
            else "list of clients"
        )
    return {bool: "true or false", int: "number", str: "text", Path: "folder"}[kind]  # type: ignore[index]
