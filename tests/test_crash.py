"""`kill -9` at random moments: nothing acknowledged is lost, nothing is applied twice, no observer sees two things under one version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.crash import crash_gateway, go, run

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 5


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("durability", ["process", "power"])
def test_what_is_acknowledged_survives_kill_9_exactly_once(tmp_path: Path, durability: str) -> None:
    with crash_gateway(tmp_path, durability) as target:
        result = go(run(target, tmp_path, KILLS, seed=20_260_101))
        assert result.verdict.findings == []
        # It has really been killed in the midst of work, and its clients came back.
        assert result.refused == 0
        assert result.verdict.counts["promised"] == result.acknowledged > 100 * KILLS
        assert result.again > 0
        assert result.connections > 5 + 2 * KILLS
        assert result.epochs == sorted(set(result.epochs))
        assert len(result.epochs) == KILLS + 1
        assert target.stop() == 0
