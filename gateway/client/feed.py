"""Events for whoever reads at its own pace: bounded, and gone when nobody holds it any more."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gateway.client.inbox import Missed

if TYPE_CHECKING:
    from collections.abc import Callable

E = TypeVar("E")

MOST = 10_000
"""Events that wait to be read; then the oldest make room, and `Missed` says how many did."""


class Feed(Generic[E]):
    """Takes events from a list of sinks until it is closed, or forgotten by whoever reads it, in this thread or another."""

    def __init__(
        self,
        sinks: list[Callable[[Any], None]],
        *,
        wanted: Callable[[Any], bool] | None = None,
        first: list[E] | None = None,
    ) -> None:
        """`wanted` says which of the events it takes; `first` are there already."""
        self.closed = False
        self.wake: Callable[[], None] | None = None
        """Called when there is something to read, or nothing will come any more."""
        self._events: deque[E] = deque(first or ())
        self._missed = 0
        self._lock = threading.Lock()
        self._wanted = wanted
        self._sinks = sinks
        me = weakref.ref(self)

        def sink(event: Any) -> None:
            feed = me()
            if feed is not None:
                feed.put(event)

        self._sink = sink
        sinks.append(sink)
        weakref.finalize(self, _remove, sinks, sink)

    def put(self, event: E) -> None:
        """One more."""
        if self._wanted is not None and not self._wanted(event):
            return
        with self._lock:
            if len(self._events) >= MOST:
                self._events.popleft()
                self._missed += 1
            self._events.append(event)
        if self.wake is not None:
            self.wake()

    def take(self) -> E | Missed | None:
        """The next one; None where there is none."""
        with self._lock:
            if self._missed:
                missed, self._missed = self._missed, 0
                return Missed(missed)
            return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Nothing comes any more; what is there can be read."""
        self.closed = True
        _remove(self._sinks, self._sink)
        if self.wake is not None:
            self.wake()


def _remove(sinks: list[Callable[[Any], None]], sink: Callable[[Any], None]) -> None:
    if sink in sinks:
        sinks.remove(sink)
