"""Judges what reporters and observers have written down: `python -m tests.history LOG…`, exit code 1 when something is wrong.

A log is a file of JSON lines; every line has `event`, the order of one actor's lines is the order in which things happened to it,
and one actor writes into one file. `at` (Unix seconds) may be on any line and is for people.

    {"event":"sent","reporter":"anna","id":17,"object":"ctxt/home.local/anna/a","append":["/values/log/value",17]}
    {"event":"sent","reporter":"anna","id":18,"object":"ctxt/home.local/anna/a","set":["/values/k18/value",18]}
        A report goes out, for the first time or (same id) again. `append` adds a value that is unique in its object to the array
        at the place (a JSON pointer into `data`), `set` puts a value there. Reports of one reporter are sent in the order of
        the first lines with their ids.
    {"event":"acknowledged","reporter":"anna","id":17,"reason":0}
        Its PUBACK; a reason of 128 or more refuses it.
    {"event":"received","observer":"bert","connection":3,"kind":"delta","object":"…","epoch":5,"version":9,"hash":"…"}
        A message as it arrived; `kind` is `snapshot`, `delta` or `tombstone`. Of a snapshot the hash is `state_hash` of its data and
        status, of a delta the SHA-256 of its payload, of a tombstone null.
    {"event":"holds","observer":"bert","connection":3,"object":"…","epoch":5,"version":9,"hash":"…"}
        The observer's copy from now on, by the Observer rule; the hash is null where the object is deleted.
    {"event":"final","object":"…","epoch":5,"version":9,"data":{…},"status":"live"}
        What the gateway holds at the end, read when everything had been acknowledged and all had come to rest.

What is found:

    lost        an acknowledged report's effect is not in the final state
    doubled     an appended value is there twice
    reordered   values of one reporter are not in the order in which they were sent
    invented    a value is there that nobody sent, or that was refused
    fork        one (epoch, version) of an object with two different hashes, from whichever observer
    back        an observer's copy went to a smaller (epoch, version)
    unhealed    at the end an observer's copy is not what the gateway holds, or older than what the observer has been told of
    forgotten   a later epoch shows a smaller version, or another state under the same version, than an earlier one has shown:
                something visible was not stored (not looked for with --restored: a restored older store may do that)
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Position = tuple[int, int]
Line = dict[str, Any]


class LogError(CtxtError):
    """A line that is not what the format says."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that must not be: its kind (see above), the object's topic, and the facts."""

    kind: str
    about: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.about}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """Everything that was found, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def kinds(self) -> set[str]:
        """The kinds of what was found."""
        return {finding.kind for finding in self.findings}


def state_hash(data: Any, status: str) -> str:
    """SHA-256 (hex) of the canonical JSON of data and status: sorted keys, no spaces."""
    return hashlib.sha256(orjson.dumps([data, status], option=orjson.OPT_SORT_KEYS)).hexdigest()


def payload_hash(payload: bytes) -> str:
    """SHA-256 (hex) of a delta as it arrived."""
    return hashlib.sha256(payload).hexdigest()


def at_pointer(document: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901), or None where there is none."""
    for token in pointer.split("/")[1:]:
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(token)
        elif isinstance(document, list) and token.isdecimal() and int(token) < len(document):
            document = document[int(token)]
        else:
            return None
    return document


@dataclass(slots=True)
class _Sent:
    reporter: str
    about: str
    kind: str
    place: str
    value: Any
    reason: int | None = None


class Judge:
    """Takes in all lines, then says what was wrong."""

    def __init__(self, *, restored: bool = False) -> None:
        self._restored = restored
        self._verdict = Verdict()
        self._sent: dict[tuple[str, Any], _Sent] = {}
        self._final: dict[str, Line] = {}
        self._states: dict[tuple[str, Position], dict[str | None, str]] = defaultdict(dict)
        self._deltas: dict[tuple[str, Position], dict[str | None, str]] = defaultdict(dict)
        self._held: dict[tuple[str, str], tuple[Position, str | None]] = {}
        self._told: dict[tuple[str, str], Position] = {}

    def take(self, line: Line) -> None:
        """One line. Raises LogError."""
        try:
            event = line["event"]
            self._verdict.counts[event] += 1
            if event == "sent":
                self._take_sent(line)
            elif event == "acknowledged":
                sent = self._sent[line["reporter"], line["id"]]
                # A report may be acknowledged again when it was sent again: what was promised once stays promised.
                sent.reason = line["reason"] if sent.reason is None else min(sent.reason, line["reason"])
            elif event == "received":
                self._take_received(line)
            elif event == "holds":
                self._take_holds(line)
            elif event == "final":
                self._final[line["object"]] = line
            else:
                raise LogError(f"unknown event {event!r}")
        except (KeyError, TypeError, ValueError) as error:
            raise LogError(f"{error!r} in {line!r}") from error

    def _find(self, kind: str, about: str, text: str) -> None:
        self._verdict.findings.append(Finding(kind, about, text))

    def _take_sent(self, line: Line) -> None:
        key = line["reporter"], line["id"]
        if key in self._sent:
            self._verdict.counts["sent again"] += 1
            return
        kind = "append" if "append" in line else "set"
        place, value = line[kind]
        self._sent[key] = _Sent(line["reporter"], line["object"], kind, place, value)

    def _take_received(self, line: Line) -> None:
        about, position = line["object"], (line["epoch"], line["version"])
        who = line["observer"]
        table = self._deltas if line["kind"] == "delta" else self._states
        self._one(table, about, position, line["hash"], who, line["kind"])
        self._told[who, about] = max(self._told.get((who, about), (0, 0)), position)

    def _take_holds(self, line: Line) -> None:
        about, position, digest = line["object"], (line["epoch"], line["version"]), line["hash"]
        who = line["observer"]
        self._one(self._states, about, position, digest, who, "copy")
        before = self._held.get((who, about))
        if before is not None and position < before[0]:
            self._find("back", about, f"{who} went from {before[0]} to {position}")
        self._held[who, about] = (position, digest)

    def _one(
        self,
        table: dict[tuple[str, Position], dict[str | None, str]],
        about: str,
        position: Position,
        digest: str | None,
        who: str,
        kind: str,
    ) -> None:
        """Nothing may be two things at one position."""
        seen = table[about, position]
        if digest not in seen:
            if seen:
                others = ", ".join(f"{str(other)[:12]} ({source})" for other, source in seen.items())
                self._find("fork", about, f"{position} is {str(digest)[:12]} ({who}, {kind}) and {others}")
            seen[digest] = f"{who}, {kind}"

    def verdict(self) -> Verdict:
        """What was wrong. Call once, after all lines."""
        self._judge_reports()
        self._judge_observers()
        if not self._restored:
            self._judge_epochs()
        return self._verdict

    def _judge_reports(self) -> None:
        arrays: dict[tuple[str, str], list[_Sent]] = defaultdict(list)
        members: dict[tuple[str, str], list[_Sent]] = defaultdict(list)
        for sent in self._sent.values():
            (arrays if sent.kind == "append" else members)[sent.about, sent.place].append(sent)
            if sent.reason is not None and sent.reason < 0x80:
                self._verdict.counts["promised"] += 1
        for (about, place), appended in arrays.items():
            self._judge_array(about, place, appended)
        for (about, place), put in members.items():
            self._judge_member(about, place, put)

    def _data(self, about: str) -> Any:
        final = self._final.get(about)
        return None if final is None else final["data"]

    def _judge_array(self, about: str, place: str, appended: list[_Sent]) -> None:
        found = at_pointer(self._data(about), place)
        values = found if isinstance(found, list) else []
        order = {_key(sent.value): i for i, sent in enumerate(appended)}
        if len(order) != len(appended):
            raise LogError(f"{about}{place}: the appended values are not unique, so nothing can be said about doubling")
        there = Counter(map(_key, values))
        for sent in appended:
            count = there[_key(sent.value)]
            promised = sent.reason is not None and sent.reason < 0x80
            if promised and not count:
                self._find("lost", about, f"{sent.value!r} of {sent.reporter} was acknowledged and is not at {place}")
            if count > 1:
                self._find("doubled", about, f"{sent.value!r} of {sent.reporter} is {count} times at {place}")
            if count and sent.reason is not None and not promised:
                self._find("invented", about, f"{sent.value!r} of {sent.reporter} was refused and is at {place}")
        last: dict[str, int] = {}
        for value in values:
            at = order.get(_key(value))
            if at is None:
                self._find("invented", about, f"{value!r} is at {place}, and nobody sent it")
                continue
            reporter = appended[at].reporter
            if there[_key(value)] > 1:
                continue
            if at < last.get(reporter, -1):
                self._find("reordered", about, f"{value!r} of {reporter} comes after what was sent later at {place}")
            last[reporter] = max(at, last.get(reporter, -1))

    def _judge_member(self, about: str, place: str, put: list[_Sent]) -> None:
        value = at_pointer(self._data(about), place)
        promised = [i for i, sent in enumerate(put) if sent.reason is not None and sent.reason < 0x80]
        possible = [
            sent for sent in put[promised[-1] if promised else 0 :] if sent.reason is None or sent.reason < 0x80
        ]
        if any(_key(sent.value) == _key(value) for sent in possible):
            return
        if promised:
            sent = put[promised[-1]]
            self._find("lost", about, f"{sent.value!r} of {sent.reporter} was acknowledged, at {place} is {value!r}")
        elif value is not None:
            self._find("invented", about, f"{value!r} is at {place}, and nobody sent it or it was refused")

    def _judge_observers(self) -> None:
        for (who, about), told in self._told.items():
            held = self._held.get((who, about))
            if held is None or held[0] < told:
                self._find("unhealed", about, f"{who} was told of {told} and holds {held and held[0]}")
        for (who, about), (position, digest) in self._held.items():
            final = self._final.get(about)
            if final is None:
                if digest is not None:
                    self._find("unhealed", about, f"{who} holds {position} of what is not there at the end")
                continue
            there = (final["epoch"], final["version"])
            if position != there:
                self._find("unhealed", about, f"{who} holds {position}, the gateway {there}")
            elif digest != state_hash(final["data"], final["status"]):
                self._find("fork", about, f"{position} is {str(digest)[:12]} for {who} and another one at the end")

    def _judge_epochs(self) -> None:
        shown: dict[str, list[tuple[Position, str | None]]] = defaultdict(list)
        for (about, position), digests in self._states.items():
            shown[about] += [(position, digest) for digest in digests]
        for about, position in self._deltas:
            shown[about].append((position, ""))
        for about, states in shown.items():
            newest = 0
            epoch = 0
            by_version: dict[int, tuple[int, str | None]] = {}
            # What an earlier epoch has shown at most counts, not what it has shown last.
            previous = 0
            for (its_epoch, version), digest in sorted(states, key=lambda state: state[0]):
                if its_epoch != epoch:
                    epoch, previous = its_epoch, newest
                if version < previous:
                    self._find("forgotten", about, f"epoch {epoch} shows version {version}, an earlier one {previous}")
                newest = max(newest, version)
                if digest == "":
                    continue
                first, shown_first = by_version.setdefault(version, (epoch, digest))
                if first != epoch and shown_first != digest:
                    self._find("forgotten", about, f"version {version} is another one in epoch {epoch} than before")


def _key(value: Any) -> bytes:
    """1, 1.0 and True are three values."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def check(lines: Iterable[Line], *, restored: bool = False) -> Verdict:
    """Judge the lines of all logs together, in any order of the logs. Raises LogError."""
    judge = Judge(restored=restored)
    for line in lines:
        judge.take(line)
    return judge.verdict()


def read(path: Path) -> Iterator[Line]:
    """The lines of one log. Raises LogError, OSError."""
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            try:
                line = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise LogError(f"{path}:{number}: not JSON: {error}") from None
            if not isinstance(line, dict):
                raise LogError(f"{path}:{number}: not an object")
            yield line


def main(arguments: list[str] | None = None) -> int:
    """0: nothing wrong; 1: findings; 2: logs that cannot be judged."""
    parser = argparse.ArgumentParser(prog="python -m tests.history", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG")
    parser.add_argument("--restored", action="store_true", help="an older store was put back in between")
    given = parser.parse_args(arguments)
    try:
        verdict = check((line for path in given.logs for line in read(path)), restored=given.restored)
    except (LogError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    for finding in verdict.findings[:200]:
        sys.stdout.write(f"{finding}\n")
    if len(verdict.findings) > 200:
        sys.stdout.write(f"… and {len(verdict.findings) - 200:,} more\n")
    counted = ", ".join(f"{count:,} {name}" for name, count in sorted(verdict.counts.items()))
    sys.stdout.write(f"{len(verdict.findings):,} findings in {counted or 'nothing'}\n")
    if not verdict.counts["final"] or not verdict.counts["promised"]:
        sys.stderr.write("error: there is nothing to judge: no final state, or no acknowledged report\n")
        return 2
    return 1 if verdict.findings else 0


if __name__ == "__main__":
    sys.exit(main())
