"""Reports, requests, presence and time in; effects out. Pure: no I/O and no clock, `now` is Unix seconds given by the caller.

One `Effects` collects what a batch of inputs did. The caller stores `Effects.touched` and the rest of what is durable in one
transaction and only then lets anything out (see service.py): nothing is visible before it is stored.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gateway import messages
from gateway.address import Address, AddressError, is_normal_topic
from gateway.catalogue import UnknownSchema
from gateway.counts import counter, counters, gauge
from gateway.effects import Effects, Refused, Reply
from gateway.messages import PayloadError, rfc3339
from gateway.objects import (
    ASK,
    DISCONNECTED,
    LIVE,
    PUBLIC,
    STALE,
    DataObject,
    Facts,
    Objects,
    authority_of,
    compact,
    parent_of,
    url_of,
)
from gateway.patch import PatchError, apply_patch, depth_exceeds, diff, merge, same
from gateway.requests import Requests
from gateway.rights import ANONYMOUS
from gateway.sharing import Sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.catalogue import Catalogue, Schema, TimedMembers
    from gateway.counts import Family
    from gateway.pending import Item
    from gateway.rights import Namespace, Rights

PROBES = "acl-test.invalid"
"""The authority of what `ctxt acl test` attacks: a name that can be nobody's (RFC 2606 section 2)."""

CLOCK_SKEW = 60.0
"""Seconds by which a held time may lie ahead of the gateway's clock and still be trusted to order reports."""

SNAPSHOT_FLOOR = 256 * 1024
"""Bytes per second that snapshots may always take, however little else goes out."""

LOOKS = 10_000
"""Timers of `stale_after` that one tick looks at: after a start they may all end at one moment."""

PARSED = 10_000
"""Objects whose data is kept parsed as well."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds and times of the engine. Bytes are bytes, times are seconds, a rate of 0 means no limit."""

    payload_bytes: int = 65_536
    depth: int = 32
    data_bytes: int = 65_536
    objects: int = 1_000_000
    objects_per_client: int = 10_000
    bytes_per_client: int = 64 * 1024 * 1024
    children_per_collection: int = 1_000
    children_when_full: str = "refuse"
    grants_per_object: int = 1_000
    creations_per_minute: float = 600
    reports_per_second: float = 5_000
    report_burst: float = 20_000
    requests_per_second: float = 50
    request_burst: float = 200
    rejections_per_second: float = 5
    rejection_burst: float = 20
    pending_per_sender: int = 10
    pending_per_receiver: int = 100
    pending_sent: int = 1_000
    actions_per_sender: int = 100
    actions_per_receiver: int = 1_000
    deduplication_ids: int = 256
    patch_operations: int = 1_000
    snapshot_interval: float = 0.1
    snapshot_max: float = 2.0
    offline_grace: float = 5.0
    tombstone_ttl: float = 86_400.0
    pending_ttl: float = 86_400.0
    action_timeout: float = 10.0
    status_pace: int = 500


@dataclass(slots=True)
class Counters:
    """What the engine has done since its start. Each report has changed something, changed nothing, or is in `refused`, by code."""

    reports: int = 0
    requests: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    requests_refused: Counter[int] = field(default_factory=Counter)
    suppressed: int = 0
    unchanged: int = 0
    late: int = 0
    created: int = 0
    deleted: int = 0
    status: int = 0
    view_left_out: int = 0


class _Bucket:
    """A token bucket; `take` says whether there was one more."""

    __slots__ = ("burst", "rate", "stamp", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        self.stamp = now

    def take(self, now: float) -> bool:
        # A clock that was put back gives nothing, and takes nothing away.
        tokens = self.tokens + (now - self.stamp) * self.rate if now > self.stamp else self.tokens
        self.stamp = now
        if tokens > self.burst:
            tokens = self.burst
        if tokens < 1.0 and self.rate:
            self.tokens = tokens
            return False
        self.tokens = tokens - 1.0
        return True

    def has(self, now: float) -> bool:
        """Whether `take` would say yes."""
        return not self.rate or self.tokens + max(0.0, now - self.stamp) * self.rate >= 1.0


class _Client:
    """What the engine knows of one client while the gateway runs."""

    __slots__ = ("bytes", "creations", "ids", "rejections", "reports", "requests", "suppressed")

    def __init__(self, limits: Limits, now: float) -> None:
        reports, requests, creations, rejections = _rates(limits)
        self.reports = _Bucket(*reports, now)
        self.requests = _Bucket(*requests, now)
        self.creations = _Bucket(*creations, now)
        self.rejections = _Bucket(*rejections, now)
        self.suppressed = 0
        self.bytes = 0
        self.ids: dict[str, int] = {}

    def limit(self, limits: Limits) -> None:
        """Other rates from now on."""
        for bucket, (rate, burst) in zip(
            (self.reports, self.requests, self.creations, self.rejections), _rates(limits), strict=True
        ):
            bucket.rate, bucket.burst = rate, burst

    def unlimited(self) -> None:
        """No rates: what it is may not be slowed down by how fast others speak."""
        for bucket in (self.reports, self.requests, self.creations, self.rejections):
            bucket.rate = 0.0


def _rates(limits: Limits) -> tuple[tuple[float, float], ...]:
    """(rate, burst) of reports, requests, creations and rejections."""
    return (
        (limits.reports_per_second, limits.report_burst),
        (limits.requests_per_second, limits.request_burst),
        (limits.creations_per_minute / 60, max(1.0, limits.creations_per_minute)),
        (limits.rejections_per_second, limits.rejection_burst),
    )


class _Site(NamedTuple):
    """Where an object that is to be made belongs."""

    schema: Schema
    namespace: Namespace | None


class Engine:
    """Holds every object of this gateway and applies what comes in, one input at a time, in order."""

    def __init__(
        self,
        catalogue: Catalogue,
        rights: Rights,
        objects: Objects,
        limits: Limits,
        *,
        epoch: int,
        now: float,
        mint: Callable[[float], str],
        floors: dict[str, int] | None = None,
        ids: Iterable[tuple[str, str, int]] = (),
        next_row: int = 1,
        pending: Iterable[Item] = (),
        adapters: frozenset[str] = frozenset(),
    ) -> None:
        """`mint` gives names that nobody can guess, for what the gateway names itself. `adapters`: Reporters that are part of it."""
        self.adapters = adapters
        self.catalogue = catalogue
        self.rights = rights
        self.objects = objects
        self.limits = limits
        self.epoch = epoch
        self.counters = Counters()
        self.floors = dict(floors or {})
        self._next_row = next_row
        self._clients: dict[str, _Client] = {}
        self._head = b'{"epoch":%d,"version":' % epoch
        self._millis = -1
        self._second = -1
        self._until_second = b""
        self._modified = b""
        self._rejected = 0
        self._stale: list[tuple[float, int, DataObject]] = []
        self._leaving: dict[str, float] = {}
        self._away: dict[str, float] = {}
        self._paced: deque[tuple[DataObject, str, float]] = deque()
        self._tombstones: deque[DataObject] = deque()
        self._dirty: dict[DataObject, None] = {}
        self._parsed: deque[DataObject] = deque()
        self._credit = float(SNAPSHOT_FLOOR)
        self._credited = now
        self.mint = mint
        self.sharing = Sharing(self, pending)
        self.requests = Requests(self)
        self._take_over(now)
        for client, key, code in ids:
            self._note(client, key, code, now)

    def _take_over(self, now: float) -> None:
        """Bind stored objects to the catalogue and the namespaces; last-seen is the start."""
        tombstones = []
        for obj in self.objects:
            self.objects.settle(obj, self.rights.namespace_of(obj.topic))
            if obj.deleted:
                tombstones.append(obj)
                continue
            obj.seen = now
            if obj.status == DISCONNECTED:
                self._away[obj.reporter] = now
            obj.charged = obj.size
            self.client(obj.reporter, now).bytes += obj.size
            after = obj.namespace.stale_after if obj.namespace is not None else None
            if after is not None and obj.status == LIVE:
                obj.watched = True
                self._stale.append((now + after, id(obj), obj))
        heapify(self._stale)
        self._tombstones.extend(sorted(tombstones, key=lambda obj: obj.modified))
        self.rights.watch_grants()

    def renew(self, epoch: int) -> None:
        """Go on under a higher epoch; nothing has been sent under the old one."""
        self.epoch = epoch
        self._head = b'{"epoch":%d,"version":' % epoch

    def client(self, name: str, now: float) -> _Client:
        state = self._clients.get(name)
        if state is None:
            state = self._clients[name] = _Client(self.limits, now)
            if name in self.adapters:
                state.unlimited()
        return state

    def _stamp(self, now: float) -> int:
        """Unix milliseconds of `now`; keeps the delta's `modified` part for all changes within one of them."""
        millis = int(now * 1000)
        if millis != self._millis:
            self._millis = millis
            second, rest = divmod(millis, 1000)
            if second != self._second:
                self._second = second
                self._until_second = b',"modified":"' + rfc3339(second * 1000)[:-4].encode()
            self._modified = b'%b%03dZ"' % (self._until_second, rest)
        return millis

    def families(self) -> Iterator[Family]:
        """All that is counted here, and what is held now, in a fixed order."""
        found = self.counters
        refused = found.refused.total()
        yield gauge("ctxt_objects", "Objects held now.", len(self.objects) - len(self._tombstones))
        yield gauge("ctxt_tombstones", "Deleted objects whose URLs are still closed.", len(self._tombstones))
        results = {
            "changed": found.reports - found.unchanged - refused,
            "unchanged": found.unchanged,
            "refused": refused,
        }
        yield counters(
            "ctxt_reports_total", "Reports, and what was refused like one before it was looked at.", "result", results
        )
        yield counters("ctxt_reports_refused_total", "Refused reports by code.", "code", _by_code(found.refused))
        yield counter(
            "ctxt_rejections_suppressed_total", "Refusals that their client was not told of singly.", found.suppressed
        )
        yield counter("ctxt_late_members_total", "Reported members older than what was held.", found.late)
        yield counter("ctxt_requests_total", "Requests.", found.requests)
        yield counters(
            "ctxt_requests_refused_total", "Refused requests by code.", "code", _by_code(found.requests_refused)
        )
        yield gauge(
            "ctxt_pending", "Subscriptions, invitations and delegations not decided yet.", len(self.sharing.waiting)
        )
        yield gauge("ctxt_actions", "Actions that are not answered yet.", len(self.sharing.actions))
        yield counter("ctxt_objects_created_total", "Objects created.", found.created)
        yield counter("ctxt_objects_deleted_total", "Objects deleted.", found.deleted)
        yield counter("ctxt_status_changes_total", "Changes between live, stale and disconnected.", found.status)
        yield counter(
            "ctxt_value_view_left_out_total", "Values that did not fit into a value view.", found.view_left_out
        )

    # ---- reports -------------------------------------------------------------------------------------------------------

    def report(self, effects: Effects, client: str, topic: str, payload: bytes, now: float) -> Refused | None:
        """Apply one report of an authenticated client on an object topic. Hot: one screen, no logging.

        Returns None when it is accepted (a change, or a sign of life), else why it is refused; a refusal changes nothing.
        """
        self.counters.reports += 1
        state = self._clients.get(client) or self.client(client, now)
        if not state.reports.take(now):
            return self._refuse(effects, client, state, Refused(429, url_of(topic), self.too_fast("reports")), now)
        obj = self.objects.get(topic)
        limits = self.limits
        try:
            if len(payload) > limits.payload_bytes:
                raise PayloadError(413, messages.too_long(len(payload), limits.payload_bytes))
            change = orjson.loads(payload)
            if payload.count(b"{") + payload.count(b"[") > limits.depth and depth_exceeds(change, limits.depth):
                raise PayloadError(413, messages.too_deep(limits.depth))
        except orjson.JSONDecodeError as error:
            problem = messages.not_json(payload, error, limits.depth)
            return self._refuse(effects, client, state, Refused(problem.code, url_of(topic), problem.text), now)
        except PayloadError as error:
            return self._refuse(effects, client, state, Refused(error.code, url_of(topic), error.text), now)
        if obj is None or obj.reporter != client or obj.deleted:
            refused = self._create(effects, client, state, topic, change, len(payload), obj, now)
            return None if refused is None else self._refuse(effects, client, state, refused, now)
        refused = self.change(effects, state, obj, change, len(payload), now)
        return None if refused is None else self._refuse(effects, client, state, refused, now)

    def change(
        self,
        effects: Effects,
        state: _Client,
        obj: DataObject,
        change: Any,
        added: int,
        now: float,
        *,
        live: bool = True,
    ) -> Refused | None:
        """Apply a merge patch (an object) or a JSON Patch (an array) of `added` bytes, which its Reporter sent. Hot.

        `state` is the Reporter's. `live`: it is a sign of life.
        """
        old = obj.data
        if old is None:
            old = self._parse(obj)
        kind = b',"merge":'
        try:
            if type(change) is dict:
                new = merge(old, change)
            elif type(change) is list:
                new = self._patched(old, change)
                kind = b',"patch":'
            else:
                return Refused(400, obj.url, _neither(change))
        except PatchError as error:
            return Refused(409, obj.url, str(error), error.place)
        schema = obj.schema
        if schema is not None and schema.timed and new is not old:
            new, change = self._keep_newer(schema.timed, old, new, change, now)
        if new is old:
            self.counters.unchanged += 1
            if live:
                self.alive(effects, obj, now)
            return None
        size = self._fit(obj, schema, new, change, added, state, now)
        if isinstance(size, Refused):
            return size
        obj.data = new
        obj.text = None
        obj.size = size
        obj.version += 1
        obj.modified = self._stamp(now)
        if live:
            obj.seen = now
        tail = b"}"
        if live and obj.status != LIVE:
            obj.status = LIVE
            tail = b',"status":"live"}'
            self._watch(obj, now)
        delta = b"".join((self._head, b"%d" % obj.version, self._modified, kind, orjson.dumps(change), tail))
        effects.deltas.append((obj, delta))
        effects.touched[obj] = None
        self._credit += len(delta) / 3
        if not obj.due:
            obj.due = now
            self._dirty[obj] = None
        return None

    def _parse(self, obj: DataObject) -> dict[str, Any]:
        """Parse an object's data. The oldest parsed ones are let go: as text they weigh a tenth."""
        parsed = self._parsed
        parsed.append(obj)
        if len(parsed) > PARSED:
            old = parsed.popleft()
            if old.text is not None:
                old.data = None
            else:
                # Changed in this very batch: `seal` sees to it.
                parsed.append(old)
        data = obj.data = obj.document()
        return data

    def _patched(self, old: dict[str, Any], operations: list[Any]) -> Any:
        limits = self.limits
        return apply_patch(
            old, operations, max_ops=limits.patch_operations, max_bytes=limits.data_bytes, max_depth=limits.depth
        )

    def _fit(
        self,
        obj: DataObject,
        schema: Schema | None,
        new: dict[str, Any],
        change: Any,
        added: int,
        state: _Client,
        now: float,
    ) -> int | Refused:
        """An upper bound of the bytes of a changed value, or why it may not be held: its schema, its size, its Reporter's allowance."""
        limits = self.limits
        if schema is None:
            return Refused(
                409, obj.url, "its schema is no longer in the catalogue: put the schema back, then report again"
            )
        if not schema.is_valid(new):
            return self._invalid(obj.url, schema, new, state, now)
        size = obj.size + added
        copies = type(change) is list
        if copies or size > limits.data_bytes:
            size = len(orjson.dumps(new))
            if size > limits.data_bytes:
                return Refused(
                    413,
                    obj.url,
                    f"the object would have {size:,} bytes of data, at most {limits.data_bytes:,} are held: "
                    "remove members (null in a merge patch) or split the object",
                )
        if state.bytes + size - obj.charged > limits.bytes_per_client:
            size = len(orjson.dumps(new))
            if size > obj.charged and state.bytes + size - obj.charged > limits.bytes_per_client:
                return Refused(
                    413,
                    obj.url,
                    f"your objects hold {state.bytes:,} bytes, at most {limits.bytes_per_client:,} are allowed: "
                    "delete objects, or raise limits.bytes_per_client",
                )
        if copies:
            # A few bytes of JSON Patch can make many: they count at once, not only when the batch is sealed.
            state.bytes += size - obj.charged
            obj.charged = size
        return size

    @staticmethod
    def _invalid(url: str, schema: Schema, data: Any, state: _Client, now: float) -> Refused:
        """Where the schema is broken. The search costs a hundred times the check: not for those who are told nothing."""
        if not state.rejections.has(now):
            return Refused(422, url, f"the result breaks the schema {schema.name}")
        problems = schema.problems(data, limit=1)
        first = problems[0]
        return Refused(422, url, f"{first.place or 'the data'}: {first.text} (schema {schema.name})", first.place)

    def _keep_newer(
        self, timed: Iterable[TimedMembers], old: dict[str, Any], new: dict[str, Any], change: Any, now: float
    ) -> tuple[dict[str, Any], Any]:
        """Members that carry their own time go backwards in nobody's copy: an older one leaves what is held alone.

        A member reported without time counts as now: where one is held with a time, it gets the gateway's.
        Returns the value to hold (`old` itself where nothing newer is left) and the change that leads to it.
        """
        is_merge = type(change) is dict
        late = False
        for members in timed:
            held_at = _at(old, members.path)
            new_at = _at(new, members.path)
            said_at = _at(change, members.path) if is_merge else new_at
            if held_at is None or new_at is None or said_at is None or held_at is new_at:
                continue
            key = members.time
            for name in said_at:
                held = held_at.get(name)
                member = new_at.get(name)
                if member is held or type(held) is not dict or type(member) is not dict:
                    continue
                held_time = held.get(key)
                if held_time is None:
                    continue
                said = said_at[name]
                if is_merge and not (type(said) is dict and key in said):
                    stamped = rfc3339(int(now * 1000))
                    new = _with(new, (*members.path, name, key), stamped)
                    change = _with(change, (*members.path, name, key), stamped)
                    continue
                held_when = messages.instant(held_time)
                when = messages.instant(member.get(key))
                if held_when is None or when is None or when >= held_when or held_when > now + CLOCK_SKEW:
                    continue
                self.counters.late += 1
                late = True
                new = _with(new, (*members.path, name), held)
                if is_merge:
                    change = _without(change, (*members.path, name))
        if late:
            if same(new, old):
                return old, change
            if not is_merge:
                change = diff(old, new)
        return new, change

    def _create(
        self,
        effects: Effects,
        client: str,
        state: _Client,
        topic: str,
        change: Any,
        size: int,
        obj: DataObject | None,
        now: float,
    ) -> Refused | None:
        """A report on what does not exist, is somebody else's, or is a tombstone."""
        site = self._site(client, topic, obj)
        if isinstance(site, Refused):
            return site
        url = url_of(topic)
        refused = self._full(client, state, url, size, now)
        if refused is not None:
            return refused
        try:
            if type(change) is dict:
                data = merge({}, change)
            elif type(change) is list:
                data = self._patched({}, change)
            else:
                return Refused(400, url, _neither(change))
        except PatchError as error:
            return Refused(409, url, str(error), error.place)
        made = self._made(effects, client, state, topic, site, data, Facts(), None, now)
        return made if isinstance(made, Refused) else None

    def create(
        self, effects: Effects, client: str, topic: str, data: dict[str, Any], facts: Facts, now: float
    ) -> DataObject | Refused:
        """Bring an object to life because its Reporter asks for it; a tombstone of its own comes back, versions going on."""
        obj = self.objects.get(topic)
        site = self._site(client, topic, obj, schema=facts.schema, again=True)
        if isinstance(site, Refused):
            return site
        if facts.public:
            refused = self._publishable(site.namespace, url_of(topic), topic)
            if refused is not None:
                return refused
        state = self.client(client, now)
        refused = self._full(client, state, url_of(topic), 0, now)
        if refused is not None:
            return refused
        made = self._made(effects, client, state, topic, site, data, facts, obj, now)
        if isinstance(made, DataObject) and facts.public:
            self.open(effects, made, public=True)
        return made

    def _site(
        self, client: str, topic: str, obj: DataObject | None, *, schema: str | None = None, again: bool = False
    ) -> _Site | Refused:
        """Which schema an object would have, and where it belongs; or why this client may not bring it to life.

        `schema`: the one asked for, else its place decides. `again`: a tombstone of its own, a child's excepted, is no hindrance.
        """
        url = url_of(topic)
        rights = self.rights
        if obj is None and not is_normal_topic(topic):
            return Refused(400, url, self._misspelt(topic))
        parent_topic = parent_of(topic)
        if parent_topic is None:
            creatable = rights.may_create(client, topic)
        else:
            creatable = rights.may_observe(client, parent_topic) and Address.from_topic(topic).child_reporter == client
        if not creatable and not rights.may_observe(client, topic):
            return self.hidden(client, url)
        if obj is not None and obj.reporter != client:
            return Refused(
                409 if again else 403,
                url,
                f"its Reporter is {obj.reporter!r}, and only the Reporter writes: report on an object of your own",
            )
        if obj is not None and not (again and parent_topic is None):
            hint = "create it again with a create request, or " if parent_topic is None else ""
            return Refused(410, url, f"the object was deleted: {hint}wait until its tombstone is gone")
        namespace = rights.namespace_of(topic)
        if parent_topic is None:
            scheme = topic[: topic.index("/")]
            if scheme not in self.catalogue.schemes:
                return Refused(
                    404,
                    url,
                    f"no schema of the catalogue has the scheme {scheme!r}: known are {', '.join(sorted(self.catalogue.schemes))}",
                )
            if not creatable or namespace is None:
                return Refused(
                    404,
                    url,
                    f"the object does not exist, and {client!r} may not create it: see the namespace's `report` list",
                )
            try:
                found = self.catalogue.get(schema or namespace.schema)
            except UnknownSchema as error:
                return Refused(404, url, str(error))
            if found.scheme != scheme:
                what = f"the schema {found.name}" if schema else f"the namespace's default schema {found.name}"
                return Refused(
                    409 if schema else 404,
                    url,
                    f"{what} is for {found.scheme}://, not {scheme}://: name "
                    + (f"one for {scheme}://" if schema else f"a namespace for {scheme}://"),
                )
        else:
            address = Address.from_topic(topic)
            parent = self.objects.get(parent_topic)
            if parent is None or parent.deleted or parent.schema is None:
                return Refused(
                    404, url, f"its parent {url_of(parent_topic)} does not exist: children live below an object"
                )
            child_schema = parent.schema.children.get(address.collection or "")
            if child_schema is None:
                known = ", ".join(sorted(parent.schema.children)) or "none"
                return Refused(
                    404,
                    url,
                    f"the schema {parent.schema.name} has no collection {address.collection!r}: it has {known}",
                )
            if not creatable:
                return Refused(403, url, f"a child's Reporter is named in its URL, and this one is not {client!r}")
            found = self.catalogue.get(child_schema)
            if schema is not None and schema not in (found.url, found.name):
                return Refused(409, url, f"what is in {address.collection!r} has the schema {found.name}")
        return _Site(found, namespace)

    def _made(
        self,
        effects: Effects,
        client: str,
        state: _Client,
        topic: str,
        site: _Site,
        data: Any,
        facts: Facts,
        obj: DataObject | None,
        now: float,
    ) -> DataObject | Refused:
        """The object with its first value, where that is valid and has room. `obj`: the tombstone that comes back."""
        url = url_of(topic)
        limits = self.limits
        if not site.schema.is_valid(data):
            return self._invalid(url, site.schema, data, state, now)
        text = compact(data)
        if len(text) > limits.data_bytes:
            return Refused(
                413,
                url,
                f"the object would have {len(text):,} bytes of data, at most {limits.data_bytes:,} are held",
            )
        if state.bytes + len(text) > limits.bytes_per_client:
            return Refused(
                413, url, f"your objects would hold more than {limits.bytes_per_client:,} bytes: delete some"
            )
        if parent_of(topic) is not None and obj is None:
            refused = self._crowded(effects, topic, now)
            if refused is not None:
                return refused
        return self._bring(effects, state, topic, site, client, text, facts, obj, now)

    def _crowded(self, effects: Effects, topic: str, now: float) -> Refused | None:
        """Room for one more child of a client in its collection: its oldest one goes, or it is refused."""
        mine = url_of(topic[: topic.rindex("/") + 1])
        most = self.limits.children_per_collection
        if self.objects.count_below(mine) < most:
            return None
        if self.limits.children_when_full == "refuse":
            return Refused(
                413,
                url_of(topic),
                f"you have {most:,} children in this collection, the limit: delete some, and wait until their tombstones are gone",
            )
        own = [child for child in self.objects.from_url(mine) if not child.deleted]
        if len(own) >= most:
            self._bury(effects, min(own, key=lambda child: (child.created, child.row)), now)
        return None

    def _bring(
        self,
        effects: Effects,
        state: _Client,
        topic: str,
        site: _Site,
        client: str,
        text: bytes,
        facts: Facts,
        obj: DataObject | None,
        now: float,
    ) -> DataObject:
        """Bring an object to life, or back to it."""
        millis = self._stamp(now)
        created = DataObject(
            topic=topic,
            schema=site.schema,
            reporter=client,
            name=facts.name or topic.rsplit("/", 1)[1],
            version=max(self.floors.get(authority_of(topic), 0), obj.version if obj is not None else 0) + 1,
            created=millis,
            modified=millis,
            text=text,
            row=obj.row if obj is not None else self._next_row,
            namespace=site.namespace,
            seen=now,
            description=facts.description,
            tags=facts.tags,
            resources=facts.resources,
            policy=facts.policy or ASK,
        )
        if obj is None:
            self._next_row += 1
        else:
            # Grants died with the object; its tombstone was still theirs to see.
            effects.lost.update(client for client in obj.grants or () if client != PUBLIC)
            if obj.public:
                effects.everyone = True
                effects.shut.append(created)
            self._tombstones.remove(obj)
            self._dirty.pop(obj, None)
            effects.touched.pop(obj, None)
            self.objects.remove(obj)
            self.rights.generation += 1
            effects.heads.add(created)
        created.charged = created.size
        state.bytes += created.size
        self.objects.add(created)
        self.counters.created += 1
        effects.gained.add(client)
        head: dict[str, Any] = {"created": True, "schema": site.schema.url, "reporter": client, "status": LIVE}
        meta = facts.meta()
        if meta:
            head["meta"] = meta
        self._emit(effects, created, b',%b,"value":%b' % (orjson.dumps(head)[1:-1], text), now)
        effects.fresh.append(created)
        self._watch(created, now)
        return created

    def _full(self, client: str, state: _Client, url: str, size: int, now: float) -> Refused | None:
        """Whether a client may bring one more object to life."""
        limits = self.limits
        if len(self.objects) >= limits.objects:
            return Refused(
                507,
                url,
                f"the gateway holds {limits.objects:,} objects, its limit: delete some, or raise limits.objects",
            )
        if self.objects.count_of(client) >= limits.objects_per_client:
            return Refused(
                413,
                url,
                f"you have {limits.objects_per_client:,} objects and tombstones, the limit: delete some and wait until their "
                "tombstones are gone, or raise limits.objects_per_client",
            )
        if state.bytes + size > limits.bytes_per_client:
            return Refused(
                413,
                url,
                f"your objects hold {state.bytes:,} bytes, at most {limits.bytes_per_client:,} are allowed: delete some",
            )
        if not state.creations.take(now):
            return Refused(
                429,
                url,
                f"more than {limits.creations_per_minute:g} objects created per minute: wait, then report again",
            )
        return None

    @staticmethod
    def hidden(client: str, url: str) -> Refused:
        """One answer for what exists and what does not, to somebody who may know of neither."""
        return Refused(
            403, url, f"{client!r} may neither observe nor create this URL: see the namespaces in the settings"
        )

    @staticmethod
    def _misspelt(topic: str) -> str:
        try:
            Address.from_topic(topic)
        except AddressError as error:
            return str(error)
        return "the URL is not in normal form"  # pragma: no cover - is_normal_topic and from_topic agree

    def too_fast(self, what: str) -> str:
        rate = self.limits.reports_per_second if what == "reports" else self.limits.requests_per_second
        return f"more than {rate:g} {what} per second: slow down, or raise limits.{what}_per_second"

    def _refuse(self, effects: Effects, client: str, state: _Client, refused: Refused, now: float) -> Refused:
        """Count a refusal and tell the client in its inbox, unless it has been told enough for now."""
        self.counters.refused[refused.code] += 1
        if not state.rejections.take(now):
            state.suppressed += 1
            self.counters.suppressed += 1
            return refused
        if client == ANONYMOUS:
            return refused
        self._rejected += 1
        payload = messages.rejection(
            refused.url,
            refused.code,
            refused.text,
            place=refused.place,
            created=int(now * 1000),
            number=self._rejected,
            more=state.suppressed,
        )
        state.suppressed = 0
        effects.replies.append(Reply(client, payload))
        return refused

    def refuse(self, effects: Effects, client: str, refused: Refused, now: float) -> Refused:
        """Refuse a message like a report before it is looked at (a retained one, presence that is none)."""
        self.counters.reports += 1
        return self._refuse(effects, client, self.client(client, now), refused, now)

    # ---- redelivery across sessions ------------------------------------------------------------------------------------

    def remembered(self, client: str, key: str, now: float) -> int | None:
        """The code that a report or request with this `id` property was answered with, or None."""
        return self.client(client, now).ids.get(key)

    def remember(self, effects: Effects, client: str, key: str, code: int, now: float) -> None:
        """Keep an `id` for as long as a client's last `deduplication_ids` of them."""
        self._note(client, key, code, now)
        effects.ids.append((client, key, code))

    def _note(self, client: str, key: str, code: int, now: float) -> None:
        ids = self.client(client, now).ids
        ids[key] = code
        if len(ids) > self.limits.deduplication_ids:
            del ids[next(iter(ids))]

    # ---- life ----------------------------------------------------------------------------------------------------------

    def alive(self, effects: Effects, obj: DataObject, now: float) -> None:
        """A sign of life without a change: what was stale or disconnected becomes live."""
        obj.seen = now
        if obj.status != LIVE:
            self._set_status(effects, obj, LIVE, now)
            self._watch(obj, now)

    def unreachable(self, effects: Effects, obj: DataObject, now: float) -> None:
        """What stands behind one object has gone."""
        if obj.status != DISCONNECTED:
            self._set_status(effects, obj, DISCONNECTED, now)

    def presence(self, effects: Effects, client: str, online: bool, now: float) -> None:
        """A client says that it is there or has gone, or its last connection broke without a DISCONNECT."""
        if not online:
            self._leaving.setdefault(client, now + self.limits.offline_grace)
            return
        self.sharing.remind(effects, client, now)
        self._leaving.pop(client, None)
        if self._away.pop(client, None) is None:
            return
        for obj in self.objects.of(client):
            if obj.status == DISCONNECTED and not obj.deleted:
                after = obj.namespace.stale_after if obj.namespace is not None else None
                quiet = after is not None and obj.seen + after <= now
                self._paced.append((obj, STALE if quiet else LIVE, now))
        self._pace(effects, now)

    def tick(self, effects: Effects, now: float) -> None:
        """Let time pass: grants, staleness, presence, tombstones. Called often (every 100 ms); does a bounded amount."""
        self._pace(effects, now)
        self.sharing.tick(effects, now)
        for client, granted in self.rights.expire(now):
            effects.lost.add(client)
            if granted is not None:
                self._rehead(effects, granted)
                self.sharing.dismissed(effects, granted, client)
        if self._leaving:
            for client in [name for name, deadline in self._leaving.items() if deadline <= now]:
                lost = self._leaving.pop(client) - self.limits.offline_grace
                if not self.objects.count_of(client):
                    continue
                self._away[client] = lost
                self._paced.extend(
                    (obj, DISCONNECTED, lost)
                    for obj in self.objects.of(client)
                    if not obj.deleted and obj.status != DISCONNECTED
                )
        stale = self._stale
        budget = self.limits.status_pace
        looks = LOOKS
        while stale and stale[0][0] <= now and budget and looks:
            looks -= 1
            _, _, obj = heappop(stale)
            obj.watched = False
            after = obj.namespace.stale_after if obj.namespace is not None else None
            if obj.deleted or obj.status != LIVE or after is None:
                continue
            if obj.seen + after > now:
                obj.watched = True
                heappush(stale, (obj.seen + after, id(obj), obj))
                continue
            budget -= 1
            self._set_status(effects, obj, STALE, now)
        tombstones = self._tombstones
        ttl = self.limits.tombstone_ttl * 1000
        budget = self.limits.status_pace
        while tombstones and tombstones[0].modified + ttl <= now * 1000 and budget:
            budget -= 1
            self._purge(effects, tombstones.popleft())

    def _pace(self, effects: Effects, now: float) -> None:
        """Work off status changes of clients with many objects, a bounded number at a time."""
        paced = self._paced
        for _ in range(min(len(paced), self.limits.status_pace)):
            obj, status, since = paced.popleft()
            if obj.deleted or obj.status == status:
                continue
            lost = self._away.get(obj.reporter)
            if status == DISCONNECTED:
                # Back by now, or reported on since: alive, whatever its client's presence said before.
                if lost != since or obj.seen > since:
                    continue
            elif lost is not None or obj.status != DISCONNECTED:
                continue
            self._set_status(effects, obj, status, now)
            if status == LIVE:
                self._watch(obj, now)

    def _watch(self, obj: DataObject, now: float) -> None:
        after = obj.namespace.stale_after if obj.namespace is not None else None
        if after is not None and not obj.watched:
            obj.watched = True
            heappush(self._stale, (now + after, id(obj), obj))

    def _set_status(self, effects: Effects, obj: DataObject, status: str, now: float) -> None:
        obj.status = status
        since, upto = obj.lull
        obj.lull = (since if upto == obj.version else obj.version, obj.version + 1)
        obj.version += 1
        obj.modified = self._stamp(now)
        self.counters.status += 1
        self._emit(effects, obj, b',"status":"%b"' % status.encode(), now)

    def _emit(self, effects: Effects, obj: DataObject, members: bytes, now: float) -> None:
        """Send a delta for the object's new version and see that it is stored and, later, shown whole."""
        self._stamp(now)
        delta = b"%b%d%b%b}" % (self._head, obj.version, self._modified, members)
        effects.deltas.append((obj, delta))
        effects.touched[obj] = None
        self._credit += len(delta) / 3
        if not obj.due:
            obj.due = now
            self._dirty[obj] = None

    # ---- rights --------------------------------------------------------------------------------------------------------

    def find(self, url: str) -> DataObject | Refused:
        """The object of a URL in any spelling, as the administrator sees it."""
        try:
            address = Address.parse(url)
        except AddressError as error:
            return Refused(400, url[:200], str(error))
        obj = self.objects.get(address.topic)
        if obj is None:
            return Refused(404, address.url, "the object does not exist")
        if obj.deleted:
            return Refused(410, address.url, "the object was deleted")
        return obj

    def probe(self, effects: Effects, client: str, now: float) -> DataObject | Refused:
        """An object of a client where no namespace is, so that nobody else may read it: for trying out whether that holds."""
        topic = f"ctxt/{PROBES}/{client}"
        url = url_of(topic)
        if topic in self.objects:
            return Refused(409, url, "it is there already")
        if self.rights.namespace_of(topic) is not None:
            return Refused(409, url, f"a namespace of the settings holds ctxt://{PROBES}/…, which is for tests alone")
        state = self.client(client, now)
        refused = self._full(client, state, url, 0, now)
        if refused is not None:
            return refused
        site = _Site(self.catalogue.get("Context"), None)
        return self._bring(effects, state, topic, site, client, b'{"values":{"probe":{"value":0}}}', Facts(), None, now)

    def grant(self, effects: Effects, obj: DataObject, client: str, until: float = 0.0) -> Refused | None:
        """Let a client observe an object and its children, until a time (Unix seconds; 0: for good)."""
        held = obj.grants or {}
        if client not in held and len(held) >= self.limits.grants_per_object:
            return Refused(
                413,
                obj.url,
                f"{len(held):,} clients have been granted it, the limit: put them into a group that its namespace's `observe` names",
            )
        if self.rights.grant(obj, client, until):
            effects.gained.add(client)
            effects.opened.append(obj)
        self._rehead(effects, obj)
        self.sharing.admitted(effects, obj, client)
        return None

    def revoke(self, effects: Effects, obj: DataObject, client: str) -> bool:
        """Take a grant back, at once. Whether there was one."""
        if not self.rights.revoke(obj, client):
            return False
        effects.lost.add(client)
        self.sharing.dismissed(effects, obj, client)
        self._rehead(effects, obj)
        return True

    def open(self, effects: Effects, obj: DataObject, *, public: bool) -> None:
        """Let every client with a name observe an object, or no longer. That its namespace permits it the caller has seen."""
        if public:
            if self.rights.grant(obj, PUBLIC):
                effects.everyone = True
                effects.opened.append(obj)
                self.sharing.admitted(effects, obj, None)
        elif self.rights.revoke(obj, PUBLIC):
            effects.everyone = True
            effects.shut.append(obj)
        self._rehead(effects, obj)

    @staticmethod
    def _publishable(namespace: Namespace | None, url: str, topic: str) -> Refused | None:
        if parent_of(topic) is not None:
            return Refused(409, url, "a child is read by who may read its parent: make the parent public")
        if namespace is None or not namespace.public:
            return Refused(403, url, "its namespace does not permit public objects: see `public` in the settings")
        return None

    def describe(
        self, effects: Effects, obj: DataObject, meta: dict[str, Any], now: float, *, live: bool = True
    ) -> Refused | None:
        """Change what an object says of itself: `name`, `description`, `tags`, `resources`, `public`, `policy`; None takes it away.

        `live`: it is a sign of life.
        """
        public = meta.get("public")
        if public:
            refused = self._publishable(obj.namespace, obj.url, obj.topic)
            if refused is not None:
                return refused
        for key in ("name", "description", "tags", "resources", "policy"):
            if key in meta:
                setattr(obj, key, meta[key])
        if public is not None:
            self.open(effects, obj, public=public)
        obj.version += 1
        obj.modified = self._stamp(now)
        told = {key: value for key, value in meta.items() if key != "policy"}
        life = b""
        if live:
            obj.seen = now
        if live and obj.status != LIVE:
            obj.status = LIVE
            life = b',"status":"live"'
            self._watch(obj, now)
        self._emit(effects, obj, b',"meta":%b%b' % (orjson.dumps(told), life), now)
        self._rehead(effects, obj)
        return None

    def hand_over(self, effects: Effects, obj: DataObject, client: str, now: float) -> Refused | None:
        """Give an object another Reporter, in one step: versions go on, and the former one's next report is refused."""
        former = obj.reporter
        if former == client:
            return None
        if parent_of(obj.topic) is not None:
            return Refused(409, obj.url, "a child's Reporter is named in its URL: it cannot be given to another")
        if self.objects.count_of(client) >= self.limits.objects_per_client:
            return Refused(
                413, obj.url, f"{client!r} has {self.limits.objects_per_client:,} objects and tombstones, the limit"
            )
        self.client(former, now).bytes -= obj.charged
        self.client(client, now).bytes += obj.charged
        self.objects.hand_over(obj, client)
        self.rights.generation += 1
        effects.lost.add(former)
        effects.gained.add(client)
        effects.opened.append(obj)
        obj.version += 1
        obj.modified = self._stamp(now)
        self._emit(effects, obj, b',"reporter":' + orjson.dumps(client), now)
        self._rehead(effects, obj)
        self.sharing.handed_over(effects, obj, former, now)
        return None

    def rewatch(self, now: float) -> None:
        """Namespaces say something else of staleness: every timer begins anew."""
        self._stale = []
        for obj in self.objects:
            obj.watched = False
            after = obj.namespace.stale_after if obj.namespace is not None else None
            if after is not None and not obj.deleted and obj.status == LIVE:
                obj.watched = True
                self._stale.append((max(now, obj.seen + after), id(obj), obj))
        heapify(self._stale)

    def limit(self, limits: Limits) -> None:
        """Other bounds and times, from now on."""
        self.limits = limits
        for name, state in self._clients.items():
            if name not in self.adapters:
                state.limit(limits)

    @staticmethod
    def _rehead(effects: Effects, obj: DataObject) -> None:
        effects.touched[obj] = None
        effects.heads.add(obj)

    # ---- snapshots -----------------------------------------------------------------------------------------------------

    def snapshots(self, now: float) -> list[DataObject]:
        """The objects whose snapshot is due, oldest change first; each is given once per change.

        Every `snapshot_interval`, stretched under load so that snapshots take at most a quarter of the output, never beyond
        `snapshot_max`.
        """
        passed = max(0.0, now - self._credited)
        self._credit = min(self._credit + passed * SNAPSHOT_FLOOR, 4.0 * SNAPSHOT_FLOOR)
        self._credited = now
        due: list[DataObject] = []
        young = now - self.limits.snapshot_interval
        old = now - self.limits.snapshot_max
        for obj in self._dirty:
            # What is due later than now is from before the clock was put back.
            if young < obj.due <= now:
                break
            if self._credit <= 0 and old < obj.due <= now:
                break
            self._credit -= obj.size + 300
            due.append(obj)
        for obj in due:
            self.shown(obj)
        return due

    def shown(self, obj: DataObject) -> None:
        """Note that the snapshot of this object is going out now."""
        if obj.due:
            obj.due = 0.0
            self._dirty.pop(obj, None)

    def seal(self, effects: Effects) -> None:
        """Bring the objects of a batch into the form that is stored, and charge their Reporters for the bytes."""
        for obj in effects.touched:
            if obj.deleted:
                size = 0
            else:
                size = len(obj.render())
                obj.size = size
            if size != obj.charged:
                state = self._clients.get(obj.reporter)
                if state is not None:
                    state.bytes += size - obj.charged
                obj.charged = size
        parsed = self._parsed
        while len(parsed) > PARSED:
            old = parsed.popleft()
            if old.text is not None:
                old.data = None

    # ---- deletion ------------------------------------------------------------------------------------------------------

    def delete(self, effects: Effects, obj: DataObject, now: float) -> None:
        """Delete an object, its children first; each leaves a tombstone with its next version."""
        for child in [child for child in self.objects.children(obj.topic) if not child.deleted]:
            self._bury(effects, child, now)
        self._bury(effects, obj, now)

    def _bury(self, effects: Effects, obj: DataObject, now: float) -> None:
        obj.deleted = True
        obj.version += 1
        obj.modified = self._stamp(now)
        obj.data = None
        obj.text = b""
        obj.size = 0
        obj.types = None
        self.counters.deleted += 1
        self._emit(effects, obj, b',"deleted":true', now)
        effects.fresh.append(obj)
        self._tombstones.append(obj)
        self.sharing.deleted(effects, obj)

    def _purge(self, effects: Effects, obj: DataObject) -> None:
        """Forget a tombstone; what is created later below its authority starts above its version."""
        authority = authority_of(obj.topic)
        floor = max(self.floors.get(authority, 0), obj.version)
        self.floors[authority] = floor
        effects.floors[authority] = floor
        effects.touched.pop(obj, None)
        effects.purged.append(obj)
        self._dirty.pop(obj, None)
        # They have lost nothing that is still there; brokers that name each object forget this one.
        effects.gained.add(obj.reporter)
        effects.gained.update(client for client in obj.grants or () if client != PUBLIC)
        effects.everyone |= obj.public
        self.objects.remove(obj)
        # Whoever makes an object here next need not be who was asked about before.
        self.rights.generation += 1


def _by_code(codes: Counter[int]) -> dict[str, float]:
    return {str(code): count for code, count in sorted(codes.items())}


def _neither(change: Any) -> str:
    kind = {str: "a string", bool: "a boolean", type(None): "null"}.get(type(change), "a number")
    return f"the payload is {kind}: a report is a JSON object (merge patch) or array (JSON Patch)"


def _at(value: Any, path: tuple[str, ...]) -> dict[str, Any] | None:
    for key in path:
        if type(value) is not dict:
            return None
        value = value.get(key)
    return value if type(value) is dict else None


def _with(value: dict[str, Any], path: tuple[str, ...], leaf: Any) -> dict[str, Any]:
    """A copy with one member replaced; the rest is shared."""
    copy = dict(value)
    copy[path[0]] = leaf if len(path) == 1 else _with(value[path[0]], path[1:], leaf)
    return copy


def _without(value: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    copy = dict(value)
    if len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _without(value[path[0]], path[1:])
    return copy
