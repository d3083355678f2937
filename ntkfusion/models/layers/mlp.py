"""The MLP block as a linen module, the same in every architecture."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ntkfusion.models.blocks.block import Block, Layout
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.utils.pytrees import pytree


class MLP(nn.Module):
    """The MLP block of one layer: parameters in ``params``, its constants (q, r, masks) in ``constants``.

    Its input is sown as ``intermediates/block_input``.
    """

    layout: Layout
    initializer_range: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        """Apply the block to every position."""
        return by_position(_block_of(self, x), x)


@pytree
class Routed:
    """What a router did with the tokens of a batch.

    Attributes:
        logits: Rᵀx; their softmax is the router's probabilities, their argmax the chosen expert.
        dropped: the tokens that came to an expert beyond its capacity, for which the block's output is 0.
    """

    logits: Float[Array, "B T E"]
    dropped: Bool[Array, "B T"]


class RoutedMLP(nn.Module):
    """The MLP block of one layer where mixtures of experts may be, whose experts take a limited number of tokens.

    The capacity is the network's, not the block's: a `MixtureBlock` by itself, and so its kernel, computes every token.
    """

    layout: Layout
    initializer_range: float
    capacity: int

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> tuple[Float[Array, "B T d"], Routed | None]:
        """Apply the block to every position; a mixture also says what its router did."""
        block = _block_of(self, x)
        if not isinstance(block, MixtureBlock):
            return by_position(block, x), None
        dropped = over_capacity(block.route(x)[0], block.num_experts, self.capacity)
        return jnp.where(dropped[..., None], 0, block(x)), Routed(x @ block.router, dropped)


def by_position(
    function: Callable[[Float[Array, "P d"]], Float[Array, "P o"]], x: Float[Array, "B T d"]
) -> Float[Array, "B T o"]:
    """A function of single positions at all of them, as one matrix.

    XLA's CPU compiler multiplies matrices in the backward pass of one axis of positions two to three times as fast as
    in that of two.
    """
    return function(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def over_capacity(chosen: Int[Array, "B T"], num_experts: int, capacity: int) -> Bool[Array, "B T"]:
    """Which tokens come to an expert that has taken `capacity` earlier tokens of the same sequence.

    Padding counts like any token, as in transformers.
    """
    one_hot = jax.nn.one_hot(chosen, num_experts, dtype=jnp.int32)
    place = jnp.sum(jnp.cumsum(one_hot, axis=1) * one_hot, axis=-1)
    return place > capacity


def _block_of(module: MLP | RoutedMLP, x: Float[Array, "B T d"]) -> Block:
    """The block with the module's parameters and constants; its input is sown."""
    module.sow("intermediates", "block_input", x)
    normal, zeros = nn.initializers.normal(module.initializer_range), nn.initializers.zeros_init()
    arrays: dict[str, Array] = {}
    for name, shape in module.layout.parameters().items():
        init = zeros if name.rpartition("/")[2] in ("b1", "b2") else normal
        arrays[name] = module.param(name, init, shape.shape, shape.dtype)
    for name, shape in module.layout.constants().items():
        arrays[name] = module.variable("constants", name, jnp.ones, shape.shape, shape.dtype).value
    return module.layout.replace(**arrays)
