"""What clients ask of the gateway and of each other, in the pure rooms."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.effects import Effects
from gateway.messages import rfc3339
from gateway.objects import DataObject
from gateway.pending import Item
from gateway.rights import Clients, namespace
from gateway.store import Batch, Store
from tests.world import CATALOGUE, EVERYONE, NOBODY, NOW, World, only

VECTORS = json.loads((Path(__file__).parent / "vectors" / "requests.json").read_text(encoding="utf-8"))
ROOM = "ctxt://home.local/ana/room"
CHAT = "comm://home.local/ana/chat"


def at(seconds: float) -> str:
    return rfc3339(int((NOW + seconds) * 1000))


def closed(**rest: Any) -> World:
    """Everyone has objects below the own name, and nobody else may read them unless admitted."""
    limits = rest.pop("limits", {})
    rest = {"report": EVERYONE, "observe": NOBODY, "execute": only("rui"), "public": True, **rest}
    return World(
        namespace("ctxt://home.local/{client}/**", schema="Context", **rest),
        namespace("comm://home.local/{client}/**", schema="Communication", **rest),
        **limits,
    )


def with_room(**rest: Any) -> World:
    world = closed(**rest)
    world.must("ana", "ana/room", {"values": {"t": {"value": 1}}})
    return world


def with_chat(**rest: Any) -> World:
    world = closed(**rest)
    assert world.request("ana", "create", {"resource": CHAT, "value": {"status": "open"}})["code"] == 201
    return world


def may(world: World, client: str, url: str = ROOM) -> bool:
    return world.rights.may_observe(client, url.replace("://", "/"))


# ---- create ------------------------------------------------------------------------------------------------------------


def test_an_object_is_created_with_all_that_is_said_of_it() -> None:
    world = closed()
    body = {
        "resource": ROOM,
        "value": {"values": {"t": {"value": 1}}},
        "name": "Ana's room",
        "description": "upstairs",
        "tags": ["quiet"],
        "resources": ["climate"],
        "public": True,
    }
    inboxes = world.ask("ana", "create", body)
    (answer,) = inboxes["ana"]
    assert answer["code"] == 201
    snapshot = answer["body"]
    said = {key: snapshot[key] for key in ("url", "name", "description", "tags", "resources", "public", "reporter")}
    assert said == {
        **{key: body[key] for key in body if key not in ("resource", "value")},
        "url": ROOM,
        "reporter": "ana",
    }
    (delta,) = world.deltas()
    assert delta["created"]
    assert delta["value"] == body["value"]
    assert delta["meta"] == {key: body[key] for key in ("name", "description", "tags", "resources", "public")}
    assert may(world, "eva")
    assert not may(world, "anonymous")


def test_the_owner_gets_its_object_as_it_is_and_others_are_refused() -> None:
    world = World(namespace("ctxt://home.local/**", schema="Context", report=EVERYONE, observe=NOBODY))
    world.must("ana", "room", {"values": {"t": {"value": 1}}})
    body = {"resource": "ctxt://home.local/room", "value": {"values": {}}}
    again = world.request("ana", "create", body)
    assert (again["code"], again["body"]["data"]) == (200, {"values": {"t": {"value": 1}}})
    assert not world.deltas()
    other = world.request("eva", "create", body)
    assert other["code"] == 409
    assert "'ana'" in other["description"]


def test_urls_that_the_gateway_makes_are_new_and_cannot_be_guessed() -> None:
    world = World(
        namespace("comm://home.local/**", schema="Communication", report=EVERYONE, observe=EVERYONE),
    )
    body = {"scheme": "comm", "authority": "home.local", "value": {"status": "open"}}
    made = [world.request("ana", "create", body)["body"]["url"] for _ in range(50)]
    assert len(set(made)) == 50
    tails = [url.rsplit("/", 1)[1] for url in made]
    assert all(len(tail) == 26 for tail in tails)
    # All of one moment, and 80 random bits behind it.
    assert len({tail[10:13] for tail in tails}) > 30
    message = world.request(
        "ana", "create", {"parent": made[0], "collection": "messages", "value": {"content": "hi", "type": "chat"}}
    )
    assert message["code"] == 201, message
    assert message["body"]["url"].startswith(made[0] + "/children/messages/ana/")
    assert message["body"]["parent"] == made[0]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"resource": "ctxt://home.local/eva/x"}, 403, "neither observe nor create"),
        ({"resource": "nothing://home.local/ana/x"}, 403, "neither observe nor create"),
        ({"resource": ROOM, "value": {"values": {"t": {"value": None}}}}, 422, "/value"),
        ({"resource": ROOM, "value": {"values": {}}, "schema": "Kontext"}, 404, "Context"),
        ({"resource": ROOM, "value": {"values": {}}, "schema": "Communication"}, 409, "comm://"),
        ({"resource": "not a url"}, 400, "/resource"),
        ({"resource": ROOM, "scheme": "ctxt", "authority": "a"}, 400, ""),
        ({}, 400, ""),
        ({"resource": ROOM, "value": {"values": {}}, "observers": ["x"], "expires": "2020-01-01T00:00:00Z"}, 400, "is over"),
        ({"resource": ROOM, "value": {"values": {}}, "observers": ["no body"]}, 400, "/observers/0"),
    ],
)  # fmt: skip
def test_a_create_that_is_refused_changes_nothing(body: dict[str, Any], code: int, words: str) -> None:
    world = closed()
    answer = world.request("ana", "create", body)
    assert answer["code"] == code, answer
    assert words in answer["description"]
    assert not len(world.objects)
    assert not world.effects.durable()


def test_public_is_refused_where_the_namespace_does_not_permit_it() -> None:
    world = closed(public=False)
    assert world.request("ana", "create", {"resource": ROOM, "value": {"values": {}}, "public": True})["code"] == 403
    assert not len(world.objects)
    world = with_room(public=False)
    assert world.request("ana", "update", {"resource": ROOM, "meta": {"public": True}})["code"] == 403
    assert world.obj("ana/room").version == 1


def test_the_former_reporter_brings_a_deleted_object_back_without_its_grants() -> None:
    world = with_room()
    world.ask("ana", "invite", {"resource": ROOM, "observers": ["rui"]})
    world.request("ana", "delete", {"resource": ROOM})
    assert world.code("ana", "ana/room", {"values": {}}) == 410
    answer = world.request("ana", "create", {"resource": ROOM, "value": {"values": {}}})
    assert (answer["code"], answer["body"]["version"]) == (201, 3)
    assert world.effects.lost == {"rui"}
    assert not may(world, "rui")
    assert world.must("ana", "ana/room", {"values": {"t": {"value": 2}}})[0]["version"] == 4
    # Its tombstone has gone: nothing is purged when it would have been over.
    world.tick(90_000)
    assert not world.effects.purged
    world.request("ana", "delete", {"resource": ROOM})
    world.tick(90_000)
    assert [obj.url for obj in world.effects.purged] == [ROOM]


def test_the_id_of_a_deleted_child_does_not_come_back_while_its_tombstone_stands() -> None:
    world = with_chat()
    child = CHAT + "/children/messages/ana/one"
    value = {"content": "hi", "type": "chat"}
    assert world.request("ana", "create", {"resource": child, "value": value})["code"] == 201
    world.request("ana", "delete", {"resource": child})
    assert world.request("ana", "create", {"resource": child, "value": value})["code"] == 410
    world.tick(90_000)
    assert world.request("ana", "create", {"resource": child, "value": value})["code"] == 201


# ---- update ------------------------------------------------------------------------------------------------------------


def test_an_update_changes_data_or_what_the_object_says_of_itself() -> None:
    world = with_room()
    answer = world.request("ana", "update", {"resource": ROOM, "merge": {"values": {"t": {"value": 2}}}})
    assert answer["body"] == {"url": ROOM, "epoch": world.engine.epoch, "version": 2}
    patch = [{"op": "replace", "path": "/values/t/value", "value": 3}]
    assert world.request("ana", "update", {"resource": ROOM, "patch": patch})["body"]["version"] == 3
    answer = world.request("ana", "update", {"resource": ROOM, "meta": {"name": "den", "tags": ["quiet"]}})
    assert answer["body"]["version"] == 4
    assert world.deltas()[0]["meta"] == {"name": "den", "tags": ["quiet"]}
    world.request("ana", "update", {"resource": ROOM, "meta": {"tags": None}})
    obj = world.obj("ana/room")
    assert (obj.name, obj.tags, obj.document()) == ("den", None, {"values": {"t": {"value": 3}}})


def test_an_update_for_another_version_is_refused_unless_only_the_status_has_changed() -> None:
    world = with_room(stale_after=10)
    change = {"resource": ROOM, "merge": {"values": {"t": {"value": 2}}}}
    world.tick(11)
    assert world.obj("ana/room").version == 2
    assert world.request("ana", "update", {**change, "version": 0})["code"] == 409
    assert world.request("ana", "update", {**change, "version": 1})["code"] == 200
    assert world.request("ana", "update", {**change, "version": 2})["code"] == 409
    assert world.request("ana", "update", {**change, "version": 3})["code"] == 200


@pytest.mark.parametrize(
    ("who", "body", "code"),
    [
        ("rui", {"merge": {"values": {}}}, 403),
        ("ana", {"merge": {"values": 1}}, 422),
        ("ana", {"patch": [{"op": "remove", "path": "/nothing"}]}, 409),
        ("ana", {"meta": {}}, 400),
        ("ana", {"meta": {"reporter": "eva"}}, 400),
        ("ana", {"merge": {}, "patch": []}, 400),
    ],
)
def test_an_update_that_is_refused_changes_nothing(who: str, body: dict[str, Any], code: int) -> None:
    world = with_room()
    assert world.request(who, "update", {"resource": ROOM, **body})["code"] == code
    assert world.obj("ana/room").version == 1
    counted = world.engine.counters
    assert counted.reports - counted.unchanged - counted.refused.total() == 1


def test_public_opens_an_object_and_closes_it_again() -> None:
    world = with_room()
    asked = world.ask("rui", "subscribe", {"resource": ROOM})
    assert asked["rui"][0]["code"] == 202
    world.ask("ana", "update", {"resource": ROOM, "meta": {"public": True}}, "u")
    inboxes = world.inboxes()
    assert inboxes["rui"][0]["code"] == 200
    assert world.effects.everyone
    assert may(world, "eva")
    assert "snapshot/ctxt/home.local/ana/room" in world.rights.permissions("eva").receive
    assert "snapshot/ctxt/home.local/ana/room" not in world.rights.permissions("anonymous").receive
    world.ask("ana", "update", {"resource": ROOM, "meta": {"public": False}})
    assert world.effects.shut == [world.obj("ana/room")]
    assert not may(world, "eva")


# ---- subscribe ---------------------------------------------------------------------------------------------------------


def test_a_subscription_is_asked_and_accepted() -> None:
    world = with_room()
    asked = world.ask("rui", "subscribe", {"resource": ROOM}, "s1")
    (waiting,) = asked["rui"]
    assert (waiting["id"], waiting["code"]) == ("s1", 202)
    (item,) = asked["ana"]
    assert item == {
        "id": waiting["body"]["request"],
        "type": "subscription",
        "resource": ROOM,
        "from": "rui",
        "created": at(0),
        "expires": at(86_400),
    }
    decided = world.ask("ana", "accept", {"request": item["id"], "expires": at(60)}, "a1")
    assert decided["ana"][0]["body"] == {"url": ROOM, "client": "rui"}
    (answer,) = decided["rui"]
    assert (answer["id"], answer["code"], answer["body"]["url"]) == ("s1", 200, ROOM)
    assert not world.effects.replies, "nobody is answered before the broker goes by the grant"
    assert may(world, "rui")
    assert world.ask("ana", "accept", {"request": item["id"]})["ana"][0]["code"] == 410
    world.tick(61)
    assert not may(world, "rui")


def test_a_subscription_is_refused_or_never_decided() -> None:
    world = with_room()
    item = world.ask("rui", "subscribe", {"resource": ROOM}, "s1")["ana"][0]
    decided = world.ask("ana", "reject", {"request": item["id"], "description": "family only"})
    assert decided["rui"][0]["code"] == 403
    assert "family only" in decided["rui"][0]["description"]
    world.ask("rui", "subscribe", {"resource": ROOM, "timeout": 30}, "s2")
    world.tick(29)
    assert not world.inboxes()
    world.tick(2)
    assert [(each["id"], each["code"]) for each in world.inboxes()["rui"]] == [("s2", 408)]
    assert not may(world, "rui")


def test_only_the_reporter_decides() -> None:
    world = with_room()
    item = world.ask("rui", "subscribe", {"resource": ROOM})["ana"][0]
    for who, kind in (("rui", "accept"), ("eva", "accept"), ("eva", "reject")):
        assert world.request(who, kind, {"request": item["id"]})["code"] == 410
    assert not may(world, "rui")


def test_a_repeat_sends_nothing_and_the_newer_request_is_answered() -> None:
    world = with_room()
    first = world.ask("rui", "subscribe", {"resource": ROOM}, "s1")
    again = world.ask("rui", "subscribe", {"resource": ROOM}, "s2")
    assert "ana" not in again
    assert again["rui"][0]["body"] == first["rui"][0]["body"]
    decided = world.ask("ana", "accept", {"request": first["ana"][0]["id"]})
    assert [each["id"] for each in decided["rui"]] == ["s2"]


@pytest.mark.parametrize(("policy", "code"), [("auto", 200), ("ask", 202), ("closed", 403)])
def test_an_objects_policy_decides_for_its_reporter(policy: str, code: int) -> None:
    world = with_room()
    assert world.request("ana", "update", {"resource": ROOM, "meta": {"policy": policy}})["code"] == 200
    inboxes = world.ask("rui", "subscribe", {"resource": ROOM})
    assert inboxes["rui"][0]["code"] == code
    assert ("ana" in inboxes) is (policy == "ask")
    assert may(world, "rui") is (policy == "auto")


def test_who_may_not_ask_learns_nothing() -> None:
    world = with_room(ask=only("rui"))
    there = world.request("eva", "subscribe", {"resource": ROOM})
    missing = world.request("eva", "subscribe", {"resource": ROOM[:-4] + "none"})
    assert (there["code"], missing["code"]) == (403, 403)
    assert there["description"].replace(ROOM, "") == missing["description"].replace(ROOM[:-4] + "none", "")
    for kind, more in (("read", {}), ("delete", {}), ("execute", {"method": "on"}), ("update", {"merge": {}})):
        there = world.request("eva", kind, {"resource": ROOM, **more})
        missing = world.request("eva", kind, {"resource": ROOM[:-4] + "none", **more})
        assert (there["code"], missing["code"]) == (403, 403), kind
    assert world.request("rui", "subscribe", {"resource": ROOM[:-4] + "none"})["code"] == 404


def test_no_inbox_can_be_flooded() -> None:
    world = closed(limits={"pending_per_sender": 3, "pending_per_receiver": 7, "requests_per_second": 0})
    for i in range(20):
        world.must("ana", f"ana/r{i}", {"values": {}})
    codes: dict[str, list[int]] = {}
    told = 0
    for who in ("m1", "m2", "m3", "m4"):
        for i in range(20):
            inboxes = world.ask(who, "subscribe", {"resource": f"ctxt://home.local/ana/r{i}"})
            codes.setdefault(who, []).append(inboxes[who][0]["code"])
            told += len(inboxes.get("ana", ()))
    assert told == 7
    assert {who: found.count(202) for who, found in codes.items()} == {"m1": 3, "m2": 3, "m3": 1, "m4": 0}
    assert {code for found in codes.values() for code in found} == {202, 429}
    # Whoever invents names to invite has a limit of its own.
    world = with_room(limits={"pending_sent": 5})
    answer = world.ask("ana", "invite", {"resource": ROOM, "observers": [f"c{i}" for i in range(9)]})["ana"][0]
    assert len(answer["body"]["untold"]) == 4


# ---- invite, revoke ----------------------------------------------------------------------------------------------------


def test_who_is_invited_may_observe_and_is_told() -> None:
    world = with_room()
    inboxes = world.ask("ana", "invite", {"resource": ROOM, "observers": ["rui", "eva", "ana"], "expires": at(3600)})
    assert inboxes["ana"][0]["body"] == {"url": ROOM, "invited": ["rui", "eva"]}
    assert may(world, "rui")
    assert may(world, "eva")
    item = inboxes["rui"][0]
    assert (item["type"], item["from"], item["expires"]) == ("invitation", "ana", at(3600))
    assert world.request("rui", "accept", {"request": item["id"]})["body"]["url"] == ROOM
    world.ask("eva", "reject", {"request": inboxes["eva"][0]["id"]})
    assert may(world, "rui")
    assert not may(world, "eva")
    world.tick(3601)
    assert not may(world, "rui")


def test_an_invitation_ends_with_its_grant() -> None:
    world = with_room()
    item = world.ask("ana", "invite", {"resource": ROOM, "observers": ["rui"]})["rui"][0]
    again = world.ask("ana", "invite", {"resource": ROOM, "observers": ["rui"], "expires": at(60)})
    assert "rui" not in again
    world.tick(61)
    assert not may(world, "rui")
    assert world.request("rui", "accept", {"request": item["id"]})["code"] == 410
    assert world.request("rui", "resume", {})["body"]["pending"] == []


def test_a_grant_is_given_back_or_taken_back() -> None:
    world = with_room()
    world.ask("ana", "invite", {"resource": ROOM, "observers": ["rui", "eva"]})
    assert world.ask("rui", "unsubscribe", {"resource": ROOM})["rui"][0]["body"] == {"url": ROOM, "observes": False}
    assert world.effects.lost == {"rui"}
    inboxes = world.ask("ana", "unsubscribe", {"resource": ROOM, "client": "eva"})
    assert inboxes["ana"][0]["body"] == {"url": ROOM, "client": "eva", "observes": False}
    (told,) = inboxes["eva"]
    assert (told["type"], told["resource"], told["from"]) == ("revoked", ROOM, "ana")
    assert not may(world, "eva")
    assert world.request("ana", "unsubscribe", {"resource": ROOM, "client": "eva"})["code"] == 404
    assert world.request("rui", "unsubscribe", {"resource": ROOM, "client": "eva"})["code"] == 403
    assert not world.engine.sharing.waiting.to("eva")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("invite", {"resource": ROOM, "observers": ["rui", "anonymous"]}),
        ("delegate", {"resource": ROOM, "to": "anonymous"}),
        ("create", {"resource": ROOM + "2", "value": {"values": {}}, "observers": ["anonymous"]}),
    ],
)
def test_clients_without_a_name_are_granted_nothing(kind: str, body: dict[str, Any]) -> None:
    world = with_room()
    assert world.request("ana", kind, body)["code"] == 400
    assert not world.effects.durable()
    assert not may(world, "rui")
    assert not may(world, "anonymous")


def test_an_invitation_that_was_taken_back_cannot_be_accepted() -> None:
    world = with_room()
    item = world.ask("ana", "invite", {"resource": ROOM, "observers": ["rui"]})["rui"][0]
    world.ask("ana", "unsubscribe", {"resource": ROOM, "client": "rui"})
    assert world.request("rui", "accept", {"request": item["id"]})["code"] == 410
    assert not may(world, "rui")


def test_what_waits_is_found_again_and_sent_again() -> None:
    world = with_room()
    item = world.ask("rui", "subscribe", {"resource": ROOM})["ana"][0]
    world.ask("ana", "invite", {"resource": ROOM, "observers": ["eva"]})
    found = world.request("ana", "resume", {})["body"]
    assert found["pending"] == [item]
    assert found["objects"][0]["observers"] == {"eva": None}
    mine = world.request("eva", "resume", {})["body"]
    assert [each["url"] for each in mine["grants"]] == [ROOM]
    assert mine["pending"][0]["type"] == "invitation"
    world.presence("ana", online=True)
    assert world.inboxes()["ana"] == [item]


def test_resume_is_paged() -> None:
    world = closed(limits={"creations_per_minute": 0})
    for i in range(1_200):
        world.must("ana", f"ana/r{i:04}", {"values": {}})
    pages: list[int] = []
    after: dict[str, str] = {}
    while True:
        body = world.request("ana", "resume", after)["body"]
        pages.append(len(body["objects"]))
        assert ("pending" in body) is (not after)
        if "next" not in body:
            break
        after = {"after": body["next"]}
    assert pages == [500, 500, 200]


# ---- delegate ----------------------------------------------------------------------------------------------------------


def test_ownership_moves_when_the_next_reporter_accepts() -> None:
    world = with_room()
    world.ask("rui", "subscribe", {"resource": ROOM}, "s")
    inboxes = world.ask("ana", "delegate", {"resource": ROOM, "to": "eva"}, "d")
    assert inboxes["ana"][0]["code"] == 202
    item = inboxes["eva"][0]
    assert item["type"] == "delegation"
    assert world.obj("ana/room").reporter == "ana"
    assert world.code("eva", "ana/room", {"values": {}}) == 403
    decided = world.ask("eva", "accept", {"request": item["id"]}, "a")
    answers = {each["id"]: each for each in decided["eva"] if each["type"] == "response"}
    assert answers["a"]["body"]["reporter"] == "eva"
    (final,) = decided["ana"]
    assert (final["id"], final["code"], final["body"]["reporter"]) == ("d", 200, "eva")
    assert [delta.get("reporter") for delta in world.deltas()] == ["eva"]
    # What was asked of the former Reporter is the new one's to decide.
    (moved,) = (each for each in decided["eva"] if each["type"] == "subscription")
    assert world.code("ana", "ana/room", {"values": {"t": {"value": 9}}}) == 403
    assert world.must("eva", "ana/room", {"values": {"t": {"value": 9}}})
    assert world.ask("eva", "accept", {"request": moved["id"]})["rui"][0]["id"] == "s"


def test_a_delegation_is_refused_never_decided_or_offered_to_one_only() -> None:
    world = with_room()
    item = world.ask("ana", "delegate", {"resource": ROOM, "to": "eva"}, "d")["eva"][0]
    assert world.request("ana", "delegate", {"resource": ROOM, "to": "rui"})["code"] == 409
    assert world.ask("eva", "reject", {"request": item["id"]})["ana"][0]["code"] == 403
    item = world.ask("ana", "delegate", {"resource": ROOM, "to": "eva"}, "d1")["eva"][0]
    withdrawn = world.ask("ana", "reject", {"request": item["id"]}, "w")
    assert [(each["id"], each["code"]) for each in withdrawn["ana"]] == [("w", 200)]
    assert world.request("eva", "accept", {"request": item["id"]})["code"] == 410
    world.ask("ana", "delegate", {"resource": ROOM, "to": "eva", "timeout": 5}, "d2")
    world.tick(6)
    assert [each["code"] for each in world.inboxes()["ana"]] == [408]
    assert world.obj("ana/room").reporter == "ana"
    assert world.request("ana", "delegate", {"resource": ROOM, "to": "ana"})["code"] == 409
    assert world.request("rui", "delegate", {"resource": ROOM, "to": "rui"})["code"] == 403


# ---- execute -----------------------------------------------------------------------------------------------------------


def with_observer() -> World:
    world = with_room()
    world.ask("ana", "invite", {"resource": ROOM, "observers": ["rui", "eva"]})
    return world


def test_an_action_reaches_the_reporter_and_its_answer_comes_back() -> None:
    world = with_observer()
    inboxes = world.ask("rui", "execute", {"resource": ROOM, "method": "dim", "params": {"level": 40}}, "e")
    assert "rui" not in inboxes
    (action,) = inboxes["ana"]
    assert (action["type"], action["method"], action["params"], action["from"]) == (
        "action",
        "dim",
        {"level": 40},
        "rui",
    )
    assert action["expires"] == at(10)
    (sent,) = world.effects.replies
    assert (sent.qos, sent.expiry) == (0, 10)
    done = world.ask("ana", "response", {"id": action["id"], "code": 200, "body": {"level": 40}})
    assert done["rui"] == [{"id": "e", "type": "response", "code": 200, "body": {"level": 40}}]
    assert done["ana"][0]["code"] == 200
    assert world.request("ana", "response", {"id": action["id"], "code": 200})["code"] == 410


def test_an_error_comes_back_and_silence_is_504() -> None:
    world = with_observer()
    action = world.ask("rui", "execute", {"resource": ROOM, "method": "on", "idempotent": True}, "e")["ana"][0]
    assert world.effects.replies[0].qos == 1
    failed = world.ask("ana", "response", {"id": action["id"], "code": 503, "description": "no power"})
    assert (failed["rui"][0]["code"], failed["rui"][0]["description"]) == (503, "no power")
    action = world.ask("rui", "execute", {"resource": ROOM, "method": "on", "timeout": 2}, "f")["ana"][0]
    world.tick(3)
    assert [(each["id"], each["code"]) for each in world.inboxes()["rui"]] == [("f", 504)]
    assert world.request("ana", "response", {"id": action["id"], "code": 200})["code"] == 410


def test_only_who_has_the_right_asks_and_only_the_reporter_answers() -> None:
    world = with_observer()
    refused = world.ask("eva", "execute", {"resource": ROOM, "method": "on"})
    assert refused["eva"][0]["code"] == 403
    assert "ana" not in refused
    action = world.ask("rui", "execute", {"resource": ROOM, "method": "on"})["ana"][0]
    for who in ("rui", "eva"):
        assert world.request(who, "response", {"id": action["id"], "code": 200})["code"] == 410


# ---- children ----------------------------------------------------------------------------------------------------------


def test_an_observers_child_is_its_own_and_the_rooms_owner_may_delete_it() -> None:
    world = with_chat()
    world.ask("ana", "invite", {"resource": CHAT, "observers": ["rui", "eva"]})
    child = CHAT + "/children/messages/rui/one"
    value = {"content": "hi", "type": "chat"}
    assert world.request("eva", "create", {"resource": child, "value": value})["code"] == 403
    assert world.request("rui", "create", {"resource": child, "value": value})["code"] == 201
    assert world.request("zoe", "create", {"parent": CHAT, "collection": "messages", "value": value})["code"] == 403
    for who, code in (("eva", 403), ("ana", 403), ("rui", 200)):
        assert world.request(who, "update", {"resource": child, "merge": {"content": "ho"}})["code"] == code
    assert world.request("eva", "delete", {"resource": child})["code"] == 403
    assert world.request("ana", "delete", {"resource": child})["code"] == 200


def test_who_does_not_moderate_does_not_delete_others_children() -> None:
    world = with_chat(moderate=False)
    world.ask("ana", "invite", {"resource": CHAT, "observers": ["rui"]})
    child = CHAT + "/children/messages/rui/one"
    world.request("rui", "create", {"resource": child, "value": {"content": "hi", "type": "chat"}})
    assert world.request("ana", "delete", {"resource": child})["code"] == 403
    assert world.request("ana", "delete", {"resource": CHAT})["code"] == 200
    assert [delta.get("deleted") for delta in world.deltas()] == [True, True]


def test_where_a_collection_is_full_the_oldest_of_ones_own_goes() -> None:
    world = with_chat(limits={"children_per_collection": 3, "children_when_full": "oldest"})
    world.ask("ana", "invite", {"resource": CHAT, "observers": ["rui"]})

    def say(who: str, name: str) -> int:
        world.now += 1
        body = {"resource": f"{CHAT}/children/messages/{who}/{name}", "value": {"content": name, "type": "chat"}}
        return int(world.request(who, "create", body)["code"])

    assert say("ana", "first") == 201
    assert [say("rui", str(i)) for i in range(6)] == [201] * 6
    left = [
        child.url.rsplit("/", 2)[1:] for child in world.objects.children(CHAT.replace("://", "/")) if not child.deleted
    ]
    assert left == [["ana", "first"], ["rui", "3"], ["rui", "4"], ["rui", "5"]]


# ---- the end of an object ----------------------------------------------------------------------------------------------


def test_what_was_asked_about_an_object_dies_with_it() -> None:
    world = with_room()
    world.ask("rui", "subscribe", {"resource": ROOM}, "s")
    world.ask("ana", "invite", {"resource": ROOM, "observers": ["eva"]})
    world.ask("ana", "delegate", {"resource": ROOM, "to": "zoe"}, "d")
    inboxes = world.ask("ana", "delete", {"resource": ROOM}, "x")
    assert [(each["id"], each["code"]) for each in inboxes["rui"]] == [("s", 410)]
    assert {each["id"]: each["code"] for each in inboxes["ana"]} == {"d": 410, "x": 200}
    assert not len(world.engine.sharing.waiting)


# ---- the store ---------------------------------------------------------------------------------------------------------


def test_what_waits_survives_a_restart(tmp_path: Any) -> None:
    world = with_room()
    store = Store(tmp_path)

    def save(effects: Effects) -> None:
        store.commit(Batch(effects.touched, effects.heads, effects.purged, pending=effects.pending))

    effects = Effects()
    effects.touched[world.obj("ana/room")] = None
    world.obj("ana/room").render()
    save(effects)
    item = world.ask("rui", "subscribe", {"resource": ROOM}, "s")["ana"][0]
    save(world.effects)
    gone = world.ask("eva", "subscribe", {"resource": ROOM})["ana"][0]
    save(world.effects)
    world.ask("ana", "reject", {"request": gone["id"]})
    save(world.effects)
    world.request("ana", "update", {"resource": ROOM, "meta": {"policy": "closed"}})
    save(world.effects)
    store.close()
    store = Store(tmp_path)
    loaded = store.load(CATALOGUE, 10)
    store.close()
    assert [found.message() for found in loaded.pending] == [item]
    assert isinstance(loaded.pending[0], Item)
    assert loaded.pending[0].asked.request == "s"
    (obj,) = loaded.objects
    assert isinstance(obj, DataObject)
    assert obj.policy == "closed"


# ---- nonsense ----------------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.sampled_from([ROOM, CHAT, CHAT + "/children/messages/ana/1", "ana", "rui", "id", "*", "anonymous", at(60), "0001-01-01T00:00:00+23:59"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
EXAMPLES = [
    (kind, example)
    for kind, form in CATALOGUE.messages.items()
    if kind != "request"
    for example in form.document["examples"]
]


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(EXAMPLES), st.data(), st.sampled_from(["ana", "rui"])), min_size=1, max_size=6)
)
def test_no_body_breaks_the_gateway(asked: list[tuple[tuple[str, dict[str, Any]], Any, str]]) -> None:
    world = with_room(observe=only("rui"))
    world.request("ana", "create", {"resource": CHAT, "value": {"status": "open"}, "policy": "auto"})
    for (kind, example), data, client in asked:
        body = dict(example)
        for key in data.draw(st.sets(st.sampled_from(sorted(body) or ["resource"]), max_size=2)):
            body[key] = data.draw(values)
        if "resource" in body and data.draw(st.booleans()):
            body["resource"] = data.draw(st.sampled_from([ROOM, CHAT]))
        version = world.obj("ana/room").version
        inboxes = world.ask(client, kind, body)
        for work in world.effects.work:
            assert [step for step in work if step is not None]
        codes = [message["code"] for message in inboxes.get(client, ()) if message["type"] == "response"]
        assert all(code in range(200, 600) for code in codes)
        if codes and codes[0] >= 400:
            assert world.obj("ana/room").version == version
            assert not world.effects.deltas


# ---- vectors -----------------------------------------------------------------------------------------------------------


def without_texts(message: dict[str, Any]) -> dict[str, Any]:
    """A message but for what is told to people."""
    if message["type"] in ("response", "rejection"):
        message = {key: value for key, value in message.items() if key != "description"}
    body = message.get("body")
    if isinstance(body, dict) and "refused" in body:
        refused = [{"url": each["url"], "code": each["code"]} for each in body["refused"]]
        message = {**message, "body": {**body, "refused": refused}}
    return message


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["name"]).partition(":")[0])
def test_what_comes_out_is_what_the_vectors_say(case: dict[str, Any]) -> None:
    def clients(names: list[str]) -> Clients:
        return EVERYONE if names == ["*"] else only(*names)

    spaces = []
    for each in VECTORS["settings"]["namespace"]:
        lists = {key: clients(each[key]) for key in ("report", "observe", "execute", "ask") if key in each}
        public = each.get("public", False)
        spaces.append(namespace(each["match"], schema=each["schema"], public=public, **lists))
    world = World(*spaces, now=VECTORS["start"], epoch=VECTORS["epoch"])
    numbers = count(1)
    world.engine.mint = lambda _now: f"id-{next(numbers)}"
    for step in case["steps"]:
        world.effects = Effects()
        if "wait" in step:
            world.now += step["wait"]
            world.engine.tick(world.effects, world.now)
        elif "report" in step:
            topic = step["report"].replace("://", "/", 1)
            payload = json.dumps(step["payload"]).encode()
            world.engine.report(world.effects, step["client"], topic, payload, world.now)
        else:
            payload = json.dumps(step["request"]).encode()
            world.engine.requests.take(world.effects, step["client"], payload, world.now)
        world.engine.seal(world.effects)
        for work in world.effects.work:
            world.effects.replies += [reply for reply in work if reply is not None]
        expected: dict[str, list[dict[str, Any]]] = {}
        for client, message in step["inbox"]:
            expected.setdefault(client, []).append(without_texts(message))
        told = {client: [without_texts(each) for each in inbox] for client, inbox in world.inboxes().items()}
        assert told == expected, step
        assert [[obj.url, json.loads(delta)] for obj, delta in world.effects.deltas] == step["deltas"]
