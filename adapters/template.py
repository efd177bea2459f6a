"""Any topic of JSON, text or CSV, by declaration: where the device's id is, where each quantity is, and what is sent for an action.

There is no code in it and no expression language: paths are JSON Pointers (RFC 6901) or the plain half of JSONPath (RFC 9535: names and
indexes), texts have `{name}` in them for a level of the topic or a parameter. All of it is compiled once, at the start.
"""

from __future__ import annotations

import csv
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gateway.adapter import (
    About,
    Alive,
    Event,
    Options,
    Order,
    Reading,
    Readings,
    Scalar,
    Send,
    Spec,
    Unable,
    Unreadable,
    Value,
    at,
    flat,
    moment,
    number,
    read_json,
    read_text,
    scalar,
    zone_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from datetime import tzinfo

EXAMPLE = """\
[[adapter]]
type = "template"
clients = ["weather"]

[[adapter.options.topic]]
topic = "weather/{station}/data"
time = "/ts"
time_format = "unix"

[adapter.options.topic.quantities]
temperature = { from = "/temp", unit = "°C" }
humidity = { from = "/hum", unit = "%" }
rain = { from = "/rain_tenths", unit = "mm", scale = 0.1 }
wind = { from = "/wind/state", map = { "0" = "calm", "1" = "breeze", "*" = "storm" } }

[[adapter.options.topic]]
topic = "weather/{station}/status"
format = "text"
alive = { online = true, offline = false }

[[adapter.options.command]]
method = "set"
topic = "weather/{station}/set"
payload = '{"led": {led}}'
confirms = ["led"]
"""

PLACE = re.compile(r"\{([^{}]*)\}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
STEP = re.compile(r"""\.([A-Za-z_][A-Za-z0-9_-]*)|\[(\d{1,9})\]|\['([^'\\]*)'\]|\["([^"\\]*)"\]""")

MOST_ITEMS = 1_000
"""Lines of a CSV, or items of an array, that one message may have."""

MISSING = object()

Path = tuple["str | int", ...]


def path_of(text: str) -> Path:
    """The steps of a JSON Pointer or of a JSONPath. Raises ValueError."""
    if text in ("", "$"):
        return ()
    if text.startswith("/"):
        return tuple(step.replace("~1", "/").replace("~0", "~") for step in text[1:].split("/"))
    if text.startswith("$"):
        steps: list[str | int] = []
        at = 1
        while at < len(text):
            found = STEP.match(text, at)
            if found is None:
                raise ValueError(
                    f"{text!r} is no path: names and indexes can be in it, as in $.a.b[0]['c'], no filters and no wildcards"
                )
            steps.append(
                int(found[2])
                if found[2] is not None
                else next(each for each in (found[1], found[3], found[4]) if each is not None)
            )
            at = found.end()
        return tuple(steps)
    raise ValueError(f"{text!r} is no path: write a JSON Pointer, /a/b/0, or a JSONPath, $.a.b[0]")


def walk(value: Any, path: Path) -> Any:
    """The value at a path, or MISSING."""
    for step in path:
        if type(value) is dict:
            value = value.get(step if type(step) is str else str(step), MISSING)
        elif type(value) is list:
            index = step if isinstance(step, int) else int(step) if step.isdecimal() and len(step) < 10 else -1
            value = value[index] if 0 <= index < len(value) else MISSING
        else:
            return MISSING
        if value is MISSING:
            return MISSING
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class QuantityOptions(_Model):
    """One quantity: where it is in the message, and what is made of it."""

    source: str = Field(
        default="",
        alias="from",
        max_length=500,
        description="Where it is: a JSON Pointer or JSONPath; for CSV a column, by name or number; {name} for a level of the topic; empty for the whole payload.",
    )
    unit: str = Field(default="", max_length=32, description="Its unit, as `°C`, `hPa`, `kWh`.")
    kind: Literal["any", "number", "text", "boolean"] = Field(
        default="any", alias="type", description="What it has to be; a number may be written as a text."
    )
    scale: float = Field(default=1.0, allow_inf_nan=False, description="What a number is multiplied with,")
    offset: float = Field(default=0.0, allow_inf_nan=False, description="and what is added then.")
    map: dict[str, bool | int | float | str] = Field(
        default_factory=dict,
        max_length=256,
        description="What values mean, VALUE = MEANING; * for all others, which are left as they are without it.",
    )
    event: bool = Field(
        default=False,
        description="It is told once and is no state: the same twice is two changes, and what the broker has kept is none.",
    )


class TopicOptions(_Model):
    """One pattern of topics, and what its messages say."""

    topic: str = Field(
        max_length=500, description="The topic, with {name} for a level; # at its end for what is below."
    )
    device: str = Field(
        default="",
        max_length=300,
        description="The device's id: a text with {name} for a level of the topic, {/a/b} for a value in the payload. Left out: the levels, joined by /.",
    )
    form: Literal["json", "text", "csv"] = Field(default="json", alias="format", description="What the payload is.")
    name: str = Field(default="", max_length=300, description="The device's name, written as `device`.")
    manufacturer: str = Field(default="", max_length=300, description="The same for who made it.")
    model: str = Field(default="", max_length=300, description="The same for its model.")
    each: str | None = Field(
        default=None,
        max_length=500,
        description="Where an array is, each of whose items is read by itself; all paths begin there.",
    )
    quantities: dict[str, QuantityOptions] = Field(
        default_factory=dict,
        max_length=256,
        description='What there is to read, NAME = { from = "/path", … }, or NAME = "/path". {name} may be in NAME.',
    )
    everything: bool = Field(
        default=False, description="Whether all other values become quantities too, a.b for what is inside."
    )
    repeats: bool = Field(
        default=False, description="The device repeats what was true before: only what is different is a change."
    )
    time: str = Field(default="", max_length=500, description="Where the time is.")
    time_format: str = Field(
        default="iso",
        max_length=64,
        description="iso, unix, unix_ms, or as strptime(3) has it, such as %d.%m.%Y %H:%M.",
    )
    time_zone: str = Field(default="UTC", description="The zone of times that name none, such as Europe/Lisbon.")
    alive: dict[str, bool] = Field(
        default_factory=dict,
        max_length=32,
        description="Values that say whether the device can be reached, VALUE = true or false.",
    )
    alive_from: str = Field(default="", max_length=500, description="Where that value is, as `from`.")
    columns: tuple[str, ...] = Field(
        default=(), max_length=256, description="Names of a CSV's columns. Left out: its first line has them."
    )
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="What is between the fields of a CSV.")
    decimal: Literal[".", ","] = Field(default=".", description="What is before the decimals of numbers in texts.")

    @field_validator("quantities", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: {"from": each} if isinstance(each, str) else each for key, each in value.items()}
        return value

    @field_validator("topic")
    @classmethod
    def _topic(cls, value: str) -> str:
        levels = value.split("/")
        for number_, level in enumerate(levels):
            found = PLACE.fullmatch(level)
            if level == "#" and number_ == len(levels) - 1 and number_:
                continue
            if found is None and set("+#{}") & set(level):
                raise ValueError(f"{value!r}: a level is a text or {{name}}, and # can only be the last one")
            if found is not None and NAME.fullmatch(found[1]) is None:
                raise ValueError(f"{value!r}: {level} is no name of letters, digits and _")
        if len({level for level in levels if PLACE.fullmatch(level)}) < sum(
            PLACE.fullmatch(level) is not None for level in levels
        ):
            raise ValueError(f"{value!r} has a name twice")
        if levels[0] in ("", "#") or levels[0].startswith("$"):
            raise ValueError(f"{value!r} has to begin with a level")
        return value

    @field_validator("time_zone")
    @classmethod
    def _time_zone(cls, value: str) -> str:
        zone_of(value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> TopicOptions:
        if not (self.quantities or self.everything or self.alive or self.name or self.manufacturer or self.model):
            raise ValueError(f"{self.topic}: nothing is read of it: give `quantities`, `everything` or `alive`")
        _Topic(self)
        return self


class CommandOptions(_Model):
    """One action, and what is sent for it."""

    method: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$", description="What `execute` calls it.")
    topic: str = Field(
        max_length=500, description="Where it is sent: {name} as in the device's `topic`, or a parameter."
    )
    payload: str = Field(
        default="{value}",
        max_length=10_000,
        description="What is sent: {name} is a parameter of the action; in `json` it is written as JSON has it, quotes included.",
    )
    form: Literal["json", "text"] = Field(default="json", alias="format", description="What the payload is.")
    map: dict[str, str | int | float | bool] = Field(
        default_factory=dict, max_length=256, description="How values of parameters are sent, VALUE = SENT."
    )
    confirms: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Quantities, one of which the device tells when it has done it. Left out: it does not.",
    )
    retain: bool = Field(default=False, description="Whether the broker keeps it.")
    qos: Literal[0, 1, 2] = Field(default=0, description="Its QoS.")

    @field_validator("topic")
    @classmethod
    def _topic(cls, value: str) -> str:
        for level in value.split("/"):
            found = PLACE.fullmatch(level)
            if found is None and (set("+#{}") & set(level) or not level):
                raise ValueError(f"{value!r}: a level is a text or {{name}}")
            if found is not None and NAME.fullmatch(found[1]) is None:
                raise ValueError(f"{value!r}: {level} is no name of letters, digits and _")
        return value

    @model_validator(mode="after")
    def _whole(self) -> CommandOptions:
        if self.form == "json":
            try:
                orjson.loads(PLACE.sub(lambda found: "0" if NAME.fullmatch(found[1]) else found[0], self.payload))
            except orjson.JSONDecodeError as error:
                raise ValueError(
                    f'{self.method}: `payload` is no JSON with {{name}} for its values ({error}); or set format = "text"'
                ) from error
        return self


class TemplateOptions(Options):
    """What is where."""

    topic: tuple[TopicOptions, ...] = Field(
        default=(),
        max_length=500,
        description="Patterns of topics, each a [[adapter.options.topic]]; the first that fits a message reads it.",
    )
    command: tuple[CommandOptions, ...] = Field(
        default=(), max_length=500, description="Actions, each a [[adapter.options.command]]."
    )

    @model_validator(mode="after")
    def _methods(self) -> TemplateOptions:
        names = [each.method for each in self.command]
        for each in names:
            if names.count(each) > 1:
                raise ValueError(f"the method {each!r} is there twice")
        return self


# ---- compiled ----------------------------------------------------------------------------------------------------------


class _Said(NamedTuple):
    """A message while it is read: levels of its topic by name, and the document."""

    named: dict[str, str]
    document: Any


def _getter(source: str, form: str, names: frozenset[str]) -> Callable[[_Said], Any]:
    """How a value is found: in the topic, or in the payload. Raises ValueError."""
    found = PLACE.fullmatch(source)
    if found is not None and found[1] in names:
        name = found[1]
        return lambda said: said.named[name]
    if form == "json":
        path = path_of(source)
        if len(path) == 1:
            step = path[0]
            return lambda said: (
                said.document.get(step, MISSING) if type(said.document) is dict else walk(said.document, path)
            )
        return lambda said: walk(said.document, path)
    if form == "csv":
        return lambda said: said.document.get(source, MISSING)
    if source:
        raise ValueError(
            f"{source!r}: a text has no places: leave `from` out, or write {{name}} for a level of the topic"
        )
    return lambda said: said.document


def _text(template: str, form: str, names: frozenset[str]) -> Callable[[_Said], str | None]:
    """A text with places in it; None where one of them is not there. Raises ValueError."""
    parts: list[str | Callable[[_Said], Any]] = []
    last = 0
    for found in PLACE.finditer(template):
        parts.append(template[last : found.start()])
        inner = found[1]
        if inner in names:
            parts.append(_getter(found[0], form, names))
        elif NAME.fullmatch(inner) and form == "json":
            raise ValueError(f"{template!r}: the topic has no {found[0]}; a value of the payload is {{/{inner}}}")
        else:
            parts.append(_getter(inner, form, names))
        last = found.end()
    parts.append(template[last:])
    if set("{}") & set(str(parts[0]) + str(parts[-1])):
        raise ValueError(f"{template!r}: a {{ is not closed, or a }} not opened")

    def render(said: _Said) -> str | None:
        out = []
        for part in parts:
            if type(part) is str:
                out.append(part)
                continue
            value = part(said)  # type: ignore[operator]
            if type(value) not in (str, int) or value == "":
                return None
            out.append(str(value)[:256])
        return "".join(out)

    return render


class _Quantity:
    """One quantity, ready to be read."""

    __slots__ = ("decimal", "event", "factor", "get", "kind", "map", "name", "offset", "other", "place", "unit")

    def __init__(self, name: str, options: QuantityOptions, topic: TopicOptions, names: frozenset[str]) -> None:
        self.name = _text(name, topic.form, names) if "{" in name else name
        self.get = _getter(options.source, topic.form, names)
        self.place = options.source or "the payload"
        self.unit = options.unit or None
        self.kind = options.kind if options.kind != "any" else ("any" if topic.form == "json" else "guess")
        if options.scale != 1.0 or options.offset:
            self.kind = "number"
        self.factor, self.offset = options.scale, options.offset
        self.map = {key: value for key, value in options.map.items() if key != "*"}
        self.other = options.map.get("*", MISSING)
        self.event = options.event
        self.decimal = topic.decimal

    def read(self, said: _Said) -> Value | object | None:
        """Hot: its value; None where there is none any more, MISSING where nothing is said. Raises Unreadable."""
        value = self.get(said)
        if value is MISSING or value is None:
            return value
        if self.map or self.other is not MISSING:
            key = value if type(value) is str else orjson.dumps(value).decode()
            mapped: Any = self.map.get(key, self.other)
            if mapped is not MISSING:
                return mapped  # type: ignore[no-any-return]
        kind = self.kind
        if type(value) is str and kind in ("number", "guess", "boolean"):
            text = value.strip()
            if kind == "boolean":
                lower = text.lower()
                if lower in ("true", "on", "yes", "1"):
                    return True
                if lower in ("false", "off", "no", "0"):
                    return False
                raise Unreadable(f"{self.place} is {value[:40]!r}, not true or false: give it a `map`")
            found = number(text.replace(",", ".") if self.decimal == "," else text)
            if found is None:
                if kind == "number":
                    if not text:
                        return MISSING
                    raise Unreadable(f"{self.place} is {value[:40]!r}, not a number")
                return value[:4_096]
            value = found
        if kind == "number":
            if type(value) is bool:
                value = int(value)
            if type(value) not in (int, float):
                raise Unreadable(f"{self.place} is no number")
            if self.factor != 1.0 or self.offset:
                # To ten digits: 213 * 0.1 is 21.3.
                return scalar(float(f"{value * self.factor + self.offset:.10g}")) or 0.0
            return value  # type: ignore[no-any-return]
        if kind == "boolean":
            if type(value) is bool:
                return value
            if value in (0, 1):
                return bool(value)
            raise Unreadable(f"{self.place} is not true or false: give it a `map`")
        if kind == "text" and type(value) in (int, float, bool):
            return orjson.dumps(value).decode()
        one = scalar(value)
        if one is not None:
            return one
        if type(value) is list:
            items: list[Any] = [scalar(item) for item in value[:256]]
            if items and None not in items:
                return items
        raise Unreadable(f"{self.place} is no single value: name what is inside it")


class _Topic:
    """One pattern, compiled. Raises ValueError for what cannot be."""

    def __init__(self, options: TopicOptions) -> None:
        self.levels = options.topic.split("/")
        self.open = self.levels[-1] == "#"
        if self.open:
            self.levels.pop()
        self.names = [(number_, level[1:-1]) for number_, level in enumerate(self.levels) if PLACE.fullmatch(level)]
        self.fixed = [(number_, level) for number_, level in enumerate(self.levels) if not PLACE.fullmatch(level)]
        self.filter = "/".join("+" if PLACE.fullmatch(level) else level for level in options.topic.split("/"))
        names = frozenset(name for _, name in self.names)
        form = options.form
        device = options.device or "/".join("{" + name + "}" for _, name in self.names)
        if not device:
            raise ValueError(
                f"{options.topic}: say which device it is: `device` is its id, or let the topic have a {{name}}"
            )
        self.options = options
        self.device = _text(device, form, names)
        self.about = {
            key: _text(text, form, names)
            for key, text in (("name", options.name), ("manufacturer", options.manufacturer), ("model", options.model))
            if text
        }
        self.each = None if options.each is None else path_of(options.each)
        if self.each is not None and form != "json":
            raise ValueError(f"{options.topic}: `each` is for JSON; the lines of a CSV are read one by one anyway")
        self.quantities = [_Quantity(name, each, options, names) for name, each in options.quantities.items()]
        self.time = _getter(options.time, form, names) if options.time else None
        self.zone: tzinfo = zone_of(options.time_zone)
        self.alive = _getter(options.alive_from, form, names) if options.alive else None
        self.taken = self._taken(options)

    @staticmethod
    def _taken(options: TopicOptions) -> frozenset[str]:
        """What has been read already, of the top."""
        sources = [each.source for each in options.quantities.values()] + [options.time, options.alive_from]
        if options.form == "csv":
            return frozenset(sources)
        paths = [path_of(each) for each in sources if options.form == "json" and not PLACE.fullmatch(each)]
        return frozenset(str(path[0]) for path in paths if len(path) == 1)

    def match(self, levels: list[str]) -> dict[str, str] | None:
        """The named levels of a topic that fits, else None."""
        if len(levels) != len(self.levels) and not (self.open and len(levels) > len(self.levels)):
            return None
        for number_, level in self.fixed:
            if levels[number_] != level:
                return None
        return {name: levels[number_] for number_, name in self.names}

    def documents(self, payload: bytes) -> Iterator[Any]:
        """What a payload consists of. Raises Unreadable."""
        options = self.options
        if options.form == "text":
            yield read_text(payload).strip()
        elif options.form == "csv":
            yield from self._lines(read_text(payload, 1 << 20))
        else:
            document = read_json(payload)
            if self.each is None:
                yield document
                return
            items = walk(document, self.each)
            if type(items) is dict:
                items = list(items.values())
            if type(items) is not list:
                raise Unreadable(f"there is no array at {options.each or 'the top'}")
            yield from items[:MOST_ITEMS]

    def _lines(self, text: str) -> Iterator[dict[str, str]]:
        try:
            rows = [
                row for row in csv.reader(text.splitlines()[: MOST_ITEMS + 1], delimiter=self.options.delimiter) if row
            ]
        except csv.Error as error:
            raise Unreadable(f"the payload is no CSV: {error}") from None
        columns: tuple[str, ...] | list[str] = self.options.columns
        if not columns:
            if len(rows) < 2:
                raise Unreadable(
                    "the CSV has no second line: its first one has the names of the columns, unless `columns` has them"
                )
            columns, rows = [column.strip() for column in rows[0]], rows[1:]
        for row in rows:
            # By number too, the first is 1.
            yield {str(position + 1): field.strip() for position, field in enumerate(row)} | {
                column: field.strip() for column, field in zip(columns, row, strict=False)
            }

    def when(self, said: _Said) -> str | None:
        """The message's own time. Raises Unreadable."""
        if self.time is None:
            return None
        value = self.time(said)
        if value is MISSING or value is None or value == "":
            return None
        form = self.options.time_format
        if form == "iso":
            found = moment(value, self.zone)
        elif form in ("unix", "unix_ms"):
            seconds = number(value) if type(value) is str else value
            if form == "unix_ms" and type(seconds) in (int, float):
                seconds = seconds / 1000  # type: ignore[operator]
            found = at(seconds)
        else:
            try:
                parsed = datetime.strptime(str(value)[:64], form)  # noqa: DTZ007 - its zone comes next
                found = moment(parsed.isoformat(), self.zone)
            except ValueError:
                found = None
        if found is None:
            raise Unreadable(f"{self.options.time} is {str(value)[:40]!r}, no time as {form} has it")
        return found


class Template:
    """Whatever the settings declare."""

    def __init__(self, options: TemplateOptions, most: int) -> None:
        self._topics = [_Topic(each) for each in options.topic]
        self._commands = {each.method: each for each in options.command}
        self._most = most
        self._devices: dict[str, dict[str, str]] = {}
        self._said: dict[str, tuple[str | None, ...]] = {}
        self.filters: tuple[str, ...] = tuple(dict.fromkeys(each.filter for each in self._topics))
        self.commands: tuple[str, ...] = tuple(
            dict.fromkeys(
                "/".join("+" if PLACE.fullmatch(level) else level for level in each.topic.split("/"))
                for each in options.command
            )
        )

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """See Adapter."""
        levels = topic.split("/")
        for found in self._topics:
            named = found.match(levels)
            if named is not None:
                return self._read(found, named, payload, retained=retained, now=now)
        return ()

    def _read(
        self, found: _Topic, named: dict[str, str], payload: bytes, *, retained: bool, now: float
    ) -> Iterable[Event]:
        events: list[Event] = []
        met: list[tuple[str, tuple[str | None, ...]]] = []
        for document in found.documents(payload):
            said = _Said(named, document)
            device = found.device(said)
            if device is None:
                if found.each is None:
                    raise Unreadable("the device's id is not in it: see `device`")
                continue
            self._one(events, met, found, said, device, retained=retained, now=now)
        for device, about in met:
            if device in self._devices or len(self._devices) < self._most:
                self._devices[device] = named
                if about:
                    self._said[device] = about
        return events

    def _one(
        self,
        events: list[Event],
        met: list[tuple[str, tuple[str | None, ...]]],
        found: _Topic,
        said: _Said,
        device: str,
        *,
        retained: bool,
        now: float,
    ) -> None:
        """Hot: one document of one device."""
        time = found.when(said)
        states: dict[str, Reading] = {}
        happened: dict[str, Reading] = {}
        for quantity in found.quantities:
            value: Any = quantity.read(said)
            if value is MISSING:
                continue
            name: Any = quantity.name if type(quantity.name) is str else quantity.name(said)  # type: ignore[operator]
            if not name:
                continue
            if quantity.event:
                if not retained and value is not None:
                    happened[name[:128]] = Reading(value, quantity.unit, time or at(now))
            else:
                states[name[:128]] = Reading(value, quantity.unit, time)
        if found.options.everything:
            self._rest(found, said, states, time)
        if states:
            events.append(Readings(device, states, cached=found.options.repeats))
        if happened:
            events.append(Readings(device, happened))
        if found.alive is not None:
            value = found.alive(said)
            key = value if type(value) is str else "" if value is MISSING else orjson.dumps(value).decode()
            alive = found.options.alive.get(key)
            if alive is not None:
                events.append(Alive(device, alive))
            elif key and not states:
                raise Unreadable(f"{key[:40]!r} is not in `alive`: {', '.join(found.options.alive)} are")
        about: tuple[str | None, ...] = ()
        if found.about:
            texts = {key: render(said) for key, render in found.about.items()}
            about = tuple(texts.values())
            if self._said.get(device) != about and any(about):
                facts = {key: text[:256] for key, text in texts.items() if text and key != "name"}
                events.append(About(device, texts.get("name") or None, facts))
        met.append((device, about))

    @staticmethod
    def _rest(found: _Topic, said: _Said, states: dict[str, Reading], time: str | None) -> None:
        """All that no quantity has named."""
        document = said.document
        if type(document) is not dict:
            document = {"value": document}
        for key, value in document.items():
            if key in found.taken or (found.options.form == "csv" and key.isdecimal()):
                continue
            for name, one in flat(key, value):
                if len(states) >= 256:
                    return
                guessed: Value | None = one
                if found.options.form != "json" and type(one) is str:
                    guessed = number(one.replace(",", ".") if found.options.decimal == "," else one)
                    guessed = one if guessed is None else guessed
                states.setdefault(name[:128], Reading(guessed, None, time))

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - nothing goes with it
        """See Adapter."""
        command = self._commands.get(method)
        if command is None:
            raise Unable(404, f"there is no method {method[:64]!r}: there are {', '.join(self._commands) or 'none'}")
        named = self._devices.get(device)
        if named is None:
            raise Unable(404, f"{device!r} has not been heard of since the start: wait until it reports")
        sent = {name: self._mapped(command, value) for name, value in params.items()}

        def level(found: re.Match[str]) -> str:
            name = found[1]
            value = named.get(name, sent.get(name))
            if type(value) not in (str, int) or set("/+#\0") & set(str(value)) or value == "":
                raise Unable(400, f"the parameter {name!r} is missing, or no level of a topic")
            return str(value)

        def place(found: re.Match[str]) -> str:
            name = found[1]
            if not NAME.fullmatch(name):
                return found[0]
            value = sent.get(name, named.get(name, MISSING))
            if value is MISSING:
                raise Unable(400, f"the parameter {name!r} is missing")
            if command.form == "text":
                return value if type(value) is str else orjson.dumps(value).decode()
            try:
                return orjson.dumps(value).decode()
            except TypeError as error:
                raise Unable(400, f"the parameter {name!r} cannot be said in JSON: {error}") from error

        topic = PLACE.sub(level, command.topic)
        payload = PLACE.sub(place, command.payload).encode("utf-8", "replace")
        if len(payload) > 65_536:
            raise Unable(413, "the payload has more than 65,536 bytes")
        return Order((Send(topic, payload, command.qos, command.retain),), confirms=frozenset(command.confirms))

    @staticmethod
    def _mapped(command: CommandOptions, value: Any) -> Any:
        if not command.map:
            return value
        try:
            key = value if type(value) is str else orjson.dumps(value).decode()
        except TypeError:
            return value
        mapped: Scalar | Any = command.map.get(key, value)
        return mapped


SPEC = Spec(
    "template",
    "any topic of JSON, text or CSV, by declaration",
    TemplateOptions,
    Template,
    {},
    EXAMPLE,
    "https://www.rfc-editor.org/rfc/rfc6901",
)
