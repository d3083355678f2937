"""The name table of the Switch Transformer, in both directions, and checkpoints that do not fit their configuration."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from ntkfusion.checkpoints.load import load_model, load_with_audit
from ntkfusion.errors import CheckpointError
from ntkfusion.models.model import abstract_params
from ntkfusion.models.name_table import Place
from ntkfusion.models.switch.config import switch_config
from ntkfusion.models.switch.config import switch_hf_config as hf_config
from ntkfusion.models.switch.names import SWITCH
from ntkfusion.utils.parameter_paths import path_of
from tests.helpers.oracle import described, draw, write_checkpoint

SIZES = {
    "vocab_size": 13,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 12,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 2,
    "num_experts": 11,
    "expert_capacity": 4,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
}


def their_model(kind="ForConditionalGeneration", **changes):
    """A model in PyTorch."""
    config = transformers.SwitchTransformersConfig(**SIZES | changes)
    return getattr(transformers, f"SwitchTransformers{kind}")(config)


def write(oracle, path, *kind, **changes):
    """A folder as a PyTorch model is saved, but for its random weights."""
    saved = oracle(lambda torch: described(their_model(*kind, **changes)))
    return write_checkpoint(path, saved["config"], draw(saved["shapes"]))


@pytest.fixture
def folder(tmp_path, oracle):
    return write(oracle, tmp_path)


def change(folder, tensors=(), without=(), **config):
    """Change config.json, add tensors and leave some out."""
    file, weights = folder / "config.json", folder / "model.safetensors"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    kept = {name: array for name, array in load_file(weights).items() if name not in without}
    save_file(kept | dict(tensors), weights)


@pytest.mark.parametrize("tied", [True, False])
def test_table_and_pytorch_class_name_the_same_tensors(tied, tmp_path, oracle):
    model = load_model(write(oracle, tmp_path, tie_word_embeddings=tied))
    assert model.config.head == "seq2seq-lm"
    named = SWITCH.named_tensors(model.params, head=model.config.head)
    theirs = oracle(lambda torch: [name for name, _ in their_model(tie_word_embeddings=tied).named_parameters()])
    assert sorted(named) == sorted(theirs)
    stored = load_file(tmp_path / "model.safetensors")
    for name, array in named.items():
        np.testing.assert_array_equal(array, stored[name])


def test_names_and_paths_are_inverse(folder):
    config = load_model(folder).config
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config)):
        path = path_of(key_path)
        experts = range(leaf.shape[0]) if SWITCH.has_experts(path) else [None]
        assert [SWITCH.find(SWITCH.tensor_of(path, expert)).slot for expert in experts] == [
            path if expert is None else f"{path}[{expert}]" for expert in experts
        ]
        assert SWITCH.has_experts(path) == ("/experts/" in path)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("shared.weight", Place("embeddings/word/embedding")),
        (
            "decoder.block.1.layer.2.mlp.experts.expert_10.wo.weight",
            Place("decoder/layer_1/mlp/experts/w2", True, "decoder/layer_1", 10),
        ),
        ("encoder.block.1.layer.1.mlp.router.classifier.weight",
            Place("encoder/layer_1/mlp/router", True, "encoder/layer_1")),
        ("encoder.block.0.layer.1.mlp.wi.weight", Place("encoder/layer_0/mlp/w1", True, "encoder/layer_0")),
        ("decoder.block.2.layer.1.EncDecAttention.o.weight",
            Place("decoder/layer_2/cross_attention/output/kernel", True, "decoder/layer_2")),
        ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            Place("decoder/position_bias/embedding")),
        ("lm_head.weight", Place("lm_head/kernel", True, optional=True)),
    ],
)  # fmt: skip
def test_places(name, place):
    assert SWITCH.find(name) == place


@pytest.mark.parametrize(
    "name",
    [
        "encoder.block.0.layer.2.mlp.wi.weight",
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.0.layer.1.EncDecAttention.q.weight",
        "encoder.block.0.layer.1.mlp.experts.expert_01.wi.weight",
        "encoder.block.0.layer.1.mlp.router.classifier.bias",
        "encoder.block.0.layer.1.mlp.wi_0.weight",
    ],
)
def test_other_names_have_no_place(name):
    assert SWITCH.find(name) is None
    assert SWITCH.reason_to_leave(name) is None


def test_a_bare_model_and_one_without_its_head(folder, tmp_path_factory, oracle):
    bare = write(oracle, tmp_path_factory.mktemp("bare"), "Model")
    assert load_model(bare).config.head is None
    assert load_model(folder, head=None).params.keys() == {"embeddings", "encoder", "decoder"}


def test_tied_copies_are_left_aside_if_they_are_equal(folder):
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    shared = load_file(folder / "model.safetensors")["shared.weight"]
    change(folder, {name: shared.copy() for name in copies})
    _, audit = load_with_audit(folder)
    assert audit.left_aside == dict.fromkeys(copies, "the same numbers as shared.weight")
    change(folder, {"lm_head.weight": shared + 1})
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from shared\.weight"):
        load_model(folder)


def test_contents_of_config_json_give_the_same_model(folder, oracle):
    def read(torch):
        again, info = transformers.SwitchTransformersForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True
        )
        # keys as JSON has them: as they are stored
        facts = json.loads(json.dumps(again.config.to_dict()))
        config = {key: value for key, value in facts.items() if key != "_name_or_path"}
        return {"config": config, **{key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys")}}

    before = load_model(folder)
    change(folder, **hf_config(before.config))
    again = oracle(read)
    assert not again["missing_keys"]
    assert not again["unexpected_keys"]
    assert switch_config(again["config"]) == switch_config(hf_config(before.config))


def test_problems_name_experts(folder):
    wo, router = "encoder.block.1.layer.1.mlp.experts.expert_3.wo.weight", "decoder.block.1.layer.2.mlp.router"
    extra = {"encoder.block.1.layer.1.mlp.experts.expert_11.wi.weight": np.zeros((12, 8), np.float32)}
    change(folder, {f"{router}.classifier.weight": np.zeros((8, 11), np.float32), **extra}, without=[wo])
    with pytest.raises(CheckpointError) as raised:
        load_model(folder)
    problems = str(raised.value)
    assert f"{wo} is missing, expected shape (8, 12)" in problems
    assert f"{router}.classifier.weight has shape (8, 11), expected (11, 8); it looks transposed" in problems
    assert "expert_11.wi.weight is unexpected" in problems


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_experts": 2**24}, "asks for at least 67108917 tensors, the weights have 102"),
        ({"num_layers": 2**24, "encoder_sparse_step": 0}, "asks for 16777219 layers"),
        ({"num_experts": 12}, "expert_11.wi.weight is missing"),
    ],
)
def test_absurd_numbers_are_refused_at_once(folder, changes, sentence):
    change(folder, **changes)
    with pytest.raises(CheckpointError, match=sentence):
        load_model(folder)
