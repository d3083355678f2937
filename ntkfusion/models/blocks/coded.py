"""Coded matrices, and the MLP block that is made of two of them.

A coded matrix is a pytree with a shape and a method ``decode()``: a dense matrix from fewer stored numbers.
`CodedBlock` is the dense block whose two weight matrices are coded.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.models.blocks.base import MatrixBlock, biased
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.utils.parameter_paths import Params, exchanged, parameter_paths
from ntkfusion.utils.pytrees import pytree, static

#: Slope of the LeakyReLU below 0.
LEAK = 0.01


def row_norms(rows: Float[Array, "n k"]) -> Float[Array, " n"]:
    """‖row‖ of every row; of a row of zeros a tiny number, so that dividing by it is safe."""
    squares = jnp.sum(rows**2, axis=1)
    return jnp.sqrt(jnp.maximum(squares, jnp.finfo(rows.dtype).tiny))


def unit_rows(rows: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """The rows at length 1; rows of zeros stay."""
    return rows / row_norms(rows)[:, None]


class Code:
    """What every coded matrix has beside ``decode()``."""

    @property
    def num_unstored(self) -> int:
        """How many numbers of its arrays are charged to other matrices, which use the same ones."""
        return 0

    @property
    def num_parameters(self) -> int:
        """How many numbers are stored for this matrix."""
        return sum(math.prod(array.shape) for array in jax.tree.leaves(self)) - self.num_unstored


@pytree
class Affine:
    """``x ↦ x kernel + bias``, one layer of a decoder."""

    kernel: Float[Array, "i j"]
    bias: Float[Array, " j"]

    def __call__(self, x: Float[Array, "n i"]) -> Float[Array, "n j"]:
        """Map every row."""
        return biased(x @ self.kernel, self.bias)


def decode_rows(decoder: tuple[Affine, ...], latents: Float[Array, "n l"]) -> Float[Array, "n k"]:
    """What a decoder makes of latents, up to the length of each row.

    One layer is linear; of several, all but the last are followed by LeakyReLU(0.01) and the last by tanh.
    """
    for affine in decoder[:-1]:
        latents = jax.nn.leaky_relu(affine(latents), LEAK)
    rows = decoder[-1](latents)
    return rows if len(decoder) == 1 else jnp.tanh(rows)


@pytree
class LatentMatrix(Code):
    """A matrix whose rows are decoded from latents: row i is ``ν_i D(z_i) / ‖D(z_i)‖``.

    Attributes:
        latents: z_i, one row each, [n, l].
        norms: ν_i, the length of each row (its sign, if negative, turns the row around), [n].
        decoder: the layers of D; see `decode_rows`.
        transposed: whether the rows are the columns of the decoded matrix.
        decoder_share: how many of the decoder's numbers this matrix answers for; None for all. The others are stored
            with other matrices that have the same decoder.

    >>> code = LatentMatrix(jnp.ones((2, 1)), jnp.array([1.0, 10.0]), (Affine(jnp.ones((1, 4)), jnp.zeros(4)),))
    >>> code.decode().tolist(), code.num_parameters
    ([[0.5, 0.5, 0.5, 0.5], [5.0, 5.0, 5.0, 5.0]], 12)
    """

    latents: Float[Array, "n l"]
    norms: Float[Array, " n"]
    decoder: tuple[Affine, ...]
    transposed: bool = static(default=False)
    decoder_share: int | None = static(default=None)

    @property
    def num_unstored(self) -> int:
        """Numbers of the decoder that other matrices answer for."""
        whole = sum(math.prod(array.shape) for array in jax.tree.leaves(self.decoder))
        return 0 if self.decoder_share is None else whole - self.decoder_share

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the decoded matrix."""
        shape = (self.norms.shape[0], self.decoder[-1].bias.shape[0])
        return (shape[1], shape[0]) if self.transposed else shape

    def decode(self) -> Float[Array, "rows columns"]:
        """The dense matrix."""
        rows = self.norms[:, None] * unit_rows(decode_rows(self.decoder, self.latents))
        return rows.T if self.transposed else rows


@pytree
class KroneckerMatrix(Code):
    """A sum of Kronecker products, ``W = Σ_r A_r ⊗ B_r``.

    Attributes:
        left: A_r, [r, p, q].
        right: B_r, [r, s, t].

    >>> KroneckerMatrix(jnp.ones((1, 1, 2)), jnp.array([[[1.0], [2.0]]])).decode().tolist()
    [[1.0, 1.0], [2.0, 2.0]]
    """

    left: Float[Array, "r p q"]
    right: Float[Array, "r s t"]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the decoded matrix."""
        return self.left.shape[1] * self.right.shape[1], self.left.shape[2] * self.right.shape[2]

    def decode(self) -> Float[Array, "rows columns"]:
        """The dense matrix."""
        return jnp.einsum("rpq,rst->psqt", self.left, self.right).reshape(self.shape)


@pytree
class LowRankMatrix(Code):
    """A product of two factors, ``W = left right``.

    >>> LowRankMatrix(jnp.ones((2, 1)), jnp.ones((1, 3))).decode().shape
    (2, 3)
    """

    left: Float[Array, "rows k"]
    right: Float[Array, "k columns"]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the decoded matrix."""
        return self.left.shape[0], self.right.shape[1]

    def decode(self) -> Float[Array, "rows columns"]:
        """The dense matrix."""
        return self.left @ self.right


#: Any coded matrix.
MatrixCode: TypeAlias = LatentMatrix | KroneckerMatrix | LowRankMatrix


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
    >>> from ntkfusion.models.blocks.coded import LowRankMatrix
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

    def parameters(self) -> Params:
        """The stored arrays by name; absent biases are left out."""
        return dict(zip(parameter_paths(self), jax.tree.leaves(self), strict=True))

    def replace(self, **arrays: Any) -> CodedBlock:
        """A copy with some fields, or arrays of the codes (``**{"w1/latents": ...}``), exchanged."""
        inner = {name: arrays.pop(name) for name in parameter_paths(self) if name in arrays}
        # constructors would refuse a layout of which only some arrays are there
        block = exchanged(self, inner)
        return dataclasses.replace(block, **arrays) if arrays else block

    def decode(self) -> MLPBlock:
        """The dense `MLPBlock` with the same function."""
        return MLPBlock(self.w1.decode(), self.b1, self.w2.decode(), self.b2, activation=self.activation)

    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch o"]:
        """The block's outputs for inputs `x`; the weights are decoded on the fly."""
        return self.decode()(x)
