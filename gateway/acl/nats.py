"""nats-server 2.9 enforces the rights: its users' file, written anew at each change, and the proof that it goes by it.

How nats-server decides (measured, 2.9.10): a topic is a subject, `/` is `.`, `+` is `*`, `#` is `>`. It asks at PUBLISH and at
SUBSCRIBE, and a subscription is granted whole or refused; what is delivered is looked at for QoS 0 only. So nothing here rests on
its `deny` lists: each client has a list of what it may, and a filter that is wider than that is refused.

A reload checks every connection again, one by one, and closes those whose user is gone. It does not end a subscription at QoS 1
that is no longer allowed. Therefore each change is two versions of the file, each with a number of its own that lets the gateway
write on a topic of that number: in the first the users who lost something are missing, in the second they are back. nats-server
reads one after the other: when the gateway's own message on the second number comes back, the first is complete.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import bcrypt

from gateway.acl.files import MARK, Reload, own_password, read, replace
from gateway.acl.plugin import AclError
from gateway.counts import counter, gauge
from gateway.errors import CtxtError
from gateway.rights import ANONYMOUS, BELOW, OBSERVED, VERBS, with_children
from gateway.topics import covers, overlaps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.acl.plugin import Context
    from gateway.counts import Family
    from gateway.rights import Action, Permissions, Rights

NAME = "nats"

ROUNDS = 4
"""Of bcrypt, as a power of two: the fewest that it has. nats-server computes them for every connection at every reload."""

MOST_BYTES = 72
"""Of a password: bcrypt takes no more."""

DELIVERY = "$MQTT.sub.>"
"""Where nats-server delivers to subscriptions at QoS 1; it lets no MQTT client subscribe there itself."""

ESCAPED = ". *>"
"""What `link.topic_escape` has to have: these mean something else, or nothing, in a subject."""

CLOSED = ("$", "_")
"""What a first level may not begin with: nats-server's own subjects do."""

MANY = 20_000
"""Subjects of one user that are worth a warning."""

ASKED = 5.0
"""Seconds that nats-server may take to pass a message of the gateway on to itself."""

FIRST_ASKED = 0.2
"""Seconds until it is asked again; doubled each time."""

FIRST_LOOK, LONGEST_LOOK = 0.001, 0.1
"""Seconds between two attempts to find out whether it has read the file."""

SETTLE, LONGEST_SETTLE = 0.03, 1.0
"""Seconds after the proof in which it is still busy with the reload: who subscribes at QoS 1 then waits for 4 s, and is refused."""

NEVER, ALWAYS = "never", "always"
"""Below the gateway's own topic: what no version of the file lets it write, and what each does."""

TURNS = 8
"""Names of each kind. Whatever is published in the middle of a reload may be refused until the next one: 2.9 remembers what it found in a half-read list."""


def hashed(password: bytes) -> str:
    """A password as nats-server's users' file has it. Raises ValueError for one that bcrypt cannot take."""
    if len(password) > MOST_BYTES or b"\0" in password:
        raise ValueError(f"nats-server takes passwords of at most {MOST_BYTES} bytes without NUL")
    return bcrypt.hashpw(password, bcrypt.gensalt(ROUNDS)).decode()


def fits(password: bytes, entry: str) -> bool:
    """Whether `hashed` has made this entry from this password."""
    try:
        return bcrypt.checkpw(password, entry.encode())
    except ValueError:
        return False


class NatsAcl:
    """Keeps the users' file and sees to it that nats-server goes by it."""

    hashed = staticmethod(hashed)

    def __init__(self, context: Context) -> None:
        settings, link = context.settings.nats, context.settings.link
        self._rights = context.rights
        self._credentials = context.credentials
        self._echo = context.echo
        self._link = link
        self._file = settings.users_file or context.settings.state_dir / NAME / "users.conf"
        self._timeout = settings.timeout
        self._tell = Reload("nats-server", NAME, settings.pid_file, settings.reload_command, settings.timeout)
        if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", link.username) is None:
            raise AclError(
                f"acl.plugin is nats, and link.username is {link.username!r}: set it to the gateway's name there, of letters,"
                " digits, - and _"
            )
        missing = [each for each in ESCAPED if each not in link.topic_escape]
        if missing:
            raise AclError(f'acl.plugin is nats: set link.topic_escape = "{ESCAPED}", for a subject cannot have these')
        self._subjects = Subjects(link.topic_escape)
        self._id = context.settings.id
        self._number = 0
        self._turn = 0
        self._users: dict[str, User] = {}
        self._by_objects: set[str] = set()
        self._unheard: set[str] = set()
        self._kicked: set[str] = set()
        self._whole = True
        self._due = True
        self.reloads = 0
        self.seconds = 0.0
        self.kicks = 0

    # ---- the plugin ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Write the file and have nats-server read it; whether it does is seen when the link is there."""
        try:
            self._file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._number, self._users = parse(read(self._file))
            await self._compile(None)
            if self._due:
                await self._write(frozenset())
                if self._tell.known:
                    # It may not run yet, and reads the file when it does.
                    with suppress(AclError):
                        await self._tell()
        except OSError as error:
            raise AclError(f"cannot write {self._file}: {error.strerror or error}") from error

    async def joined(self) -> None:
        """Make sure that nats-server goes by the file."""
        if self._kicked or not await self._goes_by_it():
            await self._apply()
        self._due = False

    async def enforce(self, clients: frozenset[str] | None, _lost: frozenset[str]) -> None:
        """Write what is different, have it read, and return when nats-server goes by it."""
        await self._compile(None if clients is None else clients | self._by_objects)
        if self._due:
            await self._apply()
            self._due = False

    async def stop(self) -> None:
        """The file stays, with everybody in it."""
        if not self._whole:
            # Else it is done at the next start.
            with suppress(OSError, AclError):
                await self._write(frozenset())
                await self._tell()

    async def ask(self, _client: str, _action: Action, _topic: str) -> bool | None:
        """nats-server cannot be asked."""
        return None

    def warnings(self) -> Iterator[str]:
        """Clients that cannot log in at nats-server, users with very many subjects, what nobody gets there."""
        if self._unheard:
            some = ", ".join(sorted(self._unheard)[:5]) + (" …" if len(self._unheard) > 5 else "")
            yield (
                f"nats-server does not know the passwords of {len(self._unheard):,} clients ({some}), which were set when"
                " acl.plugin was another: `ctxt client passwd NAME` sets them again"
            )
        for name, user in self._users.items():
            if len(user.subscribe) > MANY:
                yield (
                    f"{name} has {len(user.subscribe):,} subjects in {self._file}: let namespaces not lie in one another, or"
                    " name it in an `observe` list instead of granting it objects one by one"
                )
        for rule in self._rights.rules:
            if self._subjects.of(rule.bound("x")) is None:
                yield (
                    f"[[topic]] {rule.topic_filter} opens nothing on nats-server: its first level must be a word that does not"
                    " begin with $ or _, and no level may be empty"
                )
        lists = [(f"namespace {found.match}", found.observe) for found in self._rights.namespaces]
        lists += [(f"topic {rule.topic_filter}", rule.read) for rule in self._rights.rules]
        for place, clients in lists:
            if ANONYMOUS in clients.names:
                yield f"{place} names {ANONYMOUS}, but nats-server admits nobody without a name"

    def families(self) -> Iterator[Family]:
        """What is counted here."""
        yield counter(
            "ctxt_acl_reloads_total",
            "Times that the broker outside has read the files of the rights again.",
            self.reloads,
        )
        yield counter("ctxt_acl_reload_seconds_total", "Seconds until it went by them.", self.seconds)
        yield counter(
            "ctxt_acl_kicks_total", "Clients whose connections were closed for what they have lost.", self.kicks
        )
        counts = [len(user.subscribe) + len(user.publish) for user in self._users.values()]
        yield gauge("ctxt_acl_lines", "Lines of these files that are single clients'.", sum(counts))
        yield gauge("ctxt_acl_lines_most", "Those of the client that has most.", max(counts, default=0))

    # ---- users ---------------------------------------------------------------------------------------------------------

    async def _compile(self, clients: frozenset[str] | None) -> None:
        """Bring these clients (None: all) up to date; `_due` where any is different, `_kicked` those that have lost something."""
        barred = self._rights.barred
        entries = {name: entry for name, entry in self._credentials.entries(NAME).items() if name not in barred}
        self._unheard = {client.name for client in self._credentials.names() if not client.disabled} - entries.keys()
        own = self._link.username
        entries.pop(own, None)
        for gone in self._users.keys() - entries.keys() - {own}:
            # nats-server closes their connections itself.
            del self._users[gone]
            self._by_objects.discard(gone)
            self._due = True
        for name, entry in entries.items():
            before = self._users.get(name)
            if before is None or clients is None or name in clients:
                found, listed = user_of(name, entry, self._rights, self._subjects)
                (self._by_objects.add if listed else self._by_objects.discard)(name)
                if before is not None and lost(before.subscribe, found.subscribe):
                    self._kicked.add(name)
                # Thousands of clients: others have their turn.
                await asyncio.sleep(0)
            else:
                found = before._replace(password=entry)
            if found != before:
                self._users[name] = found
                self._due = True
        found = own_user(own, self._own_entry(), self._id, self._rights, self._subjects)
        if found != self._users.get(own):
            self._users[own] = found
            self._due = True

    def _own_entry(self) -> str:
        """The gateway's. One that fits stays as it is, so that a file with nothing new in it is the same file."""
        password = own_password(self._link, NAME)
        before = self._users.get(self._link.username)
        if before is not None and fits(password, before.password):
            return before.password
        try:
            return hashed(password)
        except ValueError as error:
            raise AclError(f"link.password_file {self._link.password_file}: {error}") from error

    async def _write(self, without: frozenset[str]) -> None:
        """The next version of the file. Raises OSError, AclError."""
        read(self._file)
        # Never a number that this nats-server may have seen, from a state folder that is gone by now.
        self._number = max(self._number + 1, int(time.time()))
        own = self._users[self._link.username]
        topic = f"{self._rights.prefix}replica/{self._id}/acl/"
        more = [self._subjects.one(f"{topic}{name}-{turn}") for name in (ALWAYS, self._number) for turn in range(TURNS)]
        users = {name: user for name, user in self._users.items() if name not in without}
        users[self._link.username] = own._replace(publish=(*own.publish, *more))
        self._whole = not without
        await asyncio.to_thread(lambda number: replace(self._file, render(users.values(), number)), self._number)

    # ---- nats-server ---------------------------------------------------------------------------------------------------

    async def _apply(self) -> None:
        """Both versions, one after the other; who has lost something is not in the first. Raises AclError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        kicked = frozenset(self._kicked)
        took = 0.0
        for without in (kicked, frozenset[str]()):
            try:
                await self._write(without)
            except OSError as error:
                raise AclError(f"cannot write {self._file}: {error.strerror or error}") from error
            took = await self._reload()
        self._kicked -= kicked
        await asyncio.sleep(min(max(SETTLE, 3 * took), LONGEST_SETTLE))
        self.kicks += len(kicked)
        self.seconds += loop.time() - began

    async def _reload(self) -> float:
        """Have it read the file, and wait until it goes by it: seconds. Raises AclError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if self._tell.known:
            await self._tell()
        pause = FIRST_LOOK
        while not await self._goes_by_it():
            if loop.time() - began > self._timeout:
                raise AclError(
                    f"nats-server does not go by version {self._number} of {self._file} after {self._timeout:g} s: "
                    + (
                        "see in its log why it does not read it, and whether its settings include it"
                        if self._tell.known
                        else "set nats.pid_file or nats.reload_command, so that it can be told to read it again"
                    )
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_LOOK)
        self.reloads += 1
        return loop.time() - began

    async def _goes_by_it(self) -> bool:
        """Whether nats-server lets the gateway write on what this version of the file opens, and on nothing else. Raises AclError."""
        if self._echo is None:
            raise AclError("it cannot be seen whether nats-server goes by its users' file: there is no link to it")
        left, patience = ASKED, FIRST_ASKED
        while True:
            self._turn = (self._turn + 1) % TURNS
            number, always = f"{self._number}-{self._turn}", f"{ALWAYS}-{self._turn}"
            try:
                heard = await self._echo((NEVER, number, always), min(patience, left))
                break
            except CtxtError as error:
                # In the middle of a reload it refuses for a moment what both versions allow.
                left, patience = left - patience, patience * 2
                if left <= 0:
                    raise AclError(f"it cannot be seen whether nats-server goes by its users' file: {error}") from error
        return NEVER not in heard and number in heard


# ---- subjects --------------------------------------------------------------------------------------------------------------


class Subjects:
    """MQTT filters as nats-server's subjects, escaped as the link does it."""

    def __init__(self, escape: str) -> None:
        self._codes = str.maketrans({each: f"%{ord(each):02X}" for each in escape})

    def of(self, topic_filter: str) -> tuple[str, ...] | None:
        """The subjects that a filter matches; None where no subject says that.

        `a/#` matches `a` too [MQTT-4.7.1-2] and `a.>` does not, while `a/+/#` is `a.>`. A wildcard first would open nats-server's
        own subjects, which `#` does not match in MQTT [MQTT-4.7.2-1] and `>` does.
        """
        levels = topic_filter.split("/")
        first = levels[0]
        if not first or first.startswith(CLOSED) or first in ("+", "#"):
            return None
        if levels[-1] == "#":
            if levels[-2] == "+":
                return self._joined([*levels[:-2], "#"])
            both = self._joined(levels[:-1]), self._joined(levels)
            return None if None in both else (*both[0], *both[1])  # type: ignore[misc]
        return self._joined(levels)

    def one(self, topic: str) -> str:
        """The subject of a topic of ours."""
        found = self.of(topic)
        assert found is not None
        return found[0]

    def _joined(self, levels: list[str]) -> tuple[str] | None:
        parts = []
        for level in levels:
            part = {"+": "*", "#": ">"}.get(level) or level.translate(self._codes)
            # Whatever the escapes are, a level is one part of a subject.
            literal = level not in ("+", "#")
            if not part or (literal and (part in "*>" or any(each <= " " or each in ".\x7f" for each in part))):
                return None
            parts.append(part)
        return (".".join(parts),)


class User(NamedTuple):
    """One user of the file."""

    name: str
    password: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def user_of(name: str, password: str, rights: Rights, subjects: Subjects) -> tuple[User, bool]:
    """What a client may, and whether single objects are named in it, so that new ones may have to be added."""
    mine = rights.permissions(name)
    receive, listed = readable(mine, rights, name)
    publish = _all(subjects, mine.publish)
    return User(name, password, publish, (*_all(subjects, receive), DELIVERY)), listed


def own_user(name: str, password: str, gateway_id: str, rights: Rights, subjects: Subjects) -> User:
    """The gateway's own user: what it must write and read, for its adapters too, and nothing else that is the clients'."""
    prefix, devices = rights.prefix, rights.devices
    both = [f"{prefix}{verb}/#" for verb in sorted(VERBS - {"gateway", "replica"})]
    both += [f"{prefix}gateway/+", f"{prefix}replica/{gateway_id}/mark"]
    subscribe = [*both, f"{prefix}replica/{gateway_id}/acl/+", *devices.reads]
    return User(name, password, _all(subjects, [*both, *devices.writes]), (*_all(subjects, subscribe), DELIVERY))


def _all(subjects: Subjects, filters: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for one in filters:
        found.update(dict.fromkeys(subjects.of(one) or ()))
    return tuple(found)


def readable(mine: Permissions, rights: Rights, name: str) -> tuple[list[str], bool]:
    """The filters that nats-server may be given, and whether objects are named one by one in them.

    Two kinds are replaced by the objects that they match and that the client may read. One that a hole overlaps: what `deny` says
    is not kept to at QoS 1, nor for what is retained. And `a/+` where `a` may be read as well: nats-server takes `a.*` for a
    permission to subscribe to `a.>`, which an MQTT client can do where `a` itself is open to it.
    """
    receive = list(mine.receive)
    # Of what is denied only that matters which something can be in.
    holes = [hole for hole in mine.deny if any(overlaps(hole, each) for each in mine.closed)]
    parts = [one for one in receive if not _of_one(one) and any(overlaps(hole, one) for hole in holes)]
    kept: dict[str, None] = dict.fromkeys(one for one in receive if one not in parts)
    listed = mine.listed or bool(parts)
    while True:
        for one in parts:
            kept.update(dict.fromkeys(_objects(one, rights, name)))
        parts = [one for one in kept if one.endswith("/+") and _too_much(one, kept)]
        if not parts:
            return list(kept), listed
        for one in parts:
            del kept[one]
        listed = True


def _of_one(one: str) -> bool:
    """Whether a filter matches one object's children, and so nothing that is more closed than that object."""
    return one.endswith(BELOW) and "+" not in one.removesuffix(BELOW)


def _too_much(one: str, kept: Iterable[str]) -> bool:
    above, below = one[:-2], f"{one}/#"
    return any(overlaps(above, other) for other in kept) and not any(covers(other, below) for other in kept)


def _objects(one: str, rights: Rights, name: str) -> Iterator[str]:
    """Of a filter of objects' topics those that are there and may be read, with their children."""
    own = rights.own(one)
    verb, _, wanted = (own or "").partition("/")
    if verb not in OBSERVED:
        # A rule for other topics: nobody knows which there are.
        return
    head = f"{rights.prefix}{verb}/"
    for obj in rights.objects.matching(wanted.removesuffix(BELOW)):
        if obj is not None and rights.may_observe(name, obj.topic):
            yield from (head + each for each in with_children(obj))


def lost(before: Iterable[str], after: Iterable[str]) -> bool:
    """Whether something could be subscribed to before and cannot now."""
    now = set(after)
    filters = [_filter(subject) for subject in now]
    return any(subject not in now and not any(covers(one, _filter(subject)) for one in filters) for subject in before)


def _filter(subject: str) -> str:
    return "/".join({"*": "+", ">": "+/#"}.get(token, token) for token in subject.split("."))


# ---- the file --------------------------------------------------------------------------------------------------------------


def render(users: Iterable[User], number: int) -> str:
    """The users' file: what nats-server reads is close enough to JSON."""
    lines = []
    for user in sorted(users):
        # An empty list would mean everything.
        assert user.publish
        assert user.subscribe
        entry = {
            "user": user.name,
            "password": user.password,
            "permissions": {"publish": {"allow": user.publish}, "subscribe": {"allow": user.subscribe}},
            "allowed_connection_types": ["MQTT"],
        }
        lines.append(json.dumps(entry, ensure_ascii=False))
    return f"{MARK}\n# number {number}\n\nauthorization: {{users: [\n" + ",\n".join(lines) + "\n]}\n"


def parse(text: str) -> tuple[int, dict[str, User]]:
    """The number and the users of a file that `render` wrote; none of a line that it did not."""
    found = re.match(re.escape(MARK) + r"\n# number (\d{1,15})\n", text)
    users = {}
    for line in text.splitlines():
        if line.startswith('{"user"'):
            try:
                entry = json.loads(line.rstrip(","))
                may = entry["permissions"]
                lists = (tuple(map(str, may[each]["allow"])) for each in ("publish", "subscribe"))
                user = User(str(entry["user"]), str(entry["password"]), *lists)
            except (ValueError, KeyError, TypeError):
                continue
            users[user.name] = user
    return (int(found[1]) if found else 0), users
