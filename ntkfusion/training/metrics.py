"""The metrics that GLUE judges its tasks by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float64, Int64, Num
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from ntkfusion.errors import InputError


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
    return {name: float(METRICS[name](name, targets, outputs)) for name in metrics}


def _accuracy(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> Any:
    return accuracy_score(*_classes(name, labels, logits))


def _f1(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> Any:
    if logits.shape[1] != 2:
        raise InputError(f"f1 is that of class 1 of two classes; there are {logits.shape[1]} outputs")
    truth, found = _classes(name, labels, logits)
    return f1_score(truth, found) if truth.any() or found.any() else 0.0


def _matthews(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> Any:
    truth, found = _classes(name, labels, logits)
    return 0.0 if np.ptp(truth) == 0 or np.ptp(found) == 0 else matthews_corrcoef(truth, found)


def _pearson(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> Any:
    return _correlation(stats.pearsonr, labels, _scores(name, logits))


def _spearman(name: str, labels: Float64[np.ndarray, "N"], logits: Float64[np.ndarray, "N C"]) -> Any:
    return _correlation(stats.spearmanr, labels, _scores(name, logits))


def _correlation(
    function: Callable[..., Any], labels: Float64[np.ndarray, "N"], found: Float64[np.ndarray, "N"]
) -> Any:
    # not defined where either is constant: SciPy would warn and give NaN
    return 0.0 if np.ptp(labels) == 0 or np.ptp(found) == 0 else function(labels, found).statistic


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
METRICS: dict[str, Callable[..., Any]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
