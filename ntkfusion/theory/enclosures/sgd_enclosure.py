"""A bound of the SGD kernel's error that stays informative on real weights, because leading directions are evaluated.

With the split of `enclosure` the original's traced kernel (mean over outputs) is

    K(x, z) = Σ_j n_j ā_j ā'_j + 1 + x̄·z̄ Σ_j D_j ḡ_j ḡ'_j + α·α' + x̄·z̄ γ·γ'

*Statement.* For orthonormal U (k columns) and V (l columns) let K_kl be K with (Uᵀα)·(Uᵀα') for α·α' and (Vᵀγ)·(Vᵀγ')
for γ·γ'. Then for every kernel K̃, such as that of a fused block,

    | |K − K̃| − |K_kl − K̃| |  ≤  r_a(x) r_a(z) + |x̄·z̄| r_g(x) r_g(z),
    r_a² = ‖α‖² − ‖Uᵀα‖²,    r_g² = ‖γ‖² − ‖Vᵀγ‖²

*Proof.* α·α' − (Uᵀα)·(Uᵀα') = (Pα)·(Pα') with the projection P = I − UUᵀ, ‖Pα‖ = r_a, and Cauchy–Schwarz; γ alike. ∎

More columns leave fewer possible values, (Pα)·(Pα') = (u·α)(u·α') + (P'α)·(P'α'): the upper limit falls with k and l,
and at k = l = m it is the error. Columns are the leading eigenvectors of Σ α αᵀ and Σ γ γᵀ over calibration inputs; of
both together the 2m·share largest are taken, those of γ weighed with the median |x̄·z̄|.

Evaluated exactly: a and g at all neurons, the means, k + l columns. Bounded: what is orthogonal to them. Cost in
multiplications: 4 c + k + l per pair (2 c + k + l without clusters) and m (e + k + l) + c e per input; measuring takes
2 m + 2 c and (m + c) e.

Source: own derivation, docs/theory.md, Theorem 4.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ntkfusion.kernels.block.block_kernel import block_kernel
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


def sgd_enclosure(
    original: MLPBlock,
    fused: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    labels: Int[Array, " m"] | None = None,
    *,
    share: float = 0.25,
    directions: KernelDirections | None = None,
) -> Enclosure:
    """Proven limits of |K(x, z) − K̃(x, z)| of traced SGD kernels (mean over outputs) for every pair; see the module.

    Args:
        original: a dense block in float64 without constants.
        fused: any block in float64; its kernel as evaluated here is K̃, so that only the original's rounding counts
            (that of V4 is meant to be near the original's).
        x: evaluated inputs in float64.
        z: training inputs; by default `x`.
        labels: the cluster of every neuron of the original; None for no clusters. Any labels give valid limits.
        share: how many of the 2m columns are evaluated. 0 takes none, 1 gives the error itself.
        directions: from `kernel_directions`, then `labels` are not read; by default made from `x`.

    Returns:
        Lower and upper limits, [N, M]; the upper ones fall as the share grows.

    Raises:
        InputError: as `kernel_directions`, for a fused block of other widths or not in float64, or for a share out of
            range.

    >>> import jax, jax.numpy as jnp
    >>> with jax.enable_x64(True):
    ...     block = MLPBlock(jnp.array([[1.0, 1.5]]), None, jnp.ones((2, 1)), None, activation="relu")
    ...     half = MLPBlock(jnp.array([[1.25]]), None, jnp.array([[2.0]]), None, activation="relu")
    ...     found = sgd_enclosure(block, half, jnp.ones((1, 1)), share=1.0)
    ...     round(float(found.lower[0, 0]), 9), round(float(found.upper[0, 0]), 9)
    (0.3125, 0.3125)
    """
    chosen = kernel_directions(original, labels, x) if directions is None else directions
    return enclose_sgd(original, fused, x, z, chosen, share)


@pytree
class KernelDirections:
    """Orthonormal bases of the neurons' deviations, leading columns first.

    Attributes:
        clusters: the neurons they belong to.
        values: U, all m columns, for α.
        slopes: V, for γ.
        order: how the columns of both are taken in turn: 0 for the next of U, 1 for the next of V, [2m].
        defect: a bound of ‖UᵀU − I‖ and of ‖VᵀV − I‖.
    """

    clusters: ClusteredNeurons
    values: Float[Array, "m m"]
    slopes: Float[Array, "m m"]
    order: Int[Array, " 2*m"]
    defect: Float[Array, ""]

    def ranks(self, share: float) -> tuple[int, int]:
        """The numbers k and l of columns for a share of all 2m."""
        number = kept(share, self.order.shape[0])
        slopes = int(jnp.sum(self.order[:number]))
        return number - slopes, slopes


def kernel_directions(
    original: MLPBlock, labels: Int[Array, " m"] | None, calibration: Float[Array, "N d"]
) -> KernelDirections:
    """Leading directions at calibration inputs. Any inputs give a valid bound; such as those of the bound a small one.

    Args:
        original: a dense block in float64 without constants.
        labels: the cluster of every neuron; None for no clusters.
        calibration: inputs, float64.

    Returns:
        The `KernelDirections`.

    Raises:
        InputError: as `cluster_neurons` and `features_at`.
    """
    clusters = cluster_neurons(original, labels)
    side = features_at(original, clusters, calibration)
    weight = jnp.median(jnp.abs(side.x[:256] @ side.x[:256].T))
    found = [jnp.linalg.eigh(deviations.T @ deviations) for deviations in (side.alpha, side.gamma)]
    (falling, values), (falling_slopes, slopes) = ((one[::-1], columns[:, ::-1]) for one, columns in found)
    # a stable sort of falling values keeps the order inside each basis
    both = np.concatenate([np.asarray(falling), weight * np.asarray(falling_slopes)])
    order = np.argsort(-both, kind="stable") >= clusters.w.shape[0]
    unit = unit_of(clusters)
    defect = jnp.maximum(orthonormality_defect(values, unit), orthonormality_defect(slopes, unit))
    return KernelDirections(clusters, values, slopes, jnp.asarray(order, int), defect)


#: Products of projections and of what is orthogonal to them: from directions, features at x and z, how many columns
#: are taken, and "alpha" or "gamma".
Product = Callable[
    [KernelDirections, Features, Features, int, str],
    tuple[Float[Array, "N M"], Float[Array, "N M"]],
]


def enclose_sgd(
    original: MLPBlock,
    fused: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None,
    directions: KernelDirections,
    share: float,
    product: Product | None = None,
) -> Enclosure:
    """`sgd_enclosure` for given directions; a check may hand over a wrong `product` (by default `split_product`)."""
    product = product or split_product
    check_fused(original, fused)
    left = features_at(original, directions.clusters, x)
    right = left if z is None else features_at(original, directions.clusters, z)
    k, rank = directions.ranks(share)
    gram = left.x @ right.x.T
    a, a_rest = product(directions, left, right, k, "alpha")
    g, g_rest = product(directions, left, right, rank, "gamma")
    c = directions.clusters
    means = (left.mean_a * c.counts[None, :]) @ right.mean_a.T + float(original.b2 is not None)
    estimate = means + a + gram * ((left.mean_g * c.masses[None, :]) @ right.mean_g.T + g)
    gap = jnp.abs(estimate - block_kernel(fused, x, z))
    room = _allowance(c, left, right) + 4 * unit_of(c) * gap
    radius = a_rest + jnp.abs(gram) * g_rest
    return Enclosure.around(gap - radius - room, gap + radius + room)


def split_product(
    d: KernelDirections, left: Features, right: Features, k: int, name: str
) -> tuple[Float[Array, "N M"], Float[Array, "N M"]]:
    """(Uᵀα)·(Uᵀα') and r r', rounding and a defective basis included."""
    basis = (d.values if name == "alpha" else d.slopes)[:, :k]
    unit = unit_of(d.clusters)
    slack = d.defect + 8 * unit * basis.shape[0] ** 0.5

    def project(side: Features) -> tuple[Float[Array, "N k"], Float[Array, " N"], Float[Array, " N"]]:
        deviations = getattr(side, name)
        p, size = deviations @ basis, jnp.sum(deviations**2, axis=1)
        return p, jnp.sqrt(jnp.maximum(size - jnp.sum(p**2, axis=1), 0) + slack * size), jnp.sqrt(size)

    (p, rest, size), (q, rest_z, size_z) = project(left), project(right)
    return p @ q.T, rest[:, None] * rest_z[None, :] + slack * size[:, None] * size_z[None, :]


def _allowance(c: ClusteredNeurons, left: Features, right: Features) -> Float[Array, "N M"]:
    """Rounding of features, of sums of their products and of K, as sums of sizes and errors."""
    unit, whole = unit_of(c), 2 * jnp.sqrt(jnp.sum(c.weights))
    norms = jnp.linalg.norm(left.x, axis=1)[:, None] * jnp.linalg.norm(right.x, axis=1)[None, :]
    errors = left.slope_error[:, None] + right.slope_error[None, :]
    values = 16 * unit * left.size[:, None] * right.size[None, :]
    return values + norms * whole * (4 * errors + 16 * unit * whole) + 4 * unit
