"""Examples, subsets and what is held out."""

from __future__ import annotations

import numpy as np
import pytest

from ntkfusion.data.tasks.task import Examples, Task, hold_out
from ntkfusion.errors import InputError


def examples(labels, dtype=np.int32, pairs=False):
    texts = tuple(f"text {row}" for row in range(len(labels)))
    return Examples(texts, tuple(text.upper() for text in texts) if pairs else None, np.asarray(labels, dtype))


def rows(part: Examples) -> list[int]:
    return [int(text.split()[1]) for text in part.first]


def task(num_train=50, num_dev=20, labels=("a", "b")):
    parts = [examples(np.arange(size) % 2) for size in (num_train, num_dev, 10)]
    return Task("name", labels, ("accuracy",), *parts, source="nowhere")


def test_take_keeps_rows_together_in_the_order_given():
    taken = examples([4, 5, 6, 7], pairs=True).take([2, 0, 2])
    assert taken.first == ("text 2", "text 0", "text 2")
    assert taken.second == ("TEXT 2", "TEXT 0", "TEXT 2")
    assert taken.labels.tolist() == [6, 4, 6]
    assert taken.labels.dtype == np.int32
    assert len(examples([1, 2, 3]).take(np.array([1]))) == 1


def test_a_task_without_classes_is_regression_with_one_output():
    assert (task().is_regression, task().num_labels) == (False, 2)
    assert (task(labels=()).is_regression, task(labels=()).num_labels) == (True, 1)


def test_subsets_are_random_seeded_in_order_and_without_repetition():
    whole = task()
    small = whole.subsampled(train=30, dev=5, seed=0)
    chosen = rows(small.train)
    assert len(chosen) == 30
    assert chosen == sorted(set(chosen))
    assert chosen != list(range(30))
    assert small.train.labels.tolist() == [row % 2 for row in chosen]
    assert len(small.dev) == 5
    assert small.test is whole.test
    assert rows(whole.subsampled(train=30, dev=20, seed=0).train) == chosen  # one split does not move the other
    assert rows(whole.subsampled(train=30, dev=5, seed=1).train) != chosen


def test_none_or_more_than_there_are_keeps_all():
    same = task().subsampled(train=None, dev=1000, seed=0)
    assert rows(same.train) == list(range(50))
    assert rows(same.dev) == list(range(20))


@pytest.mark.parametrize("wrong", [{"train": 0}, {"dev": -1}, {"seed": -1}])
def test_bad_subsets_are_refused(wrong):
    with pytest.raises(InputError, match="at least"):
        task().subsampled(**{"train": 1, "dev": None, "seed": 0, **wrong})


def test_every_class_is_held_out_in_proportion():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3], [200, 50, 2, 1]))
    whole = examples(labels)
    left, held = hold_out(whole, seed=0)
    assert np.bincount(held.labels, minlength=4).tolist() == [20, 5, 1, 0]
    assert sorted(rows(left) + rows(held)) == list(range(253))
    assert rows(left) == sorted(rows(left))
    assert rows(held) == sorted(rows(held))
    assert rows(hold_out(whole, seed=0)[1]) == rows(held)
    assert rows(hold_out(whole, seed=1)[1]) != rows(held)


def test_a_share_of_all_is_held_out_where_labels_are_scores():
    left, held = hold_out(examples(np.arange(50) / 7, np.float32), seed=0)
    assert (len(left), len(held)) == (45, 5)


def test_nothing_can_be_held_out_of_single_examples():
    with pytest.raises(InputError, match="too few examples"):
        hold_out(examples([0, 1, 2]), seed=0)
