"""Rules in files that a broker reads when it is told to: read, replaced whole, and the ways of telling it."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.acl.plugin import AclError

if TYPE_CHECKING:
    from gateway.settings import LinkSettings

MARK = "# Written by ctxt-gateway, again at each change: what is written here by hand is lost."
"""The first line of each file of ours."""


def read(path: Path) -> str:
    """A file of ours, "" where there is none or an empty one. Raises AclError for somebody else's, OSError."""
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""
    if text and not text.startswith(MARK):
        raise AclError(f"{path} is not the gateway's: move it away, or let the settings name another place")
    return text


def replace(path: Path, text: str) -> None:
    """The whole file or the old one; its owner may write it and its group read it. Raises OSError."""
    temporary = path.with_name(path.name + ".new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        # Whatever the umask is.
        os.fchmod(opened.fileno(), 0o640)
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    temporary.rename(path)


def own_password(link: LinkSettings, plugin: str) -> bytes:
    """The gateway's password: the first line of its file, for the broker's file needs it too. Raises AclError."""
    path = link.password_file
    if path is None:
        raise AclError(f"acl.plugin is {plugin}: set link.password_file, for the broker's file needs the gateway's too")
    try:
        line = path.read_bytes().split(b"\n", 1)[0].removesuffix(b"\r")
    except OSError as error:
        raise AclError(f"cannot read link.password_file {path}: {error.strerror or error}") from error
    if not line:
        raise AclError(f"link.password_file {path} is empty: write a password into its first line")
    return line


class Reload(NamedTuple):
    """How a program is told to read its files again: SIGHUP to the process of its pid file, a command, or both."""

    program: str
    """What the kernel calls its process, and its table in the settings."""
    table: str
    pid_file: Path | None
    command: tuple[str, ...]
    timeout: float
    """Seconds that the command may take."""

    @property
    def known(self) -> bool:
        """Whether the settings say how."""
        return self.pid_file is not None or bool(self.command)

    async def __call__(self) -> None:
        """Tell it. Raises AclError where that cannot be done."""
        try:
            if self.pid_file is not None:
                os.kill(self._process(self.pid_file), signal.SIGHUP)
            if self.command:
                await self._run()
        except (OSError, ValueError) as error:
            raise AclError(
                f"{self.program} cannot be told to read its files again: {error}; see {self.table}.pid_file and"
                f" {self.table}.reload_command"
            ) from error

    def _process(self, path: Path) -> int:
        number = int(path.read_text()[:20])
        if number <= 1:
            raise AclError(f"{path} has no process in it: is {self.program} running?")
        try:
            name = Path(f"/proc/{number}/comm").read_text().strip()
        except FileNotFoundError:
            raise AclError(f"{path} names process {number}, which is gone: is {self.program} running?") from None
        # A pid file that was left behind may name anybody's process by now.
        if name != self.program[:15]:
            raise AclError(f"{path} names process {number}, and that is {name!r}: is {self.program} running?")
        return number

    async def _run(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(self.timeout):
                _, said = await process.communicate()
        except TimeoutError:
            raise AclError(f"{self.table}.reload_command does not end within {self.timeout:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        if process.returncode:
            words = said.decode("utf-8", "replace").strip()[-200:]
            raise AclError(f"{self.table}.reload_command ends with {process.returncode}: {words or 'it says nothing'}")
