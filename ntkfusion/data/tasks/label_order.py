"""Which output of a trained head is which class of a task: a head keeps its order, whatever order a task has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ntkfusion.errors import InputError
from ntkfusion.models.model import Model
from ntkfusion.models.new_head import output_names

#: Other words for GLUE's classes, folded, that checkpoints have.
_GLUE_WORDS = {
    "neg": "negative",
    "pos": "positive",
    "non equivalent": "not equivalent",
    "not paraphrase": "not equivalent",
    "non paraphrase": "not equivalent",
    "paraphrase": "equivalent",
    "ungrammatical": "unacceptable",
    "grammatical": "acceptable",
    "entail": "entailment",
    "entails": "entailment",
    "entailed": "entailment",
    "non entailment": "not entailment",
    "no entailment": "not entailment",
    "contradict": "contradiction",
    "contradicts": "contradiction",
    "contradictory": "contradiction",
}


def classes_of_outputs(model: Model, classes: Sequence[str]) -> tuple[int, ...]:
    """The class of a task that each output of a model stands for.

    A checkpoint's names are compared with the task's: as they are, then with case, spaces, hyphens and underscores
    folded and ``LABEL_3`` for the class ``3``, then with GLUE's classes by their other words too.

    Args:
        model: one with a sequence classification head.
        classes: the task's, in its order; none if it has scores.

    Returns:
        One index into `classes` per output; 0, 1, … for a fresh head, which takes the task's order.

    Raises:
        InputError: if the head has another number of outputs, or other names for them, or is for another kind of
            problem than one class per example.
    """
    count = model.config.num_labels or 0
    if count != max(len(classes), 1):
        raise InputError(f"the head has {count} outputs, the examples have {len(classes)} classes ({_shown(classes)})")
    check_problem(model, is_scores=not classes)
    names = output_names(model)
    if names is None or not classes:
        return tuple(range(count))
    for key in (str, _folded, _in_glue):
        order = _order([key(name) for name in names], [key(name) for name in classes])
        if order is not None:
            return order
    raise InputError(
        f"the outputs of the head of {model.source} are {_shown(names)}, and the classes of the task are "
        f"{_shown(classes)}: which is which cannot be told. Say it by the task's classes in the order of the outputs "
        "(--label-order, in Python ntkfusion.models.with_label_names), or put a fresh head on the model (--new-head, "
        "in Python ntkfusion.with_new_head)"
    )


def names_of_outputs(model: Model, classes: Sequence[str]) -> tuple[str, ...]:
    """What the outputs of a model of a task are called: as its checkpoint calls them, else as the task does.

    Raises:
        InputError: as `classes_of_outputs`.
    """
    order, names = classes_of_outputs(model, classes), output_names(model)
    if names is None or not classes or all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return tuple(classes[place] for place in order) if classes else ()
    return names


def check_problem(model: Model, *, is_scores: bool) -> None:
    """Refuse a head that its checkpoint says is for another kind of problem than a task's.

    Args:
        model: one with a sequence classification head.
        is_scores: whether the task has scores, not classes.

    Raises:
        InputError: for several classes at once, for scores where there are classes, and the other way round.
    """
    stated = model.origin.config.get("problem_type")
    wanted = "regression" if is_scores else "single_label_classification"
    if stated is not None and stated != wanted:
        raise InputError(
            f"the head of {model.source} is for problem_type {stated!r} (config.json), and the examples are for "
            f"{wanted!r}: put a fresh head on the model (--new-head, in Python ntkfusion.with_new_head)"
        )


def check_order(order: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse names for outputs that are not the classes of a task, each once.

    Raises:
        InputError: naming both.
    """
    if sorted(order) != sorted(classes):
        raise InputError(
            f"--label-order takes the classes of the task, each once, in the order of the head's outputs; they are "
            f"{_shown(classes)}, got {_shown(order)}"
        )


def _order(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...] | None:
    """The place of every name among the classes, if they are the same ones and none is there twice."""
    if len({*names}) != len(names) or sorted(names) != sorted(classes):
        return None
    return tuple(classes.index(name) for name in names)


def _folded(name: str) -> str:
    # a hyphen between letters only: -1 is not 1
    words = re.sub(r"[\s_]+|(?<=[^\W\d_])-(?=[^\W\d_])", " ", name.casefold()).strip()
    numbered = re.fullmatch(r"label (\d+)", words)
    return words if numbered is None else numbered[1]


def _in_glue(name: str) -> str:
    return _GLUE_WORDS.get(_folded(name), _folded(name))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) or "scores"
