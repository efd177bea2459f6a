"""The MQTT server: listeners, admission, sessions, and the turn.

The turn: every socket that is readable in one poll hands its owned publishes to one list; one callback gives that list to the
house, and then each connection that has something to say is written to once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING

from gateway.broker import statistics
from gateway.broker.connection import HOUSE, WINDOW, Connection
from gateway.broker.counters import Counters
from gateway.broker.house import Login, Refusal
from gateway.broker.journal import FORWARD, Journal, Record
from gateway.broker.listeners import Listener, Opened, address_group, open_listener
from gateway.broker.retained import Kept, Retained
from gateway.broker.session import UNLIMITED, Message, Session, Tracked, make
from gateway.broker.strangers import Strangers
from gateway.broker.subscriptions import Entry, Route, Subscriptions, identifier_properties
from gateway.topics import matches, split_share, valid_filter, valid_name
from gateway.wire.codec import Decoder, encode, encode_puback, publish_parts
from gateway.wire.errors import MalformedPacket
from gateway.wire.packets import Connack, Property, Publish, Reason, Suback, Unsuback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gateway.broker.house import House, Limits
    from gateway.broker.session import Found
    from gateway.broker.subscriptions import Share
    from gateway.broker.websocket import WebSocket
    from gateway.sessions import KeptMessage, Restored
    from gateway.wire.packets import Connect, Properties, Subscribe, Subscription, Unsubscribe, Will

__all__ = ["Broker", "Counters", "Route"]

TICK = 0.5
"""Seconds between two looks at the clock: keep-alives, connect time-outs, lingering sockets."""

SWEEP = 10
"""Ticks between two looks for absent sessions and retained messages that have expired."""

SLICE = 64
TURN = 256
"""Retained messages looked at for one session, for all sessions, before everything else has its turn again."""

STOP = 3.0
"""Seconds that clients have to close their side when the broker stops."""

RESTORED = -2
"""The generation of rights under which a message of an earlier run was judged: none that there is."""

LEFT_BEHIND = (
    Property.MESSAGE_EXPIRY_INTERVAL,
    Property.SUBSCRIPTION_IDENTIFIER,
    Property.TOPIC_ALIAS,
    Property.WILL_DELAY_INTERVAL,
)
"""Properties of an incoming PUBLISH or will that are not simply passed on."""


class Broker:
    """The MQTT broker inside. Everything happens on the event loop on which `listen` was called first."""

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        house: House,
        limits: Limits,
        *,
        version: str = "",
        keep_sessions: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.wall = wall
        self.house = house
        self.limits = limits
        self.version = version
        self.clock = clock
        self._began = clock()
        self._told = self._began
        self.counters = Counters()
        self.strangers = Strangers()
        self.sessions: dict[tuple[str, str], Session] = {}
        self.subscriptions = Subscriptions(limits.routes)
        self._renew = self.renew
        self.retained = Retained(limits.retained_messages, limits.retained_bytes)
        self.journal = Journal(clock) if keep_sessions else None
        self.batch: list[Publish] = []
        self.throttled: set[Connection] = set()
        self.queued = 0
        self.paused = False
        self._stopping = False
        self._opened: list[Opened] = []
        self._connections: set[Connection] = set()
        self._ending: dict[Connection, float] = {}
        self.guests: set[WebSocket] = set()
        self._sockets = 0
        self._addresses: dict[str, int] = {}
        self._clients: dict[str, set[Session]] = {}
        self._absent: dict[Session, float] = {}
        self._wills: dict[Session, tuple[float, Will]] = {}
        self._kept: dict[str, int] = {}
        self._dirty: list[Connection] = []
        self._scheduled = False
        self._hungry: deque[Session] = deque()
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._gone: asyncio.Future[None] | None = None

    # ---- life ----------------------------------------------------------------------------------------------------------

    async def listen(self, host: str | None, port: int, *, name: str = "tcp") -> tuple[str, int]:
        """Accept plain connections at an address (port 0: a free one); the address bound. Raises OSError."""
        return (await self.open(Listener(name, "mqtt", host, port))).address

    async def open(self, listener: Listener) -> Opened:
        """Accept connections as a listener says. Raises OSError for its address, ListenError for its files."""
        self.loop = asyncio.get_running_loop()
        opened = await open_listener(self, listener)
        self._opened.append(opened)
        if self._timer is None:
            self._timer = self.loop.call_later(TICK, self._tick)
        return opened

    async def stop(self) -> None:
        """Close the listeners, disconnect every client (0x8B) and wait for them. No will fires, the house is not told."""
        self._stopping = True
        self._wills.clear()
        for opened in self._opened:
            opened.close()
        for guest in list(self.guests):
            guest.abort()
        for connection in list(self._connections):
            connection.end(Reason.SERVER_SHUTTING_DOWN)
        if self._sockets:
            self._gone = self.loop.create_future()
            # A client that does not close its side is not waited for.
            abort = self.loop.call_later(STOP, self._abort_all)
            await self._gone
            abort.cancel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for opened in self._opened:
            await opened.wait_closed()
        self._opened.clear()

    def _abort_all(self) -> None:
        for connection in list(self._connections):
            connection.transport.abort()

    def enter(self, address: str) -> bool:
        """Count a new socket for an address, or refuse it because there are too many. "" is a Unix socket."""
        count = self._addresses.get(address, 0)
        if self._stopping or self._sockets >= self.limits.connections:
            self.counters.refused_connections += 1
            return False
        if address and count >= self.limits.connections_per_address:
            self.counters.refused_per_address += 1
            return False
        self._addresses[address] = count + 1
        self._sockets += 1
        self.counters.connections = self._sockets
        return True

    def enter_by(self, transport: asyncio.BaseTransport) -> str | None:
        """`enter` for the address at the other end; which one that is, or None where there are too many."""
        name = transport.get_extra_info("peername")
        address = address_group(str(name[0])) if isinstance(name, tuple) else ""
        return address if self.enter(address) else None

    def leave(self, address: str) -> None:
        """A socket that was counted has closed."""
        count = self._addresses[address] - 1
        if count:
            self._addresses[address] = count
        else:
            del self._addresses[address]
        self._sockets -= 1
        self.counters.connections = self._sockets
        if self._gone is not None and not self._sockets and not self._gone.done():
            self._gone.set_result(None)

    def connected(self, connection: Connection) -> bool:
        """A new connection, counted here where its socket has not been yet; False: there are too many."""
        if connection.entered is None:
            address = address_group(connection.peer.address)
            if not self.enter(address):
                return False
            connection.entered = address
        self._connections.add(connection)
        return True

    def disconnected(self, connection: Connection) -> None:
        """A socket has closed."""
        self._connections.discard(connection)
        self._ending.pop(connection, None)
        self.throttled.discard(connection)
        address, connection.entered = connection.entered, None
        if address is not None:
            self.leave(address)

    @property
    def connected_sessions(self) -> int:
        """Sessions that have a connection now."""
        return len(self.sessions) - len(self._absent)

    def clients(self) -> set[str]:
        """Names of the clients that are connected."""
        return set(self._clients)

    def disconnect(
        self,
        client: str,
        reason: int,
        text: str | None = None,
        *,
        keep: Callable[[Login], bool] | None = None,
    ) -> int:
        """Disconnect the connections of a client, all or those whose log-ins are not to be kept; how many they were."""
        count = 0
        for session in list(self._clients.get(client, ())):
            connection = session.connection
            login = None if connection is None else connection.login
            if connection is not None and (keep is None or login is None or not keep(login)):
                connection.end(reason, text)
                count += 1
        return count

    def withhold(self, client: str) -> int:
        """Nothing that was judged before now reaches a client any more: connections that hold some of it are cut; how many.

        What the operating system has taken is on its way. The session stays, and what waits in it is judged again.
        """
        connections = [session.connection for session in self._clients.get(client, ())]
        return sum(connection.withhold() for connection in connections if connection is not None)

    def reread_certificates(self) -> Callable[[], None]:
        """Read the listeners' certificates now; what is returned takes them over, for new connections. Raises ListenError."""
        taken = [opened.certificates.reread() for opened in self._opened if opened.certificates is not None]

        def take() -> None:
            for each in taken:
                each()

        return take

    def certificate_ends(self) -> dict[str, float]:
        """Of each listener with TLS until when its certificate is good, Unix seconds."""
        found = ((opened.listener.name, opened.certificates) for opened in self._opened)
        return {name: own.expires for name, own in found if own is not None and own.expires is not None}

    def pause(self) -> None:
        """Stop reading from all clients: the house has enough to do."""
        self.paused = True
        for connection in self._connections:
            connection.hold(HOUSE)

    def resume(self) -> None:
        """Read again."""
        self.paused = False
        for connection in list(self._connections):
            connection.release(HOUSE)

    # ---- the turn ------------------------------------------------------------------------------------------------------

    def schedule(self) -> None:
        """See to it that this loop turn ends with a hand-over and the writes."""
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def wake(self, connection: Connection) -> None:
        """Hot: a connection has something to write."""
        self._dirty.append(connection)
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Hot: one batch to the house, then one write per connection."""
        try:
            if self.batch:
                batch, self.batch = self.batch, []
                self.house.receive(batch)
            if self.journal is not None and self.journal.urgent:
                self.house.save()
        finally:
            self._scheduled = False
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.flush()
            if self.throttled:
                self._unthrottle()

    def saved(self) -> None:
        """What the journal gave is stored: acknowledge what waited for it, in order."""
        assert self.journal is not None
        for publish in self.journal.stored():
            session: Session = publish.origin
            if session.incoming.get(publish.packet_id) is not publish:
                continue
            answer = session.answer(publish, Reason.SUCCESS, None)
            if session.connection is None:
                del session.incoming[publish.packet_id]
                continue
            session.incoming[publish.packet_id] = answer
            session.deferred += 1
            session.flush_deferred()

    def _unthrottle(self) -> None:
        for connection in list(self.throttled):
            session = connection.session
            if session is None or len(session.incoming) < self.limits.receive_maximum:
                self.throttled.discard(connection)
                connection.release(WINDOW)

    def acknowledge(self, publish: Publish, reason: int = 0, text: str | None = None) -> None:
        """Hot: answer a PUBLISH that the house was given. Nothing happens at QoS 0, or when its connection has gone."""
        qos = publish.qos
        session: Session | None = publish.origin
        if not qos or session is None:
            return
        packet_id = publish.packet_id
        incoming = session.incoming
        if incoming.get(packet_id) is not publish:
            return
        del incoming[packet_id]
        answer = encode_puback(packet_id) if qos == 1 and not reason else session.answer(publish, reason, text)
        connection = session.connection
        if connection is not None:
            out = connection.out
            if not out:
                self.wake(connection)
            out.append(answer)
            connection.pending += len(answer)
            if session.deferred:
                session.flush_deferred()

    # ---- delivery ------------------------------------------------------------------------------------------------------

    def route(self, topic: str, *, retain: bool = False) -> Route:
        """A topic made ready for `send`. `retain` is what retain-as-published subscribers see."""
        return self.subscriptions.route(topic, retain, self._renew)

    def wants(self, head: str) -> bool:
        """Whether any subscription could match a topic that begins with `head`: whole levels and a slash."""
        return self.subscriptions.below(head)

    def renew(self, route: Route) -> bool:
        """Bring a route up to date with rights and subscriptions; whether anybody would get a message on it."""
        subscriptions = self.subscriptions
        generation = self.house.generation
        if route.rights != generation or route.subscriptions != subscriptions.generation:
            route.groups = subscriptions.groups(route.topic, self.house.may_receive)
            route.rights = generation
            route.subscriptions = subscriptions.generation
        return bool(route.groups)

    def send(self, route: Route, payload: bytes, qos: int) -> None:
        """Hot: publish from the house to all who want it and may have it."""
        if route.rights != self.house.generation or route.subscriptions != self.subscriptions.generation:
            self.renew(route)
        for group in route.groups:
            granted = group.qos
            if qos < granted:
                granted = qos
            retain = route.retain and group.retain_as_published
            head, tail = publish_parts(route.name, payload, group.level, granted, retain, group.properties)
            message = (
                Message(head, tail, granted, route.topic, route.rights)
                if group.share is None
                else Tracked(head, tail, granted, route.topic, route.rights, group.share)
            )
            members = group.members
            for session in members:
                session.deliver(message)
            count = len(members)
            self.counters.sent[granted] += count
            self.counters.payload_out[granted] += count * len(payload)

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, properties: Properties | None = None
    ) -> int:
        """Publish from the house to all subscribers; how many there were. It keeps its retained messages itself."""
        return self._spread(self.route(topic, retain=retain), payload, qos, properties, None)

    def take(self, publish: Publish) -> bool:
        """A client's publish on a topic that the house does not own: keep it if it is to be retained, and route it.

        False: it cannot be retained, and goes nowhere.
        """
        properties = publish.properties
        if publish.retain:
            passed_on, expires = self._passed_on(properties)
            kept = Kept(publish.payload, publish.qos, passed_on, expires)
            if not self.retained.keep(publish.topic, kept):
                self.counters.refused_retained += 1
                return False
        route = self.subscriptions.route(publish.topic, publish.retain, self._renew)
        self._spread(route, publish.payload, publish.qos, properties, publish.origin)
        if not self.house.overhear(publish) and self.strangers.open and publish.origin is not None:
            self.strangers.note(publish.origin.client, publish, refused=False)
        return True

    def _passed_on(self, properties: Properties | None) -> tuple[Properties | None, float]:
        """The properties that subscribers get, and when the message expires on our clock (0 = never)."""
        if not properties:
            return None, 0.0
        passed_on = {name: value for name, value in properties.items() if name not in LEFT_BEHIND}
        interval = properties.get(Property.MESSAGE_EXPIRY_INTERVAL)
        return passed_on or None, 0.0 if interval is None else self.clock() + interval

    def _spread(
        self, route: Route, payload: bytes, qos: int, properties: Properties | None, origin: Session | None
    ) -> int:
        """`send` with properties and a sender."""
        if not self.renew(route):
            return 0
        passed_on, expires = self._passed_on(properties)
        reached = 0
        journal = self.journal
        lasting = journal is not None and journal.sessions > 0 and qos > 0 and self.house.survives(route.topic)
        for group in route.groups:
            granted = min(qos, group.qos)
            retain = route.retain and group.retain_as_published
            message = make(
                route.topic,
                route.name,
                payload,
                group.level,
                granted,
                retain,
                group.properties,
                passed_on,
                expires,
                self,
                group.share,
                lasting,
            )
            before = reached
            for session in group.members:
                if group.no_local and session is origin:
                    continue
                session.deliver(message)
                reached += 1
                if lasting and granted and journal is not None:
                    journal.add(session, message)
            self.counters.sent[granted] += reached - before
            self.counters.payload_out[granted] += (reached - before) * len(payload)
        return reached

    # ---- shared subscriptions ------------------------------------------------------------------------------------------

    def hand_over(self, session: Session) -> None:
        """Give what waits for a member that cannot be reached now, and was never sent to it, to members that can be.

        What has been sent stays with its session as long as that lasts: the client may have it already.
        """
        if not session.shares or not session.queue or self._stopping:
            return
        kept: deque[Message] = deque()
        moved: list[tuple[Entry, Message]] = []
        for message in session.queue:
            entry = None if message.share is None else message.share.pick(message.topic)
            if entry is None or entry.session is session or entry.session.connection is None:
                kept.append(message)
            else:
                moved.append((entry, message))
        if not moved:
            return
        freed = sum(message.size for _, message in moved)
        session.queue = kept
        session.queued -= freed
        self.queued -= freed
        session.queued_qos0 = sum(not message.qos for message in kept)
        session.refresh()
        if self.journal is not None:
            self.journal.touch(session)
        for entry, message in moved:
            self._give(entry, message, session.level)

    def pass_on(self, session: Session, message: Message) -> bool:
        """Give a message that one member has no room for to one that is connected; whether there is any."""
        share: Share | None = message.share
        entry = None if share is None else share.pick(message.topic)
        if entry is None or entry.session is session or entry.session.connection is None:
            return False
        self._give(entry, message, session.level)
        return True

    def _give(self, entry: Entry, message: Message, level: int) -> None:
        """Write a message that was another member's, in that one's level, for this one."""
        session = entry.session
        if not self.house.may_receive(session.client, message.topic):
            self.counters.denied_receive += 1
            return
        if message.expires and message.expires <= self.clock():
            self.counters.expired += 1
            return
        decoder = Decoder(server=False, level=level, max_packet=UNLIMITED)
        packet = message.head + (b"\x00\x01" if message.qos else b"") + message.tail
        (publish,) = decoder.feed(packet)
        assert isinstance(publish, Publish)
        properties = {name: value for name, value in (publish.properties or {}).items() if name not in LEFT_BEHIND}
        given = make(
            message.topic,
            message.topic.encode(),
            publish.payload,
            session.level,
            min(publish.qos, entry.qos),
            publish.retain and entry.retain_as_published,
            identifier_properties([entry.identifier] if entry.identifier else []),
            properties or None,
            message.expires,
            self,
            message.share,
            message.lasting,
        )
        session.deliver(given)
        if given.lasting and self.journal is not None:
            self.journal.add(session, given)

    def _regroup(self, session: Session) -> None:
        """A session can be reached, or no longer."""
        for share in (session.shares or {}).values():
            self.subscriptions.regroup(share)

    def _joined(self, session: Session) -> None:
        """A member can be reached: it gets what waits for those of its groups that cannot."""
        for share in list((session.shares or {}).values()):
            for other in list(share.entries):
                if other.connection is None:
                    self.hand_over(other)

    # ---- retained messages for new subscriptions -----------------------------------------------------------------------

    def feed(self, session: Session) -> None:
        """A session has retained messages to come and room for them."""
        if session.feeding:
            return
        session.feeding = True
        self._hungry.append(session)
        if not self._feeding:
            self._feeding = True
            self.loop.call_soon(self._feed_when_settled)

    def _feed_when_settled(self) -> None:
        # What the house renders must be stored already, each time anew: between two slices it has gone on.
        self.house.settled(self._feed)

    def _feed(self) -> None:
        """A slice for each hungry session in its turn, then the loop goes on with everything else."""
        left = TURN
        hungry = self._hungry
        self._feeding = False
        try:
            while hungry and left > 0:
                session = hungry.popleft()
                session.feeding = False
                left -= max(1, session.feed(SLICE))
                if session.hungry:
                    session.feeding = True
                    hungry.append(session)
        finally:
            if hungry:
                self._feeding = True
                self.loop.call_soon(self._feed_when_settled)

    def _retained_below(self, topic_filter: str) -> Iterator[Found | None]:
        for topic, payload, qos in self.house.retained(topic_filter):
            yield topic, payload, qos, None, 0.0
        if topic_filter.startswith("$"):
            for topic, payload in statistics.values(self, self.clock() - self._began).items():
                if matches(topic_filter, topic):
                    yield topic, payload, 0, None, 0.0
        for found in self.retained.below(topic_filter):
            kept = None if found is None else self.retained.get(found)
            if found is None or kept is None or (kept.expires and kept.expires <= self.clock()):
                yield None
            else:
                yield found, kept.payload, kept.qos, kept.properties, kept.expires

    # ---- admission -----------------------------------------------------------------------------------------------------

    async def admit(self, connection: Connection, connect: Connect) -> None:
        """Judge a CONNECT. Nothing about identity or sessions changes before the house knows who it is."""
        try:
            level = connect.level
            refusal = self._unacceptable(connect)
            if refusal is not None:
                connection.reject(refusal, level)
                return
            login = await self.house.authenticate(connect.username, connect.password, connection.peer)
            if connection.ended:
                return
            if login is None:
                connection.reject(Reason.BAD_USER_NAME_OR_PASSWORD, level)
                return
            if isinstance(login, Refusal):
                connection.reject(login.reason, level, login.text)
                return
            self._enter(connection, connect, login if isinstance(login, Login) else Login(login))
        finally:
            if connection.task is not None and not connection.ended:
                connection.end(Reason.UNSPECIFIED_ERROR)

    def _unacceptable(self, connect: Connect) -> int | None:
        """What is wrong with a CONNECT, whoever sent it."""
        properties = connect.properties or {}
        if self._stopping:
            return Reason.SERVER_SHUTTING_DOWN
        if Property.AUTHENTICATION_METHOD in properties:
            return Reason.BAD_AUTHENTICATION_METHOD
        if len(connect.client_id.encode()) > self.limits.client_id_bytes:
            return Reason.CLIENT_IDENTIFIER_NOT_VALID
        if not connect.client_id and connect.level < 5 and not connect.clean_start:
            return Reason.CLIENT_IDENTIFIER_NOT_VALID
        if connect.will is not None and not valid_name(connect.will.topic):
            return Reason.TOPIC_NAME_INVALID
        return None

    def _enter(self, connection: Connection, connect: Connect, login: Login) -> None:
        """Find or make the session, answer, and read on."""
        client = login.client
        limits = self.limits
        level = connect.level
        asked = connect.properties or {}
        granted: Properties = {}
        client_id = connect.client_id
        if not client_id:
            client_id = f"auto-{secrets.token_hex(12)}"
            granted[Property.ASSIGNED_CLIENT_IDENTIFIER] = client_id
        key = (client, client_id)
        session = self.sessions.get(key)
        online = session is not None and session.connection is not None
        if len(self._clients.get(client, ())) - online >= limits.connections_per_client:
            connection.reject(Reason.QUOTA_EXCEEDED, level, f"client {client} has too many connections")
            return
        if session is not None and session.connection is not None:
            self.counters.takeovers += 1
            session.connection.end(Reason.SESSION_TAKEN_OVER, replaced=True)
            session = self.sessions.get(key)
        over = session is not None and self._absent.get(session, self.clock()) < self.clock()
        if session is not None and (connect.clean_start or session.level != level or over):
            # Its time may be over before a sweep has seen it. Queued packets are written in one protocol level: a client that comes back with the other one begins anew.
            self.counters.sessions_expired += over
            self._forget(session)
            session = None
        present = session is not None
        if session is None:
            self._make_room(client)
            session = self.sessions[key] = Session(self, client, client_id, level)
            self._kept[client] = self._kept.get(client, 0) + 1
        self._absent.pop(session, None)
        self._wills.pop(session, None)  # it is back in time [MQTT-3.1.3-9]
        session.will = connect.will
        session.problem_information = bool(asked.get(Property.REQUEST_PROBLEM_INFORMATION, 1))
        session.max_packet = asked.get(Property.MAXIMUM_PACKET_SIZE, UNLIMITED)
        keep_alive = connect.keep_alive
        if level >= 5:
            session.window = min(asked.get(Property.RECEIVE_MAXIMUM, 65_535), limits.inflight_max)
            expiry = asked.get(Property.SESSION_EXPIRY_INTERVAL, 0)
            session.expiry = float(min(expiry, limits.session_expiry))
            if expiry > limits.session_expiry:
                granted[Property.SESSION_EXPIRY_INTERVAL] = limits.session_expiry
            if limits.max_keep_alive and not 0 < keep_alive <= limits.max_keep_alive:
                keep_alive = granted[Property.SERVER_KEEP_ALIVE] = limits.max_keep_alive
            granted[Property.RECEIVE_MAXIMUM] = limits.receive_maximum
            granted[Property.MAXIMUM_PACKET_SIZE] = limits.max_packet
            granted[Property.TOPIC_ALIAS_MAXIMUM] = limits.topic_aliases
            granted[Property.RETAIN_AVAILABLE] = 1
            granted[Property.SHARED_SUBSCRIPTION_AVAILABLE] = 1
        else:
            session.window = limits.inflight
            session.expiry = 0.0 if connect.clean_start else float(limits.session_expiry)
        journal = self.journal
        if journal is not None:
            if not session.expiry:
                journal.end(session)
            elif session.record is None:
                journal.begin(session)
        connection.session = session
        connection.login = login
        if login.until:
            self._ending[connection] = login.until
        session.connection = connection
        session.out = connection.out
        session.refresh()
        self._clients.setdefault(client, set()).add(session)
        self.counters.connects += 1
        connack = Connack(session_present=present, properties=granted if level >= 5 else None)
        connection.put(encode(connack, level))
        if present:
            self._regroup(session)
            session.resend()
            self._joined(session)
            if session.record is not None and session.record.behind:
                self._catch_up(session)
        if journal is not None:
            journal.connected(session)
        self.house.online(session)
        connection.admitted(keep_alive * 1.5)

    def _catch_up(self, session: Session) -> None:
        """A session comes from an earlier run: what its queue does not have it gets as the house's retained messages."""
        for entry in session.subscriptions.values():
            if entry.share is None:
                items = ((*found, None, 0.0) for found in self.house.retained(entry.topic_filter))
                session.start_feed(entry, items)
        if session.record is not None:
            session.record.behind = False
        if session.hungry:
            self.feed(session)

    def restore(self, kept: Iterable[Restored], wall: float) -> None:
        """Take up the sessions of an earlier run, before `listen`. `wall` is the time now, Unix seconds.

        Rights are asked again when something is delivered; what has expired is left out.
        """
        journal = self.journal
        assert journal is not None
        for facts, received, messages in kept:
            journal.next_session = max(journal.next_session, facts.number + 1)
            journal.next_message = max([journal.next_message, *(message.number + 1 for message in messages)])
            record = Record(facts.number)
            session = Session(self, facts.client, facts.client_id, facts.level)
            session.record = record
            journal.sessions += 1
            left = facts.left or wall
            expiry = min(facts.expiry, float(self.limits.session_expiry))
            if left + expiry <= wall or len(self.sessions) >= self.limits.sessions or session.key in self.sessions:
                journal.end(session)
                continue
            record.left = left
            record.behind = True
            session.expiry = expiry
            session.next_id = (facts.next_id + FORWARD - 1) % 65_535 + 1
            session.received.update(received)
            record.marks = received
            record.restored = set(received)
            self.sessions[session.key] = session
            self._kept[session.client] = self._kept.get(session.client, 0) + 1
            self._absent[session] = self.clock() + left + expiry - wall
            for topic_filter, qos, no_local, retain_as_published, identifier in facts.subscriptions:
                entry = Entry(
                    session,
                    topic_filter,
                    qos,
                    no_local=no_local,
                    retain_as_published=retain_as_published,
                    identifier=identifier,
                )
                session.subscriptions[topic_filter] = entry
                self.subscriptions.add(entry)
                if entry.share is not None:
                    session.shares = {**(session.shares or {}), topic_filter: entry.share}
            for message in messages:
                self._restore_message(session, message, wall)
            journal.facts(session)
            journal.touch(session)

    def _restore_message(self, session: Session, kept: KeptMessage, wall: float) -> None:
        record = session.record
        assert record is not None
        packet_id = kept.packet_id
        if not kept.packet:
            session.inflight[packet_id] = None
            record.rows[packet_id] = (kept.number, packet_id)
            return
        try:
            (publish,) = Decoder(server=False, level=session.level, max_packet=UNLIMITED).feed(kept.packet)
            assert isinstance(publish, Publish)
        except (MalformedPacket, ValueError):  # the file was damaged: this message is lost, the others are not
            record.rows[-kept.number] = (kept.number, 0)
            return
        properties = dict(publish.properties or {})
        identifiers = properties.pop(Property.SUBSCRIPTION_IDENTIFIER, [])
        properties.pop(Property.MESSAGE_EXPIRY_INTERVAL, None)
        share = (session.shares or {}).get(kept.share)
        message = make(
            publish.topic,
            publish.topic.encode(),
            publish.payload,
            session.level,
            publish.qos,
            publish.retain,
            identifier_properties(identifiers),
            properties or None,
            self.clock() + kept.expires - wall if kept.expires else 0.0,
            self,
            share,
            True,
        )
        message.rights = RESTORED
        if packet_id:
            session.inflight[packet_id] = message
            session.held += message.size
        else:
            session.deliver(message)  # into the queue, if the bounds are not narrower now
        record.rows[message] = (kept.number, packet_id)

    def _make_room(self, client: str) -> None:
        """Where there are too many sessions, forget the one longest absent: of this client, if it is the one who has too many."""
        if self._kept.get(client, 0) >= self.limits.connections_per_client:
            own = next((session for session in self._absent if session.client == client), None)
            if own is not None:
                self._displace(own)
        while len(self.sessions) >= self.limits.sessions and self._absent:
            self._displace(next(iter(self._absent)))

    def _displace(self, session: Session) -> None:
        self.counters.sessions_displaced += 1
        self._forget(session)

    def detach(self, connection: Connection, *, clean: bool, replaced: bool = False) -> None:
        """A connection has ended: its session goes on alone, or ends with it. Does nothing the second time."""
        session = connection.session
        if session is None or session.connection is not connection:
            return
        session.connection = None
        session.out = []
        if session.record is not None and session.feeds:
            session.record.behind = True
        session.feeds = None
        session.refresh()
        # What is unacknowledged at QoS 1 is sent again by the client; the answer would go to a connection that has gone.
        session.incoming = {
            packet_id: publish
            for packet_id, publish in session.incoming.items()
            if isinstance(publish, Publish) and publish.qos == 2
        }
        session.deferred = 0
        sessions = self._clients[session.client]
        sessions.discard(session)
        last = not sessions
        if last:
            del self._clients[session.client]
        will, session.will = session.will, None
        if self._stopping or clean:
            will = None
        if not session.expiry:
            self._forget(session)
        else:
            self._regroup(session)
            self.hand_over(session)
            if self.journal is not None:
                self.journal.left(session)
            now = self.clock()
            self._absent[session] = now + session.expiry
            delay = will.properties.get(Property.WILL_DELAY_INTERVAL, 0) if will and will.properties else 0
            if will is not None and delay:
                self._wills[session] = (now + min(delay, session.expiry), will)
                will = None
        if self._stopping:
            return
        if will is not None:
            self._fire(session, will)
        self.house.offline(session, clean=clean, last=last and not replaced)

    def _fire(self, session: Session, will: Will) -> None:
        """A will is a publish like any other: judged now, whatever held when it was left [MQTT-3.1.2-8].

        Its message expiry begins now too (section 3.1.3.2.4).
        """
        publish = Publish(will.topic, will.payload, will.qos, will.retain, properties=will.properties, origin=session)
        if not self.house.may_publish(session.client, publish.topic):
            self.counters.wills_denied += 1
            return
        self.counters.wills += 1
        if self.house.owns(publish.topic):
            self.batch.append(publish)
            self.schedule()
        else:
            self.take(publish)

    def _forget(self, session: Session) -> None:
        """A session has ended."""
        session.dead = True
        if self.journal is not None:
            self.journal.end(session)
        self._kept[session.client] -= 1
        if not self._kept[session.client]:
            del self._kept[session.client]
        for topic_filter in session.subscriptions:
            self.subscriptions.remove(session, topic_filter)
        session.subscriptions.clear()
        orphans: list[Message] = []
        if session.shares and not self._stopping:
            # What it may have had at QoS 2 is nobody else's [MQTT-4.8.2-5]; the rest is not lost.
            orphans += [
                message for message in session.inflight.values() if message and message.share and message.qos == 1
            ]
            orphans += [message for message in session.queue or () if message.share]
            session.shares = None
        session.incoming.clear()
        session.received.clear()
        session.inflight.clear()
        session.queue = None
        self.queued -= session.queued
        session.queued = 0
        self._absent.pop(session, None)
        del self.sessions[session.key]
        waiting = self._wills.pop(session, None)
        if waiting is not None and not self._stopping:
            self._fire(session, waiting[1])  # the session's end is the latest moment [MQTT-3.1.3-9]
        for message in orphans:
            entry = message.share.pick(message.topic)
            if entry is not None:
                self._give(entry, message, session.level)

    # ---- SUBSCRIBE -----------------------------------------------------------------------------------------------------

    def subscribe(self, connection: Connection, session: Session, packet: Subscribe) -> None:
        """SUBACK first, then the retained messages [MQTT-3.8.4]."""
        identifier = packet.properties.get(Property.SUBSCRIPTION_IDENTIFIER, 0) if packet.properties else 0
        reasons: list[int] = []
        feeds: list[Entry] = []
        for wanted in packet.subscriptions:
            reason = self._refused(session, wanted)
            if reason is not None:
                self.counters.denied_subscribe += 1
                reasons.append(reason)
                continue
            entry = Entry(
                session,
                wanted.topic_filter,
                wanted.qos,
                no_local=wanted.no_local,
                retain_as_published=wanted.retain_as_published,
                identifier=identifier,
            )
            known = wanted.topic_filter in session.subscriptions
            session.subscriptions[wanted.topic_filter] = entry
            self.subscriptions.add(entry)
            reasons.append(wanted.qos)
            if entry.share is not None:
                if session.shares is None:
                    session.shares = {}
                session.shares[wanted.topic_filter] = entry.share
                continue  # no retained messages (section 4.8.2)
            if wanted.retain_handling == 0 or (wanted.retain_handling == 1 and not known):
                feeds.append(entry)
        if self.journal is not None:
            self.journal.facts(session)
        connection.put(encode(Suback(packet.packet_id, reasons), session.level))
        self._joined(session)
        for entry in feeds:
            session.start_feed(entry, self._retained_below(entry.topic_filter))
        if session.hungry:
            self.feed(session)

    def _refused(self, session: Session, wanted: Subscription) -> int | None:
        topic_filter = wanted.topic_filter
        try:
            share = split_share(topic_filter)
        except ValueError:
            return Reason.TOPIC_FILTER_INVALID
        asked = topic_filter if share is None else share.topic_filter
        if len(topic_filter.encode()) > self.limits.filter_bytes or not valid_filter(asked):
            return Reason.TOPIC_FILTER_INVALID
        if not self.house.may_subscribe(session.client, asked):
            return Reason.NOT_AUTHORIZED
        if topic_filter not in session.subscriptions and len(session.subscriptions) >= self.limits.subscriptions:
            return Reason.QUOTA_EXCEEDED
        return None

    def unsubscribe(self, connection: Connection, session: Session, packet: Unsubscribe) -> None:
        """UNSUBACK, one reason a filter [MQTT-3.10.4]."""
        reasons: list[int] = []
        for topic_filter in packet.topic_filters:
            if session.subscriptions.pop(topic_filter, None) is None:
                reasons.append(Reason.NO_SUBSCRIPTION_EXISTED)
                continue
            self.subscriptions.remove(session, topic_filter)
            session.stop_feed(topic_filter)
            if session.shares and topic_filter in session.shares:
                self.hand_over(session)
                del session.shares[topic_filter]
            reasons.append(Reason.SUCCESS)
        if self.journal is not None:
            self.journal.facts(session)
        connection.put(encode(Unsuback(packet.packet_id, reasons), session.level))

    # ---- time ----------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK, self._tick)
        self.look(self.clock())
        self._ticks += 1
        if self._ticks % 2 == 0:
            for opened in self._opened:
                if opened.certificates is not None:
                    opened.certificates.look()
        if self._ticks % SWEEP == 0:
            self.sweep(self.clock())

    def look(self, now: float) -> None:
        """Close who has been silent too long: before CONNECT, beyond its keep-alive [MQTT-3.1.2-22], or after its end.

        Whose log-in is over is disconnected: its session waits for the next one.
        And let the wills go whose delay is over, and renew `$SYS/broker/…`.
        """
        if self.limits.sys_interval and now - self._told >= self.limits.sys_interval:
            self._told = now
            if self.wants(statistics.HEAD):
                for topic, payload in statistics.values(self, now - self._began).items():
                    self.publish(topic, payload, qos=0, retain=True)
        for session in [session for session, (due, _) in self._wills.items() if due <= now]:
            self._fire(session, self._wills.pop(session)[1])
        if self._ending:
            wall = self.wall()
            for connection in [connection for connection, until in self._ending.items() if until <= wall]:
                del self._ending[connection]
                connection.end(Reason.NOT_AUTHORIZED, "the log-in has expired: connect with another token")
        late = []
        for connection in self._connections:
            if connection.heard and connection.session is not None:
                connection.heard = False
                connection.heard_at = now
            elif connection.ended or (connection.keep_alive and now - connection.heard_at > connection.keep_alive):
                late.append(connection)
        for connection in late:
            if connection.ended:
                if now > connection.closing_at:
                    connection.transport.abort()
            elif connection.patient:
                connection.heard_at = now
            else:
                connection.end(Reason.KEEP_ALIVE_TIMEOUT)

    def sweep(self, now: float) -> None:
        """Forget absent sessions and retained messages whose time is over."""
        for session in [session for session, until in self._absent.items() if until <= now]:
            self.counters.sessions_expired += 1
            self._forget(session)
        self.retained.expire(now)
