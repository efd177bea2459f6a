from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.objects import DataObject, Objects, authority_of, parent_of, topic_of, url_of
from gateway.topics import matches


def thing(topic: str, reporter: str = "r") -> DataObject:
    return DataObject(topic=topic, schema=None, reporter=reporter, name="x", version=1, created=0, modified=0, data={})


def test_topic_and_url_are_two_writings_of_one_name() -> None:
    assert url_of("ctxt/home.local/a/b") == "ctxt://home.local/a/b"
    assert topic_of("ctxt://home.local/a/b") == "ctxt/home.local/a/b"
    assert authority_of("ctxt/home.local/a/b") == "ctxt/home.local"
    assert parent_of("ctxt/h/a/children/c/r/1") == "ctxt/h/a"
    assert parent_of("ctxt/h/a") is None


_topics = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda parts: "ctxt/h/" + "/".join(parts))
_filters = st.lists(st.sampled_from(["a", "b", "+", "#", "ctxt", "h"]), min_size=1, max_size=5).map("/".join)


@given(st.sets(_topics), _filters)
def test_matching_finds_what_the_filter_matches(topics: set[str], topic_filter: str) -> None:
    if "#" in topic_filter[:-1]:
        topic_filter = topic_filter.replace("#", "a")
    objects = Objects([thing(topic) for topic in topics])
    expected = sorted(topic for topic in topics if matches(topic_filter, topic))
    assert [obj.topic for obj in objects.matching(topic_filter) if obj is not None] == expected


@given(st.sets(_topics), st.lists(st.tuples(st.booleans(), _topics), max_size=20))
def test_an_iteration_meets_what_is_there_throughout_exactly_once(
    topics: set[str], changes: list[tuple[bool, str]]
) -> None:
    objects = Objects([thing(topic) for topic in topics])
    throughout = set(topics)
    met: list[str] = []
    pending = iter(changes)
    for obj in objects.from_url("ctxt://"):
        met.append(obj.topic)
        for add, topic in [next(pending, (False, ""))]:
            if add and topic not in objects:
                objects.add(thing(topic))
            elif not add and topic in objects:
                found = objects.get(topic)
                assert found is not None
                objects.remove(found)
                throughout.discard(topic)
    assert len(met) == len(set(met))
    assert throughout <= set(met)
    assert met == sorted(met)


def test_objects_are_found_by_their_reporter_even_after_a_hand_over() -> None:
    objects = Objects([thing("ctxt/h/a", "x"), thing("ctxt/h/b", "x")])
    found = objects.get("ctxt/h/a")
    assert found is not None
    objects.hand_over(found, "y")
    assert [obj.topic for obj in objects.of("x")] == ["ctxt/h/b"]
    assert [obj.topic for obj in objects.of("y")] == ["ctxt/h/a"]
    assert objects.count_of("x") == 1
    objects.remove(found)
    assert set(objects.reporters()) == {"x"}
