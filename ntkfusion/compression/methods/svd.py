"""Singular value decompositions of both weight matrices at equal parameters: plain, weighted and whitened.

All truncate at one rank; they differ in the norm in which the result is closest to the original.

* Plain: ‖W − M‖_F.
* Weighted: a row, in PyTorch's layout, is one output neuron of a matrix: a column of W [in, out] here. With one
  importance I_i ≥ 0 per output and D = diag(√I), ‖(W − M) D‖_F over M of rank k. Hsu et al. 2022, "Language model
  compression with weighted low-rank factorization" (arXiv 2207.00112), with Fisher information (FWSVD); LPAF (low-rank
  prune-and-factorise) is reconstructed from its abstract: what its row importance is, is not verified.
* Whitened: for the inputs that a matrix really gets. Chen et al. 2021, "DRONE: Data-aware low-rank compression for
  large NLP models" (also: activation-aware SVD).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import LayerwiseMethod
from ntkfusion.compression.neurons import Importance, by_output, first_order, fisher, l1, mask_of_largest
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock

Split = Literal["balanced", "left"]

#: U [rows, k], Σ [k] and Vᵀ [k, columns]: a matrix of rank k by its own singular value decomposition.
Triple = tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class LowRankMethod(LayerwiseMethod):
    """Replace W1 and W2 by approximations of rank k, kept as two factors each; a subclass says which ones.

    The rank is the largest one for which the factors and biases are no more numbers than a dense block of
    `keep_ratio`·m neurons has.

    Attributes:
        keep_ratio: the kept share of neurons of the dense block whose parameter count is matched.
        split: where the singular values UΣVᵀ of the approximation go: "balanced" UΣ^½ | Σ^½Vᵀ, or "left" UΣ | Vᵀ (the
            MLP Fusion paper's baseline). Same function, different kernels.
    """

    split: Split = "balanced"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a keep ratio out of range or an unknown split.
        """
        super().__post_init__()
        if self.split not in get_args(Split):
            raise InputError(f"unknown split {self.split!r} of the SVD; known: {', '.join(get_args(Split))}")

    def check_block(self, block: MLPBlock) -> None:
        """Refuse widths that leave no rank; see `LayerwiseMethod.check_block`."""
        matched_rank(block, self.kept_neurons(block.hidden_width))

    def makes(self) -> type[Block]:
        """Blocks of another kind; see `Method.makes`."""
        return FactorizedBlock

    @abstractmethod
    def approximate(self, block: MLPBlock, rank: int, index: int, workspace: Workspace) -> tuple[Triple, Triple]:
        """The approximations of W1 and W2, truncated to `rank`."""

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Factorise both matrices at the matched rank."""
        rank = matched_rank(block, self.kept_neurons(block.hidden_width))
        first, second = self.approximate(block, rank, index, workspace)
        (left1, right1), (left2, right2) = split_factors(*first, self.split), split_factors(*second, self.split)
        compressed = FactorizedBlock(left1, right1, block.b1, left2, right2, block.b2, activation=block.activation)
        return compressed, {"rank": float(rank)}


@dataclasses.dataclass(frozen=True)
class SVD(LowRankMethod):
    """Replace W1 and W2 by their best rank-k approximations; see `LowRankMethod`."""

    def approximate(self, block: MLPBlock, rank: int, index: int, workspace: Workspace) -> tuple[Triple, Triple]:
        """Truncated singular value decompositions."""

        def truncated(name: str, weights: Array) -> Triple:
            u, s, vt = workspace.reuse(("svd", index, name), lambda: thin_svd(weights))
            return u[:, :rank], s[:rank], vt[:rank]

        return truncated("w1", block.w1), truncated("w2", block.w2)


def matched_rank(block: MLPBlock, neurons: int) -> int:
    """The rank k for which k(d + m) + k(m + o) + biases ≤ the parameters of a dense block with `neurons` neurons.

    Raises:
        InputError: if not even rank 1 fits.
    """
    per_neuron = block.model_width + block.output_width + (block.b1 is not None)
    biases = block.hidden_width if block.b1 is not None else 0
    per_rank = block.model_width + 2 * block.hidden_width + block.output_width
    rank = (neurons * per_neuron - biases) // per_rank
    if rank < 1:
        raise InputError(
            f"svd: a rank-1 block needs {per_rank + biases} parameters beside the output biases, more than the "
            f"{neurons * per_neuron} of {neurons} dense neurons; choose a larger width"
        )
    return min(rank, block.model_width, block.hidden_width, block.output_width)


def thin_svd(weights: Float[Array, "rows columns"]) -> Triple:
    """U, Σ and Vᵀ without the columns that no singular value reaches."""
    u, s, vt = jnp.linalg.svd(weights, full_matrices=False)
    return u, s, vt


def split_factors(
    u: Float[Array, "rows rank"], s: Float[Array, " rank"], vt: Float[Array, "rank columns"], split: Split
) -> tuple[Float[Array, "rows rank"], Float[Array, "rank columns"]]:
    """Two factors of UΣVᵀ."""
    if split == "left":
        return u * s[None, :], vt
    return u * jnp.sqrt(s)[None, :], jnp.sqrt(s)[:, None] * vt


Weighting = Literal["fisher", "l1", "first-order", "survivors"]

Pruning = Literal["first-order", "l1"]

_SCORES: dict[str, Importance] = {
    "fisher": fisher,
    "l1": l1,
    "first-order": first_order,
}


@dataclasses.dataclass(frozen=True)
class WeightedSVD(LowRankMethod):
    """The best rank-k approximations in a norm that weighs every output neuron of a matrix by its importance.

    ``WeightedSVD(importance="fisher")`` is FWSVD; ``WeightedSVD(importance="survivors", prune="first-order")`` prunes
    first and weighs by what is left, the sparsity-aware SVD of LPAF. Without a task's gradients the Fisher information
    of W2 is the same for every output, and its weighted SVD the plain one.

    Attributes:
        keep_ratio: the kept share of neurons of the dense block whose parameter count is matched.
        split: as for `LowRankMethod`.
        importance: what is added up over the entries of an output: one of the scores of `compression.neurons`, or
            "survivors", the number of entries that pruning left.
        prune: score by which each matrix is pruned, entry by entry, before it is factorised; None leaves it whole.
            Scores of removed entries do not count.
        density: fraction of the entries that pruning keeps; by default `keep_ratio`.
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
        return _project_inputs(basis["w1"], weights["w1"], rank), _project_inputs(basis["w2"], weights["w2"], rank)

    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Factorise both matrices at the matched rank; see `LowRankMethod.compress_block`."""
        compressed, details = super().compress_block(block, index, workspace)
        return compressed, details if self.prune is None else {**details, "density": self._kept()[1]}

    def _kept(self) -> tuple[Pruning | None, float]:
        return self.prune, 1.0 if self.prune is None else self.density or self.keep_ratio

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
        return {name: weighted_basis(array, by_output(scores[name])) for name, array in weights.items()}


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


def _project_inputs(basis: Float[Array, "inputs full"], weights: Float[Array, "inputs outputs"], rank: int) -> Triple:
    """U_k U_kᵀ W by its own singular value decomposition."""
    basis = basis[:, :rank]
    with jax.default_matmul_precision("highest"):
        u, s, vt = thin_svd(basis.T @ weights)
        return basis @ u, s, vt


def _top(scores: Float[Array, "inputs outputs"], density: float) -> Float[Array, "inputs outputs"]:
    """1 at that fraction of the largest scores, at least one of them."""
    return mask_of_largest(scores, max(1, round(density * scores.size)))


@dataclasses.dataclass(frozen=True)
class WhitenedSVD(LowRankMethod):
    """Minimise ‖X (W − M)‖_F² / N + λ ‖W − M‖_F² over M of rank k, exactly, for the rows of X that reach W.

    For W1, X holds the block's calibration inputs; for W2, the hidden activations that the *original* block has on
    them (those of the compressed block would let W2 repair some of W1's error, and tie one matrix to the other).

    Attributes:
        keep_ratio: the kept share of neurons of the dense block whose parameter count is matched.
        split: as for `LowRankMethod`.
        damping: λ as a multiple of the mean square of X's entries; at least the rounding unit is taken. It decides
            where the tokens say nothing (fewer tokens than dimensions): there M is the plain SVD of what is left.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a keep ratio or damping out of range, or an unknown split.
        """
        super().__post_init__()
        if not 0 <= self.damping < float("inf"):
            raise InputError(f"damping must be a number of at least 0; got {self.damping}")

    def approximate(self, block: MLPBlock, rank: int, index: int, workspace: Workspace) -> tuple[Triple, Triple]:
        """Project on the leading right singular vectors of X W."""
        inputs = workspace.inputs(index)

        def bases() -> tuple[Array, Array]:
            hidden = block.hidden(inputs)
            return whitened_basis(block.w1, inputs, self.damping), whitened_basis(block.w2, hidden, self.damping)

        first, second = workspace.reuse(("whitened-svd", index, self.damping), bases)
        return _project_outputs(block.w1, first, rank), _project_outputs(block.w2, second, rank)


@partial(jax.jit, static_argnames="damping")
def whitened_basis(
    weights: Float[Array, "inputs outputs"], rows: Float[Array, "N inputs"], damping: float
) -> Float[Array, "full outputs"]:
    """Right singular vectors Vᵀ of [X/√N; √λ I] W: W V_k V_kᵀ is a best approximation of rank k (see `WhitenedSVD`).

    The second moment XᵀX is neither formed nor inverted: with the stacked rows S, W V_k V_kᵀ = S⁺ svd_k(S W), so that
    nothing is divided by a small number. Of S, or of S W if that is narrower, only the R of its QR is kept.
    """
    size = jnp.mean(rows**2)
    scale = max(damping, float(jnp.finfo(weights.dtype).eps)) * jnp.where(size > 0, size, 1)
    with jax.default_matmul_precision("highest"):
        rows = rows / jnp.sqrt(jnp.array(rows.shape[0], rows.dtype))
        if weights.shape[0] > weights.shape[1]:
            stacked = jnp.concatenate([rows @ weights, jnp.sqrt(scale) * weights])
            return thin_svd(jnp.linalg.qr(stacked, mode="r"))[2]
        stacked = jnp.concatenate([rows, jnp.sqrt(scale) * jnp.eye(weights.shape[0], dtype=weights.dtype)])
        return thin_svd(jnp.linalg.qr(stacked, mode="r") @ weights)[2]


def _project_outputs(weights: Float[Array, "inputs outputs"], basis: Float[Array, "full outputs"], rank: int) -> Triple:
    """W V_k V_kᵀ by its own singular value decomposition."""
    basis = basis[:rank]
    with jax.default_matmul_precision("highest"):
        u, s, vt = thin_svd(weights @ basis.T)
        return u, s, vt @ basis
