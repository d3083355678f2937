"""Progress on standard error: a live bar in a terminal, nothing in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

#: Called with what is being done now and how many steps were finished before it.
Advance = Callable[[str, int], None]


@contextmanager
def progress_bar(total: int) -> Iterator[Advance]:
    """A bar of `total` steps; yields a function ``advance(what_now, steps_done)``."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=total)
        yield lambda description, done: progress.update(task, description=description, completed=done)
