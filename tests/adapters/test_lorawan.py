"""The Things Stack and ChirpStack: duplicates, omitted zeros, downlinks and what becomes of them; over sockets too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.adapters.sockets import adapter, beside, house
from tests.adapters.trial import NOW, Trial, captures

if TYPE_CHECKING:
    from pathlib import Path

TTN = "v3/greenhouse@ttn/devices/lht65-cellar"
TTN_ID = "a84041000181a5f2"
CHIRP_ID = "a84041000181a5f3"
CHIRP = f"application/17c82e96-be03-4f38-aef3-f83d48582d97/device/{CHIRP_ID}"


def uplink(network: str) -> dict[str, Any]:
    """A captured uplink."""
    capture = next(one for one in captures(network) if one.path.stem == "dragino-lht65")
    message = next(each for each in capture.messages if each.topic.endswith("/up"))
    found: dict[str, Any] = json.loads(message.payload)
    return found


def heard(network: str) -> Trial:
    made = Trial(network)
    made.say(f"{TTN}/up" if network == "ttn" else f"{CHIRP}/event/up", uplink(network))
    return made


def test_a_frame_that_comes_twice_is_one_and_a_new_session_counts_anew() -> None:
    made = heard("ttn")
    assert made.say(f"{TTN}/up", uplink("ttn"), now=NOW + 5) == "silent"
    later = uplink("ttn")
    del later["uplink_message"]["f_cnt"]
    later["uplink_message"]["decoded_payload"]["TempC_SHT"] = 1.5
    assert made.say(f"{TTN}/up", later, now=NOW + 6) == "read"
    assert made.say(f"{TTN}/up", later, now=NOW + 7) == "silent"
    made.say(f"{TTN}/join", {"end_device_ids": later["end_device_ids"], "join_accept": {}}, now=NOW + 8)
    assert made.say(f"{TTN}/up", later, now=NOW + 9) == "read"
    assert made.objects[TTN_ID]["values"]["temperature"]["value"] == 1.5


def test_an_event_that_comes_twice_is_one() -> None:
    made = heard("chirpstack")
    assert made.say(f"{CHIRP}/event/up", uplink("chirpstack")) == "silent"
    assert made.say(f"{CHIRP}/event/up", {**uplink("chirpstack"), "deduplicationId": "another"}) == "read"


def test_protobuf_is_refused_with_a_word_about_it() -> None:
    made = Trial("chirpstack")
    assert made.say(f"{CHIRP}/event/up", b"\n$3ac7e3c4\x12\x08") == "unreadable"
    assert made.say(f"{CHIRP}/event/up", b"\x12\x08") == "unreadable"
    assert "json=true" in "".join(made.notes)


def sent(made: Trial) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.sends[-1].payload)
    return found


@pytest.mark.parametrize(
    ("until", "events", "code"),
    [
        ("queued", ["queued"], 202),
        ("sent", ["queued", "sent"], 200),
        ("ack", ["queued", "sent", "ack"], 200),
        ("ack", ["queued", "sent", "nack"], 502),
        ("queued", ["failed"], 502),
    ],
)
def test_what_becomes_of_a_downlink_in_the_things_stack(until: str, events: list[str], code: int) -> None:
    made = heard("ttn")
    made.execute(TTN_ID, "send", hex="010003", port=2, confirmed=True, until=until)
    assert made.sends[-1].topic == f"{TTN}/down/push"
    (entry,) = sent(made)["downlinks"]
    assert (entry["f_port"], entry["confirmed"], entry["frm_payload"]) == (2, True, "AQAD")
    for number, event in enumerate(events):
        assert made.answers == [], number
        inner = {"correlation_ids": [*entry["correlation_ids"], "as:downlink:01"]}
        made.say(f"{TTN}/down/{event}", {"end_device_ids": uplink("ttn")["end_device_ids"], f"downlink_{event}": inner})
    assert made.answers[-1]["code"] == code


@pytest.mark.parametrize(
    ("until", "events", "code"),
    [
        ("queued", [], 202),
        ("sent", [("txack", {})], 200),
        ("ack", [("txack", {}), ("ack", {"acknowledged": True})], 200),
        ("ack", [("txack", {}), ("ack", {})], 504),
    ],
)
def test_what_becomes_of_a_downlink_in_chirpstack(
    until: str, events: list[tuple[str, dict[str, Any]]], code: int
) -> None:
    made = heard("chirpstack")
    made.execute(CHIRP_ID, "send", object={"led": "on"}, confirmed=True, until=until)
    assert made.sends[-1].topic == f"{CHIRP}/command/down"
    entry = sent(made)
    assert (entry["devEui"], entry["object"], entry["fPort"]) == (CHIRP_ID, {"led": "on"}, 1)
    for event, more in events:
        assert made.answers == []
        made.say(f"{CHIRP}/event/{event}", {"deviceInfo": uplink("chirpstack")["deviceInfo"], "queueItemId": "other"})
        assert made.answers == []
        message = {"deviceInfo": uplink("chirpstack")["deviceInfo"], "queueItemId": entry["id"], **more}
        made.say(f"{CHIRP}/event/{event}", message)
    assert made.answers[-1]["code"] == code


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"hex": "0"},
        {"hex": "00", "base64": "AA=="},
        {"base64": "?"},
        {"object": 1},
        {"hex": "00", "port": 0},
        {"hex": "00", "until": "ack"},
        {"hex": "00", "until": "never"},
        {"hex": "00", "confirmed": 1},
    ],
)
@pytest.mark.parametrize("network", ["ttn", "chirpstack"])
def test_what_cannot_be_sent(network: str, params: dict[str, Any]) -> None:
    made = heard(network)
    made.execute(TTN_ID if network == "ttn" else CHIRP_ID, "send", **params)
    assert made.answers[-1]["code"] == 400
    assert made.sends == []


@beside
def test_a_network_server_over_sockets(tmp_path: Path, broker: str) -> None:
    with house(tmp_path, broker, adapter("chirpstack")) as home:
        server = home.client()
        server.subscribe("application/+/device/+/command/down")
        server.publish(f"{CHIRP}/event/up", uplink("chirpstack"))
        assert home.value(CHIRP_ID, "temperature", -18.4)["unit"] == "Cel"
        asked = home.execute(CHIRP_ID, "send", hex="01", confirmed=True, until="ack")
        entry = json.loads(server.wait(lambda: server.heard)[0][1])
        info = uplink("chirpstack")["deviceInfo"]
        server.publish(f"{CHIRP}/event/ack", {"deviceInfo": info, "queueItemId": entry["id"], "acknowledged": True})
        assert home.answer(asked)["code"] == 200
