"""Tables in terminals of any width: rich cuts words and numbers that do not fit, these never lose any."""

from __future__ import annotations

import copy
import dataclasses

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

#: Cells of right-justified columns up to this length are numbers, perhaps with a unit, and stay on one line.
_NUMBER = 24

#: Wide enough for everything.
_WIDE = 100_000


@dataclasses.dataclass(frozen=True)
class _Width:
    """How narrow and how wide a column's text may be."""

    least: int
    most: int


def print_table(console: Console, table: Table) -> None:
    """Print a table whole: headings and text are wrapped between words; where that is too wide, row by row."""
    widths = [_width(console, column) for column in table.columns]
    options = console.options.update(width=_WIDE)
    frame = Measurement.get(console, options, table).maximum - sum(width.most for width in widths)
    room = console.width - frame
    if sum(width.most for width in widths) <= room:
        console.print(table)
    elif sum(width.least for width in widths) <= room:
        console.print(_narrowed(table, _shared(widths, room)))
    else:
        for line in row_lines(table):
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def row_lines(table: Table) -> list[str]:
    """A table row by row, every cell in a line with its heading; cells without text are left out."""
    headings = [_plain(column.header).replace("\n", " ") for column in table.columns]
    lines = [] if table.title is None else [_plain(table.title)]
    for row in zip(*(column.cells for column in table.columns), strict=True):
        cells = [(heading, _plain(cell)) for heading, cell in zip(headings, row, strict=True)]
        filled = [f"{heading}: {text}" if heading else text for heading, text in cells if text]
        lines += filled[:1] + [f"  {line}" for line in filled[1:]]
    return lines


def _plain(cell: RenderableType) -> str:
    """A cell's text."""
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _width(console: Console, column: Column) -> _Width:
    heading, *cells = (_measured(console, cell) for cell in (column.header, *column.cells))
    whole = column.no_wrap or column.justify == "right"
    least = [cell.most if whole and cell.most <= _NUMBER else cell.least for cell in cells]
    return _Width(max([heading.least, *least]), max([heading.most, *(cell.most for cell in cells)]))


def _measured(console: Console, cell: RenderableType) -> _Width:
    found = Measurement.get(console, console.options.update(width=_WIDE), cell)
    return _Width(found.minimum, found.maximum)


def _shared(widths: list[_Width], room: int) -> list[int]:
    """The room shared: what is left beside the least of all goes, one by one, where most is missing."""
    shared = [width.least for width in widths]
    for _ in range(room - sum(shared)):
        missing = [width.most - given for width, given in zip(widths, shared, strict=True)]
        shared[missing.index(max(missing))] += 1
    return shared


def _narrowed(table: Table, widths: list[int]) -> Table:
    """The table with columns of these widths."""
    narrow = copy.copy(table)
    # not `Column.copy`, which leaves the cells behind
    columns = zip(table.columns, widths, strict=True)
    narrow.columns = [dataclasses.replace(column, width=width) for column, width in columns]
    return narrow
