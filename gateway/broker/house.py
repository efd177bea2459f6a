"""What the broker asks: a `House` decides who is who and who may do what. Limits and addresses are plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.broker.session import Session
    from gateway.wire.packets import Publish


class Peer(NamedTuple):
    """Who is at the other end of a connection; `tls_name` is the common name of a verified client certificate."""

    address: str
    port: int
    loopback: bool
    listener: str
    tls_name: str | None = None


class Login(NamedTuple):
    """Who a client is, and what its connection rests on."""

    client: str
    way: str = "password"
    """How it said who it is: `password`, `certificate`, `token`, or `none`."""
    until: float = 0.0
    """Unix seconds at which the connection ends; 0: it does not end by itself."""
    proof: bytes | None = None
    """The house's own note: what has to stay as it is for the connection to stay."""
    unlisted: bool = False
    """Whether it holds for a client that the house has no list of."""


class Refusal(NamedTuple):
    """Why a client is refused, in the words of the protocol: a reason code of 0x80 or more, and a sentence."""

    reason: int
    text: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the broker; times in seconds. Nothing that a client sends or leaves unread grows beyond them."""

    connect_timeout: float = 10.0
    """How long a connection may take until its CONNECT is complete."""
    max_keep_alive: int = 3600
    """MQTT 5 clients that ask for more, or for none, are given this one [MQTT-3.1.2-21]; 0 = leave it to the client."""
    max_packet: int = 262_144
    inflight: int = 100
    """Unacknowledged messages sent to a 3.1.1 client; MQTT 5 clients say themselves, up to `inflight_max`."""
    inflight_max: int = 1_000
    receive_maximum: int = 1_000
    """Unacknowledged QoS 1 and 2 messages that a client may have sent."""
    queue_messages: int = 10_000
    queue_bytes: int = 8 * 1024 * 1024
    """Bytes waiting for one session; as many may be in flight beside them."""
    queued_bytes: int = 256 * 1024 * 1024
    """Bytes waiting for all sessions together."""
    write_bytes: int = 256 * 1024
    """Bytes handed to one socket and not yet taken by the network before its messages begin to queue."""
    subscriptions: int = 1_000
    filter_bytes: int = 4_096
    client_id_bytes: int = 512
    connections: int = 10_000
    connections_per_client: int = 1_000
    connections_per_address: int = 5_000
    """Sockets from one address (IPv6: from one network of 64 bits); Unix sockets count only in `connections`."""
    sessions: int = 20_000
    """Sessions, those of absent clients included; beyond it the one longest absent is forgotten."""
    session_expiry: int = 86_400
    """Longest time a session is kept for an absent client; 3.1.1 clients with clean session 0 get this one."""
    topic_aliases: int = 32
    retained_messages: int = 10_000
    retained_bytes: int = 64 * 1024 * 1024
    sys_interval: float = 10.0
    """Seconds between two renewals of `$SYS/broker/…`; 0 = never, they are only told to new subscribers."""
    routes: int = 20_000
    """Topics whose subscribers are remembered; when full the table begins anew."""


class House(Protocol):
    """The broker's owner. All but `authenticate` are called on the event loop and must not block it."""

    @property
    def generation(self) -> int:
        """Grows whenever an answer of may_… could have become different: what was remembered under an older one is void."""

    async def authenticate(
        self, username: str | None, password: bytes | None, peer: Peer
    ) -> Login | str | Refusal | None:
        """Who the client is (a name alone: for good); None = refused for name or password; or another reason.

        Whoever comes without a name is judged here too. Nothing that ends a log-in may happen unseen between this answer and `online`.
        """

    def may_publish(self, client: str, topic: str, /) -> bool:
        """Asked at each PUBLISH on a topic not asked about before, and when a will fires."""

    def may_subscribe(self, client: str, topic_filter: str, /) -> bool:
        """Asked for each filter of a SUBSCRIBE."""

    def may_receive(self, client: str, topic: str, /) -> bool:
        """Asked before anything is delivered: live, retained or queued."""

    def owns(self, topic: str, /) -> bool:
        """True: a publish on this topic goes to `receive`; False: to its subscribers."""

    def overhear(self, publish: Publish, /) -> bool:
        """A publish for subscribers: whether the house wants it too, and has taken it."""

    @property
    def receive(self) -> Callable[[list[Publish]], None]:
        """Takes, once per loop turn, every allowed PUBLISH on owned topics, in order of arrival; `origin` is its Session.

        Each with QoS > 0 is to be given to `Broker.acknowledge`, now or later, in that order.
        """

    @property
    def retained(self) -> Callable[[str], Iterator[tuple[str, bytes, int]]]:
        """The retained messages that the house keeps itself and a filter matches: (topic, payload, QoS), made as they are read."""

    def survives(self, topic: str, /) -> bool:
        """Whether a message of QoS > 0 on this topic is stored for sessions that outlive their connections.

        Not those that the house makes anew after a restart: whoever comes back gets its retained messages instead.
        """

    def save(self) -> None:
        """`Broker.journal` has something that acknowledgements wait for: store it, then call `Broker.saved`, now or later."""

    @property
    def settled(self) -> Callable[[Callable[[], None]], None]:
        """Runs a function when nothing uncommitted is pending: now, or after the commit in flight; in order."""

    def online(self, session: Session, /) -> None:
        """A client has connected; its CONNACK is on the way."""

    def offline(self, session: Session, /, *, clean: bool, last: bool) -> None:
        """A connection has ended. `clean`: by a DISCONNECT that fires no will; `last`: the client has no other connection."""
