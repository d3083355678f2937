"""What sharing layers means in ALBERT, and what its configuration refuses."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import save_model
from ntkfusion.errors import CheckpointError, InputError
from ntkfusion.models.albert.config import MOST_LAYERS, AlbertConfig
from ntkfusion.models.config import LARGEST_SIZE
from ntkfusion.models.model import Model, abstract_params
from ntkfusion.models.registry import read_config
from tests.helpers.small_encoders import random_weights

SMALL = AlbertConfig(
    vocab_size=17,
    embedding_size=4,
    hidden_size=8,
    num_hidden_layers=5,
    num_hidden_groups=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=9,
)


def test_groups_of_layers():
    assert SMALL.applications == (0, 0, 0, 1, 1)
    assert SMALL.block_paths == ("group_0/mlp", "group_1/mlp")
    # in order, and none left out
    for layers in range(1, 40):
        for groups in range(1, layers + 1):
            config = dataclasses.replace(SMALL, num_hidden_layers=layers, num_hidden_groups=groups)
            assert set(config.applications) == set(range(groups))
            assert list(config.applications) == sorted(config.applications)


def test_every_layer_has_a_block_input():
    model = random_weights(SMALL)
    ids = jnp.arange(6).reshape(1, 6)
    inputs = model.block_inputs(ids, jnp.ones_like(ids))
    assert len(inputs) == 5
    assert len(model.mlp_blocks()) == 2
    assert all(np.abs(one - other).max() > 1e-3 for one, other in zip(inputs[1:], inputs[:-1], strict=True))


@pytest.mark.slow
def test_gradient_of_a_shared_block_is_the_sum_over_its_layers(x64):
    config = dataclasses.replace(SMALL, num_hidden_layers=2, num_hidden_groups=1)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), random_weights(config).params)
    copies = params | {"group_1": params["group_0"]}
    ids = jnp.arange(6).reshape(1, 6)

    def gradient(config, params):
        model = Model(config, params)
        return jax.jit(jax.grad(lambda params: jnp.sum(model.apply(params, input_ids=ids).pooler_output)))(params)

    ours = gradient(config, params)["group_0"]
    each = gradient(dataclasses.replace(config, num_hidden_groups=2), copies)
    total = jax.tree.map(jnp.add, each["group_0"], each["group_1"])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9), ours, total)


def test_more_groups_than_the_file_has(tmp_path):
    save_model(random_weights(SMALL), tmp_path, overwrite=True)
    weights, file = tmp_path / "model.safetensors", tmp_path / "config.json"
    save_file(load_file(weights), weights)  # as others write it: it says nothing about its configuration
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 500, "num_hidden_groups": 500}))
    with pytest.raises(CheckpointError, match="asks for 500 layers, the weights have 2"):
        load_model(tmp_path)


def test_largest_sizes_allocate_nothing_and_end_soon():
    huge = dataclasses.replace(
        SMALL, num_hidden_layers=MOST_LAYERS, vocab_size=LARGEST_SIZE, intermediate_size=LARGEST_SIZE
    )
    assert abstract_params(huge)["group_1"]["mlp"]["w1"].shape == (8, LARGEST_SIZE)


JSON = {"model_type": "albert", **{name: getattr(SMALL, name) for name in ("vocab_size", "embedding_size")}} | {
    name: getattr(SMALL, name)
    for name in ("hidden_size", "num_hidden_layers", "num_hidden_groups", "num_attention_heads", "intermediate_size")
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": LARGEST_SIZE}, f"num_hidden_layers must be at most {MOST_LAYERS}"),
        ({"num_hidden_groups": 6}, "num_hidden_groups 6 is more than num_hidden_layers 5"),
        ({"inner_group_num": 2}, "inner_group_num must be 1"),
        ({"embedding_size": 0}, "embedding_size must be a whole number"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not supported"),
    ],
)
def test_refused(changes, sentence):
    assert read_config(JSON).num_hidden_layers == 5
    with pytest.raises(InputError, match=sentence):
        read_config(JSON | changes)
