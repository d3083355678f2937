"""The order of the examples: which ones make up update t, decided by the seed alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from ntkfusion.training.encoding import Encoded
from ntkfusion.training.recipe import Recipe

#: So many batches' worth of shuffled examples are sorted by length together: little padding, much chance.
CHUNK = 50


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """The examples of one update.

    Attributes:
        step: number of the update, from 0.
        rows: the examples' places among the training examples.
        arrays: from `Encoded.batch`.
    """

    step: int
    rows: tuple[int, ...]
    arrays: dict[str, np.ndarray]

    @property
    def num_tokens(self) -> int:
        """Tokens without padding."""
        filled = int(self.arrays["weights"].sum())
        return int(self.arrays["attention_mask"][:filled].sum())


def epoch_order(
    lengths: Int[np.ndarray, " N"], batch_size: int, *, seed: int, epoch: int
) -> list[Int[np.ndarray, " _"]]:
    """Batches of examples of similar length, in random order.

    Examples are shuffled, sorted by length within chunks of 50 batches, and cut into batches, which are shuffled. Every
    example is in exactly one batch.

    Args:
        lengths: tokens of each example.
        batch_size: examples per batch; one batch may have fewer.
        seed: with the epoch the only source of chance.
        epoch: number of the pass.

    Returns:
        The places of the examples of each batch.
    """
    rng = np.random.default_rng((seed, epoch))
    order, chunk = rng.permutation(len(lengths)), CHUNK * batch_size
    batches: list[np.ndarray] = []
    for start in range(0, len(order), chunk):
        part = order[start : start + chunk]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[place : place + batch_size] for place in range(0, len(part), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def minibatches(
    encoded: Encoded, recipe: Recipe, buckets: Sequence[int], *, seed: int, start: int = 0
) -> Iterator[Minibatch]:
    """The batches of a run from update `start` on, as an uninterrupted run has them.

    Args:
        encoded: the training examples.
        recipe: the hyper-parameters.
        buckets: padded lengths, from `bucket_lengths`.
        seed: of the order.
        start: number of the first update.

    Yields:
        One `Minibatch` per update.
    """
    lengths, per_epoch = encoded.lengths, recipe.updates_per_epoch(len(encoded))
    for epoch in range(start // per_epoch, recipe.epochs):
        order = epoch_order(lengths, recipe.batch_size, seed=seed, epoch=epoch)
        skipped = max(0, start - epoch * per_epoch)
        for place, rows in enumerate(order[skipped:], start=epoch * per_epoch + skipped):
            arrays = encoded.batch(rows.tolist(), recipe.batch_size, padded_length(int(lengths[rows].max()), buckets))
            yield Minibatch(place, tuple(rows.tolist()), arrays)


def padded_length(length: int, buckets: Sequence[int]) -> int:
    """The shortest bucket that is long enough."""
    return next(bucket for bucket in buckets if bucket >= length)


def in_order(
    encoded: Encoded, batch_size: int, buckets: Sequence[int]
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Every example once, those of similar length together, for evaluation: places and arrays."""
    lengths = encoded.lengths
    by_length = np.argsort(lengths, kind="stable").tolist()
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        yield rows, encoded.batch(rows, batch_size, padded_length(int(lengths[rows[-1]]), buckets))
