"""Labels, from the cells of a table to class indices or scores."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from ntkfusion.data.tables import Table
from ntkfusion.errors import InputError


def label_cells(table: Table, column: str) -> list[str]:
    """The cells of a column of labels as text.

    Raises:
        InputError: if there is no such column, or a cell is missing, or in JSONL a list or an object.
    """
    found = []
    for row, cell in enumerate(table.column(column)):
        if isinstance(cell, list | dict):
            raise InputError(f"{table.where(row)}: a label is text or a number, {column!r} is {json.dumps(cell)}")
        text = "" if cell is None else cell.strip() if isinstance(cell, str) else json.dumps(cell)
        if not text:
            raise InputError(f"{table.where(row)}: {column!r} is missing; every example needs a label")
        found.append(text)
    return found


def are_scores(table: Table, cells: Sequence[str]) -> bool:
    """Whether labels are scores: all are numbers, and not all whole ones.

    Raises:
        InputError: if most labels are numbers and some are not, or not finite ones.
    """
    numbers = [_number(cell) for cell in cells]
    bad = [row for row, number in enumerate(numbers) if number is None]
    if bad and 2 * len(bad) < len(cells):
        raise InputError(
            f"{table.where(bad[0])}: label {cells[bad[0]]!r} is not a finite number, most others are; correct it, or "
            "say that these are classes (regression=False, --labels classes)"
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
        InputError: if there are fewer than two.
    """
    numeric = all(_number(cell) is not None for cell in cells)
    names = {_name(cell) for cell in cells} if numeric else set(cells)
    if len(names) < 2:
        raise InputError(f"{table.path}: all labels are {next(iter(names))!r}; at least two classes are needed")
    return tuple(sorted(names, key=lambda name: (_number(name), name) if numeric else name))


def class_indices(table: Table, cells: Sequence[str], names: Sequence[str]) -> Int32[np.ndarray, "N"]:
    """Labels as places in `names`.

    Raises:
        InputError: if one is not among them.
    """
    index = {name: place for place, name in enumerate(names)}
    numeric = all(_number(name) is not None for name in names)
    found = [index.get(_name(cell) if numeric else cell) for cell in cells]
    for row, place in enumerate(found):
        if place is None:
            raise InputError(f"{table.where(row)}: label {cells[row]!r} is unknown; the classes are {', '.join(names)}")
    return np.asarray(found, np.int32)


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


def _name(text: str) -> str:
    """One spelling for equal numbers: 1, 01 and 1.0 are one class."""
    number = _number(text)
    if number is None:
        return text
    return str(int(number) if number == int(number) else number)
