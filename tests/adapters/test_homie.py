"""Homie: any order, lost roots, datatypes, removal, actions; a device of a real library over sockets."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from homie_spec.devices import Device
from homie_spec.nodes import Node
from homie_spec.properties import Datatype, Property

from tests.adapters.sockets import adapter, beside, house
from tests.adapters.trial import NOW, Trial, captures

if TYPE_CHECKING:
    from pathlib import Path

CAPTURES = {one.path.stem: one for one in captures("homie")}


def described(**properties: Any) -> Trial:
    """A device of version 5 with one node, `n`."""
    made = Trial("homie")
    made.say("homie/5/d/$state", "init")
    made.say("homie/5/d/$description", {"homie": "5.0", "nodes": {"n": {"properties": properties}}})
    made.say("homie/5/d/$state", "ready")
    return made


def values(made: Trial, device: str = "d") -> dict[str, Any]:
    return {name: reading["value"] for name, reading in made.objects[device]["values"].items()}


def test_attributes_of_version_4_come_in_any_order() -> None:
    capture = CAPTURES["v4-values-first"]
    messages = [each for each in capture.messages if "climate" in each.topic]
    around = [each for each in capture.messages if "climate" not in each.topic]
    for order in itertools.islice(itertools.permutations(messages), 0, 40_320, 997):
        made = Trial("homie")
        made.replay((*around, *order))
        assert made.objects == capture.objects


def test_values_before_the_description_wait() -> None:
    made = Trial("homie")
    made.say("homie/5/d/n/t", "21.5", retain=True)
    assert made.objects == {}
    made.say("homie/5/d/$description", {"nodes": {"n": {"properties": {"t": {"datatype": "float", "unit": "°C"}}}}})
    assert made.objects["d"]["values"]["n.t"] == {"value": 21.5, "unit": "Cel"}


def test_a_lost_root_takes_its_children_with_it() -> None:
    made = Trial("homie")
    made.replay(CAPTURES["v5-bridge-lost"].messages)
    made.say("homie/5/door-1/$state", "ready", retain=True)
    assert made.status["door-1"] == "disconnected"
    made.say("homie/5/meter-1/$state", "disconnected")
    made.say("homie/5/bridge/$state", "ready")
    assert (made.status["bridge"], made.status["door-1"], made.status["meter-1"]) == ("live", "live", "disconnected")


def test_what_a_new_description_lacks_is_taken_away_and_so_is_the_device() -> None:
    made = described(a={"datatype": "integer"}, b={"datatype": "integer"})
    made.say("homie/5/d/n/a", "1")
    made.say("homie/5/d/n/b", "2")
    made.say("homie/5/d/$description", {"nodes": {"n": {"properties": {"b": {"datatype": "integer"}}}}})
    assert values(made) == {"n.b": 2}
    made.say("homie/5/d/$state", b"")
    assert made.objects == {}


@pytest.mark.parametrize(
    ("datatype", "form", "text", "value"),
    [
        ("integer", "", "-7", -7),
        ("float", "", "1e3", 1000.0),
        ("boolean", "", "true", True),
        ("string", "", "a b", "a b"),
        ("string", "", "\0", ""),
        ("enum", "a,b", "b", "b"),
        ("color", "rgb", "rgb,1,2,3", "rgb,1,2,3"),
        ("datetime", "", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("duration", "", "PT5M", "PT5M"),
        ("json", "", "[1,2]", [1, 2]),
    ],
)
def test_datatypes(datatype: str, form: str, text: str, value: Any) -> None:
    made = described(p={"datatype": datatype, "format": form})
    assert made.say("homie/5/d/n/p", text) == "read"
    assert values(made) == {"n.p": value}


@pytest.mark.parametrize(
    ("datatype", "form", "text"),
    [
        ("integer", "", "1.5"),
        ("float", "", "nan"),
        ("boolean", "", "TRUE"),
        ("enum", "a,b", "c"),
        ("color", "rgb", "red"),
        ("datetime", "", "soon"),
        ("json", "", "{"),
    ],
)
def test_what_is_not_of_its_datatype(datatype: str, form: str, text: str) -> None:
    made = described(p={"datatype": datatype, "format": form})
    assert made.say("homie/5/d/n/p", text) == "unreadable"
    assert values(made) == {}


def test_what_is_not_retained_is_an_event() -> None:
    made = described(p={"datatype": "enum", "format": "short,long", "retained": False})
    made.say("homie/5/d/n/p", "short")
    before = len(made.deltas)
    made.say("homie/5/d/n/p", "short", retain=True, now=NOW + 1)
    assert len(made.deltas) == before
    made.say("homie/5/d/n/p", "short", now=NOW + 2)
    assert len(made.deltas) == before + 1


@pytest.mark.parametrize(
    ("said", "value", "sent"),
    [
        ({"datatype": "integer", "format": "0:100", "settable": True}, 40, b"40"),
        ({"datatype": "float", "settable": True}, 1, b"1"),
        ({"datatype": "boolean", "settable": True}, True, b"true"),
        ({"datatype": "string", "settable": True}, "", b"\0"),
        ({"datatype": "color", "format": "rgb", "settable": True}, "rgb,1,2,3", b"rgb,1,2,3"),
        ({"datatype": "integer", "format": "0:100", "settable": True}, 101, None),
        ({"datatype": "integer", "settable": True}, 1.5, None),
        ({"datatype": "boolean", "settable": True}, "true", None),
        ({"datatype": "enum", "format": "a,b", "settable": True}, "c", None),
        ({"datatype": "color", "format": "rgb", "settable": True}, "red", None),
        ({"datatype": "integer"}, 1, None),
    ],
)
def test_what_is_set_is_checked_before(said: dict[str, Any], value: Any, sent: bytes | None) -> None:
    made = described(p=said)
    made.execute("d", "set", **{"n.p": value})
    if sent is None:
        assert made.answers[-1]["code"] == 400
        assert made.sends == []
        return
    assert made.sends == [("homie/5/d/n/p/set", sent, 1, False)]
    made.say("homie/5/d/n/p/$target", sent if sent != b"\0" else b"x")
    assert made.answers[-1]["code"] == 200


@beside
def test_a_device_of_a_real_library_over_sockets(tmp_path: Path, broker: str) -> None:
    state = {"temperature": "21.5", "intensity": "40"}
    nodes = {
        "engine": Node(
            "Engine",
            "v8",
            {"temperature": Property("Temperature", lambda: state["temperature"], Datatype.FLOAT, unit="°C")},
        ),
        "lights": Node(
            "Lights",
            "led",
            {
                "intensity": Property(
                    "Intensity", lambda: state["intensity"], Datatype.INTEGER, set=lambda _: None, settable=True
                )
            },
        ),
    }
    car = Device("super-car", "Super car", nodes)
    with house(tmp_path, broker, adapter("homie")) as home:
        device = home.client()
        device.subscribe("homie/super-car/+/+/set")
        paths = ("engine/temperature", "lights/intensity")
        for message in (*car.messages(), *(car.getter_message(path) for path in paths)):
            device.publish(message.topic, message.payload.encode(), retain=message.retained)
        assert home.value("super-car", "engine.temperature", 21.5)["unit"] == "Cel"
        home.value("super-car", "lights.intensity", 40)
        assert home.object("super-car")["name"] == "Super car"
        asked = home.execute("super-car", "set", **{"lights.intensity": 80})
        topic, payload, _, _ = device.wait(lambda: device.heard)[0]
        assert (topic, payload) == ("homie/super-car/lights/intensity/set", b"80")
        state["intensity"] = payload.decode()
        message = car.getter_message("lights/intensity")
        device.publish(message.topic, message.payload.encode(), retain=True)
        answer = home.answer(asked)
        assert (answer["code"], json.dumps(answer["body"])) == (200, '{"values": {"lights.intensity": 80}}')
