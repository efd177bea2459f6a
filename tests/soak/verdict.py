"""What a run's samples say: whether memory or descriptors grow, and whether everything came back. Pure."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MEBIBYTE = 1 << 20
MOST_POINTS = 400
"""Samples that a slope is made of: their pairs grow with the square."""


class Sample(NamedTuple):
    """The gateway at one moment. `at` in seconds since the run began, `cpu` in seconds since the gateway did, memory in bytes."""

    at: float
    resident: int
    proportional: int
    descriptors: int
    connections: int
    threads: int
    cpu: float
    connected: int
    away: int
    subscriptions: int
    retained: int
    inflight: int
    queued: int
    queued_bytes: int
    objects: int
    tombstones: int
    rings: int
    state_bytes: int

    @property
    def files(self) -> int:
        """Descriptors that are no client's socket: how many clients are there at a moment is their own affair."""
        return self.descriptors - self.connections


RETURNS = (
    "connections",
    "connected",
    "away",
    "subscriptions",
    "retained",
    "inflight",
    "queued",
    "queued_bytes",
    "objects",
    "tombstones",
)
"""What is as it was before when everybody has left."""


SPARE_DESCRIPTORS = 1
"""Files that are opened when they are needed first, and stay open: the database once more, for its checkpoints."""


class Bounds(NamedTuple):
    """How much the second half of a run may add, by its slope: bytes resident, file descriptors."""

    resident: float
    descriptors: float


class Growth(NamedTuple):
    """What the second half of a run has added, by its slope; and the same for an hour."""

    added: float
    per_hour: float


def theil_sen(points: Sequence[tuple[float, float]]) -> float:
    """The median of the slopes of all pairs: up to three tenths of the points may be anywhere. 0 for fewer than two moments."""
    step = max(1, -(-len(points) // MOST_POINTS))
    points = points[::step]
    slopes = [
        (later - earlier) / (then - when)
        for i, (when, earlier) in enumerate(points)
        for then, later in points[i + 1 :]
        if then > when
    ]
    return median(slopes) if slopes else 0.0


def growth(samples: Sequence[Sample], field: str) -> Growth:
    """How a field grows over the second half of the time: the first one may fill what is bounded."""
    if not samples:
        return Growth(0.0, 0.0)
    middle = (samples[0].at + samples[-1].at) / 2
    half = [(sample.at, float(getattr(sample, field))) for sample in samples if sample.at >= middle]
    slope = theil_sen(half)
    return Growth(slope * (half[-1][0] - half[0][0]), slope * 3_600)


def grows(phase: str, samples: Sequence[Sample], bounds: Bounds) -> list[str]:
    """A sentence for memory and one for descriptors, where they grow beyond the bounds."""
    found = []
    memory, descriptors = growth(samples, "resident"), growth(samples, "files")
    if memory.added > bounds.resident:
        found.append(
            f"{phase}: resident memory grew by {memory.added / MEBIBYTE:.1f} MiB in the second half"
            f" ({memory.per_hour / MEBIBYTE:.1f} MiB an hour), at most {bounds.resident / MEBIBYTE:.1f} MiB are allowed"
        )
    if descriptors.added > bounds.descriptors:
        found.append(
            f"{phase}: file descriptors other than clients' sockets grew by {descriptors.added:.1f} in the second half"
            f" ({descriptors.per_hour:.1f} an hour), at most {bounds.descriptors:g} are allowed"
        )
    return found


def left_behind(before: Sample, after: Sample) -> list[str]:
    """A sentence for each count that has not gone back when everybody had left."""
    found = [
        f"at the end: {name} is {getattr(after, name):,}, it was {getattr(before, name):,}"
        for name in RETURNS
        if getattr(after, name) != getattr(before, name)
    ]
    if after.descriptors > before.descriptors + SPARE_DESCRIPTORS:
        found.append(f"at the end: {after.descriptors} file descriptors are open, there were {before.descriptors}")
    return found
