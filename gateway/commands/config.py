"""`ctxt config`: the settings file: where it is looked for, what is wrong with it, what is in effect."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import settings as room
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.terminal import environment, out, write_json, write_note
from gateway.data import folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.settings import Settings

HERE = Path("gateway.toml")
SYSTEM = Path("/etc/ctxt-gateway/gateway.toml")


def find(given: Path | None) -> Path | None:
    """The settings file: the given one (--config or CTXT_CONFIG), gateway.toml here, the system's, or None for the defaults."""
    if given is not None:
        return given
    return next((path for path in (HERE, SYSTEM) if path.is_file()), None)


def load(given: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in effect. Raises CommandError (78) with every problem."""
    try:
        return room.load(find(given), environment() if environ is None else environ)
    except room.SettingsError as error:
        raise CommandError(Exit.CONFIG, str(error)) from error


@dataclass(frozen=True, slots=True)
class _Finding:
    place: str
    reason: str
    suggestion: str | None


def check(given: Path | None, *, json: bool) -> None:
    """Say what is wrong with the settings and the schemas they name. Raises CommandError (78) when there is something."""
    path = find(given)
    source = str(path) if path is not None else None
    problems: list[_Finding] = []
    warnings: list[str] = []
    sentence = ""
    try:
        settings = room.load(path, environment())
    except room.SettingsError as error:
        sentence = str(error)
        problems = [_Finding(each.place, each.reason, each.suggestion) for each in error.problems]
    else:
        warnings = [*room.warnings(settings), *_certificates(settings)]
        for place, problem in (("schemas", _schemas_problem(settings)), ("adapter", _adapters_problem(settings))):
            if problem is not None:
                sentence = f"{sentence}\n{problem}" if sentence else problem
                problems.append(_Finding(place, problem, None))
    if json:
        write_json(
            {
                "file": source,
                "ok": not problems,
                "problems": [
                    {"place": each.place, "reason": each.reason, "suggestion": each.suggestion} for each in problems
                ],
                "warnings": warnings,
            }
        )
    else:
        for warning in warnings:
            write_note(f"warning: {warning}")
    if problems:
        raise CommandError(Exit.CONFIG, sentence)
    if not json:
        out.print(f"{source or 'the defaults (no settings file)'}: can be used", markup=False)


def _schemas_problem(settings: Settings) -> str | None:
    """What is wrong with the schemas that the settings name."""
    from gateway.catalogue import Catalogue, CatalogueError  # noqa: PLC0415 - slow to import, and only this needs it

    try:
        catalogue = Catalogue.load(folder("schemas"), *settings.schemas)
        for namespace in settings.namespace:
            catalogue.get(namespace.schema_name)
    except CatalogueError as error:
        return str(error)
    return None


def _adapters_problem(settings: Settings) -> str | None:
    """What is wrong with the adapters that the settings name."""
    if not settings.adapter:
        return None
    from gateway.adapting import AdapterError  # noqa: PLC0415 - as below
    from gateway.service import adapters_of  # noqa: PLC0415 - slow to import, and only this needs it

    try:
        adapters_of(settings)
    except AdapterError as error:
        return str(error)
    return None


def _certificates(settings: Settings) -> Iterator[str]:
    """Files of TLS that cannot be used, or that end soon."""
    named = [(each.certificate, each.key, each.ca) for each in settings.listener]
    named.append((settings.link.certificate, settings.link.key, settings.link.ca))
    for certificate, key, ca in named:
        if certificate is None:
            continue
        from gateway.broker.listeners import ListenError, TlsFiles, ending  # noqa: PLC0415 - only where there is TLS

        files = TlsFiles(certificate, key, ca)
        try:
            files.context()
            yield from ending(files, files.periods(), time.time())
        except ListenError as error:
            yield str(error)


def show(given: Path | None, *, json: bool) -> None:
    """Print the settings in effect, as TOML or JSON."""
    sys.stdout.write(room.show(load(given), json))


def init(path: Path, *, force: bool) -> None:
    """Write the commented default settings to a new file. Raises CommandError."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(room.render_default())
    except FileExistsError:
        raise CommandError(
            Exit.FAILED, f"{path} is there already: name another file, or --force to replace it"
        ) from None
    except OSError as error:
        raise CommandError(Exit.IO, f"cannot write {path}: {error.strerror or error}") from error
    out.print(f"{path} written: every line that is commented out shows a default", markup=False)


def path() -> None:
    """Print the folder of the shipped files, for scripts."""
    sys.stdout.write(f"{folder('config')}\n")
