"""Sentences and their halves."""

from __future__ import annotations

import pytest

from ntkfusion.data.text import read_sentences, sample_sentences, split_sentences
from ntkfusion.errors import InputError


def test_the_packaged_sample_is_varied():
    sentences = sample_sentences()
    assert len(sentences) == len(set(sentences)) >= 300
    lengths = [len(sentence.split()) for sentence in sentences]
    assert min(lengths) <= 5
    assert max(lengths) >= 40


def test_lines_are_stripped_and_blank_ones_dropped(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("\ufeff  One. \r\n\r\n\tTwo, häßlich.\n   \nThree".encode())
    assert read_sentences(file) == ["One.", "Two, häßlich.", "Three"]


def test_halves_are_disjoint_even_with_repetitions():
    calibration, held_out = split_sentences(["a", "b", "a", "c", "b", "d"], seed=0)
    assert sorted(calibration + held_out) == ["a", "b", "c", "d"]
    assert len(calibration) == len(held_out) == 2


def test_halves_depend_on_the_seed_only():
    sentences = sample_sentences()
    assert split_sentences(sentences, seed=1) == split_sentences(sentences, seed=1)
    assert split_sentences(sentences, seed=1) != split_sentences(sentences, seed=2)


def test_halves_are_limited():
    calibration, held_out = split_sentences([str(i) for i in range(10_000)], seed=0, limit=50)
    assert len(calibration) == len(held_out) == 50


def test_one_sentence_cannot_be_split():
    with pytest.raises(InputError, match="at least two different sentences"):
        split_sentences(["a", "a"], seed=0)
