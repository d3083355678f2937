"""The work of ``ntkfusion verify``: find the checks, run them, keep what they found."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache

from ntkfusion.checkpoints.load import load_model
from ntkfusion.commands.conditions import command_line, environment
from ntkfusion.commands.request import check_seed, results_path
from ntkfusion.commands.verify.options import Verify
from ntkfusion.data.calibration import read_text
from ntkfusion.errors import InputError
from ntkfusion.utils.files import Json, Output
from ntkfusion.utils.progress import Progress
from ntkfusion.verification.check import Check, RealBlocks, Scope, double_precision, quick_compilation, run_check
from ntkfusion.verification.outcome import CheckOutcome
from ntkfusion.verification.real_blocks import model_blocks, packaged_blocks
from ntkfusion.verification.registry import STATEMENTS


@dataclasses.dataclass(frozen=True)
class VerifyPlan:
    """A checked request."""

    options: Verify
    checks: tuple[Check, ...]
    output: Output

    @property
    def steps(self) -> int:
        """How often `run` reports progress: loading the model, and one step per check."""
        return 1 + len(self.checks)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found, and how long it took."""

    check: Check
    outcome: CheckOutcome
    seconds: float


@dataclasses.dataclass(frozen=True)
class Verification:
    """All findings with their conditions."""

    plan: VerifyPlan
    findings: tuple[Finding, ...]
    conditions: Json

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(finding.outcome.passed for finding in self.findings)


def plan(options: Verify) -> VerifyPlan:
    """Find the checks that a request means.

    Raises:
        InputError: for an unknown or repeated name, a bad seed or an unusable output.
        OutputExistsError: if an earlier report would be replaced that must not be.
    """
    check_seed(options.seed)
    checks = STATEMENTS
    unknown = [name for name in options.checks if name not in checks]
    if unknown or len(set(options.checks)) != len(options.checks):
        raise InputError(
            f"--checks takes names, each once, out of {', '.join(checks)}; got {', '.join(options.checks)}"
        )
    output = Output(results_path(options.out, "verify"), overwrite=options.overwrite)
    output.check()
    chosen = (check for name, check in checks.items() if not options.checks or name in options.checks)
    return VerifyPlan(options, tuple(chosen), output)


def run(plan: VerifyPlan, progress: Progress) -> Verification:
    """Run checks one after the other; two at a time if they are quick.

    Raises:
        NTKFusionError: if the user's model cannot be loaded or has no dense block.
    """
    options = plan.options
    progress.advance("loading the model", 0)
    if options.quick and len(plan.checks) > 2 and (os.cpu_count() or 1) > 1:
        findings, models = _two_at_a_time(plan, progress)
    else:
        findings, models = _in_turn(plan, progress)
    with double_precision():
        facts = environment()
    conditions = {
        "command": command_line(options, positional=()),
        "models": models,
        "seed": options.seed,
        "environment": facts,
    }
    return Verification(plan, tuple(findings), conditions)


def _in_turn(plan: VerifyPlan, progress: Progress) -> tuple[list[Finding], list[str]]:
    options, findings = plan.options, []
    with quick_compilation(options.quick):
        models = _models(options)
        for done, check in enumerate(plan.checks, start=1):
            progress.advance(check.name, done)
            scope = Scope(options.quick, options.seed, models)
            findings.append(Finding(check, *run_check(check, scope)))
    return findings, [real.name for real in models]


def _two_at_a_time(plan: VerifyPlan, progress: Progress) -> tuple[list[Finding], list[str]]:
    """Two processes: a quick run mostly compiles, on one core each; controls exchange functions, so no threads."""
    found = {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_by_name, plan.options, check.name): check for check in plan.checks}
        try:
            for done, future in enumerate(as_completed(running), start=1):
                found[running[future].name] = future.result()
                progress.advance(f"{running[future].name} is done", done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    findings = [Finding(check, *found[check.name][:2]) for check in plan.checks]
    return findings, found[plan.checks[0].name][2]


def _by_name(options: Verify, name: str) -> tuple[CheckOutcome, float, list[str]]:
    """A check in a process of its own: what it found, its seconds, the models it had."""
    with quick_compilation(options.quick):
        models = _models_once(options)
        outcome, seconds = run_check(STATEMENTS[name], Scope(options.quick, options.seed, models))
    return outcome, seconds, [real.name for real in models]


@lru_cache(maxsize=1)
def _models_once(options: Verify) -> tuple[RealBlocks, ...]:
    return _models(options)


def _models(options: Verify) -> tuple[RealBlocks, ...]:
    if options.model is None:
        return packaged_blocks(options.seed, quick=options.quick)
    model = load_model(options.model, ignore_adapter=options.ignore_adapter)
    return (model_blocks(model, read_text(options.text), seed=options.seed),)
