"""Theorem 3d: how far the signal that a fused block sends back can be from the original's.

The bound of `signal_bounds` against ‖∂f/∂x − ∂f̃/∂x‖_F by automatic differentiation, input by input,
rounding allowance included: on planted clusters with residuals, centres that are not means, random blocks of every
activation, and real blocks.
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
from ntkfusion.theory.blocks.pairs import FusedPair
from ntkfusion.theory.blocks.signal_bounds import SIGNAL_TERMS, SignalTerms, signal_bound_of
from ntkfusion.verification.bounds import FAST, SEVENTH, SUPREMUM, TAYLOR, Compared, InputBoundCheck
from ntkfusion.verification.check import Check

#: Inputs of real blocks: each has a Jacobian of o d numbers.
REAL_INPUTS = 8
SWITCHES: dict[str, tuple[str, float]] = {
    SUPREMUM: ("suprema of σ'' and σ''' divided by 50", 0.02),
    TAYLOR: SEVENTH,
    "slope_part": ("without Σ_i S̄_i ‖v_i‖ ‖w_i‖", 0.0),
    "spread_part": ("without the difference at equal slopes", 0.0),
}


@partial(jax.jit, static_argnames="terms", compiler_options=FAST)
def compare(terms: SignalTerms, original: MLPBlock, fused: MLPBlock, pair: FusedPair, x: jax.Array) -> Compared:
    """Every input."""
    gap = jax.vmap(jax.jacrev(lambda one: original(one) - fused(one)))(x)
    return {"norm": (jnp.linalg.norm(gap, axis=(1, 2)), signal_bound_of(pair, evaluate_unchecked(pair, x), terms))}


def bound(supremum: Supremum, terms: SignalTerms, pair: FusedPair, x: jax.Array) -> jax.Array:
    """The bound, of given suprema and terms."""
    return signal_bound_of(pair, evaluate_unchecked(pair, x, supremum), terms)


BOUND = InputBoundCheck(compare, "norm", bound, SIGNAL_TERMS, SWITCHES, "inputs", REAL_INPUTS)

CHECK = Check(
    name="signal-bound",
    statement=(
        "The Jacobian of a fused block's output with respect to its input, hence the signal it sends back, is no "
        "further from the original's than the bound says."
    ),
    run=BOUND.run,
)
