from __future__ import annotations

import copy
import itertools
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from unicodedata import is_normalized, normalize
from urllib.parse import quote, unquote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from gateway.address import (
    MAX_SEGMENTS,
    MAX_SPELLING,
    MAX_URL_BYTES,
    RESERVED_CLIENTS,
    Address,
    AddressError,
    Pattern,
    is_normal_topic,
    valid_client,
)
from gateway.topics import matches, valid_filter, valid_name

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no failure."""

VECTORS = json.loads((Path(__file__).parent / "vectors" / "addresses.json").read_text(encoding="utf-8"))

# Characters with a trap: composing, decomposing to ASCII, reserved, wildcards, dots, digits of other scripts.
TRICKY = "aZ09-._~!$&'()*,;=:@+/%#?\"<>[]\\^`{|} \u00e9\u0308\u0338\u212a\u212b\u037e\u1fef\u1e9b\u0323\uac01\u11a8\u0660\U0001f600\u0085\x00\x7f"
CHARACTERS = st.sampled_from(TRICKY) | st.characters(exclude_categories=["Cs"])
NAMES = st.text(
    CHARACTERS.filter(lambda c: not ("\x00" <= c <= "\x1f" or "\x7f" <= c <= "\x9f")), min_size=1, max_size=6
).filter(lambda name: normalize("NFC", name) not in (".", "..", "children"))
SCHEMES = st.from_regex(r"[a-z][a-z0-9.-]{0,5}", fullmatch=True).filter(lambda text: text != "children")
AUTHORITIES = st.from_regex(r"[a-z0-9-]{1,4}(\.[a-z0-9-]{1,3}){0,2}(:[1-9][0-9]{0,3})?", fullmatch=True).filter(
    lambda text: text != "children"
)


def encoded(name: str) -> str:
    """The normal form of a name, as §2 of the design says it."""
    return quote(normalize("NFC", name), safe="!$&'()*,;=:@")


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, str]:
    """A URL in some spelling, and in normal form."""
    scheme, authority = draw(SCHEMES), draw(AUTHORITIES)
    names = draw(st.lists(NAMES, min_size=1, max_size=4))
    normal = f"{scheme}://{authority}/" + "/".join(map(encoded, names))
    segments = []
    for name in names:
        form = draw(st.sampled_from(["NFC", "NFD"]))
        segment = ""
        for character in normalize(form, name):  # type: ignore[arg-type]
            how = draw(st.integers(0, 2))
            percent = "".join(f"%{byte:02x}" for byte in character.encode())
            if how == 0 and character not in "/?#%":
                segment += character
            else:
                segment += percent if how == 1 else percent.upper()
        segments.append(segment)
    cased = "".join(c.upper() if draw(st.booleans()) else c for c in f"{scheme}://{authority}")
    spelled = f"{cased}/{'/'.join(segments)}"
    assume(spelled == spelled.strip())
    return spelled, normal


TRAPS = st.sampled_from(["/children", "/children/m/bob/1", "%2", "%C3%A9", "%41", "%2E", "/", ".", ".."])
URLS = st.text(CHARACTERS, max_size=30) | st.builds(
    "{}://{}/{}".format,
    SCHEMES | st.text(CHARACTERS, max_size=3),
    AUTHORITIES | st.text(CHARACTERS, max_size=5),
    st.lists(CHARACTERS | TRAPS, max_size=8).map("".join)
    | st.lists(NAMES.map(encoded) | st.just("children"), max_size=6).map("/".join),
)


def attempt(parse: Callable[[str], T], text: str) -> T | AddressError:
    try:
        return parse(text)
    except AddressError as error:
        return error


def refusal(error: AddressError) -> dict[str, str]:
    return {"text": error.text, "reason": error.reason, "hint": error.hint}


# ---- vectors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["urls"], ids=lambda case: ascii(case["text"]))
def test_a_url_is_normalised(case: dict[str, Any]) -> None:
    address = Address.parse(case["text"])
    assert (address.url, address.topic) == (case["url"], case["topic"])
    assert Address.from_topic(case["topic"]) == address
    child = case.get("child")
    assert address.is_child is (child is not None)
    if child is None:
        assert (address.parent, address.collection, address.child_reporter, address.child_id) == (None,) * 4
    else:
        assert address.parent is not None
        assert child == {
            "parent": address.parent.url,
            "collection": address.collection,
            "reporter": address.child_reporter,
            "id": address.child_id,
        }


@pytest.mark.parametrize(
    ("kind", "case"),
    [(kind, case) for kind in ("urls", "topics", "patterns") for case in VECTORS[f"refused_{kind}"]],
    ids=lambda value: ascii(value["text"]) if isinstance(value, dict) else value,
)
def test_what_is_refused_says_why_and_what_to_do(kind: str, case: dict[str, str]) -> None:
    parse = {"urls": Address.parse, "topics": Address.from_topic, "patterns": Pattern.parse}[kind]
    with pytest.raises(AddressError) as caught:
        parse(case["text"])
    assert refusal(caught.value) == case
    assert str(caught.value).endswith(f": {case['reason']}; {case['hint']}")
    str(caught.value).encode()


@pytest.mark.parametrize("case", VECTORS["topics"], ids=lambda case: case["topic"])
def test_a_normal_topic_is_an_address(case: dict[str, str]) -> None:
    assert Address.from_topic(case["topic"]).url == case["url"]
    assert is_normal_topic(case["topic"])


@pytest.mark.parametrize("case", VECTORS["refused_topics"], ids=lambda case: ascii(case["text"]))
def test_a_refused_topic_is_not_normal(case: dict[str, str]) -> None:
    assert not is_normal_topic(case["text"])


@pytest.mark.parametrize("case", VECTORS["patterns"], ids=lambda case: case["text"])
def test_a_pattern_is_normalised(case: dict[str, str]) -> None:
    pattern = Pattern.parse(case["text"])
    assert (str(pattern), pattern.prefix, pattern.topic_filter("bob")) == (
        case["normal"],
        case["prefix"],
        case["filter"],
    )
    assert Pattern.parse(pattern.text) == pattern
    assert pattern.uses_client is ("{client}" in case["normal"])


@pytest.mark.parametrize(
    "case", VECTORS["matches"], ids=lambda case: f"{case['pattern']} {case['topic']} {case['client']}"
)
def test_a_pattern_matches_what_the_vectors_say(case: dict[str, Any]) -> None:
    assert Pattern.parse(case["pattern"]).matches(case["topic"], case["client"]) is case["matches"]


# ---- one spelling per object -------------------------------------------------------------------------------------------


@settings(RELAXED, max_examples=300)
@given(spellings())
def test_every_spelling_of_an_object_gives_its_one_address(case: tuple[str, str]) -> None:
    spelled, normal = case
    assume(len(normal) <= MAX_URL_BYTES)
    address = Address.parse(spelled)
    assert address.url == normal
    assert address == Address.parse(normal)


@settings(RELAXED, max_examples=400)
@given(URLS)
def test_whatever_is_parsed_comes_out_in_normal_form_or_is_refused(text: str) -> None:
    address = attempt(Address.parse, text)
    if isinstance(address, AddressError):
        # The last guard is for those who call the constructor: parse must have found the reason itself.
        assert address.reason != "its parts are not in normal form"
        assert address.hint
        return
    assert Address.parse(address.url) == address
    assert Address.from_topic(address.topic) == address
    assert address.url.isascii()
    assert len(address.url) <= MAX_URL_BYTES
    assert address.topic == address.url.replace("://", "/", 1)
    assert valid_name(address.topic)
    assert not set(address.topic) & set("+#\0 ")
    assert address.topic[0] != "$"


@RELAXED
@given(spellings(), spellings())
def test_addresses_are_equal_exactly_when_their_texts_are(one: tuple[str, str], other: tuple[str, str]) -> None:
    a, b = Address.parse(one[0]), Address.parse(other[0])
    assert (a == b) is (a.url == b.url) is (a.topic == b.topic)
    assert hash(a) == hash(Address.parse(a.url))


@settings(RELAXED, max_examples=600)
@given(URLS | spellings().map(lambda case: case[1]), st.booleans(), st.data())
def test_the_quick_check_agrees_with_normalising(url: str, broken: bool, data: st.DataObject) -> None:
    topic = url.replace("://", "/", 1)
    if broken and topic:
        at = data.draw(st.integers(0, len(topic) - 1))
        topic = topic[:at] + data.draw(CHARACTERS | st.sampled_from(["%41", "%C3", "..", ""])) + topic[at + 1 :]
    head, _, rest = topic.partition("/")
    address = attempt(Address.parse, f"{head}://{rest}")
    normal = isinstance(address, Address) and address.topic == topic
    assert is_normal_topic(topic) is normal
    if normal:
        assert Address.from_topic(topic).topic == topic
    else:
        with pytest.raises(AddressError) as caught:
            Address.from_topic(topic)
        assert caught.value.kind == "object topic"
        if caught.value.hint.startswith("the topic is "):
            assert is_normal_topic(caught.value.hint.removeprefix("the topic is "))


@RELAXED
@given(st.text(CHARACTERS, min_size=1, max_size=8))
def test_a_percent_encoded_name_comes_back(name: str) -> None:
    segment = quote(name, safe="")
    address = attempt(Address.parse, f"ctxt://home.local/{segment}x")
    if isinstance(address, AddressError):
        assert "control character" in address.reason
        return
    assert unquote(address.segments[0]) == normalize("NFC", name + "x")


def test_nothing_composes_with_a_slash_before_it() -> None:
    """What lets a topic be judged as a whole."""
    characters = (chr(point) for point in range(0x80, 0x110000) if not 0xD800 <= point <= 0xDFFF)
    assert [c for c in characters if is_normalized("NFC", c) and not is_normalized("NFC", "/" + c)] == []


def test_no_other_spelling_is_longer_than_what_is_looked_at() -> None:
    """One byte of normal form never takes more than nine characters, whichever character composes to it."""
    longest: float = 0
    for point in range(0x80, 0x110000):
        if 0xD800 <= point <= 0xDFFF:
            continue
        character = chr(point)
        normal = normalize("NFC", character)
        if normal != character or normalize("NFD", character) != character:
            worst = max(len(quote(character)), len(quote(normalize("NFD", character))))
            longest = max(longest, worst / len(quote(normal, safe="!$&'()*,;=:@")))
    assert longest <= MAX_SPELLING / MAX_URL_BYTES


# ---- limits ------------------------------------------------------------------------------------------------------------


def test_a_url_has_at_most_1024_bytes_in_normal_form() -> None:
    head = "ctxt://home.local/"
    longest = head + "a" * (MAX_URL_BYTES - len(head))
    assert len(Address.parse(longest).url) == MAX_URL_BYTES
    assert is_normal_topic(Address.parse(longest).topic)
    with pytest.raises(AddressError, match="it has 1,025 bytes in normal form, at most 1,024 are allowed"):
        Address.parse(longest + "a")
    assert not is_normal_topic(longest.replace("://", "/") + "a")
    with pytest.raises(AddressError, match=r"1,02[0-9] bytes"):
        Address.parse(head + "\u00fc" * 168)


def test_a_long_spelling_of_a_short_url_is_taken() -> None:
    head = "ctxt://home.local/"
    room = MAX_URL_BYTES - len(head)
    assert Address.parse(head + "%e2%84%aa" * room).url == head + "K" * room


def test_a_text_of_any_length_is_refused_without_a_copy_of_it_in_the_error() -> None:
    with pytest.raises(AddressError, match="more than any spelling") as caught:
        Address.parse("ctxt://home.local/" + "%61" * 1_000_000)
    assert len(str(caught.value)) < 500


def test_a_url_has_at_most_64_segments() -> None:
    most = "ctxt://home.local" + "/a" * MAX_SEGMENTS
    assert len(Address.parse(most).segments) == MAX_SEGMENTS
    assert is_normal_topic(most.replace("://", "/"))
    with pytest.raises(AddressError, match="it has 65 segments, at most 64"):
        Address.parse(most + "/a")
    assert not is_normal_topic(most.replace("://", "/") + "/a")


def test_an_authority_has_at_most_253_bytes_before_its_port() -> None:
    host = "a" * 253
    assert Address.parse(f"ctxt://{host}:65535/x").authority == f"{host}:65535"
    assert is_normal_topic(f"ctxt/{host}:65535/x")
    with pytest.raises(AddressError, match="the authority has 254 bytes, at most 253"):
        Address.parse(f"ctxt://a{host}/x")
    assert not is_normal_topic(f"ctxt/a{host}/x")


# ---- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "authority", "segments"),
    [
        ("CTXT", "a", ("b",)),
        ("ctxt", "A", ("b",)),
        ("ctxt", "a", ()),
        ("ctxt", "a", ("",)),
        ("ctxt", "a", ("b/c",)),
        ("ctxt", "a/b", ("c",)),
        ("ctxt/a", "b", ("c",)),
        ("ctxt", "a", ("%41",)),
        ("ctxt", "a", ("b+",)),
        ("ctxt", "a", ("b", "children")),
    ],
)
def test_an_address_that_is_not_normal_cannot_be_built(scheme: str, authority: str, segments: tuple[str, ...]) -> None:
    with pytest.raises(AddressError, match=r"not in normal form; let Address\.parse make them"):
        Address(scheme, authority, segments)


def test_an_address_is_a_value() -> None:
    address = Address.parse("ctxt://home.local/room")
    assert copy.copy(address) == pickle.loads(pickle.dumps(address)) == address
    assert str(address) == "ctxt://home.local/room"
    assert {address: 1}[Address("ctxt", "home.local", ("room",))] == 1


def test_an_address_error_survives_pickling() -> None:
    with pytest.raises(AddressError) as caught:
        Address.parse("room")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["a", "A-z_0", "x" * 64, *sorted(RESERVED_CLIENTS)])
def test_a_client_name_is_letters_digits_underscore_and_hyphen(name: str) -> None:
    assert valid_client(name)


@pytest.mark.parametrize("name", ["", "x" * 65, "a.b", "a b", "a/b", "+", "#", "$x", "\u00fc", "\u0661", "a\n", "%41"])
def test_anything_wider_is_no_client_name(name: str) -> None:
    assert not valid_client(name)


# ---- children ----------------------------------------------------------------------------------------------------------


def test_a_child_is_made_from_its_parent() -> None:
    room = Address.parse("comm://home.local/room")
    child = room.child("messages", "bob", "1 a")
    assert child.url == "comm://home.local/room/children/messages/bob/1%20a"
    assert child.parent == room


@pytest.mark.parametrize(
    ("collection", "reporter", "child_id", "reason"),
    [
        ("Messages", "bob", "1", "'Messages' is no collection"),
        ("messages", "b.b", "1", "'b.b' is no client's name"),
        ("messages", "bob", "1/2", "is not the three segments of a child"),
        ("messages", "bob", "", "it has an empty segment"),
        ("messages", "children", "1", "is there more than once"),
        ("m" * 65, "bob", "1", "is no collection"),
    ],
)
def test_a_child_has_a_collection_a_reporter_and_an_id(
    collection: str, reporter: str, child_id: str, reason: str
) -> None:
    with pytest.raises(AddressError, match=reason):
        Address.parse("comm://home.local/room").child(collection, reporter, child_id)


def test_a_child_is_never_a_parent() -> None:
    child = Address.parse("comm://home.local/room").child("messages", "bob", "1")
    with pytest.raises(AddressError, match="more than once"):
        child.child("messages", "bob", "2")


# ---- patterns ----------------------------------------------------------------------------------------------------------

MARKS = ("a", "b", "*", "{client}")
PATTERNS = [
    Pattern.parse("ctxt://h/" + "/".join((*parts, *tail)))
    for n in range(4)
    for parts in itertools.product(MARKS, repeat=n)
    for tail in ((), ("**",))
    if 0 < n + len(tail) <= 3
]
# A word and a name that no pattern has, and one level more than any.
WORDS = ("a", "b", "z")
TOPICS = ["ctxt/h/" + "/".join(parts) for n in range(1, 5) for parts in itertools.product(WORDS, repeat=n)]
CASES = [(topic, client) for topic in TOPICS for client in WORDS]


def oracle(levels: tuple[str, ...], parts: tuple[str, ...], client: str | None) -> bool:
    if levels == ("**",):
        return len(parts) > 0
    if not levels or not parts:
        return not levels and not parts
    first = levels[0]
    fits = first == "*" or (parts[0] == client if first == "{client}" else parts[0] == first)
    return fits and oracle(levels[1:], parts[1:], client)


def matched(pattern: Pattern) -> int:
    return sum(
        1 << i for i, (topic, client) in enumerate(CASES) if oracle(pattern.levels, tuple(topic.split("/")), client)
    )


MATCHED = {pattern: matched(pattern) for pattern in PATTERNS}


def test_a_pattern_matches_level_by_level() -> None:
    wrong = [
        (pattern.text, topic, client)
        for pattern, bits in MATCHED.items()
        for i, (topic, client) in enumerate(CASES)
        if pattern.matches(topic, client) is not bool(bits >> i & 1)
    ]
    assert wrong == []


def test_nobody_is_no_client() -> None:
    assert [
        (pattern.text, topic)
        for pattern in PATTERNS
        for topic in TOPICS
        if pattern.matches(topic) is not (not pattern.uses_client and pattern.matches(topic, "a"))
    ] == []


def test_a_pattern_covers_another_exactly_when_it_matches_all_of_it() -> None:
    wrong = [
        (one.text, other.text)
        for one, other in itertools.product(PATTERNS, repeat=2)
        if one.covers(other) is not (MATCHED[other] & ~MATCHED[one] == 0)
    ]
    assert wrong == []


def test_patterns_overlap_exactly_when_one_client_finds_a_common_topic() -> None:
    wrong = [
        (one.text, other.text)
        for one, other in itertools.product(PATTERNS, repeat=2)
        if one.overlaps(other) is not bool(MATCHED[one] & MATCHED[other])
    ]
    assert wrong == []


def test_a_topic_filter_matches_exactly_what_the_pattern_matches() -> None:
    extra = ["ctxt", "ctxt/h", "ctxt/h/", "ctxt/g/a", "comm/h/a"]
    wrong = [
        (pattern.text, topic, client)
        for pattern in PATTERNS
        for client in WORDS
        for topic in [*TOPICS, *extra[:2], *extra[3:]]
        if matches(pattern.topic_filter(client), topic) is not pattern.matches(topic, client)
    ]
    assert wrong == []
    assert all(valid_filter(pattern.topic_filter("bob")) for pattern in PATTERNS)


def test_a_topic_filter_for_any_client_has_a_plus_for_it() -> None:
    assert Pattern.parse("ctxt://home.local/{client}/**").topic_filter("+") == "ctxt/home.local/+/+/#"


def test_every_topic_that_matches_begins_with_the_prefix() -> None:
    for pattern, bits in MATCHED.items():
        found = [topic for i, (topic, _) in enumerate(CASES) if bits >> i & 1]
        assert found
        assert all(topic.startswith(pattern.prefix) for topic in found)


@pytest.mark.parametrize(
    ("one", "other", "covers", "overlaps"),
    [
        ("**", "ctxt://home.local/**", True, True),
        ("**", "ctxt://**", True, True),
        ("ctxt://**", "ctxt://*/**", True, True),
        ("ctxt://*/**", "ctxt://**", True, True),
        ("ctxt://**", "comm://**", False, False),
        ("*://home.local/**", "ctxt://*/room", False, True),
        ("ctxt://*/room", "ctxt://home.local/room", True, True),
        ("ctxt://h/%2A", "ctxt://h/*", False, True),
        ("ctxt://h/*", "ctxt://h/%2A", True, True),
        ("ctxt://h/{client}", "ctxt://h/no.client", False, False),
        ("ctxt://h/{client}/{client}", "ctxt://h/bob/alice", False, False),
        ("ctxt://h/{client}/**", "ctxt://h/bob/room", False, True),
    ],
)
def test_patterns_are_compared(one: str, other: str, covers: bool, overlaps: bool) -> None:
    a, b = Pattern.parse(one), Pattern.parse(other)
    assert a.covers(b) is covers
    assert a.overlaps(b) is overlaps
    assert b.overlaps(a) is overlaps


@RELAXED
@given(spellings())
def test_a_url_without_stars_or_braces_is_a_pattern_of_itself(case: tuple[str, str]) -> None:
    spelled, normal = case
    assume(not set(spelled) & set("*{}"))
    pattern = Pattern.parse(spelled)
    topic = Address.parse(normal).topic
    assert pattern.prefix == topic
    assert pattern.matches(topic)
    assert pattern.topic_filter("bob") == topic


@RELAXED
@given(st.text(st.sampled_from("ctxt:/h*{}client%2A.?#\u00e9 "), max_size=24) | URLS)
def test_whatever_is_no_pattern_ends_in_an_address_error(text: str) -> None:
    pattern = attempt(Pattern.parse, text)
    if isinstance(pattern, AddressError):
        assert pattern.kind == "pattern"
        assert pattern.reason != "its levels are not in normal form"
        return
    assert Pattern.parse(pattern.text) == pattern


@pytest.mark.parametrize(
    "levels",
    [
        (),
        ("ctxt",),
        ("ctxt", "h"),
        ("CTXT", "h", "a"),
        ("ctxt", "h", "**", "a"),
        ("ctxt", "h", "%41"),
        ("ctxt", "h/a", "b"),
        ("ctxt", "**", "**"),
    ],
)
def test_a_pattern_that_is_not_normal_cannot_be_built(levels: tuple[str, ...]) -> None:
    with pytest.raises(AddressError):
        Pattern(levels)
