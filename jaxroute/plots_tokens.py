"""Pictures of the time between tokens, in the style of `jaxroute.plots`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from jaxroute.plots import GREY, ORANGE, SKY, label_log_axis, name_panel, policy_line_style, stack_size, tidy

Named = Mapping[str, Mapping[str, Any]]
"""Name of a policy -> the numbers of one seed, see `jaxroute.paper.timelines.numbers_of`."""


def tbt_picture(runs: Named, quantiles: Mapping[str, np.ndarray]) -> Figure:
    """Average TBT of the requests: its distribution, over all seeds, and by arrival, in one.

    Args:
      runs: numbers of one seed.
      quantiles: name -> [Q] quantiles at even steps from 0 to 1, seconds.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    shares, over_time = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    for index, (name, run) in enumerate(runs.items()):
        style = policy_line_style(index)
        shares.plot(1e3 * quantiles[name], np.linspace(0, 1, len(quantiles[name])), lw=1.8, label=name, **style)
        own = run["tbt_by_arrival"]
        over_time.plot(own["arrival_s"], 1e3 * np.asarray(own["mean_s"]), lw=1.8, **style)
    shares.set_xscale("log")
    label_log_axis(shares)
    shares.set_ylim(0, 1.01)
    shares.set_ylabel("share of requests")
    tidy(shares, xlabel="average TBT of a request (ms)")
    over_time.set_ylim(bottom=0)
    over_time.set_ylabel("average TBT (ms)")
    tidy(over_time, xlabel="arrival (s)")
    figure.legend(*shares.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def spikes_picture(runs: Named) -> Figure:
    """Longest gap between tokens of instance 0 over time, a panel for each policy; those by prompts stand out."""
    figure = Figure(figsize=stack_size(len(runs) + 1), layout="constrained")
    panels = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        edges = np.linspace(0, run["end_s"], len(run["longest_gap_series_s"]) + 1)
        _draw_bars(axes, edges, run["longest_gap_series_s"], SKY)
        _draw_bars(axes, edges, run["spike_series_s"], ORANGE)
        axes.axhline(1e3 * run["plain_gap_s"], color=GREY, lw=1)
        name_panel(axes, textwrap.fill(name, 20))
        tidy(axes)
    panels[-1].set_xlim(0, max(run["end_s"] for run in runs.values()))
    panels[0].set_ylim(bottom=0)
    panels[-1].set_xlabel("time (s)")
    figure.supylabel("gap between tokens, instance 0 (ms)", fontsize="medium")
    handles = [Patch(color=ORANGE, label="a prompt came in between"), Patch(color=SKY, label="decoding only")]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _draw_bars(axes: Axes, edges: np.ndarray, seconds: Sequence[float], colour: str) -> None:
    axes.stairs(1e3 * np.asarray(seconds), edges, fill=True, color=colour, lw=0)
