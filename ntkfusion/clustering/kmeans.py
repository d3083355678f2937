"""k-means by Lloyd's algorithm in Gram space, jitted, with greedy k-means++ seeding and restarts.

Few points in a high dimension, many restarts: with G = ΘΘᵀ computed once,
``‖θ_i − c_j‖² = G_ii − (2/n_j) Σ_{l∈C_j} G_il + (1/n_j²) Σ_{l,l'∈C_j} G_ll'``, so an iteration is two segment sums over
G and the dimension is gone. Points are centred first and the reported inertia is recomputed from the points, because
the formula cancels in float32. Centroids are formed once, at the end.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.pytree import pytree


@pytree
class KMeansResult:
    """A clustering of N points in D dimensions into c clusters.

    Attributes:
        labels: cluster of each point, [N].
        centroids: means of the clusters, [c, D].
        counts: cluster sizes n_j ≥ 1, [c].
        inertia: Σ_i ‖θ_i − c_λ(i)‖², recomputed from the points.
        num_iterations: Lloyd iterations of the best restart.
    """

    labels: Int[Array, " N"]
    centroids: Float[Array, "c D"]
    counts: Int[Array, " c"]
    inertia: Float[Array, ""]
    num_iterations: Int[Array, ""]


def kmeans(
    points: Float[Array, "N D"],
    num_clusters: int,
    num_restarts: int = 10,
    seed: int | Array = 0,
    *,
    max_iterations: int = 300,
) -> KMeansResult:
    """Cluster points by k-means and keep the best of several restarts.

    Each restart is seeded by greedy k-means++ (Arthur & Vassilvitskii 2007, with 2 + ⌊log c⌋ candidates per centre as
    in scikit-learn) and iterated until no label changes. A cluster that empties takes the point farthest from its own
    centroid. Ties go to the cluster with the lower index; the same seed gives the same result on the same machine.

    Args:
        points: the points; the Gram matrix takes N² numbers.
        num_clusters: c, at most N.
        num_restarts: independent seedings.
        seed: an integer, or a JAX random key.
        max_iterations: limit per restart.

    Returns:
        The clustering with the lowest inertia.

    Raises:
        InputError: for counts out of range or points that are not finite.

    >>> import jax.numpy as jnp
    >>> result = kmeans(jnp.array([[0.0], [1.0], [10.0], [11.0]]), 2)
    >>> sorted(result.centroids.ravel().tolist()), result.inertia.item()
    ([0.5, 10.5], 1.0)
    """
    num_points = points.shape[0]
    if not 1 <= num_clusters <= num_points:
        raise InputError(f"num_clusters must be from 1 to the number of points, {num_points}; got {num_clusters}")
    if num_restarts < 1 or max_iterations < 1:
        raise InputError(f"num_restarts and max_iterations must be at least 1; got {num_restarts}, {max_iterations}")
    if not bool(jnp.all(jnp.isfinite(points))):
        raise InputError("points hold values that are not finite")
    if num_clusters == num_points:
        ones = jnp.ones(num_points, jnp.int32)
        zero = jnp.zeros((), points.dtype)
        return KMeansResult(jnp.arange(num_points, dtype=jnp.int32), points, ones, zero, jnp.zeros((), jnp.int32))
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    with jax.default_matmul_precision("highest"):
        return _best_of_restarts(points, key, num_clusters, num_restarts, max_iterations)


@partial(jax.jit, static_argnames=("num_clusters", "num_restarts", "max_iterations"))
def _best_of_restarts(
    points: Float[Array, "N D"], key: Array, num_clusters: int, num_restarts: int, max_iterations: int
) -> KMeansResult:
    centred = points - jnp.mean(points, axis=0, keepdims=True)
    # squares of very large or small points leave float32's range
    scale = jnp.max(jnp.abs(centred))
    centred = centred / jnp.where(scale > 0, scale, 1)
    # halved sum with the transpose: exact symmetry, so that distances of a point to itself are exactly 0
    gram = centred @ centred.T
    gram = 0.5 * (gram + gram.T)

    def restart(key: Array) -> tuple[Int[Array, " N"], Int[Array, ""], Float[Array, ""]]:
        labels, iterations = _lloyd(gram, _seed_labels(gram, key, num_clusters), num_clusters, max_iterations)
        return labels, iterations, _summary(centred, labels, num_clusters)[2]

    labels, iterations, inertias = jax.lax.map(restart, jax.random.split(key, num_restarts))
    best = jnp.argmin(inertias)
    centroids, counts, inertia = _summary(points, labels[best], num_clusters)
    return KMeansResult(labels[best], centroids, counts, inertia, iterations[best])


def _summary(
    points: Float[Array, "N D"], labels: Int[Array, " N"], num_clusters: int
) -> tuple[Float[Array, "c D"], Int[Array, " c"], Float[Array, ""]]:
    """Centroids, counts and inertia of a labelling, from the points themselves."""
    counts = _counts(labels, num_clusters)
    sums = jax.ops.segment_sum(points, labels, num_clusters)
    centroids = sums / counts[:, None].astype(points.dtype)
    return centroids, counts, jnp.sum((points - centroids[labels]) ** 2)


def _counts(labels: Int[Array, " N"], num_clusters: int) -> Int[Array, " c"]:
    return jax.ops.segment_sum(jnp.ones_like(labels), labels, num_clusters)


def _seed_labels(gram: Float[Array, "N N"], key: Array, num_clusters: int) -> Int[Array, " N"]:
    """Labels of the nearest centre after greedy k-means++: of several candidates drawn, the one that helps most."""
    num_points, trials = gram.shape[0], 2 + int(math.log(num_clusters))
    diagonal = jnp.diag(gram)

    def distances(chosen: Int[Array, " k"]) -> Float[Array, "k N"]:
        return jnp.maximum(diagonal[None, :] - 2 * gram[chosen] + diagonal[chosen][:, None], 0)

    def add_centre(
        index: Int[Array, ""], state: tuple[Int[Array, " N"], Float[Array, " N"], Array]
    ) -> tuple[Int[Array, " N"], Float[Array, " N"], Array]:
        labels, closest, key = state
        key, draw = jax.random.split(key)
        cumulative = jnp.cumsum(closest)
        targets = jax.random.uniform(draw, (trials,), closest.dtype) * cumulative[-1]
        # clipped: rounding may leave a target at the very end
        candidates = jnp.minimum(jnp.searchsorted(cumulative, targets, side="right"), num_points - 1)
        to_candidates = distances(candidates)
        best = jnp.argmin(jnp.sum(jnp.minimum(to_candidates, closest[None, :]), axis=1))
        nearer = to_candidates[best] < closest
        return (
            jnp.where(nearer, index.astype(labels.dtype), labels),
            jnp.where(nearer, to_candidates[best], closest),
            key,
        )

    key, draw = jax.random.split(key)
    first = jax.random.randint(draw, (1,), 0, num_points)
    state = (jnp.zeros(num_points, jnp.int32), distances(first)[0], key)
    return jax.lax.fori_loop(1, num_clusters, add_centre, state)[0]


def _distances_to_clusters(
    gram: Float[Array, "N N"], labels: Int[Array, " N"], num_clusters: int
) -> Float[Array, "c N"]:
    """Squared distances of all points to the centroids, less the part that is the same for every cluster, G_ii."""
    counts = _counts(labels, num_clusters).astype(gram.dtype)
    sums = jax.ops.segment_sum(gram, labels, num_clusters)
    own = jnp.take_along_axis(sums, labels[None, :], axis=0)[0]
    within = jax.ops.segment_sum(own, labels, num_clusters)
    return (within / counts**2)[:, None] - (2 / counts)[:, None] * sums


def _fill_empty(labels: Int[Array, " N"], distances: Float[Array, " N"], num_clusters: int) -> Int[Array, " N"]:
    """Give every empty cluster the point farthest from its own centroid, never the last point of a cluster."""

    def any_empty(labels: Int[Array, " N"]) -> Array:
        return jnp.any(_counts(labels, num_clusters) == 0)

    def fill_one(labels: Int[Array, " N"]) -> Int[Array, " N"]:
        counts = _counts(labels, num_clusters)
        movable = jnp.where(counts[labels] > 1, distances, -jnp.inf)
        # a point that was moved sits alone in its cluster, so it is not moved again
        return labels.at[jnp.argmax(movable)].set(jnp.argmax(counts == 0).astype(labels.dtype))

    return jax.lax.while_loop(any_empty, fill_one, labels)


def _lloyd(
    gram: Float[Array, "N N"], labels: Int[Array, " N"], num_clusters: int, max_iterations: int
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    diagonal = jnp.diag(gram)
    rounding = 8 * jnp.finfo(gram.dtype).eps * jnp.max(diagonal)

    def unfinished(state: tuple[Int[Array, " N"], Array, Int[Array, ""]]) -> Array:
        _, changed, iteration = state
        return changed & (iteration < max_iterations)

    def iterate(
        state: tuple[Int[Array, " N"], Array, Int[Array, ""]],
    ) -> tuple[Int[Array, " N"], Array, Int[Array, ""]]:
        labels, _, iteration = state
        distances = _distances_to_clusters(gram, labels, num_clusters)
        own = jnp.take_along_axis(distances, labels[None, :], axis=0)[0]
        # a point moves only if it gains more than rounding: equal centroids would exchange their points for ever
        gains = jnp.min(distances, axis=0) < own - rounding
        nearest = jnp.where(gains, jnp.argmin(distances, axis=0).astype(labels.dtype), labels)
        nearest = _fill_empty(nearest, diagonal + jnp.min(distances, axis=0), num_clusters)
        return nearest, jnp.any(nearest != labels), iteration + 1

    labels = _fill_empty(labels, jnp.zeros_like(diagonal), num_clusters)
    state = (labels, jnp.array(True), jnp.zeros((), jnp.int32))
    labels, _, iterations = jax.lax.while_loop(unfinished, iterate, state)
    return labels, iterations
