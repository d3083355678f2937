"""The name table of GPT-2 in both directions, and which head a folder is loaded with."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from ntkfusion.checkpoints.load import load_model, load_with_audit
from ntkfusion.errors import CheckpointError
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.gpt2.names import GPT2
from ntkfusion.models.model import abstract_params
from ntkfusion.models.name_table import Place
from ntkfusion.utils.parameter_paths import path_of
from tests.helpers.oracle import described, draw, write_checkpoint

SIZES = {"vocab_size": 13, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 12, "n_positions": 7}
CLASSES = {
    "GPT2Model": None,
    "GPT2LMHeadModel": "causal-lm",
    "GPT2ForSequenceClassification": "sequence-classification",
    "GPT2ForTokenClassification": "token-classification",
    "GPT2ForQuestionAnswering": "question-answering",
}


def their_model(name, **options):
    """A model in PyTorch."""
    config = transformers.GPT2Config(**SIZES, bos_token_id=1, eos_token_id=1, **options)
    return getattr(transformers, name)(config)


@pytest.fixture
def write(tmp_path, oracle):
    """A folder as a PyTorch model is saved, but for its random weights, with changes to configuration and tensors."""

    def write(name, change=lambda config, tensors: None, **options):
        saved = oracle(lambda torch: described(their_model(name, **options)))
        config, tensors = saved["config"], draw(saved["shapes"])
        change(config, tensors)
        return write_checkpoint(tmp_path, config, tensors)

    return write


def renamed(tensors, rename):
    """Rename all tensors in place."""
    new = {rename(name): array for name, array in tensors.items()}
    tensors.clear()
    tensors.update(new)


@pytest.mark.parametrize(("name", "head"), CLASSES.items())
def test_round_trip_is_bit_identical(name, head, write, oracle):
    folder = write(name)
    model = load_model(folder)
    assert model.config.head == head
    named, stored = GPT2.named_tensors(model.params, head=head), load_file(folder / "model.safetensors")
    assert sorted(named) == oracle(lambda torch: sorted(key for key, _ in their_model(name).named_parameters()))
    for tensor, array in named.items():
        np.testing.assert_array_equal(array, stored[tensor], err_msg=tensor)


def test_names_and_paths_are_inverse():
    config = GPT2Config(vocab_size=13, hidden_size=8, n_layer=12, n_head=2, head="causal-lm", tie_word_embeddings=False)
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params(config))]
    assert "lm_head/kernel" in paths
    assert [GPT2.find(GPT2.tensor_of(path)).path for path in paths] == paths


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("h.11.attn.c_attn.weight", Place("layer_11/attention/qkv/kernel", layer="layer_11")),
        ("transformer.h.0.mlp.c_proj.weight", Place("layer_0/mlp/w2", layer="layer_0")),
        ("transformer.wpe.weight", Place("embeddings/position/embedding")),
        ("lm_head.weight", Place("lm_head/kernel", True, optional=True)),
        ("h.01.mlp.c_fc.bias", None),
        ("transformer.transformer.wte.weight", None),
        ("transformer.lm_head.weight", None),
        ("h.0.crossattention.c_attn.weight", None),
    ],
)
def test_places(name, place):
    assert GPT2.find(name) == place
    assert GPT2.reason_to_leave(name) is None


def test_buffers_of_old_files_are_left_aside(write):
    def add(config, tensors):
        tensors["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 7, 7), np.uint8))
        tensors["transformer.h.1.attn.masked_bias"] = np.array(-1e4, np.float32)

    _, audit = load_with_audit(write("GPT2LMHeadModel", add))
    assert set(audit.left_aside) == {"transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"}


def without_class(config, tensors):
    del config["architectures"]


def bare_names(config, tensors):
    renamed(tensors, lambda name: name.removeprefix("transformer."))


def with_output_layer(config, tensors):
    del config["architectures"]
    bare_names(config, tensors)
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()


@pytest.mark.parametrize(
    ("name", "change", "head"),
    [
        ("GPT2LMHeadModel", bare_names, "causal-lm"),  # the class says it, as in OpenAI's own files
        ("GPT2LMHeadModel", without_class, "causal-lm"),  # the prefix says it
        ("GPT2LMHeadModel", with_output_layer, "causal-lm"),  # a tensor says it
        ("GPT2DoubleHeadsModel", lambda config, tensors: None, "causal-lm"),
        ("GPT2Model", without_class, None),
        ("GPT2ForSequenceClassification", without_class, "sequence-classification"),
    ],
)
def test_which_head(name, change, head, write):
    assert load_model(write(name, change)).config.head == head


def test_heads_that_are_asked_for(write):
    folder = write("GPT2ForSequenceClassification", num_labels=3)
    assert load_model(folder).config.num_labels == 3
    assert load_model(folder, head=None).config.head is None
    assert load_model(folder, head="causal-lm").config.head == "causal-lm"  # tied: it needs nothing of its own
    with pytest.raises(CheckpointError, match="no tensors of the head 'question-answering'"):
        load_model(folder, head="question-answering")


def test_output_layers_that_are_not_tied(write):
    def untie(config, tensors):
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1

    folder = write("GPT2LMHeadModel", untie)
    with pytest.raises(
        CheckpointError, match=r"lm_head.weight differs from transformer.wte.weight, though config.json"
    ):
        load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    model = load_model(folder)
    np.testing.assert_array_equal(
        model.params["lm_head"]["kernel"].T, model.params["embeddings"]["word"]["embedding"] + 1
    )
    bare, audit = load_with_audit(folder, head=None)
    assert "lm_head" not in bare.params
    assert "lm_head.weight" in audit.left_aside


def test_transposed_and_missing_tensors(write):
    def spoil(config, tensors):
        tensors["transformer.h.1.mlp.c_fc.weight"] = np.ascontiguousarray(tensors["transformer.h.1.mlp.c_fc.weight"].T)
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.h.0.crossattention.c_attn.weight"] = np.ones(3, np.float32)

    with pytest.raises(CheckpointError) as caught:
        load_model(write("GPT2LMHeadModel", spoil))
    message = str(caught.value)
    assert "h.1.mlp.c_fc.weight has shape (12, 8), expected (8, 12); it looks transposed" in message
    assert "ln_f.bias is missing, expected shape (8,)" in message
    assert "h.0.crossattention.c_attn.weight is unexpected" in message
