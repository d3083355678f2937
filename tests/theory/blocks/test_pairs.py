"""Putting an original block beside a fused one."""

from __future__ import annotations

import jax.numpy as jnp

import ntkfusion as nf
from ntkfusion.theory.blocks.pairs import pair_blocks


def test_a_centre_that_is_nearest_to_no_neuron_takes_the_nearest_one(x64):
    w1 = jnp.array([[0.0, 1.0, 5.0, 6.0]])
    block = nf.MLPBlock(w1, None, jnp.ones((4, 2)), None, activation="relu")
    fused = nf.MLPBlock(jnp.array([[0.5, 5.5, 100.0]]), None, jnp.ones((3, 2)), None, activation="relu")
    assert pair_blocks(block, fused).labels.tolist() == [0, 0, 1, 2]
