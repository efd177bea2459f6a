"""`ctxt acl install`: what a broker outside needs to go by the gateway's rights, written where it looks for it."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.acl.mosquitto import ACL_FILE, NAME, PASSWORD_FILE, MosquittoAcl
from gateway.acl.plugin import AclError, Context
from gateway.catalogue import Catalogue
from gateway.commands import config
from gateway.commands.outcome import CommandError, Exit
from gateway.commands.terminal import write_json, write_note
from gateway.credentials import Credentials, Foreign, generate_password
from gateway.data import folder as shipped
from gateway.links.mosquitto import lines
from gateway.service import rights_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.settings import Settings

SYSTEM = Path("/etc/mosquitto")
UNITS = Path("/etc/systemd/system")
USER = "mosquitto"

READY = 5.0
"""Seconds that mosquitto has to start when the configuration is tried out."""

_OURS = "# mosquitto 2.0 beside a ctxt gateway."
_ALONE = frozenset({"acl_file", "password_file", "allow_anonymous", "per_listener_settings"})
"""Settings that hold for the whole of mosquitto: another file may not say something else."""


class Piece(NamedTuple):
    """One file to write."""

    path: Path
    text: str
    secret: bool = False
    """It is for mosquitto only."""


def mosquitto(given: Path | None, where: Path | None, *, show: bool, json: bool) -> None:
    """Write (or print) the configuration of a mosquitto beside this gateway, and try it out. Raises CommandError."""
    settings = config.load(given)
    _check_settings(settings)
    place = SYSTEM if where is None else where
    if not show:
        _own_password(settings)
    pieces = list(_pieces(settings, place))
    if show:
        sys.stdout.write("".join(f"# ---- {piece.path}\n{piece.text}\n" for piece in pieces if not piece.secret))
        return
    try:
        for piece in pieces:
            _write(piece)
    except OSError as error:
        raise CommandError(
            Exit.IO, f"cannot write {error.filename}: {error.strerror or error}; run it as root, or with --print"
        ) from error
    tried = _try_out(place)
    others = list(_others(place))
    if json:
        write_json({"written": [str(piece.path) for piece in pieces], "tried": tried, "conflicts": others})
        return
    for piece in pieces:
        write_note(f"written: {piece.path}")
    if not tried:
        write_note("mosquitto is not installed here, so this could not be tried out: sudo apt install mosquitto")
    for sentence in others:
        write_note(f"warning: {sentence}")
    if any(piece.path.suffix == ".path" for piece in pieces):
        write_note("now: sudo systemctl daemon-reload && sudo systemctl enable --now ctxt-mosquitto.path")
    write_note("now: sudo systemctl restart mosquitto, and start the gateway again")


def _check_settings(settings: Settings) -> None:
    missing = []
    if settings.broker.outside is None:
        missing.append('[broker]\nurl = "mqtt://127.0.0.1:1883"')
    if not settings.link.username or settings.link.password_file is None:
        missing.append(f'[link]\nusername = "gateway"\npassword_file = "{settings.state_dir}/link.password"')
    if settings.acl.plugin != NAME:
        missing.append(f'[acl]\nplugin = "{NAME}"')
    if missing:
        raise CommandError(
            Exit.CONFIG, "the settings do not say that mosquitto is to be used; add\n\n" + "\n".join(missing)
        )


def _own_password(settings: Settings) -> None:
    """The gateway's own password; made where there is none."""
    path = settings.link.password_file
    assert path is not None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return
    except OSError as error:
        raise CommandError(Exit.IO, f"cannot write {path}: {error.strerror or error}") from error
    with os.fdopen(file, "w") as opened:
        opened.write(generate_password() + "\n")
        if os.geteuid() == 0:
            # The gateway runs as the owner of its folder.
            home = path.parent.stat()
            os.fchown(opened.fileno(), home.st_uid, home.st_gid)
    write_note(f"written: {path}, a new password for the gateway")


def _pieces(settings: Settings, place: Path) -> Iterator[Piece]:
    outside = settings.broker.outside
    assert outside is not None
    text = (shipped("config") / "mosquitto/ctxt.conf").read_text().replace(str(SYSTEM), str(place))
    yield Piece(place / "conf.d/ctxt.conf", re.sub(r"(?m)^listener 1883 ", f"listener {outside.port} ", text))
    target = place / "ctxt"
    source = settings.mosquitto.folder
    rules, passwords = _first(settings)
    yield Piece(target / PASSWORD_FILE, passwords, secret=True)
    yield Piece(target / ACL_FILE, rules, secret=True)
    if source is not None or settings.mosquitto.pid_file is not None or settings.mosquitto.reload_command:
        # Somebody else sees to it.
        return
    if place == SYSTEM and not UNITS.is_dir():
        return
    for name in ("ctxt-mosquitto.path", "ctxt-mosquitto.service"):
        unit = (shipped("config") / "mosquitto" / name).read_text()
        unit = unit.replace("/var/lib/ctxt-gateway", str(settings.state_dir.resolve())).replace(str(SYSTEM), str(place))
        yield Piece((UNITS if place == SYSTEM else place) / name, unit)


def _first(settings: Settings) -> tuple[str, str]:
    """Mosquitto's files as the gateway writes them at its first start; it has no objects yet."""
    settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        closing(Credentials(settings.state_dir / "clients.db", foreign=Foreign(NAME, MosquittoAcl.hashed))) as known,
        tempfile.TemporaryDirectory() as temporary,
    ):
        rights = rights_of(settings, Catalogue.load(shipped("schemas"), *settings.schemas))
        inner = settings.mosquitto.model_copy(
            update={"folder": Path(temporary), "pid_file": None, "reload_command": ()}
        )
        plugin = MosquittoAcl(Context(settings.model_copy(update={"mosquitto": inner}), rights, known))
        try:
            asyncio.run(plugin.start())
        except AclError as error:
            raise CommandError(Exit.CONFIG, str(error)) from error
        return (Path(temporary) / ACL_FILE).read_text(), (Path(temporary) / PASSWORD_FILE).read_text()


def _write(piece: Piece) -> None:
    piece.path.parent.mkdir(parents=True, exist_ok=True)
    if piece.path.suffix == ".conf" and piece.path.exists() and not piece.path.read_text().startswith(_OURS):
        raise CommandError(Exit.FAILED, f"{piece.path} is not from here: move it away, and run this again")
    temporary = piece.path.with_name(piece.path.name + ".new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640 if piece.secret else 0o644)
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        os.fchmod(opened.fileno(), 0o640 if piece.secret else 0o644)
        opened.write(piece.text)
    if piece.secret and os.geteuid() == 0:
        with suppress(LookupError):
            shutil.chown(temporary, group=USER)
    temporary.rename(piece.path)


def _try_out(place: Path) -> bool:
    """Start mosquitto with the configuration, on a port of its own; False where it is not installed. Raises CommandError."""
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        return False
    text = (place / "conf.d/ctxt.conf").read_text()
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        ports = iter([_free_port(), _free_port()])
        file = Path(temporary) / "mosquitto.conf"
        file.write_text(re.sub(r"(?m)^listener \d+", lambda _: f"listener {next(ports)}", text))
        port = int(re.findall(r"(?m)^listener (\d+)", file.read_text())[0])
        process = subprocess.Popen(  # noqa: S603  # the program and the file are ours
            [program, "-c", str(file)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + READY
            while process.poll() is None and time.monotonic() < deadline:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return True
                time.sleep(0.02)
        finally:
            process.terminate()
            said = process.communicate()[0].decode("utf-8", "replace")
    problems = [line.partition(": ")[2] for line in said.splitlines() if "rror" in line] or ["it does not listen"]
    raise CommandError(Exit.CONFIG, f"mosquitto cannot use the new configuration: {problems[0]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _others(place: Path) -> Iterator[str]:
    """What other files of this mosquitto say that cannot stand beside ours."""
    main = place / "mosquitto.conf"
    own = place / "conf.d/ctxt.conf"
    try:
        found = list(lines(main))
    except OSError:
        return
    if not any(line.path == own for line in found):
        yield f"{main} does not read {own}: add the line include_dir {own.parent}"
    ports = {line.value.split()[0] for line in lines(own) if line.name == "listener"}
    for line in found:
        if line.path == own:
            continue
        if line.name in _ALONE:
            yield f"{line.path}:{line.number} sets {line.name} too: remove it there"
        elif line.name in ("listener", "port") and line.value and line.value.split()[0] in ports:
            yield f"{line.path}:{line.number} listens on port {line.value.split()[0]} too: remove it there"
