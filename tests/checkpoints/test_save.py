"""`save_model` to Hugging Face folders: bit by bit what was read, and what transformers computes from them."""

from __future__ import annotations

import dataclasses
import json

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import ntkfusion as nf
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import check_request, save_model
from ntkfusion.errors import CheckpointError, InputError, OutputExistsError
from ntkfusion.models.model import random_model
from ntkfusion.models.registry import ARCHITECTURES
from tests.helpers.oracle import digest, read_by
from tests.helpers.saving import (
    IDS,
    assert_same_model,
    assert_same_tensors,
    coded,
    every_kind,
    factorised,
    fused,
    outputs,
)


@pytest.fixture
def model(folder):
    return load_model(folder.write())


def check_theirs(oracle, folder, ours, cls="BertModel"):
    """PyTorch found nothing missing or unexpected in this folder, and it computes what we do.

    What it says may be stored: then this is the folder that it read, tensor by tensor, and config.json says the same.
    """

    def read(torch):
        output = read_by(getattr(transformers, cls), folder)(torch.tensor(IDS))
        part = output.last_hidden_state if cls == "BertModel" else output.logits
        return {"output": part.detach().numpy(), **contents(folder)}

    expected, written = oracle(read, rounding=1e-5), contents(folder)
    assert written["config"] == expected["config"]
    assert written["shapes"] == expected["shapes"]
    np.testing.assert_allclose(written["digests"], expected["digests"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(expected["output"], ours, atol=1e-5)


def contents(folder):
    """What transformers reads in a folder."""
    held = {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}
    config = json.loads((folder / "config.json").read_text())
    shapes = {name: [str(held[name].dtype), *held[name].shape] for name in sorted(held)}
    return {"config": config, "shapes": shapes, "digests": np.stack([digest(name, held[name]) for name in shapes])}


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, "mixed"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_what_was_read_is_written_bit_by_bit(folder, tmp_path, dtype, prefix):
    kinds = [np.float16, ml_dtypes.bfloat16, np.float32] if dtype == "mixed" else [dtype]
    folder.tensors = {
        prefix + name: array.astype(kinds[index % len(kinds)])
        for index, (name, array) in enumerate(folder.tensors.items())
    }
    if prefix:
        folder.tensors |= {"classifier.weight": np.ones((3, 8), kinds[0]), "classifier.bias": np.ones(3, kinds[0])}
    model = load_model(folder.write())
    save_model(model, tmp_path / "out")
    assert_same_tensors(weights(tmp_path / "out"), folder.tensors)
    again = load_model(tmp_path / "out")
    assert_same_model(again, model)
    assert again.origin.dtypes == model.origin.dtypes


def test_float64_in_memory_and_in_the_file(folder, tmp_path, x64):
    folder.tensors = {name: array.astype(np.float64) / 3 for name, array in folder.tensors.items()}
    save_model(load_model(folder.write(), dtype="float64"), tmp_path / "out")
    assert_same_tensors(weights(tmp_path / "out"), folder.tensors)


def test_keys_of_the_original_configuration_survive(folder, tmp_path):
    folder.config |= {"pad_token_id": 3, "task_specific_params": {"x": [1]}, "layer_norm_eps": 1e-5, "torch_dtype": "x"}
    save_model(load_model(folder.write()), tmp_path / "out")
    contents = json.loads((tmp_path / "out/config.json").read_text())
    assert "torch_dtype" not in contents
    assert (contents["architectures"], contents["dtype"]) == (["BertModel"], "float32")
    del folder.config["torch_dtype"]
    assert contents | folder.config == contents


def test_transformers_computes_the_same(model, tmp_path, oracle):
    save_model(model, tmp_path / "out")
    check_theirs(oracle, tmp_path / "out", outputs(model))


def test_constants_are_folded_and_the_width_is_written(model, tmp_path, oracle):
    small = model.replace_mlp_blocks({0: fused(), 1: fused(seed=20)})
    save_model(small, tmp_path / "out", notes={"method": "mlp-fusion", "blocks": {0: {"error": 0.25}}})
    assert json.loads((tmp_path / "out/config.json").read_text())["intermediate_size"] == 6
    check_theirs(oracle, tmp_path / "out", outputs(small))
    again = load_model(tmp_path / "out")
    assert not again.constants
    assert again.config.mlp_layouts == ()
    card = (tmp_path / "out/README.md").read_text()
    for words in ("method: mlp-fusion", "| block 0 | 0.25 |", str(model.source), "2 × 6", "BertModel"):
        assert words in card


def test_classification_head(folder, tmp_path, oracle):
    config = dataclasses.replace(load_model(folder.write()).config, num_labels=3, head="sequence-classification")
    model = random_model(config)
    save_model(model, tmp_path / "out")
    ours = model.apply(model.params, input_ids=IDS).logits
    check_theirs(oracle, tmp_path / "out", ours, "BertForSequenceClassification")
    assert_same_model(load_model(tmp_path / "out"), model)


def test_labels_keep_their_names(folder, tmp_path):
    folder.tensors |= {"classifier.weight": np.ones((3, 8), np.float32), "classifier.bias": np.ones(3, np.float32)}
    folder.config |= {"id2label": {"0": "no", "1": "yes", "2": "maybe"}}
    save_model(load_model(folder.write()), tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").id2label == {0: "no", 1: "yes", 2: "maybe"}


def test_shards(model, folder, tmp_path, oracle):
    save_model(model, tmp_path / "out", max_shard_size=2000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = {*index["weight_map"].values()}
    assert len(files) == 3
    assert not (tmp_path / "out/model.safetensors").exists()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in folder.tensors.values())
    for file in files:
        held = load_file(tmp_path / "out" / file)
        assert sum(array.nbytes for array in held.values()) <= 2000 or len(held) == 1
        assert_same_tensors(held, {name: folder.tensors[name] for name in held})
    assert_same_model(load_model(tmp_path / "out"), model)
    check_theirs(oracle, tmp_path / "out", outputs(model))


def test_blocks_of_different_widths(model, tmp_path, oracle):
    small = model.replace_mlp_blocks({0: fused(5)})
    with pytest.raises(
        InputError, match=r"different widths \(1 × 5, 1 × 12\).*pad=True.* to 12, which costs 119"
    ) as error:
        save_model(small, tmp_path / "out")
    assert "format='ntkfusion' keeps" in str(error.value)
    assert not (tmp_path / "out").exists()
    save_model(small, tmp_path / "out", pad=True)
    check_theirs(oracle, tmp_path / "out", outputs(small))


def test_factors_are_multiplied_out_when_asked(model, tmp_path, oracle):
    small = model.replace_mlp_blocks({0: factorised(), 1: coded()})
    stored = factorised().num_parameters + coded().num_parameters
    with pytest.raises(InputError, match="MLP blocks 0, 1 have coded or factorised weights") as error:
        save_model(small, tmp_path / "out")
    assert f"takes 424 numbers instead of {stored}" in str(error.value)
    save_model(small, tmp_path / "out", merge=True)
    check_theirs(oracle, tmp_path / "out", outputs(small))


def test_masks_are_applied_and_missing_biases_are_zero(model, tmp_path, oracle):
    small = model.replace_mlp_blocks({0: every_kind()["masked"], 1: fused(12).replace(b1=None, b2=None)})
    save_model(small, tmp_path / "out")
    check_theirs(oracle, tmp_path / "out", outputs(small))


@pytest.mark.parametrize("kind", ["gated", "mixture"])
def test_blocks_that_the_architecture_does_not_have(model, tmp_path, kind):
    block = every_kind()[kind]
    small = model.replace_mlp_blocks({0: block, 1: block})
    with pytest.raises(InputError, match=f"MLP block 0 is a {kind.title()}Block.*format='ntkfusion' keeps"):
        save_model(small, tmp_path / "out")


@pytest.mark.parametrize("number", [jnp.nan, jnp.inf])
def test_numbers_that_are_none(model, tmp_path, number):
    broken = model.replace_mlp_blocks({1: fused(12).replace(b1=jnp.zeros(12).at[3].set(number), r=None)})
    with pytest.raises(
        InputError, match=r"encoder.layer.1.intermediate.dense.bias holds NaN or infinite .*\(1 of 12\)"
    ):
        save_model(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_that_do_not_fit_the_dtype(model, tmp_path):
    large = model.replace_mlp_blocks({1: fused(12).replace(w2=jnp.full((12, 8), 1e6), q=None)})
    with pytest.raises(InputError, match=r"encoder.layer.1.output.dense.weight has numbers too large for F16"):
        save_model(large, tmp_path / "out", dtype="float16")


def test_numbers_that_all_become_zero_in_the_dtype(model, tmp_path, caplog):
    block = fused(12, constants=False)
    name = "encoder.layer.1.output.dense.weight"
    small = model.replace_mlp_blocks({1: block.replace(w2=1e-9 * block.w2)})
    with pytest.raises(InputError, match=rf"{name} holds numbers up to \d.*e-09, which are all 0 in F16, choose"):
        save_model(small, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    save_model(small, tmp_path / "wide", dtype="bfloat16")
    part = model.replace_mlp_blocks({1: block.replace(w2=block.w2.at[:3].multiply(1e-9))})
    save_model(part, tmp_path / "part", dtype="float16")
    assert f"become 0 in 1 tensors: 25 % of {name} (F16)" in caplog.text


def test_numbers_that_all_become_zero_when_they_are_read(folder):
    folder.tensors = {name: np.asarray(array, np.float64) for name, array in folder.tensors.items()}
    folder.tensors["encoder.layer.1.output.dense.weight"] *= 1e-60
    with pytest.raises(CheckpointError, match=r"output.dense.weight holds numbers up to .*e-60, which are all 0 in fl"):
        load_model(folder.write())


@pytest.mark.parametrize(("name", "stored"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_dtype_that_is_asked_for(model, folder, tmp_path, name, stored, oracle):
    save_model(model, tmp_path / "out", dtype=name)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == name
    with safe_open(tmp_path / "out/model.safetensors", framework="numpy") as opened:
        assert {opened.get_slice(key).get_dtype() for key in folder.tensors} == {stored}
    read = oracle(lambda torch: str(transformers.BertModel.from_pretrained(tmp_path / "out").dtype))
    assert read == f"torch.{name}"


@pytest.mark.parametrize("options", [{"format": "onnx"}, {"dtype": "int8"}, {"max_shard_size": 0}])
def test_options_that_do_not_exist(tmp_path, options):
    with pytest.raises(InputError, match=f"{next(iter(options))} must be"):
        check_request(tmp_path / "out", **options)


def test_folders_are_not_overwritten_unasked(model, tmp_path):
    save_model(model, tmp_path / "out")
    with pytest.raises(OutputExistsError):
        save_model(model, tmp_path / "out")
    save_model(model, tmp_path / "out", overwrite=True, dtype="float16")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        save_model(model, tmp_path / "file")


def test_every_class_exists():
    for architecture in ARCHITECTURES.values():
        start, endings = architecture.class_prefix, architecture.class_endings
        assert all(hasattr(transformers, start + ending) for ending in endings.values())


@pytest.mark.slow
@pytest.mark.oracle
def test_fused_minilm(minilm, tmp_path):
    torch = pytest.importorskip("torch")
    small, reports = nf.compress(minilm, nf.MLPFusion(keep_ratio=0.25, num_restarts=1), seed=0)
    save_model(small, tmp_path / "small", notes={"blocks": reports})
    save_model(minilm, tmp_path / "large")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("large", "small")]
    saved = sum(report.original_parameters - report.parameters for report in reports.values())
    assert sizes[0] - sizes[1] == pytest.approx(4 * saved, rel=1e-3)
    tokens = minilm.tokenizer(["A fused model.", "It computes the same in PyTorch."], padding=True, return_tensors="np")
    oracle, info = transformers.AutoModel.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(info.values())
    found = oracle.eval()(**{name: torch.tensor(ids) for name, ids in tokens.items()}).last_hidden_state.detach()
    ours = small.apply(small.params, **tokens).last_hidden_state
    there = tokens["attention_mask"] == 1
    np.testing.assert_allclose(found.numpy()[there], np.asarray(ours)[there], atol=1e-5)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "small")
    assert again("A fused model.")["input_ids"] == minilm.tokenizer("A fused model.")["input_ids"]


def test_changes_are_noticed(model, tmp_path):
    save_model(model, tmp_path / "out")
    weights, config = tmp_path / "out/model.safetensors", tmp_path / "out/config.json"
    whole, contents = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"is not what ntkfusion wrote \(its digest differs\)"):
        load_model(tmp_path / "out")
    weights.write_bytes(whole)
    config.write_text(contents.replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 0.1'))
    with pytest.raises(CheckpointError, match="layer_norm_eps was 1e-12 and is now"):
        load_model(tmp_path / "out")
    config.write_text(contents.replace('"hidden_dropout_prob": 0.1', '"hidden_dropout_prob": 0.2'))
    assert load_model(tmp_path / "out").config.hidden_dropout_prob == 0.2


def test_what_others_save_again_is_foreign(model, tmp_path):
    save_model(model, tmp_path / "out")
    changed = weights(tmp_path / "out")
    changed["pooler.dense.bias"] += 1
    save_file(changed, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    trained = load_model(tmp_path / "out")
    np.testing.assert_allclose(trained.params["pooler"]["bias"], model.params["pooler"]["bias"] + 1, rtol=1e-6)


@pytest.mark.oracle
def test_what_transformers_saves_again_is_foreign(model, tmp_path):
    torch = pytest.importorskip("torch")
    save_model(model, tmp_path / "out")
    oracle = transformers.BertModel.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        oracle.pooler.dense.bias += 1
    oracle.save_pretrained(tmp_path / "trained")
    trained = load_model(tmp_path / "trained")
    np.testing.assert_allclose(trained.params["pooler"]["bias"], model.params["pooler"]["bias"] + 1, rtol=1e-6)
