"""Theorem 3a: how far the output of a fused block can be from the original's.

Run it: ``uv run theory_checks/output_bound.py``. Exit code 1 if a statement fails, or if a control passes.

Every form of `output_bounds` against measured outputs, input by input, rounding allowance included: on
planted clusters with residuals, centres that are not means, random blocks of every activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; terms deleted.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations import majorants
from ntkfusion.theory.blocks import output_bounds
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked, evaluation_of
from ntkfusion.theory.blocks.output_bounds import output_bound_of
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks, residuals_of
from ntkfusion.verification.bounds import FAST, Compared, Term, perturbed, rows_of, term_controls, violated
from ntkfusion.verification.cases import Case, real_cases, synthetic_cases
from ntkfusion.verification.check import Check, Control, Outcome, Scope, run_alone

FORMS = ("tight", "norm", "generic", "weights")
SWITCHES: dict[Term, tuple[str, float]] = {
    (majorants, "supremum_on"): ("suprema of σ'' and σ''' divided by 50", 0.02),
    (output_bounds, "remainder_part"): ("without the remainder Σ_i |v_i| R̄_i", 0.0),
    (output_bounds, "linear_part"): ("without the linear part ℓ", 0.0),
    (output_bounds, "surplus"): ("as if centres were means", 0.0),
}


def compare(original: MLPBlock, fused: MLPBlock, pair: FusedPair, x: jax.Array) -> Compared:
    """Every form at every input, and per output."""
    side, gap = evaluate_unchecked(pair, x), original(x) - fused(x)
    norms = jnp.linalg.norm(gap, axis=1)
    found: Compared = {form: (norms, output_bound_of(pair, side, form)) for form in FORMS}
    return found | {"tight per output": (jnp.abs(gap), output_bound_of(pair, side, "tight", True))}


program = jax.jit(compare, compiler_options=FAST)


def measure(case: Case, original: MLPBlock | None = None) -> Compared:
    """A case against V1, its original exchanged or not."""
    fused = case.fused("v1")
    pair = pair_blocks(case.original, fused, case.labels)
    return program(case.original if original is None else original, fused, pair, case.x)


def bare_bound(pair: FusedPair, x: jax.Array) -> jax.Array:
    """The tight bound down to its terms, nothing compiled."""
    side = evaluation_of.__wrapped__(pair, residuals_of(pair, x))
    return output_bound_of.__wrapped__(pair, side)


def controls(cases: list[Case]) -> list[Control]:
    """What must violate the bound."""
    wrong = (measure(case, perturbed(case.original))["tight"] for case in cases)
    changed = Control("an original changed behind the bound's back", violated(wrong))
    smooth = [case for case in cases if case.original.activation == "gelu"]
    return [
        changed,
        *term_controls(
            [measure(case)["tight"][0] for case in smooth],
            [(pair_blocks(case.original, case.fused("v1"), case.labels), case.x) for case in smooth],
            bare_bound,
            SWITCHES,
        ),
    ]


def run(scope: Scope) -> Outcome:
    """Synthetic and real blocks."""
    cases = synthetic_cases(scope)
    found = [(case, measure(case)) for case in (*cases, *real_cases(scope))]
    return Outcome(rows_of(found, "numbers"), tuple(controls(cases)))


CHECK = Check(
    name="output-bound",
    statement=(
        "The output of a fused block is no further from the original's than each form of the output bound says: the "
        "tight form, the norm form, the generic form and the one from weights alone."
    ),
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
