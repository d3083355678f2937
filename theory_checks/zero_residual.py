"""Theorem 1: when the neurons of every cluster coincide, which variant of MLP Fusion keeps what exactly.

Run it: ``uv run theory_checks/zero_residual.py``. Exit code 1 if a statement fails, or if a control passes.

With coinciding neurons V1 keeps the output and the sign kernel, V4 the output and the SGD kernel, for every activation;
V3 does what V4 does for ReLU only; V2 keeps the output and neither kernel; V0 keeps nothing. What a variant does not
keep is checked too: there the error must be visible.
Controls: one weight of the original is moved by 1e-3 after the clustering; V1 without its cluster sizes.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp

import ntkfusion as nf
from ntkfusion.clustering.kmeans import kmeans
from ntkfusion.compression.mlp_fusion import fuse
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.kernels.distance import relative_error
from ntkfusion.theory.check import Check, Control, Outcome, Row, Scope
from ntkfusion.theory.run_check import run_alone

SIZES = (5, 4, 3, 2, 2, 1, 1, 1)
INPUTS = 40
#: Relative errors: at most the first where something is kept, at least the second where it is not.
EXACT, VISIBLE = 1e-12, 1e-3
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
VARIANTS = ("v0", "v1", "v2", "v3", "v4")


def planted_block(activation: str, seed: int, d: int = 12, o: int = 7) -> nf.MLPBlock:
    """A random block whose neurons coincide in groups of `SIZES`."""
    keys = jax.random.split(jax.random.key(seed), 4)
    labels = jnp.repeat(jnp.arange(len(SIZES)), jnp.array(SIZES))
    w1 = jax.random.normal(keys[0], (d, len(SIZES)))[:, labels]
    b1 = jax.random.normal(keys[1], (len(SIZES),))[labels]
    w2 = jax.random.normal(keys[2], (len(SIZES), o))[labels]
    return nf.MLPBlock(w1, b1, w2, jax.random.normal(keys[3], (o,)), activation=activation)


def kept(variant: str, activation: str) -> set[str]:
    """What the theorem says is exact."""
    keeps_output = variant in ("v1", "v2", "v4") or (variant, activation) == ("v3", "relu")
    keeps_sgd = variant == "v4" or (variant, activation) == ("v3", "relu")
    exact = {"output": keeps_output, "SGD kernel": keeps_sgd, "sign kernel": variant == "v1"}
    return {name for name, holds in exact.items() if holds}


def errors(original: nf.MLPBlock, fused: nf.MLPBlock, x: jax.Array) -> dict[str, float]:
    """Relative Frobenius errors of output and full o×o kernels."""
    measured = {"output": relative_error(fused(x), original(x))}
    for kind, name in (("sgd", "SGD kernel"), ("sign", "sign kernel")):
        old, new = (nf.block_kernel(block, x, kind=kind, trace=False) for block in (original, fused))
        measured[name] = relative_error(new, old)
    return measured


def compare(activation: str, variant: str, seed: int) -> tuple[list[Row], list[Control]]:
    """One variant of one block: a row per quantity, and its controls."""
    block = planted_block(activation, seed)
    fused = fuse(block, kmeans(neuron_vectors(block), len(SIZES)), variant)
    x = jax.random.normal(jax.random.key(seed + 1), (INPUTS, block.model_width))
    exact, rows = kept(variant, activation), []
    for name, error in errors(block, fused, x).items():
        if name in exact:
            rows.append(
                Row.of_arrays(f"{activation}, {variant} keeps the {name}", error, EXACT, of="errors", exact=True)
            )
        else:
            rows.append(
                Row.of_arrays(f"{activation}, {variant} loses the {name}", VISIBLE, error, of="errors", exact=True)
            )
    moved = errors(block.replace(w1=block.w1.at[0, 0].add(1e-3)), fused, x)
    failed = all(moved[name] > EXACT for name in exact)
    controls = [Control(f"{activation}, {variant}: a weight of the original moved by 1e-3", failed)] if exact else []
    if variant == "v1":
        without = errors(block, fused.replace(q=None), x)
        controls.append(Control(f"{activation}, v1 without P", all(without[name] > EXACT for name in exact)))
    return rows, controls


def run(scope: Scope) -> Outcome:
    """Every variant and activation."""
    found = [compare(activation, variant, scope.seed) for activation in ACTIVATIONS for variant in VARIANTS]
    rows = tuple(row for part, _ in found for row in part)
    controls = tuple(control for _, part in found for control in part)
    pairs = {"kernels": f"full o×o kernels on {INPUTS * INPUTS} pairs of inputs each, relative Frobenius errors"}
    return Outcome(rows, controls, pairs)


CHECK = Check(
    name="zero-residual",
    statement=(
        "If the neurons of every cluster coincide, V1 keeps output and sign kernel, V4 output and SGD kernel, V3 the "
        "same as V4 for ReLU only, V2 the output alone and V0 nothing."
    ),
    run=run,
)

if __name__ == "__main__":
    sys.exit(run_alone(CHECK))
