"""Every run that is missing, then tables and figures of all that is there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping

import jax
from rich.console import Console

from experiments.common.console import open_console, repeat_command, say
from experiments.common.store import Job, Result, ResultStore
from experiments.common.tables import report_text, write_report
from experiments.kernel_vs_finetuning.figures import curve_figure, score_figure
from experiments.kernel_vs_finetuning.lab import TaskLab
from experiments.kernel_vs_finetuning.measures import Measures
from experiments.kernel_vs_finetuning.options import FinetuningOptions
from experiments.kernel_vs_finetuning.report import correlation_table, curve_table, points, score_tables
from experiments.kernel_vs_finetuning.runs import RunCase, cases, curve_cases, curve_job, curves, job, run
from ntkfusion.commands.conditions import environment
from ntkfusion.utils.allocator import give_back_memory
from ntkfusion.utils.progress import show_progress

#: A run's seconds before the first one is done: what the author's two cores took.
SECONDS_GUESSED = 180.0


def main(options: FinetuningOptions) -> None:
    """Do what is missing, then make tables and figures of everything that is there."""
    console, store = open_console(220), ResultStore(options.out, options.overwrite)
    store.mark()
    # runs that differ in weights alone share compiled programs, in later processes too
    jax.config.update("jax_compilation_cache_dir", str(options.out / "programs"))
    labs = {task: TaskLab(options, task) for task in options.tasks}
    jobs = {case: job(options, labs[case.task], case) for case in cases(options)}
    curve_jobs = {case: curve_job(options, labs[case.task], case) for case in curve_cases(options)}
    if not options.report:
        _print_cost(store, jobs, options, console)
        measures = {task: Measures(lab) for task, lab in labs.items()}
        _do(store, jobs, lambda case: run(labs[case.task], measures[case.task], case))
        _do(store, curve_jobs, lambda case: curves(labs[case.task], case))
    _report(options, console, _found(store, jobs), _found(store, curve_jobs))


def _print_cost(store: ResultStore, jobs: Mapping[RunCase, Job], options: FinetuningOptions, console: Console) -> None:
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


def _do(store: ResultStore, jobs: Mapping[RunCase, Job], do: Callable[[RunCase], Result]) -> None:
    missing = {case: job for case, job in jobs.items() if store.find(job) is None}
    with show_progress(len(missing)) as progress:
        for done, (case, one) in enumerate(missing.items()):
            progress.advance(case.name, done)
            start = time.perf_counter()
            store.put(one, do(case))
            print(f"{one.section}: {case.name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
            give_back_memory()  # or it would grow by half a gigabyte with every run


def _found(store: ResultStore, jobs: Mapping[RunCase, Job]) -> dict[RunCase, Result]:
    results = {case: store.find(job) for case, job in jobs.items()}
    return {case: result for case, result in results.items() if result is not None}


def _report(
    options: FinetuningOptions, console: Console, runs: Mapping[RunCase, Result], lines: Mapping[RunCase, Result]
) -> None:
    found, facts = points(runs), environment()
    tables = [*score_tables(options, found), correlation_table(options, found)]
    tables += [table for table in [curve_table(lines)] if table is not None]
    for table in tables:
        table.print(console)
    figures = {"scores": score_figure(options, found)} if found else {}
    figures |= {"linearised": curve_figure(lines)} if lines else {}
    text = report_text("Kernels and fine-tuning", facts, [table.markdown() for table in tables])
    runs_by_name, lines_by_name = ({case.name: result for case, result in part.items()} for part in (runs, lines))
    record = {"command": repeat_command(), "environment": facts, "runs": runs_by_name, "curves": lines_by_name}
    write_report(options.out, text, figures, record)
    say(console, f"written to {options.out}")
