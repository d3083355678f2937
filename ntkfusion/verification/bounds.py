"""What the checks of bounds share: rows from comparisons, and controls that break a bound on purpose.

A bound takes its terms as an argument, a named tuple of functions: `term_controls` hands it each of them scaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.compression.methods.mlp_fusion import Variant
from ntkfusion.kernels.block.dense import terms as kernel_terms
from ntkfusion.kernels.block.terms import Outputs
from ntkfusion.kernels.block.terms import evaluate as evaluate_terms
from ntkfusion.kernels.kinds import Kind
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.theory.activations.majorants import Supremum
from ntkfusion.theory.activations.suprema import supremum_on
from ntkfusion.theory.blocks.evaluation import PairConstants, constants_of
from ntkfusion.theory.blocks.pairs import FusedPair, pair_blocks
from ntkfusion.theory.trajectories import with_constants
from ntkfusion.verification.cases import BlockCase, real_cases, synthetic_cases
from ntkfusion.verification.check import Scope
from ntkfusion.verification.outcome import CheckOutcome, CheckRow, Control

#: By form of the bound what was measured and what bounds it.
Compared = dict[str, tuple[Array, Array]]


#: A named tuple of functions: the terms of a bound.
Terms = Any

#: A bound as a function of suprema, terms and its other arguments.
SwitchedBound = Callable[..., Array]


#: Arrays of synthetic blocks are small: compiling is what takes time.
FAST = {"xla_backend_optimization_level": 0}


#: Inputs of comparisons that hold o or o² numbers per pair, of synthetic and of real blocks.
FEW, REAL_FEW = 6, 2


def few_inputs(case: BlockCase, scope: Scope) -> Float[Array, "N d"] | None:
    """The inputs of such comparisons; in quick mode only of synthetic blocks of one activation."""
    if scope.quick and (case.is_real or case.original.activation != "gelu"):
        return None
    return case.x[: REAL_FEW if case.is_real else FEW]


def kernel_gap(
    original: MLPBlock, fused: MLPBlock, x: Float[Array, "N d"], z: Float[Array, "M d"], kind: Kind, outputs: Outputs
) -> Array:
    """|K − K̃| by the closed forms behind `block_kernel`; `outputs` is "trace" (their mean), "diagonal" or "full"."""
    pairs = (x.shape[0], z.shape[0])
    old, new = (sum(evaluate_terms(kernel_terms(b, x, z, kind), outputs, pairs).values()) for b in (original, fused))
    return jnp.abs(old - new)


def rows_of(found: Iterable[tuple[BlockCase, Compared]], of: str) -> tuple[CheckRow, ...]:
    """A row per form and kind of case: synthetic blocks of all activations together, real ones one by one.

    Args:
        found: cases with their comparisons.
        of: what is counted.

    Returns:
        The rows, those of one case beside each other.
    """
    groups: dict[tuple[str, str, int | None, float | None], list[tuple[np.ndarray, np.ndarray]]] = {}
    for case, compared in found:
        for form, (measured, bound) in compared.items():
            group = groups.setdefault((case.name, form, case.layer, case.width), [])
            group.append((np.asarray(measured).ravel(), np.asarray(bound).ravel()))
    rows = []
    for (name, form, layer, width), parts in groups.items():
        measured, bound = (np.concatenate(side) for side in zip(*parts, strict=True))
        rows.append(CheckRow(f"{name}, {form}", measured, bound, of, layer, width))
    return tuple(rows)


def violated(compared: Iterable[tuple[Array, Array]]) -> bool:
    """Whether any measured number exceeds its bound."""
    return any(bool(jnp.any(~(measured <= bound))) for measured, bound in compared)


def perturbed(block: MLPBlock) -> MLPBlock:
    """The block with one neuron changed behind a bound's back: 1 is added to its output weights."""
    return block.replace(w2=block.w2.at[0].add(1.0))


def smooth_cases(cases: Sequence[BlockCase]) -> list[BlockCase]:
    """The cases that controls of terms look at: one smooth activation is enough."""
    return [case for case in cases if case.original.activation == "gelu"]


@dataclasses.dataclass(frozen=True)
class InputBoundCheck:
    """The check of a bound that has a number per input: against V1, in all its forms.

    Attributes:
        compare: the compiled comparison of terms, original, fused block, pair and inputs.
        form: the form of it that controls must violate.
        bound: that form, as `term_controls` takes it; its arguments are pair and inputs.
        terms: what the bound is made of.
        switches: as in `term_controls`.
        counted: what the comparisons count.
        real_inputs: how many inputs of real blocks are compared; by default all.
    """

    compare: Callable[..., Compared]
    form: str
    bound: SwitchedBound
    terms: Terms
    switches: dict[str, tuple[str, float]]
    counted: str = "numbers"
    real_inputs: int | None = None

    def run(self, scope: Scope) -> CheckOutcome:
        """Synthetic and real blocks."""
        cases = synthetic_cases(scope)
        found = [(case, self.measure(case)) for case in (*cases, *real_cases(scope))]
        return CheckOutcome(rows_of(found, self.counted), tuple(self.controls(cases)))

    def controls(self, cases: Sequence[BlockCase]) -> list[Control]:
        """What must violate the bound."""
        wrong = (self.measure(case, perturbed(case.original))[self.form] for case in cases)
        changed = Control("an original changed behind the bound's back", violated(wrong))
        smooth = smooth_cases(cases)
        errors = [self.measure(case)[self.form][0] for case in smooth]
        arguments = [(pair_blocks(case.original, case.fused("v1"), case.labels), case.x) for case in smooth]
        return [changed, *term_controls(errors, arguments, self.bound, self.terms, self.switches)]

    def measure(self, case: BlockCase, original: MLPBlock | None = None) -> Compared:
        """A case against V1, its original exchanged or not."""
        fused = case.fused("v1")
        pair = pair_blocks(case.original, fused, case.labels)
        x = case.x[: self.real_inputs] if case.is_real else case.x
        return self.compare(self.terms, case.original if original is None else original, fused, pair, x)


@dataclasses.dataclass(frozen=True)
class KernelBoundCheck:
    """The check of a kernel's bound: in all its forms for one variant, in its tight form for another one.

    Attributes:
        variants: the variant whose kernel is exact when neurons coincide, and the other one.
        compare: the compiled comparison of terms, original, fused block, pair, constants, inputs and the few inputs of
            larger comparisons (or None); "tight" is one of its forms.
        bound: the tight form, as `term_controls` takes it; its arguments are pair, constants and inputs.
        terms: what the bound is made of.
        switches: as in `term_controls`.
    """

    variants: tuple[Variant, Variant]
    compare: Callable[..., Compared]
    bound: SwitchedBound
    terms: Terms
    switches: dict[str, tuple[str, float]]

    def run(self, scope: Scope) -> CheckOutcome:
        """Synthetic and real blocks."""
        cases = synthetic_cases(scope)
        found = [(case, self.both(case, scope)) for case in (*cases, *real_cases(scope))]
        return CheckOutcome(rows_of(found, "numbers"), tuple(self.controls(cases)))

    def both(self, case: BlockCase, scope: Scope) -> Compared:
        """The first variant in every form, and the other one traced; of real blocks in quick mode only the first."""
        main, other = self.variants
        found = self.measure(case, main, few=few_inputs(case, scope))
        if not (case.is_real and scope.quick):
            found[f"tight for {other.upper()}"] = self.measure(case, other)["tight"]
        return found

    def controls(self, cases: Sequence[BlockCase]) -> list[Control]:
        """What must violate the bound."""
        wrong = (self.measure(case, self.variants[0], perturbed(case.original))["tight"] for case in cases)
        changed = Control("an original changed behind the bound's back", violated(wrong))
        smooth: list[tuple[BlockCase, Variant]] = [
            (case, variant) for case in smooth_cases(cases) for variant in self.variants
        ]
        errors = [self.measure(*one)["tight"][0] for one in smooth]
        arguments = [(*_arranged(*one)[1:], one[0].x) for one in smooth]
        return [changed, *term_controls(errors, arguments, self.bound, self.terms, self.switches)]

    def measure(
        self,
        case: BlockCase,
        variant: Variant,
        original: MLPBlock | None = None,
        few: Float[Array, "n d"] | None = None,
    ) -> Compared:
        """A case against one of its variants, its original exchanged or not."""
        old = case.original if original is None else original
        return self.compare(self.terms, old, *_arranged(case, variant), case.x, few)


def _arranged(case: BlockCase, variant: Variant) -> tuple[MLPBlock, FusedPair, PairConstants]:
    """The fused block, the pair and the constants."""
    fused = with_constants(case.fused(variant))
    return fused, pair_blocks(case.original, fused, case.labels), constants_of(case.original, fused)


def term_controls(
    errors: Sequence[Array],
    arguments: Sequence[tuple[Any, ...]],
    bound: SwitchedBound,
    terms: Terms,
    switches: dict[str, tuple[str, float]],
) -> list[Control]:
    """One control per term: with it scaled, some case must violate the bound; with none scaled, no case may.

    Args:
        errors: what was measured, one array per case.
        arguments: what `bound` takes for each, behind suprema and terms.
        bound: as in `switchboard`.
        terms: as in `switchboard`.
        switches: name of a switch → what is wrong in words, and its factor.

    Returns:
        The controls; a single one that passes if the bound is violated as it is, for then they would all fail.
    """
    program = switchboard(bound, terms, tuple(switches))

    def breaks(factors: np.ndarray) -> bool:
        found = (program(jnp.asarray(factors), *given) for given in arguments)
        return violated(zip(errors, found, strict=True))

    whole = np.ones(len(switches))
    if breaks(whole):
        return [Control("terms deleted from a bound that is violated as it is", False)]
    found = []
    for index, (name, factor) in enumerate(switches.values()):
        factors = whole.copy()
        factors[index] = factor
        found.append(Control(name, breaks(factors)))
    return found


#: Names of the switches that belong to the suprema of σ'' and σ''' on segments (both, or that of σ''' alone), beside
#: those of a bound's terms.
SUPREMUM, TAYLOR = "supremum", "taylor"

#: A bound whose 1/6 of sup |σ'''| were 1/7 (in slopes 3/7 for 1/2).
SEVENTH = ("Taylor's 1/6 of sup |σ'''| replaced by 1/7", 6 / 7)


def switchboard(bound: SwitchedBound, terms: Terms, switches: Sequence[str]) -> Callable[..., Array]:
    """A bound whose terms can be scaled: ``f(factors, *arguments)``, compiled once for all factors.

    Args:
        bound: the bound as a function of suprema, terms and its other arguments.
        terms: a named tuple of functions.
        switches: what the factors belong to: fields of `terms`, `SUPREMUM` or `TAYLOR`.

    Returns:
        The function; its factors are an array, 1 for a term as it is, 0 for one that is deleted.
    """

    def scaled(factors: Float[Array, " n"], *arguments: Any) -> Array:
        by_name = {name: factors[index] for index, name in enumerate(switches)}
        both, third = (by_name.pop(name, 1.0) for name in (SUPREMUM, TAYLOR))
        supremum = scaled_suprema(both, third)
        changed = {name: multiplied(getattr(terms, name), factor) for name, factor in by_name.items()}
        return bound(supremum, terms._replace(**changed), *arguments)

    return jax.jit(scaled, compiler_options=FAST)


def scaled_suprema(both: Array | float, third: Array | float) -> Supremum:
    """Suprema on segments, that of σ'' times `both`, that of σ''' times both factors."""

    def supremum(name: str, order: int, start: Float[Array, "*s"], end: Float[Array, "*s"]) -> Float[Array, "*s"]:
        return (both * third if order == 3 else both) * supremum_on(name, order, start, end)

    return supremum


def multiplied(term: Callable[..., Array], factor: Array | float) -> Callable[..., Array]:
    """A function that gives `factor` times what `term` gives."""
    return lambda *arguments, **named: factor * term(*arguments, **named)
