"""The command line of an experiment: its options, its errors, its terminal, and how to repeat it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro
from rich.console import Console

from ntkfusion.errors import NTKFusionError
from ntkfusion.utils.files import system_reason

OptionsType = TypeVar("OptionsType")


def start(main: Callable[[OptionsType], None], options: type[OptionsType]) -> None:
    """Run an experiment with the options on the command line; errors of ours and the system's are one line and code 1.

    Args:
        main: the experiment.
        options: the dataclass of its options, whose docstring is the help.

    Raises:
        SystemExit: if the options or the run fail.
    """
    try:
        main(tyro.cli(options))
    except NTKFusionError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        place = "" if error.filename is None else f" {error.filename}"
        sys.exit(f"error: the system refused to read or write{place}: {system_reason(error)}")


def open_console(width: int) -> Console:
    """The terminal, in which tables fit; a pipe or file gets `width` columns."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def say(console: Console, text: str) -> None:
    """Print text as it is: no colours for numbers, no markup in brackets."""
    console.print(text, highlight=False, markup=False)


def repeat_command() -> str:
    """The command that repeats this run; ``python -m`` has put a file there, whose folder does as well."""
    script, *words = sys.argv
    path = Path(script)
    if path.name == "__main__.py":
        folder, here = path.parent, Path.cwd()
        script = str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
    return shlex.join(["python", script, *words])
