"""How `ctxt broker` talks to the running gateway: a Unix socket in the state folder, for the folder's owner only.

One request a connection: a line of JSON, `{"do":"clients"}`, `{"do":"subscriptions","client":NAME?}`,
`{"do":"counters"}`, `{"do":"strangers"}`, `{"do":"kick","client":NAME,"client_id":ID?}`, or what `gateway/administration.py` does. The answer is a line for each item,
`{"item":{…}}`, and then one with `done` (how many they were) or `error` (a sentence) and perhaps its `code`, which follows HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import orjson

from gateway.broker import roster
from gateway.errors import CtxtError
from gateway.wire.packets import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

    from gateway.broker.server import Broker
    from gateway.counts import Family

FILE = "control.sock"
LINE_BYTES = 4_096
"""The longest request."""

AT_ONCE = 8
"""Requests that are answered at a time; more are closed unanswered."""

PATIENCE = 10.0
"""Seconds that either side may let the other wait."""

LONGEST_WORK = 60.0
"""Seconds that a change may take, with a broker outside that has to take it over."""

SLICE = 200
"""Items that are made before everything else has its turn."""

_PATH_BYTES = 107
_log = logging.getLogger("gateway.control")


class ControlError(CtxtError):
    """The running gateway cannot be asked, or says no; then `code` may say why, as HTTP does."""

    def __init__(self, sentence: str, code: int | None = None) -> None:
        super().__init__(sentence)
        self.code = code


class NotRunningError(ControlError):
    """No gateway runs with this state folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"no gateway runs with the state folder {folder}: start it with `ctxt run`, or name its settings with --config"
        )
        self.folder = folder


class Refused(NamedTuple):
    """What is wrong with a request."""

    error: str
    code: int | None = None


class Administrator(Protocol):
    """Who does what takes longer than an answer."""

    @property
    def verbs(self) -> Container[object]:
        """What can be asked for."""

    async def answer(self, request: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Do it. Raises CtxtError with a sentence, and perhaps a `code`."""


@contextmanager
def _reachable(folder: Path) -> Iterator[str]:
    """A path of the socket that fits into an address, however long the folder's is."""
    path = str(folder / FILE)
    if len(os.fsencode(path)) <= _PATH_BYTES:
        yield path
        return
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{FILE}"
    finally:
        os.close(handle)


class Control:
    """The gateway's side. The state folder's lock makes sure that there is only one."""

    def __init__(self, folder: Path, broker: Broker | None = None) -> None:
        """`broker` is the one inside, where there is one."""
        self._folder = folder
        self._broker = broker
        self._families: Callable[[], Iterator[Family]] = lambda: iter(())
        self.administrator: Administrator | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, families: Callable[[], Iterator[Family]]) -> None:
        """Listen; `families` are what is counted. Where that fails the gateway runs all the same, and the log says what does not work."""
        self._families = families
        try:
            bound = self._bind()
        except OSError as error:
            _log.warning(
                "`ctxt broker` will not work: cannot make the socket %s (%s); check the folder and its file system",
                self._folder / FILE,
                error.strerror or error,
            )
            return
        self._server = await asyncio.start_unix_server(self._accepted, sock=bound, limit=LINE_BYTES)

    def _bind(self) -> socket.socket:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _reachable(self._folder) as path:
                Path(path).unlink(missing_ok=True)
                bound.bind(path)
                # Nobody can connect before the socket listens.
                Path(path).chmod(0o600)
            bound.setblocking(False)
        except OSError:
            bound.close()
            raise
        return bound

    async def stop(self) -> None:
        """Close, and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        with suppress(OSError):
            (self._folder / FILE).unlink()
        self._server = None

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= AT_ONCE:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                line = await asyncio.wait_for(reader.readline(), PATIENCE)
                answer = await asyncio.wait_for(self._answer(line), LONGEST_WORK)
            except ValueError:
                answer = Refused(f"a request is a line of at most {LINE_BYTES:,} bytes")
            if isinstance(answer, Refused):
                told = {"error": answer.error} | ({} if answer.code is None else {"code": answer.code})
                writer.write(orjson.dumps(told) + b"\n")
            else:
                await self._write(writer, answer)
            await asyncio.wait_for(writer.drain(), PATIENCE)
        except (OSError, TimeoutError):
            pass  # whoever asked has gone, or does not read
        finally:
            writer.close()

    async def _write(self, writer: asyncio.StreamWriter, items: Iterator[dict[str, Any]]) -> None:
        count = 0
        for item in items:
            writer.write(orjson.dumps({"item": item}) + b"\n")
            count += 1
            if not count % SLICE:
                await asyncio.wait_for(writer.drain(), PATIENCE)
                await asyncio.sleep(0)
        writer.write(orjson.dumps({"done": count}) + b"\n")

    async def _answer(self, line: bytes) -> Iterator[dict[str, Any]] | Refused:
        try:
            request = orjson.loads(line)
        except orjson.JSONDecodeError:
            return Refused("a request is a line of JSON")
        if not isinstance(request, dict):
            return Refused("a request is a JSON object")
        client, client_id = request.get("client"), request.get("client_id")
        if not isinstance(client, str | None) or not isinstance(client_id, str | None):
            return Refused("client and client_id are texts")
        what = request.get("do")
        if self.administrator is not None and isinstance(what, str) and what in self.administrator.verbs:
            try:
                return iter(await self.administrator.answer(request))
            except CtxtError as error:
                return Refused(str(error), getattr(error, "code", None))
        if what == "counters":
            return (family.item() for family in self._families())
        broker = self._broker
        if what in ("clients", "subscriptions", "strangers", "kick") and broker is None:
            return Refused("clients are connected to a broker outside: ask that broker")
        if broker is not None:
            if what == "clients":
                return roster.clients(broker)
            if what == "subscriptions":
                return roster.subscriptions(broker, client)
            if what == "strangers":
                return broker.strangers.look()
            if what == "kick" and client is not None:
                return _kick(broker, client, client_id)
        return Refused("a request says what to do: clients, subscriptions, strangers, counters, or kick with a client")


def _kick(broker: Broker, client: str, client_id: str | None) -> Iterator[dict[str, Any]]:
    """Disconnect a client's connections, or one of them; those that were."""
    found = [
        one for one in roster.clients(broker, client) if one["connected"] and client_id in (None, one["client_id"])
    ]
    for one in found:
        session = broker.sessions.get((client, one["client_id"]))
        if session is not None and session.connection is not None:
            session.connection.end(Reason.ADMINISTRATIVE_ACTION, "disconnected by the administrator")
    return iter(found)


def ask(folder: Path, request: dict[str, Any], *, patience: float = PATIENCE) -> list[dict[str, Any]]:
    """Ask the gateway that runs with this state folder, and wait for the whole answer. Raises ControlError, NotRunningError.

    `patience`: seconds to wait for each line; what changes something may take LONGEST_WORK.
    """
    items: list[dict[str, Any]] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(patience)
            with _reachable(folder) as path:
                asking.connect(path)
            asking.sendall(orjson.dumps(request) + b"\n")
            with asking.makefile("rb") as lines:
                for line in lines:
                    answer = orjson.loads(line)
                    if "error" in answer:
                        raise ControlError(f"the gateway says: {answer['error']}", answer.get("code"))
                    if "done" in answer:
                        return items
                    items.append(answer["item"])
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
        raise NotRunningError(folder) from None
    except PermissionError as error:
        raise ControlError(
            f"the gateway with the state folder {folder} may be asked by its owner and by root only: use sudo"
        ) from error
    except OSError as error:
        raise ControlError(
            f"the gateway with the state folder {folder} does not answer ({error}): try again"
        ) from error
    raise ControlError(f"the gateway with the state folder {folder} has broken off its answer: try again")
