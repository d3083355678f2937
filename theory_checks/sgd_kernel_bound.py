"""Theorem 3b: how far the SGD kernel of a fused block can be from the original's.

Run it: ``uv run theory_checks/sgd_kernel_bound.py``. Exit code 1 if a statement fails, or if a control passes.

Every form of `sgd_bounds` for V4 against measured kernels, pair by pair of inputs, rounding allowance
included: traced, per output, and the Frobenius norm of the o×o matrix; and for V1's own, inflated kernel. On planted
clusters with residuals, centres that are not means, random blocks of every activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; terms deleted.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

from ntkfusion.compression.methods.mlp_fusion import Variant
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations import majorants
from ntkfusion.theory.blocks import sgd_bounds as sgd_terms
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked, evaluation_of
from ntkfusion.theory.blocks.kernel_weights import FusedConstants, constants_of
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks, residuals_of
from ntkfusion.theory.blocks.sgd_bounds import frobenius_bound, sgd_bound_of
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

FORMS = ("tight", "first", "second", "cheap", "weights")
SWITCHES: dict[Term, tuple[str, float]] = {
    (majorants, "supremum_on"): ("suprema of σ'' and σ''' divided by 50", 0.02),
    (sgd_terms, "value_exact"): ("without the exact part of values", 0.0),
    (sgd_terms, "value_mixed"): ("without Σ_i |ã| R̄'_i and its mirror", 0.0),
    (sgd_terms, "value_products"): ("without Σ_i Ē_i Ē'_i", 0.0),
    (sgd_terms, "slope_exact"): ("without the exact part of slopes", 0.0),
    (sgd_terms, "slope_mixed"): ("without Σ_i d_i S̄_i |g̃'| and its mirror", 0.0),
    (sgd_terms, "slope_products"): ("without Σ_i d_i S̄_i S̄'_i", 0.0),
}


def compare(
    original: MLPBlock, fused: MLPBlock, pair: FusedPair, fixed: FusedConstants, x: jax.Array, few: jax.Array | None
) -> Compared:
    """Every form for every pair of inputs; per output and as matrices for a few, without them only the tight form."""
    side, traced = evaluate_unchecked(pair, x), kernel_gap(original, fused, x, x, "sgd", "trace")
    if few is None:
        return {"tight": (traced, sgd_bound_of(pair, side, side, fixed))}
    found: Compared = {form: (traced, sgd_bound_of(pair, side, side, fixed, form)) for form in FORMS}
    side, full = evaluate_unchecked(pair, few), kernel_gap(original, fused, few, few, "sgd", "full")
    each = jnp.diagonal(full, axis1=2, axis2=3)
    found["tight per output"] = (each, sgd_bound_of(pair, side, side, fixed, "tight", True))
    found["o×o Frobenius"] = (jnp.linalg.norm(full, axis=(2, 3)), frobenius_bound(pair, side, side, fixed))
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
    """V4 in every form, and V1 traced; of real blocks in quick mode the tight form for V4."""
    found = measure(case, "v4", few=few_inputs(case, scope))
    if not (case.is_real and scope.quick):
        found["tight for V1"] = measure(case, "v1")["tight"]
    return found


def bare_bound(pair: FusedPair, fixed: FusedConstants, x: jax.Array) -> jax.Array:
    """The tight bound down to its terms, nothing compiled."""
    side = evaluation_of.__wrapped__(pair, residuals_of(pair, x))
    return sgd_bound_of.__wrapped__(pair, side, side, fixed)


def controls(cases: list[Case]) -> list[Control]:
    """What must violate the bound."""
    wrong = (measure(case, "v4", perturbed(case.original))["tight"] for case in cases)
    changed = Control("an original changed behind the bound's back", violated(wrong))
    smooth = [(case, variant) for case in cases if case.original.activation == "gelu" for variant in ("v4", "v1")]
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
    name="sgd-kernel-bound",
    statement=(
        "For every pair of inputs the SGD kernel of a fused block is no further from the original's than each form of "
        "its bound says: first and second order, the smaller of both, with Cauchy–Schwarz, from weights alone, per "
        "output and for the o×o matrix."
    ),
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
