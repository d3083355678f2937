"""The order of examples, and the lengths they are padded to."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfusion.training.batches import bucket_lengths, epoch_order, in_order, minibatches, padded_length
from ntkfusion.training.recipe import Recipe
from tests.helpers.tiny_training import random_encoded


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12), count=st.integers(1, 5))
def test_no_other_lengths_waste_less(lengths, count):
    found = bucket_lengths(np.array(lengths), count)
    sizes = sorted({-(-length // 8) * 8 for length in lengths})

    def cost(buckets):
        return sum(padded_length(length, buckets) for length in lengths)

    choices = [c for k in range(1, count + 1) for c in combinations(sizes, k) if c[-1] >= max(lengths)]
    assert list(found) == sorted(set(found))
    assert len(found) <= count
    assert found[-1] >= max(lengths)
    assert all(length % 8 == 0 for length in found)
    assert cost(found) == min(map(cost, choices))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 500])
def test_every_epoch_has_every_example_once_in_an_order_of_its_own(count):
    lengths = np.random.default_rng(0).integers(2, 60, count)
    orders = [epoch_order(lengths, 4, seed=seed, epoch=epoch) for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    flat = [np.concatenate(order).tolist() for order in orders]
    assert all(sorted(rows) == list(range(count)) for rows in flat)
    assert flat[0] == flat[1]
    if count > 1:
        assert flat[0] != flat[2]
        assert flat[0] != flat[3]
    assert all(len(rows) <= 4 for rows in orders[0])
    assert len(orders[0]) == Recipe(batch_size=4).updates_per_epoch(count)


def test_batches_have_sentences_of_similar_length():
    lengths = np.random.default_rng(0).integers(2, 60, 512)
    spread = [np.ptp(lengths[rows]) for rows in epoch_order(lengths, 8, seed=0, epoch=0)]
    shuffled = np.random.default_rng(1).permutation(lengths).reshape(-1, 8)
    assert np.mean(spread) < np.ptp(shuffled, axis=1).mean() / 5


@pytest.mark.parametrize("start", [0, 1, 4, 5, 9, 14, 15])
def test_a_run_that_goes_on_sees_the_rest_of_the_batches(start):
    encoded, recipe = random_encoded(18, 0), Recipe(epochs=3, batch_size=4)
    buckets = bucket_lengths(encoded.lengths, 2)
    whole = list(minibatches(encoded, recipe, buckets, seed=3))
    rest = list(minibatches(encoded, recipe, buckets, seed=3, start=start))
    assert [batch.step for batch in whole] == list(range(recipe.num_updates(18)))
    assert [batch.step for batch in rest] == [batch.step for batch in whole[start:]]
    for one, other in zip(rest, whole[start:], strict=True):
        assert one.rows == other.rows
        assert one.num_tokens == sum(encoded.lengths[list(one.rows)])
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in other.arrays)


def test_arrays_hold_the_examples_and_nothing_else():
    encoded = random_encoded(6, 0, padding=5)
    arrays = encoded.batch([4, 1], 3, 16)
    for place, row in enumerate([4, 1]):
        count = len(encoded.ids[row])
        assert arrays["input_ids"][place].tolist() == encoded.ids[row] + [5] * (16 - count)
        assert arrays["attention_mask"][place].tolist() == [1] * count + [0] * (16 - count)
        assert arrays["token_type_ids"][place, :count].tolist() == encoded.types[row]
    assert arrays["attention_mask"][2].sum() == 1
    assert arrays["weights"].tolist() == [1, 1, 0]
    assert arrays["labels"][:2].tolist() == encoded.labels[[4, 1]].tolist()


def test_evaluation_sees_every_example_once():
    encoded = random_encoded(11, 0)
    seen = [rows for rows, arrays in in_order(encoded, 4, bucket_lengths(encoded.lengths, 2)) if arrays]
    assert sorted(chain.from_iterable(seen)) == list(range(11))
