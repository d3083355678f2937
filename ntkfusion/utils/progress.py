"""Progress on standard error: a live bar in a terminal, nothing in a pipe; and where long work hears of Ctrl-C."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich import progress as display
from rich.console import Console


class Progress:
    """What long work tells what it is doing, and what stops it after Ctrl-C.

    Without a display it shows nothing, as for a call from Python.
    """

    def __init__(
        self,
        check: Callable[[], None] = lambda: None,
        shown: display.Progress | None = None,
        total: int | None = None,
    ) -> None:
        """Take one line of a display.

        Args:
            check: raises KeyboardInterrupt if the work is to stop.
            shown: the display; None shows nothing.
            total: steps in all; None if every part of the work counts its own.
        """
        self.check = check
        self._shown = display.Progress(disable=True) if shown is None else shown
        self._task = self._shown.add_task("starting", total=total, numbers="")

    def advance(self, what: str, done: int) -> None:
        """Show a step.

        Args:
            what: is being done now.
            done: steps that were finished before it.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
        """
        self.check()
        self._shown.update(self._task, description=what, completed=done)

    def say(self, what: str) -> None:
        """Show what is being done, where nobody counts steps; otherwise as `advance`."""
        self.check()
        self._shown.reset(self._task, description=what, total=None, numbers="")

    def tracker(self, what: str, total: int, done: int) -> BarTracker:
        """Something that shows updates of a training, and stops it after Ctrl-C.

        Args:
            what: is being trained.
            total: updates in all.
            done: updates that were done before.
        """
        self._shown.reset(self._task, description=what, total=total, completed=done, numbers="")
        return BarTracker(self._shown, self._task, self.check)


class BarTracker:
    """A tracker (`ntkfusion.training.trackers.Tracker`) that moves a bar: loss, rate, tokens per second."""

    #: Updates that tokens per second are a mean of.
    LATELY = 20

    def __init__(self, shown: display.Progress, task: display.TaskID, check: Callable[[], None]) -> None:
        """Move one line of a display."""
        self._shown, self._task, self._check = shown, task, check
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
        self._shown.update(self._task, completed=step, numbers=numbers + self._dev)

    def close(self) -> None:
        """Nothing is left to show."""


@contextmanager
def show_progress(total: int | None, check: Callable[[], None] = lambda: None) -> Iterator[Progress]:
    """A live line while the block runs.

    Args:
        total: steps in all; None for training, whose parts count their own updates.
        check: raises KeyboardInterrupt if the work is to stop.
    """
    console = Console(stderr=True)
    columns = [display.SpinnerColumn(), display.TextColumn("{task.description}"), display.BarColumn()]
    columns += [display.MofNCompleteColumn()]
    if total is None:
        columns += [display.TextColumn("{task.fields[numbers]}"), display.TimeRemainingColumn()]
    else:
        columns += [display.TimeElapsedColumn()]
    with display.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        yield Progress(check, shown, total)
