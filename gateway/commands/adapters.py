"""`ctxt adapter`: which dialects of devices there are, what they make of a message, and what the devices of a broker say."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from rich.live import Live
from rich.text import Text

from gateway import dialects
from gateway.adapter import Unreadable
from gateway.adapting import AdapterError, Served
from gateway.catalogue import Catalogue
from gateway.client.aio import overhear
from gateway.client.errors import ClientError
from gateway.commands import config
from gateway.commands.connection import failure
from gateway.commands.outcome import CommandError, Exit, go
from gateway.commands.running import ask
from gateway.commands.terminal import (
    age,
    err,
    is_terminal,
    out,
    printable,
    read_stdin,
    show_json,
    show_table,
    status_text,
    table,
    write_json,
    write_note,
)
from gateway.data import folder
from gateway.rehearsal import Rehearsal
from gateway.rights import VERBS
from gateway.service import adapters_of, rights_of
from gateway.settings import AdapterSettings, nearest
from gateway.topics import matches, valid_filter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from gateway.adapter import Spec
    from gateway.client.target import Target
    from gateway.objects import DataObject
    from gateway.settings import Settings

MOST_BYTES = 64 << 20
"""Bytes of topics and payloads that one recording takes."""

MOST_TOPICS = 10_000
"""Topics that `watch` tells apart."""

POLL = 1.0
"""Seconds between two questions to the running gateway."""

SAMPLE = 60
"""Characters of a payload that `watch` shows."""

FALLBACK = "template"
"""The adapter for what no dialect fits."""


# ---- ls, show ----------------------------------------------------------------------------------------------------------


def _spec(kind: str) -> Spec:
    """Raises CommandError (3) where there is none of this type, (78) where what it needs is not installed."""
    try:
        return dialects.find(kind)
    except LookupError:
        near = nearest(kind, dialects.names())
        hint = f"; did you mean {near}?" if near else ""
        raise CommandError(Exit.NOT_FOUND, f"there is no adapter {kind!r}{hint} `ctxt adapter ls` lists them") from None
    except ImportError as error:
        raise CommandError(Exit.CONFIG, f"{kind} needs what is not installed: {error}") from error


def show_all(given: Path | None, *, json: bool) -> None:
    """List the adapters, and which of them the settings name."""
    used: dict[str, list[str]] = {}
    for entry in config.load(given).adapter:
        used.setdefault(entry.kind, []).append(entry.called)
    rows: list[tuple[str, str, str, str | None]] = []
    for kind in dialects.names():
        try:
            spec = dialects.find(kind)
            rows.append((kind, spec.summary, spec.home, None))
        except ImportError as error:
            rows.append((kind, "", "", str(error)))
    if json:
        keys = ("type", "summary", "home", "problem")
        write_json([{**dict(zip(keys, row, strict=True)), "in_use": used.get(row[0], [])} for row in rows])
        return
    made = table("ADAPTER", "IN USE AS", "DEVICES")
    for kind, summary, _, problem in rows:
        text = Text(printable(problem), style="yellow") if problem else Text(printable(summary), style="dim")
        made.add_row(Text(kind, style="bold"), ", ".join(used.get(kind, [])), text)
    show_table(made)


def show(kind: str, *, json: bool) -> None:
    """What one adapter is: options, methods, an example. Raises CommandError."""
    spec = _spec(kind)
    fields = spec.options.model_fields
    if json:
        write_json(
            {
                "type": spec.name,
                "summary": spec.summary,
                "home": spec.home,
                "options": spec.options.model_json_schema(),
                "methods": dict(spec.methods),
                "example": spec.example,
            }
        )
        return
    out.print(Text.assemble((spec.name, "bold"), f": {printable(spec.summary)}\n", (spec.home, "dim"), "\n"))
    made = table("OPTION", "DEFAULT", "")
    for name, field in fields.items():
        value = "" if field.is_required() else field.get_default(call_default_factory=True)
        shown = "(needed)" if field.is_required() else orjson.dumps(value, default=str).decode()
        made.add_row(Text(name, style="bold"), shown, Text(field.description or "", style="dim"))
    if fields:
        show_table(made)
        out.print()
    made = table("METHOD", "")
    for name, help_text in spec.methods.items():
        made.add_row(Text(name, style="bold"), Text(help_text, style="dim"))
    if spec.methods:
        show_table(made)
        out.print()
    out.print(spec.example, markup=False, highlight=False, end="")


# ---- try ---------------------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """A device's message; `at`: seconds since the beginning. Where the broker inside tells it, who said it and whether it was refused."""

    topic: str
    payload: bytes
    retained: bool
    at: float = 0.0
    client: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Tried:
    """What `ctxt adapter try` is given."""

    name: str
    topic: str | None
    payload: str | None
    file: Path | None
    capture: Path | None
    retained: bool

    def messages(self) -> Iterator[Said]:
        """Raises CommandError."""
        if self.capture is not None:
            yield from read_capture(self.capture)
        if self.topic is None:
            if self.capture is None or self.payload is not None or self.file is not None:
                raise CommandError(Exit.USAGE, "give --topic with --payload or --payload-file, or --capture, or both")
            return
        if (self.payload is None) == (self.file is None):
            raise CommandError(Exit.USAGE, "give the message by --payload or --payload-file, one of them")
        if self.payload is not None:
            payload = self.payload.encode("utf-8", "surrogateescape")
        elif str(self.file) == "-":
            payload = read_stdin()
        else:
            payload = _read(self.file)  # type: ignore[arg-type]
        yield Said(self.topic, payload, self.retained)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            found = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise CommandError(Exit.IO, f"cannot read {path}: {error.strerror or error}") from error
    if len(found) > MOST_BYTES:
        raise CommandError(Exit.INVALID, f"{path} is larger than {MOST_BYTES >> 20} MB")
    return found


def read_capture(path: Path) -> list[Said]:
    """The messages of a file that `ctxt adapter record` has written. Raises CommandError."""
    try:
        raw = orjson.loads(_read(path))
        found = []
        for each in raw["messages"]:
            payload = each.get("payload")
            if "hex" in each:
                data = bytes.fromhex(each["hex"])
            else:
                data = payload.encode() if isinstance(payload, str) else orjson.dumps(payload)
            found.append(Said(str(each["topic"]), data, bool(each.get("retain", False)), float(each.get("at", 0.0))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(
            Exit.INVALID, f"{path} is no capture ({error}): `ctxt adapter record` writes such files"
        ) from error
    return found


def _rehearsal(settings: Settings) -> tuple[list[Served], Rehearsal]:
    """Raises CommandError (78) for adapters that cannot serve as they are set up."""
    try:
        served = adapters_of(settings)
        catalogue = Catalogue.load(folder("schemas"), *settings.schemas)
        rehearsal = Rehearsal(served, rights_of(settings, catalogue, served), catalogue, time.time())
    except AdapterError as error:
        raise CommandError(Exit.CONFIG, str(error)) from error
    return served, rehearsal


def _only(settings: Settings, name: str) -> Settings:
    """The settings with one adapter: the one of this name, or of this type as it is by default. Raises CommandError."""
    found = next((entry for entry in settings.adapter if entry.called == name), None)
    if found is None:
        _spec(name)
        found = AdapterSettings(type=name)
    return settings.model_copy(update={"adapter": (found,)})


def try_out(given: Path | None, tried: Tried, *, json: bool) -> None:
    """Print the objects that messages would make. Raises CommandError: (6) for one that is not of the dialect."""
    served, rehearsal = _rehearsal(_only(config.load(given), tried.name))
    now = time.time()
    results = []
    for said in tried.messages():
        result = rehearsal.say(said.topic, said.payload, retained=said.retained, now=now + said.at)
        results.append(result)
        if result is None and tried.capture is None:
            filters = ", ".join(sorted(rehearsal.adapting.filters))
            raise CommandError(Exit.NOT_FOUND, f"{tried.name} does not listen to {said.topic}; it does to {filters}")
    # What is held back by `min_interval` and the like is part of what would be.
    rehearsal.tick(now + 366 * 86_400)
    objects = list(rehearsal.objects)
    if json:
        write_json(
            {
                "adapter": served[0].name,
                "results": results,
                "objects": [_facts(obj) for obj in objects],
                "sends": [
                    {"topic": one.topic, "payload": one.payload.decode(errors="replace")} for one in rehearsal.sends
                ],
                "notes": rehearsal.notes,
            }
        )
    else:
        for number, obj in enumerate(objects):
            if number:
                out.print()
            _show(obj)
        for one in rehearsal.sends:
            out.print(Text.assemble(("sends ", "bold"), printable(f"{one.topic} {one.payload[:200]!r}")))
    bad = [result for result in results if result in ("unreadable", "failed", "refused")]
    if bad:
        sentence = "; ".join(rehearsal.notes) or f"{len(bad)} messages: {bad[0]}"
        raise CommandError(Exit.FAILED if "failed" in bad else Exit.INVALID, sentence)
    for note in rehearsal.notes:
        write_note(note)
    if not objects and not json:
        write_note(f"{tried.name} has read it, and it says nothing of a device")


def _facts(obj: DataObject) -> dict[str, Any]:
    assert obj.schema is not None
    return {
        "url": obj.url,
        "schema": obj.schema.name,
        "name": obj.name,
        "status": obj.status,
        "data": orjson.loads(obj.render()),
    }


def _show(obj: DataObject) -> None:
    facts = _facts(obj)
    name = f"  {facts['name']}" if facts["name"] else ""
    out.print(
        Text.assemble(
            (facts["url"], "bold"), printable(name), (f"  {facts['schema']}  ", "dim"), status_text(facts["status"])
        )
    )
    values = facts["data"].get("values")
    if values is None:
        show_json(facts["data"])
        return
    made = table("  QUANTITY", "VALUE", "UNIT", "TIME", right=("VALUE",))
    for quantity, reading in values.items():
        value = reading["value"]
        text = value if isinstance(value, str) else orjson.dumps(value).decode()
        made.add_row(
            "  " + printable(quantity),
            printable(text)[:80],
            printable(reading.get("unit", "")),
            Text(reading.get("time", ""), style="dim"),
        )
    if values:
        show_table(made)


# ---- record, watch -----------------------------------------------------------------------------------------------------


async def _heard(target: Target, filters: Sequence[str], patience: float) -> AsyncIterator[Said]:
    """What arrives on these filters. Raises CommandError, also when the connection is lost."""
    for each in filters:
        if not valid_filter(each):
            raise CommandError(Exit.USAGE, f"{each!r} is no topic filter (MQTT section 4.7)")
    begun = time.monotonic()
    try:
        async for topic, payload, retained in overhear(target, filters, timeout=patience):
            yield Said(topic, payload, retained, round(time.monotonic() - begun, 3))
    except ClientError as error:
        raise failure(error, target) from error


async def _asked(given: Path | None) -> AsyncIterator[Said]:
    """What the running gateway's broker inside refuses, or what no adapter there takes. Raises CommandError."""
    begun = time.monotonic()
    while True:
        for one in await asyncio.to_thread(ask, given, {"do": "strangers"}):
            at = round(time.monotonic() - begun, 3)
            yield Said(one["topic"], bytes.fromhex(one["hex"]), one["retain"], at, one["client"], one["refused"])
        await asyncio.sleep(POLL)


async def _listen(source: AsyncIterator[Said], seconds: float | None, take: Callable[[Said], bool]) -> None:
    """Hand every message to `take` until it says no, the time is over, or Ctrl-C."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)

    async def work() -> None:
        async for said in source:
            if not take(said):
                break

    running = asyncio.create_task(work())
    ending = asyncio.create_task(done.wait())
    try:
        await asyncio.wait((running, ending), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
    finally:
        for task in (running, ending):
            task.cancel()
        with suppress(asyncio.CancelledError, CommandError):
            await running


@dataclass(frozen=True, slots=True)
class Recording:
    """What `ctxt adapter record` is asked for. `seconds`: None records until Ctrl-C."""

    file: Path
    name: str | None
    filters: Sequence[str]
    seconds: float | None
    most: int
    force: bool


def record(given: Path | None, target: Target, wanted: Recording, patience: float) -> None:
    """Write what devices say to a capture file, with the objects that it makes. Raises CommandError."""
    if wanted.file.exists() and not wanted.force:
        raise CommandError(Exit.FAILED, f"{wanted.file} is there already: name another file, or --force to replace it")
    served: list[Served] = []
    rehearsal: Rehearsal | None = None
    filters = tuple(wanted.filters)
    if wanted.name is not None:
        served, rehearsal = _rehearsal(_only(config.load(given), wanted.name))
        filters = filters or served[0].adapter.filters
    filters = filters or ("#",)
    messages: list[Said] = []
    size = 0
    begun = time.time()

    def take(said: Said) -> bool:
        nonlocal size
        if _own(said.topic, target.prefix):
            return True
        messages.append(said)
        size += len(said.topic) + len(said.payload)
        if live is not None:
            live.update(_recorded(messages, size, begun))
        return len(messages) < wanted.most and size < MOST_BYTES

    live = Live(console=err, refresh_per_second=5, transient=True) if err.is_terminal else None
    with live or nullcontext():
        if live is not None:
            live.update(_recorded(messages, size, begun))
        go(_listen(_heard(target, filters, patience), wanted.seconds, take))
    document: dict[str, Any] = {
        "device": "",
        "firmware": "",
        "source": f"recorded {datetime.fromtimestamp(begun, UTC):%Y-%m-%d}",
        "id": "",
        "messages": [_line(said) for said in messages],
        "objects": {},
    }
    if rehearsal is not None:
        for said in messages:
            rehearsal.say(said.topic, said.payload, retained=said.retained, now=begun + said.at)
        rehearsal.tick(begun + 366 * 86_400)
        base = served[0].base
        document["objects"] = {
            obj.url.removeprefix(base + "/"): orjson.loads(obj.render()) for obj in rehearsal.objects
        }
    fresh = wanted.file.with_name(wanted.file.name + ".new")
    try:
        fresh.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        fresh.replace(wanted.file)
    except OSError as error:
        raise CommandError(Exit.IO, f"cannot write {wanted.file}: {error.strerror or error}") from error
    write_note(f"{wanted.file}: {len(messages):,} messages, {len(document['objects']):,} objects")
    if not messages:
        raise CommandError(Exit.NOT_FOUND, f"nothing was heard on {', '.join(filters)}")


def _recorded(messages: Sequence[Said], size: int, begun: float) -> Text:
    last = f"  {printable(messages[-1].topic)[:60]}" if messages else ""
    return Text.assemble(
        ("recording ", "bold"),
        f"{len(messages):,} messages, {size / 1000:,.0f} kB, {age(time.time() - begun)}",
        (last, "dim"),
        "  Ctrl-C ends it",
    )


def _line(said: Said) -> dict[str, Any]:
    found: dict[str, Any] = {"topic": said.topic}
    try:
        found["payload"] = said.payload.decode()
    except UnicodeDecodeError:
        found["hex"] = said.payload.hex()
    if said.retained:
        found["retain"] = True
    found["at"] = said.at
    return found


def _own(topic: str, prefix: str) -> bool:
    """Whether a topic is the gateway's: what is reported there, and what Observers read."""
    if prefix:
        if not topic.startswith(prefix + "/"):
            return False
        topic = topic[len(prefix) + 1 :]
    verb, _, rest = topic.partition("/")
    return verb in VERBS and ("/ctxt/" in f"/{rest}" or verb in ("gateway", "request", "inbox", "presence", "replica"))


class Guesser:
    """Which adapter would take a message that none of the settings takes."""

    def __init__(self) -> None:
        self._known: list[tuple[Spec, Any]] = []
        for kind in dialects.BUILTIN:
            with suppress(ImportError):
                spec = dialects.find(kind)
                with suppress(ValueError):
                    self._known.append((spec, spec.make(spec.options(), 1_000)))

    def guess(self, said: Said) -> str:
        """The type of an adapter."""
        for spec, adapter in self._known:
            if any(matches(each, said.topic) for each in adapter.filters):
                with suppress(Unreadable):
                    tuple(adapter.decode(said.topic, said.payload, retained=said.retained, now=time.time()))
                    return spec.name
            if any(fnmatchcase(said.topic, sign) for sign in spec.signs):
                return spec.name
        return FALLBACK


class _Unmatched(NamedTuple):
    said: Said
    guess: str


def watch(given: Path | None, target: Target | None, seconds: float | None, patience: float, *, json: bool) -> None:
    """Tell which topics no adapter of the settings takes, each once, as soon as it is heard. Raises CommandError.

    `target`: a broker outside; None: the gateway that runs here is asked.
    """
    settings = config.load(given)
    prefix = settings.topic_prefix if target is None else target.prefix
    served, rehearsal = _rehearsal(settings)
    guesser = Guesser()
    found: dict[str, _Unmatched] = {}
    taken: set[str] = set()

    def take(said: Said) -> bool:
        topic = said.topic
        if topic in found or topic in taken or _own(topic, prefix) or topic.startswith("$"):
            return True
        if len(found) + len(taken) >= MOST_TOPICS:
            write_note(f"{MOST_TOPICS:,} topics: that is all that is looked at")
            return False
        # Adapters may be told by messages where to look.
        number = rehearsal.adapting.find(topic)
        if number >= 0 and not said.refused:
            rehearsal.say(topic, said.payload, retained=said.retained, now=time.time())
            taken.add(topic)
            return True
        guess = served[number].spec.name if number >= 0 else guesser.guess(said)
        one = found[topic] = _Unmatched(said, guess)
        _tell(one, json=json)
        return True

    source = _asked(given) if target is None else _heard(target, ("#",), patience)
    if is_terminal() and not json:
        where = "the broker inside" if target is None else target.where
        write_note(f"listening to {where}: topics that match no adapter; Ctrl-C ends it")
    go(_listen(source, seconds, take))
    if not json:
        _sum_up(found.values())


def _tell(one: _Unmatched, *, json: bool) -> None:
    said = one.said
    sample = printable(said.payload[: 4 * SAMPLE].decode(errors="replace")).replace("\n", " ")[:SAMPLE]
    if json:
        known = {"client": said.client, "refused": said.refused} if said.client else {}
        write_json({"topic": said.topic, "guess": one.guess, "sample": sample, **known})
        return
    style = "green" if one.guess != FALLBACK else "yellow"
    who = f"  {said.client}{' was refused' if said.refused else ''}" if said.client else ""
    out.print(Text.assemble((f"{one.guess:<14}", style), printable(said.topic), who, "  ", (sample, "dim")))


def _sum_up(found: Iterable[_Unmatched]) -> None:
    fits: dict[str, int] = {}
    refused: set[str] = set()
    for one in found:
        fits[one.guess] = fits.get(one.guess, 0) + 1
        if one.said.refused:
            refused.add(one.said.client)
    write_note(f"{sum(fits.values()):,} topics match no adapter")
    for kind, count in sorted(fits.items(), key=lambda each: -each[1]):
        write_note(f"{kind} may fit {count:,} of them: `ctxt adapter show {kind}`")
    if refused:
        names = ", ".join(sorted(refused)[:5]) + (" …" if len(refused) > 5 else "")
        write_note(f"refused: {names}; name them in the `clients` of the adapter")
