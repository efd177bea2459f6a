"""SenML: resolution, refusals, CBOR from a stranger, a real encoder; over sockets too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import cbor2
import pytest
from kpn_senml import SenmlPack, SenmlRecord, SenmlUnits

from tests.adapters.sockets import adapter, beside, house
from tests.adapters.trial import NOW, Trial

if TYPE_CHECKING:
    from pathlib import Path

BASE = "urn:dev:mac:0024befffe804ff1"


def said(pack: Any, topic: str = "senml/m", **options: Any) -> Trial:
    made = Trial("senml", options)
    made.say(topic, pack)
    return made


def values(made: Trial, device: str = "m") -> dict[str, Any]:
    found: dict[str, Any] = made.objects[device]["values"]
    return found


@pytest.mark.parametrize(
    ("pack", "name", "reading"),
    [
        ([{"n": "a", "v": 1}], "a", {"value": 1}),
        ([{"n": "a", "v": 1, "t": -10}], "a", {"value": 1, "time": "2027-01-15T07:59:50.000Z"}),
        ([{"n": "a", "v": 1, "bt": 1766131200, "t": 0.5}], "a", {"value": 1, "time": "2025-12-19T08:00:00.500Z"}),
        ([{"bn": "x/", "bu": "Cel", "n": "a", "v": 1}], "a", {"value": 1, "unit": "Cel"}),
        ([{"n": "a", "bv": 20, "v": 1.5}], "a", {"value": 21.5}),
        ([{"n": "a", "bv": 20}], "a", {"value": 20}),
        ([{"n": "a", "s": 5, "bs": 10, "u": "W"}], "a.sum", {"value": 15, "unit": "J"}),
        ([{"n": "a", "s": 5, "u": "Cel"}], "a.sum", {"value": 5, "unit": "Cel.s"}),
        ([{"n": "m/temp", "v": 1}], "temp", {"value": 1}),
        ([{"n": "a", "v": 1, "ut": 60, "odd": {}}], "a", {"value": 1}),
        ([{"n": "a", "v": 1, "u": "mV"}], "a", {"value": 1, "unit": "mV"}),
    ],
)
def test_resolution(pack: Any, name: str, reading: dict[str, Any]) -> None:
    assert values(said(pack))[name] == reading


@pytest.mark.parametrize(
    ("pack", "words"),
    [
        ({}, "no pack"),
        ([1], "record 1 is no object"),
        ([{"n": "a", "v": 1}, {"n": "b", "v": "1"}], "record 2: v is no number"),
        ([{"n": "a", "vb": 1}], "vb is not true or false"),
        ([{"n": "a", "vs": 1}], "vs is not a text"),
        ([{"n": "a", "v": 1, "must_": 1}], "has to be understood"),
        ([{"n": "a", "v": 1, "bver": 11}], "version 11"),
        ([{"n": "-a", "v": 1}], "has the name"),
        ([{"n": "a b", "v": 1}], "has the name"),
        ([{"v": 1}], "has the name"),
        ([{"n": "a", "v": 1, "t": 1e300}], "a time that is none"),
        ([{"n": "a" * 300, "v": 1}], "n is no text"),
    ],
)
def test_what_is_no_pack(pack: Any, words: str) -> None:
    made = Trial("senml")
    assert made.say("senml/m", json.dumps(pack)) == "unreadable"
    assert words in made.notes[0]
    assert made.objects == {}


def test_the_newest_of_several_is_what_is() -> None:
    made = said([{"n": "a", "v": 3, "t": -1}, {"n": "a", "v": 1, "t": -9}, {"n": "a", "v": 4}])
    assert values(made)["a"] == {"value": 4}
    assert made.counts["past"] == 2


@pytest.mark.parametrize(
    ("name", "device", "quantity"),
    [
        (f"{BASE}:temp", BASE, "temp"),
        (f"{BASE}/voltage", BASE, "voltage"),
        (f"{BASE}_out", BASE, "out"),
        (BASE, BASE, "value"),
        ("kitchen/lamp/on", "kitchen/lamp", "on"),
        ("alone", "alone", "value"),
    ],
)
def test_names_are_devices_and_quantities(name: str, device: str, quantity: str) -> None:
    made = said([{"n": name, "v": 1}], "packs/x", topics=["packs/#"])
    assert list(values(made, device)) == [quantity]


@pytest.mark.parametrize(
    "payload",
    [
        b"\x81" * 100_000,
        b"\x9b\x00\x00\x00\x7f\xff\xff\xff\xff",
        b"\x5b\x00\x00\x00\x7f\xff\xff\xff\xff",
        b"\x81\xa2\x00\x61a\x02\xc4\x82\x1b\x00\x00\x00\xff\xff\xff\xff\xff\x01",
        b"\x81\xa2\x00\x61a\x02\xc2\x59\xff\xff" + b"\xff" * 65_535,
        b"\x81\xa2\x00\x61a\x02\xf9\x7e\x00",
        b"\xd8\x1c\x81\xd8\x1d\x00",
        cbor2.dumps([{0: "a", 2: "x"}]),
        cbor2.dumps({0: "a"}),
    ],
)
def test_cbor_of_somebody_who_means_harm(payload: bytes) -> None:
    made = Trial("senml")
    assert made.say("senml/m", payload) == "unreadable"
    assert made.objects == {}


def test_cbor_may_have_decimal_fractions() -> None:
    made = said(b"\x81\xa2\x00\x61a\x02\xc4\x82\x20\x18\xd7")
    assert values(made)["a"] == {"value": 21.5}


@pytest.mark.parametrize("encoding", ["json", "cbor"])
def test_set_sends_a_pack(encoding: str) -> None:
    made = Trial("senml", {"command_topic": "senml/{device}/set", "command_encoding": encoding})
    made.say("senml/m", [{"n": "valve", "vb": False}], now=NOW)
    made.execute("m", "set", valve=True)
    (sent,) = made.sends
    assert sent.topic == "senml/m/set"
    pack = json.loads(sent.payload) if encoding == "json" else cbor2.loads(sent.payload)
    assert pack == ([{"n": "valve", "vb": True}] if encoding == "json" else [{0: "valve", 4: True}])
    made.say("senml/m", [{"n": "valve", "vb": True}], now=NOW + 1)
    assert made.answers[-1]["code"] == 200


@beside
def test_a_device_with_a_real_encoder_over_sockets(tmp_path: Path, broker: str) -> None:
    with house(tmp_path, broker, adapter("senml", 'command_topic = "senml/{device}/set"')) as home:
        meter = home.client()
        meter.subscribe("senml/+/set")
        for make, value in (("to_json", 23.5), ("to_cbor", 24.5)):
            pack = SenmlPack(f"{BASE}:")
            pack.add(SenmlRecord("temperature", unit=SenmlUnits.SENML_UNIT_DEGREES_CELSIUS, value=value))
            pack.add(SenmlRecord("valve", value=False))
            payload = getattr(pack, make)()
            meter.publish("senml/m", payload.encode() if isinstance(payload, str) else bytes(payload))
            assert home.value("m", "temperature", value)["unit"] == "Cel"
        asked = home.execute("m", "set", valve=True)
        assert json.loads(meter.wait(lambda: meter.heard)[0][1]) == [{"n": "valve", "vb": True}]
        meter.publish("senml/m", [{"n": "valve", "vb": True}])
        assert home.answer(asked)["code"] == 200
