"""Compressing a whole model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.compression.matrices.codecs import LowRank
from ntkfusion.compression.registry import build_method
from ntkfusion.data.text import sample_sentences
from ntkfusion.errors import InputError
from tests.helpers.as_users import as_users

TINY = nf.BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16)
IDS = jnp.array([[1, 5, 9, 2]])


@pytest.mark.wide
def test_only_the_chosen_layers_change():
    model = nf.random_model(TINY)
    small, reports = nf.compress(model, nf.MLPFusion(keep_ratio=0.5), layers=[2, 0])
    assert [block.hidden_width for block in small.mlp_blocks()] == [8, 16, 8]
    assert list(reports) == [0, 2]
    assert small.params["layer_1"] is model.params["layer_1"]
    assert [block.hidden_width for block in model.mlp_blocks()] == [16, 16, 16]
    assert small.num_parameters == model.num_parameters - 2 * 8 * 17


@pytest.mark.wide
@pytest.mark.parametrize("method", [nf.MLPFusion(0.5, variant="v4"), nf.SVD(0.9), nf.compression.RandomNeurons(0.5)])
def test_the_compressed_network_runs_with_its_blocks(method):
    model = nf.random_model(TINY)
    small, _ = nf.compress(model, method)
    out = jax.jit(small.apply)(small.params, input_ids=IDS).last_hidden_state
    assert bool(jnp.all(jnp.isfinite(out)))
    assert float(jnp.max(jnp.abs(out - model.apply(model.params, input_ids=IDS).last_hidden_state))) > 1e-4


def test_full_width_is_the_same_network():
    model = nf.random_model(TINY)
    for variant in ("v1", "v2", "v4"):
        same, _ = nf.compress(model, nf.MLPFusion(1.0, variant=variant))
        np.testing.assert_allclose(
            same.apply(same.params, input_ids=IDS).last_hidden_state,
            model.apply(model.params, input_ids=IDS).last_hidden_state,
            atol=1e-6,
        )


def test_constants_get_no_gradient_and_stay_out_of_the_parameters():
    small, _ = nf.compress(nf.random_model(TINY), nf.MLPFusion(0.5, variant="v4"))
    assert small.params["layer_0"]["mlp"].keys() == {"w1", "b1", "w2", "b2"}
    assert small.constants["layer_0"]["mlp"].keys() == {"q", "r"}


@pytest.mark.wide
def test_a_compressed_model_can_be_compressed_again():
    once, _ = nf.compress(nf.random_model(TINY), nf.MLPFusion(0.5))
    twice, _ = nf.compress(once, nf.MLPFusion(0.5))
    assert [block.hidden_width for block in twice.mlp_blocks()] == [4, 4, 4]


def test_calibration_inputs_reach_the_method(minilm):
    class Probe(nf.compression.LayerwiseMethod):
        def compress_block(self, block, index, workspace):
            seen.append(workspace.inputs(index).shape)
            return block, {}

    seen = []
    nf.compress(minilm, Probe(), layers=[1, 4], calibration=sample_sentences()[:4], max_tokens=10)
    assert seen == [(10, 384), (10, 384)]
    with pytest.raises(InputError, match="pass calibration texts"):
        nf.compress(minilm, Probe(), layers=[1])


@pytest.mark.parametrize(
    ("layers", "message"),
    [([3], "layer 3 does not exist; this model has layers 0 to 2"), ([], "at least one"), ([1, 1], "each once")],
)
def test_bad_layers(layers, message):
    with pytest.raises(InputError, match=message):
        check_layers(layers, 3)


def test_a_method_that_does_not_apply_is_refused_before_the_text_is_read():
    with pytest.raises(InputError, match="choose a larger width"):
        nf.compress(nf.random_model(TINY), nf.SVD(0.01), calibration=["no tokenizer will ever read this"])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0.0], r"got 0.0 \(float\) in it"),
        (["0"], r"got '0' \(str\) in it"),
        ([True], r"got True \(bool\) in it"),
        ([None], r"got None \(NoneType\) in it"),
        (0, r"layers must be a list of whole numbers such as \[0, 3\]; got 0 \(int\)"),
        ("0", r"got '0' \(str\)"),
        (np.array([[0]]), r"\(ndarray\) in it"),
    ],
)
def test_what_is_no_list_of_layers_is_refused_by_name(layers, message):
    with as_users(), pytest.raises(InputError, match=message):
        check_layers(layers, 3)


@pytest.mark.parametrize("layers", [np.array([2, 0]), range(0, 3, 2), {2, 0}, (jnp.int32(2), np.int64(0))])
def test_layers_may_come_in_anything(layers):
    with as_users():
        found = check_layers(layers, 3)
    assert found == (0, 2)
    assert {type(layer) for layer in found} == {int}


@pytest.mark.parametrize("number", ["0", 0.0, None, True])
def test_blocks_are_exchanged_by_whole_numbers(number):
    model = nf.random_model(TINY)
    with as_users(), pytest.raises(InputError, match="blocks are given by the number of their layer, got"):
        model.replace_mlp_blocks({number: model.mlp_blocks()[0]})


@pytest.mark.parametrize("width", ["0.5", None, True, [0.5], float("nan"), 0, 2])
@pytest.mark.parametrize("make", [nf.MLPFusion, nf.SVD, lambda width: build_method("svd+refit", width), LowRank])
def test_what_is_no_width_is_refused_by_name(make, width):
    with as_users(), pytest.raises(InputError, match="above 0 and at most 1; got ") as caught:
        make(width)
    assert repr(width) in str(caught.value)


def test_a_method_is_given_by_its_name():
    with as_users(), pytest.raises(InputError, match="a method is given by its name"):
        build_method(None, 0.5)
