"""The program behind `block_kernel`: closed forms tile by tile."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block import dense, factorized, gated, masked, mixture
from ntkfusion.kernels.block.terms import Outputs, Terms, evaluate
from ntkfusion.kernels.kinds import Kind
from ntkfusion.kernels.tiles import TILE, Parts, map_tiles
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock

#: Closed forms in which every parameter's gradient is a product of two factors.
PRODUCT_FORMS: dict[type, ModuleType] = {MLPBlock: dense, FactorizedBlock: factorized, GatedBlock: gated}

#: Where the closed form of each kind of block is, but for mixtures, which are made of the others.
FORMS: dict[type, ModuleType] = {**PRODUCT_FORMS, MaskedBlock: masked}


def default_tile(block: Block, outputs: Outputs) -> int:
    """Rows per tile: a constant for traced kernels, fewer for full ones, whose tiles hold t²·max(m, o²) numbers."""
    if outputs == "trace":
        return TILE
    if outputs == "diagonal":
        return max(1, min(TILE, math.isqrt(2**26 // block.output_width)))
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
def block_program(
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
    """The kernel, or the kernels by parameter, of the parameters in `names`; see `block_kernel`."""
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
