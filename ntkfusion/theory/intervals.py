"""Interval arithmetic on NumPy arrays, rounded outwards: what proofs about activations are made of.

Sums, products and quotients of float64 are correctly rounded, so one step of `nextafter` outwards encloses them.
NumPy's exp is taken to be within 8 units in the last place (it documents at most 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_EXP_ERROR = 2.0**-49


def _down(x: np.ndarray) -> np.ndarray:
    return np.nextafter(x, -np.inf)


def _up(x: np.ndarray) -> np.ndarray:
    return np.nextafter(x, np.inf)


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
