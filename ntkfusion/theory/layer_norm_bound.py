"""How far LayerNorm can carry two inputs apart when one of them and a bound of their distance are known.

With the centring P z = z − mean(z) and z⁺ = (P z, √(d ε)) ∈ R^{d+1},

    LN(z) = β + γ ∘ √d · (first d entries of z⁺/‖z⁺‖)        because ‖z⁺‖² = d (var z + ε)

so that the ε in the square root is one more coordinate, the same for all z, and LayerNorm is a projection to the unit
sphere. If ‖z − z̃‖ ≤ η and x = η/‖z̃⁺‖ < 1, the sine of the angle θ between z⁺ and z̃⁺ is at most x. Hence

    chord       ‖LN(z) − LN(z̃)‖ ≤ √d max|γ| · 2 sin(½ arcsin x)               (≤ 2 √d max|γ| always)
    curvature   ‖LN(z) − LN(z̃) − (z − z̃) DLN(z̃)‖ ≤ √d max|γ| · x² √(1 + 1/(1 + √(1 − x²))²)

Proof of the second. For unit length b and e = α b + e⊥, ‖e‖ ≤ x, write s = ‖b + e‖ and sin θ = ‖e⊥‖/s ≤ x. The
difference of (b + e)/s − b and its linear part e⊥ is cos θ − 1 along b and e⊥ (1 − s)/s across; 1 − cos θ =
sin²θ/(1 + cos θ) ≤ x²/(1 + √(1 − x²)), and ‖e⊥‖/s · |1 − s| ≤ x · x. ∎

The chord is never above the textbook 2‖a − b‖/(‖a‖ + ‖b‖) with ‖a‖ ≥ ‖b‖ − ‖a − b‖, which is x/(1 − x/2).
Source: own derivation.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.pytree import pytree, static


@pytree
class NormWeights:
    """γ, β and ε of a LayerNorm."""

    scale: Float[Array, " d"]
    bias: Float[Array, " d"]
    eps: float = static(default=1e-12)


def normalise(norm: NormWeights, z: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """LN(z) = β + γ ∘ (z − mean z)/√(var z + ε).

    Args:
        norm: γ, β and ε.
        z: inputs.

    Returns:
        Outputs.
    """
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    shape = (1,) * (z.ndim - 1) + norm.scale.shape
    return centred / jnp.sqrt(variance + norm.eps) * norm.scale.reshape(shape) + norm.bias.reshape(shape)


def length(norm: NormWeights, z: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """‖z⁺‖ = √(d (var z + ε)); where that is 0 LayerNorm is undefined."""
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    return jnp.sqrt(jnp.sum(centred * centred, axis=-1) + z.shape[-1] * norm.eps)


def norm_change(norm: NormWeights, z: Float[Array, "*batch d"], eta: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """At least ‖LN(z') − LN(z)‖ for every z' with ‖z' − z‖ ≤ η: the chord, or ‖γ ∘ N(z)‖ + √d max|γ| if smaller.

    Args:
        norm: γ, β and ε.
        z: the known inputs.
        eta: how far the others may be.

    Returns:
        One bound for each.

    >>> import jax.numpy as jnp
    >>> norm = NormWeights(jnp.ones(2), jnp.zeros(2), 0.0)
    >>> bool(jnp.isclose(norm_change(norm, jnp.array([1.0, -1.0]), jnp.array(2.0)), 2.8284271))
    True
    """
    radius = _radius(norm, z)
    far = jnp.linalg.norm(normalise(norm, z) - _row(norm.bias, z), axis=-1) + radius
    return jnp.minimum(radius * chord(eta / length(norm, z)), far)


def norm_curvature(
    norm: NormWeights, z: Float[Array, "*batch d"], eta: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The curvature term of the module; infinite where η reaches ‖z⁺‖."""
    x = eta / length(norm, z)
    below = jnp.minimum(x, 1.0)
    size = below**2 * jnp.sqrt(1 + 1 / (1 + jnp.sqrt(1 - below**2)) ** 2)
    return jnp.where(x < 1, _radius(norm, z) * size, jnp.inf)


def norm_derivative(norm: NormWeights, z: Float[Array, "*batch d"]) -> Float[Array, "*batch d d"]:
    """DLN(z), to be multiplied by rows δ from the left: (P − a aᵀ/‖z⁺‖²) diag(γ) √d/‖z⁺‖ with a = P z."""
    d, size = z.shape[-1], length(norm, z)[..., None, None]
    a = z - jnp.mean(z, axis=-1, keepdims=True)
    centring = (jnp.eye(d, dtype=z.dtype) - 1 / d).reshape((1,) * (z.ndim - 1) + (d, d))
    flat = centring - a[..., :, None] * a[..., None, :] / size**2
    return flat * norm.scale.reshape((1,) * z.ndim + (d,)) * (d**0.5 / size)


def chord(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """2 sin(½ arcsin x) for x ≤ 1, else 2: how far unit vectors can be apart whose angle has the sine x at most."""
    below = jnp.minimum(x, 1.0)
    return jnp.where(x <= 1, below * jnp.sqrt(2 / (1 + jnp.sqrt(1 - below**2))), 2.0)


def _radius(norm: NormWeights, z: Float[Array, "*batch d"]) -> Float[Array, ""]:
    return z.shape[-1] ** 0.5 * jnp.max(jnp.abs(norm.scale))


def _row(v: Float[Array, " d"], z: Float[Array, "*batch d"]) -> Float[Array, "*ones d"]:
    return v.reshape((1,) * (z.ndim - 1) + v.shape)
