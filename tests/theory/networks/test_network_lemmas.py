"""Each lemma of the network bound by itself, against measured differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.models.activations import ACTIVATIONS
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.networks.attention_bound import (
    attention_change,
    attention_curvature,
    attention_rows,
    head_norms,
    lengths,
    shifts,
)
from ntkfusion.theory.networks.block_change import block_change, block_derivative, block_norms
from ntkfusion.theory.networks.layer_norm_bound import (
    Ball,
    NormWeights,
    chord,
    closed,
    elementwise_ball,
    entries,
    linear_ball,
    norm_ball,
    norm_change,
    norm_curvature,
    norm_derivative,
    normalise,
    spectral_bound,
)
from ntkfusion.theory.networks.network_weights import AttentionWeights, LayerWeights, attend, run_layer
from tests.helpers.tiers import wide_unless

D, H, T = 6, 2, 4
#: What rounding of measured differences and bounds may do, relative to the numbers they are made of.
ROOM = 1e-12


def normal(seed, *shape, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape))


def scales(seed, *shape):
    """From 1e-3 to 1e3."""
    return jnp.asarray(10 ** np.random.default_rng(seed).uniform(-3, 3, shape))


def size(x):
    return jnp.linalg.norm(x, axis=-1)


def norm_case(seed, count=20_000, eps=1e-5):
    norm = NormWeights(normal(seed, D), normal(seed + 1, D), eps)
    z = normal(seed + 2, count, D) * scales(seed + 3, count, 1) + scales(seed + 4, count, 1)
    return norm, z, normal(seed + 5, count, D) * scales(seed + 6, count, 1)


@pytest.mark.parametrize("eps", [0.0, 1e-5, 10.0])
def test_layer_norm(x64, eps):
    norm, z, delta = norm_case(0, eps=eps)
    change = normalise(norm, z + delta) - normalise(norm, z)
    room = ROOM * (1 + (size(z) + size(delta)) / size(z - jnp.mean(z, axis=-1, keepdims=True)))
    assert bool(jnp.all(size(change) <= norm_change(norm, z, size(delta)) + room))
    linear = jnp.einsum("nd,nde->ne", delta, norm_derivative(norm, z))
    rest = size(change - linear)
    room = room * (1 + size(linear))
    assert bool(jnp.all(rest <= norm_curvature(norm, z, size(delta)) + room))


@pytest.mark.slow
def test_chord_is_sharp(x64):
    """The tangent of the ball reaches it."""
    angle = jnp.linspace(0.01, 1.55, 50)
    tip = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    reached = jnp.linalg.norm(tip - jnp.array([[1.0, 0.0]]), axis=-1)
    assert bool(jnp.allclose(chord(jnp.sin(angle)), reached, rtol=1e-12))
    assert float(chord(jnp.array(1.5))) == 2.0


def test_chord_is_below_the_textbook_constant(x64):
    x = jnp.linspace(0.001, 0.999, 100)
    assert bool(jnp.all(chord(x) <= x / (1 - x / 2)))


@pytest.mark.slow
def test_layer_norm_derivative(x64):
    norm, z, _ = norm_case(1, count=3)
    expected = jax.vmap(jax.jacobian(lambda z: normalise(norm, z)))(z)
    assert bool(jnp.allclose(norm_derivative(norm, z), jnp.swapaxes(expected, 1, 2), rtol=1e-9, atol=1e-12))


def test_softmax_lemma(x64):
    """‖p − p̃‖₁ ≤ 2 tanh(½ max|τ|), and some case comes close."""
    logits, shift = 3 * normal(0, 50_000, 5), normal(1, 50_000, 5) * scales(2, 50_000, 1)
    gap = jnp.sum(jnp.abs(jax.nn.softmax(logits + shift) - jax.nn.softmax(logits)), axis=-1)
    bound = 2 * jnp.tanh(0.5 * jnp.max(jnp.abs(shift), axis=-1))
    assert bool(jnp.all(gap <= bound + ROOM))
    two = jax.nn.softmax(jnp.array([0.5, -0.5])) - jax.nn.softmax(jnp.array([-0.5, 0.5]))
    assert float(jnp.sum(jnp.abs(two))) == pytest.approx(2 * np.tanh(0.5), rel=1e-12)


def attention(seed, scale=1.0):
    e = D // H
    shapes = [(D, H, e), (H, e)] * 3 + [(H, e, D), (D,)]
    arrays = [normal(10 * seed + i, *shape, scale=scale * 0.5) for i, shape in enumerate(shapes)]
    return AttentionWeights(*arrays[:6], output=arrays[6], output_bias=arrays[7], scale=e**-0.5)


def visible_tokens(rows):
    """All; the last hidden; only earlier ones."""
    everything = jnp.ones((T, T), bool)
    return jnp.stack([(everything, everything.at[:, -1].set(False), jnp.tril(everything))[i % 3] for i in range(rows)])


@jax.jit
def attention_excess(weights, x, delta, eps):
    """What differences have beyond their bounds; negative everywhere."""
    visible = visible_tokens(x.shape[0])
    known, other, norms = attend(weights, x, visible), attend(weights, x + delta, visible), head_norms(weights)
    moved = shifts(weights, norms, known, visible, eps)
    linear = jax.jvp(lambda x: attend(weights, x, visible).out, (x,), (delta,))[1]
    change = other.out - known.out
    room = ROOM * (1 + jnp.max(size(x) + size(delta), axis=1, keepdims=True)) ** 3
    return (
        jnp.max(jnp.abs(other.weights - known.weights) - moved.weight - room[:, :, None, None], axis=(1, 2, 3)),
        jnp.max(size(change) - attention_change(norms, known, moved, eps) - room, axis=1),
        jnp.max(size(change - linear) - attention_curvature(norms, known, moved, eps) - room, axis=1),
    )


@pytest.mark.wide
@pytest.mark.parametrize("weight_scale", [0.1, 3.0])
def test_attention(x64, weight_scale):
    count = 1500
    for seed in range(2):
        x = normal(seed, count, T, D)
        delta = normal(seed + 1, count, T, D) * scales(seed + 2, count, T, 1) * 0.1
        found = attention_excess(attention(seed, weight_scale), x, delta, size(delta))
        assert all(float(jnp.max(excess)) <= 0 for excess in found), [float(jnp.max(e)) for e in found]


def test_lengths_of_rows_that_hardly_count(x64):
    """Rows almost in the kernel of W: the root of a form that cancels would be too small."""
    kernel = normal(0, 5, 2, 3)
    kernel = kernel.at[:, :, 2].set(kernel[:, :, 0])
    null = jnp.array([1.0, 0.0, -1.0])[None, None, None, None] * normal(1, 4, 20, 20, 2, 1)
    rows = null + 1e-10 * normal(2, 4, 20, 20, 2, 3)
    exact = jnp.linalg.norm(jnp.einsum("dhe,btshe->bhtsd", kernel, rows), axis=-1)
    assert bool(jnp.all(exact <= lengths(rows, kernel) * (1 + ROOM)))
    assert float(jnp.max(lengths(rows, kernel))) < 1e-5


@pytest.mark.slow
def test_attention_bounds_depend_on_every_epsilon(x64):
    """Half of ε is too little."""
    x, delta = normal(5, 300, T, D), 1e-3 * normal(6, 300, T, D)
    _, change, rest = attention_excess(attention(0), x, delta, 0.02 * size(delta))
    assert float(jnp.max(change)) > 0
    assert float(jnp.max(rest)) > 0


@pytest.mark.slow
@pytest.mark.parametrize("t", [0, T - 1])
def test_attention_rows_are_the_jacobian(x64, t):
    weights, x, visible = attention(1), normal(3, 3, T, D), visible_tokens(3)
    norm = NormWeights(jnp.ones(D), jnp.zeros(D), 1e-5)
    trace = run_layer(LayerWeights(weights, norm, norm), lambda u: u, x, visible)
    for b in range(3):

        def out(row, b=b):
            return attend(weights, row[None], visible[b : b + 1]).out[0, t]

        expected = jax.jacobian(out)(x[b])
        found = attention_rows(weights, trace, jnp.asarray(b), jnp.asarray(t))
        assert bool(jnp.allclose(found, expected.transpose(1, 2, 0), rtol=1e-9, atol=1e-12))


@pytest.mark.parametrize("activation", wide_unless(lambda activation: activation == "gelu", ACTIVATIONS))
def test_block(x64, activation):
    block = MLPBlock(normal(0, D, 9), normal(1, 9), normal(2, 9, D), None, activation=activation)
    u, delta = normal(3, 20_000, D), normal(4, 20_000, D) * scales(5, 20_000, 1)
    found = block_change(block, block_norms(block), u, size(delta))
    change = block(u + delta) - block(u)
    room = ROOM * 100 * (1 + size(delta))
    assert bool(jnp.all(size(change) <= found.change + room))
    rest = size(change - jax.jvp(block, (u,), (delta,))[1])
    assert bool(jnp.all(rest <= found.curvature + room))
    expected = jax.vmap(jax.jacobian(block))(u[:2])
    assert bool(jnp.allclose(block_derivative(block, u[:2]), jnp.swapaxes(expected, 1, 2)))


@pytest.mark.parametrize("shape", [(5, 5), (3, 40), (40, 3), (1, 1)])
@pytest.mark.parametrize("scale", [0.0, 1e-100, 1.0, 1e100])
def test_spectral_bound(x64, shape, scale):
    a = normal(0, *shape) * scale
    exact, found = jnp.linalg.norm(a, 2), spectral_bound(a)
    assert float(exact) <= float(found) <= 1.06 * float(exact)


@pytest.mark.wide
def test_balls(x64):
    """Linear maps, tanh and LayerNorm: e = D + r with |r| = ρ stays inside."""
    count = 5000
    a, direction, rest = (normal(i, count, D) * scales(10 + i, count, 1) ** 0.5 for i in range(3))
    e = direction + rest
    ball = closed(Ball(direction, size(rest), size(e)))
    assert bool(jnp.all(size(ball.direction) <= 2 * ball.eps * (1 + ROOM)))
    assert 0 < int(jnp.sum(size(ball.direction) == 0)) < count
    kernel = normal(9, D, 4)
    room = 1e-10 * (1 + size(e))
    assert bool(jnp.all(jnp.abs(e @ kernel) <= entries(kernel, ball) + room[:, None]))
    norm, _, _ = norm_case(4, 1)
    value = jnp.tanh(a)
    change = jnp.tanh(a + e) - value
    remainder = jnp.abs(change - (1 - value * value) * e)
    cases = [
        (linear_ball(kernel, ball), e @ kernel),
        (elementwise_ball(ball, 1 - value * value, 1.0, jnp.abs(change), remainder), change),
        (norm_ball(norm, a, ball), normalise(norm, a + e) - normalise(norm, a)),
    ]
    for found, moved in cases:
        assert bool(jnp.all(size(moved) <= found.eps + room))
        assert bool(jnp.all(size(moved - found.direction) <= found.radius + room * (1 + size(found.direction))))
