"""Activations against JAX's own in float64, against mpmath in the tails, and the signs that kernels rely on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.models.activations import ACTIVATIONS, ALIASES, get_activation

REFERENCE = {
    "relu": jax.nn.relu,
    "gelu": lambda h: jax.nn.gelu(h, approximate=False),
    "gelu_tanh": lambda h: jax.nn.gelu(h, approximate=True),
    "silu": jax.nn.silu,
}
SMOOTH = ("gelu", "gelu_tanh", "silu")


def exact(name, h):
    """σ(h) and σ'(h) with 60 digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        h = mpmath.mpf(h)
        functions = {
            "gelu": lambda t: t * mpmath.erfc(-t / mpmath.sqrt(2)) / 2,
            "gelu_tanh": lambda t: t / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (t + 0.044715 * t**3))),
            "silu": lambda t: t / (1 + mpmath.exp(-t)),
        }
        return float(functions[name](h)), float(mpmath.diff(functions[name], h))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_derivative_in_float64(x64, name):
    h = jnp.asarray(np.linspace(-4, 6, 401))
    activation = ACTIVATIONS[name]
    np.testing.assert_allclose(activation.value(h), REFERENCE[name](h), rtol=1e-10, atol=1e-13)
    slopes = jax.vmap(jax.grad(REFERENCE[name]))(h)
    np.testing.assert_allclose(activation.derivative(h), slopes, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(activation.derivative(h), jax.vmap(jax.grad(activation.value))(h), atol=1e-13)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("h", [-12.0, -8.0, -6.0, -3.0, 3.0, 8.0])
def test_tails(x64, name, h):
    value, derivative = exact(name, h)
    activation = ACTIVATIONS[name]
    np.testing.assert_allclose(activation.value(jnp.asarray(h)), value, rtol=1e-12)
    np.testing.assert_allclose(activation.derivative(jnp.asarray(h)), derivative, rtol=1e-11)


@pytest.mark.parametrize("name", SMOOTH)
def test_float32_is_close_to_float64(name):
    h = np.linspace(-6, 6, 301)
    activation = ACTIVATIONS[name]
    single = [function(jnp.asarray(h, jnp.float32)) for function in (activation.value, activation.derivative)]
    with jax.enable_x64(True):
        double = [function(jnp.asarray(h)) for function in (activation.value, activation.derivative)]
    for found, expected in zip(single, double, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("h", [-12.0, -8.0, -6.0, -2.0, -1e-4, 1e-4, 2.0, 12.0])
def test_signs_in_float32_are_the_exact_ones(name, h):
    value, derivative = exact(name, h)
    activation = ACTIVATIONS[name]
    h = jnp.asarray(h, jnp.float32)
    assert activation.value_sign(h) == np.sign(value)
    assert activation.derivative_sign(h) == np.sign(derivative)
    assert np.sign(value) != 0


@pytest.mark.parametrize("h", [-12.0, -1e-30, 0.0, 1e-30, 3.0])
def test_relu_is_a_step(h):
    relu, h = ACTIVATIONS["relu"], jnp.asarray(h, jnp.float32)
    expected = 1.0 if h > 0 else 0.0
    assert relu.derivative(h) == relu.derivative_sign(h) == relu.value_sign(h) == expected


@pytest.mark.parametrize("name", SMOOTH)
def test_derivative_changes_its_sign_at_the_root(x64, name):
    activation = ACTIVATIONS[name]
    below, above = (activation.derivative(jnp.asarray(activation.derivative_zero + step)) for step in (-1e-9, 1e-9))
    assert below < 0 < above
    grid = jnp.asarray(np.linspace(-10, 10, 2001))
    np.testing.assert_array_equal(activation.derivative_sign(grid), jnp.sign(activation.derivative(grid)))


def test_aliases_are_other_names_of_the_same():
    for alias, name in ALIASES.items():
        assert get_activation(alias) is ACTIVATIONS[name]
    for name in ACTIVATIONS:
        assert get_activation(name).name == name


def test_unknown_activation():
    with pytest.raises(InputError, match=r"unknown activation 'swiglu'; known: relu, gelu, gelu_tanh, silu"):
        get_activation("swiglu")
