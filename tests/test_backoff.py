"""Wrong passwords: who is refused unheard, for how long, and who is not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from gateway import backoff
from gateway.acl.embedded import EmbeddedAcl
from gateway.backoff import Backoff
from gateway.broker.house import Limits, Peer, Refusal
from gateway.broker.listeners import Listener
from gateway.credentials import Credentials
from gateway.links.local import Entrance, LocalLink
from gateway.wire.packets import Connack, Connect, Pingreq, Pingresp, Publish
from tests.broker.world import RawClient, close_all, run
from tests.inside import PASSWORD, clients, inside
from tests.world import World

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from gateway.sessions import Restored


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def made(limit: int = 5, longest: float = 60.0) -> tuple[Backoff, Clock]:
    clock = Clock()
    return Backoff(limit, longest, clock), clock


def fail(found: Backoff, address: str, name: str, times: int) -> None:
    for _ in range(times):
        found.failed(address, name)


def test_the_pause_doubles_and_is_bounded() -> None:
    found, clock = made()
    fail(found, "a", "alice", 4)
    assert found.pause("a", "alice") == 0
    pauses = []
    for _ in range(9):
        found.failed("a", "alice")
        pauses.append(found.pause("a", "alice"))
        clock.now += pauses[-1]
        assert found.pause("a", "alice") == 0
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_time_heals() -> None:
    found, clock = made()
    fail(found, "a", "alice", 5 + backoff.WORST + 100)
    clock.now += 60 + 60 * (5 + backoff.WORST) / 5
    fail(found, "a", "alice", 4)
    assert found.pause("a", "alice") == 0


def test_nobody_is_locked_out_from_elsewhere() -> None:
    found, _ = made()
    for number in range(200):
        fail(found, f"bot{number}", "alice", 1)
    assert found.pause("bot7", "alice") > 0, "an address that has failed itself is one of many now"
    assert found.pause("home", "alice") == 0, "one that has not is heard"
    assert found.pause("bot7", "bob") == 0
    found.passed("home", "alice")
    fail(found, "home", "bob", 100)
    assert found.pause("home", "bob") > 0
    assert found.pause("home", "carol") > 0, "the address has guessed too much"
    assert found.pause("home", "alice") == 0, "who has logged in from here is not disturbed by others here"
    fail(found, "home", "alice", 5)
    assert found.pause("home", "alice") > 0, "but may not guess either"


def test_a_right_password_clears_only_its_own_counter() -> None:
    found, _ = made()
    fail(found, "a", "alice", 10)
    fail(found, "b", "alice", 10)
    fail(found, "a", "bob", 10)
    found.passed("a", "alice")
    assert found.pause("a", "alice") == 0
    assert found.pause("b", "alice") > 0
    assert found.pause("a", "bob") > 0


def test_one_device_with_a_wrong_password_does_not_silence_its_neighbours() -> None:
    found, clock = made()
    for _ in range(3_000):  # it tries every second, for as long as it takes
        clock.now += 1
        if not found.pause("gateway", "broken"):
            found.failed("gateway", "broken")
        assert found.pause("gateway", "neighbour") == 0


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "MOST", 50)
    found, _ = made()
    for number in range(1_000):
        found.failed(f"a{number}", f"n{number}")
        found.passed(f"a{number}", "alice")
    assert len(found) == 4 * 50


@given(st.lists(st.tuples(st.sampled_from(["f", "p", "t"]), st.sampled_from("ab"), st.sampled_from("xy")), max_size=60))
def test_no_pause_is_longer_than_the_longest(steps: list[tuple[str, str, str]]) -> None:
    found, clock = made(limit=2, longest=30)
    for step, address, name in steps:
        if step == "f":
            found.failed(address, name)
        elif step == "p":
            found.passed(address, name)
            assert found.pause(address, name) == 0
        else:
            clock.now += 7
        assert 0 <= found.pause(address, name) <= 30


# ---- on real sockets ---------------------------------------------------------------------------------------------------


async def connack(port: int, name: str, password: str, level: int = 5) -> Connack:
    client = await RawClient.open(port, level)
    client.send(Connect("c", username=name, password=password.encode(), level=level))
    found = await client.expect(Connack)
    client.drop()
    return found


class Counting(Credentials):
    """Counts what it hashes."""

    hashed = 0

    def verify(self, name: str, password: bytes) -> bool:
        self.hashed += 1
        return super().verify(name, password)


class Nothing:
    counter = 0

    def receive(self, batch: list[Publish]) -> None:
        raise AssertionError

    def retained(self, topic_filter: str) -> Any:
        return iter(())

    def save(self) -> None:
        pass

    def sessions(self) -> tuple[Restored, ...]:
        return ()

    def settled(self, then: Any) -> None:
        then()

    def present(self, client: str) -> None:
        pass

    def lost(self, client: str) -> None:
        pass

    def announcement(self, status: str) -> bytes:
        raise AssertionError

    def begin(self, seen: int, own: int) -> int:
        raise AssertionError

    def joined(self, *, lost: bool, strays: list[str]) -> None:
        raise AssertionError

    def session_lost(self, key: tuple[str, str]) -> None:
        raise AssertionError

    def link_failed(self, error: BaseException) -> None:
        raise AssertionError


def local(tmp_path: Path, clock: Clock, limit: int = 3) -> tuple[LocalLink, Counting]:
    credentials = Counting(tmp_path / "clients.db")
    credentials.add("alice", PASSWORD)
    link = LocalLink(
        [Entrance(Listener("here", "mqtt", "127.0.0.1"))],
        Limits(),
        EmbeddedAcl(World().rights),
        credentials,
        wrong_passwords=limit,
        clock=clock,
    )
    return link, credentials


def test_in_the_pause_nothing_is_hashed_and_the_client_is_told(tmp_path: Path) -> None:
    async def go() -> None:
        clock = Clock()
        link, credentials = local(tmp_path, clock)
        await link.start(Nothing())
        port = link.address[1]
        try:
            for _ in range(3):
                assert (await connack(port, "alice", "wrong")).reason == 0x86
            for level in (5, 4):
                refused = await connack(port, "alice", PASSWORD, level)
                assert refused.reason == (0x9F if level == 5 else 0x88)  # 3.1.1: return code 3, server unavailable
            assert credentials.hashed == 3
            assert link.broker.counters.connects_refused[0x9F] == 2
            (text,) = [v for v in ((await connack(port, "alice", "x")).properties or {}).values() if isinstance(v, str)]
            assert text == "too many wrong passwords: put the password right and try again in 1 s"
            clock.now += 1
            assert (await connack(port, "alice", PASSWORD)).reason == 0
            assert credentials.hashed == 4
            assert (await connack(port, "alice", PASSWORD)).reason == 0, "and now it is known without hashing"
            assert credentials.hashed == 4
        finally:
            await close_all()
            await link.stop()
            credentials.close()

    run(go)


def test_a_flood_of_wrong_passwords_is_hashed_no_more_than_the_limit_and_delays_nobody(tmp_path: Path) -> None:
    async def go() -> None:
        clock = Clock()
        link, credentials = local(tmp_path, clock)
        await link.start(Nothing())
        port = link.address[1]
        try:
            there = await RawClient.open(port)
            there.send(Connect("there", username="alice", password=PASSWORD.encode()))
            assert (await there.expect(Connack)).reason == 0
            floods = [asyncio.create_task(connack(port, f"n{number % 7}", "wrong")) for number in range(150)]
            there.send(Pingreq())
            await there.expect(Pingresp)
            assert not all(flood.done() for flood in floods), "the loop was not held up"
            reasons = [(await flood).reason for flood in floods]
            # 3 for each name, and no more than 12 from one address: the log-in before is not one of them.
            assert reasons.count(0x86) == credentials.hashed - 1 == 12
            assert reasons.count(0x9F) == 150 - 12
            assert (await connack(port, "alice", PASSWORD)).reason == 0, "who was here before is heard"
        finally:
            await close_all()
            await link.stop()
            credentials.close()

    run(go)


def test_an_ipv6_network_is_one_address(tmp_path: Path) -> None:
    async def go() -> None:
        link, credentials = local(tmp_path, Clock())
        for number in range(3):
            peer = Peer(f"2001:db8::{number}", 1, loopback=False, listener="here")
            assert await link.authenticate("alice", b"wrong", peer) is None
        answer = await link.authenticate("alice", PASSWORD.encode(), peer._replace(address="2001:db8::ff"))
        assert isinstance(answer, Refusal)
        assert await link.authenticate("alice", PASSWORD.encode(), peer._replace(address="2001:db9::1")) == "alice"
        await link.stop()
        credentials.close()

    run(go)


def test_the_settings_say_how_many_and_how_long(tmp_path: Path) -> None:
    settings = "[broker]\nwrong_passwords = 2\nwrong_password_pause = 1\n"
    with inside(tmp_path, settings) as gateway:

        async def go() -> None:
            port = gateway.port
            assert [(await connack(port, "dash", "wrong")).reason for _ in range(3)] == [0x86, 0x86, 0x9F]
            for _ in range(100):
                if (await connack(port, "dash", PASSWORD)).reason == 0:
                    break
                await asyncio.sleep(0.1)
            await close_all()

        run(go)
        with clients(gateway.port, "dash") as (dash,):
            assert dash.connected == 0
