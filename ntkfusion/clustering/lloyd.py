"""One restart of k-means on a problem in either form: greedy k-means++ seeds, Lloyd's iterations, single exchanges.

Where Lloyd's iterations have come to rest, moving one point of weight w from cluster a to b changes both centroids, and
the inertia by exactly ``w W_b/(W_b + w) ‖θ − c_b‖² − w W_a/(W_a − w) ‖θ − c_a‖²`` (Hartigan & Wong 1979; Telgarsky &
Vattani 2010). Lloyd's iterations ignore the two factors, which are far from 1 where clusters are small: four neurons
per cluster is the usual case here. Where no exchange helps, every point is also with its nearest centroid, so that
neither Lloyd's iterations nor exchanges change anything any more.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.clustering.problem import ClusteringProblem

#: Labels, squared distances to the nearest centre so far, and a random key.
SeedingState: TypeAlias = tuple[Int[Array, " N"], Float[Array, " N"], Array]


def seed_labels(problem: ClusteringProblem, key: Array, num_clusters: int) -> Int[Array, " N"]:
    """Labels of the nearest centre after greedy k-means++.

    Each centre is the one that helps most of 2 + ⌊log c⌋ points drawn with probabilities proportional to weight times
    squared distance to the centres so far (Arthur & Vassilvitskii 2007; as many candidates as in scikit-learn).
    """
    trials = 2 + int(math.log(num_clusters))

    def distances(chosen: Int[Array, " k"]) -> Float[Array, "k N"]:
        inner = problem.inner(chosen)
        return jnp.maximum(problem.norms[None, :] - 2 * inner + problem.norms[chosen][:, None], 0)

    def add_centre(index: Int[Array, ""], state: SeedingState) -> SeedingState:
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


class ClusterTotals(NamedTuple):
    """What scores need of the clusters: masses W_j, squared norms ‖u_j‖², and the number of points with weight."""

    mass: Float[Array, " c"]
    square: Float[Array, " c"]
    members: Int[Array, " c"]


class _LloydState(NamedTuple):
    labels: Int[Array, " N"]
    sums: Array
    changed: Bool[Array, ""]
    iteration: Int[Array, ""]


def lloyd(
    problem: ClusteringProblem, labels: Int[Array, " N"], num_clusters: int, max_iterations: int | Int[Array, ""]
) -> tuple[Int[Array, " N"], Int[Array, ""]]:
    """Iterate until no label changes; the labels and the number of iterations.

    A cluster that empties takes the point farthest from its own centroid.
    """

    def unfinished(state: _LloydState) -> Bool[Array, ""]:
        return state.changed & (state.iteration < max_iterations)

    def iterate(state: _LloydState) -> _LloydState:
        labels = _reassign(problem, state.labels, state.sums, num_clusters)
        sums = problem.relabel(state.sums, state.labels, labels)
        return _LloydState(labels, sums, jnp.any(labels != state.labels), state.iteration + 1)

    labels = fill_empty(labels, problem.weights, jnp.zeros_like(problem.weights), num_clusters)
    start = _LloydState(labels, problem.sums(labels, num_clusters), jnp.array(True), jnp.zeros((), jnp.int32))
    end = jax.lax.while_loop(unfinished, iterate, start)
    return end.labels, end.iteration


def describe(
    problem: ClusteringProblem, labels: Int[Array, " N"], sums: Array, num_clusters: int
) -> tuple[ClusterTotals, Float[Array, " N"]]:
    """The clusters, and squared distances of all points to their own centroids."""
    own = problem.own(sums, labels)

    def total(values: Array) -> Array:
        return jax.ops.segment_sum(values, labels, num_clusters)

    mass, square = total(problem.weights), total(problem.weights * own)
    clusters = ClusterTotals(mass, square, total((problem.weights > 0).astype(jnp.int32)))
    return clusters, problem.norms + (square / mass**2)[labels] - 2 * own / mass[labels]


def nearest(
    problem: ClusteringProblem, sums: Array, clusters: ClusterTotals
) -> tuple[Float[Array, " N"], Int[Array, " N"]]:
    """Squared distances of all points to the nearest centroids, and which these are."""
    offset, slope = clusters.square / clusters.mass**2, -2 / clusters.mass

    def score(cluster: Int[Array, ""], row: Float[Array, " B"], columns: tuple[Array, ...]) -> Float[Array, " B"]:
        del columns
        return offset[cluster] + slope[cluster] * row

    lowest, index = problem.lowest(sums, score, ())
    return problem.norms + lowest, index


def _reassign(problem: ClusteringProblem, labels: Int[Array, " N"], sums: Array, num_clusters: int) -> Int[Array, " N"]:
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


class _ExchangeState(NamedTuple):
    labels: Int[Array, " N"]
    sums: Array
    clusters: ClusterTotals
    inner: Float[Array, " c"]  # of the point that is next


def exchange(
    problem: ClusteringProblem, labels: Int[Array, " N"], num_clusters: int, max_rounds: int | Int[Array, ""]
) -> Int[Array, " N"]:
    """Move single points while that lowers the inertia.

    A round finds all points that would gain, then tries these one after the other on the clusters as they are by then.
    """

    def unfinished(carry: tuple[_ExchangeState, Bool[Array, ""], Int[Array, ""]]) -> Bool[Array, ""]:
        return carry[1] & (carry[2] < max_rounds)

    def one_round(
        carry: tuple[_ExchangeState, Bool[Array, ""], Int[Array, ""]],
    ) -> tuple[_ExchangeState, Bool[Array, ""], Int[Array, ""]]:
        state, _, index = carry
        clusters, own = describe(problem, state.labels, state.sums, num_clusters)
        state = state._replace(clusters=clusters)
        wanting = (_gains(problem, state, own) > problem.rounding) & (problem.weights > 0)
        points = jnp.nonzero(wanting, size=wanting.shape[0] + 1, fill_value=0)[0]
        state = state._replace(inner=problem.column(state.sums, points[0]))
        new = jax.lax.fori_loop(
            0, jnp.sum(wanting), lambda i, state: _try_move(problem, state, points[i], points[i + 1]), state
        )
        return new, jnp.any(new.labels != state.labels), index + 1

    sums = problem.sums(labels, num_clusters)
    clusters, _ = describe(problem, labels, sums, num_clusters)
    start = (_ExchangeState(labels, sums, clusters, clusters.mass), jnp.array(True), jnp.zeros((), jnp.int32))
    labels = jax.lax.while_loop(unfinished, one_round, start)[0].labels
    sums = problem.sums(labels, num_clusters)
    clusters, _ = describe(problem, labels, sums, num_clusters)
    # points without weight were left behind
    return jnp.where(problem.weights > 0, labels, nearest(problem, sums, clusters)[1].astype(labels.dtype))


def _gains(problem: ClusteringProblem, state: _ExchangeState, own: Float[Array, " N"]) -> Float[Array, " N"]:
    """What every point's best exchange gains per unit of its weight; negative where none does or the point is alone."""
    mass, square, members = state.clusters
    offset, slope = square / mass**2, -2 / mass

    def score(cluster: Int[Array, ""], row: Float[Array, " B"], columns: tuple[Array, ...]) -> Float[Array, " B"]:
        labels, norms, weights = columns
        distances = norms + offset[cluster] + slope[cluster] * row
        return jnp.where(labels == cluster, jnp.inf, _joining(mass[cluster], weights) * distances)

    cost, _ = problem.lowest(state.sums, score, (state.labels, problem.norms, problem.weights))
    leaving = _leaving(mass[state.labels], problem.weights, members[state.labels])
    return leaving * own - cost


def _joining(mass: Array, weight: Array) -> Array:
    return mass / (mass + weight)


def _leaving(mass: Array, weight: Array, members: Array) -> Array:
    """W/(W − w); 0 for a cluster's last point, which stays."""
    return jnp.where(members > 1, mass / jnp.maximum(mass - weight, jnp.finfo(mass.dtype).eps * mass), 0)


def _try_move(
    problem: ClusteringProblem, state: _ExchangeState, point: Int[Array, ""], following: Int[Array, ""]
) -> _ExchangeState:
    """Move one point to where it lowers the inertia most, or leave all as it is."""
    labels, sums, (mass, square, members), inner = state
    old, weight, norm = labels[point], problem.weights[point], problem.norms[point]
    distances = norm + square / mass**2 - 2 * inner / mass
    costs = jnp.where(jnp.arange(mass.shape[0], dtype=labels.dtype) == old, jnp.inf, _joining(mass, weight) * distances)
    new = jnp.argmin(costs).astype(labels.dtype)
    moves = _leaving(mass[old], weight, members[old]) * distances[old] - costs[new] > problem.rounding
    taken, one = jnp.where(moves, weight, 0), moves.astype(members.dtype)
    without, joined = taken**2 * norm - 2 * taken * inner[old], taken**2 * norm + 2 * taken * inner[new]
    clusters = ClusterTotals(
        mass.at[old].add(-taken).at[new].add(taken),
        square.at[old].add(without).at[new].add(joined),
        members.at[old].add(-one).at[new].add(one),
    )
    labels = labels.at[point].set(jnp.where(moves, new, old))
    sums = problem.transfer(sums, point, old, new, taken)
    # read for the next point here, after writing: a loop that reads first makes the compiler copy the sums every time
    return _ExchangeState(labels, sums, clusters, problem.column(sums, following))
