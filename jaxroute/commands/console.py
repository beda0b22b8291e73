"""The console that the subcommands print to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

TABLE_WIDTH = 150
"""Columns of the tables where the output is no terminal."""


def table_console() -> Console:
    """A console that is wide enough for the tables where nobody looks on (a file, a pipe)."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)


@contextmanager
def progress_bar(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that the yielded function moves: called with what is done so far and all of it."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
