"""The catalogue: what is loaded, what is refused and in which words, and that both validators judge alike."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import catalogue as room
from gateway import data
from gateway.catalogue import Catalogue, CatalogueError, FileProblem, TimedMembers, UnknownSchema, check_file
from gateway.errors import CtxtError

if TYPE_CHECKING:
    from pathlib import Path

ROOT = "hyperty-catalogue://catalogue.example.org/.well-known/dataschema/"
OURS = "hyperty-catalogue://catalogue.ctxt-gateway.org/.well-known/dataschema/"


def write(folder: Path, name: str, **keywords: Any) -> Path:
    """A schema file `name`.json; keywords are spelled with _ for - and with S_ for $; None leaves one out."""
    document = {"$id": ROOT + name, "type": "object"}
    for key, value in keywords.items():
        spelled = key.replace("S_", "$").replace("x_", "x-")
        document[spelled] = value
        if value is None:
            del document[spelled]
    path = folder / f"{name}.json"
    path.write_bytes(orjson.dumps(document))
    return path


def refused(*folders: Path) -> list[FileProblem]:
    with pytest.raises(CatalogueError) as caught:
        Catalogue.load(*folders)
    return list(caught.value.problems)


def the_problem(folder: Path) -> tuple[str, str]:
    [problem] = refused(folder)
    return problem.place, problem.reason


# ── loading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_of_ones_own_adds_to_the_shipped_schemas(tmp_path: Path) -> None:
    write(tmp_path, "Meter", x_scheme="meter", x_children={"actions": OURS + "Action"})
    catalogue = Catalogue.load(data.folder("schemas"), tmp_path)
    assert catalogue.schemes == {"comm", "connection", "ctxt", "meter"}
    assert catalogue.get("Meter") is catalogue.get(ROOT + "Meter")
    assert catalogue.get(catalogue.get("Meter").children["actions"]).name == "Action"
    assert len(catalogue) == len(Catalogue.load()) + 1


def test_folders_below_are_read_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    write(tmp_path / "below", "Meter")
    (tmp_path / "README.md").write_text("no schema")
    (tmp_path / ".hidden.json").write_text("no schema")
    assert [schema.name for schema in Catalogue.load(tmp_path)] == ["Meter"]


def test_an_unknown_schema_is_told_with_the_nearest_name() -> None:
    catalogue = Catalogue.load()
    with pytest.raises(UnknownSchema, match=r"no schema 'Contxt': did you mean 'Context'\?") as caught:
        catalogue.get("Contxt")
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, CtxtError)
    assert caught.value.nearest == "Context"
    with pytest.raises(UnknownSchema, match="did you mean 'Context'"):
        catalogue.get("context")
    with pytest.raises(UnknownSchema, match="`ctxt schema ls` lists"):
        catalogue.get("q" * 10_000)


def test_a_name_that_two_schemas_share_asks_for_the_url(tmp_path: Path) -> None:
    write(tmp_path, "Context")
    catalogue = Catalogue.load(data.folder("schemas"), tmp_path)
    with pytest.raises(UnknownSchema, match="names several schemas") as caught:
        catalogue.get("Context")
    assert set(caught.value.candidates) == {ROOT + "Context", OURS + "Context"}
    assert catalogue.get(ROOT + "Context").scheme is None


def test_messages_are_apart_from_the_schemas_of_objects() -> None:
    catalogue = Catalogue.load()
    with pytest.raises(UnknownSchema):
        catalogue.get("read")
    assert catalogue.get(OURS + "messages/read") is catalogue.messages["read"]
    assert catalogue.messages["read"] not in list(catalogue)


def test_members_marked_with_x_time_are_found_where_only_properties_lead_to_them(tmp_path: Path) -> None:
    member = {"x-time": "at", "properties": {"at": {"type": "string"}}}
    write(
        tmp_path,
        "Meter",
        properties={
            "a": {"properties": {"b/c": {"additionalProperties": member}}},
            "d": {"additionalProperties": {"x-time": "time"}},
        },
    )
    assert Catalogue.load(tmp_path).get("Meter").timed == (
        TimedMembers(("a", "b/c"), "at"),
        TimedMembers(("d",), "time"),
    )


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_problems_are_told_not_just_the_first(tmp_path: Path) -> None:
    write(tmp_path, "A", type="objekt", maxProperties=-1)
    write(tmp_path, "B", S_id=None)
    (tmp_path / "C.json").write_text("{")
    write(tmp_path, "D", x_scheme="Ctxt", x_children={"a b": ROOT + "Nothing"})
    problems = refused(tmp_path)
    assert sorted((problem.file.name, problem.place) for problem in problems) == [
        ("A.json", "/maxProperties"),
        ("A.json", "/type"),
        ("B.json", ""),
        ("C.json", ""),
        ("D.json", "/x-children/a b"),
        ("D.json", "/x-children/a b"),
        ("D.json", "/x-scheme"),
    ]
    said = str(CatalogueError(problems))
    assert said.startswith("7 problems in the schemas:\n")
    assert all(problem.remedy in said and str(problem.file) in said for problem in problems)


def test_a_shipped_schema_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path, "Context", S_id=OURS + "Context")
    [problem] = refused(data.folder("schemas"), tmp_path)
    assert problem.file == tmp_path / "Context.json"
    assert problem.place == "/$id"
    assert "none may be replaced" in problem.reason


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "A")
    write(tmp_path, "B", S_id=ROOT + "A")
    [problem] = refused(tmp_path)
    assert problem.file.name == "B.json"
    assert "A.json" in problem.reason


@pytest.mark.parametrize(
    "url",
    [
        "",
        7,
        "Context",
        "https://example.org/Context",
        ROOT,
        ROOT + "A/B",
        ROOT + "A#",
        ROOT + "A\n",
        ROOT.replace("catalogue.example", "Catalogue.Example") + "A",
    ],
)
def test_an_id_that_is_no_catalogue_url_is_refused(tmp_path: Path, url: Any) -> None:
    write(tmp_path, "A", S_id=url)
    assert "/$id" in {problem.place for problem in refused(tmp_path)}


@pytest.mark.parametrize("scheme", ["", "Ctxt", "1a", "a_b", "a:", "a" * 33, None, 1, "a\n"])
def test_a_scheme_outside_the_grammar_is_refused(tmp_path: Path, scheme: Any) -> None:
    path = write(tmp_path, "A")
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), "x-scheme": scheme}))
    assert the_problem(tmp_path)[0] == "/x-scheme"


def test_another_draft_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "A", S_schema="http://json-schema.org/draft-07/schema#")
    assert the_problem(tmp_path)[0] == "/$schema"


@pytest.mark.parametrize("keywords", [{"type": None}, {"type": "array"}, {"type": ["object", "null"]}])
def test_a_schema_whose_data_need_not_be_an_object_is_refused(tmp_path: Path, keywords: dict[str, Any]) -> None:
    write(tmp_path, "A", **keywords)
    assert the_problem(tmp_path)[0] == "/type"


@pytest.mark.parametrize(
    ("properties", "place", "reason"),
    [
        ({"a": {"maxLenght": 3}}, "/properties/a/maxLenght", "'maxLenght' is no keyword of JSON Schema 2020-12"),
        ({"a": {"unevaluatedProperties": False}}, "/properties/a/unevaluatedProperties", "is not taken"),
        ({"a": {"$dynamicRef": "#a"}}, "/properties/a/$dynamicRef", "is not taken"),
        ({"a": {"$anchor": "a"}}, "/properties/a/$anchor", "is not taken"),
        ({"a": {"definitions": {}}}, "/properties/a/definitions", "is not taken"),
        ({"a": {"$id": ROOT + "B"}}, "/properties/a/$id", "belongs at the top"),
        ({"a": {"x-scheme": "b"}}, "/properties/a/x-scheme", "belongs at the top"),
        ({"a": {"multipleOf": 0.1}}, "/properties/a/multipleOf", "multiples of a fraction"),
        ({"a": {"x-time": "time"}}, "/properties/a/x-time", "is not found here"),
        (
            {"a": {"items": {"additionalProperties": {"x-time": "time"}}}},
            "/properties/a/items/additionalProperties/x-time",
            "is not found here",
        ),
        ({"a": {"additionalProperties": {"x-time": 1}}}, "/properties/a/additionalProperties/x-time", "names a member"),
        (
            {"a": {"additionalProperties": {"x-time": "time", "properties": {"at": {}}}}},
            "/properties/a/additionalProperties/x-time",
            "no property 'time'",
        ),
        ({"a": {"pattern": "("}}, "/properties/a/pattern", "leaves a group open"),
        ({"a": {"patternProperties": {"[": {}}}}, "/properties/a/patternProperties/[", "leaves a [ open"),
    ],
)
def test_a_keyword_out_of_place_is_refused(tmp_path: Path, properties: Any, place: str, reason: str) -> None:
    write(tmp_path, "A", properties=properties)
    where, why = the_problem(tmp_path)
    assert where == place
    assert reason in why


@pytest.mark.parametrize(
    "ref",
    [
        "https://example.org/schema.json",
        "file:///etc/passwd",
        "http://127.0.0.1:9/x",
        "B",
        "B.json",
        "#/$defs/b",
        "#b",
        "#/properties/a/examples/0",
        "#/type",
        ROOT + "B",
        ROOT + "A#/$defs/b",
        "//x",
    ],
)
def test_a_reference_that_leads_outside_or_nowhere_is_refused(tmp_path: Path, ref: str) -> None:
    write(tmp_path, "A", properties={"a": {"$ref": ref}})
    where, why = the_problem(tmp_path)
    assert where == "/properties/a/$ref"
    assert "leads outside the catalogue" in why or "leads to no schema" in why


def test_references_inside_the_catalogue_are_followed_by_both_validators(tmp_path: Path) -> None:
    write(
        tmp_path, "A", properties={"a": {"$ref": ROOT + "B#/$defs/x~1y"}, "b": {"$ref": "#"}, "c": {"$ref": ROOT + "B"}}
    )
    write(
        tmp_path,
        "B",
        S_schema=room.DRAFT,
        properties={"n": {"$ref": "#/$defs/x~1y"}},
        S_defs={"x/y": {"pattern": "^a$"}},
    )
    schema = Catalogue.load(tmp_path).get("A")
    assert schema.problems({"a": "a", "b": {"b": {"a": "a"}}, "c": {"n": "a"}}) == []
    for bad, place in (({"a": "b"}, "/a"), ({"b": {"b": {"a": "a\n"}}}, "/b/b/a"), ({"c": {"n": "a\n"}}, "/c/n")):
        assert not schema.is_valid(bad)
        assert [problem.place for problem in schema.problems(bad)] == [place]


@pytest.mark.parametrize(
    "keywords",
    [
        {"S_ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "S_defs": {"a": {"not": {"$ref": "#/$defs/a"}}}},
        {"S_ref": ROOT + "B"},
    ],
)
def test_a_reference_that_turns_in_a_circle_is_refused(tmp_path: Path, keywords: dict[str, Any]) -> None:
    write(tmp_path, "A", **keywords)
    write(tmp_path, "B", anyOf=[{"$ref": ROOT + "A"}])
    assert "refers to itself" in the_problem(tmp_path)[1]


def test_references_that_multiply_are_refused(tmp_path: Path) -> None:
    laughs = {f"l{i}": {"allOf": [{"$ref": f"#/$defs/l{i + 1}"}] * 2} for i in range(12)}
    write(tmp_path, "A", S_defs={**laughs, "l12": {"type": "string"}}, properties={"a": {"$ref": "#/$defs/l0"}})
    assert "checks of one place" in the_problem(tmp_path)[1]


def test_a_child_is_never_a_parent(tmp_path: Path) -> None:
    write(tmp_path, "A", x_children={"bs": ROOT + "B"})
    write(tmp_path, "B", x_children={"cs": ROOT + "C"})
    write(tmp_path, "C")
    assert the_problem(tmp_path)[0] == "/x-children/bs"


@pytest.mark.parametrize("children", [[], "x", {f"c{i}": ROOT + "A" for i in range(33)}])
def test_collections_that_are_no_bounded_object_are_refused(tmp_path: Path, children: Any) -> None:
    write(tmp_path, "A", x_children=children)
    assert the_problem(tmp_path)[0] == "/x-children"


def test_an_example_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "A", properties={"a": {"type": "number"}}, examples=[{"a": 1}, {"a": "hot"}])
    assert the_problem(tmp_path) == ("/examples/1/a", "the example is not valid: 'hot' is not of type 'number'")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is not JSON"),
        (b"[]", "a schema is a JSON object"),
        (b"true", "a schema is a JSON object"),
        (b'{"a": NaN}', "it is not JSON"),
        (b'{"a": "\xff"}', "it is not JSON"),
        (b'{"a": "\\ud800"}', "it is not JSON"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper"),
        (b'{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}", "it is not JSON"),
        (b" " * (room.MAX_FILE_BYTES + 1), "more than 262,144 bytes"),
    ],
)
def test_a_file_that_is_no_bounded_json_object_is_refused(tmp_path: Path, text: bytes, reason: str) -> None:
    (tmp_path / "A.json").write_bytes(text)
    assert reason in the_problem(tmp_path)[1]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    assert [problem.reason for problem in refused(tmp_path)] == [
        "this is not a file",
        "it cannot be read (No such file or directory)",
    ]
    assert "no such folder" in refused(tmp_path / "missing")[0].reason


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_FILES", 3)
    for name in "ABCD":
        write(tmp_path, name)
    assert "more than 3 schema files" in the_problem(tmp_path)[1]


def test_a_problem_list_is_bounded(tmp_path: Path) -> None:
    for i in range(120):
        (tmp_path / f"{i}.json").write_text("")
    assert len(refused(tmp_path)) == room.MAX_PROBLEMS


# ── checking one file ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_good_file_is_checked_beside_the_shipped_schemas(tmp_path: Path) -> None:
    good = write(tmp_path, "A", properties={"t": {"$ref": OURS + "Context#/$defs/time"}})
    assert check_file(good) == []
    assert check_file(data.folder("schemas") / "Context.json") == []


def test_a_bad_files_problems_are_listed_and_no_one_elses(tmp_path: Path) -> None:
    bad = write(tmp_path, "A", S_ref="#/$defs/b")
    other = tmp_path / "others"
    other.mkdir()
    (other / "B.json").write_text("{")
    [problem] = check_file(bad, other)
    assert (problem.file, problem.place) == (bad, "/$ref")
    assert [problem.reason for problem in check_file(tmp_path / "missing.json")] == [
        "it cannot be read (No such file or directory)"
    ]


# ── regular expressions ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)", "(?<=a)b", "(?P<n>a)", "(?<n>a)", "(?i)a", r"(a)\1", r"\bx", r"\s", r"\p{L}", r"\A", r"\Z", r"\z", r"\0",
        r"\ud800", r"\x4", "a{,3}", "a{", "a}", "a]", "[]", "[^]", "[]a]", "[[:alpha:]]", "[a&&b]", "[a--b]", "[a~~b]",
        r"[a-\d]", "[z-a]", "[a", "[a-", "(", ")", "(?:", "*", "a**", "a*+", "a++", "^*", "a{2,1}", "a{1001}", "\\", "a" * 1025,
        r"[\D]",
    ],
)  # fmt: skip
def test_a_regular_expression_that_validators_may_read_differently_is_refused(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "A", properties={"a": {"pattern": pattern}})
    where, why = the_problem(tmp_path)
    assert where == "/properties/a/pattern"
    assert why.startswith("the regular expression ")


PATTERNS = [
    "", "^$", "^a$", "a|b$", "^(a|b)+$", r"^\d{2,}$", r"^\w+$", r"^\D$", r"^\W*$", "^.$", "^[^a]$", r"[\d\w-]", "^[-a]+$",
    "^[a-]+?$", r"^[a\-z]$", r"^[\^\]\\]$", r"\.\*\+\?\(\)\[\]\{\}\|\/\$\^\-", r"^\x41\u00e9$", r"^\t\n\r\f\v$", "^😀$",
    "^[à-ü]+$", "^(?:ab?){0,3}$", "a??b", "^ #$", "^(|a)b$", "é", "^[&~|]$", "^[a-c][^x-z]{3}$", "()", "^a{0}$",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_engines_read_a_regular_expression_alike(tmp_path: Path, pattern: str) -> None:
    write(tmp_path, "A", properties={"a": {"pattern": pattern}})
    schema = Catalogue.load(tmp_path).get("A")
    spelled = re.compile(room._Regex(pattern).python)
    alphabet = sorted(set(pattern) | set("ab\n\r\t 0_٣éÉ😀\u2028\x1c-^]\\A"))

    @given(st.one_of(st.text(alphabet, max_size=6), st.text(max_size=3)))
    @settings(max_examples=60, deadline=None, derandomize=True)
    def alike(text: str) -> None:
        text = text.encode("utf-8", "ignore").decode()
        assert schema.is_valid({"a": text}) is bool(spelled.search(text))
        assert bool(schema.problems({"a": text})) is not bool(spelled.search(text))

    alike()


def test_a_pattern_that_would_backtrack_for_ever_is_judged_in_linear_time(tmp_path: Path) -> None:
    write(tmp_path, "A", properties={"a": {"pattern": "^(a+)+$"}}, patternProperties={"^(b|b)*$": False})
    schema = Catalogue.load(tmp_path).get("A")
    assert [problem.place for problem in schema.problems({"a": "a" * 60_000 + "!"})] == ["/a"]
    assert schema.problems({"b" * 60_000 + "!": 1}) == []


@pytest.mark.parametrize(
    ("pattern", "slow"),
    [
        ("^(a+)+$", True),
        ("(a|a)*", True),
        ("((a?){3}){17}", True),
        ("^(a+b){0,4}$", False),
        ("^[a-z]+$", False),
        ("(ab)*", False),
    ],
)
def test_patterns_that_backtrack_are_known(pattern: str, slow: bool) -> None:
    assert room._Regex(pattern).slow is slow


# ── judging data ─────────────────────────────────────────────────────────────────────────────────────────────────────

SUBTLE: list[dict[str, Any]] = [
    {"type": "integer"}, {"type": "number"}, {"type": ["integer", "boolean"]}, {"enum": [1, "a", [1], {"a": 0}, None]},
    {"enum": [True, False, 0.0]}, {"const": 1}, {"const": [1, True]}, {"uniqueItems": True}, {"multipleOf": 3},
    {"multipleOf": 1}, {"minimum": 1, "maximum": 9007199254740992}, {"exclusiveMinimum": 0.5, "exclusiveMaximum": 2},
    {"minLength": 1, "maxLength": 2}, {"items": {"type": "integer"}, "prefixItems": [{"type": "string"}], "maxItems": 3},
    {"contains": {"const": 1}, "minContains": 0, "maxContains": 2}, {"not": {"type": "string"}},
    {"if": {"type": "string"}, "then": {"minLength": 1}, "else": {"type": ["number", "array", "object"]}},
    {"oneOf": [{"type": "number"}, {"type": "integer"}]}, {"patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
    {"patternProperties": {"b$": True}, "properties": {"a": {}}, "additionalProperties": {"type": "null"}},
    {"propertyNames": {"maxLength": 1}, "minProperties": 1, "maxProperties": 2}, {"dependentRequired": {"a": ["b"]}},
    {"dependentSchemas": {"a": {"required": ["b"]}}}, {"format": "date-time"}, {"contentMediaType": "application/json"},
    {"allOf": [{"type": "object"}, {"required": ["a"]}]}, {"items": False}, {"additionalProperties": {"type": "boolean"}},
]  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-4, 10),
    st.integers(-4, 10).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2**53 + 1, 2.0**53, 2.0**64, 1e308, -0.0, 0.5]),
)
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(st.sampled_from("aé😀\n\u0301"), max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(st.sampled_from([1, 1.0, True, 0, False, "a", [1], [True], {"a": 1}, {"a": True}]), max_size=4),
        st.dictionaries(st.sampled_from(["a", "b", "ab", "a\n", "é"]), inner, max_size=4),
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("part", SUBTLE, ids="+".join)
def test_both_validators_judge_alike(tmp_path: Path, part: dict[str, Any]) -> None:
    write(tmp_path, "A", properties={"x": part})
    schema = Catalogue.load(tmp_path).get("A")

    @given(ANY)
    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    def alike(value: Any) -> None:
        value = orjson.loads(orjson.dumps({"x": value}))
        slow = next(schema._texts.iter_errors(value), None) is None
        assert schema.is_valid(value) is slow
        assert bool(schema.problems(value)) is not slow

    alike()


def test_is_valid_is_the_compiled_function_itself() -> None:
    assert type(Catalogue.load().get("Context").is_valid).__name__ == "builtin_function_or_method"
    assert isinstance(Catalogue.load().get("Context").is_valid.__self__, jsonschema_rs.Draft202012Validator)  # type: ignore[attr-defined]


@pytest.mark.parametrize("depth", [32, 1_000])
def test_deep_data_is_judged_and_told_without_a_crash(tmp_path: Path, depth: int) -> None:
    write(tmp_path, "A", additionalProperties={"$ref": "#"})
    schema = Catalogue.load(tmp_path).get("A")
    assert schema.is_valid(orjson.loads(b'{"a":' * depth + b"{}" + b"}" * depth))
    bad = orjson.loads(b'{"a":' * depth + b"1" + b"}" * depth)
    assert not schema.is_valid(bad)
    [problem] = schema.problems(bad)
    assert len(problem.place) <= room.MAX_TEXT
    assert problem.text


def test_a_disagreement_still_gives_a_problem(tmp_path: Path) -> None:
    write(tmp_path, "A")
    schema = Catalogue.load(tmp_path).get("A")
    schema.is_valid = lambda _data: False
    assert [problem.text for problem in schema.problems({})] == ["the data does not satisfy the schema A"]


def test_texts_and_places_are_short_and_keep_both_ends(tmp_path: Path) -> None:
    write(tmp_path, "A", additionalProperties={"maxLength": 3})
    schema = Catalogue.load(tmp_path).get("A")
    [problem] = schema.problems({"k" * 60_000: "v" * 60_000})
    assert len(problem.text) == room.MAX_TEXT
    assert problem.text.startswith("'vvv")
    assert problem.text.endswith("' is too long")
    assert len(problem.place) == room.MAX_TEXT


def test_problems_are_limited_and_those_nearest_to_the_root_come_first(tmp_path: Path) -> None:
    write(tmp_path, "A", properties={"a": {"additionalProperties": {"type": "number"}}}, required=["b"])
    schema = Catalogue.load(tmp_path).get("A")
    value = {"a": {str(i): "x" for i in range(50)}}
    assert [problem.place for problem in schema.problems(value, limit=3)] == ["", "/a/0", "/a/1"]
    assert len(schema.problems(value)) == 5
    assert len(schema.problems({"a": {str(i): "x" for i in range(5_000)}}, limit=5_000)) == room._MOST_ERRORS


def test_many_equal_items_are_told_in_linear_time(tmp_path: Path) -> None:
    write(tmp_path, "A", properties={"a": {"uniqueItems": True}})
    schema = Catalogue.load(tmp_path).get("A")
    value = {"a": [{"n": i} for i in range(10_000)] + [{"n": 0.0}]}
    assert [problem.place for problem in schema.problems(value)] == ["/a"]


WITHOUT = """
import sys
sys.modules["jsonschema_rs"] = None
from pathlib import Path
from gateway import catalogue, data
assert catalogue._rs is None
mine = Path(sys.argv[1])
loaded = catalogue.Catalogue.load(data.folder("schemas"), mine)
context = loaded.get("Context")
assert context.is_valid({"values": {"x": {"value": 1, "time": "2026-01-01T10:00:00Z"}}})
assert not context.is_valid({"values": {"x": {"value": 1, "time": "2026-01-01T10:00:00Z\\n"}}})
deep = loaded.get("A")
value = 1
for _ in range(900):
    value = {"a": value}
assert not deep.is_valid(value)
[problem] = deep.problems(value)
(mine / "A.json").write_text((mine / "A.json").read_text().replace("^a$", "^(a+)+$"))
[problem] = catalogue.check_file(mine / "A.json")
print(problem)
"""


def test_all_works_without_jsonschema_rs_and_slow_patterns_are_refused_there(tmp_path: Path) -> None:
    write(tmp_path, "A", additionalProperties={"$ref": "#"}, properties={"b": {"pattern": "^a$"}})
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert run.stderr == ""
    assert "without jsonschema-rs it can take for ever" in run.stdout
