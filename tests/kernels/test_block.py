"""Every closed form against the dense Jacobian, in float64 and float32, and what a kernel must do by definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from blocks import dense_block, factorized_block, normal, relative
from hypothesis import given, settings
from hypothesis import strategies as st

from ntkfusion.errors import InputError
from ntkfusion.kernels.block import KINDS, block_kernel, default_tile
from ntkfusion.kernels.oracle import block_function, dense_kernel
from ntkfusion.models.activations import ACTIVATIONS

BLOCKS = {
    "dense": lambda activation: dense_block(activation=activation),
    "dense with q and r": lambda activation: dense_block(activation=activation, constants=True),
    "dense without biases": lambda activation: dense_block(activation=activation, biases=False),
    "factorized": lambda activation: factorized_block(activation=activation),
    "factorized without biases": lambda activation: factorized_block(activation=activation, biases=False),
}


def compare_with_oracle(block, x, z, kind, trace, tolerance, **options):
    f, params = block_function(block)
    ours = block_kernel(block, x, z, kind=kind, trace=trace, by_parameter=True, **options)
    oracle = dense_kernel(f, params, x, z, kind=kind, trace=trace, by_parameter=True)
    assert ours.keys() == oracle.keys()
    for name in oracle:
        assert ours[name].shape == oracle[name].shape
        assert relative(ours[name], oracle[name]) <= tolerance, name
    whole = block_kernel(block, x, z, kind=kind, trace=trace, **options)
    assert relative(whole, sum(oracle.values())) <= tolerance


@pytest.mark.parametrize("trace", [True, False], ids=["traced", "full"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind_of_block", BLOCKS)
def test_closed_form_equals_dense_jacobian_in_float64(x64, kind_of_block, activation, kind, trace):
    block = BLOCKS[kind_of_block](activation)
    compare_with_oracle(block, normal(7, 6, 5), normal(8, 4, 5), kind, trace, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kind_of_block", BLOCKS)
def test_float32_agrees_with_the_float64_oracle(kind_of_block, kind):
    with jax.enable_x64(True):
        block, x, z = BLOCKS[kind_of_block]("gelu"), normal(7, 6, 5), normal(8, 4, 5)
        f, params = block_function(block)
        oracle = dense_kernel(f, params, x, z, kind=kind)
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), block)
    ours = block_kernel(single, x.astype(jnp.float32), z.astype(jnp.float32), kind=kind)
    assert ours.dtype == jnp.float32
    assert relative(ours.astype(jnp.float64) if jax.config.jax_enable_x64 else ours, oracle.astype(jnp.float32)) <= 2e-5


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(*[st.sampled_from([1, 2, 5])] * 5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    kind=st.sampled_from(KINDS),
    constants=st.booleans(),
    biases=st.booleans(),
    trace=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_closed_form_equals_dense_jacobian_for_any_shape(sizes, activation, kind, constants, biases, trace, seed):
    d, m, o, n, k = sizes
    with jax.enable_x64(True):
        block = dense_block(d, m, o, activation=activation, constants=constants, biases=biases, seed=seed)
        f, params = block_function(block)
        x, z = normal(seed + 7, n, d), normal(seed + 8, k, d)
        ours = block_kernel(block, x, z, kind=kind, trace=trace)
        oracle = dense_kernel(f, params, x, z, kind=kind, trace=trace)
        # terms of a sign kernel may cancel: measured on the scale of what is added up
        scale = jnp.max(jnp.abs(block_kernel(block, x, kind="sgd"))) + jnp.max(jnp.abs(oracle)) + 1
        assert jnp.max(jnp.abs(ours - oracle)) <= 1e-12 * scale


@pytest.mark.parametrize("trace", [True, False], ids=["traced", "full"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [dense_block, factorized_block])
def test_tiles_change_nothing_but_rounding(x64, make, kind, trace):
    block, x, z = make(), normal(7, 11, 5), normal(8, 5, 5)
    whole = block_kernel(block, x, z, kind=kind, trace=trace)
    for tile in (1, 2, 3, 5, 10):
        assert relative(block_kernel(block, x, z, kind=kind, trace=trace, tile=tile), whole) <= 1e-13


@pytest.mark.parametrize("make", [dense_block, factorized_block])
def test_trace_is_the_mean_of_the_diagonal_of_the_full_kernel(x64, make):
    block, x = make(), normal(7, 6, 5)
    for kind in KINDS:
        full = block_kernel(block, x, kind=kind, trace=False)
        assert relative(jnp.trace(full, axis1=2, axis2=3) / 3, block_kernel(block, x, kind=kind)) <= 1e-13


def test_sgd_kernel_is_symmetric_and_positive(x64):
    kernel = block_kernel(dense_block(), normal(7, 20, 5))
    assert relative(kernel, kernel.T) <= 1e-14
    assert jnp.linalg.eigvalsh(kernel)[0] >= -1e-12 * jnp.max(kernel)


def test_sign_kernel_is_not_symmetric(x64):
    kernel = block_kernel(dense_block(), normal(7, 6, 5), kind="sign")
    assert relative(kernel, kernel.T) > 0.01


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_float32_keeps_signs_in_the_tail_where_autodiff_loses_them(activation):
    """A hidden value of −6: σ < 0 and σ' < 0, so every neuron adds |a| and |g|, not 0 (methods.md §1.9.7)."""
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
        patch.setattr("ntkfusion.kernels.dense.traced_parts", None)
        second = block_kernel(dense_block(seed=3), normal(9, 6, 5))
    assert relative(second, first) > 0


def test_default_tile_shrinks_for_full_kernels():
    block = dense_block(4, 64, 48)
    assert default_tile(block, trace=True) == 1024
    assert default_tile(block, trace=False) ** 2 * 48**2 <= 2**26


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "adam"}, "unknown kernel kind 'adam'; known: sgd, sign"),
        ({"tile": 0}, "tile must be at least 1, got 0"),
        ({"z": jnp.ones((2, 4))}, "z must hold at least one row of 5 numbers"),
        ({"z": jnp.ones((0, 5))}, "z must hold at least one row of 5 numbers"),
    ],
)
def test_bad_requests_say_what_is_wrong(arguments, message):
    # unwrapped from beartype, which would refuse some of these first
    call = getattr(block_kernel, "__wrapped__", block_kernel)
    with pytest.raises(InputError, match=message):
        call(dense_block(), **{"x": normal(7, 6, 5), **arguments})
