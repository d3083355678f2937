"""A weighted k-means problem in one of two forms: by its Gram matrix, or by its points.

Centroids never appear. With u_j = Σ_{i∈C_j} w_i θ_i, the mass W_j = Σ_{i∈C_j} w_i and S_ji = ⟨u_j, θ_i⟩,
``‖θ_i − u_j/W_j‖² = ‖θ_i‖² − (2/W_j) S_ji + ‖u_j‖²/W_j²`` and ``‖u_j‖² = Σ_{i∈C_j} w_i S_ji``. The two forms differ in
what they keep of the clusters: S itself, updated from rows of G = ΘΘᵀ (few points in a high dimension), or u, from
which S is computed in blocks (more points than a Gram matrix has room for).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.utils.pytrees import pytree, static

#: What a cluster scores at points: from its index, its row of S and the given columns of per-point values.
Score = Callable[[Int[Array, ""], Float[Array, " B"], tuple[Array, ...]], Float[Array, " B"]]


class ClusteringProblem(ABC):
    """N points with weights; "sums" stands for what the form keeps of the clusters.

    Attributes:
        points: centred and scaled points, in coordinates where the metric is Euclidean, [N, D].
        norms: squared norms of the points, [N].
        weights: weights of the points, the largest 1, [N].
        unit: what an inertia of these points and weights must be multiplied by to be that of the given ones.
    """

    points: Float[Array, "N D"]
    norms: Float[Array, " N"]
    weights: Float[Array, " N"]
    unit: Float[Array, ""]

    @property
    def rounding(self) -> Float[Array, ""]:
        """What a squared distance must differ by to count as different."""
        present = jnp.where(self.weights > 0, self.norms, 0)
        return 8 * jnp.finfo(self.norms.dtype).eps * jnp.max(present)

    @abstractmethod
    def inner(self, chosen: Int[Array, " k"]) -> Float[Array, "k N"]:
        """Inner products of some points with all."""

    @abstractmethod
    def sums(self, labels: Int[Array, " N"], num_clusters: int) -> Array:
        """The sums of a labelling."""

    @abstractmethod
    def relabel(self, sums: Array, old: Int[Array, " N"], new: Int[Array, " N"]) -> Array:
        """The sums after points went from their old to their new clusters."""

    @abstractmethod
    def transfer(
        self, sums: Array, point: Int[Array, ""], old: Int[Array, ""], new: Int[Array, ""], weight: Float[Array, ""]
    ) -> Array:
        """The sums after one point, with that weight, went from cluster `old` to cluster `new`."""

    @abstractmethod
    def column(self, sums: Array, point: Int[Array, ""]) -> Float[Array, " c"]:
        """S_ji of one point i."""

    @abstractmethod
    def own(self, sums: Array, labels: Int[Array, " N"]) -> Float[Array, " N"]:
        """S_ji of every point i with its own cluster j."""

    @abstractmethod
    def lowest(
        self, sums: Array, score: Score, columns: tuple[Array, ...]
    ) -> tuple[Float[Array, " N"], Int[Array, " N"]]:
        """The lowest score of every point and the first cluster that has it."""


def lowest_of_rows(
    inner: Float[Array, "c B"], score: Score, columns: tuple[Array, ...]
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """The lowest score of every column of S and its row, in one pass: many times faster than `argmin` on CPUs."""

    def visit(cluster: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        lowest, index = state
        cluster = cluster.astype(jnp.int32)
        scores = score(cluster, inner[cluster], columns)
        lower = scores < lowest
        return jnp.where(lower, scores, lowest), jnp.where(lower, cluster, index)

    count = inner.shape[1]
    start = (jnp.full(count, jnp.inf, inner.dtype), jnp.zeros(count, jnp.int32))
    return jax.lax.fori_loop(0, inner.shape[0], visit, start)


def standardise(
    points: Float[Array, "N D"], weights: Float[Array, " N"], column_weights: Float[Array, " D"]
) -> tuple[Float[Array, "N D"], Float[Array, " N"], Float[Array, ""]]:
    """Points in coordinates where the metric is Euclidean, centred and scaled; weights of at most 1; the unit.

    Distances from inner products cancel in float32 far from the origin, and squares of very large or very small numbers
    leave its range.
    """
    largest, largest_column = jnp.max(weights), jnp.max(column_weights)
    weights = weights / largest
    # divided before multiplied: the sum of large numbers may overflow where their mean does not
    mean = jnp.sum(points * (weights / jnp.sum(weights))[:, None], axis=0, keepdims=True)
    present = jnp.where(weights > 0, 1, 0).astype(points.dtype)
    centred = (points - mean) * jnp.sqrt(column_weights / largest_column)[None, :]
    scale = jnp.max(jnp.abs(centred) * present[:, None])
    scale = jnp.where(scale > 0, scale, 1)
    return centred / scale, weights, scale * scale * largest * largest_column


@pytree
class GramProblem(ClusteringProblem):
    """Keeps G = ΘΘᵀ and, of the clusters, S [c, N]: the dimension is gone, and a point that moves costs 2N additions.

    Attributes:
        points: standardised points, [N, D].
        norms: their squared norms, [N].
        weights: their weights, [N].
        unit: see `ClusteringProblem`.
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


#: Numbers in the part of S that is there at a time.
BLOCK_NUMBERS = 2**21


@pytree
class DirectProblem(ClusteringProblem):
    """Keeps, of the clusters, u [c, D]; S is computed for one block of points at a time.

    Attributes:
        points: standardised points, filled up with points of weight 0 to whole blocks, [N, D].
        norms: their squared norms, [N].
        weights: their weights, [N].
        unit: see `ClusteringProblem`.
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
