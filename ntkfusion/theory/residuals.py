"""What happens at the neurons when inputs pass through an original block and its fused one."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.pytree import pytree
from ntkfusion.theory.pairs import FusedPair


@pytree
class Residuals:
    """Preactivations of both blocks at N inputs, neuron by neuron.

    Attributes:
        x: the inputs with a 1 behind them (if there are input biases), [N, e].
        centre: h̃_j = w̃_j·x̄ of every centre, [N, c].
        delta: Δ_i = (w_i − w̃)·x̄ of every neuron, [N, m]; so h_i = h̃ + Δ_i.
    """

    x: Float[Array, "N e"]
    centre: Float[Array, "N c"]
    delta: Float[Array, "N m"]


def residuals_at(pair: FusedPair, x: Float[Array, "N d"]) -> Residuals:
    """The preactivations at inputs.

    Δ is computed from weight differences, so that equal weights give exactly 0.

    Args:
        pair: the two blocks.
        x: inputs, float64.

    Returns:
        The `Residuals`.

    Raises:
        InputError: for inputs of another width, not in float64, or not finite.
    """
    width = pair.w.shape[1] - pair.has_bias
    if x.ndim != 2 or x.shape[1] != width:
        raise InputError(f"inputs must have shape [N, {width}], got {list(x.shape)}")
    if x.dtype != jnp.float64:
        raise InputError(f"bounds are evaluated in float64, the inputs are {x.dtype}; convert them")
    if not bool(jnp.all(jnp.isfinite(x))):
        raise InputError("inputs hold values that are not finite")
    return residuals_of(pair, x)


def residuals_of(pair: FusedPair, x: Float[Array, "N d"]) -> Residuals:
    """`residuals_at` without its checks: for use inside JAX transformations."""
    extended = pair.extended(x)
    return Residuals(extended, extended @ pair.centre_w.T, extended @ pair.delta_w.T)
