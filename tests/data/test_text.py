"""Sentences and their halves."""

from __future__ import annotations

import numpy as np
import pytest

from ntkfusion.data.text import checked_texts, read_sentences, sample_sentences, split_sentences
from ntkfusion.errors import InputError
from tests.helpers.as_users import as_users


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


@pytest.mark.parametrize(
    "texts", [["a", "b"], ("a", "b"), np.array(["a", "b"]), np.array(["a", "b"], object), {"a": 0, "b": 1}]
)
def test_texts_may_come_in_anything(texts):
    found = checked_texts(texts)
    assert found == ["a", "b"]
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a sentence", r"give a list of at least one sentence, got 'a sentence' \(str\)"),
        (b"bytes", r"got b'bytes' \(bytes\)"),
        (None, r"got None \(NoneType\)"),
        (3, r"got 3 \(int\)"),
        (["a", None], r"text 1 is None \(NoneType\); every text must be a str: drop or fill in what is missing"),
        (["a", float("nan")], r"text 1 is nan \(float\)"),
        (np.array([["a", "b"]]), r"text 0 is array\(\['a', 'b'\].* \(ndarray\)"),
        (["fine", "cut \udc80 off"], r"text 1 holds a lone surrogate \('\\udc80' at character 4\)"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(texts, message):
    for call in (checked_texts, lambda given: split_sentences(given, seed=0)):
        with as_users(), pytest.raises(InputError, match=message):
            call(texts)
