"""The plugin `mosquitto`, beside a real mosquitto: attacks, random rights, agreement, files; judged by what is delivered."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.acl.mosquitto import Own, hashed, rules, section_of
from gateway.topics import matches
from tests.acl.attacks import ATTACKS, CLIENTS, SETTINGS, Site
from tests.acl.brokers_mosquitto import FILES, Mosquitto, beside_mosquitto
from tests.acl.machine import NAMES, Machine
from tests.acl.machine import SETTINGS as MACHINE_SETTINGS
from tests.inside import PASSWORD, Client
from tests.test_rights import FACES, OTHERS, PEOPLE, worlds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.rights import Rights

LACKS = {
    "anothers_share": "mosquitto hands a shared message to whoever has joined the group, and drops it if that one may not read it",
    "anothers_session": "only with use_username_as_clientid, which the shipped configuration has",
}
NAMED = PEOPLE[:3]
STEPS = 60


@pytest.fixture(scope="module", params=[5, 4], ids=["v5", "v311"])
def here(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with beside_mosquitto(tmp_path_factory.mktemp("attacks"), SETTINGS, *CLIENTS) as (gateway, broker):
        site = Site(gateway, "mosquitto", broker.port, request.param, lacks=frozenset(LACKS))
        site.prepare()
        yield site
        site.close()


@pytest.mark.parametrize("attack", ATTACKS)
def test_mosquitto_withstands(here: Site, attack: str) -> None:
    try:
        here.prepare()
        assert (ATTACKS[attack](here) == "") is (attack not in here.lacks)
    finally:
        here.close()


def test_with_names_as_client_ids_nobody_takes_anothers_session(tmp_path: Path) -> None:
    with beside_mosquitto(tmp_path, SETTINGS, *CLIENTS, names_are_ids=True) as (gateway, broker):
        site = Site(gateway, "mosquitto", broker.port)
        site.prepare()
        assert ATTACKS["anothers_session"](site) == ""
        site.close()


@pytest.mark.parametrize(("version", "qos"), [(5, 1), (4, 0)], ids=["v5-qos1", "v311-qos0"])
def test_nothing_forbidden_is_delivered_and_nothing_allowed_is_lost(tmp_path: Path, version: int, qos: int) -> None:
    with beside_mosquitto(tmp_path, MACHINE_SETTINGS, *NAMES, "alice") as (gateway, broker):
        site = Site(gateway, "mosquitto", broker.port, version)
        try:
            machine = Machine(site, gateway.path, seed=version, qos=qos)
            for _ in range(STEPS):
                machine.step()
        finally:
            site.close()


# ---- agreement -------------------------------------------------------------------------------------------------------------


def compiled(judge: Rights, number: int = 1) -> str:
    """Mosquitto's ACL file for a set of rights."""
    base = judge.permissions("%u")
    sections = {name: section_of(name, judge.permissions(name), base, barred=name in judge.barred)[0] for name in NAMED}
    return rules(base, sections, Own("gateway", "one", "").section(number), number)


def may(judge: Rights, client: str, action: str, topic: str) -> bool | None:
    """What the rights say; None where mosquitto need not know yet: of an object that does not exist and has to be named."""
    if action == "publish":
        return judge.may_publish(client, topic)
    said = judge.may_receive(client, topic)
    if said and (judge.permissions(client).listed or judge.permissions("%u").listed):
        about = topic.partition("/")[2].partition("/children/")[0]
        if topic in FACES and about not in judge.objects:
            return None
    return said


class Model:
    """How mosquitto goes by an ACL file: security_default.c of 2.0, in Python."""

    def __init__(self, text: str) -> None:
        self.own: dict[str | None, list[tuple[str, str]]] = {}
        self.patterns: list[tuple[str, str]] = []
        user: str | None = None
        for line in text.splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "user":
                user = rest
            elif kind in ("topic", "pattern"):
                access, _, topic_filter = rest.partition(" ")
                (self.patterns if kind == "pattern" else self.own.setdefault(user, [])).append((access, topic_filter))

    def may(self, client: str | None, action: str, topic: str) -> bool:
        own = self.own.get(client, [])
        patterns = [(access, one.replace("%u", client or "")) for access, one in self.patterns]
        for lines in (own, patterns):
            for access, topic_filter in sorted(lines, key=lambda line: line[0] != "deny"):
                if matches(topic_filter, topic):
                    if access == "deny":
                        return False
                    if access in ("readwrite", "write" if action == "publish" else "read"):
                        return True
        return False


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_the_file_says_what_the_rights_say(judge: Rights) -> None:
    model = Model(compiled(judge))
    for topic in (*FACES, *OTHERS):
        for action in ("publish", "receive"):
            for client in (*NAMED, "dora"):
                said = may(judge, client, action, topic)
                assert said is None or model.may(client, action, topic) == said, (client, action, topic)
            assert not model.may(None, action, topic)


def test_mosquitto_does_what_the_rights_say(tmp_path: Path) -> None:
    """Random worlds, each a file that mosquitto reads, and what it then delivers: more than a thousand cases each way."""
    broker = Mosquitto(tmp_path)
    passwords = "".join(f"{name}:{hashed(PASSWORD.encode())}\n" for name in (*NAMED, "dora", "eye", "probe"))
    (tmp_path / FILES / "passwd").write_text(passwords)
    (tmp_path / FILES / "acl").write_text("user eye\ntopic readwrite #\n")
    broker.start()
    assert broker.process is not None
    made: list[Rights] = []

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(worlds())
    def gather(judge: Rights) -> None:
        made.append(judge)

    gather()
    dice = random.Random(1)
    cases = {"publish": 0, "receive": 0}
    clients = {name: Client(broker.port, name) for name in (*NAMED, "dora")}
    eye, probe = Client(broker.port, "eye"), Client(broker.port, "probe")
    try:
        for client in (*clients.values(), eye, probe):
            client.subscribe("#", qos=0)
        for number, judge in enumerate(dice.sample(made, 20), 1):
            text = compiled(judge, number)
            (tmp_path / FILES / "acl").write_text(
                f"{text}user eye\ntopic readwrite #\nuser probe\ntopic readwrite probe/{number}\n"
            )
            os.kill(broker.process.pid, signal.SIGHUP)
            while not any(topic == f"probe/{number}" for topic, *_ in probe.heard):
                probe.publish(f"probe/{number}", b"", qos=0)
                time.sleep(0.005)
            topics = dice.sample(FACES, 40) + list(OTHERS)
            for client in (*clients.values(), eye):
                client.heard.clear()
            for topic in topics:
                eye.publish(topic, f"{number} {topic}".encode(), qos=0)
            for name in clients:
                eye.publish(f"inbox/{name}", b"end", qos=1)
            for name, client in clients.items():
                if name not in judge.barred:
                    client.wait(lambda client=client: any(payload == b"end" for _, payload, *_ in client.heard))
                heard = {
                    payload.split()[1].decode()
                    for _, payload, *_ in client.heard
                    if payload.startswith(b"%d " % number)
                }
                for topic in topics:
                    said = may(judge, name, "receive", topic)
                    if said is None or topic.startswith("$"):
                        continue
                    assert (topic in heard) == said, (number, name, topic, text)
                    cases["receive"] += 1
            for name, client in clients.items():
                eye.heard.clear()
                for topic in topics:
                    client.publish(topic, f"{name} {topic}".encode(), qos=0)
                client.publish(f"presence/{name}", b"end", qos=1)
                eye.publish("gateway/end", b"end", qos=1)
                eye.wait(lambda: any(topic == "gateway/end" for topic, *_ in eye.heard))
                passed = {
                    payload.split()[1].decode()
                    for _, payload, *_ in eye.heard
                    if payload.startswith(name.encode() + b" ")
                }
                for topic in topics:
                    if not topic.startswith("$"):
                        assert (topic in passed) == judge.may_publish(name, topic), (number, name, topic, text)
                        cases["publish"] += 1
    finally:
        for client in (*clients.values(), eye, probe):
            client.close()
        broker.kill()
    print(
        f"agreement of mosquitto with the rights: {cases['receive']:,} deliveries, {cases['publish']:,} messages sent"
    )
    assert min(cases.values()) > 1_000
