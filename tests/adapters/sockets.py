"""Devices of any dialect over real sockets, beside the broker inside and beside mosquitto: a house where Ana looks on."""

from __future__ import annotations

import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.acl.brokers_mosquitto import beside_mosquitto
from tests.inside import Client, inside
from tests.running import need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.inside import Inside

BASE = "ctxt://home.local/house"
"""Where the devices' objects are, as `base` says in `adapter`."""

DEVICE = "plug"
"""The user name of devices; their password is tests.inside.PASSWORD."""

beside = pytest.mark.parametrize("broker", ["inside", "mosquitto"])
"""For a test with the argument `broker`."""


def adapter(kind: str, options: str = "") -> str:
    """The settings of one adapter at `BASE`, whose devices log in as `DEVICE`. `options`: TOML."""
    return f"""
[[adapter]]
type = "{kind}"
base = "{BASE}"
clients = ["{DEVICE}"]
observe = ["*"]
execute = ["ana"]
[adapter.options]
{options}
"""


class House:
    """A gateway with its broker. `ana` observes every object, and may have the devices act."""

    def __init__(self, gateway: Inside, port: int, stack: ExitStack) -> None:
        self.gateway = gateway
        self.port = port
        self._stack = stack
        self.ana = self.client("ana")
        self.ana.subscribe("snapshot/#", "delta/#", "inbox/ana")
        self._asked = 0

    def client(self, name: str = DEVICE, **rest: Any) -> Client:
        """A paho client; it is closed with the house."""
        found = Client(self.port, name, **rest)
        self._stack.callback(found.close)
        return found

    def object(self, path: str, wanted: Callable[[dict[str, Any]], Any] = bool) -> dict[str, Any]:
        """The snapshot of an object below `BASE`, as soon as it is as wanted; one that was deleted is `{}`."""
        topic = f"snapshot/{BASE.replace('://', '/')}/{path}"

        def look() -> list[dict[str, Any]]:
            told = [payload for heard, payload, _, _ in list(self.ana.heard) if heard == topic]
            found = json.loads(told[-1] or "{}") if told else None
            return [found] if found is not None and wanted(found) else []

        found: dict[str, Any] = self.ana.wait(look, 20)[0]
        return found

    def value(self, path: str, name: str, value: Any) -> dict[str, Any]:
        """The reading of a device as soon as it has this value."""
        found = self.object(path, lambda one: _values(one).get(name, {}).get("value") == value)
        reading: dict[str, Any] = found["data"]["values"][name]
        return reading

    def execute(self, path: str, method: str, **params: Any) -> str:
        """Have a device act; what is returned is the id that `answer` takes."""
        self._asked += 1
        body = {"resource": f"{BASE}/{path}", "method": method, "params": params}
        reason = self.ana.publish("request/ana", {"id": str(self._asked), "type": "execute", "body": body})
        assert reason[0] < 0x80, reason
        return str(self._asked)

    def answer(self, asked: str) -> dict[str, Any]:
        """What became of an action."""

        def look() -> list[dict[str, Any]]:
            told = [json.loads(payload) for topic, payload, _, _ in list(self.ana.heard) if topic == "inbox/ana"]
            return [one for one in told if one.get("id") == asked]

        found: dict[str, Any] = self.ana.wait(look, 20)[0]
        return found


def _values(snapshot: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = snapshot.get("data", {}).get("values", {})
    return found


@contextmanager
def house(folder: Path, broker: str, settings: str, *clients: str) -> Iterator[House]:
    """A gateway with these settings on a `broker` of `beside`; the clients are Ana, `DEVICE`, and these."""
    names = ("ana", DEVICE, *clients)
    with ExitStack() as stack:
        if broker == "inside":
            gateway = stack.enter_context(inside(folder, settings, *names))
            port = gateway.port
        else:
            need("mosquitto", "mosquitto")
            gateway, outside = stack.enter_context(beside_mosquitto(folder, settings, *names))
            port = outside.port
        yield House(gateway, port, stack)


__all__ = ["BASE", "DEVICE", "House", "adapter", "beside", "house"]
