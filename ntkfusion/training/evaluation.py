"""How well a model does on a task: its outputs, example by example, and the metrics that GLUE judges tasks by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Int64, Num
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ntkfusion.data.tasks.label_order import check_problem
from ntkfusion.data.tasks.task import Examples
from ntkfusion.errors import InputError
from ntkfusion.models.config import ModelConfig
from ntkfusion.models.model import Model
from ntkfusion.training.batches import TokenizedExamples, bucket_lengths, encode, in_order
from ntkfusion.training.step import Arrays, logits_of
from ntkfusion.utils.parameter_paths import Params


def predict(
    model: Model, encoded: TokenizedExamples, *, batch_size: int = 32, buckets: Sequence[int] | None = None
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
    program, logits = _program(model.config), np.zeros((len(encoded), model.config.num_labels or 0), np.float64)
    # one precision wherever it is called from, so that each bucket has one program
    with jax.default_matmul_precision("highest"):
        for rows, arrays in in_order(encoded, batch_size, buckets):
            logits[rows] = np.asarray(program(model.params, model.constants, arrays))[: len(rows)]
    return logits


def evaluate(
    model: Model,
    examples: Examples,
    metrics: Sequence[str] = ("accuracy",),
    *,
    max_length: int = 128,
    batch_size: int = 32,
) -> dict[str, float]:
    """Scores of a model on a task's examples, as it is.

    A head that its checkpoint names the outputs of keeps its order; labels and outputs are compared by these names.

    Args:
        model: a model with a sequence classification head and a tokenizer.
        examples: texts and labels.
        metrics: names that `ntkfusion.training.evaluation.score` knows.
        max_length: longer inputs are cut.
        batch_size: examples that are computed at once.

    Returns:
        Metric → value.

    Raises:
        InputError: as `encode`; if the model has no such head, or one for other classes than the examples', or for
            several at once.
    """
    if model.config.head != "sequence-classification":
        raise InputError(
            f"scores need a sequence classification head, {model.source} has {model.config.head or 'none'}; "
            'make one with with_new_head(model, "sequence-classification", num_labels=...)'
        )
    check_problem(model, is_scores=examples.labels.dtype.kind == "f")
    encoded = encode(model, examples, max_length=max_length)
    return score(metrics, *encoded.in_task_order(predict(model, encoded, batch_size=batch_size)))


def padded_lengths(model: Model, sets: Sequence[TokenizedExamples], num_buckets: int = 4) -> tuple[int, ...]:
    """Padded lengths for all examples of some sets, none longer than the model's positions."""
    buckets = bucket_lengths(np.concatenate([each.lengths for each in sets]), num_buckets)
    longest = model.config.max_length
    return buckets if longest is None else tuple(sorted({min(longest, bucket) for bucket in buckets}))


@lru_cache(maxsize=8)
def _program(config: ModelConfig) -> Callable[[Params, Params, Arrays], Float[Array, "B C"]]:
    return jax.jit(partial(logits_of, config))


def score(
    metrics: Sequence[str],
    labels: Num[np.ndarray | Array, "N"],
    logits: Float[np.ndarray | Array, "N C"],
) -> dict[str, float]:
    """How well a model's outputs fit the labels; of every metric more is better.

    Classes: the prediction is argmax_c logits[n, c]. ``accuracy``; ``f1``, that of class 1 of two, 0 if it is neither
    predicted nor there; ``matthews``, 0 if predictions or labels are all the same. Scores (C = 1): ``pearson`` and
    ``spearman`` correlations, 0.0 if predictions or labels are all the same, where they are not defined.
    GLUE: MRPC accuracy and F1, CoLA Matthews, STS-B Pearson and Spearman, the others accuracy.

    Args:
        metrics: their names.
        labels: class indices, or scores.
        logits: outputs of the model.

    Returns:
        The metrics by name, in their order.

    Raises:
        InputError: if a metric is unknown or does not fit the outputs, or a value is not finite or no class.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise InputError(f"unknown metrics {', '.join(unknown)}; there are {', '.join(METRICS)}")
    targets, outputs = np.asarray(labels, np.float64), np.asarray(logits, np.float64)
    if not len(targets) or not np.isfinite(outputs).all() or not np.isfinite(targets).all():
        raise InputError("metrics need at least one example, and labels and outputs that are finite numbers")
    return {name: METRICS[name](name, targets, outputs) for name in metrics}


def _accuracy(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> float:
    return float(accuracy_score(*_classes(name, labels, logits)))


def _f1(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> float:
    if logits.shape[1] != 2:
        raise InputError(f"f1 is that of class 1 of two classes; there are {logits.shape[1]} outputs")
    truth, predicted = _classes(name, labels, logits)
    return float(f1_score(truth, predicted)) if truth.any() or predicted.any() else 0.0


def _matthews(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> float:
    truth, predicted = _classes(name, labels, logits)
    return 0.0 if np.ptp(truth) == 0 or np.ptp(predicted) == 0 else float(matthews_corrcoef(truth, predicted))


def _pearson(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> float:
    return _correlation(stats.pearsonr, labels, _scores(name, logits))


def _spearman(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> float:
    return _correlation(stats.spearmanr, labels, _scores(name, logits))


def _correlation(
    function: Callable[..., Any], labels: Float64[np.ndarray, "N"], predicted: Float64[np.ndarray, "N"]
) -> float:
    # not defined where either is constant: SciPy would warn and give NaN
    return 0.0 if np.ptp(labels) == 0 or np.ptp(predicted) == 0 else float(function(labels, predicted).statistic)


def _classes(
    name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]
) -> tuple[Int64[np.ndarray, "N"], Int64[np.ndarray, "N"]]:
    """True and predicted classes."""
    count, truth = logits.shape[1], labels.astype(np.int64)
    if count < 2:
        raise InputError(
            f"{name} needs an output per class, there is one output; for scores there are pearson, spearman"
        )
    if (truth != labels).any() or truth.min() < 0 or truth.max() >= count:
        raise InputError(f"{name}: labels should be whole numbers from 0 to {count - 1}")
    return truth, logits.argmax(1)


def _scores(name: str, logits: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N"]:
    if logits.shape[1] != 1:
        raise InputError(f"{name} is for scores, one output; there are {logits.shape[1]} outputs")
    return logits[:, 0]


#: All metrics by name.
METRICS: dict[str, Callable[[str, np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
