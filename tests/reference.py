"""`python -m tests.reference`: docs/api.md, made from the docstrings of the public names."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gateway.client
from gateway.client import blocking, quantities

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"

HEAD = """# Client library: reference

Made from the docstrings by `python -m tests.reference > docs/api.md`; [clients.md](clients.md) is the guide. `gateway.client` is for asyncio;
`gateway.client.blocking` has `connect`, `Client`, `Reporter`, `Observer`, `Copies` and `Events` with the same methods, called without `await` and used with
`with` and `for`; there `changes`, `events`, `requests` and `actions` take a `timeout` (seconds) after which the iterator ends, and `wait_for` and callbacks may be used from any thread.
"""

QUANTITIES = ("quantity", "quantities", "reading", "Reading", "from_senml", "to_senml", "QuantityError")


def signature(name: str, thing: Any) -> str:
    """A signature in few words: annotations without their modules, no `self`."""
    text = str(inspect.signature(thing))
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    text = re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)
    text = re.sub(r"^\(self(, )?", "(", text)
    prefix = "async " if inspect.iscoroutinefunction(thing) else ""
    return f"{prefix}{name}{text}"


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties, those of the base first, in the order of the source."""
    seen: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("gateway."):
            seen |= {name: value for name, value in vars(base).items() if not name.startswith("_")}
    for name, value in seen.items():
        if isinstance(value, property) or inspect.isfunction(value):
            yield name, value


def written(doc: str | None) -> str:
    """A docstring as Markdown."""
    return inspect.cleandoc(doc or "")


def describe(name: str, thing: Any) -> Iterator[str]:
    """One public name."""
    yield f"\n### `{name}`\n"
    if inspect.isfunction(thing):
        yield f"```python\n{signature(name, thing)}\n```\n"
        yield written(thing.__doc__)
        return
    if dataclasses.is_dataclass(thing):
        fields = ", ".join(field.name for field in dataclasses.fields(thing))
        yield f"`{name}({fields})`\n" if fields else ""
    yield written(thing.__doc__)
    if issubclass(thing, BaseException) and name not in ("RefusedError", "NotConnectedError"):
        return
    listed = list(members(thing))
    if listed:
        yield ""
    for member, value in listed:
        if isinstance(value, property):
            yield f"- `{member}`: {' '.join(written(value.__doc__).split())}"
        else:
            yield f"- `{signature(member, value)}`: {' '.join(written(value.__doc__).split())}"


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## gateway.client"]
    for name in sorted(gateway.client.__all__, key=lambda each: (each != "connect", each)):
        lines.extend(describe(name, getattr(gateway.client, name)))
    lines.append("\n## gateway.client.quantities\n")
    lines.append(written(quantities.__doc__))
    for name in QUANTITIES:
        lines.extend(describe(name, getattr(quantities, name)))
    lines.append("\n## gateway.client.blocking\n")
    lines.append(written(blocking.__doc__))
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
