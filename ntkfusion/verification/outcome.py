"""What a theory check finds: comparisons, controls and figures as plain numbers.

The report of `ntkfusion verify` is made from these; nothing here needs JAX.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class CheckOutcome:
    """What a check found.

    Attributes:
        rows: the comparisons.
        controls: what must fail.
        facts: further numbers worth printing, such as a fitted slope.
        curves: what is worth a picture.
    """

    rows: tuple[CheckRow, ...]
    controls: tuple[Control, ...]
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    curves: tuple[CheckCurve, ...] = ()

    @property
    def failures(self) -> list[str]:
        """Everything that went wrong, in words; a check without rows or controls is wrong too."""
        broken = [
            f"{row.case}: {row.violations} of {row.count} {row.of} {row.wrong}" for row in self.rows if not row.holds
        ]
        passed = [f"control passes: {control.name}" for control in self.controls if not control.failed]
        parts = {"nothing was compared": self.rows, "there is no control": self.controls}
        return broken + passed + [sentence for sentence, part in parts.items() if not part]

    @property
    def passed(self) -> bool:
        """Whether the statement holds and every control fails."""
        return not self.failures


@dataclasses.dataclass(frozen=True)
class CheckRow:
    """One comparison: what was measured, and what it must not exceed.

    Attributes:
        case: what was compared, such as ``MiniLM, layer 3, width 1/4, output``.
        measured: one number per input or pair.
        bound: the largest value each may have; a tolerance for statements that something is exact.
        of: what one of the numbers is: "inputs", "pairs", "steps".
        layer: the layer of a real model it belongs to, or None.
        width: the kept share of the neurons, or None.
        exact: whether the bound is a tolerance, so that how far it is above what was measured says nothing.
        at_least: whether the bound is the smallest value, not the largest, that each may have: an error that must show.
    """

    case: str
    measured: np.ndarray
    bound: np.ndarray
    of: str = "pairs"
    layer: int | None = None
    width: float | None = None
    exact: bool = False
    at_least: bool = False

    @classmethod
    def of_arrays(cls, case: str, measured: object, bound: object, **facts: Any) -> CheckRow:
        """A row from arrays of any shape, the bound broadcast to what was measured."""
        values = np.asarray(measured, np.float64)
        return cls(case, values.ravel(), np.broadcast_to(np.asarray(bound, np.float64), values.shape).ravel(), **facts)

    @property
    def count(self) -> int:
        """How many numbers were compared."""
        return self.measured.size

    @property
    def violations(self) -> int:
        """How many exceed their bound, or stay below if it is the smallest value; what is not a number does."""
        held = self.measured >= self.bound if self.at_least else self.measured <= self.bound
        return int(np.count_nonzero(~held))

    @property
    def worst(self) -> int | None:
        """Where the bound is violated most; without violations where the number is largest (smallest, if at_least)."""
        if not self.count:
            return None
        if self.at_least:
            return int((self.measured - self.bound if self.violations else self.measured).argmin())
        return int((self.measured - self.bound if self.violations else self.measured).argmax())

    @property
    def wrong(self) -> str:
        """What a violation does, in a word."""
        return "stay below" if self.at_least else "exceed"

    @property
    def holds(self) -> bool:
        """Whether none does."""
        return self.count > 0 and not self.violations

    @property
    def ratio(self) -> float:
        """Median of bound / measured: how loose the bound is; NaN for tolerances and where nothing is above 0."""
        if self.exact or self.at_least:
            return float("nan")
        positive = self.measured > 0
        return float(np.median(self.bound[positive] / self.measured[positive])) if positive.any() else float("nan")


@dataclasses.dataclass(frozen=True)
class Control:
    """A comparison with something wrong on purpose.

    Attributes:
        name: what is wrong.
        failed: whether the comparison failed, as it should.
    """

    name: str
    failed: bool


@dataclasses.dataclass(frozen=True)
class CheckCurve:
    """Lines of a figure: a trajectory, or an error against the size of a perturbation.

    Attributes:
        title: what is shown.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        lines: name → (horizontal values, vertical values).
        log: whether both axes are logarithmic.
    """

    title: str
    x: str
    y: str
    lines: dict[str, tuple[np.ndarray, np.ndarray]]
    log: bool = False
