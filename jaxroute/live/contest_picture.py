"""One picture of a contest: what each way took live, with its interval, and what was simulated."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from jaxroute.plots import BLUE, GREY, VERMILLION

if TYPE_CHECKING:
    from jaxroute.live.comparison import Contest

PANELS = {
    "e2e_mean_s": "mean end-to-end latency (s)",
    "e2e_p99_s": "p99 end-to-end latency (s)",
    "ttft_mean_s": "mean time to first token (s)",
}


def contest_picture(contest: Contest) -> Figure:
    """A panel for each of mean and p99 E2E and mean TTFT, seconds; the way with the lowest mean E2E on top."""
    means = contest.means
    names = sorted(means, key=lambda name: -means[name]["e2e_mean_s"].value)
    figure = Figure(figsize=(11, 1.6 + 0.38 * len(names)), layout="constrained")
    for axes, (column, label) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        for row, name in enumerate(names):
            interval = means[name][column]
            if not math.isnan(interval.low):
                axes.hlines(row, interval.low, interval.high, color=GREY, lw=2, zorder=1)
            axes.plot(interval.value, row, "o", color=BLUE, ms=7, label="live" if row == 0 else None)
            if name in contest.simulated:
                predicted = float(contest.simulated[name][column].mean())
                first = row == min(index for index, each in enumerate(names) if each in contest.simulated)
                axes.plot(predicted, row, "x", color=VERMILLION, ms=8, mew=2, label="simulated" if first else None)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_xlim(0, 1.04 * axes.get_xlim()[1])
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(True, axis="x", color="#E4E4E4", lw=0.7)
    figure.axes[0].legend(frameon=False, loc="lower left")
    figure.suptitle(f"{contest.case.name}: {len(contest.case.table):,} requests a round")
    return figure
