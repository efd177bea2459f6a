"""What a client can ask of the gateway and of other clients (docs/protocol.md, Requests), once for both edges.

All raise RefusedError, NotConnectedError, NoAnswerError; AddressError for a URL that is none, UsageError for a call that cannot be.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.address import Address
from gateway.client.errors import UsageError
from gateway.client.reporting import Reporting
from gateway.objects import topic_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.client.core import Core

When = datetime | str | None
"""A moment: a datetime with its time zone, or RFC 3339 text."""

MOST_ACTION = 300.0
"""Seconds that an action may take at most."""


def rfc3339(moment: When) -> str | None:
    """A moment as the gateway wants it. Raises UsageError for a datetime without a time zone."""
    if not isinstance(moment, datetime):
        return moment
    if moment.tzinfo is None:
        raise UsageError("a moment needs its time zone: datetime.now(UTC), or .astimezone()")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _given(**members: Any) -> dict[str, Any]:
    """Those members of a body that are said."""
    return {key: value for key, value in members.items() if value is not None}


async def create(
    core: Core,
    url: str | None,
    *,
    schema: str | None = None,
    data: dict[str, Any] | None = None,
    name: str | None = None,
    description: str | None = None,
    tags: Sequence[str] | None = None,
    resources: Sequence[str] | None = None,
    public: bool | None = None,
    policy: str | None = None,
    observers: Sequence[str] | None = None,
    expires: When = None,
    scheme: str | None = None,
    authority: str | None = None,
    parent: str | None = None,
    collection: str | None = None,
) -> Reporting:
    """Create an object, or find one's own that is there."""
    await core.listen()
    body = _given(
        resource=None if url is None else Address.parse(url).url,
        schema=schema,
        value=data,
        name=name,
        description=description,
        tags=None if tags is None else list(tags),
        resources=None if resources is None else list(resources),
        public=public,
        policy=policy,
        observers=None if observers is None else list(observers),
        expires=rfc3339(expires),
        scheme=scheme,
        authority=authority,
        parent=parent,
        collection=collection,
    )
    snapshot = await core.request("create", body)
    return Reporting(core, topic_of(snapshot["url"]), snapshot)


async def resume(core: Core, url: str) -> Reporting:
    """One's own object that is there."""
    await core.listen()
    snapshot = await core.request("read", {"resource": Address.parse(url).url})
    if snapshot.get("reporter") != core.target.name:
        raise UsageError(
            f"{snapshot['url']} is reported by {snapshot.get('reporter')!r}, not by {core.target.name!r}: observe it, or ask for a delegation"
        )
    return Reporting(core, topic_of(snapshot["url"]), snapshot)


async def owned(core: Core) -> list[dict[str, Any]]:
    """One's own objects, as `resume` lists them."""
    return await core.pages("resume", {}, "objects")


async def discover(core: Core, prefix: str | None, members: dict[str, Any]) -> list[dict[str, Any]]:
    """What the client may see, as `discover` lists it."""
    return await core.pages("discover", _given(prefix=prefix or None, **members), "objects")


async def subscribe(core: Core, url: str, *, wait: float) -> dict[str, Any]:
    """Ask the Reporter of a closed object to be let in, and wait for its decision; the snapshot."""
    body = {"resource": Address.parse(url).url}
    if wait > 0:
        body["timeout"] = max(1, round(wait))  # type: ignore[assignment]
    _, snapshot = await core.ask("subscribe", body, decision=wait)
    return snapshot  # type: ignore[no-any-return]


async def unsubscribe(core: Core, url: str) -> None:
    """Give a grant back."""
    await core.request("unsubscribe", {"resource": Address.parse(url).url})


async def invite(core: Core, url: str, names: Sequence[str], expires: When) -> list[str]:
    """Let clients observe an object; the names of those who could not be told."""
    answer = await core.request(
        "invite", {"resource": url, "observers": list(names), **_given(expires=rfc3339(expires))}
    )
    return list(answer.get("untold", ()))


async def revoke(core: Core, url: str, name: str) -> None:
    """Take a client's grant back."""
    await core.request("unsubscribe", {"resource": url, "client": name})


async def delegate(core: Core, url: str, to: str, *, wait: float | None, timeout: float | None) -> bool:
    """Offer an object to another client. True when it has accepted within `wait` seconds; False where nobody waits."""
    code, _ = await core.ask("delegate", {"resource": url, "to": to, **_given(timeout=timeout)}, decision=wait)
    return code != 202


async def delete(core: Core, url: str) -> None:
    """Delete an object, and its children with it."""
    await core.request("delete", {"resource": url})


async def describe(core: Core, url: str, meta: dict[str, Any]) -> None:
    """Change what an object says of itself."""
    await core.request("update", {"resource": url, "meta": meta})


async def add_child(
    core: Core, url: str, collection: str, data: dict[str, Any] | None, *, identity: str | None
) -> Reporting:
    """Add a child to an object that this client observes or reports."""
    if identity is None:
        return await create(core, None, data=data, parent=url, collection=collection)
    return await create(core, f"{url}/children/{collection}/{core.target.client}/{identity}", data=data)


async def execute(core: Core, url: str, method: str, params: Any, *, timeout: float | None, idempotent: bool) -> Any:
    """Ask an object's Reporter to do something; the answer's body."""
    body: dict[str, Any] = {"resource": url, "method": method, **_given(params=params, timeout=timeout)}
    if idempotent:
        body["idempotent"] = True
    # The gateway answers 504 itself; what is waited for beyond is the way there and back.
    patience = (MOST_ACTION if timeout is None else timeout) + core.timeout
    return await core.request("execute", body, seconds=patience)


async def respond(core: Core, number: str, code: int, body: Any, description: str | None) -> None:
    """Answer an action."""
    await core.request("response", {"id": number, "code": code, **_given(body=body, description=description)})
