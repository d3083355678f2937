"""Exact kernels of one MLP block in closed form: no Jacobian is ever built."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.errors import InputError
from ntkfusion.kernels import dense, factorized, gated, mixture
from ntkfusion.kernels.dense import Kind
from ntkfusion.kernels.terms import Outputs, Terms, evaluate
from ntkfusion.kernels.tiles import TILE, Parts, map_tiles
from ntkfusion.models.gated import GatedBlock
from ntkfusion.models.mixture import MixtureBlock
from ntkfusion.models.mlp import Block, FactorizedBlock, MLPBlock

#: The kernels there are: ⟨∇f(x), ∇f(z)⟩ and ⟨∇f(x), sgn ∇f(z)⟩.
KINDS: tuple[Kind, ...] = ("sgd", "sign")

#: Where the closed form of each kind of block is, but for mixtures, which are made of the others.
FORMS: dict[type, ModuleType] = {MLPBlock: dense, FactorizedBlock: factorized, GatedBlock: gated}


@overload
def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = ...,
    trace: bool = ...,
    diagonal: bool = ...,
    by_parameter: Literal[False] = ...,
    rates: Mapping[str, float] | None = ...,
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
    diagonal: bool = ...,
    by_parameter: Literal[True],
    rates: Mapping[str, float] | None = ...,
    tile: int | None = ...,
) -> Parts: ...


def block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None = None,
    *,
    kind: Kind = "sgd",
    trace: bool = True,
    diagonal: bool = False,
    by_parameter: bool = False,
    rates: Mapping[str, float] | None = None,
    tile: int | None = None,
) -> Float[Array, "N M *outputs"] | Parts:
    """The exact neural tangent kernel of an MLP block with respect to its parameters (not its constants).

    SGD: ``K(x, z) = ⟨∇f(x), ∇f(z)⟩``, symmetric. Sign: ``K(x, z) = ⟨∇f(x), sgn ∇f(z)⟩``, where z is the training
    example whose Adam/SignSGD step moves f(x); not symmetric. Formulas: the modules `dense`, `factorized`, `gated` and
    `mixture` beside this one; derived in docs/theory.md.

    Args:
        block: the block.
        x: evaluated inputs of the block, one per row.
        z: training inputs; by default `x`.
        kind: "sgd" or "sign".
        trace: the mean over outputs of the diagonal, (1/o) Σ_k K_kk, as neural-tangents' ``trace_axes=(-1,)``; if
            False the full kernel of every pair of outputs.
        diagonal: keep K_kk of every output k instead of their mean.
        by_parameter: return {parameter name: kernel}; the kernels add up to the whole.
        rates: learning rates by parameter name, J C Jᵀ with C constant on each parameter: 0 is frozen, and what is not
            named has 1. New values do not compile again, unless a rate becomes 0 or ceases to be.
        tile: rows of x and z per tile; changes memory and speed, and the result only by rounding. By default as many
            1024 for traced kernels, and for full ones as many as keep an intermediate array near 256 MiB.

    Returns:
        [N, M], or [N, M, o] for the diagonal, or [N, M, o, o] without trace; or a dictionary of such arrays.

    Raises:
        InputError: for inputs that do not fit the block, an unknown kind, a tile below 1, diagonal=True with
            trace=False, rates of unknown parameters, or rates that are negative or not finite.

    >>> import jax.numpy as jnp
    >>> from ntkfusion.models.mlp import MLPBlock
    >>> block = MLPBlock(w1=jnp.eye(2), b1=None, w2=jnp.ones((2, 1)), b2=None, activation="relu")
    >>> block_kernel(block, jnp.array([[1.0, 2.0]]))   # a·a + x·x (1 + 1)
    Array([[15.]], dtype=float32)
    """
    check_kind(kind)
    if tile is not None and tile < 1:
        raise InputError(f"tile must be at least 1, got {tile}")
    if diagonal and not trace:
        raise InputError("diagonal=True and trace=False exclude each other: ask for the diagonal or the full kernel")
    check_inputs(block, x, z)
    names = _trained(block, rates)
    outputs = "diagonal" if diagonal else "trace" if trace else "full"
    constants = None if rates is None else {name: float(rates.get(name, 1)) for name in names}
    with jax.default_matmul_precision("highest"):
        tile = tile or default_tile(block, trace, diagonal)
        return _block_kernel(block, x, z, constants, kind, outputs, by_parameter, tile, names)


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


def _trained(block: Block, rates: Mapping[str, float] | None) -> tuple[str, ...]:
    """The parameters whose rate is not 0, in the block's order."""
    names, rates = tuple(block.parameters()), rates or {}
    if unknown := [name for name in rates if name not in names]:
        raise InputError(f"rates name {', '.join(unknown)}; the block's parameters are {', '.join(names)}")
    if wrong := {name: rate for name, rate in rates.items() if not (math.isfinite(rate) and rate >= 0)}:
        raise InputError(f"rates must be finite and not negative, got {wrong}; parameters: {', '.join(names)}")
    return tuple(name for name in names if rates.get(name, 1))


def default_tile(block: Block, trace: bool, diagonal: bool = False) -> int:
    """Rows per tile: a constant for traced kernels, fewer for full ones, whose tiles hold t²·max(m, o²) numbers."""
    if trace:
        return max(1, min(TILE, math.isqrt(2**26 // block.output_width))) if diagonal else TILE
    return max(1, min(TILE, math.isqrt(2**26 // max(block.hidden_width, block.output_width**2))))


def block_terms(block: Block, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind) -> Terms:
    """The closed form of a block that is not a mixture; call it where ``x is z`` if both sides are the same."""
    return FORMS[type(block)].terms(block, x, z, kind)


def _closed_form(
    block: Block,
    x: Float[Array, "n d"],
    z: Float[Array, "k d"],
    kind: Kind,
    outputs: Outputs,
    names: Collection[str],
) -> Parts:
    if isinstance(block, MixtureBlock):
        return mixture.parts(block, x, z, kind, outputs, names, block_terms)
    terms = block_terms(block, x, z, kind)
    return evaluate({name: terms[name] for name in names}, outputs, (x.shape[0], z.shape[0]))


@partial(jax.jit, static_argnames=("kind", "outputs", "by_parameter", "tile", "names"))
def _block_kernel(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None,
    rates: dict[str, Any] | None,
    kind: Kind,
    outputs: Outputs,
    by_parameter: bool,
    tile: int,
    names: tuple[str, ...],
) -> Float[Array, "N M *outputs"] | Parts:
    o = block.output_width

    def parts(xs: Float[Array, "s d"], zs: Float[Array, "t d"]) -> Parts:
        found = _closed_form(block, xs, zs, kind, outputs, names)
        if rates is not None:
            found = {name: part * rates[name] for name, part in found.items()}
        if by_parameter or not found:
            shape = (xs.shape[0], zs.shape[0], *{"trace": (), "diagonal": (o,), "full": (o, o)}[outputs])
            frozen = jnp.zeros(shape, xs.dtype)
            return {name: found.get(name, frozen) for name in (block.parameters() if by_parameter else ["all"])}
        return {"all": sum(found.values())}  # pyright: ignore[reportReturnType]

    # z None, not a second argument: the compiler then sees that both sides' features are the same
    tiles = map_tiles(parts, x, x if z is None else z, tile)
    return tiles if by_parameter else tiles["all"]
