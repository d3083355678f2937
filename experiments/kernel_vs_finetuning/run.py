"""Does the kernel tell the truth? Measures taken before training against scores after it.

Every method at every width compresses a pretrained model; errors of outputs and kernels are measured, then the model
is fine-tuned. Rank correlations say which measure orders the methods as their scores do. Beside that: training of the
model linearised at its start, which is what its tangent kernel predicts, against real training.

Run it: ``uv run experiments/kernel_vs_finetuning.py`` (many hours on two cores; ``--tasks sst2 --seeds 0 --max-train
640 --methods none svd random-neurons --widths 0.5 --linearised none`` some minutes). Tasks: ``$NTKFUSION_DATA_DIR``,
else the hub. It can be stopped and started again: what is in the output folder is not computed twice.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# read when the library is loaded: LAPACK's own threads fight with XLA's, and an SVD takes 5 to 30 times longer
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import tyro
from kernel_distance_parts.store import Job, Store
from kernel_vs_finetuning_parts.curves import curve_cases, curve_job, curves
from kernel_vs_finetuning_parts.figures import curve_figure, score_figure
from kernel_vs_finetuning_parts.lab import Lab
from kernel_vs_finetuning_parts.measures import Measures
from kernel_vs_finetuning_parts.options import Options
from kernel_vs_finetuning_parts.report import correlation_table, curve_table, points, score_tables
from kernel_vs_finetuning_parts.runs import Case, cases, job, run
from rich.console import Console

from ntkfusion.commands.conditions import environment
from ntkfusion.errors import NTKFusionError
from ntkfusion.reporting.plots import save_png
from ntkfusion.utils.allocator import give_back_memory
from ntkfusion.utils.files import MARKER, new_files
from ntkfusion.utils.progress import progress_bar

#: A run's seconds before the first one is done: what the author's two cores took.
SECONDS_GUESSED = 180.0


def main(options: Options) -> None:
    """Do what is missing, then make tables and figures of everything that is there."""
    console, store = _console(), Store(options.out, options.overwrite)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / MARKER).touch()
    # runs that differ in weights alone share compiled programs, in later processes too
    jax.config.update("jax_compilation_cache_dir", str(options.out / "programs"))
    labs = {task: Lab(options, task) for task in options.tasks}
    jobs = {case: job(options, labs[case.task], case) for case in cases(options)}
    curve_jobs = {case: curve_job(options, labs[case.task], case) for case in curve_cases(options)}
    if not options.report:
        _print_cost(store, jobs, options, console)
        measures = {task: Measures(lab) for task, lab in labs.items()}
        _do(store, jobs, lambda case: run(labs[case.task], measures[case.task], case))
        _do(store, curve_jobs, lambda case: curves(labs[case.task], case))
    _report(options, console, _found(store, jobs), _found(store, curve_jobs))


def _console() -> Console:
    console = Console()
    # a pipe gets wide tables, a terminal what fits it
    return console if console.is_terminal else Console(width=220)


def _print_cost(store: Store, jobs: Mapping[Case, Job], options: Options, console: Console) -> None:
    """How many runs there are to do, and how long that takes if they are as fast as those that are done."""
    missing = store.missing(list(jobs.values()))
    done = [result["seconds"] for result in _found(store, jobs).values()]
    each = sum(done) / len(done) if done else SECONDS_GUESSED
    basis = f"as {len(done)} finished ones took" if done else "a guess"
    console.print(
        f"{len(missing)} of {len(jobs)} runs to do, {each:.0f} s each ({basis}): {len(missing) * each / 3600:.1f} h; "
        f"then {len(options.linearised)} linearised ones. Stop at any time; the same command goes on.",
        highlight=False,
    )


def _do(store: Store, jobs: Mapping[Case, Job], do: Callable[[Case], dict[str, Any]]) -> None:
    missing = {case: job for case, job in jobs.items() if store.find(job) is None}
    with progress_bar(len(missing)) as advance:
        for done, (case, one) in enumerate(missing.items()):
            advance(case.name, done)
            start = time.perf_counter()
            store.put(one, do(case))
            print(f"{one.section}: {case.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            give_back_memory()  # or it would grow by half a gigabyte with every run


def _found(store: Store, jobs: Mapping[Case, Job]) -> dict[Case, dict[str, Any]]:
    results = {case: store.find(job) for case, job in jobs.items()}
    return {case: result for case, result in results.items() if result is not None}


def _report(
    options: Options, console: Console, runs: Mapping[Case, dict[str, Any]], lines: Mapping[Case, dict[str, Any]]
) -> None:
    found = points(runs)
    tables = [*score_tables(options, found), correlation_table(options, found)]
    tables += [table for table in [curve_table(lines)] if table is not None]
    for table in tables:
        table.print(console)
    figures = {"scores": score_figure(options, found)} if found else {}
    figures |= {"linearised": curve_figure(lines)} if lines else {}
    command = shlex.join(["python", *sys.argv])
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    text = "\n\n".join(
        ["# Kernels and fine-tuning", facts, *(t.markdown() for t in tables), "## Repeat it", f"    {command}"]
    )
    _write(options, text, _record(command, runs, lines), figures)
    console.print(f"written to {options.out}", highlight=False, markup=False)


def _record(command: str, *sections: Mapping[Case, dict[str, Any]]) -> dict[str, Any]:
    named = [{case.name: result for case, result in section.items()} for section in sections]
    return {"command": command, "environment": environment(), "runs": named[0], "curves": named[1]}


def _write(options: Options, text: str, record: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    names: Sequence[str] = ("table.md", "results.json", *(f"{name}.png" for name in figures))
    with new_files([options.out / name for name in names], overwrite=True) as (table, numbers, *pictures):
        table.write_text(text + "\n", encoding="utf-8")
        numbers.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        for figure, picture in zip(figures.values(), pictures, strict=True):
            save_png(figure, picture)
    (options.out / MARKER).touch()


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except NTKFusionError as error:
        sys.exit(f"error: {error}")
