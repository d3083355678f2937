"""The dense MLP block and the block with factorised weights, each one pytree.

Dense: ``f(x) = W2ᵀ (q ∘ σ(r ∘ (W1ᵀ x + b1))) + b2``. Every neuron-wise compression method is a value of this block. The
constants ``q`` and ``r`` are not parameters: no gradient flows into them, and `MLPBlock.fold` multiplies them into the
weights without changing the function. Factorised: both weight matrices are products of two.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.blocks.base import MatrixBlock, NeuronBlock, biased, folded, scaled
from ntkfusion.utils.pytrees import pytree, static


@pytree
class MLPBlock(MatrixBlock, NeuronBlock):
    """A dense MLP block ``f(x) = W2ᵀ (q ∘ σ(r ∘ (W1ᵀ x + b1))) + b2``.

    Attributes:
        w1: input weights, [d, m]; neuron i is column i.
        b1: input biases, [m], or None for 0.
        w2: output weights, [m, o]; neuron i is row i.
        b2: output biases, [o], or None for 0.
        q: constants behind the activation, [m], or None for 1. Not a parameter.
        r: constants in front of the activation, [m], or None for 1. Not a parameter.
        activation: name of σ, a key of `activations.ACTIVATIONS`.

    >>> import jax.numpy as jnp
    >>> block = MLPBlock(w1=jnp.ones((2, 3)), b1=None, w2=jnp.ones((3, 1)), b2=None, activation="relu")
    >>> block(jnp.ones(2))
    Array([6.], dtype=float32)
    >>> block.replace(q=jnp.full(3, 2.0)).num_parameters
    9
    """

    w1: Float[Array, "d m"]
    b1: Float[Array, " m"] | None
    w2: Float[Array, "m o"]
    b2: Float[Array, " o"] | None
    q: Float[Array, " m"] | None = None
    r: Float[Array, " m"] | None = None
    activation: str = static(default="gelu")

    CONSTANTS = ("q", "r")

    def preactivation(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch m"]:
        """What σ is applied to: ``r ∘ (W1ᵀ x + b1)``."""
        return scaled(biased(x @ self.w1, self.b1), self.r)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch o"]:
        """The block's outputs for inputs `x`."""
        hidden = scaled(self.hidden(x), self.q)
        return biased(hidden @ self.w2, self.b2)

    def fold(self) -> MLPBlock:
        """The same function without constants: r multiplied into W1 and b1, q into W2."""
        w1, b1, w2 = folded(self.w1, self.b1, self.w2, self.q, self.r)
        return self.replace(w1=w1, b1=b1, w2=w2, q=None, r=None)


@pytree
class FactorizedBlock(NeuronBlock):
    """An MLP block whose two weight matrices are products, ``W1 = left1 right1`` and ``W2 = left2 right2``.

    The function depends on the products only; the kernels depend on the split (left C, C⁻¹ right have others). Its
    neurons may have constants q and r as those of a dense block.

    Attributes:
        left1: [d, k] first factor of W1.
        right1: [k, m] second factor of W1.
        b1: [m] input biases, or None.
        left2: [m, l] first factor of W2.
        right2: [l, o] second factor of W2.
        b2: [o] output biases, or None.
        q: [m] constants behind the activation, or None for 1. Not a parameter.
        r: [m] constants in front of the activation, or None for 1. Not a parameter.
        activation: name of σ.
    """

    left1: Float[Array, "d k"]
    right1: Float[Array, "k m"]
    b1: Float[Array, " m"] | None
    left2: Float[Array, "m l"]
    right2: Float[Array, "l o"]
    b2: Float[Array, " o"] | None
    q: Float[Array, " m"] | None = None
    r: Float[Array, " m"] | None = None
    activation: str = static(default="gelu")

    CONSTANTS = ("q", "r")

    @property
    def hidden_width(self) -> int:
        """m, the number of neurons."""
        return self.right1.shape[1]

    @property
    def model_width(self) -> int:
        """d, the size of an input."""
        return self.left1.shape[0]

    @property
    def output_width(self) -> int:
        """The size o of an output."""
        return self.right2.shape[1]

    def preactivation(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch m"]:
        """What σ is applied to: ``r ∘ (right1ᵀ left1ᵀ x + b1)``."""
        return scaled(biased((x @ self.left1) @ self.right1, self.b1), self.r)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch o"]:
        """The block's outputs for inputs `x`."""
        hidden = scaled(self.hidden(x), self.q)
        return biased((hidden @ self.left2) @ self.right2, self.b2)

    def fold(self) -> FactorizedBlock:
        """The same function without constants: r multiplied into right1 and b1, q into left2."""
        right1, b1, left2 = folded(self.right1, self.b1, self.left2, self.q, self.r)
        return self.replace(right1=right1, b1=b1, left2=left2, q=None, r=None)

    def merge(self) -> MLPBlock:
        """The dense block with the same function, its constants folded away."""
        block = self.fold()
        w1, w2 = block.left1 @ block.right1, block.left2 @ block.right2
        return MLPBlock(w1, block.b1, w2, block.b2, activation=self.activation)


def dense_layout(d: int, m: int, *, activation: str = "gelu", biases: bool = True) -> MLPBlock:
    """The layout of a dense block of model width `d` and hidden width `m`, in float32."""

    def zeros() -> MLPBlock:
        # float32 by name: in x64 mode the default would be float64
        w1, w2 = jnp.zeros((d, m), jnp.float32), jnp.zeros((m, d), jnp.float32)
        b1, b2 = (jnp.zeros(m, jnp.float32), jnp.zeros(d, jnp.float32)) if biases else (None, None)
        return MLPBlock(w1, b1, w2, b2, activation=activation)

    return jax.eval_shape(zeros)
