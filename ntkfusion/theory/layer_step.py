"""One layer of the network bound: from bounds of ‖h_t − h̃_t‖ in front of a layer to those behind it.

The compressed layer's trajectory is known. With b_t = ‖f(ũ_t) − f̃(ũ_t)‖ of the blocks at the compressed model's own
input, and every Lipschitz constant that of the original layer around the known side,

    y_t − ỹ_t = (u_t − ũ_t) + [f(u_t) − f(ũ_t)] + [f(ũ_t) − f̃(ũ_t)]                (pre-norm: z in place of the first u)

The first bracket is bounded by `block_change`, the second is known. The form "norms" bounds every part by itself; the
form "local" uses that of a post-norm layer as a whole: with r_t = ‖DLN1‖ (curvature of A) + curvature of LN1,

    ‖u_t − ũ_t‖   ≤ Σ_s ‖K_ts‖ ε_s + r_t
    ‖h'_t − h̃'_t‖ ≤ Σ_s ‖K_ts M_t‖ ε_s + ‖M_t‖ r_t + ‖(f − f̃)(ũ_t) DLN2‖ + ‖DLN2‖ (curvature of f) + curvature of LN2

and takes the smaller of both, token by token. Source: own derivation.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.models.mlp import MLPBlock
from ntkfusion.models.pytree import pytree
from ntkfusion.theory.attention_bound import attention_change, attention_curvature, head_norms, shifts
from ntkfusion.theory.block_change import BlockChange, block_change, block_norms
from ntkfusion.theory.block_gap import Gap
from ntkfusion.theory.layer_jacobian import LayerNorms, layer_norms
from ntkfusion.theory.layer_norm_bound import norm_change, norm_curvature, norm_derivative
from ntkfusion.theory.layer_weights import LayerTrace, LayerWeights, run_layer


@pytree
class LayerBound:
    """Bounds of one layer, per token.

    Attributes:
        inputs: of ‖u − ũ‖, the MLP block's inputs.
        block: ‖f(ũ) − f̃(ũ)‖ of the blocks themselves.
        hidden: of ‖h' − h̃'‖ behind the layer.
    """

    inputs: Float[Array, "B T"]
    block: Float[Array, "B T"]
    hidden: Float[Array, "B T"]


def layer_step(
    weights: LayerWeights,
    block: MLPBlock,
    compressed: Callable[[Array], Array],
    state: tuple[Float[Array, "B T d"], Float[Array, "B T"]],
    visible: Bool[Array, "B T T"],
    gap: Callable[[Array], Gap],
    *,
    local: bool,
) -> tuple[LayerTrace, LayerBound]:
    """One layer.

    Args:
        weights: what both layers have around their blocks.
        block: the original MLP block, dense, without constants.
        compressed: that of the compressed model.
        state: the compressed model's hidden states h̃ and bounds of ‖h − h̃‖.
        visible: who attends to whom.
        gap: from block inputs to what is known of f − f̃ there.
        local: whether to use exact Jacobians too (post-norm only).

    Returns:
        The compressed layer's trace, and the bounds.
    """
    h, eps = state
    trace = run_layer(weights, compressed, h, visible)
    own = gap(trace.u)
    norms = head_norms(weights.attention)
    seen = norm_change(weights.first_norm, h, eps) if weights.pre_norm else eps
    moved = shifts(weights.attention, norms, trace.attended, visible, seen)
    eta = eps + attention_change(norms, trace.attended, moved, seen)
    inputs = norm_change(weights.second_norm if weights.pre_norm else weights.first_norm, trace.z, eta)
    if weights.pre_norm:
        change = block_change(block, block_norms(block), trace.u, inputs).change
        return trace, LayerBound(inputs, own.size, eta + change + own.size)
    if not local:
        change = block_change(block, block_norms(block), trace.u, inputs)
        return trace, LayerBound(inputs, own.size, _behind(weights, trace, inputs, change, own))
    jacobians = layer_norms(weights, block, trace)
    bent = attention_curvature(norms, trace.attended, moved, eps)
    rest = jacobians.first_norm * bent + norm_curvature(weights.first_norm, trace.z, eta)
    inputs = jnp.minimum(inputs, _weighed(jacobians.to_block, eps) + rest)
    change = block_change(block, block_norms(block), trace.u, inputs)
    hidden = _behind(weights, trace, inputs, change, own)
    together = _together(weights, trace, jacobians, _Parts(eps, rest, inputs, change, own))
    return trace, LayerBound(inputs, own.size, jnp.minimum(hidden, together))


@pytree
class _Parts:
    eps: Float[Array, "B T"]
    rest: Float[Array, "B T"]
    inputs: Float[Array, "B T"]
    change: BlockChange
    own: Gap


def _weighed(norms: Float[Array, "B T T"], eps: Float[Array, "B T"]) -> Float[Array, "B T"]:
    return jnp.einsum("bts,bs->bt", norms, eps)


def _behind(
    weights: LayerWeights, trace: LayerTrace, inputs: Float[Array, "B T"], change: BlockChange, own: Gap
) -> Float[Array, "B T"]:
    return norm_change(weights.second_norm, trace.y, inputs + change.change + own.size)


def _together(weights: LayerWeights, trace: LayerTrace, jacobians: LayerNorms, parts: _Parts) -> Float[Array, "B T"]:
    eta = parts.inputs + parts.change.change + parts.own.size
    own = jacobians.second_norm * parts.own.size
    if parts.own.vector is not None:
        turned = jax.vmap(jax.vmap(jnp.matmul))(parts.own.vector, norm_derivative(weights.second_norm, trace.y))
        own = jnp.linalg.norm(turned, axis=-1)
    first = _weighed(jacobians.through, parts.eps) + jacobians.behind * parts.rest
    bent = jacobians.second_norm * parts.change.curvature + norm_curvature(weights.second_norm, trace.y, eta)
    return first + own + bent
