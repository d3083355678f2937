"""Every closed form against the dense Jacobian, in float64 and float32, and what a kernel must do by definition."""

from __future__ import annotations

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfusion.errors import InputError
from ntkfusion.kernels.block import block_kernel as block_request
from ntkfusion.kernels.block.block_kernel import block_kernel, estimate_block_kernel
from ntkfusion.kernels.block.program import default_tile
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel, jacobian
from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.utils.memory import show_size
from tests.helpers.blocks import (
    dense_block,
    factorized_block,
    gated_block,
    masked_block,
    mixture_block,
    normal,
    relative,
)
from tests.helpers.tiers import wide_unless

BLOCKS = {
    "dense": lambda activation: dense_block(activation=activation),
    "dense with q and r": lambda activation: dense_block(activation=activation, constants=True),
    "dense without biases": lambda activation: dense_block(activation=activation, biases=False),
    "factorized": lambda activation: factorized_block(activation=activation),
    "factorized with q and r, without biases": lambda activation: factorized_block(
        activation=activation, biases=False, constants=True
    ),
    "gated": lambda activation: gated_block(activation=activation),
    "gated without biases": lambda activation: gated_block(activation=activation, biases=False),
    "masked": lambda activation: masked_block(activation=activation, constants=True),
    "mixture as in Switch": lambda activation: mixture_block(activation=activation),
    "mixture with biases": lambda activation: mixture_block(activation=activation, biases=True, train_router=False),
}
#: What block_kernel is asked for, and what it means for ∇f(x), ∇f(z) of one parameter, [N, o, p].
OUTPUTS = {
    "traced": ({}, lambda g, h: np.einsum("nop,mop->nm", g, h, optimize=True) / g.shape[1]),
    "diagonal": ({"diagonal": True}, lambda g, h: np.einsum("nop,mop->nmo", g, h, optimize=True)),
    "full": ({"trace": False}, lambda g, h: np.einsum("nop,mqp->nmoq", g, h, optimize=True)),
}


@pytest.mark.parametrize(
    ("kind_of_block", "activation"),
    wide_unless(lambda block, activation: activation == "gelu" or block == "dense", product(BLOCKS, ACTIVATIONS)),
)
def test_closed_form_equals_dense_jacobian_in_float64(x64, kind_of_block, activation):
    """Both kinds, every output form and every parameter, from one pair of Jacobians."""
    block, x, z = BLOCKS[kind_of_block](activation), normal(7, 6, 5), normal(8, 4, 5)
    f, params = block_function(block)
    both = jax.device_get(jax.jit(partial(jacobian, f))(params, jnp.concatenate([x, z])))
    left, right = ({name: grads[rows] for name, grads in both.items()} for rows in (slice(6), slice(6, 10)))

    @jax.jit  # one compilation for all of them
    def everything(block, x, z):
        parts = {
            (kind, form): block_kernel(block, x, z, kind=kind, by_parameter=True, **options)
            for kind in KINDS
            for form, (options, _) in OUTPUTS.items()
        }
        return parts, block_kernel(block, x, z, trace=False)

    found, whole = jax.device_get(everything(block, x, z))
    for (kind, form), ours in found.items():
        signed = {name: np.sign(grads) for name, grads in right.items()} if kind == "sign" else right
        oracle = {name: OUTPUTS[form][1](left[name], signed[name]) for name in left}
        assert ours.keys() == oracle.keys()
        for name in oracle:
            assert ours[name].shape == oracle[name].shape
            error = np.max(np.abs(ours[name] - oracle[name]))
            assert error <= 1e-12 * np.max(np.abs(oracle[name])), (kind, form, name)
    assert np.max(np.abs(whole - sum(found["sgd", "full"].values()))) <= 1e-13 * np.max(np.abs(whole))


@pytest.mark.parametrize(
    ("kind_of_block", "kind"),
    wide_unless(lambda block, kind: block in ("dense", "mixture as in Switch"), product(BLOCKS, KINDS)),
)
def test_float32_agrees_with_the_float64_oracle(kind_of_block, kind):
    with jax.enable_x64(True):
        block, x, z = BLOCKS[kind_of_block]("gelu"), normal(7, 6, 5), normal(8, 4, 5)
        f, params = block_function(block)
        oracle = jax.jit(partial(dense_kernel, f, kind=kind))(params, x, z)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), block)
    ours = block_kernel(single, x.astype(jnp.float32), z.astype(jnp.float32), kind=kind)
    assert ours.dtype == jnp.float32
    assert relative(ours.astype(jnp.float64) if jax.config.jax_enable_x64 else ours, oracle.astype(jnp.float32)) <= 2e-5


MAKERS = {"dense": dense_block, "gated": gated_block, "masked": masked_block, "mixture": mixture_block}


@pytest.mark.wide
@settings(max_examples=10, deadline=None)
@given(
    maker=st.sampled_from(sorted(MAKERS)),
    sizes=st.tuples(*[st.sampled_from([1, 2, 5])] * 5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    kind=st.sampled_from(KINDS),
    biases=st.booleans(),
    trace=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_closed_form_equals_dense_jacobian_for_any_shape(maker, sizes, activation, kind, biases, trace, seed):
    d, m, o, n, k = sizes
    with jax.enable_x64(True):
        block = MAKERS[maker](d, m, o, activation=activation, biases=biases, seed=seed)
        f, params = block_function(block)
        x, z = normal(seed + 7, n, d), normal(seed + 8, k, d)
        ours = block_kernel(block, x, z, kind=kind, trace=trace)
        oracle = jax.jit(partial(dense_kernel, f, kind=kind, trace=trace))(params, x, z)
        # terms of a sign kernel may cancel: measured on the scale of what is added up
        scale = jnp.max(jnp.abs(block_kernel(block, x, kind="sgd"))) + jnp.max(jnp.abs(oracle)) + 1
        assert jnp.max(jnp.abs(ours - oracle)) <= 1e-12 * scale


@pytest.mark.parametrize(
    ("make", "kind", "outputs"),
    wide_unless(
        lambda make, kind, outputs: make == dense_block and outputs == "traced",
        product([dense_block, factorized_block, mixture_block], KINDS, OUTPUTS),
    ),
)
def test_tiles_change_nothing_but_rounding(x64, make, kind, outputs):
    block, x, z, options = make(), normal(7, 11, 5), normal(8, 5, 5), OUTPUTS[outputs][0]
    whole = block_kernel(block, x, z, kind=kind, **options)
    for tile in (3, 10):
        assert relative(block_kernel(block, x, z, kind=kind, tile=tile, **options), whole) <= 1e-13


@pytest.mark.parametrize(
    "make",
    wide_unless(
        lambda make: make in (dense_block, mixture_block),
        [dense_block, factorized_block, gated_block, masked_block, mixture_block],
    ),
)
def test_trace_is_the_mean_of_the_diagonal_of_the_full_kernel(x64, make):
    """And z left out is z = x."""
    block, x = make(), normal(7, 6, 5)
    for kind in KINDS:
        full = block_kernel(block, x, x, kind=kind, trace=False)
        diagonal = jnp.diagonal(full, axis1=2, axis2=3)
        assert relative(block_kernel(block, x, kind=kind, diagonal=True), diagonal) <= 1e-13
        assert relative(block_kernel(block, x, kind=kind), jnp.mean(diagonal, axis=2)) <= 1e-13


@pytest.mark.wide
@pytest.mark.parametrize("make", [dense_block, pytest.param(mixture_block, marks=pytest.mark.wide)])
def test_rates_scale_the_parts(x64, make):
    block, x = make(), normal(7, 6, 5)
    first, second, *others = block.parameters()
    rates = {first: 0.0, second: 2.5}
    for options, _ in OUTPUTS.values():
        parts = block_kernel(block, x, by_parameter=True, **options)
        scaled = block_kernel(block, x, by_parameter=True, rates=rates, **options)
        assert scaled.keys() == parts.keys()
        assert not jnp.any(scaled[first])
        assert relative(scaled[second], 2.5 * parts[second]) <= 1e-15
        assert all(relative(scaled[name], parts[name]) <= 1e-15 for name in others)
        assert relative(block_kernel(block, x, rates=rates, **options), sum(scaled.values())) <= 1e-14


def test_everything_frozen_is_the_zero_kernel():
    block, x = dense_block(), normal(7, 6, 5)
    frozen = block_kernel(block, x, trace=False, rates=dict.fromkeys(block.parameters(), 0.0))
    assert frozen.shape == (6, 6, 3, 3)
    assert not jnp.any(frozen)


def test_rates_are_those_of_a_gradient_step(x64):
    """f moves by −η J C ∇L: the kernel with rates is the finite difference of a step with one rate per parameter."""
    block, x, step = dense_block(o=1), normal(7, 2, 5), 1e-6
    rates = {"w1": 0.3, "b1": 0.0, "w2": 2.0}
    f, params = block_function(block)
    grads = jax.grad(lambda p: f(p, x[1])[0])(params)
    moved = {name: params[name] + step * rates.get(name, 1.0) * grads[name] for name in params}
    change = (f(moved, x[0]) - f(params, x[0]))[0] / step
    assert block_kernel(block, x, rates=rates)[0, 1] == pytest.approx(float(change), rel=1e-4)


def test_sgd_kernel_is_symmetric_and_positive(x64):
    kernel = block_kernel(dense_block(), normal(7, 20, 5))
    assert relative(kernel, kernel.T) <= 1e-14
    assert jnp.linalg.eigvalsh(kernel)[0] >= -1e-12 * jnp.max(kernel)


def test_sign_kernel_is_not_symmetric(x64):
    kernel = block_kernel(dense_block(), normal(7, 6, 5), kind="sign")
    assert relative(kernel, kernel.T) > 0.01


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_float32_keeps_signs_in_the_tail_where_autodiff_loses_them(activation):
    """A hidden value of −6: σ < 0 and σ' < 0, so every neuron adds |a| and |g|, not 0."""
    block = dense_block(1, 1, 1, activation=activation).replace(
        w1=jnp.ones((1, 1)), b1=jnp.zeros(1), w2=jnp.ones((1, 1)), b2=None
    )
    x, z = jnp.array([[1.0]]), jnp.array([[-6.0]])
    ours = block_kernel(block, x, z, kind="sign", by_parameter=True)
    with jax.enable_x64(True):
        f, params = block_function(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), block))
        oracle = dense_kernel(f, params, x.astype(jnp.float64), z.astype(jnp.float64), kind="sign", by_parameter=True)
    for name in ours:
        assert ours[name].item() == pytest.approx(oracle[name].item(), rel=2e-6)
        assert ours[name].item() != 0


def test_dead_relu_neurons_drop_out():
    block = dense_block(2, 3, 1, activation="relu").replace(b1=jnp.array([-100.0, 0.0, 0.0]), b2=None)
    x = jnp.ones((1, 2))
    for kind in KINDS:
        alive = block.replace(w1=block.w1[:, 1:], b1=block.b1[1:], w2=block.w2[1:])
        assert block_kernel(block, x, kind=kind) == pytest.approx(block_kernel(alive, x, kind=kind))


def test_second_call_does_not_compile_again():
    first = block_kernel(dense_block(), normal(7, 6, 5))
    with pytest.MonkeyPatch.context() as patch:
        # tracing again would call this
        patch.setattr("ntkfusion.kernels.block.dense.terms", None)
        second = block_kernel(dense_block(seed=3), normal(9, 6, 5))
    assert relative(second, first) > 0
    first = block_kernel(dense_block(), normal(7, 6, 5), rates={"w1": 0.5, "b2": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ntkfusion.kernels.block.dense.terms", None)
        second = block_kernel(dense_block(), normal(7, 6, 5), rates={"w1": 0.25, "b2": 0.0})
    assert relative(second, first) > 0


@pytest.mark.parametrize(
    ("kind", "outputs"),
    wide_unless(
        lambda kind, outputs: kind == "sign" and len(outputs) == ("trace" in outputs),
        product(KINDS, [{}, {"by_parameter": True}, {"diagonal": True}, {"trace": False}]),
    ),
)
def test_a_memory_limit_changes_the_tile_only(kind, outputs):
    block, x = dense_block(m=200), normal(7, 40, 5)
    free = estimate_block_kernel(block, 40, kind=kind, **outputs)
    limit = int(0.9 * free.peak)
    tight = estimate_block_kernel(block, 40, kind=kind, memory_limit=limit, **outputs)
    assert tight.chunk < free.chunk
    assert tight.result == free.result <= tight.peak <= limit < free.peak
    expected = block_kernel(block, x, kind=kind, **outputs)
    found = block_kernel(block, x, kind=kind, memory_limit=limit, **outputs)
    assert max(jax.tree.leaves(jax.tree.map(relative, found, expected))) <= 1e-5


def test_an_estimate_is_what_xla_allocates_and_needs_no_arrays():
    block = jax.eval_shape(lambda: dense_block(768, 3072, 768))
    estimate = estimate_block_kernel(block, 4096)
    assert estimate.result == 4096**2 * 4
    assert estimate.result < estimate.peak < 4 * estimate.result
    assert str(estimate) == f"{show_size(estimate.peak)} at most (result 64.0 MiB), 1024 at a time"
    # what a call without a limit assumes, when it does not look
    assert estimate.peak <= block_request.RESULTS * estimate.result + block_request.WORKSPACE


def test_what_cannot_fit_is_refused_with_what_would():
    block = dense_block()
    with pytest.raises(InputError, match=r"takes 6.2 KiB, the limit is 3.9 KiB: ask for 31 rows or fewer, or raise"):
        block_kernel(block, normal(0, 40, 5), memory_limit=4000)
    with pytest.raises(InputError, match="7 rows or fewer, or the traced kernel, or raise memory_limit"):
        block_kernel(block, normal(0, 40, 5), trace=False, memory_limit=2000)
    with pytest.raises(InputError, match=r"at least, the limit is 6.3 KiB: raise memory_limit or take fewer rows"):
        block_kernel(block, normal(0, 40, 5), memory_limit=6500)
    with pytest.raises(InputError, match="num_x must be at least 1, got 0"):
        estimate_block_kernel(block, 0)


def test_default_tile_shrinks_for_full_kernels():
    block = dense_block(4, 64, 48)
    assert default_tile(block, "trace") == 1024
    assert default_tile(block, "full") ** 2 * 48**2 <= 2**26
    assert default_tile(dense_block(4, 64, 100), "diagonal") ** 2 * 100 <= 2**26


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "adam"}, "unknown kernel kind 'adam'; known: sgd, sign"),
        ({"tile": 0}, "tile must be at least 1, got 0"),
        ({"diagonal": True, "trace": False}, "exclude each other"),
        ({"rates": {"q": 1.0}}, "rates name q; the block's parameters are w1, b1, w2, b2"),
        ({"rates": {"w1": -1.0}}, "not negative, got {'w1': -1.0}; parameters: w1, b1, w2, b2"),
        ({"rates": {"w1": float("nan")}}, "must be finite"),
        ({"z": jnp.ones((2, 4))}, "z must hold at least one row of 5 numbers"),
        ({"z": jnp.ones((0, 5))}, "z must hold at least one row of 5 numbers"),
    ],
)
def test_bad_requests_say_what_is_wrong(arguments, message):
    # unwrapped from beartype, which would refuse some of these first
    call = getattr(block_kernel, "__wrapped__", block_kernel)
    with pytest.raises(InputError, match=message):
        call(dense_block(), **{"x": normal(7, 6, 5), **arguments})
