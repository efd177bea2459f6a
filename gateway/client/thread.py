"""The blocking edge: packets of paho-mqtt's connections in and out of a `Core`, on one thread of its own."""

from __future__ import annotations

import heapq
import random
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.client.core import FIRST_PAUSE, LOG, LONGEST_PAUSE, MOST_ON_THEIR_WAY, STABLE, Core, Verdict
from gateway.client.errors import ClientError, NotConnectedError, UsageError
from gateway.client.promise import CancelledError
from gateway.client.properties import properties_of
from gateway.client.reading import close_failed_handshakes, read_fast, send_at_once
from gateway.client.sentences import lost_connection, refused_connection
from gateway.ulid import ulid

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from gateway.client.outbox import Outbox
    from gateway.client.promise import Promise
    from gateway.client.target import Target

T = TypeVar("T")

CALLS = 10_000
"""Callbacks that wait for their thread; then the oldest make room."""

LOOK = 1.0
"""Seconds between two looks at whether the thread that works for others is still there."""

MISC = 1.0
"""Seconds between two looks at the keep-alive."""

_dice = random.SystemRandom()


class Connection:
    """Keeps a `Core` connected from `start` to `stop`, on a thread of its own; any other thread may `run` its coroutines."""

    def __init__(  # what an application may choose
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
        self._old = protocol == "3.1.1"
        self._tls = tls
        self._client_id = client_id
        self._mqtt: paho.Client | None = None
        self._first: Waiter | None = None
        self._pause = FIRST_PAUSE
        self._begun = 0.0
        self._admitted = False
        self._stopping = False
        self._jobs: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, list[Callable[[], None]]]] = []
        self._order = count()
        self._selector = selectors.DefaultSelector()
        self._listening, self._bell = socket.socketpair()
        self._listening.setblocking(False)
        self._bell.setblocking(False)
        self._selector.register(self._listening, selectors.EVENT_READ)
        self._socket: Any = None
        self._thread = threading.Thread(target=self._live, name="ctxt-client", daemon=True)
        self._calls: deque[tuple[Callable[[Any], None], Any]] = deque(maxlen=CALLS)
        self._called = threading.Condition()
        self._caller: threading.Thread | None = None

    # ---- what the core needs -------------------------------------------------------------------------------------------

    def time(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def later(self, seconds: float, call: Callable[[], None]) -> Callable[[], object]:
        """Call in so many seconds."""
        entry = [call]
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), entry))
        return entry.clear

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
        properties = None if self._old else properties_of(response_topic, correlation, number)
        client = self._open()
        if not client.is_connected():
            # paho-mqtt would keep it for a connection that never comes.
            raise NotConnectedError(f"the connection to {self._target.where} was lost")
        info = client.publish(topic, payload, 1, retain, properties)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise NotConnectedError(f"the connection to {self._target.where} was lost")
        return info.mid

    def subscribe(self, filters: Sequence[str]) -> int:
        """Send one SUBSCRIBE."""
        wanted: Any = [(each, 1 if self._old else SubscribeOptions(qos=1)) for each in filters]
        result, packet = self._open().subscribe(wanted)
        if result != paho.MQTT_ERR_SUCCESS or packet is None:
            raise NotConnectedError(f"the connection to {self._target.where} was lost")
        return packet

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Send one UNSUBSCRIBE."""
        self._open().unsubscribe(list(filters))

    def lose(self) -> None:
        """Break the connection."""
        shutdown = getattr(self._socket, "shutdown", None)
        if shutdown is not None:
            with suppress(OSError):
                shutdown(socket.SHUT_RDWR)

    def _open(self) -> paho.Client:
        if self._mqtt is None:
            raise NotConnectedError(f"there is no connection to {self._target.where}")
        return self._mqtt

    # ---- coming and going ----------------------------------------------------------------------------------------------

    def start(self, *, wait: bool) -> None:
        """Connect. `wait` goes on trying where the broker is not there; else raises NotConnectedError, NoAnswerError."""
        first = Waiter()
        if not wait:
            self._first = first
        self._thread.start()
        self._post(self._dial)
        if wait:
            return
        try:
            first.wait()
            self.run(self.core.ready(self._timeout))
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Disconnect, and leave nothing behind."""
        if self._stopping:
            return
        self._stopping = True
        self._post(self.core.close)
        with self._called:
            self._called.notify_all()
        for thread in (self._thread, self._caller):
            if thread is not None and thread is not threading.current_thread() and thread.ident is not None:
                thread.join()

    def _dial(self) -> None:
        """Begin to connect. DNS, TCP and TLS take time: that is a thread's work."""
        if self._stopping:
            return
        target = self._target
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id or f"ctxt-{ulid(time.time())}",
            protocol=MQTTProtocolVersion.MQTTv311 if self._old else MQTTProtocolVersion.MQTTv5,
            clean_session=True if self._old else None,
            transport="websockets" if target.scheme in ("ws", "wss") else "tcp",
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._timeout
        client.max_inflight_messages_set(MOST_ON_THEIR_WAY)
        close_failed_handshakes(client)
        read_fast(client, self.core.received, old=self._old)
        if target.name is not None:
            client.username_pw_set(target.name, target.password)
        if target.encrypted:
            client.tls_set_context(self._tls or ssl.create_default_context())
        if target.scheme in ("ws", "wss"):
            client.ws_set_options(path=target.path)
        if self.core.presence:
            client.will_set(self.core.topic(f"presence/{target.name}"), b"offline", 1, retain=True)
        client.on_socket_open = lambda _client, _userdata, sock: send_at_once(sock)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_close = self._on_socket_close
        self._admitted = False
        self._begun = time.monotonic()
        threading.Thread(target=self._connect, args=(client,), name="ctxt-client-dial", daemon=True).start()

    def _connect(self, client: paho.Client) -> None:
        try:
            if self._old:
                client.connect(self._target.host, self._target.port, self._keepalive)
            else:
                client.connect(self._target.host, self._target.port, self._keepalive, clean_start=True)
        except (OSError, ValueError, paho.WebsocketConnectionError) as error:
            failure = error
            self._post(lambda: self._failed(client, refused_connection(self._target, failure, None, self._timeout)))
        else:
            self._post(lambda: self._dialled(client))

    def _dialled(self, client: paho.Client) -> None:
        """CONNECT is sent."""
        sock = client.socket()
        if self._stopping or sock is None:
            if sock is None and not self._stopping:
                closed = ConnectionError("the connection was closed before it was answered")
                self._failed(client, refused_connection(self._target, closed, None, self._timeout))
            else:
                client.disconnect()
            return
        self._mqtt, self._socket = client, sock
        self._selector.register(sock, selectors.EVENT_READ)
        self._misc()

        def late() -> None:
            if self._mqtt is client and not self._admitted:
                self._failed(client, refused_connection(self._target, TimeoutError("timed out"), None, self._timeout))
                self._drop(client)

        self.later(self._timeout, late)

    def _misc(self) -> None:
        """Keep the connection alive, or find out that it is not."""
        client = self._mqtt
        if client is not None and client.loop_misc() == paho.MQTT_ERR_SUCCESS:
            self.later(MISC, self._misc)

    def _drop(self, client: paho.Client) -> None:
        """Close a connection that is of no use."""
        if self._socket is not None:
            self._on_socket_close(client, None, self._socket)
        sock = client.socket()
        if sock is not None:
            sock.close()

    def _failed(self, client: paho.Client, error: ClientError) -> None:
        """The connection did not come about, or has gone: dial again later."""
        if self._mqtt not in (None, client) or self._stopping:
            return
        self._mqtt = None
        first, self._first = self._first, None
        if first is not None:
            first.fail(error)
            return
        if time.monotonic() - self._begun > STABLE:
            self._pause = FIRST_PAUSE
        wait = self._pause * (0.5 + _dice.random() / 2)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self.core.lost(error, wait)
        self.later(wait, self._dial)

    # ---- paho's callbacks, all on the core's thread once it is dialled ----------------------------------------------------

    def _on_connect(self, client: paho.Client, _userdata: Any, _flags: Any, code: Any, properties: Any) -> None:
        if self._admitted or client is not self._mqtt:
            return
        if code.value != 0:
            self._failed(
                client, refused_connection(self._target, ConnectionError(str(code)), code.value, self._timeout)
            )
            self._drop(client)
            return
        self._admitted = True
        first, self._first = self._first, None
        self.core.opened(getattr(properties, "MaximumPacketSize", None), getattr(properties, "ReceiveMaximum", None))
        if first is not None:
            first.keep()

    def _on_disconnect(self, client: paho.Client, _userdata: Any, _flags: Any, _code: Any, _properties: Any) -> None:
        if client is not self._mqtt:
            return
        if self._admitted:
            self._failed(client, lost_connection(self._target))
        else:
            closed = ConnectionError("the connection was closed before it was answered")
            self._failed(client, refused_connection(self._target, closed, None, self._timeout))

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self.core.received(topic, bytes(message.payload))

    def _on_publish(self, _client: paho.Client, _userdata: Any, packet: int, code: Any, properties: Any) -> None:
        text = str(getattr(properties, "ReasonString", "") or "")
        self.core.acknowledged(packet, Verdict.of(code.value, text))

    def _on_subscribe(self, _client: paho.Client, _userdata: Any, packet: int, codes: Any, _properties: Any) -> None:
        self.core.subscribed(packet, [code.value for code in codes])

    def _on_socket_close(self, _client: paho.Client, _userdata: Any, sock: Any) -> None:
        if sock is self._socket:
            self._socket = None
            with suppress(KeyError, ValueError):
                self._selector.unregister(sock)

    # ---- the thread ----------------------------------------------------------------------------------------------------

    def _post(self, job: Callable[[], None]) -> None:
        """Do it on the core's thread."""
        self._jobs.append(job)
        with suppress(BlockingIOError, OSError):
            self._bell.send(b"!")

    def _live(self) -> None:
        try:
            while not (self._stopping and not self._jobs):
                self._turn()
        finally:
            client, self._mqtt = self._mqtt, None
            if client is not None:
                client.disconnect()
                self._drop(client)
            self._selector.close()
            self._listening.close()
            self._bell.close()

    def _turn(self) -> None:
        client, sock = self._mqtt, self._socket
        if client is not None and sock is not None:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
            self._selector.modify(sock, wanted)
        now = time.monotonic()
        until = None if not self._timers else max(0.0, self._timers[0][0] - now)
        for key, events in self._selector.select(0.0 if self._jobs else until):
            if key.fileobj is self._listening:
                with suppress(BlockingIOError):
                    while self._listening.recv(4096):
                        pass
            elif client is not None and key.fileobj is sock:
                if events & selectors.EVENT_READ:
                    client.loop_read()
                    while self._socket is sock and hasattr(sock, "pending") and sock.pending():
                        client.loop_read()
                if events & selectors.EVENT_WRITE and self._socket is sock:
                    client.loop_write()
        for _ in range(len(self._jobs)):
            self._jobs.popleft()()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, entry = heapq.heappop(self._timers)
            for call in entry:
                call()

    # ---- other threads -------------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Promise[Any], Any, T]) -> T:
        """Do the core's work for the calling thread, and wait for it; Ctrl-C ends the work too."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise UsageError("this cannot be called from here: it would wait for itself")
        if self._stopping:
            coroutine.close()
            raise NotConnectedError(f"the connection to {self._target.where} is closed")
        waiter = Waiter()
        driven: list[Any] = []

        def begin() -> None:
            driven.append(self.core.begin(coroutine))
            driven[0].then(lambda _promise: waiter.keep())

        self._post(begin)
        try:
            while not waiter.wait(LOOK):
                if not self._thread.is_alive():
                    raise NotConnectedError(f"the connection to {self._target.where} is closed")
        except BaseException:
            self._post(lambda: driven[0].cancel() if driven else None)
            raise
        try:
            result: T = driven[0].result()
        except CancelledError:
            raise NotConnectedError(f"the connection to {self._target.where} is closed") from None
        return result

    def do(self, work: Callable[[], T]) -> T:
        """Run a function on the core's thread, and return what it returns."""

        async def once() -> T:
            return work()

        return self.run(once())

    def call(self, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """What hands events to the callback on the thread for callbacks, one after the other."""
        if self._caller is None:
            self._caller = threading.Thread(target=self._call_back, name="ctxt-client-callbacks", daemon=True)
            self._caller.start()

        def hand(event: Any) -> None:
            with self._called:
                self._calls.append((callback, event))
                self._called.notify()

        return hand

    def _call_back(self) -> None:
        while True:
            with self._called:
                while not self._calls:
                    if self._stopping:
                        return
                    self._called.wait()
                callback, event = self._calls.popleft()
            try:
                callback(event)
            except Exception:  # noqa: BLE001 - whatever an application's callback does
                LOG.exception("a callback failed")


class Waiter:
    """One thread waits, another one tells; os-level interrupts come through."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._error: BaseException | None = None

    def keep(self) -> None:
        """It has come about."""
        self._event.set()

    def fail(self, error: BaseException) -> None:
        """It has not."""
        self._error = error
        self._event.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it has come about within so many seconds. Raises what it failed with."""
        done = self._event.wait(seconds)
        if self._error is not None:
            raise self._error
        return done
