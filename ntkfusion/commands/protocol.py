"""What every command is: a dataclass of options, and four functions that `main` calls one after the other.

``plan(options)`` checks everything that can be checked without the model; ``run(plan, progress)`` does the work
and returns its result; ``write(result, folder)`` writes it into a folder that takes its place afterwards;
``show(result, console)`` prints it. Nothing heavy is imported here: options import this module for ``--help``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro
from rich.console import Console

from ntkfusion.utils.files import Output
from ntkfusion.utils.progress import Progress

ModelArgument = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def print_lines(console: Console, *lines: str) -> None:
    """Print text as it is, one line each: no markup, no colours, not broken."""
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


class CommandPlan(Protocol):
    """A checked request."""

    @property
    def output(self) -> Output | None:
        """Where the result goes; None if it is only printed."""

    @property
    def steps(self) -> int | None:
        """How many steps `run` reports; None if every part of it counts its own."""


@dataclasses.dataclass(frozen=True)
class Command:
    """The four functions of a command.

    Attributes:
        plan: options → the checked request.
        run: does the work; its second argument shows progress and carries Ctrl-C.
        write: writes the result into a folder; called only if the plan has an output.
        show: prints the result.
    """

    plan: Callable[[Any], CommandPlan]
    run: Callable[[Any, Progress], Any]
    write: Callable[[Any, Path], None]
    show: Callable[[Any, Console], None]

    @classmethod
    def load(cls, modules: Sequence[str]) -> Command:
        """Import a command.

        Args:
            modules: where its functions are, each in one of them.
        """
        loaded = [importlib.import_module(name) for name in modules]
        names = (field.name for field in dataclasses.fields(cls))
        return cls(*(next(vars(module)[name] for module in loaded if name in vars(module)) for name in names))
