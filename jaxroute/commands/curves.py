"""`jaxroute curves`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.learning import Learned


@dataclasses.dataclass(frozen=True)
class Curves:
    """Put training runs side by side: their learning curves in one picture, and what each had learned at its end.

    All figures are of the requests that the runs were validated on, against round robin: for a comparison on others
    give the runs to `evaluate`.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    """Training runs."""
    out: Annotated[Path, tyro.conf.arg(metavar="PNG")]
    """Picture to write."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.learning import learned
        from jaxroute.plots import save
        from jaxroute.train.scalars import FILE
        from jaxroute.training_plots import learning_curve

        if not self.runs:
            raise InputError("no runs: give their folders, as in jaxroute curves runs/a runs/b --out curves.png")
        named = [(folder.resolve().name, folder / FILE) for folder in self.runs]
        rows = [learned(label, path) for label, path in named]
        try:
            save(learning_curve(named), self.out)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another place") from error
        console = table_console()
        console.print(_table(rows))
        console.print(f"written to {self.out}")


def _table(rows: list[Learned]) -> Table:
    table = Table(title="last third of the validations, % against round robin", title_justify="left")
    table.add_column("run")
    for name in ("seeds", "steps", "s", "mean E2E", "least to most", "p99 E2E", "p99 TTFT", "makespan", "held %"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.label,
            str(row.seeds),
            f"{row.env_steps:,}",
            f"{row.seconds:.0f}",
            f"{np.mean(row.e2e_mean):+.1f}",
            f"[{min(row.e2e_mean):+.1f}, {max(row.e2e_mean):+.1f}]",
            f"{row.e2e_p99:+.1f}",
            f"{row.ttft_p99:+.1f}",
            f"{row.makespan:+.1f}",
            "-" if np.isnan(row.hold_share) else f"{100 * row.hold_share:.1f}",
        )
    return table
