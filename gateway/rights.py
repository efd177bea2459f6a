"""Namespaces, groups and topic rules: who may do what. Pure; the single truth that every ACL plugin asks or compiles.

Two locks (see ARCHITECTURE.md): the broker attests who speaks, because the name in the topic must be the authenticated client;
the engine decides who owns. `may` is the first lock and everybody's right to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple

from gateway.address import Pattern
from gateway.objects import PUBLIC, DataObject, Objects, parent_of
from gateway.topics import covers, matches, overlaps, split_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Action = Literal["publish", "subscribe", "receive"]
ACTIONS: tuple[Action, ...] = ("publish", "subscribe", "receive")

ANONYMOUS = "anonymous"
"""The name of whoever connects without one, where the settings admit that: no inbox, no presence, never part of `*`."""

OBSERVED = ("snapshot", "delta", "value")
"""The verbs below which Observers read objects."""

BELIEVED = 100
"""A client's own objects that are looked at before its subscription is granted: one SUBSCRIBE may bring thousands of filters."""

STATISTICS = "$SYS/broker/"
"""Below it are the broker's own values."""

BELOW = "/children/+/#"
"""Behind an object's topic it matches its children."""

RESERVED = ("$SYS", "$share", "$CONTROL")
"""First levels that no rule opens: the broker's own, shared subscriptions, and what brokers are controlled by."""

VERBS = frozenset({"report", "request", "inbox", "presence", "snapshot", "delta", "value", "gateway", "replica"})


@dataclass(frozen=True, slots=True)
class Clients:
    """A list of the settings, groups resolved: `everyone` is `*`, every authenticated client."""

    everyone: bool
    names: frozenset[str]
    groups: frozenset[str] = frozenset()
    """The groups that were named: a client's token may make it a member of one for a while."""

    @classmethod
    def resolve(cls, entries: Iterable[str], groups: Mapping[str, Iterable[str]]) -> Clients:
        """From the entries of a settings list: names, `@group`, `*`. Raises KeyError for an unknown group."""
        names: set[str] = set()
        named: set[str] = set()
        everyone = False
        for entry in entries:
            if entry == "*":
                everyone = True
            elif entry.startswith("@"):
                names.update(groups[entry[1:]])
                named.add(entry[1:])
            else:
                names.add(entry)
        return cls(everyone, frozenset(names), frozenset(named))

    def __contains__(self, client: str) -> bool:
        return client in self.names or (self.everyone and client != ANONYMOUS)


@dataclass(frozen=True, slots=True)
class Namespace:
    """One `[[namespace]]`: a URL pattern and what holds below it. Durations in seconds."""

    match: Pattern
    schema: str
    report: Clients
    observe: Clients
    execute: Clients = Clients(False, frozenset())
    value_view: bool = False
    stale_after: float | None = None
    public: bool = False
    ask: Clients = Clients(True, frozenset())
    moderate: bool = True
    qos: int = 1
    anyone: Pattern | None = None
    """`match` with `{client}` standing for any client: decides to which namespace a URL belongs."""

    def holds(self, topic: str) -> bool:
        """Whether an object topic belongs here, whoever asks."""
        return (self.anyone or self.match).matches(topic)

    @property
    def topic_filter(self) -> str:
        """The filter of all object topics here, without a verb: exactly those that `holds` says yes to."""
        return (self.anyone or self.match).topic_filter("+")


@dataclass(frozen=True, slots=True)
class TopicRule:
    """One `[[topic]]`: opens topics that are not the gateway's own. `{client}` in the filter is the asking client."""

    topic_filter: str
    write: Clients
    read: Clients

    def bound(self, client: str) -> str:
        """The filter as it is for one client."""
        return self.topic_filter.replace("{client}", client)


class Devices(NamedTuple):
    """What the gateway's own user reads and writes on a broker outside because adapters do: MQTT filters."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def namespace(match: str, *, schema: str, report: Clients, observe: Clients, **rest: object) -> Namespace:
    """A Namespace from its pattern's text. Raises AddressError for a bad pattern."""
    pattern = Pattern.parse(match)
    anyone = Pattern.parse(match.replace("{client}", "*")) if pattern.uses_client else pattern
    return Namespace(pattern, schema, report, observe, anyone=anyone, **rest)  # type: ignore[arg-type]


class Permissions(NamedTuple):
    """What one client may do, as MQTT filters with the prefix: what a broker's own rules are compiled from.

    A topic is allowed where a filter of the list matches it and, for `receive`, none of `deny` does. As long as the rules, the
    client's grants and its own objects are what they are that says what `may_publish` and `may_receive` say.
    `listed`: objects are named one by one because a rule of their namespace cannot be said in filters; new ones there have to be added.
    `closed`: filters that match all objects, there or still to come, that it may not read; some that it may are among them.
    """

    publish: tuple[str, ...]
    receive: tuple[str, ...]
    deny: tuple[str, ...] = ()
    listed: bool = False
    closed: tuple[str, ...] = ()

    def reads_all(self, wanted: str) -> bool:
        """Whether everything that a filter matches may be read, whatever it is."""
        return not any(overlaps(hole, wanted) for hole in self.deny) and any(
            covers(filter_, wanted) for filter_ in self.receive
        )

    def lost(self, before: Permissions) -> bool:
        """Whether something that was allowed before is not allowed now. True where that cannot be told."""
        return (
            any(not any(covers(mine, old) for mine in self.publish) for old in before.publish)
            or any(not any(covers(mine, old) for mine in self.receive) for old in before.receive)
            or any(not any(covers(old, hole) for old in before.deny) for hole in self.deny)
            or any(not any(covers(old, each) for old in before.closed) for each in self.closed)
        )


class Rights:
    """`may(client, action, topic)` over one set of rules and the objects as they are.

    `generation` grows whenever an answer could have become different for a topic that was asked about before.
    """

    def __init__(
        self,
        namespaces: Iterable[Namespace],
        rules: Iterable[TopicRule],
        objects: Objects,
        *,
        prefix: str = "",
        statistics: Clients = Clients(False, frozenset()),
        devices: Devices | None = None,
    ) -> None:
        self.namespaces = tuple(namespaces)
        self.rules = tuple(rules)
        self.objects = objects
        self.prefix = prefix + "/" if prefix else ""
        self.statistics = statistics
        self.devices = devices or Devices()
        self.barred: frozenset[str] = frozenset()
        """Clients that are disabled: they may do nothing, whatever else is written."""
        self.joined: dict[str, dict[str, float]] = {}
        """Of clients with a token the groups that it makes them members of, each until a time (Unix seconds)."""
        self.generation = 1
        self._ends: list[tuple[float, str, str]] = []

    # ---- changes -------------------------------------------------------------------------------------------------------

    def replace(self, other: Rights) -> None:
        """Take over the rules of another set: grants, tokens and barred clients stay. `DataObject.namespace` is the caller's to renew."""
        self.namespaces = other.namespaces
        self.rules = other.rules
        self.statistics = other.statistics
        self.devices = other.devices
        self.generation += 1

    def bar(self, clients: Iterable[str]) -> frozenset[str]:
        """Say who is disabled now; those for whom that is a change."""
        barred = frozenset(clients)
        changed = barred ^ self.barred
        if changed:
            self.barred = barred
            self.generation += 1
        return changed

    def join(self, client: str, groups: Iterable[str], until: float) -> bool:
        """Make a client a member of groups until a time (Unix seconds). Whether that may have changed anything."""
        own = self.joined.setdefault(client, {})
        fresh = False
        for group in groups:
            fresh |= group not in own
            if until > own.get(group, 0.0):
                own[group] = until
                heappush(self._ends, (until, client, "@" + group))
        if not own:
            del self.joined[client]
        if fresh:
            self.generation += 1
        return fresh

    def grant(self, obj: DataObject, client: str, until: float = 0.0) -> bool:
        """Let a client observe one object, and its children, until a time (Unix seconds; 0: for good). Whether it may more than before."""
        fresh = obj.grants is None or client not in obj.grants
        self.objects.grant(obj, client, until)
        if until:
            heappush(self._ends, (until, client, obj.topic))
        if fresh:
            self.generation += 1
        return fresh

    def revoke(self, obj: DataObject, client: str) -> bool:
        """Take a grant back. Whether there was one."""
        if not self.objects.revoke(obj, client):
            return False
        self.generation += 1
        return True

    def watch_grants(self) -> None:
        """Begin with the objects as they are: their grants end when they say."""
        self._ends = [
            (until, client, obj.topic)
            for obj in self.objects
            if obj.grants
            for client, until in obj.grants.items()
            if until
        ]
        heapify(self._ends)

    def expire(self, now: float) -> list[tuple[str, DataObject | None]]:
        """End what ends by now: (client, the object of a grant; None: a token's group)."""
        ended: list[tuple[str, DataObject | None]] = []
        ends = self._ends
        while ends and ends[0][0] <= now:
            until, client, what = heappop(ends)
            if what[:1] == "@":
                own = self.joined.get(client, {})
                if own.get(what[1:]) == until:
                    del own[what[1:]]
                    if not own:
                        del self.joined[client]
                    ended.append((client, None))
                continue
            obj = self.objects.get(what)
            # A grant that was given anew ends when it says now.
            if obj is not None and obj.grants is not None and obj.grants.get(client) == until:
                self.objects.revoke(obj, client)
                ended.append((client, obj))
        if ended:
            self.generation += 1
        return ended

    # ---- objects -------------------------------------------------------------------------------------------------------

    def lists(self, clients: Clients, client: str) -> bool:
        """Whether a list of the settings has a client: by name, by group, by `*`, or by a group of its token."""
        if client in clients:
            return True
        joined = self.joined.get(client)
        return joined is not None and not clients.groups.isdisjoint(joined)

    def namespace_of(self, topic: str) -> Namespace | None:
        """The first namespace that matches an object topic; a child's is its parent's."""
        base = parent_of(topic) or topic
        for candidate in self.namespaces:
            if candidate.holds(base):
                return candidate
        return None

    def may_create(self, client: str, topic: str) -> bool:
        """Whether a client may create this (parent) object by reporting on it: listed, and `{client}` bound to its own name."""
        found = self.namespace_of(topic)
        return (
            found is not None
            and client not in self.barred
            and self.lists(found.report, client)
            and found.match.matches(topic, client)
        )

    def may_observe(self, client: str, topic: str) -> bool:
        """Whether a client may read an object topic: its Reporter, listed or granted (a child: its parent is)."""
        if client in self.barred:
            return False
        obj = self.objects.get(topic)
        if obj is not None and (obj.reporter == client or (obj.grants is not None and self._granted(client, obj))):
            return True
        parent = parent_of(topic)
        if parent is not None:
            return self.may_observe(client, parent)
        found = obj.namespace if obj is not None else self.namespace_of(topic)
        return found is not None and self.lists(found.observe, client)

    @staticmethod
    def _granted(client: str, obj: DataObject) -> bool:
        return client in (obj.grants or ()) or (obj.public and client != ANONYMOUS)

    def may_ask(self, client: str, topic: str) -> bool:
        """Whether a client may ask the Reporter of an object that it may not observe, and so learn that there is one."""
        found = self.namespace_of(topic)
        return found is not None and client not in self.barred and client != ANONYMOUS and self.lists(found.ask, client)

    def may_execute(self, client: str, topic: str) -> bool:
        """Whether a client may ask an object's Reporter to act."""
        found = self.namespace_of(topic)
        return (
            found is not None
            and client != ANONYMOUS
            and self.lists(found.execute, client)
            and self.may_observe(client, topic)
        )

    def _singly(self, client: str) -> Iterator[DataObject]:
        """The objects that a client may read because it is their Reporter, was granted them, or they are public."""
        yield from self.objects.of(client)
        yield from self.objects.granted(client)
        if client != ANONYMOUS:
            yield from (obj for obj in self.objects.granted(PUBLIC) if obj.public)

    # ---- topics --------------------------------------------------------------------------------------------------------

    def may(self, client: str, action: Action, topic: str) -> bool:
        """Whether a client may publish to a topic name, receive a message on it, or subscribe to a filter.

        A subscription is granted when its filter can match something the client may read now; what is delivered is asked
        again for each message.
        """
        if action == "publish":
            return self.may_publish(client, topic)
        if action == "receive":
            return self.may_receive(client, topic)
        return self.may_subscribe(client, topic)

    def may_publish(self, client: str, topic: str) -> bool:
        """The name in the topic must be the client's own; nobody but the gateway writes what Observers read."""
        if client in self.barred:
            return False
        own = self.own(topic)
        if own is not None:
            verb, _, rest = own.partition("/")
            if verb == "report":
                return rest.startswith(client + "/")
            if verb in ("request", "presence"):
                return rest == client and client != ANONYMOUS
            if verb in VERBS:
                return False
        if _reserved(topic):
            return False
        return any(self.lists(rule.write, client) and matches(rule.bound(client), topic) for rule in self.rules)

    def may_receive(self, client: str, topic: str) -> bool:
        """What Observers read, one's own inbox, the gateways' announcements, `$SYS/broker/`, and what topic rules open."""
        if client in self.barred:
            return False
        own = self.own(topic)
        if own is not None:
            verb, _, rest = own.partition("/")
            if verb in OBSERVED:
                return self.may_observe(client, rest)
            if verb == "inbox":
                return client != ANONYMOUS and (rest == client or rest.startswith(client + "/"))
            if verb == "gateway":
                return bool(rest) and "/" not in rest
            if verb in VERBS:
                return False
        if _reserved(topic):
            return topic.startswith(STATISTICS) and self.lists(self.statistics, client)
        return any(self.lists(rule.read, client) and matches(rule.bound(client), topic) for rule in self.rules)

    def may_subscribe(self, client: str, topic_filter: str) -> bool:
        """Whether a filter can match anything that the client may read now. A shared one is judged as its filter.

        For brokers that ask about each delivery; where they do not, `may_read_all` has to be asked.
        """
        if client in self.barred:
            return False
        try:
            share = split_share(topic_filter)
        except ValueError:
            return False
        wanted = share.topic_filter if share else topic_filter
        prefix = self.prefix
        if overlaps(wanted, prefix + "gateway/+"):
            return True
        if client != ANONYMOUS and (
            overlaps(wanted, f"{prefix}inbox/{client}") or overlaps(wanted, f"{prefix}inbox/{client}/#")
        ):
            return True
        if self.lists(self.statistics, client) and overlaps(wanted, STATISTICS + "#"):
            return True
        if any(self.lists(rule.read, client) and overlaps(wanted, rule.bound(client)) for rule in self.rules):
            return True
        return any(self._may_see_some(client, prefix + verb + "/", wanted) for verb in OBSERVED)

    def _may_see_some(self, client: str, head: str, wanted: str) -> bool:
        if not overlaps(wanted, head + "#"):
            return False
        for found in self.namespaces:
            observes = self.lists(found.observe, client)
            if observes or self.lists(found.report, client):
                own = found.topic_filter if observes else found.match.topic_filter(client)
                if overlaps(wanted, head + own) or overlaps(wanted, f"{head}{own}/children/#"):
                    return True
        if wanted.startswith(head) and "+" not in wanted and "#" not in wanted:
            topic = wanted[len(head) :]
            return self.may_observe(client, topic)
        for looked, obj in enumerate(self._singly(client)):
            # Whoever has so many is believed: what is delivered is judged in any case.
            if (
                looked == BELIEVED
                or matches(wanted, head + obj.topic)
                or overlaps(wanted, f"{head}{obj.topic}/children/#")
            ):
                return True
        return False

    def may_read_all(self, client: str, topic_filter: str, compiled: Permissions | None = None) -> bool:
        """Whether a client may read whatever a filter matches, now and as long as rules and grants are as they are.

        `compiled`: the client's permissions, where they have been compiled since the last change. For brokers that ask once, at SUBSCRIBE. A shared subscription is judged as its filter.
        """
        try:
            share = split_share(topic_filter)
        except ValueError:
            return False
        wanted = share.topic_filter if share else topic_filter
        if "+" not in wanted and "#" not in wanted:
            return self.may_receive(client, wanted)
        mine = compiled or self.permissions(client)
        own = self.own(wanted)
        if own is None or own.partition("/")[0] not in OBSERVED:
            return mine.reads_all(wanted)
        # Nothing is below these verbs but objects.
        return client not in self.barred and not any(overlaps(each, wanted) for each in mine.closed)

    # ---- compiled ------------------------------------------------------------------------------------------------------

    def permissions(self, client: str) -> Permissions:
        """Everything that a client may publish and receive, as filters. Takes microseconds for each of its objects and grants."""
        if client in self.barred:
            return Permissions((), ())
        prefix = self.prefix
        publish = [f"{prefix}report/{client}/+/#"]
        receive = [prefix + "gateway/+"]
        if client != ANONYMOUS:
            publish += (f"{prefix}request/{client}", f"{prefix}presence/{client}")
            receive.append(f"{prefix}inbox/{client}/#")
        if self.lists(self.statistics, client):
            receive.append(STATISTICS + "+/#")
        for rule in self.rules:
            bound = rule.bound(client)
            own = self.own(bound)
            if own is not None and own.partition("/")[0] in VERBS:
                # A client that is called as a verb is.
                continue
            if self.lists(rule.write, client):
                publish.append(bound)
            if self.lists(rule.read, client):
                receive.append(bound)
        allowed, holes, listed, closed = self._observed(client)
        heads = [f"{prefix}{verb}/" for verb in OBSERVED]
        receive += (head + each for each in allowed for head in heads)
        return Permissions(
            tuple(publish),
            tuple(receive),
            tuple(head + each for each in holes for head in heads),
            listed,
            tuple(head + each for each in closed for head in heads),
        )

    def _observed(self, client: str) -> tuple[list[str], list[str], bool, list[str]]:
        """Of the objects that a client may read: filters that allow, filters that deny and go first, whether objects matter, what is closed.

        The first namespace decides, and filters can only add up: what an earlier namespace keeps closed is a hole in what a
        later one opens. A child is where its parent is, but its topic may be matched by what opens or closes the parent's
        neighbours: such children are a hole too. Where something else opens a part of a hole the objects are named one by one.
        """
        observes = {id(found): self.lists(found.observe, client) for found in self.namespaces}
        single: dict[str, DataObject] = {}
        for obj in self._singly(client):
            # Most of a client's own objects are where it may read all.
            if obj.namespace is None or not observes.get(id(obj.namespace)):
                single[obj.topic] = obj
        opened: list[str] = []
        closed: list[str] = []
        holes: dict[str, None] = {}
        listed = False
        inner = [found for obj in single.values() for found in with_children(obj)]
        for found in self.namespaces:
            own = found.topic_filter
            if any(covers(earlier, own) for earlier in chain(opened, closed)):
                continue
            if not observes[id(found)]:
                closed.append(own)
                continue
            near = [hole for hole in closed if overlaps(hole, own)]
            mine = [each for hole in near for each in _deeper(hole)]
            in_parts = False
            for parents in _aliases(own):
                readable = parents in single or self._opens(client, parents)
                in_parts |= readable is None
                if readable is False:
                    mine.append(parents + BELOW)
            for parents in (parents for hole in near for parents in _aliases(hole)):
                if self._opens(client, parents) is not False:
                    # Denied with the neighbours: no harm as long as nothing that can have children is there.
                    listed = True
                    in_parts |= any(
                        each is not None and each.schema is not None and each.schema.children
                        for each in self.objects.matching(parents)
                    )
            if in_parts or any(overlaps(hole, each) for hole in mine for each in chain(inner, opened)):
                listed = True
                for each in self.objects.matching(own):
                    if each is not None and each.namespace is found and parent_of(each.topic) is None:
                        single.setdefault(each.topic, each)
                        inner += with_children(each)
                continue
            holes.update(dict.fromkeys(mine))
            opened.append(own)
        allowed: dict[str, None] = {}
        for own in opened:
            allowed.update(dict.fromkeys(_deeper(own)))
        for topic, obj in single.items():
            base = parent_of(topic) or topic
            if not any(matches(own, base) for own in opened):
                allowed.update(dict.fromkeys(with_children(obj)))
        strays = (topic for topic in self.objects.strays if topic not in single and parent_of(topic) not in single)
        shut = [each for own in chain(closed, strays) for each in _deeper(own)]
        return list(allowed), list(holes), listed, shut

    def _opens(self, client: str, parents: str) -> bool | None:
        """Whether the namespaces let a client read all objects that a filter matches, none (False), or some (None)."""
        said: set[bool] = set()
        for found in self.namespaces:
            own = found.topic_filter
            if overlaps(own, parents):
                said.add(self.lists(found.observe, client))
                if covers(own, parents):
                    break
        else:
            said.add(False)
        return said.pop() if len(said) == 1 else None

    def own(self, topic: str) -> str | None:
        """A topic without the prefix; None where it has another one."""
        prefix = self.prefix
        if not prefix:
            return topic
        return topic[len(prefix) :] if topic.startswith(prefix) else None


def with_children(obj: DataObject) -> Iterator[str]:
    """The filters of an object and of what can be below it."""
    yield obj.topic
    if parent_of(obj.topic) is None and (obj.schema is None or obj.schema.children):
        yield obj.topic + BELOW


def _aliases(own: str) -> Iterator[str]:
    """Of a namespace's filter: the parents that it does not match although it matches topics of their children."""
    levels = own.split("/")
    rest = levels[-1] == "#"
    n = len(levels) - 2 if rest else len(levels)
    for depth in range(max(n - 3, 3), n + 1) if rest else range(max(n - 4, 3), n - 3):
        if depth == n or levels[depth] in ("+", "children"):
            yield "/".join(levels[:depth])


def _deeper(own: str) -> Iterator[str]:
    """The filters of a namespace's objects and of their children."""
    yield own
    if not own.endswith("/#"):
        yield own + BELOW


def _reserved(topic: str) -> bool:
    return topic.startswith("$") and topic.partition("/")[0] in RESERVED
