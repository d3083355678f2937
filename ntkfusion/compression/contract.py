"""The contract of every compression method: blocks in, blocks and a report out.

A method is a frozen dataclass of its options with ``compress(blocks, workspace)``. Most methods treat every block alike
and on its own; they derive from `LayerwiseMethod` and only say what happens to one block.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from ntkfusion.compression.experts import compress_experts
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.mixture import MixtureBlock
from ntkfusion.models.mlp import Block, MLPBlock


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

    def makes(self) -> type[Block]:
        """The kind of block that the method makes of a dense block."""
        return MLPBlock

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
    """A method that compresses each block on its own; of a mixture, each expert (see `compress_experts`)."""

    @abstractmethod
    def compress_block(self, block: MLPBlock, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        """Compress one dense block whose constants are folded away; return it with measured details."""

    def check_block(self, block: MLPBlock) -> None:
        """Find out whether the method applies to one dense block; of a mixture it sees the first expert.

        Raises:
            InputError: if it does not; the message says why.
        """

    def check(self, blocks: Sequence[Block]) -> None:
        """Refuse blocks that are neither dense nor mixtures of dense experts; see `Method.check`."""
        for block in blocks:
            self.check_block(require_dense(_one_of(block), type(self).__name__))

    def compress(self, blocks: Sequence[Block], workspace: Workspace) -> Compressed:
        """Compress every block with `compress_block`; see `Method.compress`."""
        self.check(blocks)
        workspace.check_inputs([block.model_width for block in blocks])
        results = [self._timed(block, index, workspace) for index, block in enumerate(blocks)]
        return Compressed(tuple(block for block, _ in results), tuple(report for _, report in results))

    def _timed(self, block: Block, index: int, workspace: Workspace) -> tuple[Block, BlockReport]:
        workspace.charged()
        start = time.perf_counter()
        compressed, details = self._compress_any(block, index, workspace)
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

    def _compress_any(self, block: Block, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
        name = type(self).__name__

        def compress_one(block: Block, index: int, workspace: Workspace) -> tuple[Block, Mapping[str, float]]:
            return self.compress_block(require_dense(block, name), index, workspace)

        if isinstance(block, MixtureBlock):
            return compress_experts(compress_one, block, index, workspace)
        return compress_one(block, index, workspace)


def _one_of(block: Block) -> Block:
    return block.expert(0) if isinstance(block, MixtureBlock) else block


def require_dense(block: Block, method: str) -> MLPBlock:
    """The block with constants folded away, for methods that need plain dense weights.

    Raises:
        InputError: if the block is not dense, or its weights are neither float32 nor float64, or not finite.
    """
    if not isinstance(block, MLPBlock):
        raise InputError(f"{method} works on dense MLP blocks; got a {type(block).__name__}. Merge it first.")
    if block.w1.dtype not in (jnp.float32, jnp.float64):
        raise InputError(f"{method} computes in float32 or float64; got {block.w1.dtype} weights. Convert them first.")
    if wrong := [name for name, array in block.parameters().items() if not bool(jnp.all(jnp.isfinite(array)))]:
        raise InputError(f"{method}: {', '.join(wrong)} of a block hold values that are not finite; check the weights")
    return block.fold()
