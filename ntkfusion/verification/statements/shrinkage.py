"""How fast errors shrink with the residuals: output and SGD kernel quadratically, the sign kernel like flipped signs.

Planted clusters whose neurons differ from the cluster's mean by ε times fixed normal numbers, ε from 1e-4 to 1e-1. For
smooth activations the fitted exponent of the mean error of output (V1) and SGD kernel (V4) is 2 ± 0.1. ReLU's slopes
jump: its SGD kernel shrinks more slowly. The sign kernel (V1) has no modulus of continuity: its mean error goes with
the fraction of signs that differ, of activations and of slopes.
Controls: a member of each cluster for its centre, instead of the mean, makes the output error linear; the square of the
fraction does not go with the sign kernel; ReLU's SGD kernel is not quadratic, and that of smooth activations is.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.compression.methods.mlp_fusion import fuse
from ntkfusion.compression.neurons import neuron_vectors
from ntkfusion.models.activations import get_activation
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.trajectories import with_constants
from ntkfusion.verification.bounds import FAST, kernel_gap
from ntkfusion.verification.cases import (
    ACTIVATIONS,
    QUICK_ACTIVATIONS,
    SIZES,
    D,
    clusters_of,
    normal,
    planted_block,
    planted_labels,
)
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckCurve, CheckOutcome, CheckRow, Control

#: Evaluated inputs; training inputs, of which there must be many for small fractions of flipped signs.
INPUTS, TRAINING = 30, 10_000
EPSILONS = np.logspace(-4, -1, 10)
#: Around the exponent 2; what a slower kernel's exponent is at most; how far a ratio may be from the median one.
WITHIN, SLOWER, FACTOR = 0.1, 1.7, 3.0
#: Fewer differing signs than this make no fraction.
SIGNS = 20


@partial(jax.jit, compiler_options=FAST)
def errors(original: MLPBlock, v1: MLPBlock, v4: MLPBlock, labels: jax.Array, x: jax.Array, z: jax.Array) -> dict:
    """Mean errors, and the fraction of signs at z that differ."""
    output = jnp.linalg.norm(original(z) - v1(z), axis=1)
    sgd = kernel_gap(original, v4, x, z, "sgd", "trace")
    sign = kernel_gap(original, v1, x, z, "sign", "trace")
    sigma, h, centre = get_activation(original.activation), original.preactivation(z), v1.preactivation(z)[:, labels]
    flips = jnp.stack([of(h) != of(centre) for of in (sigma.value_sign, sigma.derivative_sign)])
    means = {"output": output, "SGD kernel": sgd, "sign kernel": sign, "flipped signs": flips.astype(x.dtype)}
    return {name: jnp.mean(values) for name, values in means.items()}


def sweep(activation: str, seed: int, centres: str = "means") -> dict[str, np.ndarray]:
    """The errors of `errors` for every ε."""
    labels = planted_labels(SIZES)
    x, z = (jnp.asarray(normal(seed + part, number, D)) for part, number in ((1, INPUTS), (2, TRAINING)))
    found = []
    for epsilon in EPSILONS:
        original = planted_block(activation, seed, epsilon)
        clusters = clusters_of(original, labels)
        if centres == "members":
            first = np.concatenate([[0], np.cumsum(SIZES)[:-1]])
            clusters = dataclasses.replace(clusters, centroids=neuron_vectors(original)[first])
        v1, v4 = (with_constants(fuse(original, clusters, variant)) for variant in ("v1", "v4"))
        found.append(errors(original, v1, v4, jnp.asarray(labels), x, z))
    return {name: np.array([float(each[name]) for each in found]) for name in found[0]}


def exponent(epsilons: np.ndarray, values: np.ndarray) -> float:
    """The slope of a straight line through logarithms."""
    return float(np.polyfit(np.log(epsilons), np.log(values), 1)[0])


def quadratic(name: str, values: np.ndarray) -> CheckRow:
    """An exponent of 2 ± 0.1."""
    found = exponent(EPSILONS, values)
    return CheckRow.of_arrays(f"{name}: |exponent − 2|", abs(found - 2), WITHIN, of="exponents", exact=True)


def slower(name: str, values: np.ndarray) -> CheckRow:
    """An exponent well below 2."""
    case = f"{name}: exponent"
    return CheckRow.of_arrays(case, exponent(EPSILONS, values), SLOWER, of="exponents", exact=True)


def proportional(name: str, values: np.ndarray, fractions: np.ndarray, power: float = 1.0) -> CheckRow:
    """One is a constant times the other up to a factor, where enough signs differ for a fraction to mean something."""
    enough = fractions * 2 * TRAINING * sum(SIZES) >= SIGNS
    ratios = values[enough] / fractions[enough] ** power
    off = np.exp(np.abs(np.log(ratios / np.median(ratios))))
    return CheckRow.of_arrays(f"{name}: off the median ratio by a factor", off, FACTOR, of="values of ε", exact=True)


def rows_of(activation: str, found: dict[str, np.ndarray]) -> list[CheckRow]:
    """What the statement says of one activation."""
    rate = slower if activation == "relu" else quadratic
    return [
        quadratic(f"{activation}, output", found["output"]),
        rate(f"{activation}, SGD kernel", found["SGD kernel"]),
        proportional(f"{activation}, sign kernel and flipped signs", found["sign kernel"], found["flipped signs"]),
    ]


def controls_of(activation: str, found: dict[str, np.ndarray], seed: int) -> list[Control]:
    """What must fail."""
    output = sweep(activation, seed, "members")["output"]
    members, squares = quadratic("", output), proportional("", found["sign kernel"], found["flipped signs"], 2.0)
    wrong_rate = (quadratic if activation == "relu" else slower)("", found["SGD kernel"])
    return [
        Control(f"{activation}: members for centres; exponent {exponent(EPSILONS, output):.2f}", not members.holds),
        Control(f"{activation}: sign kernel and the square of the fraction", not squares.holds),
        Control(f"{activation}: the SGD kernel's rate is the other one", not wrong_rate.holds),
    ]


def run(scope: Scope) -> CheckOutcome:
    """A sweep per activation."""
    rows, controls, curves, facts = [], [], [], {}
    for number, activation in enumerate(QUICK_ACTIVATIONS if scope.quick else ACTIVATIONS):
        seed = 100 * scope.seed + 10 * number
        found = sweep(activation, seed)
        rows += rows_of(activation, found)
        controls += controls_of(activation, found, seed)
        names = ("output", "SGD kernel")
        facts[activation] = ", ".join(f"{name} ε^{exponent(EPSILONS, found[name]):.3f}" for name in names)
        lines = {name: (EPSILONS, np.where(values > 0, values, np.nan)) for name, values in found.items()}
        curves.append(
            CheckCurve(f"{activation}: errors and residuals", "ε", "mean error, fraction of signs", lines, log=True)
        )
    return CheckOutcome(tuple(rows), tuple(controls), facts, tuple(curves))


CHECK = Check(
    name="shrinkage",
    statement=(
        "With centres that are means, errors of output and SGD kernel shrink quadratically with the residuals for "
        "smooth activations, ReLU's SGD kernel more slowly, the sign kernel's like the fraction of signs that differ."
    ),
    run=run,
)
