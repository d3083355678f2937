"""The job behind ``ntkfusion kernel``, from options to a kernel with its conditions."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import operator
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.checkpoints.load import load_model
from ntkfusion.commands.conditions import (
    check_seed,
    command_line,
    describe_model,
    describe_text,
    environment,
    read_text,
)
from ntkfusion.commands.kernel.options import Kernel
from ntkfusion.commands.kernel.problem import BlockProblem, NetworkProblem, Problem
from ntkfusion.compression.compress_model import check_layers
from ntkfusion.data.block_inputs import collect_block_inputs
from ntkfusion.data.text import split_sentences
from ntkfusion.errors import InputError
from ntkfusion.kernels.distance.kernel_distance import relative_error
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.oracles.neural_tangents import load_neural_tangents
from ntkfusion.models.model import Model
from ntkfusion.reporting.kernel_file import KernelFile
from ntkfusion.utils.files import check_files
from ntkfusion.utils.memory import memory_limit, show_size
from ntkfusion.utils.progress import Advance

#: How often `run` reports progress.
STEPS = 5

#: Options that say something about one kind of scope only.
_BLOCK_OPTIONS, _NETWORK_OPTIONS = ("tokens", "words_only"), ("examples", "max_length", "readouts")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A checked request: options, the layer of a block scope (else None), the text, and the files to write."""

    options: Kernel
    layer: int | None
    sentences: tuple[str, ...]
    files: tuple[Path, Path, Path]


def make_plan(options: Kernel) -> Plan:
    """Check everything that can be checked without the model.

    Raises:
        InputError: for an unknown scope, a number out of range, an option of another scope, a memory limit that is no
            size, `reference` for a sign kernel, unusable text or an unusable output.
        OutputExistsError: if a file would be overwritten that must not be.
    """
    layer = parse_scope(options.scope)
    _check_numbers(options)
    others = _BLOCK_OPTIONS if layer is None else _NETWORK_OPTIONS
    for field in dataclasses.fields(options):
        if field.name in others and getattr(options, field.name) != field.default:
            raise InputError(
                f"--{field.name.replace('_', '-')} says nothing about --scope {options.scope}; leave it out"
            )
    if options.reference and options.kind == "sign":
        raise InputError("--reference needs --kind sgd: neural-tangents has no sign kernel")
    files = output_files(options)
    check_files(files, overwrite=options.overwrite)
    if options.reference:
        load_neural_tangents()
    return Plan(options, layer, tuple(read_text(options.text)), files)


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


def output_files(options: Kernel) -> tuple[Path, Path, Path]:
    """Where kernel, heat map and spectrum go.

    Raises:
        InputError: if the name of the kernel file does not end in ``.npz``.
    """
    name = f"kernel-{Path(options.model).name}-{options.scope.replace(':', '-')}-{options.kind}.npz"
    out = options.out or Path("results") / name
    if out.suffix != ".npz" or not out.stem:
        raise InputError(f"--out must name a file that ends in .npz, got {str(out)!r}")
    return out, out.with_suffix(".png"), out.with_name(f"{out.stem}_spectrum.png")


def _check_numbers(options: Kernel) -> None:
    least = {"tokens": 1, "examples": 1, "max_length": 2, "readouts": 1}
    for name, value in least.items():
        if getattr(options, name) < value:
            raise InputError(f"--{name.replace('_', '-')} must be at least {value}, got {getattr(options, name)}")
    check_seed(options.seed)
    memory_limit(options.memory_limit)


def run(plan: Plan, advance: Advance) -> KernelFile:
    """Load the model, read the text and compute the kernel.

    Args:
        plan: from `make_plan`.
        advance: told what is being done and how many of `STEPS` are finished.

    Returns:
        The kernel with everything that is to be known about it.

    Raises:
        NTKFusionError: if the model cannot be loaded, has no such layer or no tokenizer, or memory does not suffice.
    """
    with jax.default_matmul_precision("highest"):
        return _run(plan, advance)


def _run(plan: Plan, advance: Advance) -> KernelFile:
    start, options = time.perf_counter(), plan.options
    advance("loading the model", 0)
    model = load_model(options.model)
    advance("reading the text", 1)
    problem, sentences = _pose(plan, model)
    limit = memory_limit(options.memory_limit)
    if options.reference:
        _check_reference(problem, limit)
    advance("compiling", 2)
    begun = time.perf_counter()
    memory = dataclasses.asdict(problem.estimate(options.kind, limit))
    advance(f"computing the kernel of {problem.count} {problem.option}", 3)
    kernel, groups = _kernels(problem, options.kind, limit)
    seconds = {"kernel": time.perf_counter() - begun}
    advance("computing it again by neural-tangents" if options.reference else "finishing", 4)
    reference = _compare_with_reference(problem, kernel) if options.reference else {}
    seconds["total"] = time.perf_counter() - start
    conditions = {**_conditions(plan, model), **problem.facts, "memory": memory, **reference, "seconds": seconds}
    return KernelFile(kernel, groups, problem.inputs, sentences, conditions)


def _kernels(problem: Problem, kind: Kind, limit: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The whole and its parts."""
    groups = {name: np.asarray(part) for name, part in problem.groups(kind, limit).items()}
    kernel = functools.reduce(operator.add, groups.values())
    if not np.isfinite(kernel).all():
        raise InputError("the kernel holds values that are not finite: the model overflows on this text")
    return kernel, groups


def _pose(plan: Plan, model: Model) -> tuple[Problem, tuple[str, ...]]:
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
        return BlockProblem.of(model, plan.layer, collected), tuple(held)
    order = np.random.default_rng(options.seed).permutation(len(distinct))[: options.examples]
    chosen = tuple(distinct[index] for index in order)
    problem = NetworkProblem.of(
        model, options.scope, chosen, max_length=options.max_length, readouts=options.readouts, seed=options.seed
    )
    return problem, chosen


def _check_reference(problem: Problem, limit: int) -> None:
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


def _compare_with_reference(problem: Problem, kernel: np.ndarray) -> dict[str, Any]:
    begun = time.perf_counter()
    reference = jax.block_until_ready(problem.reference())
    seconds = time.perf_counter() - begun
    return {"reference": {"relative_frobenius": relative_error(jnp.asarray(kernel), reference), "seconds": seconds}}


def _conditions(plan: Plan, model: Model) -> dict[str, Any]:
    options = plan.options
    return {
        "command": command_line(options),
        "model": describe_model(model),
        "scope": options.scope,
        "kind": options.kind,
        "text": describe_text(options.text),
        "seed": options.seed,
        "environment": environment(),
    }
