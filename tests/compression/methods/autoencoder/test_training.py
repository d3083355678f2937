"""Loss and training: numbers by hand, rows on a curved manifold, rows that are noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.compression.matrices.codecs import fidelity
from ntkfusion.compression.methods.autoencoder.network import (
    AutoencoderTraining,
    Sizes,
    encode,
    init_network,
    reconstruct,
    reconstruction_loss,
    row_weights,
    train,
)
from ntkfusion.errors import InputError
from tests.helpers.blocks import normal


def fit(rows, width, training, *, linear=False, seed=0, weights=None):
    weights = jnp.ones(rows.shape[0], rows.dtype) if weights is None else weights
    sizes = Sizes.of(rows.shape[1], width, linear=linear)
    return train(rows, weights, sizes, jax.random.key(seed), training, lambda _: None)


def test_loss_is_the_formula(x64):
    rows, decoded, weights = normal(0, 5, 3), normal(1, 5, 3), jnp.array([0.5, 1.5, 1.0, 2.0, 0.0])
    m, d, c = np.asarray(rows), np.asarray(decoded), np.asarray(weights)
    cosines = (m * d).sum(1) / (np.linalg.norm(m, axis=1) * np.linalg.norm(d, axis=1))
    expected = 0.9091 * np.mean(c * (1 - cosines)) + 0.0909 * np.sqrt(np.mean(c[:, None] * (m - d) ** 2))
    assert float(reconstruction_loss(decoded, rows, weights)) == pytest.approx(expected, rel=1e-12)


def test_rows_of_zeros_and_perfect_rows_have_finite_gradients():
    rows = jnp.zeros((3, 4)).at[0].set(1.0)
    gradient = jax.grad(reconstruction_loss)(rows, rows, jnp.ones(3))
    assert bool(jnp.all(jnp.isfinite(gradient)))
    network = init_network(jax.random.key(0), Sizes.of(4, 1), rows.dtype)
    np.testing.assert_allclose(reconstruct(network, rows)[1:], 0, atol=1e-15)


def test_every_layer_of_the_encoder_leaks(x64):
    network, rows = init_network(jax.random.key(0), Sizes.of(6, 2), jnp.float64), normal(0, 7, 6)
    h = np.asarray(rows)
    for affine in network.encoder:
        h = h @ np.asarray(affine.kernel) + np.asarray(affine.bias)
        h = np.where(h > 0, h, 0.01 * h)
    np.testing.assert_allclose(encode(network.encoder, rows), h, rtol=1e-12)
    assert [affine.kernel.shape for affine in network.encoder] == [(6, 16), (16, 8), (8, 2)]


def test_rates_fall_in_steps():
    training = AutoencoderTraining(rate=1.0)
    assert [training.rate_at(epoch) for epoch in (0, 9, 10, 25)] == pytest.approx([1.0, 1.0, 0.8, 0.64])


@pytest.mark.wide
@pytest.mark.optimised  # the rate is so large that rounding decides which epoch is the best
def test_the_best_epoch_is_kept_and_the_seed_decides():
    rows = normal(0, 40, 6)
    # a rate at which the loss jumps about
    training = AutoencoderTraining(epochs=6, batch=8, rate=0.3)
    one, two, other = fit(rows, 2, training), fit(rows, 2, training), fit(rows, 2, training, seed=1)
    assert len(one.losses) == 7
    assert one.losses[-1] > min(one.losses)
    kept = reconstruction_loss(reconstruct(one.network, rows), rows, jnp.ones(40))
    assert float(kept) == pytest.approx(min(one.losses), rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert one.losses != other.losses


@pytest.mark.wide
def test_curved_rows_are_coded_better_than_by_the_svd_and_noise_is_not():
    """At equal numbers: 512 rows of 24; latents of 3, decoder and norms are 2,468, rank 4 is 2,144, rank 5 is 2,680."""
    training = AutoencoderTraining(epochs=100, batch=32, rate=3e-3)
    curve = jnp.sin(normal(0, 512, 2) @ normal(1, 2, 24, scale=0.8) + normal(2, 1, 24).repeat(512, 0))
    errors = {}
    for name, rows in (("curve", curve), ("noise", normal(3, 512, 24))):
        found = reconstruct(fit(rows, 3, training).network, rows)
        s = np.linalg.svd(np.asarray(rows), compute_uv=False)
        errors[name] = fidelity(found, rows)["relative_error"], np.sqrt((s[4:] ** 2).sum() / (s**2).sum())
    assert errors["curve"][0] < 0.8 * errors["curve"][1]
    assert errors["noise"][0] > 0.95 * errors["noise"][1]


@pytest.mark.wide
def test_weights_move_the_error_to_rows_that_matter_less():
    rows, training = normal(0, 64, 8), AutoencoderTraining(epochs=40, batch=16, rate=1e-2)
    weights = jnp.where(jnp.arange(64) < 16, 3.7, 0.1)
    even, weighted = (
        reconstruct(fit(rows, 2, training, linear=True, weights=w).network, rows) for w in (None, weights)
    )
    assert fidelity(weighted[:16], rows[:16])["cosine"] > fidelity(even[:16], rows[:16])["cosine"] + 0.03


def test_row_weights_have_mean_one():
    squared = jnp.array([[9.0, 16.0], [0.0, 25.0], [0.0, 0.0]])
    assert row_weights(squared, "fisher").tolist() == pytest.approx([1.5, 1.5, 0.0])
    assert row_weights(squared, "l1").tolist() == pytest.approx([1.75, 1.25, 0.0])
    assert row_weights(0 * squared, "fisher").tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"epochs": 0}, "epochs must be at least 1"), ({"batch": 0}, "batch"), ({"rate": 0.0}, "rate must be positive")],
)
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        AutoencoderTraining(**options)
