"""The gated MLP block of LLaMA-like models: SwiGLU (SiLU), GeGLU (GELU), ReGLU (ReLU)."""

from __future__ import annotations

from jaxtyping import Array, Float

from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.base import BlockBase, biased
from ntkfusion.utils.pytrees import pytree, static


@pytree
class GatedBlock(BlockBase):
    """A gated MLP block ``f(x) = W2ᵀ (σ(Wgᵀ x + bg) ∘ (Wuᵀ x + bu)) + b2``.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (arXiv 2002.05202), equation 6.

    Attributes:
        gate: Wg, what σ is applied to, [d, m]; neuron i is column i.
        gate_bias: bg, [m], or None for 0.
        up: Wu, the linear factor, [d, m].
        up_bias: bu, [m], or None for 0.
        w2: output weights, [m, o]; neuron i is row i.
        b2: output biases, [o], or None for 0.
        activation: name of σ, a key of `activations.ACTIVATIONS`.

    >>> import jax.numpy as jnp
    >>> block = GatedBlock(jnp.ones((2, 3)), None, jnp.ones((2, 3)), None, jnp.ones((3, 1)), None, activation="relu")
    >>> block(jnp.ones(2))
    Array([12.], dtype=float32)
    """

    gate: Float[Array, "d m"]
    gate_bias: Float[Array, " m"] | None
    up: Float[Array, "d m"]
    up_bias: Float[Array, " m"] | None
    w2: Float[Array, "m o"]
    b2: Float[Array, " o"] | None
    activation: str = static(default="silu")

    @property
    def hidden_width(self) -> int:
        """m, the number of neurons."""
        return self.gate.shape[1]

    @property
    def model_width(self) -> int:
        """d, the size of an input."""
        return self.gate.shape[0]

    @property
    def output_width(self) -> int:
        """The size o of an output."""
        return self.w2.shape[1]

    def preactivations(self, x: Float[Array, "*batch d"]) -> tuple[Float[Array, "*batch m"], Float[Array, "*batch m"]]:
        """Wgᵀ x + bg, what σ is applied to, and the linear factor Wuᵀ x + bu."""
        return biased(x @ self.gate, self.gate_bias), biased(x @ self.up, self.up_bias)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch o"]:
        """The block's outputs for inputs `x`."""
        gate, up = self.preactivations(x)
        return biased((get_activation(self.activation).value(gate) * up) @ self.w2, self.b2)
