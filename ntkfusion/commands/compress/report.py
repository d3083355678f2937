"""What ``ntkfusion compress`` writes and prints."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ntkfusion.checkpoints.save import save_model
from ntkfusion.commands.compress.run import CompressResult
from ntkfusion.commands.protocol import print_lines
from ntkfusion.reporting.summary import ERRORS


def write(result: CompressResult, folder: Path) -> None:
    """Save the model, with a README.md that says how it was made."""
    options = result.plan.options
    save_model(
        result.model,
        folder,
        format=options.format,
        dtype=options.dtype,
        pad=options.pad,
        merge=options.merge,
        notes=result.card,
    )


def blocks_table(result: CompressResult) -> Table:
    """One row per compressed block: size, and errors on held-out tokens if they were measured."""
    table = Table(title="Compressed MLP blocks", title_justify="left")
    measured = bool(result.errors)
    for name in ("block", "hidden width", "params kept", *(ERRORS.values() if measured else ()), "seconds"):
        table.add_column(name, justify="right")
    for layer, report in result.reports.items():
        errors = [f"{result.errors[layer][name]:.3f}" for name in ERRORS] if measured else []
        share = f"{100 * report.parameters / report.original_parameters:.1f} %"
        table.add_row(str(layer), str(report.hidden_width), share, *errors, f"{report.seconds:.2f}")
    return table


def show(result: CompressResult, console: Console) -> None:
    """Print the table, what the numbers are, and where the model is."""
    kind, folder = result.plan.options.format, result.plan.output.folder
    console.print(blocks_table(result))
    lines = [_conditions(result)]
    if result.folded:
        lines.append(
            f"Constants of the neurons were folded into the weights, as --format {kind} has no place for them: outputs "
            "stay, kernels change; the errors above are of what was saved. --format ntkfusion keeps the constants."
        )
    after, before = result.model.num_parameters, result.original_parameters
    lines.append(f"Saved: {folder} ({kind}; {after:,} parameters, {100 * after / before:.1f} % of the original's)")
    print_lines(console, *lines)


def _conditions(result: CompressResult) -> str:
    if not result.errors:
        return "Nothing was measured: the model has no tokenizer to read text with."
    notes = result.notes
    return (
        f"Errors are relative Frobenius norms on {notes['held_out_tokens']} held-out tokens ({notes['text']}, seed "
        f"{notes['seed']}); kernels traced over outputs. Calibration: {notes['calibration_tokens']:,} tokens."
    )
