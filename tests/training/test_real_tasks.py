"""Quick checks that training learns something real: BERT-tiny, and a probe on MiniLM, on SST-2."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import ntkfusion as nf
from ntkfusion.models.bert.names import BERT
from ntkfusion.models.model import random_model
from ntkfusion.models.new_head import head_paths

pytestmark = pytest.mark.slow


def bert_tiny(folder, tokenizer):
    """The real encoder, pooler and classifier; its embeddings are not published, so those are fresh."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
    config = nf.BertConfig(**sizes, vocab_size=len(tokenizer), head="sequence-classification", num_labels=2)
    model = dataclasses.replace(random_model(config), tokenizer=tokenizer)
    params = flatten_dict(model.params, sep="/")
    with np.load(folder / "layers.npz") as stored:
        for name in stored.files:
            place = BERT.find(name)
            array = stored[name].T if place.transposed else stored[name]
            assert params[place.path].shape == array.shape
            params[place.path] = jnp.asarray(array, jnp.float32)
    return dataclasses.replace(model, params=unflatten_dict(params, sep="/"))


def test_bert_tiny_learns_embeddings(data_dir, minilm):
    task = nf.load_task("sst2", data_dir=data_dir).subsampled(train=20_000, dev=None, seed=0)
    model = bert_tiny(data_dir / "bert_tiny_sst2", minilm.tokenizer)
    before = nf.evaluate(model, task.dev, task.metrics, max_length=64)["accuracy"]
    recipe = nf.Recipe(learning_rate=1e-3, epochs=1, max_length=64, keep="last")
    found = nf.fit(model, task, recipe, seed=0)
    print(f"\nBERT-tiny, fresh embeddings, 20,000 examples: dev accuracy {before:.3f} -> {found.dev['accuracy']:.3f}")
    assert before < 0.6
    assert found.dev["accuracy"] > 0.75


def test_a_probe_on_minilm_learns_the_head_alone(data_dir, minilm):
    task = nf.load_task("sst2", data_dir=data_dir).subsampled(train=2048, dev=None, seed=0)
    model = nf.with_new_head(minilm, "sequence-classification", num_labels=2, seed=0)
    head = head_paths(model)
    groups = [nf.training.Group(lambda path: path not in head, 0.0)]
    recipe = nf.Recipe(learning_rate=3e-2, epochs=2, max_length=64, keep="last", dropout=False)
    found = nf.fit(model, task, recipe, seed=0, groups=groups)
    print(f"\nprobe on 2,048 examples: dev accuracy {found.dev['accuracy']:.3f}")
    assert found.dev["accuracy"] > 0.6
    before, after = (flatten_dict(each.params, sep="/") for each in (model, found.model))
    assert {path for path in before if not np.array_equal(before[path], after[path])} == head
