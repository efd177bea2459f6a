"""A whole gateway in this process, on a thread of its own: real broker, inside or outside, real sockets, real store."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import uvloop
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.acl.plugin import keeps
from gateway.administration import Administration
from gateway.credentials import Credentials
from gateway.links.local import LocalLink
from gateway.service import Service, build
from gateway.settings import load
from gateway.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.settings import Settings

PASSWORD = "correct horse"
INSIDE = "embedded://127.0.0.1:0"


class Inside:
    """A running gateway; `port` is where it listens, or where the broker at `url` does."""

    def __init__(self, folder: Path, settings: str, clients: tuple[str, ...], url: str = INSIDE) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "gateway.toml"
        self.state = folder / "state"
        self.path.write_text(f'state_dir = "{self.state}"\n{settings}')
        self.state.mkdir(exist_ok=True)
        foreign = keeps(load(self.path, {"CTXT_BROKER__URL": url}).acl.plugin)
        known = Credentials(self.state / "clients.db", foreign=foreign)
        there = {client.name for client in known.names()}
        for name in clients:
            if name not in there:
                known.add(name, PASSWORD)
        known.close()
        self._url = url
        self.service: Service | None = None
        self.problem: BaseException | None = None
        self._loop = uvloop.new_event_loop()
        self._started = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._started.wait(20)
        if self.problem is not None:
            raise self.problem

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        self._stop = asyncio.Event()
        service = None
        try:
            settings = self.settings()
            service = build(settings)
            self.administration = Administration(service, settings, self.settings)
            assert service.control is not None
            service.control.administrator = self.administration
            await service.start()
        except BaseException as error:
            self.problem = error
            if service is not None:
                await service.stop()
            self._started.set()
            return
        self.service = service
        self.port = service.address[1]
        self._started.set()
        await self._stop.wait()
        try:
            await service.stop()
        except StoreError as error:
            self.problem = error

    def settings(self) -> Settings:
        """The settings as the file says now."""
        return load(self.path, {"CTXT_BROKER__URL": self._url})

    def admin(self, do: str, **request: Any) -> list[dict[str, Any]]:
        """What the administrator asks for, and the answer once it holds."""
        asked = self.administration.answer({"do": do, **request})
        found: list[dict[str, Any]] = asyncio.run_coroutine_threadsafe(asked, self._loop).result(60)
        return found

    def call(self, act: Callable[[Service], Any]) -> Any:
        """Run something on the gateway's loop and wait for its result."""
        service = self.service
        assert service is not None

        async def run() -> Any:
            return act(service)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(20)

    def connected(self) -> set[str]:
        """The clients that are connected now."""

        def ask(service: Service) -> set[str]:
            assert isinstance(service._link, LocalLink)
            return service._link.broker.clients()

        found: set[str] = self.call(ask)
        return found

    def stop(self) -> None:
        if self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def inside(folder: Path, settings: str = "", *clients: str, url: str = INSIDE) -> Iterator[Inside]:
    gateway = Inside(folder, settings, clients or ("sensor", "dash", "mallory"), url)
    try:
        yield gateway
    finally:
        gateway.stop()


class Client:
    """A paho client that keeps what it hears."""

    def __init__(
        self,
        port: int,
        name: str | None,
        *,
        version: int = 5,
        client_id: str = "",
        will: Any = None,
        clean: bool | None = None,
        returns: bool = True,
        login: tuple[str, str] | None = None,
    ) -> None:
        """`returns`: a client that was refused or has lost its connection tries again; `login`: another name and password."""
        self.heard: list[tuple[str, bytes, int, bool]] = []
        self.reasons: dict[int, tuple[int, str]] = {}
        self.granted: dict[int, list[int]] = {}
        self.name = name
        self._news = threading.Condition()
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion(version),
            clean_session=clean,
            reconnect_on_failure=returns,
        )
        if name is not None or login is not None:
            self.paho.username_pw_set(*(login or (name, PASSWORD)))
        if will is not None:
            self.paho.will_set(*will)
        self.connected: int | None = None
        self.paho.on_connect = self._on_connect
        self.paho.on_message = self._on_message
        self.paho.on_publish = self._on_publish
        self.paho.on_subscribe = self._on_subscribe
        self.paho.on_disconnect = self._on_disconnect
        self._closed = False
        # A broker that is busy with something else may close a connection without an answer.
        assert any(self._connect(port, returns=returns) for _ in range(3)), f"{name} was given no answer"

    def _connect(self, port: int, *, returns: bool) -> bool:
        """Whether there was an answer; not where the connection was closed before, and nobody tries again."""
        self._closed = False
        self.paho.connect("127.0.0.1", port, keepalive=30)
        self.paho.loop_start()
        self.wait(lambda: self.connected is not None or (self._closed and not returns))
        if self.connected is None:
            self.paho.loop_stop()
            self.paho._reset_sockets()
        return self.connected is not None

    def _note(self, act: Callable[[], None]) -> None:
        with self._news:
            act()
            self._news.notify_all()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._note(lambda: setattr(self, "connected", reason.value))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, _reason: Any, _properties: Any) -> None:
        self._note(lambda: setattr(self, "_closed", True))

    def _on_message(self, _client: Any, _data: Any, message: Any) -> None:
        self._note(lambda: self.heard.append((message.topic, message.payload, message.qos, bool(message.retain))))

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, properties: Any) -> None:
        text = getattr(properties, "ReasonString", "") if properties is not None else ""
        self._note(lambda: self.reasons.__setitem__(mid, (reason.value, text)))

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, reasons: Any, _properties: Any) -> None:
        self._note(lambda: self.granted.__setitem__(mid, [reason.value for reason in reasons]))

    def wait(self, until: Callable[[], Any], seconds: float = 10.0) -> Any:
        deadline = time.monotonic() + seconds
        with self._news:
            while not (found := until()):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"waited {seconds} s in vain; heard {self.heard[-5:]}")
                self._news.wait(left)
        return found

    def subscribe(self, *filters: str, qos: int = 1) -> list[int]:
        _, mid = self.paho.subscribe([(topic_filter, qos) for topic_filter in filters])
        assert mid is not None
        self.wait(lambda: mid in self.granted)
        return self.granted[mid]

    def publish(
        self, topic: str, payload: Any, *, qos: int = 1, retain: bool = False, user: list[tuple[str, str]] | None = None
    ) -> tuple[int, str]:
        """Publish and wait for the acknowledgement: (reason code, reason string)."""
        properties = None
        if user is not None:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.UserProperty = user
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        info = self.paho.publish(topic, data, qos=qos, retain=retain, properties=properties)
        if qos == 0:
            return 0, ""
        self.wait(lambda: info.mid in self.reasons)
        return self.reasons.pop(info.mid)

    def report(self, url_path: str, payload: Any, **rest: Any) -> tuple[int, str]:
        name = self.name
        return self.publish(f"report/{name}/ctxt/home.local/{url_path}", payload, **rest)

    def request(self, kind: str, body: dict[str, Any], request_id: str = "1") -> dict[str, Any]:
        name = self.name
        self.subscribe(f"inbox/{name}")
        before = len(self.heard)
        self.publish(f"request/{name}", {"id": request_id, "type": kind, "body": body})
        answer: dict[str, Any] = self.wait(
            lambda: next(
                (m for m in self.messages(before) if m.get("id") == request_id and m.get("type") == "response"), None
            )
        )
        return answer

    def messages(self, since: int = 0) -> list[dict[str, Any]]:
        return [json.loads(payload) for _, payload, _, _ in self.heard[since:] if payload]

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()
        # Its own pair of sockets is else closed whenever the interpreter comes to it, and complained about.
        self.paho._reset_sockets(sockpair_only=True)

    def drop(self) -> None:
        """Cut the connection without a DISCONNECT."""
        self.paho.loop_stop()
        sock = self.paho.socket()
        if sock is not None:
            sock.close()
        self.paho._reset_sockets(sockpair_only=True)


@contextlib.contextmanager
def clients(port: int, *names: str, **rest: Any) -> Iterator[list[Client]]:
    made: list[Client] = []
    try:
        for name in names:
            made.append(Client(port, name, **rest))  # noqa: PERF401  # those made before one fails are closed
        yield made
    finally:
        for client in made:
            with contextlib.suppress(Exception):
                client.close()
