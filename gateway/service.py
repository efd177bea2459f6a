"""The running gateway: the only place that knows engine, store and link. A report's way is one straight line here.

link (packets) -> `receive` (a batch) -> engine (effects) -> store (one commit) -> deltas, acknowledgements -> later snapshots.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import ValidationError

import gateway
from gateway import dialects, messages
from gateway.acl.embedded import EmbeddedAcl
from gateway.acl.enforcement import Enforcement
from gateway.acl.plugin import NONE, Context, keeps, make
from gateway.adapting import AdapterError, Adapting, Served
from gateway.adapting import check as check_adapters
from gateway.broker.house import Limits as BrokerLimits
from gateway.broker.listeners import Listener, TlsFiles
from gateway.catalogue import Catalogue
from gateway.control import Control
from gateway.counts import Histogram, counter, gauge
from gateway.credentials import Credentials, valid_client
from gateway.data import folder
from gateway.effects import Effects, Refused, Reply
from gateway.engine import Engine, Limits
from gateway.links.dial import Tls, Way
from gateway.links.local import SHORT_FORM, Entrance, LocalLink
from gateway.links.remote import RING, Remote, RemoteLink
from gateway.objects import Objects, parent_of, url_of
from gateway.redelivery import Ring, mark_of
from gateway.rights import ANONYMOUS, OBSERVED, VERBS, Clients, Devices, Rights, TopicRule, namespace
from gateway.settings import nearest
from gateway.store import RING_TTL, Batch, Store, StoreError
from gateway.tokens import Bearers, Rules, Tokens
from gateway.topics import matches, overlaps
from gateway.ulid import ulid
from gateway.web.errors import WebError
from gateway.wire.packets import Property, Publish, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gateway.counts import Family
    from gateway.links.link import Link
    from gateway.objects import DataObject
    from gateway.rights import Action
    from gateway.sessions import Restored
    from gateway.settings import Settings
    from gateway.web.server import Web

PATIENCE = 5.0
"""Seconds in which a broker that the gateway tells whom to admit may refuse the gateway itself, at the start."""

TICK = 0.1
"""Seconds between two looks at the clock: snapshots, staleness, presence, tombstones."""

CHECKPOINT_EVERY = 30.0
"""Seconds between checkpoints while something is written; with `durability = "process"` a power cut may cost this much."""

CHECKPOINT_BYTES = 32 * 1024 * 1024
"""A log this long is checkpointed without waiting."""

SLOW_COMMIT = 0.02
"""A commit that takes longer (seconds) than this sends the next ones to a thread, until the disk is quick again."""

WAITING_BYTES = 8 * 1024 * 1024
"""Payload bytes that may wait for a commit in flight before the link stops reading."""

DOORS = 100_000
"""Topics whose meaning is kept; when full the table begins anew."""

LONGEST_DOOR = 1_200
"""Characters of a topic whose meaning is kept: more than any object's has."""

ADAPTER = "adapter"
"""Instead of a verb: a device's own topic; the client is the adapter's number."""

NOBODY = "nobody"
"""Instead of a verb: whoever spoke has a name that no client can have."""

RINGS = 1_000
"""Redelivery rings kept for one client; beyond it the one longest unused is dropped."""

AGAIN = 2_000
"""Snapshots published again in one tick, at most, after a start or a reconnect."""

FAR_AHEAD = 10 * 365 * 86400
"""Seconds that an epoch on the broker may be ahead of the clock."""

REASONS = {
    400: Reason.PAYLOAD_FORMAT_INVALID,
    403: Reason.NOT_AUTHORIZED,
    404: Reason.TOPIC_NAME_INVALID,
    422: Reason.PAYLOAD_FORMAT_INVALID,
    413: Reason.QUOTA_EXCEEDED,
    429: Reason.QUOTA_EXCEEDED,
    507: Reason.QUOTA_EXCEEDED,
}
"""The reason code of a PUBACK (MQTT 5 section 3.4.2.1 allows these) for a code of ours; any other is 0x83."""


class Door(NamedTuple):
    """What a topic that clients publish to means."""

    verb: str
    client: str
    topic: str


class Counters:
    """What the service has done since its start; times in seconds. `batches`: how many messages each brought at once."""

    __slots__ = ("batches", "commit_seconds", "commits", "deltas", "nobody", "redelivered", "snapshots", "views")

    def __init__(self) -> None:
        self.batches = Histogram(1, 4, 16, 64, 256, 1_024, 4_096)
        self.commit_seconds = 0.0
        self.commits = 0
        self.deltas = 0
        self.nobody = 0
        self.redelivered = 0
        self.snapshots = 0
        self.views = 0


Pending = tuple[Publish, int, str | None]
_T = TypeVar("_T")
_log = logging.getLogger("gateway")


class Service:
    """One gateway on one link. `failed` is set with the error when it cannot go on."""

    def __init__(
        self,
        *,
        gateway_id: str,
        number: int,
        prefix: str,
        store: Store,
        catalogue: Catalogue,
        rights: Rights,
        limits: Limits,
        link: Link,
        ring_length: int,
        announce_interval: float = 1.0,
        patterns: list[str] | None = None,
        control: Control | None = None,
        enforcement: Enforcement | None = None,
        web: Web | None = None,
        served: Sequence[Served] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._store = store
        self._link = link
        self._journal = link.journal
        self.control = control
        self._enforcement = enforcement
        self.web = web
        self.rights = rights
        self._prefix = prefix + "/" if prefix else ""
        self._snapshots = self._prefix + "snapshot/"
        self._values = self._prefix + "value/"
        self._announce_topic = f"{self._prefix}gateway/{gateway_id}"
        self.announce_interval = announce_interval
        self.patterns = patterns or []
        self._ring_length = ring_length
        self._again: deque[DataObject] = deque()
        self._all_again = False
        self._strays: deque[str] = deque()
        self._successor = False
        loaded = store.load(catalogue, ring_length)
        objects = Objects(loaded.objects)
        rights.objects = objects
        self._number = number
        self._last_epoch = store.last_epoch()
        self.epoch = store.claim_epoch(number)
        self.engine = Engine(
            catalogue,
            rights,
            objects,
            limits,
            epoch=self.epoch,
            now=clock(),
            mint=ulid,
            floors=loaded.floors,
            ids=loaded.ids,
            next_row=loaded.next_row,
            pending=loaded.pending,
            adapters=frozenset(each.reporter for each in served),
        )
        self.served = served
        self.adapting = Adapting(self.engine, served)
        link.listen(self.adapting.filters)
        self._rings = loaded.rings
        self._sessions: dict[str, set[tuple[str, str]]] = {}
        for key, ring in self._rings.items():
            ring.used = clock()
            self._sessions.setdefault(key[0], set()).add(key)
        self._dropped: list[tuple[str, str]] = []
        self._doors: dict[str, Door] = {}
        self._busy = False
        self._waiting: list[Publish] = []
        self._waiting_bytes = 0
        self._paused = False
        self._settled: deque[Callable[[], None]] = deque()
        self._work: deque[Iterator[Reply | None]] = deque()
        self._searching = False
        self._timely = True
        self._stopping = False
        self._closed = False
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._off_loop = store.durability == "power"
        self._quick_commits = 0
        self._ticker: asyncio.TimerHandle | None = None
        self.counter = 0
        self._announced = (0, 0.0)
        self._checkpointed = clock()
        self._committed = False
        self._checkpointing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failed: asyncio.Future[None] | None = None
        self.counters = Counters()

    # ---- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the link and let time pass. Raises LinkError."""
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        if self._enforcement is not None:
            await self._enforcement.prepare()
        if self.web is not None:
            # Before the link: the broker may have to ask whether the gateway may come in.
            await self.web.start()
        await self._link.start(self)
        if self._enforcement is not None:
            await self._enforcement.begin()
        if self.control is not None:
            await self.control.start(self.families)
        self._announce(self._clock())
        self._ticker = self._loop.call_later(TICK, self._tick)

    async def stop(self) -> None:
        """Finish what has been taken in, say good-bye, close link and store. Raises StoreError when the last write fails."""
        if self._ticker is not None:
            self._ticker.cancel()
        # Nothing more is read; what has been read already is handed over first.
        self._stopping = True
        self._link.pause()
        await asyncio.sleep(0)
        if self.control is not None:
            await self.control.stop()
        if self._enforcement is not None:
            await self._enforcement.stop()
        if self.web is not None:
            await self.web.stop()
        while (self._busy or self._waiting or self._checkpointing) and not self._has_failed():  # noqa: ASYNC110  # once in a life
            await asyncio.sleep(0.005)
        self._closed = True
        if not self._has_failed():
            payload = self.announcement("offline")
            self._link.publish(self._announce_topic, payload, qos=1, retain=True)
        await self._link.stop()
        self._writer.shutdown(wait=True)
        if self._journal is not None and not self._has_failed():
            self._store.commit(Batch(sessions=self._journal.take(sweep=True)))
        if self.failed is not None and not self.failed.done():
            self.failed.cancel()
        self._store.close()

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect, once started; the first where they connect in several places."""
        return self._link.address

    @property
    def verb(self) -> str:
        """What the gateway does at `urls`: `listens on` them, or `serves on` a broker outside."""
        return "listens on" if isinstance(self._link, LocalLink) else "serves on"

    @property
    def urls(self) -> list[str]:
        """Everywhere that clients connect, once started."""
        return self._link.urls

    def families(self) -> Iterator[Family]:
        """All that link, engine and service count, in a fixed order."""
        yield from self._link.families()
        yield from self.engine.families()
        yield from self.adapting.families()
        if self._enforcement is not None:
            yield from self._enforcement.families()
        found = self.counters
        yield counter("ctxt_deltas_total", "Deltas sent out, each to whoever listens.", found.deltas)
        yield counter(
            "ctxt_snapshots_total", "Snapshots sent out because of a change, where somebody listened.", found.snapshots
        )
        yield counter("ctxt_value_views_total", "Value views sent out because of a change, likewise.", found.views)
        yield counter(
            "ctxt_redelivered_total", "Messages that came again and were not applied again.", found.redelivered
        )
        yield counter("ctxt_nameless_total", "Messages under a name that no client can have, ignored.", found.nobody)
        yield counter("ctxt_commits_total", "Transactions stored.", found.commits)
        yield counter("ctxt_commit_seconds_total", "Seconds that these took.", found.commit_seconds)
        yield found.batches.family("ctxt_batch_messages", "Reports, requests and presence taken in at once.")
        yield gauge("ctxt_waiting_bytes", "Bytes waiting for a commit in flight.", self._waiting_bytes)
        yield gauge("ctxt_redelivery_rings", "Sessions whose last packet ids are remembered.", len(self._rings))

    def _has_failed(self) -> bool:
        return self.failed is not None and self.failed.done()

    def _fail(self, error: BaseException) -> None:
        """What fails between a batch and its commit is fatal: nothing of the batch has gone out, and the gateway stops."""
        self._busy = True  # nothing is applied any more
        if not isinstance(error, StoreError):
            _log.critical("an error of the gateway's own: nothing of this batch is stored", exc_info=error)
        self._link.pause()
        if self.failed is not None and not self.failed.done():
            self.failed.set_exception(error)

    # ---- in ------------------------------------------------------------------------------------------------------------

    def receive(self, batch: list[Publish]) -> None:
        """Take what clients published, in order of arrival. While a commit is in flight it waits, in order and bounded."""
        if not self._busy:
            try:
                self._apply(batch)
            except Exception as error:  # noqa: BLE001  # the supervisor: what is half applied must never be seen
                self._fail(error)
            return
        if self._closed or self._has_failed():
            return
        self._waiting.extend(batch)
        self._waiting_bytes += sum(len(publish.payload) + 100 for publish in batch)
        if self._waiting_bytes > WAITING_BYTES and not self._paused:
            self._paused = True
            self._link.pause()

    def _apply(self, batch: list[Publish]) -> None:
        """Hot: everything between a batch of packets and its commit."""
        now = self._clock()
        effects = Effects()
        answers: list[Pending] = []
        touched: dict[tuple[str, str], Ring] = {}
        doors = self._doors
        rings = self._rings
        report = self.engine.report
        self.counters.batches.add(len(batch))
        for publish in batch:
            topic = publish.topic
            door = doors.get(topic) or self._door(topic)
            verb, client, about = door
            ring = None
            if publish.qos:
                session = self._link.session(publish)
                ring = rings.get(session) or self._ring(session)
                mark = mark_of(topic, publish.payload)
                if publish.dup:
                    known = ring.find(publish.packet_id, mark)
                    if known is not None:
                        self.counters.redelivered += 1
                        answers.append((publish, known, None))
                        continue
            if verb == "report" and not publish.retain and publish.properties is None:
                refused = report(effects, client, about, publish.payload, now)
            else:
                refused = self._other(effects, door, publish, now)
            if ring is not None:
                reason, text = (
                    (0, None) if refused is None else (_reason(refused.code), f"{refused.code} {refused.text}")
                )
                ring.remember(publish.packet_id, mark, reason)
                ring.used = now
                touched[session] = ring
                answers.append((publish, reason, text))
        self._commit(effects, answers, touched)

    def _ring(self, session: tuple[str, str]) -> Ring:
        """A new ring. A client that comes under ever new client ids loses its own oldest ones, nobody else's."""
        rings = self._rings
        own = self._sessions.setdefault(session[0], set())
        while len(own) >= RINGS:
            self._forget(min(own, key=lambda key: rings[key].used))
        own.add(session)
        ring = rings[session] = Ring(self._ring_length)
        return ring

    def _forget(self, key: tuple[str, str]) -> None:
        """A ring goes; the store is told with the next batch."""
        if self._rings.pop(key, None) is not None:
            self._sessions[key[0]].discard(key)
            self._dropped.append(key)

    def _forget_silent(self, now: float) -> None:
        """The rings of sessions that have long been silent."""
        for key in [key for key, ring in self._rings.items() if ring.used < now - RING_TTL]:
            self._forget(key)

    def _door(self, topic: str) -> Door:
        """What a topic means; kept for the next message on it."""
        own = topic[len(self._prefix) :]
        verb, _, rest = own.partition("/")
        client, _, about = rest.partition("/")
        number = self.adapting.find(topic) if self.served else -1
        if number >= 0:
            verb, client, about = ADAPTER, str(number), topic
        elif not valid_client(client):
            # The broker inside lets nobody say this; one outside may.
            verb = NOBODY
        if len(self._doors) >= DOORS:
            self._doors.clear()
        obj = self.engine.objects.get(about)
        if obj is not None:
            about = obj.topic
        door = Door(intern(verb), intern(client), about)
        if len(topic) <= LONGEST_DOOR:
            self._doors[topic] = door
        return door

    def _other(self, effects: Effects, door: Door, publish: Publish, now: float) -> Refused | None:
        """Everything that is not a plain report: presence, requests, what is retained, what carries an `id`."""
        engine = self.engine
        verb, client, about = door
        if verb == ADAPTER:
            self.adapting.take(effects, int(client), about, publish.payload, now, retained=publish.retain)
            return None
        if verb == NOBODY:
            self.counters.nobody += 1
            return Refused(403, "", "there can be no client of this name")
        if verb == "presence":
            return self._presence(effects, client, publish.payload, now)
        if publish.retain:
            url = url_of(about) if about else f"request/{client}"
            text = f"a retained {verb} is never applied: send it without RETAIN"
            return engine.refuse(effects, client, Refused(400, url, text), now)
        if verb != "report":
            reply_to, correlation = self._reply_to(publish, client)
            engine.requests.take(effects, client, publish.payload, now, reply_to, correlation)
            return None
        key = _dedup_id(publish)
        if key is not None and engine.remembered(client, key, now) is not None:
            self.counters.redelivered += 1
            return None
        refused = engine.report(effects, client, about, publish.payload, now)
        # What was refused has changed nothing: it may come again when there is room, or time, or a parent.
        if key is not None and refused is None:
            engine.remember(effects, client, key, 200, now)
        return refused

    def _presence(self, effects: Effects, client: str, payload: bytes, now: float) -> Refused | None:
        if payload not in (b"online", b"offline"):
            return self.engine.refuse(
                effects, client, Refused(400, f"presence/{client}", "presence is the text online or offline"), now
            )
        self.engine.presence(effects, client, payload == b"online", now)
        return None

    def _reply_to(self, publish: Publish, client: str) -> tuple[str, bytes | None]:
        """Where an answer goes: a response topic is honoured only at or below the client's own inbox."""
        inbox = "inbox/" + client
        if publish.properties is None:
            return inbox, None
        wanted = publish.properties.get(Property.RESPONSE_TOPIC, "")
        wanted = wanted[len(self._prefix) :] if wanted.startswith(self._prefix) else ""
        correlation: bytes | None = publish.properties.get(Property.CORRELATION_DATA)
        return (wanted if wanted == inbox or wanted.startswith(inbox + "/") else inbox), correlation

    def present(self, client: str) -> None:
        """A client has connected."""
        self._tell(client, b"online")

    def lost(self, client: str) -> None:
        """A client's last connection ended without a DISCONNECT."""
        self._tell(client, b"offline")

    def _tell(self, client: str, presence: bytes) -> None:
        """The link's word on a client takes its turn behind what the client has sent."""
        if client != ANONYMOUS and self._loop is not None:
            self._loop.call_soon(self.receive, [Publish(f"{self._prefix}presence/{client}", presence)])

    def save(self) -> None:
        """Acknowledgements wait for what the broker's sessions have to store: now, or behind the commit in flight."""
        journal = self._journal
        if journal is not None and journal.urgent and not self._busy:
            self._commit(Effects(), [], {})

    def sessions(self) -> Iterable[Restored]:
        """The broker's sessions of an earlier run."""
        return self._store.sessions()

    # ---- a broker outside ----------------------------------------------------------------------------------------------

    def begin(self, seen: int, own: int) -> int:
        """Claim a higher epoch where the broker still shows this one or a later one: the state folder was wiped, or set back."""
        self._successor = own == self._last_epoch
        if seen >= self.epoch:
            if seen >> 8 > self._clock() + FAR_AHEAD:
                _log.error(
                    "the broker shows epoch %d, which is years ahead: it is none of ours, and not followed", seen
                )
                return self.epoch
            _log.warning(
                "the broker shows epoch %d and ours was %d: the state folder is not the latest", seen, self.epoch
            )
            self.epoch = self._store.claim_epoch(self._number, seen=seen)
            self.engine.renew(self.epoch)
        return self.epoch

    def joined(self, *, lost: bool, strays: list[str]) -> None:
        """Publish again what the broker may not have: all, or what went out at QoS 0; clear what nobody holds any more."""
        now = self._clock()
        self._announce(now)
        # An earlier round that the lost connection has cut short goes on.
        again = dict.fromkeys(() if lost else self._again)
        again.update(
            dict.fromkeys(
                obj for obj in self.engine.objects if lost or (obj.namespace is not None and not obj.namespace.qos)
            )
        )
        self._again = deque(again)
        self._all_again = lost
        found = [topic for topic in strays if self._is_stray(topic)]
        if found and not self._successor:
            # Another gateway of this name may be alive, and these may be its objects.
            _log.warning(
                "the broker keeps %d messages of objects that this gateway does not hold, and was last served by another run "
                "than this state folder knows: they are left alone until the next start",
                len(found),
            )
        elif found:
            self._strays.extend(found)
            _log.warning(
                "the broker keeps %d messages of objects that this gateway does not hold any more: they are cleared",
                len(found),
            )
        if lost:
            _log.info("publishing %d snapshots", len(self._again))

    def _is_stray(self, topic: str) -> bool:
        """Whether a retained snapshot or value in our namespaces is of nothing that we hold."""
        for head in (self._snapshots, self._values):
            if topic.startswith(head):
                about = topic[len(head) :]
                return about not in self.engine.objects and self.rights.namespace_of(about) is not None
        return False

    def _show_again(self) -> None:
        """Some of what the broker may have lost, latest state, as far as it takes it."""
        link = self._link
        again, strays = self._again, self._strays
        budget = AGAIN
        while budget and link.room and (again or strays):
            budget -= 1
            if strays:
                topic = strays.popleft()
                if self._is_stray(topic):
                    link.publish(topic, b"", qos=1, retain=True)
                continue
            obj = again.popleft()
            if self.engine.objects.get(obj.topic) is obj:
                self._show(obj)
                if not again and self._all_again:
                    self._all_again = False
                    _log.info("every snapshot is published")

    def session_lost(self, key: tuple[str, str]) -> None:
        """What a session that is no more has sent may not be taken for what the next one sends."""
        ring = self._rings.get(key)
        if ring is not None:
            ring.void()

    def link_failed(self, error: BaseException) -> None:
        """The link cannot go on, and so cannot the gateway; what is stored stays."""
        if self.failed is not None and not self.failed.done():
            self.failed.set_exception(error)

    # ---- the commit ----------------------------------------------------------------------------------------------------

    def _commit(
        self,
        effects: Effects,
        answers: list[Pending],
        rings: dict[tuple[str, str], Ring],
        *,
        sweep: bool = False,
    ) -> None:
        """Store, then let out. Nothing is visible before it is stored. What the broker's sessions have to store goes along."""
        journal = self._journal
        durable = bool(rings) or effects.durable()
        changes = None
        if journal is not None and (journal.dirty if durable else journal.urgent or (sweep and journal.look())):
            changes = journal.take(sweep=sweep)
        if not durable and not changes:
            self._emit(effects, answers, saved=changes is not None)
            return
        self.engine.seal(effects)
        batch = Batch(
            effects.touched,
            effects.heads,
            effects.purged,
            effects.floors,
            effects.ids,
            rings,
            self._dropped,
            changes,
            effects.pending,
        )
        self._dropped = []
        self._committed = True
        if not self._off_loop:
            started = time.perf_counter()
            try:
                self._store.commit(batch)
            except StoreError as error:
                self._fail(error)
                return
            if self._took(started) > SLOW_COMMIT:
                self._off_loop = True
                self._quick_commits = 0
            self._emit(effects, answers, saved=changes is not None)
            return
        self._busy = True
        assert self._loop is not None
        started = time.perf_counter()
        future = self._loop.run_in_executor(self._writer, self._store.commit, batch)
        saved = changes is not None
        future.add_done_callback(lambda done: self._stored(done, effects, answers, started, saved))

    def _took(self, started: float) -> float:
        """A commit has returned: count it; the seconds since it began."""
        took = time.perf_counter() - started
        self.counters.commits += 1
        self.counters.commit_seconds += took
        return took

    def _stored(
        self, done: asyncio.Future[None], effects: Effects, answers: list[Pending], started: float, saved: bool
    ) -> None:
        """A commit made in the thread has ended."""
        error = done.exception()
        if error is not None:
            self._fail(error)
            return
        took = self._took(started)
        if self._store.durability == "process":
            self._quick_commits = self._quick_commits + 1 if took < SLOW_COMMIT else 0
            if self._quick_commits >= 100:
                self._off_loop = False
        self._emit(effects, answers, saved=saved)
        self._idle()

    def _idle(self) -> None:
        """Nothing is in flight: let in what has waited, in order."""
        if self._has_failed():
            return
        self._busy = False
        try:
            while self._settled and not self._busy:
                self._settled.popleft()()
            if self._waiting and not self._busy:
                batch, self._waiting = self._waiting, []
                self._waiting_bytes = 0
                self._apply(batch)
        except Exception as error:  # noqa: BLE001  # the supervisor: what is half applied must never be seen
            self._fail(error)
            return
        if self._paused and not self._waiting and not self._stopping:
            self._paused = False
            self._link.resume()
        self.save()

    def settled(self, then: Callable[[], None]) -> None:
        """Run `then` when nothing is applied but not yet stored."""
        if self._busy:
            self._settled.append(then)
        else:
            then()

    # ---- out -----------------------------------------------------------------------------------------------------------

    def _emit(self, effects: Effects, answers: list[Pending], *, saved: bool = False) -> None:
        """Hot: deltas out, new objects' snapshots, replies, acknowledgements. `saved`: the broker's sessions were stored too."""
        link = self._link
        if saved:
            link.saved()
        send = link.send
        ready = link.ready
        for obj, delta in effects.deltas:
            route = obj.delta_route
            if route is None:
                route = obj.delta_route = link.route(f"{self._prefix}delta/{obj.topic}", retain=False)
            send(route, delta, obj.namespace.qos if obj.namespace is not None else 1)
        if ready:
            # Else the snapshot stays due until the broker is there.
            for obj in effects.fresh:
                self.engine.shown(obj)
                self._show(obj)
        for obj in effects.purged:
            self._clear(obj)
        for reply in effects.replies:
            self._reply(reply)
        for publish, reason, text in answers:
            link.acknowledge(publish, reason, text)
        for topic, payload, qos, retain in effects.sends:
            link.publish(topic, payload, qos=qos, retain=retain)
        for note in effects.notes:
            _log.warning("%s", note)
        if effects.listening:
            self._doors.clear()
            link.listen(self.adapting.filters)
        if effects.deltas:
            self.counter += 1
            self.counters.deltas += len(effects.deltas)
        if effects.work:
            self._work.extend(effects.work)
            self._search()
        if effects.gained or effects.lost or effects.everyone:
            self._rights_changed(effects)
        else:
            for reply in effects.settled:
                self._reply(reply)

    def _rights_changed(self, effects: Effects) -> None:
        """Some may do less, or more, than before: the broker is told, then they are. What has been opened to somebody is shown again."""
        for obj in effects.shut:
            everybody = self.listening() if self._enforcement is None else self._enforcement.clients()
            effects.lost.update(name for name in everybody if not self.rights.may_observe(name, obj.topic))
        if self._enforcement is not None:
            done = self._enforcement.concern(None if effects.everyone else effects.gained, effects.lost)
            if effects.opened:
                done.add_done_callback(lambda _: self.show(effects.opened))
            if effects.settled:
                done.add_done_callback(lambda _: self._reply_settled(effects.settled, done))
            return
        for client in effects.lost:
            self.withhold(client)
        self.show(effects.opened)
        for reply in effects.settled:
            self._reply(reply)

    def _reply_settled(self, replies: list[Reply], done: asyncio.Future[None]) -> None:
        """The broker goes by what was changed, or may not."""
        if done.cancelled():
            return
        error = done.exception()
        for reply in replies:
            if error is not None and reply.request:
                text = f"it is stored, but the broker may not decide by it yet, and the gateway goes on trying: {error}"
                reply.payload = messages.response(reply.request, 504, description=text)
            self._reply(reply)

    def withhold(self, client: str) -> None:
        """What was judged before a change of rights does not reach this client any more."""
        if isinstance(self._link, LocalLink):
            self._link.withhold(client)

    def show(self, objects: Iterable[DataObject]) -> None:
        """Send the snapshots of objects and of their children again, paced: somebody may see them now who could not."""
        for obj in objects:
            self._again.append(obj)
            if parent_of(obj.topic) is None:
                self._again.extend(self.engine.objects.children(obj.topic))

    async def change(self, act: Callable[[Effects, float], _T]) -> _T:
        """Do something to objects or rights in its turn, and return when it is stored and the broker decides by it.

        Raises AclError where a broker outside may not decide by it yet, StoreError where the gateway cannot go on.
        """
        assert self._loop is not None
        assert self.failed is not None
        done: asyncio.Future[tuple[_T, Effects]] = self._loop.create_future()

        def run() -> None:
            effects = Effects()
            result = act(effects, self._clock())
            self._commit(effects, [], {})
            self.settled(lambda: done.set_result((result, effects)))

        self.settled(run)
        await asyncio.wait((done, self.failed), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise StoreError("the gateway cannot go on, and nothing has changed: see its log")
        result, effects = done.result()
        if self._enforcement is not None and (effects.gained or effects.lost or effects.everyone):
            await self._enforcement.concern((), hurry=True)
        return result

    async def look(self) -> None:
        """Clients were added, removed, disabled or given another password: return when the broker goes by that. Raises AclError."""
        if self._enforcement is not None:
            await self._enforcement.look()
        elif isinstance(self._link, LocalLink):
            self._link.look()

    def reread(self) -> Callable[[], None]:
        """Read certificates and keys now; what is returned takes them over. Raises LinkError."""
        return self._link.reread()

    async def ask_broker(self, client: str, action: Action, topic: str) -> bool | None:
        """What a broker outside says itself, where it can be asked."""
        return await self._enforcement.plugin.ask(client, action, topic) if self._enforcement is not None else None

    def listening(self) -> set[str]:
        """The clients that are connected to the broker inside."""
        return self._link.broker.clients() if isinstance(self._link, LocalLink) else set()

    def _search(self) -> None:
        """See to it that long searches go on, after everything else that is to be done now."""
        if self._work and not self._searching:
            assert self._loop is not None
            self._searching = True
            self._loop.call_soon(self.settled, self._step)

    def _step(self) -> None:
        """One slice of one search; then it is the next one's turn."""
        self._searching = False
        if not self._work:
            return
        search = self._work.popleft()
        reply = next(search, search)
        if reply is None:
            self._work.append(search)
        elif isinstance(reply, Reply):
            self._reply(reply)
        self._search()

    def _reply(self, reply: Reply) -> None:
        properties: dict[Property, Any] | None = None
        if reply.correlation is not None:
            properties = {Property.CORRELATION_DATA: reply.correlation}
        elif reply.expiry is not None:
            properties = {Property.MESSAGE_EXPIRY_INTERVAL: reply.expiry}
        self._link.publish(self._prefix + reply.topic, reply.payload, qos=reply.qos, properties=properties)

    def _show(self, obj: DataObject) -> None:
        """Send an object's snapshot, and its value view where the namespace asks for one, to whoever listens now."""
        link = self._link
        namespace = obj.namespace
        qos = namespace.qos if namespace is not None else 1
        if link.wants(self._snapshots):
            route = link.route(self._snapshots + obj.topic, retain=True)
            if route.wanted:
                link.send(route, messages.snapshot(obj, self.epoch), qos)
                self.counters.snapshots += 1
        if namespace is not None and namespace.value_view and link.wants(self._values):
            route = link.route(self._values + obj.topic, retain=True)
            if route.wanted:
                link.send(route, b"" if obj.deleted else self._view(obj), qos)
                self.counters.views += 1

    def _view(self, obj: DataObject) -> bytes:
        payload, left_out = messages.value_view(obj)
        self.engine.counters.view_left_out += left_out
        return payload

    def _clear(self, obj: DataObject) -> None:
        """A purged tombstone's retained copy goes."""
        self._link.publish(self._snapshots + obj.topic, b"", qos=1, retain=True)

    def retained(self, topic_filter: str) -> Iterator[tuple[str, bytes, int]]:
        """The gateway's own retained messages below a filter, rendered as they are read."""
        if matches(topic_filter, self._announce_topic):
            yield self._announce_topic, self.announcement("online"), 1
        for verb in OBSERVED:
            if verb == "delta":
                continue
            rest = _below(topic_filter, f"{self._prefix}{verb}")
            if rest is None:
                continue
            for obj in self.rights.objects.matching(rest):
                if obj is None:
                    # Looked at some that do not match: who reads this lets others have their turn.
                    yield "", b"", 0
                    continue
                namespace = obj.namespace
                qos = namespace.qos if namespace is not None else 1
                if verb == "snapshot":
                    yield self._snapshots + obj.topic, messages.snapshot(obj, self.epoch), qos
                elif namespace is not None and namespace.value_view and not obj.deleted:
                    yield self._values + obj.topic, self._view(obj), qos

    def announcement(self, status: str) -> bytes:
        """What `gateway/{id}` says of this gateway now."""
        return messages.announcement(
            status=status,
            epoch=self.epoch,
            counter=self.counter,
            patterns=self.patterns,
            version=gateway.__version__,
        )

    def _announce(self, now: float) -> None:
        self._announced = (self.counter, now)
        self._link.publish(self._announce_topic, self.announcement("online"), qos=1, retain=True)

    # ---- time ----------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        assert self._loop is not None
        self._ticker = self._loop.call_later(TICK, self._tick)
        now = self._clock()
        if self._timely:
            # Time passes under load too: it takes its turn with whoever waits for a commit in flight.
            self._timely = False
            self.settled(self._pass_time)
        if self._committed and not self._checkpointing and not self._has_failed():
            late = now - self._checkpointed > CHECKPOINT_EVERY
            if late or (int(now / TICK) % 10 == 0 and self._store.wal_bytes() > CHECKPOINT_BYTES):
                self._checkpointing = True
                self._checkpointed = now
                task = self._loop.create_task(self._checkpoint())
                task.add_done_callback(self._checkpoint_done)

    def _pass_time(self) -> None:
        """What is stored is shown; then see what the hour brings."""
        self._timely = True
        now = self._clock()
        if self._link.room:
            for obj in self.engine.snapshots(now):
                self._show(obj)
            self._show_again()
        counter, when = self._announced
        if counter != self.counter and now - when >= self.announce_interval and self._link.ready:
            self._announce(now)
        effects = Effects()
        try:
            self.engine.tick(effects, now)
            self.adapting.tick(effects, now)
            self._commit(effects, [], {}, sweep=True)
        except Exception as error:  # noqa: BLE001  # the supervisor: what is half applied must never be seen
            self._fail(error)

    async def _checkpoint(self) -> None:
        """Fold the journal and flush to the disk, in a thread. Between two slices, and beside the flush, commits go on."""
        self._committed = False
        while await self._in_turn(self._store.fold):
            pass
        await asyncio.to_thread(self._store.checkpoint)
        await self._in_turn(self._store.rewind)

    async def _in_turn(self, act: Callable[[], _T]) -> _T:
        """Do something with the store in its thread while nobody commits."""
        assert self._loop is not None
        turn: asyncio.Future[None] = self._loop.create_future()

        def take() -> None:
            self._busy = True
            turn.set_result(None)

        self.settled(take)
        await turn
        result = await self._loop.run_in_executor(self._writer, act)
        self._idle()
        return result

    def _checkpoint_done(self, task: asyncio.Task[None]) -> None:
        self._checkpointing = False
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fail(error)
            return
        self._checkpointed = self._clock()
        self._forget_silent(self._checkpointed)


def _reason(code: int) -> int:
    return REASONS.get(code, Reason.IMPLEMENTATION_SPECIFIC_ERROR)


def _dedup_id(publish: Publish) -> str | None:
    """The user property `id`, which de-duplicates across sessions."""
    if publish.properties is None:
        return None
    for name, value in publish.properties.get(Property.USER_PROPERTY, ()):
        if name == "id" and 0 < len(value) <= 128:
            return str(value)
    return None


def _below(topic_filter: str, head: str) -> str | None:
    """What is left of a filter below the levels of `head`, or None where it matches nothing there."""
    wanted = topic_filter.split("/")
    for level in head.split("/"):
        if not wanted:
            return None
        if wanted[0] == "#":
            return "#"
        if wanted[0] not in ("+", level):
            return None
        wanted.pop(0)
    return "/".join(wanted) if wanted else None


def patterns_of(settings: Settings) -> list[str]:
    """The patterns of all objects that the gateway serves."""
    return [*(f"{entry.place}/**" for entry in settings.adapter), *(entry.match for entry in settings.namespace)]


def engine_limits(settings: Settings) -> Limits:
    """The engine's bounds and times, out of the settings of the same names."""
    return Limits(
        **{name: getattr(settings.limits, name) for name in type(settings.limits).model_fields},
        snapshot_interval=settings.timing.snapshot_interval,
        snapshot_max=settings.timing.snapshot_max,
        offline_grace=settings.timing.offline_grace,
        tombstone_ttl=settings.timing.tombstone_ttl,
        pending_ttl=settings.timing.pending_ttl,
        action_timeout=settings.timing.action_timeout,
        status_pace=settings.timing.status_pace,
    )


def largest_packet(settings: Settings) -> int:
    """`broker.packet_bytes`; where the settings leave that open, room for what adapters' devices send too."""
    found = settings.broker.packet_bytes
    if "packet_bytes" not in settings.broker.model_fields_set:
        for entry in settings.adapter:
            with suppress(LookupError, ImportError):
                found = max(found, dialects.find(entry.kind).largest)
    return found


def broker_limits(settings: Settings) -> BrokerLimits:
    """The bounds of the broker inside, out of `[broker]`."""
    broker = settings.broker
    return BrokerLimits(
        connect_timeout=broker.connect_timeout,
        max_keep_alive=int(broker.keep_alive_max),
        max_packet=largest_packet(settings),
        inflight=broker.inflight,
        receive_maximum=broker.receive_maximum,
        queue_messages=broker.queue_messages,
        queue_bytes=broker.queue_bytes,
        subscriptions=broker.subscriptions,
        connections=broker.connections,
        connections_per_client=broker.connections_per_client,
        connections_per_address=broker.connections_per_address,
        topic_aliases=broker.topic_aliases,
        retained_messages=broker.retained_messages,
        retained_bytes=broker.retained_bytes,
        sys_interval=broker.sys_interval,
    )


def entrances(settings: Settings) -> list[Entrance]:
    """Where clients come in: what `[broker] url` stands for, then the `[[listener]]`s."""
    found: list[Entrance] = []
    short = settings.broker.listener
    if short is not None:
        listener = Listener(SHORT_FORM, "mqtt", short.host, short.port, trusting=settings.broker.anonymous)
        found.append(Entrance(listener, settings.broker.anonymous))
    for number, each in enumerate(settings.listener):
        scheme, host, port, path = each.place
        tls = None
        if each.certificate is not None:
            tls = TlsFiles(each.certificate, each.key, each.ca, each.require_certificate, each.tls_minimum)
        listener = Listener(
            f"listener[{number}] {each.url}",
            scheme,
            host,
            port,
            path,
            tls=tls,
            origins=each.origins,
            trusting=each.anonymous,
            mode=int(each.mode, 8),
        )
        any_name = each.certificate_clients == "any"
        found.append(Entrance(listener, each.anonymous, each.use_certificate_name, any_name))
    return found


def remote(settings: Settings) -> Remote:
    """The broker outside, out of `[broker] url` and `[link]`."""
    where, link = settings.broker.outside, settings.link
    assert where is not None
    tls = Tls(link.ca, link.certificate, link.key, link.server_name or None) if where.encrypted else None
    return Remote(
        Way(where.scheme, where.host, where.port, where.path, tls),
        link.client_id or f"ctxt-gateway-{settings.id}",
        username=link.username or None,
        password_file=link.password_file,
        protocol=link.protocol,
        keep_alive=int(link.keep_alive),
        session_expiry=int(link.session_expiry),
        connect_timeout=settings.broker.connect_timeout,
        max_packet=largest_packet(settings),
        receive_maximum=settings.broker.receive_maximum,
        escape=link.topic_escape,
        open=link.open,
        patience=PATIENCE if keeps(settings.acl.plugin) else 0.0,
    )


def adapters_of(settings: Settings) -> list[Served]:
    """The adapters that the settings name, ready to work. Raises AdapterError."""
    found: list[Served] = []
    head = f"{settings.topic_prefix}/" if settings.topic_prefix else ""
    for number, entry in enumerate(settings.adapter):
        place = f"adapter[{number}]"
        try:
            spec = dialects.find(entry.kind)
        except LookupError:
            near = nearest(entry.kind, dialects.names())
            hint = f", did you mean {near}?" if near else ":"
            raise AdapterError(
                f"{place}.type: there is no adapter {entry.kind!r}{hint} `ctxt adapter ls` lists them"
            ) from None
        except ImportError as error:
            raise AdapterError(f"{place}.type: {entry.kind} needs what is not installed: {error}") from error
        try:
            adapter = spec.make(spec.options.model_validate(dict(entry.options)), entry.max_devices)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(step) for step in first["loc"])
            problem = first["msg"].removeprefix("Value error, ")
            if first["type"] == "extra_forbidden":
                near = nearest(key, spec.options.model_fields)
                problem = "unknown key" + (f", did you mean {near}?" if near else "")
            raise AdapterError(
                f"{place}.options.{key}: {problem}; `ctxt adapter show {entry.kind}` lists them"
            ) from error
        for each in (*adapter.filters, *adapter.commands):
            if each.startswith(("$", "#")) or (
                # What begins with `+` may name devices, and what is the gateway's own is taken out of it.
                not each.startswith("+/") and any(overlaps(each, f"{head}{verb}/#") for verb in VERBS)
            ):
                raise AdapterError(f"{place}: {each} overlaps the gateway's own topics: give the devices others")
        found.append(
            Served(
                spec,
                adapter,
                entry.called,
                entry.place,
                accept=entry.accept,
                most=entry.max_devices,
                fahrenheit=entry.fahrenheit == "keep",
                min_interval=entry.min_interval,
                min_change=entry.min_change,
                max_interval=entry.max_interval,
            )
        )
    check_adapters(found)
    return found


def rights_of(settings: Settings, catalogue: Catalogue, served: Sequence[Served] | None = None) -> Rights:
    """Namespaces, groups and topic rules as the engine asks them; adapters' own come first. `served`: as `adapters_of` makes them.

    Raises UnknownSchema for a namespace's schema, AdapterError.
    """
    groups = settings.groups

    def clients(entries: tuple[str, ...]) -> Clients:
        return Clients.resolve(entries, groups)

    if served is None:
        served = adapters_of(settings)
    adapted = list(zip(settings.adapter, served, strict=True))
    namespaces = [
        namespace(
            each.base + "/**",
            schema=catalogue.get("Context").url,
            report=Clients(False, frozenset({each.reporter})),
            observe=clients(own.observe),
            execute=clients(own.execute),
            value_view=own.value_view,
            stale_after=own.stale_after,
        )
        for own, each in adapted
    ]
    namespaces += [
        namespace(
            entry.match,
            schema=catalogue.get(entry.schema_name).url,
            report=clients(entry.report),
            observe=clients(entry.observe),
            execute=clients(entry.execute),
            value_view=entry.value_view,
            stale_after=entry.stale_after,
            public=entry.public,
            ask=clients(entry.ask),
            moderate=entry.moderate,
            qos=entry.qos,
        )
        for entry in settings.namespace
    ]
    rules = [TopicRule(rule.topic_filter, clients(rule.write), clients(rule.read)) for rule in settings.topic]
    # Where the first level is anything, it is the device's own name: else devices could use each other's topics.
    rules += [
        TopicRule("{client}" + each[1:] if each.startswith("+/") else each, clients(own.clients), clients(own.clients))
        for own, one in adapted
        for each in (*one.adapter.filters, *one.adapter.commands)
    ]
    devices = Devices()
    if served:
        # Some adapters are told by messages where to look: wherever devices may write.
        reads = {
            "/".join("+" if "{client}" in level else level for level in rule.topic_filter.split("/")) for rule in rules
        }
        devices = Devices(
            tuple(sorted(reads)), tuple(sorted({each for one in served for each in one.adapter.commands}))
        )
    return Rights(
        namespaces,
        rules,
        Objects(),
        prefix=settings.topic_prefix,
        statistics=clients(settings.broker.sys_read),
        devices=devices,
    )


def bearers(settings: Settings) -> Bearers | None:
    """Who may come with a token. Raises TokenKeyError."""
    found = settings.tokens
    if not found.on:
        return None
    rules = Rules(
        issuer=found.issuer,
        audience=found.audience,
        client_claim=found.client_claim,
        groups_claim=found.groups_claim,
        leeway=found.leeway,
        lifetime_max=found.lifetime_max,
    )
    tokens = Tokens(jwks=found.jwks, key_file=found.key_file, rules=rules)
    return Bearers(tokens, any_name=found.clients == "any")


def _web(settings: Settings) -> Web | None:
    """The web listener. Raises WebError where what it needs is not installed."""
    if settings.web.place is None:
        return None
    try:
        from gateway.web.server import Web  # noqa: PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise WebError(
            f"web.listen needs what is not installed ({error.name}): pip install 'ctxt-gateway[web]'"
        ) from error
    return Web(*settings.web.place)


def build(settings: Settings) -> Service:
    """The gateway that the settings describe, ready to be started; its store is open.

    Raises CatalogueError (also where a namespace names an unknown schema), AdapterError, StoreError, CredentialsError, TokenKeyError or AclError.
    """
    catalogue = Catalogue.load(folder("schemas"), *settings.schemas)
    served = adapters_of(settings)
    rights = rights_of(settings, catalogue, served)
    store = Store(settings.state_dir, durability=settings.durability)
    try:
        web = _web(settings)
        link: Link
        ring_length = settings.broker.receive_maximum
        enforcement = None
        if settings.broker.outside is not None:
            link = beside = RemoteLink(remote(settings), gateway_id=settings.id, prefix=settings.topic_prefix)
            if settings.acl.plugin != NONE:
                credentials = Credentials(settings.state_dir / "clients.db")
                context = Context(settings, rights, credentials, beside.echo, bearers(settings), web)
                plugin = make(settings.acl.plugin, context)
                enforcement = Enforcement(plugin, rights, credentials)
            control = Control(settings.state_dir)
            ring_length = max(RING, ring_length)
        else:
            link = local = LocalLink(
                entrances(settings),
                broker_limits(settings),
                EmbeddedAcl(rights),
                Credentials(settings.state_dir / "clients.db"),
                prefix=settings.topic_prefix,
                version=f"ctxt-gateway {gateway.__version__}",
                wrong_passwords=settings.broker.wrong_passwords,
                wrong_password_pause=settings.broker.wrong_password_pause,
                bearers=bearers(settings),
            )
            control = Control(settings.state_dir, local.broker)
        return Service(
            gateway_id=settings.id,
            number=settings.number,
            prefix=settings.topic_prefix,
            store=store,
            catalogue=catalogue,
            rights=rights,
            limits=engine_limits(settings),
            link=link,
            ring_length=ring_length,
            announce_interval=settings.timing.announce_interval,
            patterns=patterns_of(settings),
            served=served,
            control=control,
            enforcement=enforcement,
            web=web,
        )
    except BaseException:
        store.close()
        raise
