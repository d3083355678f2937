"""Sums of Kronecker products: the layout, the optimum, the count."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.matrices.codecs import Matrix
from ntkfusion.compression.methods.kronecker import Kronecker, factor_shapes, num_terms, rearrange
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from tests.helpers.blocks import dense_block, normal


def only(width, block):
    return Kronecker(width).compress([block], Workspace()).blocks[0]


def tail(weights, shapes, count):
    """Root of the sum of squares of what `count` terms leave, with the rearrangement written as loops."""
    (p, q), (s, t) = shapes
    blocks = [weights[a * s : (a + 1) * s, b * t : (b + 1) * t].reshape(-1) for a in range(p) for b in range(q)]
    return np.sqrt((np.linalg.svd(np.array(blocks), compute_uv=False)[count:] ** 2).sum())


@pytest.mark.parametrize(
    ("shape", "shapes"),
    [((768, 3072), ((24, 64), (32, 48))), ((7, 12), ((1, 4), (7, 3))), ((9, 9), ((3, 3), (3, 3)))],
)
def test_factors_multiply_to_the_matrix(shape, shapes):
    (p, q), (s, t) = factor_shapes(shape)
    assert ((p, q), (s, t)) == shapes
    assert (p * s, q * t) == shape


def test_error_is_the_tail_of_the_singular_values(x64):
    block = dense_block(12, 40, 12)
    small = only(0.5, block)
    for code, weights in ((small.w1, block.w1), (small.w2, block.w2)):
        count = code.left.shape[0]
        assert 1 < count < min(rearrange(weights).shape)
        decoded = sum(np.kron(a, b) for a, b in zip(code.left, code.right, strict=True))
        np.testing.assert_allclose(code.decode(), decoded, rtol=1e-10, atol=1e-12)
        expected = tail(np.asarray(weights), factor_shapes(weights.shape), count)
        assert np.linalg.norm(decoded - weights) == pytest.approx(expected, rel=1e-10)


def test_a_sum_of_products_is_found_again(x64):
    block = dense_block(12, 40, 12)
    (p, q), (s, t) = factor_shapes((12, 40))
    weights = sum(np.kron(a, b) for a, b in zip(normal(0, 2, p, q), normal(1, 2, s, t), strict=True))
    block = block.replace(w1=jnp.asarray(weights))
    np.testing.assert_allclose(only(0.5, block).w1.decode(), weights, rtol=1e-10, atol=1e-12)


def test_as_many_terms_as_the_budget_pays():
    shape = (768, 3072)
    assert num_terms("w1", shape, 768 * 768) == 768 * 768 // (2 * 1536)
    assert num_terms("w1", (4, 4), 10**6) == 4
    block = dense_block(12, 40, 12)
    small = only(0.5, block)
    assert small.num_parameters <= dense_block(12, 20, 12).num_parameters < small.num_parameters + 2 * (24 + 20)


def test_too_small_a_budget_is_refused():
    with pytest.raises(InputError, match=r"one term of w1 \(12, 40\) takes 44 numbers.*choose a larger width"):
        only(0.1, dense_block(12, 40, 12))
    with pytest.raises(InputError, match="one term of query"):
        Kronecker(0.1).check_matrices("query", [Matrix(normal(0, 4, 4), 7)])
