"""`ctxt create`, `update`, `subscribe`, `invite`, `accept`, `delegate`, `execute` and the like: what clients ask of each other."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from rich.text import Text

from gateway.commands.acl import until
from gateway.commands.connection import connected
from gateway.commands.objects import schema_name
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.scopes import address
from gateway.commands.terminal import (
    age,
    out,
    printable,
    show_json,
    show_table,
    status_text,
    table,
    write_json,
    write_note,
)
from gateway.messages import instant

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.client.target import Target

LATER = "what waits is decided when the other one says so: `--wait SECONDS` waits for it"


def json_value(text: str, option: str) -> Any:
    """The JSON value of an option; `-` reads it from standard input. Raises CommandError (usage)."""
    try:
        return orjson.loads(sys.stdin.buffer.read() if text == "-" else text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise CommandError(Exit.USAGE, f"{option} takes JSON; this is none: {error}") from error


def rfc3339(text: str) -> str:
    """What `--expires` says, as the gateway wants it. Raises CommandError (usage)."""
    return datetime.fromtimestamp(until(text), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an object is to be: exactly one of these."""

    url: str | None = None
    scheme: str | None = None
    authority: str | None = None
    parent: str | None = None
    collection: str | None = None

    def body(self) -> dict[str, Any]:
        """The members of `create`. Raises CommandError (usage)."""
        made = self.scheme is not None or self.authority is not None
        child = self.parent is not None or self.collection is not None
        if (self.url is not None) + made + child != 1:
            raise CommandError(
                Exit.USAGE,
                "give a URL, or --scheme and --authority, or --parent and --collection, and one of them only",
            )
        if self.url is not None:
            return {"resource": address(self.url).url}
        if made:
            if self.scheme is None or self.authority is None:
                raise CommandError(Exit.USAGE, "--scheme and --authority belong together")
            return {"scheme": self.scheme, "authority": self.authority}
        if self.parent is None or self.collection is None:
            raise CommandError(Exit.USAGE, "--parent and --collection belong together")
        return {"parent": address(self.parent).url, "collection": self.collection}


async def _ask(target: Target, patience: float, kind: str, body: dict[str, Any]) -> Any:
    async with connected(target, patience) as connection:
        return await connection.request(kind, body)


# ---- objects -----------------------------------------------------------------------------------------------------------


async def create(
    target: Target,
    place: Place,
    value: str | None,
    expires: str | None,
    facts: dict[str, Any],
    *,
    patience: float,
    json: bool,
) -> None:
    """Create an object and print its URL. Raises CommandError."""
    body = {**place.body(), **{key: found for key, found in facts.items() if found}}
    if value is not None:
        body["value"] = json_value(value, "--value")
    if expires is not None:
        if "observers" not in body:
            raise CommandError(Exit.USAGE, "--expires is about the grants of --observer: give one")
        body["expires"] = rfc3339(expires)
    snapshot = await _ask(target, patience, "create", body)
    if json:
        write_json(snapshot)
    else:
        out.print(Text(printable(snapshot["url"])))


async def update(
    target: Target,
    url: str,
    changes: dict[str, str | None],
    meta: dict[str, Any],
    version: int | None,
    *,
    patience: float,
    json: bool,
) -> None:
    """Change an object's data, or what it says of itself. Raises CommandError."""
    given = {key: text for key, text in changes.items() if text is not None}
    if len(given) + bool(meta) != 1:
        raise CommandError(
            Exit.USAGE, "give --merge, or --patch, or what is to be said of it (--name, --tag, …), and one of them only"
        )
    body: dict[str, Any] = {"resource": address(url).url}
    for key, text in given.items():
        body[key] = json_value(text, f"--{key}")
    if meta:
        body["meta"] = meta
    if version is not None:
        body["version"] = version
    done = await _ask(target, patience, "update", body)
    if json:
        write_json(done)
    else:
        write_note(f"{done['url']} is at version {done['version']:,}")


async def children(target: Target, url: str, collection: str | None, *, patience: float, json: bool) -> None:
    """List the children of an object. Raises CommandError."""
    place = address(url)
    body: dict[str, Any] = {"resource": place.url, "children": True}
    found: list[dict[str, Any]] = []
    async with connected(target, patience) as connection:
        while True:
            page = await connection.request("read", body)
            for refused in page.get("refused", ()):
                raise CommandError(Exit.NOT_FOUND, f"{refused['url']}: {refused['description']}")
            head = f"{place.url}/children/" + (f"{collection}/" if collection else "")
            found += [snapshot for snapshot in page["snapshots"] if snapshot["url"].startswith(head)]
            if "next" not in page:
                break
            body["after"] = page["next"]
    if json:
        write_json(found)
        return
    if not found:
        write_note(f"{place.url} has no children" + (f" in {collection}" if collection else ""))
        return
    made = table("CHILD", "SCHEMA", "REPORTER", "VERSION", "STATUS", "AGE", right=("VERSION", "AGE"))
    for snapshot in found:
        made.add_row(
            Text(printable(snapshot["url"].removeprefix(place.url + "/children/"))),
            Text(printable(schema_name(snapshot["schema"]))),
            Text(printable(snapshot["reporter"])),
            f"{snapshot['version']:,}",
            status_text(snapshot["status"]),
            age(time.time() - (instant(snapshot["modified"]) or 0)),
        )
    show_table(made)


# ---- to observe --------------------------------------------------------------------------------------------------------


async def _decided(
    target: Target, patience: float, kind: str, body: dict[str, Any], wait: float | None
) -> tuple[int, Any]:
    """(code, body) of what another client may have to decide: with `wait` (seconds) the decision. Raises CommandError."""
    if wait is not None:
        body["timeout"] = wait
    async with connected(target, patience) as connection:
        return await connection.ask(kind, body, decision=None if wait is None else wait + patience)


async def subscribe(target: Target, url: str, wait: float | None, *, patience: float, json: bool) -> None:
    """Ask to observe an object. Raises CommandError (4 rejected, 5 not decided in time)."""
    place = address(url)
    code, body = await _decided(target, patience, "subscribe", {"resource": place.url}, wait)
    if json:
        write_json(body)
    elif code == 202:
        write_note(f"its Reporter is asked, until {body['expires']}; {LATER}")
        out.print(Text(body["request"]))
    else:
        write_note(f"you may observe {place.url}: `ctxt observe {place.url}`")


async def unsubscribe(target: Target, url: str, client: str | None, *, patience: float, json: bool) -> None:
    """Give a grant back, or take one back. Raises CommandError."""
    place = address(url)
    body = {"resource": place.url} | ({"client": client} if client else {})
    done = await _ask(target, patience, "unsubscribe", body)
    who = client or "you"
    if json:
        write_json(done)
    elif done["observes"]:
        write_note(f"the grant is gone; {who} may observe {place.url} all the same: its namespace says so")
    else:
        write_note(f"{who} may not observe {place.url} any more")


async def invite(
    target: Target, url: str, clients: Sequence[str], expires: str | None, *, patience: float, json: bool
) -> None:
    """Grant an object to clients, and tell them. Raises CommandError."""
    body: dict[str, Any] = {"resource": address(url).url, "observers": list(clients)}
    if expires is not None:
        body["expires"] = rfc3339(expires)
    done = await _ask(target, patience, "invite", body)
    if json:
        write_json(done)
        return
    write_note(f"{', '.join(done['invited'])} may observe {done['url']} and its children")
    if "untold" in done:
        write_note(f"not told, for too much waits in the inbox: {', '.join(done['untold'])}")


# ---- what waits --------------------------------------------------------------------------------------------------------


async def pending(target: Target, *, patience: float, json: bool) -> None:
    """List what waits for the client's decision. Raises CommandError."""
    found = (await _ask(target, patience, "resume", {}))["pending"]
    if json:
        write_json(found)
        return
    if not found:
        write_note("nothing waits for you")
        return
    made = table("ID", "WHAT", "FROM", "OBJECT", "UNTIL")
    for item in found:
        what = item["type"] if item["type"] != "action" else f"action {item['method']}"
        made.add_row(
            item["id"], Text(printable(what)), item["from"], Text(printable(item["resource"])), item["expires"]
        )
    show_table(made)


async def decide(target: Target, kind: str, item: str, more: dict[str, Any], *, patience: float, json: bool) -> None:
    """Accept or reject what waits. Raises CommandError (3 where it does no longer)."""
    done = await _ask(target, patience, kind, {"request": item, **more})
    if json:
        write_json(done)
    elif kind == "reject":
        write_note(f"rejected: {done['url']}")
    elif "client" in done:
        write_note(f"{done['client']} may observe {done['url']} and its children")
    else:
        write_note(f"accepted: {done['url']}, whose Reporter is {done['reporter']}")


async def delegate(target: Target, url: str, to: str, wait: float | None, *, patience: float, json: bool) -> None:
    """Offer an object to another Reporter. Raises CommandError (4 rejected, 5 not decided in time)."""
    place = address(url)
    code, body = await _decided(target, patience, "delegate", {"resource": place.url, "to": to}, wait)
    if json:
        write_json(body)
    elif code == 202:
        write_note(f"{place.url} is offered to {to} until {body['expires']}, and stays yours meanwhile; {LATER}")
        out.print(Text(body["request"]))
    else:
        write_note(f"{body['reporter']} is the Reporter of {place.url} now")


# ---- to act ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wish:
    """What the Reporter is asked to do; `wait` in seconds."""

    method: str
    params: str | None = None
    idempotent: bool = False
    wait: float = 10.0


async def execute(target: Target, url: str, wish: Wish, *, patience: float, json: bool) -> None:
    """Ask an object's Reporter to act, and print its answer. Raises CommandError with what went wrong."""
    body: dict[str, Any] = {"resource": address(url).url, "method": wish.method, "timeout": wish.wait}
    if wish.params is not None:
        body["params"] = json_value(wish.params, "--params")
    if wish.idempotent:
        body["idempotent"] = True
    async with connected(target, patience) as connection:
        _, found = await connection.ask("execute", body, within=wish.wait + patience)
    if json:
        write_json(found)
    elif found is None:
        write_note("done")
    else:
        show_json(found)
