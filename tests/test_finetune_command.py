"""``ntkfusion finetune`` from the command line to scores, curves and a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

import ntkfusion as nf
from ntkfusion import finetune_job
from ntkfusion.cli import main
from ntkfusion.errors import InputError, OutputExistsError
from ntkfusion.finetune_job import Finetuned, SeedResult
from ntkfusion.finetune_plan import make_plan
from ntkfusion.options import Finetune
from ntkfusion.reporting.finetuning import print_finetuning
from ntkfusion.training import fit as fit_module

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
#: One shape of a batch: two programs in all.
WORDS = ("--max-length", "8", "--batch-size", "8", "--epochs", "1", "--learning-rate", "0.01")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, minilm):
    """A small random BERT that reads text."""
    model = nf.random_model(nf.BertConfig(**SIZES, vocab_size=30522, max_position_embeddings=64), seed=1)
    path = tmp_path_factory.mktemp("models") / "tiny"
    return nf.save_model(dataclasses.replace(model, tokenizer=minilm.tokenizer), path)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Forty sentences about two things."""
    path = tmp_path_factory.mktemp("tasks") / "train.csv"
    rows = [f"{'a good day' if i % 2 else 'the bad film'} number {i},{'good' if i % 2 else 'bad'}" for i in range(40)]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def command(*words):
    main([str(word) for word in words])


def test_one_command_gives_scores_curves_and_a_model(folder, table, tmp_path, capsys):
    out = tmp_path / "run"
    words = ("finetune", folder, "--task", "days", "--train", table, "--test", table, *WORDS)
    command(*words, "--compress", "mlp-fusion", "--width", "0.5", "--tune-layers", "--seeds", "0", "1", "--out", out)
    printed = capsys.readouterr().out
    assert "mean" in printed
    assert "40 test" in printed
    assert "hidden states from the original's" in printed
    results = json.loads((out / "results.json").read_text())
    assert [seed["seed"] for seed in results["seeds"]] == [0, 1]
    assert results["summary"]["dev"]["accuracy"]["seeds"] == 2
    assert results["task"]["examples"] == {"train": 36, "dev": 4, "test": 40}
    assert (out / "curves.png").stat().st_size > 1000
    model = nf.load_model(out / "seed-1" / "model")
    assert [block.hidden_width for block in model.mlp_blocks()] == [12]
    task = nf.read_task(table, None, table, text="text", pair=None, label="label", name="days")
    again = nf.evaluate(model, task.test, task.metrics, max_length=8)
    assert again == pytest.approx(results["seeds"][1]["test"])
    lines = [json.loads(line) for line in (out / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert not (out / "seed-0" / "state").exists()
    tuned = [json.loads(line) for line in (out / "seed-1" / "tuning.jsonl").read_text().splitlines()]
    assert [line["step"] for line in tuned if "loss" in line] == [1, 2, 3, 4, 5]
    assert len(set(results["seeds"][1]["tuning"].values())) == 2


def test_resume_goes_on_where_it_was_stopped(folder, table, tmp_path, monkeypatch):
    words = ("finetune", folder, "--task", "days", "--train", table, *WORDS, "--format", "ntkfusion")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr(finetune_job, "fit", lambda *a, **k: fit_module.fit(*a, **k, save_steps=2))
    command(*words, "--out", whole)
    log = finetune_job.JsonLines.log
    monkeypatch.setattr(finetune_job.JsonLines, "log", _interrupt_at(4, log))
    with pytest.raises(SystemExit):
        command(*words, "--out", broken)
    monkeypatch.setattr(finetune_job.JsonLines, "log", log)
    with pytest.raises(SystemExit):  # not without being asked to
        command(*words, "--out", broken)
    command(*words, "--out", broken, "--resume")
    one, other = (nf.load_model(path / "seed-0" / "model").params for path in (whole, broken))
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = [(path / "seed-0" / "metrics.jsonl").read_text().splitlines() for path in (whole, broken)]
    losses = [[json.loads(line).get("loss") for line in lines] for lines in rows]
    assert losses[0] == losses[1]


def _interrupt_at(step, log):
    def interrupting(self, at, values):
        if at == step:
            raise KeyboardInterrupt
        log(self, at, values)

    return interrupting


def options(folder, table, **changed):
    return Finetune(**{"model": str(folder), "task": "days", "train": table, "batch_size": 8, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": ()}, "--seeds takes at least one"),
        ({"seeds": (1, 1)}, "each once"),
        ({"tune_layers": True}, "it needs --compress"),
        ({"resume": True, "overwrite": True}, "one of them"),
        ({"probe": True, "freeze": ("*",)}, "leave out --freeze"),
        ({"rates": ("*/mlp/*",)}, "PATTERN=FACTOR"),
        ({"rates": ("*/mlp/*=-1",)}, "PATTERN=FACTOR"),
        ({"compress": "svd"}, "pass --merge"),
        ({"compress": "nothing"}, "unknown method"),
        ({"accumulation": 3}, "equal parts"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"task": "sst2"}, "another name"),
        ({"train": None, "dev": Path("x.csv")}, "which --train gives"),
        ({"label": "mood"}, "mood"),
        ({"max_train": 0}, "at least one example"),
    ],
)
def test_nonsense_is_refused_before_anything_is_loaded(folder, table, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        make_plan(options(folder, table, out=tmp_path / "run", **changed))
    assert not (tmp_path / "run").exists()


def test_other_options_cannot_resume(folder, table, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".ntkfusion").touch()
    (out / "request.json").write_text(json.dumps(finetune_job.request_of(options(folder, table, epochs=2))))
    with pytest.raises(OutputExistsError, match="--epochs was 2, is 3"):
        make_plan(options(folder, table, out=out, resume=True))
    with pytest.raises(OutputExistsError, match="pass --resume"):
        make_plan(options(folder, table, out=out))


@pytest.mark.parametrize(("seeds", "fits"), [((0, 3), True), ((3, 1, 0), True), ((3,), False)])
def test_seeds_can_be_added(folder, table, tmp_path, seeds, fits):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".ntkfusion").touch()
    for name in ("request.json", "results.json"):
        (out / name).write_text(json.dumps(finetune_job.request_of(options(folder, table, seeds=(0, 3)[: 1 + fits]))))
    again = options(folder, table, out=out, resume=True, seeds=seeds)
    if fits:
        assert make_plan(again).options.seeds == seeds
        return
    with pytest.raises(OutputExistsError, match="--seeds was"):
        make_plan(again)


def test_a_folder_of_others_is_left_alone(folder, table, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for more in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputExistsError):
            make_plan(options(folder, table, out=tmp_path, **more))


def test_probe_trains_the_head_alone(folder, table, tmp_path):
    plan = make_plan(options(folder, table, out=tmp_path / "run", probe=True))
    model = finetune_job.with_head(nf.load_model(folder), plan, seed=0)
    trained, _ = nf.training.groups.split(model.params, finetune_job.groups_of(plan, model))
    assert sorted(trained) == ["classifier/bias", "classifier/kernel"]


@pytest.mark.parametrize(
    ("changed", "looks", "said"),
    [({}, 3, "chose the evaluation that is kept"), ({}, 1, "chose nothing"), ({"keep": "last"}, 3, "chose nothing"),
     ({"keep": "last", "patience": 1}, 3, "chose when to stop")],
)  # fmt: skip
def test_what_the_dev_set_chose_is_said(capsys, changed, looks, said):
    """And the table of two metrics fits a terminal of 80 columns."""
    scores = {"spearman": -0.5, "pearson": 0.25}
    history = [{"step": float(step), **scores} for step in range(looks)]
    seeds = tuple(SeedResult(seed, scores, {}, scores, scores, history, 1, 3, 9, 0.5, 100) for seed in (0, 1))
    task = {"name": "mine", "examples": {"train": 8, "dev": 2}, "source": "mine.csv"}
    conditions = {"task": task, "recipe": dataclasses.asdict(nf.Recipe(**changed))}
    print_finetuning(Finetuned(seeds, conditions, tuple(scores)), Path("out"), Console(width=80))
    out = capsys.readouterr().out
    assert said in out
    assert "-0.500 ±" in out
    assert "…" not in out
    assert "200 tokens/s" in out
