"""`ctxt report`, `get`, `ls`, `delete`: Data Objects from the shell."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from rich.text import Text

from gateway.client.scopes import Scope
from gateway.commands.connection import WITH_A_NAME, Connection, connected
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.scopes import address, below, report_of
from gateway.commands.terminal import (
    age,
    fits,
    out,
    printable,
    show_json,
    show_table,
    status_text,
    table,
    write_error,
    write_json,
    write_note,
)
from gateway.messages import instant
from gateway.objects import url_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from gateway.client.target import Target

MARKER = "gateway/+"
"""Retained by every gateway: it arrives behind the snapshots that were asked for before it."""

QUIET = 0.3
"""Seconds without a snapshot, behind the marker, after which a broker has sent all of them."""

AGES = 1_000
"""Objects whose age `ctxt ls` looks up; a longer list goes without."""

LINE_BYTES = 1 << 20

TRIES = 3


# ---- report ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """What is reported: exactly one of these."""

    assignments: Sequence[str] = ()
    merge: str | None = None
    patch: str | None = None
    stdin: bool = False

    def payload(self) -> bytes:
        """The report's payload. Raises CommandError (usage)."""
        if self.merge is not None:
            return _json_text(self.merge, dict, "--merge takes a JSON object (RFC 7396)")
        if self.patch is not None:
            return _json_text(self.patch, list, "--patch takes a JSON array (RFC 6902)")
        return orjson.dumps(report_of(self.assignments))

    def check(self) -> None:
        """Raises CommandError (usage) unless exactly one form is used."""
        forms = [bool(self.assignments), self.merge is not None, self.patch is not None, self.stdin]
        if sum(forms) != 1:
            raise CommandError(Exit.USAGE, "give key=value…, --merge, --patch or --stdin, and one of them only")


def _json_text(text: str, kind: type, sentence: str) -> bytes:
    try:
        value = orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise CommandError(Exit.USAGE, f"{sentence}; this is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise CommandError(Exit.USAGE, sentence)
    # As it was written: of duplicate keys and long numbers the gateway decides what becomes.
    return text.encode()


async def report(target: Target, url: str, said: Said, *, patience: float, verbose: bool) -> None:
    """Report on one object, and wait for the PUBACK that says it is stored. Raises CommandError."""
    said.check()
    place = address(url)
    payload = b"" if said.stdin else said.payload()
    async with connected(target, patience) as connection:
        if said.stdin:
            await _report_lines(connection, place.topic, verbose=verbose)
            return
        refusal = await connection.report(place.topic, payload)
    if refusal is not None:
        raise CommandError(refusal.code, f"{place.url} is not changed: {refusal}")
    if verbose:
        write_note(f"{place.url}: accepted and stored ({len(payload):,} bytes, as {target.client!r})")


async def _report_lines(connection: Connection, topic: str, *, verbose: bool) -> None:
    """One report a line, in order, each acknowledged before the next; what is refused is told, and the rest goes on."""
    url = url_of(topic)
    sent = refused = 0
    first = Exit.OK
    number = 0
    async for line in _lines():
        number += 1
        text = line.strip()
        if not text:
            continue
        refusal = await connection.report(topic, _line_payload(text, number))
        sent += 1
        if refusal is not None:
            refused += 1
            first = first or refusal.code
            write_error(f"line {number}: {url} is not changed: {refusal}")
    if refused:
        raise CommandError(first, f"{refused:,} of {sent:,} reports were refused")
    if verbose:
        write_note(f"{url}: {sent:,} report{'s' * (sent != 1)} accepted and stored, as {connection.target.client!r}")


def _line_payload(text: bytes, number: int) -> bytes:
    if text[:1] in (b"{", b"["):
        return text
    try:
        return orjson.dumps(report_of(shlex.split(text.decode())))
    except (ValueError, CommandError) as error:
        raise CommandError(Exit.USAGE, f"line {number} is neither JSON nor key=value: {error}") from error


class _Lines:
    """Standard input's lines. A thread of its own reads, so that neither a pipe nor Ctrl-C has to wait for the other."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(64)
        threading.Thread(target=self._read, daemon=True, name="stdin").start()

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                chunk = os.read(0, 65_536)
            except OSError:
                chunk = b""
            *lines, rest = (rest + chunk).split(b"\n")
            if not chunk and rest:
                lines.append(rest)
            if len(rest) > LINE_BYTES:
                # Nothing that long is taken; the gateway says so.
                lines.append(rest)
                chunk = b""
            try:
                for line in lines:
                    self._room.acquire()
                    self._loop.call_soon_threadsafe(self._queue.put_nowait, line)
                if not chunk:
                    self._loop.call_soon_threadsafe(self._queue.put_nowait, None)
                    return
            except RuntimeError:
                return  # the loop has ended

    def __aiter__(self) -> _Lines:
        return self

    async def __anext__(self) -> bytes:
        line = await self._queue.get()
        if line is None:
            raise StopAsyncIteration
        self._room.release()
        return line


def _lines() -> _Lines:
    return _Lines()


# ---- get ---------------------------------------------------------------------------------------------------------------


async def get(target: Target, url: str, *, patience: float, data: bool, json: bool) -> None:
    """Read one object and print it. Raises CommandError (3 where it does not exist or was deleted)."""
    place = address(url)
    async with connected(target, patience) as connection:
        if target.name is None:
            found = await retained(connection, Scope(place.url, place.url, (place.topic,), place))
            if not found:
                raise CommandError(
                    Exit.NOT_FOUND, f"{place.url}: the object does not exist, or nobody may read it here"
                )
            snapshot = found[0]
        else:
            snapshot = await connection.request("read", {"resource": place.url})
    if snapshot.get("deleted"):
        raise CommandError(Exit.NOT_FOUND, f"{place.url}: the object was deleted")
    if data:
        show_json(snapshot["data"], compact=json)
    elif json:
        write_json(snapshot)
    else:
        _show_snapshot(snapshot)


def _show_snapshot(snapshot: dict[str, Any]) -> None:
    out.print(Text(printable(snapshot["url"]), style="bold"))
    facts = {
        "status": status_text(snapshot["status"]),
        "reporter": Text(printable(snapshot["reporter"])),
        "schema": Text(printable(schema_name(snapshot["schema"]))),
        "version": Text(f"{snapshot['version']:,} in epoch {snapshot['epoch']}"),
        "modified": Text(f"{snapshot['modified']} ({age(time.time() - (instant(snapshot['modified']) or 0))} ago)"),
        "created": Text(snapshot["created"]),
    }
    for key in ("name", "description", "parent"):
        if snapshot.get(key) is not None:
            facts[key] = Text(printable(str(snapshot[key])))
    if snapshot.get("public"):
        facts["public"] = Text("every client with a name may observe it")
    for key in ("tags", "resources"):
        if snapshot.get(key):
            facts[key] = Text(printable(", ".join(snapshot[key])))
    for key, value in facts.items():
        out.print(Text.assemble((f"  {key:<12}", "dim"), value))
    show_json(snapshot["data"])


def schema_name(url: str | None) -> str:
    """The last part of a schema's URL."""
    return "-" if url is None else url.rpartition("/")[2]


async def retained(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """The retained snapshots and tombstones of a scope, sorted by URL: how a client without a name reads."""
    messages = connection.listen()
    await connection.subscribe(*(f"snapshot/{each}" for each in scope.filters))
    # The library asks for the marker too, when it connects: that one says nothing.
    early = messages.qsize()
    await connection.subscribe(MARKER)
    found: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + connection.timeout
    marked = False
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = await asyncio.wait_for(messages.get(), min(left, QUIET) if marked else left)
        except TimeoutError:
            break
        if message is None:
            raise connection.gone()
        early -= 1
        topic, payload = message
        if topic.startswith("gateway/"):
            marked = marked or early < 0
            continue
        if payload:
            snapshot = orjson.loads(payload)
            if scope.holds(snapshot["url"]):
                found[snapshot["url"]] = snapshot
                deadline = time.monotonic() + connection.timeout
    return [found[url] for url in sorted(found)]


# ---- ls ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """What `ctxt ls` is asked for."""

    prefix: str = ""
    mine: bool = False
    schema: str | None = None
    status: str | None = None
    name: str | None = None
    tag: str | None = None
    resource: str | None = None
    reporter: str | None = None

    def body(self, scope: Scope) -> dict[str, Any]:
        """The body of the `discover` request."""
        body: dict[str, Any] = {}
        if scope.prefix:
            body["prefix"] = scope.prefix
        if self.mine:
            body["mine"] = True
        for key in ("schema", "status", "name", "tag", "resource", "reporter"):
            if getattr(self, key) is not None:
                body[key] = getattr(self, key)
        return body


async def show_all(target: Target, wanted: Wanted, *, patience: float, json: bool) -> None:
    """List the objects that the client may see, and prove that the list is complete. Raises CommandError."""
    scope = below(wanted.prefix)
    async with connected(target, patience) as connection:
        if target.name is None:
            listed = await _list_retained(connection, scope, wanted)
        else:
            listed = await discover(connection, wanted.body(scope))
            if len(listed) <= AGES:
                await _add_times(connection, listed)
    if json:
        write_json(listed)
        return
    if not listed:
        write_note("there is nothing that you may see here")
        return
    made = _listing(listed, with_schema=True)
    show_table(made if fits(made) else _listing(listed, with_schema=False))


def _listing(listed: list[dict[str, Any]], *, with_schema: bool) -> Table:
    """The table of a list; without the schema it fits a narrow terminal better."""
    now = time.time()
    columns = ["URL", "SCHEMA", "REPORTER", "VERSION", "STATUS", "AGE"]
    if not with_schema:
        columns.remove("SCHEMA")
    made = table(*columns, right=("VERSION", "AGE"))
    for entry in listed:
        modified = instant(entry.get("modified"))
        cells: list[str | Text] = [
            Text(printable(entry["url"])),
            Text(printable(entry["reporter"])),
            f"{entry['version']:,}",
            status_text(entry["status"]),
            "" if modified is None else age(now - modified),
        ]
        if with_schema:
            cells.insert(1, Text(printable(schema_name(entry["schema"]))))
        made.add_row(*cells)
    return made


async def discover(connection: Connection, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Every page of a `discover`. Its digest proves that nothing is missing; what changed meanwhile is asked again.

    Raises CommandError (1) where the digest does not come to match.
    """
    for _ in range(TRIES):
        listed: list[dict[str, Any]] = []
        digests = set()
        after: str | None = None
        while True:
            page = await connection.request("discover", body if after is None else {**body, "after": after})
            listed.extend(page["objects"])
            digests.add(page["digest"])
            after = page.get("next")
            if after is None:
                break
        own = hashlib.sha256(b"".join(entry["url"].encode() + b"\n" for entry in listed)).hexdigest()
        if digests == {own} and page["total"] == len(listed):
            return listed
    raise CommandError(
        Exit.FAILED,
        f"the list does not come to match the gateway's digest after {TRIES} tries: objects come and go too fast; try again, "
        "or ask for a smaller prefix",
    )


async def _add_times(connection: Connection, listed: list[dict[str, Any]]) -> None:
    """Put `modified` into each entry. What has gone meanwhile stays without."""
    by_url = {entry["url"]: entry for entry in listed}
    urls = list(by_url)
    for start in range(0, len(urls), 100):
        body: dict[str, Any] = {"resources": urls[start : start + 100]}
        while True:
            page = await connection.request("read", body)
            for snapshot in page["snapshots"]:
                by_url[snapshot["url"]]["modified"] = snapshot["modified"]
            if "next" not in page:
                break
            body["after"] = page["next"]


async def _list_retained(connection: Connection, scope: Scope, wanted: Wanted) -> list[dict[str, Any]]:
    if wanted.mine:
        raise CommandError(
            Exit.USAGE,
            f"--mine needs a name: {WITH_A_NAME}",
        )
    keys = ("url", "schema", "reporter", "epoch", "version", "status", "name", "modified")
    return [
        {key: snapshot.get(key) for key in keys}
        for snapshot in await retained(connection, scope)
        if not snapshot.get("deleted")
        and (wanted.schema is None or wanted.schema in (snapshot["schema"], schema_name(snapshot["schema"])))
        and all(getattr(wanted, key) in (None, snapshot[key]) for key in ("status", "name", "reporter"))
        and (wanted.tag is None or wanted.tag in snapshot.get("tags", ()))
        and (wanted.resource is None or wanted.resource in snapshot.get("resources", ()))
    ]


# ---- delete ------------------------------------------------------------------------------------------------------------


async def delete(target: Target, url: str, *, patience: float) -> None:
    """Delete an object of the client's own. Raises CommandError."""
    place = address(url)
    async with connected(target, patience) as connection:
        await connection.request("delete", {"resource": place.url})
    write_note(f"{place.url} deleted")
