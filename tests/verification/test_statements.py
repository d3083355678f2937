"""The scripts of theory_checks/ and the command that runs them: they pass, they can fail, a report is written."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.commands.main import main
from ntkfusion.commands.verify import run as verify_job
from ntkfusion.commands.verify.run import find_checks
from ntkfusion.theory.blocks import output_bounds, sign_bounds, signal_bounds
from ntkfusion.theory.blocks import sgd_bounds as sgd_terms
from ntkfusion.theory.blocks.output_bounds import output_bound_of
from ntkfusion.theory.blocks.sgd_bounds import sgd_bound_of
from ntkfusion.theory.blocks.sign_bounds import sign_bound_of
from ntkfusion.theory.blocks.signal_bounds import signal_bound_of
from ntkfusion.verification import cases as check_cases
from ntkfusion.verification.check import Check, Control, Curve, Outcome, Real, Row, Scope, double_precision, run_check
from tests.helpers.blocks import dense_block, normal

CHECKS = find_checks()
#: By default with one activation and less of what takes long; the slow tests run them as `ntkfusion verify` does.
SLOW = ("mixture", "network-bound")
LESS = {
    "closed-forms": {"QUICK": {"dense": ("gelu",), "factorised": (), "gated": (), "masked": ("relu",), "mixture": ()}},
    "zero-residual": {"ACTIVATIONS": ("relu", "silu")},
    "trajectories": {"QUICK_ACTIVATIONS": ("gelu",)},
    "shrinkage": {"QUICK_ACTIVATIONS": ("gelu",)},
    "sandwich": {"QUICK_ACTIVATIONS": ("relu",)},
}


def changed(monkeypatch, name: str, **values) -> Check:
    """A check whose script has other values."""
    check = CHECKS[name]
    for key, value in values.items():
        assert key in check.run.__globals__
        monkeypatch.setitem(check.run.__globals__, key, value)
    return check


@pytest.fixture
def few_activations(monkeypatch):
    monkeypatch.setattr(check_cases, "QUICK_ACTIVATIONS", ("gelu",))


def tiny_model() -> Real:
    """Random blocks in the place of a real model's."""
    with double_precision():
        blocks = {layer: dense_block(8, 24, 8, seed=layer, scale=0.4) for layer in (0, 1)}
        return Real("tiny", blocks, {layer: normal(layer, 12, 8) for layer in blocks})


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in CHECKS]
)
def test_check_passes(monkeypatch, few_activations, name):
    check = changed(monkeypatch, name, **LESS.get(name, {}))
    outcome, _ = run_check(check, Scope())
    assert outcome.failures == []
    assert all(row.count for row in outcome.rows)


def dense_block_of(vectors):
    """The tiny model's block with these neurons."""
    return check_cases.block_of(np.asarray(vectors), np.zeros(8), "gelu", 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CHECKS))
def test_check_passes_in_full(name):
    outcome, _ = run_check(CHECKS[name], Scope(quick=False, seed=1, models=(tiny_model(),)))
    assert outcome.failures == []


def test_real_blocks_have_rows_of_their_own(monkeypatch, few_activations):
    def clustered(vectors, count, *_):
        return check_cases.clusters_of(dense_block_of(vectors), np.arange(len(vectors)) % count)

    monkeypatch.setattr(check_cases, "kmeans", clustered)
    outcome, _ = run_check(CHECKS["signal-bound"], Scope(models=(tiny_model(),)))
    assert outcome.failures == []
    assert {(row.layer, row.width) for row in outcome.rows} == {(None, None), (1, 0.25)}


#: Check, the compiled bound in its script, and the term that is deleted.
MUTATIONS = [
    ("output-bound", output_bound_of, output_bounds, "remainder_part"),
    ("output-bound", output_bound_of, output_bounds, "linear_part"),
    ("sgd-kernel-bound", sgd_bound_of, sgd_terms, "slope_mixed"),
    ("sgd-kernel-bound", sgd_bound_of, sgd_terms, "value_mixed"),
    ("sign-kernel-bound", sign_bound_of, sign_bounds, "slope_flips"),
    ("signal-bound", signal_bound_of, signal_bounds, "slope_part"),
]


@pytest.mark.parametrize(
    ("name", "bound", "module", "term"),
    [
        pytest.param(*one, marks=[] if one[0] in ("output-bound", "signal-bound") else pytest.mark.slow)
        for one in MUTATIONS
    ],
)
def test_a_check_without_a_main_term_turns_red(monkeypatch, few_activations, name, bound, module, term):
    true = getattr(module, term)
    monkeypatch.setattr(module, term, lambda *arguments: 0 * true(*arguments))
    # what is compiled already would still have the term
    check = changed(monkeypatch, name, **{bound.__wrapped__.__name__: bound.__wrapped__})
    program = check.run.__globals__["program"]
    program.clear_cache()
    outcome, _ = run_check(check, Scope())
    program.clear_cache()
    assert any(row.violations for row in outcome.rows)
    assert not outcome.passed


def test_optimisers_that_are_not_the_theorem_s_turn_it_red(monkeypatch):
    """Adam with ε = 1e-6 in the place of ε = 0."""
    check = changed(monkeypatch, "trajectories", **LESS["trajectories"])
    law = check.run.__globals__["Law"]
    monkeypatch.setitem(
        check.run.__globals__, "Law", lambda *values, **named: law(*values, **({"epsilon": 1e-6} | named))
    )
    outcome, _ = run_check(check, Scope())
    assert sum("AdamW, ε = 0" in failure for failure in outcome.failures) == 2


def outcome_of(measured: float) -> Outcome:
    """What a check might find; it fails if 2 was measured."""
    cases = [("tiny, layer 0, width 0.25, tight", 0), ("tiny, layer 1, width 0.25, tight", 1)]
    rows = [Row.of_arrays(case, measured * np.array([0.1, 1.0]), 1.5, layer=layer, width=0.25) for case, layer in cases]
    rows.append(Row.of_arrays("an error that must show | 1", 2.0, 1.0, of="errors", at_least=True))
    curve = Curve("a curve", "ε", "error", {"one": (np.array([1e-3, 1e-2]), np.array([1e-6, 1e-4]))}, log=True)
    return Outcome(tuple(rows), (Control("something wrong", True),), {"slope": "2"}, (curve,))


@pytest.fixture
def fake_checks(monkeypatch):
    """Two checks that take no time, one of which fails."""
    checks = {
        name: Check(name, f"The statement of {name}.", lambda scope, value=value: outcome_of(value))
        for name, value in (("fine", 1.0), ("wrong", 2.0))
    }
    monkeypatch.setattr(verify_job, "find_checks", lambda: checks)
    monkeypatch.setattr(verify_job, "packaged_blocks", lambda seed, quick: ())


def test_verify_writes_its_report(fake_checks, tmp_path, capsys):
    main(["verify", "--quick", "--checks", "fine", "--out", str(tmp_path / "out")])
    assert "PASS" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"fine-{kind}.png" for kind in ("tightness", "scatter", "curve0")}
    assert names >= {"index.html", "report.md", "results.json", *pictures}
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [check["passed"] for check in numbers["checks"]] == [True]
    row = numbers["checks"][0]["rows"][0]
    assert (row["measured"], row["bound"], row["violations"], row["median_ratio"]) == (1.0, 1.5, 0, 8.25)
    page, report = ((tmp_path / "out" / name).read_text() for name in ("index.html", "report.md"))
    assert "The statement of fine." in page
    assert "Every statement holds" in page
    assert page.count("data:image/png;base64,") == 3
    assert "| an error that must show \\| 1 | 2.000e+00 | ≥ 1.000e+00 |" in report


def test_verify_ends_with_1_if_a_statement_fails(fake_checks, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        main(["verify", "--quick", "--checks", "wrong", "--out", str(tmp_path / "out")])
    assert ending.value.code == 1
    out = capsys.readouterr().out
    assert "wrong: tiny, layer 0, width 0.25, tight: 1 of 2 pairs exceed" in out
    assert "FAIL: wrong" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("arguments", [["--checks", "fine", "unknown"], ["--checks", "fine", "fine"], ["--seed", "-1"]])
def test_verify_refuses_bad_requests(fake_checks, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as ending:
        main(["verify", *arguments, "--out", str(tmp_path / "out")])
    assert ending.value.code == 2
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err.count("\n") == 1


def test_verify_runs_a_real_check(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(verify_job, "packaged_blocks", lambda seed, quick: ())
    main(["verify", "--quick", "--checks", "constants", "--out", str(tmp_path / "out")])
    assert "constants" in capsys.readouterr().out


def test_nothing_compared_and_no_controls_is_no_success():
    assert Outcome((), ()).failures == ["nothing was compared", "there is no control"]
    row = Row.of_arrays("a case", [np.nan, 1.0], 2.0)
    assert row.violations == 1
    passing = Control("too weak", False)
    assert Outcome((row,), (passing,)).failures == ["a case: 1 of 2 pairs exceed", "control passes: too weak"]


def test_installed_checks_are_those_of_the_repository():
    """The wheel takes the whole folder to where `find_checks` looks first."""
    root = Path(__file__).parents[2]
    assert '"theory_checks" = "ntkfusion/theory_checks"' in (root / "pyproject.toml").read_text()
    assert len(CHECKS) == len(list((root / "theory_checks").glob("*.py")))
    assert jnp.zeros(0).dtype == jnp.float32
