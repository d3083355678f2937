"""The scripts that users run: they pass, and the theory checks can fail."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def zero_residual():
    return runpy.run_path(str(ROOT / "theory_checks" / "zero_residual.py"))


def test_zero_residual_passes(x64, zero_residual, capsys):
    assert zero_residual["main"]() == 0
    out = capsys.readouterr().out
    assert out.count("PASS") == 21
    assert "FAIL" not in out


def test_zero_residual_fails_when_the_theorem_is_wrong(x64, zero_residual, capsys, monkeypatch):
    main = zero_residual["main"]
    monkeypatch.setitem(main.__globals__, "kept", lambda variant, activation: {"output", "sgd", "sign"})
    assert main() == 1
    assert "FAIL: 20 of 20" in capsys.readouterr().out


def test_zero_residual_fails_in_float32(zero_residual, capsys):
    """Nothing is exact to 1e-12 there: the check does not pass by being loose."""
    assert zero_residual["main"]() == 1


def test_clustering_benchmark_runs(capsys):
    script = runpy.run_path(str(ROOT / "experiments" / "benchmarks" / "clustering.py"))
    script["main"](script["Options"](layers=(0,), width=0.01, restarts=1, repeats=1))
    assert "1536 points of 769 numbers into 15 clusters" in capsys.readouterr().out.replace("\n", " ")
