"""Lloyd's iterations on a problem in either form."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.clustering.problem import Problem


class Clusters(NamedTuple):
    """What scores need of the clusters: masses W_j, squared norms ‖u_j‖², and the number of points with weight."""

    mass: Float[Array, " c"]
    square: Float[Array, " c"]
    members: Int[Array, " c"]


class _State(NamedTuple):
    labels: Int[Array, " N"]
    sums: Array
    changed: Bool[Array, ""]
    iteration: Int[Array, ""]


def lloyd(
    problem: Problem, labels: Int[Array, " N"], num_clusters: int, max_iterations: int | Int[Array, ""]
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Iterate until no label changes; the labels and the number of iterations.

    A cluster that empties takes the point farthest from its own centroid.
    """

    def unfinished(state: _State) -> Bool[Array, ""]:
        return state.changed & (state.iteration < max_iterations)

    def iterate(state: _State) -> _State:
        labels = _reassign(problem, state.labels, state.sums, num_clusters)
        sums = problem.relabel(state.sums, state.labels, labels)
        return _State(labels, sums, jnp.any(labels != state.labels), state.iteration + 1)

    labels = fill_empty(labels, problem.weights, jnp.zeros_like(problem.weights), num_clusters)
    start = _State(labels, problem.sums(labels, num_clusters), jnp.array(True), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(unfinished, iterate, start)
    return end.labels, end.iteration


def describe(
    problem: Problem, labels: Int[Array, " N"], sums: Array, num_clusters: int
) -> tuple[Clusters, Float[Array, " N"]]:
    """The clusters, and squared distances of all points to their own centroids."""
    own = problem.own(sums, labels)

    def total(values: Array) -> Array:
        return jax.ops.segment_sum(values, labels, num_clusters)

    mass, square = total(problem.weights), total(problem.weights * own)
    clusters = Clusters(mass, square, total((problem.weights > 0).astype(jnp.int32)))
    return clusters, problem.norms + (square / mass**2)[labels] - 2 * own / mass[labels]


def nearest(problem: Problem, sums: Array, clusters: Clusters) -> tuple[Float[Array, " N"], Int[Array, " N"]]:
    """Squared distances of all points to the nearest centroids, and which these are."""
    offset, slope = clusters.square / clusters.mass**2, -2 / clusters.mass

    def score(cluster: Int[Array, ""], row: Float[Array, " B"], columns: tuple[Array, ...]) -> Float[Array, " B"]:
        del columns
        return offset[cluster] + slope[cluster] * row

    lowest, index = problem.lowest(sums, score, ())
    return problem.norms + lowest, index


def _reassign(problem: Problem, labels: Int[Array, " N"], sums: Array, num_clusters: int) -> Int[Array, " N"]:
    clusters, own = describe(problem, labels, sums, num_clusters)
    distances, index = nearest(problem, sums, clusters)
    # a point moves only if it gains more than rounding: equal centroids would exchange their points for ever
    labels = jnp.where(distances < own - problem.rounding, index.astype(labels.dtype), labels)
    return fill_empty(labels, problem.weights, jnp.minimum(distances, own), num_clusters)


def fill_empty(
    labels: Int[Array, " N"], weights: Float[Array, " N"], distances: Float[Array, " N"], num_clusters: int
) -> Int[Array, " N"]:
    """Give every empty cluster the point farthest from its own centroid, never the last point of a cluster.

    Points of weight 0 do not count.
    """
    present = weights > 0

    def members(labels: Int[Array, " N"]) -> Int[Array, " c"]:
        return jax.ops.segment_sum(present.astype(jnp.int32), labels, num_clusters)

    def fill_one(labels: Int[Array, " N"]) -> Int[Array, " N"]:
        counts = members(labels)
        movable = jnp.where(present & (counts[labels] > 1), distances, -jnp.inf)
        # a point that was moved sits alone in its cluster, so it is not moved again
        return labels.at[jnp.argmax(movable)].set(jnp.argmax(counts == 0).astype(labels.dtype))

    return jax.lax.while_loop(lambda labels: jnp.any(members(labels) == 0), fill_one, labels)
