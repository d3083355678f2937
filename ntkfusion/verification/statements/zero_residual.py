"""Theorem 1: when the neurons of every cluster coincide, which variant of MLP Fusion keeps what exactly.

With coinciding neurons V1 keeps the output and the sign kernel, V4 the output and the SGD kernel, for every activation;
V3 does what V4 does for ReLU only; V2 keeps the output and neither kernel; V0 keeps nothing. What a variant does not
keep is checked too: there the error must be visible.
Controls: one weight of the original is moved by 1e-3 after the clustering; V1 without its cluster sizes.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from ntkfusion.compression.methods.mlp_fusion import Variant, fuse
from ntkfusion.kernels.block.dense import terms
from ntkfusion.kernels.block.terms import evaluate as evaluate_terms
from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.trajectories import with_constants
from ntkfusion.verification.bounds import FAST
from ntkfusion.verification.cases import (
    ACTIVATIONS,
    INPUTS,
    SIZES,
    clusters_of,
    inputs_of,
    planted_block,
    planted_labels,
)
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckOutcome, CheckRow, Control

#: Relative errors: at most the first where something is kept, at least the second where it is not.
EXACT, VISIBLE = 1e-12, 1e-3
VARIANTS: tuple[Variant, ...] = ("v0", "v1", "v2", "v3", "v4")


def kept(variant: str, activation: str) -> set[str]:
    """What the theorem says is exact."""
    keeps_output = variant in ("v1", "v2", "v4") or (variant, activation) == ("v3", "relu")
    keeps_sgd = variant == "v4" or (variant, activation) == ("v3", "relu")
    exact = {"output": keeps_output, "SGD kernel": keeps_sgd, "sign kernel": variant == "v1"}
    return {name for name, holds in exact.items() if holds}


@partial(jax.jit, compiler_options=FAST)
def evaluate(block: MLPBlock, x: jax.Array) -> dict[str, jax.Array]:
    """Output and full o×o kernels, in the closed forms behind `block_kernel`."""
    return {
        "output": block(x),
        "SGD kernel": full_kernel(block, x, "sgd"),
        "sign kernel": full_kernel(block, x, "sign"),
    }


def full_kernel(block: MLPBlock, x: jax.Array, kind: Kind) -> jax.Array:
    """[N, N, o, o]."""
    return jnp.asarray(sum(evaluate_terms(terms(block, x, x, kind), "full", (INPUTS, INPUTS)).values()))


def errors(original: MLPBlock, fused: MLPBlock, x: jax.Array) -> dict[str, float]:
    """Relative Frobenius errors of output and full o×o kernels."""
    old, new = (evaluate(with_constants(block), x) for block in (original, fused))
    return {name: float(jnp.linalg.norm(new[name] - old[name]) / jnp.linalg.norm(old[name])) for name in old}


def compare(activation: str, variant: Variant, seed: int) -> tuple[list[CheckRow], list[Control]]:
    """One variant of one block: a row per quantity, and its controls."""
    block = planted_block(activation, seed)
    fused, x = fuse(block, clusters_of(block, planted_labels(SIZES)), variant), inputs_of(seed)
    exact, rows = kept(variant, activation), []
    for name, error in errors(block, fused, x).items():
        keeps, lost = name in exact, f"{activation}, {variant} loses the {name}"
        row = CheckRow.of_arrays(f"{activation}, {variant} keeps the {name}", error, EXACT, of="errors", exact=True)
        rows.append(row if keeps else CheckRow.of_arrays(lost, error, VISIBLE, of="errors", at_least=True))
    moved = errors(block.replace(w1=block.w1.at[0, 0].add(1e-3)), fused, x)
    failed = all(moved[name] > EXACT for name in exact)
    controls = [Control(f"{activation}, {variant}: a weight of the original moved by 1e-3", failed)] if exact else []
    if variant == "v1":
        without = errors(block, fused.replace(q=None), x)
        controls.append(Control(f"{activation}, v1 without P", all(without[name] > EXACT for name in exact)))
    return rows, controls


def run(scope: Scope) -> CheckOutcome:
    """Every variant and activation."""
    found = [compare(activation, variant, scope.seed) for activation in ACTIVATIONS for variant in VARIANTS]
    rows = tuple(row for part, _ in found for row in part)
    controls = tuple(control for _, part in found for control in part)
    pairs = {"kernels": f"full o×o kernels on {INPUTS * INPUTS} pairs of inputs each, relative Frobenius errors"}
    return CheckOutcome(rows, controls, pairs)


CHECK = Check(
    name="zero-residual",
    statement=(
        "If the neurons of every cluster coincide, V1 keeps output and sign kernel, V4 output and SGD kernel, V3 the "
        "same as V4 for ReLU only, V2 the output alone and V0 nothing."
    ),
    run=run,
)
