"""What clients ask of each other: to observe, to join in, to take over, to act. Pure, as the engine is.

Whatever needs another client's decision waits in that client's inbox as an item (see pending.py), is answered 202, and is answered
again under the same request id when it is decided, or over.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import orjson

from gateway import messages
from gateway.address import Address, AddressError
from gateway.effects import Answer, Refused, Reply
from gateway.messages import rfc3339
from gateway.objects import parent_of, url_of
from gateway.pending import ACTION, DELEGATION, INVITATION, SUBSCRIPTION, Asked, Item, Pending
from gateway.rights import ANONYMOUS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.effects import Effects
    from gateway.engine import Engine
    from gateway.objects import DataObject


NAMELESS = "clients without a name are granted nothing: a namespace's `observe` may list anonymous"


class Sharing:
    """Answers the requests of one engine's clients to each other. `waiting` is stored, `actions` are not."""

    def __init__(self, engine: Engine, waiting: Iterable[Item] = ()) -> None:
        self._engine = engine
        self.waiting = Pending()
        self.actions = Pending()
        self.act: Callable[[Effects, Item, float], None] | None = None
        """Takes up the actions of adapters' objects."""
        for item in waiting:
            self.waiting.add(item)
        self.handlers: dict[str, Callable[[Effects, Asked, dict[str, Any], float], Answer | None]] = {
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "accept": self._accept,
            "reject": self._reject,
            "invite": self._invite,
            "delegate": self._delegate,
            "execute": self._execute,
            "response": self._response,
        }

    # ---- to observe ----------------------------------------------------------------------------------------------------

    def _subscribe(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer | None:
        engine, client = self._engine, asked.client
        try:
            address = Address.parse(body["resource"])
        except AddressError as error:
            return Answer(400, description=f"{body['resource'][:200]}: {error}")
        topic, url = address.topic, address.url
        parent = parent_of(topic)
        allowed = engine.rights.may_observe(client, topic)
        if not allowed and parent is not None and engine.rights.may_ask(client, topic):
            return Answer(403, description=f"{url}: a child is observed with its parent: subscribe to {url_of(parent)}")
        if allowed or not engine.rights.may_ask(client, topic):
            found = engine.requests.find(client, url)
            if isinstance(found, Refused):
                return Answer(found.code, description=f"{found.url}: {found.text}")
        else:
            there = engine.find(url)
            if isinstance(there, Refused):
                return Answer(there.code, description=f"{there.url}: {there.text}")
            found = there
        wanted = body.get("schema")
        schema = found.schema
        if wanted is not None and (schema is None or wanted not in (schema.url, schema.name)):
            held = schema.name if schema is not None else "none that the catalogue still has"
            return Answer(409, description=f"{url}: its schema is {held}, not {wanted[:200]!r}")
        if allowed:
            return self._shown(found)
        if found.policy == "closed":
            return Answer(403, description=f"{url}: it is closed, its Reporter admits only whom it invites")
        if found.policy == "auto":
            refused = engine.grant(effects, found, client)
            if refused is not None:
                return Answer(refused.code, description=f"{url}: {refused.text}")
            return self._shown(found)
        until = now + min(body.get("timeout", engine.limits.pending_ttl), engine.limits.pending_ttl)
        return self._put(effects, SUBSCRIPTION, asked, found.reporter, found, now, until)

    def _unsubscribe(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer | None:
        engine, client = self._engine, asked.client
        whom = body.get("client", client)
        if whom == client:
            try:
                topic = Address.parse(body["resource"]).topic
            except AddressError as error:
                return Answer(400, description=f"{body['resource'][:200]}: {error}")
            obj = engine.objects.get(topic)
            if obj is not None:
                self._withdraw(effects, SUBSCRIPTION, client, obj.reporter, topic)
                engine.revoke(effects, obj, client)
            return Answer(200, {"url": url_of(topic), "observes": engine.rights.may_observe(client, topic)})
        found = self._own(client, body["resource"], "takes a grant back")
        if isinstance(found, Answer):
            return found
        if not engine.revoke(effects, found, whom):
            return Answer(404, description=f"{found.url}: {whom!r} has no grant for it")
        observes = engine.rights.may_observe(whom, found.topic)
        if not observes:
            notice = {"id": engine.mint(now), "type": "revoked", "resource": found.url, "from": client}
            effects.settled.append(Reply(whom, orjson.dumps({**notice, "created": rfc3339(int(now * 1000))})))
        return Answer(200, {"url": found.url, "client": whom, "observes": observes}, settled=True)

    def _invite(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer | None:
        found = self._own(asked.client, body["resource"], "invites")
        if isinstance(found, Answer):
            return found
        until = ends(body, now)
        if isinstance(until, Answer):
            return until
        if parent_of(found.topic) is not None:
            return Answer(409, description=f"{found.url}: a child is observed with its parent: invite to that")
        return self.invite(effects, asked, found, body["observers"], until, now)

    def invite(
        self, effects: Effects, asked: Asked, obj: DataObject, observers: list[str], until: float, now: float
    ) -> Answer:
        """Grant an object to clients until a time (Unix seconds; 0: for good), and tell each."""
        engine = self._engine
        if ANONYMOUS in observers:
            return Answer(400, description=f"{obj.url}: {NAMELESS}")
        fresh = [client for client in observers if client != asked.client]
        held = obj.grants or {}
        room = engine.limits.grants_per_object - len(held)
        if sum(1 for client in fresh if client not in held) > room:
            return Answer(
                413,
                description=f"{obj.url}: {len(held):,} clients have been granted it and {engine.limits.grants_per_object:,} are the limit: "
                "put them into a group that its namespace's `observe` names",
            )
        untold = []
        for client in fresh:
            engine.grant(effects, obj, client, until)
            ends = min(until or now + engine.limits.pending_ttl, now + engine.limits.pending_ttl)
            answer = self._put(effects, INVITATION, asked, client, obj, now, ends)
            if answer.code != 202:
                untold.append(client)
        body: dict[str, Any] = {"url": obj.url, "invited": fresh}
        if untold:
            body["untold"] = untold
        return Answer(200, body, settled=True)

    # ---- decisions -----------------------------------------------------------------------------------------------------

    def _mine(self, asked: Asked, body: dict[str, Any], *, sent: bool = False) -> tuple[Item, DataObject] | Answer:
        """The item that a client decides on, and its object. `sent`: its own wishes too."""
        item = self.waiting.get(body["request"])
        obj = None if item is None else self._engine.objects.get(item.topic)
        if item is None or obj is None or asked.client not in (item.receiver, item.sender if sent else None):
            return Answer(
                410, description="nothing of this id waits for you: it is decided or over; `resume` lists what does"
            )
        return item, obj

    def _accept(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer | None:
        mine = self._mine(asked, body)
        if isinstance(mine, Answer):
            return mine
        item, obj = mine
        engine = self._engine
        refused: Refused | None
        if item.kind == SUBSCRIPTION:
            until = ends(body, now)
            if isinstance(until, Answer):
                return until
            refused = engine.grant(effects, obj, item.sender, until)
            answer = Answer(200, {"url": obj.url, "client": item.sender}, settled=True)
        elif item.kind == DELEGATION:
            refused = engine.hand_over(effects, obj, item.receiver, now)
            answer = self._shown(obj)
        elif engine.rights.may_observe(item.receiver, obj.topic):
            refused = None
            self._drop(effects, item)
            answer = self._shown(obj)
        else:
            self._drop(effects, item)
            return Answer(410, description=f"{obj.url}: what it invited to has been taken back")
        if refused is not None:
            return Answer(refused.code, description=f"{refused.url}: {refused.text}")
        return answer

    def _reject(self, effects: Effects, asked: Asked, body: dict[str, Any], _now: float) -> Answer | None:
        mine = self._mine(asked, body, sent=True)
        if isinstance(mine, Answer):
            return mine
        item, obj = mine
        self._drop(effects, item)
        if item.kind == INVITATION:
            # Its grant goes too; that it has ended before is as well.
            self._engine.revoke(effects, obj, item.receiver)
        elif item.receiver == asked.client:
            why = f": {body['description']}" if "description" in body else ""
            self._tell(effects, item, Answer(403, description=f"{obj.url}: {item.receiver!r} has rejected it{why}"))
        return Answer(200, {"url": obj.url}, settled=True)

    def _delegate(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer | None:
        found = self._own(asked.client, body["resource"], "gives it away")
        if isinstance(found, Answer):
            return found
        to = body["to"]
        if to == ANONYMOUS:
            return Answer(400, description=f"{found.url}: {NAMELESS}")
        if parent_of(found.topic) is not None:
            return Answer(
                409, description=f"{found.url}: a child's Reporter is named in its URL: it cannot be given to another"
            )
        if to == asked.client:
            return Answer(409, description=f"{found.url}: it is yours already")
        limits = self._engine.limits
        other = next((item for item in self.waiting.of(found.topic) if item.kind == DELEGATION), None)
        if other is not None and other.receiver != to:
            return Answer(409, description=f"{found.url}: it is offered to {other.receiver!r}, who has not decided yet")
        until = now + min(body.get("timeout", limits.pending_ttl), limits.pending_ttl)
        return self._put(effects, DELEGATION, asked, to, found, now, until)

    # ---- to act --------------------------------------------------------------------------------------------------------

    def _execute(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer | None:
        engine, client = self._engine, asked.client
        found = engine.requests.find(client, body["resource"])
        if isinstance(found, Refused):
            return Answer(found.code, description=f"{found.url}: {found.text}")
        if not engine.rights.may_execute(client, found.topic):
            return Answer(403, description=f"{found.url}: its namespace does not list you in `execute`")
        limits = engine.limits
        full = self.actions.full(
            client,
            found.reporter,
            pair=limits.actions_per_sender,
            inbox=limits.actions_per_receiver,
            sent=limits.actions_per_sender,
        )
        if full is not None:
            return Answer(429, description=f"{found.url}: {full}")
        more: dict[str, Any] = {key: body[key] for key in ("method", "params", "idempotent") if key in body}
        timeout = body.get("timeout", limits.action_timeout)
        item = Item(engine.mint(now), ACTION, asked, found.reporter, found.topic, now, now + timeout, more)
        self.actions.add(item)
        if item.receiver in engine.adapters and self.act is not None:
            self.act(effects, item, now)
            return None
        # At QoS 0 it is sent at most once; and nothing acts when the answer has long been given up.
        qos = int(body.get("idempotent", False))
        effects.replies.append(
            Reply(item.receiver, orjson.dumps(item.message()), qos=qos, expiry=max(1, ceil(timeout)))
        )
        return None

    def _response(self, effects: Effects, asked: Asked, body: dict[str, Any], _now: float) -> Answer | None:
        item = self.actions.get(body["id"])
        if item is None or item.receiver != asked.client:
            return Answer(410, description="no action of this id waits for your response: it came too late, or twice")
        self.actions.remove(item)
        self._tell(effects, item, Answer(body["code"], body.get("body"), body.get("description")))
        return Answer(200, {})

    def act_done(self, effects: Effects, item: Item, answer: Answer) -> None:
        """An action of an adapter's object is over; nothing where it has been before."""
        if self.actions.get(item.id) is item:
            self.actions.remove(item)
            self._tell(effects, item, answer)

    # ---- what happens meanwhile ----------------------------------------------------------------------------------------

    def admitted(self, effects: Effects, obj: DataObject, client: str | None) -> None:
        """A client (None: everybody) may observe an object now: who asked for that is answered."""
        for item in self.waiting.of(obj.topic):
            if item.kind == SUBSCRIPTION and client in (None, item.sender):
                self._drop(effects, item)
                self._tell(effects, item, self._shown(obj))

    def dismissed(self, effects: Effects, obj: DataObject, client: str) -> None:
        """A client's grant of an object has ended, and so has what invited it."""
        for item in self.waiting.of(obj.topic):
            if item.kind == INVITATION and item.receiver == client:
                self._drop(effects, item)

    def handed_over(self, effects: Effects, obj: DataObject, former: str, now: float) -> None:
        """An object has another Reporter: what was for the former one is for the new one, and an offer is over."""
        for item in self.waiting.of(obj.topic):
            if item.kind == DELEGATION:
                self._drop(effects, item)
                if item.receiver == obj.reporter:
                    body = {"url": obj.url, "version": obj.version, "reporter": obj.reporter}
                    answer = Answer(200, body, settled=True)
                else:
                    answer = Answer(410, description=f"{obj.url}: its Reporter is {obj.reporter!r} by now")
                self._tell(effects, item, answer)
            elif item.kind == SUBSCRIPTION and item.receiver == former:
                self._drop(effects, item)
                if item.sender == obj.reporter:
                    self._tell(effects, item, self._shown(obj))
                    continue
                moved = Item(
                    self._engine.mint(now), SUBSCRIPTION, item.asked, obj.reporter, obj.topic, item.created, item.until
                )
                self.waiting.add(moved)
                effects.pending[moved] = True
                effects.settled.append(Reply(moved.receiver, orjson.dumps(moved.message())))

    def deleted(self, effects: Effects, obj: DataObject) -> None:
        """Whatever was asked about an object dies with it."""
        gone = Answer(410, description=f"{obj.url}: the object was deleted")
        for item in self.waiting.of(obj.topic):
            self._drop(effects, item)
            if item.kind != INVITATION:
                self._tell(effects, item, gone)
        for item in self.actions.of(obj.topic):
            self.actions.remove(item)
            self._tell(effects, item, gone)

    def tick(self, effects: Effects, now: float) -> None:
        """End what nobody has decided in time."""
        for item in self.waiting.expire(now):
            self._drop(effects, item)
            if item.kind != INVITATION:
                text = f"{url_of(item.topic)}: {item.receiver!r} has not decided in time"
                self._tell(effects, item, Answer(408, description=text))
        for item in self.actions.expire(now):
            self.actions.remove(item)
            text = f"{url_of(item.topic)}: its Reporter {item.receiver!r} has not answered in time"
            self._tell(effects, item, Answer(504, description=text))

    def remind(self, effects: Effects, client: str, now: float) -> None:
        """A client is there: what waits for it goes into its inbox again, as often as it may ask."""
        waiting = self.waiting.to(client)
        if waiting and self._engine.client(client, now).requests.take(now):
            effects.replies += [Reply(client, orjson.dumps(item.message())) for item in waiting]

    # ---- items ---------------------------------------------------------------------------------------------------------

    def _put(
        self, effects: Effects, kind: str, asked: Asked, receiver: str, obj: DataObject, now: float, until: float
    ) -> Answer:
        """Let something wait in a client's inbox: 202. A repeat sends nothing: the newer request is the one that is answered."""
        limits = self._engine.limits
        item = self.waiting.find(kind, asked.client, receiver, obj.topic)
        if item is not None:
            item.asked = asked
            self.waiting.renew(item, until)
            effects.pending[item] = True
            return self._waits(item)
        full = self.waiting.full(
            asked.client,
            receiver,
            pair=limits.pending_per_sender,
            inbox=limits.pending_per_receiver,
            sent=limits.pending_sent,
        )
        if full is not None:
            return Answer(429, description=f"{obj.url}: {full}")
        item = Item(self._engine.mint(now), kind, asked, receiver, obj.topic, now, until)
        self.waiting.add(item)
        effects.pending[item] = True
        # An invitation is worth nothing before the broker goes by the grant.
        told = effects.settled if kind == INVITATION else effects.replies
        told.append(Reply(receiver, orjson.dumps(item.message())))
        return self._waits(item)

    @staticmethod
    def _waits(item: Item) -> Answer:
        return Answer(202, {"request": item.id, "expires": rfc3339(int(item.until * 1000))})

    def _drop(self, effects: Effects, item: Item) -> None:
        self.waiting.remove(item)
        effects.pending[item] = False

    def _withdraw(self, effects: Effects, kind: str, sender: str, receiver: str, topic: str) -> None:
        item = self.waiting.find(kind, sender, receiver, topic)
        if item is not None:
            self._drop(effects, item)

    @staticmethod
    def _tell(effects: Effects, item: Item, answer: Answer) -> None:
        """Answer the request that has waited."""
        asked = item.asked
        text = messages.response(asked.request, answer.code, answer.body, answer.description)
        reply = Reply(asked.client, text, asked.topic, asked.correlation, request=asked.request)
        (effects.settled if answer.settled else effects.replies).append(reply)

    def _own(self, client: str, url: str, does: str) -> DataObject | Answer:
        """The object of a URL, where the client is its Reporter."""
        found = self._engine.requests.find(client, url)
        if isinstance(found, Refused):
            return Answer(found.code, description=f"{found.url}: {found.text}")
        if found.reporter != client:
            text = f"its Reporter is {found.reporter!r}, and only the Reporter {does}"
            return Answer(403, description=f"{found.url}: {text}")
        return found

    def _shown(self, obj: DataObject) -> Answer:
        return Answer(200, orjson.Fragment(messages.snapshot(obj, self._engine.epoch)), settled=True)


def ends(body: dict[str, Any], now: float) -> float | Answer:
    """The `expires` of a request in Unix seconds, 0 where there is none; an Answer where it is not a time to come."""
    text = body.get("expires")
    if text is None:
        return 0.0
    until = messages.instant(text)
    if until is None:
        return Answer(400, description=f"/expires: {text[:64]!r} is no RFC 3339 time, as 2026-12-31T18:00:00Z is")
    if until <= now:
        return Answer(400, description=f"/expires: {text[:64]} is over")
    return until
