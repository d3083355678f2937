"""Exact kernels of one MLP block in closed form: no Jacobian is ever built."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, overload

import jax
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels import dense, factorized
from ntkfusion.kernels.dense import Kind
from ntkfusion.kernels.tiles import TILE, Parts, map_tiles
from ntkfusion.models.mlp import Block, FactorizedBlock

#: The kernels there are: ⟨∇f(x), ∇f(z)⟩ and ⟨∇f(x), sgn ∇f(z)⟩.
KINDS: tuple[Kind, ...] = ("sgd", "sign")


@overload
def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = ...,
    trace: bool = ...,
    by_parameter: Literal[False] = ...,
    tile: int | None = ...,
) -> Float[Array, "N M *outputs"]: ...


@overload
def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = ...,
    trace: bool = ...,
    by_parameter: Literal[True],
    tile: int | None = ...,
) -> Parts: ...


def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = "sgd",
    trace: bool = True,
    by_parameter: bool = False,
    tile: int | None = None,
) -> Float[Array, "N M *outputs"] | Parts:
    """The exact neural tangent kernel of an MLP block with respect to its parameters (not its constants).

    SGD: ``K(x, z) = ⟨∇f(x), ∇f(z)⟩``, symmetric. Sign: ``K(x, z) = ⟨∇f(x), sgn ∇f(z)⟩``, where z is the training
    example whose Adam/SignSGD step moves f(x); not symmetric. Formulas: `ntkfusion.kernels.dense` and
    `ntkfusion.kernels.factorized`; derived in docs/theory.md.

    Args:
        block: the block.
        x: evaluated inputs of the block, one per row.
        z: training inputs; by default `x`.
        kind: "sgd" or "sign".
        trace: the mean over outputs of the diagonal, (1/o) Σ_k K_kk, as neural-tangents' ``trace_axes=(-1,)``; if
            False the full kernel of every pair of outputs.
        by_parameter: return {parameter name: kernel}; the kernels add up to the whole.
        tile: rows of x and z per tile; changes memory and speed, and the result only by rounding. By default as many
            as keep a tile's intermediate arrays near 256 MiB.

    Returns:
        [N, M], or [N, M, o, o] without trace; or a dictionary of such arrays.

    Raises:
        InputError: for inputs that do not fit the block, an unknown kind or a tile below 1.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.mlp import MLPBlock
    >>> block = MLPBlock(w1=jnp.eye(2), b1=None, w2=jnp.ones((2, 1)), b2=None, activation="relu")
    >>> block_kernel(block, jnp.array([[1.0, 2.0]]))   # a·a + x·x (1 + 1)
    Array([[15.]], dtype=float32)
    """
    if kind not in KINDS:
        raise InputError(f"unknown kernel kind {kind!r}; known: {', '.join(KINDS)}")
    if tile is not None and tile < 1:
        raise InputError(f"tile must be at least 1, got {tile}")
    for name, inputs in (("x", x), ("z", x if z is None else z)):
        if inputs.ndim != 2 or inputs.shape[1] != block.model_width or not inputs.shape[0]:
            raise InputError(
                f"{name} must hold at least one row of {block.model_width} numbers (the block's input width), "
                f"got shape {tuple(inputs.shape)}"
            )
    with jax.default_matmul_precision("highest"):
        return _block_kernel(block, x, z, kind, trace, by_parameter, tile or default_tile(block, trace))


def default_tile(block: Block, trace: bool) -> int:
    """Rows per tile: a constant for traced kernels, fewer for full ones, whose tiles hold t²·max(m, o²) numbers."""
    if trace:
        return TILE
    return max(1, min(TILE, math.isqrt(2**26 // max(block.hidden_width, block.output_width**2))))


@partial(jax.jit, static_argnames=("kind", "trace", "by_parameter", "tile"))
def _block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None,
    kind: Kind,
    trace: bool,
    by_parameter: bool,
    tile: int,
) -> Float[Array, "N M *outputs"] | Parts:
    forms = factorized if isinstance(block, FactorizedBlock) else dense
    closed_form = forms.traced_parts if trace else forms.full_parts

    def parts(xs: Float[Array, "s d"], zs: Float[Array, "t d"]) -> Parts:
        found = closed_form(block, xs, zs, kind)  # pyright: ignore[reportArgumentType]
        return found if by_parameter else {"all": sum(found.values())}  # pyright: ignore[reportReturnType]

    # z None, not a second argument: the compiler then sees that both sides' features are the same
    tiles = map_tiles(parts, x, x if z is None else z, tile)
    return tiles if by_parameter else tiles["all"]
