"""The scripts of theory_checks/ and the command that runs them: they pass, they can fail, a report is written."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ntkfusion.commands.main import main
from ntkfusion.commands.verify import run as verify_job
from ntkfusion.theory.activations import majorants
from ntkfusion.theory.activations.suprema import supremum_on
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked
from ntkfusion.theory.blocks.output_bounds import OUTPUT_TERMS, output_bound_of
from ntkfusion.theory.blocks.pairs import pair_blocks
from ntkfusion.theory.trajectories import Law
from ntkfusion.verification import cases as check_cases
from ntkfusion.verification import statements
from ntkfusion.verification.bounds import multiplied
from ntkfusion.verification.check import Check, RealBlocks, Scope, double_precision, run_check
from ntkfusion.verification.outcome import CheckCurve, CheckOutcome, CheckRow, Control
from ntkfusion.verification.registry import STATEMENTS
from ntkfusion.verification.statements import (
    output_bound,
    sgd_kernel_bound,
    sign_kernel_bound,
    signal_bound,
    zero_residual,
)
from tests.helpers.bert_tiny import bert_tiny_blocks
from tests.helpers.blocks import dense_block, normal

#: By default with one activation and less of what takes long; the slow tests run them as `ntkfusion verify` does.
SLOW = ("mixture", "network-bound")
TIERS = dict.fromkeys(("sgd-kernel-bound", "sign-kernel-bound", "signal-bound", "trajectories"), pytest.mark.wide)
LESS = {
    "closed-forms": {"QUICK": {"dense": ("gelu",), "factorised": (), "gated": (), "masked": ("relu",), "mixture": ()}},
    "zero-residual": {"ACTIVATIONS": ("relu", "silu")},
    "trajectories": {"QUICK_ACTIVATIONS": ("gelu",)},
    "shrinkage": {"QUICK_ACTIVATIONS": ("gelu",)},
    "sandwich": {"QUICK_ACTIVATIONS": ("relu",)},
}


def changed(monkeypatch, name: str, **values) -> Check:
    """A check whose module has other values."""
    module = importlib.import_module(f"{statements.__name__}.{name.replace('-', '_')}")
    for key, value in values.items():
        monkeypatch.setattr(module, key, value)
    return STATEMENTS[name]


@pytest.fixture
def few_activations(monkeypatch):
    monkeypatch.setattr(check_cases, "QUICK_ACTIVATIONS", ("gelu",))


def tiny_model() -> RealBlocks:
    """Random blocks in the place of a real model's."""
    with double_precision():
        blocks = {layer: dense_block(8, 24, 8, seed=layer, scale=0.4) for layer in (0, 1)}
        return RealBlocks("tiny", blocks, {layer: normal(layer, 12, 8) for layer in blocks})


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else TIERS.get(name, [])) for name in STATEMENTS],
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
@pytest.mark.parametrize("name", list(STATEMENTS))
def test_check_passes_in_full(name):
    outcome, _ = run_check(STATEMENTS[name], Scope(quick=False, seed=1, models=(tiny_model(),)))
    assert outcome.failures == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["output-bound", "sgd-kernel-bound", "sign-kernel-bound", "signal-bound"])
def test_bounds_hold_for_bert_tiny(data_dir, few_activations, name):
    outcome, _ = run_check(STATEMENTS[name], Scope(models=(bert_tiny_blocks(data_dir),)))
    assert outcome.failures == []
    assert any(row.layer is not None for row in outcome.rows)


def test_real_blocks_have_rows_of_their_own(monkeypatch, few_activations):
    def clustered(vectors, count, *_):
        return check_cases.clusters_of(dense_block_of(vectors), np.arange(len(vectors)) % count)

    monkeypatch.setattr(check_cases, "kmeans", clustered)
    outcome, _ = run_check(STATEMENTS["signal-bound"], Scope(models=(tiny_model(),)))
    assert outcome.failures == []
    assert {(row.layer, row.width) for row in outcome.rows} == {(None, None), (1, 0.25)}


#: The statement, and the term that is deleted.
MUTATIONS = [
    (output_bound, "remainder_part"),
    (output_bound, "linear_part"),
    (sgd_kernel_bound, "slope_mixed"),
    (sgd_kernel_bound, "value_mixed"),
    (sign_kernel_bound, "slope_flips"),
    (signal_bound, "slope_part"),
]


def outcome_without(statement, term: str | None) -> CheckOutcome:
    """What the check of a bound finds if a term of it, or none, is 0."""

    bound = statement.BOUND
    terms = bound.terms if term is None else bound.terms._replace(**{term: multiplied(getattr(bound.terms, term), 0.0)})
    with double_precision():
        return dataclasses.replace(bound, terms=terms).run(Scope())


@pytest.mark.parametrize(
    ("statement", "term"),
    [
        pytest.param(
            statement,
            term,
            marks=pytest.mark.wide if statement in (output_bound, signal_bound) else pytest.mark.slow,
            id=f"{statement.CHECK.name}-{term}",
        )
        for statement, term in MUTATIONS
    ],
)
def test_a_check_without_a_main_term_turns_red(few_activations, statement, term):
    outcome = outcome_without(statement, term)
    assert any(row.violations for row in outcome.rows)
    assert not outcome.passed


@pytest.mark.parametrize("statement", [output_bound, signal_bound])
def test_a_bound_with_a_seventh_in_place_of_taylor_s_sixth_turns_its_check_red(few_activations, statement):
    """Every case was looser than that: only a unit test of the majorant noticed."""
    outcome = outcome_without(statement, None)
    assert outcome.failures == []
    assert any(control.name.startswith("Taylor's 1/6") and control.failed for control in outcome.controls)
    attained = [row for row in outcome.rows if row.case.startswith("attained, ")]
    assert min(row.ratio for row in attained) < 1.03


def test_taylor_s_sixth_in_the_code_is_what_the_check_sees(few_activations, monkeypatch):
    """The same by the module itself: with 1/7 in it, numbers exceed the bound."""
    true = majorants.remainder_majorant

    def wrong(name, h, delta, supremum=supremum_on):
        scaled = lambda *one: (6 / 7 if one[1] == 3 else 1.0) * supremum(*one)  # noqa: E731
        return true(name, h, delta, scaled)

    monkeypatch.setattr(majorants, "remainder_majorant", wrong)
    with double_precision():
        case = check_cases.attained_case("gelu", 0)
        fused = case.fused("v1")
        side = evaluate_unchecked(pair_blocks(case.original, fused, case.labels), case.x)
        pair = pair_blocks(case.original, fused, case.labels)
        bound = output_bound_of(pair, side, OUTPUT_TERMS)
        error = jnp.linalg.norm(case.original(case.x) - fused(case.x), axis=1)
    assert bool(jnp.all(error > bound))


def test_optimisers_that_are_not_the_theorem_s_turn_it_red(monkeypatch):
    """Adam with ε = 1e-6 in the place of ε = 0."""
    check = changed(monkeypatch, "trajectories", **LESS["trajectories"], Law=partial(Law, epsilon=1e-6))
    outcome, _ = run_check(check, Scope())
    assert sum("AdamW, ε = 0" in failure for failure in outcome.failures) == 2


@pytest.mark.wide
def test_zero_residual_passes(x64):
    outcome = zero_residual.CHECK.run(Scope())
    assert outcome.failures == []
    assert (len(outcome.rows), len(outcome.controls)) == (60, 17)


def test_zero_residual_fails_when_the_theorem_is_wrong(x64, monkeypatch):
    monkeypatch.setattr(zero_residual, "ACTIVATIONS", ("relu",))
    monkeypatch.setattr(zero_residual, "kept", lambda variant, activation: {"output", "SGD kernel", "sign kernel"})
    assert len(zero_residual.run(Scope()).failures) == 3 + 1 + 2 + 1 + 1


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")  # that is what this takes away
def test_zero_residual_fails_in_float32(monkeypatch):
    """Nothing is exact to 1e-12 there: the check does not pass by being loose. One activation is enough."""
    monkeypatch.setattr(zero_residual, "ACTIVATIONS", ("relu",))
    assert len(zero_residual.run(Scope()).failures) == 7


def outcome_of(measured: float) -> CheckOutcome:
    """What a check might find; it fails if 2 was measured."""
    cases = [("tiny, layer 0, width 0.25, tight", 0), ("tiny, layer 1, width 0.25, tight", 1)]
    rows = [
        CheckRow.of_arrays(case, measured * np.array([0.1, 1.0]), 1.5, layer=layer, width=0.25) for case, layer in cases
    ]
    rows.append(CheckRow.of_arrays("an error that must show | 1", 2.0, 1.0, of="errors", at_least=True))
    curve = CheckCurve("a curve", "ε", "error", {"one": (np.array([1e-3, 1e-2]), np.array([1e-6, 1e-4]))}, log=True)
    return CheckOutcome(tuple(rows), (Control("something wrong", True),), {"slope": "2"}, (curve,))


@pytest.fixture
def fake_checks(monkeypatch):
    """Two checks that take no time, one of which fails."""
    checks = {
        name: Check(name, f"The statement of {name}.", lambda scope, value=value: outcome_of(value))
        for name, value in (("fine", 1.0), ("wrong", 2.0))
    }
    monkeypatch.setattr(verify_job, "STATEMENTS", checks)
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
    assert CheckOutcome((), ()).failures == ["nothing was compared", "there is no control"]
    row = CheckRow.of_arrays("a case", [np.nan, 1.0], 2.0)
    assert row.violations == 1
    passing = Control("too weak", False)
    assert CheckOutcome((row,), (passing,)).failures == ["a case: 1 of 2 pairs exceed", "control passes: too weak"]


def test_every_statement_has_a_script_and_every_script_a_statement():
    """A module, a line of the registry and a script of the same name, which runs that module's check."""
    root = Path(__file__).parents[2]
    modules = {path.stem for path in Path(statements.__path__[0]).glob("*.py")} - {"__init__"}
    scripts = {path.stem: path.read_text() for path in (root / "theory_checks").glob("*.py")}
    assert {name.replace("-", "_") for name in STATEMENTS} == modules == set(scripts)
    for name, text in scripts.items():
        assert f"from ntkfusion.verification.statements.{name} import CHECK\n" in text
        assert f"uv run theory_checks/{name}.py" in text
        assert importlib.import_module(f"{statements.__name__}.{name}").CHECK is STATEMENTS[name.replace("_", "-")]
    assert jnp.zeros(0).dtype == jnp.float32


def test_the_product_patches_nothing():
    """No module imports a mocking library or runs a file, and none reaches behind a decorator or into globals."""
    for path in Path(statements.__path__[0]).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [node.attr] if isinstance(node, ast.Attribute) else []
            parts = {part for name in names for part in name.split(".")}
            assert not parts & {"unittest", "runpy", "mock", "__wrapped__", "__globals__"}, path
