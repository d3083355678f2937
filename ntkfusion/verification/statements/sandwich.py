"""V1's SGD kernel is inflated: it lies between n_min and n_max times the original's, part by part.

With coinciding neurons the kernels of the parts W1, b1 and W2, as matrices over all inputs and outputs, fulfil
n_min K ≼ K̃ ≼ n_max K: the smallest eigenvalues of K̃ − n_min K and n_max K − K̃ are not negative, up to rounding. The
part of the output biases is the same in both, K̃ = K.
Controls: n_min + 1 and n_max − 1 in their places; with the part of the output biases no factor but 1 is between.
"""

from __future__ import annotations

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.compression.methods.mlp_fusion import fuse
from ntkfusion.kernels.oracles.dense_jacobian import block_function, jacobian
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.verification.bounds import FAST
from ntkfusion.verification.cases import (
    ACTIVATIONS,
    QUICK_ACTIVATIONS,
    D,
    clusters_of,
    normal,
    planted_block,
    planted_labels,
)
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckOutcome, CheckRow, Control

SIZES = (5, 4, 4, 3, 3, 2, 2)
INPUTS, OUTPUTS = 60, 2
#: Negative eigenvalues relative to the largest one of either side.
EXACT = 1e-12
PARTS = ("w1", "b1", "w2")


@partial(jax.jit, compiler_options=FAST)
def jacobians(block: MLPBlock, x: jax.Array) -> dict[str, jax.Array]:
    """∂f/∂parameters by reverse mode, [N, o, p] by parameter."""
    return jacobian(*block_function(block), x)


def kernels(block: MLPBlock, x: jax.Array) -> dict[str, np.ndarray]:
    """The dense kernel of every part, a matrix over inputs and outputs, and that of all but b2, "all"."""
    found: dict[str, np.ndarray] = {}
    for name, rows in jacobians(block, x).items():
        flat = np.asarray(rows).reshape(-1, rows.shape[-1])
        found[name] = flat @ flat.T
    return found | {"w1, b1 and w2 together": reduce(np.add, [found[name] for name in PARTS])}


def negative_part(difference: np.ndarray, size: float) -> float:
    """How far below 0 the smallest eigenvalue is, relative to the largest of the kernels."""
    return max(0.0, -float(np.linalg.eigvalsh(difference)[0]) / size)


def between(name: str, old: np.ndarray, new: np.ndarray, low: int, high: int) -> CheckRow:
    """The comparison low K ≼ K̃ ≼ high K."""
    size = float(np.linalg.eigvalsh(new)[-1])
    found = [negative_part(new - low * old, size), negative_part(high * old - new, size)]
    return CheckRow.of_arrays(f"{name}: negative eigenvalues", found, EXACT, of="matrices", exact=True)


def compare(activation: str, seed: int) -> tuple[list[CheckRow], list[Control], str]:
    """One block: a row per part, the controls, and the range of the eigenvalues of K̃ relative to K."""
    block, labels = planted_block(activation, seed, 0.0, SIZES, o=OUTPUTS), planted_labels(SIZES)
    x = jnp.asarray(normal(seed + 1, INPUTS, D))
    old, new = (kernels(each, x) for each in (block, fuse(block, clusters_of(block, labels), "v1")))
    low, high, rows, controls = min(SIZES), max(SIZES), [], []
    for name in old:
        if name == "b2":
            rows.append(between(f"{activation}, b2 unchanged", old[name], new[name], 1, 1))
            inside = between("", old[name], new[name], low, high)
            controls.append(Control(f"{activation}, b2 between n_min and n_max", not inside.holds))
            continue
        rows.append(between(f"{activation}, {name}", old[name], new[name], low, high))
        if name == "w2":
            for wrong in ((low + 1, high), (low, high - 1)):
                held = between("", old[name], new[name], *wrong).holds
                controls.append(Control(f"{activation}, {name} between {wrong[0]} and {wrong[1]}", not held))
    return rows, controls, eigenvalue_range(old["w2"], new["w2"])


def eigenvalue_range(old: np.ndarray, new: np.ndarray) -> str:
    """The generalised eigenvalues of K̃ relative to K, on the range of K."""
    values, vectors = np.linalg.eigh(old)
    keep = values > 1e-9 * values[-1]
    half = vectors[:, keep] / np.sqrt(values[keep])[None, :]
    found = np.linalg.eigvalsh(half.T @ new @ half)
    return f"from {found[0]:.6f} to {found[-1]:.6f}"


def run(scope: Scope) -> CheckOutcome:
    """A block per activation."""
    rows, controls, facts = [], [], {}
    for number, activation in enumerate(QUICK_ACTIVATIONS if scope.quick else ACTIVATIONS):
        found = compare(activation, 100 * scope.seed + 10 * number)
        rows += found[0]
        controls += found[1]
        facts[f"eigenvalues of w2's kernel relative to the original's, {activation}"] = found[2]
    facts["cluster sizes"] = ", ".join(map(str, SIZES))
    return CheckOutcome(tuple(rows), tuple(controls), facts)


CHECK = Check(
    name="sandwich",
    statement=(
        "If the neurons of every cluster coincide, the parts W1, b1 and W2 of V1's SGD kernel lie between n_min and "
        "n_max times those of the original, in the order of positive semidefinite matrices; the output biases' part is "
        "the same."
    ),
    run=run,
)
