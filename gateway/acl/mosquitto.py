"""mosquitto 2.0 enforces the rights: its ACL and password files, written anew at each change, and the proof that it goes by them.

How mosquitto decides (security_default.c, and measured): a user's own section comes first, its `deny` lines before all others; then
the `pattern` lines, again `deny` first; what nothing allows is refused. It asks at each delivery, so a subscription may be as wide
as it likes. What everybody may is said once, in patterns; a user's section has what it may beyond, or may not.

mosquitto reads the files when it is sent SIGHUP. Each version of them has a number, and lets the gateway write on a topic of that
number: when its own message there comes back, mosquitto goes by that version. No version lets it write on `never`: a mosquitto that
could not read its ACL file at a SIGHUP lets everybody do everything (measured), and is found out by that, at the latest within `WATCH`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.acl.files import MARK, Reload, own_password, read, replace
from gateway.acl.plugin import AclError
from gateway.counts import counter, gauge
from gateway.errors import CtxtError
from gateway.objects import PUBLIC
from gateway.rights import OBSERVED, VERBS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from gateway.acl.plugin import Context
    from gateway.counts import Family
    from gateway.rights import Action, Permissions, Rights

NAME = "mosquitto"

ACL_FILE, PASSWORD_FILE = "acl", "passwd"

ITERATIONS = 1_000
"""Of PBKDF2: mosquitto_passwd takes 101. mosquitto stands still while it computes them, a millisecond for each log-in."""

SALT_BYTES = 12

MANY = 1_000
"""Lines of one user from which on each of its messages costs mosquitto more than everything else does."""

ASKED = 5.0
"""Seconds that mosquitto may take to pass a message of the gateway on to itself."""

WATCH = 30.0
"""Seconds between two looks whether mosquitto still goes by the rules: others may send it SIGHUP, log rotation does."""

NUDGE = 1.0
"""Seconds after which the file is touched again where mosquitto has not read it."""

FIRST_LOOK, LONGEST_LOOK = 0.001, 0.1
"""Seconds between two attempts to find out whether it has read the files."""

_log = logging.getLogger("gateway.acl")

_USER = "%u"
"""What a `pattern` line has in place of the client's name."""


def hashed(password: bytes, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """A password as mosquitto_passwd(1) writes it: PBKDF2 with HMAC-SHA512 (RFC 8018)."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    digest = hashlib.pbkdf2_hmac("sha512", password, salt, iterations)
    return f"$7${iterations}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def fits(password: bytes, entry: str) -> bool:
    """Whether `hashed` has made this entry from this password."""
    found = re.fullmatch(r"\$7\$(\d{1,7})\$([A-Za-z0-9+/]{4,88}={0,2})\$[A-Za-z0-9+/]{86}==", entry)
    if found is None:
        return False
    try:
        again = hashed(password, base64.b64decode(found[2], validate=True), int(found[1]))
    except ValueError:
        return False
    return hmac.compare_digest(again, entry)


class MosquittoAcl:
    """Keeps the two files and sees to it that mosquitto goes by them."""

    hashed = staticmethod(hashed)

    def __init__(self, context: Context) -> None:
        settings = context.settings.mosquitto
        self._rights = context.rights
        self._credentials = context.credentials
        self._echo = context.echo
        self._settings = settings
        self._link = context.settings.link
        if not self._link.username:
            raise AclError("acl.plugin is mosquitto: set link.username, for mosquitto knows the gateway by it")
        self._folder = settings.folder or context.settings.state_dir / NAME
        self._tell = Reload(NAME, NAME, settings.pid_file, settings.reload_command, settings.timeout)
        self._own = Own(self._link.username, context.settings.id, self._rights)
        self._number = 0
        self._base: Permissions | None = None
        self._sections: dict[str, str] = {}
        self._by_objects: set[str] = set()
        self._passwords = ""
        self._unheard: set[str] = set()
        self._due = True
        self._told: set[str] = set()
        self._open = False
        self._asking = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None
        self.enforced = False
        self.reloads = 0
        self.seconds = 0.0

    # ---- the plugin ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Write both files and have mosquitto read them; whether it does is seen when the link is there."""
        try:
            self._folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            before = self._present()
            self._number = max(before[0], 0)
            await self._compile(None)
            if (self._text(self._number), self._passwords) != before[1:]:
                await self._write()
                with suppress(AclError):
                    # It may not run yet, and reads the files when it does.
                    await self._tell()
        except OSError as error:
            raise AclError(f"cannot write mosquitto's files in {self._folder}: {error.strerror or error}") from error

    async def joined(self) -> None:
        """Make sure that mosquitto goes by the files."""
        if not await self._goes_by_it():
            await self._reload()
        self._due = False
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def enforce(self, clients: frozenset[str] | None, _lost: frozenset[str]) -> None:
        """Write what is different, have it read, and return when mosquitto goes by it."""
        if clients is not None:
            clients |= self._by_objects
        await self._compile(clients)
        if not self._due:
            return
        try:
            await self._write()
        except OSError as error:
            raise AclError(f"cannot write mosquitto's files in {self._folder}: {error.strerror or error}") from error
        await self._reload()
        self._due = False

    async def stop(self) -> None:
        """The files stay."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Look now and then whether mosquitto goes by the rules; have it read them again where it does not."""
        while True:
            await asyncio.sleep(WATCH)
            try:
                # While something is being changed that is looked at anyway.
                if not self._due and not await self._goes_by_it() and not self._due:
                    _log.error(
                        "mosquitto does not go by the rules any more: %s; it is told to read them again",
                        self._suspect(),
                    )
                    await self._reload()
            except AclError as error:
                _log.error("%s", error)

    async def ask(self, _client: str, _action: Action, _topic: str) -> bool | None:
        """Mosquitto cannot be asked."""
        return None

    def warnings(self) -> Iterator[str]:
        """Clients that cannot log in at mosquitto, users with very many lines, lists that name `anonymous`."""
        if self._unheard:
            some = ", ".join(sorted(self._unheard)[:5]) + (" …" if len(self._unheard) > 5 else "")
            yield (
                f"mosquitto does not know the passwords of {len(self._unheard):,} clients ({some}), which were set when acl.plugin"
                " was another: `ctxt client passwd NAME` sets them again"
            )
        for name, section in self._sections.items():
            count = section.count("\n")
            if count > MANY:
                yield (
                    f"mosquitto goes through {count:,} lines for each message to {name}: let an `observe` list or a group name it"
                    " instead of granting it objects one by one"
                )
        lists = [(f"namespace {found.match}", found.observe) for found in self._rights.namespaces]
        lists += [(f"topic {rule.topic_filter}", rule.read) for rule in self._rights.rules]
        for place, clients in lists:
            if "anonymous" in clients.names:
                yield f"{place} names anonymous, but mosquitto gives clients without a name nothing"

    def families(self) -> Iterator[Family]:
        """What is counted here."""
        yield gauge(
            "ctxt_acl_enforced", "Whether mosquitto was seen going by the rules last: 1 or 0.", int(self.enforced)
        )
        yield counter(
            "ctxt_acl_reloads_total",
            "Times that the broker outside has read the files of the rights again.",
            self.reloads,
        )
        yield counter("ctxt_acl_reload_seconds_total", "Seconds until it went by them.", self.seconds)
        lines = [section.count("\n") for section in self._sections.values()]
        yield gauge("ctxt_acl_lines", "Lines of these files that are single clients'.", sum(lines))
        yield gauge("ctxt_acl_lines_most", "Those of the client that has most.", max(lines, default=0))

    # ---- rules ---------------------------------------------------------------------------------------------------------

    async def _compile(self, clients: frozenset[str] | None) -> None:
        """Bring the rules of these clients (None: of all) up to date; `_due` where any is different. Raises AclError."""
        rights = self._rights
        base = rights.permissions(_USER)
        if base != self._base:
            self._base = base
            self._due = True
            clients = None
        known = self._known()
        for gone in self._sections.keys() - known:
            del self._sections[gone]
            self._due = True
        self._by_objects &= known
        for name in known if clients is None else clients & known:
            section, listed = section_of(name, rights.permissions(name), base, barred=name in rights.barred)
            if listed:
                self._by_objects.add(name)
            else:
                self._by_objects.discard(name)
            if section != self._sections.get(name, ""):
                self._due = True
                self._sections[name] = section
                self._say(name, section.count("\n"))
            # Thousands of clients: others have their turn.
            await asyncio.sleep(0)
        passwords = self._entries()
        if passwords != self._passwords:
            self._passwords = passwords
            self._due = True

    def _known(self) -> set[str]:
        """Everybody of whom something in particular may have to be said."""
        rights = self._rights
        known = {client.name for client in self._credentials.names()}
        for found in rights.namespaces:
            known |= found.observe.names
        for rule in rights.rules:
            known |= rule.read.names | rule.write.names
        known |= rights.statistics.names
        known.update(rights.objects.reporters(), rights.objects.grantees(), rights.barred)
        return known - {"anonymous", PUBLIC, self._own.name}

    def _say(self, name: str, count: int) -> None:
        if count > MANY and name not in self._told:
            self._told.add(name)
            _log.warning(
                "mosquitto goes through %s lines for each message to %s: let an `observe` list or a group name it",
                f"{count:,}",
                name,
            )

    def _entries(self) -> str:
        """Mosquitto's password file."""
        entries = self._credentials.entries(NAME)
        self._unheard = {client.name for client in self._credentials.names() if not client.disabled} - entries.keys()
        entries[self._own.name] = self._own_entry()
        return f"{MARK}\n" + "".join(f"{name}:{entry}\n" for name, entry in sorted(entries.items()))

    def _own_entry(self) -> str:
        """The gateway's. One that fits stays as it is, so that a file with nothing new in it is the same file."""
        password = own_password(self._link, NAME)
        for line in (self._passwords or self._present()[2]).splitlines():
            name, _, entry = line.partition(":")
            if name == self._own.name and fits(password, entry):
                return entry
        return hashed(password)

    def _text(self, number: int) -> str:
        """Mosquitto's ACL file."""
        assert self._base is not None
        parts = [f"{MARK}\n# number {number}\n\n", *nobody(self._base), "\n", *everybody(self._base)]
        parts += [f"\nuser {name}\n{section}" for name, section in sorted(self._sections.items()) if section]
        parts.append(f"\n{self._own.section(number)}")
        return "".join(parts)

    # ---- files ---------------------------------------------------------------------------------------------------------

    def _present(self) -> tuple[int, str, str]:
        """The files that are there: number, rules, passwords. Raises AclError for somebody else's."""
        texts = [read(self._folder / name) for name in (ACL_FILE, PASSWORD_FILE)]
        found = re.match(re.escape(MARK) + r"\n# number (\d{1,15})\n", texts[0])
        return (int(found[1]) if found else -1), texts[0], texts[1]

    async def _write(self) -> None:
        """The next version of both files; the rules last, for they have its number. Raises OSError, AclError."""
        self._present()
        # Never one that this mosquitto may have seen, from a state folder that is gone by now.
        self._number = max(self._number + 1, int(time.time()))
        text, passwords = self._text(self._number), self._passwords
        await asyncio.to_thread(replace, self._folder / PASSWORD_FILE, passwords)
        await asyncio.to_thread(replace, self._folder / ACL_FILE, text)

    # ---- mosquitto -----------------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """Have mosquitto read the files, and wait until it goes by them. Raises AclError."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await self._tell()
        pause, nudged = FIRST_LOOK, began
        while not await self._goes_by_it():
            if loop.time() - began > self._settings.timeout:
                raise AclError(
                    f"mosquitto does not go by version {self._number} of the rules after {self._settings.timeout:g} s: "
                    f"{self._suspect()}"
                )
            if loop.time() - nudged > NUDGE:
                # Who waits for the file to change may have looked away when it did.
                nudged = loop.time()
                os.utime(self._folder / ACL_FILE)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_LOOK)
        self.reloads += 1
        self.seconds += loop.time() - began

    def _suspect(self) -> str:
        if self._open:
            return (
                "it lets the gateway write what they forbid, so everybody may do everything: it could not read its acl_file when it "
                f"was told to, or has another one; see its log, and whether its user can read {self._folder / ACL_FILE} or the copy"
            )
        files = f"acl_file {self._folder / ACL_FILE} and password_file {self._folder / PASSWORD_FILE}"
        if self._tell.known:
            return f"see in its log whether it can read {files}, or copies of them, and has them in its settings"
        return (
            f"has it {files}, or copies of them, in its settings, and who tells it to read them again? Set mosquitto.pid_file or "
            "mosquitto.reload_command, or run `ctxt acl install mosquitto`"
        )

    async def _goes_by_it(self) -> bool:
        """Whether mosquitto lets the gateway write on what this version of the rules opens, and on nothing else. Raises AclError."""
        number = str(self._number)
        if self._echo is None:
            raise AclError("it cannot be seen whether mosquitto goes by the new rules: there is no link to it")
        self.enforced = False
        try:
            async with self._asking:
                heard = await self._echo((NEVER, number, ALWAYS), ASKED)
        except CtxtError as error:
            raise AclError(f"it cannot be seen whether mosquitto goes by the rules: {error}") from error
        self._open = NEVER in heard
        self.enforced = not self._open and number in heard
        return self.enforced


# ---- lines -----------------------------------------------------------------------------------------------------------------

NEVER, ALWAYS = "never", "always"
"""Below the gateway's own topic: what no version of the rules lets it write, and what each does."""


class Own:
    """The gateway's own user: what it must write and read, for its adapters too, and nothing else that is the clients'."""

    def __init__(self, name: str, gateway_id: str, rights: Rights) -> None:
        if re.fullmatch(r"[^\x00-\x20\x7f:#+/]{1,64}", name) is None:
            raise AclError(
                f"link.username {name!r} cannot be a user of mosquitto's files: take letters, digits, - and _"
            )
        self.name = name
        self._id = gateway_id
        self._rights = rights

    def section(self, number: int) -> str:
        """Its lines in one version of the rules."""
        head, devices = self._rights.prefix, self._rights.devices
        filters = [f"{head}{verb}/#" for verb in sorted(VERBS - {"gateway", "replica"})]
        filters += [f"{head}gateway/+", f"{head}replica/{self._id}/mark"]
        filters += [f"{head}replica/{self._id}/acl/{name}" for name in (ALWAYS, str(number))]
        lines = [f"topic readwrite {one}" for one in filters]
        lines += [f"topic read {one}" for one in devices.reads]
        lines += [f"topic write {one}" for one in devices.writes]
        return "\n".join([f"user {self.name}", *lines, ""])


def rules(base: Permissions, sections: Mapping[str, str], own: str, number: int) -> str:
    """Mosquitto's ACL file. Raises AclError for a filter that cannot be said in it."""
    parts = [f"{MARK}\n# number {number}\n\n", *nobody(base), "\n", *everybody(base)]
    parts += [f"\nuser {name}\n{section}" for name, section in sorted(sections.items()) if section]
    return "".join([*parts, f"\n{own}"])


def nobody(base: Permissions) -> Iterator[str]:
    """Clients without a name, to whom `pattern` lines apply too: they get nothing. These lines come before the first user's."""
    yield from (f"topic deny {one}\n" for one in _all(base.publish + base.receive))


def everybody(base: Permissions) -> Iterator[str]:
    """What every client may: `%u` is its name. Raises AclError for a filter that cannot be said."""
    yield from _lines("pattern", base.publish, base.receive, base.deny)


def section_of(name: str, mine: Permissions, base: Permissions, *, barred: bool) -> tuple[str, bool]:
    """A client's own lines, for what it may beyond `base` or may not, and whether single objects are in them.

    Whoever is known may at least what everybody may, unless it is barred.
    """
    if barred:
        return "".join(f"topic deny {one}\n" for one in _all(_bound(base.publish + base.receive, name))), False
    own = set(_bound(base.receive, name))
    # Patterns that deny come after this section: what a client may read where they do has to be said in it.
    read = [one for one in mine.receive if one not in own or (base.deny and _observed(one))]
    own = set(_bound(base.publish, name))
    write = [one for one in mine.publish if one not in own]
    denied = [one for one in mine.deny if one not in base.deny] if not read else list(mine.deny)
    if not (read or write or denied):
        return "", mine.listed
    # The sensor's reports pass here first: what is asked most often stands before what may be long.
    first = [one for one in mine.publish if one not in write]
    return "".join(_lines("topic", first + write, read, denied)), mine.listed


def _bound(filters: Iterable[str], name: str) -> list[str]:
    return [one.replace(_USER, name) for one in filters]


def _observed(one: str) -> bool:
    return any(f"{verb}/" in one for verb in OBSERVED)


def _all(filters: Iterable[str]) -> list[str]:
    """Filters that no topic of these is outside of; `#` does not match what begins with `$` (MQTT section 4.7.2)."""
    return ["#", *sorted({one.partition("/")[0] + "/#" for one in filters if one.startswith("$")})]


def _lines(kind: str, write: Iterable[str], read: Iterable[str], denied: Iterable[str]) -> Iterator[str]:
    for access, filters in (("deny", denied), ("write", write), ("read", read)):
        for one in filters:
            _check(kind, one)
            yield f"{kind} {access} {one}\n"


def _check(kind: str, one: str) -> None:
    """A line is one line, and says what the filter says. Raises AclError."""
    bad = one != one.strip() or any(ord(each) < 0x20 or 0x7F <= ord(each) < 0xA0 for each in one)
    if bad or (kind == "pattern" and any(part in one.replace(_USER, "") for part in ("%c", "%u"))):
        raise AclError(
            f"the filter {one!r} cannot be written into mosquitto's ACL file: give the [[topic]] another one"
        )
