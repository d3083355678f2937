"""Where the error of a compressed network comes from: both networks run, and the difference is taken apart exactly.

Let F_l be the original's layer l, F̃_l the compressed one, h_l and h̃_l the hidden states in front of it (h_0 = h̃_0).

    step     h_{l+1} − h̃_{l+1} = [F_l(h_l) − F_l(h̃_l)] + [F_l(h̃_l) − F̃_l(h̃_l)]          carried + own
    whole    h_L − h̃_L = Σ_l c_l,   c_l = G_l(F_l(h̃_l)) − G_l(F̃_l(h̃_l)),   G_l = F_{L−1} ∘ … ∘ F_{l+1}

c_l is what layer l contributes to the end: between the network with compressed layers before l, and before l + 1. The
amplification of layer l, measured on the segment, is ‖carried‖/‖h_l − h̃_l‖; that of all layers behind it ‖c_l‖/‖own_l‖.
‖own‖ and amplifications give ε_{l+1} ≤ α_l ε_l + ‖own_l‖ per sentence: measured, not proven for other inputs.
Source: own derivation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ntkfusion.models.blocks.block import Block
from ntkfusion.models.model import Model, make_batch
from ntkfusion.theory.networks.network_weights import (
    LayerWeights,
    check_same_but_blocks,
    embedded,
    network_layers,
    run_layer,
    visibility,
)
from ntkfusion.utils.pytrees import pytree


@pytree
class NetworkErrors:
    """Norms per layer and token; L layers. Behind a decoder's last layer, before its final norm.

    Attributes:
        hidden: ‖h_{l+1} − h̃_{l+1}‖.
        own: ‖F_l(h̃_l) − F̃_l(h̃_l)‖.
        carried: ‖F_l(h_l) − F_l(h̃_l)‖.
        contribution: ‖c_l‖; the vectors add up to the last difference.
        size: ‖h̃_{l+1}‖.
    """

    hidden: Float[Array, "L B T"]
    own: Float[Array, "L B T"]
    carried: Float[Array, "L B T"]
    contribution: Float[Array, "L B T"]
    size: Float[Array, "L B T"]

    def amplification(self) -> Float[Array, " L"]:
        """α_l: ‖carried‖/‖h_l − h̃_l‖ over all tokens; NaN in front of the first error."""
        before = jnp.concatenate([jnp.zeros_like(self.hidden[:1]), self.hidden[:-1]])
        return _total(self.carried) / jnp.where(_total(before) > 0, _total(before), jnp.nan)

    def amplification_to_end(self) -> Float[Array, " L"]:
        """‖c_l‖/‖own_l‖ over all tokens; NaN where a layer has no error of its own."""
        return _total(self.contribution) / jnp.where(_total(self.own) > 0, _total(self.own), jnp.nan)


def network_errors(original: Model, compressed: Model, **inputs: Any) -> NetworkErrors:
    """Run both networks and take their difference apart.

    Args:
        original: as for `network_bound`.
        compressed: as for `network_bound`.
        **inputs: the batch, as `Model.apply` takes it; positions of padding count like any.

    Returns:
        The `NetworkErrors`.

    Raises:
        InputError: as `network_bound`.
    """
    olds, news = check_same_but_blocks(original, compressed), compressed.mlp_blocks()
    batch = make_batch({name: jnp.asarray(array) for name, array in inputs.items()}, compressed.config)
    start, visible = embedded(compressed, batch), visibility(compressed, batch.attention_mask)
    layers = [
        (partial(_run, weights, olds[index], visible=visible), partial(_run, weights, news[index], visible=visible))
        for weights, index in zip(network_layers(compressed), compressed.config.applications, strict=True)
    ]
    return _errors(layers, start)


Step = Callable[[Float[Array, "B T d"]], Float[Array, "B T d"]]


def _errors(layers: list[tuple[Step, Step]], start: Float[Array, "B T d"]) -> NetworkErrors:
    h = h̃ = start
    rows: list[list[Array]] = []
    for index, (old, new) in enumerate(layers):
        between, next_new = old(h̃), new(h̃)
        next_old = old(h)
        contribution = _through(layers[index + 1 :], between) - _through(layers[index + 1 :], next_new)
        vectors = (next_old - next_new, between - next_new, next_old - between, contribution, next_new)
        rows.append([jnp.linalg.norm(vector, axis=-1) for vector in vectors])
        h, h̃ = next_old, next_new
    return NetworkErrors(*(jnp.stack(column) for column in zip(*rows, strict=True)))


def _through(layers: list[tuple[Step, Step]], h: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    for old, _ in layers:
        h = old(h)
    return h


@jax.jit
def _run(
    weights: LayerWeights, block: Block, h: Float[Array, "B T d"], visible: Bool[Array, "B T T"]
) -> Float[Array, "B T d"]:
    return run_layer(weights, block, h, visible).out


def _total(norms: Float[Array, "L B T"]) -> Float[Array, " L"]:
    return jnp.sqrt(jnp.sum(norms * norms, axis=(1, 2)))
