"""The progress of a benchmark."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Iterator


class Steps:
    """The progress of a run, redrawn only between two rounds so that it takes nothing from them."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=total)

    def __call__(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        self._progress.refresh()

    def done(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)
        self._progress.refresh()


@contextmanager
def steps(total: int) -> Iterator[Steps]:
    """Show progress on standard error."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as progress:
        yield Steps(progress, total)
