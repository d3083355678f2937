"""k-means: hand-computed cases, degenerate cases, and scikit-learn on real blocks."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from ntkfusion.clustering.k_means import kmeans, kmeans_batch
from ntkfusion.clustering.lloyd import fill_empty
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.errors import InputError
from tests.helpers.blocks import normal

FOUR = jnp.array([[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [1.0, 1.0]])


def check_consistent(points, result, num_clusters):
    """Labels, counts, centroids and inertia say the same."""
    labels, points = np.asarray(result.labels), np.asarray(points, np.float64)
    assert labels.shape == (len(points),)
    np.testing.assert_array_equal(np.bincount(labels, minlength=num_clusters), result.counts)
    assert int(result.counts.min()) >= 1
    means = np.stack([points[labels == j].mean(axis=0) for j in range(num_clusters)])
    np.testing.assert_allclose(result.centroids, means, atol=1e-5)
    assert float(result.inertia) == pytest.approx(((points - means[labels]) ** 2).sum(), rel=1e-4, abs=1e-5)


def inertia(points, labels, weights):
    """Σ w ‖θ − c‖² by NumPy in float64."""
    points, labels, weights = np.asarray(points, float), np.asarray(labels), np.asarray(weights, float)
    total = 0.0
    for cluster in np.unique(labels):
        inside = labels == cluster
        mean = np.average(points[inside], axis=0, weights=weights[inside])
        total += (weights[inside, None] * (points[inside] - mean) ** 2).sum()
    return total


def test_four_points_two_clusters():
    result = kmeans(FOUR, 2)
    assert result.labels[0] == result.labels[1] != result.labels[2] == result.labels[3]
    assert sorted(result.centroids.tolist()) == [[0.25, 0.0], [0.75, 1.0]]
    assert float(result.inertia) == pytest.approx(0.25)
    assert result.counts.tolist() == [2, 2]


@pytest.mark.slow
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
    filled = fill_empty(labels, jnp.ones(4), jnp.array([1.0, 5.0, 3.0, 9.0]), 4)
    # the point at distance 9 is alone in its cluster and stays
    assert filled.tolist() == [0, 2, 3, 1]
    # nor does one without weight count, or fill anything
    filled = fill_empty(labels, jnp.array([1.0, 0.0, 1.0, 1.0]), jnp.array([1.0, 5.0, 3.0, 9.0]), 3)
    assert filled.tolist() == [0, 0, 2, 1]


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


@pytest.mark.slow
def test_more_restarts_are_never_worse():
    points = normal(0, 80, 6)
    inertias = [float(kmeans(points, 9, num_restarts=restarts).inertia) for restarts in (1, 8, 32)]
    # restarts draw other seeds when there are more of them, so the tendency is what can be asked for
    assert inertias[2] <= inertias[0]


@pytest.mark.wide
def test_the_best_restart_is_returned_and_all_are_told():
    result = kmeans(points := normal(0, 80, 6), 9, num_restarts=5, seed=1)
    assert result.restart_inertias.shape == result.restart_iterations.shape == (5,)
    assert float(result.restart_inertias.min()) == pytest.approx(float(result.inertia), rel=1e-5)
    assert float(result.restart_inertias.max()) > float(result.inertia)
    assert result.num_iterations == result.restart_iterations[result.restart_inertias.argmin()]
    check_consistent(points, result, 9)


@pytest.mark.wide
def test_batches_equal_single_calls():
    problems = [normal(0, 60, 4), normal(1, 60, 4), normal(2, 40, 3)]
    keys = [jax.random.fold_in(jax.random.key(5), index) for index in range(3)]
    batch = kmeans_batch(problems, [7, 7, 5], 3, seed=5)
    for points, clusters, key, result in zip(problems, [7, 7, 5], keys, batch, strict=True):
        jax.tree.map(np.testing.assert_array_equal, result, kmeans(points, clusters, 3, key))
    stacked = kmeans_batch(jnp.stack(problems[:2]), 7, 3, seed=5)
    jax.tree.map(np.testing.assert_array_equal, stacked, batch[:2])


def test_the_second_call_compiles_nothing(caplog):
    first, second = normal(0, 50, 4), normal(1, 50, 4)
    kmeans_batch([first], 6, 2)
    jax.config.update("jax_log_compiles", True)
    try:
        with caplog.at_level(logging.WARNING, logger="jax"):
            jax.block_until_ready(kmeans_batch([second], 6, 2, seed=3))
            assert not [record for record in caplog.messages if "Compiling" in record]
            jax.block_until_ready(kmeans(second[:, :3], 6, 2))
            assert [record for record in caplog.messages if "Compiling" in record]
    finally:
        jax.config.update("jax_log_compiles", False)


@pytest.mark.wide
def test_no_single_move_lowers_the_inertia(x64):
    points = normal(0, 40, 4)
    weights = jnp.exp(normal(1, 40))
    result = kmeans(points, 9, num_restarts=1, weights=weights)
    labels = np.asarray(result.labels)
    for point in range(40):
        for cluster in range(9):
            moved = labels.copy()
            moved[point] = cluster
            assert inertia(points, moved, weights) >= inertia(points, labels, weights) - 1e-9


@pytest.mark.slow
def test_exchanges_lower_the_inertia_of_small_clusters():
    points = normal(0, 200, 6)
    alone = kmeans(points, 50, num_restarts=3, exchange=False)
    assert float(kmeans(points, 50, num_restarts=3).inertia) < 0.99 * float(alone.inertia)
    squared = np.sum((np.asarray(points)[:, None] - np.asarray(alone.centroids)[None]) ** 2, axis=2)
    assert np.all(squared[np.arange(200), alone.labels] <= squared.min(axis=1) + 1e-5)


@pytest.mark.wide
def test_weight_2_is_the_point_twice_and_weight_0_is_no_point(x64):
    points = normal(0, 40, 3)
    weights = np.random.default_rng(0).integers(0, 3, 40)
    weighted = kmeans(points, 6, 4, weights=jnp.asarray(weights, points.dtype))
    repeated = kmeans(jnp.repeat(points, weights, axis=0), 6, 4)
    assert float(weighted.inertia) == pytest.approx(float(repeated.inertia), rel=1e-12)
    np.testing.assert_allclose(np.sort(weighted.centroids, axis=0), np.sort(repeated.centroids, axis=0), atol=1e-12)
    np.testing.assert_array_equal(np.repeat(weighted.labels, weights), repeated.labels)
    assert weighted.mass.tolist() == repeated.counts.tolist()
    assert weighted.counts.tolist() == np.bincount(weighted.labels, weights > 0).tolist()
    # the others are with the nearest centroid
    squared = np.sum((np.asarray(points)[:, None] - np.asarray(weighted.centroids)[None]) ** 2, axis=2)
    absent = weights == 0
    np.testing.assert_array_equal(np.asarray(weighted.labels)[absent], squared.argmin(axis=1)[absent])


def test_scale_of_the_weights_changes_the_inertia_only(x64):
    points, weights = normal(0, 40, 3), jnp.exp(normal(1, 40))
    small, large = (kmeans(points, 6, 2, weights=factor * weights) for factor in (1e-6, 1e6))
    np.testing.assert_array_equal(small.labels, large.labels)
    assert float(large.inertia) == pytest.approx(1e12 * float(small.inertia))
    np.testing.assert_allclose(large.restart_inertias, 1e12 * small.restart_inertias)


@pytest.mark.wide
def test_column_weights_scale_the_columns(x64):
    points, columns = normal(0, 60, 3), jnp.array([4.0, 0.0, 0.25])
    ours = kmeans(points, 7, 3, column_weights=columns)
    scaled = kmeans(points * jnp.sqrt(columns)[None], 7, 3)
    np.testing.assert_array_equal(ours.labels, scaled.labels)
    assert float(ours.inertia) == pytest.approx(float(scaled.inertia), rel=1e-12)
    means = [points[ours.labels == j].mean(axis=0) for j in range(7)]
    np.testing.assert_allclose(ours.centroids, jnp.stack(means), atol=1e-12)


@pytest.mark.wide
def test_order_of_the_points_permutes_the_labels():
    """Clusters far apart are found from any seed, so that only names can differ."""
    points = jnp.repeat(10 * normal(0, 5, 3), 8, axis=0) + normal(1, 40, 3, scale=0.1)
    order = jax.random.permutation(jax.random.key(2), 40)
    one, other = kmeans(points, 5), kmeans(points[order], 5)
    assert adjusted_rand_score(one.labels[order], other.labels) == 1
    assert float(one.inertia) == pytest.approx(float(other.inertia), rel=1e-4)


@pytest.mark.slow
def test_weighted_inertia_reaches_that_of_scikit_learn():
    points, weights = normal(0, 300, 5), jnp.exp(normal(1, 300))
    ours = kmeans(points, 30, weights=weights)
    theirs = KMeans(30, n_init=10, random_state=0).fit(np.asarray(points), sample_weight=np.asarray(weights))
    assert float(ours.inertia) <= 1.005 * theirs.inertia_
    assert float(ours.inertia) == pytest.approx(inertia(points, ours.labels, weights), rel=1e-4)


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


@pytest.mark.wide
def test_float64(x64):
    points = normal(0, 40, 3)
    result = kmeans(points, 5)
    assert result.centroids.dtype == jnp.float64
    check_consistent(points, result, 5)


@settings(max_examples=25, deadline=None)
@given(
    num_points=st.sampled_from([17]),
    dimension=st.sampled_from([1, 3]),
    share=st.sampled_from([0.4, 1.0]),  # each number of clusters is a compilation
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
def test_beats_the_inertia_of_scikit_learn_on_neurons_of_a_real_block(minilm, layer):
    points = neuron_vectors(minilm.mlp_blocks()[layer])[:400]
    ours = kmeans(points, 100, num_restarts=3)
    theirs = KMeans(100, n_init=3, random_state=0).fit(np.asarray(points))
    # exchanges alone leave Lloyd's best behind by more than this
    assert float(ours.inertia) <= 0.98 * theirs.inertia_


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": jnp.ones(3)}, r"weights must be 4 numbers .* got \(3,\)"),
        ({"weights": -jnp.ones(4)}, "weights must be finite, not negative"),
        ({"column_weights": jnp.zeros(2)}, "column_weights must be .* not all 0"),
        ({"weights": jnp.array([1.0, 0.0, 0.0, 0.0])}, "2 clusters need as many points .* there are 1"),
        ({"memory_limit": "much"}, "memory limit"),
    ],
)
def test_bad_options_say_what_is_wrong(options, message):
    with pytest.raises(InputError, match=message):
        kmeans(FOUR, 2, **options)


@pytest.fixture
def unchecked_shapes():
    """As outside of tests, where nothing checks signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("points", [jnp.arange(4.0), jnp.arange(4)[:, None]], ids=["one axis", "integers"])
def test_points_that_are_no_rows_of_floats_are_refused(unchecked_shapes, points):
    with pytest.raises(InputError, match="points must be floats of shape"):
        kmeans(points, 2, weights=jnp.array([0.5, 1.5, 1.0, 1.0]))


def test_lists_of_another_length_are_refused():
    with pytest.raises(InputError, match="num_clusters must have one entry for each of the 2 problems; got 1"):
        kmeans_batch([FOUR, FOUR], [2])
