"""The audit: what a healthy file reports, and every kind of problem, alone and together."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from ntkfusion.checkpoints.load import load_model, load_with_audit
from ntkfusion.errors import CheckpointError

W1 = "encoder.layer.1.intermediate.dense.weight"
KEY = "encoder.layer.0.attention.self.key.weight"


def problems_of(folder):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder.write())
    for problem in caught.value.problems[:12]:
        assert problem in str(caught.value)
    return caught.value.problems


def test_every_tensor_is_accounted_for(folder):
    aside = {
        "embeddings.position_ids": "a buffer",
        "cls.predictions.bias": "the model is loaded with no head",
        "cls.seq_relationship.weight": "next sentence head",
        "qa_outputs.weight": "the model is loaded with no head",
    }
    names = set(folder.tensors)
    folder.tensors |= {name: np.full((1, 9), np.nan) for name in aside}
    model, audit = load_with_audit(folder.write(), head=None)
    assert set(audit.loaded) == names
    assert audit.left_aside.keys() == aside.keys()
    assert all(reason in audit.left_aside[name] for name, reason in aside.items())
    assert audit.num_parameters == model.num_parameters
    assert audit.dtypes == {"F32": len(names)}


def test_packaged_model():
    model, audit = load_with_audit("minilm", tokenizer=False)
    assert len(audit.loaded) == 103
    assert list(audit.left_aside) == ["embeddings.position_ids"]
    assert audit.num_parameters == model.num_parameters == 22_713_216


def test_missing_tensor(folder):
    del folder.tensors[W1]
    assert problems_of(folder) == (f"{W1} is missing, expected shape (12, 8)",)


def test_unexpected_tensor(folder):
    folder.tensors["encoder.layer.0.adapter.weight"] = np.ones(3, np.float32)
    (problem,) = problems_of(folder)
    assert problem == "encoder.layer.0.adapter.weight is unexpected: BERT has no parameter of this name"


def test_transposed_tensor(folder):
    folder.tensors[W1] = folder.tensors[W1].T
    assert problems_of(folder) == (f"{W1} has shape (8, 12), expected (12, 8); it looks transposed",)


def test_tensor_of_another_shape(folder):
    folder.tensors[KEY] = np.ones((8, 8, 1), np.float32)
    assert problems_of(folder) == (f"{KEY} has shape (8, 8, 1), expected (8, 8)",)


@pytest.mark.parametrize("dtype", ["int64", "int8", "bool"])
def test_integers_where_floats_belong(folder, dtype):
    folder.tensors[KEY] = np.ones((8, 8), dtype)
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{KEY} is stored as ")
    assert problem.endswith("expected floats (F16, BF16, F32, F64)")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_nan_and_infinity(folder, dtype):
    broken = folder.tensors[W1].astype(dtype)
    broken[0, :2], broken[3, 3] = np.nan, -np.inf
    folder.tensors[W1] = broken
    assert problems_of(folder) == (f"{W1} holds 2 NaN and 1 infinite of 96 values",)


def test_numbers_too_large_for_float32(folder):
    folder.tensors[KEY] = folder.tensors[KEY].astype(np.float64) * 1e300
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{KEY} holds 0 NaN and 64 infinite")


def test_two_names_of_one_parameter(folder):
    folder.tensors["embeddings.LayerNorm.gamma"] = folder.tensors["embeddings.LayerNorm.weight"]
    (problem,) = problems_of(folder)
    assert problem == (
        "embeddings.LayerNorm.weight and embeddings.LayerNorm.gamma are the same parameter, expected one of them"
    )


def test_layers_that_are_missing_or_too_many(folder):
    folder.config["num_hidden_layers"] = 4
    assert problems_of(folder) == ("config.json asks for 4 layers; missing: 2, 3",)
    folder.config["num_hidden_layers"] = 1
    assert problems_of(folder) == ("config.json asks for 1 layers; unexpected: 1",)


def test_all_problems_come_together(folder):
    folder.tensors["stray"] = np.ones(1, np.float32)
    folder.tensors[W1] = folder.tensors[W1].T
    del folder.tensors["pooler.dense.bias"]
    folder.tensors[KEY] = np.full((8, 8), np.nan, np.float32)
    folder.tensors["encoder.layer.0.output.dense.bias"] = np.ones(8, np.int32)
    folder.config["num_hidden_layers"] = 3
    problems = problems_of(folder)
    assert len(problems) == 6
    for part in ("stray", "transposed", "pooler.dense.bias is missing", "64 NaN", "I32", "missing: 2"):
        assert sum(part in problem for problem in problems) == 1, part


def test_another_width_is_reported_tensor_by_tensor_but_printed_briefly(folder):
    folder.config["hidden_size"] = 16
    problems = problems_of(folder)
    assert len(problems) > 30
    with pytest.raises(CheckpointError, match=r"\.\.\. and \d+ more") as caught:
        load_model(folder.path)
    assert len(str(caught.value).splitlines()) < 20


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 2**24}, "config.json asks for 16777216 layers, the weights have 2"),
        ({"intermediate_size": 2**24}, "expected (16777216, 8)"),
        ({"hidden_size": 2**24, "vocab_size": 2**24}, "expected (16777216, 16777216)"),
    ],
)
def test_absurd_sizes_allocate_nothing(folder, changes, sentence):
    folder.config |= changes
    assert any(sentence in problem for problem in problems_of(folder))


def test_weights_without_a_tensor(folder):
    folder.write()
    save_file({}, folder.weights)
    with pytest.raises(CheckpointError, match="asks for 2 layers, the weights have 0"):
        load_model(folder.path)


def test_classifier_without_a_pooler_reads_every_token(folder):
    del folder.tensors["pooler.dense.weight"], folder.tensors["pooler.dense.bias"]
    folder.tensors["classifier.weight"] = np.ones((3, 8), np.float32)
    folder.tensors["classifier.bias"] = np.ones(3, np.float32)
    model, audit = load_with_audit(folder.write())
    assert (model.config.head, model.config.add_pooler, model.config.num_labels) == ("token-classification", False, 3)
    assert not audit.left_aside
    folder.config["architectures"] = ["BertForSequenceClassification"]
    missing = (
        "pooler.dense.bias is missing, expected shape (8,)",
        "pooler.dense.weight is missing, expected shape (8, 8)",
    )
    assert problems_of(folder) == missing


def test_pooler_that_no_head_reads_is_left_aside(folder):
    folder.tensors["qa_outputs.weight"] = np.ones((2, 8), np.float32)
    folder.tensors["qa_outputs.bias"] = np.ones(2, np.float32)
    model, audit = load_with_audit(folder.write())
    assert (model.config.head, model.config.add_pooler) == ("question-answering", False)
    assert list(audit.left_aside) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert "without this part" in audit.left_aside["pooler.dense.bias"]
    assert load_model(folder.path, head=None).config.add_pooler


def test_half_a_head(folder):
    folder.tensors["classifier.weight"] = np.ones((3, 8), np.float32)
    assert problems_of(folder) == ("classifier.bias is missing, expected shape (3,)",)


@pytest.mark.parametrize("shape", [(), (0, 8), (8,), (3, 4)])
def test_head_of_a_strange_shape(folder, shape):
    folder.tensors["classifier.weight"] = np.ones(shape, np.float32)
    folder.tensors["classifier.bias"] = np.ones(shape[:1], np.float32)
    assert any(problem.startswith(f"classifier.weight has shape {shape}") for problem in problems_of(folder))
