"""Refit: the output weights of a compressed block by ridge regression on the original's outputs.

The penalty is the one that leave-one-out errors choose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.kinds import check_inputs
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock

#: Penalties that are tried, in units of the mean square of a feature over the samples.
PENALTIES = tuple(10.0**power for power in range(-6, 1))


@overload
def refit_output(block: MLPBlock, original: Block, x: Float[Array, "N d"]) -> tuple[MLPBlock, Mapping[str, float]]: ...


@overload
def refit_output(
    block: Block, original: Block, x: Float[Array, "N d"]
) -> tuple[MLPBlock | FactorizedBlock, Mapping[str, float]]: ...


def refit_output(
    block: Block, original: Block, x: Float[Array, "N d"]
) -> tuple[MLPBlock | FactorizedBlock, Mapping[str, float]]:
    """Replace the last layer of a block by the one that comes closest to the original's outputs on `x`.

    Ridge regression of the original block's outputs on the compressed block's hidden activations (of a factorised
    block: on their images under left2), with an intercept if the block has output biases. The penalty is chosen by
    leave-one-out errors on `x` itself. Constants of the block are folded away: the regression changes what they stand
    for.

    Args:
        block: a compressed dense or factorised block.
        original: the block it came from.
        x: calibration inputs; more of them than neurons, or the penalty has to do all the work.

    Returns:
        The block with new output weights and bias, and the penalty and leave-one-out error by name.

    Raises:
        InputError: for another kind of block, or inputs that do not fit.
    """
    if not isinstance(block, (MLPBlock, FactorizedBlock)):
        raise InputError(f"refitting needs dense output weights; got a {type(block).__name__}")
    check_inputs(original, x, None)
    block = block.fold()
    hidden = block.hidden(x)
    features = hidden if isinstance(block, MLPBlock) else hidden @ block.left2
    weights, bias, penalty, error = ridge(features, original(x), intercept=block.b2 is not None)
    last = {"w2": weights} if isinstance(block, MLPBlock) else {"right2": weights}
    b2 = None if block.b2 is None else bias
    return block.replace(**last, b2=b2), {"refit_penalty": penalty, "refit_left_out_error": error}


def ridge(
    features: Float[Array, "N k"],
    targets: Float[Array, "N o"],
    *,
    intercept: bool = True,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[Float[Array, "k o"], Float[Array, " o"], float, float]:
    """The W and b that minimise ‖φW + b − y‖² + λ‖W‖², λ by the exact leave-one-out error of each candidate.

    One eigen-decomposition serves all penalties: the residual of sample i without itself is r_i / (1 − h_i), h_i being
    its leverage (Allen 1974, PRESS).

    Args:
        features: φ, one sample per row.
        targets: y.
        intercept: whether there is a b (never penalised).
        penalties: candidates for λ in units of the mean eigenvalue of φᵀφ.

    Returns:
        W, b (0 without intercept), the penalty in those units, and its relative leave-one-out error
        (root of the sum of squares over that of the centred targets, if these are not all 0).

    Raises:
        InputError: for fewer than two samples, no penalties, or penalties that are not positive.
    """
    if features.shape[0] < 2:
        raise InputError(f"ridge regression needs at least 2 samples, got {features.shape[0]}")
    if not penalties or not all(0 < penalty < math.inf for penalty in penalties):
        raise InputError(f"penalties must be positive numbers, at least one; got {list(penalties)}")
    with jax.default_matmul_precision("highest"):
        weights, bias, errors, penalty = _fit(features, targets, intercept, tuple(penalties))
    return weights, bias, float(penalty), float(jnp.sqrt(jnp.min(errors)))


@partial(jax.jit, static_argnames=("intercept", "penalties"))
def _fit(
    features: Float[Array, "N k"], targets: Float[Array, "N o"], intercept: bool, penalties: tuple[float, ...]
) -> tuple[Float[Array, "k o"], Float[Array, " o"], Float[Array, " p"], Float[Array, ""]]:
    free = 1.0 if intercept else 0.0
    mean, target_mean = free * jnp.mean(features, axis=0), free * jnp.mean(targets, axis=0)
    centred, targets = features - mean[None, :], targets - target_mean[None, :]
    values, vectors = jnp.linalg.eigh(centred.T @ centred)
    rotated = centred @ vectors
    products = rotated.T @ targets
    unit = jnp.mean(values)
    # features that never vary say nothing: any penalty gives them weight 0
    unit = jnp.where(unit > 0, unit, 1)

    def leave_one_out(penalty: Float[Array, ""]) -> Float[Array, ""]:
        shrunk = 1 / (jnp.maximum(values, 0) + penalty * unit)
        leverage = jnp.sum(rotated * rotated * shrunk[None, :], axis=1) + free / len(centred)
        residuals = targets - rotated @ (shrunk[:, None] * products)
        return jnp.sum((residuals / jnp.maximum(1 - leverage, 1e-6)[:, None]) ** 2)

    grid = jnp.asarray(penalties, features.dtype)
    errors = jax.lax.map(leave_one_out, grid)
    best, total = jnp.argmin(errors), jnp.sum(targets**2)
    weights = vectors @ (products / (jnp.maximum(values, 0) + grid[best] * unit)[:, None])
    return weights, target_mean - mean @ weights, errors / jnp.where(total > 0, total, 1), grid[best]
