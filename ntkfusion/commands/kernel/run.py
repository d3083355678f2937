"""``ntkfusion kernel``, from options to a kernel with its conditions and its spectra, as files and printed."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import operator
import re
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from ntkfusion.checkpoints.load import load_model
from ntkfusion.commands.conditions import command_line, describe_model, environment
from ntkfusion.commands.kernel.options import Kernel
from ntkfusion.commands.kernel.problem import BlockOnText, KernelProblem, NetworkOnText
from ntkfusion.commands.protocol import print_lines
from ntkfusion.commands.request import check_at_least, check_seed, flag, results_path
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.data.calibration import describe_text, read_text
from ntkfusion.data.text import split_sentences
from ntkfusion.errors import InputError
from ntkfusion.kernels.distance.kernel_distance import effective_rank, relative_error
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.oracles.neural_tangents import load_neural_tangents
from ntkfusion.models.model import Model
from ntkfusion.reporting.kernel_file import KernelFile, save_kernel_file
from ntkfusion.reporting.kernel_plots import VALUES, Spectrum, describe, kernel_figure, spectrum_figure
from ntkfusion.reporting.plots import save_png
from ntkfusion.utils.console_tables import print_table
from ntkfusion.utils.files import Json, Output
from ntkfusion.utils.memory import memory_limit, show_size
from ntkfusion.utils.progress import Progress

#: Options that say something about one kind of scope only.
_BLOCK_OPTIONS, _NETWORK_OPTIONS = ("tokens", "words_only"), ("examples", "max_length", "readouts")


@dataclasses.dataclass(frozen=True)
class KernelPlan:
    """A checked request: options, the layer of a block scope (else None), the text, and the files to write."""

    options: Kernel
    layer: int | None
    sentences: tuple[str, ...]
    output: Output
    steps: int = 6


@dataclasses.dataclass(frozen=True)
class KernelResult:
    """A kernel.

    Attributes:
        plan: the request.
        file: the kernel with everything that is to be known about it.
        spectra: from `spectra_of`.
    """

    plan: KernelPlan
    file: KernelFile
    spectra: Mapping[str, Spectrum]


def plan(options: Kernel) -> KernelPlan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unknown scope, a number out of range, an option of another scope, a memory limit that is no
            size, `reference` for a sign kernel, unusable text or an unusable output.
        OutputExistsError: if a file would be overwritten that must not be.
    """
    layer = parse_scope(options.scope)
    check_at_least(options, tokens=1, examples=1, max_length=2, readouts=1)
    check_seed(options.seed)
    memory_limit(options.memory_limit)
    others = _BLOCK_OPTIONS if layer is None else _NETWORK_OPTIONS
    for field in dataclasses.fields(options):
        if field.name in others and getattr(options, field.name) != field.default:
            raise InputError(f"{flag(field.name)} says nothing about --scope {options.scope}; leave it out")
    if options.reference and options.kind == "sign":
        raise InputError("--reference needs --kind sgd: neural-tangents has no sign kernel")
    output = output_files(options)
    output.check()
    if options.reference:
        load_neural_tangents()
    return KernelPlan(options, layer, tuple(read_text(options.text)), output)


def parse_scope(scope: str) -> int | None:
    """The layer of a block scope, None for "mlp" and "network".

    Raises:
        InputError: for anything else.

    >>> parse_scope("block:3")
    3
    """
    found = re.fullmatch(r"block:([0-9]+)|mlp|network", scope)
    if found is None:
        raise InputError(f"--scope is block:LAYER (such as block:3), mlp or network; got {scope!r}")
    return None if found[1] is None else int(found[1])


def output_files(options: Kernel) -> Output:
    """Where kernel, heat map and spectrum go.

    Raises:
        InputError: if the name of the kernel file does not end in ``.npz``.
    """
    name = f"kernel-{Path(options.model).name}-{options.scope.replace(':', '-')}-{options.kind}.npz"
    out = results_path(options.out, name)
    if out.suffix != ".npz" or not out.stem:
        raise InputError(f"--out must name a file that ends in .npz, got {str(out)!r}")
    files = (out.name, f"{out.stem}.png", f"{out.stem}_spectrum.png")
    return Output(out.parent, files, overwrite=options.overwrite)


def run(plan: KernelPlan, progress: Progress) -> KernelResult:
    """Load the model, read the text and compute the kernel.

    Raises:
        NTKFusionError: if the model cannot be loaded, has no such layer or no tokenizer, or memory does not suffice.
    """
    with jax.default_matmul_precision("highest"):
        file = _compute(plan, progress)
    progress.advance("spectra", 5)
    return KernelResult(plan, file, spectra_of(file))


def _compute(plan: KernelPlan, progress: Progress) -> KernelFile:
    start, options = time.perf_counter(), plan.options
    progress.advance("loading the model", 0)
    model = load_model(options.model, ignore_adapter=options.ignore_adapter)
    progress.advance("reading the text", 1)
    problem, sentences = _pose(plan, model)
    limit = memory_limit(options.memory_limit)
    if options.reference:
        _check_reference(problem, limit)
    progress.advance("compiling", 2)
    begun = time.perf_counter()
    memory = dataclasses.asdict(problem.estimate(options.kind, limit))
    progress.advance(f"computing the kernel of {problem.count} {problem.option}", 3)
    kernel, groups = _kernels(problem, options.kind, limit)
    seconds = {"kernel": time.perf_counter() - begun}
    progress.advance("computing it again by neural-tangents" if options.reference else "finishing", 4)
    reference = _compare_with_reference(problem, kernel) if options.reference else {}
    seconds["total"] = time.perf_counter() - start
    conditions = {**_conditions(plan, model), **problem.facts, "memory": memory, **reference, "seconds": seconds}
    return KernelFile(kernel, groups, problem.inputs, sentences, conditions)


def _kernels(problem: KernelProblem, kind: Kind, limit: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The whole and its parts."""
    groups = {name: np.asarray(part) for name, part in problem.groups(kind, limit).items()}
    kernel = functools.reduce(operator.add, groups.values())
    if not np.isfinite(kernel).all():
        raise InputError("the kernel holds values that are not finite: the model overflows on this text")
    return kernel, groups


def _pose(plan: KernelPlan, model: Model) -> tuple[KernelProblem, tuple[str, ...]]:
    """The problem, and the sentences it comes from."""
    options = plan.options
    distinct = list(dict.fromkeys(plan.sentences))
    if plan.layer is not None:
        check_layers([plan.layer], model.config.num_blocks)
        # the half that `compare` holds out, so that both speak about the same tokens
        held = split_sentences(distinct, seed=options.seed)[1] if len(distinct) > 1 else distinct
        collected = collect_block_inputs(
            model, held, max_tokens=options.tokens, seed=options.seed, special_tokens=not options.words_only
        )
        return BlockOnText.of(model, plan.layer, collected), tuple(held)
    order = np.random.default_rng(options.seed).permutation(len(distinct))[: options.examples]
    chosen = tuple(distinct[index] for index in order)
    problem = NetworkOnText.of(
        model, options.scope, chosen, max_length=options.max_length, readouts=options.readouts, seed=options.seed
    )
    return problem, chosen


def _check_reference(problem: KernelProblem, limit: int) -> None:
    """Refuse a reference that does not fit, and say what would."""
    needed = problem.reference_bytes(problem.count)
    if needed <= limit:
        return
    fits = bisect.bisect_right(range(problem.count), limit, lo=1, key=problem.reference_bytes) - 1
    remedy = f"ask for --{problem.option} {fits} or fewer" if fits else "not even one fits"
    raise InputError(
        f"--reference: neural-tangents needs about {show_size(needed)} for {problem.count} {problem.option}, there is "
        f"room for {show_size(limit)}: {remedy}, raise --memory-limit, or leave --reference out"
    )


def _compare_with_reference(problem: KernelProblem, kernel: np.ndarray) -> Json:
    begun = time.perf_counter()
    reference = jax.block_until_ready(problem.reference())
    seconds = time.perf_counter() - begun
    return {"reference": {"relative_frobenius": relative_error(jnp.asarray(kernel), reference), "seconds": seconds}}


def _conditions(plan: KernelPlan, model: Model) -> Json:
    options = plan.options
    return {
        "command": command_line(options),
        "model": describe_model(model),
        "scope": options.scope,
        "kind": options.kind,
        "text": describe_text(options.text),
        "seed": options.seed,
        "environment": environment(model.params),
    }


def spectra_of(file: KernelFile) -> dict[str, Spectrum]:
    """The spectrum of the whole kernel, under "all", and of every group, in float64.

    A network kernel [N, N, C, C] is taken as a matrix of N·C rows and columns.
    """
    kernels = {"all": file.kernel, **file.groups}
    whole = float(np.trace(_matrix(file.kernel)))
    return {name: _spectrum(_matrix(kernel), file.conditions["kind"], whole) for name, kernel in kernels.items()}


def _spectrum(matrix: np.ndarray, kind: str, whole: float) -> Spectrum:
    values = np.abs(np.linalg.eigvalsh(matrix)) if kind == "sgd" else np.linalg.svd(matrix, compute_uv=False)
    values = np.sort(values)[::-1]
    largest = values[0] if values[0] > 0 else 1.0
    rank = effective_rank(jnp.asarray(values / largest, jnp.float32))
    return Spectrum(values, rank, float(np.trace(matrix) / whole) if whole else 0.0)


def _matrix(kernel: np.ndarray) -> np.ndarray:
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim == 2:
        return kernel
    return kernel.transpose(0, 2, 1, 3).reshape(kernel.shape[0] * kernel.shape[2], -1)


#: Leading eigenvalues or singular values that are printed.
LEADING = 3


def write(result: KernelResult, folder: Path) -> None:
    """Write the kernel, its heat map and its spectrum."""
    numbers, heatmap, spectrum = (folder / name for name in result.plan.output.files)
    save_kernel_file(result.file, numbers)
    save_png(kernel_figure(result.file), heatmap)
    save_png(spectrum_figure(result.file, result.spectra), spectrum)


def show(result: KernelResult, console: Console) -> None:
    """Print what was computed and under which conditions, the groups, and where the files are."""
    file = result.file
    size = " × ".join(str(length) for length in file.kernel.shape)
    print_lines(console, f"{describe(file)}: {size}", conditions_line(file))
    print_table(console, groups_table(file, result.spectra))
    files = ", ".join(str(path) for path in result.plan.output.paths)
    print_lines(console, memory_line(file), time_line(file), f"Files: {files}")


def conditions_line(file: KernelFile) -> str:
    """Normalisation, readout, text and seed in one line."""
    conditions = file.conditions
    length = f" of at most {conditions['length']} tokens" if "length" in conditions else ""
    return (
        f"Conditions: {conditions['normalisation']}; {conditions['readout']}; {conditions['text']}{length}; "
        f"seed {conditions['seed']}"
    )


def memory_line(file: KernelFile) -> str:
    """What the computation was estimated to take."""
    memory = file.conditions["memory"]
    return (
        f"Memory: {show_size(memory['peak'])} at most by estimate, of {show_size(memory['limit'])}; "
        f"{min(memory['chunk'], len(file.kernel))} at a time"
    )


def groups_table(file: KernelFile, spectra: Mapping[str, Spectrum]) -> Table:
    """Share in the trace, effective rank and leading values of the whole and of every group."""
    table = Table(title="Parameter groups and their shares of the trace", title_justify="left")
    table.add_column("group", no_wrap=True)
    for name in ("share", "effective rank", f"leading {VALUES[file.conditions['kind']]}s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, spectrum in spectra.items():
        leading = "  ".join(f"{value:.4g}" for value in spectrum.significant[:LEADING]) or "0"
        table.add_row(name, f"{100 * spectrum.share:.1f} %", f"{spectrum.effective_rank:.2f}", leading)
    return table


def time_line(file: KernelFile) -> str:
    """Seconds, and how far neural-tangents' kernel is, if it was asked for."""
    seconds = file.conditions["seconds"]
    line = f"Time: {seconds['kernel']:.1f} s for the kernel, compilation included; {seconds['total']:.1f} s in all"
    if "reference" not in file.conditions:
        return line
    reference = file.conditions["reference"]
    return (
        f"{line}\nneural-tangents: relative Frobenius difference {reference['relative_frobenius']:.2e}; it took "
        f"{reference['seconds']:.1f} s"
    )
