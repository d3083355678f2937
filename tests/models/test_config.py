"""Configurations: what is read from config.json, and everything that is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from ntkfusion.errors import InputError
from ntkfusion.models.albert.config import AlbertConfig
from ntkfusion.models.bert.config import BertConfig, RobertaConfig, XlmRobertaConfig
from ntkfusion.models.blocks.dense import dense_layout
from ntkfusion.models.config import CHECK, LARGEST_SIZE, ModelConfig, check_values
from ntkfusion.models.model import abstract_params
from ntkfusion.models.registry import ARCHITECTURES, read_config

MINIMAL = {
    "model_type": "bert",
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BertConfig(), "BertConfig"),
        (RobertaConfig(), "RobertaConfig"),
        (XlmRobertaConfig(), "XLMRobertaConfig"),
        (AlbertConfig(), "AlbertConfig"),
    ],
)
def test_defaults_are_hugging_faces(ours, theirs):
    theirs = getattr(pytest.importorskip("transformers"), theirs)()
    assert ours.model_type == theirs.model_type
    for field in dataclasses.fields(ours):
        if field.name not in ours.NOT_IN_FILE:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_keys_that_do_not_matter_are_ignored():
    config = read_config(MINIMAL | {"hidden_dropout_prob": 0.1, "architectures": ["BertModel"], "num_labels": 7})
    assert config == BertConfig(**{name: value for name, value in MINIMAL.items() if name != "model_type"})
    assert config.num_labels is None


def test_keys_that_matter_are_read():
    given = {"hidden_act": "relu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "max_position_embeddings": 33}
    config = read_config(MINIMAL | given)
    assert {name: getattr(config, name) for name in given} == given


@pytest.mark.parametrize("name", [name for name in MINIMAL if name != "model_type"])
def test_missing_key(name):
    with pytest.raises(InputError, match=f"config: missing {name}"):
        read_config({key: value for key, value in MINIMAL.items() if key != name})


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", None, True, LARGEST_SIZE + 1, 10**30])
@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
def test_sizes_are_whole_and_sane(name, value):
    with pytest.raises(InputError, match=f"{name} must be a whole number from 1 to {LARGEST_SIZE}"):
        read_config(MINIMAL | {name: value})


@pytest.mark.parametrize("value", [-1e-5, float("nan"), float("inf"), "small", None])
def test_epsilon_is_a_small_number(value):
    with pytest.raises(InputError, match="layer_norm_eps must be a small non-negative number"):
        read_config(MINIMAL | {"layer_norm_eps": value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not supported; supported: bert"),
        ({"model_type": None}, "it has no model_type"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "asks to run code from the checkpoint"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"is_decoder": True}, "decoder is not supported"),
        ({"add_cross_attention": True}, "decoder is not supported"),
        ({"hidden_act": "mish"}, "unknown activation 'mish'"),
        ({"hidden_act": ["gelu"]}, r"hidden_act must be a string, got \['gelu'\]"),
        ({"num_attention_heads": 3}, "hidden_size 8 is not a multiple of num_attention_heads 3"),
    ],
)
def test_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        read_config(MINIMAL | changes)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_field_says_how_its_values_are_checked(name):
    cls = ARCHITECTURES[name].config
    unchecked = [field.name for field in dataclasses.fields(cls) if field.metadata[CHECK] is None]
    assert unchecked == ["head", "mlp_layouts"]
    for field in dataclasses.fields(cls):
        if field.name not in unchecked:
            with pytest.raises(InputError, match=f"config: {field.name} must be .*, got \\['nothing'\\]"):
                check_values(cls, {field.name: ["nothing"]})


def test_a_field_without_a_check_is_an_error():
    @dataclasses.dataclass(frozen=True)
    class Forgetful(ModelConfig):
        forgotten: int = 3

    with pytest.raises(KeyError):
        check_values(Forgetful, {})


def test_block_layouts():
    config = read_config(MINIMAL)
    assert config.block_layout(1) == dense_layout(8, 12)
    narrow = dataclasses.replace(config, mlp_layouts=(dense_layout(8, 12), dense_layout(8, 3)))
    assert narrow.block_layout(1).hidden_width == 3
    assert hash(narrow) != hash(config)
    with pytest.raises(InputError, match="1 block layouts for 2 layers"):
        dataclasses.replace(config, mlp_layouts=(dense_layout(8, 12),))


def test_largest_sizes_allocate_nothing():
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size"), LARGEST_SIZE)
    huge = BertConfig(**sizes, num_hidden_layers=1, num_attention_heads=16)
    params = abstract_params(huge)
    assert params["layer_0"]["mlp"]["w1"].shape == (LARGEST_SIZE, LARGEST_SIZE)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_second_names_of_keys_count_as_they_do_in_transformers():
    sizes = {"model_type": "gpt2", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = read_config({**sizes, "max_position_embeddings": 7, "n_layer": 1})
    assert (config.hidden_size, config.n_layer, config.n_head, config.n_positions) == (8, 3, 2, 7)
