"""What the sections hand over: tables with notes, numbers and figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.box import HORIZONTALS
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ntkfusion.reporting.summary import format_error


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, columns, rows of text (names in the first column, ** around the best), and notes below."""

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
            drawn.add_row(*(f"[bold]{escape(c.strip('*'))}[/bold]" if c.startswith("**") else escape(c) for c in row))
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
    """The tables of one section, everything that was measured as plain numbers, and figures by file name."""

    name: str
    tables: tuple[Table, ...]
    record: Mapping[str, Any]
    figures: Mapping[str, Figure]


def spread(values: np.ndarray) -> str:
    """Mean ± standard deviation (n − 1) with three decimals; the mean alone for one value.

    >>> spread(np.array([0.1, 0.2, 0.3])), spread(np.array([0.25]))
    ('0.200 ± 0.100', '0.250')
    """
    mean = format_error(float(values.mean()))
    return mean if len(values) == 1 else f"{mean} ± {format_error(float(values.std(ddof=1)))}"


def finite(value: float) -> float | None:
    """The number as JSON can say it."""
    return float(value) if math.isfinite(value) else None
