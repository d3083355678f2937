"""A script of the theory that users run: it passes, and it can fail."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from ntkfusion.verification.check import Scope

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def zero_residual():
    return runpy.run_path(str(ROOT / "theory_checks" / "zero_residual.py"))


def test_zero_residual_passes(x64, zero_residual):
    outcome = zero_residual["CHECK"].run(Scope())
    assert outcome.failures == []
    assert (len(outcome.rows), len(outcome.controls)) == (60, 17)


def test_zero_residual_fails_when_the_theorem_is_wrong(x64, zero_residual, monkeypatch):
    run = zero_residual["CHECK"].run
    monkeypatch.setitem(run.__globals__, "ACTIVATIONS", ("relu",))
    monkeypatch.setitem(run.__globals__, "kept", lambda variant, activation: {"output", "SGD kernel", "sign kernel"})
    assert len(run(Scope()).failures) == 3 + 1 + 2 + 1 + 1


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # that is what this takes away
def test_zero_residual_fails_in_float32(zero_residual, monkeypatch):
    """Nothing is exact to 1e-12 there: the check does not pass by being loose. One activation is enough."""
    run = zero_residual["CHECK"].run
    monkeypatch.setitem(run.__globals__, "ACTIVATIONS", ("relu",))
    assert len(run(Scope()).failures) == 7
