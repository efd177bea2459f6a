"""`python -m tests.soak --connects 24000 --minutes 60`: does a gateway that works for long grow, lose, complain, or keep what it should let go?

First so many clients come and go; then a mixed load at half of the speed that it reaches in a short warm-up, with more guests beside it.
At last everybody leaves. Results go to standard output, progress to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import uvloop
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from gateway.errors import CtxtError
from tests.crash import PASSWORD
from tests.history import check, read
from tests.running import HOST, OWN_NAMESPACE, UNLIMITED, Gateway, free_port, gateway
from tests.soak import guests, load
from tests.soak.client import Place, SoakError
from tests.soak.verdict import MEBIBYTE, Bounds, Sample, grows, growth, left_behind
from tests.soak.watch import complaints, counted, look

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SETTINGS = """
requests_per_second = 100_000
request_burst = 1_000_000

[timing]
tombstone_ttl = 2
offline_grace = 1

[log]
format = "json"

[[topic]]
filter = "dialect/#"
write = ["*"]
read = ["*"]

[[listener]]
url = "ws://{host}:{web}/mqtt"
"""
"""Behind `[limits]`. What is deleted is soon gone, so that the end of the run can be like its beginning."""

NAMES = (*guests.NAMES, *load.NAMES)
WARM_UP = 10.0
"""Seconds, or a tenth of the load's time if that is shorter."""

SETTLE = 40.0
"""Seconds that counts may take to go back: kept sessions, wills and tombstones have their times."""

GUESTS_BESIDE = 20.0
"""Connects a second beside the load."""


class Helper:
    """A process of clients, and what it has told."""

    def __init__(self, main: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.done = False

    def look(self) -> None:
        """Take what it has told meanwhile. Raises SoakError when it has died."""
        try:
            while not self.done and self._pipe.poll():
                kind, value = self._pipe.recv()
                if kind == "counts":
                    self.counts = Counter(value)
                else:
                    self.problems = value
                    self.done = True
        except EOFError:
            raise SoakError(f"a process of clients died, exit code {self._process.exitcode}") from None

    def order(self, what: str | float) -> None:
        """`stop`, or a pace."""
        self._pipe.send(what)

    def close(self) -> None:
        """Wait for its end; a process that is not done is killed."""
        if not self.done:
            self._process.kill()
        self._process.join(10)
        self._pipe.close()


@contextlib.contextmanager
def helper(main: Callable[..., None], *arguments: Any) -> Iterator[Helper]:
    """A process of clients that is gone at the end."""
    made = Helper(main, *arguments)
    try:
        yield made
    finally:
        made.close()


class Plan(NamedTuple):
    """What to do."""

    connects: int
    at_once: int
    minutes: float
    seed: int
    bounds: Bounds


class Result(NamedTuple):
    """What a run has brought: `findings` is empty when all is well."""

    findings: list[str]
    phases: dict[str, list[Sample]]
    before: Sample
    after: Sample
    pace: float
    counts: Counter[str]
    gateway: dict[str, Any]


class Run:
    """One run against a running gateway."""

    def __init__(self, target: Gateway, place: Place, folder: Path, plan: Plan, told: Callable[[str], None]) -> None:
        self._target = target
        self._place = place
        self._folder = folder
        self._plan = plan
        self._told = told
        self._began = time.monotonic()
        self._findings: list[str] = []
        self._counts: Counter[str] = Counter()
        self._phases: dict[str, list[Sample]] = {}

    def whole(self) -> Result:
        """Everything. Raises SoakError, ControlError when the run itself does not work."""
        plan = self._plan
        self._welcome(guests.NAMES[:1])
        before = self._look()
        self._welcome(guests.NAMES)
        if plan.connects:
            self._connects()
        pace = self._load() if plan.minutes else 0.0
        self._told("everybody has left")
        self._welcome(NAMES)
        after = self._leave(before)
        self._findings += left_behind(before, after)
        for phase, samples in self._phases.items():
            self._findings += grows(phase, samples, plan.bounds)
        numbers = counted(self._target.state_dir)
        code = self._target.stop()
        if code:
            self._findings.append(f"the gateway ended with {code}")
        self._findings += complaints(self._target.errors())
        return Result(self._findings, self._phases, before, after, pace, self._counts, numbers)

    def _welcome(self, names: tuple[str, ...]) -> None:
        """Each logs in once, without a trace: passwords are known then, and nobody has to wait for a hash."""
        uvloop.run(load.clear(self._place, names))

    def _look(self) -> Sample:
        return look(self._target, self._began)

    def _watch(
        self, phase: str, helpers: list[Helper], seconds: float, every: float, text: Callable[[Sample], str]
    ) -> None:
        """Take samples until the time is over, or the first helper is done."""
        samples = self._phases.setdefault(phase, [])
        end = time.monotonic() + seconds
        due = 0.0
        while time.monotonic() < end and not helpers[0].done:
            if time.monotonic() >= due:
                due = time.monotonic() + every
                samples.append(self._look())
                self._told(text(samples[-1]))
            time.sleep(0.05)
            for each in helpers:
                each.look()

    def _finish(self, each: Helper) -> None:
        """Let a helper come to its end."""
        end = time.monotonic() + 120
        while not each.done:
            if time.monotonic() > end:
                raise SoakError("a process of clients does not end")
            time.sleep(0.05)
            each.look()
        self._findings += each.problems
        self._counts += each.counts

    def _connects(self) -> None:
        plan = self._plan
        with helper(guests.main, self._place, plan.connects, plan.at_once, 0.0, plan.seed) as visitors:
            self._watch(
                "connects",
                [visitors],
                86_400,
                0.5,
                lambda now: f"{visitors.counts['connects']:,} of {plan.connects:,} connects{_now(now)}",
            )
            self._finish(visitors)

    def _load(self) -> float:
        """The mixed load; its pace."""
        plan = self._plan
        seconds = plan.minutes * 60
        warm_up = min(WARM_UP, seconds / 10)
        with helper(load.main, self._place, self._folder, plan.seed + 1) as loading:
            self._told("warming up")
            while not loading.counts["acknowledged"]:
                time.sleep(0.05)
                loading.look()
            start, began = loading.counts["reports"], time.monotonic()
            self._watch("warm-up", [loading], warm_up + 1, 1.0, lambda now: f"warming up{_now(now)}")
            pace = max(100.0, (loading.counts["reports"] - start) / (time.monotonic() - began) / 2)
            loading.order(pace)
            with helper(guests.main, self._place, 0, plan.at_once, GUESTS_BESIDE, plan.seed + 2) as beside:
                end = time.monotonic() + seconds
                self._watch(
                    "load",
                    [loading, beside],
                    seconds,
                    min(5.0, max(0.2, seconds / 200)),
                    lambda now: (
                        f"{max(0.0, end - time.monotonic()) / 60:.1f} min left, {pace:,.0f} reports/s{_now(now)}"
                    ),
                )
                beside.order("stop")
                self._finish(beside)
            if not loading.done:
                loading.order("stop")
            self._finish(loading)
        del self._phases["warm-up"]
        logs = [self._folder / f"{name}.log" for name in ("anna", "vera", "final")]
        verdict = check(line for path in logs for line in read(path))
        self._findings += [str(finding) for finding in verdict.findings]
        self._counts["judged reports"] = verdict.counts["promised"]
        return pace

    def _leave(self, before: Sample) -> Sample:
        """Wait until the counts are what they were, or for as long as they may take."""
        end = time.monotonic() + SETTLE
        while left_behind(before, now := self._look()) and time.monotonic() < end:
            time.sleep(0.5)
        return now


def _now(sample: Sample) -> str:
    return f"; {sample.resident / MEBIBYTE:.1f} MiB, {sample.descriptors} descriptors, {sample.connected} connected, {sample.away} away"


def soak(folder: Path, plan: Plan, told: Callable[[str], None] = lambda _: None) -> Result:
    """Start a gateway in an empty folder, and do it. Raises CtxtError when the run itself does not work."""
    web = free_port()
    rest = OWN_NAMESPACE + "value_view = true\n" + UNLIMITED + SETTINGS.format(host=HOST, web=web)
    clients = dict.fromkeys(NAMES, PASSWORD)
    clients[guests.STRANGER] = PASSWORD
    with gateway(folder, rest=rest, clients=clients) as target:
        try:
            return Run(target, Place(target.port, web), folder, plan, told).whole()
        except CtxtError as error:
            raise SoakError(f"{error}\n{target.errors()}") from error


def summary(result: Result, plan: Plan) -> dict[str, Any]:
    """The figures of a run, for people and programs."""
    found: dict[str, Any] = {
        "verdict": "fails" if result.findings else "holds",
        "findings": result.findings,
        "seed": plan.seed,
        "clients": dict(sorted(result.counts.items())),
        "pace": round(result.pace),
    }
    for phase, samples in result.phases.items():
        first, last = samples[0], samples[-1]
        memory, descriptors = growth(samples, "resident"), growth(samples, "files")
        found[phase] = {
            "seconds": round(last.at - first.at, 1),
            "samples": len(samples),
            "resident_first": first.resident,
            "resident_last": last.resident,
            "resident_peak": max(sample.resident for sample in samples),
            "proportional_last": last.proportional,
            "resident_added_in_second_half": round(memory.added),
            "resident_per_hour": round(memory.per_hour),
            "descriptors_added_in_second_half": round(descriptors.added, 1),
            "descriptors_most": max(sample.descriptors for sample in samples),
            "threads_most": max(sample.threads for sample in samples),
            "cpu_share": round((last.cpu - first.cpu) / max(1e-9, last.at - first.at), 3),
            "state_bytes_first": first.state_bytes,
            "state_bytes_last": last.state_bytes,
        }
    found["before"], found["after"] = result.before._asdict(), result.after._asdict()
    found["gateway"] = result.gateway
    return found


def show(found: dict[str, Any]) -> None:
    """For people."""
    write = sys.stdout.write
    for finding in found["findings"][:100]:
        write(f"{finding}\n")
    write(", ".join(f"{count:,} {name}" for name, count in found["clients"].items()) + "\n")
    for phase in ("connects", "load"):
        if phase in found:
            one = found[phase]
            write(
                f"{phase}: {one['seconds']:,.0f} s, memory {one['resident_first'] / MEBIBYTE:.1f} to"
                f" {one['resident_last'] / MEBIBYTE:.1f} MiB (peak {one['resident_peak'] / MEBIBYTE:.1f}), in the second half"
                f" {one['resident_added_in_second_half'] / MEBIBYTE:+.2f} MiB, {one['descriptors_added_in_second_half']:+g} descriptors;"
                f" {one['threads_most']} threads, CPU {one['cpu_share']:.0%}, state folder {one['state_bytes_last'] / MEBIBYTE:.1f} MiB\n"
            )
    before, after = found["before"], found["after"]
    write(
        f"when all had left: memory {after['resident'] / MEBIBYTE:.1f} MiB (before {before['resident'] / MEBIBYTE:.1f}),"
        f" {after['descriptors']} descriptors (before {before['descriptors']})\n"
        f"{found['verdict']}: {len(found['findings']):,} findings (seed {found['seed']}, pace {found['pace']:,} reports/s)\n"
    )


def main() -> int:
    """0 when nothing was found, 1 for findings, 2 when the run itself did not work."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--connects", type=int, default=0, help="clients that come and go before the load")
    parser.add_argument("--at-once", type=int, default=100, help="guests that are there at a time, at most")
    parser.add_argument("--minutes", type=float, default=0.0, help="of mixed load")
    parser.add_argument(
        "--memory-bound", type=float, default=5.0, metavar="MiB", help="growth allowed in the second half of a phase"
    )
    parser.add_argument(
        "--descriptor-bound", type=float, default=5.0, metavar="N", help="likewise, of open file descriptors"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--keep", type=Path, help="a new folder for the gateway's log, state and samples; else they are thrown away"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    given = parser.parse_args()
    if not given.connects and not given.minutes:
        parser.error("say --connects, --minutes, or both")
    bounds = Bounds(given.memory_bound * MEBIBYTE, given.descriptor_bound)
    plan = Plan(given.connects, given.at_once, given.minutes, given.seed, bounds)
    with contextlib.ExitStack() as stack:
        folder = given.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ctxt-soak-")))
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty")
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        progress = stack.enter_context(
            Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1)
        )
        task = progress.add_task("starting")
        try:
            result = soak(folder, plan, lambda text: progress.update(task, description=text))
        except CtxtError as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        found = summary(result, plan)
        if given.keep is not None:
            samples = {phase: [each._asdict() for each in taken] for phase, taken in result.phases.items()}
            (folder / "samples.json").write_bytes(orjson.dumps(samples))
    if given.json:
        sys.stdout.write(orjson.dumps(found).decode() + "\n")
    else:
        show(found)
    return 1 if result.findings else 0


if __name__ == "__main__":
    sys.exit(main())
