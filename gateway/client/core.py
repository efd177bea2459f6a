"""What both clients have in common: one connection's requests, reports, inbox and copies, without an event loop and without I/O.

An edge (asyncio on aiomqtt, a thread on paho-mqtt) dials, moves packets and keeps the time; it calls `opened`, `lost`, `received`,
`acknowledged` and `subscribed` here, always from one thread. Whatever takes time is a coroutine that awaits promises
(`gateway.client.promise`), so it is written once for both.
"""

from __future__ import annotations

import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gateway.client import inbox
from gateway.client.errors import ClientError, NoAnswerError, NotConnectedError, RefusedError, UsageError
from gateway.client.following import Following
from gateway.client.inbox import Action, Connected, Delegation, Disconnected, Invitation, Revoked, SubscriptionRequest
from gateway.client.payload import encode
from gateway.client.promise import CancelledError, Driven, Promise, Turn, drive
from gateway.topics import Escape
from gateway.ulid import ulid

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from gateway.client.outbox import Outbox
    from gateway.client.reporting import Reporting
    from gateway.client.target import Target

T = TypeVar("T")

LOG = logging.getLogger("gateway.client")

SAFE = frozenset({"read", "discover", "resume", "compare"})
"""Requests that change nothing: asked again when the connection was lost before the answer."""

REMEMBERED = 1_000
"""Pending items that are known by their ids."""

LARGEST = 1024 * 1024
"""Bytes of a packet that a broker is trusted to take when it does not say (MQTT 3.1.1 has no word for it)."""

LARGEST_OF_ALL = 268_435_455
"""Bytes of a packet, by MQTT 5 section 1.5.5."""

ROOM = 1024
"""Bytes of a PUBLISH beside topic and payload, at most."""

FLUSH_AGAIN = 2.0
"""Seconds until what the gateway could not take for now is sent again."""

AGAIN = 0.1
"""Seconds after which a request is asked again whose connection was lost."""

MOST_ON_THEIR_WAY = 200
"""Messages of QoS 1 that are sent before the first of them is acknowledged; the broker may want fewer (its receive maximum)."""

FEW = 20
"""The same where the broker does not say: MQTT 3.1.1 has no word for it."""

WINDOW = 20
"""Objects whose latest states are sent at the same time."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between two tries to connect; each is twice as long as the one before, and jittered."""

STABLE = 10.0
"""Seconds after which a connection counts as a good one: the next pause is short again."""

_NO_GATEWAY = 0x10
"""MQTT 5 reason code of a PUBACK: nobody has subscribed to this (section 3.4.2.1)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the acknowledgement of a report said: `reason` is MQTT's, `code` the gateway's HTTP-like one where it gave one."""

    reason: int = 0
    text: str = ""
    code: int | None = None

    @classmethod
    def of(cls, reason: int, text: str) -> Verdict:
        """From an acknowledgement's reason code and reason string."""
        head, _, rest = text.partition(" ")
        coded = head.isdecimal() and len(head) == 3
        return cls(reason, text, int(head) if coded and rest else None)

    @property
    def accepted(self) -> bool:
        """Whether the report is stored."""
        return self.reason < 0x80

    def refusal(self, url: str) -> RefusedError:
        """The error that tells of it."""
        text = self.text.partition(" ")[2] if self.code is not None else self.text
        head, colon, _ = text.partition(": ")
        place = head if colon and head.startswith("/") else None
        return RefusedError(
            _code_of(self.reason) if self.code is None else self.code,
            text or f"refused with reason code {self.reason:#04x}",
            resource=url,
            place=place,
        )

    def __str__(self) -> str:
        return self.text or f"refused with reason code {self.reason:#04x}"


_BY_REASON = {0x87: 403, 0x90: 404, 0x95: 413, 0x97: 429, 0x99: 400}


def _code_of(reason: int) -> int:
    return _BY_REASON.get(reason, 500)


class Wire(Protocol):
    """What an edge does for the core; all of it returns at once."""

    def time(self) -> float:
        """Seconds of a clock that never goes back."""

    def wall(self) -> float:
        """Seconds since 1970."""

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], object]:
        """Call in so many seconds; what is returned takes that back."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        number: str | None = None,
    ) -> int:
        """Send at QoS 1 and return the packet id. `number` is the user property `id`. Raises NotConnectedError."""

    def subscribe(self, filters: Sequence[str]) -> int:
        """Send one SUBSCRIBE, QoS 1, and return the packet id. Raises NotConnectedError."""

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Send one UNSUBSCRIBE."""

    def lose(self) -> None:
        """Break the connection: it is of no use as it is."""


class Core:
    """One client of the gateway over connections that come and go."""

    def __init__(
        self,
        wire: Wire,
        target: Target,
        *,
        timeout: float,
        presence: bool,
        outbox: Outbox | None,
        replies: bool,
        escape: str,
    ) -> None:
        """`timeout`: seconds for an answer. `presence`: tell when it is online. `outbox`: where reports wait, else the latest counts.

        `replies`: answers come where they are asked to (MQTT 5), else all into the inbox. `escape`: characters that are percent-encoded in
        topics on that broker.
        """
        self.wire = wire
        self.target = target
        self.timeout = timeout
        self.presence = presence and target.name is not None
        self.outbox = outbox
        self.connected = False
        self.closed = False
        self.following = Following(self)
        self.sinks: list[Callable[[Any], None]] = []
        """Everything that is not about a copy goes to each of them."""
        self.tap: Callable[[str, bytes], None] | None = None
        """Gets the messages that copies are made of, as they are and instead of them."""
        self.pending: OrderedDict[str, SubscriptionRequest | Invitation | Delegation] = OrderedDict()
        """What waits to be decided, by id."""
        self.reporting: dict[str, Reporting] = {}
        """The objects reported here whose latest state waits for the connection, by URL."""
        self.largest = LARGEST
        """Bytes of a packet that the broker takes, as its CONNACK says."""
        self.dropped = 0
        """Reports that were given up: no room for them, or refused when they were sent at last."""
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._again = False
        self._listens = False
        self._own_replies = replies
        self._unsaid = LARGEST_OF_ALL if replies else LARGEST
        self._ready: Promise[None] = Promise()
        self._acknowledged: dict[int, Promise[Verdict]] = {}
        self._subscribed: dict[int, Promise[Sequence[int]]] = {}
        self._asked: dict[str, Promise[dict[str, Any]]] = {}
        self._work: set[Driven[Any]] = set()
        self._flush_turn = Turn()
        self._forget_flush: Callable[[], object] | None = None
        self._window = Turn(FEW)
        self._escape = Escape(escape, target.topic(""))
        self._inbox = f"inbox/{target.client}"
        self._replies = f"{self._inbox}/ctxt-{secrets.token_hex(6)}"
        self._inbox_topic = self.topic(self._inbox)
        self._replies_topic = self.topic(self._replies)

    # ---- the edge's side -----------------------------------------------------------------------------------------------

    def opened(self, largest: int | None, receives: int | None) -> None:
        """CONNACK has said yes; `largest` is its maximum packet size, `receives` its receive maximum, None where it does not say."""
        self.largest = largest or self._unsaid
        self._window.size = min(receives or (MOST_ON_THEIR_WAY if self._own_replies else FEW), MOST_ON_THEIR_WAY)
        self.spawn(self._begin())

    def lost(self, error: ClientError, retry_in: float) -> None:
        """The connection has gone, or did not come about."""
        self.connected = False
        if self._ready.done and self._ready.error is None:
            self._ready = Promise()
        self.following.disconnected()
        self._disappoint(NotConnectedError(f"the connection to {self.target.where} was lost"))
        self.emit(Disconnected(error, retry_in))

    def received(self, topic: str, payload: bytes) -> None:
        """A message has arrived. Hot: once for each delta."""
        if topic == self._replies_topic:
            self._answered(payload)
        elif topic == self._inbox_topic:
            self._told(payload)
        else:
            self._copied(self._escape.plain(topic) if self._escape else topic, payload)

    def _copied(self, topic: str, payload: bytes) -> None:
        if self.tap is None:
            self.following.feed(topic, payload)
        else:
            self.tap(topic, payload)

    def acknowledged(self, packet: int, verdict: Verdict) -> None:
        """A PUBACK has arrived."""
        promise = self._acknowledged.pop(packet, None)
        if promise is not None:
            promise.keep(verdict)

    def subscribed(self, packet: int, codes: Sequence[int]) -> None:
        """A SUBACK has arrived."""
        promise = self._subscribed.pop(packet, None)
        if promise is not None:
            promise.keep(codes)

    def close(self) -> None:
        """End all that is under way; whoever waits gets an error."""
        self.closed = True
        self.connected = False
        self.following.disconnected()
        if self._forget_flush is not None:
            self._forget_flush()
        for driven in list(self._work):
            driven.cancel()
        gone = NotConnectedError(f"the connection to {self.target.where} is closed")
        self._disappoint(gone)
        self._ready.fail(gone)

    def _disappoint(self, gone: NotConnectedError) -> None:
        """Nobody will answer what is under way."""
        waiting: list[Promise[Any]] = [
            *self._acknowledged.values(),
            *self._subscribed.values(),
            *self._asked.values(),
        ]
        self._acknowledged.clear()
        self._subscribed.clear()
        self._asked.clear()
        for promise in waiting:
            promise.fail(gone)

    # ---- work ----------------------------------------------------------------------------------------------------------

    def begin(self, coroutine: Coroutine[Promise[Any], Any, T]) -> Driven[T]:
        """Do it for whoever waits; `close` ends it."""
        driven = drive(coroutine)
        if not driven.done:
            self._work.add(driven)
            driven.then(lambda _done: self._work.discard(driven))
        return driven

    def spawn(self, coroutine: Coroutine[Promise[Any], Any, Any]) -> None:
        """Do it beside everything else. A lost connection ends it in silence: it begins anew with the next one."""
        self.begin(coroutine).then(_ended)

    async def within(self, promise: Promise[T], seconds: float, sentence: Callable[[], str]) -> T:
        """Wait for a promise of one's own. Raises NoAnswerError when it takes longer."""
        forget = self.wire.later(seconds, lambda: promise.fail(NoAnswerError(sentence())))
        try:
            return await promise
        finally:
            forget()

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        promise: Promise[None] = Promise()
        forget = self.wire.later(seconds, lambda: promise.keep(None))
        try:
            await promise
        finally:
            forget()

    async def ready(self, seconds: float) -> None:
        """Wait until connected. Raises NotConnectedError after so many seconds."""
        if self.connected:
            return
        if self.closed:
            raise NotConnectedError(f"the connection to {self.target.where} is closed")
        mine: Promise[None] = Promise()
        shared = self._ready

        def done(shared: Promise[None]) -> None:
            if shared.error is None:
                mine.keep(None)
            else:
                mine.fail(shared.error)

        shared.then(done)
        sentence = f"there is no connection to {self.target.where}, and none came about within {seconds:g} s"
        forget = self.wire.later(seconds, lambda: mine.fail(NotConnectedError(sentence)))
        try:
            await mine
        finally:
            forget()
            shared.forget(done)

    def emit(self, event: Any) -> None:
        """Tell everybody who listens."""
        for sink in list(self.sinks):
            sink(event)

    # ---- the beginning of a connection ---------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Subscribe to everything, then let those go on who wait for the connection."""
        try:
            filters = ["gateway/+"]
            if self.target.name is not None:
                filters.append(self._replies if self._own_replies and not self._listens else f"{self._inbox}/#")
            await self.subscribe(filters)
            if self.presence:
                await self._send(f"presence/{self.target.name}", b"online", retain=True)
            await self.following.resubscribe()
        except (NoAnswerError, RefusedError) as error:
            if not self._again:
                self._ready.fail(error)
            self.wire.lose()
            return
        self.connected = True
        again, self._again = self._again, True
        self._ready.keep(None)
        self.emit(Connected(again))
        if self._listens:
            self.spawn(self._resume())
        self.spawn(self.flush())
        self.following.connected()

    async def listen(self) -> None:
        """Hear what arrives in the inbox beside answers, and what has waited there; once for all."""
        if self._listens or self.target.name is None:
            return
        self._listens = True
        if self.connected:
            await self.subscribe([f"{self._inbox}/#"])
            self.spawn(self._resume())

    async def _resume(self) -> None:
        """What waits for a decision of this client's."""
        body = await self.request("resume", {})
        for item in body.get("pending", ()):
            self._heard(item)

    def topic(self, rest: str) -> str:
        """A topic of the gateway's as it is on this broker."""
        return self._escape.escaped(self.target.topic(rest))

    # ---- packets -------------------------------------------------------------------------------------------------------

    async def subscribe(self, filters: Sequence[str]) -> Sequence[int]:
        """Subscribe in one SUBSCRIBE, and return its reason codes. Raises NotConnectedError, NoAnswerError."""
        promise: Promise[Sequence[int]] = Promise()
        packet = self.wire.subscribe([self.topic(each) for each in filters])
        self._subscribed[packet] = promise
        try:
            return await self.within(promise, self.timeout, self._silent)
        finally:
            self._subscribed.pop(packet, None)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe; whatever the broker says to that."""
        if self.connected and filters:
            self.wire.unsubscribe([self.topic(each) for each in filters])

    async def _send(self, topic: str, payload: bytes, **rest: Any) -> Verdict:
        """Publish at QoS 1 and wait for the PUBACK. Raises NotConnectedError, NoAnswerError, RefusedError (413)."""
        acknowledged = await self._publish(self.topic(topic), payload, **rest)
        mine: Promise[Verdict] = Promise()
        acknowledged.then(mine.follow)
        return await self.within(mine, self.timeout, self._silent)

    async def _publish(self, topic: str, payload: bytes, **rest: Any) -> Promise[Verdict]:
        """Publish at QoS 1 as soon as the broker takes one more; what is kept with its PUBACK. Raises NotConnectedError, RefusedError (413)."""
        if len(payload) + 4 * len(topic) + ROOM > self.largest:
            # The broker would close the connection for it [MQTT-3.2.2-24].
            raise RefusedError(
                413, f"{len(payload):,} bytes are more than {self.target.where} takes in a packet ({self.largest:,})"
            )
        await self._window.take()
        promise: Promise[Verdict] = Promise()
        promise.then(lambda _done: self._window.give())
        try:
            packet = self.wire.publish(topic, payload, **rest)
        except BaseException as error:
            promise.fail(error)
            raise
        self._acknowledged[packet] = promise
        return promise

    def _silent(self) -> str:
        return (
            f"{self.target.where} has not acknowledged within {self.timeout:g} s: is the network, or the broker, stuck? "
            "What was sent may still arrive"
        )

    # ---- reports -------------------------------------------------------------------------------------------------------

    async def report(self, topic: str, payload: bytes, number: str) -> None:
        """Report at QoS 1; returns when it is stored. `number` names the report, so that sending it again changes nothing.

        Raises RefusedError, NotConnectedError (nobody knows whether it has arrived), NoAnswerError.
        """
        verdict = await self._send(f"report/{self.target.client}/{topic}", payload, number=number)
        if not verdict.accepted:
            raise verdict.refusal(topic.replace("/", "://", 1))
        if verdict.reason == _NO_GATEWAY:
            raise NoAnswerError(self._no_gateway("takes the report"))

    async def flush(self) -> None:
        """Send what has waited for the connection: the queue in order, then each object's latest state."""
        await self._flush_turn.take()
        try:
            if self.outbox is not None:
                await self.outbox.flush(self)
            waiting = list(self.reporting.values())
            for start in range(0, len(waiting), WINDOW):
                for driven in [self.begin(each.flush()) for each in waiting[start : start + WINDOW]]:
                    await driven
        finally:
            self._flush_turn.give()

    def flush_later(self) -> None:
        """Send again what the gateway could not take for now: it is away, or has no room or time."""
        if self._forget_flush is None:
            self._forget_flush = self.wire.later(FLUSH_AGAIN, self._flush_now)

    def _flush_now(self) -> None:
        self._forget_flush = None
        if self.connected:
            self.spawn(self.flush())

    def number(self) -> str:
        """A new ULID."""
        return ulid(self.wire.wall())

    # ---- requests ------------------------------------------------------------------------------------------------------

    async def request(self, kind: str, body: dict[str, Any], *, seconds: float | None = None) -> Any:
        """Ask the gateway and return the answer's body. Raises RefusedError, NotConnectedError, NoAnswerError, UsageError."""
        return (await self.ask(kind, body, seconds=seconds))[1]

    async def ask(
        self, kind: str, body: dict[str, Any], *, seconds: float | None = None, decision: float | None = None
    ) -> tuple[int, Any]:
        """Ask the gateway and return (code, body); where that is 202, what is decided within `decision` seconds.

        `seconds`: how long to wait for the first answer. Raises as `request` does.
        """
        if self.target.name is None:
            raise UsageError(
                f"`{kind}` needs a name: connect to mqtt://NAME:PASSWORD@{self.target.host}; `ctxt client add NAME` makes one"
            )
        limit = self.timeout if seconds is None else seconds
        end = self.wire.time() + limit
        while True:
            await self.ready(max(0.0, end - self.wire.time()))
            try:
                return await self._ask(kind, body, max(0.0, end - self.wire.time()), limit, decision)
            except NotConnectedError:
                if kind not in SAFE or self.closed or self.wire.time() >= end:
                    raise
                # The edge may not have noticed yet.
                await self.sleep(AGAIN)

    async def _ask(
        self, kind: str, body: dict[str, Any], seconds: float, limit: float, decision: float | None
    ) -> tuple[int, Any]:
        number = self.number()
        text = encode({"id": number, "type": kind, "body": body})
        first: Promise[dict[str, Any]] = Promise()
        self._asked[number] = first
        try:
            acknowledged = await self._publish(
                self.topic(f"request/{self.target.name}"),
                text,
                response_topic=self._replies_topic,
                correlation=number.encode(),
            )
            acknowledged.then(lambda promise: self._not_taken(promise, first, kind))
            answer = await self.within(first, seconds, lambda: self._unanswered(kind, limit))
            if answer.get("code") == 202 and decision is not None:
                second: Promise[dict[str, Any]] = Promise()
                self._asked[number] = second
                answer = await self.within(
                    second, decision, lambda: f"nobody has decided about `{kind}` within {decision:g} s"
                )
        finally:
            self._asked.pop(number, None)
        code = answer.get("code")
        if type(code) is not int:
            raise RefusedError(500, f"the answer to `{kind}` is not one: it has no code")
        if code >= 400:
            about = body.get("resource", "")
            raise RefusedError(code, str(answer.get("description", "refused")), resource=about)
        return code, answer.get("body")

    def _not_taken(self, promise: Promise[Verdict], answer: Promise[dict[str, Any]], kind: str) -> None:
        """A PUBACK that says that nobody will answer is an answer."""
        if promise.error is not None:
            return
        verdict = promise.result()
        if not verdict.accepted:
            answer.fail(verdict.refusal(""))
        elif verdict.reason == _NO_GATEWAY:
            answer.fail(NoAnswerError(self._no_gateway(f"takes `{kind}`")))

    def _unanswered(self, kind: str, seconds: float) -> str:
        gateways = self.following.replica.gateways
        if any(gateways.values()):
            return f"{self.target.where} did not answer `{kind}` within {seconds:g} s"
        return self._no_gateway(f"answered `{kind}` within {seconds:g} s")

    def _no_gateway(self, what: str) -> str:
        gateways = self.following.replica.gateways
        if not gateways:
            return (
                f"no gateway at {self.target.where} {what}: none has announced itself on this broker; "
                "start it there with `ctxt run`, or connect to the broker that it has joined"
            )
        names = ", ".join(sorted(gateways))
        return f"no gateway at {self.target.where} {what}: {names} is offline; start it with `ctxt run`"

    def _answered(self, payload: bytes) -> None:
        message = inbox.loads(payload)
        if message is None:
            return
        if message.get("type") != "response":
            self._heard(message)
            return
        number = message.get("id")
        promise = self._asked.get(number) if isinstance(number, str) else None
        if promise is not None:
            promise.keep(message)

    def _told(self, payload: bytes) -> None:
        """A message in the inbox itself."""
        message = inbox.loads(payload)
        if message is None:
            return
        if message.get("type") == "response":
            # With MQTT 3.1.1 this is where answers come.
            self._answered(payload)
        else:
            self._heard(message)

    def _heard(self, message: dict[str, Any]) -> None:
        try:
            item = inbox.parse(message)
        except (KeyError, TypeError):
            return
        if item is None:
            return
        if isinstance(item, SubscriptionRequest | Invitation | Delegation | Action):
            if item.id in self._seen:
                return
            self._seen[item.id] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        if isinstance(item, SubscriptionRequest | Invitation | Delegation):
            self.pending[item.id] = item
            if len(self.pending) > REMEMBERED:
                self.pending.popitem(last=False)
        if isinstance(item, Revoked):
            self.following.doubt(item.resource)
        self.emit(item)

    async def decide(self, kind: str, number: str, **more: Any) -> Any:
        """`accept` or `reject` what waits. Raises as `request` does."""
        body = {"request": number, **{key: value for key, value in more.items() if value is not None}}
        answer = await self.request(kind, body)
        self.pending.pop(number, None)
        return answer

    async def pages(self, kind: str, body: dict[str, Any], member: str) -> list[Any]:
        """All of what is answered page by page. Raises as `request` does."""
        found: list[Any] = []
        body = dict(body)
        while True:
            page = await self.request(kind, body)
            found.extend(page[member])
            if "next" not in page:
                return found
            body["after"] = page["next"]


def _ended(driven: Promise[Any]) -> None:
    error = driven.error
    if error is None or isinstance(error, CancelledError | NotConnectedError):
        return
    if isinstance(error, ClientError):
        LOG.info("%s", error)
    else:
        LOG.error("a fault of this library", exc_info=error)
