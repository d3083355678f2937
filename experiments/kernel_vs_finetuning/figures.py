"""Figures: scores against errors, and linearised against real losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.common.figures import CEILING, MARKERS, OTHERS_HUE, hue, is_ours, show_widths
from experiments.common.labels import place_labels
from experiments.common.store import Result
from experiments.kernel_vs_finetuning.measures import MEASURES
from experiments.kernel_vs_finetuning.options import NONE, FinetuningOptions
from experiments.kernel_vs_finetuning.report import ScorePoint
from experiments.kernel_vs_finetuning.runs import RunCase
from ntkfusion.reporting.plots import RC

#: Measures that the figure shows: the output, and the kernels of blocks and network.
SHOWN = ("output_error", "sgd_kernel_error", "sign_kernel_error", "network_sgd")
#: Updates that drawn losses are a mean of.
SMOOTH = 10


def score_figure(options: FinetuningOptions, points: Sequence[ScorePoint]) -> Figure:
    """Scores after fine-tuning against errors before it; a row of panels per task, a dashed line for the original."""
    tasks = [task for task in options.tasks if any(point.task == task for point in points)]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(4.6 * len(SHOWN), 4.4 * len(tasks)))
        panels = figure.subplots(len(tasks), len(SHOWN), squeeze=False)
        for row, task in zip(panels, tasks, strict=True):
            chosen = [point for point in points if point.task == task]
            for axis, measure in zip(row, SHOWN, strict=True):
                _draw(axis, options, chosen, measure)
                axis.set(xlabel=f"error before training: {MEASURES[measure]}", title=task)
            row[0].set_ylabel(f"{chosen[0].metric} after fine-tuning")
        show_widths(figure, options.widths)
    return figure


def _draw(axis: Axes, options: FinetuningOptions, chosen: Sequence[ScorePoint], measure: str) -> None:
    at, labels = [], {}
    for point in chosen:
        if point.method == NONE:
            axis.axhline(point.mean("dev"), color=OTHERS_HUE, linestyle="--", linewidth=1)
            continue
        x, y = min(point.mean(measure), CEILING), point.mean("dev")
        mark = MARKERS[options.widths.index(point.width)]
        axis.plot([x], [y], marker=mark, color=hue(point.method), linestyle="")
        at.append((x, y))
        if point.width == options.widths[0]:
            labels[point.method] = (x, y)
    axis.set_xscale("log")
    # a label at every tick of an axis of one or two decades would cover the next one
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"≥ {value:g}" if value == CEILING else f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(0.12)
    if labels:
        place_labels(axis, labels, at, hue, is_ours)


def curve_figure(found: Mapping[RunCase, Result]) -> Figure:
    """Losses of the real model (solid) and of its linearisation (dashed)."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(3.6 * len(found), 3.8))
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axis, (case, result) in zip(panels, found.items(), strict=True):
            for name, style in (("real", "-"), ("predicted", "--")):
                losses = np.array(result[name], float)
                width = min(SMOOTH, len(losses))
                smooth = np.convolve(losses, np.ones(width) / width, "valid")
                axis.plot(np.arange(width, len(losses) + 1), smooth, style, color=hue(case.method), label=name)
            axis.set(title=case.method, xlabel="update")
        panels[0].set_ylabel(f"training loss, mean of {SMOOTH} updates")
        panels[0].legend()
    return figure
