from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.redelivery import Ring, mark_of


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


def test_nothing_of_a_session_that_is_no_more_is_found_also_after_a_restart() -> None:
    ring, stored = Ring(8), Ring(8)
    for packet_id in range(1, 6):
        ring.remember(packet_id, packet_id * 10, 0)
    ring.void()
    ring.remember(3, 30, 0x99)
    stored.replay(*ring.fresh())
    for each in (ring, stored):
        assert [each.find(packet_id, packet_id * 10) for packet_id in range(1, 6)] == [None, None, 0x99, None, None]


def test_a_ring_in_which_nothing_holds_is_not_made_void_again() -> None:
    ring = Ring(8)
    ring.void()
    ring.remember(1, 10, 0)
    ring.void()
    ring.fresh()
    ring.void()
    assert ring.fresh()[1] == []


def test_what_is_fresh_is_told_once() -> None:
    ring = Ring(8)
    for packet_id in range(1, 4):
        ring.remember(packet_id, packet_id * 10, 0)
    assert ring.fresh() == (0, [1, 10, 0, 2, 20, 0, 3, 30, 0])
    ring.remember(4, 40, 0x99)
    assert ring.fresh() == (3, [4, 40, 0x99])
    assert ring.fresh() == (4, [])


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 2**32 - 1), st.integers(0, 255)), max_size=400),
    st.sets(st.integers(0, 400), max_size=8),
    st.integers(0, 8),
)
def test_a_ring_is_restored_from_any_dump_and_the_journal_since(
    entries: list[tuple[int, int, int]], commits: set[int], dumped_at: int
) -> None:
    ring = Ring(128)
    dump = ring.dump()
    journal = []
    for i, entry in enumerate(entries):
        ring.remember(*entry)
        if i in commits:
            journal.append(ring.fresh())
            if len(journal) == dumped_at:
                dump = ring.dump()
    journal.append(ring.fresh())
    again = Ring.restored(128, dump)
    for before, fresh in journal:
        again.replay(before, fresh)
    assert again.dump() == ring.dump()
    for packet_id, mark, _ in entries:
        assert again.find(packet_id, mark) == ring.find(packet_id, mark)


def test_what_does_not_fit_begins_anew() -> None:
    ring = Ring(128)
    for packet_id in range(1, 201):
        ring.remember(packet_id, packet_id, 0)
    dump = ring.dump()
    assert Ring.restored(128, dump).find(200, 200) == 0
    assert Ring.restored(64, dump).find(200, 200) is None
    assert Ring.restored(256, dump).find(200, 200) is None
    for broken in (b"", b"short", dump[:-1], dump + b"x"):
        assert Ring.restored(128, broken).dump() == Ring(128).dump()


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 255)), max_size=60),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_what_is_found_is_the_newest_of_what_is_held(
    length: int, entries: list[tuple[int, int, int]], packet_id: int, mark: int
) -> None:
    ring = Ring(length)
    for entry in entries:
        ring.remember(*entry)
    newest = next((entry for entry in reversed(entries[-length:]) if entry[0] == packet_id), None)
    assert ring.find(packet_id, mark) == (newest[2] if newest is not None and newest[1] == mark else None)
