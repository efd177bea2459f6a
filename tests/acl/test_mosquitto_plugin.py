"""The plugin `mosquitto`, beside a real mosquitto: attacks, random rights, agreement, files; judged by what is delivered."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from gateway.acl import mosquitto as plugin
from gateway.acl.mosquitto import Own, everybody, fits, hashed, rules, section_of
from gateway.acl.plugin import AclError
from gateway.administration import AdministrationError
from gateway.credentials import Credentials, Foreign
from gateway.data import folder as shipped
from gateway.effects import Effects
from gateway.objects import Objects
from gateway.rights import Permissions, Rights
from gateway.topics import matches
from tests.acl.attacks import ATTACKS, CLIENTS, SETTINGS, Site
from tests.acl.brokers_mosquitto import FILES, LINK_PASSWORD, Mosquitto, beside_mosquitto
from tests.acl.machine import NAMES, Machine
from tests.acl.machine import SETTINGS as MACHINE_SETTINGS
from tests.acl.units import carried, faults
from tests.inside import PASSWORD, Client, Inside
from tests.running import free_port, need, wait_for_port
from tests.test_cli import ctxt
from tests.test_rights import FACES, OTHERS, PEOPLE, thing, worlds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.service import Service

LACKS = {
    "anothers_share": "mosquitto hands a shared message to whoever has joined the group, and drops it if that one may not read it",
    "anothers_session": "only with use_username_as_clientid, which the shipped configuration has",
}
NAMED = PEOPLE[:3]
STEPS = 60


def until(condition: Callable[[], object]) -> None:
    """Wait for something that nobody tells of."""
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def families(gateway: Inside) -> dict[str, float]:
    """What the gateway counts, without labels."""
    return gateway.call(lambda service: {one.name: one.samples[""] for one in service.families() if not one.label})  # type: ignore[no-any-return]


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
    return rules(base, sections, Own("gateway", "one", Rights([], [], Objects())).section(number), number)


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


def ended(client: Client) -> bool:
    return any(payload == b"end" for _, payload, *_ in client.heard)


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
                    client.wait(partial(ended, client))
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


# ---- files and signals -----------------------------------------------------------------------------------------------------


def test_a_password_is_written_as_mosquitto_passwd_does(tmp_path: Path) -> None:
    file = tmp_path / "passwd"
    file.touch()
    program = need("mosquitto_passwd", "mosquitto")
    subprocess.run([program, "-b", str(file), "ann", "räksmörgås"], check=True, capture_output=True)
    entry = file.read_text().strip().partition(":")[2]
    assert fits("räksmörgås".encode(), entry)
    assert not fits(b"raksmorgas", entry)
    mine = hashed(b"secret")
    assert mine != hashed(b"secret")
    assert fits(b"secret", mine)
    assert not fits(b"secret", mine.replace("$7$", "$6$"))
    assert not fits(b"secret", "")


def test_clients_come_and_go_while_mosquitto_runs(tmp_path: Path) -> None:
    with beside_mosquitto(tmp_path, SETTINGS, *CLIENTS) as (gateway, broker):
        bob = Client(broker.port, "bob", returns=False)
        foreign = Foreign("mosquitto", hashed)
        with closing(Credentials(gateway.state / "clients.db", foreign=foreign)) as known:
            known.add("late", PASSWORD)
            known.remove("alice")
            until(lambda: Client(broker.port, "late", returns=False).connected == 0)
            assert Client(broker.port, "alice", returns=False).connected != 0
            known.set_password("late", "another")
            until(lambda: Client(broker.port, "late", returns=False).connected != 0)
        assert bob.paho.is_connected(), "whom nothing concerns stays"
        assert not any("another" in file.read_text() for file in (tmp_path / FILES).iterdir())
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / FILES).iterdir()} == {0o640}
        bob.close()


def test_a_mosquitto_that_comes_back_goes_by_the_rules_of_now(tmp_path: Path) -> None:
    with beside_mosquitto(tmp_path, SETTINGS, *CLIENTS) as (gateway, broker):
        site = Site(gateway, "mosquitto", broker.port)
        site.prepare()
        gateway.admin("grant", client="mallory", url="ctxt://home.local/vault/safe")
        broker.kill()
        with pytest.raises(AdministrationError, match="is mosquitto running"):
            gateway.admin("revoke", client="mallory", url="ctxt://home.local/vault/safe")
        broker.start()
        until(lambda: families(gateway)["ctxt_acl_pending"] == 0)
        site.close()
        mallory = site.client("mallory")
        site.listen(mallory, "#", "snapshot/ctxt/home.local/vault/safe")
        site.settle()
        assert not any("vault" in topic for topic, *_ in mallory.heard)
        site.close()


def test_a_mosquitto_that_cannot_read_its_rules_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lets everybody do everything then: 2.0.11 says an error in its log and goes on without rules."""
    monkeypatch.setattr(plugin, "WATCH", 0.2)
    with beside_mosquitto(tmp_path, SETTINGS, *CLIENTS) as (gateway, broker):
        assert broker.process is not None
        assert families(gateway)["ctxt_acl_enforced"] == 1
        rules_file = tmp_path / FILES / "acl"
        reloads = families(gateway)["ctxt_acl_reloads_total"]
        away = rules_file.rename(tmp_path / "away")
        os.kill(broker.process.pid, signal.SIGHUP)
        time.sleep(0.5)
        away.rename(rules_file)
        until(lambda: families(gateway)["ctxt_acl_reloads_total"] > reloads)
        assert families(gateway)["ctxt_acl_enforced"] == 1
        assert "everybody may do everything" in caplog.text


def test_another_acl_file_is_not_believed(tmp_path: Path) -> None:
    """The gateway does not serve beside a mosquitto that goes by other rules."""
    broker = Mosquitto(tmp_path)
    broker.config.write_text(broker.config.read_text().replace(f"acl_file {tmp_path / FILES}/acl", ""))
    (tmp_path / "link.password").write_text(LINK_PASSWORD + "\n")
    broker.start()
    try:
        with pytest.raises(AclError, match="everybody may do everything"):
            Inside(tmp_path, SETTINGS + broker.settings + "timeout = 1\n", CLIENTS, f"mqtt://127.0.0.1:{broker.port}")
    finally:
        broker.kill()


def test_files_of_somebody_else_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "link.password").write_text(LINK_PASSWORD + "\n")
    broker = Mosquitto(tmp_path)
    mine = tmp_path / FILES / "acl"
    mine.write_text("user me\ntopic readwrite #\n")
    with pytest.raises(AclError, match="is not the gateway's"):
        Inside(tmp_path, SETTINGS + broker.settings, CLIENTS, f"mqtt://127.0.0.1:{broker.port}")
    assert mine.read_text() == "user me\ntopic readwrite #\n"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('username = "gateway"\n', "link.password_file"),
        ("", "link.username"),
        ('username = "a b"\n', "cannot be a user"),
        ('username = "gateway"\npassword_file = "missing"\n', "cannot read link.password_file"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, lines: str, problem: str) -> None:
    settings_lines = f'{SETTINGS}\n[acl]\nplugin = "mosquitto"\n[link]\n{lines}'
    with pytest.raises(AclError, match=problem):
        Inside(tmp_path, settings_lines, CLIENTS, "mqtt://127.0.0.1:1")


def test_a_filter_cannot_bring_lines_of_its_own() -> None:
    for bad in ("a\ntopic readwrite #", "a\x85b", " a", "a ", "a/%c/b", "%u/%c"):
        with pytest.raises(AclError, match="cannot be written"):
            list(everybody(Permissions((), (bad,))))


@pytest.mark.parametrize(("users", "grants"), [(10, 10), (100, 100), (1_000, 100)])
def test_very_many_grants(tmp_path: Path, users: int, grants: int) -> None:
    """What a change costs: until mosquitto goes by it, and how long everybody else waits. Printed, not judged."""
    with beside_mosquitto(tmp_path, SETTINGS + "[limits]\ngrants_per_object = 1000\n", *CLIENTS) as (gateway, broker):

        def fill(service: Service) -> None:
            engine = service.engine
            effects = Effects()
            space = engine.rights.namespace_of("ctxt/home.local/vault/x")
            made = [thing(f"ctxt/home.local/vault/thing{n}", "alice", space) for n in range(2 * grants)]
            for obj in made:
                engine.objects.add(obj)
            for user in range(users):
                for n in range(grants):
                    engine.grant(effects, made[(user + n) % len(made)], f"user{user}")

        gateway.call(fill)
        bob = Client(broker.port, "bob")
        waits: list[float] = []
        going = threading.Event()

        def wait_on() -> None:
            while not going.is_set():
                began = time.perf_counter()
                bob.publish("presence/bob", b"online")
                waits.append(time.perf_counter() - began)

        other = threading.Thread(target=wait_on)
        other.start()
        began = time.perf_counter()
        gateway.admin("reload")
        first = time.perf_counter() - began
        before = families(gateway)
        took = []
        for n in range(3):
            began = time.perf_counter()
            gateway.admin("revoke", client=f"user{n}", url=f"ctxt://home.local/vault/thing{n}")
            took.append(time.perf_counter() - began)
        going.set()
        other.join()
        after = families(gateway)
        print(
            f"{users:,} users x {grants}: {after['ctxt_acl_lines']:,.0f} lines; compiled anew and taken over in {first:.2f} s, one "
            f"grant revoked in {sorted(took)[1] * 1000:.0f} ms; another client waited {max(waits) * 1000:.0f} ms at most"
        )
        assert after["ctxt_acl_reloads_total"] == before["ctxt_acl_reloads_total"] + 3
        assert after["ctxt_acl_lines"] >= users * grants * 3
        bob.close()


@pytest.fixture
def etc() -> Iterator[Path]:
    """A folder that mosquitto's own user can look into, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_what_is_installed_makes_mosquitto_go_by_the_rights(tmp_path: Path, etc: Path) -> None:
    """The files that `ctxt acl install` writes, and what systemd does with them: copy, and have mosquitto read again."""
    port = free_port()
    text = f"""
[link]
username = "gateway"
password_file = "{tmp_path}/state/link.password"
[acl]
plugin = "mosquitto"
"""
    settings_file = tmp_path / "gateway.toml"
    url = f"mqtt://127.0.0.1:{port}"
    settings_file.write_text(f'state_dir = "{tmp_path}/state"\n[broker]\nurl = "{url}"\n{text}')
    (etc / "mosquitto.conf").write_text(f"allow_anonymous true\nlistener {port}\n")
    done = ctxt("acl", "install", "mosquitto", "--config", str(settings_file), "--folder", str(etc), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["tried"] is True
    problems = "\n".join(said["conflicts"])
    for problem in (
        "add the line include_dir",
        "mosquitto.conf:1 sets allow_anonymous",
        f"mosquitto.conf:2 listens on port {port}",
    ):
        assert problem in problems
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        ("user root\n" if os.geteuid() == 0 else "")
        + (etc / "conf.d/ctxt.conf").read_text().replace("9001", str(free_port()))
    )
    with (tmp_path / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen(
            [need("mosquitto", "mosquitto"), "-c", str(config)], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for_port(port, process, 10)
        with carried(etc / "ctxt-mosquitto.path", process.pid, {}):
            gateway = Inside(tmp_path, SETTINGS + text, CLIENTS, url)
            try:
                site = Site(gateway, "mosquitto", port)
                site.prepare()
                for attack in ("live_at_qos_1", "in_anothers_name", "anothers_session"):
                    assert ATTACKS[attack](site) == ""
                site.close()
            finally:
                gateway.stop()
    finally:
        process.kill()
        process.wait()


def test_the_units_are_ones_that_systemd_understands(tmp_path: Path) -> None:
    assert faults(tmp_path, shipped("config") / "mosquitto/ctxt-mosquitto.path") == ""


def test_nothing_is_installed_over_what_is_not_ours(tmp_path: Path) -> None:
    settings_file, etc = tmp_path / "gateway.toml", tmp_path / "etc"
    settings_file.write_text(f'state_dir = "{tmp_path}/state"\n')
    install = ("acl", "install", "mosquitto", "--config", str(settings_file), "--folder", str(etc))
    refused = ctxt(*install)
    assert refused.returncode == 78
    assert 'plugin = "mosquitto"' in refused.stderr
    settings_file.write_text(refused.stderr.partition("add\n")[2].replace(str(tmp_path / "state"), str(tmp_path)))
    (etc / "conf.d").mkdir(parents=True)
    (etc / "conf.d/ctxt.conf").write_text("# mine\n")
    environment = {"CTXT_STATE_DIR": str(tmp_path / "state")}
    refused = ctxt(*install, env=environment)
    assert refused.returncode == 1
    assert "move it away" in refused.stderr
    assert (etc / "conf.d/ctxt.conf").read_text() == "# mine\n"
    printed = ctxt(*install, "--print", env=environment)
    assert printed.returncode == 0
    assert "acl_file" in printed.stdout
    assert "$7$" not in printed.stdout
