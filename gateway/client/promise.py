"""Coroutines without an event loop: the clients' logic is written once, and driven by asyncio or by a thread alike. Pure.

A `Promise` is what will be known later. A coroutine that awaits nothing but promises is driven by `drive`, which goes on with it
inside the call that keeps the promise. Everything here belongs to one thread.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")


class CancelledError(BaseException):
    """What a coroutine that is not wanted any more gets thrown in."""


class Promise(Generic[T]):
    """A value that is not there yet, or the reason why it never will be."""

    __slots__ = ("_after", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._after: list[Callable[[Promise[T]], None]] = []

    def keep(self, value: T) -> None:
        """Give the value; whatever comes after the first word is ignored."""
        if not self.done:
            self.done, self._value = True, value
            self._tell()

    def fail(self, error: BaseException) -> None:
        """Give the reason why there is no value."""
        if not self.done:
            self.done, self._error = True, error
            self._tell()

    def _tell(self) -> None:
        after, self._after = self._after, []
        for call in after:
            call(self)

    def follow(self, other: Promise[T]) -> None:
        """Become what another one has become."""
        if other._error is None:
            self.keep(other.result())
        else:
            self.fail(other._error)

    def then(self, call: Callable[[Promise[T]], None]) -> None:
        """Call when it is done; at once where it is."""
        if self.done:
            call(self)
        else:
            self._after.append(call)

    def forget(self, call: Callable[[Promise[T]], None]) -> None:
        """Do not call after all."""
        if call in self._after:
            self._after.remove(call)

    @property
    def error(self) -> BaseException | None:
        """The reason why there is no value."""
        return self._error

    def result(self) -> T:
        """The value. Raises what it failed with; must be done."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def __await__(self) -> Generator[Promise[Any], None, T]:
        """For coroutines that `drive` drives."""
        if not self.done:
            yield self
        return self.result()


class Driven(Promise[T]):
    """A coroutine on its way; done when it is."""

    __slots__ = ("_coroutine", "_waits")

    def __init__(self, coroutine: Coroutine[Promise[Any], Any, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._waits: Promise[Any] | None = None

    def go_on(self, _done: Promise[Any] | None = None, thrown: BaseException | None = None) -> None:
        """The next step."""
        self._waits = None
        try:
            waits = self._coroutine.send(None) if thrown is None else self._coroutine.throw(thrown)
        except StopIteration as stop:
            self.keep(stop.value)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the coroutine gets what it raised
            self.fail(error)
        else:
            self._waits = waits
            waits.then(self.go_on)

    def cancel(self) -> None:
        """End it where it waits; it has a chance to tidy up."""
        if self._waits is not None:
            self._waits.forget(self.go_on)
            self.go_on(thrown=CancelledError())


def drive(coroutine: Coroutine[Promise[Any], Any, T]) -> Driven[T]:
    """Begin a coroutine, and go on with it whenever what it waits for is done."""
    driven = Driven(coroutine)
    driven.go_on()
    return driven


class Turn:
    """So many at a time, in the order of asking: `await turn.take()`, then `turn.give()`."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
        """May be another number at any time."""
        self._taken = 0
        self._giving = False
        self._waiting: deque[Promise[None]] = deque()

    async def take(self) -> None:
        """Wait for a turn."""
        if self._taken < self.size and not self._waiting:
            self._taken += 1
            return
        promise: Promise[None] = Promise()
        self._waiting.append(promise)
        try:
            await promise
        except CancelledError:
            if promise.done:
                self.give()
            else:
                self._waiting.remove(promise)
            raise

    def give(self) -> None:
        """Let the next ones."""
        self._taken -= 1
        if self._giving:
            # Whoever got its turn just now has given it back at once: the loop below goes on.
            return
        self._giving = True
        try:
            while self._waiting and self._taken < self.size:
                self._taken += 1
                self._waiting.popleft().keep(None)
        finally:
            self._giving = False
