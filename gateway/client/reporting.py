"""One object's Reporter: what it has said, what it holds while there is no connection, and how that is sent at last."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import orjson

from gateway.client.errors import ClientError, NotConnectedError, RefusedError, UsageError
from gateway.client.inbox import Rejection
from gateway.client.payload import encode
from gateway.client.promise import Turn
from gateway.messages import instant, rfc3339
from gateway.patch import apply_patch, changed_paths, compose, diff, merge, merge_diff, same

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.client.core import Core

UNSURE = 100
"""States on their way that are remembered."""


class Reporting:
    """What one client reports of one object. `data` is what it has said last, whether it has arrived or waits."""

    def __init__(self, core: Core, topic: str, snapshot: dict[str, Any] | None = None) -> None:
        self.core = core
        self.topic = topic
        self.data: dict[str, Any] = {}
        self.schema: str | None = None
        self.known = False
        """Whether `data` is all of the object, and not only what was said here."""
        self.held = False
        """Whether the latest state waits for the connection."""
        self._base: dict[str, Any] = {}
        self._said: dict[str, Any] = {}
        self._held_at = 0.0
        self._under_way = 0
        self._unsure: list[dict[str, Any]] = []
        """States that were on their way when a connection was lost: whatever of them has arrived is this Reporter's own."""
        self._turn = Turn()
        if snapshot is not None:
            self.take(snapshot)

    @property
    def url(self) -> str:
        """The object URL."""
        return self.topic.replace("/", "://", 1)

    def take(self, snapshot: dict[str, Any]) -> None:
        """Go on from the object as the gateway has it."""
        self.data = self._base = snapshot["data"]
        self.schema = snapshot["schema"]
        self._said = {}
        self.known = True

    async def read(self) -> None:
        """Ask the gateway for the object. Raises as `request` does."""
        self.take(await self.core.request("read", {"resource": self.url}))

    # ---- saying something ----------------------------------------------------------------------------------------------

    async def report(self, change: dict[str, Any] | list[Any], *, confirm: bool = False) -> bool:
        """Say a merge patch (an object) or a JSON Patch (an array).

        True: the gateway (or a broker outside) has it; False: it waits for the connection. `confirm` asks for the gateway's own
        word, and nothing waits then. Raises RefusedError, NoAnswerError, PatchError (nothing is sent then), with `confirm` NotConnectedError.
        """
        payload = encode(change)
        change = orjson.loads(payload)
        core = self.core
        if confirm:
            form = "merge" if isinstance(change, dict) else "patch"
            await core.request("update", {"resource": self.url, form: change})
            self._apply(change)
            self._base = self.data
            return True
        at = core.wire.wall()
        if core.outbox is not None and (not core.connected or len(core.outbox)):
            self._apply(change)
            core.outbox.put(core.number(), self.topic, self._stamped(change, at))
            return False
        before, blind = self.data, isinstance(change, list) and not self.known
        if blind and (not core.connected or self.held):
            raise UsageError(
                f"{self.url}: a JSON Patch cannot wait for the connection before the object is known: send a merge patch, or begin with resume()"
            )
        self._apply(change)
        if not core.connected or self.held:
            self._hold(before, at)
            return False
        number, said = core.number(), self.data
        self._under_way += 1
        try:
            await core.report(self.topic, payload, number)
        except NotConnectedError:
            if blind and core.outbox is None:
                raise
            if core.outbox is not None:
                core.outbox.put(number, self.topic, self._stamped(change, at))
            else:
                self._unsure = [*self._unsure[-UNSURE:], said]
                self._hold(before, at)
            return False
        except RefusedError:
            # What has been said is not what the gateway has; with more under way, nobody knows yet what it will have.
            self.data = self._base
            self.known = self.known and self._under_way == 1
            raise
        finally:
            self._under_way -= 1
        self._base = self._applied(self._base, change)
        return True

    def _apply(self, change: dict[str, Any] | list[Any]) -> None:
        self.data = self._applied(self.data, change)
        if not self.known and isinstance(change, dict):
            self._said = compose(self._said, change)

    def _applied(self, data: dict[str, Any], change: dict[str, Any] | list[Any]) -> dict[str, Any]:
        if isinstance(change, dict):
            return merge(data, change)  # type: ignore[no-any-return]
        if not self.known:
            # Where it leads is found out when it is needed.
            return data
        return apply_patch(data, change)  # type: ignore[no-any-return]

    # ---- editing -------------------------------------------------------------------------------------------------------

    async def draft(self) -> dict[str, Any]:
        """A copy of data to change, for `commit`. Raises as `request` does where the object has to be read first."""
        await self._turn.take()
        try:
            if not self.known:
                await self.read()
        except BaseException:
            self._turn.give()
            raise
        return deepcopy(self.data)

    def abandon(self) -> None:
        """Nothing comes of a draft."""
        self._turn.give()

    async def commit(self, draft: dict[str, Any], *, confirm: bool = False) -> bool:
        """Report what a draft changes, in as few bytes as possible. Raises as `report` does; True where nothing has changed."""
        try:
            change = smallest(self.data, draft)
            return await self.report(change, confirm=confirm) if change else True
        finally:
            self._turn.give()

    # ---- waiting for the connection ------------------------------------------------------------------------------------

    @property
    def _is_context(self) -> bool:
        """Whether readings carry their own time here."""
        if self.schema is None:
            return self.topic.startswith("ctxt/")
        return self.schema.endswith("/Context")

    def _stamped(self, change: dict[str, Any] | list[Any], at: float) -> bytes:
        """A report as it waits in the queue: its readings say when they were true."""
        if isinstance(change, dict) and self._is_context and isinstance(change.get("values"), dict):
            when = rfc3339(int(at * 1000))
            values = {
                name: {**reading, "time": when}
                if isinstance(reading, dict) and "value" in reading and "time" not in reading
                else reading
                for name, reading in change["values"].items()
            }
            change = {**change, "values": values}
        return orjson.dumps(change)

    def _hold(self, before: dict[str, Any], at: float) -> None:
        """Keep the latest state until the connection is back; readings that are new say when they were true."""
        if self._is_context and isinstance(self.data.get("values"), dict):
            old = before.get("values")
            old = old if isinstance(old, dict) else {}
            when = rfc3339(int(at * 1000))
            times = {}
            for name, reading in self.data["values"].items():
                was = old.get(name)
                if reading is was or not isinstance(reading, dict) or "value" not in reading:
                    continue
                if reading.get("time") == (was.get("time") if isinstance(was, dict) else None):
                    times[name] = {"time": when}
            if times:
                self.data = merge(self.data, {"values": times})
                if not self.known:
                    self._said = compose(self._said, {"values": times})
        self.held = True
        self._held_at = at
        self.core.reporting[self.url] = self

    async def flush(self) -> None:
        """Send the latest state, unless something newer is there. Raises NotConnectedError; a refusal is told as a Rejection."""
        if not self.held:
            return
        try:
            await self._send_latest()
        except NotConnectedError:
            raise
        except RefusedError as error:
            if error.code in (429, 504, 507):
                self.core.flush_later()
                return
            self.core.dropped += 1
            self._give_up(RefusedError(error.code, error.description, resource=self.url, place=error.place))
        except ClientError:
            self.core.flush_later()

    def _give_up(self, error: RefusedError) -> None:
        self.held = False
        self.known = False
        self._said = {}
        self._unsure = []
        self.data = self._base
        self.core.reporting.pop(self.url, None)
        self.core.emit(Rejection(self.url, error.code, error.description, error.place))

    async def _send_latest(self) -> None:
        """Compare what the gateway has with what was said here, and report the difference."""
        core = self.core
        begun = wanted = self.data
        said, base, known = self._said, self._base, self.known
        missing = False
        try:
            snapshot = await core.request("read", {"resource": self.url})
        except RefusedError as error:
            if error.code not in (403, 404):
                raise
            # Not there, or not to be seen: a report creates it, or says why not.
            base, missing = {}, True
            snapshot = {"reporter": core.target.name, "data": {}, "schema": self.schema, "modified": ""}
        if snapshot["reporter"] != core.target.name:
            raise RefusedError(403, f"it is reported by {snapshot['reporter']!r} now; what was said offline is dropped")
        there = snapshot["data"]
        if not known:
            wanted, base = merge(there, said), there
        newer = (instant(snapshot["modified"]) or 0.0) > self._held_at
        result, left = rebase(base, wanted, there, newer=newer, own=self._unsure)
        if left:
            core.emit(
                Rejection(self.url, 409, f"changed elsewhere since: {', '.join(left[:10])} said offline is dropped")
            )
        change = smallest(there, result)
        if change or missing:
            await core.report(self.topic, orjson.dumps(change), core.number())
        self.schema = snapshot["schema"]
        latest, self.data = self.data, result
        self._base = result
        self.known = True
        self.held = False
        self._said = {}
        self._unsure = []
        core.reporting.pop(self.url, None)
        if latest is not begun:
            # More was said meanwhile: it follows as what it is, a report on top of that one.
            after, _ = rebase(begun, latest, result, newer=False)
            more = smallest(result, after)
            if more:
                await self.report(more)


def smallest(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any] | list[Any]:
    """The merge patch or the JSON Patch that makes `old` the same as `new`, whichever is shorter; empty where they are the same."""
    merging = merge_diff(old, new)
    if merging is not None and not merging:
        return merging
    patching = diff(old, new)
    if merging is not None and len(orjson.dumps(merging)) <= len(orjson.dumps(patching)):
        return merging
    return patching


def rebase(
    base: dict[str, Any],
    mine: dict[str, Any],
    there: dict[str, Any],
    *,
    newer: bool,
    own: Sequence[dict[str, Any]] = (),
) -> tuple[dict[str, Any], list[str]]:
    """What `there` is with the changes that lead from `base` to `mine`, and the paths of those left out.

    Left out is what was changed on the other side as well, where that is `newer` and not from one of one's `own` states; of two readings
    that carry their own times the younger one stays.
    """
    result = deepcopy(there)
    left = []
    for path in changed_paths(base, mine):
        keys = [key.replace("~1", "/").replace("~0", "~") for key in path.split("/")[1:]]
        if len(keys) > 2 and keys[0] == "values":
            keys = keys[:2]
        was, is_now, wants = _at(base, keys), _at(there, keys), _at(mine, keys)
        if (
            newer
            and not same(was, is_now)
            and not same(is_now, wants)
            and not _younger(wants, is_now)
            and not any(same(_at(each, keys), is_now) for each in own)
        ):
            left.append(path)
        else:
            _set(result, keys, wants)
    return result, left


_NOTHING = object()


def _at(data: Any, keys: list[str]) -> Any:
    for key in keys:
        if type(data) is not dict or key not in data:
            return _NOTHING
        data = data[key]
    return data


def _younger(mine: Any, other: Any) -> bool:
    """Whether a reading was true after another."""
    if not isinstance(mine, dict) or not isinstance(other, dict):
        return False
    ours, theirs = instant(mine.get("time")), instant(other.get("time"))
    return ours is not None and theirs is not None and ours > theirs


def _set(data: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        below = data.get(key)
        if type(below) is not dict:
            if value is _NOTHING:
                return
            below = data[key] = {}
        data = below
    if value is _NOTHING:
        data.pop(keys[-1], None)
    else:
        data[keys[-1]] = deepcopy(value)
