from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.activations.majorants import Supremum, crosses, majorants
from ntkfusion.theory.activations.suprema import supremum_on

#: Rounding of the differences below, in units of |h| + |Δ| (values) and 1 (slopes).
ROUNDING = 16 * 2.0**-53


def excess(name: str, h: jax.Array, delta: jax.Array, supremum: Supremum = supremum_on) -> dict[str, jax.Array]:
    """How far each quantity lies above its bound, rounding granted."""
    f, bound = derivatives(name), majorants(name, h, delta, supremum=supremum)
    a, ã, g, g̃, curve = f.value(h + delta), f.value(h), f.first(h + delta), f.first(h), f.second(h)
    size = ROUNDING * (jnp.abs(h) + jnp.abs(delta))
    square = 0.5 * curve * delta * delta
    return {
        "value": jnp.abs(a - ã) - bound.value - size,
        "remainder": jnp.abs(a - ã - g̃ * delta) - bound.remainder - size,
        "third": jnp.abs(a - ã - g̃ * delta - square) - bound.third - size - ROUNDING * jnp.abs(square),
        "slope": jnp.abs(g - g̃) - bound.slope - ROUNDING,
        "slope_second": jnp.abs(g - g̃ - curve * delta) - bound.slope_second - ROUNDING * (1 + jnp.abs(curve * delta)),
    }


def draws(seed: int, count: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    h, delta = (rng.normal(size=(1, count)) * 10 ** rng.uniform(-3, 3, (1, count)) for _ in range(2))
    return jnp.asarray(h), jnp.asarray(delta)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_bounds_hold(x64, name):
    found = jax.jit(excess, static_argnums=0)(name, *draws(0, 200_000))
    assert all(bool(jnp.all(value <= 0)) for value in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_bounds_hold_on_millions(x64, name):
    program = jax.jit(excess, static_argnums=0)
    for seed in range(20):
        found = program(name, *draws(seed, 500_000))
        assert all(bool(jnp.all(value <= 0)) for value in found.values()), found


@pytest.mark.parametrize("name", ["gelu", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gelu_tanh", "silu"))])
def test_bounds_are_close(x64, name):
    """Twice too large at most, for moderate shifts: a bound could hold because it is huge."""
    h, delta = jnp.linspace(-3, 3, 101)[None, :], jnp.full((1, 101), 0.3)
    f, bound = derivatives(name), majorants(name, h, delta)
    remainder = jnp.abs(f.value(h + delta) - f.value(h) - f.first(h) * delta)
    assert float(jnp.median(bound.remainder / remainder)) < 1.5
    slope = jnp.abs(f.first(h + delta) - f.first(h))
    assert float(jnp.median(bound.slope / slope)) < 1.5


@pytest.mark.parametrize("smaller", [2, 3])
def test_smaller_suprema_are_noticed(x64, smaller):
    def supremum(name, order, start, end):
        return (0.8 if order == smaller else 1.0) * supremum_on(name, order, start, end)

    found = excess("gelu", *draws(0, 20_000), supremum)
    assert any(bool(jnp.any(value > 0)) for value in found.values())


def test_no_shift_no_change(x64):
    h = jnp.array([[-1.0, 0.0, 2.0]])
    for name in ("relu", "silu"):
        assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(majorants(name, h, jnp.zeros_like(h))))


def test_crossing(x64):
    h, delta = jnp.array([1.0, 1.0, -1.0, -1.0, 0.0, 0.0]), jnp.array([-2.0, 2.0, 2.0, -2.0, 1.0, 0.0])
    assert crosses(0.0, h, delta).tolist() == [True, False, True, False, True, False]
    assert crosses(2.0, h, delta).tolist() == [False, True, False, False, False, False]
    assert crosses(0.0, h, delta, jnp.full(6, 1.0)).tolist() == [True] * 6
