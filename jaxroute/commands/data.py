"""`jaxroute data`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.errors import InputError


@dataclasses.dataclass(frozen=True)
class Data:
    """List the workloads: the generated ones by name, and the public traces; or fetch one of the traces.

    `jaxroute data` lists. `jaxroute data --download NAME --to DIR` fetches; give the file to `--workload` afterwards.
    """

    download: str | None = None
    """Name of a public trace to fetch."""
    to: Path | None = None
    """Folder to fetch it to, made if it is not there; by default the present one."""

    def run(self) -> None:
        """Runs it."""
        console = table_console()
        if self.download is not None:
            _fetch(self.download, self.to or Path(), console)
        elif self.to is not None:
            raise InputError(f"--to {self.to}: nothing to fetch; say which trace with --download NAME")
        else:
            _list_generated(console)
            _list_public(console)


def _fetch(name: str, folder: Path, console: Console) -> None:
    from jaxroute.workload.registry import download

    with console.status(f"fetching {name}"):
        result = download(name, folder)
    _say(result.text, console)
    _say(f"licence {result.trace.licence}; please cite {result.trace.citation}", console)


def _list_generated(console: Console) -> None:
    from jaxroute.workload.factory import workload_names

    table = Table(title="generated workloads (`--workload NAME`)")
    table.add_column("name", no_wrap=True)
    table.add_column("what")
    for name, what in workload_names().items():
        table.add_row(name, what)
    console.print(table)


def _list_public(console: Console) -> None:
    """A table of what the traces are; below it their sources, unbroken, so that they can be copied."""
    from jaxroute.workload.registry import PUBLIC_TRACES

    table = Table(title="public traces (`jaxroute data --download NAME --to DIR`, then `--workload FILE`)")
    table.add_column("name", no_wrap=True)
    table.add_column("what")
    table.add_column("rows", justify="right")
    table.add_column("licence")
    table.add_column("format")
    for trace in PUBLIC_TRACES.values():
        table.add_row(trace.name, trace.what, f"{trace.rows:,}", trace.licence, trace.format)
    console.print(table)
    for trace in PUBLIC_TRACES.values():
        checksum = trace.sha256 or "unverified"
        _say(f"{trace.name}\n  {trace.address}\n  sha256 {checksum}\n  cite {trace.citation}", console)


def _say(text: str, console: Console) -> None:
    """Prints lines as they are, however long, so that they can be copied and searched."""
    console.print(text, soft_wrap=True, markup=False, highlight=False)
