"""A trained head keeps its order of classes; which output is which class is known by names, or refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ntkfusion.data.tasks.glue import GLUE
from ntkfusion.data.tasks.label_order import classes_of_outputs, names_of_outputs
from ntkfusion.data.tasks.task import Examples, Task
from ntkfusion.errors import InputError
from ntkfusion.models.model import Model, Origin
from ntkfusion.models.new_head import output_names, with_label_names
from tests.helpers.tiny_training import CONFIG

MNLI = GLUE["mnli"].labels


def head(*names, count=None, **facts):
    """A model whose config.json says these names; no weights are looked at."""
    config = {"model_type": "bert", **facts}
    if names:
        config["id2label"] = {str(place): name for place, name in enumerate(names)}
    sizes = dataclasses.replace(CONFIG, num_labels=count or len(names))
    return Model(sizes, {}, source="theirs", origin=Origin(config))


@pytest.mark.parametrize(
    ("names", "classes", "order"),
    [
        (("contradiction", "neutral", "entailment"), MNLI, (2, 1, 0)),
        (("CONTRADICTION", "Neutral ", "entailment"), ("contradiction", "entailment", "neutral"), (0, 2, 1)),
        (("not entailment", "Entailment"), GLUE["rte"].labels, (1, 0)),
        (("not-entailment", "entailment"), GLUE["qnli"].labels, (1, 0)),
        (("contradict", "entail", "neutral"), MNLI, (2, 0, 1)),
        (("POS", "NEG"), GLUE["sst2"].labels, (1, 0)),
        (("paraphrase", "not_paraphrase"), GLUE["mrpc"].labels, (1, 0)),
        (("grammatical", "ungrammatical"), GLUE["cola"].labels, (1, 0)),
        (("LABEL_0", "LABEL_1"), ("0", "1"), (0, 1)),
        (("LABEL_1", "LABEL_0"), ("0", "1"), (1, 0)),
        (("a", "A"), ("A", "a"), (1, 0)),  # not folded where that makes two into one
        (("-1", "1"), ("1", "-1"), (1, 0)),
    ],
)
def test_the_same_names_in_another_order_keep_the_order_of_the_head(names, classes, order):
    assert classes_of_outputs(head(*names), classes) == order
    assert (
        tuple(classes[place] for place in order) == names_of_outputs(head(*names), classes)
        or names_of_outputs(head(*names), classes) == names
    )


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("good", "bad"), ("negative", "positive")),
        (("LABEL_0", "LABEL_1", "LABEL_2"), MNLI),  # well-known checkpoints have another order than GLUE
        (("LABEL_0", "LABEL_1"), ("1", "2")),
        (("a", "A"), ("a", "b")),
        (("pos", "positive"), ("positive", "negative")),
        ((), ("odd", "even")),  # transformers writes no names where they are LABEL_0, LABEL_1
    ],
)
def test_other_names_of_the_same_number_are_refused_and_both_are_named(names, classes):
    model = head(*names, count=len(classes))
    with pytest.raises(InputError, match="which is which cannot be told") as caught:
        classes_of_outputs(model, classes)
    shown = ", ".join(names or ("LABEL_0", "LABEL_1"))
    for said in (shown, ", ".join(classes), "--label-order", "--new-head", "with_label_names", "with_new_head"):
        assert said in str(caught.value)
    assert classes_of_outputs(with_label_names(model, classes[::-1]), classes) == tuple(range(len(classes)))[::-1]


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_head_for_several_classes_at_once_is_not_taken_for_one_of_one_class(kind):
    model = head("a", "b", problem_type=kind)
    with pytest.raises(InputError, match=f"problem_type '{kind}'"):
        classes_of_outputs(model, ("a", "b"))
    if kind == "multi_label_classification":
        assert with_label_names(model, ("b", "a")).origin.config["problem_type"] == kind
    with pytest.raises(InputError, match="the examples are for 'regression'"):
        classes_of_outputs(head("a", problem_type="single_label_classification"), ())


def test_names_of_a_config_that_are_not_one_per_output_count_as_none():
    for broken in ({"0": "a"}, {"0": "a", "2": "b"}, {"x": "a", "y": "b"}, ["a", "b"], None, 7):
        assert output_names(head(count=2, id2label=broken)) == ("LABEL_0", "LABEL_1")
    assert output_names(head(count=2, label2id={"b": 0, "a": 1})) == ("b", "a")
    assert output_names(head("b", "a", label2id={"a": 0, "b": 1})) == ("b", "a")


def test_names_must_be_one_for_every_output():
    for names in (("a",), ("a", "a"), ("a", "b", "c"), ()):
        with pytest.raises(InputError, match="has 2 outputs, and each needs a name of its own"):
            with_label_names(head(count=2), names)


def test_splits_know_the_classes_of_their_task():
    rows = Examples(("x", "y"), None, np.array([0, 1], np.int32))
    task = Task("mine", ("a", "b"), ("accuracy",), rows, rows, None, "")
    assert task.train.take([1]).classes == ("a", "b")
    with pytest.raises(InputError, match="the classes a, b, its train split b, a"):
        Task("mine", ("a", "b"), ("accuracy",), dataclasses.replace(rows, classes=("b", "a")), rows, None, "")
