"""Where the shipped data lies: JSON Schemas and configuration files, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

_ROOM = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `schemas` or `config`: inside the package when installed, beside it in a checkout.

    Raises FileNotFoundError when the installation is incomplete.
    """
    for place in (_ROOM / "data" / name, _ROOM.parent / name):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"the installation lacks its data folder {name!r}: install the package again")
