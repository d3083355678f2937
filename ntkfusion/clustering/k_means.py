"""k-means for neurons: few points in a high dimension, many clusters, several restarts, several layers.

All that is asked for is checked before any work. Then a few problems at a time share the cores, each in the form that
its memory allows (`problem`), with its restarts side by side (`restarts`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.clustering.problem import ClusteringProblem, block_size, direct_problem, gram_bytes, gram_problem
from ntkfusion.clustering.restarts import (
    Pool,
    SearchResult,
    centroids_of,
    first_alone,
    in_this_context,
    num_workers,
    search,
)
from ntkfusion.errors import InputError
from ntkfusion.utils.memory import memory_limit as bytes_allowed
from ntkfusion.utils.pytrees import pytree

#: Problems that are worked on at a time: while the last restarts of one run, the next one starts.
AT_A_TIME = 2

_gram_problem = jax.jit(gram_problem)

_direct_problem = jax.jit(direct_problem, static_argnames="block")


@pytree
class KMeansResult:
    """A clustering of N points in D dimensions into c clusters.

    Attributes:
        labels: cluster of each point, [N].
        centroids: weighted means of the clusters, [c, D].
        counts: points per cluster, those of weight 0 left out; at least 1, [c].
        mass: sums of the points' weights per cluster, [c].
        inertia: Σ_i w_i ‖θ_i − c_λ(i)‖² in the metric of the columns, recomputed from the points.
        num_iterations: Lloyd iterations of the best restart.
        restart_inertias: inertias of all restarts, [R].
        restart_iterations: their Lloyd iterations, [R].
    """

    labels: Int[Array, " N"]
    centroids: Float[Array, "c D"]
    counts: Int[Array, " c"]
    mass: Float[Array, " c"]
    inertia: Float[Array, ""]
    num_iterations: Int[Array, ""]
    restart_inertias: Float[Array, " R"]
    restart_iterations: Int[Array, " R"]


def kmeans(
    points: Float[Array, "N D"],
    num_clusters: int,
    num_restarts: int = 10,
    seed: int | Array = 0,
    *,
    weights: Float[Array, " _"] | None = None,
    column_weights: Float[Array, " _"] | None = None,
    max_iterations: int = 300,
    exchange: bool = True,
    memory_limit: int | str | None = None,
) -> KMeansResult:
    """Cluster points by k-means and keep the best of several restarts.

    Each restart is seeded by greedy k-means++ (Arthur & Vassilvitskii 2007, with 2 + ⌊log c⌋ candidates per centre as
    in scikit-learn) and iterated by Lloyd's algorithm until no label changes. A cluster that empties takes the point
    farthest from its own centroid. Then single points are exchanged while that lowers the inertia (Hartigan), which it
    does by several per cent where clusters are small. Ties go to the cluster with the lower index; the same seed gives
    the same result on the same machine, unless the memory left decides otherwise between Gram matrix and blocks.

    Args:
        points: the points. Their Gram matrix is used if its N² numbers fit the memory limit, else blocks of points.
        num_clusters: c, at most the number of points whose weight is not 0.
        num_restarts: independent seedings.
        seed: an integer, or a JAX random key.
        weights: weight of each point; 2 is as good as the point twice, 0 as no point (it still gets a label).
        column_weights: weights of the squared differences in each column.
        max_iterations: limit per restart.
        exchange: whether single exchanges follow; without them the result is that of Lloyd alone.
        memory_limit: bytes, or a text such as "2GiB"; by default a safe share of what is available.

    Returns:
        The clustering with the lowest inertia.

    Raises:
        InputError: for counts out of range, points that are not finite, or weights that are negative or all 0.

    >>> import jax.numpy as jnp
    >>> result = kmeans(jnp.array([[0.0], [1.0], [10.0], [11.0]]), 2)
    >>> sorted(result.centroids.ravel().tolist()), result.inertia.item()
    ([0.5, 10.5], 1.0)
    """
    key = jax.random.key(seed) if isinstance(seed, int) else seed
    request = _checked(points, num_clusters, num_restarts, key, weights, column_weights, max_iterations, exchange)
    return _solve_all([request], memory_limit)[0]


def kmeans_batch(
    problems: Sequence[Float[Array, "_ _"]] | Float[Array, "L N D"],
    num_clusters: int | Sequence[int],
    num_restarts: int = 10,
    seed: int | Sequence[Array] = 0,
    *,
    weights: Sequence[Float[Array, " _"] | None] | None = None,
    column_weights: Sequence[Float[Array, " _"] | None] | None = None,
    max_iterations: int = 300,
    exchange: bool = True,
    memory_limit: int | str | None = None,
) -> list[KMeansResult]:
    """Cluster several sets of points, say one per layer, with the restarts of all of them sharing the cores.

    Equal shapes share their compiled programs, and every result is what `kmeans` gives with the same key.

    Args:
        problems: the sets of points.
        num_clusters: for all, or for each.
        num_restarts: of each.
        seed: an integer, from which problem i gets ``fold_in(key(seed), i)``, or a key for each.
        weights: of the points of each problem; None in a place means 1.
        column_weights: of the columns of each problem; None in a place means 1.
        max_iterations: see `kmeans`.
        exchange: see `kmeans`.
        memory_limit: see `kmeans`.

    Returns:
        One result per problem.

    Raises:
        InputError: as in `kmeans`, before any problem is worked on, or if a list has another length.
    """
    count = len(problems)
    lists = _one_for_each(
        count,
        num_clusters=[num_clusters] * count if isinstance(num_clusters, int) else num_clusters,
        seed=[jax.random.fold_in(jax.random.key(seed), i) for i in range(count)] if isinstance(seed, int) else seed,
        weights=[None] * count if weights is None else weights,
        column_weights=[None] * count if column_weights is None else column_weights,
    )
    requests = [
        _checked(points, clusters, num_restarts, key, point_weights, columns, max_iterations, exchange)
        for points, (clusters, key, point_weights, columns) in zip(problems, lists, strict=True)
    ]
    return _solve_all(requests, memory_limit)


class KMeansRequest(NamedTuple):
    """One k-means problem with nothing left to default."""

    points: Float[Array, "N D"]
    num_clusters: int
    num_restarts: int
    key: Array
    weights: Float[Array, " N"]
    column_weights: Float[Array, " D"]
    max_iterations: int
    exchange: bool


def _checked(
    points: Float[Array, "N D"],
    num_clusters: int,
    num_restarts: int,
    key: Array,
    weights: Array | None,
    column_weights: Array | None,
    max_iterations: int,
    exchange: bool,
) -> KMeansRequest:
    """The request with weights filled in; see `kmeans` for what they are.

    Raises:
        InputError: for points that are no rows of floats, counts out of range, points that are not finite, or weights
            that are negative or all 0.
    """
    if jnp.ndim(points) != 2 or not jnp.issubdtype(points.dtype, jnp.floating):
        raise InputError(
            f"points must be floats of shape [points, dimensions]; got {points.dtype} of shape {jnp.shape(points)}"
        )
    num_points, dimension = points.shape
    if not 1 <= num_clusters <= num_points:
        raise InputError(f"num_clusters must be from 1 to the number of points, {num_points}; got {num_clusters}")
    if num_restarts < 1 or max_iterations < 1:
        raise InputError(f"num_restarts and max_iterations must be at least 1; got {num_restarts}, {max_iterations}")
    if not bool(jnp.all(jnp.isfinite(points))):
        raise InputError("points hold values that are not finite")
    weights = _weights("weights", weights, num_points, points)
    column_weights = _weights("column_weights", column_weights, dimension, points)
    present = int(jnp.sum(weights > 0))
    if num_clusters > present:
        raise InputError(f"{num_clusters} clusters need as many points of a weight above 0; there are {present}")
    return KMeansRequest(points, num_clusters, num_restarts, key, weights, column_weights, max_iterations, exchange)


def _weights(name: str, given: Array | None, count: int, points: Array) -> Float[Array, " count"]:
    """The weights in the type of the points, 1 by default."""
    if given is None:
        return jnp.ones(count, points.dtype)
    if jnp.shape(given) != (count,):
        raise InputError(f"{name} must be {count} numbers for points of shape {points.shape}; got {jnp.shape(given)}")
    weights = jnp.asarray(given, points.dtype)
    if not bool(jnp.all(jnp.isfinite(weights) & (weights >= 0)) & jnp.any(weights > 0)):
        raise InputError(f"{name} must be finite, not negative, and not all 0")
    return weights


def _one_for_each(count: int, **lists: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The entries of several lists side by side, one row per problem.

    Raises:
        InputError: if a list has another length.
    """
    for name, entries in lists.items():
        if len(entries) != count:
            raise InputError(f"{name} must have one entry for each of the {count} problems; got {len(entries)}")
    return list(zip(*lists.values(), strict=True))


def _solve_all(requests: Sequence[KMeansRequest], memory_limit: int | str | None) -> list[KMeansResult]:
    allowed = bytes_allowed(memory_limit)
    at_a_time = min(AT_A_TIME, len(requests))
    with Pool() as pool, ThreadPoolExecutor(max(at_a_time, 1)) as coordinators:
        solve = [in_this_context(partial(_solve, request, allowed // at_a_time, pool)) for request in requests]
        return [future.result() for future in [coordinators.submit(call) for call in solve]]


def _solve(request: KMeansRequest, allowed: int, pool: Pool) -> KMeansResult:
    num_points, clusters = request.points.shape[0], request.num_clusters
    if clusters == num_points:
        labels, none = jnp.arange(num_points, dtype=jnp.int32), jnp.zeros(request.num_restarts, jnp.int32)
        found = SearchResult(labels, none[0], none.astype(request.points.dtype), none)
    else:
        keys = jax.random.split(request.key, request.num_restarts)
        prepare = _preparation(request, allowed)
        found = search(prepare, keys, clusters, request.max_iterations, request.exchange, pool)
    call = partial(_result, request.points, request.weights, request.column_weights, found, clusters)
    return first_alone(call)


def _preparation(request: KMeansRequest, allowed: int) -> partial[ClusteringProblem]:
    """How the problem is made: by its Gram matrix if that fits."""
    arrays, clusters = (request.points, request.weights, request.column_weights), request.num_clusters
    num_points, dimension = request.points.shape
    if gram_bytes(num_points, dimension, clusters, request.points.dtype.itemsize, num_workers()) <= allowed:
        return partial(_gram_problem, *arrays)
    return partial(_direct_problem, *arrays, block_size(num_points, clusters))


@partial(jax.jit, static_argnames="num_clusters")
def _result(
    points: Float[Array, "N D"],
    weights: Float[Array, " N"],
    column_weights: Float[Array, " D"],
    found: SearchResult,
    num_clusters: int,
) -> KMeansResult:
    """Centroids and inertia of a labelling in the given coordinates."""
    # a form may have filled up its blocks
    labels = found.labels[: points.shape[0]]
    # about their mean, because sums of numbers far from 0 lose digits; a point alone is its centroid to the last digit
    mean = jnp.mean(points, axis=0, keepdims=True)
    alone = num_clusters == points.shape[0]
    centroids = points if alone else mean + centroids_of(points - mean, labels, weights, num_clusters)
    squares = (points - centroids[labels]) ** 2
    return KMeansResult(
        labels,
        centroids,
        jax.ops.segment_sum((weights > 0).astype(jnp.int32), labels, num_clusters),
        jax.ops.segment_sum(weights, labels, num_clusters),
        jnp.sum(weights[:, None] * column_weights[None, :] * squares),
        found.iterations,
        found.restart_inertias,
        found.restart_iterations,
    )
