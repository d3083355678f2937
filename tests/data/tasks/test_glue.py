"""GLUE's tasks: real files against other readers of them, and the hub's format from a folder."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest

from ntkfusion.data.tasks import glue
from ntkfusion.data.tasks.load import load_task
from ntkfusion.errors import InputError

#: Files of train, dev and test; header; columns of label, first and second sentence; examples.
FILES = {
    "sst2": (["train.tsv", "dev.tsv", "test.tsv"], True, (0, 1, None), [67_349, 872, 1_821]),
    "cola": (
        ["raw/in_domain_train.tsv", "raw/in_domain_dev.tsv raw/out_of_domain_dev.tsv"],
        False,
        (1, 3, None),
        [8_551, 527 + 516],
    ),
    "rte": (["train.tsv", "dev.tsv"], True, (3, 1, 2), [2_490, 277]),
    "stsb": (["sts-train.csv", "sts-dev.csv", "sts-test.csv"], False, (4, 5, 6), [5_749, 1_500, 1_379]),
}
_MRPC = (True, (0, 3, 4))

#: What the files say for class 0 and class 1, and the hub's names of these classes.
CELLS = {
    "sst2": (("0", "1"), ("negative", "positive")),
    "mrpc": (("0", "1"), ("not_equivalent", "equivalent")),
    "cola": (("0", "1"), ("unacceptable", "acceptable")),
    "rte": (("entailment", "not_entailment"), ("entailment", "not_entailment")),
    "stsb": ((), ()),
}


def read_by_csv(folder, files, header, places):
    """(label, first, second) of every row, by position, as Python's csv module reads them."""
    rows = []
    for file in files.split():
        with (folder / file).open(encoding="utf-8-sig", newline="") as lines:
            rows += list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[int(header) :]
    return [tuple(None if place is None else row[place] for place in places) for row in rows]


def rows_of(task, part):
    """The same rows of a task."""
    second = part.second or (None,) * len(part)
    cells, labels = CELLS[task.name]
    assert task.labels == labels
    if task.is_regression:
        return [(str(x), a, b) for x, a, b in zip(part.labels.tolist(), part.first, second, strict=True)]
    return [(cells[x], a, b) for x, a, b in zip(part.labels.tolist(), part.first, second, strict=True)]


@pytest.mark.parametrize("name", FILES)
def test_every_row_of_the_real_files_comes(data_dir, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "datasets", None)  # local files need no cache and no hub
    files, header, places, counts = FILES[name]
    task = load_task(name, data_dir=data_dir)
    parts = [part for part in (task.train, task.dev, task.test) if part is not None]
    assert [len(part) for part in parts] == counts
    for part, names in zip(parts, files, strict=True):
        expected = read_by_csv(data_dir / name, names, header, places)
        if task.is_regression:
            expected = [(str(float(np.float32(score))), a, b) for score, a, b in expected]
        assert rows_of(task, part) == expected


def test_mrpc_holds_a_tenth_of_train_out(data_dir):
    task = load_task("mrpc", data_dir=data_dir, seed=1)
    assert [len(task.train), len(task.dev)] == [3_669, 407]
    both = rows_of(task, task.train) + rows_of(task, task.dev)
    assert sorted(both) == sorted(read_by_csv(data_dir / "mrpc", "msr_paraphrase_train.txt", *_MRPC))
    assert abs(task.dev.labels.mean() - task.train.labels.mean()) < 0.002
    assert task.test is not None
    assert rows_of(task, task.test) == read_by_csv(data_dir / "mrpc", "msr_paraphrase_test.txt", *_MRPC)


def test_datasets_reads_the_same_scores_and_sentences(data_dir, tmp_path):
    import datasets

    names = [f"column {place}" for place in range(9)]
    rows = datasets.Dataset.from_csv(
        str(data_dir / "stsb/sts-dev.csv"),
        cache_dir=str(tmp_path),
        keep_in_memory=True,
        delimiter="\t",
        quoting=csv.QUOTE_NONE,
        header=None,
        names=names,
        features=datasets.Features({name: datasets.Value("string") for name in names}),
        na_filter=False,
    )
    part = load_task("stsb", data_dir=data_dir).dev
    assert part.first == tuple(rows[names[5]])
    assert part.second == tuple(rows[names[6]])
    np.testing.assert_array_equal(part.labels, np.asarray(rows[names[4]], np.float32))


def test_the_test_split_may_be_missing(data_dir, tmp_path):
    (tmp_path / "stsb").mkdir()
    for split in ("train", "dev"):
        (tmp_path / f"stsb/sts-{split}.csv").symlink_to(data_dir / f"stsb/sts-{split}.csv")
    assert load_task("stsb", data_dir=str(tmp_path)).test is None


def test_a_dev_split_alone_is_not_a_task(data_dir):
    with pytest.raises(InputError, match=r"qnli lacks train.tsv"):
        load_task("qnli", data_dir=data_dir)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the place of GLUE on the hub, in the same format, and a cache that is thrown away."""
    import datasets

    monkeypatch.delenv("NTKFUSION_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(glue, "HUB", str(tmp_path / "glue"))

    def publish(name, splits, classes, columns):
        kind = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("float32")
        features = datasets.Features({column: datasets.Value("string") for column in columns} | {"label": kind})
        files = []
        for split, labels in splits.items():
            table = {column: [f"{split} {column} {row}" for row in range(len(labels))] for column in columns}
            data = datasets.Dataset.from_dict(table | {"label": labels}, features=features)
            data.to_parquet(str(tmp_path / "glue" / name / f"{split}.parquet"))
            files.append(f"  - split: {split}\n    path: {name}/{split}.parquet\n")
        header = f"---\nconfigs:\n- config_name: {name}\n  data_files:\n{''.join(files)}---\n"
        (tmp_path / "glue" / "README.md").write_text(header)

    (tmp_path / "glue").mkdir()
    return publish


def test_the_hub_hides_test_labels(hub):
    splits = {"train": [0, 2, 1], "validation_matched": [2, 0], "validation_mismatched": [1], "test": [-1, -1]}
    hub("mnli", splits, ["entailment", "neutral", "contradiction"], ["premise", "hypothesis"])
    task = load_task("mnli")
    assert task.train.labels.tolist() == [0, 2, 1]
    assert task.train.second == tuple(f"train hypothesis {row}" for row in range(3))
    assert task.dev.first == ("validation_matched premise 0", "validation_matched premise 1")
    assert task.test is None
    assert task.num_labels == 3
    assert task.source.endswith("mnli: train (3), validation_matched (2)")


def test_the_hub_gives_scores_and_a_test_split_with_labels(hub):
    hub("stsb", {"train": [0.5, 3.25], "validation": [5.0], "test": [1.0]}, [], ["sentence1", "sentence2"])
    task = load_task("stsb")
    assert task.is_regression
    assert task.train.labels.tolist() == [0.5, 3.25]
    assert task.train.labels.dtype == np.float32
    assert task.test is not None


def test_other_classes_on_the_hub_are_refused(hub):
    hub("sst2", {"train": [0], "validation": [1]}, ["bad", "good"], ["sentence"])
    with pytest.raises(InputError, match=r"classes should be negative, positive, they are bad, good"):
        load_task("sst2")


def test_the_environment_variable_leaves_other_tasks_to_the_hub(hub, tmp_path, monkeypatch):
    hub("sst2", {"train": [0, 1], "validation": [1]}, ["negative", "positive"], ["sentence"])
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path))
    assert load_task("sst2").test is None


def test_a_hub_that_cannot_be_reached_is_said(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    monkeypatch.delenv("NTKFUSION_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hub did not deliver nyu-mll/glue .*Couldn't reach.*; go online$"):
        load_task("mnli")
