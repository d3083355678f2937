"""The two forms of a k-means problem agree with each other and with plain distances."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.clustering import problem as direct_form
from ntkfusion.clustering.k_means import kmeans
from ntkfusion.clustering.lloyd import describe, nearest
from ntkfusion.clustering.problem import block_size, direct_problem, gram_bytes, gram_problem, lowest_of_rows
from tests.helpers.blocks import normal

WEIGHTS, COLUMNS = np.array([1.0, 0.5, 2.0] * 10), np.array([1.0, 3.0, 0.5, 0.1])


def forms(points):
    metric = jnp.asarray(WEIGHTS), jnp.asarray(COLUMNS)
    return [
        gram_problem(points, *metric),
        direct_problem(points, *metric, block=7),  # 30 points fill five blocks but for 5 places
    ]


def test_both_forms_have_the_distances_of_the_points(x64):
    points, labels = 3 * normal(0, 30, 4), jnp.arange(30, dtype=jnp.int32) % 5
    means = np.stack([np.average(points[labels == j], axis=0, weights=WEIGHTS[labels == j]) for j in range(5)])
    direct = np.sum(COLUMNS * (np.asarray(points)[:, None] - means[None]) ** 2, axis=2)
    for problem in forms(points):
        padded = jnp.pad(labels, (0, problem.norms.shape[0] - 30))
        sums = problem.sums(padded, 5)
        clusters, own = describe(problem, padded, sums, 5)
        distances, index = nearest(problem, sums, clusters)
        unit = float(problem.unit) / float(WEIGHTS.max())
        np.testing.assert_allclose(unit * own[:30], direct[np.arange(30), labels], rtol=1e-12)
        np.testing.assert_allclose(unit * distances[:30], direct.min(axis=1), rtol=1e-12)
        np.testing.assert_array_equal(index[:30], direct.argmin(axis=1))


def test_sums_follow_the_points(x64):
    points = normal(0, 30, 4)
    old = jnp.arange(30, dtype=jnp.int32) % 5
    for problem in forms(points):
        count = problem.norms.shape[0]
        before = jnp.pad(old, (0, count - 30))
        for moved in (3, 25):  # one by one, and anew
            after = before.at[:moved].set((before[:moved] + 1) % 5)
            sums = problem.relabel(problem.sums(before, 5), before, after)
            np.testing.assert_allclose(sums, problem.sums(after, 5), atol=1e-12)
        for point in (0, 7):
            column = problem.column(sums, jnp.array(point))
            np.testing.assert_allclose(column, _inner(problem, after, point), atol=1e-12)
        np.testing.assert_allclose(
            problem.own(sums, after), [_inner(problem, after, i)[after[i]] for i in range(count)], atol=1e-12
        )


def _inner(problem, labels, point):
    """⟨Σ_{i∈C_j} w_i θ_i, θ_point⟩ for every cluster j."""
    weighted = np.asarray(problem.points * problem.weights[:, None])
    sums = np.stack([weighted[np.asarray(labels) == j].sum(axis=0) for j in range(5)])
    return sums @ np.asarray(problem.points[point])


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_problems_that_do_not_fit_are_solved_directly_with_the_same_result(x64, monkeypatch, weighted):
    monkeypatch.setattr(direct_form, "BLOCK_NUMBERS", 200)
    points = normal(0, 90, 4)
    weights = jnp.exp(normal(1, 90)).at[:5].set(0) if weighted else None
    options = {"weights": weights, "column_weights": jnp.asarray(COLUMNS)}
    gram = kmeans(points, 12, 3, **options)
    assert block_size(90, 12) == 16  # 90 points in six blocks, the last one not full
    direct = kmeans(points, 12, 3, memory_limit="1KiB", **options)
    np.testing.assert_array_equal(gram.labels, direct.labels)
    np.testing.assert_allclose(gram.restart_inertias, direct.restart_inertias, rtol=1e-12)
    np.testing.assert_array_equal(gram.restart_iterations, direct.restart_iterations)


def test_the_gram_form_is_chosen_by_its_size():
    assert gram_bytes(1536, 769, 384, 4, 2) < 2**26
    assert gram_bytes(100_000, 10, 100, 4, 2) > 100_000**2 * 4


def test_lowest_of_rows_is_the_first_of_equals():
    rows = normal(0, 6, 20).at[4].set(normal(0, 6, 20)[2])
    lowest, index = lowest_of_rows(rows, lambda cluster, row, columns: row, ())
    np.testing.assert_array_equal(index, np.argmin(rows, axis=0))
    np.testing.assert_array_equal(lowest, np.min(rows, axis=0))
