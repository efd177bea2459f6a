"""A small scene of `python -m tests.soak.convergence`: Python and JavaScript end equal, whatever the wire, the broker and the gateway do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.running import need
from tests.soak.convergence import Scene, play

if TYPE_CHECKING:
    from pathlib import Path


def test_every_observer_ends_with_what_the_gateway_holds(node: str, tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    scene = Scene(observers=6, objects=20, rate=300, seconds=7, restarts=1, kills=1, node=2)
    notes: list[str] = []
    result = play(scene, tmp_path, notes.append)
    assert (result["observers"], result["objects"]) == (8, 20)
    assert result["versions"] > 100
    assert result["events"] > 8 * 100
    assert result["messages_repeated"] > 10
    assert [note.split()[0] for note in notes[:2]] == ["broker", "gateway"]
