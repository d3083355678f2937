"""The contract of every compression method: blocks in, blocks and a report out.

A method is a frozen dataclass of its options with ``compress(blocks, workspace)``. Most methods treat every block alike
and on its own; they derive from `LayerwiseMethod` and only say what happens to one block. What they make of one dense
block they make of every expert of a mixture, whose router stays as it is.
"""

from __future__ import annotations

import dataclasses
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import MLPBlock
from ntkfusion.models.blocks.mixture import Expert, MixtureBlock

T = TypeVar("T")

#: An expert to which fewer calibration tokens are routed is calibrated on all tokens of its layer.
MIN_TOKENS = 16

_EXPERTS = "experts/"


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


def check_keep_ratio(keep_ratio: float, what: str) -> None:
    """Refuse a keep ratio that is no number in (0, 1].

    Args:
        keep_ratio: as it was given.
        what: it is, for the message.

    Raises:
        InputError: saying what came.
    """
    is_number = isinstance(keep_ratio, Real) and not isinstance(keep_ratio, bool)
    if not is_number or not 0 < keep_ratio <= 1:
        hint = "" if is_number else f", which is no number ({type(keep_ratio).__name__})"
        raise InputError(f"keep_ratio (--width) is {what}, above 0 and at most 1; got {keep_ratio!r}{hint}")


@dataclasses.dataclass(frozen=True)
class Method(ABC):
    """A way to compress MLP blocks; a subclass is a frozen dataclass of its options.

    Attributes:
        keep_ratio: the kept share of the hidden width, in (0, 1]; methods that do not remove neurons match the number
            of parameters of a dense block of that width.
    """

    keep_ratio: float = 0.25

    def __post_init__(self) -> None:
        """Check the keep ratio.

        Raises:
            InputError: if it is not in (0, 1].
        """
        check_keep_ratio(self.keep_ratio, "the kept share of the hidden width")

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
        """The number of neurons c that `keep_ratio` leaves of `hidden_width`: the nearest whole number, at least 1."""
        return max(1, round(self.keep_ratio * hidden_width))


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


def compress_experts(
    compress_one: Callable[[Block, int, Workspace], tuple[Block, Mapping[str, float]]],
    mixture: MixtureBlock,
    index: int,
    workspace: Workspace,
) -> tuple[MixtureBlock, dict[str, float]]:
    """Compress every expert on its own; the router is the same array, trainable or not as before.

    Args:
        compress_one: what happens to one block: ``(block, index, workspace) -> (new block, details)``.
        mixture: the original; it is not changed.
        index: which block of the run it is.
        workspace: the run.

    Returns:
        The mixture of the new experts, and the means of their details; beside them, if calibration inputs were used,
        how many experts had to be calibrated on all tokens (``experts_on_all_tokens``).

    Raises:
        InputError: if the new experts differ in kind or shape.
    """
    view = ExpertWorkspace(workspace, index, mixture)
    results = [compress_one(mixture.expert(e), e, view) for e in range(mixture.num_experts)]
    experts = [block for block, _ in results if not isinstance(block, MixtureBlock)]  # experts are no mixtures
    details = [detail for _, detail in results]
    _check_alike(experts)
    means = {name: float(np.mean([detail[name] for detail in details])) for name in details[0]}
    if view.on_all_tokens:
        means["experts_on_all_tokens"] = float(len(view.on_all_tokens))
    return MixtureBlock.stack(mixture.router, experts, train_router=mixture.train_router), means


def _check_alike(experts: Sequence[Expert]) -> None:
    def shapes(expert: Expert) -> dict[str, tuple[int, ...]]:
        return {name: array.shape for name, array in (expert.parameters() | expert.constants()).items()}

    first = experts[0]
    for e, expert in enumerate(experts):
        if type(expert) is not type(first) or shapes(expert) != shapes(first):
            raise InputError(
                f"the method makes experts that differ in kind or shape and cannot be stacked: expert 0 is a "
                f"{type(first).__name__} of {shapes(first)}, expert {e} a {type(expert).__name__} of {shapes(expert)}. "
                "Choose options that give every expert the same width"
            )


class ExpertWorkspace(Workspace):
    """A run as the experts of one of its mixtures see it: expert e is block e.

    Calibration inputs of an expert are the tokens that the router sends to it, each counted once whatever its
    probability; if they are fewer than `MIN_TOKENS`, all tokens of the layer.

    Attributes:
        on_all_tokens: the experts that were given all tokens so far.
    """

    def __init__(self, run: Workspace, index: int, mixture: MixtureBlock) -> None:
        """The view of `mixture`, block `index` of the run."""
        super().__init__(run.seed)
        self._run, self._index, self._mixture = run, index, mixture
        self.on_all_tokens: set[int] = set()

    def key(self, purpose: str, index: int) -> Array:
        """A random key of one expert; see `Workspace.key`."""
        return jax.random.fold_in(self._run.key(purpose, self._index), index)

    def inputs(self, index: int) -> Float[Array, "N d"]:
        """Calibration inputs of one expert.

        Raises:
            InputError: if the run has none.
        """
        tokens = self._run.inputs(self._index)
        routed = np.flatnonzero(np.asarray(self._mixture.route(tokens)[0]) == index)
        if len(routed) >= MIN_TOKENS:
            return tokens[jnp.asarray(routed)]
        self.on_all_tokens.add(index)
        return tokens

    def squared_gradients(self, index: int) -> Mapping[str, Array] | None:
        """Mean squared gradients of one expert's parameters, ``experts/w1`` [E, d, m] of the run as ``w1`` [d, m]."""
        given = self._run.squared_gradients(self._index)
        if given is None:
            return None
        return {name.removeprefix(_EXPERTS): array[index] for name, array in given.items() if name.startswith(_EXPERTS)}

    def progress(self, what: str, fraction: float) -> None:
        """See `Workspace.progress`."""
        self._run.progress(what, fraction)

    def reuse(self, name: Hashable, compute: Callable[[], T]) -> T:
        """The result of `compute`, shared with other methods that compress the same mixture."""
        return self._run.reuse(("expert", self._index, name), compute)

    def charged(self) -> float:
        """See `Workspace.charged`."""
        return self._run.charged()
