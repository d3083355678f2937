"""GPT-2: a real model's recorded activations, dropout, generation, and what its configuration refuses."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from safetensors.numpy import save_file

import ntkfusion as nf
from ntkfusion.checkpoints.load import load_model
from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.gpt2.config import gpt2_hf_config as hf_config
from ntkfusion.models.gpt2.network import GPT2Attention, GPT2Layer
from ntkfusion.models.model import Model, abstract_params
from ntkfusion.models.registry import read_config

PAD = 0
TINY = {
    "vocab_size": 61,
    "n_embd": 24,
    "n_layer": 1,
    "n_head": 3,
    "n_positions": 19,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": PAD,
}


def test_classifier_reads_the_last_token_that_is_none_by_mask_or_id():
    config = read_config({"model_type": "gpt2", **TINY})
    model = fresh(dataclasses.replace(config, head="sequence-classification", num_labels=2), 0.3)
    ids = np.array([[5, 6, 7, PAD, PAD], [5, 6, 7, 8, 9], [5, 6, 7, PAD, PAD], [5, 6, 8, PAD, PAD]])
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    logits = jax.jit(model.apply)(model.params, input_ids=ids, attention_mask=mask).logits
    np.testing.assert_allclose(logits[1:3], np.broadcast_to(logits[0], (2, 2)), rtol=1e-4)
    assert np.abs(logits[3] - logits[0]).max() > 1e-2


def fresh(config, scale=1.0):
    """A model with random parameters everywhere."""
    rng = np.random.default_rng(6)
    draw = lambda leaf: jnp.asarray((scale * rng.normal(size=leaf.shape)).astype(leaf.dtype))  # noqa: E731
    return Model(config, jax.tree.map(draw, abstract_params(config)))


def test_dropout_is_explicit():
    config = GPT2Config(vocab_size=9, hidden_size=8, n_layer=1, n_head=2, n_positions=5, head="causal-lm")
    model, ids = fresh(config), np.array([[3, 1, 4, 1]])
    apply, key = jax.jit(model.apply), jax.random.key(0)
    plain = apply(model.params, input_ids=ids).logits
    dropped, again = (apply(model.params, input_ids=ids, dropout_key=key).logits for _ in range(2))
    np.testing.assert_array_equal(dropped, again)
    assert np.abs(dropped - plain).max() > 1e-3


# a real model


def write_nano_sort(source, folder):
    """The weights that minGPT trained to sort six letters, as a Hugging Face folder."""
    stored = np.load(source / "model.npz")
    linear = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    tensors = {name: np.ascontiguousarray(stored[name].T if name.endswith(linear) else stored[name]) for name in stored}
    sizes = json.loads((source / "config.json").read_text())
    config = {name: sizes[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    config |= {"model_type": "gpt2", "n_positions": sizes["block_size"], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def nano_sort(data_dir, tmp_path_factory):
    """The real sorting model."""
    return load_model(write_nano_sort(data_dir / "gpt_nano_sort", tmp_path_factory.mktemp("nano")))


def test_nano_sort_reproduces_its_recorded_activations(nano_sort, data_dir):
    recorded = np.load(data_dir / "gpt_nano_sort" / "partials.npz")
    ids = recorded["idx"].astype(np.int32)
    batch = Batch(attention_mask=jnp.ones_like(ids), input_ids=jnp.asarray(ids))
    kept = lambda module, _: isinstance(module, GPT2Layer | GPT2Attention)  # noqa: E731
    output, state = nano_sort._run(nano_sort.params, batch, capture_intermediates=kept, mutable=["intermediates"])
    seen = state["intermediates"]
    block, first = nano_sort.mlp_blocks()[0], seen["layer_0"]
    inputs = nano_sort.block_inputs(batch.input_ids, batch.attention_mask)[0]
    ours = {
        "yProj": first["attention"]["__call__"][0],
        "ln2": inputs,
        "fc": block.preactivation(inputs),
        "gelu": block.hidden(inputs),
        "mlp": block(inputs),
        **{f"block{index}": seen[f"layer_{index}"]["__call__"][0] for index in range(3)},
        "ln_f": output.last_hidden_state,
        "lm_head": output.logits,
    }
    errors = {name: float(np.abs(np.asarray(array) - recorded[name]).max()) for name, array in ours.items()}
    print(f"\nnano sort: {errors}")
    scale = {name: max(1.0, float(np.abs(recorded[name]).max())) for name in errors}
    assert all(error <= 1e-5 * scale[name] for name, error in errors.items()), errors


def test_nano_sort_sorts_everything(nano_sort):
    letters = np.stack(np.meshgrid(*[np.arange(3)] * 6, indexing="ij"), -1).reshape(-1, 6)
    assert letters.shape == (729, 6)
    found = np.asarray(nf.generate(nano_sort, letters, max_new_tokens=6))
    np.testing.assert_array_equal(found[:, :6], letters)
    assert np.all(found[:, 6:] == np.sort(letters, axis=1), axis=1).sum() == 729


# compressed models


def test_generating_with_blocks_of_different_widths():
    config = GPT2Config(vocab_size=9, hidden_size=8, n_layer=2, n_head=2, n_positions=5, n_inner=6, head="causal-lm")
    model, ids = fresh(config), np.array([[3, 1, 4, 1]])
    block = model.mlp_blocks()[1]
    half = block.replace(w1=block.w1[:, :3], b1=block.b1[:3], w2=block.w2[:3], q=jnp.full(3, 2.0))
    small = model.replace_mlp_blocks({1: half})
    assert [block.hidden_width for block in small.mlp_blocks()] == [6, 3]
    generated = np.asarray(nf.generate(small, ids, max_new_tokens=2))
    logits = jax.jit(small.apply)(small.params, input_ids=generated[:, :5]).logits
    np.testing.assert_array_equal(generated[0, 4:], np.argmax(logits[0, 3:], axis=-1))


# configurations


def test_defaults_are_hugging_faces():
    theirs, ours = transformers.GPT2Config(), GPT2Config()
    own = {"head", "num_labels", "mlp_layouts", "classifier_dropout"}
    for field in dataclasses.fields(ours):
        if field.name not in own:
            assert getattr(ours, field.name) == getattr(theirs, field.name), field.name


def test_configuration_there_and_back():
    changes = {"n_inner": 5, "activation_function": "relu", "scale_attn_weights": False, "tie_word_embeddings": False}
    config = read_config({"model_type": "gpt2", **TINY, **changes})
    assert (config.n_inner, config.pad_token_id, config.hidden_size) == (5, 0, 24)
    assert read_config(hf_config(config)) == config
    theirs = transformers.GPT2Config(**hf_config(config))
    assert (theirs.hidden_size, theirs.n_inner, theirs.tie_word_embeddings) == (24, 5, False)
    assert hf_config(dataclasses.replace(config, num_labels=4))["num_labels"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_cross_attention": True}, "add_cross_attention is not supported"),
        ({"n_embd": 25}, "n_embd 25 is not a multiple of n_head 3"),
        ({"n_embd": 0}, "n_embd must be a whole number"),
        ({"n_inner": -1}, "n_inner must be a whole number"),
        ({"pad_token_id": "0"}, "pad_token_id must be a token id or null"),
        ({"activation_function": "swiglu"}, "unknown activation 'swiglu'"),
        ({"resid_pdrop": "no"}, "resid_pdrop must be a small non-negative number"),
    ],
)
def test_configurations_that_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        read_config({"model_type": "gpt2", **TINY, **changes})


@pytest.mark.parametrize("name", ["vocab_size", "n_embd", "n_layer", "n_head"])
def test_missing_key(name):
    with pytest.raises(InputError, match=f"missing {name}"):
        read_config({"model_type": "gpt2", **{key: value for key, value in TINY.items() if key != name}})


def test_inputs_that_are_too_long():
    model = Model(GPT2Config(n_positions=5), {})
    with pytest.raises(InputError, match="6 tokens long; this model has 5 positions"):
        model.apply(model.params, input_ids=np.zeros((1, 6), np.int32))
