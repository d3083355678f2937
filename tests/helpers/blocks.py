"""Random blocks that many tests use."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock


def normal(seed: int, *shape: int, scale: float = 1.0, dtype=None) -> jax.Array:
    """`scale` times ``jax.random.normal(jax.random.key(seed), shape, dtype)``, without a program for every shape."""
    count, dtype = math.prod(shape), dtype or jnp.zeros(0).dtype
    numbers = 4 ** math.ceil(math.log(max(count, 64), 4))
    with jax.ensure_compile_time_eval():  # for tests that only want shapes, too
        drawn = _drawn(jnp.uint32(seed), numbers=numbers, dtype=jnp.dtype(dtype))
    return jnp.asarray(np.asarray(drawn)[:count].reshape(shape) * np.asarray(scale, drawn.dtype))


@partial(jax.jit, static_argnames=("numbers", "dtype"))
def _drawn(seed, numbers, dtype):
    # the first numbers do not depend on how many are drawn
    return jax.random.normal(jax.random.key(seed), (numbers,), dtype)


def dense_block(d=5, m=7, o=3, *, activation="gelu", biases=True, constants=False, seed=0, scale=1.0) -> MLPBlock:
    """A random dense block; constants are positive and away from 1."""

    def array(offset: int, *shape: int) -> jax.Array:
        return normal(100 * seed + offset, *shape, scale=scale)

    return MLPBlock(
        w1=array(1, d, m),
        b1=array(2, m) if biases else None,
        w2=array(3, m, o),
        b2=array(4, o) if biases else None,
        q=jnp.exp(array(5, m)) if constants else None,
        r=jnp.exp(array(6, m)) if constants else None,
        activation=activation,
    )


def factorized_block(
    d=5, m=7, o=3, k=2, k2=3, *, activation="gelu", biases=True, constants=False, seed=0
) -> FactorizedBlock:
    def array(offset: int, *shape: int) -> jax.Array:
        return normal(100 * seed + offset, *shape)

    return FactorizedBlock(
        left1=array(1, d, k),
        right1=array(2, k, m),
        b1=array(3, m) if biases else None,
        left2=array(4, m, k2),
        right2=array(5, k2, o),
        b2=array(6, o) if biases else None,
        q=jnp.exp(array(7, m)) if constants else None,
        r=jnp.exp(array(8, m)) if constants else None,
        activation=activation,
    )


def duplicated_block(sizes=(3, 2, 2, 1), d=5, o=3, *, activation="gelu", seed=0) -> MLPBlock:
    """A block whose neurons coincide in groups of the given sizes, shuffled."""
    groups = dense_block(d, len(sizes), o, activation=activation, seed=seed)
    labels = jnp.repeat(jnp.arange(len(sizes)), jnp.array(sizes))
    labels = jax.random.permutation(jax.random.key(seed), labels)
    return groups.replace(w1=groups.w1[:, labels], b1=groups.b1[labels], w2=groups.w2[labels])


def relative(new: jax.Array, reference: jax.Array) -> float:
    """Largest difference over the largest entry."""
    return float(jnp.max(jnp.abs(new - reference)) / jnp.max(jnp.abs(reference)))


def gated_block(d=5, m=7, o=3, *, activation="silu", biases=True, seed=0) -> GatedBlock:
    def array(offset: int, *shape: int) -> jax.Array:
        return normal(100 * seed + offset, *shape)

    return GatedBlock(
        gate=array(1, d, m),
        gate_bias=array(2, m) if biases else None,
        up=array(3, d, m),
        up_bias=array(4, m) if biases else None,
        w2=array(5, m, o),
        b2=array(6, o) if biases else None,
        activation=activation,
    )


def masked_block(d=5, m=7, o=3, *, activation="gelu", biases=True, constants=False, seed=0, kept=0.6) -> MaskedBlock:
    """A random block with holes; the weights under them are not 0, so that a forgotten mask shows."""
    dense = dense_block(d, m, o, activation=activation, biases=biases, constants=constants, seed=seed)

    def mask(offset: int, like: jax.Array) -> jax.Array:
        return jax.random.bernoulli(jax.random.key(100 * seed + offset), kept, like.shape).astype(like.dtype)

    masks = {"mask1": mask(7, dense.w1), "mask2": mask(8, dense.w2)}
    constants = {"q": dense.q, "r": dense.r}
    return MaskedBlock(dense.w1, dense.b1, dense.w2, dense.b2, **masks, **constants, activation=activation)


def mixture_block(
    d=5, m=7, o=3, experts=3, *, activation="relu", biases=False, seed=0, train_router=True, expert=dense_block
) -> MixtureBlock:
    """A random mixture as in Switch: no biases unless asked for."""
    parts = [expert(d, m, o, activation=activation, biases=biases, seed=10 * seed + e + 1) for e in range(experts)]
    return MixtureBlock.stack(normal(100 * seed + 99, d, experts), parts, train_router=train_router)
