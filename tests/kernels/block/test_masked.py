"""Kernels of pruned blocks beside the shared cases of test_block: memory, the dense limit, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel, estimate_block_kernel
from ntkfusion.kernels.block.sequence_kernel import sequence_kernel
from ntkfusion.kernels.distance.full_kernel_distance import full_kernel_distance
from ntkfusion.kernels.kinds import KINDS
from tests.helpers.blocks import dense_block, masked_block, normal, relative


@pytest.mark.parametrize("kind", KINDS)
def test_without_holes_it_is_the_dense_kernel(x64, kind):
    block, x = masked_block(kept=1.0), normal(7, 6, 5)
    ours, dense = (block_kernel(each, x, kind=kind, by_parameter=True) for each in (block, dense_block()))
    assert all(relative(ours[name], dense[name]) <= 1e-13 for name in dense)


def test_nothing_of_size_n_d_m_lives():
    shapes = jax.eval_shape(lambda: masked_block(384, 1536, 384))
    assert estimate_block_kernel(shapes, 1024).peak < 1024 * 384 * 1536 * 4 / 20


def test_what_needs_product_gradients_is_refused():
    block, x = masked_block(), normal(7, 2, 4, 5)
    with pytest.raises(InputError, match=r"sequence kernels exist for .*; got a MaskedBlock"):
        sequence_kernel(block, x, jnp.ones((2, 4, 1, 3)))
    with pytest.raises(InputError, match=r"full kernels are compared for .*; got a MaskedBlock"):
        full_kernel_distance(dense_block(), block, x[0])
