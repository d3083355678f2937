"""Block inputs are what the network computes, for the tokens that were asked for."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.data.block_inputs import collect_block_inputs, tokenize, tokenizer_output, unseen_sentences
from ntkfusion.errors import InputError
from ntkfusion.models.gpt2.config import GPT2Config
from tests.helpers.small_encoders import random_weights

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


class Given:
    """A tokenizer that gives what it is told to."""

    model_input_names = ("input_ids", "token_type_ids")

    def __init__(self, **given):
        self.given = given

    def __call__(self, *texts, **options):
        return self.given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_ids": [[1, 2], [3, -1]]}, "input_ids go from -1 to 3"),
        ({"input_ids": [[1, 2**40]]}, f"the tokenizer gives id {2**40}"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 2]]}, "gives segment 2, the model has 2 of them"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, -1]]}, "token_type_ids go from -1 to 0"),
        ({"input_ids": [[1] * 5]}, "gives 5 tokens where 4 were asked for"),
    ],
)
def test_tokens_that_the_tables_have_no_row_for_are_refused_once_for_all(minilm, given, said):
    with pytest.raises(InputError, match=said):
        tokenizer_output(dataclasses.replace(minilm, tokenizer=Given(**given)), ["a"], max_length=4)


def test_pairs_are_not_scored_as_one_segment(minilm):
    """A table of one row gives it for every segment: nothing but this says so."""
    one = dataclasses.replace(minilm, config=dataclasses.replace(minilm.config, type_vocab_size=1))
    assert tokenizer_output(one, ["a"], max_length=8)
    with pytest.raises(InputError, match="gives segment 1, the model has 1 of them"):
        tokenizer_output(one, ["a"], ["b"], max_length=8)


@pytest.fixture
def causal(minilm):
    """A small random GPT-2 that reads text."""
    config = GPT2Config(vocab_size=30522, hidden_size=8, n_layer=2, n_head=2, n_positions=32)
    return dataclasses.replace(random_weights(config, 0.3), tokenizer=minilm.tokenizer)


def equal_rows(one, other):
    """Whether tokens of one have the same inputs as some of the other's, in the last layer."""
    return (np.asarray(one.inputs[-1])[:, None] == np.asarray(other.inputs[-1])[None, :]).all(axis=-1).any(axis=1)


def test_tokens_that_a_causal_model_has_seen_with_all_before_them_do_not_leak(causal, minilm):
    seen = ["the film is long", "a new day", "the music of the film"]
    held = ["the film is short", "a new day begins", "music of the film"]
    calibration = collect_block_inputs(causal, seen, max_tokens=None, seed=0)
    plain = collect_block_inputs(causal, held, max_tokens=None, seed=0)
    # [CLS] the film is | [CLS] a new day | [CLS]
    assert equal_rows(plain, calibration).sum() == 4 + 4 + 1
    clean = collect_block_inputs(causal, held, max_tokens=None, seed=0, unlike=seen)
    assert not equal_rows(clean, calibration).any()
    assert (clean.num_dropped, len(clean.tokens)) == (9, len(plain.tokens) - 9)
    assert clean.tokens[:2] == ("short", "[SEP]")
    kept = np.flatnonzero(~equal_rows(plain, calibration))
    np.testing.assert_array_equal(clean.inputs[-1], np.asarray(plain.inputs[-1])[kept])
    with pytest.raises(InputError, match="give more varied text"):
        collect_block_inputs(causal, held[:1], max_tokens=None, seed=0, unlike=held)
    # an encoder's tokens see all of their sentence
    both = (collect_block_inputs(minilm, held, max_tokens=None, seed=0, unlike=each) for each in ((), seen))
    assert [(found.num_dropped, len(found.tokens)) for found in both] == [(0, len(plain.tokens))] * 2
