"""Sees to it that a broker outside enforces the rights as they are: one change after the other, again where that fails."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.acl.plugin import AclError
from gateway.counts import counter, gauge
from gateway.credentials import CredentialsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.acl.plugin import AclPlugin
    from gateway.counts import Family
    from gateway.credentials import Credentials
    from gateway.rights import Rights

POLL = 1.0
"""Seconds between two looks for clients that were added, removed, disabled, or given another password."""

GATHER = 0.05
"""Seconds in which what somebody has gained is gathered."""

SHARE = 0.1
"""The part of the time that brokers may spend on taking gains over: they may serve nobody meanwhile."""

LONGEST_REST = 30.0

PAUSES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds between attempts at what has failed; the last one goes on."""

WARN = 60.0
"""Seconds between two looks for what is worth a warning, where something has changed."""

WARNINGS = 20
"""So many are told at a time."""

_log = logging.getLogger("gateway.acl")


class Enforcement:
    """Gathers whose permissions have changed while the plugin is at work, and hands them to it in one."""

    def __init__(self, plugin: AclPlugin, rights: Rights, credentials: Credentials) -> None:
        self.plugin = plugin
        self._rights = rights
        self._credentials = credentials
        self._known: dict[str, tuple[bool, int]] = {}
        self._told: frozenset[str] = frozenset()
        self._looked = -1
        self.enforced = 0
        self.failed = 0
        self._concerned: set[str] | None = set()
        self._lost: set[str] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._more = asyncio.Event()
        self._hurry = asyncio.Event()

    async def prepare(self) -> None:
        """Before the link connects: the broker decides by the rights as they are. Raises AclError."""
        self._credentials.changed()
        self._look()
        await self.plugin.start()
        self._warn()

    async def begin(self) -> None:
        """The link is connected: from now on changes are taken over. Raises AclError."""
        await self.plugin.joined()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._work()), loop.create_task(self._watch())]

    async def stop(self) -> None:
        """Leave what is not done; the broker goes on by what it knows."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for waiter in self._waiting:
            waiter.cancel()
        await self.plugin.stop()
        self._credentials.close()

    async def look(self) -> None:
        """Clients were added, removed, disabled or given another password: return when the broker knows. Raises AclError."""
        changed = self._look()
        if changed:
            await self.concern((), changed)

    def _look(self) -> set[str]:
        """Read the clients again; those of whom something is different. A disabled one may do nothing from now on."""
        known = {client.name: (client.disabled, client.changed) for client in self._credentials.names()}
        before, self._known = self._known, known
        self._rights.bar(name for name, (disabled, _) in known.items() if disabled)
        return {name for name in known.keys() | before.keys() if known.get(name) != before.get(name)}

    def clients(self) -> Iterable[str]:
        """Everybody who is known."""
        return self._known

    def _warn(self) -> None:
        """Say what the plugin warns of and was not told before, or not the last time."""
        if self._looked == self.enforced:
            return
        self._looked = self.enforced
        found = dict.fromkeys(self.plugin.warnings())
        new = [sentence for sentence in found if sentence not in self._told]
        self._told = frozenset(found)
        for sentence in new[:WARNINGS]:
            _log.warning("%s", sentence)
        if len(new) > WARNINGS:
            _log.warning("and %d more of these", len(new) - WARNINGS)

    async def _watch(self) -> None:
        warned = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(POLL)
            if asyncio.get_running_loop().time() - warned > WARN:
                warned = asyncio.get_running_loop().time()
                self._warn()
            try:
                changed = self._look() if self._credentials.changed() else None
            except CredentialsError as error:
                _log.error("%s", error)  # it says what is the matter
                continue
            if changed:
                self.concern((), changed)

    def concern(
        self, clients: Iterable[str] | None, lost: Iterable[str] = (), *, hurry: bool = False
    ) -> asyncio.Future[None]:
        """The permissions of `clients` (None: anybody's) and `lost` have changed; the latter may do less than before.

        Done when the broker decides by them; AclError where it may not. `hurry`: somebody waits for it: at once, as where
        somebody has lost something, else with what comes in the next moments.
        """
        self._lost.update(lost)
        if clients is None:
            self._concerned = None
        elif self._concerned is not None:
            self._concerned.update(clients)
            self._concerned |= self._lost
        hurry = hurry or clients is None or bool(self._lost)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Whoever does not look at how it ends need not: it is logged.
        waiter.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.append(waiter)
        self._more.set()
        if hurry:
            self._hurry.set()
        return waiter

    async def _work(self) -> None:
        failures = 0
        rest = GATHER
        clock = asyncio.get_running_loop().time
        while True:
            await self._more.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self._hurry.wait()
            self._more.clear()
            self._hurry.clear()
            began = clock()
            concerned, self._concerned = self._concerned, set()
            lost, self._lost = self._lost, set()
            waiting, self._waiting = self._waiting, []
            try:
                await self.plugin.enforce(None if concerned is None else frozenset(concerned), frozenset(lost))
            except Exception as found:  # noqa: BLE001  # a plugin may be anybody's; what it has not done is tried again
                error = found if isinstance(found, AclError) else AclError(f"the ACL plugin has failed: {found!r}")
                self.failed += 1
                _log.error("the broker may not enforce the rights as they are: %s; trying again", error)
                for waiter in waiting:
                    if not waiter.done():
                        waiter.set_exception(error)
                if concerned is None or self._concerned is None:
                    self._concerned = None
                else:
                    self._concerned |= concerned
                self._lost |= lost
                await asyncio.sleep(PAUSES[min(failures, len(PAUSES) - 1)])
                failures += 1
                self._more.set()
                self._hurry.set()
                continue
            failures = 0
            rest = min(max(GATHER, (clock() - began) * (1 / SHARE - 1)), LONGEST_REST)
            self.enforced += 1
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)

    def families(self) -> Iterator[Family]:
        """What is counted here and in the plugin."""
        yield counter(
            "ctxt_acl_changes_total", "Changes of rights that the broker outside has taken over.", self.enforced
        )
        yield counter("ctxt_acl_failures_total", "Attempts at it that failed.", self.failed)
        pending = self._concerned is None or bool(self._concerned)
        yield gauge("ctxt_acl_pending", "1 while a change of rights waits to be taken over.", float(pending))
        yield from self.plugin.families()
