"""Both clients under one set of verbs: the blocking one as it is, the asyncio one on an event loop in another thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import gateway.client as on_asyncio
from gateway.client import blocking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 30.0


class Loop:
    """An event loop on a thread; asyncio's debug mode finds what blocks it or is never awaited."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def do(self, call: Callable[[], Any]) -> Any:
        """Call it there; what it returns is awaited where it can be."""

        async def work() -> Any:
            found = call()
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(PATIENCE)

    def left(self) -> int:
        """Tasks that are still there."""

        async def work() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(work(), self.loop).result(PATIENCE)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()


class Synced:
    """Something of the asyncio client, with the blocking one's verbs."""

    def __init__(self, loop: Loop, thing: Any, timeout: float | None = None) -> None:
        self.__dict__.update(_loop=loop, thing=thing, _timeout=timeout)

    def __getattr__(self, name: str) -> Any:
        found = self._loop.do(lambda: getattr(self.thing, name))
        return _callable(self._loop, found, name) if callable(found) else found

    def __enter__(self) -> Any:
        return wrap(self._loop, self._loop.do(self.thing.__aenter__))

    def __exit__(self, *error: object) -> None:
        self._loop.do(lambda: self.thing.__aexit__(*error))

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.thing, on_asyncio.Events):
            return self
        return iter(self._loop.do(lambda: list(self.thing)))

    def __next__(self) -> Any:
        found = self.get(self._timeout)
        if found is None:
            raise StopIteration
        return found

    def get(self, timeout: Any = None) -> Any:
        if not isinstance(self.thing, on_asyncio.Events):
            return self._loop.do(lambda: self.thing.get(timeout))

        async def work() -> Any:
            try:
                return await asyncio.wait_for(anext(self.thing), timeout)
            except (TimeoutError, StopAsyncIteration):
                return None

        return self._loop.do(work)

    def __len__(self) -> int:
        return int(self._loop.do(lambda: len(self.thing)))

    def __getitem__(self, key: str) -> Any:
        return self._loop.do(lambda: self.thing[key])

    def __contains__(self, key: str) -> bool:
        return bool(self._loop.do(lambda: key in self.thing))


TIMED = ("changes", "events", "requests", "actions")


def _callable(loop: Loop, found: Any, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        timeout = options.pop("timeout", None) if name in TIMED else None
        return wrap(loop, loop.do(lambda: found(*arguments, **options)), timeout)

    return call


def wrap(loop: Loop, thing: Any, timeout: float | None = None) -> Any:
    known = (
        on_asyncio.Client,
        on_asyncio.Reporter,
        on_asyncio.Observer,
        on_asyncio.Copies,
        on_asyncio.Events,
        contextlib.AbstractAsyncContextManager,
    )
    return Synced(loop, thing, timeout) if isinstance(thing, known) else thing


class Edge:
    """`connect` of one of the two."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = Loop() if name == "asyncio" else None
        self._threads = set(threading.enumerate())

    def connect(self, url: str, **options: Any) -> Any:
        if self.loop is None:
            return blocking.connect(url, **options)
        loop = self.loop
        return Synced(loop, on_asyncio.connect(url, **options))

    def check(self) -> None:
        """Nothing is left of any client."""
        if self.loop is not None:
            assert self.loop.left() == 0
            self.loop.close()
        else:
            left = {thread.name for thread in set(threading.enumerate()) - self._threads}
            assert not {name for name in left if name.startswith("ctxt-client")}, left
