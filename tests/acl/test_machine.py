"""Random grants, revocations, transfers, settings and reports against a model of the rights, on the broker inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acl.attacks import Site
from tests.acl.machine import NAMES, SETTINGS, Machine
from tests.inside import inside

if TYPE_CHECKING:
    from pathlib import Path

STEPS = 120


@pytest.mark.parametrize(("version", "qos"), [(5, 1), (4, 0)], ids=["v5-qos1", "v311-qos0"])
def test_nothing_forbidden_is_delivered_and_nothing_allowed_is_lost(tmp_path: Path, version: int, qos: int) -> None:
    with inside(tmp_path, SETTINGS, *NAMES, "alice") as gateway:
        site = Site(gateway, "inside", gateway.port, version)
        try:
            machine = Machine(site, gateway.path, seed=version, qos=qos)
            for _ in range(STEPS):
                machine.step()
        finally:
            site.close()
