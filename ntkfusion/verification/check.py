"""What a theory check is: a statement, numbers that it must not exceed, and controls that must fail.

A check that cannot fail is worth nothing. Besides its rows every check therefore brings controls: the same comparison
with something wrong on purpose (a weight moved behind the bound's back, a term left out). A control that passes fails
the check. The statements are the modules of `ntkfusion.verification.statements`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import jax

from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.verification.outcome import CheckOutcome


@dataclasses.dataclass(frozen=True)
class Check:
    """A statement with the function that tries to break it.

    Attributes:
        name: kebab-case, as on the command line.
        statement: one sentence.
        run: the function.
    """

    name: str
    statement: str
    run: Callable[[Scope], CheckOutcome]


@dataclasses.dataclass(frozen=True)
class Scope:
    """What a check may use.

    Attributes:
        quick: whether to answer within seconds: fewer cases, widths and layers.
        seed: drives every random choice.
        models: real models; empty where there are none.
    """

    quick: bool = True
    seed: int = 0
    models: Sequence[RealBlocks] = ()

    @property
    def widths(self) -> tuple[float, ...]:
        """Kept shares of neurons on real blocks."""
        return (0.25,) if self.quick else (0.125, 0.25, 0.5)

    def layers(self) -> Iterator[tuple[RealBlocks, int]]:
        """RealBlocks blocks to check: of every model all layers; in quick mode of the first model the middle one."""
        for model in self.models[:1] if self.quick else self.models:
            layers = sorted(model.blocks)
            for layer in [layers[len(layers) // 2]] if self.quick else layers:
                yield model, layer


@dataclasses.dataclass(frozen=True)
class RealBlocks:
    """MLP blocks of a real model and what reaches them, in float64.

    Attributes:
        name: for people.
        blocks: layer → block.
        inputs: layer → block inputs, [N, d].
    """

    name: str
    blocks: dict[int, MLPBlock]
    inputs: dict[int, jax.Array]


def run_check(check: Check, scope: Scope) -> tuple[CheckOutcome, float]:
    """The outcome of a check in float64, and the seconds it took."""
    start = time.perf_counter()
    with double_precision():
        outcome = check.run(scope)
    return outcome, time.perf_counter() - start


@contextmanager
def double_precision() -> Iterator[None]:
    """Float64, and matrix products at full precision."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@contextmanager
def quick_compilation(quick: bool) -> Iterator[None]:
    """Compile with little optimisation if `quick`: many small programs that each run once or twice."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", quick or before)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
