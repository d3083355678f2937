"""Both weight matrices as sums of Kronecker products, at equal parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.matrices.codecs import EncodedMatrix, Matrix, matrix_budgets
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.coded import CodedBlock, KroneckerMatrix
from ntkfusion.models.blocks.dense import MLPBlock

#: U, Σ, Vᵀ.
SVDFactors = tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class Kronecker(LayerwiseMethod):
    """Replace W1 and W2 by their best sums of Kronecker products, ``W ≈ Σ_{i≤r} A_i ⊗ B_i``.

    For given shapes of A and B this is the best rank-r approximation of the rearranged matrix, whose rows are the
    blocks of W (Van Loan & Pitsianis 1993): a truncated SVD, where Banaei et al. 2023 train by gradient descent. Shapes
    are near the square root of the matrix's; see `factor_shapes`. The number of terms is the largest for which
    terms and biases are no more numbers than a dense block of `keep_ratio`·m neurons has.

    Attributes:
        keep_ratio: the kept share of neurons of the dense block whose parameter count is matched.
    """

    @property
    def kept(self) -> float:
        """The fraction of a matrix's numbers that its code may take."""
        return self.keep_ratio

    def makes(self) -> type[Block]:
        """Blocks of another kind; see `Method.makes`."""
        return CodedBlock

    def check_block(self, block: MLPBlock) -> None:
        """Refuse widths that leave no term; see `LayerwiseMethod.check_block`."""
        self._terms(block)

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Approximate both matrices with the matched numbers of terms."""
        terms = self._terms(block)
        codes = [
            kronecker_sum(weights, workspace.reuse(("kronecker", index, name), lambda w=weights: _svd(w)), count)
            for (name, weights), count in zip((("w1", block.w1), ("w2", block.w2)), terms, strict=True)
        ]
        details = {"w1_terms": float(terms[0]), "w2_terms": float(terms[1])}
        return CodedBlock(codes[0], block.b1, codes[1], block.b2, activation=block.activation), details

    def check_matrices(self, name: str, matrices: Sequence[Matrix]) -> None:
        """Refuse budgets below one term; see `ntkfusion.compression.matrices.codecs.Codec.check_matrices`."""
        for matrix in matrices:
            num_terms(name, matrix.array.shape, matrix.budget)

    def encode(self, name: str, matrices: Sequence[Matrix], workspace: Workspace) -> list[EncodedMatrix]:
        """Approximate single matrices within their budgets; see `check_matrices`."""
        terms = [num_terms(name, matrix.array.shape, matrix.budget) for matrix in matrices]
        encoded = []
        for index, (matrix, count) in enumerate(zip(matrices, terms, strict=True)):
            workspace.progress(f"Kronecker terms of {name}", index / len(matrices))
            code = kronecker_sum(matrix.array, _svd(matrix.array), count)
            encoded.append(EncodedMatrix(code, {"terms": float(count)}))
        return encoded

    def _terms(self, block: MLPBlock) -> tuple[int, int]:
        budgets = matrix_budgets(block, self.kept_neurons(block.hidden_width))
        return num_terms("w1", block.w1.shape, budgets[0]), num_terms("w2", block.w2.shape, budgets[1])


def factor_shapes(shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The shapes [p, q] of A and [s, t] of B for a matrix [p s, q t].

    Rows and columns are each split at the divisor nearest to their square root from below; A gets the smaller divisor
    of the rows and the larger one of the columns, so that A and B are about equally large.

    >>> factor_shapes((384, 1536))
    ((16, 48), (24, 32))
    """
    rows, columns = shape
    p, t = _divisor(rows), _divisor(columns)
    return (p, columns // t), (rows // p, t)


def _divisor(number: int) -> int:
    return next(d for d in range(math.isqrt(number), 0, -1) if number % d == 0)


def num_terms(name: str, shape: tuple[int, ...], budget: int) -> int:
    """The largest number of terms within a budget; never more than reproduce every matrix.

    Raises:
        InputError: if not even one term fits.
    """
    left, right = (math.prod(factor) for factor in factor_shapes(shape))
    if budget < left + right:
        raise InputError(
            f"kronecker: one term of {name} {tuple(shape)} takes {left + right} numbers, the budget is {budget}; "
            "choose a larger width"
        )
    return min(budget // (left + right), left, right)


def rearrange(weights: Float[Array, "rows columns"]) -> Float[Array, "pq st"]:
    """The matrix whose row (a, b) holds the block of `weights` that entry (a, b) of A multiplies in A ⊗ B."""
    (p, q), (s, t) = factor_shapes(weights.shape)
    return weights.reshape(p, s, q, t).transpose(0, 2, 1, 3).reshape(p * q, s * t)


def kronecker_sum(weights: Float[Array, "rows columns"], svd: SVDFactors, count: int) -> KroneckerMatrix:
    """The `count` leading terms of the rearranged `weights` = UΣVᵀ, each singular value split in halves."""
    (u, s, vt), (left, right) = svd, factor_shapes(weights.shape)
    root = jnp.sqrt(s[:count])[:, None]
    return KroneckerMatrix((root * u[:, :count].T).reshape(count, *left), (root * vt[:count]).reshape(count, *right))


@jax.jit
def _svd(weights: Float[Array, "rows columns"]) -> SVDFactors:
    u, s, vt = jnp.linalg.svd(rearrange(weights), full_matrices=False)
    return u, s, vt
