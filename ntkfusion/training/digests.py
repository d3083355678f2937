"""Whether two runs are the same: digests of everything that a result depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Array

from ntkfusion.checkpoints.digests import digest, digest_text
from ntkfusion.data.task import Task
from ntkfusion.models.model import Model
from ntkfusion.training.encoding import Encoded
from ntkfusion.training.groups import flatten


def run_digest(facts: object, sets: Sequence[Encoded], arrays: Mapping[str, Array]) -> str:
    """What a training run depends on, in short.

    Args:
        facts: anything whose `repr` says all of it.
        sets: tokenised examples, in the order of their roles.
        arrays: parameters and constants by path.

    Returns:
        32 hexadecimal digits; any other bit gives others.
    """
    words = [repr((each.ids, each.types, each.padding, each.labels.tolist())) for each in sets]
    return _digest([repr(facts), *words], arrays)


def model_digest(model: Model) -> str:
    """A model's architecture, parameters and constants in short, wherever they were loaded from."""
    return _digest([repr(model.config)], flatten(model.params) | flatten(model.constants))


def task_digest(task: Task) -> str:
    """A task's examples, classes and metrics in short."""
    splits = (task.train, task.dev, task.test)
    rows = [None if each is None else (each.first, each.second, each.labels.tolist()) for each in splits]
    return _digest([repr((task.labels, task.metrics, rows))], {})


def _digest(words: Sequence[str], arrays: Mapping[str, Array]) -> str:
    named = [(path, str(leaf.dtype), leaf.shape, digest(np.asarray(leaf))) for path, leaf in sorted(arrays.items())]
    return digest_text(repr((words, named)))
