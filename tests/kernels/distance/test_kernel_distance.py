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
    assert len(str(kernel_distance(kernel, 2 * kernel)).splitlines()) == 9
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


def test_directions_beyond_the_numerical_rank_are_not_compared():
    """Of rank 3 against 1.7 times itself, ten directions overlapped by as much as rounding said."""
    low = gram(0, 12, features=3)
    distance = kernel_distance(low, 1.7 * low, top_k=10)
    assert (distance.top_k, distance.reference_rank, distance.rank) == (3, 3, 3)
    assert distance.top_overlap == pytest.approx(1, abs=1e-5)
    distance = kernel_distance(gram(0), low, top_k=10)
    assert (distance.top_k, distance.reference_rank, distance.rank) == (3, 12, 3)


@pytest.mark.parametrize("new", [jnp.zeros((4, 4)), jnp.eye(4) + jnp.ones((4, 4))])
def test_kernels_without_distinct_directions_have_no_overlap(new):
    """0 against 0 overlapped wholly, and so did a multiple of the identity, whose directions are LAPACK's choice."""
    distance = kernel_distance(jnp.zeros((4, 4)), new)
    assert (distance.top_k, distance.reference_rank, distance.top_overlap) == (0, 0, None)
    assert "top_overlap" not in str(distance)
    assert kernel_distance(jnp.eye(4), 2 * jnp.eye(4), top_k=2).top_overlap is None
    assert kernel_distance(jnp.eye(4), 2 * jnp.eye(4)).top_overlap == pytest.approx(1)  # the whole space
    tied = jnp.diag(jnp.array([3.0, 1.0, 1.0, 0.5]))
    assert kernel_distance(tied, tied, top_k=2).top_k == 1


def test_no_direction_at_all_is_refused():
    with pytest.raises(InputError, match="at least 1; got 0"):
        kernel_distance(jnp.eye(3), jnp.eye(3), top_k=0)


def test_alignment_of_a_constant_kernel_is_not_decided_by_rounding():
    constant = jnp.full((7, 7), 0.1) * jnp.float32(1.0000001)
    assert centred_alignment(constant, gram(0, 7)) == 0
    assert centred_alignment(constant, 3 * constant) == 0


def test_a_kernel_that_does_not_learn_has_no_prediction_gap():
    """A sign kernel may be indefinite: the ridge then makes a nearly singular matrix of it, and anything comes out."""
    kernel, targets = gram(0), normal(2, 12)
    indefinite = kernel - 2 * jnp.max(kernel) * jnp.eye(12)
    turning = jnp.eye(12) + 0 * kernel
    assert prediction_gap(kernel, indefinite, targets) is None
    assert prediction_gap(indefinite, kernel, targets) is None
    assert kernel_distance(kernel, indefinite, targets=targets).prediction_gap is None
    # not symmetric, with complex eigenvalues of positive real parts: it learns
    skew = jnp.triu(jnp.ones((12, 12)), 1)
    assert prediction_gap(turning, turning + skew - skew.T, targets) is not None
