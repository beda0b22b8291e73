"""Picture of what policies decide, in the style of `jaxroute.plots`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from jaxroute.plots import GREY, ORANGE, SKY
from jaxroute.policy_surface import ANOTHER, HOLD, VARIED, Surface

HELD = "#303030"
COLOURS = {VARIED: SKY, ANOTHER: ORANGE, HOLD: HELD}
LABELS = {
    VARIED: "to instance 0 (filled as the x axis says)",
    ANOTHER: "to another instance (filled as the title says)",
    HOLD: "held at the router",
}
TICKS = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)


def surface_picture(surfaces: Sequence[Sequence[Surface]]) -> Figure:
    """What policies decide over how full instance 0 is and the prompt's length: a row a policy, a column a scene."""
    rows, columns = len(surfaces), len(surfaces[0])
    figure = Figure(figsize=(2.2 + 2.9 * columns, 1.2 + 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for line, own in zip(grid, surfaces, strict=True):
        for axes, surface in zip(line, own, strict=True):
            _draw(axes, surface)
        line[0].set_ylabel(f"{textwrap.fill(own[0].policy, 24)}\nprompt tokens")
    for axes, surface in zip(grid[0], surfaces[0], strict=True):
        axes.set_title(f"the others {100 * surface.scene.others:.0f} % full", fontsize="medium")
    for axes in grid[-1]:
        axes.set_xlabel("KV cache of instance 0")
    handles = [Patch(color=COLOURS[kind], label=LABELS[kind]) for kind in COLOURS]
    figure.legend(handles=handles, loc="outside upper center", ncols=1 if columns < 2 else 3, frameon=False)
    return figure


def _draw(axes: Axes, surface: Surface) -> None:
    colours = ListedColormap([COLOURS[kind] for kind in sorted(COLOURS)])
    axes.pcolormesh(
        surface.filling,
        surface.prompt_tokens,
        surface.action,
        cmap=colours,
        vmin=-0.5,
        vmax=len(COLOURS) - 0.5,
        shading="nearest",
        rasterized=True,
    )
    axes.axvline(surface.scene.others, color=GREY, lw=1, ls=(0, (4, 2)))
    axes.set_yscale("log")
    low, high = surface.prompt_tokens[[0, -1]]
    axes.set_xlim(0, 1)
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xticks([0, 0.25, 0.5, 0.75])
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
