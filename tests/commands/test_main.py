"""The command line as a stranger uses it: help at once, one clear sentence for nonsense, no half-written results."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ntkfusion.checkpoints.sources import find_folder
from ntkfusion.commands.main import Interrupts, main

FAST = ["--width", "0.25", "--tokens", "16", "--calibration-tokens", "48", "--restarts", "1", "--layers", "0", "5"]
#: Methods that take no time.
QUICK = ("mlp-fusion", "mlp-fusion-v4", "svd", "sketch", "structured-pruning", "activation-pruning", "random-neurons")


def run(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_methods_explains_each(capsys):
    from ntkfusion.compression.registry import IMPROVEMENTS, METHODS

    code, out, _ = run(capsys, "compare", "--list-methods")
    assert code == 0
    assert all(f"+{name}" in out for name in IMPROVEMENTS)
    assert all(f"{name}: {entry.description}" in out for name, entry in METHODS.items())


def test_inspect_adds_up(capsys):
    code, out, err = run(capsys, "inspect", "minilm")
    assert code == 0
    assert "22,713,216 parameters" in out
    assert out.count("1,181,568") == 6
    assert "left aside: embeddings.position_ids" in out
    # 512 × 512 numbers, and 32 × 32 × 2 × 2
    assert re.search(r"block .* 512 tokens, traced .* [0-9.]+ MiB .* 1.0 MiB", out)
    assert re.search(r"network .* 32 sentences of 64 tokens, C=2 .* [0-9.]+ [MG]iB .* 16.0 KiB .* 32", out)
    assert not err


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A small comparison on the real model."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    main(["compare", "minilm", "--methods", *QUICK, *FAST, "--out", str(folder)])
    return folder


def numbers(folder):
    """All measured numbers of a report, without times."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_compare_writes_a_whole_report(report):
    names = {file.name for file in report.iterdir()} - {".ntkfusion"}
    pictures = {"error_by_layer.png", "error_by_width.png", "kernels_sgd.png", "kernels_sign.png"}
    assert names == {"results.json", "table.md", "index.html", *pictures}
    rows = numbers(report)
    assert [(row["method"], row["layer"]) for row in rows] == [(name, layer) for name in QUICK for layer in (0, 5)]
    for row in rows:
        for error in ("output_error", "sgd_kernel_error", "sign_kernel_error"):
            assert np.isfinite(row[error])
            assert row[error] > 0
        assert 0.24 < row["parameters"] / row["original_parameters"] <= 0.251
    results = json.loads((report / "results.json").read_text())
    assert results["settings"]["layers"] == [0, 5]
    assert (results["inputs"]["held_out_tokens"], results["inputs"]["calibration_tokens"]) == (16, 48)
    assert "48 calibration tokens · 16 held-out tokens" in (report / "table.md").read_text()
    options = f"--methods {' '.join(QUICK)} --width 0.25 --layers 0 5 --tokens 16 --calibration-tokens 48 --restarts 1"
    assert results["command"] == f"ntkfusion compare minilm {options} --out {report}"
    assert not [file for file in report.parent.iterdir() if file != report]


@pytest.mark.wide
def test_same_seed_same_numbers_another_seed_others(report, tmp_path):
    fast = ["--methods", "mlp-fusion", "svd", "sketch", *FAST]
    chosen = [row for row in numbers(report) if row["method"] in ("mlp-fusion", "sketch", "svd")]
    main(["compare", "minilm", *fast, "--out", str(tmp_path / "same")])
    assert numbers(tmp_path / "same") == chosen
    main(["compare", "minilm", *fast, "--out", str(tmp_path / "other"), "--seed", "1"])
    for one, other in zip(chosen, numbers(tmp_path / "other"), strict=True):
        assert one["output_error"] != other["output_error"]
        assert one["parameters"] == other["parameters"]


@pytest.mark.wide
def test_existing_results_are_kept_unless_asked(report, capsys, monkeypatch):
    before = (report / "results.json").read_bytes()
    code, _, err = run(capsys, "compare", "minilm", *FAST, "--out", report)
    assert code == 2
    assert err == f"ntkfusion: output folder {report} exists; pass --overwrite to replace it, or another --out\n"
    assert (report / "results.json").read_bytes() == before
    code, _, _ = run(capsys, "compare", "minilm", *FAST, "--methods", "svd", "--out", report, "--overwrite")
    assert code == 0
    assert len(numbers(report)) == 2


def test_overwrite_spares_folders_of_others(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    code, _, err = run(capsys, "compare", "minilm", *FAST, "--out", tmp_path, "--overwrite")
    assert code == 2
    assert "holds other files than results of ntkfusion" in err
    assert (tmp_path / "thesis.tex").exists()


def checkpoint(folder: Path, damage) -> Path:
    """A copy of the demo model with a damaged weight file."""
    source = find_folder("minilm")
    folder.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / file).write_bytes((source / file).read_bytes())
    damage(source / "model.safetensors", folder / "model.safetensors")
    return folder


def truncated(source, target):
    target.write_bytes(source.read_bytes()[:1_000_000])


def with_nan(source, target):
    tensors = load_file(source)
    tensors["encoder.layer.2.intermediate.dense.weight"][3, 4] = np.nan
    save_file(tensors, target)


def nothing(source, target):
    pass


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "model.safetensors is damaged or incomplete (1000000 bytes"),
        (with_nan, "encoder.layer.2.intermediate.dense.weight holds 1 NaN"),
        (nothing, "it holds no weights; expected model.safetensors"),
    ],
)
def test_broken_checkpoints_say_what_is_broken(tmp_path, capsys, damage, message):
    folder = checkpoint(tmp_path / "model", damage)
    code, out, err = run(capsys, "compare", folder, *FAST, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./no/such/folder"], "there is no such folder; check the path"),
        (["minilm", "--width", "0"], "above 0 and at most 1; got 0.0"),
        (["minilm", "--width", "1.5"], "above 0 and at most 1; got 1.5"),
        (["minilm", "--width", "0.25", "0.25"], "--width needs at least one value, each once"),
        (["minilm", "--methods", "fusion"], "unknown method 'fusion'; known: mlp-fusion, "),
        (["minilm", "--layers", "6"], "layer 6 does not exist; this model has layers 0 to 5"),
        (["minilm", "--layers", "-1"], "layer -1 does not exist; this model has layers 0 to 5"),
        (["minilm", "--methods", "svd", "--width", "0.001"], "choose a larger width"),
        (["minilm", "--tokens", "1"], "--tokens must be at least 2, got 1"),
        (["minilm", "--calibration-tokens", "1"], "--calibration-tokens must be at least 2, got 1"),
        (["minilm", "--methods", "all", "svd"], "--methods all means every method and takes no other names"),
        (["minilm", "--restarts", "0"], "--restarts must be at least 1, got 0"),
        (["minilm", "--seed", "-1"], "--seed must be from 0"),
        (["minilm", "--text", "missing.txt"], "text file missing.txt does not exist"),
        (["minilm", "--text", "empty.txt"], "text file empty.txt is empty"),
        (["minilm", "--text", "blank.txt"], "text file blank.txt is empty"),
        (["minilm", "--text", "one.txt"], "at least two different sentences are needed"),
        (["minilm", "--text", "binary.txt"], "text file binary.txt is not UTF-8"),
        (["minilm", "--text", "."], "text file . is a folder"),
        (["minilm", "--out", "one.txt/out"], "one.txt is a file"),
    ],
)
def test_nonsense_gets_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("blank.txt").write_text(" \n\t\n \n")
    Path("one.txt").write_text("Only this.\nOnly this.\n")
    Path("binary.txt").write_bytes(bytes(range(128, 256)))
    code, out, err = run(capsys, "compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("ntkfusion: ")
    assert err.count("\n") == 1
    assert not Path("results").exists()


def test_interrupts_that_python_drops_are_remembered_in_silence(capsys, monkeypatch):
    """As when Ctrl-C lands in a callback of the garbage collector; other dropped exceptions are shown as ever."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        for error in (KeyboardInterrupt(), ValueError()):
            sys.unraisablehook(SimpleNamespace(exc_type=type(error)))
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert [dropped.exc_type for dropped in shown] == [ValueError]
    assert sys.unraisablehook == shown.append


def test_interrupting_leaves_nothing_behind(tmp_path):
    """Ctrl-C in the middle of the work: exit code 130 and an empty working folder."""
    command = [sys.executable, "-m", "ntkfusion", "compare", "minilm", "--restarts", "500", "--out", "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={**os.environ})
    time.sleep(8)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("ntkfusion: interrupted, nothing is left half-written\n")
    assert not list(tmp_path.iterdir())
