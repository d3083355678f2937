"""Small random pairs of blocks for the bounds with leading directions, and what their limits must fulfil."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.models.blocks.dense import MLPBlock

D, M, OUTPUTS, C, N = 3, 9, 4, 4, 5
SHARES = (0.0, 0.5, 1.0)
KINDS = ({}, {"biases": False}, {"alike": True}, {"dead": True})


def on_few_cases(check):
    """The test with a few random seeds, activations, scales, with clusters or without, and kinds of cases."""
    scales = st.sampled_from([1e-3, 0.1, 1.0, 30.0, 1e3])
    return settings(deadline=None, max_examples=8)(_given(2**20, scales)(check))


def on_many_cases(check):
    """The same with many."""
    scales = st.floats(-3, 3).map(lambda exponent: 10.0**exponent)
    return settings(deadline=None, max_examples=1000)(_given(2**30, scales)(check))


def _given(seeds, scales):
    activations = st.sampled_from(sorted(ACTIVATIONS))
    return given(st.integers(0, seeds), activations, scales, st.booleans(), st.sampled_from(KINDS))


def assert_limits_close(found, error, room):
    """Limits at `SHARES` hold, the upper ones fall, and the last one is the error up to `room`."""
    for limits in found:
        assert (np.asarray(limits.upper) >= error).all()
        assert (np.asarray(limits.lower) <= error).all()
    uppers = np.stack([np.asarray(limits.upper) for limits in found])
    assert (np.diff(uppers, axis=0) <= 1e-9 * uppers.max()).all()
    assert (uppers[-1] - error <= 1e-8 * room).all()


def random_case(seed, activation, scale=1.0, biases=True, alike=False, dead=False):
    """A block, the means of its clusters with cluster sizes as constants (V4), labels and inputs."""
    keys = jax.random.split(jax.random.key(seed), 6)
    labels = jnp.concatenate([jnp.arange(C), jax.random.randint(keys[0], (M - C,), 0, C)])
    shapes = ((M, D), (M,), (M, OUTPUTS), (OUTPUTS,))
    draws = [scale * jax.random.normal(key, shape) for key, shape in zip(keys[1:5], shapes, strict=True)]
    w, b, v = (draw[labels] if alike else draw for draw in draws[:3])
    if dead:
        v = jnp.zeros_like(v)
    counts = jnp.bincount(labels, length=C).astype(w.dtype)

    def mean(rows):
        return jax.ops.segment_sum(rows, labels, C) / counts.reshape(-1, *[1] * (rows.ndim - 1))

    root = jnp.sqrt(counts)
    original = MLPBlock(w.T, b if biases else None, v, draws[3] if biases else None, activation=activation)
    fused = MLPBlock(
        mean(w).T * root[None, :],
        mean(b) * root if biases else None,
        mean(v) * root[:, None],
        original.b2,
        q=root,
        r=1 / root,
        activation=activation,
    )
    return original, fused, labels, jax.random.normal(keys[5], (N, D))
