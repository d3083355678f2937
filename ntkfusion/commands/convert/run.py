"""The command ``ntkfusion convert``: load with a full audit, save, print what became of every tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from ntkfusion.checkpoints.audit import Audit
from ntkfusion.checkpoints.companions import Companions
from ntkfusion.checkpoints.load import load_with_audit
from ntkfusion.checkpoints.save import check_exportable, check_request, save_model
from ntkfusion.commands.conditions import command_line, left_aside_lines
from ntkfusion.commands.convert.options import Convert
from ntkfusion.commands.protocol import print_lines
from ntkfusion.models.model import Model
from ntkfusion.utils.files import Output
from ntkfusion.utils.progress import Progress


@dataclasses.dataclass(frozen=True)
class ConvertPlan:
    """A checked request."""

    options: Convert
    output: Output
    steps: int = 1


@dataclasses.dataclass(frozen=True)
class ConvertResult:
    """A model as it was read, with the account of its tensors."""

    plan: ConvertPlan
    model: Model
    audit: Audit


def plan(options: Convert) -> ConvertPlan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unusable folder or dtype.
        OutputExistsError: if an earlier result would be replaced that must not be.
    """
    check_request(options.out, format=options.format, dtype=options.dtype, overwrite=options.overwrite)
    return ConvertPlan(options, Output(options.out, overwrite=options.overwrite))


def run(plan: ConvertPlan, progress: Progress) -> ConvertResult:
    """Load the model; its tokenizer's files are copied, and nothing is read by it.

    Raises:
        NTKFusionError: if it cannot be loaded, or if the format has no class that computes it.
    """
    progress.advance("loading the model", 0)
    options = plan.options
    head = None if options.no_head else "auto"
    model, audit = load_with_audit(options.model, head=head, tokenizer=False, ignore_adapter=options.ignore_adapter)
    check_exportable(model, options.format)
    return ConvertResult(plan, model, audit)


def write(result: ConvertResult, folder: Path) -> None:
    """Save the model.

    Raises:
        InputError: if the format has no place for it.
    """
    options = result.plan.options
    command = command_line(options, positional=("model", "out"))
    save_model(
        result.model,
        folder,
        format=options.format,
        dtype=options.dtype,
        pad=options.pad,
        merge=options.merge,
        notes={"command": command, "left aside": result.audit.left_aside} | _found(result.audit),
    )


def _found(audit: Audit) -> dict[str, object]:
    return {"found when reading": "; ".join(audit.notes)} if audit.notes else {}


def show(result: ConvertResult, console: Console) -> None:
    """Print what became of every tensor, and where the model is."""
    options, model, audit = result.plan.options, result.model, result.audit
    stored = ", ".join(f"{count} as {dtype}" for dtype, count in audit.dtypes.items())
    print_lines(
        console,
        f"{model.source}: {model.config.architecture}, {model.config.head or 'no head'}",
        f"{len(audit.loaded)} tensors read ({stored}), {audit.num_parameters:,} parameters",
        *audit.notes,
        *left_aside_lines(audit.left_aside),
        *Companions.of(model, options.format).lines(),
        f"Saved: {options.out} ({options.format})",
    )
