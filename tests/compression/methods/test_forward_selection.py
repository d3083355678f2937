"""Forward selection against a greedy search that solves every least-squares problem anew."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.methods.ntk_fusion import DAMPING, forward_selection
from ntkfusion.errors import InputError
from tests.helpers.blocks import normal


def residual(hidden, targets, chosen):
    """Least squares with the damping as extra samples."""
    columns = hidden[:, sorted(chosen)]
    solution, *_ = np.linalg.lstsq(columns, targets, rcond=None)
    return np.sum((targets - columns @ solution) ** 2)


def test_equals_a_search_that_refits_every_candidate(x64):
    hidden = np.asarray(normal(0, 40, 9) @ normal(1, 9, 9) + normal(2, 40, 9))
    weights = np.asarray(normal(3, 9, 4))
    damped = np.concatenate([hidden, np.sqrt(DAMPING * np.sum(hidden**2) / 9) * np.eye(9)])
    chosen: set[int] = set()
    for _ in range(5):
        chosen.add(min(set(range(9)) - chosen, key=lambda i: residual(damped, damped @ weights, chosen | {i})))
    assert forward_selection(jnp.asarray(hidden), jnp.asarray(weights), 5).tolist() == sorted(chosen)


def test_copies_of_a_chosen_neuron_are_left_out():
    hidden = normal(0, 30, 3)
    doubled = jnp.concatenate([hidden, hidden], axis=1)
    weights = jnp.concatenate([normal(1, 3, 2)] * 2)
    assert len({index % 3 for index in forward_selection(doubled, weights, 3).tolist()}) == 3


def test_all_neurons_even_if_some_are_dead():
    hidden = normal(0, 20, 4).at[:, 2].set(0)
    assert forward_selection(hidden, normal(1, 4, 3), 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 5])
def test_counts_out_of_range(count):
    with pytest.raises(InputError, match=f"from 1 to the number of neurons, 4; got {count}"):
        forward_selection(normal(0, 6, 4), normal(1, 4, 2), count)
