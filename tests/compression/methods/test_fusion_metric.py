"""The data-aware metric: moments, sensitivities, and what it buys on real blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.methods.mlp_fusion import (
    LEAST_WEIGHT,
    SHRINKAGE,
    MLPFusion,
    data_coordinates,
    plain_coordinates,
    root_of_moments,
    sensitivities,
)
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.compression.workspace import Workspace
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.data.text import sample_sentences
from ntkfusion.errors import InputError
from ntkfusion.kernels.distance.kernel_distance import relative_error
from tests.helpers.blocks import dense_block, normal


def test_root_measures_mean_squares_of_preactivations(x64):
    x, u = normal(0, 50, 4), normal(1, 4)
    mean_square = np.mean(np.asarray(x @ u) ** 2)
    average = np.mean(np.asarray(x) ** 2)
    expected = (1 - SHRINKAGE) * mean_square + SHRINKAGE * average * np.sum(np.asarray(u) ** 2)
    assert float(jnp.sum((u @ root_of_moments(x)) ** 2)) == pytest.approx(expected)
    assert bool(jnp.all(jnp.isfinite(root_of_moments(jnp.zeros((3, 4))))))


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_sensitivities_are_mean_squares_of_the_first_order_changes(x64, activation):
    """‖∂f/∂b_i‖² and ‖∂f/∂v_i‖² by automatic differentiation; outputs are linear in v."""
    block, x = dense_block(3, 5, 2, activation=activation), normal(1, 40, 3)
    through, out = sensitivities(block, x)
    by_bias = jax.jacobian(lambda b1: block.replace(b1=b1)(x))(block.b1)
    by_output = jax.jacobian(lambda w2: block.replace(w2=w2)(x)[:, 0])(block.w2)[:, :, 0]
    np.testing.assert_allclose(through, jnp.mean(jnp.sum(by_bias**2, axis=1), axis=0), rtol=1e-10)
    np.testing.assert_allclose(out, jnp.mean(by_output**2, axis=0), rtol=1e-10)


@pytest.mark.wide
@pytest.mark.parametrize("biases", [True, False])
def test_squared_distances_add_the_two_mean_squares(x64, monkeypatch, biases):
    monkeypatch.setattr("ntkfusion.compression.methods.mlp_fusion.SHRINKAGE", 0.0)
    block, x = dense_block(3, 6, 2, biases=biases), normal(1, 40, 3)
    points, weights = data_coordinates(block, x, 2.0)
    through, out = sensitivities(block, x)
    distance = jnp.sum((points[0] - points[1]) ** 2)
    h = block.preactivation(x)
    expected = 2 * through.mean() * jnp.mean((h[:, 0] - h[:, 1]) ** 2)
    expected += out.mean() * jnp.sum((block.w2[0] - block.w2[1]) ** 2)
    assert float(distance) == pytest.approx(float(expected))
    relative = np.sqrt((through / through.mean() + out / out.mean()) / 2)
    np.testing.assert_allclose(weights, np.maximum(relative, LEAST_WEIGHT))


def test_silent_neurons_keep_a_weight():
    block = dense_block(3, 6, 2, activation="relu")
    for b1 in (block.b1.at[2].set(-1e3), block.b1 - 1e3):
        points, weights = data_coordinates(block.replace(b1=b1), normal(1, 40, 3), 1.0)
        assert bool(jnp.all(jnp.isfinite(points))) & bool(jnp.all(weights > 0))


def test_plain_coordinates_are_the_neurons():
    block = dense_block(3, 6, 2)
    np.testing.assert_array_equal(plain_coordinates(block, 1.0).points, neuron_vectors(block))
    np.testing.assert_allclose(plain_coordinates(block, 4.0).points[:, :4], 2 * neuron_vectors(block)[:, :4], rtol=1e-6)


def test_needs_calibration_inputs():
    with pytest.raises(InputError, match="calibration inputs"):
        MLPFusion(metric="data").compress([dense_block()], Workspace(0))


@pytest.mark.wide
def test_lowers_the_error_on_other_sentences(minilm):
    """On text that it has not seen, by a tenth at least, with the same number of neurons."""
    sentences, layer = sample_sentences(), 4
    calibration, held_out = (
        collect_block_inputs(minilm, part, max_tokens=512, seed=0).inputs[layer]
        for part in (sentences[::2], sentences[1::2])
    )
    block, workspace = minilm.mlp_blocks()[layer], Workspace(0, [calibration])
    plain, data = (
        relative_error(MLPFusion(metric=metric, num_restarts=1).compress([block], workspace).blocks[0](held_out), exact)
        for exact in [block(held_out)]
        for metric in ("plain", "data")
    )
    assert data < 0.9 * plain
