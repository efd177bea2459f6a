"""What an admitted client may send: anything. Nothing but its own connection may suffer."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from gateway.wire.codec import encode
from gateway.wire.packets import (
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Subscription,
    Unsubscribe,
    Will,
)
from tests.broker.world import RawClient, TableHouse, run, running, until
from tests.fuzz import broker as machine
from tests.fuzz.broker import agrees

if TYPE_CHECKING:
    from collections.abc import Callable

TOPICS = ["report/alice/x", "open/a", "open/b/c", "secret/x", "presence/alice", "$SYS/x"]
FILTERS = ["open/#", "open/+", "snapshot/#", "#", "+/+", "open/a", "bad/#/x", "$share/g/open/#", "$SYS/#"]


def packet(dice: random.Random) -> Packet:
    packet_id = dice.randint(1, 6)
    reason = dice.choice([0, 0, 0x80])
    kinds: list[Callable[[], Packet]] = [
        lambda: Publish(dice.choice(TOPICS), dice.randbytes(dice.randint(0, 50)), 0, dice.random() < 0.3),
        lambda: Publish(
            dice.choice(TOPICS), b"x", dice.choice([1, 2]), dice.random() < 0.3, dice.random() < 0.3, packet_id
        ),
        lambda: Publish("open/a", b"x", 1, packet_id=packet_id, properties={Property.MESSAGE_EXPIRY_INTERVAL: 1}),
        lambda: Puback(packet_id, reason),
        lambda: Pubrec(packet_id, reason),
        lambda: Pubrel(packet_id),
        lambda: Pubcomp(packet_id),
        lambda: Subscribe(
            packet_id,
            [Subscription(dice.choice(FILTERS), dice.randint(0, 2), dice.random() < 0.1, False, dice.randint(0, 2))],
        ),
        lambda: Unsubscribe(packet_id, [dice.choice(FILTERS)]),
        Pingreq,
        lambda: Disconnect(dice.choice([0, 4])) if dice.random() < 0.1 else Pingreq(),
    ]
    return dice.choice(kinds)()


@pytest.mark.parametrize("keep_sessions", [False, True])
@pytest.mark.parametrize("level", [4, 5])
def test_nothing_that_a_client_sends_reaches_the_loops_exception_handler_or_another_client(
    level: int, keep_sessions: bool
) -> None:
    async def go() -> None:
        accidents: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: accidents.append(context))
        house = TableHouse()
        house.kept = {f"snapshot/{i}": b"x" for i in range(20)}
        async with running(house, keep_sessions=keep_sessions, receive_maximum=5, queue_messages=20) as (
            _,
            broker,
            port,
        ):
            witness = await RawClient.connect(port, "bob", level)
            await witness.subscribe("open/#")
            watching = asyncio.create_task(drain(witness))
            for seed in range(150):
                dice = random.Random(seed * 2 + level)
                client = await RawClient.connect(
                    port,
                    "alice",
                    level,
                    clean_start=dice.random() < 0.3,
                    will=Will(dice.choice(TOPICS), b"w", dice.randint(0, 2), dice.random() < 0.5),
                    properties={Property.SESSION_EXPIRY_INTERVAL: 60, Property.RECEIVE_MAXIMUM: 3}
                    if level == 5
                    else None,
                )
                assert client.connack.reason == 0
                data = bytearray(b"".join(encode(packet(dice), level) for _ in range(60)))
                if dice.random() < 0.6:
                    for _ in range(dice.randint(1, 4)):
                        data[dice.randrange(len(data))] = dice.randrange(256)
                house.generation += dice.random() < 0.2
                house.busy = dice.random() < 0.2
                client.send(bytes(data))
                await asyncio.sleep(0.001)
                house.settle()
                client.drop()
                if keep_sessions and dice.random() < 0.5:
                    agrees(house, broker, sweep=dice.random() < 0.5)
            await until(lambda: broker.clients() == {"bob"})
            if keep_sessions:
                agrees(house, broker, sweep=True)
                assert broker.journal is not None
                assert broker.journal.next_message > 100
            witness.send(Pingreq())
            await until(lambda: any(isinstance(packet, Pingresp) for packet in witness.packets))
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            assert not accidents
            alice = broker.sessions.get(("alice", "alice-1"))
            assert broker.queued == (alice.queued if alice is not None else 0)
            if alice is not None:
                assert alice.held == sum(message.size for message in alice.inflight.values() if message is not None)
                broker.sweep(float("inf"))
            assert set(broker.sessions) == {("bob", "bob-1")}
            assert broker.queued == 0
            assert len(house.got) > 100

    run(go)


async def drain(client: RawClient) -> None:
    while data := await client.reader.read(65_536):
        client.packets.extend(client.decoder.feed(data))


def test_five_clients_hear_what_they_have_to_and_nothing_else() -> None:
    machine.TALLY.clear()
    machine.run(60, steps=60, repeatable=True)
    assert machine.TALLY["cases"] >= 60
    assert machine.TALLY["heard"] > 300
