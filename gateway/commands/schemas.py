"""`ctxt schema`: the catalogue - the shipped schemas and those of the settings' folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from gateway.catalogue import Catalogue, CatalogueError, UnknownSchema, check_file
from gateway.commands import config
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.terminal import out, printable, show_json, show_table, table, write_json
from gateway.data import folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gateway.catalogue import Schema


def _catalogue(given: Path | None) -> Catalogue:
    try:
        return Catalogue.load(folder("schemas"), *config.load(given).schemas)
    except CatalogueError as error:
        raise CommandError(Exit.CONFIG, str(error)) from error


def show_all(given: Path | None, *, json: bool) -> None:
    """List the schemas of Data Objects and their children."""
    catalogue = _catalogue(given)
    if json:
        write_json([_facts(schema) for schema in catalogue])
        return
    made = table("SCHEMA", "SCHEME", "CHILDREN", "DESCRIPTION")
    for schema in catalogue:
        children = ", ".join(schema.children)
        description = str(schema.document.get("description", "")).partition(". ")[0].rstrip(".")
        made.add_row(
            Text(schema.name, style="bold"),
            schema.scheme or "(child)",
            children,
            Text(printable(description), style="dim"),
        )
    show_table(made)


def _facts(schema: Schema) -> dict[str, Any]:
    return {
        "name": schema.name,
        "url": schema.url,
        "scheme": schema.scheme,
        "children": dict(schema.children),
        "description": schema.document.get("description"),
    }


def show(given: Path | None, name: str, *, json: bool) -> None:
    """Print one schema document. Raises CommandError (3) where there is none of that name or URL."""
    try:
        schema = _catalogue(given).get(name)
    except UnknownSchema as error:
        raise CommandError(Exit.NOT_FOUND, str(error)) from error
    show_json(schema.document, compact=json)


def check(given: Path | None, files: Sequence[Path], *, json: bool) -> None:
    """Check schema files as they would be beside the catalogue's. Raises CommandError (6) when one cannot be taken."""
    folders = (folder("schemas"), *config.load(given).schemas)
    found = {path: check_file(path, *folders) for path in files}
    bad = sum(1 for problems in found.values() if problems)
    if json:
        write_json(
            [
                {
                    "file": str(path),
                    "ok": not problems,
                    "problems": [
                        {"place": each.place, "reason": each.reason, "remedy": each.remedy} for each in problems
                    ],
                }
                for path, problems in found.items()
            ]
        )
    else:
        for path, problems in found.items():
            if not problems:
                out.print(Text.assemble(("ok    ", "green"), printable(str(path))))
            for problem in problems:
                out.print(Text.assemble(("wrong ", "red"), printable(str(problem))))
    if bad:
        raise CommandError(Exit.INVALID, f"{bad} of {len(found)} schema file{'s' * (len(found) != 1)} cannot be taken")
