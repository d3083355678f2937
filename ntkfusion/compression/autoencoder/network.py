"""The encoder and decoder as plain functions; what is left of them is a `LatentMatrix`.

Encoder: every layer, the latent one included, is followed by LeakyReLU(0.01); a linear one is one affine map. The
encoder is thrown away, so what it reads is free to choose: rows at unit root mean square, which the weights'
initialisation expects. The decoder is `ntkfusion.models.codes.decode_rows`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ntkfusion.compression.autoencoder.sizes import Sizes
from ntkfusion.models.codes import LEAK, Affine, decode_rows, row_norms, unit_rows


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
