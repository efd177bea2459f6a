"""What commands write: tables and colours for people on a terminal, JSON for programs."""

from __future__ import annotations

import os
import sys
from typing import Any

import orjson
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gateway.commands.outcome import CommandError, Exit

out = Console(highlight=False, soft_wrap=True)
"""Standard output. Nothing is cut or wrapped: what is printed may be piped."""

err = Console(stderr=True, highlight=False, soft_wrap=True)
"""Standard error: what people should know beside the result."""

STATUS_STYLE = {
    "live": "green",
    "online": "green",
    "stale": "yellow",
    "unknown": "yellow",
    "disconnected": "red",
    "offline": "red",
    "deleted": "dim",
}


def is_terminal() -> bool:
    """Whether a person is looking at standard output; colours can be turned off with NO_COLOR, and rich heeds that."""
    return out.is_terminal


def write_json(value: Any, *, pretty: bool = False) -> None:
    """One JSON value on standard output: a line, or indented."""
    option = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if pretty else 0)
    sys.stdout.buffer.write(orjson.dumps(value, option=option))
    sys.stdout.buffer.flush()


def show_json(value: Any, *, compact: bool = False) -> None:
    """A JSON value on standard output: one line, or indented, and coloured for people on a terminal."""
    if compact or not is_terminal():
        write_json(value, pretty=not compact)
        return
    from rich.syntax import Syntax  # noqa: PLC0415 - slow to import, and only for people

    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    out.print(Syntax(text, "json", background_color="default", word_wrap=True), soft_wrap=False)


def write_error(sentence: str) -> None:
    """An error's sentence on standard error."""
    err.print(Text.assemble(("error: ", "bold red"), printable(sentence)))


def write_note(sentence: str) -> None:
    """What is not the result but worth knowing, on standard error."""
    err.print(Text(printable(sentence), style="dim"))


def printable(text: str) -> str:
    """Text from elsewhere without what would steer a terminal. New lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def status_text(status: str) -> Text:
    """A status in its colour."""
    return Text(status, style=STATUS_STYLE.get(status, ""))


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the house's looks: no lines, one space more between columns."""
    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def fits(made: Table) -> bool:
    """Whether a table is no wider than the terminal; where nobody looks everything fits."""
    if not is_terminal():
        return True
    return Measurement.get(out, out.options.update(max_width=4000), made).maximum <= out.width


def show_table(made: Table) -> None:
    """Print a table. Where nobody looks it is as wide as it needs to be."""
    if is_terminal():
        out.print(made, soft_wrap=False)
    else:
        wide = Console(highlight=False, width=4000, no_color=True)
        with wide.capture() as captured:
            wide.print(made)
        sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))


def age(seconds: float) -> str:
    """A time span for people: `8 s`, `5 min`, `3 h`, `12 d`."""
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.0f} h"
    return f"{seconds / 86400:.0f} d"


def read_stdin() -> bytes:
    """All of standard input, up to a megabyte. Raises CommandError (130) for Ctrl-C."""
    try:
        return sys.stdin.buffer.read(1 << 20)
    except KeyboardInterrupt:
        raise CommandError(Exit.INTERRUPTED, "interrupted") from None


def environment() -> dict[str, str]:
    """The process's environment, as settings and connections read it."""
    return dict(os.environ)
