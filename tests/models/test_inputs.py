"""What is no input of a network is refused by name, with what came and what was expected."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.models.inputs import checked_inputs
from tests.helpers.as_users import as_users

TINY = nf.BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
IDS = np.array([[1, 5, 3, 2], [4, 4, 7, 0]])


BAD = {
    "one sequence without its axis": (
        {"input_ids": IDS[0]},
        r"shape \(4,\); one sequence alone is input_ids\[None\]",
    ),
    "three axes": ({"input_ids": IDS[None]}, r"got shape \(1, 2, 4\)"),
    "a number": ({"input_ids": 3}, r"got shape \(\)"),
    "floats": ({"input_ids": IDS.astype(np.float32)}, r"got float32: input_ids.astype\(int\)"),
    "booleans": ({"input_ids": IDS > 0}, "got bool"),
    "no sequences": ({"input_ids": np.zeros((0, 4), int)}, r"at least one of each; got shape \(0, 4\)"),
    "no tokens": ({"input_ids": np.zeros((2, 0), int)}, r"at least one of each; got shape \(2, 0\)"),
    "ragged": ({"input_ids": [[1, 2], [3]]}, "no such array .* pad texts to one length, as `nf.text_batch` does"),
    "words": ({"input_ids": [["one", "two"]]}, "no such array"),
    "nothing": ({}, "give exactly one of input_ids and inputs_embeds"),
    "a short mask": (
        {"input_ids": IDS, "attention_mask": np.ones((2, 3), int)},
        r"attention_mask has shape \(2, 3\), but input_ids asks for \(2, 4\)",
    ),
    "a mask for one": ({"input_ids": IDS, "attention_mask": np.ones((1, 4), int)}, r"asks for \(2, 4\)"),
    "a mask of one axis": ({"input_ids": IDS, "attention_mask": np.ones(4, int)}, r"attention_mask must be 1 for"),
    "a mask of floats": ({"input_ids": IDS, "attention_mask": np.ones((2, 4))}, "attention_mask .* got float"),
    "short segments": ({"input_ids": IDS, "token_type_ids": IDS[:, :2]}, r"token_type_ids has shape \(2, 2\)"),
    "short positions": ({"input_ids": IDS, "position_ids": IDS[:, :2]}, r"asks for \(1, 4\) or \(2, 4\)"),
    "embeddings of whole numbers": ({"inputs_embeds": np.ones((2, 4, 8), int)}, "inputs_embeds must be .* got int"),
    "embeddings without axis": ({"inputs_embeds": np.ones((4, 8))}, r"one sequence alone is inputs_embeds\[None\]"),
    "another batch for the decoder": (
        {"input_ids": IDS, "decoder_input_ids": IDS[:1]},
        r"decoder_input_ids has shape \(1, 4\), but input_ids asks for \(2, 4\)",
    ),
    "a mask of another decoder": (
        {"input_ids": IDS, "decoder_input_ids": IDS[:, :2], "decoder_attention_mask": IDS},
        r"decoder_attention_mask has shape \(2, 4\), but decoder_input_ids asks for \(2, 2\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_no_network_reads_is_refused_by_name(case):
    given, message = BAD[case]
    with as_users(), pytest.raises(InputError, match=message):
        checked_inputs(given, TINY)


@pytest.mark.parametrize("case", ["one sequence without its axis", "floats", "no tokens", "ragged", "a short mask"])
def test_apply_refuses_it_before_it_runs(case):
    given, message = BAD[case]
    model = nf.Model(TINY, {})
    for call in (model.apply, model.hidden_states):
        with as_users(), pytest.raises(InputError, match=message):
            call({}, **given)


def test_block_inputs_refuse_it_before_they_run():
    with as_users(), pytest.raises(InputError, match="attention_mask has shape"):
        nf.Model(TINY, {}).block_inputs(IDS, IDS[:, :2])


@pytest.mark.parametrize("mask", [IDS > 0, (IDS > 0).tolist(), (IDS > 0).astype(np.uint8), None])
def test_masks_of_any_whole_kind_are_read(mask):
    found = checked_inputs({"input_ids": IDS.tolist(), "attention_mask": mask}, TINY)
    assert found["input_ids"].dtype == jnp.int32
    assert (mask is None) == ("attention_mask" not in found)
    if mask is not None:
        assert found["attention_mask"].tolist() == (IDS > 0).astype(int).tolist()


def test_one_row_of_positions_serves_all():
    found = checked_inputs({"input_ids": IDS, "position_ids": np.arange(4)[None]}, TINY)
    assert found["position_ids"].tolist() == [[0, 1, 2, 3]] * 2


def test_traced_arrays_are_checked_by_their_shapes():
    def shapes(ids):
        return checked_inputs({"input_ids": ids}, TINY)["input_ids"]

    assert jax.eval_shape(shapes, jax.ShapeDtypeStruct((2, 4), jnp.int32)).shape == (2, 4)
    with pytest.raises(InputError, match="got float32"):
        jax.eval_shape(shapes, jax.ShapeDtypeStruct((2, 4), jnp.float32))
