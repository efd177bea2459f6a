"""Schemas of the catalogue taken apart: what has to hold at a place of the data, and samples of what satisfies it. Pure."""

from __future__ import annotations

import math
from itertools import chain, islice
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gateway.catalogue import Catalogue, Schema

MAX_TEXT = 40_000
"""Characters of the longest text that is made as a sample."""
MAX_MEMBERS = 2_000
"""Items or members of the largest sample."""

_ONE = frozenset(("additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"))
_MANY = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_NAMED = frozenset(("dependentSchemas", "patternProperties", "properties"))
# fmt: off
_PLAIN = frozenset((
    "$ref", "const", "dependentRequired", "enum", "exclusiveMaximum", "exclusiveMinimum", "maxContains", "maxItems", "maxLength", "maxProperties",
    "maximum", "minContains", "minItems", "minLength", "minProperties", "minimum", "multipleOf", "pattern", "required", "type", "uniqueItems",
))
# fmt: on
SIZES = {"string": "Length", "array": "Items", "object": "Properties"}
_KINDS = ("null", "boolean", "number", "string", "array", "object")
_TEXTS = ("a", "A", "0", " ", "_", "é", "other", "2026-01-01T10:00:00Z", "")
_NUMBERS = (0, 1, 2, 3, -1, 0.5, 100, -1.5, 1e9)

Nodes = tuple[dict[str, Any], ...]
"""Schemas that all hold at one place of the data, without `$ref` and `allOf`."""


class TooMuchError(Exception):
    """The steps are used up."""


class Parts:
    """The schemas of one catalogue, each without annotations and with every `$ref` a whole URL; equal ones are one and the same object.

    `judge` is any of them: it lends its validator. Whatever looks at schemas or makes samples takes steps, and raises TooMuchError without any left.
    """

    def __init__(self, catalogue: Catalogue, judge: Schema, steps: int) -> None:
        self._catalogue = catalogue
        self._judge = judge
        self._budget = steps
        self._made: dict[bytes, dict[str, Any]] = {}
        self._targets: dict[str, Any] = {}
        self._bare: dict[int, Any] = {}
        self._weights: dict[int, int] = {}

    def _step(self, cost: int = 1) -> None:
        self._budget -= cost
        if self._budget < 0:
            raise TooMuchError

    def _part(self, schema: Any, base: str) -> Any:
        if isinstance(schema, bool):
            return schema
        part: dict[str, Any] = {}
        for keyword, value in schema.items():
            if keyword in _ONE:
                part[keyword] = self._part(value, base)
            elif keyword in _MANY:
                part[keyword] = [self._part(each, base) for each in value]
            elif keyword in _NAMED:
                part[keyword] = {name: self._part(each, base) for name, each in value.items()}
            elif keyword == "$ref":
                part[keyword] = base + value if value.startswith("#") else value
            elif keyword in _PLAIN:
                part[keyword] = value
        return self._make(part)

    def _make(self, part: dict[str, Any]) -> Any:
        if not part:
            return True
        text = canonical(part)
        made = self._made.setdefault(text, part)
        self._weights[id(made)] = len(text) // 4_000
        return made

    def _target(self, ref: str) -> Any:
        if ref not in self._targets:
            url, _, fragment = ref.partition("#")
            schema = self._catalogue.find(url)
            place: Any = schema.document if schema is not None else {}
            for step in unquote(fragment).split("/")[1:]:
                place = place[int(step) if isinstance(place, list) else step.replace("~1", "/").replace("~0", "~")]
            self._targets[ref] = self._part(place, url)
        return self._targets[ref]

    def _flat(self, parts: Iterable[Any]) -> Nodes | None:
        """All that holds where these hold; None where nothing can."""
        found: dict[int, dict[str, Any]] = {}
        todo = [*parts]
        while todo:
            part = todo.pop(0)
            if part is False:
                return None
            if part is True or id(part) in found:
                continue
            if "$ref" in part:
                todo.append(self._target(part["$ref"]))
            todo += part.get("allOf", ())
            if id(part) not in self._bare:
                self._bare[id(part)] = self._without(part, "$ref", "allOf")
            bare = self._bare[id(part)]
            if bare is not True:
                found[id(bare)] = bare
        return tuple(found.values())

    def _without(self, part: dict[str, Any], *keywords: str) -> Any:
        if not any(keyword in part for keyword in keywords):
            return part
        return self._make({key: value for key, value in part.items() if key not in keywords})

    def _branches(self, nodes: Nodes) -> list[list[Any]]:
        """Schemas of which at least one holds where `nodes` hold; empty where there is nothing to choose."""
        for i, node in enumerate(nodes):
            others = [*nodes[:i], *nodes[i + 1 :]]
            for keyword in ("anyOf", "oneOf"):
                if keyword in node:
                    return [[*others, self._without(node, keyword), each] for each in node[keyword]]
            if "if" in node:
                others.append(self._without(node, "if", "then", "else"))
                negated = self._make({"not": node["if"]})
                return [[*others, node["if"], node.get("then", True)], [*others, negated, node.get("else", True)]]
        return []

    def _holds(self, part: Any, value: Any) -> bool:
        self._step(1 + self._weights.get(id(part), 0))
        return self._judge.satisfies(part, value)

    def _members(self, nodes: Nodes, name: str) -> list[Any]:
        """What the member `name` has to satisfy."""
        found: list[Any] = []
        for node in nodes:
            before = len(found)
            if name in node.get("properties", {}):
                found.append(node["properties"][name])
            found += [
                part
                for pattern, part in node.get("patternProperties", {}).items()
                if self._holds(self._make({"pattern": pattern}), name)
            ]
            if len(found) == before:
                found.append(node.get("additionalProperties", True))
            if "propertyNames" in node and not self._holds(node["propertyNames"], name):
                found.append(False)
        return found

    def _other(self, node: dict[str, Any], known: Iterable[str]) -> Any:
        """What a member that `properties` do not name and no pattern of `known` matches has to satisfy at least."""
        rest = node.get("additionalProperties", True)
        patterns = [part for pattern, part in node.get("patternProperties", {}).items() if pattern not in known]
        return self._make({"anyOf": [*patterns, rest]}) if patterns else rest

    def _sizes(self, nodes: Nodes, kind: str) -> tuple[float, float]:
        """The least and the most characters, items or members."""
        name = SIZES[kind]
        least: float = max((node.get("min" + name, 0) for node in nodes), default=0)
        most: float = min((node.get("max" + name, math.inf) for node in nodes), default=math.inf)
        if kind == "array":
            count = max((len(node.get("prefixItems", ())) for node in nodes), default=0)
            most = next((i for i in range(count + 1) if i < most and self._flat(items_at(nodes, i)) is None), most)
        elif kind == "object":
            least = max(least, len(required_by(nodes)))
            if self._flat(self._other(node, ()) for node in nodes) is None:
                named = {name for node in nodes for name in node.get("properties", ())}
                most = min(most, sum(self._flat(self._members(nodes, name)) is not None for name in named))
        return least, most

    # ── samples ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _samples(
        self,
        nodes: Nodes,
        seeds: Sequence[Any] = (),
        tries: Iterable[Any] = (),
        *,
        against: Any = None,
        depth: int = 0,
    ) -> Iterator[Any]:
        """Values that satisfy `nodes`, and not `against` where it is given."""
        seen: set[bytes] = set()
        for value in chain(tries, seeds, self._drafts(nodes, seeds, depth)):
            text = canonical(value)
            if text not in seen:
                seen.add(text)
                self._step(len(text) // 1_000)
                if all(self._holds(node, value) for node in nodes) and (
                    against is None or not self._holds(against, value)
                ):
                    yield value

    def _drafts(self, nodes: Nodes, seeds: Sequence[Any], depth: int) -> Iterator[Any]:
        self._step()
        if depth > 8:
            return
        for node in nodes:
            yield from node.get("enum", ())
            if "const" in node:
                yield node["const"]
        for branch in self._branches(nodes):
            flat = self._flat(branch)
            if flat is not None:
                yield from islice(self._samples(flat, depth=depth + 1), 8)
        for kind in kinds_of(nodes):
            if kind == "null":
                yield None
            elif kind == "boolean":
                yield from (True, False)
            elif kind in ("number", "integer"):
                (low, _), (high, _) = bounds(nodes, is_whole(nodes, kind))
                for value in (
                    *_NUMBERS,
                    *(bound + d for bound in (low, high) if math.isfinite(bound) for d in _NUMBERS),
                ):
                    step = multiple(nodes)
                    yield value if not is_whole(nodes, kind) else int(value // step * step)
                    if step > 1:
                        yield int(value) * step
            else:
                least = int(self._sizes(nodes, kind)[0])
                yield from self._longer(nodes, kind, least, seeds, depth)
                yield from self._longer(nodes, kind, least + 1, seeds, depth)

    def _longer(self, nodes: Nodes, kind: str, size: int, seeds: Sequence[Any] = (), depth: int = 0) -> Iterator[Any]:
        """Texts, a list or an object of this size."""
        if size > (MAX_TEXT if kind == "string" else MAX_MEMBERS):
            return
        if kind == "string":
            for text in _TEXTS:
                yield text
                yield (text * size)[: max(size, 1)]
            yield from (str(number).zfill(size) for number in range(1, 64))
        elif kind == "array":
            items = self._list(nodes, size, {}, depth)
            if items is not None:
                yield items
                if size > 1:
                    yield [items[0]] * size
        else:
            members = self._object(nodes, size, seeds, depth)
            if members is not None:
                yield members

    def _list(self, nodes: Nodes, size: int, fixed: dict[int, Any], depth: int) -> list[Any] | None:
        made: list[Any] = []
        unique = any(node.get("uniqueItems") for node in nodes)
        last = max((len(node.get("prefixItems", ())) for node in nodes), default=0)
        for i in range(size):
            if i in fixed:
                made.append(fixed[i])
            elif i > last and not unique and i - 1 not in fixed:
                made.append(made[-1])
            else:
                flat = self._flat(items_at(nodes, i))
                fitting = iter(()) if flat is None else self._samples(flat, depth=depth + 1)
                found = next(([value] for value in fitting if not unique or value not in made), None)
                if found is None:
                    return None
                made += found
        return made

    def _object(self, nodes: Nodes, size: int, seeds: Sequence[Any], depth: int) -> dict[str, Any] | None:
        made: dict[str, Any] = {}
        required = required_by(nodes)
        named = [name for node in nodes for name in node.get("properties", ())]
        for name in dict.fromkeys([*required, *named, *(f"other{i}" for i in range(size))]):
            if len(made) >= size and name not in required:
                break
            flat = self._flat(self._members(nodes, name))
            fitting = iter(()) if flat is None else self._samples(flat, below(seeds, name), depth=depth + 1)
            found = next(([value] for value in fitting), None)
            if found is not None:
                made[name] = found[0]
            elif name in required:
                return None
        return made

    def _with_item(self, nodes: Nodes, seeds: Sequence[Any], i: int, values: Iterable[Any]) -> Iterator[Any]:
        size = max(int(self._sizes(nodes, "array")[0]), i + 1)
        for value in values:
            made = self._list(nodes, size, {i: value}, 0) if size <= MAX_MEMBERS else None
            if made is not None:
                yield made
            yield from ([*seed[:i], value, *seed[i + 1 :]] for seed in seeds if isinstance(seed, list))

    def _with_member(
        self, nodes: Nodes, seeds: Sequence[Any], names: Iterable[str], values: Iterable[Any]
    ) -> Iterator[Any]:
        bases = [*islice(self._samples(nodes, seeds), 2), *islice(self._samples(nodes), 1)]
        yield from ({**base, name: value} for value in values for base in bases for name in names)

    def _with_names(self, nodes: Nodes, seeds: Sequence[Any], names: Iterable[str]) -> Iterator[Any]:
        for name in names:
            flat = self._flat(self._members(nodes, name))
            if flat is not None:
                yield from self._with_member(nodes, seeds, (name,), islice(self._samples(flat), 1))


def canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def below(seeds: Iterable[Any], step: str | int) -> list[Any]:
    """Examples of a member or an item, out of those of the whole."""
    found: list[Any] = []
    for seed in seeds:
        if isinstance(seed, dict):
            found += seed.values() if step == "*" else [seed[step]] if step in seed else []
        elif isinstance(seed, list):
            found += seed
    return found[:16]


def kinds_of(nodes: Nodes) -> list[str]:
    """The types that a value may have; "integer" only where no other number may be."""
    kinds = [*_KINDS]
    for node in nodes:
        if "type" in node:
            wanted = [node["type"]] if isinstance(node["type"], str) else node["type"]
            if "number" in kinds and "number" not in wanted and "integer" in wanted:
                kinds[kinds.index("number")] = "integer"
            kinds = [kind for kind in kinds if kind in wanted or (kind == "integer" and "number" in wanted)]
    return kinds


def is_whole(nodes: Nodes, kind: str) -> bool:
    return kind == "integer" or (kind == "number" and any("multipleOf" in node for node in nodes))


def multiple(nodes: Nodes) -> int:
    return math.lcm(*(node["multipleOf"] for node in nodes if "multipleOf" in node))


def bounds(nodes: Nodes, whole: bool) -> tuple[tuple[float, int], tuple[float, int]]:
    """The least and the greatest number, each with what orders it among equal ones: 1 and -1 where the number itself is excluded."""
    low = max(
        (-math.inf, 0),
        *((node["minimum"], 0) for node in nodes if "minimum" in node),
        *((node["exclusiveMinimum"], 1) for node in nodes if "exclusiveMinimum" in node),
        (-math.inf, 0),
    )
    high = min(
        (math.inf, 0),
        *((node["maximum"], 0) for node in nodes if "maximum" in node),
        *((node["exclusiveMaximum"], -1) for node in nodes if "exclusiveMaximum" in node),
        (math.inf, 0),
    )
    if whole and math.isfinite(low[0]):
        low = (math.floor(low[0]) + 1 if low[1] else math.ceil(low[0]), 0)
    if whole and math.isfinite(high[0]):
        high = (math.ceil(high[0]) - 1 if high[1] else math.floor(high[0]), 0)
    return low, high


def required_by(nodes: Nodes) -> dict[str, None]:
    found = dict.fromkeys(name for node in nodes for name in node.get("required", ()))
    for name in (todo := [*found]):
        more = [each for node in nodes for each in node.get("dependentRequired", {}).get(name, ()) if each not in found]
        found.update(dict.fromkeys(more))
        todo += more
    return found


def items_at(nodes: Nodes, i: int) -> list[Any]:
    """What the item at `i` has to satisfy."""
    return [
        node["prefixItems"][i] if i < len(node.get("prefixItems", ())) else node.get("items", True) for node in nodes
    ]
