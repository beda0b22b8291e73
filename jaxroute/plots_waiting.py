"""Pictures of where requests wait, in the style of `jaxroute.plots`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from jaxroute.plots import policy_line_style, tidy

Named = Mapping[str, Mapping[str, Any]]
"""Name of a policy -> the numbers of one seed, see `jaxroute.paper.timelines.numbers_of`."""


def queues_picture(runs: Named) -> Figure:
    """Requests held at the router, waiting and running at an instance (mean of all) over time, a line per policy."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    quantities = (
        ("held at\nthe router", "router_queue_series"),
        ("waiting,\nper instance", "waiting_series"),
        ("running,\nper instance", "running_series"),
    )
    for axes, (label, series) in zip(panels, quantities, strict=True):
        for index, (name, run) in enumerate(runs.items()):
            edges = np.linspace(0, run["end_s"], len(run[series]) + 1)
            middle = (edges[:-1] + edges[1:]) / 2
            axes.plot(middle, run[series], lw=1.8, label=name, **policy_line_style(index))
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        tidy(axes)
    panels[-1].set_xlim(0, max(run["end_s"] for run in runs.values()))
    panels[-1].set_xlabel("time (s)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure
