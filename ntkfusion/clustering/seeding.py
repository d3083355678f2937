"""Greedy k-means++ seeding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.clustering.problem import Problem

State = tuple[Int[Array, " N"], Float[Array, " N"], Array]


def seed_labels(problem: Problem, key: Array, num_clusters: int) -> Int[Array, " N"]:
    """Labels of the nearest centre after greedy k-means++.

    Each centre is the one that helps most of 2 + ⌊log c⌋ points drawn with probabilities proportional to weight times
    squared distance to the centres so far (Arthur & Vassilvitskii 2007; as many candidates as in scikit-learn).
    """
    trials = 2 + int(math.log(num_clusters))

    def distances(chosen: Int[Array, " k"]) -> Float[Array, "k N"]:
        inner = problem.inner(chosen)
        return jnp.maximum(problem.norms[None, :] - 2 * inner + problem.norms[chosen][:, None], 0)

    def add_centre(index: Int[Array, ""], state: State) -> State:
        labels, closest, key = state
        key, draw = jax.random.split(key)
        to_candidates = distances(_draw(draw, closest * problem.weights, trials))
        left = jnp.sum(jnp.minimum(to_candidates, closest[None, :]) * problem.weights[None, :], axis=1)
        to_best = to_candidates[jnp.argmin(left)]
        nearer = to_best < closest
        return jnp.where(nearer, index.astype(labels.dtype), labels), jnp.minimum(to_best, closest), key

    key, draw = jax.random.split(key)
    first = distances(_draw(draw, problem.weights, 1))[0]
    state = (jnp.zeros(first.shape, jnp.int32), first, key)
    return jax.lax.fori_loop(1, num_clusters, add_centre, state)[0]


def _draw(key: Array, weights: Float[Array, " N"], count: int) -> Int[Array, " count"]:
    """Indices with probabilities proportional to weights, with replacement."""
    cumulative = jnp.cumsum(weights)
    targets = jax.random.uniform(key, (count,), weights.dtype) * cumulative[-1]
    # clipped: rounding may leave a target at the very end
    return jnp.minimum(jnp.searchsorted(cumulative, targets, side="right"), weights.shape[0] - 1)
