"""The packaged MiniLM: what transformers says of it, padding, and its score on STS-B."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.stats
import transformers

from ntkfusion.checkpoints.sources import find_folder
from tests.helpers.oracle import read_by
from tests.helpers.readout import compare_with_said, our_outputs
from tests.helpers.sentences import mixed_lengths, packaged_sentences, tokenized


@pytest.fixture(scope="module")
def sample():
    return packaged_sentences()


def test_minilm_is_what_transformers_says(minilm, sample, oracle):
    """A part of the hidden states, and digests of the gradients; the wide tier compares all of them."""

    def asked(torch):
        from tests.helpers.torch_parity import torch_says

        theirs = read_by(transformers.BertModel, find_folder("minilm"), attn_implementation="eager")
        return torch_says(theirs, batch, every=32)

    batch = tokenized(minilm, mixed_lengths(sample, 6))
    found = compare_with_said(minilm, oracle(asked, rounding=1e-4), batch, every=32)
    print(f"\nMiniLM, float32: {found}")
    assert max(found.hidden, found.pooled) <= 2e-5
    assert found.gradient <= 1e-4


@pytest.mark.wide
def test_padding_does_not_change_tokens(minilm, sample):
    sentences = mixed_lengths(sample, 5)
    together = our_outputs(minilm, minilm.params, tokenized(minilm, sentences))["hidden"]
    alone = our_outputs(minilm, minilm.params, tokenized(minilm, sentences[2:3]))["hidden"][0]
    assert alone.shape[0] < together.shape[1]
    np.testing.assert_allclose(together[2, : alone.shape[0]], alone, atol=2e-5)


def spearman(x, y):
    """Spearman's correlation: Pearson's of the ranks, ties by their mean rank."""
    return np.corrcoef(scipy.stats.rankdata(x), scipy.stats.rankdata(y))[0, 1]


def mean_pooled(model, sentences, batch_size=64):
    """Normalised means over tokens; sentences of like length share a batch."""
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    embedded = np.empty((len(sentences), model.config.hidden_size))
    run = jax.jit(lambda params, batch: model.apply(params, **batch).last_hidden_state)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = model.tokenizer([sentences[i] for i in chosen], padding=True, pad_to_multiple_of=8, return_tensors="np")
        states = np.asarray(run(model.params, {name: jax.numpy.int32(values) for name, values in batch.items()}))
        mask = batch["attention_mask"][:, :, None]
        embedded[chosen] = (states * mask).sum(1) / mask.sum(1)
    return embedded / np.linalg.norm(embedded, axis=1, keepdims=True)


@pytest.mark.slow
def test_minilm_scores_82_on_stsb(minilm, data_dir):
    lines = (data_dir / "stsb" / "sts-test.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    assert len(rows) == 1379
    one, two = (mean_pooled(minilm, [row[column] for row in rows]) for column in (5, 6))
    score = 100 * spearman((one * two).sum(1), [float(row[4]) for row in rows])
    print(f"\nMiniLM, STS-B test, Spearman: {score:.3f}")
    assert abs(score - 82.0) <= 0.1
