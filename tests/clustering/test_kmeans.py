"""k-means: hand-computed cases, degenerate cases, and scikit-learn on real blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blocks import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from ntkfusion.clustering.kmeans import _distances_to_clusters, _fill_empty, kmeans
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.errors import InputError

FOUR = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [1.0, 1.0]])


def check_consistent(points, result, num_clusters):
    """Labels, counts, centroids and inertia say the same."""
    labels, points = np.asarray(result.labels), np.asarray(points)
    assert labels.shape == (len(points),)
    np.testing.assert_array_equal(np.bincount(labels, minlength=num_clusters), result.counts)
    assert int(result.counts.min()) >= 1
    means = np.stack([points[labels == j].mean(axis=0) for j in range(num_clusters)])
    np.testing.assert_allclose(result.centroids, means, atol=1e-5)
    assert float(result.inertia) == pytest.approx(((points - means[labels]) ** 2).sum(), rel=1e-4, abs=1e-5)


def test_four_points_two_clusters():
    result = kmeans(FOUR, 2)
    assert result.labels[0] == result.labels[1] != result.labels[2] == result.labels[3]
    assert sorted(result.centroids.tolist()) == [[0.25, 0.0], [0.75, 1.0]]
    assert float(result.inertia) == pytest.approx(0.25)
    assert result.counts.tolist() == [2, 2]


def test_four_points_three_clusters():
    result = kmeans(FOUR, 3)
    assert float(result.inertia) == pytest.approx(0.125)
    check_consistent(FOUR, result, 3)


def test_one_cluster_is_the_mean():
    points = normal(0, 20, 3)
    result = kmeans(points, 1)
    np.testing.assert_allclose(result.centroids[0], points.mean(axis=0), atol=1e-6)
    assert result.labels.tolist() == [0] * 20


def test_as_many_clusters_as_points_is_exact():
    points = normal(0, 20, 3)
    result = kmeans(points, 20)
    np.testing.assert_array_equal(result.centroids[result.labels], points)
    assert float(result.inertia) == 0


def test_duplicated_points_get_one_cluster_each():
    centres = normal(0, 6, 4)
    labels = jnp.array([0, 1, 2, 3, 4, 5, 0, 0, 1, 2, 3])
    result = kmeans(centres[labels], 6)
    assert adjusted_rand_score(labels, result.labels) == 1
    assert float(result.inertia) < 1e-10


def test_more_clusters_than_distinct_points_leaves_none_empty():
    points = jnp.concatenate([jnp.zeros((5, 2)), jnp.ones((5, 2))])
    result = kmeans(points, 4)
    check_consistent(points, result, 4)
    assert float(result.inertia) < 1e-12


def test_empty_clusters_take_the_farthest_points():
    labels = jnp.array([0, 0, 0, 1], jnp.int32)
    filled = _fill_empty(labels, jnp.array([1.0, 5.0, 3.0, 9.0]), 4)
    # the point at distance 9 is alone in its cluster and stays
    assert filled.tolist() == [0, 2, 3, 1]


def test_gram_space_distances_equal_direct_ones():
    points = normal(0, 30, 5)
    labels = jnp.arange(30) % 4
    gram = points @ points.T
    direct = jnp.stack([jnp.sum((points - points[labels == j].mean(axis=0)[None]) ** 2, axis=1) for j in range(4)])
    ours = _distances_to_clusters(gram, labels.astype(jnp.int32), 4) + jnp.diag(gram)[None]
    np.testing.assert_allclose(ours, direct, atol=1e-4)


def test_same_seed_same_result_and_keys_are_accepted():
    points = normal(0, 60, 4)
    first, again, keyed = (
        kmeans(points, 7, seed=3),
        kmeans(points, 7, seed=3),
        kmeans(points, 7, seed=jax.random.key(3)),
    )
    for other in (again, keyed):
        np.testing.assert_array_equal(first.labels, other.labels)
        assert first.inertia == other.inertia


def test_more_restarts_are_never_worse():
    points = normal(0, 80, 6)
    inertias = [float(kmeans(points, 9, num_restarts=restarts).inertia) for restarts in (1, 8, 32)]
    # restarts draw other seeds when there are more of them, so the tendency is what can be asked for
    assert inertias[2] <= inertias[0]


def test_far_from_the_origin_float32_still_clusters():
    points = normal(0, 40, 3) + 1000.0
    ours = kmeans(points, 5)
    theirs = KMeans(5, n_init=10, random_state=0).fit(np.asarray(points, np.float64))
    assert float(ours.inertia) <= 1.02 * theirs.inertia_
    check_consistent(points, ours, 5)


@pytest.mark.parametrize("scale", [1e-20, 1e19])
def test_scales_at_the_ends_of_float32_change_nothing(scale):
    points = normal(0, 60, 3)
    np.testing.assert_array_equal(kmeans(points * scale, 5).labels, kmeans(points, 5).labels)


def test_fewer_distinct_points_than_clusters_still_ends_early():
    points = jnp.tile(normal(0, 50, 4), (10, 1))
    result = kmeans(points, 100)
    check_consistent(points, result, 100)
    assert int(result.num_iterations) < 50


def test_float64(x64):
    points = normal(0, 40, 3)
    result = kmeans(points, 5)
    assert result.centroids.dtype == jnp.float64
    check_consistent(points, result, 5)


@settings(max_examples=25, deadline=None)
@given(
    num_points=st.sampled_from([2, 17]),
    dimension=st.sampled_from([1, 3]),
    share=st.sampled_from([0.0, 0.4, 1.0]),  # each number of clusters is a compilation
    distinct=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_result_is_consistent_and_a_fixed_point(num_points, dimension, share, distinct, seed):
    points = normal(seed, num_points, dimension)
    points = points if distinct else jnp.round(points)
    num_clusters = max(1, round(share * num_points))
    result = kmeans(points, num_clusters, num_restarts=3, seed=seed)
    check_consistent(points, result, num_clusters)
    squared = np.sum((np.asarray(points)[:, None] - np.asarray(result.centroids)[None]) ** 2, axis=2)
    own = squared[np.arange(num_points), np.asarray(result.labels)]
    assert np.all(own <= squared.min(axis=1) + 1e-4)


@pytest.mark.parametrize("layer", [0, 5])
def test_reaches_the_inertia_of_scikit_learn_on_a_real_block(minilm, layer):
    points = neuron_vectors(minilm.mlp_blocks()[layer])
    ours = kmeans(points, 384, num_restarts=3)
    theirs = KMeans(384, n_init=3, random_state=0).fit(np.asarray(points))
    assert float(ours.inertia) <= 1.005 * theirs.inertia_


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FOUR, 0), "from 1 to the number of points, 4; got 0"),
        ((FOUR, 5), "from 1 to the number of points, 4; got 5"),
        ((FOUR, 2, 0), "at least 1; got 0"),
        ((FOUR.at[0, 0].set(jnp.nan), 2), "not finite"),
    ],
)
def test_bad_requests_say_what_is_wrong(arguments, message):
    with pytest.raises(InputError, match=message):
        kmeans(*arguments)
