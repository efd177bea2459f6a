"""What a command is about, and the shell's way of writing a report. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from gateway.address import Address, AddressError
from gateway.client.scopes import Scope
from gateway.commands.outcome import CommandError, Exit

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?):([^\d\s:][^\s:]{0,31})", re.ASCII)


def address(url: str) -> Address:
    """The object that a URL names. Raises CommandError (6)."""
    try:
        return Address.parse(url)
    except AddressError as error:
        raise CommandError(Exit.INVALID, str(error)) from error


def scope(text: str) -> Scope:
    """One object, or what ends in `/`, `*` or `**`: all below. Raises CommandError (6)."""
    try:
        return Scope.parse(text)
    except AddressError as error:
        raise CommandError(Exit.INVALID, str(error)) from error


def below(prefix: str) -> Scope:
    """Everything below a prefix. Raises CommandError (6)."""
    try:
        return Scope.below(prefix)
    except AddressError as error:
        raise CommandError(Exit.INVALID, str(error)) from error


def report_of(assignments: Iterable[str]) -> dict[str, Any]:
    """The merge patch that `key=value` and `/pointer=value` spell. Raises CommandError (usage).

    `temperature=21.5` is a reading of a Context object, `temperature=21.5:Cel` one with its unit, `temperature=null` removes
    it. A value is JSON where it is JSON, else text.
    """
    patch: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key or key == "/":
            raise CommandError(
                Exit.USAGE,
                f"{assignment!r} is neither key=value nor /pointer=value, such as temperature=21.5 or /unit=Cel",
            )
        if key.startswith("/"):
            place = [_unescaped(step) for step in key[1:].split("/")]
            _put(patch, place, _value(text), assignment)
            continue
        measured = _NUMBER.fullmatch(text)
        if measured is not None:
            reading: Any = {"value": orjson.loads(measured[1]), "unit": measured[2]}
        else:
            value = _value(text)
            reading = None if value is None else {"value": value}
        _put(patch, ["values", key], reading, assignment)
    return patch


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _unescaped(step: str) -> str:
    """RFC 6901."""
    return step.replace("~1", "/").replace("~0", "~")


def _put(patch: dict[str, Any], place: list[str], value: Any, assignment: str) -> None:
    table = patch
    for step in place[:-1]:
        table = table.setdefault(step, {})
        if not isinstance(table, dict):
            raise CommandError(Exit.USAGE, f"{assignment!r} is below a member that is set as a whole before it")
    held = table.get(place[-1])
    if isinstance(held, dict) and isinstance(value, dict):
        held.update(value)
    else:
        table[place[-1]] = value
