"""Which adapters there are: the built-in ones, and what other packages bring. They are loaded by name, and only those that are asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.adapter import Spec

BUILTIN: tuple[str, ...] = tuple(
    sorted(each.name for each in iter_modules(import_module("adapters").__path__) if not each.name.startswith("_"))
)
"""The adapters that come with the gateway: each is a file in adapters/ with a SPEC; what several share begins with an underscore."""

GROUP = "ctxt_gateway.adapters"
"""The entry points of a third party's package, each the SPEC of an adapter; loaded only where the settings name it."""


def names() -> list[str]:
    """Every adapter that `find` knows: the built-in ones, then others in order."""
    others = {point.name for point in entry_points(group=GROUP)} - set(BUILTIN)
    return [*BUILTIN, *sorted(others)]


def find(name: str) -> Spec:
    """The SPEC of an adapter. Raises LookupError where there is none, ImportError where what it needs is not installed."""
    if name in BUILTIN:
        spec: Spec = import_module(f"adapters.{name}").SPEC
        return spec
    for point in entry_points(group=GROUP):
        if point.name == name:
            found: Spec = point.load()
            return found
    raise LookupError(name)
