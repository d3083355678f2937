"""Theorem 1 in both directions: which variant keeps what when neurons coincide, and that the others do not."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from blocks import dense_block, duplicated_block, normal, relative

from ntkfusion.clustering.kmeans import kmeans
from ntkfusion.compression.contract import Workspace
from ntkfusion.compression.mlp_fusion import MLPFusion, fuse
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.errors import InputError
from ntkfusion.kernels.block import block_kernel
from ntkfusion.models.activations import ACTIVATIONS

SIZES = (5, 4, 3, 2, 2, 1, 1, 1)
VARIANTS = ("v0", "v1", "v2", "v3", "v4")
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
    return block, MLPFusion(width=width, variant=variant).compress([block], Workspace(0)).blocks[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("variant", VARIANTS)
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


@pytest.mark.parametrize("activation", ACTIVATIONS)
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


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_full_width_changes_nothing(x64, variant, activation):
    block = dense_block(activation=activation)
    small = MLPFusion(width=1.0, variant=variant).compress([block], Workspace(0)).blocks[0]
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
    details = MLPFusion(width=0.3).compress([block], Workspace(0)).reports[0].details
    vectors = neuron_vectors(block)
    spread = float(jnp.sum((vectors - vectors.mean(axis=0)[None]) ** 2))
    assert details["inertia_ratio"] == pytest.approx(details["inertia"] / spread, rel=1e-5)
    assert 0 < details["inertia_ratio"] < 1


def test_unknown_variant():
    method = MLPFusion()
    # set behind the back of beartype, which checks the Literal in tests only
    object.__setattr__(method, "variant", "v9")
    with pytest.raises(InputError, match="unknown variant 'v9' of MLP Fusion; known: v0, v1, v2, v3, v4"):
        method.__post_init__()
