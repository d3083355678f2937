"""One layer of the network bound: from bounds of ‖h_t − h̃_t‖ in front of a layer to those behind it.

The compressed layer's trajectory is known. With b_t = ‖f(ũ_t) − f̃(ũ_t)‖ of the blocks at the compressed model's own
input, and every Lipschitz constant that of the original layer around the known side,

    y_t − ỹ_t = (u_t − ũ_t) + [f(u_t) − f(ũ_t)] + [f(ũ_t) − f̃(ũ_t)]                (pre-norm: z in place of the first u)

The first bracket is bounded by `block_change`, the second is known. Here every part is bounded by itself; the
first-order form, for the layer as a whole, is in `layer_first_order`. Source: own derivation.
"""

from __future__ import annotations

from jaxtyping import Array, Bool, Float

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.networks.attention_bound import HeadNorms, Shifts, attention_change, head_norms, shifts
from ntkfusion.theory.networks.block_change import BlockChange, Gap, block_change, block_norms
from ntkfusion.theory.networks.layer_norm_bound import norm_change
from ntkfusion.theory.networks.network_rounding import Rounding
from ntkfusion.theory.networks.network_weights import LayerTrace, LayerWeights
from ntkfusion.utils.pytrees import pytree


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


@pytree
class FrontBound:
    """Up to the MLP block's input.

    Attributes:
        heads: norms of the heads.
        seen: bounds of ‖x − x̃‖, the input of attention.
        moved: what scores and attention weights can do.
        sums: bounds of ‖z − z̃‖.
        inputs: of ‖u − ũ‖.
    """

    heads: HeadNorms
    seen: Float[Array, "B T"]
    moved: Shifts
    sums: Float[Array, "B T"]
    inputs: Float[Array, "B T"]


def front_bound(
    weights: LayerWeights,
    trace: LayerTrace,
    eps: Float[Array, "B T"],
    visible: Bool[Array, "B T T"],
    rounding: Rounding,
) -> FrontBound:
    """Attention, its residual connection and the LayerNorm in front of the block.

    Args:
        weights: what both layers have around their blocks.
        trace: the compressed layer's.
        eps: bounds of ‖h − h̃‖.
        visible: who attends to whom.
        rounding: what float64 adds.

    Returns:
        The `FrontBound`.
    """
    heads = head_norms(weights.attention)
    seen = norm_change(weights.first_norm, trace.h, eps) if weights.pre_norm else eps
    seen = seen + rounding.seen
    moved = shifts(weights.attention, heads, trace.attended, visible, seen)
    sums = eps + attention_change(heads, trace.attended, moved, seen) + rounding.sums
    norm = weights.second_norm if weights.pre_norm else weights.first_norm
    return FrontBound(heads, seen, moved, sums, norm_change(norm, trace.z, sums) + rounding.inputs)


def back_bound(
    weights: LayerWeights, trace: LayerTrace, front: FrontBound, change: BlockChange, gap: Gap, rounding: Rounding
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The block, its residual connection and the LayerNorm behind it.

    Args:
        weights: what both layers have around their blocks.
        trace: the compressed layer's.
        front: bounds up to the block.
        change: what the original block can do.
        gap: the blocks' difference.
        rounding: what float64 adds.

    Returns:
        Bounds of ‖y − ỹ‖ and ‖h' − h̃'‖.
    """
    base = front.sums if weights.pre_norm else front.inputs
    eta = base + change.change + gap.size + rounding.block
    return eta, eta if weights.pre_norm else norm_change(weights.second_norm, trace.y, eta) + rounding.hidden


def layer_step(
    weights: LayerWeights,
    block: MLPBlock,
    trace: LayerTrace,
    eps: Float[Array, "B T"],
    visible: Bool[Array, "B T T"],
    gap: Gap,
    rounding: Rounding,
) -> LayerBound:
    """One layer, every part bounded by itself.

    Args:
        weights: what both layers have around their blocks.
        block: the original MLP block, dense, without constants.
        trace: the compressed layer's trace.
        eps: bounds of ‖h − h̃‖ in front of the layer.
        visible: who attends to whom.
        gap: the difference of the blocks at the trace's u.
        rounding: what float64 adds.

    Returns:
        The `LayerBound`.
    """
    front = front_bound(weights, trace, eps, visible, rounding)
    change = block_change(block, block_norms(block), trace.u, front.inputs)
    return LayerBound(front.inputs, gap.size, back_bound(weights, trace, front, change, gap, rounding)[1])
