"""Everything that bounds need of a pair of blocks at N inputs, evaluated once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.activations import get_activation
from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.activations.majorants import Majorants, Supremum, majorants
from ntkfusion.theory.activations.suprema import supremum_on
from ntkfusion.theory.blocks.pairs import FusedPair, Residuals, residuals_at, residuals_of
from ntkfusion.theory.blocks.rounding import Envelope, envelope
from ntkfusion.utils.pytrees import pytree


@pytree
class Evaluation:
    """A pair of blocks at N inputs.

    Attributes:
        at: preactivations of the centres, and Δ.
        a: ã = σ(h̃) of every centre, [N, c].
        g: g̃ = σ'(h̃), [N, c].
        curve: σ''(h̃), [N, c].
        shift: S_j = Σ_{i in C_j} Δ_i, [N, c]; 0 up to rounding where centres are means.
        bounds: the majorants of every neuron.
        rounding: what float64 can do.
    """

    at: Residuals
    a: Float[Array, "N c"]
    g: Float[Array, "N c"]
    curve: Float[Array, "N c"]
    shift: Float[Array, "N c"]
    bounds: Majorants
    rounding: Envelope


def evaluate(pair: FusedPair, x: Float[Array, "N d"]) -> Evaluation:
    """Evaluate a pair at inputs.

    Args:
        pair: the two blocks.
        x: inputs, float64.

    Returns:
        The `Evaluation`.

    Raises:
        InputError: as `residuals_at`.
    """
    return _program(pair, residuals_at(pair, x))


def evaluate_unchecked(pair: FusedPair, x: Float[Array, "N d"], supremum: Supremum = supremum_on) -> Evaluation:
    """`evaluate` without its checks: for use inside JAX transformations.

    Args:
        pair: the two blocks.
        x: inputs, float64.
        supremum: what bounds |σ''| and |σ'''| on segments; a check hands a wrong one to see that it matters.

    Returns:
        The `Evaluation`.
    """
    return _evaluation(pair, residuals_of(pair, x), supremum)


def _evaluation(pair: FusedPair, at: Residuals, supremum: Supremum = supremum_on) -> Evaluation:
    f, rounding = derivatives(pair.activation), envelope(pair, at)
    return Evaluation(
        at=at,
        a=f.value(at.centre),
        g=f.first(at.centre),
        curve=f.second(at.centre),
        shift=weighted_shift(pair, at, jnp.ones(pair.w.shape[0], pair.w.dtype)),
        bounds=majorants(pair.activation, pair.to_neurons(at.centre), at.delta, 2 * rounding.preactivation, supremum),
        rounding=rounding,
    )


_program = jax.jit(_evaluation)


def weighted_shift(pair: FusedPair, at: Residuals, weights: Float[Array, " m"]) -> Float[Array, "N c"]:
    """Σ_{i in C_j} d_i Δ_i for weights d: linear in x̄, hence as cheap as c neurons."""
    directions = pair.to_clusters(pair.delta_w.T * weights[None, :])
    return at.x @ directions


def value_signs(pair: FusedPair, side: Evaluation) -> Float[Array, "N c"]:
    """Signs of ã, from where it is known to change."""
    return get_activation(pair.activation).value_sign(side.at.centre)


def slope_signs(pair: FusedPair, side: Evaluation) -> Float[Array, "N c"]:
    """Signs of g̃, from where it is known to change."""
    return get_activation(pair.activation).derivative_sign(side.at.centre)
