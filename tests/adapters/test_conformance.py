"""What every adapter must do, whatever its dialect: run over its captures, whole and broken."""

from __future__ import annotations

import ast
import io
import pickle
import random
from pathlib import Path
from types import FunctionType
from typing import Any

import orjson
import pytest

import adapters
from gateway import dialects
from gateway.adapting import RESULTS
from gateway.data import folder
from gateway.service import adapters_of
from gateway.settings import load
from tests.adapters.trial import Capture, Message, Trial, captures

FOLDER = Path(adapters.__file__).parent
CASES = [(name, capture) for name in dialects.BUILTIN for capture in captures(name)]
each_capture = pytest.mark.parametrize(
    ("name", "capture"), CASES, ids=[f"{name}-{one.path.stem}" for name, one in CASES]
)
each_adapter = pytest.mark.parametrize("name", dialects.BUILTIN)

FORBIDDEN = {
    "asyncio",
    "socket",
    "sqlite3",
    "logging",
    "time",
    "os",
    "threading",
    "pathlib",
    "subprocess",
    "random",
    "secrets",
}
LEAST = {"zigbee2mqtt": 12, "tasmota": 12}
"""Devices with a capture; of the others five."""


@each_capture
def test_a_captured_device_becomes_its_objects(name: str, capture: Capture) -> None:
    trial = Trial(name, capture.options)
    trial.replay(capture.messages)
    assert trial.objects == capture.objects
    assert trial.status == {**dict.fromkeys(capture.objects, "live"), **capture.status}
    assert {key: trial.names[key] for key in capture.names} == capture.names
    assert trial.counts["failed"] == trial.counts["refused"] == trial.counts["unreadable"] == 0, trial.notes


@each_capture
def test_what_is_repeated_is_no_change(name: str, capture: Capture) -> None:
    trial = Trial(name, capture.options)
    trial.replay(capture.messages)
    last: dict[str, Message] = {message.topic: message for message in capture.messages}
    trial.replay(tuple(last.values()))
    before = (trial.objects, {obj.topic: obj.version for obj in trial.engine.objects})
    trial.replay(tuple(Message(one.topic, one.payload, retain=True) for one in last.values()))
    assert (trial.objects, {obj.topic: obj.version for obj in trial.engine.objects}) == before


@each_capture
def test_the_same_messages_make_the_same_objects(name: str, capture: Capture) -> None:
    first, second = Trial(name, capture.options), Trial(name, capture.options)
    for trial in (first, second):
        trial.replay(capture.messages)
    assert first.deltas == second.deltas
    assert first.sends == second.sends


WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    1e308,
    "",
    "x" * 5_000,
    [],
    [[]],
    {},
    {"a": {"b": {"c": []}}},
    [None, 1, "x", {}],
)
PARAMS: tuple[dict[str, Any], ...] = (
    {},
    {"x": [[]]},
    {"value": None},
    {"state": {"a": [1, {"b": "x" * 1_000}]}},
    {"payload": 1e308},
    {"command": "Status", "payload": {"a": 1}},
    {"on": True, "dimmer": None},
)


def broken(payload: bytes, rng: random.Random) -> list[bytes]:
    """A payload gone wrong in every way that the wire, or somebody who means harm, knows."""
    found = [
        b"",
        b"\x00",
        b"\xff\xfe" + payload,
        payload[: len(payload) // 2],
        payload + payload,
        b"x" * 2_000_000,
        b"[" * 5_000,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b"null",
        b"[]",
        b"{}",
        b"1e999",
        b'"' + b"9" * 5_000 + b'"',
        b"9" * 5_000,
        b"true",
        b'{"\\ud800":1}',
    ]
    for _ in range(20):
        mutated = bytearray(payload or b"0")
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        found.append(bytes(mutated))
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return found
    if isinstance(document, dict | list):
        for wrong in WRONG:
            found += [orjson.dumps(variant) for variant in replaced(document, wrong)][:200]
    return found


def replaced(value: Any, wrong: Any) -> list[Any]:
    """The document with each of its members, in turn, replaced by something wrong."""
    found: list[Any] = [wrong]
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, below in items[:60]:
        for variant in replaced(below, wrong):
            copy = dict(value) if isinstance(value, dict) else list(value)
            copy[key] = variant
            found.append(copy)
    return found


@each_capture
def test_bad_input_is_a_counted_refusal_and_nothing_else(name: str, capture: Capture) -> None:
    rng = random.Random(capture.path.stem)
    trial = Trial(name, capture.options)
    trial.replay(capture.messages)
    for message in capture.messages:
        number = trial.adapting.find(message.topic)
        if number:
            continue
        for payload in broken(message.payload, rng):
            before = sum(trial.counts[result] for result in RESULTS)
            trial.say(message.topic, payload, retain=rng.random() < 0.3)
            assert trial.counts["failed"] == 0, (trial.notes[-1], message.topic, payload[:500])
            assert sum(trial.counts[result] for result in RESULTS) > before
    for topic in odd_topics(capture, rng):
        if trial.adapting.find(topic) == 0:
            trial.say(topic, rng.choice([b"1", b"on", b"{}", b'{"a":1}']))
            assert trial.counts["failed"] == 0, (trial.notes[-1], topic)
    # It still does what it did before.
    fresh = Trial(name, capture.options)
    fresh.replay(capture.messages)
    assert fresh.objects == capture.objects


def odd_topics(capture: Capture, rng: random.Random) -> list[str]:
    """Topics near those of a device."""
    found = []
    for message in capture.messages:
        levels = message.topic.split("/")
        for at in range(len(levels)):
            for level in ("", "children", "device", "..", "%2F", "é" * 200, "x\u200by", "\u0001", "a b"):
                found.append("/".join([*levels[:at], level, *levels[at + 1 :]]))  # noqa: PERF401 - two loops read better
        found += [message.topic + "/set", message.topic + "/", "/".join(levels[:-1])]
    rng.shuffle(found)
    return found[:300]


class Pickler(pickle.Pickler):
    """What is compiled out of the settings is left out."""

    def persistent_id(self, obj: Any) -> str | None:
        return "compiled" if isinstance(obj, FunctionType) else None


def size(adapter: Any) -> int:
    """What an adapter holds, in bytes that make no claim to be memory's."""
    out = io.BytesIO()
    Pickler(out).dump(vars(adapter))
    return out.tell()


@each_adapter
def test_devices_without_end_take_no_memory_without_end(name: str) -> None:
    capture = next(one for one in captures(name) if one.id)
    most = 20
    trial = Trial(name, capture.options, most=most)
    sizes = []
    for number in range(6 * most):
        other = f"{number:0{len(capture.id)}x}"[-len(capture.id) :]
        for message in capture.messages:
            topic = message.topic.replace(capture.id, other)
            payload = message.payload.replace(capture.id.encode(), other.encode())
            if trial.adapting.find(topic) == 0:
                trial.say(topic, payload, retain=message.retain)
        sizes.append(size(trial.adapter))
    assert sizes[-1] <= sizes[2 * most] * 1.5 + 2_000, sizes[:: most // 2]
    assert len(trial.objects) <= 2 * most
    assert trial.counts["failed"] == 0, trial.notes


@each_adapter
def test_it_knows_no_clock_file_or_socket(name: str) -> None:
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for module in modules:
                assert module.partition(".")[0] not in FORBIDDEN, module
                assert not module.startswith("gateway.") or module in {
                    "gateway.adapter",
                    "gateway.client.quantities",
                }, module


@each_adapter
def test_an_unknown_action_says_which_there_are(name: str) -> None:
    spec = dialects.find(name)
    capture = next(iter(captures(name)))
    trial = Trial(name, capture.options)
    trial.replay(capture.messages)
    device = next(key for key in capture.objects if not key.endswith("/device"))
    trial.execute(device, "explode")
    assert trial.answers[-1]["code"] == 404
    for method in spec.methods:
        assert method in trial.answers[-1]["description"]
    for params in PARAMS:
        for method in spec.methods:
            trial.execute(device, method, **params)
    assert trial.counts["failed"] == 0, trial.notes


@each_adapter
def test_it_says_what_it_is(name: str) -> None:
    spec = dialects.find(name)
    assert spec.name == name
    assert spec.summary
    assert spec.home.startswith("https://")
    assert sum(1 for _ in captures(name)) >= LEAST.get(name, 5)
    page = Path(__file__).resolve().parents[2] / "docs" / "adapters" / f"{name}.md"
    text = page.read_text()
    assert spec.example.strip() in text
    for field in spec.options.model_fields:
        assert f"`{field}`" in text, field
    for method in spec.methods:
        assert f"`{method}`" in text, method


@each_adapter
def test_its_example_in_config_can_be_used_as_it_is(name: str, tmp_path: Path) -> None:
    file = folder("config") / "adapters" / f"{name}.toml"
    settings = load(file, {"CTXT_STATE_DIR": str(tmp_path)})
    assert {entry.kind for entry in settings.adapter} == {name}
    assert adapters_of(settings)
    assert f"docs/adapters/{name}.md" in file.read_text()
