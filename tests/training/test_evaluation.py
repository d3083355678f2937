"""Metrics against their definitions, and where they are not defined."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntkfusion
from ntkfusion.errors import InputError
from ntkfusion.training.evaluation import METRICS, score


def outputs(predictions, count=2):
    """Logits with these predictions."""
    return np.eye(count, dtype=np.float32)[np.asarray(predictions)] - 3


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_two_classes_follow_the_counts(pairs):
    truth, found = np.asarray(pairs, np.int32).T
    tp, tn = int(((truth == 1) & (found == 1)).sum()), int(((truth == 0) & (found == 0)).sum())
    fp, fn = int(((truth == 0) & (found == 1)).sum()), int(((truth == 1) & (found == 0)).sum())
    root = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = score(["matthews", "accuracy", "f1"], truth, outputs(found))
    assert list(got) == ["matthews", "accuracy", "f1"]
    assert got["accuracy"] == pytest.approx((tp + tn) / len(pairs))
    assert got["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0)
    assert got["matthews"] == pytest.approx((tp * tn - fp * fn) / root if root else 0.0)


def test_many_classes_have_accuracy_and_matthews_but_no_f1():
    truth, found = np.array([0, 1, 2, 2, 1, 0], np.int32), [0, 1, 2, 1, 1, 0]
    got = score(["accuracy", "matthews"], truth, outputs(found, 3))
    pairs = np.eye(3)[truth], np.eye(3)[found]
    covariance = [[np.sum((a - a.mean(0)) * (b - b.mean(0))) for b in pairs] for a in pairs]  # Gorodkin 2004
    assert got["accuracy"] == pytest.approx(5 / 6)
    assert got["matthews"] == pytest.approx(covariance[0][1] / np.sqrt(covariance[0][0] * covariance[1][1]))
    with pytest.raises(InputError, match="f1 is that of class 1 of two classes; there are 3"):
        score(["f1"], truth, outputs(found, 3))


def test_correlations_are_those_of_values_and_of_ranks():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=40).astype(np.float32)
    found = (np.exp(labels) + rng.normal(size=40)).astype(np.float32)
    got = score(["spearman", "pearson"], labels, found[:, None])
    ranks = [np.argsort(np.argsort(values)) for values in (labels, found)]
    assert got["pearson"] == pytest.approx(np.corrcoef(labels, found)[0, 1], abs=1e-6)
    assert got["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("size", [1, 5])
def test_correlations_with_a_constant_are_zero_without_a_warning(size):
    constant, values = np.full(size, 0.3, np.float32), np.arange(size, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(["pearson", "spearman"], values, constant[:, None]) == {"pearson": 0.0, "spearman": 0.0}
        assert score(["pearson", "spearman"], constant, values[:, None]) == {"pearson": 0.0, "spearman": 0.0}


def test_arrays_of_jax_are_taken_in_any_precision():
    labels, logits = jnp.array([0, 1, 1]), jnp.array([[1, 0], [0, 1], [1, 0]], jnp.bfloat16)
    assert score(["accuracy"], labels, logits)["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "labels", "logits", "message"),
    [
        ("bleu", [0, 1], [[1, 0], [0, 1]], r"unknown metrics bleu; there are accuracy"),
        ("accuracy", [0, 1], [[1, 0], [np.nan, 1]], r"finite"),
        ("pearson", [0.5, np.inf], [[1], [0]], r"finite"),
        ("accuracy", [0, 2], [[1, 0], [0, 1]], r"whole numbers from 0 to 1"),
        ("matthews", [0, -1], [[1, 0], [0, 1]], r"whole numbers from 0 to 1"),
        ("accuracy", [0.5, 1], [[1, 0], [0, 1]], r"whole numbers from 0 to 1"),
        ("accuracy", [0, 1], [[1], [0]], r"needs an output per class"),
        ("spearman", [0, 1], [[1, 0], [0, 1]], r"spearman is for scores, one output; there are 2"),
    ],
)
def test_what_does_not_fit_is_refused(metric, labels, logits, message):
    with pytest.raises(InputError, match=message):
        score([metric], np.asarray(labels), np.asarray(logits, np.float32))


def test_no_examples_are_refused():
    with pytest.raises(InputError, match="at least one example"):
        score(["accuracy"], np.zeros(0, np.int32), np.zeros((0, 2), np.float32))


def test_every_task_has_metrics_that_exist():
    from ntkfusion.data.tasks.glue import GLUE

    assert {name for task in GLUE.values() for name in task.metrics} == set(METRICS)


def test_the_library_takes_nothing_but_metrics_from_scikit_learn():
    package = Path(ntkfusion.__file__).parent
    lines = {
        (path.relative_to(package).as_posix(), line.split()[1])
        for path in package.rglob("*.py")
        for line in re.findall(r"^\s*(?:from|import) sklearn.*", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert lines == {("training/evaluation.py", "sklearn.metrics")}
