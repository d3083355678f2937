"""MMD points against NumPy in float64: distances, kernel, gradient and optimiser written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.methods.mmd import MMDPoints, bandwidth_and_mean, objective
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from tests.helpers.blocks import dense_block, normal, relative

D, M = 5, 20


def run(block, seed=0, **options):
    compressed = MMDPoints(0.25, **options).compress([block], Workspace(seed))
    return compressed.blocks[0], compressed.reports[0].details


def distances(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=-1)


def reference_bandwidth(neurons):
    return distances(neurons, neurons).sum() / (len(neurons) * (len(neurons) - 1)) / 4


def reference_mmd(neurons, points):
    """MMD by its definition."""
    beta = reference_bandwidth(neurons)

    def mean(a, b):
        return np.mean(sum(np.exp(-distances(a, b) / (beta * 2.0**r)) for r in range(5)))

    return np.sqrt(mean(neurons, neurons) + mean(points, points) - 2 * mean(neurons, points))


def reference_gradient(neurons, points):
    """dMMD²/dQ, pair by pair; a pair that coincides has none."""
    beta = reference_bandwidth(neurons)

    def pull(others):
        total = np.zeros_like(points)
        for i, point in enumerate(points):
            for other in others:
                distance = np.linalg.norm(point - other)
                if distance > 1e-9:
                    slope = sum(-np.exp(-distance / (beta * 2.0**r)) / (beta * 2.0**r) for r in range(5))
                    total[i] += slope * (point - other) / distance
        return total

    return 2 * pull(points) / len(points) ** 2 - 2 * pull(neurons) / (len(points) * len(neurons))


def reference_adamw(neurons, points, steps, rate):
    """All points on the way."""
    way = [points]
    mean, square = np.zeros_like(points), np.zeros_like(points)
    for step in range(1, steps + 1):
        gradient = reference_gradient(neurons, points)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        direction = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        points = points - rate * (direction + 1e-2 * points)
        way.append(points)
    return way


def unscaled(small):
    return np.asarray(neuron_vectors(small)) / 2


@pytest.mark.wide
@pytest.mark.parametrize(("rate", "best"), [(3e-2, "last"), (0.5, "on the way"), (100.0, "first")])
def test_points_are_the_best_of_the_reference(x64, rate, best):
    """25 steps: two calls of ten and a rest, from points that coincide with neurons."""
    block = dense_block(D, M, D)
    neurons = np.asarray(neuron_vectors(block))
    start = unscaled(run(block, steps=0)[0])
    assert all(np.abs(neurons - point).sum(axis=1).min() < 1e-14 for point in start)
    way = reference_adamw(neurons, start, 25, rate)
    values = [reference_mmd(neurons, points) for points in way]
    lowest = int(np.argmin(values))
    assert {0: "first", 25: "last"}.get(lowest, "on the way") == best
    small, details = run(block, steps=25, learning_rate=rate)
    np.testing.assert_allclose(unscaled(small), way[lowest], rtol=1e-8, atol=1e-9)
    assert details["mmd_start"] == pytest.approx(values[0], rel=1e-10)
    assert details["mmd"] == pytest.approx(min(values), rel=1e-10)


@pytest.mark.wide
def test_the_objective_falls():
    block = dense_block(D, M, D)
    values = [run(block, steps=steps, learning_rate=0.05)[1]["mmd"] for steps in (0, 100, 200)]
    assert values[0] > 1.01 * values[1] >= 1.01 * values[2]
    details = run(block)[1]
    assert details["mmd"] <= details["mmd_start"] == values[0]


def test_float32_keeps_its_digits_far_from_the_origin():
    """All neurons near one point: squared distances are differences of numbers 10⁴ times as large."""
    neurons = normal(1, M, 7) + 100
    points = neurons[:5] + 0.1
    bandwidth, constant = bandwidth_and_mean(neurons)
    value = float(constant + objective(points, neurons, bandwidth))
    expected = reference_mmd(np.asarray(neurons, np.float64), np.asarray(points, np.float64)) ** 2
    assert value == pytest.approx(expected, rel=1e-4)
    gradient = jax.grad(objective)(neurons[:5], neurons, bandwidth)
    expected = reference_gradient(np.asarray(neurons, np.float64), np.asarray(neurons[:5], np.float64))
    assert relative(gradient, jnp.asarray(expected, jnp.float32)) < 1e-3


@pytest.mark.wide
def test_neurons_that_all_coincide_have_a_gradient():
    one = dense_block(D, 1, D)
    block = one.replace(w1=jnp.tile(one.w1, (1, 8)), b1=jnp.tile(one.b1, 8), w2=jnp.tile(one.w2, (8, 1)))
    small, details = run(block, steps=3)
    assert details["mmd_start"] == 0.0
    # three steps of AdamW move an entry by little more than the learning rate each
    assert float(jnp.max(jnp.abs(small.w1 / 2 - block.w1[:, :2]))) < 4e-2


def test_weights_are_scaled_and_the_output_bias_is_not():
    block = dense_block(D, M, D)
    alone, scaled = run(block, steps=1)[0], run(block, steps=1, scale_b2=True)[0]
    np.testing.assert_array_equal(alone.b2, block.b2)
    np.testing.assert_allclose(scaled.b2, 2 * block.b2, rtol=1e-6)
    for name in ("w1", "b1", "w2"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(scaled, name))
    assert run(dense_block(D, M, D, biases=False), steps=1, scale_b2=True)[0].b2 is None


def test_relu_starts_as_a_random_subset_counted_m_over_c_times(x64):
    """√(m/c) on both sides of a ReLU is m/c."""
    block, x = dense_block(D, M, D, activation="relu"), normal(1, 6, D)
    small = run(block, steps=0)[0]
    hidden = jnp.maximum(x @ (small.w1 / 2) + (small.b1 / 2)[None, :], 0)
    assert relative(small(x), 4 * hidden @ (small.w2 / 2) + block.b2[None, :]) < 1e-14


def test_progress_is_told():
    told = []
    workspace = Workspace(0, progress=lambda what, fraction: told.append(fraction))
    MMDPoints(0.25, steps=25).compress([dense_block(D, M, D)], workspace)
    assert told == [0.0, 0.4, 0.8]


def test_options_out_of_range():
    with pytest.raises(InputError, match="steps must be at least 0; got -1"):
        MMDPoints(0.5, steps=-1)
    for rate in (0.0, float("nan")):
        with pytest.raises(InputError, match="learning_rate must be a number above 0"):
            MMDPoints(0.5, learning_rate=rate)
