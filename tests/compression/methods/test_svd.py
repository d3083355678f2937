"""Weighted and whitened low-rank approximations against independent float64 solutions."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from ntkfusion.compression.methods.svd import SVD, WeightedSVD, WhitenedSVD
from ntkfusion.compression.neurons import by_output, first_order, fisher
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from tests.helpers.blocks import dense_block, normal

D, M, N = 12, 40, 50
SPARSE = WeightedSVD(0.5, importance="survivors", prune="first-order")


def products(block):
    return np.asarray(block.left1 @ block.right1), np.asarray(block.left2 @ block.right2)


def only(method, block, run):
    return method.compress([block], run).blocks[0]


def positive_gradients(block, seed=0):
    """Squared gradients that differ by orders of magnitude between outputs."""
    w1, w2 = normal(seed + 1, *block.w1.shape, scale=2.0), normal(seed + 2, *block.w2.shape, scale=2.0)
    return {"w1": jnp.exp(w1 + 2 * normal(seed + 3, 1, M)), "w2": jnp.exp(w2 + 2 * normal(seed + 4, 1, D))}


def weighted_error(weights, approximation, importance):
    return float(np.sum(importance * np.sum((np.asarray(weights) - approximation) ** 2, axis=0)))


def alternating_least_squares(weights, importance, rank, steps=1000):
    """min Σ_i I_i ‖w_i − A b_i‖² by turns: given A every b_i is a least-squares fit, given B every row of A."""
    w, root = np.asarray(weights), np.sqrt(importance)
    left = np.random.default_rng(0).normal(size=(w.shape[0], rank))
    for _ in range(steps):
        right = np.linalg.lstsq(left, w, rcond=None)[0]
        left = np.linalg.lstsq((right * root).T, (w * root).T, rcond=None)[0].T
    return left @ np.linalg.lstsq(left, w, rcond=None)[0]


def gelu(h):
    return 0.5 * np.asarray(h) * (1 + erf(np.asarray(h) / np.sqrt(2)))


@pytest.mark.wide
@pytest.mark.parametrize("dead", [False, True], ids=["all count", "some of importance 0"])
def test_weighted_svd_is_the_optimum_of_alternating_least_squares(x64, dead):
    block = dense_block(D, M, D)
    gradients = positive_gradients(block)
    if dead:
        gradients = {name: scores.at[:, :5].set(0.0) for name, scores in gradients.items()}
    run = Workspace(0, squared_gradients=[gradients])
    weighted, plain = only(WeightedSVD(0.5), block, run), only(SVD(0.5), block, run)
    rank = weighted.left1.shape[1]
    pairs = zip((block.w1, block.w2), products(weighted), products(plain), ("w1", "w2"), strict=True)
    for weights, ours, svd, name in pairs:
        importance = np.asarray(by_output(gradients[name]))
        error = weighted_error(weights, ours, importance)
        reference = alternating_least_squares(weights, importance, rank)
        assert error == pytest.approx(weighted_error(weights, reference, importance), rel=1e-6)
        assert error < 0.9 * weighted_error(weights, svd, importance)
        np.testing.assert_allclose(ours[:, importance > 0], reference[:, importance > 0], atol=1e-3)
        # what costs nothing is still no worse than nothing
        dead_columns = np.asarray(weights)[:, importance == 0]
        assert np.linalg.norm(dead_columns - ours[:, importance == 0]) <= np.linalg.norm(dead_columns)


def test_equal_importance_is_the_plain_svd(x64):
    block = dense_block(D, M, D)
    ones = {"w1": jnp.full((D, M), 1e-30), "w2": jnp.full((M, D), 1e-30)}
    for gradients in (ones, {name: 0 * scores for name, scores in ones.items()}):
        run = Workspace(0, squared_gradients=[gradients])
        for ours, plain in zip(
            products(only(WeightedSVD(0.5), block, run)), products(only(SVD(0.5), block, run)), strict=True
        ):
            np.testing.assert_allclose(ours, plain, atol=1e-12)


def test_weights_are_pruned_and_then_weighed_by_what_is_left(x64):
    """Against NumPy: the mask, the number of survivors per output, and svd_k(W_s D) D⁺."""
    block, run = dense_block(D, M, D), Workspace(0, [normal(1, N, D)])
    small = only(SPARSE, block, run)
    rank = small.left1.shape[1]
    for name, ours in zip(("w1", "w2"), products(small), strict=True):
        weights, scores = np.asarray(getattr(block, name)), np.asarray(first_order(block, 0, run)[name])
        mask = scores >= np.sort(scores.ravel())[-round(0.5 * scores.size)]
        assert mask.sum() == round(0.5 * scores.size)
        root = np.sqrt(mask.sum(axis=0))
        u, s, vt = np.linalg.svd(weights * mask * root, full_matrices=False)
        inverse = np.divide(1, root, out=np.zeros_like(root), where=root > 0)
        np.testing.assert_allclose(ours, (u[:, :rank] * s[:rank]) @ vt[:rank] * inverse, atol=1e-12)


def test_dead_outputs_of_a_pruned_matrix_stay_zero(x64):
    block = dense_block(D, M, D).replace(w1=dense_block(D, M, D).w1.at[:, 3].multiply(1e-6))
    small = only(dataclasses.replace(SPARSE, prune="l1", density=0.3), block, Workspace(0))
    assert np.abs(products(small)[0][:, 3]).max() <= 1e-14
    assert jnp.all(jnp.isfinite(small.left1)) & jnp.all(jnp.isfinite(small.right1))


def test_everything_of_a_pruned_matrix_is_kept_if_the_rank_allows(x64):
    """A matrix with one row left of weight has rank 1, and so has what pruning leaves of it."""
    block = dense_block(D, M, D)
    tall = block.replace(w1=jnp.where(jnp.arange(D)[:, None] == 2, 10 * block.w1, 1e-3 * block.w1))
    small = only(dataclasses.replace(SPARSE, prune="l1", density=1 / D), tall, Workspace(0))
    expected = np.where(np.arange(D)[:, None] == 2, np.asarray(tall.w1), 0)
    np.testing.assert_allclose(products(small)[0], expected, atol=1e-10)


def test_fisher_of_the_outputs_says_nothing_about_the_outputs_of_w2():
    block, x = dense_block(D, M, D), normal(1, N, D)
    importance = by_output(fisher(block, 0, Workspace(0, [x]))["w2"])
    np.testing.assert_allclose(importance, np.full(D, importance[0]), rtol=1e-6)


@pytest.mark.parametrize("tokens", [200, 7], ids=["many tokens", "fewer tokens than dimensions"])
def test_whitened_svd_is_the_best_reduced_rank_regression(x64, tokens):
    """No matrix of rank k can do better than the best rank-k approximation of X W itself (Eckart and Young)."""
    block, x = dense_block(D, M, D), normal(1, tokens, D) * jnp.exp(normal(2, 1, D))
    run = Workspace(0, [x])
    whitened, plain = only(WhitenedSVD(0.5), block, run), only(SVD(0.5), block, run)
    rank = whitened.left1.shape[1]
    rows = (x, gelu(block.preactivation(x)))
    for row, weights, ours, svd in zip(rows, (block.w1, block.w2), products(whitened), products(plain), strict=True):
        tail = np.linalg.svd(np.asarray(row @ weights), compute_uv=False)[rank:]
        total = float(np.linalg.norm(row @ weights))
        error, reference = float(np.linalg.norm(row @ (weights - ours))), float(np.sqrt((tail**2).sum()))
        assert error == pytest.approx(reference, abs=1e-6 * total)
        assert error <= float(np.linalg.norm(row @ (weights - svd)))


def test_without_tokens_in_a_direction_whitening_is_the_plain_svd_there(x64):
    """Inputs that are all zero say nothing about W1."""
    block = dense_block(D, M, D)
    run = Workspace(0, [jnp.zeros((9, D))])
    whitened, plain = only(WhitenedSVD(0.5), block, run), only(SVD(0.5), block, run)
    np.testing.assert_allclose(products(whitened)[0], products(plain)[0], atol=1e-10)


def test_damping_tends_to_the_plain_svd(x64):
    block, run = dense_block(D, M, D), Workspace(0, [normal(1, N, D)])
    distances = [
        float(np.linalg.norm(products(only(WhitenedSVD(0.5, damping=damping), block, run))[1] - plain))
        for plain in [products(only(SVD(0.5), block, run))[1]]
        for damping in (0.0, 1.0, 1e8)
    ]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-5


@pytest.mark.parametrize("method", [WeightedSVD(0.5), SPARSE, WhitenedSVD(0.5)], ids=["fisher", "sparsity", "whitened"])
def test_splits_are_of_the_product(x64, method):
    block, run = dense_block(D, M, D), Workspace(0, [normal(1, N, D)])
    balanced, left = only(method, block, run), only(dataclasses.replace(method, split="left"), block, run)
    for one, other in zip(products(balanced), products(left), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11)
    np.testing.assert_allclose(balanced.left1.T @ balanced.left1, balanced.right1 @ balanced.right1.T, atol=1e-11)
    np.testing.assert_allclose(left.right2 @ left.right2.T, np.eye(left.right2.shape[0]), atol=1e-11)


@pytest.mark.parametrize("method", [WeightedSVD(0.5), SPARSE, WhitenedSVD(0.5)], ids=["fisher", "sparsity", "whitened"])
def test_missing_calibration_inputs_are_said(method):
    with pytest.raises(InputError, match="needs calibration inputs"):
        only(method, dense_block(D, M, D), Workspace(0))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("importance", "size", "unknown importance 'size'; known: fisher"),
        ("prune", "size", "unknown score to prune by 'size'"),
        ("importance", "survivors", "say what to prune by"),
        ("density", 0.5, "say what to prune by"),
        ("split", "right", "unknown split"),
    ],
)
def test_options_out_of_range(option, value, message):
    method = WeightedSVD(0.5)
    # set behind the back of beartype, which checks the Literal in tests only
    object.__setattr__(method, option, value)
    with pytest.raises(InputError, match=message):
        method.__post_init__()


def test_densities_out_of_range():
    for density in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="above 0 and at most 1; got"):
            WeightedSVD(0.5, prune="l1", density=density)


def test_damping_out_of_range():
    for damping in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="damping must be"):
            WhitenedSVD(0.5, damping=damping)
