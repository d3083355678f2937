"""The MLP block as a linen module, the same in every architecture."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.mlp import Block


class MLP(nn.Module):
    """The MLP block of one layer: parameters in ``params``, its constants (q, r, masks) in ``constants``.

    Its input is sown as ``intermediates/block_input``.
    """

    layout: Any
    initializer_range: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        """Apply the block to every position."""
        self.sow("intermediates", "block_input", x)
        normal, zeros = nn.initializers.normal(self.initializer_range), nn.initializers.zeros_init()
        arrays: dict[str, Any] = {}
        for name, leaf in self.layout.parameters().items():
            init = zeros if name in ("b1", "b2") else normal
            arrays[name] = self.param(name, init, leaf.shape, leaf.dtype)
        for name, leaf in self.layout.constants().items():
            arrays[name] = self.variable("constants", name, jnp.ones, leaf.shape, leaf.dtype).value
        block: Block = self.layout.replace(**arrays)
        return block(x)
