"""What matrix codecs have in common: matrices whose rows are data points, budgets, and codes that keep to them.

A budget says how many numbers a coded matrix may take, so that methods are compared at equal parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import check_keep_ratio
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.coded import LowRankMatrix, MatrixCode, unit_rows
from ntkfusion.models.blocks.dense import MLPBlock


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix as the model holds it, and which way its rows (one per output neuron, or per token) lie.

    Attributes:
        array: the matrix.
        budget: how many numbers its code may take.
        transposed: whether the rows are the array's columns, as in our kernels (inputs × outputs).
        squared: mean squared gradient of every entry, for codecs that weigh rows by it; or None.
    """

    array: Float[Array, "rows columns"]
    budget: int
    transposed: bool = False
    squared: Float[Array, "rows columns"] | None = None

    @property
    def rows(self) -> Float[Array, "n k"]:
        """The data points."""
        return self.array.T if self.transposed else self.array


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedMatrix:
    """A code and what was measured while it was made."""

    code: MatrixCode
    details: Mapping[str, float]


@runtime_checkable
class Codec(Protocol):
    """A way to code matrices."""

    @property
    def kept(self) -> float:
        """The fraction of a matrix's numbers that its code may take."""
        ...

    def check_matrices(self, name: str, matrices: Sequence[Matrix]) -> None:
        """Find out, before any work, whether the budgets suffice.

        Raises:
            InputError: if one does not.
        """
        ...

    def encode(self, name: str, matrices: Sequence[Matrix], workspace: Workspace) -> list[EncodedMatrix]:
        """Code matrices of one kind (from several layers), each within its budget."""
        ...


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The truncated SVD of every matrix as a codec, split UΣ^½ | Σ^½Vᵀ.

    Attributes:
        keep_ratio: the fraction of a matrix's numbers that the two factors may take.
    """

    keep_ratio: float = 0.25

    def __post_init__(self) -> None:
        """Check the keep ratio.

        Raises:
            InputError: if it is not in (0, 1].
        """
        check_keep_ratio(self.keep_ratio, "the kept share")

    @property
    def kept(self) -> float:
        """The fraction of a matrix's numbers that its code may take."""
        return self.keep_ratio

    def check_matrices(self, name: str, matrices: Sequence[Matrix]) -> None:
        """Refuse budgets below rank 1; see `Codec.check_matrices`."""
        for matrix in matrices:
            _rank(name, matrix)

    def encode(self, name: str, matrices: Sequence[Matrix], workspace: Workspace) -> list[EncodedMatrix]:
        """Truncate each matrix at the largest rank within its budget; see `Codec.encode`."""
        ranks = [_rank(name, matrix) for matrix in matrices]
        encoded = []
        for index, (matrix, rank) in enumerate(zip(matrices, ranks, strict=True)):
            workspace.progress(f"SVD of {name}", index / len(matrices))
            u, s, vt = jnp.linalg.svd(matrix.array, full_matrices=False)
            root = jnp.sqrt(s[:rank])
            code = LowRankMatrix(u[:, :rank] * root[None, :], root[:, None] * vt[:rank])
            encoded.append(EncodedMatrix(code, {"rank": float(rank)}))
        return encoded


def matrix_budgets(block: MLPBlock, neurons: int) -> tuple[int, int]:
    """Numbers for W1 and for W2 that make the block no larger than a dense block of `neurons` neurons.

    The biases stay as they are and are paid first; the rest is shared in proportion to the sizes of the matrices.

    >>> matrix_budgets(MLPBlock(jnp.zeros((2, 8)), jnp.zeros(8), jnp.zeros((8, 2)), jnp.zeros(2)), 4)
    (6, 6)
    """
    d, o, m = block.model_width, block.output_width, block.hidden_width
    left = neurons * (d + o + (block.b1 is not None)) - (0 if block.b1 is None else m)
    first = left * d // (d + o)
    return first, left - first


def fidelity(decoded: Float[Array, "n k"], rows: Float[Array, "n k"]) -> dict[str, float]:
    """The mean cosine between decoded and original rows, and ‖decoded − original‖ / ‖original‖ (Frobenius)."""
    cosines = jnp.sum(unit_rows(decoded) * unit_rows(rows), axis=1)
    error = jnp.linalg.norm(decoded - rows) / jnp.maximum(jnp.linalg.norm(rows), jnp.finfo(rows.dtype).tiny)
    return {"cosine": float(jnp.mean(cosines)), "relative_error": float(error)}


def _rank(name: str, matrix: Matrix) -> int:
    rank = min(matrix.budget // sum(matrix.array.shape), *matrix.array.shape)
    if rank < 1:
        raise InputError(
            f"{name}: rank 1 of a {matrix.array.shape} matrix takes {sum(matrix.array.shape)} numbers, the budget is "
            f"{matrix.budget}; choose a larger width"
        )
    return rank
