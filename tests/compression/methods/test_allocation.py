"""Shared budgets against all possible shares, and what curves are measured at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfusion.compression.methods.allocation import allocate, measure_curves, measured_counts
from ntkfusion.errors import InputError


def convex_curve(widths_and_drops):
    """Inertia at every number of clusters, falling by ever less, down to 0."""
    drops = sorted(widths_and_drops, reverse=True)
    return {1 + count: float(sum(drops[count:])) for count in range(len(drops) + 1)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 50), min_size=0, max_size=5), min_size=1, max_size=3),
    st.integers(0, 15),
)
def test_no_other_share_of_convex_curves_is_better(drops, extra):
    curves = [convex_curve(layer) for layer in drops]
    budget = min(len(curves) + extra, sum(max(curve) for curve in curves))
    widths = allocate(curves, budget)
    assert sum(widths) == budget
    shares = [share for share in itertools.product(*curves) if sum(share) == budget]
    best = min(sum(curve[width] for curve, width in zip(curves, share, strict=True)) for share in shares)
    assert sum(curve[width] for curve, width in zip(curves, widths, strict=True)) == pytest.approx(best)


def test_a_dent_in_a_curve_is_bridged():
    # measured curves need not be convex: 4 clusters look worse than the line from 2 to 8 says
    assert allocate([{1: 10.0, 2: 6.0, 4: 5.9, 8: 0.0}, {1: 9.0, 10: 0.0}], 9) == [8, 1] == _by_hull()


def _by_hull():
    return allocate([{1: 10.0, 2: 6.0, 8: 0.0}, {1: 9.0, 10: 0.0}], 9)


@pytest.mark.parametrize("budget", [1, 8])
def test_budgets_out_of_range(budget):
    with pytest.raises(InputError, match=f"from 2 to 7; got {budget}"):
        allocate([{1: 1.0, 3: 0.0}, {1: 1.0, 4: 0.0}], budget)


def test_curves_are_measured_around_an_even_share():
    assert measured_counts(4, 16) == [2, 4, 6, 8]
    assert measured_counts(1, 4) == [2]
    assert measured_counts(4, 5) == [2, 4]
    asked = []

    def inertias(wanted):
        asked.extend(wanted)
        return [100.0 - count for _, count in wanted]

    curves = measure_curves([2, 4], [4, 1], [100.0, 0.0], inertias)
    assert asked == [(0, 2), (0, 3)]
    assert curves == [{1: 100.0, 2: 98.0, 3: 97.0, 4: 0.0}, {1: 0.0}]
    assert np.sum(allocate(curves, 3)) == 3
