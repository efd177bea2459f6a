"""Five clients of three users on a live broker, at random, beside a model that says what each of them has to hear.

After every step everybody is asked for a PINGRESP until nothing more comes; then what was heard and what had to be heard
are compared. Time is the test's own: it moves only when a step says so.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from gateway.broker.house import Limits
from gateway.broker.server import Broker
from gateway.topics import matches, split_share, valid_filter
from gateway.wire.packets import (
    Disconnect,
    Pingreq,
    Pingresp,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Reason,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)
from tests.broker.world import RawClient, TableHouse, close_all, until

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gateway.wire.packets import Packet, Properties

Key = tuple[str, str]
Rights = tuple[list[str], list[str]]
Said = list[tuple[str, int, bool, bool, bool]]

SEATS: list[Key] = [("alice", "one"), ("alice", "two"), ("bob", "one"), ("bob", "three"), ("mallory", "one")]
"""(user, client id): the same id of another user is another session."""

RIGHTS: list[Rights] = [
    (["open/#", "t/#"], ["open/#", "t/#", "report/alice/#"]),
    (["open/#", "t/+"], ["open/#", "t/x"]),
    (["open/a", "t/x/y"], ["open/a"]),
    ([], []),
]
"""What a user may read and write; the first three are what alice, bob and mallory begin with."""

TOPICS = ["open/a", "open/a", "open/a/b", "t/x", "t/x/y", "secret/s", "report/alice/x"]
FILTERS = [
    *["open/#", "open/+", "open/a", "#", "+/+", "t/#", "t/+/y"],
    *["$share/g/open/#", "$share/g/t/+", "$share/h/open/a"],
    *["secret/#", "bad/#/x", "$share//t/x"],
]
GARBAGE = [
    b"\0\0",
    b"\x10\0",
    b"\x36\x05\0\1a\0\1",
    b"\x82\5\0\0\0\1a",
    b"\x30\xff\xff\xff\xff\x7f",
    b"\x30\xff\xff\xff\x7f",
    b"\x20\2\0\0",
    b"\x30\4\0\2\xc3\x28",
    b"\x60\2\0\1",
]
"""What no client may send."""

PROMPT, SILENT, HALF = range(3)
"""What a client acknowledges: all; nothing; all but the second half of QoS 2."""

MANNERS = [PROMPT, PROMPT, PROMPT, SILENT, HALF]

TALLY: Counter[str] = Counter()
"""What this process has seen in all cases: that much was really said and heard."""

LONG = 2_005
"""Seconds, the longest that a session is kept."""


@dataclass(eq=False)
class Due:
    """A message on its way to one session. `sent`: heard once, but not acknowledged."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    identifiers: tuple[int, ...]
    expires: float
    must: bool
    sent: bool = False

    @property
    def key(self) -> tuple[str, bytes, int, bool, tuple[int, ...]]:
        """What a client sees of it."""
        return self.topic, self.payload, self.qos, self.retain, self.identifiers


@dataclass(eq=False)
class Shared:
    """A message on its way to one member of a shared subscription."""

    user: str
    wanted: str
    topic: str
    payload: bytes
    qos: int
    expires: float
    must: bool
    members: set[Key]
    heard: dict[Key, bool] = field(default_factory=dict)
    """Who has heard it, and whether for good: nobody else may then."""

    def free(self, key: Key) -> bool:
        """Whether a member may hear it now. Empty messages are all alike: nobody can tell which one it was."""
        return not self.payload or not (self.heard.get(key) or any(good for good in self.heard.values()))


@dataclass
class Wanted:
    """A subscription."""

    qos: int
    no_local: bool
    as_published: bool
    identifier: int


@dataclass(eq=False)
class State:
    """A session as it should be."""

    key: Key
    level: int
    subscriptions: dict[str, Wanted] = field(default_factory=dict)
    due: list[Due] = field(default_factory=list)
    half: set[int] = field(default_factory=set)
    """Packet identifiers at QoS 2 whose PUBREL has not come."""
    expiry: float = 0.0
    until: float = 0.0
    live: RawClient | None = None
    manner: int = PROMPT
    will: Will | None = None

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.key[0]


QOS = st.sampled_from([0, 1, 1, 2, 2])

MESSAGES = st.lists(
    st.tuples(st.sampled_from(TOPICS), QOS, st.booleans(), st.booleans(), st.booleans()),
    min_size=1,
    max_size=4,
)
"""Topic, QoS, RETAIN, whether it is empty (if retained), whether it is sent twice (at QoS 2)."""


class Machine(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = uvloop.new_event_loop()
        self.accidents: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.accidents.append(context))
        self.now = 1_000.0
        self.states: dict[Key, State] = {}
        self.retained: dict[str, tuple[bytes, int, float]] = {}
        self.shared: list[Shared] = []
        self.wills: dict[Key, tuple[float, Will]] = {}
        self.number = 0
        self.house = TableHouse()
        for (user, _), rights in zip([SEATS[0], SEATS[2], SEATS[4]], RIGHTS, strict=False):
            self.house.read[user], self.house.write[user] = rights

    def go(self, act: Coroutine[Any, Any, None]) -> None:
        """Run one step, and then compare."""
        self.loop.run_until_complete(act)
        self.loop.run_until_complete(self.quiet())

    # ---- steps ---------------------------------------------------------------------------------------------------------

    @initialize(
        keep=st.booleans(),
        seats=st.lists(
            st.tuples(
                st.sampled_from([5, 5, 4]),
                st.sampled_from([0, 25, LONG, LONG]),
                st.sampled_from(MANNERS),
                st.sampled_from(FILTERS),
                QOS,
            ),
            min_size=len(SEATS),
            max_size=len(SEATS),
        ),
    )
    def begin(self, keep: bool, seats: list[tuple[int, int, int, str, int]]) -> None:
        """Everybody is there, and has subscribed to something."""
        TALLY["cases"] += 1
        limits = Limits(session_expiry=LONG, max_keep_alive=0, sys_interval=0, inflight=3, receive_maximum=20)
        self.broker = self.house.broker = Broker(self.house, limits, keep_sessions=keep, clock=lambda: self.now)
        _, self.port = self.loop.run_until_complete(self.broker.listen("127.0.0.1", 0))
        for key, (level, expiry, manner, wanted, qos) in zip(SEATS, seats, strict=True):
            self.go(self._connect(key, level, not expiry, float(expiry), manner, 3, None))
            self.go(self._subscribe(self.states[key], Subscription(wanted, qos), 0))

    @rule(
        key=st.sampled_from(SEATS),
        level=st.sampled_from([5, 5, 4]),
        clean=st.sampled_from([False, False, True]),
        expiry=st.sampled_from([0, 25, LONG, LONG]),
        manner=st.sampled_from(MANNERS),
        window=st.sampled_from([1, 3, 100]),
        will=st.none() | st.builds(Will, st.sampled_from(TOPICS), st.just(b""), QOS, st.booleans(), st.none()),
        delay=st.sampled_from([0, 5, 50]),
    )
    def connect(
        self, key: Key, level: int, clean: bool, expiry: int, manner: int, window: int, will: Will | None, delay: int
    ) -> None:
        if will is not None:
            self.number += 1
            properties: Properties | None = {Property.WILL_DELAY_INTERVAL: delay} if level == 5 else None
            will = Will(will.topic, b"will %d" % self.number, will.qos, will.retain, properties)
        self.go(self._connect(key, level, clean, float(expiry), manner, window, will))

    @rule(which=st.integers(0, 4), messages=MESSAGES, expiry=st.sampled_from([None, None, 15]))
    def publish(self, which: int, messages: Said, expiry: int | None) -> None:
        state = self.pick(which)
        if state is None:
            return
        for topic, qos, retain, empty, again in messages:
            self.number += 1
            payload = b"" if empty and retain else b"%d" % self.number
            timed = expiry if state.level == 5 else None
            self.loop.run_until_complete(self._publish(state, topic, payload, qos, retain, timed, again))
        self.loop.run_until_complete(self.quiet())

    @rule(which=st.integers(0, 4), messages=MESSAGES)
    def publish_again(self, which: int, messages: Said) -> None:
        """So that it is chosen more often."""
        self.publish(which, messages, None)

    @rule(
        which=st.integers(0, 4),
        wanted=st.sampled_from(FILTERS),
        qos=QOS,
        no_local=st.booleans(),
        as_published=st.booleans(),
        handling=st.integers(0, 2),
        identifier=st.integers(0, 3),
    )
    def subscribe(
        self, which: int, wanted: str, qos: int, no_local: bool, as_published: bool, handling: int, identifier: int
    ) -> None:
        state = self.pick(which)
        if state is None:
            return
        five = state.level == 5
        one = Subscription(wanted, qos)
        if five:
            local = no_local and not wanted.startswith("$share/")
            one = Subscription(wanted, qos, local, as_published, handling)
        self.go(self._subscribe(state, one, identifier if five else 0))

    @rule(which=st.integers(0, 4), nth=st.integers(0, 5))
    def unsubscribe(self, which: int, nth: int) -> None:
        state = self.pick(which)
        if state is not None:
            names = [*state.subscriptions, "nothing"]
            self.go(self._unsubscribe(state, names[nth % len(names)]))

    @rule(
        which=st.integers(0, 4),
        how=st.sampled_from(["clean", "with will", "drop"]) | st.sampled_from(GARBAGE),
        more=st.binary(),
    )
    def leave(self, which: int, how: str | bytes, more: bytes) -> None:
        state = self.pick(which)
        if state is not None:
            self.go(self._leave(state, how + more if isinstance(how, bytes) else how))

    @rule(
        which=st.integers(0, 4),
        manner=st.sampled_from(MANNERS),
        before=MESSAGES,
        during=MESSAGES,
        rights=st.none() | st.sampled_from(RIGHTS),
        seconds=st.sampled_from([0, 0, 10, 20]),
    )
    def come_back(
        self, which: int, manner: int, before: Said, during: Said, rights: Rights | None, seconds: int
    ) -> None:
        """A connection is cut; the client comes back to its session, and finds that things have changed."""
        state = self.pick(which)
        if state is None:
            return
        self.publish(which + 1, before, None)
        self.go(self._leave(state, "drop"))
        self.publish(which, during, 15)
        if rights is not None:
            self.change_rights(state.user, rights)
        if seconds:
            self.go(self._wait(seconds))
        self.go(self._connect(state.key, state.level, False, state.expiry, manner, 3, None))

    @rule(user=st.sampled_from(["alice", "bob", "mallory"]), rights=st.sampled_from([RIGHTS[0], *RIGHTS]))
    def change_rights(self, user: str, rights: Rights) -> None:
        self.house.read[user], self.house.write[user] = rights
        self.house.generation += 1

    @rule(seconds=st.sampled_from([10, 30, 3_000]))
    def wait(self, seconds: int) -> None:
        self.go(self._wait(seconds))

    # ---- what is the case after each step ------------------------------------------------------------------------------

    @invariant()
    def nothing_is_raised_in_the_loop(self) -> None:
        assert not self.accidents, self.accidents

    @invariant()
    def the_broker_knows_what_the_model_knows(self) -> None:
        broker = self.broker
        there = {key: state for key, state in self.states.items() if state.live or state.until > self.now}
        assert set(broker.sessions) == set(there)
        for key, session in broker.sessions.items():
            assert set(session.subscriptions) == set(there[key].subscriptions)
            assert (session.connection is None) == (there[key].live is None)
            assert session.queued == sum(message.size for message in session.queue or ())
            assert session.held == sum(message.size for message in session.inflight.values() if message is not None)
        assert broker.queued == sum(session.queued for session in broker.sessions.values())
        kept = {topic for topic in TOPICS if broker.retained.get(topic) is not None}
        assert kept == {topic for topic, (_, _, expires) in self.retained.items() if not expires or expires > self.now}

    def teardown(self) -> None:
        """All go, time passes, and nothing is left but what is retained."""
        try:
            if hasattr(self, "broker"):
                self.loop.run_until_complete(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        broker, house = self.broker, self.house
        try:
            if broker.journal is not None:
                agrees(house, broker, sweep=True)
            await close_all()
            await until(lambda: not broker._connections, "all sockets close")
            self.now += 2 * LONG
            broker.look(self.now)
            broker.sweep(self.now)
            await asyncio.sleep(0)
            subscriptions = broker.subscriptions
            left = [broker.sessions, broker._absent, broker._wills, broker._kept, broker._clients, broker._addresses]
            left += [broker.throttled, subscriptions._exact, subscriptions._tree.children, subscriptions._shares]
            assert not any(left), left
            assert not broker.queued
            if broker.journal is not None:
                agrees(house, broker, sweep=True)
                assert not house.sessions
                assert not house.messages
            assert not self.accidents, self.accidents
        finally:
            await close_all()
            await broker.stop()

    # ---- the steps' insides --------------------------------------------------------------------------------------------

    def pick(self, which: int) -> State | None:
        """One of those that are connected."""
        live = [state for key in SEATS if (state := self.states.get(key)) and state.live]
        return live[which % len(live)] if live else None

    async def _connect(
        self, key: Key, level: int, clean: bool, expiry: float, manner: int, window: int, will: Will | None
    ) -> None:
        user, client_id = key
        old = self.states.get(key)
        properties: Properties | None = None
        if level == 5:
            properties = {Property.RECEIVE_MAXIMUM: window}
            if expiry:
                properties[Property.SESSION_EXPIRY_INTERVAL] = int(expiry)
        else:
            expiry = 0.0 if clean else float(LONG)
        client = await RawClient.connect(
            self.port,
            user,
            level,
            client_id=client_id,
            clean_start=clean,
            keep_alive=0,
            will=will,
            properties=properties,
        )
        if old is not None and old.live is not None:
            reason = await old.live.ended()
            assert reason == (Reason.SESSION_TAKEN_OVER if old.level == 5 else None)
            old.live.close()
            self.gone(old, clean=False)
            old = self.states.get(key)
        present = old is not None and not clean and old.level == level
        assert client.connack.reason == 0
        assert client.connack.session_present == present
        if old is not None and not present:
            self.forget(old)
        state = self.states.setdefault(key, State(key, level))
        self.wills.pop(key, None)
        state.live, state.manner, state.will, state.expiry = client, manner, will, expiry
        state.due = [one for one in state.due if not self.over(one.expires)]
        for one in state.due:
            # It is judged when it goes out: later, where the window is full of what is half acknowledged.
            one.must = one.must and self.allowed(user, one.topic)

    async def _publish(
        self, state: State, topic: str, payload: bytes, qos: int, retain: bool, expiry: int | None, again: bool
    ) -> None:
        client = state.live
        assert client is not None
        properties: Properties | None = None if expiry is None else {Property.MESSAGE_EXPIRY_INTERVAL: expiry}
        packet_id = self.number % 60_000 + 1 if qos else 0
        packet = Publish(topic, payload, qos, retain, packet_id=packet_id, properties=properties)
        may = self.house.may_publish(state.user, topic)
        refused = state.level == 5 and not may
        self.routed(state, topic, payload, qos, retain, 0.0 if expiry is None else self.now + expiry, may)
        client.send(packet)
        if qos == 1:
            answer = await self.answer(state, Puback)
            assert (answer.packet_id, answer.reason) == (packet_id, Reason.NOT_AUTHORIZED if refused else 0)
        elif qos == 2:
            for time in range(1 + again):
                if time:
                    client.send(Publish(topic, payload, 2, retain, True, packet_id, properties))
                received = await self.answer(state, Pubrec)
                assert (received.packet_id, received.reason) == (packet_id, Reason.NOT_AUTHORIZED if refused else 0)
            if not refused:
                client.send(Pubrel(packet_id))
                done = await self.answer(state, Pubcomp)
                assert (done.packet_id, done.reason) == (packet_id, 0)

    async def _subscribe(self, state: State, one: Subscription, identifier: int) -> None:
        client = state.live
        assert client is not None
        wanted, user = one.topic_filter, state.user
        try:
            share = split_share(wanted)
            plain = share.topic_filter if share else wanted
            reason = 0x8F if not valid_filter(plain) else one.qos
        except ValueError:
            share, plain, reason = None, wanted, 0x8F
        if reason < 0x80 and not self.house.may_subscribe(user, plain):
            reason = Reason.NOT_AUTHORIZED
        properties: Properties | None = {Property.SUBSCRIPTION_IDENTIFIER: identifier} if identifier else None
        client.send(Subscribe(9, [one], properties))
        known = wanted in state.subscriptions
        if reason < 0x80:
            state.subscriptions[wanted] = Wanted(one.qos, one.no_local, one.retain_as_published, identifier)
            if share is None and (one.retain_handling == 0 or (one.retain_handling == 1 and not known)):
                identifiers = (identifier,) if identifier else ()
                for topic, (payload, qos, expires) in self.retained.items():
                    if matches(plain, topic) and self.allowed(user, topic) and not self.over(expires):
                        must = state.manner == PROMPT
                        state.due.append(Due(topic, payload, min(qos, one.qos), True, identifiers, expires, must))
        answer = await self.answer(state, Suback)
        assert answer.reasons == [reason if state.level == 5 else min(reason, 0x80)]

    async def _unsubscribe(self, state: State, wanted: str) -> None:
        client = state.live
        assert client is not None
        known = state.subscriptions.pop(wanted, None) is not None
        client.send(Unsubscribe(8, [wanted]))
        answer = await self.answer(state, Unsuback)
        expected = [0 if known else Reason.NO_SUBSCRIPTION_EXISTED]
        assert answer.reasons == (expected if state.level == 5 else [])

    async def _leave(self, state: State, how: str | bytes) -> None:
        client = state.live
        assert client is not None
        if how == "drop":
            client.drop()
        elif isinstance(how, bytes):
            client.send(how)
            assert await client.ended() in ((0x81, 0x82, 0x95) if state.level == 5 else (None,))
        else:
            client.send(Disconnect(Reason.DISCONNECT_WITH_WILL if how == "with will" else 0))
            assert await client.ended() is None

        def left() -> bool:
            session = self.broker.sessions.get(state.key)
            return session is None or session.connection is None

        await until(left, "the session is alone")
        client.close()
        self.gone(state, clean=how == "clean" or (how == "with will" and state.level == 4))

    async def _wait(self, seconds: int) -> None:
        self.now += seconds
        self.broker.look(self.now)
        for key in [key for key, (due, _) in self.wills.items() if due <= self.now]:
            self.fire(self.states[key], self.wills.pop(key)[1])
        self.broker.sweep(self.now)
        for state in [state for state in self.states.values() if not state.live and self.over(state.until)]:
            self.forget(state)

    # ---- the model -----------------------------------------------------------------------------------------------------

    def allowed(self, user: str, topic: str) -> bool:
        return any(matches(rule, topic) for rule in self.house.read[user])

    def over(self, expires: float) -> bool:
        return bool(expires) and expires <= self.now

    def gone(self, state: State, *, clean: bool) -> None:
        """A connection has ended."""
        state.live = None
        state.until = self.now + state.expiry
        # What was sent at QoS 0 and not yet heard will not come; retained messages that had not begun neither.
        for one in state.due:
            one.must = one.must and one.qos > 0
        will, state.will = state.will, None
        if clean or will is None:
            will = None
        if not state.expiry:
            self.forget(state)
        elif will is not None:
            delay = (will.properties or {}).get(Property.WILL_DELAY_INTERVAL, 0)
            if delay:
                self.wills[state.key] = (self.now + min(delay, state.expiry), will)
                will = None
        if will is not None:
            self.fire(state, will)

    def forget(self, state: State) -> None:
        """A session has ended; what waited with it for a shared subscription may go to others."""
        del self.states[state.key]
        waiting = self.wills.pop(state.key, None)
        if waiting is not None:
            self.fire(state, waiting[1])

    def fire(self, state: State, will: Will) -> None:
        may = self.house.may_publish(state.user, will.topic)
        self.routed(state, will.topic, will.payload, will.qos, will.retain, 0.0, may)

    def routed(
        self, origin: State, topic: str, payload: bytes, qos: int, retain: bool, expires: float, may: bool
    ) -> None:
        """A message that has come to the broker: who is to hear it."""
        TALLY["messages"] += 1
        if not may or self.house.owns(topic):
            return
        if retain:
            self.retained.pop(topic, None)
            if payload:
                self.retained[topic] = (payload, qos, expires)
        groups: dict[tuple[str, str], list[State]] = {}
        for state in self.states.values():
            if not self.allowed(state.user, topic):
                continue
            heard: list[Wanted] = []
            for name, wanted in state.subscriptions.items():
                share = split_share(name)
                if share is None:
                    if matches(name, topic):
                        heard.append(wanted)
                elif matches(share.topic_filter, topic):
                    groups.setdefault((state.user, name), []).append(state)
            if not heard or (state is origin and all(wanted.no_local for wanted in heard)):
                continue
            granted = min(qos, max(wanted.qos for wanted in heard))
            if state.live is None and not granted:
                continue
            as_published = retain and any(wanted.as_published for wanted in heard)
            identifiers = tuple(sorted(wanted.identifier for wanted in heard if wanted.identifier))
            must = granted > 0 or state.manner == PROMPT
            state.due.append(Due(topic, payload, granted, as_published, identifiers, expires, must))
        for (user, name), members in groups.items():
            live = [state for state in members if state.live]
            must = bool(live and payload) and all(state.manner == PROMPT for state in live)
            keys = {state.key for state in members}
            self.shared.append(Shared(user, name, topic, payload, qos, expires, must, keys))

    def heard(self, state: State, packet: Publish) -> None:
        """A client has been sent a PUBLISH: it must be one that it has to hear, or may."""
        topic, user = packet.topic, state.user
        TALLY["heard"] += 1
        TALLY["sent again"] += packet.dup
        assert self.allowed(user, topic), f"{user} may not read {packet}"
        if packet.qos == 2:
            if packet.packet_id in state.half:
                assert packet.dup, f"sent twice at QoS 2, not as a duplicate: {packet}"
                return
            state.half.add(packet.packet_id)
        properties = packet.properties or {}
        identifiers = tuple(sorted(properties.get(Property.SUBSCRIPTION_IDENTIFIER, [])))
        key = (topic, packet.payload, packet.qos, packet.retain, identifiers)
        final = state.manner == PROMPT or packet.qos != 1 or state.manner == HALF
        candidates = [
            one
            for one in state.due
            if one.key == key and not self.over(one.expires) and not (one.sent and packet.qos == 2)
        ]
        # Empty messages are all alike: a duplicate is one that has been sent, else it is one that has not, and had to be.
        one = min(candidates, key=lambda one: (one.sent != packet.dup, not one.must), default=None)
        if one is not None:
            assert one.sent or not packet.dup, f"a duplicate of what was never sent: {packet}"
            earlier = [
                other
                for other in state.due[: state.due.index(one)]
                if other.must and not other.sent and not other.retain and (other.topic, other.qos) == (topic, one.qos)
            ]
            assert one.retain or one.sent or not packet.payload or not earlier, f"{packet} overtakes {earlier[0]}"
            one.sent = True
            if final:
                state.due.remove(one)
            return
        parts = [
            part
            for part in self.shared
            if (part.user, part.topic, part.payload) == (user, topic, packet.payload) and packet.qos <= part.qos
        ]
        mine = [part for part in parts if self.member(state.key, part) and not self.over(part.expires)]
        for part in mine:
            if part.free(state.key):
                part.heard[state.key] = final
                return
        for part in mine:
            # Who heard it for this group may have heard it for another one.
            for other in parts:
                for holder, good in list(part.heard.items()):
                    if other is not part and good and self.member(holder, other) and other.free(holder):
                        other.heard[holder] = part.heard.pop(holder)
                        part.heard[state.key] = final
                        return
        raise AssertionError(f"{state.key} was not to hear {packet}; it had to: {state.due}")

    def member(self, key: Key, part: Shared) -> bool:
        """Whether a session is a member of a group, or was when the message came."""
        state = self.states.get(key)
        return key in part.members or (state is not None and part.wanted in state.subscriptions)

    # ---- the wire ------------------------------------------------------------------------------------------------------

    def take(self, state: State, packet: Packet) -> None:
        """What a client does with a packet that it did not ask for."""
        client = state.live
        assert client is not None
        if isinstance(packet, Publish):
            self.heard(state, packet)
            if packet.qos == 1 and state.manner != SILENT:
                client.send(Puback(packet.packet_id))
            elif packet.qos == 2 and state.manner != SILENT:
                client.send(Pubrec(packet.packet_id))
        elif isinstance(packet, Pubrel):
            state.half.discard(packet.packet_id)
            if state.manner == PROMPT:
                client.send(Pubcomp(packet.packet_id))
        else:
            raise TypeError(f"{state.key} was sent {packet}")

    async def answer(self, state: State, kind: type[Any]) -> Any:
        """The next packet of a kind; what comes before it is taken."""
        client = state.live
        assert client is not None
        while not isinstance(packet := await client.next(), kind):
            self.take(state, packet)
        return packet

    async def quiet(self) -> None:
        """Until nobody is sent anything more; then all that had to be heard has been."""
        news = 2
        while news:
            news -= 1
            for state in list(self.states.values()):
                client = state.live
                if client is None:
                    continue
                client.send(Pingreq())
                while not isinstance(packet := await client.next(), Pingresp):
                    self.take(state, packet)
                    news = 2
        for state in self.states.values():
            if state.live is not None and state.manner == PROMPT:
                missing = [one for one in state.due if one.must and not one.sent and not self.over(one.expires)]
                assert not missing, f"{state.key} has not heard {missing}"
                state.due.clear()
        for part in self.shared:
            assert part.heard or not part.must, f"no member has heard {part}"


def run(count: int, *, steps: int = 40, repeatable: bool = False) -> None:
    """`count` cases of up to `steps` steps; raises what was found, made small."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=count,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=repeatable,
            suppress_health_check=list(HealthCheck),
        ),
    )


def agrees(house: TableHouse, broker: Broker, *, sweep: bool) -> None:
    """Store what the journal has; after a sweep the store knows exactly what is outstanding, under its packet identifiers."""
    journal = broker.journal
    assert journal is not None
    house.stored(journal.take(sweep=sweep))
    broker.saved()
    if not sweep:
        return
    there = {session.record.number: session for session in broker.sessions.values() if session.record is not None}
    assert set(house.sessions) == set(there)
    assert {row.session for row in house.messages.values()} <= set(there)
    for number, session in there.items():
        sent = [packet_id for packet_id, message in session.inflight.items() if message is None or message.lasting]
        waiting = sum(message.lasting for message in session.queue or ())
        rows = [row.packet_id for row in house.messages.values() if row.session == number]
        assert sorted(rows) == sorted(sent + [0] * waiting)
        assert [wanted[0] for wanted in house.sessions[number].subscriptions] == list(session.subscriptions)
