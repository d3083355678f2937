"""Uses of parameters are found inside calls too: else a large gradient would be built, unnoticed but for memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from ntkfusion.kernels.network.network_kernel import network_kernel
from ntkfusion.kernels.network.taps import Dense, Lookup, find_taps
from ntkfusion.kernels.oracles.dense_jacobian import dense_kernel
from tests.helpers.blocks import normal, relative

CALLS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "named call": jax.named_call,
    "jit in checkpoint in jit": lambda f: jax.jit(jax.checkpoint(jax.jit(f))),
}


def network(call):
    """A table, a scale and a matrix, used inside a call."""
    inner = call(lambda table, scale, w, ids: jnp.tanh((table[ids] * scale[None]) @ w))
    return lambda params, ids: inner(params["table"], params["scale"], params["w"], ids).sum(0)


def parameters():
    return {"table": normal(0, 5, 4), "scale": normal(1, 4), "w": normal(2, 4, 3)}


@pytest.mark.parametrize("call", CALLS)
def test_uses_inside_calls_are_found(call):
    params = parameters()
    f = network(CALLS[call])
    taps = find_taps(
        lambda values, ids: f(dict(zip(params, values, strict=True)), ids),
        list(params.values()),
        jnp.array([1, 4]),
        frozenset(range(3)),
    )
    assert [[type(use) for _, use in taps.of(leaf)] for leaf in range(3)] == [[Lookup], [], [Dense]]
    assert taps.direct == {1}


@pytest.mark.parametrize("call", CALLS)
def test_kernels_of_calls(x64, call):
    f, params, x = network(CALLS[call]), parameters(), jnp.array([[1, 4], [0, 0], [4, 1]])
    assert relative(network_kernel(f, params, x), dense_kernel(f, params, x, trace=False)) <= 1e-12


def wrapped(rule):
    """The square under a derivative rule of its own, three times the true one; constants of JAX must arrive."""
    if rule == "jvp":
        square = jax.custom_jvp(lambda y: y**2 + jnp.arange(y.shape[0]).astype(y.dtype))
        square.defjvp(lambda primals, tangents: (square(*primals), 6 * primals[0] * tangents[0]))
        return square
    square = jax.custom_vjp(lambda y: y**2)
    square.defvjp(lambda y: (y**2, y), lambda y, cotangent: (6 * y * cotangent,))
    return square


@pytest.mark.parametrize("rule", ["jvp", "vjp"])
def test_derivative_rules_of_functions_are_kept(x64, rule):
    square = wrapped(rule)

    def f(params, x):
        return square(x @ params["w"])

    params, x = {"w": normal(0, 4, 3)}, normal(1, 5, 4)
    expected = dense_kernel(lambda params, x: 3 * (x @ params["w"]) ** 2, params, x, trace=False)
    assert relative(network_kernel(f, params, x), expected) <= 1e-12
