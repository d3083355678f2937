from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.theory.activations.derivatives import derivatives

SMOOTH = [name for name in ACTIVATIONS if name != "relu"]


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_each_is_the_derivative_of_the_one_before(x64, name):
    functions = derivatives(name)
    chain = [functions.value, functions.first, functions.second, functions.third]
    # 0 left out: ReLU has a kink there
    h = jnp.concatenate([jnp.linspace(-9, 9, 400), jnp.array([-30.0, -1e-8, 1e-8, 30.0])])
    for lower, upper in itertools.pairwise(chain):
        np.testing.assert_allclose(upper(h), jax.vmap(jax.grad(lower))(h), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SMOOTH)
def test_tails_keep_relative_accuracy(x64, name):
    # h σ'' decays like the factor it is made of: compare with the leading term, written out in logarithms
    h = jnp.array([-20.0, -8.0, 8.0, 20.0])
    t = jnp.abs(h)
    leading = {
        "gelu": -(t**2) * jnp.exp(-0.5 * t**2) / jnp.sqrt(2 * jnp.pi),
        "silu": -t * jnp.exp(-t),
        "gelu_tanh": -t
        * (1.5957691216057308 * (1 + 3 * 0.044715 * t**2)) ** 2
        * jnp.exp(-1.5957691216057308 * (t + 0.044715 * t**3)),
    }[name]
    ratio = derivatives(name).second(h) / leading
    assert bool(jnp.all((ratio > 0.6) & (ratio < 1.1)))


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_far_away_nothing_overflows(x64, name):
    functions = derivatives(name)
    h = jnp.array([-1e300, -1e155, 1e155, 1e300])
    np.testing.assert_array_equal(functions.first(h), [0, 0, 1, 1])
    np.testing.assert_array_equal(functions.second(h), 0)
    np.testing.assert_array_equal(functions.third(h), 0)
