"""The link to the broker inside: same process, same event loop, no second hop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from gateway.backoff import Backoff
from gateway.broker import counters
from gateway.broker.house import Refusal
from gateway.broker.listeners import Listener, ListenError, address_group
from gateway.broker.server import Broker
from gateway.credentials import ClientNameError, check_name
from gateway.links.link import LinkError
from gateway.rights import ANONYMOUS, STATISTICS
from gateway.wire.packets import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gateway.acl.embedded import EmbeddedAcl
    from gateway.broker.house import Limits, Peer
    from gateway.broker.session import Session
    from gateway.counts import Family
    from gateway.credentials import Credentials
    from gateway.links.link import Receiver
    from gateway.wire.packets import Publish

POLL = 1.0
"""Seconds between two looks for clients that were removed or disabled while connected."""

SHORT_FORM = "broker.url"
"""The name of the listener that `[broker] url` stands for."""

LONGEST_NAME = 64
"""Characters of a user name that wrong passwords are counted by: no client has a longer one."""

OWNED = ("report", "request", "presence")
"""The verbs that the gateway itself listens to."""

REMADE = ("snapshot", "delta", "value", "gateway")
"""The verbs whose messages are made anew after a restart, under a new epoch: those of the old one are of no use then."""


class Entrance(NamedTuple):
    """A listener and who may come in there. `anonymous` admits clients without a name, where they are on this machine.

    `named`: the common name in a verified certificate is the client's name; `any_name`: even where `clients.db` has it not.
    """

    listener: Listener
    anonymous: bool = False
    named: bool = False
    any_name: bool = False


class LocalLink:
    """Joins the service to the broker inside: the broker's `House` on one side, the service's `Link` on the other."""

    ready = True
    room = True

    def __init__(
        self,
        entrances: Sequence[Entrance],
        limits: Limits,
        acl: EmbeddedAcl,
        credentials: Credentials,
        *,
        prefix: str = "",
        version: str = "",
        wrong_passwords: int = 10,
        wrong_password_pause: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wrong_passwords` a minute from one address for one client; then pauses of up to `wrong_password_pause` seconds."""
        self._entrances = {entrance.listener.name: entrance for entrance in entrances}
        self._acl = acl
        self._credentials = credentials
        head = f"{prefix}/" if prefix else ""
        self._owned = tuple(f"{head}{verb}/" for verb in OWNED)
        self._remade = (*(f"{head}{verb}/" for verb in REMADE), STATISTICS)
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._turn = asyncio.Semaphore(1)
        self._backoff = Backoff(wrong_passwords, wrong_password_pause, clock)
        self._receiver: Receiver | None = None
        self._poll: asyncio.TimerHandle | None = None
        self.address = ("", 0)
        self.urls: list[str] = []
        self.broker = Broker(self, limits, version=version, keep_sessions=True)
        self.journal = self.broker.journal
        self.saved = self.broker.saved
        self.may_publish = acl.may_publish
        self.may_subscribe = acl.may_subscribe
        self.may_receive = acl.may_receive
        self.publish = self.broker.publish
        self.acknowledge = self.broker.acknowledge
        self.send = self.broker.send
        self.route = self.broker.route
        self.wants = self.broker.wants
        self.withhold = self.broker.withhold
        self.pause = self.broker.pause
        self.resume = self.broker.resume

    # ---- the service's Link --------------------------------------------------------------------------------------------

    async def start(self, receiver: Receiver) -> None:
        """Take up the sessions of an earlier run, and listen. Raises LinkError."""
        self._receiver = receiver
        self.receive = receiver.receive
        self.retained = receiver.retained
        self.settled = receiver.settled
        self.save = receiver.save
        self.broker.restore(receiver.sessions(), time.time())
        try:
            for entrance in self._entrances.values():
                await self._open(entrance.listener)
        except LinkError:
            await self.broker.stop()
            raise
        self._credentials.changed()
        self._watch()

    async def _open(self, listener: Listener) -> None:
        try:
            opened = await self.broker.open(listener)
        except ListenError as error:
            raise LinkError(str(error)) from error
        except OSError as error:
            where = listener.path if listener.scheme == "unix" else f"{listener.host} port {listener.port}"
            hint = "another broker may be running there: stop it, or set another port in broker.url"
            if listener.name != SHORT_FORM:
                hint = f"set another url than {listener.name} in its [[listener]], or make room there"
            raise LinkError(f"cannot listen on {where}: {error.strerror or error}; {hint}") from error
        if not self.urls:
            self.address = opened.address
        self.urls.append(opened.url)

    async def stop(self) -> None:
        """Say good-bye to every client and close."""
        if self._poll is not None:
            self._poll.cancel()
        await self.broker.stop()
        self._hashing.shutdown(wait=False)

    def families(self) -> Iterator[Family]:
        """What the broker inside counts."""
        return counters.families(self.broker)

    def session(self, publish: Publish) -> tuple[str, str]:
        """(client, client id): whose packet identifiers these are."""
        key: tuple[str, str] = publish.origin.key
        return key

    # ---- the broker's House --------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Grows whenever an earlier answer of may_… could have become different."""
        return self._acl.generation

    async def authenticate(self, username: str | None, password: bytes | None, peer: Peer) -> str | Refusal | None:
        """The client's name, or why not. Hashing happens in a thread; one password at a time, so that it costs one core."""
        entrance = self._entrances[peer.listener]
        if entrance.named and peer.tls_name is not None:
            return self._certified(peer.tls_name, username, any_name=entrance.any_name)
        if username is None:
            return ANONYMOUS if entrance.anonymous and peer.loopback else None
        if password is None:
            return None
        address = address_group(peer.address)
        counted = username[:LONGEST_NAME]
        refusal = self._unheard(address, counted)
        if refusal is not None:
            return refusal
        if self._credentials.recall(username, password):
            self._backoff.passed(address, counted)
            return username
        loop = asyncio.get_running_loop()
        async with self._turn:
            # Those who have waited beside this one may have been wrong: what they were told holds for it too.
            refusal = self._unheard(address, counted)
            if refusal is not None:
                return refusal
            good = await loop.run_in_executor(self._hashing, self._credentials.verify, username, password)
            if good:
                self._backoff.passed(address, counted)
                return username
            self._backoff.failed(address, counted)
        return None

    def _unheard(self, address: str, name: str) -> Refusal | None:
        """Whether a password is not even looked at now."""
        pause = self._backoff.pause(address, name)
        if not pause:
            return None
        text = f"too many wrong passwords: put the password right and try again in {ceil(pause)} s"
        return Refusal(Reason.CONNECTION_RATE_EXCEEDED, text)

    def _certified(self, name: str, username: str | None, *, any_name: bool) -> str | None:
        """The name in a verified certificate, if a client can have it and does not ask for another one beside it."""
        if username not in (None, name):
            return None
        try:
            check_name(name)
        except ClientNameError:
            return None
        admitted = self._credentials.admitted(name)
        return name if admitted or (admitted is None and any_name) else None

    def owns(self, topic: str) -> bool:
        """Whether the gateway itself listens to this topic."""
        return topic.startswith(self._owned)

    def survives(self, topic: str) -> bool:
        """Topics that rules open, and inboxes. What Observers read is made anew from the objects after a restart."""
        return not topic.startswith(self._remade)

    def online(self, session: Session) -> None:
        """A client has connected."""
        if self._receiver is not None:
            self._receiver.present(session.client)

    def offline(self, session: Session, *, clean: bool, last: bool) -> None:
        """A connection has ended. A clean DISCONNECT changes nothing: battery sensors sleep."""
        if last and not clean and self._receiver is not None:
            self._receiver.lost(session.client)

    def _watch(self) -> None:
        """Disconnect clients that are no longer admitted; a look at the file costs nothing when it has not changed."""
        self._poll = asyncio.get_running_loop().call_later(POLL, self._watch)
        if not self._credentials.changed():
            return
        known = {client.name: not client.disabled for client in self._credentials.names()}
        for client in self.broker.clients():
            if client != ANONYMOUS and not known.get(client):
                self.broker.disconnect(client, Reason.NOT_AUTHORIZED, keep=None if client in known else self._certifies)

    def _certifies(self, peer: Peer) -> bool:
        """Whether a connection needs no client of its name: its certificate suffices."""
        entrance = self._entrances[peer.listener]
        return entrance.named and entrance.any_name and peer.tls_name is not None

    receive: Callable[[list[Publish]], None]
    retained: Callable[[str], Iterator[tuple[str, bytes, int]]]
    settled: Callable[[Callable[[], None]], None]
    save: Callable[[], None]
