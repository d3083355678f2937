"""What the sections print: tables with notes, for the terminal and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table as RichTable

from kernel_benchmark.outcome import Outcome
from ntkfusion.utils.memory import show_size


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, columns, rows of text (names in the first column), and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    notes: tuple[str, ...] = ()

    def print(self, console: Console) -> None:
        """Show it in the terminal."""
        drawn = RichTable(box=HORIZONTALS, pad_edge=False, title=self.title, title_justify="left")
        for place, column in enumerate(self.columns):
            drawn.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            drawn.add_row(*row)
        console.print(drawn)
        for note in self.notes:
            console.print(note, highlight=False, markup=False)
        console.print()

    def markdown(self) -> str:
        """The same as Markdown."""
        ruler = ["---", *["---:"] * (len(self.columns) - 1)]
        lines = [[cell.replace("|", "\\|") for cell in row] for row in (self.columns, ruler, *self.rows)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return "\n\n".join([f"## {self.title}", table, *self.notes])


@dataclasses.dataclass(frozen=True)
class Section:
    """The tables of one section, and everything that was measured as plain numbers."""

    name: str
    tables: tuple[Table, ...]
    record: dict[str, Any]


def seconds(value: float) -> str:
    """Seconds with three digits.

    >>> seconds(0.0123456), seconds(123.4)
    ('0.0123', '123')
    """
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def took(outcome: Outcome) -> str:
    """The median seconds of a contestant, or why there are none."""
    return seconds(outcome.median) if outcome.ok else outcome.reason


def peak(outcome: Outcome) -> str:
    """Peak resident memory; what a contestant held when it asked for too much says nothing."""
    return "–" if outcome.status == "memory" else show_size(outcome.peak)


def verdict(value: float, most: float) -> str:
    """Whether a target is met.

    >>> verdict(2.0, 2.5), verdict(3.0, 2.5)
    ('2.00 (≤ 2.5: yes)', '3.00 (≤ 2.5: NO)')
    """
    return f"{value:.2f} (≤ {most:g}: {'yes' if value <= most else 'NO'})"
