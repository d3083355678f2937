"""Everything that bounds need of a pair of blocks at N inputs, evaluated once.

A neuron's weight in the kernels of an original block and of a fused one: with a_i = σ(h_i), g_i = σ'(h_i), τ the
identity for the SGD kernel and the sign for the sign kernel, both are

    K(x, z) = Σ_i e_i a_i τ(a'_i) + [b2] + M Σ_i d_i g_i τ(g'_i)
    K̃(x, z) = Σ_j t_j ã_j τ(ã'_j) + [b̃2] + M Σ_j s_j g̃_j τ(g̃'_j)

    SGD    e_i = q_i²    d_i = r_i² ‖v_i‖²/o    t_j = q_j²    s_j = r_j² n_j² ‖ṽ_j‖²/o    M = x̄·z̄
    sign   e_i = |q_i|   d_i = |r_i| ‖v_i‖₁/o   t_j = |q_j|   s_j = |r_j| n_j ‖ṽ_j‖₁/o    M = x̄·sgn z̄

since q u = v (of the fused block n ṽ), r ω = w, and a block trains u and ω: each block's own q and r, 1 where it has
none. V4 has t = n, s = n ‖ṽ‖²/o in the SGD kernel; V1 has t = n, s = n ‖ṽ‖₁/o in the sign kernel. For output k alone v
is its column and o is 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.derivatives import derivatives
from ntkfusion.theory.activations.majorants import Majorants, Supremum, majorants
from ntkfusion.theory.activations.suprema import supremum_on
from ntkfusion.theory.blocks.pairs import FusedPair, Residuals, residuals_at, residuals_of
from ntkfusion.theory.blocks.rounding import Envelope, envelope, extreme
from ntkfusion.utils.pytrees import pytree


@pytree
class KernelWeights:
    """The weights of the module, for one scalar kernel.

    Attributes:
        values: e, [m].
        slopes: d, [m].
        centre_values: t, [c].
        centre_slopes: s, [c].
        bias_gap: [b2] − [b̃2]: 0 if both or neither are parameters.
    """

    values: Float[Array, " m"]
    slopes: Float[Array, " m"]
    centre_values: Float[Array, " c"]
    centre_slopes: Float[Array, " c"]
    bias_gap: Float[Array, ""]

    def value_surplus(self, pair: FusedPair) -> Float[Array, " c"]:
        """Σ_{i in C_j} e_i − t_j: how much more the original weighs the values of a cluster."""
        return pair.to_clusters(self.values) - self.centre_values

    def slope_surplus(self, pair: FusedPair) -> Float[Array, " c"]:
        """Σ_{i in C_j} d_i − s_j: how much more the original weighs its slopes."""
        return pair.to_clusters(self.slopes) - self.centre_slopes

    def value_sizes(self, pair: FusedPair) -> Float[Array, " m"]:
        """What a neuron's values are weighed with at most, for rounding."""
        return self.values + pair.to_neurons(self.centre_values / pair.counts)

    def slope_sizes(self, pair: FusedPair) -> Float[Array, " m"]:
        """What a neuron's slopes are weighed with at most, for rounding."""
        return self.slopes + pair.to_neurons(self.centre_slopes / pair.counts)


@pytree
class PairConstants:
    """Constants of both blocks' neurons, and how many more output biases the original trains.

    Attributes:
        q: of the fused block, behind the activation, [c].
        r: in front of it, [c].
        original_q: of the original, behind the activation, [m].
        original_r: in front of it, [m].
        bias_gap: 1, 0 or −1.
    """

    q: Float[Array, " c"]
    r: Float[Array, " c"]
    original_q: Float[Array, " m"]
    original_r: Float[Array, " m"]
    bias_gap: Float[Array, ""]


def constants_of(original: MLPBlock, fused: MLPBlock) -> PairConstants:
    """The constants of both blocks; 1 where they have none."""
    (q, r), (original_q, original_r) = (
        tuple(jnp.ones(block.hidden_width, block.w1.dtype) if one is None else one for one in (block.q, block.r))
        for block in (fused, original)
    )
    gap = jnp.asarray(float(original.b2 is not None) - float(fused.b2 is not None), fused.w1.dtype)
    return PairConstants(q, r, original_q, original_r, gap)


def traced_weights(pair: FusedPair, constants: PairConstants, kind: Kind) -> KernelWeights:
    """The weights of the kernel's mean over outputs.

    Args:
        pair: the two blocks.
        constants: of both blocks.
        kind: "sgd" or "sign".

    Returns:
        The `KernelWeights`.
    """
    o = pair.v.shape[1]
    return _weights(pair, constants, kind, _sizes(pair.v, kind) / o, _sizes(pair.centre_v, kind) / o)


def output_weights(
    pair: FusedPair, constants: PairConstants, kind: Kind, v: Float[Array, " m"], centre_v: Float[Array, " c"]
) -> KernelWeights:
    """The weights of one output's kernel K_kk, given the columns k of v and ṽ."""
    return _weights(pair, constants, kind, _sizes(v[:, None], kind), _sizes(centre_v[:, None], kind))


def _sizes(v: Float[Array, "n o"], kind: Kind) -> Float[Array, " n"]:
    return jnp.sum(v * v if kind == "sgd" else jnp.abs(v), axis=1)


def _weights(
    pair: FusedPair, constants: PairConstants, kind: Kind, sizes: Float[Array, " m"], centre_sizes: Float[Array, " c"]
) -> KernelWeights:
    power = jnp.square if kind == "sgd" else jnp.abs
    both = (constants.q, constants.r, constants.original_q, constants.original_r)
    # an infinite weight leaves no bound but +∞
    sizes = jnp.where(extreme(*both), jnp.inf, sizes)
    return KernelWeights(
        values=power(constants.original_q),
        slopes=power(constants.original_r) * sizes,
        centre_values=power(constants.q),
        centre_slopes=power(constants.r * pair.counts) * centre_sizes,
        bias_gap=constants.bias_gap,
    )


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
