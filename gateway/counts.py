"""What is counted, for whoever watches the gateway: families of numbers with a name, a meaning and, most of them, one label. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Kind = Literal["counter", "gauge", "histogram"]


class Family(NamedTuple):
    """One metric as it is now. `samples`: label value -> number; one without a label has the single value "".

    A counter only grows while the gateway runs. A histogram's label is `le`, its samples are cumulative, `sum` is of all that
    was observed.
    """

    name: str
    kind: Kind
    help: str
    label: str
    samples: Mapping[str, float]
    sum: float | None = None

    def item(self) -> dict[str, Any]:
        """As JSON."""
        found: dict[str, Any] = {"name": self.name, "kind": self.kind, "help": self.help}
        if self.label:
            found |= {"label": self.label, "samples": dict(self.samples)}
        else:
            found["value"] = self.samples[""]
        if self.sum is not None:
            found["sum"] = self.sum
        return found


def counter(name: str, text: str, value: float) -> Family:
    """A number that only grows."""
    return Family(name, "counter", text, "", {"": value})


def counters(name: str, text: str, label: str, samples: Mapping[str, float]) -> Family:
    """Numbers that only grow, told apart by a label."""
    return Family(name, "counter", text, label, samples)


def gauges(name: str, text: str, label: str, samples: Mapping[str, float]) -> Family:
    """Numbers as they are now, told apart by a label."""
    return Family(name, "gauge", text, label, samples)


def gauge(name: str, text: str, value: float) -> Family:
    """A number as it is now."""
    return Family(name, "gauge", text, "", {"": value})


def by_reason(reasons: Mapping[int, int]) -> dict[str, float]:
    """Counts by MQTT reason code, written as in the standard: `0x8d`."""
    return {f"0x{reason:02x}": count for reason, count in sorted(reasons.items())}


class Histogram:
    """How many observed values were at most so large; `bounds` rise."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, *bounds: int) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0

    def add(self, value: int) -> None:
        """Count one."""
        self._sum += value
        at = 0
        for bound in self._bounds:
            if value <= bound:
                break
            at += 1
        self._counts[at] += 1

    def family(self, name: str, text: str) -> Family:
        """All of it as it is now."""
        samples: dict[str, float] = {}
        total = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            samples[bound] = total
        return Family(name, "histogram", text, "le", samples, self._sum)
