"""The judgement of a long run, with growth planted into samples; and a short run of it all."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.soak.__main__ import Plan, soak, summary
from tests.soak.verdict import MEBIBYTE, RETURNS, Bounds, Sample, grows, growth, left_behind, theil_sen
from tests.soak.watch import complaints

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOUNDS = Bounds(5 * MEBIBYTE, 5)
ZERO = Sample(*(0 for _ in Sample._fields))


def series(resident: Callable[[float], float], descriptors: Callable[[float], float] = lambda _: 40) -> list[Sample]:
    """An hour, a sample every five seconds. Memory in MiB."""
    return [
        ZERO._replace(at=at, resident=int(resident(at) * MEBIBYTE), descriptors=int(descriptors(at)))
        for at in (5.0 * number for number in range(721))
    ]


def test_a_steady_run_grows_by_nothing_however_much_it_shakes() -> None:
    dice = random.Random(1)
    shaking = series(lambda _: 100 + dice.uniform(-10, 10), lambda _: 40 + dice.randrange(20))
    assert grows("load", shaking, BOUNDS) == []
    assert abs(growth(shaking, "resident").added) < 2 * MEBIBYTE


def test_what_is_filled_in_the_first_half_is_no_growth() -> None:
    assert grows("load", series(lambda at: 60 + min(at, 1_700) / 10), BOUNDS) == []


def test_one_peak_is_no_growth() -> None:
    assert grows("load", series(lambda at: 300 if 3_000 < at < 3_500 else 100), BOUNDS) == []


def test_a_leak_of_memory_is_found_below_the_noise() -> None:
    dice = random.Random(2)
    leaking = series(lambda at: 100 + at * 12 / 3_600 + dice.uniform(-10, 10))
    (finding,) = grows("load", leaking, BOUNDS)
    assert finding.startswith("load: resident memory grew by ")
    assert 9 < growth(leaking, "resident").per_hour / MEBIBYTE < 15
    assert grows("load", leaking, Bounds(8 * MEBIBYTE, 5)) == []


def test_a_leak_of_descriptors_is_found() -> None:
    leaking = series(lambda _: 100, lambda at: 40 + at / 200)
    assert 16 < growth(leaking, "files").per_hour < 20
    (finding,) = grows("connects", leaking, BOUNDS)
    assert finding.startswith("connects: file descriptors other than clients' sockets grew by ")


def test_clients_that_are_there_are_no_leak_of_descriptors_until_they_should_have_gone() -> None:
    crowded = [
        each._replace(connections=int(each.at / 100)) for each in series(lambda _: 100, lambda at: 40 + int(at / 100))
    ]
    assert grows("connects", crowded, BOUNDS) == []
    assert len(left_behind(crowded[0], crowded[-1])) == 2


def test_the_slope_is_that_of_most_points() -> None:
    points = [(float(x), 3.0 * x + 7) for x in range(100)]
    assert theil_sen(points) == pytest.approx(3)
    assert theil_sen([(x, y if x % 5 else 1e9) for x, y in points]) == pytest.approx(3, rel=0.1)
    assert theil_sen([(float(x), 3.0 * x) for x in range(10_000)]) == pytest.approx(3)
    assert theil_sen(points[:1]) == 0.0
    assert theil_sen([]) == 0.0
    assert growth([], "resident").added == 0.0


@pytest.mark.parametrize("name", RETURNS)
def test_a_count_that_does_not_go_back_is_found(name: str) -> None:
    before = ZERO._replace(descriptors=20)
    assert left_behind(before, before._replace(descriptors=21, resident=10**9, rings=5)) == []
    (finding,) = left_behind(before, before._replace(**{name: 3}))
    assert finding == f"at the end: {name} is 3, it was 0"


def test_descriptors_left_open_are_found() -> None:
    before = ZERO._replace(descriptors=20)
    assert left_behind(before, before._replace(descriptors=22)) == [
        "at the end: 22 file descriptors are open, there were 20"
    ]


def test_errors_and_tracebacks_in_the_log_are_found() -> None:
    lines = [{"level": level, "message": level} for level in ("info", "warning", "error", "critical")]
    log = "\n".join(orjson.dumps(line).decode() for line in lines)
    assert [finding.partition('"message":')[2] for finding in complaints(log)] == ['"error"}', '"critical"}']
    assert complaints("Traceback (most recent call last):\n") == ["log: Traceback (most recent call last):"]
    assert complaints("") == []


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_twenty_seconds_of_everything_leave_nothing_behind(tmp_path: Path) -> None:
    # What is bounded is still being filled after so short a time: growth is judged in long runs only.
    plan = Plan(connects=300, at_once=50, minutes=20 / 60, seed=20_260_101, bounds=Bounds(1e12, 1e12))
    result = soak(tmp_path, plan)
    assert result.findings == []
    found = summary(result, plan)
    assert found["verdict"] == "holds"
    assert set(result.phases) == {"connects", "load"}
    counts = result.counts
    for name in ("acknowledged", "changes", "observers", "slow readers", "retained", "requests", "made and deleted"):
        assert counts[name] > 0, name
    assert counts["changes"] == counts["deltas"]
    assert counts["connects"] > 300
    assert counts["judged reports"] > 0
    numbers = result.gateway
    # It has really met what it should: refusals of each kind, take-overs, wills, drops.
    assert set(numbers["ctxt_reports_refused_total"]) >= {"403", "422"}
    assert numbers["ctxt_broker_connects_refused_total"].keys() >= {"0x86", "0x9f"}
    for name in ("takeovers", "wills", "malformed", "queued"):
        assert numbers[f"ctxt_broker_{name}_total"] > 0, name
    assert numbers["ctxt_broker_departures_total"]["lost"] > 0
    assert all(numbers["ctxt_broker_publishes_received_total"].values())
