"""Theorem 3c: how far the sign kernel (Adam kernel) of a fused block can be from the original's.

Run it: ``uv run theory_checks/sign_kernel_bound.py``. Exit code 1 if a statement fails, or if a control passes.

The bound of `sign_bounds` for V1 against measured kernels ⟨∇f(x), sgn ∇f(z)⟩, pair by pair of inputs,
rounding allowance included: traced and per output; and for V4's own kernel. On planted clusters with residuals, centres
that are not means, random blocks of every activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; terms deleted, such as
the flips of signs.
"""

from __future__ import annotations

import sys

import jax

from ntkfusion.compression.methods.mlp_fusion import Variant
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations import majorants
from ntkfusion.theory.blocks import sign_bounds
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked, evaluation_of
from ntkfusion.theory.blocks.kernel_weights import FusedConstants, constants_of
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks, residuals_of
from ntkfusion.theory.blocks.sign_bounds import sign_bound_of
from ntkfusion.theory.trajectories import with_constants
from ntkfusion.verification.bounds import (
    FAST,
    Compared,
    Term,
    few_inputs,
    kernel_gap,
    perturbed,
    rows_of,
    term_controls,
    violated,
)
from ntkfusion.verification.cases import Case, real_cases, synthetic_cases
from ntkfusion.verification.check import Check, Control, Outcome, Scope, run_alone

SWITCHES: dict[Term, tuple[str, float]] = {
    (majorants, "supremum_on"): ("suprema of σ'' and σ''' divided by 50", 0.02),
    (sign_bounds, "value_exact"): ("without the exact part of values", 0.0),
    (sign_bounds, "value_rest"): ("without Σ_i R̄_i |sgn ã'|", 0.0),
    (sign_bounds, "value_flips"): ("without flips of signs of activations", 0.0),
    (sign_bounds, "slope_exact"): ("without the exact part of slopes", 0.0),
    (sign_bounds, "slope_rest"): ("without Σ_i d_i S̄_i |sgn g̃'|", 0.0),
    (sign_bounds, "slope_flips"): ("without flips of signs of slopes", 0.0),
}


def compare(
    original: MLPBlock, fused: MLPBlock, pair: FusedPair, fixed: FusedConstants, x: jax.Array, few: jax.Array | None
) -> Compared:
    """Every pair of inputs; per output for a few."""
    side, traced = evaluate_unchecked(pair, x), kernel_gap(original, fused, x, x, "sign", "trace")
    found: Compared = {"tight": (traced, sign_bound_of(pair, side, side, fixed))}
    if few is not None:
        side, each = evaluate_unchecked(pair, few), kernel_gap(original, fused, few, few, "sign", "diagonal")
        found["tight per output"] = (each, sign_bound_of(pair, side, side, fixed, True))
    return found


program = jax.jit(compare, compiler_options=FAST)


def measure(case: Case, variant: Variant, original: MLPBlock | None = None, few: jax.Array | None = None) -> Compared:
    """A case against one of its variants, its original exchanged or not."""
    fused, pair, fixed = arranged(case, variant)
    return program(case.original if original is None else original, fused, pair, fixed, case.x, few)


def arranged(case: Case, variant: Variant) -> tuple[MLPBlock, FusedPair, FusedConstants]:
    """What the program takes."""
    fused = with_constants(case.fused(variant))
    return fused, pair_blocks(case.original, fused, case.labels), constants_of(case.original, fused)


def both(case: Case, scope: Scope) -> Compared:
    """V1 per output too, and V4; of real blocks in quick mode V1 traced."""
    found = measure(case, "v1", few=few_inputs(case, scope))
    if not (case.is_real and scope.quick):
        found["tight for V4"] = measure(case, "v4")["tight"]
    return found


def bare_bound(pair: FusedPair, fixed: FusedConstants, x: jax.Array) -> jax.Array:
    """The bound down to its terms, nothing compiled."""
    side = evaluation_of.__wrapped__(pair, residuals_of(pair, x))
    return sign_bound_of.__wrapped__(pair, side, side, fixed)


def controls(cases: list[Case]) -> list[Control]:
    """What must violate the bound."""
    wrong = (measure(case, "v1", perturbed(case.original))["tight"] for case in cases)
    changed = Control("an original changed behind the bound's back", violated(wrong))
    smooth = [(case, variant) for case in cases if case.original.activation == "gelu" for variant in ("v1", "v4")]
    return [
        changed,
        *term_controls(
            [measure(*one)["tight"][0] for one in smooth],
            [(*arranged(*one)[1:], one[0].x) for one in smooth],
            bare_bound,
            SWITCHES,
        ),
    ]


def run(scope: Scope) -> Outcome:
    """Synthetic and real blocks."""
    cases = synthetic_cases(scope)
    found = [(case, both(case, scope)) for case in (*cases, *real_cases(scope))]
    return Outcome(rows_of(found, "numbers"), tuple(controls(cases)))


CHECK = Check(
    name="sign-kernel-bound",
    statement=(
        "For every pair of inputs the sign kernel of a fused block is no further from the original's than its bound "
        "says, which counts the signs that residuals may flip; traced and per output."
    ),
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
