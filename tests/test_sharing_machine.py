"""Five clients who share objects at random, beside a model that knows nothing of the engine: who owns, who may see, who holds what."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.effects import Effects
from gateway.engine import Engine, Limits
from gateway.messages import instant, rfc3339
from gateway.objects import Objects, url_of
from gateway.patch import merge
from gateway.rights import Clients, Rights, namespace
from gateway.store import Batch, Store
from tests.world import CATALOGUE, EPOCH, EVERYONE, NOBODY, NOW

CLIENTS = ("ana", "rui", "eva", "zoe", "leo")
TOPICS = tuple(f"comm/home.local/{name}/chat" for name in CLIENTS[:3])
PENDING_TTL = 1_000.0
people = st.sampled_from(CLIENTS)
topics = st.sampled_from(TOPICS)
someone = st.one_of(st.just(""), st.just(""), people)
"""A client; empty is whoever has the right."""
several = st.lists(people, min_size=1, max_size=3, unique=True)


@dataclass
class Thing:
    """An object as the model sees it; a child has its parent's observers."""

    owner: str
    parent: str | None = None
    grants: dict[str, float] = field(default_factory=dict)
    public: bool = False
    policy: str = "ask"
    deleted: bool = False


@dataclass
class Wish:
    """What waits for somebody."""

    kind: str
    sender: str
    receiver: str
    topic: str
    until: float


class Copy:
    """What an Observer holds that applies every delta."""

    def __init__(self) -> None:
        self.version = 0
        self.data: dict[str, Any] | None = None
        self.reporter = ""


class SharingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.now = NOW
        self.epoch = EPOCH
        self.things: dict[str, Thing] = {}
        self.wishes: dict[str, Wish] = {}
        self.copies: dict[str, Copy] = {}
        self.number = self.minted = 0
        self._open()

    def mint(self, _now: float) -> str:
        self.minted += 1
        return f"{self.minted:026}"

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def _open(self) -> None:
        self.store = Store(self.folder)
        loaded = self.store.load(CATALOGUE, 8)
        objects = Objects(loaded.objects)
        space = namespace(
            "comm://home.local/{client}/**", schema="Communication", report=EVERYONE, observe=NOBODY,
            public=True, ask=Clients(False, frozenset(CLIENTS[:4])),
        )  # fmt: skip
        self.rights = Rights([space], (), objects)
        limits = Limits(requests_per_second=0, reports_per_second=0, creations_per_minute=0, pending_ttl=PENDING_TTL)
        self.engine = Engine(
            CATALOGUE, self.rights, objects, limits, epoch=self.epoch, now=self.now, mint=self.mint,
            floors=loaded.floors, next_row=loaded.next_row, pending=loaded.pending,
        )  # fmt: skip

    # ---- the model -----------------------------------------------------------------------------------------------------

    def sees(self, client: str, topic: str) -> bool:
        """Whether the model lets a client know what an object holds."""
        thing = self.things.get(topic)
        if thing is None:
            return False
        if thing.owner == client:
            return True
        if thing.parent is not None:
            return self.sees(client, thing.parent)
        return thing.public or client in thing.grants

    def owner(self, topic: str) -> str:
        thing = self.things.get(topic)
        return topic.split("/")[2] if thing is None else thing.owner

    def wish(self, kind: str, sender: str, receiver: str, topic: str, item: str, until: float) -> None:
        self.wishes[item] = Wish(kind, sender, receiver, topic, until)

    def end(self, kind: str, topic: str, sender: str | None = None, receiver: str | None = None) -> None:
        for item, wish in list(self.wishes.items()):
            fits = sender in (None, wish.sender) and receiver in (None, wish.receiver)
            if fits and (wish.kind, wish.topic) == (kind, topic):
                del self.wishes[item]

    def admit(self, client: str, topic: str, until: float = 0.0) -> None:
        self.things[topic].grants[client] = until
        self.end("subscription", topic, sender=client)

    # ---- batches -------------------------------------------------------------------------------------------------------

    def commit(
        self, effects: Effects, seen_before: set[tuple[str, str]] | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        """Store a batch, hand out its deltas, and look at every message: nobody gets a byte that the model does not let it."""
        self.engine.seal(effects)
        batch = Batch(
            effects.touched, effects.heads, effects.purged, effects.floors, effects.ids, pending=effects.pending
        )
        if effects.durable():
            self.store.commit(batch)
        for obj, text in effects.deltas:
            delta = orjson.loads(text)
            copy = self.copies.setdefault(obj.topic, Copy())
            if not delta.get("created"):
                assert delta["version"] == copy.version + 1
            copy.version = delta["version"]
            copy.reporter = delta.get("reporter", copy.reporter)
            if "value" in delta:
                copy.data = delta["value"]
            if "merge" in delta:
                copy.data = merge(copy.data or {}, delta["merge"])
            if "deleted" in delta:
                copy.data = None
        for obj in effects.purged:
            del self.copies[obj.topic]
        messages = [(reply.client, reply.payload) for reply in [*effects.replies, *effects.settled]]
        for work in effects.work:
            messages += [(step.client, step.payload) for step in work if step is not None]
        for client, payload in messages:
            for topic in self.things:
                if b'"secret of %b"' % topic.encode() in payload:
                    assert self.sees(client, topic) or (client, topic) in (seen_before or ()), (client, topic, payload)
        return [(client, orjson.loads(payload)) for client, payload in messages]

    def ask(self, client: str, kind: str, body: dict[str, Any], after: Any = None) -> dict[str, Any]:
        """A request; `after` brings the model up to date, given the first answer, before anything is judged."""
        effects = Effects()
        self.number += 1
        request = str(self.number)
        payload = orjson.dumps({"id": request, "type": kind, "body": body})
        self.engine.requests.take(effects, client, payload, self.now)
        answer: dict[str, Any] = {}
        replies = [*effects.replies, *effects.settled]
        for reply in replies:
            told = orjson.loads(reply.payload)
            if told["id"] == request and reply.client == client:
                answer = told
        if after is not None and answer.get("code", 500) < 300:
            after(answer)
        found = self.commit(effects)
        for who, told in found:
            if told["id"] == request and who == client:
                answer = told
        assert answer
        return answer

    # ---- what clients do -----------------------------------------------------------------------------------------------

    def data(self, topic: str, number: int) -> dict[str, Any]:
        return {"status": "open", "participants": {"x": {"identity": f"secret of {topic}"}}, "duration": number}

    @rule(client=someone, topic=topics, observers=st.one_of(st.just([]), several), public=st.booleans())
    def create(self, client: str, topic: str, observers: list[str], public: bool) -> None:
        thing = self.things.get(topic)
        client = client or self.owner(topic)
        own = topic.split("/")[2] == client

        def after(answer: dict[str, Any]) -> None:
            if answer["code"] == 201:
                self.things[topic] = Thing(client, public=public)
                for each in observers:
                    if each != client:
                        self.admit(each, topic)

        body: dict[str, Any] = {"resource": url_of(topic), "value": self.data(topic, 0), "public": public}
        if observers:
            body["observers"] = observers
        code = self.ask(client, "create", body, after)["code"]
        if thing is None:
            assert code == (201 if own else 403)
        elif thing.owner == client and not thing.deleted:
            assert code == 200
        elif thing.owner == client and own:
            assert code == 201
        else:
            # Who was handed an object over may not make it anew, and its maker has it no longer.
            assert code in (403, 404, 409)
        self.learn()

    def learn(self) -> None:
        """Take from the engine which ids the invitations have; that they are the right ones the model has said before."""
        known = set(self.wishes)
        for client in CLIENTS:
            for item in self.engine.sharing.waiting.to(client):
                if item.id not in known:
                    self.wish(item.kind, item.sender, item.receiver, item.topic, item.id, item.until)
                    assert item.kind != "invitation" or client in self.things[item.topic].grants

    @rule(client=someone, topic=topics, number=st.integers(1, 50), by_report=st.booleans())
    def change(self, client: str, topic: str, number: int, by_report: bool) -> None:
        thing = self.things.get(topic)
        client = client or self.owner(topic)
        allowed = thing is not None and thing.owner == client and not thing.deleted
        if by_report:
            if thing is None:
                return
            effects = Effects()
            refused = self.engine.report(effects, client, topic, orjson.dumps(self.data(topic, number)), self.now)
            assert (refused is None) == allowed
            self.commit(effects)
        else:
            code = self.ask(client, "update", {"resource": url_of(topic), "merge": {"duration": number}})["code"]
            assert (code == 200) == allowed

    @rule(client=someone, topic=topics, public=st.booleans(), policy=st.sampled_from(["auto", "ask", "closed"]))
    def describe(self, client: str, topic: str, public: bool, policy: str) -> None:
        thing = self.things.get(topic)
        client = client or self.owner(topic)

        def after(_answer: dict[str, Any]) -> None:
            assert thing is not None
            if public and not thing.public:
                self.end("subscription", topic)
            thing.public, thing.policy = public, policy

        meta = {"public": public, "policy": policy}
        code = self.ask(client, "update", {"resource": url_of(topic), "meta": meta}, after)["code"]
        assert (code == 200) == (thing is not None and thing.owner == client and not thing.deleted)

    @rule(client=people, topic=topics)
    def subscribe(self, client: str, topic: str) -> None:
        thing = self.things.get(topic)
        allowed = self.sees(client, topic)
        policy = thing.policy if thing is not None else ""

        def after(answer: dict[str, Any]) -> None:
            assert thing is not None
            if not allowed and answer["code"] == 200:
                assert policy == "auto"
                self.admit(client, topic)
            if answer["code"] == 202:
                assert policy == "ask"
                item = answer["body"]["request"]
                self.wish("subscription", client, thing.owner, topic, item, self.now + PENDING_TTL)

        answer = self.ask(client, "subscribe", {"resource": url_of(topic)}, after)
        if thing is None or thing.deleted:
            assert answer["code"] in (403, 404, 410)
        elif allowed:
            assert answer["code"] == 200
        elif client == "leo":
            assert answer["code"] in (403, 404)

    @rule(client=someone, topic=topics, observers=several, seconds=st.sampled_from([0, 50]))
    def invite(self, client: str, topic: str, observers: list[str], seconds: int) -> None:
        thing = self.things.get(topic)
        client = client or self.owner(topic)
        until = self.now + seconds if seconds else 0.0

        def after(_answer: dict[str, Any]) -> None:
            for each in observers:
                if each != client:
                    self.admit(each, topic, float(int(until)) if until else 0.0)
            for wish in self.wishes.values():
                if (wish.kind, wish.sender, wish.topic) == ("invitation", client, topic) and wish.receiver in observers:
                    wish.until = min(int(until) if until else self.now + PENDING_TTL, self.now + PENDING_TTL)

        body: dict[str, Any] = {"resource": url_of(topic), "observers": observers}
        if seconds:
            body["expires"] = rfc3339(int(until) * 1000)
        code = self.ask(client, "invite", body, after)["code"]
        assert (code == 200) == (thing is not None and thing.owner == client and not thing.deleted)
        self.learn()

    @rule(client=someone, topic=topics, whom=people)
    def unsubscribe(self, client: str, topic: str, whom: str) -> None:
        thing = self.things.get(topic)
        client = client or self.owner(topic)
        if client == whom:

            def give_back(_answer: dict[str, Any]) -> None:
                if thing is not None:
                    thing.grants.pop(client, None)
                    self.end("subscription", topic, sender=client)
                    self.end("invitation", topic, receiver=client)

            assert self.ask(client, "unsubscribe", {"resource": url_of(topic)}, give_back)["code"] == 200
            return
        own = thing is not None and thing.owner == client and not thing.deleted
        granted = thing is not None and whom in thing.grants
        if own:
            self.end("invitation", topic, sender=client, receiver=whom)
            assert thing is not None
            thing.grants.pop(whom, None)
        code = self.ask(client, "unsubscribe", {"resource": url_of(topic), "client": whom})["code"]
        assert (code == 200) == (own and granted)

    @rule(client=someone, topic=topics, to=people)
    def delegate(self, client: str, topic: str, to: str) -> None:
        thing = self.things.get(topic)
        client = client or self.owner(topic)
        answer = self.ask(client, "delegate", {"resource": url_of(topic), "to": to})
        if answer["code"] == 202:
            assert thing is not None
            assert thing.owner == client
            assert not thing.deleted
            self.wish("delegation", client, to, topic, answer["body"]["request"], self.now + PENDING_TTL)

    @rule(client=someone, which=st.integers(0, 20), agreed=st.booleans())
    def decide(self, client: str, which: int, agreed: bool) -> None:
        if not self.wishes:
            return
        item = sorted(self.wishes)[which % len(self.wishes)]
        wish = self.wishes[item]
        client = client or wish.receiver
        thing = self.things[wish.topic]

        def after(_answer: dict[str, Any]) -> None:
            if wish.kind == "subscription" and agreed:
                self.admit(wish.sender, wish.topic)
            elif wish.kind == "delegation" and agreed:
                thing.owner = wish.receiver
                self.end("delegation", wish.topic)
                for each in list(self.wishes.values()):
                    if each.topic == wish.topic and each.kind == "subscription":
                        # Moved under another id.
                        self.end("subscription", wish.topic, sender=each.sender)
            else:
                self.wishes.pop(item)
                if wish.kind == "invitation" and not agreed:
                    thing.grants.pop(wish.receiver, None)

        code = self.ask(client, "accept" if agreed else "reject", {"request": item}, after)["code"]
        may = client == wish.receiver or (not agreed and client == wish.sender)
        assert (code == 200) == may, (code, wish, client)
        self.learn()

    @rule(client=people, topic=topics, name=st.sampled_from(["1", "2"]), gone=st.booleans())
    def child(self, client: str, topic: str, name: str, gone: bool) -> None:
        place = f"{topic}/children/messages/{client}/{name}"
        thing = self.things.get(place)
        parent = self.things.get(topic)
        if gone:
            there = thing is not None and not thing.deleted

            def buried(_answer: dict[str, Any]) -> None:
                assert thing is not None
                thing.deleted = True

            assert (self.ask(client, "delete", {"resource": url_of(place)}, buried)["code"] == 200) == there
            return
        value = {"type": "chat", "content": f"secret of {place}"}

        def made(answer: dict[str, Any]) -> None:
            if answer["code"] == 201:
                self.things[place] = Thing(client, parent=topic)

        code = self.ask(client, "create", {"resource": url_of(place), "value": value}, made)["code"]
        allowed = self.sees(client, topic) and parent is not None and not parent.deleted
        if thing is None:
            assert (code == 201) == allowed
        elif not thing.deleted:
            assert code == 200

    @rule(client=someone, topic=topics)
    def delete(self, client: str, topic: str) -> None:
        thing = self.things.get(topic)
        client = client or self.owner(topic)

        def after(_answer: dict[str, Any]) -> None:
            for place, each in self.things.items():
                if topic in (place, each.parent):
                    each.deleted = True
            for item, wish in list(self.wishes.items()):
                if wish.topic == topic:
                    del self.wishes[item]

        own = thing is not None and thing.owner == client and not thing.deleted
        assert (self.ask(client, "delete", {"resource": url_of(topic)}, after)["code"] == 200) == own

    @rule(client=people)
    def look_around(self, client: str) -> None:
        listed = self.ask(client, "discover", {})["body"]
        visible = {
            url_of(topic) for topic, thing in self.things.items() if not thing.deleted and self.sees(client, topic)
        }
        assert {each["url"] for each in listed["objects"]} == visible
        page = self.ask(client, "read", {"prefix": "comm://", "children": True})["body"]
        assert {each["url"] for each in page["snapshots"]} == visible
        mine = self.ask(client, "resume", {})["body"]
        assert {item["id"] for item in mine["pending"]} == {
            item for item, wish in self.wishes.items() if wish.receiver == client
        }
        for topic in TOPICS:
            self.ask(client, "read", {"resource": url_of(topic), "children": True})

    @rule(seconds=st.sampled_from([1.0, 60.0, 1_100.0, 90_000.0]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        for topic, thing in self.things.items():
            for name in [name for name, until in thing.grants.items() if 0 < until <= self.now]:
                del thing.grants[name]
                self.end("invitation", topic, receiver=name)
        self.wishes = {item: wish for item, wish in self.wishes.items() if wish.until > self.now}
        effects = Effects()
        self.engine.tick(effects, self.now)
        for obj in effects.purged:
            del self.things[obj.topic]
        self.commit(effects)

    @rule(killed=st.booleans())
    def restart(self, killed: bool) -> None:
        if killed:
            copy = Path(tempfile.mkdtemp())
            shutil.copytree(self.folder, copy, dirs_exist_ok=True)
            self.store.close()
            shutil.rmtree(self.folder)
            self.folder = copy
        else:
            self.store.close()
        self.epoch += 256
        self._open()

    # ---- what always holds ---------------------------------------------------------------------------------------------

    @invariant()
    def each_object_has_one_owner_and_its_observers_are_those_of_the_model(self) -> None:
        assert {obj.topic for obj in self.engine.objects} == set(self.things)
        owned = [obj.topic for client in CLIENTS for obj in self.engine.objects.of(client)]
        assert sorted(owned) == sorted(self.things)
        for topic, thing in self.things.items():
            obj = self.engine.objects.get(topic)
            assert obj is not None
            assert (obj.reporter, obj.deleted) == (thing.owner, thing.deleted)
            assert self.copies[topic].reporter == thing.owner
            for client in CLIENTS:
                assert self.rights.may_observe(client, topic) == self.sees(client, topic), (client, topic)
            assert not self.rights.may_observe("anonymous", topic)

    @invariant()
    def who_has_heard_everything_holds_what_the_reporter_holds(self) -> None:
        for topic, copy in self.copies.items():
            obj = self.engine.objects.get(topic)
            assert obj is not None
            assert copy.version == obj.version
            if not obj.deleted:
                assert copy.data == obj.document()

    @invariant()
    def what_waits_is_what_the_model_says(self) -> None:
        waiting = {item.id: item for client in CLIENTS for item in self.engine.sharing.waiting.to(client)}
        assert waiting.keys() == self.wishes.keys()
        for item, wish in self.wishes.items():
            found = waiting[item]
            assert (found.kind, found.sender, found.receiver, found.topic) == (
                wish.kind, wish.sender, wish.receiver, wish.topic,
            )  # fmt: skip
            message = found.message()
            assert (instant(message["expires"]) or 0) - wish.until < 1


SharingMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestSharingMachine = SharingMachine.TestCase
