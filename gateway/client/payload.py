"""What an application says, as JSON; what JSON does not have is refused before it can become something else. Pure."""

from __future__ import annotations

import math
from typing import Any

import orjson

from gateway.client.errors import UsageError


def encode(value: Any) -> bytes:
    """A value as JSON. Raises UsageError for what is none: NaN, infinity, sets, nesting without end."""
    try:
        payload = orjson.dumps(value)
    except TypeError as error:
        raise UsageError(f"this is not JSON: {error}") from error
    if b"null" in payload:
        # orjson writes NaN as null, and that would take a member away.
        place = _not_a_number(value, "")
        if place is not None:
            raise UsageError(
                f"{place or '/'} is not a number that JSON has (NaN or infinity): leave it out, or say null"
            )
    return payload


def _not_a_number(value: Any, place: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)  # type: ignore[assignment]
    else:
        return None
    for key, part in parts:
        found = _not_a_number(part, f"{place}/{key}")
        if found is not None:
            return found
    return None
