"""Theorem 3a: how far the output of a fused block can be from the original's.

Every form of `output_bounds` against measured outputs, input by input, rounding allowance included: on
planted clusters with residuals, centres that are not means, random blocks of every activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; terms deleted.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.majorants import Supremum
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked
from ntkfusion.theory.blocks.output_bounds import OUTPUT_TERMS, OutputTerms, output_bound_of
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.verification.bounds import (
    FAST,
    SUPREMUM,
    Compared,
    perturbed,
    rows_of,
    smooth_cases,
    term_controls,
    violated,
)
from ntkfusion.verification.cases import BlockCase, real_cases, synthetic_cases
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckOutcome, Control

FORMS = ("tight", "norm", "generic", "weights")
SWITCHES: dict[str, tuple[str, float]] = {
    SUPREMUM: ("suprema of σ'' and σ''' divided by 50", 0.02),
    "remainder_part": ("without the remainder Σ_i |v_i| R̄_i", 0.0),
    "linear_part": ("without the linear part ℓ", 0.0),
    "surplus": ("as if centres were means", 0.0),
}


@partial(jax.jit, static_argnames="terms", compiler_options=FAST)
def compare(terms: OutputTerms, original: MLPBlock, fused: MLPBlock, pair: FusedPair, x: jax.Array) -> Compared:
    """Every form at every input, and per output."""
    side, gap = evaluate_unchecked(pair, x), original(x) - fused(x)
    norms = jnp.linalg.norm(gap, axis=1)
    found: Compared = {form: (norms, output_bound_of(pair, side, terms, form)) for form in FORMS}
    return found | {"tight per output": (jnp.abs(gap), output_bound_of(pair, side, terms, "tight", True))}


def measure(case: BlockCase, terms: OutputTerms, original: MLPBlock | None = None) -> Compared:
    """A case against V1, its original exchanged or not."""
    fused = case.fused("v1")
    pair = pair_blocks(case.original, fused, case.labels)
    return compare(terms, case.original if original is None else original, fused, pair, case.x)


def tight(supremum: Supremum, terms: OutputTerms, pair: FusedPair, x: jax.Array) -> jax.Array:
    """The tight bound, of given suprema and terms."""
    return output_bound_of(pair, evaluate_unchecked(pair, x, supremum), terms)


def controls(cases: list[BlockCase], terms: OutputTerms) -> list[Control]:
    """What must violate the bound."""
    wrong = (measure(case, terms, perturbed(case.original))["tight"] for case in cases)
    changed = Control("an original changed behind the bound's back", violated(wrong))
    smooth = smooth_cases(cases)
    return [
        changed,
        *term_controls(
            [measure(case, terms)["tight"][0] for case in smooth],
            [(pair_blocks(case.original, case.fused("v1"), case.labels), case.x) for case in smooth],
            tight,
            terms,
            SWITCHES,
        ),
    ]


def run(scope: Scope, terms: OutputTerms = OUTPUT_TERMS) -> CheckOutcome:
    """Synthetic and real blocks."""
    cases = synthetic_cases(scope)
    found = [(case, measure(case, terms)) for case in (*cases, *real_cases(scope))]
    return CheckOutcome(rows_of(found, "numbers"), tuple(controls(cases, terms)))


CHECK = Check(
    name="output-bound",
    statement=(
        "The output of a fused block is no further from the original's than each form of the output bound says: the "
        "tight form, the norm form, the generic form and the one from weights alone."
    ),
    run=run,
)
