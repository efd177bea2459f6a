"""Who talks and is not listened to, for an administrator who looks: topics that were refused, or that the house does not want."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.wire.packets import Publish

LOOKS = 15.0
"""Seconds for which messages are noted after the last look."""

MOST_TOPICS = 10_000
MOST_BYTES = 8 << 20
"""What is noted between two looks at most; what goes beyond is left out, and comes again with the next message."""


class Strangers:
    """The first message on each topic, and the first one that was refused there, since somebody has begun to look. Costs nothing while nobody does."""

    def __init__(self) -> None:
        self.open = False
        self._closing: asyncio.TimerHandle | None = None
        self._known: set[tuple[str, bool]] = set()
        self._news: list[dict[str, Any]] = []
        self._bytes = 0

    def note(self, client: str, publish: Publish, *, refused: bool) -> None:
        """A message that nobody at home wants."""
        topic, payload = publish.topic, publish.payload
        if (topic, refused) in self._known or len(self._known) >= MOST_TOPICS or self._bytes > MOST_BYTES:
            return
        self._known.add((topic, refused))
        self._bytes += len(topic) + len(payload)
        self._news.append(
            {"topic": topic, "client": client, "refused": refused, "retain": publish.retain, "hex": payload.hex()}
        )

    def look(self) -> Iterator[dict[str, Any]]:
        """What is new since the last look: topic, client, whether it was refused, RETAIN, and the payload in hexadecimal digits."""
        if self._closing is not None:
            self._closing.cancel()
        self._closing = asyncio.get_running_loop().call_later(LOOKS, self._close)
        self.open = True
        news, self._news, self._bytes = self._news, [], 0
        return iter(news)

    def _close(self) -> None:
        self.open, self._closing, self._bytes = False, None, 0
        self._known.clear()
        self._news.clear()
