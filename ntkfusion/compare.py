"""The main job: methods × widths × layers → output error, kernel errors, size, time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.checkpoints.load import load_model
from ntkfusion.compression.compress import check_layers
from ntkfusion.compression.contract import BlockReport, Method, Workspace
from ntkfusion.compression.mlp_fusion import MLPFusion
from ntkfusion.compression.registry import METHODS, build_method
from ntkfusion.conditions import check_seed, command_line, describe_model, describe_text, environment, read_text
from ntkfusion.data.inputs import BlockInputs, collect_block_inputs, tokenize
from ntkfusion.data.text import split_sentences
from ntkfusion.errors import InputError
from ntkfusion.kernels.block import block_kernel
from ntkfusion.kernels.checks import KINDS
from ntkfusion.kernels.distance import relative_error
from ntkfusion.kernels.memory import memory_limit, show_size
from ntkfusion.models.coded import as_dense_weights
from ntkfusion.models.mlp import Block
from ntkfusion.models.model import Model
from ntkfusion.options import Compare
from ntkfusion.progress import Advance
from ntkfusion.reporting.answer import nearest_width
from ntkfusion.reporting.results import Comparison, KernelGallery, Row

#: Sentences are cut to this many tokens.
MAX_LENGTH = 128
#: Tokens whose kernels are drawn.
GALLERY_TOKENS = 32
#: Methods whose kernels are drawn, as far as they were asked for.
GALLERY_METHODS = ("mlp-fusion", "mlp-fusion-v2", "mlp-fusion-v4", "svd", "structured-pruning", "random-neurons")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked request: every name is known, every text read, before a model is loaded."""

    options: Compare
    methods: tuple[str, ...]
    calibration: list[str]
    held_out: list[str]

    def build(self, name: str, width: float) -> Method:
        """The method of that name at a width, with the run's number of k-means restarts."""
        method = build_method(name, width)
        return (
            dataclasses.replace(method, num_restarts=self.options.restarts) if isinstance(method, MLPFusion) else method
        )


def make_plan(options: Compare) -> Plan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unknown or repeated method, a width out of range, too few tokens, or unusable text.
    """
    methods = options.methods or tuple(METHODS)
    for name, values in (("methods", methods), ("width", options.width)):
        if not values or len(set(values)) != len(values):
            raise InputError(f"--{name} needs at least one value, each once; got {list(values)}")
    for name, value, least in (("tokens", options.tokens, 2), ("restarts", options.restarts, 1)):
        if value < least:
            raise InputError(f"--{name} must be at least {least}, got {value}")
    check_seed(options.seed)
    for width in options.width:
        for name in methods:
            build_method(name, width)
    return Plan(options, methods, *split_sentences(read_text(options.text), seed=options.seed))


@dataclasses.dataclass(frozen=True)
class Reference:
    """One layer's original block on the held-out tokens."""

    inputs: Float[Array, "N d"]
    outputs: Float[Array, "N o"]
    kernels: Mapping[str, Float[Array, "N N"]]

    @classmethod
    def of(cls, block: Block, inputs: Float[Array, "N d"]) -> Reference:
        """Measure the original block."""
        return cls(inputs, block(inputs), {kind: block_kernel(block, inputs, kind=kind) for kind in KINDS})

    def errors(self, block: Block) -> dict[str, float]:
        """Relative Frobenius errors of another block's outputs, SGD kernel and sign kernel.

        Kernels of a coded block are those of its decoded weights.
        """
        block = as_dense_weights(block)
        kernels = {kind: block_kernel(block, self.inputs, kind=kind) for kind in KINDS}
        errors = {f"{kind}_kernel_error": relative_error(kernels[kind], self.kernels[kind]) for kind in KINDS}
        return {"output_error": relative_error(block(self.inputs), self.outputs), **errors}


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
    layers = check_layers(options.layers or None, model.config.num_hidden_layers)
    every_block = model.mlp_blocks()
    blocks = [every_block[layer] for layer in layers]
    for width in options.width:
        for name in plan.methods:
            plan.build(name, width).check(blocks)
    advance("reading the text", 1)
    held_out = _inputs(model, plan.held_out, options)
    _check_memory(len(held_out.tokens), len(layers))
    calibration = _inputs(model, _unseen(model, plan.calibration, plan.held_out), options)
    references = [Reference.of(block, held_out.inputs[layer]) for block, layer in zip(blocks, layers, strict=True)]
    doing, step = "", 0

    def within(what: str, fraction: float) -> None:
        advance(f"{doing}: {what}, {fraction:.0%}", 2 + step)

    workspace = Workspace(options.seed, [calibration.inputs[layer] for layer in layers], progress=within)
    rows: list[Row] = []
    gallery = _Gallery(plan, layers, model)
    for step, (width, name) in enumerate((width, name) for width in options.width for name in plan.methods):
        advance(doing := f"{name} at width {width:g}", 2 + step)
        compressed = plan.build(name, width).compress(blocks, workspace)
        for layer, block, report, reference in zip(
            layers, compressed.blocks, compressed.reports, references, strict=True
        ):
            rows.append(_row(name, layer, width, report, reference.errors(block)))
        gallery.add(name, width, compressed.blocks)
    comparison = Comparison(
        rows=tuple(rows),
        command=command_line(options),
        settings=_settings(plan, layers),
        model=describe_model(model),
        inputs=_describe_inputs(plan, calibration, held_out),
        environment=environment(),
        seconds=time.perf_counter() - start,
    )
    return Measured(comparison, gallery.galleries())


def _unseen(model: Model, sentences: Sequence[str], others: Sequence[str]) -> list[str]:
    """The sentences that the tokenizer does not make equal to one of the others.

    Raises:
        InputError: if none is left.
    """
    taken = {tuple(ids) for ids in tokenize(model, others, max_length=MAX_LENGTH)[0]}
    encodings = tokenize(model, sentences, max_length=MAX_LENGTH)[0]
    kept = [sentence for sentence, ids in zip(sentences, encodings, strict=True) if tuple(ids) not in taken]
    if not kept:
        raise InputError("all sentences of the text are the same to the model's tokenizer; give more varied text")
    return kept


def _check_memory(tokens: int, num_layers: int) -> None:
    """Refuse more tokens than there is memory for their kernels: two per layer, and a handful while one is made."""
    limit, per_pair = memory_limit(None), 4 * (len(KINDS) * num_layers + 8)
    if tokens**2 * per_pair > limit:
        raise InputError(
            f"kernels of {tokens} tokens need about {show_size(tokens**2 * per_pair)}, there is room for "
            f"{show_size(limit)}: ask for --tokens {math.isqrt(limit // per_pair)} or fewer"
        )


class _Gallery:
    """Collects the kernels of the middle layer at the width nearest to a quarter, on the words of a few sentences."""

    def __init__(self, plan: Plan, layers: Sequence[int], model: Model) -> None:
        shown = [name for name in GALLERY_METHODS if name in plan.methods] or list(plan.methods[:5])
        self.names, self.width = shown, nearest_width(plan.options.width)
        self.place, self.layer = len(layers) // 2, layers[len(layers) // 2]
        words = collect_block_inputs(
            model, plan.held_out[:GALLERY_TOKENS], max_tokens=None, seed=0, special_tokens=False
        )
        self.inputs, self.tokens = words.inputs[self.layer][:GALLERY_TOKENS], words.tokens[:GALLERY_TOKENS]
        self.kernels: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
        self._measure("original", model.mlp_blocks()[self.layer])

    def _measure(self, name: str, block: Block) -> None:
        for kind in KINDS:
            kernel = block_kernel(as_dense_weights(block), self.inputs, kind=kind)
            self.kernels[kind][name] = np.asarray(kernel)

    def add(self, name: str, width: float, blocks: Sequence[Block]) -> None:
        if width == self.width and name in self.names:
            self._measure(name, blocks[self.place])

    def galleries(self) -> tuple[KernelGallery, ...]:
        return (KernelGallery(self.layer, self.width, self.tokens, self.kernels),)


def _inputs(model: Model, sentences: Sequence[str], options: Compare) -> BlockInputs:
    return collect_block_inputs(
        model,
        sentences,
        max_tokens=options.tokens,
        seed=options.seed,
        max_length=MAX_LENGTH,
        special_tokens=not options.words_only,
    )


def _row(name: str, layer: int, width: float, report: BlockReport, errors: Mapping[str, float]) -> Row:
    return Row(
        method=name,
        layer=layer,
        width=width,
        hidden_width=report.hidden_width,
        parameters=report.parameters,
        original_parameters=report.original_parameters,
        seconds=report.seconds,
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
        "restarts": options.restarts,
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
