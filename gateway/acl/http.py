"""The authority: brokers that ask over HTTP who may connect, publish and subscribe are answered by the rights themselves.

Most of them ask for a subscription once. So it is granted only where everything may be read that its filter matches, and whoever
loses a right is disconnected through the broker's management (`kick.py`), comes back and is judged anew.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
import time
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from gateway.acl.dialects import ROUTES, Answer, QuestionError, fields_of
from gateway.acl.kick import KICKS, Lost, Management
from gateway.acl.plugin import AclError
from gateway.backoff import Backoff
from gateway.counts import counter, counters
from gateway.credentials import CredentialsError, valid_client
from gateway.rights import VERBS
from gateway.tokens import TokenError, looks_like_token
from gateway.topics import Escape, covers
from gateway.web.errors import BodyError
from gateway.web.server import answer, body

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gateway.acl.plugin import Context
    from gateway.counts import Family
    from gateway.credentials import Client
    from gateway.rights import Action, Permissions
    from gateway.tokens import Bearers
    from gateway.web.server import Receive, Scope, Send

BODY_BYTES = 64 << 10
"""A question may have; VerneMQ sends the payload with it."""

WAITING = 256
"""Log-ins that wait for a password to be checked; a further one is refused."""

COMPILED = 10_000
"""Clients whose permissions are kept compiled."""

HELD, HELD_EACH = 100_000, 1_000
"""Client ids that are remembered as somebody's, in all and of one client, where they do not begin with its name."""

LEAST_SECRET = 16

POLL = 1.0
"""Seconds between two looks for tokens that have ended."""

NO_CERTIFICATE = ("", "undefined")
"""What brokers say of a client without one."""

LOGIN = 16
"""Characters of a mark that stand for the log-in."""

_log = logging.getLogger("gateway.acl")

_FORBIDDEN = Answer(403, b"text/plain; charset=utf-8", b"the authority answers brokers only\n")
_UNKNOWN = Answer(404, b"text/plain; charset=utf-8", b"there is no such question\n")
_OWN_ID = re.compile(r"[.:/@]")
_MADE_UP = re.compile(r"[A-Za-z0-9+/=_-]{20,}")
"""Client ids that brokers make up for those who send none, and that nobody guesses."""


class HttpAcl:
    """Answers brokers, and has them drop whoever has lost something."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        if context.web is None:
            raise AclError('acl.plugin is http: set web.listen, such as "http://127.0.0.1:8080", where brokers ask')
        self._rights = context.rights
        self._credentials = context.credentials
        self._settings = settings.authority
        self._escape = Escape(settings.link.topic_escape, self._rights.prefix)
        self._bearers = context.bearers
        self._ends: dict[str, float] = {}
        self._watching: asyncio.Task[None] | None = None
        self._dropping = asyncio.Lock()
        self._own = settings.link.username
        self._own_password = b""
        self._own_file = settings.link.password_file
        self._secret = b""
        self._management: Management | None = None
        self._compiled: OrderedDict[str, tuple[int, Permissions]] = OrderedDict()
        self._file = settings.state_dir / "authority.json"
        self._before: dict[str, Permissions] = {}
        self._marks: dict[str, str] = {}
        self._lost: set[str] = set()
        self._changed = False
        self._holders: OrderedDict[str, str] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._hashing = ThreadPoolExecutor(1, thread_name_prefix="authority")
        self._queue = 0
        self._backoff = Backoff(settings.broker.wrong_passwords, settings.broker.wrong_password_pause, time.monotonic)
        self._asked_once = False
        self._began = time.monotonic()
        self._seen: dict[str, float] = {}
        self.answered = {"allow": 0, "deny": 0, "malformed": 0, "stranger": 0}
        self.kicked = 0
        context.web.mount("acl", self.app)

    # ---- the plugin ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the secrets. Raises AclError."""
        if self._settings.secret_file is not None:
            self._secret = _first_line(self._settings.secret_file, "authority.secret_file").encode()
            if len(self._secret) < LEAST_SECRET:
                raise AclError(
                    f"authority.secret_file has less than {LEAST_SECRET} characters: `openssl rand -hex 32` makes a good one"
                )
        if self._own:
            if self._own_file is None:
                raise AclError(
                    "acl.plugin is http: set link.password_file, for the broker asks whether the gateway may connect"
                )
            self._own_password = _first_line(self._own_file, "link.password_file").encode()
        if self._settings.kick != "none":
            if not self._settings.management or self._settings.management_password_file is None:
                raise AclError(
                    "authority.kick needs authority.management, management_user and management_password_file"
                )
            login = (
                self._settings.management_user,
                _first_line(self._settings.management_password_file, "authority.management_password_file"),
            )
            if self._settings.kick == "vernemq":
                # Its API key stands where others have the user.
                login = (login[1], "")
            self._management = Management(self._settings.management, *login, self._settings.timeout)
        self._remember(None, last=self._of_last_run())
        if self._bearers is not None:
            self._watching = asyncio.get_running_loop().create_task(self._watch(self._bearers))

    async def joined(self) -> None:
        """Those who may do something else than at the end of the last run are disconnected: they were judged by what held then."""
        await self._drop()

    async def enforce(self, clients: frozenset[str] | None, lost: frozenset[str]) -> None:
        """Close the connections of those who have lost something. Raises AclError."""
        self._remember(clients, lost)
        await self._drop()

    async def _drop(self) -> None:
        async with self._dropping:
            lost = frozenset(self._lost)
            if lost and self._management is not None:
                logins = {name: self._seen.get(name, self._began) for name in lost}
                await asyncio.to_thread(KICKS[self._settings.kick], self._management, Lost(logins, self.holds))
                self.kicked += len(lost)
            elif lost and self._asked_once:
                raise AclError(
                    f"{len(lost):,} clients may read or write less than before, but their subscriptions go on: set authority.kick,"
                    " so that the broker closes their connections"
                )
            self._lost -= lost
            if self._changed:
                self._changed = False
                await asyncio.to_thread(self._keep, dict(self._marks))

    async def _watch(self, bearers: Bearers) -> None:
        """Disconnect those whose token has ended; who has another one comes back."""
        failed = False
        while True:
            await asyncio.sleep(POLL)
            bearers.tokens.look()
            now = time.time()
            ended = {name for name, end in self._ends.items() if end <= now}
            for name in ended:
                del self._ends[name]
            self._lost |= ended
            if not ended and not failed:
                continue
            try:
                await self._drop()
                failed = False
            except AclError as error:
                if not failed:
                    _log.error("clients whose tokens have ended may still be connected: %s; trying again", error)
                failed = True

    async def stop(self) -> None:
        """Whoever asks now gets no answer, and brokers take that for a no."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._bearers is not None:
            self._bearers.close()
        self._hashing.shutdown(wait=False, cancel_futures=True)

    async def ask(self, _client: str, _action: Action, _topic: str) -> bool | None:
        """These brokers decide by what is said here."""
        return None

    def warnings(self) -> Iterator[str]:
        """What is set up so that it cannot hold."""
        if self._settings.kick == "none":
            yield (
                "authority.kick is none: where the broker asks for a subscription once (EMQX, RabbitMQ, VerneMQ) whoever loses a right"
                " goes on receiving until it connects anew"
            )
        if not self._settings.secret_file:
            yield "authority.secret_file is not set: every program on this machine can try passwords, and ask who may do what"

    def families(self) -> Iterator[Family]:
        """What is counted here."""
        yield counters(
            "ctxt_authority_answers_total", "Questions of brokers, by what became of them.", "answer", self.answered
        )
        yield counter(
            "ctxt_authority_kicks_total", "Times a client was disconnected for what it has lost.", self.kicked
        )

    # ---- who has lost something ----------------------------------------------------------------------------------------

    def _remember(
        self, clients: frozenset[str] | None, lost: frozenset[str] = frozenset(), last: Mapping[str, str] | None = None
    ) -> None:
        """Take note of what these clients (None: all) may do now, and who could do more before, or log in otherwise.

        Creating an object changes a client's filters too, in ways that cannot always be told from a loss: so only those in `lost` are
        looked at, or, of all, everybody. `last`: at the start, their marks at the end of the last run; what a mark stands for is not known any more.
        """
        known = {client.name: client for client in self._credentials.names()}
        for name in known.keys() | self._before.keys() if clients is None else clients:
            found = known.get(name)
            before, mark = self._before.get(name), self._marks.get(name)
            if found is None and name not in self._ends:
                # Removed, or never one that could log in.
                if mark is not None:
                    self._lost.add(name)
                    del self._before[name], self._marks[name]
                    self._changed = True
                continue
            now = self._rights.permissions(name)
            self._before[name] = now
            self._marks[name] = fresh = _mark(found, now)
            self._changed |= fresh != mark
            if last is not None:
                if last and last.get(name) != fresh:
                    self._lost.add(name)
            elif (
                before is not None
                and mark is not None
                and (clients is None or name in lost)
                and (now.lost(before) or mark[:LOGIN] != fresh[:LOGIN])
            ):
                self._lost.add(name)
        if last:
            self._lost |= last.keys() - known.keys()

    def _of_last_run(self) -> Mapping[str, str]:
        """Each client's mark as it was kept last; empty where there was no run, or nothing can be told of it."""
        try:
            found = orjson.loads(self._file.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}
        return found if isinstance(found, dict) and all(isinstance(each, str) for each in found.values()) else {}

    def _keep(self, marks: Mapping[str, str]) -> None:
        temporary = self._file.with_suffix(".new")
        try:
            temporary.write_bytes(orjson.dumps(marks))
            temporary.replace(self._file)
        except OSError as error:
            _log.error(
                "cannot write %s: %s; at the next start clients may be disconnected without need", self._file, error
            )

    def _permissions(self, name: str) -> Permissions:
        generation = self._rights.generation
        found = self._compiled.get(name)
        if found is None or found[0] != generation:
            found = (generation, self._rights.permissions(name))
            self._compiled[name] = found
            self._compiled.move_to_end(name)
            if len(self._compiled) > COMPILED:
                self._compiled.popitem(last=False)
        return found[1]

    # ---- the judge -----------------------------------------------------------------------------------------------------

    async def login(self, name: str, password: str, client_id: str, *, address: str, certificate: str) -> bool:
        """Whether somebody may connect."""
        try:
            secret = password.encode()
        except UnicodeEncodeError:
            return False
        if self._own and name == self._own:
            return bool(secret) and hmac.compare_digest(secret, self._own_password)
        if not valid_client(name) or not self._takes(name, client_id):
            return False
        if self._settings.certificates and certificate not in NO_CERTIFICATE and not secret:
            good = certificate == name and self._credentials.admitted(name) is True
            return self._logged_in(name, good=good)
        if not secret:
            return False
        if self._bearers is not None and looks_like_token(secret):
            return await self._bear(self._bearers, name, secret, address)
        if self._credentials.recall(name, secret):
            self._backoff.passed(address, name)
            return self._logged_in(name)
        if self._backoff.pause(address, name) or self._queue >= WAITING:
            return False
        self._queue += 1
        try:
            proof = await asyncio.get_running_loop().run_in_executor(
                self._hashing, self._credentials.verify, name, secret
            )
        finally:
            self._queue -= 1
        (self._backoff.passed if proof else self._backoff.failed)(address, name)
        return self._logged_in(name, good=proof is not None)

    async def _bear(self, bearers: Bearers, name: str, token: bytes, address: str) -> bool:
        """Whether a token is good, and the client's. A wrong one counts as a wrong password does."""
        if self._backoff.pause(address, name):
            return False
        try:
            identity = await bearers.identify(name, token, self._credentials.admitted)
        except TokenError as error:
            self._backoff.failed(address, name)
            _log.debug("a client from %s is refused: %s", address or "somewhere", error)
            return False
        self._backoff.passed(address, name)
        self._ends[name] = min(identity.expires, self._ends.get(name, identity.expires))
        self._rights.join(name, identity.groups, identity.expires)
        before, now = self._before.get(name), self._rights.permissions(name)
        if before is not None and now.lost(before):
            # What it has lost meanwhile is not forgotten over what it has gained.
            self._lost.add(name)
        self._before[name] = now
        self._marks.setdefault(name, _mark(None, now))
        return self._logged_in(name)

    def _logged_in(self, name: str, *, good: bool = True) -> bool:
        if good:
            self._seen[name] = time.monotonic()
        return good

    def administers(self, name: str, password: str | None = None) -> bool:
        """Whether this is whom `kick` uses; with a password, whether that is right."""
        found = self._management
        if found is None or not found.user or name != found.user:
            return False
        if password is None:
            return True
        return hmac.compare_digest(password.encode("utf-8", "surrogatepass"), found.password.encode())

    def knows(self, name: str) -> bool:
        """Whether a client of this name may connect."""
        if not name or name == self._own:
            return bool(name)
        admitted = valid_client(name) and self._credentials.admitted(name)
        return admitted or (admitted is None and self._ends.get(name, 0.0) > time.time())

    def may(self, name: str, action: Action, topic: str) -> bool:
        """By the rights; the gateway's own user may use the gateway's topics, and its adapters' devices'."""
        plain = self._escape.plain(topic)
        if self._own and name == self._own:
            own = self._rights.own(plain)
            if own is not None and own.partition("/")[0] in VERBS:
                return True
            devices = self._rights.devices
            return any(covers(each, plain) for each in (devices.writes if action == "publish" else devices.reads))
        if not self.knows(name):
            return False
        if action == "publish":
            return self._rights.may_publish(name, plain)
        if action == "receive":
            return self._rights.may_receive(name, plain)
        self._asked_once = True
        return self._rights.may_read_all(name, plain, self._permissions(name))

    def holds(self, name: str, client_id: str) -> bool:
        """A client id is its client's name, or begins with it and one of `.:/@`; or whoever used it first has it."""
        if self._own and name == self._own:
            return client_id not in self._holders
        if client_id == name or (client_id.startswith(name) and _OWN_ID.match(client_id, len(name)) is not None):
            return True
        return self._holders.get(client_id) == name

    def _takes(self, name: str, client_id: str) -> bool:
        if not client_id or self.holds(name, client_id):
            # Where there is none the broker makes one up.
            return True
        made_up = self._settings.client_ids == "first" or _MADE_UP.fullmatch(client_id) is not None
        if not made_up or client_id in self._holders or self._anothers(name, client_id):
            return False
        if self._held[name] >= HELD_EACH:
            return False
        self._holders[client_id] = name
        self._held[name] += 1
        if len(self._holders) > HELD:
            _, former = self._holders.popitem(last=False)
            self._held[former] -= 1
        return True

    def _anothers(self, name: str, client_id: str) -> bool:
        """Whether a client id begins with the name of somebody else, who holds it whether it was used or not."""
        head = _OWN_ID.split(client_id, maxsplit=1)[0]
        if head in (name, self._own):
            return head != name
        return valid_client(head) and (head in self._ends or self._credentials.admitted(head) is not None)

    # ---- HTTP ----------------------------------------------------------------------------------------------------------

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /acl/{question}`, or `/acl/{secret}/{question}` for brokers that can send no header (ASGI 3)."""
        found = await self._respond(scope, receive)
        await answer(send, found.status, found.content_type, found.content)

    async def _respond(self, scope: Scope, receive: Receive) -> Answer:
        headers = dict(scope["headers"])
        question = self._admitted(scope, headers)
        if question is None:
            self.answered["stranger"] += 1
            return _FORBIDDEN
        route = ROUTES.get(question)
        if route is None or scope["method"] != "POST":
            return _UNKNOWN
        try:
            content = await body(receive, BODY_BYTES)
            kind = headers.get(b"content-type", b"").decode("latin-1")
            hook = headers.get(b"vernemq-hook", b"").decode("latin-1")
            found = await route.ask(self, fields_of(kind, content), hook)
        except (QuestionError, BodyError) as error:
            self.answered["malformed"] += 1
            if self.answered["malformed"] <= 10:
                _log.warning("a broker asked %s in a way that is not understood, and was told no: %s", question, error)
            return route.deny
        except CredentialsError as error:
            _log.error("%s; the broker was told no", error)
            found = route.deny
        self.answered["allow" if found.allowed else "deny"] += 1
        return found

    def _admitted(self, scope: Scope, headers: dict[bytes, bytes]) -> str | None:
        """What is asked, where it is one of our brokers who asks."""
        path: str = scope["path"].removeprefix("/acl/")
        if not self._secret:
            peer: Any = scope.get("client")
            return path if peer is not None and _loopback(peer[0]) else None
        given = headers.get(b"authorization", b"")
        if given[:7].lower() == b"bearer " and hmac.compare_digest(given[7:], self._secret):
            return path
        first, _, rest = path.partition("/")
        if hmac.compare_digest(first.encode("utf-8", "surrogateescape"), self._secret):
            return rest
        return None


def _mark(client: Client | None, permissions: Permissions) -> str:
    """What tells one state of a client from another: its log-in first (None: by tokens alone), then what it may do."""
    state = "" if client is None else f"{client.disabled} {client.changed}"
    login = blake2b(state.encode(), digest_size=LOGIN // 2).hexdigest()
    return login + blake2b(repr(permissions).encode(), digest_size=16).hexdigest()


def _loopback(host: str) -> bool:
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _first_line(path: Path, what: str) -> str:
    """A secret: the first line of its file. Raises AclError."""
    try:
        line = path.read_text("utf-8").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AclError(f"cannot read {what} {path}: {getattr(error, 'strerror', None) or error}") from error
    if not line:
        raise AclError(f"{what} {path} is empty: write the secret into its first line")
    return line
