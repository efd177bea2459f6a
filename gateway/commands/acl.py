"""`ctxt acl`: who may read and write what, asked of the running gateway; grants; an object's Reporter."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import TYPE_CHECKING

from rich.text import Text

from gateway.commands.outcome import CommandError, Exit
from gateway.commands.running import ask, change
from gateway.commands.terminal import out, printable, show_table, table, write_json, write_note
from gateway.settings import duration

if TYPE_CHECKING:
    from pathlib import Path


def explain(given: Path | None, client: str, action: str, topic: str, *, json: bool) -> None:
    """Say whether, and why. Raises CommandError (4) where it may not."""
    (found,) = ask(given, {"do": "explain", "client": client, "action": action, "topic": topic})
    if json:
        write_json(found)
    else:
        verdict = Text("yes", style="green") if found["may"] else Text("no", style="red")
        out.print(verdict.append(f"  {printable(found['why'])}", style="default"))
        if "broker" in found:
            says = "yes" if found["broker"] else "no"
            agrees = "" if found["broker"] == found["may"] else ": the two differ, see `ctxt acl test`"
            out.print(Text(f"the broker itself says {says}{agrees}"))
    if not found["may"]:
        raise CommandError(Exit.NOT_ALLOWED, "")


def grants(given: Path | None, client: str | None, url: str | None, *, json: bool) -> None:
    """List the grants, of one client or one object where that is asked for."""
    request = {"do": "grants"} | ({"client": client} if client else {}) | ({"url": url} if url else {})
    found = sorted(ask(given, request), key=lambda one: (one["url"], one["client"]))
    if json:
        write_json(found)
        return
    if not found:
        write_note("there are no grants; the namespaces' `observe` lists hold all the same")
        return
    made = table("OBJECT", "CLIENT", "REPORTER", "UNTIL")
    for one in found:
        made.add_row(
            Text(one["url"]), one["client"], one["reporter"], one["expires"] or Text("it is revoked", style="dim")
        )
    show_table(made)


def grant(given: Path | None, client: str, url: str, expires: str | None, *, json: bool) -> None:
    """Let a client observe an object. Raises CommandError."""
    ends_at = 0.0 if expires is None else until(expires)
    (found,) = change(given, {"do": "grant", "client": client, "url": url, "until": ends_at})
    if json:
        write_json(found)
        return
    ends = f" until {found['expires']}" if found["expires"] else ""
    write_note(f"{client} may observe {found['url']} and its children{ends}")


def until(text: str) -> float:
    """Unix seconds of a time, or of what is left until then. Raises CommandError."""
    if re.match(r"\d{4}-", text):
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            found = None
        if found is None or found.tzinfo is None:
            raise CommandError(
                Exit.USAGE, f"--expires {text!r} is no time: write it like 2026-12-31T18:00:00Z, with its zone"
            )
        return found.timestamp()
    try:
        left = duration(text)
    except ValueError as error:
        raise CommandError(Exit.USAGE, f"--expires {text!r} {error}, or a time like 2026-12-31T18:00:00Z") from error
    return time.time() + left


def revoke(given: Path | None, client: str, url: str, *, json: bool) -> None:
    """Take a grant back. Raises CommandError."""
    (found,) = change(given, {"do": "revoke", "client": client, "url": url})
    if json:
        write_json(found)
    elif found["observes"]:
        write_note(f"the grant is gone; {client} observes {found['url']} all the same: `ctxt acl explain` says why")
    else:
        write_note(f"{client} gets nothing more of {found['url']}")


def assign(given: Path | None, url: str, client: str, *, json: bool) -> None:
    """Give an object another Reporter. Raises CommandError."""
    (found,) = change(given, {"do": "assign", "client": client, "url": url})
    if json:
        write_json(found)
    elif found["former"] == client:
        write_note(f"{client} is the Reporter of {found['url']} already")
    else:
        write_note(f"{client} is the Reporter of {found['url']} now; {found['former']} was")
