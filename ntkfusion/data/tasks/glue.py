"""The tasks of GLUE, from the files that their authors and others hand round, and from the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ntkfusion.data.tasks.tables import class_indices, label_cells, read_table, scores
from ntkfusion.data.tasks.task import Examples, Task, hold_out
from ntkfusion.errors import InputError

HUB = "nyu-mll/glue"


@dataclasses.dataclass(frozen=True)
class SplitFile:
    """A tab-separated file without quoting.

    Attributes:
        path: inside the folder of the task.
        label: the column of labels.
        first: the column of sentences.
        second: that of what they are compared with.
        names: of the columns, if there is no header.
    """

    path: str
    label: str
    first: str
    second: str | None = None
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """What is particular about a task.

    Attributes:
        labels: class names, as on the hub.
        cells: labels as they stand in the files, in the same order.
        metrics: GLUE's; the first decides early stopping.
        columns: of text, on the hub.
        files: by split, one or several; without dev, a tenth of train takes its place; none if there is no reader.
        dev: name of the dev split on the hub.
    """

    labels: tuple[str, ...]
    cells: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: tuple[str, ...]
    files: Mapping[str, tuple[SplitFile, ...]]
    dev: str = "validation"


def _msr(split: str) -> tuple[SplitFile, ...]:
    return (SplitFile(f"msr_paraphrase_{split}.txt", "Quality", "#1 String", "#2 String"),)


def _cola(*parts: str) -> tuple[SplitFile, ...]:
    names = ("source", "label", "mark", "sentence")
    return tuple(SplitFile(f"raw/{part}.tsv", "label", "sentence", names=names) for part in parts)


def _sts(split: str) -> tuple[SplitFile, ...]:
    names = ("genre", "file", "year", "id", "score", "first", "second")
    return (SplitFile(f"sts-{split}.csv", "score", "first", "second", names),)


def _pairs(split: str, first: str, second: str) -> tuple[SplitFile, ...]:
    return (SplitFile(f"{split}.tsv", "label", first, second),)


_DIGITS = ("0", "1")

_ENTAILED = ("entailment", "not_entailment")

_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, GlueTask] = {
    "sst2": GlueTask(
        ("negative", "positive"),
        _DIGITS,
        ("accuracy",),
        ("sentence",),
        {
            "train": (SplitFile("train.tsv", "label", "sentence"),),
            "dev": (SplitFile("dev.tsv", "label", "content"),),
            "test": (SplitFile("test.tsv", "label", "content"),),
        },
    ),
    "mrpc": GlueTask(
        ("not_equivalent", "equivalent"),
        _DIGITS,
        ("accuracy", "f1"),
        _PAIR,
        {"train": _msr("train"), "test": _msr("test")},
    ),
    "cola": GlueTask(
        ("unacceptable", "acceptable"),
        _DIGITS,
        ("matthews",),
        ("sentence",),
        {"train": _cola("in_domain_train"), "dev": _cola("in_domain_dev", "out_of_domain_dev")},
    ),
    "rte": GlueTask(
        _ENTAILED,
        _ENTAILED,
        ("accuracy",),
        _PAIR,
        {split: _pairs(split, *_PAIR) for split in ("train", "dev")},
    ),
    "stsb": GlueTask(
        (), (), ("spearman", "pearson"), _PAIR, {split: _sts(split) for split in ("train", "dev", "test")}
    ),
    "qnli": GlueTask(
        _ENTAILED,
        _ENTAILED,
        ("accuracy",),
        ("question", "sentence"),
        {split: _pairs(split, "question", "sentence") for split in ("train", "dev")},
    ),
    "mnli": GlueTask(
        ("entailment", "neutral", "contradiction"),
        (),
        ("accuracy",),
        ("premise", "hypothesis"),
        {},
        dev="validation_matched",
    ),
}


def read_glue(name: str, folder: Path, *, seed: int) -> Task:
    """A task from the files in its folder; the test split may be missing.

    Raises:
        InputError: if a file is missing or broken.
    """
    glue = GLUE[name]
    files = dict(glue.files)
    absent = {split: [file.path for file in files[split] if not (folder / file.path).is_file()] for split in files}
    if absent.pop("test", []):
        del files["test"]
    missing = [path for paths in absent.values() for path in paths]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; add what is missing, or name no data folder (NTKFUSION_DATA_DIR "
            f"unset) to take {name} from the hub"
        )
    splits = {split: _join([_read(folder, file, glue) for file in files[split]]) for split in files}
    notes = [f"{' + '.join(file.path for file in files[split])} ({len(splits[split])})" for split in files]
    train, dev = splits["train"], splits.get("dev")
    if dev is None:
        train, dev = hold_out(train, seed=seed)
        notes[0] += f", of which {len(dev)} held out as dev with seed {seed}"
    return Task(name, glue.labels, glue.metrics, train, dev, splits.get("test"), f"{name}: {', '.join(notes)}")


def _read(folder: Path, file: SplitFile, glue: GlueTask) -> Examples:
    table = read_table(folder / file.path, names=file.names, style="tsv")
    cells = label_cells(table, file.label)
    labels = class_indices(table, cells, glue.cells) if glue.cells else scores(table, cells)
    return Examples(table.texts(file.first), None if file.second is None else table.texts(file.second), labels)


def _join(parts: list[Examples]) -> Examples:
    first = tuple(text for part in parts for text in part.first)
    second = tuple(text for part in parts for text in part.second or ())
    return Examples(first, second or None, np.concatenate([part.labels for part in parts]))


def fetch_glue(name: str) -> Task:
    """A task from the Hugging Face hub, or from its cache on this machine.

    GLUE keeps the labels of most test splits to itself; such a split counts as none.

    Raises:
        InputError: if the hub does not deliver it, or something else than GLUE.
    """
    import datasets

    glue = GLUE[name]
    try:
        splits: Any = datasets.load_dataset(HUB, name)
    # its errors derive from OSError, ValueError or neither, depending on what went wrong and on its version
    except Exception as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        way = ", or give the folder with the data (--data-dir or NTKFUSION_DATA_DIR)" if glue.files else ""
        raise InputError(f"{name}: the hub did not deliver {HUB} ({problem}); go online{way}") from error
    train, dev = _from_hub(splits, "train", glue), _from_hub(splits, glue.dev, glue)
    if train is None or dev is None:
        raise InputError(f"{HUB}, {name}: train or {glue.dev} has examples without a label")
    test = _from_hub(splits, "test", glue) if "test" in splits else None
    notes = [f"{split} ({len(part)})" for split, part in [("train", train), (glue.dev, dev), ("test", test)] if part]
    return Task(name, glue.labels, glue.metrics, train, dev, test, f"{HUB}, {name}: {', '.join(notes)}")


def _from_hub(splits: Any, split: str, glue: GlueTask) -> Examples | None:
    """A split, None if labels are hidden (they are -1 then)."""
    data = splits[split]
    named = getattr(data.features["label"], "names", [])
    if tuple(named) != glue.labels:
        raise InputError(f"{HUB}: the classes should be {', '.join(glue.labels)}, they are {', '.join(named)}")
    labels = np.asarray(data["label"], np.int32 if glue.labels else np.float32)
    if not len(labels) or labels.min() < 0:
        return None
    texts = [tuple(data[column]) for column in glue.columns]
    return Examples(texts[0], texts[1] if len(texts) > 1 else None, labels)
