"""Filters judged by brute force: every filter of up to four levels over a small alphabet against every topic it could match."""

from __future__ import annotations

import itertools
import random

import pytest

from gateway.topics import MAX_LEVELS, Share, covers, matches, overlaps, split_share, valid_filter, valid_name

WORDS = ("", "a", "$")
DEPTH = 4


def names(depth: int) -> list[str]:
    """Every topic name of up to `depth` levels over WORDS. The empty one is no topic."""
    made = ("/".join(parts) for n in range(1, depth + 1) for parts in itertools.product(WORDS, repeat=n))
    return [name for name in made if name]


def filters(depth: int) -> list[str]:
    made = ("/".join(parts) for n in range(1, depth + 1) for parts in itertools.product((*WORDS, "+", "#"), repeat=n))
    return [made_filter for made_filter in made if valid_filter(made_filter)]


# One level more than any filter has, and a word that none of them has: what `#` and `+` match beyond the alphabet.
TOPICS = [*names(DEPTH), *(f"{name}/z" for name in names(DEPTH)), "z", *(f"z/{name}" for name in names(DEPTH - 1))]
FILTERS = filters(DEPTH)


def wanted_by(levels: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """MQTT 5 section 4.7.1, read literally."""
    if levels == ("#",):
        return True
    if not levels or not parts:
        return not levels and not parts
    if levels[0] not in ("+", parts[0]):
        return False
    return levels[1:] == ("#",) or wanted_by(levels[1:], parts[1:])


def oracle(topic_filter: str, topic: str) -> bool:
    if topic.startswith("$") and topic_filter[0] in "+#":
        return False
    return wanted_by(tuple(topic_filter.split("/")), tuple(topic.split("/")))


def matched_sets() -> dict[str, int]:
    """Each filter with the topics it matches, as bits."""
    return {
        topic_filter: sum(1 << i for i, topic in enumerate(TOPICS) if oracle(topic_filter, topic))
        for topic_filter in FILTERS
    }


MATCHED = matched_sets()


def pairs() -> list[tuple[str, str]]:
    """All pairs of filters of up to three levels, and a random part of the deeper ones."""
    few = [topic_filter for topic_filter in FILTERS if topic_filter.count("/") < 3]
    draw = random.Random(7)
    return [
        *((one, other) for one in few for other in few),
        *((draw.choice(FILTERS), draw.choice(FILTERS)) for _ in range(40_000)),
    ]


def test_a_filter_matches_what_the_specification_says() -> None:
    wrong = [
        (topic_filter, topic)
        for topic_filter, bits in MATCHED.items()
        for i, topic in enumerate(TOPICS)
        if matches(topic_filter, topic) is not bool(bits >> i & 1)
    ]
    assert wrong == []


def test_every_filter_of_the_alphabet_matches_something() -> None:
    assert [topic_filter for topic_filter, bits in MATCHED.items() if not bits] == []


def test_covers_is_inclusion_of_the_matched_topics() -> None:
    wrong = [
        (granted, wanted)
        for granted, wanted in pairs()
        if covers(granted, wanted) is not (MATCHED[wanted] & ~MATCHED[granted] == 0)
    ]
    assert wrong == []


def test_overlaps_is_a_common_matched_topic() -> None:
    wrong = [(one, other) for one, other in pairs() if overlaps(one, other) is not bool(MATCHED[one] & MATCHED[other])]
    assert wrong == []


@pytest.mark.parametrize(
    ("granted", "wanted", "covered"),
    [
        ("a/+", "a/#", False),
        ("a/#", "a/+", True),
        ("a/#", "a", True),
        ("#", "$SYS/#", False),
        ("+/a", "$SYS/a", False),
        ("#", "+/#", True),
        ("+/#", "#", True),
        ("a/+/#", "a/#", False),
        ("a/+", "a/", True),
    ],
)
def test_a_granted_filter_covers_a_wanted_one_only_where_it_matches_all_of_it(
    granted: str, wanted: str, covered: bool
) -> None:
    assert covers(granted, wanted) is covered


@pytest.mark.parametrize("topic", ["a", "/", "a//b", "$SYS/x", " ", "ü"])
def test_a_topic_name_may_have_empty_levels(topic: str) -> None:
    assert valid_name(topic)


@pytest.mark.parametrize("topic", ["", "a/+", "a/#", "a+", "a\0", "a" * 65_536, "/" * MAX_LEVELS])
def test_a_topic_name_has_no_wildcard_no_nul_and_a_bound(topic: str) -> None:
    assert not valid_name(topic)


@pytest.mark.parametrize("topic_filter", ["#", "+", "/", "+/+", "a/+/#", "$SYS/#", "/#"])
def test_wildcards_alone_in_their_level_are_a_filter(topic_filter: str) -> None:
    assert valid_filter(topic_filter)


@pytest.mark.parametrize("topic_filter", ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "##", "a\0", "a" * 65_536, "/" * 128])
def test_wildcards_inside_a_level_are_no_filter(topic_filter: str) -> None:
    assert not valid_filter(topic_filter)


def test_a_shared_subscription_is_taken_apart() -> None:
    assert split_share("$share/group/a/+") == Share("group", "a/+")
    assert split_share("$share/group//a") == Share("group", "/a")
    assert split_share("a/$share/group") is None
    assert split_share("$shared/group/a") is None


@pytest.mark.parametrize(
    "topic_filter", ["$share", "$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/#"]
)
def test_a_shared_subscription_without_name_or_filter_is_refused(topic_filter: str) -> None:
    with pytest.raises(ValueError, match=r"write \$share/NAME/FILTER"):
        split_share(topic_filter)
