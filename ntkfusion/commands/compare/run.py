"""The main job: methods × widths × layers → output error, kernel errors, size, time; and the kernels to draw."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.checkpoints.load import load_model
from ntkfusion.commands.compare.experts import Mixtures
from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.conditions import command_line, describe_model, environment
from ntkfusion.commands.request import check_at_least, check_seed, results_path
from ntkfusion.compression.block_errors import Reference, check_memory
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.compression.contract import Compressed, Method
from ntkfusion.compression.registry import METHODS, build_method, with_clustering
from ntkfusion.compression.workspace import Workspace
from ntkfusion.data.block_inputs import BlockInputs, collect_block_inputs
from ntkfusion.data.calibration import CalibrationSplit, describe_text
from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.models.blocks.block import Block, as_dense_weights
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.models.model import Model
from ntkfusion.reporting.results import Comparison, ComparisonRow, KernelGallery
from ntkfusion.reporting.summary import nearest_width
from ntkfusion.utils.files import Json, Output
from ntkfusion.utils.progress import Progress

#: Tokens whose kernels are drawn.
GALLERY_TOKENS = 32

#: Methods whose kernels are drawn, as far as they were asked for.
GALLERY_METHODS = (
    *("mlp-fusion", "mlp-fusion-v2", "mlp-fusion-v4", "svd", "structured-pruning", "random-neurons"),
    *("ntk-fusion", "ntk-fusion-sign"),
)


class Gallery:
    """Collects the kernels of the middle layer at the width nearest to a quarter."""

    def __init__(
        self,
        model: Model,
        layers: Sequence[int],
        methods: Sequence[str],
        widths: Sequence[float],
        sentences: Sequence[str],
    ) -> None:
        """Measure the original.

        Args:
            model: the original.
            layers: the layers that are compressed, at least one.
            methods: names of the methods that will come.
            widths: their widths.
            sentences: held-out text.
        """
        self.names = [name for name in GALLERY_METHODS if name in methods] or list(methods[:5])
        self.width = nearest_width(widths)
        self.place, self.layer = len(layers) // 2, layers[len(layers) // 2]
        words = collect_block_inputs(model, sentences[:GALLERY_TOKENS], max_tokens=None, seed=0, special_tokens=False)
        self.inputs, self.tokens = words.inputs[self.layer][:GALLERY_TOKENS], words.tokens[:GALLERY_TOKENS]
        self.kernels: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
        self._measure("original", model.mlp_blocks()[self.layer])

    def _measure(self, name: str, block: Block) -> None:
        for kind in KINDS:
            kernel = block_kernel(as_dense_weights(block), self.inputs, kind=kind)
            self.kernels[kind][name] = np.asarray(kernel)

    def add(self, name: str, width: float, blocks: Sequence[Block]) -> None:
        """Measure a method's blocks, if they are among those that are drawn."""
        if width == self.width and name in self.names:
            self._measure(name, blocks[self.place])

    def galleries(self) -> tuple[KernelGallery, ...]:
        """What was collected."""
        return (KernelGallery(self.layer, self.width, self.tokens, self.kernels),)


#: On the command line, every method that there is.
ALL = "all"

#: Options that results.json repeats under their names.
SETTINGS = ("model", "tokens", "calibration_tokens", "restarts", "allocation", "seed")

#: What a row has of the report on a compressed block.
SIZES = ("hidden_width", "parameters", "original_parameters", "seconds")


@dataclasses.dataclass(frozen=True)
class ComparePlan:
    """A checked request: every name is known, every text read, before a model is loaded.

    Attributes:
        options: as they were given.
        methods: names of the methods to run.
        split: the text; None if methods are only to be listed.
        output: where the report goes; None if methods are only to be listed.
    """

    options: Compare
    methods: tuple[str, ...]
    split: CalibrationSplit | None
    output: Output | None

    @property
    def steps(self) -> int:
        """How often `run` reports progress: reading the model and text, and one step per width and method."""
        return 0 if self.split is None else 2 + len(self.options.width) * len(self.methods)

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


def plan(options: Compare) -> ComparePlan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unknown or repeated method, a width out of range, too few tokens, unusable text or output.
        OutputExistsError: if an earlier report would be replaced that must not be.
    """
    if options.list_methods:
        return ComparePlan(options, tuple(METHODS), None, None)
    output = Output(results_path(options.out, f"compare-{Path(options.model).name}"), overwrite=options.overwrite)
    output.check()
    methods = method_names(options.methods)
    for name, values in (("methods", methods), ("width", options.width)):
        if not values or len(set(values)) != len(values):
            raise InputError(f"--{name} needs at least one value, each once; got {list(values)}")
    check_at_least(options, tokens=2, calibration_tokens=2, restarts=1)
    check_seed(options.seed)
    for width in options.width:
        for name in methods:
            build_method(name, width)
    split = CalibrationSplit.of(options.text, seed=options.seed, special_tokens=not options.words_only)
    return ComparePlan(options, methods, split, output)


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """What was measured.

    Attributes:
        plan: the request.
        descriptions: method → what it is, in one line.
        comparison: the numbers; None if methods are only to be listed.
        galleries: the kernels to draw.
    """

    plan: ComparePlan
    descriptions: Mapping[str, str]
    comparison: Comparison | None = None
    galleries: tuple[KernelGallery, ...] = ()


def run(plan: ComparePlan, progress: Progress) -> CompareResult:
    """Load the model, compress it in every way and measure.

    Raises:
        NTKFusionError: if the model cannot be loaded, or a layer or method does not fit it.
    """
    descriptions = {name: entry.description for name, entry in METHODS.items()}
    if plan.split is None:
        return CompareResult(plan, descriptions)
    with jax.default_matmul_precision("highest"):
        return CompareResult(plan, descriptions, *_measure(plan, plan.split, progress))


def _measure(
    plan: ComparePlan, split: CalibrationSplit, progress: Progress
) -> tuple[Comparison, tuple[KernelGallery, ...]]:
    start, options = time.perf_counter(), plan.options
    progress.advance("loading the model", 0)
    model = load_model(options.model, ignore_adapter=options.ignore_adapter)
    layers = check_layers(options.layers or None, model.config.num_blocks)
    every_block = model.mlp_blocks()
    blocks = [every_block[layer] for layer in layers]
    for width in options.width:
        for name in plan.methods:
            plan.build(name, width).check(blocks)
    progress.advance("reading the text", 1)
    # the kernels of all experts of a mixture are at most as large as the mixture's own
    kernels = len(layers) + sum(isinstance(block, MixtureBlock) for block in blocks)
    calibration, held_out = split.collect(
        model,
        tokens=options.tokens,
        calibration_tokens=options.calibration_tokens,
        check=lambda count: check_memory(count, kernels),
    )
    references = {layer: Reference.of(every_block[layer], held_out.inputs[layer]) for layer in layers}
    mixtures = Mixtures(
        model, layers, held_out.inputs, lambda small: split.held_out_inputs(small, options.tokens).inputs
    )
    gallery = Gallery(model, layers, plan.methods, options.width, split.held_out)
    rows: list[ComparisonRow] = []
    inputs = [calibration.inputs[layer] for layer in layers]
    for name, width, compressed in _compress(plan, blocks, inputs, progress):
        for layer, block, report in zip(layers, compressed.blocks, compressed.reports, strict=True):
            measured: Json = {name: getattr(report, name) for name in SIZES} | references[layer].errors(block)
            rows.append(ComparisonRow(name, layer, width, experts=mixtures.errors(layer, block), **measured))
        mixtures.add(name, width, compressed.blocks)
        gallery.add(name, width, compressed.blocks)
    comparison = Comparison(
        rows=tuple(rows),
        routing=tuple(mixtures.routing),
        undefined=_undefined(references),
        command=command_line(options),
        settings=_settings(plan, layers),
        model=describe_model(model),
        inputs=_describe_inputs(split, options.text, calibration, held_out),
        environment=environment(model.params),
        seconds=time.perf_counter() - start,
    )
    return comparison, gallery.galleries()


def _undefined(references: Mapping[int, Reference]) -> dict[str, list[int]]:
    """Error → layers whose original is 0 in it."""
    names = sorted({name for reference in references.values() for name in reference.undefined})
    return {name: [layer for layer, each in references.items() if name in each.undefined] for name in names}


def _settings(plan: ComparePlan, layers: Sequence[int]) -> Json:
    same = {name: getattr(plan.options, name) for name in SETTINGS}
    return {**same, "methods": list(plan.methods), "widths": list(plan.options.width), "layers": list(layers)}


def _describe_inputs(
    split: CalibrationSplit, text: Path | None, calibration: BlockInputs, held_out: BlockInputs
) -> Json:
    return {
        "text": describe_text(text),
        "calibration_sentences": calibration.num_sentences,
        "held_out_sentences": held_out.num_sentences,
        "calibration_tokens": len(calibration.tokens),
        "held_out_tokens": len(held_out.tokens),
        "held_out_tokens_dropped": held_out.num_dropped,
        "special_tokens": split.special_tokens,
        "max_length": split.max_length,
    }


def _compress(
    plan: ComparePlan, blocks: Sequence[Block], inputs: Sequence[Float[Array, "N d"]], progress: Progress
) -> Iterator[tuple[str, float, Compressed]]:
    """Every method at every width; the progress also shows how far long ones have come."""
    doing, step = "", 2

    def within(what: str, fraction: float) -> None:
        progress.advance(f"{doing}: {what}, {100 * fraction:.0f} %", step)

    workspace = Workspace(plan.options.seed, inputs, progress=within)
    pairs = [(width, name) for width in plan.options.width for name in plan.methods]
    for step, (width, name) in enumerate(pairs, start=2):
        progress.advance(doing := f"{name} at width {width:g}", step)
        yield name, width, plan.build(name, width).compress(blocks, workspace)
