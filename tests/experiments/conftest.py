"""A small SST-2 that several tests of experiments share."""

from __future__ import annotations

import pytest


@pytest.fixture
def small_sst2(tmp_path, monkeypatch):
    """24 sentences to train on, the same to measure on, as the data folder."""
    rows = [f"{i % 2}\t{'a good day' if i % 2 else 'the bad film'} number {i}" for i in range(24)]
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    for split, column in (("train", "sentence"), ("dev", "content")):
        text = "\n".join([f"label\t{column}", *rows]) + "\n"
        (tmp_path / "data" / "sst2" / f"{split}.tsv").write_text(text, encoding="utf-8")
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"
