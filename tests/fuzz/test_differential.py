"""Our codec beside others', briefly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fuzz import differential

if TYPE_CHECKING:
    import pytest

    from gateway.wire.packets import Packet

COMPARED = ["mqtt5 server 5", "mqtt5 client 5", "paho client 4", "paho client 5", "gmqtt client 4", "gmqtt client 5"]
WRITTEN = ["mqtt5 writes 5", "paho writes 4", "paho writes 5", "gmqtt writes 4", "gmqtt writes 5"]


def test_what_others_read_and_write_alike_ours_reads_alike() -> None:
    report = differential.run(600)
    assert not report.findings
    for what in COMPARED + WRITTEN:
        assert report.compared[what] > 5, what


def test_a_decoder_that_misreads_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = differential.meaning

    def wrong(packet: Packet) -> differential.Meaning:
        found = right(packet)
        if found.get("reason"):
            found["reason"] = 0
        return found

    monkeypatch.setattr(differential, "meaning", wrong)
    report = differential.run(100)
    assert any("otherwise: reason" in what for what in report.findings)
