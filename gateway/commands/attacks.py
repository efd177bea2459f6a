"""`ctxt acl test`: attacks on the running gateway and its broker, by three clients made for it and an object of their own.

An attack is judged by what is delivered, never by an acknowledgement: brokers grant subscriptions that bring nothing.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Iterator  # noqa: TC003 - contextmanager's return type
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from rich.text import Text

from gateway.acl.plugin import NONE
from gateway.commands import config
from gateway.commands.clients import credentials, hold
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.running import ask, change
from gateway.commands.terminal import out, write_json, write_note
from gateway.credentials import generate_password
from gateway.topics import Escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from gateway.credentials import Credentials
    from gateway.settings import Settings

NAME = "acl-test-"
"""What the names of the clients begin with: what an earlier run has left is removed."""

PATIENCE = 15.0
"""Seconds that something may take that has to come."""

QUIET = 0.5
"""Seconds after which what could still have come has come."""

KNOWN = {
    (
        "mosquitto",
        "shared subscription",
    ): "mosquitto drops a shared message whose turn falls to somebody who may not read it",
}
"""What a broker is known to let through, with its ACL plugin; docs/security.md has them."""


class NotTriedError(Exception):
    """An attack that cannot be tried here, and why."""


class Door(NamedTuple):
    """Where clients connect."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    five: bool
    """MQTT 5, else 3.1.1."""
    prefix: str
    escape: Escape


class Client:
    """One connection of a client."""

    def __init__(
        self,
        door: Door,
        name: str | None,
        password: str | None,
        *,
        client_id: str | None = None,
        kept: bool = False,
        will: tuple[str, bytes] | None = None,
    ) -> None:
        self._door = door
        self._news = threading.Condition()
        self.heard: list[tuple[str, bytes]] = []
        self.reason: int | None = None
        self._answered: set[int] = set()
        self._gone = False
        # A session is kept in the same way by both versions of MQTT only in the older one.
        five = door.five and not kept
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id if client_id is not None else name or f"{NAME}nobody",
            clean_session=None if five else not kept,
            protocol=MQTTProtocolVersion.MQTTv5 if five else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
        )
        if name is not None:
            self._paho.username_pw_set(name, password)
        if will is not None:
            self._paho.will_set(self._topic(will[0]), will[1], qos=1)
        if door.tls is not None:
            self._paho.tls_set_context(door.tls)
        self._paho.on_connect = self._on_connect
        self._paho.on_disconnect = self._on_disconnect
        self._paho.on_subscribe = self._on_subscribe
        self._paho.on_message = self._on_message
        try:
            self._paho.connect(door.host, door.port, keepalive=60)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                raise CommandError(
                    Exit.NO_CONNECTION, f"cannot connect to {door.host} port {door.port}: {error.strerror or error}"
                ) from error
            self._gone = True
            return
        self._paho.loop_start()
        self._wait(lambda: self.reason is not None or self._gone)

    def _topic(self, topic: str) -> str:
        return self._door.escape.escaped(self._door.prefix + topic)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        with self._news:
            self.reason = reason.value
            self._news.notify_all()

    def _on_disconnect(self, *_: Any) -> None:
        with self._news:
            self._gone = True
            self._news.notify_all()

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, _reasons: Any, _properties: Any) -> None:
        with self._news:
            self._answered.add(mid)
            self._news.notify_all()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with self._news:
            self.heard.append((message.topic, bytes(message.payload)))
            self._news.notify_all()

    def _wait(self, until: Callable[[], Any], patience: float = PATIENCE) -> bool:
        deadline = time.monotonic() + patience
        with self._news:
            while not until():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._news.wait(left)
        return True

    @property
    def admitted(self) -> bool:
        """Whether the broker has let it in."""
        return self.reason == 0

    @property
    def connected(self) -> bool:
        """Whether the broker has not closed the connection since."""
        return self.reason == 0 and not self._gone

    def listen(self, *filters: str, qos: int = 1) -> None:
        """Subscribe to each, one by one, whatever the broker thinks of it; some end the connection."""
        for each in filters:
            share, _, rest = each.rpartition(":") if each.startswith("$share/") else ("", "", each)
            wanted = (share + "/" if share else "") + self._topic(rest)
            _, mid = self._paho.subscribe(wanted, qos)
            self._wait(lambda mid=mid: mid in self._answered or self._gone)  # type: ignore[misc]

    def send(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish without waiting for what comes of it."""
        self._paho.publish(self._topic(topic), payload, qos=qos, retain=retain)

    def hears(self, mark: str, patience: float = PATIENCE) -> bool:
        """Whether something with this mark has come, or comes in time."""
        found = mark.encode()
        return self._wait(lambda: any(found in payload for _, payload in self.heard), patience)

    def told(self, mark: str) -> str:
        """The topic on which something with this mark was heard; "" where there is none."""
        found = mark.encode()
        return next((topic for topic, payload in self.heard if found in payload), "")

    def drop(self) -> None:
        """Break the connection as a dead battery does."""
        sock = self._paho.socket()
        if isinstance(sock, socket.socket):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._wait(lambda: self._gone)
        self._paho.loop_stop()

    def close(self) -> None:
        """Say goodbye."""
        with suppress(Exception):
            self._paho.disconnect()
        self._paho.loop_stop()


@dataclass
class Trial:
    """The three clients, their object, and the way to the gateway."""

    given: Path | None
    door: Door
    keys: Credentials
    names: tuple[str, str, str]
    passwords: dict[str, str]
    topic: str = ""
    url: str = ""
    seconds: list[float] = field(default_factory=list)
    """What revocations took."""
    _open: list[Client] = field(default_factory=list)
    _marks: int = 0

    @property
    def reporter(self) -> str:
        """The object's."""
        return self.names[0]

    @property
    def observer(self) -> str:
        """Whom it was granted to."""
        return self.names[1]

    @property
    def intruder(self) -> str:
        """Who may do no more than any client."""
        return self.names[2]

    def client(self, name: str | None, **more: Any) -> Client:
        """A new connection; closed when the attack is over."""
        password = more.pop("password", self.passwords.get(name or ""))
        made = Client(self.door, name, password, **more)
        self._open.append(made)
        return made

    def close(self) -> None:
        """All of them."""
        for client in self._open:
            client.close()
        self._open.clear()

    def mark(self, what: str) -> str:
        """Words that nobody else says."""
        self._marks += 1
        return f"{what}-{secrets.token_hex(6)}-{self._marks}"

    def reading(self, mark: str) -> bytes:
        """A report's payload."""
        return json.dumps({"values": {"probe": {"value": mark}}}).encode()

    def watching(self) -> Client:
        """The observer, that hears whatever happens to the object."""
        watch = self.client(self.observer)
        if not watch.admitted:
            raise CommandError(
                Exit.FAILED,
                f"the broker does not admit a client that the gateway has made (reason {watch.reason}): is this its broker?",
            )
        watch.listen(f"delta/{self.topic}", f"snapshot/{self.topic}", f"inbox/{self.observer}/#")
        return watch

    def report(self, watch: Client | None = None, sender: Client | None = None) -> str:
        """Report something; its mark, once the observer has heard of it. Raises CommandError where it does not."""
        mark = self.mark("report")
        own = sender is None
        reporter = self.client(self.reporter) if sender is None else sender
        seeing = watch or self.watching()
        reporter.send(f"report/{self.reporter}/{self.topic}", self.reading(mark))
        if not seeing.hears(mark):
            raise CommandError(
                Exit.FAILED,
                "a report that is allowed brings the observer nothing: the gateway or the broker does not work",
            )
        if own:
            reporter.close()
        return mark

    def settle(self, watch: Client) -> None:
        """What was sent before has arrived, and what comes of it."""
        self.report(watch)
        time.sleep(QUIET)

    def grant(self, client: str) -> None:
        """Let a client observe the object."""
        change(self.given, {"do": "grant", "client": client, "url": self.url})

    def revoke(self, client: str) -> None:
        """Take that back."""
        change(self.given, {"do": "revoke", "client": client, "url": self.url})


# ---- the attacks -----------------------------------------------------------------------------------------------------------


def no_name(trial: Trial) -> str:
    """Connect without a name."""
    return "was let in" if trial.client(None).admitted else ""


def wrong_password(trial: Trial) -> str:
    """Connect with a wrong password, and with none."""
    tried = ("wrong", None) if trial.door.five else ("wrong",)
    return "was let in" if any(trial.client(trial.reporter, password=each).admitted for each in tried) else ""


def reserved_names(trial: Trial) -> str:
    """Connect as the gateway, as `anonymous`, and under names that would mean something in a topic."""
    password = trial.passwords[trial.intruder]
    names = ["gateway", "anonymous", f"{trial.reporter}/x", "+", "#", "$SYS", trial.intruder.upper()]
    return ", ".join(
        name for name in names if trial.client(name, password=password, client_id=f"{trial.intruder}.odd").admitted
    )


def anothers_name(trial: Trial) -> str:
    """Report and ask in the Reporter's name, also percent-encoded and with empty levels."""
    watch, intruder = trial.watching(), trial.client(trial.intruder)
    mark = trial.mark("forged")
    encoded = trial.reporter.replace("-", "%2D")
    for name in (trial.reporter, encoded, trial.reporter + "/", "/" + trial.reporter):
        for qos in (0, 1):
            if not intruder.connected:
                intruder = trial.client(trial.intruder)
            intruder.send(f"report/{name}/{trial.topic}", trial.reading(mark), qos=qos)
    trial.settle(watch)
    return watch.told(mark)


def anothers_object(trial: Trial) -> str:
    """Report on the Reporter's object in one's own name, and delete it."""
    watch, intruder = trial.watching(), trial.client(trial.intruder)
    mark = trial.mark("forged")
    for topic in (trial.topic, trial.topic.replace("-", "%2D"), trial.topic.replace("ctxt/acl", "ctxt/ACL")):
        intruder.send(f"report/{trial.intruder}/{topic}", trial.reading(mark))
    body = {"id": mark, "type": "delete", "body": {"resource": trial.url}}
    intruder.send(f"request/{trial.intruder}", json.dumps(body).encode())
    trial.settle(watch)
    return watch.told(mark)


def forged(trial: Trial) -> str:
    """Write what only the gateway writes: snapshots, deltas, inboxes, announcements."""
    watch = trial.watching()
    watch.listen("gateway/+")
    intruder = trial.client(trial.intruder)
    mark = trial.mark("forged")
    payload = json.dumps({"forged": mark}).encode()
    for topic in (
        f"snapshot/{trial.topic}",
        f"delta/{trial.topic}",
        f"inbox/{trial.observer}/x",
        f"inbox/{trial.observer}",
        f"gateway/{trial.intruder}",
    ):
        for qos, retain in ((0, False), (1, topic.startswith("snapshot/"))):
            if not intruder.connected:
                intruder = trial.client(trial.intruder)
            intruder.send(topic, payload, qos=qos, retain=retain)
    trial.settle(watch)
    late = trial.client(trial.observer, client_id=f"{trial.observer}.late")
    late.listen(f"snapshot/{trial.topic}")
    time.sleep(QUIET)
    return watch.told(mark) or late.told(mark)


def will(trial: Trial) -> str:
    """Leave a will in the Reporter's name, and die."""
    watch = trial.watching()
    mark = trial.mark("forged")
    dying = trial.client(trial.intruder, will=(f"report/{trial.reporter}/{trial.topic}", trial.reading(mark)))
    if dying.admitted:
        dying.drop()
    time.sleep(QUIET)
    trial.settle(watch)
    return watch.told(mark)


def wide_filters(trial: Trial) -> str:
    """Subscribe to everything, and to what others send and are sent."""
    intruder = trial.client(trial.intruder)
    tried = [intruder]
    for wanted in (
        "#",
        "+/#",
        "snapshot/#",
        "delta/#",
        "+/ctxt/+/+",
        "report/#",
        f"report/{trial.reporter}/#",
        "request/#",
        "inbox/#",
        "inbox/+/#",
        "replica/#",
        f"delta/{trial.topic}",
        f"snapshot/{trial.topic}/#",
        *(("$share/trial:#", "$share/trial:delta/#") if trial.door.five else ()),
    ):
        if not tried[-1].connected:
            tried.append(trial.client(trial.intruder))
        tried[-1].listen(wanted)
    watch = trial.watching()
    mark = trial.report(watch)
    sender = trial.client(trial.reporter)
    secret = trial.mark("request")
    sender.send(
        f"request/{trial.reporter}",
        json.dumps({"id": secret, "type": "read", "body": {"resource": trial.url}}).encode(),
    )
    trial.settle(watch)
    return next((where for each in tried for where in (each.told(mark), each.told(secret)) if where), "")


def retained(trial: Trial) -> str:
    """Read the retained snapshot of a closed object."""
    trial.report()
    intruder = trial.client(trial.intruder)
    intruder.listen(f"snapshot/{trial.topic}")
    time.sleep(QUIET)
    return intruder.told(trial.topic.rpartition("/")[2])


def shared_subscription(trial: Trial) -> str:
    """Join another's shared subscription, and take its messages away."""
    if not trial.door.five:
        raise NotTriedError("MQTT 3.1.1 has no shared subscriptions")
    watch = trial.watching()
    member = trial.client(trial.observer, client_id=f"{trial.observer}.member")
    member.listen(f"$share/trial:delta/{trial.topic}")
    if not watch.connected:
        raise NotTriedError("this broker lets a client connect once only")
    sender = trial.client(trial.reporter)
    first = trial.report(watch, sender)
    if not member.hears(first, 2.0):
        raise NotTriedError("this broker has no shared subscriptions")
    intruder = trial.client(trial.intruder)
    intruder.listen(f"$share/trial:delta/{trial.topic}", "$share/trial:#")
    marks = [trial.report(watch, sender) for _ in range(10)]
    time.sleep(QUIET)
    missing = sum(not member.told(mark) for mark in marks)
    heard = next((intruder.told(mark) for mark in marks if intruder.told(mark)), "")
    return heard or (f"{missing} of {len(marks)} messages were taken away" if missing else "")


def anothers_session(trial: Trial) -> str:
    """Take another's session over by its client id: what waits in it, or that it waits."""
    watch = trial.watching()
    kept = trial.client(trial.observer, client_id=f"{trial.observer}.kept", kept=True)
    kept.listen(f"delta/{trial.topic}")
    if not watch.connected:
        raise NotTriedError("this broker makes the client id of the user name")
    kept.close()
    mark = trial.report(watch)
    intruder = trial.client(trial.intruder, client_id=f"{trial.observer}.kept", kept=True)
    time.sleep(QUIET)
    heard = intruder.told(mark)
    intruder.close()
    back = trial.client(trial.observer, client_id=f"{trial.observer}.kept", kept=True)
    missing = "" if back.hears(mark, 5.0) else "what waited for it is gone"
    back.close()
    trial.client(trial.observer, client_id=f"{trial.observer}.kept").close()
    return heard or missing


def live_after_revocation(trial: Trial) -> str:
    """Go on hearing after a grant was revoked."""
    watch = trial.watching()
    trial.grant(trial.intruder)
    intruder = trial.client(trial.intruder)
    intruder.listen(f"delta/{trial.topic}", f"snapshot/{trial.topic}")
    sender = trial.client(trial.reporter)
    mark = trial.report(watch, sender)
    if not intruder.hears(mark):
        trial.revoke(trial.intruder)
        raise CommandError(
            Exit.FAILED,
            "a client hears nothing of an object that it was granted: the broker does not go by the gateway's rights",
        )
    began = time.monotonic()
    trial.revoke(trial.intruder)
    trial.seconds.append(time.monotonic() - began)
    marks = [trial.report(watch, sender) for _ in range(5)]
    time.sleep(QUIET)
    return next((intruder.told(each) for each in marks if intruder.told(each)), "")


def retained_after_revocation(trial: Trial) -> str:
    """Come back after a revocation and read what is retained."""
    trial.grant(trial.intruder)
    trial.report()
    trial.revoke(trial.intruder)
    return retained(trial)


def queued_after_revocation(trial: Trial) -> str:
    """Come back after a revocation for what has waited in a kept session."""
    watch = trial.watching()
    trial.grant(trial.intruder)
    kept = trial.client(trial.intruder, kept=True)
    kept.listen(f"delta/{trial.topic}")
    kept.close()
    marks = [trial.report(watch) for _ in range(3)]
    trial.revoke(trial.intruder)
    back = trial.client(trial.intruder, kept=True)
    trial.settle(watch)
    found = next((back.told(each) for each in marks if back.told(each)), "")
    back.close()
    trial.client(trial.intruder).close()
    return found


def retained_report(trial: Trial) -> str:
    """Leave a retained report behind, to be applied again whenever the gateway comes back."""
    if not trial.door.five:
        raise NotTriedError("MQTT 3.1.1 brokers pass a retained report on as any other: it is applied once")
    watch = trial.watching()
    mark = trial.mark("retained")
    trial.client(trial.reporter).send(f"report/{trial.reporter}/{trial.topic}", trial.reading(mark), retain=True)
    trial.settle(watch)
    return watch.told(mark)


def disabled(trial: Trial) -> str:
    """Stay connected after being disabled, or log in again."""
    watch = trial.watching()
    trial.grant(trial.intruder)
    intruder = trial.client(trial.intruder)
    intruder.listen(f"delta/{trial.topic}")
    trial.keys.disable(trial.intruder)
    hold(trial.given)
    mark = trial.report(watch)
    time.sleep(QUIET)
    again = trial.client(trial.intruder).admitted
    trial.keys.enable(trial.intruder)
    hold(trial.given)
    trial.revoke(trial.intruder)
    return intruder.told(mark) or ("was let in again" if again else "")


ATTACKS: dict[str, Callable[[Trial], str]] = {
    each.__name__.replace("_", " "): each
    for each in (
        *(no_name, wrong_password, reserved_names, anothers_name, anothers_object, forged, will, retained_report),
        *(wide_filters, retained, shared_subscription, anothers_session),
        *(live_after_revocation, retained_after_revocation, queued_after_revocation, disabled),
    )
}
"""Each returns what it has achieved; nothing, where it was withstood."""


# ---- the command -----------------------------------------------------------------------------------------------------------


def test(given: Path | None, only: Iterable[str], *, json: bool) -> None:
    """Run the attacks and say what came of each. Raises CommandError (1) where one got through that is not known to."""
    settings = config.load(given)
    names = list(only) or list(ATTACKS)
    for name in names:
        if name not in ATTACKS:
            raise CommandError(Exit.USAGE, f"there is no attack {name!r}: there are {', '.join(ATTACKS)}")
    if settings.broker.outside is not None and settings.acl.plugin == NONE:
        raise CommandError(
            Exit.CONFIG,
            "[acl] names no plugin: then the broker keeps names, passwords and rules itself, and clients cannot be made for this",
        )
    ask(given, {"do": "probe"})
    door = _door(settings)
    results = []
    with _trial(given, door) as trial:
        for name in names:
            result = _one(trial, name, settings.acl.plugin)
            results.append(result)
            if not json:
                _show(result)
    if json:
        write_json(results)
    through = [each["attack"] for each in results if each["verdict"] == "got through"]
    if through:
        raise CommandError(Exit.FAILED, f"{len(through)} of {len(results)} attacks got through: {', '.join(through)}")
    if not json:
        known = sum(each["verdict"] == "known" for each in results)
        write_note(
            f"{sum(each['verdict'] == 'withstood' for each in results)} of {len(results)} attacks withstood"
            + (f", {known} known to get through on this broker" if known else "")
        )


def _one(trial: Trial, name: str, plugin: str) -> dict[str, Any]:
    trial.seconds.clear()
    try:
        achieved = ATTACKS[name](trial)
        verdict, detail = ("got through", achieved) if achieved else ("withstood", "")
        known = KNOWN.get((plugin, name))
        if achieved and known:
            verdict, detail = "known", known
    except NotTriedError as reason:
        verdict, detail = "not tried", str(reason)
    finally:
        trial.close()
    found: dict[str, Any] = {
        "attack": name,
        "what": " ".join((ATTACKS[name].__doc__ or "").split()),
        "verdict": verdict,
    }
    if detail:
        found["detail"] = detail
    if trial.seconds:
        found["revoke_seconds"] = round(trial.seconds[0], 4)
    return found


_STYLES = {"withstood": "green", "got through": "bold red", "known": "yellow", "not tried": "dim"}


def _show(found: dict[str, Any]) -> None:
    line = Text(f"{found['verdict']:<12}", style=_STYLES[found["verdict"]])
    line.append(f"{found['attack']:<26}", style="default")
    if "detail" in found:
        line.append(found["detail"], style="default")
    elif "revoke_seconds" in found:
        line.append(f"revoked in {found['revoke_seconds'] * 1e3:,.0f} ms, nothing afterwards", style="dim")
    else:
        line.append(found["what"], style="dim")
    out.print(line)


def _door(settings: Settings) -> Door:
    """Where the settings have clients connect. Raises CommandError where that is no way for this command."""
    broker = settings.broker
    escape = Escape(settings.link.topic_escape if broker.outside is not None else "", "")
    prefix = f"{settings.topic_prefix}/" if settings.topic_prefix else ""
    if broker.outside is not None:
        where = broker.outside
        if where.scheme not in ("mqtt", "mqtts"):
            raise CommandError(Exit.USAGE, f"attacks go over mqtt:// or mqtts://, and broker.url is {where.scheme}://")
        context = None
        if where.encrypted:
            link = settings.link
            context = ssl.create_default_context(cafile=None if link.ca is None else str(link.ca))
            context.check_hostname = not link.server_name
        return Door(where.host, where.port, context, settings.link.protocol != "3.1.1", prefix, escape)
    listener = broker.listener
    if listener is None:
        raise CommandError(
            Exit.USAGE, "attacks go over broker.url, and that is not set: clients come in by [[listener]] alone"
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.host, listener.host)  # noqa: S104  # the other way round
    return Door(host, listener.port, None, True, prefix, escape)


@contextmanager
def _trial(given: Path | None, door: Door) -> Iterator[Trial]:
    """Clients and an object, made for this and taken away again."""
    with credentials(given) as keys:
        _clear(given, keys)
        try:
            reporter, observer, intruder = (
                f"{NAME}{role}-{secrets.token_hex(4)}" for role in ("reporter", "observer", "intruder")
            )
            passwords = {name: generate_password() for name in (reporter, observer, intruder)}
            for name, password in passwords.items():
                keys.add(name, password)
            hold(given)
            (found,) = change(given, {"do": "probe", "client": reporter})
            names = (reporter, observer, intruder)
            with closing(Trial(given, door, keys, names, passwords, found["topic"], found["url"])) as trial:
                trial.grant(observer)
                yield trial
        finally:
            _clear(given, keys)


def _clear(given: Path | None, keys: Credentials) -> None:
    """Of this run, and what an earlier one has left that was killed."""
    change(given, {"do": "probe"})
    left = [client.name for client in keys.names() if client.name.startswith(NAME)]
    for name in left:
        keys.remove(name)
    if left:
        hold(given)
