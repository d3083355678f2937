"""Pruning, weight by weight and neuron by neuron, against rankings done by hand and an independent Wanda."""

from __future__ import annotations

from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.methods.activation_pruning import ActivationPruning
from ntkfusion.compression.methods.active_neurons import ActiveNeurons
from ntkfusion.compression.methods.weight_pruning import WeightPruning
from ntkfusion.compression.neurons import mask_of_largest, mask_per_output
from ntkfusion.compression.registry import build_method
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.masked import MaskedBlock
from tests.helpers.blocks import dense_block, mixture_block, normal, relative
from tests.helpers.tiers import wide_unless

D, M, OUT = 4, 20, 6
WEIGHT_METHODS = ["magnitude-pruning", "first-order-pruning", "activation-pruning"]


def only(method, block, inputs=None):
    compressed = method.compress([block], Workspace(0, None if inputs is None else [inputs]))
    return compressed.blocks[0], compressed.reports[0].details


def relu(h):
    return np.maximum(h, 0)


@pytest.mark.parametrize(
    ("name", "biases"),
    wide_unless(lambda name, biases: biases or name == "activation-pruning", product(WEIGHT_METHODS, [True, False])),
)
def test_as_many_survivors_as_the_budget_allows(name, biases):
    """Budget of half of 20 neurons: 10 · (4 + 6 + 1) numbers, less 20 biases; the output biases are on both sides."""
    small, details = only(build_method(name, 0.5), dense_block(D, M, OUT, biases=biases), normal(1, 50, D))
    weights = 10 * 11 - 20 if biases else 10 * 10
    assert isinstance(small, MaskedBlock)
    assert int(small.mask1.sum() + small.mask2.sum()) == weights
    assert small.num_parameters == weights + (20 + 6 if biases else 0)
    assert details["density1"] * D * M + details["density2"] * M * OUT == pytest.approx(weights)
    for weights, mask in ((small.w1, small.mask1), (small.w2, small.mask2)):
        np.testing.assert_array_equal(weights[mask == 0], 0)


def test_magnitude_pruning_keeps_the_largest_of_each_matrix():
    block = dense_block(D, M, OUT)
    small, details = only(WeightPruning(0.5), block)
    for kept, weights, count in ((small.w1, block.w1, 36), (small.w2, block.w2, 54)):
        weights = np.asarray(weights)
        threshold = np.sort(np.abs(weights).ravel())[-count]
        np.testing.assert_array_equal(kept, np.where(np.abs(weights) >= threshold, weights, 0))
    squares = np.sort(np.asarray(block.w2).ravel() ** 2)
    assert details["kept_squares2"] == pytest.approx(squares[-54:].sum() / squares.sum(), rel=1e-5)


def test_one_threshold_for_the_block():
    block = dense_block(D, M, OUT)
    block = block.replace(w2=3 * block.w2)
    small, details = only(WeightPruning(0.5, scope="block"), block)
    both = np.abs(np.concatenate([np.ravel(block.w1), np.ravel(block.w2)]))
    threshold = np.sort(both)[-90]
    np.testing.assert_array_equal(small.mask1, np.abs(block.w1) >= threshold)
    np.testing.assert_array_equal(small.mask2, np.abs(block.w2) >= threshold)
    assert details["density2"] > 2 * details["density1"]


def test_first_order_pruning_follows_the_gradients_it_is_given():
    block = dense_block(D, M, OUT)
    squared = {name: normal(i, *leaf.shape) ** 2 for i, (name, leaf) in enumerate(block.parameters().items())}
    workspace = Workspace(0, squared_gradients=[squared])
    small = WeightPruning(0.5, score="first-order").compress([block], workspace).blocks[0]
    scores = np.abs(block.w1) * np.sqrt(np.asarray(squared["w1"]))
    np.testing.assert_array_equal(small.mask1, scores >= np.sort(scores.ravel())[-36])


def wanda(weight, rows, kept):
    """The paper's algorithm in its own layout, [outputs, inputs]: sort every output's scores, zero the smallest."""
    weight = weight.copy()
    scores = np.abs(weight) * np.sqrt((rows**2).sum(axis=0))[None, :]
    for output in range(weight.shape[0]):
        smallest = np.argsort(scores[output])[: weight.shape[1] - kept]
        weight[output, smallest] = 0
    return weight


def test_activation_pruning_is_wanda(x64):
    """At half of the weights without biases: 2 of 4 inputs per neuron, 10 of 20 neurons per output."""
    block, x = (
        dense_block(D, M, OUT, activation="relu", biases=False),
        normal(1, 50, D) * jnp.array([[1.0, 3.0, 0.2, 1]]),
    )
    small, _ = only(ActivationPruning(0.5), block, x)
    hidden = relu(np.asarray(x @ block.w1))
    np.testing.assert_array_equal(small.w1, wanda(np.asarray(block.w1).T, np.asarray(x), 2).T)
    np.testing.assert_array_equal(small.w2, wanda(np.asarray(block.w2).T, hidden, 10).T)


def test_active_neurons_are_those_that_add_most(x64):
    block, x = dense_block(D, M, OUT, activation="relu"), normal(1, 50, D)
    small, details = only(ActiveNeurons(0.25), block, x)
    hidden = relu(np.asarray(x @ block.w1 + block.b1[None, :]))
    # what a neuron adds to the output of every token, as vectors
    parts = hidden[:, :, None] * np.asarray(block.w2)[None]
    scores = np.sqrt((parts**2).sum(axis=2).mean(axis=0))
    kept = np.sort(np.argsort(-scores)[:5])
    np.testing.assert_array_equal(small.w1, block.w1[:, kept])
    np.testing.assert_array_equal(small.b1, block.b1[kept])
    np.testing.assert_array_equal(small.w2, block.w2[kept])
    assert details["kept_score"] == pytest.approx(scores[kept].sum() / scores.sum())


def test_ties_go_to_the_lower_index():
    ones = jnp.ones((2, 3))
    assert mask_of_largest(ones, 4).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert mask_per_output(ones, 4).tolist() == [[1, 1, 1], [1, 0, 0]]
    assert mask_per_output(ones, 2).tolist() == [[1, 1, 0], [0, 0, 0]]


def test_what_division_leaves_over_goes_to_the_largest_loss():
    scores = jnp.array([[9.0, 5.0, 8.0], [1.0, 4.0, 3.0]])
    assert mask_per_output(scores, 4).tolist() == [[1, 1, 1], [0, 1, 0]]
    assert mask_per_output(scores, 5).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert mask_per_output(scores, 6).tolist() == [[1, 1, 1], [1, 1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WEIGHT_METHODS, "active-neurons"])
def test_errors_fall_with_the_width_to_nothing(x64, name):
    block, x = dense_block(8, 40, 8, biases=False), normal(1, 60, 8)
    errors = [relative(only(build_method(name, width), block, x)[0](x), block(x)) for width in (0.25, 0.5, 0.75, 1.0)]
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0
    assert errors[2] < 0.4


@pytest.mark.wide
def test_looking_at_the_inputs_pays(x64):
    """Inputs of very different sizes: magnitudes mislead, what reaches the weights does not."""
    block = dense_block(8, 40, 8, biases=False)
    x = normal(1, 60, 8) * jnp.exp(jnp.linspace(-3, 1, 8))[None, :]

    def error(name):
        return float(jnp.linalg.norm(only(build_method(name, 0.5), block, x)[0](x) - block(x)))

    assert error("activation-pruning") < 0.7 * error("magnitude-pruning")
    assert error("active-neurons") < error("structured-pruning")


@pytest.mark.slow
def test_mixtures_are_pruned_expert_by_expert():
    mixture, x = mixture_block(D, M, D, biases=True), normal(1, 90, D)
    small, _ = only(ActivationPruning(0.5), mixture, x)
    chosen = np.asarray(mixture.route(x)[0])
    alone, _ = only(ActivationPruning(0.5), mixture.expert(1), x[chosen == 1])
    np.testing.assert_array_equal(small.expert(1).mask1, alone.mask1)
    np.testing.assert_array_equal(small.expert(1).mask2, alone.mask2)
    assert small.num_parameters == mixture.router.size + 3 * alone.num_parameters


@pytest.mark.parametrize("name", ["activation-pruning", "first-order-pruning", "active-neurons"])
def test_without_calibration_inputs_they_say_so(name):
    with pytest.raises(InputError, match="calibration inputs"):
        only(build_method(name, 0.5), dense_block(D, M, OUT))


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_a_width_that_leaves_no_weight_is_refused_before_any_work(name):
    block = dense_block(D, M, OUT)
    with pytest.raises(InputError, match="20 input biases leave no weight of what 1 dense neurons store"):
        build_method(name, 0.05).check([block])
    with pytest.raises(InputError, match="choose a larger width"):
        only(build_method(name, 0.05), block, normal(1, 50, D))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("scope", "layer", "unknown scope 'layer' of pruning; known: matrix, block"),
        ("score", "movement", "unknown score 'movement' of pruning; known: magnitude, first-order"),
    ],
)
def test_unknown_options_are_refused(option, value, message):
    method = WeightPruning(0.5)
    # set behind the back of beartype, which checks the Literal in tests only
    object.__setattr__(method, option, value)
    with pytest.raises(InputError, match=message):
        method.__post_init__()
