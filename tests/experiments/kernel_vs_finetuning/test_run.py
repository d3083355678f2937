"""The experiment on kernels and fine-tuning: correlations of tasks, stops and starts, nothing computed twice."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import ntkfusion as nf
from experiments.kernel_vs_finetuning.lab import TaskLab
from experiments.kernel_vs_finetuning.measures import MEASURES
from experiments.kernel_vs_finetuning.options import FinetuningOptions
from experiments.kernel_vs_finetuning.report import OUTCOMES, ScorePoint, correlation_table
from experiments.kernel_vs_finetuning.run import main
from ntkfusion.errors import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def _small_sst2(small_sst2):
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.slow
def test_what_is_done_is_not_done_again(tmp_path, minilm, capsys, monkeypatch):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    tiny = nf.random_model(nf.BertConfig(**sizes, vocab_size=30522, max_position_embeddings=64), seed=1)
    nf.save_model(dataclasses.replace(tiny, tokenizer=minilm.tokenizer), tmp_path / "tiny")
    options = FinetuningOptions(
        tasks=("sst2",), methods=("none", "random-neurons", "svd", "mmd"), widths=(0.5,), seeds=(0,),
        model=str(tmp_path / "tiny"), max_train=16, tokens=24, kernel_texts=3, kernel_length=8, batch_size=8,
        linearised=("none",), linearised_updates=2, resamples=100, out=tmp_path / "out",
    )  # fmt: skip
    main(options)
    assert "4 of 4 runs to do" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    original, small = (results["runs"][f"sst2_{name}_seed0"] for name in ("none", "random-neurons_width0.5"))
    assert original["dev"] == original["zero_shot"]
    assert original["output_error"] == 0 < small["output_error"]
    x = nf.collect_block_inputs(nf.load_model(options.model), nf.load_task("sst2").dev.first, max_tokens=24, seed=0)
    block = nf.load_model(options.model).mlp_blocks()[0]
    thin = nf.compress(nf.load_model(options.model), nf.compression.RandomNeurons(0.5), seed=0)[0].mlp_blocks()[0]
    error = np.linalg.norm(thin(x.inputs[0]) - block(x.inputs[0])) / np.linalg.norm(block(x.inputs[0]))
    assert small["output_error"] == pytest.approx(error, rel=1e-4)
    assert len(results["curves"]["sst2_none_seed0"]["predicted"]) == 2
    for name in ("scores.png", "linearised.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("experiments.kernel_vs_finetuning.run.run", None)
    main(options)
    assert "0 of 4 runs to do" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["runs"] == results["runs"]
    # a kept model of another checkpoint is not taken for this one's
    (kept,) = (path.name for path in (tmp_path / "out" / "models").iterdir() if path.name.startswith("mmd"))
    lab = TaskLab(dataclasses.replace(options, model="minilm"), "sst2")
    assert not kept.endswith(lab.key("mmd", 0.5))


def test_every_task_has_correlations_of_its_own():
    options = FinetuningOptions(tasks=("sst2", "mrpc"), widths=(0.5,), resamples=100)
    points = [
        # one order on one task, the other one on the other
        ScorePoint(
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
def test_nonsense_is_refused(changed, message):
    with pytest.raises(InputError, match=message):
        FinetuningOptions(**changed)
