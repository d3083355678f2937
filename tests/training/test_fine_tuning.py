"""The loop over updates: interrupted and gone on with, stopped early, stopped by numbers that are none."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion
from ntkfusion.errors import InputError, NonFiniteLossError, NonFiniteOutputsError
from ntkfusion.models.model import Origin
from ntkfusion.models.new_head import output_names, with_label_names, with_new_head
from ntkfusion.training import run as loop
from ntkfusion.training.evaluation import evaluate
from ntkfusion.training.fine_tuning import fit
from ntkfusion.training.optimizer import Group
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.run import TokenizedTask
from ntkfusion.training.store import StateStore
from ntkfusion.utils.parameter_paths import flatten
from tests.helpers.tiny_training import RECIPE, as_readable, duplicated, tiny_model, tiny_task

#: 4 updates an epoch of the tiny task, saved behind updates 2, 3, 4, 6, 8.
WHOLE = dataclasses.replace(RECIPE, evaluations=2, keep="last")
PLAIN = Recipe(epochs=4, batch_size=4, num_buckets=1, schedule="constant", warmup=0.0, learning_rate=1e-2)


class Told:
    """A tracker that keeps what it is told, and may be interrupted."""

    def __init__(self, interrupted_at=None):
        self.lines, self.interrupted_at = [], interrupted_at

    def log(self, step, values):
        self.lines.append((step, dict(values)))
        if step == self.interrupted_at:
            raise KeyboardInterrupt

    def close(self):
        pass


def is_same(one, other):
    """Whether two models have the same bits."""
    leaves = [jax.tree.leaves((model.params, model.constants)) for model in (one, other)]
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*leaves, strict=True))


@pytest.fixture
def light(monkeypatch):
    """A loss that compiles quickly, predictions that cost nothing; the number of times the loss is traced."""
    traced = []

    def task_loss(config, *, is_regression):
        def loss(params, constants, arrays, key):
            traced.append(arrays["input_ids"].shape)
            pull = jnp.sum(jnp.mean(arrays["input_ids"].astype(jnp.float32), axis=1) * arrays["weights"])
            return sum(jnp.sum(jnp.square(leaf - 0.01 * pull)) for leaf in jax.tree.leaves(params))

        return loss

    monkeypatch.setattr(loop, "task_loss", task_loss)
    monkeypatch.setattr(loop, "predict", lambda model, encoded, **options: np.zeros((len(encoded), 2)))
    loop.task_step.cache_clear()
    yield traced
    loop.task_step.cache_clear()


def script(monkeypatch, values):
    """Let the dev set, and then perhaps the test set, have these scores; whose labels were looked at."""
    scores, looked = iter(values), []

    def score(metrics, labels, logits):
        looked.append(len(labels))
        return {"accuracy": next(scores)}

    monkeypatch.setattr(loop, "score", score)
    return looked


@pytest.mark.wide
def test_a_run_that_was_interrupted_ends_bit_by_bit_like_one_that_was_not(tmp_path):
    model, task, told = tiny_model(), tiny_task(), Told()
    assert model.config.hidden_dropout_prob > 0
    assert WHOLE.dropout
    whole = fit(model, task, WHOLE, seed=1, trackers=[told])
    updates = [step for step, values in told.lines if "loss" in values]
    assert updates == list(range(1, 9))
    assert [each["step"] for each in whole.history] == [2, 4, 6, 8]
    for step in sorted(np.random.default_rng(0).choice(np.arange(1, 9), 3, replace=False).tolist()):
        store, part = StateStore(tmp_path / "state"), Told(step)
        with pytest.raises(KeyboardInterrupt):
            fit(model, task, WHOLE, seed=1, trackers=[part], store=store, save_steps=3)
        store.close()
    store, told = StateStore(tmp_path / "state"), Told()
    left = store.step
    rest = fit(model, task, WHOLE, seed=1, trackers=[told], store=store, save_steps=3)
    updates = [step for step, values in told.lines if "loss" in values]
    assert updates == list(range(left + 1, 9)), "what was saved is not done again"
    assert left > 0
    assert is_same(rest.model, whole.model)
    assert not is_same(whole.model, model)
    assert (rest.history, rest.dev, rest.test) == (whole.history, whole.dev, whole.test)
    assert (rest.best_step, rest.num_updates) == (whole.best_step, 8)
    # a run that has ended does no update more
    told = Told()
    again = fit(model, task, WHOLE, seed=1, trackers=[told], store=store)
    assert told.lines == []
    # nor is another run taken for it
    other = dataclasses.replace(model, params=jax.tree.map(lambda leaf: 2 * leaf, model.params))
    fewer = task.subsampled(train=None, dev=5, seed=0)
    for changed in ({"seed": 2}, {"recipe": dataclasses.replace(WHOLE, b1=0.8)}, {"model": other}, {"task": fewer}):
        with pytest.raises(InputError, match="holds another run"):
            fit(**{"model": model, "task": task, "recipe": WHOLE, "seed": 1, "store": store} | changed)
    store.close()
    assert is_same(again.model, whole.model)
    # and chance comes from the seed
    assert not is_same(fit(model, task, WHOLE, seed=2).model, whole.model)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_run_that_was_killed_while_it_saved_ends_bit_by_bit_like_one_that_was_not(tmp_path):
    whole = fit(tiny_model(), tiny_task(), RECIPE, seed=1)
    script, root = Path(__file__).parents[1] / "helpers/fit_and_die.py", Path(ntkfusion.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{script.parents[1]}"}
    for event in (1, 20, 40, 60):
        folder = tmp_path / str(event)
        died = subprocess.run([sys.executable, script, folder, str(event)], env=environment, check=False)
        assert died.returncode == -signal.SIGKILL
        store = StateStore(folder)
        left = store.step
        rest = fit(tiny_model(), tiny_task(), RECIPE, seed=1, store=store, save_steps=2)
        store.close()
        assert left in (4, 6)
        assert is_same(rest.model, whole.model)
        assert (rest.history, rest.dev, rest.test) == (whole.history, whole.dev, whole.test)


@pytest.mark.wide
def test_the_loop_compiles_once_per_bucket(light):
    recipe = dataclasses.replace(PLAIN, epochs=2, num_buckets=3)
    task = tiny_task(train=60, lengths=(2, 24))
    fit(tiny_model(), task, recipe)
    assert sorted({length for _, length in light}) == [8, 16, 24]
    assert len(light) == 3
    fit(tiny_model(), task, dataclasses.replace(recipe, keep="last", patience=3), seed=5)
    assert len(light) == 3


@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_stops_when_the_dev_set_says_so(light, monkeypatch, keep):
    looked = script(monkeypatch, [0.5, 0.8, 0.8, 0.7, 0.3])
    recipe = dataclasses.replace(PLAIN, epochs=9, patience=2, keep=keep)
    task = tiny_task(train=8, dev=5, test=3)
    found = fit(tiny_model(), task, recipe)
    assert [each["accuracy"] for each in found.history] == [0.5, 0.8, 0.8, 0.7]
    assert (found.best_step, found.num_updates) == (4, 8)
    assert found.dev == {"accuracy": 0.8 if keep == "best" else 0.7}
    assert found.test == {"accuracy": 0.3}
    assert looked == [5, 5, 5, 5, 3], "the test set is looked at once, behind everything else"
    script(monkeypatch, [0.0] * 9)
    shorter = dataclasses.replace(PLAIN, epochs=2 if keep == "best" else 4, keep="last")
    assert is_same(found.model, fit(tiny_model(), task, shorter).model)


def test_a_run_that_was_stopped_early_does_not_go_on(light, monkeypatch, tmp_path):
    script(monkeypatch, [0.5, 0.4, 0.3, 0.3])
    recipe, store = dataclasses.replace(PLAIN, epochs=9, patience=1), StateStore(tmp_path)
    task, told = tiny_task(train=8, dev=5, test=3), Told()
    found = fit(tiny_model(), task, recipe, store=store)
    again = fit(tiny_model(), task, recipe, trackers=[told], store=store)
    store.close()
    assert told.lines == []
    assert (
        (again.num_updates, again.best_step, again.dev)
        == (found.num_updates, found.best_step, found.dev)
        == (4, 2, {"accuracy": 0.5})
    )
    assert is_same(again.model, found.model)


def test_outputs_that_are_no_numbers_stop(light, monkeypatch, tmp_path):
    """Where the loss that was seen last was one."""
    outputs = iter([np.zeros((8, 2)), np.array([[0, 1.0]] * 6 + [[np.nan, 0], [0, np.inf]])])
    monkeypatch.setattr(loop, "predict", lambda *a, **options: next(outputs))
    store = StateStore(tmp_path)
    with pytest.raises(NonFiniteOutputsError, match="after 8 updates the outputs for dev examples 6, 7") as caught:
        fit(tiny_model(), tiny_task(), PLAIN, store=store)
    assert (caught.value.step, caught.value.rows, store.step) == (8, (6, 7), 4)
    store.close()


def test_evaluations_take_no_more_examples_at_once_than_updates(light, monkeypatch):
    sizes = []
    monkeypatch.setattr(loop, "predict", lambda m, e, **o: sizes.append(o["batch_size"]) or np.zeros((len(e), 2)))
    fit(tiny_model(), tiny_task(), dataclasses.replace(PLAIN, epochs=1, accumulation=2))
    assert sizes == [2, 2]


def test_the_model_says_what_its_outputs_mean(light):
    found = fit(tiny_model(), tiny_task(), dataclasses.replace(PLAIN, epochs=1)).model
    assert found.origin.config["id2label"] == {"0": "odd", "1": "even"}
    assert found.origin.config["problem_type"] == "single_label_classification"
    fresh = with_new_head(found, "sequence-classification", num_labels=2)
    assert output_names(fresh) is None


def test_a_task_without_a_test_set_has_no_test_scores(light):
    assert fit(tiny_model(), tiny_task(test=0), dataclasses.replace(PLAIN, epochs=1)).test == {}


@pytest.mark.parametrize("broken", ["rate", "weight"])
def test_a_loss_that_is_no_number_stops_with_the_last_good_state(light, tmp_path, broken):
    model, task, told = tiny_model(), tiny_task(), Told()
    recipe = dataclasses.replace(PLAIN, learning_rate=1e30 if broken == "rate" else 1e-3)
    if broken == "weight":
        model.params["classifier"]["bias"] = jnp.asarray([0.0, jnp.inf])
    store = StateStore(tmp_path)
    with pytest.raises(NonFiniteLossError, match="Try a smaller learning rate") as caught:
        fit(model, task, recipe, trackers=[told], store=store)
    steps, error = (1 if broken == "rate" else 0), caught.value
    assert (error.step, store.step, int(error.state.step)) == (steps, steps, steps)
    assert len(told.lines) == steps
    assert len(error.rows) in (2, 4)
    assert str(error.rows[0]) in str(error)
    store.close()
    kept = error.state.params
    if broken == "rate":
        assert all(np.isfinite(leaf).all() for leaf in kept.values())
    else:
        assert all(np.array_equal(kept[path], leaf) for path, leaf in flatten(model.params).items())


def test_frozen_parameters_and_constants_stay_bit_by_bit(light):
    model = as_readable(duplicated(tiny_model(), np.arange(1, 13))[1])
    before = {path: np.array(leaf) for path, leaf in flatten(model.params).items()}
    sizes = model.mlp_blocks()[0].q
    frozen = Group(["embeddings/*", "*/attention/*"], 0.0)
    found = fit(model, tiny_task(), PLAIN, groups=[frozen, Group("*/mlp/*", 0.5)])
    assert np.array_equal(found.model.mlp_blocks()[0].q, sizes)
    assert np.array_equal(sizes, np.arange(1, 13))
    still = [path for path, leaf in flatten(found.model.params).items() if np.array_equal(leaf, before[path])]
    assert still == [path for path in before if path.startswith("embeddings/") or "/attention/" in path]
    # the model that was given is as it was
    assert all(np.array_equal(leaf, before[path]) for path, leaf in flatten(model.params).items())


def test_what_cannot_be_meant_is_refused_before_anything_is_computed(light):
    task = tiny_task()
    with pytest.raises(InputError, match="no parameter fits 'layer_7/"):
        fit(tiny_model(), task, PLAIN, groups=[Group("layer_7/*", 0.0)])
    with pytest.raises(InputError, match="every parameter is frozen"):
        fit(tiny_model(), task, PLAIN, groups=[Group("*", 0.0)])
    three = as_readable(with_new_head(tiny_model(), "sequence-classification", num_labels=3))
    with pytest.raises(InputError, match="needs a sequence classification head with 2 outputs"):
        fit(three, task, PLAIN)
    assert not light


def renamed(model, *names):
    """A model whose checkpoint calls its outputs so."""
    return as_readable(with_label_names(dataclasses.replace(model, origin=Origin({"model_type": "bert"})), names))


def flipped(model):
    """The model with its two outputs exchanged."""
    head = {name: array[..., ::-1] for name, array in model.params["classifier"].items()}
    return as_readable(dataclasses.replace(model, params={**model.params, "classifier": head}))


def test_a_head_with_another_order_of_classes_gives_the_same_scores_and_is_not_swapped():
    """Also where the metric is that of one class."""
    task, metrics = tiny_task(), ("accuracy", "f1", "matthews")
    plain = renamed(tiny_model(), "odd", "even")
    other = renamed(flipped(tiny_model()), "Even", "Odd")
    before = evaluate(plain, task.dev, metrics)
    assert len({*before.values()}) > 1
    assert evaluate(other, task.dev, metrics) == before
    task = dataclasses.replace(task, metrics=metrics)
    recipe = dataclasses.replace(PLAIN, epochs=1, dropout=False)
    one, two = (fit(model, task, recipe) for model in (plain, other))
    assert one.history == two.history
    assert two.model.origin.config["id2label"] == {"0": "Even", "1": "Odd"}
    ours, theirs = (found.model.params["classifier"]["kernel"] for found in (one, two))
    np.testing.assert_allclose(ours, theirs[:, ::-1], atol=1e-6)


def test_a_head_for_other_classes_is_refused_by_fit_and_evaluate():
    task, other = tiny_task(), renamed(tiny_model(), "good", "bad")
    for call in (lambda: fit(other, task, PLAIN), lambda: evaluate(other, task.dev)):
        with pytest.raises(InputError, match="good, bad, and the classes of the task are odd, even"):
            call()
    several = dataclasses.replace(other, origin=Origin({"problem_type": "multi_label_classification"}))
    for rows in (task.dev, dataclasses.replace(task.dev, classes=())):
        with pytest.raises(InputError, match="multi_label"):
            evaluate(as_readable(several), rows)
    bare = with_new_head(tiny_model(), "question-answering")
    with pytest.raises(InputError, match="scores need a sequence classification head"):
        evaluate(as_readable(bare), task.dev)
    swapped = TokenizedTask.of(renamed(tiny_model(), "even", "odd"), task, PLAIN)
    with pytest.raises(InputError, match="another order of classes; leave it out"):
        fit(tiny_model(), task, PLAIN, data=swapped)
    named = as_readable(with_label_names(other, task.labels))
    assert evaluate(named, task.dev) == evaluate(tiny_model(), task.dev)
