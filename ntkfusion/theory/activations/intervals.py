"""Enclosures of the derivatives of activations on intervals: what the proofs of their suprema are made of.

A smooth activation is σ(h) = h P(h), hence σ^(k) = k! (h p_k + p_{k−1}) with the Taylor coefficients p_k of P, which
follow from differential equations:

    P = s(u), s' = s(1 − s):  (k + 1) p_{k+1} = Σ_j (j + 1) u_{j+1} w_{k−j},  w = p (1 − p)
    P = Φ, φ' = −h φ:         (k + 1) p_{k+1} = φ_k,  (k + 1) φ_{k+1} = −(h φ_k + φ_{k−1})

Every operation is one of interval arithmetic (`Interval`), so the results enclose the derivatives at all points of the
interval. Sums, products and quotients of float64 are correctly rounded, so one step of `nextafter` outwards encloses
them; NumPy's exp is taken to be within 8 units in the last place (it documents at most 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ntkfusion.theory.activations.derivatives import CUBIC, INV_SQRT_2PI, SLOPE


def derivative_on(name: str, h: Interval, order: int) -> Interval:
    """An enclosure of σ^(order) on intervals.

    Args:
        name: "gelu", "gelu_tanh" or "silu".
        h: the intervals; |h| ≤ 8 for gelu, ≤ 20 for gelu_tanh, ≤ 700 for silu.
        order: 1 or more.

    Returns:
        Intervals that hold σ^(order)(t) for every t in `h`.
    """
    p = _gauss_jet(h, order) if name == "gelu" else _logistic_jet([h, _ONE] if name == "silu" else _cubic(h), order)
    return Interval.exactly(float(math.factorial(order))) * (h * p[order] + p[order - 1])


#: From here on `tail` holds (and the Gaussian series ends).
REACH = {"gelu": 8.0, "gelu_tanh": 8.0, "silu": 40.0}


def tail(name: str, order: int, t: float) -> float:
    """A bound of |σ^(order)(h)| for |h| ≥ t ≥ 8, order 1 to 4; for order 1 of |σ'(h) − 1[h > 0]|.

    With |s^(k)| ≤ s' ≤ e^{−|u|} for k = 1, 2, 3, |s''''| ≤ e^{−|u|} likewise, and Φ(−t) ≤ φ(t)/t, each is a polynomial
    in |h| with coefficients ≥ 0 and degree ≤ 9 times a function that decays faster than e^{−1.5|h|} (gelu, gelu_tanh),
    or of degree 1 times e^{−|h|}: it decreases for |h| ≥ 8, so its value at t bounds the rest.

    Source: own derivation.
    """
    if name == "gelu":
        polynomial = {1: t + 1, 2: t**2 + 2, 3: t**3 + 4 * t, 4: t**4 + 7 * t**2 + 4}[order]
        return 1.000001 * INV_SQRT_2PI * math.exp(-t * t / 2) * polynomial
    if name == "silu":
        return 1.000001 * math.exp(-t) * (order + t)
    u, u1, u2, u3 = (
        SLOPE * (t + CUBIC * t**3),
        SLOPE * (1 + 3 * CUBIC * t * t),
        6 * SLOPE * CUBIC * t,
        6 * SLOPE * CUBIC,
    )
    p = [1.0, u1, u1**2 + u2, u1**3 + 3 * u1 * u2 + u3, u1**4 + 6 * u1**2 * u2 + 3 * u2**2 + 4 * u1 * u3]
    return 1.000001 * math.exp(-u) * (order * p[order - 1] + t * p[order])


_EXP_ERROR = 2.0**-49


@dataclass(frozen=True)
class Interval:
    """All numbers from `lo` to `hi`, element by element."""

    lo: np.ndarray
    hi: np.ndarray

    @classmethod
    def around(cls, value: float) -> Interval:
        """A real number known by its nearest float64."""
        x = np.atleast_1d(np.asarray(value, np.float64))
        return cls(_down(x), _up(x))

    @classmethod
    def exactly(cls, value: float | np.ndarray) -> Interval:
        """Float64 numbers themselves."""
        x = np.atleast_1d(np.asarray(value, np.float64))
        return cls(x, x)

    @property
    def midpoint(self) -> np.ndarray:
        """Some float64 inside, near the middle."""
        return self.lo + 0.5 * (self.hi - self.lo)

    @property
    def magnitude(self) -> np.ndarray:
        """The largest absolute value inside."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    def __add__(self, other: Interval) -> Interval:
        return Interval(_down(self.lo + other.lo), _up(self.hi + other.hi))

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def __sub__(self, other: Interval) -> Interval:
        return self + (-other)

    def __mul__(self, other: Interval) -> Interval:
        products = [a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return Interval(_down(np.minimum.reduce(products)), _up(np.maximum.reduce(products)))

    def __truediv__(self, divisor: float) -> Interval:
        """A quotient by a positive float64."""
        return Interval(_down(self.lo / divisor), _up(self.hi / divisor))

    def intersect(self, other: Interval) -> Interval:
        """What two enclosures of one quantity leave."""
        return Interval(np.maximum(self.lo, other.lo), np.minimum(self.hi, other.hi))

    def square(self) -> Interval:
        """Squares; a product of two unknown numbers could be negative, a square cannot."""
        ends = np.minimum(np.abs(self.lo), np.abs(self.hi))
        smallest = np.where((self.lo <= 0) & (self.hi >= 0), 0.0, ends)
        return Interval(np.maximum(_down(smallest * smallest), 0.0), _up(self.magnitude**2))

    def exp(self) -> Interval:
        """Exponentials."""
        lo, hi = np.exp(self.lo), np.exp(self.hi)
        return Interval(np.maximum(_down(lo * (1 - _EXP_ERROR)), 0.0), _up(hi * (1 + _EXP_ERROR)))

    def logistic(self) -> Interval:
        """1/(1 + exp(−u)), which increases with u."""
        below = Interval.exactly(1.0) + (-self).exp()
        return Interval(_down(1.0 / below.hi), _up(1.0 / below.lo))


def _down(x: np.ndarray) -> np.ndarray:
    return np.nextafter(x, -np.inf)


def _up(x: np.ndarray) -> np.ndarray:
    return np.nextafter(x, np.inf)


#: Terms of the series of Φ: enough for |h| ≤ 8.
_TERMS = 260


_ZERO, _ONE = Interval.exactly(0.0), Interval.exactly(1.0)


def _gauss(h: Interval) -> Interval:
    return Interval.around(INV_SQRT_2PI) * (-(h.square() / 2.0)).exp()


def _cumulative_at(h: np.ndarray) -> Interval:
    """Φ(h) = ½ + φ(h) Σ_k h^{2k+1}/(2k+1)!!, at points |h| ≤ 8."""
    size = np.abs(h)
    term = total = size
    for k in range(1, _TERMS):
        term = term * (size * size / (2.0 * k + 1))
        total = total + term
    # all terms are positive, so 4 roundings for each are relative errors that add up; terms have come to shrink by
    # less than ½, so the rest of the series is at most the last one
    error = 4 * _TERMS * 2.0**-53
    half = _gauss(Interval.exactly(size)) * Interval(total * (1 - error), (total + term) * (1 + error))
    signed = Interval(np.where(h < 0, -half.hi, half.lo), np.where(h < 0, -half.lo, half.hi))
    return Interval.exactly(0.5) + signed


def _cumulative(h: Interval) -> Interval:
    return Interval(_cumulative_at(h.lo).lo, _cumulative_at(h.hi).hi)


def _gauss_jet(h: Interval, order: int) -> list[Interval]:
    density = [_gauss(h)]
    for k in range(order - 1):
        before = density[k - 1] if k else _ZERO
        density.append(-(h * density[k] + before) / (k + 1.0))
    # Φ itself is part of σ and σ' only
    value = _cumulative(h) if order == 1 else _ZERO
    return [value, *(phi / (k + 1.0) for k, phi in enumerate(density[:order]))]


def _logistic_jet(u: list[Interval], order: int) -> list[Interval]:
    p, w = [u[0].logistic()], [u[0].logistic() * (-u[0]).logistic()]
    for k in range(order):
        terms = [Interval.exactly(j + 1.0) * u[j + 1] * w[k - j] for j in range(k + 1) if j + 1 < len(u)]
        p.append(_total(terms) / (k + 1.0))
        w.append(p[-1] - _total([p[i] * p[k + 1 - i] for i in range(k + 2)]))
    return p


def _total(terms: list[Interval]) -> Interval:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _cubic(h: Interval) -> list[Interval]:
    """Taylor coefficients of u(h) = SLOPE (h + CUBIC h³)."""
    slope, cubic = Interval.around(SLOPE), Interval.around(CUBIC)
    three = Interval.exactly(3.0) * cubic
    return [
        slope * h * (_ONE + cubic * h.square()),
        slope * (_ONE + three * h.square()),
        slope * three * h,
        slope * cubic,
    ]
