"""The kinds of kernels there are, whose signs the sign kernel takes, and what every kernel of a block refuses.

The sign kernel ⟨∇f(x), sgn ∇f(z)⟩ is about an optimiser that moves every parameter by the sign of its gradient. Signs
may be taken of two gradients: of the mathematical one ("exact"), whose sign is known also where its value underflows
(the slope of a GELU at −20 is negative, and 0 in float32); or of the one that the arithmetic gives ("float"), where a
parameter whose gradient underflows does not move, as in a real optimiser. The closed forms of one block know both; a
sum over positions has only the sign that is computed.
"""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.models.blocks.block import Block

Kind = Literal["sgd", "sign"]

#: Of which gradient the sign kernel takes signs: the mathematical one, or the one that the arithmetic gives.
Signs = Literal["exact", "float"]

#: The kernels there are: ⟨∇f(x), ∇f(z)⟩ and ⟨∇f(x), sgn ∇f(z)⟩.
KINDS: tuple[Kind, ...] = ("sgd", "sign")


def check_kind(kind: str) -> None:
    """Refuse a kind of kernel that there is not."""
    if kind not in KINDS:
        raise InputError(f"unknown kernel kind {kind!r}; known: {', '.join(KINDS)}")


def check_signs(signs: str, *, known: bool = True) -> None:
    """Refuse signs that there are not, or that a kernel does not know.

    Args:
        signs: as the user gave it.
        known: whether the kernel knows signs of mathematical gradients.

    Raises:
        InputError: saying what there is.
    """
    if signs not in get_args(Signs):
        raise InputError(f"unknown signs {signs!r}; known: {', '.join(get_args(Signs))}")
    if signs == "exact" and not known:
        raise InputError(
            "signs='exact' is for kernels of one block and one token each (nf.block_kernel): a sum over positions has "
            "only the sign that is computed; take signs='float', or float64 for signs that seldom underflow"
        )


def check_inputs(block: Block, x: Float[Array, "N ..."], z: Float[Array, "M ..."] | None) -> None:
    """Refuse inputs that are not rows of the block's width."""
    for name, inputs in (("x", x), ("z", x if z is None else z)):
        if inputs.ndim != 2 or inputs.shape[1] != block.model_width or not inputs.shape[0]:
            raise InputError(
                f"{name} must hold at least one row of {block.model_width} numbers (the block's input width), "
                f"got shape {tuple(inputs.shape)}"
            )
