"""A difference of vectors that is known up to a ball, and what maps behind a network do to it.

e = D + r with ‖r‖ ≤ ρ, and ‖e‖ ≤ ε. Then

    linear        |e·w| ≤ min(‖w‖ ε, |D·w| + ‖w‖ ρ)
    elementwise   φ(a + e) − φ(a) = φ'(a) ∘ D + r',  ‖r'‖ ≤ sup|φ'| ρ + ‖ remainder of every |e_i| ‖
    LayerNorm     LN(z + e) − LN(z) = D DLN(z) + r',  ‖r'‖ ≤ √d max|γ| ρ/‖z⁺‖ + curvature

Source: own derivation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.pytree import pytree
from ntkfusion.theory.layer_norm_bound import NormWeights, length, norm_change, norm_curvature, normalise
from ntkfusion.theory.spectral import spectral_bound


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


def entries(kernel: Float[Array, "d k"], ball: Ball) -> Float[Array, "*batch k"]:
    """At least |e·w| for every column w of `kernel`."""
    shape = (1,) * ball.eps.ndim + (kernel.shape[1],)
    norms = jnp.linalg.norm(kernel, axis=0).reshape(shape)
    near = jnp.abs(ball.direction @ kernel) + norms * ball.radius[..., None]
    return jnp.minimum(norms * ball.eps[..., None], near)


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


def norm_ball(norm: NormWeights, z: Float[Array, "*batch d"], ball: Ball) -> Ball:
    """What is known of LN(z + e) − LN(z)."""
    direction = jax.jvp(lambda z: normalise(norm, z), (z,), (ball.direction,))[1]
    steepest = z.shape[-1] ** 0.5 * jnp.max(jnp.abs(norm.scale)) / length(norm, z)
    radius = steepest * ball.radius + norm_curvature(norm, z, ball.eps)
    return closed(Ball(direction, radius, norm_change(norm, z, ball.eps)))


def closed(ball: Ball) -> Ball:
    """The same with ε ≤ ‖D‖ + ρ, and around 0 with ρ = ε where that ball is no larger; so ‖D‖ ≤ ε + ρ ≤ 2ε."""
    eps = jnp.minimum(ball.eps, jnp.linalg.norm(ball.direction, axis=-1) + ball.radius)
    far = ball.radius >= eps
    return Ball(jnp.where(far[..., None], 0.0, ball.direction), jnp.where(far, eps, ball.radius), eps)
