"""Limits of the output error: never violated, closing with the share, and dependent on their remainder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfusion.errors import InputError
from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.theory.enclosures import output_enclosure as tight_output
from ntkfusion.theory.enclosures.output_enclosure import output_directions, output_enclosure
from tests.helpers.enclosure_cases import OUTPUTS, random_case

SHARES = (0.0, 0.5, 1.0)


def measured(original, fused, x):
    return np.linalg.norm(np.asarray(original(x) - fused(x)), axis=1)


def check(seed, activation, scale, clusters, **kind):
    original, fused, labels, x = random_case(seed, activation, scale, **kind)
    directions = output_directions(original, labels if clusters else None, x[:3])
    error = measured(original, fused, x)
    found = [output_enclosure(original, fused, x, share=share, directions=directions) for share in SHARES]
    for limits in found:
        assert (np.asarray(limits.upper) >= error).all()
        assert (np.asarray(limits.lower) <= error).all()
    uppers = np.stack([np.asarray(limits.upper) for limits in found])
    size = np.linalg.norm(np.asarray(original.w2)) * np.linalg.norm(np.asarray(original.w1)) + 1e-300
    assert (np.diff(uppers, axis=0) <= 1e-9 * uppers.max()).all()
    assert (uppers[-1] - error <= 1e-8 * (error + (1 + scale) ** 2 * (1 + size))).all()


@settings(deadline=None, max_examples=8)
@given(
    st.integers(0, 2**20),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e3]),
    st.booleans(),
    st.sampled_from([{}, {"biases": False}, {"alike": True}, {"dead": True}]),
)
def test_limits_hold_and_close(seed, activation, scale, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, scale, clusters, **kind)


@pytest.mark.slow
@settings(deadline=None, max_examples=1000)
@given(
    st.integers(0, 2**30),
    st.sampled_from(sorted(ACTIVATIONS)),
    st.floats(-3, 3),
    st.booleans(),
    st.sampled_from([{}, {"biases": False}, {"alike": True}, {"dead": True}]),
)
def test_limits_hold_and_close_on_many(seed, activation, exponent, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, 10.0**exponent, clusters, **kind)


def test_at_share_one_it_is_the_error(x64):
    original, fused, labels, x = random_case(0, "gelu")
    error = measured(original, fused, x)
    limits = output_enclosure(original, fused, x, labels, share=1.0)
    np.testing.assert_allclose(limits.upper, error, rtol=1e-8)
    np.testing.assert_allclose(limits.lower, error, rtol=1e-8)


def test_without_its_remainder_it_is_violated(x64, monkeypatch):
    original, fused, labels, x = random_case(1, "gelu")
    split = tight_output._split

    def cut(*arguments):
        known, radius, rounding = split(*arguments)
        return known, 0 * radius, rounding

    monkeypatch.setattr(tight_output, "_split", cut)
    limits = output_enclosure(original, fused, x, labels, share=1 / OUTPUTS)
    assert (np.asarray(limits.upper) < measured(original, fused, x)).any()


def test_without_the_evaluated_part_it_is_violated(x64, monkeypatch):
    original, fused, labels, x = random_case(2, "gelu", alike=True)
    fused = fused.replace(w2=2 * fused.w2)
    split = tight_output._split
    monkeypatch.setattr(tight_output, "_split", lambda *arguments: (0 * split(*arguments)[0], *split(*arguments)[1:]))
    limits = output_enclosure(original, fused, x, labels)
    assert (np.asarray(limits.upper) < measured(original, fused, x)).all()


def test_refuses_what_it_cannot_enclose(x64):
    original, fused, labels, x = random_case(0, "relu")
    with pytest.raises(InputError, match="share"):
        output_enclosure(original, fused, x, labels, share=1.5)
    with pytest.raises(InputError, match="constants"):
        output_enclosure(fused, fused, x)
    with pytest.raises(InputError, match="float64"):
        output_enclosure(original, fused, x.astype(jnp.float32), labels)
    with pytest.raises(InputError, match="float64"):
        output_enclosure(original, jax.tree.map(lambda a: a.astype(jnp.float32), fused), x, labels)
    with pytest.raises(InputError, match="labels"):
        output_enclosure(original, fused, x, labels[:-1])
    with pytest.raises(InputError, match="not finite"):
        output_enclosure(original, fused, x * jnp.nan, labels)
