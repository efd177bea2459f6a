from __future__ import annotations

import itertools

import pytest

from gateway.objects import DataObject, Objects
from gateway.rights import ANONYMOUS, RESERVED, Clients, Rights, TopicRule, namespace
from gateway.topics import matches, overlaps
from tests.world import CATALOGUE, EVERYONE, NOBODY, only, own


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
        ("sensor", "report/sensor/", False),
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
