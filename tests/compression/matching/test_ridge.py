"""Ridge regression against scikit-learn's."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import RidgeCV

from ntkfusion.compression.matching.refit import PENALTIES, ridge
from ntkfusion.errors import InputError
from tests.helpers.blocks import normal


@pytest.mark.parametrize("intercept", [True, False])
def test_equals_scikit_learn_with_the_same_penalties(x64, intercept):
    features = normal(0, 30, 12) @ jnp.diag(jnp.logspace(0, -3, 12)) + 1.0
    targets = features @ normal(1, 12, 4) + 0.3 * normal(2, 30, 4) + 2.0
    weights, bias, penalty, error = ridge(features, targets, intercept=intercept)
    centred, spread = ((array - array.mean(axis=0, keepdims=True) * float(intercept)) for array in (features, targets))
    unit = float(jnp.sum(centred**2)) / 12
    theirs = RidgeCV(alphas=[unit * p for p in PENALTIES], fit_intercept=intercept).fit(features, targets)
    assert penalty * unit == pytest.approx(theirs.alpha_)
    np.testing.assert_allclose(weights, theirs.coef_.T, rtol=1e-8)
    np.testing.assert_allclose(bias, np.broadcast_to(theirs.intercept_, 4), rtol=1e-8, atol=1e-12)
    assert error == pytest.approx(float(np.sqrt(-theirs.best_score_ * targets.size / np.sum(spread**2))), rel=1e-8)


def test_more_features_than_samples_is_no_problem():
    features, targets = normal(0, 5, 20), normal(1, 5, 2)
    weights, _, _, error = ridge(features, targets)
    assert bool(jnp.all(jnp.isfinite(weights)))
    assert error > 0


@pytest.mark.parametrize("intercept", [True, False])
def test_silent_features_get_weight_0(intercept):
    """Neurons that are dead on all calibration tokens."""
    targets = normal(1, 8, 3)
    weights, bias, _, error = ridge(jnp.zeros((8, 2)), targets, intercept=intercept)
    np.testing.assert_array_equal(weights, 0)
    np.testing.assert_allclose(bias, float(intercept) * targets.mean(axis=0), rtol=1e-6)
    assert np.isfinite(error)


def test_constant_targets_are_all_intercept():
    weights, bias, _, error = ridge(normal(0, 8, 2), jnp.full((8, 3), 2.0))
    np.testing.assert_allclose(weights, 0, atol=1e-6)
    np.testing.assert_allclose(bias, 2.0, rtol=1e-6)
    assert error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "penalties", "message"),
    [(1, [1.0], "at least 2 samples, got 1"), (3, [0.0], "positive"), (3, [], "positive")],
)
def test_bad_requests(samples, penalties, message):
    with pytest.raises(InputError, match=message):
        ridge(jnp.ones((samples, 2)), jnp.ones((samples, 1)), penalties=penalties)
