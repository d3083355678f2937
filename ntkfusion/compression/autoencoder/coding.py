"""From matrices to codes: which ones share a decoder, how wide it is, what is stored of a trained network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.compression.autoencoder.network import directions, encode
from ntkfusion.compression.autoencoder.sizes import Sizes, latent_width
from ntkfusion.compression.autoencoder.training import Trained, Training, train
from ntkfusion.compression.autoencoder.weights import RowImportance, row_weights
from ntkfusion.compression.budget import fidelity
from ntkfusion.compression.matrices import Encoded, Matrix
from ntkfusion.errors import InputError
from ntkfusion.models.codes import LatentMatrix, decode_rows, unit_rows

Sharing = Literal["model", "layer"]
Scales = Literal["exact", "fitted"]


def groups(matrices: Sequence[Matrix], sharing: Sharing) -> list[list[int]]:
    """Which matrices have a decoder in common: each its own, or all of one shape and budget."""
    if sharing == "layer":
        return [[index] for index in range(len(matrices))]
    alike: dict[tuple[object, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        alike.setdefault((matrix.rows.shape, matrix.budget), []).append(index)
    return list(alike.values())


def sizes_of(name: str, matrices: Sequence[Matrix], *, linear: bool) -> Sizes:
    """The layers of the widest codec that matrices of one shape and budget can share.

    Raises:
        InputError: if not even one latent number per row fits.
    """
    (n, k), count = matrices[0].rows.shape, len(matrices)
    width = latent_width(count * n, k, count * matrices[0].budget, linear=linear)
    if width < 1:
        one = Sizes.of(k, 1, linear=linear).decoder_parameters
        raise InputError(
            f"autoencoder: one latent number and a norm for each of {count * n} rows of {name}, and a decoder of {one} "
            f"numbers, are {2 * count * n + one}, more than the budget of {count * matrices[0].budget}; choose a "
            "larger width (or a smaller ratio), or share the decoder among more layers"
        )
    return Sizes.of(k, width, linear=linear)


def encode_together(
    matrices: Sequence[Matrix],
    sizes: Sizes,
    key: Array,
    training: Training,
    scales: Scales,
    importance: RowImportance,
    progress: Callable[[float], None],
) -> list[Encoded]:
    """Train one autoencoder on the rows of all matrices, which are alike, and keep what has to be stored."""
    rows = jnp.concatenate([matrix.rows for matrix in matrices])
    weights = jnp.concatenate([_weights(matrix, importance) for matrix in matrices])
    trained = train(rows, weights, sizes, key, training, progress)
    shares = [(sizes.decoder_parameters + index) // len(matrices) for index in range(len(matrices))]
    return [_stored(matrix, trained, share, scales) for matrix, share in zip(matrices, shares, strict=True)]


def _weights(matrix: Matrix, importance: RowImportance) -> Float[Array, " n"]:
    """The weights of a matrix's rows, of mean 1 in every matrix: no layer matters more than another."""
    if importance == "none" or matrix.squared is None:
        return jnp.ones(matrix.rows.shape[0], matrix.array.dtype)
    return row_weights(matrix.squared.T if matrix.transposed else matrix.squared, importance)


def _stored(matrix: Matrix, trained: Trained, share: int, scales: Scales) -> Encoded:
    rows, (encoder, decoder) = matrix.rows, trained.network
    latents = encode(encoder, directions(rows))
    found = unit_rows(decode_rows(decoder, latents))
    norms = jnp.linalg.norm(rows, axis=1) if scales == "exact" else jnp.sum(found * rows, axis=1)
    code = LatentMatrix(latents, norms, decoder, transposed=matrix.transposed, decoder_share=share)
    details = {"latent_width": float(latents.shape[1]), "loss": min(trained.losses), "first_loss": trained.losses[0]}
    details |= {"best_epoch": float(trained.best_epoch), "decoder_share": float(share)}
    return Encoded(code, details | fidelity(norms[:, None] * found, rows))
