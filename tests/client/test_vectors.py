"""The scenes that every implementation of the Observer rule plays: `tests/vectors/observer.json`, here with Python's Replica."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.client.replica import (
    Changed,
    Copy,
    Created,
    Delegated,
    Deleted,
    Event,
    GapHealed,
    GapOpened,
    GatewayChanged,
    Replica,
    StatusChanged,
)
from gateway.objects import topic_of, url_of
from gateway.patch import same

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "observer.json"
SCENES: list[dict[str, Any]] = json.loads(VECTORS.read_text())["scenes"] if VECTORS.exists() else []


def told(event: Event) -> dict[str, Any]:
    """An event as the scenes write it."""
    match event:
        case GatewayChanged(gateway, online):
            return {"type": "gateway", "gateway": gateway, "online": online}
        case GapOpened(topic):
            return {"type": "gap", "url": url_of(topic)}
        case GapHealed(topic):
            return {"type": "healed", "url": url_of(topic)}
        case Created(copy):
            what: dict[str, Any] = {"type": "created", "at": [*copy.position], "data": copy.data, "status": copy.status}
        case Changed(copy, before):
            what = {"type": "changed", "at": [*copy.position], "before": [*before.position], "data": copy.data}
            what["paths"] = event.paths
        case StatusChanged(copy, before):
            what = {"type": "status", "at": [*copy.position], "status": copy.status, "before": before.status}
        case Delegated(copy, before):
            what = {"type": "delegated", "at": [*copy.position], "reporter": copy.reporter, "before": before.reporter}
        case Deleted(before):
            what = {"type": "deleted", "before": [*before.position]}
    about = {"url": event.url} if event.parent is None else {"url": event.url, "parent": event.parent}
    return {"type": what.pop("type"), **about, **what}


def shown(copy: Copy) -> dict[str, Any]:
    """A copy as the scenes write it: null members are left out."""
    facts = {
        "url": copy.url,
        "parent": copy.parent,
        "collection": copy.collection,
        "epoch": copy.epoch,
        "version": copy.version,
        "status": copy.status,
        "reporter": copy.reporter,
        "schema": copy.schema,
        "name": copy.name,
        "created": copy.created,
        "modified": copy.modified,
        "description": copy.description,
        "tags": None if copy.tags is None else list(copy.tags),
        "resources": None if copy.resources is None else list(copy.resources),
        "data": copy.data,
    }
    return {key: value for key, value in facts.items() if value is not None}


def payloads(step: dict[str, Any]) -> list[bytes]:
    """What is fed at one step."""
    payload = step["payload"]
    if "versions" in step:
        first, last = step["versions"]
        return [orjson.dumps({**payload, "version": version}) for version in range(first, last + 1)]
    if payload is None:
        return [b""]
    if set(payload) == {"raw"}:
        return [payload["raw"].encode()]
    if set(payload) == {"hex"}:
        return [bytes.fromhex(payload["hex"])]
    return [orjson.dumps(payload)]


def step_of(replica: Replica, step: dict[str, Any]) -> dict[str, Any]:
    """Take one step: what came of it."""
    now = step["at"]
    if "want_resubscribe" in step:
        return {"want_resubscribe": [url_of(topic) for topic in replica.want_resubscribe(now)]}
    if "want_read" in step:
        return {"want_read": replica.want_read(now)}
    if "status" in step:
        return {"status": {url: replica.status(topic_of(url)) for url in step["status"]}}
    events: list[Event] = []
    found: dict[str, Any] = {}
    if "take" in step:
        events = replica.take(step["take"], now)
    elif "gone" in step:
        events = replica.gone(topic_of(step["gone"]))
    elif "compare" in step:
        result = replica.compare(step["compare"], step["asked"], prefix=step.get("prefix", ""))
        events = result.events
        found = {"consistent": result.consistent, "complete": result.complete, "read": result.read}
    else:
        for payload in payloads(step):
            events += replica.feed(step["topic"], payload, now)
    found["events"] = [told(event) for event in events]
    if replica.gaps:
        found["gaps"] = sorted(url_of(topic) for topic in replica.gaps)
    return found


def end_of(replica: Replica) -> dict[str, Any]:
    """What there is at the end of a scene."""
    found: dict[str, Any] = {"copies": sorted(map(shown, replica), key=lambda copy: str(copy["url"]))}
    if replica.ignored:
        found["ignored"] = replica.ignored
    return found | {"digest": replica.digest()}


def play(scene: dict[str, Any], *, record: bool = False) -> None:
    replica = Replica(jitter=lambda: 0.5, prefix=scene.get("prefix", ""))
    for step in scene["steps"]:
        found = step_of(replica, step)
        if record:
            step.update(found)
        for key in ("gaps", *found):
            assert same(found.get(key), step.get(key)), (scene["note"], step, found)
    end = end_of(replica)
    if record:
        scene.update(end)
    for key in ("ignored", *end):
        assert same(end.get(key), scene.get(key)), (scene["note"], end)


@pytest.mark.parametrize("scene", [pytest.param(scene, id=scene["note"]) for scene in SCENES])
def test_a_scene_of_the_observer_rule(scene: dict[str, Any]) -> None:
    play(scene)


def test_there_are_scenes_for_every_sentence_of_the_rule() -> None:
    groups = {scene["group"] for scene in SCENES}
    assert groups == {
        "snapshots",
        "deltas",
        "description",
        "creation",
        "gaps",
        "deletion",
        "children",
        "gateways",
        "nonsense",
        "compare",
    }
    assert len({scene["note"] for scene in SCENES}) == len(SCENES) >= 40
