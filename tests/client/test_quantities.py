"""Readings are built as the schema takes them, and SenML packs become the same readings and packs again."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from gateway.client.quantities import (
    MAX_PACK_BYTES,
    MAX_QUANTITIES,
    MAX_RECORDS,
    QuantityError,
    Reading,
    from_senml,
    quantities,
    quantity,
    reading,
    to_senml,
)
from gateway.errors import CtxtError
from gateway.patch import same

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "Context.json").read_bytes())
VALIDATOR = Draft202012Validator(SCHEMA)
NOW = datetime(2026, 1, 1, 10, tzinfo=UTC)
NOW_TEXT = "2026-01-01T10:00:00.000Z"
MOTE = "urn:dev:ow:10e2073a01080063"


def valid(data: Any) -> Any:
    """The data, which satisfies the schema and passes JSON unchanged."""
    VALIDATOR.validate(data)
    assert same(orjson.loads(orjson.dumps(data)), data)
    return data


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def refusal(act: Callable[[], Any]) -> str:
    with pytest.raises(QuantityError) as caught:
        act()
    assert len(str(caught.value)) < 250
    assert re.search(r": [a-z]", str(caught.value)), "a sentence names the thing and the remedy"
    return str(caught.value)


# ---- one reading -----------------------------------------------------------------------------------------------------


def test_a_quantity_is_context_data_with_one_reading() -> None:
    assert valid(quantity("temperature", 21.5, "Cel", time=NOW)) == {
        "values": {"temperature": {"value": 21.5, "unit": "Cel", "time": NOW_TEXT}}
    }
    assert valid(quantity("occupied", False)) == {"values": {"occupied": {"value": False}}}


def test_a_reading_may_stand_for_a_span_and_expire() -> None:
    data = valid(quantity("power", 412.7, "W", type="average", start=0, end="1970-01-01T01:15:00+01:00", expires=1.5))
    assert data["values"]["power"] == {
        "value": 412.7,
        "unit": "W",
        "type": "average",
        "startTime": "1970-01-01T00:00:00.000Z",
        "endTime": "1970-01-01T00:15:00.000Z",
        "expires": "1970-01-01T00:00:01.500Z",
    }
    assert "ends before" in refusal(lambda: quantity("power", 1, start=2, end=1))


@pytest.mark.parametrize(
    "time",
    [
        NOW,
        NOW.astimezone(timezone(timedelta(hours=-5, minutes=-30))),
        1767261600,
        1767261600.0,
        "2026-01-01T10:00:00Z",
        "2026-01-01t10:00:00.000000001z",
        "2026-01-01T11:00:00.0+01:00",
    ],
)
def test_a_time_has_three_forms_and_one_spelling(time: Any) -> None:
    assert quantity("x", 1, time=time)["values"]["x"]["time"] == NOW_TEXT


@pytest.mark.parametrize(
    "time",
    [
        float("nan"),
        float("inf"),
        -0.001,
        10**400,
        1767261600000,
        datetime(3000, 1, 1, tzinfo=UTC),
        datetime(2999, 12, 31, 23, 59, 59, 999_900, tzinfo=UTC),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=14))),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))),
        "1969-12-31T23:59:59Z",
        "2026-01-01T00:00:00",
        "2026-02-29T00:00:00Z",
        "2026-01-01T24:00:00Z",
        "2016-12-31T23:59:60Z",
        "2026-01-01 00:00:00Z",
        "20260101T000000Z",
        "2026-W01-1T00:00:00Z",
        "2026-01-01T00:00:00,5Z",
        "2026-01-01T00:00:00+01",
        "\uff12026-01-01T00:00:00Z",
        "2026-01-01T00:00:00Z\n",
        "yesterday",
        "",
        True,
        [],
    ],
    ids=repr,
)
def test_a_time_that_cannot_be_written_is_refused(time: Any) -> None:
    assert refusal(lambda: quantity("x", 1, time=time)).startswith("x: the time ")


def test_a_datetime_needs_its_time_zone() -> None:
    naive = NOW.replace(tzinfo=None)
    assert refusal(lambda: quantity("x", 1, expires=naive)) == (
        "x: the expiry is a datetime without a time zone: make it with datetime.now(UTC)"
    )


def test_values_are_numbers_texts_truth_values_and_lists_of_them() -> None:
    values: list[Any] = [0, -1.5, 2**64 - 1, -(2**63), "", "x" * 4096, True, [], [1, "a", False], [0] * 256]
    for each in values:
        assert same(valid(quantity("x", each))["values"]["x"]["value"], each)
    position = (38.7369, -9.1427)
    assert valid(quantity("position", position))["values"]["position"]["value"] == list(position)


def test_a_value_is_written_as_the_plain_type_that_json_has() -> None:
    class Celsius(float):
        pass

    class Name(str):
        __slots__ = ()

    assert type(quantity("x", Celsius(1))["values"]["x"]["value"]) is float
    assert type(quantity("x", Name("a"))["values"]["x"]["value"]) is str


def test_a_list_that_is_given_is_not_kept() -> None:
    given_list: list[Any] = [1]
    data = quantity("x", given_list)
    given_list.append(None)
    assert data == {"values": {"x": {"value": [1]}}}


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (float("nan"), "nan is no number in JSON"),
        (float("-inf"), "-inf is no number in JSON"),
        ([1, float("nan")], "nan is no number in JSON"),
        (2**64, "64 bits"),
        (-(2**63) - 1, "64 bits"),
        (None, "null"),
        ({}, "an object"),
        ([None], "null"),
        ([[1]], "a list in a list"),
        ([0] * 257, "257 elements"),
        ("x" * 4097, "4,097 characters"),
        (["x" * 4097], "4,097 characters"),
        ("\ud800", "surrogate"),
        (b"x", "bytes"),
        (1j, "complex"),
    ],
    ids=lambda case: repr(case)[:20],
)
def test_a_value_that_the_schema_does_not_take_is_refused(value: Any, word: str) -> None:
    text = refusal(lambda: quantity("power", value))
    assert text.startswith("power: ")
    assert word in text


@pytest.mark.parametrize("unit", ["", "x" * 33, "\udfff", 1, b"W"])
def test_a_unit_that_the_schema_does_not_take_is_refused(unit: Any) -> None:
    assert refusal(lambda: quantity("x", 1, unit)).startswith("x: the unit ")
    assert refusal(lambda: quantities(unit=unit)).startswith("the unit ")


def test_any_code_is_taken_as_a_unit() -> None:
    for unit in ("Cel", "%RH", "lx", "W", "%EL", "/", "kW/h", "m/s2", "[degF]", "°", "x" * 32):
        assert valid(quantity("x", 1, unit))["values"]["x"]["unit"] == unit


@pytest.mark.parametrize("name", ["", "x" * 129, "\ud800", None, 1])
def test_a_name_that_the_schema_does_not_take_is_refused(name: Any) -> None:
    assert refusal(lambda: quantity(name, 1)).startswith("the name of a quantity ")


def test_a_type_has_1_to_64_characters() -> None:
    assert valid(quantity("x", 1, type="y" * 64))
    for wrong in ("", "y" * 65):
        assert refusal(lambda wrong=wrong: quantity("x", 1, type=wrong)).startswith("x: the type ")  # type: ignore[misc]


def test_an_error_is_of_the_tree_and_a_value_error_and_keeps_its_facts() -> None:
    assert issubclass(QuantityError, CtxtError)
    assert issubclass(QuantityError, ValueError)
    with pytest.raises(QuantityError, match="leave the reading out") as caught:
        quantity("power" * 20, float("nan"))
    error = caught.value
    assert error.place.endswith("…")
    assert str(error) == f"{error.place}: {error.reason}"


# ---- several ---------------------------------------------------------------------------------------------------------


def test_several_quantities_make_one_object() -> None:
    data = valid(
        quantities(
            quantity("power", 412.7), quantity("limit", 2300, type="setpoint"), unit="W", id="0x00158d0001a2b3c4"
        )
    )
    assert data == {
        "id": "0x00158d0001a2b3c4",
        "unit": "W",
        "values": {"power": {"value": 412.7}, "limit": {"value": 2300, "type": "setpoint"}},
    }
    assert valid(quantities()) == {"values": {}}


def test_a_part_brings_its_unit_and_its_id() -> None:
    part = quantities(quantity("power", 1), quantity("voltage", 230, "V"), unit="W", id="a")
    assert valid(quantities(part, quantity("temperature", 20), unit="Cel")) == {
        "id": "a",
        "unit": "Cel",
        "values": {
            "power": {"value": 1, "unit": "W"},
            "voltage": {"value": 230, "unit": "V"},
            "temperature": {"value": 20},
        },
    }
    other = quantities(id="b")
    assert "ids 'a' and 'b'" in refusal(lambda: quantities(part, other))
    assert quantities(part, other, id="c")["id"] == "c"
    assert quantities(part, quantities(id="a"))["id"] == "a"


def test_a_quantity_that_is_there_twice_is_refused() -> None:
    text = refusal(lambda: quantities(quantity("power", 1), quantity("power", 1)))
    assert text == "power: two parts have this quantity: give one of them another name"


def test_one_object_holds_256_readings() -> None:
    parts = [quantity(f"q{i}", i) for i in range(MAX_QUANTITIES + 1)]
    assert valid(quantities(*parts[:-1]))
    assert "257 readings" in refusal(lambda: quantities(*parts))


@pytest.mark.parametrize(
    "part",
    [
        None,
        [],
        {},
        {"values": []},
        {"values": {"x": 1}},
        {"values": {"x": {}}},
        {"values": {"x": {"value": None}}},
        {"values": {"x": {"value": 1, "colour": "red"}}},
        {"values": {"": {"value": 1}}},
        {"values": {1: {"value": 1}}},
        {"values": {"x": {"value": 1, "time": "yesterday"}}},
        {"values": {}, "name": "x"},
        {"values": {}, "id": ""},
        {"values": {}, "id": "x" * 257},
    ],
    ids=repr,
)
def test_a_part_that_is_no_context_data_is_refused(part: Any) -> None:
    refusal(lambda: quantities(part))


def test_the_examples_of_the_schema_are_built_and_read() -> None:
    for example in SCHEMA["examples"]:
        built = valid(quantities(example))
        assert built["values"].keys() == example["values"].keys()
        for name in example["values"]:
            assert reading(built, name) == reading(example, name)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_reading_has_the_unit_of_the_object_where_it_names_none() -> None:
    data = quantities(quantity("power", 1, time=NOW, expires=NOW), quantity("voltage", 230, "V"), unit="W")
    assert reading(data, "power") == Reading(1, "W", NOW, expires=NOW)
    assert reading(data, "voltage") == Reading(230, "V")
    assert reading(data, "current") is None
    assert reading({"values": {"x": {"value": 1, "more": 2}}, "more": 3}, "x") == Reading(1)


def test_a_reading_has_its_times_in_utc() -> None:
    found = reading(SCHEMA["examples"][3], "position")
    assert found == Reading([38.7369, -9.1427, 12.0], "deg", at("2026-03-29T00:30:00.5+00:00"))
    assert found is not None
    assert found.time is not None
    assert found.time.tzinfo is UTC


def test_what_is_no_context_data_cannot_be_read() -> None:
    for data in ({}, {"values": 1}, {"values": {"x": 1}}, {"values": {"x": {"value": 1, "time": 1}}, "unit": 5}):
        refusal(lambda data=data: reading(data, "x"))  # type: ignore[misc]


# ---- SenML: examples of RFC 8428, section 5, and of section 3 --------------------------------------------------------


def read(pack: Any, now: Any = NOW) -> dict[str, dict[str, Any]]:
    """A pack as objects and as JSON, which are the same."""
    found = from_senml(pack, now=now)
    for data in found.values():
        valid(data)
    text = json.dumps(pack)
    assert same(from_senml(text, now=now), found)
    assert same(from_senml(bytearray(text, "utf-8"), now=now), found)
    return found


def value(found: dict[str, dict[str, Any]], device: str, name: str) -> Any:
    return found[device]["values"][name]


def test_5_1_1_a_single_data_point() -> None:
    assert read([{"n": MOTE, "u": "Cel", "v": 23.1}]) == {
        "urn:dev:ow": {"values": {"10e2073a01080063": {"value": 23.1, "unit": "Cel", "time": NOW_TEXT}}}
    }


def test_5_1_2_multiple_data_points() -> None:
    pack = [{"bn": MOTE + ":", "n": "voltage", "u": "V", "v": 120.1}, {"n": "current", "u": "A", "v": 1.2}]
    assert read(pack) == {
        MOTE: {
            "values": {
                "voltage": {"value": 120.1, "unit": "V", "time": NOW_TEXT},
                "current": {"value": 1.2, "unit": "A", "time": NOW_TEXT},
            }
        }
    }


def test_5_1_2_the_latest_of_a_series_with_base_time_unit_and_version() -> None:
    pack = [
        {
            "bn": "urn:dev:ow:10e2073a0108006:",
            "bt": 1.276020076001e09,
            "bu": "A",
            "bver": 5,
            "n": "voltage",
            "u": "V",
            "v": 120.1,
        },
        {"n": "current", "t": -5, "v": 1.2},
        {"n": "current", "t": -4, "v": 1.3},
        {"n": "current", "t": -3, "v": 1.4},
        {"n": "current", "t": -2, "v": 1.5},
        {"n": "current", "t": -1, "v": 1.6},
        {"n": "current", "v": 1.7},
    ]
    time = "2010-06-08T18:01:16.001Z"
    assert read(pack) == {
        "urn:dev:ow:10e2073a0108006": {
            "values": {
                "voltage": {"value": 120.1, "unit": "V", "time": time},
                "current": {"value": 1.7, "unit": "A", "time": time},
            }
        }
    }
    assert value(read([pack[0], *pack[:0:-1]]), "urn:dev:ow:10e2073a0108006", "current")["value"] == 1.7


def test_5_1_2_a_series_of_the_base_name_alone() -> None:
    pack: list[dict[str, Any]] = [{"bn": MOTE, "bt": 1.320067464e09, "bu": "%RH", "v": 21.2}]
    pack += [{"t": t, "v": v} for t, v in ((10, 21.3), (20, 21.4), (90, 21.5), (91, 21.5), (92, 21.6))]
    assert value(read(pack), "urn:dev:ow", "10e2073a01080063") == {
        "value": 21.6,
        "unit": "%RH",
        "time": "2011-10-31T13:25:56.000Z",
    }


def test_5_1_3_of_several_units_under_one_name_the_latest_remains() -> None:
    pack = [
        {"bn": MOTE, "bt": 1.320067464e09, "bu": "%RH", "v": 20},
        {"u": "lon", "v": 24.30621},
        {"u": "lat", "v": 60.07965},
        {"u": "%EL", "t": 150, "v": 98},
        {"t": 180, "v": 21.2},
        {"u": "lon", "t": 180, "v": 24.30628},
        {"u": "lat", "t": 180, "v": 60.07967},
    ]
    assert value(read(pack), "urn:dev:ow", "10e2073a01080063") == {
        "value": 60.07967,
        "unit": "lat",
        "time": "2011-10-31T13:27:24.000Z",
    }


def test_5_1_4_multiple_data_types() -> None:
    pack = [
        {"bn": MOTE + ":", "n": "temp", "u": "Cel", "v": 23.1},
        {"n": "label", "vs": "Machine Room"},
        {"n": "open", "vb": False},
        {"n": "nfc-reader", "vd": "aGkgCg"},
    ]
    assert read(pack) == {
        MOTE: {
            "values": {
                "temp": {"value": 23.1, "unit": "Cel", "time": NOW_TEXT},
                "label": {"value": "Machine Room", "time": NOW_TEXT},
                "open": {"value": False, "time": NOW_TEXT},
                "nfc-reader": {"value": "aGkgCg", "type": "data", "time": NOW_TEXT},
            }
        }
    }


def test_5_1_5_a_collection_of_resources() -> None:
    pack = [
        {"bn": "2001:db8::2/", "bt": 1.320078429e09, "n": "temperature", "u": "Cel", "v": 25.2},
        {"n": "humidity", "u": "%RH", "v": 30},
        {"bn": "2001:db8::1/", "n": "temperature", "u": "Cel", "v": 12.3},
        {"n": "humidity", "u": "%RH", "v": 67},
    ]
    time = "2011-10-31T16:27:09.000Z"
    assert read(pack) == {
        f"2001:db8::{host}": {
            "values": {
                "temperature": {"value": temperature, "unit": "Cel", "time": time},
                "humidity": {"value": humidity, "unit": "%RH", "time": time},
            }
        }
        for host, temperature, humidity in ((2, 25.2, 30), (1, 12.3, 67))
    }


def test_5_1_6_setting_an_actuator() -> None:
    pack = [
        {"bn": MOTE + ":"},
        {"n": "temp", "u": "Cel", "v": 23.1},
        {"n": "heat", "u": "/", "v": 1},
        {"n": "fan", "u": "/", "v": 0},
    ]
    assert {name: raw["value"] for name, raw in read(pack)[MOTE]["values"].items()} == {
        "temp": 23.1,
        "heat": 1,
        "fan": 0,
    }


def test_5_1_6_dimming_in_100_milliseconds() -> None:
    pack = [
        {"bt": 1.320078429e09, "bu": "/", "n": "2001:db8::3", "v": 0.5},
        {"n": "2001:db8::4", "v": 0.5},
        {"n": "2001:db8::3", "t": 0.1, "v": 0},
        {"n": "2001:db8::4", "t": 0.1, "v": 0},
    ]
    expected = {"value": 0, "unit": "/", "time": "2011-10-31T16:27:09.100Z"}
    assert read(pack) == {"2001:db8:": {"values": {"3": expected, "4": expected}}}


def test_3_a_batch_under_one_base_name() -> None:
    pack = [{"bn": MOTE, "u": "Cel", "t": 1.276020076e09, "v": 23.5}, {"u": "Cel", "t": 1.276020091e09, "v": 23.6}]
    assert value(read(pack), "urn:dev:ow", "10e2073a01080063")["value"] == 23.6


# ---- SenML: rules ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "quantity_name"),
    [
        ("temp", "", "temp"),
        ("a:temp", "a", "temp"),
        ("a/temp", "a", "temp"),
        ("a/b:temp", "a/b", "temp"),
        ("a:b/te.m-p_1", "a:b", "te.m-p_1"),
        ("2001:db8::2", "2001:db8:", "2"),
    ],
)
def test_a_name_is_split_at_its_last_separator(name: str, device: str, quantity_name: str) -> None:
    for i in range(len(name) + 1):
        assert list(read([{"bn": name[:i], "n": name[i:], "v": 1}])[device]["values"]) == [quantity_name]


@pytest.mark.parametrize(
    ("fields", "time"),
    [
        ({}, NOW_TEXT),
        ({"t": 0}, NOW_TEXT),
        ({"t": -60.5}, "2026-01-01T09:58:59.500Z"),
        ({"bt": -60, "t": 1}, "2026-01-01T09:59:01.000Z"),
        ({"t": 5}, "2026-01-01T10:00:05.000Z"),
        ({"t": 2**28 - 1}, "2034-07-05T07:24:15.000Z"),
        ({"t": 2**28}, "1978-07-04T21:24:16.000Z"),
        ({"bt": 2**28 - 1, "t": 1}, "1978-07-04T21:24:16.000Z"),
    ],
)
def test_a_time_below_2_to_28_is_counted_from_now(fields: dict[str, Any], time: str) -> None:
    assert value(read([{"n": "x", "v": 1, **fields}]), "", "x")["time"] == time
    assert value(read([{"n": "x", "v": 1, **fields}], NOW_TEXT), "", "x")["time"] == time


@pytest.mark.parametrize("t", [1e300, -1e300, -1.8e9, 1.7e12])
def test_a_time_that_no_calendar_has_is_refused(t: float) -> None:
    assert refusal(lambda: from_senml([{"n": "x", "v": 1}, {"n": "x", "v": 1, "t": t}], now=NOW)).startswith(
        "record 2: the time "
    )


def test_now_is_a_time_too() -> None:
    assert refusal(lambda: from_senml([{"n": "x", "v": 1}], now=NOW.replace(tzinfo=None))).startswith("now: ")


def test_bases_hold_until_the_next_of_their_kind() -> None:
    found = read(
        [
            {"bn": "a:", "bu": "Cel", "bv": 20, "n": "x", "v": 1.5},
            {"n": "y", "v": -1},
            {"bv": 0, "bu": "W", "n": "z", "v": 3},
            {"bn": "b:", "n": "x", "v": 4, "u": "V"},
        ]
    )
    assert {name: (raw["value"], raw["unit"]) for name, raw in found["a"]["values"].items()} == {
        "x": (21.5, "Cel"),
        "y": (19, "Cel"),
        "z": (3, "W"),
    }
    assert value(found, "b", "x") == {"value": 4, "unit": "V", "time": NOW_TEXT}


def test_a_base_value_adds_to_numbers_only_and_stands_for_what_is_not_there() -> None:
    found = read([{"bv": 5}, {"n": "x"}, {"n": "s", "vs": "a"}, {"n": "b", "vb": True}, {"n": "v", "v": 2**53}])
    assert {name: raw["value"] for name, raw in found[""]["values"].items()} == {
        "x": 5,
        "s": "a",
        "b": True,
        "v": 2**53 + 5,
    }


def test_base_fields_alone_are_no_reading() -> None:
    assert read([{"bn": "a:", "bt": 0, "bu": "W", "bv": 1, "bs": 1, "bver": 10}]) == {}


def test_a_sum_is_a_reading_of_its_own() -> None:
    found = read([{"bn": "meter:", "bs": 100, "n": "power", "u": "W", "v": 5, "s": 20}, {"n": "water", "s": 1}])
    assert found["meter"]["values"] == {
        "power": {"value": 5, "unit": "W", "time": NOW_TEXT},
        "power-sum": {"value": 120, "unit": "W.s", "type": "sum", "time": NOW_TEXT},
        "water-sum": {"value": 101, "type": "sum", "time": NOW_TEXT},
    }
    found = read([{"bs": 7, "n": "x", "v": 1}, {"n": "y", "vs": "text"}, {"n": "z"}])
    assert list(found[""]["values"]) == ["x", "x-sum", "y", "z-sum"]


def test_an_update_time_becomes_the_expiry() -> None:
    found = value(read([{"n": "x", "v": 1, "t": -10, "ut": 60.5}]), "", "x")
    assert (found["time"], found["expires"]) == ("2026-01-01T09:59:50.000Z", "2026-01-01T10:00:50.500Z")


def test_of_one_time_the_last_record_remains() -> None:
    found = read([{"n": "x", "v": 1, "t": 0}, {"n": "x", "v": 2}, {"n": "x", "v": 3, "t": -1}])
    assert value(found, "", "x")["value"] == 2


def test_unknown_fields_are_passed_over() -> None:
    pack = [{"n": "x", "v": 1, "l": "[]", "bfoo": {}, "ct": "60"}]
    assert value(read(pack), "", "x") == {"value": 1, "time": NOW_TEXT}


def test_versions_up_to_10_and_26_are_understood() -> None:
    for version in (1, 5, 10, 10.0, 26):
        assert read([{"bver": version, "n": "x", "v": 1, "u": "ms"}, {"bver": version, "n": "y", "v": 1}])


@pytest.mark.parametrize(
    ("record", "word"),
    [
        (1, "it is a number"),
        (None, "it is null"),
        ([], "it is a list"),
        ({}, None),
        ({"n": "x"}, "has no value"),
        ({"v": 1}, "no name"),
        ({"n": "x", "v": 1, "vs": "a"}, "two values"),
        ({"n": "x", "vb": True, "vd": "aaaa"}, "two values"),
        ({"n": "x", "v": 1, "price_": 1}, "'price_' must be understood"),
        ({"n": "x", "v": 1, "_": 1}, "must be understood"),
        ({"n": "x", "v": "1"}, "`v` is a text"),
        ({"n": "x", "v": True}, "`v` is a truth value"),
        ({"n": "x", "v": None}, "`v` is null"),
        ({"n": "x", "v": [1]}, "`v` is a list"),
        ({"n": "x", "vs": 1}, "`vs` is a number"),
        ({"n": "x", "vb": 1}, "`vb` is a number"),
        ({"n": "x", "vd": 1}, "`vd` is a number"),
        ({"n": "x", "s": "1"}, "`s` is a text"),
        ({"n": 1, "v": 1}, "`n` is a number"),
        ({"n": "x", "u": 1, "v": 1}, "`u` is a number"),
        ({"n": "x", "v": 1, "t": "2026-01-01T00:00:00Z"}, "`t` is a text"),
        ({"n": "x", "v": 1, "ut": {}}, "`ut` is an object"),
        ({"bn": 1}, "`bn` is a number"),
        ({"bt": "0"}, "`bt` is a text"),
        ({"bu": 1}, "`bu` is a number"),
        ({"bv": "0"}, "`bv` is a text"),
        ({"bs": False}, "`bs` is a truth value"),
        ({"bver": "10"}, "`bver` is a text"),
        ({"bver": 5}, "version is 5 and that of the records before it 10"),
        ({"bver": 11}, "version 11 is not understood"),
        ({"bver": 0}, "no positive whole number"),
        ({"bver": 1.5}, "no positive whole number"),
        ({"n": "x", "v": 1, "ut": -1}, "`ut` is no time"),
        ({"n": "x", "v": 1, "ut": 1e11}, "`ut` is no time"),
        ({"n": "x", "v": 1, "ut": 3.2e10}, "the expiry is not in the years"),
        ({"n": "x", "v": 1, "u": ""}, "the unit is empty"),
        ({"n": "x", "v": 1, "u": "y" * 33}, "33 characters"),
        ({"n": "x", "s": 1, "u": "y" * 31}, "33 characters"),
        ({"n": "x", "vs": "y" * 4097}, "4,097 characters"),
        ({"n": "x", "vd": "aGkgCg=="}, "no base64url"),
        ({"n": "x", "vd": "a+/a"}, "no base64url"),
        ({"n": "x", "vd": "aaaaa"}, "no base64url"),
        ({"n": "x", "vd": "aaaa\n"}, "no base64url"),
        ({"n": "x", "vd": "aa", "s": 1, "v": 1}, "two values"),
        ({"n": "a b", "v": 1}, "no SenML name"),
        ({"n": "-x", "v": 1}, "no SenML name"),
        ({"n": "é", "v": 1}, "no SenML name"),
        ({"n": "x\n", "v": 1}, "no SenML name"),
        ({"n": "a:", "v": 1}, "ends before the quantity"),
        ({"bn": "a/", "v": 1}, "ends before the quantity"),
        ({"n": "x" * 129, "v": 1}, "129 characters"),
        ({"n": "x" * 126, "s": 1}, "130 characters"),
        ({"bn": "x" * 1000 + ":", "n": "y" * 24, "v": 1}, "more than 1,024 characters"),
        ({"bv": 1e308, "n": "x", "v": 1e308}, "inf is no number"),
        ({"bt": 1e308, "n": "x", "v": 1, "t": 1e308}, "the time is not in the years"),
        ({"n": "x", "v": float("nan")}, "no finite number"),
        ({"n": "x", "v": 2**64}, "no finite number"),
        ({"bt": float("inf")}, "no finite number"),
        ({1: 2}, "must be understood"),
    ],
    ids=lambda case: repr(case)[:60],
)
def test_a_malformed_record_is_refused_with_its_place(record: Any, word: str | None) -> None:
    def act() -> Any:
        return from_senml([{"n": "first", "v": 1}, {"n": "second", "v": 1}, record], now=NOW)

    if word is None:
        assert list(act()[""]["values"]) == ["first", "second"]
        return
    text = refusal(act)
    assert text.startswith("record 3: ")
    assert word in text


@pytest.mark.parametrize(
    ("pack", "word"),
    [
        ([], "no records"),
        ("[]", "no records"),
        ({}, "an object"),
        ('{"n":"x","v":1}', "an object"),
        (None, "null"),
        (1, "a number"),
        (b"", "empty"),
        ("", "empty"),
        ("[", "not JSON"),
        (b"\xff", "not JSON"),
        ('["\ud800"]', "not JSON"),
        ('[{"n":"x","v":NaN}]', "not JSON"),
        ("[" * 100 + "]" * 100, "deeper"),
        ("[" * 5000 + "]" * 5000, "deeper"),
        (b" " * (MAX_PACK_BYTES + 1), "bytes"),
        ([{}] * (MAX_RECORDS + 1), "10,001 records"),
    ],
    ids=lambda case: repr(case)[:20],
)
def test_what_is_no_pack_is_refused(pack: Any, word: str) -> None:
    assert word in refusal(lambda: from_senml(pack, now=NOW))


def test_a_pack_has_10_000_records_and_a_device_256_readings() -> None:
    records = [{"n": f"d{i // 250}:q{i % 250}", "v": i} for i in range(MAX_RECORDS)]
    assert len(from_senml(records, now=NOW)) == 40
    many = [{"n": f"d:q{i}", "v": i} for i in range(MAX_QUANTITIES + 1)]
    assert valid(from_senml(many[:-1], now=NOW)["d"])
    assert refusal(lambda: from_senml(many, now=NOW)).startswith("record 257: 'd' has more than 256 readings")


def test_a_long_base_name_costs_nothing() -> None:
    pack = [{"bn": "a" * 1_000_000}] + [{"n": f"x{i}", "v": 1} for i in range(MAX_RECORDS - 1)]
    assert refusal(lambda: from_senml(pack, now=NOW)).startswith("record 2: its name has more than")


# ---- SenML: from Context data ----------------------------------------------------------------------------------------


def test_a_pack_has_base_name_and_base_time_once() -> None:
    data = quantities(
        quantity("current", 1.7, "A", time=1276020076.001),
        quantity("voltage", 120.1, "V", time=1276020071.001, expires=1276020131.501),
        quantity("label", "Machine Room"),
        quantity("open", False, time=1276020071.001),
    )
    assert to_senml(data, base_name=MOTE + ":") == [
        {"bn": MOTE + ":", "n": "label", "vs": "Machine Room"},
        {"bt": 1276020071.001, "n": "voltage", "u": "V", "v": 120.1, "ut": 60.5},
        {"n": "open", "vb": False},
        {"n": "current", "u": "A", "v": 1.7, "t": 5},
    ]
    assert to_senml(quantity("x", 1, time=NOW)) == [{"bt": 1767261600, "n": "x", "v": 1}]
    assert to_senml({"values": {}}, base_name="a:") == []


def test_the_unit_of_the_object_goes_to_each_record() -> None:
    data = quantities(quantity("power", 1), quantity("voltage", 230, "V"), unit="W", id="left out")
    assert to_senml(data) == [{"n": "power", "u": "W", "v": 1}, {"n": "voltage", "u": "V", "v": 230}]


def test_sums_and_data_come_back_as_what_they_were() -> None:
    pack = [{"bn": "a:", "bt": 1e9, "n": "tag", "vd": "aGkgCg"}, {"n": "power", "u": "W", "s": 120}, {"n": "x", "s": 1}]
    assert to_senml(read(pack)["a"], base_name="a:") == pack


LOSSES = [
    (quantity("x", [1, 2]), "no lists", []),
    (quantity("a b", 1), "no name in SenML", []),
    (quantity("a:b", 1), "no name in SenML", []),
    (quantity("a/b", 1), "no name in SenML", []),
    (quantity("é", 1), "no name in SenML", []),
    (quantity("_x", 1), "no name in SenML", []),
    (quantity("x", 1, time=2**28 - 0.001), "before 1978", []),
    (quantity("x", 1, type="setpoint"), "no `type`", [{"n": "x", "v": 1}]),
    (quantity("x-sum", "a", type="sum"), "no `type`", [{"n": "x-sum", "vs": "a"}]),
    (quantity("x-sum", True, type="sum"), "no `type`", [{"n": "x-sum", "vb": True}]),
    (quantity("x-sum", 1, "J", type="sum"), "no `type`", [{"n": "x-sum", "u": "J", "v": 1}]),
    (quantity("x", 1, "W.s", type="sum"), "no `type`", [{"n": "x", "u": "W.s", "v": 1}]),
    (quantity("x", "!", type="data"), "no `type`", [{"n": "x", "vs": "!"}]),
    (quantity("x", 1, type="data"), "no `type`", [{"n": "x", "v": 1}]),
    (quantity("x", 1, start=1), "`startTime`", [{"n": "x", "v": 1}]),
    (quantity("x", 1, end=1), "`endTime`", [{"n": "x", "v": 1}]),
    (quantity("x", 1, expires=NOW), "without a `time`", [{"n": "x", "v": 1}]),
    (quantity("x", 1, time=1e9, expires=1e9 - 1), "before `time`", [{"bt": 1000000000, "n": "x", "v": 1}]),
    ({"values": {"x": {"value": 1, "colour": "red"}}}, "no `colour`", [{"n": "x", "v": 1}]),
]


@pytest.mark.parametrize(("data", "word", "kept"), LOSSES, ids=[f"{word} {i}" for i, (_, word, _) in enumerate(LOSSES)])
def test_what_senml_cannot_hold_is_refused_or_left_out(data: Any, word: str, kept: list[Any]) -> None:
    assert word in refusal(lambda: to_senml(data))
    assert to_senml(data, lossy=True) == kept


def test_with_a_base_name_a_quantity_begins_as_it_likes() -> None:
    assert to_senml(quantity("_x", 1), base_name="a:") == [{"bn": "a:", "n": "_x", "v": 1}]


@pytest.mark.parametrize("base_name", ["a", ":", "/", "a b:", "-a:", "é/", "a:\n", "a" * 1000 + ":"])
def test_a_base_name_is_a_device_and_a_separator(base_name: str) -> None:
    assert refusal(lambda: to_senml(quantity("x", 1), base_name=base_name)).startswith("base_name: ")


def test_what_is_no_context_data_is_refused_also_where_losses_are_not() -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"values": {"x": {"value": None}}},
        {"values": {"x": {"value": {}}}},
        {"values": {"": {}}},
    ]
    for data in wrong:
        refusal(lambda data=data: to_senml(data, lossy=True))  # type: ignore[misc]


# ---- by hypothesis ---------------------------------------------------------------------------------------------------

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = numbers | st.booleans() | st.text(max_size=20)
# Naive on purpose: hypothesis gives them their time zones.
dates = st.datetimes(datetime(1970, 1, 2), datetime(2999, 12, 30), timezones=st.timezones())  # noqa: DTZ001
moments = dates | st.integers(0, 32_503_679_999) | st.floats(0, 32_503_679_999)
maybe = st.none()


@given(
    st.text(min_size=1, max_size=128),
    scalars | st.lists(scalars, max_size=5),
    maybe | st.text(min_size=1, max_size=32),
    maybe | st.text(min_size=1, max_size=64),
    st.tuples(*[maybe | moments] * 4),
)
def test_what_is_built_satisfies_the_schema(name: str, held: Any, unit: Any, kind: Any, times: tuple[Any, ...]) -> None:
    time, start, end, expires = times
    try:
        data = quantity(name, held, unit, time=time, type=kind, start=start, end=end, expires=expires)
    except QuantityError as error:
        assert "ends before it starts" in str(error)  # noqa: PT017 - nothing else is wrong with these
        return
    valid(data)
    assert same(quantities(data), data)
    found = reading(data, name)
    assert found is not None
    assert same(found.value, held)
    assert found.unit == unit


@given(dates)
def test_the_three_forms_of_a_time_mean_the_same_millisecond(moment: datetime) -> None:
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000).astimezone(UTC)
    texts = [
        quantity("x", 1, time=form)["values"]["x"]["time"] for form in (moment, moment.timestamp(), moment.isoformat())
    ]
    assert len(set(texts)) == 1
    assert at(texts[0]) == moment


SENML_TEXT = "abzAZ09-._"
milliseconds = st.integers(2**28 * 1000, 32_503_679_998_999)


@st.composite
def holdable(draw: st.DrawFn) -> tuple[dict[str, Any], str]:
    """Context data that SenML can hold, and a base name for it."""
    base = draw(st.sampled_from(["", "a:", "urn:dev:ow:10e2073a01080063:", "2001:db8::2/"]))
    names = st.text(SENML_TEXT, min_size=1, max_size=12).map(lambda text: text if base else "n" + text)
    parts = []
    for name in draw(st.sets(names, min_size=1, max_size=6)):
        time = draw(maybe | milliseconds)
        rest: dict[str, Any] = {}
        if time is not None:
            rest["time"] = NOW.fromtimestamp(time // 1000, UTC) + timedelta(milliseconds=time % 1000)
            wait = draw(maybe | st.integers(0, min(10**9, 32_503_679_999_000 - time)))
            if wait is not None:
                rest["expires"] = rest["time"] + timedelta(milliseconds=wait)
        unit = draw(maybe | st.sampled_from(["Cel", "%RH", "W", "/", "m/s", "°"]))
        kind = draw(st.sampled_from(["plain", "sum", "data"]))
        if kind == "sum":
            unit = None if unit is None else unit + ".s"
            parts.append(quantity(name + "-sum", draw(numbers), unit, type="sum", **rest))
        elif kind == "data":
            text = draw(st.sampled_from(["", "aa", "aaa", "aGkgCg", "_-_-"]))
            parts.append(quantity(name, text, unit, type="data", **rest))
        else:
            parts.append(quantity(name, draw(scalars), unit, **rest))
    own = draw(maybe | st.sampled_from(["lx", "V.s"]))
    if any(next(iter(part["values"])).endswith("-sum") for part in parts):
        own = None if own is None else "V.s"
    distinct = {next(iter(part["values"])): part for part in parts}
    return quantities(*distinct.values(), unit=own), base


@given(holdable())
def test_what_senml_can_hold_comes_back_the_same(case: tuple[dict[str, Any], str]) -> None:
    data, base = case
    pack = to_senml(data, base_name=base)
    assert sum("bn" in record for record in pack) == bool(base)
    assert sum("bt" in record for record in pack) <= 1
    expected = {}
    for name in data["values"]:
        meant = reading(data, name)
        assert meant is not None
        expected[name] = quantity(
            name, meant.value, meant.unit, time=meant.time or NOW, type=meant.type, expires=meant.expires
        )["values"][name]
    for form in (pack, orjson.dumps(pack), orjson.dumps(pack).decode()):
        found = from_senml(form, now=NOW)
        assert list(found) == [base[:-1]]
        assert same(valid(found[base[:-1]]), {"values": expected})


json_values = st.recursive(
    maybe | scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
labels = st.sampled_from(["bn", "bt", "bu", "bv", "bs", "bver", "n", "u", "v", "vs", "vb", "vd", "s", "t", "ut", "x_"])
senml_values = st.sampled_from([0, 1, 10, -1, 2**28, 1e9, 1e308, True, "a", "a:", "aaaa", "W", None])
packs = st.lists(st.dictionaries(labels, senml_values | scalars, max_size=6), max_size=5)


@given(packs | json_values)
def test_whatever_comes_is_context_data_or_refused(pack: Any) -> None:
    try:
        found = from_senml(pack, now=NOW)
    except QuantityError as error:
        assert str(error)  # noqa: PT017 - it is refused, or it is right
        return
    for data in found.values():
        valid(data)
        for record in to_senml(data, base_name="d:"):
            assert "n" in record


@given(json_values, st.text(max_size=3))
def test_whatever_is_given_as_data_is_taken_or_refused(data: Any, name: str) -> None:
    for act in (
        lambda: valid(quantities(data)),
        lambda: reading(data, name),
        lambda: to_senml(data, lossy=True),
        lambda: valid(quantities({"values": {name: {"value": data}}})),
        lambda: valid(quantities({"values": {name: {"value": 1, "time": data, "unit": data, "type": data}}})),
    ):
        try:
            act()
        except QuantityError as error:
            assert str(error)  # noqa: PT017 - it is refused, or it is right


def test_a_reading_of_a_device_comes_back_under_its_name() -> None:
    data = quantity("temperature", 21.5, "Cel", time=NOW)
    assert from_senml(to_senml(data, base_name=f"{MOTE}/"), now=0) == {MOTE: data}
