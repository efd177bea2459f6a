"""Any history of reports, deletions, presence, time and restarts, against a model: a copy that only applies the deltas."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway import messages
from gateway.effects import Effects
from gateway.engine import Engine, Limits
from gateway.objects import DISCONNECTED, LIVE, STALE, Objects, authority_of
from gateway.patch import apply_patch, merge
from gateway.rights import Rights
from gateway.store import Batch, Store
from gateway.ulid import ulid
from tests.world import CATALOGUE, EPOCH, NOBODY, NOW, own

CLIENTS = ("a", "b")
PATHS = tuple(f"ctxt/home.local/{client}/{name}" for client in CLIENTS for name in ("x", "y"))
CHILDREN = tuple(f"{path}/children/actions/{client}/1" for path in PATHS[:2] for client in CLIENTS)

LIMITS = Limits(
    payload_bytes=2_000,
    data_bytes=500,
    objects=7,
    objects_per_client=4,
    bytes_per_client=900,
    creations_per_minute=0,
    reports_per_second=0,
    requests_per_second=0,
    rejection_burst=3,
    status_pace=2,
    tombstone_ttl=5.0,
    offline_grace=5.0,
)

times = st.sampled_from(["2026-09-21T00:00:00Z", "2026-09-21T00:00:01Z", "2036-01-01T00:00:00Z"])
values = st.one_of(
    st.integers(-2, 2),
    st.sampled_from([True, 0.0, -0.0, 1.0, 1e300, "", "x" * 200]),
    st.lists(st.integers(0, 2), max_size=3),
)
readings = st.fixed_dictionaries({"value": values}, optional={"time": times, "unit": st.sampled_from(["W", None])})
merges = st.fixed_dictionaries(
    {"values": st.dictionaries(st.sampled_from("pq"), st.one_of(readings, readings, st.none()), max_size=2)},
    optional={"id": st.sampled_from(["one", "two", None])},
)
places = st.sampled_from(["/values/p", "/values/q"])
members = st.sampled_from(["/values/p/value", "/values/q/value", "/values/p/value/-", "/values/p/value/0", "/id"])
operations = st.one_of(
    st.builds(lambda path, value: {"op": "add", "path": path, "value": value}, places, readings),
    st.builds(lambda path, value: {"op": "add", "path": path, "value": value}, members, values),
    st.builds(lambda path, value: {"op": "replace", "path": path, "value": value}, places, readings),
    st.builds(lambda value: {"op": "replace", "path": "", "value": value}, merges),
    st.builds(lambda path: {"op": "remove", "path": path}, st.one_of(places, members)),
    st.builds(
        lambda op, path, start: {"op": op, "path": path, "from": start},
        st.sampled_from(["move", "copy"]),
        places,
        places,
    ),
)
bad = st.sampled_from(
    [
        b"",
        b"1",
        b"nonsense",
        b"[" * 50 + b"]" * 50,
        b"{" * 3_000,
        b'{"values":null}',
        b'{"values":{"p":{"value":{}}}}',
        b'[{"op":"test","path":"/values","value":7}]',
        b'[{"op":"copy","from":"","path":"/values/p"}]',
    ]
)
payloads = st.one_of(
    merges.map(orjson.dumps),
    merges.map(lambda merge: orjson.dumps(merge) + b" " * 300),
    st.lists(operations, min_size=1, max_size=3).map(orjson.dumps),
    st.lists(operations, min_size=1, max_size=1).map(orjson.dumps),
    bad,
)


def reporter_of(topic: str) -> str:
    """Who may write there."""
    levels = topic.split("/")
    return levels[6] if "/children/" in topic else levels[2] if len(levels) > 2 else "a"


class Copy:
    """What an Observer holds that applies every delta: nothing else is looked at."""

    def __init__(self) -> None:
        self.version = 0
        self.deleted = False
        self.status = ""
        self.data: Any = None

    def apply(self, delta: dict[str, Any]) -> None:
        assert delta["version"] == self.version + 1
        self.version += 1
        if delta.get("created"):
            self.data = delta["value"]
            self.deleted = False
        if "merge" in delta:
            self.data = merge(self.data, delta["merge"])
        if "patch" in delta:
            self.data = apply_patch(self.data, delta["patch"])
        if "deleted" in delta:
            self.deleted, self.data = True, None
        self.status = delta.get("status", self.status)


class EngineMachine(RuleBasedStateMachine):
    """Each rule is a batch: applied, sealed, stored; then its deltas reach the copies."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now = NOW
        self.epoch = EPOCH
        self.copies: dict[str, Copy] = {}
        self.floors: dict[str, int] = {}

    @initialize(stale_after=st.sampled_from([None, 10.0]), seen_by_all=st.booleans())
    def start(self, stale_after: float | None, seen_by_all: bool) -> None:
        more = {} if seen_by_all else {"observe": NOBODY}
        self.namespace = own(stale_after=stale_after, value_view=True, **more)
        self._open()

    def _open(self) -> None:
        self.store = Store(self.folder)
        loaded = self.store.load(CATALOGUE, 64)
        objects = Objects(loaded.objects)
        self.engine = Engine(
            CATALOGUE,
            Rights([self.namespace], (), objects),
            objects,
            LIMITS,
            epoch=self.epoch,
            now=self.now,
            mint=ulid,
            floors=loaded.floors,
            ids=loaded.ids,
            next_row=loaded.next_row,
        )

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def _commit(self, effects: Effects) -> None:
        if effects.durable():
            self.engine.seal(effects)
            self.store.commit(
                Batch(
                    effects.touched, effects.heads, effects.purged, effects.floors, effects.ids, pending=effects.pending
                )
            )
        for obj, text in effects.deltas:
            delta = orjson.loads(text)
            assert delta["epoch"] == self.epoch
            assert delta["modified"] == messages.rfc3339(int(self.now * 1000))
            copy = self.copies.get(obj.topic)
            if delta.get("created"):
                assert copy is None
                copy = self.copies[obj.topic] = Copy()
                copy.version = self.floors.get(authority_of(obj.topic), 0)
            assert copy is not None
            copy.apply(delta)
        for obj in effects.purged:
            authority = authority_of(obj.topic)
            self.floors[authority] = max(self.floors.get(authority, 0), self.copies.pop(obj.topic).version)
        for reply in effects.replies:
            assert reply.topic == "inbox/" + reply.client
            orjson.loads(reply.payload)
        for work in effects.work:
            assert [step is not None for step in work][-1]

    @rule(reports=st.lists(st.tuples(st.sampled_from(PATHS), payloads), min_size=1, max_size=4))
    def report(self, reports: list[tuple[str, bytes]]) -> None:
        self._report([(reporter_of(topic), topic, payload) for topic, payload in reports])

    @rule(at=st.integers(0, 1), child=st.sampled_from(CLIENTS))
    def populate(self, at: int, child: str) -> None:
        parent = PATHS[at]
        self._report(
            [
                (reporter_of(parent), parent, b'{"values":{"p":{"value":1,"time":"2026-09-21T00:00:01Z"}}}'),
                (child, f"{parent}/children/actions/{child}/1", b'{"method":"on"}'),
            ]
        )

    @rule(path=st.sampled_from(PATHS[:2]), member=readings)
    def come_late(self, path: str, member: dict[str, Any]) -> None:
        late = {"value": 3, "time": "2026-09-20T00:00:00Z"}
        patch = [
            {"op": "replace", "path": "/values/p", "value": late},
            {"op": "add", "path": "/values/q", "value": member},
        ]
        self._report([(reporter_of(path), path, orjson.dumps(patch))])

    @rule(
        topic=st.sampled_from(CHILDREN),
        payload=st.sampled_from([b'{"method":"on"}', b'{"method":"off"}', b'{"method":7}', b'{"method":null}']),
    )
    def act(self, topic: str, payload: bytes) -> None:
        self._report([(reporter_of(topic), topic, payload)])

    @rule(
        client=st.sampled_from(CLIENTS),
        topic=st.sampled_from((*PATHS, *CHILDREN, "ctxt/home.local", "x/y/z", "ctxt/home.local/a/%7e")),
        payload=payloads,
    )
    def intrude(self, client: str, topic: str, payload: bytes) -> None:
        self._report([(client, topic, payload)])

    def _report(self, reports: list[tuple[str, str, bytes]]) -> None:
        effects = Effects()
        for client, topic, payload in reports:
            before = len(effects.deltas)
            refused = self.engine.report(effects, client, topic, payload, self.now)
            if refused is not None:
                assert len(effects.deltas) == before
            elif len(effects.deltas) > before:
                assert reporter_of(topic) == client
        self._commit(effects)

    @rule(topic=st.sampled_from((*PATHS, *CHILDREN)))
    def delete(self, topic: str) -> None:
        self._request(reporter_of(topic), "delete", {"resource": topic.replace("/", "://", 1)})

    @rule(client=st.sampled_from(CLIENTS), topic=st.sampled_from(PATHS))
    def delete_anyones(self, client: str, topic: str) -> None:
        self._request(client, "delete", {"resource": topic.replace("/", "://", 1)})

    @rule(client=st.sampled_from(CLIENTS), prefix=st.sampled_from(["ctxt://", "ctxt://home.local/a"]))
    def look(self, client: str, prefix: str) -> None:
        self._request(client, "discover", {"prefix": prefix})
        self._request(client, "read", {"prefix": prefix, "children": True})

    def _request(self, client: str, kind: str, body: dict[str, Any]) -> None:
        effects = Effects()
        self.engine.requests.take(effects, client, orjson.dumps({"id": "1", "type": kind, "body": body}), self.now)
        assert len(effects.replies) + len(effects.work) == 1
        self._commit(effects)

    @rule(client=st.sampled_from((*CLIENTS, "stranger")), online=st.booleans())
    def presence(self, client: str, online: bool) -> None:
        effects = Effects()
        self.engine.presence(effects, client, online, self.now)
        self._commit(effects)

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 11.0, 31.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        effects = Effects()
        self.engine.tick(effects, self.now)
        self._commit(effects)
        shown = self.engine.snapshots(self.now)
        assert len(shown) == len(set(shown))
        for obj in shown:
            assert self.engine.objects.get(obj.topic) is obj
            messages.snapshot(obj, self.epoch)
            messages.value_view(obj)

    @rule(folds=st.integers(0, 2))
    def fold(self, folds: int) -> None:
        for _ in range(folds):
            self.store.fold()

    @rule(killed=st.booleans())
    @precondition(lambda self: hasattr(self, "store"))
    def restart(self, killed: bool) -> None:
        before = self._all()
        if killed:
            copy = Path(tempfile.mkdtemp())
            shutil.copytree(self.folder, copy, dirs_exist_ok=True)
            self.store.close()
            shutil.rmtree(self.folder)
            self.folder = copy
        else:
            self.store.close()
        self.epoch += 256
        self._open()
        assert self._all() == before

    def _all(self) -> dict[str, tuple[Any, ...]]:
        return {
            obj.topic: (
                obj.version,
                obj.modified,
                obj.created,
                obj.status,
                obj.deleted,
                obj.reporter,
                obj.row,
                obj.render(),
            )
            for obj in self.engine.objects
        }

    @invariant()
    def the_copies_hold_what_the_engine_holds(self) -> None:
        if not hasattr(self, "engine"):
            return
        assert set(self.copies) == {obj.topic for obj in self.engine.objects}
        for obj in self.engine.objects:
            copy = self.copies[obj.topic]
            assert (obj.version, obj.deleted) == (copy.version, copy.deleted)
            if obj.deleted:
                continue
            assert obj.status == copy.status
            assert obj.status in (LIVE, STALE, DISCONNECTED)
            options = orjson.OPT_SORT_KEYS
            assert orjson.dumps(obj.document(), option=options) == orjson.dumps(copy.data, option=options)
            assert obj.schema is not None
            assert obj.schema.is_valid(obj.document())
            assert obj.row > 0
            assert obj.size >= len(obj.render())

    @invariant()
    def quotas_are_what_the_objects_weigh(self) -> None:
        if not hasattr(self, "engine"):
            return
        for client in CLIENTS:
            own = [obj for obj in self.engine.objects if obj.reporter == client]
            state = self.engine._clients.get(client)
            assert (state.bytes if state is not None else 0) == sum(obj.charged for obj in own)
            assert all(obj.charged == (0 if obj.deleted else len(obj.render())) for obj in own)
            assert len(own) <= LIMITS.objects_per_client
        assert len(self.engine.objects) <= LIMITS.objects
        rows = [obj.row for obj in self.engine.objects]
        assert len(rows) == len(set(rows))

    @invariant()
    def children_have_parents(self) -> None:
        if not hasattr(self, "engine"):
            return
        for obj in self.engine.objects:
            if obj.parent is not None and not obj.deleted:
                parent = self.engine.objects.get(obj.parent.replace("://", "/", 1))
                assert parent is not None
                assert not parent.deleted


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
