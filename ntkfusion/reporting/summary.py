"""What the numbers say: means over layers, which methods are best, cells of tables, the answer in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ntkfusion.errors import InputError
from ntkfusion.reporting.results import Comparison

#: The three errors of a row and what tables and plots call them.
ERRORS = {
    "output_error": "output error",
    "sgd_kernel_error": "SGD kernel error",
    "sign_kernel_error": "sign kernel error",
}

#: The answer is given at the width closest to this one.
REFERENCE_WIDTH = 0.25

#: A relative error above this is called far from the original: more than half of it is gone.
FAR = 0.5


def methods(comparison: Comparison) -> tuple[str, ...]:
    """The methods of a comparison, in the order in which they were run."""
    return tuple(dict.fromkeys(row.method for row in comparison.rows))


def widths(comparison: Comparison) -> tuple[float, ...]:
    """The widths of a comparison, ascending."""
    return tuple(sorted({row.width for row in comparison.rows}))


def layers(comparison: Comparison) -> tuple[int, ...]:
    """The layers of a comparison, ascending."""
    return tuple(sorted({row.layer for row in comparison.rows}))


def reference_width(comparison: Comparison) -> float:
    """The width closest to `REFERENCE_WIDTH`.

    Args:
        comparison: with at least one row.

    Returns:
        One of its widths.

    Raises:
        InputError: if there are no rows.
    """
    if not comparison.rows:
        raise InputError("there is nothing to report: the comparison has no rows")
    return nearest_width(widths(comparison))


def nearest_width(shown: Iterable[float]) -> float:
    """The width nearest to `REFERENCE_WIDTH`; the smaller of two that are equally near."""
    return min(sorted(shown), key=lambda width: abs(width - REFERENCE_WIDTH))


def error_grid(comparison: Comparison, width: float, error: str) -> np.ndarray:
    """One kind of error at one width.

    Args:
        comparison: the results.
        width: one of its widths.
        error: a key of `ERRORS`.

    Returns:
        Array [methods, layers], NaN where there is no such row.

    Raises:
        InputError: if the comparison has no such width.
    """
    if width not in widths(comparison):
        raise InputError(f"width {width:g} was not compared; there is {join(f'{w:g}' for w in widths(comparison))}")
    row_of = {method: i for i, method in enumerate(methods(comparison))}
    column_of = {layer: j for j, layer in enumerate(layers(comparison))}
    grid = np.full((len(row_of), len(column_of)), np.nan)
    for row in comparison.rows:
        if row.width == width:
            grid[row_of[row.method], column_of[row.layer]] = getattr(row, error)
    return grid


def mean_errors(comparison: Comparison, width: float) -> dict[str, np.ndarray]:
    """Every kind of error, averaged over layers.

    A method without a number in one of the layers has no mean: leaving that layer out would flatter it. Layers in which
    an error is relative to 0 are left out for all methods (`Comparison.undefined`).

    Args:
        comparison: the results.
        width: one of its widths.

    Returns:
        Key of `ERRORS` → array [methods].
    """
    return {error: _mean_error(comparison, width, error) for error in ERRORS}


def _mean_error(comparison: Comparison, width: float, error: str) -> np.ndarray:
    left_out = set(comparison.undefined.get(error, ()))
    grid = error_grid(comparison, width, error)
    kept = [place for place, layer in enumerate(layers(comparison)) if layer not in left_out]
    return grid[:, kept].mean(axis=1) if kept else np.full(len(grid), np.nan)


def is_best(values: np.ndarray) -> list[bool]:
    """Which of the values are the lowest; several, where the difference is below what tables show or is rounding noise.

    Args:
        values: one per method; what is not finite never wins.

    Returns:
        One truth value per method.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return [False] * len(values)
    low = float(finite.min())
    limit = low + max(1e-4 * low, 1e-6)
    return [bool(value <= limit) or format_error(float(value)) == format_error(low) for value in values]


def format_error(value: float) -> str:
    """An error with three decimals, or two digits where that would show nothing; "n/a" if it is not finite."""
    if not np.isfinite(value):
        return "n/a"
    if value != 0 and not 1e-3 <= abs(value) < 1e3:
        return f"{value:.1e}"
    return f"{value:.3f}"


def width_label(width: float) -> str:
    """A width as people say it: "1/8", "3/4", "1"; a decimal number where that is shorter."""
    fraction = Fraction(width)
    return str(fraction) if fraction.denominator in (1, 2, 4, 8, 16, 32, 64) else f"{width:g}"


def join(words: Iterable[str]) -> str:
    """Words as a list in running text: "a, b and c"; "none" if there are none."""
    *head, last = [*words] or ["none"]
    return f"{', '.join(head)} and {last}" if head else last


def layer_label(shown: Sequence[int]) -> str:
    """Layers in running text: "layer 3", "layers 0–5", "layers 0, 2 and 5"."""
    if len(shown) == 1:
        return f"layer {shown[0]}"
    if list(shown) == list(range(shown[0], shown[-1] + 1)):
        return f"layers {shown[0]}–{shown[-1]}"
    return f"layers {join(map(str, shown))}"


def averaged(comparison: Comparison) -> str:
    """What the means are over: "averaged over layers 0–5", or "in layer 3" where there is nothing to average.

    Layers that are in no mean, because the original is 0 there, are named.
    """
    shown = layers(comparison)
    text = f"{'averaged over' if len(shown) > 1 else 'in'} {layer_label(shown)}"
    zeros = sorted({layer for left_out in comparison.undefined.values() for layer in left_out})
    return f"{text} ({layer_label(zeros)} without errors relative to 0)" if zeros else text


def answer(comparison: Comparison, descriptions: Mapping[str, str]) -> str:
    """The outcome of the comparison in one sentence, at the width closest to 1/4.

    Args:
        comparison: the results, with at least one row.
        descriptions: method → what it is, in one line; used where a single method wins.

    Returns:
        Plain text.
    """
    width, names = reference_width(comparison), methods(comparison)
    means = mean_errors(comparison, width)
    winners = {error: [n for n, best in zip(names, is_best(means[error]), strict=True) if best] for error in ERRORS}
    low = {error: float(means[error][names.index(winners[error][0])]) for error in ERRORS if winners[error]}
    common = [name for name in names if all(name in winners[error] for error in ERRORS)]
    scope = f"At width {width_label(width)}, {averaged(comparison)}"
    numbers = join(f"{label} {format_error(low.get(error, np.nan))}" for error, label in ERRORS.items())
    if len(names) == 1:
        text = f"{scope}, {names[0]}, the only method compared, leaves {numbers}"
    elif common:
        about = f" – {descriptions[common[0]]} –" if len(common) == 1 and common[0] in descriptions else ""
        text = f"{scope}, {_some(common)}{about} {'wins' if len(common) == 1 else 'win'} on all three: {numbers}"
    else:
        outputs = dict(zip(names, means["output_error"].tolist(), strict=True))
        text = f"{scope}, {_lowest(winners, low, outputs)}: no single method keeps everything"
    return text + _far(low) + "."


def _lowest(winners: Mapping[str, Sequence[str]], low: Mapping[str, float], outputs: Mapping[str, float]) -> str:
    """Who has the lowest of each error; among equals the one that wins most often comes first.

    A kernel error says nothing without the output error beside it: where that is above 1, it is added.
    """
    wins = [name for names in winners.values() for name in names]
    parts = []
    for error, label in ERRORS.items():
        names = sorted(winners[error], key=wins.count, reverse=True)
        useless = names and 1 < outputs[names[0]] < np.inf
        warning = f", with an output error of {format_error(outputs[names[0]])}, worse than zeros" if useless else ""
        found = f"the lowest {label} is {format_error(low[error])} ({_some(names)}{warning})" if names else ""
        parts.append(found or f"no method has a finite {label}")
    return join(parts)


def _some(names: Sequence[str]) -> str:
    return join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} others"


def _far(low: Mapping[str, float]) -> str:
    far = [ERRORS[error] for error, value in low.items() if value > FAR]
    if not far:
        return ""
    verb = "is" if len(far) == 1 else "are"
    return f"; even the best {join(far)} {verb} above {FAR:g}, far from the original"


class Cell(NamedTuple):
    """The text of a table cell, and whether it is the best of its column."""

    text: str
    best: bool = False


def error_cells(values: np.ndarray) -> list[Cell]:
    """A column of errors, the lowest of them marked."""
    return [Cell(format_error(float(v)), best) for v, best in zip(values, is_best(values), strict=True)]
