"""Folders that are not simply a model: adapters, older layouts, folders of folders, too little configuration."""

from __future__ import annotations

import json
import shutil

import pytest

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.errors import CheckpointError
from tests.helpers.saving import assert_same_model


def refusal(folder, **options):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, **options)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


def add_adapter(path):
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"}))
    (path / "adapter_model.safetensors").write_bytes(b"never opened")


def test_adapter_beside_base_weights_is_not_ignored_silently(folder):
    expected = load_model(folder.write())
    add_adapter(folder.path)
    problem = refusal(folder.path)
    assert "adapter_config.json, adapter_model.safetensors" in problem
    assert "beside the base weights, which would not be applied" in problem
    assert "merge_and_unload()" in problem
    assert "--ignore-adapter" in problem
    assert_same_model(load_model(folder.path, ignore_adapter=True), expected)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_one_file_of_an_adapter_is_enough(folder, name):
    folder.write()
    (folder.path / name).write_bytes(b"{}")
    assert f"it holds an adapter ({name})" in refusal(folder.path)


def test_adapters_are_not_written_beside_other_weights(folder, tmp_path):
    add_adapter(folder.write())
    save_model(load_model(folder.path, ignore_adapter=True), tmp_path / "out")
    assert not [*(tmp_path / "out").glob("adapter*")]
    assert "belongs to an adapter, which was ignored" in (tmp_path / "out" / "README.md").read_text()
    load_model(tmp_path / "out")


def test_adapter_beside_our_own_format(folder, tmp_path):
    save_model(load_model(folder.write()), tmp_path / "out", format="ntkfusion")
    add_adapter(tmp_path / "out")
    assert "--ignore-adapter" in refusal(tmp_path / "out")


@pytest.mark.parametrize("with_config", [False, True])
def test_adapter_without_a_model(folder, with_config):
    folder.write()
    add_adapter(folder.path)
    folder.weights.unlink()
    if not with_config:
        (folder.path / "config.json").unlink()
    problem = refusal(folder.path)
    assert problem.startswith("it holds an adapter only (adapter_config.json, adapter_model.safetensors), no model")
    assert "its base is 'org/base'" in problem
    assert "merge_and_unload()" in problem


def test_older_layout_of_sentence_transformers(folder, tmp_path):
    outer = tmp_path / "old"
    outer.mkdir()
    shutil.move(folder.write(), outer / "0_Transformer")
    entries = [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in entries]
    (outer / "modules.json").write_text(json.dumps(modules))
    problem = refusal(outer)
    assert "sentence-transformers' older layout" in problem
    assert f"give {outer / '0_Transformer'}, and put what comes out in its place" in problem
    assert "beside 1_Pooling, modules.json" in problem
    load_model(outer / "0_Transformer")


@pytest.mark.parametrize("place", ["checkpoint-500", "seed-0/model"])
def test_models_inside_a_folder_are_named(folder, tmp_path, place):
    outer = tmp_path / "runs"
    (outer / place).parent.mkdir(parents=True)
    shutil.move(folder.write(), outer / place)
    problem = refusal(outer)
    assert problem.startswith("it has no config.json")
    assert f"give {outer / place}" in problem


@pytest.mark.parametrize(
    ("architectures", "sentence"),
    [
        (["BertForMaskedLM"], 'it says that it is a BertForMaskedLM: add "model_type": "bert"'),
        (["XLMRobertaModel"], 'add "model_type": "xlm-roberta"'),
        (["Llama"], "add the one that fits the weights: bert, roberta"),
        ("BertModel", "add the one that fits the weights"),
        (None, "add the one that fits the weights"),
    ],
)
def test_configuration_without_model_type_says_what_to_add(folder, architectures, sentence):
    del folder.config["model_type"]
    folder.config["architectures"] = architectures
    problem = refusal(folder.write())
    assert problem.startswith("config.json: it has no model_type; ")
    assert sentence in problem
