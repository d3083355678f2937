"""The experiment on bounds: its files, and that it stops and goes on."""

from __future__ import annotations

import json

import pytest

from experiments.bound_tightness.blocks import bert_tiny_cases
from experiments.bound_tightness.run import TightnessOptions, main
from ntkfusion.errors import InputError


def test_without_the_file_of_bert_tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"layers.npz does not exist; NTKFUSION_DATA_DIR must name a folder"):
        bert_tiny_cases(2, 2, 0)


@pytest.mark.wide
def test_a_layer_is_measured_once(tmp_path, data_dir, monkeypatch, capsys):
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(data_dir))
    options = TightnessOptions(
        out=tmp_path, widths=(0.25,), layers=(0,), shares=(0.0, 0.25), tokens=6, calibration=32, restarts=1,
        bert_tiny=True,
    )  # fmt: skip
    main(options)
    printed = capsys.readouterr().out
    assert "BERT-tiny (SST-2), Gaussian inputs through LayerNorm. 0 violations among" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "scatter.png", "curve.png", "parts"}
    stored = json.loads((tmp_path / "parts" / "bert_tiny_0_0.25.json").read_text())
    assert stored["row"]["compared"] > 0
    monkeypatch.setattr("experiments.bound_tightness.run.measure", None)
    main(options)
    assert "0 violations among" in capsys.readouterr().out
