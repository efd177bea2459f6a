"""A connection to the gateway as a client: MQTT 5 through aiomqtt, requests with their answers, reports with their verdicts."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

import aiomqtt
import orjson
from aiomqtt.client import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from gateway.commands.outcome import CommandError, Exit, exit_of_code, exit_of_reason
from gateway.ulid import ulid as ulid_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import paho.mqtt.client as paho

ANONYMOUS = "anonymous"
QUEUED = 200_000
"""Messages that may wait for us; what goes beyond is dropped, and the Observer rule heals it."""

_QUIET = logging.getLogger("gateway.commands.mqtt")
_QUIET.setLevel(logging.CRITICAL)


def ulid() -> str:
    """A new ULID of this moment."""
    return ulid_at(time.time())


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect and as whom. `name` is None for a connection without a name."""

    host: str
    port: int
    name: str | None = None
    password: str | None = None
    prefix: str = ""

    @classmethod
    def parse(cls, url: str, environ: Mapping[str, str]) -> Target:
        """From `mqtt://[user[:password]@]host[:port][/prefix]`; a missing password comes from CTXT_PASSWORD.

        Raises CommandError (usage) that never quotes the password.
        """
        scheme, separator, _ = url.partition("://")
        if not separator or scheme != "mqtt":
            raise CommandError(Exit.USAGE, "--connect takes mqtt://[user[:password]@]host[:port][/topic-prefix]")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.query or parts.fragment:
            raise CommandError(Exit.USAGE, "--connect has no valid host and port: write mqtt://host:1883")
        name = unquote(parts.username) if parts.username else None
        password = unquote(parts.password) if parts.password is not None else environ.get("CTXT_PASSWORD")
        if name is not None and not password:
            raise CommandError(
                Exit.USAGE,
                f"there is no password for {name!r}: set CTXT_PASSWORD, or write mqtt://{name}:PASSWORD@{host}",
            )
        return cls(host, port or 1883, name, password if name is not None else None, parts.path.strip("/"))

    @property
    def client(self) -> str:
        """The client's name as the gateway knows it."""
        return self.name or ANONYMOUS

    @property
    def where(self) -> str:
        """Host and port, for sentences."""
        return f"{self.host} port {self.port}"

    def topic(self, rest: str) -> str:
        """A topic of the gateway's, with the prefix."""
        return f"{self.prefix}/{rest}" if self.prefix else rest

    def without_prefix(self, topic: str) -> str:
        """A topic without the prefix."""
        return topic[len(self.prefix) + 1 :] if self.prefix else topic


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the PUBACK of a report said: `code` is the gateway's HTTP-like code where it gave one."""

    reason: int
    text: str
    code: int | None

    @property
    def accepted(self) -> bool:
        """Whether the report is stored."""
        return self.reason < 0x80

    @property
    def exit(self) -> Exit:
        """The exit code that tells of it."""
        if self.accepted:
            return Exit.OK
        return exit_of_reason(self.reason) if self.code is None else exit_of_code(self.code)

    def __str__(self) -> str:
        return self.text or f"refused with reason code {self.reason:#04x}"


class Mqtt(aiomqtt.Client):
    """aiomqtt's client that also keeps what the last PUBACK said, which aiomqtt itself drops."""

    verdict = Verdict(0, "", None)

    def _on_publish(self, client: paho.Client, userdata: Any, mid: int, reason_code: Any, properties: Any) -> None:
        text = str(getattr(properties, "ReasonString", "") or "")
        head, _, rest = text.partition(" ")
        coded = head.isdecimal() and len(head) == 3
        self.verdict = Verdict(reason_code.value, text, int(head) if coded and rest else None)
        super()._on_publish(client, userdata, mid, reason_code, properties)

    async def __aenter__(self) -> Self:
        """Connect. Who is cancelled meanwhile leaves no socket behind, as aiomqtt would."""
        try:
            return await super().__aenter__()
        except asyncio.CancelledError:
            self.lose()
            raise

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: Any,
        reason_code: Any,
        properties: Any = None,
    ) -> None:
        if not self._connected.cancelled():
            super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def lose(self) -> None:
        """Break the connection as a dead battery does: no DISCONNECT."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def mqtt(target: Target, *, timeout: float, will: aiomqtt.Will | None = None, keepalive: int = 60) -> Mqtt:
    """A client for `async with`: nothing is connected yet. Must be called in the event loop."""
    return Mqtt(
        target.host,
        target.port,
        username=target.name,
        password=target.password,
        identifier=f"ctxt-{ulid()}",
        protocol=ProtocolVersion.V5,
        clean_start=True,
        will=will,
        keepalive=keepalive,
        timeout=timeout,
        logger=_QUIET,
        max_queued_incoming_messages=QUEUED,
    )


def publish_properties() -> Any:
    """Empty PUBLISH properties; members are set by their names in MQTT 5."""
    # paho has no types for this one.
    make: Any = Properties
    return make(PacketTypes.PUBLISH)


def user_property(*pairs: tuple[str, str]) -> Any:
    """PUBLISH properties with these user properties."""
    properties = publish_properties()
    properties.UserProperty = list(pairs)
    return properties


def refused_connection(target: Target, error: aiomqtt.MqttError) -> CommandError:
    """The sentence for a connection that did not come about."""
    reason = getattr(error.rc, "value", None) if isinstance(error, aiomqtt.MqttCodeError) else None
    if reason is not None:
        code = exit_of_reason(reason)
        if code == Exit.NOT_ALLOWED:
            if target.name is None:
                return CommandError(
                    code,
                    f"{target.where} admits nobody without a name: give --connect mqtt://NAME:PASSWORD@HOST "
                    "(or CTXT_CONNECT and CTXT_PASSWORD); `ctxt client add NAME` makes one",
                )
            return CommandError(
                code,
                f"{target.where} does not admit {target.name!r} with this password: "
                f"`ctxt client ls` lists who may connect, `ctxt client passwd {target.name}` gives another password",
            )
        return CommandError(code, f"{target.where} refuses the connection: {error}")
    return CommandError(
        Exit.NO_CONNECTION,
        f"cannot connect to {target.where} ({_plainly(error)}): is the gateway running? start it with `ctxt run`",
    )


def _plainly(error: Exception) -> str:
    text = str(error)
    for known in ("Connection refused", "timed out", "Name or service not known", "No route to host"):
        if known in text:
            return known.lower()
    return text or "no answer"


class Connection:
    """An open connection: requests and reports one at a time, and the messages of subscriptions."""

    def __init__(self, target: Target, client: Mqtt, timeout: float) -> None:
        self.target = target
        self.client = client
        self.timeout = timeout
        self.messages: asyncio.Queue[aiomqtt.Message | None] = asyncio.Queue()
        """What arrives; None when the connection is lost. At most QUEUED: what goes beyond is dropped."""
        self._waiting: dict[bytes, asyncio.Queue[dict[str, Any] | CommandError]] = {}
        self._inbox = f"inbox/{target.client}/ctxt-{secrets.token_hex(6)}"
        self._listens = False
        self._lock = asyncio.Lock()
        self.lost = False

    async def read(self) -> None:
        """Sort what arrives, until the connection ends."""
        try:
            async for message in self.client.messages:
                inbox = self.target.topic(self._inbox)
                if message.topic.value == inbox:
                    self._answered(message)
                elif self.messages.qsize() < QUEUED:
                    self.messages.put_nowait(message)
        except aiomqtt.MqttError:
            self.lost = True
            self.messages.put_nowait(None)
            for answers in self._waiting.values():
                answers.put_nowait(self.gone())

    def gone(self) -> CommandError:
        """The error of a lost connection."""
        return CommandError(Exit.NO_CONNECTION, f"the connection to {self.target.where} was lost")

    def _answered(self, message: aiomqtt.Message) -> None:
        key = getattr(message.properties, "CorrelationData", b"")
        answers = self._waiting.get(key)
        if answers is not None:
            try:
                answers.put_nowait(orjson.loads(message.payload))
            except orjson.JSONDecodeError:
                answers.put_nowait(
                    CommandError(Exit.FAILED, f"{self.target.where} answered with something that is not JSON")
                )

    async def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1, all in one SUBSCRIBE. Raises CommandError for a filter that is refused."""
        wanted = [(self.target.topic(each), SubscribeOptions(qos=1)) for each in filters]
        try:
            answers = await self.client.subscribe(wanted)
        except aiomqtt.MqttError as error:
            raise self._failed(error) from error
        for topic_filter, answer in zip(filters, answers, strict=False):
            code: Any = answer
            reason: int = getattr(code, "value", code)
            if reason >= 0x80:
                raise CommandError(
                    exit_of_reason(reason),
                    f"{self.target.client!r} may not read {topic_filter}: see `observe` in the settings' namespaces",
                )

    async def unsubscribe(self, *filters: str) -> None:
        """Unsubscribe."""
        try:
            await self.client.unsubscribe([self.target.topic(each) for each in filters])
        except aiomqtt.MqttError as error:
            raise self._failed(error) from error

    def _failed(self, error: aiomqtt.MqttError) -> CommandError:
        if self.lost or "timed out" not in str(error):
            return self.gone()
        return CommandError(Exit.NO_CONNECTION, f"{self.target.where} did not answer within {self.timeout:g} s")

    async def request(self, kind: str, body: dict[str, Any]) -> Any:
        """Ask the gateway and wait for the answer's body. Raises CommandError for a refusal, a lost connection, no answer."""
        return (await self.ask(kind, body))[1]

    async def ask(
        self, kind: str, body: dict[str, Any], *, decision: float | None = None, within: float | None = None
    ) -> tuple[int, Any]:
        """Ask the gateway and wait for (code, body); where that is 202, for the decision if it comes within `decision` seconds.

        `within`: seconds for the first answer, where it takes longer than others. Raises CommandError as `request` does.
        """
        if self.target.name is None:
            raise CommandError(
                Exit.NOT_ALLOWED,
                f"`{kind}` needs a name: give --connect mqtt://NAME:PASSWORD@HOST (or CTXT_CONNECT and CTXT_PASSWORD)",
            )
        if not self._listens:
            await self.subscribe(self._inbox)
            self._listens = True
        number = ulid()
        key = number.encode()
        properties = publish_properties()
        properties.ResponseTopic = self.target.topic(self._inbox)
        properties.CorrelationData = key
        answers: asyncio.Queue[dict[str, Any] | CommandError] = asyncio.Queue()
        self._waiting[key] = answers
        payload = orjson.dumps({"id": number, "type": kind, "body": body})
        try:
            await self._publish(f"request/{self.target.name}", payload, properties)
            code, found = await self._answer(kind, answers, within or self.timeout)
            if code == 202 and decision is not None:
                code, found = await self._answer(kind, answers, decision)
        finally:
            del self._waiting[key]
        return code, found

    async def _answer(
        self, kind: str, answers: asyncio.Queue[dict[str, Any] | CommandError], patience: float
    ) -> tuple[int, Any]:
        try:
            answer = await asyncio.wait_for(answers.get(), patience)
        except TimeoutError:
            raise CommandError(
                Exit.NO_CONNECTION, f"{self.target.where} did not answer `{kind}` within {patience:g} s"
            ) from None
        if isinstance(answer, CommandError):
            raise answer
        code = answer.get("code", 500)
        if code >= 400:
            raise CommandError(exit_of_code(code), f"{code} {answer.get('description', 'refused')}")
        return code, answer.get("body")

    async def report(self, topic: str, payload: bytes) -> Verdict:
        """Send a report at QoS 1 and wait for its PUBACK. Raises CommandError where none comes."""
        return await self._publish(f"report/{self.target.client}/{topic}", payload, user_property(("id", ulid())))

    async def _publish(self, topic: str, payload: bytes, properties: Any) -> Verdict:
        async with self._lock:
            try:
                await self.client.publish(self.target.topic(topic), payload, qos=1, properties=properties)
            except (aiomqtt.MqttError, ValueError) as error:
                if isinstance(error, aiomqtt.MqttError):
                    raise self._failed(error) from error
                raise CommandError(Exit.INVALID, f"{topic} cannot be published: {error}") from error
            return self.client.verdict


@asynccontextmanager
async def connected(target: Target, patience: float) -> AsyncIterator[Connection]:
    """A Connection for as long as the block lasts; what is not answered within `patience` seconds counts as lost. Raises CommandError."""
    client = mqtt(target, timeout=patience)
    try:
        await client.__aenter__()
    except aiomqtt.MqttError as error:
        raise refused_connection(target, error) from error
    connection = Connection(target, client, patience)
    reader = asyncio.create_task(connection.read())
    try:
        yield connection
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
        with suppress(aiomqtt.MqttError):
            await client.__aexit__(None, None, None)
