"""Row-weighted singular value decompositions: FWSVD (Fisher) and the sparsity-aware one of LPAF.

A row, in PyTorch's layout, is one output neuron of a matrix: a column of W [in, out] here. With one importance I_i ≥ 0
per output and D = diag(√I), both minimise ‖(W − M) D‖_F over M of rank k.

Sources: Hsu et al. 2022, "Language model compression with weighted low-rank factorization" (arXiv 2207.00112). LPAF
(low-rank prune-and-factorise) is reconstructed from its abstract: what its row importance is, is not verified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression import importance as importances
from ntkfusion.compression.contract import Workspace
from ntkfusion.compression.masks import mask_of_largest
from ntkfusion.compression.svd import LowRankMethod, Triple, thin_svd
from ntkfusion.errors import InputError
from ntkfusion.models.mlp import Block, MLPBlock

Weighting = Literal["fisher", "l1", "first-order", "survivors"]
Pruning = Literal["first-order", "l1"]

_SCORES: dict[str, importances.Importance] = {
    "fisher": importances.fisher,
    "l1": importances.l1,
    "first-order": importances.first_order,
}


@dataclasses.dataclass(frozen=True)
class WeightedSVD(LowRankMethod):
    """The best rank-k approximations in a norm that weighs every output neuron of a matrix by its importance.

    ``WeightedSVD(importance="fisher")`` is FWSVD; ``WeightedSVD(importance="survivors", prune="first-order")`` prunes
    first and weighs by what is left, the sparsity-aware SVD of LPAF. Without a task's gradients the Fisher information
    of W2 is the same for every output, and its weighted SVD the plain one.

    Attributes:
        width: the width of the dense block whose parameter count is matched.
        split: as for `LowRankMethod`.
        importance: what is added up over the entries of an output: one of the scores of `compression.importance`, or
            "survivors", the number of entries that pruning left.
        prune: score by which each matrix is pruned, entry by entry, before it is factorised; None leaves it whole.
            Scores of removed entries do not count.
        density: fraction of the entries that pruning keeps; by default `width`.
    """

    importance: Weighting = "fisher"
    prune: Pruning | None = None
    density: float | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a value out of range, an unknown name, or a combination that has no meaning.
        """
        super().__post_init__()
        if self.importance not in get_args(Weighting):
            raise InputError(f"unknown importance {self.importance!r}; known: {', '.join(get_args(Weighting))}")
        if self.prune is not None and self.prune not in get_args(Pruning):
            raise InputError(f"unknown score to prune by {self.prune!r}; known: {', '.join(get_args(Pruning))}")
        if self.prune is None and (self.importance == "survivors" or self.density is not None):
            raise InputError("survivors and density are of pruned matrices; say what to prune by, say first-order")
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(f"density is the kept fraction of the entries, above 0 and at most 1; got {self.density}")

    def approximate(self, block: MLPBlock, rank: int, index: int, workspace: Workspace) -> tuple[Triple, Triple]:
        """Project on the leading left singular vectors of W D."""
        weights = self._pruned(block, index, workspace)
        basis = workspace.reuse(
            ("weighted-svd", index, self.importance, self._kept()),
            lambda: self._basis(block, weights, index, workspace),
        )
        return _project(basis["w1"], weights["w1"], rank), _project(basis["w2"], weights["w2"], rank)

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Factorise both matrices at the matched rank; see `LowRankMethod.compress_block`."""
        compressed, details = super().compress_block(block, index, workspace)
        return compressed, details if self.prune is None else {**details, "density": self._kept()[1]}

    def _kept(self) -> tuple[Pruning | None, float]:
        return self.prune, 1.0 if self.prune is None else self.density or self.width

    def _pruned(self, block: MLPBlock, index: int, workspace: Workspace) -> dict[str, Array]:
        """Both matrices without the entries of the lowest scores."""
        weights, (score, density) = {"w1": block.w1, "w2": block.w2}, self._kept()
        if score is None:
            return weights

        def compute() -> dict[str, Array]:
            scores = _SCORES[score](block, index, workspace)
            return {name: jnp.where(_top(scores[name], density) > 0, array, 0) for name, array in weights.items()}

        return workspace.reuse(("pruned", index, score, density), compute)

    def _basis(
        self, block: MLPBlock, weights: Mapping[str, Array], index: int, workspace: Workspace
    ) -> dict[str, Float[Array, "inputs full"]]:
        left = {name: (array != 0).astype(array.dtype) for name, array in weights.items()}
        if self.importance == "survivors":
            scores = left
        else:
            scores = _SCORES[self.importance](block, index, workspace)
            scores = scores if self.prune is None else {name: scores[name] * left[name] for name in scores}
        return {name: weighted_basis(array, importances.by_output(scores[name])) for name, array in weights.items()}


def weighted_basis(
    weights: Float[Array, "inputs outputs"], importance: Float[Array, " outputs"]
) -> Float[Array, "inputs full"]:
    """Left singular vectors U of W D, D = diag(√importance): U_k U_kᵀ W is a best rank-k approximation in ‖· D‖_F.

    Where the importance is not 0 this is svd_k(W D) D⁺. Outputs of importance 0, which D⁺ would set to 0, cost nothing
    either way: they keep what U_k can hold of them. If no output is important, all are equally so.
    """
    most = jnp.max(importance)
    # relative to the largest: squared gradients can be as small as float32 can hold
    root = jnp.where(most > 0, jnp.sqrt(importance / jnp.where(most > 0, most, 1)), 1)
    return thin_svd(weights * root[None, :])[0]


def _project(basis: Float[Array, "inputs full"], weights: Float[Array, "inputs outputs"], rank: int) -> Triple:
    """U_k U_kᵀ W by its own singular value decomposition."""
    basis = basis[:, :rank]
    with jax.default_matmul_precision("highest"):
        u, s, vt = thin_svd(basis.T @ weights)
        return basis @ u, s, vt


def _top(scores: Float[Array, "inputs outputs"], density: float) -> Float[Array, "inputs outputs"]:
    """1 at that fraction of the largest scores, at least one of them."""
    return mask_of_largest(scores, max(1, round(density * scores.size)))
