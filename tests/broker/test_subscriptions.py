"""The topic tree, the routes and the retained store against the definitions in `gateway.topics`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.broker.house import Limits
from gateway.broker.retained import Kept, Retained
from gateway.broker.server import Broker
from gateway.broker.session import Session
from gateway.broker.subscriptions import Entry, Subscriptions
from gateway.topics import matches, valid_filter
from tests.broker.world import TableHouse

LEVELS = st.sampled_from(["a", "b", "", "$SYS", "+", "#", "é"])
NAMES = st.lists(st.sampled_from(["a", "b", "", "$SYS", "é"]), min_size=1, max_size=5).map("/".join).filter(bool)
FILTERS = st.lists(LEVELS, min_size=1, max_size=5).map("/".join).filter(valid_filter)


def sessions(count: int) -> list[Session]:
    broker = Broker(TableHouse(), Limits())
    return [Session(broker, "bob", str(i), 4 + i % 2) for i in range(count)]


@given(st.lists(st.tuples(st.integers(0, 3), FILTERS, st.booleans()), max_size=30), NAMES)
def test_the_tree_finds_what_matches_and_nothing_else(changes: list[tuple[int, str, bool]], topic: str) -> None:
    table = Subscriptions(100)
    who = sessions(4)
    model: set[tuple[int, str]] = set()
    for number, topic_filter, add in changes:
        if add:
            table.add(Entry(who[number], topic_filter, 0))
            model.add((number, topic_filter))
        elif (number, topic_filter) in model:
            table.remove(who[number], topic_filter)
            model.discard((number, topic_filter))
    found = [
        (int(entry.session.client_id), entry.topic_filter) for entry in table.match(topic) if isinstance(entry, Entry)
    ]
    assert sorted(found) == sorted(one for one in model if matches(one[1], topic))
    for number, topic_filter in model:
        table.remove(who[number], topic_filter)
    assert not table.match(topic)
    assert not table._tree.children
    assert not table._exact


@given(st.lists(st.tuples(st.integers(0, 2), FILTERS, st.booleans(), NAMES), max_size=30), st.integers(1, 4))
def test_a_remembered_route_is_never_stale(changes: list[tuple[int, str, bool, str]], most_routes: int) -> None:
    house = TableHouse()
    house.read["bob"] = ["#", "$SYS/#"]
    broker = house.broker = Broker(house, Limits(routes=most_routes))
    who = [Session(broker, "bob", str(i), 5) for i in range(3)]
    table = broker.subscriptions
    held = {}
    model: set[tuple[int, str]] = set()
    for number, topic_filter, add, topic in changes:
        held[topic] = broker.route(topic)
        broker.renew(held[topic])
        if add:
            table.add(Entry(who[number], topic_filter, 0))
            model.add((number, topic_filter))
        elif (number, topic_filter) in model:
            table.remove(who[number], topic_filter)
            model.discard((number, topic_filter))
        for name, route in held.items():
            broker.renew(route)
            members = {int(session.client_id) for group in route.groups for session in group.members}
            assert members == {one for one, wanted in model if matches(wanted, name)}


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=40),
    FILTERS,
    st.integers(0, 6),
    st.integers(0, 2_000),
)
def test_the_retained_store_keeps_its_bounds_and_its_sums(
    puts: list[tuple[str, bytes]], topic_filter: str, most: int, most_bytes: int
) -> None:
    store = Retained(most, most_bytes)
    model: dict[str, bytes] = {}
    for topic, payload in puts:
        kept = store.keep(topic, Kept(payload, 0, None, 0.0))
        if not payload:
            model.pop(topic, None)
            assert kept
        elif kept:
            model[topic] = payload
        assert len(store) == len(model) <= most
        assert 0 <= store.bytes <= most_bytes
    found = [topic for topic in store.below(topic_filter) if topic is not None]
    assert sorted(found) == sorted(topic for topic in model if matches(topic_filter, topic))
    for topic in model:
        store.keep(topic, Kept(b"", 0, None, 0.0))
    assert store.bytes == 0


def test_what_is_cleared_while_it_is_searched_is_left_out() -> None:
    store = Retained(10, 10_000)
    for name in "abc":
        store.keep(name, Kept(b"1", 0, None, 0.0))
    search = store.below("+")
    assert next(search) == "a"
    store.keep("b", Kept(b"", 0, None, 0.0))
    store.keep("d", Kept(b"1", 0, None, 0.0))
    assert list(search) == [None, "c"]
