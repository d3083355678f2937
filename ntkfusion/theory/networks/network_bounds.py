"""From block errors to hidden states and logits: a proven bound that never runs the original network.

Let h_l and h̃_l be the hidden states behind layer l of a model and of the same model with other MLP blocks. The
compressed model runs; per token ε_0 = 0, and `layer_step` gives ε_l ≥ ‖h_l − h̃_l‖ from ε_{l−1}, the compressed layer's
trajectory, the weights, and the blocks' difference at the compressed model's own inputs. Induction over layers proves
every ε_l; every local constant is taken on the ball of radius ε around the known point, from the known side only.

A post-norm network's ε_l are never above ‖γ ∘ N‖ + √d max|γ|, what a sphere allows: the bound saturates there and says
nothing more. `NetworkBound.informative_layers` counts the layers before that. Rounding of both
trajectories in float64 is allowed for by `network_rounding`.
Source: own derivation, docs/theory.md, "From blocks to a network".
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from ntkfusion.errors import InputError
from ntkfusion.models.batch import Batch
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.models.gpt2.network import last_token
from ntkfusion.models.model import Model, make_batch
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.blocks.rounding import gamma, known_or_infinite
from ntkfusion.theory.networks.block_change import bounded_gap
from ntkfusion.theory.networks.head_bounds import head_bound, normed
from ntkfusion.theory.networks.layer_norm_bound import Ball
from ntkfusion.theory.networks.layer_step import LAYER_TERMS, LayerBound, LayerTerms, first_order_step, layer_step
from ntkfusion.theory.networks.network_rounding import embedding_rounding, layer_rounding, no_rounding
from ntkfusion.theory.networks.network_weights import (
    LayerWeights,
    check_same_but_blocks,
    embedded,
    known_config,
    network_layers,
    norm_weights,
    run_layer,
    visibility,
)
from ntkfusion.utils.pytrees import pytree

BlockError = Literal["measured", "bound"]


@pytree
class NetworkBound:
    """Bounds of the distance between a model and its compressed version on a batch; L layers.

    Attributes:
        hidden: of ‖h_l − h̃_l‖ behind every layer, per token, [L, B, T].
        inputs: the same for the inputs of the MLP blocks.
        blocks: ‖f_l(ũ) − f̃_l(ũ)‖ at the compressed model's own block inputs, measured or bounded.
        size: ‖h̃_l‖, to compare `hidden` with.
        last_hidden_state: of the change of the model's output, [B, T]: the last `hidden`, behind the final norm if
            there is one.
        pooler_output: of the norm of the pooled vector's change, [B], or None.
        logits: of the change of every logit, or None.
    """

    hidden: Float[Array, "L B T"]
    inputs: Float[Array, "L B T"]
    blocks: Float[Array, "L B T"]
    size: Float[Array, "L B T"]
    last_hidden_state: Float[Array, "B T"]
    pooler_output: Float[Array, " B"] | None
    logits: Float[Array, "B *out"] | None

    def informative_layers(self, mask: ArrayLike | None = None) -> int:
        """How many layers from the first on have a bound below ‖h̃‖ for most of the tokens that `mask` keeps."""
        keep = np.ones(self.hidden.shape[1:], bool) if mask is None else np.asarray(mask) > 0
        says = [np.median(np.asarray(e / s)[keep]) < 1 for e, s in zip(self.hidden, self.size, strict=True)]
        return says.index(False) if False in says else len(says)


def network_bound(
    original: Model,
    compressed: Model,
    *,
    block_error: BlockError = "measured",
    first_order: bool = True,
    rounding: bool = True,
    terms: LayerTerms = LAYER_TERMS,
    **inputs: Any,
) -> NetworkBound:
    """A proven bound of what compressed MLP blocks do to hidden states and logits, without running the original.

    Args:
        original: BERT, RoBERTa, ALBERT or GPT-2 with dense MLP blocks, in float64.
        compressed: the same model with other MLP blocks.
        block_error: "measured" runs each original block on the compressed model's own inputs; "bound" uses the output
            bound of fused neurons (`ntkfusion.theory.blocks.output_bounds`) instead.
        first_order: whether to carry first-order changes exactly, with Jacobians along the compressed trajectory: much
            closer, at 2 T² spectral norms of d×d matrices per layer and sentence, more than running the original would
            cost. Without them every part is bounded by itself, which is cheap and says little behind two layers.
        rounding: whether to add what float64 arithmetic can do to both trajectories in the worst case (dense blocks
            only); without it the bound is about real numbers, and errors near 1e-13 of the hidden states escape it.
        terms: what each layer's bound is made of; a check hands over a wrong one to see that it matters.
        **inputs: the batch, as `Model.apply` takes it.

    Returns:
        The `NetworkBound`.

    Raises:
        InputError: if the models differ in more than their MLP blocks, are of another architecture or not in float64,
            for original blocks that are not dense, and as `pair_blocks` with block_error="bound".
    """
    if block_error not in get_args(BlockError):
        raise InputError(f"unknown block_error {block_error!r}; known: {', '.join(get_args(BlockError))}")
    olds, news = check_same_but_blocks(original, compressed), compressed.mlp_blocks()
    layers = network_layers(compressed)
    batch = make_batch({name: jnp.asarray(array) for name, array in inputs.items()}, compressed.config)
    h, visible = embedded(compressed, batch), visibility(compressed, batch.attention_mask)
    start = embedding_rounding(h) if rounding else jnp.zeros(batch.shape, h.dtype)
    ball = Ball(jnp.zeros_like(h), start, start)
    found, sizes = [], []
    for weights, index in zip(layers, compressed.config.applications, strict=True):
        old, new = olds[index], news[index]
        pair = pair_blocks(old, require_dense(new, "block_error='bound'")) if block_error == "bound" else None
        folded = require_dense(new, "rounding=True").fold() if rounding else None
        h, ball, bound = _layer_program(weights, (old, new, folded), pair, (h, ball), visible, first_order, terms)
        found.append(bound)
        sizes.append(jnp.linalg.norm(h, axis=-1))
    unit = gamma(4 * h.shape[-1] + 64) if rounding else 0.0
    return _finish(compressed, batch, (h, ball), found, sizes, unit)


def require_dense(block: Block, wanted: str) -> MLPBlock:
    """The block, if it is dense.

    Args:
        block: of the compressed model.
        wanted: the option that needs it, for the message.

    Returns:
        The block.

    Raises:
        InputError: for any other block.
    """
    if isinstance(block, MLPBlock):
        return block
    raise InputError(f"{wanted} is for dense blocks; for a {type(block).__name__} choose another value")


@partial(jax.jit, static_argnames=("first_order", "terms"))
def _layer_program(
    weights: LayerWeights,
    blocks: tuple[MLPBlock, Block, MLPBlock | None],
    pair: FusedPair | None,
    state: tuple[Float[Array, "B T d"], Ball],
    visible: Bool[Array, "B T T"],
    first_order: bool,
    terms: LayerTerms,
) -> tuple[Float[Array, "B T d"], Ball, LayerBound]:
    """One layer, compiled: its output, what is known of the difference there, and the bounds."""
    (old, new, folded), (h, ball) = blocks, state
    trace = run_layer(weights, new, h, visible)
    gap = terms.gap(old, new, trace.u) if pair is None else bounded_gap(pair, trace.u)
    allowance = no_rounding(ball.eps)
    if folded is not None:
        allowance = layer_rounding(weights, (old, folded), trace, ball.eps)
    if first_order:
        return trace.out, *first_order_step(weights, old, trace, ball, visible, gap, allowance, terms)
    bound = layer_step(weights, old, trace, ball.eps, visible, gap, allowance, terms)
    return trace.out, Ball(ball.direction, bound.hidden, bound.hidden), bound


def _finish(
    model: Model, batch: Batch, state: tuple[Array, Ball], found: list[LayerBound], sizes: list[Array], unit: float
) -> NetworkBound:
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *found)
    last, config = None, known_config(model)
    if isinstance(config, GPT2Config):
        state = normed(norm_weights(model.params["norm"], config.layer_norm_epsilon), state, unit)
        last = last_token(batch, config.pad_token_id)
    h, ball = state
    head = head_bound(config, model.params, h, ball, last, unit)
    bounds = (stacked.hidden, stacked.inputs, stacked.block, ball.eps, head.pooler_output, head.logits)
    hidden, inputs, blocks, eps, pooled, logits = jax.tree.map(known_or_infinite, bounds)
    return NetworkBound(hidden, inputs, blocks, jnp.stack(sizes), eps, pooled, logits)
