"""The request `compare`: which Data Objects two services can exchange, and whether one schema's documents are valid under another."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import orjson
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gateway import catalogue as room
from gateway import parts
from gateway.catalogue import Catalogue, CatalogueError
from gateway.comparison import MAX_EXAMPLE, MAX_PAIRS, Proof, Verdict, compare
from tests.world import CATALOGUE, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.effects import Answer

ROOT = "hyperty-catalogue://catalogue.example.org/.well-known/dataschema/"
OURS = "hyperty-catalogue://catalogue.ctxt-gateway.org/.well-known/dataschema/"


def load(folder: Path, **schemas: dict[str, Any]) -> Catalogue:
    for name, schema in schemas.items():
        (folder / f"{name}.json").write_bytes(orjson.dumps({"$id": ROOT + name, "type": "object", **schema}))
    return Catalogue.load(folder)


def holding(schema: Any, **more: Any) -> dict[str, Any]:
    """A schema whose one member `v` satisfies another one."""
    return {"properties": {"v": schema}, "required": ["v"], **more}


def verdict(catalogue: Catalogue, left: str = "A", right: str = "B") -> Verdict:
    found = [*Proof(catalogue, catalogue.get(left), catalogue.get(right)).steps()][-1]
    assert found is not None
    return found


@pytest.fixture
def covers(tmp_path: Path) -> Callable[[Any, Any], Verdict]:
    """Whether every document of the one schema, as a member, is valid under the other."""

    def judged(left: Any, right: Any) -> Verdict:
        catalogue = load(tmp_path, A=holding(left), B=holding(right))
        found = verdict(catalogue)
        if found.answer == "no":
            assert catalogue.get("A").is_valid(found.example)
            assert not catalogue.get("B").is_valid(found.example)
        return found

    return judged


# ── one schema and another ───────────────────────────────────────────────────────────────────────────────────────────

TIME = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}
CAT = {"type": "object", "required": ["k"], "properties": {"k": {"const": "cat"}}}
DOG = {"type": "object", "required": ["k"], "properties": {"k": {"const": "dog"}}}


@pytest.mark.parametrize(
    ("left", "right", "answer"),
    [
        # types, truth values as schemas
        ({"type": "integer"}, {"type": "number"}, "yes"),
        ({"type": "number"}, {"type": "integer"}, "no"),
        ({"type": "number", "multipleOf": 2}, {"type": "integer"}, "yes"),
        ({"type": ["string", "null"]}, {"type": ["null", "string", "boolean"]}, "yes"),
        ({"type": ["string", "null"]}, {"type": "string"}, "no"),
        (True, {"type": ["null", "boolean", "number", "string", "array", "object"]}, "yes"),
        (True, {"type": ["null", "boolean", "integer", "string", "array", "object"]}, "no"),
        (False, {"type": "string"}, "yes"),
        ({"type": "string"}, {}, "yes"),
        ({"type": "object", "multipleOf": 2}, {"type": "integer"}, "no"),
        # values
        ({"enum": [1, 2]}, {"enum": [2, 1.0, 3]}, "yes"),
        ({"enum": [1, 2]}, {"enum": [True, 2]}, "no"),
        ({"const": 1}, {"const": True}, "no"),
        ({"enum": ["on", "off", 3]}, {"type": "string"}, "no"),
        ({"enum": ["on", "off", 3], "type": "string"}, {"type": "string", "maxLength": 3}, "yes"),
        ({"type": "boolean"}, {"enum": [False, True]}, "yes"),
        ({"type": "integer", "minimum": 0, "exclusiveMaximum": 3}, {"enum": [0, 1, 2]}, "yes"),
        ({"type": "string"}, {"enum": ["a", "A", "0"]}, "no"),
        # numbers
        ({"type": "integer", "exclusiveMinimum": 0}, {"type": "integer", "minimum": 1}, "yes"),
        ({"type": "number", "exclusiveMinimum": 0}, {"type": "number", "minimum": 1}, "no"),
        ({"type": "number", "maximum": 5}, {"type": "number", "exclusiveMaximum": 5}, "no"),
        ({"type": "number", "minimum": -90, "maximum": 60}, {"type": "number", "maximum": 60.5}, "yes"),
        ({"multipleOf": 6}, {"multipleOf": 3}, "yes"),
        ({"multipleOf": 3}, {"multipleOf": 6}, "no"),
        ({"allOf": [{"multipleOf": 2}, {"multipleOf": 3}]}, {"multipleOf": 6}, "yes"),
        ({"minimum": 0}, {"type": "number", "minimum": 0}, "no"),
        # texts
        ({"type": "string", "minLength": 2, "maxLength": 3}, {"type": "string", "minLength": 1}, "yes"),
        ({"type": "string", "maxLength": 30_000}, {"type": "string", "maxLength": 29_999}, "no"),
        ({"type": "string"}, {"type": "string", "minLength": 1}, "no"),
        (TIME, {"pattern": TIME["pattern"]}, "yes"),
        ({"type": "string"}, TIME, "no"),
        (TIME, {"type": "string", "pattern": "^[0-9]"}, "cannot tell"),
        ({"type": "string", "format": "date-time"}, {"type": "string", "format": "uri"}, "yes"),
        # lists
        ({"type": "array", "items": {"type": "integer"}}, {"type": "array", "items": {"type": "number"}}, "yes"),
        ({"type": "array", "items": {"type": "number"}}, {"type": "array", "items": {"type": "integer"}}, "no"),
        ({"type": "array", "maxItems": 0, "items": {"type": "number"}}, {"items": {"type": "null"}}, "yes"),
        ({"type": "array", "minItems": 1, "maxItems": 40}, {"type": "array", "maxItems": 39}, "no"),
        ({"type": "array"}, {"type": "array", "minItems": 1}, "no"),
        ({"prefixItems": [{"const": 1}], "items": False, "type": "array"}, {"type": "array", "maxItems": 1}, "yes"),
        ({"type": "array", "prefixItems": [{"type": "integer"}]}, {"prefixItems": [{"type": "number"}]}, "yes"),
        ({"type": "array", "prefixItems": [{"type": "number"}]}, {"items": {"type": "number"}}, "no"),
        ({"type": "array", "uniqueItems": True}, {"type": "array", "uniqueItems": True}, "yes"),
        ({"type": "array"}, {"type": "array", "uniqueItems": True}, "no"),
        ({"type": "array", "contains": {"const": 1}}, {"contains": {"const": 1}, "items": True}, "yes"),
        ({"type": "array"}, {"contains": {"const": 1}}, "no"),
        # objects
        ({"type": "object", "required": ["a", "b"]}, {"type": "object", "required": ["b"]}, "yes"),
        ({"type": "object", "required": ["a"]}, {"type": "object", "required": ["a", "b"]}, "no"),
        (CAT, {"properties": {"k": {"type": "string"}}}, "yes"),
        ({"type": "object"}, {"properties": {"k": {"type": "string"}}}, "no"),
        ({"type": "object", "additionalProperties": False}, {"properties": {"k": {"type": "string"}}}, "yes"),
        ({"type": "object"}, {"type": "object", "additionalProperties": False}, "no"),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"properties": {"a": {"type": "number"}}, "additionalProperties": {"type": ["number", "null"]}},
            "yes",
        ),
        ({"type": "object", "maxProperties": 257}, {"type": "object", "maxProperties": 256}, "no"),
        (
            {"type": "object", "properties": {"a": True}, "additionalProperties": False},
            {"maxProperties": 1, "propertyNames": {"pattern": "^[a-c]$"}},
            "yes",
        ),
        ({"type": "object"}, {"propertyNames": {"maxLength": 3}}, "no"),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
            {"patternProperties": {"^x": {"type": "number"}}, "additionalProperties": False},
            "yes",
        ),
        (
            {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
            {"patternProperties": {"x": {"type": "integer"}}, "additionalProperties": False},
            "cannot tell",
        ),
        (
            {"type": "object", "dependentRequired": {"a": ["b"], "b": ["c"]}},
            {"dependentRequired": {"a": ["c"]}},
            "yes",
        ),
        ({"type": "object"}, {"dependentRequired": {"a": ["c"]}}, "no"),
        # several at once
        ({"anyOf": [{"type": "string"}, {"const": 1}]}, {"anyOf": [{"const": 1}, {"type": "string"}]}, "yes"),
        ({"anyOf": [{"type": "string"}, {"const": 2}]}, {"anyOf": [{"const": 1}, {"type": "string"}]}, "no"),
        ({"oneOf": [CAT, DOG]}, {"anyOf": [CAT, DOG]}, "yes"),
        ({"anyOf": [CAT, DOG]}, {"oneOf": [CAT, DOG]}, "yes"),
        (DOG, {"oneOf": [CAT, DOG]}, "yes"),
        ({"type": "integer"}, {"oneOf": [{"type": "number"}, {"type": "integer"}]}, "no"),
        ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, {"type": "number", "minimum": 2}, "yes"),
        ({"type": "integer", "minimum": 3}, {"allOf": [{"type": "number"}, {"minimum": 4}]}, "no"),
        ({"type": "string"}, {"not": {"type": "number"}}, "yes"),
        ({"type": "number"}, {"not": {"const": 1}}, "no"),
        ({"type": ["string", "null"], "not": {"type": "null"}}, {"type": "string"}, "yes"),
        (
            {"type": ["string", "null"], "if": {"type": "string"}, "then": {"maxLength": 3}},
            {"anyOf": [{"type": "null"}, {"maxLength": 4, "type": "string"}]},
            "yes",
        ),
        ({"type": "integer", "minimum": 3, "maximum": 2}, {"type": "null"}, "yes"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, {"type": "null"}, "yes"),
    ],
)
def test_whether_all_documents_of_one_schema_are_valid_under_another(
    covers: Callable[[Any, Any], Verdict], left: Any, right: Any, answer: str
) -> None:
    assert covers(left, right).answer == answer


def test_a_no_has_a_place_a_reason_and_a_document(covers: Callable[[Any, Any], Verdict]) -> None:
    assert covers({"type": "number", "maximum": 50}, {"type": "number", "maximum": 40}) == Verdict(
        "no", "/v", "41 is greater than the maximum of 40", example={"v": 41}
    )


def test_what_could_not_be_decided_is_named_with_its_place(covers: Callable[[Any, Any], Verdict]) -> None:
    found = covers({"type": "array", "items": TIME}, {"items": {"type": "string", "pattern": "^[0-9]"}})
    assert found == Verdict("cannot tell", "/v/*", "pattern could not be decided", "pattern")


def test_a_long_document_is_left_out_of_the_answer(covers: Callable[[Any, Any], Verdict]) -> None:
    found = covers({"type": "string"}, {"type": "string", "maxLength": MAX_EXAMPLE})
    assert found.example is not None
    assert set(found.body()) == {"answer", "place", "reason"}


def test_references_within_a_schema_and_to_others_are_followed(tmp_path: Path) -> None:
    catalogue = load(
        tmp_path,
        A=holding({"$ref": "#/$defs/a~1b"}, **{"$defs": {"a/b": {"type": "integer", "minimum": 0}}}),
        B=holding({"$ref": ROOT + "A#/$defs/a~1b"}),
        C=holding({"$ref": "#/$defs/n"}, **{"$defs": {"n": {"type": "number"}}}),
    )
    answers = {(a + b): verdict(catalogue, a, b).answer for a in "ABC" for b in "ABC" if a != b}
    assert answers == {"AB": "yes", "BA": "yes", "AC": "yes", "BC": "yes", "CA": "no", "CB": "no"}


def test_schemas_that_refer_to_themselves_are_compared_to_every_depth(tmp_path: Path) -> None:
    def tree(value: Any) -> dict[str, Any]:
        below = {"type": "array", "items": {"$ref": "#"}}
        return {"properties": {"value": value, "below": below}, "additionalProperties": False}

    catalogue = load(tmp_path, A=tree({"type": "integer"}), B=tree({"type": "number"}))
    assert verdict(catalogue, "A", "B").answer == "yes"
    assert verdict(catalogue, "B", "A").answer == "no"


def test_descriptions_and_titles_make_no_difference(tmp_path: Path) -> None:
    catalogue = load(tmp_path, A=holding(TIME, title="A"), B=holding({"description": "A month.", **TIME}))
    assert verdict(catalogue).answer == "yes"


def test_what_takes_too_long_is_not_decided(tmp_path: Path) -> None:
    def many(kind: str) -> dict[str, Any]:
        return {"properties": {f"m{i}": {"type": kind} for i in range(3_000)}}

    catalogue = load(tmp_path, A=many("integer"), B=many("number"))
    found = verdict(catalogue)
    assert found.answer == "cannot tell"
    assert found.reason == "the schemas are too large or too deep to decide"


def test_every_keyword_of_the_catalogue_is_looked_at_or_judges_nothing() -> None:
    judging = parts._ONE | parts._MANY | parts._NAMED | parts._PLAIN
    assert room._KNOWN - judging == {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "default",
        "deprecated",
        "description",
        "examples",
        "format",
        "readOnly",
        "title",
        "writeOnly",
        "x-children",
        "x-scheme",
        "x-time",
    }


SCALARS = st.sampled_from([None, True, False, 0, 1, 2, 3, -1, 1.0, 2.5, 6, "", "a", "b", "ab", "ba"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)
TYPES = st.sampled_from(["null", "boolean", "integer", "number", "string", "array", "object"])
COUNTS = st.integers(0, 3)


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": TYPES | st.lists(TYPES, min_size=1, max_size=3, unique=True),
            "minimum": st.sampled_from([-1, 0, 0.5, 2]),
            "exclusiveMinimum": st.sampled_from([0, 0.5]),
            "maximum": st.sampled_from([1, 2.5, 3]),
            "exclusiveMaximum": st.sampled_from([3, 2.5]),
            "multipleOf": st.sampled_from([1, 2, 3]),
            "minLength": COUNTS,
            "maxLength": COUNTS,
            "pattern": st.sampled_from(["^a", "b$"]),
            "items": inner,
            "prefixItems": several,
            "contains": inner,
            "minItems": COUNTS,
            "maxItems": COUNTS,
            "uniqueItems": st.booleans(),
            "properties": st.dictionaries(st.sampled_from("ab"), inner, min_size=1),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "[bc]$"]), inner, min_size=1, max_size=1),
            "additionalProperties": inner,
            "propertyNames": st.sampled_from([{"maxLength": 0}, {"enum": ["a", "b"]}, {"pattern": "^[a-b]"}]),
            "required": st.lists(st.sampled_from("abc"), max_size=2, unique=True),
            "dependentRequired": st.just({"a": ["b"]}),
            "dependentSchemas": st.fixed_dictionaries({"a": inner}),
            "minProperties": COUNTS,
            "maxProperties": COUNTS,
            "allOf": several,
            "anyOf": several,
            "oneOf": several,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
        },
    )


SCHEMAS = st.recursive(
    st.booleans()
    | st.just({"$ref": "#/$defs/again"})
    | st.builds(lambda value: {"const": value}, VALUES)
    | st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
    schemas,
    max_leaves=6,
)
AGAIN = {"type": ["object", "integer"], "properties": {"a": {"$ref": "#/$defs/again"}}, "additionalProperties": False}


@st.composite
def changed(draw: st.DrawFn, schema: Any) -> Any:
    """The schema with some keywords left out or taken from another one."""
    other = draw(SCHEMAS)
    if not isinstance(schema, dict) or not isinstance(other, dict):
        return draw(st.sampled_from([schema, other]))
    mixed = {**schema, **{key: value for key, value in other.items() if draw(st.booleans())}}
    return {key: value for key, value in mixed.items() if draw(st.integers(0, 4))}


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_a_yes_has_no_counter_example_and_a_no_has_one(data: st.DataObject) -> None:
    left = data.draw(SCHEMAS)
    right = data.draw(changed(left))
    again = {"again": AGAIN}
    with tempfile.TemporaryDirectory() as folder:
        try:
            catalogue = load(
                Path(folder), A=holding(left, **{"$defs": again}), B=holding(right, **{"$defs": {"again": AGAIN}})
            )
        except CatalogueError:
            assume(False)
    found = verdict(catalogue)
    one, other = (jsonschema.Draft202012Validator(catalogue.get(name).document) for name in "AB")
    if found.answer == "no":
        assert one.is_valid(found.example)
        assert not other.is_valid(found.example)
    if found.answer == "yes":
        for value in data.draw(st.lists(VALUES, min_size=30, max_size=30)):
            assert other.is_valid({"v": value}) or not one.is_valid({"v": value})


# ── the request ──────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(mine: list[str], theirs: list[str], **more: Any) -> dict[str, Any]:
    return World().request("phone", "compare", {"mine": mine, "theirs": theirs, **more})


def told(catalogue: Catalogue, mine: list[str], theirs: list[str], *, deep: bool = False) -> Answer:
    answer = [*compare(catalogue, mine, theirs, deep=deep)][-1]
    assert answer is not None
    return answer


def test_a_schema_in_both_lists_is_exchanged_by_name_or_url() -> None:
    answer = ask(["Context", OURS + "Communication"], [OURS + "Context", "Communication", "Context"])
    assert answer["code"] == 200
    assert answer["body"] == {
        "exchange": [
            {"schema": OURS + "Context", "name": "Context", "scheme": "ctxt"},
            {"schema": OURS + "Communication", "name": "Communication", "scheme": "comm"},
        ],
        "candidates": [],
        "rest": [],
    }


def test_a_schema_in_one_list_only_is_told_with_why() -> None:
    body = ask(["Context", "Connection", "Message"], ["Context", "Device"])["body"]
    assert [each["name"] for each in body["exchange"]] == ["Context"]
    assert body["candidates"] == [{"scheme": "ctxt", "mine": [OURS + "Context"], "theirs": [OURS + "Device"]}]
    assert [(each["schema"].removeprefix(OURS), each["of"], each["reason"]) for each in body["rest"]] == [
        ("Connection", "mine", "the list `theirs` does not have it, nor one of the scheme 'connection'"),
        ("Message", "mine", "the list `theirs` does not have it; it is a schema of children"),
        ("Device", "theirs", "the list `mine` does not have it, but 1 of the scheme 'ctxt'"),
    ]


def test_an_unknown_schema_and_that_of_a_message_are_told() -> None:
    body = ask(["Contxt", OURS + "messages/read"], ["Context"])["body"]
    assert [(each["schema"], each["reason"]) for each in body["rest"][:2]] == [
        ("Contxt", "the catalogue has no schema 'Contxt': did you mean 'Context'?"),
        (OURS + "messages/read", "it is the schema of a message of the protocol, not of Data Objects"),
    ]


def test_deep_says_of_each_candidate_what_holds_in_both_directions(tmp_path: Path) -> None:
    old = holding({"type": "integer"}, **{"x-scheme": "meter", "additionalProperties": False})
    new = holding({"type": "number"}, **{"x-scheme": "meter", "additionalProperties": False})
    catalogue = load(tmp_path, Meter=old, Meter2=new)
    steps = [*compare(catalogue, ["Meter"], ["Meter2"], deep=True)]
    assert steps[:-1] == [None] * len(steps[:-1])
    answer = steps[-1]
    assert answer is not None
    assert answer.body["candidates"] == [{"scheme": "meter", "mine": [ROOT + "Meter"], "theirs": [ROOT + "Meter2"]}]
    [pair] = answer.body["deep"]
    assert pair["mine"] == ROOT + "Meter"
    assert pair["theirs"] == ROOT + "Meter2"
    assert pair["forth"] == {"answer": "yes"}
    assert {**pair["back"], "example": None} == {
        "answer": "no",
        "place": "/v",
        "reason": "0.5 is not of type 'integer'",
        "example": None,
    }


def test_deep_tells_the_shipped_schemas_apart() -> None:
    [pair] = ask(["Context"], ["Device"], deep=True)["body"]["deep"]
    for direction, left, right in (("forth", "Context", "Device"), ("back", "Device", "Context")):
        assert pair[direction]["answer"] == "no"
        assert CATALOGUE.get(left).is_valid(pair[direction]["example"])
        assert not CATALOGUE.get(right).is_valid(pair[direction]["example"])


def test_too_many_pairs_are_refused_only_when_they_are_to_be_compared(tmp_path: Path) -> None:
    names = [f"S{i}" for i in range(18)]
    catalogue = load(tmp_path, **{name: {"x-scheme": "meter"} for name in names})
    assert told(catalogue, names[:9], names[9:]).code == 200
    refused = told(catalogue, names[:9], names[9:], deep=True)
    assert refused.code == 413
    assert refused.description == (
        f"`deep` compares at most {MAX_PAIRS} pairs of schemas, and these lists have 81: send fewer, or leave it out"
    )


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "/: 'mine' is a required property"),
        ({"mine": ["Context"]}, "/: 'theirs' is a required property"),
        ({"mine": [], "theirs": ["Context"]}, "/mine: [] should be non-empty"),
        ({"mine": "Context", "theirs": ["Context"]}, "/mine: 'Context' is not of type 'array'"),
        ({"mine": [1], "theirs": ["Context"]}, "/mine/0: 1 is not of type 'string'"),
        ({"mine": ["Context"], "theirs": ["x"] * 2}, "/theirs: ['x', 'x'] has non-unique elements"),
        ({"mine": ["Context"], "theirs": ["Context"], "deep": 1}, "/deep: 1 is not of type 'boolean'"),
    ],
)
def test_a_body_that_is_not_one_is_refused(body: dict[str, Any], said: str) -> None:
    answer = World().request("phone", "compare", body)
    assert (answer["code"], answer["description"]) == (400, said)


def test_more_than_a_hundred_schemas_are_refused() -> None:
    assert ask([f"S{i}" for i in range(101)], ["Context"])["code"] == 400
    assert ask([f"S{i}" for i in range(100)], ["Context"])["code"] == 200
