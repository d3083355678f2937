"""The name table of BERT, in both directions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import transformers

from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.bert.names import BERT
from ntkfusion.models.model import abstract_params
from ntkfusion.models.name_table import Place
from ntkfusion.utils.parameter_paths import path_of

CONFIG = BertConfig(
    vocab_size=13, hidden_size=8, num_hidden_layers=12, num_attention_heads=2, intermediate_size=12, num_labels=3
)


def theirs(kind, **options):
    sizes = {"vocab_size": 13, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    return getattr(transformers, kind)(transformers.BertConfig(**sizes, num_hidden_layers=12, **options))


def test_table_and_pytorch_class_name_the_same_tensors(oracle):
    def parameters(torch):
        model = theirs("BertForSequenceClassification", num_labels=3)
        return {name: list(array.shape) for name, array in model.named_parameters()}

    expected = {name: tuple(shape) for name, shape in oracle(parameters).items()}
    named = BERT.named_tensors(
        jax.tree.map(lambda leaf: np.empty(leaf.shape), abstract_params(CONFIG)), head=CONFIG.head
    )
    assert {name: array.shape for name, array in named.items()} == expected


def test_names_and_paths_are_inverse():
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params(CONFIG))]
    assert [BERT.find(BERT.tensor_of(path)).path for path in paths] == paths


def test_base_without_a_head_has_no_prefix():
    params = {"pooler": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}}
    assert set(BERT.named_tensors(params, head=None)) == {"pooler.dense.weight", "pooler.dense.bias"}
    head = {"classifier": {"bias": np.ones(3)}}
    assert set(BERT.named_tensors(params | head, head="sequence-classification")) == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.bias"
    }  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("encoder.layer.11.intermediate.dense.weight", Place("layer_11/mlp/w1", True, "layer_11")),
        ("encoder.layer.0.output.dense.bias", Place("layer_0/mlp/b2", layer="layer_0")),
        ("encoder.layer.3.attention.output.LayerNorm.gamma", Place("layer_3/attention_norm/scale", layer="layer_3")),
        ("embeddings.LayerNorm.beta", Place("embeddings/norm/bias")),
        ("embeddings.word_embeddings.weight", Place("embeddings/word/embedding")),
    ],
)
def test_places(prefix, name, place):
    assert BERT.find(prefix + name) == place


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layer.01.output.dense.bias",
        "encoder.layer.-1.output.dense.bias",
        "encoder.layer." + "9" * 5000 + ".output.dense.bias",
        "encoder.layer.{layer}.output.dense.bias",
        "bert.bert.pooler.dense.bias",
        "bert.classifier.bias",
        "encoderXlayer.0.output.dense.bias",
        "pooler.dense.gamma",
        "",
    ],
)
def test_other_names_have_no_place(name):
    assert BERT.find(name) is None
    assert BERT.reason_to_leave(name) is None


@pytest.mark.parametrize("kind", ["BertForPreTraining", "BertForQuestionAnswering"])
def test_every_tensor_of_other_heads_is_known(kind, oracle):
    for name in oracle(lambda torch: list(theirs(kind).state_dict())):
        assert (BERT.find(name) is None) != (BERT.reason_to_leave(name) is None), name


def test_parameters_that_no_table_knows():
    with pytest.raises(KeyError, match="no BERT checkpoint has a tensor for the parameter layer_0/mlp/left1"):
        BERT.named_tensors({"layer_0": {"mlp": {"left1": np.ones((2, 2))}}}, head=None)
