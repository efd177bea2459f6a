from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.redelivery import CHUNK, Ring, mark_of


def stored(ring: Ring, chunks: dict[int, bytes]) -> dict[int, bytes]:
    chunks.update(ring.changes())
    return chunks


def test_a_message_is_found_by_packet_id_and_content() -> None:
    ring = Ring(64)
    ring.remember(7, mark_of("t", b"x"), 0)
    assert ring.find(7, mark_of("t", b"x")) == 0
    assert ring.find(7, mark_of("t", b"y")) is None
    assert ring.find(8, mark_of("t", b"x")) is None


def test_only_the_newest_use_of_a_packet_id_counts() -> None:
    ring = Ring(64)
    ring.remember(1, mark_of("t", b"old"), 0)
    ring.remember(1, mark_of("t", b"new"), 0x99)
    assert ring.find(1, mark_of("t", b"old")) is None
    assert ring.find(1, mark_of("t", b"new")) == 0x99


def test_the_oldest_is_forgotten_when_the_ring_is_full() -> None:
    ring = Ring(64)
    for packet_id in range(1, 66):
        ring.remember(packet_id, packet_id, 0)
    assert ring.find(1, 1) is None
    assert ring.find(2, 2) == 0
    assert ring.find(65, 65) == 0


def test_a_small_batch_rewrites_one_chunk() -> None:
    ring = Ring(512)
    for packet_id in range(1, 513):
        ring.remember(packet_id, packet_id, 0)
    assert len(list(ring.changes())) == 512 // CHUNK
    ring.remember(600, 1, 0)
    assert len(list(ring.changes())) == 1
    assert list(ring.changes()) == []


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 2**32 - 1), st.integers(0, 255)), max_size=400),
    st.sets(st.integers(0, 400), max_size=5),
)
def test_a_ring_is_restored_as_it_was_whenever_it_is_stored(
    entries: list[tuple[int, int, int]], commits: set[int]
) -> None:
    ring = Ring(128)
    chunks: dict[int, bytes] = {}
    for i, entry in enumerate(entries):
        ring.remember(*entry)
        if i in commits:
            stored(ring, chunks)
    again = Ring.restored(128, stored(ring, chunks))
    for packet_id, mark, _ in entries:
        assert again.find(packet_id, mark) == ring.find(packet_id, mark)
    again.remember(65_535, 1, 7)
    assert again.find(65_535, 1) == 7


def test_what_does_not_fit_begins_anew() -> None:
    ring = Ring(128)
    for packet_id in range(1, 129):
        ring.remember(packet_id, packet_id, 0)
    chunks = dict(ring.changes())
    assert Ring.restored(64, chunks).find(1, 1) is None
    assert Ring.restored(256, chunks).find(128, 128) == 0
    assert Ring.restored(128, {0: b"short"}).find(1, 1) is None
    assert Ring.restored(128, {1: chunks[1]}).find(100, 100) is None
