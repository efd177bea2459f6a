"""The web listener: HTTP in the gateway's own process and event loop. Other rooms mount what it serves.

uvicorn speaks the protocol; what it leaves unbounded (the time and size of a request's head, connections) is bounded here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.web.errors import BodyError, WebError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, MutableMapping

    Message = MutableMapping[str, Any]
    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

CONNECTIONS = 512
"""Connections at a time; a further one is closed at once."""

HEAD_BYTES = 32 << 10
HEAD_SECONDS = 10.0
"""What a request's head may have and take: uvicorn asks neither."""

KEEP_ALIVE = 75
"""Seconds that a connection may be idle between two requests."""

BODY_SECONDS = 10.0
"""Seconds that a body may take."""

STOP = 2.0
"""Seconds that requests have to end when the gateway stops."""


async def body(receive: Receive, most: int) -> bytes:
    """A request's whole body. Raises BodyError."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BodyError(400, "the request was cut off")
                part = message.get("body", b"")
                size += len(part)
                if size > most:
                    raise BodyError(413, f"the body has more than {most:,} bytes")
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise BodyError(408, f"the body did not come within {BODY_SECONDS:g} s") from None


async def answer(send: Send, status: int, content_type: bytes, content: bytes) -> None:
    """One whole answer, that nobody keeps."""
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(content)),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._head = 0
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._patiently()

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._waiting is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._patiently()

    def on_headers_complete(self) -> None:
        self._calm()
        super().on_headers_complete()

    def _patiently(self) -> None:
        self._calm()
        self._head = 0
        self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _calm(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the gateway's."""
        yield


class Web:
    """One listener; what is mounted under a name answers for the paths below it."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._apps: dict[str, App] = {}
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.address = (host, port)

    def mount(self, name: str, app: App) -> None:
        """Let an ASGI application answer for `/{name}/…`."""
        self._apps[name] = app

    async def start(self) -> None:
        """Listen. Raises WebError."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setblocking(False)
            listening.bind((self._host, self._port))
        except OSError as error:
            listening.close()
            raise WebError(
                f"cannot listen on {self._host} port {self._port}: {error.strerror or error}; set another port in web.listen"
            ) from error
        self.address = listening.getsockname()[:2]
        # What it says of its life is of no use to the gateway's log.
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=int(STOP),
        )
        self._server = _Server(config)
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listening]))
        while not self._server.started and not self._task.done():  # noqa: ASYNC110  # once in a life
            await asyncio.sleep(0.001)
        if self._task.done():
            raise WebError(f"the web listener has ended at its start: {self._task.exception()!r}")

    async def stop(self) -> None:
        """Let requests end, close."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._task, STOP + 1)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._apps.get(scope["path"].split("/", 2)[1])
        if app is None:
            await answer(send, 404, b"text/plain; charset=utf-8", b"there is nothing here\n")
            return
        await app(scope, receive, send)
