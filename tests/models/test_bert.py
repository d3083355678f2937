"""Parity with transformers' PyTorch BERT. `pytest -n 0 -s tests/models/test_bert.py` prints what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from torch_parity import compare, our_outputs

import ntkfusion
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import find_folder

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 19,
    "type_vocab_size": 2,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A small random BERT and the shape of a batch for it."""

    name: str
    changes: dict = dataclasses.field(default_factory=dict)
    num_labels: int | None = None
    pooler: bool = True
    batch: int = 3
    length: int = 11


CASES = [
    Case("gelu, three heads, two layers", {"num_hidden_layers": 2}),
    Case("gelu_new, one head, odd sizes", {"hidden_act": "gelu_new", "num_attention_heads": 1, "hidden_size": 37}),
    Case("silu, batch of one", {"hidden_act": "silu", "intermediate_size": 17}, batch=1),
    Case("relu, no pooler", {"hidden_act": "relu", "num_attention_heads": 8}, pooler=False),
    Case("three token types, full length", {"type_vocab_size": 3, "layer_norm_eps": 1e-5}, pooler=False, length=19),
    Case("classifier", num_labels=3),
    Case("classifier, one label", {"hidden_act": "gelu_pytorch_tanh"}, num_labels=1),
]


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


def small_oracle(case):
    """A random model whose every parameter matters, LayerNorms and biases included."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**(TINY | case.changes), attn_implementation="eager")
    if case.num_labels is None:
        oracle = transformers.BertModel(config, add_pooling_layer=case.pooler)
    else:
        config.num_labels = case.num_labels
        oracle = transformers.BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    return oracle.eval()


def small_batch(case):
    config = TINY | case.changes
    rng = np.random.default_rng(1)
    shape = (case.batch, case.length)
    lengths = rng.integers(2, case.length, size=(case.batch, 1))
    lengths[0] = case.length
    return {
        "input_ids": rng.integers(0, config["vocab_size"], size=shape),
        "attention_mask": (np.arange(case.length)[None, :] < lengths).astype(np.int64),
        "token_type_ids": rng.integers(0, config["type_vocab_size"], size=shape),
    }


@pytest.mark.parametrize("case", CASES[::3], ids=lambda case: case.name)
def test_small_bert_equals_torch_in_float32(case, tmp_path):
    oracle = small_oracle(case)
    oracle.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert (model.config.num_labels, model.config.add_pooler) == (case.num_labels, case.pooler)
    assert model.num_parameters == sum(parameter.numel() for parameter in oracle.parameters())
    found = compare(model, oracle, small_batch(case), gradients=True)
    print(f"\n{case.name}, float32: {found}")
    assert max(found.hidden, found.pooled) <= 2e-5
    assert found.gradient <= 1e-4


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_small_bert_equals_torch_in_float64(case, tmp_path, x64):
    oracle = small_oracle(case)
    oracle.save_pretrained(tmp_path)
    found = compare(load_model(tmp_path, dtype="float64"), oracle.double(), small_batch(case), gradients=True)
    print(f"\n{case.name}, float64: {found}")
    assert found.hidden <= 1e-10
    assert found.pooled <= 1e-9
    assert found.gradient <= 1e-10


def test_padding_does_not_change_tokens(minilm, sample):
    sentences = mixed_lengths(sample, 5)
    together = our_outputs(minilm, minilm.params, tokenized(minilm, sentences))["hidden"]
    alone = our_outputs(minilm, minilm.params, tokenized(minilm, sentences[2:3]))["hidden"][0]
    assert alone.shape[0] < together.shape[1]
    np.testing.assert_allclose(together[2, : alone.shape[0]], alone, atol=2e-5)
