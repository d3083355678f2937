"""Theorem 1: when the neurons of every cluster coincide, which variant of MLP Fusion keeps what exactly.

Run it: ``uv run theory_checks/zero_residual.py``. Exit code 1 if a statement fails, or if a control passes.

Statement: with coinciding neurons V1 keeps the output and the sign kernel, V4 the output and the SGD kernel, for every
activation; V3 does what V4 does for ReLU only; V2 keeps the output and neither kernel; V0 keeps nothing.
Control: one weight of the original is moved by 1e-3 after the clustering. Then nothing may be exact any more.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import ntkfusion as nf
from ntkfusion.clustering.kmeans import kmeans
from ntkfusion.compression.mlp_fusion import fuse
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.kernels.distance import relative_error

SIZES = (5, 4, 3, 2, 2, 1, 1, 1)
EXACT = 1e-12
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")
VARIANTS = ("v0", "v1", "v2", "v3", "v4")


def planted_block(activation: str, d: int = 12, o: int = 7) -> nf.MLPBlock:
    """A random block whose neurons coincide in groups of `SIZES`."""
    keys = jax.random.split(jax.random.key(0), 4)
    labels = jnp.repeat(jnp.arange(len(SIZES)), jnp.array(SIZES))
    w1 = jax.random.normal(keys[0], (d, len(SIZES)))[:, labels]
    b1 = jax.random.normal(keys[1], (len(SIZES),))[labels]
    w2 = jax.random.normal(keys[2], (len(SIZES), o))[labels]
    return nf.MLPBlock(w1, b1, w2, jax.random.normal(keys[3], (o,)), activation=activation)


def kept(variant: str, activation: str) -> set[str]:
    """What the theorem says is exact."""
    keeps_output = variant in ("v1", "v2", "v4") or (variant, activation) == ("v3", "relu")
    keeps_sgd = variant == "v4" or (variant, activation) == ("v3", "relu")
    exact = {"output": keeps_output, "sgd": keeps_sgd, "sign": variant == "v1"}
    return {name for name, holds in exact.items() if holds}


def errors(original: nf.MLPBlock, fused: nf.MLPBlock, x: jax.Array) -> dict[str, float]:
    """Relative Frobenius errors of output and full o×o kernels."""
    measured = {"output": relative_error(fused(x), original(x))}
    for kind in ("sgd", "sign"):
        old, new = (nf.block_kernel(block, x, kind=kind, trace=False) for block in (original, fused))
        measured[kind] = relative_error(new, old)
    return measured


def main() -> int:
    """Check every variant and activation, print the table, return the exit code."""
    console, failures = Console(), 0
    table = Table("σ", "variant", "output", "SGD", "sign", "exact", "control", "")
    for activation in ACTIVATIONS:
        block = planted_block(activation)
        clusters = kmeans(neuron_vectors(block), len(SIZES))
        x = jax.random.normal(jax.random.key(1), (40, block.model_width))
        moved = block.replace(w1=block.w1.at[0, 0].add(1e-3))
        for variant in VARIANTS:
            fused = fuse(block, clusters, variant)
            measured, control = errors(block, fused, x), errors(moved, fused, x)
            exact = {name for name, error in measured.items() if error <= EXACT}
            control_fails = min(control.values()) > EXACT
            holds = exact == kept(variant, activation) and control_fails
            failures += not holds
            numbers = [f"{error:.1e}" for error in measured.values()]
            named = ", ".join(sorted(exact)) or "nothing"
            verdict = "fails" if control_fails else "PASSES"
            table.add_row(activation, variant, *numbers, named, verdict, "PASS" if holds else "FAIL")
    console.print(table)
    pairs = 40 * 40 * len(ACTIVATIONS) * len(VARIANTS)
    console.print(
        f"Relative errors of outputs and of full o×o kernels on {pairs} pairs of inputs; exact: below {EXACT}.\n"
        "The control (a weight of the original moved by 1e-3) must fail."
    )
    console.print("PASS" if not failures else f"FAIL: {failures} of {len(ACTIVATIONS) * len(VARIANTS)}")
    return int(failures > 0)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sys.exit(main())
