"""gmqtt, an MQTT client of its own for asyncio, over MQTT 5 and 3.1.1."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import gmqtt
import pytest

from tests.inside import PASSWORD, inside

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

OBJECT = "ctxt/home.local/sensor/room"
REPORT = "report/sensor/" + OBJECT
SETTINGS = '[timing]\noffline_grace = "100ms"\n'

pytestmark = pytest.mark.parametrize("version", [4, 5])


def reading(value: int) -> dict[str, Any]:
    return {"values": {"temperature": {"value": value}}}


class Client:
    """A client that keeps what it hears; gmqtt shows no application the reason codes of acknowledgements."""

    def __init__(
        self, name: str, *, client_id: str = "", clean: bool = True, will: Any = None, **properties: Any
    ) -> None:
        self.heard: list[tuple[str, Any, int, bool]] = []
        self.granted: list[tuple[int, ...]] = []
        self.present: bool | None = None
        self._news = asyncio.Event()
        self._client = gmqtt.Client(client_id or None, clean_session=clean, will_message=will, **properties)
        self._client.set_auth_credentials(name, PASSWORD)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe

    def _on_connect(self, _client: Any, flags: int, _reason: int, _properties: Any) -> None:
        self.present = bool(flags)

    def _on_message(self, _client: Any, topic: str, payload: bytes, qos: int, properties: Any) -> int:
        self.heard.append((topic, json.loads(payload), qos, bool(properties["retain"])))
        self._news.set()
        return 0

    def _on_subscribe(self, _client: Any, _mid: int, granted: tuple[int, ...], _properties: Any) -> None:
        self.granted.append(granted)
        self._news.set()

    async def connect(self, port: int, version: int) -> None:
        await self._client.connect("127.0.0.1", port, version=version, keepalive=30)

    async def wait(self, until: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not until():
                self._news.clear()
                await self._news.wait()

    async def subscribe(self, *filters: str, qos: int = 1) -> tuple[int, ...]:
        before = len(self.granted)
        self._client.subscribe([gmqtt.Subscription(topic_filter, qos=qos) for topic_filter in filters])
        await self.wait(lambda: len(self.granted) > before)
        return self.granted[-1]

    def publish(self, topic: str, payload: Any, qos: int) -> None:
        self._client.publish(topic, json.dumps(payload), qos=qos)

    def on(self, topic: str) -> list[Any]:
        """The payloads that it has heard on a topic."""
        return [payload for heard, payload, *_ in self.heard if heard == topic]

    async def cut(self) -> None:
        """Close the socket without a DISCONNECT, and stay away."""
        self._client._is_active = False
        await self._client._connection.close()

    async def end(self) -> None:
        await self._client.disconnect()


def run(folder: Path, scene: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    with inside(folder, SETTINGS) as gateway:
        asyncio.run(scene(gateway.port))


def test_reports_become_snapshots_and_deltas_and_a_late_joiner_gets_the_last_snapshot(
    tmp_path: Path, version: int
) -> None:
    async def scene(port: int) -> None:
        sensor, dash, late = Client("sensor"), Client("dash"), Client("dash")
        await sensor.connect(port, version)
        await dash.connect(port, version)
        assert await dash.subscribe("snapshot/#", "delta/#", qos=2) == (2, 2)
        for qos in (0, 1, 2):
            sensor.publish(REPORT, reading(20 + qos), qos)
        await dash.wait(lambda: len(dash.on("delta/" + OBJECT)) == 3)
        deltas = dash.on("delta/" + OBJECT)
        assert [delta["version"] for delta in deltas] == [1, 2, 3]
        assert [deltas[0]["value"], deltas[1]["merge"], deltas[2]["merge"]] == [reading(20), reading(21), reading(22)]
        await dash.wait(lambda: any(snapshot["version"] == 3 for snapshot in dash.on("snapshot/" + OBJECT)))
        await late.connect(port, version)
        await late.subscribe("snapshot/#")
        await late.wait(lambda: late.heard)
        ((topic, snapshot, qos, retained),) = late.heard
        assert (topic, snapshot["data"], qos, retained) == ("snapshot/" + OBJECT, reading(22), 1, True)
        for client in (sensor, dash, late):
            await client.end()

    run(tmp_path, scene)


def test_refused_reports_are_told_in_the_inbox_and_the_connection_goes_on(tmp_path: Path, version: int) -> None:
    async def scene(port: int) -> None:
        sensor, mallory = Client("sensor"), Client("mallory")
        await sensor.connect(port, version)
        await mallory.connect(port, version)
        assert await mallory.subscribe("inbox/sensor") == (0x87 if version == 5 else 0x80,)
        await mallory.subscribe("inbox/mallory", "snapshot/#")
        sensor.publish(REPORT, reading(20), 1)
        await mallory.wait(lambda: mallory.on("snapshot/" + OBJECT))
        for qos in (1, 2):
            mallory.publish("report/mallory/" + OBJECT, reading(99), qos)
            mallory.publish(REPORT, reading(99), qos)
        await mallory.wait(lambda: mallory.on("inbox/mallory"))
        first = mallory.on("inbox/mallory")[0]
        assert (first["type"], first["code"], first["resource"]) == ("rejection", 403, "ctxt://home.local/sensor/room")
        mallory.publish("report/mallory/ctxt/home.local/mallory/room", reading(1), 2)
        await mallory.wait(lambda: mallory.on("snapshot/ctxt/home.local/mallory/room"))
        assert [snapshot["version"] for snapshot in mallory.on("snapshot/" + OBJECT)] == [1]
        await sensor.end()
        await mallory.end()

    run(tmp_path, scene)


def test_a_wrong_password_is_refused(tmp_path: Path, version: int) -> None:
    async def scene(port: int) -> None:
        client = Client("stranger")
        with pytest.raises(gmqtt.mqtt.handler.MQTTConnectError):
            await client.connect(port, version)
        await client.cut()

    run(tmp_path, scene)


def test_the_will_tells_of_a_lost_reporter_and_a_kept_session_gets_it_later(tmp_path: Path, version: int) -> None:
    async def scene(port: int) -> None:
        kept = {"session_expiry_interval": 600} if version == 5 else {}
        dash = Client("dash", client_id="panel", clean=False, **kept)
        sensor = Client("sensor", will=gmqtt.Message("presence/sensor", "offline", qos=1))
        await dash.connect(port, version)
        assert dash.present is False
        await sensor.connect(port, version)
        await dash.subscribe("delta/#")
        sensor.publish(REPORT, reading(0), 1)
        await dash.wait(lambda: dash.on("delta/" + OBJECT))
        await dash.cut()
        watch = Client("dash")
        await watch.connect(port, version)
        await watch.subscribe("delta/#")
        for value in range(1, 20):
            sensor.publish(REPORT, reading(value), 1 + value % 2)
        await watch.wait(lambda: len(watch.heard) == 19)
        await sensor.cut()
        await watch.wait(lambda: watch.heard[-1][1].get("status") == "disconnected")
        again = Client("dash", client_id="panel", clean=False, **kept)
        await again.connect(port, version)
        assert again.present is True
        await again.wait(lambda: len(again.heard) == 20)
        assert [delta["version"] for delta in again.on("delta/" + OBJECT)] == list(range(2, 22))
        await again.end()
        await watch.end()

    run(tmp_path, scene)
