"""The size solver: the table of the paper's code, and budgets that are kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkfusion.compression.methods.autoencoder.network import Sizes, init_network, latent_width

#: Rows of BERT-base's matrices with 768 numbers each: one layer, 12 layers together, word embeddings.
ONE, TWELVE, WORDS = 768, 12 * 768, 30522


def stored(rows, sizes, norms):
    """Counted on the arrays themselves."""
    network = jax.eval_shape(lambda: init_network(jax.random.key(0), sizes, jnp.float32))
    return rows * sizes.decoder[0] + norms * rows + sum(leaf.size for leaf in jax.tree.leaves(network.decoder))


@pytest.mark.parametrize(("ratio", "widths"), [(10, (14, 54, 67)), (25, (5, 21, 26)), (3, (45, 168, 217))])
def test_the_table_of_the_reference(ratio, widths):
    assert tuple(latent_width(rows, 768, rows * 768 // ratio) for rows in (ONE, TWELVE, WORDS)) == widths


def test_without_row_norms_the_large_ones_would_be_wider():
    assert tuple(latent_width(rows, 768, rows * 768 // 10, norms=False) for rows in (ONE, TWELVE, WORDS)) == (
        14,
        55,
        68,
    )


@pytest.mark.parametrize(
    ("rows", "inner", "decoder", "latents", "ratios"),
    [
        (ONE, (28, 56), 45_820, 10_752, (10.43, 10.29)),
        (TWELVE, (108, 216), 196_140, 497_664, (10.20, 10.07)),
        (WORDS, (134, 268), 251_884, 2_044_974, (10.21, 10.07)),
    ],
)
def test_stored_numbers_of_the_table(rows, inner, decoder, latents, ratios):
    sizes = Sizes.of(768, latent_width(rows, 768, rows * 768 // 10))
    assert sizes.decoder[1:3] == inner
    assert sizes.encoder == (768, 8 * sizes.decoder[0], 4 * sizes.decoder[0], sizes.decoder[0])
    assert (sizes.decoder_parameters, rows * sizes.decoder[0]) == (decoder, latents)
    assert tuple(round(rows * 768 / stored(rows, sizes, norms), 2) for norms in (0, 1)) == ratios


@given(
    rows=st.integers(1, 5000),
    length=st.integers(1, 900),
    budget=st.integers(0, 10**6),
    linear=st.booleans(),
    norms=st.booleans(),
)
def test_the_widest_that_fits_and_never_more(rows, length, budget, linear, norms):
    def count(width):
        return rows * (width + norms) + Sizes.of(length, width, linear=linear).decoder_parameters

    width = latent_width(rows, length, budget, linear=linear, norms=norms)
    assert width == 0 or count(width) <= budget
    assert count(width + 1) > budget


@pytest.mark.parametrize("linear", [True, False])
def test_what_is_counted_is_what_the_arrays_hold(linear):
    sizes = Sizes.of(9, 2, linear=linear)
    assert stored(5, sizes, 1) == 5 * 2 + 5 + sizes.decoder_parameters
