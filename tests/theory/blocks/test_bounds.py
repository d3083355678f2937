"""Every bound against measured outputs, Jacobians and kernels; and every term of every bound, by leaving it out."""

from __future__ import annotations

import itertools
from functools import partial

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
from ntkfusion.theory.blocks import sgd_bounds, sign_bounds
from ntkfusion.theory.blocks.evaluation import constants_of, evaluate_unchecked, traced_weights
from ntkfusion.theory.blocks.output_bounds import OUTPUT_TERMS, output_bound_of, per_output_bound
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.blocks.sgd_bounds import SGD_TERMS, frobenius_bound, sgd_bound_of
from ntkfusion.theory.blocks.sign_bounds import SIGN_TERMS, sign_bound_of
from ntkfusion.theory.blocks.signal_bounds import SIGNAL_TERMS, signal_allowance, signal_bound_of
from ntkfusion.verification.bounds import FAST, switchboard
from tests.helpers.bound_cases import CENTRES, CONSTANTS, SHAPES, ZEROS, BlockPair, PairRecipe, build_pair
from tests.helpers.tiers import wide_unless

recipes = st.builds(
    PairRecipe,
    w=st.floats(-3, 3),
    v=st.floats(-3, 3),
    x=st.floats(-3, 3),
    spread=st.one_of(st.none(), st.floats(-8, 1)),
    centres=st.sampled_from(CENTRES),
    constants=st.sampled_from(CONSTANTS),
    zeros=st.sampled_from(ZEROS),
    seed=st.integers(0, 2**32 - 1),
    original=st.sampled_from(["none", "any"]),
)


def kernel_error(original: nf.MLPBlock, fused: nf.MLPBlock, x: jax.Array, z: jax.Array, kind, outputs) -> jax.Array:
    """K − K̃ by the closed forms behind `block_kernel`, without its checks of values."""
    pairs = (x.shape[0], z.shape[0])
    totals = [sum(evaluate_terms(terms(b, x, z, kind), outputs, pairs).values()) for b in (original, fused)]
    return jnp.abs(totals[0] - totals[1])


def norm_of(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Euclidean norms whose squares do not leave float64."""
    largest = jnp.max(jnp.abs(array), axis=axes, keepdims=True)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return jnp.sqrt(jnp.sum((array / scale) ** 2, axis=axes)) * jnp.squeeze(scale, axes)


def measured_and_bounds(
    original: nf.MLPBlock, fused: nf.MLPBlock, pair: FusedPair, x: jax.Array, z: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """By name, what is measured and what bounds it."""
    left, right, constants = evaluate_unchecked(pair, x), evaluate_unchecked(pair, z), constants_of(original, fused)
    gap = original(x) - fused(x)
    found = {f"output {f}": (norm_of(gap, (1,)), output_bound_of(pair, left, OUTPUT_TERMS, f)) for f in OUTPUT_FORMS}
    found["output each"] = (jnp.abs(gap), output_bound_of(pair, left, OUTPUT_TERMS, "tight", True))
    traced = kernel_error(original, fused, x, z, "sgd", "trace")
    found |= {
        f"sgd {form}": (traced, sgd_bound_of(pair, left, right, constants, SGD_TERMS, form)) for form in SGD_FORMS
    }
    each = kernel_error(original, fused, x, z, "sgd", "diagonal")
    found["sgd each"] = (each, sgd_bound_of(pair, left, right, constants, SGD_TERMS, "tight", True))
    full = norm_of(kernel_error(original, fused, x, z, "sgd", "full"), (2, 3))
    found["sgd Frobenius"] = (full, frobenius_bound(pair, left, right, constants))
    signed = kernel_error(original, fused, x, z, "sign", "trace")
    found["sign"] = (signed, sign_bound_of(pair, left, right, constants, SIGN_TERMS))
    each = kernel_error(original, fused, x, z, "sign", "diagonal")
    found["sign each"] = (each, sign_bound_of(pair, left, right, constants, SIGN_TERMS, True))
    jacobian = jax.vmap(jax.jacrev(lambda x: original(x) - fused(x)))(x)
    found["signal"] = (norm_of(jacobian, (1, 2)), signal_bound_of(pair, left, SIGNAL_TERMS))
    return found


OUTPUT_FORMS, SGD_FORMS = ("tight", "norm", "generic", "weights"), ("tight", "first", "second", "cheap", "weights")
# small arrays: compiling is what takes time
program = jax.jit(measured_and_bounds, compiler_options=FAST)


def assert_no_violation(case: BlockPair) -> None:
    pair = pair_blocks(case.original, case.fused, case.labels)
    for name, (measured, bound) in program(case.original, case.fused, pair, case.x, case.z).items():
        assert bool(jnp.all(measured <= bound)), (name, measured, bound)


#: What the wide tier compiles; the slow one takes all.
DEFAULTS = (("one token", "relu"), ("small", "gelu"))
FLAT = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.mark.wide
@pytest.mark.parametrize(("shape", "activation"), DEFAULTS)
def test_no_bound_is_violated(x64, shape, activation):
    @settings(max_examples=50, derandomize=True, **FLAT)
    @given(recipe=recipes)
    def check(recipe):
        assert_no_violation(build_pair(SHAPES[shape], activation, recipe))

    # Hypothesis traces what it runs, which would make compiling several times slower
    assert_no_violation(build_pair(SHAPES[shape], activation, plain(0)))
    check()


@pytest.mark.slow
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("shape", list(SHAPES))
def test_no_bound_is_violated_in_ten_thousand_cases(x64, shape, activation):
    @settings(max_examples=500, **FLAT)
    @given(recipe=recipes)
    def check(recipe):
        assert_no_violation(build_pair(SHAPES[shape], activation, recipe))

    check()


def plain(seed: int, **changes) -> PairRecipe:
    known = {"w": 0.0, "v": 0.0, "x": 0.0, "spread": -1.0, "centres": "mean", "constants": "v4", "zeros": ""}
    return PairRecipe(**(known | changes), seed=seed)


@pytest.mark.parametrize("activation", wide_unless(lambda name: name == "gelu", ["relu", "gelu"]))
def test_kernel_bounds_hold_for_an_original_that_has_constants(x64, activation):
    """They were those of its folded self, whose kernels are others: with q = 3 and r = 1/2 all pairs exceeded them."""
    case = build_pair(SHAPES["small"], activation, plain(0, spread=None))
    three, half = (jnp.full(6, constant, jnp.float64) for constant in (3.0, 0.5))
    original = case.original.replace(
        w1=2 * case.original.w1, b1=2 * case.original.b1, w2=case.original.w2 / 3, q=three, r=half
    )
    pair = pair_blocks(original, case.fused, case.labels)
    found = program(original, case.fused, pair, case.x, case.z)
    for name, (measured, bound) in found.items():
        assert bool(jnp.all(measured <= bound)), name
    for name in ("sgd tight", "sgd each", "sign", "sign each"):
        measured, bound = found[name]
        # an input that moves no ReLU has no kernel
        there = measured > 0 if activation == "relu" else jnp.ones_like(measured, bool)
        assert bool(jnp.any(there))
        assert float(jnp.min(measured[there])) > 0.01
        # neurons coincide, so that nothing is left but the known difference: the bound is the error
        np.testing.assert_allclose(bound[there], measured[there], rtol=1e-6)


SCALES = (-300, -110, -55, 0, 55, 110, 300)


@pytest.mark.parametrize("activation", wide_unless(lambda name: name == "gelu", ACTIVATIONS))
def test_bounds_of_extreme_weights_are_valid_or_infinite(x64, activation):
    """NaN compares with nothing, and a term that underflows on its way is missing: tanh GELU of 1e110 had the first."""
    for w, v, x in itertools.product(SCALES, repeat=3):
        case = build_pair(SHAPES["small"], activation, plain(1, w=float(w), v=float(v), x=float(min(x, 150))))
        pair = pair_blocks(case.original, case.fused, case.labels)
        found = jax.tree.map(np.asarray, program(case.original, case.fused, pair, case.x, case.z))
        for name, (measured, bound) in found.items():
            assert not np.isnan(bound).any(), (name, w, v, x)
            assert np.all((measured <= bound) | (bound == np.inf)), (name, w, v, x, measured, bound)
            assert np.isfinite(bound).all() or max(abs(w), abs(v), abs(x)) > 50, (name, w, v, x)


@pytest.mark.slow  # tests/kernels compares the same closed forms with the oracle
@pytest.mark.parametrize("kind", ["sgd", "sign"])
def test_measured_kernels_are_those_of_the_oracle(x64, kind):
    """What the other tests call measured, against block_kernel and against dense Jacobians."""
    case = build_pair(SHAPES["small"], "gelu", plain(0))
    block, silent = case.fused, case.fused.replace(w2=0 * case.fused.w2, q=0 * case.fused.q)
    # without activations and output weights only the 1 of b2 is left
    found = kernel_error(block, silent, case.x, case.z, kind, "trace")
    whole = nf.block_kernel(block, case.x, case.z, kind=kind)
    dense = nf.kernels.dense_kernel(lambda p, x: block.replace(**p)(x), block.parameters(), case.x, case.z, kind=kind)
    np.testing.assert_allclose(found, jnp.abs(whole - 1), rtol=1e-10)
    np.testing.assert_allclose(dense, whole, rtol=1e-9)


USER_FUNCTIONS = {
    "output tight": lambda old, new, x, z, labels: nf.theory.output_bound(old, new, x, labels),
    "output each": lambda old, new, x, z, labels: nf.theory.output_bound(old, new, x, labels, per_output=True),
    "output weights": lambda old, new, x, z, labels: nf.theory.output_bound(old, new, x, labels, form="weights"),
    "sgd tight": nf.theory.sgd_kernel_bound,
    "sgd each": lambda *case: nf.theory.sgd_kernel_bound(*case, diagonal=True),
    "sgd cheap": lambda *case: nf.theory.sgd_kernel_bound(*case, form="cheap"),
    "sgd Frobenius": lambda *case: nf.theory.sgd_kernel_bound(*case, trace=False),
    "sign": nf.theory.sign_kernel_bound,
    "sign each": lambda *case: nf.theory.sign_kernel_bound(*case, diagonal=True),
    "signal": lambda old, new, x, z, labels: nf.theory.signal_bound(old, new, x, labels),
}


@pytest.mark.slow  # the doctests and the tests of mixtures go through user functions as well
def test_user_functions_are_the_bounds_that_were_checked(x64):
    case = build_pair(SHAPES["small"], "gelu", plain(0))
    pair = pair_blocks(case.original, case.fused, case.labels)
    found = program(case.original, case.fused, pair, case.x, case.z)
    for name, bound in USER_FUNCTIONS.items():
        result = bound(case.original, case.fused, case.x, case.z, case.labels)
        np.testing.assert_allclose(result, found[name][1], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "sign"])
def test_blocks_may_train_different_constants_and_biases(x64, kind):
    """Absent constants are 1, and an output bias that only one block has is part of the difference."""
    case = build_pair(SHAPES["small"], "silu", plain(0, constants="none"))
    bound = nf.theory.sgd_kernel_bound if kind == "sgd" else nf.theory.sign_kernel_bound
    for old, new in ((case.original.replace(b2=None), case.fused), (case.original, case.fused.replace(b2=None))):
        bare = new.replace(q=None, r=None)
        error = jnp.abs(nf.block_kernel(old, case.x, kind=kind) - nf.block_kernel(bare, case.x, kind=kind))
        found = bound(old, bare, case.x, None, case.labels)
        assert bool(jnp.all(error <= found))
        np.testing.assert_array_equal(found, bound(old, new, case.x, None, case.labels))


def test_small_residuals_have_small_bounds(x64):
    """Bounds could hold because they are huge: residuals of 1e-3 must give at most ten times the measured error."""
    case = build_pair(SHAPES["small"], "gelu", plain(1, spread=-3.0))
    pair = pair_blocks(case.original, case.fused, case.labels)
    found = program(case.original, case.fused, pair, case.x, case.z)
    for name in ("output tight", "output norm", "sgd tight", "sgd second", "sgd cheap", "sgd Frobenius", "signal"):
        measured, bound = found[name]
        assert float(jnp.linalg.norm(bound)) < 10 * float(jnp.linalg.norm(measured)), name


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def error_of(family: str, original: nf.MLPBlock, fused: nf.MLPBlock, x: jax.Array, z: jax.Array) -> jax.Array:
    """What a family of bounds is about, per output or traced."""
    if family == "output":
        return jnp.abs(original(x) - fused(x))
    if family == "signal":
        jacobian = jax.vmap(jax.jacrev(lambda x: original(x) - fused(x)))(x)
        return jnp.linalg.norm(jacobian, axis=(1, 2))
    return kernel_error(original, fused, x, z, family, "trace")


def output_of_terms(supremum, terms, pair, constants, x, z):
    return per_output_bound(pair, evaluate_unchecked(pair, x, supremum), terms)


def signal_of_terms(supremum, terms, pair, constants, x, z):
    side = evaluate_unchecked(pair, x, supremum)
    return signal_bound_of(pair, side, terms) - signal_allowance(pair, side)


def sgd_of_terms(supremum, terms, pair, constants, x, z):
    left, right = (evaluate_unchecked(pair, inputs, supremum) for inputs in (x, z))
    return sgd_bounds.smaller_bound(pair, left, right, traced_weights(pair, constants, "sgd"), terms)


def sign_of_terms(supremum, terms, pair, constants, x, z):
    left, right = (evaluate_unchecked(pair, inputs, supremum) for inputs in (x, z))
    return sign_bounds.smaller_bound(pair, left, right, traced_weights(pair, constants, "sign"), terms)


#: The bounds without rounding, and their terms.
FAMILIES = {
    "output": (output_of_terms, OUTPUT_TERMS),
    "sgd": (sgd_of_terms, SGD_TERMS),
    "sign": (sign_of_terms, SIGN_TERMS),
    "signal": (signal_of_terms, SIGNAL_TERMS),
}
#: Compiled once for a family, whatever its terms are multiplied with.
SWITCHED = {family: switchboard(bound, terms, terms._fields) for family, (bound, terms) in FAMILIES.items()}

MUTATIONS = [
    ("output", "linear_part", {}),
    ("output", "remainder_part", {"spread": -0.5}),
    ("output", "surplus", {"centres": "near"}),
    ("sgd", "value_exact", {"constants": "v1", "v": -3.0}),
    ("sgd", "value_mixed", {"v": -3.0}),
    ("sgd", "value_products", {"v": -3.0}),
    ("sgd", "slope_exact", {"constants": "v1"}),
    ("sgd", "slope_mixed", {"v": 1.0}),
    ("sgd", "slope_products", {"v": 1.0, "w": 1.0, "spread": 0.0}),
    ("sign", "value_exact", {"constants": "v4", "v": -3.0}),
    ("sign", "value_rest", {"constants": "v1", "v": -3.0}),
    ("sign", "value_flips", {"constants": "v1", "v": -3.0}),
    ("sign", "slope_exact", {"constants": "v4"}),
    ("sign", "slope_rest", {"constants": "v1", "v": 1.0}),
    ("sign", "slope_flips", {"constants": "v1", "v": 1.0}),
    ("signal", "slope_part", {}),
    ("signal", "spread_part", {"w": -3.0}),
]


def exceeds(family: str, case: BlockPair, factors: np.ndarray) -> bool:
    """Whether an error is above its bound, whose terms are multiplied with factors, by more than rounding."""
    pair, constants = pair_blocks(case.original, case.fused, case.labels), constants_of(case.original, case.fused)
    bound = SWITCHED[family](jnp.asarray(factors), pair, constants, case.x, case.z)
    return bool(jnp.any(error_of(family, case.original, case.fused, case.x, case.z) > bound * (1 + 1e-9) + 1e-12))


def test_every_term_is_left_out_once():
    assert {(family, term) for family, term, _ in MUTATIONS} == {
        (family, term) for family, (_, terms) in FAMILIES.items() for term in terms._fields
    }


@pytest.mark.parametrize(
    ("family", "term", "changes"),
    wide_unless(lambda family, term, changes: family in ("output", "signal"), MUTATIONS),
)
def test_without_a_term_the_bound_is_violated(x64, family, term, changes):
    cases = [build_pair(SHAPES["small"], "silu", plain(seed, **changes)) for seed in range(30)]
    names = FAMILIES[family][1]._fields
    assert not any(exceeds(family, case, np.ones(len(names))) for case in cases[:3])
    without = np.array([float(name != term) for name in names])
    assert any(exceeds(family, case, without) for case in cases)


def test_wrong_requests_are_refused(x64):
    case = build_pair(SHAPES["small"], "relu", plain(0))
    both = (case.original, case.fused, case.x)
    # the hook that checks types in tests answers before the code does
    with pytest.raises((nf.InputError, TypeCheckError), match="form"):
        nf.theory.output_bound(*both, form="loose")
    with pytest.raises((nf.InputError, TypeCheckError), match="form"):
        nf.theory.sgd_kernel_bound(*both, form="loose")
    with pytest.raises(nf.InputError, match="per_output"):
        nf.theory.output_bound(*both, form="norm", per_output=True)
    with pytest.raises(nf.InputError, match="exclude each other"):
        nf.theory.sgd_kernel_bound(*both, diagonal=True, trace=False)
    with pytest.raises(nf.InputError, match="take 'tight'"):
        nf.theory.sgd_kernel_bound(*both, form="first", trace=False)
