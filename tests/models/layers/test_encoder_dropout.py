"""Dropout of BERT, RoBERTa and ALBERT: where it is, how much is dropped, and only when a key is given."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.models.albert.config import AlbertConfig
from ntkfusion.models.batch import Batch
from ntkfusion.models.bert.config import RobertaConfig
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.layers.dropout import Dropout
from ntkfusion.models.layers.encoder import EncoderEmbeddings
from tests.helpers.small_encoders import random_weights

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.4,
    "num_labels": 2,
}
#: A layer: attention weights, attention output, block output; around them embeddings and the head's inputs.
LAYER = [0.4, 0.2, 0.2]
CASES = {
    "BERT": (nf.BertConfig(**SIZES, classifier_dropout=0.6), [0.2, *LAYER, *LAYER, 0.6]),
    "RoBERTa": (RobertaConfig(**SIZES), [0.2, *LAYER, *LAYER, 0.2, 0.2]),
    "ALBERT": (
        AlbertConfig(**SIZES, embedding_size=24, classifier_dropout_prob=0.5),
        [0.2, 0.4, 0.2, 0.0, 0.4, 0.2, 0.0, 0.5],
    ),
}


def dropouts(intermediates):
    """What every call of a dropout returned."""
    found = jax.tree_util.tree_leaves_with_path(intermediates)
    return [leaf for path, leaf in found if "Dropout" in jax.tree_util.keystr(path)]


def applied_rates(model, **inputs):
    """The rate of every dropout that a training pass calls; nothing is computed."""
    rates = []

    def note(call, arguments, options, context):
        if isinstance(context.module, Dropout) and context.method_name == "__call__":
            rates.append(context.module.rate)
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        jax.eval_shape(partial(model.apply, dropout_key=jax.random.key(0)), model.params, **inputs)
    return sorted(rates)


@pytest.mark.parametrize("name", CASES)
def test_rates_are_those_of_the_configuration_to_the_last_bit(name):
    """Counting entries cannot tell a rate from one that is off by 0.4 % of itself."""
    config, expected = CASES[name]
    assert applied_rates(random_weights(config, 0.2), input_ids=IDS) == sorted(expected)


def test_rates_of_gpt2_are_those_of_the_configuration():
    sizes = {"vocab_size": 50, "hidden_size": 32, "n_layer": 1, "n_head": 2, "n_positions": 40}
    config = GPT2Config(**sizes, embd_pdrop=0.11, attn_pdrop=0.23, resid_pdrop=0.37)
    assert applied_rates(random_weights(config, 0.2), input_ids=IDS) == [0.11, 0.23, 0.37, 0.37]


IDS = jnp.asarray(np.random.default_rng(1).integers(2, 50, size=(8, 30)))


@pytest.mark.parametrize(
    "name", ["ALBERT", *(pytest.param(name, marks=pytest.mark.slow) for name in ("BERT", "RoBERTa"))]
)
def test_expected_fraction_is_dropped_everywhere(name):
    config, expected = CASES[name]
    model = random_weights(config, 0.2)

    @jax.jit
    def run(key):
        return model.module.apply(
            {"params": model.params},
            Batch(jnp.ones_like(IDS), input_ids=IDS),
            deterministic=False,
            rngs={"dropout": key},
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, Dropout),
        )[1]["intermediates"]

    dropped = [dropouts(run(jax.random.key(seed))) for seed in range(4)]
    fractions = [np.concatenate([np.ravel(leaf == 0) for leaf in leaves]) for leaves in zip(*dropped, strict=True)]
    for zeros, probability in zip(sorted(fractions, key=np.mean), sorted(expected), strict=True):
        # five standard deviations of a mean of independent draws
        assert abs(zeros.mean() - probability) <= 5 * np.sqrt(probability * (1 - probability) / zeros.size)
    masks = [tuple(np.ravel(leaf == 0)[:64]) for leaf in dropped[0] if np.any(leaf == 0)]
    assert len(set(masks)) == len(masks)


def test_dropout_needs_a_key_and_follows_it():
    model = random_weights(nf.BertConfig(**SIZES | {"num_hidden_layers": 1}), 0.2)
    run = jax.jit(lambda key: model.apply(model.params, input_ids=IDS, dropout_key=key).logits)
    plain = jax.jit(lambda: model.apply(model.params, input_ids=IDS).logits)
    first, again, other = (run(jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain()).max() > 1e-3


def test_kept_units_are_scaled_up():
    config = CASES["BERT"][0]
    module, batch = EncoderEmbeddings(config), Batch(jnp.ones_like(IDS), input_ids=IDS)
    params = {"params": random_weights(config, 0.2).params["embeddings"]}
    whole = module.apply(params, batch)
    part = module.apply(params, batch, deterministic=False, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(part, np.where(part == 0, 0, whole / 0.8), rtol=1e-6)
