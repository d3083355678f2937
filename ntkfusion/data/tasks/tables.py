"""Columns of text from CSV, TSV and JSONL files: exactly what is there, with the line of whatever is wrong.

Local files are read with the standard library. `datasets` fills missing fields without a word, turns text that looks
like a date into one, copies the file to a cache, and does not say which line is broken.

Labels, from the cells of a table to class indices or scores.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32

from ntkfusion.data.text import read_utf8
from ntkfusion.errors import InputError

#: Python's own limit on a cell of CSV, 128 KiB, is shorter than some documents.
_LONGEST_CELL = 2**31 - 1

#: Cells that programs write where a label is missing.
_MISSING = frozenset({"na", "n/a", "nan", "<na>", "null", "none", "-", "?"})

_ABSENT = object()  # a key that a line of JSON lacks


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a file.

    Attributes:
        path: the file.
        columns: cells by name of the column: text, in JSONL any value.
        lines: where each row starts in the file, from 1.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: list[int]

    def where(self, row: int) -> str:
        """For messages: the file and the line of a row."""
        return f"{self.path}, line {self.lines[row]}"

    def column(self, name: str) -> list[Any]:
        """The cells of a column.

        Raises:
            InputError: if there is no such column, or a line of JSON lacks it.
        """
        if name not in self.columns:
            raise InputError(f"{self.path} has no column {name!r}; it has {', '.join(map(repr, self.columns))}")
        cells = self.columns[name]
        for row, cell in enumerate(cells):
            if cell is _ABSENT:
                raise InputError(f"{self.where(row)} has no {name!r}, which other lines have")
        return cells

    def texts(self, name: str) -> tuple[str, ...]:
        """The cells of a column of text.

        Raises:
            InputError: as `column`; if a cell is no text or only white space.
        """
        cells = self.column(name)
        for row, cell in enumerate(cells):
            if not isinstance(cell, str):
                raise InputError(f"{self.where(row)}: {name!r} should be text, it is {json.dumps(cell)}")
            if not cell.strip():
                raise InputError(f"{self.where(row)}: {name!r} is empty; fill it or remove the row")
        return tuple(cells)


def read_table(path: Path, *, names: Sequence[str] = (), style: Literal["csv", "tsv", "jsonl"] | None = None) -> Table:
    """Read a file with one example per row; blank lines are left out.

    Args:
        path: UTF-8 text, with or without a byte order mark.
        names: of the first columns, for a CSV or TSV file without a header; fields after them are left out.
        style: ``"csv"``, comma separated and quoted; ``"tsv"``, tab separated, quotation marks are text; ``"jsonl"``,
            an object per line; None goes by the suffix.

    Returns:
        The `Table`, of at least one row.

    Raises:
        InputError: if the file cannot be read, its suffix is another, a line is broken, or there are no rows.
    """
    chosen = style or path.suffix.lower().removeprefix(".")
    if chosen not in ("csv", "tsv", "jsonl"):
        raise InputError(f"{path}: the suffix should be .csv, .tsv or .jsonl, it is {path.suffix!r}")
    text = read_utf8(path)
    if chosen == "jsonl":
        table = _from_objects(path, text)
    else:
        table = _from_fields(path, _quoted(path, text) if chosen == "csv" else _unquoted(text), names)
    if not table.lines:
        raise InputError(f"{path} has no examples")
    return table


def _unquoted(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if content := line.removesuffix("\r"):
            yield number, content.split("\t")


def _quoted(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start, before = 1, csv.field_size_limit(_LONGEST_CELL)
    try:
        for fields in reader:
            if fields:
                yield start, fields
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {start}: {error}") from error
    finally:
        csv.field_size_limit(before)


def _from_fields(path: Path, rows: Iterator[tuple[int, list[str]]], names: Sequence[str]) -> Table:
    """Rows with as many fields as the header, or at least as many as there are names."""
    header = list(names) or [name.strip() for name in next(rows, (0, []))[1]]
    if len(set(header)) < len(header):
        raise InputError(f"{path}: two columns have the same name; the header is {', '.join(map(repr, header))}")
    cells, lines = [], []
    for line, fields in rows:
        if len(fields) < len(header) or (len(fields) > len(header) and not names):
            wanted = f"at least {len(header)}" if names else f"{len(header)}, as in the header"
            raise InputError(f"{path}, line {line}: {len(fields)} fields, expected {wanted}")
        cells.append(fields[: len(header)])
        lines.append(line)
    return Table(path, {name: [row[place] for row in cells] for place, name in enumerate(header)}, lines)


def _from_objects(path: Path, text: str) -> Table:
    objects, lines = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            objects.append(_object(line, f"{path}, line {number}"))
            lines.append(number)
    names = dict.fromkeys(name for row in objects for name in row)
    return Table(path, {name: [row.get(name, _ABSENT) for row in objects] for name in names}, lines)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f'{where}: expected a JSON object such as {{"text": ..., "label": ...}}')
    return value


def label_cells(table: Table, column: str) -> list[str]:
    """The cells of a column of labels as text.

    Raises:
        InputError: if there is no such column, or a cell is missing, or in JSONL a list or an object.
    """
    texts = []
    for row, cell in enumerate(table.column(column)):
        if isinstance(cell, list | dict):
            raise InputError(f"{table.where(row)}: a label is text or a number, {column!r} is {json.dumps(cell)}")
        text = "" if cell is None else cell.strip() if isinstance(cell, str) else json.dumps(cell)
        if not text:
            raise InputError(f"{table.where(row)}: {column!r} is missing; every example needs a label")
        texts.append(text)
    return texts


def are_scores(table: Table, cells: Sequence[str]) -> bool:
    """Whether labels are scores: all are numbers, and not all whole ones.

    Raises:
        InputError: if most labels are numbers and some are not, or not finite ones; if all are but for those that stand
            for a missing one.
    """
    numbers = [_number(cell) for cell in cells]
    bad = [row for row, number in enumerate(numbers) if number is None]
    missing = all(cells[row].casefold() in _MISSING or _is_infinite(cells[row]) for row in bad)
    if bad and len(bad) < len(cells) and (missing or 2 * len(bad) < len(cells)):
        raise InputError(
            f"{table.where(bad[0])}: label {cells[bad[0]]!r} is not a finite number, {'all' if missing else 'most'} "
            "others are; correct it, remove the row, or say that these are classes (regression=False, --labels classes)"
        )
    return not bad and any(number != round(number) for number in numbers if number is not None)


def scores(table: Table, cells: Sequence[str]) -> Float32[np.ndarray, "N"]:
    """Labels as scores.

    Raises:
        InputError: if one is not a finite number.
    """
    numbers = [_number(cell) for cell in cells]
    for row, number in enumerate(numbers):
        if number is None or abs(number) > float(np.finfo(np.float32).max):
            raise InputError(f"{table.where(row)}: score {cells[row]!r} is not a finite number of float32")
    return np.asarray(numbers, np.float32)


def class_names(table: Table, cells: Sequence[str]) -> tuple[str, ...]:
    """The different labels: numbers by value, anything else by alphabet.

    Raises:
        InputError: if there are fewer than two, or one number is spelled in two ways.
    """
    names, numeric = {*cells}, all(_number(cell) is not None for cell in cells)
    if numeric:
        _check_spellings(table, cells)
    if len(names) < 2:
        raise InputError(f"{table.path}: all labels are {next(iter(names))!r}; at least two classes are needed")
    return tuple(sorted(names, key=lambda name: (_number(name), name) if numeric else name))


def class_indices(table: Table, cells: Sequence[str], names: Sequence[str]) -> Int32[np.ndarray, "N"]:
    """Labels as places in `names`.

    Raises:
        InputError: if one is not among them.
    """
    index = {name: place for place, name in enumerate(names)}
    places = [index.get(cell) for cell in cells]
    for row, place in enumerate(places):
        if place is None:
            same = [name for name in names if _number(name) is not None and _number(name) == _number(cells[row])]
            hint = f"; {same[0]!r} is the same number, spell it alike" if same else ""
            known = ", ".join(names)
            raise InputError(f"{table.where(row)}: label {cells[row]!r} is unknown; the classes are {known}{hint}")
    return np.asarray(places, np.int32)


def _check_spellings(table: Table, cells: Sequence[str]) -> None:
    """Refuse 01 beside 1, or 1.0: are they one class or two?"""
    first: dict[int | float | None, int] = {}
    for row, cell in enumerate(cells):
        before = first.setdefault(_number(cell), row)
        if cells[before] != cell:
            raise InputError(
                f"{table.where(row)}: label {cell!r} is the number that line {table.lines[before]} spells "
                f"{cells[before]!r}; spell both alike if they are one class, else give the classes names that are no "
                "numbers"
            )


def _number(text: str) -> int | float | None:
    """A finite number; an int where it is one, because floats confuse large ones."""
    if "_" in text:  # Python reads 1_0 as 10
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _is_infinite(text: str) -> bool:
    """Whether a text is a number to Python, but no finite one: nan, inf, 1e999."""
    try:
        return "_" not in text and not math.isfinite(float(text))
    except ValueError:
        return False
