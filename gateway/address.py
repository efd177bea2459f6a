"""Object URLs: parse, normalise, URL ⇄ topic, children, patterns. Pure.

An object has one spelling. Its normal form is ASCII: `scheme://authority/segment/…`, scheme and authority in lower case, the
text of a segment in NFC, every byte of it percent-encoded with upper-case hex but unreserved characters and `!$&'()*,;=:@`.
The topic is the normal form with `://` written as `/`. Sources: RFC 3986, Unicode UAX 15; see docs/addresses.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn
from unicodedata import is_normalized, normalize
from urllib.parse import quote, unquote_to_bytes

from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_URL_BYTES = 1024
"""Bytes of an object URL in normal form; its topic has two fewer."""
MAX_SEGMENTS = 64
MAX_HOST_BYTES = 253
MAX_SPELLING = 9 * MAX_URL_BYTES
"""Characters of any other spelling: one byte of normal form takes nine at most (`K` as the Kelvin sign `%E2%84%AA`)."""

CHILDREN = "children"
"""The reserved level: `parent/children/<collection>/<reporter>/<id>`."""

RESERVED_CLIENTS = frozenset({"gateway", "anonymous"})
"""Names that no client can have besides the adapters' own."""

_CLIENT = r"[A-Za-z0-9_-]{1,64}"
_COLLECTION = r"[a-z][A-Za-z0-9_-]{0,63}"
_HOST = r"[a-z0-9-]++(?:\.[a-z0-9-]++)*+"
_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_LITERAL = "!$&'()*,;=:@"
# Of ASCII exactly the printable rest is percent-encoded; bytes above are text, judged by `_is_settled`.
_SEGMENT = (
    rf"(?!(?:\.\.?|{CHILDREN})(?:/|\Z))"
    r"(?:[A-Za-z0-9\-._~!$&'()*,;=:@]++|%(?:2[0235BF]|3[CEF]|5[B-E]|60|7[BCD]|[89A-F][0-9A-F]))++"
)
_NORMAL = re.compile(
    rf"(?!{CHILDREN}/)[a-z][a-z0-9.-]*+"
    rf"/(?!{CHILDREN}/|[a-z0-9.-]{{{MAX_HOST_BYTES + 1}}}){_HOST}(?::{_PORT})?"
    rf"(?:/{_SEGMENT})++"
    rf"(?:/{CHILDREN}/(?!{CHILDREN}/){_COLLECTION}/(?!{CHILDREN}/){_CLIENT}/{_SEGMENT})?"
).fullmatch

_is_client = re.compile(_CLIENT).fullmatch
_is_collection = re.compile(_COLLECTION).fullmatch
_is_scheme = re.compile(r"[a-z][a-z0-9.-]*").fullmatch
_is_host = re.compile(_HOST).fullmatch
_is_port = re.compile(_PORT).fullmatch
_find_control = re.compile(r"[\x00-\x1f\x7f-\x9f]").search
_find_broken_percent = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL).search

_SHOWN = 200
"""Characters of a refused text that its error repeats."""


class AddressError(CtxtError):
    """A text that is no object URL (topic, pattern: `kind`). `reason` is a whole clause, `hint` says what to do."""

    def __init__(self, text: str, reason: str, hint: str, kind: str = "object URL") -> None:
        super().__init__(text, reason, hint, kind)
        self.text = text
        self.reason = reason
        self.hint = hint
        self.kind = kind

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= _SHOWN else self.text[:_SHOWN] + "…"
        return f"{shown!r} is no {self.kind}: {self.reason}; {self.hint}"


class _Flaw(Exception):  # noqa: N818 - it never leaves this file: parse() makes it an AddressError
    """What is wrong with a part; (reason, hint)."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason, hint)
        self.reason = reason
        self.hint = hint


def valid_client(name: str) -> bool:
    """Whether `name` can be a client's name: `[A-Za-z0-9_-]{1,64}`. Reserved names are valid and taken."""
    return _is_client(name) is not None


def segment(text: str) -> str:
    """Any text as one segment of a URL. Raises AddressError where it cannot be: empty, `.`, `..`, reserved, or with control characters."""
    try:
        if not text:
            raise _Flaw("it is empty", "name it")
        return _not_reserved(_segment(text.replace("%", "%25")), "segment")
    except _Flaw as flaw:
        raise AddressError(text, flaw.reason, flaw.hint, "part of an object URL") from None


def normal_prefix(text: str) -> str:
    """The beginning of object URLs in the spelling they have; what is no URL yet (`ctxt://Home.local/`) as far as it goes."""
    whole, tail = (text[:-1], "/") if text.endswith("/") else (text, "")
    try:
        return Address.parse(whole).url + tail
    except AddressError:
        scheme, separator, rest = text.partition("://")
        authority, slash, path = rest.partition("/")
        return scheme.lower() + separator + authority.lower() + slash + path


def is_normal_topic(topic: str) -> bool:
    """Whether `topic` is an object topic in normal form: exactly when `Address.from_topic` takes it. About 1 µs."""
    if len(topic) > MAX_URL_BYTES - 2 or _NORMAL(topic) is None or topic.count("/") > MAX_SEGMENTS + 1:
        return False
    return "%" not in topic or _is_settled(topic)


def _is_settled(topic: str) -> bool:
    """Whether the percent-encoded text of a topic is UTF-8 without control characters, in NFC.

    The whole topic stands for its segments: nothing composes with the `/` before it.
    """
    try:
        text = unquote_to_bytes(topic).decode()
    except UnicodeDecodeError:
        return False
    return text.isascii() or (_find_control(text) is None and is_normalized("NFC", text))


@dataclass(frozen=True, slots=True)
class Address:
    """An object URL in normal form: no value of this type is spelled otherwise. Make one with `parse` or `from_topic`."""

    scheme: str
    authority: str
    segments: tuple[str, ...]

    def __post_init__(self) -> None:
        # Segments are joined to be judged: one with a slash inside would pass as two.
        if not is_normal_topic(self.topic) or any(
            "/" in part for part in (self.scheme, self.authority, *self.segments)
        ):
            raise AddressError(self.url, "its parts are not in normal form", "let Address.parse make them")

    @classmethod
    def parse(cls, url: str) -> Address:
        """The address that a URL spells, normalised. Raises AddressError."""
        try:
            rest = _checked(url)
            scheme, _, rest = rest.partition("://")
            authority, _, path = rest.partition("/")
            scheme = _scheme(scheme)
            authority = _authority(authority)
            if not path:
                raise _Flaw("it has no path", f"name the object: {scheme}://{authority}/…")
            segments = tuple(_segment(part) for part in _split(path))
            _check_children(segments)
            _check_length(scheme, authority, segments)
        except _Flaw as flaw:
            raise AddressError(url, flaw.reason, flaw.hint) from None
        return cls(scheme, authority, segments)

    @classmethod
    def from_topic(cls, topic: str) -> Address:
        """The address of an object topic, which must be in normal form already. Raises AddressError; its hint gives the normal topic."""
        if not is_normal_topic(topic):
            _refuse_topic(topic)
        scheme, authority, *segments = topic.split("/")
        return cls(scheme, authority, tuple(segments))

    @property
    def url(self) -> str:
        """`ctxt://home.local/room/temperature`"""
        return f"{self.scheme}://{self.authority}/{'/'.join(self.segments)}"

    @property
    def topic(self) -> str:
        """`ctxt/home.local/room/temperature`"""
        return f"{self.scheme}/{self.authority}/{'/'.join(self.segments)}"

    def __str__(self) -> str:
        return self.url

    @property
    def is_child(self) -> bool:
        """Whether this is `parent/children/<collection>/<reporter>/<id>`."""
        return self.segments[-4:-3] == (CHILDREN,)

    @property
    def parent(self) -> Address | None:
        """The parent of a child, else None."""
        return Address(self.scheme, self.authority, self.segments[:-4]) if self.is_child else None

    @property
    def collection(self) -> str | None:
        """The collection that a child is in, else None."""
        return self.segments[-3] if self.is_child else None

    @property
    def child_reporter(self) -> str | None:
        """The client that a child's URL names as its Reporter, else None."""
        return self.segments[-2] if self.is_child else None

    @property
    def child_id(self) -> str | None:
        """The last segment of a child, in normal form, else None."""
        return self.segments[-1] if self.is_child else None

    def child(self, collection: str, reporter: str, child_id: str) -> Address:
        """The address of a child of this object; `child_id` is spelled as in a URL. Raises AddressError."""
        return Address.parse(f"{self.url}/{CHILDREN}/{collection}/{reporter}/{child_id}")


def _refuse_topic(topic: str) -> NoReturn:
    head, slash, rest = topic.partition("/")
    if not slash:
        hint = "write scheme/authority/path, like ctxt/home.local/room/temperature"
        raise AddressError(topic, "it has no `/`", hint, "object topic")
    is_url = head.endswith(":") and rest.startswith("/")
    try:
        normal = Address.parse(topic if is_url else f"{head}://{rest}").topic
    except AddressError as error:
        raise AddressError(topic, error.reason, error.hint, "object topic") from None
    reason = "it is a URL" if is_url else "it is not in normal form"
    raise AddressError(topic, reason, f"the topic is {normal}", "object topic")


def _checked(text: str) -> str:
    """`text` where the whole of it can be an object URL or pattern."""
    if len(text) > MAX_SPELLING:
        raise _Flaw(
            f"it has {len(text):,} characters, more than any spelling of {MAX_URL_BYTES:,} bytes", "use a shorter path"
        )
    if text != text.strip():
        raise _Flaw("it begins or ends with white space", "remove it, or write %20 where a name ends with a space")
    if "://" not in text:
        raise _Flaw("it has no `://`", "write scheme://authority/path, like ctxt://home.local/room/temperature")
    for mark, name, encoded in (("?", "query", "%3F"), ("#", "fragment", "%23")):
        if mark in text:
            raise _Flaw(
                f"it has a {name}, and it names data, not a page",
                f"end it before the `{mark}`, or write {encoded} where that is part of a name",
            )
    return text


def _scheme(text: str) -> str:
    # Before lower(): the lower case of the Kelvin sign is an ASCII k.
    if not text.isascii() or not _is_scheme(text.lower()):
        raise _Flaw(
            f"the scheme {text[:_SHOWN]!r} is not a letter followed by letters, digits, `.` or `-`",
            "use the scheme of a schema in the catalogue, like ctxt",
        )
    return _not_reserved(text.lower(), "scheme")


def _authority(text: str) -> str:
    if not text:
        raise _Flaw("it has no authority", "write scheme://authority/path, like ctxt://home.local/room/temperature")
    if not text.isascii():
        raise _Flaw("the authority is not ASCII", "write an international name in punycode, like xn--kche-0ra.example")
    if "@" in text:
        raise _Flaw("the authority names a user", "remove everything up to the `@`: rights belong to the settings")
    if "%" in text:
        raise _Flaw("the authority is percent-encoded", "write it plainly: letters, digits, `.` and `-` are all it has")
    host, colon, port = text.lower().partition(":")
    if "[" in text:
        raise _Flaw("the authority is an IPv6 address", "use a name: the URL names data, never a host")
    if len(host) > MAX_HOST_BYTES:
        raise _Flaw(
            f"the authority has {len(host):,} bytes, at most {MAX_HOST_BYTES} are allowed", "use a shorter name"
        )
    if "." in (host[:1], host[-1:]) or ".." in host:
        raise _Flaw("the authority has an empty label", "put something between its dots, and none at either end")
    if not _is_host(host):
        raise _Flaw(
            "the authority has other characters than letters, digits, `.` and `-`", "use a name like home.local"
        )
    if colon and not _is_port(port):
        raise _Flaw(
            f"the port {port[:_SHOWN]!r} is not a number from 1 to 65535 without leading zeros",
            f"remove it with its colon, or write {host}:8080",
        )
    return _not_reserved(host + colon + port, "authority")


def _not_reserved(text: str, what: str) -> str:
    if text == CHILDREN:
        raise _Flaw(f"the {what} {CHILDREN!r} is reserved", "use another name")
    return text


def _split(path: str) -> list[str]:
    parts = path.split("/")
    if not all(parts):
        raise _Flaw("it has an empty segment", "put something between the slashes, and no slash at the end")
    if len(parts) > MAX_SEGMENTS:
        raise _Flaw(f"it has {len(parts):,} segments, at most {MAX_SEGMENTS} are allowed", "use a shorter path")
    return parts


def _segment(raw: str) -> str:
    """The normal form of one segment."""
    broken = _find_broken_percent(raw)
    if broken:
        raise _Flaw(f"{broken[0]!r} is no percent-encoded byte", "write %25 for a percent sign")
    try:
        text = unquote_to_bytes(raw).decode()
    except UnicodeEncodeError:
        raise _Flaw("it has a lone surrogate, which is no character", "write the character as UTF-8") from None
    except UnicodeDecodeError:
        raise _Flaw(
            "its percent-encoded bytes are not UTF-8", "encode the text as UTF-8, then percent-encode"
        ) from None
    control = _find_control(text)
    if control:
        raise _Flaw(f"it has the control character U+{ord(control[0]):04X}", "remove it")
    text = normalize("NFC", text)
    if text in (".", ".."):
        raise _Flaw(f"it has the segment `{text}`", "write the path out: relative paths have no meaning here")
    return quote(text, safe=_LITERAL)


def _check_children(segments: Sequence[str]) -> None:
    """Refuse `children` anywhere but before the last three segments of a child."""
    if CHILDREN not in segments:
        return
    shape = f"a child is parent/{CHILDREN}/<collection>/<reporter>/<id>, and never a parent itself: use another name"
    at = segments.index(CHILDREN)
    if at == 0:
        raise _Flaw(f"the reserved segment {CHILDREN!r} has no parent before it", shape)
    if segments.count(CHILDREN) > 1:
        raise _Flaw(f"the reserved segment {CHILDREN!r} is there more than once", shape)
    behind = segments[at + 1 :]
    if len(behind) != 3:
        raise _Flaw(f"what follows the reserved segment {CHILDREN!r} is not the three segments of a child", shape)
    _check_child(behind[0], behind[1])


def _check_child(collection: str, reporter: str) -> None:
    if not _is_collection(collection):
        raise _Flaw(
            f"{collection[:_SHOWN]!r} is no collection",
            "a collection is a lower-case letter and up to 63 letters, digits, `_` or `-`",
        )
    if not _is_client(reporter):
        raise _Flaw(
            f"{reporter[:_SHOWN]!r} is no client's name", "a client's name is 1 to 64 letters, digits, `_` or `-`"
        )


def _check_length(scheme: str, authority: str, segments: Sequence[str]) -> None:
    # Between the parts: `://`, then one slash before each segment.
    length = len(scheme) + 3 + len(authority) + len(segments) + sum(map(len, segments))
    if length > MAX_URL_BYTES:
        raise _Flaw(
            f"it has {length:,} bytes in normal form, at most {MAX_URL_BYTES:,} are allowed", "use a shorter path"
        )


ONE = "*"
REST = "**"
ASKING = "{client}"
_PATTERN_MARKS = re.compile(r"[*{}]").search


@dataclass(frozen=True, slots=True)
class Pattern:
    """A set of object URLs: literal segments, `*` one segment, `**` the rest (at least one), `{client}` the asking client's name.

    `levels` are those of the topic, in normal form (a literal star is `%2A`); `*` may stand for the scheme and the authority too,
    `**` for all from anywhere on. Patterns are judged level by level: `covers` and `overlaps` know nothing of how children are named.
    """

    levels: tuple[str, ...]
    uses_client: bool = field(init=False, repr=False, compare=False)
    prefix: str = field(init=False, repr=False, compare=False)
    """What every matching topic begins with: the literal levels, each with its slash, or the whole topic."""
    _matcher: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            if len(self.levels) < 3 or self.levels != _levels(_text(self.levels)):
                raise _Flaw("its levels are not in normal form", "let Pattern.parse make them")
        except _Flaw as flaw:
            raise AddressError("/".join(self.levels), flaw.reason, flaw.hint, "pattern") from None
        expression = []
        literal = 0
        for i, level in enumerate(self.levels):
            if level == REST:
                expression.append(".++")
            elif level == ONE:
                expression.append("[^/]++")
            elif level == ASKING:
                expression.append(r"\1" if r"([^/]++)" in expression else r"([^/]++)")
            else:
                expression.append(re.escape(_bare(level)))
                literal += literal == i
        whole = literal == len(self.levels)
        head = [_bare(level) for level in self.levels[:literal]]
        object.__setattr__(self, "uses_client", ASKING in self.levels)
        object.__setattr__(self, "prefix", "/".join(head) + ("" if whole or not head else "/"))
        object.__setattr__(self, "_matcher", re.compile("/".join(expression), re.DOTALL))

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """The pattern that a text like `ctxt://home.local/{client}/**` spells, normalised. Raises AddressError."""
        try:
            return cls(_levels(text))
        except _Flaw as flaw:
            raise AddressError(text, flaw.reason, flaw.hint, "pattern") from None

    @property
    def text(self) -> str:
        """The pattern in normal form: `parse(pattern.text) == pattern`."""
        return _text(self.levels)

    def __str__(self) -> str:
        return self.text

    def matches(self, address_topic: str, client: str | None = None) -> bool:
        """Whether an object topic in normal form belongs to the pattern when `client` asks; `{client}` matches nothing for None."""
        found = self._matcher.fullmatch(address_topic)
        return found is not None and (not self.uses_client or found[1] == client)

    def covers(self, other: Pattern) -> bool:
        """Whether, whichever client asks, every topic that `other` matches for it is matched by this one as well."""
        have, want = self.levels, other.levels
        if have[-1] == REST:
            n = len(have) - 1
            # At least as many levels before a `**`, and at least one for ours.
            if len(want) <= n:
                return False
        elif len(have) == len(want):
            n = len(have)
        else:
            return False
        return all(
            mine == theirs or (mine == ONE and theirs != REST) for mine, theirs in zip(have[:n], want[:n], strict=True)
        )

    def overlaps(self, other: Pattern) -> bool:
        """Whether there is a client for which some topic is matched by both."""
        a, b = self.levels, other.levels
        names: set[str] = set()
        for x, y in zip(a, b, strict=False):
            if REST in (x, y):
                # The shorter one has reached its `**`, the other has a level at least for it.
                return True
            if x == y or ONE in (x, y):
                continue
            if ASKING not in (x, y):
                return False
            name = y if x == ASKING else x
            names.add(name)
            if len(names) > 1 or not valid_client(name):
                return False
        return len(a) == len(b)

    def topic_filter(self, client: str) -> str:
        """The MQTT filter that matches the same topics when `client` asks (`+`: any client).

        `*` is `+`, and `**` is `+/#`: `#` alone would match the level above as well [MQTT-4.7.1-2]. With `+` for a client and
        `{client}` twice it is the tightest filter above.
        """
        parts = {ONE: "+", REST: "+/#", ASKING: client}
        return "/".join(parts.get(level) or _bare(level) for level in self.levels)


def _bare(level: str) -> str:
    """A literal level of a pattern as it is in a topic."""
    return level.replace("%2A", "*")


def _text(levels: Sequence[str]) -> str:
    return f"{levels[0]}://{'/'.join(levels[1:])}"


def _levels(text: str) -> tuple[str, ...]:
    """The levels of a pattern in normal form: `**` for scheme or authority is written out, as both are always there."""
    if text == REST:
        return (ONE, ONE, REST)
    scheme, _, rest = _checked(text).partition("://")
    if rest == REST:
        rest = f"{ONE}/{REST}"
    authority, _, path = rest.partition("/")
    if not path:
        raise _Flaw("it has no path, so it matches no object", f"end it with /{REST} for all objects below")
    if ASKING in (scheme, authority):
        raise _Flaw(
            f"{ASKING} stands for the scheme or the authority, which are lower case and clients' names are not",
            f"put {ASKING} into the path, like ctxt://home.local/{ASKING}/{REST}",
        )
    parts = _split(path)
    if REST in (scheme, authority, *parts[:-1]):
        raise _Flaw(f"`{REST}` is not at the end", f"use `{ONE}` for one segment; `{REST}` is the rest")
    segments = tuple(_pattern_segment(part) for part in parts)
    scheme = scheme if scheme == ONE else _scheme(scheme)
    authority = authority if authority == ONE else _authority(authority)
    _check_pattern_children(segments)
    _check_length(scheme, authority, segments)
    return scheme, authority, *segments


def _pattern_segment(raw: str) -> str:
    if raw in (ONE, REST, ASKING):
        return raw
    mark = _PATTERN_MARKS(raw)
    if mark:
        raise _Flaw(
            f"the segment {raw[:_SHOWN]!r} has a `{mark[0]}` inside",
            f"`{ONE}`, `{REST}` and {ASKING} stand alone in their segment; write {quote(mark[0], safe='')}"
            " for the character itself",
        )
    return _segment(raw).replace("*", "%2A")


def _check_pattern_children(segments: Sequence[str]) -> None:
    """Refuse a literal `children` where no child has it: such a pattern would match nothing."""
    if CHILDREN not in segments:
        return
    if segments[-1] != REST:
        wild = {ONE, ASKING}
        # A stand-in that each place takes: what is judged is the shape.
        _check_children([("x" if part in wild else part) for part in segments])
        return
    behind = segments[segments.index(CHILDREN) + 1 : -1]
    if len(behind) > 2:
        raise _Flaw(f"`{REST}` comes after a child's id", "a child is never a parent: end the pattern earlier")
    _check_children([*(("x" if part in (ONE, ASKING) else part) for part in segments[:-1]), *"xxx"[len(behind) :]])
