"""The shipped schemas: complete, bounded, and judged alike by both validators."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import catalogue as room
from gateway import data
from gateway.catalogue import Catalogue, Schema, TimedMembers

if TYPE_CHECKING:
    from collections.abc import Iterator

CATALOGUE = Catalogue.load()
ALL: list[Schema] = [*CATALOGUE, *CATALOGUE.messages.values()]
ROOT = "hyperty-catalogue://catalogue.ctxt-gateway.org/.well-known/dataschema/"
each_schema = pytest.mark.parametrize("schema", ALL, ids=lambda schema: str(schema.name))


def parts(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every subschema with its JSON pointer."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for key, value in schema.items():
        if key in room._SINGLE:
            yield from parts(value, f"{place}/{key}")
        elif key in room._MAPS:
            for name, each in value.items():
                yield from parts(each, f"{place}/{key}/{name}")
        elif key in room._LISTS:
            for i, each in enumerate(value):
                yield from parts(each, f"{place}/{key}/{i}")


def types(schema: dict[str, Any]) -> list[str]:
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else kinds


def test_the_families_of_the_catalogue_are_shipped() -> None:
    assert [schema.name for schema in CATALOGUE] == [
        "Action",
        "Communication",
        "Connection",
        "Context",
        "Device",
        "Message",
    ]
    assert {schema.name: schema.scheme for schema in CATALOGUE} == {
        "Action": None,
        "Communication": "comm",
        "Connection": "connection",
        "Context": "ctxt",
        "Device": "ctxt",
        "Message": None,
    }
    assert CATALOGUE.schemes == {"comm", "connection", "ctxt"}
    bodies = "create update read delete subscribe unsubscribe accept reject invite delegate execute response discover resume compare"
    assert set(CATALOGUE.messages) == {"request", *bodies.split()}


def test_collections_lead_to_their_childrens_schemas() -> None:
    assert dict(CATALOGUE.get("Communication").children) == {"messages": ROOT + "Message"}
    assert dict(CATALOGUE.get("Context").children) == {"actions": ROOT + "Action"}
    assert not CATALOGUE.get("Device").children


def test_the_values_of_context_carry_their_own_time() -> None:
    assert CATALOGUE.get("Context").timed == (TimedMembers(("values",), "time"),)
    assert [schema.name for schema in ALL if schema.timed] == ["Context"]


@each_schema
def test_the_file_is_named_as_the_schema(schema: Schema) -> None:
    path = data.folder("schemas") / (schema.url.removeprefix(ROOT) + ".json")
    assert orjson.loads(path.read_bytes()) == schema.document


@each_schema
def test_every_schema_has_a_title_a_description_and_two_valid_examples(schema: Schema) -> None:
    document = schema.document
    assert document["title"]
    assert document["description"].endswith(".")
    assert len(document["examples"]) >= 2
    for example in document["examples"]:
        assert schema.problems(example) == []


@each_schema
def test_every_property_has_a_description(schema: Schema) -> None:
    for place, part in parts(schema.document):
        for name, each in part.get("properties", {}).items():
            assert each.get("description") or "$ref" in each, f"{place}/{name}"
        for name, each in part.get("$defs", {}).items():
            assert each["description"], f"{place}/$defs/{name}"


@each_schema
def test_every_string_array_and_object_is_bounded(schema: Schema) -> None:
    seen = 0
    for place, part in parts(schema.document):
        for kind, limit in (("string", "maxLength"), ("array", "maxItems")):
            if kind in types(part):
                assert limit in part, place
                seen += 1
        if "array" in types(part):
            assert "items" in part, place
        if "object" in types(part) and place != "/properties/body":
            rest = part.get("additionalProperties")
            assert rest is False or "maxProperties" in part, place
            assert rest is False or part["propertyNames"]["maxLength"], place
            seen += 1
        if not types(part) and place and not place.rpartition("/")[0].endswith("/oneOf"):
            assert {"$ref", "enum", "maxLength"} & set(part), f"{place} takes anything"
    assert seen


# ── Context, to the letter ───────────────────────────────────────────────────────────────────────────────────────────

READING = {
    "value": 21.5,
    "unit": "Cel",
    "type": "average",
    "time": "2026-01-01T10:00:00.000Z",
    "startTime": "2026-01-01T09:00:00Z",
    "endTime": "2026-01-01T10:00:00Z",
    "expires": "2026-01-02T00:00:00+01:00",
}


def told(schema: str, value: Any) -> list[tuple[str, str]]:
    return [(problem.place, problem.text) for problem in CATALOGUE.get(schema).problems(value)]


def test_a_reading_with_every_member_is_valid() -> None:
    assert told("Context", {"id": "x", "unit": "Cel", "values": {"temperature": READING}}) == []


@pytest.mark.parametrize("value", [0, -1.5, 2**63, "on", "", True, False, [1, 2.5], ["a", True], []])
def test_a_value_is_a_scalar_or_a_list_of_scalars(value: Any) -> None:
    assert told("Context", {"values": {"x": {"value": value}}}) == []


@pytest.mark.parametrize("value", [None, {}, {"a": 1}, [None], [[1]], [{}], "x" * 4097, [0] * 257])
def test_a_value_is_nothing_else(value: Any) -> None:
    place, _ = told("Context", {"values": {"x": {"value": value}}})[0]
    assert place.startswith("/values/x/value")


def test_a_wrong_member_is_told_with_its_place() -> None:
    assert told("Context", {"values": {"x": {"value": 1, "unit": 5}}}) == [
        ("/values/x/unit", "5 is not of type 'string'")
    ]
    assert told("Context", {"values": {"x": {"value": 1, "vlaue": 1}}}) == [
        ("/values/x", "Additional properties are not allowed ('vlaue' was unexpected)")
    ]
    assert told("Context", {"values": {"x": {"unit": "Cel"}}}) == [("/values/x", "'value' is a required property")]
    assert told("Context", {}) == [("", "'values' is a required property")]
    assert told("Context", {"values": {"a/b~c": 1}}) == [("/values/a~1b~0c", "1 is not of type 'object'")]


def test_a_time_that_is_none_is_told_in_words_not_as_a_regular_expression() -> None:
    assert told("Context", {"values": {"x": {"value": 1, "time": "yesterday"}}}) == [
        ("/values/x/time", "'yesterday' is not a 'date-time'")
    ]


def timed(time: Any) -> bool:
    return CATALOGUE.get("Context").is_valid({"values": {"x": {"value": 1, "time": time}}})


@pytest.mark.parametrize(
    "time",
    [
        "2026-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2026-01-01T23:59:60Z",
        "2026-01-01T10:00:00",
        "2026-01-01 10:00:00Z",
        "2026-01-01t10:00:00z",
        "2026-01-01T10:00Z",
        "2026-01-01T10:00:00.Z",
        "2026-01-01T10:00:00.1234567890Z",
        "2026-01-01T10:00:00+0100",
        "2026-01-01T10:00:00+24:00",
        "2026-01-01T10:00:00Z\n",
        "٢٠٢٦-01-01T10:00:00Z",
        "1969-12-31T23:59:59Z",
        "3000-01-01T00:00:00Z",
        "",
        0,
        None,
    ],
)
def test_a_time_that_is_not_rfc_3339_is_refused(time: Any) -> None:
    assert not timed(time)


@given(st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31)), st.integers(0, 1439), st.sampled_from("+-"))  # noqa: DTZ001  # the offset is written by hand
@settings(max_examples=200)
def test_every_instant_of_the_calendar_is_a_time(instant: datetime, minutes: int, sign: str) -> None:
    assert timed(f"{instant.isoformat()}{sign}{minutes // 60:02d}:{minutes % 60:02d}")
    assert timed(instant.isoformat(timespec="milliseconds") + "Z")


@given(
    st.from_regex(re.compile(CATALOGUE.get("Context").document["$defs"]["time"]["pattern"], re.ASCII), fullmatch=True)
)
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_every_time_that_is_taken_can_be_read_as_an_instant(text: str) -> None:
    if timed(text):
        assert datetime.fromisoformat(text).astimezone(UTC).tzinfo is UTC
    else:
        assert text.endswith("\n")  # which `$` lets pass in Python only


# ── the others ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("schema", "value", "place"),
    [
        ("Communication", {"status": "ringing"}, "/status"),
        ("Communication", {"status": "open", "duration": -1}, "/duration"),
        ("Communication", {"status": "open", "resources": ["chat", "chat"]}, "/resources"),
        ("Communication", {"status": "open", "participants": {"ana": {}}}, "/participants/ana"),
        ("Communication", {"status": "open", "startingTime": "now"}, "/startingTime"),
        ("Message", {"type": "chat"}, ""),
        ("Message", {"type": "Chat", "content": ""}, "/type"),
        ("Message", {"type": "chat", "content": "", "mimetype": "plain"}, "/mimetype"),
        ("Connection", {"status": "new", "owner": "a"}, ""),
        ("Connection", {"status": "new", "owner": "a", "peer": "b", "iceCandidates": [{}]}, "/iceCandidates/0"),
        (
            "Connection",
            {"status": "new", "owner": "a", "peer": "b", "connectionDescription": {"type": "x", "sdp": ""}},
            "/connectionDescription/type",
        ),
        ("Device", {"id": "x", "battery": {"level": 101}}, "/battery/level"),
        ("Device", {"id": "x", "location": {"latitude": 1}}, "/location"),
        ("Device", {"id": "x", "connectivity": {"lqi": 1.5}}, "/connectivity/lqi"),
        ("Action", {"params": {}}, ""),
        ("Action", {"method": "on", "params": {"a": {"b": {"c": 1}}}}, "/params/a/b"),
    ],
)
def test_what_a_family_does_not_allow_is_told_with_its_place(schema: str, value: Any, place: str) -> None:
    assert [where for where, _ in told(schema, value)] == [place]


def test_a_read_of_nothing_says_what_it_may_ask_for() -> None:
    [problem] = CATALOGUE.messages["read"].problems({})
    assert problem.text == (
        "'resource' is a required property or 'resources' is a required property or 'prefix' is a required property"
    )


@pytest.mark.parametrize(
    ("kind", "body", "valid"),
    [
        ("request", {"id": "1", "type": "read", "body": {}}, True),
        ("request", {"id": "1", "type": "discover"}, True),
        ("request", {"type": "read", "body": {}}, False),
        ("request", {"id": 1, "type": "read", "body": {}}, False),
        ("request", {"id": "1", "type": "read", "body": []}, False),
        ("request", {"id": "1", "type": "read", "body": {}, "more": 1}, False),
        ("read", {}, False),
        ("read", {"resource": "a://b/c", "prefix": "a://b"}, False),
        ("read", {"resources": ["a://b/c"] * 2}, False),
        ("read", {"resources": [f"a://b/{i}" for i in range(100)]}, True),
        ("read", {"resources": [f"a://b/{i}" for i in range(101)]}, False),
        ("read", {"prefix": "a://b", "since": {"epoch": 1, "version": 1}}, False),
        ("read", {"resource": "a://b/c", "since": {"epoch": 1, "version": 1.5}}, False),
        ("delete", {}, False),
        ("delete", {"resource": "a://b/c", "force": True}, False),
        ("discover", {"status": "live", "mine": True}, True),
        ("discover", {"status": "gone"}, False),
        ("discover", {"reporter": "a b"}, False),
    ],
)
def test_requests_are_checked(kind: str, body: Any, valid: bool) -> None:
    assert CATALOGUE.messages[kind].is_valid(body) is valid


IT = {"resource": "a://b/c"}
BELOW = {"scheme": "a", "authority": "b"}
CHILD = {"parent": "a://b/c", "collection": "messages"}
AT = "2026-01-01T10:00:00Z"
CLIENTS = [f"client-{i}" for i in range(101)]
WORDS = [f"word {i}" for i in range(33)]
WRONG_CLIENTS = ("", "a b", "ana\n", "é", "x" * 65, 1, None)
WRONG_TIMES = ("", "tomorrow", "2026-01-01", "2026-01-01T10:00:00", 1767261600, None)
ANY_JSON: list[Any] = [None, True, 0, -1.5, "", "on", [], [1, {"a": [None]}], {}, {"a": {"b": {"c": [{}]}}}]

TAKEN: dict[str, list[Any]] = {
    "create": [
        IT,
        BELOW,
        CHILD,
        {**IT, "schema": "Context", "name": "x", "value": {"a": {"b": [None]}}, "description": "x"},
        {**BELOW, "observers": CLIENTS[:100], "expires": AT, "public": True},
        {**CHILD, "observers": [], "tags": WORDS[:32], "resources": WORDS[:32]},
        *({**IT, "policy": policy} for policy in ("auto", "ask", "closed")),
    ],
    "update": [
        {**IT, "merge": {}},
        {**IT, "merge": {"a": None}, "version": 0},
        {**IT, "patch": [{"op": "remove", "path": "/a"}] * 1000},
        {**IT, "meta": {"description": None, "tags": None, "resources": None}},
        {**IT, "meta": {"name": "x", "tags": [], "public": False, "policy": "ask"}, "version": 2**53},
    ],
    "subscribe": [IT, {**IT, "schema": "Context", "timeout": 0.5}, {**IT, "timeout": 604_800}],
    "accept": [{"request": "1"}, {"request": "x" * 128, "expires": "2026-01-01T10:00:00.123456789+01:00"}],
    "reject": [{"request": "1"}, {"request": "1", "description": "x" * 1024}],
    "unsubscribe": [IT, {**IT, "client": "x" * 64}],
    "invite": [{**IT, "observers": ["ana"]}, {**IT, "observers": CLIENTS[:100], "expires": AT}],
    "delegate": [{**IT, "to": "ana"}, {**IT, "to": "-_", "timeout": 604_800}],
    "execute": [
        {**IT, "method": "on"},
        {**IT, "method": "x" * 128, "idempotent": False, "timeout": 300},
        *({**IT, "method": "on", "params": value} for value in ANY_JSON),
    ],
    "response": [
        {"id": "1", "code": 200},
        {"id": "x" * 128, "code": 599, "description": "x"},
        *({"id": "1", "code": 200, "body": value} for value in ANY_JSON),
    ],
    "resume": [{}, {"after": "a://b/c"}],
}

REFUSED: dict[str, list[Any]] = {
    "create": [
        {},
        {"name": "x"},
        {**IT, **BELOW},
        {**IT, **CHILD},
        {**BELOW, **CHILD},
        *({**IT, key: value} for key, value in (BELOW | CHILD).items()),
        *({key: value} for key, value in (BELOW | CHILD).items()),
        {**BELOW, "parent": "a://b/c"},
        {"resource": ""},
        {"resource": "x" * 1025},
        {**BELOW, "scheme": "A"},
        {**CHILD, "collection": "a/b"},
        {**IT, "schema": "x" * 513},
        {**IT, "name": "x" * 257},
        {**IT, "description": ""},
        {**IT, "value": []},
        {**IT, "value": "x"},
        {**IT, "value": None},
        {**IT, "observers": CLIENTS},
        {**IT, "observers": ["ana", "ana"]},
        *({**IT, "observers": [client]} for client in WRONG_CLIENTS),
        *({**IT, "expires": time} for time in WRONG_TIMES),
        {**IT, "public": 1},
        {**IT, "policy": "open"},
        *({**IT, key: wrong} for key in ("tags", "resources") for wrong in (WORDS, ["x", "x"], [""], ["x" * 65], None)),
        {**IT, "data": {}},
    ],
    "update": [
        IT,
        {"merge": {}},
        {**IT, "merge": {}, "patch": [{}]},
        {**IT, "merge": {}, "meta": {"name": "x"}},
        {**IT, "merge": [], "version": 1},
        {**IT, "patch": []},
        {**IT, "patch": {}},
        {**IT, "patch": ["x"]},
        {**IT, "patch": [{}] * 1001},
        {**IT, "meta": {}},
        {**IT, "meta": []},
        {**IT, "meta": {"name": None}},
        {**IT, "meta": {"public": None}},
        {**IT, "meta": {"policy": ""}},
        {**IT, "meta": {"reporter": "ana"}},
        *({**IT, "meta": {"tags": tags}} for tags in (WORDS, ["x", "x"], [None], "x")),
        *({**IT, "merge": {}, "version": version} for version in (-1, 1.5, "1", True, None)),
        {**IT, "merge": {}, "force": True},
    ],
    "subscribe": [
        {},
        {"resource": ["a://b/c"]},
        {**IT, "schema": ""},
        *({**IT, "timeout": timeout} for timeout in (0, -1, 604_801, "1", True)),
        {**IT, "client": "ana"},
    ],
    "accept": [
        {},
        *({"request": request} for request in ("", 1, "x" * 129)),
        *({"request": "1", "expires": time} for time in WRONG_TIMES),
        {"request": "1", "description": "x"},
    ],
    "reject": [
        {},
        *({"request": request} for request in ("", None, "x" * 129)),
        *({"request": "1", "description": text} for text in ("", "x" * 1025, 1)),
        {"request": "1", "expires": AT},
    ],
    "unsubscribe": [{}, {"client": "ana"}, *({**IT, "client": client} for client in WRONG_CLIENTS), {**IT, "x": 1}],
    "invite": [
        IT,
        {"observers": ["ana"]},
        *({**IT, "observers": clients} for clients in ([], CLIENTS, ["ana", "ana"], "ana")),
        *({**IT, "observers": [client]} for client in WRONG_CLIENTS),
        *({**IT, "observers": ["ana"], "expires": time} for time in WRONG_TIMES),
        {**IT, "observers": ["ana"], "description": "x"},
    ],
    "delegate": [
        IT,
        {"to": "ana"},
        *({**IT, "to": client} for client in WRONG_CLIENTS),
        *({**IT, "to": "ana", "timeout": timeout} for timeout in (0, 604_801, "1")),
        {**IT, "to": "ana", "expires": AT},
    ],
    "execute": [
        IT,
        {"method": "on"},
        *({**IT, "method": method} for method in ("", 1, "x" * 129)),
        *({**IT, "method": "on", "timeout": timeout} for timeout in (0, -1, 301, None)),
        {**IT, "method": "on", "idempotent": "yes"},
        {**IT, "method": "on", "body": {}},
    ],
    "response": [
        {"id": "1"},
        {"code": 200},
        *({"id": request, "code": 200} for request in ("", 1, "x" * 129)),
        *({"id": "1", "code": code} for code in (199, 600, "200", 200.5, None)),
        *({"id": "1", "code": 200, "description": text} for text in ("", "x" * 1025)),
        {"id": "1", "code": 200, "params": {}},
    ],
    "resume": [*({"after": url} for url in ("", "x" * 1025, 1, None)), {"since": 1}],
}


def shown(value: Any) -> str:
    return str(value) if len(str(value)) <= 60 else f"{str(value)[:60]}…"


def test_the_bodies_that_are_taken_and_refused_are_of_the_same_requests() -> None:
    assert set(TAKEN) == set(REFUSED)
    assert set(CATALOGUE.messages) >= set(TAKEN)


@pytest.mark.parametrize(("kind", "body"), [(kind, body) for kind in TAKEN for body in TAKEN[kind]], ids=shown)
def test_a_body_is_taken(kind: str, body: Any) -> None:
    schema = CATALOGUE.messages[kind]
    assert schema.problems(body) == []
    assert schema._texts.is_valid(body)


@pytest.mark.parametrize(("kind", "body"), [(kind, body) for kind in REFUSED for body in REFUSED[kind]], ids=shown)
def test_a_body_is_refused_with_a_reason(kind: str, body: Any) -> None:
    schema = CATALOGUE.messages[kind]
    assert not schema.is_valid(body)
    assert not schema._texts.is_valid(body)
    assert schema.problems(body)[0].text


# ── both validators ──────────────────────────────────────────────────────────────────────────────────────────────────

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-3, 300),
    st.integers(-3, 300).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([2.0**53, 2**53 + 1, 1e300, -0.0, 65535.0, 1.5, 2.0**64]),
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.sampled_from(
        [
            "",
            "live",
            "open",
            "chat",
            "text/plain\n",
            "2026-01-01T10:00:00Z",
            "2026-01-01T10:00:00Z\n",
            "😀" * 64,
            "x" * 5000,
        ]
    ),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(st.text(max_size=4), st.sampled_from(["value", "time", "values", "unit", "é"])), inner, max_size=4
        ),
    ),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, schema: Schema) -> Any:
    """An example of the schema with up to three places replaced, removed or added to; as orjson would read it."""
    value = copy.deepcopy(draw(st.sampled_from(schema.document["examples"])))
    names = sorted({name for _, part in parts(schema.document) for name in part.get("properties", ())})
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(list(places(value))))
        new = draw(JSON)
        if not path:
            if isinstance(value, dict) and draw(st.booleans()):
                value[draw(st.sampled_from(names))] = new
            else:
                value = new
            continue
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        target = holder[path[-1]]
        how = draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove":
            del holder[path[-1]]
        elif how == "add" and isinstance(target, dict):
            target[draw(st.one_of(st.sampled_from(names), st.text(max_size=200)))] = new
        elif how == "add" and isinstance(target, list):
            target.append(new)
        else:
            holder[path[-1]] = new
    return orjson.loads(orjson.dumps(value))


@each_schema
def test_both_validators_agree(schema: Schema) -> None:
    verdicts = set()

    @given(mutated(schema))
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    def agree(value: Any) -> None:
        slow = next(schema._texts.iter_errors(value), None) is None
        assert schema.is_valid(value) is slow
        assert bool(schema.problems(value)) is not slow
        verdicts.add(slow)

    agree()
    assert verdicts == {True, False}


def test_the_texts_come_in_the_same_order_in_every_process() -> None:
    program = (
        "from gateway.catalogue import Catalogue\n"
        "bad = {f'wrong{i}': {'value': 1, f'more{i}': i} for i in range(100)}\n"
        "print(Catalogue.load().get('Context').problems({'values': bad, **bad}, 10))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1
    assert "place='/values/wrong0'" in said.pop()


def test_the_schema_in_the_documentation_is_one(tmp_path: Path) -> None:
    page = Path(__file__).resolve().parent.parent / "docs" / "schemas.md"
    blocks = re.findall(r"```json\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    [written] = [block for block in blocks if "$id" in block]
    (tmp_path / "Thermometer.json").write_text(written)
    thermometer = Catalogue.load(data.folder("schemas"), tmp_path).get("Thermometer")
    assert thermometer.timed == (TimedMembers(("values",), "time"),)
    [problem] = thermometer.problems({"values": {"temperature": {"value": "hot"}}})
    assert (problem.place, problem.text) == ("/values/temperature/value", "'hot' is not of type 'number'")


def test_the_documentation_names_every_schema_and_limit() -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / "schemas.md").read_text("utf-8")
    for schema in ALL:
        assert f"`{schema.url.removeprefix(ROOT)}`" in page
    for limit in (room.MAX_FILES, room.MAX_FILE_BYTES, room.MAX_DEPTH, room.MAX_COLLECTIONS, room.MAX_PATTERN):
        assert f"| {limit:,}" in page
    for keyword in ("x-time", "x-scheme", "x-children"):
        assert f"**`{keyword}`**" in page
