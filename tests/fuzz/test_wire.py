"""Coverage-guided fuzzing, briefly; and what a length field may cost."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from gateway.broker.connection import Connection
from gateway.broker.house import Limits
from gateway.broker.server import Broker
from gateway.broker.websocket import WebSocket
from gateway.wire.errors import MalformedPacket
from gateway.wire.fields import LONGEST, variable
from tests.broker.world import TableHouse
from tests.fuzz import targets, wire
from tests.wire.strategies import reader

if TYPE_CHECKING:
    from pathlib import Path

MOST = 200_000
"""Bytes that a length field alone may cost."""


def test_nothing_is_found_in_a_few_seconds(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="pip install atheris (Linux on x86-64)")
    report = wire.fuzz(10, tmp_path)
    assert not report.findings, report.log[-8_000:]
    assert report.cases > len(list(wire.seeds())), report.log[-8_000:]
    assert report.edges > 1_000


def test_every_seed_passes_every_target() -> None:
    for data in wire.seeds():
        for target in range(targets.SOCKET_5 + 1):
            targets.run(bytes((target,)) + data[1:])


@pytest.mark.parametrize("level", [4, 5])
@pytest.mark.parametrize("first", [0x30, 0x82, 0xA2])
def test_an_announced_length_costs_a_decoder_nothing(level: int, first: int) -> None:
    largest = LONGEST - 10
    for maximum in (256, LONGEST):
        decoder = reader(level, max_packet=maximum)
        tracemalloc.start()
        try:
            decoder.feed(bytes((first,)) + variable(largest) + b"\xff\xff")
        except MalformedPacket:
            assert maximum == 256
        else:
            assert maximum == LONGEST
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST


@pytest.mark.parametrize("frame", [b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4), b"\x82\xfe\xff\xff" + bytes(4)])
def test_an_announced_length_costs_a_websocket_nothing(frame: bytes) -> None:
    loop = asyncio.new_event_loop()
    broker = Broker(TableHouse(), Limits())
    broker.loop = loop
    socket = WebSocket(broker, targets.LISTENER)
    wire_end = targets.Wire(loop, socket)
    socket.data_received(targets.UPGRADE)
    assert isinstance(socket._connection, Connection)
    tracemalloc.start()
    socket.data_received(frame)
    socket.data_received(b"\x10")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    wire_end.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert not wire_end.written.endswith(b"\x10")
    assert peak < MOST
