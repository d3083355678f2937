"""The main job: methods × widths × layers → output error, kernel errors, size, time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from ntkfusion.checkpoints.load import load_model
from ntkfusion.commands.compare.experts import Mixtures
from ntkfusion.commands.compare.galleries import Gallery
from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.conditions import (
    check_seed,
    command_line,
    describe_model,
    describe_text,
    environment,
    read_text,
)
from ntkfusion.compression.block_errors import Reference, check_memory
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.compression.contract import BlockReport, Compressed, Method
from ntkfusion.compression.registry import METHODS, build_method, with_clustering
from ntkfusion.compression.workspace import Workspace
from ntkfusion.data.block_inputs import BlockInputs, collect_block_inputs, unseen_sentences
from ntkfusion.data.text import split_sentences
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.model import Model
from ntkfusion.reporting.results import Comparison, ExpertErrors, KernelGallery, Row
from ntkfusion.utils.progress import Advance

#: Sentences are cut to this many tokens.
MAX_LENGTH = 128

#: On the command line, every method that there is.
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked request: every name is known, every text read, before a model is loaded."""

    options: Compare
    methods: tuple[str, ...]
    calibration: list[str]
    held_out: list[str]

    def build(self, name: str, width: float) -> Method:
        """The method of that name at a width, with the run's options for k-means."""
        options = self.options
        return with_clustering(build_method(name, width), restarts=options.restarts, allocation=options.allocation)


def method_names(asked: Sequence[str]) -> tuple[str, ...]:
    """The methods that a request means: those of the registry's main selection if it names none, or "all".

    Raises:
        InputError: if it names "all" and others.
    """
    if not asked:
        return tuple(name for name, entry in METHODS.items() if entry.default)
    if ALL not in asked:
        return tuple(asked)
    if len(asked) > 1:
        raise InputError(f"--methods {ALL} means every method and takes no other names; got {list(asked)}")
    return tuple(METHODS)


def make_plan(options: Compare) -> Plan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unknown or repeated method, a width out of range, too few tokens, or unusable text.
    """
    methods = method_names(options.methods)
    for name, values in (("methods", methods), ("width", options.width)):
        if not values or len(set(values)) != len(values):
            raise InputError(f"--{name} needs at least one value, each once; got {list(values)}")
    for name, least in (("tokens", 2), ("calibration_tokens", 2), ("restarts", 1)):
        if (value := getattr(options, name)) < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    check_seed(options.seed)
    for width in options.width:
        for name in methods:
            build_method(name, width)
    return Plan(options, methods, *split_sentences(read_text(options.text), seed=options.seed))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a run brings home: the numbers, and the kernels to draw."""

    comparison: Comparison
    galleries: tuple[KernelGallery, ...]


def count_steps(plan: Plan) -> int:
    """How often `run` reports progress: reading the model and text, and one step per width and method."""
    return 2 + len(plan.options.width) * len(plan.methods)


def run(plan: Plan, advance: Advance) -> Measured:
    """Load the model, compress it in every way and measure.

    Args:
        plan: from `make_plan`.
        advance: told what is being done and how many of `count_steps` are finished.

    Returns:
        The results and the kernels to draw.

    Raises:
        NTKFusionError: if the model cannot be loaded, or a layer or method does not fit it.
    """
    with jax.default_matmul_precision("highest"):
        return _run(plan, advance)


def _run(plan: Plan, advance: Advance) -> Measured:
    start, options = time.perf_counter(), plan.options
    advance("loading the model", 0)
    model = load_model(options.model)
    layers = check_layers(options.layers or None, model.config.num_blocks)
    every_block = model.mlp_blocks()
    blocks = [every_block[layer] for layer in layers]
    for width in options.width:
        for name in plan.methods:
            plan.build(name, width).check(blocks)
    advance("reading the text", 1)
    held_out = _inputs(model, plan.held_out, options.tokens, options)
    # the kernels of all experts of a mixture are at most as large as the mixture's own
    check_memory(len(held_out.tokens), len(layers) + sum(isinstance(block, MixtureBlock) for block in blocks))
    unseen = unseen_sentences(model, plan.calibration, plan.held_out, max_length=MAX_LENGTH)
    calibration = _inputs(model, unseen, options.calibration_tokens, options)
    references = {layer: Reference.of(every_block[layer], held_out.inputs[layer]) for layer in layers}
    mixtures = Mixtures(
        model, layers, held_out.inputs, lambda small: _inputs(small, plan.held_out, options.tokens, options).inputs
    )
    gallery = Gallery(model, layers, plan.methods, options.width, plan.held_out)
    rows: list[Row] = []
    for name, width, compressed in _compress(plan, blocks, [calibration.inputs[layer] for layer in layers], advance):
        for layer, block, report in zip(layers, compressed.blocks, compressed.reports, strict=True):
            experts = mixtures.errors(layer, block)
            rows.append(_row(name, layer, width, report, references[layer].errors(block), experts))
        mixtures.add(name, width, compressed.blocks)
        gallery.add(name, width, compressed.blocks)
    comparison = Comparison(
        rows=tuple(rows),
        routing=tuple(mixtures.routing),
        command=command_line(options),
        settings=_settings(plan, layers),
        model=describe_model(model),
        inputs=_describe_inputs(plan, calibration, held_out),
        environment=environment(),
        seconds=time.perf_counter() - start,
    )
    return Measured(comparison, gallery.galleries())


def _compress(
    plan: Plan, blocks: Sequence[Block], inputs: Sequence[Float[Array, "N d"]], advance: Advance
) -> Iterator[tuple[str, float, Compressed]]:
    """Every method at every width; `advance` also hears how far long ones have come."""
    doing, step = "", 2

    def within(what: str, fraction: float) -> None:
        advance(f"{doing}: {what}, {100 * fraction:.0f} %", step)

    workspace = Workspace(plan.options.seed, inputs, progress=within)
    pairs = [(width, name) for width in plan.options.width for name in plan.methods]
    for step, (width, name) in enumerate(pairs, start=2):
        advance(doing := f"{name} at width {width:g}", step)
        yield name, width, plan.build(name, width).compress(blocks, workspace)


def _inputs(model: Model, sentences: Sequence[str], tokens: int, options: Compare) -> BlockInputs:
    return collect_block_inputs(
        model,
        sentences,
        max_tokens=tokens,
        seed=options.seed,
        max_length=MAX_LENGTH,
        special_tokens=not options.words_only,
    )


def _row(
    name: str,
    layer: int,
    width: float,
    report: BlockReport,
    errors: Mapping[str, float],
    experts: tuple[ExpertErrors, ...] | None,
) -> Row:
    return Row(
        method=name,
        layer=layer,
        width=width,
        hidden_width=report.hidden_width,
        parameters=report.parameters,
        original_parameters=report.original_parameters,
        seconds=report.seconds,
        experts=experts,
        **errors,
    )


def _settings(plan: Plan, layers: Sequence[int]) -> dict[str, Any]:
    options = plan.options
    return {
        "model": options.model,
        "methods": list(plan.methods),
        "widths": list(options.width),
        "layers": list(layers),
        "tokens": options.tokens,
        "calibration_tokens": options.calibration_tokens,
        "restarts": options.restarts,
        "allocation": options.allocation,
        "seed": options.seed,
    }


def _describe_inputs(plan: Plan, calibration: BlockInputs, held_out: BlockInputs) -> dict[str, Any]:
    return {
        "text": describe_text(plan.options.text),
        "calibration_sentences": calibration.num_sentences,
        "held_out_sentences": held_out.num_sentences,
        "calibration_tokens": len(calibration.tokens),
        "held_out_tokens": len(held_out.tokens),
        "special_tokens": not plan.options.words_only,
        "max_length": MAX_LENGTH,
    }
