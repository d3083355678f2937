"""Names, shapes and ``config.json`` of BERT, RoBERTa and ALBERT, against transformers' classes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from ntkfusion.checkpoints.load import load_model
from ntkfusion.models.albert.config import AlbertConfig
from ntkfusion.models.bert.config import BertConfig, RobertaConfig, XlmRobertaConfig
from ntkfusion.models.config import WITH_LABELS
from ntkfusion.models.model import abstract_params
from ntkfusion.models.registry import architecture_of, read_config, write_config
from ntkfusion.utils.parameter_paths import path_of
from tests.helpers.oracle import described, draw, write_checkpoint

SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
    "type_vocab_size": 3,
    "hidden_act": "relu",
    "hidden_dropout_prob": 0.2,
}
CONFIGS = {
    "Bert": BertConfig(**SIZES, classifier_dropout=0.3, pad_token_id=None),
    "Roberta": RobertaConfig(**SIZES, pad_token_id=2),
    "XLMRoberta": XlmRobertaConfig(**SIZES, layer_norm_eps=1e-5),
    "Albert": AlbertConfig(**SIZES, embedding_size=5, num_hidden_groups=2),
}
HEADS = {
    None: "Model",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "masked-lm": "ForMaskedLM",
}


def configuration(family, head, tied=True):
    labels = 4 if head in WITH_LABELS else None
    return dataclasses.replace(CONFIGS[family], head=head, num_labels=labels, tie_word_embeddings=tied)


def their_model(family, head, config):
    """The PyTorch model that transformers makes of our config.json."""
    contents = getattr(transformers, f"{family}Config").from_dict(write_config(config))
    return getattr(transformers, family + HEADS[head])(contents)


def their_parameters(model):
    """Shapes of a PyTorch model's parameters, by name, those that are one array together."""
    parameters = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameters.setdefault(id(parameter), {})[name] = list(parameter.shape)
    return list(parameters.values())


@pytest.mark.parametrize(
    ("family", "head", "tied"),
    [(family, head, True) for family in CONFIGS for head in HEADS] + [(f, "masked-lm", False) for f in CONFIGS],
)
def test_transformers_has_the_same_tensors(oracle, family, head, tied):
    config = configuration(family, head, tied)
    table, params = architecture_of(config).names, abstract_params(config)
    named = table.named_tensors(jax.tree.map(lambda leaf: np.empty(leaf.shape), params), head=head)
    theirs = oracle(lambda torch: their_parameters(their_model(family, head, config)))
    # a tied parameter has two names, of which we have one
    assert all(names.keys() & named.keys() for names in theirs)
    shapes = {name: tuple(shape) for names in theirs for name, shape in names.items()}
    assert {name: array.shape for name, array in named.items()} == {name: shapes[name] for name in named}
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert [table.find(table.tensor_of(path)).path for path in paths] == paths


@pytest.mark.parametrize("family", CONFIGS)
def test_config_json_is_read_back(family):
    config = configuration(family, "token-classification")
    theirs = getattr(transformers, f"{family}Config").from_dict(write_config(config))
    assert theirs.num_labels == 4
    for contents in (write_config(config), theirs.to_dict()):
        again = read_config(contents)
        assert dataclasses.replace(again, head=config.head, num_labels=config.num_labels) == config


@pytest.mark.parametrize(
    ("family", "head"),
    [("Bert", "ForPreTraining"), ("Albert", "ForPreTraining"), ("Bert", "ForNextSentencePrediction")],
)
def test_every_tensor_of_pretraining_heads_is_known(oracle, family, head):
    config = CONFIGS[family]
    theirs = getattr(transformers, f"{family}Config").from_dict(write_config(config))
    names = oracle(lambda torch: list(getattr(transformers, family + head)(theirs).state_dict()))
    for name in names:
        assert (architecture_of(config).names.find(name) is None) != (
            architecture_of(config).names.reason_to_leave(name) is None
        ), name


@pytest.mark.parametrize(
    ("family", "head", "name", "path"),
    [
        ("Bert", "masked-lm", "cls.predictions.transform.LayerNorm.gamma", "lm_head/norm/scale"),
        ("Bert", "masked-lm", "cls.predictions.decoder.bias", "lm_head/decoder/bias"),
        ("Roberta", "sequence-classification", "classifier.out_proj.weight", "classifier/output/kernel"),
        ("Roberta", "token-classification", "classifier.weight", "classifier/kernel"),
        ("Albert", None, "albert.pooler.weight", "pooler/kernel"),
        ("Albert", None, "encoder.albert_layer_groups.1.albert_layers.0.ffn.bias", "group_1/mlp/b1"),
    ],
)
def test_places(family, head, name, path):
    table = architecture_of(CONFIGS[family]).names
    assert table.find(name).path == path
    assert head is None or path in {rule.path for rule in table.heads[head]}


@pytest.mark.parametrize("name", ["encoder.albert_layer_groups.0.albert_layers.1.ffn.bias", "albert.classifier.bias"])
def test_other_names_have_no_place(name):
    assert architecture_of(CONFIGS["Albert"]).names.find(name) is None


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_head_is_found_by_its_tensors(oracle, family, head, tmp_path):
    config = configuration(family, head)
    saved = oracle(lambda torch: described(their_model(family, head, config)))
    write_checkpoint(tmp_path, saved["config"] | {"architectures": None}, draw(saved["shapes"]))
    model = load_model(tmp_path)
    assert (model.config.head, model.config.num_labels) == (head, config.num_labels)
    assert load_model(tmp_path, head=None).config.head is None
