"""The control plane: what clients ask on `request/{client}`, and what they are answered. Pure, as the engine is.

A handler takes (effects, client, body, now) and gives an `Answer`, or, where it looks at many objects, an iterator that yields None to let
others go on and at last the `Answer`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson

from gateway import messages
from gateway.address import Address, AddressError, normal_prefix
from gateway.comparison import compare
from gateway.effects import Answer, Refused, Reply
from gateway.messages import PayloadError
from gateway.objects import DataObject, parent_of

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
        self._handlers: dict[str, Callable[..., Answer | Iterator[Answer | None]]] = {
            "read": self._read,
            "delete": self._delete,
            "discover": self._discover,
            "compare": self._compare,
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
            return Reply(client, text, topic, correlation)

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
        answer = self._answer(effects, client, value, now)
        if isinstance(answer, Answer):
            if answer.code >= 400:
                self._engine.counters.requests_refused[answer.code] += 1
            effects.replies.append(reply(known_id, answer))
        else:
            effects.work.append(None if step is None else reply(known_id, step) for step in answer)

    def _answer(self, effects: Effects, client: str, value: Any, now: float) -> Answer | Iterator[Answer | None]:
        for schema, data in self._forms(value):
            if not schema.is_valid(data):
                first = schema.problems(data, limit=1)[0]
                return Answer(400, description=f"{first.place or '/'}: {first.text}")
        handler = self._handlers.get(value["type"])
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return Answer(400, description=f"unknown type {value['type'][:64]!r}: known are {known}")
        return handler(effects, client, value.get("body", {}), now)

    def _forms(self, value: Any) -> Iterator[tuple[Schema, Any]]:
        """The message schemas that a request must satisfy, each with the part it is about."""
        forms = self._engine.catalogue.messages
        yield forms["request"], value
        body = forms.get(value["type"])
        if body is not None:
            yield body, value.get("body", {})

    def _find(self, client: str, text: str) -> DataObject | Refused:
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

    def _read(
        self, _effects: Effects, client: str, body: dict[str, Any], _now: float
    ) -> Answer | Iterator[Answer | None]:
        single = body.get("resource")
        if single is not None and not body.get("children"):
            found = self._find(client, single)
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
            found = self._find(client, url)
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

    def _delete(self, effects: Effects, client: str, body: dict[str, Any], now: float) -> Answer:
        found = self._find(client, body["resource"])
        if isinstance(found, Refused):
            return Answer(found.code, description=f"{found.url}: {found.text}")
        if found.reporter != client:
            return Answer(
                403, description=f"{found.url}: its Reporter is {found.reporter!r}, and only the Reporter deletes it"
            )
        self._engine.delete(effects, found, now)
        return Answer(200, {"url": found.url, "version": found.version})

    def _discover(self, _effects: Effects, client: str, body: dict[str, Any], _now: float) -> Iterator[Answer | None]:
        """Go through the objects a slice at a time: yields None to let others go on, at last the answer."""
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

    def _compare(self, _effects: Effects, _client: str, body: dict[str, Any], _now: float) -> Iterator[Answer | None]:
        return compare(self._engine.catalogue, body["mine"], body["theirs"], deep=body.get("deep", False))
