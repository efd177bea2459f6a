"""What the gateway counts can be seen while it runs, under names that are documented, and each of them counts."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import control
from gateway.acl.enforcement import Enforcement
from gateway.acl.plugin import BUILT_IN, Context, make
from gateway.counts import Histogram
from gateway.credentials import Credentials
from gateway.links.dial import Way
from gateway.links.remote import Remote, RemoteLink
from gateway.objects import Objects
from gateway.rights import Rights
from gateway.settings import load
from gateway.web.server import Web
from tests.inside import Client, Inside, clients, inside
from tests.test_control import answer, ctxt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.counts import Family

DOCS = (Path(__file__).resolve().parent.parent / "docs/counters.md").read_text()
VALUE_VIEW = """
[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
observe = ["*"]
value_view = true
"""


def warm(value: float, **rest: Any) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value, **rest}}}


def read(gateway: Inside) -> dict[str, Any]:
    """Name -> value, or samples by label without those that are 0."""
    found: dict[str, Any] = {}
    for item in control.ask(gateway.state, {"do": "counters"}):
        name = item["name"].removeprefix("ctxt_").removesuffix("_total")
        found[name] = (
            {key: value for key, value in item["samples"].items() if value} if "label" in item else item["value"]
        )
    return found


def reported(client: Client, payload: Any, object_name: str = "room", **rest: Any) -> int:
    return client.report(f"{client.name}/{object_name}", payload, **rest)[0]


def of_plugins(folder: Path) -> Iterator[Family]:
    """What is counted where an ACL plugin is in use; by each of those that come with the gateway."""
    settings = load(
        None, {"CTXT_STATE_DIR": str(folder), "CTXT_LINK__USERNAME": "gateway", "CTXT_LINK__TOPIC_ESCAPE": ". *>"}
    )
    rights = Rights((), (), Objects())
    with closing(Credentials(folder / "plugins.db")) as credentials:
        context = Context(settings, rights, credentials, web=Web("127.0.0.1", 0))
        seen: set[str] = set()
        for name in BUILT_IN:
            for family in Enforcement(make(name, context), rights, credentials).families():
                if family.name not in seen:
                    seen.add(family.name)
                    yield family


def test_every_counter_is_documented_as_it_is_and_no_other_one(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway:
        found = answer(gateway, "counters")
    assert {item["kind"] for item in found} == {"counter", "gauge", "histogram"}
    outside = RemoteLink(Remote(Way("mqtt", "broker.home.local", 1883), "gateway1"), gateway_id="gateway1")
    found += [family.item() for family in outside.families()]
    found += [family.item() for family in of_plugins(tmp_path)]
    for item in found:
        label = f"`{item['label']}`" if "label" in item else ""
        assert f"| `{item['name']}` | {item['kind']} | {label} | {item['help']} |\n" in DOCS
        assert item["name"].endswith("_total") == (item["kind"] == "counter")
    names = [item["name"] for item in found]
    assert len(names) == len(set(names))
    assert re.findall(r"^\| `(\w+)`", DOCS, re.MULTILINE) == names
    assert set(re.findall(r"`(ctxt_\w+)`", DOCS)) == set(names)


def test_the_table_has_a_line_for_every_number(tmp_path: Path) -> None:
    with inside(tmp_path) as gateway, clients(gateway.port, "sensor") as (sensor,):
        reported(sensor, warm(1))
        done = ctxt(gateway, "counters")
        lines = [line.split() for line in done.stdout.splitlines()]
        assert lines[0] == ["NAME", "VALUE"]
        assert ["ctxt_broker_publishes_received_total", "qos=1", "1"] in lines
        assert ["ctxt_broker_connections", "1"] in lines
        assert ["ctxt_reports_total", "result=changed", "1"] in lines
        assert ["ctxt_batch_messages", "sum", "2"] in lines


def test_reports_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    with inside(
        tmp_path, "[limits]\ncreations_per_minute = 1\nrejection_burst = 3\nrejections_per_second = 1\n"
    ) as gateway:
        with clients(gateway.port, "sensor", "mallory") as (sensor, mallory):
            for value in (1, 2, 2):
                assert reported(sensor, warm(value)) == 0
            assert reported(sensor, warm(3), "second") == 0x97
            assert mallory.publish("report/mallory/ctxt/home.local/sensor/room", warm(9))[0] == 0x87
            assert reported(sensor, b"no JSON") == 0x99
            assert reported(sensor, warm(4), retain=True) == 0x99
            assert reported(sensor, {"values": 7}) == 0x99
            assert reported(sensor, [{"op": "remove", "path": "/nowhere"}]) == 0x83
            assert reported(sensor, warm(5), user=[("id", "once")]) == 0
            assert reported(sensor, warm(6), user=[("id", "once")]) == 0
            assert reported(sensor, warm(7, time="2026-01-01T00:00:00Z")) == 0
            assert reported(sensor, warm(8, time="2025-01-01T00:00:00Z")) == 0
            found = read(gateway)
        assert found["reports"] == {"changed": 4, "unchanged": 2, "refused": 6}
        assert found["reports_refused"] == {"400": 2, "403": 1, "409": 1, "422": 1, "429": 1}
        assert found["rejections_suppressed"] >= 1
        assert found["redelivered"] == 1
        assert found["late_members"] == 1
        assert (found["objects"], found["objects_created"], found["deltas"]) == (1, 1, 4)
        assert found["batch_messages"]["+Inf"] >= found["commits"] >= 13
        assert 0 < found["commit_seconds"] < 60
        assert found["redelivery_rings"] == 2
        assert found["waiting_bytes"] == 0


def test_requests_deletions_status_and_what_is_shown_is_counted(tmp_path: Path) -> None:
    settings = VALUE_VIEW + "[timing]\noffline_grace = 0\n"
    with inside(tmp_path, settings) as gateway, clients(gateway.port, "dash") as (dash,):
        dash.subscribe("snapshot/#", "value/#")
        with clients(gateway.port, "sensor") as (sensor,):
            reported(sensor, warm(1))
            dash.wait(lambda: len(dash.heard) == 2)
            reported(sensor, {"values": {"temperature": {"value": "hot"}}})  # a key of a view keeps its type
            dash.wait(lambda: len(dash.heard) == 4)
            sensor.request("read", {"resource": "ctxt://home.local/sensor/room"})
            sensor.request("read", {"resource": "ctxt://home.local/sensor/none"}, "2")
            sensor.publish("request/sensor", b"no JSON")
            reported(sensor, warm(1), "second")
            sensor.request("delete", {"resource": "ctxt://home.local/sensor/second"}, "3")
            found = read(gateway)
            assert (found["requests"], found["requests_refused"]) == (4, {"400": 1, "404": 1})
            assert (found["objects"], found["tombstones"], found["objects_deleted"]) == (1, 1, 1)
            assert found["value_view_left_out"] == 1
            assert (found["snapshots"], found["value_views"]) == (4, 4)
            sensor.drop()
            dash.wait(lambda: any(message.get("status") == "disconnected" for message in dash.messages()))
        assert read(gateway)["status_changes"] == 1


def test_a_histogram_is_cumulative_and_bounds_belong_to_it() -> None:
    sizes = Histogram(1, 4)
    for value in (1, 1, 4, 5, 500):
        sizes.add(value)
    found = sizes.family("name", "text")
    assert (found.samples, found.sum) == ({"1": 2, "4": 3, "+Inf": 5}, 511)
