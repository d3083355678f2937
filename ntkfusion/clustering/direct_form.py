"""k-means by the points themselves, in blocks: more points than a Gram matrix has room for."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.clustering.problem import Problem, Score, lowest_of_rows, standardise
from ntkfusion.models.pytree import pytree, static

#: Numbers in the part of S that is there at a time.
BLOCK_NUMBERS = 2**21


@pytree
class DirectProblem(Problem):
    """Keeps, of the clusters, u [c, D]; S is computed for one block of points at a time.

    Attributes:
        points: standardised points, filled up with points of weight 0 to whole blocks, [N, D].
        norms: their squared norms, [N].
        weights: their weights, [N].
        unit: see `Problem`.
        block: points per block.
    """

    points: Float[Array, "N D"]
    norms: Float[Array, " N"]
    weights: Float[Array, " N"]
    unit: Float[Array, ""]
    block: int = static()

    def inner(self, chosen: Int[Array, " k"]) -> Float[Array, "k N"]:
        """Products of the chosen points with all."""
        return jnp.matmul(self.points[chosen], self.points.T, precision="highest")

    def sums(self, labels: Int[Array, " N"], num_clusters: int) -> Float[Array, "c D"]:
        """u_j = Σ_{i∈C_j} w_i θ_i."""
        return jax.ops.segment_sum(self.points * self.weights[:, None], labels, num_clusters)

    def relabel(self, sums: Float[Array, "c D"], old: Int[Array, " N"], new: Int[Array, " N"]) -> Float[Array, "c D"]:
        """Anew: cheap beside the distances."""
        del old
        return self.sums(new, sums.shape[0])

    def transfer(
        self,
        sums: Float[Array, "c D"],
        point: Int[Array, ""],
        old: Int[Array, ""],
        new: Int[Array, ""],
        weight: Float[Array, ""],
    ) -> Float[Array, "c D"]:
        """Two rows change."""
        row = weight * self.points[point]
        return sums.at[old].add(-row).at[new].add(row)

    def column(self, sums: Float[Array, "c D"], point: Int[Array, ""]) -> Float[Array, " c"]:
        """Products of all sums with the point."""
        return jnp.matmul(sums, self.points[point], precision="highest")

    def own(self, sums: Float[Array, "c D"], labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """Products of every point with the sum of its cluster."""
        return self._by_blocks(lambda points, labels: jnp.sum(points * sums[labels], axis=1), self.points, labels)

    def lowest(
        self, sums: Float[Array, "c D"], score: Score, columns: tuple[Array, ...]
    ) -> tuple[Float[Array, " N"], Int[Array, " N"]]:
        """Block by block."""

        def one(points: Float[Array, "B D"], *columns: Array) -> tuple[Array, Array]:
            return lowest_of_rows(jnp.matmul(sums, points.T, precision="highest"), score, columns)

        return self._by_blocks(one, self.points, *columns)

    def _by_blocks(self, function: Callable[..., Array | tuple[Array, ...]], *arrays: Array):
        """The function of corresponding blocks of rows, results joined."""
        blocks = [array.reshape(-1, self.block, *array.shape[1:]) for array in arrays]
        results = jax.lax.map(lambda parts: function(*parts), tuple(blocks))
        return jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), results)


def direct_problem(
    points: Float[Array, "N D"], weights: Float[Array, " N"], column_weights: Float[Array, " D"], block: int
) -> DirectProblem:
    """The problem by its points, in blocks of that many."""
    points, weights, unit = standardise(points, weights, column_weights)
    missing = -points.shape[0] % block
    points, weights = jnp.pad(points, ((0, missing), (0, 0))), jnp.pad(weights, (0, missing))
    return DirectProblem(points, jnp.sum(points**2, axis=1), weights, unit, block)


def block_size(num_points: int, num_clusters: int) -> int:
    """Points per block."""
    return max(1, min(num_points, BLOCK_NUMBERS // num_clusters))
