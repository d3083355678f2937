"""Estimates of memory before training against what XLA plans for the compiled update."""

from __future__ import annotations

import dataclasses

import jax
import pytest

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.training import memory
from ntkfusion.training.layer_loss import Pair, layer_loss, token_batch
from ntkfusion.training.layerwise import TUNE_LAYERS
from ntkfusion.training.memory import training_bytes, tuning_bytes
from ntkfusion.training.optimizer import Group, build_optimizer, split
from ntkfusion.training.recipe import Recipe
from ntkfusion.training.step import NonTrainable, dropout_key, first_state, make_step, task_loss
from tests.helpers.small_encoders import random_weights
from tests.helpers.tiny_training import CONFIG, as_readable, examples, half, random_encoded

LENGTH = 48
#: Activations are much of the memory, as in real models.
LARGER = dataclasses.replace(
    CONFIG, hidden_size=32, intermediate_size=96, num_hidden_layers=3, max_position_embeddings=LENGTH
)
ADAM = Recipe(batch_size=8)


def planned(loss, trained, fixed, arrays, recipe):
    """Bytes of a compiled update: what goes in, what comes out elsewhere, what it needs in between."""
    optimizer = build_optimizer(recipe, 10)
    step, state = make_step(loss, optimizer, recipe), first_state(trained, optimizer)
    (old, has_old), (rest, has_rest) = jax.tree.flatten(state), jax.tree.flatten(fixed)

    def update(old, rest, arrays):  # `lower` would put other objects than arrays into a state
        return step(jax.tree.unflatten(has_old, old), jax.tree.unflatten(has_rest, rest), arrays)

    plan = jax.jit(update, donate_argnums=0).lower(old, rest, arrays).compile().memory_analysis()
    assert plan is not None
    given = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return given + plan.temp_size_in_bytes


def of_task(recipe, groups=()):
    """The estimate for fine-tuning, and the plan."""
    model = random_weights(LARGER, 0.3)
    arrays = random_encoded(8, 0).batch(range(8), 8, LENGTH)
    trained, frozen = split(model.params, groups)
    fixed = NonTrainable(frozen, model.constants, dropout_key(0), {})
    plan = planned(task_loss(model.config, is_regression=False), trained, fixed, arrays, recipe)
    return training_bytes(model, recipe, LENGTH, groups), plan


@pytest.mark.parametrize(
    ("recipe", "groups"),
    [
        pytest.param(ADAM, (), marks=pytest.mark.slow),
        (dataclasses.replace(ADAM, dropout=False), (Group("*embeddings*", 0.0), Group("layer_0/*", 0.0))),
        pytest.param(dataclasses.replace(ADAM, accumulation=4), (), marks=pytest.mark.slow),
    ],
)
def test_an_update_of_fine_tuning_takes_about_what_was_estimated(recipe, groups):
    estimate, plan = of_task(recipe, groups)
    print(f"\nestimated {estimate / 1024:.0f} KiB, planned {plan / 1024:.0f} KiB: {estimate / plan:.2f}")
    assert 0.8 < estimate / plan < 2


def halved(model, layers=(2,)):
    """The model with some blocks of half the neurons."""
    blocks = model.mlp_blocks()
    return model.replace_mlp_blocks({layer: half(blocks[layer]) for layer in layers})


@pytest.mark.parametrize("layers", [pytest.param((2,), marks=pytest.mark.slow), (0, 1, 2)])
def test_an_update_of_layer_wise_tuning_takes_about_what_was_estimated(layers):
    teacher = random_weights(LARGER, 0.3)
    pair, recipe = Pair.of(halved(teacher, layers), teacher), dataclasses.replace(TUNE_LAYERS, batch_size=8)
    arrays = token_batch(random_encoded(8, 0).batch(range(8), 8, LENGTH))
    fixed = NonTrainable(pair.frozen, pair.constants, dropout_key(0), {})
    estimate = tuning_bytes(pair, recipe, LENGTH)
    plan = planned(layer_loss(pair.shapes), pair.trained, fixed, arrays, recipe)
    print(f"\nestimated {estimate / 1024:.0f} KiB, planned {plan / 1024:.0f} KiB: {estimate / plan:.2f}")
    assert 0.8 < estimate / plan < 2


def test_tuning_that_does_not_fit_is_refused_before_it_starts(monkeypatch):
    teacher = as_readable(random_weights(LARGER, 0.3))
    monkeypatch.setattr(memory, "memory_limit", lambda limit: 10_000)
    with pytest.raises(InputError, match=r"an update of 16 examples .* needs about .* there is room for 9\.8 KiB"):
        nf.tune_layers(halved(teacher), teacher, examples(8, 0), dataclasses.replace(TUNE_LAYERS, batch_size=16))
