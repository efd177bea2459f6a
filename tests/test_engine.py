"""Every rule of reports and of what Observers see, one test each. No I/O; time is an argument."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import messages
from gateway.catalogue import Problem, Schema
from gateway.effects import Effects
from gateway.objects import DISCONNECTED, LIVE, STALE, DataObject
from gateway.patch import apply_patch, merge
from gateway.rights import ANONYMOUS, namespace
from tests.world import CATALOGUE, EPOCH, EVERYONE, NOBODY, NOW, World, only, own

TEMPERATURE = {"values": {"temperature": {"value": 21.5}}}


def warmer(value: Any) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value}}}


# ---- creation ------------------------------------------------------------------------------------------------------------


def test_the_first_report_creates_the_object_with_the_namespaces_schema() -> None:
    world = World()
    (delta,) = world.must("sensor", "sensor/room", TEMPERATURE)
    assert delta == {
        "epoch": EPOCH,
        "version": 1,
        "modified": messages.rfc3339(int(NOW * 1000)),
        "created": True,
        "schema": CATALOGUE.get("Context").url,
        "reporter": "sensor",
        "status": "live",
        "value": TEMPERATURE,
    }
    assert world.effects.fresh == [world.obj("sensor/room")]


def test_a_json_patch_on_an_object_that_does_not_exist_applies_to_an_empty_one() -> None:
    world = World()
    world.must("sensor", "sensor/room", [{"op": "add", "path": "/values", "value": {"t": {"value": 1}}}])
    assert world.data("sensor/room") == {"values": {"t": {"value": 1}}}


def test_a_client_creates_only_below_its_own_name() -> None:
    world = World()
    assert world.code("mallory", "sensor/room", TEMPERATURE) == 404
    assert len(world.objects) == 0


def test_existing_and_missing_answer_alike_to_who_may_know_of_neither() -> None:
    world = World(own(observe=only("friend")))
    world.must("sensor", "sensor/room", TEMPERATURE)
    there = world.report("mallory", "sensor/room", TEMPERATURE)
    missing = world.report("mallory", "sensor/other", TEMPERATURE)
    assert there is not None
    assert missing is not None
    assert there.code == missing.code == 403
    assert there.text == missing.text


def test_an_unknown_scheme_is_404_and_a_bad_spelling_is_400_with_the_right_one() -> None:
    world = World(namespace("*://*/{client}/**", schema="Context", report=EVERYONE, observe=EVERYONE))
    assert world.code("sensor", "x/home.local/sensor/room", TEMPERATURE) == 404
    refused = world.report("sensor", "ctxt/Home.local/sensor/room", TEMPERATURE)
    assert refused is not None
    assert refused.code == 400
    assert "ctxt/home.local/sensor/room" in refused.text


def test_a_scheme_that_the_namespaces_schema_does_not_have_is_refused() -> None:
    world = World(namespace("*://*/{client}/**", schema="Context", report=EVERYONE, observe=EVERYONE))
    refused = world.report("sensor", "comm/home.local/sensor/room", {})
    assert refused is not None
    assert refused.code == 404
    assert "Context" in refused.text


def test_creations_are_bounded_in_number_rate_and_bytes() -> None:
    world = World(objects_per_client=2, creations_per_minute=600)
    assert [world.code("a", f"a/{i}", TEMPERATURE) for i in range(3)] == [200, 200, 413]
    world = World(creations_per_minute=2)
    assert [world.code("a", f"a/{i}", TEMPERATURE) for i in range(3)] == [200, 200, 429]
    world.now += 31
    assert world.code("a", "a/2", TEMPERATURE) == 200
    world = World(objects=2)
    assert [world.code(name, f"{name}/x", TEMPERATURE) for name in ("a", "b", "c")] == [200, 200, 507]
    world = World(bytes_per_client=100)
    assert [world.code("a", f"a/{i}", TEMPERATURE) for i in range(3)] == [200, 200, 413]


def test_a_clients_bytes_are_given_back_when_its_objects_shrink_or_go() -> None:
    world = World(bytes_per_client=400)
    world.must("a", "a/1", {"values": {"note": {"value": "x" * 300}}})
    assert world.code("a", "a/2", {"values": {"note": {"value": "x" * 300}}}) == 413
    world.must("a", "a/1", {"values": {"note": {"value": "x"}}})
    assert world.code("a", "a/2", {"values": {"note": {"value": "x" * 300}}}) == 200
    assert world.request("a", "delete", {"resource": "ctxt://home.local/a/2"})["code"] == 200
    assert world.code("a", "a/3", {"values": {"note": {"value": "x" * 300}}}) == 200


# ---- changes -------------------------------------------------------------------------------------------------------------


def test_versions_grow_by_one_and_deltas_say_what_the_report_said() -> None:
    world = World()
    world.must("sensor", "sensor/room", TEMPERATURE)
    (delta,) = world.must("sensor", "sensor/room", warmer(22))
    assert (delta["version"], delta["merge"]) == (2, warmer(22))
    patch = [{"op": "replace", "path": "/values/temperature/value", "value": 23}]
    (delta,) = world.must("sensor", "sensor/room", patch)
    assert (delta["version"], delta["patch"]) == (3, patch)
    assert "merge" not in delta


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [(1, 1, False), (1, 1.0, True), (1, True, True), (0, False, True), (0.0, -0.0, True), ("a", "a", False)],
)
def test_a_change_is_what_changes_the_canonical_json(before: Any, after: Any, changes: bool) -> None:
    world = World()
    world.must("sensor", "sensor/room", warmer(before))
    deltas = world.must("sensor", "sensor/room", warmer(after))
    assert bool(deltas) is changes
    assert json.dumps(world.data("sensor/room")) == json.dumps(warmer(after if changes else before))


def test_only_the_reporter_writes() -> None:
    world = World(namespace("ctxt://home.local/**", schema="Context", report=EVERYONE, observe=EVERYONE))
    world.must("sensor", "room", TEMPERATURE)
    refused = world.report("mallory", "room", warmer(99))
    assert refused is not None
    assert refused.code == 403
    assert "'sensor'" in refused.text
    assert world.data("room") == TEMPERATURE
    assert world.deltas() == []
    (message,) = world.inbox()
    assert message["type"] == "rejection"
    assert message["resource"] == "ctxt://home.local/room"
    assert message["code"] == 403


def test_the_result_must_satisfy_the_schema_and_the_place_is_told() -> None:
    world = World()
    world.must("sensor", "sensor/room", TEMPERATURE)
    refused = world.report("sensor", "sensor/room", {"values": {"temperature": {"unit": 7}}})
    assert refused is not None
    assert refused.code == 422
    assert refused.place == "/values/temperature/unit"
    assert "7 is not of type 'string'" in refused.text
    (message,) = world.inbox()
    assert message["place"] == "/values/temperature/unit"
    assert world.obj("sensor/room").version == 1


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", 400),
        (b"hot", 400),
        (b"21.5", 400),
        (b'"text"', 400),
        (b"null", 400),
        (b"true", 400),
        (b'{"a":NaN}', 400),
        (b'{"a":Infinity}', 400),
        (b'{"a":1} {"b":2}', 400),
        (b'{"a":"\xff"}', 400),
        (b'{"a":"\\ud800"}', 400),
        (b'{"values":' * 1000 + b"1" + b"}" * 1000, 413),
        (b"[" * 60_000 + b"]" * 60_000, 413),
        (b'{"values":{"t":{"value":"' + b"x" * 65_536 + b'"}}}', 413),
        (b'[{"op":"test","path":"/values/temperature/value","value":99}]', 409),
        (b'[{"op":"remove","path":"/nowhere"}]', 409),
        (b'{"values":{"temperature":{"value":[[1]]}}}', 422),
    ],
)
def test_a_bad_report_changes_nothing_and_is_told_once(payload: bytes, code: int) -> None:
    world = World()
    world.must("sensor", "sensor/room", TEMPERATURE)
    refused = world.report("sensor", "sensor/room", payload)
    assert refused is not None
    assert refused.code == code
    assert (world.obj("sensor/room").version, world.data("sensor/room")) == (1, TEMPERATURE)
    assert not world.effects.durable()
    (message,) = world.inbox()
    assert message["code"] == code
    assert message["description"] == refused.text
    assert world.code("sensor", "sensor/new", payload) == code
    assert "ctxt/home.local/sensor/new" not in world.objects


def test_of_duplicate_keys_the_last_wins_and_big_integers_become_doubles() -> None:
    world = World()
    world.must("sensor", "sensor/room", b'{"values":{"t":{"value":1,"value":2}}}')
    assert world.data("sensor/room")["values"]["t"]["value"] == 2
    world.must("sensor", "sensor/room", b'{"values":{"t":{"value":123456789012345678901234567890}}}')
    assert world.data("sensor/room")["values"]["t"]["value"] == 1.2345678901234568e29


def test_a_payload_of_64_kib_is_taken_and_one_byte_more_is_not() -> None:
    world = World(data_bytes=200_000)
    frame = b'{"description":"%b"}'
    room = 65_536 - len(frame) + 2
    code = world.code("sensor", "sensor/a", frame % (b"x" * room))
    assert code in (200, 422)
    assert world.code("sensor", "sensor/a", frame % (b"x" * (room + 1))) == 413


def test_an_object_cannot_grow_beyond_its_limit() -> None:
    world = World(data_bytes=1_000)
    for i in range(20):
        world.report("sensor", "sensor/room", {"values": {f"v{i}": {"value": "x" * 50}}})
    assert len(world.obj("sensor/room").render()) <= 1_000
    refused = world.report("sensor", "sensor/room", {"values": {"w": {"value": "x" * 50}}})
    assert refused is not None
    assert refused.code == 413
    assert world.code("sensor", "sensor/room", {"values": {"v1": None}}) == 200


def test_reports_are_limited_in_rate_and_others_do_not_suffer() -> None:
    world = World(reports_per_second=10, report_burst=10)
    codes = [world.code("a", "a/x", warmer(i)) for i in range(12)]
    assert codes.count(200) == 10
    assert codes[-1] == 429
    assert world.code("b", "b/x", TEMPERATURE) == 200
    world.now += 1
    assert world.code("a", "a/x", warmer(99)) == 200


def test_inbox_messages_are_rate_limited_and_say_how_many_were_left_out() -> None:
    world = World(rejections_per_second=1, rejection_burst=3)
    told = 0
    for _ in range(100):
        world.report("a", "a/x", b"bad")
        told += len(world.inbox())
    assert told == 3
    world.now += 1.5
    world.report("a", "a/x", b"bad")
    (message,) = world.inbox()
    assert message["suppressed"] == 97


# ---- late reports ---------------------------------------------------------------------------------------------------------


def at(value: Any, time: str | None) -> dict[str, Any]:
    return {"values": {"t": {"value": value, **({"time": time} if time else {})}}}


def test_a_member_that_is_older_than_the_held_one_leaves_the_data_alone() -> None:
    world = World()
    world.must("s", "s/x", at(2, "2026-01-01T10:00:00.000Z"))
    assert world.must("s", "s/x", at(1, "2026-01-01T09:00:00.000Z")) == []
    assert world.data("s/x") == at(2, "2026-01-01T10:00:00.000Z")
    assert world.engine.counters.late == 1


def test_times_are_compared_as_instants_not_as_text() -> None:
    world = World()
    world.must("s", "s/x", at(2, "2026-01-01T10:00:00Z"))
    assert world.must("s", "s/x", at(1, "2026-01-01T11:30:00.5+02:00")) == []
    assert world.must("s", "s/x", at(3, "2026-01-01T11:30:00+01:00"))


def test_of_a_report_with_old_and_new_members_the_new_ones_count_and_the_delta_says_just_them() -> None:
    world = World()
    world.must("s", "s/x", at(2, "2026-01-01T10:00:00.000Z"))
    late = {"values": {"t": {"value": 1, "time": "2026-01-01T09:00:00.000Z"}, "u": {"value": 5}}}
    (delta,) = world.must("s", "s/x", late)
    assert delta["merge"] == {"values": {"u": {"value": 5}}}
    assert world.data("s/x")["values"]["t"]["value"] == 2


def test_a_json_patch_with_a_late_member_sends_the_change_that_was_made() -> None:
    world = World()
    world.must("s", "s/x", at(2, "2026-01-01T10:00:00.000Z"))
    before = world.data("s/x")
    ops = [
        {"op": "replace", "path": "/values/t", "value": {"value": 1, "time": "2026-01-01T09:00:00.000Z"}},
        {"op": "add", "path": "/values/u", "value": {"value": 5}},
    ]
    (delta,) = world.must("s", "s/x", ops)
    assert apply_patch(before, delta["patch"]) == world.data("s/x")
    assert world.data("s/x")["values"]["t"]["value"] == 2


def test_a_member_without_time_counts_as_now_so_an_older_one_cannot_follow_it() -> None:
    world = World(now=1_767_268_800.0)  # 2026-01-01T12:00:00Z
    world.must("s", "s/x", at(2, "2026-01-01T10:00:00.000Z"))
    (delta,) = world.must("s", "s/x", at(3, None))
    assert delta["merge"] == at(3, "2026-01-01T12:00:00.000Z")
    assert world.must("s", "s/x", at(1, "2026-01-01T11:00:00.000Z")) == []
    assert world.data("s/x")["values"]["t"]["value"] == 3


def test_a_held_time_far_in_the_future_orders_nothing() -> None:
    world = World(now=1_767_268_800.0)
    world.must("s", "s/x", at(2, "2036-01-01T10:00:00.000Z"))
    world.must("s", "s/x", at(3, "2026-01-01T12:00:00.000Z"))
    assert world.data("s/x")["values"]["t"]["value"] == 3


# ---- redelivery ------------------------------------------------------------------------------------------------------------


def test_an_id_is_remembered_per_client_and_bounded() -> None:
    world = World(deduplication_ids=3)
    effects = Effects()
    for i in range(5):
        world.engine.remember(effects, "a", f"id{i}", 200, NOW)
    assert [world.engine.remembered("a", f"id{i}", NOW) for i in range(5)] == [None, None, 200, 200, 200]
    assert world.engine.remembered("b", "id4", NOW) is None
    assert effects.ids == [("a", f"id{i}", 200) for i in range(5)]


# ---- deletion --------------------------------------------------------------------------------------------------------------


def test_deleting_leaves_a_tombstone_with_the_next_version() -> None:
    world = World()
    world.must("s", "s/x", TEMPERATURE)
    answer = world.request("s", "delete", {"resource": "ctxt://home.local/s/x"})
    assert answer["code"] == 200
    (delta,) = world.deltas()
    assert (delta["version"], delta["deleted"]) == (2, True)
    tombstone = orjson.loads(messages.snapshot(world.obj("s/x"), EPOCH))
    assert tombstone == {
        "url": "ctxt://home.local/s/x",
        "epoch": EPOCH,
        "version": 2,
        "modified": messages.rfc3339(int(NOW * 1000)),
        "deleted": True,
    }
    assert world.code("s", "s/x", TEMPERATURE) == 410
    assert world.request("s", "read", {"resource": "ctxt://home.local/s/x"})["code"] == 410


def test_only_the_reporter_deletes() -> None:
    world = World()
    world.must("s", "s/x", TEMPERATURE)
    assert world.request("mallory", "delete", {"resource": "ctxt://home.local/s/x"})["code"] == 403
    assert not world.obj("s/x").deleted


def test_a_purged_tombstone_raises_the_floor_and_new_objects_start_above_it() -> None:
    world = World(tombstone_ttl=60)
    world.must("s", "s/x", TEMPERATURE)
    for value in range(9):
        world.must("s", "s/x", warmer(value))
    world.request("s", "delete", {"resource": "ctxt://home.local/s/x"})
    assert world.tick(59) == []
    assert "ctxt/home.local/s/x" in world.objects
    world.tick(2)
    assert "ctxt/home.local/s/x" not in world.objects
    assert world.effects.floors == {"ctxt/home.local": 11}
    assert [obj.topic for obj in world.effects.purged] == ["ctxt/home.local/s/x"]
    (delta,) = world.must("s", "s/y", TEMPERATURE)
    assert delta["version"] == 12
    world = World(own(), floors={"ctxt/home.local": 11})
    (delta,) = world.must("s", "s/x", TEMPERATURE)
    assert delta["version"] == 12


def test_children_go_before_their_parent() -> None:
    world = World()
    world.must("s", "s/x", TEMPERATURE)
    world.must("dash", "s/x/children/actions/dash/1", _action())
    world.request("s", "delete", {"resource": "ctxt://home.local/s/x"})
    assert [obj.topic.rsplit("/", 1)[1] for obj, _ in world.effects.deltas] == ["1", "x"]
    assert all(obj.deleted for obj in world.objects)


# ---- children --------------------------------------------------------------------------------------------------------------


def _action() -> dict[str, Any]:
    examples: list[dict[str, Any]] = CATALOGUE.get(CATALOGUE.get("Context").children["actions"]).document["examples"]
    return examples[0]


def test_an_observer_adds_a_child_of_its_own() -> None:
    world = World()
    world.must("s", "s/x", TEMPERATURE)
    (delta,) = world.must("dash", "s/x/children/actions/dash/1", _action())
    assert delta["reporter"] == "dash"
    snapshot = orjson.loads(messages.snapshot(world.obj("s/x/children/actions/dash/1"), EPOCH))
    assert snapshot["parent"] == "ctxt://home.local/s/x"


def test_a_child_needs_its_parent_its_collection_and_its_own_name() -> None:
    world = World()
    assert world.code("dash", "s/x/children/actions/dash/1", _action()) == 404
    world.must("s", "s/x", TEMPERATURE)
    assert world.code("dash", "s/x/children/nothing/dash/1", _action()) == 404
    assert world.code("dash", "s/x/children/actions/other/1", _action()) == 403
    assert world.code("dash", "s/x/children", _action()) == 400
    world.request("s", "delete", {"resource": "ctxt://home.local/s/x"})
    assert world.code("dash", "s/x/children/actions/dash/1", _action()) == 404


def test_who_may_not_observe_the_parent_adds_nothing() -> None:
    world = World(own(observe=NOBODY))
    world.must("s", "s/x", TEMPERATURE)
    assert world.code("dash", "s/x/children/actions/dash/1", _action()) == 403
    assert world.code("s", "s/x/children/actions/s/1", _action()) == 200


def test_children_are_bounded_per_client() -> None:
    world = World(children_per_collection=2)
    world.must("s", "s/x", TEMPERATURE)
    codes = [world.code("dash", f"s/x/children/actions/dash/{i}", _action()) for i in range(3)]
    assert codes == [200, 200, 413]
    assert world.code("other", "s/x/children/actions/other/1", _action()) == 200


# ---- status ----------------------------------------------------------------------------------------------------------------


def test_silence_makes_stale_and_any_report_makes_live_again() -> None:
    world = World(own(stale_after=60))
    world.must("s", "s/x", TEMPERATURE)
    assert world.tick(59) == []
    (delta,) = world.tick(2)
    assert (delta["status"], delta["version"]) == (STALE, 2)
    assert world.tick(1000) == []
    (delta,) = world.must("s", "s/x", TEMPERATURE)
    assert (delta["status"], delta["version"]) == (LIVE, 3)
    assert "merge" not in delta
    assert world.tick(59) == []
    assert world.tick(2)[0]["status"] == STALE


def test_a_change_of_a_stale_object_tells_both_in_one_delta() -> None:
    world = World(own(stale_after=60))
    world.must("s", "s/x", TEMPERATURE)
    world.tick(61)
    (delta,) = world.must("s", "s/x", warmer(1))
    assert (delta["merge"], delta["status"], delta["version"]) == (warmer(1), LIVE, 3)


def test_reports_put_staleness_off() -> None:
    world = World(own(stale_after=60))
    world.must("s", "s/x", TEMPERATURE)
    for value in range(10):
        assert world.tick(30) == []
        world.must("s", "s/x", warmer(value))


def test_a_lost_client_is_disconnected_after_the_grace() -> None:
    world = World(offline_grace=5)
    world.must("s", "s/x", TEMPERATURE)
    world.must("s", "s/y", TEMPERATURE)
    world.now += 10
    assert world.presence("s", online=False) == []
    assert world.tick(4.9) == []
    world.tick(0.2)
    deltas = world.tick(0.1)
    assert [delta["status"] for delta in deltas] == [DISCONNECTED] * 2
    deltas = world.presence("s", online=True)
    assert [delta["status"] for delta in deltas] == [LIVE] * 2


def test_who_is_back_within_the_grace_was_never_away() -> None:
    world = World(offline_grace=5)
    world.must("s", "s/x", TEMPERATURE)
    world.presence("s", online=False)
    world.tick(4)
    world.presence("s", online=True)
    assert world.tick(100) == []
    assert world.tick(100) == []


def test_status_deltas_of_a_client_with_many_objects_are_paced() -> None:
    world = World(status_pace=10, creations_per_minute=0)
    for i in range(25):
        world.must("s", f"s/{i}", TEMPERATURE)
    world.now += 10
    world.presence("s", online=False)
    world.tick(6)
    counts = [len(world.tick(0.1)) for _ in range(4)]
    assert counts == [10, 10, 5, 0]


def test_after_a_start_last_seen_is_the_start() -> None:
    world = World(own(stale_after=60))
    world.must("s", "s/x", TEMPERATURE)
    world = World(own(stale_after=60), held=list(world.objects), now=NOW + 1_000_000)
    assert world.tick(59) == []
    assert world.tick(2)[0]["status"] == STALE


# ---- snapshots -------------------------------------------------------------------------------------------------------------


def test_snapshots_follow_changes_by_the_interval_latest_wins() -> None:
    world = World(snapshot_interval=0.1)
    world.must("s", "s/x", TEMPERATURE)
    world.engine.shown(world.obj("s/x"))
    world.must("s", "s/x", warmer(1))
    world.must("s", "s/x", warmer(2))
    assert world.engine.snapshots(world.now + 0.05) == []
    assert world.engine.snapshots(world.now + 0.11) == [world.obj("s/x")]
    assert world.engine.snapshots(world.now + 10) == []


def test_under_load_snapshots_take_a_quarter_at_most_but_none_waits_longer_than_the_maximum() -> None:
    world = World(snapshot_interval=0.1, snapshot_max=2.0, creations_per_minute=0, reports_per_second=0)
    big = {"values": {f"note{i}": {"value": "x" * 1000} for i in range(50)}}
    for i in range(100):
        world.must("s", f"s/{i}", big if i == 0 else TEMPERATURE)
        world.engine.shown(world.obj(f"s/{i}"))
    sent = shown = 0
    oldest = 0.0
    for step in range(1000):
        world.now += 0.01
        for i in range(100):
            world.report("s", f"s/{i}", warmer(step))
            sent += sum(len(delta) for _, delta in world.effects.deltas)
        due = {obj: obj.due for obj in world.objects if obj.due}
        for obj in world.engine.snapshots(world.now):
            oldest = max(oldest, world.now - due[obj])
            shown += len(messages.snapshot(obj, EPOCH))
    assert oldest < 2.1
    floor = 256 * 1024 * 10 * 1.2
    assert shown < sent / 3 + floor + 60_000 * 8


# ---- requests --------------------------------------------------------------------------------------------------------------


def test_read_gives_the_snapshot_of_one_the_list_of_several_and_all_below_a_prefix() -> None:
    world = World()
    for name in ("a", "b", "c"):
        world.must("s", f"s/{name}", TEMPERATURE)
    answer = world.request("dash", "read", {"resource": "CTXT://Home.Local/s/a"})
    assert answer["code"] == 200
    assert answer["body"]["data"] == TEMPERATURE
    answer = world.request("dash", "read", {"resources": ["ctxt://home.local/s/a", "ctxt://home.local/s/nope"]})
    assert [item["url"] for item in answer["body"]["snapshots"]] == ["ctxt://home.local/s/a"]
    assert answer["body"]["refused"][0]["code"] == 404
    answer = world.request("dash", "read", {"prefix": "ctxt://home.local/s/"})
    assert len(answer["body"]["snapshots"]) == 3


def test_read_is_paged_by_size() -> None:
    world = World(creations_per_minute=0)
    for i in range(40):
        world.must(
            "s",
            f"s/{i:02}",
            {"values": {"note": {"value": "x" * 1000}, **{f"n{k}": {"value": "y" * 500} for k in range(20)}}},
        )
    seen: list[str] = []
    after = ""
    for _ in range(20):
        body = {"prefix": "ctxt://home.local/s/"} | ({"after": after} if after else {})
        answer = world.request("dash", "read", body)["body"]
        seen += [item["url"] for item in answer["snapshots"]]
        after = answer.get("next", "")
        if not after:
            break
    assert seen == [f"ctxt://home.local/s/{i:02}" for i in range(40)]


def test_discover_lists_what_the_client_may_see_with_total_and_digest() -> None:
    import hashlib

    world = World(own(observe=only("friend")), creations_per_minute=0)
    urls = [f"ctxt://home.local/s/{i:04}" for i in range(1200)]
    for url in urls:
        world.must("s", url.replace("://", "/"), TEMPERATURE)
    seen: list[str] = []
    after = None
    while True:
        answer = world.request("friend", "discover", {"after": after} if after else {})["body"]
        seen += [item["url"] for item in answer["objects"]]
        assert answer["total"] == 1200
        assert answer["digest"] == hashlib.sha256("".join(url + "\n" for url in urls).encode()).hexdigest()
        after = answer.get("next")
        if after is None:
            break
    assert seen == urls
    assert world.request("mallory", "discover", {})["body"]["total"] == 0
    assert world.request("s", "discover", {"mine": True})["body"]["total"] == 1200
    assert world.request("friend", "discover", {"name": "0007"})["body"]["total"] == 1


def test_a_bad_request_is_answered_with_what_is_wrong() -> None:
    world = World()
    assert "/body" in json.dumps(world.request("s", "read", {})) or world.request("s", "read", {})["code"] == 400
    assert world.request("s", "fly", {})["code"] == 400
    assert world.request("s", "read", {"resource": "ctxt://a b/c"})["code"] == 400
    effects = Effects()
    world.engine.requests.take(effects, "s", b"nonsense", NOW)
    assert orjson.loads(effects.replies[0].payload)["code"] == 400


def test_requests_have_their_own_rate() -> None:
    world = World(request_burst=3, requests_per_second=1)
    codes = [world.request("s", "discover", {})["code"] for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]


# ---- the value view --------------------------------------------------------------------------------------------------------


def test_the_value_view_is_flat_escapes_dots_and_keeps_types() -> None:
    world = World()
    world.must("s", "s/x", {"values": {"a.b": {"value": 1}, "list": {"value": [1, 2]}}})
    view, left_out = messages.value_view(world.obj("s/x"))
    assert orjson.loads(view) == {
        "values.a\\.b.value": 1,
        "values.list.value.0": 1,
        "values.list.value.1": 2,
        "status": "live",
        "modified": messages.rfc3339(int(NOW * 1000)),
    }
    assert left_out == 0
    world.must("s", "s/x", {"values": {"a.b": {"value": "text"}}})
    view, left_out = messages.value_view(world.obj("s/x"))
    assert "values.a\\.b.value" not in orjson.loads(view)
    assert left_out == 1


# ---- the whole -------------------------------------------------------------------------------------------------------------

_scalars = st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from([0.0, -0.0, 1.0, 2.5]), st.text(max_size=3))
_members = st.fixed_dictionaries({}, optional={"value": _scalars, "unit": st.sampled_from(["Cel", "W"])})
_merges = st.fixed_dictionaries(
    {"values": st.dictionaries(st.sampled_from("abc"), st.one_of(st.none(), _members), max_size=3)}
)


@settings(max_examples=200, deadline=None)
@given(st.lists(_merges, max_size=12))
def test_an_observer_that_applies_the_deltas_holds_what_the_engine_holds(reports: list[dict[str, Any]]) -> None:
    world = World()
    held: dict[str, Any] | None = None
    version = 0
    for change in reports:
        world.report("s", "s/x", change)
        for delta in world.deltas():
            assert delta["version"] == version + 1
            version += 1
            if "value" in delta:
                held = delta["value"]
            elif "merge" in delta:
                held = merge(held, delta["merge"])
    if held is not None:
        assert orjson.dumps(held, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
            world.data("s/x"), option=orjson.OPT_SORT_KEYS
        )


# ---- what attacks have found ---------------------------------------------------------------------------------------------


def test_after_a_burst_of_bad_reports_the_next_rejection_names_the_place_again() -> None:
    world = World(rejections_per_second=1, rejection_burst=3)
    world.must("sensor", "sensor/room", warmer(1))
    for _ in range(10):
        world.report("sensor", "sensor/room", warmer({}))
    world.now += 60
    world.report("sensor", "sensor/room", warmer({}))
    (message,) = world.inbox()
    assert (message["place"], message["suppressed"]) == ("/values/temperature/value", 7)


def test_a_client_without_an_inbox_is_not_searched_for_the_place_of_each_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(
        namespace("ctxt://home.local/open/**", schema="Context", report=only(ANONYMOUS), observe=NOBODY),
        rejections_per_second=0.001,
        rejection_burst=3,
    )
    searched = []
    problems = Schema.problems

    def counting(schema: Schema, data: Any, limit: int = 5) -> list[Problem]:
        searched.append(1)
        return problems(schema, data, limit)

    monkeypatch.setattr(Schema, "problems", counting)
    for _ in range(50):
        assert world.code(ANONYMOUS, "open/x", {"values": 1}) == 422
        assert not world.inbox()
    assert len(searched) == 3


def test_a_clock_that_is_put_back_blocks_nobody_and_snapshots_go_on() -> None:
    world = World(reports_per_second=10, report_burst=10)
    world.must("sensor", "sensor/room", warmer(1))
    world.engine.snapshots(world.now + 1)
    world.must("sensor", "sensor/room", warmer(2))
    world.now -= 3600
    world.must("sensor", "sensor/room", warmer(3))
    assert world.engine.snapshots(world.now + 0.2) == [world.obj("sensor/room")]
    world.now += 1
    world.must("sensor", "sensor/room", warmer(4))
    assert world.engine.snapshots(world.now + 0.2) == [world.obj("sensor/room")]


def test_a_refused_patch_leaves_the_known_size_of_the_object_alone() -> None:
    world = World(bytes_per_client=300)
    world.must("sensor", "sensor/room", warmer("x" * 200))
    before = world.obj("sensor/room").size
    padded = json.dumps([{"op": "add", "path": "/values/more", "value": {"value": "y" * 300}}]).encode() + b" " * 500
    assert world.code("sensor", "sensor/room", padded) == 413
    assert world.obj("sensor/room").size == before


def test_small_patches_that_copy_much_count_for_what_they_make_within_one_batch() -> None:
    world = World(bytes_per_client=50_000, creations_per_minute=0)
    for i in range(100):
        world.must("sensor", f"sensor/{i}", {"values": {"a": {"value": "x" * 100}}})
    batch = Effects()
    copies = [{"op": "copy", "from": "/values/a", "path": f"/values/{i}"} for i in range(30)]
    payload = json.dumps(copies).encode()
    for i in range(100):
        world.engine.report(batch, "sensor", f"ctxt/home.local/sensor/{i}", payload, world.now)
    world.engine.seal(batch)
    assert sum(obj.size for obj in world.objects) <= 50_000


def test_parsed_data_is_bounded_also_where_it_is_let_go_within_the_batch_that_changed_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.engine.PARSED", 4)
    world = World(creations_per_minute=0)
    topics = [f"ctxt/home.local/sensor/{i}" for i in range(20)]
    for topic in topics:
        world.must("sensor", topic, warmer(0))
    for turn in range(20):
        batch = Effects()
        for topic in topics[turn:] + topics[:turn]:
            for value in (turn * 2 + 1, turn * 2 + 2):
                world.engine.report(batch, "sensor", topic, json.dumps(warmer(value)).encode(), world.now)
        world.engine.seal(batch)
        for topic in topics[:6]:
            world.must("sensor", topic, warmer(-turn))
    assert sum(obj.data is not None for obj in world.objects) <= 5


def test_who_is_back_while_its_objects_are_still_being_disconnected_stays_live() -> None:
    world = World(status_pace=10, creations_per_minute=0)
    for i in range(50):
        world.must("bridge", f"bridge/{i}", warmer(1))
    world.now += 60
    world.presence("bridge", online=False)
    world.tick(5.1)
    assert len(world.tick(0.1)) == 10
    world.presence("bridge", online=True)
    for _ in range(20):
        world.tick(0.1)
    assert {obj.status for obj in world.objects} == {"live"}


def test_a_report_after_the_loss_is_life_however_late_its_turn_comes() -> None:
    world = World(status_pace=10, creations_per_minute=0)
    for i in range(100):
        world.must("bridge", f"bridge/{i}", warmer(1))
    world.now += 60
    world.presence("bridge", online=False)
    world.now += 1
    world.must("bridge", "bridge/99", warmer(2))
    for _ in range(200):
        world.tick(0.1)
    assert world.obj("bridge/99").status == "live"
    assert sum(obj.status == "disconnected" for obj in world.objects) == 99


def test_a_restored_object_of_a_client_that_was_away_is_live_when_it_is_back() -> None:
    world = World()
    world.must("sensor", "sensor/room", warmer(1))
    world.presence("sensor", online=False)
    world.tick(6)
    world.tick(0.1)
    again = World(held=list(world.objects), epoch=EPOCH + 256)
    assert again.obj("sensor/room").status == "disconnected"
    assert [delta["status"] for delta in again.presence("sensor", online=True)] == ["live"]


def test_a_storm_of_presence_messages_is_not_kept() -> None:
    world = World(status_pace=10, creations_per_minute=0)
    for i in range(200):
        world.must("bridge", f"bridge/{i}", warmer(1))
    world.presence("bridge", online=False)
    for _ in range(60):
        world.tick(1)
    assert {obj.status for obj in world.objects} == {"disconnected"}
    for _ in range(10):
        world.presence("bridge", online=True)
        assert len(world.engine._paced) <= 200


def test_many_timers_at_one_moment_are_looked_at_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.engine.LOOKS", 50, raising=False)
    world = World(own(stale_after=10.0), creations_per_minute=0)
    for i in range(200):
        world.must("sensor", f"sensor/{i}", warmer(1))
    world.now += 9
    for obj in world.objects:
        obj.seen = world.now
    world.now += 1
    batch = Effects()
    world.engine.tick(batch, world.now)
    assert sum(1 for when, *_ in world.engine._stale if when > world.now) == 50
    for _ in range(3):
        world.tick(0.0)
    assert all(when > world.now for when, *_ in world.engine._stale)


def test_observers_may_still_know_of_a_tombstone_after_a_restart() -> None:
    world = World(
        held=[
            DataObject(
                topic="ctxt/home.local/sensor/room",
                schema=None,
                reporter="sensor",
                name="room",
                version=2,
                created=0,
                modified=int(NOW * 1000),
                text=b"",
                deleted=True,
                row=1,
            )
        ]
    )
    assert world.rights.may("dash", "receive", "snapshot/ctxt/home.local/sensor/room")
    assert world.request("dash", "read", {"resource": "ctxt://home.local/sensor/room"})["code"] == 410


def test_a_purge_voids_what_was_known_of_rights() -> None:
    world = World(tombstone_ttl=10)
    world.must("sensor", "sensor/room", warmer(1))
    world.request("sensor", "delete", {"resource": "ctxt://home.local/sensor/room"})
    before = world.rights.generation
    world.tick(11)
    assert world.rights.generation > before


def test_read_below_a_prefix_goes_on_past_what_the_client_may_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.requests.SLICE", 5)
    world = World(
        namespace("ctxt://home.local/a/**", schema="Context", report=only("sensor"), observe=NOBODY),
        namespace("ctxt://home.local/b/**", schema="Context", report=only("sensor"), observe=only("dash")),
    )
    for i in range(100):
        world.must("sensor", f"a/{i}", warmer(i))
    world.must("sensor", "b/1", warmer(1))
    answer = world.request("dash", "read", {"prefix": "ctxt://home.local/"})["body"]
    assert [snapshot["url"] for snapshot in answer["snapshots"]] == ["ctxt://home.local/b/1"]
    assert "next" not in answer


def test_a_full_collection_is_full_and_attempts_count_as_creations() -> None:
    world = World(children_per_collection=5, creations_per_minute=10)
    world.must("sensor", "sensor/room", warmer(1))
    codes = [
        world.code("dash", f"sensor/room/children/actions/dash/{i}", {"method": "on", "params": {}}) for i in range(50)
    ]
    assert codes[:10] == [200] * 5 + [413] * 5
    assert set(codes[10:]) == {429}


def test_the_value_view_forgets_the_types_of_keys_that_have_gone() -> None:
    world = World(own(value_view=True))
    world.must("sensor", "sensor/room", {"values": {}})
    obj = world.obj("sensor/room")
    for i in range(3 * messages.MAX_VIEW_KEYS):
        world.must("sensor", "sensor/room", {"values": {f"k{i - 1}": None, f"k{i}": {"value": i}}})
        messages.value_view(obj)
    assert len(obj.types or ()) <= 2 * messages.MAX_VIEW_KEYS


def test_an_empty_key_is_a_key_in_the_value_view() -> None:
    obj = DataObject(
        topic="ctxt/h/x",
        schema=None,
        reporter="r",
        name="x",
        version=1,
        created=0,
        modified=0,
        data={"a": 1, "": {"a": 2, "": 3}},
    )
    view = json.loads(messages.value_view(obj)[0])
    assert (view["a"], view[".a"], view["."]) == (1, 2, 3)


@pytest.mark.parametrize(
    "prefix", ["CTXT://Home.Local/", "ctxt://home.local/s/k\u00fcche", "ctxt://home.local/s/k%c3%bcche/", "ctxt://"]
)
def test_a_prefix_is_understood_in_any_spelling(prefix: str) -> None:
    world = World()
    world.must("s", "s/k%C3%BCche/x", TEMPERATURE)
    assert world.request("dash", "discover", {"prefix": prefix})["body"]["total"] == 1
    assert len(world.request("dash", "read", {"prefix": prefix})["body"]["snapshots"]) == 1
