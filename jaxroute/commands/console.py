"""The console that the subcommands print to."""

from __future__ import annotations

from rich.console import Console

TABLE_WIDTH = 130
"""Columns of the tables where the output is no terminal."""


def table_console() -> Console:
    """A console that is wide enough for the tables where nobody looks on (a file, a pipe)."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)
