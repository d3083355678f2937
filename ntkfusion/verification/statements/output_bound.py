"""Theorem 3a: how far the output of a fused block can be from the original's.

Every form of `output_bounds` against measured outputs, input by input, rounding allowance included: on
planted clusters with residuals, centres that are not means, random blocks of every activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; Taylor's 1/6
replaced by 1/7, which shows where the bound is attained; terms deleted.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.majorants import Supremum
from ntkfusion.theory.blocks.evaluation import evaluate_unchecked
from ntkfusion.theory.blocks.output_bounds import OUTPUT_TERMS, OutputTerms, output_bound_of
from ntkfusion.theory.blocks.pairs import FusedPair
from ntkfusion.verification.bounds import FAST, SEVENTH, SUPREMUM, TAYLOR, Compared, InputBoundCheck
from ntkfusion.verification.check import Check

FORMS = ("tight", "norm", "generic", "weights")
SWITCHES: dict[str, tuple[str, float]] = {
    SUPREMUM: ("suprema of σ'' and σ''' divided by 50", 0.02),
    TAYLOR: SEVENTH,
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


def tight(supremum: Supremum, terms: OutputTerms, pair: FusedPair, x: jax.Array) -> jax.Array:
    """The tight bound, of given suprema and terms."""
    return output_bound_of(pair, evaluate_unchecked(pair, x, supremum), terms)


BOUND = InputBoundCheck(compare, "tight", tight, OUTPUT_TERMS, SWITCHES)

CHECK = Check(
    name="output-bound",
    statement=(
        "The output of a fused block is no further from the original's than each form of the output bound says: the "
        "tight form, the norm form, the generic form and the one from weights alone."
    ),
    run=BOUND.run,
)
