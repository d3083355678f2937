"""Sentences that calibrate and sentences that measure do not mix, and both are sampled as asked."""

from __future__ import annotations

import numpy as np
import pytest

from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.data.calibration import CalibrationSplit
from ntkfusion.errors import InputError


def test_halves_of_the_packaged_text():
    split = CalibrationSplit.of(None, seed=3)
    assert not {*split.calibration} & {*split.held_out}
    assert len(split.calibration) == len(split.held_out) == 160
    assert CalibrationSplit.of(None, seed=4).held_out != split.held_out


def test_sentences_that_tokenise_alike_are_dropped_from_calibration(minilm):
    split = CalibrationSplit(["A film.", "the plot"], ["a FILM.", "an ending"], seed=0)
    calibration, held_out = split.collect(minilm, tokens=50, calibration_tokens=50)
    assert calibration.tokens == ("[CLS]", "the", "plot", "[SEP]")
    assert held_out.num_sentences == 2
    with pytest.raises(InputError, match="the same to the model's tokenizer"):
        CalibrationSplit(["A film."], ["a film."]).collect(minilm, tokens=5, calibration_tokens=5)


def test_too_many_tokens_are_refused_before_the_others_are_collected(minilm, monkeypatch):
    def refuse(count):
        raise InputError(f"{count} are too many")

    split = CalibrationSplit.of(None, seed=0)
    monkeypatch.setattr(CalibrationSplit, "calibration_inputs", lambda *_: pytest.fail("collected"))
    with pytest.raises(InputError, match="7 are too many"):
        split.collect(minilm, tokens=7, calibration_tokens=5, check=refuse)


def test_the_first_sentences_that_hold_enough(minilm):
    split = CalibrationSplit(["the plot", "an ending", "a hero", "a film"], ["music"], seed=0)
    found = split.calibration_inputs(minilm, 7, shortest=3)
    expected = collect_block_inputs(minilm, ["the plot", "an ending"], max_tokens=7, seed=0)
    assert (found.tokens, found.num_sentences) == (expected.tokens, 2)
    np.testing.assert_array_equal(found.inputs[1], expected.inputs[1])


def test_words_only(minilm):
    split = CalibrationSplit(["the plot"], ["an ending"], special_tokens=False)
    assert split.held_out_inputs(minilm, 9).tokens == ("an", "ending")
