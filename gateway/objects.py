"""Data Objects and their index, in memory. Pure.

An object is known by its *topic*: the normal form of its URL with `://` written as `/` (see address.py).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gateway.topics import matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.catalogue import Schema
    from gateway.rights import Namespace

LIVE = "live"
STALE = "stale"
DISCONNECTED = "disconnected"

CHILDREN = "/children/"

PUBLIC = "*"
"""Among the grants of an object: every client with a name may observe it, where its namespace permits that."""

ASK = "ask"
"""The policy of an object unless it says another: its Reporter decides on each who asks to observe it."""

MISSES = 32
"""Objects that a search by filter looks at in vain before it says so."""


def url_of(topic: str) -> str:
    """The object URL of an object topic in normal form."""
    return topic.replace("/", "://", 1)


def topic_of(url: str) -> str:
    """The object topic of an object URL in normal form."""
    return url.replace("://", "/", 1)


def authority_of(topic: str) -> str:
    """`scheme/authority`: what a version floor belongs to."""
    first = topic.index("/")
    second = topic.find("/", first + 1)
    return topic if second < 0 else topic[:second]


def parent_of(topic: str) -> str | None:
    """The parent's topic of a child, else None."""
    at = topic.find(CHILDREN)
    return None if at < 0 else topic[:at]


def compact(value: Any) -> bytes:
    """JSON bytes to keep: what the serialiser returns may hold on to its whole buffer, a copy does not."""
    return bytes(memoryview(orjson.dumps(value)))


class Facts(NamedTuple):
    """What a client says of an object that it creates, beside its value. None: nothing."""

    schema: str | None = None
    name: str | None = None
    description: str | None = None
    tags: list[str] | None = None
    resources: list[str] | None = None
    policy: str | None = None
    public: bool = False

    def meta(self) -> dict[str, Any]:
        """What Observers are told of it in the first delta."""
        said = {
            "name": self.name,
            "description": self.description,
            "tags": self.tags,
            "resources": self.resources,
            "public": self.public or None,
        }
        return {key: value for key, value in said.items() if value is not None}


class DataObject:
    """One Data Object, live or (where `deleted`) its tombstone.

    `data` (parsed) and `text` (JSON bytes) are two forms of one value: at least one is there, and `document()` and
    `render()` give either. Only `render()` keeps what it makes: text weighs a tenth. `data` is never mutated: a change puts another dict in its place.
    `created` and `modified` are Unix milliseconds; `seen` is Unix seconds of the last sign of life; `size` is an upper bound of
    the bytes of `text`.
    """

    __slots__ = (
        "charged",
        "created",
        "data",
        "deleted",
        "delta_route",
        "description",
        "due",
        "grants",
        "lull",
        "modified",
        "name",
        "namespace",
        "policy",
        "reporter",
        "resources",
        "row",
        "schema",
        "seen",
        "size",
        "status",
        "tags",
        "text",
        "topic",
        "types",
        "url",
        "version",
        "watched",
    )

    def __init__(
        self,
        *,
        topic: str,
        schema: Schema | None,
        reporter: str,
        name: str,
        version: int,
        created: int,
        modified: int,
        status: str = LIVE,
        data: dict[str, Any] | None = None,
        text: bytes | None = None,
        deleted: bool = False,
        row: int = 0,
        namespace: Namespace | None = None,
        seen: float = 0.0,
        description: str | None = None,
        tags: list[str] | None = None,
        resources: list[str] | None = None,
        grants: dict[str, float] | None = None,
        policy: str = ASK,
    ) -> None:
        self.topic = topic
        self.url = url_of(topic)
        self.schema = schema
        self.reporter = reporter
        self.name = name
        self.version = version
        self.created = created
        self.modified = modified
        self.status = status
        self.data = data
        self.text = text
        self.deleted = deleted
        self.row = row
        self.namespace = namespace
        self.seen = seen
        self.description = description
        self.tags = tags
        self.resources = resources
        self.grants = grants
        """Who may observe it beside those whom its namespace lists, each until a time (Unix seconds; 0: for good)."""
        self.policy = policy
        """What happens to who asks to observe it: `auto`, `ask` or `closed`."""
        self.lull = (0, 0)
        """Versions from which and up to which nothing but the status changed."""
        self.size = len(text) if text is not None else 0
        self.charged = 0
        """Bytes that this object's Reporter has been charged for it."""
        self.due = 0.0
        """When the first change happened that no snapshot has shown yet; 0 = none."""
        self.watched = False
        """Whether a timer for `stale_after` is running."""
        self.types: dict[str, str] | None = None
        """Of each key of the value view its JSON type, once a view has been made."""
        self.delta_route: Any = None

    def document(self) -> dict[str, Any]:
        """The parsed data; must not be mutated."""
        data = self.data
        if data is None:
            data = orjson.loads(self.text or b"{}")
        return data

    def render(self) -> bytes:
        """The data as JSON bytes."""
        text = self.text
        if text is None:
            text = self.text = compact(self.data)
            self.size = len(text)
        return text

    @property
    def public(self) -> bool:
        """Whether every client with a name may observe it: its Reporter has said so, and its namespace permits it."""
        return (
            self.grants is not None and PUBLIC in self.grants and self.namespace is not None and self.namespace.public
        )

    @property
    def parent(self) -> str | None:
        """The parent's URL of a child, else None."""
        topic = parent_of(self.topic)
        return None if topic is None else url_of(topic)


class Objects:
    """Every object and tombstone: by topic, by reporter, by who was granted it, and in the order of their URLs.

    `strays`: the topics of those that no namespace holds.
    """

    __slots__ = ("_by_reporter", "_by_topic", "_granted", "_order", "get", "strays")

    def __init__(self, objects: Iterable[DataObject] = ()) -> None:
        self._by_topic: dict[str, DataObject] = {}
        self._by_reporter: dict[str, dict[str, DataObject]] = {}
        self._granted: dict[str, dict[str, DataObject]] = {}
        self.strays: set[str] = set()
        for obj in objects:
            self._by_topic[obj.topic] = obj
            if obj.namespace is None:
                self.strays.add(obj.topic)
            for client in obj.grants or ():
                self._granted.setdefault(client, {})[obj.topic] = obj
            self._by_reporter.setdefault(obj.reporter, {})[obj.topic] = obj
        self._order: list[str] = sorted(obj.url for obj in self._by_topic.values())
        self.get = self._by_topic.get

    def __len__(self) -> int:
        return len(self._by_topic)

    def __contains__(self, topic: str) -> bool:
        return topic in self._by_topic

    def __iter__(self) -> Iterator[DataObject]:
        return iter(self._by_topic.values())

    def add(self, obj: DataObject) -> None:
        """Take in a new object; its topic must not be taken."""
        self._by_topic[obj.topic] = obj
        self._by_reporter.setdefault(obj.reporter, {})[obj.topic] = obj
        if obj.namespace is None:
            self.strays.add(obj.topic)
        insort(self._order, obj.url)

    def settle(self, obj: DataObject, namespace: Namespace | None) -> None:
        """Say to which namespace an object belongs now."""
        obj.namespace = namespace
        (self.strays.add if namespace is None else self.strays.discard)(obj.topic)

    def remove(self, obj: DataObject) -> None:
        """Forget an object or tombstone for good."""
        del self._by_topic[obj.topic]
        self.strays.discard(obj.topic)
        self._leave(obj)
        for client in list(obj.grants or ()):
            self.revoke(obj, client)
        del self._order[bisect_left(self._order, obj.url)]

    def hand_over(self, obj: DataObject, reporter: str) -> None:
        """Change the one writer of an object."""
        self._leave(obj)
        obj.reporter = reporter
        self._by_reporter.setdefault(reporter, {})[obj.topic] = obj

    def _leave(self, obj: DataObject) -> None:
        own = self._by_reporter[obj.reporter]
        del own[obj.topic]
        if not own:
            del self._by_reporter[obj.reporter]

    def grant(self, obj: DataObject, client: str, until: float) -> None:
        """Note that a client may observe an object, until a time (Unix seconds; 0: for good)."""
        if obj.grants is None:
            obj.grants = {}
        obj.grants[client] = until
        self._granted.setdefault(client, {})[obj.topic] = obj

    def revoke(self, obj: DataObject, client: str) -> bool:
        """Forget that; whether it was so."""
        if obj.grants is None or obj.grants.pop(client, None) is None:
            return False
        obj.grants = obj.grants or None
        held = self._granted[client]
        del held[obj.topic]
        if not held:
            del self._granted[client]
        return True

    def granted(self, client: str) -> Iterable[DataObject]:
        """What one client was granted."""
        return self._granted.get(client, {}).values()

    def grantees(self) -> Iterable[str]:
        """The clients that hold grants."""
        return self._granted

    def of(self, reporter: str) -> Iterable[DataObject]:
        """The objects and tombstones of one Reporter."""
        return self._by_reporter.get(reporter, {}).values()

    def count_of(self, reporter: str) -> int:
        """How many objects and tombstones one Reporter has."""
        return len(self._by_reporter.get(reporter, ()))

    def reporters(self) -> Iterable[str]:
        """Everyone who has an object or tombstone."""
        return self._by_reporter

    def from_url(self, prefix: str = "", after: str = "") -> Iterator[DataObject]:
        """Objects and tombstones whose URL begins with `prefix` and is greater than `after`, in the order of their URLs.

        The index may grow or shrink between two steps of the iteration: what is there throughout is met exactly once.
        """
        order = self._order
        at = bisect_right(order, after) if after >= prefix else bisect_left(order, prefix)
        while at < len(order):
            url = order[at]
            if not url.startswith(prefix):
                return
            yield self._by_topic[topic_of(url)]
            at += 1
            if at > len(order) or order[at - 1] is not url:
                at = bisect_right(order, url)

    def count_below(self, prefix: str) -> int:
        """How many objects and tombstones have a URL that begins with `prefix`."""
        return bisect_left(self._order, prefix + chr(0x10FFFF)) - bisect_left(self._order, prefix)

    def children(self, topic: str) -> Iterator[DataObject]:
        """The children of an object, and their tombstones."""
        return self.from_url(url_of(topic) + CHILDREN)

    def matching(self, topic_filter: str) -> Iterator[DataObject | None]:
        """Objects and tombstones whose topic is matched by a well-formed MQTT filter (of object topics, without a verb).

        None now and then: so many (`MISSES`) were looked at in vain.
        """
        if "+" not in topic_filter and "#" not in topic_filter:
            obj = self._by_topic.get(topic_filter)
            if obj is not None:
                yield obj
            return
        literal: list[str] = []
        for level in topic_filter.split("/"):
            if level in ("+", "#"):
                break
            literal.append(level)
        if not literal:
            prefix = ""
        elif len(literal) == 1:
            prefix = literal[0] + "://"
        else:
            prefix = url_of("/".join(literal))
        whole = topic_filter == "#"
        misses = 0
        for obj in self.from_url(prefix):
            if whole or matches(topic_filter, obj.topic):
                yield obj
            else:
                misses += 1
                if misses % MISSES == 0:
                    yield None
