"""What is public is pinned, documented and typed."""

from __future__ import annotations

import inspect
import re
from importlib import resources
from pathlib import Path
from typing import Any

import gateway.client
from gateway.client import blocking
from tests.reference import PAGE, QUANTITIES, members, page

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"

PINNED = [
    "Action",
    "AddressError",
    "Changed",
    "Client",
    "ClientError",
    "Connected",
    "Copies",
    "Copy",
    "Created",
    "Delegated",
    "Delegation",
    "Deleted",
    "Disconnected",
    "Events",
    "GatewayChanged",
    "Invitation",
    "Missed",
    "NoAnswerError",
    "NotConnectedError",
    "Observer",
    "Outbox",
    "PatchError",
    "RefusedError",
    "Rejection",
    "Reporter",
    "Revoked",
    "StatusChanged",
    "SubscriptionRequest",
    "UsageError",
    "connect",
]

METHODS = {
    "Client": """accept close connected create delegate discover dropped events execute held name observe observe_all on_event owned pending read
    reject reporter request respond resume subscribe unsubscribe wait_connected""",
    "Reporter": """actions add_child data delegate delete describe edit held invite on_action on_request patch read requests revoke update url""",
    "Observer": """add_child changes children close copy data epoch execute in_sync on_change reporter status url version wait_for""",
    "Copies": """changes close get in_sync on_change status wait_for""",
}


def test_the_public_names_are_these() -> None:
    assert sorted(gateway.client.__all__, key=str.casefold) == sorted(PINNED, key=str.casefold)
    assert all(hasattr(gateway.client, name) for name in PINNED)
    assert resources.files("gateway").joinpath("py.typed").is_file()


def test_both_clients_have_the_same_methods_and_these() -> None:
    for kind, pinned in METHODS.items():
        expected = set(pinned.split()) - ({"delegate"} if kind == "Client" else set())
        for module in (gateway.client, blocking):
            assert {name for name, _ in members(getattr(module, kind))} == expected, (module.__name__, kind)
    arguments = {module: inspect.signature(module.connect).parameters for module in (gateway.client, blocking)}
    assert {name: p.default for name, p in arguments[gateway.client].items()} == {
        name: p.default for name, p in arguments[blocking].items()
    }


def test_every_public_name_says_what_it_is() -> None:
    def said(thing: Any) -> bool:
        return bool(inspect.cleandoc(thing.__doc__ or ""))

    for module in (gateway.client, blocking):
        for name in module.__all__:
            thing = getattr(module, name)
            assert said(thing), name
            if inspect.isclass(thing):
                for member, value in members(thing):
                    assert said(value), f"{name}.{member}"


def test_the_reference_is_that_of_the_docstrings() -> None:
    assert PAGE.read_text() == page(), "python -m tests.reference > docs/api.md"
    assert all(f"### `{name}`" in page() for name in QUANTITIES)


def test_the_guide_names_every_example_and_every_event() -> None:
    guide = (DOCS / "clients.md").read_text()
    for example in (DOCS / "examples").glob("*.py"):
        assert f"examples/{example.name}" in guide
    for name in PINNED:
        if name not in ("Copy", "Events", "PatchError", "AddressError", "UsageError", "Missed"):
            assert re.search(rf"\b{name}\b", guide), name
