"""Checkpoints whose names say that something was wrapped around the network, and files that name another class."""

from __future__ import annotations

import logging

import flax.serialization
import numpy as np
import pytest
from safetensors.numpy import save_file

from ntkfusion.checkpoints.load import load_model, load_with_audit
from ntkfusion.errors import CheckpointError
from tests.checkpoints.formats.test_msgpack import flax_names
from tests.helpers.folders import Case, tensors_of, write_folder
from tests.helpers.saving import assert_same_model


@pytest.mark.parametrize(
    ("prefix", "cause"),
    [
        ("module.", "torch.nn.DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("0.auto_model.", "sentence-transformers"),
        ("base_model.model.", "PEFT"),
        ("module._orig_mod.bert.", "torch.nn.DataParallel and torch.compile"),
        ("model.", "a part of"),
        ("student.", "a part of"),
        ("my.net.", "a part of"),
    ],
)
def test_prefixes_that_all_names_have_are_stripped_and_said(folder, prefix, cause, caplog):
    expected = load_model(folder.write())
    folder.tensors = {prefix + name: array for name, array in folder.tensors.items()}
    with caplog.at_level(logging.WARNING):
        model, audit = load_with_audit(folder.write())
    assert_same_model(model, expected)
    assert cause in audit.notes[0]
    assert audit.notes[0] in caplog.text


def problem_of(folder):
    with pytest.raises(CheckpointError) as caught:
        load_model(folder.write())
    (problem,) = caught.value.problems
    return problem


def test_prefixes_of_some_names_are_one_sentence(folder):
    folder.tensors = {f"module.{name}": array for name, array in folder.tensors.items()}
    folder.tensors["criterion.weight"] = np.ones(3, np.float32)
    problem = problem_of(folder)
    assert "begin with module. (from torch.nn.DataParallel)" in problem
    assert "(criterion.weight)" in problem


def test_the_dense_module_of_sentence_transformers_is_not_dropped(folder):
    folder.tensors = {f"0.auto_model.{name}": array for name, array in folder.tensors.items()}
    folder.tensors["2.linear.weight"] = np.ones((3, 8), np.float32)
    assert "those of 1 others do not (2.linear.weight)" in problem_of(folder)


def test_an_adapter_inside_the_weights_is_one_sentence(folder):
    folder.tensors = {f"base_model.model.{name}": array for name, array in folder.tensors.items()}
    folder.tensors["base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"] = np.ones((2, 8), np.float32)
    assert "merge it first (merge_and_unload() of PEFT)" in problem_of(folder)


def flax_folder(folder, wrap):
    expected = load_model(folder.write())
    folder.weights.unlink()
    tree = wrap(flax_names(folder.tensors))
    (folder.path / "flax_model.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
    return expected


@pytest.mark.parametrize(
    ("wrap", "note"),
    [
        (lambda tree: {"params": {"params": tree}}, "begin with params."),
        (lambda tree: {"params": tree, "step": 7, "opt_state": {"0": {}, "1": {"rate": 0.5, "name": "x"}}}, "step"),
        (lambda tree: {"target": tree, "state": {"step": -3}}, "a training state"),
        (lambda tree: {**tree, "step": 7}, "step"),
        (lambda tree: {"params": copies(tree)}, "3 times along a leading axis"),
    ],
)
def test_what_people_store_around_flax_parameters(folder, wrap, note):
    expected = flax_folder(folder, wrap)
    model, audit = load_with_audit(folder.path)
    assert_same_model(model, expected)
    assert note in audit.notes[0]


def copies(tree):
    return {key: copies(value) if isinstance(value, dict) else np.stack([value] * 3) for key, value in tree.items()}


def test_copies_that_differ_are_refused(folder):
    def wrap(tree):
        several = copies(tree)
        several["pooler"]["dense"]["bias"][2] += 1
        return several

    flax_folder(folder, wrap)
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.bias is there 3 times.*the copies differ"):
        load_model(folder.path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("BertForMultipleChoice", (1, 8)), ("BertForNextSentencePrediction", None), ("MyPooledClassifier", (3, 8))],
)
def test_a_class_that_is_not_modelled_is_not_loaded_as_another(folder, name, shape):
    expected = load_model(folder.write())
    folder.config["architectures"] = [name]
    if shape:
        folder.tensors |= {"classifier.weight": np.ones(shape, np.float32), "classifier.bias": np.ones(shape[0], "f4")}
    problem = problem_of(folder)
    assert f"the class {name} is not modelled" in problem
    assert "head=None loads the network without its head" in problem
    assert_same_model(load_model(folder.path, head=None), expected)


def test_a_class_whose_head_is_missing_is_not_loaded_as_another(folder):
    folder.config["architectures"] = ["BertForQuestionAnswering"]
    folder.tensors |= {"classifier.weight": np.ones((2, 8), np.float32), "classifier.bias": np.ones(2, np.float32)}
    assert "no tensors of its head 'question-answering'" in problem_of(folder)


@pytest.mark.parametrize("name", ["BertModel", "FlaxBertModel", "TFBertModel"])
def test_a_class_without_a_head_has_none_whatever_else_is_there(folder, name):
    folder.config["architectures"] = [name]
    folder.tensors |= {"classifier.weight": np.ones((2, 8), np.float32), "classifier.bias": np.ones(2, np.float32)}
    model, audit = load_with_audit(folder.write())
    assert model.config.head is None
    assert {*audit.left_aside} == {"classifier.weight", "classifier.bias"}


def test_tied_tensors_stand_in_for_each_other(tmp_path):
    """Writers keep one name of two tied tensors, and not all the same one."""
    for case, kept, dropped in (
        (Case("roberta", "ForMaskedLM"), "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        (Case("roberta", "ForMaskedLM"), "lm_head.decoder.bias", "lm_head.bias"),
        (Case("roberta", "ForMaskedLM", tied=False), "lm_head.decoder.bias", "lm_head.bias"),
        (Case("gpt2", "LMHeadModel"), "lm_head.weight", "transformer.wte.weight"),
    ):
        folder = write_folder(tmp_path / "folder", case, "torch4")
        expected = load_model(folder)
        tensors = tensors_of(case, "torch4")
        tensors[kept] = tensors.pop(dropped)
        save_file(tensors, folder / "model.safetensors")
        model, audit = load_with_audit(folder)
        assert_same_model(model, expected)
        assert not audit.left_aside


def test_an_untied_decoder_needs_a_matrix_of_its_own(tmp_path):
    case = Case("bert", "ForMaskedLM", tied=False)
    folder, tensors = write_folder(tmp_path / "folder", case, "torch4"), tensors_of(case, "torch4")
    del tensors["cls.predictions.decoder.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cls\.predictions\.decoder\.weight is missing"):
        load_model(folder)
