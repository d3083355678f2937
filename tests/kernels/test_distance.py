"""Distances that are known by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from blocks import normal

from ntkfusion.errors import InputError
from ntkfusion.kernels.distance import centred_alignment, kernel_distance, relative_error


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
