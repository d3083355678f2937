"""What the autoencoder minimises: mostly the direction of rows, a little of their distance.

Training of one autoencoder with optax: epochs are single programs, the best one is kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ntkfusion.compression.methods.autoencoder.network import Network, Sizes, init_network, reconstruct
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.coded import unit_rows

#: Shares of the two terms, as in the reference.
COSINE, DISTANCE = 0.9091, 0.0909


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


@dataclasses.dataclass(frozen=True)
class Training:
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


class _State(NamedTuple):
    network: Network
    optimiser: optax.OptState
    best: Network
    best_loss: Float[Array, ""]


def train(
    rows: Float[Array, "n k"],
    weights: Float[Array, " n"],
    sizes: Sizes,
    key: Array,
    options: Training,
    progress: Callable[[float], None],
) -> Trained:
    """Train an autoencoder on rows and keep the epoch with the lowest loss over all of them.

    Args:
        rows: the data points.
        weights: how much each counts, of mean 1.
        sizes: layers.
        key: initialisation and order of the rows.
        options: epochs, batch, rates.
        progress: told the finished fraction after every epoch.

    Returns:
        The best network, never worse than the initial one, and the losses.
    """
    network = init_network(jax.random.fold_in(key, 0), sizes, rows.dtype)
    first = _loss(network, rows, weights)
    # a copy: buffers are given up to the next epoch one by one
    best = jax.tree.map(jnp.copy, network)
    moments = _adam().init(network)  # pyright: ignore[reportArgumentType] (any pytree will do)
    state, losses = _State(network, moments, best, first), [float(first)]
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
    state: _State,
    rows: Float[Array, "n k"],
    weights: Float[Array, " n"],
    key: Array,
    rate: Float[Array, ""],
    *,
    batch: int,
) -> tuple[_State, Float[Array, ""]]:
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
    return _State(network, optimiser, best, jnp.minimum(loss, state.best_loss)), loss
