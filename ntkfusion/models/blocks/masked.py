"""The MLP block with unstructured sparsity: weights with masks that say which of them survived a pruning."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.base import MatrixBlock, NeuronBlock, biased, folded, scaled
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.utils.pytrees import pytree, static


@pytree
class MaskedBlock(MatrixBlock, NeuronBlock):
    """An MLP block with pruned weights, ``f(x) = (W2 ∘ M2)ᵀ (q ∘ σ(r ∘ ((W1 ∘ M1)ᵀ x + b1))) + b2``.

    Masks, q and r are constants: they are never trained, and no gradient reaches a weight that a mask removes. What is
    stored, and what `num_parameters` counts, are the surviving weights and the biases. Where they are costs another
    bit per weight, surviving or not (`mask_bits`), which `num_parameters` does not count.

    Attributes:
        w1: input weights, [d, m]; neuron i is column i.
        b1: input biases, [m], or None for 0.
        w2: output weights, [m, o]; neuron i is row i.
        b2: output biases, [o], or None for 0.
        mask1: M1, 1 where a weight of W1 survives and 0 elsewhere, [d, m], in the weights' dtype.
        mask2: M2, the same for W2, [m, o].
        q: constants behind the activation, [m], or None for 1. Not a parameter.
        r: constants in front of the activation, [m], or None for 1. Not a parameter.
        activation: name of σ, a key of `activations.ACTIVATIONS`.

    >>> import jax.numpy as jnp
    >>> w1, w2 = jnp.ones((2, 3)), jnp.ones((3, 1))
    >>> block = MaskedBlock(w1, None, w2, None, mask1=w1.at[0, 0].set(0), mask2=w2, activation="relu")
    >>> block(jnp.ones(2)), block.num_parameters, block.mask_bits
    (Array([5.], dtype=float32), 8, 9)
    """

    w1: Float[Array, "d m"]
    b1: Float[Array, " m"] | None
    w2: Float[Array, "m o"]
    b2: Float[Array, " o"] | None
    mask1: Float[Array, "d m"]
    mask2: Float[Array, "m o"]
    q: Float[Array, " m"] | None = None
    r: Float[Array, " m"] | None = None
    activation: str = static(default="gelu")

    CONSTANTS = ("mask1", "mask2", "q", "r")

    @property
    def mask_bits(self) -> int:
        """Bits that say which weights survive, one per weight."""
        return self.mask1.size + self.mask2.size

    @property
    def num_pruned(self) -> int:
        """How many weights the masks remove.

        Raises:
            InputError: for a layout, which has no masks to count in.
        """
        if isinstance(self.mask1, jax.ShapeDtypeStruct):
            raise InputError("a layout does not say which weights survive; count the parameters of the block itself")
        return self.mask_bits - int(jnp.count_nonzero(self.mask1) + jnp.count_nonzero(self.mask2))

    @property
    def kept1(self) -> Float[Array, "d m"]:
        """W1 ∘ M1."""
        return self.w1 * jax.lax.stop_gradient(self.mask1)

    @property
    def kept2(self) -> Float[Array, "m o"]:
        """W2 ∘ M2."""
        return self.w2 * jax.lax.stop_gradient(self.mask2)

    def preactivation(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch m"]:
        """What σ is applied to: ``r ∘ ((W1 ∘ M1)ᵀ x + b1)``."""
        return scaled(biased(x @ self.kept1, self.b1), self.r)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch o"]:
        """The block's outputs for inputs `x`."""
        hidden = scaled(self.hidden(x), self.q)
        return biased(hidden @ self.kept2, self.b2)

    def fold(self) -> MaskedBlock:
        """The same function without q and r: r multiplied into W1 and b1, q into W2."""
        w1, b1, w2 = folded(self.w1, self.b1, self.w2, self.q, self.r)
        return self.replace(w1=w1, b1=b1, w2=w2, q=None, r=None)

    def merge(self) -> MLPBlock:
        """The dense `MLPBlock` with the same function: zeros where weights were pruned."""
        block = self.fold()
        return MLPBlock(block.kept1, block.b1, block.kept2, block.b2, activation=self.activation)
