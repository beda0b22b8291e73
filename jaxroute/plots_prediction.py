"""Picture of the accuracy of length predictors, in the style of `jaxroute.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxroute.plots import BLUE, GREY, ORANGE, SKY, VERMILLION, tidy

COLOURS = {"paper, text": VERMILLION, "paper, slides": ORANGE, "ours": BLUE, "most common bucket": SKY}


def accuracy_picture(groups: Sequence[tuple[str, Mapping[str, float | None]]]) -> Figure:
    """Bars in groups, %.

    Args:
      groups: name of each, and its bars by name; None is left out.
    """
    names = [name for name in COLOURS if any(values.get(name) is not None for _, values in groups)]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        at = np.arange(len(groups)) + (number - (len(names) - 1) / 2) * width
        values = [values.get(name) for _, values in groups]
        heights = [0.0 if value is None else value for value in values]
        axes.bar(at, heights, width=0.92 * width, color=COLOURS.get(name, GREY), lw=0, label=name)
        for place, value in zip(at, values, strict=True):
            if value is not None:
                axes.annotate(
                    f"{value:.3g}", (place, value), (0, 2), textcoords="offset points", ha="center", fontsize=8
                )
    axes.set_xticks(range(len(groups)), [name.replace(", ", "\n") for name, _ in groups])
    axes.set_ylim(0, 108)
    axes.set_ylabel("right bucket (%)")
    tidy(axes)
    axes.grid(False, axis="x")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(names), frameon=False)
    return figure
