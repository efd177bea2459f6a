from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.explain import why
from gateway.objects import PUBLIC, DataObject, Objects
from gateway.rights import (
    ACTIONS,
    ANONYMOUS,
    OBSERVED,
    RESERVED,
    Clients,
    Namespace,
    Permissions,
    Rights,
    TopicRule,
    namespace,
)
from gateway.topics import covers, matches, overlaps
from tests.world import CATALOGUE, EVERYONE, NOBODY, only, own

if TYPE_CHECKING:
    from collections.abc import Iterable


def thing(topic: str, reporter: str, rights_namespace: object = None) -> DataObject:
    return DataObject(
        topic=topic,
        schema=CATALOGUE.get("Context"),
        reporter=reporter,
        name="x",
        version=1,
        created=0,
        modified=0,
        data={},
        namespace=rights_namespace,  # type: ignore[arg-type]
    )


def rights(*namespaces: object, rules: tuple[TopicRule, ...] = (), prefix: str = "") -> Rights:
    found = namespaces or (own(),)
    return Rights(found, rules, Objects([thing("ctxt/home.local/sensor/room", "sensor", found[0])]), prefix=prefix)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("client", "topic", "may"),
    [
        ("sensor", "report/sensor/ctxt/home.local/sensor/room", True),
        ("mallory", "report/sensor/ctxt/home.local/sensor/room", False),
        ("sensor", "report/sensor", False),
        ("sensor", "report/sensor/", True),  # the engine refuses the empty URL
        ("sens", "report/sensor/x", False),
        ("sensor", "request/sensor", True),
        ("mallory", "request/sensor", False),
        ("sensor", "request/sensor/x", False),
        ("sensor", "presence/sensor", True),
        ("mallory", "presence/sensor", False),
        (ANONYMOUS, "presence/anonymous", False),
        (ANONYMOUS, "request/anonymous", False),
        ("sensor", "snapshot/ctxt/home.local/sensor/room", False),
        ("sensor", "delta/ctxt/home.local/sensor/room", False),
        ("sensor", "value/ctxt/home.local/sensor/room", False),
        ("sensor", "inbox/sensor", False),
        ("sensor", "gateway/gateway1", False),
        ("sensor", "replica/gateway1/x", False),
        ("sensor", "anything/else", False),
        ("sensor", "$SYS/broker/x", False),
    ],
)
def test_a_client_publishes_only_in_its_own_name(client: str, topic: str, may: bool) -> None:
    assert rights().may(client, "publish", topic) is may


@pytest.mark.parametrize(
    ("client", "topic", "may"),
    [
        ("dash", "snapshot/ctxt/home.local/sensor/room", True),
        ("dash", "delta/ctxt/home.local/sensor/room", True),
        ("dash", "snapshot/ctxt/elsewhere.local/sensor/room", False),
        ("dash", "inbox/dash", True),
        ("dash", "inbox/dash/1", True),
        ("dash", "inbox/dashboard", False),
        ("mallory", "inbox/dash", False),
        (ANONYMOUS, "inbox/anonymous", False),
        (ANONYMOUS, "snapshot/ctxt/home.local/sensor/room", False),
        (ANONYMOUS, "gateway/gateway1", True),
        ("dash", "gateway/gateway1", True),
        ("dash", "report/sensor/ctxt/home.local/sensor/room", False),
        ("dash", "request/sensor", False),
        ("dash", "presence/sensor", False),
        ("dash", "replica/x/y", False),
    ],
)
def test_a_client_receives_what_it_may_read(client: str, topic: str, may: bool) -> None:
    assert rights().may(client, "receive", topic) is may


def test_a_closed_object_is_read_by_its_reporter_and_nobody_else() -> None:
    closed = own(observe=NOBODY)
    mine = rights(closed)
    topic = "snapshot/ctxt/home.local/sensor/room"
    assert mine.may("sensor", "receive", topic)
    assert mine.may("sensor", "receive", topic + "/children/actions/dash/1") is True
    assert not mine.may("dash", "receive", topic)
    assert mine.may("sensor", "subscribe", topic)
    assert mine.may("sensor", "subscribe", "snapshot/#")
    assert not mine.may("dash", "subscribe", topic)


def test_a_subscription_that_can_match_nothing_readable_is_refused() -> None:
    mine = rights()
    for topic_filter in (
        "delta/#",
        "#",
        "+/#",
        "snapshot/ctxt/home.local/+/room",
        "inbox/dash",
        "inbox/dash/#",
        "gateway/+",
    ):
        assert mine.may("dash", "subscribe", topic_filter), topic_filter
    for topic_filter in (
        "inbox/sensor",
        "report/#",
        "request/+",
        "presence/#",
        "delta/comm/#",
        "other/x",
        "$SYS/#",
        "snapshot/ctxt/elsewhere/#",
    ):
        assert not mine.may("dash", "subscribe", topic_filter), topic_filter
    assert mine.may("dash", "subscribe", "$share/g/delta/#")
    assert not mine.may("dash", "subscribe", "$share/g/report/#")
    assert not mine.may("dash", "subscribe", "$share/g")


def test_whatever_may_be_received_may_be_subscribed() -> None:
    """No filter that matches a readable topic is refused: over all filters of up to four levels below a small alphabet."""
    mine = rights(
        namespace("ctxt://a/{client}/**", schema="Context", report=EVERYONE, observe=only("dash")),
        namespace("ctxt://b/*/y", schema="Context", report=NOBODY, observe=EVERYONE),
        rules=(TopicRule("x/{client}/#", EVERYONE, EVERYONE),),
    )
    levels = ["ctxt", "a", "b", "y", "dash", "x", "snapshot", "inbox"]
    topics = ["/".join(parts) for n in range(1, 4) for parts in itertools.product(levels, repeat=n)] + [
        f"snapshot/ctxt/{a}/{b}/{c}" for a in "ab" for b in ("y", "dash") for c in ("y", "dash")
    ]
    readable = [topic for topic in topics if mine.may_receive("dash", topic)]
    assert len(readable) > 10
    filters = [
        "/".join(parts)
        for n in range(1, 4)
        for parts in itertools.product(["+", "#", *levels], repeat=n)
        if "#" not in parts[:-1]
    ]
    for topic_filter in filters:
        if any(matches(topic_filter, topic) for topic in readable):
            assert mine.may_subscribe("dash", topic_filter), topic_filter


def test_topic_rules_open_other_topics_and_bind_the_client() -> None:
    mine = rights(rules=(TopicRule("zigbee2mqtt/{client}/#", EVERYONE, only("dash")),))
    assert mine.may("plug", "publish", "zigbee2mqtt/plug/set")
    assert not mine.may("plug", "publish", "zigbee2mqtt/other/set")
    assert mine.may("dash", "receive", "zigbee2mqtt/dash/x")
    assert not mine.may("plug", "receive", "zigbee2mqtt/plug/x")


def test_topics_that_begin_with_a_dollar_sign_are_opened_by_rules_that_say_so() -> None:
    closed = rights(rules=(TopicRule("#", EVERYONE, EVERYONE), TopicRule("+/things/#", EVERYONE, EVERYONE)))
    mine = rights(rules=(TopicRule("$aws/things/{client}/#", EVERYONE, only("dash")),))
    topic = "$aws/things/plug/shadow/update"
    assert not closed.may("plug", "publish", topic)
    assert not closed.may("dash", "receive", topic)
    assert mine.may("plug", "publish", topic)
    assert not mine.may("other", "publish", topic)
    assert mine.may("dash", "receive", "$aws/things/dash/x")
    assert not mine.may("plug", "receive", topic)
    assert mine.may("dash", "subscribe", "$share/g/$aws/things/+/x")
    assert not mine.may("plug", "subscribe", "$aws/#")
    assert rights(rules=(TopicRule("$aws/#", EVERYONE, EVERYONE),)).may("plug", "subscribe", "$aws/+/x")
    reserved = rights(rules=tuple(TopicRule(f"{head}/#", EVERYONE, EVERYONE) for head in RESERVED))
    for head in RESERVED:
        for name in (head, f"{head}/x"):
            assert not reserved.may("plug", "publish", name)
            assert not reserved.may("plug", "receive", name)


def test_the_first_namespace_that_matches_decides() -> None:
    mine = rights(
        namespace("ctxt://home.local/private/**", schema="Context", report=EVERYONE, observe=NOBODY),
        namespace("ctxt://home.local/**", schema="Context", report=NOBODY, observe=EVERYONE),
    )
    assert not mine.may_observe("dash", "ctxt/home.local/private/x")
    assert mine.may_observe("dash", "ctxt/home.local/public/x")
    assert mine.may_create("dash", "ctxt/home.local/private/x")
    assert not mine.may_create("dash", "ctxt/home.local/public/x")


def test_groups_and_stars_are_resolved_and_anonymous_is_nobody_unless_named() -> None:
    groups = {"kitchen": ["oven", "fridge"]}
    clients = Clients.resolve(["@kitchen", "dash"], groups)
    assert [name in clients for name in ("oven", "dash", "other")] == [True, True, False]
    everyone = Clients.resolve(["*"], groups)
    assert "other" in everyone
    assert ANONYMOUS not in everyone
    assert ANONYMOUS in Clients.resolve(["*", ANONYMOUS], groups)
    with pytest.raises(KeyError):
        Clients.resolve(["@nobody"], groups)


def test_a_prefix_goes_before_every_verb() -> None:
    mine = rights(prefix="site/one")
    assert mine.may("sensor", "publish", "site/one/report/sensor/ctxt/home.local/sensor/room")
    assert not mine.may("sensor", "publish", "report/sensor/ctxt/home.local/sensor/room")
    assert mine.may("dash", "receive", "site/one/delta/ctxt/home.local/sensor/room")
    assert mine.may("dash", "subscribe", "site/#")
    assert not mine.may("dash", "subscribe", "delta/#")


def test_a_subscription_is_judged_in_bounded_time_however_many_objects_the_client_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objects = Objects([thing(f"ctxt/old/{i}", "bridge") for i in range(1_000)])
    judge = Rights([own(observe=NOBODY, report=NOBODY)], (), objects)
    looked: list[int] = []

    def counting(one: str, other: str) -> bool:
        looked.append(1)
        return overlaps(one, other)

    monkeypatch.setattr("gateway.rights.overlaps", counting)
    for topic_filter in ("snapshot/ctxt/+/+/+/+/none", "snapshot/ctxt/old/none", "snapshot/ctxt/old/none/#"):
        looked.clear()
        judge.may("bridge", "subscribe", topic_filter)
        assert len(looked) < 500
    assert not judge.may("bridge", "subscribe", "snapshot/ctxt/old/none")
    assert judge.may("bridge", "subscribe", "snapshot/ctxt/old/3/children/#")
    assert judge.may("bridge", "subscribe", "snapshot/ctxt/old/3")
    assert judge.may("bridge", "subscribe", "snapshot/ctxt/old/999")
    assert judge.may("bridge", "subscribe", "snapshot/ctxt/old/#")


def test_wide_filters_below_a_prefix_are_granted_where_something_can_match() -> None:
    judge = rights(prefix="site/one")
    for topic_filter in ("#", "+/#", "site/#", "+/one/snapshot/#", "site/+/delta/+/home.local/+/room", "site/one/+/#"):
        assert judge.may("dash", "subscribe", topic_filter), topic_filter
    for topic_filter in ("snapshot/#", "+", "site/+", "site/two/#", "+/two/#", "site/one", "site/one/report/#"):
        assert not judge.may("dash", "subscribe", topic_filter), topic_filter
    assert not judge.may("dash", "receive", "snapshot/ctxt/home.local/sensor/room")
    assert judge.may("dash", "receive", "site/one/snapshot/ctxt/home.local/sensor/room")
    assert not judge.may("sensor", "publish", "report/sensor/ctxt/home.local/sensor/room")


def test_the_brokers_own_values_are_for_those_named_and_never_written() -> None:
    named = Rights([own()], (), Objects(), prefix="site", statistics=only("dash"))
    everyone = Rights([own()], (), Objects(), statistics=EVERYONE)
    for found, client, may in (
        (named, "dash", True),
        (named, "sensor", False),
        (named, ANONYMOUS, False),
        (everyone, "sensor", True),
        (everyone, ANONYMOUS, False),
        (rights(), "sensor", False),
    ):
        assert found.may(client, "receive", "$SYS/broker/uptime") is may
        for wanted in ("$SYS/#", "$SYS/broker/uptime", "$share/g/$SYS/broker/#"):
            assert found.may(client, "subscribe", wanted) is may
        assert not found.may(client, "receive", "$SYS/other")
        assert not found.may(client, "subscribe", "$SYS/other/#")
        assert not found.may(client, "publish", "$SYS/broker/uptime")


# ---- compiled ------------------------------------------------------------------------------------------------------------

PEOPLE = ("ann", "bob", "cat", ANONYMOUS)
LEVELS = ("room", "hall")
PARENTS = tuple(
    f"ctxt/{authority}/{path}"
    for authority in ("home", "shed")
    for n in (1, 2, 3)
    for path in ("/".join(path) for path in itertools.product((*LEVELS, "ann"), repeat=n))
    if n < 3 or path.startswith("room/")
)
CHILDREN_OF = tuple(f"{parent}/children/{kind}/bob/1" for parent in PARENTS for kind in ("actions", "x"))
FACES = tuple(f"{verb}/{topic}" for verb in OBSERVED for topic in (*PARENTS, *CHILDREN_OF))
OTHERS = (
    *(f"{verb}/{who}" for verb in ("report", "request", "presence", "inbox") for who in PEOPLE),
    *(f"{verb}/{who}/x/y" for verb in ("report", "request", "presence", "inbox") for who in PEOPLE),
    *(
        "gateway/one",
        "gateway/one/x",
        "gateway",
        "replica/one/x",
        "$SYS/broker/x",
        "$SYS/x",
        "device/ann/x",
        "device/bob",
    ),
)

patterns = st.builds(
    lambda authority, path, tail: f"ctxt://{authority}/" + "/".join([*path, *tail]),
    st.sampled_from(["home", "shed", "*"]),
    st.lists(st.sampled_from([*LEVELS, "*", "{client}"]), max_size=2),
    st.sampled_from([["**"], ["room"], ["*"], ["hall"], ["*"] * 4]),
).filter(lambda text: text.count("{client}") < 2)
lists = st.builds(
    lambda everyone, names, groups: Clients(everyone, frozenset(names), frozenset(groups)),
    st.booleans(),
    st.sets(st.sampled_from(PEOPLE), max_size=2),
    st.sets(st.sampled_from(["staff"]), max_size=1),
)


@st.composite
def worlds(draw: st.DrawFn) -> Rights:
    """Some namespaces, a rule, objects of several Reporters, grants, public objects, a group by token, a client that is disabled."""
    spaces: list[Namespace] = [
        namespace(draw(patterns), schema="Context", report=draw(lists), observe=draw(lists), public=draw(st.booleans()))
        for _ in range(draw(st.integers(1, 4)))
    ]
    rules = [TopicRule("device/{client}/#", draw(lists), draw(lists))]
    judge = Rights(spaces, rules, Objects(), statistics=draw(lists))
    for topic in draw(st.lists(st.sampled_from((*PARENTS, *CHILDREN_OF)), max_size=6, unique=True)):
        judge.objects.add(thing(topic, draw(st.sampled_from(PEOPLE[:3])), judge.namespace_of(topic)))
    for obj in list(judge.objects):
        for client in draw(st.sets(st.sampled_from(PEOPLE[:3]), max_size=1)):
            judge.grant(obj, client)
        if obj.parent is None and draw(st.booleans()):
            judge.grant(obj, PUBLIC)
    for client in draw(st.sets(st.sampled_from(PEOPLE[:3]), max_size=1)):
        judge.join(client, ["staff"], 10.0)
    judge.bar(draw(st.sets(st.sampled_from(PEOPLE[:3]), max_size=1)))
    return judge


def allowed(permissions: Permissions, topic: str, *, publish: bool = False) -> bool:
    """What a broker says that decides by these filters."""
    if publish:
        return any(matches(each, topic) for each in permissions.publish)
    if any(matches(each, topic) for each in permissions.deny):
        return False
    return any(matches(each, topic) for each in permissions.receive)


def readable(judge: Rights, client: str, topics: Iterable[str]) -> set[str]:
    return {topic for topic in topics if judge.may_receive(client, topic)}


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_what_is_compiled_says_what_is_judged(judge: Rights) -> None:
    """Of all that exists, and of all that may come into being unless objects are listed."""
    for client in PEOPLE:
        permissions = judge.permissions(client)
        for topic in (*FACES, *OTHERS):
            may = judge.may_receive(client, topic)
            compiled = allowed(permissions, topic)
            if may and not compiled:
                # Nothing but an object that is not there may be missing, and only where objects are listed.
                about = topic.partition("/")[2]
                assert permissions.listed, (client, topic)
                assert about.partition("/children/")[0] not in judge.objects, (client, topic)
            else:
                assert may == compiled, (client, topic, permissions)
            assert judge.may_publish(client, topic) == allowed(permissions, topic, publish=True), (client, topic)


@settings(max_examples=300, deadline=None)
@given(
    worlds(),
    st.lists(st.sampled_from(["ctxt", "home", "shed", "room", "hall", "ann", "+"]), max_size=4),
    st.sampled_from([(), ("#",)]),
    st.sampled_from([*OBSERVED, "+", "gateway", "inbox"]),
)
def test_whoever_may_read_all_of_a_filter_may_read_each_of_it(
    judge: Rights, levels: list[str], tail: tuple[str, ...], verb: str
) -> None:
    wanted = "/".join([verb, *levels, *tail])
    for client in PEOPLE:
        if judge.may_read_all(client, wanted):
            for topic in (*FACES, *OTHERS):
                base = topic.partition("/")[2].partition("/children/")[0]
                nothing = topic in FACES and judge.namespace_of(base) is None and base not in judge.objects
                # What is not there and cannot be is read by nobody.
                assert nothing or not matches(wanted, topic) or judge.may_receive(client, topic), topic


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_the_reason_given_is_the_answers(judge: Rights) -> None:
    filters = (
        "#",
        "snapshot/#",
        "delta/ctxt/home/room",
        "$share/g/value/#",
        "device/ann/x",
        "inbox/#",
        "gateway/#",
        "$share/x",
    )
    for client in PEOPLE:
        for topic in (*FACES[::3], *OTHERS):
            for action in ACTIONS[::2]:
                may, reason = why(judge, client, action, topic)
                assert may == judge.may(client, action, topic), (client, action, topic, reason)
                assert reason
        for wanted in filters:
            may, reason = why(judge, client, "subscribe", wanted)
            assert may == judge.may(client, "subscribe", wanted), (client, wanted, reason)


@settings(max_examples=200, deadline=None)
@given(worlds(), worlds())
def test_who_has_lost_something_is_told(before: Rights, after: Rights) -> None:
    for client in PEOPLE:
        lost = after.permissions(client).lost(before.permissions(client))
        was, now = before.permissions(client), after.permissions(client)
        gone = any(allowed(was, topic) and not allowed(now, topic) for topic in FACES)
        assert lost or not gone
        assert not was.lost(was)


def test_a_closed_object_below_an_open_one_is_a_hole_and_a_grant_in_it_lists_the_rest() -> None:
    open_to_all = Clients(True, frozenset())
    judge = Rights(
        [
            namespace("ctxt://home/room/*", schema="Context", report=open_to_all, observe=NOBODY),
            namespace("ctxt://home/**", schema="Context", report=open_to_all, observe=open_to_all),
        ],
        [],
        Objects(),
    )
    for topic in ("ctxt/home/room", "ctxt/home/room/temperature", "ctxt/home/hall"):
        judge.objects.add(thing(topic, "ann", judge.namespace_of(topic)))
    bob = judge.permissions("bob")
    assert not bob.listed
    assert "snapshot/ctxt/home/room/+" in bob.deny
    assert judge.may_read_all("bob", "snapshot/ctxt/home/hall/#")
    assert judge.may_read_all("ann", "snapshot/ctxt/home/hall/#")
    for wide in ("snapshot/ctxt/home/#", "snapshot/#", "snapshot/+/home/+/temperature", "+/ctxt/home/hall", "#"):
        assert not judge.may_read_all("bob", wide), wide
    judge.grant(judge.objects.get("ctxt/home/room/temperature"), "bob")  # type: ignore[arg-type]
    granted = judge.permissions("bob")
    assert granted.listed
    assert not granted.deny
    assert {"snapshot/ctxt/home/room", "snapshot/ctxt/home/room/temperature", "snapshot/ctxt/home/hall"} <= set(
        granted.receive
    )
    assert judge.may_receive("bob", "delta/ctxt/home/room/temperature")
    assert not judge.may_receive("cat", "delta/ctxt/home/room/temperature")


def test_grants_and_a_tokens_groups_end_when_they_say() -> None:
    staff = Clients.resolve(["@staff"], {"staff": []})
    judge = rights(namespace("ctxt://home.local/**", schema="Context", report=staff, observe=staff))
    room = judge.objects.get("ctxt/home.local/sensor/room")
    assert room is not None
    delta = "delta/ctxt/home.local/sensor/room"
    assert judge.grant(room, "dash", 100.0)
    assert not judge.grant(room, "dash", 200.0), "no more than before"
    assert judge.join("cook", ["staff", "unheard-of"], 150.0)
    seen = judge.generation
    assert judge.expire(149.0) == []
    assert judge.generation == seen
    assert readable(judge, "dash", [delta]) == readable(judge, "cook", [delta]) == {delta}
    assert ("cook", None) in judge.expire(150.0)
    assert not readable(judge, "cook", [delta])
    assert judge.expire(200.0) == [("dash", room)]
    assert not readable(judge, "dash", [delta])
    assert judge.generation > seen
    assert not judge.revoke(room, "dash")


def filters(depth: int) -> list[str]:
    """Every well-formed filter of up to `depth` levels over a small alphabet; an empty level and `$` among its letters."""
    found = []
    for n in range(1, depth + 1):
        for head in itertools.product(("a", "$b", "", "+"), repeat=n - 1):
            found += ["/".join((*head, last)) for last in ("a", "$b", "", "+", "#")]
    return [each for each in found if each]


def test_covers_and_overlaps_are_what_matching_says_for_all_filters_of_four_levels() -> None:
    """The oracle: sets of topics, one level deeper than the filters and with a letter that no filter has."""
    topics = [
        topic
        for n in range(1, 6)
        for topic in ("/".join(levels) for levels in itertools.product(("a", "$b", "", "z"), repeat=n))
        if topic
    ]
    sets = dict.fromkeys(filters(4), 0)
    for each in sets:
        for bit, topic in enumerate(topics):
            if matches(each, topic):
                sets[each] |= 1 << bit
    for granted, have in sets.items():
        for wanted, want in sets.items():
            assert covers(granted, wanted) == (want & ~have == 0), (granted, wanted)
            assert overlaps(granted, wanted) == (want & have != 0), (granted, wanted)


def test_a_wide_filter_may_be_read_where_nothing_below_it_is_closed_until_something_is() -> None:
    open_to_all = Clients(True, frozenset())
    own = namespace("ctxt://home/{client}/**", schema="Context", report=open_to_all, observe=open_to_all)
    judge = Rights([own], [], Objects())
    before = judge.permissions("bob")
    for wide in (
        "snapshot/#",
        "delta/ctxt/home/#",
        "delta/ctxt/home/ann/#",
        "delta/ctxt/home/ann/+/#",
        "value/+/+/ann/x",
    ):
        assert judge.may_read_all("bob", wide), wide
    for wide in ("#", "+/#", "+/ctxt/home/ann/x", "report/#", "inbox/+"):
        assert not judge.may_read_all("bob", wide), wide
    # An object that no namespace holds any more is its Reporter's alone.
    judge.objects.add(thing("ctxt/shed/door", "ann"))
    assert not judge.may_read_all("bob", "snapshot/#")
    assert judge.may_read_all("ann", "snapshot/#")
    assert judge.may_read_all("bob", "snapshot/ctxt/home/#")
    assert judge.permissions("bob").lost(before)
    assert not judge.permissions("ann").lost(before._replace(publish=judge.permissions("ann").publish, receive=()))
    judge.objects.settle(judge.objects.get("ctxt/shed/door"), own)  # type: ignore[arg-type]
    assert judge.may_read_all("bob", "snapshot/#")
    # A namespace that is added and closed, where nothing could be before.
    judge.replace(
        Rights([own, namespace("ctxt://home/*", schema="Context", report=open_to_all, observe=NOBODY)], [], Objects())
    )
    assert not judge.may_read_all("bob", "snapshot/ctxt/home/#")
    assert not judge.may_read_all("bob", "delta/ctxt/home/ann/#"), "it may have children below it"
    assert judge.may_read_all("bob", "delta/ctxt/home/ann/kitchen/#")
    assert judge.permissions("bob").lost(before)
    judge.bar(["bob"])
    assert not judge.may_read_all("bob", "delta/ctxt/home/ann/kitchen/#")
