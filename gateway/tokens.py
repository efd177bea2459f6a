"""Bearer tokens: JSON Web Tokens (RFC 7519) that say who a client is and of which groups, checked as RFC 8725 advises.

Which algorithms are good follows from the keys, never from what a token says of itself. Nothing here tells a part of a token.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from gateway.credentials import ClientNameError, check_name
from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

MAX_TOKEN_BYTES = 16_384
MAX_FILE_BYTES = 262_144
MAX_KEYS = 100
MAX_GROUPS = 100
MAX_AUDIENCES = 100

LEAST_SECRET = 32
"""Bytes of a shared key: as many as HS256 has to have (RFC 7518 section 3.2)."""

LEAST_RSA = 2048
"""Bits of an RSA key (RFC 7518 section 3.3)."""

PAUSE = 1.0
"""Seconds between two looks at the file for a key that is not known."""

CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
SHARED: Final = (("HS256", 32), ("HS384", 48), ("HS512", 64))
"""Algorithms with a shared key, and how many bytes it has to have."""

TYPES: Final = frozenset({"jwt", "at+jwt"})
"""Kinds of tokens that say who somebody is (RFC 8725 section 3.11): one for something else is none."""

_FORM = re.compile(rb"eyJ[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,64}")
_log = logging.getLogger("gateway.tokens")


class TokenError(CtxtError):
    """A token that is not good. The sentence has no part of it."""


class TokenKeyError(CtxtError):
    """The file with the keys cannot be used. The sentence names it, and no key."""

    code = 422


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a good token names. `expires`: Unix seconds, the leeway included; from then on it is not accepted."""

    client: str
    groups: frozenset[str]
    expires: float


@dataclass(frozen=True, slots=True)
class Rules:
    """What a token has to say. Times in seconds; an empty issuer or audience is not asked for."""

    issuer: str = ""
    audience: str = ""
    client_claim: str = "sub"
    groups_claim: str = "groups"
    leeway: float = 0.0
    lifetime_max: float = 366 * 86_400.0
    """The longest time from now that a token may be good for."""


class _Key(NamedTuple):
    name: str | None
    algorithms: tuple[str, ...]
    material: Any


class _Keys(NamedTuple):
    named: Mapping[str, _Key]
    only: _Key | None
    """The key of tokens that name none: there is one only where there are no others."""
    shared: bool


def looks_like_token(password: bytes) -> bool:
    """Whether a password has the form of a JWT in compact form (RFC 7515 section 3.1): it is then nothing else."""
    return password.startswith(b"eyJ") and _FORM.fullmatch(password) is not None


def claimed(token: bytes, claim: str) -> str:
    """Whom a token claims to name, good or not: for counting failures by. "" where that cannot be read."""
    name = (contents(token) or {}).get(claim)
    return name if isinstance(name, str) else ""


def contents(token: bytes) -> dict[str, Any] | None:
    """What a token says, good or not; None where that cannot be read."""
    if len(token) > MAX_TOKEN_BYTES or not looks_like_token(token):
        return None
    return _object(token.split(b".")[1])


def _decoded(part: bytes) -> bytes:
    """Base64url without padding. Raises ValueError."""
    return base64.b64decode(part + b"=" * (-len(part) % 4), b"-_", validate=True)


class Tokens:
    """Checks tokens with the keys of one file. Any thread may call; `slow` says whether a check belongs in a worker thread."""

    def __init__(
        self,
        *,
        jwks: Path | None = None,
        key_file: Path | None = None,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """Public keys (`jwks`) or a key shared with the issuer (`key_file`). Raises TokenKeyError, ValueError for both or none."""
        given = jwks or key_file
        if given is None or (jwks is not None and key_file is not None):
            raise ValueError("give a file with public keys or one with a shared key")
        self.rules = rules or Rules()
        self._path = given
        self._public = jwks is not None
        self._clock = clock
        self._ticks = ticks
        self._lock = threading.Lock()
        self._looked = ticks()
        self._stamp = _stamp(given)
        self._keys = self._read()

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    @property
    def slow(self) -> bool:
        """Whether a check takes so long that it should not hold up others: with public keys."""
        return self._public

    # ---- keys ----------------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the file again where it has changed. One that cannot be used leaves the keys as they are; the log says so."""
        with self._lock:
            self._looked = self._ticks()
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._keys = self._read()
            except TokenKeyError as error:
                _log.error("%s; the keys read before stay in use", error)
            else:
                _log.info("keys of tokens read again from %s", self._path)

    def reread(self) -> Callable[[], None]:
        """Read the file now; what is returned takes it over. Raises TokenKeyError, and nothing changes."""
        stamp, keys = _stamp(self._path), self._read()

        def take() -> None:
            with self._lock:
                self._stamp, self._keys = stamp, keys

        return take

    def _read(self) -> _Keys:
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
                mode = os.fstat(file.fileno()).st_mode
        except OSError as error:
            raise TokenKeyError(f"the keys of tokens in {self._path} cannot be read: {error.strerror}") from error
        if len(content) > MAX_FILE_BYTES:
            raise TokenKeyError(
                f"{self._path} is larger than {MAX_FILE_BYTES:,} bytes: it does not hold the keys of tokens"
            )
        if self._public:
            return _public_keys(self._path, content)
        if mode & 0o007:
            _log.warning(
                "%s can be read by everybody on this machine, who can then make tokens: `chmod o= %s`",
                self._path,
                self._path,
            )
        return _shared_key(self._path, content)

    def _key(self, header: Mapping[str, Any]) -> _Key:
        found = self._find(header)
        if found is None and self._ticks() - self._looked >= PAUSE:
            # The issuer may have begun to use a new one.
            self.look()
            found = self._find(header)
        if found is None:
            known = "names a key that is not known" if header.get("kid") is not None else "does not name its key"
            raise TokenError(f"the token {known}: the gateway has to be given the issuer's present keys")
        return found

    def _find(self, header: Mapping[str, Any]) -> _Key | None:
        name = header.get("kid")
        keys = self._keys
        if keys.shared or name is None:
            return keys.only
        return keys.named.get(name) if isinstance(name, str) else None

    # ---- checking ------------------------------------------------------------------------------------------------------

    def check(self, token: bytes) -> Identity:
        """Whom a token names. Raises TokenError for one that is not good, in form, signature, time, or for whom it is."""
        return self._judge(self._claims(token))

    def _claims(self, token: bytes) -> dict[str, Any]:
        """What a token with a good signature says. Raises TokenError."""
        from jwt import PyJWS  # noqa: PLC0415  # a gateway without tokens does not load it
        from jwt.exceptions import PyJWTError  # noqa: PLC0415  # as above

        if len(token) > MAX_TOKEN_BYTES:
            raise TokenError(f"the token is longer than {MAX_TOKEN_BYTES:,} bytes")
        if not looks_like_token(token):
            raise TokenError("this is no token: it has three parts with dots between them and begins with eyJ")
        header = _object(token.split(b".")[0])
        if header is None:
            raise TokenError("the token's header cannot be read")
        if "crit" in header or "b64" in header:
            raise TokenError("the token uses an extension (crit) that the gateway does not know")
        kind = header.get("typ", "JWT")
        if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in TYPES:
            raise TokenError("the token is made for something else (typ): it has to be of the type JWT or at+jwt")
        key = self._key(header)
        # The signature's algorithm is one of the key's: `none`, or a public key taken for a shared one, is not.
        if header.get("alg") not in key.algorithms:
            raise TokenError(f"the token's algorithm is none of those that its key is for: {', '.join(key.algorithms)}")
        try:
            signed = PyJWS(list(key.algorithms)).decode_complete(token, key.material, list(key.algorithms))
        except PyJWTError:
            raise TokenError("the token's signature is not good") from None
        claims = _object(signed["payload"], encoded=False)
        if claims is None:
            raise TokenError("the token holds no JSON object")
        return claims

    def _judge(self, claims: dict[str, Any]) -> Identity:
        rules, now = self.rules, self._clock()
        expires = _time(claims, "exp")
        if expires is None:
            raise TokenError("the token does not say when it expires (exp)")
        if now >= expires + rules.leeway:
            raise TokenError("the token has expired: get another one")
        if expires > now + rules.lifetime_max + rules.leeway:
            raise TokenError("the token is good for longer than tokens may be here (lifetime_max)")
        for claim in ("nbf", "iat"):
            begins = _time(claims, claim)
            if begins is not None and begins > now + rules.leeway:
                raise TokenError(
                    f"the token is not good yet ({claim}): is the clock right, here and where it was issued?"
                )
        if rules.issuer and claims.get("iss") != rules.issuer:
            raise TokenError("the token comes from another issuer (iss)")
        self._judge_audience(claims.get("aud"))
        client = claims.get(rules.client_claim)
        if not isinstance(client, str):
            raise TokenError(f"the token does not name a client: it has no text {rules.client_claim!r}")
        try:
            check_name(client)
        except ClientNameError:
            raise TokenError("the token names a client that cannot be: a name has 1 to 64 of A-Z a-z 0-9 _ -") from None
        return Identity(client, _groups(claims, rules.groups_claim), expires + rules.leeway)

    def _judge_audience(self, given: object) -> None:
        """Who does not know itself in `aud` has to refuse the token (RFC 7519 section 4.1.3)."""
        audience = self.rules.audience
        if given is None:
            if audience:
                raise TokenError("the token does not say for whom it is (aud)")
            return
        many = given if isinstance(given, list) else [given]
        if not audience or len(many) > MAX_AUDIENCES or audience not in many:
            raise TokenError("the token is for somebody else (aud)")

    # ---- making --------------------------------------------------------------------------------------------------------

    def mint(self, client: str, groups: Iterable[str], lifetime: float) -> str:
        """A token that `check` says yes to, for so many seconds. Raises TokenError where there is no shared key, or it would not be good."""
        from jwt import PyJWS  # noqa: PLC0415  # as in `_claims`

        key = self._keys.only
        if not self._keys.shared or key is None:
            raise TokenError(f"only the issuer can make tokens for the public keys in {self._path}")
        now = int(self._clock())
        rules = self.rules
        claims: dict[str, Any] = {"iat": now, "exp": now + int(lifetime), rules.client_claim: client}
        named = sorted(set(groups))
        if named:
            claims[rules.groups_claim] = named
        if rules.issuer:
            claims["iss"] = rules.issuer
        if rules.audience:
            claims["aud"] = rules.audience
        self._judge(claims)
        return PyJWS(list(key.algorithms)).encode(orjson.dumps(claims), key.material, key.algorithms[0])


class Bearers:
    """Who comes with a token. `any_name`: also clients that `clients.db` has not."""

    def __init__(self, tokens: Tokens, *, any_name: bool = False) -> None:
        self.tokens = tokens
        self.any_name = any_name
        # Signatures are checked quickly: they do not wait behind passwords.
        self._checking = ThreadPoolExecutor(1, thread_name_prefix="tokens")

    async def identify(self, username: str | None, token: bytes, admitted: Callable[[str], bool | None]) -> Identity:
        """Whom a token names, if the user name is the same or none. Raises TokenError.

        `admitted`: `Credentials.admitted`.
        """
        if self.tokens.slow:
            identity = await asyncio.get_running_loop().run_in_executor(self._checking, self.tokens.check, token)
        else:
            identity = self.tokens.check(token)
        if username and username != identity.client:
            raise TokenError("the token names another client than the user name")
        known = admitted(identity.client)
        if not known and not (known is None and self.any_name):
            raise TokenError("the token names a client that is not known here, or disabled")
        return identity

    def close(self) -> None:
        """Check nothing more."""
        self._checking.shutdown(wait=False)


def _object(content: bytes, *, encoded: bool = True) -> dict[str, Any] | None:
    try:
        found = orjson.loads(_decoded(content) if encoded else content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    """A NumericDate, Unix seconds. Raises TokenError."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TokenError(f"the token's {name} is no time: it has to be a number of Unix seconds")
    return float(value)


def _groups(claims: Mapping[str, Any], claim: str) -> frozenset[str]:
    found = claims.get(claim)
    if found is None:
        return frozenset()
    if not isinstance(found, list) or len(found) > MAX_GROUPS:
        raise TokenError(f"the token's {claim!r} is no list of at most {MAX_GROUPS} groups")
    for group in found:
        if not isinstance(group, str) or not _GROUP.fullmatch(group):
            raise TokenError(f"the token's {claim!r} has a group that cannot be: use 1 to 64 of A-Z a-z 0-9 _ -")
    return frozenset(found)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _shared_key(path: Path, content: bytes) -> _Keys:
    secret = content.removesuffix(b"\n").removesuffix(b"\r")
    if b"-----BEGIN " in content or secret.startswith((b"ssh-", b"{")):
        raise TokenKeyError(
            f"{path} holds no shared key: whoever has a public key could make tokens with it; name a jwks"
        )
    algorithms = tuple(name for name, least in SHARED if len(secret) >= least)
    if not algorithms:
        raise TokenKeyError(
            f"the shared key in {path} has less than {LEAST_SECRET} bytes and can be guessed:"
            f" `openssl rand -base64 48 > {path}` makes one"
        )
    return _Keys({}, _Key(None, algorithms, secret), shared=True)


def _public_keys(path: Path, content: bytes) -> _Keys:
    """Of a JWK set (RFC 7517) the keys for signatures; those of kinds that are not known are left out (section 5)."""
    found = _object(content, encoded=False)
    entries = found.get("keys") if found is not None else None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise TokenKeyError(f'{path} is no JWK set: it has to be JSON, {{"keys": […]}}, with at most {MAX_KEYS} keys')
    usable = [key for key in map(_public_key, entries) if key is not None]
    if not usable:
        raise TokenKeyError(
            f"{path} has no public key for signatures: RSA of at least {LEAST_RSA} bits, P-256, P-384, P-521 or Ed25519"
        )
    named = {key.name: key for key in usable if key.name is not None}
    if len(named) + sum(key.name is None for key in usable) != len(usable):
        raise TokenKeyError(f"{path} has several keys of one name (kid): give each one of its own")
    return _Keys(named, usable[0] if len(usable) == 1 else None, shared=False)


def _public_key(entry: object) -> _Key | None:
    from jwt import PyJWK  # noqa: PLC0415  # as above
    from jwt.exceptions import PyJWTError  # noqa: PLC0415  # as above

    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    operations = entry.get("key_ops", ["verify"])
    name = entry.get("kid")
    if not isinstance(operations, list) or "verify" not in operations or not isinstance(name, str | None):
        return None
    # A private key has no business here; whether it is one does not change what it verifies.
    public = {member: value for member, value in entry.items() if member in ("kty", "crv", "x", "y", "n", "e")}
    kind = public.get("kty")
    if kind == "RSA":
        good: tuple[str, ...] = RSA
    elif kind in ("EC", "OKP") and isinstance(public.get("crv"), str) and public["crv"] in CURVES:
        good = (CURVES[public["crv"]],)
    else:
        return None
    algorithm = entry.get("alg")
    if algorithm is not None:
        if algorithm not in good:
            return None
        good = (algorithm,)
    try:
        material = PyJWK(public, good[0]).key
    except (PyJWTError, ValueError, TypeError):
        return None
    if kind == "RSA" and material.key_size < LEAST_RSA:
        return None
    return _Key(name, good, material)
