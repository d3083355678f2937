"""Indices that a table has no row for are told, not computed with."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.indices import padding_id
from ntkfusion.models.switch.config import SwitchConfig
from tests.helpers.small_encoders import random_weights

BERT = nf.BertConfig(
    vocab_size=13,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=9,
    type_vocab_size=1,
)
GPT2 = GPT2Config(vocab_size=13, hidden_size=8, n_layer=1, n_head=2, n_positions=9)
SWITCH = SwitchConfig(vocab_size=13, hidden_size=8, d_ff=12, num_encoder_layers=1, num_decoder_layers=1, num_heads=2)
IDS = np.array([[1, 2, 3]])


@pytest.mark.parametrize(
    ("config", "inputs", "said"),
    [
        (BERT, {"input_ids": IDS + 11}, "input_ids go from 12 to 14, and the model has rows 0 to 12"),
        (BERT, {"input_ids": IDS - 2}, "input_ids go from -1 to 1"),
        (BERT, {"input_ids": IDS.astype(np.int64) + 2**32}, "input_ids go from 4294967297"),
        (BERT, {"input_ids": IDS, "token_type_ids": np.array([[0, 0, 1]])}, "token_type_ids go from 0 to 1, .* 0 to 0"),
        (BERT, {"input_ids": IDS, "position_ids": IDS + 6}, "position_ids go from 7 to 9"),
        (GPT2, {"input_ids": IDS, "token_type_ids": IDS + 11}, "token_type_ids go from 12 to 14"),
        (GPT2, {"input_ids": IDS, "position_ids": IDS - 3}, "position_ids go from -2"),
        (SWITCH, {"input_ids": IDS, "decoder_input_ids": IDS + 11}, "decoder_input_ids go from 12 to 14"),
    ],
)
def test_a_row_that_is_not_there_is_an_error_and_no_nan(config, inputs, said, monkeypatch):
    model = random_weights(config)
    with pytest.raises(InputError, match=said):
        model.apply(model.params, **inputs, checked=True)
    monkeypatch.setenv("NTKFUSION_CHECK_INDICES", "1")
    with pytest.raises(InputError, match=said):
        model.apply(model.params, **inputs)
    with pytest.raises(InputError, match=said):
        model.hidden_states(model.params, **inputs)
    if len(inputs) == 1:
        with pytest.raises(InputError, match=said):
            model.block_inputs(IDS * 0 + inputs["input_ids"], np.ones_like(IDS))


def test_rows_that_are_there_are_computed_with_also_when_they_are_looked_at():
    model = random_weights(BERT)
    looked, plain = (model.apply(model.params, input_ids=IDS, checked=each) for each in (True, False))
    np.testing.assert_array_equal(looked.last_hidden_state, plain.last_hidden_state)


def test_compiled_programs_say_it_too():
    model = random_weights(BERT)
    apply = jax.jit(lambda ids: model.apply(model.params, input_ids=ids, checked=True).last_hidden_state)

    def run(ids):
        apply(ids).block_until_ready()
        jax.effects_barrier()

    run(IDS)
    with pytest.raises(Exception, match="input_ids go from 12 to 14"):
        run(IDS + 11)


class Padding:
    """A tokenizer of which only special tokens are asked."""

    def __init__(self, pad=None, eos=None):
        self.pad_token_id, self.eos_token_id = pad, eos


@pytest.mark.parametrize(
    ("pad", "of_config", "eos", "contents", "expected"),
    [
        (3, 5, 4, {}, 3),
        (13, 5, 4, {}, 5),  # added to the tokenizer, but the embeddings were not resized
        (None, -1, 4, {}, 4),
        (None, None, None, {"eos_token_id": 6}, 6),
        (None, None, None, {"eos_token_id": 50256}, None),
        (None, None, None, {"eos_token_id": [1, 2]}, None),
    ],
)
def test_what_fills_short_inputs_is_a_row_of_the_embedding(pad, of_config, eos, contents, expected):
    config = GPT2Config(vocab_size=13, hidden_size=8, n_layer=1, n_head=2, pad_token_id=of_config)
    assert padding_id(config, Padding(pad, eos), contents) == expected
