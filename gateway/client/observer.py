"""Copies that are always in sync, on asyncio: of one object (`Observer`), or of many (`Copies`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from gateway.address import Address
from gateway.client import asking
from gateway.client.errors import RefusedError
from gateway.client.feed import Feed
from gateway.client.replica import Created
from gateway.objects import parent_of, topic_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from gateway.client.client import Client, Events
    from gateway.client.following import ObjectEvent, Observed
    from gateway.client.replica import Copy
    from gateway.client.reporter import Reporter


class _Observing:
    """What both have in common."""

    def __init__(self, client: Client, observed: Observed, *, timeout: float | None, absent_ok: bool = True) -> None:
        self._client = client
        self._observed = observed
        self._timeout = timeout
        self._absent_ok = absent_ok
        self._feeds: list[Feed[Any]] = []

    async def __aenter__(self) -> Self:
        """Subscribe, and wait until the copies are proven complete."""
        core = self._observed.following.core
        seconds = core.timeout if self._timeout is None else self._timeout
        await self._client._run(self._observed.following.observe(self._observed, seconds, absent_ok=self._absent_ok))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more; iterators end."""
        await self.close()

    async def close(self) -> None:
        """Look no more; iterators end."""
        self._observed.following.release(self._observed)
        for feed in self._feeds:
            feed.close()
        self._feeds.clear()

    @property
    def in_sync(self) -> bool:
        """Whether the copies are proven to be what the gateway has: connected, compared, nothing missing."""
        return self._observed.in_sync

    def changes(self) -> Events[ObjectEvent]:
        """What happens from now on: Created, Changed, StatusChanged, Delegated, Deleted; an event's `parent` tells of a child.

        The copies have moved on when an event is read: `event.copy` is what it was then.
        """
        feed: Feed[ObjectEvent] = Feed(self._observed.sinks)
        self._feeds = [each for each in self._feeds if not each.closed]
        self._feeds.append(feed)
        return self._client._feed(feed)

    def on_change(self, callback: Callable[[ObjectEvent], None], *, replay: bool = False) -> Callable[[], None]:
        """Call with each such event, in the event loop; `replay` begins with a Created for each copy. What is returned ends that."""
        from gateway.client.client import _attach  # noqa: PLC0415 - a client knows its observers

        detach = _attach(self._observed.sinks, callback)
        if replay:
            for copy in list(self._observed.copies()):
                self._observed.sinks[-1](Created(copy))
        return detach


class Observer(_Observing):
    """A copy of one object, and of its children. `Client.observe` makes it."""

    @property
    def url(self) -> str:
        """The object URL."""
        return self._observed.scope.prefix

    @property
    def copy(self) -> Copy | None:
        """All that is held of it; None where it is not there (any more)."""
        assert self._observed.scope.single is not None
        return self._observed.get(self._observed.scope.single.topic)

    def _there(self) -> Copy:
        copy = self.copy
        if copy is None:
            raise RefusedError(410, f"{self.url}: the object is not there", resource=self.url)
        return copy

    @property
    def data(self) -> dict[str, Any]:
        """Its data; not to be mutated. Raises RefusedError (410), as all of these, where it is not there."""
        return self._there().data

    @property
    def version(self) -> int:
        """Its version."""
        return self._there().version

    @property
    def epoch(self) -> int:
        """The gateway's run."""
        return self._there().epoch

    @property
    def reporter(self) -> str:
        """Who writes it."""
        return self._there().reporter

    @property
    def status(self) -> str:
        """`live`, `stale`, `disconnected`; `unknown` while this client, or the gateway, is not connected."""
        return self._observed.status(self._there())

    def children(self, collection: str | None = None) -> list[Copy]:
        """The copies of its children, oldest first."""
        topic = topic_of(self.url)
        found = [
            copy
            for copy in self._observed.copies()
            if parent_of(copy.topic) == topic and (collection is None or copy.collection == collection)
        ]
        return sorted(found, key=lambda copy: (copy.created or copy.modified, copy.topic))

    async def wait_for(
        self, condition: Callable[[dict[str, Any]], bool], timeout: float | None = None
    ) -> dict[str, Any]:
        """Wait until a condition holds for its data, and return that. Raises NoAnswerError after so many seconds."""
        met: list[dict[str, Any]] = []

        def look() -> bool:
            copy = self.copy
            if copy is None or not condition(copy.data):
                return False
            met.append(copy.data)
            return True

        await self._client._run(self._observed.until(look, timeout, f"what is waited for at {self.url}"))
        return met[0]

    async def add_child(
        self, collection: str, data: dict[str, Any] | None = None, *, id: str | None = None
    ) -> Reporter:
        """Add a child; the Reporter of it. Without `id` the gateway makes one. Raises RefusedError, NotConnectedError, NoAnswerError."""
        from gateway.client.reporter import Reporter  # noqa: PLC0415 - as above

        core = self._observed.following.core
        return Reporter(
            self._client,
            await self._client._run(asking.add_child(core, self.url, collection, data, identity=id)),
        )

    async def execute(
        self, method: str, params: Any = None, *, timeout: float | None = None, idempotent: bool = False
    ) -> Any:
        """Ask its Reporter to do something; as `Client.execute`."""
        return await self._client.execute(self.url, method, params, timeout=timeout, idempotent=idempotent)


class Copies(_Observing):
    """Copies of all objects below a prefix that are like what was asked for. `Client.observe_all` makes it."""

    def __iter__(self) -> Iterator[Copy]:
        """All copies, in no order."""
        return self._observed.copies()

    def __len__(self) -> int:
        return sum(1 for _ in self._observed.copies())

    def __contains__(self, url: object) -> bool:
        return isinstance(url, str) and self.get(url) is not None

    def __getitem__(self, url: str) -> Copy:
        """One copy by its URL. Raises KeyError."""
        copy = self.get(url)
        if copy is None:
            raise KeyError(url)
        return copy

    def get(self, url: str) -> Copy | None:
        """One copy by its URL, or None. Raises AddressError."""
        return self._observed.get(Address.parse(url).topic)

    def status(self, copy: Copy) -> str:
        """The status to show; `unknown` while this client, or the object's gateway, is not connected."""
        return self._observed.status(copy)

    async def wait_for(self, condition: Callable[[list[Copy]], bool], timeout: float | None = None) -> None:
        """Wait until a condition holds for the list of copies. Raises NoAnswerError after so many seconds."""
        await self._client._run(self._observed.until(lambda: condition(list(self)), timeout, "what is waited for"))
