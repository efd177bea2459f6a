"""The authority on a real socket, without a broker: what tests and benchmarks ask."""

from __future__ import annotations

import asyncio
import http.client
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from gateway.acl.http import HttpAcl
from gateway.acl.plugin import Context
from gateway.catalogue import Catalogue
from gateway.credentials import Credentials
from gateway.data import folder as shipped
from gateway.service import bearers, rights_of
from gateway.settings import load
from gateway.web.server import Web
from tests.inside import PASSWORD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from pathlib import Path

    from gateway.rights import Rights

SECRET = "the-authoritys-own-secret"
LINK_PASSWORD = "the gateway's own"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"


class Authority:
    """One that answers."""

    def __init__(self, loop: asyncio.AbstractEventLoop, plugin: HttpAcl, web: Web, rights: Rights) -> None:
        self._loop = loop
        self.plugin = plugin
        self.web = web
        self.rights = rights
        self.port: int = web.address[1]

    def post(self, path: str, content: bytes, kind: str = JSON, **headers: str) -> tuple[int, bytes]:
        """(status, body) of a question, with the secret in its head."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            heads = {"Authorization": f"Bearer {SECRET}", "Content-Type": kind, **headers}
            connection.request("POST", f"/acl/{path}", content, heads)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def ask(self, path: str, fields: Mapping[str, Any], **headers: str) -> Any:
        """The answer's JSON, or its text."""
        _, said = self.post(path, orjson.dumps(fields), **headers)
        return orjson.loads(said) if said.startswith(b"{") else said.decode()

    def run(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Run something on its loop."""

        async def go() -> Any:
            return await act()

        return asyncio.run_coroutine_threadsafe(go(), self._loop).result(30)


@contextmanager
def authority(
    folder: Path, settings: str, *clients: str, secret: bool = True, link: str = "", broker: str = ""
) -> Iterator[Authority]:
    """An authority over these clients, whose passwords are `PASSWORD`."""
    (folder / "link.password").write_text(LINK_PASSWORD + "\n")
    (folder / "secret").write_text(SECRET + "\n")
    path = folder / "authority.toml"
    path.write_text(
        f"""
state_dir = "{folder}"
[broker]
url = "mqtt://broker.home.local:1883"
{broker}[link]
username = "gateway"
password_file = "{folder}/link.password"
{link}[web]
listen = "http://127.0.0.1:1"
[acl]
plugin = "http"
"""
        + settings.replace(
            "[authority]\n", f'[authority]\nsecret_file = "{folder}/secret"\n' if secret else "[authority]\n"
        )
    )
    found = load(path, {})
    rights = rights_of(found, Catalogue.load(shipped("schemas")))
    web = Web("127.0.0.1", 0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    with closing(Credentials(folder / "clients.db")) as credentials:
        for name in clients:
            credentials.add(name, PASSWORD)
        plugin = HttpAcl(Context(found, rights, credentials, bearers=bearers(found), web=web))

        async def begin() -> None:
            await plugin.start()
            await web.start()

        async def end() -> None:
            await web.stop()
            await plugin.stop()

        asyncio.run_coroutine_threadsafe(begin(), loop).result(20)
        try:
            yield Authority(loop, plugin, web, rights)
        finally:
            asyncio.run_coroutine_threadsafe(end(), loop).result(20)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()
