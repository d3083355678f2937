"""Theorem 2 and the κ-family: fused blocks that follow the full block through training, step by step.

With coinciding neurons V1 has the outputs and parameters of the full block at every step of AdamW with ε = 0 (with or
without decoupled decay), of sign descent and of SGD with rates η/n_j; the block of κ has those of optimisers whose
steps scale as u(s g) = s^κ u(g). Plain SGD, ε > 0 and clipping by a global norm leave the
trajectory, which is checked, too. On planted duplicates, and on duplicated neurons of real blocks.
Controls: cluster sizes left out; one duplicate moved by 1e-6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ntkfusion as nf
from ntkfusion.compression.methods.mlp_fusion import Variant, fuse
from ntkfusion.theory.trajectories import Followed, Law, follow, loss, step, with_constants, zero_state
from ntkfusion.verification.cases import (
    ACTIVATIONS,
    QUICK_ACTIVATIONS,
    SIZES,
    clusters_of,
    inputs_of,
    normal,
    planted_block,
    planted_labels,
    repeated,
)
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckCurve, CheckOutcome, CheckRow, Control

STEPS = 200
#: Largest difference while the theorem holds; smallest one at the end where it does not.
EXACT, VISIBLE = 1e-12, 1e-3
#: How far outputs must go at least, so that staying together means something.
MOVED = 0.1
KAPPAS = (0.0, 0.25, 0.5, 1.0)
EPSILONS = (1e-10, 1e-8, 1e-6, 1e-4)
#: Inputs of real blocks, and numbers in their input weights before neurons are duplicated (quick, full).
REAL_INPUTS, REAL_WEIGHTS = 32, (4096, 16384)
#: Rates at which 200 steps do not end the training: then gradients are rounding errors, and ε = 0 makes full steps
#: of them.
ADAM_RATE, REAL_ADAM_RATE = 3e-3, 1e-4


@dataclasses.dataclass(frozen=True)
class Setting:
    """A block with duplicates, and what it is trained on.

    Attributes:
        name: for people.
        full: the block.
        labels: its groups of duplicates.
        x: inputs.
        y: targets.
        rate: a rate at which SGD is stable, for V1 too.
        adam: Adam with ε = 0.
        layer: of a real model, or None.
    """

    name: str
    full: nf.MLPBlock
    labels: np.ndarray
    x: jax.Array
    y: jax.Array
    rate: float
    adam: Law
    layer: int | None = None

    @property
    def sizes(self) -> jax.Array:
        """How many neurons each centre stands for."""
        return jnp.asarray(np.bincount(self.labels), jnp.float64)

    def fused(self, variant: Variant, kappa: float = 0.0) -> nf.MLPBlock:
        """The fused block of the groups."""
        return fuse(self.full, clusters_of(self.full, self.labels), variant, kappa)

    def follow(self, law: Law, fused: nf.MLPBlock | None = None, *, slow: bool = False, moved: float = 0.0) -> Followed:
        """The trajectories of the full block (its first input weight `moved`) and V1 or another fused block."""
        fused = with_constants(self.fused("v1") if fused is None else fused)
        full = with_constants(self.full.replace(w1=self.full.w1.at[0, 0].add(moved)))
        n = self.sizes if slow else jnp.ones_like(self.sizes)
        slowness = {"w1": n[None, :], "b1": n, "w2": n[:, None], "b2": jnp.ones(())}
        law = jax.tree.map(lambda number: jnp.asarray(number, jnp.float64), law)
        return follow(full, fused, jnp.asarray(self.labels), law, slowness, self.x, self.y, steps=STEPS)


def setting_of(name: str, full: nf.MLPBlock, labels: np.ndarray, x: jax.Array, seed: int, layer: Any = None) -> Setting:
    """Targets are the block's own outputs, moved by normal numbers of their size."""
    outputs = full(x)
    y = outputs + jnp.std(outputs) * jnp.asarray(normal(seed, *outputs.shape))
    # SGD on the mean loss is stable below 2 over the kernel's largest diagonal entry; V1's is up to max n times larger
    rate = 0.8 / float(jnp.max(jnp.diag(nf.block_kernel(full, x)))) / int(np.bincount(labels).max())
    adam = Law(rate=ADAM_RATE if layer is None else REAL_ADAM_RATE, beta1=0.9, beta2=0.999)
    return Setting(name, full, labels, x, y, rate, adam, layer)


def planted(activation: str, seed: int) -> Setting:
    """A random block with duplicates."""
    full = planted_block(activation, seed)
    return setting_of(activation, full, planted_labels(SIZES), inputs_of(seed), seed + 1)


def real_settings(scope: Scope) -> Iterator[Setting]:
    """Real blocks whose first neurons are duplicated, 1 to 7 times."""
    for model, layer in scope.layers():
        block, x = model.blocks[layer], model.inputs[layer][:REAL_INPUTS]
        count = min(block.hidden_width, max(2, REAL_WEIGHTS[not scope.quick] // block.model_width))
        sizes = [1 + 3 * neuron % 7 for neuron in range(count)]
        name = f"{model.name}, layer {layer}, {count} neurons as {sum(sizes)}"
        yield setting_of(name, repeated(block, sizes), planted_labels(sizes), x, scope.seed, layer)


def stays(setting: Setting, name: str, found: Followed) -> CheckRow:
    """Outputs and parameters agree before every step and after the last."""
    gaps = np.stack([found.gap, found.parameter_gap])
    return CheckRow.of_arrays(f"{setting.name}, {name}", gaps, EXACT, of="differences", layer=setting.layer, exact=True)


def leaves(setting: Setting, name: str, found: Followed) -> CheckRow:
    """The outputs differ in the end."""
    case = f"{setting.name}, {name} leaves it"
    return CheckRow.of_arrays(case, found.gap[-1], VISIBLE, of="differences", layer=setting.layer, at_least=True)


def theorem(setting: Setting) -> list[CheckRow]:
    """What V1 stays with."""
    sgd = Law(setting.rate, kappa=1.0)
    runs = {
        "V1, AdamW, ε = 0, decay 0": setting.follow(setting.adam),
        "V1, AdamW, ε = 0, decay 0.1": setting.follow(dataclasses.replace(setting.adam, decay=0.1)),
        "V1, sign descent": setting.follow(Law(1e-3)),
        "V1, SGD with rates η/n": setting.follow(sgd, slow=True),
    }
    moved = [found.moved[-1] for found in runs.values()]
    case = f"{setting.name}, training moves the outputs"
    return [
        *(stays(setting, name, found) for name, found in runs.items()),
        leaves(setting, "V1, plain SGD", setting.follow(sgd)),
        CheckRow.of_arrays(case, moved, MOVED, of="runs", layer=setting.layer, at_least=True),
    ]


def family(setting: Setting) -> list[CheckRow]:
    """The blocks of κ, with momentum and decoupled decay."""
    rows = []
    for kappa in KAPPAS:
        rate = setting.adam.rate ** (1 - kappa) * setting.rate**kappa
        law = dataclasses.replace(setting.adam, rate=rate, kappa=kappa, decay=0.1)
        found = setting.follow(law, setting.fused("kappa", kappa))
        rows.append(stays(setting, f"κ = {kappa:g}, decay 0.1", found))
    return rows


def breaks(setting: Setting) -> tuple[list[CheckRow], CheckCurve]:
    """Clipping leaves the trajectory, and ε > 0 the more the larger it is."""
    rows = [
        leaves(
            setting, "V1, AdamW, clipped by global norm", setting.follow(dataclasses.replace(setting.adam, clip=1.0))
        )
    ]
    gaps = [float(setting.follow(dataclasses.replace(setting.adam, epsilon=epsilon)).gap[-1]) for epsilon in EPSILONS]
    case = f"{setting.name}, V1, Adam: ε = {EPSILONS[0]:g} leaves it, each larger one further"
    smaller, larger = np.array([10 * EXACT, *gaps[:-1]]), np.array(gaps)
    rows.append(CheckRow.of_arrays(case, larger, 3 * smaller, of="values of ε", at_least=True))
    lines = {setting.name: (np.array(EPSILONS), larger)}
    return rows, CheckCurve("V1 beside the full block after 200 steps of Adam", "ε", "largest |f − f̃|", lines, log=True)


def controls(setting: Setting) -> list[Control]:
    """What must leave the trajectory."""
    without, moved = setting.follow(setting.adam, setting.fused("v0")), setting.follow(setting.adam, moved=1e-6)
    return [
        Control(f"{setting.name}: cluster sizes left out", not stays(setting, "", without).holds),
        Control(f"{setting.name}: one duplicate moved by 1e-6", not stays(setting, "", moved).holds),
    ]


def same_as_optax(setting: Setting) -> CheckRow:
    """The steps of this check are those of optax's AdamW."""
    block, law = setting.full, dataclasses.replace(setting.adam, decay=0.1)
    optimiser = optax.adamw(law.rate, law.beta1, law.beta2, eps=1e-30, weight_decay=law.decay)
    ones = {name: jnp.ones(()) for name in block.parameters()}

    @jax.jit
    def both(carry: Any, count: jax.Array) -> Any:
        ours, theirs = carry
        gradient = jax.grad(lambda p: loss(block, p, setting.x, setting.y))
        ours = step(law, ones, count, ours[0], ours[1], gradient(ours[0]))
        updates, state = optimiser.update(gradient(theirs[0]), theirs[1], theirs[0])
        return ours, (optax.apply_updates(theirs[0], updates), state)

    start = dict(block.parameters())
    carry = ((start, zero_state(block)), (start, optimiser.init(start)))
    with jax.numpy_dtype_promotion("standard"):  # optax divides by 1 − β^t with an integer t
        for count in range(20):
            carry = both(carry, jnp.asarray(count, jnp.float64))
    gaps = [np.abs(np.asarray(carry[0][0][name] - carry[1][0][name])).ravel() for name in start]
    return CheckRow.of_arrays("this check's AdamW is optax's", np.concatenate(gaps), EXACT, of="weights", exact=True)


def curves(setting: Setting) -> list[CheckCurve]:
    """Both trajectories on top of each other, and how far apart they are."""
    runs = {
        "AdamW, ε = 0": setting.follow(setting.adam),
        "SGD, rates η/n": setting.follow(Law(setting.rate, kappa=1.0), slow=True),
        "AdamW, ε = 1e-6": setting.follow(dataclasses.replace(setting.adam, epsilon=1e-6)),
        "plain SGD": setting.follow(Law(setting.rate, kappa=1.0)),
    }
    steps, outputs, gaps = np.arange(STEPS + 1), {}, {}
    for name, found in runs.items():
        if name in ("AdamW, ε = 0", "SGD, rates η/n"):
            outputs[f"full block, {name.removesuffix(', rates η/n')}"] = (steps, np.asarray(found.outputs))
        if name != "AdamW, ε = 1e-6":
            outputs[f"V1, {name}"] = (steps, np.asarray(found.fused_outputs))
        gaps[name] = (steps[1:], np.maximum(np.asarray(found.gap)[1:], 1e-17))
    title = f"{setting.name}: one output during training"
    return [
        CheckCurve(title, "step", "f(x)", outputs),
        CheckCurve(f"{setting.name}: distance of V1 from the full block", "step", "largest |f − f̃|", gaps, log=True),
    ]


def run(scope: Scope) -> CheckOutcome:
    """Planted duplicates of several activations, and real blocks."""
    rows, found, drawn = [], [], []
    for number, activation in enumerate(QUICK_ACTIVATIONS if scope.quick else ACTIVATIONS):
        setting = planted(activation, scope.seed + 10 * number)
        rows += theorem(setting) + family(setting)
        found += controls(setting)
        if activation == "gelu":
            broken, curve = breaks(setting)
            rows += [*broken, same_as_optax(setting)]
            drawn += [*curves(setting), curve]
    for setting in real_settings(scope):
        rows += theorem(setting)
        found += controls(setting)
    return CheckOutcome(tuple(rows), tuple(found), {}, tuple(drawn))


CHECK = Check(
    name="trajectories",
    statement=(
        "If the neurons of every cluster coincide, V1 has the outputs and parameters of the full block at every step "
        "of AdamW with ε = 0, sign descent and SGD with rates η/n, and the block of κ those of optimisers whose steps "
        "scale as s^κ; plain SGD, ε > 0 and global-norm clipping leave the trajectory."
    ),
    run=run,
)
