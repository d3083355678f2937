"""What float64 does to hidden states, against the same network in 80 bits, and what the bound allows for it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.models.activations import get_activation
from ntkfusion.theory.networks.network_rounding import layer_rounding
from ntkfusion.theory.networks.network_weights import embedded, network_layers, run_layer, visibility
from ntkfusion.verification.networks import TINY, double_model, tiny_batch

LONG = np.longdouble
pytestmark = pytest.mark.skipif(np.finfo(LONG).eps > 2.0**-60, reason="NumPy's longdouble is float64 here")
PI = LONG("3.14159265358979323846")
EPS = TINY.layer_norm_eps


def long(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(LONG), tree)


def act(name, h):
    """σ by definition; Φ by its series, whose absolute error is what counts."""
    if name == "relu":
        return np.maximum(h, 0)
    if name == "silu":
        return h / (1 + np.exp(-h))
    if name == "gelu_tanh":
        return h / 2 * (1 + np.tanh(np.sqrt(2 / PI) * (h + LONG("0.044715") * h**3)))
    term = total = size = np.minimum(np.abs(h), 9)
    for k in range(1, 300):
        term = term * size * size / (2 * k + 1)
        total = total + term
    return h * (LONG("0.5") + np.sign(h) * np.exp(-size * size / 2) / np.sqrt(2 * PI) * total)


def norm(tree, z):
    centred = z - z.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + LONG(EPS)) * tree["scale"] + tree["bias"]


def dense(tree, x):
    return x @ tree["kernel"] + tree["bias"]


def attention(tree, x, mask):
    heads = TINY.num_attention_heads
    q, k, v = (dense(tree[name], x).reshape(*x.shape[:2], heads, -1) for name in ("query", "key", "value"))
    scores = np.einsum("bthe,bshe->bhts", q, k) / np.sqrt(LONG(q.shape[-1]))
    scores = np.where(mask[:, None, None, :] > 0, scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p = p / p.sum(axis=-1, keepdims=True)
    return dense(tree["output"], np.einsum("bhts,bshe->bthe", p, v).reshape(x.shape))


def mlp(block, u):
    return act(get_activation(block.activation).name, u @ long(block.w1) + long(block.b1)) @ long(block.w2) + long(
        block.b2
    )


def network(model, batch):
    """Hidden states behind every layer in 80 bits, from the parameters themselves."""
    params, mask, ids = long(model.params), np.asarray(batch["attention_mask"]), np.asarray(batch["input_ids"])
    tables = params["embeddings"]
    places = tables["position"]["embedding"][: ids.shape[1]] + tables["token_type"]["embedding"][0]
    h = norm(tables["norm"], tables["word"]["embedding"][ids] + places)
    for index, block in enumerate(model.mlp_blocks()):
        tree = params[f"layer_{index}"]
        u = norm(tree["attention_norm"], h + attention(tree["attention"], h, mask))
        h = norm(tree["mlp_norm"], u + mlp(block, u))
        yield h


def network_of(activation, scale, shift=0.0):
    """A tiny BERT with weights of a size, whose LayerNorms add `shift`: what the next one must centre away."""
    model = double_model(dataclasses.replace(TINY, initializer_range=scale, hidden_act=activation))

    def moved(path, leaf):
        return leaf + shift if "norm" in str(path[-2].key) and path[-1].key == "bias" else leaf

    return dataclasses.replace(model, params=jax.tree_util.tree_map_with_path(moved, model.params))


CASES = [("gelu", 0.15, 0.0), ("relu", 1.0, 0.0), ("gelu_new", 3.0, 0.0), ("silu", 0.3, 30.0)]


def lengths(x):
    return np.sqrt(np.sum(np.asarray(x) ** 2, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "scale", "shift"), CASES)
def test_hidden_states(x64, activation, scale, shift):
    model, batch = network_of(activation, scale, shift), tiny_batch()
    allowed = nf.theory.network_bound(model, model, **batch)
    exact = list(network(model, batch))
    h, visible = (
        embedded(model, nf.models.model.make_batch(batch, model.config)),
        visibility(model, batch["attention_mask"]),
    )
    for weights, block, true, bound in zip(
        network_layers(model), model.mlp_blocks(), exact, allowed.hidden, strict=True
    ):
        h = run_layer(weights, block, h, visible).out
        assert np.all(2 * lengths(np.asarray(h) - true) <= np.asarray(bound))
    own = model.apply(model.params, **batch).last_hidden_state
    error = lengths(np.asarray(own) - exact[-1])
    assert np.all(2 * error <= np.asarray(allowed.last_hidden_state))
    assert error.max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "scale", "shift"), CASES)
def test_every_stage(x64, activation, scale, shift):
    """Each from what float64 had in front of it; an allowance is for two trajectories."""
    model, batch = network_of(activation, scale, shift), tiny_batch()
    visible, params = visibility(model, batch["attention_mask"]), long(model.params)
    h, mask = embedded(model, nf.models.model.make_batch(batch, model.config)), np.asarray(batch["attention_mask"])
    for index, (weights, block) in enumerate(zip(network_layers(model), model.mlp_blocks(), strict=True)):
        trace, tree = run_layer(weights, block, h, visible), params[f"layer_{index}"]
        allowed = layer_rounding(weights, (block, block), trace, jnp.zeros(h.shape[:2]))
        x, z, u, y = (long(part) for part in (trace.h, trace.z, trace.u, trace.y))
        stages = [
            (z, x + attention(tree["attention"], x, mask), allowed.sums),
            (u, norm(tree["attention_norm"], z), allowed.inputs),
            (y, u + mlp(block, u), allowed.block),
            (long(trace.out), norm(tree["mlp_norm"], y), allowed.hidden),
        ]
        for found, true, room in stages:
            assert np.all(2 * lengths(found - true) <= np.asarray(room))
            # half precision would be too coarse
            assert np.any(lengths(found.astype(np.float16) - true) > np.asarray(room))
        h = trace.out
