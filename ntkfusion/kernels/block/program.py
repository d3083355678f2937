"""The program behind `block_kernel`: closed forms, tile by tile, so that what lives beside the result stays bounded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.block import dense, factorized, gated, mixture
from ntkfusion.kernels.block.terms import Outputs, Parts, Terms, evaluate, outputs_shape
from ntkfusion.kernels.kinds import Kind, Signs
from ntkfusion.models.blocks.block import Block
from ntkfusion.models.blocks.dense import FactorizedBlock, MLPBlock
from ntkfusion.models.blocks.gated import GatedBlock
from ntkfusion.models.blocks.masked import MaskedBlock
from ntkfusion.models.blocks.mixture import MixtureBlock

Rows = TypeVar("Rows", bound=Array | Parts)

#: Blocks in which every parameter's gradient is a product of two factors.
PRODUCT_BLOCKS = (MLPBlock, FactorizedBlock, GatedBlock)

#: Examples per tile. What a tile recomputes (the features of its examples) is small beside its matmuls from here on.
TILE = 1024


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What is asked of a block's kernel; hashable, a program is compiled for each.

    Attributes:
        kind: "sgd" or "sign".
        outputs: what is kept of every pair's o×o matrix.
        by_parameter: whether there is one kernel per parameter.
        names: the trained parameters.
        signs: of which gradients the sign kernel takes signs.
    """

    kind: Kind
    outputs: Outputs
    by_parameter: bool
    names: tuple[str, ...]
    signs: Signs = "exact"


@partial(jax.jit, static_argnames=("options", "tile"))
def block_program(
    block: Block,
    x: Float[Array, "N d"],
    z: Float[Array, "M d"] | None,
    rates: Mapping[str, float | Array] | None,
    *,
    options: BlockOptions,
    tile: int,
) -> Float[Array, "N M *outputs"] | Parts:
    """The kernel, or the kernels by parameter, of the trained parameters; see `block_kernel`."""

    def parts(xs: Float[Array, "s d"], zs: Float[Array, "t d"]) -> Parts:
        found = _closed_form(block, xs, zs, options)
        if rates is not None:
            found = {name: part * rates[name] for name, part in found.items()}
        if options.by_parameter or not found:
            shape = (xs.shape[0], zs.shape[0], *outputs_shape(options.outputs, block.output_width))
            untrained = jnp.zeros(shape, xs.dtype)
            names = block.parameters() if options.by_parameter else ["all"]
            return {name: found.get(name, untrained) for name in names}
        return {"all": sum(found.values())}  # pyright: ignore[reportReturnType]

    # z None, not a second argument: the compiler then sees that both sides' features are the same
    tiles = map_tiles(parts, x, x if z is None else z, tile)
    return tiles if options.by_parameter else tiles["all"]


def block_terms(
    block: Block, x: Float[Array, "n d"], z: Float[Array, "k d"], kind: Kind, signs: Signs = "exact"
) -> Terms:
    """The closed form of a block that is not a mixture; call it where ``x is z`` if both sides are the same."""
    match block:
        case MLPBlock():
            return dense.terms(block, x, z, kind, signs)
        case MaskedBlock():
            return dense.masked_terms(block, x, z, kind, signs)
        case FactorizedBlock():
            return factorized.terms(block, x, z, kind, signs)
        case GatedBlock():
            return gated.terms(block, x, z, kind, signs)
    raise TypeError(f"no closed form of one {type(block).__name__}")


def default_tile(block: Block, outputs: Outputs) -> int:
    """Rows per tile: a constant for traced kernels, fewer for full ones, whose tiles hold t²·max(m, o²) numbers."""
    if outputs == "trace":
        return TILE
    if outputs == "diagonal":
        return max(1, min(TILE, math.isqrt(2**26 // block.output_width)))
    return max(1, min(TILE, math.isqrt(2**26 // max(block.hidden_width, block.output_width**2))))


def map_rows(function: Callable[[Float[Array, "t d"]], Rows], x: Float[Array, "N d"], tile: int) -> Rows:
    """Apply `function` to `tile` rows of `x` at a time and concatenate its results (pytrees, rows first)."""
    count = x.shape[0]
    if count <= tile:
        return function(x)
    num_tiles = -(-count // tile)
    padded = jnp.pad(x, ((0, num_tiles * tile - count), (0, 0)))
    results = jax.lax.map(function, padded.reshape(num_tiles, tile, x.shape[1]))
    return jax.tree.map(lambda leaf: leaf.reshape(num_tiles * tile, *leaf.shape[2:])[:count], results)


def map_tiles(
    function: Callable[[Float[Array, "s d"], Float[Array, "t d"]], Parts],
    x: Float[Array, "N d"],
    z: Float[Array, "M d"],
    tile: int,
) -> Parts:
    """Apply `function(x_rows, z_rows) -> {name: [s, t, ...]}` to every tile and assemble {name: [N, M, ...]}."""

    def swap(parts: Parts) -> Parts:
        return {name: jnp.swapaxes(part, 0, 1) for name, part in parts.items()}

    def rows(xs: Float[Array, "s d"]) -> Parts:
        return swap(map_rows(lambda zs: swap(function(xs, zs)), z, tile))

    return map_rows(rows, x, tile)


def _closed_form(block: Block, x: Float[Array, "n d"], z: Float[Array, "k d"], options: BlockOptions) -> Parts:
    kind, outputs, names = options.kind, options.outputs, options.names
    if isinstance(block, MixtureBlock):
        return mixture.parts(block, x, z, kind, outputs, names, block_terms, options.signs)
    terms = block_terms(block, x, z, kind, options.signs)
    return evaluate({name: terms[name] for name in names}, outputs, (x.shape[0], z.shape[0]))
