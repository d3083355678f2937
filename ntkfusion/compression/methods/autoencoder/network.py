"""How wide a codec may be: the largest latent width whose code fits into a number of stored numbers.

Source: Banaei et al. 2023, "Revisiting Offline Compression" (arXiv 2302.04045) and its code. For n rows of k numbers,
latents of x numbers and a decoder x → 2x → 4x → k there are stored

    n x (latents) + n (row norms) + 10 x² + (6 + 4k) x + k (decoder)   ≤   budget,

so x is the floor of the positive root of a quadratic; of a linear decoder x → k: n x + n + k x + k.

How much each row matters: the Fisher information or the sensitivity of the entries, added up over the row.

The encoder and decoder as plain functions; what is left of them is a `LatentMatrix`.

Encoder: every layer, the latent one included, is followed by LeakyReLU(0.01); a linear one is one affine map. The
encoder is thrown away, so what it reads is free to choose: rows at unit root mean square, which the weights'
initialisation expects. The decoder is `ntkfusion.models.blocks.coded.decode_rows`.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ntkfusion.models.blocks.coded import LEAK, Affine, decode_rows, row_norms, unit_rows

#: Hidden layers of the encoder and of the decoder, in latent widths.
ENCODER, DECODER = (8, 4), (2, 4)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The layers of an encoder and a decoder.

    Attributes:
        encoder: k, then the width behind every layer, the last the latent width x.
        decoder: x, then the width behind every layer, the last k.
    """

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    @classmethod
    def of(cls, row_length: int, latent_width: int, *, linear: bool = False) -> Sizes:
        """The layers for rows of `row_length` numbers.

        >>> Sizes.of(768, 14).decoder
        (14, 28, 56, 768)
        """
        inner = (
            ((), ()) if linear else (tuple(f * latent_width for f in ENCODER), tuple(f * latent_width for f in DECODER))
        )
        return cls((row_length, *inner[0], latent_width), (latent_width, *inner[1], row_length))

    @property
    def decoder_parameters(self) -> int:
        """Weights and biases of the decoder."""
        return sum((i + 1) * j for i, j in zip(self.decoder, self.decoder[1:], strict=False))


def latent_width(rows: int, row_length: int, budget: int, *, linear: bool = False, norms: bool = True) -> int:
    """The largest latent width whose latents, decoder and row norms are at most `budget` numbers.

    Args:
        rows: n, how many rows share the decoder.
        row_length: k, numbers per row.
        budget: how many numbers may be stored.
        linear: one affine map as decoder.
        norms: whether the row norms count. They are stored, so they do; without them the method looks smaller than
            it is.

    Returns:
        The width, 0 if not even one latent number per row fits.

    >>> latent_width(768, 768, 768 * 768 // 10)
    14
    """
    left = budget - row_length - (rows if norms else 0)
    if left < 0:
        return 0
    if linear:
        return left // (rows + row_length)
    first, second = DECODER
    quadratic = first + first * second
    slope = rows + first + second + second * row_length
    return (math.isqrt(slope * slope + 4 * quadratic * left) - slope) // (2 * quadratic)


RowImportance = Literal["none", "fisher", "l1"]


def row_weights(squared: Float[Array, "n k"], kind: RowImportance) -> Float[Array, " n"]:
    """One weight per row, of mean 1.

    Args:
        squared: mean squared gradient of every entry, [rows, entries].
        kind: "fisher" for √(Σ_j E g²); "l1" for Σ_j √(E g²), which is the sensitivity Σ_j E|g| of the reference with
            the root mean square in place of the mean magnitude.

    Returns:
        The weights; all 1 where there are no gradients at all.

    >>> row_weights(jnp.array([[9.0, 16.0], [0.0, 1.0]]), "l1").tolist()
    [1.75, 0.25]
    """
    sums = jnp.sqrt(jnp.sum(squared, axis=1)) if kind == "fisher" else jnp.sum(jnp.sqrt(squared), axis=1)
    mean = jnp.mean(sums)
    return jnp.where(mean > 0, sums / jnp.where(mean > 0, mean, 1), 1)


class Network(NamedTuple):
    """The layers of an encoder and of a decoder."""

    encoder: tuple[Affine, ...]
    decoder: tuple[Affine, ...]


@partial(jax.jit, static_argnames=("sizes", "dtype"))
def init_network(key: Array, sizes: Sizes, dtype: DTypeLike) -> Network:
    """Random layers as PyTorch makes them: kernels and biases uniform within ±1/√(inputs of the layer).

    On MiniLM this learns much faster than He-normal kernels, with which tanh starts out saturated.
    """
    shapes = [
        *zip(sizes.encoder, sizes.encoder[1:], strict=False),
        *zip(sizes.decoder, sizes.decoder[1:], strict=False),
    ]
    numbers = jax.random.uniform(key, (sum((i + 1) * j for i, j in shapes),), dtype, -1, 1)
    layers, start = [], 0
    for i, j in shapes:
        kernel, bias = jnp.split(numbers[start : start + (i + 1) * j] / math.sqrt(i), [i * j])
        layers.append(Affine(kernel.reshape(i, j), bias))
        start += (i + 1) * j
    count = len(sizes.encoder) - 1
    return Network(tuple(layers[:count]), tuple(layers[count:]))


def directions(rows: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """The rows at unit root mean square; rows of zeros stay."""
    return math.sqrt(rows.shape[1]) * unit_rows(rows)


def encode(encoder: tuple[Affine, ...], rows: Float[Array, "n k"]) -> Float[Array, "n l"]:
    """The latents of rows at unit root mean square."""
    for affine in encoder:
        rows = affine(rows)
        rows = rows if len(encoder) == 1 else jax.nn.leaky_relu(rows, LEAK)
    return rows


def reconstruct(network: Network, rows: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Encode and decode; every row gets back its own length."""
    decoded = decode_rows(network.decoder, encode(network.encoder, directions(rows)))
    return row_norms(rows)[:, None] * unit_rows(decoded)
