"""The Observer rule, sentence by sentence, and under every kind of loss, doubling and disorder."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.client.replica import (
    PENDING_DELTAS,
    Changed,
    Copy,
    Created,
    Delegated,
    Deleted,
    Event,
    GapHealed,
    GapOpened,
    GatewayChanged,
    Replica,
    StatusChanged,
)
from gateway.objects import topic_of, url_of
from gateway.patch import apply_patch, merge, same

ROOM = "ctxt/home.local/room"
CHILD = ROOM + "/children/actions/anna/1"
SCHEMA = "hyperty-catalogue://catalogue.ctxt-gateway.org/.well-known/dataschema/Context"


def when(step: int) -> str:
    return f"2026-01-01T00:{step // 60 % 60:02d}:{step % 60:02d}.000Z"


class Side:
    """One Observer's replica, with messages made for it. Jitter is 0.5 s."""

    def __init__(self, prefix: str = "") -> None:
        self.replica = Replica(jitter=lambda: 0.5, prefix=prefix)
        self.now = 100.0
        self.prefix = prefix + "/" if prefix else ""

    def snapshot(
        self, version: int, data: Any = None, *, epoch: int = 1, topic: str = ROOM, **rest: Any
    ) -> list[Event]:
        value = {
            "url": url_of(topic),
            "schema": SCHEMA,
            "reporter": "anna",
            "name": "room",
            "epoch": epoch,
            "version": version,
            "created": when(0),
            "modified": when(version),
            "status": "live",
            "data": {} if data is None else data,
            **rest,
        }
        return self.replica.feed(f"{self.prefix}snapshot/{topic}", orjson.dumps(value), self.now)

    def tombstone(self, version: int, *, epoch: int = 1, topic: str = ROOM) -> list[Event]:
        value = {"url": url_of(topic), "epoch": epoch, "version": version, "modified": when(version), "deleted": True}
        return self.replica.feed(f"{self.prefix}snapshot/{topic}", orjson.dumps(value), self.now)

    def cleared(self, topic: str = ROOM) -> list[Event]:
        return self.replica.feed(f"{self.prefix}snapshot/{topic}", b"", self.now)

    def delta(self, version: int, *, epoch: int = 1, topic: str = ROOM, **rest: Any) -> list[Event]:
        value = {"epoch": epoch, "version": version, "modified": when(version), **rest}
        return self.replica.feed(f"{self.prefix}delta/{topic}", orjson.dumps(value), self.now)

    def created(self, version: int, data: Any = None, **rest: Any) -> list[Event]:
        made: dict[str, Any] = {
            "created": True,
            "schema": SCHEMA,
            "reporter": "anna",
            "status": "live",
            "value": data or {},
        }
        return self.delta(version, **made, **rest)

    def held(self, topic: str = ROOM) -> Copy:
        copy = self.replica.get(topic)
        assert copy is not None
        return copy


def test_a_snapshot_makes_a_copy() -> None:
    side = Side()
    events = side.snapshot(3, {"a": 1}, description="warm", tags=["x"], resources=["y"])
    copy = side.held()
    assert events == [Created(copy)]
    assert [event.new for event in events if isinstance(event, Created)] == [False]
    assert (copy.epoch, copy.version, copy.data, copy.status, copy.reporter) == (1, 3, {"a": 1}, "live", "anna")
    assert (copy.url, copy.name, copy.description, copy.tags, copy.resources) == (
        url_of(ROOM),
        "room",
        "warm",
        ("x",),
        ("y",),
    )
    assert list(side.replica) == [copy]
    assert not side.replica.gaps


def test_a_newer_or_equal_snapshot_replaces_everything_and_an_older_one_nothing() -> None:
    side = Side()
    side.snapshot(3, {"a": 1})
    before = side.held()
    assert side.snapshot(3, {"a": 1}) == []
    assert side.snapshot(2, {"a": 0}) == []
    assert side.held() == before
    assert side.snapshot(1, {"a": 2}, epoch=2) == [Changed(side.held(), before)]
    assert side.held().position == (2, 1)
    assert side.snapshot(9, {"a": 3}, epoch=1) == []


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"merge": {"b": 2}}, {"a": 1, "b": 2}),
        ({"merge": {"a": None}}, {}),
        ({"patch": [{"op": "add", "path": "/c", "value": [1]}]}, {"a": 1, "c": [1]}),
        ({"value": {"new": True}}, {"new": True}),
    ],
)
def test_the_next_delta_is_applied(change: dict[str, Any], data: dict[str, Any]) -> None:
    side = Side()
    side.snapshot(3, {"a": 1})
    before = side.held()
    assert side.delta(4, **change) == [Changed(side.held(), before)]
    assert (side.held().version, side.held().data, side.held().modified) == (4, data, when(4))
    assert before.data == {"a": 1}


def test_an_older_or_equal_delta_is_ignored_and_one_of_an_older_epoch_too() -> None:
    side = Side()
    side.snapshot(3, {"a": 1}, epoch=2)
    assert side.delta(3, epoch=2, merge={"a": 9}) == []
    assert side.delta(2, epoch=2, merge={"a": 9}) == []
    assert side.delta(4, epoch=1, merge={"a": 9}) == []
    assert side.held().data == {"a": 1}
    assert not side.replica.gaps


def test_status_and_reporter_and_meta_are_told_apart() -> None:
    side = Side()
    side.snapshot(1, {"a": 1})
    first = side.held()
    assert side.delta(2, status="stale") == [StatusChanged(side.held(), first)]
    second = side.held()
    assert side.delta(3, merge={"a": 2}, status="live") == [
        Changed(side.held(), second),
        StatusChanged(side.held(), second),
    ]
    third = side.held()
    assert side.delta(4, reporter="bert") == [Delegated(side.held(), third)]
    fourth = side.held()
    assert side.delta(5, meta={"name": "hall", "tags": ["x"]}) == [Changed(side.held(), fourth)]
    assert (side.held().name, side.held().tags, side.held().data) == ("hall", ("x",), {"a": 2})


def test_a_change_from_one_to_true_is_a_change() -> None:
    side = Side()
    side.snapshot(1, {"a": 1})
    before = side.held()
    assert side.snapshot(2, {"a": True}) == [Changed(side.held(), before)]


def test_a_creation_needs_no_snapshot() -> None:
    side = Side()
    events = side.created(1, {"a": 1})
    assert events == [Created(side.held())]
    assert [event.new for event in events if isinstance(event, Created)] == [True]
    assert (side.held().data, side.held().name, side.held().reporter, side.held().schema) == (
        {"a": 1},
        "room",
        "anna",
        SCHEMA,
    )


def test_a_gap_keeps_its_deltas_until_a_snapshot_covers_it() -> None:
    side = Side()
    side.snapshot(1, {"a": 1})
    assert side.delta(3, merge={"c": 3}) == [GapOpened(ROOM)]
    assert side.delta(4, merge={"d": 4}) == []
    assert side.held().data == {"a": 1}
    assert side.replica.gaps == {ROOM}
    before = side.held()
    events = side.snapshot(2, {"a": 1, "b": 2})
    assert events[0] == Changed(copy=events[0].copy, before=before)  # type: ignore[union-attr]
    assert events[-1] == GapHealed(ROOM)
    assert side.held().data == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert side.held().version == 4


def test_the_missing_delta_heals_a_gap_too() -> None:
    side = Side()
    side.snapshot(1, {"a": 1})
    side.delta(3, merge={"c": 3})
    assert side.delta(2, merge={"b": 2})[-1] == GapHealed(ROOM)
    assert side.held().data == {"a": 1, "b": 2, "c": 3}


def test_a_newer_epoch_is_a_gap_even_where_the_version_is_the_next_one() -> None:
    side = Side()
    side.snapshot(3, {"a": 1})
    assert side.delta(4, epoch=2, merge={"b": 2}) == [GapOpened(ROOM)]
    assert side.held().data == {"a": 1}
    side.snapshot(3, {"a": 0}, epoch=2)
    assert side.held().data == {"a": 0, "b": 2}
    assert side.held().position == (2, 4)


def test_a_snapshot_that_does_not_cover_a_gap_leaves_it_open() -> None:
    side = Side()
    side.snapshot(1)
    side.delta(9, merge={})
    side.snapshot(4, {"a": 4})
    assert side.held().version == 4
    assert side.replica.gaps == {ROOM}


def test_a_gap_is_subscribed_again_after_three_seconds_and_jitter_then_read_ever_more_rarely() -> None:
    side = Side()
    side.delta(7, merge={})
    assert side.replica.next_due() == 103.5
    assert side.replica.want_resubscribe(103.4) == []
    assert side.replica.want_read(103.5) == []
    assert side.replica.want_resubscribe(103.5) == [ROOM]
    assert side.replica.want_resubscribe(103.6) == []
    assert side.replica.want_read(106.9) == []
    assert side.replica.want_read(107.0) == [url_of(ROOM)]
    assert side.replica.want_read(113.4) == []
    assert side.replica.want_read(113.5) == [url_of(ROOM)]
    side.now = 115.0
    assert side.snapshot(7)[-1] == GapHealed(ROOM)
    assert side.replica.next_due() is None
    assert side.replica.want_read(1e9) == []


def test_one_read_names_at_most_a_hundred_objects() -> None:
    side = Side()
    for i in range(150):
        side.delta(7, topic=f"{ROOM}/{i}", merge={})
    assert len(side.replica.want_resubscribe(1000.0)) == 150
    assert len(side.replica.want_read(2000.0)) == 100
    assert len(side.replica.want_read(2000.0)) == 50


def test_the_deltas_kept_in_a_gap_are_bounded_and_the_gap_still_heals() -> None:
    side = Side()
    side.snapshot(1)
    for version in range(3, 3 + 3 * PENDING_DELTAS):
        side.delta(version, merge={"v": version})
    last = 2 + 3 * PENDING_DELTAS
    side.snapshot(last - 3 * PENDING_DELTAS + 10, {"v": "old"})
    assert side.replica.gaps == {ROOM}
    assert side.snapshot(last, {"v": last})[-1] == GapHealed(ROOM)


def test_a_delta_that_does_not_apply_opens_a_gap_that_only_a_snapshot_heals() -> None:
    side = Side()
    side.snapshot(1, {"a": 1})
    assert side.delta(2, patch=[{"op": "remove", "path": "/nothing"}]) == [GapOpened(ROOM)]
    assert side.held().data == {"a": 1}
    assert side.delta(3, merge={"b": 1}) == []
    assert side.snapshot(3, {"b": 2})[-1] == GapHealed(ROOM)
    assert side.held().data == {"b": 2}


def test_a_deletion_leaves_no_copy_but_what_is_older_does_not_come_back() -> None:
    side = Side()
    side.snapshot(3, {"a": 1})
    before = side.held()
    assert side.delta(4, deleted=True) == [Deleted(before)]
    assert side.replica.get(ROOM) is None
    assert list(side.replica) == []
    assert side.tombstone(4) == []
    assert side.snapshot(3, {"a": 1}) == []
    assert side.replica.get(ROOM) is None
    assert side.created(5, {"b": 1}) == [Created(side.held())]


def test_a_deletion_closes_a_gap() -> None:
    side = Side()
    side.snapshot(1)
    side.delta(5, merge={"a": 1})
    assert side.delta(8, deleted=True)[-1] == GapHealed(ROOM)
    assert side.replica.get(ROOM) is None


def test_a_tombstone_that_is_cleared_is_forgotten_and_an_old_creation_does_not_raise_the_dead() -> None:
    side = Side()
    side.created(3, {"a": 1})
    side.tombstone(4)
    assert side.cleared() == []
    assert side.created(3, {"a": 1}) == [GapOpened(ROOM)]
    assert side.replica.get(ROOM) is None
    assert side.created(5, {"b": 1})[-1] == GapHealed(ROOM)
    assert side.held().data == {"b": 1}


def test_a_snapshot_cleared_while_the_object_is_held_is_asked_about() -> None:
    side = Side()
    side.snapshot(3, {"a": 1})
    before = side.held()
    assert side.cleared() == [GapOpened(ROOM)]
    assert side.held() == before
    assert side.replica.want_resubscribe(200.0) == [ROOM]
    assert side.replica.want_read(300.0) == [url_of(ROOM)]
    assert side.replica.gone(ROOM) == [Deleted(before), GapHealed(ROOM)]
    assert side.replica.gone(ROOM) == []


def test_children_are_dropped_with_the_parent() -> None:
    side = Side()
    side.snapshot(3)
    side.snapshot(1, {"b": 1}, topic=CHILD)
    parent, child = side.held(), side.held(CHILD)
    assert side.delta(4, deleted=True) == [Deleted(child), Deleted(parent)]
    assert len(side.replica) == 0
    assert side.delta(2, topic=CHILD, deleted=True) == []
    assert side.snapshot(1, {"b": 1}, topic=CHILD) == []
    assert len(side.replica) == 0
    assert not side.replica.gaps


def test_a_child_of_a_deleted_parent_that_was_never_held_is_not_taken_in_late() -> None:
    side = Side()
    side.tombstone(4)
    assert side.snapshot(1, topic=CHILD) == []
    side.created(5)
    assert side.snapshot(6, topic=CHILD) == [Created(side.held(CHILD))]


def test_a_gap_of_a_child_closes_when_its_parent_goes() -> None:
    side = Side()
    side.snapshot(3)
    side.delta(9, topic=CHILD, merge={})
    assert side.replica.gaps == {CHILD}
    side.delta(4, deleted=True)
    assert not side.replica.gaps


def test_the_status_is_unknown_while_the_gateway_is_offline() -> None:
    side = Side()
    side.snapshot(1, status="stale")

    def announce(status: str, epoch: int = 1) -> list[Event]:
        value = {"status": status, "epoch": epoch, "counter": 1, "version": "0", "patterns": ["ctxt://home.local/**"]}
        return side.replica.feed("gateway/g1", orjson.dumps(value), side.now)

    assert side.replica.status(ROOM) == "stale"
    assert announce("online") == [GatewayChanged("g1", online=True)]
    assert announce("online") == []
    assert side.replica.status(ROOM) == "stale"
    assert announce("offline") == [GatewayChanged("g1", online=False)]
    assert side.replica.status(ROOM) == "unknown"
    assert announce("online", 2) == [GatewayChanged("g1", online=True)]
    assert announce("offline", 1) == []
    assert side.replica.status(ROOM) == "stale"
    assert side.replica.status(CHILD) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"x",
        b"[]",
        b"1",
        b"{}",
        b'{"epoch":1}',
        b'{"epoch":"1","version":2}',
        b'{"epoch":1,"version":-2}',
        b'{"epoch":1,"version":2.5,"modified":""}',
    ],
)
@pytest.mark.parametrize("verb", ["snapshot", "delta", "gateway"])
def test_what_is_not_understood_changes_nothing(verb: str, payload: bytes) -> None:
    side = Side()
    side.snapshot(1, {"a": 1})
    before = side.held()
    side.replica.feed(f"{verb}/{ROOM}", payload, side.now)
    assert side.held() == before


def test_other_topics_are_not_its_business_and_a_prefix_is_heeded() -> None:
    side = Side("site1")
    assert side.replica.feed("site1/inbox/anna", b"{}", 0) == []
    assert side.replica.feed(f"snapshot/{ROOM}", b"x", 0) == []
    assert side.replica.ignored == 0
    assert side.snapshot(1, {"a": 1}) == [Created(side.held())]


# ---- discover --------------------------------------------------------------------------------------------------------


def page(listed: dict[str, tuple[int, int]]) -> dict[str, Any]:
    urls = sorted(url_of(topic) for topic in listed)
    return {
        "objects": [
            {"url": url_of(topic), "epoch": epoch, "version": version} for topic, (epoch, version) in listed.items()
        ],
        "total": len(listed),
        "digest": hashlib.sha256("".join(url + "\n" for url in urls).encode()).hexdigest(),
    }


def test_a_copy_is_complete_when_the_digest_matches_and_nothing_is_older() -> None:
    side = Side()
    side.snapshot(3)
    side.snapshot(4, topic=ROOM + "2")
    result = side.replica.compare([page({ROOM: (1, 3), ROOM + "2": (1, 2)})], 200.0)
    assert (result.consistent, result.complete, result.events, result.read) == (True, True, [], [])


def test_what_is_not_listed_is_gone_and_what_is_older_or_missing_is_to_be_read() -> None:
    side = Side()
    for i in range(4):
        side.snapshot(3, topic=f"{ROOM}{i}")
    side.delta(9, topic=f"{ROOM}3", merge={})
    gone = side.held(ROOM + "0")
    listed = {f"{ROOM}1": (1, 3), f"{ROOM}2": (1, 4), f"{ROOM}3": (1, 3), f"{ROOM}4": (1, 1)}
    result = side.replica.compare([page(listed)], 200.0)
    assert result.consistent
    assert not result.complete
    assert result.events == [Deleted(gone)]
    assert result.read == [url_of(f"{ROOM}{i}") for i in (2, 3, 4)]


def test_pages_of_one_listing_are_joined_and_what_does_not_belong_together_takes_nothing_away() -> None:
    side = Side()
    side.snapshot(3, topic=ROOM + "1")
    side.snapshot(3, topic=ROOM + "2")
    whole = page({ROOM + "1": (1, 3), ROOM + "2": (1, 3)})
    pages = [{**whole, "objects": whole["objects"][:1]}, {**whole, "objects": whole["objects"][1:]}]
    assert side.replica.compare(pages, 200.0).complete
    result = side.replica.compare(pages[:1], 200.0)
    assert not result.consistent
    assert not result.complete
    assert len(side.replica) == 2


def test_what_was_heard_of_after_the_listing_was_asked_for_is_not_gone() -> None:
    side = Side()
    side.now = 201.0
    side.created(1)
    result = side.replica.compare([page({})], 200.0)
    assert (result.events, result.complete) == ([], False)
    assert side.replica.compare([page({})], 202.0).events != []


def test_a_listing_for_a_prefix_says_nothing_about_the_rest() -> None:
    side = Side()
    for topic in (ROOM, ROOM + "/a", ROOM + "2"):
        side.snapshot(1, topic=topic)
    result = side.replica.compare([page({ROOM: (1, 1)})], 200.0, prefix=url_of(ROOM))
    assert [event.before.topic for event in result.events if isinstance(event, Deleted)] == [ROOM + "/a"]
    assert result.complete
    assert side.replica.get(ROOM + "2") is not None


# ---- any disorder ----------------------------------------------------------------------------------------------------

Truth = dict[tuple[int, int], tuple[dict[str, Any], str] | None]
Message = tuple[str, bytes]

scalars = st.one_of(st.integers(0, 3), st.booleans(), st.sampled_from(["", "x"]), st.floats(0, 1))
documents = st.dictionaries(st.sampled_from("abc"), st.one_of(scalars, st.dictionaries(st.sampled_from("de"), scalars)))
merges = st.dictionaries(
    st.sampled_from("abc"),
    st.one_of(st.none(), scalars, st.dictionaries(st.sampled_from("de"), st.one_of(st.none(), scalars))),
    min_size=1,
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("merge"), merges),
        st.tuples(st.just("append"), scalars),
        st.tuples(st.just("status"), st.sampled_from(["live", "stale", "disconnected"])),
        st.tuples(st.just("delete"), st.none()),
        st.tuples(st.just("create"), documents),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("snapshot"), st.none()),
    ),
    max_size=25,
)


def history(plan: list[tuple[str, Any]]) -> tuple[Truth, list[Message], Message]:
    """A valid stream of one object: what each (epoch, version) is, all messages in order, and the snapshot of the end."""
    epoch, version = 1, 0
    data: dict[str, Any] | None = None
    status = "live"
    truth: Truth = {}
    stream: list[Message] = []

    def snapshot() -> Message:
        head: dict[str, Any] = {
            "url": url_of(ROOM),
            "epoch": epoch,
            "version": version,
            "modified": when(version),
        }
        if data is None:
            head["deleted"] = True
        else:
            head |= {"schema": SCHEMA, "reporter": "anna", "name": "room", "created": when(0)}
            head |= {"status": status, "data": data}
        return f"snapshot/{ROOM}", orjson.dumps(head)

    def tell(**rest: Any) -> None:
        truth[epoch, version] = None if data is None else (data, status)
        head = {"epoch": epoch, "version": version, "modified": when(version), **rest}
        stream.append((f"delta/{ROOM}", orjson.dumps(head)))

    for kind, value in [("create", {"a": 0}), *plan]:
        if kind == "restart":
            epoch += 1
            truth[epoch, version] = None if data is None else (data, status)
            stream.append(snapshot())
        elif kind == "snapshot":
            stream.append(snapshot())
        elif kind == "create":
            if data is None:
                data, status, version = value, "live", version + 1
                tell(created=True, schema=SCHEMA, reporter="anna", status="live", value=value)
        elif data is None:
            continue
        elif kind == "delete":
            data, version = None, version + 1
            tell(deleted=True)
        elif kind == "status":
            if value != status:
                status, version = value, version + 1
                tell(status=status)
        elif kind == "merge":
            new = merge(data, value)
            if new is not data:
                data, version = new, version + 1
                tell(merge=value)
        else:
            ops = [{"op": "add", "path": "/log", "value": []}] if "log" not in data else []
            ops.append({"op": "add", "path": "/log/-", "value": value})
            data, version = apply_patch(data, ops), version + 1
            tell(patch=ops)
    return truth, stream, snapshot()


def shown_is_true(replica: Replica, truth: Truth) -> None:
    copy = replica.get(ROOM)
    if copy is None:
        return
    state = truth[copy.position]
    assert state is not None, f"{copy.position} is deleted, and shown"
    assert same(copy.data, state[0])
    assert copy.status == state[1]


@given(steps, st.data())
@settings(deadline=None)
def test_loss_doubling_and_disorder_never_show_a_wrong_copy_and_one_covering_snapshot_heals(
    plan: list[tuple[str, Any]], data: st.DataObject
) -> None:
    truth, stream, last = history(plan)
    delivered = data.draw(st.lists(st.sampled_from(stream), max_size=2 * len(stream)))
    replica = Replica(jitter=lambda: 0.0)
    for topic, payload in delivered:
        replica.feed(topic, payload, 0.0)
        shown_is_true(replica, truth)
    replica.feed(*last, 1.0)
    assert not replica.gaps
    copy = replica.get(ROOM)
    final = truth[max(truth)]
    assert (copy is None) == (final is None)
    if copy is not None:
        assert copy.position == max(truth)
    shown_is_true(replica, truth)
    for topic, payload in delivered:
        assert replica.feed(topic, payload, 2.0) == []
    assert not replica.ignored


@given(steps)
@settings(deadline=None)
def test_a_whole_stream_in_order_shows_every_version_and_opens_no_gap_within_an_epoch(
    plan: list[tuple[str, Any]],
) -> None:
    truth, stream, _ = history(plan)
    replica = Replica(jitter=lambda: 0.0)
    seen = set()
    for topic, payload in stream:
        events = replica.feed(topic, payload, 0.0)
        assert not any(isinstance(event, GapOpened) for event in events)
        shown_is_true(replica, truth)
        copy = replica.get(ROOM)
        if copy is not None:
            seen.add(copy.position)
    assert seen == {position for position, state in truth.items() if state is not None}


@given(steps, st.data())
@settings(deadline=None)
def test_events_tell_the_same_story_as_the_copies(plan: list[tuple[str, Any]], data: st.DataObject) -> None:
    _, stream, last = history(plan)
    delivered = data.draw(st.lists(st.sampled_from(stream), max_size=2 * len(stream)))
    replica = Replica(jitter=lambda: 0.0)
    told: Copy | None = None
    for topic, payload in [*delivered, last]:
        for event in replica.feed(topic, payload, 0.0):
            if isinstance(event, Created):
                assert told is None
                told = event.copy
            elif isinstance(event, Deleted):
                assert told is not None
                told = None
            elif isinstance(event, Changed | StatusChanged | Delegated):
                assert told is not None
                told = event.copy
        copy = replica.get(ROOM)
        assert (copy is None) == (told is None)
        if copy is not None and told is not None:
            assert same(copy.data, told.data)
            assert copy.status == told.status


def test_topics_and_urls_are_two_spellings_of_one_thing() -> None:
    assert topic_of(url_of(CHILD)) == CHILD


@pytest.mark.parametrize("verb", ["snapshot", "delta"])
def test_what_no_gateway_sends_is_ignored(verb: str) -> None:
    side = Side()
    side.snapshot(1)
    deep = b'{"a":' * 1000 + b"1" + b"}" * 1000
    whole = b'{"url":"ctxt://home.local/room","schema":null,"reporter":"a","name":"n","epoch":1,"version":2,"created":"","modified":"","status":"live","data":'
    for topic, payload in (
        (ROOM, whole + deep + b"}"),
        (ROOM, b'{"epoch":1,"version":2,"modified":"","merge":' + deep + b"}"),
        (ROOM, whole.replace(b'"live"', b"[]") + b"{}}"),
        ("room", whole + b"{}}"),
        ("room", b'{"epoch":1,"version":2,"modified":"","merge":{}}'),
    ):
        before = side.replica.ignored
        found = side.replica.feed(f"{verb}/{topic}", payload, side.now)
        assert found == [] or isinstance(found[0], GapOpened), (topic, payload[:60])
        assert side.replica.ignored == before + 1 or verb == "delta"
    assert side.held() == side.replica.get(ROOM)
    assert side.replica.get(ROOM).version == 1  # type: ignore[union-attr]
