"""Dropout's bits: as many as asked for, and nothing in common between entries or keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.models.layers.dropout import Dropout, kept_entries

SHAPE = (64, 12, 40, 40)
SIZE = int(np.prod(SHAPE))


@pytest.fixture(scope="module")
def masks():
    """Many masks of one size, one per key, as 1 and −1 with mean 0."""
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 12)
    kept = jax.jit(lambda key: kept_entries(key, SHAPE, 0.1))
    return np.stack([np.ravel(kept(key)) for key in keys]).astype(np.float64)


def test_the_share_is_binomial(masks):
    deviations = (masks.mean(axis=1) - 0.9) / np.sqrt(0.09 / SIZE)
    assert np.abs(deviations).max() < 4.5
    assert 0.3 < deviations.std() < 2


def test_entries_and_keys_are_uncorrelated(masks):
    centred = (masks - 0.9) / 0.3
    between = centred @ centred.T / SIZE * np.sqrt(SIZE)
    assert np.abs(between[~np.eye(len(masks), dtype=bool)]).max() < 5
    for lag in (1, 2, 40, 1600, 19200):  # the next entry, row, head, example
        along = (centred[:, :-lag] * centred[:, lag:]).sum(axis=1) / np.sqrt(SIZE - lag)
        assert np.abs(along).max() < 4.5


def test_chi_square_of_neighbouring_bits(masks):
    """Patterns of 8 neighbours appear as often as independent draws make them."""
    bits = masks[0][: SIZE // 8 * 8].reshape(-1, 8).astype(int)
    counts = np.bincount(bits @ (1 << np.arange(8)), minlength=256)
    kept = np.array([bin(pattern).count("1") for pattern in range(256)])
    expected = len(bits) * 0.9**kept * 0.1 ** (8 - kept)
    common = expected > 5
    statistic = ((counts - expected) ** 2 / expected)[common].sum()
    degrees = common.sum() - 1
    assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_rate_that_is_off_by_four_thousandths_of_itself_shows(rate):
    """One mask of 1.2 million entries knows its rate to 1 %; this many know a rate of 0.1 to 0.2 %."""
    keys = jax.random.split(jax.random.key(11, impl="rbg"), 24)
    drop = jax.jit(lambda key: Dropout(rate).apply({}, jnp.ones(SHAPE), deterministic=False, rngs={"dropout": key}))
    dropped = np.mean([float(jnp.mean(drop(key) == 0)) for key in keys])
    deviation = np.sqrt(rate * (1 - rate) / (24 * SIZE))
    assert abs(dropped - rate) < 3.5 * deviation
    assert 0.004 * rate > 7 * deviation


def test_kept_entries_are_scaled_and_nothing_happens_without_need():
    x = jnp.arange(1.0, 1001.0)
    run = lambda rate, **options: Dropout(rate).apply({}, x, rngs={"dropout": jax.random.key(1)}, **options)  # noqa: E731
    dropped = run(0.25, deterministic=False)
    np.testing.assert_allclose(dropped, np.where(dropped == 0, 0, x / 0.75), rtol=1e-6)
    np.testing.assert_array_equal(run(0.25, deterministic=True), x)
    np.testing.assert_array_equal(run(0.0, deterministic=False), x)
    np.testing.assert_array_equal(run(1.0, deterministic=False), 0 * x)


def test_the_gradient_is_the_mask():
    x = jnp.linspace(1.0, 2.0, 100)
    run = lambda x: Dropout(0.5).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(3)})  # noqa: E731
    gradient = jax.grad(lambda x: jnp.sum(run(x)))(x)
    np.testing.assert_array_equal(gradient, np.where(run(x) == 0, 0.0, 2.0))
