"""Single exchanges: what still lowers the inertia where Lloyd's iterations have come to rest.

Moving a point of weight w from cluster a to b changes both centroids, and the inertia by exactly
``w W_b/(W_b + w) ‖θ − c_b‖² − w W_a/(W_a − w) ‖θ − c_a‖²`` (Hartigan & Wong 1979; Telgarsky & Vattani 2010). Lloyd's
iterations ignore the two factors, which are far from 1 where clusters are small: four neurons per cluster is the usual
case here. Where no exchange helps, every point is also with its nearest centroid: a fixed point of both.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.clustering.lloyd import Clusters, describe, nearest
from ntkfusion.clustering.problem import Problem


class _State(NamedTuple):
    labels: Int[Array, " N"]
    sums: Array
    clusters: Clusters
    inner: Float[Array, " c"]  # of the point that is next


def exchange(
    problem: Problem, labels: Int[Array, " N"], num_clusters: int, max_rounds: int | Int[Array, ""]
) -> Int[Array, " N"]:
    """Move single points while that lowers the inertia.

    A round finds all points that would gain, then tries these one after the other on the clusters as they are by then.
    """

    def unfinished(carry: tuple[_State, Bool[Array, ""], Int[Array, ""]]) -> Bool[Array, ""]:
        return carry[1] & (carry[2] < max_rounds)

    def one_round(
        carry: tuple[_State, Bool[Array, ""], Int[Array, ""]],
    ) -> tuple[_State, Bool[Array, ""], Int[Array, ""]]:
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
    start = (_State(labels, sums, clusters, clusters.mass), jnp.array(True), jnp.zeros((), jnp.int32))
    labels = jax.lax.while_loop(unfinished, one_round, start)[0].labels
    sums = problem.sums(labels, num_clusters)
    clusters, _ = describe(problem, labels, sums, num_clusters)
    # points without weight were left behind
    return jnp.where(problem.weights > 0, labels, nearest(problem, sums, clusters)[1].astype(labels.dtype))


def _gains(problem: Problem, state: _State, own: Float[Array, " N"]) -> Float[Array, " N"]:
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


def _try_move(problem: Problem, state: _State, point: Int[Array, ""], following: Int[Array, ""]) -> _State:
    """Move one point to where it lowers the inertia most, or leave all as it is."""
    labels, sums, (mass, square, members), inner = state
    old, weight, norm = labels[point], problem.weights[point], problem.norms[point]
    distances = norm + square / mass**2 - 2 * inner / mass
    costs = jnp.where(jnp.arange(mass.shape[0], dtype=labels.dtype) == old, jnp.inf, _joining(mass, weight) * distances)
    new = jnp.argmin(costs).astype(labels.dtype)
    moves = _leaving(mass[old], weight, members[old]) * distances[old] - costs[new] > problem.rounding
    taken, one = jnp.where(moves, weight, 0), moves.astype(members.dtype)
    without, joined = taken**2 * norm - 2 * taken * inner[old], taken**2 * norm + 2 * taken * inner[new]
    clusters = Clusters(
        mass.at[old].add(-taken).at[new].add(taken),
        square.at[old].add(without).at[new].add(joined),
        members.at[old].add(-one).at[new].add(one),
    )
    labels = labels.at[point].set(jnp.where(moves, new, old))
    sums = problem.transfer(sums, point, old, new, taken)
    # read for the next point here, after writing: a loop that reads first makes the compiler copy the sums every time
    return _State(labels, sums, clusters, problem.column(sums, following))
