"""Non-negative least squares from normal equations, and the compromise of one set of constants for two kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from ntkfusion.compression.neuron_kernels import NormalEquations

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

#: Added to the diagonal of the scaled normal equations: they come from float32 and may be singular.
JITTER = 1e-9
#: Where a trade-off is looked for on the way to a smaller share of the SGD kernel.
STEPS = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1)


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
