"""Block inputs are what the network computes, for the tokens that were asked for."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.data.block_inputs import collect_block_inputs, tokenize, tokenizer_output, unseen_sentences
from ntkfusion.errors import InputError

SENTENCES = [
    "A short one.",
    "Quite a bit longer than the first, this sentence goes on for a while and then stops.",
    "Hm!",
]


def test_inputs_are_those_of_each_sentence_alone(minilm):
    collected = collect_block_inputs(minilm, SENTENCES, max_tokens=None, seed=0, batch_size=2)
    encodings, _ = tokenize(minilm, SENTENCES, max_length=128)
    assert collected.num_sentences == 3
    assert len(collected.tokens) == sum(map(len, encodings))
    start = 0
    for ids in encodings:
        alone = minilm.block_inputs(jnp.array([ids]), jnp.ones((1, len(ids)), jnp.int32))
        for layer, states in enumerate(alone):
            np.testing.assert_allclose(collected.inputs[layer][start : start + len(ids)], states[0], atol=1e-5)
        start += len(ids)


def test_block_inputs_and_blocks_give_the_networks_output(minilm):
    """Last layer by hand: LayerNorm of block input plus block output."""
    (ids, *_), _ = tokenize(minilm, SENTENCES, max_length=128)
    batch = jnp.array([ids])
    last = minilm.block_inputs(batch, jnp.ones_like(batch))[-1]
    norm = minilm.params["layer_5"]["mlp_norm"]
    summed = last + minilm.mlp_blocks()[-1](last)
    centred = summed - summed.mean(axis=-1, keepdims=True)
    by_hand = centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    by_hand = by_hand * norm["scale"][None, None] + norm["bias"][None, None]
    out = minilm.apply(minilm.params, input_ids=batch)
    np.testing.assert_allclose(by_hand, out.last_hidden_state, atol=2e-5)


def test_special_tokens_can_be_left_out(minilm):
    everything = collect_block_inputs(minilm, SENTENCES, max_tokens=None, seed=0)
    words = collect_block_inputs(minilm, SENTENCES, max_tokens=None, seed=0, special_tokens=False)
    assert len(everything.tokens) - len(words.tokens) == 2 * len(SENTENCES)
    assert not {"[CLS]", "[SEP]"} & set(words.tokens)


def test_samples_are_random_by_seed_and_never_larger_than_asked(minilm):
    first, again, other = (
        collect_block_inputs(minilm, SENTENCES, max_tokens=5, seed=seed).inputs[0] for seed in (0, 0, 1)
    )
    assert first.shape == (5, 384)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_long_sentences_are_cut_to_the_positions_of_the_model(minilm):
    short = dataclasses.replace(minilm, config=dataclasses.replace(minilm.config, max_position_embeddings=20))
    params = {**minilm.params, "embeddings": {**minilm.params["embeddings"]}}
    params["embeddings"]["position"] = {"embedding": minilm.params["embeddings"]["position"]["embedding"][:20]}
    short = dataclasses.replace(short, params=params)
    collected = collect_block_inputs(short, ["word " * 500], max_tokens=None, seed=0)
    assert len(collected.tokens) == 20


def test_lengths_that_leave_no_room_for_text_are_refused(minilm):
    assert tokenize(minilm, ["one two three"], max_length=3)[0] == [[101, 2028, 102]]
    with pytest.raises(InputError, match="2 special tokens are added to every text"):
        tokenize(minilm, ["one two three"], max_length=2)
    with pytest.raises(InputError, match="3 special tokens are added to every pair"):
        tokenizer_output(minilm, ["one two"], ["three"], max_length=3)
    with pytest.raises(InputError, match="at least one example"):
        tokenizer_output(minilm, [], max_length=8)


def test_models_without_tokenizer_or_with_a_foreign_one_say_so(minilm):
    with pytest.raises(InputError, match="has no tokenizer files"):
        collect_block_inputs(dataclasses.replace(minilm, tokenizer=None), SENTENCES, max_tokens=4, seed=0)
    small = dataclasses.replace(minilm, config=dataclasses.replace(minilm.config, vocab_size=1000))
    with pytest.raises(InputError, match="the model has 1000 embeddings"):
        collect_block_inputs(small, SENTENCES, max_tokens=4, seed=0)


def test_sentences_that_only_the_tokenizer_makes_equal_do_not_leak(minilm):
    others = ["Hello there", "Something else."]
    assert unseen_sentences(minilm, ["hello THERE", "New words."], others, max_length=128) == ["New words."]
    with pytest.raises(InputError, match="the same to the model's tokenizer"):
        unseen_sentences(minilm, ["hello there", "HELLO  there"], others, max_length=128)
