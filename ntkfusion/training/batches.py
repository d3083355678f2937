"""Examples as token ids, the few lengths they are padded to, and the batches of every update.

Which examples make up update t is decided by the seed alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from ntkfusion.data.block_inputs import tokenizer_output
from ntkfusion.data.tasks.label_order import classes_of_outputs
from ntkfusion.data.tasks.task import Examples
from ntkfusion.errors import InputError
from ntkfusion.models.indices import padding_id
from ntkfusion.models.model import Model
from ntkfusion.training.recipe import Recipe

#: Padded lengths are multiples of this.
LENGTH_STEP = 8


@dataclasses.dataclass(frozen=True)
class TokenizedExamples:
    """Tokenised examples.

    Attributes:
        ids: token ids of each example.
        types: segment of each token, where the tokenizer tells; else None.
        labels: places among the model's outputs, or scores.
        padding: the id of padding.
        classes: the task's class that each output stands for; None where they have the same order.
    """

    ids: list[list[int]]
    types: list[list[int]] | None
    labels: Int[np.ndarray, " N"] | Float[np.ndarray, " N"]
    padding: int = 0
    classes: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """How many examples there are."""
        return len(self.ids)

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """Tokens of each example."""
        return np.array([len(ids) for ids in self.ids])

    def in_task_order(
        self, logits: Float[np.ndarray, "N C"]
    ) -> tuple[Int[np.ndarray, " N"] | Float[np.ndarray, " N"], Float[np.ndarray, "N C"]]:
        """Labels and a model's outputs as the task orders its classes: some metrics are those of one class."""
        if self.classes is None:
            return self.labels, logits
        return np.asarray(self.classes, self.labels.dtype)[self.labels], logits[:, np.argsort(self.classes)]

    def batch(self, rows: Sequence[int], size: int, length: int) -> dict[str, np.ndarray]:
        """Some examples as arrays of one shape.

        Args:
            rows: which examples; at most `size`.
            size: rows of the arrays. Those that no example needs have weight 0 and attend to one token.
            length: columns; at least as many as the longest example has tokens.

        Returns:
            ``input_ids``, ``attention_mask`` and, if there are segments, ``token_type_ids``, [size, length];
            ``labels`` and ``weights``, [size].
        """
        arrays = {name: np.zeros((size, length), np.int32) for name in ("input_ids", "attention_mask")}
        arrays["input_ids"][:] = self.padding
        if self.types is not None:
            arrays["token_type_ids"] = np.zeros((size, length), np.int32)
        for place, row in enumerate(rows):
            count = len(self.ids[row])
            arrays["input_ids"][place, :count] = self.ids[row]
            arrays["attention_mask"][place, :count] = 1
            if self.types is not None:
                arrays["token_type_ids"][place, :count] = self.types[row]
        arrays["attention_mask"][len(rows) :, 0] = 1
        labels = np.zeros(size, self.labels.dtype)
        labels[: len(rows)] = self.labels[list(rows)]
        return {**arrays, "labels": labels, "weights": (np.arange(size) < len(rows)).astype(np.float32)}


def encode(model: Model, examples: Examples, *, max_length: int) -> TokenizedExamples:
    """Tokenise examples, pairs as one input with the tokenizer's separators.

    Args:
        model: a model with a tokenizer.
        examples: texts and labels; if they say what classes are meant, labels become places among the model's outputs.
        max_length: longer inputs are cut (of a pair the longer text first), also to the model's positions.

    Returns:
        The `TokenizedExamples`.

    Raises:
        InputError: if the model has no tokenizer, or one whose ids exceed the model's vocabulary; if it has a sequence
            classification head for other classes.
    """
    second = None if examples.second is None else list(examples.second)
    encoded = tokenizer_output(model, list(examples.first), second, max_length=max_length)
    ids: list[list[int]] = encoded["input_ids"]
    if not all(ids):
        raise InputError(f"example {next(i for i, row in enumerate(ids) if not row)} has no tokens")
    types = encoded.get("token_type_ids") if "token_type_ids" in model.tokenizer.model_input_names else None
    labels, classes = _of_outputs(model, examples)
    padding = padding_id(model.config, model.tokenizer, model.origin.config) or 0
    return TokenizedExamples(ids, types, labels, padding, classes)


def _of_outputs(
    model: Model, examples: Examples
) -> tuple[Int[np.ndarray, " N"] | Float[np.ndarray, " N"], tuple[int, ...] | None]:
    """Labels as places among the outputs, and the class of each output where that is another order than the task's."""
    if not examples.classes or model.config.head != "sequence-classification":
        return examples.labels, None
    classes = classes_of_outputs(model, examples.classes)
    if classes == tuple(range(len(classes))):
        return examples.labels, None
    return np.argsort(classes).astype(examples.labels.dtype)[examples.labels], classes


def bucket_lengths(lengths: Int[np.ndarray, " N"], num_buckets: int) -> tuple[int, ...]:
    """The padded lengths that waste the fewest tokens when every example is padded to the next one.

    Exact, by dynamic programming over multiples of 8.

    Args:
        lengths: tokens of the examples.
        num_buckets: how many lengths there may be.

    Returns:
        Ascending lengths, the last one no shorter than the longest example.

    >>> bucket_lengths(np.array([5, 6, 7, 8, 60, 64]), 2)
    (8, 64)
    """
    rounded = -(-np.asarray(lengths) // LENGTH_STEP) * LENGTH_STEP
    sizes, counts = np.unique(rounded, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[k] of padding all examples up to size k; one more bucket per round
    cost = sizes * below[1:]
    cuts = [[(int(size),) for size in sizes]]
    for _ in range(min(num_buckets, len(sizes)) - 1):
        added = cost[None, :] + sizes[:, None] * (below[1:, None] - below[None, 1:])
        added = np.where(np.tri(len(sizes), k=-1, dtype=bool), added, cost.max() + 1)
        chosen = added.argmin(axis=1)
        better = added[np.arange(len(sizes)), chosen] < cost
        cuts.append([(*cuts[-1][chosen[k]], int(sizes[k])) if better[k] else cuts[-1][k] for k in range(len(sizes))])
        cost = np.where(better, added[np.arange(len(sizes)), chosen], cost)
    return cuts[-1][-1]


#: So many batches' worth of shuffled examples are sorted by length together: little padding, much chance.
CHUNK = 50


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """The examples of one update.

    Attributes:
        step: number of the update, from 0.
        rows: the examples' places among the training examples.
        arrays: from `TokenizedExamples.batch`.
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
    encoded: TokenizedExamples, recipe: Recipe, buckets: Sequence[int], *, seed: int, start: int = 0
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
    encoded: TokenizedExamples, batch_size: int, buckets: Sequence[int]
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Every example once, those of similar length together, for evaluation: places and arrays."""
    lengths = encoded.lengths
    by_length = np.argsort(lengths, kind="stable").tolist()
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        yield rows, encoded.batch(rows, batch_size, padded_length(int(lengths[rows[-1]]), buckets))
