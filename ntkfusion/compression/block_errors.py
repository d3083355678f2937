"""What compression did to a block: errors of its outputs and kernels on tokens that no method saw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels.block.block_kernel import block_kernel
from ntkfusion.kernels.distance.kernel_distance import relative_error
from ntkfusion.kernels.kinds import KINDS
from ntkfusion.models.blocks.block import Block, as_dense_weights
from ntkfusion.utils.memory import memory_limit, show_size


@dataclasses.dataclass(frozen=True)
class Reference:
    """One layer's original block on the held-out tokens."""

    inputs: Float[Array, "N d"]
    outputs: Float[Array, "N o"]
    kernels: Mapping[str, Float[Array, "N N"]]

    @classmethod
    def of(cls, block: Block, inputs: Float[Array, "N d"]) -> Reference:
        """Measure the original block."""
        return cls(inputs, block(inputs), {kind: block_kernel(block, inputs, kind=kind) for kind in KINDS})

    def errors(self, block: Block) -> dict[str, float]:
        """Relative Frobenius errors of another block's outputs, SGD kernel and sign kernel.

        Kernels of a coded block are those of its decoded weights.
        """
        block = as_dense_weights(block)
        kernels = {kind: block_kernel(block, self.inputs, kind=kind) for kind in KINDS}
        errors = {f"{kind}_kernel_error": relative_error(kernels[kind], self.kernels[kind]) for kind in KINDS}
        return {"output_error": relative_error(block(self.inputs), self.outputs), **errors}


def check_memory(tokens: int, num_layers: int) -> None:
    """Refuse more tokens than there is memory for their kernels: two per layer, and a handful while one is made."""
    limit, per_pair = memory_limit(None), 4 * (len(KINDS) * num_layers + 8)
    if tokens**2 * per_pair > limit:
        raise InputError(
            f"kernels of {tokens} tokens need about {show_size(tokens**2 * per_pair)}, there is room for "
            f"{show_size(limit)}: ask for --tokens {math.isqrt(limit // per_pair)} or fewer"
        )
