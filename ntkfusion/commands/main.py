"""The command line. Imports nothing heavy until a command runs, so that ``--help`` and ``--version`` answer at once."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any

import tyro

from ntkfusion import commands
from ntkfusion._version import __version__
from ntkfusion.commands.compare.options import Compare
from ntkfusion.commands.compress.options import Compress
from ntkfusion.commands.convert.options import Convert
from ntkfusion.commands.finetune.options import Finetune
from ntkfusion.commands.inspect.options import Inspect
from ntkfusion.commands.kernel.options import Kernel
from ntkfusion.commands.protocol import Command
from ntkfusion.commands.terminal import STANDARD_OUTPUT, Terminal, complain, standard_output
from ntkfusion.commands.verify.options import Verify
from ntkfusion.errors import NTKFusionError, OutputWriteError
from ntkfusion.utils.allocator import keep_freed_memory
from ntkfusion.utils.files import system_reason
from ntkfusion.utils.progress import show_progress

Options = (
    Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Compress, tyro.conf.subcommand("compress")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Finetune, tyro.conf.subcommand("finetune")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Kernel, tyro.conf.subcommand("kernel")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)

#: Options of a command → the modules below `ntkfusion.commands` that hold its functions, imported when it runs.
MODULES: dict[type, tuple[str, ...]] = {
    Compare: ("compare.run", "compare.report"),
    Compress: ("compress.run",),
    Convert: ("convert.run",),
    Finetune: ("finetune.plan", "finetune.run", "finetune.report"),
    Inspect: ("inspect.run",),
    Kernel: ("kernel.run",),
    Verify: ("verify.run", "verify.report"),
}

#: Exit code after Ctrl-C.
INTERRUPTED = 130

DESCRIPTION = """Exact neural tangent kernels of compressed language models: did the compression keep the training
dynamics, and can you prove it? `ntkfusion --version` prints the version."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; ends the process with 0, 1 if a check failed, 2 for bad input, or 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    options: object = None
    try:
        with standard_output():
            options = _parse(arguments)
        passed = options is None or execute(options)
    except KeyboardInterrupt:
        complain(f"interrupted, nothing is left half-written{_go_on(options)}")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (sentence := _sentence(error)) is None:
            raise
        stopped = isinstance(error, OutputWriteError) and error.what != STANDARD_OUTPUT
        complain(sentence + (_go_on(options) if stopped else ""))
        sys.exit(2)
    if not passed:
        sys.exit(1)


def _parse(arguments: Sequence[str]) -> object:
    """The options of a command; None if the version was asked for, which is printed."""
    if arguments in (["--version"], ["-V"]):
        print(f"ntkfusion {__version__}")
        return None
    return tyro.cli(Options, prog="ntkfusion", description=DESCRIPTION, args=arguments)  # pyright: ignore


def _go_on(options: object) -> str:
    """How to go on, for commands that can."""
    return "; --resume goes on with it" if hasattr(options, "resume") else ""


def _sentence(error: Exception) -> str | None:
    """What went wrong in words for users; None for a mistake in the program, whose traceback is wanted."""
    if isinstance(error, NTKFusionError):
        return str(error)
    if (reason := system_reason(error)) is None:
        return None
    place = error.filename if isinstance(error, OSError) else None
    return f"the system refused to read or write{'' if place is None else f' {place}'}: {reason}"


def command() -> None:
    """`main` as a process of its own; an interrupted one ends at once.

    Threads of XLA may still compute then, and would crash if the interpreter were taken down before they end.
    """
    try:
        main()
    except SystemExit as ending:
        if ending.code == INTERRUPTED:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


def execute(options: object) -> bool:
    """Plan, run, write and show one command.

    Args:
        options: one of `Options`.

    Returns:
        Whether the result passed; only that of ``verify`` may not.

    Raises:
        NTKFusionError: for a request that cannot be met.
        KeyboardInterrupt: after Ctrl-C; no output is left half-written.
    """
    with Interrupts() as interrupts:
        _prepare_process(options)
        work = load_command(type(options))  # seconds of imports, whose callbacks may drop an interrupt
        plan = work.plan(options)
        reserved = nullcontext() if plan.output is None else plan.output.reserved()
        total = None if plan.steps is None else plan.steps + (plan.output is not None)
        with reserved, show_progress(total, interrupts.check) as progress:
            result = work.run(plan, progress)
            if plan.output is not None:
                progress.say("writing") if plan.steps is None else progress.advance("writing", plan.steps)
                with plan.output.opened() as folder:
                    work.write(result, folder)
                    progress.check()
        with standard_output(() if plan.output is None else plan.output.paths):
            work.show(result, Terminal())
    return getattr(result, "passed", True)


def load_command(options: type) -> Command:
    """The functions of the command that has these options."""
    return Command.load([f"{commands.__name__}.{module}" for module in MODULES[options]])


def _prepare_process(options: object) -> None:
    """Settings that libraries read when they are imported; what the user has set stays."""
    # compressing takes arrays of many sizes, and gaps between those that are kept would add up
    if isinstance(options, Finetune) and options.compress is None:
        keep_freed_memory()
    # nothing but our own words on the terminal
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # LAPACK's own threads fight with XLA's: a singular value decomposition takes 5 to 30 times longer with them
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


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
            if sys.unraisablehook == self._quiet:  # else somebody else goes on listening, and passes on what is left
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
