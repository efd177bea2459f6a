"""The steps of the Reporter-Observer pattern over real sockets, on the broker inside and beside a mosquitto that goes by the rights."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from gateway.client.replica import Replica
from gateway.ulid import ulid
from tests.acl.brokers_mosquitto import beside_mosquitto
from tests.inside import Client, Inside, inside
from tests.running import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PEOPLE = ("ana", "rui", "eva", "zoe", "leo")
SETTINGS = """
[[namespace]]
match = "comm://home.local/{client}/**"
schema = "Communication"
report = ["*"]

[[namespace]]
match = "ctxt://home.local/{client}/**"
report = ["*"]
execute = ["rui"]
public = true

[[namespace]]
match = "ctxt://secret.local/{client}/**"
report = ["*"]
ask = ["rui"]

[limits]
requests_per_second = 10000
request_burst = 10000
"""
QUIET = 0.4
"""Seconds in which what should not have been delivered would have come."""


class House:
    """A gateway, and people who are connected to its broker."""

    def __init__(self, gateway: Inside, port: int) -> None:
        self.gateway = gateway
        self.port = port
        self.people: dict[str, Client] = {}
        for name in PEOPLE:
            getattr(self, name)

    def __getattr__(self, name: str) -> Client:
        if name not in PEOPLE:
            raise AttributeError(name)
        if name not in self.people:
            client = self.people[name] = Client(self.port, name)
            client.subscribe(f"inbox/{name}")
        return self.people[name]

    def ask(self, who: Client, kind: str, body: dict[str, Any]) -> str:
        """Send a request; its id."""
        request = ulid(time.time())
        who.publish(f"request/{who.name}", {"id": request, "type": kind, "body": body})
        return request

    def answers(self, who: Client, request: str, count: int = 1) -> list[dict[str, Any]]:
        """The answers to a request, once there are so many."""
        return found(who, lambda m: m.get("id") == request and m["type"] == "response", count)

    def do(self, who: Client, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request and its first answer."""
        return self.answers(who, self.ask(who, kind, body))[0]

    def must(self, who: Client, kind: str, body: dict[str, Any]) -> Any:
        answer = self.do(who, kind, body)
        assert answer["code"] in (200, 201, 202), answer
        return answer.get("body")

    def chat(self, *observers: str) -> str:
        """A conversation of Ana's."""
        url = f"comm://home.local/ana/{ulid(time.time())}"
        body: dict[str, Any] = {"resource": url, "value": {"status": "open"}}
        if observers:
            body["observers"] = list(observers)
        return str(self.must(self.ana, "create", body)["url"])

    def leave(self, name: str) -> None:
        self.people.pop(name).close()

    def close(self) -> None:
        for client in self.people.values():
            client.close()
        self.people.clear()


def found(who: Client, fits: Callable[[dict[str, Any]], bool], count: int = 1) -> list[dict[str, Any]]:
    """Messages in somebody's inbox, once there are so many."""

    def look() -> list[dict[str, Any]]:
        inbox = (payload for topic, payload, _, _ in list(who.heard) if topic == f"inbox/{who.name}")
        fitting = [message for payload in inbox if fits(message := json.loads(payload))]
        return fitting if len(fitting) >= count else []

    result: list[dict[str, Any]] = who.wait(look, 20)
    return result


def note(who: Client, kind: str, url: str) -> dict[str, Any]:
    """The last message of a kind about an object."""
    return found(who, lambda m: m["type"] == kind and m["resource"] == url)[-1]


def watch(who: Client, url: str) -> None:
    """Observe an object with its children, as the rule says."""
    topic = url.replace("://", "/")
    filters = [f"{verb}/{topic}{rest}" for verb in ("snapshot", "delta") for rest in ("", "/children/#")]
    assert all(code < 0x80 for code in who.subscribe(*filters))


def deltas(who: Client, url: str, since: int = 0) -> list[dict[str, Any]]:
    topic = "delta/" + url.replace("://", "/")
    return [json.loads(payload) for name, payload, _, _ in list(who.heard)[since:] if name.startswith(topic)]


def replica(who: Client) -> Replica:
    """What an Observer holds after everything that it has heard."""
    held = Replica(jitter=lambda: 0.5)
    for topic, payload, _, _ in list(who.heard):
        if topic.startswith(("snapshot/", "delta/")):
            held.feed(topic, payload, time.monotonic())
    return held


def texts(who: Client, url: str) -> list[str]:
    """What was said in a conversation and is still there, in the order of saying."""
    head = url + "/children/messages/"
    held = [copy for copy in replica(who) if copy.url.startswith(head) and not copy.deleted]
    return [copy.data["content"] for copy in sorted(held, key=lambda copy: copy.data["content"])]


def hears(who: Client, url: str, *expected: str) -> None:
    """Somebody holds exactly these messages of a conversation, sooner or later."""
    who.wait(lambda: texts(who, url) == list(expected), 20)


def holds(who: Client, url: str) -> None:
    """Somebody has a copy, sooner or later."""
    who.wait(lambda: replica(who).get(url.replace("://", "/")))


def say(house: House, who: Client, url: str, text: str) -> str:
    body = {"parent": url, "collection": "messages", "value": {"type": "chat", "content": text}}
    return str(house.must(who, "create", body)["url"])


@pytest.fixture(scope="module", params=["inside", "mosquitto"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Inside, int]]:
    folder = tmp_path_factory.mktemp("pattern")
    if request.param == "inside":
        with inside(folder, SETTINGS, *PEOPLE) as gateway:
            yield gateway, gateway.port
    else:
        need("mosquitto", "mosquitto")
        with beside_mosquitto(folder, SETTINGS, *PEOPLE) as (gateway, broker):
            yield gateway, broker.port


@pytest.fixture
def house(site: tuple[Inside, int]) -> Iterator[House]:
    made = House(*site)
    yield made
    made.close()


# ---- the steps ---------------------------------------------------------------------------------------------------------


def test_create_invite_subscribe_update(house: House) -> None:
    url = house.chat("rui")
    invited = note(house.rui, "invitation", url)
    assert invited["from"] == "ana"
    assert house.must(house.rui, "accept", {"request": invited["id"]})["data"] == {"status": "open"}
    assert house.must(house.rui, "subscribe", {"resource": url})["url"] == url
    watch(house.rui, url)
    house.must(house.ana, "update", {"resource": url, "merge": {"status": "paused"}})
    house.ana.publish(f"report/ana/{url.replace('://', '/')}", {"status": "closed"})
    house.rui.wait(lambda: any(d.get("merge") == {"status": "closed"} for d in deltas(house.rui, url)))
    (copy,) = replica(house.rui)
    assert (copy.data, copy.version) == ({"status": "closed"}, 3)


def test_a_subscription_is_asked_and_accepted(house: House) -> None:
    url = house.chat()
    request = house.ask(house.rui, "subscribe", {"resource": url})
    assert house.answers(house.rui, request)[0]["code"] == 202
    house.must(house.ana, "accept", {"request": note(house.ana, "subscription", url)["id"]})
    assert [answer["code"] for answer in house.answers(house.rui, request, 2)] == [202, 200]
    # Answered means: the broker lets it read.
    watch(house.rui, url)
    holds(house.rui, url)


def test_a_subscription_is_asked_and_refused(house: House) -> None:
    url = house.chat()
    request = house.ask(house.rui, "subscribe", {"resource": url})
    wish = note(house.ana, "subscription", url)
    house.must(house.ana, "reject", {"request": wish["id"], "description": "not today"})
    answers = house.answers(house.rui, request, 2)
    assert answers[1]["code"] == 403
    assert "not today" in answers[1]["description"]


def test_a_subscription_is_asked_and_timed_out(house: House) -> None:
    url = house.chat()
    request = house.ask(house.rui, "subscribe", {"resource": url, "timeout": 0.5})
    assert [answer["code"] for answer in house.answers(house.rui, request, 2)] == [202, 408]
    assert house.do(house.rui, "read", {"resource": url})["code"] == 403


def test_read_by_the_unauthorised_tells_nothing(house: House) -> None:
    there = "ctxt://secret.local/ana/plan"
    house.ana.publish("report/ana/ctxt/secret.local/ana/plan", {"values": {"t": {"value": 4711}}})
    house.ana.wait(lambda: house.do(house.ana, "read", {"resource": there})["code"] == 200)
    missing = "ctxt://secret.local/ana/none"
    eva = house.eva
    watch_codes = eva.subscribe(f"snapshot/{there.replace('://', '/')}", f"delta/{there.replace('://', '/')}")
    for kind in ("read", "subscribe", "delete", "update", "unsubscribe"):
        more: dict[str, Any] = {"merge": {}} if kind == "update" else {}
        answers = [house.do(eva, kind, {"resource": url, **more}) for url in (there, missing)]
        told = [
            json.dumps({**answer, "id": ""}).replace(url, "")
            for answer, url in zip(answers, (there, missing), strict=True)
        ]
        assert told[0] == told[1], kind
    listed = house.must(eva, "discover", {"prefix": "ctxt://secret.local"})
    assert listed["objects"] == []
    house.ana.publish("report/ana/ctxt/secret.local/ana/plan", {"values": {"t": {"value": 4712}}})
    time.sleep(QUIET)
    assert not [payload for _, payload, _, _ in eva.heard if b"471" in payload], watch_codes


def test_the_reporter_resumes(house: House) -> None:
    url = house.chat()
    request = house.ask(house.eva, "subscribe", {"resource": url})
    house.answers(house.eva, request)
    house.leave("ana")
    asked = house.ask(house.rui, "subscribe", {"resource": url})
    house.answers(house.rui, asked)
    resumed = house.must(house.ana, "resume", {})
    assert url in [each["url"] for each in resumed["objects"]]
    waiting = {item["from"]: item["id"] for item in resumed["pending"] if item["resource"] == url}
    assert waiting.keys() == {"eva", "rui"}
    house.must(house.ana, "accept", {"request": waiting["rui"]})
    assert house.answers(house.rui, asked, 2)[1]["code"] == 200


def test_who_is_back_finds_in_its_inbox_what_was_asked_meanwhile(house: House) -> None:
    url = house.chat()
    house.leave("ana")
    house.answers(house.eva, house.ask(house.eva, "subscribe", {"resource": url}))
    house.ana.publish("presence/ana", b"online")
    assert note(house.ana, "subscription", url)["from"] == "eva"


def test_an_observer_resumes_after_missing_500_deltas(house: House) -> None:
    url = house.chat("rui")
    topic = url.replace("://", "/")
    watch(house.rui, url)
    house.rui.wait(lambda: replica(house.rui).get(topic))
    house.leave("rui")
    for number in range(500):
        house.ana.publish(f"report/ana/{topic}", {"duration": number}, qos=0)
    house.ana.publish(f"report/ana/{topic}", {"status": "paused"})
    grants = house.must(house.rui, "resume", {})["grants"]
    watch(house.rui, url)
    house.rui.wait(lambda: (copy := replica(house.rui).get(topic)) and copy.data.get("status") == "paused", 20)
    copy = replica(house.rui).get(topic)
    assert copy is not None
    assert (copy.data, copy.version) == ({"status": "paused", "duration": 499}, 502)
    assert next(each for each in grants if each["url"] == url)["version"] <= 502


def test_a_child_is_created_updated_and_deleted_and_all_are_told(house: House) -> None:
    url = house.chat("rui", "eva")
    for who in (house.ana, house.rui, house.eva):
        watch(who, url)
    by_observer = say(house, house.rui, url, "a")
    by_report = f"{url}/children/messages/eva/mine"
    house.eva.publish(f"report/eva/{by_report.replace('://', '/')}", {"type": "chat", "content": "b"})
    by_reporter = say(house, house.ana, url, "c")
    house.must(house.rui, "update", {"resource": by_observer, "merge": {"content": "a!"}})
    for who in (house.ana, house.rui, house.eva):
        hears(who, url, "a!", "b", "c")
    # Only its Reporter changes a child; whose room it is may delete it.
    assert house.do(house.eva, "update", {"resource": by_observer, "merge": {"content": "x"}})["code"] == 403
    assert house.do(house.ana, "update", {"resource": by_observer, "merge": {"content": "x"}})["code"] == 403
    assert house.do(house.eva, "delete", {"resource": by_reporter})["code"] == 403
    house.must(house.ana, "delete", {"resource": by_observer})
    house.must(house.eva, "delete", {"resource": by_report})
    for who in (house.ana, house.rui, house.eva):
        hears(who, url, "c")
        told = [delta["version"] for delta in deltas(who, by_observer)]
        assert told == [1, 2, 3]
    house.must(house.ana, "delete", {"resource": url})
    for who in (house.rui, house.eva):
        hears(who, url)


def test_who_has_unsubscribed_or_was_revoked_hears_nothing_more(house: House) -> None:
    url = house.chat("rui", "eva", "zoe")
    for who in (house.rui, house.eva, house.zoe):
        watch(who, url)
        holds(who, url)
    assert house.must(house.rui, "unsubscribe", {"resource": url})["observes"] is False
    house.must(house.ana, "unsubscribe", {"resource": url, "client": "eva"})
    assert note(house.eva, "revoked", url)["from"] == "ana"
    before = {who.name: len(who.heard) for who in (house.rui, house.eva)}
    say(house, house.zoe, url, "among us")
    house.must(house.ana, "update", {"resource": url, "merge": {"status": "paused"}})
    hears(house.zoe, url, "among us")
    time.sleep(QUIET)
    for who in (house.rui, house.eva):
        later = list(who.heard)[before[who.name or ""] :]
        assert not [topic for topic, _, _, _ in later if topic.startswith(("snapshot/", "delta/"))]
        assert house.do(who, "read", {"resource": url})["code"] == 403


def test_a_grant_ends_when_it_says(house: House) -> None:
    url = house.chat()
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3))
    house.must(house.ana, "invite", {"resource": url, "observers": ["rui"], "expires": soon})
    assert house.do(house.rui, "read", {"resource": url})["code"] == 200
    house.rui.wait(lambda: house.do(house.rui, "read", {"resource": url})["code"] == 403)


def test_delegation_with_the_old_reporter_still_writing(house: House) -> None:
    url = house.chat("rui")
    topic = url.replace("://", "/")
    request = house.ask(house.ana, "delegate", {"resource": url, "to": "rui"})
    assert house.answers(house.ana, request)[0]["code"] == 202
    house.ana.publish(f"report/ana/{topic}", {"duration": 1})
    offered = note(house.rui, "delegation", url)
    for number in range(50):
        house.ana.publish(f"report/ana/{topic}", {"duration": number}, qos=0)
    house.must(house.rui, "accept", {"request": offered["id"]})
    assert house.answers(house.ana, request, 2)[1]["body"]["reporter"] == "rui"
    house.ana.publish(f"report/ana/{topic}", {"duration": 999})
    rejected = found(house.ana, lambda m: m["type"] == "rejection" and m["resource"] == url)[0]
    assert rejected["code"] == 403
    house.rui.publish(f"report/rui/{topic}", {"duration": 1000})
    house.rui.wait(
        lambda: house.must(house.rui, "read", {"resource": url})["data"] == {"status": "open", "duration": 1000}
    )
    # For Ana, who was granted nothing, it is not there any more.
    assert house.do(house.ana, "read", {"resource": url})["code"] == 404


def test_execute_with_three_outcomes(house: House) -> None:
    url = "ctxt://home.local/ana/lamp"
    body = {"resource": url, "value": {"values": {"on": {"value": False}}}, "observers": ["rui", "eva"]}
    house.must(house.ana, "create", body)
    request = house.ask(house.rui, "execute", {"resource": url, "method": "dim", "params": {"level": 40}})
    action = note(house.ana, "action", url)
    assert (action["method"], action["params"], action["from"]) == ("dim", {"level": 40}, "rui")
    house.must(house.ana, "response", {"id": action["id"], "code": 200, "body": {"level": 40}})
    assert house.answers(house.rui, request)[0] == {
        "id": request,
        "type": "response",
        "code": 200,
        "body": {"level": 40},
    }
    request = house.ask(house.rui, "execute", {"resource": url, "method": "on", "idempotent": True})
    action = found(house.ana, lambda m: m["type"] == "action" and m["method"] == "on")[0]
    house.must(house.ana, "response", {"id": action["id"], "code": 503, "description": "no power"})
    failed = house.answers(house.rui, request)[0]
    assert (failed["code"], failed["description"]) == (503, "no power")
    request = house.ask(house.rui, "execute", {"resource": url, "method": "off", "timeout": 0.3})
    assert house.answers(house.rui, request)[0]["code"] == 504
    late = found(house.ana, lambda m: m["type"] == "action" and m["method"] == "off")[0]
    assert house.do(house.ana, "response", {"id": late["id"], "code": 200})["code"] == 410
    assert house.do(house.eva, "execute", {"resource": url, "method": "on"})["code"] == 403


def test_an_action_is_not_delivered_to_who_comes_too_late(house: House) -> None:
    url = "ctxt://home.local/zoe/lamp"
    house.must(house.zoe, "create", {"resource": url, "value": {"values": {}}, "observers": ["rui"]})
    house.leave("zoe")
    request = house.ask(house.rui, "execute", {"resource": url, "method": "on", "timeout": 0.3})
    assert house.answers(house.rui, request)[0]["code"] == 504
    zoe = house.zoe
    time.sleep(QUIET)
    assert not [payload for _, payload, _, _ in zoe.heard if b'"action"' in payload]


def test_public_is_for_everybody_until_it_is_not(house: House) -> None:
    url = "ctxt://home.local/leo/weather"
    house.must(house.leo, "create", {"resource": url, "value": {"values": {}}, "public": True})
    watch(house.eva, url)
    holds(house.eva, url)
    house.must(house.leo, "update", {"resource": url, "meta": {"public": False}})
    before = len(house.eva.heard)
    house.must(house.leo, "update", {"resource": url, "merge": {"values": {"t": {"value": 1}}}})
    time.sleep(QUIET)
    assert not deltas(house.eva, url, before)
    assert house.do(house.eva, "read", {"resource": url})["code"] == 403


# ---- a group chat ------------------------------------------------------------------------------------------------------


def test_a_group_chat_of_five_two_of_whom_come_and_go(house: House) -> None:
    url = house.chat("rui", "eva", "zoe", "leo")
    people = [house.ana, house.rui, house.eva, house.zoe, house.leo]
    for who in people:
        watch(who, url)
    said = [say(house, who, url, f"{number:02} {who.name}") for number, who in enumerate(people)]
    for who in people:
        hears(who, url, *(f"{number:02} {each}" for number, each in enumerate(PEOPLE)))
    house.leave("zoe")
    say(house, house.ana, url, "05 zoe is away")
    house.must(house.leo, "unsubscribe", {"resource": url})
    say(house, house.rui, url, "06 leo has left")
    house.must(house.eva, "update", {"resource": said[2], "merge": {"content": "02 eva, corrected"}})
    house.must(house.rui, "delete", {"resource": said[1]})
    # Zoe is back and finds everything; Leo asks to be let in again.
    watch(house.zoe, url)
    wish = house.ask(house.leo, "subscribe", {"resource": url})
    house.must(house.ana, "accept", {"request": note(house.ana, "subscription", url)["id"]})
    assert house.answers(house.leo, wish, 2)[1]["code"] == 200
    house.leave("leo")
    watch(house.leo, url)
    say(house, house.leo, url, "07 leo is back")
    expected = [
        "00 ana",
        "02 eva, corrected",
        "03 zoe",
        "04 leo",
        "05 zoe is away",
        "06 leo has left",
        "07 leo is back",
    ]
    for name in PEOPLE:
        hears(getattr(house, name), url, *expected)
    read = house.must(house.zoe, "read", {"resource": url, "children": True})
    assert len(read["snapshots"]) == 1 + len(expected)
