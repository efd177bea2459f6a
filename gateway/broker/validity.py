"""From when until when a certificate is good: the one thing that a listener has to know of its own. Pure."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime
from typing import NamedTuple

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----\s.+?-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


class Validity(NamedTuple):
    """Unix seconds."""

    begins: float
    ends: float


def validity(pem: bytes) -> Validity | None:
    """Of the first certificate in a PEM file; None where it cannot be read."""
    found = _PEM.search(pem)
    if found is None:
        return None
    try:
        der = ssl.PEM_cert_to_DER_cert(found[0].decode())
        # Certificate, TBSCertificate [RFC 5280 section 4.1].
        _, certificate, _ = _element(der)
        _, body, _ = _element(certificate)
        tag, _, rest = _element(body)
        if tag == _VERSION:
            _, _, rest = _element(rest)
        for _ in ("signature", "issuer"):
            _, _, rest = _element(rest)
        tag, period, _ = _element(rest)
        if tag != _SEQUENCE:
            return None
        begins, first, after = _element(period)
        ends, second, _ = _element(after)
        return Validity(_time(begins, first), _time(ends, second))
    except (ValueError, IndexError):
        return None


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """Tag, content, and what follows (X.690 section 8.1). Raises ValueError, IndexError."""
    tag, length, at = der[0], der[1], 2
    if length & 0x80:
        at += length & 0x7F
        length = int.from_bytes(der[2:at], "big")
    if at + length > len(der):
        raise ValueError
    return tag, der[at : at + length], der[at + length :]


def _time(tag: int, content: bytes) -> float:
    """A Time (RFC 5280 section 4.1.2.5): two digits of the year stand for 1950 to 2049."""
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
