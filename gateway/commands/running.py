"""How commands ask the running gateway, and `ctxt reload`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway import control
from gateway.commands import config
from gateway.commands.outcome import CommandError, Exit, exit_of_code
from gateway.commands.terminal import write_json, write_note

if TYPE_CHECKING:
    from pathlib import Path


def ask(given: Path | None, request: dict[str, Any], *, patience: float = control.PATIENCE) -> list[dict[str, Any]]:
    """The running gateway's answer. Raises CommandError."""
    folder = config.load(given).state_dir
    try:
        return control.ask(folder, request, patience=patience)
    except control.ControlError as error:
        if error.code is not None:
            raise CommandError(exit_of_code(error.code), str(error)) from error
        denied = isinstance(error.__cause__, PermissionError)
        raise CommandError(Exit.NOT_ALLOWED if denied else Exit.NO_CONNECTION, str(error)) from error


def change(given: Path | None, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The same for what changes something, and may have to wait for a broker outside."""
    return ask(given, request, patience=control.LONGEST_WORK + 1)


def reload(given: Path | None, *, json: bool) -> None:
    """Have the running gateway read settings and schemas again. Raises CommandError (78) where they are refused."""
    # What is wrong with the file is told here, with its places, before the gateway is asked.
    config.load(given)
    try:
        found = change(given, {"do": "reload"})
    except CommandError as error:
        if error.code is Exit.INVALID:
            raise CommandError(Exit.CONFIG, str(error)) from error
        raise
    if json:
        write_json([one["changed"] for one in found])
        return
    changed = ", ".join(one["changed"] for one in found)
    write_note(f"taken over: {changed}" if changed else "settings and schemas read again; no setting has changed")
