"""Small random pairs of blocks for the bounds with leading directions."""

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.dense import MLPBlock

D, M, OUTPUTS, C, N = 3, 9, 4, 4, 5


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
