"""The retained messages on topics that the house does not keep itself: bounded in number and bytes, in memory. No I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gateway.broker.subscriptions import is_wildcard
from gateway.topics import matches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.wire.packets import Properties

OVERHEAD = 256
"""Bytes counted for each message beside its topic and payload."""


class Kept(NamedTuple):
    """One retained message; `expires` in seconds of the broker's clock, 0 = never."""

    payload: bytes
    qos: int
    properties: Properties | None
    expires: float


class Retained:
    """Topic -> the last message that was published with RETAIN."""

    def __init__(self, most_messages: int, most_bytes: int) -> None:
        self._messages: dict[str, Kept] = {}
        self._most_messages = most_messages
        self._most_bytes = most_bytes
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def get(self, topic: str) -> Kept | None:
        """What is kept for a topic now."""
        return self._messages.get(topic)

    def keep(self, topic: str, message: Kept) -> bool:
        """Keep a message, or forget the topic where the payload is empty [MQTT-3.3.1-6, -7]. False: no room, nothing changed."""
        held = self._messages.get(topic)
        freed = 0 if held is None else _size(topic, held)
        if not message.payload:
            if held is not None:
                del self._messages[topic]
                self.bytes -= freed
            return True
        size = _size(topic, message)
        if self.bytes - freed + size > self._most_bytes or (
            held is None and len(self._messages) >= self._most_messages
        ):
            return False
        self._messages[topic] = message
        self.bytes += size - freed
        return True

    def expire(self, now: float) -> None:
        """Forget what has expired [MQTT-3.3.2-5]."""
        gone = [topic for topic, message in self._messages.items() if message.expires and message.expires <= now]
        for topic in gone:
            self.bytes -= _size(topic, self._messages.pop(topic))

    def below(self, topic_filter: str) -> Iterator[str | None]:
        """Topics that a filter matches, as they are now; None for one that it does not match, so that long searches can pause."""
        if not is_wildcard(topic_filter):
            if topic_filter in self._messages:
                yield topic_filter
            return
        for topic in list(self._messages):
            yield topic if topic in self._messages and matches(topic_filter, topic) else None


def _size(topic: str, message: Kept) -> int:
    size = OVERHEAD + 2 * len(topic) + len(message.payload)
    if message.properties:
        for value in message.properties.values():
            if isinstance(value, (str, bytes)):
                size += len(value)
            elif isinstance(value, list):
                size += sum(len(part) + 64 for pair in value for part in pair)
    return size
