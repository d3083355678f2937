"""Linearised training against the closed form by the network kernel, and against real training at small rates."""

from __future__ import annotations

import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.training.batches import encode, minibatches
from ntkfusion.training.linearised import curve_distance, linearised_training
from ntkfusion.training.optimizer import Group
from ntkfusion.training.recipe import Recipe
from tests.helpers.small_encoders import random_weights
from tests.helpers.tiny_training import CONFIG, in_double, random_encoded, relative

PLAIN = Recipe(
    optimizer="sgd", schedule="constant", warmup=0.0, weight_decay=0.0, clip_norm=None, epochs=1, batch_size=6
)
QUICK = pytest.mark.usefixtures("quick_compilation")
SCORES = dataclasses.replace(CONFIG, num_labels=1)


def batch_of(config, count=6, *, scores=False):
    """One batch of sentences of different lengths, one of its rows filled up."""
    encoded = dataclasses.replace(random_encoded(count, 0, longest=7), types=None)
    arrays = encoded.batch(range(count), count + 1, 8)
    labels = np.random.default_rng(1).normal(size=count + 1) if scores else arrays["labels"]
    return {**arrays, "labels": labels}


@pytest.mark.wide
@QUICK
def test_plain_descent_on_squares_follows_the_network_kernel(x64):
    """f_n = y + (I − (2/N) Σ_g η_g K_g)^n (f_0 − y), K_g the kernel of a group of parameters with rate η_g."""
    model = in_double(random_weights(SCORES, 0.3))
    arrays, count = batch_of(SCORES, scores=True), 6

    def f(params, example):
        inputs = {name: array[None] for name, array in example.items()}
        return Model(SCORES, params).apply(params, **inputs).logits[0]

    examples = {name: jnp.asarray(arrays[name][:count]) for name in ("input_ids", "attention_mask")}
    selected = {"mlp": "*/mlp/*", "rest": lambda path: not path.startswith("embeddings/")}
    kernels = nf.network_kernel(f, model.params, examples, groups=selected)
    kernel = np.asarray(3 * kernels["mlp"] + kernels["rest"])[:, :, 0, 0]
    rate = 0.4 * count / np.linalg.eigvalsh(kernel).max()
    groups = [Group("embeddings/*", 0.0), Group("*/mlp/*", 3.0)]
    recipe = dataclasses.replace(PLAIN, learning_rate=float(rate))
    found = linearised_training(model, [arrays] * 6, recipe, is_regression=True, groups=groups, dev=[arrays], every=4)

    assert found.dev_steps == (0, 4, 6)
    first, target = found.real.dev_logits[0][:, 0], arrays["labels"][:count]
    np.testing.assert_array_equal(found.predicted.dev_logits[0][:, 0], first)
    decay = np.eye(count) - 2 * rate / count * kernel
    expected = [target + np.linalg.matrix_power(decay, n) @ (first - target) for n in range(7)]
    for step, logits in zip(found.dev_steps, found.predicted.dev_logits, strict=True):
        assert relative(logits[:, 0], expected[step]) < 1e-10
    losses = [np.mean((f_n - target) ** 2) for f_n in expected[:6]]
    assert relative(found.predicted.losses, losses) < 1e-10
    # far enough for the two to part: the test would see a linearisation that is not one
    assert relative(found.real.dev_logits[-1][:, 0], expected[6]) > 1e-2
    assert curve_distance(found.real.losses, found.predicted.losses) > 1e-3


@pytest.mark.wide
@QUICK
def test_half_the_rate_has_a_quarter_of_the_error(x64):
    """AdamW with decay on two classes: real − linearised = O(rate²)."""
    model, arrays = in_double(random_weights(CONFIG, 0.3)), batch_of(CONFIG)
    recipe = Recipe(learning_rate=1e-3, eps=1e-3, epochs=1)
    errors = []
    for share in (0.2, 0.1):
        groups = [Group("*", jnp.asarray(share))]  # an array, so that both rates are one program
        found = linearised_training(model, [arrays] * 5, recipe, groups=groups, num_updates=9)
        assert found.real.losses[0] == found.predicted.losses[0]
        errors.append(abs(found.real.losses[-1] - found.predicted.losses[-1]))
        assert found.real.losses[0] - found.real.losses[-1] > 50 * errors[-1]
    print(f"\nerrors {errors}, ratio {errors[0] / errors[1]:.3f}")
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_what_makes_no_sense_is_refused():
    model, arrays = random_weights(CONFIG, 0.3), batch_of(CONFIG)
    bare = dataclasses.replace(model, config=dataclasses.replace(CONFIG, head=None, num_labels=None))
    half = dataclasses.replace(PLAIN, precision="bfloat16")
    for wrong, match in [
        (lambda: linearised_training(bare, [arrays], PLAIN), "head"),
        (lambda: linearised_training(model, [], PLAIN), "batches are needed"),
        (lambda: linearised_training(model, [arrays] * 2, PLAIN, num_updates=1), "1 to 1 batches"),
        (lambda: linearised_training(model, [arrays], half), "float32"),
        (lambda: linearised_training(model, [arrays], PLAIN, every=0), "every"),
        (lambda: linearised_training(model, [arrays], PLAIN, groups=[Group("decoder/*", 0.0)]), "no parameter fits"),
        (lambda: curve_distance(np.ones(2), np.ones(3)), "as many"),
        (lambda: curve_distance(np.zeros(2), np.ones(2)), "0 everywhere"),
        (lambda: curve_distance(np.ones(2), np.array([1, np.nan])), "finite"),
    ]:
        with pytest.raises(InputError, match=match):
            wrong()


@pytest.mark.slow
def test_minilm_at_a_small_rate(minilm, data_dir):
    """The first updates of fine-tuning on SST-2, embeddings frozen: a smaller rate is predicted better."""
    task = nf.load_task("sst2", data_dir=data_dir).subsampled(train=256, dev=32, seed=0)
    model = nf.with_new_head(minilm, "sequence-classification", num_labels=2)
    encoded = encode(model, task.train, max_length=32)
    batches = [batch.arrays for batch in minibatches(encoded, Recipe(batch_size=16), [32], seed=0)][:10]
    distances = []
    for rate in (1e-4, 1e-5):
        recipe = Recipe(learning_rate=rate, batch_size=16, schedule="constant", warmup=0.0)
        start = time.perf_counter()
        found = linearised_training(model, batches, recipe, groups=[Group("embeddings/*", 0.0)], every=5)
        distances.append(curve_distance(found.real.losses, found.predicted.losses))
        print(f"\nrate {rate}: {time.perf_counter() - start:.0f} s, distance {distances[-1]:.2e}")
        print(np.round(found.real.losses, 4), np.round(found.predicted.losses, 4))
    assert distances[1] < 0.5 * distances[0]
    assert distances[1] < 1e-2
