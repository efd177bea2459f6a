"""How brokers ask who may do what over HTTP, and how each wants to be answered. The questions are put to a `Judge`.

Sources: EMQX 5, "HTTP authenticator" and "HTTP authorizer"; RabbitMQ 3.10, rabbitmq_auth_backend_http; VerneMQ 2, "Webhooks";
mosquitto-go-auth 2, "HTTP". A broker that asks only at SUBSCRIBE is told yes where everything may be read that the filter matches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import orjson

from gateway.acl.kick import QUEUE
from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gateway.rights import Action

JSON = b"application/json"
TEXT = b"text/plain"

MOST_FIELDS = 64
MOST_FILTERS = 1_000


class QuestionError(CtxtError):
    """A request that is none of this dialect. It is answered with no."""


class Judge(Protocol):
    """Who decides."""

    async def login(self, name: str, password: str, client_id: str, *, address: str, certificate: str) -> bool:
        """Whether somebody may connect; `certificate`: the common name that the broker has verified, or ""."""

    def knows(self, name: str) -> bool:
        """Whether there is such a client."""

    def may(self, name: str, action: Action, topic: str) -> bool:
        """Whether a client may publish to a topic, receive on one, or read all that a filter matches."""

    def administers(self, name: str, password: str | None = None) -> bool:
        """Whether this is whom the gateway itself uses for the broker's management; with a password, whether that is right."""

    def holds(self, name: str, client_id: str) -> bool:
        """Whether a client id, and what a broker keeps for it, is this client's."""


class Answer(NamedTuple):
    """What goes back."""

    status: int
    content_type: bytes
    content: bytes
    allowed: bool = False


class Route(NamedTuple):
    """One question of one dialect."""

    ask: Callable[[Judge, Mapping[str, Any], str], Awaitable[Answer]]
    """(judge, fields, hook) to the answer. Raises QuestionError."""
    deny: Answer
    """No, whatever was asked."""


def fields_of(content_type: str, content: bytes) -> Mapping[str, Any]:
    """A body's fields: a JSON object or a form. Raises QuestionError."""
    if content_type.startswith("application/x-www-form-urlencoded"):
        try:
            pairs = parse_qsl(
                content.decode(),
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=MOST_FIELDS,
            )
        except ValueError as error:
            raise QuestionError(f"the form cannot be read: {error}") from error
        found = dict(pairs)
        if len(found) != len(pairs):
            raise QuestionError("a field of the form is there twice")
        return found
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise QuestionError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise QuestionError("the body is not a JSON object")
    return value


def _text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if value is None:
        # Brokers say null, or leave out, what a client has not sent.
        value = default
    if not isinstance(value, str):
        raise QuestionError(f"{name} is missing or no text")
    return value


# ---- EMQX ------------------------------------------------------------------------------------------------------------------

_EMQX_ALLOW = Answer(200, JSON, b'{"result":"allow","is_superuser":false}', allowed=True)
_EMQX_DENY = Answer(200, JSON, b'{"result":"deny"}')


async def _emqx_authentication(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    name, client_id = _text(fields, "username"), _text(fields, "clientid", "")
    admitted = await judge.login(
        name,
        _text(fields, "password", ""),
        client_id,
        address=_text(fields, "peerhost", ""),
        certificate=_text(fields, "cert_common_name", ""),
    )
    return _EMQX_ALLOW if admitted else _EMQX_DENY


async def _emqx_authorization(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    action = _text(fields, "action")
    if action not in ("publish", "subscribe"):
        raise QuestionError(f"action {action!r} is neither publish nor subscribe")
    allowed = judge.may(_text(fields, "username"), action, _text(fields, "topic"))  # type: ignore[arg-type]  # one of the two
    return _EMQX_ALLOW if allowed else _EMQX_DENY


# ---- RabbitMQ --------------------------------------------------------------------------------------------------------------

_RABBIT_ALLOW = Answer(200, TEXT, b"allow", allowed=True)
_RABBIT_DENY = Answer(200, TEXT, b"deny")
_RABBIT_ADMINISTRATOR = Answer(200, TEXT, b"allow administrator", allowed=True)
_EXCHANGE = "amq.topic"


async def _rabbit_user(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    if "client_id" not in fields and judge.administers(_text(fields, "username"), _text(fields, "password", "")):
        return _RABBIT_ADMINISTRATOR
    admitted = await judge.login(
        _text(fields, "username"),
        _text(fields, "password", ""),
        _text(fields, "client_id", ""),
        address="",
        certificate="",
    )
    # No tags: nobody else is an administrator or sees the management pages.
    return _RABBIT_ALLOW if admitted else _RABBIT_DENY


async def _rabbit_vhost(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    name = _text(fields, "username")
    known = judge.knows(name) or ("client_id" not in fields and judge.administers(name))
    return _RABBIT_ALLOW if _text(fields, "vhost") == "/" and known else _RABBIT_DENY


async def _rabbit_resource(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    """What the MQTT plugin does in a client's name, and nothing else: AMQP itself is closed."""
    kind, name, wanted = _text(fields, "resource"), _text(fields, "name"), _text(fields, "permission")
    user = _text(fields, "username")
    if _text(fields, "vhost") != "/":
        return _RABBIT_DENY
    if kind == "exchange":
        allowed = name == _EXCHANGE and wanted in ("read", "write") and judge.knows(user)
        return _RABBIT_ALLOW if allowed else _RABBIT_DENY
    if kind == "queue" and name.startswith(QUEUE) and name[-4:] in ("qos0", "qos1"):
        if judge.administers(user):
            return _RABBIT_ALLOW if wanted == "configure" else _RABBIT_DENY
        return _RABBIT_ALLOW if judge.knows(user) and judge.holds(user, name[len(QUEUE) : -4]) else _RABBIT_DENY
    return _RABBIT_DENY


async def _rabbit_topic(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    wanted, key = _text(fields, "permission"), _text(fields, "routing_key")
    if _text(fields, "vhost") != "/" or _text(fields, "name") != _EXCHANGE:
        return _RABBIT_DENY
    user = _text(fields, "username")
    if wanted == "write":
        return _RABBIT_ALLOW if judge.may(user, "publish", key.replace(".", "/")) else _RABBIT_DENY
    if wanted == "read":
        return _RABBIT_ALLOW if judge.may(user, "subscribe", filter_of(key)) else _RABBIT_DENY
    return _RABBIT_DENY


def filter_of(key: str) -> str:
    """The MQTT filter of a routing key with which something is bound to the topic exchange."""
    return "/".join("+" if level == "*" else level for level in key.split("."))


# ---- VerneMQ ---------------------------------------------------------------------------------------------------------------

_VERNE_OK = Answer(200, JSON, b'{"result":"ok"}', allowed=True)
_VERNE_DENY = Answer(200, JSON, b'{"result":{"error":"not_allowed"}}')
_VERNE_DENY_5 = Answer(200, JSON, b'{"result":{"error":{"reason_code":"not_authorized"}}}')


async def _verne(judge: Judge, fields: Mapping[str, Any], hook: str) -> Answer:
    what, five = hook.removesuffix("_m5"), hook.endswith("_m5")
    no = _VERNE_DENY_5 if five else _VERNE_DENY
    if _text(fields, "mountpoint", ""):
        raise QuestionError("mountpoints are not known here")
    name = _text(fields, "username")
    if what == "auth_on_register":
        admitted = await judge.login(
            name,
            _text(fields, "password", ""),
            _text(fields, "client_id", ""),
            address=_text(fields, "peer_addr", ""),
            certificate="",
        )
        return _VERNE_OK if admitted else no
    if what == "auth_on_publish":
        return _VERNE_OK if judge.may(name, "publish", _text(fields, "topic")) else no
    if what == "auth_on_subscribe":
        return _verne_filters(judge, name, fields.get("topics"), no)
    raise QuestionError(f"the hook {hook[:40]!r} is not known here")


def _verne_filters(judge: Judge, name: str, topics: Any, no: Answer) -> Answer:
    """Each filter by itself: those that may not be read get 128 in the SUBACK."""
    if not isinstance(topics, list) or not 1 <= len(topics) <= MOST_FILTERS:
        raise QuestionError("topics is no list")
    judged: list[dict[str, Any]] = []
    for item in topics:
        if not isinstance(item, dict):
            raise QuestionError("a topic is no object")
        wanted = _text(item, "topic")
        judged.append({"topic": wanted, "qos": item.get("qos", 0) if judge.may(name, "subscribe", wanted) else 128})
    if all(item["qos"] == 128 for item in judged):
        return no
    if all(item["qos"] != 128 for item in judged):
        return _VERNE_OK
    return Answer(200, JSON, orjson.dumps({"result": "ok", "topics": judged}), allowed=True)


# ---- mosquitto-go-auth -----------------------------------------------------------------------------------------------------

_GO_ALLOW = Answer(200, JSON, b'{"Ok":true,"Error":""}', allowed=True)
_GO_DENY = Answer(403, JSON, b'{"Ok":false,"Error":"not authorised"}')
_GO_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "1": ("receive",),
    "2": ("publish",),
    "3": ("receive", "publish"),
    "4": ("any",),
}


async def _go_user(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    admitted = await judge.login(
        _text(fields, "username"),
        _text(fields, "password", ""),
        _text(fields, "clientid", ""),
        address="",
        certificate="",
    )
    return _GO_ALLOW if admitted else _GO_DENY


async def _go_superuser(_judge: Judge, _fields: Mapping[str, Any], _hook: str) -> Answer:
    return _GO_DENY


async def _go_acl(judge: Judge, fields: Mapping[str, Any], _hook: str) -> Answer:
    """It asks at each delivery too (`acc` 1), so a subscription may be as wide as it likes."""
    wanted = fields.get("acc")
    actions = _GO_ACTIONS.get(str(wanted) if isinstance(wanted, int | str) else "")
    if actions is None:
        raise QuestionError("acc is none of 1, 2, 3, 4")
    name, topic = _text(fields, "username"), _text(fields, "topic")
    allowed = actions == ("any",) or all(judge.may(name, each, topic) for each in actions)  # type: ignore[arg-type]  # two of the actions
    return _GO_ALLOW if allowed else _GO_DENY


ROUTES: Mapping[str, Route] = {
    "emqx/authentication": Route(_emqx_authentication, _EMQX_DENY),
    "emqx/authorization": Route(_emqx_authorization, _EMQX_DENY),
    "rabbitmq/user": Route(_rabbit_user, _RABBIT_DENY),
    "rabbitmq/vhost": Route(_rabbit_vhost, _RABBIT_DENY),
    "rabbitmq/resource": Route(_rabbit_resource, _RABBIT_DENY),
    "rabbitmq/topic": Route(_rabbit_topic, _RABBIT_DENY),
    "vernemq": Route(_verne, _VERNE_DENY),
    "mosquitto-go-auth/user": Route(_go_user, _GO_DENY),
    "mosquitto-go-auth/superuser": Route(_go_superuser, _GO_DENY),
    "mosquitto-go-auth/acl": Route(_go_acl, _GO_DENY),
}
"""By the path below `/acl/`."""
