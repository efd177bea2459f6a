"""The catalogue: JSON Schemas (2020-12) read from folders, checked, compiled once, immutable; reloading makes a new one.

`is_valid` is compiled by jsonschema-rs where that can be imported, else by jsonschema; the texts of `problems` come from
jsonschema. What the two judge differently is refused at load: see `_REFUSED` and `_Regex`. `format` is asserted by neither.
Nothing is fetched: a `$ref` that leads outside the loaded files is refused before anything is compiled.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from dataclasses import dataclass, field
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import jsonschema
import orjson
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from gateway import data as shipped
from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_rs: Any
"""jsonschema-rs, or None where it cannot be imported: no wheel for this machine."""
try:
    import jsonschema_rs as _rs
except ImportError:
    _rs = None

DRAFT = "https://json-schema.org/draft/2020-12/schema"
MAX_FILES = 1_000
MAX_FILE_BYTES = 262_144
MAX_DEPTH = 64
"""How deep a schema file may be nested."""
MAX_PROBLEMS = 100
"""How many problems one error lists."""
MAX_TEXT = 200
"""The longest text, and the longest place, of a problem in data, in characters."""
MAX_IN_PLACE_DEPTH = 32
MAX_IN_PLACE_CHECKS = 1_000
"""How deep `$ref`, `allOf`, … may lead on at one place of the data, and to how many checks there."""
MAX_REPEAT = 1_000
MAX_PATTERN = 1_024
MAX_COLLECTIONS = 32

_URL = re.compile(
    r"hyperty-catalogue://catalogue\.[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/\.well-known/dataschema/"
    r"(messages/)?([A-Za-z][A-Za-z0-9_-]{0,63})"
)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,31}")
_COLLECTION = re.compile(r"[A-Za-z0-9_-]{1,64}")

_SINGLE = frozenset(
    ("additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then")
)
_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems"))
_MAPS = frozenset(("$defs", "dependentSchemas", "patternProperties", "properties"))
_IN_PLACE = frozenset(("allOf", "anyOf", "dependentSchemas", "else", "if", "not", "oneOf", "then"))
# fmt: off
_KNOWN = _SINGLE | _LISTS | _MAPS | {
    "$comment", "$id", "$ref", "$schema", "const", "contentEncoding",
    "contentMediaType", "default", "dependentRequired", "deprecated", "description", "enum",
    "examples", "exclusiveMaximum", "exclusiveMinimum", "format", "maxContains", "maxItems",
    "maxLength", "maxProperties", "maximum", "minContains", "minItems", "minLength",
    "minProperties", "minimum", "multipleOf", "pattern", "readOnly", "required",
    "title", "type", "uniqueItems", "writeOnly", "x-children", "x-scheme",
    "x-time",
}
# fmt: on
_TOP_ONLY = frozenset(("$id", "$schema", "x-children", "x-scheme"))
_REFUSED = MappingProxyType(
    {
        "$anchor": "point with a JSON pointer: #/$defs/NAME",
        "$dynamicAnchor": "point with a JSON pointer: #/$defs/NAME",
        "$dynamicRef": "use $ref",
        "$recursiveAnchor": "use $defs and $ref",
        "$recursiveRef": "use $ref",
        "$vocabulary": "leave it out",
        "additionalItems": "use items beside prefixItems",
        "definitions": "use $defs",
        "dependencies": "use dependentRequired or dependentSchemas",
        "id": "use $id",
        "unevaluatedItems": "validators disagree about it: use items beside prefixItems",
        "unevaluatedProperties": "validators disagree about it: list the properties in one place and use additionalProperties",
    }
)


# ── errors and values ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FileProblem:
    """Something wrong with a schema file: where (a JSON pointer, empty for the whole file), what, and what to do."""

    file: Path
    place: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.place + ': ' if self.place else ''}{self.reason}: {self.remedy}"


class CatalogueError(CtxtError):
    """Schema files that cannot be taken, with every problem found (`MAX_PROBLEMS` at most), in the order of the files."""

    def __init__(self, problems: Iterable[FileProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return "\n".join([f"{len(self.problems)} problems in the schemas:", *map(str, self.problems)])


class UnknownSchema(CatalogueError, LookupError):  # noqa: N818  # it says what is the matter
    """No schema has this URL or name, or several share the name (`candidates`); `nearest` is the closest name or None."""

    def __init__(self, wanted: str, nearest: str | None, candidates: tuple[str, ...] = ()) -> None:
        super().__init__(())
        self.wanted = wanted
        self.nearest = nearest
        self.candidates = candidates

    def __str__(self) -> str:
        wanted = _shorten(repr(self.wanted))
        if self.candidates:
            return f"{wanted} names several schemas of the catalogue: give the URL: {', '.join(self.candidates)}"
        hint = f"did you mean {self.nearest!r}?" if self.nearest else "`ctxt schema ls` lists those it has"
        return f"the catalogue has no schema {wanted}: {hint}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why data does not satisfy a schema: a JSON pointer into the data and a text, each of at most `MAX_TEXT` characters."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class TimedMembers:
    """In the object at `path` in the data, each member that is an object has its own time in its member `time`."""

    path: tuple[str, ...]
    time: str


class Schema:
    """One schema of the catalogue, compiled.

    `scheme` is None for schemas of children and messages; `children` maps a collection to its schema's URL.
    `is_valid(data) -> bool` is the compiled function itself (hot), for data as `orjson.loads` returns it; it raises nothing.
    """

    __slots__ = ("_texts", "children", "document", "is_valid", "name", "scheme", "timed", "url")

    is_valid: Callable[[Any], bool]

    def __init__(
        self,
        url: str,
        document: dict[str, Any],
        timed: tuple[TimedMembers, ...],
        is_valid: Callable[[Any], bool],
        texts: Any,
    ) -> None:
        self.url = url
        self.name = url.rpartition("/")[2]
        self.document = document
        self.scheme: str | None = document.get("x-scheme")
        self.children: Mapping[str, str] = MappingProxyType(document.get("x-children", {}))
        self.timed = timed
        self.is_valid = is_valid
        self._texts = texts

    def __repr__(self) -> str:
        return f"Schema({self.url!r})"

    def problems(self, data: Any, limit: int = 5) -> list[Problem]:
        """Why `data` does not satisfy the schema, at most `limit`; empty exactly when it is valid.

        Nearest to the root comes first, among the first `_MOST_ERRORS` found in the order of schema and data.
        """
        if self.is_valid(data):
            return []
        try:
            errors = list(islice(self._texts.iter_errors(data), _MOST_ERRORS))
            errors.sort(key=_rank)
            found = [_problem(best_match([error])) for error in errors[: max(limit, 1)]]
        except RecursionError:
            found = []
        return found or [Problem("", f"the data does not satisfy the schema {self.name}")]

    def satisfies(self, part: Any, data: Any) -> bool:
        """Whether `data` satisfies some other schema, whose every `$ref` is a whole URL of this schema's catalogue. Not compiled: slow."""
        return bool(self._texts.evolve(schema=part).is_valid(data))


_MOST_ERRORS = 64


def _rank(error: Any) -> tuple[int, bool]:
    return len(error.absolute_path), error.validator in ("anyOf", "oneOf")


def _problem(error: Any) -> Problem:
    # Where every branch fails alike, what the branches miss says more than that none holds.
    text = " or ".join(dict.fromkeys(each.message for each in error.context[:4])) if error.context else error.message
    return Problem(_shorten(_pointer(error.absolute_path)), _shorten(text))


def _pointer(steps: Iterable[str | int]) -> str:
    """RFC 6901."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def _shorten(text: str) -> str:
    # Both ends stay: a message begins with the value and ends with what is wrong with it.
    return text if len(text) <= MAX_TEXT else f"{text[:100]} … {text[-(MAX_TEXT - 103) :]}"


# ── the catalogue ────────────────────────────────────────────────────────────────────────────────────────────────────


class Catalogue:
    """Schemas by URL and by name. Iterating gives those of Data Objects and children in the order of their names."""

    __slots__ = ("_by_name", "_by_url", "_objects", "messages", "schemes")

    def __init__(self, schemas: Iterable[Schema]) -> None:
        ordered = sorted(schemas, key=lambda schema: (schema.name, schema.url))
        self._by_url = {schema.url: schema for schema in ordered}
        self._objects = tuple(schema for schema in ordered if "/dataschema/messages/" not in schema.url)
        self._by_name: dict[str, list[Schema]] = {}
        for schema in self._objects:
            self._by_name.setdefault(schema.name, []).append(schema)
        self.messages: Mapping[str, Schema] = MappingProxyType(
            {schema.name: schema for schema in ordered if "/dataschema/messages/" in schema.url}
        )
        self.schemes = frozenset(schema.scheme for schema in ordered if schema.scheme is not None)

    @classmethod
    def load(cls, *folders: Path) -> Catalogue:
        """Read every `*.json` in and below `folders` (default: the shipped ones), the first folder's schemas standing first.

        Raises CatalogueError with all that is wrong; a schema whose `$id` is taken by an earlier file is wrong too.
        """
        found: list[FileProblem] = []
        paths = _files(folders or (shipped.folder("schemas"),), found)
        schemas = _build(_read_all(paths, found), found)
        if found:
            raise CatalogueError(found[:MAX_PROBLEMS])
        return cls(schemas)

    def get(self, url_or_name: str) -> Schema:
        """The schema with this URL, or the Data Object's or child's schema with this name. Raises UnknownSchema."""
        schema = self._by_url.get(url_or_name)
        if schema is not None:
            return schema
        named = self._by_name.get(url_or_name, ())
        if len(named) == 1:
            return named[0]
        if named:
            raise UnknownSchema(url_or_name, None, tuple(schema.url for schema in named))
        close = difflib.get_close_matches(url_or_name[:512], [*self._by_name, *self._by_url], n=1)
        if not close:
            lower = url_or_name.lower()
            close = [name for name in self._by_name if name.lower() == lower]
        raise UnknownSchema(url_or_name, close[0] if close else None)

    def find(self, url: str | None) -> Schema | None:
        """The schema with this URL, or None."""
        return None if url is None else self._by_url.get(url)

    def __iter__(self) -> Iterator[Schema]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)


def check_file(path: Path, *folders: Path) -> list[FileProblem]:
    """What is wrong with one schema file, as it would be beside the schemas of `folders` (default: the shipped ones)."""
    found: list[FileProblem] = []
    place = path.resolve()
    others = [other for other in _files(folders or (shipped.folder("schemas"),), found) if other.resolve() != place]
    _build(_read_all([*others, path], found), found)
    return [problem for problem in found if problem.file == path][:MAX_PROBLEMS]


# ── reading files ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class _Source:
    """A schema file under examination."""

    path: Path
    document: dict[str, Any]
    found: list[FileProblem]
    url: str = ""
    places: dict[str, dict[str, Any] | bool] = field(default_factory=dict)
    """JSON pointer → the schema there: every place that a `$ref` may lead to."""
    in_place: dict[str, list[str]] = field(default_factory=dict)
    """JSON pointer → pointers of the schemas that judge the same place of the data."""
    timed: list[TimedMembers] = field(default_factory=list)

    def refuse(self, place: str, reason: str, remedy: str) -> None:
        self.found.append(FileProblem(self.path, place, reason, remedy))


def _files(folders: Iterable[Path], found: list[FileProblem]) -> list[Path]:
    paths: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            found.append(FileProblem(folder, "", "there is no such folder", "make it, or name another one"))
            continue

        def unreadable(error: OSError, folder: Path = folder) -> None:
            found.append(
                FileProblem(Path(error.filename or folder), "", f"{error.strerror}", "let the gateway read it")
            )

        for at, folders_below, names in os.walk(folder, onerror=unreadable):
            folders_below.sort()
            paths += [Path(at, name) for name in sorted(names) if name.endswith(".json") and not name.startswith(".")]
            if len(paths) > MAX_FILES:
                found.append(
                    FileProblem(folder, "", f"more than {MAX_FILES:,} schema files", "keep only the schemas in use")
                )
                return paths[:MAX_FILES]
    return paths


def _read_all(paths: Iterable[Path], found: list[FileProblem]) -> list[_Source]:
    return [source for path in paths if (source := _read(path, found)) is not None]


def _read(path: Path, found: list[FileProblem]) -> _Source | None:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            found.append(FileProblem(path, "", "this is not a file", "give a file of JSON"))
            return None
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        found.append(FileProblem(path, "", f"it cannot be read ({error.strerror})", "let the gateway read it"))
        return None
    if len(text) > MAX_FILE_BYTES:
        found.append(
            FileProblem(path, "", f"it has more than {MAX_FILE_BYTES:,} bytes", "split it into several schemas")
        )
        return None
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        found.append(FileProblem(path, "", f"it is not JSON ({error})", "correct the text there"))
        return None
    if not isinstance(document, dict):
        found.append(FileProblem(path, "", "a schema is a JSON object", "write it between { and }"))
        return None
    if _deeper_than(document, MAX_DEPTH):
        found.append(FileProblem(path, "", f"it is nested deeper than {MAX_DEPTH} levels", "move parts into $defs"))
        return None
    return _Source(path, document, found)


def _deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            below
            for each in level
            for below in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
        if not level:
            return False
    return True


# ── checking them ────────────────────────────────────────────────────────────────────────────────────────────────────


def _build(sources: list[_Source], found: list[FileProblem]) -> list[Schema]:
    """Check all, each alone and then together; compile where nothing is wrong. Adds to `found`."""
    catalogue: dict[str, _Source] = {}
    for source in sources:
        _check_alone(source)
        holder = catalogue.setdefault(source.url, source) if source.url else source
        if holder is not source:
            source.refuse(
                "/$id",
                f"{source.url} is already the schema of {holder.path}, and none may be replaced",
                "give this one a $id of its own",
            )
    for source in catalogue.values():
        _check_children(source, catalogue)
    _check_references(catalogue)
    return [] if found else _compile(catalogue)


def _check_alone(source: _Source) -> None:
    document = source.document
    _check_identity(source)
    before = len(source.found)
    for error in islice(_META.iter_errors(document), _MOST_ERRORS):
        problem = _problem(best_match([error]))
        source.refuse(problem.place, problem.text, "see the JSON Schema 2020-12 specification")
    if len(source.found) > before:
        return  # places of a malformed schema cannot be walked
    if document.get("type") != "object":
        source.refuse("/type", "the data of an object is a JSON object", 'write "type": "object" at the top')
    scheme = document.get("x-scheme")
    if "x-scheme" in document and not (isinstance(scheme, str) and _SCHEME.fullmatch(scheme)):
        source.refuse(
            "/x-scheme",
            f"{_shorten(repr(scheme))} is not a URL scheme",
            "write a lower-case letter, then letters, digits, +, . and - (32 at most)",
        )
    _walk(source, document, "", ())


def _check_identity(source: _Source) -> None:
    document = source.document
    url = document.get("$id")
    if "$id" not in document:
        source.refuse("", "it has no $id", "write its catalogue URL as $id")
    elif not isinstance(url, str) or not _URL.fullmatch(url):
        source.refuse(
            "/$id",
            f"{_shorten(repr(url))} is not a catalogue URL",
            "write hyperty-catalogue://catalogue.<domain>/.well-known/dataschema/<Name>",
        )
    else:
        source.url = url
    if document.get("$schema", DRAFT) not in (DRAFT, DRAFT + "#"):
        source.refuse("/$schema", f"{_shorten(repr(document['$schema']))} is not this draft", f"write {DRAFT}")


def _walk(source: _Source, schema: dict[str, Any] | bool, place: str, path: tuple[str, ...] | None) -> None:
    """Note every place of a schema and refuse keywords that it may not have.

    `path` leads to the data's object that this schema describes, as far as only `properties` lead there; else None.
    """
    source.places[place] = schema
    if isinstance(schema, bool):
        return
    judges = source.in_place.setdefault(place, [])
    for keyword, value in schema.items():
        at = f"{place}{_pointer([keyword])}"
        _check_keyword(source, schema, keyword, at)
        below: list[tuple[str, Any, tuple[str, ...] | None]] = []
        if keyword in _SINGLE:
            below = [(at, value, None)]
        elif keyword in _LISTS:
            below = [(f"{at}/{i}", each, None) for i, each in enumerate(value)]
        elif keyword in _MAPS:
            into = keyword == "properties" and path is not None
            below = [
                (at + _pointer([name]), each, (*path, name) if into and path is not None else None)
                for name, each in value.items()
            ]
        if keyword in _IN_PLACE:
            judges += [where for where, _, _ in below]
        for where, each, its_path in below:
            if isinstance(each, dict) and "x-time" in each:
                _check_timed(source, each, where, path if keyword == "additionalProperties" else None)
            _walk(source, each, where, its_path)


def _check_keyword(source: _Source, schema: dict[str, Any], keyword: str, at: str) -> None:
    value = schema[keyword]
    if keyword in _REFUSED:
        source.refuse(at, f"{keyword} is not taken here", _REFUSED[keyword])
    elif keyword not in _KNOWN and not keyword.startswith("x-"):
        close = difflib.get_close_matches(keyword[:64], sorted(_KNOWN), n=1)
        source.refuse(
            at,
            f"{_shorten(repr(keyword))} is no keyword of JSON Schema 2020-12",
            f"did you mean {close[0]!r}?" if close else "begin keywords of your own with x-",
        )
    elif keyword in _TOP_ONLY and at.count("/") > 1:
        source.refuse(at, f"{keyword} belongs at the top of the file", "move it there")
    elif keyword == "x-time" and at == "/x-time":
        source.refuse(
            at, "x-time marks the members of an object, not the data itself", "write it in additionalProperties"
        )
    elif keyword == "pattern":
        _check_pattern(source, value, at)
    elif keyword == "patternProperties":
        for pattern in value:
            _check_pattern(source, pattern, at + _pointer([pattern]))
    elif keyword == "multipleOf" and not isinstance(value, int):
        source.refuse(at, "validators disagree about multiples of a fraction", "take a whole number, or leave it out")


def _check_pattern(source: _Source, pattern: str, at: str) -> None:
    try:
        regex = _Regex(pattern)
    except ValueError as error:
        source.refuse(at, f"the regular expression {_shorten(repr(pattern))} {error}", "see docs/schemas.md")
        return
    if regex.slow and _rs is None:
        source.refuse(
            at,
            f"the regular expression {_shorten(repr(pattern))} repeats what itself repeats or branches: "
            "without jsonschema-rs it can take for ever",
            "install jsonschema-rs, or write it without the outer repeat",
        )


def _check_timed(source: _Source, member: dict[str, Any], where: str, path: tuple[str, ...] | None) -> None:
    key = member["x-time"]
    if not isinstance(key, str) or not 1 <= len(key) <= 64:
        source.refuse(
            f"{where}/x-time", "x-time names a member", 'write the name of the member that has the time: "time"'
        )
    elif path is None:
        source.refuse(
            f"{where}/x-time",
            "x-time is not found here",
            "write it in additionalProperties of an object that only `properties` lead to",
        )
    elif isinstance(member.get("properties"), dict) and key not in member["properties"]:
        source.refuse(f"{where}/x-time", f"the member has no property {key!r}", f"describe {key!r} in its properties")
    else:
        source.timed.append(TimedMembers(path, key))


def _check_children(source: _Source, catalogue: Mapping[str, _Source]) -> None:
    if "x-children" not in source.document:
        return
    children = source.document["x-children"]
    if not isinstance(children, dict) or len(children) > MAX_COLLECTIONS:
        source.refuse(
            "/x-children",
            f"x-children is an object of at most {MAX_COLLECTIONS} collections",
            'write {"<collection>": "<the child schema\'s URL>"}',
        )
        return
    for collection, url in children.items():
        at = "/x-children" + _pointer([collection])
        if not _COLLECTION.fullmatch(collection):
            source.refuse(
                at, f"{_shorten(repr(collection))} cannot stand in a URL", "use up to 64 letters, digits, _ and -"
            )
        child = catalogue.get(url) if isinstance(url, str) else None
        if child is None:
            source.refuse(
                at,
                f"no schema of the catalogue has the URL {_shorten(repr(url))}",
                _nearest(url, catalogue) or "add its file to the folder",
            )
        elif "x-children" in child.document:
            source.refuse(
                at, f"{child.url} has children of its own, and a child is never a parent", "name another schema"
            )


def _check_references(catalogue: Mapping[str, _Source]) -> None:
    """Every `$ref` leads to a schema of the catalogue, and none back to itself at the same place of the data."""
    graph: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for source in catalogue.values():
        for place, schema in source.places.items():
            judges = {(source.url, below) for below in source.in_place.get(place, ())}
            if isinstance(schema, dict) and "$ref" in schema:
                target = _target(source, schema["$ref"], f"{place}/$ref", catalogue)
                if target is not None:
                    judges.add(target)
            graph[source.url, place] = judges
    for _ in range(MAX_PROBLEMS):
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            cycle: list[tuple[str, str]] = error.args[1]
            held, back = cycle[1], cycle[0]
            catalogue[held[0]].refuse(
                held[1], "it refers to itself at one and the same place of the data", "break the circle of $ref"
            )
            graph[held].discard(back)
        else:
            _check_cost(order, graph, catalogue)
            return


def _check_cost(
    order: Iterable[tuple[str, str]],
    graph: Mapping[tuple[str, str], set[tuple[str, str]]],
    catalogue: Mapping[str, _Source],
) -> None:
    depth: dict[tuple[str, str], int] = {}
    checks: dict[tuple[str, str], int] = {}
    for node in order:
        below = graph.get(node, ())
        depth[node] = 1 + max((depth[each] for each in below), default=0)
        checks[node] = 1 + sum(checks[each] for each in below)
        if depth[node] > MAX_IN_PLACE_DEPTH or checks[node] > MAX_IN_PLACE_CHECKS:
            depth[node] = checks[node] = 0  # told once, not again by all that lead here
            catalogue[node[0]].refuse(
                node[1],
                f"$ref, allOf, anyOf, oneOf, not and if lead on more than {MAX_IN_PLACE_DEPTH} deep "
                f"or to more than {MAX_IN_PLACE_CHECKS:,} checks of one place of the data",
                "make it flatter",
            )


def _target(source: _Source, ref: str, at: str, catalogue: Mapping[str, _Source]) -> tuple[str, str] | None:
    url, _, fragment = ref.partition("#")
    pointer = unquote(fragment)
    other = catalogue.get(url) if url else source
    if other is None:
        source.refuse(
            at,
            f"{_shorten(repr(ref))} leads outside the catalogue, and nothing is fetched",
            _nearest(url, catalogue) or "write #/$defs/NAME or the URL of a schema in the folder",
        )
        return None
    if other.places and pointer not in other.places:
        source.refuse(at, f"{_shorten(repr(ref))} leads to no schema", "write #/$defs/NAME and define NAME there")
        return None
    return other.url, pointer


def _nearest(url: Any, catalogue: Mapping[str, _Source]) -> str:
    close = difflib.get_close_matches(url[:512], list(catalogue), n=1, cutoff=0.8) if isinstance(url, str) else ()
    return f"did you mean {close[0]!r}?" if close else ""


# ── regular expressions ──────────────────────────────────────────────────────────────────────────────────────────────

_QUANTIFIER = re.compile(r"(?:[*+?]|\{([0-9]{1,4})(,([0-9]{1,4})?)?\})\??")
_SETS = MappingProxyType({"d": "0-9", "w": "0-9A-Za-z_"})
_CONTROLS = MappingProxyType({"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"})
_PUNCTUATION = frozenset("^$\\.*+?()[]{}|/-")


class _Regex:
    """A regular expression in the part of ECMA-262 that jsonschema-rs and Python's `re` read alike.

    `python` is its spelling for `re`; `slow` says that `re`, which backtracks, may take exponential time.
    Raises ValueError with what is not taken: text that follows the expression in a sentence.
    """

    __slots__ = ("_at", "_text", "python", "slow")

    def __init__(self, text: str) -> None:
        if len(text) > MAX_PATTERN:
            raise ValueError(f"is longer than {MAX_PATTERN:,} characters")
        self._text = text
        self._at = 0
        self.slow = False
        self.python = self._all()
        try:
            re.compile(self.python)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is malformed ({error})") from error

    def _all(self) -> str:
        text = self._text
        out: list[str] = []
        groups = [False]  # whether what is open here repeats or branches
        atom: bool | None = (
            None  # what a quantifier would repeat: None for nothing, else whether that repeats or branches
        )
        while self._at < len(text):
            char = text[self._at]
            if char in "*+?{":
                out.append(self._quantifier(atom, groups))
                atom = None
                continue
            self._at += 1
            if char == "(":
                if text.startswith("?", self._at):
                    if not text.startswith("?:", self._at):
                        raise ValueError("looks around, names a group or sets a flag: only ( and (?: are taken")
                    self._at += 2
                out.append("(?:")
                groups.append(False)
                atom = None
            elif char == ")":
                if len(groups) == 1:
                    raise ValueError("closes a group that is not open")
                atom = groups.pop()
                groups[-1] |= atom
                out.append(")")
            elif char == "|":
                groups[-1] = True
                out.append("|")
                atom = None
            elif char in "^$":
                out.append("^" if char == "^" else r"\Z")
                atom = None
            elif char == "[":
                out.append(self._class())
                atom = False
            elif char == "\\":
                literal, members = self._escape()
                out.append(members or re.escape(literal))
                atom = False
            elif char in "]}":
                raise ValueError(f"has a {char} that closes nothing: write \\{char}")
            else:
                out.append(r"[^\n\r\u2028\u2029]" if char == "." else re.escape(char))
                atom = False
        if len(groups) > 1:
            raise ValueError("leaves a group open")
        return "".join(out)

    def _quantifier(self, atom: bool | None, groups: list[bool]) -> str:
        match = _QUANTIFIER.match(self._text, self._at)
        if match is None:
            raise ValueError("has a { that is no quantifier: write \\{")
        if atom is None:
            raise ValueError(f"repeats nothing with {match[0]!r}")
        self._at = match.end()
        low, comma, high = match.groups()
        most = 1 if match[0][0] == "?" else None if low is None or (comma and not high) else int(high or low)
        if max(int(low or 0), most or 0) > MAX_REPEAT:
            raise ValueError(f"repeats more than {MAX_REPEAT:,} times")
        if most is not None and most < int(low or 0):
            raise ValueError(f"has a quantifier that goes backwards: {match[0]!r}")
        if atom and (most is None or most > 16):
            self.slow = True
        if most != 1:
            groups[-1] = True
        return match[0]

    def _class(self) -> str:
        text = self._text
        out = ["["]
        if text.startswith("^", self._at):
            self._at += 1
            out.append("^")
        first = self._at
        while True:
            if self._at >= len(text):
                raise ValueError("leaves a [ open")
            if text[self._at] == "]":
                if self._at == first:
                    raise ValueError("has an empty class []")
                self._at += 1
                return "".join([*out, "]"])
            low, members = self._member(first)
            if members:
                out.append(members)
                continue
            if not text.startswith("-", self._at) or text.startswith("-]", self._at):
                out.append(re.escape(low))
                continue
            self._at += 1
            if self._at >= len(text):
                raise ValueError("leaves a [ open")
            high, members = self._member(self._at)
            if members or high < low:
                raise ValueError("has a range in a class that goes backwards or has no end")
            out.append(f"{re.escape(low)}-{re.escape(high)}")

    def _member(self, first: int) -> tuple[str, str]:
        r"""One member of a class: a character, or the inside of a class for `\d` and `\w`."""
        text = self._text
        char = text[self._at]
        at = self._at
        self._at += 1
        if char == "\\":
            literal, members = self._escape()
            if members.startswith("[^"):
                raise ValueError("has \\D or \\W inside a class")
            return literal, members[1:-1]
        if char == "[" or (char in "&|~" and text.startswith(char, self._at)):
            raise ValueError(f"has a {char} in a class that validators read differently: write \\x{ord(char):02x}")
        if char == "-" and at != first and not text.startswith("]", self._at):
            raise ValueError("has a - inside a class: write it first, last or as \\-")
        return char, ""

    def _escape(self) -> tuple[str, str]:
        r"""What follows a backslash: a character, or a class for `\d \D \w \W` (of ASCII, as in ECMA-262)."""
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char.lower() in _SETS:
            return "", f"[{'^' if char.isupper() else ''}{_SETS[char.lower()]}]"
        if char in _CONTROLS:
            return _CONTROLS[char], ""
        if char and char in _PUNCTUATION:
            return char, ""
        if char in ("x", "u"):
            digits = self._text[self._at : self._at + (2 if char == "x" else 4)]
            if re.fullmatch(r"[0-9A-Fa-f]{2}|[0-9A-Fa-f]{4}", digits) and not 0xD800 <= int(digits, 16) <= 0xDFFF:
                self._at += len(digits)
                return chr(int(digits, 16)), ""
        raise ValueError(f"has the escape \\{char}, which is not taken: write the characters themselves in a class")


@lru_cache(maxsize=4096)
def _matcher(pattern: str) -> Callable[[str], object]:
    """Whether a pattern is found in a text: in linear time by jsonschema-rs, else by `re`."""
    if _rs is not None:
        return cast(
            "Callable[[str], object]",
            _rs.Draft202012Validator({"pattern": pattern}, pattern_options=_rs.RegexOptions()).is_valid,
        )
    return re.compile(_Regex(pattern).python).search


# ── compiling ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _compile(catalogue: Mapping[str, _Source]) -> list[Schema]:
    # jsonschema takes the validator class that `$schema` names wherever a `$ref` leads; without it, ours goes on.
    documents = {
        url: {key: value for key, value in source.document.items() if key != "$schema"}
        for url, source in catalogue.items()
    }
    registry: Registry[Any] = Registry().with_resources(
        (url, DRAFT202012.create_resource(document)) for url, document in documents.items()
    )
    compiled = _compiled(documents)
    schemas = []
    for url, source in catalogue.items():
        texts = _Texts(documents[url], registry=registry)
        try:
            is_valid = compiled(url) if compiled is not None else _slowly(texts)
        except ValueError as error:
            source.refuse("", f"it cannot be compiled ({_shorten(str(error).partition(chr(10))[0])})", "simplify it")
            continue
        schema = Schema(url, source.document, tuple(source.timed), is_valid, texts)
        for i, example in enumerate(source.document.get("examples", ())):
            for problem in schema.problems(example, limit=1):
                source.refuse(
                    f"/examples/{i}{problem.place}",
                    f"the example is not valid: {problem.text}",
                    "correct one of the two",
                )
        schemas.append(schema)
    return schemas


def _compiled(documents: Mapping[str, dict[str, Any]]) -> Callable[[str], Callable[[Any], bool]] | None:
    if _rs is None:
        return None
    registry = _rs.Registry(list(documents.items()), draft=_rs.Draft202012, retriever=_fetch_nothing)
    linear = _rs.RegexOptions()

    def compiled(url: str) -> Callable[[Any], bool]:
        validator = _rs.Draft202012Validator(
            documents[url],
            registry=registry,
            retriever=_fetch_nothing,
            validate_formats=False,
            pattern_options=linear,
        )
        return cast("Callable[[Any], bool]", validator.is_valid)

    return compiled


def _fetch_nothing(url: str, /) -> Any:
    raise LookupError(f"{url} is not in the catalogue, and nothing is fetched")


def _slowly(texts: Any) -> Callable[[Any], bool]:
    def is_valid(data: Any) -> bool:
        try:
            return bool(texts.is_valid(data))
        except RecursionError:
            return False

    return is_valid


def _by_pattern(_validator: Any, pattern: str, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    if isinstance(instance, str) and not _matcher(pattern)(instance):
        kind = schema.get("format")
        yield jsonschema.ValidationError(
            f"{instance!r} is not a {kind!r}" if kind else f"{instance!r} does not match {pattern!r}"
        )


def _by_pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, _schema: dict[str, Any]
) -> Iterator[Any]:
    if isinstance(instance, dict):
        for pattern, schema in patterns.items():
            matches = _matcher(pattern)
            for key, value in instance.items():
                if matches(key):
                    yield from validator.descend(value, schema, path=key, schema_path=pattern)


def _by_additional_properties(validator: Any, rest: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    # jsonschema's own goes through a set, in another order in each process.
    if not isinstance(instance, dict):
        return
    known = schema.get("properties", {})
    patterns = [_matcher(pattern) for pattern in schema.get("patternProperties", ())]
    extras = [key for key in instance if key not in known and not any(matches(key) for matches in patterns)]
    if isinstance(rest, dict):
        for key in extras:
            yield from validator.descend(instance[key], rest, path=key)
    elif rest is False and extras:
        names = ", ".join(repr(key) for key in sorted(extras))
        verb = "was" if len(extras) == 1 else "were"
        yield jsonschema.ValidationError(f"Additional properties are not allowed ({names} {verb} unexpected)")


def _by_unique_items(_validator: Any, unique: bool, instance: Any, _schema: dict[str, Any]) -> Iterator[Any]:
    # jsonschema's own compares every pair where items cannot be sorted.
    if unique and isinstance(instance, list) and len({_hashable(item) for item in instance}) < len(instance):
        yield jsonschema.ValidationError(f"{instance!r} has non-unique elements")


def _hashable(value: Any) -> Any:
    """Equal for JSON values that are equal in JSON Schema's sense: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return "{", frozenset((key, _hashable(each)) for key, each in value.items())
    if isinstance(value, list):
        return "[", tuple(_hashable(each) for each in value)
    return ("b", value) if isinstance(value, bool) else value


_Texts: Any = extend(  # type: ignore[no-untyped-call]  # the stubs leave its validators open
    jsonschema.Draft202012Validator,
    {
        "additionalProperties": _by_additional_properties,
        "pattern": _by_pattern,
        "patternProperties": _by_pattern_properties,
        "uniqueItems": _by_unique_items,
    },
)
_META = jsonschema.Draft202012Validator(jsonschema.Draft202012Validator.META_SCHEMA)
