"""Importance of weights against dense Jacobians."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.neurons import by_output, first_order, fisher, l1
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.kernels.oracles.dense_jacobian import block_function, jacobian
from ntkfusion.models.activations import ACTIVATIONS
from tests.helpers.blocks import dense_block, normal, relative
from tests.helpers.tiers import wide_unless


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("activation", wide_unless(lambda name: name in ("gelu", "relu"), ACTIVATIONS))
def test_fisher_is_the_diagonal_of_the_gauss_newton_matrix(x64, activation, biases):
    block, x = dense_block(activation=activation, biases=biases), normal(1, 9, 5)
    jac = jacobian(*block_function(block), x)
    scores = fisher(block, 0, Workspace(0, [x]))
    for name, weights in (("w1", block.w1), ("w2", block.w2)):
        dense = jnp.mean(jnp.sum(jac[name] ** 2, axis=1), axis=0).reshape(weights.shape)
        assert relative(scores[name], dense) <= 1e-13


def test_first_order_is_the_change_of_the_outputs(x64):
    """Relu makes the outputs linear in one weight as long as no sign flips: w2 always, exactly."""
    block, x = dense_block(activation="relu"), normal(1, 9, 5)
    scores = first_order(block, 0, Workspace(0, [x]))["w2"]
    without = block.replace(w2=block.w2.at[2, 1].set(0.0))
    change = jnp.sqrt(jnp.mean(jnp.sum((block(x) - without(x)) ** 2, axis=1)))
    assert float(scores[2, 1]) == pytest.approx(float(change), rel=1e-12)


def test_squared_gradients_of_a_task_go_first():
    block = dense_block()
    given = {"w1": jnp.abs(normal(2, 5, 7)), "w2": jnp.abs(normal(3, 7, 3)), "b1": jnp.ones(7)}
    scores = fisher(block, 1, Workspace(0, squared_gradients=[{}, given]))
    np.testing.assert_array_equal(scores["w1"], given["w1"])
    np.testing.assert_array_equal(scores["w2"], given["w2"])


def test_magnitudes_by_output():
    block = dense_block()
    scores = l1(block, 0, Workspace(0))
    np.testing.assert_allclose(by_output(scores["w1"]), np.abs(block.w1).sum(0), rtol=1e-6)
    assert by_output(scores["w2"]).shape == (3,)


def test_says_what_is_missing():
    block = dense_block()
    with pytest.raises(InputError, match="needs calibration inputs"):
        fisher(block, 0, Workspace(0))
    with pytest.raises(InputError, match=r"of w2 must have its shape \(7, 3\); got only w1"):
        fisher(block, 0, Workspace(0, squared_gradients=[{"w1": jnp.ones((5, 7))}]))
    with pytest.raises(InputError, match=r"its shape \(5, 7\); got shape \(7, 5\)"):
        fisher(block, 0, Workspace(0, squared_gradients=[{"w1": jnp.ones((7, 5))}]))
    for value in (-1.0, jnp.nan):
        given = {"w1": jnp.ones((5, 7)), "w2": jnp.ones((7, 3)).at[0, 0].set(value)}
        with pytest.raises(InputError, match="of w2 must be finite and at least 0"):
            fisher(block, 0, Workspace(0, squared_gradients=[given]))
