"""A budget of neurons shared over layers, where fewer clusters cost more or less inertia."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ntkfusion.errors import InputError

#: Numbers of clusters at which inertias are measured, relative to an even share; one cluster and all neurons beside.
MEASURED_AT = (0.5, 1.0, 1.5, 2.0)

#: Inertia at some numbers of clusters: {clusters: inertia}, at least at 1 and at all neurons.
InertiaCurve: TypeAlias = dict[int, float]


def allocate(curves: Sequence[InertiaCurve], budget: int) -> list[int]:
    """Clusters per layer with the least sum of inertias, by interpolation of convex curves.

    Each curve is replaced by its lower convex hull, piecewise linear. Then the best use of the next neuron is always
    the steepest segment that is left, and taking segments in that order is optimal for the hulls.

    Args:
        curves: per layer, inertia at some numbers of clusters from 1 to all neurons.
        budget: clusters in all.

    Returns:
        One number per layer, at least 1 and at most all of its neurons, with sum `budget`.

    Raises:
        InputError: if the budget is less than one neuron per layer, or more than all.

    >>> allocate([{1: 8.0, 3: 0.0, 4: 0.0}, {1: 3.0, 4: 0.0}], 5)
    [3, 2]
    """
    most = [max(curve) for curve in curves]
    if not len(curves) <= budget <= sum(most):
        raise InputError(f"a budget over {len(curves)} layers is from {len(curves)} to {sum(most)}; got {budget}")
    segments = [
        ((after - before) / (right - left), layer, right - left)
        for layer, curve in enumerate(curves)
        for (left, before), (right, after) in _hull_segments(curve)
    ]
    widths, left_over = [1] * len(curves), budget - len(curves)
    # slopes of a hull rise, so a stable sort keeps the segments of a layer in order
    for _, layer, length in sorted(segments, key=lambda segment: segment[0]):
        taken = min(length, left_over)
        widths[layer] += taken
        left_over -= taken
    return widths


def _hull_segments(curve: InertiaCurve) -> list[tuple[tuple[int, float], tuple[int, float]]]:
    """Neighbouring corners of the lower convex hull."""
    hull: list[tuple[int, float]] = []
    for point in sorted(curve.items()):
        while len(hull) > 1 and _not_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return list(itertools.pairwise(hull))


def _not_below(left: tuple[int, float], middle: tuple[int, float], right: tuple[int, float]) -> bool:
    """Whether the middle point is not below the line through the others."""
    share = (middle[0] - left[0]) / (right[0] - left[0])
    return middle[1] >= left[1] + share * (right[1] - left[1])


def measured_counts(share: int, hidden_width: int) -> list[int]:
    """Numbers of clusters, from 2 to less than all, at which to measure a layer with an even share of `share`."""
    counts = {round(factor * share) for factor in MEASURED_AT}
    return sorted(count for count in counts if 1 < count < hidden_width)


def measure_curves(
    shares: Sequence[int],
    hidden_widths: Sequence[int],
    spreads: Sequence[float],
    inertias: Callable[[list[tuple[int, int]]], Sequence[float]],
) -> list[InertiaCurve]:
    """Curves of all layers from one batch of clusterings.

    Args:
        shares: even share per layer.
        hidden_widths: neurons per layer.
        spreads: inertia of one cluster per layer.
        inertias: inertias of the wanted (layer, number of clusters).

    Returns:
        One curve per layer.
    """
    wanted = [
        (layer, count)
        for layer, (share, width) in enumerate(zip(shares, hidden_widths, strict=True))
        for count in measured_counts(share, width)
    ]
    # all neurons last: with a single neuron its inertia is 0 too
    curves: list[InertiaCurve] = [{1: spread, width: 0.0} for spread, width in zip(spreads, hidden_widths, strict=True)]
    for (layer, count), inertia in zip(wanted, inertias(wanted), strict=True):
        curves[layer][count] = inertia
    return curves
