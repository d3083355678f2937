"""The contract of every compression method: blocks in, blocks and a report out.

A method is a frozen dataclass of its options with ``compress(blocks, workspace)``. Most methods treat every block alike
and on its own; they derive from `LayerwiseMethod` and only say what happens to one block.
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.mlp import Block, MLPBlock

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class BlockReport:
    """What compressing one block cost and gave.

    Attributes:
        hidden_width: neurons of the new block.
        parameters: trainable numbers that the new block stores.
        original_parameters: the same of the given block.
        seconds: wall-clock time, compilation and shared work (a clustering that another method computed) included.
        details: what the method measured on the way (inertia, rank ...), by name.
    """

    hidden_width: int
    parameters: int
    original_parameters: int
    seconds: float
    details: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Compressed:
    """The result of a method: one block and one report per given block, in order."""

    blocks: tuple[Block, ...]
    reports: tuple[BlockReport, ...]


class Workspace:
    """What the methods of one run share: randomness, calibration inputs, and intermediate results.

    Several methods need the same expensive thing, say the same clustering. `reuse` computes it once and charges its
    time to each of them, so that reported seconds stay what the method would take alone.
    """

    def __init__(
        self,
        seed: int = 0,
        inputs: Sequence[Float[Array, "N d"]] | None = None,
        *,
        squared_gradients: Sequence[Mapping[str, Array]] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        """What a run has.

        Args:
            seed: drives all randomness.
            inputs: calibration inputs per block, in the order of the blocks.
            squared_gradients: per block, the mean over examples of a task's squared gradients, under the names of the
                block's parameters (the diagonal of its empirical Fisher information).
            progress: told by long work what it is doing and which fraction of it is done.
        """
        self.seed = seed
        self._inputs = inputs
        self._squared_gradients = squared_gradients
        self._progress = progress
        self._results: dict[Hashable, tuple[Any, float]] = {}
        self._charged = 0.0

    def key(self, purpose: str, index: int) -> Array:
        """A random key that depends on the seed, a purpose and the index of a block only."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(purpose.encode()))
        return jax.random.fold_in(key, index)

    def inputs(self, index: int) -> Float[Array, "N d"]:
        """Calibration inputs of block `index`.

        Raises:
            InputError: if the run has none.
        """
        if self._inputs is None:
            raise InputError("this method needs calibration inputs; pass calibration texts")
        return self._inputs[index]

    def squared_gradients(self, index: int) -> Mapping[str, Array] | None:
        """Mean squared gradients of a task at block `index`, by parameter; None if the run has none."""
        return None if self._squared_gradients is None else self._squared_gradients[index]

    def progress(self, what: str, fraction: float) -> None:
        """Say how far long work has come, to whoever listens."""
        if self._progress is not None:
            self._progress(what, fraction)

    def reuse(self, name: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, from an earlier call of the same name if there was one."""
        if name in self._results:
            result, seconds = self._results[name]
            self._charged += seconds
            return result
        start = time.perf_counter()
        result = jax.block_until_ready(compute())
        self._results[name] = (result, time.perf_counter() - start)
        return result

    def charged(self) -> float:
        """Seconds of reused work since the last call of this function."""
        seconds, self._charged = self._charged, 0.0
        return seconds


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """A way to compress MLP blocks; a subclass is a frozen dataclass of its options.

    Attributes:
        width: kept fraction of the hidden width, in (0, 1]; methods that do not remove neurons match the number of
            parameters of a dense block of that width.
    """

    width: float = 0.25

    def __post_init__(self) -> None:
        """Check the width.

        Raises:
            InputError: if it is not in (0, 1].
        """
        if not 0 < self.width <= 1:
            raise InputError(f"width is the kept fraction of the hidden width, above 0 and at most 1; got {self.width}")

    def check(self, blocks: Sequence[Block]) -> None:  # noqa: B027 (most methods have nothing to add)
        """Find out, before any long work, whether the method applies to these blocks.

        Raises:
            InputError: if it does not; the message says why.
        """

    @abstractmethod
    def compress(self, blocks: Sequence[Block], workspace: Workspace) -> Compressed:
        """Compress the blocks of several layers.

        Args:
            blocks: one block per layer; they are not changed.
            workspace: randomness, calibration inputs and shared results.

        Returns:
            New blocks and their reports, in the same order.

        Raises:
            InputError: if the method does not apply to these blocks; the message says why.
        """

    def kept_neurons(self, hidden_width: int) -> int:
        """The number of neurons c that `width` leaves of `hidden_width`: the nearest whole number, at least 1."""
        return max(1, round(self.width * hidden_width))


@dataclasses.dataclass(frozen=True)
class LayerwiseMethod(Method):
    """A method that compresses each block on its own."""

    @abstractmethod
    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Compress one dense block whose constants are folded away; return it with measured details."""

    def check(self, blocks: Sequence[Block]) -> None:
        """Refuse blocks that are not dense; see `Method.check`."""
        for block in blocks:
            require_dense(block, type(self).__name__)

    def compress(self, blocks: Sequence[Block], workspace: Workspace) -> Compressed:
        """Compress every block with `compress_block`; see `Method.compress`."""
        results = [self._timed(block, index, workspace) for index, block in enumerate(blocks)]
        return Compressed(tuple(block for block, _ in results), tuple(report for _, report in results))

    def _timed(self, block: Block, index: int, workspace: Workspace) -> tuple[Block, BlockReport]:
        dense = require_dense(block, type(self).__name__)
        workspace.charged()
        start = time.perf_counter()
        compressed, details = self.compress_block(dense, index, workspace)
        jax.block_until_ready(compressed)
        seconds = time.perf_counter() - start + workspace.charged()
        report = BlockReport(
            hidden_width=compressed.hidden_width,
            parameters=compressed.num_parameters,
            original_parameters=block.num_parameters,
            seconds=seconds,
            details=details,
        )
        return compressed, report


def require_dense(block: Block, method: str) -> MLPBlock:
    """The block with constants folded away, for methods that need plain dense weights.

    Raises:
        InputError: if the block is not dense.
    """
    if not isinstance(block, MLPBlock):
        raise InputError(f"{method} works on dense MLP blocks; got a {type(block).__name__}. Merge it first.")
    return block.fold()
