"""The experiment on distances of kernels: numbers by hand, stops and starts, and text that does not leak."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import ntkfusion as nf
from ntkfusion.compression.registry import METHODS
from ntkfusion.data.text import sample_sentences, split_sentences
from ntkfusion.errors import InputError, OutputExistsError

FOLDER = Path(__file__).parents[2] / "experiments"
TINY = {"layers": (3,), "seeds": (0,), "widths": (0.25,), "tokens": 32, "calibration_tokens": 48}
TINY |= {"network_sentences": 3, "network_length": 6, "counts": (16, 48)}


@pytest.fixture
def script(monkeypatch):
    """The script on the packaged sentences; its parts are beside it."""
    monkeypatch.delenv("NTKFUSION_DATA_DIR", raising=False)
    monkeypatch.setitem(os.environ, "OPENBLAS_NUM_THREADS", os.environ.get("OPENBLAS_NUM_THREADS", "1"))
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / "kernel_distance.py"))


def run(script, out, **changes):
    script["main"](script["Options"](**TINY | {"sections": ("blocks",), "out": out} | changes))
    return json.loads((out / "results.json").read_text())


def relative(new, old):
    return np.linalg.norm(np.asarray(new) - np.asarray(old)) / np.linalg.norm(np.asarray(old))


def test_blocks_by_hand_and_again_without_work(script, tmp_path, minilm, capsys):
    out, methods = tmp_path / "out", ("structured-pruning", "random-neurons", "no-such-method")
    results = run(script, out, methods=methods)
    _, held_out = split_sentences(sample_sentences(), seed=0)
    small, _ = nf.compress(minilm, nf.RandomNeurons(0.25), layers=[3], seed=0)
    found = {entry["method"]: entry for entry in results["sections"]["blocks"]["methods"]}
    assert found.keys() == set(methods[:2])
    for prefix, special in (("", True), ("words_", False)):
        x = nf.collect_block_inputs(minilm, held_out, max_tokens=32, seed=0, special_tokens=special).inputs[3]
        old, new = minilm.mlp_blocks()[3], small.mlp_blocks()[3]
        by_hand = {"output_error": relative(new(x), old(x))}
        for kind in ("sgd", "sign"):
            by_hand[f"{kind}_kernel_error"] = relative(*(nf.block_kernel(b, x, kind=kind) for b in (new, old)))
        for error, value in by_hand.items():
            assert found["random-neurons"][f"{prefix}{error}"] == pytest.approx([value], rel=1e-4)
    assert any("no-such-method is left out" in note for note in results["notes"])
    assert "packaged sample, split in halves" in capsys.readouterr().out
    assert (out / "kernel_distance.png").read_bytes().startswith(b"\x89PNG")

    file = out / "blocks" / "seed0_width0.25_random-neurons.json"
    stored = json.loads(file.read_text())
    stored["result"]["rows"][0]["output_error"] = 7.0
    file.write_text(json.dumps(stored))
    again = run(script, out, methods=("random-neurons",))["sections"]["blocks"]["methods"]
    assert again[0]["output_error"] == [7.0]  # read, not computed

    with pytest.raises(OutputExistsError, match="other settings; pass --overwrite"):
        run(script, out, methods=("random-neurons",), calibration_tokens=40)
    other = run(script, out, methods=("random-neurons",), calibration_tokens=40, overwrite=True)
    assert other["sections"]["blocks"]["methods"][0]["output_error"] == found["random-neurons"]["output_error"]


@pytest.mark.slow
def test_networks_and_overfitting(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "svd-whitened-sign", METHODS["svd-whitened"])
    some = {"network_methods": ("svd", "structured-pruning", "random-neurons"), "overfitting": ("svd-whitened",)}
    results = run(script, tmp_path / "out", sections=("network", "tokens"), **some)
    network = results["sections"]["network"]["methods"]
    assert network.keys() == {"svd", "structured-pruning", "random-neurons"}
    for errors in network.values():
        assert all(0 < value < np.inf for value in errors.values())
        assert errors["sgd_mlp"] != errors["sgd_all"]
    curve = results["sections"]["tokens"]["families"]["svd-whitened"]
    assert curve.keys() == {"16", "48"}
    # as many parameters as tokens: no error where it was calibrated, a large one elsewhere
    assert curve["16"]["calibration"]["output_error"] < 0.1 * curve["16"]["held-out"]["output_error"]
    assert curve["48"]["held-out"]["output_error"] < curve["16"]["held-out"]["output_error"]
    assert (tmp_path / "out" / "calibration_tokens.png").exists()
    assert "Does a close block make a close network?" in capsys.readouterr().out


@pytest.mark.slow
def test_an_unchanged_network_has_no_error(script, tmp_path):
    """Width 1 of random neurons is all of them, in another order."""
    some = {"network_methods": ("random-neurons",), "network_width": 1.0}
    network = run(script, tmp_path / "out", sections=("network",), **some)["sections"]["network"]["methods"]
    assert max(network["random-neurons"].values()) < 1e-4


def test_sst2_is_read_as_it_is_and_does_not_leak(script, tmp_path, minilm, monkeypatch):
    from kernel_distance_parts.text import Lab, load_text

    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text('label\tsentence\n0\tA "QUOTE \n1\tsame words\n1\tquite another\n')
    (tmp_path / "sst2" / "dev.tsv").write_text("label\tcontent\n1\tSame  WORDS\n0\tunseen by all\n")
    monkeypatch.setenv("NTKFUSION_DATA_DIR", str(tmp_path))
    text = load_text()
    assert text.train == ('A "QUOTE', "same words", "quite another")
    lab = Lab(minilm, text, 0, (3,), 8, 100)
    assert set(lab.calibration.tokens) == {"[CLS]", "[SEP]", "a", '"', "quote", "quite", "another"}
    (tmp_path / "sst2" / "dev.tsv").write_text("label\tcontent\nSame words\t1\n")
    with pytest.raises(InputError, match=r"a label \(0 or 1\), a tab and a sentence"):
        load_text()


def test_folders_of_others_are_spared(script, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="holds other files"):
        run(script, tmp_path, methods=("random-neurons",))
    with pytest.raises(InputError, match="--seeds needs at least one value, each once"):
        script["Options"](seeds=(1, 1))


def test_ranks(script):
    from kernel_distance_parts.network import spearman

    assert spearman([(1, 1), (2, 4), (3, 9), (4, 16)]) == pytest.approx(1)
    assert spearman([(1, 3), (2, 2), (3, 1)]) == pytest.approx(-1)
    # 1 − 6 Σd² / (n (n² − 1)) with d = 0, 1, −1, 0
    assert spearman([(1, 10), (2, 30), (3, 20), (4, 40)]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert np.isnan(spearman([(1, 1), (2, 2)]))


def test_labels_keep_clear_of_each_other(script):
    from kernel_distance_parts.labels import place_labels

    axis = Figure(figsize=(6, 6)).subplots()
    labels = {f"method {i}": (0.5 + 0.01 * i, 0.5) for i in range(8)}
    axis.set(xlim=(0, 1), ylim=(0, 1))
    place_labels(axis, labels, list(labels.values()), lambda name: "black", lambda name: False)
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert len(boxes) == 8
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
