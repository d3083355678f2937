"""The experiment on distances of kernels: numbers by hand, stops and starts."""

from __future__ import annotations

import json

import numpy as np
import pytest

import ntkfusion as nf
from experiments.kernel_distance.options import DistanceOptions
from experiments.kernel_distance.run import main
from ntkfusion.compression.registry import METHODS
from ntkfusion.data.text import sample_sentences, split_sentences
from ntkfusion.errors import InputError, OutputExistsError

TINY = {"layers": (3,), "seeds": (0,), "widths": (0.25,), "tokens": 32, "calibration_tokens": 48}
TINY |= {"network_sentences": 3, "network_length": 6, "counts": (16, 48)}


@pytest.fixture(autouse=True)
def _packaged_sentences(monkeypatch):
    monkeypatch.delenv("NTKFUSION_DATA_DIR", raising=False)


def run(out, **changes):
    main(DistanceOptions(**TINY | {"sections": ("blocks",), "out": out} | changes))
    return json.loads((out / "results.json").read_text())


def relative(new, old):
    return np.linalg.norm(np.asarray(new) - np.asarray(old)) / np.linalg.norm(np.asarray(old))


@pytest.mark.wide
def test_blocks_by_hand_and_again_without_work(tmp_path, minilm, capsys):
    out, methods = tmp_path / "out", ("structured-pruning", "random-neurons", "no-such-method")
    results = run(out, methods=methods)
    _, held_out = split_sentences(sample_sentences(), seed=0)
    small, _ = nf.compress(minilm, nf.compression.RandomNeurons(0.25), layers=[3], seed=0)
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
    again = run(out, methods=("random-neurons",))["sections"]["blocks"]["methods"]
    assert again[0]["output_error"] == [7.0]  # read, not computed

    with pytest.raises(OutputExistsError, match="other settings; pass --overwrite"):
        run(out, methods=("random-neurons",), calibration_tokens=40)
    other = run(out, methods=("random-neurons",), calibration_tokens=40, overwrite=True)
    assert other["sections"]["blocks"]["methods"][0]["output_error"] == found["random-neurons"]["output_error"]


@pytest.mark.slow
def test_networks_and_overfitting(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "svd-whitened-sign", METHODS["svd-whitened"])
    some = {"network_methods": ("svd", "structured-pruning", "random-neurons"), "overfitting": ("svd-whitened",)}
    results = run(tmp_path / "out", sections=("network", "tokens"), **some)
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
def test_an_unchanged_network_has_no_error(tmp_path):
    """Width 1 of random neurons is all of them, in another order."""
    some = {"network_methods": ("random-neurons",), "network_width": 1.0}
    network = run(tmp_path / "out", sections=("network",), **some)["sections"]["network"]["methods"]
    assert max(network["random-neurons"].values()) < 1e-4


def test_folders_of_others_are_spared(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="holds other files"):
        run(tmp_path, methods=("random-neurons",))
    with pytest.raises(InputError, match="--seeds needs at least one value, each once"):
        DistanceOptions(seeds=(1, 1))
