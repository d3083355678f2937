"""What ``ntkfusion compress`` and ``ntkfusion convert`` print."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ntkfusion.checkpoints.audit import Audit
from ntkfusion.commands.compress.run import Outcome
from ntkfusion.commands.inspect.report import left_aside_lines
from ntkfusion.models.model import Model

_ERRORS = {
    "output_error": "output error",
    "sgd_kernel_error": "SGD kernel error",
    "sign_kernel_error": "sign kernel error",
}


def outcome_table(outcome: Outcome) -> Table:
    """One row per compressed block: size, and errors on held-out tokens if they were measured."""
    table = Table(title="Compressed MLP blocks", title_justify="left")
    measured = bool(outcome.errors)
    for name in ("block", "hidden width", "params kept", *(_ERRORS.values() if measured else ()), "seconds"):
        table.add_column(name, justify="right")
    for layer, report in outcome.reports.items():
        errors = [f"{outcome.errors[layer][name]:.3f}" for name in _ERRORS] if measured else []
        share = f"{100 * report.parameters / report.original_parameters:.1f} %"
        table.add_row(str(layer), str(report.hidden_width), share, *errors, f"{report.seconds:.2f}")
    return table


def print_outcome(outcome: Outcome, kind: str, folder: Path, console: Console) -> None:
    """Print the table, what the numbers are, and where the model is.

    Args:
        outcome: of the run.
        kind: the format it was saved in.
        folder: where it was saved.
        console: where to.
    """
    console.print(outcome_table(outcome))
    lines = [_conditions(outcome)]
    if outcome.folded:
        lines.append(
            f"Constants of the neurons were folded into the weights, as --format {kind} has no place for them: outputs "
            "stay, kernels change; the errors above are of what was saved. --format ntkfusion keeps the constants."
        )
    after, before = outcome.model.num_parameters, outcome.original_parameters
    lines.append(f"Saved: {folder} ({kind}; {after:,} parameters, {100 * after / before:.1f} % of the original's)")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _conditions(outcome: Outcome) -> str:
    if not outcome.errors:
        return "Nothing was measured: the model has no tokenizer to read text with."
    notes = outcome.notes
    return (
        f"Errors are relative Frobenius norms on {notes['held_out_tokens']} held-out tokens ({notes['text']}, seed "
        f"{notes['seed']}); kernels traced over outputs. Calibration: {notes['calibration_tokens']:,} tokens."
    )


def print_conversion(model: Model, audit: Audit, kind: str, folder: Path, console: Console) -> None:
    """Print what became of every tensor, and where the model is.

    Args:
        model: what was converted.
        audit: of its loading.
        kind: the format it was saved in.
        folder: where it was saved.
        console: where to.
    """
    stored = ", ".join(f"{count} as {dtype}" for dtype, count in audit.dtypes.items())
    lines = [
        f"{model.source}: {model.config.architecture}, {model.config.head or 'no head'}",
        f"{len(audit.loaded)} tensors read ({stored}), {audit.num_parameters:,} parameters",
        *left_aside_lines(audit.left_aside),
        f"Saved: {folder} ({kind})",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
