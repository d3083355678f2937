"""Limits of the SGD kernel's error: never violated, closing with the share, and dependent on their remainder."""

import jax
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.theory.enclosures.sgd_enclosure import enclose_sgd, kernel_directions, sgd_enclosure, split_product
from tests.helpers.enclosure_cases import SHARES, assert_limits_close, on_few_cases, on_many_cases, random_case


def measured(original, fused, x, z=None):
    return np.abs(np.asarray(block_kernel(original, x, z) - block_kernel(fused, x, z)))


def check(seed, activation, scale, clusters, **kind):
    original, fused, labels, x = random_case(seed, activation, scale, **kind)
    directions = kernel_directions(original, labels if clusters else None, x[:3])
    error = measured(original, fused, x)
    found = [sgd_enclosure(original, fused, x, share=share, directions=directions) for share in SHARES]
    size = np.max(np.asarray(block_kernel(original, x)))
    assert_limits_close(found, error, (1 + scale) ** 2 * (1 + size))


@pytest.mark.wide
@on_few_cases
def test_limits_hold_and_close(seed, activation, scale, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, scale, clusters, **kind)


@pytest.mark.slow
@on_many_cases
def test_limits_hold_and_close_on_many(seed, activation, scale, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, scale, clusters, **kind)


@pytest.mark.wide
def test_at_share_one_it_is_the_error_of_dense_jacobians(x64):
    original, fused, labels, x = random_case(0, "gelu")
    x, z = x[:3], x[2:]

    def kernel(block):
        @jax.jit
        def jacobians(inputs):
            return jax.jacrev(lambda parameters: block.replace(**parameters)(inputs))(block.parameters())

        def rows(inputs):
            parts = jacobians(inputs).values()
            return np.concatenate([np.asarray(j).reshape(*j.shape[:2], -1) for j in parts], axis=2)

        return np.einsum("nop,mop->nm", rows(x), rows(z)) / block.output_width

    limits = sgd_enclosure(original, fused, x, z, labels, share=1.0)
    error = np.abs(kernel(original) - kernel(fused))
    np.testing.assert_allclose(limits.upper, error, atol=1e-8)
    np.testing.assert_allclose(limits.lower, error, atol=1e-8)


@pytest.mark.parametrize("cut", [0, 1])
def test_without_a_main_term_it_is_violated(x64, cut):
    original, fused, labels, x = random_case(3, "gelu")

    def without(*arguments):
        return tuple(0 * part if index == cut else part for index, part in enumerate(split_product(*arguments)))

    share = 0.25 if cut else 1.0
    limits = enclose_sgd(original, fused, x, None, kernel_directions(original, labels, x), share, without)
    assert (np.asarray(limits.upper) < measured(original, fused, x)).any()


def test_another_block_may_be_compared(x64):
    original, _, _, x = random_case(4, "silu")
    other, *_ = random_case(5, "relu")
    limits = sgd_enclosure(original, other, x, share=0.5)
    assert (np.asarray(limits.upper) >= measured(original, other, x)).all()
    with pytest.raises(InputError, match="share"):
        sgd_enclosure(original, other, x, share=-0.1)
