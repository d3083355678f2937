"""A bound of the output error that stays informative on real weights, because leading directions are evaluated.

With the split of `enclosure`, y any vector (the output of a fused block) and any numbers d_i > 0,

    f(x) − y = β + Aᵀt,    β = Σ_j n_j v̄_j ā_j + b2 − y,    t_i = α_i/d_i,    A = diag(d) δV = U S Rᵀ

*Statement.* With p = Uᵀt, k leading directions and κ = β + Σ_{l≤k} s_l p_l R_l, which are evaluated,

    ‖f(x) − y‖² ≤ ‖R_kᵀκ‖² + (‖κ − R_k R_kᵀκ‖ + ϱ)²,    ϱ = s_{k+1} (‖t‖² − Σ_{l≤k} p_l²)^{1/2}

and ≥ with (‖κ − R_k R_kᵀκ‖ − ϱ)₊. *Proof.* The rest Σ_{l>k} s_l p_l R_l is orthogonal to R_k and no longer than ϱ, as
Σ_{l>k} p_l² ≤ ‖t‖² − Σ_{l≤k} p_l². The bound is the largest error that κ and ϱ allow; what k + 1 directions allow, k
allow, since ϱ² ≥ s_{k+1}² p_{k+1}² + ϱ_{k+1}²: it falls with k. At k = o the rest is 0 and it is the error. ∎

Evaluated exactly: a (hence m e products per input), the c means, k of o directions. Bounded: the other directions.
Cost per input: m e + c e + 2 c o + k (m + 2 o) multiplications; measuring takes (m + c)(e + o).

Source: own derivation, docs/theory.md, Theorem 4.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.enclosures.enclosure import (
    ClusteredNeurons,
    Enclosure,
    Features,
    check_fused,
    cluster_neurons,
    features_at,
    kept,
    orthonormality_defect,
    unit_of,
)
from ntkfusion.utils.pytrees import pytree


def output_enclosure(
    original: MLPBlock,
    fused: Block,
    x: Float[Array, "N d"],
    labels: Int[Array, " m"] | None = None,
    *,
    share: float = 0.125,
    directions: OutputDirections | None = None,
) -> Enclosure:
    """Proven limits of ‖f(x) − f̃(x)‖ for every input; see the module.

    Args:
        original: a dense block in float64 without constants.
        fused: any block in float64 with outputs of the same width; its outputs as evaluated here are y, so that only
            the original's rounding counts.
        x: inputs in float64.
        labels: the cluster of every neuron of the original; None for no clusters. Any labels give valid limits.
        share: how many of the output directions are evaluated. 0 takes none, 1 gives the error itself.
        directions: from `output_directions`, then `labels` are not read; by default made from `x`.

    Returns:
        Lower and upper limits, [N]; the upper ones fall as the share grows.

    Raises:
        InputError: as `output_directions`, for a fused block of other widths or not in float64, or for a share out of
            range.

    >>> import jax, jax.numpy as jnp
    >>> with jax.enable_x64(True):
    ...     block = MLPBlock(jnp.array([[1.0, 1.5]]), None, jnp.ones((2, 1)), None, activation="relu")
    ...     half = MLPBlock(jnp.array([[1.25]]), None, jnp.array([[2.2]]), None, activation="relu")
    ...     found = output_enclosure(block, half, jnp.ones((1, 1)), share=1.0)
    ...     round(float(found.lower[0]), 9), round(float(found.upper[0]), 9)
    (0.25, 0.25)
    """
    chosen = output_directions(original, labels, x) if directions is None else directions
    return enclose_output(original, fused, x, chosen, share)


@pytree
class OutputDirections:
    """The singular value decomposition diag(d) δV ≈ U S Rᵀ, with what it lacks.

    Attributes:
        clusters: the neurons it belongs to.
        scale: d, [m].
        left: U, [m, q], q = min(m, o).
        values: S, [q], falling.
        right: R, [o, q].
        defect: a bound of ‖UᵀU − I‖ and of ‖RᵀR − I‖.
        residual: a bound of ‖diag(d) δV − U S Rᵀ‖_F.
    """

    clusters: ClusteredNeurons
    scale: Float[Array, " m"]
    left: Float[Array, "m q"]
    values: Float[Array, " q"]
    right: Float[Array, "o q"]
    defect: Float[Array, ""]
    residual: Float[Array, ""]


def output_directions(
    original: MLPBlock, labels: Int[Array, " m"] | None, calibration: Float[Array, "N d"]
) -> OutputDirections:
    """Directions of outputs that lead where d is each neuron's root mean square deviation at calibration inputs.

    Any inputs give a valid bound; such as those of the bound give a small one.

    Args:
        original: a dense block in float64 without constants.
        labels: the cluster of every neuron; None for no clusters.
        calibration: inputs, float64.

    Returns:
        The `OutputDirections`.

    Raises:
        InputError: as `cluster_neurons` and `features_at`.
    """
    clusters = cluster_neurons(original, labels)
    deviations = features_at(original, clusters, calibration).alpha
    scale = jnp.sqrt(jnp.mean(deviations**2, axis=0))
    largest = jnp.max(scale)
    scale = jnp.where(largest > 0, jnp.maximum(scale, _FLOOR * largest), 1.0)
    matrix = scale[:, None] * clusters.delta_v
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    unit = unit_of(clusters)
    defect = jnp.maximum(orthonormality_defect(left, unit), orthonormality_defect(right.T, unit))
    rounding = 4 * unit * values.shape[0] * values[0]
    residual = jnp.linalg.norm(matrix - (left * values[None, :]) @ right) + rounding
    return OutputDirections(clusters, scale, left, values, right.T, defect, residual)


#: κ, ϱ and what rounding can do to them, from directions, features, the known part and k.
Split = Callable[
    [OutputDirections, Features, Float[Array, "N o"], int],
    tuple[Float[Array, "N o"], Float[Array, " N"], Float[Array, " N"]],
]


def enclose_output(
    original: MLPBlock,
    fused: Block,
    x: Float[Array, "N d"],
    directions: OutputDirections,
    share: float,
    split: Split | None = None,
) -> Enclosure:
    """`output_enclosure` for given directions; a check may hand over a wrong `split` (by default `split_output`)."""
    check_fused(original, fused)
    k = kept(share, directions.values.shape[0])
    side = features_at(original, directions.clusters, x)
    bias = 0.0 if original.b2 is None else original.b2[None, :]
    means = (side.mean_a * directions.clusters.counts[None, :]) @ directions.clusters.mean_v
    known, radius, rounding = (split or split_output)(directions, side, means + bias - fused(x), k)
    return _limits(directions, known, radius, rounding + _allowance(original, directions.clusters, side), k)


def split_output(
    d: OutputDirections, side: Features, base: Float[Array, "N o"], k: int
) -> tuple[Float[Array, "N o"], Float[Array, " N"], Float[Array, " N"]]:
    """κ, ϱ and what rounding of the products with U can do."""
    t = side.alpha / d.scale[None, :]
    p = (t @ d.left[:, :k]) * d.values[None, :k]
    known = base + p @ d.right[:, :k].T
    size, unit = jnp.linalg.norm(t, axis=1), unit_of(d.clusters)
    slack = d.defect + 8 * unit * t.shape[1] ** 0.5
    rest = jnp.maximum(size**2 - jnp.sum((t @ d.left[:, :k]) ** 2, axis=1), 0) + slack * size**2
    following = d.values[k] if k < d.values.shape[0] else 0.0
    radius = following * jnp.sqrt(rest) * (1 + d.defect)
    return known, radius, size * (d.residual + 8 * unit * t.shape[1] ** 0.5 * d.values[0])


def _limits(
    d: OutputDirections, known: Float[Array, "N o"], radius: Float[Array, " N"], rounding: Float[Array, " N"], k: int
) -> Enclosure:
    size = jnp.linalg.norm(known, axis=1)
    along = jnp.sum((known @ d.right[:, :k]) ** 2, axis=1)
    slack = 4 * (d.defect + unit_of(d.clusters) * d.right.shape[0])
    across = jnp.sqrt(jnp.maximum(size**2 - along, 0))
    upper = jnp.sqrt(along + (across + radius) ** 2)
    lower = jnp.sqrt(along + jnp.maximum(across - radius, 0) ** 2)
    room = rounding + slack * (size + radius)
    return Enclosure.around(lower - room, upper + room)


def _allowance(original: MLPBlock, clusters: ClusteredNeurons, side: Features) -> Float[Array, " N"]:
    """Rounding of activations, of their sums and of f: at most 16 Γ ‖x̄‖ ‖W‖_F ‖V‖_F + 4 Γ ‖b2‖."""
    unit = unit_of(clusters)
    bias = 0.0 if original.b2 is None else jnp.linalg.norm(original.b2)
    return 16 * unit * side.size * jnp.linalg.norm(clusters.v) + 4 * unit * bias


#: Neurons that hardly deviate get at least this share of the largest d.
_FLOOR = 1e-3
