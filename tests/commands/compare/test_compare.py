"""The numbers of a comparison against the same numbers computed by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.compare.run import _compress, plan, run
from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.registry import METHODS, Entry
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.errors import InputError
from ntkfusion.utils.progress import Progress


class Told(Progress):
    """Remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def advance(self, what, done):
        self.steps.append((what, done))


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    """Plans look at the folder that a report would have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@pytest.fixture(scope="module")
def measured():
    few = {"layers": (3,), "tokens": 24, "calibration_tokens": 40, "restarts": 2}
    planned, progress = plan(Compare(methods=("mlp-fusion", "svd"), width=(0.25, 0.5), **few)), Told()
    return planned, progress.steps, run(planned, progress)


@pytest.mark.wide
def test_rows_are_what_the_library_gives_by_hand(measured, minilm):
    planned, _, result = measured
    held_out = collect_block_inputs(minilm, planned.split.held_out, max_tokens=24, seed=0)
    small, reports = nf.compress(minilm, nf.MLPFusion(keep_ratio=0.5, num_restarts=2), layers=[3])
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


@pytest.mark.wide
def test_progress_counts_to_the_end(measured):
    planned, steps, _ = measured
    assert [done for _, done in steps] == list(range(planned.steps))


@pytest.mark.wide
def test_calibration_and_held_out_sentences_do_not_mix(measured):
    split = measured[0].split
    assert not set(split.calibration) & set(split.held_out)
    assert len(split.calibration) == len(split.held_out) == 160


@pytest.mark.wide
def test_calibration_has_its_own_number_of_tokens(measured):
    _, _, result = measured
    assert result.comparison.settings["calibration_tokens"] == 40
    counts = [result.comparison.inputs[f"{which}_tokens"] for which in ("calibration", "held_out")]
    assert counts == [40, 24]


class Talkative(LayerwiseMethod):
    """Leaves every block as it is, and says so."""

    def compress_block(self, block, index, workspace):
        assert workspace.inputs(index).shape == (5, 384)
        workspace.progress(f"layer {index}", (index + 1) / 2)
        return block, {}


def test_long_methods_say_how_far_they_are(monkeypatch, minilm):
    monkeypatch.setitem(METHODS, "talk", Entry(Talkative, "talks"))
    planned, progress = plan(Compare(methods=("talk",), width=(0.5, 1.0))), Told()
    inputs = [jnp.zeros((5, 384))] * 2
    done = list(_compress(planned, minilm.mlp_blocks()[:2], inputs, progress))
    assert [(name, width) for name, width, _ in done] == [("talk", 0.5), ("talk", 1.0)]
    assert progress.steps[:3] == [
        ("talk at width 0.5", 2),
        ("talk at width 0.5: layer 0, 50 %", 2),
        ("talk at width 0.5: layer 1, 100 %", 2),
    ]
    assert [done for _, done in progress.steps] == [2, 2, 2, 3, 3, 3]


def test_methods_unasked_are_the_main_ones_and_all_are_all(monkeypatch):
    monkeypatch.setitem(METHODS, "for-specialists", Entry(Talkative, "rarely wanted", default=False))
    main, everything = (plan(Compare(methods=asked)).methods for asked in ((), ("all",)))
    assert everything == tuple(METHODS)
    assert set(everything) - set(main) == {name for name, entry in METHODS.items() if not entry.default}
    assert "for-specialists" not in main
    assert {"mlp-fusion", "svd", "random-neurons"} <= set(main)
    with pytest.raises(InputError, match="takes no other names"):
        plan(Compare(methods=("svd", "all")))


def test_a_method_that_does_not_apply_is_refused_before_any_work():
    planned, progress = plan(Compare(methods=("mlp-fusion", "svd"), width=(0.25, 0.001))), Told()
    with pytest.raises(InputError, match="choose a larger width"):
        run(planned, progress)
    assert progress.steps == [("loading the model", 0)]


@pytest.mark.parametrize("name", ["mlp-fusion", "mlp-fusion-v2+refit+sgd"])
def test_restarts_reach_k_means_under_improvements_too(name):
    method = plan(Compare(methods=(name,), restarts=3)).build(name, 0.25)
    while isinstance(method, (nf.compression.Refitted, nf.compression.Matched)):
        method = method.method
    assert method.num_restarts == 3
    assert method.keep_ratio == 0.25


@pytest.mark.wide
def test_gallery_shows_the_words_of_the_middle_layer(measured):
    _, _, result = measured
    (gallery,) = result.galleries
    assert (gallery.layer, gallery.width) == (3, 0.25)
    assert "[CLS]" not in gallery.tokens
    assert gallery.kernels["sgd"].keys() == {"original", "mlp-fusion", "svd"}
    assert gallery.kernels["sign"]["svd"].shape == (32, 32)
