"""Rank correlations by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.common.correlations import bootstrap, mean_rho, spearman


def test_ranks():
    assert spearman([(1, 1), (2, 4), (3, 9), (4, 16)]) == pytest.approx(1)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1)
    # 1 − 6 Σd² / (n (n² − 1)) with d = 0, 1, −1, 0
    assert spearman([(1, 10), (2, 30), (3, 20), (4, 40)]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert np.isnan(spearman([(1, 1), (2, 2)]))


def test_correlations_are_means_over_tasks_and_methods_are_drawn_with_all_they_have():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 9, 2))
    expected = np.mean([spearmanr(x[task].ravel(), y[task].ravel()).statistic for task in range(3)])
    rho, low, high = bootstrap(list(zip(x, y, strict=True)), 200)
    assert rho == pytest.approx(expected)
    assert low < rho < high
    # copies of a task add no certainty
    assert bootstrap([(x[0], y[0])], 200) == pytest.approx(bootstrap([(x[0], y[0])] * 5, 200))
    # a task in which all scores are the same has no part
    assert mean_rho([(x[0], y[0]), (x[1], 0 * y[1])]) == mean_rho([(x[0], y[0])])
    assert np.isnan(bootstrap([(x[0], 0 * y[0])], 100)).all()
    y[0, 0] = np.nan
    assert mean_rho([(x[0], y[0])]) == pytest.approx(spearmanr(x[0, 1:].ravel(), y[0, 1:].ravel()).statistic)
