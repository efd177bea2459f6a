"""What a command is about: one object, or all below a prefix; and the shell's way of writing a report. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from gateway.address import CHILDREN, Address, AddressError
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


@dataclass(frozen=True, slots=True)
class Scope:
    """The objects that a command is about. `prefix` is what `discover` and `read` take ("" for everything).

    `filters` are MQTT filters of object topics; an object's own are exactly `{object}` and `{object}/children/#`.
    """

    text: str
    prefix: str
    filters: tuple[str, ...]
    single: Address | None = None

    @classmethod
    def one(cls, url: str) -> Scope:
        """One object and its children. Raises CommandError (6)."""
        found = address(url)
        filters = (found.topic,) if found.is_child else (found.topic, f"{found.topic}/{CHILDREN}/#")
        return cls(found.url, found.url, filters, found)

    @classmethod
    def below(cls, text: str) -> Scope:
        """A prefix: everything (""), a scheme, an authority, or a URL; one that ends in `/` leaves out the object itself.

        A final `**` (or `*`) is the same as nothing there. Raises CommandError (6).
        """
        bare = text.rstrip("*")
        if bare in ("", "/"):
            return cls(text or "**", "", ("#",))
        scheme = bare.rstrip("/").removesuffix(":")
        if scheme.isalnum() and scheme.isascii() and "://" in bare:
            return cls(text, f"{scheme.lower()}://", (f"{scheme.lower()}/#",))
        stem = bare.rstrip("/")
        normal = _normal(stem)
        topic = normal.replace("://", "/", 1)
        ends = "/" if bare.endswith("/") else ""
        return cls(normal + ends, normal + ends, (f"{topic}/#",))

    @classmethod
    def parse(cls, text: str) -> Scope:
        """One object's URL, or a prefix that ends in `/`, `*` or `**`. Raises CommandError (6)."""
        if text.endswith(("/", "*")):
            return cls.below(text)
        return cls.one(text)

    def holds(self, url: str) -> bool:
        """Whether an object's URL belongs to the scope."""
        if self.single is not None:
            return url == self.prefix or url.startswith(f"{self.prefix}/{CHILDREN}/")
        if not self.prefix or self.prefix.endswith("/"):
            return url.startswith(self.prefix)
        return url == self.prefix or url.startswith(self.prefix + "/")


def _normal(stem: str) -> str:
    """The normal form of what may end before an object's name does."""
    try:
        return Address.parse(stem).url
    except AddressError as error:
        first = error
    for rest in ("/x", "/x/x", "/x/x/x"):
        try:
            return Address.parse(stem + rest).url.removesuffix(rest)
        except AddressError:
            continue
    raise CommandError(Exit.INVALID, str(first))


def url_of(topic: str) -> str:
    """An object topic's URL."""
    return topic.replace("/", "://", 1)


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
