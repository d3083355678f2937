"""Texts become one padded batch, whatever the tokenizer lacks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import ntkfusion as nf
from ntkfusion.data.block_inputs import tokenizer_output
from ntkfusion.errors import InputError
from ntkfusion.models.gpt2.config import GPT2Config
from tests.helpers.as_users import as_users
from tests.helpers.small_encoders import random_weights

WORDS = {"<|end|>": 3, "one": 0, "two": 1, "three": 2}
TEXTS = ["one", "one two three", "two one"]


@pytest.fixture(scope="module")
def gpt2():
    """A small GPT-2 whose tokenizer has no padding token, as GPT-2's has none."""
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<|end|>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|end|>")
    config = GPT2Config(vocab_size=4, n_positions=6, hidden_size=8, n_layer=1, n_head=2)
    return dataclasses.replace(random_weights(config, 0.3), tokenizer=tokenizer)


def test_gpt2_without_padding_token_reads_a_batch(gpt2):
    """transformers says: asking to pad but the tokenizer does not have a padding token."""
    with pytest.raises(ValueError, match="pad"):
        gpt2.tokenizer(TEXTS, padding=True)
    batch = nf.text_batch(gpt2, TEXTS)
    assert batch["input_ids"].tolist() == [[0, 3, 3], [0, 1, 2], [1, 0, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 0]]
    together = gpt2.apply(gpt2.params, **batch).last_hidden_state
    for row, text in enumerate(TEXTS):
        alone = gpt2.apply(gpt2.params, **nf.text_batch(gpt2, [text])).last_hidden_state[0]
        np.testing.assert_allclose(together[row, : len(alone)], alone, atol=1e-6)


def test_padding_on_the_left_is_what_generation_needs(gpt2):
    batch = nf.text_batch(gpt2, TEXTS, side="left")
    assert batch["input_ids"].tolist() == [[3, 3, 0], [0, 1, 2], [3, 1, 0]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]


def test_long_texts_are_cut_to_the_models_positions(gpt2):
    assert nf.text_batch(gpt2, ["one " * 50])["input_ids"].shape == (1, 6)
    assert nf.text_batch(gpt2, ["one " * 50], max_length=2)["input_ids"].shape == (1, 2)


def test_a_batch_is_what_the_tokenizer_would_pad(minilm):
    theirs = minilm.tokenizer(["A word.", "And some more words."], padding=True, return_tensors="np")
    ours = nf.text_batch(minilm, np.array(["A word.", "And some more words."]))
    assert all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("texts", [["one", None], ["one \ud800"]])
def test_what_is_no_text_is_refused_before_the_tokenizer_sees_it(gpt2, texts):
    for given in ((texts,), (["one", "two"], texts)):
        with as_users(), pytest.raises(InputError, match=r"text \d (is None|holds a lone surrogate)"):
            tokenizer_output(gpt2, *given, max_length=5)
