"""A task: labelled sentences or pairs of sentences, in splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, Int32

from ntkfusion.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled text, one example per row.

    Attributes:
        first: the sentences.
        second: what each is compared with, in a task on pairs.
        labels: class indices (int32), or scores (float32).
        classes: what the indices mean, so that a model whose head has another order is understood; a `Task` gives its
            splits its own. Without them index i means output i of a model.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: Int32[np.ndarray, "N"] | Float32[np.ndarray, "N"]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.first)

    def take(self, indices: Sequence[int] | Int[np.ndarray, "M"]) -> Examples:
        """The rows of these indices, in their order."""
        rows = np.asarray(indices, np.int64)
        second = None if self.second is None else tuple(self.second[row] for row in rows)
        return Examples(tuple(self.first[row] for row in rows), second, self.labels[rows], self.classes)


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task to fine-tune on.

    Attributes:
        name: of the task.
        labels: class names in the order of their indices; none for regression.
        metrics: those of `ntkfusion.training.evaluation` it is judged by; the first decides early stopping.
        train: the examples to train on.
        dev: those that choose between models.
        test: those to be looked at once, where labels are public.
        source: for people, where each split came from.
    """

    name: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    train: Examples
    dev: Examples
    test: Examples | None
    source: str

    def __post_init__(self) -> None:
        """Tell the splits what their labels mean."""
        for name in ("train", "dev", "test"):
            split: Examples | None = getattr(self, name)
            if split is None or split.classes == self.labels:
                continue
            if split.classes:
                raise InputError(
                    f"task {self.name} has the classes {', '.join(self.labels)}, its {name} split "
                    f"{', '.join(split.classes)}; give all the same"
                )
            object.__setattr__(self, name, dataclasses.replace(split, classes=self.labels))

    @property
    def is_regression(self) -> bool:
        """Whether labels are scores, not classes."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Outputs that a model of the task has: one per class, one for regression."""
        return len(self.labels) or 1

    def subsampled(self, *, train: int | None, dev: int | None, seed: int) -> Task:
        """The task with random subsets of train and dev, without replacement and in their order; test stays whole.

        Args:
            train: examples to keep; None, or more than there are, keeps all.
            dev: likewise.
            seed: of the choice.

        Raises:
            InputError: if a number is below 1, or the seed below 0.
        """
        kept = _subset(self.train, train, (seed, 0)), _subset(self.dev, dev, (seed, 1))
        return dataclasses.replace(self, train=kept[0], dev=kept[1])


def hold_out(examples: Examples, *, seed: int, share: float = 0.1) -> tuple[Examples, Examples]:
    """Two disjoint parts that keep the order: what is left, and a random share of every class (of all, for scores).

    Args:
        examples: those to split.
        seed: of the choice.
        share: of a class with at least two examples; at least one of them goes each way.

    Raises:
        InputError: if nothing can be held out, or the seed is below 0.
    """
    rng = np.random.default_rng(_checked(seed))
    is_class = examples.labels.dtype.kind == "i"
    groups = [np.flatnonzero(examples.labels == label) for label in np.unique(examples.labels)] if is_class else []
    held = np.zeros(len(examples), bool)
    for group in groups or [np.arange(len(examples))]:
        count = max(1, round(len(group) * share)) if len(group) > 1 else 0
        held[rng.permutation(group)[:count]] = True
    if not held.any():
        raise InputError("too few examples to hold some out of them: no class has two; give a dev split")
    return examples.take(np.flatnonzero(~held)), examples.take(np.flatnonzero(held))


def _subset(examples: Examples, count: int | None, seeds: tuple[int, int]) -> Examples:
    seed = [_checked(seeds[0]), seeds[1]]
    if count is not None and count < 1:
        raise InputError(f"a split needs at least one example, got {count}")
    if count is None or count >= len(examples):
        return examples
    return examples.take(np.sort(np.random.default_rng(seed).choice(len(examples), count, replace=False)))


def _checked(seed: int) -> int:
    if seed < 0:
        raise InputError(f"seed must be at least 0, got {seed}")
    return seed
