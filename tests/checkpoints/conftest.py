"""Small checkpoints on disk, and ways to break them."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ntkfusion.models.bert.config import BertConfig
from ntkfusion.models.bert.names import BERT
from ntkfusion.models.model import random_model

SIZES = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 9,
}


class Folder:
    """A checkpoint folder whose config and tensors a test may change before it writes them."""

    def __init__(self, path, tensors):
        self.path = path
        self.config = {"model_type": "bert", **SIZES}
        self.tensors = tensors

    def write(self):
        """Write config.json and model.safetensors."""
        self.path.mkdir(exist_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.config))
        # safetensors stores the bytes of an array as they lie, so they must lie in order
        save_file({name: np.array(array, order="C") for name, array in self.tensors.items()}, self.weights)
        return self.path

    def write_shards(self, number=3):
        """Write config.json, `number` shards and their index."""
        self.write()
        self.weights.unlink()
        weight_map = {}
        for index in range(number):
            shard = f"model-{index + 1:05}-of-{number:05}.safetensors"
            members = {name: np.array(self.tensors[name], order="C") for name in sorted(self.tensors)[index::number]}
            save_file(members, self.path / shard)
            weight_map |= dict.fromkeys(members, shard)
        self.write_index(weight_map)
        return self.path

    def write_index(self, weight_map):
        """Write an index with this weight map."""
        (self.path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    @property
    def index(self):
        """The weight map of the index."""
        return json.loads((self.path / "model.safetensors.index.json").read_text())["weight_map"]

    @property
    def weights(self):
        """The single file."""
        return self.path / "model.safetensors"


@pytest.fixture(scope="session")
def _tensors():
    model = random_model(BertConfig(**SIZES), seed=3)
    # not the zeros and ones that biases and scales start with
    leaves, structure = jax.tree.flatten(model.params)
    rng = np.random.default_rng(3)
    leaves = [np.asarray(leaf) + rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return BERT.named_tensors(jax.tree.unflatten(structure, leaves), head=None)


@pytest.fixture
def folder(tmp_path, _tensors):
    """A healthy small BERT, not written yet."""
    return Folder(tmp_path / "tiny", dict(_tensors))
