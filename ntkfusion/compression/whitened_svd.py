"""Whitened singular value decomposition: the best low rank for the inputs that a matrix really gets.

Source: Chen et al. 2021, "DRONE: Data-aware low-rank compression for large NLP models" (also: activation-aware SVD).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.contract import Workspace
from ntkfusion.compression.svd import LowRankMethod, Triple, thin_svd
from ntkfusion.errors import InputError
from ntkfusion.models.mlp import MLPBlock


@dataclasses.dataclass(frozen=True)
class WhitenedSVD(LowRankMethod):
    """Minimise ‖X (W − M)‖_F² / N + λ ‖W − M‖_F² over M of rank k, exactly, for the rows of X that reach W.

    For W1, X holds the block's calibration inputs; for W2, the hidden activations that the *original* block has on
    them (those of the compressed block would let W2 repair some of W1's error, and tie one matrix to the other).

    Attributes:
        width: the width of the dense block whose parameter count is matched.
        split: as for `LowRankMethod`.
        damping: λ as a multiple of the mean square of X's entries; at least the rounding unit is taken. It decides
            where the tokens say nothing (fewer tokens than dimensions): there M is the plain SVD of what is left.
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a width or damping out of range, or an unknown split.
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
        return _project(block.w1, first, rank), _project(block.w2, second, rank)


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


def _project(weights: Float[Array, "inputs outputs"], basis: Float[Array, "full outputs"], rank: int) -> Triple:
    """W V_k V_kᵀ by its own singular value decomposition."""
    basis = basis[:rank]
    with jax.default_matmul_precision("highest"):
        u, s, vt = thin_svd(weights @ basis.T)
        return u, s, vt @ basis
