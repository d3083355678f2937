"""The command line. Imports nothing heavy until a command runs, so that ``--help`` and ``--version`` answer at once."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ntkfusion._version import __version__
from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.compress.options import Compress
from ntkfusion.commands.convert.options import Convert
from ntkfusion.commands.finetune.options import Finetune
from ntkfusion.commands.inspect.options import Inspect
from ntkfusion.commands.kernel.options import Kernel
from ntkfusion.commands.verify.options import Verify
from ntkfusion.errors import NTKFusionError
from ntkfusion.utils.allocator import keep_freed_memory

Command = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Compress, tyro.conf.subcommand("compress")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Kernel, tyro.conf.subcommand("kernel")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)

#: Exit code after Ctrl-C.
INTERRUPTED = 130

DESCRIPTION = """Exact neural tangent kernels of compressed language models: did the compression keep the training
dynamics, and can you prove it? `ntkfusion --version` prints the version."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with 0, 2 for bad input, or 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if arguments in (["--version"], ["-V"]):
        print(f"ntkfusion {__version__}")
        return
    options: Any = None
    try:
        options = tyro.cli(Command, prog="ntkfusion", description=DESCRIPTION, args=arguments)  # pyright: ignore
        with Interrupts() as interrupts:
            _RUN[type(options)](options, interrupts)
    except NTKFusionError as error:
        print(f"ntkfusion: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        more = "; --resume goes on with it" if isinstance(options, Finetune) else ""
        print(f"ntkfusion: interrupted, nothing is left half-written{more}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def command() -> None:
    """`main` as a process of its own; an interrupted one ends at once.

    Threads of XLA may still compute then, and would crash in the ruins of the interpreter if it were taken down first.
    """
    try:
        main()
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


class Interrupts:
    """Remembers Ctrl-C: Python drops the exception when it lands in a garbage collection callback, as JAX has one."""

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None
        self._unraisable = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            sys.unraisablehook = self._quiet
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            sys.unraisablehook = self._unraisable

    def _quiet(self, dropped: Any) -> None:
        """Say nothing of a KeyboardInterrupt that Python drops: it is remembered, and raised at the next step."""
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._unraisable(dropped)

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one."""
        if self.seen:
            raise KeyboardInterrupt

    def checked(self, advance: Callable[[str, int], None]) -> Callable[[str, int], None]:
        """`advance`, which also raises KeyboardInterrupt if there was one."""

        def advance_or_stop(description: str, done: int) -> None:
            self.check()
            advance(description, done)

        return advance_or_stop


def run_compare(options: Compare, interrupts: Interrupts) -> None:
    """``ntkfusion compare``: check the request, measure, write the report, print the table."""
    from rich.console import Console

    from ntkfusion.utils.files import check_output, new_folder

    folder = options.out or Path("results") / f"compare-{Path(options.model).name}"
    if not options.list_methods:
        check_output(folder, overwrite=options.overwrite)
    _prepare_libraries()
    from ntkfusion.commands.compare.run import count_steps, make_plan, run
    from ntkfusion.compression.registry import IMPROVEMENTS_HELP, METHODS
    from ntkfusion.reporting.page import write_report
    from ntkfusion.reporting.summary import answer
    from ntkfusion.reporting.table import console_table
    from ntkfusion.utils.progress import progress_bar

    descriptions = {name: entry.description for name, entry in METHODS.items()}
    console = Console()
    if options.list_methods:
        for name, text in descriptions.items():
            console.print(f"[bold]{name}[/bold]: {text}", highlight=False, soft_wrap=True)
        console.print(IMPROVEMENTS_HELP, highlight=False, soft_wrap=True, markup=False)
        return
    plan = make_plan(options)
    with progress_bar(count_steps(plan)) as advance:
        measured = run(plan, interrupts.checked(advance))
        interrupts.check()
        with new_folder(folder, overwrite=options.overwrite) as written:
            write_report(measured.comparison, descriptions, measured.galleries, written)
    console.print(console_table(measured.comparison))
    console.print(answer(measured.comparison, descriptions), highlight=False, soft_wrap=True, markup=False)
    console.print(f"Report: {folder / 'index.html'}", highlight=False, soft_wrap=True, markup=False)


def run_compress(options: Compress, interrupts: Interrupts) -> None:
    """``ntkfusion compress``: check the request, compress, measure, save, print the table."""
    _prepare_libraries()
    from rich.console import Console

    from ntkfusion.checkpoints.save import save_model
    from ntkfusion.commands.compress.report import print_outcome
    from ntkfusion.commands.compress.run import STEPS, make_plan, run
    from ntkfusion.utils.progress import progress_bar

    plan = make_plan(options)
    with progress_bar(STEPS + 1) as advance:
        advance_or_stop = interrupts.checked(advance)
        outcome = run(plan, advance_or_stop)
        advance_or_stop("saving", STEPS)
        how = {"format": options.format, "dtype": options.dtype, "overwrite": options.overwrite}
        save_model(outcome.model, plan.folder, notes=outcome.card, pad=options.pad, merge=options.merge, **how)
    print_outcome(outcome, options.format, plan.folder, Console())


def run_convert(options: Convert, interrupts: Interrupts) -> None:
    """``ntkfusion convert``: load with a full audit, save, print what became of every tensor."""
    _prepare_libraries()
    from rich.console import Console

    from ntkfusion.checkpoints.load import load_with_audit
    from ntkfusion.checkpoints.save import check_request, save_model
    from ntkfusion.commands.compress.report import print_conversion
    from ntkfusion.commands.conditions import command_line

    how = {"format": options.format, "dtype": options.dtype, "overwrite": options.overwrite}
    check_request(options.out, **how)
    model, audit = load_with_audit(options.model)
    interrupts.check()
    notes = {"command": command_line(options, positional=("model", "out")), "left aside": audit.left_aside}
    save_model(model, options.out, notes=notes, pad=options.pad, merge=options.merge, **how)
    print_conversion(model, audit, options.format, options.out, Console())


def run_finetune(options: Finetune, interrupts: Interrupts) -> None:
    """``ntkfusion finetune``: check the request, train with every seed, write results, print the table."""
    # compressing takes arrays of many sizes, and gaps between those that are kept would add up
    if options.compress is None:
        keep_freed_memory()
    _prepare_libraries()
    from rich.console import Console

    from ntkfusion.commands.finetune.plan import make_plan
    from ntkfusion.commands.finetune.report import print_finetuning, write_finetuning
    from ntkfusion.commands.finetune.run import run
    from ntkfusion.utils.progress import training_bar

    plan = make_plan(options)
    with training_bar() as bar:
        found = run(plan, bar, interrupts.check)
        write_finetuning(found, plan.folder)
    print_finetuning(found, plan.folder, Console())


def run_inspect(options: Inspect, _: Interrupts) -> None:
    """``ntkfusion inspect``: print what a model is made of."""
    _prepare_libraries()
    from rich.console import Console

    from ntkfusion.checkpoints.load import load_with_audit
    from ntkfusion.commands.inspect.report import print_inspection

    model, audit = load_with_audit(options.model)
    print_inspection(model, audit.left_aside, Console())


def run_kernel(options: Kernel, interrupts: Interrupts) -> None:
    """``ntkfusion kernel``: check the request, compute, write kernel and pictures, print the summary."""
    _prepare_libraries()
    from rich.console import Console

    from ntkfusion.commands.kernel.report import print_kernel
    from ntkfusion.commands.kernel.run import STEPS, make_plan, run
    from ntkfusion.reporting.kernel_file import save_kernel_file
    from ntkfusion.reporting.kernel_plots import kernel_figure, spectra_of, spectrum_figure
    from ntkfusion.reporting.plots import save_png
    from ntkfusion.utils.files import new_files
    from ntkfusion.utils.progress import progress_bar

    plan = make_plan(options)
    with progress_bar(STEPS + 1) as advance:
        advance_or_stop = interrupts.checked(advance)
        file = run(plan, advance_or_stop)
        advance_or_stop("spectra and pictures", STEPS)
        spectra = spectra_of(file)
        with new_files(plan.files, overwrite=options.overwrite) as (numbers, heatmap, spectrum):
            save_kernel_file(file, numbers)
            save_png(kernel_figure(file), heatmap)
            save_png(spectrum_figure(file, spectra), spectrum)
            interrupts.check()
    print_kernel(file, spectra, plan.files, Console())


def run_verify(options: Verify, interrupts: Interrupts) -> None:
    """``ntkfusion verify``: run the theory checks, write the report, print the table; exit code 1 if one fails."""
    _prepare_libraries()
    from rich.console import Console

    from ntkfusion.commands.verify.report import verification_table, write_verification
    from ntkfusion.commands.verify.run import chosen_checks, output_folder, run
    from ntkfusion.utils.files import new_folder
    from ntkfusion.utils.progress import progress_bar

    checks, folder = chosen_checks(options), output_folder(options)
    with progress_bar(len(checks) + 1) as advance:
        verification = run(options, checks, interrupts.checked(advance))
        interrupts.check()
        with new_folder(folder, overwrite=options.overwrite) as written:
            write_verification(verification, written)
    console = Console()
    console.print(verification_table(verification))
    for finding in verification.findings:
        for failure in finding.outcome.failures:
            console.print(f"{finding.check.name}: {failure}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"Report: {folder / 'index.html'}", highlight=False, soft_wrap=True, markup=False)
    if not verification.passed:
        sys.exit(1)


def _prepare_libraries() -> None:
    """Settings that libraries read when they are imported; what the user has set stays."""
    # nothing but our own words on the terminal
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # LAPACK's own threads fight with XLA's: a singular value decomposition takes 5 to 30 times longer with them
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


_RUN: dict[type, Callable[[Any, Interrupts], None]] = {
    Compare: run_compare,
    Compress: run_compress,
    Convert: run_convert,
    Finetune: run_finetune,
    Inspect: run_inspect,
    Kernel: run_kernel,
    Verify: run_verify,
}
