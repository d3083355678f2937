"""Theorem 3b: how far the SGD kernel of a fused block can be from the original's.

Every form of `sgd_bounds` for V4 against measured kernels, pair by pair of inputs, rounding allowance
included: traced, per output, and the Frobenius norm of the o×o matrix; and for V1's own, inflated kernel. On planted
clusters with residuals, centres that are not means, random blocks of every activation, and real blocks.
Controls: an original that is not the one the bound knows; suprema of σ'' and σ''' divided by 50; terms deleted.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.majorants import Supremum
from ntkfusion.theory.blocks.evaluation import PairConstants, evaluate_unchecked
from ntkfusion.theory.blocks.pairs import FusedPair
from ntkfusion.theory.blocks.sgd_bounds import SGD_TERMS, SGDTerms, frobenius_bound, sgd_bound_of
from ntkfusion.verification.bounds import FAST, SUPREMUM, Compared, KernelBoundCheck, kernel_gap
from ntkfusion.verification.check import Check

FORMS = ("tight", "first", "second", "cheap", "weights")
SWITCHES: dict[str, tuple[str, float]] = {
    SUPREMUM: ("suprema of σ'' and σ''' divided by 50", 0.02),
    "value_exact": ("without the exact part of values", 0.0),
    "value_mixed": ("without Σ_i |ã| R̄'_i and its mirror", 0.0),
    "value_products": ("without Σ_i Ē_i Ē'_i", 0.0),
    "slope_exact": ("without the exact part of slopes", 0.0),
    "slope_mixed": ("without Σ_i d_i S̄_i |g̃'| and its mirror", 0.0),
    "slope_products": ("without Σ_i d_i S̄_i S̄'_i", 0.0),
}


@partial(jax.jit, static_argnums=0, compiler_options=FAST)
def compare(
    terms: SGDTerms,
    original: MLPBlock,
    fused: MLPBlock,
    pair: FusedPair,
    constants: PairConstants,
    x: jax.Array,
    few: jax.Array | None,
) -> Compared:
    """Every form for every pair of inputs; per output and as matrices for a few, without them only the tight form."""
    side, traced = evaluate_unchecked(pair, x), kernel_gap(original, fused, x, x, "sgd", "trace")
    if few is None:
        return {"tight": (traced, sgd_bound_of(pair, side, side, constants, terms))}
    found: Compared = {form: (traced, sgd_bound_of(pair, side, side, constants, terms, form)) for form in FORMS}
    side, full = evaluate_unchecked(pair, few), kernel_gap(original, fused, few, few, "sgd", "full")
    each = jnp.diagonal(full, axis1=2, axis2=3)
    found["tight per output"] = (each, sgd_bound_of(pair, side, side, constants, terms, "tight", True))
    found["o×o Frobenius"] = (jnp.linalg.norm(full, axis=(2, 3)), frobenius_bound(pair, side, side, constants))
    return found


def tight(supremum: Supremum, terms: SGDTerms, pair: FusedPair, constants: PairConstants, x: jax.Array) -> jax.Array:
    """The tight bound, of given suprema and terms."""
    side = evaluate_unchecked(pair, x, supremum)
    return sgd_bound_of(pair, side, side, constants, terms)


BOUND = KernelBoundCheck(("v4", "v1"), compare, tight, SGD_TERMS, SWITCHES)

CHECK = Check(
    name="sgd-kernel-bound",
    statement=(
        "For every pair of inputs the SGD kernel of a fused block is no further from the original's than each form of "
        "its bound says: first and second order, the smaller of both, with Cauchy–Schwarz, from weights alone, per "
        "output and for the o×o matrix."
    ),
    run=BOUND.run,
)
