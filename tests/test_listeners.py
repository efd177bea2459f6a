"""The listeners of the settings, in a whole gateway: who may come in where, and under which name."""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, Any

import paho.mqtt.client
import pytest

from gateway.credentials import Credentials
from gateway.settings import SettingsError, load, warnings
from tests import running
from tests.broker.certificates import Authority
from tests.inside import PASSWORD, Inside, inside

if TYPE_CHECKING:
    from pathlib import Path

PAHO: Any = paho.mqtt.client


class Caller:
    """A paho client; `reason` is that of its CONNACK or of what ended it, None where TLS or the socket failed before."""

    def __init__(
        self,
        gateway: Inside,
        number: int,
        name: str | None,
        password: str | None = PASSWORD,
        *,
        tls: tuple[Authority, Any] | None = None,
    ) -> None:
        url = gateway.call(lambda service: service.urls)[number]
        self.reason: int | None = None
        self.ended: int | None = None
        self._answered, self._gone = threading.Event(), threading.Event()
        if url.startswith("unix://"):
            self.paho = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, protocol=5, transport="unix")
            target: tuple[Any, ...] = (url.removeprefix("unix://"),)
        else:
            scheme, _, rest = url.partition("://")
            authority, _, path = rest.partition("/")
            transport = "websockets" if scheme in ("ws", "wss") else "tcp"
            self.paho = PAHO.Client(PAHO.CallbackAPIVersion.VERSION2, protocol=5, transport=transport)
            if path:
                self.paho.ws_set_options(path="/" + path)
            host, _, port = authority.rpartition(":")
            target = (host, int(port))
        if name is not None:
            self.paho.username_pw_set(name, password)
        if tls is not None:
            context = ssl.create_default_context(cafile=tls[0].ca)
            if tls[1] is not None:
                context.load_cert_chain(*tls[1])
            self.paho.tls_set_context(context)
        self.paho.on_connect = self._on_connect
        self.paho.on_disconnect = self._on_disconnect
        try:
            self.paho.connect(*target)
        except OSError:
            return
        self.paho.loop_start()
        self._answered.wait(10)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.reason = reason.value
        self._answered.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.ended = reason.value
        self.paho._thread_terminate = True  # it is not to come back by itself
        self._answered.set()
        self._gone.set()

    def was_sent_away(self) -> int | None:
        """The reason of the DISCONNECT, once it has come; None when it does not come."""
        self._gone.wait(10)
        return self.ended

    @property
    def client(self) -> str | None:
        """Its name, as its inbox shows: nobody else may read there."""
        for name in ("sensor", "dash", "stranger"):
            done = threading.Event()
            granted: list[int] = []
            self.paho.on_subscribe = lambda _c, _u, _m, reasons, _p, done=done, granted=granted: (
                granted.append(reasons[0].value),
                done.set(),
            )
            self.paho.subscribe(f"inbox/{name}", 1)
            done.wait(10)
            if granted[0] < 0x80:
                return name
        return None

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


@pytest.fixture
def call() -> Any:
    made: list[Caller] = []

    def make(*arguments: Any, **options: Any) -> Caller:
        made.append(Caller(*arguments, **options))
        return made[-1]

    yield make
    for caller in made:
        caller.close()


def tls(pair: Any, ca: Path, more: str = "") -> str:
    return (
        f'[[listener]]\nurl = "mqtts://127.0.0.1:0"\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n'
        f'ca = "{ca}"\n{more}\n'
    )


def test_each_listener_has_rules_of_its_own(tmp_path: Path, call: Any) -> None:
    authority = Authority(tmp_path / "tls")
    here, sensor, stranger, root = (authority.issue(name) for name in ("here", "sensor", "stranger", "gateway"))
    lines = [
        '[[listener]]\nurl = "mqtt://127.0.0.1:0"\nanonymous = true\n',
        tls(here, authority.ca),
        tls(here, authority.ca, "use_certificate_name = true"),
        tls(
            here,
            authority.ca,
            'use_certificate_name = true\nrequire_certificate = true\ncertificate_clients = "any"',
        ),
    ]
    with inside(tmp_path, "".join(lines)) as gateway:
        plain, nameless, secure, named, anyone = range(5)
        assert [url.split("://")[0] for url in gateway.call(lambda service: service.urls)] == [
            *("mqtt", "mqtt"),
            *("mqtts", "mqtts", "mqtts"),
        ]
        assert call(gateway, plain, None).reason == 0x86
        assert call(gateway, nameless, None).reason == 0
        assert call(gateway, plain, "sensor").reason == 0
        # A certificate is no name where the listener does not say so.
        assert call(gateway, secure, None, tls=(authority, sensor)).reason == 0x86
        assert call(gateway, secure, "dash", tls=(authority, sensor)).client == "dash"
        assert call(gateway, secure, "dash", tls=(authority, None)).client == "dash"
        # Where it does, it is the name, and no other one beside it.
        assert call(gateway, named, None, tls=(authority, sensor)).client == "sensor"
        assert call(gateway, named, "sensor", "wrong", tls=(authority, sensor)).client == "sensor"
        assert call(gateway, named, "dash", tls=(authority, sensor)).reason == 0x86
        assert call(gateway, named, None, tls=(authority, stranger)).reason == 0x86
        assert call(gateway, named, "dash", tls=(authority, None)).client == "dash"
        assert call(gateway, named, None, tls=(authority, None)).reason == 0x86
        # Names that nobody may have are nobody's, whatever an authority signs.
        assert call(gateway, anyone, None, tls=(authority, stranger)).client == "stranger"
        for bad in (root, authority.issue("a/b"), authority.issue("#"), authority.issue("sensor", "dash", file="two")):
            assert call(gateway, anyone, None, tls=(authority, bad)).reason == 0x86
        assert call(gateway, anyone, "dash", tls=(authority, None)).reason is None


def test_who_is_disabled_or_removed_is_sent_away_whatever_its_certificate(tmp_path: Path, call: Any) -> None:
    authority = Authority(tmp_path / "tls")
    here, sensor, dash, stranger = (authority.issue(name) for name in ("here", "sensor", "dash", "stranger"))
    any_client = 'use_certificate_name = true\ncertificate_clients = "any"'
    lines = tls(here, authority.ca, "use_certificate_name = true")
    lines += tls(here, authority.ca, any_client)
    with inside(tmp_path, lines) as gateway:
        first = call(gateway, 1, None, tls=(authority, sensor))
        second = call(gateway, 2, None, tls=(authority, dash))
        third = call(gateway, 2, None, tls=(authority, stranger))
        assert (first.reason, second.reason, third.reason) == (0, 0, 0)
        credentials = Credentials(gateway.state / "clients.db")
        credentials.disable("dash")
        assert second.was_sent_away() == 0x87
        assert call(gateway, 2, None, tls=(authority, dash)).reason == 0x86
        credentials.remove("sensor")
        assert first.was_sent_away() == 0x87
        assert call(gateway, 1, None, tls=(authority, sensor)).reason == 0x86
        # Removed, not disabled: where any name will do it is one like any other.
        assert call(gateway, 2, None, tls=(authority, sensor)).reason == 0
        credentials.close()
        assert third.ended is None
        assert third.client == "stranger"


def test_the_short_form_is_left_out_where_only_listeners_are_given(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[[listener]]\nurl = "mqtt://127.0.0.1:2883"\n')
    home = {"HOME": "/nonexistent"}
    assert load(file, home).broker.listener is None
    assert load(file, {**home, "CTXT_BROKER__URL": "embedded://127.0.0.1:1"}).broker.listener is not None
    file.write_text('[broker]\nurl = "embedded://127.0.0.1"\n[[listener]]\nurl = "mqtt://127.0.0.1:2883"\n')
    assert load(file, home).broker.listener is not None


def test_relative_files_count_from_the_settings_folder(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('[[listener]]\nurl = "mqtts://[::1]"\ncertificate = "tls/c.pem"\nkey = "k.pem"\nca = "/ca.pem"\n')
    (found,) = load(file, {"HOME": "/nonexistent"}).listener
    assert (found.certificate, found.key) == (tmp_path / "tls/c.pem", tmp_path / "k.pem")
    assert found.place == ("mqtts", "::1", 8883, "")


@pytest.mark.parametrize(
    ("lines", "place", "said"),
    [
        ('url = "mqtts://0.0.0.0"', "listener[0].certificate", "needs a certificate"),
        ('url = "mqtt://0.0.0.0"\nanonymous = true', "listener[0].anonymous", "loopback and Unix sockets only"),
        ('url = "mqtt://127.0.0.1"\ncertificate = "c"', "listener[0].certificate", "speaks no TLS"),
        ('url = "mqtts://a"\ncertificate = "c"\nrequire_certificate = true', "listener[0].require_certificate", "ca"),
        ('url = "mqtts://a"\ncertificate = "c"\nuse_certificate_name = true', "listener[0].use_certificate_name", "ca"),
        ('url = "mqtt://127.0.0.1"\ncertificate_clients = "any"', "listener[0].certificate_clients", "no effect"),
        ('url = "mqtt://127.0.0.1"\norigins = ["*"]', "listener[0].origins", "web pages"),
        ('url = "mqtt://127.0.0.1"\nmode = "0600"', "listener[0].mode", "unix://"),
        ('url = "ws://127.0.0.1"', "listener[0].url", "needs a port"),
        ('url = "ws://127.0.0.1:1/a b"', "listener[0].url", "not a URL"),
        ('url = "ws://127.0.0.1:1/a?b"', "listener[0].url", "and a path"),
        ('url = "mqtt://127.0.0.1/a"', "listener[0].url", "only a host and a port"),
        ('url = "mqtt://me:secret@127.0.0.1"', "listener[0].url", "user name"),
        ('url = "http://127.0.0.1"', "listener[0].url", "unknown scheme"),
        ('url = "unix://run/x"', "listener[0].url", "absolute"),
        ('url = "unix:///' + "x" * 107 + '"', "listener[0].url", "107"),
        ('url = "ws://127.0.0.1:1"\norigins = ["panel"]', "listener[0].origins[0]", "origin"),
        ('url = "unix:///x"\nmode = "rw"', "listener[0].mode", "octal"),
        ('url = "mqtt://[::1]"\n[[listener]]\nurl = "mqtt://[::1]:1883"', "listener[1].url", "is there already"),
    ],
)
def test_what_cannot_be_is_refused_by_place(tmp_path: Path, lines: str, place: str, said: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[[listener]]\n" + lines)
    with pytest.raises(SettingsError) as caught:
        load(file, {"HOME": "/nonexistent"})
    (problem,) = caught.value.problems
    assert problem.place == place
    assert said in problem.reason
    assert "secret" not in str(problem)


def test_what_the_network_can_read_is_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[[listener]]\nurl = "mqtt://[::]"\n[[listener]]\nurl = "mqtts://[::]"\ncertificate = "c"\n'
        '[[listener]]\nurl = "unix:///x"\nanonymous = true\n[[listener]]\nurl = "ws://192.0.2.1:80"\n'
    )
    found = [warning.split(":")[0] for warning in warnings(load(file, {"HOME": "/nonexistent"}))]
    assert found == ["listener[2].anonymous", "listener[0].url", "listener[3].url"]


def test_a_listener_that_cannot_be_opened_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    lines = f'[[listener]]\nurl = "mqtts://127.0.0.1:0"\ncertificate = "{missing}"\n'
    with running.gateway(tmp_path, rest=running.OWN_NAMESPACE + lines, start=False) as gateway:
        with pytest.raises(running.ProgramError):
            gateway.start()
        assert gateway.process is not None
        assert gateway.process.returncode == 74
        assert f"certificate {missing} cannot be read (No such file or directory)" in gateway.errors()
