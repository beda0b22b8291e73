"""Pictures of the impact estimator beside the time of engine steps, in the style of `jaxroute.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from jaxroute.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, label_log_axis, tidy

BATCH_COLOURS = (BLUE, GREEN, PURPLE, VERMILLION)


def step_lines(
    planned: Mapping[str, Any], busy: Mapping[str, Any], *, prompt_slope: float, decode_slopes: tuple[float, float]
) -> Figure:
    """Time of a step over its tokens: prefills to the left, decodes to the right; dashed, printed slopes.

    Args:
      planned, busy: `designed_steps` and `busy_steps` of `jaxroute.paper.impact_steps`.
      prompt_slope: printed, seconds per token.
      decode_slopes: grad2, and what the axis of the paper's figure spans, seconds per token.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    prefill, decode = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    _dots(prefill, busy["prompt"], SKY, "busy run", size=9)
    _dots(prefill, planned["prompt"], BLUE, "alone", size=12)
    longest = max(planned["prompt"]["x"])
    _dashed(prefill, planned["prompt"]["intercept"], prompt_slope, longest, "grad1")
    prefill.set_ylim(bottom=0)
    tidy(prefill, xlabel="prompt tokens of a prefill step")
    prefill.set_ylabel("duration of the step (ms)")
    prefill.legend(frameon=False, loc="upper left")
    _dots(decode, busy["decode"], SKY, "busy run", size=6)
    for batch, colour in zip(planned["batches"], BATCH_COLOURS, strict=False):
        decode.plot(
            batch["x"], 1e3 * np.asarray(batch["seconds"]), color=colour, lw=2.2, label=f"batch of {batch['size']}"
        )
    grad2, axis = decode_slopes
    start = planned["batches"][0]["intercept"]
    most = max(max(each["x"]) for each in (busy["decode"], *planned["batches"]))
    seconds = [*busy["decode"]["seconds"], *(value for batch in planned["batches"] for value in batch["seconds"])]
    top = 1.12 * max(seconds)
    _dashed(decode, start, axis, most, "ticks of figure 4b")
    reach = min(most, (top - start) / grad2)
    decode.plot(
        [0, reach], [1e3 * start, 1e3 * (start + grad2 * reach)], color=BLACK, ls=(0, (1, 1)), lw=1.8, label="grad2"
    )
    decode.set_ylim(0.96e3 * min(seconds), 1e3 * top)
    decode.xaxis.set_major_formatter(EngFormatter(sep=" "))
    tidy(decode, xlabel="tokens of the sequences of a decode step")
    decode.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.07, 1.02))
    return figure


def readings_picture(names: Sequence[str], readings: Sequence[Mapping[str, Any]]) -> Figure:
    """What readings of equation 1 say of prompts over what these took, log-log; a panel for each."""
    figure = Figure(figsize=(2.9 * len(names), 3.3), layout="constrained")
    panels = np.atleast_1d(np.asarray(figure.subplots(1, len(names), sharey=True, sharex=True)))
    values = np.concatenate([reading["x"] for reading in readings])
    seconds = np.concatenate([reading["seconds"] for reading in readings])
    known = values[values > 0]
    low, high = min(known.min(), seconds.min()) / 2, max(known.max(), seconds.max()) * 2
    for axes, name, reading in zip(panels, names, readings, strict=True):
        axes.plot([1e3 * low, 1e3 * high], [low, high], color=GREY, lw=1.4, zorder=1)
        axes.scatter(1e3 * np.asarray(reading["seconds"]), reading["x"], s=9, color=ORANGE, lw=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_xlim(1e3 * seconds.min() / 1.3, 1e3 * seconds.max() * 1.3)
        label_log_axis(axes)
        axes.set_title(f"{name}\nR² {reading['r2']:.2f}", fontsize="medium")
        tidy(axes, xlabel="the step took (ms)")
    panels[0].set_ylabel("T_p (s)")
    return figure


def _dots(axes: Axes, points: Mapping[str, Any], colour: str, label: str, size: float) -> None:
    axes.scatter(
        points["x"], 1e3 * np.asarray(points["seconds"]), s=size, color=colour, lw=0, label=label, rasterized=True
    )


def _dashed(axes: Axes, start: float, slope: float, most: float, label: str) -> None:
    axes.plot(
        [0, most], [1e3 * start, 1e3 * (start + slope * most)], color=BLACK, ls=(0, (4, 1.5)), lw=1.4, label=label
    )
