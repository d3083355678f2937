"""Methods on a mixture: expert by expert, the router untouched."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.contract import MIN_TOKENS, ExpertWorkspace, LayerwiseMethod
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.compression.methods.random_neurons import RandomNeurons
from ntkfusion.compression.methods.structured_pruning import StructuredPruning
from ntkfusion.compression.methods.svd import SVD
from ntkfusion.compression.neurons import select_neurons
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.mixture import MixtureBlock
from tests.helpers.blocks import dense_block, duplicated_block, factorized_block, mixture_block, normal, relative


def routed_evenly(experts, tokens=60):
    """A router that looks at one coordinate per expert, and tokens of which a known number goes to each expert."""
    router = jnp.eye(5)[:, :experts]
    x = 0.1 * normal(7, tokens, 5)
    return router, x.at[jnp.arange(tokens), jnp.arange(tokens) % experts].set(3.0)


@pytest.mark.wide
@pytest.mark.parametrize("train_router", [True, False])
def test_router_and_routing_are_untouched(train_router):
    block, x = mixture_block(train_router=train_router), normal(1, 40, 5)
    small = MLPFusion(0.5).compress([block], Workspace(0)).blocks[0]
    assert small.router is block.router
    assert small.train_router == train_router
    for old, new in zip(block.route(x), small.route(x), strict=True):
        np.testing.assert_array_equal(old, new)
    assert len(set(np.asarray(block.route(x)[0]).tolist())) == 3


@pytest.mark.wide
@pytest.mark.parametrize("variant", ["v1", "v4"])
def test_mixtures_of_duplicated_neurons_fuse_exactly(x64, variant):
    """Every expert alone is fused without error, so the mixture is too, for whatever token."""
    experts = [duplicated_block((3, 2, 2, 1), o=5, seed=seed) for seed in range(3)]
    block, x = MixtureBlock.stack(normal(99, 5, 3), experts), normal(1, 30, 5)
    small = MLPFusion(0.5, variant=variant).compress([block], Workspace(0)).blocks[0]
    assert relative(small(x), block(x)) <= 1e-13
    for e, expert in enumerate(experts):
        alone = MLPFusion(0.5, variant=variant).compress([expert], Workspace(0)).blocks[0]
        assert relative(small.expert(e)(x), alone(x)) <= 1e-13


def test_experts_are_what_the_method_makes_of_each_alone():
    block = mixture_block(12, 40, 12)
    for method in (StructuredPruning(0.5), SVD(0.5)):
        compressed = method.compress([block], Workspace(0))
        alone = [method.compress([block.expert(e)], Workspace(0)) for e in range(3)]
        small, report = compressed.blocks[0], compressed.reports[0]
        for e in range(3):
            jax.tree.map(np.testing.assert_array_equal, small.expert(e), alone[e].blocks[0])
        assert report.parameters == 12 * 3 + sum(one.reports[0].parameters for one in alone)
        assert report.original_parameters == block.num_parameters
        for name, value in report.details.items():
            assert value == pytest.approx(np.mean([one.reports[0].details[name] for one in alone]))


def test_constants_of_the_experts_are_folded_first():
    block = mixture_block()
    constants = MixtureBlock.stack(block.router, [dense_block(constants=True, seed=seed) for seed in range(3)])
    folded = MixtureBlock.stack(block.router, [constants.expert(e).fold() for e in range(3)])
    small, expected = (StructuredPruning(0.5).compress([one], Workspace(0)).blocks[0] for one in (constants, folded))
    jax.tree.map(np.testing.assert_array_equal, small, expected)


def test_experts_and_layers_draw_independently():
    expert = dense_block(biases=False)
    block = MixtureBlock.stack(normal(99, 5, 2), [expert, expert])
    first, second = RandomNeurons(0.5).compress([block, block], Workspace(0)).blocks
    draws = [np.asarray(one.expert(e).w1) for one in (first, second) for e in range(2)]
    assert all(not np.array_equal(draws[i], draws[j]) for i in range(4) for j in range(i))


@dataclasses.dataclass(frozen=True)
class Looks(LayerwiseMethod):
    """Keeps as many neurons as it sees tokens, in tens, and says what it saw."""

    def compress_block(self, block, index, workspace):
        tokens = workspace.inputs(index)
        neurons = len(tokens) // 10
        workspace.progress(f"expert {index}", 1.0)
        return select_neurons(block, jnp.arange(neurons)), {"tokens": float(len(tokens)), "mean": float(tokens.mean())}


@pytest.mark.wide
def test_an_expert_sees_the_tokens_routed_to_it():
    router, x = routed_evenly(3)
    block = MixtureBlock.stack(router, [dense_block(o=5, seed=seed) for seed in range(3)])
    told = []
    run = Workspace(0, [x], progress=lambda what, fraction: told.append(what))
    report = Looks().compress([block], run).reports[0]
    assert report.hidden_width == 2
    assert report.details == {"tokens": 20.0, "mean": pytest.approx(float(x.mean()), rel=1e-5)}
    assert told == ["expert 0", "expert 1", "expert 2"]
    view = ExpertWorkspace(run, 0, block)
    for e in range(3):
        np.testing.assert_array_equal(view.inputs(e), x[e::3])


def test_an_expert_with_too_few_tokens_sees_all():
    router, x = routed_evenly(2, 60)
    x = x[jnp.concatenate([jnp.arange(0, 60, 2), jnp.arange(1, 2 * MIN_TOKENS - 2, 2)])]
    block = MixtureBlock.stack(router, [dense_block(o=5)] * 2)
    view = ExpertWorkspace(Workspace(0, [x]), 0, block)
    assert len(view.inputs(0)) == 30
    assert view.on_all_tokens == set()
    assert len(view.inputs(1)) == 30 + MIN_TOKENS - 1
    assert view.on_all_tokens == {1}


def test_experts_have_their_own_gradients_and_share_work():
    block = mixture_block()
    given = {"router": jnp.ones((5, 3)), "experts/w1": normal(1, 3, 5, 7), "experts/w2": normal(2, 3, 7, 3)}
    run = Workspace(0, squared_gradients=[{}, given])
    view = ExpertWorkspace(run, 1, block)
    gradients = view.squared_gradients(2)
    assert sorted(gradients) == ["w1", "w2"]
    np.testing.assert_array_equal(gradients["w1"], given["experts/w1"][2])
    assert ExpertWorkspace(Workspace(0), 0, block).squared_gradients(0) is None
    assert view.reuse("work", lambda: 1) == ExpertWorkspace(run, 1, block).reuse("work", lambda: 2) == 1
    assert ExpertWorkspace(run, 0, block).reuse("work", lambda: 3) == run.reuse("work", lambda: 3) == 3


def test_experts_of_different_shapes_are_refused():
    router, x = routed_evenly(2)
    block = MixtureBlock.stack(router, [dense_block(o=5)] * 2)
    with pytest.raises(InputError, match=r"differ in kind or shape.*expert 1 a MLPBlock .*same width"):
        Looks().compress([block], Workspace(0, [jnp.concatenate([x[::2], x[1::2], x[1::2]])]))


def test_experts_that_are_not_dense_are_refused():
    mixture = mixture_block(expert=factorized_block)
    with pytest.raises(InputError, match="dense MLP blocks; got a FactorizedBlock"):
        StructuredPruning(0.5).check([mixture])
    with pytest.raises(InputError, match="dense MLP blocks; got a FactorizedBlock"):
        StructuredPruning(0.5).compress([mixture], Workspace(0))
    with pytest.raises(InputError, match="choose a larger width"):
        SVD(0.01).check([mixture_block(4, 20, 4)])
