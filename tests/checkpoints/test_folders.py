"""Folders of every writer (transformers 4 in PyTorch and Flax, 5, sentence-transformers) × architecture × head × ties.

Each loads to what its class of transformers 4 computes (`tests/stored/transformers4.py`), or is refused with the
reason, and what we write has the form of the writer it goes back to.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
from safetensors.numpy import load_file

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.errors import CheckpointError, InputError, NTKFusionError
from tests.helpers.folders import CASES, WRITERS, Case, flat_tree, inputs, outputs_of, packed, tensors_of, write_folder
from tests.helpers.oracle import STORED
from tests.helpers.saving import assert_same_tensors

FOLDERS = [(case, writer) for case in CASES for writer in WRITERS if writer != "flax4" or case.has_flax_class]
#: One of each kind in the default tier: untied heads are where the writers differ.
DEFAULT = {("bert-ForMaskedLM-untied", writer) for writer in WRITERS}


def ours(model, batch):
    """What is compared of our output."""
    return outputs_of(model.apply(model.params, **batch))


def assert_close(found, expected, mask=None):
    """Equal to 1e-6 of the largest number, or of 1; at padding nothing is said."""
    if mask is not None and found.shape[:2] == mask.shape:
        found, expected = found[mask == 1], expected[mask == 1]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * max(1, np.abs(expected).max())


def test_there_are_enough():
    assert len(FOLDERS) >= 150


@pytest.mark.parametrize(
    ("case", "writer"),
    [
        pytest.param(
            case, writer, id=f"{case.name}-{writer}", marks=() if (case.name, writer) in DEFAULT else pytest.mark.wide
        )
        for case, writer in FOLDERS
    ],
)
def test_folders_load_to_what_their_class_computes(case, writer, tmp_path):
    model = load_model(write_folder(tmp_path / "folder", case, writer))
    batch = inputs(case.config)
    with np.load(STORED / "transformers4.npz") as stored:
        assert_close(ours(model, batch), stored[case.name], batch["attention_mask"])


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=pytest.mark.wide) for case in CASES])
def test_ours_go_back_into_every_writers_form(case, tmp_path):
    check_exports(case, tmp_path)


def test_an_untied_head_goes_back_into_every_writers_form(tmp_path):
    check_exports(Case("bert", "ForMaskedLM", tied=False), tmp_path)


def check_exports(case, tmp_path):
    """From the form of PyTorch in transformers 4 to those of 5 and of Flax, and back from Flax."""
    model = load_model(write_folder(tmp_path / "folder", case, "torch4"))
    save_model(model, tmp_path / "hf")
    assert_same_tensors(load_file(tmp_path / "hf/model.safetensors"), tensors_of(case, "torch5"))
    if not case.has_flax_class:
        with pytest.raises(InputError, match=r"format='flax' cannot hold this model: .*format='hf'.* keep the model"):
            save_model(model, tmp_path / "flax", format="flax")
        return
    save_model(model, tmp_path / "flax", format="flax")
    written = flax.serialization.msgpack_restore((tmp_path / "flax/flax_model.msgpack").read_bytes())
    assert_same_tensors(flat_tree(written), flat_tree(tensors_of(case, "flax4")))
    save_model(load_model(tmp_path / "flax"), tmp_path / "again")
    assert_same_tensors(load_file(tmp_path / "again/model.safetensors"), tensors_of(case, "torch5"))


GENUINE = Path(os.environ.get("NTKFUSION_DATA_DIR", "")) / "flax_checkpoints"
#: What is refused of them → words of the reason.
REFUSED = {
    "albert_inner": "inner_group_num must be 1",
    "bert_mc": "the class BertForMultipleChoice is not modelled",
    "bert_nsp": "the class BertForNextSentencePrediction is not modelled",
    "bert_quick": "unknown activation 'quick_gelu'",
    "gpt2_cross": "add_cross_attention is not supported",
    "roberta_causal": "the class RobertaForCausalLM is not modelled",
    "roberta_mc": "the class RobertaForMultipleChoice is not modelled",
    **dict.fromkeys(("bart", "bigbird", "distil", "electra", "electra_seq", "gptj", "gptneo"), "is not supported"),
    **dict.fromkeys(("opt", "roformer", "rpln_seq", "t5"), "is not supported"),
}


@pytest.mark.wide
@pytest.mark.skipif(not GENUINE.is_dir(), reason="NTKFUSION_DATA_DIR has no flax_checkpoints")
@pytest.mark.parametrize("name", sorted(path.name for path in GENUINE.glob("*/")))
def test_genuine_flax_checkpoints(name):
    if name in REFUSED:
        with pytest.raises(NTKFusionError, match=REFUSED[name]):
            load_model(GENUINE / name)
        return
    model = load_model(GENUINE / name)
    with np.load(GENUINE / name / "expected.npz") as file:
        said = dict(file)
    batch = {key: said[key] for key in ("input_ids", "attention_mask")}
    if "start_logits" in said:
        expected = np.stack([said["start_logits"], said["end_logits"]], axis=-1)
    else:
        expected = next(said[key] for key in ("logits", "prediction_logits", "last_hidden_state") if key in said)
    assert_close(ours(model, batch), expected)


@pytest.mark.wide
@pytest.mark.skipif(not GENUINE.is_dir(), reason="NTKFUSION_DATA_DIR has no flax_checkpoints")
def test_a_causal_class_without_a_mask_is_read_as_what_it_computes_when_asked():
    model = load_model(GENUINE / "roberta_causal", head="masked-lm")
    with np.load(GENUINE / "roberta_causal/expected.npz") as said:
        batch = {key: said[key] for key in ("input_ids", "attention_mask")}
        assert_close(ours(model, batch), said["logits"])


@pytest.mark.parametrize("name", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx"])
def test_flax_weights_whose_class_ignores_the_configuration_are_refused(name, tmp_path):
    case = Case("gpt2", "LMHeadModel", options=((name, name.endswith("idx")),))
    with pytest.raises(CheckpointError, match=f"Flax class of these weights ignores {name}"):
        load_model(write_folder(tmp_path / "folder", case, "flax4"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activation_function": "gelu_fast"}, r"name gelu_fast \(gelu_new is the same function"),
        ({"activation_function": "gelu_python"}, r"name gelu_python \(gelu is the same function"),
        ({"scale_attn_weights": False}, "ignores scale_attn_weights, which is false here"),
        ({"scale_attn_by_inverse_layer_idx": True}, "ignores scale_attn_by_inverse_layer_idx, which is true here"),
    ],
)
def test_flax_exports_that_would_compute_something_else_are_refused(options, reason, tmp_path):
    model = load_model(
        write_folder(tmp_path / "folder", Case("gpt2", "LMHeadModel", options=(*options.items(),)), "torch5")
    )
    with pytest.raises(InputError, match=reason):
        save_model(model, tmp_path / "flax", format="flax")
    assert not (tmp_path / "flax").exists()


@pytest.mark.parametrize("ending", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"])
def test_heads_without_a_flax_class_are_refused(ending, tmp_path):
    model = load_model(write_folder(tmp_path / "folder", Case("gpt2", ending), "torch5"))
    with pytest.raises(InputError, match="transformers has no Flax class of a GPT-2 with a head for"):
        save_model(model, tmp_path / "flax", format="flax")


def test_a_trained_decoder_bias_is_the_one_that_every_reader_gets(tmp_path):
    """Transformers 5 trains the decoder's bias; Flax and transformers 4 read the head's."""
    case = Case("bert", "ForMaskedLM", tied=False)
    model = load_model(write_folder(tmp_path / "folder", case, "torch5"))
    head = model.params["lm_head"]
    head["decoder"]["bias"] = head["decoder"]["bias"] + 1
    for kind in ("hf", "flax"):
        again = load_model(save_model(model, tmp_path / kind, format=kind)).params["lm_head"]
        np.testing.assert_array_equal(again["bias"], head["decoder"]["bias"])
        np.testing.assert_array_equal(again["decoder"]["bias"], head["decoder"]["bias"])


def test_flax_weights_with_two_biases_that_differ_are_refused(tmp_path):

    case = Case("bert", "ForMaskedLM", tied=False)
    folder, tree = write_folder(tmp_path / "folder", case, "flax4"), tensors_of(case, "flax4")
    predictions = tree["cls"]["predictions"]
    predictions["decoder"]["bias"] = predictions["bias"] + 1
    (folder / "flax_model.msgpack").write_bytes(packed(tree))
    with pytest.raises(CheckpointError, match=r"decoder\.bias differs from cls\.predictions\.bias"):
        load_model(folder)


VENV = os.environ.get("NTKFUSION_TRANSFORMERS4", "")


@pytest.mark.slow
@pytest.mark.skipif(not VENV, reason="NTKFUSION_TRANSFORMERS4 names no Python of tests/stored/transformers4.py's venv")
def test_flax_classes_of_transformers_4_compute_what_we_export(tmp_path):
    """From PyTorch's form in transformers 5 to Flax, read by the real classes: exactly the stored outputs."""
    cases = {case.name: case for case in CASES if case.has_flax_class}
    for name, case in cases.items():
        model = load_model(write_folder(tmp_path / "theirs" / name, case, "torch5"))
        save_model(model, tmp_path / name, format="flax")
    words = [VENV, "-m", "tests.stored.transformers4", "read", *(str(tmp_path / name) for name in cases)]
    subprocess.run(words, check=True, cwd=STORED.parents[1], env=os.environ | {"JAX_PLATFORMS": "cpu"})
    with np.load(STORED / "transformers4.npz") as stored:
        for name in cases:
            with np.load(tmp_path / name / "flax_says.npz") as said:
                np.testing.assert_array_equal(said["output"], stored[name], err_msg=name)
