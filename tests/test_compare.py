"""The numbers of a comparison against the same numbers computed by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.compare import Reference, _check_memory, _unseen, count_steps, make_plan, run
from ntkfusion.data.inputs import collect_block_inputs
from ntkfusion.errors import InputError
from ntkfusion.options import Compare


@pytest.fixture(scope="module")
def measured():
    steps = []
    plan = make_plan(Compare(methods=("mlp-fusion", "svd"), width=(0.25, 0.5), layers=(3,), tokens=24, restarts=2))
    return plan, steps, run(plan, lambda what, done: steps.append((what, done)))


def test_rows_are_what_the_library_gives_by_hand(measured, minilm):
    plan, _, result = measured
    held_out = collect_block_inputs(minilm, plan.held_out, max_tokens=24, seed=0)
    small, reports = nf.compress(minilm, nf.MLPFusion(width=0.5, num_restarts=2), layers=[3])
    old, new, x = minilm.mlp_blocks()[3], small.mlp_blocks()[3], held_out.inputs[3]
    row = next(row for row in result.comparison.rows if (row.method, row.width) == ("mlp-fusion", 0.5))

    def error(changed, original):
        changed, original = np.asarray(changed, np.float64), np.asarray(original, np.float64)
        return np.linalg.norm(changed - original) / np.linalg.norm(original)

    assert row.output_error == pytest.approx(error(new(x), old(x)), rel=1e-4)
    for kind in ("sgd", "sign"):
        kernels = [nf.block_kernel(block, x, kind=kind) for block in (new, old)]
        assert getattr(row, f"{kind}_kernel_error") == pytest.approx(error(*kernels), rel=1e-4)
    assert (row.parameters, row.hidden_width, row.layer) == (reports[3].parameters, 768, 3)


def test_progress_counts_to_the_end(measured):
    plan, steps, _ = measured
    assert [done for _, done in steps] == list(range(count_steps(plan)))


def test_calibration_and_held_out_sentences_do_not_mix(measured):
    plan, _, _ = measured
    assert not set(plan.calibration) & set(plan.held_out)
    assert len(plan.calibration) == len(plan.held_out) == 160


def test_sentences_that_only_the_tokenizer_makes_equal_do_not_leak(minilm):
    others = ["Hello there", "Something else."]
    assert _unseen(minilm, ["hello THERE", "New words."], others) == ["New words."]
    with pytest.raises(InputError, match="the same to the model's tokenizer"):
        _unseen(minilm, ["hello there", "HELLO  there"], others)


def test_a_method_that_does_not_apply_is_refused_before_any_work():
    plan = make_plan(Compare(methods=("mlp-fusion", "svd"), width=(0.25, 0.001)))
    steps = []
    with pytest.raises(InputError, match="choose a larger width"):
        run(plan, lambda what, done: steps.append(what))
    assert steps == ["loading the model"]


def test_more_tokens_than_memory_has_room_for():
    with pytest.raises(InputError, match=r"ask for --tokens [0-9]+ or fewer"):
        _check_memory(10**7, 6)


def test_gallery_shows_the_words_of_the_middle_layer(measured):
    _, _, result = measured
    (gallery,) = result.galleries
    assert (gallery.layer, gallery.width) == (3, 0.25)
    assert "[CLS]" not in gallery.tokens
    assert gallery.kernels["sgd"].keys() == {"original", "mlp-fusion", "svd"}
    assert gallery.kernels["sign"]["svd"].shape == (32, 32)


def test_a_block_has_no_error_against_itself(minilm):
    block = minilm.mlp_blocks()[0]
    reference = Reference.of(block, jnp.ones((4, 384)))
    assert set(reference.errors(block).values()) == {0.0}
