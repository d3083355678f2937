"""What a theory check is: a statement, numbers that it must not exceed, and controls that must fail.

A check that cannot fail is worth nothing. Besides its rows every check therefore brings controls: the same comparison
with something wrong on purpose (a weight moved behind the bound's back, a term left out). A control that passes fails
the check.

Run checks one by one and print what they found; scripts in ``theory_checks/`` end with `run_alone`.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Row:
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
    def of_arrays(cls, case: str, measured: Any, bound: Any, **facts: Any) -> Row:
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
class Curve:
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


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        rows: the comparisons.
        controls: what must fail.
        facts: further numbers worth printing, such as a fitted slope.
        curves: what is worth a picture.
    """

    rows: tuple[Row, ...]
    controls: tuple[Control, ...]
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    curves: tuple[Curve, ...] = ()

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
class Real:
    """MLP blocks of a real model and what reaches them, in float64.

    Attributes:
        name: for people.
        blocks: layer → block.
        inputs: layer → block inputs, [N, d].
    """

    name: str
    blocks: dict[int, Any]
    inputs: dict[int, jax.Array]


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a check may use.

    Attributes:
        quick: whether to answer within seconds: fewer cases, widths and layers.
        seed: drives every random choice.
        models: real models; empty where there are none.
    """

    quick: bool = True
    seed: int = 0
    models: Sequence[Real] = ()

    @property
    def widths(self) -> tuple[float, ...]:
        """Kept shares of neurons on real blocks."""
        return (0.25,) if self.quick else (0.125, 0.25, 0.5)

    def layers(self) -> Iterator[tuple[Real, int]]:
        """Real blocks to check: of every model all layers; in quick mode of the first model the middle one."""
        for model in self.models[:1] if self.quick else self.models:
            layers = sorted(model.blocks)
            for layer in [layers[len(layers) // 2]] if self.quick else layers:
                yield model, layer


@dataclasses.dataclass(frozen=True)
class Check:
    """A statement with the function that tries to break it.

    Attributes:
        name: kebab-case, as on the command line.
        statement: one sentence.
        run: the function.
    """

    name: str
    statement: str
    run: Callable[[Scope], Outcome]


@contextmanager
def double_precision() -> Iterator[None]:
    """Float64, and matrix products at full precision."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@contextmanager
def quick_compilation(quick: bool) -> Iterator[None]:
    """Compile with little optimisation if `quick`: many small programs that each run once or twice."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", quick or before)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def run_check(check: Check, scope: Scope) -> tuple[Outcome, float]:
    """The outcome of a check in float64, and the seconds it took."""
    start = time.perf_counter()
    with double_precision():
        outcome = check.run(scope)
    return outcome, time.perf_counter() - start


def outcome_table(outcome: Outcome) -> Table:
    """One line per comparison: the largest number that was measured, or the worst violation, beside its bound."""
    table = Table(show_edge=False)
    for name in ("case", "measured", "bound", "median bound / measured", "compared", ""):
        table.add_column(name, justify="left" if name in ("case", "") else "right")
    for row in outcome.rows:
        numbers = ["–", "–"] if row.worst is None else [f"{side[row.worst]:.3e}" for side in (row.measured, row.bound)]
        numbers[1] = ("≥ " if row.at_least else "≤ ") + numbers[1]
        ratio = "–" if row.ratio != row.ratio else f"{row.ratio:.3g}"
        verdict = "PASS" if row.holds else f"FAIL ({row.violations})"
        table.add_row(escape(row.case), *numbers, ratio, f"{row.count} {row.of}", verdict)
    return table


def print_outcome(check: Check, outcome: Outcome, seconds: float, console: Console) -> None:
    """Print the statement, the numbers and the verdict.

    Args:
        check: what was checked.
        outcome: what was found.
        seconds: how long it took.
        console: where to.
    """
    console.print(f"[bold]{check.name}[/bold]: {escape(check.statement)}", highlight=False)
    console.print(outcome_table(outcome))
    for name, text in outcome.facts.items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    for control in outcome.controls:
        word = "fails, as it must" if control.failed else "PASSES, which it must not"
        console.print(f"control {word}: {control.name}", highlight=False, markup=False)
    verdict = "PASS" if outcome.passed else "FAIL: " + "; ".join(outcome.failures)
    console.print(f"{verdict} ({seconds:.1f} s)\n", highlight=False, markup=False)


def run_alone(check: Check) -> int:
    """The main function of a script: run the check, print, and return the exit code.

    Options on the command line are ``--full`` (every case, and the packaged real model if it is installed), ``--seed``.
    """
    parser = argparse.ArgumentParser(description=check.statement)
    parser.add_argument("--full", action="store_true", help="every case, and the packaged real model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from ntkfusion.verification.real_blocks import packaged_blocks

    with quick_compilation(not arguments.full):
        models = packaged_blocks(arguments.seed, quick=not arguments.full)
        scope = Scope(not arguments.full, arguments.seed, models)
        outcome, seconds = run_check(check, scope)
    print_outcome(check, outcome, seconds, Console())
    return int(not outcome.passed)
