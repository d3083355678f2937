"""Truncated singular value decomposition of both weight matrices, matched by the number of parameters."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import LayerwiseMethod, Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.mlp import Block, FactorizedBlock, MLPBlock

Split = Literal["balanced", "left"]

#: U [rows, k], Σ [k] and Vᵀ [k, columns]: a matrix of rank k by its own singular value decomposition.
Triple = tuple[Array, Array, Array]


@dataclasses.dataclass(frozen=True)
class LowRankMethod(LayerwiseMethod):
    """Replace W1 and W2 by approximations of rank k, kept as two factors each; a subclass says which ones.

    The rank is the largest one for which the factors and biases are no more numbers than a dense block of
    `width`·m neurons has.

    Attributes:
        width: the width of the dense block whose parameter count is matched.
        split: where the singular values UΣVᵀ of the approximation go: "balanced" UΣ^½ | Σ^½Vᵀ, or "left" UΣ | Vᵀ (the
            MLP Fusion paper's baseline). Same function, different kernels.
    """

    split: Split = "balanced"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a width out of range or an unknown split.
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
