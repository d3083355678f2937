"""What every method must do, whatever it does."""

from __future__ import annotations

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.clustering.k_means import kmeans_batch
from ntkfusion.compression.contract import Workspace
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.compression.neurons import by_output, fisher
from ntkfusion.compression.registry import METHODS, build_method
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.dense import MLPBlock
from tests.helpers.blocks import dense_block, factorized_block, mixture_block, normal, relative
from tests.helpers.tiers import wide_unless

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


#: Methods that run the program of another one with other numbers: one combination shows that they work.
TWINS = ("ntk-fusion-sign", "ntk-fusion-both", "mmd-double-b2")
#: One of each such family.
PROGRAMS = [name for name in METHODS if name not in TWINS]
#: Methods that compile a training loop for every shape.
TRAINED = ("ntk-fusion", "mmd", "autoencoder", "autoencoder-layer", "autoencoder-linear")
#: One that clusters, one that factorises, one that prunes weights, one that takes neurons: the default tier's.
KINDS_OF_METHOD = ("mlp-fusion", "svd", "magnitude-pruning", "active-neurons")
BLOCKS = {
    "gelu, biases": ("gelu", True),
    "relu": ("relu", False),
    "silu, biases": ("silu", True),
    "gelu": ("gelu", False),
}


def combinations(name):
    """Which kinds of block a method is tried on: twins one, trained ones all activations, the others all."""
    return list(BLOCKS)[:1] if name in TWINS else list(BLOCKS)[:3] if name in TRAINED else list(BLOCKS)


@pytest.mark.parametrize(
    ("name", "kind"),
    wide_unless(
        lambda name, kind: kind == "gelu, biases" and name not in (*TRAINED[1:], *TWINS),
        [(name, kind) for name in METHODS for kind in combinations(name)],
    ),
)
def test_blocks_in_blocks_out(name, kind):
    activation, biases = BLOCKS[kind]
    blocks, compressed = compress(name, activation=activation, biases=biases)
    assert len(compressed.blocks) == len(compressed.reports) == len(blocks)
    for old, new, report in zip(blocks, compressed.blocks, compressed.reports, strict=True):
        widths = (old.model_width, old.output_width)
        assert (new.model_width, new.output_width, new.activation) == (*widths, activation)
        assert type(new) is build_method(name, 0.5).makes()
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


@pytest.mark.parametrize("name", wide_unless(lambda name: name in KINDS_OF_METHOD, PROGRAMS))
def test_parameters_grow_with_the_width_up_to_those_of_a_dense_block(name):
    stored = []
    for width in (0.5, 1.0):
        blocks, compressed = compress(name, width)
        budget = block_for(name, round(width * M)).num_parameters
        assert all(block.num_parameters <= budget <= blocks[0].num_parameters for block in compressed.blocks)
        stored.append(sum(block.num_parameters for block in compressed.blocks))
    assert stored[0] < stored[1]


def weight_error(old, new, x):
    return np.sum((old.w1 - new.w1) ** 2) + np.sum((old.w2 - new.w2) ** 2)


def calibration_error(old, new, x):
    return np.sum((old.preactivation(x) - new.preactivation(x)) ** 2)


def fisher_error(old, new, x):
    scores = fisher(old, 0, Workspace(0, [x]))
    changes = {"w1": (old.w1 - new.w1) ** 2, "w2": (old.w2 - new.w2) ** 2}
    return sum(np.dot(by_output(scores[name]), by_output(changes[name])) for name in changes)


#: What a method minimises over sets that grow with the width: it must fall. Errors of the dense weights.
FALLS_WITH_WIDTH = {
    "svd": weight_error,
    "svd-left": weight_error,
    "svd-fisher": fisher_error,
    "svd-whitened": calibration_error,
    "magnitude-pruning": weight_error,
}


@pytest.mark.parametrize("name", wide_unless(lambda name: name in KINDS_OF_METHOD, FALLS_WITH_WIDTH))
def test_error_falls_with_the_width_where_the_optimum_is_nested(x64, name):
    error, x, errors = FALLS_WITH_WIDTH[name], normal(1000, TOKENS, D), []
    for width in (0.4, 0.5, 0.75, 1.0):
        (old,), compressed = compress(name, width, blocks=[block_for(name)])
        errors.append(float(error(old, compressed.blocks[0].merge(), x)))
    assert errors[0] > errors[1] > errors[2] > errors[3]


#: Methods that treat all layers together and say that they take no mixtures.
NO_MIXTURES = [name for name in METHODS if name.startswith("autoencoder")]


@pytest.mark.parametrize(
    "name",
    wide_unless(lambda name: name in KINDS_OF_METHOD, [name for name in PROGRAMS if name not in NO_MIXTURES]),
)
def test_mixtures_expert_by_expert(name):
    mixture = mixture_block(D, M, D, experts=2, train_router=False)
    (_,), compressed = compress(name, blocks=[mixture])
    new, report, x = compressed.blocks[0], compressed.reports[0], normal(1, 9, D)
    assert new.router is mixture.router
    assert not new.train_router
    np.testing.assert_array_equal(new.route(x)[0], mixture.route(x)[0])
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(jnp.all(jnp.isfinite(leaf))), new))
    assert new(x).shape == (9, D)
    assert report.parameters == new.num_parameters == sum(new.expert(e).num_parameters for e in range(2))
    assert 0 < report.parameters < report.original_parameters == mixture.num_parameters


@pytest.mark.parametrize("name", NO_MIXTURES)
def test_mixtures_are_refused_by_the_others(name):
    with pytest.raises(InputError, match="dense MLP blocks; got a MixtureBlock"):
        compress(name, blocks=[mixture_block(D, M, D)])


@pytest.mark.parametrize("name", wide_unless(lambda name: name in (*KINDS_OF_METHOD, "sketch"), PROGRAMS))
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


@pytest.mark.parametrize("name", wide_unless(lambda name: name in (*KINDS_OF_METHOD, "sketch"), EXACT_AT_FULL_WIDTH))
def test_exact_at_full_width(x64, name):
    blocks, compressed = compress(name, 1.0)
    x = normal(1, 5, blocks[0].model_width)
    for old, new in zip(blocks, compressed.blocks, strict=True):
        assert relative(new(x), old(x)) <= 1e-14


#: Methods that compress by the loop that folds constants, and every one that has a loop of its own.
@pytest.mark.parametrize(
    "name",
    wide_unless(
        lambda name: name in KINDS_OF_METHOD,
        ["svd", "active-neurons", "mlp-fusion", "mlp-fusion-data", "autoencoder-linear"],
    ),
)
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
def test_half_precision_is_refused_with_what_to_do(name):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), block_for(name))
    with pytest.raises(InputError, match=r"float32 or float64; got bfloat16 weights. Convert them first"):
        build_method(name, 0.5).check([half])


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_are_not_finite_are_refused(name):
    block = block_for(name)
    with pytest.raises(InputError, match="w2 of a block hold values that are not finite"):
        build_method(name, 0.5).check([block.replace(w2=block.w2.at[0, 0].set(jnp.nan))])


@pytest.mark.parametrize("name", METHODS)
def test_no_blocks_are_no_work(name):
    assert build_method(name, 0.5).compress([], Workspace(0, [])).blocks == ()


@pytest.mark.parametrize("name", ["mlp-fusion-data", "svd-whitened", "activation-pruning", "ntk-fusion"])
@pytest.mark.parametrize(
    ("blocks", "shape", "message"),
    [
        (2, (9, D), "one array per block, 2; got 1"),
        (1, (9, D - 1), r"of block 0 must be at least one row of 6 numbers; got \(9, 5\)"),
        (1, (0, D), r"at least one row of 6 numbers; got \(0, 6\)"),
    ],
)
def test_calibration_inputs_that_do_not_fit_are_refused(name, blocks, shape, message):
    with pytest.raises(InputError, match=message):
        build_method(name, 0.5).compress([dense_block(D, M, D)] * blocks, Workspace(0, [jnp.zeros(shape)]))


def test_blocks_that_do_not_fit_are_found_out_before_any_work(monkeypatch):
    worked = []
    monkeypatch.setattr(
        "ntkfusion.compression.methods.active_neurons.select_neurons", lambda *given: worked.append(given)
    )
    with pytest.raises(InputError, match="dense MLP blocks; got a FactorizedBlock"):
        compress("active-neurons", blocks=[dense_block(), factorized_block()])
    assert not worked


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_frozen_and_described(name):
    method = build_method(name, 0.5)
    assert dataclasses.is_dataclass(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.keep_ratio = 1.0
    assert len(METHODS[name].description) > 10
    assert hash(method) == hash(build_method(name, 0.5))


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown method 'fusion'; known: mlp-fusion"):
        build_method("fusion", 0.5)


@pytest.mark.wide
def test_shared_work_is_done_once_and_charged_to_everyone(monkeypatch):
    calls = []

    def slow(problems, counts, *arguments, **options):
        calls.append(counts)
        time.sleep(0.2)
        return kmeans_batch(problems, counts, *arguments, **options)

    monkeypatch.setattr("ntkfusion.compression.methods.mlp_fusion.kmeans_batch", slow)
    workspace, block = Workspace(0), dense_block(D, M, D)
    reports = [MLPFusion(0.5, variant=variant).compress([block], workspace).reports[0] for variant in ("v1", "v4")]
    assert calls == [[12]]
    assert all(report.seconds >= 0.2 for report in reports)


def test_the_smallest_width_keeps_one_neuron():
    _, compressed = compress("mlp-fusion", 1e-6)
    assert isinstance(compressed.blocks[0], MLPBlock)
    assert compressed.blocks[0].hidden_width == 1
