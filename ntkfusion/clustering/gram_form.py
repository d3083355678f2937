"""k-means in Gram space: few points in a high dimension."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.clustering.problem import Problem, Score, lowest_of_rows, standardise
from ntkfusion.models.pytree import pytree


@pytree
class GramProblem(Problem):
    """Keeps G = ΘΘᵀ and, of the clusters, S [c, N]: the dimension is gone, and a point that moves costs 2N additions.

    Attributes:
        points: standardised points, [N, D].
        norms: their squared norms, [N].
        weights: their weights, [N].
        unit: see `Problem`.
        gram: G, exactly symmetric, [N, N].
    """

    points: Float[Array, "N D"]
    norms: Float[Array, " N"]
    weights: Float[Array, " N"]
    unit: Float[Array, ""]
    gram: Float[Array, "N N"]

    def inner(self, chosen: Int[Array, " k"]) -> Float[Array, "k N"]:
        """Rows of G."""
        return self.gram[chosen]

    def sums(self, labels: Int[Array, " N"], num_clusters: int) -> Float[Array, "c N"]:
        """S_ji = Σ_{l∈C_j} w_l G_li."""
        return jax.ops.segment_sum(self.gram * self.weights[:, None], labels, num_clusters)

    def relabel(self, sums: Float[Array, "c N"], old: Int[Array, " N"], new: Int[Array, " N"]) -> Float[Array, "c N"]:
        """Row by row while few points move; anew, which also ends the drift of rounding, while many do."""
        moved = old != new
        count = jnp.sum(moved)

        def one_by_one(sums: Array) -> Array:
            points = jnp.nonzero(moved, size=moved.shape[0], fill_value=0)[0]

            def move(index: Int[Array, ""], sums: Array) -> Array:
                point = points[index]
                return self.transfer(sums, point, old[point], new[point], self.weights[point])

            return jax.lax.fori_loop(0, count, move, sums)

        # a move takes two rows, a fresh sum one row of every point
        return jax.lax.cond(2 * count > moved.shape[0], lambda _: self.sums(new, sums.shape[0]), one_by_one, sums)

    def transfer(
        self,
        sums: Float[Array, "c N"],
        point: Int[Array, ""],
        old: Int[Array, ""],
        new: Int[Array, ""],
        weight: Float[Array, ""],
    ) -> Float[Array, "c N"]:
        """Two rows change."""
        row = weight * self.gram[point]
        return sums.at[old].add(-row).at[new].add(row)

    def column(self, sums: Float[Array, "c N"], point: Int[Array, ""]) -> Float[Array, " c"]:
        """A column of S."""
        return sums[:, point]

    def own(self, sums: Float[Array, "c N"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """One entry per column."""
        return jnp.take_along_axis(sums, labels[None, :], axis=0)[0]

    def lowest(
        self, sums: Float[Array, "c N"], score: Score, columns: tuple[Array, ...]
    ) -> tuple[Float[Array, " N"], Int[Array, " N"]]:
        """All columns at once."""
        return lowest_of_rows(sums, score, columns)


def gram_problem(
    points: Float[Array, "N D"], weights: Float[Array, " N"], column_weights: Float[Array, " D"]
) -> GramProblem:
    """The problem by its Gram matrix, which takes N² numbers."""
    points, weights, unit = standardise(points, weights, column_weights)
    gram = jnp.matmul(points, points.T, precision="highest")
    # halved sum with the transpose: exact symmetry, so that distances of a point to itself are exactly 0
    gram = 0.5 * (gram + gram.T)
    return GramProblem(points, jnp.diag(gram), weights, unit, gram)


def gram_bytes(num_points: int, dimension: int, num_clusters: int, itemsize: int, workers: int) -> int:
    """What the form takes at most: G while it is made symmetric, the points twice, and S twice per worker."""
    return itemsize * num_points * (3 * num_points + 2 * dimension + 2 * workers * num_clusters)
