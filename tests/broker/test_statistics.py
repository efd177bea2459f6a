"""`$SYS/broker/…` over real sockets: for whom, when, and what."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.broker.statistics import HEAD
from gateway.wire.packets import Property, Puback, Publish, Reason
from tests.broker.world import RawClient, TableHouse, run, running, until
from tests.inside import Client, inside

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {
    "version",
    "uptime",
    "clients/connected",
    "clients/total",
    "messages/received",
    "messages/sent",
    "bytes/received",
    "bytes/sent",
    "retained messages/count",
    "subscriptions/count",
}


def house() -> TableHouse:
    made = TableHouse()
    made.read["bob"] = ["open/#", "$SYS/broker/#"]
    made.read["mallory"] = ["#"]
    return made


def test_the_values_are_told_on_subscribe_and_renewed_in_time() -> None:
    async def go() -> None:
        async with running(house()) as (_, broker, port):
            gone = await RawClient.connect(port, "alice", properties={Property.SESSION_EXPIRY_INTERVAL: 100})
            gone.drop()
            alice = await RawClient.connect(port, "alice", client_id="2")
            alice.send(Publish("open/x", b"1", 1, retain=True, packet_id=1))
            await alice.expect(Puback)
            bob = await RawClient.connect(port, "bob")
            await until(lambda: broker.counters.connections == 2)
            assert await bob.subscribe("$SYS/broker/#", qos=1) == [1]
            first = await bob.collect(len(NAMES))
            assert all(publish.retain and publish.qos == 0 for publish in first)
            told = {publish.topic.removeprefix(HEAD): publish.payload.decode() for publish in first}
            assert set(told) == NAMES
            assert re.fullmatch(r"\d+ seconds", told["uptime"])
            assert told["clients/connected"] == "2"
            assert told["clients/total"] == "3"
            assert told["messages/received"] == "1"
            assert told["retained messages/count"] == "1"
            assert told["subscriptions/count"] == "1"
            assert int(told["bytes/received"]) > 50
            broker.look(broker.clock() + 9)
            assert await bob.silent()
            broker.look(broker.clock() + 11)
            again = await bob.collect(len(NAMES))
            assert not any(publish.retain for publish in again)
            renewed = {publish.topic.removeprefix(HEAD): publish.payload.decode() for publish in again}
            assert set(renewed) == NAMES
            assert int(renewed["messages/sent"]) >= len(NAMES)

    run(go)


def test_one_value_can_be_asked_for_and_zero_renews_none() -> None:
    async def go() -> None:
        async with running(house(), sys_interval=0) as (_, broker, port):
            bob = await RawClient.connect(port, "bob")
            await bob.subscribe("$SYS/+/clients/connected")
            assert (await bob.expect(Publish)).payload == b"1"
            broker.look(broker.clock() + 1_000)
            assert await bob.silent()

    run(go)


def test_a_filter_that_begins_with_a_wildcard_matches_none_of_them() -> None:
    async def go() -> None:
        async with running(house()) as (_, broker, port):
            mallory = await RawClient.connect(port, "mallory")
            assert await mallory.subscribe("#", "+/broker/#", "+/broker/uptime") == [0, 0, 0]
            broker.look(broker.clock() + 11)
            assert await mallory.silent()
            assert await mallory.subscribe("$SYS/broker/uptime") == [Reason.NOT_AUTHORIZED]

    run(go)


def test_the_settings_say_who_reads_them(tmp_path: Path) -> None:
    settings = '[broker]\nanonymous = true\nsys_read = ["dash", "@watch", "anonymous"]\n[groups]\nwatch = ["sensor"]\n'
    cases: list[tuple[str, set[str | None]]] = [
        (settings, {"dash", "sensor", None}),
        ("[broker]\nanonymous = true\n", {"dash", "sensor", "mallory"}),
    ]
    for number, (rule, names) in enumerate(cases):
        with inside(tmp_path / str(number), rule) as gateway:
            for name in ("dash", "sensor", "mallory", None):
                client = Client(gateway.port, name)
                granted = client.subscribe("$SYS/broker/#")[0]
                assert granted == (1 if name in names else Reason.NOT_AUTHORIZED), (name, rule)
                if granted == 1:
                    heard = client.heard
                    client.wait(lambda heard=heard: len(heard) == len(NAMES))  # type: ignore[misc]
                    told = {topic: payload for topic, payload, _, _ in heard}
                    assert told[HEAD + "version"].startswith(b"ctxt-gateway ")
                client.close()
