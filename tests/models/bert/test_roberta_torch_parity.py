"""Parity with transformers' PyTorch RoBERTa and XLM-RoBERTa."""

from __future__ import annotations

import pytest

from ntkfusion.checkpoints.load import load_model
from ntkfusion.models.bert.config import RobertaConfig, XlmRobertaConfig
from tests.helpers.small_encoders import Case, grid, marked, small_batch
from tests.helpers.torch_encoders import check, small_oracle, with_embeddings
from tests.helpers.torch_parity import compare

pytestmark = pytest.mark.oracle

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
