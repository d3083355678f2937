"""Sentences for the packaged real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import ntkfusion


def packaged_sentences():
    """The sentences that are shipped with the package."""
    return (Path(ntkfusion.__path__[0]) / "data" / "sample.txt").read_text(encoding="utf-8").splitlines()


def tokenized(minilm, sentences):
    """A padded batch of sentences."""
    batch = minilm.tokenizer(sentences, padding=True, return_tensors="np")
    return {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}


def mixed_lengths(sentences, number):
    """Sentences spread evenly over the lengths that occur."""
    ordered = sorted(sentences, key=len)
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, number).astype(int)]
