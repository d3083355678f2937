"""Tables of text with notes, for the terminal and as Markdown, and the files that an experiment writes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.box import HORIZONTALS
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments.common.console import repeat_command, say
from ntkfusion.reporting.plots import save_png
from ntkfusion.reporting.summary import format_error, is_best
from ntkfusion.utils.console_tables import print_table
from ntkfusion.utils.files import new_files


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """A title, columns, rows of text (names in the first column, ** around the best), and notes below."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]
    notes: tuple[str, ...] = ()

    def print(self, console: Console) -> None:
        """Show it in the terminal."""
        drawn = Table(box=HORIZONTALS, pad_edge=False, title=self.title, title_justify="left")
        for place, column in enumerate(self.columns):
            drawn.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in self.rows:
            drawn.add_row(*(f"[bold]{escape(c.strip('*'))}[/bold]" if c.startswith("**") else escape(c) for c in row))
        print_table(console, drawn)
        for note in self.notes:
            say(console, note)
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
    tables: tuple[ResultTable, ...]
    record: Mapping[str, object] | Sequence[object]
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)


def mark_best(rows: Sequence[list[str]], column: int, values: Sequence[float]) -> None:
    """Put ** around the cells of a column whose values, one per row, are the lowest."""
    for row, best in zip(rows, is_best(np.array(values)), strict=True):
        row[column] = f"**{row[column]}**" if best else row[column]


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


def report_text(title: str, facts: Mapping[str, object], parts: Sequence[str]) -> str:
    """An experiment's table.md.

    Args:
        title: of the page.
        facts: versions and device.
        parts: tables and notes, as Markdown.
    """
    known = ", ".join(f"{name} {value}" for name, value in facts.items())
    return "\n\n".join([f"# {title}", known, *parts, "## Repeat it", f"    {repeat_command()}"]) + "\n"


def write_report(
    folder: Path, text: str, figures: Mapping[str, Figure], record: Mapping[str, object] | None = None
) -> None:
    """Write table.md, a PNG per figure, and results.json if there is a record: all of them or none.

    Args:
        folder: where; made if need be.
        text: of table.md.
        figures: by name of their file, without ending.
        record: everything that was measured, as plain finite numbers.
    """
    pages = {"table.md": text}
    if record is not None:
        pages["results.json"] = json.dumps(record, indent=1, allow_nan=False) + "\n"
    names = [*pages, *(f"{name}.png" for name in figures)]
    with new_files([folder / name for name in names], overwrite=True) as paths:
        for path, page in zip(paths, pages.values(), strict=False):
            path.write_text(page, encoding="utf-8")
        for path, figure in zip(paths[len(pages) :], figures.values(), strict=True):
            save_png(figure, path)
