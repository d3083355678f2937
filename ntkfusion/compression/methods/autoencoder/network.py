"""The offline autoencoder's network: how wide it may be, its encoder and decoder as plain functions, how it is trained.

Source: Banaei et al. 2023, "Revisiting Offline Compression" (arXiv 2302.04045) and its code.

*Width.* For n rows of k numbers, latents of x numbers and a decoder x → 2x → 4x → k there are stored

    n x (latents) + n (row norms) + 10 x² + (6 + 4k) x + k (decoder)   ≤   budget,

so x is the floor of the positive root of a quadratic; of a linear decoder x → k: n x + n + k x + k.

*Layers.* Every layer of the encoder, the latent one included, is followed by LeakyReLU(0.01); a linear one is a single
affine map. The encoder is thrown away, so what it reads is free to choose: rows at unit root mean square, which the
weights' initialisation expects. The decoder is `ntkfusion.models.blocks.coded.decode_rows`; what is left of a trained
network is a `LatentMatrix`.

*Training.* The loss is mostly the direction of rows, a little of their distance; rows may count by their importance,
the Fisher information or the sensitivity of their entries. Epochs are single programs, and the best one is kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.coded import LEAK, Affine, decode_rows, row_norms, unit_rows

#: Hidden layers of the encoder and of the decoder, in latent widths.
ENCODER, DECODER = (8, 4), (2, 4)

#: Shares of the two terms, as in the reference.
COSINE, DISTANCE = 0.9091, 0.0909


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


@dataclasses.dataclass(frozen=True)
class AutoencoderTraining:
    """How an autoencoder is trained: Adam, whose rate falls in steps.

    The reference takes batches of 16 rows and 30 epochs. A rate of 2e-3 suits narrow codecs better; wide ones fail.

    Attributes:
        epochs: passes over the rows.
        batch: rows per step; of fewer rows, all.
        rate: the first learning rate.
        decay: what the rate is multiplied by ...
        decay_every: ... after every so many epochs.
    """

    epochs: int = 60
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.8
    decay_every: int = 10

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a count below 1 or a rate or decay that is not positive.
        """
        for name in ("epochs", "batch", "decay_every"):
            if getattr(self, name) < 1:
                raise InputError(f"autoencoder: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("rate", "decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"autoencoder: {name} must be positive, got {getattr(self, name)}")

    def rate_at(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        return self.rate * self.decay ** (epoch // self.decay_every)


class Trained(NamedTuple):
    """The best network of a training and the losses over all rows: at the start, then after every epoch."""

    network: Network
    losses: tuple[float, ...]

    @property
    def best_epoch(self) -> int:
        """The number of epochs behind the kept network."""
        return self.losses.index(min(self.losses))


class _EpochState(NamedTuple):
    network: Network
    optimiser: optax.OptState
    best: Network
    best_loss: Float[Array, ""]


def train(
    rows: Float[Array, "n k"],
    weights: Float[Array, " n"],
    sizes: Sizes,
    key: Array,
    options: AutoencoderTraining,
    progress: Callable[[float], None],
) -> Trained:
    """Train an autoencoder on rows and keep the epoch with the lowest loss over all of them.

    Args:
        rows: the data points.
        weights: how much each counts, of mean 1.
        sizes: layers.
        key: initialisation and order of the rows.
        options: epochs, batch, rates.
        progress: called with the finished fraction after every epoch.

    Returns:
        The best network, never worse than the initial one, and the losses.
    """
    network = init_network(jax.random.fold_in(key, 0), sizes, rows.dtype)
    first = _loss(network, rows, weights)
    # a copy: buffers are given up to the next epoch one by one
    best = jax.tree.map(jnp.copy, network)
    moments = _adam().init(network)  # pyright: ignore[reportArgumentType] (any pytree will do)
    state, losses = _EpochState(network, moments, best, first), [float(first)]
    for epoch in range(options.epochs):
        rate = jnp.asarray(options.rate_at(epoch), rows.dtype)
        order = jax.random.fold_in(key, epoch + 1)
        state, loss = _run_epoch(state, rows, weights, order, rate, batch=min(options.batch, rows.shape[0]))
        losses.append(float(loss))
        progress((epoch + 1) / options.epochs)
    return Trained(state.best, tuple(losses))


def _adam() -> optax.GradientTransformation:
    return optax.scale_by_adam()


@jax.jit
def _loss(network: Network, rows: Float[Array, "n k"], weights: Float[Array, " n"]) -> Float[Array, ""]:
    return reconstruction_loss(reconstruct(network, rows), rows, weights)


@partial(jax.jit, static_argnames="batch", donate_argnames="state")
def _run_epoch(
    state: _EpochState,
    rows: Float[Array, "n k"],
    weights: Float[Array, " n"],
    key: Array,
    rate: Float[Array, ""],
    *,
    batch: int,
) -> tuple[_EpochState, Float[Array, ""]]:
    """One pass in random order; rows that do not fill a last batch wait for another epoch."""
    steps = rows.shape[0] // batch
    batches = jax.random.permutation(key, rows.shape[0])[: steps * batch].reshape(steps, batch)

    def step(carry: tuple[Network, optax.OptState], chosen: Array) -> tuple[tuple[Network, optax.OptState], None]:
        network, optimiser = carry
        gradient = jax.grad(_loss)(network, rows[chosen], weights[chosen])
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to the number of the step, an integer
            updates, optimiser = _adam().update(gradient, optimiser)
        network = jax.tree.map(lambda old, update: old - rate * update, network, updates)
        return (network, optimiser), None

    (network, optimiser), _ = jax.lax.scan(step, (state.network, state.optimiser), batches)
    loss = _loss(network, rows, weights)
    best = jax.tree.map(lambda new, old: jnp.where(loss < state.best_loss, new, old), network, state.best)
    return _EpochState(network, optimiser, best, jnp.minimum(loss, state.best_loss)), loss


def reconstruction_loss(
    decoded: Float[Array, "n k"], rows: Float[Array, "n k"], weights: Float[Array, " n"]
) -> Float[Array, ""]:
    """``0.9091 mean_i c_i (1 − cos(M_i, M̂_i)) + 0.0909 √(mean_ij c_i (M_ij − M̂_ij)²)``.

    Args:
        decoded: M̂.
        rows: M.
        weights: c, of mean 1 over all rows.

    Returns:
        The loss. Its second term is the root of a *batch* mean, so that batches of another size have another loss.

    >>> rows = jnp.eye(2)
    >>> round(reconstruction_loss(-rows, rows, jnp.ones(2)).item(), 4)   # 0.9091 · 2 + 0.0909 · √2
    1.9468
    """
    cosines = jnp.sum(unit_rows(decoded) * unit_rows(rows), axis=1)
    mean_square = jnp.mean(weights[:, None] * (rows - decoded) ** 2)
    # the root has no derivative at 0
    distance = jnp.sqrt(jnp.maximum(mean_square, jnp.finfo(rows.dtype).tiny))
    return COSINE * jnp.mean(weights * (1 - cosines)) + DISTANCE * distance
