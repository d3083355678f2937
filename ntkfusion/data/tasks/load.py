"""Tasks by name, and from any file with columns of text and labels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ntkfusion.data.tasks.glue import GLUE, fetch_glue, read_glue
from ntkfusion.data.tasks.tables import Table, are_scores, class_indices, class_names, label_cells, read_table, scores
from ntkfusion.data.tasks.task import Examples, Task, hold_out
from ntkfusion.errors import InputError

#: Names that `load_task` knows.
TASKS = tuple(GLUE)

#: The environment variable with the folder of data sets.
DATA_DIR = "NTKFUSION_DATA_DIR"


def load_task(name: str, *, data_dir: str | os.PathLike[str] | None = None, seed: int = 0) -> Task:
    """A task of GLUE, from local files or from the Hugging Face hub.

    Args:
        name: one of `TASKS`.
        data_dir: folder with one folder per task, named like it; without it that of the environment variable
            ``NTKFUSION_DATA_DIR``, and if that has no such task, the hub.
        seed: decides which tenth of train is dev, where the files have none (mrpc).

    Returns:
        The `Task`; test is None where its labels are not public.

    Raises:
        InputError: if there is no such task or folder, a file is missing or broken, or the hub cannot be reached.
    """
    if name not in GLUE:
        raise InputError(f"unknown task {name!r}; there are {', '.join(TASKS)}, and files of your own")
    place = os.environ.get(DATA_DIR) if data_dir is None else data_dir
    if not place:
        return fetch_glue(name)
    given = Path(place).expanduser()
    if not given.is_dir():
        raise InputError(f"there is no data folder {given} ({DATA_DIR if data_dir is None else 'data_dir'})")
    folder = given / name
    if GLUE[name].files and folder.is_dir():
        return read_glue(name, folder, seed=seed)
    if data_dir is None:
        return fetch_glue(name)
    known = ", ".join(task for task in TASKS if GLUE[task].files and (given / task).is_dir()) or "none"
    raise InputError(f"{given} has no folder of {name} that can be read (it has: {known}); without it the hub is asked")


def read_task(
    train: str | os.PathLike[str],
    dev: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    *,
    text: str = "text",
    pair: str | None = None,
    label: str = "label",
    name: str = "mine",
    regression: bool | None = None,
    seed: int = 0,
) -> Task:
    """A task from files of your own: CSV (quoted as usual), TSV (quotation marks are text) or JSONL, by suffix.

    Classes are those of train: numbers by value, else by alphabet; judged by accuracy and Matthews' coefficient. Scores
    are judged by Spearman's and Pearson's.

    Args:
        train: the file to train on.
        dev: the file that chooses; None takes a random tenth of train, the same share of every class.
        test: the file to be looked at once, if there is one.
        text: the column of text.
        pair: the column of what it is compared with, in a task on pairs.
        label: the column of labels.
        name: of the task, for people.
        regression: whether labels are scores; None decides: numbers that are not all whole ones are.
        seed: of the tenth.

    Raises:
        InputError: if a file, column, text or label is missing, empty, broken or unknown; says in which line.
    """
    columns = [column for column in (text, pair, label) if column is not None]
    if len(set(columns)) < len(columns):
        raise InputError(f"text, pair and label should be different columns, got {', '.join(map(repr, columns))}")
    files = {split: path for split, path in [("train", train), ("dev", dev), ("test", test)] if path is not None}
    tables = {split: read_table(Path(path).expanduser()) for split, path in files.items()}
    classes = _classes(tables["train"], label, regression)
    splits = {split: _examples(table, text, pair, label, classes) for split, table in tables.items()}
    notes = [f"{table.path.name} ({len(table.lines)})" for table in tables.values()]
    if dev is None:
        splits["train"], splits["dev"] = hold_out(splits["train"], seed=seed)
        notes[0] += f", of which {len(splits['dev'])} held out as dev with seed {seed}"
    metrics = ("accuracy", "matthews") if classes else ("spearman", "pearson")
    return Task(name, classes, metrics, splits["train"], splits["dev"], splits.get("test"), ", ".join(notes))


def _classes(train: Table, label: str, regression: bool | None) -> tuple[str, ...]:
    """Class names, none if labels are scores."""
    cells = label_cells(train, label)
    if not (are_scores(train, cells) if regression is None else regression):
        return class_names(train, cells)
    if np.ptp(scores(train, cells)) == 0:
        raise InputError(f"{train.path}: all scores are {cells[0]}; there is nothing to learn")
    return ()


def _examples(table: Table, text: str, pair: str | None, label: str, names: tuple[str, ...]) -> Examples:
    """The examples of a file; scores if there are no class names."""
    first, second = table.texts(text), None if pair is None else table.texts(pair)
    cells = label_cells(table, label)
    return Examples(first, second, class_indices(table, cells, names) if names else scores(table, cells))
