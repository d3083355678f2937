"""Limits of the output error: never violated, closing with the share, and dependent on their remainder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.theory.enclosures.output_enclosure import (
    enclose_output,
    output_directions,
    output_enclosure,
    split_output,
)
from tests.helpers.enclosure_cases import (
    OUTPUTS,
    SHARES,
    assert_limits_close,
    on_few_cases,
    on_many_cases,
    random_case,
)


def measured(original, fused, x):
    return np.linalg.norm(np.asarray(original(x) - fused(x)), axis=1)


def check(seed, activation, scale, clusters, **kind):
    original, fused, labels, x = random_case(seed, activation, scale, **kind)
    directions = output_directions(original, labels if clusters else None, x[:3])
    error = measured(original, fused, x)
    found = [output_enclosure(original, fused, x, share=share, directions=directions) for share in SHARES]
    size = np.linalg.norm(np.asarray(original.w2)) * np.linalg.norm(np.asarray(original.w1)) + 1e-300
    assert_limits_close(found, error, error + (1 + scale) ** 2 * (1 + size))


@pytest.mark.wide
@on_few_cases
def test_limits_hold_and_close(seed, activation, scale, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, scale, clusters, **kind)


@pytest.mark.slow
@on_many_cases
def test_limits_hold_and_close_on_many(seed, activation, scale, clusters, kind):
    with jax.enable_x64(True):
        check(seed, activation, scale, clusters, **kind)


def test_at_share_one_it_is_the_error(x64):
    original, fused, labels, x = random_case(0, "gelu")
    error = measured(original, fused, x)
    limits = output_enclosure(original, fused, x, labels, share=1.0)
    np.testing.assert_allclose(limits.upper, error, rtol=1e-8)
    np.testing.assert_allclose(limits.lower, error, rtol=1e-8)


def test_without_its_remainder_it_is_violated(x64):
    original, fused, labels, x = random_case(1, "gelu")

    def cut(*arguments):
        known, radius, rounding = split_output(*arguments)
        return known, 0 * radius, rounding

    limits = enclose_output(original, fused, x, output_directions(original, labels, x), 1 / OUTPUTS, cut)
    assert (np.asarray(limits.upper) < measured(original, fused, x)).any()


def test_without_the_evaluated_part_it_is_violated(x64):
    original, fused, labels, x = random_case(2, "gelu", alike=True)
    fused = fused.replace(w2=2 * fused.w2)

    def cut(*arguments):
        known, radius, rounding = split_output(*arguments)
        return 0 * known, radius, rounding

    limits = enclose_output(original, fused, x, output_directions(original, labels, x), 0.125, cut)
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
