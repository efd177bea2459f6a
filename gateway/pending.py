"""What one client asked of another and is not decided yet: subscriptions, invitations, delegations, actions. Pure."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.messages import rfc3339
from gateway.objects import url_of

if TYPE_CHECKING:
    from collections.abc import Iterable

SUBSCRIPTION = "subscription"
INVITATION = "invitation"
DELEGATION = "delegation"
ACTION = "action"


class Asked(NamedTuple):
    """A request, as far as its answer needs it: who asked, under which id, and where the answer goes."""

    client: str
    request: str
    topic: str = ""
    correlation: bytes | None = None


class Item:
    """One thing that waits for a client's decision. `created` and `until` are Unix seconds; `more` goes into its message."""

    __slots__ = ("asked", "created", "id", "kind", "more", "receiver", "topic", "until")

    def __init__(
        self,
        item_id: str,
        kind: str,
        asked: Asked,
        receiver: str,
        topic: str,
        created: float,
        until: float,
        more: dict[str, Any] | None = None,
    ) -> None:
        self.id = item_id
        self.kind = kind
        self.asked = asked
        self.receiver = receiver
        self.topic = topic
        self.created = created
        self.until = until
        self.more = more or {}

    @property
    def sender(self) -> str:
        """Who asks."""
        return self.asked.client

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What there is one of at a time."""
        return self.kind, self.sender, self.receiver, self.topic

    def message(self) -> dict[str, Any]:
        """As its receiver reads it in the inbox."""
        return {
            "id": self.id,
            "type": self.kind,
            "resource": url_of(self.topic),
            "from": self.sender,
            "created": rfc3339(int(self.created * 1000)),
            "expires": rfc3339(int(self.until * 1000)),
            **self.more,
        }

    def stored(self) -> dict[str, Any]:
        """All of it, as JSON."""
        request = [self.asked.client, self.asked.request, self.asked.topic]
        if self.asked.correlation is not None:
            request.append(self.asked.correlation.hex())
        return {
            "id": self.id,
            "kind": self.kind,
            "asked": request,
            "receiver": self.receiver,
            "topic": self.topic,
            "created": self.created,
            "until": self.until,
            "more": self.more,
        }

    @classmethod
    def restored(cls, facts: dict[str, Any]) -> Item:
        """What `stored` gave."""
        client, request, topic, *rest = facts["asked"]
        asked = Asked(client, request, topic, bytes.fromhex(rest[0]) if rest else None)
        return cls(
            facts["id"],
            facts["kind"],
            asked,
            facts["receiver"],
            facts["topic"],
            facts["created"],
            facts["until"],
            facts["more"],
        )


class Pending:
    """The items that wait: by id, by what there is one of, by sender, by receiver, by object, and in the order in which they end."""

    __slots__ = ("_by_id", "_by_key", "_by_topic", "_ends", "_received", "_sent")

    def __init__(self) -> None:
        self._by_id: dict[str, Item] = {}
        self._by_key: dict[tuple[str, str, str, str], Item] = {}
        self._by_topic: dict[str, dict[str, Item]] = {}
        self._received: dict[str, dict[str, Item]] = {}
        self._sent: dict[str, int] = {}
        self._ends: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, item: Item) -> None:
        """Take in a new one."""
        self._by_id[item.id] = item
        self._by_key[item.key] = item
        self._by_topic.setdefault(item.topic, {})[item.id] = item
        self._received.setdefault(item.receiver, {})[item.id] = item
        self._sent[item.sender] = self._sent.get(item.sender, 0) + 1
        heappush(self._ends, (item.until, item.id))

    def remove(self, item: Item) -> None:
        """It is decided, or over."""
        del self._by_id[item.id]
        # Of actions there may be several of one key.
        if self._by_key.get(item.key) is item:
            del self._by_key[item.key]
        for index, name in ((self._by_topic, item.topic), (self._received, item.receiver)):
            index[name].pop(item.id)
            if not index[name]:
                del index[name]
        self._sent[item.sender] -= 1
        if not self._sent[item.sender]:
            del self._sent[item.sender]
        # What was decided long before its end does not fill the queue for so long.
        if len(self._ends) > 2 * len(self._by_id) + 1_000:
            self._ends = sorted((each.until, each.id) for each in self._by_id.values())

    def renew(self, item: Item, until: float) -> None:
        """It ends at another time (Unix seconds)."""
        item.until = until
        heappush(self._ends, (until, item.id))

    def get(self, item_id: str) -> Item | None:
        """One by its id."""
        return self._by_id.get(item_id)

    def find(self, kind: str, sender: str, receiver: str, topic: str) -> Item | None:
        """The one of its kind."""
        return self._by_key.get((kind, sender, receiver, topic))

    def of(self, topic: str) -> list[Item]:
        """Those about one object, the oldest first."""
        return list(self._by_topic.get(topic, {}).values())

    def to(self, receiver: str) -> list[Item]:
        """Those in one inbox, the oldest first."""
        return list(self._received.get(receiver, {}).values())

    def full(self, sender: str, receiver: str, *, pair: int, inbox: int, sent: int) -> str | None:
        """Why one more may not be put there, or None: `pair` of one sender in one inbox, `inbox` in it, `sent` of one sender in all."""
        waiting = self._received.get(receiver, {})
        if len(waiting) >= inbox:
            return f"{len(waiting):,} wait for {receiver!r} already, the limit: try again when some are decided"
        if sum(1 for each in waiting.values() if each.sender == sender) >= pair:
            return f"{pair:,} of yours wait for {receiver!r} already, the limit: try again when some are decided"
        if self._sent.get(sender, 0) >= sent:
            return f"{sent:,} of yours wait for others already, the limit: try again when some are decided"
        return None

    def expire(self, now: float) -> Iterable[Item]:
        """Those that have ended by now; they are still to be removed."""
        ends = self._ends
        ended: dict[str, Item] = {}
        while ends and ends[0][0] <= now:
            until, item_id = heappop(ends)
            item = self._by_id.get(item_id)
            if item is not None and item.until == until:
                ended[item_id] = item
        return ended.values()
