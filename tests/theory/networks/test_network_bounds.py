"""The chain: hidden states and logits of whole networks against their bound."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.models.albert.config import AlbertConfig
from ntkfusion.models.bert.config import RobertaConfig
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.model import random_model
from ntkfusion.models.switch.config import SwitchConfig
from ntkfusion.theory.blocks.pairs import pair_blocks
from ntkfusion.theory.networks.block_change import Gap, bounded_gap, measured_gap
from ntkfusion.theory.networks.layer_step import LAYER_TERMS
from ntkfusion.theory.networks.network_weights import known_config
from ntkfusion.verification.networks import TINY, double_model, planted_networks, tiny_batch

# arrays are tiny: compiling is what takes time
pytestmark = pytest.mark.usefixtures("quick_compilation")

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "initializer_range": 0.15,
}
DECODER = {"vocab_size": 50, "hidden_size": 12, "n_layer": 2, "n_head": 2, "n_inner": 16, "n_positions": 8}
ENCODER = {**SHAPE, "layer_norm_eps": 1e-12, "hidden_act": "gelu"}
HEADS = ("sequence-classification", "token-classification", "question-answering", "masked-lm")


def labels(head):
    return 3 if head in ("sequence-classification", "token-classification") else None


def configs():
    """Every head; families differ in what is around the layers, so that their programs are shared."""
    for head in (None, *HEADS):
        yield nf.BertConfig(**ENCODER, head=head, num_labels=labels(head))
    for cls in (RobertaConfig, AlbertConfig):
        for head in ("sequence-classification", "masked-lm"):
            extra = {"embedding_size": 7} if cls is AlbertConfig else {}
            yield cls(**ENCODER, **extra, head=head, num_labels=labels(head))
    yield nf.BertConfig(**ENCODER, head="masked-lm", tie_word_embeddings=False)
    for head in (None, "causal-lm", "sequence-classification", "token-classification", "question-answering"):
        yield GPT2Config(**DECODER, head=head, num_labels=labels(head), initializer_range=0.15)


def name_of(config):
    return f"{config.architecture}-{config.head}-{config.tie_word_embeddings}"


def inputs_of(config):
    batch = tiny_batch(1)
    return {**batch, "input_ids": batch["input_ids"] % 40 + 3}


#: Heads that the wide tier sees; the others are slow.
WIDE = ("BERT-sequence-classification-True",)


def cases():
    for config in configs():
        tier = pytest.mark.wide if name_of(config) in WIDE else pytest.mark.slow
        yield pytest.param(config, id=name_of(config), marks=tier)


def excess(models, batch, found):
    """How far the networks' own outputs exceed the bound."""
    old, new = (model.apply(model.params, **batch) for model in models)
    pairs = [(jnp.linalg.norm(old.last_hidden_state - new.last_hidden_state, axis=-1), found.last_hidden_state)]
    if old.pooler_output is not None:
        pairs.append((jnp.linalg.norm(old.pooler_output - new.pooler_output, axis=-1), found.pooler_output))
    if old.logits is not None:
        pairs.append((jnp.abs(old.logits - new.logits), found.logits))
    return max(float(jnp.max(gap - bound)) for gap, bound in pairs)


@pytest.mark.parametrize("config", list(cases()))
def test_every_head(x64, config):
    batch = inputs_of(config)
    for residual in (1e-3, 0.5):
        models = planted_networks(double_model(config), residual)
        found = nf.theory.network_bound(*models, **batch)
        assert excess(models, batch, found) <= 0
        assert excess(models, batch, nf.theory.network_bound(*models, first_order=False, **batch)) <= 0
        if residual == 1e-3:
            gap = jnp.linalg.norm(
                jnp.subtract(*(model.apply(model.params, **batch).last_hidden_state for model in models)), axis=-1
            )
            assert float(jnp.median(found.last_hidden_state / gap)) < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_new"])
def test_activations(x64, activation):
    config = nf.BertConfig(**{**ENCODER, "hidden_act": activation}, num_labels=3)
    models = planted_networks(double_model(config), 0.3)
    assert excess(models, tiny_batch(), nf.theory.network_bound(*models, **tiny_batch())) <= 0


@pytest.mark.slow
def test_bounded_blocks_are_at_least_the_measured_ones(x64):
    models, batch = planted_networks(double_model(TINY), 0.1), tiny_batch()
    measured, bounded = (nf.theory.network_bound(*models, block_error=kind, **batch) for kind in ("measured", "bound"))
    assert bool(jnp.all(bounded.hidden >= measured.hidden * (1 - 1e-6)))
    assert excess(models, batch, bounded) <= 0


@pytest.mark.slow
def test_any_compressed_block(x64):
    """The compressed blocks need not be dense."""
    model, batch = double_model(TINY), tiny_batch()
    small, _ = nf.compress(model, nf.SVD(keep_ratio=0.5), seed=0)
    found = nf.theory.network_bound(model, small, rounding=False, **batch)
    assert excess((model, small), batch, found) <= 0
    with pytest.raises(InputError, match="rounding=True is for dense blocks"):
        nf.theory.network_bound(model, small, **batch)
    with pytest.raises(InputError, match="block_error='bound' is for dense blocks"):
        nf.theory.network_bound(model, small, block_error="bound", rounding=False, **batch)


#: A layer's terms with one part that says nothing.
WITHOUT = {
    "block errors": LAYER_TERMS._replace(gap=lambda old, new, u: Gap(jnp.zeros(u.shape[:2]), jnp.zeros_like(u))),
    "direction": LAYER_TERMS._replace(
        direction=lambda weights, block, trace, *_: (jnp.zeros_like(trace.u), jnp.zeros_like(trace.u))
    ),
    "curvature of LayerNorm": LAYER_TERMS._replace(norm_curvature=lambda norm, z, eta: jnp.zeros_like(eta)),
}


@pytest.mark.slow
@pytest.mark.parametrize("term", list(WITHOUT))
def test_a_bound_without_a_term_is_violated(x64, term):
    models, batch = planted_networks(double_model(TINY), 0.3), tiny_batch()
    gap = nf.theory.network_errors(*models, **batch).hidden
    found = nf.theory.network_bound(*models, rounding=False, terms=WITHOUT[term], **batch)
    assert bool(jnp.any(gap > found.hidden))


@pytest.mark.wide
def test_errors_are_taken_apart_exactly(x64):
    models, batch = planted_networks(double_model(TINY), 0.3), tiny_batch()
    found = nf.theory.network_errors(*models, **batch)
    old, new = (model.apply(model.params, **batch).last_hidden_state for model in models)
    assert bool(jnp.allclose(found.hidden[-1], jnp.linalg.norm(old - new, axis=-1), rtol=1e-10))
    assert bool(jnp.all(found.hidden[-1] <= jnp.sum(found.contribution, axis=0) + 1e-12))
    assert bool(jnp.all(found.hidden <= found.carried + found.own + 1e-12))
    assert bool(jnp.all(found.carried[0] == 0))
    assert bool(jnp.isnan(found.amplification()[0]))
    assert bool(jnp.allclose(found.amplification_to_end()[-1], 1))


@pytest.mark.slow
def test_one_compressed_layer_contributes_everything(x64):
    original, compressed = planted_networks(double_model(TINY), 0.3)
    only = original.replace_mlp_blocks({1: compressed.mlp_blocks()[1]})
    found = nf.theory.network_errors(original, only, **tiny_batch())
    assert bool(jnp.all(found.own[jnp.array([0, 2])] == 0))
    assert bool(jnp.allclose(found.contribution[1], found.hidden[-1], rtol=1e-12))
    bound = nf.theory.network_bound(original, only, **tiny_batch())
    assert bool(jnp.all(bound.hidden[0] < 1e-9))


@pytest.mark.slow
def test_equal_networks(x64):
    model, batch = double_model(TINY), tiny_batch()
    assert float(jnp.max(nf.theory.network_bound(model, model, rounding=False, **batch).hidden)) == 0
    found = nf.theory.network_bound(model, model, **batch)
    assert 0 < float(jnp.max(found.hidden)) < 1e-9
    assert found.informative_layers(batch["attention_mask"]) == 3


def test_what_is_refused(x64):
    models, batch = planted_networks(double_model(TINY), 0.1), tiny_batch()
    other = dataclasses.replace(models[0], params=jax.tree.map(lambda leaf: leaf * 1.01, models[0].params))
    with pytest.raises(InputError, match="must be equal but for their MLP blocks"):
        nf.theory.network_bound(other, models[1], **batch)
    with pytest.raises(InputError, match="must have a token"):
        nf.theory.network_bound(*models, **{**batch, "attention_mask": jnp.zeros_like(batch["attention_mask"])})
    single = random_model(TINY)
    with pytest.raises(InputError, match="float64"):
        nf.theory.network_bound(single, single, **batch)
    switch = dataclasses.replace(single, config=SwitchConfig())
    with pytest.raises(InputError, match="BERT, RoBERTa, ALBERT and GPT-2"):
        known_config(switch)


@pytest.mark.slow
def test_gaps(x64):
    """The bound of a gap holds for the measured one."""
    models = planted_networks(double_model(TINY), 0.2)
    old, new = (model.mlp_blocks()[0] for model in models)
    u = jax.random.normal(jax.random.key(0), (2, 3, 12))
    pair = pair_blocks(old, new)
    assert bool(jnp.all(measured_gap(old, new, u).size <= bounded_gap(pair, u).size))
