"""The job behind ``ntkfusion compress``: one method, every chosen block, what it did, and the model to save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ntkfusion.checkpoints.export import exportable
from ntkfusion.checkpoints.load import load_model
from ntkfusion.checkpoints.save import check_request
from ntkfusion.commands.compress.options import Compress
from ntkfusion.commands.conditions import check_seed, command_line, describe_text, read_text
from ntkfusion.compression.block_errors import Reference, check_memory
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.compression.contract import BlockReport, Compressed, Method
from ntkfusion.compression.registry import build_method, with_clustering
from ntkfusion.compression.workspace import Workspace
from ntkfusion.data.block_inputs import BlockInputs, collect_block_inputs, unseen_sentences
from ntkfusion.data.text import split_sentences
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.coded import CodedBlock
from ntkfusion.models.blocks.dense import FactorizedBlock
from ntkfusion.models.model import Model
from ntkfusion.utils.progress import Advance

#: The format that holds everything.
OWN = "ntkfusion"

#: Sentences are cut to this many tokens.
MAX_LENGTH = 128


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked request: the method, the text, and the folder to write."""

    options: Compress
    method: Method
    calibration: list[str]
    held_out: list[str]
    folder: Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A compressed model as it is saved, with what compression did to each block.

    Attributes:
        model: the new model.
        reports: layer → size and time.
        errors: layer → relative Frobenius errors on held-out tokens; empty without a tokenizer.
        notes: how the model was made, for the folder's README.
        original_parameters: trainable numbers of the original.
        folded: whether constants were folded away, so that the kernels are not those of the method.
    """

    model: Model
    reports: Mapping[int, BlockReport]
    errors: Mapping[int, Mapping[str, float]]
    notes: Mapping[str, Any]
    original_parameters: int
    folded: bool

    @property
    def card(self) -> dict[str, Any]:
        """What the folder's README says: the notes, and a table with a row per block."""
        rows = {
            layer: {"parameters": report.parameters, "hidden_width": report.hidden_width, **self.errors.get(layer, {})}
            for layer, report in self.reports.items()
        }
        return {**self.notes, "blocks": rows}


def make_plan(options: Compress) -> Plan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unknown method, a width out of range, too few tokens, unusable text or output.
        OutputExistsError: if an earlier result would be replaced that must not be.
    """
    for name, least in (("tokens", 2), ("calibration_tokens", 2), ("restarts", 1)):
        if (value := getattr(options, name)) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    check_seed(options.seed)
    built = build_method(options.method, options.width)
    method = with_clustering(built, restarts=options.restarts, allocation=options.allocation)
    name = f"{Path(options.model).name}-{options.method}-{options.width:g}"
    folder = options.out or Path("results") / name
    check_request(folder, format=options.format, dtype=options.dtype, overwrite=options.overwrite)
    _check_fits(options, method)
    calibration, held_out = split_sentences(read_text(options.text), seed=options.seed)
    return Plan(options, method, calibration, held_out, folder)


def _check_fits(options: Compress, method: Method) -> None:
    """Refuse a method whose blocks the format cannot hold, before it has run."""
    made = method.makes()
    if options.format != OWN and not options.merge and made in (FactorizedBlock, CodedBlock):
        raise InputError(
            f"--method {options.method} makes blocks of kind {made.__name__}, which --format {options.format} has no "
            f"place for: pass --merge to multiply them out to dense ones, or --format {OWN} to keep them"
        )


def _check_widths(options: Compress, layers: Sequence[int], num_blocks: int) -> None:
    """Refuse layers of different widths in a format that has one for all, before any work."""
    differ = len(layers) < num_blocks or options.allocation != "uniform"
    if options.format != OWN and differ and not options.pad and not options.merge and options.width < 1:
        raise InputError(
            f"these options make MLP blocks of different widths, and --format {options.format} has one for all: pass "
            f"--pad to fill them with zero neurons, or --format {OWN} to keep them"
        )


#: How often `run` reports progress.
STEPS = 4


def run(plan: Plan, advance: Advance) -> Outcome:
    """Load the model, compress it and measure.

    Args:
        plan: from `make_plan`.
        advance: told what is being done and how many of `STEPS` are finished.

    Returns:
        The `Outcome`; its model is what will be saved, constants folded if the format has no place for them.

    Raises:
        NTKFusionError: if the model cannot be loaded, or a layer, the method or the format does not fit it.
    """
    with jax.default_matmul_precision("highest"):
        return _run(plan, advance)


def _run(plan: Plan, advance: Advance) -> Outcome:
    start, options = time.perf_counter(), plan.options
    advance("loading the model", 0)
    model = load_model(options.model)
    layers = check_layers(options.layers or None, model.config.num_blocks)
    every_block = model.mlp_blocks()
    blocks = [every_block[layer] for layer in layers]
    _check_widths(options, layers, model.config.num_blocks)
    plan.method.check(blocks)
    advance("reading the text", 1)
    held_out, calibration = _collect(plan, model, len(layers))
    advance(f"{options.method} at width {options.width:g}", 2)
    inputs = None if calibration is None else [calibration.inputs[layer] for layer in layers]

    def within(what: str, fraction: float) -> None:
        advance(f"{options.method}: {what}, {100 * fraction:.0f} %", 2)

    compressed = plan.method.compress(blocks, Workspace(options.seed, inputs, progress=within))
    small = model.replace_mlp_blocks(dict(zip(layers, compressed.blocks, strict=True)))
    advance("measuring", 3)
    saved = small if options.format == OWN else exportable(small, pad=options.pad, merge=options.merge)
    errors = {} if held_out is None else _errors(layers, every_block, saved.mlp_blocks(), held_out)
    facts = _facts(plan, layers, calibration, held_out)
    notes = facts | _sizes(compressed) | _means(errors) | {"seconds": round(time.perf_counter() - start, 1)}
    reports = dict(zip(layers, compressed.reports, strict=True))
    folded = saved is not small and any(block.constants() for block in compressed.blocks)
    return Outcome(saved, reports, errors, notes, model.num_parameters, folded)


def _collect(plan: Plan, model: Model, num_layers: int) -> tuple[BlockInputs | None, BlockInputs | None]:
    """Held-out and calibration inputs; none for a model that cannot read text."""
    if model.tokenizer is None:
        return None, None
    options = plan.options
    held_out = _inputs(model, plan.held_out, options.tokens, options.seed)
    check_memory(len(held_out.tokens), num_layers)
    unseen = unseen_sentences(model, plan.calibration, plan.held_out, max_length=MAX_LENGTH)
    return held_out, _inputs(model, unseen, options.calibration_tokens, options.seed)


def _inputs(model: Model, sentences: Sequence[str], tokens: int, seed: int) -> BlockInputs:
    return collect_block_inputs(model, sentences, max_tokens=tokens, seed=seed, max_length=MAX_LENGTH)


def _errors(
    layers: Sequence[int], originals: Sequence[Block], blocks: Sequence[Block], held_out: BlockInputs
) -> dict[int, dict[str, float]]:
    inputs = held_out.inputs
    return {layer: Reference.of(originals[layer], inputs[layer]).errors(blocks[layer]) for layer in layers}


def _facts(
    plan: Plan, layers: Sequence[int], calibration: BlockInputs | None, held_out: BlockInputs | None
) -> dict[str, Any]:
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
    }


def _sizes(compressed: Compressed) -> dict[str, int]:
    reports = compressed.reports
    return {
        "block_parameters": sum(report.parameters for report in reports),
        "original_block_parameters": sum(report.original_parameters for report in reports),
    }


def _means(errors: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Means over layers, as `compare` prints them."""
    names = next(iter(errors.values()), {})
    return {f"mean_{name}": sum(layer[name] for layer in errors.values()) / len(errors) for name in names}
