"""Picture of the schedules of exploration and guidance, in the style of `jaxroute.plots`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from jaxroute.plots import policy_line_style, tidy


def schedule_picture(runs: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Chance of a random action to the left, weight of the guidance to the right, over the share of the training.

    Args:
      runs: label -> [updates] of both.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.08})
    titles = ("chance of a random action", "weight of the guidance")
    for side, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        for index, (label, both) in enumerate(runs.items()):
            values = both[side]
            share = (np.arange(len(values)) + 0.5) / max(1, len(values))
            axes.plot(share, values, lw=1.8, label=label, **policy_line_style(index))
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title(title, fontsize="medium", loc="left")
        tidy(axes, xlabel="of the training")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure
