"""The judge of the logs finds what is planted, and nothing in what is clean."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history import Line, LogError, Verdict, check, main, payload_hash, state_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OBSERVERS = ("bert", "carl")
OBJECTS = ("ctxt/home.local/anna/a", "ctxt/home.local/anna/b")
LOG = "/values/log/value"

Step = tuple[str, int, bool]
steps = st.lists(
    st.tuples(st.sampled_from(["append", "set", "status", "crash", "miss", "again"]), st.integers(0, 1), st.booleans()),
    max_size=40,
)


class Gateway:
    """A gateway as it should be, with one reporter and two observers who write down what happens to them."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.epoch = 1
        self.version = dict.fromkeys(OBJECTS, 0)
        self.data: dict[str, Any] = {about: {"values": {"log": {"value": []}}} for about in OBJECTS}
        self.status = dict.fromkeys(OBJECTS, "live")
        self.count = 0
        self.open: list[tuple[Line, bool]] = []
        self.behind: set[tuple[str, str]] = set()
        self.connection = 1
        self.missing: set[str] = set()

    def report(self, kind: str, about: str, *, applied: bool, acknowledged: bool) -> None:
        self.count += 1
        n = self.count
        change = {"append": [LOG, n]} if kind == "append" else {"set": [f"/values/k{n % 3}/value", n]}
        line = {"event": "sent", "reporter": "anna", "id": n, "object": about, **change}
        self.lines.append(line)
        if self.open:
            # What was sent before is on its way still, and order is kept: this one waits behind it.
            self.open.append((line, False))
            return
        if applied:
            self.apply(line)
        if applied and acknowledged:
            self.acknowledge(line)
        else:
            self.open.append((line, applied))

    def apply(self, line: Line) -> None:
        about = line["object"]
        data = self.data[about] = copy.deepcopy(self.data[about])
        if "append" in line:
            data["values"]["log"]["value"].append(line["append"][1])
        else:
            place, value = line["set"]
            data["values"][place.split("/")[2]] = {"value": value}
        self.changed(about, orjson.dumps(line))

    def acknowledge(self, line: Line) -> None:
        self.lines.append({"event": "acknowledged", "reporter": "anna", "id": line["id"], "reason": 0})

    def changed(self, about: str, change: bytes) -> None:
        self.version[about] += 1
        for who in OBSERVERS:
            if who in self.missing:
                self.behind.add((who, about))
                continue
            self.received(who, about, "delta", payload_hash(change))
            if (who, about) not in self.behind:
                self.holds(who, about)

    def received(self, who: str, about: str, kind: str, digest: str) -> None:
        position = {"epoch": self.epoch, "version": self.version[about]}
        head = {"event": "received", "observer": who, "connection": self.connection, "kind": kind, "object": about}
        self.lines.append({**head, **position, "hash": digest})

    def holds(self, who: str, about: str) -> None:
        position = {"epoch": self.epoch, "version": self.version[about], "hash": self.hash(about)}
        self.lines.append(
            {"event": "holds", "observer": who, "connection": self.connection, "object": about, **position}
        )

    def hash(self, about: str) -> str:
        return state_hash(self.data[about], self.status[about])

    def snapshots(self) -> None:
        for who in OBSERVERS:
            for about in OBJECTS:
                self.received(who, about, "snapshot", self.hash(about))
                self.holds(who, about)
        self.behind.clear()

    def crash(self) -> None:
        self.epoch += 1
        self.connection += 1
        self.missing.clear()
        self.snapshots()
        self.resend()

    def resend(self) -> None:
        waiting, self.open = self.open, []
        for line, applied in waiting:
            self.lines.append(line)
            if not applied:
                self.apply(line)
            self.acknowledge(line)

    def end(self) -> list[Line]:
        self.resend()
        self.snapshots()
        for about in OBJECTS:
            self.lines.append(
                {
                    "event": "final",
                    "object": about,
                    "epoch": self.epoch,
                    "version": self.version[about],
                    "data": self.data[about],
                    "status": self.status[about],
                }
            )
        return self.lines


def history(plan: list[Step]) -> list[Line]:
    gateway = Gateway()
    for kind, which, flag in plan:
        about = OBJECTS[which]
        if kind in ("append", "set"):
            gateway.report(kind, about, applied=True, acknowledged=flag)
        elif kind == "again":
            gateway.report("append", about, applied=False, acknowledged=False)
        elif kind == "status":
            gateway.status[about] = "stale" if gateway.status[about] == "live" else "live"
            gateway.changed(about, b"%d" % gateway.version[about])
        elif kind == "miss":
            gateway.missing ^= {OBSERVERS[which]}
        else:
            gateway.crash()
    return gateway.end()


PLAN: list[Step] = [
    ("append", 0, True),
    ("append", 0, True),
    ("set", 1, True),
    ("append", 0, False),
    ("append", 0, True),
    ("crash", 0, True),
    ("append", 0, True),
    ("miss", 0, True),
    ("append", 0, True),
    ("set", 0, True),
]


def clean() -> list[Line]:
    return copy.deepcopy(history(PLAN))


def log(lines: list[Line]) -> list[int]:
    """The array at the end of the first object, to be tampered with."""
    final = next(line for line in lines if line["event"] == "final" and line["object"] == OBJECTS[0])
    values: list[int] = final["data"]["values"]["log"]["value"]
    return values


def settle(lines: list[Line]) -> Verdict:
    """Judge; whatever was done to the final state, observers are made to have seen the same."""
    for final in [line for line in lines if line["event"] == "final"]:
        digest = state_hash(final["data"], final["status"])
        for line in lines:
            # An earlier epoch may have shown the same version.
            if (
                line["event"] in ("holds", "received")
                and line.get("kind") != "delta"
                and (line["object"], line["version"]) == (final["object"], final["version"])
            ):
                line["hash"] = digest
    return check(lines)


def test_the_clean_history_is_clean_and_has_everything_in_it() -> None:
    verdict = check(clean())
    assert verdict.findings == []
    assert verdict.counts["promised"] == 8
    assert verdict.counts["sent again"] == 2
    assert verdict.counts["final"] == 2
    assert log(clean()) == [1, 2, 4, 5, 6, 7]


@given(steps)
@settings(deadline=None)
def test_no_history_of_a_gateway_as_it_should_be_is_blamed(plan: list[Step]) -> None:
    assert check(history(plan)).findings == []


@given(steps, st.data())
@settings(deadline=None)
def test_any_one_appended_value_taken_away_or_doubled_is_found(plan: list[Step], data: st.DataObject) -> None:
    lines = copy.deepcopy(history([*plan, ("append", 0, True)]))
    values = log(lines)
    at = data.draw(st.integers(0, len(values) - 1))
    if data.draw(st.booleans()):
        values.insert(data.draw(st.integers(0, len(values))), values[at])
        assert settle(lines).kinds() == {"doubled"}
    else:
        del values[at]
        assert settle(lines).kinds() == {"lost"}


def lose(lines: list[Line]) -> None:
    log(lines).remove(5)


def lose_a_member(lines: list[Line]) -> None:
    final = next(line for line in lines if line["event"] == "final" and line["object"] == OBJECTS[1])
    final["data"]["values"].pop("k0")


def lose_everything(lines: list[Line]) -> None:
    lines[:] = [line for line in lines if line["event"] in ("sent", "acknowledged")]


def double(lines: list[Line]) -> None:
    log(lines).insert(3, 2)


def swap(lines: list[Line]) -> None:
    values = log(lines)
    values[1], values[2] = values[2], values[1]


def invent(lines: list[Line]) -> None:
    log(lines).append(99)


def refuse(lines: list[Line]) -> None:
    next(line for line in lines if line["event"] == "acknowledged" and line["id"] == 6)["reason"] = 0x87


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (lose, "lost"),
        (lose_a_member, "lost"),
        (lose_everything, "lost"),
        (double, "doubled"),
        (swap, "reordered"),
        (invent, "invented"),
        (refuse, "invented"),
    ],
)
def test_what_is_wrong_with_the_reports_is_found(plant: Callable[[list[Line]], None], kind: str) -> None:
    lines = clean()
    plant(lines)
    assert settle(lines).kinds() == {kind}


def holds(lines: list[Line], who: str, number: int) -> int:
    """The place of an observer's holds line on the first object, counted from the end where negative."""
    places = [
        i
        for i, line in enumerate(lines)
        if line["event"] == "holds" and line["observer"] == who and line["object"] == OBJECTS[0]
    ]
    return places[number]


def test_a_fork_within_one_observer_is_found() -> None:
    lines = clean()
    at = holds(lines, "bert", 1)
    lines.insert(at + 1, {**lines[at], "hash": "f" * 64})
    assert "fork" in check(lines).kinds()


def test_a_fork_between_two_observers_is_found() -> None:
    lines = clean()
    lines[holds(lines, "carl", 1)]["hash"] = "f" * 64
    assert check(lines).kinds() == {"fork"}


def test_two_different_deltas_of_one_version_are_a_fork() -> None:
    lines = clean()
    next(line for line in lines if line["event"] == "received" and line["kind"] == "delta")["hash"] = "f" * 64
    assert check(lines).kinds() == {"fork"}


def test_a_snapshot_that_differs_from_the_copies_is_a_fork() -> None:
    lines = clean()
    last = [line for line in lines if line["event"] == "received" and line["kind"] == "snapshot"][-1]
    last["hash"] = "f" * 64
    assert "fork" in check(lines).kinds()


def test_all_observers_agreeing_on_what_the_gateway_does_not_hold_is_a_fork() -> None:
    lines = clean()
    log(lines)
    final = next(line for line in lines if line["event"] == "final")
    final["status"] = "stale"
    assert check(lines).kinds() == {"fork"}


def test_going_back_is_found() -> None:
    lines = clean()
    first, last = holds(lines, "bert", 0), holds(lines, "bert", -1)
    lines.insert(last, lines[first])
    assert check(lines).kinds() == {"back"}


def test_a_gap_that_is_not_healed_is_found() -> None:
    lines = clean()
    del lines[holds(lines, "bert", -1)]
    assert check(lines).kinds() == {"unhealed"}


def test_an_observer_who_never_held_what_it_was_told_of_is_found() -> None:
    lines = [line for line in clean() if line["event"] != "holds" or line["observer"] != "bert"]
    assert check(lines).kinds() == {"unhealed"}


def test_a_copy_of_what_is_not_there_at_the_end_is_found() -> None:
    lines = [line for line in clean() if line["event"] not in ("sent", "acknowledged", "final")]
    assert check(lines).kinds() == {"unhealed"}


def test_a_visible_version_that_a_restart_has_forgotten_is_found_unless_an_older_store_was_restored() -> None:
    lines = clean()
    shown = holds(lines, "bert", 1)
    lines.insert(shown + 1, {**lines[shown], "version": 900, "hash": "e" * 64})
    verdict = check(copy.deepcopy(lines))
    assert "forgotten" in verdict.kinds()
    assert "forgotten" not in check(lines, restored=True).kinds()


def test_another_state_under_a_version_that_an_earlier_epoch_has_shown_is_found() -> None:
    lines = clean()
    for line in lines:
        if line["event"] in ("holds", "received") and (line["epoch"], line["version"]) == (2, 3):
            line["hash"] = "e" * 64
    assert check(copy.deepcopy(lines)).kinds() == {"forgotten"}
    assert check(lines, restored=True).findings == []


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"event": "boom"},
        {"event": "sent", "reporter": "anna"},
        {"event": "acknowledged", "reporter": "anna", "id": 99, "reason": 0},
        {"event": "received", "observer": "x"},
        {"event": "holds", "object": 1},
    ],
)
def test_a_line_that_is_not_of_the_format_is_refused(line: Line) -> None:
    with pytest.raises(LogError):
        check([line])


def test_the_program_reads_files_and_says_so_in_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(name: str, lines: list[Line]) -> str:
        path = tmp_path / name
        path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        return str(path)

    lines = clean()
    reporter = [line for line in lines if line["event"] in ("sent", "acknowledged")]
    others = [line for line in lines if line["event"] not in ("sent", "acknowledged")]
    good = [write("reporter.log", reporter), write("others.log", others)]
    assert main(good) == 0
    assert "0 findings" in capsys.readouterr().out
    double(lines)
    assert main([write("bad.log", lines)]) == 1
    assert "doubled: ctxt/home.local/anna/a: 2 of anna is 2 times" in capsys.readouterr().out
    assert main([write("empty.log", [])]) == 2
    assert main([str(tmp_path / "absent.log")]) == 2
    (tmp_path / "broken.log").write_text('{"event":"sent"\n')
    assert main([str(tmp_path / "broken.log")]) == 2
    assert "broken.log:1" in capsys.readouterr().err
