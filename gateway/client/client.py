"""`connect` and what it gives: a client of the gateway on asyncio."""

from __future__ import annotations

import asyncio
import inspect
import os
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from gateway.address import Address
from gateway.client import asking
from gateway.client.aio import Connection
from gateway.client.core import LOG
from gateway.client.errors import ClientError, RefusedError, UsageError
from gateway.client.feed import Feed
from gateway.client.following import Observed
from gateway.client.inbox import Action, Missed, SubscriptionRequest
from gateway.client.observer import Copies, Observer
from gateway.client.outbox import Outbox
from gateway.client.reporter import Reporter
from gateway.client.reporting import Reporting
from gateway.client.scopes import Query, Scope
from gateway.client.target import Target, tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from os import PathLike
    from types import TracebackType

    from gateway.client.asking import When
    from gateway.client.inbox import Pending
    from gateway.client.promise import Promise

T = TypeVar("T")
E = TypeVar("E")

TIMEOUT = 10.0
"""Seconds for an answer, unless `connect` says otherwise."""


class Events(Generic[E]):
    """An async iterator over events; it ends when what it is about is closed. At most 10,000 wait, then `Missed` comes first."""

    def __init__(self, feed: Feed[E]) -> None:
        self._feed = feed
        self._waiter: asyncio.Future[None] | None = None
        feed.wake = self._wake

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E | Missed:
        while True:
            event = self._feed.take()
            if event is not None:
                return event
            if self._feed.closed:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def aclose(self) -> None:
        """Take no more events."""
        self._feed.close()


class Client:
    """A connection that comes back by itself. `connect` makes it; use it with `async with`."""

    def __init__(self, target: Target, options: Mapping[str, Any], *, wait: bool) -> None:
        self._target = target
        self._options = options
        self._wait = wait
        self._connection: Connection | None = None
        self._feeds: list[Feed[Any]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """Connect. Raises NotConnectedError, NoAnswerError, unless `connect(wait=True)` was said."""
        if self._connection is not None:
            raise UsageError("a client is used once: call connect() again")
        self._connection = Connection(self._target, **self._options)
        await self._connection.start(wait=self._wait)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        await self.close()

    async def close(self) -> None:
        """Disconnect; iterators end, and whoever waits gets NotConnectedError."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connection is not None:
            await self._connection.stop()
            outbox = self._connection.core.outbox
            if outbox is not None:
                outbox.close()
        for feed in self._feeds:
            feed.close()
        self._feeds.clear()

    @property
    def _core(self) -> Any:
        if self._connection is None:
            raise UsageError("not connected yet: write `async with connect(…) as client:`")
        return self._connection.core

    async def _run(self, coroutine: Coroutine[Promise[Any], Any, T]) -> T:
        if self._connection is None:
            coroutine.close()
            raise UsageError("not connected yet: write `async with connect(…) as client:`")
        return await self._connection.run(coroutine)

    def _feed(self, feed: Feed[E]) -> Events[E]:
        self._feeds = [each for each in self._feeds if not each.closed]
        self._feeds.append(feed)
        return Events(feed)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it beside everything else, until the client is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- how it stands -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The client's name as the gateway knows it; `anonymous` without one."""
        return self._target.client

    @property
    def connected(self) -> bool:
        """Whether the connection is there right now."""
        return self._connection is not None and self._connection.core.connected

    @property
    def held(self) -> int:
        """How much waits for the connection: reports in the queue, or objects whose latest state waits."""
        core = self._core
        return len(core.reporting) + (len(core.outbox) if core.outbox is not None else 0)

    @property
    def dropped(self) -> int:
        """Reports that were given up: the queue was full, or the gateway refused them when they were sent at last."""
        core = self._core
        return int(core.dropped) + (core.outbox.dropped if core.outbox is not None else 0)

    @property
    def pending(self) -> list[Pending]:
        """What waits for this client's `accept` or `reject`."""
        return list(self._core.pending.values())

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Wait for the connection (seconds). Raises NotConnectedError."""
        core = self._core
        await self._run(core.ready(core.timeout if timeout is None else timeout))

    # ---- reporting -----------------------------------------------------------------------------------------------------

    async def create(
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
        """Create an object and be its Reporter. One's own that is there already is found as it is: `data` is not said then.

        Without `url` the gateway makes one below `scheme` and `authority`. `schema` is a catalogue URL or name, else the
        namespace's; `policy` is `ask`, `auto` or `closed`; `observers` are granted until `expires`.
        Raises RefusedError (403 not allowed, 409 somebody else's, 422 `data` breaks the schema), NotConnectedError, NoAnswerError, AddressError.
        """
        return Reporter(
            self,
            await self._run(
                asking.create(
                    self._core,
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

    async def resume(self, url: str) -> Reporter:
        """Be the Reporter of one's own object again. Raises RefusedError (404), UsageError (somebody else's), as `create` does."""
        return Reporter(self, await self._run(asking.resume(self._core, url)))

    def reporter(self, url: str) -> Reporter:
        """Report without asking first, connected or not: the first report creates the object where its namespace allows that.

        Raises AddressError.
        """
        core = self._core
        topic = Address.parse(url).topic
        found = core.reporting.get(topic.replace("/", "://", 1))
        core.spawn(core.listen())
        return Reporter(self, found or Reporting(core, topic))

    async def owned(self) -> list[dict[str, Any]]:
        """One's own objects: `{"url","schema","epoch","version","status","policy","observers"?}` each."""
        return await self._run(asking.owned(self._core))

    # ---- observing -----------------------------------------------------------------------------------------------------

    def observe(self, url: str, *, absent_ok: bool = False, timeout: float | None = None) -> Observer:
        """Observe one object and its children: `async with client.observe(url) as room:`.

        Entering waits until the copy is proven complete, at most `timeout` seconds. It raises RefusedError (403, 404; with
        `absent_ok` an object that is not there yet may come later), NotConnectedError, NoAnswerError. Raises AddressError.
        """
        observed = Observed(self._core.following, Scope.one(url), None)
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
        """Observe everything below a prefix that is like what is said, children too: `async with client.observe_all(…) as kitchen:`.

        `prefix` is a URL (it and everything below; with a final slash only what is below), a scheme such as `ctxt://`, or "" for
        all that the client may see. What begins to match is Created, what matches no longer is Deleted. Entering raises as
        `observe` does. Raises AddressError.
        """
        query = Query(schema, name, tag, resource, reporter, status)
        observed = Observed(self._core.following, Scope.below(prefix), None if query == Query() else query)
        return Copies(self, observed, timeout=timeout)

    async def read(self, url: str) -> dict[str, Any]:
        """An object's snapshot as it is now. Raises RefusedError (403, 404, 410), NotConnectedError, NoAnswerError."""
        snapshot: dict[str, Any] = await self._run(self._core.request("read", {"resource": Address.parse(url).url}))
        return snapshot

    async def discover(self, prefix: str | None = None, **members: Any) -> list[dict[str, Any]]:
        """List what the client may see: `{"url","schema","reporter","epoch","version","status","name"}` each.

        `members` are those of the request: scheme, authority, schema, name, tag, resource, reporter, status, mine.
        """
        return await self._run(asking.discover(self._core, prefix, members))

    # ---- others --------------------------------------------------------------------------------------------------------

    async def subscribe(self, url: str, *, wait: float = 60.0) -> dict[str, Any]:
        """Ask the Reporter of a closed object to be let in; the snapshot. Then it can be observed.

        Raises RefusedError (403 rejected, 408 nobody decided), NoAnswerError when nobody has decided within `wait` seconds.
        """
        return await self._run(asking.subscribe(self._core, url, wait=wait))

    async def unsubscribe(self, url: str) -> None:
        """Give the grant of an object back."""
        await self._run(asking.unsubscribe(self._core, url))

    async def accept(self, item: Pending, *, expires: When = None) -> dict[str, Any] | None:
        """Say yes to a SubscriptionRequest (until `expires`), an Invitation (the answer is the snapshot) or a Delegation.

        Raises RefusedError (410 it waits no longer).
        """
        answer: dict[str, Any] | None = await self._run(
            self._core.decide("accept", item.id, expires=asking.rfc3339(expires))
        )
        return answer

    async def reject(self, item: Pending, description: str | None = None) -> None:
        """Say no; of an Invitation it gives the grant back."""
        await self._run(self._core.decide("reject", item.id, description=description))

    async def respond(
        self, action: Action, body: Any = None, *, code: int = 200, description: str | None = None
    ) -> None:
        """Answer an action. Raises RefusedError (410 too late)."""
        await self._run(asking.respond(self._core, action.id, code, body, description))

    async def execute(
        self, url: str, method: str, params: Any = None, *, timeout: float | None = None, idempotent: bool = False
    ) -> Any:
        """Ask an object's Reporter to do something, and wait for what it answers (any JSON value, or None).

        `idempotent`: it may arrive twice, and is sent at QoS 1. Raises RefusedError (403, 404, 504 and what the Reporter says).
        """
        return await self._run(
            asking.execute(self._core, Address.parse(url).url, method, params, timeout=timeout, idempotent=idempotent)
        )

    async def request(self, kind: str, body: dict[str, Any], *, timeout: float | None = None) -> Any:
        """Any request of docs/protocol.md; the answer's body. Raises RefusedError, NotConnectedError, NoAnswerError."""
        return await self._run(self._core.request(kind, body, seconds=timeout))

    # ---- events --------------------------------------------------------------------------------------------------------

    async def events(self) -> Events[Any]:
        """Everything that is not about a copy, from now on, and what waits already.

        Connected, Disconnected, GatewayChanged, Rejection, SubscriptionRequest, Invitation, Delegation, Action, Revoked.
        """
        core = self._core
        feed: Feed[Any] = Feed(core.sinks, first=list(core.pending.values()))
        events = self._feed(feed)
        if core.connected:
            await self._run(core.listen())
        else:
            core.spawn(core.listen())
        return events

    def on_event(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        """Call with each such event, in the event loop; what is returned ends that."""
        return _attach(self._core.sinks, callback)

    def _about(self, url: str, kinds: tuple[type, ...]) -> Events[Any]:
        """Events of these kinds about one object."""

        def wanted(event: Any) -> bool:
            return isinstance(event, kinds) and getattr(event, "resource", None) == url

        core = self._core
        first = [item for item in core.pending.values() if wanted(item)]
        return self._feed(Feed(core.sinks, wanted=wanted, first=first))

    def _answer_actions(self, url: str, handler: Callable[[Action], Any]) -> Callable[[], None]:
        """Let a handler do what others ask for."""

        def sink(event: Any) -> None:
            if isinstance(event, Action) and event.resource == url:
                self._later(self._act(handler, event))

        return _attach(self._core.sinks, sink)

    def _answer_requests(self, url: str, handler: Callable[[SubscriptionRequest], Any]) -> Callable[[], None]:
        """Let a handler decide who may observe."""

        def sink(event: Any) -> None:
            if isinstance(event, SubscriptionRequest) and event.resource == url:
                self._later(self._decide(handler, event))

        core = self._core
        for item in list(core.pending.values()):
            sink(item)
        return _attach(core.sinks, sink)

    async def _decide(self, handler: Callable[[SubscriptionRequest], Any], request: SubscriptionRequest) -> None:
        description = None
        try:
            wanted = handler(request)
            if inspect.isawaitable(wanted):
                wanted = await wanted
        except RefusedError as error:
            wanted, description = False, error.description
        except Exception:  # noqa: BLE001 - whatever an application's handler does
            LOG.exception("the handler of requests for %s failed", request.resource)
            return
        try:
            if wanted:
                await self.accept(request)
            else:
                await self.reject(request, description)
        except ClientError as error:
            LOG.warning("the decision about %r was not taken: %s", request.client, error)

    async def _act(self, handler: Callable[[Action], Any], action: Action) -> None:
        code, body, description = 200, None, None
        try:
            body = handler(action)
            if inspect.isawaitable(body):
                body = await body
        except RefusedError as error:
            code, description = error.code, error.description
        except Exception:  # noqa: BLE001 - whatever an application's handler does
            LOG.exception("the handler of %r failed", action.method)
            code, description = 500, f"`{action.method}` failed"
        try:
            await self.respond(action, body, code=code, description=description)
        except ClientError as error:
            LOG.warning("the answer to %r was not taken: %s", action.method, error)


def _attach(sinks: list[Callable[[Any], None]], callback: Callable[[Any], None]) -> Callable[[], None]:
    def sink(event: Any) -> None:
        try:
            callback(event)
        except Exception:  # noqa: BLE001 - as above
            LOG.exception("a callback failed")

    def detach() -> None:
        if sink in sinks:
            sinks.remove(sink)

    sinks.append(sink)
    return detach


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
    """Make a client of the gateway at `url`; it connects in `async with`.

    `url` is `mqtt://[name[:password]@]host[:port][/topic-prefix]`, or `mqtts://`, `ws://`, `wss://` (there the path is the
    WebSocket's); a missing password comes from the environment's CTXT_PASSWORD. `ca`, `certificate`, `key` are PEM files for TLS.
    `timeout`: seconds for the connection and for each answer. `presence`: tell the gateway when this client is online, so that
    its objects become `disconnected` when it is lost. `queue`: keep all reports in this file while there is no connection, instead
    of each object's latest state in memory. `wait`: begin without a connection where there is none yet. `topic_escape`: what the
    gateway's `link.topic_escape` says, on a broker where topics cannot have all characters ("." on RabbitMQ and nats-server).
    Raises UsageError for what cannot be.
    """
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


def options(
    url: str,
    *,
    password: str | None,
    prefix: str,
    ca: str | PathLike[str] | None,
    certificate: str | PathLike[str] | None,
    key: str | PathLike[str] | None,
    timeout: float,
    keepalive: int,
    protocol: str,
    presence: bool,
    queue: Outbox | str | PathLike[str] | None,
    client_id: str | None,
    topic_escape: str,
) -> tuple[Target, dict[str, Any]]:
    """Checked arguments, for both edges. Raises UsageError."""
    if protocol not in ("5", "3.1.1"):
        raise UsageError(f"protocol is '5' or '3.1.1', not {protocol!r}")
    if timeout <= 0:
        raise UsageError("timeout is a number of seconds above 0")
    target = Target.parse(url, os.environ, password=password, prefix=prefix)
    if target.name is not None and not target.password and certificate is None:
        raise UsageError(
            f"there is no password for {target.name!r}: give password=, set CTXT_PASSWORD, "
            f"or write {target.scheme}://{target.name}:PASSWORD@{target.host}"
        )
    if not target.encrypted and (ca is not None or certificate is not None):
        raise UsageError(f"{target.scheme}:// has no TLS: write mqtts:// or wss:// for ca= and certificate=")
    if queue is not None and target.name is None:
        raise UsageError("who has no name reports nothing: there is nothing to queue")
    return target, {
        "timeout": timeout,
        "keepalive": keepalive,
        "protocol": protocol,
        "presence": presence,
        "outbox": queue if queue is None or isinstance(queue, Outbox) else Outbox(queue),
        "tls": tls_context(ca, certificate, key) if target.encrypted else None,
        "client_id": client_id,
        "topic_escape": topic_escape,
    }
