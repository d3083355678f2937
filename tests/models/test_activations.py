"""Activations against JAX's own in float64, against mpmath in the tails, and the signs that kernels rely on."""

from __future__ import annotations

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.models.activations import ACTIVATIONS, ALIASES, far, get_activation
from tests.helpers.tiers import wide_unless

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


@partial(jax.jit, static_argnums=0)
def orders(name, h):
    """σ, σ' as it is written and by both modes, σ'' by both modes of σ and from σ': what anything may ask for."""
    value, slope = ACTIVATIONS[name].value, ACTIVATIONS[name].derivative
    forward = lambda f: lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),))[1]  # noqa: E731
    first = [slope, forward(value), jax.grad(value)]
    second = [forward(slope), jax.grad(slope), forward(jax.grad(value)), jax.grad(forward(value))]
    second += [forward(forward(value)), jax.grad(jax.grad(value))]
    return [jax.vmap(f)(h) for f in (value, *first)], [jax.vmap(f)(h) for f in second]


@pytest.mark.parametrize(
    ("name", "dtype"),
    wide_unless(
        lambda name, dtype: name == "gelu_tanh" and dtype in ("float16", "float32"),
        product(ACTIVATIONS, ["float16", "bfloat16", "float32", "float64"]),
    ),
)
def test_no_derivative_of_a_huge_number_is_nan(x64, name, dtype):
    """tanh GELU's inner h³ overflowed (from 60 on in float16, 1e13 in float32), and then a slope of 1 was NaN."""
    limit = float(jnp.finfo(dtype).max)
    powers = [exponent for exponent in (0, 1, 2, 3, 4, 6, 13, 19, 20, 37, 100, 154, 200, 300) if 10.0**exponent < limit]
    sizes = np.concatenate([10.0 ** np.array(powers), [60, 40, 30, 10, 7, 800, limit, np.inf]])
    h = jnp.asarray(np.concatenate([sizes, -sizes]), dtype)
    (value, *first), second = orders(name, h)
    with jax.enable_x64(True):
        exact, (bend, *_) = orders(name, jnp.clip(h.astype(jnp.float64), -1e3, 1e3))
    sizes = np.abs(np.asarray(h, np.float64))
    # derived, a logistic function s is s (1 − s): the rounding of 1 − s is multiplied by h u'(h)², 1000 at h = 7
    steps = 1000 if (name, dtype) == ("gelu_tanh", "float64") else 16
    finite, tolerance = np.isfinite(sizes), steps * float(jnp.finfo(dtype).eps)

    def close(found, expected):
        np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=tolerance)

    close(np.asarray(value, np.float64)[finite] / sizes[finite], exact[0][finite] / np.minimum(sizes[finite], 1e3))
    np.testing.assert_array_equal(np.asarray(value, np.float64)[~finite], [np.inf, 0])
    for found in first:
        close(found, exact[1])
    for found in second:
        close(found, bend)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_activations_do_not_jump_where_they_saturate(x64, name, dtype):
    """Beside the point from which on the formula is not used, it says the same; and NaN stays NaN."""
    limit = far(name, jnp.dtype(dtype))
    at = jnp.asarray([limit, -limit], dtype)
    beyond = at * jnp.asarray(1.01, dtype)
    assert bool(jnp.all(jnp.abs(beyond) > limit))
    for function in (ACTIVATIONS[name].value, ACTIVATIONS[name].derivative):
        near, outside = function(at), function(beyond)
        scale = at if function is ACTIVATIONS[name].value else jnp.ones_like(at)
        assert near.tolist() == [float(scale[0]), 0]
        assert outside.tolist() == [float(beyond[0] if scale is at else 1), 0]
        assert bool(jnp.isnan(function(jnp.asarray(jnp.nan, dtype))))


def test_aliases_are_other_names_of_the_same():
    for alias, name in ALIASES.items():
        assert get_activation(alias) is ACTIVATIONS[name]
    for name in ACTIVATIONS:
        assert get_activation(name).name == name


def test_unknown_activation():
    with pytest.raises(InputError, match=r"unknown activation 'swiglu'; known: relu, gelu, gelu_tanh, silu"):
        get_activation("swiglu")
