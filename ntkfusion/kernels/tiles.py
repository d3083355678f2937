"""Kernels tile by tile, so that what lives beside the result stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: Examples per tile. What a tile recomputes (the features of its examples) is small beside its matmuls from here on.
TILE = 1024

Parts = dict[str, Array]


def even_part(length: int, most: int) -> int:
    """The smallest part of a length that needs no more parts than `most` does.

    >>> even_part(9, 8)
    5
    """
    return -(-length // -(-length // max(1, most)))


def map_rows(function: Callable[[Float[Array, "t d"]], Any], x: Float[Array, "N d"], tile: int) -> Any:
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
