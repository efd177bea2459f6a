"""`ctxt observe`: the client library's copies, and what happens to them, as lines."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich.text import Text

from gateway.client.errors import NoAnswerError, NotConnectedError
from gateway.client.following import Observed
from gateway.client.inbox import Connected, Disconnected
from gateway.client.replica import Changed, Copy, Created, Delegated, Deleted, GatewayChanged, StatusChanged
from gateway.commands.changes import changed, described
from gateway.commands.connection import as_command, connected, failure, library
from gateway.commands.objects import retained
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.scopes import scope
from gateway.commands.terminal import out, printable, status_text, write_json, write_note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.client.following import ObjectEvent
    from gateway.client.scopes import Scope
    from gateway.client.target import Target

T = TypeVar("T")
Kind = Literal["snapshot", "created", "changed", "status", "reporter", "deleted"]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to one object, for whoever looks at it. `copy` is None where it has gone."""

    event: Kind
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
        """Must be called in the event loop."""
        self.tell = tell
        self._note = note
        self._gateway = gateway
        self._target = target
        self._patience = patience
        self._library = library(target, patience)
        self._following = self._library.core.following
        self._observed = [Observed(self._following, scope, None) for scope in scopes]
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()
        """Set when it has subscribed: whatever happens from then on is told as it happens."""

    # ---- what is held --------------------------------------------------------------------------------------------------

    @property
    def copies(self) -> list[Copy]:
        """The objects of the scopes as they are now, by URL."""
        found = {copy.url: copy for observed in self._observed for copy in observed.copies()}
        return [found[url] for url in sorted(found)]

    def status(self, copy: Copy) -> str:
        """The status to show."""
        return self._following.replica.status(copy.topic) or copy.status

    # ---- following -----------------------------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Until cancelled, once. Raises CommandError when it cannot begin, or is no longer admitted."""
        self._library.core.sinks.append(self._heard)
        try:
            with as_command(self._target):
                await self._library.start(wait=False)
                for observed in self._observed:
                    await self._library.run(self._following.watch(observed, self._patience))
                self._replay()
                self.begun.set()
                if not self._following.replica.gateways:
                    self._say(
                        self._note,
                        f"no gateway has announced itself at {self._target.where}: start it with `ctxt run`; waiting for it",
                    )
                await self._look_for_singles()
            await self._end
        finally:
            await self._library.stop()

    def _replay(self) -> None:
        """Tell what is there already, and whatever happens from now on."""
        for copy in self.copies:
            self.tell(Change("snapshot", copy.url, copy, None, self.status(copy)))
        for number, observed in enumerate(self._observed):
            before = [each.scope for each in self._observed[:number]]
            observed.sinks.append(partial(self._happened, before))

    async def _look_for_singles(self) -> None:
        """Who follows one object wants to know that it is not there."""
        if self._target.name is None:
            return
        for observed in self._observed:
            if observed.scope.single is not None:
                # Where the connection is lost, or nobody answers, it is compared later.
                with suppress(NotConnectedError, NoAnswerError):
                    await self._library.run(self._following.fetch(observed.scope))

    def _heard(self, event: Any) -> None:
        """Something about the connection, or a gateway."""
        if isinstance(event, GatewayChanged):
            if self._gateway is not None:
                self._say(self._gateway, event)
        elif not self.begun.is_set():
            return
        elif isinstance(event, Disconnected):
            error = failure(event.error, self._target)
            if error.code is Exit.NO_CONNECTION:
                self._say(self._note, f"{error}; connecting again in {event.retry_in:.1f} s")
            else:
                self._fail(error)
        elif isinstance(event, Connected):
            self._say(self._note, f"connected to {self._target.where} again")
            for observed in self._observed:
                if observed.refused:
                    self._fail(failure(self._following.refusal(observed.scope), self._target))

    def _say(self, say: Callable[[T], None], what: T) -> None:
        """Tell whoever listens; where that fails (a pipe that nobody reads) it is the end."""
        try:
            say(what)
        except Exception as error:  # noqa: BLE001 - `follow` raises it
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._end.done():
            self._end.set_exception(error)

    def _happened(self, before: Sequence[Scope], event: ObjectEvent) -> None:
        """Something has happened to a copy. Scopes may overlap: what an earlier one holds has been told."""
        if any(scope.holds(event.url) for scope in before):
            return
        match event:
            case Created(copy):
                name: Kind = "created" if event.new else "snapshot"
                change = Change(name, copy.url, copy, None, self.status(copy))
            case Changed(copy, old):
                change = Change("changed", copy.url, copy, old, self.status(copy))
            case StatusChanged(copy, old):
                change = Change("status", copy.url, copy, old, self.status(copy))
            case Delegated(copy, old):
                change = Change("reporter", copy.url, copy, old, self.status(copy))
            case Deleted(old):
                change = Change("deleted", old.url, None, old, "deleted")
        self._say(self.tell, change)

    # ---- once ----------------------------------------------------------------------------------------------------------

    async def once(self) -> list[Copy]:
        """What there is now, complete. Raises CommandError."""
        if self._target.name is None:
            await self._take_retained()
            return self.copies
        try:
            with as_command(self._target):
                await self._library.start(wait=False)
                for observed in self._observed:
                    if not await self._library.run(self._following.fetch(observed.scope)):
                        raise CommandError(Exit.FAILED, "objects come and go too fast for a complete list: try again")
        finally:
            await self._library.stop()
        return self.copies

    async def _take_retained(self) -> None:
        replica = self._following.replica
        async with connected(self._target, self._patience) as connection:
            for observed in self._observed:
                for snapshot in await retained(connection, observed.scope):
                    replica.take(snapshot, time.monotonic())
        for observed in self._observed:
            scope = observed.scope
            if scope.single is not None and replica.get(scope.single.topic) is None:
                raise CommandError(Exit.NOT_FOUND, f"{scope.prefix}: the object does not exist, or may not be read")


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
    scopes = [scope(each) for each in targets]
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
