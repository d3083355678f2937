from __future__ import annotations

from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.blocks.evaluation import evaluate
from ntkfusion.theory.blocks.pairs import pair_blocks
from ntkfusion.theory.blocks.rounding import ACTIVATION_ULPS, UNIT, output_allowance

getcontext().prec = 60
#: π to 60 digits.
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
POINTS = [-38.0, -12.7, -6.1, -3.3, -1.4, -0.75, -0.1, -1e-9, 0.0, 1e-7, 0.3, 0.9, 1.41, 2.2, 4.9, 8.3, 21.0, 37.0]


def gauss_parts(h: Decimal) -> tuple[Decimal, Decimal]:
    """Φ and φ, Φ by its series, which for negative h would cancel."""
    density = (-h * h / 2).exp() / (2 * PI).sqrt()
    getcontext().prec = 400
    term = total = abs(h)
    for k in range(1, 2500):
        term = term * h * h / (2 * k + 1)
        total += term
        if term < total * Decimal(10) ** -390:
            break
    half = (-h * h / 2).exp() / (2 * _pi_400()).sqrt() * total
    value = Decimal("0.5") + (half if h > 0 else -half)
    getcontext().prec = 60
    return +value, density


def _pi_400() -> Decimal:
    """Machin's formula."""

    def arctan(inverse: int) -> Decimal:
        power = total = Decimal(1) / inverse
        for k in range(1, 600):
            power = -power / (inverse * inverse)
            total += power / (2 * k + 1)
        return total

    return 4 * (4 * arctan(5) - arctan(239))


def exact(name: str, h: Decimal) -> list[Decimal]:
    """σ, σ' and σ'' in 60 digits, from definitions and not from the code's formulas."""
    if name == "relu":
        return [max(h, Decimal(0)), Decimal(h > 0), Decimal(0)]
    if name == "gelu":
        cumulative, density = gauss_parts(h)
        return [h * cumulative, cumulative + h * density, density * (2 - h * h)]
    slope, cubic = 2 * (2 / PI).sqrt(), Decimal("0.044715")
    if name == "silu":
        slope, cubic = Decimal(1), Decimal(0)
    u, u1, u2 = slope * (h + cubic * h**3), slope * (1 + 3 * cubic * h * h), 6 * slope * cubic * h
    s = 1 / (1 + (-u).exp())
    s1, s2 = s * (1 - s), s * (1 - s) * (1 - 2 * s)
    p1, p2 = s1 * u1, s2 * u1 * u1 + s1 * u2
    return [h * s, s + h * p1, 2 * p1 + h * p2]


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations_are_evaluated_within_the_stated_error(x64, name):
    functions = derivatives(name)
    found = [np.asarray(f(jnp.array(POINTS))) for f in (functions.value, functions.first, functions.second)]
    for i, point in enumerate(POINTS):
        wanted = exact(name, Decimal(point))
        for order, scale in enumerate((abs(point), 1.0, 1.0)):
            error = abs(Decimal(float(found[order][i])) - wanted[order])
            assert error <= Decimal(ACTIVATION_ULPS * UNIT * scale), (name, order, point, error)


@pytest.mark.wide
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_outputs_of_equal_functions_differ_less_than_the_allowance_and_not_by_much_less(x64, scale):
    """V4 of a block with one neuron per cluster computes the same numbers by other operations."""
    keys = jax.random.split(jax.random.key(0), 5)
    w1, b1, w2, x = (scale * jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=False))
    block = nf.MLPBlock(w1, b1, w2, None, activation="gelu")
    r = jnp.exp(jax.random.normal(keys[4], (b1.shape[0],)))
    other = nf.MLPBlock(w1 / r[None, :], b1 / r, w2 * r[:, None], None, q=1 / r, r=r, activation="gelu")
    pair = pair_blocks(block, other, jnp.arange(b1.shape[0]))
    allowance = output_allowance(pair, evaluate(pair, x).rounding)
    difference = jnp.abs(block(x) - other(x))
    assert bool(jnp.all(difference <= allowance))
    assert float(jnp.max(difference)) > 0
    assert float(jnp.median(allowance) / jnp.median(jnp.abs(block(x)))) < 1e-9


SHAPES = [(6, 9), (9,), (9, 4), (30, 6)]


def test_float32_is_refused(x64):
    keys = jax.random.split(jax.random.key(0), 4)
    w1, b1, w2, x = (jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES, strict=True))
    block = nf.MLPBlock(w1, b1, w2, None)
    with pytest.raises(nf.InputError, match="float64"):
        nf.theory.output_bound(block, block, x.astype(jnp.float32))
    half = nf.MLPBlock(w1.astype(jnp.float32), b1.astype(jnp.float32), w2.astype(jnp.float32), None)
    with pytest.raises(nf.InputError, match="float64"):
        nf.theory.sgd_kernel_bound(half, half, x.astype(jnp.float32))
