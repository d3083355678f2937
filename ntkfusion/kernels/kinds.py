"""The kinds of kernels there are, and what every kernel of a block refuses."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block

Kind = Literal["sgd", "sign"]

#: The kernels there are: ⟨∇f(x), ∇f(z)⟩ and ⟨∇f(x), sgn ∇f(z)⟩.
KINDS: tuple[Kind, ...] = ("sgd", "sign")


def check_kind(kind: str) -> None:
    """Refuse a kind of kernel that there is not."""
    if kind not in KINDS:
        raise InputError(f"unknown kernel kind {kind!r}; known: {', '.join(KINDS)}")


def check_inputs(block: Block, x: Float[Array, "N ..."], z: Float[Array, "M ..."] | None) -> None:
    """Refuse inputs that are not rows of the block's width."""
    for name, inputs in (("x", x), ("z", x if z is None else z)):
        if inputs.ndim != 2 or inputs.shape[1] != block.model_width or not inputs.shape[0]:
            raise InputError(
                f"{name} must hold at least one row of {block.model_width} numbers (the block's input width), "
                f"got shape {tuple(inputs.shape)}"
            )
