"""Zigbee2MQTT: names, rosters, availability, events, actions; over sockets too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.adapters.sockets import adapter, beside, house
from tests.adapters.trial import NOW, Trial, captures

if TYPE_CHECKING:
    from pathlib import Path

LAMP, DOOR = "0x90fd9ffffe6494fc", "0x00158d0003012f5a"
CAPTURES = {one.path.stem: one for one in captures("zigbee2mqtt")}


def listed(*slugs: str, **names: str) -> list[Any]:
    """bridge/devices with the devices of these captures; `names`: other friendly names."""
    found: list[Any] = []
    for slug in slugs:
        message = next(each for each in CAPTURES[slug].messages if each.topic.endswith("bridge/devices"))
        entries = [entry for entry in json.loads(message.payload) if entry["type"] != "Coordinator"]
        found += [
            {**entry, "friendly_name": names.get(slug.replace("-", "_"), entry["friendly_name"])} for entry in entries
        ]
    return found


def trial(*slugs: str, **names: str) -> Trial:
    made = Trial("zigbee2mqtt")
    made.say("zigbee2mqtt/bridge/devices", listed(*slugs, **names), retain=True)
    return made


def value(made: Trial, device: str, name: str) -> Any:
    return made.objects[device]["values"][name]["value"]


def test_states_before_the_list_wait_for_it() -> None:
    made = Trial("zigbee2mqtt")
    made.say("zigbee2mqtt/hall lamp/availability", "offline", retain=True)
    made.say("zigbee2mqtt/hall lamp", {"state": "OFF"})
    made.say("zigbee2mqtt/hall lamp", {"state": "ON"})
    assert made.objects == {}
    made.say("zigbee2mqtt/bridge/devices", listed("ikea-bulb"), retain=True)
    assert value(made, LAMP, "on") is True
    assert made.status[LAMP] == "disconnected"
    made.say("zigbee2mqtt/nobody", {"state": "ON"})
    assert set(made.objects) == {LAMP, f"{LAMP}/device"}


def test_a_device_is_renamed_and_removed() -> None:
    made = trial("ikea-bulb", "door-lost")
    made.say("zigbee2mqtt/bridge/devices", listed("ikea-bulb", "door-lost", ikea_bulb="upstairs/a/set"))
    assert made.names[LAMP] == "upstairs/a/set"
    made.say("zigbee2mqtt/hall lamp", {"state": "ON"})
    assert made.objects[LAMP]["values"] == {}
    made.say("zigbee2mqtt/upstairs/a/set", {"state": "ON"})
    assert value(made, LAMP, "on") is True
    made.say("zigbee2mqtt/bridge/devices", listed("door-lost"))
    assert set(made.objects) == {DOOR, f"{DOOR}/device"}


def test_the_same_list_again_changes_nothing() -> None:
    made = trial("ikea-bulb", "door-lost")
    before = len(made.deltas)
    made.say("zigbee2mqtt/bridge/devices", listed("ikea-bulb", "door-lost"), retain=True)
    assert len(made.deltas) == before


def test_the_bridge_takes_all_with_it() -> None:
    made = trial("ikea-bulb", "door-lost")
    made.say("zigbee2mqtt/garage/door/availability", {"state": "online"})
    made.say("zigbee2mqtt/bridge/state", "offline")
    assert set(made.status.values()) == {"disconnected"}
    made.say("zigbee2mqtt/bridge/state", {"state": "online"})
    # Of the door Zigbee2MQTT says itself when it is back.
    assert (made.status[LAMP], made.status[DOOR]) == ("live", "disconnected")
    made.say("zigbee2mqtt/garage/door", {"contact": True})
    assert made.status[DOOR] == "disconnected"
    made.say("zigbee2mqtt/garage/door/availability", "online")
    assert made.status[DOOR] == "live"


def test_the_same_action_twice_is_two_changes() -> None:
    made = trial("button")
    button = CAPTURES["button"].id
    made.say("zigbee2mqtt/sofa button", {"action": "on"})
    count = len(made.deltas)
    made.say("zigbee2mqtt/sofa button", {"action": ""})
    made.say("zigbee2mqtt/sofa button", {"action": None})
    made.say("zigbee2mqtt/sofa button", {"action": "off"}, retain=True)
    assert len(made.deltas) == count
    made.say("zigbee2mqtt/sofa button", {"action": "on"}, now=NOW + 5)
    assert len(made.deltas) == count + 1
    assert value(made, button, "action") == "on"


def test_what_is_null_is_taken_away() -> None:
    made = trial("hue-color")
    desk = CAPTURES["hue-color"].id
    made.say("zigbee2mqtt/desk", {"color_temp": 300, "color": {"x": 0.1, "y": 0.2}})
    assert value(made, desk, "color.x") == 0.1
    made.say("zigbee2mqtt/desk", {"color_temp": None})
    assert "color_temp" not in made.objects[desk]["values"]


def test_attributes_may_have_topics_of_their_own() -> None:
    made = trial("plug-power")
    made.say("zigbee2mqtt/washing machine/power", b"12.5")
    made.say("zigbee2mqtt/washing machine/state", b"ON")
    plug = CAPTURES["plug-power"].id
    assert (value(made, plug, "power"), value(made, plug, "on")) == (12.5, True)


def test_set_is_answered_by_the_state() -> None:
    made = trial("ikea-bulb", "lock", "two-gang")
    made.execute(LAMP, "set", on=True, brightness=120, transition=2)
    (sent,) = made.sends
    assert (sent.topic, json.loads(sent.payload)) == (
        "zigbee2mqtt/hall lamp/set",
        {"state": "ON", "brightness": 120, "transition": 2},
    )
    assert made.answers == []
    made.say("zigbee2mqtt/hall lamp", {"state": "ON", "brightness": 120})
    assert (made.answers[0]["code"], made.answers[0]["body"]) == (200, {"values": {"on": True, "brightness": 120}})
    made.execute(CAPTURES["two-gang"].id, "set", on_left=False)
    assert json.loads(made.sends[-1].payload) == {"state_left": "OFF"}
    made.execute(CAPTURES["lock"].id, "set", locked=True)
    assert json.loads(made.sends[-1].payload) == {"state": "LOCK"}
    made.execute(CAPTURES["lock"].id, "get")
    assert json.loads(made.sends[-1].payload) == {"state": ""}


@pytest.mark.parametrize(
    ("device", "method", "params", "code"),
    [
        (DOOR, "set", {"contact": True}, 400),
        (DOOR, "get", {}, 400),
        (LAMP, "set", {}, 400),
        ("0x0000000000000000", "set", {"on": True}, 404),
    ],
)
def test_what_cannot_be_done_is_said(device: str, method: str, params: dict[str, Any], code: int) -> None:
    made = trial("ikea-bulb", "door-lost")
    made.execute(device, method, **params)
    assert made.answers[-1]["code"] == code
    assert made.sends == []


def test_a_thousand_devices_are_a_thousand_objects() -> None:
    (entry,) = listed("aqara-climate")
    made = Trial("zigbee2mqtt", most=1_000)
    many = [
        {**entry, "ieee_address": f"0x00158d{number:010x}", "friendly_name": f"floor/{number}"}
        for number in range(1_000)
    ]
    made.say("zigbee2mqtt/bridge/devices", many, retain=True)
    assert len(made.objects) == 2_000
    made.say("zigbee2mqtt/floor/999", {"temperature": 20})
    assert value(made, "0x00158d00000003e7", "temperature") == 20


@beside
def test_a_bridge_over_sockets(tmp_path: Path, broker: str) -> None:
    with house(tmp_path, broker, adapter("zigbee2mqtt")) as home:
        bridge = home.client()
        bridge.subscribe("zigbee2mqtt/+/set")
        bridge.publish("zigbee2mqtt/bridge/state", {"state": "online"}, retain=True)
        # More than the 256 KiB that the broker takes where no adapter needs more.
        padding = {**listed("door-lost")[0], "definition": {"exposes": [], "padding": "x" * 300_000}}
        bridge.publish("zigbee2mqtt/bridge/devices", [*listed("ikea-bulb"), padding], retain=True)
        bridge.publish("zigbee2mqtt/hall lamp", {"state": "OFF", "brightness": 10})
        home.value(LAMP, "on", False)
        asked = home.execute(LAMP, "set", on=True)
        topic, payload, _, _ = bridge.wait(lambda: bridge.heard)[0]
        assert (topic, json.loads(payload)) == ("zigbee2mqtt/hall lamp/set", {"state": "ON"})
        bridge.publish("zigbee2mqtt/hall lamp", {"state": "ON", "brightness": 10})
        assert home.answer(asked)["code"] == 200
        home.value(LAMP, "on", True)
        assert home.object(LAMP)["name"] == "hall lamp"
        bridge.publish("zigbee2mqtt/bridge/devices", [], retain=True)
        assert home.object(LAMP, lambda one: not one.get("data")) is not None
