"""What compression did to a block: errors of its outputs and kernels on tokens that no method saw."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
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

    @property
    def undefined(self) -> frozenset[str]:
        """The errors that have no value, because what they are relative to is 0: they belong in no mean."""
        arrays = {"output_error": self.outputs} | {f"{kind}_kernel_error": self.kernels[kind] for kind in KINDS}
        return frozenset(name for name, array in arrays.items() if not bool(jnp.any(array)))

    def errors(self, block: Block) -> dict[str, float]:
        """Relative Frobenius errors of another block's outputs, SGD kernel and sign kernel.

        Kernels of a coded block are those of its decoded weights. An error relative to 0 is NaN, or infinite if the
        other block's is not 0.
        """
        block = as_dense_weights(block)
        kernels = {kind: block_kernel(block, self.inputs, kind=kind) for kind in KINDS}
        errors = {f"{kind}_kernel_error": error_against(self.kernels[kind], kernels[kind]) for kind in KINDS}
        return {"output_error": error_against(self.outputs, block(self.inputs)), **errors}


def error_against(reference: Float[Array, "*shape"], new: Float[Array, "*shape"]) -> float:
    """‖new − reference‖_F / ‖reference‖_F; NaN if both are 0, as that says nothing, and infinite if the reference is.

    >>> import jax.numpy as jnp
    >>> error_against(jnp.zeros(2), jnp.zeros(2))
    nan
    """
    both = not bool(jnp.any(reference)) and not bool(jnp.any(new))
    return float("nan") if both else relative_error(new, reference)


def check_memory(tokens: int, num_layers: int) -> None:
    """Refuse more tokens than there is memory for their kernels: two per layer, and a handful while one is made."""
    limit, per_pair = memory_limit(None), 4 * (len(KINDS) * num_layers + 8)
    if tokens**2 * per_pair > limit:
        raise InputError(
            f"kernels of {tokens} tokens need about {show_size(tokens**2 * per_pair)}, there is room for "
            f"{show_size(limit)}: ask for --tokens {math.isqrt(limit // per_pair)} or fewer"
        )
