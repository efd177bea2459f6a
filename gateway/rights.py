"""Namespaces, groups and topic rules: who may do what. Pure; the single truth that every ACL plugin asks or compiles.

Two locks (see ARCHITECTURE.md): the broker attests who speaks, because the name in the topic must be the authenticated client;
the engine decides who owns. `may` is the first lock and everybody's right to read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.address import Pattern
from gateway.objects import Objects, parent_of
from gateway.topics import matches, overlaps, split_share

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Action = Literal["publish", "subscribe", "receive"]

ANONYMOUS = "anonymous"
"""The name of whoever connects without one, where the settings admit that: no inbox, no presence, never part of `*`."""

OBSERVED = ("snapshot", "delta", "value")
"""The verbs below which Observers read objects."""

BELIEVED = 100
"""A client's own objects that are looked at before its subscription is granted: one SUBSCRIBE may bring thousands of filters."""

STATISTICS = "$SYS/broker/"
"""Below it are the broker's own values."""

RESERVED = ("$SYS", "$share", "$CONTROL")
"""First levels that no rule opens: the broker's own, shared subscriptions, and what brokers are controlled by."""

VERBS = frozenset({"report", "request", "inbox", "presence", "snapshot", "delta", "value", "gateway", "replica"})


@dataclass(frozen=True, slots=True)
class Clients:
    """A list of the settings, groups resolved: `everyone` is `*`, every authenticated client."""

    everyone: bool
    names: frozenset[str]

    @classmethod
    def resolve(cls, entries: Iterable[str], groups: Mapping[str, Iterable[str]]) -> Clients:
        """From the entries of a settings list: names, `@group`, `*`. Raises KeyError for an unknown group."""
        names: set[str] = set()
        everyone = False
        for entry in entries:
            if entry == "*":
                everyone = True
            elif entry.startswith("@"):
                names.update(groups[entry[1:]])
            else:
                names.add(entry)
        return cls(everyone, frozenset(names))

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
    qos: int = 1
    anyone: Pattern | None = None
    """`match` with `{client}` standing for any client: decides to which namespace a URL belongs."""

    def holds(self, topic: str) -> bool:
        """Whether an object topic belongs here, whoever asks."""
        return (self.anyone or self.match).matches(topic)

    def may_create(self, client: str, topic: str) -> bool:
        """Whether `client` may bring this object to life: listed, and `{client}` bound to its own name."""
        return client in self.report and self.match.matches(topic, client)


@dataclass(frozen=True, slots=True)
class TopicRule:
    """One `[[topic]]`: opens topics that are not the gateway's own. `{client}` in the filter is the asking client."""

    topic_filter: str
    write: Clients
    read: Clients

    def bound(self, client: str) -> str:
        """The filter as it is for one client."""
        return self.topic_filter.replace("{client}", client)


def namespace(match: str, *, schema: str, report: Clients, observe: Clients, **rest: object) -> Namespace:
    """A Namespace from its pattern's text. Raises AddressError for a bad pattern."""
    pattern = Pattern.parse(match)
    anyone = Pattern.parse(match.replace("{client}", "*")) if pattern.uses_client else pattern
    return Namespace(pattern, schema, report, observe, anyone=anyone, **rest)  # type: ignore[arg-type]


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
    ) -> None:
        self.namespaces = tuple(namespaces)
        self.rules = tuple(rules)
        self.objects = objects
        self.prefix = prefix + "/" if prefix else ""
        self.statistics = statistics
        self.generation = 1

    def namespace_of(self, topic: str) -> Namespace | None:
        """The first namespace that matches an object topic; a child's is its parent's."""
        base = parent_of(topic) or topic
        for candidate in self.namespaces:
            if candidate.holds(base):
                return candidate
        return None

    def may_create(self, client: str, topic: str) -> bool:
        """Whether a client may create this (parent) object by reporting on it."""
        found = self.namespace_of(topic)
        return found is not None and found.may_create(client, topic)

    def may_observe(self, client: str, topic: str) -> bool:
        """Whether a client may read an object topic: its Reporter, or allowed to observe it (a child: its parent)."""
        obj = self.objects.get(topic)
        if obj is not None and obj.reporter == client:
            return True
        parent = parent_of(topic)
        if parent is not None:
            return self.may_observe(client, parent)
        found = obj.namespace if obj is not None else self.namespace_of(topic)
        return found is not None and client in found.observe

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
        own = self._strip(topic)
        if own is not None:
            verb, _, rest = own.partition("/")
            if verb == "report":
                return rest.startswith(client + "/") and len(rest) > len(client) + 1
            if verb in ("request", "presence"):
                return rest == client and client != ANONYMOUS
            if verb in VERBS:
                return False
        if _reserved(topic):
            return False
        return any(client in rule.write and matches(rule.bound(client), topic) for rule in self.rules)

    def may_receive(self, client: str, topic: str) -> bool:
        """What Observers read, one's own inbox, the gateways' announcements, `$SYS/broker/`, and what topic rules open."""
        own = self._strip(topic)
        if own is not None:
            verb, _, rest = own.partition("/")
            if verb in OBSERVED:
                return self.may_observe(client, rest)
            if verb == "inbox":
                return client != ANONYMOUS and (rest == client or rest.startswith(client + "/"))
            if verb == "gateway":
                return bool(rest)
            if verb in VERBS:
                return False
        if _reserved(topic):
            return topic.startswith(STATISTICS) and client in self.statistics
        return any(client in rule.read and matches(rule.bound(client), topic) for rule in self.rules)

    def may_subscribe(self, client: str, topic_filter: str) -> bool:
        """Whether a filter can match anything that the client may read now. A shared one is judged as its filter."""
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
        if client in self.statistics and overlaps(wanted, STATISTICS + "#"):
            return True
        if any(client in rule.read and overlaps(wanted, rule.bound(client)) for rule in self.rules):
            return True
        return any(self._may_see_some(client, prefix + verb + "/", wanted) for verb in OBSERVED)

    def _may_see_some(self, client: str, head: str, wanted: str) -> bool:
        if not overlaps(wanted, head + "#"):
            return False
        for found in self.namespaces:
            if client in found.observe or client in found.report:
                bound = None if client in found.observe else client
                own = (
                    (found.anyone or found.match).topic_filter("+")
                    if bound is None
                    else found.match.topic_filter(bound)
                )
                if overlaps(wanted, head + own) or overlaps(wanted, f"{head}{own}/children/#"):
                    return True
        if wanted.startswith(head) and "+" not in wanted and "#" not in wanted:
            topic = wanted[len(head) :]
            return any(
                obj is not None and obj.reporter == client
                for obj in (self.objects.get(topic), self.objects.get(parent_of(topic) or ""))
            )
        for looked, obj in enumerate(self.objects.of(client)):
            # Whoever has so many is believed: what is delivered is judged in any case.
            if (
                looked == BELIEVED
                or matches(wanted, head + obj.topic)
                or overlaps(wanted, f"{head}{obj.topic}/children/#")
            ):
                return True
        return False

    def _strip(self, topic: str) -> str | None:
        prefix = self.prefix
        if not prefix:
            return topic
        return topic[len(prefix) :] if topic.startswith(prefix) else None


def _reserved(topic: str) -> bool:
    return topic.startswith("$") and topic.partition("/")[0] in RESERVED
