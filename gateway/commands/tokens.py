"""`ctxt client token`: makes tokens with the shared key, and looks at tokens."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.text import Text

from gateway.commands import config
from gateway.commands.clients import standing
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.terminal import out, printable, read_stdin, show_table, table, write_json, write_note
from gateway.messages import rfc3339
from gateway.service import bearers
from gateway.settings import duration, duration_text
from gateway.tokens import TokenError, TokenKeyError, contents

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.settings import Settings
    from gateway.tokens import Bearers

SHOWN = 60
"""Characters of a value that are shown to people."""

LATEST = 253_402_300_799
"""The last second that a date can be written for."""


def _bearers(settings: Settings) -> Bearers:
    try:
        found = bearers(settings)
    except TokenKeyError as error:
        raise CommandError(Exit.CONFIG, str(error)) from error
    if found is None:
        raise CommandError(
            Exit.CONFIG,
            "the gateway takes no tokens: name a key_file (or the issuer's jwks) in [tokens]; docs/listeners.md says how",
        )
    return found


def mint(given: Path | None, name: str, groups: str, expires: str) -> None:
    """A token for a client, alone on standard output. Raises CommandError."""
    settings = config.load(given)
    found = _bearers(settings)
    try:
        lifetime = duration(expires)
    except ValueError as error:
        raise CommandError(Exit.USAGE, f"--expires {expires!r} {error}") from error
    if lifetime < 1:
        raise CommandError(Exit.USAGE, f"--expires {expires!r} is over at once: take a second at least")
    named = [group.strip() for group in groups.split(",") if group.strip()]
    try:
        token = found.tokens.mint(name, named, lifetime)
    except TokenError as error:
        raise CommandError(Exit.INVALID, f"no token can be made: {error}") from error
    for group in named:
        if group not in settings.groups:
            write_note(f"there is no group {group!r} in [groups]: nothing comes of it as long as there is none")
    known = standing(settings, name)
    if known is False:
        write_note(f"client {name} is disabled, so the token is refused: `ctxt client enable {name}`")
    elif known is None and not found.any_name:
        write_note(f"client {name} is not known, so the token is refused until `ctxt client add {name}`")
    write_note(f"a token for client {name}, good for {duration_text(int(lifetime))}; it is shown only now:")
    out.print(Text(token))


def check(given: Path | None, *, json: bool) -> None:
    """Say what the token on standard input holds. Raises CommandError (6) where it is not good."""
    settings = config.load(given)
    found = _bearers(settings)
    token = read_stdin().strip()
    held = contents(token) or {}
    reason = None
    try:
        identity = found.tokens.check(token)
        known = standing(settings, identity.client)
        if not known and not (known is None and found.any_name):
            reason = f"client {identity.client} is {'disabled' if known is False else 'not known here'}"
    except TokenError as error:
        reason = str(error)
    if json:
        write_json({"good": reason is None, "reason": reason, "claims": held})
    elif held:
        made = table("MEMBER", "VALUE")
        for member, value in held.items():
            made.add_row(Text(printable(member[:SHOWN])), Text(printable(_shown(member, value))))
        show_table(made)
    if reason is not None:
        raise CommandError(Exit.INVALID, f"the gateway refuses this token: {reason}")
    write_note("the gateway takes this token")


def _shown(member: str, value: Any) -> str:
    if member in ("exp", "nbf", "iat") and isinstance(value, int | float) and 0 <= value <= LATEST:
        left = value - time.time()
        about = f", in {duration_text(int(left))}" if left > 0 else ", over" if member == "exp" else ""
        return rfc3339(int(value * 1000)) + about
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
