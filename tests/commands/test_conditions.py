"""What results say about how they came about."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.conditions import command_line, describe_model, precision_in_force


def test_command_repeats_the_run():
    assert command_line(Compare()) == "ntkfusion compare minilm"
    options = Compare(model="./my model", methods=("svd",), width=(0.5,), words_only=True, seed=3)
    assert command_line(options) == "ntkfusion compare './my model' --methods svd --width 0.5 --words-only --seed 3"


def test_description_of_the_model(minilm):
    facts = describe_model(minilm)
    assert facts["num_parameters"] == 22_713_216
    assert facts["mlp_parameters"] == 6 * 1_181_568
    assert (facts["num_layers"], facts["model_width"], facts["hidden_width"]) == (6, 384, 1536)


def test_precision_is_what_is_in_force():
    params = {"a": jnp.zeros(2, jnp.bfloat16), "b": jnp.zeros(2, jnp.float32), "c": jnp.zeros(2, jnp.int32)}
    assert precision_in_force(params) == "bfloat16 and float32, matmuls at JAX's default precision"
    with jax.default_matmul_precision("highest"):
        assert precision_in_force() == "float32, matmuls at the highest precision"
        with jax.enable_x64(True):
            assert precision_in_force() == "float64, matmuls at the highest precision"
