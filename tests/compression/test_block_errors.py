"""Errors of a block on held-out tokens."""

from __future__ import annotations

import math

import jax.numpy as jnp
import pytest

from ntkfusion.compression.block_errors import Reference, check_memory
from ntkfusion.errors import InputError


def test_more_tokens_than_memory_has_room_for():
    with pytest.raises(InputError, match=r"ask for --tokens [0-9]+ or fewer"):
        check_memory(10**7, 6)


def test_a_block_has_no_error_against_itself(minilm):
    block = minilm.mlp_blocks()[0]
    reference = Reference.of(block, jnp.ones((4, 384)))
    assert set(reference.errors(block).values()) == {0.0}
    assert not reference.undefined


def test_an_original_that_gives_zeros_has_no_error_instead_of_none(minilm):
    block = minilm.mlp_blocks()[0]
    silent = block.replace(w2=jnp.zeros_like(block.w2), b2=jnp.zeros_like(block.b2))
    reference = Reference.of(silent, jnp.ones((4, 384)))
    assert reference.undefined == {"output_error"}
    assert math.isnan(reference.errors(silent)["output_error"])
    assert reference.errors(silent)["sgd_kernel_error"] == 0.0
    assert reference.errors(block)["output_error"] == math.inf
