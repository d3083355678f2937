"""How far LayerNorm, and linear and elementwise maps, can carry two inputs apart when one of them is known.

LayerNorm. With the centring P z = z − mean(z) and z⁺ = (P z, √(d ε)) ∈ R^{d+1},

    LN(z) = β + γ ∘ √d · (first d entries of z⁺/‖z⁺‖)        because ‖z⁺‖² = d (var z + ε)

so that the ε in the square root is one more coordinate, the same for all z, and LayerNorm is a projection to the unit
sphere. If ‖z − z̃‖ ≤ η and x = η/‖z̃⁺‖ < 1, the sine of the angle θ between z⁺ and z̃⁺ is at most x. Hence

    chord       ‖LN(z) − LN(z̃)‖ ≤ √d max|γ| · 2 sin(½ arcsin x)               (≤ 2 √d max|γ| always)
    curvature   ‖LN(z) − LN(z̃) − (z − z̃) DLN(z̃)‖ ≤ √d max|γ| · x² √(1 + 1/(1 + √(1 − x²))²)

Proof of the second. For unit length b and e = α b + e⊥, ‖e‖ ≤ x, write s = ‖b + e‖ and sin θ = ‖e⊥‖/s ≤ x. The
difference of (b + e)/s − b and its linear part e⊥ is cos θ − 1 along b and e⊥ (1 − s)/s across; 1 − cos θ =
sin²θ/(1 + cos θ) ≤ x²/(1 + √(1 − x²)), and ‖e⊥‖/s · |1 − s| ≤ x · x. ∎

The chord is never above the textbook 2‖a − b‖/(‖a‖ + ‖b‖) with ‖a‖ ≥ ‖b‖ − ‖a − b‖, which is x/(1 − x/2).

Balls. Let e = D + r be a difference of vectors with ‖r‖ ≤ ρ and ‖e‖ ≤ ε (`Ball`). Then

    linear        |e·w| ≤ min(‖w‖ ε, |D·w| + ‖w‖ ρ)
    elementwise   φ(a + e) − φ(a) = φ'(a) ∘ D + r',  ‖r'‖ ≤ sup|φ'| ρ + ‖ remainder of every |e_i| ‖
    LayerNorm     LN(z + e) − LN(z) = D DLN(z) + r',  ‖r'‖ ≤ √d max|γ| ρ/‖z⁺‖ + curvature

`spectral_bound` bounds the spectral norms in them from matrix products alone. Source: own derivation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.utils.pytrees import pytree, static


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


def norm_change(
    norm: NormWeights, z: Float[Array, "*batch d"], eta: Float[Array, "*batch"], radius: Float[Array, ""] | None = None
) -> Float[Array, "*batch"]:
    """At least ‖LN(z') − LN(z)‖ for every z' with ‖z' − z‖ ≤ η: the chord, or ‖γ ∘ N(z)‖ + √d max|γ| if smaller.

    Args:
        norm: γ, β and ε.
        z: the known inputs.
        eta: how far the others may be.
        radius: √d max|γ|, by default that; a check hands over a wrong one.

    Returns:
        One bound for each.

    >>> import jax.numpy as jnp
    >>> norm = NormWeights(jnp.ones(2), jnp.zeros(2), 0.0)
    >>> bool(jnp.isclose(norm_change(norm, jnp.array([1.0, -1.0]), jnp.array(2.0)), 2.8284271))
    True
    """
    radius = reach(norm, z) if radius is None else radius
    far = jnp.linalg.norm(normalise(norm, z) - _row(norm.bias, z), axis=-1) + radius
    return jnp.minimum(radius * chord(eta / length(norm, z)), far)


def norm_curvature(
    norm: NormWeights, z: Float[Array, "*batch d"], eta: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """The curvature term of the module; infinite where η reaches ‖z⁺‖."""
    x = eta / length(norm, z)
    below = jnp.minimum(x, 1.0)
    size = below**2 * jnp.sqrt(1 + 1 / (1 + jnp.sqrt(1 - below**2)) ** 2)
    return jnp.where(x < 1, reach(norm, z) * size, jnp.inf)


def norm_derivative(norm: NormWeights, z: Float[Array, "*batch d"]) -> Float[Array, "*batch d d"]:
    """DLN(z), to be multiplied by rows δ from the left: (P − a aᵀ/‖z⁺‖²) diag(γ) √d/‖z⁺‖ with a = P z."""
    d, size = z.shape[-1], length(norm, z)[..., None, None]
    a = z - jnp.mean(z, axis=-1, keepdims=True)
    centring = (jnp.eye(d, dtype=z.dtype) - 1 / d).reshape((1,) * (z.ndim - 1) + (d, d))
    flat = centring - a[..., :, None] * a[..., None, :] / size**2
    return flat * norm.scale.reshape((1,) * z.ndim + (d,)) * (d**0.5 / size)


def length(norm: NormWeights, z: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    """‖z⁺‖ = √(d (var z + ε)); where that is 0 LayerNorm is undefined."""
    centred = z - jnp.mean(z, axis=-1, keepdims=True)
    return jnp.sqrt(jnp.sum(centred * centred, axis=-1) + z.shape[-1] * norm.eps)


def reach(norm: NormWeights, z: Float[Array, "*batch d"]) -> Float[Array, ""]:
    """√d max|γ|: the radius of the sphere that LayerNorm projects to, at its widest."""
    return z.shape[-1] ** 0.5 * jnp.max(jnp.abs(norm.scale))


def chord(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """2 sin(½ arcsin x) for x ≤ 1, else 2: how far unit vectors can be apart whose angle has the sine x at most."""
    below = jnp.minimum(x, 1.0)
    return jnp.where(x <= 1, below * jnp.sqrt(2 / (1 + jnp.sqrt(1 - below**2))), 2.0)


@pytree
class Ball:
    """What is known of a difference e of vectors.

    Attributes:
        direction: D.
        radius: ρ, at least ‖e − D‖.
        eps: ε, at least ‖e‖.
    """

    direction: Float[Array, "*batch d"]
    radius: Float[Array, "*batch"]
    eps: Float[Array, "*batch"]

    def where(self, index: tuple) -> Ball:
        """The ball of some of the vectors."""
        return Ball(self.direction[index], self.radius[index], self.eps[index])


def norm_ball(norm: NormWeights, z: Float[Array, "*batch d"], ball: Ball) -> Ball:
    """What is known of LN(z + e) − LN(z)."""
    direction = jax.jvp(lambda z: normalise(norm, z), (z,), (ball.direction,))[1]
    steepest = reach(norm, z) / length(norm, z)
    radius = steepest * ball.radius + norm_curvature(norm, z, ball.eps)
    return closed(Ball(direction, radius, norm_change(norm, z, ball.eps)))


def linear_ball(kernel: Float[Array, "d k"], ball: Ball) -> Ball:
    """What is known of e times `kernel`."""
    norm = spectral_bound(kernel)
    each = jnp.linalg.norm(entries(kernel, ball), axis=-1)
    return Ball(ball.direction @ kernel, norm * ball.radius, jnp.minimum(norm * ball.eps, each))


def elementwise_ball(
    ball: Ball,
    slope: Float[Array, "*batch k"],
    steepest: float,
    change: Float[Array, "*batch k"],
    remainder: Float[Array, "*batch k"],
) -> Ball:
    """What is known of φ(a + e) − φ(a).

    Args:
        ball: what is known of e.
        slope: φ'(a).
        steepest: at least sup |φ'|.
        change: bounds of |φ(a_i + e_i) − φ(a_i)|.
        remainder: bounds of |φ(a_i + e_i) − φ(a_i) − φ'(a_i) e_i|.

    Returns:
        The ball behind φ.
    """
    direction = slope * ball.direction
    radius = steepest * ball.radius + jnp.linalg.norm(remainder, axis=-1)
    eps = jnp.minimum(steepest * ball.eps, jnp.linalg.norm(change, axis=-1))
    return closed(Ball(direction, radius, eps))


def entries(kernel: Float[Array, "d k"], ball: Ball) -> Float[Array, "*batch k"]:
    """At least |e·w| for every column w of `kernel`."""
    shape = (1,) * ball.eps.ndim + (kernel.shape[1],)
    norms = jnp.linalg.norm(kernel, axis=0).reshape(shape)
    near = jnp.abs(ball.direction @ kernel) + norms * ball.radius[..., None]
    return jnp.minimum(norms * ball.eps[..., None], near)


def closed(ball: Ball) -> Ball:
    """The same with ε ≤ ‖D‖ + ρ, and around 0 with ρ = ε where that ball is no larger; so ‖D‖ ≤ ε + ρ ≤ 2ε."""
    eps = jnp.minimum(ball.eps, jnp.linalg.norm(ball.direction, axis=-1) + ball.radius)
    far = ball.radius >= eps
    return Ball(jnp.where(far[..., None], 0.0, ball.direction), jnp.where(far, eps, ball.radius), eps)


#: How often the Gram matrix is squared; every time, the worst excess goes to its square root.
SQUARINGS = 4


def spectral_bound(a: Float[Array, "*batch n k"], squarings: int = SQUARINGS) -> Float[Array, "*batch"]:
    """At least ‖A‖₂, and at most min(n, k)^(1/2^(s+2)) times it: ‖G^(2^s)‖_F^(1/2^(s+1)) with the Gram matrix G.

    ‖G^(2^s)‖_F ≥ ‖G^(2^s)‖₂ = ‖A‖₂^(2^(s+1)). Matrices are scaled by their largest entries,
    products by their Frobenius norms, so that nothing overflows.
    A factor 1 + 1e-10 covers the rounding: each root shrinks the relative error of its power.

    Args:
        a: matrices.
        squarings: s; the excess is at most 10 % for 384 columns and s = 4.

    Returns:
        One bound for each.

    >>> import jax.numpy as jnp
    >>> bool(1 <= spectral_bound(jnp.eye(3)) < 1.02)
    True
    """
    largest = jnp.max(jnp.abs(a), axis=(-2, -1), keepdims=True)
    a = a / jnp.where(largest > 0, largest, 1)
    turned = a if a.shape[-2] <= a.shape[-1] else jnp.swapaxes(a, -1, -2)
    power = turned @ jnp.swapaxes(turned, -1, -2)
    bound = jnp.ones(a.shape[:-2], a.dtype)
    for step in range(squarings):
        power, factor = _scaled(power)
        bound = bound * factor ** (0.5 ** (step + 1))
        power = power @ power
    last = _scaled(power)[1]
    return bound * last ** (0.5 ** (squarings + 1)) * largest[..., 0, 0] * _ROOM


def bounds_one_by_one(matrices: Float[Array, "n d k"]) -> Float[Array, " n"]:
    """`spectral_bound` of each in turn: with little memory."""
    return jax.lax.map(spectral_bound, matrices)


_ROOM = 1 + 1e-10


def _row(v: Float[Array, " d"], z: Float[Array, "*batch d"]) -> Float[Array, "*ones d"]:
    return v.reshape((1,) * (z.ndim - 1) + v.shape)


def _scaled(power: Float[Array, "*batch n n"]) -> tuple[Float[Array, "*batch n n"], Float[Array, "*batch"]]:
    size = jnp.linalg.norm(power, axis=(-2, -1))
    return power / jnp.where(size > 0, size, 1)[..., None, None], size
