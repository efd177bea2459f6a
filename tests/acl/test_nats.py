"""The plugin `nats`, beside a real nats-server: attacks, agreement, revocations, files; judged by what is delivered."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.acl import nats as plugin
from gateway.acl.nats import DELIVERY, Subjects, User, fits, hashed, parse, render, user_of
from gateway.acl.plugin import AclError
from gateway.administration import AdministrationError
from gateway.commands import attacks
from gateway.credentials import Credentials, Foreign, PasswordError
from gateway.data import folder as shipped
from gateway.topics import matches
from tests.acl.attacks import ATTACKS, CLIENTS, SETTINGS, Site
from tests.acl.brokers_nats import Nats, beside_nats, escape, plain
from tests.acl.units import carried, faults
from tests.inside import PASSWORD, Client, Inside
from tests.test_rights import FACES, OTHERS, PEOPLE, worlds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.acl.enforcement import Enforcement
    from gateway.rights import Rights
    from gateway.service import Service

LACKS = {
    "retained_report": "MQTT 3.1.1: a retained report comes to the gateway as any other, and is applied",
    "anothers_share": "there are no shared subscriptions",
}
NAMED = PEOPLE[:3]
CASES = 1_000
SUBJECTS = Subjects(". *>")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with beside_nats(tmp_path_factory.mktemp("nats"), SETTINGS, *CLIENTS) as (gateway, broker):
        site = Site(gateway, "nats", broker.port, 4, escape=escape, plain=plain, lacks=frozenset(LACKS))
        site.prepare()
        yield site
        site.close()


def enforcement(service: Service) -> Enforcement:
    found = service._enforcement
    assert found is not None
    return found


def pending(service: Service) -> Any:
    (found,) = [family for family in enforcement(service).families() if family.name == "ctxt_acl_pending"]
    return found.item()["value"]


def answer(broker: Nats, name: str | None, client_id: str) -> int | None:
    """What a client is told when it connects."""
    client = Client(broker.port, name, version=4, client_id=client_id, returns=False)
    client.close()
    return client.connected


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nats_withstands(here: Site, attack: str) -> None:
    try:
        here.prepare()
        assert (ATTACKS[attack](here) == "") is (attack not in here.lacks)
    finally:
        here.close()


def test_nobody_gets_at_the_brokers_own_subjects(here: Site) -> None:
    """What QoS 1 needs of `$MQTT` is open to nobody who asks for it, over MQTT or over NATS' own protocol."""
    dash = here.client("dash")
    here.listen(dash, "delta/ctxt/home.local/room", qos=1)
    mallory = here.client("mallory")
    for wanted in ("$MQTT/sub/#", "$MQTT/#", "$JS/#", "$SYS/#", "_INBOX/#", "$MQTT/sub/+", "$KV/#"):
        mallory = mallory if mallory.paho.is_connected() else here.client("mallory")
        here.listen(mallory, wanted, qos=0)
        here.shout(mallory, wanted.replace("#", "x").replace("+", "x"), b"x")
    here.report(here.alice, "ctxt/home.local/room", time.monotonic_ns())
    here.settle()
    assert not [each for each in here.open_clients if each.name == "mallory" and each.heard]
    here.close()
    native = int(
        next(
            line
            for line in (here.gateway.path.parent / "nats-server.conf").read_text().splitlines()
            if line.startswith("listen:")
        ).rsplit(":", 1)[1]
    )
    with closing(socket.create_connection(("127.0.0.1", native), 10)) as raw:
        raw.settimeout(5)
        raw.recv(4_096)
        login = json.dumps({"user": "alice", "pass": PASSWORD, "verbose": True, "pedantic": False})
        raw.sendall(f"CONNECT {login}\r\nSUB > 1\r\nPING\r\n".encode())
        said = b""
        while more := raw.recv(4_096):
            said += more
        assert b"Authorization Violation" in said
        assert b"MSG" not in said


def test_what_a_revocation_takes(here: Site, capsys: pytest.CaptureFixture[str]) -> None:
    here.prepare()
    others = here.client("dash")
    times = []
    for _ in range(5):
        mallory = here.client("mallory")
        here.gateway.admin("grant", client="mallory", url="ctxt://home.local/vault/safe")
        here.listen(mallory, "delta/ctxt/home.local/vault/safe", qos=1)
        here.report(here.alice, "ctxt/home.local/vault/safe", time.monotonic_ns())
        mallory.wait(lambda mallory=mallory: mallory.heard)  # type: ignore[misc]
        before = time.monotonic()
        here.gateway.admin("revoke", client="mallory", url="ctxt://home.local/vault/safe")
        times.append(time.monotonic() - before)
        count = len(mallory.heard)
        here.report(here.alice, "ctxt/home.local/vault/safe", time.monotonic_ns())
        here.settle()
        assert len(mallory.heard) == count
        assert not mallory.paho.is_connected(), "its subscription at QoS 1 would go on"
        assert others.paho.is_connected(), "whom nothing concerns stays"
    with capsys.disabled():
        print(f"\nnats-server: revoked in {sorted(times)[2] * 1e3:.0f} ms (median of 5); 0 bytes afterwards")
    here.close()


def test_the_command_finds_nothing_that_gets_through(
    here: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CTXT_BROKER__URL", f"mqtt://127.0.0.1:{here.port}")
    attacks.test(here.gateway.path, (), json=True)
    found = {each["attack"]: each["verdict"] for each in json.loads(capsys.readouterr().out)}
    other = {name for name, verdict in found.items() if verdict != "withstood"}
    assert other == {"retained report", "shared subscription"}


# ---- agreement -------------------------------------------------------------------------------------------------------------


def possible(judge: Rights, topic: str) -> bool:
    """Whether something can be on a topic: of an object that is there, or that a namespace lets be."""
    if topic not in FACES:
        return True
    about = topic.partition("/")[2].partition("/children/")[0]
    return about in judge.objects or judge.namespace_of(about) is not None


def expected(judge: Rights, name: str, topic: str) -> bool | None:
    """What the rights say; None where nats-server need not know yet: of an object that is not there and has to be named."""
    said = judge.may_receive(name, topic)
    about = topic.partition("/")[2].partition("/children/")[0]
    if said and topic in FACES and about not in judge.objects and user_of(name, "", judge, SUBJECTS)[1]:
        return None
    return said


@pytest.mark.parametrize("qos", [0, 1])
def test_nats_does_what_the_rights_say(tmp_path: Path, qos: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Random worlds, each a file that nats-server reads: more than a thousand subscriptions and messages judged by delivery."""
    broker = Nats(tmp_path)
    made: list[Rights] = []

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(worlds())
    def gather(judge: Rights) -> None:
        made.append(judge)

    gather()
    dice = random.Random(qos)
    secret = hashed(PASSWORD.encode())
    eye = User("eye", secret, (">",), (">",))
    everything = [topic for topic in (*FACES, *OTHERS) if not topic.startswith("$")]
    cases = {"receive": 0, "publish": 0}
    allowed = dict(cases)

    def write(number: int, judge: Rights | None) -> None:
        users = [eye, User("probe", secret, (f"probe.{number}.*",), ("probe.*.*", DELIVERY))]
        if judge is not None:
            users += [user_of(name, secret, judge, SUBJECTS)[0] for name in NAMED if name not in judge.barred]
        broker.users.write_text(render(users, number))

    write(0, None)
    broker.start()
    assert broker.process is not None
    watching = Client(broker.port, "eye", version=4, client_id="eye")
    probe = Client(broker.port, "probe", version=4, client_id="probe")
    voice = Client(broker.port, "eye", version=4, client_id="voice")
    watching.subscribe("#", qos=0)
    probe.subscribe("probe/+/+", qos=0)
    try:
        number = 0
        while min(cases.values()) < CASES:
            number += 1
            judge = dice.choice(made)
            write(number, judge)
            os.kill(broker.process.pid, signal.SIGHUP)
            # Each time on another topic: one that was refused in the middle of the reload is refused from then on.
            for attempt in range(3_000):
                probe.publish(f"probe/{number}/{attempt}", b"", qos=0)
                time.sleep(0.005)
                if any(topic.startswith(f"probe/{number}/") for topic, *_ in probe.heard):
                    break
            else:
                raise AssertionError((tmp_path / "nats.log").read_text())
            # It is still busy with the reload; see `SETTLE` in the plugin.
            time.sleep(0.1)
            topics = [topic for topic in dice.sample(everything, 40) if possible(judge, topic)]
            names = [name for name in NAMED if name not in judge.barred]
            clients = {
                name: Client(broker.port, name, version=4, client_id=f"{name}{number}", returns=False) for name in names
            }
            for client in clients.values():
                for topic in topics:
                    client.paho.subscribe(escape(topic), qos=qos)
            for client in clients.values():
                client.wait(partial(_answered, client, len(topics)))
            mark = f"{number} "
            for topic in topics:
                voice.paho.publish(escape(topic), (mark + topic).encode(), qos=qos)
            watching.wait(partial(_seen, watching, mark, len(topics)))
            for name, client in clients.items():
                client.wait(partial(_has, client, mark, [each for each in topics if expected(judge, name, each)]))
            time.sleep(0.1)
            for name, client in clients.items():
                heard = _heard(client, mark)
                for topic in topics:
                    may = expected(judge, name, topic)
                    assert may is None or (topic in heard) == may, (name, topic, may)
                    cases["receive"] += 1
                    allowed["receive"] += bool(may)
            watching.heard.clear()
            for name, client in clients.items():
                for topic in topics:
                    client.paho.publish(escape(topic), f"{name} {topic}".encode(), qos=qos)
                client.publish(f"request/{name}", b"end", qos=1)
            time.sleep(0.1)
            watching.wait(partial(_ended, watching, len(names)))
            passed = {said.decode() for on, said, *_ in watching.heard if said != b"end" and not on.startswith("$")}
            wanted = {f"{name} {topic}" for name in names for topic in topics if judge.may_publish(name, topic)}
            assert passed == wanted, passed ^ wanted
            cases["publish"] += len(names) * len(topics)
            allowed["publish"] += len(wanted)
            for client in clients.values():
                client.close()
            watching.heard.clear()
    finally:
        for each in (watching, voice, probe):
            each.close()
        broker.kill()
    with capsys.disabled():
        print(
            f"\nagreement of nats-server with the rights at QoS {qos}: {cases['receive']:,} subscriptions ({allowed['receive']:,}"
            f" allowed), {cases['publish']:,} messages sent ({allowed['publish']:,} allowed)"
        )
    assert min(allowed.values()) > 10


def _heard(client: Client, mark: str) -> set[str]:
    return {said[len(mark) :].decode() for _, said, *_ in client.heard if said.startswith(mark.encode())}


def _has(client: Client, mark: str, topics: list[str]) -> bool:
    return _heard(client, mark).issuperset(topics)


def _ended(client: Client, count: int) -> bool:
    return sum(said == b"end" and not on.startswith("$") for on, said, *_ in client.heard) >= count


def _answered(client: Client, count: int) -> bool:
    return len(client.granted) == count


def _seen(client: Client, mark: str, count: int) -> bool:
    # What is sent at QoS 1 is on a subject of nats-server's own as well.
    return sum(said.startswith(mark.encode()) and not on.startswith("$") for on, said, *_ in client.heard) == count


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(worlds())
def test_the_file_says_what_the_rights_say(judge: Rights) -> None:
    """A subject that a user may subscribe to or publish on is one that the rights allow, of what can be."""
    for name in NAMED:
        if name in judge.barred:
            continue
        user, _ = user_of(name, "", judge, SUBJECTS)
        lists = [
            ["/".join({"*": "+", ">": "+/#"}.get(part, part) for part in subject.split(".")) for subject in each]
            for each in (user.publish, user.subscribe)
        ]
        for topic in (*FACES, *OTHERS):
            if topic.startswith("$") or not possible(judge, topic):
                continue
            written = escape(topic)
            assert any(matches(one, written) for one in lists[0]) == judge.may_publish(name, topic), topic
            may = expected(judge, name, topic)
            assert may is None or any(matches(one, written) for one in lists[1]) == may, (name, topic)


# ---- subjects and files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topic_filter", "subjects"),
    [
        ("a/b", ("a.b",)),
        ("a/+/c", ("a.*.c",)),
        ("a/#", ("a", "a.>")),
        ("a/+/#", ("a.>",)),
        ("a/home.local/x", ("a.home%2Elocal.x",)),
        ("a/two words", ("a.two%20words",)),
        ("a/*/>", ("a.%2A.%3E",)),
        ("a//b", None),
        ("a/", None),
        ("/a", None),
        ("+/a", None),
        ("#", None),
        ("$SYS/#", None),
        ("_INBOX/x", None),
        ("a/b\tc", None),
        ("a/b\x7f", None),
    ],
)
def test_a_filter_is_a_subject_or_nothing(topic_filter: str, subjects: tuple[str, ...] | None) -> None:
    assert SUBJECTS.of(topic_filter) == subjects


def test_what_is_written_is_read_again() -> None:
    users = [
        User("alice", hashed(b"x"), ("report.alice.>",), ("inbox.alice", 'odd"\\é', DELIVERY)),
        User("b", "y", ("b",), ("c",)),
    ]
    number, found = parse(render(users, 17))
    assert number == 17
    assert found == {user.name: user for user in users}
    assert parse("") == (0, {})
    assert parse(f'{render(users, 1)}\n{{"user": 7}}\n')[1] == found


def test_a_password_is_bcrypt_and_not_too_long(tmp_path: Path) -> None:
    entry = hashed(b"a good one")
    assert fits(b"a good one", entry)
    assert not fits(b"another", entry)
    assert not fits(b"a good one", "$nonsense")
    with closing(Credentials(tmp_path / "clients.db", foreign=Foreign("nats", hashed))) as known:
        for wrong in ("x" * 73, "é" * 37, "a\0b"):
            with pytest.raises(PasswordError, match="nats-server takes"):
                known.add("late", wrong)
        known.add("late", "x" * 72)
        assert set(known.entries("nats")) == {"late"}


def test_clients_come_and_go_while_nats_runs(tmp_path: Path) -> None:
    with beside_nats(tmp_path, SETTINGS, *CLIENTS) as (gateway, broker):
        bob = Client(broker.port, "bob", version=4, client_id="bob", returns=False)
        with closing(Credentials(gateway.state / "clients.db", foreign=Foreign("nats", hashed))) as known:
            known.add("late", PASSWORD)
            known.remove("alice")
            until(lambda: answer(broker, "late", "late") == 0)
            assert answer(broker, "alice", "alice") != 0
            known.set_password("late", "another")
            until(lambda: answer(broker, "late", "late") != 0)
        assert bob.paho.is_connected(), "whom nothing concerns stays"
        assert "another" not in broker.users.read_text()
        assert broker.users.stat().st_mode & 0o777 == 0o640
        bob.close()


def test_a_nats_that_comes_back_goes_by_the_users_of_now(tmp_path: Path) -> None:
    with beside_nats(tmp_path, SETTINGS, *CLIENTS) as (gateway, broker):
        site = Site(gateway, "nats", broker.port, 4, escape=escape, plain=plain)
        site.prepare()
        gateway.admin("grant", client="mallory", url="ctxt://home.local/vault/safe")
        broker.kill()
        with pytest.raises(AdministrationError, match="is nats-server running"):
            gateway.admin("revoke", client="mallory", url="ctxt://home.local/vault/safe")
        broker.start()
        until(lambda: gateway.call(pending) == 0)
        site.close()
        mallory = site.client("mallory")
        site.listen(mallory, "snapshot/ctxt/home.local/vault/safe")
        site.settle()
        assert not any("vault" in topic for topic, *_ in mallory.heard)
        site.close()


def test_before_the_gateway_has_written_users_nobody_is_let_in(tmp_path: Path) -> None:
    broker = Nats(tmp_path)
    broker.start()
    try:
        for name in ("alice", "gateway", "nobody", None):
            assert answer(broker, name, "x") != 0
    finally:
        broker.kill()


def test_a_server_that_does_not_include_the_file_is_not_believed(tmp_path: Path) -> None:
    broker = Nats(tmp_path)
    entry = json.dumps(hashed(b"the gateway's own"))
    # With no list at all 2.9.10 breaks down at the reload: it looks there for who may have what is retained.
    everything = 'permissions: {publish: {allow: [">"]}, subscribe: {allow: [">"]}}'
    broker.config.write_text(
        broker.config.read_text().replace(
            "include nats/users.conf", f"authorization: {{users: [{{user: gateway, password: {entry}, {everything}}}]}}"
        )
    )
    settings_lines = SETTINGS + broker.settings + "timeout = 1\n"
    broker.start()
    try:
        with pytest.raises(AclError, match="does not go by version"):
            Inside(tmp_path, settings_lines, CLIENTS, f"mqtt://127.0.0.1:{broker.port}")
    finally:
        broker.kill()


def test_files_of_somebody_else_stay_as_they_are(tmp_path: Path) -> None:
    broker = Nats(tmp_path)
    broker.users.write_text("authorization: {}\n")
    with pytest.raises(AclError, match="is not the gateway's"):
        Inside(tmp_path, SETTINGS + broker.settings, CLIENTS, f"mqtt://127.0.0.1:{broker.port}")
    assert broker.users.read_text() == "authorization: {}\n"


def test_units_carry_the_users_to_nats(tmp_path: Path) -> None:
    """Where the gateway may write in its own folder only: the shipped units copy its file and have nats-server read it."""
    broker = Nats(tmp_path)
    own = f"{tmp_path}/state/nats/users.conf"
    changes = {"/var/lib/ctxt-gateway/nats/users.conf": own, "/etc/nats/users.conf": str(broker.users)}
    lines = [line for line in broker.settings.splitlines() if not line.startswith(("users_file", "pid_file"))]
    unit = shipped("config") / "nats/ctxt-nats.path"
    assert faults(tmp_path, unit) == ""
    broker.start()
    assert broker.process is not None
    try:
        with carried(unit, broker.process.pid, changes):
            gateway = Inside(tmp_path, SETTINGS + "\n".join(lines), CLIENTS, f"mqtt://127.0.0.1:{broker.port}")
            try:
                site = Site(gateway, "nats", broker.port, 4, escape=escape, plain=plain)
                site.prepare()
                for attack in ("live_at_qos_1", "in_anothers_name"):
                    assert ATTACKS[attack](site) == ""
                site.close()
            finally:
                gateway.stop()
    finally:
        broker.kill()


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("", "link.username"),
        ('username = "gateway"\ntopic_escape = ". "\n', "link.topic_escape"),
        ('username = "gateway"\ntopic_escape = ". *>"\n', "link.password_file"),
        ('username = "gateway"\ntopic_escape = ". *>"\npassword_file = "missing"\n', "cannot read link.password_file"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, lines: str, problem: str) -> None:
    settings_lines = f'{SETTINGS}\n[acl]\nplugin = "nats"\n[link]\n{lines}'
    with pytest.raises(AclError, match=problem):
        Inside(tmp_path, settings_lines, CLIENTS, "mqtt://127.0.0.1:1")


def test_many_subjects_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "MANY", 5)
    with beside_nats(
        tmp_path,
        SETTINGS.replace("[groups]", '[[topic]]\nfilter = "$odd/x"\nread = ["*"]\nwrite = []\n\n[groups]'),
        *CLIENTS,
    ) as (gateway, _):
        said = gateway.call(lambda service: list(enforcement(service).plugin.warnings()))
        assert any("subjects" in each for each in said)
        assert any("opens nothing on nats-server" in each for each in said)
        logged = [each.getMessage() for each in caplog.records if each.name == "gateway.acl"]
        assert sorted(set(logged) & set(said)) == sorted(logged) != []
