"""Topics by declaration: what can be said, what is refused at the start and in a message, actions; over sockets too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from adapters.template import TemplateOptions, path_of, walk
from tests.adapters.sockets import DEVICE, adapter, beside, house
from tests.adapters.trial import NOW, Trial

if TYPE_CHECKING:
    from pathlib import Path


def one(topic: dict[str, Any], payload: Any, *, at: str = "a/x") -> Any:
    """What one message makes of the device x, with one pattern a/{id}."""
    made = Trial("template", {"topic": [{"topic": "a/{id}", **topic}]})
    assert made.say(at, payload) == "read", made.notes
    return {name: reading["value"] for name, reading in made.objects["x"]["values"].items()}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", {"a": {"b/c": [1, {"d": 2}]}}),
        ("/a/b~1c/0", 1),
        ("$.a['b/c'][1].d", 2),
        ('$["a"]["b/c"][0]', 1),
    ],
)
def test_paths(path: str, found: Any) -> None:
    assert walk({"a": {"b/c": [1, {"d": 2}]}}, path_of(path)) == found


@pytest.mark.parametrize("path", ["a", "$..a", "$.a[*]", "$.a[?(@.b)]", "$.", "$[-1]", "$['a'"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="is no path"):
        path_of(path)


@pytest.mark.parametrize(
    ("quantity", "payload", "value"),
    [
        ({"from": "/v"}, {"v": 1}, 1),
        ({"from": "/v", "scale": 0.1}, {"v": 213}, 21.3),
        ({"from": "/v", "scale": 0.1, "offset": -10}, {"v": "213"}, 11.3),
        ({"from": "/v", "scale": 2}, {"v": 0}, 0.0),
        ({"from": "/v", "map": {"1": "open", "0": "shut"}}, {"v": 0}, "shut"),
        ({"from": "/v", "map": {"true": 1, "*": 0}}, {"v": True}, 1),
        ({"from": "/v", "map": {"true": 1, "*": 0}}, {"v": "else"}, 0),
        ({"from": "/v", "type": "boolean"}, {"v": "Off"}, False),
        ({"from": "/v", "type": "text"}, {"v": 7}, "7"),
        ({"from": "/v/1"}, {"v": [1, 2]}, 2),
        ({"from": "/v"}, {"v": [1, 2]}, [1, 2]),
        ({"from": "{id}"}, {}, "x"),
    ],
)
def test_quantities(quantity: dict[str, Any], payload: Any, value: Any) -> None:
    found = one({"quantities": {"q": quantity}}, payload)
    assert found == {"q": value}
    assert type(found["q"]) is type(value)


@pytest.mark.parametrize(
    ("topic", "payload", "words"),
    [
        ({"quantities": {"q": {"from": "/v", "type": "number"}}}, {"v": "abc"}, "/v is 'abc', not a number"),
        ({"quantities": {"q": {"from": "/v", "scale": 2}}}, {"v": []}, "/v is no number"),
        ({"quantities": {"q": {"from": "/v", "type": "boolean"}}}, {"v": 7}, "give it a `map`"),
        ({"quantities": {"q": "/v"}}, {"v": {"a": 1}}, "no single value"),
        ({"quantities": {"q": "/v"}, "time": "/t"}, {"v": 1, "t": "yesterday"}, "/t is 'yesterday', no time as iso"),
        ({"quantities": {"q": "/v"}, "device": "{/id}"}, {"v": 1}, "the device's id is not in it"),
        ({"quantities": {"q": "/v"}, "each": "/list"}, {"v": 1}, "no array at /list"),
        ({"format": "text", "alive": {"on": True}}, b"maybe", "is not in `alive`"),
        ({"format": "csv", "quantities": {"q": "a"}}, b"a,b", "has no second line"),
        ({"quantities": {"q": "/v"}}, b"{", "not JSON"),
    ],
)
def test_what_a_message_cannot_be(topic: dict[str, Any], payload: Any, words: str) -> None:
    made = Trial("template", {"topic": [{"topic": "a/{id}", **topic}]})
    assert made.say("a/x", payload) == "unreadable"
    assert words in made.notes[0]
    assert made.objects == {}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"topic": [{"topic": "a/{x}"}]}, "nothing is read of it"),
        ({"topic": [{"topic": "a/b", "everything": True}]}, "say which device it is"),
        ({"topic": [{"topic": "a/{x}/{x}", "everything": True}]}, "has a name twice"),
        ({"topic": [{"topic": "a/+", "everything": True}]}, "a level is a text or {name}"),
        ({"topic": [{"topic": "#", "everything": True}]}, "a level"),
        ({"topic": [{"topic": "a/{x}", "device": "{y}", "everything": True}]}, "the topic has no {y}"),
        ({"topic": [{"topic": "a/{x}", "quantities": {"q": "$..v"}}]}, "is no path"),
        ({"topic": [{"topic": "a/{x}", "format": "text", "quantities": {"q": "/v"}}]}, "a text has no places"),
        ({"topic": [{"topic": "a/{x}", "everything": True, "time_zone": "Mars"}]}, "is no time zone"),
        ({"topic": [{"topic": "a/{x}", "everythin": True}]}, "Extra inputs"),
        ({"command": [{"method": "set", "topic": "a/#"}]}, "a level is a text or {name}"),
        ({"command": [{"method": "set", "topic": "a", "payload": "{v"}]}, "is no JSON"),
        ({"command": [{"method": "s", "topic": "a"}, {"method": "s", "topic": "b"}]}, "is there twice"),
    ],
)
def test_what_settings_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as found:
        TemplateOptions.model_validate(options)
    assert words in str(found.value)


@pytest.mark.parametrize(
    ("form", "zone", "text", "time"),
    [
        ("unix", "UTC", 1766131200, "2025-12-19T08:00:00.000Z"),
        ("unix_ms", "UTC", "1766131200500", "2025-12-19T08:00:00.500Z"),
        ("iso", "Europe/Lisbon", "2026-07-01T10:00:00", "2026-07-01T09:00:00.000Z"),
        ("%d.%m.%Y %H:%M", "Europe/Berlin", "01.07.2026 10:00", "2026-07-01T08:00:00.000Z"),
    ],
)
def test_times(form: str, zone: str, text: Any, time: str) -> None:
    topic = {"topic": "a/{id}", "time": "/t", "time_format": form, "time_zone": zone, "quantities": {"q": "/v"}}
    made = Trial("template", {"topic": [topic]})
    made.say("a/x", {"v": 1, "t": text})
    assert made.objects["x"]["values"]["q"]["time"] == time


def test_null_takes_away_and_what_is_missing_stays() -> None:
    made = Trial("template", {"topic": [{"topic": "a/{id}", "quantities": {"p": "/p", "q": "/q"}}]})
    made.say("a/x", {"p": 1, "q": 2})
    made.say("a/x", {"p": None})
    assert made.objects["x"]["values"] == {"q": {"value": 2}}


def test_events_and_states_that_repeat() -> None:
    topic = {"topic": "a/{id}", "repeats": True, "quantities": {"state": "/s", "pushed": {"from": "/p", "event": True}}}
    made = Trial("template", {"topic": [topic]})
    made.say("a/x", {"s": 1, "p": "short"})
    before = len(made.deltas)
    made.say("a/x", {"s": 1}, now=NOW + 1)
    made.say("a/x", {"s": 1, "p": "short"}, retain=True, now=NOW + 2)
    assert len(made.deltas) == before
    made.say("a/x", {"s": 1, "p": "short"}, now=NOW + 3)
    assert len(made.deltas) == before + 1


def commanded(command: dict[str, Any], **params: Any) -> Trial:
    topics = [{"topic": "a/{id}", "everything": True}]
    made = Trial("template", {"topic": topics, "command": [{"method": "set", "topic": "a/{id}/set", **command}]})
    made.say("a/x", {"led": False})
    made.execute("x", "set", **params)
    return made


def test_actions_send_what_is_declared_and_nothing_else() -> None:
    made = commanded({"payload": '{"led":{led},"by":"ctxt"}', "confirms": ["led"]}, led='"},"evil":"')
    assert made.sends[0].payload == b'{"led":"\\"},\\"evil\\":\\"","by":"ctxt"}'
    made = commanded({"payload": '{"led":{led}}', "confirms": ["led"]}, led=True)
    assert (made.sends[0].topic, made.sends[0].payload, made.answers) == ("a/x/set", b'{"led":true}', [])
    made.say("a/x", {"led": True})
    assert made.answers[0]["code"] == 200
    made = commanded({"format": "text", "payload": "{led}", "map": {"true": "ON"}, "qos": 1, "retain": True}, led=True)
    assert made.sends[0] == ("a/x/set", b"ON", 1, True)
    assert made.answers[0]["code"] == 202
    assert commanded({"payload": "{led}"}).answers[0]["code"] == 400
    assert commanded({"topic": "a/{where}", "payload": "1"}, where="b/#").answers[0]["code"] == 400


@beside
def test_a_device_over_sockets(tmp_path: Path, broker: str) -> None:
    settings = (
        adapter("template")
        + """
[[adapter.options.topic]]
topic = "pump/{id}/state"
everything = true
[[adapter.options.command]]
method = "run"
topic = "pump/{id}/run"
payload = '{"speed":{speed}}'
confirms = ["speed"]
"""
    )
    with house(tmp_path, broker, settings, "eve") as home:
        pump, eve = home.client(DEVICE), home.client("eve")
        pump.subscribe("pump/+/run")
        pump.publish("pump/p1/state", {"speed": 0, "flow": 0})
        assert eve.publish("pump/p1/state", {"speed": 9})[0] == 0x87
        home.value("p1", "speed", 0)
        asked = home.execute("p1", "run", speed=3)
        assert pump.wait(lambda: pump.heard)[0][:2] == ("pump/p1/run", b'{"speed":3}')
        pump.publish("pump/p1/state", {"speed": 3, "flow": 12.5})
        assert home.answer(asked)["body"] == {"values": {"speed": 3}}
