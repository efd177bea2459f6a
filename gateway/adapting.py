"""Adapters at work: what devices say becomes Data Objects, and actions become what devices understand. Pure, as the engine is.

An adapter NAME writes as `adapter:NAME`, which no client can be called, so nobody else can report its objects. For a device there are two:
`{base}/{device}` with its readings (schema Context) and `{base}/{device}/device` with what it is (schema Device).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import orjson

from gateway.adapter import About, Alive, Answer, Gone, Listen, Readings, Roster, Send, Unable, Unreadable
from gateway.address import Address, AddressError, segment
from gateway.counts import counters, gauges
from gateway.effects import Answer as Told
from gateway.effects import Refused
from gateway.errors import CtxtError
from gateway.objects import DataObject, Facts
from gateway.patch import merge, same
from gateway.topics import matches, overlaps
from gateway.units import convert, rule

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gateway.adapter import Adapter, Event, Spec
    from gateway.counts import Family
    from gateway.effects import Effects
    from gateway.engine import Engine
    from gateway.pending import Item

ABOUT = "device"
"""The last segment of the object that says what a device is; no device is called so."""

MAX_SEGMENTS = 3
"""Parts of a device's id."""

ABOUT_INTERVAL = 60.0
"""Seconds between two changes of a device's signal strength and battery voltage, which are in every message: the last one is never lost."""

NOTE_INTERVAL = 10.0
"""Seconds between two sentences of one adapter in the log."""

FILTERS = 10_000
"""Filters that messages may make an adapter listen to."""


class AdapterError(CtxtError):
    """Adapters that cannot serve as they are set up. The sentence says which setting, and what to do."""


def reporter_of(name: str) -> str:
    """The Reporter of an adapter's objects: no client can have this name."""
    return f"adapter:{name}"


@dataclass(slots=True)
class Served:
    """One adapter at work, out of one `[[adapter]]`. Durations in seconds."""

    spec: Spec
    adapter: Adapter
    name: str
    base: str
    accept: tuple[str, ...] = ("*",)
    most: int = 5_000
    fahrenheit: bool = False
    min_interval: Mapping[str, float] = field(default_factory=dict)
    min_change: Mapping[str, float] = field(default_factory=dict)
    max_interval: float = 300.0

    @property
    def reporter(self) -> str:
        """Whose its objects are."""
        return reporter_of(self.name)


class _Held:
    """A reading of a shaped quantity: when the last one went out, and what waits."""

    __slots__ = ("due", "sent", "waits")

    def __init__(self) -> None:
        self.sent = float("-inf")
        self.waits: dict[str, Any] | None = None
        self.due = 0.0


class _Thing:
    """One device: the topics of its two objects, what is held back of it, and whose answers it owes."""

    __slots__ = ("about", "about_at", "about_waits", "asked", "due", "held", "id", "name", "readings", "worker")

    def __init__(self, worker: _Worker, device: str, readings: str) -> None:
        self.worker = worker
        self.id = device
        self.readings = readings
        self.about = f"{readings}/{ABOUT}"
        self.name: str | None = None
        self.held: dict[str, _Held] = {}
        self.about_at = float("-inf")
        self.about_waits: dict[str, Any] | None = None
        self.due = False
        self.asked: list[tuple[Item, frozenset[str]]] = []


class _Worker:
    """A `Served` with what it has done."""

    __slots__ = (
        "counts",
        "extra",
        "head",
        "heard",
        "noted",
        "patterns",
        "reporter",
        "served",
        "shaped",
        "things",
        "unsaid",
    )

    def __init__(self, served: Served) -> None:
        self.served = served
        self.reporter = served.reporter
        self.head = Address.parse(served.base).topic + "/"
        self.things: dict[str, _Thing | None] = {}
        self.counts = dict.fromkeys(RESULTS, 0)
        self.extra: frozenset[str] = frozenset()
        self.noted = float("-inf")
        self.heard = 0
        self.unsaid = 0
        self.shaped = frozenset(served.min_interval) | frozenset(served.min_change)


RESULTS = ("read", "silent", "unreadable", "failed", "refused", "past", "not_accepted")
"""What becomes of a device's message: it said something, said nothing, was not of the dialect, made the adapter fail (its own fault), made an
object that was refused, was of the past, or came from a device that the settings do not accept."""


class Adapting:
    """Runs adapters on one engine. Every device message comes in by `take`, time by `tick`."""

    def __init__(self, engine: Engine, served: Sequence[Served]) -> None:
        self._engine = engine
        self._workers = [_Worker(each) for each in served]
        self._by_reporter = {worker.reporter: worker for worker in self._workers}
        self._due: list[tuple[float, int, _Thing, str | None]] = []
        self._ticket = 0
        self._tokens: dict[str, Item] = {}
        engine.sharing.act = self._act

    # ---- topics --------------------------------------------------------------------------------------------------------

    @property
    def filters(self) -> frozenset[str]:
        """All filters that adapters listen to now."""
        return frozenset(each for worker in self._workers for each in (*worker.served.adapter.filters, *worker.extra))

    def find(self, topic: str) -> int:
        """The number of the adapter that a topic is for, or -1."""
        for number, worker in enumerate(self._workers):
            if any(matches(each, topic) for each in worker.served.adapter.filters):
                return number
        for number, worker in enumerate(self._workers):
            if any(matches(each, topic) for each in worker.extra):
                return number
        return -1

    # ---- in ------------------------------------------------------------------------------------------------------------

    def take(self, effects: Effects, number: int, topic: str, payload: bytes, now: float, *, retained: bool) -> None:
        """A device's message, for the adapter of this number (see `find`)."""
        worker = self._workers[number]
        counts = worker.counts
        worker.heard += 1
        try:
            events = tuple(worker.served.adapter.decode(topic, payload, retained=retained, now=now))
        except Unreadable as error:
            counts["unreadable"] += 1
            self._note(effects, worker, f"{topic}: {error}", now)
            return
        except Exception as error:  # noqa: BLE001 - what stands between anybody's bytes and the gateway
            counts["failed"] += 1
            self._note(effects, worker, f"{topic}: the adapter has failed: {type(error).__name__}: {error}", now)
            return
        counts["read" if events else "silent"] += 1
        for event in events:
            self._event(effects, worker, event, now, retained=retained)

    def _event(self, effects: Effects, worker: _Worker, event: Event, now: float, *, retained: bool) -> None:
        kind = type(event)
        if kind is Send:
            effects.sends.append(event)  # type: ignore[arg-type]
        elif kind is Answer:
            self._answered(effects, event)  # type: ignore[arg-type]
        elif kind is Listen:
            self._listen(effects, worker, event, now)  # type: ignore[arg-type]
        elif kind is Roster:
            self._called(effects, worker, event, now)  # type: ignore[arg-type]
        else:
            thing = self._thing(effects, worker, event.device, now)  # type: ignore[union-attr]
            if thing is None:
                return
            if kind is Readings:
                self._readings(effects, thing, event, now, live=event.live and not retained)  # type: ignore[arg-type, union-attr]
            elif kind is About:
                self._about(effects, thing, event, now)  # type: ignore[arg-type]
            elif kind is Alive:
                self._alive(effects, thing, event.alive, now)  # type: ignore[union-attr]
            elif kind is Gone:
                self._gone(effects, thing, now)

    def _note(self, effects: Effects, worker: _Worker, sentence: str, now: float) -> None:
        """A sentence for the log, now and then."""
        if worker.noted <= now < worker.noted + NOTE_INTERVAL:
            worker.unsaid += 1
            return
        worker.noted = now
        more = f" ({worker.unsaid:,} more like it were not told)" if worker.unsaid else ""
        worker.unsaid = 0
        effects.notes.append(f"adapter {worker.served.name}: {sentence[:500]}{more}")

    def _thing(self, effects: Effects, worker: _Worker, device: str, now: float) -> _Thing | None:
        """The device of an id; None where it is not to be had, which is counted."""
        things = worker.things
        thing = things.get(device)
        if thing is not None:
            return thing
        if device in things or len(things) >= worker.served.most:
            worker.counts["not_accepted"] += 1
            if device not in things:
                self._note(
                    effects, worker, f"{device!r} is one device more than max_devices, {worker.served.most:,}", now
                )
            return None
        try:
            parts = [segment(part) for part in device.split("/", MAX_SEGMENTS)]
            if len(parts) > MAX_SEGMENTS or ABOUT in parts:
                raise AddressError(device, f"it has {len(parts)} parts, or one is {ABOUT!r}", "name it otherwise", "id")
            topic = worker.head + "/".join(parts)
            Address.from_topic(f"{topic}/{ABOUT}")
        except AddressError as error:
            worker.counts["refused"] += 1
            self._note(effects, worker, f"no object can be named after the device {device[:80]!r}: {error.reason}", now)
            return None
        if not any(fnmatchcase(device, pattern) for pattern in worker.served.accept):
            worker.counts["not_accepted"] += 1
            things[device] = None
            return None
        thing = things[device] = _Thing(worker, device, topic)
        return thing

    # ---- readings ------------------------------------------------------------------------------------------------------

    def _readings(self, effects: Effects, thing: _Thing, event: Readings, now: float, *, live: bool) -> None:
        """Hot: what a device says that is."""
        worker = thing.worker
        if event.past:
            worker.counts["past"] += 1
            return
        obj = self._engine.objects.get(thing.readings)
        values: dict[str, Any] = {}
        if obj is not None and not obj.deleted:
            values = (obj.data if obj.data is not None else obj.document()).get("values", {})
        fahrenheit = worker.served.fahrenheit
        cached = event.cached
        shaped = worker.shaped
        change: dict[str, Any] = {}
        for name, (value, spelled, time) in event.values.items():
            if value is None:
                if name in values:
                    change[name] = None
                thing.held.pop(name, None)
                continue
            by = rule(name, spelled, fahrenheit=fahrenheit)
            if by.factor != 1.0 or by.offset:
                value = _converted(value, by)
            member: dict[str, Any] = {"value": value}
            if by.unit is not None:
                member["unit"] = by.unit
            old = values.get(name)
            if cached and old is not None and old.get("unit") == by.unit and _equal(old["value"], value):
                held = thing.held.get(name)
                if held is not None:
                    held.waits = None
                continue
            if time is not None:
                member["time"] = time
            if shaped and name in shaped and old is not None and self._held_back(thing, name, old, member, now):
                continue
            change[name] = member
        if event.whole:
            for name in values:
                if name not in event.values:
                    change[name] = None
        self._write(effects, thing, obj, {"values": change}, now, live=live)
        if live and thing.asked:
            self._confirmed(effects, thing, event)

    def _held_back(self, thing: _Thing, name: str, old: dict[str, Any], member: dict[str, Any], now: float) -> bool:
        """Whether a reading waits: until `min_interval` after the last one, a change below `min_change` until `max_interval`."""
        served = thing.worker.served
        held = thing.held.get(name)
        if held is None:
            held = thing.held[name] = _Held()
        wait = served.min_interval.get(name, 0.0)
        least = served.min_change.get(name)
        if least is not None:
            before, after = old["value"], member["value"]
            if type(before) in (int, float) and type(after) in (int, float) and abs(after - before) < least:
                wait = max(wait, served.max_interval)
        due = held.sent + wait
        if due <= now:
            held.sent = now
            held.waits = None
            return False
        if held.waits is None or due < held.due:
            held.due = due
            self._later(thing, name, due)
        held.waits = member
        return True

    def _later(self, thing: _Thing, name: str | None, due: float) -> None:
        self._ticket += 1
        heappush(self._due, (due, self._ticket, thing, name))

    def tick(self, effects: Effects, now: float) -> None:
        """What was held back and is due goes out."""
        due = self._due
        while due and due[0][0] <= now:
            _, _, thing, name = heappop(due)
            if thing.worker.things.get(thing.id) is not thing:
                continue
            if name is None:
                thing.due = False
                if thing.about_waits is not None:
                    waits, thing.about_waits = thing.about_waits, None
                    thing.about_at = now
                    self._describe(effects, thing, None, waits, now)
                continue
            held = thing.held.get(name)
            if held is None or held.waits is None or held.due > now:
                continue
            member, held.waits = held.waits, None
            held.sent = now
            self._write(
                effects, thing, self._engine.objects.get(thing.readings), {"values": {name: member}}, now, live=False
            )

    def _write(
        self,
        effects: Effects,
        thing: _Thing,
        obj: DataObject | None,
        change: dict[str, Any],
        now: float,
        *,
        live: bool,
    ) -> None:
        """Change an object of a device, or make it."""
        engine, worker = self._engine, thing.worker
        refused: DataObject | Refused | None
        if obj is None or obj.deleted:
            data = merge({"id": thing.id, "values": {}}, change)
            topic, facts = thing.readings, Facts("Context", thing.name or thing.id)
            refused = engine.create(effects, worker.reporter, topic, data, facts, now)
        else:
            state = engine.client(worker.reporter, now)
            refused = engine.change(effects, state, obj, change, len(orjson.dumps(change)), now, live=live)
        if isinstance(refused, Refused):
            worker.counts["refused"] += 1
            self._note(effects, worker, f"{refused.url}: {refused.code} {refused.text}", now)

    # ---- what a device is ----------------------------------------------------------------------------------------------

    def _about(self, effects: Effects, thing: _Thing, event: About, now: float) -> None:
        facts: Any = event.facts
        obj = self._engine.objects.get(thing.about)
        if (
            obj is not None
            and not obj.deleted
            and event.name in (None, obj.name)
            and all(key == "connectivity" for key in facts)
        ):
            # Signal strengths come with every message.
            if thing.about_at + ABOUT_INTERVAL > now:
                thing.about_waits = merge(thing.about_waits or {}, facts)
                if not thing.due:
                    thing.due = True
                    self._later(thing, None, thing.about_at + ABOUT_INTERVAL)
                return
        elif thing.about_waits is not None:
            facts = merge(thing.about_waits, facts)
        thing.about_waits = None
        thing.about_at = now
        self._describe(effects, thing, event.name, facts, now)

    def _describe(self, effects: Effects, thing: _Thing, name: str | None, facts: Any, now: float) -> None:
        engine, worker = self._engine, thing.worker
        if name is not None:
            name = name[:256] or None
            thing.name = name
            facts = {**facts, "name": name}
        readings = engine.objects.get(thing.readings)
        if readings is None or readings.deleted:
            self._write(effects, thing, readings, {}, now, live=False)
        elif name is not None and readings.name != name:
            engine.describe(effects, readings, {"name": name}, now, live=False)
        obj = engine.objects.get(thing.about)
        refused: DataObject | Refused | None
        if obj is None or obj.deleted:
            data = merge({"id": thing.id}, facts)
            refused = engine.create(
                effects, worker.reporter, thing.about, data, Facts("Device", name or thing.name or thing.id), now
            )
        else:
            if name is not None and obj.name != name:
                engine.describe(effects, obj, {"name": name}, now, live=False)
            state = engine.client(worker.reporter, now)
            refused = engine.change(effects, state, obj, facts, len(orjson.dumps(facts)), now, live=False)
        if isinstance(refused, Refused):
            worker.counts["refused"] += 1
            self._note(effects, worker, f"{refused.url}: {refused.code} {refused.text}", now)

    def _alive(self, effects: Effects, thing: _Thing, alive: bool | None, now: float) -> None:
        for topic in (thing.readings, thing.about):
            obj = self._engine.objects.get(topic)
            if obj is None and topic == thing.readings and alive is not None:
                self._write(effects, thing, None, {}, now, live=False)
                obj = self._engine.objects.get(topic)
            if obj is None or obj.deleted:
                continue
            if alive:
                self._engine.alive(effects, obj, now)
            elif alive is False:
                self._engine.unreachable(effects, obj, now)

    def _gone(self, effects: Effects, thing: _Thing, now: float) -> None:
        thing.worker.things.pop(thing.id, None)
        for topic in (thing.about, thing.readings):
            obj = self._engine.objects.get(topic)
            if obj is not None and not obj.deleted:
                self._engine.delete(effects, obj, now)

    def _called(self, effects: Effects, worker: _Worker, event: Roster, now: float) -> None:
        """Whoever is held and not on the list has gone, also since before the start."""
        known = {device for device in worker.things if device.startswith(event.within)}
        for obj in list(self._engine.objects.of(worker.reporter)):
            if not obj.deleted and not obj.topic.endswith("/" + ABOUT):
                device = self._device_of(obj)
                if device.startswith(event.within):
                    known.add(device)
        for device in sorted(known - event.devices):
            if device in worker.things and worker.things[device] is None:
                del worker.things[device]
                continue
            thing = self._thing(effects, worker, device, now)
            if thing is not None:
                self._gone(effects, thing, now)

    @staticmethod
    def _device_of(obj: DataObject) -> str:
        data = obj.data if obj.data is not None else obj.document()
        device = data.get("id")
        return device if isinstance(device, str) else ""

    def _listen(self, effects: Effects, worker: _Worker, event: Listen, now: float) -> None:
        """Other filters, but none that another adapter has: two never read the same topics."""
        others = [each for other in self._workers if other is not worker for each in other.served.adapter.filters]
        mine = frozenset(
            sorted(each for each in event.filters if not any(overlaps(other, each) for other in others))[:FILTERS]
        )
        left = len(event.filters) - len(mine)
        if mine != worker.extra:
            worker.extra = mine
            effects.listening = True
            if left:
                self._note(effects, worker, f"{left:,} topics are left to the adapters that serve them", now)

    # ---- actions -------------------------------------------------------------------------------------------------------

    def _act(self, effects: Effects, item: Item, now: float) -> None:
        """An action of one of our objects: send what it means, and answer when the device has done it."""
        engine = self._engine
        worker = self._by_reporter.get(item.receiver)
        obj = engine.objects.get(item.topic)
        assert obj is not None  # it was found when the action was taken in
        device = self._device_of(obj)
        thing = None if worker is None else self._thing(effects, worker, device, now)
        if worker is None or thing is None:
            text = "no adapter of the settings serves this object any more"
            engine.sharing.act_done(effects, item, Told(404, description=f"{obj.url}: {text}"))
            return
        params = item.more.get("params", {})
        try:
            order = worker.served.adapter.execute(device, item.more["method"], params, token=item.id, now=now)
        except Unable as error:
            engine.sharing.act_done(effects, item, Told(error.code, description=f"{obj.url}: {error}"))
            return
        except Exception as error:  # noqa: BLE001 - anybody's parameters
            worker.counts["failed"] += 1
            text = f"the adapter has failed: {type(error).__name__}: {error}"
            self._note(effects, worker, f"{item.more['method']}: {text}", now)
            engine.sharing.act_done(effects, item, Told(500, description=f"{obj.url}: {text[:200]}"))
            return
        effects.sends.extend(order.sends)
        actions = engine.sharing.actions
        if order.confirms:
            thing.asked = [one for one in thing.asked if actions.get(one[0].id) is one[0]]
            thing.asked.append((item, order.confirms))
        elif order.answered:
            if len(self._tokens) > engine.limits.actions_per_receiver:
                self._tokens = {token: one for token, one in self._tokens.items() if actions.get(token) is one}
            self._tokens[item.id] = item
        else:
            engine.sharing.act_done(effects, item, Told(202, {"sent": len(order.sends)}))

    def _confirmed(self, effects: Effects, thing: _Thing, event: Readings) -> None:
        """A device tells what it was asked for."""
        waiting = []
        for item, names in thing.asked:
            found = {name: event.values[name].value for name in names if name in event.values}
            if found:
                self._engine.sharing.act_done(effects, item, Told(200, {"values": found}))
            else:
                waiting.append((item, names))
        thing.asked = waiting

    def _answered(self, effects: Effects, event: Answer) -> None:
        item = self._tokens.pop(event.token, None)
        if item is not None:
            self._engine.sharing.act_done(effects, item, Told(event.code, event.body, event.description))

    def counts(self, number: int) -> Mapping[str, int]:
        """What became of the messages of one adapter, by RESULTS."""
        return self._workers[number].counts

    # ---- counts --------------------------------------------------------------------------------------------------------

    def families(self) -> Iterator[Family]:
        """What adapters have done, and what they hold."""
        heard = {worker.served.name: worker.heard for worker in self._workers}
        yield counters("ctxt_adapter_messages_total", "Devices' messages, by adapter.", "adapter", heard)
        results = {result: sum(worker.counts[result] for worker in self._workers) for result in RESULTS}
        yield counters("ctxt_adapter_results_total", "What became of devices' messages.", "result", results)
        devices = {
            worker.served.name: sum(thing is not None for thing in worker.things.values()) for worker in self._workers
        }
        yield gauges("ctxt_adapter_devices", "Devices heard of since the start.", "adapter", devices)


def _converted(value: Any, by: Any) -> Any:
    if type(value) is int or type(value) is float:
        return convert(value, by)
    if type(value) is list:
        return [_converted(item, by) for item in value]
    return value


def _equal(one: Any, other: Any) -> bool:
    """1 and 1.0 are one value; 1 and true are not."""
    return (type(one) is bool) == (type(other) is bool) and (
        one == other if type(one) is not list else same(one, other)
    )


def check(served: Sequence[Served]) -> None:
    """Raises AdapterError where two adapters have one name, one topic or one place."""
    for number, each in enumerate(served):
        for other in served[:number]:
            if each.name == other.name:
                raise AdapterError(f"two adapters are called {each.name!r}: give one of them another `name`")
            if (each.base + "/").startswith(other.base + "/") or (other.base + "/").startswith(each.base + "/"):
                raise AdapterError(
                    f"the adapters {other.name!r} and {each.name!r} have the same place, {each.base}: give each its own `base`"
                )
            for mine in each.adapter.filters:
                for its in other.adapter.filters:
                    if overlaps(mine, its):
                        raise AdapterError(
                            f"the adapters {other.name!r} and {each.name!r} both listen to {mine if mine == its else f'{its} and {mine}'}: "
                            "let one of them have it"
                        )
