"""Tasks from files of one's own, and errors before anything long."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ntkfusion.data.tasks.load import TASKS, load_task, read_task
from ntkfusion.errors import InputError


def write(tmp_path, name, rows):
    """A file of (text, label) rows in the format of its suffix."""
    path = tmp_path / name
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": text, "label": label, "pair": f"{text}?"}) for text, label in rows]
    else:
        comma = "," if path.suffix == ".csv" else "\t"
        lines = [comma.join(("text", "label", "pair")), *(comma.join((a, str(b), f"{a}?")) for a, b in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(train, dev=None, test=None, **options):
    return read_task(train, dev, test, **{"text": "text", "pair": None, "label": "label", "name": "mine"} | options)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_all_formats_give_the_same_task(tmp_path, suffix):
    rows = [("one", 10), ("two", 9), ("three", 10), ("four", 2)]
    train, dev = write(tmp_path, f"train.{suffix}", rows), write(tmp_path, f"dev.{suffix}", rows[1:3])
    task = read(train, dev, train, pair="pair")
    assert task.labels == ("2", "9", "10")  # by value, not by alphabet
    assert task.train.first == ("one", "two", "three", "four")
    assert task.train.second == ("one?", "two?", "three?", "four?")
    assert task.train.labels.tolist() == [2, 1, 2, 0]
    assert task.train.labels.dtype == np.int32
    assert task.dev.labels.tolist() == [1, 2]
    assert task.test is not None
    assert task.metrics == ("accuracy", "matthews")
    assert (task.name, task.source) == ("mine", f"train.{suffix} (4), dev.{suffix} (2), train.{suffix} (4)")


@pytest.mark.parametrize(
    ("labels", "options", "expected", "first"),
    [
        (["pos", "neg", " pos "], {}, ("neg", "pos"), 1),
        ([True, False, True], {}, ("false", "true"), 1),
        (["01", "02", "01"], {}, ("01", "02"), 0),
        ([1.0, 0.0], {}, ("0.0", "1.0"), 1),
        ([2**60, 2**60 + 1, 2**60], {}, (str(2**60), str(2**60 + 1)), 0),
        ([0.5, 2, 10], {}, (), 0.5),
        ([1, 2, 10], {"regression": True}, (), 1.0),
        ([0.5, 10.25, 9], {"regression": False}, ("0.5", "9", "10.25"), 0),
        (["1", "nan", "x"], {}, ("1", "nan", "x"), 0),
        (["7", "nan"], {"regression": False}, ("7", "nan"), 0),
        ([10**400, -1], {}, ("-1", str(10**400)), 1),
    ],
)
def test_labels_are_classes_or_scores(tmp_path, labels, options, expected, first):
    path = write(tmp_path, "a.jsonl", [("text", label) for label in labels])
    task = read(path, path, **options)
    assert task.labels == expected
    assert task.train.labels[0] == first
    assert task.train.labels.dtype == (np.int32 if expected else np.float32)
    assert task.is_regression == (not expected)


def test_dev_is_held_out_of_train_where_there_is_none(tmp_path):
    path = write(tmp_path, "a.csv", [(f"text {row}", row % 2) for row in range(40)])
    task = read(path, seed=3)
    assert np.bincount(task.dev.labels).tolist() == [2, 2]
    assert {*task.train.first, *task.dev.first} == {f"text {row}" for row in range(40)}
    assert len(task.train) == 36
    assert task.source == "a.csv (40), of which 4 held out as dev with seed 3"
    assert read(path, seed=3).dev.first == task.dev.first != read(path, seed=4).dev.first


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a", "a"], {}, r"a.jsonl: all labels are 'a'; at least two classes"),
        ([0.5, 0.5], {}, r"all scores are 0.5"),
        ([1, None], {}, r"a.jsonl, line 2: 'label' is missing"),
        ([1, " "], {}, r"line 2: 'label' is missing"),
        ([1, [2]], {}, r"line 2: a label is text or a number, 'label' is \[2\]"),
        ([0.5, 1.5, float("nan")], {}, r"line 3: label 'NaN' is not a finite number, all others are"),
        ([0.5, 1.5, 3, "x", "nan"], {}, r"line 4: label 'x' is not a finite number, most others are"),
        ([0, 1, "NA"], {}, r"line 3: label 'NA' is not a finite number"),
        ([float("nan"), 1.5], {}, r"line 1: label 'NaN' is not a finite number, all others are; correct it, remove"),
        (["nan", "7"], {}, r"line 1: label 'nan' is not a finite number, all others are"),
        (["1e999", "NULL", 1], {}, r"line 1: label '1e999' is not a finite number, all others are"),
        ([0, 1, "01"], {}, r"line 3: label '01' is the number that line 2 spells '1'; spell both alike"),
        ([1.0, 0, 1], {}, r"line 3: label '1' is the number that line 1 spells '1.0'"),
        ([0.5, "x"], {"regression": True}, r"line 2: score 'x' is not a finite number"),
        ([0.5, float("nan")], {"regression": True}, r"line 2: score 'NaN' is not a finite number"),
        ([10**40, 1], {"regression": True}, r"line 1: score '10+' is not a finite number of float32"),
        (["1_0", "1"], {"regression": True}, r"line 1: score '1_0' is not a finite number"),
        ([0, 1], {"label": "text"}, r"should be different columns"),
        ([0, 1], {"label": "target"}, r"no column 'target'; it has 'text', 'label', 'pair'"),
        ([0, 1], {"seed": -1}, r"seed must be at least 0"),
    ],
)
def test_unusable_labels_are_refused_with_the_line(tmp_path, labels, options, message):
    path = write(tmp_path, "a.jsonl", [("text", label) for label in labels])
    with pytest.raises(InputError, match=message):
        read(path, **options)


def test_labels_that_train_does_not_have_are_refused(tmp_path):
    train = write(tmp_path, "train.csv", [("x", "no"), ("y", "yes")])
    other = write(tmp_path, "other.tsv", [("x", "no"), ("y", "maybe")])
    for splits in [(train, other), (train, train, other)]:
        with pytest.raises(InputError, match=r"other.tsv, line 3: label 'maybe' is unknown; the classes are no, yes"):
            read(*splits)


def test_unknown_tasks_and_folders_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"unknown task 'sst'; there are sst2, .*mnli"):
        load_task("sst")
    with pytest.raises(InputError, match=r"no data folder .*nowhere \(data_dir\)"):
        load_task("rte", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path / "gone"))
    with pytest.raises(InputError, match=r"no data folder .*gone \(NTKFUSION_DATA_DIR\)"):
        load_task("rte")
    (tmp_path / "cola").mkdir()
    with pytest.raises(InputError, match=r"has no folder of rte that can be read \(it has: cola\)"):
        load_task("rte", data_dir=tmp_path)


@pytest.mark.parametrize("name", [task for task in TASKS if task != "mnli"])
def test_missing_splits_are_named(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=rf"{name} lacks .*train.*to take {name} from the hub"):
        load_task(name, data_dir=tmp_path)


def test_a_number_that_another_split_spells_otherwise_is_not_taken_for_it(tmp_path):
    train = write(tmp_path, "train.csv", [("x", "1"), ("y", "2")])
    other = write(tmp_path, "other.csv", [("x", "01"), ("y", "2")])
    with pytest.raises(InputError, match=r"line 2: label '01' is unknown; the classes are 1, 2; '1' is the same"):
        read(train, other)
