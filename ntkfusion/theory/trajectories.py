"""An original block and its fused one under the same optimiser, step by step (Theorem 2 and the κ-family).

One law covers the optimisers of the theorem. With m, v the exponential means of g and g², bias-corrected as in Adam,

    θ ← θ − η m / (v^{(1−κ)/2} + ε) − η₀ λ θ

scales as u(s g) = s^κ u(g) if ε = 0: κ = 0 is AdamW, with β1 = β2 = 0 sign descent; κ = 1 is SGD, with β1 > 0 with
momentum. η may differ from neuron to neuron; the decay has the common rate η₀.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.utils.pytrees import pytree

Parameters = Mapping[str, Array]

#: By parameter, the means of gradients and of their squares.
Moments = Mapping[str, tuple[Array, Array]]

Number = float | Array


@pytree
class Law:
    """An optimiser; see the module.

    Attributes:
        rate: η₀.
        beta1: of the mean of gradients.
        beta2: of the mean of their squares.
        kappa: κ.
        epsilon: ε.
        decay: λ, decoupled.
        clip: the largest global norm of the gradient; infinite for no clipping.
    """

    rate: Number
    beta1: Number = 0.0
    beta2: Number = 0.0
    kappa: Number = 0.0
    epsilon: Number = 0.0
    decay: Number = 0.0
    clip: Number = float("inf")


@pytree
class Followed:
    """Two trajectories beside each other, before every step and after the last.

    Attributes:
        outputs: the original's output 0 at input 0.
        fused_outputs: that of the fused block.
        gap: the largest |f_k(x) − f̃_k(x)|.
        parameter_gap: the largest difference of a neuron's folded parameters from those of its centre.
        moved: the largest change of an output of the original since the start.
    """

    outputs: Float[Array, "*T"]
    fused_outputs: Float[Array, "*T"]
    gap: Float[Array, "*T"]
    parameter_gap: Float[Array, "*T"]
    moved: Float[Array, "*T"]


def with_constants(block: MLPBlock) -> MLPBlock:
    """The block with q and r as arrays, so that all variants share one program."""
    ones = jnp.ones(block.hidden_width, block.w1.dtype)
    return block.replace(q=ones if block.q is None else block.q, r=ones if block.r is None else block.r)


def loss(block: MLPBlock, parameters: Parameters, x: Float[Array, "N d"], y: Float[Array, "N o"]) -> Float[Array, ""]:
    """½ Σ_k (f_k − y_k)², mean over inputs."""
    return 0.5 * jnp.mean(jnp.sum((block.replace(**parameters)(x) - y) ** 2, axis=1))


def step(
    law: Law, slowness: Parameters, count: Array, parameters: Parameters, state: Moments, gradients: Parameters
) -> tuple[Parameters, Moments]:
    """One step of a law.

    Args:
        law: the optimiser.
        slowness: what η₀ is divided by, for every parameter; of any shape that broadcasts.
        count: how many steps came before.
        parameters: θ.
        state: means of gradients and of their squares, by parameter.
        gradients: of the loss.

    Returns:
        New parameters and state.
    """
    norm = jnp.sqrt(sum(jnp.sum(gradient**2) for gradient in gradients.values()))
    shrink = jnp.minimum(1.0, law.clip / norm)
    new, means = {}, {}
    for name, value in parameters.items():
        g = gradients[name] * shrink
        m = law.beta1 * state[name][0] + (1 - law.beta1) * g
        v = law.beta2 * state[name][1] + (1 - law.beta2) * g * g
        first, second = m / (1 - law.beta1 ** (count + 1)), v / (1 - law.beta2 ** (count + 1))
        size = second ** (0.5 * (1 - law.kappa)) + law.epsilon
        # where no gradient ever was, the mean is 0 as well, and 0/0 stands for no step
        moved = first / jnp.where(size == 0, 1.0, size)
        new[name] = value - law.rate / slowness[name] * moved - law.rate * law.decay * value
        means[name] = (m, v)
    return new, means


@partial(jax.jit, static_argnames="steps")
def follow(
    original: MLPBlock,
    fused: MLPBlock,
    labels: Int[Array, " m"],
    law: Law,
    slowness: Parameters,
    x: Float[Array, "N d"],
    y: Float[Array, "N o"],
    *,
    steps: int,
) -> Followed:
    """Train both blocks on all inputs at once, and compare them at every step.

    Args:
        original: an original block, `with_constants`.
        fused: its fused one, likewise.
        labels: the cluster of every neuron of the original.
        law: the optimiser of both.
        slowness: what the fused block's η is divided by, for every parameter: n_j, [c] and so on, or 1.
        x: inputs.
        y: targets.
        steps: how many.

    Returns:
        What happened before every step and after the last, T = steps + 1.
    """
    ones = {name: jnp.ones_like(array) for name, array in original.parameters().items()}
    start = original(x)

    def seen(theta: Parameters, small: Parameters) -> Followed:
        f, fused_f = original.replace(**theta)(x), fused.replace(**small)(x)
        distance = parameter_gap(original.replace(**theta), fused.replace(**small), labels)
        return Followed(f[0, 0], fused_f[0, 0], largest(f - fused_f), distance, largest(f - start))

    def both(carry: Any, count: Array) -> tuple[Any, Followed]:
        (theta, state), (small, small_state) = carry
        gradients = jax.grad(lambda p: loss(original, p, x, y))(theta)
        small_gradients = jax.grad(lambda p: loss(fused, p, x, y))(small)
        after = step(law, ones, count, theta, state, gradients)
        small_after = step(law, slowness, count, small, small_state, small_gradients)
        return (after, small_after), seen(theta, small)

    begin = tuple((dict(block.parameters()), zero_state(block)) for block in (original, fused))
    end, history = jax.lax.scan(both, begin, jnp.arange(steps, dtype=x.dtype))
    last = seen(end[0][0], end[1][0])
    return jax.tree.map(lambda past, final: jnp.append(past, final), history, last)


def zero_state(block: MLPBlock) -> Moments:
    """The state before the first step."""
    return {name: (jnp.zeros_like(array), jnp.zeros_like(array)) for name, array in block.parameters().items()}


def parameter_gap(original: MLPBlock, fused: MLPBlock, labels: Int[Array, " m"]) -> Float[Array, ""]:
    """The largest difference of a neuron's folded weights from its centre's, whose output weights count n_j times."""
    old, new = original.fold(), fused.fold()
    counts = jnp.zeros(fused.hidden_width, old.w1.dtype).at[labels].add(1.0)
    gaps = [largest(old.w1 - new.w1[:, labels]), largest(old.w2 - (new.w2 / counts[:, None])[labels])]
    if old.b1 is not None and new.b1 is not None:
        gaps.append(largest(old.b1 - new.b1[labels]))
    if old.b2 is not None and new.b2 is not None:
        gaps.append(largest(old.b2 - new.b2))
    return jnp.max(jnp.stack(gaps))


def largest(differences: Float[Array, "*s"]) -> Float[Array, ""]:
    """The largest absolute value."""
    return jnp.max(jnp.abs(differences))
