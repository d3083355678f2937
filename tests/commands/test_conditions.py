"""What results say about how they came about."""

from __future__ import annotations

from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.conditions import command_line, describe_model


def test_command_repeats_the_run():
    assert command_line(Compare()) == "ntkfusion compare minilm"
    options = Compare(model="./my model", methods=("svd",), width=(0.5,), words_only=True, seed=3)
    assert command_line(options) == "ntkfusion compare './my model' --methods svd --width 0.5 --words-only --seed 3"


def test_description_of_the_model(minilm):
    facts = describe_model(minilm)
    assert facts["num_parameters"] == 22_713_216
    assert facts["mlp_parameters"] == 6 * 1_181_568
    assert (facts["num_layers"], facts["model_width"], facts["hidden_width"]) == (6, 384, 1536)
