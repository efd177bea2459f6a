"""JSON Merge Patch and JSON Patch on values that are never mutated, with limits; what counts as a change. Pure.

Sources: RFC 7396 (merge patch), RFC 6902 (JSON Patch), RFC 6901 (JSON Pointer). Values are what a JSON parser makes: exactly
dict, list, str, int, float (finite), bool and None. Nothing here changes its arguments, so results share what did not change
with the document, and may share parts of the patch: whoever holds one must not mutate it either.
"""

from __future__ import annotations

import re
from math import copysign
from typing import Any, NamedTuple

from gateway.errors import CtxtError

MAX_OPERATIONS = 1_000
MAX_COPIED_BYTES = 1 << 20
MAX_DEPTH = 128
"""Levels of a patched document: far below what parsers, writers and schema checkers can descend."""

MAX_PLACE = 200
"""Characters of a place or a value that an error repeats."""

_ABSENT: Any = object()
_END = "-"
_find_bad_escape = re.compile(r"~(?![01])").search
_is_index = re.compile(r"0|[1-9][0-9]{0,8}").fullmatch


class PatchError(CtxtError):
    """A patch that does not apply. `place` is a JSON pointer into the document ("" is all of it), `reason` a whole clause."""

    def __init__(self, place: str, reason: str) -> None:
        place = _shown(place)
        super().__init__(place, reason)
        self.place = place
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.place or 'the document'}: {self.reason}"


def _shown(text: str) -> str:
    return text if len(text) <= MAX_PLACE else text[:MAX_PLACE] + "…"


# ---- merge patch -----------------------------------------------------------------------------------------------------


def merge(target: Any, patch: Any) -> Any:
    """`target` with an RFC 7396 merge patch applied; `target` itself when that changes nothing (see `same`).

    Copy on write: only the objects on the way to a change are new. Recurses as deep as the patch is, which the caller has
    checked. Hot.
    """
    if type(patch) is not dict:
        return target if same(target, patch) else patch
    if type(target) is not dict:
        return _without_nulls(patch)
    result = None
    for key, value in patch.items():
        held = target.get(key, _ABSENT)
        kind = type(value)
        if kind is dict:
            if type(held) is dict:
                value = merge(held, value)
                if value is held:
                    continue
            else:
                value = _without_nulls(value)
        elif value is None:
            if held is not _ABSENT:
                if result is None:
                    result = target.copy()
                del result[key]
            continue
        elif type(held) is kind and held == value and (held is value or _exactly(held, value)):
            continue
        if result is None:
            result = target.copy()
        result[key] = value
    return target if result is None else result


def _without_nulls(patch: dict[str, Any]) -> dict[str, Any]:
    """What a merge patch makes of nothing."""
    return {
        key: _without_nulls(value) if type(value) is dict else value
        for key, value in patch.items()
        if value is not None
    }


# ---- equality --------------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Whether two values have the same canonical JSON: 1, True and 1.0 differ, 0.0 and -0.0 too; the order of keys does not count."""
    return a is b or bool(a == b and _exactly(a, b))


def _exactly(a: Any, b: Any) -> bool:
    """`same` for values that Python calls equal."""
    if a is b:
        return True
    kind = type(a)
    if kind is not type(b):
        return False
    if kind is dict:
        return all(_exactly(value, b[key]) for key, value in a.items())
    if kind is list:
        return all(map(_exactly, a, b))
    return kind is not float or a != 0.0 or copysign(1.0, a) == copysign(1.0, b)


# ---- depth -----------------------------------------------------------------------------------------------------------


def depth(value: Any) -> int:
    """How deep objects and arrays are nested: 0 for a scalar, 1 for `{}` and `[1]`."""
    levels = 0
    level = [value]
    while level := _below(level):
        levels += 1
        level = [part for container in level for part in container]
    return levels


def depth_exceeds(value: Any, limit: int) -> bool:
    """Whether `value` is nested deeper than `limit` levels; looks no deeper than that."""
    level = [value]
    for _ in range(limit + 1):
        containers = _below(level)
        if not containers:
            return False
        level = [part for container in containers for part in container]
    return True


def _below(level: list[Any]) -> list[Any]:
    """The parts of each object and array among the values of one level."""
    return [part.values() if type(part) is dict else part for part in level if type(part) is dict or type(part) is list]


# ---- JSON pointers ---------------------------------------------------------------------------------------------------


def _escape(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _pointer(tokens: list[str]) -> str:
    return "".join("/" + _escape(token) for token in tokens)


class _Failure(Exception):  # noqa: N818 - it never leaves this file: apply_patch() makes it a PatchError
    """(place, reason) of an operation that cannot be done."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place = place
        self.reason = reason


def _tokens(pointer: str) -> list[str]:
    if not pointer:
        return []
    if pointer[0] != "/":
        raise _Failure("", f"{_shown(pointer)!r} is no JSON pointer: begin it with a slash")
    if "~" not in pointer:
        return pointer[1:].split("/")
    if _find_bad_escape(pointer):
        raise _Failure("", f"{_shown(pointer)!r} is no JSON pointer: write ~0 for ~ and ~1 for a slash")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]


def _index(token: str, length: int, tokens: list[str], upto: int) -> int:
    """The array index that a token spells, below `length`."""
    if _is_index(token):
        index = int(token)
        if index < length:
            return index
        raise _Failure(_pointer(tokens[:upto]), f"the array ends before element {index}: read the object again")
    if token == _END:
        raise _Failure(_pointer(tokens[:upto]), "`-` names the element after the last, which only `add` can do")
    raise _Failure(_pointer(tokens[:upto]), f"{_shown(token)!r} is no array index: write digits without a leading zero")


def _get(container: Any, token: str, tokens: list[str], upto: int) -> Any:
    """The member or element of `container` that `tokens[upto - 1]` names."""
    if type(container) is dict:
        found = container.get(token, _ABSENT)
        if found is _ABSENT:
            raise _Failure(_pointer(tokens[:upto]), "there is nothing here: read the object again")
        return found
    if type(container) is list:
        return container[_index(token, len(container), tokens, upto)]
    raise _Failure(_pointer(tokens[:upto]), "there is nothing here: what is above is neither an object nor an array")


# ---- JSON Patch ------------------------------------------------------------------------------------------------------


class _Operation(NamedTuple):
    """One operation whose members are there and of the right type."""

    name: str
    path: list[str]
    source: list[str]
    value: Any


_NEEDS_VALUE = frozenset({"add", "replace", "test"})
_NEEDS_FROM = frozenset({"move", "copy"})
_NAMES = ("add", "remove", "replace", "move", "copy", "test")


def _operation(raw: Any) -> _Operation:
    if type(raw) is not dict:
        raise _Failure("", "an operation is an object with `op` and `path`")
    name = raw.get("op")
    if name not in _NAMES:
        known = ", ".join(_NAMES)
        told = "it has no `op`" if "op" not in raw else f"{_shown(str(name))!r} is no operation"
        raise _Failure("", f"{told}: write one of {known}")
    return _Operation(
        name,
        _tokens(_text(raw, "path")),
        _tokens(_text(raw, "from")) if name in _NEEDS_FROM else [],
        _member(raw, "value") if name in _NEEDS_VALUE else None,
    )


def _member(raw: dict[str, Any], key: str) -> Any:
    value = raw.get(key, _ABSENT)
    if value is _ABSENT:
        raise _Failure("", f"it has no `{key}`: add it")
    return value


def _text(raw: dict[str, Any], key: str) -> str:
    value = _member(raw, key)
    if type(value) is not str:
        raise _Failure("", f"its `{key}` is no text: write a JSON pointer like /values/temperature")
    return value


class _Draft:
    """A document while operations are applied to it; containers made here are changed in place, all others are copied first."""

    __slots__ = ("budget", "deeper", "max_bytes", "own", "root")

    def __init__(self, root: Any, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.budget = max_bytes
        self.own: dict[int, Any] = {}
        self.deeper = False

    def get(self, tokens: list[str]) -> Any:
        found = self.root
        for upto, token in enumerate(tokens, 1):
            found = _get(found, token, tokens, upto)
        return found

    def _writable(self, container: Any) -> Any:
        """The container itself where it was made here, else a copy. Those made here are kept, so an id stays theirs."""
        if id(container) in self.own:
            return container
        made = container.copy()
        self.own[id(made)] = made
        return made

    def _parent(self, tokens: list[str]) -> Any:
        """The writable object or array that the last token names a place in."""
        # All of it is looked up first, so that a bad path copies nothing.
        self._container(self.get(tokens[:-1]), tokens)
        here = self.root = self._writable(self.root)
        for upto, token in enumerate(tokens[:-1], 1):
            made = self._writable(_get(here, token, tokens, upto))
            if type(here) is dict:
                here[token] = made
            else:
                here[int(token)] = made
            here = made
        return here

    @staticmethod
    def _container(value: Any, tokens: list[str]) -> None:
        if type(value) is not dict and type(value) is not list:
            raise _Failure(_pointer(tokens), "there is no object or array to hold it: add that first")

    def add(self, tokens: list[str], value: Any) -> None:
        if type(value) is dict or type(value) is list:
            self.deeper = True
        if not tokens:
            self._replace_root(value)
            return
        parent = self._parent(tokens)
        token = tokens[-1]
        if type(parent) is dict:
            parent[token] = value
        elif token == _END:
            parent.append(value)
        else:
            parent.insert(_index(token, len(parent) + 1, tokens, len(tokens)), value)

    def replace(self, tokens: list[str], value: Any) -> None:
        if type(value) is dict or type(value) is list:
            self.deeper = True
        if not tokens:
            self._replace_root(value)
            return
        self.get(tokens)
        parent = self._parent(tokens)
        if type(parent) is dict:
            parent[tokens[-1]] = value
        else:
            parent[int(tokens[-1])] = value

    def remove(self, tokens: list[str]) -> Any:
        if not tokens:
            raise _Failure("", "the whole document cannot be removed: delete the object instead")
        value = self.get(tokens)
        parent = self._parent(tokens)
        del parent[tokens[-1] if type(parent) is dict else int(tokens[-1])]
        return value

    def _replace_root(self, value: Any) -> None:
        if type(value) is not dict:
            raise _Failure("", "the whole document can only be replaced by an object")
        self.root = value

    def move(self, source: list[str], tokens: list[str]) -> None:
        if source == tokens:
            self.get(source)
            return
        if tokens[: len(source)] == source:
            raise _Failure(_pointer(tokens), "a value cannot be moved into itself")
        self.add(tokens, self.remove(source))

    def copy(self, source: list[str], tokens: list[str]) -> None:
        value = self.get(source)
        self.budget = _spend(self.budget, value)
        if self.budget < 0:
            raise _Failure(
                _pointer(tokens), f"the patch copies more than {self.max_bytes:,} bytes: send the values instead"
            )
        if type(value) is dict or type(value) is list:
            # It is now in two places: nothing below it may be changed in place any more.
            self.own = {}
        self.add(tokens, value)

    def test(self, tokens: list[str], value: Any) -> None:
        if not same(self.get(tokens), value):
            raise _Failure(_pointer(tokens), "the value is not the one that `test` expects: read the object again")


def _spend(budget: int, value: Any) -> int:
    """What is left of a number of bytes when `value` is written as JSON (at least: one byte a character and a number)."""
    todo = [value]
    while todo and budget >= 0:
        part = todo.pop()
        if type(part) is dict:
            # Braces, and for each member quotes, colon and comma.
            budget -= 2 + 4 * len(part) + sum(map(len, part))
            todo.extend(part.values())
        elif type(part) is list:
            budget -= 2 + len(part)
            todo.extend(part)
        elif type(part) is str:
            budget -= 2 + len(part)
        else:
            budget -= 1
    return budget


def apply_patch(
    target: Any,
    ops: list[Any],
    *,
    max_ops: int = MAX_OPERATIONS,
    max_bytes: int = MAX_COPIED_BYTES,
    max_depth: int = MAX_DEPTH,
) -> Any:
    """`target` with an RFC 6902 patch applied, whole or not at all; `target` itself when that changes nothing (see `same`).

    Raises PatchError: an operation that cannot be done, more than `max_ops` of them, `copy` operations that together add more than
    `max_bytes` of JSON, or a result nested deeper than `max_depth` (and than `target`). The whole document stays an object.
    """
    if len(ops) > max_ops:
        raise PatchError("", f"the patch has {len(ops):,} operations, at most {max_ops:,} are taken: send several")
    draft = _Draft(target, max_bytes)
    name = ""
    for number, raw in enumerate(ops):
        try:
            name = ""
            operation = _operation(raw)
            name = operation.name
            if name == "add":
                draft.add(operation.path, operation.value)
            elif name == "replace":
                draft.replace(operation.path, operation.value)
            elif name == "remove":
                draft.remove(operation.path)
            elif name == "test":
                draft.test(operation.path, operation.value)
            elif name == "move":
                draft.move(operation.source, operation.path)
            else:
                draft.copy(operation.source, operation.path)
        except _Failure as failure:
            told = f"operation {number} ({name})" if name else f"operation {number}"
            raise PatchError(failure.place, f"{told}: {failure.reason}") from None
    result = draft.root
    if draft.deeper and depth_exceeds(result, max_depth) and depth(result) > depth(target):
        raise PatchError("", f"the result would be nested deeper than {max_depth} levels: flatten it")
    return target if same(result, target) else result


# ---- diff ------------------------------------------------------------------------------------------------------------


def diff(old: Any, new: Any, *, max_ops: int = MAX_OPERATIONS) -> list[dict[str, Any]]:
    """A JSON Patch that makes `old` the same as `new`; both are objects. Empty where they are the same.

    Objects member by member; arrays grow and shrink at their end, else are replaced whole. What would take more than `max_ops`
    operations is one `replace` of the whole document.
    """
    ops: list[dict[str, Any]] = []
    _diff_objects(old, new, "", ops)
    if len(ops) > max_ops:
        return [{"op": "replace", "path": "", "value": new}]
    return ops


def _diff_objects(old: dict[str, Any], new: dict[str, Any], place: str, ops: list[dict[str, Any]]) -> None:
    ops.extend({"op": "remove", "path": f"{place}/{_escape(key)}"} for key in old if key not in new)
    for key, value in new.items():
        held = old.get(key, _ABSENT)
        if held is value:
            continue
        path = f"{place}/{_escape(key)}"
        if held is _ABSENT:
            ops.append({"op": "add", "path": path, "value": value})
        elif type(held) is dict and type(value) is dict:
            _diff_objects(held, value, path, ops)
        elif not same(held, value):
            if type(held) is list and type(value) is list:
                _diff_arrays(held, value, path, ops)
            else:
                ops.append({"op": "replace", "path": path, "value": value})


def _diff_arrays(old: list[Any], new: list[Any], path: str, ops: list[dict[str, Any]]) -> None:
    kept = min(len(old), len(new))
    changed = abs(len(old) - len(new))
    # One operation for each element is worth it only while most of the array stays.
    if changed > kept or not same(old[:kept], new[:kept]):
        ops.append({"op": "replace", "path": path, "value": new})
    elif len(new) > kept:
        ops.extend({"op": "add", "path": f"{path}/-", "value": value} for value in new[kept:])
    else:
        ops.extend({"op": "remove", "path": f"{path}/{index}"} for index in range(len(old) - 1, kept - 1, -1))


def changed_paths(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """JSON pointers (RFC 6901) of the members in which two objects differ, as deep as objects go; an array counts as a whole.

    In the order of `new`; what is only in `old` comes last at each level.
    """
    found: list[str] = []
    _find_changed(old, new, "", found)
    return found


def _find_changed(old: dict[str, Any], new: dict[str, Any], place: str, found: list[str]) -> None:
    for key, value in new.items():
        held = old.get(key, _ABSENT)
        if held is value:
            continue
        if type(held) is dict and type(value) is dict:
            _find_changed(held, value, f"{place}/{_escape(key)}", found)
        elif held is _ABSENT or not same(held, value):
            found.append(f"{place}/{_escape(key)}")
    found.extend(f"{place}/{_escape(key)}" for key in old if key not in new)


def merge_diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | None:
    """The smallest merge patch (RFC 7396) that makes `old` the same as `new`; None where none can: it cannot set a null."""
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        held = old.get(key, _ABSENT)
        if held is value:
            continue
        if type(held) is dict and type(value) is dict:
            below = merge_diff(held, value)
            if below is None:
                return None
            if below:
                patch[key] = below
        elif held is _ABSENT or not same(held, value):
            if _has_null(value):
                return None
            patch[key] = value
    return patch


def _has_null(value: Any) -> bool:
    """Whether a merge patch with this value would lose a null; in arrays they stay."""
    if type(value) is dict:
        return any(map(_has_null, value.values()))
    return value is None


def compose(first: Any, second: Any) -> Any:
    """One merge patch for two in a row. Where `first` put a scalar or an array in an object's place and `second` members into that,
    members that were there before stay.
    """
    if type(first) is not dict or type(second) is not dict:
        return second
    return {**first, **{key: compose(first[key], value) if key in first else value for key, value in second.items()}}
