"""Parity with transformers' PyTorch RoBERTa and XLM-RoBERTa."""

from __future__ import annotations

import pytest

from ntkfusion.checkpoints.load import load_model
from ntkfusion.errors import InputError
from ntkfusion.models.bert.config import RobertaConfig, XlmRobertaConfig
from ntkfusion.models.registry import read_config
from tests.helpers.encoder_parity import Case, check, grid, marked, small_batch, small_oracle, with_embeddings
from tests.helpers.torch_parity import compare

PADDED_BY_ZERO = {"pad_token_id": 0}
CASES = [
    *grid("Roberta"),
    Case("padding token 0", "XLMRoberta", "masked-lm", PADDED_BY_ZERO, padding="left"),
    Case("padding token 5, full length", "XLMRoberta", "sequence-classification", {"pad_token_id": 5}, length=None),
]
#: Cases that are always run, by dtype; all of them with `-m slow`.
ALWAYS = {"float32": {9}, "float64": {4, 20}}


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float32"]))
def test_small_roberta_equals_torch_in_float32(case, tmp_path):
    check(case, tmp_path, "float32")


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float64"]))
def test_small_roberta_equals_torch_in_float64(case, tmp_path, x64):
    model = check(case, tmp_path, "float64")
    assert type(model.config) is (XlmRobertaConfig if case.family == "XLMRoberta" else RobertaConfig)


def test_embeddings_have_positions_from_the_left(tmp_path, x64):
    case = Case("embeddings", "Roberta", padding="left")
    oracle = small_oracle(case)
    oracle.save_pretrained(tmp_path)
    model, oracle = load_model(tmp_path, dtype="float64"), oracle.double()
    batch = with_embeddings(oracle, small_batch(case, oracle.config))
    found = compare(model, oracle, batch, gradients=False)
    assert max(found.hidden, found.pooled) <= 1e-10


SIZES = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}


def test_positions_behind_padding():
    config = read_config({"model_type": "roberta", **SIZES, "max_position_embeddings": 20, "pad_token_id": 4})
    assert config.max_length == 15
    with pytest.raises(InputError, match="max_position_embeddings 20 leaves no position behind pad_token_id 19"):
        read_config({"model_type": "roberta", **SIZES, "max_position_embeddings": 20, "pad_token_id": 19})


@pytest.mark.parametrize("value", [-1, None, 1.5, True, 10**9])
def test_padding_token_is_a_number(value):
    with pytest.raises(InputError, match="pad_token_id must be a whole number from 0"):
        read_config({"model_type": "roberta", **SIZES, "pad_token_id": value})
