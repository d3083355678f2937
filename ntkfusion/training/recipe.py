"""How a model is trained: every number that decides the result, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ntkfusion.errors import InputError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a training run.

    Attributes:
        learning_rate: the largest rate of the schedule.
        epochs: passes over the training examples.
        batch_size: examples per update.
        accumulation: parts that a batch is computed in, one after the other; the update is that of the whole batch.
        max_length: examples are cut to so many tokens.
        num_buckets: padded lengths that batches have at most; each is compiled once.
        optimizer: `adamw`, or `sgd` (plain gradient descent, with the same decoupled decay).
        schedule: after the warm-up the rate is `constant`, or falls to 0 along a straight line (`linear`) or the power
            `power` of one (`polynomial`).
        power: of the polynomial schedule.
        warmup: share of all updates in which the rate grows from 0.
        weight_decay: decoupled, on weight matrices and embeddings only; no bias or LayerNorm decays.
        b1, b2, eps: Adam's.
        clip_norm: gradients of a larger global norm are scaled down to it; None never does.
        dropout: whether to train with the model's dropout.
        precision: of activations and gradients; parameters and optimiser state are float32 in both.
        evaluations: on the dev set, per epoch.
        patience: evaluations in a row without improvement after which training stops; None never stops early.
        keep: which parameters the result has, those of the `best` evaluation or the `last` ones.
    """

    learning_rate: float = 5e-5
    epochs: int = 3
    batch_size: int = 32
    accumulation: int = 1
    max_length: int = 128
    num_buckets: int = 4
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["linear", "polynomial", "constant"] = "linear"
    power: float = 2.0
    warmup: float = 0.06
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0
    dropout: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluations: int = 1
    patience: int | None = None
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        """Refuse numbers that cannot be meant.

        Raises:
            InputError: for a value out of its range, or parts of a batch that are not equally large.
        """
        for name in ("epochs", "batch_size", "accumulation", "max_length", "num_buckets", "evaluations"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "power", "eps"):
            _check(name, getattr(self, name), 0 < getattr(self, name) < float("inf"), "a number above 0")
        for name in ("warmup", "b1", "b2"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "from 0 to below 1")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "0 or more")
        _check("clip_norm", self.clip_norm, self.clip_norm is None or self.clip_norm > 0, "above 0")
        _check("patience", self.patience, self.patience is None or self.patience >= 1, "at least 1")
        if self.batch_size % self.accumulation:
            raise InputError(f"batch_size {self.batch_size} cannot be split into {self.accumulation} equal parts")

    @property
    def part_size(self) -> int:
        """Examples that are computed at once: those of a part of a batch."""
        return self.batch_size // self.accumulation

    def of_one_update(self) -> Recipe:
        """The recipe without what changes no single update, so that runs which differ in that share programs."""
        names = ("epochs", "max_length", "num_buckets", "evaluations", "patience", "keep")
        return dataclasses.replace(self, **{name: getattr(Recipe, name) for name in names})

    def num_updates(self, num_examples: int) -> int:
        """Updates of a whole run.

        >>> Recipe(epochs=2, batch_size=32).num_updates(65)
        6
        """
        return self.epochs * self.updates_per_epoch(num_examples)

    def updates_per_epoch(self, num_examples: int) -> int:
        """Batches that one pass takes, the last one perhaps not full."""
        return -(-num_examples // self.batch_size)


def _check(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise InputError(f"{name} must be {expected}, got {value}")
