"""Theorem 3c: how far the sign kernel (Adam kernel) of a fused block can be from the original's.

The bound of `sign_bounds` for V1 against measured kernels ⟨∇f(x), sgn ∇f(z)⟩, pair by pair of inputs,
rounding allowance included: traced and per output; and for V4's own kernel. On planted clusters with residuals, centres
that are not means, random blocks of every activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; terms deleted, such as
the flips of signs.
"""

from __future__ import annotations

from functools import partial

import jax

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.majorants import Supremum
from ntkfusion.theory.blocks.evaluation import PairConstants, evaluate_unchecked
from ntkfusion.theory.blocks.pairs import FusedPair
from ntkfusion.theory.blocks.sign_bounds import SIGN_TERMS, SignTerms, sign_bound_of
from ntkfusion.verification.bounds import FAST, SUPREMUM, Compared, KernelBoundCheck, kernel_gap
from ntkfusion.verification.check import Check

SWITCHES: dict[str, tuple[str, float]] = {
    SUPREMUM: ("suprema of σ'' and σ''' divided by 50", 0.02),
    "value_exact": ("without the exact part of values", 0.0),
    "value_rest": ("without Σ_i R̄_i |sgn ã'|", 0.0),
    "value_flips": ("without flips of signs of activations", 0.0),
    "slope_exact": ("without the exact part of slopes", 0.0),
    "slope_rest": ("without Σ_i d_i S̄_i |sgn g̃'|", 0.0),
    "slope_flips": ("without flips of signs of slopes", 0.0),
}


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def compare(
    terms: SignTerms,
    original: MLPBlock,
    fused: MLPBlock,
    pair: FusedPair,
    constants: PairConstants,
    x: jax.Array,
    few: jax.Array | None,
) -> Compared:
    """Every pair of inputs; per output for a few."""
    side, traced = evaluate_unchecked(pair, x), kernel_gap(original, fused, x, x, "sign", "trace")
    found: Compared = {"tight": (traced, sign_bound_of(pair, side, side, constants, terms))}
    if few is not None:
        side, each = evaluate_unchecked(pair, few), kernel_gap(original, fused, few, few, "sign", "diagonal")
        found["tight per output"] = (each, sign_bound_of(pair, side, side, constants, terms, True))
    return found


def tight(supremum: Supremum, terms: SignTerms, pair: FusedPair, constants: PairConstants, x: jax.Array) -> jax.Array:
    """The tight bound, of given suprema and terms."""
    side = evaluate_unchecked(pair, x, supremum)
    return sign_bound_of(pair, side, side, constants, terms)


BOUND = KernelBoundCheck(("v1", "v4"), compare, tight, SIGN_TERMS, SWITCHES)

CHECK = Check(
    name="sign-kernel-bound",
    statement=(
        "For every pair of inputs the sign kernel of a fused block is no further from the original's than its bound "
        "says, which counts the signs that residuals may flip; traced and per output."
    ),
    run=BOUND.run,
)
