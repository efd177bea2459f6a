"""`ctxt run`: the gateway as a process - settings, log, signals, exit codes."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import orjson
import uvloop

import gateway
from gateway.acl.plugin import AclError
from gateway.adapting import AdapterError
from gateway.administration import Administration
from gateway.catalogue import CatalogueError
from gateway.commands import config
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.terminal import environment
from gateway.credentials import CredentialsError
from gateway.errors import CtxtError
from gateway.links import mosquitto
from gateway.links.link import LinkError, TakenOverError
from gateway.service import Service, build
from gateway.settings import load, warnings
from gateway.store import StoreError
from gateway.tokens import TokenKeyError
from gateway.web.errors import WebError

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.settings import Settings

WATCH = 1.0
"""Seconds between two looks at a settings file that is watched."""

_log = logging.getLogger("gateway")


class _TextLines(logging.Formatter):
    """`2026-01-31T09:30:00.000Z WARNING gateway: sentence`."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, and the traceback where there is one."""
        text = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def set_up_log(settings: Settings) -> None:
    """Log to standard error, as `[log]` says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if settings.log.format == "json" else _TextLines())
    logging.basicConfig(level=settings.log.level.upper(), handlers=[handler], force=True)
    # asyncio tells of slow callbacks and of its selector: nothing for who runs a gateway.
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def built(settings: Settings) -> Service:
    """The gateway, not yet started. Raises CommandError: 78 for schemas, settings and ACL plugins, 74 for the state folder."""
    try:
        return build(settings)
    except (CatalogueError, AclError, AdapterError, TokenKeyError) as error:
        raise CommandError(Exit.CONFIG, str(error)) from error
    except (StoreError, CredentialsError, WebError) as error:
        raise CommandError(Exit.IO, str(error)) from error


def run(given: Path | None) -> None:
    """Run the gateway until SIGTERM or SIGINT. Raises CommandError."""
    settings = config.load(given)
    set_up_log(settings)
    for warning in warnings(settings):
        _log.warning("%s", warning)
    path = config.find(given)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, path))


async def _serve(settings: Settings, path: Path | None) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    reread = asyncio.Event()
    loop.add_signal_handler(signal.SIGHUP, reread.set)
    service = built(settings)
    administration = Administration(service, settings, lambda: load(path, environment()))
    if service.control is not None:
        service.control.administrator = administration
    starting = asyncio.ensure_future(service.start())
    waiting = asyncio.ensure_future(asked.wait())
    # A broker outside may be away for long: who is asked to stop meanwhile stops.
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await _stop(service)
        return
    try:
        starting.result()
    except AclError as error:
        waiting.cancel()
        await _stop(service)
        raise CommandError(Exit.CONFIG, str(error)) from error
    except WebError as error:
        waiting.cancel()
        await _stop(service)
        raise CommandError(Exit.IO, str(error)) from error
    except LinkError as error:
        waiting.cancel()
        await _stop(service)
        raise CommandError(Exit.NO_PLACE if isinstance(error, TakenOverError) else Exit.IO, str(error)) from error
    outside = settings.broker.outside
    if outside is not None and outside.local:
        for warning in mosquitto.warnings(settings.link.broker_config or mosquitto.SETTINGS, outside.port):
            _log.warning("%s", warning)
    _tune_memory()
    objects = len(service.engine.objects)
    sys.stdout.write(
        f"ctxt-gateway {gateway.__version__} {service.verb} {service.urls[0]}, "
        f"epoch {service.epoch}, {objects:,} object{'s' * (objects != 1)}, state in {settings.state_dir}\n"
        + "".join(f"also on {url}\n" for url in service.urls[1:])
    )
    sys.stdout.flush()
    rereading = loop.create_task(_reread(administration, reread, path if settings.watch else None))
    assert service.failed is not None
    await asyncio.wait((waiting, service.failed), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    rereading.cancel()
    reason = service.failed.exception() if service.failed.done() and not service.failed.cancelled() else None
    if reason is not None:
        # Closing fails for the same reason, most likely: the first one is told.
        with suppress(CommandError):
            await _stop(service)
        code = Exit.NO_PLACE if isinstance(reason, TakenOverError) else Exit.IO
        raise CommandError(code, f"the gateway cannot go on: {reason}")
    await _stop(service)
    _log.info("stopped")


async def _reread(administration: Administration, asked: asyncio.Event, watched: Path | None) -> None:
    """Read the settings again at each SIGHUP, and where a file is watched when it has changed and stayed so for a moment."""
    seen = changing = _stamp(watched)
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), None if watched is None else WATCH)
        if not asked.is_set():
            before, changing = changing, _stamp(watched)
            if changing in (seen, None) or changing != before:
                continue
        asked.clear()
        seen = _stamp(watched)
        try:
            await administration.reload()
        except CtxtError as error:
            _log.error("%s", error)  # whoever edits settings needs no traceback


def _stamp(path: Path | None) -> tuple[int, int, int] | None:
    """What is different when a file has been written or replaced; None where there is none."""
    try:
        found = path.stat() if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size, found.st_ino)


def _tune_memory() -> None:
    """What was loaded stays: the collector need not look at it again, and what comes and goes has no cycles to speak of."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _stop(service: Service) -> None:
    try:
        await service.stop()
    except StoreError as error:
        raise CommandError(Exit.IO, str(error)) from error
