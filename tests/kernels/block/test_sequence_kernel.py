"""Kernels of readouts of whole sequences against the Jacobian of the readout."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.block import sequence_kernel as sequence_program
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.block.sequence_kernel import estimate_sequence_kernel, sequence_kernel
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.kernels.oracles.dense_jacobian import block_function, dense_kernel, jacobian
from tests.helpers.blocks import dense_block, factorized_block, gated_block, mixture_block, normal, relative
from tests.helpers.tiers import wide_unless

BLOCKS = {
    "dense": dense_block,
    "dense with q and r": lambda: dense_block(constants=True),
    "dense without biases": lambda: dense_block(biases=False),
    "factorized": factorized_block,
    "gated": gated_block,
}


def readout(block):
    """F_c = Σ_t γ_tc·y_t of an example (tokens, cotangents)."""
    f, params = block_function(block)
    return lambda p, example: jnp.einsum("tco,to->c", example[1], f(p, example[0])), params


def sequences(seed, n, tokens, readouts=2):
    return normal(seed, n, tokens, 5), normal(seed + 1, n, tokens, readouts, 3)


@pytest.mark.parametrize("name", wide_unless(lambda name: name in ("dense", "factorized"), BLOCKS))
def test_equals_the_jacobian_of_the_readout(x64, name, monkeypatch):
    monkeypatch.setattr(sequence_program, "CHUNK", 150)  # several chunks of several rows
    block = BLOCKS[name]()
    (x, gamma), (z, gamma_z) = sequences(1, 3, 4), sequences(3, 2, 5)
    function, params = readout(block)
    left, right = (jax.jit(partial(jacobian, function))(params, pair) for pair in ((x, gamma), (z, gamma_z)))

    @jax.jit  # one compilation for both
    def everything(block, *batches):
        return {kind: sequence_kernel(block, *batches, kind=kind, by_parameter=True) for kind in KINDS}

    for kind, ours in everything(block, x, gamma, z, gamma_z).items():
        assert ours.keys() == params.keys()
        for parameter in params:
            h = jnp.sign(right[parameter]) if kind == "sign" else right[parameter]
            oracle = jnp.einsum("ncp,mdp->nmcd", left[parameter], h)
            assert relative(ours[parameter], oracle) <= 1e-12, (kind, parameter)


@pytest.mark.parametrize("chunk", [1, 150])
def test_through_tokens_equals_through_gradients(x64, monkeypatch, chunk):
    monkeypatch.setattr(sequence_program, "CHUNK", chunk)
    left = normal(1, 3, 4, 6), normal(2, 3, 4, 2, 3)
    right = normal(3, 2, 5, 6), normal(4, 2, 5, 1, 3)
    by_tokens = sequence_program._through_tokens(*left, *right)
    assert by_tokens.shape == (3, 2, 2, 1)
    assert relative(by_tokens, sequence_program._rows(*left, *right, "sgd")) <= 1e-13
    g, h = (jnp.einsum("ntp,ntcq->ncpq", *side) for side in (left, right))
    assert relative(by_tokens, jnp.einsum("ncpq,mdpq->nmcd", g, h)) <= 1e-13


def test_both_ways_are_taken_within_one_kernel(x64):
    """Two tokens each: Gram matrices of tokens for the weights, sums for the biases."""
    block, (x, gamma) = dense_block(m=40), sequences(1, 3, 2, readouts=1)
    factors = sequence_program.gradient_factors(block, x, gamma)
    assert sequence_program.tokens_are_cheaper(*factors["w1"], *factors["w1"])
    function, params = readout(block)
    oracle = jax.jit(partial(dense_kernel, function, trace=False))(params, (x, gamma))
    assert relative(sequence_kernel(block, x, gamma), oracle) <= 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_padding_adds_nothing_and_z_is_x_by_default(x64, kind):
    block, (x, gamma) = dense_block(), sequences(1, 3, 4)
    whole = sequence_kernel(block, x, gamma, kind=kind)
    padded = jnp.pad(x, ((0, 0), (0, 2), (0, 0)), constant_values=3.0)
    again = sequence_kernel(block, padded, jnp.pad(gamma, ((0, 0), (0, 2), (0, 0), (0, 0))), x, gamma, kind=kind)
    assert whole.shape == (3, 3, 2, 2)
    assert relative(again, whole) <= 1e-13


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_and_unit_cotangents_are_the_full_block_kernel(x64, kind):
    block, x = gated_block(), normal(7, 4, 5)
    gamma = jnp.broadcast_to(jnp.eye(3)[None, None], (4, 1, 3, 3))
    full = block_kernel(block, x, kind=kind, trace=False)
    assert relative(sequence_kernel(block, x[:, None], gamma, kind=kind), full) <= 1e-13


def test_float32_agrees_with_float64():
    with jax.enable_x64(True):
        block, (x, gamma) = dense_block(), sequences(1, 3, 4)
        function, params = readout(block)
        oracle = {
            kind: jax.jit(partial(dense_kernel, function, kind=kind, trace=False))(params, (x, gamma)) for kind in KINDS
        }
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (block, x, gamma))
    for kind in KINDS:
        ours = sequence_kernel(*single, kind=kind)
        assert ours.dtype == jnp.float32
        assert relative(ours, oracle[kind].astype(jnp.float32)) <= 2e-5


def test_the_cheaper_way_is_taken():
    u, w = jnp.zeros((8, 4, 768)), jnp.zeros((8, 4, 1, 3072))
    assert sequence_program.tokens_are_cheaper(u, w, u, w)
    u, w = jnp.zeros((8, 512, 8)), jnp.zeros((8, 512, 1, 8))
    assert not sequence_program.tokens_are_cheaper(u, w, u, w)


@pytest.mark.parametrize(
    ("block", "arguments", "message"),
    [
        (mixture_block(), {}, "sequence kernels exist for MLPBlock, FactorizedBlock, GatedBlock; got a MixtureBlock"),
        (dense_block(), {"kind": "adam"}, "unknown kernel kind"),
        (dense_block(), {"z": jnp.ones((1, 2, 5))}, "belong together"),
        (dense_block(), {"x": jnp.ones((3, 4, 6))}, r"x must be \[sequences, tokens, 5\], got shape \(3, 4, 6\)"),
        (dense_block(), {"cotangents": jnp.ones((3, 2, 1, 3))}, r"cotangents must be \[3, 4, 'readouts', 3\]"),
    ],
)
def test_bad_requests_say_what_is_wrong(block, arguments, message):
    call = getattr(sequence_kernel, "__wrapped__", sequence_kernel)
    with pytest.raises(InputError, match=message):
        call(block, **{"x": jnp.ones((3, 4, 5)), "cotangents": jnp.ones((3, 4, 1, 3)), **arguments})


@pytest.mark.wide
@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_limit_changes_nothing_but_the_chunks(x64, kind):
    block, (x, gamma), (z, gamma_z) = dense_block(), sequences(1, 7, 4), sequences(3, 2, 5)
    for others in ((), (z, gamma_z)):
        free = estimate_sequence_kernel(block, x, gamma, *others, kind=kind)
        limit = int(0.7 * free.peak)
        tight = estimate_sequence_kernel(block, x, gamma, *others, kind=kind, memory_limit=limit)
        assert tight.chunk < 7 == free.chunk
        assert tight.peak <= limit < free.peak
        assert free.result == sequence_kernel(block, x, gamma, *others, kind=kind).nbytes
        expected = sequence_kernel(block, x, gamma, *others, kind=kind, by_parameter=True)
        found = sequence_kernel(block, x, gamma, *others, kind=kind, by_parameter=True, memory_limit=limit)
        assert all(relative(found[name], expected[name]) <= 1e-13 for name in expected)
    with pytest.raises(InputError, match="not even one of the sequences fits: raise memory_limit"):
        sequence_kernel(block, x, gamma, memory_limit=10)
    with pytest.raises(InputError, match="ask for 1 sequences or fewer, or raise memory_limit"):
        sequence_kernel(block, x, gamma, memory_limit=300)
