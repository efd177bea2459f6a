"""The ways to a broker outside: TCP, TLS, WebSockets, Unix sockets, against a real mosquitto."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from gateway.links import remote
from gateway.links.dial import DialError, Tls, Way, dial
from gateway.links.remote import Remote, RemoteLink
from tests.broker.certificates import Authority
from tests.broker.world import run
from tests.inside import clients, inside
from tests.links.world import ALLOW_ALL, OPEN, Notes, proxy, snapshots, soon, until
from tests.running import HOST, UNLIMITED, free_port, mosquitto, need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

ELSEWHERE = "127.0.0.2"
"""An address of this machine that is in no certificate."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(remote, "SETTLE", 0.02)


@dataclass
class Ways:
    """A mosquitto and all the ways to it."""

    port: int
    ports: list[int]
    socket: Path
    authority: Authority
    stranger: Authority

    def __post_init__(self) -> None:
        self.tls, self.elsewhere, self.certified, self.web, self.secure_web = self.ports


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    need("mosquitto", "mosquitto")
    folder = tmp_path_factory.mktemp("ways")
    authority, stranger = Authority(folder / "ca"), Authority(folder / "stranger", "another authority")
    pair = authority.issue("broker")
    ports = [free_port() for _ in range(5)]
    files = f"cafile {authority.ca}\ncertfile {pair.certificate}\nkeyfile {pair.key}\n"
    config = (
        f"{ALLOW_ALL}listener {ports[0]} {HOST}\n{files}"
        f"listener {ports[1]} {ELSEWHERE}\n{files}"
        f"listener {ports[2]} {HOST}\n{files}require_certificate true\n"
        f"listener {ports[3]} {HOST}\nprotocol websockets\nsocket_domain ipv4\n"
        f"listener {ports[4]} {HOST}\nprotocol websockets\nsocket_domain ipv4\n{files}"
        f"listener 0 {folder}/mqtt.sock\n"
    )
    with mosquitto(folder, config) as broker:
        yield Ways(broker.port, ports, folder / "mqtt.sock", authority, stranger)


@asynccontextmanager
async def joined(way: Way, **rest: Any) -> AsyncIterator[Notes]:
    """A link that has joined by a way."""
    notes = Notes()
    rest.setdefault("open", True)
    notes.link = RemoteLink(Remote(way, "gw", session_expiry=0, **rest), gateway_id="g")
    try:
        await soon(notes.link.start(notes))  # type: ignore[arg-type]  # what a link asks of a service
        yield notes
    finally:
        await notes.link.stop()


async def served(ways: Ways, notes: Notes, size: int = 100_000) -> None:
    """Show that reports come in, small and large ones, and that messages go out."""
    before = len(notes.got)
    with clients(ways.port, "a") as (client,):
        payloads = [b"x" * length for length in (1, 2_000, size)]
        for payload in payloads:
            await asyncio.to_thread(client.publish, "report/a/ctxt/x/y", payload)
        await until(lambda: len(notes.got) == before + 3, "the reports are taken in")
        assert [publish.payload for publish in notes.got[before:]] == payloads
        await asyncio.to_thread(client.subscribe, "inbox/a")
        for payload in payloads:
            notes.link.publish("inbox/a", payload, qos=1)
        await asyncio.to_thread(client.wait, lambda: len(client.heard) == 3)
        assert [each[1] for each in client.heard] == payloads
        await until(lambda: not notes.link._inflight, "all is acknowledged")


@pytest.mark.parametrize(
    ("scheme", "protocol"),
    [("mqtt", "5"), ("mqtt", "3.1.1"), ("mqtts", "5"), ("ws", "5"), ("wss", "3.1.1"), ("unix", "3.1.1")],
)
def test_every_way_leads_to_the_broker(ways: Ways, scheme: str, protocol: str) -> None:
    tls = Tls(ca=ways.authority.ca)
    way = {
        "mqtt": Way("mqtt", HOST, ways.port),
        "mqtts": Way("mqtts", HOST, ways.tls, tls=tls),
        "ws": Way("ws", HOST, ways.web, "/mqtt"),
        "wss": Way("wss", "localhost", ways.secure_web, "/mqtt", tls=tls),
        "unix": Way("unix", path=str(ways.socket)),
    }[scheme]

    async def main() -> None:
        async with joined(way, protocol=protocol) as notes:
            await served(ways, notes)

    run(main)


def test_a_lost_websocket_is_opened_anew(ways: Ways) -> None:
    async def main() -> None:
        with proxy(ways.web) as wire:
            async with joined(Way("ws", HOST, wire.port, "/mqtt")) as notes:
                for _ in range(2):
                    before = notes.link.counters.connections
                    wire.cut()
                    await until(
                        # Without a session reports come only when they have been asked for again.
                        lambda before=before: (  # type: ignore[misc]  # bound now
                            notes.link.counters.connections > before and notes.link.ready and not notes.link._asked
                        ),
                        "it joins again",
                    )
                await served(ways, notes)

    run(main)


# Certificates


async def refusal(way: Way, seconds: float = 5.0) -> str:
    """Why there is no way."""
    with pytest.raises(DialError) as caught:
        await soon(dial(way, asyncio.Protocol(), seconds))
    return str(caught.value)


def test_a_certificate_that_is_not_trusted_is_refused_with_what_to_set(ways: Ways) -> None:
    async def main() -> None:
        for tls in (None, Tls(), Tls(ca=ways.stranger.ca)):
            sentence = await refusal(Way("mqtts", HOST, ways.tls, tls=tls))
            assert f"the certificate of mqtts://{HOST}:{ways.tls} is not trusted" in sentence
            assert "set link.ca to its authority's file" in sentence

    run(main)


def test_a_certificate_of_another_name_is_refused_unless_the_name_is_set(ways: Ways) -> None:
    way = Way("mqtts", ELSEWHERE, ways.elsewhere, tls=Tls(ca=ways.authority.ca))

    async def main() -> None:
        assert "set link.server_name to the name in it" in await refusal(way)
        async with joined(
            Way(*("mqtts", ELSEWHERE, ways.elsewhere), tls=Tls(ways.authority.ca, server_name="localhost"))
        ):
            pass

    run(main)


def test_files_that_cannot_be_used_are_named(ways: Ways, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM\n")

    async def main() -> None:
        for tls, file in [
            (Tls(ca=tmp_path / "none.pem"), "none.pem"),
            (Tls(ca=broken), "broken.pem"),
            (Tls(ca=ways.authority.ca, certificate=broken), "broken.pem"),
            (Tls(ca=ways.authority.ca, certificate=ways.authority.ca), "ca.pem"),
        ]:
            sentence = await refusal(Way("mqtts", HOST, ways.tls, tls=tls))
            assert file in sentence
            assert "cannot be used for TLS" in sentence

    run(main)


def test_a_client_certificate_is_shown_and_a_new_one_is_taken_at_the_next_connection(
    ways: Ways, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = ways.authority.issue("gw"), ways.stranger.issue("gw")
    certificate, key = tmp_path / "gw.pem", tmp_path / "gw.key"

    def install(pair: Any) -> None:
        shutil.copy(pair.certificate, certificate)
        shutil.copy(pair.key, key)

    way = Way("mqtts", HOST, ways.certified, tls=Tls(ways.authority.ca, certificate, key))

    async def main() -> None:
        install(bad)
        notes = Notes()
        notes.link = RemoteLink(Remote(way, "gw", open=True), gateway_id="g")
        starting = asyncio.create_task(notes.link.start(notes))  # type: ignore[arg-type]  # what a link asks of a service
        await until(lambda: len(caplog.records) >= 2, "it is refused, and tries again")
        assert not starting.done()
        install(good)
        await soon(starting)
        await served(ways, notes)
        await notes.link.stop()

    run(main)


def test_the_gateways_own_certificate_is_not_shown_when_a_stranger_is_tried(tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    authority = Authority(tmp_path)
    broker, gw = authority.issue("broker"), authority.issue("gw")
    port = free_port()
    config = (
        f"allow_anonymous false\nlistener {port} {HOST}\ncafile {authority.ca}\ncertfile {broker.certificate}\n"
        f"keyfile {broker.key}\nrequire_certificate true\nuse_identity_as_username true\n"
    )

    async def main() -> None:
        way = Way("mqtts", HOST, port, tls=Tls(authority.ca, gw.certificate, gw.key))
        async with joined(way, open=False) as notes:
            assert notes.link.ready

    with mosquitto(tmp_path, config):
        run(main)


# What is no broker


def test_nobody_there_is_said_with_the_place(tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        assert await refusal(Way("mqtt", HOST, port)) == f"cannot connect to mqtt://{HOST}:{port}: Connection refused"
        missing = tmp_path / "nobody.sock"
        assert (
            await refusal(Way("unix", path=str(missing)))
            == f"cannot connect to unix://{missing}: No such file or directory"
        )
        assert "cannot connect to mqtt://nowhere.invalid:1883" in await refusal(Way("mqtt", "nowhere.invalid", 1883))

    run(main)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "does not answer within 0.2 s"),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "refuses the WebSocket with HTTP status 404: check the path",
        ),
        (b"\x20\2\0\0", "does not speak WebSockets"),
        (None, "closes the connection before the WebSocket is open"),
        ("without a subprotocol", "does not offer the WebSocket subprotocol mqtt"),
    ],
)
def test_what_is_no_websocket_for_mqtt_is_said(answer: bytes | str | None, words: str) -> None:
    async def main() -> None:
        import base64
        import hashlib

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            if isinstance(answer, str):
                key = next(
                    line.split()[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
                )
                token = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
                writer.write(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n"
                )
            elif answer is not None:
                writer.write(answer)
            if answer is not None:
                with suppress(ConnectionError):
                    await reader.read()
            writer.close()

        server = await asyncio.start_server(accept, HOST, 0)
        port = server.sockets[0].getsockname()[1]
        assert words in await refusal(Way("ws", HOST, port, "/mqtt"), 0.2 if answer == b"" else 5.0)
        server.close()

    run(main)


def test_tls_to_a_broker_without_it_and_the_other_way_round(ways: Ways, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        sentence = await refusal(Way("mqtts", HOST, ways.port, tls=Tls(ca=ways.authority.ca)))
        assert f"cannot connect to mqtts://{HOST}:{ways.port}" in sentence
        notes = Notes()
        notes.link = RemoteLink(Remote(Way("mqtt", HOST, ways.tls), "gw", open=True), gateway_id="g")
        starting = asyncio.create_task(notes.link.start(notes))  # type: ignore[arg-type]  # what a link asks of a service
        await until(lambda: len(caplog.records) >= 2, "it is refused, and tries again")
        assert not starting.done()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await notes.link.stop()

    run(main)


# Characters with a meaning of their own


def test_clients_see_escaped_topics_and_the_gateway_plain_ones(tmp_path: Path) -> None:
    need("mosquitto", "mosquitto")
    with (
        mosquitto(tmp_path, ALLOW_ALL) as broker,
        inside(
            tmp_path / "gateway", UNLIMITED + OPEN + 'topic_escape = "."\n', url=f"mqtt://{HOST}:{broker.port}"
        ) as running,
        clients(broker.port, "sensor") as (sensor,),
    ):
        sensor.subscribe("snapshot/#", "delta/#", "inbox/sensor")
        data = {"values": {"t": {"value": 1}}}
        sensor.publish("report/sensor/ctxt/home%2Elocal/sensor/t", data)
        sensor.publish("report/sensor/ctxt/home%2Elocal/sensor/one%20two", data)
        found = sensor.wait(lambda: len(heard := snapshots(sensor)) == 2 and heard)
        assert {topic: each["url"] for topic, each in found.items()} == {
            "ctxt/home%2Elocal/sensor/t": "ctxt://home.local/sensor/t",
            "ctxt/home%2Elocal/sensor/one%20two": "ctxt://home.local/sensor/one%20two",
        }
        assert running.call(lambda service: sorted(obj.topic for obj in service.engine.objects)) == [
            "ctxt/home.local/sensor/one%20two",
            "ctxt/home.local/sensor/t",
        ]
        assert sensor.request("read", {"resource": "ctxt://home.local/sensor/t"})["body"]["data"] == data
