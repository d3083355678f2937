"""MLP blocks: the formula, constants that are no parameters, folding and merging, blocks inside of a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from ntkfusion.errors import InputError
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.blocks.block import layout
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock, dense_layout
from ntkfusion.models.model import abstract_params, random_model

SIGMA = {
    "relu": lambda h: np.maximum(h, 0),
    "gelu": lambda h: h * 0.5 * (1 + erf(h / np.sqrt(2))),
    "gelu_tanh": lambda h: 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))),
    "silu": lambda h: h / (1 + np.exp(-h)),
}
TINY = BertConfig(
    vocab_size=13, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12,
    max_position_embeddings=9,
)  # fmt: skip


def make_block(d=5, m=7, o=4, *, activation="gelu", constants=True, biases=True, seed=0, dtype=None):
    rng = np.random.default_rng(seed)

    def array(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    w1, b1, w2, b2, q, r = array(d, m), array(m), array(m, o), array(o), array(m), array(m)
    b1, b2 = (b1, b2) if biases else (None, None)
    return MLPBlock(w1, b1, w2, b2, *((q, r) if constants else ()), activation=activation)


def make_factorized(d=8, m=12, k=3, o=8, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((d, k), (k, m), (m,), (m, k), (k, o), (o,))
    return FactorizedBlock(*(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes), activation="silu")


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    batch=st.lists(st.integers(1, 3), max_size=2),
    activation=st.sampled_from(sorted(SIGMA)),
    constants=st.booleans(),
    biases=st.booleans(),
)
def test_forward_is_the_formula(sizes, batch, activation, constants, biases):
    with jax.enable_x64(True):
        block = make_block(*sizes, activation=activation, constants=constants, biases=biases)
        x = np.random.default_rng(1).normal(size=(*batch, sizes[0]))
        w1, w2 = np.asarray(block.w1), np.asarray(block.w2)
        m, o = sizes[1:]
        absent = {"b1": np.zeros(m), "b2": np.zeros(o), "q": np.ones(m), "r": np.ones(m)}
        given = block.parameters() | block.constants()
        b1, b2, q, r = (np.asarray(given.get(name, value)) for name, value in absent.items())
        expected = (q * SIGMA[activation](r * (x @ w1 + b1))) @ w2 + b2
        np.testing.assert_allclose(block(jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("biases", [True, False])
def test_fold_keeps_the_function(x64, biases):
    block = make_block(biases=biases)
    folded = block.fold()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 5)))
    np.testing.assert_allclose(folded(x), block(x), rtol=1e-12)
    assert folded.q is None
    assert folded.r is None
    assert folded.constants() == {}
    assert folded.num_parameters == block.num_parameters


def test_no_gradient_reaches_the_constants():
    block = make_block(dtype=jnp.float32)
    gradient = jax.grad(lambda block: jnp.sum(block(jnp.ones((3, 5)))))(block)
    np.testing.assert_array_equal(gradient.q, 0)
    np.testing.assert_array_equal(gradient.r, 0)
    assert all(np.abs(leaf).max() > 0 for leaf in gradient.parameters().values())


def test_parameters_and_constants_share_the_arrays():
    block = make_block(3, 4, 2, dtype=jnp.float32)
    assert list(block.parameters()) == ["w1", "b1", "w2", "b2"]
    assert list(block.constants()) == ["q", "r"]
    assert block.num_parameters == 3 * 4 + 4 + 4 * 2 + 2
    assert make_block(3, 4, 2, biases=False, dtype=jnp.float32).num_parameters == 3 * 4 + 4 * 2
    assert (block.model_width, block.hidden_width, block.output_width) == (3, 4, 2)


def test_merge_keeps_the_function(x64):
    block = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), make_factorized())
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 8)))
    np.testing.assert_allclose(block.merge()(x), block(x), rtol=1e-12, atol=1e-12)
    assert block.num_parameters == 8 * 3 + 3 * 12 + 12 + 12 * 3 + 3 * 8 + 8
    assert (block.model_width, block.hidden_width, block.output_width) == (8, 12, 8)
    assert block.constants() == {}


@pytest.mark.parametrize("block", [make_block(dtype=jnp.float32), make_factorized()], ids=["dense", "factorized"])
def test_pytree_round_trip(block):
    leaves, structure = jax.tree.flatten(block)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is type(block)
    assert again.activation == block.activation
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))
    np.testing.assert_array_equal(jax.jit(lambda block: block)(block).b1, block.b1)
    assert hash(layout(block)) == hash(layout(again))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(block)]
    assert names[0] in (".w1", ".left1")


def test_layout_allocates_nothing_and_is_float32(x64):
    huge = dense_layout(2**20, 2**20)
    assert huge.w1.shape == (2**20, 2**20)
    assert {leaf.dtype for leaf in jax.tree.leaves(huge)} == {jnp.dtype("float32")}
    assert dense_layout(2, 3, biases=False).b1 is None


def test_model_returns_the_blocks_it_was_given():
    model = random_model(TINY)
    narrow = make_block(8, 5, 8, activation="relu", dtype=jnp.float32)
    other = model.replace_mlp_blocks({1: narrow, 2: make_factorized()})
    before, after = model.mlp_blocks(), other.mlp_blocks()
    assert [block.hidden_width for block in after] == [12, 5, 12]
    assert isinstance(after[2], FactorizedBlock)
    assert after[0].w1 is before[0].w1
    assert after[1].activation == "relu"
    assert after[1].q is narrow.q
    assert after[1].r is narrow.r
    assert [block.hidden_width for block in model.mlp_blocks()] == [12, 12, 12]
    shapes = jax.tree.map(lambda leaf: leaf.shape, other.params)
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, abstract_params(other.config))


@pytest.mark.wide
def test_replaced_blocks_change_their_layer_only():
    model = random_model(TINY)
    ids, mask = jnp.arange(6).reshape(1, 6), jnp.ones((1, 6), jnp.int32)
    other = model.replace_mlp_blocks({1: make_block(8, 5, 8, dtype=jnp.float32)})
    before, after = model.block_inputs(ids, mask), other.block_inputs(ids, mask)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    assert np.abs(before[2] - after[2]).max() > 1e-3
    hidden = other.apply(other.params, input_ids=ids).last_hidden_state
    assert hidden.shape == (1, 6, 8)
    folded = other.replace_mlp_blocks({1: other.mlp_blocks()[1].fold()})
    np.testing.assert_allclose(folded.apply(folded.params, input_ids=ids).last_hidden_state, hidden, atol=1e-5)


@pytest.mark.parametrize("index", [-1, 3])
def test_no_such_layer(index):
    with pytest.raises(InputError, match=r"does not exist; this model has layers 0 to 2"):
        random_model(TINY).replace_mlp_blocks({index: make_block(8, 5, 8, dtype=jnp.float32)})


@pytest.mark.parametrize(("d", "o"), [(7, 8), (8, 7)])
def test_block_of_the_wrong_width(d, o):
    with pytest.raises(InputError, match=f"block maps {d} to {o}, the model needs 8"):
        random_model(TINY).replace_mlp_blocks({0: make_block(d, 5, o, dtype=jnp.float32)})


def test_inputs_that_cannot_be_used():
    model = random_model(TINY)
    ids = jnp.zeros((1, 10), jnp.int32)
    with pytest.raises(InputError, match="10 tokens long; this model has 9 positions"):
        model.apply(model.params, input_ids=ids)
    with pytest.raises(InputError, match="exactly one of"):
        model.apply(model.params)
    with pytest.raises(InputError, match="exactly one of"):
        model.apply(model.params, input_ids=ids, inputs_embeds=jnp.zeros((1, 10, 8)))


def test_word_embeddings_in_place_of_ids():
    model = random_model(TINY)
    ids = jnp.asarray([[1, 2, 3]])
    words = model.params["embeddings"]["word"]["embedding"][ids]
    expected = model.apply(model.params, input_ids=ids).last_hidden_state
    np.testing.assert_allclose(model.apply(model.params, inputs_embeds=words).last_hidden_state, expected, atol=1e-6)
