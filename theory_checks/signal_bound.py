"""Theorem 3d: how far the signal that a fused block sends back can be from the original's.

Run it: ``uv run theory_checks/signal_bound.py``. Exit code 1 if a statement fails, or if a control passes.

The bound of `signal_bounds` against ‖∂f/∂x − ∂f̃/∂x‖_F by automatic differentiation, input by input,
rounding allowance included: on planted clusters with residuals, centres that are not means, random blocks of every
activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; terms deleted.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations import majorants
from ntkfusion.theory.blocks import signal_bounds
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked, evaluation_of
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks, residuals_of
from ntkfusion.theory.blocks.signal_bounds import signal_bound_of
from ntkfusion.verification.bounds import FAST, Compared, Term, perturbed, rows_of, term_controls, violated
from ntkfusion.verification.cases import Case, real_cases, synthetic_cases
from ntkfusion.verification.check import Check, Control, Outcome, Scope, run_alone

#: Inputs of real blocks: each has a Jacobian of o d numbers.
REAL_INPUTS = 8
SWITCHES: dict[Term, tuple[str, float]] = {
    (majorants, "supremum_on"): ("suprema of σ'' and σ''' divided by 50", 0.02),
    (signal_bounds, "slope_part"): ("without Σ_i S̄_i ‖v_i‖ ‖w_i‖", 0.0),
    (signal_bounds, "spread_part"): ("without the difference at equal slopes", 0.0),
}


def compare(original: MLPBlock, fused: MLPBlock, pair: FusedPair, x: jax.Array) -> Compared:
    """Every input."""
    gap = jax.vmap(jax.jacrev(lambda one: original(one) - fused(one)))(x)
    return {"norm": (jnp.linalg.norm(gap, axis=(1, 2)), signal_bound_of(pair, evaluate_unchecked(pair, x)))}


program = jax.jit(compare, compiler_options=FAST)


def inputs_of(case: Case) -> jax.Array:
    """All inputs of a synthetic block, a few of a real one."""
    return case.x[:REAL_INPUTS] if case.is_real else case.x


def measure(case: Case, original: MLPBlock | None = None) -> Compared:
    """A case against V1, its original exchanged or not."""
    fused = case.fused("v1")
    pair = pair_blocks(case.original, fused, case.labels)
    return program(case.original if original is None else original, fused, pair, inputs_of(case))


def bare_bound(pair: FusedPair, x: jax.Array) -> jax.Array:
    """The bound down to its terms, nothing compiled."""
    return signal_bound_of.__wrapped__(pair, evaluation_of.__wrapped__(pair, residuals_of(pair, x)))


def controls(cases: list[Case]) -> list[Control]:
    """What must violate the bound."""
    wrong = (measure(case, perturbed(case.original))["norm"] for case in cases)
    changed = Control("an original changed behind the bound's back", violated(wrong))
    smooth = [case for case in cases if case.original.activation == "gelu"]
    errors = [measure(case)["norm"][0] for case in smooth]
    arguments = [(pair_blocks(case.original, case.fused("v1"), case.labels), case.x) for case in smooth]
    return [changed, *term_controls(errors, arguments, bare_bound, SWITCHES)]


def run(scope: Scope) -> Outcome:
    """Synthetic and real blocks."""
    cases = synthetic_cases(scope)
    found = [(case, measure(case)) for case in (*cases, *real_cases(scope))]
    return Outcome(rows_of(found, "inputs"), tuple(controls(cases)))


CHECK = Check(
    name="signal-bound",
    statement=(
        "The Jacobian of a fused block's output with respect to its input, hence the signal it sends back, is no "
        "further from the original's than the bound says."
    ),
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
