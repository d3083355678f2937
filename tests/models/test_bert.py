"""Parity with transformers' PyTorch BERT. `pytest -n 0 -s tests/models/test_bert.py` prints what was measured."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from encoder_parity import check, grid, marked
from torch_parity import compare, our_outputs

import ntkfusion
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import find_folder

CASES = grid("Bert")
#: Cases that are always run, by dtype; all of them with `-m slow`.
ALWAYS = {"float32": {5}, "float64": {0, 4, 16, 19}}


def tokenized(minilm, sentences):
    batch = minilm.tokenizer(sentences, padding=True, return_tensors="np")
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def mixed_lengths(sentences, number):
    """Sentences spread evenly over the lengths that occur."""
    ordered = sorted(sentences, key=len)
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, number).astype(int)]


def minilm_oracle(dtype):
    torch.set_num_threads(2)
    options = {"attn_implementation": "eager", "dtype": getattr(torch, dtype)}
    return transformers.BertModel.from_pretrained(find_folder("minilm"), **options).eval()


def check_minilm(minilm, sentences, dtype, tolerance):
    batch = tokenized(minilm, sentences)
    assert 0 < batch["attention_mask"].sum() < batch["attention_mask"].size
    with jax.enable_x64(dtype == "float64"):
        model = minilm if dtype == "float32" else load_model("minilm", dtype=dtype, tokenizer=False)
        with torch.no_grad():
            found = compare(model, minilm_oracle(dtype), batch, gradients=False)
    print(f"\nMiniLM, {len(sentences)} sentences, {dtype}: {found}")
    assert found.hidden <= tolerance
    assert found.pooled <= tolerance


@pytest.fixture(scope="module")
def sample():
    """The sentences that are shipped with the package."""
    return (Path(ntkfusion.__path__[0]) / "data" / "sample.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-10)])
def test_minilm_equals_torch_on_sst2(minilm, data_dir, dtype, tolerance):
    lines = (data_dir / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences = mixed_lengths([line.split("\t")[1] for line in lines], 64)
    check_minilm(minilm, sentences, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float64", 1e-10)])
def test_minilm_equals_torch_on_packaged_sentences(minilm, sample, dtype, tolerance):
    check_minilm(minilm, mixed_lengths(sample, 32), dtype, tolerance)


def test_minilm_gradients_equal_torch(minilm, sample):
    oracle = minilm_oracle("float32")
    assert sum(1 for _ in oracle.parameters()) == len(jax.tree.leaves(minilm.params))
    found = compare(minilm, oracle, tokenized(minilm, mixed_lengths(sample, 8)), gradients=True)
    print(f"\nMiniLM, float32: {found}")
    assert found.gradient <= 1e-4


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float32"]))
def test_small_bert_equals_torch_in_float32(case, tmp_path):
    model = check(case, tmp_path, "float32")
    pooled = case.pooler if case.head is None else case.head == "sequence-classification"
    assert model.config.add_pooler == pooled


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float64"]))
def test_small_bert_equals_torch_in_float64(case, tmp_path, x64):
    check(case, tmp_path, "float64")


def test_padding_does_not_change_tokens(minilm, sample):
    sentences = mixed_lengths(sample, 5)
    together = our_outputs(minilm, minilm.params, tokenized(minilm, sentences))["hidden"]
    alone = our_outputs(minilm, minilm.params, tokenized(minilm, sentences[2:3]))["hidden"][0]
    assert alone.shape[0] < together.shape[1]
    np.testing.assert_allclose(together[2, : alone.shape[0]], alone, atol=2e-5)
