"""The copies of one connection: what is subscribed to, who is told of what, and how gaps are healed."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

from gateway.client.errors import NoAnswerError, RefusedError
from gateway.client.promise import Promise
from gateway.client.replica import (
    UNKNOWN,
    Changed,
    Copy,
    Created,
    Delegated,
    Deleted,
    GapHealed,
    GapOpened,
    GatewayChanged,
    Replica,
    StatusChanged,
)
from gateway.objects import parent_of, topic_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gateway.client.core import Core
    from gateway.client.replica import Event
    from gateway.client.scopes import Query, Scope

SETTLE = 1.0
"""Seconds for the retained snapshots to arrive before they are compared with what the gateway lists."""

QUIET = 0.3
"""Seconds without another object after which all of them have arrived, where that is all that can be known."""

COMPARE_EVERY = 300.0
RETRY = 2.0
LONGEST_RETRY = 30.0
"""Seconds until copies that could not be proven complete are compared again: twice as long each time."""

TRIES = 5
"""Listings in a row before the next is left to later: where objects come and go fast no list is complete for long."""

AT_ONCE = 100
"""Filters in one SUBSCRIBE, and objects in one `read`."""

GONE = (403, 404, 410)

ObjectEvent = Created | Changed | StatusChanged | Delegated | Deleted
"""What can happen to a copy."""


class Observed:
    """What one Observer looks at, and whom it tells."""

    def __init__(self, following: Following, scope: Scope, query: Query | None) -> None:
        self.following = following
        self.scope = scope
        self.query = query
        self.sinks: list[Callable[[ObjectEvent], None]] = []
        self.waiting: list[tuple[Callable[[], bool], Promise[None]]] = []
        self.complete = False
        """Whether the copies were proven complete on this connection."""

    def holds(self, copy: Copy) -> bool:
        """Whether a copy is looked at."""
        return self.scope.holds(copy.url) and (self.query is None or self.query.matches(copy))

    def copies(self) -> Iterator[Copy]:
        """The live objects that are looked at."""
        replica = self.following.replica
        single = self.scope.single
        if single is None:
            yield from (copy for copy in replica if self.holds(copy))
            return
        for topic in (single.topic, *replica.children(single.topic)):
            copy = replica.get(topic)
            if copy is not None:
                yield copy

    def get(self, topic: str) -> Copy | None:
        """One copy."""
        copy = self.following.replica.get(topic)
        return copy if copy is not None and self.holds(copy) else None

    def status(self, copy: Copy) -> str:
        """The status to show: `unknown` while nobody can say."""
        if not self.following.core.connected:
            return UNKNOWN
        return self.following.replica.status(copy.topic) or copy.status

    @property
    def refused(self) -> bool:
        """Whether the broker did not take its subscription when the connection came back: nothing of it can be in sync then."""
        return not self.following.refused.isdisjoint(self.scope.filters)

    @property
    def in_sync(self) -> bool:
        """Connected, proven complete, and nothing missing since."""
        replica = self.following.replica
        return (
            self.complete
            and not self.refused
            and self.following.core.connected
            and not any(self.scope.holds(topic.replace("/", "://", 1)) for topic in replica.gaps)
        )

    def take(self, event: ObjectEvent) -> None:
        """Something has happened to a copy within the scope."""
        if self.query is not None:
            seen = self._as_seen(event)
            if seen is None:
                return
            event = seen
        for sink in list(self.sinks):
            sink(event)
        self.look()

    def _as_seen(self, event: ObjectEvent) -> ObjectEvent | None:
        """What an event is to somebody who sees only what matches the query."""
        query = self.query
        assert query is not None
        if isinstance(event, Created):
            return event if query.matches(event.copy) else None
        before = query.matches(event.before)
        if isinstance(event, Deleted):
            return event if before else None
        after = query.matches(event.copy)
        if before and after:
            return event
        if after:
            return Created(event.copy)
        return Deleted(event.before) if before else None

    def look(self) -> None:
        """Let those go on who wait for what is the case now."""
        for entry in list(self.waiting):
            condition, promise = entry
            try:
                met = condition()
            except Exception as error:  # noqa: BLE001 - whoever wrote the condition gets what it raised
                promise.fail(error)
            else:
                if met:
                    promise.keep(None)
            if promise.done and entry in self.waiting:
                self.waiting.remove(entry)

    async def until(self, condition: Callable[[], bool], seconds: float | None, what: str) -> None:
        """Wait until a condition holds. Raises NoAnswerError after so many seconds (None: never)."""
        promise: Promise[None] = Promise()
        entry = (condition, promise)
        self.waiting.append(entry)
        self.look()
        try:
            if seconds is None:
                await promise
            else:
                await self.following.core.within(
                    promise, seconds, lambda: f"{what} did not come about within {seconds:g} s"
                )
        finally:
            if entry in self.waiting:
                self.waiting.remove(entry)


class Following:
    """One replica for everything that one connection observes."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._dice = random.SystemRandom()
        self.replica = Replica(jitter=self._dice.random, prefix=core.target.prefix)
        self._filters: Counter[str] = Counter()
        self.refused: set[str] = set()
        """Those of the filters that the broker did not take on this connection."""
        self._singles: dict[str, list[Observed]] = {}
        self._wide: list[Observed] = []
        self._extra: set[str] = set()
        self._forget_heal: Callable[[], object] | None = None
        self._forget_compare: Callable[[], object] | None = None
        self._retry = RETRY

    def __iter__(self) -> Iterator[Observed]:
        for each in self._singles.values():
            yield from each
        yield from self._wide

    # ---- what arrives --------------------------------------------------------------------------------------------------

    def feed(self, topic: str, payload: bytes) -> None:
        """Take in a message. Hot: once for each delta."""
        events = self.replica.feed(topic, payload, self.core.wire.time())
        if events:
            self.tell(events)

    def tell(self, events: Iterable[Event]) -> None:
        """Pass events on to those whom they are about."""
        for event in events:
            if isinstance(event, GapOpened):
                self._heal_later()
            elif isinstance(event, GapHealed):
                if event.topic in self._extra:
                    self._extra.discard(event.topic)
                    self.core.unsubscribe([f"snapshot/{event.topic}"])
            elif isinstance(event, GatewayChanged):
                self.core.emit(event)
            else:
                self._dispatch(event)

    def _dispatch(self, event: ObjectEvent) -> None:
        copy = event.before if isinstance(event, Deleted) else event.copy
        for observed in tuple(self._singles.get(copy.topic, ())):
            observed.take(event)
        if self._singles:
            parent = parent_of(copy.topic)
            if parent is not None:
                for observed in tuple(self._singles.get(parent, ())):
                    observed.take(event)
        for observed in tuple(self._wide):
            if observed.scope.holds(copy.url):
                observed.take(event)

    # ---- observing -----------------------------------------------------------------------------------------------------

    async def observe(self, observed: Observed, seconds: float, *, absent_ok: bool) -> None:
        """Subscribe, and wait until the copies are proven complete.

        Raises RefusedError (what is not there, or not for this client), NotConnectedError, NoAnswerError; nothing is left then.
        """
        await self._enter(observed, seconds)
        try:
            if not await self.fetch(observed.scope, absent_ok=absent_ok):
                raise NoAnswerError(
                    f"{observed.scope.text}: objects come and go too fast for a complete copy: try again"
                )
        except BaseException:
            self.release(observed)
            raise
        observed.complete = True

    async def watch(self, observed: Observed, seconds: float) -> None:
        """Subscribe, and let the copies come; they are compared a second later, and again until they are complete.

        Raises RefusedError (not for this client), NotConnectedError, NoAnswerError; nothing is left then.
        """
        await self._enter(observed, seconds)
        if self._forget_compare is not None:
            self._forget_compare()
            self._forget_compare = None
        self._compare_later(SETTLE)

    async def _enter(self, observed: Observed, seconds: float) -> None:
        await self.core.ready(seconds)
        scope = observed.scope
        fresh = [each for each in scope.filters if not self._filters[each] or each in self.refused]
        self._filters.update(scope.filters)
        if scope.single is None:
            self._wide.append(observed)
        else:
            self._singles.setdefault(scope.single.topic, []).append(observed)
        try:
            if fresh:
                refused = await self._subscribe(fresh)
                self.refused.difference_update(set(fresh).difference(refused))
                if refused:
                    raise self.refusal(scope)
        except BaseException:
            self.release(observed)
            raise

    def refusal(self, scope: Scope) -> RefusedError:
        """The error of a subscription that the broker does not take."""
        return RefusedError(
            403,
            f"{scope.text}: {self.core.target.client!r} may not observe it, or it is not there; its Reporter can invite, "
            "or `subscribe` asks for it",
            resource=scope.prefix,
        )

    async def fetch(self, scope: Scope, *, absent_ok: bool = False) -> bool:
        """Have copies of everything in a scope, observed or not; False where objects come and go too fast for that.

        Raises RefusedError (404, 410 unless `absent_ok`), NotConnectedError, NoAnswerError.
        """
        if self.core.target.name is None:
            # Without a name there is no inbox to be answered in: the retained snapshots are all there is.
            await self._settle()
            if scope.single is not None and not absent_ok and self.replica.get(scope.single.topic) is None:
                raise RefusedError(
                    404, f"{scope.prefix}: the object does not exist, or may not be read", resource=scope.prefix
                )
        elif scope.single is not None:
            for error in await self._read_singles([scope.single.topic]):
                if not (absent_ok and error.code in (404, 410)):
                    raise error
        else:
            return await self._compare_below(scope.prefix)
        return True

    async def _settle(self) -> None:
        """Wait for the retained snapshots: until no more come, but no longer than for an answer."""
        begun = self.core.wire.time()
        while True:
            before = len(self.replica.topics())
            await self.core.sleep(QUIET)
            passed = self.core.wire.time() - begun
            if passed >= self.core.timeout or (passed >= SETTLE and len(self.replica.topics()) == before):
                return

    def release(self, observed: Observed) -> None:
        """Look at it no more; what nobody looks at is dropped."""
        scope = observed.scope
        if scope.single is None:
            if observed not in self._wide:
                return
            self._wide.remove(observed)
        else:
            others = self._singles.get(scope.single.topic, [])
            if observed not in others:
                return
            others.remove(observed)
            if not others:
                del self._singles[scope.single.topic]
        self._filters.subtract(scope.filters)
        idle = [each for each in scope.filters if not self._filters[each]]
        for each in idle:
            del self._filters[each]
        self.refused.difference_update(idle)
        self.core.unsubscribe([f"{verb}/{each}" for each in idle for verb in ("delta", "snapshot")])
        topics = (
            list(self.replica.topics())
            if scope.single is None
            else [scope.single.topic, *self.replica.children(scope.single.topic)]
        )
        for topic in topics:
            if not self._is_held(topic):
                self.replica.drop(topic)

    def _is_held(self, topic: str) -> bool:
        parent = parent_of(topic)
        if topic in self._singles or (parent is not None and parent in self._singles):
            return True
        url = topic.replace("/", "://", 1)
        return any(each.scope.holds(url) for each in self._wide)

    async def _subscribe(self, filters: Sequence[str]) -> list[str]:
        """Snapshots and deltas in one SUBSCRIBE, as the rule says; those filters that are refused."""
        refused = []
        for start in range(0, len(filters), AT_ONCE):
            part = filters[start : start + AT_ONCE]
            codes = await self.core.subscribe([f"{verb}/{each}" for each in part for verb in ("delta", "snapshot")])
            refused += [each for number, each in enumerate(part) if max(codes[2 * number : 2 * number + 2]) >= 0x80]
        return refused

    # ---- connections that come and go ----------------------------------------------------------------------------------

    async def resubscribe(self) -> None:
        """Subscribe to everything on a new connection."""
        self._extra.clear()
        self.refused = set(await self._subscribe(sorted(self._filters)))
        for each in self.refused:
            # What is not for this client any more is dropped; a comparison finds the rest.
            self.tell(self.replica.gone(each))

    def connected(self) -> None:
        """The connection is there: compare soon, each Observer at its own time."""
        self._retry = RETRY
        self._heal_later()
        self._compare_later(SETTLE * (0.5 + self._dice.random()))

    def disconnected(self) -> None:
        """The connection has gone."""
        for observed in self:
            observed.complete = False
        for forget in (self._forget_heal, self._forget_compare):
            if forget is not None:
                forget()
        self._forget_heal = self._forget_compare = None

    # ---- healing -------------------------------------------------------------------------------------------------------

    def _heal_later(self) -> None:
        due = self.replica.next_due()
        if due is None or self._forget_heal is not None or not self.core.connected:
            return
        self._forget_heal = self.core.wire.later(max(0.0, due - self.core.wire.time()), self._heal_now)

    def _heal_now(self) -> None:
        self._forget_heal = None
        self.core.spawn(self._heal())

    async def _heal(self) -> None:
        """Subscribe again and read, as the replica asks."""
        now = self.core.wire.time()
        topics = self.replica.want_resubscribe(now)
        urls = self.replica.want_read(now)
        if self.core.target.name is None:
            topics += [topic_of(url) for url in urls]
            urls = []
        try:
            for start in range(0, len(topics), AT_ONCE):
                part = topics[start : start + AT_ONCE]
                self._extra.update(each for each in part if each not in self._filters)
                await self.core.subscribe([f"snapshot/{each}" for each in part])
            if urls:
                await self._read(urls)
        finally:
            self._heal_later()

    async def _read(self, urls: Sequence[str]) -> None:
        for start in range(0, len(urls), AT_ONCE):
            await self._read_all({"resources": list(urls[start : start + AT_ONCE])})

    async def _read_all(self, body: dict[str, Any]) -> tuple[set[str], list[RefusedError]]:
        """Take all pages of a `read` into the replica: which URLs were answered, and what was refused."""
        body = dict(body)
        answered: set[str] = set()
        refused: list[RefusedError] = []
        while True:
            page = await self.core.request("read", body)
            now = self.core.wire.time()
            for snapshot in page["snapshots"]:
                answered.add(snapshot["url"])
                self.tell(self.replica.take(snapshot, now))
            for each in page.get("refused", ()):
                refused.append(RefusedError(each["code"], each["description"], resource=each["url"]))
                if each["code"] in GONE:
                    self.tell(self.replica.gone(topic_of(each["url"])))
            if "next" not in page:
                return answered, refused
            body["after"] = page["next"]

    async def _read_singles(self, topics: Sequence[str]) -> list[RefusedError]:
        """Read objects with their children; children that are held and not answered have gone."""
        asked = self.core.wire.time()
        urls = [topic.replace("/", "://", 1) for topic in topics]
        answered, refused = await self._read_all({"resources": urls, "children": True})
        for topic in topics:
            for child in list(self.replica.children(topic)):
                if child.replace("/", "://", 1) not in answered:
                    self.tell(self.replica.unlisted(child, asked))
        return refused

    def doubt(self, url: str) -> None:
        """A grant has gone: is it the only reason why an object may be observed?"""
        topic = topic_of(url)
        if self.replica.get(topic) is not None and self.core.connected:
            self.core.spawn(self._read_singles([topic]))

    # ---- comparing -----------------------------------------------------------------------------------------------------

    def _compare_later(self, seconds: float) -> None:
        if self._forget_compare is None and self.core.connected and self.core.target.name is not None:
            self._forget_compare = self.core.wire.later(seconds, self._compare_now)

    def _compare_now(self) -> None:
        self._forget_compare = None
        self.core.spawn(self._compare())

    async def _compare(self) -> None:
        """Compare everything with what the gateway has, and read what is older or missing."""
        complete = False
        try:
            complete = await self._compare_all()
        finally:
            pause = COMPARE_EVERY if complete else self._retry
            self._retry = RETRY if complete else min(2 * self._retry, LONGEST_RETRY)
            self._compare_later(pause * (0.9 + 0.2 * self._dice.random()))

    async def _compare_all(self) -> bool:
        topics = list(self._singles)
        for start in range(0, len(topics), AT_ONCE):
            part = topics[start : start + AT_ONCE]
            await self._read_singles(part)
            for topic in part:
                for observed in self._singles.get(topic, ()):
                    observed.complete = True
        complete = True
        for prefix in dict.fromkeys(observed.scope.prefix for observed in self._wide):
            found = await self._compare_below(prefix)
            complete = complete and found
            for observed in self._wide:
                if observed.scope.prefix == prefix:
                    observed.complete = found
        for observed in self:
            observed.look()
        return complete

    async def _compare_below(self, prefix: str) -> bool:
        """Compare everything below a prefix. Whether the copies are complete now."""
        for _ in range(TRIES):
            asked = self.core.wire.time()
            pages: list[dict[str, Any]] = []
            body: dict[str, Any] = {"prefix": prefix} if prefix else {}
            while True:
                page = await self.core.request("discover", body)
                pages.append(page)
                if "next" not in page:
                    break
                body = {**body, "after": page["next"]}
            found = self.replica.compare(pages, asked, prefix=prefix)
            self.tell(found.events)
            if found.read:
                await self._read(found.read)
                # Held against the same list: a newer one would name values that have changed since, again and again.
                found = self.replica.compare(pages, asked, prefix=prefix)
                self.tell(found.events)
            if found.complete:
                return True
        return False
