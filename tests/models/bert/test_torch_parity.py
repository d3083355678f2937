"""Parity with transformers' PyTorch BERT, on the real MiniLM and on small random ones (``-n 0 -s`` prints figures)."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
import transformers
from flax.traverse_util import unflatten_dict

import ntkfusion as nf
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.sources import find_folder
from ntkfusion.models.bert.names import BERT
from tests.helpers.sentences import mixed_lengths, packaged_sentences, tokenized
from tests.helpers.small_encoders import Case, grid, marked, small_batch
from tests.helpers.torch_encoders import check, small_oracle, with_embeddings
from tests.helpers.torch_parity import compare

pytestmark = pytest.mark.oracle

CASES = grid("Bert")


#: Cases that are always run, by dtype; all of them with `-m slow`.
ALWAYS = {"float32": {5}, "float64": {4, 19}}


def minilm_oracle(dtype):
    torch.set_num_threads(2)
    options = {"attn_implementation": "eager", "dtype": getattr(torch, dtype)}
    return transformers.BertModel.from_pretrained(find_folder("minilm"), **options).eval()


@pytest.fixture(scope="module")
def sample():
    return packaged_sentences()


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


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 2e-5), pytest.param("float64", 1e-10, marks=pytest.mark.slow)]
)
def test_minilm_equals_torch_on_sst2(minilm, data_dir, dtype, tolerance):
    lines = (data_dir / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences = mixed_lengths([line.split("\t")[1] for line in lines], 64)
    check_minilm(minilm, sentences, dtype, tolerance)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [pytest.param("float32", 2e-5, marks=pytest.mark.slow), ("float64", 1e-10)]
)
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


def test_word_embeddings_can_be_given(tmp_path, x64):
    case = Case("embeddings", head="sequence-classification")
    oracle = small_oracle(case)
    oracle.save_pretrained(tmp_path)
    model, oracle = load_model(tmp_path, dtype="float64"), oracle.double()
    batch = with_embeddings(oracle, small_batch(case, oracle.config))
    found = compare(model, oracle, batch, gradients=False)
    assert max(found.hidden, found.pooled) <= 1e-10


def test_real_bert_tiny_runs_through_embeddings(data_dir, x64):
    with np.load(data_dir / "bert_tiny_sst2" / "layers.npz") as file:
        stored = {name: torch.tensor(file[name]).double() for name in file.files}
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    oracle = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, vocab_size=2)).double().eval()
    missing, unexpected = oracle.load_state_dict(stored, strict=False)
    assert not unexpected
    assert all(name.startswith("bert.embeddings.") for name in missing)
    places = {name: BERT.find(name) for name, _ in oracle.named_parameters()}
    tensors = {name: array.detach().numpy() for name, array in oracle.named_parameters()}
    arrays = {place.path: tensors[name].T if place.transposed else tensors[name] for name, place in places.items()}
    config = nf.BertConfig(**sizes, vocab_size=2, num_labels=2)
    model = nf.Model(config, unflatten_dict(arrays, sep="/"))
    rng = np.random.default_rng(0)
    batch = {
        "inputs_embeds": rng.normal(size=(5, 24, 128)),
        "attention_mask": (np.arange(24)[None, :] < np.array([24, 3, 17, 9, 24])[:, None]).astype(np.int64),
    }
    found = compare(model, oracle, batch, gradients=False)
    print(f"\nBERT-tiny of SST-2, float64: {found}")
    assert max(found.hidden, found.pooled) <= 1e-10
