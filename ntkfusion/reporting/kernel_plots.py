"""Kernels as pictures: one with its parts and their spectra; the original's beside those of compressed blocks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ntkfusion.errors import InputError
from ntkfusion.reporting.kernel_file import KernelFile, traced
from ntkfusion.reporting.plots import RC
from ntkfusion.reporting.results import KernelGallery
from ntkfusion.reporting.summary import format_error, width_label

#: What the numbers of a spectrum are: an SGD kernel is symmetric, a sign kernel is not.
VALUES = {"sgd": "eigenvalue", "sign": "singular value"}


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The spectrum of one kernel.

    Attributes:
        values: sizes of the eigenvalues (SGD) or the singular values (sign), largest first.
        effective_rank: exp of their entropy, see `ntkfusion.kernel_distance`.
        share: this kernel's part in the trace of the whole kernel.
    """

    values: np.ndarray
    effective_rank: float
    share: float

    @property
    def significant(self) -> np.ndarray:
        """The values that float32 can tell from rounding of the largest; none of a zero kernel."""
        return self.values[self.values > np.finfo(np.float32).eps * self.values[0]]


#: Most tokens that still get a label.
MOST_TOKENS = 40

#: Sentences are cut to this many characters beside a heat map.
LABEL_LENGTH = 26

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B5468B", "#7A6A00", "#56B4E9", "#E69F00", "#444444")


def kernel_figure(file: KernelFile) -> Figure:
    """The kernel, mean over outputs, and beside it the part of every parameter group, each on its own colours.

    Args:
        file: the kernel.

    Returns:
        A figure of one large panel, with tokens or sentences if they are few, and one small panel per group.
    """
    kernel = _wide(traced(file.kernel))
    with matplotlib.rc_context({**RC, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure = Figure(figsize=(13.4, 6.4))
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.2, 1))[0]
        axis = left.subplots()
        image = _draw(axis, kernel, "all groups together")
        bar: dict[str, Any] = {"extend": "both", "aspect": 35, "shrink": 0.7, "location": "bottom"}
        left.colorbar(image, ax=axis, label="kernel entry, mean over outputs", **bar)
        _label(axis, file)
        _draw_groups(right, file, float(np.trace(kernel)))
        notes = "parts with their shares of the trace, every panel on its own colours"
        figure.suptitle(f"{describe(file)}; {notes}", parse_math=False)
    return figure


def _draw(axis: Axes, kernel: np.ndarray, title: str) -> AxesImage:
    axis.set_title(title, parse_math=False)
    axis.set(xticks=[], yticks=[])
    return axis.imshow(kernel, interpolation="nearest", **colour_scale(kernel))


def _draw_groups(figure: SubFigure, file: KernelFile, whole: float) -> None:
    """A square of small panels, titled with each group's share in the trace."""
    columns = math.ceil(math.sqrt(len(file.groups)))
    axes = figure.subplots(math.ceil(len(file.groups) / columns), columns, squeeze=False).ravel()
    for axis in axes[len(file.groups) :]:
        axis.remove()
    for axis, (name, part) in zip(axes, file.groups.items(), strict=False):
        part = _wide(traced(part))
        share = 100 * float(np.trace(part)) / whole if whole else 0.0
        _draw(axis, part, f"{name}: {share:.1f} %")
        axis.title.set_fontsize(11 if columns < 4 else 7)


def describe(file: KernelFile) -> str:
    """What a file holds, in a few words: "SGD kernel of minilm, block 3, 512 tokens"."""
    conditions, count = file.conditions, len(file.kernel)
    kind = {"sgd": "SGD"}.get(conditions["kind"], conditions["kind"])
    unit = "tokens" if file.kernel.ndim == 2 else "sentences"
    scope = str(conditions["scope"]).replace(":", " ")
    scope = {"mlp": "all MLP blocks", "network": "all parameters"}.get(scope, scope)
    return f"{kind} kernel of {conditions['model']['name']}, {scope}, {count} {unit}"


def _label(axis: Axes, file: KernelFile) -> None:
    """Tokens or sentences beside the rows, as far as they can be read; what rows and columns are, if that matters."""
    count = len(file.labels)
    if file.conditions["kind"] == "sign":
        axis.set_xlabel("rows: evaluated example; columns: training example")
    if count > MOST_TOKENS:
        axis.set_ylabel(f"{count} sentences" if file.kernel.ndim == 4 else f"{count} tokens in the order of the text")
        return
    labels = [text if len(text) <= LABEL_LENGTH else f"{text[: LABEL_LENGTH - 1].rstrip()}…" for text in file.labels]
    axis.set_yticks(range(count), labels, parse_math=False, fontsize=min(9.0, 260 / count))
    axis.tick_params(length=0)


def spectrum_figure(file: KernelFile, spectra: Mapping[str, Spectrum]) -> Figure:
    """Eigenvalues (SGD) or singular values (sign) of the kernel and of its parts, on logarithmic axes.

    Args:
        file: the kernel.
        spectra: from `spectra_of`.

    Returns:
        A figure of one panel; what is below the rounding of float32 is left out.
    """
    value = VALUES[file.conditions["kind"]]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.5, 5.6))
        axis = figure.subplots()
        for (name, spectrum), colour in zip(spectra.items(), _colours(list(spectra)), strict=True):
            look = {"color": "black", "linewidth": 2.6} if name == "all" else {"color": colour, "linewidth": 1.5}
            kept = spectrum.significant
            label = f"{name}: {spectrum.effective_rank:.1f}"
            axis.plot(np.arange(1, len(kept) + 1), kept, label=label, marker="o", markersize=2.5, **look)
        axis.set(xscale="log", yscale="log", xlabel=f"index of the {value}", ylabel=value)
        if not any(len(spectrum.significant) for spectrum in spectra.values()):
            axis.set(xlim=(1, 10), ylim=(0.1, 1))  # a logarithmic axis without data has no limits
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda index, _: f"{index:g}"))
        figure.suptitle(describe(file), parse_math=False)
        figure.legend(loc="outside right upper", title="effective rank", fontsize=9.5, ncols=1 + len(spectra) // 28)
    return figure


def _colours(names: Sequence[str]) -> list[Any]:
    """Layers from dark to light, everything else in hues of its own."""
    layers = [name for name in names if name.startswith("layer_")]
    ramp = dict(zip(layers, matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(layers))), strict=True))
    others = [name for name in names if name not in ramp]
    hues = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(others)}
    if ramp:  # next to a ramp of blues and greens
        hues |= dict(zip([name for name in others if name != "all"], ("#D55E00", "#B5468B"), strict=False))
    return [ramp[name] if name in ramp else hues[name] for name in names]


def kernel_heatmaps(gallery: KernelGallery, kind: str) -> Figure:
    """The original kernel and every compressed one, on the original's colour scale.

    Args:
        gallery: kernels of one layer, "original" among them.
        kind: which of its kernels.

    Returns:
        A figure with one panel per kernel; the original comes first and carries the tokens.

    Raises:
        InputError: if the gallery has no such kernels or no original.
    """
    kernels = dict(gallery.kernels.get(kind, {}))
    if "original" not in kernels:
        raise InputError(f"the gallery has no original {kind} kernel; it has {sorted(gallery.kernels)}")
    original, kernels = _wide(kernels.pop("original")), {name: _wide(kernel) for name, kernel in kernels.items()}
    with matplotlib.rc_context({**RC, "axes.grid": False, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, axes, size = _heatmap_grid(len(kernels))
        colours = colour_scale(original)
        for axis, (name, kernel) in zip(axes, [("original", original), *kernels.items()], strict=True):
            axis.imshow(kernel, interpolation="nearest", **colours)
            error = format_error(_error(kernel, original))
            below = f"error {error}" if axis is not axes[0] else f"{len(original)} tokens"
            axis.set_title(f"{name}\n{below}", fontsize=10.5, parse_math=False)
            axis.set(xticks=[], yticks=[], anchor="N")
        if len(gallery.tokens) <= MOST_TOKENS:
            font = min(10.0, 0.8 * 72 * size / len(gallery.tokens))
            axes[0].set_yticks(range(len(original)), gallery.tokens, parse_math=False, fontsize=font)
            axes[0].tick_params(length=0)
        bar: dict[str, Any] = {"extend": "both", "shrink": 0.7, "aspect": 35, "fraction": 0.04}
        figure.colorbar(axes[0].images[0], ax=axes, label="kernel entry", **bar)
        called = {"sgd": "SGD"}.get(kind, kind)
        figure.suptitle(f"The {called} kernel of layer {gallery.layer} at width {width_label(gallery.width)}")
    return figure


def _wide(kernel: np.ndarray) -> np.ndarray:
    """The kernel in float64, and NaN where a block has overflowed: neither squares nor colours leave the range."""
    kernel = np.asarray(kernel, np.float64)
    return np.where(np.isfinite(kernel), kernel, np.nan)


def _error(kernel: np.ndarray, original: np.ndarray) -> float:
    """The relative Frobenius error; NaN where there is none, of which NumPy would warn users who cannot do anything."""
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(kernel - original) / np.linalg.norm(original))


def _heatmap_grid(count: int) -> tuple[Figure, list[Axes], float]:
    """Panels for the original and `count` more, and the original's inches: among many it is twice as large."""
    big = 2 if count > 3 else 1
    columns = min(5, 2 + (count + 1) // 2) if big == 2 else 1 + count
    free = [(i, j) for i in range(2 + count) for j in range(columns) if i >= big or j >= big][:count]
    rows = max([big, *(i + 1 for i, _ in free)])
    breadth = min(12.0, 3.6 * columns + 2)
    side = (breadth - 1.9) / columns
    figure = Figure(figsize=(breadth, rows * (side + 0.5) + 0.4))
    grid = figure.add_gridspec(rows, columns)
    axes = [figure.add_subplot(grid[:big, :big]), *(figure.add_subplot(grid[i, j]) for i, j in free)]
    return figure, axes, big * side


def colour_scale(kernel: np.ndarray) -> dict[str, Any]:
    """Colour map and limits that show a kernel: centred at zero if it has clearly negative entries."""
    finite = kernel[np.isfinite(kernel)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    if low < -0.05 * high:
        most = max(-low, high)
        return {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
    return {"cmap": "viridis", "vmin": low, "vmax": high if high > low else low + 1}
