"""The block with pruned weights: the formula, what no gradient reaches, honest counts, life inside of a network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.commands.inspect.run import BlockFacts, blocks_table, parameter_parts
from ntkfusion.errors import InputError
from ntkfusion.kernels.network.network_kernel import network_kernel
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.blocks.block import layout
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.model import random_model
from tests.helpers.blocks import masked_block, mixture_block, normal, relative

TINY = BertConfig(
    vocab_size=13, hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
    max_position_embeddings=9, num_labels=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return random_model(TINY)


def survivors(block):
    """Surviving weights and all biases, counted entry by entry."""
    kept = sum(1 for mask in (block.mask1, block.mask2) for entry in np.asarray(mask).ravel() if entry == 1)
    return kept + sum(len(b) for b in (block.b1, block.b2) if b is not None)


@pytest.mark.parametrize("biases", [True, False])
def test_forward_is_the_formula_and_merge_keeps_it(x64, biases):
    block, x = masked_block(activation="relu", biases=biases), normal(1, 2, 6, 5)
    w1, w2 = np.array(block.w1), np.array(block.w2)
    w1[np.asarray(block.mask1) == 0] = 0
    w2[np.asarray(block.mask2) == 0] = 0
    b1, b2 = (np.asarray(block.b1), np.asarray(block.b2)) if biases else (0, 0)
    expected = np.maximum(np.asarray(x) @ w1 + b1, 0) @ w2 + b2
    assert relative(block(x), expected) <= 1e-14
    merged = block.merge()
    assert isinstance(merged, MLPBlock)
    assert jnp.array_equal(merged(x), block(x))
    assert merged.num_parameters > block.num_parameters


def test_gradients_are_masked():
    block = masked_block()
    gradient = jax.jit(jax.grad(lambda block: jnp.sum(block(jnp.ones((3, 5))) ** 2)))(block)
    for weights, mask in ((gradient.w1, block.mask1), (gradient.w2, block.mask2)):
        np.testing.assert_array_equal(weights != 0, mask != 0)
    np.testing.assert_array_equal(gradient.mask1, 0)
    np.testing.assert_array_equal(gradient.mask2, 0)


def test_survivors_are_counted_and_positions_are_not():
    block = masked_block()
    assert block.num_parameters == survivors(block) < block.merge().num_parameters
    assert block.mask_bits == 5 * 7 + 7 * 3
    assert [*block.parameters()] == ["w1", "b1", "w2", "b2"]
    assert [*block.constants()] == ["mask1", "mask2"]
    bare = masked_block(biases=False)
    assert bare.num_parameters == survivors(bare)


def test_layouts_refuse_to_count():
    shapes = layout(masked_block())
    assert shapes.mask_bits == 56
    assert hash(shapes) == hash(layout(masked_block(seed=1)))
    with pytest.raises(InputError, match="a layout does not say which weights survive"):
        _ = shapes.num_parameters


def test_pytree_round_trip():
    block = masked_block(activation="silu")
    leaves, structure = jax.tree.flatten(block)
    again = jax.tree.unflatten(structure, leaves)
    assert again.activation == "silu"
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))
    assert len(leaves) == 6


def test_experts_may_have_masks():
    mixture = mixture_block(expert=masked_block, biases=True)
    parts = [mixture.expert(e) for e in range(3)]
    assert mixture.num_parameters == mixture.router.size + sum(survivors(part) for part in parts)
    assert [*mixture.constants()] == ["experts/mask1", "experts/mask2"]
    merged = MixtureBlock.stack(mixture.router, [part.merge() for part in parts])
    assert relative(mixture(normal(1, 9, 5)), merged(normal(1, 9, 5))) <= 1e-6


def test_a_network_with_a_masked_block_is_the_network_with_the_merged_one(model):
    block = masked_block(6, 8, 6)
    masked, merged = model.replace_mlp_blocks({0: block}), model.replace_mlp_blocks({0: block.merge()})
    ids = jnp.arange(8).reshape(2, 4)
    hidden, expected = (
        jax.jit(lambda params, network=network: network.apply(params, input_ids=ids).logits)(network.params)
        for network in (masked, merged)
    )
    np.testing.assert_allclose(hidden, expected, atol=1e-6)
    assert masked.mlp_blocks()[0].mask1 is block.mask1
    assert model.num_parameters - masked.num_parameters == block.num_pruned > 0
    shares = parameter_parts(masked)
    assert sum(shares.values()) == masked.num_parameters
    assert shares["MLP blocks"] == survivors(block)
    columns = blocks_table((BlockFacts.of(masked.mlp_blocks()[0]),)).columns
    (cells,) = [column._cells for column in columns if column.header == "parameters"]
    assert cells == [f"{survivors(block)}"]


@pytest.mark.slow
def test_network_kernels_follow_the_masks(model):
    """The kernel of a pruned network is that of its merged twin without the gradients under the holes."""
    block = masked_block(6, 8, 6)
    ids = jnp.arange(12).reshape(3, 4) % 13
    masked, merged = model.replace_mlp_blocks({0: block}), model.replace_mlp_blocks({0: block.merge()})

    def logits(which):
        return lambda params, ids: which.apply(params, input_ids=ids[None]).logits[0]

    rows = jax.jit(jax.vmap(jax.jacrev(logits(merged)), (None, 0)))(merged.params, ids)["layer_0"]["mlp"]
    rows = {name: np.array(row) for name, row in rows.items()}
    rows["w1"][..., np.asarray(block.mask1) == 0] = 0
    rows["w2"][..., np.asarray(block.mask2) == 0] = 0
    flat = np.concatenate([row.reshape(3, 2, -1) for row in rows.values()], axis=-1)
    for kind, right in (("sgd", flat), ("sign", np.sign(flat))):
        ours = network_kernel(logits(masked), masked.params, ids, kind=kind, select="layer_0/mlp/*")
        assert relative(ours, np.einsum("ncp,mdp->nmcd", flat, right)) <= 1e-4
