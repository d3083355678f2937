"""Kernel-matched constants against explicit features, other solvers and cases with a known answer."""

from __future__ import annotations

import itertools
from itertools import product

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import lsq_linear, minimize

from ntkfusion.compression.matching.constants import (
    match_both,
    match_constants,
    nonnegative_least_squares,
    trade_off,
    with_constants,
)
from ntkfusion.compression.matching.neuron_kernels import SCALED, neuron_kernels, normal_equations
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.distance.kernel_distance import relative_error
from tests.helpers.blocks import (
    dense_block,
    duplicated_block,
    factorized_block,
    gated_block,
    masked_block,
    normal,
    relative,
)
from tests.helpers.tiers import wide_unless

KINDS = ("sgd", "sign")
BLOCKS = {
    "dense": lambda: dense_block(5, 6, 5, seed=3),
    "dense without biases, relu": lambda: dense_block(5, 6, 5, seed=3, biases=False, activation="relu"),
    "factorized": lambda: factorized_block(5, 6, 5, seed=3),
    "masked": lambda: masked_block(5, 6, 5, seed=3),
    "masked without biases, silu": lambda: masked_block(5, 6, 5, seed=3, biases=False, activation="silu"),
}


def original_block():
    return dense_block(5, 14, 5, seed=8)


def explicit_features(block, x, kind):
    """The kernels of every neuron's output weights and input weights, one column each: all other constants are 0."""
    c, columns = block.hidden_width, []
    fixed = sum(
        np.asarray(part)
        for name, part in block_kernel(block, x, kind=kind, by_parameter=True).items()
        if name not in SCALED[type(block)]
    )
    for side in ("output", "input"):
        for j in range(c):
            one = jnp.zeros(c).at[j].set(1.0)
            factors = neuron_kernels(block, x, kind)
            kernel = factors.kernel(one, 0 * one) if side == "output" else factors.kernel(0 * one, one)
            columns.append(np.asarray(kernel - factors.fixed).ravel())
    return np.stack(columns, axis=1), fixed


@pytest.mark.parametrize(
    ("name", "kind"),
    wide_unless(lambda name, kind: name == next(iter(BLOCKS)), product(BLOCKS, KINDS)),
)
def test_neuron_kernels_add_up_to_the_blocks_kernel_for_any_constants(x64, name, kind):
    block, x = BLOCKS[name](), normal(1, 9, 5)
    q, r = jnp.exp(normal(2, 6)), jnp.exp(normal(3, 6))
    power = 2 if kind == "sgd" else 1
    expected = block_kernel(with_constants(block, q, r), x, kind=kind)
    assert relative(neuron_kernels(block, x, kind).kernel(q**power, r**power), expected) <= 1e-12


@pytest.mark.parametrize(
    ("name", "kind"),
    wide_unless(lambda name, kind: name == next(iter(BLOCKS)), product(BLOCKS, KINDS)),
)
def test_normal_equations_equal_those_of_explicit_features(x64, name, kind):
    block, x = BLOCKS[name](), normal(1, 9, 5)
    reference = block_kernel(original_block(), x, kind=kind)
    problem = normal_equations(block, reference, x, kind)
    features, fixed = explicit_features(block, x, kind)
    rest, norm = (np.asarray(reference) - fixed).ravel(), float(np.sum(np.asarray(reference) ** 2))
    np.testing.assert_allclose(problem.matrix, features.T @ features / norm, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(problem.target, features.T @ rest / norm, rtol=1e-10, atol=1e-14)
    solution = np.abs(np.asarray(normal(4, 12)))
    error = np.linalg.norm(features @ solution - rest) / np.sqrt(norm)
    assert problem.error(solution) == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_constants_are_the_optimum_that_another_solver_finds(x64, kind):
    block, x = BLOCKS["dense"](), normal(1, 9, 5)
    reference = block_kernel(original_block(), x, kind=kind)
    features, fixed = explicit_features(block, x, kind)
    rest = (np.asarray(reference) - fixed).ravel()
    theirs = lsq_linear(features, rest, bounds=(0, np.inf), tol=1e-14, max_iter=1000)
    matched = match_constants(block, original_block(), x, target=kind)
    best = np.linalg.norm(theirs.fun) / np.linalg.norm(reference)
    assert matched.errors[kind] == pytest.approx(best, rel=1e-3)
    assert relative_error(block_kernel(matched.block, x, kind=kind), reference) == pytest.approx(best, rel=1e-3)


@pytest.mark.wide
@pytest.mark.parametrize("name", BLOCKS)
def test_the_function_stays_and_the_kernel_comes_closer(x64, name):
    block, x, original = BLOCKS[name](), normal(1, 9, 5), original_block()
    for kind in KINDS:
        reference = block_kernel(original, x, kind=kind)
        matched = match_constants(block, original, x, target=kind).block
        assert relative(matched(x), block(x)) <= 1e-12
        before = relative_error(block_kernel(block, x, kind=kind), reference)
        assert relative_error(block_kernel(matched, x, kind=kind), reference) < before


@pytest.mark.wide
@pytest.mark.parametrize("kind", KINDS)
def test_coinciding_neurons_are_matched_exactly(x64, kind):
    """Theorem 1 says which constants these are: V1's for the sign kernel, V4's for the SGD kernel."""
    original, x = duplicated_block(sizes=(3, 2, 2, 1)), normal(1, 12, 5)
    fused = MLPFusion(0.5, variant="v2").compress([original], Workspace(0)).blocks[0]
    matched = match_constants(fused, original, x, target=kind)
    assert matched.errors[kind] < 1e-4
    sizes = MLPFusion(0.5, variant="v1").compress([original], Workspace(0)).blocks[0].q
    expected = sizes if kind == "sign" else jnp.sqrt(sizes)
    np.testing.assert_allclose(matched.block.q, expected, rtol=1e-3)


def test_trade_off_runs_from_one_kernel_to_the_other(x64):
    block, x, original = BLOCKS["dense"](), normal(1, 9, 5), original_block()
    shares = (1.0, 0.9, 0.5, 0.1, 0.0)
    curve = [matched.errors for matched in match_both(block, original, x, sgd_shares=shares)]
    one = match_constants(block, original, x, target="both", sgd_share=0.5).errors
    assert one == pytest.approx(curve[2], rel=1e-3)
    sgd, sign = ([errors[kind] for errors in curve] for kind in KINDS)
    assert sgd[0] == pytest.approx(match_constants(block, original, x).errors["sgd"], rel=1e-3)
    assert sign[-1] == pytest.approx(match_constants(block, original, x, target="sign").errors["sign"], rel=1e-3)
    assert all(earlier <= later + 1e-6 for earlier, later in itertools.pairwise(sgd))
    assert all(earlier >= later - 1e-6 for earlier, later in itertools.pairwise(sign))


def test_trade_off_is_a_minimum_that_a_general_solver_cannot_improve(x64):
    block, x, original = BLOCKS["dense"](), normal(1, 9, 5), original_block()
    problems = [normal_equations(block, block_kernel(original, x, kind=kind), x, kind) for kind in KINDS]

    def objective(c):
        return 0.5 * problems[0].error(c * c) ** 2 + 0.5 * problems[1].error(c) ** 2

    (ours,) = trade_off(*problems, [0.5])
    theirs = minimize(objective, ours, method="L-BFGS-B", bounds=[(0, None)] * 12, options={"maxiter": 200})
    assert objective(ours) <= theirs.fun * 1.01


def test_unknowns_without_features_get_nothing():
    matrix = np.diag([2.0, 0.0, 1.0])
    solution = nonnegative_least_squares(matrix, np.array([4.0, 0.0, -1.0]))
    np.testing.assert_allclose(solution, [2.0, 0.0, 0.0], rtol=1e-6)


def test_singular_equations_have_a_finite_solution():
    matrix = np.ones((3, 3))
    solution = nonnegative_least_squares(matrix, np.ones(3))
    assert solution.sum() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    ("block", "options", "message"),
    [
        (gated_block(5, 6, 5), {}, "masked and factorised blocks; got a GatedBlock"),
        (dense_block(5, 6, 5), {"target": "both", "sgd_share": 2.0}, "from 0 to 1; got 2.0"),
    ],
)
def test_bad_requests(block, options, message):
    with pytest.raises(InputError, match=message):
        match_constants(block, original_block(), normal(1, 4, 5), **options)


def test_inputs_that_are_not_finite_are_called_so():
    block = dense_block(5, 6, 5)
    with pytest.raises(InputError, match="kernel is not finite on the calibration inputs"):
        match_constants(block, block, jnp.full((3, 5), jnp.nan))


def test_inputs_that_reach_nothing():
    silent = dense_block(5, 6, 5, biases=False, activation="relu")
    with pytest.raises(InputError, match="kernel is 0 on the calibration inputs"):
        match_constants(silent, silent, jnp.zeros((3, 5)))
