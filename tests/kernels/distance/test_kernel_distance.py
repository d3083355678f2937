"""Distances that are known by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.distance.kernel_distance import (
    centred_alignment,
    effective_rank,
    kernel_distance,
    prediction_gap,
    relative_error,
)
from tests.helpers.blocks import normal


def gram(seed, n=12, features=30):
    points = normal(seed, n, features)
    return points @ points.T


def test_a_kernel_is_at_no_distance_from_itself():
    kernel = gram(0)
    distance = kernel_distance(kernel, kernel)
    assert distance.relative_frobenius == 0
    assert distance.relative_spectral == 0
    assert distance.alignment == pytest.approx(1, abs=1e-6)
    assert distance.top_overlap == pytest.approx(1, abs=1e-5)


def test_scaling_changes_norms_but_not_directions():
    kernel = gram(0)
    distance = kernel_distance(kernel, 3 * kernel)
    assert distance.relative_frobenius == pytest.approx(2, rel=1e-5)
    assert distance.relative_spectral == pytest.approx(2, rel=1e-5)
    assert distance.alignment == pytest.approx(1, abs=1e-6)
    assert distance.top_overlap == pytest.approx(1, abs=1e-5)


def test_values_equal_numpy():
    first, second = gram(0), gram(1)
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    distance = kernel_distance(first, second, top_k=3)
    assert distance.relative_frobenius == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    assert distance.relative_spectral == pytest.approx(np.linalg.norm(b - a, 2) / np.linalg.norm(a, 2), rel=1e-5)
    h = np.eye(12) - 1 / 12
    ha, hb = h @ a @ h, h @ b @ h
    assert distance.alignment == pytest.approx((ha * hb).sum() / np.linalg.norm(ha) / np.linalg.norm(hb), rel=1e-4)
    u, v = np.linalg.eigh(a)[1][:, -3:], np.linalg.eigh(b)[1][:, -3:]
    assert distance.top_overlap == pytest.approx((np.linalg.norm(u.T @ v) ** 2) / 3, rel=1e-4)


def test_relative_error_of_zeros_and_of_huge_values():
    assert relative_error(jnp.zeros(3), jnp.zeros(3)) == 0
    assert relative_error(jnp.ones(3), jnp.zeros(3)) == float("inf")
    assert relative_error(jnp.full(3, 3e30), jnp.full(3, 2e30)) == pytest.approx(0.5)


def test_alignment_of_constant_kernels_is_zero():
    assert centred_alignment(jnp.ones((4, 4)), gram(0, 4)) == 0


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (jnp.ones((3, 3)), jnp.ones((4, 4)), "one shape"),
        (jnp.ones((3, 3)), jnp.full((3, 3), jnp.nan), "not finite"),
    ],
)
def test_kernels_that_cannot_be_compared(first, second, message):
    with pytest.raises(InputError, match=message):
        getattr(kernel_distance, "__wrapped__", kernel_distance)(first, second)


def test_effective_rank_is_the_number_of_equal_directions():
    assert effective_rank(jnp.array([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3, rel=1e-6)
    assert effective_rank(jnp.zeros(3)) == 0
    distance = kernel_distance(jnp.eye(5), jnp.diag(jnp.array([1.0, 1.0, 0.0, 0.0, 0.0])))
    assert distance.reference_effective_rank == pytest.approx(5, rel=1e-6)
    assert distance.effective_rank == pytest.approx(2, rel=1e-6)
    assert distance.prediction_gap is None


@pytest.mark.parametrize("columns", [(), (2,)])
def test_prediction_gap_equals_numpy(columns):
    # not symmetric, as sign kernels are
    first, second = gram(0) + 0.1 * normal(5, 12, 12), gram(1) + 0.1 * normal(6, 12, 12)
    targets = normal(2, 12, *columns)

    def predict(kernel):
        k, y = np.asarray(kernel, np.float64), np.asarray(targets, np.float64)
        train = k[::2, ::2]
        return k[1::2, ::2] @ np.linalg.solve(train + 0.1 * np.abs(np.diag(train)).mean() * np.eye(6), y[::2])

    a, b = predict(first), predict(second)
    gap = kernel_distance(first, second, targets=targets, ridge=0.1).prediction_gap
    assert gap == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-4)


def test_prediction_gap_is_blind_to_scale_and_total_for_the_zero_kernel():
    kernel, targets = gram(0), normal(2, 12)
    assert prediction_gap(kernel, 7 * kernel, targets) <= 1e-4
    assert prediction_gap(kernel, 0 * kernel, targets) == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "targets", "ridge", "message"),
    [
        ((4, 3), jnp.ones(4), 1e-3, "two square kernels"),
        ((4, 4), jnp.ones(3), 1e-3, "targets must be 4 finite rows"),
        ((4, 4), jnp.full(4, jnp.nan), 1e-3, "targets must be 4 finite rows"),
        ((4, 4), jnp.ones(4), 0.0, "ridge must be positive"),
    ],
)
def test_predictions_that_cannot_be_made(shape, targets, ridge, message):
    call = getattr(prediction_gap, "__wrapped__", prediction_gap)
    with pytest.raises(InputError, match=message):
        call(jnp.ones(shape), jnp.ones(shape), targets, ridge=ridge)


def test_prints_one_fact_per_line():
    kernel = gram(0)
    assert len(str(kernel_distance(kernel, 2 * kernel)).splitlines()) == 7
    lines = str(kernel_distance(kernel, 2 * kernel, targets=normal(2, 12))).splitlines()
    assert lines[0].startswith("KernelDistance(relative_frobenius=1,")
    assert lines[-1].strip().startswith("prediction_gap=")


def network_grams(seeds, n=6, outputs=2):
    """Random kernels [n, n, outputs, outputs] and their matrices in NumPy."""
    matrices = [np.asarray(gram(seed, n * outputs), np.float64) for seed in seeds]
    return [
        jnp.asarray(m.reshape(n, outputs, n, outputs).transpose(0, 2, 1, 3), jnp.float32) for m in matrices
    ], matrices


def test_network_kernels_are_compared_as_matrices():
    (first, second), (a, b) = network_grams((0, 1))
    targets = normal(5, 6, 2)
    distance = kernel_distance(first, second, top_k=3, targets=targets)
    assert distance.relative_frobenius == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    assert distance.relative_spectral == pytest.approx(np.linalg.norm(b - a, 2) / np.linalg.norm(a, 2), rel=1e-5)
    h = np.kron(np.eye(6) - 1 / 6, np.eye(2))
    ha, hb = h @ a @ h, h @ b @ h
    assert distance.alignment == pytest.approx((ha * hb).sum() / np.linalg.norm(ha) / np.linalg.norm(hb), rel=1e-4)
    u, v = np.linalg.eigh(a)[1][:, -3:], np.linalg.eigh(b)[1][:, -3:]
    assert distance.top_overlap == pytest.approx((np.linalg.norm(u.T @ v) ** 2) / 3, rel=1e-4)
    even, odd = [0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]  # outputs of examples 0, 2, 4 and 1, 3, 5

    def predict(kernel):
        train = kernel[np.ix_(even, even)]
        ridge = 1e-3 * np.abs(np.diag(train)).mean() * np.eye(6)
        return kernel[np.ix_(odd, even)] @ np.linalg.solve(train + ridge, np.asarray(targets[::2]).ravel())

    expected = np.linalg.norm(predict(b) - predict(a)) / np.linalg.norm(predict(a))
    assert distance.prediction_gap == pytest.approx(expected, rel=1e-3)
    with pytest.raises(InputError, match="6 finite rows of 2 numbers, one per example, got shape"):
        prediction_gap(first, second, targets[:, :1])


def test_zero_kernels_have_distances_too():
    zero, kernel = jnp.zeros((3, 3)), gram(0, 3)
    assert kernel_distance(zero, zero).relative_spectral == 0
    assert kernel_distance(zero, kernel).relative_spectral == float("inf")
