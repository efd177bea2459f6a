"""Why a client may, or may not: the rule behind each answer of `rights.may`, as a sentence. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.objects import parent_of, url_of
from gateway.rights import ANONYMOUS, OBSERVED, RESERVED, STATISTICS, VERBS
from gateway.topics import matches, overlaps, split_share

if TYPE_CHECKING:
    from gateway.rights import Action, Clients, Namespace, Rights

Reason = tuple[bool, str]


def why(rights: Rights, client: str, action: Action, topic: str) -> Reason:
    """(whether, the rule that decides). The answer is that of `Rights.may`."""
    if client in rights.barred:
        return False, f"client {client} is disabled: `ctxt client enable {client}`"
    if action == "publish":
        return _publish(rights, client, topic)
    if action == "receive":
        return _receive(rights, client, topic)
    return _subscribe(rights, client, topic)


def _publish(rights: Rights, client: str, topic: str) -> Reason:
    own = rights.own(topic)
    verb, _, rest = (own or "").partition("/")
    if verb == "report":
        if rest.startswith(client + "/"):
            return True, "a client reports under its own name; whose object it is the gateway decides"
        return False, f"report/… is followed by the name of who speaks, and that is {client}"
    if verb in ("request", "presence"):
        if client == ANONYMOUS:
            return False, "clients without a name have no requests and no presence"
        if rest == client:
            return True, f"{verb}/{client} is its own"
        return False, f"{verb}/… is followed by the name of who speaks and nothing else, and that is {client}"
    if verb in VERBS:
        return False, f"only the gateway writes {verb}/…"
    return _ruled(rights, client, topic, "write")


def _receive(rights: Rights, client: str, topic: str) -> Reason:
    own = rights.own(topic)
    verb, _, rest = (own or "").partition("/")
    if verb in OBSERVED:
        return _observe(rights, client, rest)
    if verb == "inbox":
        if client != ANONYMOUS and (rest == client or rest.startswith(client + "/")):
            return True, "it is its own inbox"
        return False, "an inbox is its owner's alone"
    if verb == "gateway":
        if rest and "/" not in rest:
            return True, "everybody may read what gateways say of themselves"
        return False, "gateways announce themselves on gateway/{id} only"
    if verb in VERBS:
        return False, f"only the gateway reads {verb}/…"
    if topic.startswith(STATISTICS) and not rights.lists(rights.statistics, client):
        return False, f"broker.sys_read does not list {client}"
    if topic.startswith(STATISTICS):
        return True, f"broker.sys_read lists it {_how(rights, rights.statistics, client)}"
    return _ruled(rights, client, topic, "read")


def _observe(rights: Rights, client: str, topic: str) -> Reason:
    obj = rights.objects.get(topic)
    url = url_of(topic)
    if obj is not None and obj.reporter == client:
        return True, f"it is the Reporter of {url}"
    if obj is not None and obj.grants is not None and client in obj.grants:
        return True, f"it was granted {url}" + (" for a time" if obj.grants[client] else "")
    if obj is not None and obj.public and client != ANONYMOUS:
        return True, f"its Reporter has made {url} public, and its namespace permits that"
    parent = parent_of(topic)
    if parent is not None:
        may, reason = _observe(rights, client, parent)
        return may, f"a child is read by who may read its parent: {reason}"
    found = obj.namespace if obj is not None else rights.namespace_of(topic)
    if found is None:
        return False, f"no namespace holds {url}"
    where = f"the namespace {_pattern(found)}, the first that holds {url},"
    if rights.lists(found.observe, client):
        return True, f"{where} lists it {_how(rights, found.observe, client)} in `observe`"
    return False, f"{where} does not list {client} in `observe`, and it was granted nothing"


def _subscribe(rights: Rights, client: str, topic_filter: str) -> Reason:
    if not rights.may_subscribe(client, topic_filter):
        return False, "the filter can match nothing that it may read now"
    share = split_share(topic_filter)
    wanted = share.topic_filter if share else topic_filter
    if "+" not in wanted and "#" not in wanted:
        may, reason = _receive(rights, client, wanted)
        if may:
            return True, reason
    whole = rights.may_read_all(client, wanted)
    if whole:
        return True, "it may read everything that the filter matches"
    if share is None and overlaps(wanted, f"{rights.prefix}inbox/{client}/#"):
        return True, "the filter can match its inbox, among others; each delivery is judged"
    return True, "the filter can match something that it may read; each delivery is judged"


def _ruled(rights: Rights, client: str, topic: str, right: str) -> Reason:
    if topic.startswith("$") and topic.partition("/")[0] in RESERVED:
        return False, f"{topic.partition('/')[0]} is the broker's own"
    near = None
    for rule in rights.rules:
        if matches(rule.bound(client), topic):
            clients = rule.write if right == "write" else rule.read
            if rights.lists(clients, client):
                return (
                    True,
                    f"the [[topic]] rule {rule.topic_filter} lists it {_how(rights, clients, client)} in `{right}`",
                )
            near = rule.topic_filter
    if near is not None:
        return False, f"the [[topic]] rule {near} does not list {client} in `{right}`"
    return False, "it is no topic of the gateway's, and no [[topic]] rule opens it"


def _how(rights: Rights, clients: Clients, client: str) -> str:
    if client in clients.names:
        return "by name or group"
    if clients.everyone and client != ANONYMOUS:
        return 'by "*"'
    joined = sorted(clients.groups & rights.joined.get(client, {}).keys())
    return f'by "@{joined[0]}", of which its token makes it a member'


def _pattern(found: Namespace) -> str:
    return found.match.text
