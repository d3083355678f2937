"""Parity with transformers' PyTorch ALBERT, and what sharing layers means."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_parity import check, grid, marked

from ntkfusion.errors import InputError
from ntkfusion.models.albert_config import MOST_LAYERS, AlbertConfig
from ntkfusion.models.architectures import read_config
from ntkfusion.models.config import LARGEST_SIZE
from ntkfusion.models.model import abstract_params, random_model

SHARED = {"embedding_size": 10, "num_hidden_layers": 3, "num_hidden_groups": 2}
CASES = [
    dataclasses.replace(case, changes=SHARED | case.changes | ({"num_hidden_layers": 3} if "two" in case.name else {}))
    for case in grid("Albert", SHARED)
]
#: Cases that are always run, by dtype; all of them with `-m slow`.
ALWAYS = {"float32": {13}, "float64": {4, 16}}


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float32"]))
def test_small_albert_equals_torch_in_float32(case, tmp_path):
    check(case, tmp_path, "float32")


@pytest.mark.parametrize("case", marked(CASES, ALWAYS["float64"]))
def test_small_albert_equals_torch_in_float64(case, tmp_path, x64):
    check(case, tmp_path, "float64")


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
    # unlike its own formula for all sizes at once, this is the definition
    for layers in range(1, 40):
        for groups in range(1, layers + 1):
            config = dataclasses.replace(SMALL, num_hidden_layers=layers, num_hidden_groups=groups)
            assert set(config.applications) == set(range(groups))
            assert list(config.applications) == sorted(config.applications)


def test_every_layer_has_a_block_input():
    model = random_model(SMALL)
    ids = jnp.arange(6).reshape(1, 6)
    inputs = model.block_inputs(ids, jnp.ones_like(ids))
    assert len(inputs) == 5
    assert len(model.mlp_blocks()) == 2
    assert all(np.abs(one - other).max() > 1e-3 for one, other in zip(inputs[1:], inputs[:-1], strict=True))


def test_gradient_of_a_shared_block_is_the_sum_over_its_layers():
    config = dataclasses.replace(SMALL, num_hidden_layers=2, num_hidden_groups=1)
    shared = random_model(config)
    untied = random_model(dataclasses.replace(config, num_hidden_groups=2))
    copies = {f"group_{index}": shared.params["group_0"] for index in (0, 1)}
    ids = jnp.arange(6).reshape(1, 6)

    def loss(model, params):
        return jnp.sum(model.apply(params, input_ids=ids).last_hidden_state ** 3)

    with jax.default_matmul_precision("highest"):
        ours = jax.grad(lambda params: loss(shared, params))(shared.params)["group_0"]
        each = jax.grad(lambda params: loss(untied, params))(shared.params | copies)
    total = jax.tree.map(jnp.add, each["group_0"], each["group_1"])
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4), ours, total)


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
