"""mosquitto with the shipped configuration and the ACL plugin `mosquitto`, on free ports and in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.data import folder as shipped
from tests.inside import Inside
from tests.running import free_port, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES = "ctxt"
LINK_PASSWORD = "the gateway's own"


class Mosquitto:
    """One mosquitto, that can be ended and started again."""

    def __init__(self, folder: Path, *, extra: str = "", names_are_ids: bool = False) -> None:
        self.folder = folder
        self.port = free_port()
        self.pid_file = folder / "mosquitto.pid"
        files = folder / FILES
        files.mkdir(exist_ok=True)
        text = (shipped("config") / "mosquitto/ctxt.conf").read_text()
        ports = {"1883": self.port, "9001": free_port()}
        # In one go: a port may have the digits of another in it, and so may the folder.
        text = re.sub(r"\b(1883|9001)\b", lambda found: str(ports[found[0]]), text)
        text = text.replace("/etc/mosquitto/ctxt", str(files))
        if not names_are_ids:
            # So that one client may be here several times.
            text = text.replace("use_username_as_clientid true", "")
        head = f"pid_file {self.pid_file}\npersistence true\npersistence_location {folder}/\n"
        if os.geteuid() == 0:
            head += "user root\n"
        self.config = folder / "mosquitto.conf"
        self.config.write_text(f"{head}{text}\n{extra}\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = need("mosquitto", "mosquitto")
        for name in ("acl", "passwd"):
            # It does not start without them; the gateway has written them where it was here first.
            (self.folder / FILES / name).touch(0o640)
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen(
                [program, "-c", str(self.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        while not self.pid_file.exists() or self.pid_file.read_text().strip() != str(self.process.pid):
            assert self.process.poll() is None, (self.folder / "mosquitto.log").read_text()
            time.sleep(0.005)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def settings(self) -> str:
        """What the gateway's settings say of it."""
        return f"""
[link]
username = "gateway"
password_file = "{self.folder}/link.password"
broker_config = "{self.config}"
[acl]
plugin = "mosquitto"
[mosquitto]
folder = "{self.folder / FILES}"
pid_file = "{self.pid_file}"
"""


@contextmanager
def beside_mosquitto(
    folder: Path, settings: str, *clients: str, extra: str = "", names_are_ids: bool = False
) -> Iterator[tuple[Inside, Mosquitto]]:
    """A gateway beside a mosquitto that goes by its rights."""
    broker = Mosquitto(folder, extra=extra, names_are_ids=names_are_ids)
    (folder / "link.password").write_text(LINK_PASSWORD + "\n")
    broker.start()
    gateway = None
    try:
        gateway = Inside(folder, settings + broker.settings, clients, f"mqtt://127.0.0.1:{broker.port}")
        yield gateway, broker
    finally:
        if gateway is not None:
            gateway.stop()
        broker.kill()
