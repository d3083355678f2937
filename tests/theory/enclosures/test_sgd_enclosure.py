"""Limits of the SGD kernel's error: never violated, closing with the share, and dependent on their remainder."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.theory.enclosures import sgd_enclosure as tight_sgd
from ntkfusion.theory.enclosures.sgd_enclosure import kernel_directions, sgd_enclosure
from tests.helpers.enclosure_cases import random_case

SHARES = (0.0, 0.5, 1.0)


def measured(original, fused, x, z=None):
    return np.abs(np.asarray(block_kernel(original, x, z) - block_kernel(fused, x, z)))


def check(seed, activation, scale, clusters, **kind):
    original, fused, labels, x = random_case(seed, activation, scale, **kind)
    directions = kernel_directions(original, labels if clusters else None, x[:3])
    error = measured(original, fused, x)
    found = [sgd_enclosure(original, fused, x, share=share, directions=directions) for share in SHARES]
    for limits in found:
        assert (np.asarray(limits.upper) >= error).all()
        assert (np.asarray(limits.lower) <= error).all()
    uppers = np.stack([np.asarray(limits.upper) for limits in found])
    assert (np.diff(uppers, axis=0) <= 1e-9 * uppers.max()).all()
    size = np.max(np.asarray(block_kernel(original, x)))
    assert (uppers[-1] - error <= 1e-8 * (1 + scale) ** 2 * (1 + size)).all()


@settings(deadline=None, max_examples=8)
@given(
    st.integers(0, 2**20),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e3]),
    st.booleans(),
    st.sampled_from([{}, {"biases": False}, {"alike": True}, {"dead": True}]),
)
def test_limits_hold_and_close(seed, activation, scale, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, scale, clusters, **kind)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(
    st.integers(0, 2**30),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.floats(-3, 3),
    st.booleans(),
    st.sampled_from([{}, {"biases": False}, {"alike": True}, {"dead": True}]),
)
def test_limits_hold_and_close_on_many(seed, activation, exponent, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, 10.0**exponent, clusters, **kind)


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
def test_without_a_main_term_it_is_violated(x64, monkeypatch, cut):
    original, fused, labels, x = random_case(3, "gelu")
    product = tight_sgd._product

    def without(*arguments):
        return tuple(0 * part if index == cut else part for index, part in enumerate(product(*arguments)))

    share = 0.25 if cut else 1.0
    monkeypatch.setattr(tight_sgd, "_product", without)
    limits = sgd_enclosure(original, fused, x, labels=labels, share=share)
    assert (np.asarray(limits.upper) < measured(original, fused, x)).any()


def test_another_block_may_be_compared(x64):
    original, _, _, x = random_case(4, "silu")
    other, *_ = random_case(5, "relu")
    limits = sgd_enclosure(original, other, x, share=0.5)
    assert (np.asarray(limits.upper) >= measured(original, other, x)).all()
    with pytest.raises(InputError, match="share"):
        sgd_enclosure(original, other, x, share=-0.1)
