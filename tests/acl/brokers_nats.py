"""nats-server with the shipped configuration and the ACL plugin `nats`, on free ports and in a folder of its own."""

from __future__ import annotations

import re
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.data import folder as shipped
from tests.inside import Inside
from tests.running import free_port, need, wait_for_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINK_PASSWORD = "the gateway's own"
ESCAPED = {".": "%2E", " ": "%20", "*": "%2A", ">": "%3E"}


class Nats:
    """One nats-server, that can be ended and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.native = free_port(), free_port()
        self.pid_file = folder / "nats.pid"
        self.users = folder / "nats/users.conf"
        self.users.parent.mkdir()
        self.users.write_text((shipped("config") / "nats/users.conf").read_text())
        text = (shipped("config") / "nats/nats-server.conf").read_text()
        for old, new in (
            ("0.0.0.0:1883", f"127.0.0.1:{self.port}"),
            ("127.0.0.1:4222", f"127.0.0.1:{self.native}"),
            ("/var/lib/nats", str(folder / "store")),
        ):
            assert old in text, old
            text = text.replace(old, new)
        self.config = folder / "nats-server.conf"
        self.config.write_text(f"{text}\npid_file: {self.pid_file}\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = need("nats-server", "nats-server")
        with (self.folder / "nats.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-c", str(self.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        while not self.pid_file.exists() or self.pid_file.read_text().strip() != str(self.process.pid):
            assert self.process.poll() is None, (self.folder / "nats.log").read_text()
            time.sleep(0.005)
        wait_for_port(self.port, self.process, 20)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def settings(self) -> str:
        """What the gateway's settings say of it."""
        (self.folder / "link.password").write_text(LINK_PASSWORD + "\n")
        return f"""
[link]
username = "gateway"
password_file = "{self.folder}/link.password"
protocol = "3.1.1"
topic_escape = ". *>"
[acl]
plugin = "nats"
[nats]
users_file = "{self.users}"
pid_file = "{self.pid_file}"
"""


@contextmanager
def beside_nats(folder: Path, settings: str, *clients: str) -> Iterator[tuple[Inside, Nats]]:
    """A gateway beside a nats-server that goes by its rights."""
    broker = Nats(folder)
    gateway = None
    try:
        broker.start()
        gateway = Inside(folder, settings + broker.settings, clients, f"mqtt://127.0.0.1:{broker.port}")
        yield gateway, broker
    finally:
        if gateway is not None:
            gateway.stop()
        broker.kill()


def escape(topic: str) -> str:
    """A topic as clients of this broker write it."""
    return re.sub(r"[. *>]", lambda found: ESCAPED[found[0]], topic)


def plain(topic: str) -> str:
    return topic.replace("%2E", ".")
