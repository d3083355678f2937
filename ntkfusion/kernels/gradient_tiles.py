"""The kernel of one parameter through its gradients, of which no more than a few tiles exist at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ntkfusion.kernels.dense import Kind
from ntkfusion.kernels.leaf_factors import DenseFactors, DirectFactors, Factors, LookupFactors
from ntkfusion.kernels.tiles import even_part

#: Numbers of gradients that are formed at a time, over all examples and outputs.
GRADIENT_CHUNK = 12 * 2**20
#: Numbers of one gradient in a tile, at least: smaller products are slow.
SMALLEST_TILE = 2**13
#: Tiles that are worked on side by side. The product of a few long rows with themselves runs on one core; XLA spreads
#: products over the cores if there are more than about ten of them (measured on CPU: 2.3 times faster on two cores).
SIDE_BY_SIDE = 16
#: From so many gradients on one product alone is large enough for all cores.
MANY_GRADIENTS = 1024


def gradient_kernel(
    x: tuple[Factors, ...], z: tuple[Factors, ...], num_rows: int, kind: Kind
) -> Float[Array, "n m C C"]:
    """Form a few tiles of the gradients of all examples, contract them, go on to the next."""
    (n, outputs), m = sizes_of(x), sizes_of(z)[0]
    count, rows, columns = _tile_shape(max(n, m) * outputs, num_rows, _num_columns(x[0]))
    same = all(left is right for left, right in zip(x, z, strict=True))
    sides = (x,) if same else (x, z)
    row_tiles = [[_row_tiles(use, count, rows, num_rows) for use in uses] for uses in sides]
    column_tiles = [[_column_tiles(use, columns) for use in uses] for uses in sides]

    def product(down: Any, across: Any) -> Float[Array, "nC mC"]:
        gradients = [_gradient_tile(*parts, rows) for parts in zip(sides, down, across, strict=True)]
        left, right = gradients[0], gradients[-1]
        return left @ (jnp.sign(right) if kind == "sign" else right).T

    def some_columns(total: Float[Array, "nC mC"], across: Any) -> tuple[Float[Array, "nC mC"], None]:
        def some_rows(total: Float[Array, "nC mC"], down: Any) -> tuple[Float[Array, "nC mC"], None]:
            each = [jax.tree.map(lambda tiles, i=i: tiles[i], down) for i in range(count)]
            return total + sum(product(tiles, across) for tiles in each), None

        return jax.lax.scan(some_rows, total, row_tiles)[0], None

    zeros = jnp.zeros((n * outputs, m * outputs), x[0].d.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    total, _ = jax.lax.scan(some_columns, zeros, column_tiles)
    return total.reshape(n, outputs, m, outputs).transpose(0, 2, 1, 3)


def _tile_shape(gradients: int, num_rows: int, num_columns: int) -> tuple[int, int, int]:
    """How many tiles side by side, and their rows and columns (1 : 12 is the fastest shape on CPU)."""
    small = gradients * num_rows * num_columns < GRADIENT_CHUNK // 4
    count = 1 if small else max(1, min(SIDE_BY_SIDE, MANY_GRADIENTS // gradients, num_rows))
    area = max(GRADIENT_CHUNK // (gradients * count), SMALLEST_TILE)
    columns = even_part(num_columns, math.isqrt(12 * area))
    return count, even_part(-(-num_rows // count), area // columns), columns


def sizes_of(uses: tuple[Factors, ...]) -> tuple[int, int]:
    """Numbers of examples and of outputs."""
    first = uses[0]
    shape = first.gradient.shape if isinstance(first, DirectFactors) else first.d.shape
    return shape[0], shape[1]


def _num_columns(use: Factors) -> int:
    if isinstance(use, DirectFactors):
        return use.gradient.shape[2]
    return use.a.shape[2] if isinstance(use, DenseFactors) and not use.rows_are_input else use.d.shape[3]


def _row_tiles(use: Factors, count: int, size: int, num_rows: int) -> Array:
    """The factor that varies along the rows, [steps, count, n, 1 or C, T, size]; of look-ups, the tiles' first rows."""
    if isinstance(use, LookupFactors):
        steps = -(-num_rows // (count * size))
        return (jnp.arange(steps * count, dtype=use.rows.dtype) * size).reshape(steps, count)
    if isinstance(use, DirectFactors):
        raise TypeError("direct gradients have no rows")
    tiles = _tiles(use.a[:, None] if use.rows_are_input else use.d, count * size)
    return jnp.moveaxis(tiles.reshape(*tiles.shape[:4], count, size), 4, 1)


def _column_tiles(use: Factors, size: int) -> Float[Array, "tiles n _ T size"]:
    """The factor that varies along the columns, in tiles."""
    if isinstance(use, DirectFactors):
        raise TypeError("direct gradients have no columns")
    if isinstance(use, DenseFactors) and not use.rows_are_input:
        return _tiles(use.a[:, None], size)
    return _tiles(use.d, size)


def _tiles(factor: Float[Array, "n _ T w"], size: int) -> Float[Array, "tiles n _ T size"]:
    missing = -factor.shape[3] % size
    padded = jnp.pad(factor, [(0, 0)] * 3 + [(0, missing)]) if missing else factor
    return jnp.moveaxis(padded.reshape(*factor.shape[:3], -1, size), 3, 0)


def _gradient_tile(
    uses: tuple[Factors, ...], row_tiles: Sequence[Array], column_tiles: Sequence[Array], size: int
) -> Float[Array, "nC numbers"]:
    """Some rows and columns of the gradients of all examples, summed over the uses; beyond the ends they are zero."""
    total = 0
    for use, rows, columns in zip(uses, row_tiles, column_tiles, strict=True):
        if isinstance(use, LookupFactors):
            hot = use.rows[:, None, :, None] == (rows + jnp.arange(size, dtype=rows.dtype))[None, None, None, :]
            rows = hot.astype(use.d.dtype)
        shape = use.d.shape[:3]  # pyright: ignore[reportAttributeAccessIssue]
        # spread over outputs first: the product then comes out in the order it is needed in
        rows, columns = (jnp.broadcast_to(part, (*shape, part.shape[3])) for part in (rows, columns))
        total += jnp.einsum("nctr,nctq->ncrq", rows, columns)
    return total.reshape(total.shape[0] * total.shape[1], -1)  # pyright: ignore[reportAttributeAccessIssue]
