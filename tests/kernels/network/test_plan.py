"""What a network kernel remembers, holds in memory and refuses; types of parameters and examples."""

from __future__ import annotations

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.errors import InputError
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.kernels.network import network_kernel as network
from ntkfusion.kernels.network.network_kernel import network_kernel
from ntkfusion.kernels.oracles.dense_jacobian import dense_kernel
from tests.helpers.blocks import normal, relative

PARAMS = {"w": normal(0, 5, 3), "b": normal(1, 3)}
X = normal(2, 4, 5)


def dense(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def halves(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_half_precision_with_outputs_of_single(kind):
    def f(params, x):
        return dense({"w": params["w"], "b": params["b"]}, x).astype(jnp.float32) * params["scale"]

    params, x = {**halves(PARAMS), "scale": normal(3, 3)}, X.astype(jnp.bfloat16)
    ours = network_kernel(f, params, x, kind=kind)
    assert ours.dtype == jnp.float32
    with jax.numpy_dtype_promotion("standard"):
        assert relative(ours, dense_kernel(f, params, x, kind=kind, trace=False)) <= 2e-2


def test_a_plan_is_made_anew_for_other_settings():
    def f(params, x):
        return dense(params, x).astype(float)

    assert network_kernel(f, PARAMS, X).dtype == jnp.float32
    with jax.enable_x64(True):
        assert network_kernel(f, PARAMS, X).dtype == jnp.float64


def test_products_of_f_are_at_the_highest_precision(monkeypatch):
    seen, make = [], network.make_plan

    def noted(problem, *others, **options):
        seen.append(problem)
        return make(problem, *others, **options)

    monkeypatch.setattr(network, "make_plan", noted)
    network_kernel(lambda params, x: dense(params, x), PARAMS, X)
    (product,) = [eqn for eqn in seen[0].taps.closed.jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize("z", [None, X[:3]])
def test_no_more_than_the_factors_of_two_chunks_live(monkeypatch, z):
    """Those of one chunk while another's are computed: what the estimate counts."""
    living, compute = [], network._factors

    def factors(*arguments):
        assert sum(made() is not None for made in living) <= 1
        found = compute(*arguments)
        living.append(weakref.ref(jax.tree.leaves(found)[0]))
        return found

    monkeypatch.setattr(network, "_factors", factors)
    whole = dense_kernel(dense, PARAMS, X, z, trace=False)
    limit = 2 * 4 * whole.size + 900
    assert network.estimate_network_kernel(dense, PARAMS, X, z, memory_limit=limit).chunk == 1
    assert relative(network_kernel(dense, PARAMS, X, z, memory_limit=limit), whole) <= 1e-5
    assert len(living) > 6


def test_empty_parameters_and_examples_without_positions_add_nothing():
    def f(params, x):
        nothing = (x["none"] @ params["w"]).sum(0) + x["row"][:0] @ params["empty"] + params["gone"].sum()
        return dense(params, x["row"]) + nothing

    params = {**PARAMS, "empty": jnp.zeros((0, 3)), "gone": jnp.zeros((0, 2))}
    ours = network_kernel(f, params, {"row": X, "none": jnp.zeros((4, 0, 5))})
    assert relative(ours, dense_kernel(dense, PARAMS, X, trace=False)) <= 1e-6


def test_numpy_examples_have_the_types_that_jax_gives_them():
    double = np.asarray(X, np.float64)
    assert relative(network_kernel(dense, PARAMS, double, X), network_kernel(dense, PARAMS, X, X)) == 0


def test_whole_numbers_have_no_gradient():
    def f(params, x):
        return dense(params, x) * params["on"]

    params = {**PARAMS, "on": jnp.array([1, 0, 2], jnp.int32)}
    with pytest.raises(InputError, match="parameter 'on' is of type int32 and has no gradient: leave it out"):
        network_kernel(f, params, X)
    with jax.numpy_dtype_promotion("standard"):
        assert network_kernel(f, params, X, select=["w", "b"])[..., 1, 1].sum() == 0
    with pytest.raises(InputError, match=r"vector .* of floating point numbers"):
        network_kernel(lambda params, x: jnp.argsort(dense(params, x)), PARAMS, X)
    with pytest.raises(InputError, match=r"must share a first axis .* found shapes \(\)"):
        network_kernel(dense, PARAMS, [[1.0, 2.0]])
