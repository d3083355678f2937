"""How far the output of a fused block can be from that of the original: ‖f(x) − f̃(x)‖.

With σ(h_i) = ã + g̃ Δ_i + ρ_i, |ρ_i| ≤ R̄_i, V_j = Σ_{i in C_j} v_i and S_j = Σ_{i in C_j} Δ_i, for any centres,

    f − f̃ = ℓ + Σ_i v_i ρ_i,    ℓ = Σ_i g̃ Δ_i δv_i + Σ_j g̃_j S_j ṽ_j + Σ_j ã_j (V_j − n_j ṽ_j) + b2 − b̃2

where the last three terms of ℓ vanish if centres are means (the centroid property).

Source: own derivation, docs/theory.md, Theorem 3 (a), here for arbitrary centres.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.suprema import suprema
from ntkfusion.theory.blocks.evaluation import Evaluation, evaluate
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.blocks.rounding import known_or_infinite, output_allowance, row_norms

OutputForm = Literal["tight", "norm", "generic", "weights"]


def output_bound(
    original: MLPBlock,
    fused: MLPBlock,
    x: Float[Array, "N d"],
    labels: Int[Array, " m"] | None = None,
    *,
    form: OutputForm = "tight",
    per_output: bool = False,
) -> Float[Array, "N *o"]:
    """A proven bound of ‖f(x) − f̃(x)‖ for every input, rounding of both outputs in float64 included.

    Beyond float64's range (weights or inputs of 1e±60) it is +∞, never NaN. Forms: "tight", ‖ |ℓ| + Σ_i |v_i| R̄_i ‖
    with the linear part ℓ evaluated; "norm", its terms bounded one by one; "generic", Σ_i ‖v_i‖ Ē_i + |ã_i| ‖δv_i‖ +
    ‖b2 − b̃2‖; "weights", which knows ‖x̄‖ only (see `from_weights`).

    Args:
        original: a dense block in float64, with any constants.
        fused: what its neurons were fused to, likewise.
        x: inputs in float64.
        labels: the cluster of every neuron; by default the centre with the nearest input weights.
        form: which bound.
        per_output: bounds of |f_k − f̃_k| instead of the norm; only for the form "tight".

    Returns:
        [N], or [N, o] per output.

    Raises:
        InputError: as `pair_blocks`, for inputs that do not fit or are not in float64, an unknown form, or
            per_output=True with another form than "tight".

    >>> import jax, jax.numpy as jnp
    >>> with jax.enable_x64(True):
    ...     block = MLPBlock(jnp.array([[1.0, 1.5]]), None, jnp.ones((2, 1)), None, activation="relu")
    ...     half = MLPBlock(jnp.array([[1.25]]), None, jnp.array([[2.0]]), None, activation="relu")
    ...     float(output_bound(block, half, jnp.ones((1, 1)))[0]) < 1e-12
    True
    """
    if form not in get_args(OutputForm):
        raise InputError(f"unknown form {form!r} of the output bound; known: {', '.join(get_args(OutputForm))}")
    if per_output and form != "tight":
        raise InputError(f"per_output=True exists for the form 'tight' only, not for {form!r}")
    pair = pair_blocks(original, fused, labels)
    return _program(pair, evaluate(pair, x), OUTPUT_TERMS, form, per_output)


class OutputTerms(NamedTuple):
    """What the tight form is made of, so that a check can hand over a wrong part; see `OUTPUT_TERMS`.

    Attributes:
        linear_part: ℓ of a pair at inputs, given the surplus, [N, o].
        remainder_part: Σ_i |v_ik| R̄_i, [N, o].
        surplus: V_j − n_j ṽ_j, [c, o].
    """

    linear_part: Callable[[FusedPair, Evaluation, Float[Array, "c o"]], Float[Array, "N o"]]
    remainder_part: Callable[[FusedPair, Evaluation], Float[Array, "N o"]]
    surplus: Callable[[FusedPair], Float[Array, "c o"]]


def output_bound_of(
    pair: FusedPair, side: Evaluation, terms: OutputTerms, form: OutputForm = "tight", per_output: bool = False
) -> Float[Array, "N *o"]:
    """`output_bound` of an evaluated pair, rounding included, not compiled.

    Args:
        pair: the two blocks.
        side: the pair at inputs.
        terms: of the tight form; `OUTPUT_TERMS`.
        form: which bound.
        per_output: bounds of |f_k − f̃_k| instead of the norm.

    Returns:
        [N], or [N, o] per output.
    """
    allowance = output_allowance(pair, side.rounding)
    if form == "tight":
        each = per_output_bound(pair, side, terms) + allowance
        return known_or_infinite(each if per_output else row_norms(each))
    bound = {"norm": norm_bound, "generic": generic_bound, "weights": from_weights}[form](pair, side)
    return known_or_infinite(bound + row_norms(allowance))


def per_output_bound(pair: FusedPair, side: Evaluation, terms: OutputTerms) -> Float[Array, "N o"]:
    """|ℓ_k| + Σ_i |v_ik| R̄_i; its norm is at most ‖ℓ‖ + Σ_i ‖v_i‖ R̄_i."""
    return jnp.abs(terms.linear_part(pair, side, terms.surplus(pair))) + terms.remainder_part(pair, side)


def norm_bound(pair: FusedPair, side: Evaluation) -> Float[Array, " N"]:
    """Σ_i |g̃ Δ_i| ‖δv_i‖ + Σ_j |g̃_j S_j| ‖ṽ_j‖ + Σ_j |ã_j| ‖V_j − n_j ṽ_j‖ + ‖b2 − b̃2‖ + Σ_i ‖v_i‖ R̄_i."""
    spread = jnp.abs(pair.to_neurons(side.g) * side.at.delta) @ row_norms(pair.delta_v)
    moved = jnp.abs(side.g * side.shift) @ row_norms(pair.centre_v)
    rest = side.bounds.remainder @ row_norms(pair.v)
    return spread + moved + jnp.abs(side.a) @ row_norms(_surplus(pair)) + _bias_gap(pair) + rest


def generic_bound(pair: FusedPair, side: Evaluation) -> Float[Array, " N"]:
    """Σ_i ‖v_i‖ Ē_i + |ã_i| ‖δv_i‖ + ‖b2 − b̃2‖: nothing cancels."""
    values = jnp.abs(pair.to_neurons(side.a)) @ row_norms(pair.delta_v)
    return side.bounds.value @ row_norms(pair.v) + values + _bias_gap(pair)


def from_weights(pair: FusedPair, side: Evaluation) -> Float[Array, " N"]:
    """½‖x̄‖ (L1 + L2 ‖x̄‖ V∞) I with the inertia I = Σ_i ‖δw_i‖² + ‖δv_i‖² and V∞ = max ‖v_i‖, if centres are means.

    Where it is smaller (always for ReLU) ½ L2 ‖x̄‖² V∞ Σ ‖δw_i‖² is replaced by osc ‖x̄‖ Σ ‖v_i‖ ‖δw_i‖. For other
    centres ‖x̄‖ (L1 Σ_j ‖Σ δw_i‖ ‖ṽ_j‖ + Σ_j ‖w̃_j‖ ‖Σ δv_i‖) + ‖b2 − b̃2‖ is added, with |σ(h)| ≤ |h|.
    """
    numbers, x = suprema(pair.activation), row_norms(side.at.x)
    dw, v = row_norms(pair.delta_w), row_norms(pair.v)
    moved = row_norms(pair.to_clusters(pair.delta_w.T).T) @ row_norms(pair.centre_v)
    bent = numbers.osc * x * (v @ dw)
    if numbers.l2 < float("inf"):
        bent = jnp.minimum(bent, 0.5 * numbers.l2 * x**2 * jnp.max(v) * jnp.sum(dw**2))
    straight = 0.5 * numbers.l1 * (jnp.sum(dw**2) + jnp.sum(pair.delta_v**2)) + numbers.l1 * moved
    return x * (straight + row_norms(_surplus(pair)) @ row_norms(pair.centre_w)) + bent + _bias_gap(pair)


def _linear_part(pair: FusedPair, side: Evaluation, surplus: Float[Array, "c o"]) -> Float[Array, "N o"]:
    """ℓ, the exact part."""
    spread = (pair.to_neurons(side.g) * side.at.delta) @ pair.delta_v
    moved = (side.g * side.shift) @ pair.centre_v
    return spread + moved + side.a @ surplus + (pair.b2 - pair.centre_b2)[None, :]


def _surplus(pair: FusedPair) -> Float[Array, "c o"]:
    """V_j − n_j ṽ_j, as sums of δv."""
    return pair.to_clusters(pair.delta_v.T).T


def _remainder_part(pair: FusedPair, side: Evaluation) -> Float[Array, "N o"]:
    """Σ_i |v_ik| R̄_i."""
    return side.bounds.remainder @ jnp.abs(pair.v)


#: The true terms.
OUTPUT_TERMS = OutputTerms(_linear_part, _remainder_part, _surplus)


_program = jax.jit(output_bound_of, static_argnames=("terms", "form", "per_output"))


def _bias_gap(pair: FusedPair) -> Float[Array, ""]:
    return row_norms((pair.b2 - pair.centre_b2)[None, :])[0]
