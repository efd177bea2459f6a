"""What is different between two states of an object, for people: `temperature 21.5 → 21.7 Cel`. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 60
"""Characters of one value; what is longer is cut."""

ARROW = " → "


def described(data: Any) -> list[str]:
    """All that an object says, a text for each reading or member."""
    return changed({}, data)


def changed(old: Any, new: Any) -> list[str]:
    """The differences that lead from `old` to `new`, a text for each reading or member, in the order of the data."""
    return list(_walk(old, new, "", _unit(new)))


def _walk(old: Any, new: Any, path: str, unit: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(key for key in old if key not in new)]:
            before, after = old.get(key), new.get(key)
            if same(before, after):
                continue
            place = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if path == "/values" and _is_reading(before) and _is_reading(after):
                yield _reading(key, before, after, unit)
            elif before is None and after and isinstance(after, dict):
                yield from _walk({}, after, place, unit)
            elif after is None and before and isinstance(before, dict):
                yield from _walk(before, {}, place, unit)
            else:
                yield from _walk(before, after, place, unit)
    elif new is None:
        yield f"{path} removed"
    elif old is None:
        yield f"{path} {text(new)}"
    else:
        yield f"{path} {text(old)}{ARROW}{text(new)}"


def _is_reading(member: Any) -> bool:
    return member is None or (isinstance(member, dict) and "value" in member)


def _reading(name: str, before: Any, after: Any, unit: str) -> str:
    if after is None:
        return f"{name} removed"
    now = reading(after, unit)
    if before is None:
        return f"{name} {now}"
    if same(before["value"], after["value"]):
        # Only its time or its unit is another one.
        return f"{name} {now} again"
    return f"{name} {text(before['value'])}{ARROW}{now}"


def reading(member: dict[str, Any], unit: str = "") -> str:
    """A Context reading: its value, and its unit or else the object's."""
    own = member.get("unit", unit)
    return f"{text(member['value'])} {own}".rstrip()


def _unit(data: Any) -> str:
    unit = data.get("unit", "") if isinstance(data, dict) else ""
    return unit if isinstance(unit, str) else ""


def text(value: Any) -> str:
    """A value in few characters: texts as they are, true and false as yes and no, the rest as JSON."""
    if isinstance(value, bool):
        shown = "yes" if value else "no"
    elif isinstance(value, str):
        shown = value
    else:
        shown = orjson.dumps(value).decode()
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same: true is not 1 here."""
    return orjson.dumps(one, option=orjson.OPT_SORT_KEYS) == orjson.dumps(other, option=orjson.OPT_SORT_KEYS)
