from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.activations.intervals import Interval, derivative_on, tail
from ntkfusion.theory.activations.suprema import CLOSE, prove_suprema, prove_supremum, suprema


def test_every_digit_is_proven():
    proofs = prove_suprema()
    assert len(proofs) == 12
    assert all(proof.holds for proof in proofs), [proof for proof in proofs if not proof.holds]


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("which", ["l1", "osc", "l2", "l3"])
def test_smaller_and_larger_literals_are_refused(name, which):
    literal = getattr(suprema(name), which)
    assert not prove_supremum(name, which, literal - CLOSE).is_bound
    # above twice the margin even of a literal that is attained
    larger = prove_supremum(name, which, literal + CLOSE)
    assert larger.is_bound
    assert not larger.holds


def test_gelu_in_closed_form():
    """σ'' = φ(2 − h²) puts the extrema of σ' at ±√2; σ''' = φh(h² − 4) and σ'''' = −φ(h⁴ − 7h² + 4) the others."""
    density = lambda h: math.exp(-h * h / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    l1 = 0.5 * (1 + math.erf(1)) + math.sqrt(2) * density(math.sqrt(2))
    l2 = max(2 * density(0), 2 * density(2))
    roots = [math.sqrt((7 + sign * math.sqrt(33)) / 2) for sign in (1, -1)]
    l3 = max(abs(density(h) * h * (h * h - 4)) for h in roots)
    exact, found = np.array([l1, 2 * l1 - 1, l2, l3]), suprema("gelu")
    claimed = np.array([found.l1, found.osc, found.l2, found.l3])
    assert np.all(claimed >= exact)
    assert np.all(claimed - exact <= 1e-9 + 1e-14)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_enclosures_hold_the_derivatives(x64, name):
    f = derivatives(name)
    edges = np.linspace(-7.75, 7.75, 125)
    inside = edges[:-1, None] + np.diff(edges)[:, None] * np.linspace(0, 1, 7)
    far = np.array([-30.0, -12.0, -8.0, 8.0, 12.0, 30.0])
    before = np.asarray(f.value(jnp.asarray(inside)))
    for order, function in enumerate((f.first, f.second, f.third, None), start=1):
        boxes = derivative_on(name, Interval(edges[:-1], edges[1:]), order)
        # by the mean value theorem difference quotients of one derivative are values of the next
        values = [np.diff(before) / np.diff(inside)]
        if function is not None:
            before = np.asarray(function(jnp.asarray(inside)))
            values.append(before)
            limit = (far > 0) if order == 1 else 0.0
            assert np.all(np.abs(np.asarray(function(jnp.asarray(far))) - limit) <= tail(name, order, 8.0) + 1e-15)
        for value in values:
            assert np.all(value >= boxes.lo[:, None] - 1e-11)
            assert np.all(value <= boxes.hi[:, None] + 1e-11)
