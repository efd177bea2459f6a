"""The JavaScript client plays the shared vectors, and in any disorder it holds and tells what Python's Replica does."""

from __future__ import annotations

import json
import random
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.client.replica import Replica
from gateway.objects import url_of
from gateway.patch import apply_patch, merge, same
from tests.client.test_vectors import SCENES, shown, told
from tests.clients.conftest import CLIENT, PACKAGES

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
GROUPS = [*sorted({scene["group"] for scene in SCENES}), "merge", "merge_unchanged", "patch", "addresses"]

pytestmark = pytest.mark.timeout(300)  # the first test installs the packages


def run(node: str, project: Path, script: str, *arguments: str, text: str = "") -> str:
    """Run one of the scripts: what it wrote."""
    done = subprocess.run(
        [node, "--no-warnings", script, *arguments],
        cwd=project,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def played(node: str, project: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(run(node, project, "vectors.mjs", str(VECTORS)))
    print(f"{result['played']} played, {len(result['skipped'])} left out: {result['skipped']}")
    return result


@pytest.mark.parametrize("group", GROUPS)
def test_the_vectors(played: dict[str, Any], group: str) -> None:
    assert [failure for failure in played["failures"] if failure["group"] == group] == []


def test_only_those_are_left_out_that_want_two_types_of_numbers(played: dict[str, Any]) -> None:
    patches = json.loads((VECTORS / "patches.json").read_text(encoding="utf-8"))
    vectors = [*SCENES, *patches["merge"], *patches["merge_unchanged"], *patches["patch"]]
    assert sorted(played["skipped"]) == sorted(vector["note"] for vector in vectors if "numbers" in vector)
    assert played["played"] > 200


# ---- any disorder ------------------------------------------------------------------------------------------------------

WORLDS = 400
OBJECTS = [
    "comm/home.local/chat",
    "comm/home.local/chat/children/messages/ana/1",
    "comm/home.local/chat/children/messages/rui/2",
    "ctxt/home.local/room",
    "ctxt/other.local/room",
]
KEYS = ["a", "b", "a/b", "~", "", "__proto__", "constructor", "é"]
SCALARS = [None, True, False, 0, 1, -1, 1.5, 1e21, "", "x", "\u2028", "😀"]


class World:
    """A gateway's stream about a few objects, made up from a seed, and what a bad network makes of it."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.epoch = 1
        self.clock = 0
        self.held: dict[str, dict[str, Any]] = {}
        self.stream: list[tuple[str, str]] = []
        for _ in range(self.dice.randint(5, 40)):
            self.step(self.dice.choice(OBJECTS))

    def value(self, depth: int = 0) -> Any:
        kind = self.dice.random()
        if depth > 2 or kind < 0.5:
            return self.dice.choice(SCALARS)
        if kind < 0.65:
            return [self.value(depth + 1) for _ in range(self.dice.randint(0, 3))]
        return self.document(depth + 1)

    def document(self, depth: int = 0) -> dict[str, Any]:
        return {key: self.value(depth) for key in self.dice.sample(KEYS, self.dice.randint(0, 3))}

    def when(self) -> str:
        return f"2026-01-01T00:{self.clock // 60:02d}:{self.clock % 60:02d}.000Z"

    def send(self, topic: str, value: Any) -> None:
        self.stream.append((topic, json.dumps(value, ensure_ascii=self.dice.random() < 0.5)))

    def show(self, topic: str) -> None:
        held = self.held[topic]
        head = {"url": topic.replace("/", "://", 1), "epoch": self.epoch, "version": held["version"]}
        self.send(
            f"snapshot/{topic}",
            head | {"modified": held["modified"], "deleted": True} if held["deleted"] else head | held["facts"],
        )

    def tell(self, topic: str, **change: Any) -> None:
        held = self.held[topic]
        held["version"] += 1
        held["modified"] = held["facts"]["modified"] = self.when()
        self.send(f"delta/{topic}", {"epoch": self.epoch, "version": held["version"], "modified": self.when()} | change)

    def step(self, topic: str) -> None:
        dice = self.dice
        self.clock += 1
        held = self.held.get(topic)
        if held is None or held["deleted"]:
            made = self.held[topic] = {"version": 0 if held is None else held["version"], "deleted": False}
            value = self.document()
            name = topic.rsplit("/", 1)[1]
            facts = {"schema": dice.choice([None, "hc://c/Context"]), "reporter": "ana", "status": "live"}
            made["facts"] = {**facts, "name": name, "created": self.when(), "data": value}
            self.tell(topic, created=True, value=value, **facts)
            return
        facts = held["facts"]
        act = dice.choice(
            ["merge", "merge", "patch", "value", "status", "meta", "delete", "show", "show", "restart", "noise"]
        )
        if act == "merge":
            change = self.document()
            facts["data"] = merge(facts["data"], change)
            self.tell(topic, merge=change)
        elif act == "patch":
            patch = [{"op": "add", "path": "/log", "value": []}, {"op": "add", "path": "/log/-", "value": self.value()}]
            patch.append({"op": dice.choice(["copy", "move"]), "from": "/log", "path": "/a~1b"})
            facts["data"] = apply_patch(facts["data"], patch)
            self.tell(topic, patch=patch)
        elif act == "value":
            facts["data"] = self.document()
            self.tell(topic, value=facts["data"])
        elif act == "status":
            facts["status"] = dice.choice(["live", "stale", "disconnected"])
            self.tell(topic, status=facts["status"])
        elif act == "meta":
            facts["reporter"], meta = (
                dice.choice(["ana", "rui"]),
                {"name": dice.choice("xyz"), "tags": dice.choice([None, ["t"]])},
            )
            facts |= meta
            self.tell(topic, reporter=facts["reporter"], meta=meta)
        elif act == "delete":
            for each in sorted(self.held):
                if (each == topic or each.startswith(topic + "/children/")) and not self.held[each]["deleted"]:
                    self.held[each]["deleted"] = True
                    self.tell(each, deleted=True)
                    self.show(each)
            if dice.random() < 0.3:
                self.stream.append((f"snapshot/{topic}", ""))
        elif act == "show":
            self.show(topic)
        elif act == "restart":
            self.epoch += 1
            for status in ("offline", "online"):
                self.send("gateway/g1", {"status": status, "epoch": self.epoch, "patterns": ["ctxt://home.local/**"]})
            for each in sorted(self.held):
                self.show(each)
        else:
            self.send(dice.choice(["snapshot/", "delta/"]) + topic, dice.choice([None, [], {}, {"epoch": 1}, 5, "x"]))

    def delivered(self) -> list[tuple[str, str]]:
        """With losses, doubles and disorder."""
        dice = self.dice
        kept = [each for each in self.stream if dice.random() > 0.15]
        kept += dice.sample(kept, len(kept) // 5)
        reach = dice.choice([0, 2, 5, 100])
        order = sorted(range(len(kept)), key=lambda at: at + dice.random() * reach)
        return [kept[at] for at in order]


def replayed(stream: list[tuple[str, str]]) -> dict[str, Any]:
    """What Python's Replica tells and holds, as replay.mjs writes it."""
    replica = Replica(jitter=lambda: 0.5)
    events = [
        [told(event) for event in replica.feed(topic, payload.encode(), now)]
        for now, (topic, payload) in enumerate(stream)
    ]
    return {
        "events": events,
        "copies": sorted(map(shown, replica), key=lambda copy: str(copy["url"])),
        "gaps": [url_of(topic) for topic in replica._gaps],
        "ignored": replica.ignored,
        "digest": replica.digest(),
        "due": replica.next_due(),
    }


def test_both_replicas_tell_and_hold_the_same_in_any_disorder(node: str, project: Path) -> None:
    streams = [World(seed).delivered() for seed in range(WORLDS)]
    lines = run(node, project, "replay.mjs", text="".join(json.dumps(stream) + "\n" for stream in streams)).split("\n")[
        :-1
    ]
    assert len(lines) == WORLDS
    kinds: Counter[str] = Counter()
    for seed, (stream, line) in enumerate(zip(streams, lines, strict=True)):
        ours, theirs = replayed(stream), json.loads(line)
        for now, (mine, other) in enumerate(zip(ours["events"], theirs["events"], strict=True)):
            assert same(mine, other), f"world {seed}, message {now}: {stream[now]}"
        assert same(ours, theirs), f"world {seed}"
        kinds.update(event["type"] for events in ours["events"] for event in events)
    # A world in which nothing of the kind happens would prove nothing.
    assert min(kinds[kind] for kind in ("created", "changed", "status", "delegated", "deleted", "gap", "healed")) > 50


def test_nonsense_is_counted_and_never_thrown(node: str, project: Path) -> None:
    text = "".join(json.dumps(World(seed).delivered()) + "\n" for seed in range(WORLDS // 2))
    result: dict[str, int] = json.loads(run(node, project, "fuzz.mjs", text=text))
    assert result["fed"] > 3_000
    assert WORLDS < result["ignored"] < result["fed"]


# ---- types -------------------------------------------------------------------------------------------------------------


def test_the_types_say_what_there_is(node: str, project: Path) -> None:
    checked = (
        "--strict",
        "--noEmit",
        "--module",
        "nodenext",
        "--target",
        "es2022",
        "--types",
        "node",
        "--skipDefaultLibCheck",
    )
    compiler = str(PACKAGES / "typescript" / "bin" / "tsc")
    done = subprocess.run(
        [node, compiler, *checked, "types.ts"], cwd=project, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_types_name_all_that_is_exported_and_nothing_else(node: str, project: Path) -> None:
    listed = """
        import * as all from "ctxt-client";
        const members = (made) => made.prototype
            ? Object.getOwnPropertyNames(made.prototype).filter((name) => name !== "constructor") : [];
        console.log(JSON.stringify(Object.fromEntries(Object.keys(all).map((name) => [name, members(all[name])]))));
    """
    there: dict[str, list[str]] = json.loads(run(node, project, "--input-type=module", "--eval", listed))
    text = (CLIENT / "client.d.ts").read_text()
    declared = re.findall(r"^export (?:function|class|const) (\w+)", text, re.MULTILINE)
    assert sorted(there) == sorted(declared)
    for name, members in there.items():
        body = re.search(rf"^export class {name}\b.*?^}}$", text, re.MULTILINE | re.DOTALL)
        said = set(re.findall(r"^  (?:readonly )?(\w+)", body[0], re.MULTILINE)) if body else set()
        assert set(members) <= said, name
