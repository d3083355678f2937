"""Tuning a compressed block on calibration inputs: towards the original's outputs and kernels at once.

The layer-wise tuning of MLP Fusion (arXiv 2307.08941) matches hidden states. Here every block is tuned on its own, on
its own inputs, and beside its outputs two kernels are matched: with free positive constants (γ, α) for each kind (see
`neuron_kernels`), so that the weights need only get right what constants cannot.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ntkfusion.compression.matching.neuron_kernels import POWERS, neuron_kernels
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.kinds import Kind, check_inputs
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.utils.pytrees import pytree

#: The kernels of the loss.
KINDS = tuple(POWERS)

#: What is tuned: "block", without constants, and "logarithms" of the constants (γ, α) by kind, [2, c] each.
State: TypeAlias = dict[str, Any]

Tunable = TypeVar("Tunable", MLPBlock, FactorizedBlock)

#: How often the validation tokens are looked at.
CHECKS = 10

#: Constants move along logarithms, and faster than weights.
CONSTANTS_RATE = 20.0


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a block is tuned.

    Attributes:
        steps: optimiser steps (Adam, cosine decay to 0); 0 leaves the block as it is.
        rate: the first learning rate.
        batch: tokens per step for the outputs.
        kernel_tokens: tokens per step whose kernels are compared.
        kernel_sets: how many such sets there are; the original's kernels on them are computed once.
        kernel_weight: λ in ``e_out² + λ (e_sgd² + e_sign²)``, all errors relative; 0 tunes outputs alone.
        validation: fraction of the calibration tokens (at most 1024) that no step sees; the weights that do best on
            them are kept, those of the beginning included.
    """

    steps: int = 400
    rate: float = 2e-3
    batch: int = 512
    kernel_tokens: int = 128
    kernel_sets: int = 16
    kernel_weight: float = 0.1
    validation: float = 0.1

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for a number out of range.
        """
        for name in ("batch", "kernel_tokens", "kernel_sets"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "rate", "kernel_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        if not 0 < self.validation < 1:
            raise InputError(f"validation is a fraction of the tokens, between 0 and 1; got {self.validation}")


@pytree
class _Tokens:
    """Inputs with the original's outputs, and sets of inputs with its kernels [S, n, n] by kind."""

    x: Float[Array, "N d"]
    y: Float[Array, "N o"]
    kernel_x: Float[Array, "S n d"]
    kernels: dict[str, Any]


def tune(
    block: Tunable,
    original: Block,
    x: Float[Array, "N d"],
    key: Array,
    options: Tuning,
    progress: Callable[[float], None] = lambda _: None,
) -> tuple[Tunable, dict[str, float]]:
    """Tune all parameters of a dense or factorised block.

    Args:
        block: the start; constants are folded away.
        original: what outputs and kernels are compared with.
        x: calibration inputs.
        key: for the order of the tokens.
        options: how long and how.
        progress: called with the finished fraction.

    Returns:
        The best block by the validation tokens, and its loss on them before and after.

    Raises:
        InputError: for another kind of block, inputs that do not fit, or fewer than 4 of them.
    """
    if not isinstance(block, (MLPBlock, FactorizedBlock)):
        raise InputError(f"tuning works on dense and factorised blocks; got a {type(block).__name__}")
    check_inputs(original, x, None)
    if x.shape[0] < 4:
        raise InputError(f"tuning needs at least 4 calibration inputs, got {x.shape[0]}")
    if not options.steps:
        return block.fold(), {}
    split, order, sets = jax.random.split(key, 3)
    shuffled = x[jax.random.permutation(split, x.shape[0])]
    held = min(1024, max(2, round(options.validation * x.shape[0])))
    train = _tokens(shuffled[held:], original, options.kernel_sets, options, sets)
    valid = _tokens(shuffled[:held], original, 1, options, sets)
    block = block.fold()
    with jax.default_matmul_precision("highest"):
        state = {"block": block, "logarithms": {kind: _first_logarithms(block, train, kind) for kind in KINDS}}
        return _descend(state, train, valid, order, options, progress)


def _tokens(x: Float[Array, "N d"], original: Block, num_sets: int, options: Tuning, key: Array) -> _Tokens:
    size = min(options.kernel_tokens, x.shape[0])
    chosen = [jax.random.permutation(k, x.shape[0])[:size] for k in jax.random.split(key, num_sets)]
    kernel_x = x[jnp.stack(chosen)]
    kernels = {kind: jnp.stack([block_kernel(original, part, kind=kind) for part in kernel_x]) for kind in KINDS}
    return _Tokens(x, original(x), kernel_x, kernels)


def _descend(
    state: State, train: _Tokens, valid: _Tokens, key: Array, options: Tuning, progress: Callable[[float], None]
) -> tuple[Any, dict[str, float]]:
    """Adam with a look at the validation tokens every now and then; the best state counts."""
    best, before = state, float(_validate(state, valid, options.kernel_weight))
    moments, least = _optimiser(options).init(state), before
    per_check = -(-options.steps // CHECKS)
    for check in range(0, options.steps, per_check):
        draw = jax.random.fold_in(key, check)
        state, moments = _steps(state, moments, train, draw, options, min(per_check, options.steps - check))
        loss = float(_validate(state, valid, options.kernel_weight))
        if loss < least:
            best, least = state, loss
        progress(min(1.0, (check + per_check) / options.steps))
    return best["block"], {"tuning_loss_before": before, "tuning_loss": least}


def _first_logarithms(block: MLPBlock | FactorizedBlock, tokens: _Tokens, kind: Kind) -> Float[Array, "2 c"]:
    """One γ for all neurons and one α, by least squares on one set of tokens; at least a hundredth of the other.

    1 where there is no solution: neurons that are silent on these tokens, say.
    """
    factors = neuron_kernels(block, tokens.kernel_x[0], kind)
    zeros, ones = jnp.zeros(block.hidden_width), jnp.ones(block.hidden_width)
    parts = jnp.stack([(factors.kernel(*pair) - factors.fixed).ravel() for pair in ((ones, zeros), (zeros, ones))])
    rest = (tokens.kernels[kind][0] - factors.fixed).ravel()
    solution = jnp.linalg.solve(parts @ parts.T, parts @ rest)
    solution = jnp.where(jnp.all(jnp.isfinite(solution)) & (jnp.max(solution) > 0), solution, 1)
    return jnp.log(jnp.maximum(solution, 0.01 * jnp.max(solution)))[:, None] * ones[None, :] / POWERS[kind]


def _optimiser(options: Tuning) -> optax.GradientTransformation:
    def rate(factor: float) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(factor * options.rate, max(1, options.steps)))

    def labels(state: State) -> dict[str, str]:
        return {name: name for name in state}

    return optax.multi_transform({"block": rate(1.0), "logarithms": rate(CONSTANTS_RATE)}, labels)


@partial(jax.jit, static_argnames=("options", "count"))
def _steps(state: State, moments: Any, train: _Tokens, key: Array, options: Tuning, count: int) -> tuple[State, Any]:
    optimiser, size = _optimiser(options), min(options.batch, train.x.shape[0])

    def step(carry: tuple[State, Any], key: Array) -> tuple[tuple[State, Any], None]:
        state, moments = carry
        rows_key, set_key = jax.random.split(key)
        rows = jax.random.randint(rows_key, (size,), 0, train.x.shape[0])
        chosen = jax.random.randint(set_key, (), 0, train.kernel_x.shape[0])
        gradients = jax.grad(_loss)(state, train, rows, chosen, options.kernel_weight)
        with jax.numpy_dtype_promotion("standard"):  # the schedule divides the number of the step, an integer
            updates, moments = optimiser.update(gradients, moments, state)
        return (cast(State, optax.apply_updates(state, updates)), moments), None

    return jax.lax.scan(step, (state, moments), jax.random.split(key, count))[0]


@partial(jax.jit, static_argnames="kernel_weight")
def _validate(state: State, valid: _Tokens, kernel_weight: float) -> Float[Array, ""]:
    return _loss(state, valid, jnp.arange(valid.x.shape[0]), jnp.zeros((), jnp.int32), kernel_weight)


def _loss(
    state: State, tokens: _Tokens, rows: Int[Array, " B"], chosen: Int[Array, ""], kernel_weight: float
) -> Float[Array, ""]:
    """e_out² on some rows + λ Σ_kinds e_kernel² on one set of tokens; errors relative."""
    loss = _squared_error(state["block"](tokens.x[rows]), tokens.y[rows])
    x = tokens.kernel_x[chosen]
    for kind in KINDS if kernel_weight else ():
        output, hidden = jnp.exp(POWERS[kind] * state["logarithms"][kind])
        kernel = neuron_kernels(state["block"], x, kind).kernel(output, hidden)
        loss = loss + kernel_weight * _squared_error(kernel, tokens.kernels[kind][chosen])
    return loss


def _squared_error(new: Float[Array, "n k"], reference: Float[Array, "n k"]) -> Float[Array, ""]:
    return jnp.sum((new - reference) ** 2) / jnp.sum(reference**2)
