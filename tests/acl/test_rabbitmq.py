"""The plugin `http` with a real RabbitMQ: attacks and agreement, judged by what is delivered; what a revocation takes."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.acl.http import HttpAcl
from gateway.web.server import answer
from tests.acl.attacks import ATTACKS, CLIENTS, ROOM, SETTINGS, Site
from tests.acl.brokers_rabbitmq import LINK_PASSWORD, beside_rabbitmq, escape, plain
from tests.inside import Client
from tests.test_rights import FACES, OTHERS, PEOPLE, worlds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.rights import Rights
    from gateway.service import Service

NAMED = PEOPLE[:3]
CASES = 1_000
LACKS = {
    "retained_report": "MQTT 3.1.1: a retained report comes to the gateway as any other, and is applied",
    "anothers_share": "there are no shared subscriptions",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with beside_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), SETTINGS, *dict.fromkeys((*CLIENTS, *NAMED))) as (
        gateway,
        broker,
    ):
        site = Site(gateway, "rabbitmq", broker.port, 4, escape=escape, plain=plain, lacks=frozenset(LACKS))
        site.own_id = lambda name, client_id: f"{name}.{client_id}"
        site.prepare()
        yield site
        site.close()


@pytest.mark.parametrize("attack", ATTACKS)
def test_rabbitmq_withstands(here: Site, attack: str) -> None:
    try:
        here.prepare()
        assert (ATTACKS[attack](here) == "") is (attack not in here.lacks)
    finally:
        here.close()


def authority(service: Service) -> HttpAcl:
    assert service._enforcement is not None
    found = service._enforcement.plugin
    assert isinstance(found, HttpAcl)
    return found


def gone(client: Client, seconds: float = 0.0) -> bool:
    """Whether the broker has closed a connection, now or within some seconds."""
    deadline = time.monotonic() + seconds
    while client.paho.is_connected() and time.monotonic() < deadline:
        time.sleep(0.002)
    return not client.paho.is_connected()


def test_rabbitmq_does_what_the_rights_say(here: Site) -> None:
    """Random worlds: what each client may subscribe to is delivered to it and nothing else is; what it may publish passes."""
    made: list[Rights] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(worlds())
    def gather(judge: Rights) -> None:
        made.append(judge)

    gather()
    dice = random.Random(5)
    cases = {"receive": 0, "publish": 0}
    truth = here.gateway.call(lambda service: authority(service)._rights)
    eye = Client(here.port, None, version=4, client_id="eye", login=("gateway", LINK_PASSWORD))
    eye.subscribe("#", qos=0)
    everything = [topic for topic in (*FACES, *OTHERS) if not topic.startswith("$")]

    def judged_by(judge: Rights) -> None:
        here.gateway.call(lambda service: setattr(authority(service), "_rights", judge))

    def told(mark: str) -> bool:
        return any(payload == mark.encode() for _, payload, *_ in eye.heard)

    def publish(sender: Client, topics: list[str], mark: str) -> None:
        for topic in topics:
            sender.paho.publish(escape(topic), f"{mark} {topic}".encode(), qos=0)

    try:
        while min(cases.values()) < CASES:
            judge = dice.choice(made)
            judged_by(judge)
            topics = dice.sample(everything, 40)
            for name in NAMED:
                # What is granted, one by one: a refusal ends the connection.
                granted: list[str] = []
                client = here.client(name)
                for topic in topics:
                    if gone(client):
                        client = here.client(name)
                    here.listen(client, topic)
                    if not gone(client, 0.003) and list(client.granted.values())[-1:] != [[128]]:
                        granted.append(topic)
                here.close()
                client = here.client(name)
                for topic in granted:
                    here.listen(client, topic)
                mark = f"{dice.random()}"
                publish(eye, topics, mark)
                eye.publish(escape("inbox/nobody"), mark.encode(), qos=1)
                eye.wait(partial(told, mark))
                time.sleep(0.05)
                heard = {
                    payload.split()[1].decode()
                    for _, payload, *_ in client.heard
                    if payload.startswith(mark.encode() + b" ")
                }
                wanted = {topic for topic in topics if judge.may_receive(name, topic)}
                assert heard == wanted, (name, heard ^ wanted)
                cases["receive"] += len(topics)
                eye.heard.clear()
                # What passes, one by one.
                for topic in topics:
                    if gone(client):
                        client = here.client(name)
                    publish(client, [topic], mark)
                    if not judge.may_publish(name, topic):
                        assert gone(client, 5), (name, topic)
                time.sleep(0.05)
                passed = {
                    payload.split()[1].decode()
                    for _, payload, *_ in eye.heard
                    if payload.startswith(mark.encode() + b" ")
                }
                wanted = {topic for topic in topics if judge.may_publish(name, topic)}
                assert passed == wanted, (name, passed ^ wanted)
                cases["publish"] += len(topics)
                here.close()
    finally:
        judged_by(truth)
        eye.close()
        here.close()
    print(
        f"agreement of RabbitMQ with the rights: {cases['receive']:,} subscriptions, {cases['publish']:,} messages sent"
    )


@pytest.mark.parametrize(
    "nonsense", [(200, b"maybe"), (200, b""), (500, b"allow"), (404, b"allow"), (302, b"allow"), (0, b"")]
)
def test_an_authority_that_is_down_or_talks_nonsense_lets_nobody_in(here: Site, nonsense: tuple[int, bytes]) -> None:
    status, text = nonsense
    alice = here.alice

    async def talk(scope: Any, _receive: Any, send: Any) -> None:
        if status:
            await answer(send, status, b"text/plain", text)

    def swap(service: Service, app: Any) -> None:
        assert service.web is not None
        service.web.mount("acl", app)

    here.gateway.call(lambda service: swap(service, talk))
    try:
        assert Client(here.port, "dash", version=4, client_id="dash.x", returns=False).connected != 0
        # Who is in goes on where the broker has asked before, and nowhere else.
        here.shout(alice, f"report/alice/ctxt/home.local/never{status}{len(text)}", b'{"values":{}}', qos=1)
        assert gone(alice, 10)
    finally:
        here.gateway.call(lambda service: swap(service, authority(service).app))
        here.close()
    assert here.object(f"ctxt/home.local/never{status}{len(text)}") is None
    here.report(here.alice, ROOM, time.monotonic_ns())
    here.close()


def test_what_a_revocation_takes(here: Site) -> None:
    """From `revoke` asked to answered, and to the last message: a connection of a moment, and one of some seconds. Printed."""
    for wait in (0.0, 7.0):
        here.prepare()
        mallory = here.client("mallory")
        here.gateway.admin("grant", client="mallory", url="ctxt://home.local/vault/safe")
        here.listen(mallory, "delta/ctxt/home.local/vault/safe")
        time.sleep(wait)
        before = time.monotonic()
        here.gateway.admin("revoke", client="mallory", url="ctxt://home.local/vault/safe")
        took = time.monotonic() - before
        assert gone(mallory), "it is disconnected when the command returns"
        print(f"RabbitMQ: revoked in {took:.2f} s, {wait:g} s after the client had connected; 0 bytes afterwards")
        here.close()
