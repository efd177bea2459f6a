"""What `docs/tls.md` promises, over real sockets: its settings and lines as they stand, renewals, and files that cannot be used."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import paho.mqtt.client
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.broker.listeners import TlsFiles, ending
from gateway.certificates import DAY, Folder, Kind, date
from gateway.links import remote
from gateway.reload import ReloadError
from tests.inside import PASSWORD, clients, inside
from tests.links.world import ALLOW_ALL, OPEN, eventually, joined_again, link_of, proxy, wait_for
from tests.running import HOST, OWN_NAMESPACE, ROOT, UNLIMITED, free_port, mosquitto, need
from tests.running import gateway as process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gateway.certificates import Files
    from tests.inside import Inside

PAHO: Any = paho.mqtt.client
PAGE = (ROOT / "docs/tls.md").read_text()
STATE = "/var/lib/ctxt-gateway"

OBJECT = "ctxt/home.local/sensor/room"
SENSOR = f"report/sensor/{OBJECT}"
READING = '{"values": {"temperature": {"value": 21.5}}}'


def shown(language: str) -> list[str]:
    """The page's blocks in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def line_with(program: str) -> list[str]:
    """A command of the page, as a shell takes it."""
    found = re.search(rf"^{program} .*?[^\\]$", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None
    return shlex.split(found[0].replace("\\\n", "").replace("$PASSWORD", PASSWORD))


@dataclass
class Site:
    """An authority of ten days ago, the gateway's certificate, and one each for the clients sensor and dash."""

    root: Path

    def __post_init__(self) -> None:
        self.began = time.time() - 10 * DAY
        self.folder = Folder(self.root / "tls")
        self.folder.init(["gateway.home.local", "localhost", HOST], now=self.began)
        for name in ("sensor", "dash", "room-sensor"):
            self.folder.issue(name, Kind.CLIENT, [], now=self.began)
        self.ca = self.folder.path / "ca.pem"
        self.own = self.folder.files("gateway", Kind.SERVER)

    @property
    def settings(self) -> str:
        """The page's listener, for these files and on a free port."""
        return shown("toml")[0].replace(STATE, str(self.root)).replace("[::]:8883", f"{HOST}:0")

    def client(self, name: str) -> Files:
        return self.folder.files(name, Kind.CLIENT)

    def renew(self, **rest: Any) -> int:
        """A new certificate for the gateway, from now on where no `now` is given: its number."""
        self.folder.renew("gateway", **{"now": time.time(), **rest})
        return number(self.own)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def devices() -> Iterator[list[Device]]:
    made: list[Device] = []
    yield made
    for each in made:
        each.close()


def number(files: Files) -> int:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes()).serial_number


def trusting(ca: Path, pair: Files | None = None) -> ssl.SSLContext:
    """A client's context that goes by every rule."""
    context = ssl.create_default_context(cafile=ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def port_of(gateway: Inside, listener: int = 1) -> int:
    return int(gateway.call(lambda service: service.urls)[listener].rpartition(":")[2])


def served(port: int, ca: Path) -> int:
    """The number of the certificate that a new connection is shown."""
    with (
        socket.create_connection((HOST, port), 10) as bare,
        trusting(ca).wrap_socket(bare, server_hostname="gateway.home.local") as encrypted,
    ):
        return shown_to(encrypted)


def shown_to(encrypted: ssl.SSLSocket) -> int:
    found = encrypted.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


def counted(gateway: Inside, name: str) -> dict[str, float]:
    """What the gateway counts under a name, by label."""
    families = gateway.call(lambda service: list(service.families()))
    return dict(next(one.samples for one in families if one.name == name))


def failures(gateway: Inside) -> float:
    """Handshakes that came to nothing."""
    return counted(gateway, "ctxt_broker_handshakes_failed_total")["tls"]


class Device:
    """A paho client over TLS; `reason` is that of its CONNACK, None where it got none."""

    def __init__(self, port: int, tls: ssl.SSLContext, login: tuple[str, str | None] | None = None) -> None:
        self.reason: int | None = None
        self.heard: list[str] = []
        self._answers: dict[int, int] = {}
        self._news = threading.Condition()
        self._done = False
        self.paho = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, protocol=5, reconnect_on_failure=False)
        self.paho.tls_set_context(tls)
        if login is not None:
            self.paho.username_pw_set(*login)
        self.paho.on_connect = lambda _c, _u, _f, reason, _p: self._note(lambda: setattr(self, "reason", reason.value))
        self.paho.on_disconnect = lambda *_: self._note(lambda: setattr(self, "_done", True))
        self.paho.on_publish = lambda _c, _u, mid, reason, _p: self._answer(mid, reason)
        self.paho.on_subscribe = lambda _c, _u, mid, reasons, _p: self._answer(mid, reasons[0])
        self.paho.on_message = lambda _c, _u, message: self._note(lambda: self.heard.append(message.topic))
        self.paho.connect(HOST, port)
        self.paho.loop_start()
        self.wait(lambda: self.reason is not None or self._done)

    def _note(self, act: Callable[[], None]) -> None:
        with self._news:
            act()
            self._news.notify_all()

    def _answer(self, mid: int, reason: Any) -> None:
        self._note(lambda: self._answers.__setitem__(mid, reason.value))

    def wait(self, until: Callable[[], object]) -> None:
        with self._news:
            assert self._news.wait_for(until, 10)

    def publish(self, topic: str, payload: str = READING) -> int:
        """Its reason code."""
        mid = self.paho.publish(topic, payload, 1).mid
        self.wait(lambda: mid in self._answers)
        return self._answers[mid]

    def subscribe(self, topic_filter: str) -> int:
        """Its reason code."""
        _, mid = self.paho.subscribe(topic_filter, 1)
        self.wait(lambda: mid in self._answers)
        return self._answers[mid]

    @property
    def number(self) -> int:
        """That of the certificate that its connection has been shown."""
        return shown_to(self.paho.socket())

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()
        self.paho._reset_sockets(sockpair_only=True)


def mosquitto_line(*arguments: str, cwd: Path | None = None) -> tuple[int, str]:
    """Run one of its programs to its end: exit code and what it wrote."""
    program = need(arguments[0], "mosquitto-clients")
    done = subprocess.run(
        [program, *arguments[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        check=False,
        cwd=cwd,
    )
    return done.returncode, done.stdout


# ---- who comes in ------------------------------------------------------------------------------------------------------


def test_the_settings_and_lines_of_the_page_work_as_they_stand(site: Site, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    for file in (site.ca, *site.client("room-sensor")):
        shutil.copy(file, device)
    with inside(tmp_path, site.settings, "room-sensor", "dashboard") as gateway:
        reach = {"gateway.home.local": HOST, "8883": str(port_of(gateway))}
        pub, sub = ([reach.get(word, word) for word in line_with(f"mosquitto_{which}")] for which in ("pub", "sub"))
        assert mosquitto_line(*pub, cwd=device) == (0, "")
        code, heard = mosquitto_line(*sub, "-C", "1", "-W", "10", cwd=device)
        assert code == 0
        assert heard.startswith("snapshot/ctxt/home.local/room-sensor/room ")
        assert "21.5" in heard


def test_a_client_is_who_its_certificate_names(site: Site, tmp_path: Path, devices: list[Device]) -> None:
    with inside(tmp_path, site.settings) as gateway:
        port, tls = port_of(gateway), trusting(site.ca, site.client("sensor"))
        devices += [Device(port, tls), Device(port, trusting(site.ca, site.client("dash")), ("dash", None))]
        sensor, dash = devices
        assert (sensor.reason, dash.reason) == (0, 0)
        assert dash.subscribe("delta/#") == 1
        assert sensor.publish(SENSOR) == 0
        dash.wait(lambda: dash.heard == [f"delta/{OBJECT}"])
        assert sensor.publish(SENSOR.replace("report/sensor", "report/dash")) == 0x87
        assert sensor.subscribe("inbox/sensor") == 1
        assert sensor.subscribe("inbox/dash") == 0x87
        # A certificate is good for its own name only, whatever password comes with it.
        devices.append(Device(port, tls, ("dash", PASSWORD)))
        assert devices[-1].reason in (0x86, 0x87)
        # Without one, name and password hold.
        devices += [Device(port, trusting(site.ca), ("mallory", PASSWORD)), Device(port, trusting(site.ca))]
        assert devices[-2].reason == 0
        assert devices[-1].reason in (0x86, 0x87)
        assert failures(gateway) == 0


def test_a_certificate_that_is_not_good_is_refused_before_mqtt(site: Site, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    other.init(["a"], now=site.began)
    foreign = other.issue("sensor", Kind.CLIENT, [], now=site.began).files
    folder = site.folder
    over = folder.issue("over", Kind.CLIENT, [], now=site.began, days=9).files
    server = folder.issue("sensor", Kind.SERVER, ["sensor.local"], now=time.time()).files
    early = Folder(tmp_path / "early")
    shutil.copytree(folder.path, early.path)
    coming = early.issue("coming", Kind.CLIENT, [], now=time.time() + DAY).files
    with inside(tmp_path, site.settings, "sensor", "dash", "over", "coming") as gateway:
        line = ["mosquitto_pub", "-h", HOST, "-p", str(port_of(gateway)), "--cafile", str(site.ca), "-q", "1"]

        def report(files: Files) -> int:
            topic = SENSOR.replace("sensor", files.certificate.stem)
            shows = ("--cert", str(files.certificate), "--key", str(files.key))
            return mosquitto_line(*line, *shows, "-t", topic, "-m", READING)[0]

        for count, files in enumerate((foreign, over, server, coming), 1):
            assert report(files), files
            eventually(lambda count=count: failures(gateway) == count, "the handshake is counted")  # type: ignore[misc]
        assert gateway.call(lambda service: len(service.engine.objects)) == 0
        # The same names come in with certificates that are good.
        folder.renew("over", now=time.time())
        assert report(site.client("over")) == report(site.client("sensor")) == 0
        assert gateway.call(lambda service: len(service.engine.objects)) == 2
        assert failures(gateway) == 4


def test_clients_of_two_authorities_come_in_while_one_follows_the_other(
    site: Site, tmp_path: Path, devices: list[Device]
) -> None:
    following = Folder(tmp_path / "tls-next")
    following.init(["gateway.home.local", HOST], now=time.time())
    new = following.issue("dash", Kind.CLIENT, [], now=time.time()).files
    both = tmp_path / "both.pem"
    both.write_bytes(site.ca.read_bytes() + (following.path / "ca.pem").read_bytes())
    with inside(tmp_path, site.settings.replace(str(site.ca), str(both))) as gateway:
        port = port_of(gateway)
        devices += [Device(port, trusting(both, files)) for files in (site.client("sensor"), new)]
        assert [each.reason for each in devices] == [0, 0]
        for file in ("server/gateway.key", "server/gateway.pem"):
            shutil.copy(following.path / file, site.folder.path / file)
        gateway.admin("reload")
        assert served(port, both) == number(following.files("gateway", Kind.SERVER))
        devices.append(Device(port, trusting(both, site.client("sensor"))))
        assert devices[-1].reason == 0


# ---- renewals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new_key", [False, True])
def test_after_a_reload_new_connections_get_the_new_certificate_and_old_ones_live_on(
    site: Site, tmp_path: Path, devices: list[Device], new_key: bool
) -> None:
    with inside(tmp_path, site.settings) as gateway:
        port, tls = port_of(gateway), trusting(site.ca, site.client("sensor"))
        old = number(site.own)
        before = Device(port, tls)
        devices.append(before)
        assert before.number == served(port, site.ca) == old
        new = site.renew(new_key=new_key)
        assert new != old
        assert gateway.admin("reload") == []
        assert served(port, site.ca) == new
        devices.append(Device(port, tls))
        assert (devices[-1].reason, devices[-1].number) == (0, new)
        assert before.number == old
        assert before.publish(SENSOR) == devices[-1].publish(SENSOR) == 0
        ends = counted(gateway, "ctxt_certificate_expiry_seconds")
        assert list(ends.values()) == [site.folder.all(time.time())[0][1].period.ends]


def damage_key(site: Site) -> None:
    shutil.copy(site.client("sensor").key, site.own.key)


def lock(key: Path) -> None:
    """Encrypt it."""
    plain = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(plain, ec.EllipticCurvePrivateKey)
    secret = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(plain.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))


def lock_key(site: Site) -> None:
    lock(site.own.key)


def damage_certificate(site: Site) -> None:
    site.own.certificate.write_text("-----BEGIN CERTIFICATE-----\n")


def remove_key(site: Site) -> None:
    site.own.key.unlink()


def let_it_end(site: Site) -> None:
    site.renew(now=site.began, days=9)


def begin_tomorrow(site: Site) -> None:
    site.renew(now=time.time() + DAY)


def damage_authority(site: Site) -> None:
    site.ca.write_text("")


def end_authority(site: Site) -> None:
    Folder(site.root / "old").init(["a"], now=time.time() - 4_000 * DAY)
    shutil.copy(site.root / "old/ca.pem", site.ca)


DAMAGES = pytest.mark.parametrize(
    ("damage", "file", "said"),
    [
        (damage_key, "server/gateway.key", "the key is not that of the certificate"),
        (lock_key, "server/gateway.key", "the key is encrypted: store it without a password"),
        (damage_certificate, "server/gateway.pem", "cannot be used for TLS"),
        (remove_key, "server/gateway.key", "cannot be read (No such file or directory)"),
        (let_it_end, "server/gateway.pem", "is over since"),
        (begin_tomorrow, "server/gateway.pem", "is not good before"),
        (damage_authority, "ca.pem", "cannot be used for TLS"),
        (end_authority, "ca.pem", "is over since"),
    ],
)


@DAMAGES
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_taken_over(
    site: Site, tmp_path: Path, devices: list[Device], damage: Callable[[Site], None], file: str, said: str
) -> None:
    authority, kept = tmp_path / "kept.pem", tmp_path / "kept"
    shutil.copy(site.ca, authority)
    shutil.copytree(site.folder.path, kept)
    old = number(site.own)
    large = READING.replace("21.5", '"' + "x" * 300 + '"')
    with inside(tmp_path, site.settings) as gateway:
        port, tls = port_of(gateway), trusting(authority, site.client("sensor"))
        devices.append(Device(port, tls))
        gateway.path.write_text(gateway.path.read_text() + "\n[limits]\npayload_bytes = 256\n")
        damage(site)
        with pytest.raises(ReloadError) as caught:
            gateway.admin("reload")
        sentence = str(caught.value)
        assert str(site.folder.path / file) in sentence
        assert said in sentence
        assert sentence.endswith("nothing has been taken over")
        assert served(port, authority) == old
        assert devices[0].publish(SENSOR, large) == 0
        devices.append(Device(port, tls))
        assert (devices[1].reason, devices[1].number) == (0, old)
        # Put right, all of it holds.
        shutil.copytree(kept, site.folder.path, dirs_exist_ok=True)
        new = site.renew()
        assert gateway.admin("reload") == [{"changed": "limits"}]
        assert served(port, authority) == new
        assert devices[0].publish(SENSOR, large) == 0x97


def test_the_log_tells_of_certificates_that_end_soon(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    end = site.folder.renew("gateway", now=time.time(), days=13)[0].ends
    with inside(tmp_path, site.settings) as gateway:
        assert told() == [f"the certificate {site.own.certificate} ends on {date(end)}, in 12 d: renew it"]
        caplog.clear()
        site.renew(days=15)
        gateway.admin("reload")
        assert told() == []
        # Until it is done, the log says what is the matter with which file.
        files = TlsFiles(*site.own, ca=site.ca)
        late = ending(files, files.periods(), time.time() + 4_000 * DAY)
        for (role, file), text in zip(
            (("certificate", site.own.certificate), ("authority", site.ca)), late, strict=True
        ):
            assert text.startswith(f"the {role} {file} is over since ")
            assert text.endswith("whoever checks it refuses; renew it")


# ---- a process, and its commands ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(folder: Path, settings: str) -> Iterator[tuple[Any, int]]:
    """A gateway as a process of its own, and the port of its listener with TLS."""
    with process(folder, rest=OWN_NAMESPACE + settings, clients={"sensor": PASSWORD}) as running:
        found = re.search(r"also on mqtts://\S+:(\d+)", (folder / "gateway.out").read_text())
        assert found is not None
        yield running, int(found[1])


def test_the_reload_command_takes_certificates_and_says_which_it_cannot(site: Site, tmp_path: Path) -> None:
    with listening(tmp_path, site.settings) as (running, port):
        new = site.renew()
        done = running.command("reload", "--json")
        assert (done.returncode, done.stdout) == (0, "[]\n")
        assert served(port, site.ca) == new
        damage_key(site)
        done = running.command("reload")
        assert done.returncode
        assert f"certificate {site.own.certificate} with key {site.own.key} cannot be used for TLS" in done.stderr
        assert "Traceback" not in done.stderr
        assert served(port, site.ca) == new


def test_the_program_of_the_page_brings_a_renewed_certificate_to_a_running_gateway(site: Site, tmp_path: Path) -> None:
    """As certbot runs it, with a `systemctl` that does what the unit's ExecReload says."""
    state, live, programs = tmp_path / "lib", tmp_path / "live", tmp_path / "bin"
    for each in (state, live, programs):
        each.mkdir()
    (tmp_path / "hook").write_text(
        next(text for text in shown("sh") if text.startswith("#!")).replace(STATE, str(state))
    )
    systemctl = programs / "systemctl"

    def hook() -> None:
        shutil.copy(site.own.key, live / "privkey.pem")
        (live / "fullchain.pem").write_bytes(site.own.certificate.read_bytes() + site.ca.read_bytes())
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "RENEWED_LINEAGE": str(live)}
        subprocess.run(["sh", str(tmp_path / "hook")], env=environment, check=True, timeout=30)

    systemctl.write_text("#!/bin/sh\nexit 0\n")
    systemctl.chmod(0o755)
    hook()
    settings = shown("toml")[2].replace(STATE, str(state)).replace("[::]:8883", f"{HOST}:0")
    with listening(tmp_path, settings) as (running, port):
        assert served(port, site.ca) == number(site.own)
        systemctl.write_text(f'#!/bin/sh\n[ "$*" = "reload ctxt-gateway" ] && kill -HUP {running.process.pid}\n')
        new = site.renew(new_key=True)
        hook()
        eventually(lambda: "settings and schemas read again" in running.errors(), "the signal is heard")
        assert served(port, site.ca) == new
        assert {path.name: path.stat().st_mode & 0o777 for path in (state / "public").iterdir()} == {
            "fullchain.pem": 0o600,
            "privkey.pem": 0o600,
        }
        shutil.copy(site.client("sensor").key, state / "public/privkey.pem")
        running.process.send_signal(signal.SIGHUP)
        eventually(lambda: "nothing has been taken over" in running.errors(), "the refusal")
        assert f"with key {state}/public/privkey.pem cannot be used for TLS" in running.errors()
        assert served(port, site.ca) == new


# ---- beside another broker ---------------------------------------------------------------------------------------------


def test_beside_a_broker_bad_files_are_refused_and_the_connection_stays(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("mosquitto", "mosquitto")
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.05)
    broker_files = site.folder.issue("broker", Kind.SERVER, [HOST], now=time.time()).files
    own = site.folder.issue("gw", Kind.CLIENT, [], now=site.began).files
    port = free_port()
    config = (
        f"{ALLOW_ALL}listener {port} {HOST}\ncafile {site.ca}\ncertfile {broker_files.certificate}\n"
        f"keyfile {broker_files.key}\nrequire_certificate true\nuse_identity_as_username true\n"
    )
    ca = tmp_path / "link-ca.pem"
    shutil.copy(site.ca, ca)
    link = f'{OPEN}ca = "{ca}"\ncertificate = "{own.certificate}"\nkey = "{own.key}"\n'
    kept = tmp_path / "kept"
    shutil.copytree(own.key.parent, kept)
    with (
        mosquitto(tmp_path, config) as broker,
        proxy(port) as wire,
        inside(tmp_path / "gateway", UNLIMITED + link, url=f"mqtts://{HOST}:{wire.port}") as gateway,
        clients(broker.port, "sensor") as (sensor,),
    ):
        assert gateway.admin("reload") == []
        connections = link_of(gateway).counters.connections

        def refused(file: Path, said: str) -> None:
            with pytest.raises(ReloadError, match=re.escape(str(file))) as caught:
                gateway.admin("reload")
            assert said in str(caught.value).lower()
            shutil.copytree(kept, own.key.parent, dirs_exist_ok=True)
            shutil.copy(site.ca, ca)

        shutil.copy(site.client("dash").key, own.key)
        refused(own.key, "key values mismatch")
        lock(own.key)
        refused(own.key, "the key is encrypted")
        own.key.unlink()
        refused(own.key, "no such file or directory")
        ca.write_text("")
        refused(ca, "cannot be used for tls")
        site.folder.renew("gw", now=site.began, days=9)
        refused(own.certificate, "is over since")
        over = Folder(tmp_path / "over")
        over.init(["a"], now=time.time() - 4_000 * DAY)
        shutil.copy(over.path / "ca.pem", ca)
        refused(ca, "is over since")
        assert link_of(gateway).counters.connections == connections
        assert sensor.publish(SENSOR, {"values": {}}) == (0, "")
        wait_for(gateway, lambda service: len(service.engine.objects) == 1, "the report is taken in")
        # A renewed one is what the next connection is made with.
        site.folder.renew("gw", now=time.time())
        assert gateway.admin("reload") == []
        wire.cut()
        joined_again(gateway, connections)
