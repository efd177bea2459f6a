"""The client library for commands: one connection, and errors that carry exit codes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from gateway.client.aio import Connection as Library
from gateway.client.errors import ClientError, NotConnectedError, RefusedError, UsageError
from gateway.client.inbox import Disconnected
from gateway.client.target import Target
from gateway.commands.outcome import CommandError, Exit, exit_of_code, exit_of_reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping

    from gateway.client.core import Core
    from gateway.client.promise import Promise

T = TypeVar("T")

WITH_A_NAME = "give --connect mqtt://NAME:PASSWORD@HOST (or CTXT_CONNECT and CTXT_PASSWORD)"


def target_of(url: str, environ: Mapping[str, str]) -> Target:
    """What `--connect` says; a missing password comes from CTXT_PASSWORD. Raises CommandError (usage) without the password."""
    try:
        target = Target.parse(url, environ)
    except UsageError as error:
        raise CommandError(Exit.USAGE, f"--connect: {error}") from error
    if target.name is not None and not target.password:
        raise CommandError(
            Exit.USAGE,
            f"there is no password for {target.name!r}: set CTXT_PASSWORD, "
            f"or write {target.scheme}://{target.name}:PASSWORD@{target.host}",
        )
    return target


def failure(error: Exception, target: Target) -> CommandError:
    """How a command ends that meets with this error."""
    if isinstance(error, RefusedError):
        return CommandError(exit_of_code(error.code), str(error))
    if isinstance(error, UsageError):
        return CommandError(Exit.USAGE, str(error))
    if not isinstance(error, NotConnectedError) or error.reason is None:
        return CommandError(Exit.NO_CONNECTION, str(error))
    if error.not_admitted and target.name is None:
        return CommandError(
            exit_of_reason(error.reason),
            f"{target.where} admits nobody without a name: {WITH_A_NAME}; `ctxt client add NAME` makes one",
        )
    if error.reason in (0x01, 0x84):
        return CommandError(Exit.FAILED, f"{target.where} does not speak MQTT 5, which `ctxt` needs")
    return CommandError(exit_of_reason(error.reason), str(error))


@contextmanager
def as_command(target: Target) -> Iterator[None]:
    """The library's errors within the block become CommandError."""
    try:
        yield
    except ClientError as error:
        raise failure(error, target) from error


def library(target: Target, patience: float) -> Library:
    """The library's connection as commands use it, not begun: nobody is told that this client is online."""
    return Library(target, timeout=patience, presence=False)


class Connection:
    """An open connection. All of it raises CommandError for a refusal, a lost connection, no answer."""

    def __init__(self, target: Target, opened: Library, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self._library = opened
        self._core: Core = opened.core

    async def run(self, work: Coroutine[Promise[Any], Any, T]) -> T:
        """Do the library's work."""
        with as_command(self.target):
            return await self._library.run(work)

    async def request(self, kind: str, body: dict[str, Any]) -> Any:
        """Ask the gateway; the answer's body."""
        return (await self.ask(kind, body))[1]

    async def ask(
        self, kind: str, body: dict[str, Any], *, decision: float | None = None, within: float | None = None
    ) -> tuple[int, Any]:
        """Ask the gateway; (code, body). Where that is 202, the decision if it comes within `decision` seconds.

        `within`: seconds for the first answer, where it takes longer than others.
        """
        if self.target.name is None:
            raise CommandError(Exit.NOT_ALLOWED, f"`{kind}` needs a name: {WITH_A_NAME}")
        return await self.run(self._core.ask(kind, body, seconds=within, decision=decision))

    async def report(self, topic: str, payload: bytes) -> CommandError | None:
        """Report, and wait until it is stored: None. What is returned says why it is refused; where nobody says, it is raised."""
        try:
            await self._library.run(self._core.report(topic, payload, self._core.number()))
        except RefusedError as error:
            return failure(error, self.target)
        except ClientError as error:
            raise failure(error, self.target) from error
        return None

    def listen(self) -> asyncio.Queue[tuple[str, bytes] | None]:
        """What arrives from now on, topics and payloads; None when the connection is lost."""
        queue: asyncio.Queue[tuple[str, bytes] | None] = asyncio.Queue()
        self._core.tap = lambda topic, payload: queue.put_nowait((self.target.without_prefix(topic), payload))
        self._core.sinks.append(lambda event: queue.put_nowait(None) if isinstance(event, Disconnected) else None)
        return queue

    async def subscribe(self, *filters: str) -> None:
        """Subscribe, all in one SUBSCRIBE. Raises CommandError for a filter that is refused, too."""
        for topic_filter, reason in zip(filters, await self.run(self._core.subscribe(filters)), strict=False):
            if reason >= 0x80:
                raise CommandError(
                    exit_of_reason(reason),
                    f"{self.target.client!r} may not read {topic_filter}: see `observe` in the settings' namespaces",
                )

    def gone(self) -> CommandError:
        """The error of a lost connection."""
        return CommandError(Exit.NO_CONNECTION, f"the connection to {self.target.where} was lost")


@asynccontextmanager
async def connected(target: Target, patience: float) -> AsyncIterator[Connection]:
    """A Connection for as long as the block lasts; `patience`: seconds for it and for each answer. Raises CommandError."""
    opened = library(target, patience)
    with as_command(target):
        await opened.start(wait=False)
    try:
        yield Connection(target, opened, patience)
    finally:
        await opened.stop()
