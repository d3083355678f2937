"""How time and memory grow: curves, fitted exponents and their picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from experiments.benchmarks.kernels.options import KernelsOptions
from experiments.benchmarks.kernels.outcome import Entrant, Limits, RaceOutcome, peak, seconds, took
from experiments.benchmarks.kernels.race import race
from experiments.common.tables import ResultTable, Section
from ntkfusion.reporting.plots import RC
from ntkfusion.utils.memory import parse_size, show_size

MEMORY_NOTE = (
    "Memory of a call: peak RSS beyond what the process held when it began. The last column is the whole process, "
    "compilation included."
)


@dataclasses.dataclass(frozen=True)
class GrowthCurve:
    """One quantity that grows, and what its values took."""

    name: str
    quantity: str
    values: tuple[int, ...]
    outcomes: tuple[RaceOutcome, ...]

    def points(self, what: str) -> tuple[np.ndarray, np.ndarray]:
        """Values and "seconds" or "bytes" (of a call, without compilation) of those that finished."""
        done = [(value, o) for value, o in zip(self.values, self.outcomes, strict=True) if o.ok]
        numbers = [o.running if what == "seconds" else o.working for _, o in done]
        return np.array([value for value, _ in done], float), np.array(numbers, float)

    def exponent(self, what: str) -> float:
        """The fitted exponent; NaN without two positive points."""
        return fitted_exponent(*self.points(what))


def fitted_exponent(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of log y over log x by least squares, over the larger half of x.

    >>> round(fitted_exponent(np.array([1., 2, 4, 8]), np.array([9., 9, 48, 192])), 6)
    2.0
    """
    order = np.argsort(x)[len(x) // 2 :] if len(x) > 3 else np.argsort(x)[-2:]
    order = order[y[order] > 0]
    if len(order) < 2:
        return float("nan")
    return float(np.polyfit(np.log(x[order]), np.log(y[order]), 1)[0])


def growth(options: KernelsOptions) -> Section:
    """Table 4; `growth_figure` draws its curves."""
    curves, notes = measure_curves(options)
    rows = [
        [
            f"{c.name}, {c.quantity}={value}",
            took(o),
            seconds(o.running) if o.ok else "–",
            show_size(o.working) if o.ok else "–",
            peak(o),
        ]
        for c in curves
        for value, o in zip(c.values, c.outcomes, strict=True)
    ]
    columns = ("", "seconds", "compiling apart", "memory of a call", "peak RSS")
    points = ResultTable("Growth: time and memory of the SGD kernels", columns, rows, tuple(notes))
    fits = [[f"{c.name} against {c.quantity}", *(f"{c.exponent(w):.2f}" for w in ("seconds", "bytes"))] for c in curves]
    note = (
        "Least squares of logarithms over the larger half of the values; time and memory of a call, without compiling."
    )
    exponents = ResultTable("Growth: fitted exponents", ("", "time", "memory"), fits, (note,))
    record = [
        {
            "name": curve.name,
            "quantity": curve.quantity,
            "values": curve.values,
            "exponents": {
                what: None if np.isnan(curve.exponent(what)) else curve.exponent(what) for what in ("seconds", "bytes")
            },
            "outcomes": [o.record() for o in curve.outcomes],
        }
        for curve in curves
    ]
    return Section("growth", (points, exponents), {"curves": record}, {"growth": growth_figure(curves)})


def measure_curves(options: KernelsOptions) -> tuple[list[GrowthCurve], list[str]]:
    """All curves, and what was left out."""
    sizes, notes = options.growth, [f"Medians of {options.repeats} runs after the first call. {MEMORY_NOTE}"]
    block = options.block.problem(sizes.at_n, options.seed)
    network = sizes.network.problem(options.seed)
    ours = {"contestant": "block", "kind": "sgd", **block}, {"contestant": "network", "kind": "sgd", **network}
    names = "block kernel", "network kernel"
    plans = [(0, "N", "n", sizes.block_n), (0, "m", "m", sizes.block_m)]
    plans += [(1, "N", "n", sizes.network_n), (1, "T", "t", sizes.network_t)]
    curves = [
        _curve(names[side], quantity, values, [Entrant("", {**ours[side], key: v}) for v in values], options)
        for side, quantity, key, values in plans
    ]
    for side, key, most in ((0, "n", max(sizes.block_n)), (1, "n", sizes.network.n)):
        spec = {**ours[side], key: most, "sharded": True}
        entries = [Entrant("", spec, devices=count) for count in sizes.devices]
        curves.append(_curve(names[side], "devices", sizes.devices, entries, options))
    return curves, [*notes, "Devices are fake ones that share the cores of this machine."]


def _curve(
    name: str, quantity: str, values: Sequence[int], entries: Sequence[Entrant], options: KernelsOptions
) -> GrowthCurve:
    limits = Limits(parse_size(options.memory_limit), options.time_limit)
    labelled = [
        dataclasses.replace(entry, label=f"{name}, {quantity}={value}")
        for entry, value in zip(entries, values, strict=True)
    ]
    outcomes = [race([entry], options.repeats, limits)[0] for entry in labelled]
    return GrowthCurve(name, quantity, tuple(values), tuple(outcomes))


def growth_figure(curves: Sequence[GrowthCurve]) -> Figure:
    """Two panels, time and memory, each curve against multiples of its smallest value."""
    hues = ("#0072B2", "#D55E00", "#009E73", "#B5468B", "#7A6A00", "#444444")
    panels = {"seconds": "seconds, without compiling", "bytes": "memory of a call, MiB"}
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 7.4))
        for axis, (what, title) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            for curve, hue, marker in zip(curves, hues, "osD^vP", strict=False):
                x, y = curve.points(what)
                label = f"{curve.name}, {curve.quantity} = {min(curve.values)} … {max(curve.values)}"
                label += f": ∝ {curve.quantity}^{curve.exponent(what):.2f}"
                style = {"color": hue, "marker": marker, "linewidth": 2, "markersize": 7}
                axis.plot(x / min(curve.values), y / (2**20 if what == "bytes" else 1), label=label, **style)
            _logarithmic(axis, curves)
            axis.set_title(title)
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9)
        figure.suptitle("Growth of the exact SGD kernels")
    return figure


def _logarithmic(axis: Axes, curves: Sequence[GrowthCurve]) -> None:
    multiples = sorted({value / min(curve.values) for curve in curves for value in curve.values})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(FixedLocator(multiples))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel("multiple of the smallest value")
