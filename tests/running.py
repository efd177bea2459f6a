"""Real programs for tests: the gateway as a process of its own, and mosquitto. Both are started, watched, stopped and killed here."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from gateway.credentials import Credentials
from gateway.errors import CtxtError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent

OWN_NAMESPACE = """
[[namespace]]
match = "ctxt://home.local/{client}/**"
schema = "Context"
report = ["*"]
observe = ["*"]
"""

UNLIMITED = """
[limits]
reports_per_second = 10_000_000
report_burst = 100_000_000
creations_per_minute = 10_000_000
objects_per_client = 1_000_000
bytes_per_client = "1GiB"
"""

_LISTENS = re.compile(r"(?:listens|serves) on \w+://\S+?, epoch (\d+), ([\d,]+) object")


class ProgramError(CtxtError):
    """A program did not do what it was started for; the sentence ends with what it wrote."""


class MissingProgramError(CtxtError):
    """A program is not installed."""

    def __init__(self, program: str, apt: str) -> None:
        super().__init__(f"{program} is not installed: apt install {apt}")
        self.program = program
        self.apt = apt


def find(program: str, apt: str) -> str:
    """The program's path, from PATH or the folders for daemons. Raises MissingProgramError."""
    found = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))
    if found is None:
        raise MissingProgramError(program, apt)
    return found


def need(program: str, apt: str) -> str:
    """The program's path; skips the test, naming the program and the apt line, where it is not installed."""
    try:
        return find(program, apt)
    except MissingProgramError as error:
        pytest.skip(str(error))


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait until somebody listens. Raises ProgramError when the process ends or the time (seconds) is over."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError as error:
            if process.poll() is not None:
                raise ProgramError(f"process ended with {process.returncode} before it listened on {port}") from error
            if time.monotonic() > deadline:
                raise ProgramError(f"nobody listens on port {port} after {timeout:g} s") from error
            time.sleep(0.01)
        else:
            return


class Usage(NamedTuple):
    """What a process has taken: CPU seconds (user + system), bytes resident now and at most."""

    cpu: float
    resident: int
    peak: int


def usage(pid: int) -> Usage:
    """Read a process's CPU time and memory from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    memory = {
        name: int(value) * 1024 for name, value in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE)
    }
    return Usage((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), memory["VmRSS"], memory["VmHWM"])


class Gateway:
    """A gateway process on a port and a state folder that stay the same over every start."""

    module = "gateway.cli"
    """What is started with `python -m`."""

    def __init__(
        self, folder: Path, *, top: str = "", broker: str = "", rest: str = OWN_NAMESPACE, outside: str | None = None
    ) -> None:
        """`top` are settings before the first table, `broker` lines of [broker], `rest` all other tables.

        `outside` is the URL of a broker that the gateway joins.
        """
        self.folder = folder
        self.port = free_port()
        self.state_dir = folder / "state"
        self.state_dir.mkdir(mode=0o700, exist_ok=True)
        self.config = folder / "gateway.toml"
        url = outside or f"embedded://{HOST}:{self.port}"
        self.config.write_text(f'state_dir = "{self.state_dir}"\n{top}\n[broker]\nurl = "{url}"\n{broker}\n{rest}\n')
        self.process: subprocess.Popen[bytes] | None = None
        self._out = folder / "gateway.out"
        self._launched = 0.0
        self.epoch = 0
        self.objects = 0
        """How many objects it said to have when it began to listen."""
        self.start_seconds = 0.0
        """From the call of the program until it said that it listens."""

    @property
    def pid(self) -> int:
        """The process id of a started gateway."""
        assert self.process is not None
        return self.process.pid

    def add_client(self, name: str, password: str) -> None:
        """Make a client; the gateway need not run."""
        with closing(Credentials(self.state_dir / "clients.db")) as credentials:
            credentials.add(name, password)

    def command(self, *arguments: str, text: str = "", timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        """Run `ctxt` with these settings; `text` is its standard input."""
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments, "--config", str(self.config)],
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=ROOT,
        )

    def launch(self, environment: Mapping[str, str] | None = None) -> None:
        """Call the program; `wait` waits until it listens."""
        self._launched = time.monotonic()
        with self._out.open("wb") as stdout, (self.folder / "gateway.err").open("ab") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "run", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until it says that it listens. Raises ProgramError with what it wrote when it does not within so many seconds."""
        assert self.process is not None
        while (found := _LISTENS.search(self._out.read_text())) is None:
            if self.process.poll() is not None:
                raise ProgramError(f"the gateway ended with {self.process.returncode}:\n{self.errors()}")
            if time.monotonic() - self._launched > timeout:
                self.kill()
                raise ProgramError(f"the gateway does not listen after {timeout:g} s:\n{self.errors()}")
            time.sleep(0.005)
        self.start_seconds = time.monotonic() - self._launched
        self.epoch = int(found[1])
        self.objects = int(found[2].replace(",", ""))

    def start(self, *, timeout: float = 30.0, environment: Mapping[str, str] | None = None) -> None:
        """`launch` and `wait`."""
        self.launch(environment)
        self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone. The state folder stays as it is."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM, and the exit code. Raises ProgramError (after a SIGKILL) when it does not end in time."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ProgramError(f"the gateway did not stop within {timeout:g} s:\n{self.errors()}") from None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None

    def errors(self) -> str:
        """All that was written to standard error, over every start."""
        path = self.folder / "gateway.err"
        return path.read_text(errors="replace") if path.exists() else ""


@contextmanager
def gateway(
    folder: Path,
    *,
    top: str = "",
    broker: str = "",
    rest: str = OWN_NAMESPACE,
    clients: Mapping[str, str] | None = None,
    outside: str | None = None,
    start: bool = True,
    module: str = Gateway.module,
) -> Iterator[Gateway]:
    """A gateway with these settings and clients (name -> password), running unless `start` is False, gone at the end."""
    made = Gateway(folder, top=top, broker=broker, rest=rest, outside=outside)
    made.module = module
    for name, password in (clients or {}).items():
        made.add_client(name, password)
    try:
        if start:
            made.start()
        yield made
    finally:
        if made.running:
            made.kill()


class Mosquitto(NamedTuple):
    """A running mosquitto."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def log(self) -> str:
        """What it has written."""
        return (self.folder / "mosquitto.log").read_text(errors="replace")


@contextmanager
def mosquitto(folder: Path, config: str = "allow_anonymous true") -> Iterator[Mosquitto]:
    """A mosquitto on a free port with these lines of settings. Raises MissingProgramError, ProgramError."""
    program = find("mosquitto", "mosquitto")
    port = free_port()
    file = folder / "mosquitto.conf"
    # Started by root it would become another user, who cannot read a test's folder.
    user = "user root\n" if os.geteuid() == 0 else ""
    file.write_text(f"{user}listener {port} {HOST}\npersistence false\n{config}\n")
    with (folder / "mosquitto.log").open("ab") as log:
        process = subprocess.Popen(
            [program, "-c", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        wait_for_port(port, process, 10)
        yield Mosquitto(port, process, folder)
    finally:
        process.kill()
        process.wait()


def mosquitto_version() -> str:
    """`2.0.11` and the like. Raises MissingProgramError."""
    program = find("mosquitto", "mosquitto")
    # -h prints the version and exits with 1 on purpose.
    text = subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"mosquitto version (\S+)", text)
    return found[1] if found else "unknown"
