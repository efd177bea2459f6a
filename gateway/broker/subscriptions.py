"""Who wants a topic: exact filters in a dict, wildcards in a tree, and a `Route` per topic that remembers the answer."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from gateway.topics import split_share
from gateway.wire.codec import encode_properties
from gateway.wire.packets import Property

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.broker.session import Session

NEVER = -1
"""A generation that no table ever has."""


MOST_LISTED = 100_000
"""Subscribers in all the different audiences that are remembered."""


class Entry:
    """One session's subscription to one filter, with its options (MQTT 5 section 3.8.3.1). `identifier` 0 = none.

    `share` is set where it is one of a shared subscription's; `topic_filter` is what the client wrote, `$share/NAME/` included.
    """

    __slots__ = ("identifier", "no_local", "qos", "retain_as_published", "session", "share", "topic_filter")

    def __init__(
        self,
        session: Session,
        topic_filter: str,
        qos: int,
        *,
        no_local: bool = False,
        retain_as_published: bool = False,
        identifier: int = 0,
    ) -> None:
        self.session = session
        self.topic_filter = topic_filter
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.identifier = identifier
        self.share: Share | None = None

    @property
    def client(self) -> str:
        """Whose it is."""
        return self.session.client


class Share:
    """A shared subscription (section 4.8.2): the entries of one client's sessions under one share name and one filter.

    Another client's share of the same name is another share: nobody drains somebody else's.
    """

    __slots__ = ("client", "entries", "name", "topic_filter")

    def __init__(self, client: str, name: str, topic_filter: str) -> None:
        self.client = client
        self.name = name
        """As clients write it: `$share/NAME/FILTER`."""
        self.topic_filter = topic_filter
        self.entries: dict[Session, Entry] = {}

    def pick(self, topic: str) -> Entry | None:
        """The member that gets a topic's messages: always the same one, so that their order is kept, while it can take them.

        Among those that are connected, else among all. By rendezvous hashing: when a member comes or goes, only the topics
        that it gets or had move. None: there is no member, or the only ones left are about to be disconnected.
        """
        entries = self.entries.values()
        able = [entry for entry in entries if (to := entry.session.connection) is not None and not to.doomed]
        if not able:
            able = [entry for entry in entries if entry.session.connection is None]
        if len(able) < 2:
            return able[0] if able else None
        name = topic.encode()
        return max(able, key=lambda entry: blake2b(name, digest_size=8, key=entry.session.seed).digest())


class Group:
    """Subscribers of one topic that get the very same bytes, but for the packet identifier."""

    __slots__ = ("level", "members", "no_local", "properties", "qos", "retain_as_published", "share")

    def __init__(
        self,
        level: int,
        qos: int,
        no_local: bool,
        retain_as_published: bool,
        properties: bytes,
        share: Share | None = None,
    ) -> None:
        self.level = level
        self.qos = qos
        self.no_local = no_local
        self.retain_as_published = retain_as_published
        self.properties = properties
        self.share = share
        self.members: list[Session] = []


class Route:
    """A topic made ready for sending to it often. It holds for one (rights, subscriptions) generation and is then made anew."""

    __slots__ = ("_renew", "groups", "name", "retain", "rights", "subscriptions", "topic")

    def __init__(self, topic: str, retain: bool, renew: Callable[[Route], bool]) -> None:
        self.topic = topic
        self.name = topic.encode()
        self.retain = retain
        self.groups: tuple[Group, ...] = ()
        self.rights = NEVER
        self.subscriptions = NEVER
        self._renew = renew

    @property
    def wanted(self) -> bool:
        """Whether anybody would get a message on it now."""
        return self._renew(self)


class Node:
    """One level of the wildcard filters."""

    __slots__ = ("children", "entries")

    def __init__(self) -> None:
        self.children: dict[str, Node] = {}
        self.entries: dict[Key, Entry | Share] = {}


Key = Any
"""Under which a filter's entries stand: a Session, or (client, share name)."""


class Subscriptions:
    """All subscriptions of all sessions. `generation` grows with each change that remembered routes cannot be told of singly."""

    def __init__(self, most_routes: int) -> None:
        self.generation = 0
        self._exact: dict[str, dict[Key, Entry | Share]] = {}
        self._tree = Node()
        self._shares: dict[tuple[str, str, str], Share] = {}
        self._routes: dict[tuple[str, bool], Route] = {}
        self._most_routes = most_routes
        self._forgotten = False
        self._audiences: dict[tuple[Entry, ...], tuple[Group, ...]] = {}
        self._audiences_of = NEVER
        self._listed = 0
        self._heads: dict[str, bool] = {}

    def below(self, head: str) -> bool:
        """Whether any filter could match a topic that begins with `head` (whole levels and a slash)."""
        known = self._heads.get(head)
        if known is None:
            known = self._heads[head] = any(topic.startswith(head) for topic in self._exact) or self._branches(head)
        return known

    def _branches(self, head: str) -> bool:
        nodes = [self._tree]
        for level in head.rstrip("/").split("/"):
            if any("#" in node.children for node in nodes):
                return True
            nodes = [node.children[one] for node in nodes for one in (level, "+") if one in node.children]
        return any(node.children for node in nodes)

    def add(self, entry: Entry) -> None:
        """Add, or replace the session's entry for the same filter, which may be a shared one."""
        share = split_share(entry.topic_filter)
        if share is None:
            self._add(entry.topic_filter, entry.session, entry)
            return
        key = (entry.client, share.name)
        shared = self._shares.get((*key, share.topic_filter))
        if shared is None:
            shared = self._shares[(*key, share.topic_filter)] = Share(
                entry.client, entry.topic_filter, share.topic_filter
            )
            self._add(share.topic_filter, key, shared)
        session = entry.session
        session.seed = session.seed or blake2b(session.client_id.encode(), digest_size=16).digest()
        shared.entries[session] = entry
        entry.share = shared
        self.regroup(shared)

    def regroup(self, share: Share) -> None:
        """A member of a share has come, gone, or can no longer be reached: who gets what is found out anew."""
        if is_wildcard(share.topic_filter):
            self.generation += 1
        else:
            self._changed(share.topic_filter)

    def _add(self, topic_filter: str, key: Key, entry: Entry | Share) -> None:
        self._heads.clear()
        if not is_wildcard(topic_filter):
            self._exact.setdefault(topic_filter, {})[key] = entry
            self._changed(topic_filter)
            return
        node = self._tree
        for level in topic_filter.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = Node()
            node = child
        node.entries[key] = entry
        self.generation += 1

    def remove(self, session: Session, topic_filter: str) -> None:
        """Remove a session's entry, which must be there, and every branch that is empty then."""
        share = split_share(topic_filter)
        if share is None:
            self._remove(topic_filter, session)
            return
        key = (session.client, share.name)
        shared = self._shares[(*key, share.topic_filter)]
        del shared.entries[session]
        if shared.entries:
            self.regroup(shared)
        else:
            del self._shares[(*key, share.topic_filter)]
            self._remove(share.topic_filter, key)

    def _remove(self, topic_filter: str, key: Key) -> None:
        self._heads.clear()
        if not is_wildcard(topic_filter):
            entries = self._exact[topic_filter]
            del entries[key]
            if not entries:
                del self._exact[topic_filter]
            self._changed(topic_filter)
            return
        node = self._tree
        path: list[tuple[Node, str]] = []
        for level in topic_filter.split("/"):
            path.append((node, level))
            node = node.children[level]
        del node.entries[key]
        for parent, level in reversed(path):
            if node.entries or node.children:
                break
            del parent.children[level]
            node = parent
        self.generation += 1

    def _changed(self, topic: str) -> None:
        for retain in (False, True):
            route = self._routes.get((topic, retain))
            if route is not None:
                route.subscriptions = NEVER
        if self._forgotten:
            self.generation += 1

    def route(self, topic: str, retain: bool, renew: Callable[[Route], bool]) -> Route:
        """The one route of a topic."""
        routes = self._routes
        route = routes.get((topic, retain))
        if route is None:
            if len(routes) >= self._most_routes:
                # Routes held elsewhere can no longer be told singly: from now on every change voids them all.
                routes.clear()
                self._forgotten = True
                self.generation += 1
            route = routes[topic, retain] = Route(topic, retain, renew)
        return route

    def match(self, topic: str) -> list[Entry | Share]:
        """Every entry whose filter matches; topics that begin with `$` only by literal first levels [MQTT-4.7.2-1]."""
        found: list[Entry | Share] = []
        exact = self._exact.get(topic)
        if exact is not None:
            found.extend(exact.values())
        root = self._tree
        if not root.children:
            return found
        levels = topic.split("/")
        special = topic.startswith("$")
        nodes = [root]
        for depth, level in enumerate(levels):
            deeper: list[Node] = []
            for node in nodes:
                children = node.children
                child = children.get(level)
                if child is not None:
                    deeper.append(child)
                if depth == 0 and special:
                    continue
                child = children.get("+")
                if child is not None:
                    deeper.append(child)
                child = children.get("#")
                if child is not None:
                    found.extend(child.entries.values())
            nodes = deeper
            if not nodes:
                return found
        for node in nodes:
            found.extend(node.entries.values())
            child = node.children.get("#")
            if child is not None:
                found.extend(child.entries.values())
        return found

    def groups(self, topic: str, may_receive: Callable[[str, str], bool]) -> tuple[Group, ...]:
        """The subscribers of a topic who may receive it: each session once, with its highest QoS and all its identifiers.

        And once more for each shared subscription whose member it is for this topic.
        """
        rights: dict[str, bool] = {}
        heard: list[Entry] = []
        for found in self.match(topic):
            client = found.client
            may = rights.get(client)
            if may is None:
                may = rights[client] = may_receive(client, topic)
            if may:
                entry = found.pick(topic) if isinstance(found, Share) else found
                if entry is not None:
                    heard.append(entry)
        if not heard:
            return ()
        # Most topics have the same few audiences: their groups are made once and shared. An entry never changes.
        audience = tuple(heard)
        audiences = self._audiences
        if self._audiences_of != self.generation or self._listed > MOST_LISTED:
            audiences.clear()
            self._audiences_of = self.generation
            self._listed = 0
        groups = audiences.get(audience)
        if groups is None:
            groups = audiences[audience] = _grouped(audience)
            self._listed += len(audience)
        return groups


def _grouped(audience: tuple[Entry, ...]) -> tuple[Group, ...]:
    """Each session once, with those that get the same bytes."""
    by_session: dict[tuple[Session, Share | None], list[Entry]] = {}
    for entry in audience:
        by_session.setdefault((entry.session, entry.share), []).append(entry)
    groups: dict[tuple[int, int, bool, bool, bytes, Share | None], Group] = {}
    for (session, share), entries in by_session.items():
        key = (
            session.level,
            max(entry.qos for entry in entries),
            all(entry.no_local for entry in entries),
            any(entry.retain_as_published for entry in entries),
            identifier_properties([entry.identifier for entry in entries if entry.identifier]),
            share,
        )
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(*key)
        group.members.append(session)
    return tuple(groups.values())


def is_wildcard(topic_filter: str) -> bool:
    """Whether a well-formed filter has a wildcard."""
    return "+" in topic_filter or topic_filter.endswith("#")


def identifier_properties(identifiers: list[int]) -> bytes:
    """Subscription identifiers as encoded properties of a PUBLISH."""
    if not identifiers:
        return b""
    return encode_properties({Property.SUBSCRIPTION_IDENTIFIER: identifiers})
