"""Fresh heads: what is new, what is shared, and that nothing is made up silently."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.models.albert.config import AlbertConfig
from ntkfusion.models.bert.config import RobertaConfig
from ntkfusion.models.config import WITH_LABELS
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.model import abstract_params
from ntkfusion.models.switch.config import SwitchConfig
from tests.helpers.small_encoders import random_weights

SIZES = {"vocab_size": 17, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
CONFIGS = [
    nf.BertConfig(**SIZES, max_position_embeddings=9),
    RobertaConfig(**SIZES, max_position_embeddings=9),
    AlbertConfig(**SIZES, max_position_embeddings=9, embedding_size=4),
    GPT2Config(vocab_size=17, hidden_size=8, n_layer=1, n_head=2, n_positions=9),
    SwitchConfig(vocab_size=17, hidden_size=8, d_ff=12, num_encoder_layers=1, num_decoder_layers=1, num_heads=2),
]
BERT = CONFIGS[0]
#: The last head of every architecture, and with `-m slow` all of them.
HEADS = [
    pytest.param(
        config,
        head,
        marks=() if head == config.HEADS[-1] else pytest.mark.slow,
        id=f"{config.architecture}, {head}",
    )
    for config in CONFIGS
    for head in config.HEADS
]


def leaves(model):
    return flatten_dict(model.params, sep="/")


@pytest.fixture(scope="module")
def bert():
    """A bare BERT with a pooler."""
    return random_weights(BERT)


@pytest.mark.parametrize(("config", "head"), HEADS)
def test_base_is_shared_and_head_has_its_shapes(config, head):
    labels = 3 if head in WITH_LABELS else None
    shapes = abstract_params(config)
    model = nf.Model(config, jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), shapes))
    new = nf.with_new_head(model, head, num_labels=labels)
    assert (new.config.head, new.config.num_labels) == (head, labels)
    expected = flatten_dict(abstract_params(new.config), sep="/")
    assert {path: leaf.shape for path, leaf in leaves(new).items()} == {
        path: leaf.shape for path, leaf in expected.items()
    }
    for path, leaf in leaves(new).items():
        if path in leaves(model):
            assert leaf is leaves(model)[path]
        else:
            assert not np.any(leaf == 7)


def test_fresh_weights_are_small_random_numbers_by_seed(bert):
    one, same, other = (
        nf.with_new_head(bert, "sequence-classification", num_labels=200, seed=seed) for seed in (0, 0, 1)
    )
    kernels = [model.params["classifier"]["kernel"] for model in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 0.01
    assert abs(float(jnp.std(kernels[0])) - 0.02) < 0.002
    assert not np.any(one.params["classifier"]["bias"])


def test_pooler_comes_and_goes(bert):
    kept = nf.with_new_head(bert, "sequence-classification", num_labels=2)
    assert kept.params["pooler"]["kernel"] is bert.params["pooler"]["kernel"]
    questions = nf.with_new_head(kept, "question-answering")
    assert not {"pooler", "classifier"} & questions.params.keys()
    back = nf.with_new_head(questions, "sequence-classification", num_labels=2, seed=5)
    assert np.abs(back.params["pooler"]["kernel"] - bert.params["pooler"]["kernel"]).max() > 0.01
    assert back.params["embeddings"]["word"]["embedding"] is bert.params["embeddings"]["word"]["embedding"]


def test_head_of_the_same_shape_is_replaced(bert):
    one = nf.with_new_head(bert, "token-classification", num_labels=2, seed=1)
    two = nf.with_new_head(one, "token-classification", num_labels=2, seed=2)
    assert np.abs(one.params["classifier"]["kernel"] - two.params["classifier"]["kernel"]).max() > 0.01


def test_compressed_model_keeps_its_blocks(bert):
    block = bert.mlp_blocks()[0]
    narrow = block.replace(w1=block.w1[:, :5], b1=block.b1[:5], w2=block.w2[:5], q=jnp.full(5, 2.0))
    small = bert.replace_mlp_blocks({0: narrow})
    new = nf.with_new_head(small, "token-classification", num_labels=2)
    assert new.config.mlp_layouts == small.config.mlp_layouts
    assert new.constants is small.constants
    assert new.params["layer_0"]["mlp"]["w1"] is small.params["layer_0"]["mlp"]["w1"]
    ids = jnp.arange(6).reshape(1, 6)
    assert jax.eval_shape(lambda: new.apply(new.params, input_ids=ids)).logits.shape == (1, 6, 2)


def test_double_precision_stays(bert, x64):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), bert.params)
    new = nf.with_new_head(dataclasses.replace(bert, params=params), "question-answering")
    assert {leaf.dtype for leaf in leaves(new).values()} == {np.dtype("float64")}


@pytest.mark.parametrize(
    ("head", "num_labels", "sentence"),
    [
        ("causal-lm", None, "BERT has no head 'causal-lm'; it has sequence-classification"),
        ("token-classification", None, "head 'token-classification' needs num_labels"),
        ("masked-lm", 3, "head 'masked-lm' does not go with num_labels 3"),
        ("token-classification", 0, "num_labels must be a whole number from 1"),
    ],
)
def test_refused(bert, head, num_labels, sentence):
    with pytest.raises(InputError, match=sentence):
        nf.with_new_head(bert, head, num_labels=num_labels)
