"""Names beside points, so that they cover neither points nor each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patheffects import withStroke

#: Distances from the point that are tried, in pixels, and directions in degrees; the first are preferred.
RADII = (12, 24, 40, 60, 85, 115, 150)
DIRECTIONS = (0, 180, 45, 315, 135, 225, 90, 270, 22, 338, 158, 202)
#: Room around a point, in pixels.
POINT = 6


def place_labels(
    axis: Axes,
    labels: Mapping[str, tuple[float, float]],
    points: Sequence[tuple[float, float]],
    colour: Callable[[str], str],
    bold: Callable[[str], bool],
) -> None:
    """Write every name near its point, with a thin line to it where it had to move away.

    Greedy: bold names first, then the most crowded; each takes the nearest place that overlaps least.

    Args:
        axis: with its limits set by what is drawn already.
        labels: name → point, in data coordinates.
        points: everything that should stay visible.
        colour: of a name.
        bold: whether a name is to stand out.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    if not isinstance(figure.canvas, FigureCanvasAgg):
        FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # limits and layout are final after this
    pixels = {name: axis.transData.transform(point) for name, point in labels.items()}
    taken = [np.array([*(at - POINT), *(at + POINT)]) for at in axis.transData.transform(np.array(points))]
    everywhere = np.array(list(pixels.values()))
    crowd = {name: np.sum(np.linalg.norm(everywhere - at, axis=1) < 100) for name, at in pixels.items()}
    for name in sorted(labels, key=lambda name: (not bold(name), -crowd[name])):
        weight = {"fontweight": "bold" if bold(name) else "normal", "fontsize": 10 if bold(name) else 8.5}
        text = axis.annotate(
            name, labels[name], (0, 0), textcoords="offset points", va="center", color=colour(name), zorder=5, **weight
        )
        text.set_parse_math(False)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        box = text.get_window_extent()
        offset, rectangle = _free_place(pixels[name], box.width, box.height, taken, np.array(axis.bbox.extents))
        taken.append(rectangle)
        text.set_position(tuple(offset * 72 / figure.dpi))  # points, which stay in place at any resolution
        end = np.clip(0, offset, offset + np.array([box.width, 0]))  # where a line meets the name
        if np.linalg.norm(end) > 1.5 * RADII[0]:
            _connect(axis, labels[name], (end[0] * 72 / figure.dpi, end[1] * 72 / figure.dpi), colour(name))


def _connect(axis: Axes, point: tuple[float, float], tip: tuple[float, float], colour: str) -> None:
    line = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.7, "shrinkA": 0, "shrinkB": 3}
    axis.annotate("", point, tip, textcoords="offset points", arrowprops=line, zorder=3)


def _free_place(
    at: np.ndarray, width: float, height: float, taken: Sequence[np.ndarray], frame: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Offset of the label's left middle, and its rectangle (left, bottom, right, top)."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for radius in RADII:
        for direction in DIRECTIONS:
            way = np.array([np.cos(np.radians(direction)), np.sin(np.radians(direction))])
            middle = radius * way - [width if way[0] < -0.1 else width / 2 if abs(way[0]) <= 0.1 else 0, 0]
            corner = at + middle - [0, height / 2]
            rectangle = np.concatenate([corner, corner + np.array([width, height])])
            cost = 3 * sum(_overlap(rectangle, other) for other in taken) + radius
            cost += 1e6 * (np.any(rectangle[:2] < frame[:2]) or np.any(rectangle[2:] > frame[2:]))
            if best is None or cost < best[0]:
                best = (cost, middle, rectangle)
    assert best is not None
    return best[1], best[2]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area that two rectangles share."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(np.maximum(sides, 0)))
