"""``ntkfusion finetune`` from the command line to scores, curves and a model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from rich.console import Console

import ntkfusion as nf
from ntkfusion.commands.conditions import command_line
from ntkfusion.commands.finetune import run as finetune_job
from ntkfusion.commands.finetune import start as finetune_start
from ntkfusion.commands.finetune.options import Finetune, RecipeOptions
from ntkfusion.commands.finetune.plan import FinetunePlan, plan
from ntkfusion.commands.finetune.report import show
from ntkfusion.commands.finetune.run import Finetuned, SeedResult
from ntkfusion.commands.main import Options, main
from ntkfusion.data.tasks.task import Examples, Task
from ntkfusion.errors import InputError, OutputExistsError
from ntkfusion.models.switch.config import SwitchConfig
from ntkfusion.training import fine_tuning as fit_module
from ntkfusion.training.optimizer import split
from ntkfusion.training.store import StateStore
from ntkfusion.training.trackers import JsonLines
from ntkfusion.utils.files import Output, write_json
from ntkfusion.utils.progress import Progress
from tests.helpers.lock_holder import held_by_another

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
pytestmark = pytest.mark.usefixtures("quick_compilation")

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
    assert (results["head"], results["task"]["labels"]) == ("fresh", ["bad", "good"])
    assert [seed["seed"] for seed in results["seeds"]] == [0, 1]
    assert results["summary"]["dev"]["accuracy"]["seeds"] == 2
    assert results["task"]["examples"] == {"train": 36, "dev": 4, "test": 40}
    assert (out / "curves.png").stat().st_size > 1000
    model = nf.load_model(out / "seed-1" / "model")
    assert [block.hidden_width for block in model.mlp_blocks()] == [12]
    assert model.origin.config["id2label"] == {"0": "bad", "1": "good"}
    assert model.origin.config["label2id"] == {"bad": 0, "good": 1}
    task = nf.read_task(table, None, table, text="text", pair=None, label="label", name="days")
    again = nf.evaluate(model, task.test, task.metrics, max_length=8)
    assert again == pytest.approx(results["seeds"][1]["test"])
    lines = [json.loads(line) for line in (out / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    left = sorted(path.name for path in (out / "seed-0").iterdir())
    assert left == ["metrics.jsonl", "model", "result.json", "tuning.json", "tuning.jsonl", "zero_shot.json"]
    tuned = [json.loads(line) for line in (out / "seed-1" / "tuning.jsonl").read_text().splitlines()]
    assert [line["step"] for line in tuned if "loss" in line] == [1, 2, 3, 4, 5]
    assert len(set(results["seeds"][1]["tuning"].values())) == 2


def test_resume_goes_on_where_it_was_stopped(folder, table, tmp_path, monkeypatch):
    words = ("finetune", folder, "--task", "days", "--train", table, *WORDS, "--format", "ntkfusion")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    monkeypatch.setattr(finetune_job, "fit", lambda *a, **k: fit_module.fit(*a, **k, save_steps=2))
    command(*words, "--out", whole)
    log = JsonLines.log
    monkeypatch.setattr(JsonLines, "log", _interrupt_at(4, log))
    with pytest.raises(SystemExit):
        command(*words, "--out", broken)
    monkeypatch.setattr(JsonLines, "log", log)
    with pytest.raises(SystemExit):  # not without being asked to
        command(*words, "--out", broken)
    command(*words, "--out", broken, "--resume")
    one, other = (nf.load_model(path / "seed-0" / "model").params for path in (whole, broken))
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    rows = [(path / "seed-0" / "metrics.jsonl").read_text().splitlines() for path in (whole, broken)]
    losses = [[json.loads(line).get("loss") for line in lines] for lines in rows]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("changed", ["model", "rows"])
def test_other_contents_behind_the_same_names_cannot_resume(folder, table, tmp_path, monkeypatch, changed, capsys):
    rows, place, out = tmp_path / "rows.csv", tmp_path / "model", tmp_path / "run"
    rows.write_bytes(table.read_bytes())
    nf.save_model(nf.load_model(folder), place)
    words = ("finetune", place, "--task", "days", "--train", rows, *WORDS, "--out", out)
    monkeypatch.setattr(finetune_job, "fit", _interrupted)
    with pytest.raises(SystemExit):
        command(*words)
    if changed == "rows":
        rows.write_text(rows.read_text().replace("film", "play"))
    else:
        model = nf.load_model(folder)
        nf.save_model(
            dataclasses.replace(model, params=jax.tree.map(lambda x: x + 1, model.params)), place, overwrite=True
        )
    capsys.readouterr()
    with pytest.raises(SystemExit):
        command(*words, "--resume")
    assert f"the {'examples' if changed == 'rows' else 'model'} had other contents" in " ".join(
        capsys.readouterr().err.split()
    )


def _interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_seed_that_was_added_and_interrupted_is_gone_on_with(folder, table, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    words = ("finetune", folder, "--task", "days", "--train", table, *WORDS, "--format", "none", "--out", out)
    command(*words)
    monkeypatch.setattr(finetune_job, "fit", _interrupted)
    with pytest.raises(SystemExit):
        command(*words, "--seeds", "0", "1", "--resume")
    with pytest.raises(SystemExit):
        command(*words, "--seeds", "0", "1")
    assert "pass --resume to go on with it" in " ".join(capsys.readouterr().err.split())
    monkeypatch.undo()
    command(*words, "--seeds", "0", "1", "--resume")
    assert len(json.loads((out / "results.json").read_text())["seeds"]) == 2


@pytest.mark.wide
def test_compression_and_tuning_are_not_done_again(folder, table, tmp_path, monkeypatch):
    words = ("finetune", folder, "--task", "days", "--train", table, *WORDS, "--format", "ntkfusion")
    words += ("--compress", "random-neurons", "--width", "0.5", "--tune-layers")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command(*words, "--out", whole)
    log, tune = JsonLines.log, nf.training.layerwise.tune_layers
    monkeypatch.setattr(finetune_start, "tune_layers", lambda *a, **k: tune(*a, **k, save_steps=2))
    monkeypatch.setattr(JsonLines, "log", _interrupt_at(4, log))
    with pytest.raises(SystemExit):
        command(*words, "--out", broken)
    assert StateStore(broken / "seed-0" / "tuning").step == 2
    monkeypatch.setattr(JsonLines, "log", log)
    monkeypatch.delattr(finetune_start, "compress")
    command(*words, "--out", broken, "--resume")
    one, other = (nf.load_model(path / "seed-0" / "model").params for path in (whole, broken))
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    tuned = [(path / "seed-0" / "tuning.json").read_text() for path in (whole, broken)]
    assert tuned[0] == tuned[1]
    lines = [json.loads(line) for line in (broken / "seed-0" / "tuning.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.wide
def test_rates_may_name_what_compression_makes(folder, table, tmp_path, capsys):
    words = ("finetune", folder, "--task", "days", "--train", table, *WORDS, "--format", "none", "--compress", "svd")
    command(*words, "--rates", "*/mlp/left1=0.5", "--out", tmp_path / "run")
    with pytest.raises(SystemExit):
        command(*words, "--freeze", "*/mlp/w1", "--out", tmp_path / "other")
    assert "no parameter fits" in capsys.readouterr().err


def test_what_is_saved_is_what_was_scored(folder, table, tmp_path):
    """Also if the checkpoint was stored in half precision."""
    nf.save_model(nf.load_model(folder), tmp_path / "half", dtype="bfloat16")
    words = ("finetune", tmp_path / "half", "--task", "days", "--train", table, *WORDS)
    for style in ("hf", "ntkfusion"):
        command(*words, "--format", style, "--out", tmp_path / style)
    one, other = (nf.load_model(tmp_path / style / "seed-0" / "model").params for style in ("hf", "ntkfusion"))
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kernel = one["classifier"]["kernel"]
    assert not np.array_equal(kernel, kernel.astype("bfloat16").astype("float32"))
    body = one["layer_0"]["mlp"]["w1"]
    assert not np.array_equal(body, body.astype("bfloat16").astype("float32"))


def test_a_model_that_no_format_can_take_is_refused_before_training(table, tmp_path, minilm, capsys):
    sizes = {"hidden_size": 8, "d_kv": 4, "d_ff": 12, "num_heads": 2, "num_experts": 2, "vocab_size": 30522}
    switch = nf.random_model(SwitchConfig(**sizes, num_encoder_layers=1, num_decoder_layers=1))
    nf.save_model(dataclasses.replace(switch, tokenizer=minilm.tokenizer), tmp_path / "switch", format="ntkfusion")
    with pytest.raises(SystemExit):
        command("finetune", tmp_path / "switch", "--task", "days", "--train", table, *WORDS, "--out", tmp_path / "run")
    assert "format='ntkfusion' keeps it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def _interrupt_at(step, log):
    def interrupting(self, at, values):
        if at == step:
            raise KeyboardInterrupt
        log(self, at, values)

    return interrupting


def options(folder, table, recipe=None, **changed):
    """A request; what its recipe does not allow is found when it is planned, as on the command line."""
    recipe = RecipeOptions(**{"batch_size": 8, **(recipe or {})})
    return Finetune(**{"model": str(folder), "task": "days", "train": table, "recipe": recipe, **changed})


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
        ({"recipe": {"accumulation": 3}}, "equal parts"),
        ({"recipe": {"learning_rate": 0.0}}, "learning_rate must be"),
        ({"task": "sst2"}, "another name"),
        ({"train": None, "dev": Path("x.csv")}, "which --train gives"),
        ({"train": None, "task": "sst2", "labels": "scores"}, "which --train gives"),
        ({"labels": "scores"}, "not a finite number"),
        ({"label": "mood"}, "mood"),
        ({"max_train": 0}, "at least one example"),
        ({"new_head": True, "label_order": ("good", "bad")}, "--new-head replaces it"),
        ({"label_order": ("good", "worse")}, "they are bad, good, got good, worse"),
    ],
)
def test_nonsense_is_refused_before_anything_is_loaded(folder, table, tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        plan(options(folder, table, out=tmp_path / "run", **changed))
    assert not (tmp_path / "run").exists()


def test_other_options_cannot_resume(folder, table, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".ntkfusion").touch()
    (out / "request.json").write_text(json.dumps(finetune_job.request_of(options(folder, table, {"epochs": 2}))))
    with pytest.raises(OutputExistsError, match="--epochs was 2, is 3"):
        plan(options(folder, table, out=out, resume=True))
    with pytest.raises(OutputExistsError, match="pass --resume"):
        plan(options(folder, table, out=out))


@pytest.mark.parametrize("more", [(), ("--resume",), ("--overwrite",)])
def test_a_folder_that_another_run_writes_is_refused_with_its_process(folder, table, tmp_path, capsys, more):
    """Two within a fifth of a second, or two that go on: one of them gets a sentence and leaves nothing."""
    words = ("finetune", folder, "--task", "days", "--train", table, *WORDS, "--out", tmp_path / "run", *more)
    with held_by_another(tmp_path / "run") as process, pytest.raises(SystemExit) as ending:
        command(*words)
    assert ending.value.code == 2
    said = capsys.readouterr().err
    assert f"run is being written by process {process.pid} since " in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_that_ended_before_it_wrote_its_request_can_resume(folder, table, tmp_path):
    """As on a disk that was full from the beginning."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".ntkfusion").touch()
    (tmp_path / "run" / ".request-x7").mkdir()  # of a process that was killed while it wrote
    plan(options(folder, table, out=tmp_path / "run", resume=True))
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(OutputExistsError, match="holds no run"):
        plan(options(folder, table, out=tmp_path / "run", resume=True))


def test_a_run_that_appeared_since_the_plan_is_not_written_into(folder, table, tmp_path):
    """As when another process was faster: its request would stand beside this one's results."""
    planned = plan(options(folder, table, out=tmp_path / "run"))
    write_json(tmp_path / "run" / "request.json", {"seeds": [3]})
    with pytest.raises(OutputExistsError, match="holds a run that was interrupted"):
        finetune_job.run(planned, Progress())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["request.json"]


#: What was written before the recipe had options of its own: `--patience 2 --clip-norm 0 --no-dropout` and defaults.
OLD_REQUEST = """{
 "task": "days", "data_dir": null, "dev": null, "test": null, "text": "text", "pair": null, "label": "label",
 "labels": "auto", "max_train": null, "max_dev": null, "compress": null, "width": 0.25, "layers": [],
 "tune_layers": false, "seeds": [0], "freeze": [], "probe": false, "rates": [], "learning_rate": 5e-05, "epochs": 3,
 "batch_size": 32, "accumulation": 1, "max_length": 128, "schedule": "linear", "warmup": 0.06, "weight_decay": 0.01,
 "clip_norm": 0.0, "no_dropout": true, "precision": "float32", "evaluations": 1, "patience": 2, "keep": "best"
}"""


def parsed(*words):
    """The options of a command line."""
    return tyro.cli(Options, args=[str(word) for word in words])


def test_a_request_of_before_can_be_resumed(folder, table, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".ntkfusion").touch()
    request = {**json.loads(OLD_REQUEST), "model": str(folder), "train": str(table)}
    (out / "request.json").write_text(json.dumps(request))
    words = ("finetune", folder, "--task", "days", "--train", table, "--out", out, "--resume", "--patience", "2")
    planned = plan(parsed(*words, "--no-dropout", "--clip-norm", "0"))
    assert planned.recipe == nf.Recipe(dropout=False, clip_norm=None, patience=2)
    assert {name: finetune_job.request_of(planned.options)[name] for name in request} == request
    for other, said in (("--clip-norm", "clip-norm was 0.0, is 1.0"), ("--optimizer", "optimizer was adamw, is sgd")):
        more = () if other == "--clip-norm" else ("--clip-norm", "0", other, "sgd")
        with pytest.raises(OutputExistsError, match=said):
            plan(parsed(*words, "--no-dropout", *more))


def test_the_recipe_has_the_flags_it_always_had():
    recipe = ("--learning-rate", "0.1", "--patience", "0", "--clip-norm", "0", "--no-dropout", "--keep", "last")
    options = parsed("finetune", "minilm", "--task", "days", *recipe, "--seeds", "1", "2")
    assert nf.Recipe(**vars(options.recipe)) == nf.Recipe(learning_rate=0.1, clip_norm=None, dropout=False, keep="last")
    repeated = command_line(options)
    assert "--learning-rate 0.1 --clip-norm 0 --no-dropout --keep last" in repeated
    assert command_line(parsed(*repeated.split()[1:])) == repeated
    with pytest.raises(InputError, match=r"clip_norm must be above 0, got -1\.0"):
        plan(parsed("finetune", "minilm", "--task", "sst2", "--clip-norm", "-1"))


@pytest.mark.parametrize(("seeds", "fits"), [((0, 3), True), ((3, 1, 0), True), ((3,), False)])
def test_seeds_can_be_added(folder, table, tmp_path, seeds, fits):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".ntkfusion").touch()
    for name in ("request.json", "results.json"):
        (out / name).write_text(json.dumps(finetune_job.request_of(options(folder, table, seeds=(0, 3)[: 1 + fits]))))
    again = options(folder, table, out=out, resume=True, seeds=seeds)
    if fits:
        assert plan(again).options.seeds == seeds
        return
    with pytest.raises(OutputExistsError, match="--seeds was"):
        plan(again)


def test_a_folder_of_others_is_left_alone(folder, table, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for more in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(OutputExistsError):
            plan(options(folder, table, out=tmp_path, **more))


def test_probe_trains_the_head_alone(folder, table, tmp_path):
    planned = plan(options(folder, table, out=tmp_path / "run", probe=True))
    model = finetune_job.with_head(nf.load_model(folder), planned, seed=0)
    trained, _ = split(model.params, finetune_job.groups_of(planned, model))
    assert sorted(trained) == ["classifier/bias", "classifier/kernel"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, folder, table):
    """A checkpoint with a head that knows the table's classes, in another order than the table."""
    model, rows = nf.load_model(folder), nf.read_task(table, table).dev
    pooled = model.apply(model.params, **read(model, rows)).pooler_output
    good, *_ = np.linalg.lstsq(np.asarray(pooled), 2.0 * rows.labels - 1)
    model = nf.with_new_head(model, "sequence-classification", num_labels=2)
    head = {"kernel": jnp.stack([good, -good], axis=1).astype(jnp.float32), "bias": jnp.zeros(2)}
    named = nf.models.with_label_names(dataclasses.replace(model, params={**model.params, "classifier": head}), NAMES)
    return nf.save_model(named, tmp_path_factory.mktemp("models") / "classifier")


NAMES = ("Good", "Bad")


def read(model, rows):
    """Examples as a batch."""
    return dict(model.tokenizer(list(rows.first), padding=True, return_tensors="np"))


@pytest.mark.parametrize("probe", [(), pytest.param(("--probe",), marks=pytest.mark.wide)])
def test_a_checkpoints_order_of_classes_is_kept_and_the_score_before_training_is_its_own(
    classifier, table, tmp_path, capsys, probe
):
    model, task = nf.load_model(classifier), nf.read_task(table, table)
    logits = np.asarray(model.apply(model.params, **read(model, task.dev)).logits)
    by_hand = np.mean([NAMES[row.argmax()].lower() for row in logits] == np.array(task.labels)[task.dev.labels])
    assert by_hand > 0.8
    assert nf.evaluate(model, task.dev, max_length=8)["accuracy"] == pytest.approx(by_hand)
    words = ("finetune", classifier, "--task", "days", "--train", table, "--dev", table, *WORDS, *probe)
    command(*words, "--out", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["seeds"][0]["zero_shot"]["accuracy"] == pytest.approx(by_hand)
    assert (results["head"], results["outputs"]) == ("the checkpoint's own", ["Good", "Bad"])
    assert "own, outputs Good, Bad" in " ".join(capsys.readouterr().out.split())
    saved = nf.load_model(tmp_path / "run" / "seed-0" / "model")
    assert nf.models.output_names(saved) == NAMES
    assert nf.evaluate(saved, task.dev, max_length=8)["accuracy"] == results["seeds"][0]["dev"]["accuracy"]


def test_a_head_for_other_classes_is_refused_unless_told(folder, classifier, table, tmp_path):
    other, named = tmp_path / "other", nf.models.with_label_names(nf.load_model(classifier), ("one", "two"))
    nf.save_model(named, other)
    planned = plan(options(other, table, out=tmp_path / "run"))
    with pytest.raises(InputError, match="are one, two, and the classes of the task are bad, good"):
        finetune_job.run(planned, Progress())
    assert not (tmp_path / "run").exists()
    model = nf.load_model(other)
    fresh = finetune_job.with_head(model, plan(options(other, table, out=tmp_path / "a", new_head=True)), seed=0)
    assert nf.models.output_names(fresh) is None
    told = plan(options(other, table, out=tmp_path / "a", label_order=("good", "bad")))
    assert nf.models.output_names(finetune_job.with_head(model, told, seed=0)) == ("good", "bad")
    with pytest.raises(InputError, match="has none with 2 of them"):
        finetune_job.with_head(nf.load_model(folder), told, seed=0)


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
    conditions = {"task": task, "head": "fresh", "recipe": dataclasses.asdict(nf.Recipe(**changed))}
    rows = Examples(("a", "b"), None, np.array([0.0, 1.0], np.float32))
    scored = Task("mine", (), tuple(scores), rows, rows, None, "mine.csv")
    request = Finetune("minilm", "mine")
    planned = FinetunePlan(request, nf.Recipe(**changed), (), None, scored, Output(Path("out"), grows=True))
    show(Finetuned(planned, seeds, {}, conditions), Console(width=80))
    out = capsys.readouterr().out
    assert said in out
    assert "-0.500 ±" in out
    assert "…" not in out
    assert "200 tokens/s" in out
