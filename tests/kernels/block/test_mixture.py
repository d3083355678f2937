"""Mixtures of experts: who is routed where, ties, unused and lone experts, a sure router."""

from __future__ import annotations

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel
from ntkfusion.models.blocks.mixture import MixtureBlock
from tests.helpers.blocks import dense_block, gated_block, masked_block, mixture_block, normal, relative
from tests.helpers.tiers import wide_unless


def agrees_with_oracle(block, x, z, kind):
    f, params = block_function(block)
    oracle = jax.jit(partial(dense_kernel, f, kind=kind, trace=False, by_parameter=True))(params, x, z)
    ours = block_kernel(block, x, z, kind=kind, trace=False, by_parameter=True)
    assert ours.keys() == oracle.keys()
    scale = max(float(jnp.max(jnp.abs(part))) for part in oracle.values())
    return all(float(jnp.max(jnp.abs(ours[name] - oracle[name]))) <= 1e-12 * scale for name in oracle)


def test_forward_is_the_chosen_expert_times_its_probability(x64):
    block, x = mixture_block(biases=True, activation="gelu"), normal(7, 4, 5, 5)
    probabilities = jax.nn.softmax(x @ block.router, axis=-1)
    chosen = jnp.argmax(probabilities, axis=-1)
    assert set(chosen.ravel().tolist()) == {0, 1, 2}
    for index in ((0, 0), (1, 2), (3, 4)):
        e = int(chosen[index])
        expected = probabilities[(*index, e)] * block.expert(e)(x[index])
        assert relative(block(x)[index], expected) <= 1e-14
        assert relative(block(x[index]), expected) <= 1e-14


def test_parameters_by_name_and_back():
    block = mixture_block(biases=True)
    assert [*block.parameters()] == ["router", "experts/w1", "experts/b1", "experts/w2", "experts/b2"]
    assert (block.num_experts, block.model_width, block.hidden_width, block.output_width) == (3, 5, 7, 3)
    assert block.num_parameters == 15 + 3 * dense_block().num_parameters
    again = block.replace(**{name: 2 * array for name, array in block.parameters().items()})
    assert jnp.array_equal(again.experts.w1, 2 * block.experts.w1)
    assert jnp.array_equal(again.router, 2 * block.router)
    frozen = mixture_block(train_router=False)
    assert [*frozen.constants()] == ["router"]
    assert "router" not in frozen.parameters()


@pytest.mark.parametrize(
    ("expert", "kind"),
    wide_unless(
        lambda expert, kind: (expert == gated_block) == (kind == "sgd"), product([gated_block, masked_block], KINDS)
    ),
)
def test_experts_may_be_of_other_kinds(x64, expert, kind):
    block = mixture_block(expert=expert, activation="silu")
    assert agrees_with_oracle(block, normal(7, 6, 5), normal(8, 4, 5), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_different_experts_share_no_expert_parameter(x64, kind):
    block, x = mixture_block(), normal(7, 12, 5)
    chosen, _ = block.route(x)
    apart = chosen[:, None] != chosen[None, :]
    assert len(set(chosen.tolist())) == 3
    parts = block_kernel(block, x, kind=kind, by_parameter=True)
    assert not jnp.any(jnp.where(apart, parts["experts/w1"] + parts["experts/w2"], 0))
    assert jnp.all(jnp.diagonal(parts["experts/w2"]) > 0)
    assert jnp.any(jnp.where(apart, parts["router"], 0))


@pytest.mark.wide
@pytest.mark.parametrize("kind", KINDS)
def test_unused_experts_and_ties_go_to_the_lowest_number(x64, kind):
    block = mixture_block()
    # expert 2 always loses; experts 0 and 1 always tie
    router = jnp.stack([block.router[:, 0], block.router[:, 0], -jnp.ones(5) * 10], axis=1)
    block, x, z = block.replace(router=router), jnp.abs(normal(7, 6, 5)), jnp.abs(normal(8, 4, 5))
    chosen, _ = block.route(x)
    assert chosen.tolist() == [0] * 6
    assert agrees_with_oracle(block, x, z, kind)
    others = block.replace(**{"experts/w1": block.experts.w1.at[1:].set(7.0)})
    assert relative(block_kernel(others, x, z, kind=kind), block_kernel(block, x, z, kind=kind)) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_expert_is_the_expert_itself(x64, kind):
    """p = 1, so the router has no gradient."""
    block, x = mixture_block(experts=1), normal(7, 6, 5)
    parts = block_kernel(block, x, kind=kind, by_parameter=True)
    assert not jnp.any(parts.pop("router"))
    alone = block_kernel(block.expert(0), x, kind=kind, by_parameter=True)
    assert all(relative(parts[f"experts/{name}"], alone[name]) <= 1e-14 for name in alone)


def test_a_sure_router_keeps_its_signs_in_float32():
    """1 − p_e and the other p underflow to 0 in float32 arithmetic that subtracts; their signs are known."""
    block = mixture_block(d=1, m=2, o=1, experts=2).replace(router=jnp.array([[120.0, 0.0]]))
    x, z = jnp.array([[0.1]]), jnp.array([[1.0]])
    ours = block_kernel(block, x, z, kind="sign", by_parameter=True)["router"]
    # both entries of 1_e − p at z have signs (+1, −1): twice the mass that leaves e at x
    leaving = jax.nn.sigmoid(-12.0)
    y, y_z = block.expert(0)(x)[0, 0], block.expert(0)(z)[0, 0]
    expected = (1 - leaving) * y * jnp.sign(y_z) * 2 * leaving * 0.1
    assert expected != 0
    assert ours[0, 0] == pytest.approx(float(expected), rel=1e-5)


def test_experts_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"3 columns needs as many experts .* got 2 experts of 1 kinds and 2 shapes"):
        MixtureBlock.stack(normal(0, 5, 3), [dense_block(), dense_block(m=4)])
