"""Sparkplug B: order, births and deaths, rebirths, commands; an edge node of pysparkplug over sockets."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path
from typing import Any

import pytest

from adapters.sparkplug import Payload
from tests.adapters.sockets import DEVICE, adapter, beside, house
from tests.adapters.trial import NOW, Trial
from tests.inside import PASSWORD

NODE, FURNACE = "Plant/Edge", "Plant/Edge/Furnace"


def payload(seq: int | None, *metrics: dict[str, Any]) -> bytes:
    made = Payload(timestamp=1_800_000_000_000)
    if seq is not None:
        made.seq = seq
    for each in metrics:
        made.metrics.add(**each)
    found: bytes = made.SerializeToString()
    return found


def bdseq(number: int) -> dict[str, Any]:
    return {"name": "bdSeq", "datatype": 4, "long_value": number}


def born(**options: Any) -> Trial:
    """A node with a device, both born: sequence numbers 0 and 1 are used."""
    made = Trial("sparkplug", options)
    made.say("spBv1.0/Plant/NBIRTH/Edge", payload(0, bdseq(1), {"name": "uptime", "datatype": 8, "long_value": 5}))
    metrics = (
        {"name": "temperature", "alias": 1, "datatype": 9, "float_value": 20.5},
        {"name": "Outputs/LED", "alias": 2, "datatype": 11, "boolean_value": False},
        {"name": "level", "alias": 3, "datatype": 2, "int_value": 7},
    )
    made.say("spBv1.0/Plant/DBIRTH/Edge/Furnace", payload(1, *metrics))
    assert made.sends == []
    return made


def data(made: Trial, seq: int, *metrics: dict[str, Any], now: float = NOW) -> str:
    return made.say("spBv1.0/Plant/DDATA/Edge/Furnace", payload(seq, *metrics), now=now)


def value(made: Trial, device: str, name: str) -> Any:
    return made.objects[device]["values"][name]["value"]


def rebirths(made: Trial) -> int:
    for sent in made.sends:
        assert sent.topic == "spBv1.0/Plant/NCMD/Edge"
        (metric,) = Payload.FromString(sent.payload).metrics
        assert (metric.name, metric.boolean_value) == ("Node Control/Rebirth", True)
    return len(made.sends)


def test_aliases_stand_for_names() -> None:
    made = born()
    data(made, 2, {"alias": 1, "float_value": 12.3}, {"alias": 3, "int_value": 2**32 - 40})
    assert (value(made, FURNACE, "temperature"), value(made, FURNACE, "level")) == (12.3, -40)


def test_what_is_missing_asks_for_a_birth_once_in_a_while() -> None:
    made = born()
    data(made, 3, {"alias": 1, "float_value": 1.5})
    assert rebirths(made) == 1
    # What was said is true all the same.
    assert value(made, FURNACE, "temperature") == 1.5
    data(made, 9, {"alias": 1, "float_value": 2.5}, now=NOW + 5)
    assert rebirths(made) == 1
    data(made, 19, {"alias": 1, "float_value": 2.5}, now=NOW + 15)
    assert rebirths(made) == 2
    data(made, 20, {"alias": 99, "float_value": 2.5}, now=NOW + 30)
    assert rebirths(made) == 3


def test_sequence_numbers_begin_again_after_255() -> None:
    made = born()
    for number in range(2, 600):
        data(made, number % 256, {"alias": 1, "float_value": float(number)})
    assert made.sends == []


def test_data_before_a_birth_asks_for_it() -> None:
    made = Trial("sparkplug")
    data(made, 5, {"alias": 1, "float_value": 1.5})
    assert made.objects == {}
    assert rebirths(made) == 1
    quiet = Trial("sparkplug", {"rebirth": False})
    data(quiet, 5, {"alias": 1, "float_value": 1.5})
    assert quiet.sends == []


def test_a_death_counts_where_it_is_of_this_birth() -> None:
    made = born()
    made.say("spBv1.0/Plant/NDEATH/Edge", payload(None, bdseq(0)))
    assert set(made.status.values()) == {"live"}
    made.say("spBv1.0/Plant/NDEATH/Edge", payload(None, bdseq(1)))
    assert set(made.status.values()) == {"disconnected"}
    made.say("spBv1.0/Plant/NBIRTH/Edge", payload(0, bdseq(2)))
    assert (made.status[NODE], made.status[FURNACE]) == ("live", "disconnected")
    data(made, 1, {"alias": 1, "float_value": 1.5})
    assert rebirths(made) == 1
    assert made.status[FURNACE] == "disconnected"


def test_a_device_dies_alone() -> None:
    made = born()
    made.say("spBv1.0/Plant/DDEATH/Edge/Furnace", payload(2))
    assert (made.status[NODE], made.status[FURNACE]) == ("live", "disconnected")
    assert made.sends == []


def test_null_takes_away_and_history_is_not_now() -> None:
    made = born()
    data(made, 2, {"alias": 1, "is_null": True}, {"alias": 3, "int_value": 99, "is_historical": True})
    assert set(made.objects[FURNACE]["values"]) == {"Outputs.LED", "level"}
    assert value(made, FURNACE, "level") == 7
    assert made.counts["past"] == 1


def test_a_birth_is_all_there_is() -> None:
    made = born()
    made.say("spBv1.0/Plant/DBIRTH/Edge/Furnace", payload(2, {"name": "level", "datatype": 2, "int_value": 8}))
    assert set(made.objects[FURNACE]["values"]) == {"level"}
    made.say("spBv1.0/Plant/NBIRTH/Edge", payload(0, bdseq(1)), retain=True)
    assert "uptime" in made.objects[NODE]["values"]


@pytest.mark.parametrize(
    ("name", "given", "field", "sent"),
    [
        ("Outputs.LED", True, "boolean_value", True),
        ("Outputs/LED", False, "boolean_value", False),
        ("temperature", 21, "float_value", 21.0),
        ("level", -3, "int_value", 2**32 - 3),
        ("level", 40_000, None, None),
        ("level", "7", None, None),
        ("Outputs.LED", 1, None, None),
        ("nothing", 1, None, None),
    ],
)
def test_commands_have_the_datatypes_of_the_birth(name: str, given: Any, field: str | None, sent: Any) -> None:
    made = born()
    made.execute(FURNACE, "set", **{name: given})
    if field is None:
        assert made.answers[-1]["code"] == 400
        assert made.sends == []
        return
    assert made.sends[0].topic == "spBv1.0/Plant/DCMD/Edge/Furnace"
    (metric,) = Payload.FromString(made.sends[0].payload).metrics
    assert getattr(metric, field) == sent
    data(made, 2, {"name": metric.name, "datatype": metric.datatype, field: sent})
    assert made.answers[-1]["code"] == 200


def test_a_payload_that_would_be_too_large_is_refused() -> None:
    import zlib

    made = Trial("sparkplug")
    bomb = Payload(uuid="SPBV1.0_COMPRESSED", body=zlib.compress(b"\0" * (8 << 20)))
    assert made.say("spBv1.0/Plant/NBIRTH/Edge", bomb.SerializeToString()) == "unreadable"
    assert "when it is inflated" in made.notes[0]


@pytest.fixture(scope="session")
def pysparkplug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with pysparkplug, which needs an older paho-mqtt than the gateway."""
    place = tmp_path_factory.mktemp("pysparkplug")
    venv.create(place, with_pip=True)
    command = [str(place / "bin/pip"), "install", "-q", "--disable-pip-version-check", "pysparkplug==0.6.1"]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    return place / "bin/python"


@beside
def test_an_edge_node_of_a_real_library_over_sockets(tmp_path: Path, broker: str, pysparkplug: Path) -> None:
    node, device = "Plant%201/Raspberry%20Pi", "Plant%201/Raspberry%20Pi/Pibrella"
    with house(tmp_path, broker, adapter("sparkplug", 'groups = ["Plant 1"]')) as home:
        script = Path(__file__).with_name("sparkplug_node.py")
        command = [str(pysparkplug), str(script), str(home.port), DEVICE, PASSWORD]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
            try:
                home.value(node, "Supply Voltage", 12.3)
                home.value(device, "level", -5)
                answer = home.answer(home.execute(device, "set", **{"Outputs.LED": True}))
                assert (answer["code"], answer["body"]) == (200, {"values": {"Outputs.LED": True}})
                home.value(device, "Outputs.LED", True)
            finally:
                running.kill()
            # Its will says that it has died.
            home.object(node, lambda one: one["status"] == "disconnected")
