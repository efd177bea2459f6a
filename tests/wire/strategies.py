"""Every packet that may be written, drawn at random: one strategy for each side and dialect."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from gateway.wire.codec import Decoder, encode
from gateway.wire.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Properties,
    Property,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Reason,
    Suback,
    Subscribe,
    Subscription,
    Unsuback,
    Unsubscribe,
    Will,
)

CONNECT = {level: encode(Connect("c", level), level) for level in (4, 5)}


def reader(level: int, *, server: bool = True, **rest: Any) -> Decoder:
    """A decoder behind its CONNECT."""
    decoder = Decoder(server=server, level=0 if server else level, **rest)
    if server:
        decoder.feed(CONNECT[level])
    return decoder


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
TOPIC = st.text(st.sampled_from("ab/é$ 𪛔\ufeff"), min_size=1, max_size=12)
FILTER = st.text(st.sampled_from("ab/+#$ "), max_size=12)
IDS = st.integers(1, 65_535)
TWO = st.integers(0, 65_535)
FOUR = st.integers(0, 2**32 - 1)
FLAG = st.integers(0, 1)
BYTES = st.binary(max_size=20)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)
VARIABLE = st.sampled_from([1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455])


def properties(level: int, **values: st.SearchStrategy[Any]) -> st.SearchStrategy[Properties | None]:
    if level == 4:
        return st.none()
    made = st.fixed_dictionaries({}, optional={Property[name]: value for name, value in values.items()})
    return made.map(lambda found: found or None)


MESSAGE: dict[str, st.SearchStrategy[Any]] = {
    "PAYLOAD_FORMAT_INDICATOR": FLAG,
    "MESSAGE_EXPIRY_INTERVAL": FOUR,
    "CONTENT_TYPE": TEXT,
    "RESPONSE_TOPIC": TOPIC,
    "CORRELATION_DATA": BYTES,
    "USER_PROPERTY": PAIRS,
}


def wills(level: int) -> st.SearchStrategy[Will]:
    return st.builds(
        Will,
        TOPIC,
        BYTES,
        st.integers(0, 2),
        st.booleans(),
        properties(level, WILL_DELAY_INTERVAL=FOUR, **MESSAGE),
    )


@st.composite
def connects(draw: st.DrawFn, level: int) -> Connect:
    username = draw(st.none() | TEXT)
    held = properties(
        level,
        SESSION_EXPIRY_INTERVAL=FOUR,
        RECEIVE_MAXIMUM=IDS,
        MAXIMUM_PACKET_SIZE=st.integers(1, 2**32 - 1),
        TOPIC_ALIAS_MAXIMUM=TWO,
        REQUEST_PROBLEM_INFORMATION=FLAG,
        REQUEST_RESPONSE_INFORMATION=FLAG,
        AUTHENTICATION_METHOD=TEXT,
        USER_PROPERTY=PAIRS,
    )
    return Connect(
        draw(TEXT),
        level,
        draw(st.booleans()),
        draw(TWO),
        username,
        draw(st.none() | BYTES) if username is not None or level == 5 else None,
        draw(st.none() | wills(level)),
        draw(held),
    )


@st.composite
def publishes(draw: st.DrawFn, level: int, *, server: bool) -> Packet:
    qos = draw(st.integers(0, 2))
    extra = {} if server else {"SUBSCRIPTION_IDENTIFIER": st.lists(VARIABLE, min_size=1, max_size=3)}
    return Publish(
        draw(TOPIC),
        draw(st.binary(max_size=300)),
        qos,
        draw(st.booleans()),
        draw(st.booleans()) if qos else False,
        draw(IDS) if qos else 0,
        draw(properties(level, **MESSAGE, **extra)),
    )


def subscriptions(level: int) -> st.SearchStrategy[Subscription]:
    if level == 4:
        return st.builds(Subscription, FILTER, st.integers(0, 2))
    shared = FILTER.map(lambda name: f"$share/g/{name}")
    return st.builds(
        Subscription, FILTER, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 2)
    ) | st.builds(Subscription, shared, st.integers(0, 2), st.just(False), st.booleans(), st.integers(0, 2))


def either_side(level: int, *, server: bool) -> list[st.SearchStrategy[Packet]]:
    """Packets of both sides; `server` is whether a server is to read them."""
    said = properties(level, REASON_STRING=TEXT, USER_PROPERTY=PAIRS)
    reasons: list[tuple[Any, list[int]]] = [
        (Puback, [0, 0x10, 0x87, 0x99]),
        (Pubrec, [0, 0x97]),
        (Pubrel, [0, 0x92]),
        (Pubcomp, [0, 0x92]),
    ]
    return [
        publishes(level, server=server),
        *(st.builds(kind, IDS, st.sampled_from(codes) if level == 5 else st.just(0), said) for kind, codes in reasons),
    ]


def from_client(level: int) -> st.SearchStrategy[Packet]:
    """What a client sends after its CONNECT."""
    kinds = [
        *either_side(level, server=True),
        st.builds(
            Subscribe,
            IDS,
            st.lists(subscriptions(level), min_size=1, max_size=3),
            properties(level, SUBSCRIPTION_IDENTIFIER=VARIABLE, USER_PROPERTY=PAIRS),
        ),
        st.builds(Unsubscribe, IDS, st.lists(FILTER, min_size=1, max_size=3), properties(level, USER_PROPERTY=PAIRS)),
        st.builds(Pingreq),
    ]
    if level == 4:
        return st.one_of(*kinds, st.builds(Disconnect))
    ends = properties(5, SESSION_EXPIRY_INTERVAL=FOUR, REASON_STRING=TEXT, USER_PROPERTY=PAIRS)
    return st.one_of(*kinds, st.builds(Disconnect, st.sampled_from([0, 4, 0x81]), ends), auths([0x18, 0x19]))


def from_server(level: int) -> st.SearchStrategy[Packet]:
    said = properties(level, REASON_STRING=TEXT, USER_PROPERTY=PAIRS)
    granted = properties(
        level,
        SESSION_EXPIRY_INTERVAL=FOUR,
        RECEIVE_MAXIMUM=IDS,
        MAXIMUM_QOS=FLAG,
        RETAIN_AVAILABLE=FLAG,
        MAXIMUM_PACKET_SIZE=st.integers(1, 2**32 - 1),
        ASSIGNED_CLIENT_IDENTIFIER=TEXT,
        TOPIC_ALIAS_MAXIMUM=TWO,
        REASON_STRING=TEXT,
        USER_PROPERTY=PAIRS,
        WILDCARD_SUBSCRIPTION_AVAILABLE=FLAG,
        SUBSCRIPTION_IDENTIFIER_AVAILABLE=FLAG,
        SHARED_SUBSCRIPTION_AVAILABLE=FLAG,
        SERVER_KEEP_ALIVE=TWO,
        RESPONSE_INFORMATION=TEXT,
        SERVER_REFERENCE=TEXT,
        AUTHENTICATION_METHOD=TEXT,
        AUTHENTICATION_DATA=BYTES,
    )
    refusals = [Reason.NOT_AUTHORIZED, Reason.BAD_USER_NAME_OR_PASSWORD, Reason.CLIENT_IDENTIFIER_NOT_VALID]
    codes = [0, 1, 2, 0x87] if level == 5 else [0, 1, 2, 0x80]
    kinds = [
        *either_side(level, server=False),
        st.builds(Connack, st.booleans(), st.just(0), granted),
        st.builds(Connack, st.just(False), st.sampled_from(refusals), granted),
        st.builds(Suback, IDS, st.lists(st.sampled_from(codes), min_size=1), said),
        st.builds(Unsuback, IDS, st.lists(st.sampled_from([0, 0x11]), min_size=1) if level == 5 else st.just([]), said),
        st.builds(Pingresp),
    ]
    if level == 4:
        return st.one_of(*kinds)
    ends = properties(5, SERVER_REFERENCE=TEXT, REASON_STRING=TEXT, USER_PROPERTY=PAIRS)
    return st.one_of(*kinds, st.builds(Disconnect, st.sampled_from([0, 0x8B, 0x8E]), ends), auths([0x00, 0x18]))


def auths(reasons: list[int]) -> st.SearchStrategy[Packet]:
    method = {Property.AUTHENTICATION_METHOD: TEXT}
    rest = {Property.AUTHENTICATION_DATA: BYTES, Property.REASON_STRING: TEXT, Property.USER_PROPERTY: PAIRS}
    return st.builds(Auth, st.sampled_from(reasons), st.fixed_dictionaries(method, optional=rest))
