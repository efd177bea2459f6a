"""RabbitMQ with the shipped configuration, asking the gateway's authority, on free ports and in a folder of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.data import folder as shipped
from tests.inside import Inside
from tests.running import free_port, need

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "the-authoritys-own-secret"
LINK_PASSWORD = "the gateway's own"
KICK_PASSWORD = "the management's"
START = 90.0
"""Seconds that it may take to start: ten on a quiet machine."""


def program() -> str:
    """The server itself: Debian's wrapper changes to another user."""
    need("rabbitmq-server", "rabbitmq-server")
    found = sorted(Path("/usr/lib/rabbitmq/bin").glob("rabbitmq-server"))
    return str(found[0]) if found else need("rabbitmq-server", "rabbitmq-server")


class Rabbit:
    """One RabbitMQ."""

    def __init__(self, folder: Path, web_port: int) -> None:
        self.folder = folder
        self.port, self.management, amqp, distribution, epmd = (free_port() for _ in range(5))
        text = (shipped("config") / "rabbitmq/rabbitmq.conf").read_text()
        for old, new in (
            ("127.0.0.1:1883", f"127.0.0.1:{self.port}"),
            ("127.0.0.1:5672", f"127.0.0.1:{amqp}"),
            ("15672", str(self.management)),
            ("127.0.0.1:8080", f"127.0.0.1:{web_port}"),
            ("acl/SECRET", f"acl/{SECRET}"),
        ):
            assert old in text, old
            text = text.replace(old, new)
        (folder / "rabbitmq.conf").write_text(text)
        (folder / "enabled_plugins").write_text((shipped("config") / "rabbitmq/enabled_plugins").read_text())
        self.environment = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"ctxt{self.port}@localhost",
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "rabbit.pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "rabbit.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program()],
                env=self.environment,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        for port in (self.port, self.management):
            while True:
                assert self.process.poll() is None, (self.folder / "rabbit.log").read_text()[-3000:]
                assert time.monotonic() < deadline, (self.folder / "rabbit.log").read_text()[-3000:]
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                except OSError:
                    time.sleep(0.1)
                else:
                    break

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        # epmd, which Erlang starts beside itself, belongs to nobody.
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                mine = f"ERL_EPMD_PORT={self.environment['ERL_EPMD_PORT']}".encode()
                if b"epmd" in command and mine in environment:
                    os.kill(int(entry.name), signal.SIGKILL)

    def settings(self, web_port: int) -> str:
        """What the gateway's settings say of it."""
        for name, text in (("link", LINK_PASSWORD), ("secret", SECRET), ("kick", KICK_PASSWORD)):
            (self.folder / f"{name}.password").write_text(text + "\n")
        return f"""
[link]
username = "gateway"
password_file = "{self.folder}/link.password"
protocol = "3.1.1"
topic_escape = ". "
[acl]
plugin = "http"
[web]
listen = "http://127.0.0.1:{web_port}"
[authority]
secret_file = "{self.folder}/secret.password"
kick = "rabbitmq"
management = "http://127.0.0.1:{self.management}"
management_user = "ctxt-kick"
management_password_file = "{self.folder}/kick.password"
"""


@contextmanager
def beside_rabbitmq(folder: Path, settings: str, *clients: str) -> Iterator[tuple[Inside, Rabbit]]:
    """A gateway beside a RabbitMQ that asks it."""
    web_port = free_port()
    broker = Rabbit(folder, web_port)
    gateway = None
    try:
        broker.start()
        gateway = Inside(folder, settings + broker.settings(web_port), clients, f"mqtt://127.0.0.1:{broker.port}")
        yield gateway, broker
    finally:
        if gateway is not None:
            gateway.stop()
        broker.stop()


def escape(topic: str) -> str:
    """A topic as clients of this broker write it."""
    return re.sub(r"[. ]", lambda found: f"%{ord(found[0]):02X}", topic)


def plain(topic: str) -> str:
    return topic.replace("%2E", ".")
