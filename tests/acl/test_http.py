"""The authority over HTTP: every dialect over real sockets, what is refused, and whom a management API is told to disconnect.

The management APIs of EMQX and VerneMQ are played by a server that answers as their sources say: neither broker is in Debian.
RabbitMQ itself is asked in `test_rabbitmq.py`.
"""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import pytest

from gateway.acl.dialects import ROUTES, QuestionError, fields_of, filter_of
from gateway.acl.kick import KICKS, Lost, Management
from gateway.acl.plugin import AclError
from gateway.web import server
from tests.acl.attacks import CLIENTS, SETTINGS
from tests.acl.authority import FORM, SECRET, Authority, authority
from tests.inside import PASSWORD
from tests.test_rights import thing
from tests.test_tokens import SECRET as TOKEN_KEY
from tests.test_tokens import sign

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPEN = "[authority]\n"
OTHER = "ctxt/home.local/hall"
CLOSED = "ctxt/home.local/vault/safe"
WIDE = "delta/ctxt/home.local/#"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    with authority(tmp_path_factory.mktemp("authority"), SETTINGS + OPEN, *CLIENTS) as found:
        for topic in (OTHER, CLOSED):
            found.rights.objects.add(thing(topic, "alice", found.rights.namespace_of(topic)))
        yield found


def login(name: str, password: str = PASSWORD, client_id: str | None = None, **rest: str) -> dict[str, str]:
    return {"username": name, "password": password, "clientid": name if client_id is None else client_id, **rest}


# ---- the same questions in each dialect ------------------------------------------------------------------------------------


class Dialect:
    """How one broker asks, and what it takes for a yes."""

    def __init__(self, asked: Authority) -> None:
        self.asked = asked

    def connects(self, name: str, password: str = PASSWORD, client_id: str | None = None) -> bool:
        raise NotImplementedError

    def publishes(self, name: str, topic: str) -> bool:
        raise NotImplementedError

    def subscribes(self, name: str, wanted: str) -> bool:
        raise NotImplementedError


class Emqx(Dialect):
    def _says(self, question: str, fields: dict[str, str]) -> bool:
        found: dict[str, Any] = self.asked.ask(f"emqx/{question}", fields)
        assert found.get("is_superuser") in (None, False)
        return bool(found["result"] == "allow")

    def connects(self, name: str, password: str = PASSWORD, client_id: str | None = None) -> bool:
        return self._says("authentication", login(name, password, client_id, peerhost="192.0.2.7", cert_common_name=""))

    def publishes(self, name: str, topic: str) -> bool:
        return self._says("authorization", {"username": name, "action": "publish", "topic": topic})

    def subscribes(self, name: str, wanted: str) -> bool:
        return self._says("authorization", {"username": name, "action": "subscribe", "topic": wanted})


class Rabbit(Dialect):
    def _says(self, question: str, fields: dict[str, str]) -> bool:
        status, said = self.asked.post(f"rabbitmq/{question}", urlencode(fields).encode(), FORM)
        assert status == 200
        assert said in (b"allow", b"deny")
        return said == b"allow"

    def connects(self, name: str, password: str = PASSWORD, client_id: str | None = None) -> bool:
        fields = {
            "username": name,
            "password": password,
            "vhost": "/",
            "client_id": name if client_id is None else client_id,
        }
        return self._says("user", fields)

    def _topic(self, name: str, permission: str, key: str) -> bool:
        where = {"vhost": "/", "resource": "topic", "name": "amq.topic"}
        return self._says("topic", {"username": name, **where, "permission": permission, "routing_key": key})

    def publishes(self, name: str, topic: str) -> bool:
        return self._topic(name, "write", topic.replace(".", "%2E").replace("/", "."))

    def subscribes(self, name: str, wanted: str) -> bool:
        return self._topic(name, "read", wanted.replace(".", "%2E").replace("/", ".").replace("+", "*"))


class Verne(Dialect):
    hook = ""

    def _says(self, hook: str, fields: dict[str, Any]) -> dict[str, Any]:
        hook += self.hook
        found: dict[str, Any] = self.asked.ask("vernemq", {"mountpoint": "", **fields}, **{"vernemq-hook": hook})
        return found

    def connects(self, name: str, password: str = PASSWORD, client_id: str | None = None) -> bool:
        fields = {
            "peer_addr": "192.0.2.7",
            "peer_port": 2,
            "username": name,
            "password": password,
            "client_id": name if client_id is None else client_id,
            "clean_session": True,
        }
        return self._says("auth_on_register", fields) == {"result": "ok"}

    def publishes(self, name: str, topic: str) -> bool:
        fields = {"username": name, "client_id": name, "qos": 1, "topic": topic, "retain": False}
        return self._says("auth_on_publish", fields) == {"result": "ok"}

    def subscribes(self, name: str, wanted: str) -> bool:
        fields = {"username": name, "client_id": name, "topics": [{"topic": wanted, "qos": 1}]}
        return self._says("auth_on_subscribe", fields) == {"result": "ok"}


class VerneFive(Verne):
    hook = "_m5"


class GoAuth(Dialect):
    """As form or JSON; it asks at each delivery too, so that any subscription may be made."""

    kind = FORM

    def _says(self, question: str, fields: dict[str, Any]) -> bool:
        content = urlencode(fields).encode() if self.kind == FORM else json.dumps(fields).encode()
        status, said = self.asked.post(f"mosquitto-go-auth/{question}", content, self.kind)
        assert json.loads(said)["Ok"] is (status == 200)
        return status == 200

    def connects(self, name: str, password: str = PASSWORD, client_id: str | None = None) -> bool:
        return self._says("user", login(name, password, client_id))

    def publishes(self, name: str, topic: str) -> bool:
        return self._says("acl", {"username": name, "clientid": name, "topic": topic, "acc": 2})

    def subscribes(self, name: str, wanted: str) -> bool:
        return self._says("acl", {"username": name, "clientid": name, "topic": wanted, "acc": 1})


class GoAuthJson(GoAuth):
    kind = "application/json"


ALL = (Emqx, Rabbit, Verne, VerneFive, GoAuth, GoAuthJson)


@pytest.fixture(params=ALL, ids=[each.__name__ for each in ALL])
def dialect(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, asked: Authority
) -> Iterator[Dialect]:
    if request.param is not Rabbit:
        yield request.param(asked)
        return
    escaping = SETTINGS + "[authority]\n"
    with authority(tmp_path_factory.mktemp("rabbit"), escaping, *CLIENTS, link='topic_escape = ". "\n') as found:
        for topic in (OTHER, CLOSED):
            found.rights.objects.add(thing(topic, "alice", found.rights.namespace_of(topic)))
        yield Rabbit(found)


def test_who_may_connect(dialect: Dialect) -> None:
    assert dialect.connects("alice")
    assert dialect.connects("alice", client_id="alice.kitchen")
    for name, password, client_id in (
        ("alice", "wrong", "alice"),
        ("alice", "", "alice"),
        ("", PASSWORD, "alice"),
        ("nobody", PASSWORD, "nobody"),
        ("gateway", "wrong", "gateway"),
        ("anonymous", PASSWORD, "anonymous"),
        ("alice/x", PASSWORD, "alice"),
        ("al\0ice", PASSWORD, "alice"),
        ("alice", PASSWORD, "bob"),
        ("alice", PASSWORD, "bob.x"),
        ("alice", PASSWORD, "alicex"),
        ("a" * 30_000, PASSWORD, "alice"),
    ):
        assert not dialect.connects(name, password, client_id), (name[:40], client_id)


def test_who_may_publish_and_subscribe(dialect: Dialect) -> None:
    assert dialect.publishes("alice", f"report/alice/{OTHER}")
    assert not dialect.publishes("alice", f"report/bob/{OTHER}")
    assert not dialect.publishes("alice", f"snapshot/{OTHER}")
    assert not dialect.publishes("nobody", f"report/nobody/{OTHER}")
    assert not dialect.publishes("", f"report/alice/{OTHER}")
    assert dialect.subscribes("dash", f"delta/{OTHER}")
    assert dialect.subscribes("alice", f"snapshot/{CLOSED}")
    for name, wanted in (
        ("dash", f"delta/{CLOSED}"),
        ("dash", WIDE),
        ("dash", "#"),
        ("dash", "report/#"),
        ("mallory", f"delta/{OTHER}"),
        ("nobody", f"delta/{OTHER}"),
        ("dash", "inbox/alice"),
    ):
        if not isinstance(dialect, GoAuth) or "#" not in wanted:
            assert not dialect.subscribes(name, wanted), (name, wanted)


def test_a_revocation_holds_at_the_next_question(dialect: Dialect) -> None:
    closed = dialect.asked.rights.objects.get(CLOSED)
    assert closed is not None
    dialect.asked.rights.grant(closed, "dash")
    assert dialect.subscribes("dash", f"delta/{CLOSED}")
    dialect.asked.rights.revoke(closed, "dash")
    assert not dialect.subscribes("dash", f"delta/{CLOSED}")
    dialect.asked.rights.bar(["dash"])
    assert not dialect.subscribes("dash", f"delta/{OTHER}")
    dialect.asked.rights.bar([])
    assert dialect.subscribes("dash", f"delta/{OTHER}")


# ---- what one dialect has of its own ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("hook", "refused"), [("auth_on_subscribe", 128), ("auth_on_subscribe_m5", 135)])
def test_vernemq_is_told_of_each_filter_where_it_looks_for_it(asked: Authority, hook: str, refused: int) -> None:
    good = {"topic": f"delta/{OTHER}", "qos": 1}
    options = {"no_local": True, "rap": False, "retain_handling": "dont_send"}
    if refused == 135:
        good |= options
    fields = {
        "username": "dash",
        "client_id": "dash",
        "mountpoint": "",
        "topics": [good, {"topic": "report/#", "qos": 2}],
    }
    found = asked.ask("vernemq", fields, **{"vernemq-hook": hook})
    topics = [good, {"topic": "report/#", "qos": refused}]
    assert found == (
        {"result": "ok", "topics": topics} if refused == 128 else {"result": "ok", "modifiers": {"topics": topics}}
    )


@pytest.mark.parametrize("client_id", ['alice."', "alice.\\", "alice.\n"])
def test_vernemq_gets_no_client_id_that_would_break_its_query(asked: Authority, client_id: str) -> None:
    assert Verne(asked).connects("alice", client_id="alice.x")
    assert not Verne(asked).connects("alice", client_id=client_id)


def test_mosquitto_go_auth_knows_no_superuser_and_asks_for_reading_and_writing(asked: Authority) -> None:
    status, _ = asked.post("mosquitto-go-auth/superuser", b'{"username":"alice"}')
    assert status == 403
    for acc, allowed in ((3, False), (4, True), ("2", True), (0, False), (9, False), (None, False), (True, False)):
        fields = {"username": "alice", "clientid": "alice", "topic": f"report/alice/{OTHER}", "acc": acc}
        status, _ = asked.post("mosquitto-go-auth/acl", json.dumps(fields).encode())
        assert (status == 200) is allowed, acc


def test_rabbitmq_is_closed_but_for_mqtt(asked: Authority) -> None:
    rabbit = Rabbit(asked)
    exchange = {"username": "alice", "vhost": "/", "resource": "exchange", "name": "amq.topic", "permission": "write"}
    queue = {
        "username": "alice",
        "vhost": "/",
        "resource": "queue",
        "name": "mqtt-subscription-aliceqos1",
        "permission": "read",
    }
    assert rabbit._says("vhost", {"username": "alice", "vhost": "/", "ip": "192.0.2.7"})
    assert rabbit._says("resource", exchange)
    assert rabbit._says("resource", queue)
    for base, change in (
        (exchange, {"name": "amq.direct"}),
        (exchange, {"permission": "configure"}),
        (exchange, {"username": "nobody"}),
        (exchange, {"vhost": "other"}),
        (queue, {"name": "mqtt-subscription-bobqos1"}),
        (queue, {"name": "amq.gen-x"}),
        (queue, {"name": "mqtt-subscription-alice"}),
        (queue, {"resource": "binding"}),
    ):
        assert not rabbit._says("resource", base | change), change
    assert not rabbit._says("vhost", {"username": "alice", "vhost": "other"})
    assert not rabbit._says("vhost", {"username": "nobody", "vhost": "/"})
    assert filter_of("delta.ctxt.*.#") == "delta/ctxt/+/#"


# ---- client ids, certificates, tokens, back-off ----------------------------------------------------------------------------


def test_a_client_id_is_its_clients_or_made_up_by_the_broker(asked: Authority) -> None:
    emqx = Emqx(asked)
    for good in ("alice", "alice.1", "alice:1", "alice/1", "alice@home", "", "auto-6E7C0F0C2B3D4E5F8A9B"):
        assert emqx.connects("alice", client_id=good), good
    assert not emqx.connects("bob", client_id="auto-6E7C0F0C2B3D4E5F8A9B"), "it is alice's already"
    assert not emqx.connects("bob", client_id="my-laptop")
    assert not emqx.connects("bob", client_id="alice/AAAAAAAAAAAAAAAAAAAA"), "that is alice's, made up or not"


def test_a_client_id_may_belong_to_whoever_comes_first(tmp_path: Path) -> None:
    with authority(tmp_path, SETTINGS + OPEN + 'client_ids = "first"\n', *CLIENTS) as asked:
        emqx = Emqx(asked)
        assert emqx.connects("bob", client_id="my-laptop")
        assert emqx.connects("bob", client_id="my-laptop")
        assert not emqx.connects("alice", client_id="my-laptop")
        for anothers in ("bob", "bob.1", "bob/AAAAAAAAAAAAAAAAAAAA", "gateway", "gateway:1"):
            assert not emqx.connects("alice", client_id=anothers), anothers
        assert emqx.connects("bob", client_id="bob.1")


def test_certificates_are_believed_where_the_settings_say_so(tmp_path: Path, asked: Authority) -> None:
    def comes(where: Authority, name: str, certificate: str, password: str = "") -> bool:
        fields = login(name, password, peerhost="192.0.2.7", cert_common_name=certificate)
        return bool(where.ask("emqx/authentication", fields)["result"] == "allow")

    assert not comes(asked, "alice", "alice")
    with authority(tmp_path, SETTINGS + OPEN + "certificates = true\n", *CLIENTS) as believing:
        assert comes(believing, "alice", "alice")
        assert comes(believing, "alice", "bob", PASSWORD), "its password says who it is"
        for name, certificate in (("alice", "bob"), ("alice", ""), ("undefined", "undefined"), ("nobody", "nobody")):
            assert not comes(believing, name, certificate), (name, certificate)


def test_tokens_are_passwords_until_they_end(tmp_path: Path) -> None:
    key = tmp_path / "tokens.key"
    key.write_bytes(TOKEN_KEY)
    key.chmod(0o600)
    tokens = f'[tokens]\nkey_file = "{key}"\nclients = "any"\n'
    with authority(tmp_path, SETTINGS + OPEN + tokens, *CLIENTS) as asked:
        emqx = Emqx(asked)

        def token(client: str, seconds: float, **more: Any) -> str:
            return sign({"sub": client, "exp": int(time.time() + seconds), **more}, TOKEN_KEY).decode()

        assert emqx.connects("guest", token("guest", 60, groups=["staff"]))
        assert emqx.subscribes("guest", f"delta/{OTHER}"), "staff may"
        assert not emqx.subscribes("guest", f"delta/{CLOSED}")
        assert not emqx.connects("alice", token("guest", 60))
        assert not emqx.connects("guest", token("guest", -60))
        assert not emqx.connects("guest", token("guest", 60)[:-3] + "AAA")
        assert not emqx.connects("visitor", token("visitor", 60), "guest")
        assert emqx.connects("visitor", token("visitor", 1.9))
        assert emqx.publishes("visitor", "request/visitor")
        deadline = time.monotonic() + 10
        while emqx.publishes("visitor", "request/visitor"):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_wrong_passwords_are_not_even_looked_at_after_a_while(tmp_path: Path) -> None:
    settings = SETTINGS + OPEN
    with authority(tmp_path, settings, *CLIENTS, broker="wrong_passwords = 3\n") as asked:
        emqx = Emqx(asked)
        for _ in range(4):
            assert not emqx.connects("alice", "wrong")
        assert not emqx.connects("alice"), "the right one is not looked at either"
        assert emqx.connects("bob"), "others are not concerned"


# ---- who may ask, and what nobody understands ------------------------------------------------------------------------------


def test_only_who_knows_the_secret_may_ask(asked: Authority) -> None:
    content = json.dumps(login("alice")).encode()
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {SECRET}x",
        f"Bearer {SECRET[:-1]}",
        f"Basic {SECRET}",
        "Bearer \xff",
    ):
        assert asked.post("emqx/authentication", content, Authorization=wrong)[0] == 403, wrong
    assert asked.post(f"{SECRET}/emqx/authentication", content, Authorization="")[0] == 200
    assert asked.post(f"{SECRET}x/emqx/authentication", content, Authorization="")[0] == 403
    assert asked.post(f"{SECRET}/{SECRET}/emqx/authentication", content, Authorization="")[0] == 404
    assert asked.post("%80%ff/emqx/authentication", content, Authorization="")[0] == 403


def test_without_a_secret_this_machine_may_ask_and_nobody_else(tmp_path: Path) -> None:
    with authority(tmp_path, SETTINGS + OPEN, *CLIENTS, secret=False) as asked:
        assert asked.post("emqx/authentication", json.dumps(login("alice")).encode())[0] == 200
        plugin = asked.plugin
        for address, admitted in (
            ("127.0.0.1", True),
            ("127.3.2.1", True),
            ("::1", True),
            ("::ffff:127.0.0.1", True),
            ("192.0.2.7", False),
            ("::ffff:192.0.2.7", False),
            ("", False),
            ("localhost", False),
        ):
            scope = {"path": "/acl/emqx/authentication", "client": (address, 1)}
            assert (plugin._admitted(scope, {}) is not None) is admitted, address
        assert plugin._admitted({"path": "/acl/emqx/authentication", "client": None}, {}) is None
        assert "every program on this machine" in " ".join(plugin.warnings())


NONSENSE = [
    b"",
    b"null",
    b"[]",
    b"7",
    b'{"username":',
    b"\xff\xfe",
    b'{"username":7,"password":"x"}',
    b'{"username":["alice"],"password":{"a":1}}',
    b'{"username":"\\ud800","password":"\\ud800"}',
    b'{"username":"alice","action":"own","topic":"x"}',
    b'{"username":"alice","topics":[7]}',
    b'{"username":"alice","topics":{}}',
    b'{"a":' * 5_000,
    b"[" * 60_000,
]


@pytest.mark.parametrize("question", sorted(ROUTES))
def test_nonsense_is_answered_with_no(asked: Authority, question: str) -> None:
    before = asked.plugin.answered["malformed"]
    for hook in ("", "auth_on_register", "auth_on_subscribe_m5", "on_deliver") if question == "vernemq" else ("",):
        for content in NONSENSE:
            status, said = asked.post(question, content, **{"vernemq-hook": hook})
            route = ROUTES[question]
            assert (status, said) == (route.deny.status, route.deny.content), content[:60]
        for form in (b"username", b"username=alice&username=bob", b"%zz=%ff", b"&".join([b"a=b"] * 100)):
            assert asked.post(question, form, FORM)[1] == ROUTES[question].deny.content, form
    if question != "mosquitto-go-auth/superuser":
        assert asked.plugin.answered["malformed"] > before
    assert asked.post(question, b"x" * (10 << 20))[1] == ROUTES[question].deny.content
    assert Emqx(asked).connects("alice"), "it goes on"


def test_other_paths_and_methods_are_unknown(asked: Authority) -> None:
    assert asked.post("emqx", b"{}")[0] == 404
    assert asked.post("", b"{}")[0] in (403, 404)
    with closing(socket.create_connection(("127.0.0.1", asked.port), 10)) as raw:
        raw.sendall(
            b"GET /acl/emqx/authentication HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + SECRET.encode()
            + b"\r\n\r\n"
        )
        assert raw.recv(100).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("name", ["username=a&b=c", "a=%C3%A4&b=", "a=+x"])
def test_forms_are_read_as_brokers_write_them(name: str) -> None:
    assert fields_of(FORM, name.encode()) == dict(parse_qsl(name, keep_blank_values=True))
    with pytest.raises(QuestionError):
        fields_of(FORM, name.encode() + b"&b=c&b=c")


# ---- the listener's bounds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /acl/emqx/authentication HTTP/1.1\r\nHost: x\r\n",
        b"GET /" + b"x" * (64 << 10),
        b"\0" * 100,
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_who_does_not_finish_a_head_is_cut_off(asked: Authority, monkeypatch: pytest.MonkeyPatch, begun: bytes) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    with closing(socket.create_connection(("127.0.0.1", asked.port), 10)) as raw:
        raw.sendall(begun)
        found = b""
        try:
            while more := raw.recv(4_096):
                found += more
        except ConnectionError:
            pass
    assert found == b"" or found.startswith(b"HTTP/1.1 400")


def test_a_body_that_does_not_come_is_a_no(asked: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.3)
    with closing(socket.create_connection(("127.0.0.1", asked.port), 10)) as raw:
        head = f"POST /acl/{SECRET}/emqx/authentication HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        raw.sendall(head.encode() + b'{"user')
        found = b""
        while b"deny" not in found:
            more = raw.recv(4_096)
            assert more, found
            found += more
    assert found.startswith(b"HTTP/1.1 200")
    assert b'{"result":"deny"}' in found


def test_more_connections_than_there_may_be_are_closed_at_once(
    asked: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONNECTIONS", 5)
    many = [socket.create_connection(("127.0.0.1", asked.port), 10) for _ in range(12)]
    try:
        closed = 0
        for raw in many:
            raw.settimeout(0.3)
            try:
                closed += raw.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionError:
                closed += 1
        assert closed >= 7
    finally:
        for raw in many:
            raw.close()
    deadline = time.monotonic() + 10
    while True:
        try:
            assert Emqx(asked).connects("alice")
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# ---- kicks -----------------------------------------------------------------------------------------------------------------

LOST = Lost({"alice": 0.0}, lambda client, client_id: client_id.startswith(f"{client}."))


class _Manager(http.server.BaseHTTPRequestHandler):
    """A management API: `answers` by method and path, each once in order, the last for good."""

    answers: dict[str, list[tuple[int, bytes]]]
    seen: list[tuple[str, str]]

    def _answer(self) -> None:
        where = urlsplit(self.path)
        self.seen.append((self.command, self.path))
        assert self.headers["Authorization"] == "Basic a2ljazpzZWNyZXQ="
        found = self.answers.get(f"{self.command} {unquote(where.path)}") or [(404, b"")]
        status, content = found.pop(0) if len(found) > 1 else found[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_DELETE = _answer  # noqa: N815  # the library's names

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def managed(**answers: list[tuple[int, bytes]]) -> Iterator[tuple[Management, list[tuple[str, str]]]]:
    seen: list[tuple[str, str]] = []
    kind = type("Manager", (_Manager,), {"answers": answers, "seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as broker:
        thread = threading.Thread(target=broker.serve_forever, daemon=True)
        thread.start()
        try:
            yield Management(f"http://127.0.0.1:{broker.server_address[1]}/api", "kick", "secret", 5.0), seen
        finally:
            broker.shutdown()
            thread.join()


def test_emqx_is_told_page_by_page_whom_to_disconnect() -> None:
    full = json.dumps({"data": [{"clientid": f"alice.{number}"} for number in range(1_000)]}).encode()
    rest = json.dumps({"data": [{"clientid": "alice/x y"}], "meta": {"hasnext": False}}).encode()
    answers = {
        "DELETE /api/authorization/cache": [(204, b"")],
        "GET /api/clients": [(200, full), (200, rest)],
        **{f"DELETE /api/clients/alice.{number}": [(204, b"")] for number in range(999)},
        "DELETE /api/clients/alice/x y": [(204, b"")],
    }
    with managed(**answers) as (management, seen):
        KICKS["emqx"](management, LOST)
    assert seen[0] == ("DELETE", "/api/authorization/cache")
    assert seen[1][1].startswith("/api/clients?username=alice&limit=1000&page=1")
    assert ("DELETE", "/api/clients/alice%2Fx%20y") in seen
    assert len([path for method, path in seen if method == "DELETE" and "clients" in path]) == 1_001


def test_vernemq_ends_sessions_by_user_and_kept_ones_by_client_id() -> None:
    table = [
        {"client_id": "laptop", "user": "alice"},
        {"client_id": "alice.kept", "user": "undefined"},
        {"client_id": "bob.1", "user": "bob"},
        {"client_id": None, "user": None},
        7,
    ]
    answers = {
        "GET /api/session/show": [(200, json.dumps({"type": "table", "table": table}).encode())],
        "GET /api/session/disconnect": [(200, b'{"text":"Done","type":"text"}')],
    }
    with managed(**answers) as (management, seen):
        KICKS["vernemq"](management, LOST)
    assert [path for _, path in seen] == [
        "/api/session/show?--client_id&--user&--limit=100000&--rowtimeout=10000",
        "/api/session/disconnect?client-id=laptop&--cleanup",
        "/api/session/disconnect?client-id=alice.kept&--cleanup",
    ]


@pytest.mark.parametrize("broker", sorted(KICKS))
@pytest.mark.parametrize(
    ("status", "content"), [(401, b""), (403, b"{}"), (500, b""), (404, b""), (200, b"{"), (200, b"[7]")]
)
def test_a_management_that_does_not_do_it_is_an_error(broker: str, status: int, content: bytes) -> None:
    answers = {path: [(status, content)] for path in ("GET /api/clients", "GET /api/session/show")}
    with managed(**answers) as (management, _), pytest.raises(AclError):
        KICKS[broker](management, LOST)


def test_a_management_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AclError, match="does not answer"):
        KICKS["emqx"](Management("http://127.0.0.1:9", "kick", "secret", 1.0), LOST)


def test_whoever_loses_something_is_kicked_and_nobody_else(tmp_path: Path) -> None:
    answers = {
        "DELETE /api/authorization/cache": [(204, b"")],
        "GET /api/clients": [(200, b'{"data":[{"clientid":"dash.1"}]}')],
        "DELETE /api/clients/dash.1": [(204, b"")],
    }
    (tmp_path / "kick").write_text("secret\n")
    with managed(**answers) as (management, seen):
        kicking = (
            f'kick = "emqx"\nmanagement = "{management.url}"\nmanagement_user = "kick"\n'
            f'management_password_file = "{tmp_path}/kick"\n'
        )
        with authority(tmp_path, SETTINGS + OPEN + kicking, *CLIENTS) as asked:
            plugin, rights = asked.plugin, asked.rights
            assert seen == [], "at the first start everybody is judged anew anyway"
            closed = thing(CLOSED, "alice", rights.namespace_of(CLOSED))
            rights.objects.add(closed)
            rights.grant(closed, "dash")
            asked.run(lambda: plugin.enforce(frozenset({"dash", "alice"}), frozenset()))
            assert seen == [], "nobody has lost anything"
            rights.revoke(closed, "dash")
            asked.run(lambda: plugin.enforce(frozenset({"dash"}), frozenset({"dash"})))
            assert [path for _, path in seen][-1] == "/api/clients/dash.1"
            seen.clear()
            asked.run(lambda: plugin.enforce(None, frozenset()))
            assert seen == []
            plugin._credentials.set_password("bob", "another password")
            asked.run(lambda: plugin.enforce(frozenset({"bob"}), frozenset({"bob"})))
            assert "username=bob" in "".join(path for _, path in seen)
            seen.clear()
        # Rights that change while no gateway runs: at the next start those who could do more then are disconnected.
        narrower = SETTINGS.replace('observe = ["@staff", "alice", "bob"]', 'observe = ["alice", "bob"]')
        assert narrower != SETTINGS
        with authority(tmp_path, narrower + OPEN + kicking) as asked:
            asked.run(asked.plugin.joined)
            kicked = {dict(parse_qsl(urlsplit(path).query)).get("username") for _, path in seen} - {None}
            assert "dash" in kicked
            assert not kicked & {"bob", "mallory"}


def test_without_kicks_a_loss_is_told(tmp_path: Path) -> None:
    with authority(tmp_path, SETTINGS + OPEN, *CLIENTS) as asked:
        plugin, rights = asked.plugin, asked.rights
        closed = thing(CLOSED, "alice", rights.namespace_of(CLOSED))
        rights.objects.add(closed)
        rights.grant(closed, "dash")
        asked.run(lambda: plugin.enforce(frozenset({"dash"}), frozenset()))
        assert Emqx(asked).subscribes("dash", f"delta/{CLOSED}")
        rights.revoke(closed, "dash")
        with pytest.raises(AclError, match=r"authority\.kick"):
            asked.run(lambda: plugin.enforce(frozenset({"dash"}), frozenset({"dash"})))


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    for more, text in (
        ('kick = "emqx"\n', "management"),
        (
            f'kick = "emqx"\nmanagement = "http://127.0.0.1:1"\nmanagement_password_file = "{tmp_path}/none"\n',
            "cannot read",
        ),
    ):
        with pytest.raises(AclError, match=text), authority(tmp_path, SETTINGS + OPEN + more):
            pass
