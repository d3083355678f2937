"""What is written can be used elsewhere: batches of a GPT-2 classifier, pairs of a model with one segment."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import ntkfusion as nf
from ntkfusion.checkpoints.companions import Companions
from ntkfusion.data.tasks.task import Examples
from ntkfusion.models.gpt2.config import GPT2Config
from ntkfusion.training.batches import encode
from tests.helpers.small_encoders import random_weights

WORDS = ["the", "film", "is", "long", "!", "<|endoftext|>"]
END = WORDS.index("<|endoftext|>")
SENTENCES = ["the film is long", "long !", "the film"]


def words_only(**special):
    """A tokenizer of six words, as GPT-2's: an end of text, no padding."""
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="!"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", **special)


def classifier(tokenizer, vocab_size=6, pad=None):
    sizes = {"hidden_size": 8, "n_layer": 1, "n_head": 2, "n_positions": 16, "pad_token_id": pad}
    config = GPT2Config(**sizes, vocab_size=vocab_size, head="sequence-classification", num_labels=2)
    return dataclasses.replace(random_weights(config, 0.3), tokenizer=tokenizer)


def padded(folder):
    """A batch as others make it."""
    return transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="np")


@pytest.mark.parametrize("case", ["none", "outside the embeddings", "of the tokenizer only"])
def test_a_gpt2_classifier_is_written_with_the_padding_that_training_used(tmp_path, case):
    model = classifier(words_only(), pad=-1 if case == "none" else None)
    if case != "none":
        model.tokenizer.add_special_tokens({"pad_token": "[PAD]" if case.startswith("outside") else "is"})
    expected = WORDS.index("is") if case.startswith("of") else END
    used = encode(model, Examples(tuple(SENTENCES), None, np.zeros(3, np.int32)), max_length=8).padding
    folder = nf.save_model(model, tmp_path / "out")
    assert used == expected == json.loads((folder / "config.json").read_text())["pad_token_id"]
    batch, loaded = padded(folder), nf.load_model(folder)
    assert loaded.tokenizer.pad_token_id == expected
    assert (batch["input_ids"][1:, -1] == expected).all()
    if case == "none":
        ours, theirs = (each.apply(each.params, **batch).logits for each in (model, loaded))
        np.testing.assert_allclose(theirs, ours, atol=1e-6)
    assert model.config.pad_token_id in (None, -1), "the model that was given stays what it is"
    assert nf.load_model(nf.save_model(model, tmp_path / "ours", format="ntkfusion")).config == model.config


@pytest.mark.oracle
def test_transformers_takes_batches_of_an_exported_gpt2_classifier(tmp_path):
    torch = pytest.importorskip("torch")
    model = classifier(words_only())
    folder = nf.save_model(model, tmp_path / "out")
    theirs = transformers.GPT2ForSequenceClassification.from_pretrained(folder)
    batch = padded(folder)
    given = {name: torch.tensor(batch[name]) for name in ("input_ids", "attention_mask")}
    ours = model.apply(model.params, **{name: batch[name] for name in given}).logits
    np.testing.assert_allclose(theirs(**given).logits.detach().numpy(), ours, atol=1e-5)


def test_pairs_are_written_without_segments_for_a_model_that_has_one(tmp_path, minilm):
    config = nf.BertConfig(
        vocab_size=30522,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        type_vocab_size=1,
    )
    tokenizer = copy.deepcopy(minilm.tokenizer)
    tokenizer.model_max_length = 512
    model = dataclasses.replace(random_weights(config), tokenizer=tokenizer)
    written = nf.load_model(nf.save_model(model, tmp_path / "out")).tokenizer
    assert set(written("a", "b")) == {"input_ids", "attention_mask"}
    assert written.model_max_length == 16
    assert tokenizer.model_max_length == 512
    assert "token_type_ids" in tokenizer("a", "b"), "the tokenizer that was given stays what it is"
    two = dataclasses.replace(random_weights(dataclasses.replace(config, type_vocab_size=2)), tokenizer=tokenizer)
    assert "token_type_ids" in nf.load_model(nf.save_model(two, tmp_path / "two")).tokenizer("a", "b")


def test_a_vocabulary_beyond_the_embeddings_is_told(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        nf.save_model(classifier(words_only(), vocab_size=5), tmp_path / "out")
    assert "tokens up to 5, the model has embeddings up to 4" in caplog.text


def test_what_is_told_of_the_tokenizer_is_what_the_card_says(tmp_path, minilm):
    config = nf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = dataclasses.replace(random_weights(config), tokenizer=minilm.tokenizer)
    loaded = nf.load_model(nf.save_model(model, tmp_path / "two"))
    one = dataclasses.replace(config, type_vocab_size=1)
    changed = dataclasses.replace(loaded, config=one, params=random_weights(one).params)
    told = Companions.of(changed, "hf").lines()
    assert any(line.startswith("Changed: model_input_names") for line in told)
    card = (nf.save_model(changed, tmp_path / "one") / "README.md").read_text()
    assert all(f"- {line}\n" in card for line in told)
