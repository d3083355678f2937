"""Theorem 1 in both directions: which variant keeps what when neurons coincide, and that the others do not."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.clustering.k_means import kmeans
from ntkfusion.compression.methods.mlp_fusion import MLPFusion, fuse
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.models.activations import ACTIVATIONS
from tests.helpers.blocks import dense_block, duplicated_block, mixture_block, normal, relative
from tests.helpers.tiers import wide_unless

SIZES = (5, 4, 3, 2, 2, 1, 1, 1)
VARIANTS = ("v0", "v1", "v2", "v3", "v4", "kappa")
SMOOTH = [name for name in ACTIVATIONS if name != "relu"]
EXACT, BROKEN = 1e-12, 0.01


def keeps(variant, activation):
    """The table of Theorem 1 (docs/theory.md), as sets of what stays exact."""
    smooth_v3 = variant == "v3" and activation != "relu"
    return {
        "output": variant != "v0" and not smooth_v3,
        "sgd": variant == "v4" or (variant == "v3" and activation == "relu"),
        "sign": variant == "v1",
    }


def fused(variant, activation, seed=0):
    block = duplicated_block(SIZES, activation=activation, seed=seed)
    width = len(SIZES) / sum(SIZES)
    return block, MLPFusion(keep_ratio=width, variant=variant).compress([block], Workspace(0)).blocks[0]


@pytest.mark.parametrize(
    ("variant", "activation"),
    wide_unless(lambda variant, activation: activation == "gelu" or variant == "v1", product(VARIANTS, ACTIVATIONS)),
)
def test_theorem_1(x64, variant, activation):
    block, small = fused(variant, activation)
    assert small.hidden_width == len(SIZES)
    x = normal(1, 30, 5)
    errors = {
        "output": relative(small(x), block(x)),
        "sgd": relative(block_kernel(small, x), block_kernel(block, x)),
        "sign": relative(block_kernel(small, x, kind="sign"), block_kernel(block, x, kind="sign")),
    }
    for name, exact in keeps(variant, activation).items():
        assert (errors[name] <= EXACT) if exact else (errors[name] >= BROKEN), (name, errors[name])


@pytest.mark.parametrize("activation", wide_unless(lambda name: name in ("gelu", "relu"), ACTIVATIONS))
def test_theorem_1_holds_for_full_kernels_too(x64, activation):
    x = normal(1, 6, 5)
    for variant, kind in (("v1", "sign"), ("v4", "sgd")):
        block, small = fused(variant, activation)
        old, new = (block_kernel(which, x, kind=kind, trace=False) for which in (block, small))
        assert relative(new, old) <= EXACT


def test_v1_inflates_the_sgd_kernel_between_its_cluster_sizes(x64):
    """n_min K ≼ K̃ ≼ n_max K for the parts of W1, b1 and W2 (docs/theory.md, sandwich)."""
    block, small = fused("v1", "gelu")
    x = normal(1, 20, 5)
    old, new = (block_kernel(which, x, by_parameter=True) for which in (block, small))
    for name in ("w1", "b1", "w2"):
        scale = jnp.max(jnp.abs(new[name]))
        assert jnp.linalg.eigvalsh(new[name] - min(SIZES) * old[name])[0] >= -1e-12 * scale
        assert jnp.linalg.eigvalsh(max(SIZES) * old[name] - new[name])[0] >= -1e-12 * scale


@pytest.mark.parametrize(
    ("activation", "variant"),
    wide_unless(lambda activation, variant: activation == "gelu", product(["relu", "gelu"], VARIANTS)),
)
def test_full_width_changes_nothing(x64, variant, activation):
    block = dense_block(activation=activation)
    small = MLPFusion(keep_ratio=1.0, variant=variant).compress([block], Workspace(0)).blocks[0]
    x = normal(1, 10, 5)
    assert relative(small(x), block(x)) <= EXACT
    for kind in ("sgd", "sign"):
        assert relative(block_kernel(small, x, kind=kind), block_kernel(block, x, kind=kind)) <= EXACT


def test_sizes_are_those_of_the_clusters():
    block = dense_block(4, 20, 4)
    clusters = kmeans(neuron_vectors(block), 6)
    small = fuse(block, clusters, "v1")
    assert small.q.sum() == 20
    assert small.constants().keys() == {"q"}
    assert fuse(block, clusters, "v4").constants().keys() == {"q", "r"}
    for variant in ("v0", "v2", "v3"):
        assert not fuse(block, clusters, variant).constants()


def test_report_gives_the_share_of_the_spread_that_is_lost():
    block = dense_block(4, 20, 4)
    details = MLPFusion(keep_ratio=0.3).compress([block], Workspace(0)).reports[0].details
    vectors = neuron_vectors(block)
    spread = float(jnp.sum((vectors - vectors.mean(axis=0)[None]) ** 2))
    assert details["inertia_ratio"] == pytest.approx(details["inertia"] / spread, rel=1e-5)
    assert 0 < details["inertia_ratio"] < 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("variant", "unknown variant 'v9' of MLP Fusion; known: v0, v1, v2, v3, v4, kappa"),
        ("allocation", "unknown allocation 'v9' of MLP Fusion; known: uniform, inertia"),
        ("metric", "unknown metric 'v9' of MLP Fusion; known: plain, data"),
    ],
)
def test_unknown_names(name, message):
    method = MLPFusion()
    # set behind the back of beartype, which checks the Literal in tests only
    object.__setattr__(method, name, "v9")
    with pytest.raises(InputError, match=message):
        method.__post_init__()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": 1.5}, r"from 0 \(sign, Adam\) to 1 \(SGD\); got 1.5"),
        ({"kappa": float("nan")}, "got nan"),
        ({"num_restarts": 0}, "at least 1, got 0"),
        ({"input_weight": 0.0}, "positive and finite, got 0.0"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        MLPFusion(**options)


@pytest.mark.wide
def test_the_ends_of_the_kappa_family_are_v1_and_v4(x64):
    block = dense_block(4, 20, 4)
    clusters = kmeans(neuron_vectors(block), 6)
    for kappa, variant in ((0.0, "v1"), (1.0, "v4")):
        ours, known = fuse(block, clusters, "kappa", kappa), fuse(block, clusters, variant)
        assert ours.constants().keys() == known.constants().keys()
        for name, array in (known.parameters() | known.constants()).items():
            assert relative((ours.parameters() | ours.constants())[name], array) <= EXACT
    sizes, half = np.asarray(clusters.counts), fuse(block, clusters, "kappa", 0.5)
    np.testing.assert_allclose(half.q, sizes ** (2 / 3))
    np.testing.assert_allclose(half.r, sizes ** (-1 / 3))
    np.testing.assert_allclose(half.w2, clusters.centroids[:, 5:] * sizes[:, None] ** (1 / 3))
    np.testing.assert_allclose(half.b1, clusters.centroids[:, 4] * sizes ** (1 / 3))


def outputs_after_training(block, kappa, x, y, steps=25):
    """Outputs after steps of size 0.02 with u(g) = sgn(g) |g|^κ on all parameters, constants untouched."""

    def loss(parameters):
        return jnp.mean((block.replace(**parameters)(x) - y) ** 2)

    def step(_, parameters):
        gradients = jax.grad(loss)(parameters)
        return jax.tree.map(lambda p, g: p - 0.02 * jnp.sign(g) * jnp.abs(g) ** kappa, parameters, gradients)

    return block.replace(**jax.lax.fori_loop(0, steps, step, block.parameters()))(x)


@pytest.mark.wide
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_kappa_keeps_the_whole_trajectory_of_its_update_law(x64, activation):
    block = duplicated_block(SIZES, activation=activation)
    clusters = kmeans(neuron_vectors(block), len(SIZES))
    x, y = normal(1, 12, 5), normal(2, 12, 3)
    train = jax.jit(outputs_after_training)
    for kappa in (0.0, 0.5, 1.0):
        full = train(block, kappa, x, y)
        assert relative(full, block(x)) > 0.05  # it moved
        errors = {
            own: relative(train(fuse(block, clusters, "kappa", own), kappa, x, y), full) for own in (0.0, 0.5, 1.0)
        }
        assert errors.pop(kappa) <= 1e-9
        assert min(errors.values()) > 1e-3


@pytest.mark.slow
def test_blocks_are_clustered_as_they_would_be_alone():
    blocks = [dense_block(4, 20, 4, seed=seed) for seed in range(2)]
    together = MLPFusion(keep_ratio=0.3).compress(blocks, Workspace(0)).blocks
    for index, block in enumerate(blocks):
        alone, _ = MLPFusion(keep_ratio=0.3).compress_block(block, index, Workspace(0))
        jax.tree.map(np.testing.assert_array_equal, alone, together[index])


@pytest.mark.wide
def test_layers_share_a_budget_by_inertia():
    """A block of eight neurons in many copies needs no more than eight; the rest goes to the one that has no copies."""
    simple, hard = duplicated_block(SIZES, d=4, o=4), dense_block(4, sum(SIZES), 4, seed=1)
    uniform, shared = (
        MLPFusion(keep_ratio=0.6, allocation=allocation).compress([simple, hard], Workspace(0))
        for allocation in ("uniform", "inertia")
    )
    widths = [report.hidden_width for report in shared.reports]
    assert sum(widths) == sum(report.hidden_width for report in uniform.reports)
    assert widths[0] < uniform.reports[0].hidden_width < widths[1] <= sum(SIZES)
    total = [sum(report.details["inertia"] for report in result.reports) for result in (uniform, shared)]
    assert total[1] < 0.9 * total[0]


def test_mixtures_share_no_budget():
    with pytest.raises(InputError, match="use 'uniform' for mixtures"):
        MLPFusion(allocation="inertia").compress([mixture_block()], Workspace(0))


@pytest.mark.wide
def test_mixtures_are_fused_expert_by_expert():
    mixture = mixture_block(4, 12, 4)
    small = MLPFusion(keep_ratio=0.5).compress([mixture], Workspace(0)).blocks[0]
    assert small.expert(0).hidden_width == 6
    np.testing.assert_array_equal(small.router, mixture.router)


@pytest.mark.slow
def test_input_weight_changes_the_metric_only():
    block = dense_block(4, 30, 4)
    inputs, outputs = (
        MLPFusion(keep_ratio=0.2, input_weight=weight).compress([block], Workspace(0)).blocks[0]
        for weight in (1e6, 1e-6)
    )
    by_input = kmeans(neuron_vectors(block)[:, :5], 6, seed=Workspace(0).key("kmeans", 0)).centroids
    by_output = kmeans(block.w2, 6, seed=Workspace(0).key("kmeans", 0)).centroids
    np.testing.assert_allclose(jnp.concatenate([inputs.w1.T, inputs.b1[:, None]], axis=1), by_input, atol=1e-5)
    np.testing.assert_allclose(outputs.w2, by_output, atol=1e-5)
