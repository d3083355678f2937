"""Configurations of Switch Transformers: what is read, what is derived as transformers derives it, what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import transformers

from ntkfusion.errors import InputError
from ntkfusion.models.config import LARGEST_SIZE
from ntkfusion.models.registry import read_config
from ntkfusion.models.switch.config import SwitchConfig
from ntkfusion.models.switch.config import switch_hf_config as hf_config

MINIMAL = {
    "model_type": "switch_transformers",
    "vocab_size": 13,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 12,
    "num_layers": 4,
    "num_heads": 2,
    "num_experts": 5,
    "expert_capacity": 7,
}


def test_defaults_are_hugging_faces():
    theirs, ours = (
        transformers.SwitchTransformersConfig(),
        read_config(transformers.SwitchTransformersConfig().to_dict()),
    )
    assert ours == SwitchConfig()
    names = {"hidden_size": "d_model", "num_encoder_layers": "num_layers"}
    own = {"num_labels", "head", "mlp_layouts", "initializer_range", "decoder_start_token_id", "classifier_dropout"}
    for field in dataclasses.fields(ours):
        if field.name not in own:
            assert getattr(ours, field.name) == getattr(theirs, names.get(field.name, field.name)), field.name


def test_what_is_not_said():
    config = read_config(MINIMAL)
    assert (config.num_decoder_layers, config.num_layers, config.max_length) == (12, 16, None)
    assert read_config(MINIMAL | {"num_decoder_layers": None}).num_decoder_layers == 4
    assert (config.pad_token_id, config.decoder_start_token_id, config.eos_token_id) == (0, 0, 1)
    assert read_config(MINIMAL | {"pad_token_id": 5}).decoder_start_token_id == 5
    assert read_config(MINIMAL | {"pad_token_id": None}).decoder_start_token_id is None
    assert read_config(MINIMAL | {"eos_token_id": [3]}).eos_token_id == 3


@pytest.mark.parametrize(
    "given",
    [
        {"num_layers": 1, "num_sparse_encoder_layers": 0},
        {"num_layers": 3, "num_sparse_encoder_layers": 0, "num_decoder_layers": None, "num_sparse_decoder_layers": 5},
        {"num_layers": 6, "num_sparse_encoder_layers": 3, "num_decoder_layers": 7, "num_sparse_decoder_layers": 3},
        {"num_layers": 5, "num_sparse_encoder_layers": 2, "num_decoder_layers": 1, "num_sparse_decoder_layers": 1},
        {"num_layers": 5, "encoder_sparse_step": 0, "decoder_sparse_step": 1},
        {"num_layers": 7, "encoder_sparse_step": 3, "decoder_sparse_step": 9},
    ],
)
def test_sparse_layers_are_those_of_torch(given, oracle):
    def sparse_layers(torch, written):
        with torch.device("meta"):
            model = transformers.SwitchTransformersModel(transformers.SwitchTransformersConfig.from_dict(written))
        layers = [*model.encoder.block, *model.decoder.block]
        kinds = [type(layer.layer[-1].mlp).__name__ for layer in layers]
        sparse = [kind == "SwitchTransformersSparseMLP" for kind in kinds]
        return {"sparse": sparse, "parameters": len([*model.parameters()])}

    contents = MINIMAL | given
    config = read_config(contents)
    for written in (contents, hf_config(config)):
        theirs = oracle(lambda torch, written=written: sparse_layers(torch, written))
        expected = theirs["sparse"]
        assert [config.is_sparse(index) for index in range(config.num_blocks)] == expected
        assert config.num_sparse("encoder") + config.num_sparse("decoder") == sum(expected)
        kinds = [type(config.original_layout(index)).__name__ for index in range(config.num_blocks)]
        assert kinds == [{True: "MixtureBlock", False: "MLPBlock"}[sparse] for sparse in expected]
        # shared table, norm and position bias of each stack
        assert theirs["parameters"] == config.fewest_tensors + 5


def test_contents_of_config_json_are_read_as_they_were():
    config = read_config(MINIMAL | {"dense_act_fn": "gelu", "num_decoder_layers": 2, "tie_word_embeddings": False})
    assert read_config(hf_config(config)) == config
    their_config = transformers.SwitchTransformersConfig.from_dict(hf_config(config))
    assert (their_config.num_decoder_layers, their_config.dense_act_fn) == (2, "gelu")
    assert not their_config.tie_word_embeddings


@pytest.mark.parametrize("name", [name for name in MINIMAL if name != "model_type"])
def test_missing_key(name):
    with pytest.raises(InputError, match=f"config: missing {name}"):
        read_config({key: value for key, value in MINIMAL.items() if key != name})


@pytest.mark.parametrize("value", [0, -1, 2.5, "8", None, True, LARGEST_SIZE + 1, 10**30])
@pytest.mark.parametrize("name", ["d_model", "num_layers", "num_experts", "expert_capacity"])
def test_sizes_are_whole_and_sane(name, value):
    with pytest.raises(InputError, match=f"{name} must be a whole number from 1 to {LARGEST_SIZE}"):
        read_config(MINIMAL | {name: value})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"router_bias": True}, "router_bias True is not supported"),
        ({"router_dtype": "bfloat16"}, "router_dtype 'bfloat16' is not supported"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder False is not supported"),
        ({"dense_act_fn": "gated-gelu"}, "dense_act_fn 'gated-gelu' is not supported"),
        ({"is_gated_act": True}, "is_gated_act True is not supported"),
        ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj 'gated-gelu' is not supported"),
        ({"dense_act_fn": "mish"}, "unknown activation 'mish'"),
        ({"dense_act_fn": 3}, "dense_act_fn must be a string, got 3"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id must be a whole number from 0 to 12, got \[1, 2\]"),
        ({"pad_token_id": 13}, "pad_token_id must be a whole number from 0 to 12, got 13"),
        ({"num_sparse_encoder_layers": -1}, "num_sparse_encoder_layers must be a whole number from 0"),
        ({"num_sparse_decoder_layers": "2"}, "num_sparse_decoder_layers must be a whole number from 0"),
        ({"encoder_sparse_step": 2.0}, "encoder_sparse_step must be a whole number from 0"),
        ({"d_kv": LARGEST_SIZE}, "num_heads × d_kv must be at most"),
        ({"relative_attention_num_buckets": 3}, "relative_attention_num_buckets must be at least 4"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance must exceed half"),
        ({"layer_norm_epsilon": -1.0}, "layer_norm_epsilon must be a small non-negative number"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "asks to run code from the checkpoint"),
    ],
)
def test_what_is_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        read_config(MINIMAL | changes)
