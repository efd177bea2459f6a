"""The payloads that clients read and write: snapshots, tombstones, value views, requests, responses, inbox messages. Pure.

Times are RFC 3339 UTC with milliseconds; everything built here is JSON in UTF-8.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import CtxtError
from gateway.patch import depth_exceeds

if TYPE_CHECKING:
    from gateway.objects import DataObject

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

MAX_VIEW_KEYS = 1_000
"""More scalars than this are left out of a value view and counted: a panel with more is no panel."""


def rfc3339(milliseconds: int) -> str:
    """Unix milliseconds as `2026-01-31T09:30:00.000Z`."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def instant(text: object) -> float | None:
    """Unix seconds of an RFC 3339 time, or None where it is not one."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return (moment - _EPOCH).total_seconds()


class PayloadError(CtxtError):
    """A payload that is not what it must be. `code` follows HTTP: 400 not JSON, 413 too large or too deep."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def parse_json(payload: bytes, *, max_bytes: int, max_depth: int) -> Any:
    """The JSON value of an untrusted payload. Raises PayloadError (413 size or depth, 400 not JSON).

    NaN, Infinity, lone surrogates, invalid UTF-8 and trailing bytes are refused; of duplicate keys the last wins, integers
    beyond 64 bits become doubles.
    """
    if len(payload) > max_bytes:
        raise PayloadError(413, too_long(len(payload), max_bytes))
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise not_json(payload, error, max_depth) from None
    # As many brackets as levels are allowed cannot nest deeper than allowed: most payloads are done here.
    if payload.count(b"[") + payload.count(b"{") > max_depth and depth_exceeds(value, max_depth):
        raise PayloadError(413, too_deep(max_depth))
    return value


def too_long(size: int, limit: int) -> str:
    """The sentence that answers a payload of too many bytes."""
    return f"the payload has {size:,} bytes, at most {limit:,} are taken: send less at once"


def too_deep(limit: int) -> str:
    """The sentence that answers a payload that is nested too deep."""
    return f"the payload is nested deeper than {limit} levels: flatten it"


def not_json(payload: bytes, error: orjson.JSONDecodeError, max_depth: int) -> PayloadError:
    """What to raise for a payload that the parser refused."""
    if not payload:
        return PayloadError(
            400,
            "the payload is empty: send a JSON object (merge patch) or array (JSON Patch); "
            "an object is deleted by a delete request",
        )
    if "limit" in error.msg.lower():  # orjson stops at a depth of about a thousand
        return PayloadError(413, too_deep(max_depth))
    return PayloadError(400, f"the payload is not JSON: {error.msg} (line {error.lineno}, column {error.colno})")


def snapshot(obj: DataObject, epoch: int) -> bytes:
    """The retained whole of an object, or its tombstone."""
    if obj.deleted:
        return orjson.dumps(
            {"url": obj.url, "epoch": epoch, "version": obj.version, "modified": rfc3339(obj.modified), "deleted": True}
        )
    head: dict[str, Any] = {
        "url": obj.url,
        "schema": obj.schema.url if obj.schema is not None else None,
        "reporter": obj.reporter,
        "name": obj.name,
        "epoch": epoch,
        "version": obj.version,
        "created": rfc3339(obj.created),
        "modified": rfc3339(obj.modified),
        "status": obj.status,
    }
    if obj.description is not None:
        head["description"] = obj.description
    if obj.tags is not None:
        head["tags"] = obj.tags
    if obj.resources is not None:
        head["resources"] = obj.resources
    if obj.public:
        head["public"] = True
    parent = obj.parent
    if parent is not None:
        head["parent"] = parent
    return b'%b,"data":%b}' % (orjson.dumps(head)[:-1], obj.render())


def value_view(obj: DataObject) -> tuple[bytes, int]:
    r"""The flat view of an object, and how many values had to be left out.

    Keys are joined by `.` (a `.` in a key is `\.`), arrays by index; no nulls; a key keeps the JSON type it had first.
    """
    types = obj.types
    if types is None:
        types = obj.types = {}
    flat: dict[str, Any] = {}
    left_out = 0
    # Where many keys have come and gone, the types of those that are still there are kept.
    met: set[str] | None = set() if len(types) > MAX_VIEW_KEYS else None
    stack: list[tuple[str | None, Any]] = [(None, obj.document())]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            head = "" if path is None else path + "."
            stack.extend((head + key.replace("\\", "\\\\").replace(".", "\\."), value[key]) for key in reversed(value))
        elif isinstance(value, list):
            stack.extend((f"{path}.{i}", value[i]) for i in range(len(value) - 1, -1, -1))
        elif value is not None:
            assert path is not None  # the whole is an object
            if met is not None:
                met.add(path)
            kind = "boolean" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
            if path in ("status", "modified") or len(flat) >= MAX_VIEW_KEYS or types.setdefault(path, kind) != kind:
                left_out += 1
            else:
                flat[path] = value
    if met is not None:
        obj.types = {key: kind for key, kind in types.items() if key in met}
    flat["status"] = obj.status
    flat["modified"] = rfc3339(obj.modified)
    return orjson.dumps(flat), left_out


def rejection(
    url: str, code: int, description: str, *, place: str | None, created: int, number: int, more: int
) -> bytes:
    """The inbox message about a refused report; `more` counts those that were refused in silence since the last message."""
    body: dict[str, Any] = {
        "id": f"rejection-{number}",
        "type": "rejection",
        "resource": url,
        "from": "gateway",
        "created": rfc3339(created),
        "code": code,
        "description": description,
    }
    if place is not None:
        body["place"] = place
    if more:
        body["suppressed"] = more
    return orjson.dumps(body)


def response(request_id: str, code: int, body: Any = None, description: str | None = None) -> bytes:
    """The answer to a request."""
    answer: dict[str, Any] = {"id": request_id, "type": "response", "code": code}
    if description is not None:
        answer["description"] = description
    if body is not None:
        answer["body"] = body
    return orjson.dumps(answer)


def announcement(*, status: str, epoch: int, counter: int, patterns: list[str], version: str) -> bytes:
    """The retained `gateway/{id}`: who serves which patterns."""
    return orjson.dumps(
        {"status": status, "epoch": epoch, "counter": counter, "patterns": patterns, "version": version}
    )
