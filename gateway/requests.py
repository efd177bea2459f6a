"""The control plane: what clients ask on `request/{client}`, and what they are answered. Pure, as the engine is.

A handler takes (effects, asked, body, now) and gives an `Answer`, or, where it looks at many objects, an iterator that yields None to let
others go on and at last the `Answer`; None where it answers later. What clients ask of each other is in sharing.py.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from gateway import messages
from gateway.address import Address, AddressError, normal_prefix
from gateway.comparison import compare
from gateway.effects import Answer, Refused, Reply
from gateway.messages import PayloadError, rfc3339
from gateway.objects import PUBLIC, DataObject, Facts, parent_of
from gateway.pending import Asked
from gateway.rights import ANONYMOUS
from gateway.sharing import NAMELESS, ends

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.catalogue import Schema
    from gateway.effects import Effects
    from gateway.engine import Engine

SLICE = 2_000
"""Objects that a long search looks at before it lets others go on."""

PAGE = 500
"""Objects listed by one answer to `discover`."""

ANSWER_BYTES = 128 * 1024
"""Where an answer to `read` stops and gives the URL to go on after."""


class Requests:
    """Answers requests about the objects of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._handlers: dict[str, Callable[..., Answer | Iterator[Answer | None] | None]] = {
            "create": self._create,
            "update": self._update,
            "read": self._read,
            "delete": self._delete,
            "discover": self._discover,
            "resume": self._resume,
            "compare": self._compare,
            **engine.sharing.handlers,
        }

    def take(
        self,
        effects: Effects,
        client: str,
        payload: bytes,
        now: float,
        topic: str = "",
        correlation: bytes | None = None,
    ) -> None:
        """Answer one message on `request/{client}` into the client's inbox (`topic`: at or below it)."""
        self._engine.counters.requests += 1
        state = self._engine.client(client, now)

        def reply(request_id: str, answer: Answer) -> Reply:
            text = messages.response(request_id, answer.code, answer.body, answer.description)
            return Reply(client, text, topic, correlation, request=request_id)

        try:
            value = messages.parse_json(
                payload, max_bytes=self._engine.limits.payload_bytes, max_depth=self._engine.limits.depth
            )
        except PayloadError as error:
            self._engine.counters.requests_refused[error.code] += 1
            if state.rejections.take(now):
                effects.replies.append(reply("", Answer(error.code, description=error.text)))
            return
        request_id = value.get("id") if isinstance(value, dict) else None
        known_id = request_id if isinstance(request_id, str) and len(request_id) <= 128 else ""
        if not state.requests.take(now):
            self._engine.counters.requests_refused[429] += 1
            if state.rejections.take(now):
                effects.replies.append(reply(known_id, Answer(429, description=self._engine.too_fast("requests"))))
            return
        answer = self._answer(effects, Asked(client, known_id, topic, correlation), value, now)
        if isinstance(answer, Answer):
            if answer.code >= 400:
                self._engine.counters.requests_refused[answer.code] += 1
            (effects.settled if answer.settled else effects.replies).append(reply(known_id, answer))
        elif answer is not None:
            effects.work.append(None if step is None else reply(known_id, step) for step in answer)

    def _answer(
        self, effects: Effects, asked: Asked, value: Any, now: float
    ) -> Answer | Iterator[Answer | None] | None:
        for schema, data in self._forms(value):
            if not schema.is_valid(data):
                first = schema.problems(data, limit=1)[0]
                return Answer(400, description=f"{first.place or '/'}: {first.text}")
        handler = self._handlers.get(value["type"])
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return Answer(400, description=f"unknown type {value['type'][:64]!r}: known are {known}")
        return handler(effects, asked, value.get("body", {}), now)

    def _forms(self, value: Any) -> Iterator[tuple[Schema, Any]]:
        """The message schemas that a request must satisfy, each with the part it is about."""
        forms = self._engine.catalogue.messages
        yield forms["request"], value
        body = forms.get(value["type"])
        if body is not None:
            yield body, value.get("body", {})

    def find(self, client: str, text: str) -> DataObject | Refused:
        """The object behind a URL of a request, as far as the client may know of it."""
        try:
            address = Address.parse(text)
        except AddressError as error:
            return Refused(400, text[:200], str(error))
        topic = address.topic
        if not self._engine.rights.may_observe(client, topic):
            if self._engine.rights.may_create(client, topic):
                return Refused(404, address.url, "the object does not exist")
            return self._engine.hidden(client, address.url)
        obj = self._engine.objects.get(topic)
        if obj is None:
            return Refused(404, address.url, "the object does not exist")
        if obj.deleted:
            return Refused(410, address.url, "the object was deleted")
        return obj

    # ---- objects -------------------------------------------------------------------------------------------------------

    def _create(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer:
        engine, client = self._engine, asked.client
        try:
            address = Address.parse(self._place(body, client, now))
        except AddressError as error:
            return Answer(400, description=f"/resource: {error}")
        until = ends(body, now)
        if isinstance(until, Answer):
            return until
        found = engine.objects.get(address.topic)
        if found is not None and not found.deleted and found.reporter == client:
            return self._snapshot(found)
        observers = [name for name in body.get("observers", ()) if name != client]
        if ANONYMOUS in observers:
            return Answer(400, description=f"/observers: {NAMELESS}")
        if observers and parent_of(address.topic) is not None:
            return Answer(409, description=f"{address.url}: a child is observed with its parent: invite to that")
        if len(observers) > engine.limits.grants_per_object:
            return Answer(413, description=f"/observers: more than {engine.limits.grants_per_object:,}, the limit")
        names = ("schema", "name", "description", "tags", "resources", "policy", "public")
        facts = Facts(**{name: body[name] for name in names if name in body})
        made = engine.create(effects, client, address.topic, body.get("value", {}), facts, now)
        if isinstance(made, Refused):
            place = f"/value{made.place or ''}: " if made.code == 422 else ""
            return Answer(made.code, description=f"{made.url}: {place}{made.text}")
        if observers:
            engine.sharing.invite(effects, asked, made, observers, until, now)
        return self._snapshot(made, 201, settled=bool(observers) or made.public)

    def _place(self, body: dict[str, Any], client: str, now: float) -> str:
        """The URL of what is to be created: given, or one that nobody has and nobody can guess."""
        if "resource" in body:
            return str(body["resource"])
        if "parent" in body:
            return f"{body['parent']}/children/{body['collection']}/{client}/{self._engine.mint(now)}"
        scheme, authority, name = body["scheme"], body["authority"].lower(), self._engine.mint(now)
        if not self._engine.rights.may_create(client, f"{scheme}/{authority}/{name}"):
            # Most namespaces let everybody create below the own name.
            name = f"{client}/{name}"
        return f"{scheme}://{authority}/{name}"

    def _snapshot(self, obj: DataObject, code: int = 200, *, settled: bool = False) -> Answer:
        return Answer(code, orjson.Fragment(messages.snapshot(obj, self._engine.epoch)), settled=settled)

    def _update(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer:
        engine, client = self._engine, asked.client
        found = self.find(client, body["resource"])
        if isinstance(found, Refused):
            return Answer(found.code, description=f"{found.url}: {found.text}")
        if found.reporter != client:
            text = f"its Reporter is {found.reporter!r}, and only the Reporter changes it"
            return Answer(403, description=f"{found.url}: {text}")
        version = body.get("version", found.version)
        since, upto = found.lull
        if version != found.version and not (upto == found.version and since <= version < upto):
            text = f"its version is {found.version}, and its data is not what it was at {version}: read it, then update again"
            return Answer(409, description=f"{found.url}: {text}")
        refused: Refused | None
        if "meta" in body:
            refused = engine.describe(effects, found, body["meta"], now)
        else:
            change = body.get("merge", body.get("patch"))
            engine.counters.reports += 1
            refused = engine.change(effects, engine.client(client, now), found, change, len(orjson.dumps(change)), now)
        if refused is not None:
            if "meta" not in body:
                engine.counters.refused[refused.code] += 1
            return Answer(refused.code, description=f"{refused.url}: {refused.text}")
        return Answer(
            200,
            {"url": found.url, "epoch": engine.epoch, "version": found.version},
            settled="public" in body.get("meta", ()),
        )

    def _resume(self, _effects: Effects, asked: Asked, body: dict[str, Any], _now: float) -> Answer:
        """A client's own objects, its grants and what waits for it. Pages are in the order of URLs."""
        engine, client = self._engine, asked.client
        after = body.get("after", "")
        own = {obj.url: obj for obj in engine.objects.of(client) if not obj.deleted and obj.url > after}
        granted = {obj.url: obj for obj in engine.objects.granted(client) if not obj.deleted and obj.url > after}
        urls = sorted(own.keys() | granted.keys())
        result: dict[str, Any] = {"objects": [], "grants": []}
        for url in urls[:PAGE]:
            obj = own.get(url)
            if obj is not None:
                result["objects"].append(self._mine(obj))
                continue
            obj = granted[url]
            until = (obj.grants or {})[client]
            result["grants"].append(
                {
                    "url": url,
                    "reporter": obj.reporter,
                    "epoch": engine.epoch,
                    "version": obj.version,
                    "expires": rfc3339(int(until * 1000)) if until else None,
                }
            )
        if not after:
            items = [*engine.sharing.waiting.to(client), *engine.sharing.actions.to(client)]
            result["pending"] = [item.message() for item in items]
        if len(urls) > PAGE:
            result["next"] = urls[PAGE - 1]
        return Answer(200, result)

    def _mine(self, obj: DataObject) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "url": obj.url,
            "schema": obj.schema.url if obj.schema is not None else None,
            "epoch": self._engine.epoch,
            "version": obj.version,
            "status": obj.status,
            "policy": obj.policy,
        }
        observers = {name: until for name, until in (obj.grants or {}).items() if name != PUBLIC}
        if observers:
            entry["observers"] = {
                name: rfc3339(int(until * 1000)) if until else None for name, until in sorted(observers.items())
            }
        return entry

    def _read(
        self, _effects: Effects, asked: Asked, body: dict[str, Any], _now: float
    ) -> Answer | Iterator[Answer | None]:
        client = asked.client
        single = body.get("resource")
        if single is not None and not body.get("children"):
            found = self.find(client, single)
            if isinstance(found, Refused):
                return Answer(found.code, description=f"{found.url}: {found.text}")
            return Answer(200, orjson.Fragment(messages.snapshot(found, self._engine.epoch)))
        return self._read_several(client, body)

    def _read_several(self, client: str, body: dict[str, Any]) -> Iterator[Answer | None]:
        """Go through what is asked for a slice at a time: yields None to let others go on, at last the answer."""
        snapshots: list[orjson.Fragment] = []
        refused: list[dict[str, Any]] = []
        result: dict[str, Any] = {"snapshots": snapshots}
        size = 0
        last = ""
        for found in self._wanted(client, body):
            if found is None:
                yield None
                continue
            if isinstance(found, Refused):
                refused.append({"url": found.url, "code": found.code, "description": found.text})
                continue
            text = messages.snapshot(found, self._engine.epoch)
            if snapshots and size + len(text) > ANSWER_BYTES:
                result["next"] = last
                break
            size += len(text)
            snapshots.append(orjson.Fragment(text))
            last = found.url
        if refused:
            result["refused"] = refused
        yield Answer(200, result)

    def _wanted(self, client: str, body: dict[str, Any]) -> Iterator[DataObject | Refused | None]:
        """What a `read` of several asks for, in order: listed URLs, or all below a prefix; behind `after`. None: a slice is over."""
        after = body.get("after", "")
        children = body.get("children", False)
        if "prefix" in body:
            candidates = self._below(body["prefix"], after)
            for looked, obj in enumerate(candidates, 1):
                if looked % SLICE == 0:
                    yield None
                if (
                    not obj.deleted
                    and (children or parent_of(obj.topic) is None)
                    and self._engine.rights.may_observe(client, obj.topic)
                ):
                    yield obj
            return
        for url in body.get("resources") or [body["resource"]]:
            found = self.find(client, url)
            if after and after != found.url and not after.startswith(found.url + "/children/"):
                continue
            if not after:
                yield found
            if children and isinstance(found, DataObject):
                for looked, child in enumerate(self._engine.objects.from_url(found.url + "/children/", after), 1):
                    if looked % SLICE == 0:
                        yield None
                    if not child.deleted:
                        yield child
            after = ""

    def _below(self, prefix: str, after: str = "") -> Iterator[DataObject]:
        """The object at a URL and all below it; a prefix that ends in `/` is taken as it is."""
        prefix = normal_prefix(prefix)
        for obj in self._engine.objects.from_url(prefix, after):
            if prefix.endswith("/") or not prefix or len(obj.url) == len(prefix) or obj.url[len(prefix)] == "/":
                yield obj

    def _delete(self, effects: Effects, asked: Asked, body: dict[str, Any], now: float) -> Answer:
        client = asked.client
        found = self.find(client, body["resource"])
        if isinstance(found, Refused):
            return Answer(found.code, description=f"{found.url}: {found.text}")
        if found.reporter != client and not self._moderates(client, found):
            return Answer(
                403, description=f"{found.url}: its Reporter is {found.reporter!r}, and only the Reporter deletes it"
            )
        self._engine.delete(effects, found, now)
        return Answer(200, {"url": found.url, "version": found.version})

    def _moderates(self, client: str, obj: DataObject) -> bool:
        """Whether somebody's child may be deleted by a client because it reports the parent."""
        parent_topic = parent_of(obj.topic)
        parent = self._engine.objects.get(parent_topic) if parent_topic is not None else None
        return (
            parent is not None
            and parent.reporter == client
            and parent.namespace is not None
            and parent.namespace.moderate
        )

    def _discover(self, _effects: Effects, asked: Asked, body: dict[str, Any], _now: float) -> Iterator[Answer | None]:
        """Go through the objects a slice at a time: yields None to let others go on, at last the answer."""
        client = asked.client
        after = body.get("after", "")
        scheme, authority = body.get("scheme"), body.get("authority")
        prefix = body.get("prefix", "")
        listed: list[dict[str, Any]] = []
        digest = hashlib.sha256()
        total = 0
        more = False
        for looked, obj in enumerate(self._below(prefix), 1):
            if looked % SLICE == 0:
                yield None
            if obj.deleted or not self._asked_for(obj, body, client, scheme, authority):
                continue
            total += 1
            url = obj.url
            digest.update(url.encode() + b"\n")
            if url <= after:
                continue
            if len(listed) == PAGE:
                more = True
                continue
            listed.append(
                {
                    "url": url,
                    "schema": obj.schema.url if obj.schema is not None else None,
                    "reporter": obj.reporter,
                    "epoch": self._engine.epoch,
                    "version": obj.version,
                    "status": obj.status,
                    "name": obj.name,
                }
            )
        result: dict[str, Any] = {"objects": listed, "total": total, "digest": digest.hexdigest()}
        if more:
            result["next"] = listed[-1]["url"]
        yield Answer(200, result)

    def _asked_for(
        self, obj: DataObject, body: dict[str, Any], client: str, scheme: str | None, authority: str | None
    ) -> bool:
        if scheme is not None or authority is not None:
            its_scheme, _, rest = obj.topic.partition("/")
            if (scheme is not None and its_scheme != scheme) or (
                authority is not None and rest.partition("/")[0] != authority
            ):
                return False
        if "schema" in body and (obj.schema is None or body["schema"] not in (obj.schema.url, obj.schema.name)):
            return False
        if (
            ("name" in body and obj.name != body["name"])
            or ("reporter" in body and obj.reporter != body["reporter"])
            or ("status" in body and obj.status != body["status"])
            or ("tag" in body and body["tag"] not in (obj.tags or ()))
            or ("resource" in body and body["resource"] not in (obj.resources or ()))
            or (body.get("mine") and obj.reporter != client)
        ):
            return False
        return self._engine.rights.may_observe(client, obj.topic)

    def _compare(self, _effects: Effects, _asked: Asked, body: dict[str, Any], _now: float) -> Iterator[Answer | None]:
        return compare(self._engine.catalogue, body["mine"], body["theirs"], deep=body.get("deep", False))
