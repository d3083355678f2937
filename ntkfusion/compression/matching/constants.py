"""Kernel-matched constants: the same function, and the kernel that is closest to the original's.

One kernel is matched by non-negative least squares from normal equations, which `neuron_kernels` derives (not from a
paper); both at once by a compromise of one set of constants, `trade_off`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from ntkfusion.compression.matching.neuron_kernels import POWERS, NormalEquations, normal_equations
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.kinds import Kind, check_inputs
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock

Vector: TypeAlias = NDArray[np.float64]

Matrix: TypeAlias = NDArray[np.float64]

#: Which kernel the constants are matched to.
Target = Literal["sgd", "sign", "both"]

#: Constants are at least this part of the largest: a neuron that the solution leaves out hardly trains, but it stays.
FLOOR = 1e-3

#: Added to the diagonal of the scaled normal equations: they come from float32 and may be singular.
JITTER = 1e-9

#: Where a trade-off is looked for on the way to a smaller share of the SGD kernel.
STEPS = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1)


@dataclasses.dataclass(frozen=True)
class MatchedBlock:
    """A block with matched constants.

    Attributes:
        block: the same function with other kernels.
        errors: relative Frobenius errors on the calibration inputs by kind of kernel, as far as it was matched.
    """

    block: MLPBlock | MaskedBlock | FactorizedBlock
    errors: Mapping[str, float]


def match_constants(
    block: Block,
    original: Block,
    x: Float[Array, "N d"],
    *,
    target: Target = "sgd",
    sgd_share: float = 0.5,
) -> MatchedBlock:
    """Give a block the constants that bring its traced kernel closest to the original's on calibration inputs.

    For one kernel this is non-negative least squares, solved globally. For "both" one set of constants minimises
    ``ω e_sgd² + (1 − ω) e_sign²``; the SGD kernel is quadratic in the constants and the sign kernel linear, so this is
    not convex, and a minimum is followed from the SGD solution. Constants are at least `FLOOR` of the largest.

    Args:
        block: a compressed block, dense, masked or factorised. Its function is kept (up to rounding).
        original: the block it came from, of any kind.
        x: calibration inputs; the time grows with N² c².
        target: "sgd", "sign" or "both".
        sgd_share: ω, for "both".

    Returns:
        The new block and its kernel errors on `x`.

    Raises:
        InputError: for an unknown target, a share outside [0, 1], blocks of other kinds, or
            inputs that do not fit.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.blocks.dense import MLPBlock
    >>> twice = MLPBlock(jnp.ones((1, 2)), None, jnp.ones((2, 1)), None, activation="relu")
    >>> once = MLPBlock(jnp.ones((1, 1)), None, 2 * jnp.ones((1, 1)), None, activation="relu")
    >>> matched = match_constants(once, twice, jnp.array([[1.0], [2.0]]))
    >>> [round(v, 3) for v in block_kernel(matched.block, jnp.array([[1.0]])).tolist()[0]]  # 4 for the original
    [4.0]
    """
    check_target(target, sgd_share)
    if target == "both":
        return match_both(block, original, x, sgd_shares=(sgd_share,))[0]
    check_inputs(original, x, None)
    problem = _problem(block, original, x, target)
    solution = nonnegative_least_squares(problem.matrix, problem.target)
    return _matched(block, solution ** (1 / POWERS[target]), {target: problem})


def match_both(
    block: Block, original: Block, x: Float[Array, "N d"], *, sgd_shares: Sequence[float]
) -> list[MatchedBlock]:
    """One set of constants for both kernels, for every weight between them: the curve of `match_constants`' "both".

    Args:
        block: as there.
        original: as there.
        x: as there.
        sgd_shares: weights ω of the SGD kernel's squared relative error, in any order.

    Returns:
        One block per weight; the same function all of them.

    Raises:
        InputError: for shares outside [0, 1], and as `match_constants`.
    """
    for share in sgd_shares:
        check_target("both", share)
    check_inputs(original, x, None)
    problems: dict[Kind, NormalEquations] = {kind: _problem(block, original, x, kind) for kind in POWERS}
    solutions = trade_off(problems["sgd"], problems["sign"], sgd_shares)
    return [_matched(block, constants, problems) for constants in solutions]


def with_constants(
    block: Block, q: Float[Array, " c"], r: Float[Array, " c"]
) -> MLPBlock | MaskedBlock | FactorizedBlock:
    """The same function with constants q behind and r in front of the activation, by dividing the weights by them.

    Raises:
        InputError: for a block of another kind.
    """
    if not isinstance(block, (MLPBlock, MaskedBlock, FactorizedBlock)):
        raise InputError(
            f"constants belong to neurons of dense, masked and factorised blocks; got a {type(block).__name__}"
        )
    block = block.fold()
    b1 = None if block.b1 is None else block.b1 / r
    if not isinstance(block, FactorizedBlock):
        return block.replace(w1=block.w1 / r[None, :], b1=b1, w2=block.w2 / q[:, None], q=q, r=r)
    return block.replace(right1=block.right1 / r[None, :], b1=b1, left2=block.left2 / q[:, None], q=q, r=r)


def check_target(target: str, sgd_share: float) -> None:
    """Refuse what constants cannot be matched to.

    Raises:
        InputError: for an unknown target, or a share outside [0, 1].
    """
    if target not in get_args(Target):
        raise InputError(f"unknown target {target!r}; known: {', '.join(get_args(Target))}")
    if not 0 <= sgd_share <= 1:
        raise InputError(f"sgd_share is a weight from 0 to 1; got {sgd_share}")


def _problem(block: Block, original: Block, x: Float[Array, "N d"], kind: Kind) -> NormalEquations:
    return normal_equations(block, block_kernel(original, x, kind=kind), x, kind)


def _matched(block: Block, constants: NDArray[np.float64], problems: Mapping[Kind, NormalEquations]) -> MatchedBlock:
    """The block with (γ, α), none of them too close to 0, and its errors."""
    halves = [np.maximum(half, FLOOR * (half.max() or 1.0)) for half in np.split(constants, 2)]
    errors = {kind: problem.error(np.concatenate(halves) ** POWERS[kind]) for kind, problem in problems.items()}
    dtype = jax.tree.leaves(block)[0].dtype
    return MatchedBlock(with_constants(block, *(jnp.asarray(half, dtype) for half in halves)), errors)


def nonnegative_least_squares(matrix: Matrix, target: Vector) -> Vector:
    """The u ≥ 0 that minimises uᵀHu − 2 rᵀu, by an active-set method on the Cholesky factor of H.

    Args:
        matrix: H, symmetric and positive semi-definite up to rounding, [n, n].
        target: r, [n].

    Returns:
        The minimiser. Unknowns whose row of H is 0 get 0.

    >>> nonnegative_least_squares(np.diag([1.0, 2.0]), np.array([3.0, -1.0]))
    array([3., 0.])
    """
    scale = np.sqrt(np.diag(matrix).clip(min=0))
    used = scale > 0
    solution = np.zeros(len(target))
    if not used.any():
        return solution
    scale = scale[used]
    scaled = matrix[np.ix_(used, used)] / np.outer(scale, scale)
    factor = _factor(scaled)
    rows = solve_triangular(factor, target[used] / scale, lower=True)
    solution[used] = nnls(factor.T, rows, maxiter=30 * len(scale))[0] / scale
    return solution


def _factor(matrix: Matrix) -> Matrix:
    """The Cholesky factor of a matrix with unit diagonal, with as little added to the diagonal as makes it definite."""
    jitter = JITTER
    while True:
        try:
            return cholesky(matrix + jitter * np.eye(len(matrix)), lower=True)
        except np.linalg.LinAlgError:
            jitter *= 10


def trade_off(sgd: NormalEquations, sign: NormalEquations, sgd_shares: Sequence[float]) -> list[Vector]:
    """Constants c = (γ, α) ≥ 0 with a small ω e_sgd(c²)² + (1 − ω) e_sign(c)², for several ω.

    The first term is a quartic: its squares are linearised where the last iterate is (Gauss–Newton with Levenberg's
    damping), which leaves a non-negative least-squares problem. The minimum is followed from ω = 1, whose solution is
    known, downwards, because from elsewhere the iteration runs into worse ones. ω = 0 is known again.

    Args:
        sgd: the normal equations of the SGD kernel, in the squares of the constants.
        sign: those of the sign kernel.
        sgd_shares: every ω, from 0 to 1, in any order.

    Returns:
        γ and α, concatenated, for each ω.
    """
    constants = np.sqrt(nonnegative_least_squares(sgd.matrix, sgd.target))
    found = {1.0: constants, 0.0: nonnegative_least_squares(sign.matrix, sign.target)}
    inner = {share for share in sgd_shares if 0 < share < 1}
    lowest = min(inner, default=1.0)
    for share in sorted(inner | {share for share in STEPS if share > lowest}, reverse=True):
        # a constant of 0 has no slope in the linearised squares and would stay 0
        constants = _descend(sgd, sign, share, np.maximum(constants, 1e-3 * constants.max()))
        found[share] = constants
    return [found[share] for share in sgd_shares]


def _descend(sgd: NormalEquations, sign: NormalEquations, share: float, constants: Vector, steps: int = 8) -> Vector:
    def objective(c: Vector) -> float:
        return share * sgd.error(c * c) ** 2 + (1 - share) * sign.error(c) ** 2

    best, damping = objective(constants), 1e-3
    for _ in range(steps):
        slope = 2 * constants  # c² ≈ slope c − constants²
        matrix = share * (slope[:, None] * sgd.matrix * slope[None, :]) + (1 - share) * sign.matrix
        target = share * slope * (sgd.target + sgd.matrix @ (constants * constants)) + (1 - share) * sign.target
        weight = damping * np.diag(matrix)
        proposal = nonnegative_least_squares(matrix + np.diag(weight), target + weight * constants)
        value = objective(proposal)
        if value >= best:
            damping *= 10
            continue
        gain, best, constants, damping = best - value, value, proposal, damping / 5
        if gain < 1e-4 * best:
            break
    return constants
