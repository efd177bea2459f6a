"""mosquitto's own settings, as far as they decide what is lost: read from its files where they are on this machine.

Over MQTT a broker does not tell them. Every sentence here was measured with mosquitto 2.0.11 (docs/brokers/mosquitto.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS = Path("/etc/mosquitto/mosquitto.conf")

MOST_BYTES = 1 << 20
"""A file longer than this is none of mosquitto's."""

QUEUED = 1_000
"""`max_queued_messages` where it is not set."""

AUTOSAVE = 1_800
"""`autosave_interval` in seconds where it is not set."""

_PORT = "1883"

_NAMELESS = (
    "a listener without use_username_as_clientid true of its own: whoever may connect there can take another's place, and what"
    " was queued for it, by using its client id"
)


class Line(NamedTuple):
    """One setting: where it stands, its name, the rest of the line."""

    path: Path
    number: int
    name: str
    value: str


def lines(path: Path) -> Iterator[Line]:
    """Every setting of mosquitto.conf(5), those of `include_dir` too. Raises OSError for a file that cannot be read."""
    for number, text in enumerate(path.read_bytes()[:MOST_BYTES].decode("utf-8", "replace").splitlines(), 1):
        name, _, value = text.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if name == "include_dir":
            folder = path.parent / value.strip()
            for included in sorted(folder.glob("*.conf"), key=lambda each: each.name):
                yield from lines(included)
        else:
            yield Line(path, number, name, value.strip())


def warnings(path: Path, port: int) -> list[str]:
    """What the mosquitto with these settings would lose or let pass, if it is the one that listens on this port.

    Empty where the files are another broker's, or cannot be read.
    """
    try:
        found = list(lines(path))
    except OSError:
        return []
    listeners = [line for line in found if line.name in ("listener", "port")]
    ports = [line.value.split()[0] for line in listeners if line.value] or [_PORT]
    if str(port) not in ports:
        return []
    values = {line.name: line for line in found}
    return [f"{path}: {text}" for text in _losses(values)] + [
        f"{line.path}:{line.number}: {text}" for line, text in _traps(found)
    ]


def _number(values: dict[str, Line], name: str, default: int) -> int:
    try:
        return int(values[name].value)
    except (KeyError, ValueError):
        return default


def _true(values: dict[str, Line], name: str) -> bool:
    return name in values and values[name].value.lower() == "true"


def _losses(values: dict[str, Line]) -> Iterator[str]:
    queued = _number(values, "max_queued_messages", QUEUED)
    if 0 < queued <= QUEUED:
        yield (
            f"max_queued_messages is {queued:,}: of the reports that come while the gateway is away or busy, those beyond it "
            "are lost although their senders were told otherwise: set it to 200000"
        )
    if not _true(values, "persistence"):
        yield "persistence is not true: reports that wait for the gateway are lost when mosquitto restarts: set it to true"
    autosave = _number(values, "autosave_interval", AUTOSAVE)
    if _true(values, "persistence") and (autosave == 0 or autosave > 300):
        yield (
            f"autosave_interval is {autosave:,} s: a crash or a power cut takes back all that was retained and queued since "
            "the last save: set it to 60"
        )
    if not _true(values, "set_tcp_nodelay"):
        yield "set_tcp_nodelay is not true: messages wait up to 40 ms for each other: set it to true"
    if not _true(values, "check_retain_source"):
        yield "check_retain_source is not true: what was retained stays readable after its writer has lost the right"


def _traps(found: list[Line]) -> Iterator[tuple[Line, str]]:
    """What is wrong with a listener: these settings are of the `listener` line above them, or of the default listener."""
    listener: Line | None = None
    web = bound = named = False
    seen = False
    for line in [*found, None]:
        if line is None or line.name == "listener":
            if listener is not None and web and not bound and len(listener.value.split()) > 1:
                yield listener, "a WebSocket listener without socket_domain is open on every address of the machine"
            if not named and (listener is not None or (line is None and not seen and found)):
                yield listener or found[0], _NAMELESS
            listener, web, bound, named = line, False, False, False
            seen |= line is not None
        elif line.name == "protocol":
            web = line.value == "websockets"
        elif line.name == "socket_domain":
            bound = True
        elif line.name == "use_username_as_clientid":
            named = line.value.lower() == "true"
        elif line.name == "allow_anonymous" and line.value.lower() == "true":
            yield line, "allow_anonymous is true: clients without a name are not bound by `pattern` lines"
