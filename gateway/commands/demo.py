"""`ctxt demo`: starts the house, shows it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway import demo as house
from gateway.client.scopes import Scope
from gateway.client.target import Target
from gateway.commands.changes import text as value_text
from gateway.commands.observe import Change, Follower, line_of, show
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.run import built
from gateway.commands.terminal import age, is_terminal, out, printable, status_text, write_note
from gateway.credentials import Credentials, generate_password
from gateway.links.link import LinkError
from gateway.messages import instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.service import Service

PATIENCE = 10.0
PARTING = 0.5
TELLINGS = 6
"""Seconds that the demo's clients have to go, and how often they are told."""

FRAMES = 4
"""Pictures a second: fast enough to look alive, slow enough for a Raspberry Pi over ssh."""

FRESH = 1.0
"""Seconds for which a changed row stands out."""

HEAD = f"ctxt://{house.HOME}/"


def run(port: int, duration: float | None) -> None:
    """Show the house until Ctrl-C, SIGTERM, SIGHUP or the end of `duration` seconds. Raises CommandError."""
    with (
        tempfile.TemporaryDirectory(prefix="ctxt-demo-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_show(Path(folder), port, duration))


async def _show(folder: Path, port: int, duration: float | None) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked.set)
    chosen = house.settings(folder, port)
    passwords = await asyncio.to_thread(_make_clients, folder)
    service = built(chosen)
    try:
        await service.start()
    except LinkError as error:
        await service.stop()
        raise CommandError(
            Exit.IO,
            f"cannot listen on 127.0.0.1 port {port}: another broker is running there; choose another: "
            f"ctxt demo --port {port + 1000 if port < 64_000 else 2883}",
        ) from error
    port = service.address[1]
    target = Target("127.0.0.1", port, house.TABLE, passwords[house.TABLE])
    here = Target("127.0.0.1", port)
    lives = house.lives(here, passwords)
    follower = Follower(target, [Scope.below(HEAD)], PATIENCE, tell=_ignore, note=_ignore)
    _introduce(port)
    looking = asyncio.create_task(_draw(follower, service) if is_terminal() else _print(follower))
    work = [
        asyncio.create_task(follower.follow()),
        *(asyncio.create_task(_live(life, follower)) for life in lives),
        looking,
    ]
    try:
        await _until(asked, duration, work, service)
    finally:
        # A client that is cancelled while it connects may miss it: it is told again.
        for _ in range(TELLINGS):
            going = [task for task in work if not task.done()]
            if not going:
                break
            for task in going:
                task.cancel()
            await asyncio.wait(going, timeout=PARTING)
        await service.stop()
        for task in work:
            if task.done() and not task.cancelled():
                task.exception()
    reports = sum(life.reports for life in lives)
    write_note(f"{reports:,} reports, {service.counters.commits:,} transactions; the demo's folder is removed")


async def _live(life: house.Life, follower: Follower) -> None:
    """A device comes to life when somebody looks: so all of it is seen."""
    await follower.begun.wait()
    await life.live()


def _ignore(_said: object) -> None:
    pass


async def _until(
    asked: asyncio.Event, duration: float | None, work: list[asyncio.Task[None]], service: Service
) -> None:
    """Wait for the end. What fails meanwhile is raised."""
    assert service.failed is not None
    waiting = asyncio.create_task(asked.wait())
    watched: list[asyncio.Future[Any]] = [waiting, service.failed, *work]
    done, _ = await asyncio.wait(watched, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for each in done - {waiting}:
        reason = each.exception()
        if reason is not None:
            raise (
                reason
                if isinstance(reason, CommandError)
                else CommandError(Exit.IO, f"the demo cannot go on: {reason}")
            )


def _make_clients(folder: Path) -> dict[str, str]:
    """Every device and the table get a password of their own; the guest's is on the screen."""
    passwords = {name: generate_password() for name in (*house.clients(), house.TABLE)}
    passwords[house.GUEST] = house.GUEST_PASSWORD
    with closing(Credentials(folder / "clients.db")) as credentials:
        for name, password in passwords.items():
            credentials.add(name, password)
    return passwords


# ---- what is seen ------------------------------------------------------------------------------------------------------


def _introduce(port: int) -> None:
    """The lines to try. They stay above the table, so that they can be copied."""
    for effect, commands in house.lines(port):
        out.print(Text(f"# {effect}", style="dim"))
        for command in commands:
            out.print(Text(command, style="cyan"))
    sys.stdout.flush()


async def _print(follower: Follower) -> None:
    """A line for each change, for whoever reads a pipe or a file."""
    end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def tell(change: Change) -> None:
        show(line_of(change))

    follower.tell = tell
    await end


async def _draw(follower: Follower, service: Service) -> None:
    """The live table."""
    touched: dict[str, float] = {}

    def tell(change: Change) -> None:
        touched[change.url] = time.monotonic()

    follower.tell = tell
    with Live(console=out, auto_refresh=False, vertical_overflow="ellipsis") as live:
        try:
            while True:
                live.update(picture(follower, touched, out.width, service.counters.commits), refresh=True)
                await asyncio.sleep(1 / FRAMES)
        finally:
            live.update(picture(follower, {}, out.width, service.counters.commits), refresh=True)


def picture(follower: Follower, touched: Mapping[str, float], width: int, commits: int) -> Group:
    """The table as it is now. Narrow terminals get the values without the names that their units tell."""
    now = time.time()
    seen = time.monotonic()
    made = Table(box=None, padding=(0, 2, 0, 0), expand=True, header_style="dim", pad_edge=False)
    made.add_column("OBJECT", no_wrap=True, overflow="ellipsis", ratio=None)
    made.add_column("VALUES", no_wrap=True, overflow="ellipsis", ratio=1)
    made.add_column("STATUS", no_wrap=True, min_width=14)
    made.add_column("VERSION", no_wrap=True, justify="right")
    made.add_column("AGE", no_wrap=True, justify="right", min_width=5)
    copies = follower.copies
    for copy in copies:
        status = follower.status(copy)
        fresh = seen - touched.get(copy.url, 0.0) < FRESH
        modified = instant(copy.modified) or now
        made.add_row(
            Text(printable(copy.url.removeprefix(HEAD))),
            values(copy.data, names=width >= 110, fresh=fresh and status == "live", quiet=status != "live"),
            _lamp(status),
            f"{copy.version:,}",
            Text(age(now - modified), style="dim"),
        )
    clock = f"{datetime.now().astimezone():%H:%M:%S}"
    title = Text(no_wrap=True, overflow="ellipsis")
    title.append(f" {HEAD} ", style="bold reverse")
    title.append(f"  {len(copies)} objects · {commits:,} commits · {clock} · Ctrl-C ends the demo", style="dim")
    return Group(title, made)


def _lamp(status: str) -> Text:
    """The status with a lamp in its colour."""
    lamp = Text("● " if status == "live" else "○ ", style=status_text(status).style)
    return lamp.append_text(status_text(status))


def values(data: dict[str, Any], *, names: bool, fresh: bool, quiet: bool) -> Text:
    """The readings of a Context object in one line."""
    line = Text()
    default = data.get("unit", "")
    for name, reading in data.get("values", {}).items():
        if line:
            line.append("  ")
        unit = reading.get("unit", default)
        if names or not unit:
            line.append(f"{printable(name)} ", style="dim")
        line.append(
            printable(value_text(reading["value"])), style="dim" if quiet else "bold bright_white" if fresh else ""
        )
        if unit:
            line.append(f" {printable(unit)}", style="dim")
    return line
