"""MQTT topic names and filters: validity, matching, and which filter covers which. Pure.

Sources: MQTT 5 section 4.7 (topic names and filters), 4.8.2 (shared subscriptions).
"""

from __future__ import annotations

from typing import NamedTuple

MAX_TOPIC_BYTES = 65_535
MAX_LEVELS = 128
"""A topic deeper than this is refused: no object URL of 1,024 bytes needs it, and matching stays bounded."""


def valid_name(topic: str) -> bool:
    """Whether `topic` may be published to: not empty, no wildcard, no NUL, bounded [MQTT-4.7.1-1, MQTT-4.7.3-1..3]."""
    return (
        bool(topic)
        and "+" not in topic
        and "#" not in topic
        and "\0" not in topic
        and len(topic) <= MAX_TOPIC_BYTES
        and topic.count("/") < MAX_LEVELS
    )


def valid_filter(topic_filter: str) -> bool:
    """Whether `topic_filter` is well-formed: wildcards alone in their level, `#` last [MQTT-4.7.1-1..2]."""
    if not topic_filter or "\0" in topic_filter or len(topic_filter) > MAX_TOPIC_BYTES:
        return False
    levels = topic_filter.split("/")
    if len(levels) > MAX_LEVELS:
        return False
    last = len(levels) - 1
    for i, level in enumerate(levels):
        if "#" in level and (level != "#" or i != last):
            return False
        if "+" in level and level != "+":
            return False
    return True


class Share(NamedTuple):
    """A shared subscription taken apart: `$share/{name}/{filter}`."""

    name: str
    topic_filter: str


def split_share(topic_filter: str) -> Share | None:
    """The parts of a shared subscription, or None for an ordinary filter.

    Raises ValueError where it begins with `$share/` but has no proper name or filter [MQTT-4.8.2-1, MQTT-4.8.2-2].
    """
    if not topic_filter.startswith("$share/") and topic_filter != "$share":
        return None
    parts = topic_filter.split("/", 2)
    if len(parts) < 3 or not parts[1] or not parts[2] or "+" in parts[1] or "#" in parts[1]:
        raise ValueError(f"{topic_filter!r} is not a shared subscription: write $share/NAME/FILTER")
    return Share(parts[1], parts[2])


_SPELLED_OUT = {"#": "+/#", "/#": "/+/#"}
"""There is no empty topic, so these need one level more than `#` alone says."""


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a message on `topic` is wanted by `topic_filter`; `$…` topics only by filters that begin with `$` [MQTT-4.7.2-1]."""
    if topic[:1] == "$" and topic_filter[:1] in ("+", "#"):
        return False
    if topic_filter == topic:
        return True
    wanted = topic_filter.split("/")
    levels = topic.split("/")
    n = len(levels)
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i == n or (level not in ("+", levels[i])):
            return False
    return len(wanted) == n


def covers(granted: str, wanted: str) -> bool:
    """Whether every topic that `wanted` matches is matched by `granted` as well. Both are filters, neither shared."""
    if wanted[:1] == "$" and granted[:1] in ("+", "#"):
        return False
    have = granted.split("/")
    want = _SPELLED_OUT.get(wanted, wanted).split("/")
    n = len(want)
    for i, level in enumerate(have):
        if level == "#":
            # `a/#` matches `a` too, so it covers `a` and everything below it.
            return True
        if i == n:
            return False
        if want[i] == "#":
            return False
        if level != "+" and level != want[i]:
            return False
    return len(have) == n


def overlaps(one: str, other: str) -> bool:
    """Whether some topic is matched by both filters. Neither is shared."""
    if (one[:1] == "$" and other[:1] in ("+", "#")) or (other[:1] == "$" and one[:1] in ("+", "#")):
        return False
    a = _SPELLED_OUT.get(one, one).split("/")
    b = _SPELLED_OUT.get(other, other).split("/")
    for x, y in zip(a, b, strict=False):
        if x == "#" or y == "#":
            return True
        if x not in ("+", y) and y != "+":
            return False
    if len(a) == len(b):
        return True
    longer, n = (a, len(b)) if len(a) > len(b) else (b, len(a))
    return longer[n] == "#" and len(longer) == n + 1


# ---- brokers with characters of their own ----------------------------------------------------------------------------------

PLAIN = "-._~!&'()*,;=:@"
"""What stands as it is in an object's URL (RFC 3986): `%2E` in a topic can only come from the escape, `%20` from the URL too."""

KEPT = 10_000
LONGEST_KEPT = 1_200
"""Topics whose plain form is kept, and their characters."""


class Escape:
    """Characters that a broker gives a meaning of its own, percent-encoded in topics there (`[link] topic_escape`)."""

    def __init__(self, characters: str, prefix: str = "") -> None:
        """`prefix`: what all topics of this gateway begin with, its `/` too: that is known, and comes back as it is."""
        self._codes = [(each, f"%{ord(each):02X}") for each in characters]
        self._back = [(code, each) for each, code in self._codes if each in PLAIN]
        self._prefix = prefix
        self._head = self.escaped(prefix)
        self._known: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._codes)

    def escaped(self, topic: str) -> str:
        """A topic as it is on that broker."""
        for character, code in self._codes:
            topic = topic.replace(character, code)
        return topic

    def plain(self, topic: str) -> str:
        """A topic of that broker as it is in the gateway. What is percent-encoded in an object's URL stays so."""
        found = self._known.get(topic)
        if found is None:
            at_home = topic.startswith(self._head)
            found = topic[len(self._head) :] if at_home else topic
            for code, character in self._back:
                found = found.replace(code, character)
            if at_home:
                found = self._prefix + found
            if len(self._known) >= KEPT:
                self._known.clear()
            if len(topic) <= LONGEST_KEPT:
                self._known[topic] = found
        return found
