"""What every method must do, whatever it does."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import dense_block, factorized_block, normal, relative

from ntkfusion.clustering.kmeans import kmeans
from ntkfusion.compression.contract import Workspace
from ntkfusion.compression.mlp_fusion import MLPFusion
from ntkfusion.compression.registry import METHODS, build_method
from ntkfusion.errors import InputError
from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.models.mlp import MLPBlock

#: Methods whose block at width 1 computes the same function. v0 counts as one: all its clusters have size 1.
EXACT_AT_FULL_WIDTH = [name for name in METHODS if not name.startswith(("svd", "sketch", "kronecker"))] + [
    "sketch-top-k"
]
D, M, TOKENS = 6, 24, 80
#: Decoders that need wider rows before they fit into half of a block.
WIDER = {"autoencoder": 16, "autoencoder-layer": 16}


def block_for(name, m=M, **options):
    d = WIDER.get(name, D)
    return dense_block(d, m, d, **options)


def count_stored(blocks):
    """Numbers that blocks store together: arrays that they have in common once, pruned weights not at all."""
    arrays = {id(leaf): leaf.size for block in blocks for leaf in block.parameters().values()}
    masks = [leaf for block in blocks for name, leaf in block.constants().items() if name.startswith("mask")]
    return sum(arrays.values()) - sum(int((mask == 0).sum()) for mask in masks)


def compress(name, width=0.5, seed=0, blocks=None, **block_options):
    blocks = [block_for(name, seed=index, **block_options) for index in range(2)] if blocks is None else blocks
    inputs = [normal(1000 + index, TOKENS, block.model_width) for index, block in enumerate(blocks)]
    return blocks, build_method(name, width).compress(blocks, Workspace(seed, inputs))


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", METHODS)
def test_blocks_in_blocks_out(name, activation, biases):
    blocks, compressed = compress(name, activation=activation, biases=biases)
    assert len(compressed.blocks) == len(compressed.reports) == len(blocks)
    for old, new, report in zip(blocks, compressed.blocks, compressed.reports, strict=True):
        widths = (old.model_width, old.output_width)
        assert (new.model_width, new.output_width, new.activation) == (*widths, activation)
        assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.all(jnp.isfinite(leaf))), new))
        assert (new.b1 is None) == (old.b1 is None)
        assert (new.b2 is None) == (old.b2 is None)
        assert new(normal(1, 3, widths[0])).shape == (3, widths[1])
        assert report.parameters == new.num_parameters <= count_stored([new])
        assert report.original_parameters == old.num_parameters
        assert report.hidden_width == new.hidden_width
        assert report.seconds > 0
        assert all(np.isfinite(value) for value in report.details.values())
    assert sum(report.parameters for report in compressed.reports) == count_stored(compressed.blocks)


@pytest.mark.parametrize("name", METHODS)
def test_stores_no_more_than_a_dense_block_of_that_width(name):
    for width in (0.5, 1.0):
        blocks, compressed = compress(name, width)
        budget = block_for(name, round(width * M)).num_parameters
        assert all(block.num_parameters <= budget for block in compressed.blocks)
        assert all(
            block.num_parameters <= old.num_parameters for block, old in zip(compressed.blocks, blocks, strict=True)
        )


@pytest.mark.parametrize("name", METHODS)
def test_deterministic_by_seed_and_leaves_its_input_alone(name):
    before = [jax.tree.map(np.asarray, block) for block in compress(name)[0]]
    blocks, first = compress(name)
    _, second = compress(name)
    for old, block in zip(before, blocks, strict=True):
        jax.tree.map(np.testing.assert_array_equal, old, block)
    for one, other in zip(first.blocks, second.blocks, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", ["sketch", "sketch-top-k", "random-neurons"])
def test_another_seed_is_another_block(name):
    one, other = compress(name, seed=0)[1].blocks[0], compress(name, seed=1)[1].blocks[0]
    assert relative(one.w1, other.w1) > 0.1


def test_layers_draw_independently():
    block = dense_block(D, M, D)
    _, compressed = compress("random-neurons", blocks=[block, block])
    assert relative(compressed.blocks[0].w1, compressed.blocks[1].w1) > 0.1


@pytest.mark.parametrize("name", EXACT_AT_FULL_WIDTH)
def test_exact_at_full_width(x64, name):
    blocks, compressed = compress(name, 1.0)
    x = normal(1, 5, blocks[0].model_width)
    for old, new in zip(blocks, compressed.blocks, strict=True):
        assert relative(new(x), old(x)) <= 1e-14


@pytest.mark.parametrize("name", METHODS)
def test_constants_of_the_given_block_are_part_of_its_function(x64, name):
    with_constants = block_for(name, constants=True)
    _, compressed = compress(name, blocks=[with_constants])
    _, folded = compress(name, blocks=[with_constants.fold()])
    jax.tree.map(np.testing.assert_array_equal, compressed.blocks[0], folded.blocks[0])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("width", [0.0, -0.5, 1.5, float("nan")])
def test_widths_out_of_range_are_refused(name, width):
    with pytest.raises(InputError, match="above 0 and at most 1"):
        build_method(name, width)


@pytest.mark.parametrize("name", METHODS)
def test_says_when_it_does_not_apply(name):
    with pytest.raises(InputError, match="dense MLP blocks; got a FactorizedBlock"):
        compress(name, blocks=[factorized_block()])


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_frozen_and_described(name):
    method = build_method(name, 0.5)
    assert dataclasses.is_dataclass(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.width = 1.0
    assert len(METHODS[name].description) > 10
    assert hash(method) == hash(build_method(name, 0.5))


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown method 'fusion'; known: mlp-fusion"):
        build_method("fusion", 0.5)


def test_shared_work_is_done_once_and_charged_to_everyone(monkeypatch):
    calls = []

    def slow(points, count, restarts, key):
        calls.append(count)
        time.sleep(0.2)
        return kmeans(points, count, restarts, key)

    monkeypatch.setattr("ntkfusion.compression.mlp_fusion.kmeans", slow)
    workspace, block = Workspace(0), dense_block(D, M, D)
    reports = [MLPFusion(0.5, variant=variant).compress([block], workspace).reports[0] for variant in ("v1", "v4")]
    assert calls == [12]
    assert all(report.seconds >= 0.2 for report in reports)


def test_the_smallest_width_keeps_one_neuron():
    _, compressed = compress("mlp-fusion", 1e-6)
    assert isinstance(compressed.blocks[0], MLPBlock)
    assert compressed.blocks[0].hidden_width == 1
