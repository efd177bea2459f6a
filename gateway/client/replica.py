"""The Observer rule: copies of Data Objects that are always in sync, or known not to be. Pure: messages and time go in.

Feed everything that arrives on `snapshot/…`, `delta/…` and `gateway/…`; what happened comes back as events. A copy is only ever
shown as the gateway held it at its (epoch, version). Where something is missing the copy stays as it was, `gaps` names it, and
`want_resubscribe` and `want_read` say what to do about it and when. `now` is any clock's seconds that never go back.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import orjson

from gateway.address import AddressError, Pattern
from gateway.objects import authority_of, parent_of, topic_of, url_of
from gateway.patch import PatchError, apply_patch, changed_paths, depth_exceeds, merge, same

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

UNKNOWN = "unknown"
"""The status of an object whose gateway is offline: nobody can say."""

HEAL_SECONDS = 3.0
"""How long a gap may wait for a snapshot that covers it; up to a second of jitter is added."""

ASK_AGAIN = 60.0
"""The longest wait (seconds) between two requests for one object."""

PENDING_DELTAS = 256
"""Deltas kept for one object in a gap, and PENDING_OBJECTS times as many for all."""

PENDING_OBJECTS = 64

READ_AT_ONCE = 100
"""Objects that one `read` may name."""

DEEPEST = 256
"""Levels of JSON; a gateway takes far fewer."""

MAX_GATEWAYS = 1_000
MAX_PATTERNS = 10_000

Position = tuple[int, int]
"""(epoch, version): which of two states of one object is the newer one."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One object as the gateway held it at (epoch, version). `data` is shared and must not be mutated.

    `deleted` is a tombstone: data is empty then. `created` and `modified` are RFC 3339 texts; what has not been told is None.
    """

    topic: str
    epoch: int
    version: int
    data: dict[str, Any]
    status: str
    reporter: str
    schema: str | None
    name: str
    modified: str
    created: str | None = None
    description: str | None = None
    tags: tuple[str, ...] | None = None
    resources: tuple[str, ...] | None = None
    deleted: bool = False

    @property
    def url(self) -> str:
        """The object URL."""
        return url_of(self.topic)

    @property
    def position(self) -> Position:
        """(epoch, version)."""
        return self.epoch, self.version

    @property
    def parent(self) -> str | None:
        """The URL of the object whose child this is; None for one that is nobody's."""
        above = parent_of(self.topic)
        return None if above is None else url_of(above)

    @property
    def collection(self) -> str | None:
        """The collection of the parent that a child is in."""
        above = parent_of(self.topic)
        return None if above is None else self.topic[len(above) :].split("/", 3)[2]


class _OfCopy:
    """What every event about an object that is there can tell."""

    __slots__ = ()
    copy: Copy

    @property
    def url(self) -> str:
        """The object's URL."""
        return self.copy.url

    @property
    def parent(self) -> str | None:
        """The URL of the parent where it is about a child, else None."""
        return self.copy.parent


@dataclass(frozen=True, slots=True)
class Created(_OfCopy):
    """An object is there that was not: new, seen for the first time, or created again after its deletion.

    `new` says that it was created just now, as far as that is known: else it may have been there for long.
    """

    copy: Copy
    new: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Changed(_OfCopy):
    """Data or what describes it (name, description, tags, resources) is another; `before` is the copy held until now."""

    copy: Copy
    before: Copy

    @property
    def paths(self) -> list[str]:
        """JSON pointers of the members of data that are different, an array as a whole; empty where only its description is."""
        return changed_paths(self.before.data, self.copy.data)


@dataclass(frozen=True, slots=True)
class StatusChanged(_OfCopy):
    """`live`, `stale` or `disconnected` instead of what `before` says."""

    copy: Copy
    before: Copy


@dataclass(frozen=True, slots=True)
class Delegated(_OfCopy):
    """The object has another writer."""

    copy: Copy
    before: Copy


@dataclass(frozen=True, slots=True)
class Deleted:
    """An object has gone, or is not for this Observer any more; `before` is the last copy."""

    before: Copy

    @property
    def url(self) -> str:
        """The object's URL."""
        return self.before.url

    @property
    def parent(self) -> str | None:
        """The URL of the parent where it is about a child, else None."""
        return self.before.parent


@dataclass(frozen=True, slots=True)
class GapOpened:
    """Something about an object was missed; its copy stays as it is until a snapshot covers it."""

    topic: str


@dataclass(frozen=True, slots=True)
class GapHealed:
    """The copy is in sync again."""

    topic: str


@dataclass(frozen=True, slots=True)
class GatewayChanged:
    """A gateway has come or gone; while it is away the status of what it serves is unknown."""

    gateway: str
    online: bool


Event = Created | Changed | StatusChanged | Delegated | Deleted | GapOpened | GapHealed | GatewayChanged


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a listing by `discover` says about the copies held."""

    consistent: bool
    """Whether the pages belong together: their digest is that of the URLs they list. If not, list again."""
    complete: bool
    """Whether the copies are exactly what is listed, none older and none in a gap."""
    events: list[Event] = field(default_factory=list)
    """Deleted, for what is held and not listed."""
    read: list[str] = field(default_factory=list)
    """URLs of what is listed and not held, held older, or in a gap."""


class _Entry:
    """What is known of one object topic."""

    __slots__ = ("asked", "copy", "doubt", "due", "heard", "pending", "seen")

    def __init__(self) -> None:
        self.copy: Copy | None = None
        self.seen: Position = (0, 0)
        """The newest position that any message has spoken of."""
        self.doubt = False
        """Whether the copy may not be what the gateway holds although no newer position is known."""
        self.pending: dict[Position, dict[str, Any]] = {}
        self.due = 0.0
        self.asked = 0
        self.heard = 0.0

    @property
    def in_gap(self) -> bool:
        return self.doubt or self.copy is None or self.copy.position < self.seen


@dataclass(frozen=True, slots=True)
class _Gateway:
    online: bool
    epoch: int
    patterns: tuple[Pattern, ...]


class Replica:
    """The copies of one Observer. Not thread-safe; does no I/O."""

    def __init__(self, *, jitter: Callable[[], float], prefix: str = "") -> None:
        """`jitter` gives a random number from 0 up to 1 at each call; `prefix` is the gateway's `topic_prefix`."""
        self._jitter = jitter
        head = prefix + "/" if prefix else ""
        self._snapshot, self._delta, self._gateway = f"{head}snapshot/", f"{head}delta/", f"{head}gateway/"
        self._entries: dict[str, _Entry] = {}
        self._children: dict[str, set[str]] = {}
        self._gaps: dict[str, _Entry] = {}
        self._pending = 0
        self._floors: dict[str, Position] = {}
        self._gateways: dict[str, _Gateway] = {}
        self.ignored = 0
        """Messages that could not be understood; what they may have meant is found out as a gap."""

    # ---- what is held --------------------------------------------------------------------------------------------------

    def get(self, topic: str) -> Copy | None:
        """The copy of a live object, or None. In a gap it is the last one that was in sync."""
        entry = self._entries.get(topic)
        return None if entry is None or entry.copy is None or entry.copy.deleted else entry.copy

    def __iter__(self) -> Iterator[Copy]:
        """All copies of live objects."""
        for entry in self._entries.values():
            if entry.copy is not None and not entry.copy.deleted:
                yield entry.copy

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def gaps(self) -> frozenset[str]:
        """The topics of objects whose copy is missing or behind."""
        return frozenset(self._gaps)

    def status(self, topic: str) -> str | None:
        """The status to show: `unknown` while the gateway that serves the object is offline; None for what is not there."""
        copy = self.get(topic)
        if copy is None:
            return None
        serving = [each for each in self._gateways.values() if any(p.matches(topic) for p in each.patterns)]
        return copy.status if not serving or any(each.online for each in serving) else UNKNOWN

    def digest(self, prefix: str = "") -> str:
        """SHA-256 (hex) over the sorted URLs held at and below a URL, as `discover` makes it."""
        return _digest(sorted(copy.url for copy in self if _is_below(copy.url, prefix)))

    def children(self, topic: str) -> Iterable[str]:
        """The topics of all children of an object that anything is known of."""
        return tuple(self._children.get(topic, ()))

    def topics(self) -> Collection[str]:
        """The topics of all objects that anything is known of."""
        return self._entries.keys()

    @property
    def gateways(self) -> dict[str, bool]:
        """The gateways that have announced themselves, and whether each is online."""
        return {name: each.online for name, each in self._gateways.items()}

    # ---- what arrives --------------------------------------------------------------------------------------------------

    def feed(self, topic: str, payload: bytes, now: float) -> list[Event]:
        """Take in one message; other topics than snapshots, deltas and gateways are none of its business."""
        try:
            if topic.startswith(self._delta):
                return self._changed(topic[len(self._delta) :], _json(payload), now)
            if topic.startswith(self._snapshot):
                about = topic[len(self._snapshot) :]
                if not payload:
                    return self._cleared(about, now)
                return self.take(_json(payload), now, topic=about)
            if topic.startswith(self._gateway):
                return self._announced(topic[len(self._gateway) :], payload)
        except (ValueError, KeyError, TypeError, AttributeError):
            # A gateway sends nothing of the kind; the next delta will show what was missed.
            self.ignored += 1
        return []

    def take(self, snapshot: Mapping[str, Any], now: float, *, topic: str | None = None) -> list[Event]:
        """Take in a snapshot or tombstone: a retained message, or an answer to `read`.

        Raises KeyError, TypeError or ValueError for something else.
        """
        copy = _copy_of(snapshot, topic_of(snapshot["url"]) if topic is None else topic)
        events: list[Event] = []
        entry = self._entries.get(copy.topic)
        if self._is_buried(copy) and (entry is None or entry.copy is None or entry.copy.deleted):
            return events
        if entry is None:
            entry = self._enter(copy.topic)
        elif entry.copy is not None and copy.position < entry.copy.position:
            return events
        entry.doubt = False
        self._put(entry, copy, now, events)
        self._go_on(entry, copy.topic, now, events)
        return events

    def gone(self, topic: str) -> list[Event]:
        """A `read` was answered with 404, 410 or 403: the object is not there, or not for this Observer any more."""
        events: list[Event] = []
        entry = self._entries.get(topic)
        if entry is not None:
            self._forget(topic, entry, events)
        return events

    def unlisted(self, topic: str, asked: float) -> list[Event]:
        """A complete answer that was asked for at `asked` (seconds) does not have this object: gone, unless heard of since."""
        entry = self._entries.get(topic)
        return [] if entry is None or entry.heard > asked else self.gone(topic)

    def drop(self, topic: str) -> None:
        """Hold nothing of an object any more, since nobody looks at it."""
        entry = self._entries.get(topic)
        if entry is not None:
            self._forget(topic, entry, [])

    def _changed(self, topic: str, delta: dict[str, Any], now: float) -> list[Event]:
        """Take in a delta."""
        events: list[Event] = []
        position = (_number(delta, "epoch"), _number(delta, "version"))
        if "/" not in topic:
            raise ValueError(f"{topic!r} is no object topic")
        floor = self._floors.get(authority_of(topic), (0, 0))
        entry = self._entries.get(topic)
        if entry is None:
            entry = self._enter(topic)
        copy = entry.copy
        if copy is not None and position <= copy.position:
            return events
        if delta.get("deleted") is True:
            # What is deleted is deleted, whatever was missed before.
            fits = True
            entry.doubt = False
        elif copy is None:
            # A creation says it all; but one that is not above what was forgotten may be an old message.
            fits = delta.get("created") is True and (position[0] > floor[0] or position[1] > floor[1])
        else:
            fits = position == (copy.epoch, copy.version + 1) and not entry.doubt
        if position > entry.seen:
            entry.seen = position
        entry.heard = now
        if not fits or not self._apply(entry, topic, delta, now, events):
            self._keep(entry, position, delta)
        self._go_on(entry, topic, now, events)
        return events

    def _go_on(self, entry: _Entry, topic: str, now: float, events: list[Event]) -> None:
        """Apply what was kept as far as it joins on, and note whether there is a gap."""
        while entry.pending and entry.copy is not None and not entry.doubt:
            delta = entry.pending.get((entry.copy.epoch, entry.copy.version + 1))
            if delta is None or not self._apply(entry, topic, delta, now, events):
                break
        if entry.pending and entry.copy is not None:
            held = entry.copy.position
            for position in [each for each in entry.pending if each <= held]:
                del entry.pending[position]
                self._pending -= 1
        if entry.in_gap:
            if topic not in self._gaps:
                self._gaps[topic] = entry
                entry.asked = 0
                entry.due = now + HEAL_SECONDS + self._jitter()
                events.append(GapOpened(topic))
        elif self._gaps.pop(topic, None) is not None:
            events.append(GapHealed(topic))

    def _keep(self, entry: _Entry, position: Position, delta: dict[str, Any]) -> None:
        """Keep a delta that cannot be applied yet; past the bound none is kept, and a snapshot has to cover them."""
        if position in entry.pending:
            return
        if len(entry.pending) >= PENDING_DELTAS or self._pending >= PENDING_DELTAS * PENDING_OBJECTS:
            self._pending -= len(entry.pending)
            entry.pending = {}
            return
        entry.pending[position] = delta
        self._pending += 1

    def _apply(self, entry: _Entry, topic: str, delta: dict[str, Any], now: float, events: list[Event]) -> bool:
        """Put the next version in place; False (and doubt) where the delta does not apply to what is held."""
        try:
            copy = _applied(entry.copy, topic, delta)
        except (PatchError, KeyError, TypeError, ValueError, AttributeError):
            entry.doubt = True
            return False
        self._put(entry, copy, now, events, new=delta.get("created") is True)
        return True

    def _put(self, entry: _Entry, copy: Copy, now: float, events: list[Event], *, new: bool = False) -> None:
        """Hold another copy, and say what that changes."""
        before, entry.copy = entry.copy, copy
        entry.seen = max(entry.seen, copy.position)
        entry.heard = now
        if before is None or before.deleted:
            if not copy.deleted:
                events.append(Created(copy, new))
            return
        if copy.deleted:
            for child in sorted(self._children.get(copy.topic, ())):
                self._drop_with_parent(child, copy, now, events)
            events.append(Deleted(before))
            return
        if not same(copy.data, before.data) or _description(copy) != _description(before):
            events.append(Changed(copy, before))
        if copy.reporter != before.reporter:
            events.append(Delegated(copy, before))
        if copy.status != before.status:
            events.append(StatusChanged(copy, before))

    # ---- children, and what has gone -----------------------------------------------------------------------------------

    def _drop_with_parent(self, topic: str, parent: Copy, now: float, events: list[Event]) -> None:
        """A child goes with its parent, whether its own deletion has been heard of or not."""
        entry = self._entries[topic]
        if entry.copy is None or not entry.copy.deleted:
            if entry.copy is None:
                self._forget(topic, entry, events)
                return
            events.append(Deleted(entry.copy))
            gone = entry.copy
            entry.copy = replace(
                gone, epoch=max(gone.epoch, parent.epoch), data={}, deleted=True, modified=parent.modified
            )
        self._pending -= len(entry.pending)
        entry.pending = {}
        entry.doubt = False
        entry.seen = entry.copy.position
        entry.heard = now
        if self._gaps.pop(topic, None) is not None:
            events.append(GapHealed(topic))

    def _is_buried(self, copy: Copy) -> bool:
        """Whether a child's snapshot is from before its parent's deletion."""
        parent = parent_of(copy.topic)
        above = None if parent is None else self._entries.get(parent)
        if copy.deleted or above is None or above.copy is None or not above.copy.deleted:
            return False
        return (copy.epoch, copy.modified) <= (above.copy.epoch, above.copy.modified)

    def _cleared(self, topic: str, now: float) -> list[Event]:
        """An empty snapshot: a tombstone has been purged."""
        events: list[Event] = []
        entry = self._entries.get(topic)
        if entry is None:
            return events
        if entry.copy is None or entry.copy.deleted:
            self._forget(topic, entry, events)
            return events
        # Its deletion was missed, or this message is an old one: only asking tells.
        entry.doubt = True
        self._go_on(entry, topic, now, events)
        return events

    def _enter(self, topic: str) -> _Entry:
        entry = self._entries[topic] = _Entry()
        parent = parent_of(topic)
        if parent is not None:
            self._children.setdefault(parent, set()).add(topic)
        return entry

    def _forget(self, topic: str, entry: _Entry, events: list[Event]) -> None:
        """Hold nothing of an object any more, but that what comes after it below its authority has greater versions."""
        if entry.copy is not None and not entry.copy.deleted:
            events.append(Deleted(entry.copy))
        authority = authority_of(topic)
        self._floors[authority] = max(self._floors.get(authority, (0, 0)), entry.seen)
        self._pending -= len(entry.pending)
        del self._entries[topic]
        if self._gaps.pop(topic, None) is not None:
            events.append(GapHealed(topic))
        parent = parent_of(topic)
        if parent is not None:
            siblings = self._children.get(parent, set())
            siblings.discard(topic)
            if not siblings:
                self._children.pop(parent, None)

    # ---- gateways ------------------------------------------------------------------------------------------------------

    def _announced(self, gateway: str, payload: bytes) -> list[Event]:
        before = self._gateways.get(gateway)
        if not payload:
            self._gateways.pop(gateway, None)
            return [] if before is None or not before.online else [GatewayChanged(gateway, online=False)]
        value = orjson.loads(payload)
        online, epoch = value["status"] == "online", _number(value, "epoch")
        if before is not None and epoch < before.epoch:
            return []
        if before is None and len(self._gateways) >= MAX_GATEWAYS:
            self.ignored += 1
            return []
        patterns = []
        for text in value["patterns"][:MAX_PATTERNS]:
            try:
                patterns.append(Pattern.parse(text.replace("{client}", "*")))
            except AddressError:
                self.ignored += 1
        self._gateways[gateway] = _Gateway(online, epoch, tuple(patterns))
        if before is not None and before.online == online:
            return []
        return [GatewayChanged(gateway, online=online)]

    # ---- what to do ----------------------------------------------------------------------------------------------------

    def want_resubscribe(self, now: float) -> list[str]:
        """Object topics whose gap has waited long enough: subscribe to their snapshots again. Each is named once per gap."""
        topics = [topic for topic, entry in self._gaps.items() if not entry.asked and entry.due <= now]
        for topic in topics:
            self._ask(self._gaps[topic], now)
        return topics

    def want_read(self, now: float, limit: int = READ_AT_ONCE) -> list[str]:
        """URLs to ask for in one `read`, since subscribing again has not helped; named again, ever more rarely, until it has."""
        topics = [topic for topic, entry in self._gaps.items() if entry.asked and entry.due <= now][:limit]
        for topic in topics:
            self._ask(self._gaps[topic], now)
        return [url_of(topic) for topic in topics]

    def _ask(self, entry: _Entry, now: float) -> None:
        entry.due = now + min(HEAL_SECONDS * (1 << min(entry.asked, 10)), ASK_AGAIN) + self._jitter()
        entry.asked += 1

    def next_due(self) -> float | None:
        """When `want_resubscribe` or `want_read` will have something to say, if nothing else happens."""
        return min((entry.due for entry in self._gaps.values()), default=None)

    def compare(self, pages: Sequence[Mapping[str, Any]], asked: float, *, prefix: str = "") -> Comparison:
        """Compare with all pages of a `discover` for `prefix`, whose first was asked for at `asked` (seconds).

        What is not listed is gone, unless something was heard of it since then; what is listed and not held, or older, or in a
        gap, is to be read. Pages that do not belong together take nothing away. Raises KeyError or TypeError for other pages.
        """
        listed: dict[str, Position] = {}
        for page in pages:
            for each in page["objects"]:
                listed[each["url"]] = (_number(each, "epoch"), _number(each, "version"))
        digest = pages[-1]["digest"]
        consistent = bool(_digest(sorted(listed)) == digest and pages[-1]["total"] == len(listed))
        events: list[Event] = []
        if consistent:
            for topic, entry in list(self._entries.items()):
                url = url_of(topic)
                if url not in listed and entry.heard <= asked and _is_below(url, prefix):
                    self._forget(topic, entry, events)
        read = []
        for url, position in listed.items():
            held = self._entries.get(topic_of(url))
            if held is None or held.copy is None or held.in_gap or held.copy.position < position:
                read.append(url)
        complete = consistent and not read and self.digest(prefix) == digest
        return Comparison(consistent, complete, events, read)


def _json(payload: bytes) -> Any:
    """Raises ValueError for what is no JSON, or nested so deep that no gateway would have sent it."""
    value = orjson.loads(payload)
    if payload.count(b"{") + payload.count(b"[") > DEEPEST and depth_exceeds(value, DEEPEST):
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    return value


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value[key]
    if type(text) is not str:
        raise TypeError(f"{key} is {text!r}, not a text")
    return text


def _number(value: Mapping[str, Any], key: str) -> int:
    number = value[key]
    if type(number) is not int or number < 0:
        raise ValueError(f"{key} is {number!r}, not a number from 0")
    return number


def _texts(value: Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(value)


def _copy_of(snapshot: Mapping[str, Any], topic: str) -> Copy:
    if "/" not in topic:
        raise ValueError(f"{topic!r} is no object topic")
    epoch, version = _number(snapshot, "epoch"), _number(snapshot, "version")
    if snapshot.get("deleted") is True:
        return Copy(topic, epoch, version, {}, "", "", None, "", _text(snapshot, "modified"), deleted=True)
    data = snapshot["data"]
    if type(data) is not dict:
        raise TypeError("a snapshot's data is an object")
    return Copy(
        topic,
        epoch,
        version,
        data,
        _text(snapshot, "status"),
        _text(snapshot, "reporter"),
        snapshot["schema"],
        _text(snapshot, "name"),
        _text(snapshot, "modified"),
        snapshot["created"],
        snapshot.get("description"),
        _texts(snapshot.get("tags")),
        _texts(snapshot.get("resources")),
    )


def _applied(copy: Copy | None, topic: str, delta: Mapping[str, Any]) -> Copy:
    """What a delta makes of the version before it. Raises PatchError, KeyError, TypeError or ValueError where it does not fit."""
    epoch, version, modified = delta["epoch"], delta["version"], _text(delta, "modified")
    if delta.get("deleted") is True:
        return Copy(topic, epoch, version, {}, "", "", None, "", modified, deleted=True)
    if delta.get("created") is True:
        data = delta["value"]
        status, reporter = "live", _text(delta, "reporter")
        copy = Copy(
            topic, epoch, version, {}, status, reporter, delta["schema"], topic.rsplit("/", 1)[1], modified, modified
        )
    elif copy is None or copy.deleted:
        raise ValueError("there is nothing that this delta could change")
    elif "value" in delta:
        data = delta["value"]
    elif "merge" in delta:
        data = merge(copy.data, delta["merge"])
    elif "patch" in delta:
        data = apply_patch(copy.data, delta["patch"])
    else:
        data = copy.data
    if type(data) is not dict:
        raise TypeError("an object's data is an object")
    meta = delta.get("meta", {})
    return Copy(
        topic,
        epoch,
        version,
        data,
        _text(delta, "status") if "status" in delta else copy.status,
        _text(delta, "reporter") if "reporter" in delta else copy.reporter,
        meta.get("schema", copy.schema),
        meta.get("name", copy.name),
        modified,
        copy.created,
        meta.get("description", copy.description),
        _texts(meta.get("tags", copy.tags)),
        _texts(meta.get("resources", copy.resources)),
    )


def _description(copy: Copy) -> tuple[Any, ...]:
    return copy.schema, copy.name, copy.description, copy.tags, copy.resources


def _digest(urls: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for url in urls:
        digest.update(url.encode() + b"\n")
    return digest.hexdigest()


def _is_below(url: str, prefix: str) -> bool:
    """Whether a URL is `prefix` or below it; a prefix that ends in a slash is taken as it is."""
    return url.startswith(prefix) and (
        not prefix or prefix.endswith("/") or len(url) == len(prefix) or url[len(prefix)] == "/"
    )
