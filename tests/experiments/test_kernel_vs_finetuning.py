"""The experiment on kernels and fine-tuning: correlations by hand, stops and starts, nothing computed twice."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

import ntkfusion as nf
from ntkfusion.errors import InputError

FOLDER = Path(__file__).parents[2] / "experiments"
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script, and a small SST-2 of its own; its parts are beside it."""
    rows = [f"{i % 2}\t{'a good day' if i % 2 else 'the bad film'} number {i}" for i in range(24)]
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for split, column in (("train", "sentence"), ("dev", "content")):
        text = "\n".join([f"label\t{column}", *rows]) + "\n"
        (tmp_path / "data" / "sst2" / f"{split}.tsv").write_text(text, encoding="utf-8")
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path / "data"))
    for name in ("OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setitem(os.environ, name, os.environ.get(name, "1"))
    monkeypatch.syspath_prepend(str(FOLDER))
    before = jax.config.jax_compilation_cache_dir
    yield runpy.run_path(str(FOLDER / "kernel_vs_finetuning.py"))
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(script, tmp_path, minilm, capsys, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    tiny = nf.random_model(nf.BertConfig(**sizes, vocab_size=30522, max_position_embeddings=64), seed=1)
    nf.save_model(dataclasses.replace(tiny, tokenizer=minilm.tokenizer), tmp_path / "tiny")
    options = script["Options"](
        tasks=("sst2",), methods=("none", "random-neurons", "svd", "mmd"), widths=(0.5,), seeds=(0,),
        model=str(tmp_path / "tiny"), max_train=16, tokens=24, kernel_texts=3, kernel_length=8, batch_size=8,
        linearised=("none",), linearised_updates=2, resamples=100, out=tmp_path / "out",
    )  # fmt: skip
    script["main"](options)
    assert "4 of 4 runs to do" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    original, small = (results["runs"][f"sst2_{name}_seed0"] for name in ("none", "random-neurons_width0.5"))
    assert original["dev"] == original["zero_shot"]
    assert original["output_error"] == 0 < small["output_error"]
    x = nf.collect_block_inputs(nf.load_model(options.model), nf.load_task("sst2").dev.first, max_tokens=24, seed=0)
    block = nf.load_model(options.model).mlp_blocks()[0]
    thin = nf.compress(nf.load_model(options.model), nf.RandomNeurons(0.5), seed=0)[0].mlp_blocks()[0]
    error = np.linalg.norm(thin(x.inputs[0]) - block(x.inputs[0])) / np.linalg.norm(block(x.inputs[0]))
    assert small["output_error"] == pytest.approx(error, rel=1e-4)
    assert len(results["curves"]["sst2_none_seed0"]["predicted"]) == 2
    for name in ("scores.png", "linearised.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(script["main"].__globals__, "run", None)
    script["main"](options)
    assert "0 of 4 runs to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["runs"] == results["runs"]
    # a kept model of another checkpoint is not taken for this one's
    (kept,) = (path.name for path in (tmp_path / "out" / "models").iterdir() if path.name.startswith("mmd"))
    lab = script["Lab"](dataclasses.replace(options, model="minilm"), "sst2")
    assert not kept.endswith(lab._key("mmd", 0.5))


def test_correlations_are_means_over_tasks_and_methods_are_drawn_with_all_they_have(script):
    from kernel_vs_finetuning_parts.correlations import bootstrap, mean_rho

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 9, 2))
    expected = np.mean([spearmanr(x[task].ravel(), y[task].ravel()).statistic for task in range(3)])
    rho, low, high = bootstrap(list(zip(x, y, strict=True)), 200)
    assert rho == pytest.approx(expected)
    assert low < rho < high
    # copies of a task add no certainty
    assert bootstrap([(x[0], y[0])], 200) == pytest.approx(bootstrap([(x[0], y[0])] * 5, 200))
    # a task in which all scores are the same has no part
    assert mean_rho([(x[0], y[0]), (x[1], 0 * y[1])]) == mean_rho([(x[0], y[0])])
    assert np.isnan(bootstrap([(x[0], 0 * y[0])], 100)).all()
    y[0, 0] = np.nan
    assert mean_rho([(x[0], y[0])]) == pytest.approx(spearmanr(x[0, 1:].ravel(), y[0, 1:].ravel()).statistic)


def test_every_task_has_correlations_of_its_own(script):
    from kernel_vs_finetuning_parts.measures import MEASURES
    from kernel_vs_finetuning_parts.report import OUTCOMES, Point, correlation_table

    options = script["Options"](tasks=("sst2", "mrpc"), widths=(0.5,), resamples=100)
    points = [
        # one order on one task, the other one on the other
        Point(
            task,
            method,
            0.5,
            "accuracy",
            {name: [3.0 - place] for name in MEASURES} | {name: [score] for name in OUTCOMES},
        )
        for task, sign in (("sst2", 1), ("mrpc", -1))
        for place, method in enumerate(("svd", "mmd", "random-neurons"))
        for score in [0.6 + sign * place / 10]
    ]
    table = correlation_table(options, points)
    assert table.columns == ("error of", "foretells", "width 1/2", "all widths", "sst2 alone", "mrpc alone")
    assert [cell[:5] for cell in table.rows[0][2:]] == ["0.00 ", "0.00 ", "1.00 ", "-1.00"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ("mood",)}, "unknown task"),
        ({"seeds": (1, 1)}, "each once"),
        ({"methods": ("no",)}, "unknown method"),
    ],
)
def test_nonsense_is_refused(script, changed, message):
    with pytest.raises(InputError, match=message):
        script["Options"](**changed)
