"""One update: parts of a batch, rows of weight 0, padding, precision, frozen parameters and rates of their own."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.training.optimizer import changed_rates, cluster_rates, rates_of
from ntkfusion.training.recipe import Recipe
from ntkfusion.utils.parameter_paths import flatten
from tests.helpers.tiny_training import duplicated, in_double, random_encoded, relative, tiny_model, train

PLAIN = Recipe(
    learning_rate=0.1, optimizer="sgd", schedule="constant", warmup=0.0, weight_decay=0.0, clip_norm=None, dropout=False
)
FAST = dataclasses.replace(PLAIN, learning_rate=1.0)
ADAM = dataclasses.replace(PLAIN, learning_rate=1e-3, optimizer="adamw", weight_decay=0.1, clip_norm=0.5)


def close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    worst = max(relative(found[path], expected[path]) for path in expected)
    assert worst <= tolerance, worst


@pytest.mark.usefixtures("x64")
def test_parts_of_a_batch_and_what_is_no_example_change_nothing():
    model, encoded = in_double(tiny_model()), random_encoded(16, 0)
    rows = [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12]]  # the second one has a part without any example
    batches = [encoded.batch(each, 8, 11) for each in rows]
    expected, told = train(model, ADAM, batches)
    parts, told_parts = train(model, dataclasses.replace(ADAM, accumulation=4), batches)
    close(parts, expected, 1e-12)
    for one, other in zip(told, told_parts, strict=True):
        assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-12)
    # 3 rows more that weigh nothing, whatever they hold, and 5 columns more of padding
    larger = [encoded.batch(each, 11, 16) for each in rows]
    for arrays, each in zip(larger, rows, strict=True):
        arrays["input_ids"][len(each) :], arrays["labels"][len(each) :] = 7, 1
        arrays["attention_mask"][len(each) :] = 1
    close(train(model, ADAM, larger)[0], expected, 1e-12)


@pytest.mark.slow
def test_half_precision_keeps_parameters_whole():
    model, encoded = tiny_model(), random_encoded(8, 0)
    batches = [encoded.batch(range(8), 8, 11)] * 2
    whole, told = train(model, ADAM, batches)
    half, told_half = train(model, dataclasses.replace(ADAM, precision="bfloat16"), batches)
    assert {leaf.dtype for leaf in half.values()} == {jnp.dtype("float32")}
    losses = [[float(measured.loss) for measured in each] for each in (told, told_half)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert losses[0] != losses[1]
    # matrices that move by a rate per update, to one side or the other
    moved = {path: np.abs(np.asarray(half[path] - whole[path])).max() for path in whole}
    assert max(moved.values()) <= 2 * 2.1 * ADAM.learning_rate


def test_frozen_parameters_constants_and_rates():
    _, fused, _ = duplicated(tiny_model(), np.arange(1, 13))
    flat, encoded = flatten(fused.params), random_encoded(8, 0)
    before = {path: np.array(leaf) for path, leaf in flat.items()}
    constants = jax.tree.map(np.array, fused.constants)
    frozen = [path for path in flat if path.startswith("embeddings")]
    halved = "layer_0/mlp/w2"
    batches = [encoded.batch(range(8), 8, 11)]
    expected, _ = train(fused, FAST, batches, frozen=frozen, rates={halved: jnp.float32(1)})
    found, _ = train(fused, FAST, batches, frozen=frozen, rates={halved: jnp.float32(0.5)})
    for path in flat:
        if path in frozen:
            assert np.array_equal(found[path], before[path])
        elif path == halved:
            np.testing.assert_allclose(found[path] - before[path], (expected[path] - before[path]) / 2, atol=1e-7)
            assert np.abs(expected[path] - before[path]).max() > 1e-4
        else:
            assert np.array_equal(found[path], expected[path])
            # attention does not change when all keys move together
            assert path.endswith("key/bias") or not np.array_equal(found[path], before[path]), path
    assert all(
        np.array_equal(*pair) for pair in zip(jax.tree.leaves(fused.constants), jax.tree.leaves(constants), strict=True)
    )


@pytest.mark.wide
@pytest.mark.usefixtures("x64")
def test_cluster_rates_make_v1_follow_the_original():
    """docs/training.md, "Rates of centroids", for the whole network."""
    copies = np.array([1, 2, 3, 1, 5, 1, 1, 2, 1, 4, 1, 3])
    whole, fused, places = duplicated(in_double(tiny_model()), copies)
    encoded = random_encoded(80, 0)
    batches = [encoded.batch(range(4 * start, 4 * start + 4), 4, 11) for start in range(20)]
    rates = changed_rates(rates_of(list(flatten(fused.params)), cluster_rates(fused)))
    expected, told = train(whole, FAST, batches)
    found, told_fused = train(fused, FAST, batches, rates=rates)
    expanded = dict(found)
    for name, axis in (("w1", 1), ("b1", 0), ("w2", 0)):
        expanded[f"layer_0/mlp/{name}"] = jnp.take(found[f"layer_0/mlp/{name}"], places, axis=axis)
    close(expanded, expected, 1e-10)
    np.testing.assert_allclose([m.loss for m in told_fused], [m.loss for m in told], rtol=1e-10)
    first, last = flatten(whole.params)["layer_0/mlp/w1"], expected["layer_0/mlp/w1"]
    assert relative(last, first) > 0.01, "nothing moved"
    # with the rates of all others V1 goes elsewhere
    other, _ = train(fused, FAST, batches, rates=jax.tree.map(jnp.ones_like, rates))
    assert relative(other["layer_0/mlp/w1"], found["layer_0/mlp/w1"]) > 1e-3
