"""ULIDs: names that sort by time, cannot collide and cannot be guessed (github.com/ulid/spec)."""

from __future__ import annotations

import secrets

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(now: float) -> str:
    """A new ULID: 48 bits of milliseconds (`now` is Unix seconds), 80 random bits."""
    number = (int(now * 1000) << 80) | secrets.randbits(80)
    return "".join(_CROCKFORD[(number >> shift) & 31] for shift in range(125, -5, -5))
