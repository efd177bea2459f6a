"""Eclipse Sparkplug B, 3.0: births, data, deaths, aliases, sequence numbers and rebirths; commands to nodes and devices.

Source: the Sparkplug 3.0.0 specification (chapters 4 to 6) and its sparkplug_b.proto. A node's id is `group/edge`, a device's `group/edge/device`. What the
protobuf runtime needs of the definition is said here, field by field: so nothing is generated.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, field_validator

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
    scalar,
)

try:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.message import DecodeError
except ImportError as _error:
    raise ImportError("pip install 'ctxt-gateway[sparkplug]'") from _error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

EXAMPLE = """\
[[adapter]]
type = "sparkplug"
clients = ["factory"]
execute = ["operator"]

[adapter.options]
groups = ["Plant 1"]
"""

METHODS = {
    "set": "metrics by name, as `Outputs.LED=true`, with the datatypes of the birth; answered when the next data tells them",
    "rebirth": "ask the edge node for its births; answered 202",
}

_DEFINITION = {
    "Payload": "1 timestamp:uint64 2 metrics:*Metric 3 seq:uint64 4 uuid:string 5 body:bytes",
    "Metric": "1 name:string 2 alias:uint64 3 timestamp:uint64 4 datatype:uint32 5 is_historical:bool 6 is_transient:bool 7 is_null:bool 9 properties:PropertySet"
    " 10 int_value:uint32 11 long_value:uint64 12 float_value:float 13 double_value:double 14 boolean_value:bool 15 string_value:string 16 bytes_value:bytes"
    " 17 dataset_value:DataSet 18 template_value:Template",
    "PropertySet": "1 keys:*string 2 values:*PropertyValue",
    "PropertyValue": "1 type:uint32 2 is_null:bool 3 int_value:uint32 4 long_value:uint64 5 float_value:float 6 double_value:double 7 boolean_value:bool 8 string_value:string",
    "DataSet": "1 num_of_columns:uint64 2 columns:*string 3 types:*uint32 4 rows:*Row",
    "Row": "1 elements:*DataSetValue",
    "DataSetValue": "1 int_value:uint32 2 long_value:uint64 3 float_value:float 4 double_value:double 5 boolean_value:bool 6 string_value:string",
    "Template": "1 version:string 2 metrics:*Metric 4 template_ref:string 5 is_definition:bool",
}
"""sparkplug_b.proto without what is not read: number, name and type of each field, `*` where it is repeated."""

_KINDS = {"uint64": 4, "uint32": 13, "bool": 8, "string": 9, "bytes": 12, "float": 2, "double": 1}
"""Numbers of FieldDescriptorProto.Type."""


def _payload_class() -> Any:
    """The class for a payload, by the protobuf runtime."""
    file = descriptor_pb2.FileDescriptorProto(name="ctxt/sparkplug_b.proto", package="ctxt.sparkplug", syntax="proto2")
    for name, fields in _DEFINITION.items():
        message = file.message_type.add(name=name)
        words = fields.split()
        oneof = any(word.startswith("string_value:") for word in words)
        if oneof:
            message.oneof_decl.add(name="value")
        for number, word in zip(words[::2], words[1::2], strict=True):
            label, _, kind = word.partition(":")
            field = message.field.add(name=label, number=int(number), label=3 if kind.startswith("*") else 1)
            kind = kind.lstrip("*")
            if kind in _KINDS:
                field.type = _KINDS[kind]
            else:
                field.type, field.type_name = 11, f".ctxt.sparkplug.{kind}"
            if oneof and label.endswith("_value"):
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("ctxt.sparkplug.Payload"))


Payload = _payload_class()

INT8, INT64, UINT64, FLOAT, DOUBLE, BOOLEAN, STRING, DATETIME, TEXT, UUID = 1, 4, 8, 9, 10, 11, 12, 13, 14, 15
DATASET, BYTES, FILE, TEMPLATE = 16, 17, 18, 19
SIGNED = {1: 8, 2: 16, 3: 32, 4: 64}
"""Datatypes whose values travel as two's complement, and their bits."""

ARRAYS = {22: "b", 23: "h", 24: "i", 25: "q", 26: "B", 27: "H", 28: "I", 29: "Q", 30: "f", 31: "d", 34: "q"}
"""Arrays of numbers, packed as little endian; 32 and 33 are of truth values and texts."""

COMPRESSED = "SPBV1.0_COMPRESSED"

MOST_INFLATED = 4 << 20
MOST_METRICS = 5_000
"""Metrics of one edge node and its devices."""

MOST_ITEMS = 256
MOST_LEVELS = 4
"""Templates in templates."""

AGAIN = 10.0
"""Seconds between two requests for one node's birth."""

REBIRTH = "Node Control/Rebirth"


class SparkplugOptions(Options):
    """Which groups."""

    groups: tuple[str, ...] = Field(
        default=("+",), min_length=1, max_length=500, description="Group ids, as in topics; + for any."
    )
    rebirth: bool = Field(
        default=True, description="Whether a birth is asked for where data comes before it or something is missing."
    )

    @field_validator("groups")
    @classmethod
    def _groups(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if each != "+" and (not each or set("/+#") & set(each)):
                raise ValueError(f"{each!r} is no group id: a topic's level, or + for any")
        return value


class Metric(NamedTuple):
    """What a birth says of a metric: whose it is, its name there and here, datatype and unit."""

    device: str
    name: str
    reading: str
    datatype: int
    unit: str | None


class Node:
    """An edge node since its birth."""

    __slots__ = ("aliases", "asked", "bdseq", "born", "devices", "metrics", "seq")

    def __init__(self) -> None:
        self.asked = float("-inf")
        self.devices: dict[str, bool] = {}
        self.forget()
        self.bdseq: int | None = None

    def forget(self) -> None:
        """A birth, or a death: nothing of before holds."""
        self.born = False
        self.seq = -1
        self.aliases: dict[int, Metric] = {}
        self.metrics: dict[tuple[str, str], Metric] = {}


class Sparkplug:
    """Edge nodes and their devices."""

    def __init__(self, options: SparkplugOptions, most: int) -> None:
        self._most = most
        self._rebirth = options.rebirth
        self._nodes: dict[str, Node] = {}
        kinds = [f"N{kind}/+" for kind in ("BIRTH", "DATA", "DEATH")] + [
            f"D{kind}/+/+" for kind in ("BIRTH", "DATA", "DEATH")
        ]
        self.filters: tuple[str, ...] = tuple(f"spBv1.0/{group}/{kind}" for group in options.groups for kind in kinds)
        self.commands: tuple[str, ...] = tuple(
            f"spBv1.0/{group}/{kind}" for group in options.groups for kind in ("NCMD/+", "DCMD/+/+")
        )

    # ---- in ------------------------------------------------------------------------------------------------------------

    def decode(self, topic: str, payload: bytes, *, retained: bool, now: float) -> Iterable[Event]:
        """See Adapter."""
        levels = topic.split("/")
        if len(levels) not in (4, 5) or "" in levels:
            return ()
        _, group, kind, edge, *rest = levels
        key = f"{group}/{edge}"
        device = f"{key}/{rest[0]}" if rest else key
        message = _read(payload)
        if retained:
            # Nothing of Sparkplug but STATE is retained (tck-id-payloads): it is of another time.
            return ()
        node = self._nodes.get(key)
        if kind == "NBIRTH":
            if node is None:
                node = Node()
            events = self._node_born(node, key, message)
            if len(self._nodes) < self._most:
                self._nodes[key] = node
            return events
        if kind == "NDEATH":
            return self._node_died(node, key, message)
        if node is None or not node.born:
            if node is None:
                node = Node()
                if len(self._nodes) < self._most:
                    self._nodes[key] = node
            return self._ask(node, group, edge, now)
        events = self._in_order(node, message, group, edge, now)
        if kind == "DBIRTH":
            return [*events, *self._born(node, device, message)]
        if kind == "DDEATH":
            node.devices[device] = False
            return [*events, Alive(device, False)]
        if rest and not node.devices.get(device):
            return events or self._ask(node, group, edge, now)
        found = self._data(node, device, message)
        if found is None:
            return events or self._ask(node, group, edge, now)
        return [*events, *found]

    def _ask(self, node: Node, group: str, edge: str, now: float) -> list[Event]:
        """Something is missing: the node is asked for its births."""
        if not self._rebirth or node.asked <= now < node.asked + AGAIN:
            return []
        node.asked = now
        return [_rebirth(group, edge, now)]

    def _in_order(self, node: Node, message: Any, group: str, edge: str, now: float) -> list[Event]:
        """Whether the message is the next one (tck-id-operational-behavior-host-reordering)."""
        if not message.HasField("seq"):
            return []
        missing = message.seq != (node.seq + 1) % 256
        node.seq = message.seq % 256
        return self._ask(node, group, edge, now) if missing else []

    def _node_born(self, node: Node, key: str, message: Any) -> list[Event]:
        bdseq = next((int(each.long_value or each.int_value) for each in message.metrics if each.name == "bdSeq"), None)
        events = self._values(None, key, message)
        # Nothing has raised: from here on it is another node.
        away = [device for device, alive in node.devices.items() if alive]
        node.forget()
        node.born, node.bdseq, node.seq = True, bdseq, message.seq % 256
        node.devices = dict.fromkeys(node.devices, False)
        self._learn(node, key, message)
        reached = [Alive(device, False) for device in away]
        return [About(key, key.partition("/")[2], {}), *events, Alive(key, True), *reached]

    def _node_died(self, node: Node | None, key: str, message: Any) -> list[Event]:
        if node is None:
            return [Alive(key, False)]
        bdseq = next((int(each.long_value or each.int_value) for each in message.metrics if each.name == "bdSeq"), None)
        if node.bdseq is not None and bdseq is not None and bdseq != node.bdseq:
            # The will of a connection before this one.
            return []
        node.forget()
        devices, node.devices = list(node.devices), dict.fromkeys(node.devices, False)
        return [Alive(key, False), *(Alive(device, False) for device in devices)]

    def _born(self, node: Node, device: str, message: Any) -> list[Event]:
        events = self._values(None, device, message)
        for alias in [alias for alias, metric in node.aliases.items() if metric.device == device]:
            del node.aliases[alias]
        for key in [key for key in node.metrics if key[0] == device]:
            del node.metrics[key]
        if device in node.devices or len(node.devices) < self._most:
            node.devices[device] = True
        self._learn(node, device, message)
        return [About(device, device.rpartition("/")[2], {}), *events, Alive(device, True)]

    @staticmethod
    def _learn(node: Node, device: str, message: Any) -> None:
        for each in message.metrics:
            if each.name and len(node.metrics) < MOST_METRICS:
                metric = _metric(device, each)
                node.metrics[device, metric.reading] = metric
                if each.HasField("alias"):
                    node.aliases[each.alias] = metric

    def _data(self, node: Node, device: str, message: Any) -> list[Event] | None:
        """What data says; None where a metric is not known."""
        for each in message.metrics:
            if not each.name and (each.alias not in node.aliases or node.aliases[each.alias].device != device):
                return None
        return self._values(node, device, message)

    def _values(self, node: Node | None, device: str, message: Any) -> list[Event]:
        """Hot: the metrics as readings; without a node it is a birth, and all there is. Raises Unreadable."""
        values: dict[str, Reading] = {}
        events: list[Event] = []
        when = message.timestamp if message.HasField("timestamp") else None
        for each in message.metrics:
            metric = None
            if node is not None:
                metric = (
                    node.aliases.get(each.alias) if not each.name else node.metrics.get((device, _short(each.name)))
                )
            if metric is None:
                metric = _metric(device, each)
            if metric.name == "bdSeq" or metric.name.startswith("Node Control/"):
                continue
            millis = each.timestamp if each.HasField("timestamp") else when
            time = None if millis is None else at(millis / 1000)
            into = {} if each.is_historical else values
            for name, value in _value(each, metric.reading, each.datatype or metric.datatype, MOST_LEVELS):
                into[name] = Reading(value, metric.unit, time)
            if each.is_historical and into:
                events.append(Readings(device, into, past=True))
        if values or node is None:
            events.append(Readings(device, values, cached=True, whole=node is None))
        return events

    # ---- actions -------------------------------------------------------------------------------------------------------

    def execute(self, device: str, method: str, params: Mapping[str, Any], *, token: str, now: float) -> Order:  # noqa: ARG002 - the next data is the answer
        """See Adapter."""
        if method not in METHODS:
            raise Unable(404, f"there is no method {method[:64]!r}: there are {', '.join(METHODS)}")
        group, _, rest = device.partition("/")
        edge, _, below = rest.partition("/")
        node = self._nodes.get(f"{group}/{edge}")
        if node is None or (method == "set" and not node.born):
            raise Unable(404, f"{device!r} has not been born since the start: ask for its `rebirth`, or wait")
        if method == "rebirth":
            return Order((_rebirth(group, edge, now),))
        if not params:
            raise Unable(400, "name what is to be set, as Outputs.LED=true")
        command = Payload(timestamp=int(now * 1000))
        confirms = set()
        for name, value in params.items():
            metric = node.metrics.get((device, name)) or node.metrics.get((device, _short(name)))
            if metric is None:
                known = [
                    each.reading for key, each in node.metrics.items() if key[0] == device and each.name != "bdSeq"
                ]
                raise Unable(400, f"there is no metric {name[:80]!r}: there are {', '.join(known[:20]) or 'none'}")
            into = command.metrics.add(name=metric.name, timestamp=int(now * 1000), datatype=metric.datatype)
            _write(into, metric, value)
            confirms.add(metric.reading)
        topic = f"spBv1.0/{group}/DCMD/{edge}/{below}" if below else f"spBv1.0/{group}/NCMD/{edge}"
        return Order((Send(topic, command.SerializeToString()),), confirms=frozenset(confirms))


# ---- payloads ----------------------------------------------------------------------------------------------------------


def _read(payload: bytes) -> Any:
    """A payload, inflated where it is compressed. Raises Unreadable."""
    message = _parsed(payload)
    if message.uuid == COMPRESSED:
        algorithm = next((each.string_value for each in message.metrics if each.name == "algorithm"), "DEFLATE")
        inflate = zlib.decompressobj(31 if algorithm in ("GZIP", "gzip") else 15)
        try:
            body = inflate.decompress(message.body, MOST_INFLATED)
        except zlib.error as error:
            raise Unreadable(f"the compressed payload cannot be inflated: {error}") from None
        if inflate.unconsumed_tail:
            raise Unreadable(f"the payload is more than {MOST_INFLATED >> 20} MiB when it is inflated")
        message = _parsed(body)
    if len(message.metrics) > MOST_METRICS:
        raise Unreadable(f"the payload has {len(message.metrics):,} metrics, at most {MOST_METRICS:,} are taken")
    return message


def _parsed(payload: bytes) -> Any:
    if not payload:
        raise Unreadable("the payload is empty")
    try:
        return Payload.FromString(payload)
    except DecodeError:
        raise Unreadable("the payload is no Sparkplug B payload (Protobuf)") from None


def _short(name: str) -> str:
    """`Inputs/A` is `Inputs.A`. Raises Unreadable."""
    if type(name) is not str:
        # What the runtime makes of a text that is not UTF-8.
        raise Unreadable("a name in the payload is not UTF-8")
    return name.replace("/", ".")[:128]


def _metric(device: str, each: Any) -> Metric:
    unit = None
    for key, value in zip(each.properties.keys, each.properties.values, strict=False):
        said = value.string_value
        if key in ("engUnit", "Engineering Units", "unit", "Unit") and type(said) is str and 0 < len(said) <= 32:
            unit = said
    reading = _short(each.name)
    return Metric(device, each.name[:256], reading, each.datatype, unit)


def _value(each: Any, name: str, datatype: int, levels: int) -> Iterator[tuple[str, Value | None]]:
    """A metric's value, or those in it. Raises Unreadable."""
    kind = each.WhichOneof("value")
    if each.is_null or kind is None:
        yield name, None
        return
    value = getattr(each, kind)
    if kind in ("int_value", "long_value", "float_value", "double_value", "boolean_value", "string_value"):
        one = _scalar(value, kind, datatype)
        if one is not None:
            yield name, one
        return
    if kind == "bytes_value":
        if 22 <= datatype <= 34:
            items = _array(value, datatype)[:MOST_ITEMS]
            if items:
                yield name, items
        elif len(value) <= 3_000:
            yield name, base64.b64encode(value).decode()
        return
    if kind == "dataset_value":
        types = list(value.types)
        for column, label in enumerate(list(value.columns)[:MOST_ITEMS]):
            cells = []
            for row in value.rows[:MOST_ITEMS]:
                if column < len(row.elements):
                    found = row.elements[column].WhichOneof("value")
                    cell = None if found is None else getattr(row.elements[column], found)
                    cells.append(
                        None if found is None else _scalar(cell, found, types[column] if column < len(types) else 0)
                    )
            if cells and None not in cells:
                yield f"{name}.{_short(label)}"[:128], cells  # type: ignore[misc]
        return
    if levels and not value.is_definition:
        for below in value.metrics[:MOST_ITEMS]:
            yield from _value(below, f"{name}.{_short(below.name)}"[:128], below.datatype, levels - 1)


def _scalar(value: Any, kind: str, datatype: int) -> Scalar | None:
    """A number, a truth value or a text, as its datatype has it; None for what is none of them (NaN)."""
    bits = SIGNED.get(datatype)
    if bits is not None and kind in ("int_value", "long_value"):
        value &= (1 << bits) - 1
        return value - (1 << bits) if value >> (bits - 1) else value  # type: ignore[no-any-return]
    if datatype == DATETIME and kind == "long_value":
        return at(value / 1000)
    if kind == "float_value":
        # As many digits as it had: 12.3 and not 12.300000190734863.
        value = float(f"{value:.7g}")
    if datatype == BOOLEAN and kind in ("int_value", "long_value"):
        return bool(value)
    return scalar(value)


def _array(data: bytes, datatype: int) -> list[Any]:
    """The items of an array (chapter 6, Array datatypes). Raises Unreadable."""
    if datatype == 32:
        if len(data) < 4:
            raise Unreadable("an array of truth values has no length")
        count = int.from_bytes(data[:4], "little")
        if count > (len(data) - 4) * 8:
            raise Unreadable("an array of truth values is shorter than it says")
        return [bool(data[4 + number // 8] >> (7 - number % 8) & 1) for number in range(min(count, MOST_ITEMS))]
    if datatype == 33:
        try:
            return data[:65_536].decode().rstrip("\0").split("\0")
        except UnicodeDecodeError:
            raise Unreadable("an array of texts is not UTF-8") from None
    code = ARRAYS[datatype]
    size = struct.calcsize("<" + code)
    if len(data) % size:
        raise Unreadable(f"an array of {len(data)} bytes has no whole number of items of {size}")
    items = list(struct.unpack(f"<{min(len(data) // size, MOST_ITEMS)}{code}", data[: MOST_ITEMS * size]))
    if datatype == 34:
        items = [at(item / 1000) for item in items]
    elif datatype == 30:
        items = [float(f"{item:.7g}") for item in items]
    checked = [scalar(item) for item in items]
    return [] if None in checked else checked


def _rebirth(group: str, edge: str, now: float) -> Send:
    command = Payload(timestamp=int(now * 1000))
    command.metrics.add(name=REBIRTH, timestamp=int(now * 1000), datatype=BOOLEAN, boolean_value=True)
    return Send(f"spBv1.0/{group}/NCMD/{edge}", command.SerializeToString())


def _write(into: Any, metric: Metric, value: Any) -> None:
    """A parameter as the metric's datatype has it. Raises Unable."""
    datatype, kind = metric.datatype, type(value)
    if datatype == BOOLEAN and kind is bool:
        into.boolean_value = value
    elif (datatype in SIGNED or 5 <= datatype <= UINT64) and kind is int:
        bits = SIGNED.get(datatype, {5: 8, 6: 16, 7: 32, 8: 64}.get(datatype, 64))
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if datatype in SIGNED else (0, (1 << bits) - 1)
        if not low <= value <= high:
            raise Unable(400, f"{metric.reading} takes whole numbers from {low:,} to {high:,}")
        if bits == 64:
            into.long_value = value & ((1 << 64) - 1)
        else:
            into.int_value = value & ((1 << 32) - 1)
    elif datatype in (FLOAT, DOUBLE) and kind in (int, float):
        if datatype == DOUBLE:
            into.double_value = value
        else:
            into.float_value = value
    elif datatype in (STRING, TEXT, UUID) and kind is str and len(value) <= 65_536:
        into.string_value = value
    elif datatype == DATETIME and kind is int and 0 <= value < 1 << 63:
        into.long_value = value
    else:
        raise Unable(
            400, f"{metric.reading} is of datatype {datatype}, and {str(value)[:40]!r} is not: give what it is"
        )


SPEC = Spec(
    "sparkplug",
    "edge nodes and devices of Sparkplug B",
    SparkplugOptions,
    Sparkplug,
    METHODS,
    EXAMPLE,
    "https://sparkplug.eclipse.org/specification/",
    signs=("spBv1.0/*",),
)
