"""The asyncio edge: packets of aiomqtt's connections in and out of a `Core`."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

import aiomqtt
from aiomqtt.client import ProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.client.core import FIRST_PAUSE, LONGEST_PAUSE, MOST_ON_THEIR_WAY, STABLE, Core, Verdict
from gateway.client.errors import ClientError, NotConnectedError, RefusedError
from gateway.client.promise import CancelledError
from gateway.client.properties import properties_of
from gateway.client.reading import close_failed_handshakes, read_fast, send_at_once
from gateway.client.sentences import lost_connection, refused_connection
from gateway.ulid import ulid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    import paho.mqtt.client as paho

    from gateway.client.outbox import Outbox
    from gateway.client.promise import Promise
    from gateway.client.target import Target

T = TypeVar("T")

QUIET = logging.getLogger("gateway.client.mqtt")
QUIET.setLevel(logging.CRITICAL)
"""Where paho-mqtt and aiomqtt log to: whatever matters is raised or told."""

_PROTOCOLS = {"5": ProtocolVersion.V5, "3.1.1": ProtocolVersion.V311}
_dice = random.SystemRandom()


class Mqtt(aiomqtt.Client):
    """aiomqtt's connection that also tells what it drops itself: the packet ids and what PUBACK and SUBACK say."""

    core: Core | None = None
    """Who gets the packets; without one it is aiomqtt's client as it is, but for `verdict`."""
    verdict = Verdict()
    """What the last PUBACK said."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ended = asyncio.Event()
        self._thread = threading.get_ident()

    async def __aenter__(self) -> Self:
        """Connect. Who is cancelled meanwhile leaves no socket behind, as aiomqtt would."""
        try:
            return await super().__aenter__()
        except (asyncio.CancelledError, aiomqtt.MqttError):
            self.lose()
            raise

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        send_at_once(sock)
        super()._on_socket_open(client, userdata, sock)

    def _on_socket_register_write(self, client: paho.Client, _userdata: Any, sock: Any) -> None:
        """As aiomqtt does, but never for a socket that was closed meanwhile: its number may be another connection's by then."""

        def write() -> None:
            try:
                client.loop_write()
            except OSError:
                self._ended.set()

        def register() -> None:
            number = sock.fileno()
            if client.socket() is sock and number >= 0:
                self._loop.add_writer(number, write)

        if threading.get_ident() == self._thread:
            register()
        else:
            # paho-mqtt connects on a thread of the executor.
            self._loop.call_soon_threadsafe(register)

    def _on_connect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        first = not self._connected.done()
        super()._on_connect(client, userdata, flags, reason_code, properties)
        if first and self.core is not None and reason_code.value == 0:
            self.core.opened(
                getattr(properties, "MaximumPacketSize", None), getattr(properties, "ReceiveMaximum", None)
            )

    def _on_disconnect(
        self, client: paho.Client, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        if not self._connected.done():
            # aiomqtt would wait for the CONNACK until its time is over.
            self._connected.set_exception(aiomqtt.MqttError("the connection was closed before it was answered"))
        elif not self._connected.cancelled():
            super()._on_disconnect(client, userdata, flags, reason_code, properties)
            if self._disconnected.done() and not self._disconnected.cancelled():
                # Whoever waits is told by `gone`; nobody else has to look at it.
                self._disconnected.exception()
        self._ended.set()

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        verdict = Verdict.of(reason_code.value, str(getattr(properties, "ReasonString", "") or ""))
        self.verdict = verdict
        if self.core is None:
            super()._on_publish(client, userdata, mid, reason_code, properties)
        else:
            self.core.acknowledged(mid, verdict)

    def _on_subscribe(
        self, client: paho.Client, userdata: Any, mid: int, reason_codes: list[Any], properties: Any = None
    ) -> None:
        if self.core is None:
            super()._on_subscribe(client, userdata, mid, reason_codes, properties)
        else:
            self.core.subscribed(mid, [code.value for code in reason_codes])

    def _on_unsubscribe(
        self, client: paho.Client, userdata: Any, mid: int, reason_codes: list[Any], properties: Any = None
    ) -> None:
        if self.core is None:
            super()._on_unsubscribe(client, userdata, mid, reason_codes, properties)

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        if self.core is None:
            super()._on_message(client, userdata, message)
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self.core.received(topic, bytes(message.payload))

    def lose(self) -> None:
        """Break the connection as a dead battery does: no DISCONNECT."""
        sock: Any = self._client.socket()
        shutdown = getattr(sock, "shutdown", None)
        if shutdown is not None:
            with suppress(OSError):
                shutdown(socket.SHUT_RDWR)

    async def gone(self) -> None:
        """Wait until the connection has ended.

        aiomqtt forgets the end that comes in the moment between CONNACK and `__aenter__`, and what reading raised is no end to paho-mqtt.
        """
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            await asyncio.wait((ended, self._disconnected), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self._disconnected.done() and not self._disconnected.cancelled():
            self._disconnected.exception()

    def send(self, topic: str, payload: bytes, retain: bool, properties: Any) -> int:
        """Publish at QoS 1 without waiting. Raises NotConnectedError."""
        if not self._client.is_connected():
            # paho-mqtt would keep it for a connection that never comes.
            raise NotConnectedError("the connection is lost")
        info = self._client.publish(topic, payload, 1, retain, properties)
        if info.rc != 0:
            raise NotConnectedError("the connection is lost")
        return info.mid

    def ask_for(self, filters: Sequence[str], *, old: bool) -> int:
        """Subscribe at QoS 1 without waiting. Raises NotConnectedError."""
        wanted: Any = [(each, 1 if old else SubscribeOptions(qos=1)) for each in filters]
        result, mid = self._client.subscribe(wanted)
        if result != 0 or mid is None:
            raise NotConnectedError("the connection is lost")
        return mid

    def give_up(self, filters: Sequence[str]) -> None:
        """Unsubscribe without waiting."""
        self._client.unsubscribe(list(filters))


def mqtt(
    target: Target,
    *,
    timeout: float,
    will: aiomqtt.Will | None = None,
    keepalive: int = 60,
    protocol: str = "5",
    tls: ssl.SSLContext | None = None,
    client_id: str | None = None,
) -> Mqtt:
    """A connection for `async with`: nothing is connected yet. Must be called in the event loop."""
    old = protocol == "3.1.1"
    web = target.scheme in ("ws", "wss")
    return Mqtt(
        target.host,
        target.port,
        username=target.name,
        password=target.password,
        identifier=client_id or f"ctxt-{ulid(time.time())}",
        protocol=_PROTOCOLS[protocol],
        clean_session=True if old else None,
        clean_start=3 if old else True,
        transport="websockets" if web else "tcp",
        websocket_path=target.path if web else None,
        tls_context=(tls or ssl.create_default_context()) if target.encrypted else None,
        will=will,
        max_inflight_messages=MOST_ON_THEIR_WAY,
        keepalive=keepalive,
        timeout=timeout,
        logger=QUIET,
    )


async def overhear(
    target: Target, filters: Sequence[str], *, timeout: float, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, bytes, bool]]:
    """Everything that arrives on topic filters, anybody's: topic, payload, RETAIN. No gateway is needed.

    `timeout`: seconds to connect and to subscribe. Raises RefusedError (403) for a filter that may not be read, NotConnectedError.
    """
    client = mqtt(target, timeout=timeout, tls=tls)
    client._client.connect_timeout = timeout
    close_failed_handshakes(client._client)
    try:
        async with client:
            for each in filters:
                code: Any = (await client.subscribe(each, qos=1))[0]
                if getattr(code, "value", code) >= 0x80:
                    raise RefusedError(
                        403, f"{target.client!r} may not read {each}: a [[topic]] rule of the settings opens it"
                    )
            async for message in client.messages:
                yield str(message.topic), bytes(message.payload), bool(message.retain)
    except aiomqtt.MqttError as error:
        reason: Any = getattr(error, "rc", None)
        if client._connected.done() and client._connected.exception() is None:
            raise lost_connection(target) from error
        raise refused_connection(target, error, getattr(reason, "value", None), timeout) from error


class Connection:
    """Keeps a `Core` connected from `start` to `stop`, and drives its coroutines for tasks."""

    def __init__(
        self,
        target: Target,
        *,
        timeout: float,
        keepalive: int = 30,
        protocol: str = "5",
        presence: bool = True,
        outbox: Outbox | None = None,
        tls: ssl.SSLContext | None = None,
        client_id: str | None = None,
        topic_escape: str = "",
    ) -> None:
        self.core = Core(
            self,
            target,
            timeout=timeout,
            presence=presence,
            outbox=outbox,
            replies=protocol == "5",
            escape=topic_escape,
        )
        self._target = target
        self._timeout = timeout
        self._keepalive = keepalive
        self._protocol = protocol
        self._tls = tls
        self._client_id = client_id
        self._loop = asyncio.get_running_loop()
        self._mqtt: Mqtt | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    # ---- what the core needs -------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds of a clock that never goes back."""
        return self._loop.time()

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], object]:
        """Call in so many seconds."""
        return self._loop.call_later(seconds, call).cancel

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        retain: bool = False,
        response_topic: str | None = None,
        correlation: bytes | None = None,
        number: str | None = None,
    ) -> int:
        """Send at QoS 1."""
        old = self._protocol == "3.1.1"
        properties = None if old else properties_of(response_topic, correlation, number)
        return self._open().send(topic, payload, retain, properties)

    def subscribe(self, filters: Sequence[str]) -> int:
        """Send one SUBSCRIBE."""
        return self._open().ask_for(filters, old=self._protocol == "3.1.1")

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Send one UNSUBSCRIBE."""
        self._open().give_up(filters)

    def lose(self) -> None:
        """Break the connection."""
        if self._mqtt is not None:
            self._mqtt.lose()

    def _open(self) -> Mqtt:
        if self._mqtt is None:
            raise NotConnectedError(f"there is no connection to {self._target.where}")
        return self._mqtt

    # ---- coming and going ----------------------------------------------------------------------------------------------

    async def start(self, *, wait: bool) -> None:
        """Connect. `wait` goes on trying where the broker is not there; else raises NotConnectedError, NoAnswerError."""
        first: asyncio.Future[None] = self._loop.create_future()
        self._task = asyncio.create_task(self._stay(first if not wait else None))
        if wait:
            return
        try:
            await first
            await self.run(self.core.ready(self._timeout))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Disconnect, and leave nothing behind."""
        if self.core.closed:
            return
        self.core.close()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _stay(self, first: asyncio.Future[None] | None) -> None:
        """Connect, and connect again whenever the connection is lost."""
        pause = FIRST_PAUSE
        while True:
            begun = self._loop.time()
            error = await self._once(first)
            if first is not None:
                if not first.done():
                    first.set_exception(error)
                    return
                first = None
            if self._loop.time() - begun > STABLE:
                pause = FIRST_PAUSE
            wait = pause * (0.5 + _dice.random() / 2)
            pause = min(2 * pause, LONGEST_PAUSE)
            self.core.lost(error, wait)
            await asyncio.sleep(wait)

    async def _once(self, first: asyncio.Future[None] | None) -> ClientError:
        """One connection until it ends; why it did."""
        target = self._target
        will = None
        if self.core.presence:
            will = aiomqtt.Will(self.core.topic(f"presence/{target.name}"), b"offline", qos=1, retain=True)
        client = mqtt(
            target,
            timeout=self._timeout,
            will=will,
            keepalive=self._keepalive,
            protocol=self._protocol,
            tls=self._tls,
            client_id=self._client_id,
        )
        client.core = self.core
        client._client.connect_timeout = self._timeout
        close_failed_handshakes(client._client)
        read_fast(client._client, self.core.received, old=self._protocol == "3.1.1")
        self._mqtt = client
        try:
            await client.__aenter__()
            if first is not None and not first.done():
                first.set_result(None)
            await client.gone()
        except aiomqtt.MqttError as error:
            code: Any = getattr(error, "rc", None)
            return refused_connection(target, error, getattr(code, "value", None), self._timeout)
        except asyncio.CancelledError:
            with suppress(aiomqtt.MqttError, Exception):
                await asyncio.shield(_leave(client))
            raise
        finally:
            self._mqtt = None
        with suppress(Exception):
            await client.__aexit__(None, None, None)
        return lost_connection(target)

    # ---- tasks ---------------------------------------------------------------------------------------------------------

    async def run(self, coroutine: Coroutine[Promise[Any], Any, T]) -> T:
        """Do the core's work for a task: its cancellation ends the work too."""
        driven = self.core.begin(coroutine)
        if driven.done:
            return driven.result()
        future: asyncio.Future[None] = self._loop.create_future()

        def done(_promise: Promise[Any]) -> None:
            if not future.done():
                future.set_result(None)

        driven.then(done)
        try:
            await future
        except asyncio.CancelledError:
            driven.forget(done)
            driven.cancel()
            raise
        try:
            return driven.result()
        except CancelledError:
            raise NotConnectedError(f"the connection to {self._target.where} is closed") from None


async def _leave(client: Mqtt) -> None:
    if client._connected.done() and not client._connected.cancelled():
        await client.__aexit__(None, None, None)
