"""Whether two runs are the same: digests of everything that a result depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Array

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


def _digest(words: Iterable[str], arrays: Mapping[str, Array]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for word in words:
        found.update(f"{len(word)}:{word}".encode())
    for path, array in sorted(arrays.items()):
        found.update(f"{path} {array.dtype} {array.shape} ".encode())
        found.update(np.asarray(array).tobytes())
    return found.hexdigest()
