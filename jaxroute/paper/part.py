"""What a part of the reproduction is, what it is given, and what it finds.

A part is one table or figure of the paper. It lives in a file of its own, which ends with `PART = Part(...)`, and is
listed in `parts`. It measures by way of `Context.result`, so that what has been measured is kept and a killed run goes
on; everything else (tables, pictures, remarks) is made anew from what is kept, in seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxroute.paired import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxroute.leaderboard.store import Store

FIRST_SEED = 1_000_000
"""Seeds below it are for training."""

TRAINED = ("guided", "aware", "baseline")
"""The paper's three variants, as `Context.trained` knows them; `variants` has the others."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One field of a table: a measured number, a printed one, both, or a text.

    Attributes:
      value: ours, with its 95 % interval (NaN ends where there is one seed, or nothing random).
      printed: the paper's number for the same thing, in the same unit.
      text: shown where there is no number of ours.
      decimals: of the numbers; by default by their size.
      signed: whether a plus sign is shown.
      source: where `printed` is from, where that is not the whole truth (such as read off an axis).
    """

    value: Interval | None = None
    printed: float | None = None
    text: str = ""
    decimals: int | None = None
    signed: bool = False
    source: str = ""

    @property
    def differs(self) -> bool | None:
        """Whether the printed number is outside the interval; None where there are not both."""
        if self.value is None or self.printed is None or not self.value.low <= self.value.high:
            return None
        return not self.value.low <= self.printed <= self.value.high


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      name: of the row.
      cells: one for each heading behind the first.
      headline: heading of the cell that the README shows, which has a number of ours and a printed one; none if empty.
    """

    name: str
    cells: tuple[Cell, ...]
    headline: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column is a name.

    Attributes:
      title: above it.
      columns: headings, the first that of the names.
      rows: one cell for each heading behind the first.
      command: the command line that makes its numbers, see `Context.command`.
      seeds: what its intervals rest on, such as `20 seeds from 1,000,000`, see `Context.seeds_text`.
      note: below the title.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    command: str
    seeds: str
    note: str = ""

    def __post_init__(self) -> None:
        """Checks that every row has a cell for each heading."""
        for row in self.rows:
            if len(row.cells) != len(self.columns) - 1:
                raise ValueError(f"table {self.title}: row {row.name} has {len(row.cells)} cells for {self.columns}")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
      name: of its file, without `.png`; begins with the part's letter, such as `d-tbt`.
      figure: drawn in the style of `jaxroute.plots`.
      caption: what it shows, with seeds and setting.
      command: that makes it.
    """

    name: str
    figure: Figure
    caption: str
    command: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a part found.

    Attributes:
      setting: how it was measured, and what the paper leaves open: sentences.
      tables: the numbers.
      pictures: the figures.
      remarks: sentences made from the numbers: where they differ from the paper's, and why.
      cuts: what `--quick` (or options) left out, sentences.
      commands: other commands that show the same, such as one seed of it by `jaxroute simulate`.
    """

    setting: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    remarks: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured; every part cuts its own numbers down to it.

    Attributes:
      seeds: of each cell.
      requests: most requests of a run; None for the paper's number.
      train_steps: router intervals that a policy is trained for.
      quick: whether parts should leave out their expensive cells and retraining.
    """

    seeds: int
    requests: int | None
    train_steps: int
    quick: bool


FULL = Effort(seeds=20, requests=None, train_steps=1_000_000, quick=False)
QUICK = Effort(seeds=6, requests=None, train_steps=150_000, quick=True)


@dataclasses.dataclass(frozen=True)
class Context:
    """What a part is given.

    Attributes:
      out: folder of the report; parts write nothing to it by themselves.
      effort: how much to measure.
      first_seed: of the tables and of the policies' random choices, at least `FIRST_SEED`.
      store: of results.
      report: shows a line of progress.
      options: the command's options that differ from their defaults, for `command`.
      prompts: files of prompts with the lengths of real answers, as `jaxroute predictor` reads them, for part (b).
    """

    out: Path
    effort: Effort
    first_seed: int
    store: Store
    report: Callable[[str], None] = lambda text: None
    options: str = ""
    prompts: tuple[Path, ...] = ()

    @property
    def quick(self) -> bool:
        """Whether the short form was asked for."""
        return self.effort.quick

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of every cell."""
        return self.first_seeds(self.effort.seeds)

    def first_seeds(self, most: int) -> tuple[int, ...]:
        """The first seeds, for what is too dear for all of them."""
        return tuple(range(self.first_seed, self.first_seed + min(most, self.effort.seeds)))

    def requests(self, paper: int, quick: int | None = None) -> int:
        """Requests of a run that has `paper` of them in the paper and `quick` of them in the short form."""
        wanted = quick if self.quick and quick is not None else paper
        return wanted if self.effort.requests is None else min(wanted, self.effort.requests)

    def result(self, key: Mapping[str, object], compute: Callable[[], object]) -> object:
        """What is kept under a key, in JSON's own types; what `compute` returns (not None) is kept if there is nothing.

        The key names everything that the result depends on but the program itself: the sources of the simulator and
        the file that `compute` is from are in it already.
        """
        return self.store.result({"paper": _source(compute), **key}, compute)

    def trained(self, variant: str) -> Path:
        """The run folder of a trained variant (a name in `variants.VARIANTS`), which stands where a policy's name does.

        It is trained when it is first asked for, and kept; interrupted, the same command goes on from its last
        checkpoint.

        Raises:
          Unavailable: this version has no such algorithm.
        """
        from jaxroute.paper.variants import trained

        return trained(self, variant)

    def command(self, letter: str) -> str:
        """The command that makes a part again."""
        return f"jaxroute paper --out DIR --parts {letter}{self.options}"

    def seeds_text(self, seeds: tuple[int, ...] | None = None) -> str:
        """What to say of seeds under a table."""
        shown = self.seeds if seeds is None else seeds
        count = f"{len(shown)} seed{'s' if len(shown) > 1 else ''}"
        return f"{count} from {shown[0]:,}"


@dataclasses.dataclass(frozen=True)
class Part:
    """A table or figure of the paper.

    Attributes:
      letter: by which the report and `--parts` call it.
      name: of its module; `--parts` takes it too.
      title: heading.
      paper: where in the paper it is.
      run: finds what is to be found.
    """

    letter: str
    name: str
    title: str
    paper: str
    run: Callable[[Context], Findings]


class Unavailable(Exception):  # noqa: N818 - a state of affairs, not an error
    """A trained variant that this version cannot train; a part leaves its row out and says so."""


def _source(compute: Callable[[], object]) -> str:
    """Digest of the file that a function is from."""
    path = getattr(sys.modules.get(compute.__module__), "__file__", None)
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else ""
