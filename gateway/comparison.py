"""Which Data Objects two services can exchange: the request `compare`. Pure.

Two schemas are compared by a proof and by samples. The proof walks both and gives its gaps: places of the data where it does not follow from the one
schema that the other holds; without a gap every document is valid under both. A gap says what to try: a document becomes a "no" only when the
compiled validators judge it so. What is neither proven nor refuted is told as it is: "cannot tell".
"""

from __future__ import annotations

import math
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gateway.catalogue import UnknownSchema
from gateway.effects import Answer
from gateway.parts import (
    SIZES,
    Parts,
    TooMuchError,
    below,
    bounds,
    canonical,
    is_whole,
    items_at,
    kinds_of,
    multiple,
    required_by,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gateway.catalogue import Catalogue, Schema
    from gateway.parts import Nodes

MAX_PAIRS = 64
"""Pairs of schemas that one `deep` request may compare."""
MAX_STEPS = 2_000
"""Steps of a proof, and of its search for a document, before the answer is "cannot tell"."""
MAX_GAP_STEPS = 500
"""Steps of the search for a document that shows one gap."""
MAX_DEPTH = 64
"""How deep a proof may lead on."""
MAX_EXAMPLE = 400
"""Bytes of a document in an answer; a longer one is left out."""


class Verdict(NamedTuple):
    """`answer` is "yes", "no" or "cannot tell"; `keyword` is what could not be decided at `place`, `example` the document that says no."""

    answer: str
    place: str | None = None
    reason: str | None = None
    keyword: str | None = None
    example: Any = None

    def body(self) -> dict[str, Any]:
        """What an answer tells of it: without members that have nothing to tell, and without a long example."""
        told = {key: value for key, value in self._asdict().items() if value is not None}
        if "example" in told and len(orjson.dumps(told["example"])) > MAX_EXAMPLE:
            del told["example"]
        return told


class Gap(NamedTuple):
    """Where the proof fails (a JSON pointer with `*` for any other member or item), at which keyword, and values to try there."""

    place: str
    keyword: str
    values: Iterator[Any]


class _Way(NamedTuple):
    """How a proof came to a place: examples of the data there, and the questions asked above it and at it."""

    place: str = ""
    seeds: Sequence[Any] = ()
    above: frozenset[Any] = frozenset()
    here: frozenset[Any] = frozenset()

    def into(self, step: str | int) -> _Way:
        key = str(step).replace("~", "~0").replace("/", "~1")
        return _Way(f"{self.place}/{key}", below(self.seeds, step), self.above | self.here)


def compare(catalogue: Catalogue, mine: list[str], theirs: list[str], *, deep: bool) -> Iterator[Answer | None]:
    """Which Data Objects two services with these schemas (URLs or names) can exchange: yields None to let others go on, at last the answer."""
    rest: list[dict[str, Any]] = []
    sides: dict[str, dict[str, Schema]] = {"mine": {}, "theirs": {}}
    for side, asked in (("mine", mine), ("theirs", theirs)):
        for wanted in asked:
            try:
                schema = catalogue.get(wanted)
            except UnknownSchema as error:
                rest.append({"schema": wanted, "of": side, "reason": str(error)})
                yield None
                continue
            if catalogue.messages.get(schema.name) is schema:
                text = "it is the schema of a message of the protocol, not of Data Objects"
                rest.append({"schema": wanted, "of": side, "reason": text})
            else:
                sides[side][schema.url] = schema
    ours, others = sides.values()
    exchange = [{"schema": s.url, "name": s.name, "scheme": s.scheme} for s in ours.values() if s.url in others]
    for side, own, other, who in (("mine", ours, others, "theirs"), ("theirs", others, ours, "mine")):
        rest += [
            {"schema": schema.url, "of": side, "reason": _why_not(schema, who, other.values())}
            for schema in own.values()
            if schema.url not in other
        ]
    pairs = [
        (a, b)
        for a in ours.values()
        for b in others.values()
        if a is not b and a.scheme is not None and a.scheme == b.scheme and not (a.url in others and b.url in ours)
    ]
    body: dict[str, Any] = {"exchange": exchange, "candidates": _grouped(pairs), "rest": rest}
    if deep:
        if len(pairs) > MAX_PAIRS:
            text = f"`deep` compares at most {MAX_PAIRS} pairs of schemas, and these lists have {len(pairs):,}: send fewer, or leave it out"
            yield Answer(413, description=text)
            return
        body["deep"] = []
        for a, b in pairs:
            told: dict[str, Any] = {"mine": a.url, "theirs": b.url}
            for direction, left, right in (("forth", a, b), ("back", b, a)):
                for verdict in Proof(catalogue, left, right).steps():
                    if verdict is not None:
                        told[direction] = verdict.body()
                    yield None
            body["deep"].append(told)
    yield Answer(200, body)


def _why_not(schema: Schema, who: str, others: Iterable[Schema]) -> str:
    said = f"the list `{who}` does not have it"
    if schema.scheme is None:
        return f"{said}; it is a schema of children"
    near = sum(other.scheme == schema.scheme for other in others)
    return f"{said}, {f'but {near}' if near else 'nor one'} of the scheme {schema.scheme!r}"


def _grouped(pairs: list[tuple[Schema, Schema]]) -> list[dict[str, Any]]:
    groups: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for a, b in pairs:
        own, other = groups.setdefault(str(a.scheme), ({}, {}))
        own[a.url] = other[b.url] = None
    return [{"scheme": scheme, "mine": [*own], "theirs": [*other]} for scheme, (own, other) in groups.items()]


class Proof(Parts):
    """Whether every document that is valid under one schema of a catalogue is valid under another one."""

    def __init__(self, catalogue: Catalogue, left: Schema, right: Schema) -> None:
        super().__init__(catalogue, left, MAX_STEPS)
        self._schemas = left, right

    def steps(self) -> Iterator[Verdict | None]:
        """Yields None to let others go on, at last the verdict."""
        left, right = self._schemas
        first: Gap | None = None
        seeds = (*left.document.get("examples", ()), *right.document.get("examples", ()))
        try:
            for example in seeds:
                if (found := self._refuted(example)) is not None:
                    yield found
                    return
            gaps = self._gaps([self._target(left.url)], self._target(right.url), _Way(seeds=seeds))
            for gap in gaps:
                first = first or gap
                if (found := self._shown(gap)) is not None:
                    yield found
                    return
                yield None
        except (TooMuchError, RecursionError, OverflowError):
            yield Verdict("cannot tell", "", "the schemas are too large or too deep to decide")
            return
        if first is None:
            yield Verdict("yes")
        else:
            yield Verdict("cannot tell", first.place, f"{first.keyword} could not be decided", first.keyword)

    def _shown(self, gap: Gap) -> Verdict | None:
        """A "no" by one of the documents that the gap says to try."""
        before = self._budget
        self._budget = allowed = min(before, MAX_GAP_STEPS)
        try:
            for document in islice(gap.values, 32):
                found = self._refuted(orjson.loads(orjson.dumps(document)))
                if found is not None:
                    return found
        except (TooMuchError, RecursionError, OverflowError, orjson.JSONEncodeError):
            pass
        finally:
            self._budget = before - (allowed - max(self._budget, 0))
        return None

    def _refuted(self, document: Any) -> Verdict | None:
        left, right = self._schemas
        self._step()
        if not left.is_valid(document) or right.is_valid(document):
            return None
        problem = right.problems(document, limit=1)[0]
        return Verdict("no", problem.place, problem.text, example=document)

    # ── the proof ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _proven(self, parts: Iterable[Any], right: Any, way: _Way) -> bool:
        return next(self._gaps(parts, right, way), None) is None

    def _gaps(self, parts: Iterable[Any], right: Any, way: _Way) -> Iterator[Gap]:
        """Where it does not follow from `parts` that `right` holds; nothing: it does."""
        parts = [*parts]
        if right is True or any(part is False or part is right for part in parts):
            return
        self._step()
        nodes = self._flat(parts)
        if nodes is None or any(node is right for node in nodes):
            return
        key = frozenset(map(id, nodes)), id(right)
        if key in way.above:
            return  # asked of a larger document already: by induction over the size of documents it holds
        if key in way.here or len(way.above) + len(way.here) > MAX_DEPTH:
            yield Gap(way.place, "$ref", iter(()))
            return
        way = way._replace(here=way.here | {key})
        kinds = kinds_of(nodes)
        values = self._finite(nodes, kinds)
        if values is not None:
            bad = [value for value in values if not self._holds(right, value)]
            if bad:
                yield Gap(way.place, next(iter(right)) if right else "false", iter(bad))
            return
        if len(kinds) > 1:
            for kind in kinds:
                yield from self._gaps((*nodes, self._make({"type": kind})), right, way)
            return
        found = self._keywords(nodes, kinds[0], right, way) if kinds else iter(())
        first = next(found, None)
        if first is None or self._void(nodes, kinds[0], way):
            return
        branches = self._branches(nodes)
        for branch in branches:
            yield from self._gaps(branch, right, way)
        if not branches:
            yield first
            yield from found

    def _finite(self, nodes: Nodes, kinds: list[str]) -> list[Any] | None:
        """All values that satisfy `nodes`, where they can be listed."""
        listed: Iterable[Any] | None = None
        for node in nodes:
            if "const" in node or "enum" in node:
                listed = [node["const"]] if "const" in node else node["enum"]
        if listed is None and all(kind in ("null", "boolean") for kind in kinds):
            listed = [value for kind in kinds for value in ([None] if kind == "null" else [False, True])]
        if listed is None and kinds == ["integer"]:
            (low, _), (high, _) = bounds(nodes, whole=True)
            if high - low < 64:
                listed = range(int(low), int(high) + 1)
        return None if listed is None else [v for v in listed if all(self._holds(node, v) for node in nodes)]

    def _void(self, nodes: Nodes, kind: str, way: _Way) -> bool:
        """Whether certainly no value satisfies `nodes`."""
        if kind in SIZES:
            low, high = self._sizes(nodes, kind)
            if low > high:
                return True
        else:
            (least, strict), (most, strictly) = bounds(nodes, is_whole(nodes, kind))
            if least > most or (least == most and (strict or strictly)):
                return True
            if is_whole(nodes, kind) and math.isfinite(most) and most // multiple(nodes) * multiple(nodes) < least:
                return True
        if kind == "object" and any(
            self._proven(self._members(nodes, name), False, way.into(name)) for name in required_by(nodes)
        ):
            return True
        return any("not" in node and self._proven(nodes, node["not"], way) for node in nodes)

    def _keywords(self, nodes: Nodes, kind: str, right: Any, way: _Way) -> Iterator[Gap]:
        def gap(keyword: str, *tries: Iterable[Any]) -> Gap:
            return Gap(way.place, keyword, self._samples(nodes, way.seeds, chain(*tries), against=right))

        def held(*keywords: str) -> bool:
            own = canonical([right.get(keyword) for keyword in keywords])
            return any(canonical([node.get(keyword) for keyword in keywords]) == own for node in nodes)

        if right is False:
            yield gap("false")
            return
        if "$ref" in right:
            yield from self._gaps(nodes, self._target(right["$ref"]), way)
        for each in right.get("allOf", ()):
            yield from self._gaps(nodes, each, way)
        if "type" in right:
            wanted = [right["type"]] if isinstance(right["type"], str) else right["type"]
            whole = "integer" in wanted and is_whole(nodes, kind)
            if not (kind in wanted or whole or (kind == "integer" and "number" in wanted)):
                yield gap("type")
        for keyword in ("const", "enum"):
            if keyword in right:
                yield gap(keyword)
        for keyword in ("anyOf", "oneOf"):
            if keyword in right and not held(keyword):
                # A choice of the left side is looked at before one of the right side.
                tried: list[list[Gap]] = []
                for each in right[keyword]:
                    tried.append([*islice(self._gaps(nodes, each, way), 8)])
                    if not tried[-1]:
                        break
                if tried[-1]:
                    yield gap(keyword, *(one.values for several in tried for one in several))
        for i, each in enumerate(() if held("oneOf") else right.get("oneOf", ())):
            for other in right["oneOf"][:i]:
                for both in self._gaps((*nodes, each, other), False, way):
                    yield gap("oneOf", both.values)
        if "not" in right and not held("not"):
            for both in self._gaps((*nodes, right["not"]), False, way):
                yield gap("not", both.values)
        if "if" in right and not held("if", "then", "else"):
            yield from self._gaps((*nodes, right["if"]), right.get("then", True), way)
            yield from self._gaps((*nodes, self._make({"not": right["if"]})), right.get("else", True), way)
        if kind in SIZES:
            least, most = self._sizes(nodes, kind)
            name = SIZES[kind]
            if right.get("min" + name, 0) > least:
                yield gap("min" + name)
            if right.get("max" + name, math.inf) < most:
                yield gap("max" + name, self._longer(nodes, kind, int(right["max" + name]) + 1, way.seeds))
        if kind == "string" and "pattern" in right and not held("pattern"):
            yield gap("pattern")
        elif kind == "array":
            if right.get("uniqueItems") and most > 1 and not any(node.get("uniqueItems") for node in nodes):
                yield gap("uniqueItems", self._longer(nodes, kind, max(2, int(least)), way.seeds))
            if "contains" in right and not held("contains", "minContains", "maxContains"):
                yield gap("contains")
            yield from self._items_gaps(nodes, right, way)
        elif kind == "object":
            for name in right.get("required", ()):
                if name not in required_by(nodes):
                    shorter = ({k: v for k, v in s.items() if k != name} for s in way.seeds if isinstance(s, dict))
                    yield gap("required", shorter)
            yield from self._members_gaps(nodes, right, way)
        elif kind in ("number", "integer"):
            whole = is_whole(nodes, kind)
            (low, high), (its_low, its_high) = bounds(nodes, whole), bounds((right,), whole)
            near = [
                bound[0] + d for bound in (its_low, its_high) if math.isfinite(bound[0]) for d in (-1, 1, -0.5, 0.5, 0)
            ]
            if its_low > low:
                yield gap("minimum" if "minimum" in right else "exclusiveMinimum", near)
            if its_high < high:
                yield gap("maximum" if "maximum" in right else "exclusiveMaximum", near)
            if "multipleOf" in right and not (whole and multiple(nodes) % right["multipleOf"] == 0):
                yield gap("multipleOf")

    def _items_gaps(self, nodes: Nodes, right: dict[str, Any], way: _Way) -> Iterator[Gap]:
        most = self._sizes(nodes, "array")[1]
        count = max(len(node.get("prefixItems", ())) for node in (*nodes, right))
        for i in range(count + 1):
            if i >= most:
                break
            below = way.into(i if i < count else "*")
            for gap in self._gaps(items_at(nodes, i), items_at((right,), i)[0], below):
                yield gap._replace(values=self._with_item(nodes, way.seeds, i, gap.values))

    def _members_gaps(self, nodes: Nodes, right: dict[str, Any], way: _Way) -> Iterator[Gap]:
        def descend(parts: Iterable[Any], part: Any, step: str, names: Iterable[str]) -> Iterator[Gap]:
            for gap in self._gaps(parts, part, way.into(step)):
                yield gap._replace(values=self._with_member(nodes, way.seeds, tuple(names), gap.values))

        named = dict.fromkeys(required_by(nodes))
        for node in (*nodes, right):
            named.update(dict.fromkeys(node.get("properties", ())))
        for name in named:
            for part in self._members((right,), name):
                yield from descend(self._members(nodes, name), part, name, (name,))
        patterns = right.get("patternProperties", {})
        fresh = ("other", "a", "A", "0", " ", *(key for seed in way.seeds if isinstance(seed, dict) for key in seed))
        for pattern, part in patterns.items():
            own = [node.get("patternProperties", {}).get(pattern, self._other(node, ())) for node in nodes]
            yield from descend(own, part, "*", fresh)
        rest = [self._other(node, patterns) for node in nodes]
        yield from descend(rest, right.get("additionalProperties", True), "*", fresh)
        if "propertyNames" in right:
            names = right["propertyNames"]
            if self._flat(self._other(node, ()) for node in nodes) is None:
                possible = [name for name in named if self._flat(self._members(nodes, name)) is not None]
                bad = [name for name in possible if not self._holds(names, name)]
                gaps = iter([Gap(way.place, "propertyNames", iter(bad))] if bad else [])
            else:
                own = [node.get("propertyNames", True) for node in nodes]
                gaps = self._gaps([self._make({"type": "string"}), *own], names, way.into("*"))
            for gap in gaps:
                yield gap._replace(keyword="propertyNames", values=self._with_names(nodes, way.seeds, gap.values))
        for name, wanted in right.get("dependentRequired", {}).items():
            there = self._make({"required": [name]})
            yield from self._gaps((*nodes, there), self._make({"required": wanted}), way)
        for name, part in right.get("dependentSchemas", {}).items():
            own = [node["dependentSchemas"][name] for node in nodes if name in node.get("dependentSchemas", {})]
            yield from self._gaps((*nodes, *own, self._make({"required": [name]})), part, way)
