"""The broker inside does what the rights say, in random worlds: judged by what is delivered, and by what reaches the gateway."""

from __future__ import annotations

import random
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings

from gateway.acl.embedded import EmbeddedAcl
from gateway.links.local import LocalLink
from tests.inside import Client, inside
from tests.test_rights import FACES, OTHERS, PEOPLE, worlds

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.rights import Rights
    from gateway.service import Service

NAMED = PEOPLE[:3]
CASES = 10_000


class Seeing(EmbeddedAcl):
    """As the rights, but `eye` sees and writes everything."""

    def __init__(self, rights: Rights) -> None:
        super().__init__(rights)
        for question in ("may_publish", "may_subscribe", "may_receive"):
            judge = getattr(rights, question)
            setattr(self, question, lambda client, topic, judge=judge: client == "eye" or judge(client, topic))


def test_the_broker_inside_does_what_the_rights_say(tmp_path: Path) -> None:
    made: list[Rights] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(worlds())
    def gather(judge: Rights) -> None:
        made.append(judge)

    gather()
    dice = random.Random(3)
    cases = {"receive": 0, "publish": 0}
    allowed = dict(cases)
    reached: list[str] = []
    topics = [topic for topic in (*FACES, *OTHERS) if not topic.startswith("$")]

    def taken(service: Service) -> None:
        """What comes to the gateway is noted, and goes no further."""
        link = service._link
        assert isinstance(link, LocalLink)

        def receive(batch: list[Any]) -> None:
            for publish in batch:
                reached.append(publish.payload.decode())
                link.acknowledge(publish)

        link.receive = receive

    def judged_by(judge: Rights, service: Service) -> None:
        link = service._link
        assert isinstance(link, LocalLink)
        # Answers are remembered under the generation.
        judge.generation = link.generation + 1
        link._acl = Seeing(judge)
        for question in ("may_publish", "may_subscribe", "may_receive"):
            setattr(link, question, getattr(link._acl, question))

    def say(mark: str, service: Service) -> None:
        for topic in topics:
            service._link.publish(topic, f"{mark} {topic}".encode(), qos=0)

    def all_said(eye: Client, mark: str) -> bool:
        return sum(said.startswith(mark.encode()) for _, said, *_ in eye.heard) == len(topics)

    with inside(tmp_path, "", *NAMED, "eye") as gateway:
        gateway.call(taken)
        while min(cases.values()) < CASES:
            judge = dice.choice(made)
            gateway.call(partial(judged_by, judge))
            mark = f"{dice.random()}"
            clients = {name: Client(gateway.port, name) for name in (*NAMED, "eye")}
            try:
                for client in clients.values():
                    client.subscribe("#", qos=0)
                gateway.call(partial(say, mark))
                eye = clients["eye"]
                eye.wait(partial(all_said, eye, mark))
                for name in NAMED:
                    clients[name].subscribe(f"presence/{name}", qos=0)
                time.sleep(0.02)
                for name in NAMED:
                    heard = {
                        said.split()[1].decode()
                        for _, said, *_ in clients[name].heard
                        if said.startswith(mark.encode())
                    }
                    may = {topic for topic in topics if judge.may_receive(name, topic)}
                    assert heard == may, (name, heard ^ may)
                    cases["receive"] += len(topics)
                    allowed["receive"] += len(may)
                reached.clear()
                eye.heard.clear()
                for name in NAMED:
                    for topic in topics:
                        clients[name].publish(topic, f"{name} {topic}".encode(), qos=0)
                    clients[name].publish("nothing/at/all", b"", qos=1)
                time.sleep(0.05)
                passed = {*reached, *(said.decode() for _, said, *_ in eye.heard if said)}
                may = {f"{name} {topic}" for name in NAMED for topic in topics if judge.may_publish(name, topic)}
                assert passed == may, passed ^ may
                cases["publish"] += len(NAMED) * len(topics)
                allowed["publish"] += len(may)
            finally:
                for client in clients.values():
                    client.close()
    print(
        f"agreement of the broker inside with the rights: {cases['receive']:,} deliveries ({allowed['receive']:,} allowed),"
        f" {cases['publish']:,} messages sent ({allowed['publish']:,} allowed)"
    )
    assert min(allowed.values()) > 50
