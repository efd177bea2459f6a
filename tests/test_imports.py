"""The rooms' arrows point one way, and the pure rooms stay pure."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "gateway"

PURE = {
    "gateway.errors": set(),
    "gateway.topics": set(),
    "gateway.address": {"errors"},
    "gateway.patch": {"errors"},
    "gateway.redelivery": set(),
    "gateway.sessions": set(),
    "gateway.objects": {"topics", "catalogue", "rights"},
    "gateway.rights": {"address", "objects", "topics"},
    "gateway.pending": {"messages", "objects"},
    "gateway.sharing": {"address", "effects", "engine", "messages", "objects", "pending", "rights"},
    "gateway.messages": {"errors", "objects", "patch"},
    "gateway.counts": set(),
    "gateway.effects": {"adapter", "objects", "pending"},
    "gateway.adapter": {"errors", "messages"},
    "gateway.units": set(),
    "gateway.adapting": {
        "adapter",
        "address",
        "counts",
        "effects",
        "engine",
        "errors",
        "objects",
        "patch",
        "pending",
        "topics",
        "units",
    },
    "gateway.rehearsal": {"adapter", "adapting", "catalogue", "effects", "engine", "objects", "rights"},
    "gateway.parts": {"catalogue"},
    "gateway.comparison": {"catalogue", "effects", "parts"},
    "gateway.requests": {
        "address",
        "comparison",
        "effects",
        "engine",
        "messages",
        "objects",
        "catalogue",
        "pending",
        "rights",
        "sharing",
    },
    "gateway.engine": {
        "address",
        "counts",
        "effects",
        "messages",
        "objects",
        "patch",
        "pending",
        "requests",
        "rights",
        "sharing",
        "catalogue",
    },
    "gateway.explain": {"objects", "rights", "topics"},
    "gateway.client.errors": {"errors"},
    "gateway.client.promise": set(),
    "gateway.client.payload": set(),
    "gateway.client.inbox": set(),
    "gateway.client.scopes": {"address"},
    "gateway.client.sentences": set(),
    "gateway.client.replica": {"address", "messages", "objects", "patch", "errors", "topics"},
    "gateway.client.quantities": {"errors", "messages"},
}
"""A pure room, and the rooms it may know (types count)."""

MAY_KNOW = {
    "wire": {"errors", "topics", "wire"},
    "broker": {"errors", "topics", "wire", "broker", "counts", "sessions", "certificates"},
    "certificates": {"errors"},
    "links": {
        "backoff",
        "counts",
        "errors",
        "wire",
        "broker",
        "acl",
        "credentials",
        "rights",
        "links",
        "topics",
        "sessions",
        "tokens",
        "certificates",
    },
    "tokens": {"errors", "credentials"},
    "acl": {
        "rights",
        "errors",
        "settings",
        "credentials",
        "counts",
        "topics",
        "objects",
        "broker",
        "web",
        "backoff",
        "tokens",
    },
    "web": {"errors", "web"},
    "store": {"errors", "objects", "pending", "redelivery", "catalogue", "sessions"},
    "control": {"broker", "counts", "errors", "wire"},
    "credentials": {"errors", "address"},
    "client": {"address", "errors", "messages", "objects", "patch", "topics", "ulid", "wire"},
    "settings": {"errors", "address", "topics", "data", "rights"},
    "catalogue": {"errors", "data"},
}
"""A room with I/O or libraries of its own, and the rooms it may know."""

IMPURE = {
    "asyncio",
    "socket",
    "sqlite3",
    "logging",
    "time",
    "os",
    "threading",
    "pathlib",
    "subprocess",
    "random",
    "secrets",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names.add(module)
            if module == "gateway":
                names.update("gateway." + alias.name for alias in node.names)
    return names


def rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("gateway.")}


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_room_does_no_io_and_knows_only_its_neighbours_below(module: str) -> None:
    path = modules()[module]
    assert not {name.split(".")[0] for name in imports(path)} & IMPURE
    allowed = PURE[module] | {module.split(".")[1]}
    assert rooms(path) <= allowed


@pytest.mark.parametrize("room", sorted(MAY_KNOW))
def test_a_room_knows_only_the_rooms_below_it(room: str) -> None:
    paths = [path for name, path in modules().items() if name.split(".")[1:2] == [room]]
    assert paths
    for path in paths:
        assert rooms(path) <= MAY_KNOW[room] | {room}, path


def test_only_the_service_and_the_command_line_know_them_all() -> None:
    tops = {"service", "reload", "administration", "cli", "commands", "demo"}
    for name, path in modules().items():
        room = name.split(".")[1:2]
        if room and room[0] not in tops:
            assert not rooms(path) & tops, path


def test_the_gateway_never_imports_an_adapter() -> None:
    for path in modules().values():
        assert not {name for name in imports(path) if name.split(".")[0] == "adapters"}, path


def test_the_command_line_speaks_mqtt_by_the_client_library_alone() -> None:
    # The attacks of `ctxt acl test` do what no decent client does.
    for name, path in modules().items():
        if name.startswith("gateway.commands.") and name != "gateway.commands.attacks":
            assert not {each.split(".")[0] for each in imports(path)} & {"aiomqtt", "paho"}, path
