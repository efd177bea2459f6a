"""Reporter and Observer for scripts and threads, on paho-mqtt: the same names as in `gateway.client`, without `await`.

Methods may be called from any thread but from each other's callbacks' own waiting: callbacks run one after the other on a thread
for them, and may call whatever they like.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from gateway.address import Address
from gateway.client import asking
from gateway.client.client import TIMEOUT, options
from gateway.client.core import LOG
from gateway.client.errors import ClientError, RefusedError, UsageError
from gateway.client.feed import Feed
from gateway.client.following import Observed
from gateway.client.inbox import Action, Missed, SubscriptionRequest
from gateway.client.replica import Created
from gateway.client.reporting import Reporting
from gateway.client.scopes import Query, Scope
from gateway.client.thread import Connection
from gateway.objects import parent_of, topic_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
    from os import PathLike
    from types import TracebackType

    from gateway.client.asking import When
    from gateway.client.following import ObjectEvent
    from gateway.client.inbox import Pending
    from gateway.client.outbox import Outbox
    from gateway.client.promise import Promise
    from gateway.client.replica import Copy
    from gateway.client.target import Target

__all__ = ["Client", "Copies", "Events", "Observer", "Reporter", "connect"]

T = TypeVar("T")
E = TypeVar("E")


class Events(Generic[E]):
    """An iterator over events; it ends when what it is about is closed, or nothing has come for `timeout` seconds.

    At most 10,000 wait, then `Missed` comes first.
    """

    def __init__(self, feed: Feed[E], timeout: float | None) -> None:
        self._feed = feed
        self._timeout = timeout
        self._news = threading.Condition()
        feed.wake = self._wake

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E | Missed:
        event = self.get(self._timeout)
        if event is None:
            raise StopIteration
        return event

    def get(self, timeout: float | None = None) -> E | Missed | None:
        """The next event; None when nothing has come for `timeout` seconds, or nothing will come any more."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._news:
            while True:
                event = self._feed.take()
                if event is not None or self._feed.closed:
                    return event
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._news.wait(left)

    def close(self) -> None:
        """Take no more events."""
        self._feed.close()


class Client:
    """A connection that comes back by itself. `connect` makes it; use it with `with`."""

    def __init__(self, target: Target, chosen: Mapping[str, Any], *, wait: bool) -> None:
        self._target = target
        self._chosen = chosen
        self._wait = wait
        self._made: Connection | None = None
        self._feeds: list[Feed[Any]] = []

    def __enter__(self) -> Self:
        """Connect. Raises NotConnectedError, NoAnswerError, unless `connect(wait=True)` was said."""
        if self._made is not None:
            raise UsageError("a client is used once: call connect() again")
        self._made = Connection(self._target, **self._chosen)
        self._made.start(wait=self._wait)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self.close()

    def close(self) -> None:
        """Disconnect; iterators end, and whoever waits gets NotConnectedError."""
        if self._made is not None:
            self._made.stop()
            outbox = self._made.core.outbox
            if outbox is not None:
                outbox.close()
        for feed in list(self._feeds):
            feed.close()
        self._feeds.clear()

    @property
    def _connection(self) -> Connection:
        if self._made is None:
            raise UsageError("not connected yet: write `with connect(…) as client:`")
        return self._made

    def _run(self, coroutine: Coroutine[Promise[Any], Any, T]) -> T:
        return self._connection.run(coroutine)

    def _feed(self, make: Callable[[], Feed[E]], timeout: float | None) -> Events[E]:
        feed = self._connection.do(make)
        self._feeds = [each for each in self._feeds if not each.closed]
        self._feeds.append(feed)
        return Events(feed, timeout)

    def _attach(
        self, sinks: list[Callable[[Any], None]], callback: Callable[[Any], None], *, pending: bool = False
    ) -> Callable[[], None]:
        connection = self._connection
        sink = connection.call(callback)

        def attach() -> None:
            for item in list(connection.core.pending.values()) if pending else ():
                sink(item)
            sinks.append(sink)

        connection.do(attach)

        def detach() -> None:
            connection.do(lambda: sinks.remove(sink) if sink in sinks else None)

        return detach

    # ---- how it stands -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The client's name as the gateway knows it; `anonymous` without one."""
        return self._target.client

    @property
    def connected(self) -> bool:
        """Whether the connection is there right now."""
        return self._made is not None and self._made.core.connected

    @property
    def held(self) -> int:
        """How much waits for the connection: reports in the queue, or objects whose latest state waits."""
        core = self._connection.core
        return len(core.reporting) + (len(core.outbox) if core.outbox is not None else 0)

    @property
    def dropped(self) -> int:
        """Reports that were given up: the queue was full, or the gateway refused them when they were sent at last."""
        core = self._connection.core
        return core.dropped + (core.outbox.dropped if core.outbox is not None else 0)

    @property
    def pending(self) -> list[Pending]:
        """What waits for this client's `accept` or `reject`."""
        core = self._connection.core
        return self._connection.do(lambda: list(core.pending.values()))

    def wait_connected(self, timeout: float | None = None) -> None:
        """Wait for the connection (seconds). Raises NotConnectedError."""
        core = self._connection.core
        self._run(core.ready(core.timeout if timeout is None else timeout))

    # ---- reporting -----------------------------------------------------------------------------------------------------

    def create(
        self,
        url: str | None = None,
        *,
        schema: str | None = None,
        data: dict[str, Any] | None = None,
        name: str | None = None,
        description: str | None = None,
        tags: Sequence[str] | None = None,
        resources: Sequence[str] | None = None,
        public: bool | None = None,
        policy: str | None = None,
        observers: Sequence[str] | None = None,
        expires: When = None,
        scheme: str | None = None,
        authority: str | None = None,
    ) -> Reporter:
        """Create an object and be its Reporter; as `gateway.client.Client.create`."""
        return Reporter(
            self,
            self._run(
                asking.create(
                    self._connection.core,
                    url,
                    schema=schema,
                    data=data,
                    name=name,
                    description=description,
                    tags=tags,
                    resources=resources,
                    public=public,
                    policy=policy,
                    observers=observers,
                    expires=expires,
                    scheme=scheme,
                    authority=authority,
                )
            ),
        )

    def resume(self, url: str) -> Reporter:
        """Be the Reporter of one's own object again."""
        return Reporter(self, self._run(asking.resume(self._connection.core, url)))

    def reporter(self, url: str) -> Reporter:
        """Report without asking first, connected or not."""
        core = self._connection.core
        topic = Address.parse(url).topic

        def make() -> Reporting:
            core.spawn(core.listen())
            return core.reporting.get(topic.replace("/", "://", 1)) or Reporting(core, topic)

        return Reporter(self, self._connection.do(make))

    def owned(self) -> list[dict[str, Any]]:
        """One's own objects."""
        return self._run(asking.owned(self._connection.core))

    # ---- observing -----------------------------------------------------------------------------------------------------

    def observe(self, url: str, *, absent_ok: bool = False, timeout: float | None = None) -> Observer:
        """Observe one object and its children: `with client.observe(url) as room:`."""
        observed = Observed(self._connection.core.following, Scope.one(url), None)
        return Observer(self, observed, absent_ok=absent_ok, timeout=timeout)

    def observe_all(
        self,
        prefix: str = "",
        *,
        schema: str | None = None,
        name: str | None = None,
        tag: str | None = None,
        resource: str | None = None,
        reporter: str | None = None,
        status: str | None = None,
        timeout: float | None = None,
    ) -> Copies:
        """Observe everything below a prefix that is like what is said: `with client.observe_all(…) as kitchen:`."""
        query = Query(schema, name, tag, resource, reporter, status)
        observed = Observed(self._connection.core.following, Scope.below(prefix), None if query == Query() else query)
        return Copies(self, observed, timeout=timeout)

    def read(self, url: str) -> dict[str, Any]:
        """An object's snapshot as it is now."""
        snapshot: dict[str, Any] = self.request("read", {"resource": Address.parse(url).url})
        return snapshot

    def discover(self, prefix: str | None = None, **members: Any) -> list[dict[str, Any]]:
        """List what the client may see."""
        return self._run(asking.discover(self._connection.core, prefix, members))

    # ---- others --------------------------------------------------------------------------------------------------------

    def subscribe(self, url: str, *, wait: float = 60.0) -> dict[str, Any]:
        """Ask the Reporter of a closed object to be let in; the snapshot."""
        return self._run(asking.subscribe(self._connection.core, url, wait=wait))

    def unsubscribe(self, url: str) -> None:
        """Give the grant of an object back."""
        self._run(asking.unsubscribe(self._connection.core, url))

    def accept(self, item: Pending, *, expires: When = None) -> dict[str, Any] | None:
        """Say yes to a SubscriptionRequest, an Invitation or a Delegation."""
        answer: dict[str, Any] | None = self._run(
            self._connection.core.decide("accept", item.id, expires=asking.rfc3339(expires))
        )
        return answer

    def reject(self, item: Pending, description: str | None = None) -> None:
        """Say no; of an Invitation it gives the grant back."""
        self._run(self._connection.core.decide("reject", item.id, description=description))

    def respond(self, action: Action, body: Any = None, *, code: int = 200, description: str | None = None) -> None:
        """Answer an action."""
        self._run(asking.respond(self._connection.core, action.id, code, body, description))

    def execute(
        self, url: str, method: str, params: Any = None, *, timeout: float | None = None, idempotent: bool = False
    ) -> Any:
        """Ask an object's Reporter to do something, and wait for what it answers."""
        core = self._connection.core
        return self._run(
            asking.execute(core, Address.parse(url).url, method, params, timeout=timeout, idempotent=idempotent)
        )

    def request(self, kind: str, body: dict[str, Any], *, timeout: float | None = None) -> Any:
        """Any request of docs/protocol.md; the answer's body."""
        return self._run(self._connection.core.request(kind, body, seconds=timeout))

    # ---- events --------------------------------------------------------------------------------------------------------

    def events(self, timeout: float | None = None) -> Events[Any]:
        """Everything that is not about a copy, from now on, and what waits already."""
        core = self._connection.core
        events: Events[Any] = self._feed(lambda: Feed(core.sinks, first=list(core.pending.values())), timeout)
        if core.connected:
            self._run(core.listen())
        else:
            self._connection.do(lambda: core.spawn(core.listen()))
        return events

    def on_event(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call with each such event, on the thread for callbacks; what is returned ends that."""
        return self._attach(self._connection.core.sinks, callback)

    def _about(self, url: str, kinds: tuple[type, ...], timeout: float | None) -> Events[Any]:
        core = self._connection.core

        def wanted(event: Any) -> bool:
            return isinstance(event, kinds) and getattr(event, "resource", None) == url

        return self._feed(
            lambda: Feed(core.sinks, wanted=wanted, first=[item for item in core.pending.values() if wanted(item)]),
            timeout,
        )

    def _decide(self, handler: Callable[[SubscriptionRequest], Any], request: SubscriptionRequest) -> None:
        description = None
        try:
            wanted = handler(request)
        except RefusedError as error:
            wanted, description = False, error.description
        except Exception:  # noqa: BLE001 - whatever an application's handler does
            LOG.exception("the handler of requests for %s failed", request.resource)
            return
        try:
            if wanted:
                self.accept(request)
            else:
                self.reject(request, description)
        except ClientError as error:
            LOG.warning("the decision about %r was not taken: %s", request.client, error)

    def _act(self, handler: Callable[[Action], Any], action: Action) -> None:
        code, body, description = 200, None, None
        try:
            body = handler(action)
        except RefusedError as error:
            code, description = error.code, error.description
        except Exception:  # noqa: BLE001 - whatever an application's handler does
            LOG.exception("the handler of %r failed", action.method)
            code, description = 500, f"`{action.method}` failed"
        try:
            self.respond(action, body, code=code, description=description)
        except ClientError as error:
            LOG.warning("the answer to %r was not taken: %s", action.method, error)


class Reporter:
    """Reports one object. `Client.create`, `resume` and `reporter` make it."""

    def __init__(self, client: Client, reporting: Reporting) -> None:
        self._client = client
        self._reporting = reporting

    @property
    def url(self) -> str:
        """The object URL."""
        return self._reporting.url

    @property
    def data(self) -> dict[str, Any]:
        """What this Reporter has said last; not to be mutated (`edit` is for that)."""
        return self._reporting.data

    @property
    def held(self) -> bool:
        """Whether the latest state waits for the connection."""
        return self._reporting.held

    def update(self, merge: dict[str, Any], *, confirm: bool = False) -> bool:
        """Report a merge patch (RFC 7396); as `gateway.client.Reporter.update`."""
        return self._client._run(self._reporting.report(merge, confirm=confirm))

    def patch(self, operations: list[dict[str, Any]], *, confirm: bool = False) -> bool:
        """Report a JSON Patch (RFC 6902)."""
        return self._client._run(self._reporting.report(operations, confirm=confirm))

    @contextmanager
    def edit(self, *, confirm: bool = False) -> Iterator[dict[str, Any]]:
        """`with room.edit() as data:`: change `data` at will; at the end the smallest patch is reported."""
        run = self._client._run
        draft = run(self._reporting.draft())
        try:
            yield draft
        except BaseException:
            self._client._connection.do(self._reporting.abandon)
            raise
        run(self._reporting.commit(draft, confirm=confirm))

    def read(self) -> dict[str, Any]:
        """Look at the object as the gateway has it, and go on from there; its data."""
        self._client._run(self._reporting.read())
        return self.data

    def describe(self, **meta: Any) -> None:
        """Change what the object says of itself: name, description, tags, resources, public, policy."""
        self._client._run(asking.describe(self._reporting.core, self.url, meta))

    def invite(self, *names: str, expires: When = None) -> list[str]:
        """Let clients observe it; the names of those who could not be told."""
        return self._client._run(asking.invite(self._reporting.core, self.url, names, expires))

    def revoke(self, name: str) -> None:
        """Take a client's grant back, effective immediately."""
        self._client._run(asking.revoke(self._reporting.core, self.url, name))

    def delegate(self, to: str, *, wait: float | None = None, timeout: float | None = None) -> bool:
        """Offer the object to another client; as `gateway.client.Reporter.delegate`."""
        return self._client._run(asking.delegate(self._reporting.core, self.url, to, wait=wait, timeout=timeout))

    def delete(self) -> None:
        """Delete the object, its children first."""
        self._client._run(asking.delete(self._reporting.core, self.url))

    def add_child(self, collection: str, data: dict[str, Any] | None = None, *, id: str | None = None) -> Reporter:
        """Add a child; the Reporter of it."""
        child = self._client._run(asking.add_child(self._reporting.core, self.url, collection, data, identity=id))
        return Reporter(self._client, child)

    def requests(self, timeout: float | None = None) -> Events[SubscriptionRequest]:
        """Who asks to observe it, from now on and what waits already."""
        return self._client._about(self.url, (SubscriptionRequest,), timeout)

    def actions(self, timeout: float | None = None) -> Events[Action]:
        """What others ask it to do, from now on."""
        return self._client._about(self.url, (Action,), timeout)

    def on_request(self, handler: Callable[[SubscriptionRequest], Any]) -> Callable[[], None]:
        """Let `handler(request)` decide who may observe, on the thread for callbacks: true accepts, false or RefusedError rejects."""
        url = self.url

        def decide(event: Any) -> None:
            if isinstance(event, SubscriptionRequest) and event.resource == url:
                self._client._decide(handler, event)

        return self._client._attach(self._reporting.core.sinks, decide, pending=True)

    def on_action(self, handler: Callable[[Action], Any]) -> Callable[[], None]:
        """Let `handler(action)` do what others ask for, on the thread for callbacks; what it returns is the answer's body."""
        url = self.url

        def act(event: Any) -> None:
            if isinstance(event, Action) and event.resource == url:
                self._client._act(handler, event)

        return self._client._attach(self._reporting.core.sinks, act)


class _Observing:
    """What both have in common."""

    def __init__(self, client: Client, observed: Observed, *, timeout: float | None, absent_ok: bool = True) -> None:
        self._client = client
        self._observed = observed
        self._timeout = timeout
        self._absent_ok = absent_ok
        self._feeds: list[Feed[Any]] = []

    def __enter__(self) -> Self:
        """Subscribe, and wait until the copies are proven complete."""
        core = self._observed.following.core
        seconds = core.timeout if self._timeout is None else self._timeout
        self._client._run(self._observed.following.observe(self._observed, seconds, absent_ok=self._absent_ok))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more; iterators end."""
        self.close()

    def close(self) -> None:
        """Look no more; iterators end."""
        if self._client._made is not None and not self._client._made.core.closed:
            self._client._connection.do(lambda: self._observed.following.release(self._observed))
        for feed in self._feeds:
            feed.close()
        self._feeds.clear()

    def _do(self, work: Callable[[], T]) -> T:
        return self._client._connection.do(work)

    @property
    def in_sync(self) -> bool:
        """Whether the copies are proven to be what the gateway has: connected, compared, nothing missing."""
        return self._do(lambda: self._observed.in_sync)

    def changes(self, timeout: float | None = None) -> Events[ObjectEvent]:
        """What happens from now on: Created, Changed, StatusChanged, Delegated, Deleted; ends after `timeout` quiet seconds."""
        events: Events[ObjectEvent] = self._client._feed(lambda: Feed(self._observed.sinks), timeout)
        self._feeds = [each for each in self._feeds if not each.closed]
        self._feeds.append(events._feed)
        return events

    def on_change(self, callback: Callable[[ObjectEvent], None], *, replay: bool = False) -> Callable[[], None]:
        """Call with each such event, on the thread for callbacks; `replay` begins with a Created for each copy."""
        connection = self._client._connection
        sinks = self._observed.sinks
        sink = connection.call(callback)

        def attach() -> None:
            if replay:
                for copy in list(self._observed.copies()):
                    sink(Created(copy))
            sinks.append(sink)

        connection.do(attach)

        def detach() -> None:
            connection.do(lambda: sinks.remove(sink) if sink in sinks else None)

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
        return self._do(lambda: self._observed.status(self._there()))

    def children(self, collection: str | None = None) -> list[Copy]:
        """The copies of its children, oldest first."""
        topic = topic_of(self.url)
        found = [
            copy
            for copy in self._do(lambda: list(self._observed.copies()))
            if parent_of(copy.topic) == topic and (collection is None or copy.collection == collection)
        ]
        return sorted(found, key=lambda copy: (copy.created or copy.modified, copy.topic))

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], timeout: float | None = None) -> dict[str, Any]:
        """Wait until a condition holds for its data, and return that. Raises NoAnswerError after so many seconds."""
        met: list[dict[str, Any]] = []

        def look() -> bool:
            copy = self.copy
            if copy is None or not condition(copy.data):
                return False
            met.append(copy.data)
            return True

        self._client._run(self._observed.until(look, timeout, f"what is waited for at {self.url}"))
        return met[0]

    def add_child(self, collection: str, data: dict[str, Any] | None = None, *, id: str | None = None) -> Reporter:
        """Add a child; the Reporter of it."""
        core = self._observed.following.core
        child = self._client._run(asking.add_child(core, self.url, collection, data, identity=id))
        return Reporter(self._client, child)

    def execute(
        self, method: str, params: Any = None, *, timeout: float | None = None, idempotent: bool = False
    ) -> Any:
        """Ask its Reporter to do something; as `Client.execute`."""
        return self._client.execute(self.url, method, params, timeout=timeout, idempotent=idempotent)


class Copies(_Observing):
    """Copies of all objects below a prefix that are like what was asked for. `Client.observe_all` makes it."""

    def __iter__(self) -> Iterator[Copy]:
        """All copies, in no order."""
        return iter(self._do(lambda: list(self._observed.copies())))

    def __len__(self) -> int:
        return self._do(lambda: sum(1 for _ in self._observed.copies()))

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
        return self._do(lambda: self._observed.status(copy))

    def wait_for(self, condition: Callable[[list[Copy]], bool], timeout: float | None = None) -> None:
        """Wait until a condition holds for the list of copies. Raises NoAnswerError after so many seconds."""
        self._client._run(
            self._observed.until(lambda: condition(list(self._observed.copies())), timeout, "what is waited for")
        )


def connect(
    url: str,
    *,
    password: str | None = None,
    prefix: str = "",
    ca: str | PathLike[str] | None = None,
    certificate: str | PathLike[str] | None = None,
    key: str | PathLike[str] | None = None,
    timeout: float = TIMEOUT,
    keepalive: int = 30,
    protocol: Literal["5", "3.1.1"] = "5",
    presence: bool = True,
    queue: Outbox | str | PathLike[str] | None = None,
    client_id: str | None = None,
    topic_escape: str = "",
    wait: bool = False,
) -> Client:
    """Make a client of the gateway at `url`; it connects in `with`. All arguments are those of `gateway.client.connect`."""
    target, chosen = options(
        url,
        password=password,
        prefix=prefix,
        ca=ca,
        certificate=certificate,
        key=key,
        timeout=timeout,
        keepalive=keepalive,
        protocol=protocol,
        presence=presence,
        queue=queue,
        client_id=client_id,
        topic_escape=topic_escape,
    )
    return Client(target, chosen, wait=wait)
