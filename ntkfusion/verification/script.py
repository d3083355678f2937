"""What a script of ``theory_checks/`` does: run its check, print what it found, and end with 1 if it fails."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ntkfusion.utils.console_tables import print_table
from ntkfusion.verification.check import Check, Scope, quick_compilation, run_check
from ntkfusion.verification.outcome import CheckOutcome
from ntkfusion.verification.real_blocks import packaged_blocks


def run_alone(check: Check) -> int:
    """The main function of a script: run the check, print, and return the exit code.

    Options on the command line are ``--full`` (every case, and the packaged real model if it is installed), ``--seed``.
    """
    parser = argparse.ArgumentParser(description=check.statement)
    parser.add_argument("--full", action="store_true", help="every case, and the packaged real model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with quick_compilation(not arguments.full):
        models = packaged_blocks(arguments.seed, quick=not arguments.full)
        scope = Scope(not arguments.full, arguments.seed, models)
        outcome, seconds = run_check(check, scope)
    print_outcome(check, outcome, seconds, Console())
    return int(not outcome.passed)


def print_outcome(check: Check, outcome: CheckOutcome, seconds: float, console: Console) -> None:
    """Print the statement, the numbers and the verdict.

    Args:
        check: what was checked.
        outcome: what was found.
        seconds: how long it took.
        console: where to.
    """
    console.print(f"[bold]{check.name}[/bold]: {escape(check.statement)}", highlight=False)
    print_table(console, outcome_table(outcome))
    for name, text in outcome.facts.items():
        console.print(f"{name}: {text}", highlight=False, markup=False)
    for control in outcome.controls:
        word = "fails, as it must" if control.failed else "PASSES, which it must not"
        console.print(f"control {word}: {control.name}", highlight=False, markup=False)
    verdict = "PASS" if outcome.passed else "FAIL: " + "; ".join(outcome.failures)
    console.print(f"{verdict} ({seconds:.1f} s)\n", highlight=False, markup=False)


def outcome_table(outcome: CheckOutcome) -> Table:
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
