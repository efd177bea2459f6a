"""One table of attacks, run over real sockets against every broker. An attack is judged by what is delivered and what is stored."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.inside import PASSWORD, Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.objects import DataObject
    from gateway.service import Service
    from tests.inside import Inside

CLIENTS = ("alice", "bob", "dash", "mallory", "barred")
SETTINGS = """
[groups]
staff = ["dash"]

[[namespace]]
match = "ctxt://home.local/room/temperature"
schema = "Context"
report = ["alice"]
observe = []

[[namespace]]
match = "ctxt://home.local/vault/**"
schema = "Context"
report = ["alice"]
observe = []

[[namespace]]
match = "ctxt://home.local/own/{client}/**"
schema = "Context"
report = ["*"]
observe = ["@staff"]

[[namespace]]
match = "ctxt://home.local/**"
schema = "Context"
report = ["alice", "bob"]
observe = ["@staff", "alice", "bob"]
"""
"""alice and bob report, dash observes; mallory may report below own/mallory, and is told nothing."""

ROOM = "ctxt/home.local/room"
INNER = "ctxt/home.local/room/temperature"
SAFE = "ctxt/home.local/vault/safe"
HALL = "ctxt/home.local/hall"

QUIET = 0.4
"""Seconds in which what was delivered in spite of everything would have come."""


def reading(value: Any) -> bytes:
    return json.dumps({"values": {"temperature": {"value": value}}}).encode()


@dataclass
class Site:
    """A gateway and the broker that clients connect to. `escape` writes a topic as this broker wants it."""

    gateway: Inside
    name: str
    port: int
    version: int = 5
    lacks: frozenset[str] = frozenset()
    """Attacks that this broker does not withstand, as its page in docs/brokers says."""
    escape: Callable[[str], str] = lambda topic: topic
    plain: Callable[[str], str] = lambda topic: topic
    """The opposite."""
    own_id: Callable[[str, str], str] = lambda _name, client_id: client_id
    """What a client has to take for a client id of its own."""
    open_clients: list[Client] = field(default_factory=list)

    def client(self, name: str | None, **rest: Any) -> Client:
        made = Client(self.port, name, version=rest.pop("version", self.version), returns=False, **rest)
        self.open_clients.append(made)
        return made

    def close(self) -> None:
        for client in self.open_clients:
            with contextlib.suppress(Exception):
                client.close()
        self.open_clients.clear()

    def object(self, topic: str) -> DataObject | None:
        found: DataObject | None = self.gateway.call(lambda service: service.engine.objects.get(topic))
        return found

    def held(self, topic: str) -> tuple[int, bytes]:
        """(version, data) of an object."""

        def look(service: Service) -> tuple[int, bytes]:
            obj = service.engine.objects.get(topic)
            return (0, b"") if obj is None else (obj.version, obj.render())

        return self.gateway.call(look)  # type: ignore[no-any-return]

    def status(self, topic: str) -> str:
        obj = self.object(topic)
        return "none" if obj is None else obj.status

    def count(self) -> int:
        return int(self.gateway.call(lambda service: len(service.engine.objects)))

    def shout(self, client: Client, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Publish without caring what comes of it."""
        client.paho.publish(self.escape(topic), payload, qos=qos, retain=retain)

    def listen(self, client: Client, *filters: str, qos: int = 0) -> None:
        """Subscribe to each, whatever the broker thinks of it: some end the connection."""
        for each in filters:
            _, mid = client.paho.subscribe(self.escape(each), qos=qos)
            deadline = time.monotonic() + 10
            while mid not in client.granted and client.paho.is_connected() and time.monotonic() < deadline:
                time.sleep(0.002)

    def report(self, client: Client, topic: str, value: Any) -> None:
        """Report, and see that the gateway has taken it."""
        before = self.held(topic)[0]
        self.shout(client, f"report/{client.name}/{topic}", reading(value), qos=1)
        deadline = time.monotonic() + 10
        while self.held(topic)[0] == before:
            assert time.monotonic() < deadline, f"the report on {topic} was not taken"
            time.sleep(0.005)

    def settle(self) -> None:
        """What was sent before has arrived, and what comes of it too."""
        self.report(self.alice, HALL, time.monotonic_ns() % 1_000_000_007)
        time.sleep(QUIET)

    @property
    def alice(self) -> Client:
        """alice, connected whatever has happened."""
        for client in self.open_clients:
            if client.name == "alice" and client.paho.is_connected():
                return client
        return self.client("alice")

    def prepare(self) -> None:
        """The objects that are attacked."""
        for topic in (ROOM, INNER, SAFE, HALL):
            if self.object(topic) is None:
                self.report(self.alice, topic, 1)


def texts(client: Client) -> list[str]:
    return [f"{topic} {payload[:200]!r}" for topic, payload, _, _ in client.heard]


def leaked(client: Client, *marks: str) -> str:
    """What was heard that should not have been."""
    found = [line for line in texts(client) if any(mark in line for mark in marks)]
    return "; ".join(found[:3])


def unchanged(site: Site, topic: str, act: Callable[[], None]) -> str:
    before = site.held(topic)
    act()
    site.settle()
    after = site.held(topic)
    return "" if after == before else f"{topic} was {before} and is {after}"


# ---- writing -------------------------------------------------------------------------------------------------------------


def in_anothers_name(site: Site) -> str:
    mallory = site.client("mallory")

    def act() -> None:
        for qos in (0, 1):
            site.shout(mallory, f"report/alice/{ROOM}", reading(666), qos=qos)

    return unchanged(site, ROOM, act)


def anothers_object(site: Site) -> str:
    bob = site.client("bob")
    return unchanged(site, ROOM, lambda: site.shout(bob, f"report/bob/{ROOM}", reading(666), qos=1))


def twins(site: Site) -> str:
    """Other spellings of one URL never become a second object, whoever tries."""
    site.settle()
    before = site.count()
    spellings = [
        "ctxt/home.local/%72oom",
        "ctxt/home.local/ro%6Fm",
        "ctxt/HOME.local/room",
        "CTXT/home.local/room",
        "ctxt/home.local/./room",
        "ctxt/home.local/x/../room",
        "ctxt/home.local//room",
        "ctxt/home.local/room/",
        "ctxt/home.local/r%6fom",
    ]
    for name in ("bob", "mallory"):
        client = site.client(name)
        for spelling in spellings:
            site.shout(client, f"report/{name}/{spelling}", reading(666))
        site.settle()
    return "" if site.count() == before else f"{site.count() - before} more objects"


def forged(site: Site) -> str:
    """What only the gateway writes; and what a client writes under its own name only."""
    dash = site.client("dash")
    site.listen(dash, "snapshot/#", "delta/#", "value/#", "inbox/dash/#", "gateway/+")
    mallory = site.client("mallory")
    before = site.status(ROOM)
    for qos, retain in ((0, False), (1, True)):
        for topic in (
            f"snapshot/{ROOM}",
            f"delta/{ROOM}",
            f"value/{ROOM}",
            "inbox/dash",
            "inbox/dash/x",
            "gateway/gateway1",
            "gateway/other",
            "replica/one/x",
        ):
            site.shout(mallory, topic, b'{"forged":true}', qos=qos, retain=retain)
            mallory = mallory if mallory.paho.is_connected() else site.client("mallory")
        site.shout(mallory, "presence/alice", b"offline", qos=qos, retain=retain)
    site.settle()
    late = site.client("dash")
    site.listen(late, "snapshot/#", "value/#", "gateway/+", "presence/#")
    site.settle()
    status = site.status(ROOM)
    return leaked(dash, "forged") or leaked(late, "forged") or ("" if status == before else f"status is {status}")


def squatting(site: Site) -> str:
    mallory = site.client("mallory")
    before = site.count()
    for topic in (
        "ctxt/home.local/own/alice/new",
        "ctxt/home.local/new",
        "ctxt/elsewhere/new",
        "ctxt/home.local/vault/new",
    ):
        site.shout(mallory, f"report/mallory/{topic}", reading(1))
    site.settle()
    return "" if site.count() == before else f"{site.count() - before} more objects"


def retained_report(site: Site) -> str:
    """Neither applied, nor kept for whoever comes."""
    alice = site.alice

    def act() -> None:
        site.shout(alice, f"report/alice/{ROOM}", reading(777), retain=True, qos=1)

    return unchanged(site, ROOM, act)


def wills(site: Site) -> str:
    """A will is a publish: in another's name, or where only the gateway writes, it does nothing."""
    dash = site.client("dash")
    site.listen(dash, "snapshot/#", "delta/#", "inbox/dash/#")

    def act() -> None:
        for topic in (f"report/alice/{ROOM}", f"snapshot/{ROOM}", "inbox/dash"):
            with contextlib.suppress(AssertionError, OSError):
                dying = Client(
                    site.port,
                    "mallory",
                    version=site.version,
                    returns=False,
                    will=(site.escape(topic), b'{"forged":true,"values":{"temperature":{"value":666}}}', 1, False),
                )
                dying.drop()
        time.sleep(QUIET)

    return unchanged(site, ROOM, act) or leaked(dash, "forged")


def will_after_transfer(site: Site) -> str:
    bob = site.client("bob")
    site.report(bob, "ctxt/home.local/lent", 1)
    site.gateway.admin("assign", url="ctxt://home.local/lent", client="bob")
    dying = Client(
        site.port,
        "bob",
        version=site.version,
        client_id=site.own_id("bob", "dying"),
        returns=False,
        will=(site.escape("report/bob/ctxt/home.local/lent"), reading(666), 1, False),
    )
    site.gateway.admin("assign", url="ctxt://home.local/lent", client="alice")

    def act() -> None:
        dying.drop()
        time.sleep(QUIET)

    found = unchanged(site, "ctxt/home.local/lent", act)
    site.gateway.admin("assign", url="ctxt://home.local/lent", client="bob")
    return found


# ---- reading -------------------------------------------------------------------------------------------------------------


def wide_filters(site: Site) -> str:
    mallory = site.client("mallory")
    for qos in (0, 1):
        site.listen(
            mallory,
            *(
                "#",
                "+/#",
                "snapshot/#",
                "delta/#",
                "+/+/+/+",
                "+/ctxt/home.local/#",
                "report/#",
                "request/#",
                "inbox/#",
            ),
            *(
                "$share/g/#",
                "$share/g/snapshot/#",
                "$share/g/delta/#",
                "presence/#",
                "$SYS/#",
                "inbox/+",
                "report/alice/#",
            ),
            *(f"snapshot/{ROOM}", f"delta/{SAFE}"),
            qos=qos,
        )
        mallory = mallory if mallory.paho.is_connected() else site.client("mallory")
    for topic in (ROOM, INNER, SAFE):
        site.report(site.alice, topic, time.monotonic_ns())
    site.settle()
    # What gateways say of themselves is for everybody, and so are the broker's own values here.
    heard = [line for each in site.open_clients if each.name == "mallory" for line in texts(each)]
    return "; ".join([line for line in heard if not line.startswith(("gateway/", "$SYS/"))][:3])


def closed_below_open(site: Site) -> str:
    """`room` may be observed, `room/temperature` is a closed object of its own."""
    # Some brokers close the connection of whoever asks for too much.
    dash, greedy = site.client("dash"), site.client("dash")
    site.listen(dash, f"snapshot/{ROOM}", f"delta/{ROOM}")
    for wanted in (
        f"snapshot/{INNER}",
        f"delta/{INNER}",
        f"snapshot/{ROOM}/#",
        f"delta/{ROOM}/#",
        "snapshot/#",
        "delta/#",
    ):
        if not greedy.paho.is_connected():
            greedy = site.client("dash")
        site.listen(greedy, wanted)
    site.report(site.alice, INNER, time.monotonic_ns())
    site.report(site.alice, ROOM, time.monotonic_ns())
    site.settle()
    if not leaked(dash, f"delta/{site.escape(ROOM)}"):
        return "room itself is not delivered"
    return next(
        filter(None, (leaked(each, "room/temperature ") for each in site.open_clients if each.name == "dash")), ""
    )


def anothers_share(site: Site) -> str:
    """Nobody takes messages away from another's shared subscription."""
    dash, mallory = site.client("dash"), site.client("mallory")
    before = len(dash.heard)
    site.listen(dash, f"$share/team/delta/{ROOM}")
    site.listen(mallory, f"$share/team/delta/{ROOM}", "$share/team/#")
    versions = []
    for value in range(20):
        site.report(site.alice, ROOM, 1000 + value)
        versions.append(site.held(ROOM)[0])
    site.settle()
    heard = {
        json.loads(payload)["version"] for topic, payload, _, _ in dash.heard[before:] if topic.startswith("delta/")
    }
    missing = [version for version in versions if version not in heard]
    return leaked(mallory, "delta/") or (f"dash has missed {missing}" if missing else "")


def probing(site: Site) -> str:
    """What exists and what does not are one answer to who may know of neither."""
    mallory = site.client("mallory")
    site.listen(mallory, "inbox/mallory")
    answers = []
    for name in ("vault/safe", "vault/none"):
        before = len(mallory.heard)
        for body in ({"type": "read"}, {"type": "delete"}):
            text = json.dumps({"id": name + body["type"], **body, "body": {"resource": f"ctxt://home.local/{name}"}})
            site.shout(mallory, "request/mallory", text.encode(), qos=1)
        site.shout(mallory, f"report/mallory/ctxt/home.local/{name}", reading(1), qos=1)
        mallory.wait(lambda before=before: len(mallory.heard) >= before + 3)  # type: ignore[misc]
        told = [json.loads(payload) for _, payload, _, _ in mallory.heard[before : before + 3]]
        answers.append(sorted((each.get("code"), each.get("description", "").replace(name, "NAME")) for each in told))
    return "" if answers[0] == answers[1] else f"{answers[0]} is not {answers[1]}"


# ---- revocation ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def granted(site: Site, url: str = "ctxt://home.local/vault/safe") -> Iterator[None]:
    site.gateway.admin("grant", client="mallory", url=url)
    yield
    with contextlib.suppress(Exception):
        site.gateway.admin("revoke", client="mallory", url=url)


def live_subscription(site: Site, qos: int) -> str:
    mallory = site.client("mallory")
    with granted(site):
        site.listen(mallory, f"delta/{SAFE}", f"snapshot/{SAFE}", qos=qos)
        site.report(site.alice, SAFE, "before" + str(time.monotonic_ns()))
        mallory.wait(lambda: leaked(mallory, "before"))
        site.gateway.admin("revoke", client="mallory", url="ctxt://home.local/vault/safe")
        site.report(site.alice, SAFE, "after" + str(time.monotonic_ns()))
        site.settle()
    return leaked(mallory, "after")


def live_at_qos_0(site: Site) -> str:
    return live_subscription(site, 0)


def live_at_qos_1(site: Site) -> str:
    return live_subscription(site, 1)


def retained_after_revocation(site: Site) -> str:
    with granted(site):
        first = site.client("mallory")
        site.listen(first, f"snapshot/{SAFE}")
        first.wait(lambda: leaked(first, "snapshot/"))
    again = site.client("mallory")
    site.listen(again, f"snapshot/{SAFE}", "snapshot/#", "#")
    site.settle()
    return leaked(again, "safe")


def queued_after_revocation(site: Site) -> str:
    with granted(site):
        kept = site.client("mallory", version=4, client_id="mallory", clean=False)
        site.listen(kept, f"delta/{SAFE}", qos=1)
        kept.close()
        time.sleep(0.2)
        for value in range(3):
            site.report(site.alice, SAFE, f"queued{value}")
    back = site.client("mallory", version=4, client_id="mallory", clean=False)
    site.settle()
    back.close()
    site.client("mallory", version=4, client_id="mallory").close()
    return leaked(back, "queued")


def disabled_while_connected(site: Site) -> str:
    from gateway.credentials import Credentials

    site.gateway.admin("grant", client="barred", url="ctxt://home.local/vault/safe")
    barred = site.client("barred")
    site.listen(barred, f"delta/{SAFE}", qos=1)
    site.report(site.alice, SAFE, "before")
    barred.wait(lambda: leaked(barred, "before"))
    known = Credentials(site.gateway.state / "clients.db")
    known.disable("barred")
    time.sleep(3.0)
    site.report(site.alice, SAFE, "after")
    site.settle()
    back = Client(site.port, "barred", version=site.version, returns=False)
    in_again = back.connected == 0
    back.close()
    known.enable("barred")
    known.close()
    return leaked(barred, "after") or ("it was let in again" if in_again else "")


# ---- who one is ----------------------------------------------------------------------------------------------------------


def let_in(site: Site, name: str | None, password: str | None = PASSWORD) -> bool:
    """Whether a CONNECT with this name is accepted."""
    done: list[int] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion(site.version))
    client.on_connect = lambda _c, _d, _f, reason, _p: done.append(reason.value)
    if name is not None:
        client.username_pw_set(name, password)
    try:
        client.connect("127.0.0.1", site.port)
        deadline = time.monotonic() + 5
        while not done and client.loop(0.1) == 0 and time.monotonic() < deadline:
            pass
        return done[:1] == [0]
    except (OSError, ValueError):
        return False
    finally:
        with contextlib.suppress(Exception):
            client.disconnect()
        client._reset_sockets()


def odd_names(site: Site) -> str:
    names = ["gateway", "anonymous", "alice/x", "+", "#", "a#", "$SYS", "a.b", "a b", "alice\0", "é", "x" * 60_000, ""]
    return ", ".join(repr(name[:20]) for name in names if let_in(site, name))


def no_name(site: Site) -> str:
    return "let in" if let_in(site, None) else ""


def wrong_password(site: Site) -> str:
    return "let in" if let_in(site, "alice", "wrong") or let_in(site, "alice", None) else ""


def anothers_session(site: Site) -> str:
    """Under another's client id nobody gets, or takes away, what waits there."""
    room = "ctxt/home.local/room"
    panel = site.own_id("dash", "panel")
    dash = site.client("dash", version=4, client_id=panel, clean=False)
    site.listen(dash, f"delta/{room}", qos=1)
    dash.close()
    time.sleep(0.2)
    site.report(site.alice, room, 4711)
    mallory = site.client("mallory", version=4, client_id=panel, clean=False)
    site.settle()
    heard = leaked(mallory, "4711")
    mallory.close()
    back = site.client("dash", version=4, client_id=panel, clean=False)
    site.settle()
    missing = "" if leaked(back, "4711") else "what waited for dash is gone"
    back.close()
    site.client("dash", version=4, client_id=panel).close()
    return heard or missing


def second_connect(site: Site) -> str:
    """A second CONNECT on one connection is an error, not another name [MQTT-3.1.0-2]."""

    def packet(name: bytes) -> bytes:
        password = PASSWORD.encode()
        body = b"\x00\x04MQTT\x04\xc2\x00\x3c" + b"".join(
            len(each).to_bytes(2, "big") + each for each in (b"swap", name, password)
        )
        return b"\x10" + bytes([len(body)]) + body

    topic = site.escape(f"report/alice/{ROOM}").encode()
    body = len(topic).to_bytes(2, "big") + topic + reading(666)
    publish = (
        b"\x30" + (bytes([len(body)]) if len(body) < 128 else bytes([len(body) % 128 | 128, len(body) // 128])) + body
    )

    def act() -> None:
        with socket.create_connection(("127.0.0.1", site.port), 5) as raw, contextlib.suppress(OSError):
            raw.sendall(packet(b"mallory"))
            raw.recv(4)
            raw.sendall(packet(b"alice") + publish)
            raw.settimeout(2)
            while raw.recv(100):
                pass

    return unchanged(site, ROOM, act)


ATTACKS: dict[str, Callable[[Site], str]] = {
    each.__name__: each
    for each in (
        *(in_anothers_name, anothers_object, twins, forged, squatting, retained_report, wills, will_after_transfer),
        *(wide_filters, closed_below_open, anothers_share, probing),
        *(live_at_qos_0, live_at_qos_1, retained_after_revocation, queued_after_revocation, disabled_while_connected),
        *(odd_names, no_name, wrong_password, anothers_session, second_connect),
    )
}
"""Each returns what it has achieved; nothing, where it was withstood."""
