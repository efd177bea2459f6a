"""What a Reporter says after a silence: the smallest change, and nothing over what is newer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.client.reporting import rebase, smallest
from gateway.patch import apply_patch, compose, merge, merge_diff, same

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", 0.0, -0.0, 1.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab/~"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd/~"), VALUES, max_size=4)


@given(OBJECTS, OBJECTS)
def test_the_smallest_change_leads_there(old: dict[str, Any], new: dict[str, Any]) -> None:
    change = smallest(old, new)
    if same(old, new):
        assert change == {}
    else:
        assert change
        assert same(merge(old, change) if isinstance(change, dict) else apply_patch(old, change), new)


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_is_found_where_there_is_one(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = merge_diff(old, new)
    if patch is not None:
        assert same(merge(old, patch), new)


@given(OBJECTS, OBJECTS, OBJECTS)
def test_two_merge_patches_are_one(data: dict[str, Any], first: dict[str, Any], second: dict[str, Any]) -> None:
    for key in first.keys() & second.keys():
        # Members put into a scalar's place: the one thing that one patch cannot say.
        if isinstance(second[key], dict) and not isinstance(first[key], dict):
            del second[key]
        elif isinstance(second[key], dict):
            second[key] = {}
    assert same(merge(data, compose(first, second)), merge(merge(data, first), second))


@given(OBJECTS, OBJECTS)
def test_where_nobody_else_has_changed_anything_all_of_it_is_said(base: dict[str, Any], mine: dict[str, Any]) -> None:
    result, left = rebase(base, mine, base, newer=True)
    assert same(result, mine)
    assert left == []


@given(OBJECTS, OBJECTS, OBJECTS)
def test_what_was_changed_elsewhere_and_not_here_stays(
    base: dict[str, Any], mine: dict[str, Any], there: dict[str, Any]
) -> None:
    result, _ = rebase(base, mine, there, newer=True)
    for key in base.keys() & mine.keys() & there.keys():
        if same(base[key], mine[key]):
            assert same(result[key], there[key])


def at(value: int, time: str | None = None) -> dict[str, Any]:
    return {"values": {"t": {"value": value} if time is None else {"value": value, "time": time}}}


@pytest.mark.parametrize(
    ("base", "mine", "there", "newer", "own", "result", "dropped"),
    [
        (at(1), at(2), at(3), False, [], at(2), []),
        (at(1), at(2), at(3), True, [], at(3), ["/values/t/value"]),
        (at(1), at(2), at(3), True, [at(3)], at(2), []),
        (
            at(1),
            at(2, "2026-01-01T10:00:00Z"),
            at(3, "2026-01-01T09:00:00Z"),
            True,
            [],
            at(2, "2026-01-01T10:00:00Z"),
            [],
        ),
        (
            at(1),
            at(2, "2026-01-01T10:00:00Z"),
            at(3, "2026-01-01T11:00:00Z"),
            True,
            [],
            at(3, "2026-01-01T11:00:00Z"),
            ["/values/t/value", "/values/t/time"],
        ),
        ({"a": 1, "b": 1}, {"b": 2}, {"a": 5, "b": 1, "c": 3}, True, [], {"a": 5, "b": 2, "c": 3}, ["/a"]),
        ({"a": {"b": 1}}, {"a": {}}, {"a": 7}, False, [], {"a": 7}, []),
    ],
)
def test_what_is_newer_elsewhere_stays(
    base: dict[str, Any],
    mine: dict[str, Any],
    there: dict[str, Any],
    newer: bool,
    own: list[Any],
    result: dict[str, Any],
    dropped: list[str],
) -> None:
    found, left = rebase(base, mine, there, newer=newer, own=own)
    assert found == result
    assert left == dropped
