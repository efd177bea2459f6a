"""`ctxt observe`: copies in sync by the Observer rule, over connections that come and go."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from gateway.client.replica import (
    Changed,
    Copy,
    Created,
    Delegated,
    Deleted,
    GapHealed,
    GatewayChanged,
    Replica,
    StatusChanged,
)
from gateway.commands.changes import changed, described
from gateway.commands.connection import Connection, Target, connected
from gateway.commands.objects import TRIES, retained
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.scopes import Scope
from gateway.commands.terminal import out, printable, status_text, write_json, write_note
from gateway.objects import topic_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gateway.client.replica import Event

SETTLE = 1.0
"""Seconds for the retained snapshots to arrive before they are compared with what the gateway lists."""

COMPARE_EVERY = 300.0
RETRY = 10.0
LONGEST_PAUSE = 30.0

_dice = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one object, for whoever looks at it. `copy` is None where it has gone."""

    event: Literal["snapshot", "created", "changed", "status", "reporter", "deleted"]
    url: str
    copy: Copy | None
    before: Copy | None
    status: str


class Follower:
    """Follows scopes. Every change goes to `tell`, what people should know beside it to `note`."""

    def __init__(
        self,
        target: Target,
        scopes: Sequence[Scope],
        patience: float,
        *,
        tell: Callable[[Change], None],
        note: Callable[[str], None],
        gateway: Callable[[GatewayChanged], None] | None = None,
    ) -> None:
        self.tell = tell
        self._note = note
        self._gateway = gateway
        self._target = target
        self._scopes = scopes
        self._patience = patience
        self.replica = Replica(jitter=_dice.random, prefix=target.prefix)
        self._base = {topic_filter for scope in scopes for topic_filter in scope.filters}
        self._extra: set[str] = set()

    # ---- what is held --------------------------------------------------------------------------------------------------

    @property
    def copies(self) -> list[Copy]:
        """The objects of the scopes as they are now, by URL."""
        return sorted((copy for copy in self.replica if self._holds(copy.url)), key=lambda copy: copy.url)

    def status(self, copy: Copy) -> str:
        """The status to show."""
        return self.replica.status(copy.topic) or copy.status

    def _holds(self, url: str) -> bool:
        return any(scope.holds(url) for scope in self._scopes)

    # ---- following -----------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Until cancelled. Raises CommandError when it cannot begin, or is no longer admitted."""
        begun = False
        pause = 0.5
        while True:
            try:
                async with connected(self._target, self._patience) as connection:
                    if begun:
                        self._note(f"connected to {self._target.where} again")
                    await self._subscribe(connection)
                    begun = True
                    pause = 0.5
                    await self._listen(connection)
            except CommandError as error:
                if not begun or error.code != Exit.NO_CONNECTION:
                    raise
                wait = pause * (0.5 + _dice.random() / 2)
                self._note(f"{error}; connecting again in {wait:.1f} s")
            await asyncio.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _subscribe(self, connection: Connection) -> None:
        """Snapshots and deltas in one SUBSCRIBE, as the rule says."""
        self._extra.clear()
        topics = [f"{verb}/{each}" for each in sorted(self._base) for verb in ("delta", "snapshot")]
        await connection.subscribe("gateway/+", *topics)

    async def _listen(self, connection: Connection) -> None:
        compare_at = time.monotonic() + SETTLE
        while True:
            now = time.monotonic()
            due = self.replica.next_due()
            until = compare_at if due is None else min(compare_at, due)
            with suppress(TimeoutError):
                await self._take_in(connection, max(0.0, until - now))
            now = time.monotonic()
            await self._heal(connection, now)
            if now >= compare_at:
                done = await self._compare(connection)
                compare_at = time.monotonic() + (COMPARE_EVERY if done else RETRY) * (0.9 + 0.2 * _dice.random())

    async def _take_in(self, connection: Connection, seconds: float) -> None:
        """Feed the replica with what is there, waiting for the first. Raises TimeoutError, CommandError."""
        queue = connection.messages
        message = await asyncio.wait_for(queue.get(), seconds) if queue.empty() else queue.get_nowait()
        for _ in range(1000):
            if message is None:
                raise connection.gone()
            topic = message.topic.value
            events = self.replica.feed(topic, message.payload, time.monotonic())
            await self._told(connection, events, seen=not self._target.without_prefix(topic).startswith("delta/"))
            if queue.empty():
                return
            message = queue.get_nowait()

    async def _told(self, connection: Connection, events: Iterable[Event], *, seen: bool) -> None:
        """Pass events on. `seen`: they come from snapshots, so what is new here may be old elsewhere."""
        for event in events:
            if isinstance(event, GapHealed):
                if event.topic in self._extra:
                    self._extra.discard(event.topic)
                    await connection.unsubscribe(f"snapshot/{event.topic}")
            elif isinstance(event, GatewayChanged):
                if self._gateway is not None:
                    self._gateway(event)
            else:
                change = self._change(event, seen=seen)
                if change is not None and self._holds(change.url):
                    self.tell(change)

    def _change(self, event: Event, *, seen: bool) -> Change | None:
        match event:
            case Created(copy):
                return Change("snapshot" if seen else "created", copy.url, copy, None, self.status(copy))
            case Changed(copy, before):
                return Change("changed", copy.url, copy, before, self.status(copy))
            case StatusChanged(copy, before):
                return Change("status", copy.url, copy, before, self.status(copy))
            case Delegated(copy, before):
                return Change("reporter", copy.url, copy, before, self.status(copy))
            case Deleted(before):
                return Change("deleted", before.url, None, before, "deleted")
            case _:
                return None

    # ---- healing -------------------------------------------------------------------------------------------------------

    async def _heal(self, connection: Connection, now: float) -> None:
        """Subscribe again and read, as the replica asks."""
        topics = self.replica.want_resubscribe(now)
        urls = self.replica.want_read(now)
        if self._target.name is None:
            # Without a name there is no inbox to be answered in: subscribing again is all there is.
            topics += [topic_of(url) for url in urls]
        elif urls:
            await self._read(connection, urls)
        if topics:
            self._extra.update(each for each in topics if each not in self._base)
            await connection.subscribe(*(f"snapshot/{each}" for each in topics))

    async def _read(self, connection: Connection, urls: Sequence[str]) -> None:
        for start in range(0, len(urls), 100):
            await self._read_all(connection, {"resources": list(urls[start : start + 100])})

    async def _read_all(self, connection: Connection, body: dict[str, Any]) -> None:
        """Take all pages of a `read` into the replica."""
        body = dict(body)
        while True:
            page = await connection.request("read", body)
            for snapshot in page["snapshots"]:
                await self._told(connection, self.replica.take(snapshot, time.monotonic()), seen=True)
            for refused in page.get("refused", ()):
                if refused["code"] in (403, 404, 410):
                    await self._told(connection, self.replica.gone(topic_of(refused["url"])), seen=True)
            if "next" not in page:
                return
            body["after"] = page["next"]

    async def _compare(self, connection: Connection) -> bool:
        """Compare with what the gateway lists, and read what is older or missing. Whether the copies are complete now."""
        if self._target.name is None:
            return True
        complete = True
        for scope in self._scopes:
            if scope.single is not None:
                await self._read_one(connection, scope)
            else:
                complete = await self._compare_below(connection, scope.prefix) and complete
        return complete

    async def _compare_below(self, connection: Connection, prefix: str) -> bool:
        for _ in range(TRIES):
            asked = time.monotonic()
            pages: list[dict[str, Any]] = []
            body: dict[str, Any] = {"prefix": prefix} if prefix else {}
            while True:
                page = await connection.request("discover", body)
                pages.append(page)
                if "next" not in page:
                    break
                body = {**body, "after": page["next"]}
            found = self.replica.compare(pages, asked, prefix=prefix)
            await self._told(connection, found.events, seen=True)
            if found.read:
                await self._read(connection, found.read)
                # Held against the same list: a newer one would name values that have changed since, again and again.
                found = self.replica.compare(pages, asked, prefix=prefix)
                await self._told(connection, found.events, seen=True)
            if found.complete:
                return True
        return False

    async def _read_one(self, connection: Connection, scope: Scope) -> None:
        """One object and its children: what is held and not answered has gone."""
        asked = time.monotonic()
        answered: set[str] = set()
        body: dict[str, Any] = {"resource": scope.prefix, "children": True}
        while True:
            page = await connection.request("read", body)
            now = time.monotonic()
            for snapshot in page["snapshots"]:
                answered.add(snapshot["url"])
                await self._told(connection, self.replica.take(snapshot, now), seen=True)
            if "next" not in page:
                break
            body = {**body, "after": page["next"]}
        if time.monotonic() - asked > self._patience:
            return
        for copy in [copy for copy in self.replica if scope.holds(copy.url) and copy.url not in answered]:
            await self._told(connection, self.replica.gone(copy.topic), seen=True)

    # ---- once ----------------------------------------------------------------------------------------------------------

    async def once(self) -> list[Copy]:
        """What there is now, complete. Raises CommandError."""
        tell, self.tell = self.tell, lambda _change: None
        async with connected(self._target, self._patience) as connection:
            if self._target.name is None:
                for scope in self._scopes:
                    for snapshot in await retained(connection, scope):
                        self.replica.take(snapshot, time.monotonic())
            elif not await self._compare(connection):
                raise CommandError(Exit.FAILED, "objects come and go too fast for a complete list: try again")
        for scope in self._scopes:
            if scope.single is not None and self.replica.get(scope.single.topic) is None:
                raise CommandError(Exit.NOT_FOUND, f"{scope.prefix}: the object does not exist, or may not be read")
        self.tell = tell
        return self.copies


# ---- the command -------------------------------------------------------------------------------------------------------


async def observe(target: Target, targets: Sequence[str], *, patience: float, json: bool, once: bool) -> None:
    """Follow, or print once. Raises CommandError."""

    def tell(change: Change) -> None:
        if json:
            write_json(facts_of(change))
        else:
            show(line_of(change))

    def gateway(event: GatewayChanged) -> None:
        # That a gateway is there is no news at first.
        news = event.gateway in gateway_known or not event.online
        gateway_known.add(event.gateway)
        if not news:
            return
        if json:
            write_json({"event": "gateway", "time": _now(), "gateway": event.gateway, "online": event.online})
        elif not event.online:
            write_note(f"gateway {event.gateway} is offline: the status of what it serves is unknown")
        else:
            write_note(f"gateway {event.gateway} is online")

    gateway_known: set[str] = set()
    scopes = [Scope.parse(each) for each in targets]
    follower = Follower(target, scopes, patience, tell=tell, note=write_note, gateway=gateway)
    if once:
        for copy in await follower.once():
            tell(Change("snapshot", copy.url, copy, None, follower.status(copy)))
        return
    await follower.follow()


def show(line: Text) -> None:
    """A line at once, also into a pipe."""
    out.print(line)
    sys.stdout.flush()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def facts_of(change: Change) -> dict[str, Any]:
    """A change as the JSON line that docs/cli.md describes."""
    facts: dict[str, Any] = {"event": change.event, "time": _now(), "url": change.url}
    copy = change.copy
    if copy is not None:
        facts |= {
            "epoch": copy.epoch,
            "version": copy.version,
            "modified": copy.modified,
            "status": change.status,
            "reporter": copy.reporter,
            "data": copy.data,
        }
    return facts


def line_of(change: Change) -> Text:
    """A change in one line: local time, URL, what is different."""
    line = Text(f"{datetime.now().astimezone():%H:%M:%S}  ", style="")
    line.append(f"{printable(change.url)}  ", style="cyan")
    copy, before = change.copy, change.before
    if change.event == "deleted" or copy is None:
        return line.append("deleted", style="red")
    if change.event in ("snapshot", "created"):
        if change.event == "created":
            line.append("created  ", style="green")
        line.append(printable(", ".join(described(copy.data))))
        if change.status != "live":
            line.append("  ").append_text(status_text(change.status))
    elif before is not None and change.event == "status":
        line.append_text(status_text(before.status)).append(" → ").append_text(status_text(copy.status))
    elif before is not None and change.event == "reporter":
        line.append(f"reporter {printable(before.reporter)} → {printable(copy.reporter)}")
    elif before is not None:
        texts = changed(before.data, copy.data) or ["its description"]
        line.append(printable(", ".join(texts)))
    return line
