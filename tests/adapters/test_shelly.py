"""Shelly: patches, whole states, events, sleeping devices, calls and their replies; over sockets too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.adapters.sockets import DEVICE, adapter, beside, house
from tests.adapters.trial import NOW, Trial

if TYPE_CHECKING:
    from pathlib import Path

PLUG = "shellyplus1pm-a8032ab12345"


def notify(made: Trial, method: str, params: dict[str, Any], now: float = NOW) -> None:
    message = {"src": PLUG, "dst": f"{PLUG}/events", "method": method, "params": params}
    made.say(f"{PLUG}/events/rpc", message, now=now)


def values(made: Trial) -> dict[str, Any]:
    return {name: reading["value"] for name, reading in made.objects[PLUG]["values"].items()}


def call(made: Trial) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.sends[-1].payload)
    assert made.sends[-1].topic == f"{PLUG}/rpc"
    return found


def test_a_patch_leaves_the_rest_and_a_full_status_does_not() -> None:
    made = Trial("shelly")
    notify(
        made,
        "NotifyStatus",
        {"ts": 1.5, "switch:0": {"id": 0, "output": True, "apower": 10}, "switch:1": {"id": 1, "output": False}},
    )
    notify(made, "NotifyStatus", {"ts": 2.5, "switch:0": {"id": 0, "apower": 11}})
    assert values(made) == {"on": True, "power": 11, "switch:1.on": False}
    notify(made, "NotifyEvent", {"ts": 3, "events": [{"component": "input:0", "event": "single_push", "ts": 3}]})
    notify(made, "NotifyFullStatus", {"ts": 4, "switch:0": {"id": 0, "output": True, "apower": 11}})
    assert values(made) == {"on": True, "power": 11, "input:0.action": "single_push"}


def test_the_same_push_twice_is_two_changes() -> None:
    made = Trial("shelly")
    for second in (5, 6):
        notify(
            made,
            "NotifyEvent",
            {"ts": second, "events": [{"component": "input:0", "event": "single_push", "ts": second}]},
        )
    assert made.objects[PLUG]["values"]["input:0.action"]["time"] == "1970-01-01T00:00:06.000Z"
    assert len([delta for delta in made.deltas if "input:0.action" in json.dumps(delta)]) == 2


def test_what_sleeps_is_not_lost() -> None:
    made = Trial("shelly")
    made.say(f"{PLUG}/online", "true", retain=True)
    made.say(f"{PLUG}/online", "false", retain=True)
    assert set(made.status.values()) == {"disconnected"}
    notify(made, "NotifyFullStatus", {"ts": 1, "sys": {"wakeup_period": 7200}, "temperature:0": {"id": 0, "tC": 20.5}})
    assert made.status[PLUG] == "live"
    made.say(f"{PLUG}/online", "false", retain=True)
    assert made.status[PLUG] == "live"


def test_a_call_is_answered_by_the_reply() -> None:
    made = Trial("shelly")
    made.say(f"{PLUG}/online", "true")
    made.execute(PLUG, "set", on=True)
    sent = call(made)
    assert (sent["method"], sent["params"], sent["src"]) == ("Switch.Set", {"id": 0, "on": True}, "ctxt-gateway-shelly")
    assert made.answers == []
    made.say("ctxt-gateway-shelly/rpc", {"id": "another", "src": PLUG, "result": {}})
    assert made.answers == []
    made.say("ctxt-gateway-shelly/rpc", {"id": sent["id"], "src": PLUG, "result": {"was_on": False}})
    assert (made.answers[0]["code"], made.answers[0]["body"]) == (200, {"was_on": False})
    made.execute(PLUG, "rpc", method="Switch.Toggle", params={"id": 9})
    error = {"code": -105, "message": "Argument 'id', value 9 not found!"}
    made.say("ctxt-gateway-shelly/rpc", {"id": call(made)["id"], "src": PLUG, "error": error})
    assert made.answers[-1]["code"] == 404
    assert "value 9 not found" in made.answers[-1]["description"]


def test_what_is_asked_for_is_a_state_too() -> None:
    made = Trial("shelly")
    made.say(f"{PLUG}/online", "true")
    made.execute(PLUG, "get", component="switch:0")
    assert call(made)["method"] == "Switch.GetStatus"
    made.say("ctxt-gateway-shelly/rpc", {"id": call(made)["id"], "src": PLUG, "result": {"id": 0, "output": True}})
    assert values(made) == {"on": True}
    assert made.answers[-1]["code"] == 200


@pytest.mark.parametrize(
    ("status", "params", "method", "sent"),
    [
        ({}, {"position": 40}, "Cover.GoToPosition", {"id": 0, "pos": 40}),
        ({}, {"state": "open"}, "Cover.Open", {"id": 0}),
        (
            {"light:0": {"output": True}},
            {"on": True, "brightness": 7},
            "Light.Set",
            {"id": 0, "on": True, "brightness": 7},
        ),
        ({}, {"switch:2.on": False}, "Switch.Set", {"id": 2, "on": False}),
        ({}, {"number:200.value": 4}, "Number.Set", {"id": 200, "value": 4}),
    ],
)
def test_what_can_be_set(status: dict[str, Any], params: dict[str, Any], method: str, sent: dict[str, Any]) -> None:
    made = Trial("shelly")
    made.say(f"{PLUG}/online", "true")
    notify(made, "NotifyStatus", {"ts": 1, **status})
    made.execute(PLUG, "set", **params)
    assert (call(made)["method"], call(made)["params"]) == (method, sent)


@pytest.mark.parametrize(
    "params", [{}, {"switch:0.on": True, "switch:1.on": True}, {"sys:0.on": True}, {"state": "ajar"}]
)
def test_what_cannot_be_set(params: dict[str, Any]) -> None:
    made = Trial("shelly")
    made.say(f"{PLUG}/online", "true")
    made.execute(PLUG, "set", **params)
    assert made.answers[-1]["code"] == 400
    assert made.sends == []


@beside
def test_a_plug_over_sockets(tmp_path: Path, broker: str) -> None:
    # The factory's prefix is the device's own name, and so is its MQTT user: nobody else may use its topics.
    with house(tmp_path, broker, adapter("shelly").replace(f'"{DEVICE}"', f'"{DEVICE}", "other"'), "other") as home:
        plug, other = home.client(), home.client("other")
        plug.subscribe(f"{DEVICE}/rpc")
        plug.publish(f"{DEVICE}/online", True, retain=True)
        assert other.publish(f"{DEVICE}/online", False, retain=True)[0] == 0x87
        params = {"ts": 1736603810.49, "switch:0": {"id": 0, "output": False, "apower": 0}}
        plug.publish(f"{DEVICE}/events/rpc", {"src": DEVICE, "method": "NotifyStatus", "params": params})
        home.value(DEVICE, "on", False)
        asked = home.execute(DEVICE, "set", on=True)
        request = json.loads(plug.wait(lambda: plug.heard)[0][1])
        assert request["method"] == "Switch.Set"
        plug.publish(f"{request['src']}/rpc", {"id": request["id"], "src": DEVICE, "result": {"was_on": False}})
        answer = home.answer(asked)
        assert (answer["code"], answer["body"]) == (200, {"was_on": False})
