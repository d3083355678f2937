"""Section `blocks`: errors of every method, width and seed on held-out tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common.figures import CEILING, MARKERS, hue, is_ours, show_logarithmic, show_widths
from experiments.common.labels import place_labels
from experiments.common.store import Job, Result, number
from experiments.common.tables import ResultTable, Section, finite, mark_best, spread
from experiments.kernel_distance.bench import ERRORS, Bench
from experiments.kernel_distance.options import describe, known
from ntkfusion.compression.contract import Compressed
from ntkfusion.compression.registry import build_method
from ntkfusion.reporting.plots import RC
from ntkfusion.reporting.summary import nearest_width, width_label

#: Which tokens: all kinds, or words only.
TOKENS = ("", "words_")


@dataclasses.dataclass(frozen=True)
class MethodErrors:
    """One method at one width: every number per seed, errors averaged over layers.

    Attributes:
        values: "output_error", "words_output_error" ..., "kept" (share of the parameters), "seconds" → one per seed.
    """

    method: str
    width: float
    values: dict[str, np.ndarray]

    def mean(self, name: str) -> float:
        """Mean over seeds."""
        return float(self.values[name].mean())

    def spread(self, name: str) -> str:
        """Mean ± standard deviation over seeds, as text."""
        return spread(self.values[name])


def blocks_section(bench: Bench) -> Section:
    """Measure what is missing, then tables and figure."""
    names, options = known(bench.options.names, bench.notes), bench.options
    triples = [(seed, width, name) for seed in options.seeds for width in options.widths for name in names]
    jobs = {triple: _job(bench, *triple) for triple in triples}
    triple_of = {job.name: triple for triple, job in jobs.items()}
    results = bench.run("blocks", list(jobs.values()), lambda job: measure(bench, *triple_of[job.name]))
    pairs = [(width, name) for width in options.widths for name in names]
    found = [
        summarise(name, width, [results.get(jobs[s, width, name].name) for s in options.seeds]) for width, name in pairs
    ]
    summaries = [summary for summary in found if summary is not None]
    tables = [_table(bench, width, [s for s in summaries if s.width == width]) for width in options.widths]
    record = [
        {"method": s.method, "width": s.width, **{key: [finite(v) for v in values] for key, values in s.values.items()}}
        for s in summaries
    ]
    figures = {"kernel_distance": distance_figure(summaries)} if summaries else {}
    return Section("blocks", tuple(tables), {"methods": record}, figures)


def _job(bench: Bench, seed: int, width: float, name: str) -> Job:
    options = bench.options
    settings = bench.settings(
        seed=seed,
        width=width,
        method=name,
        options=describe(name, width),
        tokens=options.tokens,
        calibration_tokens=options.calibration_tokens,
    )
    return Job("blocks", f"seed{seed}_width{width:g}_{name}", settings)


def measure(bench: Bench, seed: int, width: float, name: str) -> Result:
    """Compress every layer once, and measure it on both kinds of tokens."""
    lab, method = bench.lab(seed), build_method(name, width)
    method.check(lab.blocks)
    compressed = method.compress(lab.blocks, lab.workspace)
    references = lab.references
    rows = []
    for place, (layer, block) in enumerate(zip(lab.layers, compressed.blocks, strict=True)):
        errors = {f"{on}{key}": v for on in TOKENS for key, v in references[on][place].errors(block).items()}
        rows.append({"layer": layer, **errors})
    return {"rows": rows, **costs(compressed), "calibration_tokens": len(lab.calibration.tokens)}


def costs(compressed: Compressed) -> dict[str, float]:
    """Stored parameters as a share of the original's, and the seconds that all layers took."""
    stored, original, seconds = (
        sum(getattr(report, name) for report in compressed.reports)
        for name in ("parameters", "original_parameters", "seconds")
    )
    return {"kept": stored / original, "seconds": seconds}


def summarise(name: str, width: float, results: list[Result | None]) -> MethodErrors | None:
    """Means over layers, per seed; None if there is no seed. The table says where some are missing."""
    there = [result for result in results if result is not None]
    if not there:
        return None
    keys = [f"{on}{error}" for on in TOKENS for error in ERRORS]
    values = {
        key: np.array([np.mean([number(row[key]) for row in result["rows"]]) for result in there]) for key in keys
    }
    values |= {key: np.array([number(result[key]) for result in there]) for key in ("kept", "seconds")}
    return MethodErrors(name, width, values)


def _name(summary: MethodErrors, seeds: int) -> str:
    """The method, and how many seeds it has if that is not all."""
    found = len(summary.values["kept"])
    return summary.method if found == seeds else f"{summary.method} ({found} of {seeds} seeds)"


def _table(bench: Bench, width: float, summaries: list[MethodErrors]) -> ResultTable:
    options = bench.options
    columns = (
        "method",
        "output",
        "SGD kernel",
        "sign kernel",
        "output, words",
        "SGD, words",
        "sign, words",
        "kept",
        "s",
    )
    keys = [f"{on}{error}" for on in TOKENS for error in ERRORS]
    rows = []
    for s in summaries:
        name = _name(s, len(options.seeds))
        rows.append([name, *map(s.spread, keys), f"{100 * s.mean('kept'):.1f} %", f"{s.mean('seconds'):.1f}"])
    for place, key in enumerate(keys, start=1):
        mark_best(rows, place, [s.mean(key) for s in summaries])
    seeds = f"mean ± standard deviation over {len(options.seeds)} seeds" if len(options.seeds) > 1 else "one seed"
    note = (
        f"Relative Frobenius errors on {options.tokens} held-out tokens (special tokens among them; then words only), "
        f"kernels traced over outputs; means over {len(bench.layers)} layers, {seeds}. {bench.text.name}; at most "
        f"{options.calibration_tokens} calibration tokens. Seconds for all layers."
    )
    return ResultTable(f"Blocks at width {width_label(width)}", columns, rows, (note,))


def distance_figure(summaries: Sequence[MethodErrors]) -> Figure:
    """Output error against SGD kernel error, and against sign kernel error: one line of widths per method.

    Args:
        summaries: of every method and width.

    Returns:
        A figure of two panels; each method is named at the width nearest to 1/4.
    """
    widths = sorted({summary.width for summary in summaries})
    named = nearest_width(widths)
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(12, 15))
        panels = {"sgd_kernel_error": "SGD kernel error", "sign_kernel_error": "sign kernel error"}
        for axis, (error, title) in zip(figure.subplots(2, 1), panels.items(), strict=True):
            points = {(s.method, s.width): _point(s, error) for s in summaries}
            _draw_lines(axis, points, widths)
            show_logarithmic(axis, CEILING)
            axis.set(xlabel="output error", ylabel=title, title=f"{title} against output error, held-out tokens")
            axis.margins(0.06)
            labels = {name: point for (name, width), point in points.items() if width == named}
            place_labels(axis, labels, list(points.values()), hue, is_ours)
        show_widths(figure, widths)
    return figure


def _point(summary: MethodErrors, error: str) -> tuple[float, float]:
    x, y = summary.mean("output_error"), summary.mean(error)
    return min(x, CEILING), min(y, CEILING)


def _draw_lines(axis: Axes, points: Mapping[tuple[str, float], tuple[float, float]], widths: Sequence[float]) -> None:
    for name in dict.fromkeys(name for name, _ in points):
        ours = is_ours(name)
        line = np.array([points[name, width] for width in widths if (name, width) in points])
        axis.plot(
            *line.T, color=hue(name), linewidth=2 if ours else 0.8, alpha=1 if ours else 0.45, zorder=3 if ours else 2
        )
        for width, marker in zip(widths, MARKERS, strict=False):
            if (name, width) in points:
                look = {"s": 95 if ours else 42, "edgecolors": "white", "linewidths": 0.6}
                axis.scatter(*points[name, width], marker=marker, color=hue(name), zorder=4, **look)
