"""A gateway for the clients' tests, with a wire that can be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from gateway import messages
from tests.acl.brokers_mosquitto import beside_mosquitto
from tests.client.edges import Edge
from tests.inside import PASSWORD, Inside, inside
from tests.links.world import Proxy, proxy
from tests.running import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = ("ana", "rui", "eva", "zoe")
SETTINGS = """
[[namespace]]
match = "comm://home.local/{client}/**"
schema = "Communication"
report = ["*"]

[[namespace]]
match = "ctxt://home.local/{client}/**"
schema = "Context"
report = ["*"]
observe = ["*"]
execute = ["*"]

[limits]
requests_per_second = 10000
request_burst = 10000
reports_per_second = 100000
report_burst = 100000
creations_per_minute = 100000
"""


class Place:
    """A gateway, and the broker's port on the other side of a wire."""

    def __init__(self, gateway: Inside, port: int, wire: Proxy, broker: str) -> None:
        self.gateway = gateway
        self.port = port
        self.wire = wire
        self.broker = broker

    def url(self, name: str, *, cuttable: bool = False) -> str:
        """Where a client connects."""
        word = PASSWORD.replace(" ", "%20")
        return f"mqtt://{name}:{word}@127.0.0.1:{self.wire.port if cuttable else self.port}"

    def stored(self, url: str) -> Any:
        """An object as the gateway has it."""
        topic = url.replace("://", "/")

        def look(service: Any) -> Any:
            found = service.engine.objects.get(topic)
            if found is None or found.deleted:
                return None
            return orjson.loads(messages.snapshot(found, service.engine.epoch))["data"]

        return self.gateway.call(look)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Place]:
    """The broker inside, unless a test asks for mosquitto."""
    folder: Path = tmp_path_factory.mktemp("place")
    if getattr(request, "param", "inside") == "mosquitto":
        need("mosquitto", "mosquitto")
        with beside_mosquitto(folder, SETTINGS, *NAMES) as (gateway, broker), proxy(broker.port) as wire:
            yield Place(gateway, broker.port, wire, "mosquitto")
    else:
        with inside(folder, SETTINGS, *NAMES) as gateway, proxy(gateway.port) as wire:
            yield Place(gateway, gateway.port, wire, "inside")


@pytest.fixture(params=["asyncio", "blocking"])
def edge(request: pytest.FixtureRequest) -> Iterator[Edge]:
    """One client after the other; nothing of it may be left."""
    made = Edge(request.param)
    yield made
    made.check()
