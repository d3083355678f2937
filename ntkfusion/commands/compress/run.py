"""``ntkfusion compress``: one method on every chosen block, what it did, and the model to save."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from ntkfusion.checkpoints.companions import Companions
from ntkfusion.checkpoints.export import exportable
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import check_exportable, check_request, save_model
from ntkfusion.commands.compress.options import Compress
from ntkfusion.commands.conditions import command_line
from ntkfusion.commands.protocol import print_lines
from ntkfusion.commands.request import check_at_least, check_fits_format, check_seed, results_path
from ntkfusion.compression.block_errors import Reference, check_memory
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.compression.contract import BlockReport, Compressed, Method
from ntkfusion.compression.registry import build_method, with_clustering
from ntkfusion.compression.workspace import Workspace
from ntkfusion.data.block_inputs import BlockInputs
from ntkfusion.data.calibration import CalibrationSplit, describe_text
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.model import Model
from ntkfusion.reporting.summary import ERRORS
from ntkfusion.utils.console_tables import print_table
from ntkfusion.utils.files import Json, Output
from ntkfusion.utils.progress import Progress

#: The format that holds everything.
NATIVE = "ntkfusion"


@dataclasses.dataclass(frozen=True)
class CompressPlan:
    """A checked request: the method, the text, and the folder to write."""

    options: Compress
    method: Method
    split: CalibrationSplit
    output: Output
    steps: int = 4


@dataclasses.dataclass(frozen=True)
class CompressResult:
    """A compressed model as it is saved, with what compression did to each block.

    Attributes:
        plan: the request.
        model: the new model.
        reports: layer → size and time.
        errors: layer → relative Frobenius errors on held-out tokens; empty without a tokenizer.
        notes: how the model was made, for the folder's README.
        original_parameters: trainable numbers of the original.
        folded: whether constants were folded away, so that the kernels are not those of the method.
    """

    plan: CompressPlan
    model: Model
    reports: Mapping[int, BlockReport]
    errors: Mapping[int, Mapping[str, float]]
    notes: Json
    original_parameters: int
    folded: bool

    @property
    def card(self) -> Json:
        """What the folder's README says: the notes, and a table with a row per block."""
        rows = {
            layer: {"parameters": report.parameters, "hidden_width": report.hidden_width, **self._shown(layer)}
            for layer, report in self.reports.items()
        }
        return {**self.notes, "blocks": rows}

    def _shown(self, layer: int) -> dict[str, float | str]:
        errors = self.errors.get(layer, {})
        return {name: "n/a" if math.isnan(error) else error for name, error in errors.items()}


def plan(options: Compress) -> CompressPlan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unknown method, a width out of range, too few tokens, unusable text or output.
        OutputExistsError: if an earlier result would be replaced that must not be.
    """
    check_at_least(options, tokens=2, calibration_tokens=2, restarts=1)
    check_seed(options.seed)
    built = build_method(options.method, options.width)
    method = with_clustering(built, restarts=options.restarts, allocation=options.allocation)
    folder = results_path(options.out, f"{Path(options.model).name}-{options.method}-{options.width:g}")
    check_request(folder, format=options.format, dtype=options.dtype, overwrite=options.overwrite)
    check_fits_format(method, f"--method {options.method}", format=options.format, merge=options.merge)
    split = CalibrationSplit.of(options.text, seed=options.seed)
    return CompressPlan(options, method, split, Output(folder, overwrite=options.overwrite))


def _check_widths(options: Compress, layers: Sequence[int], num_blocks: int) -> None:
    """Refuse layers of different widths in a format that has one for all, before any work."""
    differ = len(layers) < num_blocks or options.allocation != "uniform"
    if options.format != NATIVE and differ and not options.pad and not options.merge and options.width < 1:
        raise InputError(
            f"these options make MLP blocks of different widths, and --format {options.format} has one for all: pass "
            f"--pad to fill them with zero neurons, or --format {NATIVE} to keep them"
        )


def run(plan: CompressPlan, progress: Progress) -> CompressResult:
    """Load the model, compress it and measure.

    Returns:
        The result; its model is what will be saved, constants folded if the format has no place for them.

    Raises:
        NTKFusionError: if the model cannot be loaded, or a layer, the method or the format does not fit it.
    """
    with jax.default_matmul_precision("highest"):
        return _run(plan, progress)


def _run(plan: CompressPlan, progress: Progress) -> CompressResult:
    start, options = time.perf_counter(), plan.options
    progress.advance("loading the model", 0)
    model = load_model(options.model, tokenizer=not options.no_tokenizer, ignore_adapter=options.ignore_adapter)
    check_exportable(model, options.format)
    layers = check_layers(options.layers or None, model.config.num_blocks)
    every_block = model.mlp_blocks()
    blocks = [every_block[layer] for layer in layers]
    _check_widths(options, layers, model.config.num_blocks)
    plan.method.check(blocks)
    progress.advance("reading the text", 1)
    calibration, held_out = _collect(plan, model, len(layers))
    progress.advance(f"{options.method} at width {options.width:g}", 2)
    inputs = None if calibration is None else [calibration.inputs[layer] for layer in layers]

    def within(what: str, fraction: float) -> None:
        progress.advance(f"{options.method}: {what}, {100 * fraction:.0f} %", 2)

    compressed = plan.method.compress(blocks, Workspace(options.seed, inputs, progress=within))
    small = model.replace_mlp_blocks(dict(zip(layers, compressed.blocks, strict=True)))
    progress.advance("measuring", 3)
    saved = small if options.format == NATIVE else exportable(small, pad=options.pad, merge=options.merge)
    errors = {} if held_out is None else _errors(layers, every_block, saved.mlp_blocks(), held_out)
    facts = _facts(plan, layers, calibration, held_out)
    notes = facts | _sizes(compressed) | _means(errors) | {"seconds": round(time.perf_counter() - start, 1)}
    reports = dict(zip(layers, compressed.reports, strict=True))
    folded = saved is not small and any(block.constants() for block in compressed.blocks)
    return CompressResult(plan, saved, reports, errors, notes, model.num_parameters, folded)


def _collect(plan: CompressPlan, model: Model, num_layers: int) -> tuple[BlockInputs | None, BlockInputs | None]:
    """Calibration and held-out inputs; none for a model that cannot read text."""
    if model.tokenizer is None:
        return None, None
    return plan.split.collect(
        model,
        tokens=plan.options.tokens,
        calibration_tokens=plan.options.calibration_tokens,
        check=lambda count: check_memory(count, num_layers),
    )


def _errors(
    layers: Sequence[int], originals: Sequence[Block], blocks: Sequence[Block], held_out: BlockInputs
) -> dict[int, dict[str, float]]:
    inputs = held_out.inputs
    return {layer: Reference.of(originals[layer], inputs[layer]).errors(blocks[layer]) for layer in layers}


def _facts(
    plan: CompressPlan, layers: Sequence[int], calibration: BlockInputs | None, held_out: BlockInputs | None
) -> Json:
    options = plan.options
    return {
        "command": command_line(options),
        "method": options.method,
        "width": options.width,
        "layers": list(layers),
        "seed": options.seed,
        "text": describe_text(options.text),
        "calibration_tokens": 0 if calibration is None else len(calibration.tokens),
        "held_out_tokens": 0 if held_out is None else len(held_out.tokens),
        "held_out_tokens_dropped": 0 if held_out is None else held_out.num_dropped,
    }


def _sizes(compressed: Compressed) -> dict[str, int]:
    reports = compressed.reports
    return {
        "block_parameters": sum(report.parameters for report in reports),
        "original_block_parameters": sum(report.original_parameters for report in reports),
    }


def _means(errors: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Means over layers, as `compare` prints them: without those where an error is relative to 0."""
    names = next(iter(errors.values()), {})
    means = {}
    for name in names:
        defined = [layer[name] for layer in errors.values() if not math.isnan(layer[name])]
        means |= {f"mean_{name}": sum(defined) / len(defined)} if defined else {}
    return means


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
        errors = [_error(result.errors[layer][name]) for name in ERRORS] if measured else []
        share = f"{100 * report.parameters / report.original_parameters:.1f} %"
        table.add_row(str(layer), str(report.hidden_width), share, *errors, f"{report.seconds:.2f}")
    return table


def _error(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def show(result: CompressResult, console: Console) -> None:
    """Print the table, what the numbers are, and where the model is."""
    kind, folder = result.plan.options.format, result.plan.output.folder
    print_table(console, blocks_table(result))
    lines = [_conditions(result)]
    if result.folded:
        lines.append(
            f"Constants of the neurons were folded into the weights, as --format {kind} has no place for them: outputs "
            "stay, kernels change; the errors above are of what was saved. --format ntkfusion keeps the constants."
        )
    after, before = result.model.num_parameters, result.original_parameters
    lines.append(f"Saved: {folder} ({kind}; {after:,} parameters, {100 * after / before:.1f} % of the original's)")
    print_lines(console, *lines, *Companions.of(result.model, kind).lines())


def _conditions(result: CompressResult) -> str:
    if not result.errors:
        why = "was loaded without its" if result.plan.options.no_tokenizer else "has no"
        return f"Nothing was measured: the model {why} tokenizer to read text with."
    notes = result.notes
    return (
        f"Errors are relative Frobenius norms on {notes['held_out_tokens']} held-out tokens ({notes['text']}, seed "
        f"{notes['seed']}); kernels traced over outputs. Calibration: {notes['calibration_tokens']:,} tokens."
    )
