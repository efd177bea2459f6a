"""`python -m tests.bench.relay URL [PROTOCOL]`: the link to a broker outside with nothing behind it but another topic.

What reports cost beyond it is what the gateway does with them: rights, schema, merge, version, store.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import uvloop

from gateway.links.dial import Way
from gateway.links.remote import Remote, RemoteLink, Route

if TYPE_CHECKING:
    from gateway.wire.packets import Publish


class Relay:
    """The link's receiver: a report becomes a delta, verbatim."""

    counter = 0

    def __init__(self, link: RemoteLink) -> None:
        self._link = link
        self._routes: dict[str, Route] = {}

    def receive(self, batch: list[Publish]) -> None:
        link, routes = self._link, self._routes
        for publish in batch:
            if publish.topic.startswith("report/"):
                route = routes.get(publish.topic)
                if route is None:
                    about = publish.topic.split("/", 2)[2]
                    route = routes[publish.topic] = link.route(f"delta/{about}", retain=False)
                link.send(route, publish.payload, publish.qos)
        for publish in batch:
            link.acknowledge(publish)

    def announcement(self, status: str) -> bytes:
        return b'{"status":"%b","epoch":1,"counter":0}' % status.encode()

    def begin(self, seen: int, own: int) -> int:
        return max(1, seen)

    def joined(self, *, lost: bool, strays: list[str]) -> None:
        pass

    def session_lost(self, key: tuple[str, str]) -> None:
        pass

    def link_failed(self, error: BaseException) -> None:
        raise error


async def main(url: str, protocol: str) -> None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    way = Way("mqtt", parts.hostname, parts.port)
    link = RemoteLink(Remote(way, "relay", protocol=cast("Any", protocol), open=True), gateway_id="relay")
    await link.start(cast("Any", Relay(link)))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "auto"))
