"""The numbers of a comparison against the same numbers computed by hand."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.compare.run import _compress, plan, run
from ntkfusion.commands.compress import run as compress_job
from ntkfusion.commands.compress.options import Compress
from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.registry import METHODS, Entry
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.data.calibration import CalibrationSplit
from ntkfusion.errors import InputError
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.reporting.results import read_comparison
from ntkfusion.reporting.summary import mean_errors
from ntkfusion.utils.progress import Progress
from tests.helpers.small_encoders import random_weights


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


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory, minilm):
    """A small random GPT-2 with a tokenizer that folds case, and sentences that begin alike or differ in case alone."""
    config = GPT2Config(vocab_size=30522, hidden_size=8, n_layer=1, n_head=2, n_positions=32)
    model = dataclasses.replace(random_weights(config, 0.3), tokenizer=minilm.tokenizer)
    folder = tmp_path_factory.mktemp("models")
    words = ["the film is long", "the film was short", "a day", "rain fell on us", "who knows", "so it goes", "the end"]
    (folder / "text.txt").write_text("\n".join([*words, *map(str.upper, words)]))
    return nf.save_model(model, folder / "gpt2"), folder / "text.txt"


@pytest.mark.parametrize("command", ["compare", "compress"])
def test_what_a_method_saw_is_not_what_it_is_measured_on(gpt2, command, tmp_path, monkeypatch):
    """Neither sentences that only the tokenizer makes equal, nor tokens that a causal model has seen as they are."""
    folder, text = gpt2
    seen = []
    collect = CalibrationSplit.collect

    def kept(self, *given, **options):
        seen.append(collect(self, *given, **options))
        return seen[0]

    monkeypatch.setattr(CalibrationSplit, "collect", kept)
    if command == "compare":
        planned = plan(Compare(str(folder), methods=("random-neurons",), width=(0.5,), text=text, out=tmp_path / "a"))
        inputs = run(planned, Progress()).comparison.inputs
    else:
        planned = compress_job.plan(Compress(str(folder), method="random-neurons", text=text, out=tmp_path / "a"))
        inputs = compress_job.run(planned, Progress()).notes
    ((calibration, held_out),) = seen
    split = planned.split
    held = {sentence.lower() for sentence in split.held_out}
    expected = [sentence for sentence in split.calibration if sentence.lower() not in held]
    assert 0 < len(expected) < len(split.calibration)
    assert calibration.num_sentences == len(expected)
    rows = [np.asarray(part.inputs[0]) for part in (calibration, held_out)]
    assert not (rows[1][:, None] == rows[0][None, :]).all(axis=-1).any()
    # at least [CLS] of every sentence
    assert inputs["held_out_tokens_dropped"] == held_out.num_dropped >= len(split.held_out)
    assert inputs["held_out_tokens"] == len(held_out.tokens)


@pytest.fixture(scope="module")
def silent(tmp_path_factory, minilm):
    """A small random BERT whose first MLP block gives 0."""
    config = nf.BertConfig(
        vocab_size=30522, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12
    )
    model = dataclasses.replace(random_weights(config, 0.3), tokenizer=minilm.tokenizer)
    block = model.mlp_blocks()[0]
    model = model.replace_mlp_blocks({0: block.replace(w2=0 * block.w2, b2=0 * block.b2)})
    return nf.save_model(model, tmp_path_factory.mktemp("models") / "silent", format="ntkfusion")


def test_a_layer_whose_original_is_zero_does_not_halve_the_mean(silent, tmp_path):
    asked = {"methods": ("random-neurons",), "width": (0.5,), "tokens": 16, "calibration_tokens": 16}
    found = run(plan(Compare(str(silent), **asked, out=tmp_path / "a")), Progress()).comparison
    assert found.undefined == {"output_error": [0]}
    silent_row, row = found.rows
    assert np.isnan(silent_row.output_error)
    assert mean_errors(found, 0.5)["output_error"] == pytest.approx([row.output_error])
    (tmp_path / "results.json").write_text(found.to_json())
    again = read_comparison(tmp_path / "results.json")
    assert mean_errors(again, 0.5)["output_error"] == pytest.approx([row.output_error])


@pytest.mark.wide
def test_a_layer_whose_original_is_zero_has_no_error_in_compress(silent, tmp_path):
    words = {"method": "random-neurons", "width": 0.5, "tokens": 16, "format": "ntkfusion", "out": tmp_path / "b"}
    small = compress_job.run(compress_job.plan(Compress(str(silent), **words)), Progress())
    assert small.notes["mean_output_error"] == small.card["blocks"][1]["output_error"] > 0.01
    assert small.card["blocks"][0]["output_error"] == "n/a"
