"""Who has sent too many wrong passwords, and how long it is not heard: in memory, bounded, no I/O, no clock of its own.

Three kinds of counters, each of which drains with time: of an address and a name together, of an address, of a name. The last
one holds only for addresses that have failed lately themselves, and none but the first for an address from which the name has
logged in before: so nobody locks a user out from elsewhere, and guessing from many addresses is slow all the same.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 10_000
"""Counters of each kind; the one longest unused makes room."""

BROADER = 4
"""How many times as many failures an address, or a name, has as both together."""

WORST = 16
"""Failures beyond the limit that are counted: a counter is empty again after a known time."""


class _Counters:
    """Failures by key. One drains at `limit` a minute; beyond `limit` each one more doubles the pause."""

    def __init__(self, limit: int, longest: float) -> None:
        self._limit = limit
        self._longest = longest
        self._rate = limit / 60
        self._known: OrderedDict[object, tuple[float, float, float]] = OrderedDict()  # level, as of, silent until

    def __len__(self) -> int:
        return len(self._known)

    def level(self, key: object, now: float) -> float:
        """Failures that have not drained yet."""
        found = self._known.get(key)
        return 0.0 if found is None else max(0.0, found[0] - max(0.0, now - found[1]) * self._rate)

    def pause(self, key: object, now: float) -> float:
        """Seconds until it is heard again; 0 = now."""
        found = self._known.get(key)
        return 0.0 if found is None else max(0.0, found[2] - now)

    def failed(self, key: object, now: float) -> None:
        level = min(self.level(key, now) + 1, self._limit + WORST)
        beyond = ceil(level) - self._limit
        until = now + min(self._longest, 2.0**beyond) if beyond >= 0 else 0.0
        # Nothing drains in a pause: the next one would be as short as the first.
        self._known[key] = (level, max(now, until), until)
        self._known.move_to_end(key)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def forget(self, key: object) -> None:
        self._known.pop(key, None)


class Backoff:
    """Asked before a password is looked at, told afterwards. An address is whatever stands for one (an IPv6 network)."""

    def __init__(self, limit: int, longest: float, clock: Callable[[], float]) -> None:
        """`limit`: wrong passwords a minute from one address for one name; `longest`: the longest pause, in seconds."""
        self._clock = clock
        self._pairs = _Counters(limit, longest)
        self._addresses = _Counters(limit * BROADER, longest)
        self._names = _Counters(limit * BROADER, longest)
        self._good: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pairs) + len(self._addresses) + len(self._names) + len(self._good)

    def pause(self, address: str, name: str) -> float:
        """Seconds for which this address is not heard under this name; 0 = it is."""
        now = self._clock()
        own = self._pairs.pause((address, name), now)
        if own or (address, name) in self._good:
            return own
        pause = self._addresses.pause(address, now)
        if self._addresses.level(address, now):
            pause = max(pause, self._names.pause(name, now))
        return pause

    def failed(self, address: str, name: str) -> None:
        """The password was wrong."""
        now = self._clock()
        self._pairs.failed((address, name), now)
        if (address, name) not in self._good:
            self._addresses.failed(address, now)
            self._names.failed(name, now)

    def passed(self, address: str, name: str) -> None:
        """The password was right. It clears what stands against this name from this address, and nothing else."""
        key = (address, name)
        self._pairs.forget(key)
        self._good[key] = None
        self._good.move_to_end(key)
        if len(self._good) > MOST:
            self._good.popitem(last=False)
