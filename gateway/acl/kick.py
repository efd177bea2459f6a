"""Closing a client's connections through a broker's management API, where the broker asks for rights only at SUBSCRIBE."""

from __future__ import annotations

import base64
import http.client
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import orjson

from gateway.acl.plugin import AclError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

QUEUE = "mqtt-subscription-"
"""What the names of RabbitMQ's queues for MQTT begin with; client id and qos0 or qos1 follow."""

MOST_BYTES = 64 << 20
"""An answer may list tens of thousands of connections."""

PAGE = 1_000

LATE = 6.0
"""Seconds after a log-in until RabbitMQ's management has the connection in its list: 4.2 to 5.0 s (measured)."""

AGAIN = 0.25
"""Seconds between two looks at that list."""


class Management(NamedTuple):
    """Where a broker is administered, and as whom."""

    url: str
    user: str
    password: str
    timeout: float

    def call(self, method: str, path: str) -> tuple[int, Any]:
        """(status, JSON or None). Raises AclError."""
        status, said, _ = self.timed(method, path)
        return status, said

    def timed(self, method: str, path: str) -> tuple[int, Any, float]:
        """The same, and what time it was there (Unix seconds, whole ones). Raises AclError."""
        where = urlsplit(self.url)
        host = where.hostname or ""
        connection: http.client.HTTPConnection
        if where.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, where.port, timeout=self.timeout, context=context)
        else:
            connection = http.client.HTTPConnection(host, where.port, timeout=self.timeout)
        key = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        try:
            connection.request(method, where.path.rstrip("/") + path, headers={"Authorization": f"Basic {key}"})
            answer = connection.getresponse()
            content = answer.read(MOST_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise AclError(f"the broker's management at {self.url} does not answer: {error}") from error
        finally:
            connection.close()
        if answer.status in (401, 403):
            raise AclError(
                f"the broker's management at {self.url} refuses the gateway ({answer.status}): see authority.management_user and"
                " authority.management_password_file"
            )
        if answer.status >= 500:
            raise AclError(f"the broker's management at {self.url} answers {method} {path[:60]} with {answer.status}")
        try:
            then = parsedate_to_datetime(answer.getheader("Date", "")).timestamp()
        except ValueError:
            then = time.time()
        try:
            return answer.status, orjson.loads(content) if content else None, then
        except orjson.JSONDecodeError:
            return answer.status, None, then


class Lost(NamedTuple):
    """Who is to be disconnected."""

    logins: Mapping[str, float]
    """Each client, and when it has logged in last (`time.monotonic`; what is not known is long ago)."""
    holds: Callable[[str, str], bool]
    """Whether a client id is a client's own."""


def rabbitmq(management: Management, lost: Lost) -> None:
    """Close the connections that these clients had when this was called, and drop what waits for them. Raises AclError.

    Who has logged in a moment ago may not be listed yet: then it takes up to `LATE` seconds.
    """
    deadline = max(lost.logins.values()) + LATE
    until = 0.0
    while True:
        begun = time.monotonic()
        status, listed, there = management.timed("GET", "/api/connections?columns=name,user,connected_at")
        if status != 200 or not isinstance(listed, list):
            raise AclError(
                f"RabbitMQ's management at {management.url} lists no connections ({status}): enable rabbitmq_management"
            )
        first = not until
        # By its clock, in milliseconds: whoever has come back after this second was judged anew.
        until = until or (there + 1) * 1_000
        closed = False
        for each in listed:
            if isinstance(each, dict) and each.get("user") in lost.logins and (each.get("connected_at") or 0) < until:
                management.call("DELETE", f"/api/connections/{quote(str(each.get('name')), safe='')}")
                closed = True
        if first or closed:
            # What waits in a session that is kept was put there under rights that are gone.
            _rabbitmq_queues(management, lost)
        if begun >= deadline:
            return
        time.sleep(AGAIN)


def _rabbitmq_queues(management: Management, lost: Lost) -> None:
    status, listed = management.call("GET", "/api/queues/%2F?columns=name")
    if status != 200 or not isinstance(listed, list):
        raise AclError(f"RabbitMQ's management at {management.url} lists no queues ({status})")
    for each in listed:
        name = str(each.get("name")) if isinstance(each, dict) else ""
        client_id = name.removeprefix(QUEUE)[:-4]
        if name.startswith(QUEUE) and any(lost.holds(client, client_id) for client in lost.logins):
            status, _ = management.call("DELETE", f"/api/queues/%2F/{quote(name, safe='')}")
            if status not in (204, 404):
                raise AclError(f"RabbitMQ does not delete the queue {name[:100]!r} ({status})")


def emqx(management: Management, lost: Lost) -> None:
    """Forget what was answered, and close these users' connections. Raises AclError."""
    management.call("DELETE", "/authorization/cache")
    for name in lost.logins:
        for client_id in _emqx_clients(management, name):
            status, _ = management.call("DELETE", f"/clients/{quote(client_id, safe='')}")
            if status not in (204, 404):
                raise AclError(f"EMQX does not close the connection {client_id[:80]!r} ({status})")


def _emqx_clients(management: Management, name: str) -> Iterator[str]:
    for page in range(1, 101):
        query = urlencode({"username": name, "limit": PAGE, "page": page, "fields": "clientid"})
        status, said = management.call("GET", f"/clients?{query}")
        data = said.get("data") if isinstance(said, dict) else None
        if status != 200 or not isinstance(data, list):
            raise AclError(f"EMQX lists no clients ({status}): authority.management is http://HOST:18083/api/v5")
        yield from (str(each["clientid"]) for each in data if isinstance(each, dict) and "clientid" in each)
        if len(data) < PAGE:
            return


def vernemq(management: Management, lost: Lost) -> None:
    """Close these users' connections and end their sessions: what waits in them was meant for somebody with more rights. Raises AclError."""
    for name in lost.logins:
        query = urlencode({"--user": name, "--client_id": "", "--limit": PAGE})
        status, said = management.call("GET", f"/session/show?{query}")
        table = said.get("table") if isinstance(said, dict) else None
        if status != 200 or not isinstance(table, list):
            raise AclError(f"VerneMQ lists no sessions ({status}): authority.management is http://HOST:8888/api/v1")
        for each in table:
            client_id = str(each.get("client_id")) if isinstance(each, dict) else ""
            query = urlencode({"client-id": client_id, "--cleanup": ""})
            status, _ = management.call("GET", f"/session/disconnect?{query}")
            if status not in (200, 404):
                raise AclError(f"VerneMQ does not end the session {client_id[:80]!r} ({status})")


KICKS: dict[str, Callable[[Management, Lost], None]] = {
    "rabbitmq": rabbitmq,
    "emqx": emqx,
    "vernemq": vernemq,
}
"""By what `[authority] kick` says. They block: call them in a thread."""
