"""Many objects and many children: a late joiner proves that its copy is complete, and a room with 10,000 messages works."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from gateway.client.replica import Replica
from gateway.objects import topic_of
from tests.acl.brokers_mosquitto import beside_mosquitto
from tests.inside import Client, clients, inside
from tests.running import need

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.service import Service
    from tests.inside import Inside

SETTINGS = """
[[namespace]]
match = "comm://home.local/{client}/**"
schema = "Communication"
report = ["*"]
observe = ["*"]

[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
observe = ["*"]

[limits]
objects_per_client = 100000
creations_per_minute = 1000000
reports_per_second = 1000000
report_burst = 1000000
children_per_collection = 100000
requests_per_second = 10000
request_burst = 10000
"""
OBJECTS = 20_000
CHILDREN = 10_000


def held(gateway: Inside) -> int:
    def look(service: Service) -> int:
        return len(service.engine.objects)

    return int(gateway.call(look))


def fill(gateway: Inside, client: Client, topics: list[str], payload: bytes) -> None:
    """Report on each, and wait until the gateway holds them all."""
    before = held(gateway)
    for number, topic in enumerate(topics, 1):
        client.paho.publish(f"report/{client.name}/{topic}", payload, qos=1)
        if number % 500 == 0:
            there = before + number - 500
            while held(gateway) < there:
                time.sleep(0.005)
    client.wait(lambda: held(gateway) == before + len(topics), 60)


def quiet(client: Client) -> None:
    """Wait until nothing more comes."""
    before = -1
    while len(client.heard) != before:
        before = len(client.heard)
        time.sleep(0.5)


def test_a_late_joiner_of_20_000_objects_fetches_what_the_broker_has_dropped_and_nothing_else(tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    with (
        # What waits for a client is bounded, and what does not fit in mosquitto drops.
        beside_mosquitto(tmp_path, SETTINGS, "sensor", "dash", extra="max_queued_messages 2000") as (gateway, broker),
        clients(broker.port, "sensor") as (sensor,),
    ):
        fill(
            gateway, sensor, [f"ctxt/home.local/sensor/{i:05}" for i in range(OBJECTS)], b'{"values":{"t":{"value":1}}}'
        )
        with clients(broker.port, "dash") as (dash,):
            dash.subscribe("inbox/dash")
            asked = time.monotonic()
            dash.subscribe("snapshot/ctxt/home.local/#", "delta/ctxt/home.local/#")
            quiet(dash)
            replica = Replica(jitter=lambda: 0.5)
            for topic, payload, _, _ in dash.heard:
                if topic.startswith(("snapshot/", "delta/")):
                    replica.feed(topic, payload, time.monotonic())
            came = len(replica)
            assert came < OBJECTS, "mosquitto has dropped nothing: this proves nothing"
            pages: list[dict[str, Any]] = []
            body: dict[str, Any] = {"prefix": "ctxt://home.local"}
            while True:
                page = dash.request("discover", body, f"d{len(pages)}")["body"]
                pages.append(page)
                if "next" not in page:
                    break
                body["after"] = page["next"]
            found = replica.compare(pages, asked, prefix="ctxt://home.local")
            assert not found.complete
            assert len(found.read) == OBJECTS - came
            assert all(replica.get(topic_of(url)) is None for url in found.read)
            for start in range(0, len(found.read), 100):
                wanted: dict[str, Any] = {"resources": found.read[start : start + 100]}
                while True:
                    page = dash.request("read", wanted, f"r{start}-{wanted.get('after', '')}")["body"]
                    for snapshot in page["snapshots"]:
                        replica.take(snapshot, time.monotonic())
                    if "next" not in page:
                        break
                    wanted["after"] = page["next"]
            found = replica.compare(pages, asked, prefix="ctxt://home.local")
            assert found.complete
            assert len(replica) == OBJECTS


def test_a_parent_with_10_000_children_is_read_added_to_and_deleted(tmp_path: Path) -> None:
    url = "comm://home.local/ana/chat"
    with inside(tmp_path, SETTINGS, "ana", "rui") as gateway, clients(gateway.port, "ana", "rui") as (ana, rui):
        assert ana.request("create", {"resource": url, "value": {"status": "open"}})["code"] == 201
        head = topic_of(url) + "/children/messages/rui"
        fill(gateway, rui, [f"{head}/{i:05}" for i in range(CHILDREN)], b'{"type":"chat","content":"hello"}')
        read: list[str] = []
        body: dict[str, Any] = {"resource": url, "children": True}
        while True:
            page = ana.request("read", body, f"p{len(read)}")["body"]
            read += [snapshot["url"] for snapshot in page["snapshots"]]
            if "next" not in page:
                break
            body["after"] = page["next"]
        assert len(read) == len(set(read)) == CHILDREN + 1
        topic = topic_of(url)
        rui.subscribe(f"delta/{topic}", f"delta/{topic}/children/#", qos=0)
        value = {"type": "chat", "content": "one more"}
        assert rui.request("create", {"parent": url, "collection": "messages", "value": value})["code"] == 201
        rui.wait(lambda: [payload for _, payload, _, _ in rui.heard if b"one more" in payload])
        assert ana.request("delete", {"resource": url}, "gone")["code"] == 200
        deleted: list[str] = []

        def all_told() -> bool:
            told = ((name, json.loads(payload)) for name, payload, _, _ in list(rui.heard) if name.startswith("delta/"))
            deleted[:] = [name for name, delta in told if delta.get("deleted")]
            return len(deleted) == CHILDREN + 2

        rui.wait(all_told, 60)
        # The parent goes last.
        assert deleted[-1] == f"delta/{topic}"
