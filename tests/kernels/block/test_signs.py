"""The sign kernel with signs of computed gradients: what an optimiser in that precision does, underflow included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkfusion as nf
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel, estimate_block_kernel
from ntkfusion.kernels.oracles.dense_jacobian import block_function, jacobian
from tests.helpers.blocks import dense_block, factorized_block, gated_block, masked_block, mixture_block, normal
from tests.helpers.tiers import wide_unless


def far_out(block, names, factor):
    """The block with input weights so large that most neurons are in the tails, where σ' underflows in float32."""
    return block.replace(**{name: factor * getattr(block, name) for name in names})


BLOCKS = {
    "dense": lambda: far_out(dense_block(constants=True), ["w1"], 8),
    "masked": lambda: far_out(masked_block(), ["w1"], 8),
    "factorized": lambda: far_out(factorized_block(), ["right1"], 8),
    "gated": lambda: far_out(gated_block(), ["gate"], 40),
    "mixture": lambda: mixture_block(
        activation="gelu",
        train_router=False,
        # 9: no signal lies at the edge, where its product with an input underflows and it does not
        expert=lambda *sizes, **options: far_out(dense_block(*sizes, **options), ["w1"], 9),
    ),
}
OUTPUTS = {"traced": {}, "diagonal": {"diagonal": True}, "full": {"trace": False}}


def expected(block, x, z, outputs):
    """⟨∇f(x), sgn ∇f(z)⟩ by automatic differentiation in float32, contracted in float64."""
    f, params = block_function(block)
    left, right = (jax.tree.map(lambda g: np.asarray(g, np.float64), jacobian(f, params, side)) for side in (x, z))
    subscripts = {"traced": "nop,mop->nm", "diagonal": "nop,mop->nmo", "full": "nop,mqp->nmoq"}[outputs]
    kernels = {name: np.einsum(subscripts, left[name], np.sign(right[name])) for name in left}
    return {name: one / (block.output_width if outputs == "traced" else 1) for name, one in kernels.items()}


def flat(parts):
    """Expert parameters under the names that the kernel gives them."""
    return {name.removeprefix("experts/"): part for name, part in parts.items()}


@pytest.mark.parametrize("outputs", wide_unless(lambda outputs: outputs != "diagonal", OUTPUTS))
@pytest.mark.parametrize("name", wide_unless(lambda name: name in ("dense", "gated"), BLOCKS))
def test_float_signs_are_those_of_computed_gradients(name, outputs):
    block, x, z = BLOCKS[name](), normal(7, 4, 5), normal(8, 3, 5)
    options = {"kind": "sign", "by_parameter": True, **OUTPUTS[outputs]}
    found = block_kernel(block, x, z, signs="float", **options)
    truth = expected(block, x, z, outputs)
    assert truth.keys() == found.keys()
    for key, kernel in truth.items():
        np.testing.assert_allclose(found[key], kernel, rtol=2e-5, atol=2e-5 * np.abs(kernel).max(), err_msg=key)
    exact = block_kernel(block, x, z, **options)
    assert any(not np.allclose(exact[key], part, rtol=1e-3) for key, part in found.items())


def test_a_product_that_underflows_moves_nothing():
    """σ' and the output weight are both there in float32, what comes back to the neuron is not."""
    block = dense_block().replace(w1=jnp.zeros((5, 7)), b1=jnp.full(7, -7.0))
    block = block.replace(w2=jnp.abs(block.w2).at[:, 1].set(1e-36))
    x, z = jnp.ones((2, 5)), jnp.ones((1, 5))
    parts = [
        block_kernel(block, x, z, kind="sign", signs=signs, diagonal=True, by_parameter=True)["b1"]
        for signs in ("exact", "float")
    ]
    slopes = jax.vmap(jax.jacrev(lambda b: block.replace(b1=b)(z[0])))(block.b1[None])[0]
    assert bool(jnp.all(slopes[1] == 0))
    assert bool(jnp.all(slopes[0] < 0))
    full = [
        block_kernel(block, x, z, kind="sign", signs=signs, trace=False, by_parameter=True)["b1"]
        for signs in ("exact", "float")
    ]
    assert bool(jnp.all(full[0][..., 0, 1] != 0))
    assert bool(jnp.all(full[1][..., 0, 1] == 0))
    np.testing.assert_allclose(parts[0][..., 0], parts[1][..., 0], rtol=1e-5)


def test_a_router_that_is_sure_does_not_move_in_float32():
    block = mixture_block(experts=2)
    block = block.replace(router=block.router * 1e3)
    x = normal(7, 3, 5)
    exact, computed = (
        block_kernel(block, x, kind="sign", signs=signs, by_parameter=True)["router"] for signs in ("exact", "float")
    )
    np.testing.assert_array_equal(computed, 0 * exact)


def test_signs_make_no_difference_where_nothing_underflows(x64):
    block, x = dense_block(), normal(7, 3, 5)
    kernels = [block_kernel(block, x, kind="sign", signs=signs) for signs in ("exact", "float")]
    np.testing.assert_allclose(*kernels, rtol=1e-12)
    for kind in ("sgd", "sign"):
        assert estimate_block_kernel(block, 3, kind=kind, signs="float").result > 0
    np.testing.assert_array_equal(block_kernel(block, x, signs="float"), block_kernel(block, x))


def unchecked(function):
    """Without the hook that checks types in tests and would answer first."""
    return getattr(function, "__wrapped__", function)


def test_signs_that_a_kernel_does_not_have_are_refused():
    block, x = dense_block(), normal(7, 3, 5)
    with pytest.raises(InputError, match="unknown signs 'mathematical'; known: exact, float"):
        unchecked(block_kernel)(block, x, signs="mathematical")
    sequences = (block, x[None], jnp.ones((1, 3, 1, 3)))
    for kernel in (nf.kernels.sequence_kernel, nf.kernels.estimate_sequence_kernel):
        with pytest.raises(InputError, match=r"a sum over positions has only the sign .* take signs='float'"):
            kernel(*sequences, kind="sign", signs="exact")
    f = lambda params, x: x @ params  # noqa: E731
    for kernel in (nf.network_kernel, nf.estimate_network_kernel):
        with pytest.raises(InputError, match="take signs='float'"):
            kernel(f, jnp.ones((5, 2)), x, kind="sign", signs="exact")


@pytest.mark.wide
def test_a_network_s_kernel_has_float_signs():
    """One block as a network: what goes in and what comes back, as computed."""
    block, x = BLOCKS["dense"](), normal(7, 4, 5)
    f, params = block_function(block)
    network = nf.network_kernel(f, params, x, kind="sign", signs="float")
    np.testing.assert_allclose(block_kernel(block, x, kind="sign", signs="float", trace=False), network, rtol=1e-4)
