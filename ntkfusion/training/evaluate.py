"""What a model answers, example by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.data.task import Examples
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model, Params
from ntkfusion.training.batches import in_order
from ntkfusion.training.encoding import Encoded, bucket_lengths, encode
from ntkfusion.training.losses import logits_of
from ntkfusion.training.metrics import score


def predict(
    model: Model, encoded: Encoded, *, batch_size: int = 32, buckets: Sequence[int] | None = None
) -> Float[np.ndarray, "N C"]:
    """Logits of every example, without dropout, matmuls at the highest precision.

    Args:
        model: a model with a sequence classification head.
        encoded: from `encode`.
        batch_size: examples that are computed at once.
        buckets: padded lengths; by default the four best ones.

    Returns:
        Logits in the order of the examples.
    """
    buckets = padded_lengths(model, (encoded,)) if buckets is None else buckets
    program, found = _program(model.config), np.zeros((len(encoded), model.config.num_labels or 0), np.float64)
    # one precision wherever it is called from, so that each bucket has one program
    with jax.default_matmul_precision("highest"):
        for rows, arrays in in_order(encoded, batch_size, buckets):
            found[rows] = np.asarray(program(model.params, model.constants, arrays))[: len(rows)]
    return found


def evaluate(
    model: Model,
    examples: Examples,
    metrics: Sequence[str] = ("accuracy",),
    *,
    max_length: int = 128,
    batch_size: int = 32,
) -> dict[str, float]:
    """Scores of a model on a task's examples, as it is.

    Args:
        model: a model with a sequence classification head and a tokenizer.
        examples: texts and labels.
        metrics: names that `ntkfusion.training.metrics.score` knows.
        max_length: longer inputs are cut.
        batch_size: examples that are computed at once.

    Returns:
        Metric → value.

    Raises:
        InputError: as `encode`.
    """
    encoded = encode(model, examples, max_length=max_length)
    return score(metrics, encoded.labels, predict(model, encoded, batch_size=batch_size))


def padded_lengths(model: Model, sets: Sequence[Encoded], num_buckets: int = 4) -> tuple[int, ...]:
    """Padded lengths for all examples of some sets, none longer than the model's positions."""
    buckets = bucket_lengths(np.concatenate([each.lengths for each in sets]), num_buckets)
    longest = model.config.max_length
    return buckets if longest is None else tuple(sorted({min(longest, bucket) for bucket in buckets}))


@lru_cache(maxsize=8)
def _program(config: ModelConfig) -> Callable[[Params, Params, Mapping[str, Any]], Float[Array, "B C"]]:
    return jax.jit(partial(logits_of, config))
