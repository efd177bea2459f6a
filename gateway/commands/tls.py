"""`ctxt tls`: an authority of the site's own, and certificates of servers and clients."""

from __future__ import annotations

import json as texts
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from gateway.certificates import (
    DAY,
    DAYS,
    GATEWAY,
    CertificateError,
    FilesError,
    Folder,
    Kind,
    NotThereError,
    date,
)
from gateway.commands import config
from gateway.commands.clients import standing
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.terminal import out, printable, show_table, table, write_json, write_note
from gateway.credentials import ClientNameError, check_name
from gateway.messages import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gateway.certificates import Held, Made

NAME = "tls"
"""The folder's, below the state folder."""

SOON = 14
"""Days before the end that are shown in yellow; the log warns from then on as well."""

_EXITS = ((NotThereError, Exit.NOT_FOUND), (FilesError, Exit.IO))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except CertificateError as error:
        exits = [code for kind, code in _EXITS if isinstance(error, kind)]
        raise CommandError(exits[0] if exits else Exit.INVALID, str(error)) from error


def _folder(given: Path | None, folder: Path | None) -> Folder:
    return Folder(folder if folder is not None else config.load(given).state_dir / NAME)


def init(given: Path | None, addresses: Sequence[str], *, folder: Path | None, days: int | None, force: bool) -> None:
    """Make an authority and the gateway's certificate; the listener's lines go to standard output. Raises CommandError."""
    place = _folder(given, folder)
    with _translated():
        authority, server = place.init(addresses, now=time.time(), days=days or DAYS, force=force)
    write_note(
        f"an authority, good until {date(authority.ends)}: bring {authority.files.certificate} to every client,"
        f" and keep {authority.files.key} to yourself"
    )
    write_note(f"the gateway's certificate for {', '.join(addresses)}, good until {date(server.ends)}; its settings:")
    lines = {"certificate": server.files.certificate, "key": server.files.key, "ca": authority.files.certificate}
    out.print(Text('[[listener]]\nurl = "mqtts://[::]:8883"'))
    for key, path in lines.items():
        out.print(Text(f"{key} = {texts.dumps(str(path), ensure_ascii=False)}"))
    out.print(Text("use_certificate_name = true"))
    host = addresses[0].removeprefix("[").removesuffix("]").replace("*", "NAME", 1)
    write_note(
        f"with these, and without broker.url, it listens there only; restart the gateway, then try: mosquitto_sub -h {host} -p 8883 --cafile {authority.files.certificate}"
        " -u NAME -P PASSWORD -t 'snapshot/#' -v"
    )


def issue(
    given: Path | None,
    name: str,
    addresses: Sequence[str],
    *,
    server: bool,
    folder: Path | None,
    days: int | None,
    force: bool,
) -> None:
    """Make a key and a certificate for a client or another server; their paths go to standard output. Raises CommandError."""
    if not server:
        try:
            check_name(name)
        except ClientNameError as error:
            raise CommandError(Exit.INVALID, str(error)) from error
        if addresses:
            raise CommandError(Exit.USAGE, "--address is for servers: clients are not looked for at an address")
    place = _folder(given, folder)
    with _translated():
        made = place.issue(
            name, Kind.SERVER if server else Kind.CLIENT, addresses, now=time.time(), days=days or DAYS, force=force
        )
    _tell("a server's" if server else "a client's", name, made)
    if not server and folder is None and standing(config.load(given), name) is None:
        write_note(f"client {name} is not known yet: `ctxt client add {name}` lets it connect")


def renew(
    given: Path | None,
    name: str,
    *,
    server: bool | None,
    folder: Path | None,
    days: int | None,
    new_key: bool,
) -> None:
    """Make a certificate once more, from now on; its paths go to standard output. Raises CommandError."""
    kind = None if server is None else Kind.SERVER if server else Kind.CLIENT
    with _translated():
        made, kind = _folder(given, folder).renew(name, kind, now=time.time(), days=days, new_key=new_key)
    _tell(f"a {kind.value}'s", name, made)
    if kind is Kind.SERVER and name == GATEWAY:
        write_note("`ctxt reload` has the gateway show it at once; by itself it does within seconds")


def _tell(whose: str, name: str, made: Made) -> None:
    less = ", with its authority" if made.shortened else ""
    write_note(f"{whose} certificate for {name}, good until {date(made.ends)}{less}; certificate and key:")
    out.print(Text(f"{made.files.certificate}\n{made.files.key}"))


def show(given: Path | None, *, folder: Path | None, json: bool) -> None:
    """List what is in the folder. Raises CommandError (6) where a file there cannot be used."""
    now = time.time()
    with _translated():
        found, faults = _folder(given, folder).all(now)
    if json:
        write_json([_entry(each) for each in found])
    else:
        made = table("NAME", "FOR", "ADDRESSES", "GOOD UNTIL", "LEFT", "KEY")
        for each in found:
            left = (each.period.ends - now) / DAY
            days = Text(f"{left:,.0f} days" if each.fault is None else each.fault)
            days.stylize("red" if each.fault is not None else "yellow" if left < SOON else "")
            made.add_row(
                Text(printable(each.name)),
                Text(each.kind.value),
                Text(printable(", ".join(each.addresses))),
                Text(date(each.period.ends)),
                days,
                Text("here" if each.key else "elsewhere"),
            )
        show_table(made)
    if faults:
        raise CommandError(Exit.INVALID, "; ".join(faults))


def _entry(each: Held) -> dict[str, object]:
    return {
        "name": each.name,
        "kind": each.kind.value,
        "addresses": list(each.addresses),
        "serial": f"{each.serial:X}",
        "begins": rfc3339(int(each.period.begins * 1000)),
        "ends": rfc3339(int(each.period.ends * 1000)),
        "certificate": str(each.files.certificate),
        "key": str(each.files.key) if each.key else None,
        "fault": each.fault,
    }
