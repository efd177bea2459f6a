"""What a link is: the gateway's connection to the broker, inside or outside. Both keep these two interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.broker.journal import Journal
    from gateway.counts import Family
    from gateway.sessions import Restored
    from gateway.wire.packets import Properties, Publish


Route = Any
"""A topic made ready for sending to it often: the link's own. `route.wanted` says whether anybody would get a message now."""


class LinkError(CtxtError):
    """The broker cannot be reached or opened. The sentence says which address, why, and what to do."""


class TakenOverError(LinkError):
    """Another gateway has this one's identity: one of them has to go, and it is this one."""


class Receiver(Protocol):
    """The service, as a link sees it."""

    @property
    def counter(self) -> int:
        """The counter in `announcement`."""

    def receive(self, batch: list[Publish]) -> None:
        """Take reports, requests and presence in order of arrival; each is acknowledged through the link when it is stored."""

    def retained(self, topic_filter: str) -> Iterator[tuple[str, bytes, int]]:
        """The retained messages below a filter, rendered now: (topic, payload, QoS)."""

    def save(self) -> None:
        """`Link.journal` is urgent: store it with the next commit, then call `Link.saved`."""

    def sessions(self) -> Iterable[Restored]:
        """The sessions that an earlier run of the broker inside kept. Asked once, at the start."""

    def settled(self, then: Callable[[], None]) -> None:
        """Run `then` when nothing is applied but not yet stored: now, or after the commit in flight."""

    def present(self, client: str) -> None:
        """A client has connected."""

    def lost(self, client: str) -> None:
        """A client's last connection ended without a DISCONNECT."""

    def announcement(self, status: str) -> bytes:
        """What `gateway/{id}` says of this gateway now: `online` or `offline`."""

    def begin(self, seen: int, own: int) -> int:
        """Settle the epoch, above whatever a broker outside still shows (`seen`); asked once, before anything is sent to it.

        `own` is the epoch in this gateway's own announcement there; 0 where there is none.
        """

    def joined(self, *, lost: bool, strays: list[str]) -> None:
        """A broker outside is there. `lost`: it has not kept all that was confirmed. `strays`: retained topics it shows at the start."""

    def session_lost(self, key: tuple[str, str]) -> None:
        """A broker outside has forgotten a session: its packet identifiers mean nothing any more."""

    def link_failed(self, error: BaseException) -> None:
        """The link cannot go on."""


class Link(Protocol):
    """The way to the broker."""

    address: tuple[str, int]
    """Host and port: where clients connect, at the first of them."""

    urls: list[str]
    """Everywhere that clients connect, once started."""

    @property
    def ready(self) -> bool:
        """Whether what is sent now reaches the broker; what is sent while it is not there is dropped."""

    @property
    def room(self) -> bool:
        """Whether the broker takes more than the answers to reports."""

    journal: Journal | None
    """What the broker inside wants stored; None where the broker keeps its sessions itself."""

    def saved(self) -> None:
        """What was taken from the journal is stored."""

    async def start(self, receiver: Receiver) -> None:
        """Listen or connect. Raises LinkError."""

    async def stop(self) -> None:
        """Say good-bye and close."""

    def route(self, topic: str, *, retain: bool) -> Route:
        """Prepare a topic (with its prefix). Retained messages are kept by a broker outside; inside, `Receiver.retained` makes them."""

    def wants(self, head: str) -> bool:
        """Whether anybody could want a topic that begins with `head` (whole levels and a slash); cheap, and asked first."""

    def send(self, route: Route, payload: bytes, qos: int) -> None:
        """Publish on a prepared topic."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, properties: Properties | None = None
    ) -> object:
        """Publish once on any topic."""

    def acknowledge(self, publish: Publish, reason: int = 0, text: str | None = None, /) -> None:
        """Answer a received PUBLISH: a reason below 0x80 means that it is stored."""

    def session(self, publish: Publish) -> tuple[str, str]:
        """Whose packet identifiers those of this PUBLISH are: (client, session)."""

    def families(self) -> Iterator[Family]:
        """What is counted on the way to the broker, or in the broker inside."""

    def listen(self, filters: frozenset[str]) -> None:
        """Hand over what is published below these filters too, and what is retained there: QoS 0 copies inside. Before `start`, or later."""

    def pause(self) -> None:
        """Stop reading: the service has enough to do."""

    def resume(self) -> None:
        """Read again."""

    def reread(self) -> Callable[[], None]:
        """Read certificates and keys now; what is returned takes them over. Raises LinkError where one cannot be used."""
