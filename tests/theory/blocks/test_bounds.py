"""Every bound against measured outputs, Jacobians and kernels; and every term of every bound, by leaving it out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import ntkfusion as nf
from ntkfusion.kernels.block.dense import terms
from ntkfusion.kernels.block.terms import evaluate as evaluate_terms
from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.theory.blocks import output_bounds, sgd_bounds, sign_bounds, signal_bounds
from ntkfusion.theory.blocks import sgd_bounds as sgd_terms
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked
from ntkfusion.theory.blocks.kernel_weights import constants_of, traced_weights
from ntkfusion.theory.blocks.output_bounds import output_bound_of
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.blocks.sgd_bounds import frobenius_bound, sgd_bound_of
from ntkfusion.theory.blocks.sign_bounds import sign_bound_of
from ntkfusion.theory.blocks.signal_bounds import signal_bound_of
from tests.helpers.bound_cases import CENTRES, CONSTANTS, SHAPES, ZEROS, Case, Recipe, build

recipes = st.builds(
    Recipe,
    w=st.floats(-3, 3),
    v=st.floats(-3, 3),
    x=st.floats(-3, 3),
    spread=st.one_of(st.none(), st.floats(-8, 1)),
    centres=st.sampled_from(CENTRES),
    constants=st.sampled_from(CONSTANTS),
    zeros=st.sampled_from(ZEROS),
    seed=st.integers(0, 2**32 - 1),
)


def kernel_error(original: nf.MLPBlock, fused: nf.MLPBlock, x: jax.Array, z: jax.Array, kind, outputs) -> jax.Array:
    """K − K̃ by the closed forms behind `block_kernel`, without its checks of values."""
    pairs = (x.shape[0], z.shape[0])
    totals = [sum(evaluate_terms(terms(b, x, z, kind), outputs, pairs).values()) for b in (original, fused)]
    return jnp.abs(totals[0] - totals[1])


def measured_and_bounds(
    original: nf.MLPBlock, fused: nf.MLPBlock, pair: FusedPair, x: jax.Array, z: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By name, what is measured and what bounds it."""
    left, right, fixed = evaluate_unchecked(pair, x), evaluate_unchecked(pair, z), constants_of(original, fused)
    gap = original(x) - fused(x)
    found = {f"output {f}": (jnp.linalg.norm(gap, axis=1), output_bound_of(pair, left, f)) for f in OUTPUT_FORMS}
    found["output each"] = (jnp.abs(gap), output_bound_of(pair, left, "tight", True))
    traced = kernel_error(original, fused, x, z, "sgd", "trace")
    found |= {f"sgd {form}": (traced, sgd_bound_of(pair, left, right, fixed, form)) for form in SGD_FORMS}
    each = kernel_error(original, fused, x, z, "sgd", "diagonal")
    found["sgd each"] = (each, sgd_bound_of(pair, left, right, fixed, "tight", True))
    full = jnp.linalg.norm(kernel_error(original, fused, x, z, "sgd", "full"), axis=(2, 3))
    found["sgd Frobenius"] = (full, frobenius_bound(pair, left, right, fixed))
    signed = kernel_error(original, fused, x, z, "sign", "trace")
    found["sign"] = (signed, sign_bound_of(pair, left, right, fixed))
    each = kernel_error(original, fused, x, z, "sign", "diagonal")
    found["sign each"] = (each, sign_bound_of(pair, left, right, fixed, True))
    jacobian = jax.vmap(jax.jacrev(lambda x: original(x) - fused(x)))(x)
    found["signal"] = (jnp.linalg.norm(jacobian, axis=(1, 2)), signal_bound_of(pair, left))
    return found


OUTPUT_FORMS, SGD_FORMS = ("tight", "norm", "generic", "weights"), ("tight", "first", "second", "cheap", "weights")
# small arrays: compiling is what takes time
program = jax.jit(measured_and_bounds, compiler_options={"xla_backend_optimization_level": 0})


def assert_no_violation(case: Case) -> None:
    pair = pair_blocks(case.original, case.fused, case.labels)
    for name, (measured, bound) in program(case.original, case.fused, pair, case.x, case.z).items():
        assert bool(jnp.all(measured <= bound)), (name, measured, bound)


#: What the default run compiles; the slow one takes all.
DEFAULTS = (("one token", "relu"), ("small", "gelu"))
FLAT = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.parametrize(("shape", "activation"), DEFAULTS)
def test_no_bound_is_violated(x64, shape, activation):
    @settings(max_examples=50, derandomize=True, **FLAT)
    @given(recipe=recipes)
    def check(recipe):
        assert_no_violation(build(SHAPES[shape], activation, recipe))

    # Hypothesis traces what it runs, which would make compiling several times slower
    assert_no_violation(build(SHAPES[shape], activation, plain(0)))
    check()


@pytest.mark.slow
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_no_bound_is_violated_in_ten_thousand_cases(x64, shape, activation):
    @settings(max_examples=500, **FLAT)
    @given(recipe=recipes)
    def check(recipe):
        assert_no_violation(build(SHAPES[shape], activation, recipe))

    check()


def plain(seed: int, **changes) -> Recipe:
    known = {"w": 0.0, "v": 0.0, "x": 0.0, "spread": -1.0, "centres": "mean", "constants": "v4", "zeros": ""}
    return Recipe(**(known | changes), seed=seed)


@pytest.mark.slow  # tests/kernels compares the same closed forms with the oracle
@pytest.mark.parametrize("kind", ["sgd", "sign"])
def test_measured_kernels_are_those_of_the_oracle(x64, kind):
    """What the other tests call measured, against block_kernel and against dense Jacobians."""
    case = build(SHAPES["small"], "gelu", plain(0))
    block, silent = case.fused, case.fused.replace(w2=0 * case.fused.w2, q=0 * case.fused.q)
    # without activations and output weights only the 1 of b2 is left
    found = kernel_error(block, silent, case.x, case.z, kind, "trace")
    whole = nf.block_kernel(block, case.x, case.z, kind=kind)
    dense = nf.dense_kernel(lambda p, x: block.replace(**p)(x), block.parameters(), case.x, case.z, kind=kind)
    np.testing.assert_allclose(found, jnp.abs(whole - 1), rtol=1e-10)
    np.testing.assert_allclose(dense, whole, rtol=1e-9)


USER_FUNCTIONS = {
    "output tight": lambda old, new, x, z, labels: nf.output_bound(old, new, x, labels),
    "output each": lambda old, new, x, z, labels: nf.output_bound(old, new, x, labels, per_output=True),
    "output weights": lambda old, new, x, z, labels: nf.output_bound(old, new, x, labels, form="weights"),
    "sgd tight": nf.sgd_kernel_bound,
    "sgd each": lambda *case: nf.sgd_kernel_bound(*case, diagonal=True),
    "sgd cheap": lambda *case: nf.sgd_kernel_bound(*case, form="cheap"),
    "sgd Frobenius": lambda *case: nf.sgd_kernel_bound(*case, trace=False),
    "sign": nf.sign_kernel_bound,
    "sign each": lambda *case: nf.sign_kernel_bound(*case, diagonal=True),
    "signal": lambda old, new, x, z, labels: nf.signal_bound(old, new, x, labels),
}


@pytest.mark.slow  # the doctests and the tests of mixtures go through user functions as well
def test_user_functions_are_the_bounds_that_were_checked(x64):
    case = build(SHAPES["small"], "gelu", plain(0))
    pair = pair_blocks(case.original, case.fused, case.labels)
    found = program(case.original, case.fused, pair, case.x, case.z)
    for name, bound in USER_FUNCTIONS.items():
        result = bound(case.original, case.fused, case.x, case.z, case.labels)
        np.testing.assert_allclose(result, found[name][1], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "sign"])
def test_blocks_may_train_different_constants_and_biases(x64, kind):
    """Absent constants are 1, and an output bias that only one block has is part of the difference."""
    case = build(SHAPES["small"], "silu", plain(0, constants="none"))
    bound = nf.sgd_kernel_bound if kind == "sgd" else nf.sign_kernel_bound
    for old, new in ((case.original.replace(b2=None), case.fused), (case.original, case.fused.replace(b2=None))):
        bare = new.replace(q=None, r=None)
        error = jnp.abs(nf.block_kernel(old, case.x, kind=kind) - nf.block_kernel(bare, case.x, kind=kind))
        found = bound(old, bare, case.x, None, case.labels)
        assert bool(jnp.all(error <= found))
        np.testing.assert_array_equal(found, bound(old, new, case.x, None, case.labels))


def test_small_residuals_have_small_bounds(x64):
    """Bounds could hold because they are huge: residuals of 1e-3 must give at most ten times the measured error."""
    case = build(SHAPES["small"], "gelu", plain(1, spread=-3.0))
    pair = pair_blocks(case.original, case.fused, case.labels)
    found = program(case.original, case.fused, pair, case.x, case.z)
    for name in ("output tight", "output norm", "sgd tight", "sgd second", "sgd cheap", "sgd Frobenius", "signal"):
        measured, bound = found[name]
        assert float(jnp.linalg.norm(bound)) < 10 * float(jnp.linalg.norm(measured)), name


def bound_of(family: str, case: Case) -> tuple[jax.Array, jax.Array]:
    """The error and its bound, evaluated step by step so that a term can be exchanged."""
    original, fused, x, z = case.original, case.fused, case.x, case.z
    pair = pair_blocks(original, fused, case.labels)
    left, right = evaluate_unchecked(pair, x), evaluate_unchecked(pair, z)
    if family == "output":
        return jnp.abs(original(x) - fused(x)), output_bounds.per_output_bound(pair, left)
    if family == "signal":
        jacobian = jax.vmap(jax.jacrev(lambda x: original(x) - fused(x)))(x)
        whole = signal_bounds.slope_part(pair, left) + signal_bounds.spread_part(pair, left)
        return jnp.linalg.norm(jacobian, axis=(1, 2)), whole
    kind, module = ("sgd", sgd_bounds) if family == "sgd" else ("sign", sign_bounds)
    weights = traced_weights(pair, constants_of(original, fused), kind)
    return kernel_error(original, fused, x, z, kind, "trace"), module.smaller_bound(pair, left, right, weights)


MUTATIONS = [
    ("output", output_bounds, "linear_part", {}),
    ("output", output_bounds, "remainder_part", {"spread": -0.5}),
    ("output", output_bounds, "surplus", {"centres": "near"}),
    ("sgd", sgd_terms, "value_exact", {"constants": "v1", "v": -3.0}),
    ("sgd", sgd_terms, "value_mixed", {"v": -3.0}),
    ("sgd", sgd_terms, "value_products", {"v": -3.0}),
    ("sgd", sgd_terms, "slope_exact", {"constants": "v1"}),
    ("sgd", sgd_terms, "slope_mixed", {"v": 1.0}),
    ("sgd", sgd_terms, "slope_products", {"v": 1.0, "w": 1.0, "spread": 0.0}),
    ("sign", sign_bounds, "value_exact", {"constants": "v4", "v": -3.0}),
    ("sign", sign_bounds, "value_rest", {"constants": "v1", "v": -3.0}),
    ("sign", sign_bounds, "value_flips", {"constants": "v1", "v": -3.0}),
    ("sign", sign_bounds, "slope_exact", {"constants": "v4"}),
    ("sign", sign_bounds, "slope_rest", {"constants": "v1", "v": 1.0}),
    ("sign", sign_bounds, "slope_flips", {"constants": "v1", "v": 1.0}),
    ("signal", signal_bounds, "slope_part", {}),
    ("signal", signal_bounds, "spread_part", {"w": -3.0}),
]


@pytest.mark.parametrize(("family", "module", "term", "changes"), MUTATIONS)
def test_without_a_term_the_bound_is_violated(x64, monkeypatch, family, module, term, changes):
    cases = [build(SHAPES["small"], "silu", plain(seed, **changes)) for seed in range(30)]
    complete = [bound_of(family, case) for case in cases[:3]]
    assert all(bool(jnp.all(error <= bound * (1 + 1e-9) + 1e-12)) for error, bound in complete)
    true = getattr(module, term)
    monkeypatch.setattr(module, term, lambda *args: 0 * true(*args))
    assert any(
        bool(jnp.any(error > bound * (1 + 1e-9) + 1e-12)) for error, bound in map(bound_of, [family] * 30, cases)
    )


def test_wrong_requests_are_refused(x64):
    case = build(SHAPES["small"], "relu", plain(0))
    both = (case.original, case.fused, case.x)
    # the hook that checks types in tests answers before the code does
    with pytest.raises((nf.InputError, TypeCheckError), match="form"):
        nf.output_bound(*both, form="loose")
    with pytest.raises((nf.InputError, TypeCheckError), match="form"):
        nf.sgd_kernel_bound(*both, form="loose")
    with pytest.raises(nf.InputError, match="per_output"):
        nf.output_bound(*both, form="norm", per_output=True)
    with pytest.raises(nf.InputError, match="exclude each other"):
        nf.sgd_kernel_bound(*both, diagonal=True, trace=False)
    with pytest.raises(nf.InputError, match="take 'tight'"):
        nf.sgd_kernel_bound(*both, form="first", trace=False)
