"""What a Switch Transformer does with its decoder's input, its experts and its compressed blocks."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.layers.mlp import over_capacity
from ntkfusion.models.model import Model, abstract_params
from ntkfusion.models.switch.config import SwitchConfig
from ntkfusion.models.switch.network import buckets


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 9), (13, 50), (4, 3)])
@pytest.mark.parametrize("both_directions", [True, False])
def test_buckets_are_those_of_transformers(num_buckets, max_distance, both_directions, oracle):
    def by_distance(torch):
        options = {"bidirectional": both_directions, "num_buckets": num_buckets, "max_distance": max_distance}
        attention = transformers.models.switch_transformers.modeling_switch_transformers.SwitchTransformersAttention
        return attention._relative_position_bucket(torch.arange(-699, 650), **options).numpy().astype(np.int8)

    ours = buckets(700, 650, both_directions=both_directions, num_buckets=num_buckets, max_distance=max_distance)
    ahead = np.arange(650)[None, :] - np.arange(700)[:, None]
    np.testing.assert_array_equal(ours, oracle(by_distance)[ahead + 699])


def test_experts_take_the_first_tokens_of_every_sequence():
    chosen = jnp.array([[0, 1, 0, 0, 1], [1, 1, 1, 2, 1]])
    dropped = over_capacity(chosen, 3, 2)
    np.testing.assert_array_equal(dropped, [[0, 0, 0, 1, 0], [0, 0, 1, 0, 1]])


SMALL = SwitchConfig(
    vocab_size=17,
    hidden_size=8,
    d_kv=3,
    d_ff=12,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_heads=2,
    num_experts=2,
    expert_capacity=3,
    encoder_sparse_step=1,
    decoder_sparse_step=1,
    relative_attention_num_buckets=4,
    relative_attention_max_distance=8,
    head="seq2seq-lm",
)
IDS = jnp.array([[0, 0, 5, 9, 2, 1], [4, 3, 2, 2, 8, 1]], jnp.int32)
MASK = jnp.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], jnp.int32)


def with_random_weights(config):
    """A model whose weights compile nothing."""
    rng = np.random.default_rng(4)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.8 * rng.normal(size=leaf.shape), leaf.dtype), abstract_params(config)
    )
    return Model(config, params)


@pytest.fixture(scope="module")
def small():
    """One sparse layer each."""
    return with_random_weights(SMALL)


@pytest.fixture(scope="module")
def plain(small):
    """What it makes of the padded batch."""
    return outputs(small)


def outputs(model, **batch):
    """What a model makes of the padded batch, compiled."""
    batch = {"input_ids": IDS, "attention_mask": MASK, **batch}
    return jax.jit(lambda params: model.apply(params, **batch))(model.params)


def test_a_decoder_reads_the_input_shifted_unless_told(small, plain):
    shifted = {
        "decoder_input_ids": jnp.array([[0, 0, 0, 5, 9, 2], [0, 4, 3, 2, 2, 8]], jnp.int32),
        "decoder_attention_mask": jnp.array([[1, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]], jnp.int32),
    }
    told = outputs(small, **shifted)
    jax.tree.map(np.testing.assert_array_equal, plain, told)


def test_a_decoder_without_anything_to_read(small):
    def trace(model, **batch):
        return jax.eval_shape(lambda params: model.apply(params, **batch), model.params)

    embeds = jnp.zeros((1, 3, 8))
    with pytest.raises(InputError, match="give decoder_input_ids with inputs_embeds"):
        trace(small, inputs_embeds=embeds)
    assert trace(small, inputs_embeds=embeds, decoder_input_ids=IDS[:1, :2]).logits.shape == (1, 2, 17)
    silent = dataclasses.replace(small, config=dataclasses.replace(SMALL, decoder_start_token_id=None))
    with pytest.raises(InputError, match="neither decoder_start_token_id nor pad_token_id"):
        trace(silent, input_ids=IDS)
    labelled = with_random_weights(dataclasses.replace(SMALL, head=None, num_labels=3))
    with pytest.raises(InputError, match="as many decoder_input_ids"):
        trace(labelled, input_ids=IDS, decoder_input_ids=IDS[:, :2])


@pytest.mark.slow
def test_one_example_at_a_time_and_its_network_kernel(small, plain):
    def f(params, example):
        ids, mask = example
        return small.apply(params, input_ids=ids[None], attention_mask=mask[None]).logits[0, 0, :2]

    examples = (IDS, MASK)
    values, gradients = jax.jit(jax.vmap(lambda *given: (f(*given), jax.jacrev(f)(*given)), in_axes=(None, 0)))(
        small.params, examples
    )
    np.testing.assert_allclose(values, plain.logits[:, 0, :2], atol=1e-5)
    flat = jnp.concatenate([leaf.reshape(2, 2, -1) for leaf in jax.tree.leaves(gradients)], axis=-1)
    expected = jnp.einsum("iap,jbp->ijab", flat, flat)
    found = nf.network_kernel(f, small.params, examples)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(jnp.abs(expected).max()))


def test_dropout_is_asked_for(small, plain):
    run = jax.jit(lambda key: small.apply(small.params, input_ids=IDS, attention_mask=MASK, dropout_key=key).logits)
    first, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain.logits).max() > 1e-3


def doubled(block):
    """The mixture with every neuron of every expert twice."""
    w1, w2 = (block.parameters()[f"experts/{name}"] for name in ("w1", "w2"))
    return block.replace(**{"experts/w1": jnp.tile(w1, (1, 1, 2)), "experts/w2": jnp.tile(w2, (1, 2, 1))})


@pytest.mark.parametrize(
    "variant", [pytest.param("v4", marks=pytest.mark.wide), pytest.param("v1", marks=pytest.mark.slow)]
)
def test_experts_with_every_neuron_twice_fuse_exactly(small, variant):
    model = small.replace_mlp_blocks(dict(enumerate(map(doubled, small.mlp_blocks()))))
    compressed, reports = nf.compress(model, nf.MLPFusion(0.5, variant=variant))
    assert [reports[layer].hidden_width for layer in (0, 1)] == [12, 12]
    assert all(isinstance(block, MixtureBlock) for block in compressed.mlp_blocks())
    assert compressed.num_parameters == small.num_parameters < model.num_parameters
    expected, found = outputs(model), outputs(compressed)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, found.dropped_tokens, expected.dropped_tokens)


def test_other_kinds_of_blocks_in_place_of_a_mixture(small, plain):
    compressed, _ = nf.compress(small, nf.SVD(0.5))
    mixed = compressed.replace_mlp_blocks({1: small.mlp_blocks()[1].expert(0)})
    output = outputs(mixed)
    assert [type(block).__name__ for block in mixed.mlp_blocks()] == ["MixtureBlock", "MLPBlock"]
    assert len(output.router_logits) == 1
    np.testing.assert_array_equal(output.router_logits[0], plain.router_logits[0])
    assert np.isfinite(output.logits).all()
