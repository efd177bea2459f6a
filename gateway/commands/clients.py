"""`ctxt client`: who may connect. All of it works while the gateway runs; the gateway notices."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003 - contextmanager's return type
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from gateway import control
from gateway.acl.plugin import AclError, keeps
from gateway.commands import config
from gateway.commands.outcome import CommandError, Exit, exit_of_code
from gateway.commands.terminal import out, read_stdin, show_table, table, write_json, write_note
from gateway.credentials import (
    Client,
    Credentials,
    CredentialsError,
    CredentialsUnavailableError,
    UnknownClientError,
    generate_password,
)
from gateway.messages import rfc3339

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.settings import Settings

FILE = "clients.db"


@contextmanager
def credentials(given: Path | None) -> Iterator[Credentials]:
    """The clients' file of the settings in effect; made, with its folder, where it is not there. Raises CommandError."""
    settings = config.load(given)
    folder = settings.state_dir
    try:
        foreign = keeps(settings.acl.plugin)
    except AclError as error:
        raise CommandError(Exit.CONFIG, str(error)) from error
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            Exit.IO, f"cannot make the state folder {folder}: {error.strerror or error}; set another state_dir"
        ) from error
    try:
        with closing(Credentials(folder / FILE, foreign=foreign)) as known:
            yield known
    except UnknownClientError as error:
        raise CommandError(Exit.NOT_FOUND, str(error)) from error
    except CredentialsUnavailableError as error:
        raise CommandError(Exit.IO, str(error)) from error
    except CredentialsError as error:
        raise CommandError(Exit.INVALID, str(error)) from error


def _password(name: str, *, from_stdin: bool) -> tuple[str, bool]:
    """The password to set, and whether it was made here. Raises CommandError."""
    if not from_stdin:
        return generate_password(), True
    try:
        return read_stdin().decode().removesuffix("\n").removesuffix("\r"), False
    except UnicodeDecodeError as error:
        raise CommandError(Exit.INVALID, f"the password of client {name!r} cannot be set: it is not UTF-8") from error


def _tell(done: str, password: str, *, made: bool) -> None:
    """The password alone goes to standard output, so that a script can take it."""
    if made:
        write_note(f"{done}; this is the password, shown only now:")
        out.print(Text(password))
    else:
        write_note(done)


def standing(settings: Settings, name: str) -> bool | None:
    """Whether a client may connect; None where it is not known. Raises CommandError."""
    file = settings.state_dir / FILE
    if not file.exists():
        return None
    try:
        with closing(Credentials(file)) as credentials:
            return credentials.admitted(name)
    except CredentialsError as error:
        raise CommandError(Exit.IO, str(error)) from error


def hold(given: Path | None) -> None:
    """Return when a gateway that runs goes by the change. Raises CommandError where its broker may not."""
    try:
        control.ask(config.load(given).state_dir, {"do": "look"}, patience=control.LONGEST_WORK + 1)
    except control.NotRunningError:
        return
    except control.ControlError as error:
        if error.code is not None:
            raise CommandError(exit_of_code(error.code), str(error)) from error
        write_note(f"it holds within a second or two; it cannot be said when: {error}")


def add(given: Path | None, name: str, *, from_stdin: bool) -> None:
    """Let a new client connect."""
    with credentials(given) as known:
        password, made = _password(name, from_stdin=from_stdin)
        known.add(name, password)
    _tell(f"client {name} added", password, made=made)
    hold(given)


def set_password(given: Path | None, name: str, *, from_stdin: bool) -> None:
    """Give a client another password; who is connected by the old one is disconnected."""
    with credentials(given) as known:
        password, made = _password(name, from_stdin=from_stdin)
        known.set_password(name, password)
    _tell(f"client {name} has another password", password, made=made)
    hold(given)


def remove(given: Path | None, name: str) -> None:
    """Forget a client; a connected one is disconnected."""
    with credentials(given) as known:
        known.remove(name)
    hold(given)
    write_note(f"client {name} removed; its objects stay, and nobody reports them")


def set_disabled(given: Path | None, name: str, *, disabled: bool) -> None:
    """Refuse a client's log-in, or take that back."""
    with credentials(given) as known:
        if disabled:
            known.disable(name)
        else:
            known.enable(name)
    hold(given)
    write_note(f"client {name} {'may no longer connect' if disabled else 'may connect again'}")


def show(given: Path | None, *, json: bool) -> None:
    """List the clients."""
    with credentials(given) as known:
        clients = known.names()
    if json:
        write_json([_facts(client) for client in clients])
        return
    if not clients:
        write_note("there are no clients yet: `ctxt client add NAME` makes one")
        return
    made = table("CLIENT", "MAY CONNECT", "CREATED", "CHANGED")
    for client in clients:
        made.add_row(
            client.name,
            Text("no", style="red") if client.disabled else Text("yes", style="green"),
            rfc3339(client.created)[:19].replace("T", " "),
            rfc3339(client.changed)[:19].replace("T", " "),
        )
    show_table(made)


def _facts(client: Client) -> dict[str, object]:
    return {
        "name": client.name,
        "disabled": client.disabled,
        "created": rfc3339(client.created),
        "changed": rfc3339(client.changed),
    }
