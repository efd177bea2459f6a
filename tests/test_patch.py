from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gateway.patch import (
    MAX_DEPTH,
    MAX_PLACE,
    PatchError,
    apply_patch,
    changed_paths,
    depth,
    depth_exceeds,
    diff,
    merge,
    same,
)

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""

VECTORS = json.loads((Path(__file__).parent / "vectors" / "patches.json").read_text(encoding="utf-8"))

KEYS = st.sampled_from(["a", "b", "c", "", "0", "1", "-", "~", "/", "a/b"])
# Few values, and those that Python takes for equal: chance must meet them.
SCALARS = st.sampled_from([None, True, False, 0, 1, 0.0, -0.0, 1.0, 1.5, "", "a", "0"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(KEYS, part, max_size=4), max_leaves=8
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


def canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


# ---- references: the RFCs' own words, on deep copies -------------------------------------------------------------------


def merge_reference(target: Any, patch: Any) -> Any:
    """RFC 7396 section 2."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = copy.deepcopy(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            if name in result:
                del result[name]
        else:
            result[name] = merge_reference(result.get(name), value)
    return result


class RefusedError(Exception):
    """The reference's own word for an operation that cannot be done."""


def unescape(token: str) -> str:
    return token.replace("~1", "/").replace("~0", "~")


def at(document: Any, path: str) -> Any:
    for token in map(unescape, path.split("/")[1:]):
        document = document[key_of(document, token)]
    return document


def key_of(container: Any, token: str) -> str | int:
    if isinstance(container, dict):
        if token not in container:
            raise RefusedError
        return token
    if not isinstance(container, list) or token not in map(str, range(len(container))):
        raise RefusedError
    return int(token)


def patch_reference(target: Any, ops: list[dict[str, Any]]) -> Any:
    """RFC 6902 section 4, with a whole document that stays an object."""
    box = {"": copy.deepcopy(target)}

    def add(path: str, value: Any) -> None:
        value = copy.deepcopy(value)
        if path == "":
            if not isinstance(value, dict):
                raise RefusedError
            box[""] = value
            return
        above, _, last = path.rpartition("/")
        container = at(box[""], above)
        token = unescape(last)
        if isinstance(container, dict):
            container[token] = value
        elif isinstance(container, list) and token in ("-", *map(str, range(len(container) + 1))):
            container.insert(len(container) if token == "-" else int(token), value)
        else:
            raise RefusedError

    def remove(path: str) -> None:
        if path == "":
            raise RefusedError
        above, _, last = path.rpartition("/")
        container = at(box[""], above)
        del container[key_of(container, unescape(last))]

    for op in ops:
        path = op["path"]
        match op["op"]:
            case "add":
                add(path, op["value"])
            case "remove":
                remove(path)
            case "replace":
                at(box[""], path)
                if path == "":
                    add(path, op["value"])
                else:
                    above, _, last = path.rpartition("/")
                    container = at(box[""], above)
                    container[key_of(container, unescape(last))] = copy.deepcopy(op["value"])
            case "move":
                value = at(box[""], op["from"])
                if path != op["from"]:
                    if path.startswith(op["from"] + "/"):
                        raise RefusedError
                    remove(op["from"])
                    add(path, value)
            case "copy":
                add(path, at(box[""], op["from"]))
            case "test":
                if canonical(at(box[""], path)) != canonical(op["value"]):
                    raise RefusedError
    return box[""]


# ---- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["merge"], ids=lambda case: json.dumps(case["patch"]))
def test_a_merge_patch_does_what_the_vectors_say(case: dict[str, Any]) -> None:
    merged = merge(case["document"], case["patch"])
    assert canonical(merged) == canonical(case["result"])
    assert merged is not case["document"]


@pytest.mark.parametrize("case", VECTORS["merge_unchanged"], ids=lambda case: json.dumps(case["patch"]))
def test_a_merge_patch_that_changes_nothing_gives_the_document_itself(case: dict[str, Any]) -> None:
    assert merge(case["document"], case["patch"]) is case["document"]
    assert canonical(case["document"]) == canonical(case["result"])


@pytest.mark.parametrize("case", VECTORS["patch"], ids=lambda case: json.dumps(case["patch"]))
def test_a_json_patch_does_what_the_vectors_say(case: dict[str, Any]) -> None:
    before = canonical(case["document"])
    if "error" in case:
        with pytest.raises(PatchError) as caught:
            apply_patch(case["document"], case["patch"])
        assert {"place": caught.value.place, "reason": caught.value.reason} == case["error"]
    else:
        assert canonical(apply_patch(case["document"], case["patch"])) == canonical(case["result"])
    assert canonical(case["document"]) == before


# ---- merge -------------------------------------------------------------------------------------------------------------


@RELAXED
@given(VALUES, VALUES)
def test_merge_agrees_with_the_rfc(target: Any, patch: Any) -> None:
    assert canonical(merge(target, patch)) == canonical(merge_reference(target, patch))


@RELAXED
@given(OBJECTS, OBJECTS)
def test_merge_gives_the_same_object_exactly_when_nothing_changes(
    target: dict[str, Any], patch: dict[str, Any]
) -> None:
    merged = merge(target, patch)
    assert (merged is target) is (canonical(merged) == canonical(target))


@RELAXED
@given(OBJECTS, st.lists(OBJECTS, max_size=4))
def test_merges_never_change_what_they_were_given(target: dict[str, Any], patches: list[dict[str, Any]]) -> None:
    held = [canonical(target), *map(canonical, patches)]
    result = target
    seen = []
    for patch in patches:
        result = merge(result, patch)
        seen.append((result, canonical(result)))
    assert [canonical(target), *map(canonical, patches)] == held
    assert [canonical(value) for value, _ in seen] == [text for _, text in seen]


def test_merge_shares_what_did_not_change() -> None:
    target = {"values": {"a": {"value": 1}, "b": {"value": 2}}, "tags": ["x"]}
    merged = merge(target, {"values": {"a": {"value": 3}}})
    assert merged["values"]["b"] is target["values"]["b"]  # type: ignore[index]
    assert merged["tags"] is target["tags"]
    assert target["values"]["a"] == {"value": 1}  # type: ignore[index]


# ---- same --------------------------------------------------------------------------------------------------------------


@RELAXED
@given(VALUES, VALUES)
def test_same_is_equality_of_canonical_json(a: Any, b: Any) -> None:
    assert same(a, b) is (canonical(a) == canonical(b))


@RELAXED
@given(VALUES, st.data())
def test_same_sees_one_changed_leaf(value: Any, data: st.DataObject) -> None:
    other = json.loads(json.dumps(value))
    assert same(value, other)
    holders: list[Any] = []
    todo = [other]
    while todo:
        part = todo.pop()
        if isinstance(part, dict | list):
            holders.append(part)
            todo.extend(part.values() if isinstance(part, dict) else part)
    holders = [holder for holder in holders if holder]
    assume(holders)
    holder = data.draw(st.sampled_from(holders))
    key = data.draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(SCALARS)
    assert same(value, other) is (canonical(value) == canonical(other))


# ---- JSON Patch --------------------------------------------------------------------------------------------------------


def pointers(value: Any, path: str = "") -> list[str]:
    """Every place in a value, and in each container a place where there is nothing."""
    found = [path]
    if isinstance(value, dict):
        for key, part in value.items():
            found += pointers(part, f"{path}/{key.replace('~', '~0').replace('/', '~1')}")
        found.append(f"{path}/new")
    elif isinstance(value, list):
        for i, part in enumerate(value):
            found += pointers(part, f"{path}/{i}")
        found += [f"{path}/{len(value)}", f"{path}/-"]
    return found


@st.composite
def documents_with_patches(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A document and operations, most of which can be done where they stand."""
    document = draw(OBJECTS)
    now: Any = document
    ops: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0, 7))):
        places = pointers(now)
        anywhere = st.sampled_from(places) | st.sampled_from(["/a", "/a/b", "/b/0", "/c/-", "/~0", "/~1"])
        name = draw(st.sampled_from(["add", "remove", "replace", "move", "copy", "copy", "test"]))
        op: dict[str, Any] = {"op": name, "path": draw(anywhere)}
        if name in ("move", "copy"):
            op["from"] = draw(anywhere)
        elif name in ("add", "replace", "test"):
            op["value"] = draw(VALUES)
        if name == "test" and draw(st.booleans()):
            with suppress(RefusedError):
                op["value"] = at(now, op["path"])
        try:
            now = patch_reference(now, [op])
        except RefusedError:
            if not draw(st.integers(0, 3)):
                ops.append(op)
            continue
        ops.append(op)
    return document, ops


@settings(RELAXED, max_examples=300)
@given(documents_with_patches())
def test_apply_patch_agrees_with_the_rfc(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    document, ops = case
    before = canonical([document, ops])
    try:
        expected = patch_reference(document, ops)
    except RefusedError:
        with pytest.raises(PatchError):
            apply_patch(document, ops)
    else:
        result = apply_patch(document, ops)
        assert canonical(result) == canonical(expected)
        assert (result is document) is (canonical(result) == canonical(document))
    assert canonical([document, ops]) == before


JUNK = st.sampled_from(
    ["op", "path", "from", "value", "add", "copy", "move", "test", "remove", "/", "/a", "~", "", 0, None]
)


@RELAXED
@given(
    OBJECTS,
    st.lists(st.dictionaries(st.sampled_from(["op", "path", "from", "value"]), JUNK | VALUES) | VALUES, max_size=4),
)
def test_whatever_is_no_json_patch_ends_in_a_patch_error(document: dict[str, Any], ops: list[Any]) -> None:
    try:
        result = apply_patch(document, ops)
    except PatchError as error:
        assert str(error).startswith((error.place + ": ", "the document: "))  # noqa: PT017 - either way is right
    else:
        assert type(result) is dict


def test_more_operations_than_allowed_are_refused() -> None:
    ops = [{"op": "add", "path": "/a/-", "value": 1}] * 11
    assert len(apply_patch({"a": []}, ops, max_ops=11)["a"]) == 11
    with pytest.raises(PatchError, match="11 operations, at most 10"):
        apply_patch({"a": []}, ops, max_ops=10)


def test_copies_that_double_again_and_again_are_refused() -> None:
    ops = [{"op": "copy", "from": "/a", "path": "/a/-"}] * 1_000
    with pytest.raises(PatchError, match=r"operation \d+ \(copy\): the patch copies more than 65,536 bytes"):
        apply_patch({"a": ["x" * 10]}, ops, max_bytes=65_536)


def test_what_copies_add_is_never_more_than_allowed() -> None:
    document = {"a": {"key": [1, "text", {"x": True}]}}
    size = len(orjson.dumps(document["a"]))
    ops = [{"op": "copy", "from": "/a", "path": f"/{i}"} for i in range(10)]
    assert len(apply_patch(document, ops, max_bytes=10 * size)) == 11
    with pytest.raises(PatchError, match="the patch copies more than"):
        apply_patch(document, ops, max_bytes=5 * size)


@pytest.mark.parametrize("name", ["copy", "move"])
def test_a_document_cannot_be_deepened_beyond_the_limit(name: str) -> None:
    ops: list[Any] = [{"op": "add", "path": "/x0", "value": {}}]
    for i in range(MAX_DEPTH - 1):
        ops += [
            {"op": "add", "path": f"/x{i + 1}", "value": {}},
            {"op": name, "from": f"/x{i}", "path": f"/x{i + 1}/a"},
        ]
    with pytest.raises(PatchError, match=f"nested deeper than {MAX_DEPTH} levels"):
        apply_patch({}, ops)
    assert depth(apply_patch({}, ops[:-2])) == MAX_DEPTH


def test_a_document_that_is_too_deep_already_can_still_be_changed() -> None:
    held = nested(10)
    assert apply_patch(held, [{"op": "add", "path": "/b", "value": []}], max_depth=5)["b"] == []


def test_a_thousand_levels_for_a_moment_do_no_harm() -> None:
    ops: list[Any] = [{"op": "add", "path": "/x", "value": {}}]
    for _ in range(5_000):
        ops += [{"op": "move", "from": "/x", "path": "/y"}, {"op": "add", "path": "/x", "value": {}}]
        ops += [{"op": "move", "from": "/y", "path": "/x/a"}]
    with pytest.raises(PatchError, match="nested deeper"):
        apply_patch({}, ops, max_ops=len(ops))
    assert apply_patch({}, [*ops, {"op": "remove", "path": "/x"}], max_ops=len(ops) + 1) == {}


def test_a_place_in_an_error_is_short() -> None:
    with pytest.raises(PatchError) as caught:
        apply_patch({}, [{"op": "remove", "path": "/" + "a" * 60_000}])
    assert len(caught.value.place) == MAX_PLACE + 1
    assert len(str(caught.value)) < 2 * MAX_PLACE


# ---- diff --------------------------------------------------------------------------------------------------------------


@RELAXED
@given(OBJECTS, OBJECTS)
def test_a_diff_makes_the_old_the_new(old: dict[str, Any], new: dict[str, Any]) -> None:
    ops = diff(old, new)
    assert same(apply_patch(old, ops), new)
    assert bool(ops) is (canonical(old) != canonical(new))


@RELAXED
@given(documents_with_patches())
def test_a_diff_of_two_versions_makes_the_one_the_other(case: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    document, ops = case
    try:
        changed = apply_patch(document, ops)
    except PatchError:
        assume(False)
    assert same(apply_patch(document, diff(document, changed)), changed)
    assert same(apply_patch(changed, diff(changed, document)), document)


@pytest.mark.parametrize(
    ("old", "new", "ops"),
    [
        ({"a": 1}, {"a": True}, [{"op": "replace", "path": "/a", "value": True}]),
        ({"a": 1, "b": 2}, {"b": 2}, [{"op": "remove", "path": "/a"}]),
        ({}, {"a/b": {"~": 1}}, [{"op": "add", "path": "/a~1b", "value": {"~": 1}}]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, [{"op": "replace", "path": "/a/c", "value": 3}]),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, [{"op": "add", "path": "/a/-", "value": 3}]),
        ({"a": [1, 2, 3]}, {"a": [1, 2]}, [{"op": "remove", "path": "/a/2"}]),
        ({"a": [1, 2, 3]}, {"a": [2, 3]}, [{"op": "replace", "path": "/a", "value": [2, 3]}]),
        ({"a": [1]}, {"a": [1, 2, 3, 4]}, [{"op": "replace", "path": "/a", "value": [1, 2, 3, 4]}]),
    ],
)
def test_a_diff_is_small(old: dict[str, Any], new: dict[str, Any], ops: list[dict[str, Any]]) -> None:
    assert diff(old, new) == ops


def test_a_diff_of_everything_is_one_operation() -> None:
    new = {str(i): i for i in range(1_001)}
    ops = diff({}, new)
    assert [op["path"] for op in ops] == [""]
    assert apply_patch({}, ops) == new


# ---- depth -------------------------------------------------------------------------------------------------------------


@RELAXED
@given(VALUES, st.integers(0, 6))
def test_depth_counts_brackets(value: Any, limit: int) -> None:
    def reference(part: Any) -> int:
        if isinstance(part, dict | list):
            return 1 + max(map(reference, part.values() if isinstance(part, dict) else part), default=0)
        return 0

    assert depth(value) == reference(value)
    assert depth_exceeds(value, limit) is (reference(value) > limit)


def test_depth_has_no_depth_limit_of_its_own() -> None:
    deep = nested(100_000)
    assert depth(deep) == 100_000
    assert depth_exceeds(deep, 99_999)
    assert not depth_exceeds(deep, 100_000)


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": True}, ["/a"]),
        ({"a": 1, "gone": {"x": 1}}, {"b": {"c": 2}, "a": 1}, ["/b", "/gone"]),
        (
            {"values": {"t": {"value": 1, "unit": "Cel"}}},
            {"values": {"t": {"value": 2, "unit": "Cel"}}},
            ["/values/t/value"],
        ),
        ({"l": [1, {"a": 1}]}, {"l": [1, {"a": 2}]}, ["/l"]),
        ({"l": [1]}, {"l": [1]}, []),
        ({"a/b": {"~": None}}, {"a/b": {"~": 0}}, ["/a~1b/~0"]),
        ({"a": {"b": 1}}, {"a": [1]}, ["/a"]),
    ],
)
def test_changed_paths_names_the_deepest_members_that_differ(old: Any, new: Any, paths: list[str]) -> None:
    assert changed_paths(old, new) == paths
