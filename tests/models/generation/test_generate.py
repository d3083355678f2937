"""Generation against transformers' `generate`, token by token."""

from __future__ import annotations

import dataclasses
import logging

import jax
import numpy as np
import pytest
import transformers

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.gpt2.names import GPT2
from ntkfusion.models.model import abstract_params
from ntkfusion.models.registry import read_config
from tests.helpers.oracle import draw, read_by, write_checkpoint

VOCABULARY, PAD, LENGTH, NEW = 67, 66, 12, 15


CONFIG = {
    "vocab_size": VOCABULARY, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": LENGTH + NEW - 1,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random language model that says many different things."""
    config = dataclasses.replace(read_config({"model_type": "gpt2", **CONFIG}), head="causal-lm")
    empty = jax.tree.map(lambda leaf: np.empty(leaf.shape), abstract_params(config))
    shapes = {name: list(array.shape) for name, array in GPT2.named_tensors(empty, head=config.head).items()}
    # large biases would make it say the same all the time
    contents = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **CONFIG}
    return nf.load_model(write_checkpoint(tmp_path_factory.mktemp("gpt2"), contents, draw(shapes, 0, 0.5, 0.1)))


def prompts(number, seed=0):
    """Prompts of mixed lengths with padding on the left; one has a single token, one no padding."""
    rng = np.random.default_rng(seed)
    lengths = np.concatenate([[1, LENGTH], rng.integers(1, LENGTH + 1, number - 2)])[:, None]
    mask = np.arange(LENGTH)[None, :] >= LENGTH - lengths
    return np.where(mask, rng.integers(0, PAD, mask.shape), PAD), mask.astype(np.int64)


def theirs(oracle, model, ids, mask, eos, *, double=False, **options):
    """What PyTorch generates, filled with padding to the full length."""

    def generate(torch):
        language_model = read_by(transformers.GPT2LMHeadModel, model.source)
        language_model = language_model.double() if double else language_model
        tensors = {"attention_mask": torch.tensor(mask), "eos_token_id": eos, "pad_token_id": PAD, "do_sample": False}
        with torch.no_grad():
            found = language_model.generate(torch.tensor(ids), max_new_tokens=NEW, **tensors, **options).numpy()
        return np.pad(found, ((0, 0), (0, LENGTH + NEW - found.shape[1])), constant_values=PAD).astype(np.int16)

    return oracle(generate)


def common(generated, number):
    """Tokens that many of these continuations hold: with them as ends, most end early."""
    rows = [np.any(generated[:, LENGTH:] == token, axis=1).sum() for token in range(PAD)]
    return [int(token) for token in np.argsort(rows)[::-1][:number]]


def test_greedy_tokens_are_those_of_transformers(model, oracle):
    ids, mask = prompts(50)
    expected = theirs(oracle, model, ids, mask, None)
    assert len(np.unique(expected[:, LENGTH:])) > 20
    found = nf.generate(model, ids, mask, max_new_tokens=NEW)
    np.testing.assert_array_equal(found, expected)
    (eos,) = common(expected, 1)
    expected = theirs(oracle, model, ids, mask, eos)
    assert 0.1 < np.mean(expected[:, -1] == PAD) < 1
    np.testing.assert_array_equal(nf.generate(model, ids, mask, max_new_tokens=NEW, eos_token_id=eos), expected)


def test_four_beams_find_what_those_of_transformers_find(model, oracle):
    ids, mask = prompts(10, seed=1)
    expected = theirs(oracle, model, ids, mask, None, num_beams=4)
    greedy = theirs(oracle, model, ids, mask, None)
    assert np.mean(np.any(expected != greedy, axis=1)) > 0.5
    np.testing.assert_array_equal(nf.generate(model, ids, mask, max_new_tokens=NEW, num_beams=4), expected)


@pytest.mark.parametrize("ends", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_beams_that_end(model, oracle, ends):
    ids, mask = prompts(10, seed=1)
    eos = common(theirs(oracle, model, ids, mask, None, num_beams=4), ends)
    seen = set()
    for options in (
        {},
        {"early_stopping": True},
        {"length_penalty": 3.0},
        {"length_penalty": 0.0},
        {"length_penalty": -1.0},
        {"length_penalty": 3.0, "early_stopping": True},
    ):
        expected = theirs(oracle, model, ids, mask, eos, num_beams=4, **options)
        found = nf.generate(model, ids, mask, max_new_tokens=NEW, num_beams=4, eos_token_id=eos, **options)
        np.testing.assert_array_equal(found, expected, err_msg=str(options))
        assert np.any(expected[:, -1] == PAD), options
        seen.add(expected.tobytes())
    assert len(seen) > 2  # the options matter


@pytest.mark.slow
def test_float64(model, oracle, x64):
    ids, mask = prompts(6, seed=2)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), model.params)
    exact = nf.Model(model.config, params)
    expected = theirs(oracle, model, ids, mask, None, double=True, num_beams=2)
    np.testing.assert_array_equal(nf.generate(exact, ids, mask, max_new_tokens=NEW, num_beams=2), expected)


def test_the_second_call_compiles_nothing(model, caplog):
    number = {1: 50, 4: 10}  # shapes of tests above
    for beams in number:
        nf.generate(model, *prompts(number[beams]), max_new_tokens=NEW, num_beams=beams)
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING, logger="jax"):
            for beams in number:
                again = prompts(number[beams], seed=9)
                options = {"eos_token_id": 5, "length_penalty": 2.0, "early_stopping": True}
                nf.generate(model, *again, max_new_tokens=NEW, num_beams=beams, **options)
            assert not [record for record in caplog.messages if "Compiling" in record]
            nf.generate(model, np.array([[4, 5]]), max_new_tokens=1)
            assert [record for record in caplog.messages if "Compiling" in record]
    finally:
        jax.config.update("jax_log_compiles", False)


TOKENS = np.array([[1, 2, 3]])


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (TOKENS, {"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (TOKENS, {"num_beams": 0}, "num_beams must be at least 1, got 0"),
        (TOKENS, {"length_penalty": float("nan")}, "length_penalty must be a finite number"),
        (TOKENS, {"eos_token_id": VOCABULARY}, "eos_token_id must be from 0 to 66, got 67"),
        (TOKENS, {"eos_token_id": range(VOCABULARY)}, "every word of the vocabulary is an end token"),
        (TOKENS, {"max_new_tokens": 25}, "a prompt of 3 tokens and 25 new ones do not fit into 26 positions"),
        (TOKENS, {"attention_mask": np.array([[1, 1, 0]])}, "ends in padding; pad on the left"),
        (TOKENS, {"attention_mask": np.array([[1, 2, 1]])}, "attention_mask must be 0 or 1"),
        (TOKENS, {"attention_mask": np.array([[1, 1]])}, r"shape \(1, 3\) of the prompts, got \(1, 2\)"),
        (TOKENS[:, :0], {}, "give at least one token"),
        (TOKENS + 64, {}, "token ids must be from 0 to 66, got 65 to 67"),
        (-TOKENS, {}, "token ids must be from 0 to 66, got -3 to -1"),
    ],
)
def test_what_is_refused(model, ids, options, message):
    with pytest.raises(InputError, match=message):
        nf.generate(model, ids, **{"max_new_tokens": 1, **options})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(), "this is BERT with no head"),
        (GPT2Config(), "this is GPT-2 with no head"),
        (GPT2Config(num_labels=2), "this is GPT-2 with the head 'sequence-classification'"),
    ],
)
def test_models_that_cannot_generate(config, message):
    with pytest.raises(InputError, match=message):
        nf.generate(nf.Model(config, {}), TOKENS, max_new_tokens=1)
