"""The MLP block whose dense weights are decoded from fewer stored numbers, at load or on the fly."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array, Float

from ntkfusion.models.base import BlockBase, MatrixBlock
from ntkfusion.models.codes import MatrixCode, named_arrays, with_arrays
from ntkfusion.models.mixture import MixtureBlock
from ntkfusion.models.pytree import pytree, static


@pytree
class CodedBlock(MatrixBlock):
    """A dense MLP block ``f(x) = W2ᵀ σ(W1ᵀ x + b1) + b2`` that stores codes of W1 and W2.

    Its parameters are the stored numbers, under names such as ``w1/latents`` and ``w1/decoder/0/kernel``. Blocks whose
    codes have one decoder in common (`LatentMatrix.decoder_share`) hold the same arrays; trained apart they cease to.

    Attributes:
        w1: the code of a matrix [d, m]; neuron i is column i.
        b1: input biases, [m], or None for 0.
        w2: the code of a matrix [m, o]; neuron i is row i.
        b2: output biases, [o], or None for 0.
        activation: name of σ, a key of `activations.ACTIVATIONS`.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.codes import LowRankMatrix
    >>> w1, w2 = LowRankMatrix(jnp.ones((2, 1)), jnp.ones((1, 3))), LowRankMatrix(jnp.ones((3, 1)), jnp.ones((1, 1)))
    >>> block = CodedBlock(w1, None, w2, None, activation="relu")
    >>> block(jnp.ones(2)), block.num_parameters
    (Array([6.], dtype=float32), 9)
    >>> sorted(block.parameters())
    ['w1/left', 'w1/right', 'w2/left', 'w2/right']
    """

    w1: MatrixCode
    b1: Float[Array, " m"] | None
    w2: MatrixCode
    b2: Float[Array, " o"] | None
    activation: str = static(default="gelu")

    @property
    def num_pruned(self) -> int:
        """Numbers of a shared decoder that are stored with, and charged to, other blocks."""
        return self.w1.num_unstored + self.w2.num_unstored

    def parameters(self) -> dict[str, Any]:
        """The stored arrays by name; absent biases are left out."""
        return named_arrays(self)

    def replace(self, **arrays: Any) -> Any:
        """A copy with some fields, or arrays of the codes (``**{"w1/latents": ...}``), exchanged."""
        inner = {name: arrays.pop(name) for name in named_arrays(self) if name in arrays}
        # leaf by leaf: constructors would refuse a layout of which only some arrays are there
        block = with_arrays(self, inner)
        return BlockBase.replace(block, **arrays) if arrays else block

    def decode(self) -> Any:
        """The dense `MLPBlock` with the same function."""
        from ntkfusion.models.mlp import MLPBlock  # that module imports this one

        return MLPBlock(self.w1.decode(), self.b1, self.w2.decode(), self.b2, activation=self.activation)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch o"]:
        """The block's outputs for inputs `x`; the weights are decoded on the fly."""
        return self.decode()(x)


def is_coded(block: Any) -> bool:
    """Whether a block, or the experts of a mixture, are coded."""
    return isinstance(block.experts if isinstance(block, MixtureBlock) else block, CodedBlock)


def as_dense_weights(block: Any) -> Any:
    """The block with its weights decoded if it is coded, else the block itself: what block kernels are measured of."""
    if not is_coded(block):
        return block
    if isinstance(block, MixtureBlock):
        experts = jax.vmap(lambda expert: expert.decode())(block.experts)
        return MixtureBlock(block.router, experts, train_router=block.train_router)
    return block.decode()
