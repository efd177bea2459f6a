"""The link to the broker inside: same process, same event loop, no second hop."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from gateway.backoff import Backoff
from gateway.broker import counters
from gateway.broker.house import Login, Refusal
from gateway.broker.listeners import Listener, ListenError, address_group
from gateway.broker.server import Broker
from gateway.credentials import ClientNameError, check_name
from gateway.links.link import LinkError
from gateway.rights import ANONYMOUS, STATISTICS
from gateway.tokens import TokenError, TokenKeyError, claimed, looks_like_token
from gateway.topics import matches
from gateway.wire.packets import Publish, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gateway.acl.embedded import EmbeddedAcl
    from gateway.broker.house import Limits, Peer
    from gateway.broker.session import Session
    from gateway.counts import Family
    from gateway.credentials import Credentials
    from gateway.links.link import Receiver
    from gateway.tokens import Bearers

POLL = 1.0
"""Seconds between two looks for clients that were removed, disabled or given another password while connected."""

SHORT_FORM = "broker.url"
"""The name of the listener that `[broker] url` stands for."""

LONGEST_NAME = 64
"""Characters of a user name that wrong passwords are counted by: no client has a longer one."""

MOST_HEARD = 20_000
"""Topics of which it is remembered whether an adapter wants them; when full the table begins anew."""

OWNED = ("report", "request", "presence")
"""The verbs that the gateway itself listens to."""

REMADE = ("snapshot", "delta", "value", "gateway")
"""The verbs whose messages are made anew after a restart, under a new epoch: those of the old one are of no use then."""

_log = logging.getLogger("gateway.links")


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
        bearers: Bearers | None = None,
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
        self._bearers = bearers
        self._backoff = Backoff(wrong_passwords, wrong_password_pause, clock)
        self._receiver: Receiver | None = None
        self._filters: frozenset[str] = frozenset()
        self._hears: dict[str, bool] = {}
        self._heard: list[Publish] = []
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
        self._replay(self._filters)
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
        if self._bearers is not None:
            self._bearers.close()

    def reread(self) -> Callable[[], None]:
        """Read certificates and keys of tokens now; what is returned takes them over. Raises LinkError where one cannot be used."""
        try:
            certificates = self.broker.reread_certificates()
            keys = None if self._bearers is None else self._bearers.tokens.reread()
        except (ListenError, TokenKeyError) as error:
            raise LinkError(str(error)) from error

        def take() -> None:
            certificates()
            if keys is not None:
                keys()

        return take

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

    async def authenticate(self, username: str | None, password: bytes | None, peer: Peer) -> Login | Refusal | None:
        """Who the client is, or why not. Hashing happens in a thread; one password at a time, so that it costs one core."""
        entrance = self._entrances[peer.listener]
        if entrance.named and peer.tls_name is not None:
            return self._certified(peer.tls_name, username, any_name=entrance.any_name)
        if self._bearers is not None and password is not None and looks_like_token(password):
            return await self._bear(self._bearers, username, password, address_group(peer.address))
        if username is None:
            return Login(ANONYMOUS, "none") if entrance.anonymous and peer.loopback else None
        if password is None:
            return None
        address = address_group(peer.address)
        counted = username[:LONGEST_NAME]
        refusal = self._unheard(address, counted)
        if refusal is not None:
            return refusal
        proof = self._credentials.recall(username, password)
        if proof is not None:
            self._backoff.passed(address, counted)
            return Login(username, proof=proof)
        loop = asyncio.get_running_loop()
        async with self._turn:
            # Those who have waited beside this one may have been wrong: what they were told holds for it too.
            refusal = self._unheard(address, counted)
            if refusal is not None:
                return refusal
            proof = await loop.run_in_executor(self._hashing, self._credentials.verify, username, password)
            if proof is None:
                self._backoff.failed(address, counted)
                return None
        # Another password may have been set, or the client disabled, meanwhile: `look` has not seen this connection.
        if self._credentials.proof(username) != proof:
            return None
        self._backoff.passed(address, counted)
        return Login(username, proof=proof)

    async def _bear(self, bearers: Bearers, username: str | None, token: bytes, address: str) -> Login | Refusal | None:
        """Whom a token names, if the user name is the same or none. A wrong one counts as a wrong password does."""
        # Who gives no name is counted by the one that it claims: others at its address are not to suffer.
        counted = (username or claimed(token, bearers.tokens.rules.client_claim))[:LONGEST_NAME]
        refusal = self._unheard(address, counted)
        if refusal is not None:
            return refusal
        try:
            identity = await bearers.identify(username, token, self._credentials.admitted)
        except TokenError as error:
            self._backoff.failed(address, counted)
            _log.debug("a client from %s is refused: %s", address or "a Unix socket", error)
            return Refusal(Reason.BAD_USER_NAME_OR_PASSWORD, str(error))
        self._backoff.passed(address, counted)
        if identity.groups:
            self._acl.join(identity.client, identity.groups, identity.expires)
        return Login(identity.client, "token", identity.expires, unlisted=bearers.any_name)

    def _unheard(self, address: str, name: str) -> Refusal | None:
        """Whether a password is not even looked at now."""
        pause = self._backoff.pause(address, name)
        if not pause:
            return None
        text = f"too many wrong passwords: put the password right and try again in {ceil(pause)} s"
        return Refusal(Reason.CONNECTION_RATE_EXCEEDED, text)

    def _certified(self, name: str, username: str | None, *, any_name: bool) -> Login | None:
        """The name in a verified certificate, if a client can have it and does not ask for another one beside it."""
        if username not in (None, name):
            return None
        try:
            check_name(name)
        except ClientNameError:
            return None
        admitted = self._credentials.admitted(name)
        good = admitted or (admitted is None and any_name)
        return Login(name, "certificate", unlisted=any_name) if good else None

    def listen(self, filters: frozenset[str]) -> None:
        """Hear what is published below these filters, beside the subscribers."""
        fresh = filters - self._filters
        self._filters = filters
        self._hears.clear()
        if self._receiver is not None:
            self._replay(fresh)

    def _replay(self, filters: frozenset[str]) -> None:
        """What is retained there, as a new subscriber would get it."""
        for each in sorted(filters):
            for topic in self.broker.retained.below(each):
                kept = self.broker.retained.get(topic) if topic is not None else None
                if topic is not None and kept is not None:
                    self._take_up(Publish(topic, kept.payload, retain=True))

    def overhear(self, publish: Publish) -> bool:
        """Devices' messages go to their subscribers, and to us where an adapter wants them."""
        if not self._filters:
            return False
        topic = publish.topic
        hears = self._hears.get(topic)
        if hears is None:
            hears = any(matches(each, topic) for each in self._filters)
            if len(self._hears) >= MOST_HEARD:
                self._hears.clear()
            self._hears[topic] = hears
        if hears:
            self._take_up(Publish(topic, publish.payload))
        return hears

    def _take_up(self, publish: Publish) -> None:
        """One batch for all that a turn of the loop brings."""
        if not self._heard:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._heard.append(publish)

    def _hand_over(self) -> None:
        heard, self._heard = self._heard, []
        self.receive(heard)

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
        """Look at the clients and at the keys of tokens; that costs nothing where neither has changed."""
        self._poll = asyncio.get_running_loop().call_later(POLL, self._watch)
        if self._bearers is not None:
            self._bearers.tokens.look()
        if self._credentials.changed():
            self.look()

    def look(self) -> None:
        """Clients were removed, disabled, or given another password: disconnect who has come in by what no longer holds."""
        known = self._credentials.proofs()
        for client in self.broker.clients() - {ANONYMOUS}:
            if client not in known:
                self.broker.disconnect(client, Reason.NOT_AUTHORIZED, keep=lambda login: login.unlisted)
                continue
            proof = known[client]
            if proof is None:
                self.broker.disconnect(client, Reason.NOT_AUTHORIZED)
                continue
            self.broker.disconnect(
                client,
                Reason.NOT_AUTHORIZED,
                "the password was changed: connect with the new one",
                keep=lambda login, proof=proof: login.way != "password" or login.proof == proof,  # type: ignore[misc]
            )

    receive: Callable[[list[Publish]], None]
    retained: Callable[[str], Iterator[tuple[str, bytes, int]]]
    settled: Callable[[Callable[[], None]], None]
    save: Callable[[], None]
