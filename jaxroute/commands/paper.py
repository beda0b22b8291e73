"""`jaxroute paper`."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.commands.options import check_folder
from jaxroute.commands.run_options import INTERRUPTED
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.paper.part import Context, Part
    from jaxroute.paper.section import Section
    from jaxroute.paper.write import Header

MOST_SEED = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paper:
    """Make the paper's tables and figures again in the simulator, each beside the printed numbers.

    Writes report.md, report.html (one page that needs no network), pictures and results.json (every number with its
    interval, seeds and command) to DIR. Policies are trained where they are needed. What has been measured or trained
    is kept in DIR: interrupted, the same command goes on where it stopped; parts that were run before with the same
    options stay in the report. Without options it takes hours, with --quick minutes.
    """

    out: Path
    """Folder to write to."""
    quick: bool = False
    """Fewer seeds, shorter training, no policy trained again for other servers; the report says what was cut."""
    parts: str = ""
    """Parts to run, by letter or name with commas, such as a,c or batching,latency; by default all."""
    seeds: int | None = None
    """Seeds, and so runs, of each policy in each cell; 20, with --quick 6."""
    first_seed: int = 1_000_000
    """The first of them; training uses seeds below 1,000,000."""
    requests: int | None = None
    """Most requests of a run; by default the paper's number."""
    train_steps: int | None = None
    """Router intervals that each policy is trained for; 1,000,000, with --quick 150,000."""
    prompts: tuple[Path, ...] = ()
    """Files of prompts with the lengths of their answers, see `jaxroute predictor evaluate`, for part (b)."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.paper.parts import PARTS, parts_of
        from jaxroute.paper.section import kept
        from jaxroute.paper.write import write_report

        console = table_console()
        check_folder(self.out)
        context = self._context(console)
        asked = parts_of(self.parts)
        try:
            made = {part.letter: _run(context, part, console) for part in asked}
            found = [made.get(part.letter) or kept(context, part.letter) for part in PARTS]
            sections = [section for section in found if section is not None]
            names = write_report(self.out, sections, self._header(context, sections))
        except KeyboardInterrupt:
            console.print("interrupted; what has been measured is kept: the same command goes on", soft_wrap=True)
            sys.exit(INTERRUPTED)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another folder") from error
        console.print(_overview([made[part.letter] for part in asked]))
        console.print(f"written to {self.out}: {', '.join(names)}", soft_wrap=True)

    def _context(self, console: Console) -> Context:
        from jaxroute.leaderboard.store import Store
        from jaxroute.paper.part import FIRST_SEED, FULL, QUICK, Context

        effort = QUICK if self.quick else FULL
        changes = {name: getattr(self, name) for name in ("seeds", "requests", "train_steps")}
        effort = dataclasses.replace(effort, **{name: value for name, value in changes.items() if value is not None})
        least = {"seeds": 1, "requests": 2, "train_steps": 1}
        for name, bound in least.items():
            value = changes[name]
            if value is not None and value < bound:
                raise InputError(f"--{name.replace('_', '-')} is {value}, must be at least {bound}")
        if not FIRST_SEED <= self.first_seed <= MOST_SEED - effort.seeds:
            most = MOST_SEED - effort.seeds
            raise InputError(f"--first-seed is {self.first_seed}, must be from {FIRST_SEED} to {most}")

        if missing := [path for path in self.prompts if not path.is_file()]:
            raise InputError(
                f"--prompts {missing[0]}: no such file; give JSON lines with prompt, output_tokens, task and split"
            )

        def report(text: str) -> None:
            console.print(text, soft_wrap=True, highlight=False, markup=False)

        return Context(
            self.out, effort, self.first_seed, Store(self.out / "cache"), report, self._options, self.prompts
        )

    def _header(self, context: Context, sections: list[Section]) -> Header:
        from jaxroute.leaderboard.store import made_by
        from jaxroute.paper.write import Header

        versions = ", ".join(f"{name} {version}" for name, version in made_by().items() if name in ("jax", "numpy"))
        effort = context.effort
        lines = [
            "Everything here is simulated; no number was measured on the paper's servers. What the paper does not "
            "state (the KV cache above all) is chosen as each part says.",
            f"{context.seeds_text()} for each cell unless a table says otherwise; policies trained for "
            f"{effort.train_steps:,} router intervals; made with {versions}, sources {str(made_by()['sources'])[:12]}.",
        ]
        if effort.quick:
            lines.append("This is the short form (--quick): each part says what it leaves out.")
        letters = "".join(section.letter for section in sections)
        return Header(f"jaxroute paper --out DIR{self._options}", (*lines, f"Parts: {', '.join(letters)}."))

    @property
    def _options(self) -> str:
        """The options that change what is measured."""
        parts = [" --quick"] if self.quick else []
        for name, default in (("seeds", None), ("first_seed", 1_000_000), ("requests", None), ("train_steps", None)):
            if (value := getattr(self, name)) != default:
                parts.append(f" --{name.replace('_', '-')} {value}")
        parts += [f" --prompts {' '.join(map(str, self.prompts))}"] if self.prompts else []
        return "".join(parts)


def _run(context: Context, part: Part, console: Console) -> Section:
    """Runs a part and keeps what it found."""
    from jaxroute.paper.part import Findings, Unavailable
    from jaxroute.paper.section import keep

    console.rule(f"({part.letter}) {part.title}")
    began = time.monotonic()
    try:
        findings = part.run(context)
    except Unavailable as error:
        findings = Findings(remarks=(f"Not made: {error}.",))
    return keep(context, part, findings, time.monotonic() - began)


def _overview(sections: list[Section]) -> Table:
    """What was run, how long it took, and how many of the paper's numbers our intervals hold."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("part", overflow="fold")
    for heading in ("seconds", "printed numbers", "within our interval"):
        table.add_column(heading, justify="right")
    for section in sections:
        cells = [cell.differs for each in section.tables for row in each.rows for cell in row.cells]
        judged = [differs for differs in cells if differs is not None]
        counts = str(len(judged)), str(judged.count(False))
        table.add_row(f"({section.letter}) {section.title}", f"{section.seconds:.0f}", *counts)
    return table
