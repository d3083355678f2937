"""Progress on standard error: a live bar in a terminal, nothing in a pipe."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Called with what is being done now and how many steps were finished before it.
Advance = Callable[[str, int], None]


@contextmanager
def progress_bar(total: int) -> Iterator[Advance]:
    """A bar of `total` steps; yields a function ``advance(what_now, steps_done)``."""
    with _display(TimeElapsedColumn()) as progress:
        task = progress.add_task("starting", total=total)
        yield lambda description, done: progress.update(task, description=description, completed=done)


def _display(*more: ProgressColumn) -> Progress:
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


class TrainingBar:
    """A live line of training: loss, rate, tokens per second, time left. Nothing in a pipe."""

    def __init__(self, progress: Progress) -> None:
        """Draw on a rich display, with one line."""
        self._progress = progress
        self._task = progress.add_task("starting", total=None, numbers="")

    def say(self, what: str) -> None:
        """Show what is being done."""
        self._progress.reset(self._task, description=what, total=None, numbers="")

    def tracker(self, what: str, total: int, done: int, check: Callable[[], None] = lambda: None) -> BarTracker:
        """Something that shows updates.

        Args:
            what: is being trained.
            total: updates in all.
            done: updates that were done before.
            check: is called at every update.
        """
        self._progress.reset(self._task, description=what, total=total, completed=done, numbers="")
        return BarTracker(self._progress, self._task, check)


class BarTracker:
    """A tracker (`ntkfusion.training.trackers.Tracker`) that moves a bar."""

    #: Updates that tokens per second are a mean of.
    LATELY = 20

    def __init__(self, progress: Progress, task: TaskID, check: Callable[[], None]) -> None:
        """Move one line of a display."""
        self._progress, self._task, self._check = progress, task, check
        self._pace: deque[tuple[float, float]] = deque(maxlen=self.LATELY)
        self._dev = ""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the numbers of an update or of an evaluation."""
        self._check()
        if "loss" not in values:
            self._dev = "".join(f"  {name} {value:.3f}" for name, value in values.items())
            return
        self._pace.append((values["tokens"], values["seconds"]))
        tokens, seconds = (sum(column) for column in zip(*self._pace, strict=True))
        numbers = (
            f"loss {values['loss']:.4f}  rate {values['learning_rate']:.2e}  {tokens / max(seconds, 1e-9):,.0f} tok/s"
        )
        self._progress.update(self._task, completed=step, numbers=numbers + self._dev)

    def close(self) -> None:
        """Nothing is left to show."""


@contextmanager
def training_bar() -> Iterator[TrainingBar]:
    """The live line of a training run on standard error."""
    with _display(TextColumn("{task.fields[numbers]}"), TimeRemainingColumn()) as progress:
        yield TrainingBar(progress)
