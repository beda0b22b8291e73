"""`jaxroute predictor show`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from jaxroute.commands.console import table_console

if TYPE_CHECKING:
    from jaxroute.predictor.predictor_file import PredictorFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show:
    """Say what a length predictor is: its network, buckets and tasks, and how well it was measured to predict."""

    model: str = "default"
    """default (the shipped one), or a folder that `jaxroute predictor train` wrote."""
    time: bool = False
    """Measure how long a prompt takes, from text to bucket (OPENBLAS_NUM_THREADS=1 for one core)."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.predictor.folder import find_predictor, read_predictor

        path = find_predictor(self.model)
        file = read_predictor(path)
        console = table_console()
        console.print(_facts(file, sum(each.stat().st_size for each in path.iterdir() if each.is_file())))
        console.print(_measured(file))
        if self.time:
            from jaxroute.predictor.latency import measure
            from jaxroute.predictor.predictor import Predictor

            times = measure(Predictor(file))
            console.print(
                f"{times.prompts} prompts of {times.tokens} tokens, one by one: p50 {times.p50_ms:.2f} ms, "
                f"p99 {times.p99_ms:.2f} ms (of which on the processor {times.cpu_p50_ms:.2f} and "
                f"{times.cpu_p99_ms:.2f})"
            )


def _facts(file: PredictorFile, size: int) -> Table:
    encoder = file.config.encoder
    cut = f", the last {file.tail_tokens} of them from a longer prompt's end" if file.tail_tokens else ""
    table = Table(title=f"predictor {file.name}", title_justify="left", show_header=False)
    for fact, value in {
        "encoder": f"DistilBERT, {encoder.layers} layers of {encoder.dim} units, {encoder.vocab_size:,} words",
        "parameters": f"{file.parameters:,}",
        "size": f"{size / 2**20:.1f} MiB",
        "prompts": f"cut to {file.max_tokens} tokens{cut}",
        "task hint": file.hint,
        "tells tasks apart": "yes" if file.config.tasks else "no",
        "buckets": f"{file.buckets.kind}: {', '.join(file.buckets.names())} output tokens",
        "stand for": ", ".join(map(str, file.buckets.representative)),
        **{f"training: {fact}": str(value) for fact, value in file.training.items()},
    }.items():
        table.add_row(fact, value)
    return table


def _measured(file: PredictorFile) -> Table:
    """How often each bucket is predicted where it is the true one, on held-out rows."""
    table = Table(title="held-out rows, share predicted right where the true bucket is", title_justify="left")
    table.add_column("task")
    for heading in ("rows", "all", *file.buckets.names(), "most common"):
        table.add_column(heading, justify="right")
    confusion = file.confusion
    names = file.buckets.names()
    for task, counts, common in zip(
        ("all", *file.tasks),
        (confusion.overall, *confusion.by_task),
        (file.majority, *file.task_majority),
        strict=True,
    ):
        right, rows = np.diagonal(counts), counts.sum(axis=1)
        shares = [_share(*pair) for pair in zip(right, rows, strict=True)]
        table.add_row(task, f"{rows.sum():,}", _share(right.sum(), rows.sum()), *shares, names[common])
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else "-"
