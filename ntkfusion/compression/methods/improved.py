"""What can be done on top of every method: refit the output weights, match the constants to a kernel."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import jax

from ntkfusion.compression.contract import BlockReport, Compressed, Method, compress_experts
from ntkfusion.compression.matching.constants import Target, check_target, match_constants
from ntkfusion.compression.matching.refit import refit_output
from ntkfusion.compression.methods.mlp_fusion import MLPFusion
from ntkfusion.compression.methods.ntk_fusion import some_inputs
from ntkfusion.compression.workspace import Workspace
from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block, as_dense_weights
from ntkfusion.models.blocks.coded import CodedBlock
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock


@dataclasses.dataclass(frozen=True)
class Improved(Method):
    """A method whose blocks are improved on calibration inputs; the experts of a mixture one by one.

    Attributes:
        keep_ratio: the method's.
        method: what is improved.
    """

    keep_ratio: float = dataclasses.field(init=False, default=0.25)
    method: Method = dataclasses.field(default_factory=MLPFusion)

    def __post_init__(self) -> None:
        """Take over the method's keep ratio."""
        object.__setattr__(self, "keep_ratio", self.method.keep_ratio)
        super().__post_init__()

    def check(self, blocks: Sequence[Block]) -> None:
        """As the method's own, and refuse methods whose blocks cannot be improved; see `Method.check`."""
        self.makes()
        self.method.check(blocks)

    def compress(self, blocks: Sequence[Block], workspace: Workspace) -> Compressed:
        """Compress by the method, then improve every block; see `Method.compress`."""
        self.check(blocks)
        for index in range(len(blocks)):
            workspace.inputs(index)  # missing calibration inputs are found out before any work
        compressed = self.method.compress(blocks, workspace)
        pairs = enumerate(zip(blocks, compressed.blocks, compressed.reports, strict=True))
        improved = [self._timed(old, new, report, index, workspace) for index, (old, new, report) in pairs]
        return Compressed(tuple(block for block, _ in improved), tuple(report for _, report in improved))

    def _timed(
        self, original: Block, block: Block, report: BlockReport, index: int, workspace: Workspace
    ) -> tuple[Block, BlockReport]:
        start = time.perf_counter()
        improved, details = self._improve_any(original, block, index, workspace)
        jax.block_until_ready(improved)
        seconds = report.seconds + time.perf_counter() - start
        return improved, dataclasses.replace(
            report, parameters=improved.num_parameters, seconds=seconds, details={**report.details, **details}
        )

    def _improve_any(
        self, original: Block, block: Block, index: int, workspace: Workspace
    ) -> tuple[Block, Mapping[str, float]]:
        if not (isinstance(original, MixtureBlock) and isinstance(block, MixtureBlock)):
            return self.improve(original, block, index, workspace)

        def one(expert: Block, number: int, view: Workspace) -> tuple[Block, Mapping[str, float]]:
            return self.improve(expert, block.expert(number), number, view)

        return compress_experts(one, original, index, workspace)

    @abstractmethod
    def improve(
        self, original: Block, block: Block, index: int, workspace: Workspace
    ) -> tuple[Block, Mapping[str, float]]:
        """The improved block of the same size, and what was measured on the way."""


@dataclasses.dataclass(frozen=True)
class Refitted(Improved):
    """A method's blocks with output weights refitted by ridge regression; see `refit_output`.

    Attributes:
        keep_ratio: the method's.
        method: what is refitted.

    >>> Refitted(method=MLPFusion(keep_ratio=0.5, variant="v2")).keep_ratio
    0.5
    """

    def makes(self) -> type[Block]:
        """The kind of the method's blocks; see `Method.makes`.

        Raises:
            InputError: if these cannot be refitted.
        """
        if (kind := self.method.makes()) not in (MLPBlock, FactorizedBlock):
            raise InputError(f"refitting needs dense output weights; got a {kind.__name__}")
        return kind

    def improve(
        self, original: Block, block: Block, index: int, workspace: Workspace
    ) -> tuple[Block, Mapping[str, float]]:
        """Refit on all calibration inputs."""
        return refit_output(block, original, workspace.inputs(index))


@dataclasses.dataclass(frozen=True)
class Matched(Improved):
    """A method's blocks with constants matched to the original's kernel, function unchanged; see `match_constants`.

    Coded blocks are decoded first, because constants belong to the dense weights that are trained: what comes out is a
    dense block and counts as one.

    Attributes:
        keep_ratio: the method's.
        method: what gets constants.
        target: which kernel.
        sgd_share: for the target "both".
        tokens: calibration tokens, at most.
    """

    target: Target = "sgd"
    sgd_share: float = 0.5
    tokens: int = 512

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            InputError: for an unknown target or a number out of range.
        """
        super().__post_init__()
        check_target(self.target, self.sgd_share)
        if self.tokens < 1:
            raise InputError(
                f"sgd_share is a weight from 0 to 1 and tokens at least 1; got {self.sgd_share}, {self.tokens}"
            )

    def makes(self) -> type[Block]:
        """The kind of the method's blocks, dense if these are coded; see `Method.makes`.

        Raises:
            InputError: if these cannot have constants.
        """
        if (kind := self.method.makes()) not in (MLPBlock, MaskedBlock, FactorizedBlock, CodedBlock):
            raise InputError(f"constants are matched for dense, masked and factorised blocks; got a {kind.__name__}")
        return MLPBlock if kind is CodedBlock else kind

    def improve(
        self, original: Block, block: Block, index: int, workspace: Workspace
    ) -> tuple[Block, Mapping[str, float]]:
        """Match on some of the calibration inputs."""
        inputs = some_inputs(workspace.inputs(index), self.tokens, workspace.key("matching", index))
        dense = as_dense_weights(block)
        matched = match_constants(dense, original, inputs, target=self.target, sgd_share=self.sgd_share)
        return matched.block, {f"calibration_{kind}_kernel_error": error for kind, error in matched.errors.items()}
