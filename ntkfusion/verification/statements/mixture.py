"""Mixtures of experts: experts fused one by one, the router kept.

Tokens keep their experts and weights p, so a dense statement holds with the factors of the routing. With coinciding
neurons V1 keeps the output and the sign kernel, V4 the output and the SGD kernel, the router trained or frozen. With
residuals, of another size in every expert, |f − f̃| ≤ p B_e and |K − K̃| ≤ 1[e = e'] p p' B_e (p B_e in the sign kernel),
where B_e is the expert's own bound, plus the router's part if it is trained.
Controls: an expert changed behind the bound's back; the bounds of the experts exchanged; the router's part left out;
cluster sizes left out.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntkfusion.compression.methods.mlp_fusion import Variant, fuse
from ntkfusion.kernels.block.mixture import parts
from ntkfusion.kernels.block.program import block_terms
from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.mixture import MixtureBlock
from ntkfusion.theory.blocks.mixture_bounds import mixture_kernel_bound, mixture_output_bound
from ntkfusion.theory.trajectories import with_constants
from ntkfusion.verification.bounds import FAST, perturbed
from ntkfusion.verification.cases import D, clusters_of, normal, planted_block, planted_labels
from ntkfusion.verification.check import Check, Scope
from ntkfusion.verification.outcome import CheckOutcome, CheckRow, Control

SIZES = (5, 4, 3, 2, 2, 1, 1, 1)
INPUTS = 40
#: Residuals of the experts.
EXPERTS = (1e-3, 0.3, 1e-2)
#: Largest error relative to the largest entry where something is exact.
EXACT = 1e-12
KINDS: tuple[tuple[Kind, Variant], ...] = (("sgd", "v4"), ("sign", "v1"))


def mixture(activation: str, seed: int, scale: float) -> MixtureBlock:
    """Experts without biases whose neurons coincide up to `scale` times `EXPERTS`."""
    experts = [
        planted_block(activation, seed + index, scale * residual, SIZES).replace(b1=None, b2=None)
        for index, residual in enumerate(EXPERTS)
    ]
    return MixtureBlock.stack(jnp.asarray(normal(seed + 50, D, len(EXPERTS))), experts)


def exchanged(block: MixtureBlock, experts: list[MLPBlock]) -> MixtureBlock:
    """The same router with other experts."""
    return MixtureBlock.stack(block.router, experts, train_router=block.train_router)


def experts_of(block: MixtureBlock) -> list[MLPBlock]:
    """The experts as blocks of their own."""
    return [block.expert(index) for index in range(block.num_experts)]


def fused(block: MixtureBlock, variant: Variant) -> MixtureBlock:
    """Every expert fused on its own."""
    labels = planted_labels(SIZES)
    return exchanged(
        block, [with_constants(fuse(each, clusters_of(each, labels), variant)) for each in experts_of(block)]
    )


def frozen(block: MixtureBlock) -> MixtureBlock:
    """The router a constant."""
    return MixtureBlock(block.router, block.experts, train_router=False)


@partial(jax.jit, compiler_options=FAST)
def evaluate(block: MixtureBlock, x: jax.Array) -> dict[str, Any]:
    """The output, and both traced kernels by parameter in the closed forms behind `block_kernel`."""
    names = tuple(block.parameters())
    kernels = {kind: parts(block, x, x, kind, "trace", names, block_terms) for kind, _ in KINDS}
    return {"output": block(x), **kernels}


def kernels(block: MixtureBlock, x: jax.Array, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """The traced kernel with the router trained, and with it frozen: what the experts alone have."""
    found = evaluate(block, x)[kind]
    experts = np.sum([np.asarray(part) for name, part in found.items() if name != "router"], axis=0)
    return experts + np.asarray(found["router"]), experts


def exact_rows(activation: str, block: MixtureBlock, x: jax.Array) -> tuple[list[CheckRow], list[Control]]:
    """Coinciding neurons."""
    rows, controls, output = [], [], np.asarray(evaluate(block, x)["output"])
    for kind, variant in KINDS:
        small = fused(block, variant)
        bare = exchanged(small, [each.replace(q=jnp.ones(each.hidden_width, x.dtype)) for each in experts_of(small)])
        old = kernels(block, x, kind)
        for name, other in (("", small), ("without cluster sizes", bare)):
            errors = [np.abs(np.asarray(evaluate(other, x)["output"]) - output).max() / np.abs(output).max()]
            errors += [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(kernels(other, x, kind), old, strict=True)]
            row = CheckRow.of_arrays(
                f"{activation}, {variant} keeps output and {kind} kernel, router trained and frozen",
                errors,
                EXACT,
                of="errors",
                exact=True,
            )
            if name:
                controls.append(Control(f"{activation}, {variant} {name}", all(error > EXACT for error in errors)))
            else:
                rows.append(row)
    return rows, controls


def bound_rows(activation: str, block: MixtureBlock, x: jax.Array) -> tuple[list[CheckRow], list[Control]]:
    """Residuals."""
    rows, controls = [], []
    experts = experts_of(block)
    changed = exchanged(block, [perturbed(experts[0]), *experts[1:]])
    for kind, variant in KINDS:
        small = fused(block, variant)
        (old, old_frozen), (new, new_frozen) = (kernels(each, x, kind) for each in (block, small))
        trained = np.asarray(mixture_kernel_bound(block, small, x, kind=kind))
        alone = np.asarray(mixture_kernel_bound(frozen(block), frozen(small), x, kind=kind))
        rows += [
            CheckRow.of_arrays(f"{activation}, {kind} kernel, router trained", np.abs(old - new), trained),
            CheckRow.of_arrays(f"{activation}, {kind} kernel, router frozen", np.abs(old_frozen - new_frozen), alone),
        ]
        rolled = (exchanged(each, [*experts_of(each)[1:], experts_of(each)[0]]) for each in (block, small))
        exchanged_old, exchanged_new = (frozen(each) for each in rolled)
        others = np.asarray(mixture_kernel_bound(exchanged_old, exchanged_new, x, kind=kind))
        moved = kernels(changed, x, kind)[0]
        controls += [
            _control(f"{activation}, {kind} kernel: an expert changed behind the bound's back", moved - new, trained),
            _control(f"{activation}, {kind} kernel: experts' bounds exchanged", old_frozen - new_frozen, others),
            _control(f"{activation}, {kind} kernel: the trained router's part left out", old - new, alone),
        ]
    small = fused(block, "v1")
    bound = np.asarray(mixture_output_bound(block, small, x))
    outputs = [np.asarray(evaluate(each, x)["output"]) for each in (small, block, changed)]
    gaps = [np.linalg.norm(each - outputs[0], axis=1) for each in outputs[1:]]
    rows.append(CheckRow.of_arrays(f"{activation}, output", gaps[0], bound, of="inputs"))
    controls.append(_control(f"{activation}, output: an expert changed behind the bound's back", gaps[1], bound))
    return rows, controls


def _control(name: str, difference: np.ndarray, bound: np.ndarray) -> Control:
    return Control(name, not CheckRow.of_arrays("", np.abs(difference), bound).holds)


def run(scope: Scope) -> CheckOutcome:
    """A mixture as in Switch (ReLU, no biases); in full mode one with GELU, too."""
    rows, controls, facts = [], [], {}
    for number, activation in enumerate(("relu",) if scope.quick else ("relu", "gelu")):
        seed = 1000 * scope.seed + 100 * number
        x = jnp.asarray(normal(seed + 60, INPUTS, D))
        for found in (
            exact_rows(activation, mixture(activation, seed, 0.0), x),
            bound_rows(activation, mixture(activation, seed, 1.0), x),
        ):
            rows += found[0]
            controls += found[1]
        tokens = np.bincount(np.asarray(mixture(activation, seed, 0.0).route(x)[0]), minlength=len(EXPERTS))
        facts[f"{activation}, tokens per expert"] = ", ".join(map(str, tokens))
    return CheckOutcome(tuple(rows), tuple(controls), facts)


CHECK = Check(
    name="mixture",
    statement=(
        "Where experts are fused one by one and the router is kept, what the dense block's theorems say holds for "
        "every expert with the routing's factors: Theorem 1, and |K − K̃| ≤ 1[e = e'] p p' B_e plus the "
        "trained router's part."
    ),
    run=run,
)
